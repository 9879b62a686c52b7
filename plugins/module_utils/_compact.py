# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What the file systems on a disk do not use becomes holes in the disk's file.

A raw disk is worked on in place: only blocks that belong to no file are given back, so that it holds the same whenever it
ends. Any other format is unpacked, trimmed, and written anew beside the old file, whose place it takes when it was compared.
"""

from __future__ import annotations

import dataclasses
import os
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import (
    _disk_chain,
    _overlay,
    _partitions,
    _private_mounts,
    _qemu_img,
    _state,
    _trim,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

TARGET = 1.05
"""Bytes that a volume takes for each byte that its file system uses, when all went well."""

_WORTH = 1 << 20
_SECTOR = 512


@dataclasses.dataclass
class Row:
    """What became of one volume; bytes. ``used`` is None where its file system does not tell, C(name) is a logical volume's."""

    number: int
    name: str
    fstype: str
    size: int
    before: int
    used: int | None = None
    after: int = 0
    skipped: str | None = None

    @property
    def known_as(self) -> int | str:
        return self.name or self.number


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
    kept = [f"volume {row.known_as} ({row.fstype or 'unknown'}): {row.skipped}" for row in rows if row.skipped]
    result.extra["notes"] = kept
    if before - after >= _WORTH:
        result.act(f"compact {path}: {before >> 20} → {after >> 20} MiB")
    result.diff = {
        "before": {"path": str(path), "allocated": before, "volumes": {row.known_as: row.before for row in rows}},
        "after": {"path": str(path), "allocated": after, "volumes": {row.known_as: row.after for row in rows}},
    }
    return result


def _allocated(path: Path) -> int:
    return path.stat().st_blocks * _SECTOR


def _compact_raw(disk: Path, order: Order, progress: Progress, check_mode: bool) -> list[Row]:
    rows = _look(disk, order.repair, progress)
    if check_mode:
        for row in rows:
            row.after = row.before if row.skipped or row.used is None else min(row.before, row.used)
        return rows
    if any(_trim.is_unclean(disk, volume) for volume in _partitions.volumes(disk)):
        # Only with repair one gets here. That happens in a copy, as it may go wrong half way.
        _state.reap_partials(disk.parent)
        with _state.partial(disk) as part:
            _disk_chain.copy(disk, part)
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
        row = Row(volume.number, volume.name, volume.fstype, volume.size, _trim.allocated_in(disk, volume))
        row.after = row.before
        row.skipped = _trim.unsupported(volume)
        if not row.skipped and _trim.is_unclean(disk, volume) and not repair:
            raise _trim.unclean(disk, volume, "it was not unmounted")
        if volume.fstype in _partitions.EXT and not row.skipped:
            row.used = _trim.ext_used(disk, volume)
        rows.append(row)
    return rows


def _trim_all(disk: Path, rows: t.Sequence[Row], repair: bool, progress: Progress) -> None:
    for row, volume in zip(rows, _partitions.volumes(disk)):
        if row.skipped:
            continue
        progress.phase(f"trimming volume {row.known_as} ({volume.fstype})")
        if volume.fstype in _partitions.EXT:
            if volume.offset and _trim.is_unclean(disk, volume):
                _trim.repair_apart(disk, volume, progress)
            else:
                _trim.trim_ext(disk, volume, repair, progress)
            row.used = _trim.ext_used(disk, volume)
        elif volume.fstype == "swap":
            row.skipped = _trim.trim_swap(disk, volume)
        else:
            row.used = _private_mounts.alone(_trim.trimmer(disk, volume, repair))
        row.after = _trim.allocated_in(disk, volume)
        # The journal may be a hole: then what is allocated is less than what is used.
        if row.used and row.after > row.used * TARGET and volume.fstype in _partitions.EXT and os.geteuid() == 0:
            _trim.zero_free(disk, volume)
            row.after = _trim.allocated_in(disk, volume)
        progress.report(done=row.after, total=row.before)
