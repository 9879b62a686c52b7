# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs the scripts of users in an image: limits on their time, and no way to stop the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

RUNNER = Path(__file__).resolve().parents[2] / "roles/applications/files/run-script"


class Place:
    """A directory with the runner, and tools that must not be reached."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runner = Path(shutil.copy(RUNNER, folder / "run-script"))
        self.tools = folder / "tools"
        self.tools.mkdir()
        for name in ("reboot", "shutdown", "poweroff", "halt", "telinit", "systemctl"):
            tool = self.tools / name
            tool.write_text(f'#!/bin/sh\necho "real {name} $*" >> {folder}/reached\n')
            tool.chmod(0o755)

    def run(self, text: str, *arguments: str, seconds: int = 60) -> subprocess.CompletedProcess[str]:
        script = self.folder / "setup.sh"
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
        environment = {**os.environ, "PATH": f"{self.tools}:{os.environ['PATH']}"}
        argv = [self.runner, str(seconds), script, *arguments]
        return subprocess.run(argv, capture_output=True, text=True, check=False, env=environment, timeout=120)

    def reached(self) -> str:
        path = self.folder / "reached"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_arguments_output_and_exit_code(place: Place) -> None:
    done = place.run('printf "%s|" "$@"; echo no luck >&2; exit 3', "two words", "a'b", "$HOME")
    assert (done.returncode, done.stdout, done.stderr) == (3, "two words|a'b|$HOME|", "no luck\n")


@pytest.mark.parametrize("code", [0, 124, 137, 143])
def test_exit_codes_that_mean_something_to_timeout(place: Place, code: int) -> None:
    done = place.run(f"exit {code}")
    assert (done.returncode, done.stderr) == (code, "")


def test_a_script_that_hangs_ends_with_all_that_it_started(place: Place) -> None:
    pids = place.folder / "pids"
    text = f"sleep 1000 & echo $! > {pids}; (sh -c 'sleep 1001; true' & echo $! >> {pids}); echo waiting; sleep 1000"
    done = place.run(text, seconds=1)
    assert done.returncode == 124
    assert done.stdout == "waiting\n"
    assert done.stderr.splitlines()[-1] == "cloudimg: did not end within 1 s"
    gone(pids)


def test_a_script_that_does_not_want_to_end(place: Place) -> None:
    pids = place.folder / "pids"
    done = place.run(f"trap '' TERM; sleep 1000 & echo $! > {pids}; while :; do sleep 1; done", seconds=1)
    assert done.returncode == 137
    assert done.stderr.splitlines()[-1] == "cloudimg: did not end within 1 s"
    gone(pids)


def gone(pids: Path) -> None:
    """Wait for processes to be gone."""
    deadline = time.monotonic() + 60
    for pid in pids.read_text().split():
        while (
            Path("/proc", pid).exists() and "Z" not in Path("/proc", pid, "stat").read_text().split(")")[-1].split()[0]
        ):
            assert time.monotonic() < deadline, pid
            time.sleep(0.1)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("reboot", "reboot"),
        ("shutdown -h now", "shutdown"),
        ("poweroff", "poweroff"),
        ("halt", "halt"),
        ("telinit 6", "telinit"),
        ("systemctl reboot", "systemctl reboot"),
        ("systemctl --no-block --force poweroff", "systemctl poweroff"),
        ("sh -c 'reboot || true'", "reboot"),
    ],
)
def test_a_script_that_stops_the_machine(place: Place, command: str, told: str) -> None:
    after = place.folder / "after"
    done = place.run(f"{command} || true\ntouch {after}\nexit 0")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"cloudimg: tried to stop or restart the machine ({told})"
    assert place.reached() == ""
    assert not after.exists()


def test_the_next_script_is_not_blamed(place: Place) -> None:
    assert place.run("reboot").returncode == 1
    assert place.run("exit 0").returncode == 0


def test_systemctl_is_what_it_is_otherwise(place: Place) -> None:
    done = place.run("systemctl enable reboot.timer && systemctl --now disable x")
    assert done.returncode == 0
    assert place.reached() == "real systemctl enable reboot.timer\nreal systemctl --now disable x\n"
