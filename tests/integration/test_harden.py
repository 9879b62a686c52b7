# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stage harden on a small system: its scores, and what it says to bad input. No package is installed."""

from __future__ import annotations

import hashlib
import json

import pytest
from test_guest_stages import Site
from tiny_system import as_base, tiny_disk

from ansible_collections.cloudimg.factory.plugins.module_utils import _audit_lynis, _state

pytestmark = pytest.mark.root
# those rules that need no package
RULES = {
    "harden_profile": "none",
    "harden_enabled": ["accounts", "banner", "core_dumps", "file_permissions", "sysctl_kernel"],
}


@pytest.fixture
def site(tmp_path, tmp_path_factory) -> Site:
    """A site for the stage harden alone; in the end nothing is open, and the base is as it was."""
    base = as_base(tiny_disk(tmp_path_factory.getbasetemp()), _state.Workspace(tmp_path / "workspace"), "applications")
    before = hashlib.sha256(base.read_bytes()).hexdigest()
    found = Site(tmp_path, base, "applications", ("harden",), {"harden_score": False, **RULES})
    yield found
    assert found.nothing_open()
    assert hashlib.sha256(base.read_bytes()).hexdigest() == before


def refused(site: Site, **settings: object) -> str:
    """The message with which the stage fails, leaving no layer."""
    played = site.play(**settings)
    assert played.rc != 0
    assert list(site.workspace.layers.glob("harden-*")) == []
    return played.output


def test_an_unknown_rule(site):
    said = refused(site, harden_disabled=["bannner"])
    assert "disabled: there is no rule 'bannner'; did you mean 'banner'?" in said


@pytest.mark.parametrize("port", ["ssh/tcp", "22", "65536/tcp", "22/icmp", "22/tcp; accept"])
def test_a_port_that_is_none(site, port):
    said = refused(site, harden_ports=["22/tcp", port])
    assert f"harden_ports: {port} is no port; write a number (or two, for a range) and a protocol" in said


@pytest.mark.skipif(_audit_lynis.pack() is None, reason="needs Lynis")
@pytest.mark.slow
def test_a_score_that_is_too_low(site):
    said = refused(site, harden_min_score=99)
    assert "harden_min_score: the hardening index of Lynis is " in said
    assert ", not 99; see harden_profile and docs/harden.md" in said


@pytest.mark.skipif(_audit_lynis.pack() is None, reason="needs Lynis")
@pytest.mark.slow
def test_scores_are_kept_with_the_layer_and_nothing_else(site):
    played = site.play(harden_score=True)
    assert played.rc == 0, played.output[-3000:]
    facts = json.loads(site.layer("harden").with_suffix(".json").read_text())["facts"]
    lynis = facts["scores"]["lynis"]
    assert 0 < lynis["before"] < lynis["after"] <= 100
    assert lynis["version"].count(".") >= 1
    assert lynis["booted"] is False
    said = site.look(
        "harden", "find / -xdev -iname '*lynis*' -o -xdev -name 'cloudimg-audit*'; cat /etc/issue /etc/shadow"
    )
    assert "lynis" not in said
    assert "authorized users only" in said
    assert "root:*:" in said or "root:!" in said


def test_no_profile_and_no_rule_does_nothing(site):
    played = site.play("-v", harden_enabled=[])
    assert played.rc == 0, played.output[-3000:]
    assert "Carry out the rules" not in played.output
    assert "Know the system" not in played.output
