# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The network: what is reached, and what keeps the rest away."""

from __future__ import annotations

import pytest

LOOPBACK = ("127.", "[::1]", "[::ffff:127.")


def drops(ruleset, family: str) -> bool:
    """Whether what nobody allows is dropped on its way in."""
    chains = [row["chain"] for row in ruleset if "chain" in row]
    return any(
        chain.get("hook") == "input" and chain.get("policy") == "drop" and chain["family"] in ("inet", family)
        for chain in chains
    )


def test_firewall_drops_ipv4(ruleset):
    """Over IPv4, what is not allowed is dropped."""
    assert drops(ruleset, "ip")


def test_firewall_drops_ipv6(ruleset):
    """Over IPv6, too."""
    assert drops(ruleset, "ip6")


def test_firewall_starts_at_boot(system):
    """The firewall is there from the start."""
    assert system.enabled("nftables.service", "firewalld.service", "ufw.service")


def test_nobody_greets_the_neighbours(system):
    """No service is started that everybody in the network can talk to, and nobody asked for."""
    units = ("avahi-daemon", "cups", "rpcbind", "telnet.socket", "xinetd", "inetd", "snmpd", "rsync", "nfs-server")
    assert system.enabled(*units) == []


@pytest.mark.booted
def test_only_ssh_listens(system, pytestconfig):
    """Nothing but SSH, a DHCP client and what is allowed listens to others."""
    allowed = ["22/tcp", "68/udp", "546/udp", *pytestconfig.getoption("allowed_port")]
    found = set()
    for line in system.lines("ss -Hltun"):
        proto, address = line.split()[0], line.split()[4]
        place, _colon, port = address.rpartition(":")
        if not place.startswith(LOOPBACK) and "%lo" not in place:
            found.add(f"{port}/{proto}")
    assert "22/tcp" in found
    assert sorted(found - set(allowed)) == []
