# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which images an image stands on, and which changes make another disk for those that stand on it."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _layers, _parent, _qemu_img, _state
from ansible_collections.cloudimg.factory.plugins.module_utils._build import Builds
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result

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
    assert changed(inputs={"code": {"applications": "2"}})
    assert changed(inputs={"parent": {"x": "1"}})


def test_what_makes_no_other_disk() -> None:
    assert not changed({"image_title": "y", "image_formats": ["raw"]})
    assert not changed({"image_medium": {"family": "preseed", "answer_file": "/b/p.cfg"}})
    assert not changed(inputs={"stage": {**INPUTS["stage"], "harden": "2"}})
    assert not changed(inputs={"code": {"harden": "2"}})
    assert not changed(inputs={"variables": {"applications_upgrade": False, "harden_profile": "none"}})


class House:
    """A workspace with complete builds, whose disks are in the layer cache or not."""

    def __init__(self, root: Path) -> None:
        self.workspace = _state.Workspace(root).make()
        self.descendants = [
            {"image": "child", "parent": "parent", "digest": "d-child"},
            {"image": "grandchild", "parent": "child", "digest": "d-grandchild"},
        ]

    def begin(self, image: str, version: str) -> Result:
        """Begin a build."""
        lost = _parent.disk_lost(self.workspace, image, self.descendants)
        wanted = {**DEFINITION, "image_version": version}
        return Builds(str(self.workspace.root), image).begin(version, f"d-{image}", wanted, INPUTS, lost)

    def complete(self, image: str, version: str = "1") -> Path:
        """Take one to its end; returns the disk on which children stand."""
        builds = Builds(str(self.workspace.root), image)
        build = self.begin(image, version).extra["build"]
        base = self.workspace.layers / f"base_vm-{image}.qcow2"
        if not base.exists():
            _qemu_img.create(base, 1 << 20)
            _state.write_json(base.with_suffix(".json"), {"stage": "base_vm", "digest": image})
        layer = _layers.Layer(self.workspace, image, "applications", base, image, {"version": version})
        disk = self.workspace.layers / "disk"
        _layers.create(layer, disk)
        _layers.commit(layer, disk)
        descriptor = Path(build["dir"], "descriptor.json")
        descriptor.write_text("{}", encoding="utf-8")
        builds.record(version, "applications", {"path": str(layer.path), "digest": layer.digest})
        builds.record(version, "export", {"descriptor": str(descriptor), "artifacts": []})
        builds.record(version, "assess", {"verdict": "pass"})
        builds.record(version, "publish", {"catalogues": ["local"]})
        builds.finish(version)
        return layer.path


@pytest.fixture
def house(tmp_path: Path) -> House:
    """A parent that is built, with its disk."""
    return House(tmp_path / "workspace")


def test_a_lost_disk_that_a_child_needs_is_made_again(house: House) -> None:
    disk = house.complete("parent")
    assert house.begin("parent", "2").extra["build"]["complete"]
    disk.unlink()
    result = house.begin("parent", "2")
    assert result.extra["build"]["version"] == "2"
    assert result.actions == [
        f"build parent 2: child is to stand on parent 1, which stands on {disk.name}, which is not in the layer cache any more"
    ]


def test_a_disk_that_nobody_needs_any_more_may_be_lost(house: House) -> None:
    house.complete("parent").unlink()
    house.complete("child").unlink()
    house.complete("grandchild")
    assert house.begin("parent", "2").extra["build"]["complete"]
    assert house.begin("child", "2").extra["build"]["complete"]
    house.descendants = []
    assert house.begin("parent", "2").extra["build"]["complete"]


def test_a_grandchild_that_is_to_be_built_has_all_before_it_built(house: House) -> None:
    house.complete("parent").unlink()
    disk = house.complete("child")
    assert house.begin("parent", "2").extra["build"]["complete"]
    disk.unlink()
    assert house.begin("parent", "2").changed


def test_a_damaged_disk_is_as_good_as_none(house: House) -> None:
    disk = house.complete("parent")
    disk.with_suffix(".json").write_text("{", encoding="utf-8")
    assert house.begin("parent", "2").changed


def test_a_fixed_version_has_to_be_raised_for_that(house: House) -> None:
    house.complete("parent").unlink()
    with pytest.raises(
        FactoryError, match=r"image_version: child is to stand on parent 1, which .*; raise image_version"
    ):
        house.begin("parent", "1")
