# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine of another hypervisor, imported by the playbook: what becomes of it, and what goes wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import typing as t
from pathlib import Path

import ansible_runner
import pytest
import yaml
from tiny_system import Leftovers, as_base, tiny_disk

from ansible_collections.cloudimg.factory.plugins.module_utils import _guest, _layers, _qemu_img, _state, _supervisor
from ansible_collections.cloudimg.factory.plugins.module_utils._owner import Owner

pytestmark = pytest.mark.root
CHECKOUT = Path(__file__).resolve().parents[2]
LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
IMAGE = "legacy"

# A Debian as it may come from VMware or VirtualBox.
FOREIGN = r"""
set -e
cat > /etc/fstab <<'TABLE'
# made by the installer
/dev/sda2 / ext4 errors=remount-ro 0 1
/dev/disk/by-id/ata-VBOX_HARDDISK_VB1234-5678-part1 /boot/efi vfat umask=0077 0 1
/dev/sr0 /media/cdrom0 udf,iso9660 user,noauto 0 0
tmpfs /tmp tmpfs defaults 0 0
TABLE
mkdir -p /boot/grub /etc/default/grub.d /opt/VBoxGuestAdditions-7.0.0
echo '(hd0) /dev/sda' > /boot/grub/device.map
printf 'GRUB_DEFAULT=0\nGRUB_DISABLE_LINUX_UUID=true\n' > /etc/default/grub
printf '#!/bin/sh\n[ "$1" = --force ] && rm -r /opt/VBoxGuestAdditions-7.0.0\n' > /opt/VBoxGuestAdditions-7.0.0/uninstall.sh
chmod 755 /opt/VBoxGuestAdditions-7.0.0/uninstall.sh
for name in open-vm-tools innocent; do
    mkdir -p /tmp/$name/DEBIAN /tmp/$name/usr/lib/$name
    printf 'Package: %s\nVersion: 2:12.2\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n' $name \
        > /tmp/$name/DEBIAN/control
    echo x > /tmp/$name/usr/lib/$name/file
    dpkg-deb --build /tmp/$name /tmp/$name.deb >/dev/null
    dpkg -i /tmp/$name.deb >/dev/null
done
rm -r /tmp/open-vm-tools* /tmp/innocent*
"""


def inside(workspace: _state.Workspace, disk: Path, script: str) -> str:
    """What a shell script says inside a layer."""
    home, overlay = workspace.run / "look.tree", disk.with_name("look.qcow2")
    _supervisor.start(home, Owner.of(), overlay, lambda path: _qemu_img.create(path, None, backing=disk), {})
    try:
        argv = [home / "enter", home / "root", "/bin/sh", "-c", script]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout
    finally:
        _supervisor.end(home)


@dataclasses.dataclass
class Site:
    """An inventory with one image, which begins with the disk of another machine."""

    root: Path
    source: dict[str, t.Any]

    @property
    def workspace(self) -> _state.Workspace:
        """The workspace."""
        return _state.Workspace(self.root / "workspace")

    def play(self, *options: str, **changes: t.Any) -> ansible_runner.Runner:
        """Run the playbook."""
        image = {
            "image_os": {"distribution": "debian", "version": "12"},
            "image_source_disk": self.source,
            "image_disk": {"size": "1600M"},
            "image_workspace": str(self.workspace.root),
            **changes,
        }
        hosts = {"images": {"hosts": {IMAGE: image}}, "builders": {"hosts": {"localhost": LOCAL}}}
        inventory = Path(tempfile.mkdtemp(prefix="inventory-", dir=self.root)) / "hosts.yml"
        inventory.write_text(yaml.safe_dump(hosts))
        return ansible_runner.run(
            private_data_dir=tempfile.mkdtemp(prefix="runner-", dir=self.root),
            playbook=str(CHECKOUT / "playbooks/build.yml"),
            inventory=str(inventory),
            cmdline=" ".join(options),
            quiet=True,
            envvars={
                "ANSIBLE_COLLECTIONS_PATH": os.environ["ANSIBLE_COLLECTIONS_PATH"],
                "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"),
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "ANSIBLE_NOCOLOR": "1",
            },
        )

    def build(self) -> dict[str, t.Any]:
        """The newest build.json."""
        path = max((self.workspace.builds / IMAGE).glob("*/build.json"))
        return dict(json.loads(path.read_text(encoding="utf-8")))


def said(played: ansible_runner.Runner) -> str:
    """All its output."""
    return Path(played.stdout.name).read_text(encoding="utf-8", errors="replace")


def failure(played: ansible_runner.Runner) -> str:
    """The message of the task that failed last."""
    failed = [event["event_data"]["res"] for event in played.events if event["event"] == "runner_on_failed"]
    return str(failed[-1]["msg"]) if failed else ""


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> dict[str, t.Any]:
    """The C(image_source_disk) of a machine of another hypervisor."""
    folder = tmp_path_factory.mktemp("foreign")
    workspace = _state.Workspace(folder / "workspace")
    base = as_base(tiny_disk(tmp_path_factory.getbasetemp()), workspace)
    layer = _layers.Layer(workspace, "foreign", "applications", base, _layers.digest_of(base), {})
    opened = _guest.open_layer(layer, Owner.of())
    argv = [opened.variables["ansible_chroot_exe"], opened.mount, "/bin/sh", "-c", FOREIGN]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        made, _kept = _guest.commit_layer(workspace, "foreign", "applications", forbidden=[], packages=False)
    finally:
        _guest.discard_layer(workspace, "foreign", "applications")
    disk = folder / "machine.vmdk"
    argv = [
        "qemu-img",
        "convert",
        "-f",
        "qcow2",
        "-O",
        "vmdk",
        "-o",
        "subformat=streamOptimized",
        str(made.path),
        str(disk),
    ]
    subprocess.run(argv, check=True)
    return {"path": str(disk), "checksum": f"sha256:{hashlib.sha256(disk.read_bytes()).hexdigest()}"}


@pytest.fixture(scope="module")
def site(tmp_path_factory, foreign) -> t.Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"), foreign)
    yield site
    assert Leftovers(site.workspace.root).none_within(60)


@pytest.fixture(scope="module")
def adopted(site) -> dict[str, t.Any]:
    """The build after the stage base_vm."""
    played = site.play("--tags", "base_vm")
    assert played.rc == 0, said(played)[-3000:]
    return site.build()


def test_the_build_knows_what_it_is_made_of(site, adopted):
    base = adopted["stages"]["base_vm"]
    assert base["source"]["place"] == site.source["path"]
    assert base["source"]["checksum"] == site.source["checksum"]
    assert base["layout"]["uefi"] is True
    assert [line for line in base["warnings"] if "it is in /EFI/BOOT, too, now" in line]
    assert base["size"] == 1600 << 20
    assert "media" not in adopted["stages"]
    assert adopted["inputs"]["stage"]["adopt"]
    layer = Path(base["path"])
    assert layer.name.startswith("adopt-")
    assert base["digest"] == _layers.digest_of(layer)
    assert _qemu_img.info(layer).backing.name.startswith("base_vm-")


def test_nothing_of_the_other_hypervisor_is_left(site, adopted):
    found = inside(
        site.workspace,
        Path(adopted["stages"]["base_vm"]["path"]),
        "cat /etc/fstab; cat /etc/default/grub; ls /opt /boot/grub; dpkg-query -W -f '${Package}\\n'",
    )
    volumes = {row["partition"]: row["uuid"] for row in adopted["stages"]["base_vm"]["layout"]["volumes"]}
    assert f"UUID={volumes[2]} / ext4 errors=remount-ro 0 1\n" in found
    assert f"UUID={volumes[1]} /boot/efi vfat umask=0077 0 1\n" in found
    assert "tmpfs /tmp tmpfs defaults 0 0\n" in found
    for gone in ("/dev/", "GRUB_DISABLE_LINUX_UUID", "device.map", "VBoxGuestAdditions", "open-vm-tools"):
        assert gone not in found
    assert "GRUB_DEFAULT=0\n" in found
    assert "innocent\n" in found


def test_the_second_run_changes_nothing(site, adopted):
    played = site.play("--tags", "base_vm")
    assert played.rc == 0, said(played)[-3000:]
    assert played.stats["changed"] == {}
    assert site.build()["stages"]["base_vm"]["path"] == adopted["stages"]["base_vm"]["path"]


def test_cloud_init_stands_on_what_was_adopted(site, adopted):
    played = site.play("--tags", "cloud_init", "--check")
    assert played.rc == 0, said(played)[-3000:]
    opened = [
        event["event_data"]["res"]["invocation"]["module_args"]
        for event in played.events
        if event["event"] == "runner_on_ok" and event["event_data"]["task"] == "Open the layer"
    ]
    assert [(args["parent"], args["connection"]) for args in opened] == [
        (adopted["stages"]["base_vm"]["path"], "offline")
    ]


def test_another_system_than_the_definition_says(site, adopted):
    played = site.play("--tags", "base_vm", image_os={"distribution": "debian", "version": "11"})
    assert failure(played) == (
        "adopt: Need the system that the definition names: image_os: is debian 11, but the disk holds debian 12;"
        " correct it, or image_source_disk"
    )
    assert not list(site.workspace.run.glob("*.tree"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_parent": IMAGE}, "leads round in a circle"),
        (
            {"image_source_disk": {"path": "/x"}},
            ": image_source_disk.checksum: is missing: a disk by path is used only when it is verified; set it",
        ),
    ],
)
def test_mistakes_in_the_definition_name_the_key(site, changes, message):
    assert message in failure(site.play("--tags", "base_vm", **changes))


@pytest.mark.slow
def test_what_is_on_a_second_disk_is_an_error_that_names_it(site, foreign, tmp_path):
    workspace = _state.Workspace(tmp_path / "second")
    raw = tmp_path / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-f", "vmdk", "-O", "raw", foreign["path"], raw], check=True)
    table = tmp_path / "fstab"
    table.write_text("/dev/sda2 / ext4 defaults 0 1\n/dev/sdb1 /srv ext4 defaults 0 2\n")
    place = f"{raw}?offset={9 << 20}"
    for request in ("rm /etc/fstab", f"write {table} /etc/fstab"):
        subprocess.run(["/sbin/debugfs", "-w", "-R", request, place], check=True, capture_output=True)
    digest = hashlib.sha256(raw.read_bytes()).hexdigest()
    source = {"path": str(raw), "checksum": f"sha256:{digest}"}
    played = Site(tmp_path, source).play("--tags", "base_vm", image_workspace=str(workspace.root))
    assert "/etc/fstab: /dev/sdb1 for /srv is a name that it has on this machine only" in failure(played)
    assert Leftovers(workspace.root).none_within(60)
