# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an export decides before any tool runs: options, names, the source medium, the list of packages."""

from __future__ import annotations

import dataclasses
import json
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import (
    _descriptor,
    _descriptor_schema,
    _export,
    _export_describe,
    _exporters,
    _packages,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError


def request(**options: t.Any) -> _export.Request:
    return _export.Request(image="debian-12", version="1", directory=Path("/b"), source=Path("/s.qcow2"), **options)


@pytest.mark.parametrize(
    ("options", "cluster_size"),
    [
        ({}, 1 << 20),
        ({"compression": "zlib"}, 1 << 16),
        ({"compression": "zlib", "cluster_size": 1 << 21}, 1 << 21),
    ],
)
def test_cluster_size_follows_compression(options: dict[str, t.Any], cluster_size: int) -> None:
    artifact = _export._plan(request(**options), "qcow2", 1 << 30)
    assert artifact.path == "debian-12-1.qcow2"
    assert artifact.cluster_size == cluster_size
    assert artifact.compression == options.get("compression", "zstd")


def test_every_exporter_is_in_the_schema() -> None:
    assert set(_exporters.EXPORTERS) == set(_descriptor_schema.FORMATS)


def test_medium_is_told_without_its_secrets() -> None:
    found = _export_describe._medium(
        request(
            definition={"image_medium": {"url": "https://bob:secret@example.org/debian.iso?token=abc#x"}},
            stages={"media": {"family": "preseed", "sha256": "0" * 64, "path": "/w/cache/media/x.iso"}},
        )
    )
    assert found == {"family": "preseed", "sha256": "0" * 64, "source": "https://example.org/debian.iso"}


def test_medium_without_url_is_told_by_its_file_name() -> None:
    found = _export_describe._medium(
        request(stages={"media": {"family": "fai", "sha256": "0" * 64, "path": "/w/m/fai.iso"}})
    )
    assert found == {"family": "fai", "sha256": "0" * 64, "source": "fai.iso"}
    assert _export_describe._medium(request()) is None


def test_packages_are_sorted_and_stable(tmp_path: Path) -> None:
    rows = [
        {"name": "zlib1g", "version": "1:1.2", "arch": "amd64", "size": 3},
        {"name": "adduser", "version": "3.134", "arch": "all"},
    ]
    path = tmp_path / "layer.packages.json"
    texts = set()
    for order in (rows, rows[::-1]):
        path.write_text(json.dumps({"packages": order, "os_release": {"ID": "debian"}}), encoding="utf-8")
        texts.add(_packages.normalise(path))
    assert len(texts) == 1
    assert json.loads(texts.pop()) == {
        "os_release": {"ID": "debian"},
        "packages": [
            {"name": "adduser", "version": "3.134", "arch": "all"},
            {"name": "zlib1g", "version": "1:1.2", "arch": "amd64"},
        ],
    }


def test_bare_list_of_packages(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text('[{"name": "a", "version": "1", "arch": "all"}]', encoding="utf-8")
    assert json.loads(_packages.normalise(path))["packages"][0]["name"] == "a"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not JSON"),
        ("{}", "packages: must be a list"),
        ('"x"', "packages: must be a list"),
        ('[{"name": "a"}]', r"packages\[0\]: must have name, version and arch"),
        ('["a"]', r"packages\[0\]: must have"),
    ],
)
def test_bad_list_of_packages(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FactoryError, match=problem) as caught:
        _packages.normalise(path)
    assert caught.value.where == str(path)


def test_missing_list_of_packages(tmp_path: Path) -> None:
    with pytest.raises(FactoryError, match="No such file"):
        _packages.normalise(tmp_path / "p.json")


def described(stages: dict[str, t.Any], old: _descriptor.Descriptor | None = None) -> _descriptor.Descriptor:
    definition = {"image_os": {"distribution": "debian", "version": "12", "arch": "x86_64"}}
    wanted = request(definition=definition, stages=stages)
    artifact = _export._plan(wanted, "qcow2", 1 << 30)
    found = _export_describe.describe(wanted, [artifact], "0" * 64, old)
    return _descriptor.parse(found.document(), "x")


@pytest.fixture
def qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version of QEMU, which the unit tests do not need."""
    monkeypatch.setattr(_export_describe._qemu_img, "version", lambda: "7.2.22")


@pytest.mark.usefixtures("qemu")
def test_scores_come_from_the_findings_of_harden() -> None:
    scores = {
        "lynis": {"before": 61, "after": 78, "version": "3.0.8", "tests": 250},
        "openscap": {"profile": "anssi", "before": None, "after": 83.75},
    }
    found = described({"harden": {"digest": "1", "facts": {"scores": scores}}})
    assert found.scores == {
        "lynis": {"before": 61, "after": 78, "version": "3.0.8"},
        "openscap": {"after": 83.75, "profile": "anssi"},
    }


@pytest.mark.usefixtures("qemu")
@pytest.mark.parametrize("facts", [{}, {"scores": {}}, {"scores": {"lynis": {"before": 61}, "openscap": None}}])
def test_without_findings_there_are_no_scores(facts: dict[str, t.Any]) -> None:
    assert described({"harden": {"digest": "1", "facts": facts}}).scores is None
    assert "scores" not in described({}).document()


@pytest.mark.usefixtures("qemu")
def test_child_image_is_made_from_its_parent() -> None:
    parent = {"image": "debian-12-base", "version": "7", "digest": "9" * 64}
    found = described({"base_vm": {"path": "/x", "digest": "9" * 64, "parent": parent}})
    assert found.source == {"family": "parent", **parent}


@pytest.mark.usefixtures("qemu")
def test_verdict_stays_with_the_artifacts_that_it_is_about() -> None:
    assessed = dataclasses.replace(described({}), assess={"verdict": "pass", "finished": "2025-01-31T12:10:00Z"})
    assert described({}, assessed).dump() == assessed.dump()
    assert described({}).assess is None
