# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles publish and retire, and playbooks/refresh.yml, with the catalogue opennebula."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
import test_catalogue_secrets
import yaml
from catalogue_site import CHECKOUT, IMAGE, Played, make_build

from ansible_collections.cloudimg.factory.tests.tools.opennebula_server import PASSWORD, OpenNebulaServer

pytest.importorskip("pyone")
pytestmark = pytest.mark.slow


class Site:
    """An inventory with one image and one catalogue beside the local one."""

    def __init__(self, root: Path, server: OpenNebulaServer) -> None:
        self.root = root
        self.server = server
        self.options: dict[str, t.Any] = {"transfer": "directory", "directory": str(root / "cloud/safe")}

    def write_inventory(self) -> None:
        variables = {
            "image_workspace": str(self.root / "workspace"),
            "image_catalogues": ["local", "opennebula"],
            "publish_opennebula": {
                "api_url": self.server.url,
                "username": "oneadmin",
                "password": "{{ vault_password }}",
                "interval": 1,
                "clean_after": "0",
                **self.options,
            },
        }
        hosts = {"localhost": {"ansible_connection": "local"}}
        inventory = {"all": {"hosts": hosts, "children": {"images": {"hosts": {IMAGE: None}, "vars": variables}}}}
        (self.root / "hosts.yml").write_text(yaml.safe_dump(inventory), encoding="utf-8")
        (self.root / "vault.yml").write_text(yaml.safe_dump({"vault_password": PASSWORD}), encoding="utf-8")

    def build(self, version: str) -> Path:
        return make_build(self.root / "workspace/builds" / IMAGE / version, version)

    def play(self, playbook: str, *words: str, check: bool = True, **extra: t.Any) -> Played:
        self.write_inventory()
        argv = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(self.root / "hosts.yml")]
        argv += [str(CHECKOUT / "playbooks" / playbook), "-e", f"@{self.root / 'vault.yml'}", "-e", json.dumps(extra)]
        settings = {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_LOCALHOST_WARNING": "0", "HOME": str(self.root)}
        done = subprocess.run(
            [*argv, *words], env={**os.environ, **settings}, cwd=self.root, capture_output=True, text=True, check=False
        )
        out = done.stdout + done.stderr
        assert PASSWORD not in out
        if check and done.returncode:
            raise AssertionError(out)
        return Played(done.returncode, out)

    def states(self) -> dict[str, str]:
        """What the local catalogue says of each version in OpenNebula."""
        index = json.loads((self.root / "workspace/catalogue/index.json").read_text(encoding="utf-8"))
        rows = index["images"][IMAGE]["versions"]
        return {row["version"]: row["publications"]["opennebula"]["state"] for row in rows}

    def names(self) -> list[str]:
        """The images there, without times."""
        return sorted(image["name"] for image in map(vars, self.server.images.values()))


@pytest.fixture
def site(tmp_path: Path) -> t.Iterator[Site]:
    with OpenNebulaServer(tmp_path / "cloud") as server:
        yield Site(tmp_path, server)


def test_publish_replace_refresh_retire(site: Site) -> None:
    site.build("1")
    assert site.play("publish.yml", "-vvv", "--diff", publish_version="1").changed
    assert (site.names(), site.states()) == ([f"{IMAGE}-1@default"], {"1": "published"})
    site.server.asked.clear()
    assert not site.play("publish.yml", publish_version="1").changed
    assert site.server.writes() == []
    (template,) = site.server.templates.values()
    vm = site.server.do_template_instantiate(site.server.users[0], template.id)
    site.build("2")
    assert site.play("publish.yml", publish_version="2").changed
    assert site.states() == {"1": "retired", "2": "published"} and len(site.server.images) == 2
    assert not site.play("refresh.yml").changed, "a VM still uses it"
    site.server.do_vm_action(site.server.users[0], "terminate", vm)
    assert site.play("refresh.yml").changed
    assert site.names() == [f"{IMAGE}-2@default"]
    assert not site.play("refresh.yml").changed
    arguments = {"retire_version": "2", "retire_reason": "old openssl"}
    site.server.asked.clear()
    assert site.play("retire.yml", "--check", **arguments).changed and site.server.writes() == []
    assert site.play("retire.yml", **arguments).changed
    assert site.states()["2"] == "retired" and site.names()[0].startswith("EXPIRED_")
    assert template.mode == 0o600
    assert not site.play("retire.yml", **arguments).changed


def test_no_secret_is_seen(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_catalogue_secrets, "FORMS", test_catalogue_secrets.forms(PASSWORD))
    site.build("1")
    site.options = {"transfer": "http", "http_address": "127.0.0.1"}
    site.server.delay = 1.0
    site.write_inventory()
    watch = test_catalogue_secrets.Watch([site.root, Path("/dev/shm")], [site.root / "vault.yml"])
    watch.start()
    try:
        done = site.play("publish.yml", "-vvv", "--diff", publish_version="1")
    finally:
        watch.stop()
    assert watch.found == set() and watch.looks > 20 and len(watch.read) > 5
    (image,) = site.server.images.values()
    assert image.path.startswith("http://127.0.0.1") and image.path.split("/")[3] not in done.out


def test_absent_and_check_mode(site: Site) -> None:
    site.build("1")
    assert site.play("publish.yml", "--check", "--diff", publish_version="1").changed
    assert site.server.writes() == [] and not (site.root / "workspace/catalogue").exists()
    site.play("publish.yml", publish_version="1")
    assert site.play("retire.yml", retire_version="1", retire_reason="old", retire_state="absent").changed
    assert (site.names(), site.server.templates) == ([], {})


def test_the_front_end_fetches_unless_told_otherwise(site: Site) -> None:
    site.build("1")
    site.options = {}
    done = site.play("publish.yml", check=False, publish_version="1")
    assert "publish_serve: public_url: is missing" in " ".join(done.out.split())
    serve = {"public_url": (site.root / "workspace/catalogue").as_uri().replace("file://", "https://www.example.org")}
    done = site.play("publish.yml", check=False, publish_version="1", publish_serve=serve)
    assert "Failed to get image head" in done.out and f"/{IMAGE}/1/" not in site.names()
