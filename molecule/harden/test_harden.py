# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What role harden has made of a system. Debian 12 is egi, the others are cis_level1; see converge.yml."""

from pathlib import Path

import pytest


@pytest.fixture
def strict(host):
    return host.system_info.release.split(".", maxsplit=1)[0] != "12"


@pytest.fixture
def sshd(host):
    """What sshd would do, for somebody who comes from anywhere."""
    host.check_output("mkdir -p /run/sshd && ssh-keygen -A")
    said = host.check_output("sshd -T -C user=debian,host=example.org,addr=192.0.2.1")
    return dict(line.split(" ", 1) for line in said.splitlines() if " " in line)


def test_ssh_by_key_only(sshd):
    assert sshd["passwordauthentication"] == "no"
    assert sshd.get("kbdinteractiveauthentication", "no") == "no"
    assert sshd.get("challengeresponseauthentication", "no") == "no"
    assert sshd["permitemptypasswords"] == "no"
    assert sshd["permitrootlogin"] == "no"
    assert sshd["pubkeyauthentication"] == "yes"
    assert sshd["usepam"] == "yes"


def test_nobody_is_locked_out_by_name(sshd):
    assert not {"allowusers", "denyusers", "allowgroups", "denygroups"} & set(sshd)


def test_cloud_init_cannot_let_passwords_in_again(host, sshd):
    name = "/etc/ssh/sshd_config.d/50-cloud-init.conf"
    host.check_output(f"echo 'PasswordAuthentication yes' > {name}")
    try:
        assert "\npasswordauthentication no\n" in host.check_output("sshd -T")
    finally:
        host.check_output(f"rm {name}")


def test_profiles_differ(sshd, strict):
    assert sshd["maxauthtries"] == ("4" if strict else "6")
    assert sshd["allowtcpforwarding"] == ("no" if strict else "yes")


def test_no_account_has_a_password(host):
    for line in host.file("/etc/shadow").content_string.splitlines():
        assert line.split(":")[1].startswith(("!", "*")), line.split(":")[0]
    assert host.file("/etc/shadow").mode & 0o037 == 0


def test_the_firewall_is_valid_and_starts(host):
    assert host.run("nft --check --file /etc/nftables.conf").rc == 0
    assert host.file("/etc/systemd/system/sysinit.target.wants/nftables.service").is_symlink


def test_the_firewall_lets_in_what_is_named_by_both_protocols(host):
    """In a network of its own, not the builder's: the rules, loaded."""
    said = host.check_output("unshare --net sh -c 'nft --file /etc/nftables.conf && nft list ruleset'")
    assert "table inet cloudimg" in said
    assert said.count("policy drop;") == 2
    assert "tcp dport { 22, 9000-9010 } accept" in said
    assert "udp dport 53 accept" in said or "udp dport { 53 } accept" in said
    assert "nd-neighbor-solicit" in said
    assert "udp sport 67 udp dport 68 accept" in said
    assert 'iifname "lo" accept' in said


def test_kernel_parameters(host, strict):
    said = host.file("/etc/sysctl.d/99-security-cloudimg-network.conf").content_string.splitlines()
    assert "net.ipv4.conf.all.accept_redirects = 0" in said
    assert "net.ipv6.conf.all.accept_redirects = 0" in said
    assert f"net.ipv4.conf.all.rp_filter = {1 if strict else 2}" in said
    names = host.file("/etc/sysctl.d/99-security-cloudimg-kernel.conf").content_string
    for line in [*said, *names.splitlines()]:
        key, value = line.split(" = ")
        assert value.isdigit(), key


def test_no_package_undoes_the_kernel_parameters(host):
    folders = [folder for folder in ("/etc/sysctl.d", "/usr/lib/sysctl.d") if host.file(folder).exists]
    later = {
        f"{folder}/{name}"
        for folder in folders
        for name in host.file(folder).listdir()
        if name.endswith(".conf") and name > "99-security-cloudimg-network.conf"
    }
    ours = {
        line.split(" = ")[0]
        for line in host.file("/etc/sysctl.d/99-security-cloudimg-kernel.conf").content_string.splitlines()
    }
    hidden = {f"/usr/lib/sysctl.d/{Path(path).name}" for path in later if path.startswith("/etc/")}
    for path in later - hidden:
        assert not ours & {line.partition("=")[0].strip() for line in host.file(path).content_string.splitlines()}, path


def test_core_dumps_umask_and_modules(host, strict):
    assert host.file("/etc/profile.d/50-cloudimg-core.sh").content_string == "ulimit -c 0\n"
    assert "* hard core 0" in host.file("/etc/security/limits.d/60-cloudimg-core.conf").content_string
    assert host.file("/etc/login.defs").contains("^UMASK 027$")
    assert host.file("/etc/profile.d/50-cloudimg-umask.sh").exists is strict
    assert host.file("/etc/modprobe.d/cloudimg-harden.conf").contains("^install dccp /bin/true$")
    # cloud-init's data, the boot loader's partition, and the images of applications come on these
    for wanted in ("iso9660", "vfat", "squashfs", "udf"):
        assert not host.file("/etc/modprobe.d/cloudimg-harden.conf").contains(wanted)


def test_temporary_files_may_be_programs(host, strict):
    unit = host.file("/etc/systemd/system/tmp.mount")
    assert unit.exists is strict
    if strict:
        assert unit.contains("nosuid,nodev,")
        assert not unit.contains("noexec")


def test_updates_come_by_themselves(host):
    assert host.package("unattended-upgrades").is_installed
    said = host.check_output("apt-config dump APT::Periodic")
    assert 'APT::Periodic::Unattended-Upgrade "1";' in said


def test_apparmor_and_journal_stay(host):
    assert host.file("/etc/systemd/system/sysinit.target.wants/apparmor.service").is_symlink
    assert host.file("/etc/systemd/journald.conf.d/50-cloudimg.conf").contains("^Storage=persistent$")


def test_permissions_and_banner(host):
    assert host.file("/etc/ssh/sshd_config").mode == 0o600
    assert host.file("/etc/crontab").mode == 0o600
    assert host.file("/etc/passwd").mode == 0o644
    assert "authorized users only" in host.file("/etc/issue").content_string
    assert "Debian" not in host.file("/etc/issue.net").content_string


def test_sudo_still_works(host):
    assert host.run("visudo --check").rc == 0
    assert host.file("/etc/sudoers.d/50-cloudimg-harden").mode == 0o440
    assert host.check_output("sudo -n id -u") == "0"


def test_what_only_the_strict_profile_has(host, strict):
    for name in ("auditd", "acct", "debsums", "libpam-tmpdir"):
        assert host.package(name).is_installed is strict, name
    assert host.file("/etc/cron.allow").exists is strict
    # an account that has a key only would be locked out by this one day
    assert not host.file("/etc/login.defs").contains(r"^PASS_MAX_DAYS\s+[0-9]\{1,4\}$")
    if strict:
        rules = host.run("augenrules --check")
        assert rules.rc == 0 or "should be updated" in rules.stdout + rules.stderr
        assert host.file("/etc/pam.d/su").contains("^auth required pam_wheel.so use_uid group=sudo$")
