# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts that the writers of exports are made of, each against another implementation of the same."""

from __future__ import annotations

import array
import random
import threading
import time
import typing as t
import xml.etree.ElementTree as ET
import zlib
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import (
    _archives,
    _codecs,
    _disk_identity,
    _disk_source,
    _export_make,
    _formats,
    _ovf_write,
    _parallel,
    _qcow2_write,
    _vmdk_write,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import Cancelled, FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

TEXT = b"".join(b"line %d of a text\n" % number for number in range(5000))


@pytest.mark.parametrize("cut", [0, 1, 8, 4099, len(TEXT) - 1, len(TEXT)])
def test_crc32_of_two_parts(cut: int) -> None:
    first, second = TEXT[:cut], TEXT[cut:]
    assert _codecs.crc32_combine(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(TEXT)


def test_crc32c_of_its_check_value() -> None:
    assert _disk_identity.crc32c(b"123456789") == 0xE3069283


def test_deflate_in_pieces_is_one_stream() -> None:
    pieces = [_codecs.deflate(TEXT[at : at + 7000], 6, 15, last=False) for at in range(0, len(TEXT), 7000)]
    whole = b"".join([*pieces, _codecs.deflate(b"", 6, 15, last=True)])
    assert zlib.decompress(whole, -15) == TEXT
    assert _codecs.inflate(pieces[0]) == TEXT[:7000]


def test_window_is_as_small_as_qemu_wants_it() -> None:
    noise = random.Random(1).randbytes(6000)
    packed = _codecs.deflate(noise + noise, 6, 12, last=True)
    assert zlib.decompress(packed, -12) == noise + noise


@pytest.mark.parametrize("level", [1, 6, 9])
def test_zlib_streams(level: int) -> None:
    assert zlib.decompress(_codecs.zlib_stream(TEXT, level)) == TEXT


def test_zstd() -> None:
    packed = _codecs.zstd(TEXT, level=3, checksum=1)
    assert packed == _codecs.zstd(TEXT, level=3, checksum=1)
    assert packed[:4] == b"\x28\xb5\x2f\xfd"
    assert _codecs.unzstd(packed, len(TEXT)) == TEXT
    for damaged, size in ((packed, len(TEXT) - 1), (packed[:-1], len(TEXT)), (b"x" + packed[1:], len(TEXT))):
        with pytest.raises(ValueError, match="damaged"):
            _codecs.unzstd(damaged, size)
    with pytest.raises(FactoryError, match="does not take window_log 99"):
        _codecs.zstd(TEXT, window_log=99)


@pytest.mark.parametrize("unpack", [_codecs.inflate, _codecs.unxz])
def test_damage_is_a_value_error(unpack: t.Callable[[bytes], bytes]) -> None:
    with pytest.raises(ValueError, match=r"."):
        unpack(b"\xff" * 100)


def test_results_come_in_order_and_few_wait() -> None:
    taken, begun, most, lock = 0, 0, 0, threading.Lock()

    def work(number: int) -> int:
        nonlocal begun, most
        with lock:
            begun += 1
            most = max(most, begun - taken)
        time.sleep(0.001 * (number % 3))
        return number

    with _parallel.pool() as executor:
        for number in _parallel.in_order(executor, work, range(100), _parallel.WAITING // 3):
            assert number == taken
            taken += 1
    assert taken == 100
    assert most <= 3


def test_error_in_a_thread_ends_it() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 5:
            raise FactoryError("no")
        return number

    with _parallel.pool() as executor, pytest.raises(FactoryError, match="no"):
        list(_parallel.in_order(executor, work, range(1000), 1))
    assert len(begun) < 100


def test_pieces_and_bytes_of_a_disk(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"A" * 10 + b"B" * 5)
    with path.open("rb") as stream:
        disk = _disk_source.DiskSource(path, tmp_path / "scratch")
        disk.size = 103
        disk._starts = [15, 98]
        disk._extents = [(15, 25, stream.fileno(), 0), (98, 103, stream.fileno(), 10)]
        assert list(disk.occupied(10)) == [1, 2, 9, 10]
        assert list(disk.pieces(40)) == [(0, True), (1, False), (2, True)]
        assert disk.data == 15
        whole = bytes(15) + b"A" * 10 + bytes(73) + b"BBBBB"
        for chunk in (1, 7, 10, 64, 200):
            assert b"".join(disk.read(at, chunk) for at in range(0, 103, chunk)) == whole


def test_file_that_ends_within_its_last_cluster_goes_on_with_zeros(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"AB")
    with path.open("rb") as stream:
        disk = _disk_source.DiskSource(path, tmp_path / "scratch")
        disk.size = 8
        disk._starts = [0]
        disk._extents = [(0, 8, stream.fileno(), 0)]
        assert disk.read(0, 8) == b"AB" + bytes(6)


@pytest.mark.parametrize(
    ("text", "size"), [("512", 512), ("64K", 65536), ("1M", 1 << 20), ("2MiB", 1 << 21), (4096, 4096)]
)
def test_sizes_of_clusters(text: str | int, size: int) -> None:
    assert _formats.cluster_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "256", "4M", "100K", "1G", "-1M", "64 K", "x"])
def test_impossible_sizes_of_clusters(text: str) -> None:
    with pytest.raises(ValueError, match="is no size of clusters"):
        _formats.cluster_size(text)


def test_names_of_files() -> None:
    assert _formats.file_name("debian-12-1", "raw.gz") == "debian-12-1.raw.gz"
    assert _formats.file_name("debian-12-1", {"format": "qcow2", "label": "compat"}) == "debian-12-1-compat.qcow2"


def machine(**changes: t.Any) -> _ovf_write.Machine:
    facts: dict[str, t.Any] = {
        "name": "debian-12",
        "title": "Debian",
        "description": "",
        "version": "1",
        "distribution": "debian",
        "system": "debian 12 x86_64",
        "memory": 2048,
        "cpus": 2,
        "disk": "debian-12-1.vmdk",
        "disk_size": 1,
        "capacity": 1 << 30,
        "used": 1,
    }
    return _ovf_write.Machine(**{**facts, **changes})


@pytest.mark.parametrize("version", _ovf_write.VERSIONS)
def test_ovf_takes_any_text(version: str) -> None:
    title = 'A & B <c> "d" ]]> \x00\x1b\ufffe é'
    text = _ovf_write.document(machine(title=title, description=title), version)
    root = ET.fromstring(text)
    found = next(item for item in root.iter() if item.tag.endswith("}Product"))
    assert found.text == 'A & B <c> "d" ]]>  é'
    assert text == _ovf_write.document(machine(title=title, description=title), version)


@pytest.mark.parametrize("distribution", ["debian", "plan9", ""])
def test_ovf_knows_or_not_the_distribution(distribution: str) -> None:
    root = ET.fromstring(_ovf_write.document(machine(distribution=distribution)))
    section = next(item for item in root.iter() if item.tag.endswith("}OperatingSystemSection"))
    assert section.get(f"{root.tag.partition('}')[0]}}}id") == ("96" if distribution == "debian" else "101")


@pytest.mark.parametrize("size", [512, 1 << 20, 8 << 30, 2 << 40])
def test_geometry_is_possible(size: int) -> None:
    text = _vmdk_write.describe(size, "x.vmdk", 7)
    assert f"RW {size // 512} SPARSE" in text
    cylinders = int(text.partition('ddb.geometry.cylinders = "')[2].partition('"')[0])
    assert 1 <= cylinders <= 65535


def test_bytes_are_turned_around() -> None:
    values = array.array("Q", [1, 1 << 63])
    assert _qcow2_write._big_endian(values) == bytes(7) + b"\1" + b"\x80" + bytes(7)
    assert list(values) == [1, 1 << 63]


def test_large_files_leave_ustar() -> None:
    assert _archives._header("x", (8 << 30) - 1)[257:263] == b"ustar\0"
    assert len(_archives._header("x", 8 << 30)) == 512


def test_one_that_fails_ends_the_others(tmp_path: Path) -> None:
    together = _export_make._Together(Progress("export"), [tmp_path / "a", tmp_path / "b"], 100)
    tick = together.tick(tmp_path / "a", 0, 1)
    tick(50)
    together.fail(Cancelled("gone"))
    together.fail(FactoryError("later"))
    with pytest.raises(_export_make._Stopped):
        tick(51)
    assert isinstance(together.failure, Cancelled)
