# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Which file systems are on a disk (a raw view of it), and where its own fstab wants them."""

from __future__ import annotations

import dataclasses
import re
import struct
import typing as t
from pathlib import Path, PurePosixPath

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli, _lvm
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

FILE_SYSTEMS = ("ext4", "ext3", "ext2", "xfs", "btrfs")
"""Those that a root file system may be."""

EXT = ("ext2", "ext3", "ext4")
"""Those that the tools of e2fsprogs work on."""

ESP = ("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "ef")
"""What kind an EFI system partition is, in a GPT and in an MBR."""

LVM = "LVM2_member"
"""What blkid calls a physical volume."""

BOOT_CODE = 440
"""Bytes of a disk's first sector that are for a boot loader."""

_MOUNTABLE = (*FILE_SYSTEMS, "vfat")
_ROOT_TYPES = (
    "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",  # x86-64, by the Discoverable Partitions Specification
    "b921b045-1df0-41c3-af44-4c6f280d3fae",  # arm64
)
_ROOT_NAME = re.compile(r"(?i).*/(?:lv|vol)?[-_]?(?:root|slash|ubuntu-lv)[-_]?(?:lv|vol)?\d*")
_BY_NUMBER = re.compile(r"/dev/(?:[vsh]d|xvd)[a-z]+(\d+)|/dev/(?:nvme\d+n|mmcblk)\d+p(\d+)")


@dataclasses.dataclass(frozen=True)
class Volume:
    """A file system: a partition, a whole disk (number 0), or a logical volume on one of them. Offset and size are in bytes.

    :ivar name: C(group/volume) of a logical volume, else empty.
    :ivar devices: how the system on the disk calls a logical volume.
    """

    number: int
    offset: int
    size: int
    kind: str = ""
    fstype: str = ""
    label: str = ""
    uuid: str = ""
    partuuid: str = ""
    name: str = ""
    devices: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """For messages."""
        if self.name:
            return f"logical volume {self.name}"
        return f"partition {self.number}" if self.number else "the whole disk"


def table_of(disk: Path) -> str | None:
    """The kind of partition table of a raw disk, C(gpt) or C(dos) most often; None where there is none."""
    return _probe(disk).get("PTTYPE")


def volumes(disk: Path) -> list[Volume]:
    """What is on a raw disk, with the file systems that blkid recognises.

    Behind a physical volume of LVM come its logical volumes, as far as they are in one piece.
    """
    found = _on_disk(disk)
    return [each for volume in found for each in (volume, *(_logical(disk, volume) if volume.fstype == LVM else []))]


def _on_disk(disk: Path) -> list[Volume]:
    known = _probe(disk)
    if "PTTYPE" not in known:
        return [_named(Volume(0, 0, disk.stat().st_size), known)]
    table = _cli.run(["sfdisk", "--json", disk], timeout=30).json()["partitiontable"]
    sector = int(table.get("sectorsize", 512))
    found = []
    for entry in table.get("partitions", []):
        digits = re.search(r"(\d+)$", entry["node"])
        volume = Volume(
            number=int(digits.group(1)) if digits else 0,
            offset=int(entry["start"]) * sector,
            size=int(entry["size"]) * sector,
            kind=str(entry["type"]).lower(),
            partuuid=str(entry.get("uuid", "")).lower(),
        )
        found.append(_named(volume, _probe(disk, volume)))
    return found


def _logical(disk: Path, physical: Volume) -> list[Volume]:
    try:
        rows = _lvm.logical_volumes(disk, physical.offset, physical.size)
    except _lvm.Damaged:
        return []
    found = [
        Volume(physical.number, row.offset, row.size, name=row.name, devices=row.devices)
        for row in rows
        if not row.problem
    ]
    return [_named(volume, _probe(disk, volume)) for volume in found]


def out_of_reach(disk: Path, physical: Volume) -> list[tuple[str, str]]:
    """The logical volumes on a physical one that are not among :func:`volumes`: the name of each, and why."""
    try:
        rows = _lvm.logical_volumes(disk, physical.offset, physical.size)
    except _lvm.Damaged as exc:
        return [("", str(exc))]
    return [(row.name, row.problem) for row in rows if row.problem]


def is_root_name(name: str) -> bool:
    """Whether installers call the logical volume with the root so (that of /home may be larger)."""
    return bool(_ROOT_NAME.fullmatch(name))


def ext_device(raw: Path, volume: Volume) -> str:
    """How the tools of e2fsprogs name a file system within a file."""
    if "?" in str(raw):
        raise FactoryError("has a question mark in its path", where=str(raw), mend="rename it")
    return f"{raw}?offset={volume.offset}"


def superblock(raw: Path, volume: Volume, at: int) -> bytes:
    """The first KiB of what is ``at`` that position of a file system; zeros where there is less."""
    with raw.open("rb") as stream:
        stream.seek(volume.offset + at)
        return stream.read(1024).ljust(1024, b"\0")


def ext_state(raw: Path, volume: Volume) -> tuple[int, bool]:
    """Of an ext file system its state (1: clean, 2: with errors), and whether its journal has to be replayed.

    Source: s_state and s_feature_incompat (recover), https://docs.kernel.org/filesystems/ext4/super.html.
    """
    block = superblock(raw, volume, 1024)
    state, incompatible = struct.unpack_from("<H", block, 58)[0], struct.unpack_from("<I", block, 96)[0]
    return int(state), bool(incompatible & 4)


def _probe(disk: Path, volume: Volume | None = None) -> dict[str, str]:
    window = ["--offset", str(volume.offset), "--size", str(volume.size)] if volume else []
    done = _cli.run(["blkid", "--probe", "--output", "export", *window, disk], timeout=30, check=False)
    if done.rc not in (0, 2):  # 2: nothing that it knows
        raise _cli.ToolError(done)
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def _named(volume: Volume, known: t.Mapping[str, str]) -> Volume:
    return dataclasses.replace(
        volume, fstype=known.get("TYPE", ""), label=known.get("LABEL", ""), uuid=known.get("UUID", "")
    )


def root_of(found: t.Sequence[Volume], disk: Path) -> Volume:
    """The root file system: on a partition of that type, a logical volume of that name, or else the largest Linux file system.

    :raises FactoryError: there is none.
    """
    candidates = [volume for volume in found if volume.fstype in FILE_SYSTEMS]
    if not candidates:
        seen = ", ".join(sorted({volume.fstype for volume in found if volume.fstype})) or "nothing that blkid knows"
        raise FactoryError(
            f"has no root file system that can be mounted on the builder (it has {seen})",
            where=str(disk),
            mend="install on a plain partition with ext4 or xfs, or set image_connection to ssh",
        )
    return max(
        candidates,
        key=lambda volume: (volume.kind in _ROOT_TYPES, is_root_name(volume.name), volume.size),
    )


def mounts(fstab: str, found: t.Sequence[Volume], root: Volume) -> list[tuple[Volume, PurePosixPath]]:
    """What the system's own fstab mounts besides its root, of the same disk, in the order in which it must be mounted."""
    wanted: dict[PurePosixPath, Volume] = {}
    for line in fstab.splitlines():
        fields = line.split()
        if len(fields) < 3 or fields[0].startswith("#"):
            continue
        point = PurePosixPath(fields[1].replace("\\040", " "))
        volume = _by_source(fields[0], found)
        if (
            volume
            and volume != root
            and volume.fstype in _MOUNTABLE
            and point.is_absolute()
            and ".." not in point.parts
        ):
            wanted[point] = volume
    return [(wanted[point], point) for point in sorted(wanted, key=lambda point: len(point.parts))]


def _by_source(source: str, found: t.Sequence[Volume]) -> Volume | None:
    name, _sep, value = source.partition("=")
    value = value.strip('"')
    if name in ("UUID", "LABEL", "PARTUUID"):
        have = [volume for volume in found if getattr(volume, name.lower()).lower() == value.lower()]
        return have[0] if value and have else None
    number = _BY_NUMBER.fullmatch(source)
    if number:
        wanted = int(number.group(1) or number.group(2))
        return next((volume for volume in found if volume.number == wanted and not volume.name), None)
    return next((volume for volume in found if source in volume.devices), None)
