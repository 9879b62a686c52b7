# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The qemu-img room as far as it goes without disks: answers, progress, a missing or old tool."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ansible_collections.cloudimg.factory.plugins.module_utils import _qemu_img
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._versions import COLLECTION, version_key


def test_info_is_read_from_json() -> None:
    found = _qemu_img.ImageInfo.load(
        {
            "filename": "/w/o.qcow2",
            "format": "qcow2",
            "virtual-size": 8589934592,
            "actual-size": 200704,
            "cluster-size": 65536,
            "backing-filename": "base.qcow2",
            "full-backing-filename": "/w/base.qcow2",
            "backing-filename-format": "qcow2",
            "dirty-flag": False,
            "format-specific": {"type": "qcow2", "data": {"compression-type": "zstd", "data-file": "x.raw"}},
        }
    )
    assert (found.path, found.format, found.virtual_size) == (Path("/w/o.qcow2"), "qcow2", 8 << 30)
    assert (found.backing, found.backing_format) == (Path("/w/base.qcow2"), "qcow2")
    assert (found.compression, found.data_file, found.encrypted) == ("zstd", "x.raw", False)


def test_progress_keeps_the_last_percentage() -> None:
    ticks: list[float] = []
    read = _qemu_img._percent_reader(ticks.append)
    for line in ("", "(1.01/100%)", "something else", "(99.50/100%)"):
        read(line)
    assert ticks == [0.0, 1.01, 1.01, 99.5]


def test_missing_tool_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FactoryError, match=r"^qemu-img: is not installed on the builder; .*qemu-utils$"):
        _qemu_img.info(tmp_path / "disk")


def test_old_tool_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "qemu-img"
    tool.write_text("#!/bin/sh\necho 'qemu-img version 4.2.1 (qemu-kvm-4.2.1)'\n", encoding="ascii")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(FactoryError, match=r"/qemu-img: is version 4\.2\.1, too old: 5\.1 or newer is needed"):
        _qemu_img.info(tmp_path / "disk")


def test_versions_sort_naturally() -> None:
    wanted = ["1.0~rc1", "1.0", "1.0a", "1.0+1", "1.0.1", "1.9", "1.10", "2", "20250101", "202501011200"]
    keys = [version_key(version) for version in wanted]
    assert all(older < newer for older, newer in zip(keys, keys[1:]))


def test_collection_version_is_that_of_galaxy_yml(checkout: Path) -> None:
    assert yaml.safe_load((checkout / "galaxy.yml").read_text(encoding="utf-8"))["version"] == COLLECTION
