# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each operation of role sanitize: what it must remove is gone afterwards, and what is beside it stays."""

from __future__ import annotations

import re

import jinja2.nativetypes
import pytest
import yaml

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._file_operations import Operation, perform, select

NAMES = """
abrt-data backup-files bash-history blkid-tab ca-certificates crash-data cron-spool customize dhcp-client-state dhcp-server-state
dovecot-data firewall-rules flag-reconfiguration fs-uuids ipa-client kerberos-data kerberos-hostkeytab logfiles
lvm-system-devices lvm-uuids machine-id mail-spool net-hostname net-hwaddr net-nmconn pacct-log package-manager-cache pam-data
passwd-backups puppet-data-log rh-subscription-manager rhn-systemid rpm-db samba-db-log script smolt-uuid ssh-hostkeys ssh-userdir
sssd-db-log tmp-files udev-persistent-net user-account utmp yum-uuid zsh-history
"""
VIRT_SYSPREP = NAMES.split()
OFF_BY_DEFAULT = {
    "ca_certificates",
    "firewall_rules",
    "flag_reconfiguration",
    "fs_uuids",
    "kerberos_data",
    "user_account",
}

# operation: (what goes, what stays). A path that ends with «=» keeps its name, without content.
FILES = {
    "abrt_data": ("/var/spool/abrt/ccpp-1/backtrace", "/var/spool/other"),
    "ansible_leftovers": ("/root/.ansible/tmp/x /srv/agent/.ansible_async/1 /tmp/ansible_x", "/root/.bashrc"),
    "backup_files": ("/etc/fstab~ /etc/ssh/sshd_config.dpkg-old /etc/x/y.rpmsave /root/notes~", "/etc/ssh/sshd_config"),
    "bash_history": ("/root/.bash_history /home/alice/.bash_history /srv/agent/.bash_history", "/root/.bashrc"),
    "blkid_tab": ("/etc/blkid.tab /etc/blkid/blkid.tab.old", "/etc/fstab"),
    "build_accounts": ("/etc/sudoers.d/90-cloud-init-users", "/etc/sudoers.d/README"),
    "build_proxies": ("/etc/apt/apt.conf.d/90proxy /etc/profile.d/http_proxy.sh", "/etc/apt/apt.conf.d/01autoremove"),
    "ca_certificates": ("/etc/pki/CA/private/ca.key /etc/pki/tls/private/x.key", "/etc/pki/tls/certs/ca-bundle.crt"),
    "cloud_credentials": ("/root/.aws/credentials /srv/agent/.netrc /home/alice/.kube/config", "/root/.profile"),
    "cloud_init": (
        "/var/lib/cloud/data/x /etc/netplan/50-cloud-init.yaml /var/log/cloud-init.log",
        "/etc/cloud/cloud.cfg",
    ),
    "crash_data": ("/var/crash/x/vmcore /var/lib/systemd/coredump/core.1", "/var/lib/systemd/other"),
    "credential_secret": ("/var/lib/systemd/credential.secret", "/var/lib/systemd/other"),
    "cron_spool": ("/var/spool/cron/crontabs/alice /var/spool/at/a0001 /var/spool/cron/root", "/etc/crontab"),
    "debconf_passwords": ("/var/cache/debconf/passwords.dat=", "/var/cache/debconf/config.dat"),
    "dhcp_client_state": ("/var/lib/dhcp/dhclient.leases /var/lib/dhcpcd/eth0.lease", "/etc/dhcp/dhclient.conf"),
    "dhcp_server_state": ("/var/lib/dhcpd/dhcpd.leases /var/lib/kea/kea-leases4.csv", "/etc/dhcp/dhcpd.conf"),
    "docker_key": ("/etc/docker/key.json", "/etc/docker/daemon.json"),
    "documentation": ("/usr/share/man/man1/ls.1.gz /usr/share/doc/x/changelog.gz", "/usr/share/doc/x/copyright"),
    "dovecot_data": ("/var/lib/dovecot/ssl-parameters.dat", "/etc/dovecot/dovecot.conf"),
    "firewall_rules": (
        "/etc/sysconfig/iptables /etc/iptables/rules.v4 /etc/firewalld/zones/public.xml",
        "/etc/nftables.conf",
    ),
    "gnupg_userdir": ("/root/.gnupg/pubring.kbx", "/etc/apt/trusted.gpg.d/x.gpg"),
    "home_leftovers": ("/root/.cache/pip/x /home/alice/.rnd", "/home/alice/.profile"),
    "installer_leftovers": (
        "/etc/cloud/cloud.cfg.d/99-installer.cfg /etc/netplan/00-installer-config.yaml /var/lib/curtin/x",
        "/etc/cloud/cloud.cfg.d/99-cloudimg.cfg",
    ),
    "installer_logs": ("/var/log/installer/syslog /root/anaconda-ks.cfg /var/log/fai/x/fai.log", "/root/.profile"),
    "ipa_client": ("/etc/ipa/default.conf /var/lib/ipa-client/sysrestore/x", "/etc/ipa/other"),
    "kerberos_data": ("/var/kerberos/krb5kdc/principal", "/var/kerberos/krb5kdc/kdc.conf"),
    "kerberos_hostkeytab": ("/etc/krb5.keytab", "/etc/krb5.conf"),
    "locales": ("/usr/share/locale/cs/LC_MESSAGES/x.mo", "/usr/share/locale/locale.alias"),
    "logfiles": (
        "/var/log/syslog= /var/log/app/app.log= /var/log/app/app.log.1 /var/log/x.gz /var/log/journal/0123/system.journal",
        "/var/lib/app.log",
    ),
    "lvm_system_devices": ("/etc/lvm/devices/system.devices /etc/lvm/backup/vg", "/etc/lvm/lvm.conf"),
    "machine_id": ("", "/etc/os-release"),
    "mail_spool": ("/var/mail/alice /var/spool/mail/root /var/spool/postfix/deferred/A/A1", "/etc/aliases"),
    "man_cache": ("/var/cache/man/index.db /var/cache/ldconfig/aux-cache", "/var/cache/other"),
    "multipath": ("/etc/multipath/wwids", "/etc/multipath.conf"),
    "net_hostname": ("/etc/hostname /etc/mailname", "/etc/hosts.allow"),
    "net_nmconn": ("/etc/NetworkManager/system-connections/x.nmconnection", "/etc/NetworkManager/NetworkManager.conf"),
    "network_manager_state": (
        "/var/lib/NetworkManager/secret_key /var/lib/NetworkManager/seen-bssids /var/lib/NetworkManager/timestamps",
        "/var/lib/NetworkManager/NetworkManager-intern.conf",
    ),
    "nvme_host": ("/etc/nvme/hostid", "/etc/nvme/discovery.conf"),
    "one_context": ("/var/log/one-context.log", "/etc/one-context.d/net"),
    "pacct_log": ("/var/account/pacct= /var/log/account/pacct= /var/log/account/pacct.1.gz", "/var/account/other"),
    "package_manager_cache": (
        "/var/cache/apt/archives/x.deb /var/lib/apt/lists/x /var/cache/dnf/y/z",
        "/var/lib/dpkg/status",
    ),
    "package_manager_leftovers": ("/var/lib/dpkg/status-old /var/backups/dpkg.status.0", "/var/lib/dpkg/status"),
    "pam_data": ("/var/lib/faillock/alice /var/log/tallylog=", "/etc/pam.conf"),
    "passwd_backups": ("/etc/passwd- /etc/shadow- /etc/gshadow-", "/etc/passwd"),
    "postgresql_and_mysql_logs": ("/var/log/postgresql/x.log", "/var/lib/postgresql/data"),
    "puppet_data_log": ("/var/log/puppet/x.log /var/lib/puppet/ssl/x.pem", "/etc/puppet/puppet.conf"),
    "python_cache": ("/usr/lib/python3/dist-packages/x/__pycache__/x.pyc", "/usr/lib/python3/dist-packages/x/x.py"),
    "random_seed": ("/var/lib/systemd/random-seed /boot/efi/loader/random-seed", "/boot/efi/loader/loader.conf"),
    "resolv_conf": ("/etc/resolv.conf=", "/etc/nsswitch.conf"),
    "rh_subscription_manager": ("/etc/pki/consumer/cert.pem /etc/pki/entitlement/1.pem", "/etc/pki/product/x.pem"),
    "rhn_systemid": ("/etc/sysconfig/rhn/systemid", "/etc/sysconfig/rhn/up2date"),
    "rpm_db": ("/var/lib/rpm/__db.001", "/var/lib/rpm/rpmdb.sqlite"),
    "samba_db_log": ("/var/lib/samba/private/secrets.tdb /var/log/samba/log.smbd", "/etc/samba/smb.conf"),
    "shell_history": (
        "/root/.python_history /srv/agent/.lesshst /home/alice/.viminfo /root/.node_repl_history",
        "/root/.vimrc",
    ),
    "smolt_uuid": ("/etc/smolt/uuid /etc/sysconfig/hw-uuid", "/etc/smolt/config.py"),
    "snakeoil": ("/etc/ssl/private/ssl-cert-snakeoil.key", "/etc/ssl/certs/ca-certificates.crt"),
    "snapd_reset": ("/var/lib/snapd/state.json", "/var/lib/snapd/seed/seed.yaml"),
    "snapd_state": ("/var/lib/snapd/device/private-keys-v1/x /var/lib/snapd/cookie/y", "/var/lib/snapd/seed/seed.yaml"),
    "ssh_hostkeys": ("/etc/ssh/ssh_host_rsa_key /etc/ssh/ssh_host_ed25519_key.pub", "/etc/ssh/sshd_config"),
    "ssh_userdir": (
        "/root/.ssh/authorized_keys /home/alice/.ssh/id_rsa /srv/agent/.ssh/known_hosts /etc/skel/.ssh/authorized_keys",
        "/etc/ssh/ssh_config",
    ),
    "sssd_db_log": ("/var/lib/sss/db/cache.ldb /var/log/sssd/sssd.log", "/etc/sssd/sssd.conf"),
    "systemd_state": (
        "/var/lib/systemd/timers/stamp-x.timer /var/lib/private/systemd/x",
        "/var/lib/systemd/linger/alice",
    ),
    "tmp_files": ("/tmp/x/y /var/tmp/z", "/var/other"),
    "udev_persistent_net": ("/etc/udev/rules.d/70-persistent-net.rules", "/etc/udev/rules.d/80-mine.rules"),
    "update_flags": ("/etc/.updated /var/.updated", "/etc/os-release"),
    "utmp": ("/var/log/wtmp= /var/log/btmp= /var/lib/wtmpdb/wtmp.db", "/var/log/other"),
    "x509_proxies": ("/tmp/x509up_u1000 /tmp/krb5cc_0", "/tmp/other"),
    "yum_uuid": ("/var/lib/yum/uuid", "/var/lib/yum/other"),
    "zsh_history": ("/root/.zsh_history /home/alice/.zhistory", "/root/.zshrc"),
}

# operation: [(file, line that goes, line that stays)]
LINES = {
    "build_proxies": [
        ("/etc/apt/apt.conf", 'Acquire::http::Proxy "http://x:1";', '#Acquire::http::Proxy "";'),
        ("/etc/apt/apt.conf.d/00x", 'Acquire::https::proxy::example.org "DIRECT";', 'Acquire::Retries "3";'),
        ("/etc/dnf/dnf.conf", "proxy=http://x:1", "fastestmirror=1"),
        ("/etc/environment", "https_proxy=http://x:1", "PATH=/usr/bin"),
    ],
    "package_sources": [
        (
            "/etc/apt/sources.list",
            "deb cdrom:[Debian GNU/Linux]/ bookworm main",
            "deb http://deb.debian.org/debian bookworm main",
        ),
        ("/etc/apt/sources.list.d/x.list", "deb [trusted=yes] file:/media/mirror x main", "# deb file"),
    ],
    "net_hwaddr": [
        ("/etc/sysconfig/network-scripts/ifcfg-eth0", "HWADDR=52:54:00:00:00:01", "ONBOOT=yes"),
        ("/etc/network/interfaces", "  hwaddress ether 52:54:00:00:00:01", "iface eth0 inet dhcp"),
    ],
    "net_hostname": [("/etc/sysconfig/network-scripts/ifcfg-eth0", "DHCP_HOSTNAME=build", "BOOTPROTO=dhcp")],
    "fstab_devices": [("/etc/fstab", "/dev/sr0 /media/cdrom0 udf,iso9660 noauto 0 0", "UUID=1 / ext4 defaults 0 1")],
}
WRITTEN = {
    "machine_id": ("/etc/machine-id", "uninitialized\n"),
    "flag_reconfiguration": ("/.unconfigured", ""),
}
ELSEWHERE = {"customize", "script", "fs_uuids", "lvm_uuids"}
TESTED_BELOW = {"user_account", "swap_files", "etc_hosts"}


@pytest.fixture(scope="module")
def operations(checkout):
    """The role's operations with the role's defaults, as Ansible gives them to the module."""
    role = checkout / "roles/sanitize"
    values = yaml.safe_load((role / "defaults/main.yml").read_text(encoding="utf-8"))
    data = yaml.safe_load((role / "vars/main.yml").read_text(encoding="utf-8"))["__sanitize_operations"]
    world = jinja2.nativetypes.NativeEnvironment()
    world.filters["regex_replace"] = lambda text, old, new: re.sub(old, new, text)

    def render(value):
        if isinstance(value, dict):
            return {render(key): render(item) for key, item in value.items()}
        if isinstance(value, list):
            return [render(item) for item in value]
        return world.from_string(value).render(values) if isinstance(value, str) and "{{" in value else value

    return {entry["name"]: Operation(**render(entry)) for entry in data}


@pytest.fixture
def root(tmp_path):
    """A system with three homes, one of which is not below /home."""
    for name, text in {
        "etc/passwd": "root:x:0:0::/root:/bin/bash\ndaemon:x:1:1::/usr/sbin:/bin/sh\n"
        "alice:x:1000:1000::/home/alice:/bin/bash\nagent:x:998:998::/srv/agent:/bin/sh\n",
        "root/.x": "",
        "home/alice/.x": "",
        "srv/agent/.x": "",
        "etc/skel/.x": "",
        "var/lib/dbus/x": "",
    }.items():
        _plant(tmp_path, f"/{name}", text)
    return tmp_path


def _plant(root, path, text="planted\n"):
    place = root / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text, encoding="utf-8")
    return place


def test_all_operations_of_virt_sysprep_are_there(operations):
    assert len(VIRT_SYSPREP) == 45
    names = {name.replace("-", "_") for name in VIRT_SYSPREP}
    assert names - set(operations) == set()
    assert {
        name for name in names if operations[name].optional or operations[name].instead
    } == OFF_BY_DEFAULT | ELSEWHERE
    assert {name for name, operation in operations.items() if operation.instead} == ELSEWHERE


def test_every_operation_has_a_test(operations):
    tested = {*FILES, *LINES, *WRITTEN, *TESTED_BELOW, *ELSEWHERE}
    assert tested == set(operations)


@pytest.mark.parametrize("name", sorted(FILES))
def test_files_go_and_their_neighbours_stay(operations, root, name):
    gone, stays = (text.split() for text in FILES[name])
    for path in (*gone, *stays):
        _plant(root, path.rstrip("="))
    perform(operations[name], root)
    for path in gone:
        place = root / path.strip("/=")
        assert (place.read_text() == "") if path.endswith("=") else not place.exists(), path
    for path in stays:
        assert (root / path.lstrip("/")).read_text() == "planted\n", path
    assert perform(operations[name], root) == []


@pytest.mark.parametrize("name", sorted(LINES))
def test_lines_go_and_their_neighbours_stay(operations, root, name):
    for path, goes, stays in LINES[name]:
        _plant(root, path, f"{stays}\n{goes}\n").chmod(0o640)
    perform(operations[name], root)
    for path, _goes, stays in LINES[name]:
        place = root / path.lstrip("/")
        assert place.read_text() == f"{stays}\n", path
        assert place.stat().st_mode & 0o777 == 0o640
    assert perform(operations[name], root) == []


@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_files_are_written(operations, root, name):
    path, text = WRITTEN[name]
    perform(operations[name], root)
    assert (root / path.lstrip("/")).read_text() == text
    assert perform(operations[name], root) == []


def _example(pattern):
    """A path that a pattern matches."""
    pattern = re.sub(r"\[(\w)[^\]]*\]", r"\1", pattern)
    return (
        pattern.replace("**", "deep/er").replace("*", "x").replace("~", "/srv/agent" if pattern[0] == "~" else "~", 1)
    )


def test_every_pattern_matches_something(operations, root):
    for operation in operations.values():
        for pattern in operation.remove:
            _plant(root, _example(pattern))
            perform(operation, root)
            assert not (root / _example(pattern).lstrip("/")).exists(), pattern
        for pattern in operation.empty:
            planted = _plant(root, f"{_example(pattern)}/deep/file")
            perform(operation, root)
            assert not planted.exists(), pattern
            assert planted.parent.parent.is_dir(), pattern


def test_machine_id_is_linked(operations, root):
    perform(operations["machine_id"], root)
    assert (root / "var/lib/dbus/machine-id").readlink().as_posix() == "/etc/machine-id"


def test_etc_hosts_is_the_machines_own(operations, root):
    place = _plant(root, "/etc/hosts", "127.0.1.1 build\n10.0.0.1 mirror\n")
    perform(operations["etc_hosts"], root)
    names = {line.split()[1] for line in place.read_text().splitlines()}
    assert names == {"localhost", "ip6-allnodes", "ip6-allrouters"}


def test_user_account(operations, root):
    _plant(root, "/etc/group", "sudo:x:27:alice,agent\nalice:x:1000:\n")
    _plant(root, "/etc/shadow", "root:*:1::::::\nalice:!:1::::::\n")
    _plant(root, "/var/mail/alice")
    _plant(root, "/etc/sudoers.d/alice")
    perform(operations["user_account"], root)
    assert "alice" not in (root / "etc/passwd").read_text() + (root / "etc/shadow").read_text()
    assert (root / "etc/group").read_text() == "sudo:x:27:agent\n"
    assert not any((root / path).exists() for path in ("home/alice", "var/mail/alice", "etc/sudoers.d/alice"))
    assert (root / "srv/agent").is_dir()
    assert perform(operations["user_account"], root) == []


def test_an_account_that_is_to_be_kept(root):
    assert perform(Operation("x", "x", accounts=["*", "!alice"]), root) == []


def test_homes_that_others_share_and_roots_stay(root):
    with (root / "etc/passwd").open("a") as stream:
        stream.write(
            "twin:x:1001:1001::/home/alice:/bin/sh\nodd:x:1002:1002::/root:/bin/sh\nwhole:x:1003:1003::/:/bin/sh\n"
        )
    changed = perform(Operation("x", "x", accounts=["twin", "odd", "whole", "root"]), root)
    assert changed == ["/etc/passwd"]
    assert (root / "etc/passwd").read_text().count("\n") == 4
    assert (root / "home/alice").is_dir() and (root / "root").is_dir()


def test_swap_files(operations, root):
    place = root / "swapfile"
    page = bytes(4086) + b"SWAPSPACE2"
    place.write_bytes(page + bytes(1 << 20) + b"secret" * 1000 + bytes(1 << 20))
    _plant(root, "/swap.img", "no swap file")
    size = place.stat().st_size
    assert perform(operations["swap_files"], root) == ["/swapfile"]
    data = place.read_bytes()
    assert (data[:4096], len(data), data.count(0, 4096)) == (page, size, size - 4096)
    assert perform(operations["swap_files"], root) == []
    assert (root / "swap.img").read_text() == "no swap file"


def test_fstab_by_uuid(operations, root):
    table = (
        "# begin\nUUID=1 / ext4 defaults 0 1\n/dev/disk/by-id/virtio-1-part3 none swap sw 0 0\nLABEL=x /x xfs rw 0 2\n"
    )
    place = _plant(root, "/etc/fstab", table)
    perform(operations["fstab_devices"], root)
    assert place.read_text() == "# begin\nUUID=1 / ext4 defaults 0 1\nLABEL=x /x xfs rw 0 2\n"
    place.write_text("/dev/disk/by-id/virtio-1-part2 / ext4 defaults 0 1\n")
    with pytest.raises(FactoryError, match=r"/etc/fstab: /dev/disk/by-id/virtio-1-part2 for / is a name .* UUID="):
        perform(operations["fstab_devices"], root)


def test_names_that_are_not_known_or_done_elsewhere(operations):
    known = list(operations.values())
    for wrong, right in (("machine-id", "machine_id"), ("ssh_host_keys", "ssh_hostkeys"), ("logz", "logfiles")):
        with pytest.raises(FactoryError, match=rf"^disabled: there is no operation '{wrong}'; did you mean {right}\?$"):
            select(known, [wrong], [])
    with pytest.raises(
        FactoryError, match=r"^enabled: the operation 'script' cannot be switched here; see: sanitize_scripts"
    ):
        select(known, [], ["script"])
    chosen = {operation.name for operation in select(known, ["machine_id"], ["firewall_rules"])}
    assert "machine_id" not in chosen and "firewall_rules" in chosen and "customize" not in chosen


def test_what_other_roles_have_configured_stays(checkout, operations, root):
    data = yaml.safe_load((checkout / "roles/cloud_init/vars/main.yml").read_text(encoding="utf-8"))
    configured = set()
    for entry in data["__cloud_init_operations"]:
        for key in ("write", "links"):
            configured.update(entry[key] if isinstance(entry.get(key), dict) else [])
    configured |= {
        "/etc/nftables.conf",
        "/etc/sudoers.d/50-site",
        "/etc/apt/apt.conf.d/20auto-upgrades",
        "/etc/cloud/cloud.cfg",
    }
    configured = {path for path in configured if "{{" not in path}
    assert len(configured) > 8
    for path in configured:
        _plant(root, path)
    for operation in select(list(operations.values()), [], []):
        perform(operation, root)
    assert {path for path in configured if not (root / path.lstrip("/")).exists()} == set()
