# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disk files that are made, changed and removed, and such as are refused; all by the real qemu-img."""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _disk_chain, _disk_image, _qemu_img, _state
from ansible_collections.cloudimg.factory.plugins.module_utils._disk_image import Wanted, ensure_absent, ensure_present
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path):
    """The path of a disk that is not there yet."""
    return tmp_path / "a disk, of mine.qcow2"


def have(path: Path, check_mode: bool = False, **options: t.Any):
    """Have it so."""
    return ensure_present(Wanted(path, **options), check_mode=check_mode)


def write(path: Path, offset: int, data: bytes, fmt: str = "qcow2") -> None:
    """Write into a disk as a guest would."""
    pattern = f"write -P {data[0]} {offset} {len(data)}"
    subprocess.run(["qemu-io", "-f", fmt, "-c", pattern, str(path)], check=True, capture_output=True)


def reads(path: Path, offset: int, data: bytes, fmt: str = "qcow2") -> bool:
    """Whether a guest reads that."""
    pattern = f"read -P {data[0]} {offset} {len(data)}"
    done = subprocess.run(
        ["qemu-io", "-r", "-f", fmt, "-c", pattern, str(path)], check=False, capture_output=True, text=True
    )
    return done.returncode == 0 and "verification failed" not in done.stdout


def alone(path: Path) -> bool:
    """Whether nothing half made is beside it."""
    return not list(path.parent.glob(".partial-*"))


@pytest.mark.parametrize("fmt", _disk_chain.FORMATS)
def test_an_empty_disk_of_each_format(tmp_path, fmt):
    path = tmp_path / "disk"
    result = have(path, format=fmt, size=64 * MIB)
    assert result.changed
    assert result.extra["disk"]["format"] == fmt
    # vpc rounds up to whole cylinders
    assert 64 * MIB <= _qemu_img.info(path, fmt).virtual_size <= 65 * MIB
    assert alone(path)


def test_again_changes_nothing(disk):
    have(disk, size=64 * MIB)
    before = disk.stat()
    again = have(disk, size=64 * MIB)
    assert (again.changed, again.actions) == (False, [])
    assert disk.stat().st_mtime_ns == before.st_mtime_ns
    assert again.diff["before"] == again.diff["after"]


def test_check_mode_makes_nothing_and_tells_it_all(disk):
    told = have(disk, check_mode=True, size=64 * MIB)
    assert told.changed
    assert not disk.exists()
    assert told.diff["after"]["virtual_size"] == 64 * MIB
    have(disk, size=64 * MIB)
    told = have(disk, check_mode=True, size=128 * MIB)
    assert told.actions == [f"grow {disk}: {64 * MIB} → {128 * MIB} bytes"]
    assert _qemu_img.info(disk).virtual_size == 64 * MIB


def test_an_overlay_takes_the_size_of_what_is_below_or_more(tmp_path, disk):
    base = tmp_path / "base.qcow2"
    have(base, size=64 * MIB)
    write(base, 0, b"x" * 4096)
    assert have(disk, backing=base).extra["disk"]["virtual_size"] == 64 * MIB
    assert reads(disk, 0, b"x" * 4096)
    assert not have(disk, backing=base).changed
    have(tmp_path / "large.qcow2", backing=base, size=128 * MIB)
    with pytest.raises(FactoryError, match=rf"size: {32 * MIB} bytes are less than the disk below has"):
        have(tmp_path / "small.qcow2", backing=base, size=32 * MIB)
    assert not (tmp_path / "small.qcow2").exists()


def test_it_grows_and_keeps_what_is_in_it(disk):
    have(disk, size=64 * MIB)
    write(disk, 0, b"x" * 4096)
    assert have(disk, size=128 * MIB).changed
    assert _qemu_img.info(disk).virtual_size == 128 * MIB
    assert reads(disk, 0, b"x" * 4096)


def test_it_shrinks_only_where_that_is_said_and_nothing_lost(disk):
    have(disk, size=128 * MIB)
    write(disk, 0, b"x" * 4096)
    with pytest.raises(FactoryError, match=r"is larger .*; set shrink, if it is to become smaller"):
        have(disk, size=64 * MIB)
    write(disk, 100 * MIB, b"y" * 512)
    with pytest.raises(FactoryError, match=rf"size: holds data beyond {64 * MIB} bytes"):
        have(disk, size=64 * MIB, shrink=True)
    assert _qemu_img.info(disk).virtual_size == 128 * MIB
    write(disk, 100 * MIB, b"\0" * 512)
    assert have(disk, size=64 * MIB, shrink=True).changed
    assert _qemu_img.info(disk).virtual_size == 64 * MIB
    assert reads(disk, 0, b"x" * 4096)


def test_no_partition_and_no_file_system_is_cut_off(tmp_path):
    disk = tmp_path / "disk"
    have(disk, format="raw", size=64 * MIB)
    table = "label: dos\nstart=2048, size=80000, type=83\n"
    subprocess.run(["/sbin/sfdisk", "-q", disk], input=table, text=True, check=True, capture_output=True)
    with pytest.raises(
        FactoryError, match=rf"partition 1 would be cut off at {32 * MIB} bytes; make its last partition"
    ):
        have(disk, format="raw", size=32 * MIB, shrink=True)
    assert have(disk, format="raw", size=48 * MIB, shrink=True).changed
    whole = tmp_path / "whole"
    have(whole, format="raw", size=64 * MIB)
    subprocess.run(["/sbin/mkfs.ext4", "-q", whole], check=True)
    with pytest.raises(FactoryError, match=r"its file system \(ext4\) would be cut off"):
        have(whole, format="raw", size=48 * MIB, shrink=True)


def with_gpt(path: Path, fmt: str, size: int = 64 * MIB) -> Path:
    """A disk with an ESP, and a partition that ends at 32 MiB."""
    raw = path.with_name("gpt.raw")
    have(raw, format="raw", size=size)
    table = "label: gpt\nsize=1MiB, type=U\nsize=30MiB, type=L\n"
    subprocess.run(["/sbin/sfdisk", "-q", raw], input=table, text=True, check=True, capture_output=True)
    _qemu_img.convert(raw, path, source_fmt="raw", target_fmt=fmt)
    raw.unlink()
    return path


def verified(path: Path, fmt: str) -> str:
    """What sfdisk says of the table; partitions without the disk's size."""
    raw = path.with_name("look.raw")
    _qemu_img.convert(path, raw, source_fmt=fmt, target_fmt="raw")
    done = subprocess.run(["/sbin/sfdisk", "--verify", raw], check=True, capture_output=True, text=True)
    assert "No errors detected" in done.stdout and not done.stderr.strip(), done.stdout + done.stderr
    dumped = subprocess.run(["/sbin/sfdisk", "--dump", raw], check=True, capture_output=True, text=True).stdout
    raw.unlink()
    return "\n".join(line for line in dumped.splitlines() if line.startswith(("/", "label-id")))


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
@pytest.mark.parametrize("size", [48 * MIB, 64 * MIB - 4096, 32 * MIB + 33 * 512])
def test_a_gpt_gets_its_copy_before_the_new_end(tmp_path, fmt, size):
    path = with_gpt(tmp_path / "a disk", fmt)
    before = verified(path, fmt)
    have(path, format=fmt, size=size, shrink=True, check_mode=True)
    assert _qemu_img.info(path, fmt).virtual_size == 64 * MIB
    result = have(path, format=fmt, size=size, shrink=True)
    assert result.changed and _qemu_img.info(path, fmt).virtual_size == size
    assert verified(path, fmt) == before
    assert not have(path, format=fmt, size=size, shrink=True).changed


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_a_gpt_that_grew_before_shrinks_again(tmp_path, fmt):
    path = with_gpt(tmp_path / "disk", fmt)
    before = verified(path, fmt)
    have(path, format=fmt, size=96 * MIB)
    assert have(path, format=fmt, size=48 * MIB, shrink=True).changed
    assert verified(path, fmt) == before


def test_what_a_gpt_would_lose_is_refused(tmp_path):
    path = with_gpt(tmp_path / "disk", "qcow2")
    with pytest.raises(FactoryError, match=r"size: partition 2 would be cut off at"):
        have(path, size=32 * MIB + 32 * 512, shrink=True)
    write(path, 50 * MIB, b"x" * 512)
    with pytest.raises(FactoryError, match=r"size: holds data beyond"):
        have(path, size=48 * MIB, shrink=True)
    write(path, 50 * MIB, b"\0" * 512)
    write(path, 1024 + 128, b"y")
    with pytest.raises(FactoryError, match="its GPT is damaged; mend it by gdisk"):
        have(path, size=48 * MIB, shrink=True)
    assert _qemu_img.info(path).virtual_size == 64 * MIB
    empty = tmp_path / "empty"
    have(empty, format="raw", size=64 * MIB)
    subprocess.run(["/sbin/sfdisk", "-q", empty], input="label: gpt\n", text=True, check=True, capture_output=True)
    with pytest.raises(FactoryError, match="its GPT has no room in 24576 bytes"):
        have(empty, format="raw", size=24576, shrink=True)


def test_a_gpt_is_whole_wherever_shrinking_ends(tmp_path, monkeypatch):
    """Each of the steps may be the last."""
    path = with_gpt(tmp_path / "disk", "qcow2")
    before = verified(path, "qcow2")
    real, left = _qemu_img.write, [0]

    def some(place: Path, *rest: t.Any) -> None:
        if place == path:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
        real(place, *rest)

    monkeypatch.setattr(_qemu_img, "write", some)
    for steps in (0, 1):
        left[0] = steps
        with pytest.raises(KeyboardInterrupt):
            have(path, size=48 * MIB, shrink=True)
        assert verified(path, "qcow2") == before
    left[0] = 2
    assert have(path, size=48 * MIB, shrink=True).changed
    assert verified(path, "qcow2") == before


def test_rebased_it_reads_the_same(tmp_path, disk):
    one, two = tmp_path / "one.qcow2", tmp_path / "two.qcow2"
    for base, content in ((one, b"1"), (two, b"2")):
        have(base, size=64 * MIB)
        write(base, MIB, content * 4096)
    have(disk, backing=one)
    write(disk, 0, b"x" * 4096)
    with pytest.raises(FactoryError, match="set trusted, if nobody else has made it"):
        have(disk, backing=two)
    assert have(disk, check_mode=True, backing=two, trusted=True).changed
    result = have(disk, backing=two, trusted=True)
    assert result.actions == [f"put it on {two} instead of {one}"]
    assert _qemu_img.info(disk).backing == two
    assert reads(disk, MIB, b"1" * 4096)
    assert reads(disk, 0, b"x" * 4096)
    assert not have(disk, backing=two).changed
    assert alone(disk)


def test_a_disk_below_that_was_moved_is_named_anew(tmp_path, disk):
    base = tmp_path / "base.qcow2"
    have(base, size=64 * MIB)
    write(base, 0, b"x" * 4096)
    have(disk, backing=base)
    moved = base.rename(tmp_path / "moved.qcow2")
    with pytest.raises(FactoryError, match=r"the disk below it is not there \(.*base\.qcow2\); restore that"):
        have(disk, trusted=True)
    assert have(disk, backing=moved, rebase="unsafe").changed
    assert reads(disk, 0, b"x" * 4096)


def test_flattened_it_stands_alone_and_reads_the_same(tmp_path, disk):
    base = tmp_path / "base.qcow2"
    have(base, size=64 * MIB)
    write(base, 0, b"x" * 4096)
    have(disk, backing=base, size=80 * MIB)
    disk.chmod(0o600)
    with pytest.raises(FactoryError, match=r"needs another disk below it \(.*base\.qcow2\); set trusted"):
        have(disk, flat=True)
    assert have(disk, flat=True, trusted=True).changed
    base.unlink()
    assert reads(disk, 0, b"x" * 4096)
    info = _qemu_img.info(disk)
    assert (info.backing, info.virtual_size) == (None, 80 * MIB)
    assert disk.stat().st_mode & 0o777 == 0o600
    assert not have(disk, flat=True).changed


def test_a_flat_disk_is_put_on_no_other(tmp_path, disk):
    base = tmp_path / "base.qcow2"
    have(base, size=64 * MIB)
    have(disk, size=64 * MIB)
    with pytest.raises(FactoryError, match="backing: stands on no other disk; remove it first"):
        have(disk, backing=base)


def test_another_format_is_refused_and_not_converted(disk):
    have(disk, size=64 * MIB)
    before = disk.read_bytes()
    with pytest.raises(FactoryError, match="format: is qcow2, not vmdk; give qcow2"):
        have(disk, format="vmdk")
    assert disk.read_bytes() == before


def test_a_raw_disk_that_looks_like_a_qcow2_stays_raw(tmp_path):
    disk = tmp_path / "disk"
    have(disk, format="raw", size=MIB)
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * 512)
    qcow2 = tmp_path / "x.qcow2"
    _qemu_img.create(qcow2, MIB, backing=secret, backing_fmt="raw")
    with disk.open("r+b") as stream:
        stream.write(qcow2.read_bytes()[:65536])
    assert not have(disk, format="raw", size=MIB).changed
    with pytest.raises(FactoryError, match="needs another disk below it"):
        have(disk, size=MIB)


def test_what_is_in_use_is_refused(tmp_path, disk):
    have(disk, size=64 * MIB)
    argv = ["qemu-io", "-f", "qcow2", str(disk)]
    user = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        user.stdin.write(b"read 0 512\n")
        user.stdin.flush()
        user.stdout.readline()
        for attempt in (lambda: have(disk, size=128 * MIB), lambda: ensure_absent(disk)):
            with pytest.raises(
                FactoryError, match=r"is in use by a virtual machine or a qemu tool; wait|Is another process"
            ):
                attempt()
    finally:
        user.stdin.close()
        user.wait()
        user.stdout.close()
    assert _qemu_img.info(disk).virtual_size == 64 * MIB
    assert have(disk, size=128 * MIB).changed


def test_absent(tmp_path, disk):
    assert not ensure_absent(disk).changed
    have(disk, size=MIB)
    assert ensure_absent(disk, check_mode=True).changed
    assert disk.exists()
    assert ensure_absent(disk).changed
    assert not disk.exists()
    with pytest.raises(FactoryError, match="is no regular file; give the path of a disk file"):
        ensure_absent(tmp_path)
    assert tmp_path.is_dir()


def test_sizes_are_needed(disk):
    with pytest.raises(FactoryError, match="size: is needed to make a disk; set it, or backing"):
        have(disk)
    with pytest.raises(FactoryError, match="format: a disk of the format raw cannot stand on another"):
        have(disk, format="raw", backing=_made(disk))


def _made(disk: Path) -> Path:
    base = disk.with_name("base.qcow2")
    have(base, size=MIB)
    return base


HEADERS: dict[str, tuple[int, bytes, str]] = {
    "petabytes": (24, struct.pack(">Q", 1 << 56), "claims to hold 72057594037927936 bytes, more than is believable"),
    "clusters": (20, struct.pack(">I", 63), r"has impossible clusters \(2\^63 bytes\)"),
    "encrypted": (32, struct.pack(">I", 1), "is encrypted"),
    "data file": (72, struct.pack(">Q", 4), "keeps its data in another file"),
    "features": (72, struct.pack(">Q", 1 << 40), "uses features of qcow2 that are not known"),
    "corrupt": (72, struct.pack(">Q", 2), "is marked as corrupted"),
    "version": (4, struct.pack(">I", 9), "is a qcow2 of version 9"),
    "name": (8, struct.pack(">QI", 60000, 60000), "has its backing file's name at an odd place"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_are_not_believed(disk, name):
    at, value, problem = HEADERS[name]
    have(disk, size=64 * MIB)
    with disk.open("r+b") as stream:
        stream.seek(at)
        stream.write(value)
    before = disk.read_bytes()
    for options in ({"size": 128 * MIB}, {"flat": True, "trusted": True}):
        with pytest.raises(FactoryError, match=problem) as caught:
            have(disk, **options)
        assert "\n" not in str(caught.value)
    assert disk.read_bytes() == before


@pytest.mark.parametrize("seed", range(4))
def test_no_header_is_too_odd(tmp_path, disk, seed):
    """Whatever stands there, it is taken or refused in one line."""
    base = tmp_path / "base.qcow2"
    have(base, size=MIB)
    have(disk, backing=base)
    whole = disk.read_bytes()[:4096]
    dice = random.Random(seed)
    odd = [0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 104, 65535]
    refused: list[str] = []
    for _turn in range(250):
        head = bytearray(whole[: dice.choice([4096, 4096, 4096, dice.randint(4, 300)])])
        for _change in range(dice.randint(1, 4)):
            at = dice.randrange(4, min(len(head), 420)) & ~3
            head[at : at + 4] = struct.pack(">I", dice.choice([*odd, dice.getrandbits(32)]))
        disk.write_bytes(head)
        for trusted in (False, True):
            try:
                links = _disk_chain.chain(disk, trusted=trusted)
                assert links[0].format == "qcow2"
            except FactoryError as exc:
                refused.append(str(exc))
    assert len(refused) > 100
    assert not [line for line in refused if "\n" in line]


@pytest.mark.parametrize("backing", ["nbd:unix:/run/x", "json:{}", "ssh://host/disk"])
def test_a_disk_below_that_is_no_file_is_refused(disk, backing):
    subprocess.run(
        ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", "raw", disk, "1M"], check=True
    )
    with pytest.raises(FactoryError, match="stands on something that is no file"):
        have(disk, trusted=True)


def test_a_circle_of_disks_is_refused(tmp_path, disk):
    other = tmp_path / "other.qcow2"
    for one, below in ((disk, other), (other, disk)):
        subprocess.run(
            ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", below, "-F", "qcow2", one, "1M"], check=True
        )
    with pytest.raises(FactoryError, match="the disks below it lead round in a circle; rebase one of them"):
        have(disk, trusted=True)


def overlap(disk: Path) -> None:
    """Have two guest clusters share one cluster of the file."""
    with disk.open("r+b") as stream:
        stream.seek(40)
        (l1_at,) = struct.unpack(">Q", stream.read(8))
        stream.seek(l1_at)
        l2_at = struct.unpack(">Q", stream.read(8))[0] & 0x00FFFFFFFFFFFE00
        stream.seek(l2_at)
        entry = stream.read(8)
        stream.seek(l2_at + 8)
        stream.write(entry)


def test_overlapping_clusters_are_told_in_one_line_and_repaired_if_asked(disk):
    have(disk, size=64 * MIB)
    write(disk, 0, b"x" * 2 * 65536)
    overlap(disk)
    with pytest.raises(FactoryError, match=r"is corrupted \(\d+ errors\); restore it, or set repair to all") as caught:
        have(disk, size=128 * MIB)
    assert "\n" not in str(caught.value)
    assert _qemu_img.examine(disk)["corruptions"]
    result = have(disk, repair="all")
    assert "errors" in result.actions[0]
    assert _qemu_img.examine(disk)["corruptions"] == 0
    assert not have(disk, repair="all").changed


def test_leaks_are_given_back_if_asked(disk):
    have(disk, size=64 * MIB)
    write(disk, 0, b"x" * 65536)
    with disk.open("r+b") as stream:
        stream.seek(40)
        (l1_at,) = struct.unpack(">Q", stream.read(8))
        stream.seek(l1_at)
        stream.write(bytes(8))
    assert not have(disk).changed
    assert have(disk, repair="leaks").changed
    assert not have(disk, repair="leaks").changed


@pytest.fixture
def little_space(tmp_path):
    """A file system of 8 MiB."""
    folder = tmp_path / "little"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("cannot mount a tmpfs here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.root
def test_a_full_file_system_leaves_what_was_there(tmp_path, little_space, monkeypatch):
    base, disk = tmp_path / "base.qcow2", little_space / "disk.qcow2"
    have(base, size=64 * MIB)
    write(base, 0, b"x" * 32 * MIB)
    have(disk, backing=base)
    before = disk.read_bytes()
    with pytest.raises(FactoryError, match=r"MiB are free, the flat disk\.qcow2 needs \d+ MiB; free some space there"):
        have(disk, flat=True, trusted=True)
    # It may be filled only while that goes on.
    monkeypatch.setattr(_state, "need_space", lambda *_args: None)
    with pytest.raises(FactoryError, match=r"No space left on device.*; free some space there") as caught:
        have(disk, flat=True, trusted=True)
    assert "\n" not in str(caught.value)
    with pytest.raises(FactoryError, match="No space left on device"):
        have(little_space / "new", format="raw", size=64 * MIB, preallocation="full")
    assert disk.read_bytes() == before
    assert [path.name for path in little_space.iterdir()] == ["disk.qcow2"]


_SLOW = """
import sys, time
from pathlib import Path
from ansible.utils.collection_loader._collection_finder import _AnsibleCollectionFinder
_AnsibleCollectionFinder(paths=sys.argv[2].split(":"))._install()
from ansible_collections.cloudimg.factory.plugins.module_utils import _disk_image, _qemu_img
real = _qemu_img.convert
def convert(source, target, **options):
    real(source, target, **options)
    print("half", flush=True)
    time.sleep(600)
_qemu_img.convert = convert
_disk_image.ensure_present(_disk_image.Wanted(Path(sys.argv[1]), flat=True, trusted=True))
"""


def test_killed_half_way_it_is_as_before_and_nothing_stays_behind(tmp_path, disk):
    base = tmp_path / "base.qcow2"
    have(base, size=64 * MIB)
    write(base, 0, b"x" * MIB)
    have(disk, backing=base)
    before = disk.read_bytes()
    argv = [sys.executable, "-c", _SLOW, str(disk), os.environ["ANSIBLE_COLLECTIONS_PATH"]]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    assert disk.read_bytes() == before
    assert not alone(disk)
    assert have(disk, flat=True, trusted=True).changed
    assert alone(disk)
    assert reads(disk, 0, b"x" * MIB)
    assert time.time() - disk.stat().st_mtime < 3600


def test_a_copy_that_would_read_differently_does_not_take_its_place(tmp_path, disk, monkeypatch):
    base = tmp_path / "base.qcow2"
    have(base, size=64 * MIB)
    have(disk, backing=base)
    before = disk.read_bytes()
    monkeypatch.setattr(_qemu_img, "compare", lambda *_args, **_options: False)
    with pytest.raises(FactoryError, match="would hold something else than before; check this machine's memory"):
        have(disk, flat=True, trusted=True)
    assert disk.read_bytes() == before
    assert alone(disk)
    assert _disk_image.describe(_qemu_img.info(disk))["backing"] == str(base)
