# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Headers of disks from outside: what is a plain disk, and what is refused before QEMU sees it."""

from __future__ import annotations

import struct
import tempfile
import typing as t
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.cloudimg.factory.plugins.module_utils import _foreign
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

CLUSTER = 1 << 16
BOOT_SECTOR = b"\0" * 510 + b"\x55\xaa"
FUZZ = settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def qcow2(
    version: int = 3,
    size: int = 1 << 30,
    bits: int = 16,
    *,
    l1: t.Sequence[int] = (0, 0),
    refcounts: t.Sequence[int] = (2,),
    extensions: bytes = b"",
    clusters: int = 8,
    **fields: int,
) -> bytes:
    """A qcow2 with its header in cluster 0, refcount table in 1, L1 table in 3; tables are given by numbers of clusters."""
    known = {
        "backing": 0,
        "crypt": 0,
        "l1_size": len(l1),
        "l1_at": 3 * CLUSTER,
        "refcounts_at": CLUSTER,
        "refcount_clusters": 1,
        "snapshots": 0,
        "snapshots_at": 0,
        "incompatible": 0,
        "header_length": 104,
    }
    known.update(fields)
    head = struct.pack(
        ">4sIQIIQIIQQIIQQQQIIQ",
        *(b"QFI\xfb", version, known["backing"], 0, bits, size, known["crypt"], known["l1_size"], known["l1_at"]),
        *(known["refcounts_at"], known["refcount_clusters"], known["snapshots"], known["snapshots_at"]),
        *(known["incompatible"], 0, 0, 4, known["header_length"], 0),
    )
    disk = bytearray(clusters * CLUSTER)
    disk[: len(head) - 8 + len(extensions)] = head[:-8] + extensions
    for at, table in ((CLUSTER, refcounts), (3 * CLUSTER, l1)):
        disk[at : at + 8 * len(table)] = struct.pack(f">{len(table)}Q", *(number * CLUSTER for number in table))
    return bytes(disk)


def vmdk(
    capacity: int = 2048, description: str = 'RW 2048 SPARSE "x.vmdk"\n', *, grain: int = 128, gd: int = 20
) -> bytes:
    head = struct.pack("<4sIIQQQQIQQQB4sH", b"KDMV", 1, 3, capacity, grain, 1, 1, 512, 21, gd, 128, 0, b"\n \r\n", 0)
    return (head.ljust(512, b"\0") + description.encode().ljust(512, b"\0")).ljust(64 * 512, b"\0")


def vdi(kind: int = 1, *, size: int = 2 << 20, blocks: int = 2, parent: bytes = b"", data_at: int = 1024) -> bytes:
    disk = bytearray(4096)
    struct.pack_into("<IIII", disk, 64, 0xBEDA107F, 0x00010001, 400, kind)
    struct.pack_into("<II", disk, 340, 512, data_at)
    struct.pack_into("<IIQIIII", disk, 360, 512, 0, size, 1 << 20, 0, blocks, 0)
    disk[440 : 440 + len(parent)] = parent
    return bytes(disk)


def vhd(kind: int = 3, *, size: int = 4 << 20, table_at: int = 1536, count: int = 2, spoil: bool = False) -> bytes:
    def summed(block: bytearray, at: int) -> bytes:
        struct.pack_into(">I", block, at, ~sum(block) & 0xFFFFFFFF)
        return bytes(block)

    foot = bytearray(512)
    foot[:8] = b"conectix"
    struct.pack_into(">Q", foot, 16, 512)
    struct.pack_into(">QQ", foot, 40, size, size)
    struct.pack_into(">I", foot, 60, kind)
    footer = summed(foot, 64)
    head = bytearray(1024)
    head[:8] = b"cxsparse"
    struct.pack_into(">QIII", head, 16, table_at, 0x10000, count, 2 << 20)
    header = summed(head, 36)
    disk = footer + header + b"\xff" * 512 + footer
    return disk.replace(b"cxsparse", b"cxsparsf") if spoil else disk


def vhdx(*, flags: int = 0, size: int = 1 << 30, regions: t.Sequence[tuple[int, int]] = ((2 << 20, 1 << 20),)) -> bytes:
    metadata, parameters, virtual = (
        uuid.UUID(name).bytes_le
        for name in (
            "8b7ca206-4790-4b9a-b8fe-575f050f886e",
            "caa16737-fa36-4d43-b3b6-33f0aa44e76b",
            "2fa54224-cd1b-4876-b211-5dbed83bf4b8",
        )
    )
    disk = bytearray(3 << 20)
    disk[:8] = b"vhdxfile"
    struct.pack_into("<4sII", disk, 192 << 10, b"regi", 0, len(regions))
    for number, (at, length) in enumerate(regions):
        name = bytes([number] * 16) if number else metadata
        struct.pack_into("<16sQI", disk, (192 << 10) + 16 + 32 * number, name, at, length)
    struct.pack_into("<8sHH", disk, 2 << 20, b"metadata", 0, 2)
    struct.pack_into("<16sI", disk, (2 << 20) + 32, parameters, 65536)
    struct.pack_into("<16sI", disk, (2 << 20) + 64, virtual, 65544)
    struct.pack_into("<IIQ", disk, (2 << 20) + 65536, 1 << 25, flags, size)
    return bytes(disk)


@pytest.mark.parametrize(
    ("content", "fmt", "size"),
    [
        (qcow2(), "qcow2", 1 << 30),
        (qcow2(version=2), "qcow2", 1 << 30),
        (qcow2(incompatible=0b11001, l1=(0, 0, 0, 0)), "qcow2", 1 << 30),
        (qcow2(l1=(4, 5)), "qcow2", 1 << 30),
        (qcow2()[: 3 * CLUSTER + 5], "qcow2", 1 << 30),  # the rest of the last cluster is zeros
        (vmdk(), "vmdk", 1 << 20),
        (vmdk(description=""), "vmdk", 1 << 20),
        (vdi(), "vdi", 2 << 20),
        (vhd(), "vpc", 4 << 20),
        (vhdx(), "vhdx", 1 << 30),
        (BOOT_SECTOR + b"\0" * 512, "raw", 1024),
    ],
)
def test_format_and_size_are_told_by_the_header(tmp_path: Path, content: bytes, fmt: str, size: int) -> None:
    path = tmp_path / "disk"
    path.write_bytes(content)
    assert _foreign.judge(path) == _foreign.Judged(fmt, size)
    assert _foreign.identify(path) == fmt


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (qcow2(backing=200), "backing file"),
        (qcow2(incompatible=0b100), "external data file"),
        (qcow2(extensions=struct.pack(">II4s4xQ", 0x44415441, 4, b"/etc", 0)), "external data file"),
        (qcow2(extensions=struct.pack(">IIQQQ", 0x0537BE77, 16, 0, 0, 0)), "is encrypted"),
        (qcow2(extensions=struct.pack(">IIQ", 1, 1 << 30, 0)), "does not end in its first cluster"),
        (qcow2(header_length=7), "impossible header"),
        (qcow2(crypt=2), "is encrypted"),
        (qcow2(incompatible=0b10), "marked as corrupted"),
        (qcow2(incompatible=1 << 40), "features of qcow2 that are not known"),
        (qcow2(version=1), "version 1"),
        (qcow2(bits=40), "impossible clusters"),
        (qcow2(size=1 << 55), "more than is believable"),
        (qcow2(size=1 << 40), r"smaller than the disk that it claims"),
        (qcow2(l1_size=1 << 30), "larger tables than any qcow2"),
        (qcow2(refcount_clusters=1 << 30), "larger tables than any qcow2"),
        (qcow2(snapshots=1 << 20), "larger tables than any qcow2"),
        (qcow2(refcount_clusters=0), "no table of reference counts"),
        (qcow2(l1_at=CLUSTER), r"overlapping tables \(L1 table and refcount table\)"),
        (qcow2(l1_at=0), r"overlapping tables \(L1 table and header\)"),
        (qcow2(l1_at=100), "misplaced L1 table"),
        (qcow2(l1_at=1 << 40), "L1 table beyond its end"),
        (qcow2(l1=(4, 4)), r"overlapping tables \(L2 table and L2 table\)"),
        (qcow2(l1=(3,), size=1 << 20), r"overlapping tables \(L2 table and L1 table\)"),
        (qcow2(l1=(4, 900)), "L2 table beyond its end"),
        (qcow2(refcounts=(4,), l1=(4, 0)), r"overlapping tables \(refcount block and L2 table\)"),
        (qcow2(snapshots=1, snapshots_at=3 * CLUSTER), r"overlapping tables \(table of snapshots and L1 table\)"),
        (b"QFI\xfb\0\0\0\3", "ends within its header"),
        (vmdk(0), "other files"),
        (vmdk(description='RW 1 FLAT "/etc/shadow" 0\n'), "names other files as its parts"),
        (vmdk(description='RW 1 SPARSE "a"\nRW 1 SPARSE "b"\n'), "names other files as its parts"),
        (vmdk(description='parentFileNameHint="/etc/shadow"\n'), "needs another disk below it"),
        (vmdk(description="parentCID=12345678\n"), "needs another disk below it"),
        (vmdk(1 << 45), "more than is believable"),
        (vmdk(1 << 30), "ends within its header"),
        (vmdk(grain=3), "impossible tables"),
        (vmdk(gd=(1 << 64) - 1), "footer is missing"),
        (vdi(4), "needs another disk below it"),
        (vdi(parent=b"\1"), "needs another disk below it"),
        (vdi(size=1 << 60), "more than is believable"),
        (vdi(blocks=1), "impossible tables"),
        (vdi(data_at=513), "overlapping tables"),
        (vhd(4), "needs another disk below it"),
        (vhd(2), "ends before the disk does"),
        (vhd(size=1 << 60), "more than is believable"),
        (vhd(count=1), "impossible tables"),
        (vhd(table_at=512), "overlapping tables"),
        (vhd(spoil=True), "checksum of its second header"),
        (vhd().replace(b"conectix\0\0\0\0", b"conectix\1\0\0\0"), "checksum of its footer"),
        (vhdx(flags=2), "needs another disk below it"),
        (vhdx(size=1 << 60), "more than is believable"),
        (vhdx(regions=((2 << 20, 1 << 20), (2 << 20, 1 << 20))), "overlapping regions"),
        (vhdx(regions=((1 << 50, 1 << 20),)), "ends within its header"),
        (vhdx(regions=()), "does not tell what it is"),
        (b"KDMV" + b"\0" * 600, "other files"),
        (b"# Disk DescriptorFile\n", "other files"),
        (b"LUKS\xba\xbe" + b"\0" * 600, "is encrypted"),
        (b"\x1f\x8b\x08" + b"\0" * 600, "gzip-compressed"),
        (b"PK\x03\x04", "zip archive"),
        (b"", "no disk of a known format"),
        (b"hello world\n" * 100, "no disk of a known format"),
        (BOOT_SECTOR + b"odd length", "no disk of a known format"),
    ],
)
def test_what_is_no_plain_disk_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "disk"
    path.write_bytes(content)
    with pytest.raises(FactoryError, match=problem) as caught:
        _foreign.judge(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert caught.value.mend


def test_what_is_larger_than_allowed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    for content in (qcow2(), vhdx()):
        path.write_bytes(content)
        assert _foreign.judge(path, 1 << 30).virtual_size == 1 << 30
        with pytest.raises(FactoryError, match="claims to hold 1073741824 bytes"):
            _foreign.judge(path, (1 << 30) - 1)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FactoryError, match="No such file"):
        _foreign.judge(tmp_path / "disk")


@pytest.mark.parametrize("make", [qcow2, vmdk, vdi, vhd, vhdx])
def test_a_file_that_is_cut_off_anywhere_never_ends_in_another_error(make: t.Callable[[], bytes]) -> None:
    content = make()
    for length in {*range(0, 600, 7), *range(600, min(len(content), 3 * CLUSTER), 9973)}:
        assert never_another_error(content[:length]) or length > 400


def mutated(content: bytes, changes: t.Iterable[tuple[int, bytes]]) -> bytes:
    disk = bytearray(content)
    for at, value in changes:
        disk[at : at + len(value)] = value
    return bytes(disk)


CHANGES = st.lists(st.tuples(st.integers(0, 120), st.binary(min_size=1, max_size=8)), max_size=6)
TABLES = st.lists(
    st.tuples(st.sampled_from([CLUSTER, 3 * CLUSTER]), st.binary(min_size=8, max_size=16)),
    max_size=2,
)


def never_another_error(content: bytes) -> bool:
    """Whether it is refused; anything but that and a believable size is a mistake of ours."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        said, size = "", 0
        try:
            size = _foreign.judge(Path(file.name)).virtual_size
        except FactoryError as exc:
            said = str(exc)
    assert said == "" or said.startswith(file.name)
    assert 0 <= size <= _foreign.LARGEST
    return said != ""


@FUZZ
@given(CHANGES, TABLES)
def test_no_qcow2_header_crashes_the_reader(changes: list[tuple[int, bytes]], tables: list[tuple[int, bytes]]) -> None:
    never_another_error(mutated(qcow2(), [*changes, *tables]))


@FUZZ
@given(st.sampled_from([vmdk, vdi, vhd]), st.lists(st.tuples(st.integers(0, 1600), st.binary(min_size=1, max_size=8))))
def test_no_other_header_crashes_the_reader(make: t.Callable[[], bytes], changes: list[tuple[int, bytes]]) -> None:
    never_another_error(mutated(make(), changes))


@pytest.mark.slow
@settings(FUZZ, max_examples=5000)
@given(CHANGES, TABLES)
def test_no_qcow2_header_crashes_the_reader_for_long(
    changes: list[tuple[int, bytes]], tables: list[tuple[int, bytes]]
) -> None:
    never_another_error(mutated(qcow2(), [*changes, *tables]))
