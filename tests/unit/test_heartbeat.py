# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The line that shows a job, how its owner looks after it, and where variables stand."""

from __future__ import annotations

import json
import os
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import Cancelled
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress, lease_of, look_after
from ansible_collections.cloudimg.factory.plugins.plugin_utils import _origin
from ansible_collections.cloudimg.factory.plugins.plugin_utils._heartbeat import line, playbook_owner


@pytest.mark.parametrize(
    ("facts", "shown"),
    [
        ({}, "[debian-12] base_vm 02:15  installing"),
        ({"disk": 432013312}, "[debian-12] base_vm 02:15  installing  | disk 412 MiB"),
        ({"done": 5 << 20, "total": 9 << 20}, "[debian-12] base_vm 02:15  installing  | 5 MiB of 9 MiB"),
        ({"done": 5 << 20}, "[debian-12] base_vm 02:15  installing  | 5 MiB"),
        (
            {"disk": 0, "console": "\x1b[1;31mUnpacking\x1b[m\r \x07base\x1b]0;title\x07"},
            "[debian-12] base_vm 02:15  installing  | disk 0 MiB | console: Unpacking base",
        ),
        ({"elapsed": 3725}, "[debian-12] base_vm 1:02:05  installing"),
    ],
)
def test_line(facts: dict[str, t.Any], shown: str) -> None:
    assert line("debian-12", {"stage": "base_vm", "phase": "installing", "elapsed": 135.7, **facts}) == shown


def test_long_console_line_keeps_its_end() -> None:
    assert line("x", {"console": "a" * 500 + " end"}).endswith(" | console: " + "a" * 96 + " end")


def test_owner_is_this_process_where_there_is_no_worker() -> None:
    assert playbook_owner()["pid"] == os.getpid()
    assert playbook_owner()["host"] == os.uname().nodename


@pytest.fixture
def job(tmp_path: Path) -> tuple[Path, Path]:
    results = tmp_path / "j1.2"
    results.write_text(json.dumps({"started": True, "finished": False}), encoding="utf-8")
    return tmp_path / "cloudimg-1.json", results


def test_visit_tells_the_progress_and_renews_lease_and_lock(job: tuple[Path, Path], tmp_path: Path) -> None:
    path, results = job
    lock = tmp_path / "lock"
    lock.touch()
    progress = Progress("base_vm", {"path": str(path)})
    progress.phase("installing")
    for old in (lock, path.with_name(f"{path.name}.lease")):
        os.utime(old, (0, 0))
    found = look_after(path, results, "visited", lock)
    assert (found["finished"], found["alive"], found["progress"]["phase"]) == (False, True, "installing")
    assert lock.stat().st_mtime > 0
    progress.check()


def test_watching_renews_nothing(job: tuple[Path, Path]) -> None:
    path, results = job
    Progress("base_vm", {"path": str(path)})
    look_after(path, results, "cancelled")
    assert look_after(path, results, "watched")["alive"] is None
    assert lease_of(path) == 0


def test_cancelled_job_ends_when_it_reports(job: tuple[Path, Path]) -> None:
    progress = Progress("base_vm", {"path": str(job[0])})
    look_after(*job, "cancelled")
    with pytest.raises(Cancelled):
        progress.report()


def test_dead_process_and_finished_job_are_told(job: tuple[Path, Path]) -> None:
    path, results = job
    path.write_text(json.dumps({"pid": 1 << 30}), encoding="utf-8")
    assert look_after(path, results, "visited")["alive"] is False
    results.write_text(json.dumps({"changed": True}), encoding="utf-8")
    assert look_after(path, results, "visited")["finished"]
    results.write_text("", encoding="utf-8")
    assert not look_after(path, results, "visited")["finished"]


def test_absent_removes_all_files(job: tuple[Path, Path], tmp_path: Path) -> None:
    Progress("base_vm", {"path": str(job[0])}).phase("x")
    look_after(*job, "absent")
    assert list(tmp_path.iterdir()) == []


def test_beginning_removes_what_dead_jobs_left_and_no_more(job: tuple[Path, Path], tmp_path: Path) -> None:
    def left(name: str, pid: int, age: tuple[int, int] | None) -> None:
        (tmp_path / f"cloudimg-{name}.json").write_text(json.dumps({"pid": pid}), encoding="utf-8")
        (tmp_path / f"j{name}").touch()
        lease = tmp_path / f"cloudimg-{name}.json.lease"
        lease.write_text(f"j{name}", encoding="utf-8")
        if age:
            os.utime(lease, age)

    left("dead", 1 << 30, (0, 0))
    left("alive", os.getpid(), (0, 0))
    left("young", 1 << 30, None)
    (tmp_path / "j4711.1").touch()
    look_after(*job, "begun")
    names = {path.name for path in tmp_path.iterdir()}
    assert not {name for name in names if "dead" in name}
    assert {"jalive", "jyoung", "j4711.1", "cloudimg-alive.json", "cloudimg-young.json"} <= names


def test_place_of_a_variable_without_origin_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_origin, "Origin", None)
    for name, text in (
        ("group_vars/all.yml", "image_title: x\nimage_only: x\n"),
        ("host_vars/debian-12/main.yml", "---\n# image_title: y\nimage_title: y\n"),
        ("hosts.yml", "all:\n  vars:\n    image_inline: z\n"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    places = _origin.Places(
        {
            "inventory_hostname": "debian-12",
            "group_names": ["images"],
            "inventory_dir": str(tmp_path),
            "inventory_file": str(tmp_path / "hosts.yml"),
        }
    )
    assert places.of({"image_title": "y"}, ("image_title",)) == f"{tmp_path}/host_vars/debian-12/main.yml:3"
    assert places.of({"image_only": "x"}, ("image_only",)) == f"{tmp_path}/group_vars/all.yml:2"
    assert places.of({"image_inline": "z"}, ("image_inline",)) == f"{tmp_path}/hosts.yml:3"
    assert places.of({}, ("image_os",)) == "host debian-12"
