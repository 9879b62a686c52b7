# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Layers written in an offline tree: real disks, loop devices, mounts and namespaces."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from tiny_system import Leftovers, as_base, tiny_disk

from ansible_collections.cloudimg.factory.plugins.module_utils import _guest, _layers, _qemu_img, _state, _supervisor
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._owner import Owner

pytestmark = pytest.mark.root
IMAGE = "tiny"
STAGE = "applications"


@dataclasses.dataclass
class Bench:
    """A workspace with a base, and a layer to be written on it."""

    layer: _layers.Layer
    left: Leftovers

    @property
    def workspace(self) -> _state.Workspace:
        """The workspace."""
        return self.layer.workspace

    def open(self, owner: Owner | None = None) -> _guest.Opened:
        """Open the layer for this process, or another owner."""
        return _guest.open_layer(self.layer, owner or Owner.of())

    def commit(self, **options) -> tuple[_layers.Layer, bool]:
        """Commit it."""
        return _guest.commit_layer(self.workspace, IMAGE, STAGE, **{"forbidden": [], "packages": False, **options})

    def discard(self, **options) -> str | None:
        """Discard it."""
        return _guest.discard_layer(self.workspace, IMAGE, STAGE, **options)

    def names(self) -> list[str]:
        """What there is beside the base, in the cache and in run/."""
        places = (self.workspace.layers, self.workspace.run)
        names = sorted(path.name for place in places for path in place.iterdir())
        return [name for name in names if not name.startswith("base_vm-") and not name.endswith(".lock")]


@pytest.fixture
def bench(tmp_path, tmp_path_factory):
    """A workspace of its own; at the end nothing of it may be in use."""
    workspace = _state.Workspace(tmp_path / "a workspace, with a name")
    base = as_base(tiny_disk(tmp_path_factory.getbasetemp()), workspace)
    layer = _layers.Layer(workspace, IMAGE, STAGE, base, _layers.digest_of(base), {"image_packages": ["htop"]})
    bench = Bench(layer, Leftovers(workspace.root))
    yield bench
    bench.discard()
    assert bench.left.none_within(60), bench.left.found()


def inside(opened: _guest.Opened, script: str, check: bool = True) -> str:
    """Run a shell script in the tree, as Ansible's connection does; returns what it said."""
    argv = [opened.variables["ansible_chroot_exe"], opened.mount, "/bin/sh", "-c", script]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout + done.stderr


def test_what_is_written_is_in_the_layer_and_not_in_the_base(bench):
    base = _layers.stamp(bench.layer.parent)
    opened = bench.open()
    inside(opened, "echo hello > /etc/greeting")
    layer, kept = bench.commit()
    assert kept
    assert _layers.flaw(layer) is None
    assert _layers.stamp(bench.layer.parent) == base
    assert bench.names() == sorted([layer.path.name, layer.path.with_suffix(".json").name])
    child = dataclasses.replace(bench.layer, stage=STAGE, parent=layer.path, parent_digest=layer.digest)
    again = _guest.open_layer(child, Owner.of())
    assert inside(again, "cat /etc/greeting") == "hello\n"


def test_the_builder_is_not_touched_from_inside(bench):
    opened = bench.open()
    here = (socket.gethostname(), Path("/proc/sys/net/ipv4/ip_forward").read_text())
    said = inside(
        opened,
        "hostname; hostname intruder; echo 1 > /proc/sys/net/ipv4/ip_forward; echo b > /proc/sysrq-trigger;"
        " kill -9 1; kill -TERM 1; kill -INT 1; ls -d /proc/[0-9]* | wc -l;"
        " python3 -c 'import ctypes; print(ctypes.CDLL(None, use_errno=True).reboot(0x1234567), ctypes.get_errno())'",
        check=False,
    )
    assert said.startswith("localhost\n")
    assert "-1 0" in said or "-1 1" in said
    assert (socket.gethostname(), Path("/proc/sys/net/ipv4/ip_forward").read_text()) == here
    assert inside(opened, "hostname") == "intruder\n"
    assert not any(
        bench.layer.workspace.root.as_posix() in line for line in Path("/proc/mounts").read_text().splitlines()
    )
    assert [path.name for path in Path(opened.mount).iterdir()] == ["bin"]


def test_nothing_of_the_builders_environment_gets_inside(bench, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("http_proxy", "http://proxy.example.org:3128")
    said = inside(bench.open(), "env")
    assert "secret" not in said
    assert "http_proxy=http://proxy.example.org:3128\n" in said


def test_package_tools_and_boot_loader_work_inside(bench):
    opened = bench.open()
    assert inside(opened, "cat /etc/resolv.conf") == Path("/etc/resolv.conf").read_text()
    assert inside(opened, "/usr/sbin/policy-rc.d; echo $?") == "101\n"
    assert "Running in chroot, ignoring" in inside(opened, "systemctl start systemd-networkd")
    inside(opened, "systemctl enable systemd-networkd; update-grub")
    config = inside(opened, "cat /boot/grub/grub.cfg")
    uuid = inside(opened, "grub-probe --target=fs_uuid /").strip()
    assert f"linux\t/boot/vmlinuz-6.1.0-1-amd64 root=UUID={uuid} ro" in config
    assert f"search --no-floppy --fs-uuid --set=root {uuid}" in config
    assert "loop" not in config.replace("loopback", "")


def test_what_is_only_for_the_work_is_gone_afterwards(bench):
    opened = bench.open()
    inside(opened, "touch /run/x /dev/shm/x")
    layer, _kept = bench.commit()
    child = dataclasses.replace(bench.layer, parent=layer.path, parent_digest=layer.digest)
    opened = _guest.open_layer(child, Owner.of())
    listed = inside(
        opened, "mount -o remount,bind / && umount /dev/shm /dev/pts /dev /run; ls /run /dev; ls -l /etc/resolv.conf"
    )
    assert "x" not in listed.split()
    assert not inside(opened, "test -e /run/x && echo there", check=False)


def test_deleted_files_take_up_no_space(bench):
    opened = bench.open()
    inside(opened, "head -c 200M /dev/urandom > /root/big; sync; rm /root/big")
    layer, _kept = bench.commit()
    assert _qemu_img.info(layer.path).actual_size < 30 << 20


def test_a_process_left_running_is_named_and_the_layer_not_kept(bench):
    opened = bench.open()
    inside(opened, "sleep 1000 >/dev/null 2>&1 &")
    with pytest.raises(
        FactoryError, match=r"a process was left running in the offline tree: sleep \(process \d+\); have"
    ):
        bench.commit()
    assert bench.discard() == "discarded"
    assert bench.names() == []


def test_gpg_agents_are_no_mistake_of_the_roles(bench):
    opened = bench.open()
    inside(opened, "cp /bin/sleep /usr/bin/gpg-agent; gpg-agent 1000 >/dev/null 2>&1 &")
    assert bench.commit()[1]


def test_a_forbidden_file_is_named_and_the_layer_not_kept(bench):
    opened = bench.open()
    inside(opened, "mkdir -p /root/.ssh; echo key > /root/.ssh/authorized_keys; touch /etc/ssh/ssh_host_empty_key")
    with pytest.raises(FactoryError, match=r"holds what must not be in an image: /root/.ssh/authorized_keys; have the"):
        bench.commit(forbidden=["/root/.ssh/authorized_keys", "/etc/ssh/ssh_host_*"])
    inside(opened, "rm /root/.ssh/authorized_keys")
    assert bench.commit(forbidden=["/root/.ssh/authorized_keys", "/etc/ssh/ssh_host_*"])[1]


def test_the_list_of_packages(bench):
    bench.open()
    layer, _kept = bench.commit(packages=True)
    known = _state.read_json(layer.packages)
    assert known["os_release"]["VERSION_CODENAME"] == "bookworm"
    systemd = [row for row in known["packages"] if row["name"] == "systemd"]
    assert systemd[0]["arch"] == "amd64"
    assert systemd[0]["version"].startswith("252")


def test_an_open_layer_is_not_opened_again(bench):
    bench.open()
    with pytest.raises(FactoryError, match=r"the applications layer of tiny is open already .*; wait for the build"):
        bench.open()


def test_what_is_not_open_cannot_be_committed(bench):
    with pytest.raises(FactoryError, match="the applications layer of tiny is not open; run the stage again"):
        bench.commit()
    assert bench.discard() is None


def test_it_all_goes_when_its_owner_is_killed(bench):
    owner = subprocess.Popen(["sleep", "1000"])
    opened = bench.open(Owner.of(owner.pid))
    subprocess.Popen([opened.variables["ansible_chroot_exe"], opened.mount, "/bin/sleep", "1000"])
    assert bench.left.found()
    owner.kill()
    owner.wait()
    assert bench.left.none_within(60), bench.left.found()
    deadline = time.monotonic() + 120
    while bench.names() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert bench.names() == []


def test_it_all_goes_when_its_supervisor_is_killed(bench):
    opened = bench.open()
    supervisor = _supervisor.state(opened.home)["supervisor"]["pid"]
    os.kill(supervisor, signal.SIGKILL)
    assert bench.left.none_within(60), bench.left.found()
    with pytest.raises(FactoryError, match=r"is not open|has gone"):
        bench.commit()
    again = bench.open()
    assert inside(again, "echo fine") == "fine\n"
    assert len([name for name in bench.names() if "partial" in name]) == 1


def test_a_layer_can_be_held_for_a_look(bench):
    owner = subprocess.Popen(["sleep", "1000"])
    opened = bench.open(Owner.of(owner.pid))
    said = bench.discard(keep=True)
    assert said.startswith(f"look into it by: {opened.home}/enter")
    owner.kill()
    owner.wait()
    time.sleep(2.5)
    assert inside(opened, "echo here") == "here\n"
    with pytest.raises(FactoryError, match=r"was kept after a failure; look into it by .*, then drop it by: kill -9"):
        bench.open()


def test_a_build_that_was_killed_can_be_started_again_at_once(bench):
    owner = subprocess.Popen(["sleep", "1000"])
    inside(bench.open(Owner.of(owner.pid)), "touch /stale")
    owner.kill()
    owner.wait()
    assert inside(bench.open(), "test -e /stale || echo fresh") == "fresh\n"


def test_no_disk_without_a_root_file_system(bench):
    bench.layer.parent.unlink()
    _qemu_img.create(bench.layer.parent, 16 << 20)
    with pytest.raises(FactoryError, match=r"has no root file system .* \(it has nothing that blkid knows\)"):
        bench.open()
    assert bench.left.none_within(60)
    assert bench.names() == []
