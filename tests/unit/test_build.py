# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of builds: when one begins, goes on or is complete, and who may build."""

from __future__ import annotations

import os
import subprocess
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils._build import Build, Builds
from ansible_collections.cloudimg.factory.plugins.module_utils._build_lock import LEASE
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import file_digests
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._owner import Owner
from ansible_collections.cloudimg.factory.plugins.module_utils._state import read_json, write_json

DEFINITION = {"image_title": "Debian 12", "image_packages": [], "image_version": "1", "image_builder": "localhost"}
INPUTS = {"stage": {"media": "aa"}, "variables": {"media_mirror": "x"}}


@pytest.fixture
def sleeper() -> t.Iterator[subprocess.Popen[bytes]]:
    """A process that could be another ansible-playbook."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def builds(workspace: Path, owner: Owner | None = None, host: str | None = None, check_mode: bool = False) -> Builds:
    dumped = (owner or Owner.of()).dump()
    return Builds(str(workspace), "debian-12", {**dumped, "host": host} if host else dumped, check_mode)


def begin(known: Builds, version: str = "1", digest: str = "d1", **changes: t.Any) -> t.Any:
    return known.begin(version, digest, {**DEFINITION, "image_version": version, **changes}, INPUTS)


def complete(known: Builds, version: str = "1", digest: str = "d1", **changes: t.Any) -> Build:
    """Begin a build and take it to its end."""
    build: Build = begin(known, version, digest, **changes).extra["build"]
    folder = Path(build["dir"])
    artifact = folder / "debian-12.qcow2"
    artifact.write_bytes(b"disk" * 1000)
    (folder / "descriptor.json").write_text("{}", encoding="utf-8")
    made = {"path": str(artifact), "size": 4000, "checksums": file_digests(artifact)}
    known.record(version, "export", {"descriptor": str(folder / "descriptor.json"), "artifacts": [made]})
    known.record(version, "assess", {"verdict": "pass"})
    known.record(version, "publish", {"catalogues": ["local"]})
    return dict(known.finish(version).extra["build"])


def tree(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_first_build_begins(tmp_path: Path) -> None:
    result = begin(builds(tmp_path))
    build = result.extra["build"]
    assert result.changed
    assert result.actions == ["build debian-12 1: there is none yet"]
    assert build["dir"] == str(tmp_path / "builds/debian-12/1")
    assert build["workspace"] == str(tmp_path)
    assert (build["complete"], build["stages"], build["inputs"]) == (False, {}, INPUTS)
    assert read_json(tmp_path / "builds/debian-12/1/build.json") == build
    assert (tmp_path / "cache/media").is_dir()
    assert (tmp_path / "builds/debian-12/.lock.json").exists()


def test_finished_build_is_complete_and_unlocked(tmp_path: Path) -> None:
    build = complete(builds(tmp_path))
    assert build["complete"]
    assert build["finished"] >= build["created"]
    assert not (tmp_path / "builds/debian-12/.lock.json").exists()


def test_build_without_all_stages_is_not_complete_but_unlocked(tmp_path: Path) -> None:
    known = builds(tmp_path)
    begin(known)
    known.record("1", "export", {})
    result = known.finish("1")
    assert not result.changed
    assert not result.extra["build"]["complete"]
    assert not (tmp_path / "builds/debian-12/.lock.json").exists()


def test_same_digest_needs_no_build_whatever_the_version(tmp_path: Path) -> None:
    known = builds(tmp_path)
    made = complete(known)
    before = (tmp_path / "builds/debian-12/1/build.json").stat().st_mtime_ns
    for version in ("1", "2", "0"):
        result = begin(known, version)
        assert not result.changed
        assert result.actions == []
        assert result.extra["build"] == made
    assert (tmp_path / "builds/debian-12/1/build.json").stat().st_mtime_ns == before
    assert not (tmp_path / "builds/debian-12/2").exists()
    assert not (tmp_path / "builds/debian-12/.lock.json").exists()


def test_other_digest_begins_a_build_and_tells_what_differs(tmp_path: Path) -> None:
    known = builds(tmp_path)
    complete(known)
    result = begin(known, "2", "d2", image_packages=["htop"])
    assert result.changed
    assert result.actions == ["build debian-12 2: differs from 1 in image_packages"]
    assert result.diff == {
        "before_header": "debian-12 1",
        "before": {"image_packages": []},
        "after_header": "debian-12 2",
        "after": {"image_packages": ["htop"]},
    }


def test_changed_inputs_are_told_by_their_names(tmp_path: Path) -> None:
    known = builds(tmp_path)
    complete(known)
    result = known.begin("2", "d2", DEFINITION, {"stage": {"media": "bb"}, "variables": {}, "scripts": ["x"]})
    assert result.actions == ["build debian-12 2: differs from 1 in media_mirror, scripts, stage media"]


def test_version_of_a_complete_build_cannot_be_taken_again(tmp_path: Path) -> None:
    known = builds(tmp_path)
    complete(known)
    with pytest.raises(FactoryError) as caught:
        begin(known, "1", "d2")
    path = tmp_path / "builds/debian-12/1/build.json"
    assert str(caught.value) == (
        f"{path}: image_version: 1 is complete, of a definition that was different; raise image_version above 1"
    )
    assert not (tmp_path / "builds/debian-12/.lock.json").exists()


def test_versions_only_rise(tmp_path: Path) -> None:
    known = builds(tmp_path)
    complete(known, "1.10")
    with pytest.raises(
        FactoryError, match=r"image_version: 1\.9 is lower than that of the newest complete build, 1\.10"
    ):
        begin(known, "1.9", "d2")
    assert begin(known, "1.11", "d2").extra["build"]["version"] == "1.11"


def test_unfinished_build_is_taken_up_again(tmp_path: Path) -> None:
    known = builds(tmp_path)
    begin(known)
    for stage in ("media", "base_vm", "cloud_init"):
        (tmp_path / stage).touch()
        known.record("1", stage, {"path": str(tmp_path / stage)})
    known.fail("1", "applications", "it broke\nbadly")
    (tmp_path / "base_vm").unlink()

    result = begin(known, "2", image_builder="builder1")
    build = result.extra["build"]
    assert not result.changed
    assert result.extra["resumed"]
    assert build["version"] == build["definition"]["image_version"] == "1"
    assert build["definition"]["image_builder"] == "builder1"
    assert set(build["stages"]) == {"media"}
    assert "failure" not in build
    assert read_json(tmp_path / "builds/debian-12/1/build.json") == build


def test_unfinished_build_of_another_definition_gives_way(tmp_path: Path) -> None:
    known = builds(tmp_path)
    begin(known)
    left = tmp_path / "builds/debian-12/1/debian-12.qcow2"
    left.touch()
    assert begin(known, "1", "d2").extra["build"]["digest"] == "d2"
    assert not left.exists()


def test_unfinished_build_older_than_a_complete_one_is_not_taken_up(tmp_path: Path) -> None:
    known = builds(tmp_path)
    begin(known, "1", "d1")
    complete(known, "2", "d2")
    result = begin(known, "3", "d1")
    assert result.extra["build"]["version"] == "3"


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(b"x"), "has another size than when it was exported"),
        (lambda path: path.write_bytes(b"disc" * 1000), "has another content than when it was exported"),
    ],
)
def test_damaged_artifact_is_built_again(tmp_path: Path, harm: t.Callable[[Path], None], problem: str) -> None:
    known = builds(tmp_path)
    artifact = Path(complete(known)["stages"]["export"]["artifacts"][0]["path"])
    harm(artifact)
    with pytest.raises(FactoryError, match=f"{problem}; raise image_version above 1, or restore that file"):
        begin(known, "1")
    result = begin(known, "2")
    assert result.actions == [f"build debian-12 2: {artifact} {problem}"]


def test_missing_descriptor_is_built_again(tmp_path: Path) -> None:
    known = builds(tmp_path)
    complete(known)
    (tmp_path / "builds/debian-12/1/descriptor.json").unlink()
    assert begin(known, "2").changed


def test_new_record_makes_later_ones_void(tmp_path: Path) -> None:
    known = builds(tmp_path)
    begin(known)
    for stage in ("media", "base_vm", "export"):
        assert known.record("1", stage, {"digest": "1"}).actions == [f"record {stage}"]
    assert not known.record("1", "base_vm", {"digest": "1"}).changed
    assert set(known.record("1", "base_vm", {"digest": "2"}).extra["build"]["stages"]) == {"media", "base_vm"}


def test_failure_is_noted_in_one_line(tmp_path: Path) -> None:
    known = builds(tmp_path)
    begin(known)
    failure = known.fail("1", "base_vm", "it broke\n  badly").extra["build"]["failure"]
    assert (failure["stage"], failure["message"]) == ("base_vm", "it broke badly")
    assert read_json(tmp_path / "builds/debian-12/1/build.json")["failure"] == failure
    assert not (tmp_path / "builds/debian-12/.lock.json").exists()


def test_record_needs_a_build(tmp_path: Path) -> None:
    with pytest.raises(FactoryError, match="there is no such build; begin it by role definition first"):
        builds(tmp_path).record("1", "media", {})


@pytest.mark.parametrize("name", ["../x", "a b", "a'b"])
def test_bad_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(FactoryError, match="cannot be the name of an image"):
        Builds(str(tmp_path), name)
    with pytest.raises(FactoryError, match="cannot be a version"):
        begin(builds(tmp_path), name)
    assert tree(tmp_path) == {}


def test_two_playbooks_cannot_build_one_image(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    begin(builds(tmp_path, Owner.of(sleeper.pid), "builder1"))
    ours = builds(tmp_path)
    for attempt in (lambda: begin(ours, "2", "d2"), lambda: ours.record("1", "media", {})):
        with pytest.raises(FactoryError) as caught:
            attempt()
        assert f"process {sleeper.pid} on builder1 has been building debian-12 since 2" in str(caught.value)
        assert "wait until that has ended" in str(caught.value)
        assert "\n" not in str(caught.value)
    ours.lock.drop()
    assert builds(tmp_path).lock.holder()


def test_lock_of_a_dead_playbook_is_taken_over(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    begin(builds(tmp_path, Owner.of(sleeper.pid)))
    sleeper.kill()
    sleeper.wait()
    assert begin(builds(tmp_path)).extra["resumed"]
    assert read_json(tmp_path / "builds/debian-12/.lock.json")["owner"]["pid"] == os.getpid()


def test_lock_of_another_machine_has_a_lease(tmp_path: Path) -> None:
    elsewhere = Owner(1, 1, "another boot/pid:[1]")
    theirs = builds(tmp_path, elsewhere, "controller.example.org")
    begin(theirs)
    with pytest.raises(FactoryError, match=r"process 1 on controller\.example\.org has been building"):
        begin(builds(tmp_path))
    path = tmp_path / "builds/debian-12/.lock.json"
    old = time.time() - LEASE - 1
    os.utime(path, (old, old))
    theirs.record("1", "media", {})  # renews it
    assert builds(tmp_path).lock.holder()
    os.utime(path, (old, old))
    assert begin(builds(tmp_path)).extra["resumed"]


def test_lock_from_before_a_reboot_does_not_count(tmp_path: Path) -> None:
    begin(builds(tmp_path, Owner(os.getpid(), 1, "another boot/pid:[1]")))
    path = tmp_path / "builds/debian-12/.lock.json"
    held = read_json(path)
    assert held["host"] == os.uname().nodename
    assert begin(builds(tmp_path)).extra["resumed"]


def test_check_mode_writes_nothing(tmp_path: Path) -> None:
    known = builds(tmp_path, check_mode=True)
    build = begin(known).extra["build"]
    assert build["dir"] == str(tmp_path / "builds/debian-12/1")
    build = known.record("1", "media", {"path": "/x"}, build).extra["build"]
    build = known.record("1", "export", {"path": "/y"}, build).extra["build"]
    assert set(build["stages"]) == {"media", "export"}
    assert build["definition"]["image_title"] == "Debian 12"
    assert not known.finish("1", build).extra["build"]["complete"]
    assert known.fail("1", "assess", "x", build).extra["build"]["failure"]
    assert tree(tmp_path) == {}


def test_check_mode_leaves_builds_as_they_are(tmp_path: Path) -> None:
    known = builds(tmp_path)
    complete(known)
    begin(known, "2", "d2")
    before = tree(tmp_path)
    trial = builds(tmp_path, check_mode=True)
    assert begin(trial, "3", "d3").changed
    assert begin(trial, "3", "d2").extra["resumed"]
    assert tree(tmp_path) == before


def test_builds_are_listed_newest_first(tmp_path: Path) -> None:
    known = builds(tmp_path)
    for version in ("9", "10", "1~rc1"):
        folder = tmp_path / "builds/debian-12" / version
        write_json(folder / "build.json", {"version": version})
    assert [build["version"] for build in known.all()] == ["10", "9", "1~rc1"]


def timed(path: Path, seconds: float) -> None:
    """Let a file have been written, or the mark of a lock have been made, so many seconds ago."""
    then = time.time() - seconds
    if path.name == ".lock.json":
        write_json(path, {**read_json(path), "mark": then})
    else:
        os.utime(path, (then, then))


def test_record_notes_when_a_stage_began_and_ended(tmp_path: Path) -> None:
    known = builds(tmp_path)
    begin(known)
    lock = tmp_path / "builds/debian-12/.lock.json"
    (tmp_path / "iso").touch()
    timed(tmp_path / "iso", 500)
    timed(lock, 100)
    media = known.record("1", "media", {"path": str(tmp_path / "iso")}).extra["build"]["stages"]["media"]
    assert 100 <= media["seconds"] < 160
    assert media["began"] < media["finished"]
    assert media["cached"] is True

    timed(lock, 50)
    os.utime(lock)  # as those do who work for long
    (tmp_path / "disk").touch()
    base = known.record("1", "base_vm", {"path": str(tmp_path / "disk")}).extra["build"]["stages"]["base_vm"]
    assert 50 <= base["seconds"] < 110
    assert "cached" not in base
    assert read_json(tmp_path / "builds/debian-12/1/build.json")["stages"] == {"media": media, "base_vm": base}


def test_same_record_keeps_its_time_but_not_the_next_ones(tmp_path: Path) -> None:
    known = builds(tmp_path)
    begin(known)
    lock = tmp_path / "builds/debian-12/.lock.json"
    first = known.record("1", "media", {"digest": "1"}).extra["build"]["stages"]["media"]
    timed(lock, 1000)
    again = known.record("1", "media", {"digest": "1"})
    assert not again.changed
    assert again.extra["build"]["stages"]["media"] == first
    base = known.record("1", "base_vm", {"digest": "1"}).extra["build"]["stages"]["base_vm"]
    assert base["seconds"] < 900


def test_pause_between_two_runs_is_no_time_of_a_stage(tmp_path: Path) -> None:
    known = builds(tmp_path)
    begin(known)
    known.record("1", "media", {"digest": "1"})
    known.fail("1", "base_vm", "it broke")
    assert not (tmp_path / "builds/debian-12/.lock.json").exists()
    assert begin(known).extra["resumed"]
    timed(tmp_path / "builds/debian-12/.lock.json", 20)
    base = known.record("1", "base_vm", {"digest": "1"}).extra["build"]["stages"]["base_vm"]
    assert 20 <= base["seconds"] < 80


def test_record_without_a_lock_has_only_an_end(tmp_path: Path) -> None:
    known = builds(tmp_path)
    begin(known)
    known.lock.drop()
    media = known.record("1", "media", {"digest": "1"}).extra["build"]["stages"]["media"]
    assert set(media) == {"digest", "finished"}


def test_lock_that_a_killed_playbook_left_tells_no_time(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    begin(builds(tmp_path, Owner.of(sleeper.pid)))
    sleeper.kill()
    sleeper.wait()
    media = builds(tmp_path).record("1", "media", {"digest": "1"}).extra["build"]["stages"]["media"]
    assert set(media) == {"digest", "finished"}


def test_check_mode_notes_no_time(tmp_path: Path) -> None:
    known = builds(tmp_path, check_mode=True)
    build = begin(known).extra["build"]
    stages = known.record("1", "media", {"digest": "1"}, build).extra["build"]["stages"]
    assert stages == {"media": {"digest": "1"}}


@pytest.mark.parametrize(
    ("assessed", "complete"),
    [
        ({"verdict": "fail"}, False),
        ({"verdict": "fail", "override": {"reason": "known", "by": "alice", "at": "2025-01-31T12:20:00Z"}}, True),
        ({"verdict": "pass"}, True),
    ],
)
def test_what_failed_is_complete_only_when_let_through(
    tmp_path: Path, assessed: dict[str, t.Any], complete: bool
) -> None:
    known = builds(tmp_path)
    begin(known)
    for stage, record in (("export", {}), ("assess", assessed), ("publish", {})):
        known.record("1", stage, record)
    assert known.finish("1").extra["build"]["complete"] is complete
    assert not (tmp_path / "builds/debian-12/.lock.json").exists()
