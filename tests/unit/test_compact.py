# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks whose file systems held more than they do now: what becomes of their files; with the real file system tools."""

from __future__ import annotations

import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import (
    _cli,
    _compact,
    _overlay,
    _partitions,
    _qemu_img,
    _state,
    _trim,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._compact import Order, compact
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

MIB = 1 << 20
AT = MIB
SIZE = 60 * MIB
LIVE = random.Random(1).randbytes(6 * MIB)
TABLE = "label: dos\nstart=2048, size=122880, type=83\nstart=124928, size=20480, type=82\nstart=145408, size=10240, type=c\n"


def tool(*argv: str | Path) -> str:
    """Run a tool."""
    words = [_cli.require(str(argv[0])), *map(str, argv[1:])]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def debugfs(disk: Path, *requests: str) -> str:
    """Work on the ext4 of a disk."""
    device = f"{disk}?offset={AT}"
    return "".join(tool("debugfs", "-w", "-R", request, device) for request in requests)


def fill(disk: Path, folder: Path) -> None:
    """A file that stays and one of 20 MiB that was deleted."""
    live, gone = folder / "live.bin", folder / "gone.bin"
    live.write_bytes(LIVE)
    gone.write_bytes(random.Random(2).randbytes(20 * MIB))
    debugfs(disk, f"write {gone} gone", f"write {live} live", "rm gone")


@pytest.fixture(scope="module")
def pattern(tmp_path_factory):
    """A raw disk with an ext4 of much garbage, a swap area of garbage, and a FAT."""
    tmp_path = tmp_path_factory.mktemp("pattern")
    disk = tmp_path / "disk"
    with disk.open("wb") as stream:
        stream.truncate(100 * MIB)
    subprocess.run([_cli.require("sfdisk"), "-q", disk], input=TABLE, text=True, check=True, capture_output=True)
    options = f"offset={AT},nodiscard,lazy_itable_init=1"
    tool("mkfs.ext4", "-q", "-F", "-E", options, disk, f"{SIZE >> 10}k")
    fill(disk, tmp_path)
    with disk.open("r+b") as stream:
        stream.seek(61 * MIB)
        stream.write(b"S" * 10 * MIB)
    area = tmp_path / "area"
    area.write_bytes(b"S" * 10 * MIB)
    tool("mkswap", area)
    with disk.open("r+b") as stream:
        stream.seek(61 * MIB)
        stream.write(area.read_bytes())
        fat = tmp_path / "fat"
        fat.write_bytes(bytes(5 * MIB))
        tool("mkfs.vfat", fat)
        stream.seek(71 * MIB)
        stream.write(fat.read_bytes())
    return disk


@pytest.fixture
def dirty(pattern, tmp_path):
    """A copy of it."""
    disk = tmp_path / "dirty disk.raw"
    tool("cp", "--sparse=always", pattern, disk)
    return disk


def run(disk: Path, check_mode: bool = False, **options: t.Any):
    """Compact it."""
    return compact(Order(disk, **options), Progress("compact"), check_mode=check_mode)


def content(disk: Path) -> bytes:
    """The live file, read out of the ext4."""
    target = disk.with_name("read")
    debugfs(disk, f"dump live {target}")
    return target.read_bytes()


def packed(disk: Path, name: str = "disk.qcow2", fmt: str = "qcow2", **options: t.Any) -> Path:
    """The disk in another format."""
    target = disk.with_name(name)
    _qemu_img.convert(disk, target, source_fmt="raw", target_fmt=fmt, **options)
    return target


def unpacked(disk: Path, fmt: str = "qcow2") -> Path:
    """And back."""
    target = disk.with_name("back.raw")
    _qemu_img.convert(disk, target, source_fmt=fmt, target_fmt="raw")
    return target


def test_a_raw_disk(dirty):
    inode = dirty.stat().st_ino
    told = run(dirty)
    assert told.changed
    assert told.extra["before"] - told.extra["after"] >= 28 * MIB
    assert told.extra["after"] == dirty.stat().st_blocks * 512
    assert told.extra["ratio"] <= _compact.TARGET
    assert told.extra["notes"] == ["volume 3 (vfat): free space of vfat is not known here"]
    assert told.diff["before"]["allocated"] > told.diff["after"]["allocated"]
    assert [row["fstype"] for row in told.extra["volumes"]] == ["ext4", "swap", "vfat"]
    assert content(dirty) == LIVE
    assert dirty.stat().st_ino == inode
    assert tool("blkid", "--probe", "--offset", str(61 * MIB), "-o", "value", "-s", "TYPE", dirty) == "swap\n"
    tool("e2fsck", "-fn", f"{dirty}?offset={AT}")
    again = run(dirty)
    assert (again.changed, again.actions) == (False, [])


def test_check_mode_tells_and_changes_nothing(dirty):
    before = dirty.read_bytes()
    told = run(dirty, check_mode=True)
    assert told.changed
    assert told.extra["before"] - told.extra["after"] >= 10 * MIB
    assert dirty.read_bytes() == before
    disk = packed(dirty)
    before = disk.read_bytes()
    told = run(disk, check_mode=True)
    assert told.changed
    assert disk.read_bytes() == before
    assert sorted(path.name for path in dirty.parent.glob(".partial-*")) == []


@pytest.mark.parametrize("fmt", ["qcow2", "vdi"])
def test_other_formats(dirty, fmt):
    disk = packed(dirty, "disk", fmt)
    disk.chmod(0o640)
    told = run(disk)
    assert told.changed
    assert told.extra["before"] - told.extra["after"] >= 19 * MIB
    assert content(unpacked(disk, fmt)) == LIVE
    assert disk.stat().st_mode & 0o777 == 0o640
    assert not run(disk).changed
    assert not list(disk.parent.glob(".partial-*"))


def test_a_compressed_disk_stays_one(dirty):
    disk = packed(dirty, compressed="zstd", cluster_size=MIB)
    told = run(disk)
    assert told.changed
    info = _qemu_img.info(disk)
    assert (info.compression, info.cluster_size) == ("zstd", MIB)
    assert _qemu_img.examine(disk)["compressed_clusters"]
    assert content(unpacked(disk)) == LIVE
    assert not run(disk).changed


def test_an_overlay_stays_one(dirty):
    base = packed(dirty, "base.qcow2")
    overlay = dirty.with_name("overlay.qcow2")
    _qemu_img.create(overlay, None, backing=base)
    raw = dirty.with_name("raw")
    shutil.copyfile(dirty, raw)
    more = dirty.with_name("more.bin")
    more.write_bytes(random.Random(3).randbytes(12 * MIB))
    debugfs(raw, f"write {more} more", "rm more")
    _overlay.rewrite(overlay, raw)
    with pytest.raises(FactoryError, match="needs another disk below it"):
        run(overlay)
    before = base.stat().st_mtime_ns
    told = run(overlay, trusted=True)
    assert told.changed
    assert told.extra["before"] - told.extra["after"] >= 11 * MIB
    assert _qemu_img.info(overlay).backing == base
    assert base.stat().st_mtime_ns == before
    assert content(unpacked(overlay)) == LIVE


def unclean(disk: Path, offset: int = AT) -> None:
    """Have the ext4 look as if the power had failed: a journal to be replayed."""
    with disk.open("r+b") as stream:
        stream.seek(offset + 1024 + 96)
        (features,) = struct.unpack("<I", stream.read(4))
    debugfs(disk, "feature needs_recovery")
    with disk.open("rb") as stream:
        stream.seek(offset + 1024 + 96)
        assert struct.unpack("<I", stream.read(4))[0] == features | 4


def test_what_was_not_unmounted_is_refused_or_repaired_if_asked(dirty):
    unclean(dirty)
    before = dirty.read_bytes()
    with pytest.raises(
        FactoryError, match=r"ext4 of partition 1 is not clean: it was not unmounted; boot it once"
    ) as caught:
        run(dirty)
    assert "\n" not in str(caught.value)
    assert dirty.read_bytes() == before
    told = run(dirty, repair=True)
    assert told.extra["ratio"] <= _compact.TARGET
    assert content(dirty) == LIVE
    assert not list(dirty.parent.glob(".partial-*"))
    tool("e2fsck", "-fn", f"{dirty}?offset={AT}")


def test_errors_that_the_superblock_does_not_tell_are_found(dirty):
    debugfs(dirty, "clri live")  # its name and its blocks stay behind
    before = dirty.read_bytes()
    with pytest.raises(
        FactoryError, match=r"ext4 of partition 1 is not clean: .*; boot it once and shut it down, or set"
    ):
        run(dirty)
    assert dirty.read_bytes() == before
    disk = packed(dirty)
    before = disk.read_bytes()
    with pytest.raises(FactoryError, match="is not clean"):
        run(disk)
    assert disk.read_bytes() == before
    # e2fsck trims nothing on the run on which it mends anything.
    told = run(disk, repair=True)
    assert told.extra["ratio"] <= _compact.TARGET


def test_a_file_system_that_nothing_can_mend_is_refused(dirty):
    unclean(dirty)
    with dirty.open("r+b") as stream:
        stream.seek(AT + 4096)
        stream.write(b"\xff" * 8 * MIB)
    before = dirty.read_bytes()
    problem = ""
    try:
        run(dirty, repair=True)
    except FactoryError as exc:
        problem = str(exc)
    if problem:
        assert "cannot be repaired" in problem
        assert dirty.read_bytes() == before
    else:
        tool("e2fsck", "-fn", f"{dirty}?offset={AT}")
    assert not list(dirty.parent.glob(".partial-*"))


def test_a_suspended_machine_keeps_its_swap(dirty):
    with dirty.open("r+b") as stream:
        stream.seek(61 * MIB + 4096 - 10)
        stream.write(b"S1SUSPEND\0")
    told = run(dirty)
    swap = told.extra["volumes"][1]
    assert swap["before"] == swap["after"]
    assert any("volume 2" in note for note in told.extra["notes"])


def test_what_holds_nothing_that_is_known_stays(tmp_path):
    disk = tmp_path / "disk"
    disk.write_bytes(b"?" * MIB)
    told = run(disk, format="raw")
    assert not told.changed
    assert told.extra["notes"] == ["volume 0 (unknown): nothing that is known is on it"]
    assert told.extra["ratio"] is None


def test_a_layer_of_the_cache_is_refused(dirty):
    folder = dirty.parent / "layers"
    folder.mkdir()
    layer = packed(dirty).rename(folder / "x.qcow2")
    _state.write_json(layer.with_suffix(".json"), {"digest": "1"})
    with pytest.raises(FactoryError, match="is in the layer cache, where it is trimmed already; copy it first"):
        run(layer)


def test_what_a_tool_has_open_is_refused(dirty):
    disk = packed(dirty)
    user = subprocess.Popen(["qemu-io", "-f", "qcow2", str(disk)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        user.stdin.write(b"read 0 512\n")
        user.stdin.flush()
        user.stdout.readline()
        with pytest.raises(FactoryError, match="is in use by a virtual machine or a qemu tool"):
            run(disk)
    finally:
        user.stdin.close()
        user.wait()
        user.stdout.close()


def test_overlapping_clusters_are_told_and_not_written_anew(dirty):
    disk = packed(dirty)
    with disk.open("r+b") as stream:
        stream.seek(40)
        (l1_at,) = struct.unpack(">Q", stream.read(8))
        stream.seek(l1_at)
        l2_at = struct.unpack(">Q", stream.read(8))[0] & 0x00FFFFFFFFFFFE00
        stream.seek(l2_at + 16 * 8)
        entry = stream.read(8)
        stream.seek(l2_at + 17 * 8)
        stream.write(entry)
    before = disk.read_bytes()
    with pytest.raises(FactoryError, match=r"is corrupted \(\d+ errors\)"):
        run(disk)
    assert disk.read_bytes() == before


@pytest.fixture
def little_space(tmp_path):
    """A file system of 48 MiB."""
    folder = tmp_path / "little"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", folder], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("cannot mount a tmpfs here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.root
def test_a_full_file_system_leaves_the_disk_as_it_was(dirty, little_space, monkeypatch):
    disk = Path(shutil.move(packed(dirty), little_space / "disk.qcow2"))
    before = disk.read_bytes()
    with pytest.raises(FactoryError, match=r"MiB are free, a look into disk\.qcow2 needs \d+ MiB; free some space"):
        run(disk)
    monkeypatch.setattr(_state, "need_space", lambda *_args: None)
    with pytest.raises(FactoryError, match=r"No space left on device.*; free some space there") as caught:
        run(disk)
    assert "\n" not in str(caught.value)
    assert disk.read_bytes() == before
    assert [path.name for path in little_space.iterdir()] == ["disk.qcow2"]


_SLOW = """
import sys, time
from pathlib import Path
from ansible.utils.collection_loader._collection_finder import _AnsibleCollectionFinder
_AnsibleCollectionFinder(paths=sys.argv[2].split(":"))._install()
from ansible_collections.cloudimg.factory.plugins.module_utils import _compact, _qemu_img
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
def check(*args, **options):
    if str(args[0]).count(".partial-"):
        print("half", flush=True)
        time.sleep(600)
_qemu_img.check = check
_compact.compact(_compact.Order(Path(sys.argv[1])), Progress("compact"))
"""


def test_killed_half_way_it_is_as_before_and_nothing_stays_behind(dirty):
    disk = packed(dirty)
    before = disk.read_bytes()
    argv = [sys.executable, "-c", _SLOW, str(disk), os.environ["ANSIBLE_COLLECTIONS_PATH"]]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    assert disk.read_bytes() == before
    assert len(list(disk.parent.glob(".partial-*"))) == 2
    assert run(disk).changed
    assert not list(disk.parent.glob(".partial-*"))
    assert content(unpacked(disk)) == LIVE


def on_loop(disk: Path, fstype: str, work: t.Callable[[Path], None]) -> None:
    """Do something in a file system on a whole raw disk; the builder's kernel mounts it for that."""
    point = disk.with_name("mnt")
    point.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", fstype, "-o", "loop", disk, point], check=False, capture_output=True)
    if done.returncode:
        pytest.skip(f"this kernel mounts no {fstype}")
    try:
        work(point)
    finally:
        subprocess.run(["umount", point], check=True)


def in_use(disk: Path) -> bool:
    """Whether a loop device or a mount of it stays behind; whoever looks at all devices may hold one for a moment."""
    deadline = time.monotonic() + 30
    while (found := _listed(disk)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def _listed(disk: Path) -> bool:
    return str(disk) in tool("losetup", "--list") or str(disk) in Path("/proc/self/mountinfo").read_text()


@pytest.mark.root
@pytest.mark.parametrize("fstype", ["xfs", "btrfs"])
def test_file_systems_that_are_mounted_for_it(tmp_path, fstype):
    if not _cli.which(f"mkfs.{fstype}"):
        pytest.skip(f"mkfs.{fstype} is not installed")
    disk = tmp_path / "disk"
    with disk.open("wb") as stream:
        stream.truncate(400 * MIB)
    tool(f"mkfs.{fstype}", "-q", disk)

    def fill_it(point: Path) -> None:
        (point / "live").write_bytes(LIVE)
        (point / "gone").write_bytes(random.Random(4).randbytes(80 * MIB))
        subprocess.run(["sync", "--file-system", point], check=True)
        (point / "gone").unlink()

    on_loop(disk, fstype, fill_it)
    before = disk.stat().st_blocks * 512
    assert before > 80 * MIB
    told = run(disk, format="raw")
    assert told.changed
    assert told.extra["before"] - told.extra["after"] > 70 * MIB
    assert told.extra["ratio"] <= _compact.TARGET
    on_loop(disk, fstype, lambda point: _same(point / "live"))
    assert not in_use(disk)
    assert not run(disk, format="raw").changed


def _same(path: Path) -> None:
    assert path.read_bytes() == LIVE


@pytest.mark.root
def test_an_xfs_with_a_log_to_replay_is_refused(tmp_path):
    if not _cli.which("mkfs.xfs"):
        pytest.skip("mkfs.xfs is not installed")
    disk, torn = tmp_path / "disk", tmp_path / "torn"
    with disk.open("wb") as stream:
        stream.truncate(400 * MIB)
    tool("mkfs.xfs", "-q", disk)

    def work(point: Path) -> None:
        for number in range(200):
            (point / f"file-{number}").write_bytes(b"x" * 100)
        subprocess.run(["sync", "--file-system", point], check=True)
        # as the disk is when the power fails now: the log is written, what it tells of is not
        subprocess.run(["cp", "--sparse=always", disk, torn], check=True)

    on_loop(disk, "xfs", work)
    before = torn.read_bytes()
    with pytest.raises(FactoryError, match="xfs of the whole disk is not clean"):
        run(torn, format="raw")
    assert torn.read_bytes() == before
    assert not in_use(torn)
    run(torn, format="raw", repair=True)
    tool("xfs_repair", "-n", "-f", torn)


def test_used_is_what_dumpe2fs_says(dirty):
    volume = _partitions.volumes(dirty)[0]
    said = dict(
        line.split(":", 1) for line in tool("dumpe2fs", "-h", f"{dirty}?offset={AT}").splitlines() if ":" in line
    )
    blocks = int(said["Block count"]) - int(said["Free blocks"])
    assert _trim.ext_used(dirty, volume) == blocks * int(said["Block size"])


@pytest.mark.root
def test_where_e2fsck_can_make_no_holes_zerofree_does(dirty):
    if not _cli.which("zerofree"):
        pytest.skip("zerofree is not installed")
    volume = _partitions.volumes(dirty)[0]
    before = _trim.allocated_in(dirty, volume)
    _trim.zero_free(dirty, volume)
    assert before - _trim.allocated_in(dirty, volume) >= 19 * MIB
    assert content(dirty) == LIVE
    assert not in_use(dirty)


@pytest.mark.root
def test_what_a_loop_device_has_open_is_refused(dirty):
    node = tool("losetup", "--find", "--show", dirty).strip()
    try:
        with pytest.raises(FactoryError, match=rf"is in use by {node}; wait until that has ended"):
            run(dirty)
    finally:
        tool("losetup", "--detach", node)
    assert run(dirty).changed
