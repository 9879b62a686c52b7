# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules for EGI AppDB by ansible-playbook: what they return, and that no secret is seen anywhere."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
import typing as t
from pathlib import Path

import pytest
import yaml

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import file_digests
from ansible_collections.cloudimg.factory.tests.tools import pki
from ansible_collections.cloudimg.factory.tests.tools.appdb_server import AppDbServer

TOKEN = "pat-jane-0123456789"
PASSWORD = "correct horse & battery"
KEY = "key-0123456789"
WRONG = "pat-wrong-9876543210"
SECRETS = (TOKEN, PASSWORD, KEY, WRONG, "correct+horse", "correct%20horse", "Y29ycmVjdCBob3JzZS")
BASE = "https://images.example.org/debian-12/"


class Watch(threading.Thread):
    """Looks for secrets in the command lines and environments of all processes, as fast as it can."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: set[str] = set()
        self.looks = 0
        self._end = threading.Event()

    def run(self) -> None:
        ours = {str(os.getpid())}
        while not self._end.wait(0.05):
            self.looks += 1
            for process in Path("/proc").iterdir():
                if not process.name.isdigit() or process.name in ours:
                    continue
                for name in ("cmdline", "environ"):
                    try:
                        text = (process / name).read_bytes().decode("utf-8", "replace")
                    except OSError:
                        continue
                    self.seen |= {f"{name} of {text[:100]}" for secret in SECRETS if secret in text}

    def stop(self) -> None:
        self._end.set()
        self.join(60)


@dataclasses.dataclass
class Site:
    """A directory with a build, a signed list and the secrets, and the server."""

    root: Path
    server: AppDbServer
    outputs: list[str] = dataclasses.field(default_factory=list)

    @property
    def descriptor(self) -> Path:
        return self.root / "build/descriptor.json"

    def play(self, *tasks: tuple[str, dict[str, t.Any]]) -> list[dict[str, t.Any]]:
        """One playbook with a task for each; returns what they returned. The option C(check) is check mode."""
        answer = self.root / "answer.json"
        answer.unlink(missing_ok=True)
        rows: list[dict[str, t.Any]] = []
        for number, (module, given) in enumerate(tasks):
            defaults = {} if module == "appdb_image_list" else {"api_url": self.server.url, "appliance": "1234"}
            args = {**defaults, **{key: value for key, value in given.items() if key != "check"}}
            row = {"name": f"Task {number}", "register": f"done_{number}", "ignore_errors": True}
            rows.append({**row, f"cloudimg.factory.{module}": args, "check_mode": bool(given.get("check"))})
        names = ", ".join(f"done_{number}" for number in range(len(tasks)))
        rows.append(
            {
                "name": "Keep the answers",
                "ansible.builtin.copy": {
                    "content": f"{{{{ [{names}] | to_json }}}}",
                    "dest": str(answer),
                    "mode": "0600",
                },
                "diff": False,
            }
        )
        play = {
            "hosts": "localhost",
            "gather_facts": False,
            "vars_files": ["secrets.yml"],
            "vars": {"ansible_python_interpreter": sys.executable, "cloudimg_heartbeat": 0.2},
            "tasks": rows,
        }
        (self.root / "play.yml").write_text(yaml.safe_dump([play]), encoding="utf-8")
        environment = {
            **os.environ,
            "ANSIBLE_LOCALHOST_WARNING": "0",
            "ANSIBLE_LOG_PATH": str(self.root / "ansible.log"),
            "ANSIBLE_NOCOLOR": "1",
            "HOME": str(self.root / "home"),
        }
        argv = [str(Path(sys.executable).with_name("ansible-playbook")), "--diff", "-vvv", "play.yml"]
        done = subprocess.run(argv, env=environment, cwd=self.root, capture_output=True, text=True, check=False)
        self.outputs.append(done.stdout + done.stderr)
        assert answer.exists(), self.outputs[-1]
        return list(json.loads(answer.read_text(encoding="utf-8")))


def make_site(root: Path) -> Site:
    """The directory."""
    build = root / "build"
    build.mkdir()
    (root / "home").mkdir()
    disk = build / "debian-12-1.qcow2"
    disk.write_bytes(b"disk")
    descriptor = _descriptor.Descriptor(
        image="debian-12",
        identifier=_descriptor.stable_identifier("debian-12"),
        version="1",
        title="Debian 12",
        description="Minimal Debian 12",
        os=_descriptor.OperatingSystem("debian", "12", "x86_64"),
        min_disk=1 << 30,
        artifacts=(_descriptor.Artifact("qcow2", disk.name, 4, 1 << 30, file_digests(disk)),),
        created="2025-01-31T12:00:00Z",
        provenance=_descriptor.Provenance("0" * 64, "7.2", "0.1.0"),
    )
    (build / "descriptor.json").write_text(descriptor.dump(), encoding="utf-8")
    secrets = {"token": TOKEN, "password": PASSWORD, "key": KEY, "wrong": WRONG}
    (root / "secrets.yml").write_text(yaml.safe_dump(secrets), encoding="utf-8")
    return Site(root, AppDbServer())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Site]:
    site = make_site(tmp_path_factory.mktemp("appdb"))
    watch = Watch()
    watch.start()
    yield site
    watch.stop()
    site.server.close()
    # Of everything that the tests of this module did.
    assert watch.looks > 10 and watch.seen == set()
    assert_no_secret(site)


def assert_no_secret(site: Site) -> None:
    """In what was printed or logged, and in the files that are left."""
    for output in site.outputs:
        assert not [secret for secret in SECRETS if secret in output]
    for path in site.root.rglob("*"):
        if path.is_file() and path.name != "secrets.yml":
            text = path.read_bytes().decode("utf-8", "replace")
            assert not [secret for secret in SECRETS if secret in text], path


def test_from_nothing_to_retired(site: Site) -> None:
    digests = file_digests(site.descriptor.with_name("debian-12-1.qcow2"))
    site.server.files[f"{BASE}debian-12-1.qcow2"] = (4, digests["sha512"])
    by_token = {"access_token": "{{ token }}"}
    build = {"descriptor": str(site.descriptor), "artifact_url": BASE, "integrity": True, "interval": 1, **by_token}
    known = {"username": "jane", "password": "{{ password }}", "api_key": "{{ key }}"}
    checked, before, made, again, told, gone, after = site.play(
        ("appdb_appliance", {**build, "check": True}),
        ("appdb_appliance_info", known),
        ("appdb_appliance", build),
        ("appdb_appliance", build),
        ("appdb_appliance_info", known),
        ("appdb_appliance", {**known, "state": "disabled", "version": "1", "reason": "openssl is outdated"}),
        ("appdb_appliance_info", {}),
    )
    assert checked["changed"] and before["appliance"]["versions"] == []
    assert made["changed"] and made["actions"] == ["AppDB appliance 1234 1: is not in AppDB yet"]
    assert (made["version"]["status"], made["version"]["published"]) == ("verified", True)
    assert made["image"]["image"] == "debian-12"
    assert set(made["publication"]) == {"appliance", "version", "id", "identifier"}
    assert all(isinstance(value, str) for value in made["publication"].values())
    # A sign of life while AppDB checks it, as the action plugin of the same name shows it.
    assert re.search(r"\[localhost\] appdb 00:\d\d +AppDB: verifingpublish", site.outputs[-1])
    assert (again["changed"], again["actions"]) == (False, [])
    assert told["latest"]["version"] == "1" and told["working"] is None and not told["changed"]
    assert told["appliance"]["versions"][0]["image"]["checksum"] == digests["sha512"]
    assert gone["actions"] == ["AppDB appliance 1234 1: is published, shall be disabled: openssl is outdated"]
    assert after["latest"] is None and not site.server.versions[0].enabled


def test_failures_tell_no_secret(site: Site) -> None:
    site.server.versions.clear()
    build = {"descriptor": str(site.descriptor), "artifact_url": BASE}
    retire = {"access_token": "{{ token }}", "state": "disabled", "version": "1"}
    # The first task makes two requests; the server misbehaves at the third.
    site.server.misbehave = {len(site.server.requests) + 2: ("403", False)}
    refused, failed, plain, missing, empty = site.play(
        ("appdb_appliance", {**build, "access_token": "{{ wrong }}"}),
        ("appdb_appliance", {**build, "username": "jane", "password": "{{ password }}", "api_key": "{{ key }}"}),
        ("appdb_appliance", {**build, "access_token": "{{ token }}", "api_url": "http://appdb.example.org/rest/1.0/"}),
        ("appdb_appliance", build),
        ("appdb_appliance", {**retire, "reason": "   "}),
    )
    assert refused["failed"] and "Access denied" in refused["msg"]
    assert "HTTP 403: Forbidden; check the credentials" in failed["msg"] and "accesstoken" not in failed["msg"]
    assert "would go unencrypted" in plain["msg"]
    assert missing["msg"].startswith("access_token: credentials are missing")
    assert empty["msg"].startswith("reason: must not be empty; say why")
    assert site.server.versions == []


def test_a_signed_list(site: Site) -> None:
    folder = site.root / "list"
    endorser = pki.Authority(pki.make_name("DC=org", "CN=Test CA")).issue(folder)
    image = {
        "dc:identifier": "0f1b5f0e-61e5-5cf4-a16d-b1c2ccf2ec50",
        "ad:group": "General group",
        "hv:format": "QCOW2",
        "hv:hypervisor": "KVM",
        "hv:size": 4,
        "hv:uri": f"{BASE}list.qcow2",
        "sl:arch": "x86_64",
        "sl:checksum:sha512": "ab" * 64,
        "sl:osname": "Debian",
        "sl:osversion": "12",
    }
    values = {
        "ad:appid": "1234",
        "dc:identifier": "41458818-0c1a-5c2b-8f0f-6f6a5f1f6d11",
        "dc:date:expires": "2099-01-01T00:00:00Z",
        "hv:version": "77",
        "hv:images": [{"hv:image": image}],
    }
    (folder / "list.json").write_text(json.dumps({"hv:imagelist": values}))
    argv = ["openssl", "smime", "-sign", "-md", "sha256", "-in", folder / "list.json", "-out", folder / "image.list"]
    subprocess.run([*argv, "-signer", endorser.certificate, "-inkey", endorser.key], check=True, capture_output=True)
    task = {
        "url": site.server.submit_url,
        "list": str(folder / "image.list"),
        "username": "jane",
        "password": "{{ password }}",
        "api_url": site.server.url,
        "access_token": "{{ token }}",
    }
    by_key = {"certificate": str(endorser.certificate), "private_key": str(endorser.key)}
    checked, made, again, plain = site.play(
        ("appdb_image_list", {**task, "check": True}),
        ("appdb_image_list", task),
        ("appdb_image_list", task),
        ("appdb_image_list", {"url": site.server.submit_url, "list": task["list"], **by_key}),
    )
    assert checked["changed"] and "submission_id" not in checked["publication"]
    assert made["changed"] and made["publication"]["submission_id"] == "1"
    assert not again["changed"] and again["publication"] == made["publication"]
    assert "a certificate needs a connection by TLS" in plain["msg"]
    assert len(site.server.submissions) == 1
