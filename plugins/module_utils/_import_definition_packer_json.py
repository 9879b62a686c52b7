# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Packer's JSON templates: C(builders), C(variables), C(provisioners)."""

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
from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_source import Node, json_tree, read

_USER = re.compile(r"\{\{\s*user\s+[`\"']([^`\"'{}]+)[`\"']\s*\}\}")
_CALL = re.compile(r"\{\{[^{}]*\}\}")


def load(path: Path, wanted: str | None, given: t.Mapping[str, t.Any]) -> Template:
    """The template of a file.

    :param wanted: the name of the builder, where there are several.
    :param given: values of user variables.
    :raises FactoryError: it is no template, or has not this builder or variable.
    """
    root = Node("", json_tree(path, read(path)))
    if "builders" not in root.value and {"source", "build", "variable"} & set(root.value):
        raise FactoryError(
            "is HCL2 in the syntax of JSON", where=str(path), key="src", mend="give it in its own syntax, as .pkr.hcl"
        )
    builders = []
    for node in root.each("builders"):
        kind, name = node.get("type"), node.get("name")
        told = (kind.text() if kind else None) or ""
        builders.append(Builder((name.text() if name else None) or told, told, [node]))
    chosen = choose(builders, wanted, path)
    node = chosen.layers[0]
    template = Template([root], chosen, _variables(root, path, given), references)
    template.taken = [found for found in (node.get("type"), node.get("name")) if found]
    reason = "is another builder; import it by itself, where it is one for QEMU"
    template.left = [(item.layers[0], reason) for item in builders if item is not chosen]
    for node in root.each("provisioners"):
        kind = node.get("type")
        if _runs(node, chosen.name):
            template.provisioners.append(((kind.text() if kind else None) or "", node))
            template.taken += [found for found in (kind, *node.each("only"), *node.each("except")) if found]
        else:
            template.left.append((node, "is for other builders"))
    return template


def references(text: str) -> list[tuple[str, str]]:
    """The calls in a text: what stands there, and the name of the variable, or the call itself."""
    found = []
    for call in _CALL.findall(text):
        user = _USER.fullmatch(call)
        found.append((call, user[1] if user else call))
    return found


def _variables(root: Node, path: Path, given: t.Mapping[str, t.Any]) -> dict[str, Variable]:
    variables = root.get("variables")
    secret = {node.text() for node in root.each("sensitive-variables")}
    found = {
        node.key: Variable(node, None if node.value is None else (node.text() or ""), secret=node.key in secret)
        for node in (variables.children() if variables else [])
    }
    give(found, given, "", path)
    folder = Variable(None, str(path.parent))
    # what Packer calls the directory of the template
    return {**found, "{{template_dir}}": folder, "{{ template_dir }}": folder}


def _runs(provisioner: Node, name: str) -> bool:
    only = [node.text() for node in provisioner.each("only")]
    without = [node.text() for node in provisioner.each("except")]
    return name not in without and (not only or name in only)
