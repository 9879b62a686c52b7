# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Image definitions in real inventories: what is collected from where, and what becomes of mistakes."""

from __future__ import annotations

import os
import shutil
import sys
import typing as t
from pathlib import Path

import ansible_runner
import pytest
import yaml

ENVIRONMENT = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
TASK = {"name": "Check", "cloudimg.factory.image_definition": {}, "register": "checked"}
GOOD: dict[str, t.Any] = {
    "image_title": "Debian 12",
    "image_os": {"distribution": "debian", "version": "12"},
    "image_medium": {"family": "fai", "suite": "bookworm"},
}


class Site:
    """An inventory with one image, and runs on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = "debian-12"
        self.inventory = folder / "inventory"
        (folder / "runner").mkdir()
        (self.inventory / "host_vars").mkdir(parents=True)
        (self.inventory / "group_vars").mkdir()

    def host_vars(self, **values: t.Any) -> Path:
        path = self.inventory / "host_vars" / f"{self.host}.yml"
        path.write_text(yaml.safe_dump({**GOOD, **values}, sort_keys=False), encoding="utf-8")
        return path

    def run(self, cmdline: str | None = None) -> ansible_runner.Runner:
        hosts = {"all": {"children": {"images": {"hosts": {self.host: {}}}}}}
        (self.inventory / "hosts.yml").write_text(yaml.safe_dump(hosts), encoding="utf-8")
        play = [{"hosts": "images", "gather_facts": False, "tasks": [TASK]}]
        (self.folder / "play.yml").write_text(yaml.safe_dump(play), encoding="utf-8")
        return ansible_runner.run(
            private_data_dir=str(self.folder / "runner"),
            playbook=str(self.folder / "play.yml"),
            inventory=str(self.inventory),
            envvars=ENVIRONMENT,
            cmdline=cmdline,
            quiet=True,
        )

    def checked(self, cmdline: str | None = None) -> dict[str, t.Any]:
        run = self.run(cmdline)
        assert run.rc == 0, run.stdout.read()
        return self._result(run, "runner_on_ok")

    def message(self, cmdline: str | None = None) -> str:
        run = self.run(cmdline)
        assert run.rc != 0
        message = str(self._result(run, "runner_on_failed")["msg"])
        assert "\n" not in message
        return message

    @staticmethod
    def _result(run: ansible_runner.Runner, kind: str) -> dict[str, t.Any]:
        return dict(next(event["event_data"]["res"] for event in run.events if event["event"] == kind))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_definition_is_collected_from_host_and_groups(site: Site) -> None:
    (site.inventory / "group_vars/images.yml").write_text(
        "image_packages: [htop]\nimage_title: overridden\nmedia_mirror: 'http://{{ place }}.org'\nplace: example\n",
        encoding="utf-8",
    )
    site.host_vars(
        image_description="{{ inventory_hostname }} {{ image_version }}",
        image_version="{{ 9999999999 | random }}.1",
    )
    found = site.checked()
    definition = found["definition"]
    assert not found["changed"]
    assert definition["image_title"] == "Debian 12"
    assert definition["image_description"] == f"debian-12 {found['version']}"
    assert definition["image_packages"] == ["htop"]
    assert definition["image_version"] == found["version"]
    assert found["version"].endswith(".1")
    assert definition["image_disk"]["size_bytes"] == 8 << 30
    assert found["inputs"]["variables"] == {"media_mirror": "http://example.org"}
    assert len(found["digest"]) == 64


def test_variables_of_stages_count(site: Site) -> None:
    site.host_vars()
    plain = site.checked()["digest"]
    assert site.checked("-e image_version=2")["digest"] == plain
    assert site.checked("-e sanitize_x=y")["digest"] != plain
    assert site.checked("-e publish_x=y")["digest"] == plain


def test_unknown_key_is_told_with_its_line_and_the_nearest_name(site: Site) -> None:
    path = site.host_vars(image_titel="x")
    assert site.message() == f"{path}:8: image_titel: is not a key of an image definition; did you mean image_title?"


def test_unknown_key_of_the_command_line(site: Site) -> None:
    site.host_vars()
    assert site.message("-e image_disc=8G").endswith(
        "CLI option '-e': image_disc: is not a key of an image definition; did you mean image_disk?"
    )


def test_mistake_deep_in_a_group_is_told_with_its_line(site: Site) -> None:
    path = site.inventory / "group_vars/images.yml"
    path.write_text("# for all\nimage_disk:\n  # how large\n  size: 8 gigabytes\n", encoding="utf-8")
    site.host_vars()
    assert site.message() == (
        f"{path}:4: image_disk.size: '8 gigabytes' is no size; give a number with M, G or T, such as 8G"
    )


def test_overridden_key_is_told_where_it_was_overridden(site: Site) -> None:
    (site.inventory / "group_vars/images.yml").write_text("image_formats: [qcow2]\n", encoding="utf-8")
    path = site.host_vars(image_formats=["floppy"])
    known = "qcow2, raw, raw.gz, raw.xz, raw.zst, vmdk, vdi, vhd, vhdx, ova, box"
    assert site.message() == f"{path}:9: image_formats: 'floppy' is not known; use one of: {known}"


def test_missing_key(site: Site) -> None:
    site.host_vars(image_os=None)
    assert site.message().endswith("image_os: is missing; set it")


def test_template_that_fails(site: Site) -> None:
    path = site.host_vars(image_title="{{ nothing }}")
    message = site.message()
    assert message.startswith(f"{path}:1: image_title: cannot be templated: ")
    assert "'nothing' is undefined" in message


@pytest.mark.parametrize("name", ["debian 12", "debian'12", 'debian"12', "Debian"])
def test_bad_names_of_images(site: Site, name: str) -> None:
    site.host = name
    site.host_vars()
    message = site.message()
    assert f"{site.inventory}/hosts.yml: image: {name!r} cannot be the name of an image; use lower-case" in message


def test_name_that_climbs(site: Site) -> None:
    site.host = "../x"
    (site.inventory / "group_vars/images.yml").write_text(yaml.safe_dump(GOOD), encoding="utf-8")
    assert "image: '../x' cannot be the name of an image" in site.message()


def test_scripts_count_by_content(site: Site) -> None:
    path = site.host_vars(image_scripts=["files/setup.sh"])
    missing = site.message()
    assert missing.startswith(f"{path}:8: image_scripts: there is no file 'files/setup.sh' in {site.inventory}, ")
    assert missing.endswith("; correct its name")

    script = site.folder / "files/setup.sh"
    script.parent.mkdir()
    script.write_text("true\n", encoding="utf-8")
    first = site.checked()
    assert first["definition"]["image_scripts"] == [str(script)]
    script.write_text("false\n", encoding="utf-8")
    assert site.checked()["digest"] != first["digest"]
    script.write_text("true\n", encoding="utf-8")
    site.inventory.joinpath("files").mkdir()
    shutil.move(script, site.inventory / "files/setup.sh")
    moved = site.checked()
    assert moved["definition"]["image_scripts"] == [str(site.inventory / "files/setup.sh")]
    assert moved["digest"] == first["digest"]


def test_scripts_count_with_their_arguments(site: Site) -> None:
    script = site.folder / "setup.sh"
    script.write_text("true\n", encoding="utf-8")
    site.host_vars(image_scripts=[{"file": "setup.sh"}])
    plain = site.checked()
    assert plain["definition"]["image_scripts"] == [
        {"file": str(script), "arguments": [], "environment": {}, "timeout": None}
    ]
    site.host_vars(image_scripts=[{"file": "setup.sh", "timeout": 5}])
    assert site.checked()["digest"] == plain["digest"]
    site.host_vars(image_scripts=[{"file": "setup.sh", "arguments": ["-x"]}])
    found = site.checked()
    assert found["digest"] != plain["digest"]
    assert found["inputs"]["scripts"][0]["arguments"] == ["-x"]


def test_files_of_applications_count_by_content_and_mirrors_not_at_all(site: Site) -> None:
    path = site.host_vars(applications_files=[{"dest": "/etc/motd", "src": "motd"}])
    assert site.message().startswith(f"{path}:8: applications_files: there is no file 'motd' in {site.inventory}, ")
    motd = site.inventory / "motd"
    motd.write_text("one\n", encoding="utf-8")
    first = site.checked()
    assert first["inputs"]["files"][0]["name"] == "motd"
    assert site.checked("-e applications_proxy=http://me:word@proxy")["digest"] == first["digest"]
    motd.write_text("two\n", encoding="utf-8")
    assert site.checked()["digest"] != first["digest"]


def test_roles_count_by_content(site: Site) -> None:
    path = site.host_vars(image_roles=["worker", "cloudimg.factory.definition"])
    assert site.message() == (
        f"{path}:8: image_roles: there is no role 'worker'; "
        "correct its name, or install it below roles/ beside the playbook"
    )
    tasks = site.folder / "roles/worker/tasks/main.yml"
    tasks.parent.mkdir(parents=True)
    tasks.write_text("[]\n", encoding="utf-8")
    first = site.checked()
    assert set(first["inputs"]["role"]) == {"worker", "cloudimg.factory.definition"}
    tasks.write_text("---\n[]\n", encoding="utf-8")
    assert site.checked()["digest"] != first["digest"]


def test_example_inventory_is_good(tmp_path: Path, checkout: Path) -> None:
    site = Site(tmp_path)
    shutil.rmtree(site.inventory)
    shutil.copytree(checkout / "inventories/example", site.inventory)
    (site.folder / "play.yml").write_text(
        yaml.safe_dump([{"hosts": "images", "gather_facts": False, "tasks": [TASK]}]), encoding="utf-8"
    )
    run = ansible_runner.run(
        private_data_dir=str(site.folder / "runner"),
        playbook=str(site.folder / "play.yml"),
        inventory=str(site.inventory),
        envvars=ENVIRONMENT,
        quiet=True,
    )
    assert run.rc == 0, run.stdout.read()
    found = {
        event["event_data"]["host"]: event["event_data"]["res"]
        for event in run.events
        if event["event"] == "runner_on_ok"
    }
    assert set(found) >= {"debian-12", "debian-12-worker", "debian-13"}
    assert set(found) == {path.stem for path in (checkout / "inventories/example/host_vars").iterdir()}
    assert found["debian-12"]["definition"]["image_medium"]["suite"] == "bookworm"
    assert found["debian-13"]["digest"] != found["debian-12"]["digest"]
    worker = found["debian-12-worker"]
    assert (found["debian-12"]["generation"], worker["generation"]) == (0, 1)
    assert worker["definition"]["image_os"] == found["debian-12"]["definition"]["image_os"]
    assert list(worker["inputs"]["parent"]) == ["debian-12"]
