# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small disks as others make them, and the appliances that hold them."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli

MIB = 1 << 20
SIZE = 20 * MIB
ROOT_AT = 2 * MIB
ROOT_SIZE = 16 * MIB
TABLE = "label: gpt\nsize=1MiB, type=U\nsize=16MiB, type=L\n"
OVF = """<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
<References>{files}</References><DiskSection>{disks}</DiskSection></Envelope>
"""


def run(*argv: str | Path, text: str | None = None) -> None:
    """Run a tool of the system."""
    words = [_cli.require(str(argv[0])), *map(str, argv[1:])]
    subprocess.run(words, input=text, text=True, check=True, capture_output=True)


def raw_disk(path: Path, table: str = TABLE, *, mkfs: t.Sequence[str] = ("mkfs.ext4", "-q", "-d")) -> Path:
    """A raw disk with holes: an ESP (with a boot loader, if there is a system), then a root with an fstab and 1 MiB of noise."""
    tree = path.with_name(f"{path.name}.tree")
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/fstab").write_text("/dev/sda2 / ext4 defaults 0 1\n")
    (tree / "noise").write_bytes(os.urandom(MIB))
    volume = path.with_name(f"{path.name}.volume")
    for file, size in ((volume, ROOT_SIZE), (path, SIZE)):
        with file.open("wb") as stream:
            stream.truncate(size)
    run("sfdisk", "--quiet", path, text=table)
    if mkfs:
        run(*mkfs, *([tree] if mkfs[-1] == "-d" else []), volume)
    put(volume, path)
    if mkfs and mkfs[-1] == "-d":
        put_loader(path)
    return path


def put_loader(disk: Path) -> None:
    """Write an EFI system partition with a boot loader to the first MiB after the table."""
    volume, loader = disk.with_name(f"{disk.name}.esp"), disk.with_name("BOOTX64.EFI")
    volume.write_bytes(bytes(MIB))
    loader.write_bytes(b"MZ")
    run("mkfs.vfat", "--invariant", volume)
    run("mmd", "-i", volume, "::/EFI", "::/EFI/BOOT")
    run("mcopy", "-i", volume, loader, "::/EFI/BOOT/BOOTX64.EFI")
    run("dd", f"if={volume}", f"of={disk}", "bs=1M", "seek=1", "conv=notrunc")


def put(volume: Path, disk: Path) -> None:
    """Write a volume to the place of the root file system."""
    run("dd", f"if={volume}", f"of={disk}", "bs=1M", f"seek={ROOT_AT // MIB}", "conv=notrunc,sparse")


def converted(raw: Path, path: Path, fmt: str, *options: str) -> Path:
    """The same disk in another format."""
    run("qemu-img", "convert", "-f", "raw", "-O", fmt, *options, raw, path)
    return path


def make_ova(path: Path, *disks: Path, manifest: bool = True) -> Path:
    """An appliance with these disks, as VMware and VirtualBox make them."""
    files = "".join(f'<File ovf:id="f{number}" ovf:href="{disk.name}"/>' for number, disk in enumerate(disks))
    told = "".join(f'<Disk ovf:diskId="vmdisk{number}" ovf:fileRef="f{number}"/>' for number in range(len(disks)))
    entries = {"vm.ovf": OVF.format(files=files, disks=told).encode()}
    entries.update({disk.name: disk.read_bytes() for disk in disks})
    if manifest:
        lines = (f"SHA256({name})= {hashlib.sha256(data).hexdigest()}\n" for name, data in entries.items())
        entries["vm.mf"] = "".join(lines).encode()
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
