# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Compressing one block at a time, in as many threads as one likes: every function here releases the interpreter's lock.

zstd and DEFLATE come from the libraries libzstd and libdeflate, through ctypes, as no Python module for them is in every
distribution: libzstd is there wherever qemu-img is, and libdeflate makes the same DEFLATE as zlib, smaller and in half the time.

Sources: zstd.h and libdeflate.h (the stable parts of their interfaces).
"""

from __future__ import annotations

import ctypes
import functools
import lzma
import threading
import typing as t
import zlib

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

_ZSTD = "libzstd.so.1"
_DEFLATE = "libdeflate.so.0"
_PARAMETERS = {"level": 100, "window_log": 101, "hash_log": 102, "chain_log": 103, "min_match": 105, "checksum": 201}
"""Numbers of ZSTD_cParameter in zstd.h."""

_here = threading.local()


@functools.lru_cache(maxsize=1)
def _zstd() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(_ZSTD)
    except OSError:
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    for name, result, arguments in (
        ("ZSTD_createCCtx", pointer, []),
        ("ZSTD_freeCCtx", size, [pointer]),
        ("ZSTD_compressBound", size, [size]),
        ("ZSTD_isError", ctypes.c_uint, [size]),
        ("ZSTD_CCtx_setParameter", size, [pointer, ctypes.c_int, ctypes.c_int]),
        ("ZSTD_compress2", size, [pointer, pointer, size, pointer, size]),
        ("ZSTD_decompress", size, [pointer, size, ctypes.c_char_p, size]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


@functools.lru_cache(maxsize=1)
def _libdeflate() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(_DEFLATE)
    except OSError:
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    library.libdeflate_alloc_compressor.restype = pointer
    library.libdeflate_alloc_compressor.argtypes = [ctypes.c_int]
    library.libdeflate_free_compressor.argtypes = [pointer]
    library.libdeflate_zlib_compress.restype = size
    library.libdeflate_zlib_compress.argtypes = [pointer, ctypes.c_char_p, size, pointer, size]
    library.libdeflate_zlib_compress_bound.restype = size
    library.libdeflate_zlib_compress_bound.argtypes = [pointer, size]
    return library


def has_zstd() -> bool:
    """Whether :func:`zstd` can be used here."""
    return _zstd() is not None


def need_zstd() -> None:
    """Raise FactoryError where there is no libzstd."""
    if not has_zstd():
        raise FactoryError(
            "is not installed on the builder", where=_ZSTD, mend="run playbooks/builder.yml, or install libzstd"
        )


class _ZstdContext:
    """A compressor, and room for what comes out of it; one a thread."""

    def __init__(self, library: ctypes.CDLL, parameters: tuple[tuple[str, int], ...]) -> None:
        self._library = library
        self._context = library.ZSTD_createCCtx()
        self._room = ctypes.create_string_buffer(0)
        for name, value in parameters:
            if library.ZSTD_isError(library.ZSTD_CCtx_setParameter(self._context, _PARAMETERS[name], value)):
                raise FactoryError(f"does not take {name} {value}", where=_ZSTD)

    def compress(self, data: bytes | bytearray) -> bytes:
        bound = self._library.ZSTD_compressBound(len(data))
        if len(self._room) < bound:
            self._room = ctypes.create_string_buffer(bound)
        given = (ctypes.c_char * len(data)).from_buffer(data) if isinstance(data, bytearray) else data
        size = self._library.ZSTD_compress2(self._context, self._room, len(self._room), given, len(data))
        if self._library.ZSTD_isError(size):
            raise FactoryError("cannot compress", where=_ZSTD, mend="check the builder's memory")
        return ctypes.string_at(self._room, size)

    def __del__(self) -> None:
        self._library.ZSTD_freeCCtx(self._context)


class _DeflateContext:
    def __init__(self, library: ctypes.CDLL, level: int) -> None:
        self._library = library
        self._context = library.libdeflate_alloc_compressor(level)
        self._room = ctypes.create_string_buffer(0)

    def compress(self, data: bytes) -> bytes:
        bound = self._library.libdeflate_zlib_compress_bound(self._context, len(data))
        if len(self._room) < bound:
            self._room = ctypes.create_string_buffer(bound)
        size = self._library.libdeflate_zlib_compress(self._context, data, len(data), self._room, len(self._room))
        return ctypes.string_at(self._room, size)

    def __del__(self) -> None:
        self._library.libdeflate_free_compressor(self._context)


def _mine(key: t.Hashable, make: t.Callable[[], t.Any]) -> t.Any:
    contexts = _here.__dict__.setdefault("contexts", {})
    if key not in contexts:
        contexts[key] = make()
    return contexts[key]


def zstd(data: bytes | bytearray, **parameters: int) -> bytes:
    """One frame of zstd, with its content's size. Parameters: those of ZSTD_cParameter; needs :func:`has_zstd`."""
    library = _zstd()
    if library is None:
        need_zstd()
    key = tuple(sorted(parameters.items(), key=lambda item: _PARAMETERS[item[0]]))
    return bytes(_mine(("zstd", key), lambda: _ZstdContext(t.cast(ctypes.CDLL, library), key)).compress(data))


def unzstd(data: bytes, size: int) -> bytes:
    """What is in a frame of zstd, of at most ``size`` bytes; raises ValueError where it is damaged, or holds more."""
    library = t.cast(ctypes.CDLL, _zstd())
    room = ctypes.create_string_buffer(max(size, 1))
    found = library.ZSTD_decompress(room, size, data, len(data))
    if library.ZSTD_isError(found):
        raise ValueError("damaged zstd frame")
    return ctypes.string_at(room, found)


def zlib_stream(data: bytes, level: int = 6) -> bytes:
    """A zlib stream (RFC 1950), by libdeflate where it is there."""
    library = _libdeflate()
    if library is None:
        return zlib.compress(data, level)
    return bytes(_mine(("zlib", level), lambda: _DeflateContext(library, level)).compress(data))


def deflate(data: bytes | bytearray, level: int, window_bits: int, *, last: bool) -> bytes:
    """Raw DEFLATE (RFC 1951); where it is not the ``last`` of its stream it ends at a byte, and more can follow."""
    compressor = zlib.compressobj(level, zlib.DEFLATED, -window_bits, 9)
    return compressor.compress(data) + compressor.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)


def inflate(data: bytes) -> bytes:
    """What is in raw DEFLATE that may go on; raises ValueError where it is damaged."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data)
    except zlib.error as exc:
        raise ValueError(str(exc)) from exc


def xz(data: bytes, level: int) -> bytes:
    """One stream of xz, with CRC64."""
    return lzma.compress(data, preset=level)


def unxz(data: bytes) -> bytes:
    """What is in one stream of xz; raises ValueError where it is damaged."""
    try:
        return lzma.decompress(data)
    except lzma.LZMAError as exc:
        raise ValueError(str(exc)) from exc


def crc32_combine(first: int, second: int, length: int) -> int:
    """The CRC-32 of two strings put together, of the CRC-32 of each; ``length`` is that of the second in bytes.

    As zlib's crc32_combine does it: appending n zero bits is multiplying by x^n modulo the polynomial.
    """
    return _times(_power(length), first) ^ second


@functools.lru_cache(maxsize=64)
def _power(length: int) -> int:
    """x^(8·length) modulo the CRC's polynomial, in its reflected form."""
    result, square, bits = 1 << 31, 1 << 30, length * 8
    while bits:
        if bits & 1:
            result = _times(square, result)
        square = _times(square, square)
        bits >>= 1
    return result


def _times(a: int, b: int) -> int:
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = (b >> 1) ^ 0xEDB88320 if b & 1 else b >> 1
    return product
