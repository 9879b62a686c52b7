# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Secrets that are known by value: how they may be written in a file, and where they are."""

from __future__ import annotations

import base64
import json
import typing as t
import urllib.parse

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

SHORTEST = 6
"""Characters. What is shorter would be found by chance."""


class Value(t.NamedTuple):
    """One secret; only its number is ever told."""

    number: int
    forms: tuple[bytes, ...]


def values(secrets: t.Sequence[str]) -> list[Value]:
    """How the secrets may be written.

    :raises FactoryError: one is too short to be looked for.
    """
    found = []
    for number, secret in enumerate(secrets, 1):
        text = secret.strip("\r\n")
        if len(text) < SHORTEST:
            raise FactoryError(
                f"has fewer than {SHORTEST} characters, so that it would be found by chance",
                where="secrets",
                key=f"secret {number}",
                mend="leave it out, and better take a longer one",
            )
        found.append(Value(number, forms(text)))
    return found


def forms(text: str) -> tuple[bytes, ...]:
    """A text as it is, in hexadecimal digits, in URLs, in JSON, in UTF-16, and in base64 wherever it begins in a longer text."""
    raw = text.encode("utf-8", "surrogateescape")
    found = {
        raw: None,
        raw.hex().encode(): None,
        raw.hex().upper().encode(): None,
        urllib.parse.quote(text, safe="", errors="surrogateescape").encode(): None,
        json.dumps(text)[1:-1].encode(): None,
        text.encode("utf-16-le", "surrogatepass"): None,
    }
    for before in range(3):
        # The characters that depend on its neighbours are left out, and the form stands for any of them.
        encoded = base64.b64encode(b"\0" * before + raw)
        start = -(-before * 8 // 6)
        end = (before + len(raw)) * 8 // 6
        found[encoded[start:end]] = None
        found[base64.urlsafe_b64encode(b"\0" * before + raw)[start:end]] = None
    return tuple(found)


def hits(data: bytes, wanted: t.Sequence[Value]) -> t.Iterator[tuple[int, int]]:
    """Where secrets are in the data: (offset, number), the first of each."""
    for value in wanted:
        places = [at for at in map(data.find, value.forms) if at >= 0]
        if places:
            yield min(places), value.number
