# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The main job, whole and real: from a package mirror to a published image that a stranger can log in to."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
from conftest import TOLD
from layer_look import look

from ansible_collections.cloudimg.factory.plugins.module_utils import _accel, _descriptor

pytestmark = [pytest.mark.full_build, pytest.mark.root]
MIB = 1 << 20
GUEST_STAGES = ["cloud_init", "applications", "harden", "sanitize"]


def layers_of(build: dict) -> dict[str, str]:
    """The file name of each stage's layer."""
    return {name: Path(build["stages"][name]["path"]).name for name in ["base_vm", *GUEST_STAGES]}


def leftovers(factory) -> list[str]:
    """Whatever of a build should not be there once it has ended."""
    mounts = Path("/proc/mounts").read_text(encoding="utf-8")
    loops = subprocess.run(["losetup", "--all"], capture_output=True, text=True, check=True).stdout
    partials = [path.name for path in (factory.workspace / "cache").rglob(".*") if path.name.startswith(".partial")]
    running = subprocess.run(["pgrep", "-f", str(factory.workspace)], capture_output=True, text=True, check=False)
    here = str(factory.workspace)
    return [*partials, *(text for text in (mounts, loops) if here in text), *running.stdout.split()]


def test_a_whole_build(full_build):
    factory, played = full_build
    assert played.rc == 0, played.stdout[-5000:]
    directory, build = factory.build("debian-12")
    assert build["complete"]
    assert list(build["stages"]) and set(build["stages"]) >= {"media", "base_vm", *GUEST_STAGES, "export", "assess"}

    descriptor = _descriptor.load(directory / "descriptor.json")
    (artifact,) = build["stages"]["export"]["artifacts"]
    disk = Path(artifact["path"])
    assert disk.parent == directory
    assert disk.stat().st_size == artifact["size"] <= 230 * MIB
    info = json.loads(subprocess.check_output(["qemu-img", "info", "-f", "qcow2", "--output=json", disk]))
    assert info["virtual-size"] == artifact["virtual_size"] == 8 << 30
    assert "backing-filename" not in info
    assert descriptor.document()["os"] == {"distribution": "debian", "version": "12", "arch": "x86_64"}

    packages = json.loads((directory / "packages.json").read_text(encoding="utf-8"))
    assert {"cloud-init", "linux-image-cloud-amd64"} <= {package["name"] for package in packages["packages"]}
    assessment = json.loads((directory / "assess.json").read_text(encoding="utf-8"))
    assert assessment["verdict"] == "pass"
    assert [boot["name"] for boot in assessment["boots"]] == ["bios-nocloud", "uefi-opennebula"]
    for name in ("assess.xml", "secant.xml", "report.html"):
        assert (directory / name).stat().st_size > 0, name
    page = (directory / "report.html").read_text(encoding="utf-8")
    assert "Passed" in page and "<script" not in page
    assert descriptor.assess["verdict"] == "pass"
    assert descriptor.scores["lynis"]["before"] < descriptor.scores["lynis"]["after"] >= 70
    assert all(record["seconds"] >= 0 for record in build["stages"].values())
    catalogue = json.loads((factory.workspace / "catalogue/index.json").read_text(encoding="utf-8"))
    (published,) = catalogue["images"]["debian-12"]["versions"]
    assert (published["version"], published["state"]) == ("1.0", "published")
    assert (factory.workspace / "catalogue" / published["report"]).is_file()
    assert leftovers(factory) == []


def test_the_installer_did_as_it_was_told(full_build, tmp_path):
    factory, _played = full_build
    _directory, build = factory.build("debian-12")
    script = "readlink /etc/localtime; cat /etc/timezone /etc/hostname; grep XKBLAYOUT /etc/default/keyboard; getent shadow root"
    said = look(build["stages"]["base_vm"]["path"], script, tmp_path).splitlines()
    zone, keyboard, host = (TOLD[name] for name in ("timezone", "keyboard", "hostname"))
    assert said[:4] == [f"/usr/share/zoneinfo/{zone}", zone, host, f'XKBLAYOUT="{keyboard}"']
    assert said[4].split(":")[1] in ("!", "*", "!*")


def test_the_playbook_showed_that_it_lives(full_build):
    _factory, played = full_build
    assert "[debian-12] assess 00:" in played.stdout
    beats = [event["stdout"] for event in played.events if event["event"] == "verbose"]
    assert any("[debian-12] assess" in beat and "console: " in beat for beat in beats)


def test_nothing_changes_the_second_time(full_build):
    factory, first = full_build
    assert first.rc == 0
    again = factory.play("build.yml", "debian-12", image_version="1.0")
    assert again.rc == 0, again.stdout[-3000:]
    assert again.changed() == 0
    assert len(factory.builds("debian-12")) == 1


def test_check_mode_of_an_image_with_one_package_more_tells_what_would_happen(full_build):
    factory, _first = full_build
    planned = factory.play("build.yml", "debian-12", "--check", image_version="1.1", image_packages=["htop"])
    assert planned.rc == 0, planned.stdout[-3000:]
    assert "image_packages" in planned.stdout
    assert len(factory.builds("debian-12")) == 1


@pytest.mark.slow  # a second assessment; what is built anew, test_guest_stages shows without one
def test_one_package_more_makes_no_new_installation(full_build):
    factory, first = full_build
    assert first.rc == 0
    _directory, before = factory.build("debian-12")
    played = factory.play("build.yml", "debian-12", image_version="1.1", image_packages=["htop"])
    assert played.rc == 0, played.stdout[-5000:]
    directory, after = factory.build("debian-12")
    assert after["version"] == "1.1"
    old, new = layers_of(before), layers_of(after)
    assert [name for name in old if old[name] != new[name]] == ["applications", "harden", "sanitize"]
    assert "What changed since 1.0" in (directory / "report.html").read_text(encoding="utf-8")
    packages = json.loads((directory / "packages.json").read_text(encoding="utf-8"))["packages"]
    assert "htop" in {package["name"] for package in packages}
    catalogue = json.loads((factory.workspace / "catalogue/index.json").read_text(encoding="utf-8"))
    versions = {found["version"]: found["state"] for found in catalogue["images"]["debian-12"]["versions"]}
    assert versions == {"1.0": "published", "1.1": "published"}
    assert leftovers(factory) == []


def test_the_same_version_of_something_else_is_refused(full_build):
    factory, _first = full_build
    played = factory.play("build.yml", "debian-12", image_version="1.0", image_packages=["jq"])
    assert played.rc != 0
    assert "raise image_version" in played.failure()
    assert "\n" not in played.failure()


@pytest.fixture
def stranger(built_image, tmp_path):
    """The artifact, booted by plain QEMU with a seed by cloud-localds; gives the words of an ssh command."""
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    user_data = tmp_path / "user-data"
    public = key.with_suffix(".pub").read_text(encoding="utf-8")
    user_data.write_text(f"#cloud-config\nssh_authorized_keys:\n  - {public}\n", encoding="utf-8")
    subprocess.run(["cloud-localds", tmp_path / "seed.img", user_data], check=True)
    disk = shutil.copy(built_image, tmp_path / "disk.qcow2")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    machine = subprocess.Popen(
        [
            *[
                "qemu-system-x86_64",
                "-accel",
                _accel.detect(),
                "-cpu",
                "max",
                "-smp",
                "2",
                "-m",
                "1024",
                "-display",
                "none",
            ],
            *["-drive", f"file={disk},format=qcow2,if=virtio,cache=unsafe"],
            *["-drive", f"file={tmp_path}/seed.img,format=raw,if=virtio"],
            *["-nic", f"user,model=virtio,hostfwd=tcp:127.0.0.1:{port}-:22", "-serial", f"file:{tmp_path}/console.log"],
        ]
    )
    yield [
        *["ssh", "-q", "-p", str(port), "-i", str(key), "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes"],
        *["-o", f"UserKnownHostsFile={tmp_path}/known", "-o", "ConnectTimeout=10", "debian@127.0.0.1"],
    ]
    machine.kill()
    machine.wait()


@pytest.mark.slow  # one machine more; the assessment of the build logs in as well
def test_the_key_of_a_stranger_logs_in(stranger):
    deadline = time.monotonic() + 600
    while True:
        done = subprocess.run([*stranger, "sudo", "id", "-u"], capture_output=True, text=True, check=False)
        if done.returncode == 0 or time.monotonic() > deadline:
            break
        time.sleep(2)
    assert done.stdout.strip() == "0"
    status = subprocess.run([*stranger, "cloud-init", "status", "--wait"], capture_output=True, text=True, check=False)
    assert "status: done" in status.stdout
