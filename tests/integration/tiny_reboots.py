# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Installers of a few hundred bytes that restart the machine twice, as that of Windows does, and then power it off.

What the medium boots (its boot sector, or its kernel) writes a boot sector to the disk and restarts; that one counts on the
disk how often it was booted: the first time it restarts once more, the second time it powers off.
"""

from __future__ import annotations

import subprocess
import typing as t
from pathlib import Path

from tiny_installer import HALT, POWER_OFF

SECTOR = 512
_RESET = bytes.fromhex("b0fee664")
"""movb $0xfe,%al; outb %al,$0x64: the reset line of the keyboard controller."""
_TALK = bytes.fromhex("ac84c07406baf803eeebf5c3")
"""talk: lodsb; testb %al,%al; jz end; movw $0x3f8,%dx; outb %al,%dx; jmp talk; end: ret"""
_ZERO_SEGMENTS = bytes.fromhex("31c08ed88ec0fc")
"""xorw %ax,%ax; movw %ax,%ds; movw %ax,%es; cld"""
_WRITE = bytes.fromhex("b80103b90100ba8000cd13")
"""movw $0x0301,%ax; movw $1,%cx; movw $0x0080,%dx; int $0x13: write a sector from %es:%bx to the first of the first disk."""
_DISK_AT = 0x7C00
_SETUP = 0x200
"""Where a kernel for a PC has the code that QEMU's boot ROM jumps to; what is before is the old boot sector, see
Documentation/arch/x86/boot.rst of Linux."""
_SETUP_HEADER = 0x70


def _assemble(parts: t.Sequence[bytes | tuple[bytes, str]], marks: t.Mapping[str, int], at: int) -> bytes:
    """Join instructions; one that is a pair ends in the address of a mark (C(call), which is relative, has opcode e8)."""
    code = b""
    for part in parts:
        if isinstance(part, bytes):
            code += part
            continue
        operation, mark = part
        end = at + len(code) + len(operation) + 2
        value = marks[mark] - end if operation == b"\xe8" else marks[mark]
        code += operation + (value & 0xFFFF).to_bytes(2, "little")
    return code


def _linked(parts: t.Sequence[bytes | tuple[bytes, str]], data: t.Mapping[str, bytes], at: int) -> bytes:
    """Code that begins at an address, and its data behind it, with the addresses of the data filled in."""
    size = len(_assemble(parts, dict.fromkeys(data, 0), at))
    marks, found = {}, at + size
    for name, content in data.items():
        marks[name] = found
        found += len(content)
    return _assemble(parts, marks, at) + b"".join(data.values())


def _say(mark: str) -> list[bytes | tuple[bytes, str]]:
    return [(b"\xbe", mark), (b"\xe8", "talk")]  # movw $mark,%si; call talk


def disk_sector(first: str, second: str) -> bytes:
    """The boot sector that counts: says ``first`` and restarts, then ``second`` and powers off."""
    again = [*_say("first"), b"\xbb" + _DISK_AT.to_bytes(2, "little"), _WRITE, _RESET, HALT]
    length = len(_assemble(again, {"first": 0, "talk": 0}, 0))
    parts = [
        _ZERO_SEGMENTS,
        (b"\xfe\x06", "count"),  # incb count
        (b"\xa0", "count"),  # movb count,%al
        b"\x3c\x01\x75" + bytes([length]),  # cmpb $1,%al; jne last
        *again,
        *_say("second"),
        POWER_OFF,
        HALT,
    ]
    texts = {"first": first.encode() + b"\0", "second": second.encode() + b"\0"}
    sector = _linked(parts, {"count": b"\0", "talk": _TALK, **texts}, _DISK_AT)
    assert len(sector) <= SECTOR - 2
    return sector.ljust(SECTOR - 2, b"\0") + b"\x55\xaa"


def _boot_image(says: str, disk: bytes) -> bytes:
    """What the ISO's boot loader is: 2 KiB, loaded to 7c00; the disk's sector is its second half."""
    source = _DISK_AT + SECTOR
    parts = [_ZERO_SEGMENTS, *_say("says"), b"\xbb" + source.to_bytes(2, "little"), _WRITE, _RESET, HALT]
    code = _linked(parts, {"talk": _TALK, "says": says.encode() + b"\0"}, _DISK_AT)
    assert len(code) <= SECTOR
    return (code.ljust(SECTOR, b"\0") + disk).ljust(2048, b"\0")


def _kernel(says: str, disk: bytes) -> bytes:
    """A kernel whose setup does the same. QEMU loads it to some segment, the one that %ds has, and jumps to 200 in it."""
    at = _SETUP + _SETUP_HEADER
    # %es becomes %ds; %cs is 20 higher, so near calls go right, as they are relative
    segments = bytes.fromhex("8cd88ec0fc")
    parts = [segments, *_say("says"), (b"\xbb", "disk"), _WRITE, _RESET, HALT]
    code = _linked(parts, {"talk": _TALK, "says": says.encode() + b"\0", "disk": disk}, at)
    image = bytearray((b"\0" * at + code).ljust(5 * SECTOR, b"\0"))
    image[0x1F1] = 4  # sectors of the setup, beside the first
    image[0x1FE:0x200] = b"\x55\xaa"
    image[_SETUP : _SETUP + 2] = b"\xeb" + bytes([_SETUP_HEADER - 2])
    image[0x202:0x206] = b"HdrS"
    image[0x206:0x208] = (0x0204).to_bytes(2, "little")  # version of the protocol
    image[0x211] = 1  # the kernel itself goes to 1 MiB
    image[0x22C:0x230] = (0x37FFFFFF).to_bytes(4, "little")  # the highest address of the initrd
    return bytes(image) + b"\0" * SECTOR


def make_restarting_installer(directory: Path, says: t.Sequence[str]) -> Path:
    """An ISO whose installer says three texts, one in each of its three boots; as C(kernel) and C(initrd) it has that, too."""
    tree = directory / "tree"
    tree.mkdir(parents=True, exist_ok=True)
    disk = disk_sector(says[1], says[2])
    (tree / "boot.img").write_bytes(_boot_image(f"medium: {says[0]}", disk))
    (tree / "kernel").write_bytes(_kernel(f"kernel: {says[0]}", disk))
    (tree / "initrd").write_bytes(b"\0" * SECTOR)
    iso = directory / "installer.iso"
    argv = ["xorriso", "-as", "mkisofs", "-quiet", "-V", "TINY", "-J", "-r", "-b", "boot.img", "-no-emul-boot"]
    argv += ["-boot-load-size", "4", "-o", str(iso), str(tree)]
    subprocess.run(argv, check=True, capture_output=True)
    return iso
