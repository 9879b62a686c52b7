# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""A build at an OpenNebula front-end: an image in each datastore, and a VM template that boots it and keeps its number.

The new image comes next to the old one, for its owner only until it is READY; then the VM template is switched to it; then the
old one expires. Each step is looked up first, so that a run which was cut short anywhere is ended by the next one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _opennebula_template as template
from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor import Artifact, Descriptor
from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor_files import checked
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula import restricted
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_boot import (
    Maker,
    Plan,
    check_name,
    with_ours,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_cloud import (
    DISABLED,
    ERROR,
    LOCKED,
    USED,
    Datastore,
    Image,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_shelf import (
    NOT_ATTRIBUTES,
    called,
    tags,
    version_of,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_transfer import Way
from ansible_collections.cloudimg.factory.plugins.module_utils._versions import version_key

FORMATS = ("qcow2", "raw", "vmdk")


@dataclasses.dataclass
class Begun:
    """A build whose images the front-end has, or is transferring.

    :param missing: those of its plans that it had no image of before.
    :ivar offer: has the artifact where the front-end reads it, until it is closed.
    """

    build: Descriptor
    artifact: Artifact
    plans: t.Sequence[Plan]
    way: Way
    missing: t.Sequence[Plan]
    offer: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)


class Desk(Maker):
    """Publishes builds."""

    def publish(self, path: Path, build: Descriptor) -> dict[str, t.Any]:
        """Have a build published; returns what finds it there again."""
        return self.finish(self.begin(path, build, self.wish.way))

    def begin(self, path: Path, build: Descriptor, way: Way) -> Begun:
        """Have the front-end begin to transfer a build where it has not got it; :meth:`finish` or :meth:`drop` has to follow."""
        artifact = self._artifact(path, build)
        file = checked(path, build, artifact)
        plans = [self._plan(build, artifact, self.cloud.datastore(name)) for name in self.wish.datastores]
        for plan in plans:
            self._must_be_possible(plan)
        for plan in plans:
            self._failed_before(plan)
        begun = Begun(build, artifact, plans, way, missing=[plan for plan in plans if plan.image is None])
        try:
            shown = ""
            if begun.missing and not self.cloud.check_mode:
                shown, secret = begun.offer.enter_context(way.offer(file, artifact))
                self.cloud.front.http.masks.add(secret)
            for plan in begun.missing:
                self._register(plan, shown, way)
        except BaseException:
            self.drop(begun)
            raise
        return begun

    def finish(self, begun: Begun) -> dict[str, t.Any]:
        """Wait for the images of a build, have the VM templates boot them and older versions expire; as :meth:`publish`."""
        try:
            self._wait(begun.plans)
        except BaseException:
            self.drop(begun)
            raise
        begun.offer.close()
        if not self.cloud.check_mode and begun.way.left(begun.artifact):
            if not begun.missing:
                self.shelf.result.act(f"{begun.artifact.path}: its copy for the transfer was left behind")
            begun.way.tidy(begun.artifact)
        build, found = begun.build, {}
        for plan in begun.plans:
            self._polish(plan)
            switched = self.have_template(plan)
            for image in self.shelf.images(build.identifier, plan.store):
                if image is plan.image or version_of(image) == build.version:
                    continue
                if image.state == ERROR and "CLOUDIMG_EXPIRED" not in image.attributes:
                    self.shelf.remove(image, "its transfer failed")
                else:
                    self.shelf.expire(image, f"is replaced by version {build.version}")
            found[plan.store.name] = {"image": plan.image.id if plan.image else None, "template": switched.id}
        return {"identifier": build.identifier, "version": build.version, "datastores": found}

    def drop(self, begun: Begun) -> None:
        """Give up a build that was begun: what was offered for its transfer goes."""
        begun.offer.close()
        # Where a transfer may still be under way, its file stays for the next run to remove.
        if not self.cloud.check_mode and not any(
            each.image and each.image.state in (0, LOCKED) for each in begun.plans
        ):
            with contextlib.suppress(FactoryError):
                begun.way.tidy(begun.artifact)

    def _artifact(self, path: Path, build: Descriptor) -> Artifact:
        formats = [self.wish.format] if self.wish.format else list(FORMATS)
        found = [artifact for name in formats for artifact in build.artifacts if artifact.format == name]
        if not found:
            raise FactoryError(
                f"has no artifact in {' or '.join(formats)}",
                where=str(path),
                key="artifacts",
                mend="add qcow2 or raw to image_formats and build again",
            )
        if self.wish.persistent and found[0].format == "qcow2":
            self.shelf.warnings.append(
                f"{build.image} {build.version}: a persistent qcow2 image grows to its full size, serves one VM only, and is "
                "copied at each start in some datastores; leave persistent false, or publish raw"
            )
        return found[0]

    def _plan(self, build: Descriptor, artifact: Artifact, store: Datastore) -> Plan:
        values: dict[str, t.Any] = {
            name: getattr(build, name)
            for name in (
                *("image", "identifier", "version", "title", "description", "memory", "cpu", "groups", "attributes"),
                *("created", "expires"),
            )
        }
        values.update(
            os=dataclasses.asdict(build.os),
            format=artifact.format,
            size=artifact.size,
            virtual_size=artifact.virtual_size,
            checksums=artifact.checksums,
            datastore={"id": store.id, "name": store.name},
            dev_prefix=self.wish.dev_prefix,
            persistent=self.wish.persistent,
            firmware=self.wish.firmware,
            context=dict(self.wish.context),
            disks=[],
            image_id="",
            image_name="",
        )
        text, where = self.wish.images
        pairs = [pair for pair in template.render(text, values, where) if pair[0] not in ("PATH", "SOURCE")]
        pairs = with_ours(pairs, list(self.wish.attributes.items()), tags(build, artifact, self.wish.contracts))
        check_name(pairs, where)
        return Plan(build, artifact, store, values, pairs, self._known(build, artifact, store))

    def _known(self, build: Descriptor, artifact: Artifact, store: Datastore) -> Image | None:
        """The image that is there already: the best of them."""
        same = [image for image in self.shelf.images(build.identifier, store) if version_of(image) == build.version]
        order = {LOCKED: 2, DISABLED: 3}
        same.sort(key=lambda i: (i.state == ERROR, "CLOUDIMG_EXPIRED" in i.attributes, order.get(i.state, 1)))
        wrong = next((i for i in same if i.attributes.get("CLOUDIMG_SHA256") != artifact.checksums["sha256"]), None)
        if wrong and wrong.state != ERROR:
            raise FactoryError(
                f"version {build.version} is there already, with other content",
                where=called(wrong),
                key="version",
                mend="raise image_version and build again",
            )
        return same[0] if same else None

    def _must_be_possible(self, plan: Plan) -> None:
        """Refuse what is sure to fail before anything is sent."""
        build, store = plan.build, plan.store
        newer = [
            image
            for image in self.shelf.images(build.identifier, store)
            if version_key(version_of(image)) > version_key(build.version)
            and "CLOUDIMG_EXPIRED" not in image.attributes
            and image.state != ERROR
        ]
        if newer:
            raise FactoryError(
                f"version {build.version} is older than {version_of(newer[-1])}, which is there",
                where=called(newer[-1]),
                key="version",
                mend="raise image_version and build again, or go back by state=rolled_back",
            )
        current = self.template_of(plan)
        if current:
            self.shelf.must_be_unlocked(current)
        self.must_have_its_name(plan)
        if plan.image is not None:
            return
        owner = self.cloud.me[0]
        clash = next((i for i in self.cloud.images if i.name == plan.name and i.uid == owner), None)
        if clash:
            raise FactoryError(
                f"the name {plan.name} is taken by an image that is not of this build",
                where=called(clash),
                key="NAME",
                mend="rename that image, or give an image_template with another NAME",
            )
        size = -(-plan.artifact.virtual_size // (1 << 20))
        if self.wish.capacity and store.free is not None and size > store.free:
            raise FactoryError(
                f"has room for {store.free} MiB, and the image may grow to {size} MiB",
                where=f"datastore {store.name}",
                key="datastores",
                mend="make room there, or name another datastore",
            )

    def _failed_before(self, plan: Plan) -> None:
        """Make way where an earlier transfer failed, or died with the front-end."""
        image = plan.image
        if image is None:
            return
        stuck = image.state == LOCKED and time.time() - image.registered > self.wish.stuck
        if (image.state == ERROR and "CLOUDIMG_EXPIRED" not in image.attributes) or stuck:
            self.shelf.must_be_unlocked(image)
            reason = f"is LOCKED for more than {self.wish.stuck:g} s" if stuck else "its transfer failed"
            self.shelf.result.act(f"{called(image)}: {reason}")
            self.cloud.delete(image)
            plan.image = None

    def _register(self, plan: Plan, path: str, way: Way) -> None:
        self.shelf.result.act(f"image {plan.name}: is not in datastore {plan.store.name} yet")
        pairs = [*plan.pairs, ("PATH", path)]
        if way.verifies:
            pairs.append(("MD5", plan.artifact.checksums["md5"]))
        self.waiter.phase(f"register {plan.name}")
        plan.image = self.cloud.make_image(pairs, self.about(plan.name, plan.pairs, plan.store), plan.store)
        plan.made = True

    def _wait(self, plans: t.Sequence[Plan]) -> None:
        for plan in plans:
            image = plan.image
            if image is None or self.cloud.check_mode:
                continue
            self.waiter.until_ready(image, hide=True)
            if image.state == ERROR and "CLOUDIMG_EXPIRED" not in image.attributes:
                said = self.cloud.front.hide(str(image.attributes.get("ERROR") or "no reason is told"))
                # It must not stay visible half made, and its name is needed.
                self.cloud.delete(image)
                mend = "mend what OpenNebula names, then run this again"
                if restricted(said):
                    safe = plan.store.safe or "none"
                    mend = (
                        f"datastore {plan.store.name} takes files from its SAFE_DIRS only ({safe}): give one of them as "
                        "directory, or change RESTRICTED_DIRS and SAFE_DIRS of the datastore"
                    )
                raise FactoryError(f"its transfer failed: {said}", where=called(image), mend=mend)

    def _polish(self, plan: Plan) -> None:
        """Have the image's name, attributes and rights as wished; no byte of it moves."""
        image, result = plan.image, self.shelf.result
        if image is None:
            return
        if "CLOUDIMG_EXPIRED" in image.attributes:
            result.act(f"{called(image)}: has expired, and is published again")
            self.shelf.revive(image, plan.name, self.wish.mode)
        elif image.state == DISABLED:
            result.act(f"{called(image)}: is disabled")
            self.shelf.must_be_unlocked(image)
            self.cloud.enable(image, True)
        self.same(image, plan.name, [pair for pair in plan.pairs if pair[0] not in NOT_ATTRIBUTES], plan.made)
        persistent = template.plain(plan.pairs, "PERSISTENT").upper() == "YES"
        if image.persistent != persistent:
            if image.used or image.state == USED:
                self.shelf.warnings.append(f"{called(image)}: persistent cannot be changed while VMs use it")
            else:
                result.act(f"{called(image)}: persistent is {image.persistent}")
                self.cloud.do(image, "persistent", persistent)
                image.persistent = persistent
        self.rights(image, self.wish.mode, plan.made)
