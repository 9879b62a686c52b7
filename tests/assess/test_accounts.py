# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may get in, and how."""

from __future__ import annotations

import pytest


def test_root_is_locked(system):
    """Nobody logs in as root by a password."""
    root = next(row for row in system.table("/etc/shadow") if row[0] == "root")
    assert root[1].startswith(("!", "*"))


def test_no_account_has_a_password(system):
    """No account but root's, which has a check of its own, has a password that could be guessed."""
    rows = [row for row in system.table("/etc/shadow") if row[0] != "root"]
    assert rows
    assert [row[0] for row in rows if row[1] and not row[1].startswith(("!", "*"))] == []


def test_no_account_is_open(system):
    """No account lets anybody in without a password."""
    shadow = [row[0] for row in system.table("/etc/shadow") if row[0] != "root" and not row[1]]
    passwd = [row[0] for row in system.table("/etc/passwd") if not row[1]]
    assert shadow + passwd == []


def test_only_root_is_root(system):
    """No second account has root's number."""
    assert [row[0] for row in system.table("/etc/passwd") if row[2] == "0"] == ["root"]


@pytest.mark.image
def test_no_account_of_a_person(system):
    """An image has no accounts for people: cloud-init makes one on the first boot."""
    assert [row[0] for row in system.table("/etc/passwd") if 1000 <= int(row[2]) < 60000] == []


def test_passwords_are_private(system):
    """Only root and its group read the file of passwords."""
    assert system.says("stat -c %A /etc/shadow").strip()[7:] == "---"


@pytest.mark.image
def test_no_authorized_keys(system):
    """No key is let in that comes with the image."""
    assert system.found("/root/.ssh/authorized_keys*", "/home/*/.ssh/authorized_keys*") == []


def test_sudo_is_not_for_everybody(system):
    """No rule of sudo gives rights to everybody."""
    assert system.lines("cat /etc/sudoers /etc/sudoers.d/* | grep -E '^[[:space:]]*ALL[[:space:]]'") == []


def test_ssh_asks_for_no_password(system):
    """SSH takes no password."""
    assert system.sshd()["passwordauthentication"] == "no"


def test_ssh_asks_no_questions(system):
    """SSH asks nothing interactively, which could be a password again."""
    assert system.sshd()["kbdinteractiveauthentication"] == "no"


def test_ssh_takes_keys(system):
    """SSH takes keys, or nobody would get in at all."""
    assert system.sshd()["pubkeyauthentication"] == "yes"


def test_ssh_lets_root_in_by_key_at_most(system):
    """SSH lets root in with a key, or not at all."""
    assert system.sshd()["permitrootlogin"] in ("no", "prohibit-password", "without-password", "forced-commands-only")


def test_ssh_takes_no_empty_password(system):
    """SSH would not take an empty password even if it took passwords."""
    assert system.sshd()["permitemptypasswords"] == "no"


def test_ssh_locks_nobody_out(system):
    """No list of users keeps out the one whom cloud-init makes."""
    settings = system.sshd()
    assert [settings[name] for name in ("allowusers", "allowgroups") if name in settings] == []


def test_ssh_starts_at_boot(system):
    """The SSH server starts at boot."""
    assert system.enabled("ssh.service", "sshd.service", "ssh.socket", "sshd.socket")
