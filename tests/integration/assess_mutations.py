# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ways to break an image, each of which exactly one check of tests/assess is to find."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Mutation:
    """A shell script that breaks a system, run as root in it.

    :ivar test: the check that finds it.
    :ivar touches: the paths that it changes, by which it is undone.
    :ivar undo: a script for what no file says.
    """

    test: str
    script: str
    touches: tuple[str, ...] = ()
    undo: str = ""


def appended(test: str, path: str, line: str) -> Mutation:
    """One more line in a file, or a new file."""
    return Mutation(test, f"mkdir -p $(dirname {path}); printf '%s\\n' '{line}' >> {path}", (path,))


def edited(test: str, path: str, expression: str) -> Mutation:
    """A file changed by sed."""
    return Mutation(test, f"sed -i '{expression}' {path}", (path,))


def sshd(test: str, setting: str) -> Mutation:
    """A setting of sshd that comes before the others."""
    return appended(test, "/etc/ssh/sshd_config.d/00-broken.conf", setting)


def without_service(test: str, *units: str) -> Mutation:
    """Services that do not start at boot."""
    script = f"for u in {' '.join(units)}; do systemctl disable $u 2>/dev/null; done; true"
    return Mutation(test, script, ("/etc/systemd/system",))


CHAIN = (
    "chain input { type filter hook input priority 0; policy drop; tcp dport 22 accept; ct state established accept; };"
)
_LISTENER = "[Service]\\nExecStart=/bin/true\\n[Install]\\nWantedBy=multi-user.target"

IMAGE = (
    # accounts
    edited("test_root_is_locked", "/etc/shadow", r"s|^root:[^:]*:|root:$6$salt$hash:|"),
    edited("test_no_account_has_a_password", "/etc/shadow", r"s|^daemon:[^:]*:|daemon:$6$salt$hash:|"),
    edited("test_no_account_is_open", "/etc/shadow", "s|^daemon:[^:]*:|daemon::|"),
    edited("test_no_account_is_open", "/etc/passwd", "s|^daemon:x:|daemon::|"),
    appended("test_only_root_is_root", "/etc/passwd", "toor:x:0:0::/root:/bin/sh"),
    appended("test_no_account_of_a_person", "/etc/passwd", "ann:x:1000:1000::/home/ann:/bin/sh"),
    Mutation("test_passwords_are_private", "chmod o+r /etc/shadow", ("/etc/shadow",)),
    appended("test_no_authorized_keys", "/root/.ssh/authorized_keys", "ssh-ed25519 AAAA me"),
    appended("test_sudo_is_not_for_everybody", "/etc/sudoers.d/broken", "ALL ALL=(ALL) NOPASSWD: ALL"),
    sshd("test_ssh_asks_for_no_password", "PasswordAuthentication yes"),
    sshd("test_ssh_asks_no_questions", "KbdInteractiveAuthentication yes"),
    sshd("test_ssh_takes_keys", "PubkeyAuthentication no"),
    sshd("test_ssh_lets_root_in_by_key_at_most", "PermitRootLogin yes"),
    sshd("test_ssh_takes_no_empty_password", "PermitEmptyPasswords yes"),
    sshd("test_ssh_locks_nobody_out", "AllowUsers ann"),
    without_service("test_ssh_starts_at_boot", "ssh.service", "ssh.socket", "sshd.service", "sshd.socket"),
    # hygiene
    appended("test_no_ssh_host_keys", "/etc/ssh/ssh_host_rsa_key", "a key"),
    appended("test_no_ssh_host_keys", "/etc/ssh/ssh_host_rsa_key.pub", "a key"),
    Mutation("test_no_machine_id", "echo b81da4c361c948c2b49250dd3a6c86ac > /etc/machine-id", ("/etc/machine-id",)),
    appended("test_cloud_init_has_not_run", "/var/lib/cloud/data/instance-id", "i-1"),
    appended("test_no_random_seed", "/var/lib/systemd/random-seed", "4"),
    appended("test_no_host_name", "/etc/hostname", "builder"),
    appended("test_no_leases", "/var/lib/dhcp/dhclient.leases", "lease { }"),
    appended("test_no_hardware_addresses", "/etc/systemd/network/10-broken.network", "MACAddress=52:54:00:00:00:01"),
    appended("test_no_persistent_network_names", "/etc/udev/rules.d/70-persistent-net.rules", "# eth0"),
    appended("test_no_core_dumps", "/var/crash/broken.core", "memory"),
    appended("test_no_log_tells_of_the_build", "/var/log/broken.log", "installed"),
    appended("test_no_history", "/root/.bash_history", "ls"),
    appended("test_no_temporary_files", "/tmp/broken", "x"),
    appended("test_no_temporary_files", "/var/tmp/.broken", "x"),
    appended("test_no_package_cache", "/var/cache/apt/archives/broken.deb", "x"),
    appended("test_no_backups_of_accounts", "/etc/shadow-", "root:*:1::::::"),
    Mutation("test_no_leftovers_of_the_build", "mkdir -p /root/.ansible/tmp", ("/root/.ansible",)),
    appended("test_no_leftovers_of_the_build", "/usr/sbin/policy-rc.d", "exit 101"),
    appended(
        "test_no_proxy_of_the_build", "/etc/apt/apt.conf.d/99broken", 'Acquire::http::Proxy "http://10.0.0.1:3128";'
    ),
    # disk
    appended("test_no_swap", "/etc/fstab", "/swapfile none swap sw 0 0"),
    appended("test_no_boot_partition", "/etc/fstab", "LABEL=boot /boot ext4 defaults 0 2"),
    appended("test_no_volume_manager", "/etc/fstab", "/dev/mapper/group-data /data ext4 defaults 0 2"),
    appended("test_file_systems_are_found_by_name", "/etc/fstab", "/dev/vdb1 /data ext4 defaults 0 2"),
    appended("test_one_kernel", "/boot/vmlinuz-0.0.1", "old"),
    # network
    Mutation(
        "test_firewall_drops_ipv4", f"echo 'table ip6 t {{ {CHAIN} }}' > /etc/nftables.conf", ("/etc/nftables.conf",)
    ),
    Mutation(
        "test_firewall_drops_ipv6", f"echo 'table ip t {{ {CHAIN} }}' > /etc/nftables.conf", ("/etc/nftables.conf",)
    ),
    without_service("test_firewall_starts_at_boot", "nftables.service", "firewalld.service", "ufw.service"),
    Mutation(
        "test_nobody_greets_the_neighbours",
        f"printf '{_LISTENER}\\n' > /etc/systemd/system/rpcbind.service; systemctl enable rpcbind.service 2>/dev/null",
        ("/etc/systemd/system",),
    ),
    # cloud
    Mutation(
        "test_data_sources_are_pinned",
        "sed -i '/^datasource_list/d' /etc/cloud/cloud.cfg /etc/cloud/cloud.cfg.d/*.cfg",
        ("/etc/cloud",),
    ),
    appended("test_cloud_init_starts_at_boot", "/etc/cloud/cloud-init.disabled", ""),
    appended("test_cloud_init_turns_no_passwords_on", "/etc/cloud/cloud.cfg.d/zz-broken.cfg", "ssh_pwauth: true"),
    appended("test_cloud_init_locks_the_user", "/etc/cloud/cloud.cfg.d/zz-broken.cfg", "  lock_passwd: false"),
    appended("test_the_journal_is_kept", "/etc/systemd/journald.conf.d/broken.conf", "Storage=none"),
    without_service(
        "test_the_clock_is_set", "systemd-timesyncd.service", "chrony.service", "ntpsec.service", "ntp.service"
    ),
    appended(
        "test_mandatory_access_control_is_on", "/etc/default/grub.d/99-broken.cfg", 'GRUB_CMDLINE_LINUX="apparmor=0"'
    ),
    appended("test_mandatory_access_control_is_on", "/etc/selinux/config", "SELINUX=permissive"),
    edited("test_consoles", "/boot/grub/grub.cfg", "s/console=ttyS0[^ ]*//g"),
    Mutation("test_configuration_is_not_for_everybody_to_write", "chmod o+w /etc/fstab", ("/etc/fstab",)),
)
"""For an image that waits for its first boot."""

_SWAP = "dd if=/dev/zero of=/swapfile bs=1M count=16 2>/dev/null; chmod 600 /swapfile; mkswap -q /swapfile; swapon /swapfile"
_RULES = "nft list ruleset > /run/rules; nft flush ruleset"
_RULES_BACK = "nft flush ruleset; nft -f /run/rules"
_ROOT = "d=$(lsblk -no PKNAME $(findmnt -no SOURCE /))"

BOOTED = (
    Mutation(
        "test_logs_are_small", "dd if=/dev/zero of=/var/log/broken bs=1M count=220 2>/dev/null", ("/var/log/broken",)
    ),
    Mutation("test_no_swap_is_used", _SWAP, (), "swapoff /swapfile; rm /swapfile"),
    Mutation(
        "test_root_is_the_last_partition",
        f"{_ROOT}; addpart /dev/$d 99 $(($(cat /sys/block/$d/size) - 16)) 8",
        (),
        f"{_ROOT}; delpart /dev/$d 99",
    ),
    Mutation("test_firewall_drops_ipv4", f"{_RULES}; echo 'table ip6 t {{ {CHAIN} }}' | nft -f -", (), _RULES_BACK),
    Mutation("test_firewall_drops_ipv6", f"{_RULES}; echo 'table ip t {{ {CHAIN} }}' | nft -f -", (), _RULES_BACK),
    Mutation(
        "test_only_ssh_listens",
        "systemd-run -q --unit=broken python3 -m http.server 8000;"
        " for i in $(seq 60); do ss -Hltn | grep -q :8000 && break; sleep 1; done",
        (),
        "systemctl stop broken; systemctl reset-failed",
    ),
    Mutation(
        "test_no_unit_has_failed",
        "systemd-run -q --unit=broken false; until systemctl is-failed -q broken; do sleep 1; done",
        (),
        "systemctl reset-failed",
    ),
    Mutation(
        "test_cloud_init_found_no_fault",
        """sed -i 's/"errors": \\[\\]/"errors": ["broken"]/' /run/cloud-init/result.json""",
        ("/run/cloud-init/result.json",),
    ),
    Mutation(
        "test_host_keys_are_its_own", "touch -d 2020-01-01 /etc/ssh/ssh_host_rsa_key", ("/etc/ssh/ssh_host_rsa_key",)
    ),
    Mutation(
        "test_it_has_a_machine_id",
        "t=$(stat -c @%Y /etc/machine-id); echo uninitialized > /etc/machine-id; touch -d $t /etc/machine-id",
        ("/etc/machine-id",),
    ),
    Mutation(
        "test_the_clock_service_runs",
        "systemctl stop systemd-timesyncd chrony ntpsec 2>/dev/null; true",
        (),
        "systemctl start systemd-timesyncd",
    ),
    Mutation(
        "test_the_journal_is_written",
        "mkdir -p /run/systemd/journald.conf.d; printf '[Journal]\\nStorage=none\\n' > /run/systemd/journald.conf.d/broken.conf;"
        " systemctl restart systemd-journald",
        (),
        "rm /run/systemd/journald.conf.d/broken.conf; systemctl restart systemd-journald",
    ),
)
"""For a system that runs; C(test_root_has_grown) is broken by making the disk larger, from outside."""
LARGER_DISK = "test_root_has_grown"
