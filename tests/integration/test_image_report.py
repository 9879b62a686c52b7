# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the verdict to the catalogue: the real roles assess and publish, after stages that only pretend to work."""

from __future__ import annotations

import hashlib
import json
import shutil
import typing as t
from pathlib import Path

import pytest
import yaml
from test_image_build import ARTIFACT, DIGEST, RECORD, Factory, changed, messages

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor

FINISHED = "2025-01-31T12:10:00Z"


def descriptor() -> str:
    """The descriptor of the pretended artifact."""
    sums = {name: hashlib.new(name, b"disk").hexdigest() for name in ("md5", "sha1", "sha256", "sha512")}
    return _descriptor.Descriptor(
        image="debian-12",
        identifier=_descriptor.stable_identifier("debian-12"),
        version="1",
        title="Debian 12 <test>",
        description="",
        os=_descriptor.OperatingSystem("debian", "12", "x86_64"),
        min_disk=1 << 30,
        artifacts=(_descriptor.Artifact("qcow2", "disk.qcow2", 4, 1 << 30, sums),),
        created="2025-01-31T12:00:00Z",
        provenance=_descriptor.Provenance("0" * 64, "7.2", "0.1.0"),
    ).dump()


def write(content: t.Any, dest: str, **more: t.Any) -> dict[str, t.Any]:
    """A task that writes a file on the builder."""
    return {
        "name": f"Write {Path(dest).name}",
        "ansible.builtin.copy": {"content": content, "dest": dest, "mode": "0644", **more},
        "delegate_to": "localhost",
    }


# As the real one: a verdict is a result, whatever it says; without one the task fails.
JUDGE = [
    {
        **write(
            json.dumps(
                {
                    "verdict": "{{ verdict }}",
                    "artifact": {"name": "disk.qcow2", "sha256": DIGEST},
                    "finished": FINISHED,
                    "boots": [{"name": "bios-nocloud", "timings": {"ssh": 51.4}}],
                    "checks": [{"boot": "bios-nocloud", "name": "login", "ok": False, "detail": "d"}],
                }
            ),
            "{{ cloudimg_build.dir }}/assess.json",
        ),
        "register": "__assess_result",
        "when": "verdict != 'crash'",
    },
    {
        "name": "Crash",
        "ansible.builtin.fail": {"msg": "qemu could not be started"},
        "when": "verdict == 'crash'",
    },
]


class Judged(Factory):
    """The factory with the real roles assess and publish; only the judge pretends."""

    def __init__(self, folder: Path, checkout: Path) -> None:
        super().__init__(folder, checkout)
        roles = Path(self.playbook).parent.parent / "roles"
        for role in ("assess", "publish"):
            shutil.rmtree(roles / role)
            shutil.copytree(checkout / "roles" / role, roles / role)
        (roles / "assess/tasks/judge.yml").write_text(yaml.safe_dump(JUDGE), encoding="utf-8")
        record = {**RECORD, "digest": "1"}
        export = [
            write("disk", ARTIFACT),
            # as the real export, which leaves alone what is up to date
            write(descriptor(), record["descriptor"], force=False),
            {
                "name": "Record",
                "cloudimg.factory.image_build": {
                    **{name: f"{{{{ cloudimg_build.{name} }}}}" for name in ("workspace", "image", "version")},
                    "state": "recorded",
                    "stage": "export",
                    "record": record,
                },
                "register": "recorded",
                "delegate_to": "localhost",
            },
            {"name": "Know", "ansible.builtin.set_fact": {"cloudimg_build": "{{ recorded.build }}"}},
        ]
        (roles / "export/tasks/main.yml").write_text(yaml.safe_dump(export), encoding="utf-8")

    @property
    def directory(self) -> Path:
        return self.workspace / "builds/debian-12/1"

    def report(self) -> str:
        return (self.directory / "report.html").read_text(encoding="utf-8")

    def assessed(self) -> t.Any:
        return _descriptor.load(self.directory / "descriptor.json").assess

    def entry(self) -> dict[str, t.Any]:
        path = self.workspace / "catalogue/index.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))["images"]["debian-12"]) if path.exists() else {}


@pytest.fixture
def factory(tmp_path: Path, checkout: Path) -> Judged:
    return Judged(tmp_path, checkout)


def test_passed(factory: Judged) -> None:
    planned = factory.run("--check", verdict="pass")
    assert planned.rc == 0, planned.stdout.read()
    assert not factory.workspace.exists()

    run = factory.run(verdict="pass")
    assert run.rc == 0, run.stdout.read()
    build = factory.build()
    assert build["complete"]
    for stage, record in build["stages"].items():
        assert record["began"] <= record["finished"], stage
        assert record["seconds"] >= 0
    assert build["stages"]["assess"]["verdict"] == "pass"
    assert build["stages"]["assess"]["report"] == str(factory.directory / "report.html")
    assert factory.assessed() == {"verdict": "pass", "finished": FINISHED}
    page = factory.report()
    assert "Passed" in page
    assert "Debian 12 &lt;test&gt;" in page
    assert "assess</span>" in page
    (published,) = factory.entry()["versions"]
    assert published["assess"] == factory.assessed()
    assert (factory.workspace / "catalogue" / published["report"]).read_text(encoding="utf-8") == page

    before = {path: path.stat().st_mtime_ns for path in factory.workspace.rglob("*") if path.is_file()}
    again = factory.run(verdict="pass")
    assert again.rc == 0
    assert changed(again) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_failed_is_reported_and_not_published(factory: Judged) -> None:
    run = factory.run(verdict="fail")
    assert run.rc != 0
    assert messages(run)[-1] == "the verdict is 'fail'"
    build = factory.build()
    assert not build["complete"]
    assert build["failure"]["stage"] == "assess"
    assert (build["stages"]["assess"]["verdict"], "override" in build["stages"]["assess"]) == ("fail", False)
    assert "publish" not in build["stages"]
    assert factory.assessed() == {"verdict": "fail", "finished": FINISHED}
    assert "What failed" in factory.report()
    assert factory.entry() == {}
    assert not factory.locked()

    blank = factory.run(verdict="fail", assess_override="  ")
    assert blank.rc != 0
    alone = factory.run("--tags publish", verdict="fail")
    assert alone.rc != 0
    assert factory.entry() == {}


def test_failed_is_let_through_for_a_reason(factory: Judged) -> None:
    assert factory.run(verdict="fail").rc != 0
    run = factory.run(verdict="fail", assess_override="ticket 4711", assess_who="alice")
    said = run.stdout.read()
    assert run.rc == 0, said
    assert "debian-12 1 has failed and is let through: ticket 4711" in " ".join(said.split())
    build = factory.build()
    assert build["complete"]
    override = factory.assessed()["override"]
    assert (override["reason"], override["by"]) == ("ticket 4711", "alice")
    assert build["stages"]["assess"]["override"] == override
    assert "Let through by alice" in factory.report()
    (published,) = factory.entry()["versions"]
    assert published["assess"]["override"] == override
    assert factory.entry()["history"][-1]["reason"] == "not assessed as pass: ticket 4711"


def test_without_a_verdict_nothing_is_let_through(factory: Judged) -> None:
    run = factory.run(verdict="crash", assess_override="ticket 4711")
    assert run.rc != 0
    assert messages(run)[-1] == "qemu could not be started"
    assert factory.build()["failure"]["message"] == "qemu could not be started"
    assert "assess" not in factory.build()["stages"]
    assert factory.assessed() is None
    assert "Not assessed" in factory.report()
    assert factory.entry() == {}

    again = factory.run(verdict="pass")
    assert again.rc == 0, again.stdout.read()
    assert "Passed" in factory.report()
