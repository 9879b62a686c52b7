# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which images an image stands on, and which changes make another disk for those that stand on it."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _parent
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

DEFINITION: dict[str, t.Any] = {
    "image_os": {"distribution": "debian", "version": "12"},
    "image_medium": {"family": "preseed", "answer_file": "/a/p.cfg"},
    "image_disk": {"size": "8G"},
    "image_machine": {"cpus": 2},
    "image_packages": [],
    "image_roles": [],
    "image_title": "x",
}
INPUTS: dict[str, t.Any] = {
    "stage": {"media": "1", "base_vm": "1", "cloud_init": "1", "applications": "1", "harden": "1", "layer": "1"},
    "variables": {"applications_upgrade": False, "harden_profile": "egi"},
    "answer_file": "1",
}


def family(image: str, **parents: str) -> list[str]:
    return _parent.lineage(image, parents.get, {"a", "b", "c", *parents}, lambda name: f"{name}.yml:1")


def test_lineage() -> None:
    assert family("a") == ["a"]
    assert family("a", a="b", b="c") == ["a", "b", "c"]


def test_a_long_line_is_no_circle() -> None:
    parents = {f"i{number}": f"i{number + 1}" for number in range(200)}
    found = _parent.lineage("i0", parents.get, {*parents, "i200"}, lambda name: name)
    assert len(found) == 201


@pytest.mark.parametrize(
    ("image", "parents", "problem"),
    [
        (
            "a",
            {"a": "a"},
            "a.yml:1: image_parent: leads round in a circle: a → a; give one of them an image_medium instead",
        ),
        ("a", {"a": "b", "b": "c", "c": "b"}, "c.yml:1: image_parent: leads round in a circle: b → c → b; "),
        ("a", {"a": "d"}, "a.yml:1: image_parent: there is no image 'd'; known are a, b, c"),
        ("a", {"a": "b", "b": "nowhere"}, "b.yml:1: image_parent: there is no image 'nowhere'; known are a, b, c"),
    ],
)
def test_lines_that_lead_nowhere(image: str, parents: dict[str, str], problem: str) -> None:
    with pytest.raises(FactoryError) as caught:
        family(image, **parents)
    assert problem in str(caught.value)


def changed(definition: dict[str, t.Any] | None = None, inputs: dict[str, t.Any] | None = None) -> bool:
    """Whether children stand on another disk after these changes."""
    before = _parent.disk_digest(DEFINITION, INPUTS)
    return _parent.disk_digest({**DEFINITION, **(definition or {})}, {**INPUTS, **(inputs or {})}) != before


def test_what_makes_another_disk() -> None:
    assert changed({"image_packages": ["htop"]})
    assert changed({"image_parent": "x"})
    assert changed(inputs={"stage": {**INPUTS["stage"], "cloud_init": "2"}})
    assert changed(inputs={"variables": {"applications_upgrade": True}})
    assert changed(inputs={"scripts": [{"name": "x.sh", "sha256": "1"}]})
    assert changed(inputs={"files": [{"name": "x", "sha256": "1"}]})
    assert changed(inputs={"answer_file": "2"})
    assert changed(inputs={"parent": {"x": "1"}})


def test_what_makes_no_other_disk() -> None:
    assert not changed({"image_title": "y", "image_formats": ["raw"]})
    assert not changed({"image_medium": {"family": "preseed", "answer_file": "/b/p.cfg"}})
    assert not changed(inputs={"stage": {**INPUTS["stage"], "harden": "2"}})
    assert not changed(inputs={"variables": {"applications_upgrade": False, "harden_profile": "none"}})
