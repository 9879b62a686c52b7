# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Packer: what a template has in common in both its languages, and how its variables are filled in."""

from __future__ import annotations

import dataclasses
import re
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils._definition import nearest
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_source import Node

LONGEST = 1 << 20
"""Characters that a value may have once its variables are filled in."""


class Unresolved(Exception):
    """A value that is known only when Packer runs; the text says why."""


@dataclasses.dataclass
class Variable:
    """A user variable or a local value.

    :ivar node: where its value stands; None for one that has none in the template.
    :ivar value: what it stands for, with others yet to be filled in; None where it must be given.
    :ivar given: whether the user of the module has given it.
    """

    node: Node | None
    value: t.Any
    secret: bool = False
    given: bool = False


@dataclasses.dataclass
class Builder:
    """A source of Packer's: its name, its type, and where its settings stand, what goes before all others last."""

    name: str
    kind: str
    layers: list[Node]


@dataclasses.dataclass
class Template:
    """A template, with one of its builders chosen.

    :ivar variables: by their names as the language has them, such as C(var.x).
    :ivar references: finds the names of variables in a text, with what stands there for each.
    :ivar provisioners: kind and node of each that the builder runs.
    :ivar taken: nodes that choose the builder.
    :ivar left: nodes that belong to others, and why.
    """

    roots: list[Node]
    builder: Builder
    variables: dict[str, Variable]
    references: t.Callable[[str], list[tuple[str, str]]]
    provisioners: list[tuple[str, Node]] = dataclasses.field(default_factory=list)
    taken: list[Node] = dataclasses.field(default_factory=list)
    left: list[tuple[Node, str]] = dataclasses.field(default_factory=list)
    _known: dict[str, t.Any] = dataclasses.field(default_factory=dict)

    def names(self, value: t.Any) -> set[str]:
        """The variables that a value names, by itself or through others."""
        found: set[str] = set()
        left = [value]
        while left:
            item = left.pop()
            if isinstance(item, (dict, list)):
                left += item.values() if isinstance(item, dict) else item
            elif isinstance(item, str):
                named = {name for _text, name in self.references(item)} - found
                found |= named
                left += [self.variables[name].value for name in named if name in self.variables]
        return found

    def resolve(self, value: t.Any) -> t.Any:
        """A value with all its variables filled in.

        :raises Unresolved: one of them is not known, or it says more than that.
        """
        if isinstance(value, dict):
            return {key: self.resolve(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.resolve(item) for item in value]
        if not isinstance(value, str):
            return value
        for text, name in dict.fromkeys(self.references(value)):
            found = self._variable(name)
            if text == value:
                return found
            if isinstance(found, (dict, list)) or found is None:
                raise Unresolved(f"{name} is no text")
            filled = ("true" if found else "false") if isinstance(found, bool) else str(found)
            if len(value) + value.count(text) * len(filled) > LONGEST:
                raise Unresolved("is far too long once its variables are filled in")
            value = value.replace(text, filled)
        return value

    def _variable(self, name: str) -> t.Any:
        """What a variable stands for; worked out once, lest variables of variables take for ever."""
        if name not in self._known:
            variable = self.variables.get(name)
            self._known[name] = Unresolved("names a variable that stands for itself")
            try:
                if variable is None:
                    # The text of an expression may hold anything.
                    what = name if re.fullmatch(r"[\w.-]+", name) else "it has an expression that"
                    raise Unresolved(f"{what} is known only when Packer runs")
                if variable.value is None:
                    raise Unresolved(f"{name} has no value in the template; give it by variables")
                self._known[name] = self.resolve(variable.value)
            except Unresolved as exc:
                self._known[name] = exc
        found = self._known[name]
        if isinstance(found, Unresolved):
            raise found
        return found


def choose(builders: list[Builder], wanted: str | None, where: Path) -> Builder:
    """The one for QEMU, or the one of them that is wanted.

    :raises FactoryError: there is none, or there are several and none is wanted.
    """
    fitting = [item for item in builders if item.kind == "qemu"]
    names = [item.name for item in fitting]
    if not fitting:
        others = ", ".join(sorted({item.kind for item in builders})) or "none at all"
        raise FactoryError(
            f"has no builder of the type qemu, but {others}",
            where=str(where),
            key="builders",
            mend="name another template",
        )
    if wanted is None and len(fitting) > 1:
        raise FactoryError(
            f"has several builders of the type qemu: {', '.join(names)}",
            where=str(where),
            key="builder",
            mend="set builder to one of them",
        )
    chosen = [item for item in fitting if wanted in (None, item.name, f"qemu.{item.name}", f"source.qemu.{item.name}")]
    if len(chosen) != 1:
        raise FactoryError(
            f"there {'are several builders' if chosen else 'is no builder'} {wanted!r} of the type qemu",
            where=str(where),
            key="builder",
            mend="give each a name of its own" if chosen else nearest(str(wanted), names),
        )
    return chosen[0]


def give(variables: dict[str, Variable], given: t.Mapping[str, t.Any], prefix: str, where: Path) -> None:
    """Give variables other values than those in the template.

    :param prefix: what the language has before their names, such as C(var.).
    :raises FactoryError: there is none of such a name.
    """
    known = [name.removeprefix(prefix) for name in variables if name.startswith(prefix)]
    for name, value in given.items():
        if name not in known:
            raise FactoryError(
                f"the template has no variable {name!r}",
                where=str(where),
                key="variables",
                mend=nearest(name, known) if known else "leave it out",
            )
        variables[prefix + name].value = value
        variables[prefix + name].given = True
