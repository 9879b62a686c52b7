# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""SFTP version 3 over ssh(1): as much of it as it takes to put files in place.

The protocol is draft-ietf-secsh-filexfer-02; C(posix-rename@openssh.com) and C(fsync@openssh.com) stand in OpenSSH's PROTOCOL.
Over sftp(1) it has exact errors, signs of life, and no file of commands.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import struct
import subprocess
import tempfile
import time
import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

_INIT, _VERSION = 1, 2
_OPEN, _CLOSE, _READ, _WRITE = 3, 4, 5, 6
_REMOVE, _MKDIR, _RMDIR, _STAT, _RENAME = 13, 14, 15, 17, 18
_STATUS, _HANDLE, _DATA, _ATTRS = 101, 102, 103, 105
_EXTENDED = 200
_OK, _EOF, _NO_SUCH_FILE = 0, 1, 2
_READING, _FRESH = 0x01, 0x02 | 0x08 | 0x10  # write, create, truncate
_HAS_SIZE, _HAS_OWNER, _HAS_MODE = 1, 2, 4
_BLOCK = 32768
"""Bytes of one packet of data: every server takes as much (draft, section 3)."""
_WINDOW = 64
"""Packets on their way before one is answered."""
_LARGEST = 1 << 18

Attributes = tuple[int, int]
"""Size in bytes, and mode (stat(2)'s st_mode)."""


class Broken(Exception):
    """The connection failed; the text is what ssh says of it."""


class Refused(Exception):
    """The server refuses something; ``code`` is an SSH_FX_ number."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message or f"error {code}")
        self.code = code


class Sftp:
    """A session, by a command that leads to a server's subsystem C(sftp); a context manager.

    :param silence: seconds without a byte after which the connection counts as broken.
    :param tick: called about once a second while waiting; what it raises ends the session.
    """

    def __init__(self, argv: t.Sequence[str], *, silence: float, tick: t.Callable[[], None]) -> None:
        words = [_cli.require(argv[0], "openssh-client"), *argv[1:]]
        self._silence = silence
        self._tick = tick
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - until close()
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            start_new_session=True,
            preexec_fn=_cli.die_with_parent,
        )
        if self._process.stdin:
            os.set_blocking(self._process.stdin.fileno(), False)  # one that cannot be written to must not hold us
        self._number = 0
        self._extensions: dict[bytes, bytes] = {}
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Sftp:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        _cli.end_group(self._process)
        self._said.close()

    def stat(self, path: str) -> Attributes | None:
        """A file's size and mode, links followed; None where there is none."""
        return self._attributes(_STAT, path)

    def read(self, path: str, limit: int) -> bytes | None:
        """A file's bytes, at most ``limit`` and one more; None where there is none."""
        try:
            handle = self._handle(path, _READING)
        except Refused as exc:
            if exc.code == _NO_SUCH_FILE:
                return None
            raise
        data = b""
        try:
            while len(data) <= limit:
                kind, body = self._ask(_READ, _text(handle) + struct.pack(">QI", len(data), _BLOCK))
                if kind == _STATUS and _status(body)[0] == _EOF:
                    break
                _expect(kind, body, _DATA)
                data += _string(body)[0]
        finally:
            self._done(_CLOSE, _text(handle))
        return data

    def write(self, path: str, stream: t.BinaryIO, size: int, report: t.Callable[[int], None]) -> None:
        """Write ``size`` bytes of a stream to a file, which is made or emptied first; ``report`` is told how many are sent."""
        handle = self._handle(path, _FRESH)
        waiting: set[int] = set()
        sent = 0
        while sent < size or waiting:
            while sent < size and len(waiting) < _WINDOW:
                block = stream.read(min(_BLOCK, size - sent))
                if not block:
                    raise FactoryError("became shorter while it was read", where=str(getattr(stream, "name", path)))
                waiting.add(self._send(_WRITE, _text(handle) + struct.pack(">Q", sent) + _text(block)))
                sent += len(block)
                report(sent)
            kind, number, body = self._receive()
            _expect(kind, body, _STATUS)
            waiting.discard(number)
        if b"fsync@openssh.com" in self._extensions:
            self._done(_EXTENDED, _text(b"fsync@openssh.com") + _text(handle))
        self._done(_CLOSE, _text(handle))

    def rename(self, source: str, target: str) -> None:
        """Give a file another name, in one step where the server can, also when there is one of that name."""
        names = _text(source) + _text(target)
        if b"posix-rename@openssh.com" in self._extensions:
            self._done(_EXTENDED, _text(b"posix-rename@openssh.com") + names)
            return
        # Version 3 itself refuses to replace a file.
        self.remove(target)
        self._done(_RENAME, names)

    def remove(self, path: str) -> bool:
        """Remove a file; whether there was one."""
        return self._unless_gone(_REMOVE, path)

    def remove_folder(self, path: str) -> bool:
        """Remove a directory that is empty; whether that was so."""
        try:
            return self._unless_gone(_RMDIR, path)
        except Refused:
            return False

    def make_folders(self, path: str) -> None:
        """Make a directory, and those above it, unless it is there."""
        missing = []
        while path.strip("/") and self._attributes(_STAT, path) is None:
            missing.append(path)
            path = path.rpartition("/")[0]
        for folder in reversed(missing):
            try:
                self._done(_MKDIR, _text(folder) + struct.pack(">I", 0))
            except Refused:
                if self._attributes(_STAT, folder) is None:  # else somebody else has made it meanwhile
                    raise

    def _unless_gone(self, request: int, path: str) -> bool:
        try:
            self._done(request, _text(path))
        except Refused as exc:
            if exc.code == _NO_SUCH_FILE:
                return False
            raise
        return True

    def _attributes(self, request: int, path: str) -> Attributes | None:
        kind, body = self._ask(request, _text(path))
        if kind == _STATUS and _status(body)[0] == _NO_SUCH_FILE:
            return None
        _expect(kind, body, _ATTRS)
        (flags,) = struct.unpack_from(">I", body)
        at = 4
        size = mode = 0
        if flags & _HAS_SIZE:
            (size,) = struct.unpack_from(">Q", body, at)
            at += 8
        if flags & _HAS_OWNER:
            at += 8
        if flags & _HAS_MODE:
            (mode,) = struct.unpack_from(">I", body, at)
        return size, mode

    def _handle(self, path: str, flags: int) -> bytes:
        kind, body = self._ask(_OPEN, _text(path) + struct.pack(">II", flags, 0))
        _expect(kind, body, _HANDLE)
        return _string(body)[0]

    def _done(self, request: int, payload: bytes) -> None:
        kind, body = self._ask(request, payload)
        _expect(kind, body, _STATUS)

    def _begin(self) -> None:
        self._put(struct.pack(">IBI", 5, _INIT, 3))
        body = self._packet()
        if body[0] != _VERSION:
            raise Broken("what answers is no SFTP server")
        rest = body[5:]
        while rest:
            name, rest = _string(rest)
            value, rest = _string(rest)
            self._extensions[name] = value

    def _ask(self, request: int, payload: bytes) -> tuple[int, bytes]:
        number = self._send(request, payload)
        kind, answered, body = self._receive()
        if answered != number:
            raise Broken("the server answers another request")
        return kind, body

    def _send(self, request: int, payload: bytes) -> int:
        self._number = (self._number + 1) & 0xFFFFFFFF
        self._put(struct.pack(">IBI", len(payload) + 5, request, self._number) + payload)
        return self._number

    def _receive(self) -> tuple[int, int, bytes]:
        body = self._packet()
        (number,) = struct.unpack_from(">I", body, 1)
        return body[0], number, body[5:]

    def _packet(self) -> bytes:
        (length,) = struct.unpack(">I", self._get(4))
        if not 5 <= length <= _LARGEST:
            raise Broken("what answers is no SFTP server")
        return self._get(length)

    def _put(self, data: bytes) -> None:
        left = memoryview(data)
        stream = self._process.stdin
        while stream and left:
            self._wait(stream, selectors.EVENT_WRITE)
            try:
                left = left[os.write(stream.fileno(), left) :]
            except BlockingIOError:
                continue
            except OSError as exc:
                raise Broken(self._why()) from exc

    def _get(self, length: int) -> bytes:
        data = b""
        stream = self._process.stdout
        while stream and len(data) < length:
            self._wait(stream, selectors.EVENT_READ)
            chunk = os.read(stream.fileno(), length - len(data))
            if not chunk:
                raise Broken(self._why())
            data += chunk
        return data

    def _wait(self, stream: t.IO[bytes], event: int) -> None:
        """Until bytes can pass."""
        began = time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(stream, event)
            while not selector.select(1.0):
                self._tick()
                if time.monotonic() - began > self._silence:
                    raise Broken(f"nothing came for {self._silence:.0f} s")

    def _why(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._said.seek(0)
        return _cli.tail(self._said.read().decode("utf-8", "replace"), 3) or "the connection was closed"


def _text(value: str | bytes) -> bytes:
    data = value.encode("utf-8") if isinstance(value, str) else value
    return struct.pack(">I", len(data)) + data


def _string(body: bytes) -> tuple[bytes, bytes]:
    (length,) = struct.unpack_from(">I", body)
    return body[4 : 4 + length], body[4 + length :]


def _status(body: bytes) -> tuple[int, str]:
    (code,) = struct.unpack_from(">I", body)
    return code, _string(body[4:])[0].decode("utf-8", "replace") if len(body) > 8 else ""


def _expect(kind: int, body: bytes, wanted: int) -> None:
    """Raise Refused where the answer is an error, Broken where it is of another kind."""
    if kind == _STATUS:
        code, message = _status(body)
        if code != _OK:
            raise Refused(code, message)
        if wanted == _STATUS:
            return
    if kind != wanted:
        raise Broken("what answers is no SFTP server")
