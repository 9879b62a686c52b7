# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""A raw disk: as it is with holes, or compressed by several threads into one gzip, xz or zstd file.

A disk is compressed piece by piece: into one gzip member (RFC 1952) whose pieces end at a byte, as pigz does it, or into an xz
stream or a zstd frame (RFC 8878) for each piece, of which a file may have several. A piece of nothing but zeros is
compressed once, so that holes cost next to nothing. Names and times are left out: equal disks give equal bytes.
"""

from __future__ import annotations

import array
import concurrent.futures
import dataclasses
import functools
import struct
import typing as t
import zlib
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _codecs, _parallel
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import Digester
from ansible_collections.cloudimg.factory.plugins.module_utils._disk_source import DiskSource
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors

Percent = t.Callable[[float], None]
_PLAIN_PIECE = 1 << 20
GZIP_HEADER = struct.pack("<2sBBIBB", b"\x1f\x8b", 8, 0, 0, 0, 255)
"""No name, no time; no file system in particular."""


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to compress. ``piece`` is in bytes; at most ``most`` pieces are in work (xz takes much memory)."""

    piece: int
    level: int
    levels: tuple[int, int]
    pack: t.Callable[[bytes, int], bytes]
    unpack: t.Callable[[bytes, int], bytes]
    most: int = 4 * _parallel.MOST_WORKERS


METHODS = {
    "gz": Method(
        1 << 20,
        6,
        (1, 9),
        lambda data, level: _codecs.deflate(data, level, zlib.MAX_WBITS, last=False),
        lambda data, _size: _codecs.inflate(data),
    ),
    # Beyond level 6 only the dictionary grows, and that would be larger than a piece.
    "xz": Method(8 << 20, 6, (0, 6), _codecs.xz, lambda data, _size: _codecs.unxz(data), most=3),
    "zst": Method(2 << 20, 3, (1, 19), lambda data, level: _codecs.zstd(data, level=level, checksum=1), _codecs.unzstd),
}


def write_plain(source: DiskSource, target: Path, *, tick: Percent) -> None:
    """Write the disk as it is, with holes where there is nothing."""
    nothing = bytes(_PLAIN_PIECE)
    with explain_os_errors(target), target.open("wb") as stream:
        for number in source.occupied(_PLAIN_PIECE):
            data = source.read(number * _PLAIN_PIECE, _PLAIN_PIECE)
            if data != nothing:
                stream.seek(number * _PLAIN_PIECE)
                stream.write(data)
            tick(100 * number * _PLAIN_PIECE / source.size)
        stream.truncate(source.size)


@dataclasses.dataclass(frozen=True)
class Written:
    """A compressed file's digests, and the lengths of its pieces."""

    digests: dict[str, str]
    lengths: array.array[int]


def write(
    source: DiskSource,
    target: Path,
    executor: concurrent.futures.Executor,
    *,
    method: str,
    level: int,
    tick: Percent,
) -> Written:
    """Write the disk compressed by one of :data:`METHODS`.

    :raises FactoryError: the file system is full, or a layer cannot be read.
    """
    how = METHODS[method]
    empty = _empty(method, how.piece, level)

    def work(item: tuple[int, bool]) -> tuple[bytes, int, int]:
        number, holds = item
        if not holds and (number + 1) * how.piece <= source.size:
            return empty[0], empty[1], how.piece
        data = source.read(number * how.piece, how.piece)
        return how.pack(data, level), zlib.crc32(data) if method == "gz" else 0, len(data)

    lengths = array.array("I")
    crc = done = 0
    with explain_os_errors(target), target.open("wb") as stream, Digester() as digester:

        def put(content: bytes) -> None:
            stream.write(content)
            digester.update(content)

        if method == "gz":
            put(GZIP_HEADER)
        pieces = source.pieces(how.piece)
        for packed, sum_, length in _parallel.in_order(executor, work, pieces, 2 * how.piece, how.most):
            put(packed)
            lengths.append(len(packed))
            crc = _codecs.crc32_combine(crc, sum_, length) if method == "gz" else 0
            done += length
            tick(100 * done / source.size)
        if method == "gz":
            put(_codecs.deflate(b"", level, zlib.MAX_WBITS, last=True) + struct.pack("<II", crc, done & 0xFFFFFFFF))
        stream.flush()
    return Written(digester.hexdigests(), lengths)


@functools.lru_cache(maxsize=8)
def _empty(method: str, size: int, level: int) -> tuple[bytes, int]:
    """What a piece of zeros becomes, and its CRC-32."""
    return METHODS[method].pack(bytes(size), level), zlib.crc32(bytes(size))


def verify(
    source: DiskSource,
    target: Path,
    executor: concurrent.futures.Executor,
    *,
    method: str,
    level: int,
    lengths: t.Sequence[int],
    tick: Percent,
) -> None:
    """Read a compressed file back, and compare it with the disk; raises FactoryError where it holds something else."""
    how = METHODS[method]
    empty = _empty(method, how.piece, level)[0]

    def pieces(stream: t.BinaryIO) -> t.Iterator[tuple[int, bool, bytes]]:
        if method == "gz" and stream.read(len(GZIP_HEADER)) != GZIP_HEADER:
            yield 0, True, b""
            return
        for (number, holds), length in zip(source.pieces(how.piece), lengths):
            yield number, holds, stream.read(length)

    def work(item: tuple[int, bool, bytes]) -> bool:
        number, holds, packed = item
        if not holds and packed == empty:
            return True
        try:
            return how.unpack(packed, how.piece) == source.read(number * how.piece, how.piece)
        except ValueError:
            return False

    with explain_os_errors(target), target.open("rb") as stream:
        weight = 3 * how.piece
        for number, same in enumerate(_parallel.in_order(executor, work, pieces(stream), weight, how.most)):
            if not same:
                raise FactoryError(
                    f"differs from its source, from byte {number * how.piece} of the disk on",
                    where=str(target),
                    mend="check the builder's memory and disks",
                )
            tick(100 * (number + 1) / len(lengths))
