# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Appliances in a private marketplace of an OpenNebula cloud: C(one.marketapp.*), made from an image that is registered there."""

from __future__ import annotations

import base64
import dataclasses
import time
import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor import Descriptor
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula import Refused
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_cloud import READY, USED, Cloud
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_directory import About, vm_template
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_shelf import Shelf, version_of
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_template import Pairs, quote, to_xml
from ansible_collections.cloudimg.factory.plugins.module_utils._versions import version_key

_READY, _LOCKED, _ERROR, _DISABLED = 1, 2, 3, 4


@dataclasses.dataclass
class App:
    """An appliance there."""

    id: int
    name: str
    state: int
    version: str


@dataclasses.dataclass
class Market:
    """A private marketplace, by its name or number.

    :param timeout: seconds to wait for a transfer; ``interval`` between two looks.
    """

    cloud: Cloud
    name: str
    timeout: float = 3600.0
    interval: float = 5.0
    result: Result = dataclasses.field(default_factory=Result)

    def publish(self, build: Descriptor, about: About) -> Result:
        """Have a version of an image in it, in the place of those before; its image has to be registered and READY."""
        number = self._number()
        name = f"{build.image}-{build.version}"
        there = self._apps(number, build.identifier)
        newer = [app for app in there if version_key(app.version) > version_key(build.version)]
        if newer:
            raise FactoryError(
                f"version {build.version} is older than {newer[-1].version}, which is there",
                where=f"marketplace {self.name}",
                key="version",
                mend="raise image_version and build again",
            )
        found = next((app for app in there if app.version == build.version and app.state != _ERROR), None)
        if found is None:
            for app in [app for app in there if app.state == _ERROR]:
                self._delete(app, "its transfer failed")
            found = self._make(number, name, build, about)
        elif found.state == _DISABLED:
            self.result.act(f"app {name} ({found.id}): is disabled")
            self._do("marketapp.enable", found.id, True)
        if found and not self.cloud.check_mode:
            self._wait(found)
        for app in there:
            if app.version != build.version and app.state != _ERROR:
                self._delete(app, f"is replaced by version {build.version}")
        return self.result

    def remove(self, identifier: str, version: str | None) -> Result:
        """Have a version of an image in it no longer; all without ``version``."""
        for app in self._apps(self._number(), identifier):
            if not version or app.version == version:
                self._delete(app, "shall not be there")
        return self.result

    def _number(self) -> int:
        pool = self.cloud.front.call("marketpool.info", -2, -1, -1).MARKETPLACE
        known = {str(each.NAME): int(each.ID) for each in pool}
        if self.name in known:
            return known[self.name]
        if self.name.isdigit() and int(self.name) in known.values():
            return int(self.name)
        raise FactoryError(
            f"there is no marketplace {self.name}", key="marketplace", mend=f"name one of these: {', '.join(known)}"
        )

    def _apps(self, number: int, identifier: str) -> list[App]:
        found = []
        for raw in self.cloud.front.call("marketapppool.info", -2, -1, -1).MARKETPLACEAPP:
            about = raw.TEMPLATE or {}
            if (about.get("CLOUDIMG_ID"), int(raw.MARKETPLACE_ID)) != (identifier, number):
                continue
            if int(raw.UID) == self.cloud.me[0]:
                version = str(about.get("CLOUDIMG_VERSION") or "")
                found.append(App(int(raw.ID), str(raw.NAME), int(raw.STATE), version))
        return sorted(found, key=lambda app: version_key(app.version))

    def _make(self, number: int, name: str, build: Descriptor, about: About) -> App | None:
        images = Shelf(self.cloud).images(build.identifier)
        ready = [image for image in images if version_of(image) == build.version and image.state in (READY, USED)]
        if not ready and not self.cloud.check_mode:
            raise FactoryError(
                f"version {build.version} of {build.image} has no READY image there",
                where=self.cloud.front.http.masks.url(self.cloud.front.http.base),
                mend="register it by opennebula_appliance first",
            )
        self.result.act(f"app {name}: is not in marketplace {self.name} yet")
        if self.cloud.check_mode:
            return None
        boot = "\n".join(_line(key, value) for key, value in vm_template(build, about).items())
        pairs: Pairs = [
            ("NAME", name),
            ("ORIGIN_ID", str(ready[0].id)),
            ("TYPE", "IMAGE"),
            ("VERSION", build.version),
            ("DESCRIPTION", about.summary or build.title),
            ("PUBLISHER", about.publisher),
            ("APPTEMPLATE64", _encoded('DEV_PREFIX="vd"\nTYPE="OS"')),
            ("VMTEMPLATE64", _encoded(boot)),
            ("CLOUDIMG_ID", build.identifier),
            ("CLOUDIMG_VERSION", build.version),
        ]

        def made() -> int | None:
            return next((app.id for app in self._apps(number, build.identifier) if app.version == build.version), None)

        app = self.cloud.front.make("marketapp.allocate", (to_xml(pairs), number), made)
        return App(app, name, _LOCKED, build.version)

    def _wait(self, app: App) -> None:
        end = time.monotonic() + self.timeout
        while True:
            app.state = int(self.cloud.front.call("marketapp.info", app.id).STATE)
            if app.state == _READY:
                return
            where = f"app {app.name} ({app.id})"
            if app.state == _ERROR:
                raise FactoryError(
                    "its transfer failed", where=where, mend="see the front-end's log, then run this again"
                )
            if time.monotonic() >= end:
                raise FactoryError(
                    f"is not READY after {self.timeout:g} s",
                    where=where,
                    key="timeout",
                    mend="run this again: it waits for it",
                )
            self.cloud.front.http.pause(self.interval)

    def _delete(self, app: App, reason: str) -> None:
        self.result.act(f"app {app.name} ({app.id}): {reason}")
        try:
            self._do("marketapp.delete", app.id)
        except Refused as exc:
            if exc.kind != "missing":
                raise

    def _do(self, method: str, *arguments: t.Any) -> None:
        if not self.cloud.check_mode:
            self.cloud.front.call(method, *arguments)


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode("utf-8")).decode("ascii")


def _line(name: str, value: t.Any) -> str:
    if isinstance(value, dict):
        return f"{name.upper()} = [ {', '.join(f'{key.upper()} = {quote(each)}' for key, each in value.items())} ]"
    return f"{name.upper()} = {quote(value)}"
