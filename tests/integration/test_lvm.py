# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks with LVM, made by LVM's own tools: looked into, imported, worked on, compacted, without a device mapper."""

from __future__ import annotations

import subprocess
import typing as t
from pathlib import Path

import pytest
from foreign_disks import MIB, put_loader, run
from tiny_system import ROOT_AT, Leftovers, as_base, tiny_disk

from ansible_collections.cloudimg.factory.plugins.module_utils import (
    _compact,
    _disk_chain,
    _disk_info,
    _guest,
    _import,
    _layers,
    _lvm,
    _partitions,
    _qemu_img,
    _state,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._owner import Owner
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.plugins.module_utils._source_disk import SourceDisk
from ansible_collections.cloudimg.factory.tests.tools.lvm import Group
from ansible_collections.cloudimg.factory.tests.tools.vendor import sha256

pytestmark = pytest.mark.root
BOOT_AT, BOOT_SIZE = 2 * MIB, 16 * MIB
GROUP_AT = BOOT_AT + BOOT_SIZE
LVM_TYPE = "E6D6D379-F507-44C2-A23C-238F2A3DF928"
TABLE = f"label: gpt\nsize=1MiB, type=U\nsize={BOOT_SIZE // MIB}MiB, type=L\nsize={{size}}MiB, type={LVM_TYPE}\n"
FSTAB = """/dev/mapper/legacy--vg-root / ext4 defaults 0 1
UUID=b0b0b0b0-0000-4000-8000-000000000001 /boot ext4 defaults 0 2
/dev/legacy-vg/home /home ext4 defaults 0 2
/dev/mapper/legacy--vg-swap_1 none swap sw 0 0
"""


def empty(path: Path, size: int) -> Path:
    with path.open("wb") as stream:
        stream.truncate(size)
    return path


def file_system(disk: Path, place: tuple[int, int], *options: str | Path) -> None:
    """An ext4 file system at a place of a disk."""
    offset, size = place
    volume = empty(disk.with_name("volume"), size)
    run("mkfs.ext4", "-q", *options, volume)
    run("dd", f"if={volume}", f"of={disk}", "bs=1M", f"seek={offset // MIB}", "conv=notrunc,sparse")
    volume.unlink()


def as_installers_do(path: Path, root: int, home: int, tree: Path) -> dict[str, tuple[int, int]]:
    """A disk with an ESP, /boot, and a group with root (``tree``), swap and home, sizes in MiB; returns LVM's places."""
    group = root + home + 32
    empty(path, GROUP_AT + (group + 2) * MIB)
    run("sfdisk", "--quiet", path, text=TABLE.format(size=group))
    put_loader(path)
    with Group("legacy-vg", (path, GROUP_AT, group * MIB)) as made:
        made.create("root", f"{root}M")
        made.create("swap_1", "16M")
        made.create("home", f"{home}M")
        places = {name: rows[0] for name, rows in made.pieces().items() if len(rows) == 1}
    boot = path.with_name("boot.tree")
    (boot / "grub").mkdir(parents=True)
    file_system(path, (BOOT_AT, BOOT_SIZE), "-U", "b0b0b0b0-0000-4000-8000-000000000001", "-d", boot)
    file_system(path, places["legacy-vg/root"], "-d", tree)
    file_system(path, places["legacy-vg/home"])
    return places


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Path, dict[str, tuple[int, int]]]:
    """Such a disk with no more than an fstab on it; /home is larger than its root."""
    folder = tmp_path_factory.mktemp("lvm")
    tree = folder / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/fstab").write_text(FSTAB)
    (tree / "etc/os-release").write_text('ID=debian\nVERSION_ID="12"\n')
    return folder / "disk.raw", as_installers_do(folder / "disk.raw", 24, 40, tree)


def test_the_places_are_those_that_lvm_says(small):
    disk, places = small
    found = {volume.name: (volume.offset, volume.size) for volume in _partitions.volumes(disk) if volume.name}
    assert found == places and len(found) == 3


def test_groups_of_several_disks_and_volumes_of_several_pieces(tmp_path):
    first, second = (empty(tmp_path / name, 128 * MIB) for name in ("first", "second"))
    with Group("vg", (first, 0, 128 * MIB), (second, 0, 128 * MIB)) as made:
        made.create("striped", "8M", "--stripes=2")
        made.create("root", "8M", "0")
        made.create("other", "8M", "1")
        made.create("behind", "8M", "0")
        made.lvm("lvextend", "--size", "+8M", "vg/root", made.devices[0])
        made.lvm("lvextend", "--size", "+8M", "vg/behind", made.devices[0])
        pieces = made.pieces()
    assert len(pieces["vg/root"]) == 2
    rows = {row.name: row for row in _lvm.logical_volumes(first, 0, 128 * MIB)}
    problems = {name: row.problem.partition(" (")[0] for name, row in rows.items()}
    assert problems == {
        "vg/striped": "it is of the kind striped over several disks",
        "vg/root": "it is in several pieces",
        "vg/other": "it is on another disk of its group",
        "vg/behind": "it is in several pieces",
    }
    on_second = {row.name: row.problem for row in _lvm.logical_volumes(second, 0, 128 * MIB)}
    assert on_second["vg/other"] == "" and on_second["vg/root"] == "it is on another disk of its group"


def imported(root: Path, disk: Path) -> t.Any:
    source = SourceDisk.load({"path": str(disk), "checksum": f"sha256:{sha256(disk)}"})
    order = _import.Order(_state.Workspace(root / "workspace"), "legacy", source, disk.stat().st_size)
    return _import.import_base(order, Progress("base_vm"))


def test_an_import_warns_of_it(small, tmp_path):
    disk, _places = small
    base = imported(tmp_path, disk).extra["base"]
    assert (base["layout"]["root"]["name"], base["layout"]["root"]["partition"]) == ("legacy-vg/root", 3)
    assert [row["partition"] for row in base["layout"]["volumes"]] == [1, 2, 3]
    assert [line.partition(",")[0] for line in base["warnings"]] == [
        "partition 3 is LVM",
        "partition 2 is a separate /boot",
    ]
    assert _qemu_img.compare(disk, "raw", Path(base["path"]), "qcow2")


def test_a_root_that_cannot_be_had_is_refused_by_name(tmp_path):
    disk = empty(tmp_path / "disk.raw", 68 * MIB)
    run("sfdisk", "--quiet", disk, text=f"label: gpt\nsize=64MiB, type={LVM_TYPE}\n")
    with Group("vg", (disk, MIB, 64 * MIB)) as made:
        made.create("root", "8M")
        made.create("swap", "8M")
        made.lvm("lvextend", "--size", "+8M", "vg/root")
    with pytest.raises(
        FactoryError, match=r"image_source_disk: has no root file system .*; vg/root: it is in several pieces"
    ) as caught:
        imported(tmp_path, disk)
    assert "\n" not in str(caught.value) and "logical volume in one piece" in str(caught.value)


def test_what_is_told_of_it(small, tmp_path):
    disk, places = small
    told = _disk_info.contents(_disk_chain.chain(disk, "raw", trusted=True), work_dir=tmp_path)
    assert told.os_release["VERSION_ID"] == "12"
    named = {volume.name: volume for volume in told.volumes if volume.name}
    assert named["legacy-vg/home"].fstype == "ext4" and named["legacy-vg/home"].offset == places["legacy-vg/home"][0]


def test_it_is_compacted(small, tmp_path):
    disk, places = small
    copy = tmp_path / "disk.raw"
    subprocess.run(["cp", "--sparse=always", disk, copy], check=True)
    offset, _size = places["legacy-vg/home"]
    noise = tmp_path / "noise"
    noise.write_bytes(b"\xa5" * (8 * MIB))
    device = f"{copy}?offset={offset}"
    for request in (f"write {noise} noise", "rm noise"):
        subprocess.run(["debugfs", "-w", "-R", request, device], check=True, capture_output=True)
    subprocess.run(["e2fsck", "-f", "-y", device], check=False, capture_output=True)
    result = _compact.compact(_compact.Order(copy), Progress("compact"))
    rows = {row["name"]: row for row in result.extra["volumes"]}
    assert rows["legacy-vg/home"]["before"] - rows["legacy-vg/home"]["after"] >= 7 * MIB
    assert rows["legacy-vg/home"]["number"] == 3
    assert any("logical volumes are looked at" in line for line in result.extra["notes"])


def test_a_stage_works_in_it(tmp_path, tmp_path_factory):
    """A whole Debian, its root on a logical volume, /boot and /home elsewhere: packages, files, trimmed and kept."""
    tiny = tmp_path / "tiny.raw"
    _qemu_img.convert(tiny_disk(tmp_path_factory.getbasetemp()), tiny, source_fmt="qcow2", target_fmt="raw")
    (source,) = [volume for volume in _partitions.volumes(tiny) if volume.fstype == "ext4"]
    assert source.offset == ROOT_AT
    disk, blank = tmp_path / "disk.raw", tmp_path / "blank"
    (blank / "etc").mkdir(parents=True)
    places = as_installers_do(disk, 1600, 16, blank)
    into = places["legacy-vg/root"][0] // MIB
    run(
        "dd", f"if={tiny}", f"of={disk}", "bs=1M", f"skip={ROOT_AT // MIB}", f"count={source.size // MIB}",
        f"seek={into}", "conv=notrunc",
    )  # fmt: skip
    table = tmp_path / "fstab"
    table.write_text(FSTAB)
    device = f"{disk}?offset={into * MIB}"
    for request in ("rm /etc/fstab", f"write {table} /etc/fstab", "rm /boot/grub"):
        subprocess.run(["debugfs", "-w", "-R", request, device], check=True, capture_output=True)
    subprocess.run(["e2fsck", "-f", "-y", device], check=False, capture_output=True)
    base = tmp_path / "base.qcow2"
    _qemu_img.convert(disk, base, source_fmt="raw", target_fmt="qcow2")
    workspace = _state.Workspace(tmp_path / "workspace")
    parent = as_base(base, workspace)
    left = Leftovers(workspace.root)
    layer = _layers.Layer(workspace, "tiny", "applications", parent, _layers.digest_of(parent), {})
    opened = _guest.open_layer(layer, Owner.of())
    try:
        script = "echo hello > /home/greeting; echo kernel > /boot/vmlinuz-9; findmnt -lno TARGET --real; dpkg-query -W python3"
        argv = [opened.variables["ansible_chroot_exe"], opened.mount, "/bin/sh", "-c", script]
        done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
        assert {"/", "/boot", "/home"} <= set(done.stdout.split()) and "python3" in done.stdout
        made, kept = _guest.commit_layer(workspace, "tiny", "applications", forbidden=[], packages=False)
        assert kept
    finally:
        _guest.discard_layer(workspace, "tiny", "applications")
    after = tmp_path / "after.raw"
    _qemu_img.convert(made.path, after, source_fmt="qcow2", target_fmt="raw")
    for name, file, content in (("legacy-vg/home", "greeting", "hello\n"), ("", "vmlinuz-9", "kernel\n")):
        offset = places[name][0] if name else BOOT_AT
        argv = ["debugfs", "-R", f"cat /{file}", f"{after}?offset={offset}"]
        assert subprocess.run(argv, check=True, capture_output=True, text=True).stdout == content
    assert left.none_within(60), left.found()
