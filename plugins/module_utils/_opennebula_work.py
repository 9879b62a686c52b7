# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""From the options of M(cloudimg.factory.opennebula_appliance) to what is done at the front-end."""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _opennebula_template as template
from ansible_collections.cloudimg.factory.plugins.module_utils import _opennebula_transfer as transfer
from ansible_collections.cloudimg.factory.plugins.module_utils import _serve_sftp
from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor import Descriptor
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula import Front
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_batch import Batch, Row
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_boot import Disk, Wish
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_cloud import Cloud
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_publish import Desk
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_shelf import Shelf, described
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_wait import Waiter
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

_SPAN = re.compile(r"(\d+)\s*([hdw]?)")
_SECONDS = {"": 1, "h": 3600, "d": 86400, "w": 7 * 86400}
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,40}")


def seconds(text: str) -> float:
    """A time span such as C(7d) in seconds; raises FactoryError where it is none."""
    found = _SPAN.fullmatch(str(text).strip())
    if not found:
        raise FactoryError(
            f"{text!r} is no time span", key="clean_after", mend="give seconds, or a number with h, d or w"
        )
    return float(int(found[1]) * _SECONDS[found[2]])


class Job:
    """One run of the module, whose options are ``given``."""

    def __init__(self, front: Front, given: t.Mapping[str, t.Any], progress: Progress, check_mode: bool) -> None:
        self.front = front
        self.given = given
        self.progress = progress
        self.cloud = Cloud(front, check_mode)
        self.shelf = Shelf(self.cloud, pause=front.http.pause)

    def run(self, rows: t.Sequence[Row]) -> Result:
        """Do what the state asks for, with these builds.

        :raises FactoryError: what is wrong. With C(descriptors) each build has been tried, and the details are the result.
        """
        given, state = self.given, self.given["state"]
        for key in ("mode", "template_mode"):
            if given[key] is not None and not re.fullmatch(r"[0-7]{3}", str(given[key])):
                raise FactoryError(
                    f"{given[key]!r} are no rights", key=key, mend='give three octal digits, such as "640"'
                )
        wish = self._wish() if state == "present" else None
        clean_after = seconds(given["clean_after"]) if state == "cleaned" else 0.0
        builds = [row.build for row in rows if row.build]
        identifiers = {build.identifier for build in builds}
        if given["identifier"]:
            identifiers = {given["identifier"]}
        uid = self.cloud.number("user", given["owner"])
        self.shelf.owners = frozenset({uid} - {-1})
        before = self._described(identifiers)
        if wish:
            wish.uid, wish.gid = uid, self.cloud.number("group", given["group"])
            waiter = Waiter(self.cloud, float(given["timeout"]), max(0.05, float(given["interval"])))
            self._publish(Desk(self.shelf, wish, waiter), rows)
        elif state == "cleaned":
            self.shelf.clean(given["identifier"], clean_after)
        else:
            self._retire(state, builds)
        return self._told(identifiers, before, rows)

    def _publish(self, desk: Desk, rows: t.Sequence[Row]) -> None:
        urls = self.given["artifact_urls"]
        for number, row in enumerate(rows):
            row.way = transfer.Url(urls[number]) if urls and self.given["transfer"] == "url" else desk.wish.way
        if self.given["descriptors"] is None:
            # The one that there is fails as the module does.
            for row in rows:
                row.result = self.shelf.result
                row.publication = desk.publish(row.path, t.cast("Descriptor", row.build))
        else:
            Batch(desk).run(rows)
            self.shelf.result = Result()
            for row in rows:
                self.shelf.result.changed |= row.result.changed
                self.shelf.result.actions += row.result.actions
        for row in rows:
            if row.publication:
                row.publication = {"api_url": self.given["api_url"], **row.publication}

    def _retire(self, state: str, builds: t.Sequence[Descriptor]) -> None:
        given = self.given
        reason = str(given["reason"] or "").strip()
        if not reason:
            raise FactoryError("must not be empty", key="reason", mend="say why")
        identifier = given["identifier"] or builds[0].identifier
        version = str(given["version"] or builds[0].version)
        if state == "rolled_back":
            self.shelf.roll_back(identifier, version, reason)
        else:
            self.shelf.retire(identifier, version, reason, absent=state == "absent")

    def _told(self, identifiers: t.Collection[str], before: dict[str, t.Any], rows: t.Sequence[Row]) -> Result:
        result, after = self.shelf.result, self._described(identifiers)
        result.diff = {"before": before, "after": after}
        result.extra |= {"requests": self.front.requests, "images": after["images"], "templates": after["templates"]}
        if self.given["descriptors"] is not None:
            result.extra["builds"] = [row.told() for row in rows]
        elif len(rows) == 1:
            if rows[0].publication:
                result.extra["publication"] = rows[0].publication
            result.image = rows[0].build.document() if rows[0].build else None
        failed = [row for row in rows if row.failure]
        if failed:
            first = t.cast("FactoryError", failed[0].failure)
            said = FactoryError(first.problem, where=first.where, key=first.key)
            raise FactoryError(
                f"{len(failed)} of {len(rows)} builds are not published, the first of them is {failed[0].name}: {said}",
                mend=first.mend or "mend that, then run this again",
                details={name: value for name, value in result.dump(0.0).items() if name != "elapsed"},
            )
        return result

    def _described(self, identifiers: t.Collection[str]) -> dict[str, t.Any]:
        def rows(things: t.Iterable[t.Any]) -> list[dict[str, t.Any]]:
            wanted = [each for each in things if not identifiers or each.attributes["CLOUDIMG_ID"] in identifiers]
            return [described(each) for each in wanted]

        return {"images": rows(self.shelf.images()), "templates": rows(self.shelf.templates())}

    def _wish(self) -> Wish:
        given = self.given
        disks = [Disk(row["name"], int(row["size"]), row["format"]) for row in given["disks"]]
        for index, disk in enumerate(disks):
            if not _LABEL.fullmatch(disk.name) or disk.size < 1 or [each.name for each in disks].count(disk.name) > 1:
                raise FactoryError(
                    f"{disk.name!r} of {disk.size} MiB cannot be",
                    key=f"disks[{index}]",
                    mend="give names of letters, digits, '.', '_' and '-', each once, and sizes in MiB",
                )
        if given["artifact_urls"] and len(given["artifact_urls"]) != len(given["descriptors"] or []):
            raise FactoryError(
                f"has {len(given['artifact_urls'])} URLs for {len(given['descriptors'] or [])} descriptors",
                key="artifact_urls",
                mend="give one for each of descriptors, in their order",
            )
        if not given["datastores"]:
            raise FactoryError("is empty", key="datastores", mend="name at least one")
        chosen = {name: Path(given[name]) if given[name] else None for name in ("image_template", "vm_template")}
        return Wish(
            datastores=list(dict.fromkeys(given["datastores"])),
            way=self._way(),
            images=template.load(chosen["image_template"], template.IMAGE),
            templates=template.load(chosen["vm_template"], template.TEMPLATE),
            contracts=given["contracts"],
            attributes=_texts(given["attributes"], "attributes"),
            context=_texts(given["context"], "context"),
            capacity=given["check_capacity"],
            disks=disks,
            firmware=given["uefi_firmware"] if given["uefi"] else "",
            dev_prefix=given["dev_prefix"],
            persistent=given["persistent"],
            mode=given["mode"],
            template_mode=given["template_mode"] or given["mode"],
            format=given["format"],
            stuck=float(given["stuck_after"]),
        )

    def _way(self) -> transfer.Way:
        given = self.given
        if given["transfer"] == "http":
            return transfer.Here(given["http_address"], given["http_port"], self.progress)
        if given["transfer"] == "url":
            if not given["artifact_url"] and not given["artifact_urls"]:
                raise FactoryError(
                    "is missing",
                    key="artifact_url",
                    mend="say where the artifact is served, or choose another transfer",
                )
            return transfer.Url(given["artifact_url"] or "")  # with artifact_urls, each build has its own
        account = None
        if given["transfer"] == "ssh":
            paths = [Path(given[key]) if given[key] else None for key in ("ssh_identity", "ssh_known_hosts")]
            account = _serve_sftp.Account(given["ssh_host"], given["ssh_user"], given["ssh_port"], paths[0], paths[1])
        return transfer.Folder(given["directory"], self.progress, account)


def _texts(given: t.Mapping[str, t.Any], key: str) -> dict[str, str]:
    for name in given:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(name)) or str(name).upper() in ("NAME", "PATH", "DISK"):
            raise FactoryError(
                "cannot be the name of an attribute", key=f"{key}.{name}", mend="use letters, digits and '_' only"
            )
    return {str(name).upper(): str(value) for name, value in given.items() if value not in (None, "")}
