# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""A disk and those below it, judged by their headers before qemu-img opens any of them; who has one in use; its raw view.

A header may name any file of the builder as the disk below. So a disk that stands on others is taken only where the caller
trusts it, or has named the disk below himself.

Source of the format: https://www.qemu.org/docs/master/interop/qcow2.html; of the locks: block/file-posix.c of QEMU
(RAW_LOCK_PERM_BASE 100, RAW_LOCK_SHARED_BASE 200, open file description locks).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import struct
import time
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli, _foreign, _qemu_img, _state
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._foreign_head import Head
from ansible_collections.cloudimg.factory.plugins.module_utils._foreign_qcow2 import disk_below, judge_header
from ansible_collections.cloudimg.factory.plugins.module_utils._owner import Owner

FORMATS = ("qcow2", "raw", "vmdk", "vdi", "vhdx", "vpc")

_MAGIC = b"QFI\xfb"
_LARGEST = 1 << 50
_DEEPEST = 64
_PROTOCOL = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*:")
_LOCK_BYTES = (100, 200)
_FLOCK = "hhqqi4x"
_MARGIN = 64 << 20
_SECTOR = 512
_GRACE = 3.0
"""Seconds in which a loop device may go by itself."""


class Link(t.NamedTuple):
    """One disk of a chain, and its qemu-img format."""

    path: Path
    format: str


def regular(path: Path) -> Path:
    """The file itself that is at ``path``, symbolic links followed; raises FactoryError where that is no regular file."""
    with _state.explain_os_errors(path):
        if not stat.S_ISREG(path.stat().st_mode):
            raise FactoryError("is no regular file", where=str(path), mend="give the path of a disk file")
    return Path(os.path.realpath(path))


def chain(path: Path, fmt: str | None = None, *, trusted: bool = False, below: Path | None = None) -> list[Link]:
    """A disk and all below it, the nearest first.

    :param fmt: the format that it must have; a raw disk is told from one of another format by that alone. By default what
        its header says.
    :param trusted: whether headers may name other disks.
    :param below: the disk that the first one may name in any case.
    :raises FactoryError: a header is not such as can be trusted, or not whole, or a disk is missing.
    """
    found: list[Link] = []
    following: Path | None = path
    while following is not None:
        file = regular(following)
        if any(link.path == file for link in found) or len(found) == _DEEPEST:
            raise FactoryError("the disks below it lead round in a circle", where=str(path), mend="rebase one of them")
        named = _below(file) if fmt != "raw" and _is_qcow2(file) else None
        have = "raw" if fmt == "raw" else "qcow2" if _is_qcow2(file) else _foreign.identify(file)
        if fmt and have != fmt:
            raise FactoryError(f"is {have}, not {fmt}", where=str(file), key="format", mend=f"give {have}")
        found.append(Link(file, have))
        if named is None:
            return found
        expected = below is not None and len(found) == 1 and os.path.realpath(named[0]) == os.path.realpath(below)
        if not trusted and not expected:
            raise FactoryError(
                f"needs another disk below it ({named[0]})",
                where=str(file),
                mend="set trusted, if nobody else has made it, or flatten it where it comes from",
            )
        with _state.explain_os_errors(file):
            there = named[0].exists()
        if not there:
            raise FactoryError(
                f"the disk below it is not there ({named[0]})",
                where=str(file),
                mend="restore that, or give another one with the same content (backing, rebase: unsafe)",
            )
        following, fmt = named
    return found


def named_below(path: Path) -> tuple[Path, str] | None:
    """The disk below that a header names, with its format, whether it is there or not; None where it names none."""
    return _below(path) if _is_qcow2(path) else None


def _is_qcow2(path: Path) -> bool:
    with _state.explain_os_errors(path), path.open("rb") as stream:
        return stream.read(4) == _MAGIC


def _below(path: Path) -> tuple[Path, str] | None:
    """The same as :func:`named_below` for a qcow2, whose header is judged by the way."""
    with _state.explain_os_errors(path), path.open("rb") as stream:
        head = Head(path, stream, _LARGEST)
        head.believe(judge_header(head)[0])
        found = disk_below(head)
    if not found:
        return None
    name, fmt = found
    if _PROTOCOL.match(name) or b"\0" in name:
        head.refuse("stands on something that is no file")
    if not fmt:
        head.refuse("does not say what format the disk below it has", "tell it by: qemu-img rebase -u -b … -F …")
    if fmt not in FORMATS:
        head.refuse(f"stands on a disk of the format {fmt!r}, which is not known")
    return path.parent / os.fsdecode(name), fmt


def refuse_in_use(path: Path) -> None:
    """Raise FactoryError where a virtual machine, a qemu tool or a loop device has a disk open."""
    with _state.explain_os_errors(path), path.open("rb") as stream:
        first, count = _LOCK_BYTES
        probe = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, first, count, 0)
        answer = struct.unpack(_FLOCK, fcntl.fcntl(stream, fcntl.F_OFD_GETLK, probe))
    user = "a virtual machine or a qemu tool" if answer[0] != fcntl.F_UNLCK else _loop_of(path)
    deadline = time.monotonic() + _GRACE
    while user and user.startswith("/dev/") and time.monotonic() < deadline:
        # One that was just unmounted is there until whoever looks at all devices has closed it.
        time.sleep(0.1)
        user = _loop_of(path)
    if user:
        raise FactoryError(f"is in use by {user}", where=str(path), mend="wait until that has ended, or end it")


def _loop_of(path: Path) -> str | None:
    """The loop device that has a file open."""
    for name in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # it may be freed meanwhile
            if name.read_text(encoding="utf-8", errors="surrogateescape").rstrip("\n") == str(path):
                return f"/dev/{name.parent.parent.name}"
    return None


def take_after(new: Path, old: Path) -> None:
    """Give a file that is to take another's place the mode, and where this user may, the owner of that."""
    status = old.stat()
    with contextlib.suppress(PermissionError):
        os.chown(new, status.st_uid, status.st_gid)
    new.chmod(stat.S_IMODE(status.st_mode))


def copy(source: Path, target: Path) -> None:
    """Copy a disk file with its holes; it costs nothing where the file system can share the blocks."""
    _state.need_space(target.parent, source.stat().st_blocks * _SECTOR, f"a copy of {source.name}")
    _cli.run(["cp", "--reflink=auto", "--sparse=always", "--preserve=mode,ownership", "--", source, target])


@contextlib.contextmanager
def raw_view(links: t.Sequence[Link], folder: Path, tick: _qemu_img.Tick | None = None) -> t.Iterator[Path]:
    """The content of a chain's first disk as a raw file; it must not be written to where that disk is raw itself.

    :param folder: where a raw copy (with holes where nothing is) may be for as long as the block runs.
    :raises FactoryError: the disk is damaged, or there is no space for it.
    """
    top = links[0]
    if top.format == "raw":
        yield top.path
        return
    for link in links:
        _qemu_img.check(link.path, link.format)
    with _state.explain_os_errors(folder):
        _state.need_space(folder, _qemu_img.measure(top.path, top.format) + _MARGIN, f"a look into {top.path.name}")
        _state.reap_partials(folder)
        # A name that tells whose it is: a killed process leaves it, and the next one removes it.
        work = _state.partial_path(folder / f"{top.path.name[:64]}.view", Owner.of())
        work.mkdir(mode=0o700)
    try:
        raw = work / "disk"
        _qemu_img.convert(
            top.path, raw, source_fmt=top.format, target_fmt="raw", coroutines=16, out_of_order=True, tick=tick
        )
        yield raw
    finally:
        _state.remove(work)
