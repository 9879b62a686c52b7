# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What an OpenNebula front-end has: its objects as it told them, each pool listed once, and kept up with what is done since.

In check mode nothing is sent, and the objects change all the same: so the result says what would be.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula import Front, Refused
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_template import Pairs, merge, to_xml

READY, USED, DISABLED, LOCKED, ERROR, DELETE = 1, 2, 3, 4, 5, 7
STATES = (
    *("INIT", "READY", "USED", "DISABLED", "LOCKED", "ERROR", "CLONE", "DELETE", "USED_PERS"),
    *("LOCKED_USED", "LOCKED_USED_PERS"),
)
_BITS = ("OWNER_U", "OWNER_M", "OWNER_A", "GROUP_U", "GROUP_M", "GROUP_A", "OTHER_U", "OTHER_M", "OTHER_A")


@dataclasses.dataclass
class Thing:
    """An object with an owner. ``mode``: C(640) is use and manage for the owner, use for the group.

    ``id`` is None where it would be made (check mode).
    """

    id: int | None
    uid: int
    gid: int
    name: str
    mode: str
    attributes: dict[str, t.Any]
    locked: bool = False

    @property
    def kind(self) -> str:
        return "template"


@dataclasses.dataclass
class Image(Thing):
    """An image; ``size`` in MiB, ``registered`` in seconds since the epoch, ``used`` whether VMs or clones of it are known."""

    state: int = LOCKED
    datastore: int = -1
    size: int = 0
    registered: int = 0
    persistent: bool = False
    vms: int = 0
    used: bool = False
    format: str = ""

    @property
    def kind(self) -> str:
        return "image"

    @property
    def status(self) -> str:
        """Its state's name."""
        return STATES[self.state] if 0 <= self.state < len(STATES) else str(self.state)


@dataclasses.dataclass(frozen=True)
class Datastore:
    """A datastore; ``free`` in MiB, None where that is not told; ``type`` 0 has images."""

    id: int
    name: str
    type: int
    free: int | None
    safe: str


def _mode(raw: t.Any) -> str:
    bits = [int(getattr(raw.PERMISSIONS, name) or 0) for name in _BITS]
    return "".join(str(bits[i] * 4 + bits[i + 1] * 2 + bits[i + 2]) for i in (0, 3, 6))


def _members(holder: t.Any) -> list[t.Any]:
    return list(getattr(holder, "ID", None) or [])


def _attributes(raw: t.Any) -> dict[str, t.Any]:
    """A template's attributes as strings, dictionaries, or lists of these; plain types, as results need them."""

    def plain(value: t.Any) -> t.Any:
        if isinstance(value, dict):
            return {str(name): plain(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [plain(inner) for inner in value]
        return "" if value is None else str(value)

    return {str(name): plain(value) for name, value in (raw.TEMPLATE or {}).items()}


def read_image(raw: t.Any) -> Image:
    """An image from pyone's object."""
    clones = _members(raw.CLONES) + _members(raw.APP_CLONES)
    running = int(raw.RUNNING_VMS or 0)
    return Image(
        int(raw.ID),
        int(raw.UID),
        int(raw.GID),
        str(raw.NAME),
        _mode(raw),
        _attributes(raw),
        raw.LOCK is not None,
        state=int(raw.STATE),
        datastore=int(raw.DATASTORE_ID),
        size=int(raw.SIZE or 0),
        registered=int(raw.REGTIME or 0),
        persistent=bool(raw.PERSISTENT),
        vms=max(running, len(_members(raw.VMS))),
        used=bool(running or _members(raw.VMS) or clones),
        format=str(getattr(raw, "FORMAT", "") or ""),
    )


def read_template(raw: t.Any) -> Thing:
    """A VM template from pyone's object."""
    return Thing(
        int(raw.ID), int(raw.UID), int(raw.GID), str(raw.NAME), _mode(raw), _attributes(raw), raw.LOCK is not None
    )


class Cloud:
    """The front-end's objects."""

    def __init__(self, front: Front, check_mode: bool = False) -> None:
        self.front = front
        self.check_mode = check_mode
        self._images: list[Image] | None = None
        self._templates: list[Thing] | None = None
        self._datastores: list[Datastore] | None = None
        self._me: tuple[int, int] | None = None
        self._names: dict[str, dict[str, int]] = {}

    @property
    def me(self) -> tuple[int, int]:
        """Our number, and our group's."""
        if self._me is None:
            found = self.front.call("user.info", -1)
            self._me = int(found.ID), int(found.GID)
        return self._me

    @property
    def images(self) -> list[Image]:
        """All images that we may see."""
        if self._images is None:
            self._images = self._list_images()
        return self._images

    @property
    def templates(self) -> list[Thing]:
        """All VM templates that we may see."""
        if self._templates is None:
            self._templates = self._list_templates()
        return self._templates

    @property
    def datastores(self) -> list[Datastore]:
        """All datastores that we may see."""
        if self._datastores is None:
            self._datastores = []
            for raw in self.front.call("datastorepool.info").DATASTORE:
                about = _attributes(raw)
                # A datastore that is not monitored yet tells nothing; one may be told not to look at its capacity.
                counts = raw.TOTAL_MB and str(about.get("DATASTORE_CAPACITY_CHECK", "")).upper() != "NO"
                free = int(raw.FREE_MB) if counts else None
                self._datastores.append(
                    Datastore(int(raw.ID), str(raw.NAME), int(raw.TYPE), free, str(about.get("SAFE_DIRS", "")))
                )
        return self._datastores

    def _list_images(self) -> list[Image]:
        return [read_image(raw) for raw in self.front.call("imagepool.info", -2, -1, -1).IMAGE]

    def _list_templates(self) -> list[Thing]:
        return [read_template(raw) for raw in self.front.call("templatepool.info", -2, -1, -1).VMTEMPLATE]

    def again(self) -> None:
        """List images and templates anew when they are next asked for."""
        self._images = self._templates = None

    def datastore(self, name: str) -> Datastore:
        """The image datastore of that name or number; raises FactoryError where there is none."""
        found = [store for store in self.datastores if store.name == name]
        found = found or [store for store in self.datastores if name.isdigit() and store.id == int(name)]
        if len(found) != 1:
            there = ", ".join(store.name for store in self.datastores if store.type == 0) or "none"
            problem = f"there are {len(found)} datastores {name}" if found else f"there is no datastore {name}"
            raise FactoryError(problem, key="datastores", mend=f"give the name or number of one of these: {there}")
        if found[0].type != 0:
            raise FactoryError(
                f"datastore {name} is not one of images", key="datastores", mend="name an image datastore"
            )
        return found[0]

    def number(self, kind: str, name: str | None) -> int:
        """The number of the C(user) or C(group) of that name or number; -1 where none is given."""
        if not name:
            return -1
        if name.isdigit():
            return int(name)
        if kind not in self._names:
            raw = self.front.call(f"{kind}pool.info")
            self._names[kind] = {str(each.NAME): int(each.ID) for each in getattr(raw, kind.upper())}
        if name not in self._names[kind]:
            key = "owner" if kind == "user" else "group"
            raise FactoryError(f"there is no {kind} {name}", key=key, mend="check that name")
        return self._names[kind][name]

    def fresh(self, thing: Thing) -> None:
        """Read an object again, into the same."""
        if thing.id is None:
            return
        raw = self.front.call(f"{thing.kind}.info", thing.id)
        now = read_image(raw) if isinstance(thing, Image) else read_template(raw)
        for field in dataclasses.fields(thing):
            setattr(thing, field.name, getattr(now, field.name))

    def make_image(self, pairs: Pairs, about: Image, store: Datastore) -> Image:
        """Have an image made; one that somebody has made with the same name and tags meanwhile is taken for it."""
        if not self.check_mode:
            tags = {name: value for name, value in about.attributes.items() if name.startswith("CLOUDIMG_")}

            def made() -> int | None:
                self._images = self._list_images()
                for image in self._images:
                    same = all(image.attributes.get(name) == value for name, value in tags.items())
                    if same and (image.name, image.datastore, image.uid) == (about.name, store.id, self.me[0]):
                        return image.id
                return None

            about.id = self.front.make("image.allocate", (to_xml(pairs), store.id), made)
            known = next((image for image in self.images if image.id == about.id), None)
            if known:
                return known
        self.images.append(about)
        return about

    def make_template(self, pairs: Pairs, about: Thing) -> Thing:
        """Have a VM template made; one that somebody has made with the same name and tags meanwhile is taken for it."""
        if not self.check_mode:
            tags = {name: about.attributes.get(name) for name in ("CLOUDIMG_ID", "CLOUDIMG_DATASTORE")}

            def made() -> int | None:
                self._templates = self._list_templates()
                for found in self._templates:
                    same = all(found.attributes.get(name) == value for name, value in tags.items())
                    if same and (found.name, found.uid) == (about.name, self.me[0]):
                        return found.id
                return None

            about.id = self.front.make("template.allocate", (to_xml(pairs),), made)
            known = next((found for found in self.templates if found.id == about.id), None)
            if known:
                return known
        self.templates.append(about)
        return about

    def do(self, thing: Thing, action: str, *arguments: t.Any) -> None:
        """Call a method of an object, unless in check mode."""
        if not self.check_mode and thing.id is not None:
            self.front.call(f"{thing.kind}.{action}", thing.id, *arguments)

    def update(self, thing: Thing, pairs: Pairs, *, without: t.Collection[str] = ()) -> None:
        """Give an object these attributes beside those that it has; ``without`` these names, read anew before all is replaced."""
        if without:
            if not self.check_mode:
                self.fresh(thing)
            rest: Pairs = []
            for name, value in thing.attributes.items():
                if name not in without:
                    rest += [(name, each) for each in (value if isinstance(value, list) else [value])]
            pairs = [pair for pair in rest if pair[0] not in {name for name, _value in pairs}] + pairs
            self.do(thing, "update", to_xml(pairs), 0)
            thing.attributes = merge({}, pairs)
        elif pairs:
            self.do(thing, "update", to_xml(pairs), 1)
            thing.attributes = merge(thing.attributes, pairs)

    def rename(self, thing: Thing, name: str) -> None:
        self.do(thing, "rename", name)
        thing.name = name

    def chmod(self, thing: Thing, mode: str) -> None:
        """Set the rights, C(640) for example."""
        bits = [(int(digit) >> shift) & 1 for digit in mode for shift in (2, 1, 0)]
        self.do(thing, "chmod", *bits)
        thing.mode = mode

    def chown(self, thing: Thing, uid: int, gid: int) -> None:
        self.do(thing, "chown", uid, gid)
        thing.uid = thing.uid if uid == -1 else uid
        thing.gid = thing.gid if gid == -1 else gid

    def enable(self, image: Image, on: bool) -> None:
        self.do(image, "enable", on)
        image.state = READY if on else DISABLED

    def delete(self, thing: Thing) -> None:
        """Remove an object; that somebody else has done so is as good."""
        try:
            self.do(thing, "delete")
        except Refused as exc:
            if exc.kind != "missing":
                raise
        pool: list[t.Any] = self.images if isinstance(thing, Image) else self.templates
        pool[:] = [each for each in pool if each is not thing]
