# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""From the file that came to a raw disk with holes: out of its archive, its compression and its format, in this order.

What qemu-img is to read was judged before by its header (see :mod:`_foreign`), and never has more than the disk of the image.
"""

from __future__ import annotations

import contextlib
import dataclasses
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _foreign, _ova, _qemu_img
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._import_source import too_large
from ansible_collections.cloudimg.factory.plugins.module_utils._import_stream import SparseWriter, decompress
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.plugins.module_utils._source_disk import KEY
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors, remove

_OVERHEAD = 64 << 20
"""Bytes that the tables of a disk file may take beside its content, with a hundredth of it."""

_CYLINDER = 255 * 63 * 512
"""Bytes by which a VHD may be larger than what was written to it: QEMU and others round up to a whole cylinder."""

_BY_NAME = {"raw.gz": "gzip", "raw.xz": "xz", "raw.zst": "zstd", "raw.bz2": "bzip2"}
_QEMU_NAMES = {"vhd": "vpc"}
_SECTOR = 512


Pieces = t.Generator[bytes, None, None]


@dataclasses.dataclass(frozen=True)
class Unpacked:
    """What the file was: its format (C(raw.xz), C(ova: vmdk), …), and the size of the disk in bytes."""

    format: str
    virtual_size: int


@dataclasses.dataclass(frozen=True)
class Wanted:
    """How a file is to be taken.

    :ivar shown: where it is from, for messages.
    :ivar limit: bytes that the disk may have.
    """

    shown: str
    limit: int
    format: str | None = None
    disk: str | None = None


def unpack(part: Path, raw: Path, wanted: Wanted, progress: Progress) -> Unpacked:
    """Make ``raw`` of ``part``, which is gone then.

    :raises FactoryError: it is no disk, another one than was said, or larger than allowed. Then ``raw`` is gone.
    """
    inner = raw.with_name(f"{raw.name}.inner")
    try:
        try:
            return _unpack(part, inner, raw, wanted, progress)
        finally:
            remove(inner)
    except BaseException as exc:
        remove(raw)
        if isinstance(exc, FactoryError):
            for path in (inner, part):
                # The user knows the file by the name that it has outside.
                exc.where = (exc.where or wanted.shown).replace(str(path), wanted.shown)
                exc.problem = exc.problem.replace(str(path), wanted.shown)
        raise


def _unpack(part: Path, inner: Path, raw: Path, wanted: Wanted, progress: Progress) -> Unpacked:
    kind = wanted.format
    if kind == "raw":
        return _take_raw(part, raw, wanted, "raw")
    if kind == "ova" or (kind is None and _is_ova(part)):
        _take_out(part, inner, wanted, progress)
        return _judge(inner, raw, dataclasses.replace(wanted, format=None), progress, "ova: ")
    if wanted.disk:
        mend = "remove it, or set format to ova if it is one"
        raise FactoryError("is no appliance (OVA)", where=wanted.shown, key=f"{KEY}.disk", mend=mend)
    packed = _BY_NAME.get(kind or "") or (_foreign.compression(part) if kind is None else None)
    if not packed:
        return _judge(part, raw, wanted, progress, "")
    exact = kind is not None
    progress.phase(f"unpacking {wanted.shown}")
    limit = wanted.limit if exact else wanted.limit + wanted.limit // 100 + _OVERHEAD
    _pour(decompress(part, packed, progress.check), inner, limit, wanted, progress)
    remove(part)
    suffix = next(name for name, how in _BY_NAME.items() if how == packed)[3:]
    if exact:
        return _take_raw(inner, raw, wanted, str(kind))
    found = _judge(inner, raw, wanted, progress, "")
    return dataclasses.replace(found, format=found.format + suffix)


def _is_ova(part: Path) -> bool:
    with explain_os_errors(part), part.open("rb") as stream:
        return stream.read(262)[257:] == b"ustar"


def _take_out(part: Path, inner: Path, wanted: Wanted, progress: Progress) -> None:
    """Copy the one disk of an appliance out of it."""
    progress.phase(f"checking {wanted.shown}")
    disk = _ova.open_disk(part, wanted.disk, f"{KEY}.disk", lambda done: progress.report(done=done))
    if (disk.capacity or 0) > wanted.limit:
        raise too_large(f"{wanted.shown}: {disk.member.name}", wanted.limit, disk.capacity)
    progress.phase(f"taking {disk.member.name} out of {wanted.shown}")
    with explain_os_errors(part), part.open("rb") as stream:
        _pour(_ova.chunks(stream, disk.member), inner, disk.member.size, wanted, progress)
    remove(part)
    if disk.compression:
        packed = inner.with_name(f"{inner.name}.gz")
        inner.rename(packed)
        try:
            limit = wanted.limit + wanted.limit // 100 + _OVERHEAD
            _pour(decompress(packed, "gzip", progress.check), inner, limit, wanted, progress)
        finally:
            remove(packed)


def _pour(pieces: Pieces, target: Path, limit: int, wanted: Wanted, progress: Progress) -> None:
    with explain_os_errors(target), target.open("wb") as sink:
        writer = SparseWriter(sink, limit, too_large(wanted.shown, wanted.limit))
        # An error here must not leave the file open that they come from.
        with contextlib.closing(pieces):
            for piece in pieces:
                writer.write(piece)
                progress.report(done=writer.position)
        writer.finish()


def _judge(file: Path, raw: Path, wanted: Wanted, progress: Progress, before: str) -> Unpacked:
    """Convert a disk file by the format that its own header tells."""
    judged = _foreign.judge(file)
    expected = _QEMU_NAMES.get(wanted.format or "", wanted.format)
    if expected and expected != judged.format:
        raise FactoryError(
            f"is {judged.format}, not {wanted.format}",
            where=wanted.shown,
            key=f"{KEY}.format",
            mend="correct it, or leave it out",
        )
    if judged.virtual_size > wanted.limit + (_CYLINDER if judged.format == "vpc" else 0):
        raise too_large(wanted.shown, wanted.limit, judged.virtual_size)
    if judged.format == "raw":
        return _take_raw(file, raw, wanted, f"{before}raw")
    progress.phase(f"checking {wanted.shown}")
    info = _qemu_img.safe_info(file)
    try:
        _qemu_img.check(file, judged.format)
    except FactoryError as exc:
        exc.mend = "fetch it again, or export it anew where it comes from"
        raise
    progress.phase(f"reading {wanted.shown}")

    def tick(percent: float) -> None:
        progress.report(done=int(info.virtual_size * percent / 100), total=info.virtual_size)

    _qemu_img.convert(
        file, raw, source_fmt=judged.format, target_fmt="raw", coroutines=16, out_of_order=True, tick=tick
    )
    remove(file)
    _cut(raw, wanted)
    return Unpacked(before + judged.format, info.virtual_size)


def _cut(raw: Path, wanted: Wanted) -> None:
    """Take off what VHD adds to a disk, so that it ends with a whole cylinder."""
    size = raw.stat().st_size
    if size <= wanted.limit:
        return
    with explain_os_errors(raw), raw.open("r+b") as stream:
        stream.seek(wanted.limit)
        if any(stream.read(size - wanted.limit)):
            raise too_large(wanted.shown, wanted.limit, size)
        stream.truncate(wanted.limit)


def _take_raw(file: Path, raw: Path, wanted: Wanted, name: str) -> Unpacked:
    size = file.stat().st_size
    if size == 0:
        raise FactoryError("is empty", where=wanted.shown, mend="give a disk")
    if size > wanted.limit:
        raise too_large(wanted.shown, wanted.limit, size)
    with explain_os_errors(raw):
        file.rename(raw)
        if size % _SECTOR:
            with raw.open("r+b") as stream:
                stream.truncate(-(-size // _SECTOR) * _SECTOR)
    return Unpacked(name, size)
