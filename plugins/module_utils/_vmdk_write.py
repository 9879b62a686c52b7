# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""A streamOptimized VMDK, the disk of OVA files: grains are compressed by several threads and written in order.

Source of the format: VMware, «Virtual Disk Format 5.0» (vmdk_50_technote.pdf), section «Stream-Optimized Compressed Sparse
Extents». The file is written from its beginning to its end, so it is hashed on the way.
"""

from __future__ import annotations

import array
import concurrent.futures
import struct
import sys
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _codecs, _parallel
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import Digester
from ansible_collections.cloudimg.factory.plugins.module_utils._disk_source import DiskSource
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors

_SECTOR = 512
_GRAIN = 128 * _SECTOR
_PER_TABLE = 512
_BATCH = 16  # grains that a thread takes at once
_OVERHEAD = 128
_DESCRIPTOR_SECTORS = 20
_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH433x")
_AT_END = (1 << 64) - 1
_FLAGS = 1 | 1 << 16 | 1 << 17  # line ends can be checked; grains are compressed; there are markers
_LEVEL = 6
_TABLE, _DIRECTORY, _FOOTER = 1, 2, 3
_GEOMETRY = {"ide": (16383, 16, 63), "lsilogic": (65535, 255, 63)}
"""The most cylinders that an adapter's geometry can have, its heads, and its sectors."""


def describe(size: int, name: str, cid: int, adapter: str = "lsilogic") -> str:
    """The text that is embedded in the file.

    :param size: of the disk, in bytes.
    :param name: of the file, which nothing looks at.
    :param cid: the content's number; a snapshot would tell by it that its parent has changed.
    """
    most, heads, sectors = _GEOMETRY[adapter]
    cylinders = max(1, min(most, size // (heads * sectors * _SECTOR)))
    return f"""# Disk DescriptorFile
version=1
CID={cid:08x}
parentCID=ffffffff
createType="streamOptimized"

# Extent description
RW {-(-size // _SECTOR)} SPARSE "{name}"

# The Disk Data Base
#DDB

ddb.adapterType = "{adapter}"
ddb.geometry.cylinders = "{cylinders}"
ddb.geometry.heads = "{heads}"
ddb.geometry.sectors = "{sectors}"
ddb.virtualHWVersion = "10"
"""


def write(
    source: DiskSource,
    target: Path,
    executor: concurrent.futures.Executor,
    *,
    name: str,
    cid: int,
    tick: t.Callable[[float], None],
) -> dict[str, str]:
    """Write the VMDK ``target``; returns its digests. For ``name`` and ``cid`` see :func:`describe`.

    :raises FactoryError: the file system is full, or a layer cannot be read.
    """
    nothing = bytes(_GRAIN)
    piece = _BATCH * _GRAIN

    def work(number: int) -> list[tuple[int, bytes]]:
        data = source.read(number * piece, piece)
        found = []
        for place in range(0, len(data), _GRAIN):
            grain = data[place : place + _GRAIN].ljust(_GRAIN, b"\0")
            if grain != nothing:
                found.append((number * _BATCH + place // _GRAIN, _codecs.zlib_stream(grain, _LEVEL)))
        return found

    total = max(-(-source.size // piece), 1)
    with explain_os_errors(target), target.open("wb") as stream, Digester() as digester:
        disk = _Writer(stream, digester, source.size, describe(source.size, name, cid))
        for grains in _parallel.in_order(executor, work, source.occupied(piece), 3 * piece):
            for number, packed in grains:
                disk.grain(number, packed)
            if grains:
                tick(100 * grains[0][0] / _BATCH / total)
        disk.finish()
        stream.flush()
    return digester.hexdigests()


class _Writer:
    def __init__(self, stream: t.BinaryIO, digester: Digester, size: int, text: str) -> None:
        self._stream = stream
        self._digester = digester
        self._capacity = -(-size // _SECTOR)
        grains = -(-size // _GRAIN)
        self._directory = array.array("I", bytes(4 * -(-grains // _PER_TABLE)))
        self._table = array.array("I", bytes(4 * _PER_TABLE))
        self._number: int | None = None
        self._sectors = 0
        self._pending: list[bytes] = []
        self._size = 0
        content = text.encode("ascii").ljust(_DESCRIPTOR_SECTORS * _SECTOR, b"\0")
        self._put((self._header(_AT_END) + content).ljust(_OVERHEAD * _SECTOR, b"\0"))

    def _put(self, content: bytes) -> None:
        """Append content, padded to sectors."""
        padded = content + bytes(-len(content) % _SECTOR)
        self._sectors += len(padded) // _SECTOR
        self._pending.append(padded)
        self._size += len(padded)
        if self._size >= 1 << 20:  # many small pieces would keep the threads waiting for each other
            self._flush()

    def _flush(self) -> None:
        block = b"".join(self._pending)
        self._pending.clear()
        self._size = 0
        self._stream.write(block)
        self._digester.update(block)

    def _header(self, directory: int) -> bytes:
        return _HEADER.pack(
            *(b"KDMV", 3, _FLAGS, self._capacity, _GRAIN // _SECTOR, 1, _DESCRIPTOR_SECTORS),
            *(_PER_TABLE, 0, directory, _OVERHEAD, 0, b"\n \r\n", 1),
        )

    def _marker(self, sectors: int, kind: int) -> None:
        self._put(struct.pack("<QII", sectors, 0, kind))

    def grain(self, number: int, packed: bytes) -> None:
        """The next grain that holds data."""
        table, place = divmod(number, _PER_TABLE)
        if table != self._number:
            self._end_table()
            self._number = table
        self._table[place] = self._sectors
        self._put(struct.pack("<QI", number * (_GRAIN // _SECTOR), len(packed)) + packed)

    def _end_table(self) -> None:
        if self._number is None:
            return
        self._marker(4 * _PER_TABLE // _SECTOR, _TABLE)
        self._directory[self._number] = self._sectors
        self._put(_little_endian(self._table))
        self._table = array.array("I", bytes(4 * _PER_TABLE))

    def finish(self) -> None:
        """Write what leads to the tables."""
        self._end_table()
        content = _little_endian(self._directory)
        self._marker(-(-len(content) // _SECTOR), _DIRECTORY)
        directory = self._sectors
        self._put(content)
        self._marker(1, _FOOTER)
        self._put(self._header(directory))
        self._put(bytes(_SECTOR))  # the end of the stream
        self._flush()


def _little_endian(values: array.array[int]) -> bytes:
    swapped = array.array(values.typecode, values)
    if sys.byteorder == "big":
        swapped.byteswap()
    return swapped.tobytes()
