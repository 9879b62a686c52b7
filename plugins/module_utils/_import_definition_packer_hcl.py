# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Packer's HCL2 templates: C(source "qemu"), C(variable), C(locals), C(build)."""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_packer import (
    Builder,
    Template,
    Variable,
    choose,
    give,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_source import (
    Node,
    checked,
    read,
    text_of,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._libraries import need

LARGEST = 256 << 10
"""Bytes of one file of HCL. The parser takes about ten seconds for a megabyte (Python 3.11)."""
_LABELLED = ("source", "variable", "local", "data")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\"}
_REFERENCE = re.compile(r"(?<!\$)\$\{\s*((?:var|local)\.[A-Za-z_][\w-]*|path\.(?:root|cwd))\s*\}")
_OTHER = re.compile(r"(?<!\$)\$\{.*\}|(?<!%)%\{|\{\{[^{}]*\}\}|\$\$\{|%%\{", re.DOTALL)
_ESCAPED = {"$${": "${", "%%{": "%{"}


def load(path: Path, wanted: str | None, given: t.Mapping[str, t.Any]) -> Template:
    """The template of a file, or of all files (C(*.pkr.hcl), C(*.auto.pkrvars.hcl)) of a directory.

    :param wanted: the name of the source, where there are several.
    :param given: values of variables.
    :raises FactoryError: it is no template, or has not this source or variable.
    """
    tree: dict[str, t.Any] = {}
    assigned: list[Node] = []
    if path.is_dir():
        files = sorted(path.glob("*.pkr.hcl"))
        if not files:
            raise FactoryError(
                "has no *.pkr.hcl", where=str(path), key="src", mend="name a file or a directory with some"
            )
        assigned = [Node(f"{file.name}:", _parse(file)) for file in sorted(path.glob("*.auto.pkrvars.hcl"))]
    else:
        files = [path]
    for file in files:
        _merge(tree, _parse(file), file)
    root = Node("", checked(path, tree))
    builders = [Builder(node.key, kind.key, [node]) for kind in _below(root.get("source")) for node in _below(kind)]
    chosen = choose(builders, wanted, path)
    folder = path if path.is_dir() else path.parent
    template = Template([root, *assigned], chosen, _variables(root, assigned, folder, given, path), references)
    reason = "is another source; import it by itself, where it is one for QEMU"
    template.left = [(item.layers[0], reason) for item in builders if item is not chosen]
    template.left += _overridden(template.variables, root, assigned)
    for build in root.each("build"):
        _build(build, chosen, template)
    return template


def references(text: str) -> list[tuple[str, str]]:
    """The variables in a text, and whatever else has to be worked out: what stands there, and its name."""
    found = [(match[0], match[1]) for match in _REFERENCE.finditer(text)]
    return found + [(match[0], match[0]) for match in _OTHER.finditer(_REFERENCE.sub("", text))]


def _variables(
    root: Node, assigned: list[Node], folder: Path, given: t.Mapping[str, t.Any], path: Path
) -> dict[str, Variable]:
    found: dict[str, Variable] = {}
    for node in _below(root.get("variable")):
        default = node.get("default")
        found[f"var.{node.key}"] = Variable(default, default.value if default else None, secret=_is_secret(node))
    for file in assigned:
        for node in file.children():
            if f"var.{node.key}" in found:
                found[f"var.{node.key}"] = Variable(node, node.value, found[f"var.{node.key}"].secret)
    give(found, given, "var.", path)
    for block in root.each("locals"):
        found.update({f"local.{node.key}": Variable(node, node.value) for node in block.children()})
    for node in _below(root.get("local")):
        expression = node.get("expression")
        value = expression.value if expression else None
        found[f"local.{node.key}"] = Variable(expression, value, secret=_is_secret(node))
    found["path.root"] = found["path.cwd"] = Variable(None, str(folder))
    found.update({text: Variable(None, plain) for text, plain in _ESCAPED.items()})
    return found


def _overridden(variables: t.Mapping[str, Variable], root: Node, assigned: list[Node]) -> list[tuple[Node, str]]:
    """Values of variables that another place says otherwise."""
    places = [node.get("default") for node in _below(root.get("variable"))]
    places += [node for file in assigned for node in file.children()]
    live = {variable.node.path: variable for variable in variables.values() if variable.node}
    return [
        (node, "is no variable of the template, or another file says otherwise")
        for node in places
        if node and node.path not in live
    ]


def _is_secret(node: Node) -> bool:
    found = node.get("sensitive")
    return bool(found and found.text() == "true")


def _build(build: Node, chosen: Builder, template: Template) -> None:
    """Take up what a build does, where it builds the chosen source."""
    ids = (f"source.qemu.{chosen.name}", f"qemu.{chosen.name}")
    ours = [node for node in build.each("sources") if node.text() in ids]
    blocks = [node for block in build.each("source") for node in block.children() if node.key in ids]
    if not ours and not blocks:
        template.left.append((build, "builds other sources"))
        return
    template.taken += ours
    template.left += [(node, "is another source") for node in build.each("sources") if node not in ours]
    for block in build.each("source"):
        template.left += [(node, "is another source") for node in block.children() if node.key not in ids]
    template.taken += [node.get("name") or node for node in blocks if node.get("name") or not node.children()]
    chosen.layers += blocks
    for block in build.each("provisioner"):
        for node in block.children():
            only = [found.text() for found in node.each("only")]
            without = [found.text() for found in node.each("except")]
            if any(name in without for name in ids) or (only and not any(name in only for name in ids)):
                template.left.append((node, "is for other sources"))
            else:
                template.provisioners.append((node.key, node))
                template.taken += [*node.each("only"), *node.each("except")]


def _below(node: Node | None) -> list[Node]:
    return node.children() if node and isinstance(node.value, dict) else []


def _parse(path: Path) -> dict[str, t.Any]:
    text = text_of(path, read(path, LARGEST))
    hcl2 = need("hcl2", python="import_definition_python")
    if not hasattr(hcl2, "SerializationOptions"):
        raise FactoryError(
            "needs python-hcl2 8.1 or newer", where=str(path), key="src", mend="upgrade it by pip, see requirements.txt"
        )
    lark = need("lark", python="import_definition_python")
    options = hcl2.SerializationOptions(with_comments=False, preserve_heredocs=False)
    try:
        # the library keeps the last of several attributes of one name
        rules = hcl2.parses(text)
        _once(rules, path)
        found = hcl2.serialize(rules, serialization_options=options)
    except FactoryError:
        raise
    except (lark.exceptions.LarkError, RuntimeError, ValueError, TypeError, LookupError, AttributeError) as exc:
        line = getattr(exc, "line", None)
        problem = f"is no HCL2{f' at line {line}' if isinstance(line, int) and line > 0 else ''}: {exc}"
        raise FactoryError(
            problem.partition("Expected one of")[0].strip()[:300], where=str(path), key="src", mend="correct it"
        ) from exc
    return checked(path, _plain(found))


def _once(rule: t.Any, path: Path) -> None:
    """Refuse a body in which an attribute is there twice."""
    names: list[str] = []
    for child in getattr(rule, "children", None) or []:
        kind = type(child).__name__
        if kind == "AttributeRule":
            names.append(str(child.identifier.serialize()))
        elif kind in ("BodyRule", "BlockRule"):
            _once(child, path)
    for name in names:
        if names.count(name) > 1:
            raise FactoryError("stands there twice", where=str(path), key=name, mend="remove one of them")


def _plain(value: t.Any) -> t.Any:
    """What the library gives, without quotation marks and marks of blocks; expressions stay as C(${…})."""
    if isinstance(value, dict):
        return {_unquoted(str(key)): _plain(item) for key, item in value.items() if key != "__is_block__"}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return _unquoted(value) if isinstance(value, str) else value


def _unquoted(text: str) -> str:
    if len(text) < 2 or not (text.startswith('"') and text.endswith('"')):
        return text

    def sign(found: re.Match[str]) -> str:
        if found[1] in _ESCAPES:
            return _ESCAPES[found[1]]
        number = int(found[1][1:], 16)
        return chr(number) if number <= 0x10FFFF else found[0]

    return re.sub(r'\\([nrt"\\]|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8})', sign, text[1:-1])


def _merge(tree: dict[str, t.Any], more: dict[str, t.Any], path: Path) -> None:
    """Add the blocks of a file: those with labels by their labels, all others one after the other."""
    for key, blocks in more.items():
        if key not in _LABELLED or not isinstance(blocks, list):
            below = tree.setdefault(key, [])
            below.extend(blocks if isinstance(blocks, list) else [blocks])
            continue
        for block in blocks:
            _labelled(tree.setdefault(key, {}), block, 1 if key in ("variable", "local") else 2, path, key)


def _labelled(tree: dict[str, t.Any], block: t.Any, labels: int, path: Path, key: str) -> None:
    for name, body in block.items() if isinstance(block, dict) else ():
        if labels > 1:
            _labelled(tree.setdefault(name, {}), body, labels - 1, path, f"{key}.{name}")
        elif name in tree:
            raise FactoryError("stands there twice", where=str(path), key=f"{key}.{name}", mend="remove one of them")
        else:
            tree[name] = body
