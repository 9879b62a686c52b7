# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Keeping secrets out of messages."""

from __future__ import annotations

import json
import re
import typing as t
from urllib.parse import quote, quote_plus, urlsplit

SECRET_NAMES = re.compile(r"(?i)(token|key|passwd|password|passphrase|secret|session|signature|credential|auth)")
"""Names of headers, and of fields of a query or form, whose values are secret."""


class Masks:
    """Values that no message may show, in whatever form they travel."""

    def __init__(self, values: t.Iterable[str | None] = ()) -> None:
        self._values: set[str] = set()
        for value in values:
            self.add(value)

    def __bool__(self) -> bool:
        return bool(self._values)

    def add(self, value: str | None) -> None:
        """Hide this one from now on; one of less than four characters hides only where it stands alone."""
        if value:
            self._values |= {value, quote(value, safe=""), quote_plus(value), quote(value)}
            self._values |= {json.dumps(value)[1:-1], value.replace("&", "&amp;").replace("<", "&lt;")}

    def hide(self, text: str) -> str:
        """The text with each of them replaced by C(***)."""
        for value in sorted(self._values, key=len, reverse=True):
            text = (
                text.replace(value, "***")
                if len(value) >= 4
                else re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", "***", text)
            )
        return text

    def url(self, url: str) -> str:
        """A URL without user and password, and with C(***) for those values of its query whose names tell secrets."""
        parts = urlsplit(url)
        fields = []
        for field in parts.query.split("&") if parts.query else []:
            name, equals, _value = field.partition("=")
            fields.append(f"{name}=***" if equals and SECRET_NAMES.search(name) else field)
        host = parts.netloc.rpartition("@")[2]
        return self.hide(parts._replace(netloc=host, query="&".join(fields), fragment="").geturl())
