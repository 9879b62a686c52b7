# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The headers of foreign VMDK, VDI, VHD and VHDX disks, judged without QEMU.

Sources of the formats: VMware's «Virtual Disk Format 5.0»; VirtualBox's VDICore.h; Microsoft's «Virtual Hard Disk Image
Format Specification» 1.0 and [MS-VHDX].
"""

from __future__ import annotations

import re
import uuid

from ansible_collections.cloudimg.factory.plugins.module_utils._foreign_head import BROKEN, FLATTEN, SECTOR, Head

_ELSEWHERE = "only describes a disk that is in other files"
_PARENT = "needs another disk below it (it is a difference to that)"
_AT_END = 0xFFFF_FFFF_FFFF_FFFF
_DESCRIPTOR = 1 << 20
_EXTENT = re.compile(r"^(?:RW|RDONLY|NOACCESS)[ \t]+\d+[ \t]+(\w+)", re.MULTILINE)
_PARENT_CID = re.compile(r"^parentCID[ \t]*=[ \t]*([0-9a-fA-F]+)", re.MULTILINE)
_HINT = re.compile(r"^[ \t]*parentFileNameHint", re.MULTILINE | re.IGNORECASE)


def judge_vmdk(head: Head) -> int:
    """The virtual size of a VMDK in one file (monolithicSparse or streamOptimized), in bytes.

    :raises FactoryError: it is in other files, or cannot be.
    """
    version, _flags, capacity, grain, described_at, described = head.unpack("<IIQQQQ", 4)
    entries, _redundant, directory = head.unpack("<IQQ", 44)
    # With a capacity of 0, QEMU takes the embedded text for a description of other files.
    if capacity == 0:
        head.refuse(_ELSEWHERE)
    if version not in (1, 2, 3):
        head.refuse(f"is a VMDK of version {version}, which is not supported", FLATTEN)
    head.believe(capacity * SECTOR)
    if grain < 8 or grain & (grain - 1) or grain > 1 << 17 or not 0 < entries <= 512:
        head.refuse("has impossible tables", BROKEN)
    if directory == _AT_END:
        magic, _version, _flags, again = head.unpack("<4sIIQ", head.size - 2 * SECTOR)
        if magic != b"KDMV" or again != capacity:
            head.refuse("ends too early (its footer is missing)", BROKEN)
        directory = head.unpack("<Q", head.size - 2 * SECTOR + 56)[0]
    head.read(directory * SECTOR, -(-capacity // (grain * entries)) * 4)
    if described:
        if described * SECTOR > _DESCRIPTOR:
            head.refuse("has impossible tables", BROKEN)
        text = head.read(described_at * SECTOR, described * SECTOR).split(b"\0")[0].decode("utf-8", "replace")
        _check_description(head, text.replace("\r", "\n"))
    return int(capacity * SECTOR)


def _check_description(head: Head, text: str) -> None:
    extents = _EXTENT.findall(text)
    parent = _PARENT_CID.search(text)
    if len(extents) > 1 or any(kind != "SPARSE" for kind in extents):
        head.refuse("names other files as its parts")
    if _HINT.search(text) or (parent and parent[1].lower() != "ffffffff"):
        head.refuse(_PARENT)


def judge_vdi(head: Head) -> int:
    """The virtual size of a VDI in bytes; raises FactoryError where it stands on another disk, or cannot be."""
    version, _length, kind = head.unpack("<III", 68)
    if version != 0x00010001:
        head.refuse(f"is a VDI of version {version >> 16}.{version & 0xFFFF}, which is not supported")
    if kind not in (1, 2) or any(head.read(440, 16)):
        head.refuse(_PARENT)
    map_at, data_at = head.unpack("<II", 340)
    sector, _unused, size, block, _extra, blocks, allocated = head.unpack("<IIQIIII", 360)
    head.believe(size)
    if sector != SECTOR or block != 1 << 20 or blocks * block < size or allocated > blocks:
        head.refuse("has impossible tables", BROKEN)
    if map_at + 4 * blocks > data_at:
        head.refuse("has overlapping tables (map and data)", BROKEN)
    head.read(map_at, 4 * blocks)
    return int(size)


def judge_vhd(head: Head) -> int:
    """The virtual size of a VHD in bytes; raises FactoryError where it stands on another disk, or cannot be."""
    footer = head.read(max(head.size - SECTOR, 0), SECTOR)
    if not footer.startswith(b"conectix"):
        footer = head.read(0, SECTOR)
    if int.from_bytes(footer[64:68], "big") != _vhd_sum(footer, 64):
        head.refuse("is damaged (the checksum of its footer is wrong)", BROKEN)
    size = head.believe(int.from_bytes(footer[48:56], "big"))
    kind = int.from_bytes(footer[60:64], "big")
    if kind == 2:
        if size > head.size:
            head.refuse("ends before the disk does that it claims to be", BROKEN)
        return size
    if kind != 3:
        head.refuse(_PARENT)
    at = int.from_bytes(footer[16:24], "big")
    table = head.read(at, 1024)
    if not table.startswith(b"cxsparse") or int.from_bytes(table[36:40], "big") != _vhd_sum(table, 36):
        head.refuse("is damaged (the checksum of its second header is wrong)", BROKEN)
    table_at, count, block = (int.from_bytes(table[a:b], "big") for a, b in ((16, 24), (28, 32), (32, 36)))
    if block < SECTOR or block & (block - 1) or count * block < size:
        head.refuse("has impossible tables", BROKEN)
    if table_at < at + 1024 and at < table_at + 4 * count:
        head.refuse("has overlapping tables (header and map)", BROKEN)
    head.read(table_at, 4 * count)
    return size


def _vhd_sum(block: bytes, at: int) -> int:
    return ~(sum(block) - sum(block[at : at + 4])) & 0xFFFF_FFFF


_VHDX_METADATA = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
_VHDX_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
_VHDX_SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
_VHDX_REGIONS = 192 << 10
_MOST_REGIONS = 2047


def judge_vhdx(head: Head) -> int:
    """The virtual size of a VHDX in bytes; raises FactoryError where it stands on another disk, or cannot be."""
    signature, _sum, count = head.unpack("<4sII", _VHDX_REGIONS)
    if signature != b"regi" or count > _MOST_REGIONS:
        head.refuse("is damaged (it has no table of its regions)", BROKEN)
    regions: dict[bytes, tuple[int, int]] = {}
    for number in range(count):
        name, at, length = head.unpack("<16sQI", _VHDX_REGIONS + 16 + 32 * number)
        if at < 1 << 20 or any(at < end and begin < at + length for begin, end in regions.values()):
            head.refuse("has overlapping regions", BROKEN)
        regions[name] = (at, at + length)
    at = regions.get(_VHDX_METADATA, (0, 0))[0]
    if not at:
        head.refuse("is damaged (it does not tell what it is)", BROKEN)
    signature, _reserved, count = head.unpack("<8sHH", at)
    if signature != b"metadata" or count > _MOST_REGIONS:
        head.refuse("is damaged (it does not tell what it is)", BROKEN)
    items = dict(head.unpack("<16sI", at + 32 + 32 * number) for number in range(count))
    if not {_VHDX_PARAMETERS, _VHDX_SIZE} <= set(items):
        head.refuse("is damaged (it does not tell how large it is)", BROKEN)
    _block, flags = head.unpack("<II", at + items[_VHDX_PARAMETERS])
    if flags & 2:
        head.refuse(_PARENT)
    return head.believe(head.unpack("<Q", at + items[_VHDX_SIZE])[0])
