# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""COMFY: distribution descriptors (C(.description)), as schema/distribution_descriptor.schema of COMFY has them."""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_draft import Draft
from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_qemu import REASONS as QEMU
from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_qemu import machine_arguments
from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_source import Node, json_tree, read
from ansible_collections.cloudimg.factory.plugins.module_utils._versions import version_key

REASONS = {
    **QEMU,
    "virtualbox": "machines of VirtualBox are not built; image_formats: [ova] makes an appliance of the image",
    "name": "is the name of one version; set image_title to have it there",
}
_PARTS = ("major_version", "minor_version", "patch_version")


def load(path: Path) -> list[Node]:
    """The descriptor of a file."""
    return [Node("", json_tree(path, read(path)))]


def convert(roots: t.Sequence[Node], draft: Draft, wanted: str | None, where: Path) -> None:
    """Take over what a definition can say.

    :param wanted: the version to take, or the beginning of it; without it the newest, as with COMFY.
    :raises FactoryError: there is no such version.
    """
    root = roots[0]
    name = root.get("name")
    versions = [node for node in root.each("versions") if node.get("major_version")]
    fitting = [node for node in versions if not wanted or f"{_number(node)}.".startswith(f"{wanted.rstrip('.')}.")]
    if not fitting:
        known = ", ".join(_number(node) for node in versions)
        raise FactoryError(
            f"has no version {wanted}" if versions and wanted else "has no versions",
            where=str(where),
            key="versions",
            mend=f"set version to one of: {known}" if known else "name a distribution descriptor of COMFY, or set kind",
        )
    chosen = max(fitting, key=lambda node: version_key(_number(node)))
    for node in versions:
        if node is not chosen:
            draft.leave(node, f"is another version; import it with version: {_number(node)}")
    title = (name.text() if name else None) or ""
    draft.name = f"{title}-{_number(chosen)}"
    draft.text(name, "image_title")
    if "image_title" in draft.values:
        draft.values["image_title"] = f"{draft.values['image_title']} {_number(chosen)}"
    parts = [chosen.get(part) for part in _PARTS]
    draft.operating_system(title, _number(chosen), name, *parts)
    for part in parts:
        draft.take(part, "image_title")
    draft.values.setdefault("image_os", {})["arch"] = "x86_64"  # COMFY builds for nothing else
    codename = chosen.get("codename")
    if codename and re.fullmatch(r"[a-z0-9][a-z0-9.-]*", codename.text() or ""):
        draft.values.setdefault("image_medium", {})["suite"] = codename.text()
        draft.take(codename, "image_medium.suite")
    else:
        draft.leave(codename, "is no suite; set image_medium.suite")
    url, checksum = chosen.get("iso_url"), chosen.get("iso_checksum")
    if url:
        draft.medium(url, url.text() or "")
    if checksum:
        draft.checksum(checksum, checksum.text() or "")
    machine_arguments(root.each("qemu", "qemuargs"), draft)


def _number(version: Node) -> str:
    return ".".join(node.text() or "" for node in (version.get(part) for part in _PARTS) if node)
