# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scores: what is brought along, what is read, and what a system that is not booted is asked."""

from __future__ import annotations

import io
import subprocess
import tarfile

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _audit_lynis, _audit_openscap, _cli
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

_REPORT = """# Lynis Report
lynis_version=3.0.8
warning[]=KRNL-5830|Reboot of system is most likely needed||text:reboot|
suggestion[]=LYNIS|This release is more than 4 months old.|-|-|
suggestion[]=BOOT-5122|Set a password on GRUB boot loader|-|-|
lynis_tests_done=234
hardening_index=72
"""


def test_read():
    score = _audit_lynis.read(_REPORT)
    assert (score.index, score.version, score.tests) == (72, "3.0.8", 234)
    assert score.warnings == ["KRNL-5830 Reboot of system is most likely needed"]
    assert score.suggestions == ["BOOT-5122 Set a password on GRUB boot loader"]


def test_a_report_that_was_cut_off():
    assert _audit_lynis.read(_REPORT.replace("hardening_index=72\n", "")) is None
    assert _audit_lynis.read("") is None


@pytest.fixture
def system(tmp_path):
    """A tree with Lynis in it, and kernel parameters."""
    for name, text in {
        "usr/sbin/lynis": "#!/bin/sh\n",
        "usr/share/lynis/include/functions": "",
        "usr/share/lynis/db/languages/en": "",
        "etc/lynis/default.prf": "",
        "usr/lib/sysctl.d/50-default.conf": "net.ipv4.conf.*.rp_filter = 2\n-kernel.core_uses_pid = 1\n# x = 1\n",
        "usr/lib/sysctl.d/60-ours.conf": "hidden = 1\n",
        "etc/sysctl.d/60-ours.conf": "net.ipv4.conf.all.rp_filter = 1\nkernel/sysrq = 0\n",
        "etc/sysctl.d/99-last.conf": "kernel.core_uses_pid=0\n",
        "proc/sys/net/ipv4/conf/all/rp_filter": "0",
        "proc/sys/net/ipv4/conf/eth0/rp_filter": "0",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_what_is_brought_along(system):
    with tarfile.open(fileobj=io.BytesIO(_audit_lynis.pack(system))) as archive:
        assert {"lynis", "include/functions", "db/languages/en", "default.prf"} <= set(archive.getnames())
        assert {member.uid for member in archive} == {0}


def test_lynis_is_not_there(tmp_path, system):
    assert _audit_lynis.pack(tmp_path / "nothing") is None
    (system / "etc/lynis/default.prf").unlink()
    assert _audit_lynis.pack(system) is None


def test_kernel_parameters_are_those_of_the_systems_files(system):
    configured = _audit_lynis.configured_parameters(system)
    assert "hidden" not in configured
    found = _audit_lynis.parameters(configured, system / "proc/sys")
    assert found["net.ipv4.conf.all.rp_filter"] == "1"
    assert found["net.ipv4.conf.eth0.rp_filter"] == "2"
    assert found["kernel.sysrq"] == "0"
    assert found["kernel.core_uses_pid"] == "0"


def test_the_sysctl_that_lynis_asks(system, tmp_path):
    values = tmp_path / "values"
    values.write_text("kernel.sysrq = 0\n")
    program = tmp_path / "sysctl"
    program.write_text(_audit_lynis._SYSCTL.format(values=values, real="/bin/echo"))
    ask = ["sh", str(program)]
    assert subprocess.check_output([*ask, "-n", "kernel.sysrq"], text=True) == "0\n"
    assert subprocess.check_output([*ask, "kernel.sysrq"], text=True) == "kernel.sysrq = 0\n"
    # by echo, in the place of the real one
    assert subprocess.check_output([*ask, "-a", "other.key"], text=True) == "-a other.key\n"


@pytest.mark.parametrize(
    ("release", "name"),
    [
        ({"ID": "debian", "VERSION_ID": "11"}, "ssg-debian11-ds.xml"),
        ({"ID": "ubuntu", "VERSION_ID": "22.04"}, "ssg-ubuntu2204-ds.xml"),
        ({"ID": "rocky", "VERSION_ID": "9.4"}, "ssg-rl9-ds.xml"),
        ({"ID": "fedora", "VERSION_ID": "42"}, None),
        ({}, None),
    ],
)
def test_content_for_a_system(tmp_path, release, name):
    for known in ("debian11", "ubuntu2204", "rl9", "almalinux9"):
        (tmp_path / f"ssg-{known}-ds.xml").touch()
    found = _audit_openscap.content_for(release, tmp_path)
    assert (found.name if found else None) == name


def test_profiles_of_a_content(tmp_path):
    content = tmp_path / "content.xml"
    content.write_text(
        "".join(f'<xccdf-1.2:Profile id="{_audit_openscap._PROFILE}{n}">' for n in ("other", "standard"))
    )
    assert _audit_openscap.profile_for(content).endswith("_standard")
    assert _audit_openscap.profile_for(content, "other").endswith("_other")
    with pytest.raises(FactoryError, match="profile: there is no profile 'x'; use one of: other, standard"):
        _audit_openscap.profile_for(content, "x")


_CONTENT = _audit_openscap.CONTENT / "ssg-debian11-ds.xml"


@pytest.mark.skipif(
    not (_cli.which("oscap") and _CONTENT.exists()), reason="needs OpenSCAP and its content for Debian 11"
)
def test_openscap_sees_what_a_system_fulfils(tmp_path):
    """Not this machine, but the tree; one file more safe is one rule more."""
    root = tmp_path / "root"
    for name, text in {
        "etc/os-release": 'ID=debian\nVERSION_ID="11"\nNAME="Debian GNU/Linux"\n',
        "etc/debian_version": "11.7\n",
        "etc/passwd": "root:x:0:0::/root:/bin/sh\n",
        "etc/group": "root:x:0:\n",
        "etc/shadow": "root:*:1::::::\n",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o666)
    profile = _audit_openscap.profile_for(_CONTENT)
    held = sorted(path.name for path in root.iterdir())
    before = _audit_openscap.evaluate(root, _CONTENT, profile, tmp_path / "before.xml")
    assert "file_permissions_etc_passwd" in before.failures
    (root / "etc/passwd").chmod(0o644)
    after = _audit_openscap.evaluate(root, _CONTENT, profile, tmp_path / "after.xml")
    assert set(before.failures) - set(after.failures) == {"file_permissions_etc_passwd"}
    assert after.score > before.score
    assert after.passed == before.passed + 1
    assert sorted(path.name for path in root.iterdir()) == held


def test_rules_about_packages_do_not_count_when_openscap_is_blind(tmp_path):
    rows = {"package_x_removed": "pass", "file_a": "pass", "file_b": "fail", "other": "notapplicable"}
    text = "".join(
        f'<rule-result idref="xccdf_org.ssgproject.content_rule_{name}"><result>{outcome}</result></rule-result>'
        for name, outcome in rows.items()
    )
    results = tmp_path / "results.xml"
    results.write_text(f'<B xmlns="http://checklists.nist.gov/xccdf/1.2"><TestResult>{text}</TestResult></B>')
    seen = _audit_openscap.read(results, profile="p", content="c", version="1.3")
    assert (seen.passed, seen.failed, seen.left_out, seen.score) == (2, 1, 1, 66.7)
    blind = _audit_openscap.read(results, profile="p", content="c", version="1.3", blind=True)
    assert (blind.passed, blind.failed, blind.left_out, blind.score) == (1, 1, 2, 50.0)
