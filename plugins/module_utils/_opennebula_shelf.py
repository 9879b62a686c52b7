# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What of a front-end's objects is ours, how a build is told there, and how a version goes out of use.

Each image and VM template of ours has C(CLOUDIMG_ID) (the image's identifier) and C(CLOUDIMG_VERSION), a template also the
datastore of its image. An object counts only where we, or who we give it to, own it: anybody may put such names into theirs.
"""

from __future__ import annotations

import dataclasses
import time
import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor import Artifact, Descriptor
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._masks import SECRET_NAMES
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula import Refused
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_cloud import (
    DELETE,
    DISABLED,
    ERROR,
    LOCKED,
    READY,
    Cloud,
    Datastore,
    Image,
    Thing,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_template import Pairs
from ansible_collections.cloudimg.factory.plugins.module_utils._versions import version_key

EXPIRED = "EXPIRED_"
LONGEST = 128
"""Characters that a name may have (PoolObjectSQL.cc)."""
NOT_ATTRIBUTES = frozenset(
    (
        *("NAME", "TYPE", "PATH", "PERSISTENT", "SIZE", "FORMAT", "DRIVER", "SOURCE", "MD5", "SHA1"),
        *("DISK_TYPE", "FS", "DATASTORE", "DATASTORE_ID"),
    )
)
"""What an image's template says that the front-end keeps elsewhere than in its attributes."""


def tags(build: Descriptor, artifact: Artifact, contracts: t.Collection[str]) -> Pairs:
    """The names by which a build is found again, and those that SECANT, cloud-info-provider and cloudkeeper's users read.

    :param contracts: of C(nifty) and C(cloudkeeper).
    """
    found: Pairs = [
        ("CLOUDIMG_IMAGE", build.image),
        ("CLOUDIMG_ID", build.identifier),
        ("CLOUDIMG_VERSION", build.version),
        ("CLOUDIMG_SHA256", artifact.checksums["sha256"]),
    ]
    if "nifty" in contracts:
        found.append(("NIFTY_APPLIANCE_ID", build.identifier))
    if "cloudkeeper" in contracts:
        about = build.attributes
        known = {
            "APPLIANCE_ID": build.identifier,
            "APPLIANCE_TITLE": build.title,
            "APPLIANCE_DESCRIPTION": build.description,
            "APPLIANCE_MPURI": about.get("ad:mpuri") or about.get("mpuri"),
            "APPLIANCE_GROUP": next(iter(build.groups), None),
            "APPLIANCE_RAM": build.memory,
            "APPLIANCE_CORE": build.cpu,
            "APPLIANCE_VERSION": build.version,
            "APPLIANCE_ARCHITECTURE": build.os.arch,
            "APPLIANCE_OPERATING_SYSTEM": f"{build.os.distribution} {build.os.version}",
            "APPLIANCE_VO": about.get("vo"),
            "APPLIANCE_EXPIRATION_DATE": build.expires,
            "IMAGE_CHECKSUM": artifact.checksums["sha512"],
            "IMAGE_SIZE": artifact.size,
            "IMAGE_FORMAT": artifact.format,
        }
        found += [(f"CLOUDKEEPER_{name}", str(value)) for name, value in known.items() if value not in (None, "")]
    return found


@dataclasses.dataclass
class Shelf:
    """Our images and VM templates at a front-end.

    :param owners: numbers of the users whose objects count, besides our own.
    """

    cloud: Cloud
    owners: frozenset[int] = frozenset()
    result: Result = dataclasses.field(default_factory=Result)
    warnings: list[str] = dataclasses.field(default_factory=list)
    pause: t.Callable[[float], None] = time.sleep

    def ours(self, thing: Thing, identifier: str | None = None) -> bool:
        """Whether an object is ours, and of that image."""
        found = thing.attributes.get("CLOUDIMG_ID")
        return bool(found) and (identifier or found) == found and thing.uid in {self.cloud.me[0], *self.owners}

    def images(self, identifier: str | None = None, store: Datastore | None = None) -> list[Image]:
        """Our images of builds, oldest version first; empty disks are none."""
        found = [
            image
            for image in self.cloud.images
            if self.ours(image, identifier)
            and image.state != DELETE
            and "CLOUDIMG_DISK" not in image.attributes
            and (store is None or image.datastore == store.id)
        ]
        return sorted(found, key=lambda image: (version_key(version_of(image)), image.id or 0))

    def templates(self, identifier: str | None = None) -> list[Thing]:
        """Our VM templates."""
        return [found for found in self.cloud.templates if self.ours(found, identifier)]

    def unlocked(self, thing: Thing) -> bool:
        """Whether it may be changed; else that is warned of."""
        if thing.locked:
            self.warnings.append(
                f"{called(thing)} is locked by somebody: it stays as it is until it is unlocked and this runs again"
            )
        return not thing.locked

    def expire(self, image: Image, reason: str) -> None:
        """Take an image out of use: tagged, renamed, for its owner only, disabled as soon as no VM uses it.

        What is so already is not done again; so a run that was cut short is ended by the next one.
        """
        marked = image.attributes.get("CLOUDIMG_EXPIRED")
        stamp = marked or str(int(time.time()))
        disable = image.state in (READY, ERROR) and not image.used
        if marked and image.name.startswith(EXPIRED) and image.mode == "600" and not disable:
            return
        if not self.unlocked(image):
            return
        self.result.act(f"{called(image)}: {reason}" if not marked else f"{called(image)}: is not wholly out of use")
        if not marked:
            more: Pairs = [("CLOUDIMG_EXPIRED", stamp), ("CLOUDIMG_MODE", image.mode)]
            if "CLOUDKEEPER_APPLIANCE_ID" in image.attributes:
                more.append(("CLOUDKEEPER_EXPIRED", "yes"))
            self.cloud.update(image, more)
        if not image.name.startswith(EXPIRED):
            # Two of the same version may have expired in the same second.
            name = f"{EXPIRED}{stamp}_{image.name}"[:LONGEST]
            taken = any(each.name == name and each.uid == image.uid for each in self.cloud.images if each is not image)
            self.cloud.rename(image, f"{EXPIRED}{stamp}_{image.id}_{image.name}"[:LONGEST] if taken else name)
        if image.mode != "600":
            self.cloud.chmod(image, "600")
        if disable:
            try:
                self.cloud.enable(image, False)
            except Refused as exc:
                # A VM may have taken it this moment.
                self.warnings.append(f"{called(image)}: cannot be disabled yet: {exc.said}")

    def revive(self, image: Image, name: str, mode: str | None = None) -> None:
        """Bring an expired image back."""
        self.must_be_unlocked(image)
        if image.state in (DISABLED, ERROR):
            self.cloud.enable(image, True)
        if image.name != name:
            self.cloud.rename(image, name)
        wanted = mode or str(image.attributes.get("CLOUDIMG_MODE") or "600")
        if image.mode != wanted:
            self.cloud.chmod(image, wanted)
        gone = {"CLOUDIMG_EXPIRED", "CLOUDIMG_MODE", "CLOUDKEEPER_EXPIRED"} & set(image.attributes)
        if gone:
            # Last, so that what is half back counts as expired.
            self.cloud.update(image, [], without=gone)

    def must_be_unlocked(self, thing: Thing) -> None:
        """Raise FactoryError where somebody has locked an object."""
        if thing.locked:
            raise FactoryError(
                "is locked by somebody", where=called(thing), mend="unlock it, or wait until it is, then run this again"
            )

    def remove(self, image: Image, reason: str) -> bool:
        """Remove an image that nothing uses; whether it went."""
        if image.used or not self.unlocked(image):
            return False
        self.result.act(f"{called(image)}: {reason}")
        try:
            self.cloud.delete(image)
        except Refused as exc:
            if exc.kind not in ("action", "internal", "locked"):
                raise
            self.warnings.append(f"{called(image)}: cannot be removed yet: {exc.said}")
            return False
        return True

    def clean(self, identifier: str | None, after: float) -> None:
        """Remove what is out of use for ``after`` seconds and used by nothing, and what failed to be transferred."""
        for image in [each for each in self.cloud.images if self.ours(each, identifier)]:
            stamp = str(image.attributes.get("CLOUDIMG_EXPIRED") or "")
            if image.state == ERROR and not stamp:
                self.remove(image, "its transfer failed")
            elif stamp:
                age = time.time() - int(stamp) if stamp.isdigit() else after
                if age >= after and not image.used and image.state != LOCKED:
                    self.remove(image, "has expired, and nothing uses it")
                else:
                    self.expire(image, "has expired")

    def retire(self, identifier: str, version: str, reason: str, *, absent: bool) -> None:
        """Have a version offered no longer.

        The VM template that has it is withdrawn: for its owner only, so that the next version finds it under the same number.
        With ``absent`` template and images are removed, those that VMs use by :meth:`clean` later.
        """
        images = [image for image in self.images(identifier) if version_of(image) == version]
        numbers = {str(image.id) for image in images}
        for found in [each for each in self.templates(identifier) if set(disks(each)) & numbers]:
            self.must_be_unlocked(found)
            if absent:
                self.result.act(f"{called(found)}: {reason}")
                self.cloud.delete(found)
            elif found.mode != "600" or "CLOUDIMG_WITHDRAWN" not in found.attributes:
                self.result.act(f"{called(found)}: {reason}")
                self.cloud.chmod(found, "600")
                self.cloud.update(found, [("CLOUDIMG_WITHDRAWN", version)])
        for image in images:
            self.expire(image, reason)
            if absent and not self.remove(image, reason) and image.used:
                self.warnings.append(f"{called(image)}: is used by {image.vms} VMs; state=cleaned removes it later")
        if absent:
            self._remove_disks(identifier, reason)

    def _remove_disks(self, identifier: str, reason: str) -> None:
        """Remove empty disks that no VM template has any more."""
        wanted = {number for found in self.templates(identifier) for number in disks(found)}
        for image in [each for each in self.cloud.images if self.ours(each, identifier)]:
            if "CLOUDIMG_DISK" in image.attributes and str(image.id) not in wanted:
                self.remove(image, reason)

    def roll_back(self, identifier: str, version: str, reason: str) -> None:
        """Have the VM templates boot an earlier version again that is still there; the one that they had expires."""
        there = [image for image in self.images(identifier) if version_of(image) == version]
        usable = [image for image in there if image.state not in (ERROR, LOCKED)]
        templates = self.templates(identifier)
        if not usable or not templates:
            known = sorted({version_of(image) for image in self.images(identifier)}, key=version_key)
            raise FactoryError(
                f"version {version} is not there any more" if templates else "has no VM template",
                where=f"image {identifier}",
                key="version",
                mend=f"choose one of {', '.join(known)}" if known and templates else "publish a build of it",
            )
        for image in usable:
            store = str(image.datastore)
            for found in [each for each in templates if each.attributes.get("CLOUDIMG_DATASTORE") == store]:
                self.must_be_unlocked(found)
                name = image.name.partition("_")[2].partition("_")[2] if image.name.startswith(EXPIRED) else image.name
                if "CLOUDIMG_EXPIRED" in image.attributes:
                    self.result.act(f"{called(image)}: {reason}")
                    self.revive(image, name)
                others = [
                    each for each in self.images(identifier) if each.datastore == image.datastore and each is not image
                ]
                self._point(found, image, {str(each.id) for each in others}, reason)
                for each in others:
                    self.expire(each, reason)

    def _point(self, found: Thing, image: Image, others: t.Collection[str], reason: str) -> None:
        """Have a VM template boot another version, and say so."""
        rows = found.attributes.get("DISK") or []
        rows = rows if isinstance(rows, list) else [rows]
        pairs: Pairs = []
        for row in rows:
            changed = isinstance(row, dict) and row.get("IMAGE_ID") in others
            pairs.append(("DISK", {**row, "IMAGE_ID": str(image.id)} if changed else row))
        names = ("CLOUDIMG_VERSION", "CLOUDIMG_SHA256")
        if [row for _name, row in pairs] == rows and all(
            found.attributes.get(name) == image.attributes.get(name) for name in names
        ):
            return
        self.result.act(f"{called(found)}: {reason}")
        pairs += [(name, image.attributes[name]) for name in names if name in image.attributes]
        self.cloud.update(found, pairs)


def version_of(thing: Thing) -> str:
    """The version of the build that an object is of."""
    return str(thing.attributes.get("CLOUDIMG_VERSION") or "")


def disks(template: Thing) -> list[str]:
    """The numbers of the images that a VM template has as disks, in their order."""
    rows = template.attributes.get("DISK") or []
    return [str(row["IMAGE_ID"]) for row in (rows if isinstance(rows, list) else [rows]) if "IMAGE_ID" in row]


def called(thing: Thing) -> str:
    """What messages call an object."""
    return f"{thing.kind} {thing.name}" + (f" ({thing.id})" if thing.id is not None else "")


def described(thing: Thing) -> dict[str, t.Any]:
    """An object for results and diffs; without what may have secrets."""

    def shown(attributes: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        rows: dict[str, t.Any] = {}
        for name, value in attributes.items():
            if isinstance(value, dict):
                rows[name] = shown(value)
            elif name != "ERROR":
                rows[name] = "***" if SECRET_NAMES.search(name) and name != "SSH_PUBLIC_KEY" else value
        return rows

    about: dict[str, t.Any] = {
        "id": thing.id,
        "name": thing.name,
        "mode": thing.mode,
        "uid": thing.uid,
        "gid": thing.gid,
        "version": version_of(thing),
        "attributes": shown(thing.attributes),
    }
    if isinstance(thing, Image):
        about.update(
            state=thing.status, datastore=thing.datastore, size=thing.size, persistent=thing.persistent, vms=thing.vms
        )
        about["expired"] = "CLOUDIMG_EXPIRED" in thing.attributes
    else:
        about["images"] = disks(thing)
    return about
