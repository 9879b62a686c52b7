# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""A disk file as it is wanted: made, or changed into that without ever being half done.

What is made, or written anew, has a partial name until it is whole, checked and (where that can be) compared with what it
replaces. Only a change of the size is done in place: QEMU writes the header of a qcow2 last.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import (
    _disk_chain,
    _gpt,
    _partitions,
    _qemu_img,
    _state,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result

_HEAD = 2 << 20
"""Bytes at the beginning of a disk in which partition tables and superblocks are."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The options of M(cloudimg.factory.disk_image). Sizes are in bytes."""

    path: Path
    format: str | None = None
    size: int | None = None
    backing: Path | None = None
    backing_format: str | None = None
    flat: bool = False
    rebase: str = "safe"
    shrink: bool = False
    trusted: bool = False
    repair: str | None = None
    cluster_size: int | None = None
    preallocation: str | None = None


def ensure_absent(path: Path, *, check_mode: bool = False) -> Result:
    """Have no disk at ``path``.

    :raises FactoryError: it is no regular file, or in use.
    """
    result = Result(diff=_diff({"exists": os.path.lexists(path)}, {"exists": False}))
    if not os.path.lexists(path):
        return result
    if not path.is_symlink() or path.exists():
        _disk_chain.refuse_in_use(_disk_chain.regular(path))
    result.act(f"remove {path}")
    if not check_mode:
        with _state.explain_os_errors(path):
            path.unlink()
    return result


def ensure_present(wanted: Wanted, *, check_mode: bool = False) -> Result:
    """Have the disk; returns a Result with C(disk), see :func:`describe`.

    :raises FactoryError: what is there is another disk than could become that one without a loss.
    """
    if not check_mode and wanted.path.parent.is_dir():
        _state.reap_partials(wanted.path.parent)
    result = Result(extra={"disk": None})
    before: dict[str, t.Any] = {}
    if not os.path.lexists(wanted.path):
        _make(wanted, result, check_mode)
    else:
        wanted = dataclasses.replace(wanted, path=_disk_chain.regular(wanted.path))
        before = _shown(wanted)
        _change(wanted, result, check_mode)
    after = {**before, **_meant(wanted)} if check_mode else _shown(wanted)
    result.extra["disk"] = after
    result.diff = _diff(before, after)
    return result


def _shown(wanted: Wanted) -> dict[str, t.Any]:
    named = None if wanted.format == "raw" else _disk_chain.named_below(wanted.path)
    if named and not named[0].exists():
        return {"path": str(wanted.path), "format": "qcow2", "backing": str(named[0]), "backing_format": named[1]}
    links = _disk_chain.chain(wanted.path, wanted.format, trusted=True)
    return describe(_qemu_img.info(wanted.path, links[0].format))


def describe(info: _qemu_img.ImageInfo) -> dict[str, t.Any]:
    """What modules return of a disk."""
    return {
        "path": str(info.path),
        "format": info.format,
        "virtual_size": info.virtual_size,
        "actual_size": info.actual_size,
        "cluster_size": info.cluster_size,
        "backing": str(info.backing) if info.backing else None,
        "backing_format": info.backing_format,
    }


def _meant(wanted: Wanted) -> dict[str, t.Any]:
    """What check mode knows of the disk that there would be."""
    found: dict[str, t.Any] = {"path": str(wanted.path)}
    for key, value in (("format", wanted.format), ("virtual_size", wanted.size), ("backing", wanted.backing)):
        if value is not None:
            found[key] = str(value) if isinstance(value, Path) else value
    return {**found, "backing": None, "backing_format": None} if wanted.flat else found


def _diff(before: t.Mapping[str, t.Any], after: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    return {"before": dict(before), "after": dict(after)}


def _below(wanted: Wanted) -> _disk_chain.Link | None:
    """The disk on which the wanted one is to stand, judged."""
    if wanted.backing is None:
        return None
    found = _disk_chain.chain(wanted.backing, wanted.backing_format, trusted=wanted.trusted)[0]
    # Named as it was given: that may be a symbolic link on purpose.
    return _disk_chain.Link(wanted.backing.absolute(), found.format)


def _make(wanted: Wanted, result: Result, check_mode: bool) -> None:
    fmt = wanted.format or "qcow2"
    below = _below(wanted)
    where = str(wanted.path)
    if below and fmt != "qcow2":
        raise FactoryError(
            f"a disk of the format {fmt} cannot stand on another", where=where, key="format", mend="use qcow2"
        )
    if wanted.size is None and not below:
        raise FactoryError("is needed to make a disk", where=where, key="size", mend="set it, or backing")
    if below and wanted.size is not None:
        _refuse_smaller_overlay(wanted, below)
    result.act(f"make {where}: there is none yet")
    if check_mode:
        return
    options = {"cluster_size": str(wanted.cluster_size or ""), "preallocation": wanted.preallocation or ""}
    if wanted.preallocation in ("full", "falloc") and wanted.path.parent.is_dir():
        _state.need_space(wanted.path.parent, wanted.size or 0, f"the disk {wanted.path.name}")
    with _state.partial(wanted.path) as part:
        _qemu_img.create(
            part,
            wanted.size,
            fmt,
            backing=below.path if below else None,
            backing_fmt=below.format if below else "qcow2",
            options={key: value for key, value in options.items() if value},
        )


def _refuse_smaller_overlay(wanted: Wanted, below: _disk_chain.Link) -> None:
    size = _qemu_img.info(below.path, below.format).virtual_size
    if wanted.size is not None and wanted.size < size:
        raise FactoryError(
            f"{wanted.size} bytes are less than the disk below has ({size})",
            where=str(wanted.path),
            key="size",
            mend="give that or more, or leave it out",
        )


def _change(wanted: Wanted, result: Result, check_mode: bool) -> None:
    """Bring a disk that is there to what is wanted."""
    named = None if wanted.format == "raw" else _disk_chain.named_below(wanted.path)
    if wanted.backing and named and not _same(named[0], wanted.backing):
        _rebase(wanted, named, result, check_mode)
        if check_mode:
            return  # what follows would look at the disk below that it does not have yet
    links = _disk_chain.chain(wanted.path, wanted.format, trusted=wanted.trusted, below=wanted.backing)
    fmt = links[0].format
    if wanted.backing and not named:
        problem, mend = "stands on no other disk", "remove it first, or leave out backing"
        raise FactoryError(problem, where=str(wanted.path), key="backing", mend=mend)
    _repair(wanted, fmt, result, check_mode)
    if wanted.flat and len(links) > 1:
        _flatten(wanted, links, result, check_mode)
    info = _qemu_img.info(wanted.path, fmt)
    if wanted.size is not None and wanted.size != info.virtual_size:
        _resize(wanted, fmt, info.virtual_size, result, check_mode)


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _rebase(wanted: Wanted, named: tuple[Path, str], result: Result, check_mode: bool) -> None:
    below = _below(wanted)
    unsafe = wanted.rebase == "unsafe"
    if below is None:
        return
    if not unsafe:
        # By that the present one is known to be there, and judged; whoever wants another one need not have named it.
        _disk_chain.chain(wanted.path, wanted.format, trusted=wanted.trusted)
    _disk_chain.refuse_in_use(wanted.path)
    result.act(f"{'name' if unsafe else 'put it on'} {below.path} instead of {named[0]}")
    if check_mode:
        return
    with _state.partial(wanted.path) as part:
        _disk_chain.copy(wanted.path, part)
        _qemu_img.rebase(part, below.path, below.format, unsafe=unsafe)
        _qemu_img.check(part)
        if not unsafe:
            _refuse_other_content(wanted.path, "qcow2", part, "qcow2")


def _repair(wanted: Wanted, fmt: str, result: Result, check_mode: bool) -> None:
    if fmt == "raw":
        return
    counts = _qemu_img.examine(wanted.path, fmt)
    damaged, leaks = counts.get("corruptions", 0), counts.get("leaks", 0)
    if damaged and wanted.repair != "all":
        raise FactoryError(
            f"is corrupted ({damaged} errors)",
            where=str(wanted.path),
            mend="restore it, or set repair to all, which may cost data",
        )
    if not wanted.repair or not (damaged or leaks):
        return
    _disk_chain.refuse_in_use(wanted.path)
    result.act(f"repair {wanted.path}: {damaged} errors, {leaks} leaked clusters")
    if check_mode:
        return
    with _state.partial(wanted.path) as part:
        _disk_chain.copy(wanted.path, part)
        _qemu_img.examine(part, fmt, wanted.repair)
        _qemu_img.check(part, fmt)


def _flatten(wanted: Wanted, links: t.Sequence[_disk_chain.Link], result: Result, check_mode: bool) -> None:
    _disk_chain.refuse_in_use(wanted.path)
    result.act(f"take in what is in {', '.join(str(link.path) for link in links[1:])}")
    if check_mode:
        return
    info = _qemu_img.info(wanted.path)
    needed = _qemu_img.measure(wanted.path) + (64 << 20)
    _state.need_space(wanted.path.parent, needed, f"the flat {wanted.path.name}")
    with _state.partial(wanted.path) as part:
        _qemu_img.convert(
            wanted.path, part, source_fmt="qcow2", target_fmt="qcow2", cluster_size=info.cluster_size, coroutines=16
        )
        _qemu_img.check(part)
        _refuse_other_content(wanted.path, "qcow2", part, "qcow2")
        _disk_chain.take_after(part, wanted.path)


def _refuse_other_content(old: Path, old_fmt: str, new: Path, new_fmt: str) -> None:
    if not _qemu_img.compare(old, old_fmt, new, new_fmt):
        raise FactoryError(
            "would hold something else than before", where=str(old), mend="check this machine's memory and disks"
        )


def _resize(wanted: Wanted, fmt: str, size: int, result: Result, check_mode: bool) -> None:
    new = wanted.size or 0
    if new < size and not wanted.shrink:
        raise FactoryError(
            f"is larger ({size} bytes) than {new} bytes",
            where=str(wanted.path),
            key="size",
            mend="set shrink, if it is to become smaller",
        )
    _disk_chain.refuse_in_use(wanted.path)
    table = refuse_loss(wanted.path, fmt, new) if new < size else None
    result.act(f"{'grow' if new > size else 'shrink'} {wanted.path}: {size} → {new} bytes")
    if not check_mode:
        # After each of these the disk is whole, wherever this ends.
        for place, data in table.moved(new) if table else []:
            _qemu_img.write(wanted.path, fmt, place, data)
        _qemu_img.resize(wanted.path, new, fmt, shrink=new < size)


def refuse_loss(path: Path, fmt: str, size: int) -> _gpt.Table | None:
    """Raise FactoryError where a disk that is cut off at ``size`` bytes loses a partition, a file system or other data.

    :returns: the GPT, of which the copy at the disk's end is not taken for a loss.
    """
    mend = "make its last partition smaller first, or give a larger size"
    with tempfile.TemporaryDirectory(prefix="cloudimg-", dir="/var/tmp") as folder:
        head = Path(folder, "head")
        _qemu_img.copy_head(path, fmt, head, _HEAD)
        with head.open("r+b") as stream:
            table = _gpt.read(stream.read(_HEAD), str(path))
            stream.truncate(whole_size := _qemu_img.info(path, fmt).virtual_size)
        room = table.copy_size if table else 0
        if table and size - room < table.end:
            raise FactoryError(f"its GPT has no room in {size} bytes", where=str(path), key="size", mend=mend)
        for volume in _partitions.volumes(head):
            if volume.number == 0 and not volume.fstype:
                continue
            what = volume.title if volume.number else f"its file system ({volume.fstype})"
            if volume.offset + volume.size > size - room:
                raise FactoryError(f"{what} would be cut off at {size} bytes", where=str(path), key="size", mend=mend)
        overlay = Path(folder, "cut.qcow2")
        _qemu_img.create(overlay, size, backing=path, backing_fmt=fmt)
        whole = Path(folder, "whole.qcow2")
        _qemu_img.create(whole, None, backing=path, backing_fmt=fmt)
        if table and (dropped := table.copy_within(size, whole_size)):
            _qemu_img.write(whole, "qcow2", *dropped)
        # What is longer must hold zeros there.
        if not _qemu_img.compare(whole, "qcow2", overlay, "qcow2"):
            raise FactoryError(f"holds data beyond {size} bytes", where=str(path), key="size", mend=mend)
    return table
