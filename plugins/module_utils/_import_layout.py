# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The layout of an imported disk: whether the stages after it can work on it, and what of it does not suit a cloud."""

from __future__ import annotations

import dataclasses
import typing as t
from pathlib import Path, PurePosixPath

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli, _esp, _partitions
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

_XBOOTLDR = "bc13c2ff-59e6-4262-a352-b275fd6f7172"
_SWAP = ("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f", "82")
_EXTENDED = ("5", "f", "85")
_LARGEST_BOOT = 4 << 30
_FSCK_SECONDS = 3600.0

Tick = t.Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Layout:
    """What is on a disk.

    :ivar root: the partition with the root file system; ``volumes`` all of them.
    :ivar bios: whether there is a boot loader for BIOS; ``uefi``: whether there is one for UEFI.
    :ivar warnings: what does not suit a cloud, one line each.
    """

    root: _partitions.Volume
    volumes: tuple[_partitions.Volume, ...]
    bios: bool
    uefi: bool
    warnings: tuple[str, ...]

    def dump(self) -> dict[str, t.Any]:
        """For a module's result and the records."""
        return {
            "root": _dump(self.root),
            # What its fstab may call by the number of a partition.
            "volumes": [_dump(volume) for volume in self.volumes if volume.uuid and not volume.name],
            "bios": self.bios,
            "uefi": self.uefi,
        }


def grow(raw: Path, size: int) -> None:
    """Make a raw disk larger; the second copy of a GPT moves to the new end."""
    with raw.open("r+b") as stream:
        stream.truncate(size)
    if _gpt(raw):
        _cli.run(["sfdisk", "--quiet", "--relocate", "gpt-bak-std", raw], timeout=60)


def _gpt(raw: Path) -> bool:
    with raw.open("rb") as stream:
        stream.seek(512)
        return stream.read(8) == b"EFI PART"


def look(raw: Path, where: str, key: str, tick: Tick) -> Layout:
    """What is on a raw disk; file systems (ext) that were in use are brought into order.

    :param where: where the disk is from, for messages.
    :raises FactoryError: there is no root file system that the stages after this one can work on, or it is damaged.
    """
    found = _partitions.volumes(raw)
    hidden = [
        row for volume in found if volume.fstype == _partitions.LVM for row in _partitions.out_of_reach(raw, volume)
    ]
    root = _root(found, hidden, where, key)
    warnings = [
        line for volume in found if volume.fstype in _partitions.EXT for line in _repair(raw, volume, where, key, tick)
    ]
    with raw.open("rb") as stream:
        bios = any(stream.read(_partitions.BOOT_CODE))
    system = [volume for volume in found if volume.kind in _partitions.ESP and volume.fstype == "vfat"]
    uefi = any(_esp.programs(raw, volume) for volume in system)
    warnings += [f"{name or 'LVM'} is left as it is: {why}" for name, why in hidden]
    warnings += _unsuitable(raw, found, root)
    warnings += [line for volume in system if (line := _esp.make_findable(raw, volume))]
    if not (bios or uefi):
        warnings.append(
            "it has no boot loader in its first sector and none on an EFI system partition, so that it may not boot"
        )
    return Layout(root, tuple(found), bios, uefi, tuple(warnings))


def _root(
    found: t.Sequence[_partitions.Volume], hidden: t.Sequence[tuple[str, str]], where: str, key: str
) -> _partitions.Volume:
    """The root file system.

    :param hidden: name of each logical volume that cannot be worked on, and why.
    """
    lost = next((row for row in hidden if _partitions.is_root_name(row[0])), None)
    if not lost and any(volume.fstype in _partitions.FILE_SYSTEMS for volume in found):
        return _partitions.root_of(found, Path(where))
    kinds = sorted({volume.fstype for volume in found if volume.fstype})
    named = {_partitions.LVM: "LVM", "crypto_LUKS": "encrypted", "linux_raid_member": "RAID"}
    seen = ", ".join(named.get(kind, kind) for kind in kinds) or "nothing that blkid knows"
    reasons = [lost] if lost else hidden
    seen += "".join(f"; {name or 'LVM'}: {why}" for name, why in reasons)
    raise FactoryError(
        f"has no root file system that the factory can work on (it has {seen})",
        where=where,
        key=key,
        mend="give a disk with its root on a partition, or on a logical volume in one piece, with "
        + ", ".join(_partitions.FILE_SYSTEMS),
    )


def _repair(raw: Path, volume: _partitions.Volume, where: str, key: str, tick: Tick) -> list[str]:
    """Replay the journal and mend what can be mended without a question (e2fsck -p); tells when there was something.

    What is in order is not written to.
    """
    place = _partitions.ext_device(raw, volume)
    looked = _cli.run(["e2fsck", "-f", "-n", place], timeout=_FSCK_SECONDS, check=False, tick=tick)
    state, to_replay = _partitions.ext_state(raw, volume)
    if looked.rc == 0 and state & 1 and not to_replay:
        return []
    done = _cli.run(["e2fsck", "-f", "-p", place], timeout=_FSCK_SECONDS, check=False, tick=tick)
    if done.rc & ~3:
        said = _cli.tail(done.stdout + done.stderr, 3).replace(place, "the disk")
        raise FactoryError(
            f"its file system ({volume.title}) is damaged: {said}",
            where=where,
            key=key,
            mend="run fsck where it comes from, or import it while that machine is off",
        )
    return [f"the file system on {volume.title} was not in order (in use, or not unmounted): e2fsck has mended it"]


def _unsuitable(raw: Path, found: t.Sequence[_partitions.Volume], root: _partitions.Volume) -> list[str]:
    """What the image guidelines of EGI advise against: LVM, swap, a separate /boot, a root that cannot grow."""
    warnings = []
    for volume in found:
        if volume.fstype == _partitions.LVM:
            warnings.append(f"{volume.title} is LVM, which does not grow with the disk of a cloud's machine")
        elif volume.fstype == "swap" or volume.kind in _SWAP:
            warnings.append(f"{volume.title} is swap, which wastes space in every copy of the image")
    boot = _separate_boot(raw, found, root)
    if boot:
        warnings.append(f"{boot.title} is a separate /boot, which does not grow with its kernels")
    behind = [volume for volume in found if volume.offset > root.offset and volume.kind not in _EXTENDED]
    if behind and not root.name:
        warnings.append(f"the root ({root.title}) is not the last on the disk ({behind[-1].title} is): it cannot grow")
    if root.number == 0:
        warnings.append("the disk has no partitions, so that most boot loaders have no place on it")
    return warnings


def _separate_boot(
    raw: Path, found: t.Sequence[_partitions.Volume], root: _partitions.Volume
) -> _partitions.Volume | None:
    others = [volume for volume in found if volume != root and volume.fstype in _partitions.FILE_SYSTEMS]
    if root.fstype in _partitions.EXT:
        argv = ["debugfs", "-R", "cat /etc/fstab", _partitions.ext_device(raw, root)]
        mounts = _partitions.mounts(_cli.run(argv, timeout=60, check=False).stdout, found, root)
        told = [volume for volume, point in mounts if point == PurePosixPath("/boot")]
        if told:
            return told[0]
        others = [volume for volume in others if volume.kind == _XBOOTLDR]
    # Without a look into it: what is small and before the root, as all installers make it.
    plain = [volume for volume in others if not volume.name]
    small = (v for v in plain if v.kind == _XBOOTLDR or (v.size <= _LARGEST_BOOT and v.offset < root.offset))
    return next(small, None)


def _dump(volume: _partitions.Volume) -> dict[str, t.Any]:
    return {"partition": volume.number, "name": volume.name, "fstype": volume.fstype, "uuid": volume.uuid}
