# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests of image lists share: builds with a few bytes of a disk, and what other tools say of a list."""

from __future__ import annotations

import json
import subprocess
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import file_digests


def make_build(
    root: Path,
    version: str = "1",
    content: bytes = b"disk",
    *,
    image: str = "debian-12",
    formats: t.Sequence[str] = ("qcow2",),
    **fields: t.Any,
) -> Path:
    """A build directory as the stage export leaves it, with ``content`` as its disk; returns the descriptor's path.

    :param fields: of the descriptor, instead of what they are otherwise.
    """
    folder = root / "builds" / image / version
    folder.mkdir(parents=True, exist_ok=True)
    artifacts = []
    for kind in formats:
        disk = folder / f"{image}-{version}.{kind}"
        disk.write_bytes(content + (kind.encode("ascii") if kind != "qcow2" else b""))
        artifacts.append(_descriptor.Artifact(kind, disk.name, disk.stat().st_size, 1 << 30, file_digests(disk)))
    values: dict[str, t.Any] = {
        "title": "Debian 12",
        "description": "",
        "os": _descriptor.OperatingSystem("debian", "12", "x86_64"),
        "min_disk": 1 << 30,
        "created": "2025-01-31T12:00:00Z",
        "provenance": _descriptor.Provenance("0" * 64, "7.2", "0.1.0"),
        **fields,
    }
    identifier = _descriptor.stable_identifier(image)
    build = _descriptor.Descriptor(
        image=image, identifier=identifier, version=version, artifacts=tuple(artifacts), **values
    )
    path = folder / _descriptor.FILE
    path.write_text(build.dump(), encoding="utf-8")
    return path


def openssl_verify(path: Path, anchors: Path) -> subprocess.CompletedProcess[bytes]:
    """What C(openssl smime -verify) says of a list, as atrope calls it."""
    argv = ["openssl", "smime", "-verify", "-in", str(path), "-CApath", str(anchors)]
    return subprocess.run(argv, capture_output=True, check=False)


def openssl_read(path: Path, anchors: Path) -> dict[str, t.Any]:
    """The list as openssl gives it out once it is verified; an AssertionError where it is not."""
    done = openssl_verify(path, anchors)
    if done.returncode:
        raise AssertionError(done.stderr.decode("utf-8", "replace"))
    return dict(json.loads(done.stdout)["hv:imagelist"])
