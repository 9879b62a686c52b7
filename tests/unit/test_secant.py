# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SECANT's probes and its report, and the same as JUnit XML."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _junit, _outside, _secant
from ansible_collections.cloudimg.factory.plugins.module_utils._secant import Outcome

V4, V6 = "10.0.2.15", "fe80::5054:ff:fe00:1"


def seen(*, tcp: dict[int, str] | None = None, udp: dict[int, str] | None = None, answers=()) -> _outside.Seen:
    """What a guest behind a firewall shows, with some changes of its IPv6."""
    found = _outside.Seen(answers=[(V6, port, data) for port, data in answers])
    for address in (V4, V6):
        found.tcp[address] = {22: "open", 80: "filtered", 111: "closed"}
        found.udp[address] = dict.fromkeys(_outside.AMPLIFIERS, "silent")
    found.tcp[V6].update(tcp or {})
    found.udp[V6].update(udp or {})
    return found


def test_only_ssh_answers():
    outcome = _secant.open_ports(seen(), [])
    assert (outcome.outcome, outcome.summary) == ("OK", "open: 22/tcp")
    assert outcome.details[0] == (
        "10.0.2.15: closed 111/tcp; filtered 80/tcp; open 22/tcp; silent 19, 53, 111, 123, 161, 389, 1900, 11211/udp"
    )


@pytest.mark.parametrize(
    ("changes", "allowed", "outcome", "summary"),
    [
        ({"tcp": {80: "open"}}, [], "ERROR", "open: 80/tcp"),
        ({"tcp": {80: "open"}}, ["80/tcp"], "OK", "open: 22/tcp, 80/tcp"),
        ({"udp": {161: "open"}}, ["161/tcp"], "ERROR", "open: 161/udp"),
        ({"udp": {53: "open"}}, ["53/udp"], "OK", "open: 22/tcp, 53/udp"),
    ],
)
def test_what_answers_over_ipv6_only_counts(changes, allowed, outcome, summary):
    found = _secant.open_ports(seen(**changes), allowed)
    assert (found.outcome, found.summary) == (outcome, summary)


def test_a_scan_that_does_not_see_ssh_is_no_scan():
    nothing = seen()
    for ports in nothing.tcp.values():
        ports[22] = "filtered"
    assert _secant.open_ports(nothing, []).outcome == "INTERNAL_FAILURE"


@pytest.mark.parametrize(
    ("answer", "outcome", "summary"),
    [
        (b"\x97\x00\x03\x2a" + bytes(440), "ERROR", "it lists its clients (monlist)"),
        (b"\x16\x82\x00\x01" + bytes(100), "ERROR", "it answers control messages (mode 6)"),
        (b"\x24" + bytes(47), "OK", "a time server answers, but amplifies nothing"),
    ],
)
def test_ntp_amplification(answer, outcome, summary):
    found = _secant.ntp_amp(seen(udp={123: "open"}, answers=[(123, answer)]))
    assert (found.outcome, found.summary) == (outcome, summary)


def test_no_time_server():
    found = _secant.ntp_amp(seen(udp={123: "closed"}, answers=[(53, b"\x97")]))
    assert (found.outcome, found.summary) == ("OK", "123/udp is closed and silent")


@pytest.mark.parametrize(
    ("methods", "outcome", "guess"),
    [
        (["publickey"], "OK", False),
        (["password", "publickey"], "ERROR", True),
        (["keyboard-interactive", "publickey"], "ERROR", True),
        (["none"], "ERROR", False),
    ],
)
def test_ways_of_logging_in(methods, outcome, guess):
    assert _secant.ssh_auth(methods).outcome == outcome
    assert _secant.asks_for_password(methods) is guess


GOOD = [Outcome(name, "OK", f"{name} is fine") for name in _secant.PROBES]


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        ([], "OK"),
        (["SKIPPED"], "OK"),
        (["SKIPPED", "ERROR"], "FAIL"),
        (["ERROR", "INTERNAL_FAILURE"], "INTERNAL_FAILURE"),
    ],
)
def test_the_verdict_over_all_probes(outcomes, verdict):
    changed = [Outcome("x", outcome, "") for outcome in outcomes]
    assert _secant.overall([*GOOD, *changed]) == verdict


def test_probes_without_an_outcome_are_internal_failures():
    found = _secant.all_of([Outcome("ssh_auth", "OK", "keys")])
    assert [outcome.id for outcome in found] == list(_secant.PROBES)
    assert [outcome.outcome for outcome in found].count("INTERNAL_FAILURE") == 5
    assert [outcome.check().ok for outcome in found].count(False) == 5


def test_of_several_boots_the_worst_counts_and_all_is_told():
    good, bad = Outcome("ssh_auth", "OK", "keys"), Outcome("ssh_auth", "ERROR", "password", ("more",))
    worst = _secant.worst("ssh_auth", [("a", good), ("b", bad)])
    assert (worst.outcome, worst.summary) == ("ERROR", "password")
    assert worst.details == ("a: keys", "b: password", "b: more")
    assert _secant.worst("ssh_auth", []) is None


def test_the_report_has_the_elements_of_secants_own():
    bad = Outcome("ssh_auth", "ERROR", "a <b> & \x1b[1m", ("one", "two"))
    outcomes = [bad if outcome.id == "ssh_auth" else outcome for outcome in GOOD]
    text = _secant.xml(outcomes, image_id="https://example.org/image/1", message_id="m-1", now=12.5)
    root = ET.fromstring(text)
    assert root.tag == "SECANT"
    assert [child.tag for child in root] == [
        *["VERSION", "IMAGEID", "DATE", "OUTCOME", "OUTCOME_DESCRIPTION", "MESSAGEID", "LOG"]
    ]
    told = {child.tag: child.text for child in root}
    assert (told["IMAGEID"], told["DATE"], told["MESSAGEID"]) == ("https://example.org/image/1", "12.5", "m-1")
    assert told["OUTCOME"] == "FAIL"
    assert told["OUTCOME_DESCRIPTION"] == "Test finished successfully. Machine is exposed to attacks."
    checks = root.findall("LOG/CHECK")
    assert [check.findtext("TEST_ID") for check in checks] == [name.upper() for name in _secant.PROBES]
    parts = ["VERSION", "TEST_ID", "DESCRIPTION", "OUTCOME", "SUMMARY", "DETAILS"]
    assert all([part.tag for part in check] == parts for check in checks)
    (ssh,) = [check for check in checks if check.findtext("TEST_ID") == "SSH_AUTH"]
    assert ssh.findtext("SUMMARY") == "a <b> & \N{REPLACEMENT CHARACTER}[1m"
    assert ssh.findtext("DETAILS") == "one\ntwo"


def check(name: str, **changes) -> dict:
    """A check as assess.json has it."""
    good = {"boot": "bios-nocloud", "name": name, "ok": True, "required": True, "detail": "fine", "group": "boot"}
    return {**good, **changes}


def test_junit_xml():
    report = {
        "image": "debian-12",
        "version": "1",
        "started": "2026-01-01T00:00:00Z",
        "boots": [{"name": "bios-nocloud", "timings": {"ssh": 5.0, "all": 9.25}}],
        "checks": [
            check("login"),
            check("no_failed_units", ok=False, detail="failed: <x>.service"),
            check("cloud_init_warnings", ok=False, required=False, detail="degraded"),
            check("lynis_test", boot="all", group="secant", detail="SKIPPED: it is switched off"),
        ],
    }
    root = ET.fromstring(_junit.xml(report))
    assert (root.tag, root.attrib) == (
        "testsuites",
        {"name": "debian-12 1", "tests": "4", "failures": "1", "skipped": "2"},
    )
    first, second = root
    counts = {"tests": "3", "failures": "1", "skipped": "1", "errors": "0"}
    assert first.attrib == {"name": "bios-nocloud", "time": "9.2", "timestamp": "2026-01-01T00:00:00", **counts}
    assert second.get("name") == "all"
    cases = {case.get("name"): case for case in root.iter("testcase")}
    assert cases["login"].findtext("system-out") == "fine"
    assert cases["no_failed_units"].find("failure").get("message") == "failed: <x>.service"
    assert cases["cloud_init_warnings"].find("skipped").get("message") == "degraded"
    assert cases["lynis_test"].find("skipped") is not None
