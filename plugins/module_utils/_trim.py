# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""One volume of a raw disk: whether its file system is clean, what that uses, and how the rest becomes holes.

Sources: ext4 superblock, https://docs.kernel.org/filesystems/ext4/super.html; btrfs superblock,
https://btrfs.readthedocs.io/en/latest/dev/On-disk-format.html; swap header, include/linux/swap.h (union swap_header).
"""

from __future__ import annotations

import dataclasses
import os
import struct
import tempfile
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli, _partitions, _private_mounts, _state
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

MOUNTED = ("xfs", "btrfs")
"""Those that are trimmed by mounting them."""

_SECONDS = 3600.0
_CHUNK = 4 << 20
_SWAP_HEADER = 64 << 10  # pages may be as large as that
_EXT_ERRORS = 4
"""From this return code on, e2fsck(8) has left something wrong."""


def allocated_in(disk: Path, volume: _partitions.Volume) -> int:
    """Bytes of a volume's part of a raw disk that are no holes."""
    total, position, end = 0, volume.offset, volume.offset + volume.size
    with disk.open("rb") as stream:
        while position < end:
            try:
                start = os.lseek(stream.fileno(), position, os.SEEK_DATA)
            except OSError:  # nothing but a hole up to the end
                break
            position = os.lseek(stream.fileno(), start, os.SEEK_HOLE)
            total += max(min(position, end) - start, 0)
    return total


def unsupported(volume: _partitions.Volume) -> str | None:
    """Why the free space of a volume cannot be found; None where it can."""
    if volume.fstype in (*_partitions.EXT, "swap"):
        return None
    if volume.fstype in MOUNTED:
        if os.geteuid() != 0:
            return "it is trimmed by mounting it, which needs root: run the task with become: true"
        if volume.fstype == "xfs" and not _cli.which("xfs_repair"):
            return "whether it is clean only xfs_repair can tell: install xfsprogs"
        return None
    if not volume.fstype:
        return "nothing that is known is on it"
    if volume.fstype == _partitions.LVM:
        return "its logical volumes are looked at one by one; what belongs to none of them stays as it is"
    return f"free space of {volume.fstype} is not known here"


def is_unclean(disk: Path, volume: _partitions.Volume) -> bool:
    """Whether a file system was not unmounted, as far as its superblock tells."""
    if volume.fstype in _partitions.EXT:
        state, to_replay = _partitions.ext_state(disk, volume)
        return state & 3 != 1 or to_replay
    if volume.fstype == "btrfs":
        return bool(
            struct.unpack_from("<Q", _partitions.superblock(disk, volume, 65536), 0x60)[0]
        )  # there is a log tree
    return False


def ext_used(disk: Path, volume: _partitions.Volume) -> int:
    """Bytes that an ext file system uses, its own tables included."""
    block = _partitions.superblock(disk, volume, 1024)
    count, free, log_size = (struct.unpack_from("<I", block, at)[0] for at in (4, 12, 24))
    if struct.unpack_from("<I", block, 96)[0] & 0x80:  # 64-bit block numbers
        count |= struct.unpack_from("<I", block, 0x150)[0] << 32
        free |= struct.unpack_from("<I", block, 0x158)[0] << 32
    return int((count - free) << (10 + min(log_size, 6)))


def unclean(disk: Path, volume: _partitions.Volume, why: str) -> FactoryError:
    return FactoryError(
        f"the file system {volume.fstype} of {volume.title} is not clean: {why}",
        where=str(disk),
        mend="boot it once and shut it down, or set repair",
    )


def trim_ext(disk: Path, volume: _partitions.Volume, repair: bool, progress: Progress) -> None:
    """Have e2fsck punch holes. It does not on the run on which it mends anything, so that is a run of its own."""
    device = _partitions.ext_device(disk, volume)

    def fsck(*options: str) -> _cli.Completed:
        argv = ["e2fsck", "-f", *options, device]
        return _cli.run(argv, timeout=_SECONDS, check=False, tick=lambda _line: progress.report())

    first = fsck("-y") if repair else fsck("-n")
    if first.rc and not repair:
        raise unclean(disk, volume, _cli.tail(first.stdout, 2))
    if first.rc >= _EXT_ERRORS:
        raise _beyond_repair(disk, volume, first)
    second = fsck("-y", "-E", "discard")
    if second.rc == 1:  # it found more to mend, and so trimmed nothing
        second = fsck("-y", "-E", "discard")
    if second.rc:
        raise _beyond_repair(disk, volume, second)


def repair_apart(disk: Path, volume: _partitions.Volume, progress: Progress) -> None:
    """Repair and trim a file system in a file of its own, and put it back.

    When e2fsck has replayed a journal it opens the file anew, and then forgets the offset (e2fsprogs 1.47.0).
    """
    apart = disk.with_name(f"{disk.name}.volume")
    alone = dataclasses.replace(volume, offset=0)
    try:
        with _state.explain_os_errors(disk), disk.open("r+b") as whole, apart.open("w+b") as part:
            part.truncate(volume.size)
            _copy_data(whole, volume.offset, part, 0, volume.size)
            try:
                trim_ext(apart, alone, True, progress)
            except FactoryError as exc:
                raise FactoryError(exc.problem, where=str(disk), mend=exc.mend) from exc
            window = ["--offset", str(volume.offset), "--length", str(volume.size)]
            _cli.run(["fallocate", "--punch-hole", "--keep-size", *window, disk], timeout=_SECONDS)
            _copy_data(part, 0, whole, volume.offset, volume.size)
    finally:
        _state.remove(apart)


def _copy_data(source: t.BinaryIO, start: int, target: t.BinaryIO, at: int, size: int) -> None:
    """Copy what are no holes of ``size`` bytes of a file into another."""
    position, end = start, start + size
    while position < end:
        try:
            position = os.lseek(source.fileno(), position, os.SEEK_DATA)
        except OSError:  # nothing but a hole up to the end
            return
        stop = min(os.lseek(source.fileno(), position, os.SEEK_HOLE), end)
        while position < stop:
            data = os.pread(source.fileno(), min(_CHUNK, stop - position), position)
            if not data:
                return
            os.pwrite(target.fileno(), data, at + position - start)
            position += len(data)


def _beyond_repair(disk: Path, volume: _partitions.Volume, done: _cli.Completed) -> FactoryError:
    return FactoryError(
        f"the file system of {volume.title} cannot be repaired: {_cli.tail(done.stdout + done.stderr, 2)}",
        where=str(disk),
        mend="restore the disk from where it comes",
    )


def zero_free(disk: Path, volume: _partitions.Volume) -> None:
    """Write zeros over free blocks and dig them out, where e2fsck could not have them become holes."""
    if not _cli.which("zerofree"):
        return
    with _private_mounts.loop_device(disk, volume, read_only=False) as node:
        _cli.run(["zerofree", node], timeout=_SECONDS)
    window = ["--offset", str(volume.offset), "--length", str(volume.size)]
    _cli.run(["fallocate", "--dig-holes", *window, disk], timeout=_SECONDS, check=False)


def trim_swap(disk: Path, volume: _partitions.Volume) -> str | None:
    """Give back all of a swap area but its header; returns why it was not."""
    with disk.open("rb") as stream:
        stream.seek(volume.offset)
        head = stream.read(_SWAP_HEADER)
    if not any(head[page - 10 : page] == b"SWAPSPACE2" for page in (4096, 8192, 16384, 65536)):
        return "a machine is suspended in it"
    window = ["--offset", str(volume.offset + _SWAP_HEADER), "--length", str(max(volume.size - _SWAP_HEADER, 1))]
    done = _cli.run(["fallocate", "--punch-hole", "--keep-size", *window, disk], timeout=_SECONDS, check=False)
    return f"no holes can be made: {_cli.tail(done.stderr, 1)}" if done.rc else None


def trimmer(disk: Path, volume: _partitions.Volume, repair: bool) -> t.Callable[[], int]:
    """For a child in a namespace of its own: trims a file system by mounting it; returns the bytes that it uses."""

    def trim() -> int:
        if volume.fstype == "xfs" and not repair:
            with _private_mounts.loop_device(disk, volume, read_only=True) as node:
                done = _cli.run(["xfs_repair", "-n", node], timeout=_SECONDS, check=False)
            if done.rc:
                raise unclean(disk, volume, _cli.tail(done.stderr or done.stdout, 2))
        point = Path(tempfile.mkdtemp(prefix="cloudimg-"))
        try:
            _private_mounts.mount(disk, volume, point, _private_mounts.WRITABLE[volume.fstype])
            try:
                _cli.run(["sync", "--file-system", point], timeout=_SECONDS)
                _cli.run(["fstrim", point], timeout=_SECONDS)
                told = os.statvfs(point)
                return (told.f_blocks - told.f_bfree) * told.f_frsize
            finally:
                _private_mounts.unmount(point)
        finally:
            point.rmdir()

    return trim
