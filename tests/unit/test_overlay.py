# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Overlays that are written without QEMU, judged by QEMU."""

from __future__ import annotations

import json
import os
import random
import subprocess

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _overlay, _qemu_img
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

CLUSTER = _overlay.CLUSTER


@pytest.fixture
def parent(tmp_path):
    """A function that makes a qcow2 from the content of some clusters."""

    def make(content: dict[int, bytes], size: int):
        raw = tmp_path / "parent.raw"
        write(raw, content, size)
        disk = tmp_path / "parent.qcow2"
        _qemu_img.convert(raw, disk, source_fmt="raw", target_fmt="qcow2")
        return disk

    return make


def write(raw, content: dict[int, bytes], size: int) -> None:
    """Change clusters of a raw file."""
    with raw.open("r+b" if raw.exists() else "wb") as stream:
        stream.truncate(size)
        for number, data in content.items():
            stream.seek(number * CLUSTER)
            stream.write(data)


def clusters(disk) -> dict[int, str]:
    """Which clusters the top of a chain holds itself, and whether as data or as zeros."""
    rows = json.loads(subprocess.check_output(["qemu-img", "map", "-f", "qcow2", "--output=json", disk]))
    return {
        number: "zero" if row["zero"] else "data"
        for row in rows
        if row["depth"] == 0 and row.get("present", True)
        for number in range(row["start"] // CLUSTER, -(-(row["start"] + row["length"]) // CLUSTER))
    }


def test_only_what_differs_is_written(parent, tmp_path):
    size = 100 * CLUSTER
    disk = parent({1: b"a" * CLUSTER, 2: b"b" * CLUSTER, 3: b"c" * CLUSTER}, size)
    raw, overlay = tmp_path / "raw", tmp_path / "overlay.qcow2"
    _overlay.unpack(disk, raw)
    write(raw, {2: b"B", 3: bytes(CLUSTER), 99: b"z"}, size)
    _overlay.write_overlay(raw, disk, overlay)
    _qemu_img.check(overlay)
    assert clusters(overlay) == {2: "data", 3: "zero", 99: "data"}
    info = _qemu_img.info(overlay)
    assert (info.virtual_size, info.format) == (size, "qcow2")
    assert str(disk) in json.dumps(info, default=str)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["overlay.qcow2", "parent.qcow2", "parent.raw", "raw"]


def test_nothing_differs(parent, tmp_path):
    disk = parent({0: b"a"}, 3 << 20)
    raw, overlay = tmp_path / "raw", tmp_path / "overlay.qcow2"
    _overlay.unpack(disk, raw)
    _overlay.write_overlay(raw, disk, overlay)
    _qemu_img.check(overlay)
    assert clusters(overlay) == {}


@pytest.mark.parametrize("seed", range(4))
def test_any_difference_at_any_size_comes_back_byte_for_byte(parent, tmp_path, seed):
    dice = random.Random(seed)
    size = dice.choice([1 << 20, (600 << 20) + 512, 5 << 30, (700 << 30) + 1024])
    last = size // CLUSTER - 1

    def some() -> dict[int, bytes]:
        numbers = {dice.randint(0, last) for _draw in range(40)} | {last}
        return {number: dice.choice([bytes(CLUSTER), os.urandom(CLUSTER), b"x"]) for number in numbers}

    disk = parent(some(), size)
    raw, overlay = tmp_path / "raw", tmp_path / "overlay.qcow2"
    _overlay.unpack(disk, raw)
    write(raw, some(), raw.stat().st_size)
    _overlay.write_overlay(raw, disk, overlay)  # compares
    _qemu_img.check(overlay)
    assert overlay.stat().st_size < 100 * CLUSTER


def test_an_overlay_that_does_not_hold_its_content_is_refused(parent, tmp_path, monkeypatch):
    disk = parent({}, 1 << 20)
    raw = tmp_path / "raw"
    write(raw, {3: b"x"}, 1 << 20)
    monkeypatch.setattr(_overlay, "difference", lambda old, new: _overlay.Difference([], []))
    with pytest.raises(FactoryError, match="does not hold what was written"):
        _overlay.write_overlay(raw, disk, tmp_path / "overlay.qcow2")


def test_a_path_that_no_qcow2_can_name_is_refused(tmp_path):
    with pytest.raises(FactoryError, match="image_workspace: the path is longer than 1023 bytes"):
        _overlay._header(1 << 20, 1, 3, 1, tmp_path / ("x" * 1024))
