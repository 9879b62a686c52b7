# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""A qcow2 overlay out of two raw disks: what differs in the second from the first.

qemu-img cannot do this: it copies all of a raw source, whatever the backing file holds. And writing to a qcow2 through
qemu-storage-daemon's FUSE export, which would make it superfluous, was seen to hang and to corrupt (QEMU 7.2: its request
buffer is used again while a request is still being worked on).

Source of the format: https://www.qemu.org/docs/master/interop/qcow2.html (version 3, uncompressed, no snapshots).
"""

from __future__ import annotations

import dataclasses
import os
import struct
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _qemu_img
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors, remove

_BITS = 16
CLUSTER = 1 << _BITS
_PER_TABLE = CLUSTER // 8
_PER_REFCOUNT_BLOCK = CLUSTER // 2
_COPIED = 1 << 63
_ZERO = 1
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_HEADER_LENGTH = 104
_BACKING_FORMAT = 0xE2792ACA
_CHUNK = 64 * CLUSTER
_NOTHING = bytes(CLUSTER)


@dataclasses.dataclass(frozen=True)
class Difference:
    """Numbers of clusters: ``data`` that hold something else now, ``zero`` that hold nothing any more."""

    data: list[int]
    zero: list[int]


def unpack(disk: Path, raw: Path) -> None:
    """Write the content of a qcow2 (with all that is below it) to a raw file, with holes where nothing is."""
    # out of order into a raw file is no less determined, and three times as fast
    _qemu_img.convert(disk, raw, source_fmt="qcow2", target_fmt="raw", coroutines=16, out_of_order=True)


def rewrite(overlay: Path, raw: Path) -> None:
    """Have an overlay hold the content of ``raw``, on top of what it stands on now."""
    below = _qemu_img.info(overlay).backing
    if below is None:
        raise FactoryError("stands on no other disk", where=str(overlay), mend="run this stage again")
    write_overlay(raw, below, overlay)


def write_overlay(raw: Path, parent: Path, overlay: Path) -> None:
    """Make ``overlay``, a qcow2 on top of the qcow2 ``parent``, with the content of ``raw``; verified by comparing.

    :raises FactoryError: the file system is full, or the overlay does not hold what it should.
    """
    before = raw.with_name(f"{raw.name}.before")
    try:
        unpack(parent, before)
        with explain_os_errors(overlay), raw.open("rb") as new:
            with before.open("rb") as old:
                found = difference(old, new)
            with overlay.open("wb") as target:
                _write(target, new, found, parent)
    finally:
        remove(before)
    if not _qemu_img.compare(raw, "raw", overlay, "qcow2"):
        raise FactoryError(
            "does not hold what was written to the disk",
            where=str(overlay),
            mend="check this machine's memory and disks",
        )


def difference(old: t.BinaryIO, new: t.BinaryIO) -> Difference:
    """Compare two raw disks (holes are not read); ``new`` may be larger."""
    changed: list[int] = []
    emptied: list[int] = []
    for first, last in _occupied(old, new):
        for number in range(first, last, _CHUNK // CLUSTER):
            size = min(last - number, _CHUNK // CLUSTER) * CLUSTER
            before = os.pread(old.fileno(), size, number * CLUSTER).ljust(size, b"\0")
            after = os.pread(new.fileno(), size, number * CLUSTER).ljust(size, b"\0")
            if before == after:
                continue
            for offset in range(0, size, CLUSTER):
                content = after[offset : offset + CLUSTER]
                if content != before[offset : offset + CLUSTER]:
                    (emptied if content == _NOTHING else changed).append(number + offset // CLUSTER)
    return Difference(changed, emptied)


def _occupied(*streams: t.BinaryIO) -> list[tuple[int, int]]:
    """The ranges of clusters in which any of the files holds data, first to (excluding) last, in order."""
    ranges: list[tuple[int, int]] = []
    for stream in streams:
        size = os.fstat(stream.fileno()).st_size
        position = 0
        while position < size:
            try:
                start = os.lseek(stream.fileno(), position, os.SEEK_DATA)
            except OSError:  # nothing but a hole up to the end
                break
            position = os.lseek(stream.fileno(), start, os.SEEK_HOLE)
            ranges.append((start // CLUSTER, -(-position // CLUSTER)))
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged


def _write(target: t.BinaryIO, source: t.BinaryIO, found: Difference, parent: Path) -> None:
    size = os.fstat(source.fileno()).st_size
    entries = {**dict.fromkeys(found.zero, _ZERO), **dict.fromkeys(found.data, 0)}
    tables = sorted({number // _PER_TABLE for number in entries})
    l1_size = max(1, -(-size // (CLUSTER * _PER_TABLE)))
    l1_clusters = -(-l1_size // _PER_TABLE)

    # header, refcount table, refcount blocks, L1, L2 tables, data: the refcounts count themselves
    fixed = 1 + l1_clusters + len(tables) + len(found.data)
    blocks = 1
    while blocks * _PER_REFCOUNT_BLOCK < fixed + blocks + -(-blocks // _PER_TABLE):
        blocks += 1
    table_clusters = -(-blocks // _PER_TABLE)
    blocks_at = 1 + table_clusters
    l1_at = blocks_at + blocks
    l2_at = l1_at + l1_clusters
    data_at = l2_at + len(tables)
    total = fixed + blocks + table_clusters

    for index, number in enumerate(found.data):
        entries[number] = (data_at + index) * CLUSTER | _COPIED

    def put(cluster: int, content: bytes) -> None:
        target.seek(cluster * CLUSTER)
        target.write(content)

    put(0, _header(size, l1_size, l1_at, table_clusters, parent))
    put(1, b"".join(struct.pack(">Q", (blocks_at + block) * CLUSTER) for block in range(blocks)))
    put(blocks_at, struct.pack(">H", 1) * total)
    l1 = [0] * l1_size
    for index, table in enumerate(tables):
        l1[table] = (l2_at + index) * CLUSTER | _COPIED
        first = table * _PER_TABLE
        put(l2_at + index, struct.pack(f">{_PER_TABLE}Q", *(entries.get(first + n, 0) for n in range(_PER_TABLE))))
    put(l1_at, struct.pack(f">{l1_size}Q", *l1))
    for index, number in enumerate(found.data):
        put(data_at + index, os.pread(source.fileno(), CLUSTER, number * CLUSTER).ljust(CLUSTER, b"\0"))
    target.truncate(total * CLUSTER)


def _header(size: int, l1_size: int, l1_at: int, table_clusters: int, parent: Path) -> bytes:
    name = os.fsencode(parent)
    extensions = struct.pack(">II", _BACKING_FORMAT, 5) + b"qcow2\0\0\0" + struct.pack(">II", 0, 0)
    name_at = _HEADER_LENGTH + len(extensions)
    if len(name) > 1023:
        raise FactoryError(
            "the path is longer than 1023 bytes, the most that a qcow2 can name",
            where=str(parent),
            key="image_workspace",
            mend="set it to a shorter path",
        )
    crypt = snapshots = snapshots_at = incompatible = compatible = autoclear = 0
    refcount_order = 4
    header = _HEADER.pack(
        *(b"QFI\xfb", 3, name_at, len(name), _BITS, size, crypt, l1_size, l1_at * CLUSTER, CLUSTER, table_clusters),
        *(snapshots, snapshots_at, incompatible, compatible, autoclear, refcount_order, _HEADER_LENGTH),
    )
    return header + extensions + name
