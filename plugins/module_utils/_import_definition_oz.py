# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Oz: the Template Description Language (TDL), as oz/tdl.rng and oz/TDL.py of clalancette/oz have it."""

from __future__ import annotations

import base64
import binascii
import re
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_draft import Draft
from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_source import Node, read, xml_tree

REASONS = {
    "@version": "is the version of the language TDL",
    "url": "is an installation tree; the factory installs from an ISO, see image_medium.url",
    "icicle": "is not needed: each build has a list of its packages and an SBOM",
    "extras": "puts files onto the ISO; give the installer an image_medium.answer_file, and the image applications_files",
    "precommands": "runs before the packages are installed, image_scripts after; write it so, or make it a role of image_roles",
    "clientcert": "repositories with a client's certificate are not known here",
    "cacert": "put the certificate into the image by applications_files",
    "sslverify": "certificates are always verified",
    "persisted": "is neither yes nor no; set ephemeral of the repository",
    "arguments": "packages are installed without arguments of their own",
    "repository": "packages are taken from whichever repository has them",
    "file": "packages are installed by their names; have it in a repository, see applications_repositories",
    "signed": "signatures are always checked; give key and fingerprint of the repository",
}
_YES, _NO = ("yes", "true", "1"), ("no", "false", "0")


def load(path: Path) -> list[Node]:
    """The template of a file."""
    tree = xml_tree(path, read(path), "template")
    return [Node("", tree).below("template")]


def convert(roots: t.Sequence[Node], draft: Draft) -> None:
    """Take over what a definition can say."""
    template = roots[0]
    name = template.get("name")
    draft.name = (name.text() if name else None) or ""
    draft.text(name, "image_title")
    draft.text(template.get("description"), "image_description")
    _system(template, draft)
    for package in template.each("packages", "package"):
        node = package.get("@name")
        if node:
            draft.package(node, node.text() or "")
    for item in template.each("files", "file"):
        _file(item, draft)
    for item in template.each("repositories", "repository"):
        _repository(item, draft)
    for item in _in_order(template.each("commands", "command")):
        _command(item, draft)
    _size(template.get("disk", "size"), draft)


def _system(template: Node, draft: Draft) -> None:
    name, version = template.get("os", "name"), template.get("os", "version")
    if name:
        draft.operating_system(name.text() or "", (version.text() if version else None) or "", name, version)
    arch = template.get("os", "arch")
    if arch:
        draft.architecture(arch, arch.text() or "")
    install = template.get("os", "install")
    iso = template.get("os", "install", "iso")
    if install and iso:
        if draft.medium(iso, iso.text() or ""):
            draft.take(install.get("@type"), "image_medium")
        for algorithm in ("sha256", "sha1", "md5"):
            node = install.get(f"{algorithm}sum")
            if node:
                draft.checksum(node, node.text() or "", algorithm)
    kernel = template.get("os", "kernelparam")
    if kernel:
        reason = draft.secrets.within(kernel.text() or "")
        if reason or "\n" in (kernel.text() or ""):
            draft.leave(kernel, f"{reason or 'has several lines'}; set image_medium.kernel_args without that")
        elif kernel.text():
            draft.values.setdefault("image_medium", {})["kernel_args"] = kernel.text()
            draft.take(kernel, "image_medium.kernel_args")


def _content(node: Node) -> tuple[Node | None, str | None, str]:
    """Where the text of an element stands, the text (None where it is not here), and, if not, why."""
    where = node.get("#text") if isinstance(node.value, dict) else node
    text = (where.text() if where else None) or ""
    kind_node = node.get("@type")
    kind = (kind_node.text() if kind_node else None) or "raw"
    if kind == "raw":
        return where, text, ""
    if kind == "base64":
        try:
            return where, base64.b64decode("".join(text.split()), validate=True).decode("utf-8"), ""
        except (binascii.Error, ValueError):
            return where, None, "is no text in base64; give it as a file, by src of applications_files"
    return (
        where,
        None,
        "is elsewhere; fetch it, and give it as a file, by src of applications_files or in image_scripts",
    )


def _file(node: Node, draft: Draft) -> None:
    name = node.get("@name")
    where, text, reason = _content(node)
    nodes = [found for found in (name, node.get("@type"), where) if found]
    if text is None or name is None:
        for found in nodes:
            draft.leave(found, reason or "has no name")
        return
    draft.file(nodes, name.text() or "", content=text)


def _command(node: Node, draft: Draft) -> None:
    name = node.get("@name")
    where, text, reason = _content(node)
    nodes = [found for found in (name, node.get("@type"), node.get("@position"), where) if found]
    if not text:
        for found in nodes:
            draft.leave(found, reason or "is an empty command")
        return
    text = text if text.startswith("#!") else f"#!/bin/sh\n{text}"
    draft.script(nodes, (name.text() if name else None) or "command", text)


def _in_order(commands: list[Node]) -> list[Node]:
    """Commands by their positions, where they have some: the order in the file is none in XML, as Oz says."""

    def position(node: Node) -> int:
        found = node.get("@position")
        text = (found.text() if found else None) or ""
        return int(text) if re.fullmatch(r"\d{1,6}", text) else 0

    return sorted(commands, key=position)


def _repository(node: Node, draft: Draft) -> None:
    name, url, persisted = node.get("@name"), node.get("url"), node.get("persisted")
    address = (url.text() if url else None) or ""
    more: dict[str, t.Any] = {}
    apt = re.fullmatch(r"deb\s+(\S+)\s+(\S+)((?:\s+[\w./-]+)*)", address)
    if apt:  # as a line of sources.list, for Debian and Ubuntu
        address, more["suites"] = apt[1], [apt[2]]
        if apt[3].split():
            more["components"] = apt[3].split()
    said = ((persisted.text() if persisted else None) or "yes").lower()
    if said in _NO:
        more["ephemeral"] = True
    if url and draft.repository(url, (name.text() if name else None) or "imported", address, **more):
        draft.take(name, "applications_repositories")
        draft.take(url, "applications_repositories")
        if said in (*_YES, *_NO):
            draft.take(persisted, "applications_repositories")


def _size(node: Node | None, draft: Draft) -> None:
    found = re.fullmatch(r"(\d{1,6})\s*([GT]?)", (node.text() if node else None) or "")
    if found:
        draft.disk_size(node, int(found[1]) * (1 << 20 if found[2] == "T" else 1 << 10))
    else:
        draft.leave(node, "is no size of a disk; set image_disk.size")
