# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is told of disks whose content is known, and of such as mean no good; with the real tools."""

from __future__ import annotations

import os
import subprocess
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli, _disk_chain, _disk_info, _qemu_img
from ansible_collections.cloudimg.factory.plugins.module_utils._disk_chain import chain
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

MIB = 1 << 20
ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
ROOT = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
BIOS = "21686148-6449-6E6F-744E-656564454649"
STATUS = """\
Package: zlib1g
Status: install ok installed
Architecture: amd64
Version: 1:1.2.13.dfsg-1
Description: compression library
 Status: not a field: a line that goes on

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: adduser
Status: hold ok installed
Architecture: all
Version: 3.134
"""


def tool(*argv: str | Path, text: str | None = None) -> str:
    """Run a tool."""
    words = [_cli.require(str(argv[0])), *map(str, argv[1:])]
    return subprocess.run(words, check=True, capture_output=True, text=True, input=text).stdout


def system(folder: Path) -> Path:
    """The tree of a system."""
    tree = folder / "tree"
    (tree / "usr/lib").mkdir(parents=True)
    (tree / "etc").mkdir()
    (tree / "var/lib/dpkg").mkdir(parents=True)
    (tree / "usr/lib/os-release").write_text(
        'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="A \\"B\\""\n# x\nBAD="\nlower=1\n'
    )
    (tree / "etc/os-release").symlink_to("../usr/lib/os-release")
    (tree / "var/lib/dpkg/status").write_text(STATUS)
    return tree


def partitioned(disk: Path, root: Path, *, esp: Path | None = None, bios: bool = False, table: str = "gpt") -> Path:
    """A raw disk of up to three partitions: 1 MiB for GRUB, an ESP of 8 MiB, and the root file system."""
    kinds = {"gpt": (BIOS, ESP, ROOT), "dos": ("83", "ef", "83")}[table]
    size = root.stat().st_size
    layout = (
        f"label: {table}\nsize=1MiB,type={kinds[0]}\nsize=8MiB,type={kinds[1]}\nsize={size >> 20}MiB,type={kinds[2]}\n"
    )
    with disk.open("wb") as stream:
        stream.truncate(12 * MIB + size)
    tool("sfdisk", "-q", disk, text=layout)
    for source, at in ((esp, 2), (root, 10)):
        if source:
            tool("dd", f"if={source}", f"of={disk}", "bs=1M", f"seek={at}", "conv=notrunc,sparse")
    if bios:
        with disk.open("r+b") as stream:
            stream.write(b"\xeb\x63\x90" + b"GRUB")
    return disk


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """An ext4 with a system."""
    folder = tmp_path_factory.mktemp("root")
    volume = folder / "root"
    with volume.open("wb") as stream:
        stream.truncate(40 * MIB)
    tool("mkfs.ext4", "-q", "-L", "root", "-d", system(folder), volume)
    return volume


@pytest.fixture(scope="module")
def esp(tmp_path_factory):
    """An EFI system partition with a boot loader."""
    volume = tmp_path_factory.mktemp("esp") / "esp"
    with volume.open("wb") as stream:
        stream.truncate(8 * MIB)
    tool("mkfs.vfat", "-n", "ESP", volume)
    loader = volume.with_name("BOOTX64.EFI")
    loader.write_bytes(b"MZ")
    for folder in ("::/EFI", "::/EFI/BOOT"):
        tool("mmd", "-i", volume, folder)
    tool("mcopy", "-i", volume, loader, "::/EFI/BOOT/")
    return volume


def look(disk: Path, fmt: str | None = None, **options: t.Any) -> _disk_info.Contents:
    """What is on it."""
    return _disk_info.contents(chain(disk, fmt), work_dir=disk.parent, **options)


@pytest.mark.parametrize("fmt", ["raw", "qcow2", "vmdk"])
def test_all_that_is_known_of_a_system(tmp_path, root, esp, fmt):
    disk = partitioned(tmp_path / "disk.raw", root, esp=esp, bios=True)
    if fmt != "raw":
        disk = tmp_path / "disk"
        _qemu_img.convert(tmp_path / "disk.raw", disk, source_fmt="raw", target_fmt=fmt)
    before = (disk.read_bytes(), disk.stat().st_mtime_ns)
    found = look(disk)
    assert found.table == "gpt"
    assert found.boot == "both"
    assert [(volume.number, volume.fstype, volume.label) for volume in found.volumes] == [
        (1, "", ""),
        (2, "vfat", "ESP"),
        (3, "ext4", "root"),
    ]
    assert found.os_release == {"ID": "debian", "VERSION_ID": "12", "PRETTY_NAME": 'A "B"', "BAD": '"'}
    assert found.packages == [
        {"name": "adduser", "version": "3.134", "arch": "all"},
        {"name": "zlib1g", "version": "1:1.2.13.dfsg-1", "arch": "amd64"},
    ]
    assert found.notes == []
    assert (disk.read_bytes(), disk.stat().st_mtime_ns) == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".partial-")]


@pytest.mark.parametrize(
    ("table", "with_esp", "bios", "boot"),
    [
        ("gpt", False, True, "bios"),
        ("gpt", True, False, "uefi"),
        ("gpt", False, False, "none"),
        ("dos", False, True, "bios"),
        ("dos", True, True, "both"),
    ],
)
def test_by_which_firmware_it_boots(tmp_path, root, esp, table, with_esp, bios, boot):
    disk = partitioned(tmp_path / "disk", root, esp=esp if with_esp else None, bios=bios, table=table)
    found = look(disk, packages=False)
    assert (found.table, found.boot) == (table, boot)
    assert found.packages is None


def test_an_empty_esp_boots_nothing(tmp_path, root):
    empty = tmp_path / "esp"
    empty.write_bytes(bytes(8 * MIB))
    tool("mkfs.vfat", empty)
    assert look(partitioned(tmp_path / "disk", root, esp=empty)).boot == "none"


def test_a_file_system_on_the_whole_disk(root):
    found = look(root, "raw")
    assert (found.table, found.boot) == (None, "none")
    assert found.os_release["ID"] == "debian"


def test_an_overlay_shows_what_a_guest_sees(tmp_path, root):
    base, overlay = tmp_path / "base.qcow2", tmp_path / "overlay.qcow2"
    _qemu_img.convert(root, base, source_fmt="raw", target_fmt="qcow2")
    _qemu_img.create(overlay, None, backing=base)
    with pytest.raises(FactoryError, match=r"needs another disk below it .*; set trusted"):
        chain(overlay)
    links = chain(overlay, trusted=True)
    told = _disk_info.facts(links, check=True)
    assert [row["path"] for row in told["chain"]] == [str(base)]
    assert told["check"]["corruptions"] == 0
    assert _disk_info.contents(links, work_dir=tmp_path).os_release["ID"] == "debian"


def test_what_is_empty_is_said_to_be(tmp_path):
    disk = tmp_path / "disk.qcow2"
    _qemu_img.create(disk, 64 * MIB)
    found = look(disk)
    assert (found.boot, found.packages, found.os_release) == ("none", None, {})
    assert found.notes == ["there is no file system with an operating system (there is none)"]


def test_a_system_without_what_is_sought(tmp_path):
    tree, volume = tmp_path / "tree", tmp_path / "volume"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/os-release").write_text("ID=alpine\n")
    with volume.open("wb") as stream:
        stream.truncate(20 * MIB)
    tool("mkfs.ext4", "-q", "-d", tree, volume)
    found = look(volume, "raw")
    assert found.os_release == {"ID": "alpine"}
    assert found.notes == ["there is neither a dpkg nor an RPM database"]


def test_an_rpm_database_takes_rpm(tmp_path):
    tree, volume = tmp_path / "tree", tmp_path / "volume"
    (tree / "usr/lib/sysimage/rpm").mkdir(parents=True)
    (tree / "usr/lib/sysimage/rpm/rpmdb.sqlite").write_bytes(b"SQLite format 3\0" + bytes(4080))
    with volume.open("wb") as stream:
        stream.truncate(20 * MIB)
    tool("mkfs.ext4", "-q", "-d", tree, volume)
    found = look(volume, "raw")
    if _cli.which("rpm"):
        assert found.packages == [] or "rpm cannot read the database" in found.notes[-1]
    else:
        assert found.packages is None
        assert found.notes[-1] == "the packages are in an RPM database, which takes the tool rpm to read: install it"


def test_links_lead_to_nothing_of_the_builder(tmp_path):
    tree, volume = tmp_path / "tree", tmp_path / "volume"
    (tree / "usr/lib").mkdir(parents=True)
    (tree / "var/lib").mkdir(parents=True)
    (tree / "usr/lib/os-release").symlink_to("/etc/os-release")
    (tree / "var/lib/dpkg").symlink_to("/var/lib/dpkg")
    with volume.open("wb") as stream:
        stream.truncate(20 * MIB)
    tool("mkfs.ext4", "-q", "-d", tree, volume)
    found = look(volume, "raw")
    assert (found.os_release, found.packages) == ({}, None)


def test_a_damaged_file_system_is_no_trouble(tmp_path, root):
    for at in (1024, 4096, 1 * MIB, 9 * MIB):
        disk = tmp_path / f"disk-{at}"
        disk.write_bytes(root.read_bytes())
        with disk.open("r+b") as stream:
            stream.seek(at + 200)
            stream.write(os.urandom(200_000 if at > 1024 else 400))
        found = look(disk, "raw")
        assert isinstance(found.notes, list)


def test_a_file_that_claims_to_be_huge_is_not_written_out(tmp_path):
    volume = tmp_path / "volume"
    with volume.open("wb") as stream:
        stream.truncate(20 * MIB)
    tool("mkfs.ext4", "-q", volume)
    tool("debugfs", "-w", "-R", "mkdir usr", volume)
    tool("debugfs", "-w", "-R", "mkdir usr/lib", volume)
    (tmp_path / "small").write_text("ID=x\n")
    tool("debugfs", "-w", "-R", f"write {tmp_path}/small usr/lib/os-release", volume)
    tool("debugfs", "-w", "-R", f"set_inode_field usr/lib/os-release size {1 << 40}", volume)
    before = sum(path.stat().st_blocks for path in tmp_path.rglob("*"))
    assert look(volume, "raw").os_release == {}
    assert sum(path.stat().st_blocks for path in tmp_path.rglob("*")) == before


def test_no_space_to_unpack_it_is_told(tmp_path, root, monkeypatch):
    disk = tmp_path / "disk.qcow2"
    _qemu_img.convert(root, disk, source_fmt="raw", target_fmt="qcow2")
    monkeypatch.setattr(_qemu_img, "measure", lambda *_args: 1 << 60)
    with pytest.raises(FactoryError, match=r"a look into disk\.qcow2 needs \d+ MiB; free some space there"):
        look(disk)
    assert [path.name for path in tmp_path.iterdir()] == ["disk.qcow2"]


@pytest.mark.root
@pytest.mark.parametrize("fstype", ["xfs", "btrfs"])
def test_other_file_systems_are_mounted_if_that_is_allowed(tmp_path, fstype):
    if not _cli.which(f"mkfs.{fstype}"):
        pytest.skip(f"mkfs.{fstype} is not installed")
    disk, point = tmp_path / "disk", tmp_path / "mnt"
    with disk.open("wb") as stream:
        stream.truncate(400 * MIB)
    tool(f"mkfs.{fstype}", "-q", disk)
    point.mkdir()
    if subprocess.run(["mount", "-t", fstype, "-o", "loop", disk, point], check=False, capture_output=True).returncode:
        pytest.skip(f"this kernel mounts no {fstype}")
    try:
        top = point
        if fstype == "btrfs":
            tool("btrfs", "subvolume", "create", point / "@")
            top = point / "@"
        subprocess.run(["cp", "-a", f"{system(tmp_path)}/.", top], check=True)
    finally:
        subprocess.run(["umount", point], check=True)
    before = disk.read_bytes()
    assert look(disk, "raw").notes == [f"the root file system is {fstype}, which is only read where mount is set"]
    found = look(disk, "raw", mount=True)
    assert found.os_release["ID"] == "debian"
    assert [row["name"] for row in found.packages or []] == ["adduser", "zlib1g"]
    assert disk.read_bytes() == before
    assert str(disk) not in Path("/proc/self/mountinfo").read_text()
    _disk_chain.refuse_in_use(disk)
