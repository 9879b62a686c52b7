# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The EFI system partition: boot loaders that only one machine knows are found by all."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli, _esp
from ansible_collections.cloudimg.factory.plugins.module_utils._partitions import Volume

MIB = 1 << 20
pytestmark = pytest.mark.skipif(
    not _cli.which("mkfs.vfat") or not _cli.which("mcopy"), reason="needs mtools, dosfstools"
)


def disk(folder: Path, files: dict[str, bytes], size: int = 2 * MIB) -> tuple[Path, Volume]:
    """A disk with an EFI system partition at 1 MiB that has ``files``."""
    esp, raw = folder / "esp", folder / "raw"
    esp.write_bytes(bytes(size))
    subprocess.run([_cli.require("mkfs.vfat"), str(esp)], check=True, capture_output=True)
    folders = {str(parent) for name in files for parent in Path(name).parents if str(parent) != "."}
    for name in sorted(folders):
        subprocess.run(["mmd", "-i", str(esp), f"::/{name}"], check=True)
    for name, content in files.items():
        subprocess.run(["mcopy", "-i", str(esp), "-", f"::/{name}"], input=content, check=True)
    raw.write_bytes(bytes(MIB) + esp.read_bytes() + bytes(MIB))
    return raw, Volume(1, MIB, size, kind="ef", fstype="vfat")


def content(raw: Path, name: str) -> bytes:
    """A file on the partition."""
    return subprocess.run(["mtype", "-i", f"{raw}@@{MIB}", f"::/{name}"], check=True, capture_output=True).stdout


def test_a_loader_with_shim_is_copied_with_what_shim_starts(tmp_path):
    own = {"shimx64.efi": b"shim", "grubx64.efi": b"grub", "mmx64.efi": b"mok", "grub.cfg": b"configuration"}
    raw, volume = disk(tmp_path, {f"EFI/debian/{name}": text for name, text in own.items()})
    assert _esp.make_findable(raw, volume) == (
        "its boot loader for UEFI (/EFI/debian) was found by the machine it comes from only: it is in /EFI/BOOT, too, now"
    )
    found = {"BOOTX64.EFI": b"shim", "grubx64.efi": b"grub", "mmx64.efi": b"mok"}
    assert {name: content(raw, f"EFI/BOOT/{name}") for name in found} == found
    assert {name: content(raw, f"EFI/debian/{name}") for name in own} == own
    before = raw.read_bytes()
    assert _esp.make_findable(raw, volume) is None
    assert raw.read_bytes() == before


def test_a_loader_without_shim_takes_the_name_itself(tmp_path):
    raw, volume = disk(tmp_path, {"EFI/fedora/GRUBX64.EFI": b"grub"})
    assert "(/EFI/fedora)" in _esp.make_findable(raw, volume)
    assert content(raw, "EFI/BOOT/BOOTX64.EFI") == b"grub"
    assert len(_esp.programs(raw, volume)) == 2


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"EFI/BOOT/bootx64.efi": b"x", "EFI/debian/grubx64.efi": b"grub"},
        {"EFI/tools/memtest.efi": b"x"},
    ],
)
def test_what_needs_no_copy_or_has_none_stays_as_it_is(tmp_path, files):
    raw, volume = disk(tmp_path, files)
    before = raw.read_bytes()
    assert _esp.make_findable(raw, volume) is None
    assert raw.read_bytes() == before


def test_a_vendor_s_folder_comes_before_what_is_beside_it(tmp_path):
    raw, volume = disk(tmp_path, {"EFI/BOOT/grubx64.efi": b"grub", "EFI/debian/shimx64.efi": b"shim"})
    assert "(/EFI/debian)" in _esp.make_findable(raw, volume)
    assert content(raw, "EFI/BOOT/BOOTX64.EFI") == b"shim"
    assert content(raw, "EFI/BOOT/grubx64.efi") == b"grub"


def test_a_full_partition_is_left_as_it_was(tmp_path):
    raw, volume = disk(tmp_path, {"EFI/debian/shimx64.efi": b"s" * 300_000, "EFI/debian/grubx64.efi": b"g" * 1_000_000})
    names = _esp.programs(raw, volume)
    assert "is found by the machine it comes from only: " in _esp.make_findable(raw, volume)
    assert _esp.programs(raw, volume) == names
    assert raw.stat().st_size == 4 * MIB
