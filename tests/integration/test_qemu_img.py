# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The qemu-img room with the real tool on small disks."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _qemu_img
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import Cancelled, FactoryError

MIB = 1 << 20


def write(path: Path, pattern: int, start: str, length: str, fmt: str = "qcow2") -> None:
    command = f"write -P {pattern} {start} {length}"
    subprocess.run(["qemu-io", "-f", fmt, "-c", command, str(path)], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def chain(tmp_path: Path) -> tuple[Path, Path]:
    """A base and an overlay on it, each with data of its own."""
    base, overlay = tmp_path / "base.qcow2", tmp_path / "over lay,1.qcow2"
    _qemu_img.create(base, 64 * MIB)
    write(base, 7, "0", "8M")
    _qemu_img.create(overlay, None, backing=base)
    write(overlay, 9, "4M", "2M")
    return base, overlay


def test_create_and_info(chain: tuple[Path, Path]) -> None:
    base, overlay = chain
    found = _qemu_img.info(overlay, chain=True)
    assert (found.format, found.virtual_size, found.backing, found.backing_format) == ("qcow2", 64 * MIB, base, "qcow2")
    assert [below.path for below in found.chain] == [base]
    assert found.chain[0].backing is None


def test_create_with_options(tmp_path: Path) -> None:
    path = tmp_path / "d.qcow2"
    _qemu_img.create(path, 10 * MIB, options={"cluster_size": "2M", "compression_type": "zstd"})
    found = _qemu_img.info(path)
    assert (found.cluster_size, found.compression) == (2 * MIB, "zstd")


def test_create_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "d.raw"
    path.write_bytes(b"precious")
    with pytest.raises(FactoryError, match="exists already"):
        _qemu_img.create(path, MIB, "raw")
    assert path.read_bytes() == b"precious"


def test_create_leaves_nothing_when_it_fails(tmp_path: Path) -> None:
    with pytest.raises(FactoryError, match=r"o\.qcow2: qemu-img create: .*No such file"):
        _qemu_img.create(tmp_path / "o.qcow2", MIB, backing=tmp_path / "none.qcow2")
    with pytest.raises(FactoryError, match="Invalid parameter"):
        _qemu_img.create(tmp_path / "p.qcow2", MIB, options={"no_such_option": "1"})
    assert list(tmp_path.iterdir()) == []


def test_name_that_looks_like_a_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _qemu_img.create(Path("nbd:x.qcow2"), MIB)
    assert _qemu_img.info(Path("nbd:x.qcow2")).virtual_size == MIB


def test_format_is_never_probed(tmp_path: Path) -> None:
    # A raw disk whose guest wrote a qcow2 header into it stays a raw disk.
    inner, path = tmp_path / "inner.qcow2", tmp_path / "disk.raw"
    _qemu_img.create(inner, 64 * MIB, backing=Path("/etc/hostname"), backing_fmt="raw")
    path.write_bytes(inner.read_bytes().ljust(MIB, b"\0"))
    assert _qemu_img.info(path, "raw").virtual_size == MIB
    target = tmp_path / "out.raw"
    _qemu_img.convert(path, target, source_fmt="raw", target_fmt="raw")
    assert target.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("compressed", ["zstd", "zlib"])
def test_convert_flattens_compresses_and_repeats(chain: tuple[Path, Path], tmp_path: Path, compressed: str) -> None:
    _base, overlay = chain
    first, second = tmp_path / "1.qcow2", tmp_path / "2.qcow2"
    ticks: list[float] = []
    for target in (first, second):
        _qemu_img.convert(
            overlay,
            target,
            source_fmt="qcow2",
            target_fmt="qcow2",
            compressed=compressed,
            cluster_size=65536,
            tick=ticks.append,
        )
    found = _qemu_img.safe_info(first)
    assert (found.backing, found.compression, found.cluster_size) == (None, compressed, 65536)
    assert first.stat().st_size < 2 * MIB
    assert first.read_bytes() == second.read_bytes()
    assert ticks[-1] == 100.0
    _qemu_img.check(first)
    assert _qemu_img.compare(overlay, "qcow2", first, "qcow2")
    write(second, 1, "5M", "4k")
    assert not _qemu_img.compare(overlay, "qcow2", second, "qcow2")


def test_convert_in_parallel(chain: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "t.qcow2"
    _qemu_img.convert(
        chain[1],
        target,
        source_fmt="qcow2",
        target_fmt="qcow2",
        compressed="zstd",
        coroutines=4,
        out_of_order=True,
    )
    assert _qemu_img.compare(chain[1], "qcow2", target, "qcow2")


def test_cancelled_convert_leaves_nothing(tmp_path: Path) -> None:
    source, target = tmp_path / "s.raw", tmp_path / "t.qcow2"
    source.write_bytes(os.urandom(32 * MIB))

    def tick(_percent: float) -> None:
        raise Cancelled("nobody wants it", where="export")

    with pytest.raises(Cancelled):
        _qemu_img.convert(source, target, source_fmt="raw", target_fmt="qcow2", compressed="zlib", tick=tick)
    assert [path.name for path in tmp_path.iterdir()] == ["s.raw"]


def test_convert_of_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FactoryError, match=r"^.*/none\.qcow2: qemu-img convert: .*No such file") as caught:
        _qemu_img.convert(tmp_path / "none.qcow2", tmp_path / "t", source_fmt="qcow2", target_fmt="raw")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_check_finds_corruption(chain: tuple[Path, Path]) -> None:
    base, _overlay = chain
    _qemu_img.check(base)
    entry = next(row["offset"] for row in _qemu_img.disk_map(base) if row["data"])
    with base.open("r+b") as stream:
        # The L2 table that points to this data: let two of its entries share a cluster.
        content = stream.read()
        at = content.index((entry | 1 << 63).to_bytes(8, "big"))
        stream.seek(at + 8)
        stream.write((entry | 1 << 63).to_bytes(8, "big"))
    with pytest.raises(FactoryError, match=r"base\.qcow2: is corrupted \(\d+ errors\); remove it"):
        _qemu_img.check(base)


def test_check_of_what_is_no_qcow2(tmp_path: Path) -> None:
    path = tmp_path / "x.qcow2"
    path.write_bytes(b"no disk" * 1000)
    with pytest.raises(FactoryError, match="not in qcow2 format"):
        _qemu_img.check(path)
    _qemu_img.check(path, "raw")


def test_map_shows_depth_and_holes(chain: tuple[Path, Path]) -> None:
    rows = [(row["start"] // MIB, row["depth"], row["data"]) for row in _qemu_img.disk_map(chain[1])]
    assert rows == [(0, 1, True), (4, 0, True), (6, 1, True), (8, 1, False)]


def test_foreign_overlay_is_refused(chain: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(FactoryError, match="needs another file below it"):
        _qemu_img.safe_info(chain[1])
    evil = tmp_path / "evil.qcow2"
    _qemu_img.create(evil, MIB, backing=Path("/etc/passwd"), backing_fmt="raw")
    with pytest.raises(FactoryError, match="needs another file below it"):
        _qemu_img.safe_info(evil)


def test_foreign_data_file_and_encryption_are_refused(tmp_path: Path) -> None:
    outside, locked = tmp_path / "d.qcow2", tmp_path / "e.qcow2"
    _qemu_img.create(outside, MIB, options={"data_file": str(tmp_path / "data.raw")})
    with pytest.raises(FactoryError, match="keeps its data in another file"):
        _qemu_img.safe_info(outside)
    secret = ["--object", "secret,id=s,data=x", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"]
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", *secret, str(locked), "1M"]
    # on a busy machine qemu-img may be «Unable to get accurate CPU usage», by which it chooses the strength of the key
    assert any(subprocess.run(argv, check=False).returncode == 0 for _attempt in range(20))
    with pytest.raises(FactoryError, match="is encrypted"):
        _qemu_img.safe_info(locked)


@pytest.mark.parametrize(
    ("fmt", "options"),
    [
        ("qcow2", {}),
        ("qcow2", {"compat": "0.10"}),
        ("vmdk", {}),
        ("vmdk", {"subformat": "streamOptimized"}),
        ("vdi", {}),
        ("vhdx", {}),
        ("vpc", {}),
        ("vpc", {"subformat": "fixed"}),
    ],
)
def test_plain_foreign_disk_is_accepted(tmp_path: Path, fmt: str, options: dict[str, str]) -> None:
    path = tmp_path / "disk"
    _qemu_img.create(path, 16 * MIB, fmt, options=options)
    found = _qemu_img.safe_info(path)
    assert found.format == fmt
    assert found.virtual_size >= 16 * MIB


def test_foreign_split_vmdk_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    _qemu_img.create(path, 16 * MIB, "vmdk", options={"subformat": "monolithicFlat"})
    with pytest.raises(FactoryError, match="only describes a disk that is in other files"):
        _qemu_img.safe_info(path)


def test_disk_in_use_is_told(chain: tuple[Path, Path], tmp_path: Path) -> None:
    holder = subprocess.Popen(["qemu-io", "-f", "qcow2", str(chain[1])], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout
        holder.stdout.read(len("qemu-io> "))
        with pytest.raises(FactoryError, match="wait until the process that uses it has ended"):
            _qemu_img.convert(chain[1], tmp_path / "t", source_fmt="qcow2", target_fmt="raw")
    finally:
        holder.communicate(b"quit\n", timeout=60)
