# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The verdict in the descriptor, and the override that lets an image through."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _verdict
from ansible_collections.cloudimg.factory.plugins.module_utils._state import write_json

SUMS = {"md5": "a" * 32, "sha1": "b" * 40, "sha256": "c" * 64, "sha512": "d" * 128}
FINISHED = "2025-01-31T12:10:00Z"


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """A build directory with a descriptor as the export leaves it."""
    found = _descriptor.Descriptor(
        image="debian-12",
        identifier=_descriptor.stable_identifier("debian-12"),
        version="1",
        title="Debian 12",
        description="",
        os=_descriptor.OperatingSystem("debian", "12", "x86_64"),
        min_disk=1 << 30,
        artifacts=(_descriptor.Artifact("qcow2", "debian-12-1.qcow2", 4, 1 << 30, SUMS),),
        created="2025-01-31T12:00:00Z",
        provenance=_descriptor.Provenance("0" * 64, "7.2", "0.1.0"),
    )
    (tmp_path / "descriptor.json").write_text(found.dump(), encoding="utf-8")
    return tmp_path


def judge(build: Path, verdict: str, sha256: str = SUMS["sha256"], **more: t.Any) -> None:
    report = {"verdict": verdict, "artifact": {"sha256": sha256}, "finished": FINISHED, **more}
    write_json(build / "assess.json", report)


def assessed(build: Path) -> t.Any:
    return _descriptor.load(build / "descriptor.json").assess


def test_pass_is_written_once(build: Path) -> None:
    judge(build, "pass")
    result = _verdict.settle(build, "", "alice")
    assert result.actions == ["descriptor.json: the verdict is pass"]
    assert result.extra["accepted"] is True
    assert result.diff == {"before": {"assess": None}, "after": {"assess": assessed(build)}}
    assert assessed(build) == {"verdict": "pass", "finished": FINISHED}
    before = (build / "descriptor.json").stat().st_mtime_ns
    assert not _verdict.settle(build, "", "alice").changed
    assert (build / "descriptor.json").stat().st_mtime_ns == before


def test_what_passes_needs_no_override(build: Path) -> None:
    judge(build, "pass")
    result = _verdict.settle(build, "to be sure", "alice")
    assert result.extra["override"] is None
    assert "override" not in assessed(build)


@pytest.mark.parametrize("reason", ["", "  ", "\n\t "])
def test_fail_without_a_reason(build: Path, reason: str) -> None:
    judge(build, "fail")
    result = _verdict.settle(build, reason, "alice")
    assert (result.extra["verdict"], result.extra["accepted"]) == ("fail", False)
    assert result.extra["problem"] == "the verdict is 'fail'"
    assert assessed(build) == {"verdict": "fail", "finished": FINISHED}


def test_fail_is_let_through_for_a_reason(build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge(build, "fail")
    monkeypatch.setattr(_descriptor, "now", lambda: "2025-02-01T08:00:00Z")
    result = _verdict.settle(build, " known:\n ticket 4711 ", "alice")
    override = {"reason": "known: ticket 4711", "by": "alice", "at": "2025-02-01T08:00:00Z"}
    assert result.actions == ["descriptor.json: the verdict is fail, let through: known: ticket 4711"]
    assert (result.extra["accepted"], result.extra["override"]) == (True, override)
    assert assessed(build) == {"verdict": "fail", "finished": FINISHED, "override": override}

    monkeypatch.setattr(_descriptor, "now", lambda: "2025-02-02T08:00:00Z")
    assert not _verdict.settle(build, "known: ticket 4711", "bob").changed
    assert _verdict.settle(build, "another reason", "bob").extra["override"] == {
        "reason": "another reason",
        "by": "bob",
        "at": "2025-02-02T08:00:00Z",
    }
    assert not _verdict.settle(build, "", "bob").extra["accepted"]
    assert "override" not in assessed(build)


@pytest.mark.parametrize("about", ["nothing", "another"])
def test_what_was_not_assessed_cannot_be_let_through(build: Path, about: str) -> None:
    judge(build, "pass")
    _verdict.settle(build, "", "alice")
    if about == "nothing":
        (build / "assess.json").unlink()
    else:
        judge(build, "pass", sha256="0" * 64)
    result = _verdict.settle(build, "whatever", "alice")
    assert (result.extra["verdict"], result.extra["accepted"], result.extra["override"]) == ("none", False, None)
    assert result.changed
    assert assessed(build) is None


def test_check_mode_writes_nothing(build: Path, tmp_path: Path) -> None:
    judge(build, "pass")
    before = (build / "descriptor.json").read_bytes()
    assert _verdict.settle(build, "", "alice", check_mode=True).changed
    assert (build / "descriptor.json").read_bytes() == before
    missing = _verdict.settle(tmp_path / "none", "", "alice", check_mode=True)
    assert missing.changed
    assert missing.extra["accepted"] is False


@pytest.mark.parametrize("finished", [None, "yesterday", 12, "2025-13-31T12:00:00Z"])
def test_odd_time_is_left_out(build: Path, finished: t.Any) -> None:
    judge(build, "pass", finished=finished)
    _verdict.settle(build, "", "alice")
    assert assessed(build) == {"verdict": "pass"}
