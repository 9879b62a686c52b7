# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Disks that carry numbers of their own (UUIDs, times): QEMU draws them anew each time, so they are replaced.

The replacement follows from the image, its version and the artifact: the same file every time, and yet another identity for each
version, which VirtualBox insists on.

Sources: VirtualBox, C(VDICore.h); Microsoft, «Virtual Hard Disk Image Format Specification» 1.0; Microsoft, [MS-VHDX];
VMware, «Virtual Disk Format 5.0».
"""

from __future__ import annotations

import re
import struct
import typing as t
import uuid
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors

_VHD_COOKIE = b"conectix"
_VHD_FOOTER = 512
_VHDX_HEADERS = (64 << 10, 128 << 10)
_VHDX_REGIONS = (192 << 10, 256 << 10)
_VHDX_METADATA = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
_VHDX_PAGE83 = uuid.UUID("beca12ab-b2e6-4523-93ef-c309e000c746")


def settle(path: Path, fmt: str, identity: uuid.UUID, *, name: str | None = None) -> None:
    """Give the disk ``path`` (of a format in :data:`SETTLERS`) the identity.

    :param name: what a VMDK is to call itself, in place of the name that it was written under.
    :raises FactoryError: it is not built as the format's documentation says.
    """
    with explain_os_errors(path), path.open("r+b") as stream:
        try:
            SETTLERS[fmt](stream, identity)
            if name:
                _name_vmdk(stream, path.name, name)
        except (struct.error, ValueError) as exc:
            raise FactoryError(f"is no {fmt} as it is documented: {exc}", where=str(path)) from exc


def _at(stream: t.BinaryIO, position: int, length: int) -> bytes:
    stream.seek(position)
    return stream.read(length)


def _put(stream: t.BinaryIO, position: int, content: bytes | bytearray) -> None:
    stream.seek(position)
    stream.write(content)


def _vdi(stream: t.BinaryIO, identity: uuid.UUID) -> None:
    if _at(stream, 0x40, 4) != b"\x7f\x10\xda\xbe":
        raise ValueError("no signature")
    _put(stream, 0x188, identity.bytes_le + uuid.uuid5(identity, "snapshot").bytes_le)


def _vmdk(stream: t.BinaryIO, identity: uuid.UUID) -> None:
    # QEMU writes its random one without leading zeros.
    text = _vmdk_text(stream)
    new, count = re.subn(rb"(?m)^CID=[0-9a-fA-F]{1,8}$", f"CID={cid(identity):08x}".encode(), text)
    if count != 1:
        raise ValueError("no CID")
    _put_vmdk_text(stream, new)


def _name_vmdk(stream: t.BinaryIO, before: str, name: str) -> None:
    _put_vmdk_text(stream, _vmdk_text(stream).replace(f'"{before}"'.encode(), f'"{name}"'.encode()))


def _vmdk_text(stream: t.BinaryIO) -> bytes:
    """The descriptor that is embedded in a sparse extent."""
    place, sectors = struct.unpack("<QQ", _at(stream, 28, 16))
    return _at(stream, place * 512, sectors * 512).rstrip(b"\0")


def _put_vmdk_text(stream: t.BinaryIO, text: bytes) -> None:
    place, sectors = struct.unpack("<QQ", _at(stream, 28, 16))
    if len(text) > sectors * 512:
        raise ValueError("no room for its descriptor")
    _put(stream, place * 512, text.ljust(sectors * 512, b"\0"))


def cid(identity: uuid.UUID) -> int:
    """The content's number in a VMDK; the two greatest are reserved."""
    return (identity.int & 0xFFFFFFFF) % 0xFFFFFFFE


def _vhd(stream: t.BinaryIO, identity: uuid.UUID) -> None:
    last = stream.seek(0, 2) - _VHD_FOOTER
    for position in (0, last):
        footer = bytearray(_at(stream, position, _VHD_FOOTER))
        if not footer.startswith(_VHD_COOKIE):
            if position == last:
                raise ValueError("no footer")
            continue  # a fixed disk begins with its first sector
        footer[24:28] = bytes(4)  # the time, in seconds from 2000-01-01
        footer[64:68] = bytes(4)
        footer[68:84] = identity.bytes
        footer[64:68] = struct.pack(">I", ~sum(footer) & 0xFFFFFFFF)
        _put(stream, position, footer)


def _vhdx(stream: t.BinaryIO, identity: uuid.UUID) -> None:
    headers = [bytearray(_at(stream, position, 4096)) for position in _VHDX_HEADERS]
    if any(not header.startswith(b"head") for header in headers):
        raise ValueError("no header")
    numbers = [struct.unpack_from("<Q", header, 8)[0] for header in headers]
    log, length, start = struct.unpack_from("<16s4xIQ", headers[numbers.index(max(numbers))], 48)
    if any(log):
        raise ValueError("its log has not been played")
    # What is left in the log nobody reads, but it is another every time.
    _put(stream, start, bytes(length))
    for position, header, number in zip(_VHDX_HEADERS, headers, numbers):
        header[4:8] = bytes(4)
        header[8:16] = struct.pack("<Q", 2 if number == max(numbers) else 1)
        header[16:32] = uuid.uuid5(identity, "file").bytes_le
        header[32:48] = uuid.uuid5(identity, "data").bytes_le
        header[4:8] = struct.pack("<I", crc32c(bytes(header)))
        _put(stream, position, header)
    metadata = _vhdx_metadata(stream)
    count = struct.unpack_from("<H", _at(stream, metadata, 32), 10)[0]
    for row in range(count):
        entry = _at(stream, metadata + 32 + 32 * row, 32)
        if entry[:16] == _VHDX_PAGE83.bytes_le:
            _put(stream, metadata + struct.unpack_from("<I", entry, 16)[0], identity.bytes_le)
            return
    raise ValueError("no identity")


def _vhdx_metadata(stream: t.BinaryIO) -> int:
    regions = _at(stream, _VHDX_REGIONS[0], 64 << 10)
    for row in range(struct.unpack_from("<I", regions, 8)[0]):
        start = 16 + 32 * row
        if regions[start : start + 16] == _VHDX_METADATA.bytes_le:
            return int(struct.unpack_from("<Q", regions, start + 16)[0])
    raise ValueError("no metadata")


def crc32c(data: bytes) -> int:
    """The CRC-32C (Castagnoli) of a little data."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _bit in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


SETTLERS: dict[str, t.Callable[[t.BinaryIO, uuid.UUID], None]] = {
    "vdi": _vdi,
    "vhd": _vhd,
    "vhdx": _vhdx,
    "vmdk": _vmdk,
}
