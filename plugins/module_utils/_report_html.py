# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Writing HTML that cannot say anything but what it is meant to: every text is escaped unless it is markup of ours."""

from __future__ import annotations

import html
import typing as t

LONGEST = 2000
"""Characters of one text on the page; what guests say may be longer."""

_VOID = frozenset({"br", "col", "img", "meta", "rect", "path", "circle", "line"})


class Markup(str):
    """Markup that :func:`tag` made, and that is therefore not escaped again."""


Part = t.Union[Markup, str, int, float, None, t.Iterable["Part"]]
"""What can be in an element: texts, numbers, markup, nothing, or several of those."""


def text(value: object) -> Markup:
    """A text as it can stand in HTML, in an attribute too: escaped, without control characters, not too long."""
    found = str(value)
    if len(found) > LONGEST:
        found = found[:LONGEST] + "…"
    plain = "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in found)
    return Markup(html.escape(plain, quote=True))


def join(*parts: Part) -> Markup:
    """The parts one after another."""
    done: list[str] = []
    for part in parts:
        if isinstance(part, Markup):
            done.append(part)
        elif isinstance(part, (str, int, float)):
            done.append(text(part))
        elif part is not None:
            done.append(join(*part))
    return Markup("".join(done))


def tag(element: str, /, *parts: Part, **attributes: object) -> Markup:
    """An element. C(class_) is written C(class), C(stroke_width) C(stroke-width); an attribute that is None is left out."""
    said = "".join(
        f' {key.rstrip("_").replace("_", "-") if key not in _CAMEL else _CAMEL[key]}="{text(value)}"'
        if key != "src"
        else f' src="{html.escape(str(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if element in _VOID and not parts:
        return Markup(f"<{element}{said}>" if element in ("br", "col", "img", "meta") else f"<{element}{said}/>")
    return Markup(f"<{element}{said}>{join(*parts)}</{element}>")


_CAMEL = {"path_length": "pathLength", "view_box": "viewBox"}


def size(count: float) -> str:
    """Bytes for people, by powers of two: C(199 MiB)."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" or abs(count) >= 100 else f"{score(count)} {unit}"
        count /= 1024
    return ""


def score(value: float) -> str:
    """A number with one digit after the point where it has one: C(61), C(83.8)."""
    return f"{value:.1f}".removesuffix(".0")


def span(seconds: float) -> str:
    """A time span for people: C(4.2 s), C(52 s), C(1 min 05 s), C(2 h 10 min)."""
    whole = round(seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def moment(value: object) -> str:
    """A time of a descriptor for people: C(2025-01-31 12:00 UTC)."""
    found = str(value or "")
    return f"{found[:10]} {found[11:16]} UTC" if found[10:11] == "T" and found.endswith("Z") else found
