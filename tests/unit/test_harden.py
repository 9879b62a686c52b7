# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules of role harden: how they are carried out, and what they are for each system, as Ansible renders them."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils._audit_rules import Applier, Rule, choose
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

SYSTEMS = {
    "debian-11": ("Debian", "Debian", "11"),
    "debian-12": ("Debian", "Debian", "12"),
    "debian-13": ("Debian", "Debian", "13"),
    "ubuntu-22": ("Debian", "Ubuntu", "22"),
    "ubuntu-24": ("Debian", "Ubuntu", "24"),
    "alma-9": ("RedHat", "AlmaLinux", "9"),
    "alma-10": ("RedHat", "AlmaLinux", "10"),
    "rocky-9": ("RedHat", "Rocky", "9"),
    "rocky-10": ("RedHat", "Rocky", "10"),
    "centos-9": ("RedHat", "CentOS", "9"),
    "centos-10": ("RedHat", "CentOS", "10"),
    "fedora-42": ("RedHat", "Fedora", "42"),
    "leap-15": ("Suse", "openSUSE Leap", "15"),
}
NFTABLES = [name for name, (family, *_rest) in SYSTEMS.items() if family == "Debian"]
FIREWALLD = [name for name in SYSTEMS if name not in NFTABLES]

_PLAY = """
- hosts: all
  gather_facts: false
  vars:
    role_path: "{{ role }}"
  vars_files: ["{{ role }}/defaults/main.yml"]
  tasks:
    - ansible.builtin.set_fact:
        os_family: "{{ known[0] }}"
        distribution: "{{ known[1] }}"
        distribution_major_version: "{{ known[2] }}"
        cacheable: true
    - ansible.builtin.include_vars: {dir: "{{ role }}/vars/main"}
    - ansible.builtin.include_vars: "{{ item }}"
      loop: "{{ __harden_files }}"
    - ansible.builtin.debug:
        msg: "<{{ inventory_hostname }} {{ item }} {{ rendered | to_json | b64encode }}>"
      vars:
        harden_ports: [22/tcp, 9000-9010/tcp, 53/udp]
        harden_profile: "{{ item }}"
        rendered:
          rules: "{{ __harden_rules }}"
          wanted: "{{ __harden_wanted }}"
          packages: "{{ __harden_packages_wanted }}"
          wrong: "{{ __harden_ports_wrong }}"
      loop: [egi, cis_level1]
"""


@pytest.fixture(scope="module")
def rendered(tmp_path_factory, checkout):
    """By system and profile: the rules, by name, and the packages."""
    folder = tmp_path_factory.mktemp("harden")
    hosts = {name: {"known": list(known)} for name, known in SYSTEMS.items()}
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    (folder / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts, "vars": local}}))
    (folder / "play.yml").write_text(_PLAY)
    values = {"role": str(checkout / "roles/harden")}
    argv = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(folder / "hosts.json")]
    argv += ["-e", json.dumps(values), str(folder / "play.yml")]
    env = {
        **os.environ,
        "ANSIBLE_CONFIG": str(checkout / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
    }
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    said = re.findall(r"<(\S+) (\S+) ([A-Za-z0-9+/=]+)>", done.stdout)
    found = {(system, profile): json.loads(base64.b64decode(data)) for system, profile, data in said}

    def of(system: str, profile: str = "egi"):
        data = found[system, profile]
        return {**data, "rules": {rule["name"]: Rule(**rule) for rule in data["rules"]}}

    return of


def settings(rule: Rule, path: str) -> dict[str, str]:
    """The «keyword value» lines of a file that a rule writes."""
    lines = (line.split(None, 1) for line in rule.write[path].splitlines() if not line.startswith("#"))
    return dict(line for line in lines if line)


@pytest.mark.parametrize("profile", ["egi", "cis_level1"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_rules_for_each_system(rendered, system, profile):
    found = rendered(system, profile)
    assert set(found["wanted"]) <= set(found["rules"])
    assert found["wrong"] == []
    for rule in found["rules"].values():
        assert rule.description
        assert "\n" not in rule.description
        for text in rule.write.values():
            assert "{{" not in text
            assert "{%" not in text
        for unit in (*rule.enable, *rule.disable):
            assert unit.endswith((".service", ".socket", ".timer", ".path", ".mount")), unit
    sshd = settings(found["rules"]["ssh_by_key"], "/etc/ssh/sshd_config.d/00-cloudimg-harden.conf")
    assert sshd["PasswordAuthentication"] == "no"
    assert sshd["KbdInteractiveAuthentication"] == "no"
    assert sshd["PermitRootLogin"] == "no"
    assert not {"AllowUsers", "AllowGroups", "DenyUsers", "DenyGroups"} & set(sshd)
    network = found["rules"]["sysctl_network"].write["/etc/sysctl.d/99-security-cloudimg-network.conf"]
    assert f"net.ipv4.conf.all.rp_filter = {2 if profile == 'egi' else 1}\n" in network
    assert "accept_ra" not in network


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_strict_profile_asks_for_more(rendered, system):
    egi, strict = rendered(system, "egi"), rendered(system, "cis_level1")
    assert set(egi["wanted"]) < set(strict["wanted"]) == set(strict["rules"])
    assert set(egi["packages"]) < set(strict["packages"])


@pytest.mark.parametrize("system", NFTABLES)
def test_nftables(rendered, system):
    rule = rendered(system)["rules"]["firewall"]
    text = rule.write["/etc/nftables.conf"]
    assert "table inet cloudimg {" in text
    assert text.count("policy drop;") == 2
    assert "tcp dport { 22, 9000-9010 } accept" in text
    assert "udp dport { 53 } accept" in text
    assert rule.enable == ["nftables.service"]
    assert "nftables" in rendered(system)["packages"]


@pytest.mark.parametrize("system", FIREWALLD)
def test_firewalld(rendered, system):
    rule = rendered(system)["rules"]["firewall"]
    zone = ET.fromstring(rule.write["/etc/firewalld/zones/cloudimg.xml"])
    assert zone.get("target") == "DROP"
    ports = [(port.get("port"), port.get("protocol")) for port in zone.findall("port")]
    assert ports == [("22", "tcp"), ("9000-9010", "tcp"), ("53", "udp")]
    assert {entry.get("value") for entry in zone.findall("protocol")} == {"icmp", "ipv6-icmp"}
    assert zone.find("forward") is None
    assert "DefaultZone=cloudimg" in rule.lines["/etc/firewalld/firewalld.conf"].values()
    assert rule.enable == ["firewalld.service"]
    assert "firewalld" in rendered(system)["packages"]


@pytest.mark.parametrize(
    ("system", "unit", "package"),
    [
        ("debian-12", "apt-daily-upgrade.timer", "unattended-upgrades"),
        ("ubuntu-24", "apt-daily-upgrade.timer", "unattended-upgrades"),
        ("rocky-9", "dnf-automatic.timer", "dnf-automatic"),
        ("fedora-42", "dnf5-automatic.timer", "dnf5-plugin-automatic"),
        ("leap-15", "cloudimg-security-updates.timer", "firewalld"),
    ],
)
def test_updates(rendered, system, unit, package):
    found = rendered(system)
    assert unit in found["rules"]["automatic_updates"].enable
    assert found["rules"]["automatic_updates"].disable == []
    assert package in found["packages"]


def test_mandatory_access(rendered):
    enforcing = rendered("alma-10")["rules"]["mandatory_access"].lines["/etc/selinux/config"]
    assert "SELINUX=enforcing" in enforcing.values()
    for system in ("debian-13", "ubuntu-22", "leap-15"):
        assert rendered(system)["rules"]["mandatory_access"].enable == ["apparmor.service"]


def test_ciphers_only_where_no_policy_of_the_system_names_them(rendered):
    for system in SYSTEMS:
        rule = rendered(system, "cis_level1")["rules"]["ssh_by_key"]
        sshd = settings(rule, "/etc/ssh/sshd_config.d/00-cloudimg-harden.conf")
        assert ("Ciphers" in sshd) is (system in NFTABLES), system


# --- how rules are carried out ---


@pytest.fixture
def root(tmp_path):
    """A small system."""
    for name, text in {
        "etc/passwd": "root:x:0:0::/root:/bin/sh\ndaemon:x:1:1::/:/bin/sh\nsite:x:1000:1000::/home/site:/bin/sh\n",
        "etc/shadow": "root:$6$x$y:1:0:99999:7:::\ndaemon:*:1::::::\nsite::1::::::\nkept:$y$z:1::::::\nlocked:!:1::::::\n",
        "etc/login.defs": "# UMASK is a word\nUMASK\t022\nPASS_MAX_DAYS 99999\n",
        "etc/secret": "x",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "etc/shadow").chmod(0o640)
    return tmp_path


def apply(root, dry=False, **what):
    """Carry out a rule."""
    return Applier(root, dry=dry).apply(Rule("x", "x", **what))


def test_lock(root):
    what = {"lock": ["*"], "unlocked": ["kept"]}
    assert apply(root, **what) == ["password of root", "password of site"]
    assert (root / "etc/shadow").read_text().splitlines() == [
        "root:!*:1:0:99999:7:::",
        "daemon:*:1::::::",
        "site:!*:1::::::",
        "kept:$y$z:1::::::",
        "locked:!:1::::::",
    ]
    assert (root / "etc/shadow").stat().st_mode & 0o777 == 0o640
    assert apply(root, **what) == []


def test_lock_one(root):
    assert apply(root, lock=["root"]) == ["password of root"]
    assert "site::1" in (root / "etc/shadow").read_text()


def test_lines(root):
    what = {"lines": {"/etc/login.defs": {r"^\s*UMASK\s": "UMASK 027", r"^NEW\s": "NEW 1"}, "/etc/none": {"a": "b"}}}
    assert apply(root, **what) == ["/etc/login.defs"]
    assert (root / "etc/login.defs").read_text() == "# UMASK is a word\nUMASK 027\nPASS_MAX_DAYS 99999\nNEW 1\n"
    assert apply(root, **what) == []
    assert not (root / "etc/none").exists()


def test_lines_of_which_there_were_several(root):
    (root / "etc/login.defs").write_text("a 1\nUMASK 1\nb 2\nUMASK 2\n")
    apply(root, lines={"/etc/login.defs": {"^UMASK": "UMASK 3"}})
    assert (root / "etc/login.defs").read_text() == "a 1\nUMASK 3\nb 2\n"


def test_modes_only_ever_allow_less(root):
    (root / "etc/secret").chmod(0o604)
    assert apply(root, modes={"/etc/sec*": "0640"}) == ["/etc/secret"]
    assert (root / "etc/secret").stat().st_mode & 0o777 == 0o600
    assert apply(root, modes={"/etc/sec*": "0666"}) == []


def test_dry_changes_nothing(root):
    before = {path: path.read_text() for path in root.rglob("*") if path.is_file()}
    what = {
        "lock": ["*"],
        "lines": {"/etc/login.defs": {"^UMASK": "x"}},
        "modes": {"/etc/*": "0000"},
        "write": {"/new": ""},
        "accounts_absent": ["site"],
        "enable": ["no-such.service"],
    }
    assert len(apply(root, dry=True, **what)) > 5
    assert {path: path.read_text() for path in root.rglob("*") if path.is_file()} == before


def test_root_stays(root):
    with pytest.raises(FactoryError, match="root cannot be removed"):
        apply(root, accounts_absent=["root"])


def test_a_unit_that_is_not_there(root):
    with pytest.raises(FactoryError, match=r"no-such\.service: there is no such unit, so that it cannot be enabled"):
        apply(root, enable=["no-such.service"])
    assert apply(root, disable=["no-such.service"]) == []


def test_choose():
    rules = [Rule("firewall", "x"), Rule("umask", "x"), Rule("banner", "x")]
    assert [rule.name for rule in choose(rules, ["banner", "firewall"], ["banner"], ["umask"])] == ["firewall", "umask"]
    with pytest.raises(FactoryError, match=r"disabled: there is no rule 'firewal'; did you mean 'firewall'\?"):
        choose(rules, [], ["firewal"], [])
    with pytest.raises(FactoryError, match="enabled: there is no rule 'zzzz'; use one of: banner, firewall, umask"):
        choose(rules, [], [], ["zzzz"])
