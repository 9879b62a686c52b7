# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""A StratusLab Marketplace over HTTP (StratusLab/marketplace 2016: MarketPlaceApplication, MDataResource, MDatumResource).

An entry is known by identifier, e-mail address and the time of its endorsement, and is never changed or removed: a newer one of
the same identifier and address takes its place.
"""

from __future__ import annotations

import dataclasses
import html
import re
import typing as t
from urllib.parse import quote, unquote, urlsplit

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._http import Answered, Http, Reply, Unknown
from ansible_collections.cloudimg.factory.plugins.module_utils._stratuslab_document import (
    DCTERMS,
    EMAIL,
    IDENTIFIER,
    RDF,
    SLREQ,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._stratuslab_rules import is_date
from ansible_collections.cloudimg.factory.plugins.module_utils._stratuslab_signature import LARGEST

STATUSES = ("valid", "deprecated", "expired")
"""What entries can be asked for by; each has one of them."""

_XML = {"Accept": "application/xml, application/rdf+xml;q=0.9"}


_HEAD = re.compile(r"(?is)^.*<body[^>]*>|<[^>]*>")


@dataclasses.dataclass(frozen=True, order=True)
class Entry:
    """The coordinates of an entry."""

    identifier: str
    email: str
    created: str

    def path(self) -> str:
        """Its address below C(metadata/)."""
        return "/".join(quote(part, safe="@") for part in (self.identifier, self.email, self.created))


class Marketplace:
    """A Marketplace at ``url``, with or without the C(/metadata) at its end; ``http`` is made without a base."""

    def __init__(self, url: str, http: Http) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise FactoryError(
                "is no URL of a server",
                where=http.masks.url(url),
                key="marketplace",
                mend="give one with http or https",
            )
        self.url = url.rstrip("/")
        if self.url.endswith("/metadata"):
            self.url = self.url[: -len("/metadata")]
        self.http = http

    def link(self, entry: Entry) -> str:
        """The URL of an entry."""
        return f"{self.url}/metadata/{entry.path()}"

    def latest(self, identifier: str, email: str) -> Entry | None:
        """The newest entry of an image by an endorser, whatever its status; None where there is none."""
        found = [entry for status in STATUSES for entry in self.listing(status, identifier, email)]
        return max(found, key=lambda entry: entry.created, default=None)

    def listing(self, status: str, identifier: str | None = None, email: str | None = None) -> list[Entry]:
        """The newest entries of each image and endorser that have that status.

        :raises FactoryError: the server does not answer as a Marketplace does, or with entries that were not asked for.
        """
        path = "".join(f"/{quote(part, safe='@')}" for part in (identifier, email) if part)
        url = f"{self.url}/metadata{path}"
        reply = self.http.request("GET", url, params={"status": status}, headers=_XML, accept=(200, 404))
        if reply.status == 404:
            return []  # «no metadata matching query found»
        root = reply.xml()
        documents = [root] if root.tag == f"{RDF}RDF" else list(root)
        if root.tag not in ("metadata", f"{RDF}RDF") or any(one.tag != f"{RDF}RDF" for one in documents):
            self._refuse(reply, "answered with XML that is no list of metadata")
        entries = []
        for one in documents:
            endorsement = f"{RDF}Description/{SLREQ}endorsement"
            entry = Entry(
                one.findtext(f"{RDF}Description/{DCTERMS}identifier") or "",
                one.findtext(f"{endorsement}/{SLREQ}endorser/{SLREQ}email") or "",
                one.findtext(f"{endorsement}/{DCTERMS}created") or "",
            )
            fits = IDENTIFIER.fullmatch(entry.identifier) and EMAIL.fullmatch(entry.email) and is_date(entry.created)
            if not fits or identifier not in (None, entry.identifier) or email not in (None, entry.email):
                self._refuse(
                    reply, "lists an entry that was not asked for, or has no identifier, e-mail address or date"
                )
            entries.append(entry)
        return sorted(set(entries))

    def fetch(self, entry: Entry) -> bytes | None:
        """The document of an entry, byte by byte; None where there is none."""
        reply = self.http.request("GET", self.link(entry), headers=_XML, accept=(200, 404), limit=LARGEST)
        if reply.status == 404:
            return None
        if reply.is_html():
            self._refuse(reply, f"answered with an HTML page where metadata were expected: {reply.said()}")
        if not reply.body:
            self._refuse(reply, "answered with nothing where metadata were expected")
        return reply.body

    def post(self, octets: bytes, entry: Entry) -> bool:
        """Send a document. Returns whether it is there now; False where its endorser has to answer a mail first.

        The same document may be sent again: it takes its own place.

        :raises Answered: it was refused. :raises Unknown: it may be there.
        """
        try:
            reply = self.http.request(
                "POST",
                f"{self.url}/metadata",
                headers={**_XML, "Content-Type": "application/rdf+xml"},
                body=octets,
                accept=(201, 202),
            )
        except Unknown:
            # Whatever broke: when it is there, it has been taken.
            if self._is_there(entry):
                return True
            raise
        except Answered as exc:
            mends = {
                400: "mend what it says, or check the clock",
                403: "publish in the Marketplace of which this one is a replica, or ask who may publish here",
                404: "check the URL of the Marketplace",
            }
            status = exc.reply.status
            problem = f"HTTP {status}: {_said(exc.reply)}" if status >= 400 else exc.problem
            raise Answered(exc.reply, problem, where=exc.where, mend=mends.get(status, exc.mend)) from exc
        place = reply.headers.get("Location", "")
        if reply.status == 201 and place:
            tail = tuple(unquote(part) for part in urlsplit(place).path.split("/")[-3:])
            if tail != dataclasses.astuple(entry):
                self._refuse(reply, f"has made another entry than the one that was sent: {place}")
        return reply.status == 201

    def _is_there(self, entry: Entry) -> bool:
        try:
            return self.fetch(entry) is not None
        except FactoryError:
            return False  # what the first failure was is what has to be told

    def _refuse(self, reply: Reply, problem: str) -> t.NoReturn:
        raise FactoryError(
            self.http.masks.hide(problem),
            where=reply.where,
            mend="check that this is the URL of a StratusLab Marketplace",
        )


def _said(reply: Reply) -> str:
    """Why a Marketplace refuses: Restlet says it in the body of a page, whose title is always the same."""
    if not reply.is_html():
        return reply.said()
    words = " ".join(html.unescape(_HEAD.sub(" ", reply.text[:65536])).split())
    words = reply.masks.hide("".join(char for char in words if char.isprintable()))
    return (words[:299] + "…" if len(words) > 300 else words) or reply.said()
