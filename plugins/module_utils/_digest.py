# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""One read, many digests; and digests of things that are not files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import queue
import threading
import typing as t
import zlib
from pathlib import Path

ALGORITHMS = ("md5", "sha1", "sha256", "sha512")
_CHUNK = 4 * 1024 * 1024
_SIDECAR = ".digests.json"


class Digester:
    """Computes several digests of one stream, a thread each (hashlib releases the GIL); a context manager.

    Feed it by :meth:`update`; read :meth:`hexdigests` after the context has ended.
    """

    def __init__(self, algorithms: t.Iterable[str] = ALGORITHMS) -> None:
        self._hashes = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
        self._queues: dict[str, queue.Queue[bytes | None]] = {name: queue.Queue(4) for name in self._hashes}
        self._threads = [threading.Thread(target=self._work, args=(name,), daemon=True) for name in self._hashes]

    def _work(self, name: str) -> None:
        while (chunk := self._queues[name].get()) is not None:
            self._hashes[name].update(chunk)

    def __enter__(self) -> Digester:
        for thread in self._threads:
            thread.start()
        return self

    def update(self, chunk: bytes) -> None:
        """Take the next bytes of the stream (they must not be changed afterwards)."""
        for waiting in self._queues.values():
            waiting.put(chunk)

    def __exit__(self, *_exc: object) -> None:
        for waiting in self._queues.values():
            waiting.put(None)
        for thread in self._threads:
            thread.join()

    def hexdigests(self) -> dict[str, str]:
        """``{algorithm: lower-case hex}``."""
        return {name: value.hexdigest() for name, value in self._hashes.items()}


def file_digests(path: Path, algorithms: t.Sequence[str] = ALGORITHMS) -> dict[str, str]:
    """All the digests of a file in one read: ``{algorithm: lower-case hex}``."""
    with Digester(algorithms) as digester, path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digester.update(chunk)
    return digester.hexdigests()


def fast_checksum(path: Path) -> str:
    """C(crc32:<hex>) of a file: it finds what a disk or memory has damaged, several times as fast as a digest would.

    It is no protection against somebody who means to deceive.
    """
    value = 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return f"crc32:{value:08x}"


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def remember_digests(path: Path, digests: t.Mapping[str, str]) -> None:
    """Keep a file's digests in a sidecar next to it, valid while its size, mtime and inode stay as they are."""
    sidecar = path.with_name(path.name + _SIDECAR)
    partial = sidecar.with_name(f".{sidecar.name}.{os.getpid()}")
    partial.write_text(json.dumps({"stamp": _stamp(path), "digests": dict(digests)}), encoding="utf-8")
    partial.replace(sidecar)


def cached_digests(path: Path, algorithms: t.Sequence[str] = ALGORITHMS) -> dict[str, str]:
    """Like :func:`file_digests`, without the read where the sidecar still describes the file.

    Where this user must not write beside the file, there is no sidecar, and the file is read each time.
    """
    known = _from_sidecar(path)
    if not set(algorithms) <= set(known):
        known = file_digests(path, sorted(set(algorithms) | set(known)))
        try:
            remember_digests(path, known)
        except OSError as exc:
            if exc.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
    return {name: known[name] for name in algorithms}


def _from_sidecar(path: Path) -> dict[str, str]:
    try:
        sidecar = json.loads(path.with_name(path.name + _SIDECAR).read_text(encoding="utf-8"))
        return dict(sidecar["digests"]) if sidecar["stamp"] == _stamp(path) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def data_digest(data: t.Any) -> str:
    """The SHA-256 (hex) of a JSON-able value, whatever the order of its keys."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def tree_digest(root: Path, skip: t.Container[str] = ("__pycache__", "README.md")) -> str:
    """The SHA-256 (hex) of a directory's content: relative names, modes' execute bits, links and bytes.

    Names in ``skip`` do not count, at any depth.
    """
    found: list[tuple[str, str]] = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in skip)
        for name in sorted(files):
            if name in skip:
                continue
            path = Path(folder, name)
            relative = str(path.relative_to(root))
            if path.is_symlink():
                found.append((relative, "link " + os.readlink(path)))
            else:
                executable = "x" if path.stat().st_mode & 0o100 else "-"
                found.append((relative, executable + file_digests(path, ["sha256"])["sha256"]))
    return data_digest(found)
