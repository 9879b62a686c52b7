# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is on a disk, where it wants it mounted, and what is put into its tree for the time of the work."""

from __future__ import annotations

import subprocess

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli, _guest, _partitions
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._offline import Tree
from ansible_collections.cloudimg.factory.plugins.module_utils._partitions import Volume, mounts, root_of, volumes

MIB = 1 << 20
ROOT = Volume(3, 80 * MIB, 900 * MIB, "0fc63daf-8483-4772-8e79-3d69d8477de4", "ext4", "root", "aaaa-1", "p3")
BOOT = Volume(1, MIB, 200 * MIB, "", "ext4", "boot", "bbbb-2", "p1")
ESP = Volume(2, 201 * MIB, 60 * MIB, "", "vfat", "ESP", "CCCC-3", "p2")
SWAP = Volume(4, 999 * MIB, 2000 * MIB, "", "swap", "", "dddd-4", "p4")
DISK = [BOOT, ESP, ROOT, SWAP]


def run(*argv, stdin=None):
    """Run a tool, wherever it is."""
    subprocess.run([_cli.require(argv[0]), *argv[1:]], check=True, capture_output=True, input=stdin, text=True)


@pytest.fixture
def disk(tmp_path):
    """A disk with a partition table and two file systems."""
    path = tmp_path / "disk.raw"
    path.touch()
    with path.open("r+b") as stream:
        stream.truncate(64 * MIB)
    table = (
        "label: gpt\nsize=16MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\ntype=0FC63DAF-8483-4772-8E79-3D69D8477DE4\n"
    )
    run("sfdisk", str(path), stdin=table)
    part = tmp_path / "part"
    for start, size, command in ((1, 16, ["mkfs.vfat", "-n", "ESP"]), (17, 46, ["mkfs.ext4", "-q", "-L", "root"])):
        with part.open("wb") as stream:
            stream.truncate(size * MIB)
        run(*command, str(part))
        with path.open("r+b") as stream:
            stream.seek(start * MIB)
            stream.write(part.read_bytes())
    return path


def test_volumes_of_a_real_disk(disk):
    esp, root = volumes(disk)
    assert (esp.number, esp.fstype, esp.offset, esp.label) == (1, "vfat", MIB, "ESP")
    assert (root.number, root.fstype, root.offset, root.label) == (2, "ext4", 17 * MIB, "root")
    assert root.uuid
    assert root.partuuid
    assert root_of([esp, root], disk) == root


def test_a_file_system_without_a_partition_table(tmp_path):
    path = tmp_path / "disk.raw"
    with path.open("wb") as stream:
        stream.truncate(8 * MIB)
    run("mkfs.ext4", "-q", str(path))
    (whole,) = volumes(path)
    assert (whole.number, whole.offset, whole.size, whole.fstype) == (0, 0, 8 * MIB, "ext4")


def test_the_root_is_the_largest_linux_file_system(tmp_path):
    assert root_of(DISK, tmp_path) == ROOT


def test_the_root_is_the_partition_that_says_so(tmp_path):
    small = Volume(5, 0, MIB, "4f68bce3-e8cd-4db1-96e7-fbcaf984b709", "ext4")
    assert root_of([*DISK, small], tmp_path) == small


def test_a_disk_without_a_root_is_refused(tmp_path):
    with pytest.raises(
        FactoryError, match=r"has no root file system .*\(it has LVM2_member, vfat\); install on a plain"
    ):
        root_of([ESP, Volume(2, 0, MIB, "", "LVM2_member")], tmp_path / "x.qcow2")


@pytest.mark.parametrize(
    ("fstab", "expected"),
    [
        ("UUID=bbbb-2 /boot ext4 defaults 0 2", [(BOOT, "/boot")]),
        ("LABEL=ESP /boot/efi vfat defaults\nUUID=bbbb-2 /boot ext4 x 0 2", [(BOOT, "/boot"), (ESP, "/boot/efi")]),
        ("PARTUUID=P2 /boot/efi vfat defaults", [(ESP, "/boot/efi")]),
        ("/dev/vda1 /boot ext4 defaults\n/dev/sda2 /boot/efi vfat x", [(BOOT, "/boot"), (ESP, "/boot/efi")]),
        ("UUID=aaaa-1 / ext4 defaults 0 1", []),
        ("# UUID=bbbb-2 /boot ext4 x\n\nUUID=dddd-4 none swap sw", []),
        ("UUID=unknown /srv ext4 x\n/dev/mapper/x /home ext4 x\nserver:/x /mnt nfs x", []),
        ("UUID=bbbb-2 /../etc ext4 x\nUUID= /x ext4 x\nshort", []),
    ],
)
def test_mounts(fstab, expected):
    assert [(volume, str(point)) for volume, point in mounts(fstab, DISK, ROOT)] == expected


@pytest.fixture
def tree(tmp_path):
    """A tree that is but a directory."""
    tree = Tree(tmp_path, tmp_path / "overlay.qcow2")
    (tree.root / "etc").mkdir(parents=True)
    return tree


RESOLV = "etc/resolv.conf"


def test_what_was_placed_goes_again(tree):
    tree._place(RESOLV, "nameserver 192.0.2.1\n", 0o644)
    assert (tree.root / RESOLV).read_text() == "nameserver 192.0.2.1\n"
    tree._unplace()
    assert not (tree.root / RESOLV).exists()


def test_what_was_there_comes_back(tree):
    (tree.root / RESOLV).write_text("nameserver 192.0.2.9\n")
    tree._place(RESOLV, "nameserver 192.0.2.1\n", 0o644)
    tree._unplace()
    assert (tree.root / RESOLV).read_text() == "nameserver 192.0.2.9\n"


def test_a_link_comes_back_even_when_the_work_wrote_through_it(tree):
    (tree.root / RESOLV).symlink_to("../run/resolv.conf")
    tree._place(RESOLV, "nameserver 192.0.2.1\n", 0o644)
    (tree.root / RESOLV).write_text("")
    tree._unplace()
    assert (tree.root / RESOLV).readlink().as_posix() == "../run/resolv.conf"


def test_what_the_work_wrote_stays(tree):
    (tree.root / RESOLV).write_text("nameserver 192.0.2.9\n")
    tree._place(RESOLV, "nameserver 192.0.2.1\n", 0o644)
    (tree.root / RESOLV).write_text("")
    tree._unplace()
    assert (tree.root / RESOLV).read_text() == ""


def test_what_the_work_put_in_its_place_stays(tree):
    tree._place(RESOLV, "nameserver 192.0.2.1\n", 0o644)
    (tree.root / RESOLV).unlink()
    (tree.root / RESOLV).symlink_to("../run/systemd/resolve/stub-resolv.conf")
    tree._unplace()
    assert (tree.root / RESOLV).is_symlink()


def test_nothing_is_placed_through_a_link(tree, tmp_path):
    (tmp_path / "outside").mkdir()
    (tree.root / "usr").symlink_to(tmp_path / "outside")
    with pytest.raises(FactoryError, match="/usr is a symbolic link"):
        tree._place("usr/x", "text", 0o644)
    assert list((tmp_path / "outside").iterdir()) == []


def test_matches_names_links_and_files_with_content(tree):
    (tree.root / "etc/full").write_text("x")
    (tree.root / "etc/empty").touch()
    (tree.root / "etc/link").symlink_to("nowhere")
    (tree.root / "etc/folder").mkdir()
    assert tree.matches(["/etc/*", "/none/*"]) == ["/etc/full", "/etc/link"]


@pytest.mark.parametrize(
    ("here", "root", "problem"),
    [
        (False, True, "the builder is another machine; let image_builder be localhost"),
        (True, False, "may not become root without a password, .*NOPASSWD"),
    ],
)
def test_offline_says_what_it_needs(monkeypatch, here, root, problem):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with pytest.raises(FactoryError, match=f"image_connection: .*{problem}"):
        _guest.choose("offline", _guest.Controller(here, root))


@pytest.mark.parametrize(("accelerator", "way"), [("tcg", "offline"), ("kvm", "ssh")])
def test_auto_boots_only_where_that_is_fast(monkeypatch, accelerator, way):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(_guest._accel, "detect", lambda: accelerator)
    assert _guest.choose("auto", _guest.Controller(True, True)) == way
    assert _guest.choose("offline", _guest.Controller(True, True)) == "offline"
    assert _guest.choose("ssh", _guest.Controller(True, False)) == "ssh"


def test_offline_needs_root(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(FactoryError, match="mounting a disk needs root; run the task with become: true"):
        _guest.choose("offline", _guest.Controller(True, True))


def test_partitions_of_nvme_and_of_what_is_no_disk():
    assert _partitions.mounts("/dev/nvme0n1p1 /boot ext4 x", DISK, ROOT) != []
    assert _partitions.mounts("/dev/loop1 /boot ext4 x", DISK, ROOT) == []
