# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The page of a report, from its head to its foot; what was made and how long it took."""

from __future__ import annotations

import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils import _report_plot as plot
from ansible_collections.cloudimg.factory.plugins.module_utils._report_data import Boot, Facts, data_uri, table
from ansible_collections.cloudimg.factory.plugins.module_utils._report_html import (
    Markup,
    Part,
    moment,
    score,
    size,
    span,
    tag,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._report_judgement import checks, hardening, secant
from ansible_collections.cloudimg.factory.plugins.module_utils._report_parts import (
    artifacts,
    changes,
    packages,
    provenance,
    section,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._report_style import STYLE
from ansible_collections.cloudimg.factory.plugins.module_utils._versions import COLLECTION

_WORDS = {"pass": "Passed", "fail": "Failed", "override": "Let through", "none": "Not assessed"}
_SIGNS = {"pass": "M12 21l6 6 11-13", "fail": "M13 13l14 14M27 13L13 27", "override": "M20 10v13M20 28v1"}
_EVENTS = {"ssh": "SSH answers", "login": "login", "cloud_init": "cloud-init done"}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def render(facts: Facts) -> str:
    """The whole page: the same bytes for the same facts."""
    title = facts.descriptor.title if facts.descriptor else facts.name
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("title", f"{facts.name} {facts.version}: {_WORDS[facts.verdict]}"),
        tag("style", Markup(STYLE)),
    )
    parts: list[Part] = [
        _header(facts, title),
        _note(facts),
        _tiles(facts),
        _timeline(facts),
        tag("div", _boots(facts), hardening(facts), class_="two"),
        _screens(facts),
        checks(facts),
        secant(facts),
        _sizes(facts),
        changes(facts),
        packages(facts),
        artifacts(facts),
        provenance(facts),
        tag("footer", f"Written by cloudimg.factory {COLLECTION}. Times are UTC, sizes by powers of 1024."),
    ]
    body = tag("body", tag("main", parts))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _header(facts: Facts, title: str) -> Markup:
    build = facts.descriptor
    told = [facts.name, facts.version]
    if build:
        told += [f"{build.os.distribution} {build.os.version}", build.os.arch, f"made {moment(build.created)}"]
        if build.expires:
            told.append(f"expires {build.expires[:10]}")
    sign = tag(
        "svg",
        tag("circle", cx=20, cy=20, r=18.5, fill="none", stroke="#fff", stroke_width=2.5),
        tag(
            "path",
            d=_SIGNS.get(facts.verdict, "M12 20h16"),
            fill="none",
            stroke="#fff",
            stroke_width=4,
            stroke_linecap="round",
            stroke_linejoin="round",
        ),
        view_box="0 0 40 40",
        aria_hidden="true",
    )
    words = tag("div", tag("h1", title), tag("p", " · ".join(told), class_="facts"))
    about = tag("p", build.description) if build and build.description and build.description != title else None
    badge = tag("div", sign, tag("span", _WORDS[facts.verdict]), class_=f"badge {facts.verdict}", id="verdict")
    return tag("header", tag("div", words, about), badge)


def _note(facts: Facts) -> Markup | None:
    """Why it has not simply passed."""
    failed = [check for check in facts.checks if check.state == "fail"]
    several = len({check.boot for check in facts.checks}) > 1
    listed = [
        tag(
            "li",
            tag("b", check.name.replace("_", " ")),
            f" ({check.boot})" if several and check.boot else "",
            f": {check.detail}",
        )
        for check in failed
    ]
    what = [tag("b", "What failed"), tag("ul", listed)] if listed else []
    if facts.verdict == "override":
        given = facts.override
        why = [
            tag("b", f"Let through by {given.get('by', '')}, {moment(given.get('at'))}: "),
            f"{given.get('reason', '')}",
        ]
        return tag("div", tag("p", why), what, class_="note override")
    if facts.verdict == "fail":
        return tag("div", what or tag("p", facts.problem or ""), class_="note fail")
    if facts.verdict == "none":
        failure = table(facts.build.get("failure"))
        told = f"The stage {failure['stage']} failed: {failure.get('message', '')}" if failure.get("stage") else ""
        return tag(
            "div", tag("p", f"No verdict: {facts.problem}."), tag("p", told) if told else None, class_="note none"
        )
    return None


def _tiles(facts: Facts) -> Markup | None:
    found: list[tuple[Part, str]] = []
    if facts.descriptor:
        first = facts.descriptor.artifacts[0]
        found.append((size(first.size), f"{first.format}, a disk of {size(first.virtual_size)}"))
    if facts.packages is not None:
        found.append((str(len(facts.packages)), "packages"))
    quickest = [boot.timings["ssh"] for boot in facts.boots if "ssh" in boot.timings]
    if quickest:
        found.append(
            (span(min(quickest)), f"boot to SSH ({facts.assessment.get('accelerator') or 'accelerator unknown'})")
        )
    lynis = table((facts.descriptor.scores or {}).get("lynis") if facts.descriptor else None)
    if lynis:
        before = f"Lynis index, was {score(lynis['before'])}" if "before" in lynis else "Lynis index"
        found.append((score(lynis["after"]), before))
    if facts.checks:
        passed = sum(check.state == "ok" for check in facts.checks)
        found.append((f"{passed} / {len(facts.checks)}", "checks passed"))
    if facts.stages:
        found.append((span(sum(stage.seconds for stage in facts.stages)), "to build it"))
    boxes = [tag("div", tag("b", value), tag("span", told), class_="tile-box") for value, told in found]
    return tag("div", boxes, class_="tiles") if boxes else None


def _timeline(facts: Facts) -> Markup:
    if not facts.stages:
        return section(
            "timeline", "How long it took", tag("p", "The times of the stages are not known.", class_="soft")
        )
    whole = sum(stage.seconds for stage in facts.stages) or 1
    drawn: list[Markup] = []
    begin = 0.0
    for index, stage in enumerate(facts.stages):
        told = span(stage.seconds) + (", from the cache" if stage.cached else "")
        piece = (
            plot.percent(begin, whole),
            plot.percent(stage.seconds, whole),
            f"s{index % 10}" + (" cached" if stage.cached else ""),
            f"{stage.name}: {told}, from {moment(stage.began)}",
        )
        value = tag("span", "cached" if stage.cached else span(stage.seconds), class_="v")
        if stage.pause:
            drawn.append(tag("p", f"taken up again {moment(stage.began)}", class_="soft"))
        kind = "row dim" if stage.cached else "row"
        drawn.append(tag("div", tag("span", stage.name), plot.strip([piece], told), value, class_=kind))
        begin += stage.seconds
    scale = tag("div", tag("span"), plot.axis(whole, _scale), tag("span"), class_="row")
    first = facts.stages[0].began
    cached = sum(stage.cached for stage in facts.stages)
    told = f"{span(whole)} in {len(facts.stages)} stages, from {moment(first)}."
    if cached:
        told += f" {cached} came from the cache."
    return section("timeline", "How long it took", drawn, scale, tag("p", told, class_="soft"))


def _scale(seconds: float) -> str:
    if seconds == 0:
        return "0"
    return f"{seconds:g} s" if seconds < 120 else f"{seconds / 60:g} min" if seconds < 7200 else f"{seconds / 3600:g} h"


def _boots(facts: Facts) -> Markup:
    boots = [boot for boot in facts.boots if boot.timings]
    title = "How it boots"
    if not boots:
        return section(
            "boots",
            title,
            tag("p", "No boot came so far." if facts.boots else "It has not been booted.", class_="soft"),
        )
    whole = max(max(boot.timings.values()) for boot in boots) or 1
    kinds = list(dict.fromkeys([*_EVENTS, *sorted(key for boot in boots for key in boot.timings)]))
    kinds = [kind for kind in kinds if any(kind in boot.timings for boot in boots)]
    colours = {kind: f"s{index % 10}" for index, kind in enumerate(kinds)}
    drawn = [_boot(boot, whole, colours) for boot in boots]
    scale = tag("div", tag("span"), plot.axis(whole, lambda value: f"{value:g} s"), tag("span"), class_="row")
    legend = plot.legend([(colours[kind], _EVENTS.get(kind, kind.replace("_", " "))) for kind in kinds])
    heard = [
        tag("div", tag("h3", f"listens after {boot.name}"), tag("div", map(_listener, boot.listening), class_="chips"))
        for boot in facts.boots
        if boot.listening
    ]
    return section("boots", title, drawn, scale, legend, heard)


def _boot(boot: Boot, whole: float, colours: t.Mapping[str, str]) -> Markup:
    pieces, begin = [], 0.0
    for kind, seconds in sorted(boot.timings.items(), key=lambda item: item[1]):
        told = f"{_EVENTS.get(kind, kind)}: {span(seconds)}"
        pieces.append((plot.percent(begin, whole), plot.percent(seconds - begin, whole), colours[kind], told))
        begin = seconds
    told = ", ".join(piece[3] for piece in pieces)
    name = tag("span", boot.name, title=boot.about)
    return tag("div", name, plot.strip(pieces, told), tag("span", span(begin), class_="v"), class_="row")


def _listener(row: t.Mapping[str, t.Any]) -> Markup:
    place = f"{row.get('proto', '')} {row.get('address', '')}:{row.get('port', '')}"
    return tag("span", tag("code", place), f" {row.get('process') or ''}")


def _screens(facts: Facts) -> Markup | None:
    shown = []
    for boot in facts.boots:
        told = tag("figcaption", f"{boot.name}, at the end of the assessment")
        if boot.picture:
            picture = tag("img", src=data_uri(boot.picture), alt=f"The screen of {boot.name}")
            shown.append(tag("figure", picture, told))
        elif boot.picture_path:
            shown.append(tag("figure", tag("p", f"{boot.picture_path} cannot be shown here."), told))
    return section("screens", "What its screen showed", tag("div", shown, class_="shots")) if shown else None


def _sizes(facts: Facts) -> Markup:
    title = "What fills the disk"
    if not facts.sizes:
        return section("sizes", title, tag("p", "The sizes of its directories are not known.", class_="soft"))
    groups = plot.tree(facts.sizes)
    total = sum(sum(leaves.values()) for leaves in groups.values())
    names = [
        (f"s{index % 8}", f"{name} {size(sum(leaves.values()))}") for index, (name, leaves) in enumerate(groups.items())
    ]
    lines = [
        tag(
            "tr",
            tag("td", path),
            tag("td", size(count), class_="n"),
            tag("td", f"{100 * count / total:.1f} %", class_="n"),
        )
        for leaves in groups.values()
        for path, count in leaves.items()
    ]
    listed = tag("details", tag("summary", "all of them"), tag("table", lines))
    return section("sizes", title, plot.tree_map(facts.sizes), plot.legend(names[:8]), listed)
