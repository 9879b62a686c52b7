# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles publish and retire with Glance: published, again, replaced, retired step by step; no secret is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from glance_site import IMAGE, SECRET, make_build

from ansible_collections.cloudimg.factory.tests.tools.glance_server import GlanceServer
from ansible_collections.cloudimg.factory.tests.tools.glance_wsgi import token_of

CHECKOUT = Path(__file__).resolve().parents[2]


def play(root: Path, playbook: str, *arguments: str, **extra: str) -> str:
    """Run a playbook; returns what it said, once none of it is a secret."""
    tool = str(Path(sys.executable).with_name("ansible-playbook"))
    argv = [tool, "-i", str(root / "hosts.yml"), str(CHECKOUT / "playbooks" / playbook)]
    argv += ["-e", f"@{root / 'vault.yml'}", "-e", json.dumps(extra), "-vvv", "--diff", *arguments]
    variables = {**os.environ, "ANSIBLE_NOCOLOR": "1", "HOME": str(root), "TMPDIR": str(root)}
    done = subprocess.run(argv, env=variables, cwd=root, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert SECRET not in output and token_of(SECRET) not in output
    return output


def publication(root: Path, version: str) -> str:
    index = json.loads((root / "workspace/catalogue/index.json").read_text(encoding="utf-8"))
    (known,) = [known for known in index["images"][IMAGE]["versions"] if known["version"] == version]
    return str(known["publications"]["glance"]["state"])


@pytest.mark.slow
def test_publish_again_replace_retire(tmp_path: Path) -> None:
    with GlanceServer(tmp_path / "glance") as server:
        auth = {
            "auth_url": f"{server.url}/identity/v3",
            "application_credential_id": "jane",
            "application_credential_secret": "{{ vault_secret }}",
        }
        variables = {
            "image_workspace": str(tmp_path / "workspace"),
            "image_catalogues": ["local", "glance"],
            "publish_glance": {"auth_type": "v3applicationcredential", "auth": auth, "os_admin_user": "debian"},
        }
        hosts = {"localhost": {"ansible_connection": "local"}}
        inventory = {"all": {"hosts": hosts, "children": {"images": {"hosts": {IMAGE: None}, "vars": variables}}}}
        (tmp_path / "hosts.yml").write_text(yaml.safe_dump(inventory), encoding="utf-8")
        (tmp_path / "vault.yml").write_text(yaml.safe_dump({"vault_secret": SECRET}), encoding="utf-8")
        for version in ("1", "2"):
            make_build(tmp_path / "workspace/builds" / IMAGE / version, version)
        play(tmp_path, "publish.yml", publish_version="1")
        assert [image["cloudimg_version"] for image in server.visible()] == ["1"]
        assert publication(tmp_path, "1") == "published"
        server.clear()
        assert "changed=0" in play(tmp_path, "publish.yml", publish_version="1")
        assert server.writes() == [] and server.received() == 0
        play(tmp_path, "publish.yml", "--check", publish_version="2")
        assert server.writes() == []
        play(tmp_path, "publish.yml", publish_version="2")
        assert [image["cloudimg_version"] for image in server.visible()] == ["2"]
        steps = (
            ("deprecated", "active", "published"),
            ("expired", "deactivated", "published"),
            ("absent", None, "retired"),
        )
        for state, status, recorded in steps:
            arguments = {"retire_version": "2", "retire_reason": "old openssl", "retire_state": state}
            play(tmp_path, "retire.yml", **arguments)
            there = server.images(cloudimg_version="2")
            assert [(image["status"], image["os_hidden"]) for image in there] == ([(status, True)] if status else [])
            assert publication(tmp_path, "2") == recorded
