# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every format, opened again by another tool than the one that wrote it; and the same bytes twice."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import struct
import subprocess
import typing as t
import uuid
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from export_disks import SIZE, make_chain, members, names, request, run

from ansible_collections.cloudimg.factory.plugins.module_utils import (
    _descriptor,
    _disk_identity,
    _qemu_img,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import file_digests

EVERYTHING: tuple[t.Any, ...] = (
    "qcow2",
    {"format": "qcow2", "compression": "zlib", "label": "compat"},
    "raw",
    "raw.gz",
    {"format": "raw.xz", "level": 0},
    "raw.zst",
    "vmdk",
    {"format": "vmdk", "subformat": "monolithicSparse", "label": "sparse"},
    "vdi",
    "vhd",
    {"format": "vhd", "subformat": "fixed", "label": "fixed"},
    "vhdx",
    "ova",
    "box",
)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uppermost of the layers."""
    return make_chain(tmp_path_factory.mktemp("layers"))


@pytest.fixture(scope="module")
def made(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with one artifact of every format."""
    folder = tmp_path_factory.mktemp("made") / "build"
    run(request(chain, folder, *EVERYTHING))
    return folder


@pytest.fixture(scope="module")
def raw(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The SHA-256 of the disk as qemu-img flattens it."""
    path = tmp_path_factory.mktemp("raw") / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(chain), str(path)], check=True)
    return file_digests(path, ["sha256"])["sha256"]


def test_all_are_there_and_described(made: Path) -> None:
    found = _descriptor.load(made / "descriptor.json")
    assert [artifact.format for artifact in found.artifacts] == [
        entry if isinstance(entry, str) else entry["format"] for entry in EVERYTHING
    ]
    for artifact in found.artifacts:
        assert artifact.checksums == file_digests(made / artifact.path)
        assert artifact.size == (made / artifact.path).stat().st_size
        assert artifact.virtual_size == SIZE
    sidecars = [f"{artifact.path}.digests.json" for artifact in found.artifacts]
    assert names(made) == sorted([*(artifact.path for artifact in found.artifacts), *sidecars, "descriptor.json"])


@pytest.mark.parametrize(
    ("name", "fmt"),
    [
        ("debian-12-1.qcow2", "qcow2"),
        ("debian-12-1-compat.qcow2", "qcow2"),
        ("debian-12-1.raw", "raw"),
        ("debian-12-1.vmdk", "vmdk"),
        ("debian-12-1-sparse.vmdk", "vmdk"),
        ("debian-12-1.vdi", "vdi"),
        ("debian-12-1.vhd", "vpc"),
        ("debian-12-1-fixed.vhd", "vpc"),
        ("debian-12-1.vhdx", "vhdx"),
    ],
)
def test_disks_read_the_same(made: Path, chain: Path, name: str, fmt: str) -> None:
    command = ["qemu-img", "compare", "-f", "qcow2", "-F", fmt, str(chain), str(made / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "Images are identical.")
    assert _qemu_img.info(made / name, fmt).virtual_size == SIZE
    checked = subprocess.run(["qemu-img", "check", "-f", fmt, str(made / name)], capture_output=True, check=False)
    assert checked.returncode in (0, 63)  # 63: this format has nothing to check
    if fmt == "qcow2":
        assert b"No errors were found" in checked.stdout


@pytest.mark.parametrize(("name", "tool"), [("raw.gz", "gzip"), ("raw.xz", "xz"), ("raw.zst", "zstd")])
def test_compressed_disks_are_read_by_their_tools(made: Path, raw: str, name: str, tool: str) -> None:
    done = subprocess.run([tool, "-dc", str(made / f"debian-12-1.{name}")], capture_output=True, check=True)
    assert len(done.stdout) == SIZE
    assert hashlib.sha256(done.stdout).hexdigest() == raw


def test_gzip_has_neither_name_nor_time(made: Path) -> None:
    for name in ("debian-12-1.raw.gz", "debian-12-1.box"):
        assert (made / name).read_bytes()[:10] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"


def test_same_input_gives_same_bytes(made: Path, chain: Path, tmp_path: Path) -> None:
    run(request(chain, tmp_path / "again", *EVERYTHING))
    for path in made.iterdir():
        if ".json" not in path.name:
            assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("number", [b"7", b"123abc", b"fedcba98"])
def test_vmdk_gets_its_number_whatever_qemu_gave_it(tmp_path: Path, number: bytes) -> None:
    """QEMU takes a random one, and writes it without leading zeros."""
    disk = tmp_path / "x.vmdk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", disk, "8M"], check=True)
    content = disk.read_bytes()
    begin, size = (512 * sectors for sectors in struct.unpack("<QQ", content[28:44]))
    text = re.sub(rb"\nCID=[0-9a-f]+\n", b"\nCID=%s\n" % number, content[begin : begin + size].rstrip(b"\0"))
    disk.write_bytes(content[:begin] + text.ljust(size, b"\0") + content[begin + size :])
    identity = uuid.UUID(int=0xABC)
    _disk_identity.settle(disk, "vmdk", identity, name="y.vmdk")
    written = disk.read_bytes()
    assert written.count(b"\nCID=00000abc\n") == 1
    assert b'"y.vmdk"' in written
    assert len(written) == len(content)
    subprocess.run(["qemu-img", "check", "-q", "-f", "vmdk", disk], check=True)


def test_other_version_is_another_disk(made: Path, chain: Path, tmp_path: Path) -> None:
    run(dataclasses.replace(request(chain, tmp_path, "vdi", "vhd", "vhdx", "vmdk"), version="2"))
    for name in ("vdi", "vhd", "vhdx", "vmdk"):
        assert (tmp_path / f"debian-12-2.{name}").read_bytes() != (made / f"debian-12-1.{name}").read_bytes()


def test_vhd_footer_has_its_checksum(made: Path) -> None:
    for name in ("debian-12-1.vhd", "debian-12-1-fixed.vhd"):
        footer = bytearray((made / name).read_bytes()[-512:])
        told = int.from_bytes(footer[64:68], "big")
        footer[64:68] = bytes(4)
        assert told == ~sum(footer) & 0xFFFFFFFF


def test_ova(made: Path) -> None:
    found = members(made / "debian-12-1.ova")
    assert list(found) == ["debian-12-1.ovf", "debian-12-1.mf", "debian-12-1.vmdk"]
    lines = found["debian-12-1.mf"].decode().splitlines()
    assert lines == [
        f"SHA256({name})= {hashlib.sha256(found[name]).hexdigest()}" for name in ("debian-12-1.ovf", "debian-12-1.vmdk")
    ]
    assert found["debian-12-1.vmdk"] == (made / "debian-12-1.vmdk").read_bytes()
    with (made / "debian-12-1.ova").open("rb") as stream:
        assert stream.read(512)[257:265] == b"ustar\x0000"


def test_ovf_says_what_the_definition_says(made: Path) -> None:
    found = members(made / "debian-12-1.ova")
    space = {
        "o": "http://schemas.dmtf.org/ovf/envelope/1",
        "r": "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData",
    }
    root = ET.fromstring(found["debian-12-1.ovf"])
    ovf = f"{{{space['o']}}}"
    assert root.tag == f"{ovf}Envelope"
    file = root.find("o:References/o:File", space)
    disk = root.find("o:DiskSection/o:Disk", space)
    assert file is not None and disk is not None
    assert file.get(f"{ovf}href") == "debian-12-1.vmdk"
    assert file.get(f"{ovf}size") == str(len(found["debian-12-1.vmdk"]))
    assert disk.get(f"{ovf}capacity") == str(SIZE)
    assert disk.get(f"{ovf}format") == "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
    assert disk.get(f"{ovf}fileRef") == file.get(f"{ovf}id")
    rows = [{child.tag.partition("}")[2]: child.text for child in item} for item in root.iterfind(".//o:Item", space)]
    by_type = {row["ResourceType"]: row for row in rows}
    assert by_type["3"]["VirtualQuantity"] == "3"
    assert by_type["4"]["VirtualQuantity"] == "1024"
    assert by_type["17"]["HostResource"] == f"ovf:/disk/{disk.get(f'{ovf}diskId')}"
    assert by_type["17"]["Parent"] == by_type["5"]["InstanceID"]
    assert all(list(row) == sorted(row) for row in rows)
    assert root.findtext(".//o:ProductSection/o:Product", namespaces=space) == "Debian <12> & more"
    assert b'value="efi"' in found["debian-12-1.ovf"]


def test_ovf_2_has_items_of_its_own(chain: Path, tmp_path: Path) -> None:
    run(request(chain, tmp_path, {"format": "ova", "ovf": "2.0", "controller": "pvscsi"}))
    root = ET.fromstring(members(tmp_path / "debian-12-1.ova")["debian-12-1.ovf"])
    ovf = "{http://schemas.dmtf.org/ovf/envelope/2}"
    assert root.tag == f"{ovf}Envelope"
    assert [item.tag.partition("}")[2] for item in root.iter() if item.tag.endswith("Item")] == [
        *("Item", "Item", "Item", "StorageItem", "EthernetPortItem"),
    ]
    # The disk that it was made of is no artifact.
    assert names(tmp_path) == ["debian-12-1.ova", "debian-12-1.ova.digests.json", "descriptor.json"]


def test_box(made: Path, chain: Path, tmp_path: Path) -> None:
    found = members(made / "debian-12-1.box", "r:gz")
    assert list(found) == ["metadata.json", "Vagrantfile", "box.img"]
    assert json.loads(found["metadata.json"]) == {"format": "qcow2", "provider": "libvirt", "virtual_size": 1}
    assert found["box.img"] == (made / "debian-12-1.qcow2").read_bytes()
    subprocess.run(["gzip", "-t"], stdin=(made / "debian-12-1.box").open("rb"), check=True)


def test_new_format_makes_only_itself(chain: Path, tmp_path: Path) -> None:
    run(request(chain, tmp_path, "qcow2"))
    inode = (tmp_path / "debian-12-1.qcow2").stat().st_ino
    result = run(request(chain, tmp_path, "qcow2", "box"))
    assert result.actions == ["debian-12-1.box: is not exported yet", "descriptor.json: is missing"]
    assert (tmp_path / "debian-12-1.qcow2").stat().st_ino == inode
