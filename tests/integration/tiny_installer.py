# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Installation ISOs that boot in a second: a boot sector that talks on the serial console and then ends, or does not."""

from __future__ import annotations

import subprocess
from pathlib import Path

# In AT&T syntax: xorw %ax,%ax; movw %ax,%ds; cld; movw $text,%si
#   next: lodsb; testb %al,%al; jz end; movw $0x3f8,%dx; outb %al,%dx; jmp next
_TALK = bytes.fromhex("31c08ed8fcbe{text}ac84c07406baf803eeebf5".replace("{text}", "0000"))
_TEXT_OPERAND = 6
_LOADED_AT = 0x7C00
POWER_OFF = bytes.fromhex("ba0406b80020ef")
"""movw $0x604,%dx; movw $0x2000,%ax; outw %ax,%dx: S5 through the ACPI power management of QEMU's pc and q35."""
HALT = bytes.fromhex("f4ebfd")
"""halt: hlt; jmp halt"""


def make_installer(directory: Path, says: str, *, ends: bool = True) -> Path:
    """An ISO whose guest says something on its first serial port, then powers off, or (``ends=False``) waits for ever."""
    code = _TALK + (POWER_OFF if ends else b"") + HALT
    text_at = (_LOADED_AT + len(code)).to_bytes(2, "little")
    code = code[:_TEXT_OPERAND] + text_at + code[_TEXT_OPERAND + 2 :]
    tree = directory / "tree"
    tree.mkdir(parents=True, exist_ok=True)
    boot = (code + says.encode("ascii") + b"\0").ljust(2048, b"\0")
    (tree / "boot.img").write_bytes(boot)
    iso = directory / "installer.iso"
    argv = ["xorriso", "-as", "mkisofs", "-quiet", "-V", "TINY", "-b", "boot.img", "-no-emul-boot"]
    argv += ["-boot-load-size", "4", "-o", str(iso), str(tree)]
    subprocess.run(argv, check=True, capture_output=True)
    return iso
