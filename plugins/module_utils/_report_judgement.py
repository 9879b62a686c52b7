# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Parts of a report's page: what the assessment has found, and how hard the image is."""

from __future__ import annotations

import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils import _report_plot as plot
from ansible_collections.cloudimg.factory.plugins.module_utils._report_data import Check, Facts, rows, table
from ansible_collections.cloudimg.factory.plugins.module_utils._report_html import Markup, Part, score, tag
from ansible_collections.cloudimg.factory.plugins.module_utils._report_parts import section

_SIGNS = {"ok": "✓", "warn": "!", "fail": "✕", "skip": "–"}
_TOLD = {"ok": "passed", "warn": "warning", "fail": "failed", "skip": "not done"}
_OUTCOMES = {
    "ok": ("ok", "pass", "passed"),
    "fail": ("error", "internal_failure", "fail", "failed"),
    "skip": ("skipped", "skip"),
}
_FEW = 12
"""So many lines of checks are shown at once; of more only those that did not pass, the others folded."""


def mark(state: str, told: str = "") -> Markup:
    """A round sign for a state."""
    said = _TOLD[state] + (f": {told}" if told else "")
    return tag("span", _SIGNS[state], class_=f"m {state}", role="img", aria_label=_TOLD[state], title=said)


def checks(facts: Facts) -> Markup:
    title = "What was checked"
    if not facts.checks:
        return section("checks", title, tag("p", "Nothing was checked.", class_="soft"))
    boots = list(dict.fromkeys(check.boot for check in facts.checks))
    lines: dict[tuple[str, str], list[Check]] = {}
    for check in facts.checks:
        lines.setdefault((check.group, check.name), []).append(check)
    strips = [
        tag(
            "div",
            tag("span", boot or "all"),
            tag("div", [_square(check) for check in facts.checks if check.boot == boot], class_="strip"),
            tag("span", _tally([check for check in facts.checks if check.boot == boot]), class_="v"),
            class_="row",
        )
        for boot in boots
    ]
    shown = dict(lines)
    folded: Markup | None = None
    if len(lines) > _FEW:
        shown = {key: found for key, found in lines.items() if any(check.state != "ok" for check in found)}
        passed = {key: found for key, found in lines.items() if key not in shown}
        folded = tag("details", tag("summary", f"{len(passed)} that passed"), _table(passed, boots))
    return section("checks", title, strips, _table(shown, boots) if shown else None, folded, kind="long")


def _square(check: Check) -> Markup:
    return tag("i", class_=check.state, title=f"{check.name}: {_TOLD[check.state]}")


def _tally(found: t.Sequence[Check]) -> str:
    return f"{sum(check.state == 'ok' for check in found)} of {len(found)}"


def _table(lines: t.Mapping[tuple[str, str], t.Sequence[Check]], boots: t.Sequence[str]) -> Markup:
    head = tag("tr", tag("th", "check"), [tag("th", boot.replace("-", " "), class_="c") for boot in boots])
    body: list[Markup] = []
    group = ""
    order = list(dict.fromkeys(of for of, _name in lines))
    for (of, name), found in sorted(lines.items(), key=lambda item: order.index(item[0][0])):
        if of != group:
            group = of
            body.append(tag("tr", tag("td", of.replace("_", " "), colspan=len(boots) + 1), class_="g"))
        told = list(dict.fromkeys(check.detail for check in found if check.detail))
        if len(told) > 1:
            told = [f"{check.boot}: {check.detail}" for check in found if check.detail]
        by_boot = {check.boot: check for check in found}
        cells = [
            tag("td", mark(by_boot[boot].state, by_boot[boot].detail) if boot in by_boot else None, class_="c")
            for boot in boots
        ]
        words = tag("td", tag("span", name.replace("_", " "), title=name), [tag("p", line) for line in told])
        body.append(tag("tr", words, cells))
    return tag("table", tag("thead", head), tag("tbody", body))


def secant(facts: Facts) -> Markup | None:
    """SECANT's probes, and what Lynis says at last."""
    probes = rows(facts.assessment.get("secant"))
    lynis = table(facts.assessment.get("lynis"))
    if not probes and not lynis:
        return None
    cards = []
    for probe in probes:
        outcome = str(probe.get("outcome") or "")
        state = next((state for state, words in _OUTCOMES.items() if outcome.lower() in words), "warn")
        details = [tag("p", line) for line in _lines(probe.get("details"))]
        folded = tag("details", tag("summary", "details"), details) if len(details) > 2 else details
        words = [tag("b", str(probe.get("id") or "")), tag("p", str(probe.get("summary") or "")), folded]
        cards.append(tag("div", mark(state, outcome), tag("div", words), class_="probe"))
    parts: list[Part] = [tag("div", cards, class_="probes")] if cards else []
    if lynis:
        counted = [_count(lynis[key], key) for key in ("warnings", "suggestions") if lynis.get(key) is not None]
        parts.append(
            tag("p", f"Lynis in the booted image: index {lynis.get('index')}, {', '.join(counted)}.", class_="soft")
        )
        said = [tag("p", line) for key in ("warnings", "suggestions") for line in _lines(lynis.get(key), texts=False)]
        parts.append(tag("details", tag("summary", "what it says"), said) if said else None)
    return section("secant", "SECANT's probes", parts)


def _count(value: t.Any, things: str) -> str:
    count = len(value) if isinstance(value, (list, dict)) else value
    return f"{count} {things[:-1] if count == 1 else things}"


def _lines(value: t.Any, texts: bool = True) -> list[str]:
    """A text, a list or a mapping as lines."""
    if isinstance(value, dict):
        return [f"{key}: {inner}" for key, inner in sorted(value.items())]
    if isinstance(value, list):
        return [", ".join(map(str, item.values())) if isinstance(item, dict) else str(item) for item in value]
    return [str(value)] if texts and value not in (None, "") else []


def hardening(facts: Facts) -> Markup:
    title = "How hard it is"
    scores = table(facts.descriptor.scores if facts.descriptor else None) or table(facts.found("harden").get("scores"))
    boxes = []
    for key, name in (("lynis", "Lynis hardening index"), ("openscap", "OpenSCAP score")):
        row = table(scores.get(key))
        if "after" in row:
            about = row.get("profile") or f"Lynis {row.get('version') or ''}"
            # Of an XCCDF identifier the end is what tells something.
            about = str(about).rpartition("content_profile_")[2].replace("_", " ")
            boxes.append(_gauge(name, row.get("before"), row["after"], about))
    found = table(facts.found("sanitize").get("credentials"))
    scanned = None
    if "scanned" in found:
        told = f"Searched for credentials: {found['scanned']} files, {found.get('findings') or 0} found"
        told += f", {found['allowed']} allowed." if found.get("allowed") else "."
        scanned = tag("p", told, class_="soft")
    if not boxes:
        boxes = [tag("p", "There are no hardening scores.", class_="soft")]
    return section("hardening", title, tag("div", boxes, class_="gauges"), scanned)


def _gauge(name: str, before: float | None, after: float, about: str) -> Markup:
    told: Part = "not measured before"
    if before is not None:
        more = round(after - before, 1)
        sign = "+" if more > 0 else "−" if more < 0 else "±"
        kind = "up" if more > 0 else "down" if more < 0 else "soft"
        told = [f"was {score(before)}, ", tag("span", f"{sign}{score(abs(more))}", class_=kind)]
    drawn = plot.gauge(before, after, 100, score(after), f"{name}: {score(after)}")
    return tag("div", drawn, tag("b", name), tag("span", told), tag("p", about, class_="soft"), class_="gauge-box")
