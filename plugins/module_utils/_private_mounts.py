# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""File systems of a raw disk mounted in a mount namespace of a process that does nothing else.

However that process ends, the kernel unmounts what it had mounted and frees the loop devices.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import stat
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli, _partitions
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._offline import ensure_loop_node

_LIBC = ctypes.CDLL(None, use_errno=True)
_NEWNS = 0x00020000
_MS_REC_PRIVATE = 0x4000 | 0x40000
_SECONDS = 600.0

READ_ONLY = {
    # Nothing is replayed: neither a journal nor a log.
    "ext4": "ro,noload",
    "ext3": "ro,noload",
    "ext2": "ro",
    "xfs": "ro,norecovery,nouuid",
    "btrfs": "ro,rescue=nologreplay",
    "vfat": "ro",
}
"""Mount options by file system with which it stays as it is."""
WRITABLE = {"xfs": "noatime,nouuid", "btrfs": "noatime"}
_SAFE = "nosuid,nodev,noexec"


def alone(work: t.Callable[[], t.Any]) -> t.Any:
    """What ``work`` returns (JSON-able), done by a child in a mount namespace of its own.

    :raises FactoryError: that of ``work``; this user is not root; or the child was killed.
    """
    if os.geteuid() != 0:
        raise FactoryError("mounting a file system needs root", where="mount", mend="run the task with become: true")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _work_and_exit(work, writer)
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as pipe:
            answer = pipe.read()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.waitpid(child, 0)
    if not answer:
        raise FactoryError("the process that had mounted the disk was killed", where="mount", mend="run this again")
    value = json.loads(answer)
    if "error" in value:
        raise FactoryError(**value["error"])
    return value["value"]


def _work_and_exit(work: t.Callable[[], t.Any], writer: int) -> t.NoReturn:
    try:
        _cli.die_with_parent()
        if _LIBC.unshare(_NEWNS):
            problem = f"cannot make a namespace: {os.strerror(ctypes.get_errno())}"
            raise FactoryError(problem, where="unshare", mend="run this as root where that is allowed")
        _LIBC.mount(None, b"/", None, _MS_REC_PRIVATE, None)
        answer: dict[str, t.Any] = {"value": work()}
    except FactoryError as exc:
        answer = {"error": {name: getattr(exc, name) for name in ("problem", "where", "key", "mend")}}
    except Exception as exc:
        answer = {"error": {"problem": f"{type(exc).__name__}: {exc}"}}
    with contextlib.suppress(OSError), os.fdopen(writer, "wb") as pipe:
        pipe.write(json.dumps(answer).encode())
    os._exit(0)


def mount(disk: Path, volume: _partitions.Volume, point: Path, options: str) -> None:
    """Mount a file system of a raw disk; to be called within :func:`alone` only."""
    ensure_loop_node()
    window = f"loop,offset={volume.offset},sizelimit={volume.size}"
    argv = ["mount", "-t", volume.fstype, "-o", f"{window},{options},{_SAFE}", str(disk), str(point)]
    _cli.run(argv, timeout=_SECONDS)


def unmount(point: Path) -> None:
    """Unmount it, and so have all of it written."""
    _cli.run(["umount", point], timeout=_SECONDS)


@contextlib.contextmanager
def loop_device(disk: Path, volume: _partitions.Volume, *, read_only: bool) -> t.Iterator[Path]:
    """A loop device on a part of a raw disk."""
    ensure_loop_node()
    mode = ["--read-only"] if read_only else []
    window = ["--offset", str(volume.offset), "--sizelimit", str(volume.size)]
    node = Path(_cli.run(["losetup", "--find", "--show", *mode, *window, disk], timeout=60).stdout.strip())
    try:
        yield node
    finally:
        _cli.run(["losetup", "--detach", node], timeout=60, check=False)


def read_inside(root: Path, name: str, limit: int) -> bytes | None:
    """A file of a mounted tree, never through a symbolic link; None where there is none, or of ``limit`` bytes or more."""
    parts = name.strip("/").split("/")
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            kind = 0 if last else os.O_DIRECTORY
            below = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | kind, dir_fd=handle)
            os.close(handle)
            handle = below
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return None
        if os.fstat(handle).st_size >= limit:
            return None
        with os.fdopen(os.dup(handle), "rb") as stream:
            return stream.read(limit)
    except OSError:
        return None
    finally:
        os.close(handle)
