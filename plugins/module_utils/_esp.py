# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The EFI system partition of a raw disk, read and written by mtools: not every kernel knows vfat, nor need it read a stranger's.

A machine that has never seen a disk starts C(\\EFI\\BOOT\\BOOTX64.EFI) of it: that its boot loader was called otherwise stood in
the memory of the machine on which it was installed. Source: UEFI specification 2.10, section 3.5.1.1.
"""

from __future__ import annotations

import os
import tempfile
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli, _confined, _partitions

_BOOT = "::/EFI/BOOT"
_ARCHITECTURES = ("x64", "aa64")
_ENVIRONMENT = {"MTOOLS_SKIP_CHECK": "1", "MTOOLSRC": os.devnull}


def programs(raw: Path, volume: _partitions.Volume) -> list[str]:
    """The EFI programs on the partition, as C(::/EFI/debian/grubx64.efi); raises FactoryError where there is no mtools."""
    done = _confined.run(_argv("mdir", raw, volume, "-b", "-/", "::/EFI"), env=_ENVIRONMENT)
    return sorted(name for line in done.stdout.splitlines() if (name := line.strip()).lower().endswith(".efi"))


def make_findable(raw: Path, volume: _partitions.Volume) -> str | None:
    """Have the boot loader also where a machine looks that has never seen the disk; returns what was done, or why not."""
    found = programs(raw, volume)
    have = {name.lower() for name in found}
    for arch in _ARCHITECTURES:
        if f"{_BOOT}/boot{arch}.efi".lower() in have:
            return None
        for name in sorted(found, key=lambda name: name.lower().startswith(f"{_BOOT}/".lower())):
            folder, _slash, program = name.rpartition("/")
            if program.lower() not in (f"shim{arch}.efi", f"grub{arch}.efi"):
                continue
            shim = next((other for other in found if other.lower() == f"{folder}/shim{arch}.efi".lower()), None)
            beside = (f"grub{arch}.efi", f"mm{arch}.efi") if shim else ()
            copies = {shim or name: f"{_BOOT}/BOOT{arch.upper()}.EFI"}
            for other in found:
                home, _slash, stem = other.rpartition("/")
                # What lies there already stays: a copy that failed is removed again.
                if home == folder and stem.lower() in beside and f"{_BOOT}/{stem}".lower() not in have:
                    copies[other] = f"{_BOOT}/{stem}"
            problem = _copy(raw, volume, copies)
            where = folder.removeprefix("::")
            if problem:
                return f"its boot loader for UEFI ({where}) is found by the machine it comes from only: {problem}"
            return f"its boot loader for UEFI ({where}) was found by the machine it comes from only: it is in /EFI/BOOT, too, now"
    return None


def _copy(raw: Path, volume: _partitions.Volume, copies: t.Mapping[str, str]) -> str | None:
    """Copy files on the partition, all of them or none; returns what went wrong."""

    def change(tool: str, *words: str) -> str | None:
        # The disk is there already: the bound only keeps it from growing.
        argv, size = _argv(tool, raw, volume, *words), raw.stat().st_size
        return _problem(_confined.run(argv, writable=raw, limit=size, env=_ENVIRONMENT))

    made: list[str] = []
    with tempfile.TemporaryDirectory(prefix="cloudimg-esp-") as scratch:
        change("mmd", "-D", "s", _BOOT)  # it may be there
        for number, (source, target) in enumerate(copies.items()):
            part = str(Path(scratch, str(number)))
            argv = _argv("mcopy", raw, volume, source, part)
            problem = _problem(_confined.run(argv, writable=scratch, env=_ENVIRONMENT))
            if not problem:
                made.append(target)
                problem = change("mcopy", "-D", "o", part, target)
            if problem:
                for name in made:
                    change("mdel", name)
                return problem
    return None


def _problem(done: _cli.Completed) -> str | None:
    return (_cli.tail(done.stderr, 1) or f"it ended with {done.rc}") if done.rc else None


def _argv(tool: str, raw: Path, volume: _partitions.Volume, *words: str) -> list[str]:
    return [tool, "-i", f"{raw}@@{volume.offset}", *words]
