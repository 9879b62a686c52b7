# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The partition table of a GPT on a disk that gets another size.

A GPT has a copy of itself in the disk's last sectors, and says where that is. Growing is no trouble (C(sfdisk --relocate)), but
a disk that is cut off has lost the copy: first it has to be put before the new end.

Source: UEFI Specification 2.10, 5.3 «GUID Partition Table (GPT) Disk Layout».
"""

from __future__ import annotations

import dataclasses
import struct
import zlib

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

SECTOR = 512
_SIGNATURE = b"EFI PART"
_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_LARGEST = 1 << 20
_FIRST = 446
"""Where an MBR has its first partition; its length is 12 bytes further on."""


@dataclasses.dataclass(frozen=True)
class Table:
    """The table at a disk's beginning, as it is there.

    :ivar header: its header, the sector after the first; ``entries`` are the partitions, from sector ``entries_at`` on.
    :ivar last: the sector in which its copy ends.
    """

    boot: bytes
    header: bytes
    entries: bytes
    entries_at: int
    last: int

    @property
    def copy_size(self) -> int:
        """Bytes that the copy takes at the disk's end."""
        return len(self.entries) + SECTOR

    @property
    def end(self) -> int:
        """Where the table at the beginning ends, in bytes."""
        return self.entries_at * SECTOR + len(self.entries)

    def copy_within(self, start: int, end: int) -> tuple[int, int] | None:
        """Offset and size of what a part of the disk has of the present copy."""
        after = (self.last + 1) * SECTOR
        begin, end = max(start, after - self.copy_size), min(end, after)
        return (begin, end - begin) if begin < end else None

    def moved(self, size: int) -> list[tuple[int, bytes]]:
        """What has to be written where, so that the disk may have ``size`` bytes: the copy first."""
        last = size // SECTOR - 1
        copy = last * SECTOR - len(self.entries)
        usable = copy // SECTOR - 1
        head = self._header(current=1, other=last, usable=usable, entries=self.entries_at)
        tail = self._header(current=last, other=1, usable=usable, entries=copy // SECTOR)
        boot = bytearray(self.boot)
        struct.pack_into("<I", boot, _FIRST + 12, min(last, 0xFFFFFFFF))
        return [(copy, self.entries + tail), (0, bytes(boot) + head)]

    def _header(self, *, current: int, other: int, usable: int, entries: int) -> bytes:
        fields = list(_HEADER.unpack_from(self.header))
        fields[3], fields[5], fields[6], fields[8], fields[10] = 0, current, other, usable, entries
        data = bytearray(_HEADER.pack(*fields) + self.header[_HEADER.size :])
        struct.pack_into("<I", data, 16, zlib.crc32(data[: fields[2]]))
        return bytes(data)


def read(head: bytes, where: str) -> Table | None:
    """The table of a disk with such a beginning (1 MiB will do); None where it is not a GPT with sectors of 512 bytes.

    :raises FactoryError: it is damaged.
    """
    header = head[SECTOR : 2 * SECTOR]
    if header[:8] != _SIGNATURE:
        return None
    fields = _HEADER.unpack_from(header)
    length, checksum, other, at, count, size, of_entries = (fields[index] for index in (2, 3, 6, 10, 11, 12, 13))
    total = count * size
    data = bytearray(header)
    struct.pack_into("<I", data, 16, 0)
    whole = 92 <= length <= SECTOR and at * SECTOR + total <= min(len(head), _LARGEST) and total % SECTOR == 0
    entries = head[at * SECTOR : at * SECTOR + total]
    if not whole or zlib.crc32(data[:length]) != checksum or zlib.crc32(entries) != of_entries:
        raise FactoryError("its GPT is damaged", where=where, mend="mend it by gdisk where it comes from")
    return Table(head[:SECTOR], header, entries, at, other)
