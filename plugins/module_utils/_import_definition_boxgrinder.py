# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""BoxGrinder: appliance definitions (C(.appl)), with those that they stand on, as boxgrinder-core has them."""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_draft import Draft
from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_source import (
    LARGEST_YAML,
    Node,
    read,
    yaml_tree,
)

_MOST = 50
"""Appliances that one may stand on, all in all."""
REASONS = {
    "version": "is by default the time of the build, which always rises; set image_version to have another",
    "release": "is by default the time of the build, which always rises; set image_version to have another",
    "default_repos": "the repositories of the distribution stay; remove their files by a script of image_scripts",
    "mirrorlist": "a repository has a url here; add it to applications_repositories",
    "arch": "BoxGrinder's own machine tells it; set image_os.arch",
    "network": "the build's machine has a network of its own",
    "pae": "is for processors of 32 bits",
    "variables": "nothing uses it",
}
_VARIABLE = re.compile(r"#([A-Za-z0-9_]+)#")


def load(path: Path) -> list[Node]:
    """The appliance, and before it all that it stands on, the farthest first.

    :raises FactoryError: one is missing or no appliance, stands on itself, or there are too many.
    """
    found: dict[Path, Node] = {}

    def visit(file: Path, above: tuple[Path, ...], wanted: str) -> None:
        if file in above:
            names = " → ".join(item.name for item in (*above[above.index(file) :], file))
            raise FactoryError(
                f"stands on itself: {names}", where=str(above[-1]), key="appliances", mend="remove one of these"
            )
        if file in found:
            return
        if len(found) + len(above) >= _MOST:
            raise FactoryError(
                f"stands on more than {_MOST} others", where=str(path), key="appliances", mend="merge some of them"
            )
        if above and not file.is_file():
            raise FactoryError(
                f"there is no {file.name} beside it",
                where=str(above[-1]),
                key="appliances",
                mend=f"have the appliance {wanted!r} there, or remove its name",
            )
        prefix = f"{file.name}:" if above else ""
        root = Node(prefix, yaml_tree(file, read(file, LARGEST_YAML)))
        for item in root.each("appliances"):
            name = item.text() or ""
            # as BoxGrinder's own schema has it; anything else could lead anywhere
            if not re.fullmatch(r"[^/\0\n]+", name) or name in (".", ".."):
                raise FactoryError(
                    f"{name!r} cannot be the name of an appliance", where=str(file), key=item.path, mend="correct it"
                )
            visit(file.parent / f"{name}{file.suffix or '.appl'}", (*above, file), name)
        found[file] = root

    visit(path, (), path.stem)
    return list(found.values())


def convert(roots: t.Sequence[Node], draft: Draft) -> None:
    """Take over what a definition can say; what an appliance says goes before what those say that it stands on."""
    own = roots[-1]
    name = own.get("name")
    draft.name = (name.text() if name else None) or ""
    draft.take(name, "the name of the image")
    last = _last(roots, draft)
    title = last(("summary",))
    draft.text(title or name, "image_title")
    for root in roots:
        for item in root.each("appliances"):
            draft.take(item, "all of this")
        if root is not own:
            draft.leave(root.get("name"), "is the name of an appliance that this one stands on")
    _system(last, draft)
    values = Variables(roots, draft)
    _hardware(roots, draft)
    for root in roots:
        _packages(root, draft)
        for item in root.each("repos"):
            _repository(item, values, draft)
        _files(root, draft)
    for root in roots:
        _post(root, values, draft)
    values.finish(draft)


def _last(roots: t.Sequence[Node], draft: Draft) -> t.Callable[[tuple[str, ...]], Node | None]:
    def find(keys: tuple[str, ...]) -> Node | None:
        nodes = [node for node in (root.get(*keys) for root in roots) if node and node.text()]
        for node in nodes[:-1]:
            draft.leave(node, f"{nodes[-1].path} says otherwise, and goes before it")
        return nodes[-1] if nodes else None

    return find


def _system(last: t.Callable[[tuple[str, ...]], Node | None], draft: Draft) -> None:
    name, version = last(("os", "name")), last(("os", "version"))
    if name:
        draft.operating_system(name.text() or "", (version.text() if version else None) or "", name, version)


class Variables:
    """What C(#NAME#) stands for: those that BoxGrinder has itself go before all others."""

    def __init__(self, roots: t.Sequence[Node], draft: Draft) -> None:
        self._values: dict[str, str] = {}
        self._nodes: dict[str, Node] = {}
        self._used: set[str] = set()
        for root in roots:
            variables = root.get("variables")
            for node in variables.children() if variables else []:
                if node.key in self._nodes:
                    draft.leave(self._nodes[node.key], f"{node.path} says otherwise, and goes before it")
                self._nodes[node.key] = node
                if not draft.secrets.at(node):
                    self._values[node.key] = node.text() or ""
        arch = draft.values.get("image_os", {}).get("arch", "x86_64")
        own = {"ARCH": arch, "BASE_ARCH": arch}
        if draft.system:
            own.update(OS_NAME=draft.system.distribution, OS_VERSION=draft.system.version)
        for name in own.keys() & self._nodes:
            draft.leave(self._nodes.pop(name), "has the name of a variable of BoxGrinder's own, which goes before it")
        self._values.update(own)

    def filled(self, node: Node) -> str:
        """A text with its variables filled in, those within variables too; what is not known stays."""
        text = node.text() or ""
        for _level in range(8):
            self._used.update(_VARIABLE.findall(text))
            filled = _VARIABLE.sub(lambda found: self._values.get(found[1], found[0]), text)
            if filled == text or len(filled) > 65536:
                break
            text = filled
        return text

    def finish(self, draft: Draft) -> None:
        """Say of each whether something uses it."""
        for name, node in self._nodes.items():
            if name in self._used and not draft.secrets.at(node):
                draft.take(node, "what uses it")


def _hardware(roots: t.Sequence[Node], draft: Draft) -> None:
    """BoxGrinder takes the largest of all: of processors, of memory, and of each partition."""
    for key, target in (("cpus", "cpus"), ("memory", "memory_mib")):
        nodes = [node for node in (root.get("hardware", key) for root in roots) if node]
        numbers = [node for node in nodes if re.fullmatch(r"\d{1,8}", node.text() or "")]
        largest = max(numbers, key=lambda node: int(node.text() or 0), default=None)
        for node in nodes:
            if node is largest:
                draft.machine(node, target, node.text() or "")
            else:
                draft.leave(node, "the largest of all counts" if node in numbers else "is no whole number")
    sizes: dict[str, Node] = {}
    for root in roots:
        partitions = root.get("hardware", "partitions")
        for partition in partitions.children() if partitions else []:
            size, named = partition.get("size"), partition.get("root")
            # Before version 0.9 partitions were a list, and each said itself where it is.
            point = (named.text() or "") if named else partition.key
            draft.take(named, "image_disk.size")
            if size is None or not re.fullmatch(r"\d{1,6}(\.\d{1,6})?", size.text() or ""):
                draft.leave(size, "is no number of GB")
                continue
            before = sizes.get(point)
            if before and float(before.text() or 0) >= float(size.text() or 0):
                draft.leave(size, "the largest of all counts")
                continue
            draft.leave(before, "the largest of all counts")
            sizes[point] = size
    if sizes:
        total = sum(float(size.text() or 0) for size in sizes.values())
        draft.disk_size(None, total * 1024)
    for point, size in sizes.items():
        if "image_disk" not in draft.values:
            draft.leave(size, "is no size of a disk; set image_disk.size")
        elif point == "/":
            draft.take(size, "image_disk.size")
        else:
            reason = f"images have one partition for all, which grows; image_disk.size counts that of {point}, too"
            draft.leave(size, reason)


def _packages(root: Node, draft: Draft) -> None:
    packages = root.get("packages")
    if packages is None:
        return
    # Before version 0.9 there was a mapping of what to include and what to leave out.
    for item in packages.each() if isinstance(packages.value, list) else packages.each("includes"):
        draft.package(item, item.text() or "")
    for item in packages.each("excludes"):
        draft.package(item, f"-{item.text() or ''}")


def _repository(node: Node, values: Variables, draft: Draft) -> None:
    name, url, ephemeral = node.get("name"), node.get("baseurl"), node.get("ephemeral")
    if url is None or name is None:
        return
    told = (ephemeral.text() if ephemeral else None) or "false"
    more = {"ephemeral": True} if told.lower() in ("true", "yes", "on") else {}
    if draft.repository(url, values.filled(name), values.filled(url), **more):
        for found in (name, url, ephemeral):
            draft.take(found, "applications_repositories")


def _files(root: Node, draft: Draft) -> None:
    files = root.get("files")
    for folder in files.children() if files else []:
        for item in folder.each():
            name = item.text() or ""
            if re.match(r"[A-Za-z]+://", name):
                draft.leave(item, f"is elsewhere; fetch it, and put it into {folder.key} by applications_files")
            elif name:
                # A name with directories keeps them.
                draft.file([item], f"{folder.key.rstrip('/')}/{name.lstrip('/')}", src=name)


def _post(root: Node, values: Variables, draft: Draft) -> None:
    post = root.get("post")
    for platform in post.children() if post else []:
        if platform.key != "base":
            draft.leave(
                platform, "is for one platform only; there is one image for all, see image_formats and image_scripts"
            )
            continue
        nodes = [node for node in platform.each() if node.text()]
        if nodes:
            lines = [values.filled(node) for node in nodes]
            title = f"{root.path.partition('.')[0]}-post" if root.path else f"{draft.name}-post"
            draft.script(nodes, title, "\n".join(["#!/bin/sh", "set -e", *lines]))
