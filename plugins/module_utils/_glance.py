# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The versions of one image in Glance: which is offered, which is not any more, and which goes."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _glance_upload
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import Cancelled, FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._glance_api import (
    BUSY,
    DONE,
    Answered,
    Glance,
    Image,
    Unknown,
    age,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._glance_properties import (
    CANDIDATE,
    IDENTIFIER,
    IMAGE,
    INCOMING,
    OURS,
    PUBLISHED,
    PUBLISHER,
    STATE,
    VERSION,
    Wanted,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._glance_upload import Source
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.plugins.module_utils._state import lock
from ansible_collections.cloudimg.factory.plugins.module_utils._versions import version_key

_ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class Terms:
    """How an image is offered.

    :param members: the projects with which it is shared; None for no say in it.
    :param former: what becomes of the versions before: C(hidden), C(deactivated) or C(visible).
    :param keep: so many of the newest versions stay; None for all.
    :param adopt: whether an image with the same data that is not ours yet is taken: C(name), C(any) or C(never).
    :param stale: hours after which what another machine has left half-made is removed.
    """

    visibility: str = "private"
    protected: bool | None = None
    members: tuple[str, ...] | None = None
    former: str = "hidden"
    keep: int | None = None
    adopt: str = "name"
    stale: float = 24.0


def view(image: Image | None, members: t.Iterable[str] | None = None) -> dict[str, t.Any]:
    """An image for a diff: what we set, and what tells it."""
    if image is None:
        return {}
    skip = {
        "self",
        "file",
        "schema",
        "created_at",
        "updated_at",
        "tags",
        "direct_url",
        "locations",
        "stores",
        PUBLISHER,
    }
    shown = {key: value for key, value in image.items() if key not in skip}
    return {**shown, **({"members": sorted(members)} if members is not None else {})}


class Shelf:
    """All that is done to an image's versions; in check mode nothing is sent."""

    def __init__(self, glance: Glance, *, check_mode: bool = False) -> None:
        self.glance = glance
        self.check_mode = check_mode
        self.result = Result()
        self.warnings: list[str] = []

    @contextlib.contextmanager
    def hold(self, words: str, patience: float) -> t.Iterator[None]:
        """Keep other processes of this user off the same version."""
        if self.check_mode:
            yield
            return
        name = hashlib.sha256(f"{self.glance.where} {words}".encode()).hexdigest()[:24]
        path = Path.home() / ".cache" / "cloudimg.factory" / "glance" / f"{name}.lock"
        busy = "another process publishes this version"
        with lock(path, wait=patience, busy=busy, tick=self.glance.http.progress.check):
            yield

    def present(self, wanted: Wanted, source: t.Callable[[], Source], terms: Terms, *, candidate: bool) -> Image:
        """Have the version offered, or there as a candidate that nobody sees.

        :param source: judges the artifact; it is called only where its data are to be compared or sent.
        :returns: the image; in check mode what it would be.
        """
        version = wanted.properties[VERSION]
        family = self.glance.images(**{IDENTIFIER: wanted.properties[IDENTIFIER]})
        mine = [image for image in family if image.get(VERSION) == version]
        self._tidy([image for image in mine if image["status"] not in DONE], terms.stale)
        chosen = self._chosen(mine, wanted) or self._adopted(wanted, terms)
        before = view(chosen, self._members(chosen, terms))
        if chosen is None:
            self.result.act(f"{wanted.base['name']}: version {version} is not in Glance")
            given = source()
            if self.check_mode:
                _glance_upload.check_method(self.glance, given)
                chosen = {"id": "", "status": "active", "os_hidden": True, "visibility": "private", STATE: INCOMING}
            else:
                chosen = _glance_upload.bring(self.glance, wanted, given)
                # Another machine may have been as fast.
                mine = self.glance.images(**{IDENTIFIER: wanted.properties[IDENTIFIER], VERSION: version})
                chosen = self._chosen(mine, wanted) or chosen
        # What is offered already stays so.
        hide = candidate and chosen.get(STATE) != PUBLISHED
        members = terms.members if not hide and terms.visibility == "shared" else None
        goal = {
            **wanted.document(),
            STATE: CANDIDATE if hide else PUBLISHED,
            "os_hidden": hide,
            "visibility": "private" if hide else terms.visibility,
            **({"protected": terms.protected} if terms.protected is not None and not hide else {}),
        }
        # A server that converts what it imports knows better.
        for key in ("disk_format", "container_format"):
            goal.pop(key)
        chosen = self._settle(chosen, goal, members, DONE[0])
        after = view(chosen, self._members(chosen, terms) if not self.check_mode else terms.members)
        self._duplicates(chosen, version)
        if not hide:
            self._former([image for image in family if image.get(VERSION) != version], version, terms)
        if self.result.changed:
            self.result.diff = {"before": before, "after": after}
        return chosen

    def _members(self, image: Image | None, terms: Terms) -> t.Iterable[str] | None:
        if terms.members is None:
            return None
        return self.glance.members(image["id"]) if image and image["visibility"] == "shared" and image["id"] else ()

    def _chosen(self, mine: t.Sequence[Image], wanted: Wanted) -> Image | None:
        """The one that counts, by an order that all publishers see alike."""
        complete = [image for image in mine if image["status"] in DONE]
        fit = [image for image in complete if self._fits(image, wanted)]
        for image in complete:
            if image not in fit and image.get(STATE) != INCOMING:
                raise FactoryError(
                    f"version {wanted.properties[VERSION]} is there with other data",
                    where=f"{self.glance.where}images/{image['id']}",
                    mend="raise image_version and build again",
                )
            if image not in fit:
                self._remove(image, "its data are not those of the build")
        return min(fit, key=_rank) if fit else None

    @staticmethod
    def _fits(image: Image, wanted: Wanted) -> bool:
        digest = wanted.properties["cloudimg_sha512"]
        if image.get("cloudimg_disk_format", image["disk_format"]) != image["disk_format"]:
            return bool(image.get("cloudimg_sha512") == digest)
        if image.get("os_hash_algo") == "sha512":
            return bool(image["os_hash_value"] == digest)
        # Another algorithm was compared when the data had come.
        return bool(image.get("cloudimg_sha512") == digest)

    def _adopted(self, wanted: Wanted, terms: Terms) -> Image | None:
        """An image with the same data that nobody has told us of, found by its checksum."""
        if terms.adopt == "never":
            return None
        for image in self.glance.images(os_hash_value=wanted.properties["cloudimg_sha512"]):
            known = any(key.startswith(OURS) for key in image)
            alike = all(image[key] == wanted.base[key] for key in ("disk_format", "container_format"))
            named = terms.adopt == "any" or image["name"] == wanted.base["name"]
            if not known and alike and named and image["status"] in DONE and image["os_hash_algo"] == "sha512":
                self.result.act(f"{wanted.base['name']}: image {image['id']} has its data already")
                return image
        return None

    def _tidy(self, halves: t.Sequence[Image], stale: float) -> None:
        """Remove what a run that was killed has left. We hold the lock, so what this machine has begun is dead."""
        for image in halves:
            begun = datetime.datetime.strptime(image["created_at"], "%Y-%m-%dT%H:%M:%SZ")
            hours = (datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None) - begun).total_seconds() / 3600
            if image.get(PUBLISHER) == _glance_upload.publisher() or hours >= stale:
                self._remove(image, "it was left half-made")

    def _remove(self, image: Image, reason: str) -> None:
        self.result.act(f"image {image['id']}: {reason}")
        if not self.check_mode:
            self.glance.delete(image["id"])

    def _duplicates(self, chosen: Image, version: str) -> None:
        """Of two publishers one has it, as the order says; what the other has made goes."""
        if self.check_mode or not self.result.changed:
            return
        for image in self.glance.images(**{IDENTIFIER: chosen[IDENTIFIER], VERSION: version}):
            if image["id"] != chosen["id"] and image["status"] in DONE and _rank(image) > _rank(chosen):
                self._remove(image, f"image {chosen['id']} has the same version")

    def _settle(self, image: Image, goal: t.Mapping[str, t.Any], members: tuple[str, ...] | None, status: str) -> Image:
        """Have an image as the goal says: who may see it is said before it is shown, all else at once."""
        name = f"{goal.get('name', image.get('name'))}: image {image['id'] or '(new)'}"
        for attempt in range(_ROUNDS + 1):
            differs = {key: value for key, value in goal.items() if image.get(key) != value}
            acts = image["status"] in DONE and image["status"] != status
            if differs and not attempt:
                self.result.act(f"{name}: differs in {', '.join(sorted(differs))}")
            if acts and not attempt:
                self.result.act(f"{name}: is {image['status']}, shall be {status}")
            if self.check_mode:
                self._plan_sharing(image, members, name)
                return {**image, **goal, "status": status}
            try:
                if acts and status == DONE[1]:
                    self.glance.act(image["id"], "deactivate")
                # Only a shared image can have members: it is hidden until it has them.
                last = {"os_hidden"} & set(differs) if members else set()
                if set(differs) - last:
                    self.glance.patch(image["id"], {key: differs[key] for key in differs if key not in last})
                if members is not None:
                    self._share(image["id"], members, name)
                if last:
                    self.glance.patch(image["id"], {key: differs[key] for key in last})
                if acts and status == DONE[0]:
                    self.glance.act(image["id"], "reactivate")
            except Answered as exc:
                if exc.reply.status not in (404, 409) or attempt + 1 == _ROUNDS:
                    raise _forbidden(exc, goal) from exc
            except Unknown:
                if attempt + 1 == _ROUNDS:
                    raise
            else:
                if not differs and not acts:
                    return image
            found = self.glance.get(image["id"])
            if found is None:
                raise FactoryError("was removed meanwhile", where=name, mend="run this again")
            image = found
        raise FactoryError(
            "does not stay as it is set", where=name, mend="find out who else changes it there, then run this again"
        )

    def _plan_sharing(self, image: Image, members: tuple[str, ...] | None, name: str) -> None:
        if members is not None:
            there = self.glance.members(image["id"]) if image["id"] and image["visibility"] == "shared" else set()
            if there != set(members):
                self.result.act(f"{name}: is shared with {len(there)} projects, shall be with {len(members)}")

    def _share(self, image: str, members: tuple[str, ...], name: str) -> None:
        there = self.glance.members(image)
        for project in sorted(set(members) - there):
            self.result.act(f"{name}: is not shared with {project}")
            self.glance.share(image, project)
        for project in sorted(there - set(members)):
            self.result.act(f"{name}: is still shared with {project}")
            self.glance.unshare(image, project)

    def _former(self, others: t.Sequence[Image], version: str, terms: Terms) -> None:
        """Take the versions before out of the list, and remove what is over what shall be kept."""
        offered = [image for image in others if image["status"] in DONE and image.get(STATE) == PUBLISHED]
        former = sorted(
            (image for image in offered if version_key(image.get(VERSION, "")) < version_key(version)),
            key=lambda image: (version_key(image.get(VERSION, "")), age(image)),
            reverse=True,
        )
        newer = len({image[VERSION] for image in offered if version_key(image.get(VERSION, "")) > version_key(version)})
        kept = {version}
        for image in former:
            kept.add(image[VERSION])
            gone = terms.keep is not None and newer + len(kept) > terms.keep
            try:
                if gone:
                    self.retire(image, "absent", f"{terms.keep} newer versions are there")
                elif terms.former != "visible":
                    self.retire(image, terms.former, f"version {version} takes its place")
            except Cancelled:
                raise
            except FactoryError as exc:
                # The new version is offered; a later run tries again.
                self.warnings.append(f"version {image[VERSION]} is not retired: {exc}")

    def retire(self, image: Image, state: str, reason: str, protected: bool | None = None) -> bool:
        """Have an image C(hidden), C(deactivated) as well, or C(absent); whether it is.

        An image whose data are in use, as with copy-on-write stores, is hidden and deactivated, until a later run can remove it.
        """
        name = f"{image.get('name')}: image {image['id']}"
        if state != "absent":
            status = DONE[1] if state == "deactivated" else image["status"]
            if image["os_hidden"] and image["status"] == status:
                return True
            self.result.act(f"{name}: {reason}")
            self._settle_quietly(image, status)
            return True
        self.result.act(f"{name}: {reason}")
        if self.check_mode:
            return True
        if image.get("protected") and protected is False:
            self.glance.patch(image["id"], {"protected": False})
        try:
            self.glance.delete(image["id"])
        except Answered as exc:
            if exc.reply.status == 403 and image.get("protected"):
                raise FactoryError(
                    "is protected", where=name, key="protected", mend="give protected: false to remove it"
                ) from exc
            if exc.reply.status != 409:
                raise
            self.result.actions.pop()
            self.warnings.append(f"{name} is in use, and was hidden and deactivated only: {exc.reply.said()}")
            self.result.changed = bool(self.result.actions)
            self.retire(image, "deactivated", f"{reason}, but it is in use")
            return False
        return True

    def _settle_quietly(self, image: Image, status: str) -> None:
        actions, changed = list(self.result.actions), self.result.changed
        self._settle(image, {"os_hidden": True}, None, status)
        self.result.actions, self.result.changed = actions, changed

    def find(self, image: str, version: str | None, identifier: str | None) -> list[Image]:
        """The images of a version (or of all versions), the half-made ones too."""
        filters = {IDENTIFIER: identifier} if identifier else {IMAGE: image}
        return self.glance.images(**filters, **({VERSION: version} if version else {}))


def _rank(image: Image) -> tuple[int, str, str]:
    states = {PUBLISHED: 0, CANDIDATE: 1}
    return (states.get(image.get(STATE, ""), 2), *age(image))


def _forbidden(exc: Answered, goal: t.Mapping[str, t.Any]) -> Answered:
    if exc.reply.status != 403 or goal.get("visibility") not in ("public", "community"):
        return exc
    mend = (
        "have the role that may do so there, or use the visibility shared or private; its data need not be sent again"
    )
    problem = f"may not be {goal['visibility']}: HTTP 403: {exc.reply.said()}"
    return Answered(exc.reply, problem, where=exc.reply.where, mend=mend)


__all__ = ["BUSY", "Shelf", "Source", "Terms", "view"]
