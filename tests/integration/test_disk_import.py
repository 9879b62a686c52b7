# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks of every format, made by the tools that make them, imported as bases; and what goes wrong on the way."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import hashlib
import json
import lzma
import os
import signal
import subprocess
import time
import typing as t
from pathlib import Path

import pytest
from foreign_disks import MIB, ROOT_AT, SIZE, TABLE, converted, make_ova, raw_disk, run

from ansible_collections.cloudimg.factory.plugins.module_utils import _import, _qemu_img, _state
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.plugins.module_utils._source_disk import SourceDisk
from ansible_collections.cloudimg.factory.tests.tools.media_server import MediaServer
from ansible_collections.cloudimg.factory.tests.tools.vendor import Signer, sha256, sums

IMAGE = "legacy"


@dataclasses.dataclass
class Bench:
    """A workspace into which disks are imported."""

    workspace: _state.Workspace

    def order(self, source: t.Mapping[str, t.Any], size: int = SIZE, **more: t.Any) -> _import.Order:
        """What is to be imported."""
        return _import.Order(self.workspace, IMAGE, SourceDisk.load(source), size, **more)

    def run(
        self, source: Path | t.Mapping[str, t.Any], size: int = SIZE, check_mode: bool = False, **more: t.Any
    ) -> Result:
        """Import a file, or what a mapping says."""
        if isinstance(source, Path):
            source = {"path": str(source), "checksum": f"sha256:{sha256(source)}", **more}
            more = {}
        return _import.import_base(self.order(source, size, **more), Progress("base_vm"), check_mode=check_mode)

    def refused(self, source: Path | t.Mapping[str, t.Any], message: str, size: int = SIZE, **more: t.Any) -> None:
        """Import what must be refused by one line, and leave nothing."""
        with pytest.raises(FactoryError, match=message) as caught:
            self.run(source, size, **more)
        assert "\n" not in str(caught.value)
        assert caught.value.mend
        assert self.names() == []

    def names(self) -> list[str]:
        """What is in the caches, but for locks."""
        places = (self.workspace.layers, self.workspace.media)
        return sorted(path.name for place in places if place.exists() for path in place.iterdir())


@pytest.fixture
def bench(tmp_path):
    return Bench(_state.Workspace(tmp_path / "workspace"))


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """A raw disk."""
    return raw_disk(tmp_path_factory.mktemp("disk") / "disk.raw")


def gz(raw: Path, path: Path) -> Path:
    path.write_bytes(gzip.compress(raw.read_bytes(), 1))
    return path


def xz(raw: Path, path: Path) -> Path:
    path.write_bytes(lzma.compress(raw.read_bytes(), preset=0))
    return path


def bzip2(raw: Path, path: Path) -> Path:
    path.write_bytes(bz2.compress(raw.read_bytes(), 1))
    return path


def zst(raw: Path, path: Path) -> Path:
    run("zstd", "-q", "-1", raw, "-o", path)
    return path


def by_qemu(fmt: str, *options: str) -> t.Callable[[Path, Path], Path]:
    return lambda raw, path: converted(raw, path, fmt, *options)


FORMATS: dict[str, tuple[t.Callable[[Path, Path], Path], str | None, str]] = {
    "raw": (lambda raw, path: raw, None, "raw"),
    "raw.gz": (gz, "raw.gz", "raw.gz"),
    "raw.xz": (xz, None, "raw.xz"),
    "raw.zst": (zst, "raw.zst", "raw.zst"),
    "raw.bz2": (bzip2, None, "raw.bz2"),
    "qcow2": (by_qemu("qcow2"), None, "qcow2"),
    "qcow2-v2": (by_qemu("qcow2", "-o", "compat=0.10"), None, "qcow2"),
    "qcow2-zstd": (by_qemu("qcow2", "-c", "-o", "compression_type=zstd"), None, "qcow2"),
    "vmdk": (by_qemu("vmdk"), None, "vmdk"),
    "vmdk-stream": (by_qemu("vmdk", "-o", "subformat=streamOptimized"), None, "vmdk"),
    "vdi": (by_qemu("vdi"), None, "vdi"),
    "vhd": (by_qemu("vpc"), "vhd", "vpc"),
    "vhd-fixed": (by_qemu("vpc", "-o", "subformat=fixed"), None, "vpc"),
    "vhdx": (by_qemu("vhdx"), "vhdx", "vhdx"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_makes_the_same_disk(bench, raw, tmp_path, name):
    make, given, told = FORMATS[name]
    source = make(raw, tmp_path / "source")
    before = source.read_bytes()
    result = bench.run(source, format=given)
    base = result.extra["base"]
    assert result.actions == [f"import {source}: this image has no base yet"]
    assert base["source"]["format"] == told
    assert base["source"]["checksum"] == f"sha256:{sha256(source)}"
    assert base["layout"]["root"]["partition"] == 2
    assert base["warnings"] == []
    info = _qemu_img.info(Path(base["path"]))
    assert (info.virtual_size, info.backing, info.actual_size < 8 * MIB) == (SIZE, None, True)
    assert _qemu_img.compare(raw, "raw", Path(base["path"]), "qcow2")
    assert source.read_bytes() == before
    assert [Path(name).suffix for name in bench.names()] == [".json", ".qcow2", ".json"]


def test_the_same_again_comes_from_the_cache_without_the_source(bench, raw, tmp_path):
    source = by_qemu("qcow2")(raw, tmp_path / "source.qcow2")
    given = {"path": str(source), "checksum": f"sha256:{sha256(source)}"}
    planned = bench.run(given, check_mode=True)
    assert (planned.changed, planned.extra["cached"], bench.names()) == (True, False, [])
    first = bench.run(given)
    assert planned.extra["base"]["digest"] == first.extra["base"]["digest"]
    source.unlink()
    again = bench.run(given)
    assert (again.changed, again.extra["cached"], again.actions) == (False, True, [])
    assert again.extra["base"] == first.extra["base"]
    larger = bench.run(given, size=2 * SIZE, check_mode=True)
    assert larger.actions == [f"import {source}: changed since the last base: disk"]
    assert larger.diff["after"]["disk"] == {"size": 2 * SIZE}


def test_a_damaged_base_is_imported_again(bench, raw):
    base = Path(bench.run(raw).extra["base"]["path"])
    with base.open("r+b") as stream:
        stream.truncate(base.stat().st_size - 65536)
    result = bench.run(raw)
    assert result.actions == [f"import {raw}: the cached base {base.name} is damaged"]
    assert _qemu_img.compare(raw, "raw", base, "qcow2")


def test_a_smaller_disk_grows_and_its_table_with_it(bench, raw):
    base = bench.run(raw, size=2 * SIZE).extra["base"]
    grown = Path(base["path"]).with_suffix(".raw")
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", base["path"], grown)
    verified = subprocess.run(["sfdisk", "--verify", grown], capture_output=True, text=True, check=True)
    assert "backup GPT table" not in verified.stdout + verified.stderr
    assert grown.stat().st_size == 2 * SIZE


def test_from_a_server_with_a_signed_list_of_checksums(bench, raw, tmp_path):
    source = by_qemu("qcow2", "-c")(raw, tmp_path / "disk.qcow2")
    signer = Signer(tmp_path / "gnupg")
    server = MediaServer()
    try:
        listed = sums(source)
        given = {
            "url": server.put("/disk.qcow2", source.read_bytes(), cut=[1 << 20]),
            "checksum": server.put("/SHA256SUMS", listed),
            "signature": server.put("/SHA256SUMS.asc", signer.detached(listed)),
            "keyring": str(signer.keyring(tmp_path / "keys.gpg")),
        }
        base = bench.run(given).extra["base"]
        assert _qemu_img.compare(raw, "raw", Path(base["path"]), "qcow2")
        seen = len(server.requests)
        assert bench.run(given).extra["cached"]
        assert len(server.requests) == seen
        other = Signer(tmp_path / "other")
        try:
            wrong = {**given, "keyring": str(other.keyring(tmp_path / "other.gpg"))}
        finally:
            other.close()
        with pytest.raises(FactoryError, match=r"image_source_disk\.keyring: is signed by an unknown key"):
            bench.run(wrong)
    finally:
        server.close()
        signer.close()


def test_by_another_checksum_the_sha256_is_told_too(bench, raw):
    sha512 = hashlib.sha512(raw.read_bytes()).hexdigest()
    source = bench.run({"path": str(raw), "checksum": f"sha512:{sha512}"}).extra["base"]["source"]
    assert (source["checksum"], source["sha256"]) == (f"sha512:{sha512}", sha256(raw))


def test_a_wrong_checksum_keeps_nothing(bench, raw):
    given = {"path": str(raw), "checksum": f"sha256:{'0' * 64}"}
    bench.refused(given, rf"^{raw}: image_source_disk.checksum: checksum differs: expected sha256:0+, got sha256:")


def test_a_file_that_is_not_there(bench, tmp_path):
    given = {"path": str(tmp_path / "gone"), "checksum": f"sha256:{'0' * 64}"}
    bench.refused(given, "gone: image_source_disk.path: there is no such file; give a file on the builder$")


def test_another_format_than_said(bench, raw, tmp_path):
    source = by_qemu("qcow2")(raw, tmp_path / "source")
    bench.refused(source, rf"^{source}: image_source_disk.format: is qcow2, not vdi; correct it", format="vdi")
    bench.refused(source, "has no root file system", format="raw")


@pytest.mark.parametrize("name", ["raw", "raw.gz", "qcow2", "vhdx"])
def test_a_disk_that_is_larger_than_the_images(bench, raw, tmp_path, name):
    source = FORMATS[name][0](raw, tmp_path / "source")
    bench.refused(source, r"image_disk.size: .*is larger than the disk of the image \(16777216 bytes\)", size=16 * MIB)


def test_what_qemu_would_follow_elsewhere(bench, raw, tmp_path):
    base = by_qemu("qcow2")(raw, tmp_path / "base.qcow2")
    overlay = tmp_path / "overlay.qcow2"
    run("qemu-img", "create", "-f", "qcow2", "-b", base, "-F", "qcow2", overlay)
    bench.refused(overlay, rf"^{overlay}: needs another file below it \(backing file\)")
    outside = tmp_path / "outside.qcow2"
    run("qemu-img", "create", "-f", "qcow2", "-o", f"data_file={tmp_path}/data,data_file_raw=on", outside, "16M")
    bench.refused(outside, "keeps its data in another file")
    split = tmp_path / "split.vmdk"
    run("qemu-img", "create", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", split, "16M")
    bench.refused(split, "only describes a disk that is in other files")


def test_a_raw_disk_that_looks_like_a_qcow2_is_what_was_said(bench, raw, tmp_path):
    disguised = tmp_path / "disguised"
    overlay = tmp_path / "overlay.qcow2"
    run("qemu-img", "create", "-f", "qcow2", "-u", "-b", "/etc/shadow", "-F", "raw", overlay, "16M")
    run("cp", "--sparse=always", raw, disguised)
    with disguised.open("r+b") as stream:
        stream.write(overlay.read_bytes()[:440])  # where a boot loader would be
    bench.refused(disguised, "needs another file below it")
    base = bench.run(disguised, format="raw").extra["base"]
    assert base["source"]["format"] == "raw"
    assert _qemu_img.compare(disguised, "raw", Path(base["path"]), "qcow2")


def test_clusters_that_overlap_are_found(bench, raw, tmp_path):
    source = by_qemu("qcow2")(raw, tmp_path / "source")
    data = bytearray(source.read_bytes())
    l1_at = int.from_bytes(data[40:48], "big")
    l2_at = int.from_bytes(data[l1_at : l1_at + 8], "big") & ~(1 << 63)
    used = [at for at in range(l2_at, l2_at + 65536, 8) if any(data[at : at + 8])]
    data[used[1] : used[1] + 8] = data[used[0] : used[0] + 8]
    source.write_bytes(data)
    bench.refused(source, rf"^{source}: is corrupted \(\d+ errors\); fetch it again")


@pytest.mark.parametrize("name", ["raw.gz", "raw.xz", "raw.zst", "raw.bz2", "qcow2"])
def test_a_file_that_is_cut_off(bench, raw, tmp_path, name):
    source = FORMATS[name][0](raw, tmp_path / "source")
    os.truncate(source, source.stat().st_size // 2)
    bench.refused(source, "cannot be unpacked|is corrupted|beyond its end|ends within")


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_a_bomb_is_ended_at_the_size_of_the_disk(bench, tmp_path, kind):
    zeros = tmp_path / "zeros"
    run("truncate", "--size=128M", zeros)
    bomb = tmp_path / "bomb"
    with bomb.open("wb") as stream:
        subprocess.run(["gzip" if kind == "gz" else "zstd", "-1", "-c", zeros], stdout=stream, check=True)
    bench.refused(bomb, "image_disk.size: is larger than the disk of the image")


def test_the_disk_of_an_appliance(bench, raw, tmp_path):
    disk = by_qemu("vmdk", "-o", "subformat=streamOptimized")(raw, tmp_path / "disk1.vmdk")
    base = bench.run(make_ova(tmp_path / "vm.ova", disk)).extra["base"]
    assert base["source"]["format"] == "ova: vmdk"
    assert _qemu_img.compare(raw, "raw", Path(base["path"]), "qcow2")


def test_one_disk_of_several_in_an_appliance(bench, raw, tmp_path):
    first = by_qemu("vmdk")(raw, tmp_path / "disk1.vmdk")
    second = tmp_path / "disk2.vmdk"
    run("qemu-img", "create", "-f", "vmdk", second, "8M")
    ova = make_ova(tmp_path / "vm.ova", second, first)
    bench.refused(
        ova, r"image_source_disk.disk: holds 2 disks: disk2.vmdk \(vmdisk0\), disk1.vmdk \(vmdisk1\); name one"
    )
    base = bench.run(ova, disk="disk1.vmdk").extra["base"]
    assert _qemu_img.compare(raw, "raw", Path(base["path"]), "qcow2")


def test_an_appliance_whose_disk_was_changed(bench, raw, tmp_path):
    disk = by_qemu("vmdk")(raw, tmp_path / "disk1.vmdk")
    ova = make_ova(tmp_path / "vm.ova", disk)
    data = bytearray(ova.read_bytes())
    data[len(data) // 2] ^= 1
    ova.write_bytes(data)
    bench.refused(ova, r"^.*vm\.ova: the file 'disk1.vmdk' is not the one that the manifest vm.mf tells")
    bench.refused(disk, r"image_source_disk.disk: is no appliance", disk="disk1.vmdk")


def test_an_unsupported_file_system(bench, tmp_path):
    swap = raw_disk(tmp_path / "swap.raw", mkfs=("mkswap", "--quiet"))
    bench.refused(swap, r"image_source_disk: has no root file system that the factory can work on \(it has swap\)")
    empty = raw_disk(tmp_path / "empty.raw", mkfs=())
    bench.refused(
        empty, r"\(it has nothing that blkid knows\); give a disk with its root on a partition, or on a .* with ext4"
    )


def test_a_file_system_that_was_not_unmounted_is_mended(bench, raw, tmp_path):
    dirty = tmp_path / "dirty.raw"
    run("cp", "--sparse=always", raw, dirty)
    run("debugfs", "-w", "-R", "set_super_value state 0", f"{dirty}?offset={ROOT_AT}")
    base = bench.run(dirty).extra["base"]
    assert base["warnings"] == [
        "the file system on partition 2 was not in order (in use, or not unmounted): e2fsck has mended it"
    ]


def test_a_file_system_that_is_damaged_is_refused(bench, raw, tmp_path):
    broken = tmp_path / "broken.raw"
    run("cp", "--sparse=always", raw, broken)
    for inode in ("<2>", "<8>"):
        run("debugfs", "-w", "-R", f"clri {inode}", f"{broken}?offset={ROOT_AT}")
    bench.refused(
        broken, rf"^{broken}: image_source_disk: its file system \(partition 2\) is damaged: .*run fsck where"
    )


def test_layouts_are_told_of(bench, tmp_path):
    disk = raw_disk(tmp_path / "disk.raw", TABLE + "type=S\n")
    run("dd", "if=/dev/urandom", f"of={disk}", "bs=440", "count=1", "conv=notrunc")
    base = bench.run(disk).extra["base"]
    assert base["warnings"] == [
        "partition 3 is swap, which wastes space in every copy of the image",
        "the root (partition 2) is not the last on the disk (partition 3 is): it cannot grow",
    ]
    assert (base["layout"]["bios"], base["layout"]["uefi"]) == (True, True)
    record = json.loads(Path(base["path"]).with_suffix(".json").read_text())
    assert record["facts"]["warnings"] == base["warnings"]


@pytest.mark.root
@pytest.mark.parametrize("name", ["raw.gz", "qcow2"])
def test_a_file_system_that_is_full_half_way(bench, raw, tmp_path, name):
    source = FORMATS[name][0](raw, tmp_path / "source")
    bench.workspace.make()
    room = bench.workspace.root / "cache"
    run("mount", "-t", "tmpfs", "-o", "size=2560K", "tmpfs", room)
    try:
        bench.workspace.make()
        bench.refused(source, "No space left on device; free some space there")
    finally:
        run("umount", room)


def test_killed_half_way_and_again(bench, raw):
    bench.workspace.make()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        try:
            bench.run(raw)
        finally:
            os._exit(1)
    deadline = time.monotonic() + 60
    while not list(bench.workspace.layers.glob(".partial-*")):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert bench.names() and not list(bench.workspace.layers.glob("base_vm-*.json"))
    base = bench.run(raw).extra["base"]
    assert _qemu_img.compare(raw, "raw", Path(base["path"]), "qcow2")
    assert [name for name in bench.names() if name.startswith(".")] == []
