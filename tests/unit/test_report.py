# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report: what it tells, that it is one sound page, and that no text of a guest becomes more than a text."""

from __future__ import annotations

import html.parser
import json
import re
import typing as t
import zlib
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _report, _report_data, _report_html
from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor import stable_identifier, version_identifier
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._state import write_json

SUMS = {"md5": "a" * 32, "sha1": "b" * 40, "sha256": "c" * 64, "sha512": "d" * 128}
HOSTILE = "<script src=//evil.example/x.js></script>'\"><img src=x onerror=alert(1)>&amp;\x00\x1b[31m\u202e"
VOID = {"meta", "img", "br", "col"}
PNG = b"\x89PNG\r\n\x1a\n" + zlib.compress(b"no picture, but it begins like one")


class Page(html.parser.HTMLParser):
    """A page as a browser would see it; elements that are closed in another order than opened are an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: dict[str, str] = {}
        self.sections: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        assert len(given) == len(attrs), f"{tag} has an attribute twice"
        self.names.append(tag)
        self.attributes += [(tag, key, value) for key, value in given.items()]
        if tag == "section":
            self.sections.append(given["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # HTML knows no such thing, SVG does.
        assert "svg" in self.open
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "head" in self.open:
            return
        place = self.sections[-1] if "section" in self.open else "head"
        self.words[place] = self.words.get(place, "") + data


def descriptor(version: str = "2", **more: t.Any) -> dict[str, t.Any]:
    identifier = stable_identifier("debian-12")
    return {
        "schema": 1,
        "action": "registration",
        "identifier": identifier,
        "version_identifier": version_identifier(identifier, version),
        "image": "debian-12",
        "version": version,
        "title": "Debian 12",
        "description": "Minimální",
        "architecture": "x86_64",
        "os": {"distribution": "debian", "version": "12", "arch": "x86_64"},
        "min_disk": 8 << 30,
        "disks": [{"type": "os", "format": "qcow2", "path": "debian-12-2.qcow2", "virtual_size": 8 << 30}],
        "artifacts": [
            {
                "format": "qcow2",
                "path": "debian-12-2.qcow2",
                "size": 200 << 20,
                "virtual_size": 8 << 30,
                "checksums": dict(SUMS),
            }
        ],
        "created": "2025-01-31T12:00:00Z",
        "provenance": {
            "source_digest": "e" * 64,
            "qemu": "7.2.22",
            "collection": "0.1.0",
            "stages": {"harden": "e" * 64},
        },
        "packages": "packages.json",
        "source": {"family": "fai", "sha256": "0" * 64, "source": "fai.iso"},
        **more,
    }


def stage(began: str, finished: str, seconds: float, **more: t.Any) -> dict[str, t.Any]:
    times = {"began": f"2025-01-31T{began}Z", "finished": f"2025-01-31T{finished}Z", "seconds": seconds}
    return {"digest": "1" * 64, **times, **more}


SCORES = {"lynis": {"before": 61, "after": 78, "version": "3.0.8"}, "openscap": {"before": 48.26, "after": 83.75}}


def full(text: str = "as it should be") -> dict[str, t.Any]:
    """The files of a build that has everything; C(text) is what a guest says wherever it may say something."""
    boots = [
        {
            "name": name,
            "firmware": name.partition("-")[0],
            "datasource": "NoCloud",
            "timings": {"ssh": 50.5, "login": 52.0, "cloud_init": 62.75, "tool": text},
            "listening": [{"proto": "tcp", "address": "0.0.0.0", "port": 22, "process": text}],
        }
        for name in ("bios-nocloud", "uefi-opennebula")
    ]
    checks = [
        {"boot": boot["name"], "name": name, "group": "boot", "ok": True, "required": True, "detail": text}
        for boot in boots
        for name in ("boot", "login", "fresh_host_keys")
    ]
    facts = {"sizes": {"/usr": 600 << 20, "/usr/lib": 400 << 20, "/var": 90 << 20, "/boot": 70 << 20}}
    facts["credentials"] = {"scanned": 18234, "findings": 0}
    return {
        "build.json": {
            "image": "debian-12",
            "version": "2",
            "definition": {},
            "stages": {
                "media": stage("12:00:00", "12:00:01", 0.6, cached=True),
                "base_vm": stage("12:00:01", "12:01:53", 112.3),
                "harden": stage("12:01:53", "12:02:51", 58.2, facts={"scores": SCORES}),
                "sanitize": stage("12:02:51", "12:03:11", 19.6, facts=facts),
                "export": stage("15:00:00", "15:00:14", 14.2),
            },
        },
        "descriptor.json": descriptor(scores=SCORES),
        "packages.json": {
            "packages": [
                {"name": "bash", "version": "5.2.10", "arch": "amd64"},
                {"name": "curl", "version": "7.1", "arch": "amd64"},
                {"name": "jq", "version": "1.6", "arch": "amd64"},
                {"name": text, "version": text, "arch": "all"},
            ]
        },
        "assess.json": {
            "verdict": "pass",
            "accelerator": "tcg",
            "artifact": {"sha256": SUMS["sha256"]},
            "finished": "2025-01-31T12:10:00Z",
            "boots": boots,
            "checks": checks,
            "secant": [
                {"id": "port_scan", "outcome": "OK", "summary": text, "details": [text, "22/tcp", text]},
                {"id": "packages", "outcome": "FAILED", "summary": text, "details": {"openssl": text}},
            ],
            "lynis": {"index": 78, "warnings": 1, "suggestions": [text]},
        },
    }


INDEX = {
    "schema": 1,
    "images": {
        "debian-12": {
            "versions": [
                {
                    "version": version,
                    "state": state,
                    "published": "2025-01-01T09:30:00Z",
                    "packages": f"debian-12/{version}/packages.json",
                    "artifacts": [{"size": 190 << 20}],
                }
                for version, state in (
                    ("1.9", "published"),
                    ("1.10", "deprecated"),
                    ("1.11", "removed"),
                    ("2", "published"),
                )
            ]
        }
    },
}
FORMER = {
    "packages": [
        {"name": "bash", "version": "5.2.9", "arch": "amd64"},
        {"name": "curl", "version": "1:7.0", "arch": "amd64"},
        {"name": "nano", "version": "7", "arch": "amd64"},
    ]
}


@pytest.fixture
def make(tmp_path: Path) -> t.Callable[..., tuple[Page, str]]:
    """Write the files of a build and a catalogue, and its report; gives the page and its text."""

    def made(files: dict[str, t.Any], *, index: t.Any = (), pictures: bool = True) -> tuple[Page, str]:
        folder = tmp_path / "build"
        index = INDEX if index == () else index
        for name, content in files.items():
            write_json(folder / name, content)
        if pictures:
            (folder / "logs").mkdir(exist_ok=True)
            (folder / "logs/assess-screen-bios-nocloud.png").write_bytes(PNG)
        if index:
            write_json(tmp_path / "catalogue/index.json", index)
            write_json(tmp_path / "catalogue/debian-12/1.10/packages.json", FORMER)
        _report.report(folder, tmp_path / "catalogue" if index else None)
        text = (folder / "report.html").read_text(encoding="utf-8")
        return Page(text), text

    return made


Make = t.Callable[..., tuple[Page, str]]


def test_everything_is_told(make: Make) -> None:
    page, _text = make(full())
    assert page.sections == [
        *("timeline", "boots", "hardening", "screens", "checks", "secant", "sizes", "changes", "packages"),
        *("artifacts", "provenance"),
    ]
    said = {place: " ".join(words.split()) for place, words in page.words.items()}
    for told in ("Debian 12", "Minimální", "debian-12 · 2", "x86_64", "made 2025-01-31 12:00 UTC", "Passed", "6 / 6"):
        assert told in said["head"]
    assert "1 min 52 s" in said["timeline"]
    assert "taken up again 2025-01-31 15:00 UTC" in said["timeline"]
    assert "3 min 25 s in 5 stages" in said["timeline"]
    assert "1 came from the cache" in said["timeline"]
    assert "cloud-init: 1 min 03 s" not in said["boots"]
    assert "cloud-init done: 1 min 03 s" in said["boots"]
    assert "tcp 0.0.0.0:22" in said["boots"]
    assert "was 61, +17" in said["hardening"]
    assert "was 48.3, +35.5" in said["hardening"]
    assert "18234 files, 0 found" in said["hardening"]
    assert "3 of 3" in said["checks"]
    assert "index 78, 1 warning, 1 suggestion" in said["secant"]
    assert "/usr/lib: 400 MiB" in said["sizes"]
    assert SUMS["sha512"] in said["artifacts"]
    assert "fai fai.iso" in said["provenance"]


def test_what_changed_since_the_last_version_that_was_published(make: Make) -> None:
    page, _text = make(full("zlib"))
    said = " ".join(page.words["changes"].split())
    assert "What changed since 1.10" in said
    assert "published 2025-01-01 09:30 UTC" in said
    assert "+10 MiB" in said
    assert [re.findall(rf"(\d) ?{name}", said)[0] for name in ("added", "removed", "upgraded", "downgraded")] == [
        "2",
        "1",
        "1",
        "1",
    ]
    assert "bash5.2.95.2.10" in said
    assert "curl1:7.07.1" in said
    assert "nano" in said


def test_result_tells_how_many_packages_changed(make: Make, tmp_path: Path) -> None:
    make(full())
    again = _report.report(tmp_path / "build", tmp_path / "catalogue/index.json")
    assert again.extra["changes"] == {"since": "1.10", "added": 2, "removed": 1, "changed": 2}
    assert again.extra["verdict"] == "pass"


def test_first_version(make: Make) -> None:
    page, _text = make(full(), index=None)
    assert "No version of this image was published before" in page.words["changes"]


def test_same_build_same_bytes(make: Make, tmp_path: Path) -> None:
    _page, text = make(full())
    path = tmp_path / "build/report.html"
    before = path.stat().st_mtime_ns
    assert not _report.report(tmp_path / "build", tmp_path / "catalogue").changed
    assert path.stat().st_mtime_ns == before
    path.write_text("x", encoding="utf-8")
    planned = _report.report(tmp_path / "build", tmp_path / "catalogue", check_mode=True)
    assert planned.actions == ["report.html: differs"]
    assert path.read_text(encoding="utf-8") == "x"
    assert _report.report(tmp_path / "build", tmp_path / "catalogue").actions == ["report.html: differs"]
    assert path.read_text(encoding="utf-8") == text


def test_page_needs_nothing_else(make: Make) -> None:
    page, text = make(full())
    assert not {"script", "link", "iframe", "object", "embed", "a", "base"} & set(page.names)
    loaded = [value for _tag, key, value in page.attributes if key in ("src", "href", "srcset", "data", "action")]
    assert len(loaded) == 1
    assert all(value.startswith("data:image/png;base64,") for value in loaded)
    assert "@import" not in text
    assert "url(" not in text
    assert "default-src 'none'" in text.replace("&#x27;", "'")


@pytest.mark.parametrize("verdict", ["pass", "fail"])
def test_hostile_texts_stay_texts(make: Make, verdict: str) -> None:
    sound, _text = make(full("harmless"))
    files = full(HOSTILE)
    for key in ("title", "description"):
        files["descriptor.json"][key] = HOSTILE
    files["descriptor.json"]["os"] = {"distribution": HOSTILE, "version": HOSTILE, "arch": "x86_64"}
    files["assess.json"].update(verdict=verdict, accelerator=HOSTILE)
    files["assess.json"]["checks"][0].update(ok=verdict == "pass", name=HOSTILE, group=HOSTILE)
    files["build.json"]["stages"]["sanitize"]["facts"]["sizes"][f"/usr/{HOSTILE}"] = 50 << 20
    files["build.json"]["stages"]["media"]["began"] = HOSTILE
    page, text = make(files)
    assert "<script" not in text
    assert set(page.names) <= {*sound.names, "ul", "li", "br", "p"}
    assert not [key for _tag, key, _value in page.attributes if key.startswith("on")]
    assert len([name for name in page.names if name == "img"]) == 1
    assert not set(text) & {"\x00", "\x1b", "\u202e"}
    assert "<script src=//evil.example/x.js></script>" in page.words["packages"]


def test_long_text_is_cut(make: Make) -> None:
    page, _text = make(full("x" * 100_000))
    assert max(map(len, re.findall("x+", page.words["secant"]))) == _report_html.LONGEST


@pytest.mark.parametrize(
    ("changes", "badge", "told"),
    [
        ({"verdict": "fail"}, "Failed", "the verdict is 'fail'"),
        ({"verdict": "pass", "artifact": {"sha256": "0" * 64}}, "Not assessed", "about another artifact"),
        ({"verdict": None}, "Not assessed", "has not been assessed"),
    ],
)
def test_other_verdicts(make: Make, changes: dict[str, t.Any], badge: str, told: str) -> None:
    files = full()
    files["assess.json"].update(changes)
    page, _text = make(files)
    assert badge in page.words["head"]
    assert told in page.words["head"]
    assert "Passed" not in page.words["head"]


def test_failed_checks_come_first_and_an_override_is_told(make: Make) -> None:
    files = full()
    files["assess.json"]["verdict"] = "fail"
    files["assess.json"]["checks"][1].update(ok=False, detail="nobody can log in")
    files["assess.json"]["checks"][2].update(ok=False, required=False)
    page, _text = make(files)
    assert "What failed" in page.words["head"]
    assert "login (bios-nocloud): nobody can log in" in page.words["head"]
    assert "fresh host keys" not in page.words["head"]
    assert "4 / 6" in page.words["head"]

    override = {"reason": "known, ticket 4711", "by": "alice", "at": "2025-01-31T12:30:00Z"}
    files["descriptor.json"]["assess"] = {"verdict": "fail", "override": override}
    page, _text = make(files)
    assert "Let through by alice, 2025-01-31 12:30 UTC: known, ticket 4711" in page.words["head"]
    assert "Failed" not in page.words["head"]


def test_many_checks_are_folded_but_those_that_did_not_pass(make: Make) -> None:
    files = full()
    files["assess.json"]["checks"] = [
        {"boot": "bios", "name": f"check_{number}", "ok": number != 7, "required": False, "detail": f"detail {number}"}
        for number in range(40)
    ]
    page, text = make(files)
    assert "39 that passed" in page.words["checks"]
    shown = text[text.index('id="checks"') : text.index("39 that passed")]
    assert "detail 7" in shown
    assert "<p>detail 8</p>" not in shown
    assert "<p>detail 8</p>" in text


@pytest.mark.parametrize("missing", ["build.json", "descriptor.json", "assess.json", "packages.json"])
def test_any_part_may_be_missing(make: Make, missing: str) -> None:
    files = full()
    del files[missing]
    page, _text = make(files, index=INDEX if missing != "build.json" else None)
    gone = {
        "build.json": ("sizes", "not known"),
        "descriptor.json": ("artifacts", "has not been exported"),
        "assess.json": ("boots", "has not been booted"),
        "packages.json": ("packages", "no list of packages"),
    }
    place, told = gone[missing]
    assert told in page.words[place]
    assert ("Passed" in page.words["head"]) == (missing not in ("descriptor.json", "assess.json"))


def test_build_that_failed_before_its_export(make: Make) -> None:
    build = {
        "image": "debian-12",
        "version": "2",
        "stages": {},
        "failure": {"stage": "base_vm", "message": "no <space>"},
    }
    page, _text = make({"build.json": build}, pictures=False)
    assert "The stage base_vm failed: no <space>" in page.words["head"]
    assert "times of the stages are not known" in page.words["timeline"]


def test_assessment_as_it_was_before_it_had_boots(make: Make) -> None:
    files = full()
    old = files["assess.json"]
    del old["boots"], old["secant"], old["lynis"]
    old["timings"] = {"bios": {"ssh": 51.4, "login": 52.8}}
    old["checks"] = [{"firmware": "bios", "name": "boot", "ok": True, "required": True, "detail": "after 51 s"}]
    page, _text = make(files)
    assert "bios" in page.words["boots"]
    assert "53 s" in page.words["boots"]
    assert "after 51 s" in page.words["checks"]
    assert "secant" not in page.sections


def test_pictures_that_are_none_are_left_out(make: Make, tmp_path: Path) -> None:
    logs = tmp_path / "build/logs"
    logs.mkdir(parents=True)
    (logs / "assess-screen-bios-nocloud.png").write_bytes(b"<svg onload=alert(1)>")
    (logs / "assess-screen-uefi-opennebula.png").write_bytes(PNG + bytes(_report_data.PICTURE_LIMIT))
    page, _text = make(full(), pictures=False)
    assert "img" not in page.names
    assert "logs/assess-screen-uefi-opennebula.png cannot be shown here" in page.words["screens"]


def test_no_build(tmp_path: Path) -> None:
    with pytest.raises(FactoryError, match="there is no build; name the directory of a build"):
        _report.report(tmp_path, None)
    planned = _report.report(tmp_path, None, check_mode=True)
    assert planned.changed
    assert not list(tmp_path.iterdir())


def test_broken_file_is_named(make: Make, tmp_path: Path) -> None:
    make(full())
    (tmp_path / "build/assess.json").write_text("{", encoding="utf-8")
    with pytest.raises(FactoryError, match=r"assess\.json: is not JSON"):
        _report.report(tmp_path / "build", None)


def test_values_of_other_types_break_nothing(make: Make) -> None:
    files = full()
    files["assess.json"].update(boots="x", checks=[1, None, {"name": None}], secant={"a": 1}, lynis=[], timings=[])
    files["build.json"]["stages"].update(
        media="x", base_vm={"seconds": "long"}, sanitize={"facts": {"sizes": ["/usr"]}}
    )
    page, _text = make(files)
    assert "not known" in page.words["sizes"]


@pytest.mark.parametrize(
    ("before", "after", "newer"),
    [("1.9", "1.10", True), ("1:1.0", "2.0", False), ("2.0~rc1", "2.0", True), ("5.2-1", "5.2-1+deb12u1", True)],
)
def test_which_version_is_newer(before: str, after: str, newer: bool) -> None:
    there, back = (_report_data.newer(*pair) for pair in ((before, after), (after, before)))
    assert there is newer
    assert back is not newer


def test_report_is_json_free_of_surrogates(make: Make, tmp_path: Path) -> None:
    files = full()
    make(files)
    path = tmp_path / "build/assess.json"
    text = json.dumps(files["assess.json"]).replace("as it should be", "\\ud800")
    path.write_text(text, encoding="utf-8")
    _report.report(tmp_path / "build", None)
    assert "\ufffd" in (tmp_path / "build/report.html").read_text(encoding="utf-8")
