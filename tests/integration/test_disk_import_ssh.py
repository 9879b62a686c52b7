# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Block devices: of the builder, and of a running machine that a real sshd leads to, over a wire that breaks."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import typing as t
from pathlib import Path

import pytest
from foreign_disks import MIB, ROOT_AT, SIZE, raw_disk, run
from ssh_server import Server, Wire

from ansible_collections.cloudimg.factory.plugins.module_utils import _import, _import_ssh, _qemu_img, _state
from ansible_collections.cloudimg.factory.plugins.module_utils._download import Interrupted
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._import_source import too_large
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.plugins.module_utils._source_disk import SourceDisk

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def disk(tmp_path_factory) -> t.Iterator[tuple[Path, str]]:
    """A raw disk, and the loop device that it is."""
    raw = raw_disk(tmp_path_factory.mktemp("device") / "disk.raw")
    argv = ["losetup", "--show", "--find", str(raw)]
    device = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    yield raw, device
    run("losetup", "--detach", device)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> t.Iterator[Server]:
    try:
        server = Server(tmp_path_factory.mktemp("sshd"))
    except OSError as exc:
        pytest.skip(str(exc))
    yield server
    server.close()


@dataclasses.dataclass
class Far:
    """A machine at the other end of a wire."""

    server: Server
    wire: Wire
    raw: Path
    device: str
    folder: Path

    def given(self, **changes: t.Any) -> dict[str, t.Any]:
        """An C(image_source_disk) of it."""
        known = self.server.known_hosts(self.wire.port)
        ssh = {"host": "127.0.0.1", "port": self.wire.port, "device": self.device, "known_hosts": str(known)}
        return {"ssh": {**ssh, "identity": str(self.server.home / "key"), **changes}}

    def remote(self, **changes: t.Any) -> _import_ssh.Remote:
        """The same as the reader wants it."""
        ssh = self.given(**changes)["ssh"]
        return _import_ssh.Remote(**{**ssh, **{key: Path(ssh[key]) for key in ("known_hosts", "identity")}})

    def read(self, part: Path, delays: t.Sequence[float] = (0.1, 0.1, 0.1), **changes: t.Any) -> str:
        """Read the disk into ``part``; the SHA-256 that came of it."""
        reader = _import_ssh.Reader(self.remote(**changes), Progress("x"), key="key", silence=60, delays=delays)
        return reader.read(part, ["sha256"], SIZE, lambda size: too_large("far", SIZE, size))["sha256"]

    def sha256(self) -> str:
        """The SHA-256 of the disk."""
        return hashlib.sha256(self.raw.read_bytes()).hexdigest()


@pytest.fixture
def far(server, disk, tmp_path) -> t.Iterator[Far]:
    wire = Wire(server.port)
    yield Far(server, wire, disk[0], disk[1], tmp_path)
    wire.close()


def imported(folder: Path, given: t.Mapping[str, t.Any], size: int = SIZE, **more: t.Any) -> Result:
    order = _import.Order(_state.Workspace(folder / "workspace"), "legacy", SourceDisk.load(given), size, **more)
    return _import.import_base(order, Progress("base_vm"))


def test_a_block_device_of_the_builder(disk, tmp_path):
    raw, device = disk
    first = imported(tmp_path, {"device": device})
    base = first.extra["base"]
    assert _qemu_img.compare(raw, "raw", Path(base["path"]), "qcow2")
    assert base["source"] == {
        "place": device,
        "checksum": f"sha256:{hashlib.sha256(raw.read_bytes()).hexdigest()}",
        "sha256": hashlib.sha256(raw.read_bytes()).hexdigest(),
        "format": "raw",
        "virtual_size": SIZE,
    }
    assert imported(tmp_path, {"device": device}).extra["cached"]
    again = imported(tmp_path, {"device": device}, refresh=True)
    assert again.actions == [f"import {device}: a fresh one is asked for"]
    assert again.extra["base"]["digest"] == base["digest"]


def test_a_block_device_that_is_mounted_is_refused(disk, tmp_path):
    argv = ["losetup", "--show", "--find", "--offset", str(ROOT_AT), "--sizelimit", str(16 * MIB), str(disk[0])]
    device = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    point = tmp_path / "mounted"
    point.mkdir()
    try:
        run("mount", "-o", "ro,noload", device, point)
        try:
            with pytest.raises(FactoryError, match=rf"^{device}: image_source_disk.device: .*busy; unmount it"):
                imported(tmp_path, {"device": device})
        finally:
            run("umount", point)
    finally:
        run("losetup", "--detach", device)


@pytest.mark.parametrize(
    ("device", "problem"),
    [("/dev/null", "is no block device"), ("/dev/does-not-exist", "No such file or directory; check that path")],
)
def test_what_is_no_block_device(tmp_path, device, problem):
    with pytest.raises(FactoryError, match=problem):
        imported(tmp_path, {"device": device})


def test_a_disk_of_a_running_machine(far):
    base = imported(far.folder, far.given()).extra["base"]
    assert _qemu_img.compare(far.raw, "raw", Path(base["path"]), "qcow2")
    assert base["source"]["place"] == f"127.0.0.1:{far.device}"
    assert base["source"]["checksum"] == f"sha256:{far.sha256()}"
    connections = len(far.wire.brought)
    assert imported(far.folder, far.given()).extra["cached"]
    assert len(far.wire.brought) == connections


def test_a_connection_that_breaks_again_and_again(far):
    # Each transfer is a connection of its own; the first two only ask.
    far.wire.cuts = [None, None, 3 * MIB, 5 * MIB + 12345, 100, 4 * MIB]
    part = far.folder / "part"
    assert far.read(part) == far.sha256()
    assert part.read_bytes() == far.raw.read_bytes()
    assert part.stat().st_blocks * 512 < 8 * MIB
    assert len(far.wire.brought) == 7


def test_the_next_run_goes_on_where_the_last_one_broke_off(far):
    far.wire.cuts = [None, None, 8 * MIB]
    part = far.folder / "part"
    with pytest.raises(
        Interrupted, match=r"failed 1 times in a row with [78]\d* bytes there: .*it goes on where it broke"
    ):
        far.read(part, delays=())
    assert 0 < part.stat().st_size < SIZE
    before = sum(far.wire.brought)
    assert far.read(part) == far.sha256()
    assert part.read_bytes() == far.raw.read_bytes()
    assert sum(far.wire.brought) - before < SIZE - 6 * MIB


def test_another_machine_at_the_same_place_begins_anew(far):
    far.wire.cuts = [None, None, 8 * MIB]
    part = far.folder / "part"
    with pytest.raises(Interrupted):
        far.read(part, delays=())
    _state.write_json(part.with_name("part.json"), {"size": SIZE, "boot": "of another day"})
    part.write_bytes(os.urandom(8 * MIB))
    assert far.read(part) == far.sha256()


def test_a_host_whose_key_is_not_known_or_another_is_not_read(far):
    other = far.folder / "other_hosts"
    other.write_text("")
    with pytest.raises(
        FactoryError, match=r"image_source_disk\.ssh: .*Host key verification failed.*; add the host's key"
    ):
        imported(far.folder, far.given(known_hosts=str(other)))
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", far.folder / "wrong")
    words = (far.folder / "wrong.pub").read_text().split()
    other.write_text(f"[127.0.0.1]:{far.wire.port} {words[0]} {words[1]}\n")
    with pytest.raises(FactoryError, match="Host key verification failed"):
        imported(far.folder, far.given(known_hosts=str(other)))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"device": "/dev/does-not-exist"},
            r"cannot be read there: .*/dev/does-not-exist.*; check the name of the device",
        ),
        ({"user": "nobody"}, "Permission denied.*; let this user log in there"),
    ],
)
def test_what_cannot_be_read_there(far, changes, problem):
    with pytest.raises(FactoryError, match=problem) as caught:
        imported(far.folder, far.given(**changes))
    assert "\n" not in str(caught.value)
    assert [path.name for path in (far.folder / "workspace/cache/media").iterdir()] == []


def test_a_disk_that_is_too_large_is_not_read_at_all(far):
    with pytest.raises(
        FactoryError, match=rf"image_disk.size: has {SIZE} bytes and is larger .*; set it to 20M or more"
    ):
        imported(far.folder, far.given(), size=10 * MIB)
    assert sum(far.wire.brought) < MIB
