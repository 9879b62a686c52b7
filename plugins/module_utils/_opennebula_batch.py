# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Many builds at one front-end in one run: each pool is listed once, some transfers go on at the same time, and each
build fails by itself.
"""

from __future__ import annotations

import dataclasses
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor import Descriptor
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import Cancelled, FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._http import Unreachable
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula import Refused
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_publish import Begun, Desk
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_transfer import Way

AT_ONCE = 4
"""Transfers that a front-end is given at the same time: as many copies stand in its safe directory at most. Its own limit for one
datastore driver is 15 by default (oned.conf, C(DATASTORE_MAD), C(-t))."""


@dataclasses.dataclass
class Row:
    """One build of many.

    :ivar result: what was done for it.
    :ivar publication: what finds it there again; None where it failed.
    :ivar failure: why it is not published.
    """

    path: Path
    build: Descriptor | None = None
    way: Way | None = None
    result: Result = dataclasses.field(default_factory=Result)
    publication: dict[str, t.Any] | None = None
    failure: FactoryError | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.build.image} {self.build.version}" if self.build else str(self.path)

    def told(self) -> dict[str, t.Any]:
        """The row for a module's result."""
        return {
            "descriptor": str(self.path),
            "changed": self.result.changed,
            "actions": self.result.actions,
            "publication": self.publication,
            "problem": str(self.failure) if self.failure else "",
        }


class Batch:
    """Publishes rows by one desk."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self._open: list[tuple[Row, Begun]] = []
        self._away: FactoryError | None = None

    def run(self, rows: t.Sequence[Row]) -> None:
        """Publish each row; one that fails says why, and the others go on.

        :raises Cancelled: the owner of the work went away.
        """
        failed: set[str] = set()
        try:
            for row in rows:
                if row.failure or row.build is None or row.way is None:
                    continue
                image, at_once = row.build.identifier, 1 if row.way.alone else AT_ONCE
                while len(self._open) >= at_once or any(_touch(begun.build, row.build) for _row, begun in self._open):
                    failed |= self._finish()
                if image in failed:
                    # What its other version has left half done is not as it was listed.
                    self.desk.cloud.again()
                failed |= self._begin(row, row.build, row.way)
            while self._open:
                self._finish()
        finally:
            for _row, begun in self._open:
                self.desk.drop(begun)

    def _begin(self, row: Row, build: Descriptor, way: Way) -> set[str]:
        """Returns the identifier of the image where that fails."""
        if self._away:
            # The front-end has been waited for; it is not for each build.
            row.failure = self._away
            return set()
        self.desk.shelf.result = row.result
        try:
            begun = self.desk.begin(row.path, build, way)
        except FactoryError as exc:
            return self._failed(row, build, exc)
        self._open.append((row, begun))
        for image in [plan.image for plan in begun.missing if plan.image and not self.desk.cloud.check_mode]:
            self.desk.waiter.hide(image)
        return set()

    def _finish(self) -> set[str]:
        row, begun = self._open.pop(0)
        self.desk.shelf.result = row.result
        try:
            row.publication = self.desk.finish(begun)
        except FactoryError as exc:
            return self._failed(row, begun.build, exc)
        return set()

    def _failed(self, row: Row, build: Descriptor, failure: FactoryError) -> set[str]:
        if isinstance(failure, Cancelled):
            raise failure
        row.failure = failure
        if isinstance(failure, Unreachable) or (isinstance(failure, Refused) and failure.kind == "authentication"):
            self._away = failure
        return {build.identifier}


def _touch(one: Descriptor, other: Descriptor) -> bool:
    """Whether two builds must not be under way together.

    Another version of the same image has to be there before it is replaced; the same bytes have one name in a safe directory.
    """
    common = {artifact.checksums.get("sha256") for artifact in one.artifacts}
    return one.identifier == other.identifier or any(each.checksums.get("sha256") in common for each in other.artifacts)
