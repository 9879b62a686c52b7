# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules for OpenNebula as Ansible runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
from opennebula_site import Site

from ansible_collections.cloudimg.factory.tests.tools.opennebula_server import PASSWORD, OpenNebulaServer

pytest.importorskip("pyone")


def run(module: str, *words: str, **options: t.Any) -> dict[str, t.Any]:
    """What a module answers; the password comes by the environment, so that it is on no command line."""
    tool = str(Path(sys.executable).with_name("ansible"))
    argv = [tool, "localhost", "-c", "local", "-m", f"cloudimg.factory.{module}", "-a", json.dumps(options), *words]
    argv += ["-e", f"ansible_python_interpreter={sys.executable}"]
    settings = {
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_LOCALHOST_WARNING": "0",
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1",
        "ONE_PASSWORD": PASSWORD,
        "ONE_USERNAME": "oneadmin",
    }
    done = subprocess.run(argv, env={**os.environ, **settings}, capture_output=True, text=True, check=False)
    assert PASSWORD not in done.stdout + done.stderr
    try:
        answer = json.loads(done.stdout[done.stdout.index("{") :])
    except ValueError:
        raise AssertionError(done.stdout + done.stderr) from None
    return dict(answer["plays"][0]["tasks"][0]["hosts"]["localhost"])


def test_the_modules(tmp_path: Path) -> None:
    with OpenNebulaServer(tmp_path / "cloud") as server:
        site = Site(tmp_path, server)
        descriptor = str(site.build("1"))
        safe = {"transfer": "directory", "directory": str(tmp_path / "cloud/safe"), "interval": 1}
        done = run("opennebula_appliance", "--check", api_url=server.url, descriptor=descriptor, **safe)
        assert done["changed"] and not server.images
        done = run("opennebula_appliance", "--diff", api_url=server.url, descriptor=descriptor, **safe)
        assert done["publication"]["datastores"] == {"default": {"image": 0, "template": 0}}
        done = run("opennebula_appliance", api_url=server.url, descriptor=descriptor, **safe)
        assert (done["changed"], done["requests"], done["image"]["version"]) == (False, 4, "1")
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
