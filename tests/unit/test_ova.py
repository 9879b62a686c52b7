# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Appliances (OVA): archive, description and manifest, as they are and as somebody with bad intentions makes them."""

from __future__ import annotations

import hashlib
import io
import tarfile
import typing as t
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.cloudimg.factory.plugins.module_utils import _ova, _ovf
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

FUZZ = settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
DISK = b"not really a disk" * 100
ENVELOPE = """<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
  <References>{files}</References>
  <DiskSection><Info>Disks</Info>{disks}</DiskSection>
  <VirtualSystem ovf:id="vm"><Info>A machine</Info></VirtualSystem>
</Envelope>
"""
FILE = '<File ovf:id="file{0}" ovf:href="disk{0}.vmdk"/>'
DISKS = (
    '<Disk ovf:capacity="8" ovf:capacityAllocationUnits="byte * 2^30" ovf:diskId="vmdisk{0}" ovf:fileRef="file{0}"/>'
)

Entry = tuple[str, bytes]


def ovf(numbers: t.Sequence[int] = (1,), files: str = "", disks: str = "") -> bytes:
    files = files or "".join(FILE.format(number) for number in numbers)
    disks = disks or "".join(DISKS.format(number) for number in numbers)
    return ENVELOPE.format(files=files, disks=disks).encode()


def archive(entries: t.Iterable[Entry | tarfile.TarInfo], fmt: int = tarfile.USTAR_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=fmt) as tar:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
                continue
            info = tarfile.TarInfo(entry[0])
            info.size = len(entry[1])
            tar.addfile(info, io.BytesIO(entry[1]))
    return stream.getvalue()


def manifest(algorithm: str = "sha256", **files: bytes) -> bytes:
    lines = [
        f"{algorithm.upper()}({name})= {hashlib.new(algorithm, data).hexdigest()}\n" for name, data in files.items()
    ]
    return "".join(lines).encode()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


GOOD: list[Entry] = [("vm.ovf", ovf()), ("disk1.vmdk", DISK)]
TWO: list[Entry] = [("vm.ovf", ovf((1, 2))), ("disk1.vmdk", b"one"), ("disk2.vmdk", DISK)]


@pytest.fixture
def opened(tmp_path):
    """A function that writes an archive and looks for the disk in it."""

    def open_disk(content: bytes, wanted: str | None = None) -> tuple[_ova.OvaDisk, bytes]:
        path = tmp_path / "vm.ova"
        path.write_bytes(content)
        disk = _ova.open_disk(path, wanted, "image_source_disk.disk")
        with path.open("rb") as stream:
            return disk, b"".join(_ova.chunks(stream, disk.member))

    return open_disk


@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_one_disk_is_found(opened, fmt):
    long = "a-name-that-does-not-fit-into-the-header-of-a-tar-" * 3 + ".vmdk"
    name = "disk1.vmdk" if fmt == tarfile.USTAR_FORMAT else long
    described = ovf(files=f'<File ovf:id="file1" ovf:href="{name}" ovf:size="1"/>')
    disk, data = opened(archive([("vm.ovf", described), (name, DISK)], fmt))
    assert data == DISK
    assert (disk.name, disk.member.name, disk.capacity, disk.compression) == ("vmdisk1", name, 8 << 30, "")


def test_sizes_are_read_in_octal_and_in_base_256():
    assert _ova._number(b"00000001750\0", "x") == 1000
    assert _ova._number(b"\x80" + (9 << 30).to_bytes(11, "big"), "x") == 9 << 30


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha512"])
def test_a_manifest_is_believed_when_it_agrees(opened, algorithm):
    listed = manifest(algorithm, **{"vm.ovf": ovf(), "disk1.vmdk": DISK})
    assert opened(archive([*GOOD, ("vm.mf", listed)]))[1] == DISK
    wrong = manifest(algorithm, **{"vm.ovf": ovf(), "disk1.vmdk": DISK + b"x"})
    with pytest.raises(
        FactoryError, match=rf"'disk1.vmdk' is not the one that the manifest vm.mf tells \({algorithm}\)"
    ):
        opened(archive([*GOOD, ("vm.mf", wrong)]))


@pytest.mark.parametrize("wanted", ["vmdisk2", "disk2.vmdk"])
def test_of_several_disks_one_is_chosen_by_name(opened, wanted):
    assert opened(archive(TWO), wanted)[1] == DISK


def test_several_disks_are_named(opened):
    named = r"disk1.vmdk \(vmdisk1\), disk2.vmdk \(vmdisk2\)"
    with pytest.raises(
        FactoryError, match=rf"vm.ova: image_source_disk.disk: holds 2 disks: {named}; name one of them$"
    ):
        opened(archive(TWO))
    with pytest.raises(FactoryError, match=rf"holds no single disk 'disk3'; name one of: {named}$"):
        opened(archive(TWO), "disk3")


def test_a_disk_without_a_file_is_left_out(opened):
    empty = '<Disk ovf:capacity="5" ovf:diskId="empty"/>'
    disk, _data = opened(archive([("vm.ovf", ovf(disks=empty + DISKS.format(1))), ("disk1.vmdk", DISK)]))
    assert disk.name == "vmdisk1"


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([*GOOD, ("../../etc/cron.d/x", b"")], "leads elsewhere"),
        ([*GOOD, ("/etc/cron.d/x", b"")], "leads elsewhere"),
        ([*GOOD, ("folder/x", b"")], "leads elsewhere"),
        ([*GOOD, ("..", b"")], "leads elsewhere"),
        ([*GOOD, ("a\nb", b"")], "leads elsewhere"),
        ([*GOOD, ("disk1.vmdk", b"another")], "two files called 'disk1.vmdk'"),
        ([*GOOD, special("x", tarfile.SYMTYPE, "/etc/shadow")], "holds a symbolic link"),
        ([*GOOD, special("x", tarfile.LNKTYPE, "/etc/shadow")], "holds a hard link"),
        ([*GOOD, special("x", tarfile.CHRTYPE)], "holds a device"),
        ([*GOOD, special("x", tarfile.BLKTYPE)], "holds a device"),
        ([*GOOD, special("x", tarfile.FIFOTYPE)], "holds a pipe"),
        ([*GOOD, special("x", tarfile.DIRTYPE)], "holds a directory"),
        ([*GOOD, special("x", tarfile.CONTTYPE)], "something that is no file"),
        ([("disk1.vmdk", DISK)], "holds no description"),
        ([*GOOD, ("two.ovf", ovf())], "more than one .ovf"),
        ([("vm.ovf", ovf())], "'disk1.vmdk' of the disk 'vmdisk1' is not in it"),
        ([("vm.ovf", ovf(()))], "holds no disk"),
        ([("vm.ovf", b" " * (2 << 20))], "description is larger than 1 MiB"),
        ([*GOOD, ("vm.mf", b"hello\n")], "a line that is no digest"),
        ([*GOOD, ("vm.mf", manifest(**{"disk1.vmdk": DISK}))], "does not list vm.ovf"),
        ([*GOOD, ("vm.mf", manifest(**{"vm.ovf": ovf()}))], "does not list disk1.vmdk"),
        ([*GOOD, ("vm.mf", manifest(**{"gone": b""}))], r"lists a file that is not there \('gone'\)"),
        ([*GOOD, ("vm.mf", manifest(**{"vm.ovf": b""}) * 2)], r"lists a file twice"),
        ([*GOOD, ("vm.mf", b"MD5(vm.ovf)= 0\n")], "a line that is no digest"),
        ([*GOOD, *((f"f{number}", b"") for number in range(1000))], "more than 1000 files"),
    ],
)
def test_what_no_appliance_holds_is_refused(opened, entries, problem):
    with pytest.raises(FactoryError, match=problem) as caught:
        opened(archive(entries))
    assert caught.value.mend
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "no archive"),
        (b"\0" * 10240, "no archive"),
        (b"hello world " * 1000, "no archive of an appliance"),
        (archive(GOOD)[: archive(GOOD).index(DISK) + 100], "is cut off"),
        (archive(GOOD).replace(b"vm.ovf\0", b"vm.oxf\0", 1), "or is damaged"),
    ],
)
def test_what_is_no_archive_is_refused(opened, content, problem):
    with pytest.raises(FactoryError, match=problem):
        opened(content)


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'
OUTSIDE = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (BOMB + "<Envelope>&b;</Envelope>", r"has a document type \(DTD\)"),
        (OUTSIDE + "<Envelope>&a;</Envelope>", r"has a document type \(DTD\)"),
        ('<!DOCTYPE x SYSTEM "http://example.org/x.dtd"><Envelope/>', r"has a document type \(DTD\)"),
        ("<Envelope>&undefined;</Envelope>", "is no XML"),
        ("<Envelope>", "is no XML"),
        ('<?xml version="1.0" encoding="klingon"?><Envelope/>', "is no XML"),
        ("", "is no XML"),
        ("<html/>", "has no Envelope"),
        ("<a>" * 100, "nested deeper"),
        (ovf(files="<File/>").decode(), "refers to the file 'file1', which is not there"),
        (ovf(files='<File ovf:id="file1" ovf:href="http://example.org/x"/>').decode(), "is not in the appliance"),
        (ovf(files='<File ovf:id="file1"/>').decode(), "is not in the appliance"),
        (ovf(files='<File ovf:id="file1" ovf:href="x" ovf:chunkSize="9"/>').decode(), "split into several files"),
        (ovf(files='<File ovf:id="file1" ovf:href="x" ovf:compression="lzma"/>').decode(), "compressed by 'lzma'"),
        (ovf(disks='<Disk ovf:diskId="d" ovf:fileRef="file1" ovf:parentRef="c"/>').decode(), "difference to another"),
        (
            ovf(disks='<Disk ovf:diskId="d" ovf:fileRef="file1" ovf:capacity="1" ovf:capacityAllocationUnits="ells"/>'),
            "a size in 'ells'",
        ),
    ],
)
def test_descriptions_that_are_none_are_refused(text, problem):
    data = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(FactoryError, match=problem) as caught:
        _ovf.read_disks(data, "vm.ova: vm.ovf")
    assert str(caught.value).startswith("vm.ova: vm.ovf: ")


@pytest.mark.parametrize(
    ("unit", "size"),
    [("byte", 8), ("byte * 2^20", 8 << 20), ("byte*2^30", 8 << 30), ("MegaBytes", 8 << 20), ("GigaBytes", 8 << 30)],
)
def test_units_of_both_versions_of_the_format(unit, size):
    disks = f'<Disk ovf:diskId="d" ovf:fileRef="file1" ovf:capacity="8" ovf:capacityAllocationUnits="{unit}"/>'
    assert _ovf.read_disks(ovf(disks=disks), "x")[0].capacity == size


def refusal(work: t.Callable[[], object]) -> str:
    """What a reader says against it; empty when it takes it. Any other error is a mistake of ours."""
    try:
        work()
    except FactoryError as exc:
        return str(exc)
    return ""


def judged(content: bytes, tmp: Path) -> None:
    tmp.write_bytes(content)
    assert "\n" not in refusal(lambda: _ova.open_disk(tmp, None, "key"))


CHANGES = st.lists(st.tuples(st.integers(0, 4096), st.binary(min_size=1, max_size=16)), max_size=8)


def spoil(content: bytes, changes: t.Iterable[tuple[int, bytes]], mend: bool) -> bytes:
    """Change some bytes; with ``mend`` the headers' sums are right again, so that the rest is read."""
    data = bytearray(content)
    for at, value in changes:
        data[at : at + len(value)] = value
    for at in range(0, len(data) - 511, 512) if mend else ():
        if data[at + 257 : at + 262] == b"ustar":
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return bytes(data)


@FUZZ
@given(CHANGES, st.booleans(), st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_no_archive_crashes_the_reader(tmp_path_factory, changes, mend, fmt):
    name = "x" * (20 if fmt == tarfile.USTAR_FORMAT else 200)
    entries = [(name, b"y" * 600), *GOOD, ("vm.mf", manifest(**{"vm.ovf": ovf(), "disk1.vmdk": DISK}))]
    judged(spoil(archive(entries, fmt), changes, mend), tmp_path_factory.getbasetemp() / "fuzz.ova")


XML = st.recursive(
    st.sampled_from(["", "text", "&lt;", "&amp;", "&x;", "<![CDATA[x]]>", "<!-- x -->", "<?pi x?>", FILE.format(1)]),
    lambda inner: st.tuples(
        st.sampled_from(["Envelope", "References", "File", "Disk", "DiskSection", "a:b"]),
        st.sampled_from(
            ["", ' id="file1"', ' diskId="d" fileRef="file1"', ' href="x"', ' capacity="99999999999999999999"']
        ),
        inner,
        inner,
    ).map(lambda parts: f"<{parts[0]}{parts[1]}>{parts[2]}{parts[3]}</{parts[0]}>"),
    max_leaves=12,
)


@FUZZ
@given(XML | st.text() | st.binary())
def test_no_description_crashes_the_reader(text):
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    for document in (data, b"<Envelope>" + data + b"</Envelope>"):
        said = refusal(lambda document=document: _ovf.read_disks(document, "x"))
        assert said == "" or said.startswith("x: ")


@pytest.mark.slow
@settings(FUZZ, max_examples=5000)
@given(CHANGES, st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_no_archive_crashes_the_reader_for_long(tmp_path_factory, changes, fmt):
    entries = [("x" * (20 if fmt == tarfile.USTAR_FORMAT else 200), b"y" * 600), *GOOD]
    judged(spoil(archive(entries, fmt), changes, True), tmp_path_factory.getbasetemp() / "fuzz-long.ova")
