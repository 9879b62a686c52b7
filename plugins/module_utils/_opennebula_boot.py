# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The VM template of a build in a datastore, its empty disks, and the names, attributes and rights of what is ours."""

from __future__ import annotations

import dataclasses
import time
import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils import _opennebula_template as template
from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor import Artifact, Descriptor
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_cloud import (
    ERROR,
    LOCKED,
    Datastore,
    Image,
    Thing,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_shelf import (
    LONGEST,
    NOT_ATTRIBUTES,
    Shelf,
    called,
    tags,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_template import Pairs
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_transfer import Way
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_wait import Waiter


@dataclasses.dataclass(frozen=True)
class Disk:
    """An empty disk of a VM template; ``size`` in MiB."""

    name: str
    size: int
    format: str = "raw"


@dataclasses.dataclass
class Wish:
    """How builds are to be published.

    :param images: text of the template of images, and how messages call it; likewise ``templates``, of VM templates.
    :param uid: who shall own them (-1: we); ``gid``: which group's they shall be.
    :param mode: rights of images; ``template_mode`` of VM templates.
    :param attributes: more attributes of images and VM templates.
    :param stuck: seconds after which an image that is still LOCKED is taken for one whose transfer died.
    """

    datastores: t.Sequence[str]
    way: Way
    images: tuple[str, str]
    templates: tuple[str, str]
    contracts: t.Sequence[str] = ("nifty",)
    attributes: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    context: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    capacity: bool = True
    disks: t.Sequence[Disk] = ()
    firmware: str = ""
    dev_prefix: str = "vd"
    persistent: bool = False
    uid: int = -1
    gid: int = -1
    mode: str = "640"
    template_mode: str = "640"
    format: str | None = None
    stuck: float = 86400.0


@dataclasses.dataclass
class Plan:
    """What one build shall be in one datastore."""

    build: Descriptor
    artifact: Artifact
    store: Datastore
    values: dict[str, t.Any]
    pairs: Pairs
    image: Image | None = None
    made: bool = False

    @property
    def name(self) -> str:
        return template.plain(self.pairs, "NAME")


class Maker:
    """Makes and changes images and VM templates."""

    def __init__(self, shelf: Shelf, wish: Wish, waiter: Waiter) -> None:
        self.shelf = shelf
        self.cloud = shelf.cloud
        self.wish = wish
        self.waiter = waiter

    def about(self, name: str, pairs: Pairs, store: Datastore) -> Image:
        uid, gid = self.cloud.me
        attributes = template.merge({}, [pair for pair in pairs if pair[0] not in NOT_ATTRIBUTES])
        persistent = template.plain(pairs, "PERSISTENT").upper() == "YES"
        # In check mode, nothing has to be waited for.
        state = 1 if self.cloud.check_mode else LOCKED
        return Image(
            None, uid, gid, name, "600", attributes, state=state, datastore=store.id, persistent=persistent,
            registered=int(time.time()),
        )  # fmt: skip

    def same(self, thing: Thing, name: str, pairs: Pairs, made: bool, without: t.Collection[str] = ()) -> None:
        """Have name and attributes as wished; what else somebody has added stays."""
        wanted = template.merge({}, pairs)
        differ = sorted(key for key, value in wanted.items() if thing.attributes.get(key) != value)
        gone = sorted(set(without) & set(thing.attributes))
        if (differ or gone or thing.name != name) and not made:
            changes = [f"{key} differs" for key in differ] + [f"{key} goes" for key in gone]
            changes += ["its name differs"] if thing.name != name else []
            self.shelf.must_be_unlocked(thing)
            self.shelf.result.act(f"{called(thing)}: {', '.join(changes)}")
        if thing.name != name:
            self.cloud.rename(thing, name)
        self.cloud.update(thing, [pair for pair in pairs if pair[0] in differ], without=gone)

    def rights(self, thing: Thing, mode: str, made: bool) -> None:
        if thing.mode != mode:
            if not made:
                self.shelf.result.act(f"{called(thing)}: its rights are {thing.mode}, not {mode}")
            self.cloud.chmod(thing, mode)
        uid = -1 if self.wish.uid in (-1, thing.uid) else self.wish.uid
        gid = -1 if self.wish.gid in (-1, thing.gid) else self.wish.gid
        if (uid, gid) != (-1, -1):
            if not made:
                self.shelf.result.act(f"{called(thing)}: its owner or group differs")
            self.cloud.chown(thing, uid, gid)

    def template_of(self, plan: Plan) -> Thing | None:
        """The VM template of an image in a datastore; one that NIFTY has made is taken over."""
        identifier, store = plan.build.identifier, str(plan.store.id)
        own = [x for x in self.shelf.templates(identifier) if x.attributes.get("CLOUDIMG_DATASTORE") == store]
        if own:
            return min(own, key=lambda found: found.id or 0)
        mine = {self.cloud.me[0], *self.shelf.owners}
        former = [
            found
            for found in self.cloud.templates
            if found.attributes.get("NIFTY_APPLIANCE_ID") == identifier
            and "CLOUDIMG_ID" not in found.attributes
            and found.uid in mine
        ]
        if len(former) > 1:
            former = [found for found in former if found.name.endswith(f"@{plan.store.name}")]
        return former[0] if len(former) == 1 else None

    def template_pairs(self, plan: Plan, image: str, empty: t.Sequence[t.Mapping[str, t.Any]]) -> Pairs:
        """What the VM template says, for an image of that number; raises FactoryError where it cannot be."""
        values = {**plan.values, "image_id": image, "image_name": plan.name, "disks": list(empty)}
        text, where = self.wish.templates
        pairs = with_ours(
            template.render(text, values, where),
            list(self.wish.attributes.items()),
            [
                *tags(plan.build, plan.artifact, self.wish.contracts),
                ("CLOUDIMG_DATASTORE", str(plan.store.id)),
            ],
        )
        check_name(pairs, where)
        return pairs

    def must_have_its_name(self, plan: Plan) -> None:
        """Raise FactoryError where the VM template cannot be, before anything is sent."""
        new = {"image_id": "(new)"}
        name = template.plain(
            self.template_pairs(plan, "(new)", [{**dataclasses.asdict(disk), **new} for disk in self.wish.disks]),
            "NAME",
        )
        found = self.template_of(plan)
        clash = next((x for x in self.cloud.templates if x.name == name and x.uid == self.cloud.me[0]), None)
        if clash and clash is not found and (found is None or found.name != name):
            raise FactoryError(
                f"the name {name} is taken by a VM template that is not of this image",
                where=called(clash),
                key="NAME",
                mend="rename that template, or give a vm_template with another NAME",
            )

    def have_template(self, plan: Plan) -> Thing:
        """Have the VM template boot the image."""
        empty = [self._disk(plan, disk) for disk in self.wish.disks]
        pairs = self.template_pairs(plan, _number(plan.image), empty)
        name = template.plain(pairs, "NAME")
        pairs = [pair for pair in pairs if pair[0] != "NAME"]
        # So that what a later template does not say any more goes, and what somebody has added stays.
        managed = ",".join(sorted({key for key, _value in pairs}))
        pairs.append(("CLOUDIMG_MANAGED", managed))
        found = self.template_of(plan)
        if found is None:
            self.shelf.result.act(f"template {name}: is not there yet")
            uid, gid = self.cloud.me
            about = Thing(None, uid, gid, name, "600", template.merge({}, pairs))
            found = self.cloud.make_template([("NAME", name), *pairs], about)
            self.same(found, name, pairs, True)
            self.rights(found, self.wish.template_mode, True)
            return found
        before = str(found.attributes.get("CLOUDIMG_MANAGED") or "").split(",")
        names = {key for key, _value in pairs}
        without = [key for key in before if key and key not in names]
        self.same(found, name, pairs, False, [*without, "CLOUDIMG_WITHDRAWN"])
        self.rights(found, self.wish.template_mode, False)
        return found

    def _disk(self, plan: Plan, disk: Disk) -> dict[str, t.Any]:
        """An empty disk: an image of the type DATABLOCK, which all versions of the image share."""
        text = template.DATABLOCK
        pairs = template.render(text, {**plan.values, "disk": dataclasses.asdict(disk)}, "an empty disk")
        label = f"{disk.name}:{disk.size}:{disk.format}"
        mine: Pairs = [
            ("CLOUDIMG_IMAGE", plan.build.image),
            ("CLOUDIMG_ID", plan.build.identifier),
            ("CLOUDIMG_DISK", label),
        ]
        pairs = with_ours(pairs, [], mine)
        name = template.plain(pairs, "NAME")
        known = [
            image
            for image in self.cloud.images
            if self.shelf.ours(image, plan.build.identifier)
            and (image.datastore, image.attributes.get("CLOUDIMG_DISK")) == (plan.store.id, label)
        ]
        found = next((image for image in known if image.state != ERROR), None)
        made = found is None
        if found is None:
            for broken in known:
                self.shelf.remove(broken, "its transfer failed")
            self.shelf.result.act(f"image {name}: is not in datastore {plan.store.name} yet")
            found = self.cloud.make_image(pairs, self.about(name, pairs, plan.store), plan.store)
        if not self.cloud.check_mode:
            self.waiter.until_ready(found)
            if found.state == ERROR:
                said = self.cloud.front.hide(str(found.attributes.get("ERROR") or "no reason is told"))
                raise FactoryError(
                    f"cannot be made: {said}", where=called(found), mend="mend that, then run this again"
                )
        self.rights(found, self.wish.mode, made)
        return {"name": disk.name, "size": disk.size, "format": disk.format, "image_id": _number(found)}


def _number(image: Image | None) -> str:
    return "(new)" if image is None or image.id is None else str(image.id)


def check_name(pairs: Pairs, where: str) -> str:
    """The name that a template gives; raises FactoryError, naming ``where``, where it gives none that can be."""
    name = template.plain(pairs, "NAME")
    if not name:
        raise FactoryError("gives no NAME", where=where, key="NAME", mend="let the template give one")
    if len(name) > LONGEST:
        raise FactoryError(
            f"{name} has {len(name)} characters",
            where=where,
            key="NAME",
            mend=f"let the template give at most {LONGEST}",
        )
    return name


def with_ours(pairs: Pairs, more: Pairs, own: Pairs) -> Pairs:
    """Attributes of a site, and those of ours, which win."""
    names = {name.upper() for name, _value in more}
    rest = [pair for pair in pairs if pair[0] not in names] + [(name.upper(), value) for name, value in more]
    ours = {name for name, _value in own}
    return [pair for pair in rest if pair[0] not in ours] + own
