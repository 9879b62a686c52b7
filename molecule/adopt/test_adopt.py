# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What role adopt has made of a system of another machine."""

import pytest


@pytest.mark.parametrize("name", ["open-vm-tools", "virtualbox-guest-utils", "acme-guest-agent"])
def test_guest_tools_are_gone(host, name):
    assert not host.package(name).is_installed


def test_other_packages_stay(host):
    assert host.package("innocent").is_installed
    assert host.package("grub-pc").is_installed


def test_tools_of_no_package_are_gone(host):
    assert not host.file("/opt/VBoxGuestAdditions-7.0.0").exists


def test_partitions_are_called_by_uuid(host):
    lines = host.file("/etc/fstab").content_string.splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        "UUID=6d4e9b43-6e0f-4d1c-8c0f-0e6b0b8b1f3e / ext4 errors=remount-ro 0 1",
        "UUID=6A4F-1C2D /boot/efi vfat umask=0077 0 1",
        "tmpfs /srv/scratch tmpfs defaults 0 0",
    ]


def test_grub_knows_no_disk(host):
    assert not host.file("/boot/grub/device.map").exists
    assert host.file("/etc/default/grub").content_string == "GRUB_DEFAULT=0\n"
    said = host.check_output("debconf-show grub-pc")
    assert "VBOX" not in said
    assert "install_devices_empty: true" in said
