# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What of a description went where: each value is in the definition, or it is listed with the reason."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_secrets import Secrets, one_line
from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_source import Node

NOTHING = "there is nothing like it in a definition"


@dataclasses.dataclass(frozen=True)
class Unmapped:
    """A part of the description that is not in the definition: where it stands, its value as it may be shown, and why."""

    key: str
    value: str
    reason: str


class Ledger:
    """The nodes of a description, and what became of each."""

    def __init__(self) -> None:
        self.secrets = Secrets()
        self._mapped: dict[str, str] = {}
        self._left: dict[str, str] = {}

    def take(self, node: Node | None, target: str) -> None:
        """Note that a node is in the definition, at the key C(target)."""
        if node is not None:
            before = self._mapped.get(node.path)
            self._mapped[node.path] = target if before in (None, target) else f"{before}, {target}"

    def leave(self, node: Node | None, reason: str) -> None:
        """Note that a node is not, and why."""
        if node is not None:
            self._left.setdefault(node.path, one_line(reason))

    def taken(self, path: str) -> bool:
        """Whether a path is in the definition."""
        return path in self._mapped

    def judged(self, node: Node) -> bool:
        """Whether something was said of a node already."""
        return node.path in self._mapped or node.path in self._left

    def mapped(self) -> dict[str, str]:
        """What was taken over, and where it went."""
        return dict(self._mapped)

    def unmapped(self, roots: t.Iterable[Node], reasons: t.Mapping[str, str]) -> list[Unmapped]:
        """All the rest, in its order in the description.

        :param reasons: why, by the last key, for what nothing was said of; :data:`NOTHING` for others.
        """
        found: list[Unmapped] = []
        judged = {*self._mapped, *self._left}
        parted: set[str] = set()

        def part(node: Node) -> bool:
            """Note what has something below of which something was said already."""
            below = [part(child) for child in node.children()]
            if any(below):
                parted.add(node.path)
            return any(below) or node.path in judged

        def walk(node: Node) -> None:
            if node.path in self._left:
                found.append(Unmapped(short_path(node), self.secrets.shown(node), self._left[node.path]))
                return
            if node.path in self._mapped:
                return
            if self.secrets.at(node) and node.path not in parted:
                reason = "is a secret; an image must not have one that outlives its build"
                found.append(Unmapped(short_path(node), self.secrets.shown(node), reason))
            elif node.key in reasons and node.path not in parted:
                found.append(Unmapped(short_path(node), self.secrets.shown(node), reasons[node.key]))
            elif node.children():
                for child in node.children():
                    walk(child)
            else:
                found.append(Unmapped(short_path(node), self.secrets.shown(node), NOTHING))

        for root in roots:
            part(root)
            walk(root)
        return found


def short_path(node: Node) -> str:
    """The path of a node, in one line."""
    return "".join(sign if sign.isprintable() else "?" for sign in node.path)
