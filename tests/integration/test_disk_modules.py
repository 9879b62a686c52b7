# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules for disks and caches as Ansible runs them: what they return, check mode, diff, and their one line of error."""

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

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli, _qemu_img, _state

CHECKOUT = Path(__file__).resolve().parents[2]
MIB = 1 << 20


@dataclasses.dataclass
class Played:
    """The results of a playbook's tasks, in their order."""

    results: list[dict[str, t.Any]]
    output: str


def play(folder: Path, *tasks: dict[str, t.Any]) -> Played:
    """Run tasks of this collection's modules on this machine; a failure does not end it."""
    rows = [{**task, "ignore_errors": True} for task in tasks]
    playbook = folder / "playbook.yml"
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    playbook.write_text(
        yaml.safe_dump([{"hosts": "localhost", "gather_facts": False, "vars": local, "tasks": rows}], sort_keys=False)
    )
    env = {
        **os.environ,
        "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"),
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_LOCALHOST_WARNING": "False",
    }
    tool = str(Path(sys.executable).with_name("ansible-playbook"))
    argv = [tool, "-i", "localhost,", "--diff", str(playbook)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    start = done.stdout.index("{")
    plays = json.JSONDecoder().raw_decode(done.stdout[start:])[0]["plays"]
    return Played([task["hosts"]["localhost"] for task in plays[0]["tasks"]], done.stdout)


def module(name: str, dry: bool = False, **options: t.Any) -> dict[str, t.Any]:
    """A task."""
    return {"name": name, f"cloudimg.factory.{name}": options, "check_mode": dry}


def test_disk_image(tmp_path):
    disk, overlay = str(tmp_path / "disk.qcow2"), str(tmp_path / "overlay.qcow2")
    results = play(
        tmp_path,
        module("disk_image", dry=True, path=disk, size="64M"),
        module("disk_image", path=disk, size="64M"),
        module("disk_image", path=disk, size="64M"),
        module("disk_image", path=overlay, backing=disk, size="1G"),
        module("disk_image", path=overlay, flat=True),
        module("disk_image", path=overlay, flat=True, trusted=True),
        module("disk_image", path=disk, size="32M"),
        module("disk_image", path=disk, backing=disk, flat=True),
        module("disk_image", path=disk, state="absent"),
    ).results
    made, again = results[1], results[2]
    assert [row["changed"] for row in results] == [True, True, False, True, False, True, False, False, True]
    assert made["disk"]["virtual_size"] == 64 * MIB
    assert made["diff"]["after"]["format"] == "qcow2"
    assert (again["actions"], again["disk"]["path"]) == ([], disk)
    assert results[4]["msg"].endswith("set trusted, if nobody else has made it, or flatten it where it comes from")
    assert results[5]["disk"]["backing"] is None
    assert results[6]["msg"] == (
        f"{disk}: size: is larger ({64 * MIB} bytes) than {32 * MIB} bytes; set shrink, if it is to become smaller"
    )
    assert "mutually exclusive" in results[7]["msg"]
    assert not Path(disk).exists()


@pytest.fixture
def dirty(tmp_path):
    """A qcow2 with an ext4, a live file and 20 MiB of garbage."""
    raw, disk, live = tmp_path / "raw", tmp_path / "dirty.qcow2", tmp_path / "garbage"
    with raw.open("wb") as stream:
        stream.truncate(64 * MIB)
    tree = tmp_path / "tree"
    (tree / "usr/lib").mkdir(parents=True)
    (tree / "usr/lib/os-release").write_text("ID=debian\n")
    subprocess.run([_cli.require("mkfs.ext4"), "-q", "-d", tree, raw], check=True)
    live.write_bytes(os.urandom(20 * MIB))
    for request in (f"write {live} x", "rm x"):
        subprocess.run([_cli.require("debugfs"), "-w", "-R", request, raw], check=True, capture_output=True)
    _qemu_img.convert(raw, disk, source_fmt="raw", target_fmt="qcow2")
    return disk


def test_disk_compact_and_disk_image_info(tmp_path, dirty):
    disk = str(dirty)
    results = play(
        tmp_path,
        module("disk_compact", dry=True, path=disk),
        module("disk_compact", path=disk),
        module("disk_compact", path=disk),
        module("disk_image_info", path=disk, check=True, compare_with=str(tmp_path / "raw"), compare_format="raw"),
        module("disk_compact", path=str(tmp_path / "playbook.yml")),
    ).results
    assert [row["changed"] for row in results] == [True, True, False, False, False]
    told, done = results[0], results[1]
    assert told["after"] < told["before"] == done["before"]
    assert done["before"] - done["after"] > 18 * MIB
    assert done["ratio"] <= done["target"]
    assert done["diff"]["before"]["allocated"] == done["before"]
    assert done["actions"][0].startswith(f"compact {disk}: ")
    found = results[3]
    assert found["disk"]["os_release"] == {"ID": "debian"}
    assert found["disk"]["check"]["corruptions"] == 0
    assert found["identical"] is False  # its garbage is gone
    assert results[4]["msg"].endswith("; give a qcow2, vmdk, vdi, vhd, vhdx or raw disk")


def test_image_cache(tmp_path):
    workspace = _state.Workspace(tmp_path / "workspace").make()
    medium = workspace.media / "old.iso"
    medium.write_bytes(os.urandom(2 * MIB))
    medium.with_suffix(".json").write_text("{}")
    options = {"workspace": str(workspace.root), "max_size": "1M"}
    results = play(
        tmp_path,
        module("image_cache", **options, keep=[str(medium)]),
        module("image_cache", dry=True, **options),
        module("image_cache", **options),
        module("image_cache", **options),
        module("image_cache", workspace=str(tmp_path / "none"), max_size="1M"),
        module("image_cache", workspace=str(tmp_path / "none"), max_size="much"),
    ).results
    assert [row["changed"] for row in results] == [False, True, True, False, False, False]
    assert results[0]["notes"] == ["1 MiB more than wanted are in use"]
    assert [row["path"] for row in results[2]["removed"]] == [str(medium)]
    assert results[2]["after"] == 0
    assert not medium.exists()
    assert "max_size" in results[5]["msg"]
