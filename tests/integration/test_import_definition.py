# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Descriptions for other tools, imported by ansible into an inventory that then has the image."""

from __future__ import annotations

import os
import sys
import tempfile
import typing as t
from pathlib import Path

import ansible_runner
import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
DESCRIPTIONS = CHECKOUT / "tests/unit/descriptions"
ENVIRONMENT = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


class Site:
    """An inventory, and runs on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inventory = folder / "inventory"
        self.inventory.mkdir()

    def play(self, playbook: Path, cmdline: str = "", **extra: t.Any) -> ansible_runner.Runner:
        return ansible_runner.run(
            private_data_dir=tempfile.mkdtemp(prefix="runner-", dir=self.folder),
            playbook=str(playbook),
            inventory=str(self.inventory),
            envvars=ENVIRONMENT,
            extravars=extra,
            cmdline=cmdline or None,
            quiet=True,
        )

    def task(
        self, module: str, options: dict[str, t.Any], cmdline: str = "", hosts: str = "localhost"
    ) -> dict[str, t.Any]:
        """What a task with a module of the collection returns."""
        (self.inventory / "hosts.yml").write_text(
            yaml.safe_dump({"all": {"children": {"images": {"hosts": {"ours": {}}}}}}), encoding="utf-8"
        )
        variables = {"ansible_python_interpreter": sys.executable, "ansible_connection": "local"}
        task = {"name": "Do it", f"cloudimg.factory.{module}": options, "vars": variables}
        path = self.folder / "play.yml"
        path.write_text(yaml.safe_dump([{"hosts": hosts, "gather_facts": False, "tasks": [task]}]), encoding="utf-8")
        run = self.play(path, cmdline)
        ends = ("runner_on_ok", "runner_on_failed")
        event = next(event for event in run.events if event["event"] in ends)
        return {**event["event_data"]["res"], "failed": event["event"] == ends[1]}

    def files(self) -> list[str]:
        found = (path.relative_to(self.inventory) for path in self.inventory.rglob("*") if path.is_file())
        return sorted(str(path) for path in found if path.name != "hosts.yml")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_module_imports_once(site: Site) -> None:
    options = {
        "src": str(DESCRIPTIONS / "packer/debian-9.json"),
        "name": "ours",
        "dest": str(site.inventory),
        "scripts_dir": "files/ours",
    }
    expected = ["files/ours/01-shell.sh", "files/ours/02-cleanup.sh", "host_vars/ours.yml"]
    checked = site.task("import_definition", options, "--check --diff")
    assert checked["changed"] and not site.files()
    assert [Path(row["after_header"]).name for row in checked["diff"]] == ["01-shell.sh", "02-cleanup.sh", "ours.yml"]

    first = site.task("import_definition", options)
    assert first["changed"] and site.files() == expected
    assert first["path"] == str(site.inventory / "host_vars/ours.yml")
    assert Path(first["path"]).read_text(encoding="utf-8") == first["host_vars"]
    assert first["scripts"] == [str(site.inventory / name) for name in expected[:2]]
    assert first["definition"]["image_os"] == {"distribution": "debian", "version": "9", "arch": "x86_64"}
    assert first["missing"] == [] and first["name"] == "ours" and first["kind"] == "packer"
    assert "vagrant-9-pw" not in str(first)

    again = site.task("import_definition", options, "--diff")
    assert not again["changed"] and again["actions"] == [] and again["diff"] == []


def test_what_differs_is_replaced_only_by_force(site: Site) -> None:
    options = {"src": str(DESCRIPTIONS / "oz/fedora-18.tdl"), "name": "ours", "dest": str(site.inventory)}
    path = site.inventory / "host_vars/ours.yml"
    path.parent.mkdir()
    mine = "image_keep: 3\n"
    path.write_text(mine, encoding="utf-8")
    refused = site.task("import_definition", options)
    assert refused["failed"]
    assert refused["msg"] == (
        f"{path}: dest: is there already, and differs; set force: true to replace it, or choose another name"
    )
    assert path.read_text(encoding="utf-8") == mine
    forced = site.task("import_definition", {**options, "force": True})
    assert forced["actions"] == [f"{path}: differs"]
    assert path.read_text(encoding="utf-8") == forced["host_vars"] != mine


def test_inventory_has_the_image_that_was_imported(site: Site) -> None:
    # What would be run by Ansible if it were taken for a template.
    bad = "{{ lookup('pipe', 'touch " + str(site.folder / "ran") + "') }}"
    path = site.folder / "x.tdl"
    text = (DESCRIPTIONS / "oz/fedora-18.tdl").read_text(encoding="utf-8")
    path.write_text(text.replace("Fedora 18 with a web server", bad), encoding="utf-8")
    options = {"src": str(path), "name": "ours", "dest": str(site.inventory), "scripts_dir": "files/ours"}
    assert site.task("import_definition", options)["definition"]["image_description"] == bad

    checked = site.task("image_definition", {}, hosts="images")
    assert not checked["failed"], checked
    assert checked["definition"]["image_description"] == bad
    assert checked["definition"]["image_os"]["distribution"] == "fedora"
    assert checked["definition"]["image_scripts"] == [str(site.inventory / "files/ours/01-enable.sh")]
    assert not (site.folder / "ran").exists()


def test_bad_input_is_one_line(site: Site) -> None:
    path = site.folder / "bad.tdl"
    path.write_text('<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><template>&a;</template>', encoding="utf-8")
    failed = site.task("import_definition", {"src": str(path), "dest": str(site.inventory)})
    assert failed["failed"] and not site.files()
    assert failed["msg"] == (
        f"{path}: has a document type (DTD), which may name entities and files outside; "
        "correct it, or set kind to what it is"
    )


def test_playbook_imports_and_tells(site: Site) -> None:
    options = {
        "import_definition_src": str(DESCRIPTIONS / "packer/ubuntu-22.04.pkr.hcl"),
        "import_definition_dest": str(site.inventory),
        "import_definition_name": "ubuntu-22.04",
        "import_definition_python": sys.executable,
    }
    playbook = CHECKOUT / "playbooks/import_definition.yml"
    first = site.play(playbook, **options)
    assert first.rc == 0, first.stdout.read()
    assert first.stats["changed"] == {"localhost": 1}
    assert site.files() == ["host_vars/ubuntu-22.04.yml"]
    told = first.stdout.read()
    assert "source.qemu.ubuntu.boot_wait (3s)" in told and "packer-2204-pw" not in told
    second = site.play(playbook, **options)
    assert second.rc == 0 and not second.stats["changed"]
