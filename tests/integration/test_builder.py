# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Role builder on this machine: a second run changes nothing, what cannot be is told in one clear line."""

from __future__ import annotations

import json
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")


@pytest.fixture
def play(checkout: Path, tmp_path: Path) -> t.Callable[..., subprocess.CompletedProcess[str]]:
    """Runs playbooks/builder.yml on this machine, with the given variables."""
    inventory = tmp_path / "hosts.json"
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    inventory.write_text(json.dumps({"builders": {"hosts": {"here": here}}}), encoding="utf-8")

    def run(**variables: object) -> subprocess.CompletedProcess[str]:
        command = [PLAYBOOK, "playbooks/builder.yml", "-i", inventory, "-e", json.dumps(variables)]
        return subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=600, check=False)

    return run


def test_second_run_changes_nothing_and_tells_what_the_builder_can_do(play, tmp_path):
    assert play().returncode == 0
    again = play(builder_workspace=str(tmp_path / "not/there/yet"))
    assert again.returncode == 0, again.stdout
    assert "changed=0" in again.stdout
    for told in ("virt-install", "processors", "GiB free", "guests:"):
        assert told in again.stdout


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        (
            {"builder_features": ["fay"]},
            "builder_features must be one or more of: all, fai, keyrings, offline, publish, scores, uefi",
        ),
        (
            {"builder_features": ["fai"], "__builder_os_features": {"core": {"packages": [], "tools": []}}},
            "here: builder_features: Debian has no packages for fai; leave it out there",
        ),
        ({"__builder_os_files": []}, "here: the packages of Debian are not known; build on a host of"),
        (
            {"__builder_os_features": {"core": {"packages": [], "tools": [{"name": "no-tool", "package": "apt"}]}}},
            "here: no-tool: is not installed on the builder; run playbooks/builder.yml, or install the package apt",
        ),
    ],
    ids=["unknown feature", "feature without packages", "unknown system", "missing tool"],
)
def test_what_cannot_be_is_told(play, variables, line):
    done = play(**variables)
    assert done.returncode == 2
    assert line in " ".join(done.stdout.split())
