# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""SECANT, by which EGI judges images: its six probes' outcomes, and its report. Talks to nobody.

Its own probes have gaps, which are closed here: C(open_ports) never failed and never looked at UDP, so C(ntp_amp) had
nothing to ask; C(ssh_auth) did not know keyboard-interactive; nothing looked at IPv6.
"""

from __future__ import annotations

import dataclasses
import time
import typing as t
import xml.etree.ElementTree as ET

from ansible_collections.cloudimg.factory.plugins.module_utils._outside import Seen
from ansible_collections.cloudimg.factory.plugins.module_utils._probe import Check

VERSION = "2.0"
"""Of the probes."""
OK, ERROR, SKIPPED, INTERNAL_FAILURE = "OK", "ERROR", "SKIPPED", "INTERNAL_FAILURE"
PROBES = {
    "open_ports": "Ports that answer to a neighbour, of TCP and of those of UDP that amplify",
    "ntp_amp": "NTP amplification: does a time server list its clients, or answer control messages?",
    "ssh_auth": "Ways of logging in that SSH offers",
    "ssh_passwd": "Logging in with common names and passwords",
    "lynis_test": "Lynis: audit of the running system",
    "pakiti_test": "Packages for which there are security updates",
}
"""Each probe, in SECANT's order, and what it is about."""
_SSH = 22
_SAFE = ("publickey", "hostbased", "gssapi-with-mic", "gssapi-keyex")
_DESCRIPTIONS = {
    "OK": "Test finished successfully. Machine is not exposed to attacks.",
    "FAIL": "Test finished successfully. Machine is exposed to attacks.",
    INTERNAL_FAILURE: "Test finished unsuccessfully due to internal failure.",
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a probe came to."""

    id: str
    outcome: str
    summary: str
    details: tuple[str, ...] = ()

    def check(self) -> Check:
        """The same as a check: what SECANT fails fails."""
        return Check(self.id, self.outcome in (OK, SKIPPED), f"{self.outcome}: {self.summary}", group="secant")

    def dump(self) -> dict[str, t.Any]:
        """For C(assess.json)."""
        return {"id": self.id, "outcome": self.outcome, "summary": self.summary, "details": list(self.details)}


def all_of(found: t.Iterable[Outcome]) -> list[Outcome]:
    """An outcome of each probe, in order; a probe that came to nothing is an C(INTERNAL_FAILURE)."""
    by_id = {outcome.id: outcome for outcome in found}
    nothing = "the machine did not come so far that it could be asked"
    return [by_id.get(name) or Outcome(name, INTERNAL_FAILURE, nothing) for name in PROBES]


def worst(name: str, found: t.Sequence[tuple[str, Outcome]]) -> Outcome | None:
    """One outcome out of those of several boots (name, outcome): the worst, with the details of all; None for none."""
    if not found:
        return None
    _boot, chosen = min(found, key=lambda pair: (INTERNAL_FAILURE, ERROR, OK, SKIPPED).index(pair[1].outcome))
    details = [f"{boot}: {line}" for boot, outcome in found for line in (outcome.summary, *outcome.details)]
    return dataclasses.replace(chosen, details=tuple(details))


def open_ports(seen: Seen, allowed: t.Collection[str]) -> Outcome:
    """Nothing may answer but SSH and the ports of ``allowed`` (as C(80/tcp)).

    SSH has to: it is known to listen, so where it is not seen, nothing would have been.
    """
    details = [_line(address, seen) for address in seen.tcp]
    found = seen.open_ports()
    if f"{_SSH}/tcp" not in found:
        return Outcome("open_ports", INTERNAL_FAILURE, "not even the SSH server was seen", tuple(details))
    wrong = [name for name in found if name not in (f"{_SSH}/tcp", *allowed)]
    if wrong:
        return Outcome("open_ports", ERROR, f"open: {', '.join(wrong)}", tuple(details))
    return Outcome("open_ports", OK, f"open: {', '.join(found)}", tuple(details))


def _line(address: str, seen: Seen) -> str:
    told = []
    for name, ports in (("tcp", seen.tcp[address]), ("udp", seen.udp[address])):
        for state in sorted(set(ports.values())):
            those = [port for port, found in ports.items() if found == state]
            some = ", ".join(map(str, those)) if len(those) <= 12 else str(len(those))
            told.append(f"{state} {some}/{name}")
    return f"{address}: {'; '.join(told)}"


def ntp_amp(seen: Seen) -> Outcome:
    """No time server may answer a short question with a long list (mode 7), or tell of itself (mode 6)."""
    answers = [(address, data) for address, port, data in seen.answers if port == 123 and data]
    by_mode = {mode: [address for address, data in answers if data[0] & 7 == mode] for mode in (6, 7)}
    if by_mode[7]:
        return Outcome("ntp_amp", ERROR, "it lists its clients (monlist)", tuple(sorted(set(by_mode[7]))))
    if by_mode[6]:
        return Outcome("ntp_amp", ERROR, "it answers control messages (mode 6)", tuple(sorted(set(by_mode[6]))))
    states = sorted({ports[123] for ports in seen.udp.values()})
    told = "a time server answers, but amplifies nothing" if answers else f"123/udp is {' and '.join(states)}"
    return Outcome("ntp_amp", OK, told)


def ssh_auth(methods: t.Sequence[str]) -> Outcome:
    """Only keys (and what is as safe) may be offered."""
    wrong = [name for name in methods if name not in _SAFE]
    return Outcome("ssh_auth", ERROR if wrong else OK, f"SSH offers {', '.join(wrong or methods)}")


def asks_for_password(methods: t.Sequence[str]) -> bool:
    """Whether there is something to guess."""
    return bool({"password", "keyboard-interactive"} & set(methods))


def overall(outcomes: t.Iterable[Outcome]) -> str:
    """SECANT's verdict: C(INTERNAL_FAILURE), else C(FAIL), else C(OK)."""
    found = {outcome.outcome for outcome in outcomes}
    return INTERNAL_FAILURE if INTERNAL_FAILURE in found else "FAIL" if ERROR in found else OK


def xml(outcomes: t.Sequence[Outcome], *, image_id: str, message_id: str, now: float | None = None) -> str:
    """SECANT's report.

    :param image_id: the image's base MPURI, or whatever else it is called by.
    :param now: seconds since the epoch.
    """
    total = overall(outcomes)
    root = ET.Element("SECANT")
    head = {
        "VERSION": VERSION,
        "IMAGEID": image_id,
        "DATE": str(time.time() if now is None else now),
        "OUTCOME": total,
        "OUTCOME_DESCRIPTION": _DESCRIPTIONS[total],
        "MESSAGEID": message_id,
    }
    for name, text in head.items():
        ET.SubElement(root, name).text = text
    log = ET.SubElement(root, "LOG")
    for outcome in outcomes:
        check = ET.SubElement(log, "CHECK")
        values = {
            "VERSION": VERSION,
            "TEST_ID": outcome.id.upper(),
            "DESCRIPTION": PROBES[outcome.id],
            "OUTCOME": outcome.outcome,
            "SUMMARY": outcome.summary,
            "DETAILS": "\n".join(outcome.details),
        }
        for name, text in values.items():
            ET.SubElement(check, name).text = printable(text)
    return document(root)


def printable(text: str) -> str:
    """Text without the characters that XML has no way to write."""
    return "".join(char if char in "\n\t" or char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def document(root: ET.Element) -> str:
    """An XML document, indented."""
    ET.indent(root, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"
