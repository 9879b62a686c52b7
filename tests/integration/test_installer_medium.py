# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module and the role as ansible-playbook runs them; killed, resumed, side by side."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import pytest
import yaml

from ansible_collections.cloudimg.factory.tests.tools.media_server import MediaServer
from ansible_collections.cloudimg.factory.tests.tools.vendor import Signer, make_iso, sha256, sums

ANSIBLE = Path(sys.executable).with_name("ansible-playbook")
KNOWN = Path(__file__).resolve().parents[2] / "roles/media/vars"
FAMILIES = sorted({path.stem for path in KNOWN.glob("*.yml")} - {"main"})
INSTALLER = {"kernel": "install.amd/vmlinuz", "initrd": "install.amd/initrd.gz"}


class Play:
    """One ansible-playbook that runs tasks on localhost and writes down what they registered as C(result)."""

    def __init__(self, folder: Path, tasks: list[dict[str, t.Any]], *options: str) -> None:
        folder.mkdir(parents=True)
        self._answer = folder / "answer.json"
        keep = {"content": "{{ result | default(cloudimg_build) | to_json }}", "dest": str(self._answer)}
        tasks = [*tasks, {"ansible.builtin.copy": keep, "check_mode": False, "diff": False}]
        play = {"hosts": "debian-12", "gather_facts": False, "tasks": tasks}
        (folder / "play.yml").write_text(yaml.safe_dump([play]), encoding="utf-8")
        inventory = "debian-12 ansible_connection=local ansible_python_interpreter=" + sys.executable
        (folder / "hosts").write_text(f"[images]\n{inventory}\n", encoding="utf-8")
        home = {"ANSIBLE_HOME": str(folder / "ansible"), "ANSIBLE_ASYNC_DIR": str(folder / "async")}
        self._process = subprocess.Popen(
            [ANSIBLE, "-i", folder / "hosts", folder / "play.yml", *options],
            env={**os.environ, **home, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_RETRY_FILES_ENABLED": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def kill(self) -> None:
        """As a machine that runs out of memory would."""
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate()

    def end(self) -> tuple[int, str]:
        """Its exit code and its output."""
        output, _none = self._process.communicate(timeout=120)
        return self._process.returncode, output

    def result(self) -> dict[str, t.Any]:
        """What it registered."""
        code, output = self.end()
        assert code == 0, output
        return dict(json.loads(self._answer.read_text(encoding="utf-8")))


class Site:
    """A vendor's server, and a workspace."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = MediaServer()
        self.workspace = folder / "workspace"
        self.media = self.workspace / "cache" / "media"
        self.iso = make_iso(folder / "a.iso", label="TEST_CD", filler=8 << 20)
        self.url = self.server.put("/cd/a.iso", self.iso.read_bytes())
        self._plays = 0

    def play(self, tasks: list[dict[str, t.Any]], *options: str) -> Play:
        """Start a playbook."""
        self._plays += 1
        return Play(self.folder / f"play-{self._plays}", tasks, *options)

    def module(self, *options: str, **args: t.Any) -> Play:
        """Start a playbook that runs the module."""
        args = {"url": self.url, "checksum": f"sha256:{sha256(self.iso)}", **INSTALLER, **args}
        args = {"workspace": str(self.workspace), "family": "preseed", **args}
        return self.play([{"cloudimg.factory.installer_medium": args, "register": "result"}], *options)

    def role(self, medium: dict[str, t.Any], *options: str, version: str = "12") -> Play:
        """Start a playbook that runs the role after a build has begun."""
        system = {"distribution": "debian", "version": version, "arch": "x86_64"}
        build = {
            "workspace": str(self.workspace),
            "image": "debian-12",
            "version": "1",
            "digest": "0" * 64,
            "definition": {
                "image_medium": medium,
                "image_os": system,
                "image_installer": {"locale": "en_US.UTF-8", "packages": []},
            },
            "state": "begun",
        }
        tasks: list[dict[str, t.Any]] = [
            {"cloudimg.factory.image_build": build, "register": "begun"},
            {"ansible.builtin.set_fact": {"cloudimg_build": "{{ begun.build }}"}},
            {"ansible.builtin.include_role": {"name": "cloudimg.factory.media"}},
        ]
        return self.play(tasks, *options)

    def wait_for_bytes(self, size: int) -> None:
        """Wait until a download is on its way."""
        deadline = time.monotonic() + 120
        while sum(part.stat().st_size for part in self.media.glob(".incoming-*")) < size:
            assert time.monotonic() < deadline, "the download did not begin"
            time.sleep(0.05)


@pytest.fixture
def site(tmp_path: Path) -> t.Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.server.close()


def test_check_then_fetch_then_again(site: Site) -> None:
    asked = site.module("--check").result()
    assert (asked["changed"], asked["cached"], asked["medium"]["path"]) == (True, False, None)
    assert asked["actions"] == [f"fetch {site.url}: it is not in the cache"]
    assert not site.workspace.exists()

    done = site.module().result()
    digest = sha256(site.iso)
    assert (done["changed"], done["cached"]) == (True, False)
    assert done["diff"] == {"before": {"sha256": None}, "after": {"sha256": digest}}
    assert done["medium"] == {
        "path": f"{site.media}/{digest}.iso",
        "sha256": digest,
        "size": site.iso.stat().st_size,
        "label": "TEST_CD",
        "needs": None,
        "source": site.url,
        "family": "preseed",
        "boot": "location",
        **INSTALLER,
        "kernel_args": "",
        "failure_lines": [],
        "success_lines": [],
        "question_lines": [],
    }

    again = site.module().result()
    assert (again["changed"], again["cached"], again["medium"]) == (False, True, done["medium"])
    assert len(site.server.requests) == 1
    assert site.module("--check").result()["changed"] is False


def test_an_error_is_one_line(site: Site) -> None:
    code, output = site.module(checksum=f"sha256:{'0' * 64}").end()
    assert code == 2
    said = f"{site.url}: image_medium.checksum: checksum differs: expected sha256:{'0' * 64}, got sha256:"
    assert said in output and "Traceback" not in output
    assert list(site.media.iterdir()) == []


def test_a_medium_of_another_family(site: Site) -> None:
    code, output = site.module(kernel="casper/vmlinuz").end()
    assert code == 2
    assert "image_medium.family: has no /casper/vmlinuz, so it is no installation medium of family" in output
    assert site.module().result()["cached"] is True


def test_a_killed_playbook_goes_on_when_started_again(site: Site) -> None:
    site.server.files["/cd/a.iso"].pause = 0.05
    play = site.module()
    site.wait_for_bytes(1 << 20)
    play.kill()
    deadline = time.monotonic() + 120
    while not site.server.requests[0].broken:
        assert time.monotonic() < deadline, "the job went on although nobody wanted it"
        time.sleep(0.1)
    assert not list(site.media.glob("*.iso"))

    site.server.files["/cd/a.iso"].pause = 0.0
    site.server.requests.clear()
    assert site.module().result()["medium"]["sha256"] == sha256(site.iso)
    (request,) = site.server.requests
    assert request.status == 206 and request.sent <= site.iso.stat().st_size - (1 << 20)
    assert not list(site.media.glob(".*"))


def test_two_playbooks_get_it_once(site: Site) -> None:
    site.server.files["/cd/a.iso"].pause = 0.03
    plays = [site.module(), site.module()]
    results = [play.result() for play in plays]
    assert sorted(result["cached"] for result in results) == [False, True]
    assert len(site.server.requests) == 1


def test_the_role_records_a_verified_medium(site: Site, tmp_path: Path) -> None:
    signer = Signer(tmp_path / "gpg")
    medium = {
        "family": "preseed",
        "url": site.url,
        "checksum": site.server.put("/cd/SHA256SUMS", sums(site.iso)),
        "signature": site.server.put("/cd/SHA256SUMS.sign", signer.detached(sums(site.iso))),
        "keyring": str(signer.keyring(tmp_path / "vendor.gpg")),
        "kernel": None,
        "kernel_args": "quiet",
    }
    signer.close()
    build = site.role(medium).result()
    record = build["stages"]["media"]
    assert record["path"] == f"{site.media}/{sha256(site.iso)}.iso"
    assert {name: record[name] for name in INSTALLER} == INSTALLER
    assert record["kernel_args"].endswith("--- console=ttyS0 quiet")
    assert "!! ERROR: " in record["failure_lines"]
    assert json.loads(Path(build["dir"], "build.json").read_text(encoding="utf-8"))["stages"]["media"] == record

    code, output = site.role(medium).end()
    assert code == 0 and len(site.server.requests) == 3
    assert "changed=0" in output.replace("changed=1", "changed=0", 1)  # the answer file of the test itself


def test_the_role_in_check_mode(site: Site) -> None:
    medium = {"family": "preseed", "path": str(site.iso), "checksum": f"sha256:{sha256(site.iso)}"}
    assert site.role(medium, "--check").result()["stages"] == {}
    assert not site.media.exists()


@pytest.mark.parametrize(
    ("medium", "version", "said"),
    [
        (
            {"family": "xyzzy"},
            "12",
            f"image_medium.family: nothing is known of xyzzy; use {' or '.join(FAMILIES)}, or add",
        ),
        ({"family": "fai"}, "7", "image_medium.suite: no installer can be built for debian 7; use bookworm or trixie"),
        ({"family": "fai", "suite": "woody"}, "12", "no installer can be built for woody; use bookworm or trixie"),
    ],
)
def test_the_role_refuses(site: Site, medium: dict[str, t.Any], version: str, said: str) -> None:
    code, output = site.role(medium, version=version).end()
    assert code == 2
    assert said in " ".join(output.split())


@pytest.mark.parametrize(("version", "suite"), [("12", "bookworm"), ("13", "trixie")])
def test_the_role_knows_how_to_build_by_fai(site: Site, version: str, suite: str) -> None:
    medium = {"family": "fai", "mirror": "https://example.org/debian"}
    code, output = site.role(medium, "--check", "-v", version=version).end()
    assert code == 0, output
    assert f"build fai:{suite}: it is not in the cache" in output
