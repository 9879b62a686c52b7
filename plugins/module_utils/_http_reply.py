# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What an HTTP server answered, and the three ways in which a request fails: see _http.py."""

from __future__ import annotations

import dataclasses
import json
import re
import typing as t
import xml.etree.ElementTree as ET

from ansible_collections.cloudimg.factory.plugins.module_utils import _xml
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._masks import Masks

_TITLE = re.compile(rb"(?is)<(title|h1)[^>]*>(.*?)</\1>")
_MARKUP = re.compile(rb"(?s)<[^>]*>")


class Unreachable(FactoryError):
    """The request was never sent: no such host, refused, no TLS.

    :param passing: whether trying again may help.
    """

    def __init__(self, problem: str, *, passing: bool = True, **about: t.Any) -> None:
        super().__init__(problem, **about)
        self.passing = passing


class Unknown(FactoryError):
    """The request was sent, and whether the server has done it is not known: look up before it is repeated."""


class Answered(FactoryError):
    """The server answered with a status that the caller did not expect; :attr:`reply` is that answer."""

    def __init__(self, reply: Reply, problem: str, **about: t.Any) -> None:
        super().__init__(problem, **about)
        self.reply = reply


@dataclasses.dataclass(frozen=True)
class Reply:
    """An answer that came whole. ``where`` is the request as messages name it: C(GET https://example.org/list)."""

    status: int
    headers: t.Mapping[str, str]
    body: bytes
    where: str
    masks: Masks = dataclasses.field(repr=False)

    @property
    def text(self) -> str:
        """The body as text, UTF-8 unless the server says otherwise."""
        match = re.search(r"charset=\"?([\w.-]+)", self.headers.get("Content-Type", ""))
        try:
            return self.body.decode(match[1] if match else "utf-8", "replace")
        except LookupError:
            return self.body.decode("utf-8", "replace")

    def json(self) -> t.Any:
        """The body as JSON; raises FactoryError where it is something else."""
        self._must_be("JSON")
        try:
            return json.loads(self.body)
        except ValueError as exc:
            self._refuse(f"answered with what is no JSON ({exc}): {self.said()}")

    def xml(self) -> ET.Element:
        """The body's root element; raises FactoryError where it is something else, or has a document type."""
        self._must_be("XML")
        try:
            return _xml.parse(self.body, self.where)
        except FactoryError as exc:
            self._refuse(f"answered with what cannot be read: it {exc.problem}")

    def said(self) -> str:
        """What the server said, in one line of at most 200 characters, for messages."""
        if self.is_html():
            title = _TITLE.search(self.body)
            text = _MARKUP.sub(b" ", title[2] if title else self.body[:4096]).decode("utf-8", "replace")
        else:
            text = self.text[:4096]
        text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
        text = self.masks.hide(text)
        return (text[:199] + "…" if len(text) > 200 else text) or "nothing"

    def is_html(self) -> bool:
        """Whether it is a page for people."""
        begin = self.body[:512].lstrip().lower()
        return begin.startswith((b"<!doctype html", b"<html")) or "text/html" in self.headers.get("Content-Type", "")

    def _must_be(self, kind: str) -> None:
        if not self.body.strip():
            self._refuse(f"answered with nothing where {kind} was expected")
        begin = self.body[:512].lstrip().lower()
        # Some servers send XML and JSON under the wrong type; a page betrays itself.
        if begin.startswith((b"<!doctype html", b"<html")):
            self._refuse(f"answered with an HTML page where {kind} was expected: {self.said()}")

    def _refuse(self, problem: str) -> t.NoReturn:
        raise Answered(
            self,
            self.masks.hide(problem),
            where=self.where,
            mend="check the URL, and whether a proxy or a portal is between",
        )
