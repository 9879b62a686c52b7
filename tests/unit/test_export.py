# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an export decides before any tool runs: options, names, the source medium, the list of packages."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor_schema, _export, _packages
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
    assert set(_export.EXPORTERS) == set(_descriptor_schema.FORMATS)


def test_medium_is_told_without_its_secrets() -> None:
    found = _export._medium(
        request(
            definition={"image_medium": {"url": "https://bob:secret@example.org/debian.iso?token=abc#x"}},
            stages={"media": {"family": "preseed", "sha256": "0" * 64, "path": "/w/cache/media/x.iso"}},
        )
    )
    assert found == {"family": "preseed", "sha256": "0" * 64, "source": "https://example.org/debian.iso"}


def test_medium_without_url_is_told_by_its_file_name() -> None:
    found = _export._medium(request(stages={"media": {"family": "fai", "sha256": "0" * 64, "path": "/w/m/fai.iso"}}))
    assert found == {"family": "fai", "sha256": "0" * 64, "source": "fai.iso"}
    assert _export._medium(request()) is None


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
