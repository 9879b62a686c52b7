# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looking into ISOs that xorriso and genisoimage made."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._iso import inspect, require_files
from ansible_collections.cloudimg.factory.tests.tools.vendor import make_iso

WHERE = "https://example.org/a.iso"
KEY = "image_medium.url"


@pytest.fixture(scope="module")
def iso(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = {"boot/vmlinuz": b"k", "boot/with space": b"i", "boot/dir/x": b"x"}
    return make_iso(tmp_path_factory.mktemp("iso") / "a.iso", files, label="FAI_CD", filler=200_000)


def test_the_label_and_the_size(iso: Path) -> None:
    volume = inspect(iso, where=WHERE, key=KEY)
    assert volume.label == "FAI_CD"
    assert 200_000 < volume.size <= iso.stat().st_size


def test_an_image_by_genisoimage_that_is_padded_as_hybrids_are(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(b"x")
    target = tmp_path / "b.iso"
    argv = ["genisoimage", "-quiet", "-V", "Other CD 1.0", "-r", "-J", "-o", str(target), str(tmp_path / "tree")]
    subprocess.run(argv, check=True, capture_output=True)
    with target.open("ab") as stream:
        stream.write(bytes(1 << 20))
    assert inspect(target, where=WHERE, key=KEY).label == "Other CD 1.0"


def test_a_truncated_image(iso: Path, tmp_path: Path) -> None:
    whole = iso.read_bytes()
    size = inspect(iso, where=WHERE, key=KEY).size
    part = tmp_path / "part.iso"
    for length in (size - 1, 40_000):
        part.write_bytes(whole[:length])
        with pytest.raises(FactoryError) as caught:
            inspect(part, where=WHERE, key=KEY)
        assert str(caught.value) == (
            f"{WHERE}: {KEY}: is a truncated ISO: {length} of {size} bytes;"
            " fetch it again, and check it against the vendor's checksum"
        )
    part.write_bytes(whole[:size])
    assert inspect(part, where=WHERE, key=KEY).size == size


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"\(0 bytes\)"),
        (bytes(100), r"\(100 bytes\)"),
        (bytes(100_000), r"\(100000 bytes\)"),
        (b"\n<!DOCTYPE html><title>404</title>", "bytes, it looks like a web page"),
        (b"\x1f\x8b" + bytes(50_000), "it looks like a gzip file"),
        (b"QFI\xfb" + bytes(50_000), "it looks like a qcow2 disk"),
        (bytes(32768) + b"\xffCD001" + bytes(4096), r"\(36870 bytes\)"),
        (bytes(32768) + b"\x02CD001" + bytes(2042) + b"\x01CD002" + bytes(4096), "bytes"),
    ],
)
def test_a_file_that_is_no_iso(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "x"
    file.write_bytes(content)
    with pytest.raises(FactoryError, match=rf"^{WHERE}: {KEY}: is not an ISO 9660 image .*{said}.*; give the place of"):
        inspect(file, where=WHERE, key=KEY)


def test_files_that_have_to_be_there(iso: Path) -> None:
    require_files(iso, ["boot/vmlinuz", "/boot/with space"], where=WHERE, family="fai")
    require_files(iso, [], where=WHERE, family="fai")


def test_files_that_are_missing(iso: Path) -> None:
    with pytest.raises(FactoryError) as caught:
        require_files(iso, ["boot/vmlinuz", "boot/initrd.img", "boot/dir", "boot/vm*"], where=WHERE, family="fai")
    assert str(caught.value) == (
        f"{WHERE}: image_medium.family: has no /boot/initrd.img and no /boot/dir and no /boot/vm*, so it is no"
        " installation medium of family 'fai'; name the family that this medium belongs to, or give another medium"
    )
