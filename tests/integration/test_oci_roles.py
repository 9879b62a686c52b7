# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks publish and retire with a registry as the only other catalogue."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
import yaml
from catalogue_site import IMAGE, make_build
from oci_site import Site as Repository

from ansible_collections.cloudimg.factory.tests.tools.registry_server import PASSWORD, USER, Front, Registry

pytestmark = pytest.mark.slow
CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def registry(tmp_path: Path) -> t.Iterator[Registry]:
    with Registry(tmp_path / "registry", users=True) as server:
        yield server


class Play:
    """Runs playbooks with one image, and a registry that wants a user."""

    def __init__(self, root: Path, url: str) -> None:
        self.root = root
        self.workspace = root / "workspace"
        self.text = ""
        variables = {
            "image_workspace": str(self.workspace),
            "image_catalogues": ["local", "oci"],
            "publish_oci": {
                "registry": url,
                "repository": "vo/debian",
                "username": USER,
                "password": "{{ vault_secret }}",
                "keep": 2,
            },
        }
        hosts = {"localhost": {"ansible_connection": "local"}}
        inventory = {"all": {"hosts": hosts, "children": {"images": {"hosts": {IMAGE: None}, "vars": variables}}}}
        (root / "hosts.yml").write_text(yaml.safe_dump(inventory), encoding="utf-8")
        (root / "vault.yml").write_text(yaml.safe_dump({"vault_secret": PASSWORD}), encoding="utf-8")

    def run(self, playbook: str, *more: str, **extra: str) -> bool:
        """Whether it changed something."""
        argv = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(self.root / "hosts.yml")]
        argv += [str(CHECKOUT / "playbooks" / playbook), "-e", f"@{self.root / 'vault.yml'}", "-e", json.dumps(extra)]
        environment = {**os.environ, "ANSIBLE_NOCOLOR": "1", "HOME": str(self.root), "TMPDIR": str(self.root)}
        done = subprocess.run(
            [*argv, *more], env=environment, cwd=self.root, capture_output=True, text=True, check=False
        )
        self.text += done.stdout + done.stderr
        if done.returncode:
            raise AssertionError(done.stdout + done.stderr)
        return "changed=0" not in done.stdout

    def publications(self) -> dict[str, dict[str, t.Any]]:
        """What the local catalogue says of each version in the registry."""
        index = json.loads((self.workspace / "catalogue/index.json").read_text(encoding="utf-8"))
        return {row["version"]: row["publications"]["oci"] for row in index["images"][IMAGE]["versions"]}


def test_publish_and_retire(tmp_path: Path, registry: Registry) -> None:
    with Front(registry) as front:
        play = Play(tmp_path, front.url)
        there = Repository(tmp_path, front.url, {"repository": "vo/debian", "username": USER, "password": PASSWORD})
        for version in ("1.0", "1.1", "1.2"):
            make_build(play.workspace / "builds" / IMAGE / version, version)
        assert play.run("publish.yml", "--check", publish_version="1.0") and not front.writes()
        assert play.run("publish.yml", "--diff", publish_version="1.0")
        front.asked.clear()
        assert not play.run("publish.yml", publish_version="1.0") and not front.writes()
        for version in ("1.1", "1.2"):
            play.run("publish.yml", "-vvv", publish_version=version)
        assert sorted(there.tags().values()) == ["1.1", "1.2", "1.2"] and there.tags()["12"] == "1.2"
        states = {version: about["state"] for version, about in play.publications().items()}
        assert states == {"1.0": "retired", "1.1": "published", "1.2": "published"}
        retire = {"retire_version": "1.2", "retire_reason": "openssl is outdated"}
        assert play.run("retire.yml", **retire)
        assert there.tags()["12"] == "1.1" and there.state()[0]["deprecated"] == "openssl is outdated"
        assert not play.run("retire.yml", **retire)
        assert play.run("retire.yml", **retire, retire_state="absent")
        assert set(there.tags().values()) == {"1.1"} and play.publications()["1.2"]["removed"]
        front.asked.clear()
        assert not play.run("retire.yml", **retire, retire_state="absent") and not front.asked
        assert PASSWORD not in play.text
