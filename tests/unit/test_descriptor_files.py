# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files beside a descriptor: what is refused, and what is not read twice."""

from __future__ import annotations

import os
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _descriptor_files, _digest
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError


def make(folder: Path, content: bytes = b"disk") -> tuple[Path, _descriptor.Descriptor]:
    """A descriptor's path, and the descriptor of one disk beside it."""
    disk = folder / "a.qcow2"
    disk.write_bytes(content)
    build = _descriptor.Descriptor(
        image="debian-12",
        identifier=_descriptor.stable_identifier("debian-12"),
        version="1",
        title="Debian 12",
        description="",
        os=_descriptor.OperatingSystem("debian", "12", "x86_64"),
        min_disk=1 << 30,
        artifacts=(_descriptor.Artifact("qcow2", disk.name, len(content), 1 << 30, _digest.file_digests(disk)),),
        created="2025-01-31T12:00:00Z",
        provenance=_descriptor.Provenance("0" * 64, "7.2", "0.1.0"),
    )
    return folder / "descriptor.json", build


def test_an_unchanged_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, build = make(tmp_path)
    reads: list[Path] = []
    real = _digest.file_digests

    def counting(file: Path, algorithms: t.Sequence[str] = _digest.ALGORITHMS) -> dict[str, str]:
        reads.append(file)
        return real(file, algorithms)

    monkeypatch.setattr(_digest, "file_digests", counting)
    for _round in range(3):
        assert _descriptor_files.checked(path, build, build.artifacts[0]) == tmp_path / "a.qcow2"
    assert reads == [tmp_path / "a.qcow2"]


def other_size(disk: Path) -> None:
    disk.write_bytes(b"longer than it was")


def other_bytes(disk: Path) -> None:
    disk.write_bytes(b"disc")


def link(disk: Path) -> None:
    disk.rename(disk.with_name("elsewhere"))
    disk.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "a.qcow2: is missing, or no plain file; run the export stage again, which makes it"),
        (link, "a.qcow2: is missing, or no plain file; run the export stage again, which makes it"),
        (other_size, "a.qcow2: artifacts: was changed after the export of debian-12 1: it has 18 bytes, not 4; run"),
        (other_bytes, "a.qcow2: artifacts: was changed after its export: md5 is "),
    ],
)
def test_refused(tmp_path: Path, damage: t.Callable[[Path], None], message: str) -> None:
    path, build = make(tmp_path)
    _descriptor_files.checked(path, build, build.artifacts[0])
    damage(tmp_path / "a.qcow2")
    with pytest.raises(FactoryError) as caught:
        _descriptor_files.checked(path, build, build.artifacts[0])
    assert str(caught.value).startswith(f"{tmp_path}/{message}")


def test_no_sidecar_where_one_must_not_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, build = make(tmp_path)

    def refuse(file: Path, _digests: t.Mapping[str, str]) -> None:
        raise PermissionError(13, os.strerror(13), str(file))

    monkeypatch.setattr(_digest, "remember_digests", refuse)
    assert _descriptor_files.checked(path, build, build.artifacts[0]) == tmp_path / "a.qcow2"
