# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The plots of a report, as inline SVG: bars of time, half-round gauges, a tree map.

Positions along a plot are per cent, sizes of letters are pixels: so a plot is as wide as there is room, and stays legible.
"""

from __future__ import annotations

import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils._report_html import Markup, size, tag, text

_STEPS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 36000, 86400)


def percent(part: float, whole: float) -> float:
    """What C(part) is of C(whole), in per cent; short enough to be written."""
    return round(100 * part / whole, 3) if whole > 0 else 0.0


def _at(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") + "%"


def strip(pieces: t.Sequence[tuple[float, float, str, str]], label: str, height: int = 18) -> Markup:
    """A bar on a track: pieces of (begin, length) in per cent, a CSS class, and what a pointer on it is told."""
    drawn = [
        tag("rect", tag("title", told), x=_at(begin), width=_at(max(length, 0.5)), height=height, rx=3, class_=kind)
        for begin, length, kind, told in pieces
    ]
    track = tag("rect", width="100%", height=height, rx=3, class_="track")
    return tag("svg", track, drawn, width="100%", height=height, role="img", aria_label=label, class_="bar")


def axis(whole: float, told: t.Callable[[float], str]) -> Markup:
    """The scale below bars of seconds from 0 to C(whole)."""
    step = next((step for step in _STEPS if whole / step <= 6), whole / 6 or 1)
    ticks: list[Markup] = []
    value = 0.0
    while value <= whole and len(ticks) < 20:
        place = percent(value, whole)
        anchor = "start" if place < 4 else "end" if place > 96 else "middle"
        ticks.append(tag("line", x1=_at(place), x2=_at(place), y1=0, y2=4, class_="tick"))
        ticks.append(tag("text", told(value), x=_at(place), y=15, text_anchor=anchor))
        value += step
    return tag("svg", ticks, width="100%", height=18, class_="axis", aria_hidden="true")


def gauge(before: float | None, after: float, most: float, told: str, label: str) -> Markup:
    """A half circle that is filled up to C(after), with a mark at C(before)."""
    arc = "M12 66 A54 54 0 0 1 120 66"
    share = min(percent(after, most), 100)
    drawn = [
        tag("path", d=arc, class_="track", path_length=100),
        tag("path", d=arc, class_="fill", path_length=100, stroke_dasharray=f"{share:g} 200"),
    ]
    if before is not None:
        at = min(percent(before, most), 100)
        drawn.append(tag("path", d=arc, class_="mark", path_length=100, stroke_dasharray=f"0 {at:g} 1.2 200"))
    drawn.append(tag("text", told, x=66, y=62, text_anchor="middle"))
    return tag("svg", drawn, view_box="0 0 132 74", class_="gauge", role="img", aria_label=label)


def tree_map(sizes: t.Mapping[str, int], height: int = 360) -> Markup:
    """Rectangles as large as directories: C({"/usr": bytes, "/usr/lib": bytes, …}); what is in none below is one more."""
    groups = tree(sizes)
    total = sum(sum(leaves.values()) for leaves in groups.values())
    drawn: list[Markup] = []
    areas = {name: float(sum(leaves.values())) for name, leaves in groups.items()}
    for index, (name, (x, y, w, h)) in enumerate(squarify(areas, 0, 0, 100, 100 / _RATIO).items()):
        leaves = {path: float(count) for path, count in groups[name].items()}
        for path, place in squarify(leaves, x, y, w, h).items():
            drawn.append(_tile(path, int(leaves[path]), total, place, f"s{index % 8}"))
    told = f"{len(groups)} directories, {size(total)}"
    return tag("svg", drawn, width="100%", height=height, class_="tree", role="img", aria_label=told)


_RATIO = 2.6
"""How wide a tree map is for its height where there is room."""


def _tile(path: str, count: int, total: int, place: tuple[float, float, float, float], kind: str) -> Markup:
    x, y, w, h = place[0], place[1] * _RATIO, place[2], place[3] * _RATIO
    inner: list[Markup] = [
        tag("rect", width="100%", height="100%", class_=kind),
        tag("title", f"{path}: {size(count)}, {percent(count, total):.1f} %"),
    ]
    if w > 6.5 and h > 7:
        # A pixel of the text is at least as wide as this on a narrow page; there only large ones are told.
        inner.append(tag("text", path, x=7, y=18, class_="name"))
        if h > 13:
            inner.append(tag("text", size(count), x=7, y=34, class_="count"))
    room = "wide" if w > 24 else "narrow"
    return tag("svg", inner, x=_at(x), y=_at(y), width=_at(w), height=_at(h), class_=f"tile {room}")


def tree(sizes: t.Mapping[str, int]) -> dict[str, dict[str, int]]:
    """The directories of the first level, each with those below it and the rest of it, the largest first."""
    groups: dict[str, dict[str, int]] = {}
    for path, count in sizes.items():
        top = "/" + path.split("/")[1]
        leaves = groups.setdefault(top, {})
        if path != top:
            leaves[path] = count
    for top, leaves in groups.items():
        rest = sizes.get(top, 0) - sum(leaves.values())
        if rest > 0:
            leaves[f"{top}/…" if leaves else top] = rest
    ordered = {
        top: dict(sorted(leaves.items(), key=lambda item: (-item[1], item[0])))
        for top, leaves in groups.items()
        if sum(leaves.values()) > 0
    }
    return dict(sorted(ordered.items(), key=lambda item: (-sum(item[1].values()), item[0])))


def squarify(
    areas: t.Mapping[str, float], x: float, y: float, w: float, h: float
) -> dict[str, tuple[float, float, float, float]]:
    """Rectangles (x, y, width, height) with these areas that fill the one given, as square as they get.

    The algorithm is that of Bruls, Huizing and van Wijk (Squarified Treemaps, 2000).
    """
    whole = sum(areas.values())
    if whole <= 0:
        return {}
    scale = w * h / whole
    waiting = sorted(((name, area * scale) for name, area in areas.items() if area > 0), key=lambda i: (-i[1], i[0]))
    placed: dict[str, tuple[float, float, float, float]] = {}
    while waiting:
        side = min(w, h)
        count = 1
        while count < len(waiting) and _worst(waiting[: count + 1], side) <= _worst(waiting[:count], side):
            count += 1
        row, waiting = waiting[:count], waiting[count:]
        thick = sum(area for _name, area in row) / side if side else 0
        along = 0.0
        for name, area in row:
            long = area / thick if thick else 0
            placed[name] = (x, y + along, thick, long) if w >= h else (x + along, y, long, thick)
            along += long
        if w >= h:
            x, w = x + thick, max(w - thick, 0)
        else:
            y, h = y + thick, max(h - thick, 0)
    return placed


def _worst(row: t.Sequence[tuple[str, float]], side: float) -> float:
    """The worst ratio of sides in a row of rectangles along ``side``."""
    total = sum(area for _name, area in row)
    if total <= 0 or side <= 0:
        return float("inf")
    return max(max(side**2 * area / total**2, total**2 / (side**2 * area)) for _name, area in row)


def legend(entries: t.Sequence[tuple[str, str]]) -> Markup:
    """What the colours of the CSS classes mean."""
    return tag("ul", [tag("li", tag("i", class_=kind), text(name)) for kind, name in entries], class_="legend")
