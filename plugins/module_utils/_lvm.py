# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The logical volumes on a partition of a raw disk, by LVM's own metadata.

A logical volume in one piece is no more than an offset and a size, so that neither the kernel's device mapper nor LVM's tools are
needed to work in it. One in several pieces, or of another kind (thin, snapshot, striped, mirrored), is named with the reason why
it cannot be had.

Sources: LVM2, lib/format_text/layout.h (label, header of a physical volume, header of a metadata area), lib/misc/crc.c, and
lvm(8); the text itself is in the language of lib/config/config.c.
"""

from __future__ import annotations

import dataclasses
import re
import struct
import typing as t
import zlib
from pathlib import Path

_SECTOR = 512
_LABEL, _TYPE = b"LABELONE", b"LVM2 001"
_MAGIC = b" LVM2 x[5A%r0N*>"
_AREA_HEADER = 512
_IGNORED = 1
_START_OF_CRC = 0xF597A6CF
_LARGEST = 32 << 20
_AREAS = 16
_DEEPEST = 12
_NAME = re.compile(r"[A-Za-z0-9+_.-]{1,127}")
_TOKEN = re.compile(r'\s+|#[^\n]*|(?P<string>"(?:[^"\\]|\\.)*")|(?P<mark>[{}\[\]=,])|(?P<word>[^\s{}\[\]=,"#]+)', re.S)

Section = dict[str, t.Any]


class Damaged(Exception):
    """The metadata cannot be read; why."""


@dataclasses.dataclass(frozen=True)
class Logical:
    """A logical volume that LVM shows. Offset and size are in bytes of the disk; 0 where there is a ``problem``.

    :ivar name: C(group/volume).
    :ivar devices: how a system calls it in its fstab.
    :ivar problem: why it cannot be worked on; empty where it can.
    """

    name: str
    devices: tuple[str, ...]
    offset: int = 0
    size: int = 0
    problem: str = ""


def logical_volumes(disk: Path, offset: int, size: int) -> list[Logical]:
    """Those of the group to which the physical volume at this place belongs.

    :raises Damaged: its metadata is incomplete, or not what its checksum says.
    """
    with disk.open("rb") as stream:
        identifier, text = _metadata(stream, offset, size)
    document = _parse(text)
    groups = [(name, value) for name, value in document.items() if isinstance(value, dict)]
    if len(groups) != 1:
        raise Damaged(f"its metadata names {len(groups)} groups")
    return _in_group(*groups[0], identifier, offset, size)


# --------------------------------------------------------------------------- what is on the disk


def _metadata(stream: t.BinaryIO, offset: int, size: int) -> tuple[str, str]:
    """The identifier of the physical volume, and the text of its newest metadata."""

    def read(at: int, count: int) -> bytes:
        if at < 0 or count < 0 or at + count > size:
            raise Damaged("its metadata points beyond its end")
        stream.seek(offset + at)
        data = stream.read(count)
        if len(data) != count:
            raise Damaged("it is cut off")
        return data

    for sector in range(4):
        label = read(sector * _SECTOR, _SECTOR)
        if label[:8] == _LABEL and label[24:32] == _TYPE:
            break
    else:
        raise Damaged("it has no label of LVM2")
    checksum, content = struct.unpack_from("<II", label, 16)
    if _crc(label[20:]) != checksum or not 32 <= content <= _SECTOR - 40:
        raise Damaged("its label is not what its checksum says")
    identifier = label[content : content + 32].decode("ascii", "replace")
    lists = _pairs(label[content + 40 :])
    next(lists)  # where the data is: the text says that, too
    found: list[tuple[int, str]] = []
    wrong = "it has no metadata area, as another disk of its group has it"
    for start, length in next(lists):
        try:
            found += _area(read, start, length)
        except Damaged as exc:
            wrong = str(exc)
    if not found:
        raise Damaged(wrong)
    return identifier, max(found)[1]


def _pairs(data: bytes) -> t.Iterator[list[tuple[int, int]]]:
    """Lists of (offset, size), each of which ends with zeros."""
    rows: list[tuple[int, int]] = []
    for at in range(0, len(data) - 15, 16):
        pair = struct.unpack_from("<QQ", data, at)
        if pair[0]:
            rows.append((pair[0], pair[1]))
        if not pair[0] or len(rows) == _AREAS:
            yield rows
            rows = []
    while True:
        yield rows


def _area(read: t.Callable[[int, int], bytes], start: int, length: int) -> list[tuple[int, str]]:
    """The sequence number and the text that a metadata area has; none where it is switched off."""
    header = read(start, _AREA_HEADER)
    if header[4:20] != _MAGIC or _crc(header[4:]) != struct.unpack_from("<I", header)[0]:
        raise Damaged("the header of its metadata is not what its checksum says")
    at, size, checksum, flags = struct.unpack_from("<QQII", header, 40)
    if not at or flags & _IGNORED:
        return []
    if not _AREA_HEADER <= at < length or not 0 < size <= min(length - _AREA_HEADER, _LARGEST):
        raise Damaged("its metadata points beyond its area")
    # The area is a ring: what does not fit at its end goes on after its header.
    straight = min(size, length - at)
    data = read(start + at, straight) + read(start + _AREA_HEADER, size - straight)
    if _crc(data) != checksum:
        raise Damaged("its metadata is not what its checksum says")
    text = data.rstrip(b"\0\n").decode("utf-8", "replace")
    number = re.search(r"^\s*seqno\s*=\s*(\d{1,9})", text, re.M)
    return [(int(number[1]) if number else 0, text)]


def _crc(data: bytes) -> int:
    """LVM's checksum: CRC-32 that begins with another number, and is not inverted."""
    return zlib.crc32(data, _START_OF_CRC ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


# --------------------------------------------------------------------------- what it says


def _parse(text: str) -> Section:
    """C(name { … }) and C(name = value), where a value is a number, a string, or a list of such."""
    tokens = _tokens(text)

    def section(depth: int) -> Section:
        found: Section = {}
        for kind, word in tokens:
            if (kind, word) == ("mark", "}") and depth:
                return found
            if kind != "word" or depth > _DEEPEST:
                raise Damaged("its metadata is not in LVM's language")
            mark = next(tokens, ("", ""))[1]
            if mark == "{":
                found[word] = section(depth + 1)
            elif mark == "=":
                found[word] = value()
            else:
                raise Damaged("its metadata is not in LVM's language")
        if depth:
            raise Damaged("its metadata is cut off")
        return found

    def value() -> t.Any:
        kind, word = next(tokens, ("", ""))
        if (kind, word) != ("mark", "["):
            return _scalar(kind, word)
        rows: list[t.Any] = []
        for kind, word in tokens:
            if (kind, word) == ("mark", "]"):
                return rows
            if (kind, word) != ("mark", ","):
                rows.append(_scalar(kind, word))
        raise Damaged("its metadata is cut off")

    return section(0)


def _tokens(text: str) -> t.Iterator[tuple[str, str]]:
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if not found:
            raise Damaged("its metadata is not in LVM's language")
        at = found.end()
        if found.lastgroup:
            yield found.lastgroup, found[found.lastgroup]


def _scalar(kind: str, word: str) -> t.Any:
    if kind == "string":
        return re.sub(r"\\(.)", r"\1", word[1:-1], flags=re.S)
    if kind == "word":
        return int(word) if re.fullmatch(r"-?\d{1,18}", word) else word
    raise Damaged("its metadata is not in LVM's language")


def _in_group(group: str, told: Section, identifier: str, offset: int, size: int) -> list[Logical]:
    names = [group, *(name for name, _volume in _sections(told.get("logical_volumes")))]
    if not all(_NAME.fullmatch(name) for name in names):
        raise Damaged("its metadata has names that LVM does not allow")
    members = _sections(told.get("physical_volumes"))
    ours = [name for name, member in members if str(member.get("id", "")).replace("-", "") == identifier]
    if len(ours) != 1:
        raise Damaged(f"it does not belong to the group {group} that its metadata describes")
    member = dict(members)[ours[0]]
    unit = _number(told, "extent_size") * _SECTOR
    first = offset + _number(member, "pe_start") * _SECTOR
    found = []
    for name, volume in _sections(told.get("logical_volumes")):
        if "VISIBLE" not in (volume.get("status") or ()):
            continue
        full = str(told.get("id", "")) + str(volume.get("id", ""))
        devices = (
            f"/dev/{group}/{name}",
            f"/dev/mapper/{group.replace('-', '--')}-{name.replace('-', '--')}",
            f"/dev/disk/by-id/dm-uuid-LVM-{full.replace('-', '')}",
        )
        logical = Logical(f"{group}/{name}", devices)
        begin, count, problem = _place(volume, ours[0])
        where, length = first + begin * unit, count * unit
        if not problem and (not length or where + length > offset + size):
            problem = "it reaches beyond its partition"
        if problem:
            found.append(dataclasses.replace(logical, problem=problem))
        else:
            found.append(dataclasses.replace(logical, offset=where, size=length))
    return sorted(found, key=lambda each: (each.offset, each.name))


def _place(volume: Section, ours: str) -> tuple[int, int, str]:
    """First extent and number of extents on our physical volume, or why it is not in one piece there."""
    rows = [value for _name, value in _sections(volume) if "extent_count" in value]
    begin, count = -1, 0
    for row in sorted(rows, key=lambda row: _number(row, "start_extent")):
        kind, stripes = str(row.get("type", "")), row.get("stripes") or []
        if kind != "striped" or row.get("stripe_count", 1) != 1 or len(stripes) != 2:
            return 0, 0, f"it is of the kind {kind if kind != 'striped' else 'striped over several disks'}"
        if stripes[0] != ours:
            return 0, 0, "it is on another disk of its group"
        if not isinstance(stripes[1], int) or _number(row, "start_extent") != count:
            raise Damaged("its metadata has gaps")
        if begin < 0:
            begin = stripes[1]
        elif stripes[1] != begin + count:
            return 0, 0, "it is in several pieces (pvmove --alloc contiguous puts it together)"
        count += _number(row, "extent_count")
    return begin, count, "" if begin >= 0 else "it is empty"


def _sections(told: t.Any) -> list[tuple[str, Section]]:
    return [(key, value) for key, value in told.items() if isinstance(value, dict)] if isinstance(told, dict) else []


def _number(told: Section, name: str) -> int:
    value = told.get(name)
    if not isinstance(value, int) or value < 0:
        raise Damaged(f"its metadata has no {name}")
    return value
