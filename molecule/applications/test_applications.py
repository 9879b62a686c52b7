# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What role applications has made of a system."""


def test_packages_are_there_or_not(host):
    assert host.package("acme-tool").is_installed
    assert not host.package("logrotate").is_installed


def test_the_newest_kernel_is_the_only_one(host):
    assert host.package("linux-image-6.1.0-25-tiny").is_installed
    assert not host.package("linux-image-6.1.0-9-tiny").is_installed


def test_nothing_is_left_to_upgrade(host):
    assert host.run("apt-get --simulate dist-upgrade").stdout.count("\nInst ") == 0


def test_the_repository_stays_with_a_key_of_its_own(host):
    source = host.file("/etc/apt/sources.list.d/acme.sources").content_string
    assert "URIs: file:///srv/acme\nSuites: stable\nComponents: main\n" in source
    assert "Signed-By: /etc/apt/keyrings/acme.asc" in source
    assert "BEGIN PGP PUBLIC KEY" in host.file("/etc/apt/keyrings/acme.asc").content_string
    assert host.run("apt-cache policy acme-other").stdout.count("file:/srv/acme") == 1


def test_the_ephemeral_repository_is_gone(host):
    assert not host.file("/etc/apt/sources.list.d/build-only.sources").exists
    assert not host.file("/etc/apt/keyrings/build-only.asc").exists
    assert host.run("ls /etc/apt/sources.list.d /etc/apt/keyrings").stdout.count("build-only") == 0
    assert host.run("find /var/lib/apt/lists -name '*build-only*'").stdout == ""


def test_files_have_content_mode_and_owner(host):
    file = host.file("/etc/acme/tool.conf")
    assert (file.content_string, file.mode, file.user, file.group) == ("threads=4\n", 0o640, "daemon", "daemon")


def test_no_leftovers(host):
    assert host.run("ls /run | grep cloudimg").stdout == ""
