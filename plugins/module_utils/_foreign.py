# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What a disk file from outside is, told from its bytes before any tool opens it.

A disk's header can make QEMU open other files of the builder (backing file, external data file, VMDK extents). So the
headers are read here, with plain reads, and what refers to anything else is refused.
"""

from __future__ import annotations

import struct
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors

_SECTOR = 512
_LARGEST = 1 << 50
_FLATTEN = "flatten it into one plain file where it comes from"
_NOT_DISKS = (
    (b"\x1f\x8b", "is gzip-compressed"),
    (b"\xfd7zXZ\x00", "is xz-compressed"),
    (b"\x28\xb5\x2f\xfd", "is zstd-compressed"),
    (b"BZh", "is bzip2-compressed"),
    (b"PK\x03\x04", "is a zip archive"),
    (b"LUKS\xba\xbe", "is encrypted"),
    (b"QED\x00", "is a QED image, which is not supported"),
    (b"# Disk DescriptorFile", "only describes a disk that is in other files"),
    (b"COWD", "is an old VMDK that may be spread over several files"),
)


def identify(path: Path) -> str:
    """The qemu-img format of a file: qcow2, vmdk, vdi, vhdx, vpc or raw.

    :raises FactoryError: it is no disk, or it needs other files or a key.
    """
    with explain_os_errors(path), path.open("rb") as stream:
        head = stream.read(_SECTOR)
        size = stream.seek(0, 2)
        stream.seek(max(size - _SECTOR, 0))
        foot = stream.read(_SECTOR)
    for magic, problem in _NOT_DISKS:
        if head.startswith(magic):
            raise FactoryError(problem, where=str(path), mend="give the plain disk file")
    if head.startswith(b"QFI\xfb"):
        _inspect_qcow2(path, head)
        return "qcow2"
    if head.startswith(b"KDMV"):
        _inspect_vmdk(path, head)
        return "vmdk"
    if head.startswith(b"vhdxfile"):
        return "vhdx"
    if head[64:68] == b"\x7f\x10\xda\xbe":
        return "vdi"
    if head.startswith(b"conectix") or foot.startswith(b"conectix"):
        return "vpc"
    # A raw disk has no magic of its own; what a PC can boot from has this one, GPT disks included.
    if head[510:512] == b"\x55\xaa" and size % _SECTOR == 0:
        return "raw"
    raise FactoryError(
        "is no disk of a known format, and has no boot sector",
        where=str(path),
        mend="give a qcow2, vmdk, vdi, vhd, vhdx or raw disk",
    )


def _unpack(layout: str, head: bytes, offset: int, path: Path) -> tuple[t.Any, ...]:
    try:
        return struct.unpack_from(layout, head, offset)
    except struct.error:
        raise FactoryError("ends within its header", where=str(path), mend="fetch it again") from None


def _inspect_qcow2(path: Path, head: bytes) -> None:
    """Refuse what qcow2.txt of QEMU lets a header ask for, and a plain cloud image does not need."""
    version, backing, _length, cluster_bits, size, crypt = _unpack(">IQIIQI", head, 4, path)
    incompatible = _unpack(">Q", head, 72, path)[0] if version >= 3 else 0
    for wrong, why in (
        (version not in (2, 3), f"is a qcow2 of version {version}, which is not supported"),
        (backing, "needs another file below it (backing file)"),
        (incompatible & 0b100, "keeps its data in another file (external data file)"),
        (crypt, "is encrypted"),
        (incompatible & 0b10, "is marked as corrupted"),
        (incompatible & ~0b11111, "uses features of qcow2 that are not known"),
        (not 9 <= cluster_bits <= 21, f"has impossible clusters (2^{cluster_bits} bytes)"),
        (size > _LARGEST, f"claims to hold {size} bytes, more than is believable"),
    ):
        if wrong:
            raise FactoryError(why, where=str(path), mend=_FLATTEN)


def _inspect_vmdk(path: Path, head: bytes) -> None:
    # With a capacity of 0, QEMU takes the embedded text for a description of other files.
    if _unpack("<Q", head, 12, path)[0] == 0:
        raise FactoryError("only describes a disk that is in other files", where=str(path), mend=_FLATTEN)
