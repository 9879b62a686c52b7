# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests' OpenNebula front-end keeps: templates in both of its syntaxes, objects, rights, and how they look as XML."""

from __future__ import annotations

import dataclasses
import re
import time
import typing as t
import xml.etree.ElementTree as ET
from xml.sax.saxutils import escape

AUTHENTICATION, AUTHORIZATION, NO_EXISTS, ACTION = 0x0100, 0x0200, 0x0400, 0x0800
INTERNAL, ALLOCATE, LOCKED_OBJECT = 0x2000, 0x4000, 0x8000
INIT, READY, USED, DISABLED, LOCKED, ERROR, CLONE, DELETE, USED_PERS = range(9)
STATES = ("INIT", "READY", "USED", "DISABLED", "LOCKED", "ERROR", "CLONE", "DELETE", "USED_PERS")
TYPES = ("OS", "CDROM", "DATABLOCK", "KERNEL", "RAMDISK", "CONTEXT", "BACKUP", "FILESYSTEM")
BITS = ("OWNER_U", "OWNER_M", "OWNER_A", "GROUP_U", "GROUP_M", "GROUP_A", "OTHER_U", "OTHER_M", "OTHER_A")
RIGHTS = {"USE": 1, "MANAGE": 2, "ADMIN": 4, "CREATE": 8}
KINDS = {
    "VM": 0x1000000000,
    "IMAGE": 0x8000000000,
    "USER": 0x10000000000,
    "TEMPLATE": 0x20000000000,
    "GROUP": 0x40000000000,
    "DATASTORE": 0x100000000000,
    "MARKETPLACE": 0x10000000000000,
    "MARKETPLACEAPP": 0x20000000000000,
}
ONE, GROUP, ALL = 0x100000000, 0x200000000, 0x400000000

Value = t.Union[str, dict[str, str]]
Pairs = list[tuple[str, Value]]


class Refused(Exception):
    """An error as the front-end answers it: its code, its text, and the object that it is about."""

    def __init__(self, code: int, text: str, about: int = -1) -> None:
        super().__init__(text)
        self.code = code
        self.about = about


_TOKEN = re.compile(
    r'\s*(?:#[^\n]*\n\s*)*(?P<name>[A-Za-z0-9_-]+)[ \t]*=[ \t]*(?:\[(?P<vector>(?:"(?:[^"\\]|\\.)*"|[^\]"])*)\]'
    r'|"(?P<text>(?:[^"\\]|\\.)*)"|(?P<word>[^"\[\]=\s][^\n]*))'
)
_PAIR = re.compile(r'\s*([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^",\]\s]+))\s*(?:,|$)')


def read_template(text: str) -> Pairs:
    """A template, in XML or as lines C(NAME = "value"); raises Refused where it is neither."""
    if text.lstrip().startswith("<"):
        try:
            root = ET.fromstring(text)
        except ET.ParseError as exc:
            raise Refused(INTERNAL, f"Parse error: {exc}") from exc
        return [
            (each.tag.upper(), {row.tag.upper(): row.text or "" for row in each} if len(each) else each.text or "")
            for each in root
        ]
    found: Pairs = []
    at = 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if not match:
            line = text[:at].count("\n") + 1
            raise Refused(
                INTERNAL,
                "Parse error: syntax error, unexpected $end, expecting CBRACKET or VARIABLE at line "
                f"{line}, columns {at}:{at + 1}",
            )
        if match["vector"] is not None:
            rows = {name.upper(): _plain(quoted) or word for name, quoted, word in _PAIR.findall(match["vector"])}
            found.append((match["name"].upper(), rows))
        else:
            value = _plain(match["text"]) if match["text"] is not None else (match["word"] or "").strip()
            found.append((match["name"].upper(), value))
        at = match.end()
    return found


def _plain(quoted: str) -> str:
    return re.sub(r"\\(.)", r"\1", quoted)


def merge(old: Pairs, new: Pairs) -> Pairs:
    """As C(append=1) does: each name that is in ``new`` is replaced with all its values, the others stay."""
    names = {name for name, _value in new}
    return [(name, value) for name, value in old if name not in names] + new


def value_of(pairs: Pairs, name: str) -> str:
    """A plain attribute's value; empty where there is none."""
    return next((value for key, value in pairs if key == name and isinstance(value, str)), "")


def xml_of(rows: t.Iterable[tuple[str, t.Any]]) -> str:
    """Elements: a string or number as text, a list or dictionary as elements within."""
    text = ""
    for name, value in rows:
        if isinstance(value, dict):
            inner = xml_of(value.items())
        elif isinstance(value, list):
            inner = xml_of(value)
        else:
            inner = escape(str(value))
        text += f"<{name}>{inner}</{name}>"
    return text


@dataclasses.dataclass
class Thing:
    """An object with an owner. ``mode`` has nine bits, the owner's use, manage and admin first."""

    kind: t.ClassVar[str] = ""
    tag: t.ClassVar[str] = ""
    id: int
    uid: int
    gid: int
    name: str
    mode: int = 0o600
    pairs: Pairs = dataclasses.field(default_factory=list)
    lock: tuple[int, int] | None = None
    regtime: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def may(self, uid: int, gids: t.Collection[int], right: str) -> bool:
        """By owner, group and others."""
        bit = {"USE": 4, "MANAGE": 2, "ADMIN": 1}[right]
        return bool(
            (uid == self.uid and self.mode >> 6 & bit) or (self.gid in gids and self.mode >> 3 & bit) or self.mode & bit
        )

    def head(self, names: t.Mapping[int, str], groups: t.Mapping[int, str]) -> list[tuple[str, t.Any]]:
        """The elements that every object begins with."""
        bits = [(bit, (self.mode >> (8 - index)) & 1) for index, bit in enumerate(BITS)]
        rows: list[tuple[str, t.Any]] = [
            ("ID", self.id),
            ("UID", self.uid),
            ("GID", self.gid),
            ("UNAME", names.get(self.uid, "")),
            ("GNAME", groups.get(self.gid, "")),
            ("NAME", self.name),
        ]
        if self.lock:
            rows.append(("LOCK", {"LOCKED": self.lock[0], "OWNER": self.lock[1], "TIME": self.regtime, "REQ_ID": 4711}))
        return [*rows, ("PERMISSIONS", bits)]

    def body(self) -> list[tuple[str, t.Any]]:
        """The elements after them."""
        return [("REGTIME", self.regtime), ("TEMPLATE", list(self.pairs))]


class VmTemplate(Thing):
    """A VM template."""

    kind = "TEMPLATE"
    tag = "VMTEMPLATE"


@dataclasses.dataclass
class Image(Thing):
    """An image and its state."""

    kind = "IMAGE"
    tag = "IMAGE"
    type: int = 0
    persistent: bool = False
    source: str = ""
    path: str = ""
    format: str = "raw"
    size: int = 0
    state: int = LOCKED
    vms: set[int] = dataclasses.field(default_factory=set)
    clones: set[int] = dataclasses.field(default_factory=set)
    datastore: int = 1
    datastore_name: str = ""

    def body(self) -> list[tuple[str, t.Any]]:
        return [
            ("TYPE", self.type),
            ("DISK_TYPE", 0),
            ("PERSISTENT", int(self.persistent)),
            ("REGTIME", self.regtime),
            ("MODTIME", self.regtime),
            ("SOURCE", self.source),
            ("PATH", self.path),
            ("FORMAT", self.format),
            ("FS", ""),
            ("SIZE", self.size),
            ("STATE", self.state),
            ("PREV_STATE", self.state),
            ("RUNNING_VMS", len(self.vms)),
            ("CLONING_OPS", 0),
            ("CLONING_ID", -1),
            ("TARGET_SNAPSHOT", -1),
            ("DATASTORE_ID", self.datastore),
            ("DATASTORE", self.datastore_name),
            ("VMS", [("ID", each) for each in sorted(self.vms)]),
            ("CLONES", [("ID", each) for each in sorted(self.clones)]),
            ("APP_CLONES", ""),
            ("TEMPLATE", list(self.pairs)),
            ("SNAPSHOTS", {"ALLOW_ORPHANS": "NO", "CURRENT_BASE": -1, "NEXT_SNAPSHOT": 0}),
            ("BACKUP_INCREMENTS", ""),
            ("BACKUP_DISK_IDS", ""),
        ]


@dataclasses.dataclass
class Datastore(Thing):
    """A datastore; ``type`` 0: images, 1: system, 2: files."""

    kind = "DATASTORE"
    tag = "DATASTORE"
    type: int = 0
    base: str = ""
    total: int = 258020
    free: int = 68716
    images: set[int] = dataclasses.field(default_factory=set)

    def body(self) -> list[tuple[str, t.Any]]:
        return [
            ("DS_MAD", "fs"),
            ("TM_MAD", "local"),
            ("BASE_PATH", self.base),
            ("TYPE", self.type),
            ("DISK_TYPE", 0),
            ("STATE", 0),
            ("CLUSTERS", {"ID": 0}),
            ("TOTAL_MB", self.total),
            ("FREE_MB", self.free),
            ("USED_MB", self.total - self.free),
            ("IMAGES", [("ID", each) for each in sorted(self.images)]),
            ("TEMPLATE", list(self.pairs)),
        ]


@dataclasses.dataclass
class Market(Thing):
    """A private marketplace."""

    kind = "MARKETPLACE"
    tag = "MARKETPLACE"
    apps: set[int] = dataclasses.field(default_factory=set)

    def body(self) -> list[tuple[str, t.Any]]:
        return [
            ("MARKET_MAD", "http"),
            ("ZONE_ID", 0),
            ("TOTAL_MB", 100000),
            ("FREE_MB", 90000),
            ("USED_MB", 10000),
            ("STATE", 0),
            ("MARKETPLACEAPPS", [("ID", each) for each in sorted(self.apps)]),
            ("TEMPLATE", list(self.pairs)),
        ]


@dataclasses.dataclass
class App(Thing):
    """An appliance in a private marketplace; ``state`` 1 READY, 2 LOCKED, 3 ERROR, 4 DISABLED."""

    kind = "MARKETPLACEAPP"
    tag = "MARKETPLACEAPP"
    state: int = 2
    type: int = 1
    market: int = 0
    market_name: str = ""
    origin: int = -1
    size: int = 0

    def body(self) -> list[tuple[str, t.Any]]:
        known = {name: value_of(self.pairs, name) for name in ("DESCRIPTION", "VERSION", "APPTEMPLATE64")}
        return [
            ("REGTIME", self.regtime),
            ("ZONE_ID", 0),
            ("ORIGIN_ID", self.origin),
            ("SOURCE", f"http://market.example.org/{self.id}"),
            ("MD5", ""),
            ("SIZE", self.size),
            ("DESCRIPTION", known["DESCRIPTION"]),
            ("VERSION", known["VERSION"]),
            ("FORMAT", "qcow2"),
            ("APPTEMPLATE64", known["APPTEMPLATE64"]),
            ("MARKETPLACE_ID", self.market),
            ("MARKETPLACE", self.market_name),
            ("STATE", self.state),
            ("TYPE", self.type),
            ("TEMPLATE", [pair for pair in self.pairs if pair[0] not in known]),
        ]


@dataclasses.dataclass
class User:
    """A user; ``quotas`` of a datastore: images, and MiB (-1: no limit)."""

    id: int
    name: str
    password: str
    gid: int = 1
    pairs: Pairs = dataclasses.field(default_factory=list)
    quotas: dict[int, tuple[int, int]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Rule:
    """An access rule: whom it is for, on what, and which rights; numbers as the front-end writes them in hex."""

    id: int
    user: int
    resource: int
    rights: int

    def grants(self, uid: int, gids: t.Collection[int], thing: tuple[str, int, int], right: str) -> bool:
        """Whether it lets that user do that. ``thing``: its kind, number (-1: a new one) and group."""
        kind, number, group = thing
        mine = self.user & ALL or (self.user & ONE and self.user & 0xFFFFFFFF == uid)
        mine = mine or (self.user & GROUP and self.user & 0xFFFFFFFF in gids)
        which = self.resource & ALL or (self.resource & ONE and self.resource & 0xFFFFFFFF == number)
        which = which or (self.resource & GROUP and self.resource & 0xFFFFFFFF == group)
        return bool(mine and which and self.resource & KINDS[kind] and self.rights & RIGHTS[right])
