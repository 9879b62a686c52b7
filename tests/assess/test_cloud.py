# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What makes it a machine of a cloud, and one that sites can trust."""

from __future__ import annotations

import json
import re

import pytest


def test_data_sources_are_pinned(system):
    """cloud-init looks for named data sources only; else it waits minutes for others."""
    pinned = re.findall(r"^datasource_list: *\[([^]]*)\]", system.cloud_config(), re.MULTILINE)
    assert pinned
    assert {"NoCloud", "ConfigDrive", "OpenNebula"} & {name.strip() for name in pinned[-1].split(",")}


def test_cloud_init_starts_at_boot(system):
    """cloud-init runs at boot."""
    units = ("cloud-init.service", "cloud-init-main.service", "cloud-init-network.service")
    assert system.enabled(*units)
    assert system.found("/etc/cloud/cloud-init.disabled") == []


def test_cloud_init_turns_no_passwords_on(system):
    """cloud-init does not let SSH take passwords."""
    assert not re.search(r"^ssh_pwauth: *(true|yes|on|1)\b", system.cloud_config(), re.MULTILINE | re.IGNORECASE)


def test_cloud_init_locks_the_user(system):
    """The user whom cloud-init makes has no password."""
    assert not re.search(r"^\s*lock_passwd: *(false|no)\b", system.cloud_config(), re.MULTILINE | re.IGNORECASE)
    assert not re.search(r"^\s*(plain_text_passwd|hashed_passwd|passwd):", system.cloud_config(), re.MULTILINE)


def test_the_journal_is_kept(system):
    """What happens is written down, so that a site can trace it."""
    stored = system.lines("cat /etc/systemd/journald.conf /etc/systemd/journald.conf.d/*.conf | grep -i '^Storage='")
    assert [line for line in stored if line.lower() == "storage=none"] == []
    assert "masked" not in system.says("systemctl is-enabled systemd-journald.service")


def test_the_clock_is_set(system):
    """The time comes from the network, so that logs of several machines fit together."""
    units = ("systemd-timesyncd", "chrony", "chronyd", "ntp", "ntpsec", "openntpd")
    assert system.enabled(*(f"{name}.service" for name in units))


def test_mandatory_access_control_is_on(system):
    """Nobody has switched SELinux or AppArmor off."""
    off = r"(^|[[:space:]\"])(apparmor=0|selinux=0|enforcing=0)"
    assert system.lines(f"grep -rlE '{off}' /etc/default/grub /etc/default/grub.d /etc/kernel/cmdline") == []
    assert system.lines("grep -iE '^SELINUX=(disabled|permissive)' /etc/selinux/config") == []


def test_consoles(system):
    """What it says while it boots is on the screen and on the serial port."""
    said = system.says(
        "cat /boot/grub/grub.cfg /boot/grub2/grub.cfg /boot/loader/entries/*.conf; cat /etc/kernel/cmdline"
    )
    assert {"console=tty0", "console=ttyS0"} <= set(re.findall(r"console=tty\w+", said))


def test_configuration_is_not_for_everybody_to_write(system):
    """Only root changes what is in /etc."""
    assert system.lines("find /etc -xdev -perm -0002 -not -type l") == []


@pytest.mark.booted
def test_no_unit_has_failed(system, pytestconfig):
    """All that was started at boot runs."""
    failed = [line.split()[0] for line in system.lines("systemctl list-units --state=failed --plain --no-legend")]
    assert sorted(set(failed) - set(pytestconfig.getoption("allowed_unit"))) == []


@pytest.mark.booted
def test_cloud_init_found_no_fault(system):
    """cloud-init came to its end without an error."""
    result = json.loads(system.says("cat /run/cloud-init/result.json"))["v1"]
    assert result["errors"] == []
    assert result["datasource"]


@pytest.mark.booted
def test_host_keys_are_its_own(system):
    """Host keys are there, made on this machine: not before its machine id."""
    born = int(system.says("stat -c %Y /etc/machine-id"))
    made = [int(line) for line in system.lines("stat -c %Y /etc/ssh/ssh_host_*_key")]
    assert made
    assert min(made) >= born - 5


@pytest.mark.booted
def test_it_has_a_machine_id(system):
    """The machine has an id."""
    assert re.fullmatch(r"[0-9a-f]{32}", system.says("cat /etc/machine-id").strip())


@pytest.mark.booted
def test_the_clock_service_runs(system):
    """A service that sets the clock runs."""
    units = "systemd-timesyncd chrony chronyd ntp ntpsec openntpd"
    assert "active" in system.lines(f"for u in {units}; do systemctl is-active $u; done")


@pytest.mark.booted
def test_the_journal_is_written(system):
    """What happens now is written down."""
    script = (
        "said=$$-$(date +%s); logger -t assess-suite $said; timeout 60 journalctl --sync;"
        ' test "$(journalctl -qm -t assess-suite -n 1 -o cat)" = $said && echo written'
    )
    assert system.says(script).strip() == "written"
