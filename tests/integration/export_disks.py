# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small chain of layers with something of everything, for the tests of exports."""

from __future__ import annotations

import os
import subprocess
import tarfile
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _qemu_img
from ansible_collections.cloudimg.factory.plugins.module_utils._export import Request, export
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

MIB = 1 << 20
SIZE = 96 * MIB + 512
"""No multiple of any cluster, grain or piece."""

DEFINITION: dict[str, t.Any] = {
    "image_title": "Debian <12> & more",
    "image_description": "Small\x07",
    "image_os": {"distribution": "debian", "version": "12", "arch": "x86_64"},
    "image_machine": {"memory_mib": 1024, "cpus": 3, "firmware": "uefi"},
}


def write(disk: Path, offset: int, content: bytes) -> None:
    noise = disk.with_name("content")
    noise.write_bytes(content)
    command = f"write -q -s {noise} {offset} {len(content)}"
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, str(disk)], check=True)
    noise.unlink()


def make_chain(folder: Path) -> Path:
    """A base and an overlay, with text, noise, zeros that were written, and holes; the overlay hides a part of the base."""
    base, overlay = folder / "base.qcow2", folder / "top.qcow2"
    _qemu_img.create(base, SIZE)
    write(base, 0, b"boot " * 20000)
    write(base, 5 * MIB, os.urandom(3 * MIB))
    write(base, 64 * MIB, bytes(2 * MIB) + b"end of zeros" * 512)
    write(base, SIZE - 512, b"last sector".ljust(512, b"."))
    _qemu_img.create(overlay, None, backing=base)
    write(overlay, 6 * MIB + 512, b"hidden " * 4096)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -z 66M 64K", str(overlay)], check=True)
    write(overlay, 40 * MIB, b"".join(number.to_bytes(4, "big") for number in range(MIB)))
    return overlay


def request(chain: Path, folder: Path, *formats: t.Any, **options: t.Any) -> Request:
    return Request("debian-12", "1", folder, chain, formats=formats, definition=DEFINITION, **options)


def run(wanted: Request) -> Result:
    return export(wanted, Progress("export"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def members(path: Path, mode: t.Literal["r:", "r:gz"] = "r:") -> dict[str, bytes]:
    with tarfile.open(path, mode) as archive:
        found = {}
        for info in archive:
            assert (info.uid, info.gid, info.uname, info.gname, info.mode) == (0, 0, "", "", 0o644)
            stream = archive.extractfile(info)
            assert stream
            found[info.name] = stream.read()
        return found
