# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Importing as far as it goes without disks: what a definition may say, compressed streams, holes, the words for ssh."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shlex
import subprocess
import typing as t
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.cloudimg.factory.plugins.module_utils import _import_layout, _import_ssh, _import_stream
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._import_source import our_keys, too_large
from ansible_collections.cloudimg.factory.plugins.module_utils._partitions import Volume
from ansible_collections.cloudimg.factory.plugins.module_utils._source_disk import SourceDisk, check_source

MIB = 1 << 20
SUM = f"sha256:{'0' * 64}"
FILE = {"path": "/x.qcow2", "checksum": SUM}
SSH = {"host": "legacy.example.org", "device": "/dev/sda"}
CONTENT = bytes(MIB) + os.urandom(MIB // 8) + bytes(1000)


def check(**given: t.Any) -> None:
    def refuse(path: t.Sequence[str], problem: str, mend: str) -> t.NoReturn:
        raise FactoryError(problem, key=".".join(("image_source_disk", *path)), mend=mend)

    check_source(SourceDisk.load(given), refuse)


@pytest.mark.parametrize(
    "given",
    [
        FILE,
        {"url": "https://example.org/x.ova", "checksum": "https://example.org/SHA256SUMS", "disk": "disk1"},
        {**FILE, "format": "raw"},
        {"device": "/dev/disk/by-id/ata-x-1"},
        {"device": "/dev/vdb", "checksum": SUM},
        {"ssh": {**SSH, "user": "admin", "port": 2222, "sudo": True}},
        {"path": "/x", "checksum": "/SUMS", "signature": "/SUMS.asc", "keyring": "/k.gpg", "fingerprints": ["A" * 40]},
    ],
)
def test_what_fits_together_is_taken(given):
    check(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "image_source_disk: names no disk; set one of: url, path, device, ssh"),
        ({**FILE, "device": "/dev/vdb"}, "image_source_disk.device: and path cannot both be given; remove one of them"),
        ({"path": "/x"}, "image_source_disk.checksum: is missing: a disk by path is used only when it is verified"),
        ({"url": "ftp://x/y", "checksum": SUM}, "image_source_disk.url: 'ftp://x/y' is no URL"),
        ({**FILE, "checksum": "sha256:12"}, "image_source_disk.checksum: sha256:12 is not 64 hexadecimal digits"),
        ({**FILE, "checksum": "md5:12"}, "image_source_disk.checksum: md5:12 the algorithm 'md5' is not accepted"),
        ({**FILE, "signature": "/x"}, "image_source_disk.keyring: is missing; a signature is worth nothing"),
        (
            {**FILE, "disk": "x", "format": "raw"},
            "image_source_disk.disk: names a disk of an appliance, but format is raw",
        ),
        ({"device": "/etc/shadow"}, "image_source_disk.device: '/etc/shadow' cannot be used"),
        ({"device": "/dev/../etc/shadow"}, "image_source_disk.device: '/dev/../etc/shadow' cannot be used"),
        ({"device": "/dev/vdb", "format": "qcow2"}, "image_source_disk.format: is qcow2, but device is a disk itself"),
        (
            {"device": "/dev/vdb", "keyring": "/x"},
            "image_source_disk.keyring: is for files, but device is a disk itself",
        ),
        ({"device": "/dev/vdb", "checksum": "/SUMS"}, "image_source_disk.checksum: is a file's, but device is in no"),
        ({"ssh": {"host": "x"}}, "image_source_disk.ssh.device: is missing; set it"),
        ({"ssh": {"device": "/dev/sda"}}, "image_source_disk.ssh.host: is missing; set it"),
        (
            {"ssh": {**SSH, "host": "-oProxyCommand=id"}},
            "image_source_disk.ssh.host: '-oProxyCommand=id' cannot be used",
        ),
        ({"ssh": {**SSH, "user": "-x"}}, "image_source_disk.ssh.user: '-x' cannot be used"),
        ({"ssh": {**SSH, "device": "/dev/sda; id"}}, "image_source_disk.ssh.device: '/dev/sda; id' cannot be used"),
        ({"ssh": {**SSH, "port": 70000}}, "image_source_disk.ssh.port: 70000 is no port"),
    ],
)
def test_what_does_not_fit_together_names_key_and_mend(given, message):
    with pytest.raises(FactoryError) as caught:
        check(**given)
    assert str(caught.value).startswith(message)
    assert caught.value.mend


def test_errors_of_what_is_shared_with_media_name_our_keys():
    with pytest.raises(FactoryError) as caught, our_keys():
        raise FactoryError("is not image_medium.x", key="image_medium.checksum", mend="see image_medium.url")
    assert str(caught.value) == "image_source_disk.checksum: is not image_source_disk.x; see image_source_disk.url"


def test_only_ssh_itself_gets_words_and_the_shell_there_quoted_ones(tmp_path):
    remote = _import_ssh.Remote("h", "/dev/sda", "u", 2222, True, tmp_path / "a key%", tmp_path / "known")
    argv = remote.argv("dd", "if=/dev/sda; id")
    assert argv[0] == "ssh"
    assert argv[-3:-1] == ["--", "h"]
    assert shlex.split(argv[-1])[1:] == ["sudo", "-n", "dd", "if=/dev/sda; id"]
    assert "StrictHostKeyChecking=yes" in argv
    assert f'IdentityFile="{tmp_path}/a key%%"' in argv
    assert f'UserKnownHostsFile="{tmp_path}/known"' in argv
    assert "GlobalKnownHostsFile=/dev/null" in argv
    plain = _import_ssh.Remote("h", "/dev/sda").argv("true")
    assert not any(word.startswith(("IdentityFile", "UserKnownHostsFile")) for word in plain)


def packed(kind: str, data: bytes) -> bytes:
    if kind == "zstd":
        return subprocess.run(["zstd", "-q", "-c"], input=data, capture_output=True, check=True).stdout
    return {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}[kind](data)


def unpacked(path: Path, kind: str) -> bytes:
    return b"".join(_import_stream.decompress(path, kind, lambda: None))


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz", "zstd"])
def test_what_was_compressed_comes_out_again(tmp_path, kind):
    path = tmp_path / "disk"
    path.write_bytes(packed(kind, CONTENT))
    assert unpacked(path, kind) == CONTENT
    path.write_bytes(packed(kind, CONTENT) + packed(kind, b"and more"))
    assert unpacked(path, kind) == CONTENT + b"and more"


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz", "zstd"])
@pytest.mark.parametrize(
    "spoil", [lambda data: data[: len(data) // 2], lambda data: data[:-1], lambda data: b"x" + data]
)
def test_what_is_damaged_is_told(tmp_path, kind, spoil):
    path = tmp_path / "disk"
    path.write_bytes(spoil(packed(kind, CONTENT)))
    with pytest.raises(FactoryError, match=f"cannot be unpacked as {kind}: .*fetch it again$"):
        unpacked(path, kind)


def test_xz_streams_may_be_padded_and_take_little_memory(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(lzma.compress(b"one") + bytes(4) + lzma.compress(b"two") + bytes(8))
    assert unpacked(path, "xz") == b"onetwo"
    hungry = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 29}]
    path.write_bytes(lzma.compress(b"one", filters=hungry))
    with pytest.raises(FactoryError, match=r"cannot be unpacked as xz: .*[Mm]emory"):
        unpacked(path, "xz")


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz", "zstd"])
def test_a_bomb_ends_at_the_limit(tmp_path, kind):
    path = tmp_path / "bomb"
    path.write_bytes(packed(kind, bytes(32 * MIB)))
    assert path.stat().st_size < MIB
    stream = io.BytesIO()
    writer = _import_stream.SparseWriter(stream, 8 * MIB, too_large("bomb", 8 * MIB))
    with pytest.raises(FactoryError, match=r"bomb: image_disk.size: is larger than the disk of the image \(8388608"):
        for piece in _import_stream.decompress(path, kind, lambda: None):
            writer.write(piece)
    assert writer.position <= 8 * MIB


def written(path: Path, pieces: t.Iterable[bytes]) -> None:
    with path.open("wb") as stream:
        writer = _import_stream.SparseWriter(stream, 1 << 40, too_large("x", 1))
        for piece in pieces:
            writer.write(piece)
        writer.finish()


def test_zeros_become_holes(tmp_path):
    path = tmp_path / "disk"
    written(path, [bytes(64 * MIB), b"x" * 70000, bytes(64 * MIB)])
    assert path.stat().st_size == 128 * MIB + 70000
    assert path.stat().st_blocks * 512 <= 256 << 10
    with path.open("rb") as stream:
        assert stream.seek(64 * MIB) and stream.read(70001) == b"x" * 70000 + b"\0"


@settings(max_examples=50, deadline=None, database=None)
@given(st.lists(st.tuples(st.sampled_from([b"\0", b"x"]), st.integers(1, 200_000)), max_size=8))
def test_whatever_comes_is_what_is_there(tmp_path_factory, runs):
    pieces = [byte * length for byte, length in runs]
    path = tmp_path_factory.getbasetemp() / "runs"
    written(path, pieces)
    assert path.read_bytes() == b"".join(pieces)


def test_a_pipe_leaves_no_process_behind():
    with _import_stream.Pipe(["yes"]) as pipe:
        assert len(next(pipe.chunks(lambda: None))) == _import_stream.CHUNK
        pid = pipe._process.pid
    assert not Path(f"/proc/{pid}").exists()
    with _import_stream.Pipe(["sleep", "60"]) as pipe:
        assert list(pipe.chunks(lambda: None, silence=1.0)) == []
        assert pipe.rc is None
    with _import_stream.Pipe(["ls", "/does-not-exist"]) as pipe:
        assert list(pipe.chunks(lambda: None)) == []
        assert pipe.rc == 2 and "does-not-exist" in pipe.said()


def volumes(*kinds: str) -> list[Volume]:
    """Volumes, one after the other: «fstype» or «fstype:partition type»."""
    found = []
    for number, kind in enumerate(kinds, 1):
        fstype, _colon, code = kind.partition(":")
        found.append(Volume(number, number << 30, 1 << 30, kind=code, fstype=fstype, uuid=str(number)))
    return found


@pytest.mark.parametrize(
    ("kinds", "root", "warnings"),
    [
        (("vfat:ef", "xfs"), 2, []),
        (
            ("xfs", "swap"),
            1,
            ["partition 2 is swap", "the root (partition 1) is not the last on the disk (partition 2 is)"],
        ),
        (("xfs", "xfs"), 2, ["partition 1 is a separate /boot"]),
        (("LVM2_member", "xfs"), 2, ["partition 1 is LVM"]),
        ((":5", "btrfs", ":82"), 2, ["partition 3 is swap", "the root (partition 2) is not the last"]),
        (("xfs", ":5"), 1, []),
    ],
)
def test_layouts_that_do_not_suit_a_cloud(tmp_path, kinds, root, warnings):
    found = volumes(*kinds)
    said = _import_layout._unsuitable(tmp_path / "disk", found, found[root - 1])
    assert len(said) == len(warnings)
    assert all(line.startswith(start) for line, start in zip(said, warnings))


@pytest.mark.parametrize(
    ("kinds", "seen"),
    [
        (("LVM2_member",), "LVM"),
        (("crypto_LUKS",), "encrypted"),
        (("ntfs", "vfat"), "ntfs, vfat"),
        ((), "nothing that"),
    ],
)
def test_a_disk_without_a_root_that_can_be_worked_on(kinds, seen):
    with pytest.raises(
        FactoryError, match=rf"^x: key: has no root file system that the factory can work on \(it has {seen}"
    ):
        _import_layout._root(volumes(*kinds), [], "x", "key")
