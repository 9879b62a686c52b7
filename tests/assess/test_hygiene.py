# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an image must not bring along."""

from __future__ import annotations

import pytest


@pytest.mark.image
def test_no_ssh_host_keys(system):
    """Each machine makes host keys of its own."""
    assert system.found("/etc/ssh/ssh_host_*_key", "/etc/ssh/ssh_host_*_key.pub") == []


@pytest.mark.image
def test_no_machine_id(system):
    """Each machine gets an id of its own."""
    assert system.says("cat /etc/machine-id").strip() in ("", "uninitialized")


@pytest.mark.image
def test_cloud_init_has_not_run(system):
    """cloud-init takes the first boot for the first."""
    names = ("data/instance-id", "instance", "instances/*", "sem/*")
    assert system.found(*(f"/var/lib/cloud/{name}" for name in names)) == []


@pytest.mark.image
def test_no_random_seed(system):
    """No two machines begin with the same randomness."""
    assert system.found("/var/lib/systemd/random-seed", "/var/lib/systemd/credential.secret") == []


@pytest.mark.image
def test_no_host_name(system):
    """No machine gets the name of the one that was installed."""
    assert system.says("cat /etc/hostname").strip() in ("", "localhost", "localhost.localdomain")


@pytest.mark.image
def test_no_leases(system):
    """No address is remembered of the network that the image was made in."""
    folders = ("dhcp", "dhclient", "NetworkManager", "systemd/network")
    assert system.found(*(f"/var/lib/{name}/*" for name in folders)) == []


@pytest.mark.image
def test_no_hardware_addresses(system):
    """The network's configuration names no card of the machine that was installed."""
    places = "/etc/network /etc/sysconfig/network-scripts /etc/netplan /etc/NetworkManager /etc/systemd/network"
    assert system.lines(f"grep -rilE '(hwaddr|hwaddress|macaddress|mac-address|permanentmacaddress)' {places}") == []


def test_no_persistent_network_names(system):
    """No network card has been given its name for good."""
    assert system.found("/etc/udev/rules.d/*persistent-net.rules") == []


def test_no_core_dumps(system):
    """Nothing is there of the memory of programs that crashed."""
    assert system.found("/core", "/core.*", "/root/core", "/var/crash/*", "/var/lib/systemd/coredump/*") == []


@pytest.mark.booted
def test_logs_are_small(system):
    """All logs together have 200 MB at most."""
    assert int(system.says("du -sm /var/log | cut -f 1")) <= 200


@pytest.mark.image
def test_no_log_tells_of_the_build(system):
    """No log has anything in it yet."""
    assert system.lines("find /var/log -type f -size +0") == []


@pytest.mark.image
def test_no_history(system):
    """Nothing is there of what was typed."""
    assert system.found("/root/.*_history", "/home/*/.*_history", "/root/.lesshst", "/root/.viminfo") == []


@pytest.mark.image
def test_no_temporary_files(system):
    """Temporary directories are empty."""
    assert system.found("/tmp/*", "/tmp/.[!.]*", "/var/tmp/*", "/var/tmp/.[!.]*") == []


@pytest.mark.image
def test_no_package_cache(system):
    """No package is there that has been installed, and no list of them that gets old."""
    names = ("apt/archives/*.deb", "dnf/*", "yum/*", "zypp/*")
    assert system.found(*(f"/var/cache/{name}" for name in names), "/var/lib/apt/lists/*_Packages*") == []


@pytest.mark.image
def test_no_backups_of_accounts(system):
    """Nothing is there of the accounts as they were before."""
    assert system.found(*(f"/etc/{name}-" for name in ("passwd", "shadow", "group", "gshadow"))) == []


def test_no_leftovers_of_the_build(system):
    """Nothing is there of the tools by which the image was made."""
    homes = [f"{home}/.{name}" for home in ("/root", "/home/*") for name in ("ansible", "netrc", "aws", "kube")]
    others = ["/usr/sbin/policy-rc.d", "/var/log/fai", "/var/lib/fai", "/var/log/installer", "/root/anaconda-ks.cfg"]
    assert system.found(*homes, *others) == []


def test_no_proxy_of_the_build(system):
    """Packages do not come by way of a proxy that nobody else reaches."""
    places = "/etc/apt/apt.conf /etc/apt/apt.conf.d /etc/dnf/dnf.conf /etc/yum.conf /etc/environment"
    assert system.lines(f"grep -rilE '^[^#/]*(::proxy|^proxy *=|https?_proxy=)' {places}") == []
