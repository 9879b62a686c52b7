# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""OpenNebula's templates: rendered from Jinja2, read, and written.

A site's template is read before anything is sent: what it says is data, and the names by which a build is found again are added
after it.
What is sent is XML, which the front-end takes as well as its own syntax, and which has no trouble with quotation marks.
"""

from __future__ import annotations

import re
import typing as t
from pathlib import Path
from xml.sax.saxutils import escape

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._libraries import need
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors

Value = t.Union[str, t.Mapping[str, str]]
Pairs = list[tuple[str, t.Any]]
"""Names (in capitals) and values in their order: a string, or a dictionary of strings; a name may be there more than once."""

IMAGE = """\
NAME = {{ (image ~ "-" ~ version ~ "@" ~ datastore.name) | one }}
DESCRIPTION = {{ (title ~ " - " ~ description if description else title) | one }}
TYPE = "OS"
FORMAT = {{ format | one }}
DRIVER = {{ format | one }}
DEV_PREFIX = {{ dev_prefix | one }}
PERSISTENT = "{{ "YES" if persistent else "NO" }}"
"""
"""How an image is registered, unless a site has its own."""

TEMPLATE = """\
NAME = {{ (image ~ "@" ~ datastore.name) | one }}
DESCRIPTION = {{ (title ~ " - " ~ description if description else title) | one }}
CPU = {{ (cpu or 1) | one }}
VCPU = {{ (cpu or 1) | one }}
MEMORY = {{ (memory or 1024) | one }}
OS = [ ARCH = {{ os.arch | one }}{% if firmware %}, FIRMWARE = {{ firmware | one }}, MACHINE = "q35"{% endif %} ]
GRAPHICS = [ TYPE = "vnc", LISTEN = "0.0.0.0" ]
CONTEXT = [ {% for name, value in context.items() %}{{ name }} = {{ value | one }}{{ ", " if not loop.last }}{% endfor %} ]
DISK = [ IMAGE_ID = {{ image_id | one }} ]
{% for disk in disks %}
DISK = [ IMAGE_ID = {{ disk.image_id | one }} ]
{% endfor %}
"""
"""The VM template, unless a site has its own."""

DATABLOCK = """\
NAME = {{ (image ~ "-" ~ disk.name ~ "-" ~ disk.size ~ "@" ~ datastore.name) | one }}
DESCRIPTION = {{ ("Empty disk of " ~ title) | one }}
TYPE = "DATABLOCK"
SIZE = {{ disk.size | one }}
FORMAT = {{ disk.format | one }}
DRIVER = {{ disk.format | one }}
DEV_PREFIX = {{ dev_prefix | one }}
PERSISTENT = "NO"
"""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_SPACE = re.compile(r"(?:\s+|#[^\n]*)*")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"', re.S)
_WORD = re.compile(r'[^\s"\[\],=]+')
_LINE = re.compile(r'[^\n"\[\]]+')


def render(text: str, values: t.Mapping[str, t.Any], where: str) -> Pairs:
    """What a Jinja2 template says; raises FactoryError, which names ``where``, for its first mistake.

    The filter C(one) writes a value as OpenNebula does, in quotation marks.
    """
    jinja2 = need("jinja2", "3.0")
    sandbox = need("jinja2.sandbox")
    environment = sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["one"] = quote
    try:
        rendered = environment.from_string(text).render(values)
    except Exception as exc:
        line = getattr(exc, "lineno", None)
        raise FactoryError(
            f"cannot be rendered: {exc}",
            where=where,
            key=f"line {line}" if line else None,
            mend="mend the template; docs/opennebula.md lists the names that it may use",
        ) from exc
    return parse(rendered, where)


def load(path: Path | None, default: str) -> tuple[str, str]:
    """A site's template, or the default one; and how messages call it."""
    if path is None:
        return default, "the template of the collection"
    with explain_os_errors(path):
        try:
            return path.read_text(encoding="utf-8"), str(path)
        except UnicodeDecodeError as exc:
            raise FactoryError("is no UTF-8", where=str(path), mend="save it as UTF-8") from exc


def quote(value: t.Any) -> str:
    """A value in quotation marks."""
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def parse(text: str, where: str) -> Pairs:
    """The attributes in a template as OpenNebula writes it; empty values are left out.

    :raises FactoryError: it is none; names ``where`` and the line.
    """
    at = 0
    found: Pairs = []

    def refuse(problem: str) -> t.NoReturn:
        line = text[:at].count("\n") + 1
        raise FactoryError(problem, where=where, key=f"line {line} as rendered", mend="mend the template")

    def skip() -> None:
        nonlocal at
        match = _SPACE.match(text, at)
        at = match.end() if match else at

    def take(pattern: re.Pattern[str], what: str) -> re.Match[str]:
        nonlocal at
        match = pattern.match(text, at)
        if not match:
            refuse(f"has {text[at : at + 20]!r} where {what} was expected")
        at = match.end()
        return match

    def sign(char: str) -> None:
        nonlocal at
        skip()
        if text[at : at + 1] != char:
            refuse(f"has {text[at : at + 20]!r} where «{char}» was expected")
        at += 1
        skip()

    def value(word: re.Pattern[str]) -> str:
        if text[at : at + 1] == '"':
            return re.sub(r"\\([\"\\])", r"\1", take(_STRING, "a string that ends")[1])
        return take(word, "a value")[0].strip()

    def vector() -> dict[str, str]:
        nonlocal at
        rows: dict[str, str] = {}
        while text[at : at + 1] != "]":
            name = take(_NAME, "a name")[0].upper()
            sign("=")
            rows[name] = value(_WORD)
            skip()
            if text[at : at + 1] == ",":
                sign(",")
            elif text[at : at + 1] != "]":
                refuse(f"has {text[at : at + 20]!r} where «,» or «]» was expected")
        at += 1
        return {name: each for name, each in rows.items() if each}

    skip()
    while at < len(text):
        name = take(_NAME, "a name")[0].upper()
        sign("=")
        if text[at : at + 1] == "[":
            at += 1
            skip()
            rows = vector()
            found += [(name, rows)] if rows else []
        else:
            plain = value(_LINE)
            found += [(name, plain)] if plain else []
        skip()
    return found


def plain(pairs: Pairs, name: str) -> str:
    """A plain attribute's (last) value; empty where there is none."""
    return next((str(value) for key, value in reversed(pairs) if key == name and isinstance(value, str)), "")


def merge(attributes: t.Mapping[str, t.Any], pairs: Pairs) -> dict[str, t.Any]:
    """What an object has after an update: each name of ``pairs`` replaced with all its values, the others as they were."""
    names = {name for name, _value in pairs}
    merged: dict[str, t.Any] = {name: value for name, value in attributes.items() if name not in names}
    for name, value in pairs:
        one = dict(value) if isinstance(value, t.Mapping) else str(value)
        if name not in merged:
            merged[name] = one
        else:
            merged[name] = [*(merged[name] if isinstance(merged[name], list) else [merged[name]]), one]
    return merged


def to_xml(pairs: Pairs) -> str:
    """The template as XML; characters that XML cannot have are left out."""

    def text(value: t.Any) -> str:
        return escape("".join(char for char in str(value) if char in "\t\n\r" or ord(char) >= 32))

    rows = []
    for name, value in pairs:
        if isinstance(value, t.Mapping):
            inner = "".join(f"<{key}>{text(each)}</{key}>" for key, each in value.items())
        else:
            inner = text(value)
        rows.append(f"<{name}>{inner}</{name}>")
    return f"<TEMPLATE>{''.join(rows)}</TEMPLATE>"
