# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole image out of the disk of another hypervisor's machine: it boots, under BIOS and UEFI, and passes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _esp, _partitions

pytestmark = [pytest.mark.full_build, pytest.mark.root, pytest.mark.slow]
IMAGE = "debian-13"
"""A host of the example inventory, which gets another definition here."""

DEFINITION = """\
image_title: Legacy
image_description: What ran elsewhere
image_version: "1.0"
image_os:
  distribution: debian
  version: "12"
image_source_disk:
  path: {path}
  checksum: sha256:{checksum}
"""


def with_a_loader_of_its_own(raw: Path) -> str:
    """Have the boot loader for UEFI where only the machine knows it on which it was installed; returns that place."""
    (system,) = [volume for volume in _partitions.volumes(raw) if volume.kind in _partitions.ESP]
    here = ["-i", f"{raw}@@{system.offset}"]
    env = {**os.environ, "MTOOLS_SKIP_CHECK": "1"}
    (loader,) = [name for name in _esp.programs(raw, system) if name.upper().endswith("/BOOT/BOOTX64.EFI")]
    for argv in (["mmd", *here, "::/EFI/acme"], ["mmove", *here, loader, "::/EFI/acme/grubx64.efi"]):
        subprocess.run(argv, check=True, env=env)
    assert not [name for name in _esp.programs(raw, system) if "BOOTX64" in name.upper()]
    return "/EFI/acme"


def test_an_image_out_of_an_imported_disk(factory, built_image, tmp_path):
    raw, disk = tmp_path / "machine.raw", tmp_path / "machine.vmdk"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", built_image, raw], check=True)
    place = with_a_loader_of_its_own(raw)
    options = ["-o", "subformat=streamOptimized"]
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "vmdk", *options, raw, disk], check=True)
    raw.unlink()
    given = factory.inventory / "host_vars" / f"{IMAGE}.yml"
    before = given.read_text(encoding="utf-8")
    factory.define(IMAGE, DEFINITION.format(path=disk, checksum=hashlib.sha256(disk.read_bytes()).hexdigest()))
    try:
        played = factory.play("build.yml", IMAGE)
    finally:
        given.write_text(before, encoding="utf-8")
    assert played.rc == 0, played.stdout[-5000:]
    directory, build = factory.build(IMAGE)
    base = build["stages"]["base_vm"]
    assert (base["layout"]["bios"], base["layout"]["uefi"]) == (True, True)
    assert [line for line in base["warnings"] if f"({place})" in line and "it is in /EFI/BOOT, too, now" in line]
    assessment = json.loads((directory / "assess.json").read_text(encoding="utf-8"))
    assert assessment["verdict"] == "pass"
    assert [boot["name"] for boot in assessment["boots"]] == ["bios-nocloud", "uefi-opennebula"]
    descriptor = json.loads((directory / "descriptor.json").read_text(encoding="utf-8"))
    assert descriptor["source"]["family"] == "disk"
