# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Exports under odd conditions: missing libraries, compressed layers, huge disks, changes and damage on the way."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import subprocess
import typing as t
from pathlib import Path

import pytest
from export_disks import MIB, SIZE, make_chain, names, request, run, write

from ansible_collections.cloudimg.factory.plugins.module_utils import (
    _archives,
    _codecs,
    _disk_source,
    _export_make,
    _qcow2_write,
    _qemu_img,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uppermost of the layers."""
    return make_chain(tmp_path_factory.mktemp("layers"))


@pytest.mark.parametrize("cluster_size", [512, 4096, 65536, 2 * MIB])
@pytest.mark.parametrize("compression", ["zstd", "zlib"])
def test_clusters_of_every_size(chain: Path, tmp_path: Path, compression: str, cluster_size: int) -> None:
    run(request(chain, tmp_path, "qcow2", compression=compression, cluster_size=cluster_size))
    found = _qemu_img.info(tmp_path / "debian-12-1.qcow2")
    assert (found.cluster_size, found.compression, found.virtual_size) == (cluster_size, compression, SIZE)


def test_tables_that_do_not_fit_into_memory(chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_qcow2_write, "_TABLES", 8192)
    monkeypatch.setattr(_qcow2_write, "_HELD", 8192)
    run(request(chain, tmp_path, {"format": "qcow2", "cluster_size": "4K"}))
    assert _qemu_img.compare(chain, "qcow2", tmp_path / "debian-12-1.qcow2", "qcow2")


def test_larger_than_qemu_img_makes_it_never(chain: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.qcow2"
    _qemu_img.convert(chain, theirs, source_fmt="qcow2", target_fmt="qcow2", compressed="zstd", cluster_size=MIB)
    run(request(chain, tmp_path, "qcow2"))
    assert (tmp_path / "debian-12-1.qcow2").stat().st_size <= theirs.stat().st_size


def test_without_libzstd_qemu_img_does_it(chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_codecs, "_zstd", lambda: None)
    run(request(chain, tmp_path, "qcow2"))
    found = _qemu_img.info(tmp_path / "debian-12-1.qcow2")
    assert (found.compression, found.cluster_size) == ("zstd", MIB)
    with pytest.raises(
        FactoryError, match=r"^libzstd\.so\.1: is not installed on the builder; run playbooks/builder.yml"
    ):
        run(request(chain, tmp_path / "b", "raw.zst"))
    assert not (tmp_path / "b").exists()


def test_without_libdeflate_zlib_does_it(chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_codecs, "_libdeflate", lambda: None)
    run(request(chain, tmp_path, "vmdk"))
    assert _qemu_img.compare(chain, "qcow2", tmp_path / "debian-12-1.vmdk", "vmdk")


def test_compressed_layer_is_unpacked_first(chain: Path, tmp_path: Path) -> None:
    packed, top = tmp_path / "packed.qcow2", tmp_path / "top.qcow2"
    _qemu_img.convert(chain, packed, source_fmt="qcow2", target_fmt="qcow2", compressed="zlib")
    _qemu_img.create(top, None, backing=packed)
    run(request(top, tmp_path / "b", "raw", "qcow2"))
    theirs = tmp_path / "theirs.raw"
    _qemu_img.convert(chain, theirs, source_fmt="qcow2", target_fmt="raw")
    assert (tmp_path / "b" / "debian-12-1.raw").read_bytes() == theirs.read_bytes()
    assert not [name for name in names(tmp_path / "b") if "partial" in name]


def test_empty_disk(tmp_path: Path) -> None:
    disk = tmp_path / "empty.qcow2"
    _qemu_img.create(disk, 3 * MIB)
    run(request(disk, tmp_path / "b", "qcow2", "raw.gz", "raw.zst", "vmdk", "vhdx", "ova", "box"))
    assert _qemu_img.compare(disk, "qcow2", tmp_path / "b" / "debian-12-1.vmdk", "vmdk")


def test_huge_sparse_disk_costs_little(tmp_path: Path) -> None:
    disk = tmp_path / "huge.qcow2"
    _qemu_img.create(disk, 400 << 30)
    for gib in (0, 100, 399):
        write(disk, gib << 30, os.urandom(4096))
    run(request(disk, tmp_path / "b", "qcow2", "vmdk"))
    assert (tmp_path / "b" / "debian-12-1.qcow2").stat().st_size < 32 * MIB
    assert (tmp_path / "b" / "debian-12-1.vmdk").stat().st_size < 2 * MIB


def test_source_that_changes_is_noticed(chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "layers"
    shutil.copytree(chain.parent, folder)
    top = folder / chain.name
    subprocess.run(
        ["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", f"{folder}/base.qcow2", "-F", "qcow2", str(top)], check=True
    )
    original = _disk_source.DiskSource.check_unchanged

    def changed(source: _disk_source.DiskSource) -> None:
        write(folder / "base.qcow2", 80 * MIB, b"late" * 128)
        original(source)

    monkeypatch.setattr(_disk_source.DiskSource, "check_unchanged", changed)
    with pytest.raises(
        FactoryError, match=r"base\.qcow2: was changed while it was exported; see that nothing writes to it"
    ):
        run(request(top, tmp_path / "b", "qcow2"))
    assert names(tmp_path / "b") == []


def test_one_that_fails_stops_all(chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = request(chain, tmp_path, "qcow2", "raw.zst", "ova")
    run(wanted)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.ova")

    monkeypatch.setattr(_archives.tarfile.TarInfo, "tobuf", full)
    with pytest.raises(FactoryError, match="No space left on device; free some space"):
        run(dataclasses.replace(wanted, source_digest="other"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "place"),
    [
        *(("qcow2", 0), ("qcow2", 0.5), ("qcow2", 0.9), ("vmdk", 0), ("vmdk", 0.5), ("vhdx", 0), ("vhdx", 0.5)),
        *(("raw", 0), ("raw.gz", 0), ("raw.gz", 0.5), ("raw.zst", 0.5), ("vdi", 0.5), ("vhd", 0.5)),
    ],
)
def test_damage_on_the_way_is_noticed(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: float
) -> None:
    """A byte of the file turns before it is verified: what follows must not pass as the disk."""
    exporter = _export_make.EXPORTERS[name]
    verify = exporter.verify

    def damaged(job: t.Any) -> None:
        at = int(job.target.stat().st_size * place)
        with job.target.open("r+b") as stream:
            stream.seek(at)
            old = stream.read(64)
            stream.seek(at)
            stream.write(bytes(byte ^ 0xFF for byte in old))
        try:
            verify(job)
        except FactoryError:
            raise
        except Exception as exc:
            pytest.fail(f"{type(exc).__name__}: {exc}")
        harmless.append(_qemu_img.compare(chain, "qcow2", job.target, {"vhd": "vpc"}.get(name, name)))

    harmless: list[bool] = []
    monkeypatch.setattr(exporter, "verify", damaged, raising=False)
    refused = None
    try:
        run(request(chain, tmp_path, name))
    except FactoryError as exc:
        refused = str(exc)
    if refused is None:
        assert harmless == [True]  # what no guest ever sees, such as the rest of a table
    else:
        assert "\n" not in refused
        assert names(tmp_path) == []
