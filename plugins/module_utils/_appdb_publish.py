# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Bringing a version of a virtual appliance into a state: published, verified, or disabled.

AppDB has at most one working version of an appliance, which can be changed, and one published, which cannot. A working
version goes through verify or verifypublish, verifing or verifingpublish, to verified or failed; whoever cancels it puts it
back to init. Publishing archives what was published before. Where AppDB is told not to check integrity itself, it publishes
at once.
"""

from __future__ import annotations

import dataclasses
import time
import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils import _appdb_document as document
from ansible_collections.cloudimg.factory.plugins.module_utils._appdb import AppDb, same_version
from ansible_collections.cloudimg.factory.plugins.module_utils._appdb_document import Appliance, Version
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result


@dataclasses.dataclass
class Desk:
    """Publishes and retires versions of one appliance.

    :param wait: whether the verdict of a check is waited for.
    :param timeout: seconds to wait for it.
    :param interval: seconds between two looks.
    """

    appdb: AppDb
    check_mode: bool = False
    wait: bool = True
    timeout: float = 1800.0
    interval: float = 15.0
    warnings: list[str] = dataclasses.field(default_factory=list)

    def have(self, wanted: Version, *, publish: bool) -> Result:
        """Have a version published, or only verified."""
        there = self.appdb.get()
        result = Result()
        known = same_version(there, wanted.version)
        before = known[0] if known else None
        if before and before.published:
            self._published(there, wanted, before, result)
        else:
            self._work(there, wanted, result, publish=publish)
        return self._told(result, before, wanted)

    def retire(self, version: str) -> Result:
        """Have a version offered no longer. One that AppDB does not have, or has archived, is not offered."""
        there = self.appdb.get()
        result = Result()
        known = same_version(there, version)
        before = known[0] if known else None
        if before is None:
            self.warnings.append(f"{self._name(version)}: AppDB has no such version")
        elif before.published and before.enabled and not before.archived:
            result.act(f"{self._name(version)}: is published, shall be disabled")
            self._switch(there, before, enabled=False)
        elif not before.published and before.checking:
            result.act(f"{self._name(version)}: is {before.status}, shall not be published")
            self._switch(there, before, status="init")
        return self._told(result, before, None)

    def _published(self, there: Appliance, wanted: Version, found: Version, result: Result) -> None:
        """A published version cannot be changed; it can be enabled, if it is the same."""
        name = self._name(wanted.version)
        differ = document.differences(wanted, found)
        same = document.same_content(wanted, found)
        if same is False or (same is None and {"url", "size"} & set(differ)):
            raise FactoryError(
                f"version {wanted.version} is published already, with other content",
                where=f"AppDB appliance {self.appdb.software}",
                key="version",
                mend="raise image_version and build again",
            )
        if found.archived:
            newer = next(
                (each.version for each in there.versions if each.published and not each.archived), "another one"
            )
            self.warnings.append(
                f"{name}: is archived since {newer} was published; AppDB offers only the latest version"
            )
            return
        for key, (has, wish) in differ.items():
            self.warnings.append(
                f"{name}: {key} is {has!r} and should be {wish!r}; AppDB cannot change a published version: raise "
                "image_version and build again, or leave it"
            )
        if not found.enabled:
            result.act(f"{name}: is disabled, shall be published")
            self._switch(there, found, enabled=True)

    def _work(self, there: Appliance, wanted: Version, result: Result, *, publish: bool) -> None:
        """There is no published version of that name: make or change the working one."""
        name = self._name(wanted.version)
        found = next((each for each in same_version(there, wanted.version) if each.working), None)
        found = found or next((each for each in there.versions if each.working), None)
        differ = document.differences(wanted, found) if found else {}
        if found and not differ and found.checking:
            if not self._checks_for(found, publish):
                # It is being verified only; when that is done, it is published.
                self._verdict(wanted, publish=False)
                self._submit(
                    there, wanted, found, result, f"{name}: is {found.status}, shall be published", publish=True
                )
            else:
                self._verdict(wanted, publish=publish)
            return
        if found and not differ and found.status == "verified" and not publish:
            return
        if found is None:
            reason = f"{name}: is not in AppDB yet"
        elif found.version != wanted.version:
            reason = f"{name}: is not in AppDB yet; the working version {found.version} becomes it"
        elif differ:
            reason = f"{name}: " + ", ".join(f"{key} differs" for key in differ)
        else:
            reason = f"{name}: is {found.status}, shall be {'published' if publish else 'verified'}"
        if found and differ and found.checking:
            result.act(f"{self._name(found.version)}: its check is cancelled, since it changes")
            self._switch(there, found, status="init")
        self._submit(there, wanted, found, result, reason, publish=publish)

    def _submit(
        self, there: Appliance, wanted: Version, found: Version | None, result: Result, reason: str, *, publish: bool
    ) -> None:
        result.act(reason)
        if self.check_mode:
            return
        number = self.appdb.number(there)
        sent = wanted
        if found:
            # The identifiers make AppDB change what is there, instead of adding to it.
            image = wanted.image
            if image and found.image:
                image = dataclasses.replace(image, group_id=found.image.group_id, instance_id=found.image.instance_id)
            sent = dataclasses.replace(wanted, id=found.id, image=image)

        changes = bool(found and document.differences(wanted, found))

        def done(now: Appliance) -> bool:
            for each in same_version(now, wanted.version):
                if document.same_content(wanted, each) is False or document.differences(wanted, each):
                    continue
                # What looks as it did before may be so because the request never arrived.
                unmoved = found and not changes and (each.status, each.published) == (found.status, found.published)
                if (each.published or each.checking or each.status in ("verified", "failed")) and not unmoved:
                    return True
            return False

        self.appdb.phase(f"submitting {wanted.version}")
        self.appdb.change("POST" if found else "PUT", document.dump(number, sent, publish=publish), done)
        self._verdict(wanted, publish=publish)

    def _switch(self, there: Appliance, version: Version, **change: t.Any) -> None:
        """Enable, disable, or end the check of a version."""
        if self.check_mode:
            return

        def done(now: Appliance) -> bool:
            each = next((each for each in now.versions if each.id == version.id), None)
            return each is not None and all(getattr(each, key) == value for key, value in change.items())

        xml = document.switch(self.appdb.number(there), version, **change)
        self.appdb.change("POST", xml, done)

    def _verdict(self, wanted: Version, *, publish: bool) -> None:
        """Wait until AppDB has verified (and published) a version; raises FactoryError where it will not."""
        if self.check_mode or not self.wait:
            return
        name = self._name(wanted.version)
        end = time.monotonic() + self.timeout
        status = ""
        between = 3
        while True:
            found = next(iter(same_version(self.appdb.get(), wanted.version)), None)
            if found is None:
                raise FactoryError("vanished from AppDB", where=name, mend="see in AppDB who removed it")
            if found.published or (found.status == "verified" and not publish):
                self._is_ours(name, wanted, found)
                return
            if not found.checking:
                # AppDB notes the verdict first and publishes then.
                between -= 1
                if found.status != "verified" or not between:
                    self._failed(name, found)
            if found.status != status:
                status = found.status
                self.appdb.phase(f"AppDB: {status}")
            if time.monotonic() >= end:
                raise FactoryError(
                    f"AppDB is still {found.status} after {self.timeout:g} s",
                    where=name,
                    key="timeout",
                    mend="run this again: it waits for the same check",
                )
            self.appdb.pause(min(self.interval, max(0.0, end - time.monotonic())))

    @staticmethod
    def _is_ours(name: str, wanted: Version, found: Version) -> None:
        """Where AppDB has fetched the image itself, it tells what is really served."""
        if document.same_content(wanted, found) is False and wanted.image and found.image:
            raise FactoryError(
                f"AppDB fetched {found.image.size} bytes from {found.image.url} whose {found.image.hash} is "
                f"{found.image.checksum[:16]}…, not the artifact ({wanted.image.size} bytes, {wanted.image.checksum[:16]}…)",
                where=name,
                key="artifact_url",
                mend="disable this version, serve the artifact there, raise image_version and build again",
            )

    def _failed(self, name: str, found: Version) -> t.NoReturn:
        said = ": ".join(
            part for part in ((found.image.verdict, found.image.verdict_text) if found.image else ()) if part
        )
        raise FactoryError(
            f"AppDB has not verified it, its status is {found.status}" + (f" ({said})" if said else ""),
            where=name,
            key="status",
            mend="check that AppDB can fetch the URL and that size and checksum are right, then run this again",
        )

    @staticmethod
    def _checks_for(found: Version, publish: bool) -> bool:
        return not publish or found.status in ("verifypublish", "verifingpublish")

    def _name(self, version: str) -> str:
        return f"AppDB appliance {self.appdb.software} {version}"

    def _told(self, result: Result, before: Version | None, wanted: Version | None) -> Result:
        """Complete a result by what is there now."""
        after = before
        version = wanted.version if wanted else before.version if before else ""
        if result.changed and self.check_mode:
            after = wanted or (dataclasses.replace(before, enabled=False) if before else None)
        elif result.changed:
            after = next(iter(same_version(self.appdb.get(), version)), None)
        result.diff = {
            "before": document.described(before) if before else {},
            "after": document.described(after) if after else {},
        }
        publication = {"appliance": self.appdb.software, "version": version}
        if after and after.id:
            image = after.image.identifier if after.image else ""
            publication |= {"id": after.id, "identifier": image or after.identifier}
        result.extra |= {"publication": publication, "version": result.diff["after"]}
        return result
