# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What a disk file from outside is, told from its bytes before any tool opens it.

A disk's header can make QEMU open other files of the builder (backing file, external data file, VMDK extents). So the
headers are read here, with plain reads, and what refers to anything else is refused.
"""

from __future__ import annotations

import dataclasses
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._foreign_head import SECTOR, Head
from ansible_collections.cloudimg.factory.plugins.module_utils._foreign_qcow2 import judge_qcow2
from ansible_collections.cloudimg.factory.plugins.module_utils._foreign_vm import (
    judge_vdi,
    judge_vhd,
    judge_vhdx,
    judge_vmdk,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors

LARGEST = 1 << 50
"""Bytes beyond which no claim of a header is believed."""

COMPRESSED = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2"}
"""How files of programs begin that compress; by their names as given here."""

_NOT_DISKS = (
    *((magic, f"is {name}-compressed") for magic, name in COMPRESSED.items()),
    (b"PK\x03\x04", "is a zip archive"),
    (b"LUKS\xba\xbe", "is encrypted"),
    (b"QED\x00", "is a QED image, which is not supported"),
    (b"# Disk DescriptorFile", "only describes a disk that is in other files"),
    (b"COWD", "is an old VMDK that may be spread over several files"),
)


@dataclasses.dataclass(frozen=True)
class Judged:
    """What a disk is: its format as qemu-img calls it, and how large a guest sees it, in bytes."""

    format: str
    virtual_size: int


def identify(path: Path) -> str:
    """The qemu-img format of a file: qcow2, vmdk, vdi, vhdx, vpc or raw.

    :raises FactoryError: it is no disk, or it needs other files or a key.
    """
    return judge(path).format


def judge(path: Path, limit: int = LARGEST) -> Judged:
    """What a file is, by its own header.

    :param limit: bytes that a guest may see of it at most.
    :raises FactoryError: it is no disk, claims what cannot be, or needs other files or a key.
    """
    with explain_os_errors(path), path.open("rb") as stream:
        head = Head(path, stream, limit)
        start = head.read(0, min(SECTOR, head.size))
        end = head.read(max(head.size - SECTOR, 0), min(SECTOR, head.size))
        for magic, problem in _NOT_DISKS:
            if start.startswith(magic):
                head.refuse(problem, "give the plain disk file")
        for matches, name, judged in _formats(start, end):
            if matches:
                return Judged(name, judged(head))
        # A raw disk has no magic of its own; what a PC can boot from has this one, GPT disks included.
        if start[510:512] == b"\x55\xaa" and head.size % SECTOR == 0:
            return Judged("raw", head.believe(head.size))
    raise FactoryError(
        "is no disk of a known format, and has no boot sector",
        where=str(path),
        mend="give a qcow2, vmdk, vdi, vhd, vhdx or raw disk",
    )


def _formats(start: bytes, end: bytes) -> tuple[tuple[bool, str, t.Callable[[Head], int]], ...]:
    return (
        (start.startswith(b"QFI\xfb"), "qcow2", judge_qcow2),
        (start.startswith(b"KDMV"), "vmdk", judge_vmdk),
        (start.startswith(b"vhdxfile"), "vhdx", judge_vhdx),
        (start[64:68] == b"\x7f\x10\xda\xbe", "vdi", judge_vdi),
        (start.startswith(b"conectix") or end.startswith(b"conectix"), "vpc", judge_vhd),
    )


def compression(path: Path) -> str | None:
    """How a file is compressed (C(gzip), C(xz), C(zstd), C(bzip2)), by its first bytes; None when it is not."""
    with explain_os_errors(path), path.open("rb") as stream:
        start = stream.read(8)
    return next((name for magic, name in COMPRESSED.items() if start.startswith(magic)), None)
