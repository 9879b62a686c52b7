# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A layer as a running guest: in by ssh, out without a trace, and never left alone."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from tiny_installer import make_installer

from ansible_collections.cloudimg.factory.plugins.module_utils import _guest_ssh, _machine, _partitions, _qemu_img, _ssh
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._owner import Owner

MIB = 1 << 20
NAME = f"tiny-{os.getpid()}-guest"


@pytest.fixture
def tiny_disk(tmp_path):
    """A function that makes a disk whose boot sector says hello and powers off, or waits."""

    def make(*, ends: bool) -> Path:
        make_installer(tmp_path / "made", "\r\nHello", ends=ends)
        raw = tmp_path / "disk.raw"
        raw.write_bytes(((tmp_path / "made/tree/boot.img").read_bytes()[:510] + b"\x55\xaa").ljust(MIB, b"\0"))
        disk = tmp_path / "layer.qcow2"
        _qemu_img.convert(raw, disk, source_fmt="raw", target_fmt="qcow2")
        return disk

    return make


def machines() -> list[str]:
    """What runs under our name."""
    done = subprocess.run(["pgrep", "-f", f"cloudimg-{NAME}"], capture_output=True, text=True, check=False)
    return done.stdout.split()


def gone(seconds: float = 60.0) -> bool:
    """Whether nothing runs under our name any more, at the latest after some seconds."""
    deadline = time.monotonic() + seconds
    while machines() and time.monotonic() < deadline:
        time.sleep(0.2)
    return not machines()


def start(disk: Path, folder: Path, owner: Owner | None, **options) -> _guest_ssh.GuestAccess:
    return _guest_ssh.start_guest(
        disk,
        folder / "guest",
        options.pop("accelerator", "tcg"),
        name=NAME,
        owner=owner,
        console=folder / "console.log",
        **options,
    )


def test_a_guest_that_switches_itself_off_leaves_nothing(tiny_disk, tmp_path):
    with pytest.raises(FactoryError, match="the machine went off"):
        start(tiny_disk(ends=True), tmp_path, Owner.of())
    assert gone()
    assert not (tmp_path / "guest").exists()


def test_a_guest_without_ssh_leaves_nothing(tiny_disk, tmp_path):
    with pytest.raises(FactoryError, match="no SSH server answered within 3 s"):
        start(tiny_disk(ends=False), tmp_path, Owner.of(), timeout=3)
    assert gone()
    assert not (tmp_path / "guest").exists()


def test_a_disk_that_cannot_be_opened_is_one_clear_line(tmp_path):
    with pytest.raises(FactoryError, match=r"qemu-system-x86_64: did not start: .*none\.qcow2") as caught:
        start(tmp_path / "none.qcow2", tmp_path, Owner.of())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "guest").exists()


@pytest.mark.parametrize("victim", ["owner", "supervisor"])
def test_the_guest_goes_with_its_owner_and_with_its_supervisor(tiny_disk, tmp_path, victim):
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        seen: list[str] = []

        def tick() -> None:
            console = tmp_path / "console.log"
            if not seen and console.exists() and b"Hello" in console.read_bytes():
                seen.extend(machines())
                if victim == "owner":
                    sleeper.kill()
                    sleeper.wait()
                else:
                    (qemu,) = seen
                    parent = Path(f"/proc/{qemu}/stat").read_text().rpartition(")")[2].split()[1]
                    os.kill(int(parent), 9)

        with pytest.raises(FactoryError, match="the machine went off"):
            start(tiny_disk(ends=False), tmp_path, Owner.of(sleeper.pid), timeout=60, tick=tick)
        sleeper.kill()
    assert len(seen) == 1
    assert gone()
    assert not (tmp_path / "guest").exists()


def test_access_survives_as_json(tmp_path):
    owner = Owner.of()
    access = _guest_ssh.GuestAccess(
        _machine.LOOPBACK, 4022, "root", "/r/id", "/r/known_hosts", "/r", "/l/console.log", owner, owner
    )
    assert _guest_ssh.GuestAccess.load(json.loads(json.dumps(access.dump()))) == access
    variables = access.variables()
    assert variables["ansible_port"] == 4022
    assert variables["ansible_ssh_private_key_file"] == "/r/id"
    assert "-oIdentityAgent=none" in variables["ansible_ssh_common_args"]


@pytest.mark.slow
@pytest.mark.full_build
@pytest.mark.root
def test_in_and_out_of_the_built_image_without_a_trace(built_image, tmp_path):
    disk = tmp_path / "layer.qcow2"
    _qemu_img.create(disk, None, backing=built_image)
    access = start(disk, tmp_path, Owner.of())
    try:
        script = (
            "id -u; cat /root/.ssh/authorized_keys; dd if=/dev/urandom of=/var/tmp/big bs=1M count=64; rm /var/tmp/big"
        )
        done = _ssh.run(access.ssh, script, timeout=300)
        assert done.stdout.splitlines() == ["0", (tmp_path / "guest/id.pub").read_text().strip()]
        inventory = tmp_path / "hosts.json"
        hosts = {"guest": {**access.variables(), "ansible_python_interpreter": "/usr/bin/python3"}}
        inventory.write_text(json.dumps({"all": {"hosts": hosts}}))
        ping = ["ansible", "-i", str(inventory), "guest", "-m", "ansible.builtin.ping"]
        assert '"pong"' in subprocess.run(ping, capture_output=True, text=True, check=True).stdout
    finally:
        _guest_ssh.stop_guest(access)
    assert gone()
    assert not (tmp_path / "guest").exists()
    _qemu_img.check(disk)
    # The image is hardened: what let root in is gone again, too.
    raw = tmp_path / "disk.raw"
    _qemu_img.convert(disk, raw, source_fmt="qcow2", target_fmt="raw")
    root = _partitions.root_of(_partitions.volumes(raw), raw)
    argv = ["debugfs", "-R", "ls /etc/ssh/sshd_config.d", _partitions.ext_device(raw, root)]
    files = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    assert "00-cloudimg-harden.conf" in files and "build" not in files
    # a second guest on it shows what the first one has left
    access = start(disk, tmp_path, Owner.of())
    try:
        done = _ssh.run(access.ssh, "cat /root/.ssh/authorized_keys; ls /etc/ssh/ssh_host_*", timeout=300)
        assert done.stdout.splitlines() == [
            (tmp_path / "guest/id.pub").read_text().strip(),
            "/etc/ssh/ssh_host_ed25519_key",
        ]
    finally:
        _guest_ssh.kill_guest(access)
    assert gone()
