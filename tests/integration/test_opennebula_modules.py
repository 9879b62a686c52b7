# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules for OpenNebula by their arguments, with what they answer."""

from __future__ import annotations

import os
import typing as t
from pathlib import Path
from unittest import mock

from opennebula_site import Site

from ansible_collections.cloudimg.factory.tests.tools import in_process
from ansible_collections.cloudimg.factory.tests.tools.opennebula_server import PASSWORD, OpenNebulaServer


def run(module: str, *, check: bool = False, **options: t.Any) -> dict[str, t.Any]:
    """What a module answers; user and password come by the environment."""
    with mock.patch.dict(os.environ, {"ONE_USERNAME": "oneadmin", "ONE_PASSWORD": PASSWORD}):
        values, output = in_process.run(module, check=check, **options)
    assert PASSWORD not in output
    return values


def test_the_modules(tmp_path: Path) -> None:
    with OpenNebulaServer(tmp_path / "cloud") as server:
        site = Site(tmp_path, server)
        descriptor = str(site.build("1"))
        safe = {"transfer": "directory", "directory": str(tmp_path / "cloud/safe"), "interval": 1}
        done = run("opennebula_appliance", check=True, api_url=server.url, descriptor=descriptor, **safe)
        assert done["changed"] and not server.images
        done = run("opennebula_appliance", api_url=server.url, descriptor=descriptor, **safe)
        assert done["publication"]["datastores"] == {"default": {"image": 0, "template": 0}}
        done = run("opennebula_appliance", api_url=server.url, descriptor=descriptor, **safe)
        assert (done["changed"], done["requests"], done["image"]["version"]) == (False, 4, "1")
        rows = run("opennebula_appliance", api_url=server.url, descriptors=[descriptor], **safe)["builds"]
        assert [(row["descriptor"], row["changed"], row["problem"]) for row in rows] == [(descriptor, False, "")]
        many = {"descriptors": [descriptor, str(tmp_path / "none.json")]}
        done = run("opennebula_appliance", api_url=server.url, **many, **safe)
        assert done["failed"] and done["msg"].startswith("1 of 2 builds are not published, the first of them is ")
        assert [bool(row["publication"]) for row in done["builds"]] == [True, False]
        would = run("opennebula_appliance", check=True, api_url=server.url, **many, **safe)
        assert [row["changed"] for row in would["builds"]] == [False, True], "the stage before would make it"
        url = {"transfer": "url", "artifact_urls": ["https://www.example.org/"]}
        done = run("opennebula_appliance", api_url=server.url, **many, **url)
        assert done["msg"].startswith("artifact_urls: has 1 URLs for 2 descriptors; give one for each")
        done = run("opennebula_appliance_info", api_url=server.url)
        assert [row["state"] for row in done["appliances"][site.identifier]["images"]] == ["READY"]
        market = {"descriptor": descriptor, "publisher": "vo.example.org", "marketplace": "private"}
        for changed in (True, False):
            done = run("opennebula_marketplace", api_url=server.url, **market)
            assert done["changed"] == changed
        files = {"descriptor": descriptor, "directory": str(tmp_path / "market"), "url": "https://market.example.org/"}
        for changed in (True, False):
            assert run("opennebula_marketplace", publisher="me", **files)["changed"] == changed
        assert run("opennebula_marketplace", state="absent", **files)["changed"]
        done = run("opennebula_appliance", api_url=server.url, state="expired", version="1", reason="x")
        assert "any of the following are missing: descriptor, identifier" in done["msg"]
        done = run("opennebula_appliance", api_url=server.url, descriptor=descriptor, mode="rw")
        assert done["msg"] == "mode: 'rw' are no rights; give three octal digits, such as \"640\""
        done = run("opennebula_appliance", api_url=server.url, state="cleaned", clean_after="soon")
        assert done["msg"] == "clean_after: 'soon' is no time span; give seconds, or a number with h, d or w"
