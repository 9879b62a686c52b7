# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole playbook with the real state of builds, but with stages that only pretend to work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import ansible_runner
import pytest
import yaml

HERE = Path(__file__).resolve().parent
STAGES = ["media", "base_vm", "cloud_init", "applications", "harden", "sanitize", "export", "assess", "publish"]
BUILD = {name: f"{{{{ cloudimg_build.{name} }}}}" for name in ("workspace", "image", "version")}
ARTIFACT = "{{ cloudimg_build.dir }}/disk.qcow2"
DIGEST = "{{ 'disk' | ansible.builtin.hash('sha256') }}"
RECORD = {
    "digest": "1",
    "descriptor": "{{ cloudimg_build.dir }}/descriptor.json",
    "artifacts": [{"path": ARTIFACT, "size": 4, "checksums": {"sha256": DIGEST}}],
}
DEFINITION = {
    "image_os": {"distribution": "debian", "version": "12"},
    "image_medium": {"family": "fai", "suite": "bookworm"},
    "image_version": "1",
}


RECORDS = {"export": RECORD, "publish": {"catalogues": ["local"]}}


def pretended(stage: str) -> list[dict[str, t.Any]]:
    """The tasks of a stage that may take ``seconds``, or fail, and then records itself."""
    builder: dict[str, t.Any] = {"delegate_to": "localhost"}
    work = {"mess": "{{ cloudimg_build.workspace }}/mess", "seconds": "{{ seconds }}"}
    tasks: list[dict[str, t.Any]] = [
        {
            "name": "Work",
            "slow_job": {**work, "end": "{{ (broken == stage) | ternary('failure', 'well') }}"},
            "when": "stage in [slow, broken]",
            **builder,
        }
    ]
    if stage == "export":
        tasks += [
            {"name": "Write", "ansible.builtin.copy": {"content": content, "dest": path, "mode": "0644"}, **builder}
            for content, path in (("disk", ARTIFACT), ("{}", RECORD["descriptor"]))
        ]
    tasks += [
        {
            "name": "Record",
            "cloudimg.factory.image_build": {
                **BUILD,
                "state": "recorded",
                "stage": "{{ stage }}",
                "record": RECORDS.get(stage, {"digest": "1"}),
            },
            "register": "recorded",
            **builder,
        },
        {"name": "Know", "ansible.builtin.set_fact": {"cloudimg_build": "{{ recorded.build }}"}},
    ]
    named = "{{ layer_stage }}" if stage == "layer" else stage
    return [{"name": "Stage", "vars": {"stage": named}, "block": tasks}]


class Factory:
    """This collection with pretended stages, an inventory, a workspace."""

    def __init__(self, folder: Path, checkout: Path) -> None:
        self.folder = folder
        self.workspace = folder / "workspace"
        collection = folder / "ansible_collections/cloudimg/factory"
        (collection / "roles").mkdir(parents=True)
        for name in ("plugins", "playbooks", "meta", "galaxy.yml", "roles/definition"):
            (collection / name).symlink_to(checkout / name)
        for stage in ("media", "base_vm", "layer", "export", "assess", "publish"):
            tasks = collection / "roles" / stage / "tasks/main.yml"
            tasks.parent.mkdir(parents=True)
            tasks.write_text(yaml.safe_dump(pretended(stage)), encoding="utf-8")
        self.playbook = str(collection / "playbooks/build.yml")
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "ANSIBLE_COLLECTIONS_PATH": str(folder),
            "ANSIBLE_LIBRARY": str(HERE / "library"),
            "ANSIBLE_ACTION_PLUGINS": str(HERE / "action_plugins"),
        }
        self.runs = 0

    def inventory(self, images: t.Sequence[str] = ("debian-12",), **values: t.Any) -> str:
        variables = {**DEFINITION, "image_workspace": str(self.workspace), "slow": "", "broken": "", "seconds": 0}
        hosts = {
            "images": {"hosts": {image: {} for image in images}, "vars": {**variables, **values}},
            "builders": {
                "hosts": {
                    "localhost": {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
                }
            },
        }
        path = self.folder / "hosts.yml"
        path.write_text(yaml.safe_dump({"all": {"children": hosts}}), encoding="utf-8")
        return str(path)

    def run(self, cmdline: str = "", **values: t.Any) -> ansible_runner.Runner:
        self.runs += 1
        private = self.folder / f"run{self.runs}"
        private.mkdir()
        return ansible_runner.run(
            private_data_dir=str(private),
            playbook=self.playbook,
            inventory=self.inventory(**values),
            envvars=self.environment,
            cmdline=cmdline or None,
            quiet=True,
        )

    def start(self, **values: t.Any) -> subprocess.Popen[bytes]:
        """The playbook in the background, with a base_vm that takes ``seconds``; returns when that works."""
        process = subprocess.Popen(
            ["ansible-playbook", "-i", self.inventory(slow="base_vm", **values), self.playbook],
            env={**os.environ, **self.environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 120
        while not (self.workspace / "mess").exists() or "media" not in self.build().get("stages", {}):
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.2)
        return process

    def build(self, version: str = "1", image: str = "debian-12") -> dict[str, t.Any]:
        path = self.workspace / "builds" / image / version / "build.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}

    def locked(self, image: str = "debian-12") -> bool:
        return (self.workspace / "builds" / image / ".lock.json").exists()


@pytest.fixture
def factory(tmp_path: Path, checkout: Path) -> Factory:
    return Factory(tmp_path, checkout)


def tasks(run: ansible_runner.Runner) -> list[str]:
    """What ran: «role : task», or the name of the task."""
    started = (event["event_data"] for event in run.events if event["event"] == "playbook_on_task_start")
    return [
        f"{data['resolved_role']}: {data['task']}" if data.get("resolved_role") else data["task"] for data in started
    ]


def messages(run: ansible_runner.Runner) -> list[str]:
    return [event["event_data"]["res"]["msg"] for event in run.events if event["event"] == "runner_on_failed"]


def changed(run: ansible_runner.Runner) -> int:
    return sum(dict(run.stats["changed"]).values())


def test_build_goes_from_stage_to_stage_and_then_needs_nothing(factory: Factory) -> None:
    run = factory.run()
    assert run.rc == 0, run.stdout.read()
    build = factory.build()
    assert build["complete"]
    assert set(build["stages"]) == set(STAGES)
    assert not factory.locked()

    again = factory.run(image_version="2", image_timeouts={"install": 60})
    assert again.rc == 0
    assert changed(again) == 0
    assert not [task for task in tasks(again) if "Work" in task]
    assert factory.build() == build
    assert not factory.build("2")
    assert "debian-12 1 is complete in" in again.stdout.read()

    other = factory.run("--diff", image_version="2", image_packages=["htop"])
    assert other.rc == 0
    assert factory.build("2")["complete"]
    said = other.stdout.read()
    assert "build debian-12 2: differs from 1 in image_packages" in said
    assert "+++ after: debian-12 2" in said

    lower = factory.run(image_packages=["curl"])
    assert lower.rc != 0
    assert messages(lower)[0].endswith(
        "image_version: 1 is lower than that of the newest complete build, 2; raise image_version above 2"
    )


def test_failure_is_noted_and_the_build_taken_up_again(factory: Factory) -> None:
    run = factory.run(broken="applications")
    assert run.rc != 0
    assert messages(run) == ["slow_job: went wrong; do not ask for it"] * 2
    build = factory.build()
    assert build["failure"]["stage"] == "applications"
    assert build["failure"]["message"] == "slow_job: went wrong; do not ask for it"
    assert set(build["stages"]) == {"media", "base_vm", "cloud_init"}
    assert not factory.locked()

    again = factory.run(image_version="2")
    assert again.rc == 0
    assert "continue debian-12 1 in" in again.stdout.read()
    assert factory.build()["complete"]
    assert "failure" not in factory.build()
    assert not factory.build("2")


def test_killed_playbook_is_started_again(factory: Factory) -> None:
    process = factory.start(seconds=60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert factory.locked()

    again = factory.run(image_version="2")
    assert again.rc == 0, again.stdout.read()
    assert factory.build()["complete"]
    assert not factory.locked()
    assert not (factory.workspace / "mess").exists()


def test_two_builds_of_one_image_at_the_same_time(factory: Factory) -> None:
    process = factory.start(seconds=20)
    try:
        run = factory.run(image_version="2")
        assert run.rc != 0
        (message,) = messages(run)
        assert f"process {process.pid} on {os.uname().nodename} has been building debian-12 since 2" in message
        assert message.endswith("; wait until that has ended, or end it, then run this again")
        assert "\n" not in message
        assert not factory.build("2")
        assert "failure" not in factory.build()
        assert process.wait(120) == 0
    finally:
        process.kill()
    assert factory.build()["complete"]


def test_tags_choose_stages(factory: Factory) -> None:
    assert factory.run("--tags media").rc == 0
    assert set(factory.build()["stages"]) == {"media"}
    assert not factory.build()["complete"]
    assert not factory.locked()

    run = factory.run("--tags cloud_init,export")
    assert run.rc == 0
    assert set(factory.build()["stages"]) == {"media", "cloud_init", "export"}
    assert len([task for task in tasks(run) if "Work" in task]) == 2

    assert factory.run("--tags assess,publish").rc == 0
    assert factory.build()["complete"]
    done = factory.run("--tags media")
    assert done.rc == 0
    assert changed(done) == 0


def test_check_mode_runs_through_and_writes_nothing(factory: Factory) -> None:
    run = factory.run("--check --diff")
    assert run.rc == 0, run.stdout.read()
    assert len([task for task in tasks(run) if "Work" in task]) == len(STAGES)
    assert not factory.workspace.exists()
    assert "build debian-12 1: there is none yet" in run.stdout.read()


def test_many_images_each_at_its_own_pace(factory: Factory) -> None:
    factory.environment["ANSIBLE_STRATEGY"] = "free"
    images = ["debian-12", "debian-13"]
    assert factory.run(images=images[:1]).rc == 0
    run = factory.run(images=images)
    assert run.rc == 0, run.stdout.read()
    assert factory.build(image="debian-13")["complete"]
    assert dict(run.stats["changed"]) == {"debian-13": dict(run.stats["changed"])["debian-13"]}
