# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Streams of a disk's bytes: out of a tool, out of a compressed file, into a file with holes; all of bounded memory."""

from __future__ import annotations

import bz2
import contextlib
import fcntl
import gzip
import lzma
import os
import selectors
import subprocess
import tempfile
import time
import typing as t
import zlib
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors

CHUNK = 1 << 20
_HOLE = 1 << 16
_NOTHING = bytes(_HOLE)
_XZ_MEMORY = 256 << 20
"""Bytes that xz may take: four times what its largest preset (-9) wants."""
_SET_PIPE_SIZE = 1031  # F_SETPIPE_SZ of fcntl(2); Python has its name since 3.10 only
_LAST_WORDS = 2000

Tick = t.Callable[[], None]
"""Called about once a second; what it raises ends the work."""


class SparseWriter:
    """Writes a disk to a file in which zeros become holes.

    :ivar position: bytes written, holes included.
    """

    def __init__(self, stream: t.BinaryIO, limit: int, too_large: FactoryError, position: int = 0) -> None:
        self.position = position
        self._stream = stream
        self._limit = limit
        self._too_large = too_large

    def write(self, chunk: bytes) -> None:
        """Write the next bytes; raises ``too_large`` when they are more than ``limit``, before any of them is written."""
        if self.position + len(chunk) > self._limit:
            raise self._too_large
        start = None
        for at in range(0, len(chunk), _HOLE):
            block = chunk[at : at + _HOLE]
            if block == (_NOTHING if len(block) == _HOLE else bytes(len(block))):
                self._put(chunk, start, at)
                start = None
            elif start is None:
                start = at
        self._put(chunk, start, len(chunk))
        self.position += len(chunk)

    def _put(self, chunk: bytes, start: int | None, end: int) -> None:
        if start is not None:
            self._stream.seek(self.position + start)
            self._stream.write(memoryview(chunk)[start:end])

    def finish(self) -> None:
        """Give the file its size, as it may end with a hole."""
        self._stream.flush()
        self._stream.truncate(self.position)


class Pipe:
    """The output of a tool, as it comes; a context manager that leaves no process behind."""

    def __init__(self, argv: t.Sequence[str]) -> None:
        words = list(argv)
        words[0] = _cli.require(words[0])
        self.rc: int | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            start_new_session=True,
            preexec_fn=_cli.die_with_parent,
        )
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._out, _SET_PIPE_SIZE, CHUNK)

    @property
    def _out(self) -> int:
        return self._process.stdout.fileno() if self._process.stdout else -1

    def __enter__(self) -> Pipe:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self.rc is None:
            _cli.end_group(self._process)
        if self._process.stdout:
            self._process.stdout.close()
        self._errors.close()

    def chunks(self, tick: Tick, silence: float | None = None) -> t.Iterator[bytes]:
        """Chunks of exactly :data:`CHUNK` bytes but for the last; :attr:`rc` is known after that.

        :param silence: seconds without a byte after which it counts as ended; then :attr:`rc` stays None.
        """
        gathered = bytearray()
        heard = time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(self._out, selectors.EVENT_READ)
            while True:
                tick()
                if not selector.select(1.0):
                    if silence is not None and time.monotonic() - heard > silence:
                        return
                    continue
                heard = time.monotonic()
                piece = os.read(self._out, CHUNK - len(gathered))
                gathered += piece
                if len(gathered) == CHUNK or (gathered and not piece):
                    yield bytes(gathered)
                    gathered.clear()
                if not piece:
                    break
        self.rc = self._process.wait()

    def said(self) -> str:
        """Its last words of complaint."""
        self._errors.seek(max(self._errors.seek(0, 2) - _LAST_WORDS, 0))
        return _cli.tail(self._errors.read().decode("utf-8", "replace"), 3)


def decompress(path: Path, kind: str, tick: Tick) -> t.Generator[bytes, None, None]:
    """The content of a compressed file, some MiB at a time.

    :param kind: C(gzip), C(xz), C(zstd) or C(bzip2).
    :raises FactoryError: it is damaged, cut off, or wants too much memory.
    """
    found = {"gzip": _gzip, "bzip2": _bzip2, "xz": _xz}.get(kind)
    if found is None:
        yield from _zstd(path, tick)
        return
    with explain_os_errors(path), path.open("rb") as stream:
        pieces = found(stream)
        while True:
            tick()
            try:
                piece = next(pieces, b"")
            except (EOFError, zlib.error, lzma.LZMAError, OSError, ValueError) as exc:
                raise _damaged(path, kind, str(exc)) from exc
            if not piece:
                return
            yield piece


def _damaged(path: Path, kind: str, said: str) -> FactoryError:
    return FactoryError(f"cannot be unpacked as {kind}: {said}", where=str(path), mend="fetch it again")


def _gzip(stream: t.BinaryIO) -> t.Iterator[bytes]:
    with gzip.GzipFile(fileobj=stream) as file:
        yield from iter(lambda: file.read(CHUNK), b"")


def _bzip2(stream: t.BinaryIO) -> t.Iterator[bytes]:
    with bz2.BZ2File(stream) as file:
        yield from iter(lambda: file.read(CHUNK), b"")


def _xz(stream: t.BinaryIO) -> t.Iterator[bytes]:
    # LZMAFile takes as much memory as a file asks for.
    data = stream.read(CHUNK)
    while data:
        decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY)
        while not decoder.eof:
            piece = decoder.decompress(data, CHUNK)
            data = b"" if not decoder.needs_input else stream.read(CHUNK)
            if piece:
                yield piece
            elif not data and decoder.needs_input and not decoder.eof:
                raise EOFError("it is cut off")
        # Streams follow each other, with zeros between them or at the end (xz-file-format.txt, 2.2).
        data = (decoder.unused_data + data).lstrip(b"\0")
        while not data:
            more = stream.read(CHUNK)
            if not more:
                return
            data = more.lstrip(b"\0")


def _zstd(path: Path, tick: Tick) -> t.Iterator[bytes]:
    # It refuses by itself what wants more than 128 MiB of memory.
    with Pipe(["zstd", "--decompress", "--stdout", "--quiet", "--", str(path.absolute())]) as pipe:
        yield from pipe.chunks(tick)
        if pipe.rc:
            raise _damaged(path, "zstd", pipe.said())
