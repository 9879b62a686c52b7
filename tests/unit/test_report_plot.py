# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plots of a report: whether what is drawn is as large as what it stands for."""

from __future__ import annotations

import itertools
import re

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _report_html as html
from ansible_collections.cloudimg.factory.plugins.module_utils import _report_plot as plot

AREAS = {
    "few": {"a": 6.0, "b": 6.0, "c": 4.0, "d": 3.0, "e": 2.0, "f": 2.0, "g": 1.0},
    "one": {"a": 3.0},
    "uneven": {"a": 1e9, "b": 1.0, "c": 1e-3},
    "many": {str(number): float(number) for number in range(1, 60)},
}


@pytest.mark.parametrize("areas", AREAS.values(), ids=AREAS)
@pytest.mark.parametrize(("width", "height"), [(100, 40), (40, 100), (60, 60)])
def test_tree_map_is_true_to_size_and_fills_its_place(areas: dict[str, float], width: float, height: float) -> None:
    placed = plot.squarify(areas, 0, 0, width, height)
    scale = width * height / sum(areas.values())
    assert set(placed) == set(areas)
    for name, (x, y, w, h) in placed.items():
        assert w * h == pytest.approx(areas[name] * scale)
        assert x >= 0 and y >= 0
        assert x + w <= width + 1e-6 and y + h <= height + 1e-6
    for (ax, ay, aw, ah), (bx, by, bw, bh) in itertools.combinations(placed.values(), 2):
        shared = (min(ax + aw, bx + bw) - max(ax, bx), min(ay + ah, by + bh) - max(ay, by))
        assert min(shared) < 1e-6


def test_tree_map_is_squarish() -> None:
    placed = plot.squarify(AREAS["few"], 0, 0, 60, 40)
    assert max(max(w / h, h / w) for _x, _y, w, h in placed.values()) < 3


@pytest.mark.parametrize("areas", [{}, {"a": 0.0}])
def test_nothing_to_draw(areas: dict[str, float]) -> None:
    assert plot.squarify(areas, 0, 0, 10, 10) == {}


def test_directories_and_what_is_in_none_below() -> None:
    sizes = {"/usr": 100, "/usr/lib": 60, "/usr/bin": 30, "/var/lib": 5, "/boot": 20, "/empty": 0}
    assert plot.tree(sizes) == {
        "/usr": {"/usr/lib": 60, "/usr/bin": 30, "/usr/…": 10},
        "/boot": {"/boot": 20},
        "/var": {"/var/lib": 5},
    }


def test_pieces_of_a_bar_are_where_they_should_be() -> None:
    drawn = plot.strip([(25, 50, "s1", "half <of> it")], "a bar")
    assert 'x="25%" width="50%"' in drawn
    assert "<title>half &lt;of&gt; it</title>" in drawn


@pytest.mark.parametrize("whole", [0.4, 3, 59, 61, 400, 3599, 7300, 90000, 10**7])
def test_axis_has_a_few_marks_for_any_time(whole: float) -> None:
    marks = re.findall("<line ", plot.axis(whole, str))
    assert 1 <= len(marks) <= 8


@pytest.mark.parametrize(("after", "dash"), [(0, "0 200"), (50, "50 200"), (100, "100 200"), (250, "100 200")])
def test_gauge_is_filled_up_to_the_score(after: float, dash: str) -> None:
    assert f'stroke-dasharray="{dash}"' in plot.gauge(None, after, 100, str(after), "score")


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (9.97, "10 s"), (59.6, "1 min 00 s"), (112.3, "1 min 52 s"), (3600, "1 h 00 min")],
)
def test_time_spans_for_people(seconds: float, told: str) -> None:
    assert html.span(seconds) == told


@pytest.mark.parametrize(
    ("count", "told"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (8 << 30, "8 GiB"), (208766464, "199 MiB")]
)
def test_sizes_for_people(count: int, told: str) -> None:
    assert html.size(count) == told


def test_only_our_own_markup_is_not_escaped() -> None:
    inner = html.tag("b", "<i>", title='"x" & y')
    assert inner == '<b title="&quot;x&quot; &amp; y">&lt;i&gt;</b>'
    assert html.tag("p", [inner, None, 3, ["<", [">"]]]) == f"<p>{inner}3&lt;&gt;</p>"
    assert html.tag("rect", stroke_width=2, class_="a", title=None) == '<rect stroke-width="2" class="a"/>'
