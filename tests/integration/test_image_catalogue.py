# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a layer to the catalogue and out of it again, by ansible-playbook: roles, playbooks and modules."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
import yaml

from ansible_collections.cloudimg.factory.plugins.module_utils import _qemu_img
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import file_digests
from ansible_collections.cloudimg.factory.plugins.module_utils._state import write_json

DEFINITION = {
    "image_title": "Tiny",
    "image_version": "1",
    "image_os": {"distribution": "debian", "version": "12", "arch": "x86_64"},
    "image_medium": {"family": "fai", "suite": "bookworm"},
}
UNMADE = {"artifacts": [{"checksums": {"sha256": ""}}]}
"""What check mode exports."""
EXPORT = [
    {
        "name": "Export a layer as the stages before would have left it",
        "hosts": "images",
        "gather_facts": False,
        "roles": ["cloudimg.factory.definition"],
        "tasks": [
            {
                "name": "Record the layer",
                "cloudimg.factory.image_build": {
                    "workspace": "{{ cloudimg_build.workspace }}",
                    "image": "{{ cloudimg_build.image }}",
                    "version": "{{ cloudimg_build.version }}",
                    "state": "recorded",
                    "stage": "sanitize",
                    "record": {"path": "{{ layer }}", "digest": "{{ '5' * 64 }}"},
                },
                "delegate_to": "localhost",
                "register": "recorded",
            },
            {"ansible.builtin.set_fact": {"cloudimg_build": "{{ recorded.build }}"}},
            {"ansible.builtin.include_role": {"name": "cloudimg.factory.export"}},
            {
                "name": "Judge it",
                "ansible.builtin.copy": {
                    "content": "{{ {'verdict': 'pass', 'artifact': {'sha256': made.checksums.sha256}} | to_json }}",
                    "dest": "{{ cloudimg_build.dir }}/assess.json",
                    "mode": "0644",
                },
                "delegate_to": "localhost",
                "vars": {
                    "made": "{{ (cloudimg_build.stages.get('export') or unmade).artifacts | first }}",
                    "unmade": UNMADE,
                },
            },
            {"ansible.builtin.include_role": {"name": "cloudimg.factory.publish"}},
            {"ansible.builtin.debug": {"var": "cloudimg_build"}},
        ],
    }
]


@dataclasses.dataclass(frozen=True)
class Site:
    """An inventory with one image, and its workspace."""

    root: Path
    checkout: Path

    @property
    def workspace(self) -> Path:
        return self.root / "workspace"

    def play(self, playbook: Path, *arguments: str, check: bool = True) -> dict[str, t.Any]:
        """Run a playbook: its return code, its output, and whether it changed something."""
        environment = {
            **os.environ,
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_LOCALHOST_WARNING": "0",
            "HOME": str(self.root),
            "SUDO_USER": "alice",
        }
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(self.root / "hosts.yml")]
        extra = json.dumps({"image_workspace": str(self.workspace), "layer": str(self.root / "sanitize.qcow2")})
        done = subprocess.run(
            [*command, str(playbook), "-e", extra, *arguments],
            env=environment,
            cwd=self.root,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            pytest.fail(done.stdout + done.stderr)
        return {"rc": done.returncode, "out": done.stdout + done.stderr, "changed": "changed=0" not in done.stdout}

    def publish(self, *arguments: str, check: bool = True) -> dict[str, t.Any]:
        return self.play(self.checkout / "playbooks/publish.yml", *arguments, check=check)

    def retire(self, *arguments: str, check: bool = True) -> dict[str, t.Any]:
        return self.play(self.checkout / "playbooks/retire.yml", *arguments, check=check)

    def entry(self) -> dict[str, t.Any]:
        index = json.loads((self.workspace / "catalogue/index.json").read_text(encoding="utf-8"))
        return dict(index["images"]["tiny"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The site, with version 1 exported and published by the roles of a build."""
    checkout = Path(__file__).resolve().parent.parent.parent
    root = tmp_path_factory.mktemp("site")
    disk = root / "sanitize.qcow2"
    _qemu_img.create(disk, 16 << 20)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 5 0 1M", str(disk)], check=True)
    local = {"ansible_connection": "local"}
    inventory = {"all": {"hosts": {"localhost": local}, "children": {"images": {"hosts": {"tiny": DEFINITION}}}}}
    (root / "hosts.yml").write_text(yaml.safe_dump(inventory), encoding="utf-8")
    (root / "export.yml").write_text(yaml.safe_dump(EXPORT, sort_keys=False), encoding="utf-8")
    made = Site(root, checkout)
    made.play(root / "export.yml")
    return made


def test_build_was_exported_and_published(site: Site) -> None:
    folder = site.workspace / "builds/tiny/1"
    build = json.loads((folder / "build.json").read_text(encoding="utf-8"))
    (artifact,) = build["stages"]["export"]["artifacts"]
    assert artifact["path"] == str(folder / "tiny-1.qcow2")
    assert artifact["checksums"] == file_digests(folder / "tiny-1.qcow2")
    assert artifact["virtual_size"] == 16 << 20
    assert build["stages"]["export"]["descriptor"] == str(folder / "descriptor.json")
    assert build["stages"]["publish"]["catalogues"] == ["local"]
    assert site.entry()["versions"][0]["state"] == "published"
    assert site.entry()["history"][0]["who"] == "alice"
    published = site.workspace / "catalogue" / site.entry()["versions"][0]["artifacts"][0]["path"]
    assert published.stat().st_ino == (folder / "tiny-1.qcow2").stat().st_ino


def test_publishing_again_changes_nothing(site: Site) -> None:
    before = (site.workspace / "catalogue/index.json").read_bytes()
    assert not site.publish("-e", "publish_version=1")["changed"]
    assert (site.workspace / "catalogue/index.json").read_bytes() == before


def test_check_mode_of_a_build_writes_nothing(site: Site) -> None:
    other = site.root / "other"
    done = site.play(site.root / "export.yml", "--check", "-e", json.dumps({"image_workspace": str(other)}))
    assert done["changed"]
    assert not other.exists()


def test_published_file_stands_alone(site: Site) -> None:
    path = site.workspace / "catalogue" / site.entry()["versions"][0]["artifacts"][0]["path"]
    assert _qemu_img.safe_info(path).backing is None
    assert _qemu_img.compare(site.root / "sanitize.qcow2", "qcow2", path, "qcow2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "publish_version: is not set; give the version of the build"),
        (("-e", "publish_version=7"), "builds/tiny/7/descriptor.json: No such file or directory"),
        (("-e", "publish_version=../1"), "No such file or directory"),
        (
            ("-e", "publish_version=1", "-e", '{"publish_catalogues": ["locl"]}'),
            "must be one or more of: local, hepix, appdb, stratuslab, opennebula, oci, glance. Got no match for: locl",
        ),
    ],
)
def test_what_cannot_be_published(site: Site, arguments: tuple[str, ...], message: str) -> None:
    before = (site.workspace / "catalogue/index.json").read_bytes()
    done = site.publish(*arguments, check=False)
    assert done["rc"] != 0
    assert message in " ".join(done["out"].split())
    assert (site.workspace / "catalogue/index.json").read_bytes() == before


def test_unassessed_build_needs_a_reason(site: Site) -> None:
    folder, second = site.workspace / "builds/tiny/1", site.workspace / "builds/tiny/2"
    second.mkdir()
    (second / "tiny-2.qcow2").write_bytes((folder / "tiny-1.qcow2").read_bytes())
    text = (folder / "descriptor.json").read_text(encoding="utf-8").replace("tiny-1.qcow2", "tiny-2.qcow2")
    descriptor = json.loads(text)
    descriptor["version"] = "2"
    descriptor["version_identifier"] = "00000000-0000-0000-0000-000000000000"
    write_json(second / "descriptor.json", descriptor)
    done = site.publish("-e", "publish_version=2", check=False)
    assert "version_identifier: contradicts the rest" in done["out"]
    wanted = done["out"].split("where '")[1].split("'")[0]
    write_json(second / "descriptor.json", {**descriptor, "version_identifier": wanted})
    done = site.publish("-e", "publish_version=2", check=False)
    assert "assess.json: verdict: the image has not been assessed" in " ".join(done["out"].split())
    assert site.publish("-e", '{"publish_version": "2", "publish_assess_override": "seen by hand"}')["changed"]
    assert site.entry()["history"][-1]["reason"] == "not assessed as pass: seen by hand"


def test_retire(site: Site) -> None:
    arguments = ("-e", "retire_version=1", "-e", '{"retire_reason": "old openssl"}')
    missing = site.retire("-e", "retire_version=1", check=False)
    assert "missing required arguments: retire_reason" in " ".join(missing["out"].split())
    before = (site.workspace / "catalogue/index.json").read_bytes()
    assert site.retire(*arguments, "--check", "--diff")["changed"]
    assert (site.workspace / "catalogue/index.json").read_bytes() == before
    assert site.retire(*arguments)["changed"]
    assert not site.retire(*arguments)["changed"]
    first = site.entry()["versions"][0]
    assert (first["version"], first["state"]) == ("1", "deprecated")
    file = site.workspace / "catalogue" / first["artifacts"][0]["path"]
    assert file.exists()
    assert site.retire(*arguments, "-e", "retire_state=absent")["changed"]
    assert not file.exists()
    assert (site.workspace / "catalogue" / first["descriptor"]).is_file()
    assert [(event["action"], event["who"]) for event in site.entry()["history"] if event["version"] == "1"] == [
        ("published", "alice"),
        ("deprecated", "alice"),
        ("removed", "alice"),
    ]
    assert (site.workspace / "builds/tiny/1/tiny-1.qcow2").exists()


def test_info(site: Site) -> None:
    play = [
        {
            "hosts": "localhost",
            "gather_facts": False,
            "tasks": [
                {
                    "cloudimg.factory.image_catalogue_info": {
                        "directory": "{{ image_workspace }}/catalogue",
                        "image": "tiny",
                    },
                    "register": "found",
                },
                {
                    "ansible.builtin.assert": {
                        "that": [
                            "found is not changed",
                            "found.images | list == ['tiny']",
                            "found.images.tiny.title == 'Tiny'",
                            "found.images.tiny.latest == latest",
                            "found.images.tiny.versions[0].version == '1'",
                            "found.images.tiny.history[0].who == 'alice'",
                        ]
                    }
                },
            ],
        }
    ]
    offered = [known["version"] for known in site.entry()["versions"] if known["state"] == "published"]
    latest = json.dumps({"latest": offered[-1] if offered else None})
    (site.root / "info.yml").write_text(yaml.safe_dump(play), encoding="utf-8")
    assert not site.play(site.root / "info.yml", "-e", latest)["changed"]
