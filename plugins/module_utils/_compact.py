# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What the file systems on a disk do not use becomes holes in the disk's file.

A raw disk is worked on in place: only blocks that belong to no file are given back, so that it holds the same whenever it
ends. Any other format is unpacked, trimmed, and written anew beside the old file, whose place it takes when it was compared.

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

from ansible_collections.cloudimg.factory.plugins.module_utils import (
    _cli,
    _disk_chain,
    _overlay,
    _partitions,
    _private_mounts,
    _qemu_img,
    _state,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._disk_info import ext_device
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

TARGET = 1.05
"""Bytes that a volume takes for each byte that its file system uses, when all went well."""

_EXT = ("ext2", "ext3", "ext4")
_MOUNTED = ("xfs", "btrfs")
_SECONDS = 3600.0
_WORTH = 1 << 20
_SECTOR = 512
_CHUNK = 4 << 20
_SWAP_HEADER = 64 << 10  # pages may be as large as that
_EXT_ERRORS = 4
"""From this return code on, e2fsck(8) has left something wrong."""


@dataclasses.dataclass
class Row:
    """What became of one volume; bytes. ``used`` is None where its file system does not tell."""

    number: int
    fstype: str
    size: int
    before: int
    used: int | None = None
    after: int = 0
    skipped: str | None = None


@dataclasses.dataclass(frozen=True)
class Order:
    """The options of M(cloudimg.factory.disk_compact)."""

    path: Path
    format: str | None = None
    trusted: bool = False
    repair: bool = False
    work_dir: Path | None = None


def compact(order: Order, progress: Progress, *, check_mode: bool = False) -> Result:
    """Compact a disk; returns a Result with C(before), C(after), C(used), C(ratio) and C(volumes).

    :raises FactoryError: the disk is in use or damaged, a file system is not clean, or there is no space to work.
    """
    progress.phase("looking at the disk")
    links = _disk_chain.chain(order.path, order.format, trusted=order.trusted)
    top = links[0]
    _disk_chain.refuse_in_use(top.path)
    if _state.read_json(top.path.with_suffix(".json"), None) and top.path.parent.name == "layers":
        problem, mend = "is in the layer cache, where it is trimmed already", "copy it first"
        raise FactoryError(problem, where=str(top.path), mend=mend)
    before = _allocated(top.path)
    try:
        if top.format == "raw":
            rows = _compact_raw(top.path, order, progress, check_mode)
        else:
            rows = _compact_packed(links, order, progress, check_mode)
    except FactoryError as exc:
        if not exc.where or _state.PARTIAL not in exc.where or exc.details.get("errno"):
            raise
        # The name of the copy on which it is worked says nothing to anybody.
        raise FactoryError(exc.problem, where=str(top.path), key=exc.key, mend=exc.mend, details=exc.details) from exc
    after = _allocated(top.path) if not check_mode else max(before - sum(row.before - row.after for row in rows), 0)
    return _told(top.path, rows, before, after)


def _told(path: Path, rows: t.Sequence[Row], before: int, after: int) -> Result:
    judged = [row for row in rows if row.used is not None]
    used = sum(row.used or 0 for row in judged)
    taken = sum(row.after for row in judged)
    result = Result()
    ratio = round(taken / used, 3) if used else None
    result.extra = {"before": before, "after": after, "used": used, "ratio": ratio, "target": TARGET}
    result.extra["volumes"] = [dataclasses.asdict(row) for row in rows]
    kept = [f"volume {row.number} ({row.fstype or 'unknown'}): {row.skipped}" for row in rows if row.skipped]
    result.extra["notes"] = kept
    if before - after >= _WORTH:
        result.act(f"compact {path}: {before >> 20} → {after >> 20} MiB")
    result.diff = {
        "before": {"path": str(path), "allocated": before, "volumes": {row.number: row.before for row in rows}},
        "after": {"path": str(path), "allocated": after, "volumes": {row.number: row.after for row in rows}},
    }
    return result


def _allocated(path: Path) -> int:
    return path.stat().st_blocks * _SECTOR


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


def _compact_raw(disk: Path, order: Order, progress: Progress, check_mode: bool) -> list[Row]:
    rows = _look(disk, order.repair, progress)
    if check_mode:
        for row in rows:
            row.after = row.before if row.skipped or row.used is None else min(row.before, row.used)
        return rows
    if any(_is_unclean(disk, volume) for volume in _partitions.volumes(disk)):
        # Only with repair one gets here. That happens in a copy, as it may go wrong half way.
        _state.need_space(disk.parent, _allocated(disk), f"a copy of {disk.name}")
        _state.reap_partials(disk.parent)
        with _state.partial(disk) as part:
            _cli.run(["cp", "--reflink=auto", "--sparse=always", "--preserve=mode,ownership", "--", disk, part])
            _trim_all(part, rows, order.repair, progress)
        return rows
    _trim_all(disk, rows, order.repair, progress)
    return rows


def _compact_packed(
    links: t.Sequence[_disk_chain.Link], order: Order, progress: Progress, check_mode: bool
) -> list[Row]:
    top = links[0]
    info = _qemu_img.info(top.path, top.format)
    if info.backing and links[1].format != "qcow2":
        problem = f"stands on a disk of the format {links[1].format}"
        raise FactoryError(problem, where=str(top.path), mend="flatten it first (disk_image, flat)")
    if top.format not in ("qcow2", "vdi", "vhdx", "vpc", "vmdk"):
        raise FactoryError(f"is {top.format}, which is not written here", where=str(top.path), mend="convert it first")
    counts = _qemu_img.examine(top.path, top.format)
    folder = order.work_dir or top.path.parent
    if not check_mode:
        _state.reap_partials(top.path.parent)
    progress.phase("unpacking the disk")
    with _disk_chain.raw_view(links, folder, lambda percent: progress.report(percent=round(percent, 1))) as raw:
        rows = _look(raw, order.repair, progress)
        _trim_all(raw, rows, order.repair, progress)
        freed = sum(row.before - row.after for row in rows)
        flat = not info.backing and not counts.get("compressed_clusters")
        padding = (
            _allocated(top.path) - _allocated(raw) if flat else 0
        )  # clusters of zeros, which unpacking has dropped
        if check_mode or (freed < _WORTH and padding < max(_WORTH, _allocated(raw) // 50)):
            return rows
        progress.phase("writing the disk")
        _state.need_space(top.path.parent, _allocated(top.path), f"the compacted {top.path.name}")
        with _state.partial(top.path) as part:
            _write(raw, part, info, links, counts, progress)
            _disk_chain.take_after(part, top.path)
    return rows


def _write(
    raw: Path,
    part: Path,
    info: _qemu_img.ImageInfo,
    links: t.Sequence[_disk_chain.Link],
    counts: t.Mapping[str, int],
    progress: Progress,
) -> None:
    """Write the trimmed disk in the way of the old one: an overlay stays one, a compressed disk is compressed again."""

    def tick(percent: float) -> None:
        progress.report(percent=round(percent, 1))

    fmt = links[0].format
    if info.backing:
        _overlay.write_overlay(raw, links[1].path, part)
        return
    packed = info.compression if counts.get("compressed_clusters") else None
    _qemu_img.convert(
        raw,
        part,
        source_fmt="raw",
        target_fmt=fmt,
        compressed=packed if fmt == "qcow2" else None,
        cluster_size=info.cluster_size if fmt == "qcow2" else None,
        coroutines=16,
        tick=tick,
    )
    _qemu_img.check(part, fmt)
    progress.phase("comparing the disk")
    if not _qemu_img.compare(raw, "raw", part, fmt, tick=tick):
        raise FactoryError(
            "does not hold what was written to it", where=str(part), mend="check this machine's memory and disks"
        )


def _look(disk: Path, repair: bool, progress: Progress) -> list[Row]:
    """What is on the disk before anything is changed.

    :raises FactoryError: a file system is not clean, and is not to be repaired.
    """
    rows = []
    for volume in _partitions.volumes(disk):
        progress.report()
        row = Row(volume.number, volume.fstype, volume.size, allocated_in(disk, volume))
        row.after = row.before
        row.skipped = _unsupported(volume)
        if not row.skipped and _is_unclean(disk, volume) and not repair:
            raise _unclean(disk, volume, "it was not unmounted")
        if volume.fstype in _EXT and not row.skipped:
            row.used = ext_used(disk, volume)
        rows.append(row)
    return rows


def _unsupported(volume: _partitions.Volume) -> str | None:
    """Why the free space of a volume cannot be found; None where it can."""
    if volume.fstype in (*_EXT, "swap"):
        return None
    if volume.fstype in _MOUNTED:
        if os.geteuid() != 0:
            return "it is trimmed by mounting it, which needs root: run the task with become: true"
        if volume.fstype == "xfs" and not _cli.which("xfs_repair"):
            return "whether it is clean only xfs_repair can tell: install xfsprogs"
        return None
    if not volume.fstype:
        return "nothing that is known is on it"
    return f"free space of {volume.fstype} is not known here"


def _is_unclean(disk: Path, volume: _partitions.Volume) -> bool:
    """Whether a file system was not unmounted, as far as its superblock tells."""
    if volume.fstype in _EXT:
        block = _superblock(disk, volume, 1024)
        state, incompatible = struct.unpack_from("<H", block, 58)[0], struct.unpack_from("<I", block, 96)[0]
        return state & 3 != 1 or bool(incompatible & 4)  # not clean, with errors, or to be recovered from its journal
    if volume.fstype == "btrfs":
        return bool(struct.unpack_from("<Q", _superblock(disk, volume, 65536), 0x60)[0])  # there is a log tree
    return False


def _superblock(disk: Path, volume: _partitions.Volume, at: int) -> bytes:
    with disk.open("rb") as stream:
        stream.seek(volume.offset + at)
        return stream.read(1024).ljust(1024, b"\0")


def ext_used(disk: Path, volume: _partitions.Volume) -> int:
    """Bytes that an ext file system uses, its own tables included."""
    block = _superblock(disk, volume, 1024)
    count, free, log_size = (struct.unpack_from("<I", block, at)[0] for at in (4, 12, 24))
    if struct.unpack_from("<I", block, 96)[0] & 0x80:  # 64-bit block numbers
        count |= struct.unpack_from("<I", block, 0x150)[0] << 32
        free |= struct.unpack_from("<I", block, 0x158)[0] << 32
    return int((count - free) << (10 + min(log_size, 6)))


def _unclean(disk: Path, volume: _partitions.Volume, why: str) -> FactoryError:
    return FactoryError(
        f"the file system {volume.fstype} of volume {volume.number} is not clean: {why}",
        where=str(disk),
        mend="boot it once and shut it down, or set repair",
    )


def _trim_all(disk: Path, rows: t.Sequence[Row], repair: bool, progress: Progress) -> None:
    volumes = {volume.number: volume for volume in _partitions.volumes(disk)}
    for row in rows:
        if row.skipped:
            continue
        volume = volumes[row.number]
        progress.phase(f"trimming volume {volume.number} ({volume.fstype})")
        if volume.fstype in _EXT:
            if volume.offset and _is_unclean(disk, volume):
                _repair_apart(disk, volume, progress)
            else:
                _trim_ext(disk, volume, repair, progress)
            row.used = ext_used(disk, volume)
        elif volume.fstype == "swap":
            row.skipped = _trim_swap(disk, volume)
        else:
            row.used = _private_mounts.alone(_trimmer(disk, volume, repair))
        row.after = allocated_in(disk, volume)
        # The journal may be a hole: then what is allocated is less than what is used.
        if row.used and row.after > row.used * TARGET and volume.fstype in _EXT and os.geteuid() == 0:
            _zero_free(disk, volume)
            row.after = allocated_in(disk, volume)
        progress.report(done=row.after, total=row.before)


def _trim_ext(disk: Path, volume: _partitions.Volume, repair: bool, progress: Progress) -> None:
    """Have e2fsck punch holes. It does not on the run on which it mends anything, so that is a run of its own."""
    device = ext_device(disk, volume)

    def fsck(*options: str) -> _cli.Completed:
        argv = ["e2fsck", "-f", *options, device]
        return _cli.run(argv, timeout=_SECONDS, check=False, tick=lambda _line: progress.report())

    first = fsck("-y") if repair else fsck("-n")
    if first.rc and not repair:
        raise _unclean(disk, volume, _cli.tail(first.stdout, 2))
    if first.rc >= _EXT_ERRORS:
        raise _beyond_repair(disk, volume, first)
    second = fsck("-y", "-E", "discard")
    if second.rc == 1:  # it found more to mend, and so trimmed nothing
        second = fsck("-y", "-E", "discard")
    if second.rc:
        raise _beyond_repair(disk, volume, second)


def _repair_apart(disk: Path, volume: _partitions.Volume, progress: Progress) -> None:
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
                _trim_ext(apart, alone, True, progress)
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
        f"the file system of volume {volume.number} cannot be repaired: {_cli.tail(done.stdout + done.stderr, 2)}",
        where=str(disk),
        mend="restore the disk from where it comes",
    )


def _zero_free(disk: Path, volume: _partitions.Volume) -> None:
    """Write zeros over free blocks and dig them out, where e2fsck could not have them become holes."""
    if not _cli.which("zerofree"):
        return
    with _private_mounts.loop_device(disk, volume, read_only=False) as node:
        _cli.run(["zerofree", node], timeout=_SECONDS)
    window = ["--offset", str(volume.offset), "--length", str(volume.size)]
    _cli.run(["fallocate", "--dig-holes", *window, disk], timeout=_SECONDS, check=False)


def _trim_swap(disk: Path, volume: _partitions.Volume) -> str | None:
    """Give back all of a swap area but its header; returns why it was not."""
    with disk.open("rb") as stream:
        stream.seek(volume.offset)
        head = stream.read(_SWAP_HEADER)
    if not any(head[page - 10 : page] == b"SWAPSPACE2" for page in (4096, 8192, 16384, 65536)):
        return "a machine is suspended in it"
    window = ["--offset", str(volume.offset + _SWAP_HEADER), "--length", str(max(volume.size - _SWAP_HEADER, 1))]
    done = _cli.run(["fallocate", "--punch-hole", "--keep-size", *window, disk], timeout=_SECONDS, check=False)
    return f"no holes can be made: {_cli.tail(done.stderr, 1)}" if done.rc else None


def _trimmer(disk: Path, volume: _partitions.Volume, repair: bool) -> t.Callable[[], int]:
    """For a child in a namespace of its own: trims a file system by mounting it; returns the bytes that it uses."""

    def trim() -> int:
        if volume.fstype == "xfs" and not repair:
            with _private_mounts.loop_device(disk, volume, read_only=True) as node:
                done = _cli.run(["xfs_repair", "-n", node], timeout=_SECONDS, check=False)
            if done.rc:
                raise _unclean(disk, volume, _cli.tail(done.stderr or done.stdout, 2))
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
