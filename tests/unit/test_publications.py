# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of where versions are published, and what of them is due to be retired."""

from __future__ import annotations

import datetime
import json
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _publications, _state
from ansible_collections.cloudimg.factory.plugins.module_utils._catalogue import Catalogue
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

LIST = {"list": "https://www.example.org/image.list", "identifier": "4be8f45c"}


def in_days(days: float) -> str:
    return _descriptor.format_time(datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=days))


def version(name: str, state: str = "published", expires: str | None = None, *elsewhere: str) -> dict[str, t.Any]:
    publications = {place: {"state": "published", "at": "2025-01-31T12:00:00Z"} for place in elsewhere}
    return {"version": name, "state": state, "expires": expires or in_days(90), "publications": publications}


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    entry = {"versions": [{"version": "1", "state": "published"}], "history": []}
    _state.write_json(tmp_path / "index.json", {"schema": 1, "updated": None, "images": {"debian-12": entry}})
    return Catalogue(tmp_path, "alice")


def entry(catalogue: Catalogue) -> dict[str, t.Any]:
    return dict(json.loads(catalogue.path.read_text(encoding="utf-8"))["images"]["debian-12"])


def test_published_again_and_retired(catalogue: Catalogue) -> None:
    before = catalogue.path.read_bytes()
    planned = _publications.record(
        Catalogue(catalogue.directory, "alice", True), "debian-12", "1", "hepix", state="published", publication=LIST
    )
    assert planned.changed and catalogue.path.read_bytes() == before
    assert _publications.record(catalogue, "debian-12", "1", "hepix", state="published", publication=LIST).changed
    (known,) = entry(catalogue)["versions"]
    at = known["publications"]["hepix"].pop("at")
    assert _descriptor.parse_time(at)
    assert known["publications"] == {"hepix": {**LIST, "state": "published"}}
    written = catalogue.path.read_bytes()
    for publication in (LIST, None):
        again = _publications.record(catalogue, "debian-12", "1", "hepix", state="published", publication=publication)
        assert not again.changed
    assert catalogue.path.read_bytes() == written
    moved = {"list": "https://www.example.org/other.list"}
    assert _publications.record(catalogue, "debian-12", "1", "hepix", state="published", publication=moved).changed
    assert _publications.record(catalogue, "debian-12", "1", "hepix", state="retired", reason="old").changed
    assert not _publications.record(catalogue, "debian-12", "1", "hepix", state="retired", reason="older").changed
    (known,) = entry(catalogue)["versions"]
    about = known["publications"]["hepix"]
    assert {**about, "at": ""} == {**LIST, **moved, "state": "retired", "at": ""}
    assert [(event["action"], event["catalogue"], event.get("reason")) for event in entry(catalogue)["history"]] == [
        ("published", "hepix", None),
        ("updated", "hepix", None),
        ("retired", "hepix", "old"),
    ]


def test_what_never_was_is_not_retired(catalogue: Catalogue) -> None:
    before = catalogue.path.read_bytes()
    assert not _publications.record(catalogue, "debian-12", "1", "appdb", state="retired", reason="old").changed
    assert catalogue.path.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("debian-12", "2", "hepix", {}), "index.json: debian-12: version 2 was never published; publish it"),
        (("debian-13", "1", "hepix", {}), "index.json: debian-13: version 1 was never published; publish it"),
        (("debian-12", "1", "local", {}), "catalogue: is the catalogue that keeps the record; name another one"),
        (("debian-12", "1", "hepix", {"state": "x"}), "publication.state: is not for a publication to say; remove it"),
    ],
)
def test_refused(catalogue: Catalogue, arguments: tuple[str, str, str, dict[str, str]], message: str) -> None:
    before = catalogue.path.read_bytes()
    image, name, elsewhere, publication = arguments
    with pytest.raises(FactoryError) as caught:
        _publications.record(catalogue, image, name, elsewhere, state="published", publication=publication)
    assert message in str(caught.value)
    assert catalogue.path.read_bytes() == before


def plan(
    versions: list[dict[str, t.Any]], keep: int | None = None, warn_days: int = 14
) -> tuple[list[t.Any], list[t.Any]]:
    found = _publications.due({"versions": versions}, keep=keep, warn_days=warn_days)
    return [(row["version"], row["state"]) for row in found["retire"]], [
        (row["version"], row["days"]) for row in found["ending"]
    ]


@pytest.mark.parametrize(
    ("versions", "keep", "retired"),
    [
        ([version(str(number)) for number in (1, 2, 3)], None, []),
        ([version(str(number)) for number in (8, 9, 10)], 2, [("8", "absent")]),
        ([version("1"), version("2", "deprecated"), version("3")], 1, [("2", "absent"), ("1", "absent")]),
        ([version("1"), version("2", "deprecated"), version("3")], 2, []),
        ([version("1", "removed"), version("2"), version("3")], 2, []),
        ([version("1", "removed", None, "hepix"), version("2")], 2, [("1", "absent")]),
        ([version("1", "published", in_days(-1)), version("2")], None, [("1", "expired")]),
        ([version("1", "published", in_days(-1)), version("2")], 1, [("1", "absent")]),
        ([version("1", "expired", in_days(-1)), version("2")], None, []),
        ([version("1", "expired", in_days(-1), "appdb"), version("2")], None, [("1", "expired")]),
    ],
)
def test_due(versions: list[dict[str, t.Any]], keep: int | None, retired: list[tuple[str, str]]) -> None:
    assert plan(versions, keep)[0] == retired


def test_ending() -> None:
    versions = [version("1", "published", in_days(-1)), version("2", "published", in_days(3.5)), version("3")]
    assert plan(versions)[1] == [("2", 3)]
    assert plan(versions, warn_days=3)[1] == []
    assert plan([version("1", "deprecated", in_days(3.5))])[1] == []
