# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What role sanitize has made of a system that an installation, a build and its people have been on."""

import pytest


def test_the_machine_has_no_identity(host):
    assert host.file("/etc/machine-id").content_string == "uninitialized\n"
    assert host.file("/var/lib/dbus/machine-id").linked_to == "/etc/machine-id"
    assert not host.file("/etc/hostname").exists
    assert "builder" not in host.file("/etc/hosts").content_string
    assert host.run("ls /etc/ssh/ssh_host_*").rc != 0


def test_the_account_of_the_build_is_gone(host):
    assert not host.user("packer").exists
    assert not host.group("packer").exists
    assert not host.file("/home/packer").exists
    assert not host.file("/etc/sudoers.d/packer").exists


def test_other_accounts_stay(host):
    assert host.user("agent").home == "/srv/agent"
    assert host.user("root").exists
    assert host.run("pwck --read-only --quiet && grpck --read-only").rc == 0


@pytest.mark.parametrize(
    "path",
    [
        "/root/.bash_history",
        "/root/.aws",
        "/root/.ssh/authorized_keys",
        "/srv/agent/.bash_history",
        "/srv/agent/.ssh/known_hosts",
        "/tmp/left",
        "/var/log/apt",
        "/etc/passwd-",
    ],
)
def test_traces_are_gone(host, path):
    if path == "/var/log/apt":
        assert host.file(path).listdir() == []
    else:
        assert not host.file(path).exists


def test_logs_have_no_content(host):
    assert host.file("/var/log/build.log").size == 0
    assert host.run("find /var/log -type f -size +0").stdout == ""


def test_only_the_lines_of_the_build_are_gone(host):
    assert host.file("/etc/apt/apt.conf.d/99build").content_string == 'APT::Install-Recommends "false";\n'
    assert host.file("/etc/environment").content_string == "LANG=C.UTF-8\n"
    assert host.file("/etc/fstab").content_string.splitlines() == [
        "UUID=6d4e9b43-6e0f-4d1c-8c0f-0e6b0b8b1f3e / ext4 errors=remount-ro 0 1"
    ]


def test_an_operation_of_the_users(host):
    assert host.file("/srv/agent/work").size == 0


def test_the_system_still_works(host):
    assert host.package("openssh-server").is_installed
    assert (
        host.run("mkdir -p /run/sshd && ssh-keygen -q -t ed25519 -N '' -f /run/key && /usr/sbin/sshd -t -h /run/key").rc
        == 0
    )
    assert host.run("sudo -n true").rc == 0
    assert host.run("python3 -c 'import ssl, sqlite3'").rc == 0
