# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The header and the first tables of a foreign qcow2, judged without QEMU.

Source of the format: https://www.qemu.org/docs/master/interop/qcow2.html (versions 2 and 3). The largest tables are those
that QEMU itself takes (block/qcow2.h: QCOW_MAX_L1_SIZE, QCOW_MAX_REFTABLE_SIZE, QCOW_MAX_SNAPSHOTS).
"""

from __future__ import annotations

import struct

from ansible_collections.cloudimg.factory.plugins.module_utils._foreign_head import BROKEN, Head

_LARGEST_L1 = 32 << 20
_LARGEST_REFCOUNT_TABLE = 8 << 20
_MOST_SNAPSHOTS = 65536
_L1_OFFSET = 0x00FF_FFFF_FFFF_FE00
_REFCOUNT_OFFSET = 0xFFFF_FFFF_FFFF_FE00
_LONGEST_NAME = 1023
_FIRST = 1 << 16
"""Bytes of the file in which QEMU writes all of its header."""

_DATA_FILE, _LUKS, _BACKING_FORMAT = 0x44415441, 0x0537BE77, 0xE2792ACA
_DIRTY, _CORRUPT, _EXTERNAL, _COMPRESSION, _EXTENDED_L2 = 1, 2, 4, 8, 16
_KNOWN = _DIRTY | _CORRUPT | _EXTERNAL | _COMPRESSION | _EXTENDED_L2
_EXTENSIONS = {_DATA_FILE: "keeps its data in another file (external data file)", _LUKS: "is encrypted"}


def judge_qcow2(head: Head) -> int:
    """The virtual size in bytes of a qcow2 that stands alone.

    :raises FactoryError: its header asks for other files or keys, claims what cannot be, or lets tables overlap.
    """
    if head.unpack(">Q", 8)[0]:
        head.refuse("needs another file below it (backing file)")
    size, cluster, incompatible = judge_header(head)
    head.believe(size)
    if head.unpack(">I", 4)[0] >= 3:
        _check_extensions(head, cluster)
    _check_tables(head, size, cluster, bool(incompatible & _EXTENDED_L2))
    return size


def judge_header(head: Head) -> tuple[int, int, int]:
    """Virtual size, size of clusters and incompatible features of a qcow2, whether it stands on another disk or not.

    :raises FactoryError: it asks for other files besides that, or keys, or is such as QEMU does not take.
    """
    version, _backing, _length, cluster_bits, size, crypt = head.unpack(">IQIIQI", 4)
    incompatible = head.unpack(">Q", 72)[0] if version >= 3 else 0
    for wrong, why in (
        (version not in (2, 3), f"is a qcow2 of version {version}, which is not supported"),
        (incompatible & _EXTERNAL, "keeps its data in another file (external data file)"),
        (crypt, "is encrypted"),
        (incompatible & _CORRUPT, "is marked as corrupted"),
        (incompatible & ~_KNOWN, "uses features of qcow2 that are not known"),
        (not 9 <= cluster_bits <= 21, f"has impossible clusters (2^{cluster_bits} bytes)"),
    ):
        if wrong:
            head.refuse(why)
    return int(size), 1 << cluster_bits, int(incompatible)


def disk_below(head: Head) -> tuple[bytes, str] | None:
    """The name of the disk that a qcow2 stands on, and its format (empty where that is not told); None for one that stands alone.

    :raises FactoryError: the name is not where QEMU would look for it.
    """
    version, at, length = head.unpack(">IQI", 4)
    if not at:
        return None
    if not 0 < length <= _LONGEST_NAME or at + length > min(head.size, _FIRST):
        head.refuse("has its backing file's name at an odd place", BROKEN)
    extension = head.unpack(">I", 100)[0] if version >= 3 else 72
    while extension + 8 <= min(at, head.size):
        kind, size = head.unpack(">II", extension)
        if kind == _BACKING_FORMAT:
            name = head.read(extension + 8, min(size, _LONGEST_NAME))
            return head.read(at, length), name.rstrip(b"\0").decode("ascii", "replace")
        if not kind:
            break
        extension += 8 + -(-size // 8) * 8
    return head.read(at, length), ""


def _check_extensions(head: Head, cluster: int) -> None:
    length = head.unpack(">I", 100)[0]
    if not 104 <= length <= cluster or length % 8:
        head.refuse(f"has an impossible header ({length} bytes)", BROKEN)
    at = length
    while at + 8 <= min(cluster, head.size):
        kind, size = head.unpack(">II", at)
        if kind == 0:
            return
        if kind in _EXTENSIONS:
            head.refuse(_EXTENSIONS[kind])
        at += 8 + -(-size // 8) * 8
    if at > cluster:
        head.refuse("has a header that does not end in its first cluster", BROKEN)


def _check_tables(head: Head, size: int, cluster: int, extended: bool) -> None:
    l1_size, l1_at, refcounts_at, refcount_clusters, snapshots, snapshots_at = head.unpack(">IQQIIQ", 36)
    per_l2 = cluster // (16 if extended else 8)
    if (
        l1_size * 8 > _LARGEST_L1
        or refcount_clusters * cluster > _LARGEST_REFCOUNT_TABLE
        or snapshots > _MOST_SNAPSHOTS
    ):
        head.refuse("claims to have larger tables than any qcow2", BROKEN)
    if l1_size < -(-size // (cluster * per_l2)):
        head.refuse("has a table (L1) that is smaller than the disk that it claims", BROKEN)
    if not refcount_clusters:
        head.refuse("has no table of reference counts", BROKEN)
    used = {0: "header"}
    for name, at, length in (
        ("refcount table", refcounts_at, refcount_clusters * cluster),
        ("L1 table", l1_at, l1_size * 8),
        ("table of snapshots", snapshots_at, snapshots * 40),
    ):
        if length:
            _claim(head, used, name, at, length, cluster)
    for name, at, count, mask in (
        ("L2 table", l1_at, l1_size, _L1_OFFSET),
        ("refcount block", refcounts_at, refcount_clusters * cluster // 8, _REFCOUNT_OFFSET),
    ):
        for (entry,) in struct.iter_unpack(">Q", _table(head, at, count)):
            if entry & mask:
                _claim(head, used, name, entry & mask, cluster, cluster)


def _table(head: Head, at: int, count: int) -> bytes:
    """The entries of a table; a file may end within its last cluster, of which the rest is zeros."""
    length = min(count * 8, head.size - at)
    return head.read(at, length) + bytes(-length % 8)


def _claim(head: Head, used: dict[int, str], name: str, at: int, length: int, cluster: int) -> None:
    """Note that a table takes these bytes; refuse where it cannot, or where something else does."""
    if at % cluster:
        head.refuse(f"has a misplaced {name}", BROKEN)
    # The last cluster of a file need not be whole.
    if at >= head.size or at + length > -(-head.size // cluster) * cluster:
        head.refuse(f"has its {name} beyond its end", BROKEN)
    for number in range(at // cluster, -(-(at + length) // cluster)):
        if number in used:
            head.refuse(f"has overlapping tables ({name} and {used[number]})", BROKEN)
        used[number] = name
