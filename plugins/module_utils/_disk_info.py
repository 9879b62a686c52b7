# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What a disk is and what is installed on it, read without booting it, writing to it, or trusting it.

Headers are judged before any tool opens the disk. Files of ext2, ext3 and ext4 are read by debugfs, and those of an EFI
system partition by mtools, which are plain programs; other file systems are mounted read-only, which is the kernel's work,
and only where the caller allows it.

Sources: boot indicator and signature of an MBR, UEFI specification 2.10 section 5.2; partition types, the Discoverable
Partitions Specification; os-release(5); dpkg-query(1).
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import (
    _cli,
    _confined,
    _disk_chain,
    _esp,
    _os_release,
    _partitions,
    _private_mounts,
    _qemu_img,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._disk_image import describe as described

_BIOS_BOOT = "21686148-6449-6e6f-744e-656564454649"
_DPKG = "var/lib/dpkg/status"
_RPM = tuple(
    f"{folder}/{name}"
    for folder in ("usr/lib/sysimage/rpm", "var/lib/rpm")
    for name in ("rpmdb.sqlite", "Packages.db", "Packages")
)
_SUBVOLUMES = ("", "root/", "@/", "@rootfs/")
"""Where on a btrfs the root file system may be (Fedora, Ubuntu, Debian)."""
_FIELDS = {"Package": "name", "Version": "version", "Architecture": "arch"}

Read = t.Callable[[str], t.Optional[bytes]]
"""Reads a file of the system on the disk by its name without a slash before it; None where there is none."""


@dataclasses.dataclass
class Contents:
    """What is on a disk. ``packages`` is None where it cannot be told, and ``notes`` say why."""

    table: str | None = None
    volumes: list[_partitions.Volume] = dataclasses.field(default_factory=list)
    boot: str | None = None
    os_release: dict[str, str] = dataclasses.field(default_factory=dict)
    packages: list[dict[str, str]] | None = None
    notes: list[str] = dataclasses.field(default_factory=list)


def facts(links: t.Sequence[_disk_chain.Link], *, check: bool = False) -> dict[str, t.Any]:
    """What headers tell of a chain's first disk, sizes in bytes; with ``check`` what C(qemu-img check) counts, too."""
    top = links[0]
    info = _qemu_img.info(top.path, top.format)
    found = {
        **described(info),
        "compression": info.compression,
        "file_size": top.path.stat().st_size,
        "chain": [{**described(_qemu_img.info(link.path, link.format)), "path": str(link.path)} for link in links[1:]],
    }
    if check:
        found["check"] = _qemu_img.examine(top.path, top.format)
    return found


def contents(
    links: t.Sequence[_disk_chain.Link], *, work_dir: Path, mount: bool = False, packages: bool = True
) -> Contents:
    """Look into a disk.

    :param work_dir: where a raw copy may be meanwhile, of a disk that is not raw itself.
    :param mount: whether the kernel may mount (read-only) a file system that no program can read.
    :param packages: whether the installed packages are wanted.
    :raises FactoryError: the disk is damaged, or there is no space for the copy.
    """
    found = Contents()
    with _disk_chain.raw_view(links, work_dir) as raw:
        found.table, found.volumes = _partitions.table_of(raw), _partitions.volumes(raw)
        found.boot = _boot_mode(raw, found)
        for physical in (volume for volume in found.volumes if volume.fstype == _partitions.LVM):
            found.notes += [f"{name or physical.title}: {why}" for name, why in _partitions.out_of_reach(raw, physical)]
        candidates = [volume for volume in found.volumes if volume.fstype in _partitions.FILE_SYSTEMS]
        if not candidates:
            seen = ", ".join(sorted({volume.fstype for volume in found.volumes if volume.fstype}))
            found.notes.append(f"there is no file system with an operating system (there is {seen or 'none'})")
            return found
        root = _partitions.root_of(found.volumes, links[0].path)
        if root.fstype in _partitions.EXT:
            _read_system(_debugfs(raw, root), found, packages)
        elif mount:
            seen_inside = _private_mounts.alone(lambda: _mounted(raw, root, packages))
            found.os_release, found.packages = seen_inside["os_release"], seen_inside["packages"]
            found.notes += seen_inside["notes"]
        else:
            found.notes.append(f"the root file system is {root.fstype}, which is only read where mount is set")
    return found


def _mounted(raw: Path, root: _partitions.Volume, packages: bool) -> dict[str, t.Any]:
    """The same as :func:`_read_system` by mounting the file system; within a namespace only."""
    found = Contents()
    point = Path(tempfile.mkdtemp(prefix="cloudimg-"))
    try:
        _private_mounts.mount(raw, root, point, _private_mounts.READ_ONLY[root.fstype])
        try:
            tops = _SUBVOLUMES if root.fstype == "btrfs" else ("",)
            top = next((top for top in tops if any((point / top / name).is_file() for name in _os_release.PLACES)), "")
            _read_system(lambda name: _private_mounts.read_inside(point, top + name, _confined.LIMIT), found, packages)
        finally:
            _private_mounts.unmount(point)
    finally:
        point.rmdir()
    return dataclasses.asdict(found)


def _debugfs(raw: Path, volume: _partitions.Volume) -> Read:
    """Reads files of an ext file system."""
    device = _partitions.ext_device(raw, volume)

    def read(name: str) -> bytes | None:
        with tempfile.TemporaryDirectory(prefix="cloudimg-") as folder:
            target = Path(folder, "file")
            # Only names of ours get here, so that there is nothing to quote.
            _confined.run(["debugfs", "-R", f"dump /{name} {target}", device], writable=folder)
            if not target.exists():
                return None
            return target.read_bytes() if 0 < target.stat().st_size < _confined.LIMIT else None

    return read


def _read_system(read: Read, found: Contents, packages: bool) -> None:
    for name in reversed(_os_release.PLACES):
        release = read(name)
        if release:
            found.os_release = _os_release.parse(release.decode("utf-8", "replace"))
            break
    else:
        found.notes.append("there is no /usr/lib/os-release: what system it is cannot be told")
    if packages:
        _read_packages(read, found)


def _read_packages(read: Read, found: Contents) -> None:
    status = read(_DPKG)
    if status is not None:
        found.packages = parse_dpkg(status.decode("utf-8", "replace"))
        return
    for name in _RPM:
        database = read(name)
        if database is None:
            continue
        if not _cli.which("rpm"):
            found.notes.append("the packages are in an RPM database, which takes the tool rpm to read: install it")
        else:
            found.packages = _query_rpm(Path(name).name, database, found)
        return
    found.notes.append("there is neither a dpkg nor an RPM database")


def _query_rpm(name: str, database: bytes, found: Contents) -> list[dict[str, str]] | None:
    with tempfile.TemporaryDirectory(prefix="cloudimg-") as folder:
        Path(folder, name).write_bytes(database)
        argv = ["rpm", "--dbpath", folder, "--query", "--all", "--queryformat", "%{NAME}\t%{EVR}\t%{ARCH}\n"]
        done = _confined.run(argv, writable=folder)
    if done.rc:
        found.notes.append(f"rpm cannot read the database: {_cli.tail(done.stderr, 1)}")
        return None
    rows = (line.split("\t") for line in done.stdout.splitlines() if line.count("\t") == 2)
    return sorted((dict(zip(("name", "version", "arch"), row)) for row in rows), key=_order)


def _order(row: t.Mapping[str, str]) -> tuple[str, str, str]:
    return row["name"], row["arch"], row["version"]


def parse_dpkg(text: str) -> list[dict[str, str]]:
    """What is installed by dpkg's status file: C(name), C(version), C(arch), sorted."""
    rows = []
    for paragraph in re.split(r"\n\n+", text):
        fields = dict(
            line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and not line.startswith((" ", "\t"))
        )
        if fields.get("Status", "").endswith(" installed") and "Package" in fields:
            rows.append({ours: fields.get(theirs, "") for theirs, ours in _FIELDS.items()})
    return sorted(rows, key=_order)


def _boot_mode(raw: Path, found: Contents) -> str:
    """By which firmware the disk can be booted: C(bios), C(uefi), C(both) or C(none)."""
    with raw.open("rb") as stream:
        head = stream.read(512)
    bios = head[510:512] == b"\x55\xaa" and any(head[: _partitions.BOOT_CODE])
    if found.table is None:
        bios = bios and not any(volume.fstype == "vfat" for volume in found.volumes)
    uefi = False
    for volume in found.volumes:
        if volume.kind in _partitions.ESP:
            uefi = uefi or _has_loader(raw, volume, found)
    if bios and found.table == "gpt" and not any(volume.kind == _BIOS_BOOT for volume in found.volumes):
        found.notes.append("there is boot code for BIOS, but no BIOS boot partition")
    return {(True, True): "both", (True, False): "bios", (False, True): "uefi"}.get((bios, uefi), "none")


def _has_loader(raw: Path, volume: _partitions.Volume, found: Contents) -> bool:
    if volume.fstype != "vfat":
        return False
    if not _cli.which("mdir"):
        found.notes.append("whether the EFI system partition holds a boot loader is not known: install mtools")
        return True
    return bool(_esp.programs(raw, volume))
