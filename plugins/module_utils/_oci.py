# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Builds in a repository of an OCI registry: publish, deprecate, remove, keep so many.

What readers look at comes last: the blob, the manifest by its digest, what is attached to it, the dated tag, and then the
tag that moves. Whatever a cut leaves has no tag, and a further run goes on from there.
"""

from __future__ import annotations

import dataclasses
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor
from ansible_collections.cloudimg.factory.plugins.module_utils import _oci_describe as describe
from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor_files import checked
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_attach import Attachments
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_blobs import CHUNK, Upload
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_harbor import Remover
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_referrers import DEPRECATED, Attachment, Referrers
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_registry import (
    EMPTY_CONFIG,
    Found,
    Repository,
    fallback_tag,
    is_digest,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._versions import version_key

_MOVES = 3


@dataclasses.dataclass(frozen=True)
class Tagged:
    """A dated artifact of the repository."""

    tag: str
    found: Found

    @property
    def version(self) -> str:
        return self.found.annotations.get(describe.VERSION, "")

    @property
    def age(self) -> tuple[t.Any, str]:
        """The newest is the greatest."""
        return version_key(self.version), self.tag


@dataclasses.dataclass
class Catalogue:
    """The images in one repository.

    :ivar sent: bytes of images that were sent.
    """

    repository: Repository
    check_mode: bool
    chunk: int = CHUNK
    mount_from: t.Sequence[str] = ()
    sent: int = 0
    warnings: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.remover = Remover(self.repository)

    # ------------------------------------------------------------------ publish

    def present(
        self, descriptor: Path, options: describe.Options, attachments: Attachments, *, keep: int | None = None
    ) -> Result:
        """Have a build published.

        :param keep: how many of the newest versions of its OS version stay; None for all.
        :raises FactoryError: the build is not what its descriptor says, the tag is another image's, or the registry refuses.
        """
        result = Result()
        build = _descriptor.load(descriptor)
        _descriptor.must_be_alive(build.expires, descriptor)
        wanted = describe.package(build, options, str(descriptor))
        self.repository.progress.phase(f"check {wanted.artifact.path}")
        path = checked(descriptor, build, wanted.artifact)
        attached = attachments.collect(descriptor, build, wanted)
        dated, moving = (self.repository.get(tag) for tag in (wanted.dated, wanted.moving))
        self._may_have(dated, wanted.dated, build)
        self._may_have(moving, wanted.moving, build)
        before = self._state(wanted, dated, moving, [])
        name = f"{self.repository.where}:{wanted.dated}"
        if not self.repository.has(wanted.layer, wanted.artifact.size):
            result.act(f"{name}: its image is not there yet")
            if not self.check_mode:
                self.repository.progress.phase(f"push {wanted.artifact.path}")
                upload = Upload(
                    self.repository,
                    path,
                    wanted.layer,
                    wanted.artifact.size,
                    mount_from=self.mount_from,
                    chunk=self.chunk,
                )
                try:
                    upload.run()
                finally:
                    self.sent += upload.sent
        digest = wanted.manifest.digest
        there = {found.digest for found in (dated, moving) if found}
        if digest not in there and not self.check_mode:
            self.repository.put_blob(EMPTY_CONFIG)
            self.repository.put(digest, wanted.manifest)
        self.repository.progress.phase("attach")
        types = self._attach(attached, wanted.manifest, build.identifier, name, result)
        if not dated or dated.digest != digest:
            result.act(f"{name}: " + ("is not there yet" if not dated else "its manifest differs"))
            if not self.check_mode:
                self.repository.put(wanted.dated, wanted.manifest)
        after_moving = self._move(wanted, build.version, moving, result)
        if dated and dated.digest != digest and not self.check_mode:
            self._drop_former(dated)
        before["referrers"] = types[0]
        result.diff = {
            "before": before,
            "after": self._state(wanted, wanted.manifest, after_moving, types[1]),
        }
        removed = self._keep(wanted.moving, build.identifier, keep, wanted, result) if keep else []
        result.image = build.document()
        result.extra |= self._told(wanted, build, removed)
        return result

    def _may_have(self, found: Found | None, tag: str, build: _descriptor.Descriptor) -> None:
        owner = found.annotations.get(describe.IDENTIFIER) if found else None
        if owner and owner != build.identifier:
            other = found.annotations.get(describe.IMAGE, owner) if found else owner
            raise FactoryError(
                f"is a tag of the image {other}, not of {build.image}",
                where=f"{self.repository.where}:{tag}",
                key="repository",
                mend="give each image a repository of its own",
            )

    def _attach(
        self, wanted: t.Sequence[Attachment], subject: Found, identifier: str, name: str, result: Result
    ) -> tuple[list[str], list[str]]:
        """Have all that attached, and nothing older of the same types; the types before and after."""
        referrers = Referrers(self.repository, subject.digest)
        before = referrers.types()
        for each in wanted:
            known = referrers.ours(each.artifact_type, identifier)
            if each.is_among(known):
                continue
            ready = each.ready()
            found = ready.manifest(subject, identifier)
            stale = [row for row in known if row["digest"] != found.digest]
            if len(stale) == len(known):
                result.act(f"{name}: {each.name or each.artifact_type} is not attached to it yet")
                if not self.check_mode:
                    referrers.attach(found, ready.data)
            if stale and not self.check_mode:
                referrers.detach(stale)
        deprecated = referrers.ours(DEPRECATED, identifier)
        if deprecated:
            result.act(f"{name}: is deprecated, shall be offered")
            if not self.check_mode:
                referrers.detach(deprecated)
        after = sorted({*referrers.types(), *(each.artifact_type for each in wanted)} - {DEPRECATED})
        return before, after

    def _move(self, wanted: describe.Package, version: str, now: Found | None, result: Result) -> Found | None:
        """Have the tag that moves on this build, unless a newer one has it; what it stands for then."""
        for attempt in range(_MOVES):
            if now and now.digest == wanted.manifest.digest:
                return now
            newer = now.annotations.get(describe.VERSION, "") if now else ""
            if newer and version_key(newer) > version_key(version):
                return now
            if not attempt:
                about = f"is {newer or 'another one'}" if now else "is not there yet"
                result.act(f"{self.repository.where}:{wanted.moving}: {about}, shall be {version}")
            if self.check_mode:
                return wanted.manifest
            self.repository.put(wanted.moving, wanted.manifest)
            # Another publisher may have put an older build there at the same moment.
            now = self.repository.get(wanted.moving)
        return now

    def _drop_former(self, former: Found) -> None:
        """Remove the manifest that had the dated tag before: nothing has a tag of it any more."""
        try:
            self._remove(former.digest)
        except FactoryError as exc:
            self.warnings.append(f"{exc.where}: what was replaced could not be removed: {exc.problem}")

    # ------------------------------------------------------------------- retire

    def absent(self, reference: str, known: str | None = None) -> Result:
        """Have an artifact removed, with its tags and what is attached; the tag that moves goes to the version before.

        :param reference: its dated tag, or its digest.
        :param known: its digest, by which is found what a run that was cut short has left.
        """
        result = Result()
        found = self.repository.get(reference)
        digest = found.digest if found else known or reference
        result.diff = {"before": self._seen(found), "after": {}}
        if found:
            result.act(f"{self.repository.where}@{digest[:19]}: is there, shall be removed")
            self._give_up(found, result, removed=True)
            if not self.check_mode:
                self._remove(digest)
        elif is_digest(digest):
            self._remains(digest, result)
        result.extra |= {"publication": {"registry": self.repository.base, "repository": self.repository.name}}
        result.extra["publication"] |= {"digest": digest} if is_digest(digest) else {}
        return result

    def deprecated(self, reference: str, reason: str) -> Result:
        """Have an artifact kept, and not offered by the tag that moves any more."""
        result = Result()
        found = self.repository.get(reference)
        if found is None:
            self.warnings.append(f"{self.repository.where}: has no {reference}")
            return result
        self._give_up(found, result)
        identifier = found.annotations.get(describe.IDENTIFIER, "")
        referrers = Referrers(self.repository, found.digest)
        if not referrers.of_type(DEPRECATED):
            result.act(f"{self.repository.where}@{found.digest[:19]}: shall be deprecated")
            if not self.check_mode:
                mark = Attachment(DEPRECATED, annotations={"cloudimg.reason": reason or "deprecated"})
                referrers.attach(mark.manifest(found, identifier), b"")
        result.diff = {"before": self._seen(found), "after": {**self._seen(found), "deprecated": reason}}
        result.extra["publication"] = self._publication(found)
        return result

    def _give_up(self, found: Found, result: Result, *, removed: bool = False) -> None:
        """Have the tag that moves not on this artifact: on the newest other one that is not deprecated, or nowhere.

        :param removed: whether the artifact is removed next, with the tags that it has then.
        """
        version = (
            (found.layers[0].get("annotations") or {}).get(describe.GLANCE + "os_version") if found.layers else None
        )
        dated = self.dated(found.annotations.get(describe.IDENTIFIER, ""))
        names = {each.tag[: -len("-2025-01-31-01234567")] for each in dated if each.found.digest == found.digest}
        for moving in names or ({version} if version else set()):
            if self.repository.digest(moving) != found.digest:
                continue
            others = [each for each in dated if each.found.digest != found.digest and each.tag.startswith(f"{moving}-")]
            heir = None
            for each in sorted(others, key=lambda each: each.age, reverse=True):
                if not Referrers(self.repository, each.found.digest).of_type(DEPRECATED):
                    heir = each
                    break
            target = f"shall be {heir.version}" if heir else "shall be no more"
            result.act(f"{self.repository.where}:{moving}: is what is retired, {target}")
            if self.check_mode:
                continue
            if heir:
                self.repository.put(moving, heir.found)
            elif not removed:
                self.remover.tag(moving)

    def _remove(self, digest: str) -> None:
        """Remove an artifact, and what is attached to it. A cut in between leaves what :meth:`_remains` finds."""
        listed = Referrers(self.repository, digest)
        self.remover.artifact(digest)
        if not self.remover.is_harbor:
            listed.detach(listed.listed)

    def _remains(self, digest: str, result: Result) -> None:
        """What is attached to an artifact that is gone."""
        listed = Referrers(self.repository, digest)
        if listed.listed:
            result.act(f"{self.repository.where}:{fallback_tag(digest)}: is left of what was removed")
            if not self.check_mode:
                listed.detach(listed.listed)

    # ---------------------------------------------------------------- retention

    def dated(self, identifier: str, moving: str = "") -> list[Tagged]:
        """The dated artifacts of an image (a GET for the tags and one for each), the oldest first."""
        rows = []
        for tag in self.repository.tags():
            match = describe.DATED.fullmatch(tag)
            if not match or (moving and match[1] != moving):
                continue
            found = self.repository.get(tag)
            if found and (not identifier or found.annotations.get(describe.IDENTIFIER) == identifier):
                rows.append(Tagged(tag, found))
        return sorted(rows, key=lambda each: each.age)

    def _keep(
        self, moving: str, identifier: str, keep: int, wanted: describe.Package, result: Result
    ) -> list[dict[str, str]]:
        """Remove the versions of this image that are over ``keep``, but never what was just published or is offered."""
        rows = self.dated(identifier, moving)
        offered = {wanted.manifest.digest, self.repository.digest(moving)}
        new = wanted.manifest.digest not in {each.found.digest for each in rows}
        over = rows[: max(0, len(rows) + new - keep)]
        removed = []
        for each in over:
            if each.found.digest in offered:
                continue
            result.act(f"{self.repository.where}:{each.tag}: {keep} newer ones are there")
            removed.append({"version": each.version, "tag": each.tag, "digest": each.found.digest})
            if not self.check_mode:
                self._remove(each.found.digest)
        return removed

    # ------------------------------------------------------------------ results

    def _state(
        self, wanted: describe.Package, dated: Found | None, moving: Found | None, types: t.Sequence[str]
    ) -> dict[str, t.Any]:
        tags = {wanted.dated: dated, wanted.moving: moving}
        return {
            "tags": {tag: found.digest if found else None for tag, found in tags.items()},
            "annotations": dated.annotations if dated else {},
            "referrers": sorted(types),
        }

    def _seen(self, found: Found | None) -> dict[str, t.Any]:
        return describe.described(found, []) if found else {}

    def _publication(self, found: Found) -> dict[str, t.Any]:
        layer = found.layers[0] if found.layers else {}
        return {
            "registry": self.repository.base.rstrip("/"),
            "repository": self.repository.name,
            "digest": found.digest,
            "layer": layer.get("digest"),
        }

    def _told(
        self, wanted: describe.Package, build: _descriptor.Descriptor, removed: list[dict[str, str]]
    ) -> dict[str, t.Any]:
        tags = {"tag": wanted.dated, "moving_tag": wanted.moving}
        reference = f"{self.repository.where}:{wanted.dated}"
        return {
            "publication": {**self._publication(wanted.manifest), **tags, "reference": reference},
            "artifact": describe.described(wanted.manifest, [wanted.dated]),
            "sent": self.sent,
            "removed": removed,
        }
