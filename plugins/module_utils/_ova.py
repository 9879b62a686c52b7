# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The archive of an appliance (OVA): a tar file, read member by member, of which no name is ever used as a path.

Python's tarfile reads whatever tar can be; an OVA (DMTF DSP0243, 5.3) is a plain USTAR of regular files. This reads that, with
the two ways in which archivers write a name or a size that does not fit into it, and refuses everything else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _ovf
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors

_BLOCK = 512
_MOST = 1000
_LONGEST = 64 << 10
_CHUNK = 4 << 20
_KINDS = {
    "1": "a hard link",
    "2": "a symbolic link",
    "3": "a device",
    "4": "a device",
    "5": "a directory",
    "6": "a pipe",
}
_LINE = re.compile(r"(SHA1|SHA256|SHA512)\s*\(([^)]+)\)\s*=\s*([0-9a-fA-F]+)", re.IGNORECASE)

Tick = t.Callable[[int], None]
"""Called with the number of bytes read; what it raises ends the work."""


@dataclasses.dataclass(frozen=True)
class Member:
    """A file in the archive: its name, and where its bytes are."""

    name: str
    offset: int
    size: int


@dataclasses.dataclass(frozen=True)
class OvaDisk:
    """The disk of an appliance: where it is in the archive, its size as a guest sees it (bytes), its compression."""

    name: str
    member: Member
    capacity: int | None
    compression: str


def open_disk(ova: Path, wanted: str | None, key: str, tick: Tick = lambda _done: None) -> OvaDisk:
    """The disk of an appliance, once the manifest (where there is one) agrees with everything that counts.

    :param wanted: the disk's identifier or the name of its file; needed where there are several.
    :param key: the definition's key that says which, for messages.
    :raises FactoryError: the archive, its description or its manifest is not as it has to be.
    """
    with explain_os_errors(ova), ova.open("rb") as stream:
        members = read_members(stream, str(ova))
        described = _only(members, ".ovf", str(ova))
        if described is None:
            _refuse("holds no description (.ovf)", str(ova))
        if described.size > _ovf.LARGEST:
            _refuse(f"its description is larger than {_ovf.LARGEST >> 20} MiB", str(ova))
        stream.seek(described.offset)
        disks = _ovf.read_disks(stream.read(described.size), f"{ova}: {described.name}")
        disk = _choose(disks, wanted, str(ova), key)
        if disk.file not in members:
            _refuse(f"the file {disk.file!r} of the disk {disk.name!r} is not in it", str(ova))
        member = members[disk.file]
        manifest = _only(members, ".mf", str(ova))
        if manifest is not None:
            _verify(stream, members, manifest, [described, member], str(ova), tick)
    return OvaDisk(disk.name, member, disk.capacity, disk.compression)


def read_members(stream: t.BinaryIO, where: str) -> dict[str, Member]:
    """The files of an archive by name, in their order; nothing but headers is read.

    :raises FactoryError: it is no tar, or holds what no appliance holds.
    """
    total = stream.seek(0, 2)
    found: dict[str, Member] = {}
    at = 0
    longer: dict[str, str] = {}
    while True:
        if len(found) > _MOST:
            _refuse(f"holds more than {_MOST} files", where)
        header = _read(stream, at, _BLOCK)
        if len(header) < _BLOCK or not any(header):
            break  # archivers end it by two empty blocks, some by none
        _check_sum(header, where)
        at += _BLOCK
        size = int(longer["size"]) if "size" in longer else _number(header[124:136], where)
        if at + size > total:
            _refuse("is cut off", where)
        kind = header[156:157].decode("latin-1")
        if kind in "xL":
            if size > _LONGEST:
                _refuse("has an impossible header", where)
            longer.update(_longer(_read(stream, at, size), kind, where))
        elif kind in "0\0":
            name = _name(header, longer, where)
            if name in found:
                _refuse(f"holds two files called {name!r}", where)
            found[name] = Member(name, at, size)
            longer = {}
        else:
            name = header[:100].split(b"\0")[0].decode("utf-8", "replace")
            _refuse(f"holds {_KINDS.get(kind, 'something that is no file')} ({name!r})", where)
        at += -(-size // _BLOCK) * _BLOCK
    if not found:
        _refuse("is no archive of an appliance (OVA)", where)
    return found


def _read(stream: t.BinaryIO, at: int, length: int) -> bytes:
    stream.seek(at)
    return stream.read(length)


def _check_sum(header: bytes, where: str) -> None:
    # Some archivers add up signed bytes.
    blanked = header[:148] + b" " * 8 + header[156:]
    signed = sum(byte - 256 if byte > 127 else byte for byte in blanked)
    if header[257:262] != b"ustar" or _number(header[148:156], where) not in (sum(blanked), signed):
        _refuse("is no archive of an appliance (OVA), or is damaged", where)


def _number(field: bytes, where: str) -> int:
    """A number in octal digits, or (GNU) in base 256."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.split(b"\0")[0].strip(b" ")
    if not re.fullmatch(rb"[0-7]*", digits):
        _refuse("is no archive of an appliance (OVA), or is damaged", where)
    return int(digits or b"0", 8)


def _longer(data: bytes, kind: str, where: str) -> dict[str, str]:
    """What a header says that comes before another one: GNU's long name, or POSIX's C(path) and C(size)."""
    if kind == "L":
        return {"path": data.split(b"\0")[0].decode("utf-8", "replace")}
    found: dict[str, str] = {}
    while data:
        digits = re.match(rb"(\d{1,5}) ", data)
        length = int(digits[1]) if digits else 0
        key, equals, value = data[:length][digits.end() if digits else 0 :].partition(b"=")
        if not equals or not value.endswith(b"\n") or length > len(data):
            _refuse("has an impossible header", where)
        name, text = key.decode("utf-8", "replace"), value[:-1].decode("utf-8", "replace")
        if name.startswith("GNU.sparse") or (name == "size" and not re.fullmatch("[0-9]{1,18}", text)):
            _refuse("has an impossible header", where)
        if name in ("path", "size"):
            found[name] = text
        data = data[length:]
    return found


def _name(header: bytes, longer: t.Mapping[str, str], where: str) -> str:
    plain = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    name = longer.get("path") or (prefix + b"/" + plain if prefix else plain).decode("utf-8", "replace")
    name = name[2:] if name.startswith("./") else name
    if not name or "/" in name or "\\" in name or name in (".", "..") or not name.isprintable():
        _refuse(f"holds a file whose name leads elsewhere ({name!r})", where)
    return name


def _only(members: t.Mapping[str, Member], suffix: str, where: str) -> Member | None:
    found = [member for name, member in members.items() if name.lower().endswith(suffix)]
    if len(found) > 1:
        _refuse(f"holds more than one {suffix} ({', '.join(member.name for member in found)})", where)
    return found[0] if found else None


def _choose(disks: t.Sequence[_ovf.OvfDisk], wanted: str | None, where: str, key: str) -> _ovf.OvfDisk:
    named = ", ".join(f"{disk.file} ({disk.name})" for disk in disks)
    if not disks:
        _refuse("holds no disk", where)
    if wanted is None:
        if len(disks) > 1:
            raise FactoryError(f"holds {len(disks)} disks: {named}", where=where, key=key, mend="name one of them")
        return disks[0]
    fitting = [disk for disk in disks if wanted in (disk.file, disk.name)]
    if len(fitting) != 1:
        raise FactoryError(f"holds no single disk {wanted!r}", where=where, key=key, mend=f"name one of: {named}")
    return fitting[0]


def _verify(
    stream: t.BinaryIO,
    members: t.Mapping[str, Member],
    manifest: Member,
    needed: t.Sequence[Member],
    where: str,
    tick: Tick,
) -> None:
    """Compare the manifest's digests with the files that it lists; it must list those that are ``needed``."""
    if manifest.size > _LONGEST:
        _refuse("its manifest is too large", where)
    listed: dict[str, tuple[str, str]] = {}
    for line in _read(stream, manifest.offset, manifest.size).decode("utf-8", "replace").splitlines():
        match = _LINE.fullmatch(line.strip())
        if line.strip() and not match:
            _refuse(f"its manifest {manifest.name} has a line that is no digest ({line.strip()[:60]!r})", where)
        if match:
            name = match[2][2:] if match[2].startswith("./") else match[2]
            if name in listed or name not in members:
                problem = "twice" if name in listed else "that is not there"
                _refuse(f"its manifest {manifest.name} lists a file {problem} ({name!r})", where)
            listed[name] = (match[1].lower(), match[3].lower())
    missing = [member.name for member in needed if member.name not in listed]
    if missing:
        _refuse(f"its manifest {manifest.name} does not list {', '.join(missing)}", where)
    done = 0
    for name, (algorithm, expected) in listed.items():
        digest = hashlib.new(algorithm, usedforsecurity=False)
        for chunk in chunks(stream, members[name]):
            digest.update(chunk)
            done += len(chunk)
            tick(done)
        if digest.hexdigest() != expected:
            _refuse(f"the file {name!r} is not the one that the manifest {manifest.name} tells ({algorithm})", where)


def chunks(stream: t.BinaryIO, member: Member) -> t.Generator[bytes, None, None]:
    """The bytes of a member, some MiB at a time."""
    left = member.size
    while left:
        chunk = _read(stream, member.offset + member.size - left, min(left, _CHUNK))
        if not chunk:
            raise FactoryError("is cut off", where=member.name, mend="fetch it again")
        left -= len(chunk)
        yield chunk


def _refuse(problem: str, where: str) -> t.NoReturn:
    raise FactoryError(problem, where=where, mend="fetch it again, or export the appliance anew where it comes from")
