# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which layer an input digest names, and when one may be taken from the cache."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _layers, _qemu_img, _state
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._layers import Layer

INPUTS = {"image_packages": ["htop"], "role": "3b0c"}


@pytest.fixture
def workspace(tmp_path):
    """An empty workspace."""
    return _state.Workspace(tmp_path / "workspace").make()


@pytest.fixture
def base(workspace):
    """A base in the cache."""
    path = workspace.layers / "base_vm-1.qcow2"
    _qemu_img.create(path, 1 << 20)
    _state.write_json(path.with_suffix(".json"), {"stage": "base_vm", "digest": "abc"})
    return path


@pytest.fixture
def layer(workspace, base):
    """A layer on that base, not made yet."""
    return Layer(workspace, "debian-12", "applications", base, _layers.digest_of(base), INPUTS)


def make(layer, packages=None):
    """Make it, as a stage would."""
    disk = layer.workspace.layers / "disk"
    _layers.create(layer, disk)
    return _layers.commit(layer, disk, packages)


def test_the_digest_is_of_stage_parent_and_inputs_alone(layer):
    same = dataclasses.replace(layer, image="debian-13", inputs=dict(reversed(INPUTS.items())))
    assert same.digest == layer.digest
    for other in (
        dataclasses.replace(layer, stage="sanitize"),
        dataclasses.replace(layer, parent_digest="def"),
        dataclasses.replace(layer, inputs={**INPUTS, "image_packages": []}),
    ):
        assert other.digest != layer.digest
    assert layer.path.name == f"applications-{layer.digest[:32]}.qcow2"


def test_a_parent_that_is_no_layer_of_ours_is_refused(workspace, tmp_path):
    stray = tmp_path / "stray.qcow2"
    with pytest.raises(
        FactoryError, match=r"stray\.qcow2: is not in the layer cache; run the stage before this one again"
    ):
        _layers.digest_of(stray)
    _qemu_img.create(stray, 1 << 20)
    with pytest.raises(FactoryError, match="is not in the layer cache"):
        _layers.digest_of(stray)


def test_a_committed_layer_is_taken_from_the_cache(layer):
    assert _layers.flaw(layer) == "this image has no applications layer yet"
    assert make(layer) is True
    assert _layers.flaw(layer) is None
    record = json.loads(layer.path.with_suffix(".json").read_text())
    assert (record["stage"], record["digest"], record["parent"]) == ("applications", layer.digest, layer.parent.name)
    assert record["inputs"] == INPUTS
    assert _qemu_img.info(layer.path, chain=True).chain[0].path == layer.parent
    assert sorted(path.suffix for path in layer.workspace.layers.glob("applications-*")) == [".json", ".qcow2"]


def test_the_reason_names_what_changed(layer):
    make(layer)
    more = dataclasses.replace(
        layer, inputs={**INPUTS, "image_packages": ["htop", "jq"], "new": 1}, parent_digest="def"
    )
    assert _layers.flaw(more) == "changed since the last layer: image_packages, new, the layer below"
    less = dataclasses.replace(layer, inputs={"role": "3b0c"})
    assert _layers.flaw(less) == "changed since the last layer: image_packages"
    difference = _layers.diff(more)
    assert difference["before"]["image_packages"] == ["htop"]
    assert difference["after"]["image_packages"] == ["htop", "jq"]


def test_another_image_is_not_compared_with(layer):
    make(layer)
    other = dataclasses.replace(layer, image="debian-13", inputs={})
    assert _layers.flaw(other) == "this image has no applications layer yet"


def test_a_layer_that_was_written_to_is_made_again(layer):
    make(layer)
    os.utime(layer.path, ns=(0, 0))
    assert "was written to, or copied" in _layers.flaw(layer)


def test_a_layer_whose_parent_was_made_again_is_made_again(layer):
    make(layer)
    layer.parent.unlink()
    assert "was made again" in _layers.flaw(layer)
    _qemu_img.create(layer.parent, 1 << 20)
    assert "was made again" in _layers.flaw(layer)


def test_a_corrupted_layer_is_made_again(layer):
    make(layer)
    before = layer.path.stat()
    with layer.path.open("r+b") as stream:
        stream.seek(layer.path.stat().st_size // 2)
        stream.write(b"\xff" * 65536)
    os.utime(layer.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    record = _state.read_json(layer.path.with_suffix(".json"))
    _state.write_json(layer.path.with_suffix(".json"), {**record, "stamp": _layers.stamp(layer.path)})
    assert _layers.flaw(layer).startswith("the cached layer ")


def test_a_layer_without_its_record_is_made_again(layer):
    make(layer)
    layer.path.with_suffix(".json").unlink()
    assert _layers.flaw(layer) is not None


def test_packages_are_part_of_a_layer_that_has_them(layer):
    packages = {"packages": [{"name": "htop", "version": "3.2", "arch": "amd64"}], "os_release": {"ID": "debian"}}
    make(layer, packages)
    assert json.loads(layer.packages.read_text()) == packages
    assert _layers.flaw(layer, with_packages=True) is None
    layer.packages.unlink()
    assert _layers.flaw(layer) is None
    assert "is gone" in _layers.flaw(layer, with_packages=True)


def test_the_layer_of_another_build_stays_when_both_made_it(layer):
    make(layer)
    first = layer.path.stat().st_ino
    assert make(layer) is False
    assert layer.path.stat().st_ino == first
    assert _layers.flaw(layer) is None
    assert not (layer.workspace.layers / "disk").exists()


def test_no_space_is_told_before_anything_is_made(layer, monkeypatch):
    monkeypatch.setattr(_layers, "_FREE", 1 << 60)
    with pytest.raises(
        FactoryError, match=r"MiB are free, the applications layer needs \d+ MiB; free some space there"
    ):
        make(layer)
    assert not (layer.workspace.layers / "disk").exists()


def test_a_damaged_overlay_is_not_committed(layer):
    disk = layer.workspace.layers / "disk"
    _layers.create(layer, disk)
    disk.write_bytes(b"QFI\xfb" + b"\xff" * 4096)
    with pytest.raises(FactoryError):
        _layers.commit(layer, disk)
    assert not layer.path.exists()
    assert not layer.path.with_suffix(".json").exists()
