# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What several integration tests share: playbooks run by ansible-runner, and one whole build for all."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import tempfile
import time
import typing as t
from pathlib import Path

import ansible_runner
import pytest

TOLD = {"timezone": "Europe/Prague", "keyboard": "de", "hostname": "made-here"}
"""What the installer of the whole build is told beside what the example says."""
CHECKOUT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass
class Played:
    """One run of a playbook."""

    rc: int
    stdout: str
    stats: dict[str, t.Any]
    events: list[dict[str, t.Any]]
    seconds: float

    def changed(self) -> int:
        """How many tasks changed something."""
        return sum(self.stats.get("changed", {}).values())

    def failure(self) -> str:
        """The message of the last task that failed."""
        failed = [event for event in self.events if event["event"] == "runner_on_failed"]
        return str(failed[-1]["event_data"]["res"]["msg"]) if failed else ""

    def tasks(self, event: str = "runner_on_ok") -> list[str]:
        """The names of the tasks that ended so."""
        return [found["event_data"]["task"] for found in self.events if found["event"] == event]


@dataclasses.dataclass
class Factory:
    """An inventory of its own and a workspace, to run the collection's playbooks on."""

    root: Path

    @property
    def workspace(self) -> Path:
        """The workspace of all its images."""
        return self.root / "workspace"

    @property
    def inventory(self) -> Path:
        """The directory of its inventory, a copy of the example."""
        return self.root / "inventory"

    def define(self, image: str, text: str) -> Path:
        """Write an image's host_vars; returns the file."""
        path = self.inventory / "host_vars" / f"{image}.yml"
        path.write_text(text, encoding="utf-8")
        return path

    def play(self, playbook: str, image: str, *options: str, **extra: t.Any) -> Played:
        """Run a playbook of the collection for one image."""
        private = Path(tempfile.mkdtemp(prefix="runner-", dir=self.root))
        began = time.monotonic()
        words = ["--limit", image, *options]
        extra = {"image_workspace": str(self.workspace), **extra}
        runner = ansible_runner.run(
            private_data_dir=str(private),
            playbook=str(CHECKOUT / "playbooks" / playbook),
            inventory=str(self.inventory),
            cmdline=" ".join(words),
            extravars=extra,
            quiet=True,
            envvars={
                "ANSIBLE_COLLECTIONS_PATH": os.environ["ANSIBLE_COLLECTIONS_PATH"],
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "ANSIBLE_NOCOLOR": "1",
            },
        )
        events = list(runner.events)
        stdout = Path(runner.stdout.name).read_text(encoding="utf-8", errors="replace")
        return Played(runner.rc, stdout, runner.stats or {}, events, time.monotonic() - began)

    def builds(self, image: str) -> list[Path]:
        """The build directories of an image, oldest first."""
        return sorted(path.parent for path in (self.workspace / "builds" / image).glob("*/build.json"))

    def build(self, image: str) -> tuple[Path, dict[str, t.Any]]:
        """The newest build directory of an image and what its build.json says."""
        newest = self.builds(image)[-1]
        return newest, json.loads((newest / "build.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def factory(tmp_path_factory) -> Factory:
    """The factory that all tests of whole builds share: their workspace keeps medium and base.

    CLOUDIMG_TEST_FACTORY may name a directory that outlives the tests, so that developers need not wait for the first
    build each time.
    """
    given = os.environ.get("CLOUDIMG_TEST_FACTORY")
    root = Path(given) if given else tmp_path_factory.mktemp("factory")
    shutil.copytree(CHECKOUT / "inventories" / "example", root / "inventory", dirs_exist_ok=True)
    made = Factory(root)
    example = (CHECKOUT / "inventories/example/host_vars/debian-12.yml").read_text(encoding="utf-8")
    made.define("debian-12", f"{example}image_installer: {json.dumps(TOLD)}\n")
    return made


@pytest.fixture(scope="session")
def full_build(factory) -> tuple[Factory, Played]:
    """The factory after a whole build of the example image debian-12, and that run."""
    return factory, factory.play("build.yml", "debian-12", image_version="1.0")


@pytest.fixture(scope="session")
def built_image(full_build) -> Path:
    """The qcow2 artifact of the whole build."""
    factory, played = full_build
    assert played.rc == 0, played.stdout[-3000:]
    directory, build = factory.build("debian-12")
    return directory / Path(build["stages"]["export"]["artifacts"][0]["path"]).name
