# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small Debian on a qcow2 disk, made without an installation: enough to be a base for guest stages, not to boot."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli, _qemu_img, _state

MIB = 1 << 20
ROOT_AT = 9 * MIB
_PACKAGES = "systemd-sysv,python3,grub2-common"
_TABLE = "label: gpt\nsize=8MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\ntype=0FC63DAF-8483-4772-8E79-3D69D8477DE4\n"


def tiny_disk(folder: Path) -> Path:
    """The disk, made once for each run of the tests (it takes half a minute); it must not be written to.

    CLOUDIMG_TEST_FACTORY may name a directory that outlives the tests, as for the factory in conftest.py.
    """
    folder = Path(os.environ.get("CLOUDIMG_TEST_FACTORY", folder))
    disk = folder / "tiny-system.qcow2"
    if not disk.exists():
        work = folder / "tiny-system"
        work.mkdir()
        _make(work, disk)
        shutil.rmtree(work)
    return disk


def _make(work: Path, disk: Path) -> None:
    root = work / "root"
    argv = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", str(root)]
    subprocess.run(argv, check=True, capture_output=True)
    (root / "etc/fstab").write_text("LABEL=tiny / ext4 defaults 0 1\nLABEL=ESP /boot/efi vfat defaults 0 1\n")
    (root / "etc/ssh").mkdir(exist_ok=True)
    (root / "boot/efi").mkdir()
    (root / "boot/grub").mkdir(exist_ok=True)
    for name in ("vmlinuz", "initrd.img"):
        (root / f"boot/{name}-6.1.0-1-amd64").write_bytes(name.encode() * 512)
    volume = work / "volume"
    with volume.open("wb") as stream:
        stream.truncate(1500 * MIB)
    tool = _cli.require("mkfs.ext4")
    subprocess.run([tool, "-q", "-L", "tiny", "-d", str(root), str(volume)], check=True, capture_output=True)
    loader = work / "grubx64.efi"
    loader.write_bytes(b"MZ" + bytes(4096))
    esp = work / "esp"
    with esp.open("wb") as stream:
        stream.truncate(8 * MIB)
    subprocess.run([_cli.require("mkfs.vfat"), "-n", "ESP", str(esp)], check=True, capture_output=True)
    # As the installer leaves it: found by the machine it was installed on.
    env = {**os.environ, "MTOOLS_SKIP_CHECK": "1"}
    for argv in (
        ["mmd", "-i", esp, "::/EFI", "::/EFI/debian"],
        ["mcopy", "-i", esp, loader, "::/EFI/debian/grubx64.efi"],
    ):
        subprocess.run(argv, check=True, capture_output=True, env=env)
    raw = work / "raw"
    with raw.open("wb") as stream:
        stream.truncate(1510 * MIB)
    subprocess.run([_cli.require("sfdisk"), str(raw)], input=_TABLE, text=True, check=True, capture_output=True)
    for part, offset in ((esp, 1), (volume, ROOT_AT // MIB)):
        argv = ["dd", f"if={part}", f"of={raw}", "bs=1M", f"seek={offset}", "conv=notrunc,sparse"]
        subprocess.run(argv, check=True, capture_output=True)
    _qemu_img.convert(raw, disk, source_fmt="raw", target_fmt="qcow2")


def as_base(disk: Path, workspace: _state.Workspace, stage: str = "base_vm") -> Path:
    """Put the disk into a workspace's layer cache, as if ``stage`` had made it."""
    path = workspace.make().layers / f"{stage}-tiny.qcow2"
    os.link(disk, path)
    _state.write_json(path.with_suffix(".json"), {"stage": stage, "digest": "0" * 64, "inputs": {}})
    return path


class Leftovers:
    """What of a workspace the kernel still has in use."""

    def __init__(self, workspace: Path) -> None:
        self._root = str(workspace)

    def found(self) -> list[str]:
        """Mounts, loop devices and processes."""
        loops = subprocess.run(
            [_cli.require("losetup"), "--list", "--noheadings"], capture_output=True, text=True, check=True
        )
        lines = [*Path("/proc/self/mountinfo").read_text().splitlines(), *loops.stdout.splitlines(), *self._commands()]
        return [line for line in lines if self._root in line]

    def _commands(self) -> t.Iterator[str]:
        for proc in Path("/proc").iterdir():
            if proc.name.isdigit() and int(proc.name) != os.getpid():
                with contextlib.suppress(OSError):
                    yield (proc / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")

    def none_within(self, seconds: float) -> bool:
        """Whether there soon are none."""
        deadline = time.monotonic() + seconds
        while self.found() and time.monotonic() < deadline:
            time.sleep(0.2)
        return not self.found()
