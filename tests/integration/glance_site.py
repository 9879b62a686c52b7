# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small build, and a real Glance to publish it in by the module itself."""

from __future__ import annotations

import dataclasses
import os
import typing as t
from pathlib import Path
from unittest import mock

import yaml
from ansible.module_utils.basic import AnsibleModule
from catalogue_site import IMAGE, make_build

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _glance_upload, _http
from ansible_collections.cloudimg.factory.tests.tools import in_process
from ansible_collections.cloudimg.factory.tests.tools.glance_server import GlanceServer
from ansible_collections.cloudimg.factory.tests.tools.glance_wsgi import USERS

SECRET, ADMIN = USERS
__all__ = ["ADMIN", "IMAGE", "SECRET", "Done", "Site", "make_build"]


@dataclasses.dataclass
class Done:
    """What the module has returned."""

    values: dict[str, t.Any]
    output: str

    def __getattr__(self, name: str) -> t.Any:
        try:
            return self.values[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclasses.dataclass
class Site:
    """Builds, a C(clouds.yaml), and a cloud."""

    root: Path
    server: GlanceServer

    def __post_init__(self) -> None:
        self.clouds(self.server.url)

    def clouds(self, url: str, secret: str = SECRET, **more: str) -> None:
        """Have C(clouds.yaml) lead there; ``more`` is for both of its clouds."""
        credential = {"application_credential_id": "jane", "application_credential_secret": secret}
        with_keystone = {
            "auth_type": "v3applicationcredential",
            "auth": {"auth_url": f"{url}/identity/v3", **credential},
            "region_name": "R",
        }
        without = {"auth_type": "none", "auth": {"endpoint": url}}
        text = yaml.safe_dump({"clouds": {"keystone": {**with_keystone, **more}, "plain": {**without, **more}}})
        # Another process may be reading it.
        new = self.root / f".clouds-{os.getpid()}.yaml"
        new.write_text(text, encoding="utf-8")
        new.replace(self.root / "clouds.yaml")

    def build(self, version: str) -> Path:
        """The descriptor of a build; each has other data."""
        path = self.root / "builds" / version / "descriptor.json"
        return path if path.exists() else make_build(path.parent, version)

    def about(self, version: str) -> _descriptor.Descriptor:
        return _descriptor.load(self.build(version))

    def run(self, *, check: bool = False, module: str = "glance_image", **options: t.Any) -> Done:
        """Run the module; what takes a server long to notice is short here."""
        if not {"cloud", "auth", "endpoint"} & set(options):
            options["cloud"] = "plain"
        kept = {key: value for key, value in os.environ.items() if not key.startswith("OS_")}
        kept.update({"HOME": str(self.root), "OS_CLIENT_CONFIG_FILE": str(self.root / "clouds.yaml")})
        warned: list[str] = []  # a process that has loaded Ansible's controller would show them, not return them
        with (
            mock.patch.dict(os.environ, kept, clear=True),
            mock.patch.object(_http, "DELAYS", (0.05, 0.05)),
            mock.patch.object(_glance_upload, "SETTLE", 1.0),
            mock.patch.object(AnsibleModule, "warn", lambda _module, text: warned.append(text)),
        ):
            values, output = in_process.run(module, check=check, _ansible_remote_tmp=str(self.root), **options)
        return Done({**values, "warnings": warned}, output)

    def publish(self, version: str, **options: t.Any) -> Done:
        """Publish a build; raises where the module fails."""
        done = self.run(descriptor=str(self.build(version)), **options)
        assert not done.values.get("failed"), done.output
        return done

    def refused(self, version: str, **options: t.Any) -> str:
        """The message with which publishing fails."""
        done = self.run(descriptor=str(self.build(version)), **options)
        assert done.values.get("failed"), done.output
        assert "\n" not in done.msg and "; " in done.msg, done.msg
        return str(done.msg)

    def state(self) -> list[tuple[t.Any, ...]]:
        """All that the project has there, without what differs from one run to the next."""
        skip = {"id", "created_at", "updated_at", "self", "file"}
        return [
            tuple(sorted((key, str(value)) for key, value in image.items() if key not in skip))
            for image in self.server.images()
        ]

    def forget(self) -> None:
        """Have the cloud empty."""
        self.server.clear()
        for image in self.server.images():
            if image["protected"]:
                body = [{"op": "replace", "path": "/protected", "value": False}]
                kind = "application/openstack-images-v2.1-json-patch"
                self.server.ask("PATCH", f"/v2/images/{image['id']}", body, Content_Type=kind)
            self.server.ask("DELETE", f"/v2/images/{image['id']}")
        self.server.clear()
