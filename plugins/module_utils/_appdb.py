# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""EGI AppDB's REST API 1.0: asking it, and bringing a version of a virtual appliance into a state.

PUT creates and POST updates. Errors come in attributes of the reply's root element, with whatever HTTP status. What is
there is always looked up first; a request whose answer is lost is looked up again and never repeated blindly, since a PUT
that is made twice would make a second working version.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t
import xml.etree.ElementTree as ET
from pathlib import Path
from urllib.parse import quote

from ansible_collections.cloudimg.factory.plugins.module_utils import _appdb_document as document
from ansible_collections.cloudimg.factory.plugins.module_utils._appdb_document import Appliance, Refusal, Version
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import Cancelled, FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._http import Answered, Http, Reply, Unknown
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

LOOKS = (0.0, 2.0, 5.0)
"""Seconds to wait before each look for what has become of a request without an answer."""

OPTIONS: dict[str, t.Any] = {
    "api_url": {"type": "str", "required": True},
    "appliance": {"type": "str", "required": True},
    "access_token": {"type": "str", "no_log": True},
    "username": {"type": "str"},
    "password": {"type": "str", "no_log": True},
    "api_key": {"type": "str", "no_log": True},
    "user_id": {"type": "str"},
    "session_id": {"type": "str", "no_log": True},
    "ca_path": {"type": "path"},
    "http_timeout": {"type": "int", "default": 120},
}
"""The options of the modules that speak to the API, see the documentation fragment C(_appdb)."""

_MENDS = {
    "1": "check the credentials, and whether they may manage the virtual appliances of this software",
    "2": "check the appliance's number or name, and the URL",
    "6": "run this again later",
}


def credentials(given: t.Mapping[str, t.Any]) -> dict[str, str]:
    """The parameters by which AppDB knows a user (C(library/restapi_base.php), authenticate).

    :param given: ``access_token``; or ``username``, ``password`` and ``api_key``; or ``user_id``, ``password`` (the token
        of a session), ``session_id`` and ``api_key``.
    :raises FactoryError: none of these is whole, or more than one is given.
    """
    ways = {
        "access_token": {"access_token": "accesstoken"},
        "username": {"username": "username", "password": "passwd", "api_key": "apikey"},
        "user_id": {"user_id": "userid", "password": "passwd", "api_key": "apikey", "session_id": "sessionid"},
    }
    named = [key for key in ways if given.get(key)]
    if len(named) != 1:
        problem = "credentials are missing" if not named else f"{' and '.join(named)} cannot be given together"
        raise FactoryError(
            problem, key="access_token", mend="give access_token, or username, password and api_key, or a session"
        )
    names = ways[named[0]]
    missing = [key for key in names if not given.get(key)]
    if missing:
        raise FactoryError(f"is missing beside {named[0]}", key=missing[0], mend=f"give {', '.join(names)}")
    return {sent: str(given[key]) for key, sent in names.items()}


class AppDb:
    """One virtual appliance in AppDB.

    :param http: a client whose base is the API's (it ends with C(/rest/1.0/)).
    :param software: the number of its software, or C(s:<name>).
    :param known: the :func:`credentials`; empty: only what everybody may see is told.
    """

    def __init__(self, http: Http, software: str, known: t.Mapping[str, str], looks: t.Sequence[float] = LOOKS) -> None:
        if not re.fullmatch(r"\d+|s:[A-Za-z0-9._-]+", software):
            raise FactoryError(
                f"{software!r} is no number and no name", key="appliance", mend="give a number, or s:<name in the URL>"
            )
        self.software = software
        self._http = http
        self._known = dict(known)
        self._looks = looks
        for name, value in self._known.items():
            if name not in ("username", "userid"):
                http.masks.add(value)

    def get(self) -> Appliance:
        """What is there."""
        return document.parse(self._ask("GET", self._path("virtualization")))

    def number(self, there: Appliance) -> str:
        """The number of the software, which documents need; asked for where ``there`` does not tell it."""
        if self.software.isdigit() or there.number:
            return self.software if self.software.isdigit() else there.number
        number = document.software_number(self._ask("GET", self._path("")))
        if not number:
            raise FactoryError("has no number in AppDB", where=self.software, key="appliance", mend=_MENDS["2"])
        return number

    def change(self, method: str, xml: bytes, done: t.Callable[[Appliance], bool]) -> None:
        """Have a document acted upon. A lost answer is no failure where ``done`` finds in AppDB what it asked for."""
        try:
            if method == "PUT":
                self._ask("PUT", self._path("virtualization"), xml)
            else:
                self._ask("POST", self._path("virtualization"), xml)
        except Cancelled:
            raise
        except (Unknown, Answered) as lost:
            # An answer that cannot be read leaves it as open as one that did not come.
            if isinstance(lost, Answered) and not 200 <= lost.reply.status < 300:
                raise
            for pause in self._looks:
                self.pause(pause)
                try:
                    if done(self.get()):
                        return
                except (Unknown, Answered):
                    continue
            raise

    def pause(self, seconds: float) -> None:
        """Wait, and show signs of life."""
        self._http.pause(seconds)

    def phase(self, text: str) -> None:
        """Say what is being waited for."""
        self._http.progress.phase(text)

    def _path(self, rest: str) -> str:
        return f"applications/{quote(self.software, safe=':')}{'/' if rest else ''}{rest}"

    def _ask(self, method: str, path: str, xml: bytes | None = None) -> ET.Element:
        options: dict[str, t.Any] = {"params": self._known}
        if method == "PUT":
            options |= {"body": xml, "headers": {"Content-Type": "application/xml"}}
        elif xml is not None:
            # In fields of the form they are not written into the server's log, as a query is.
            options = {"body": {**self._known, "data": xml.decode("utf-8")}}
        try:
            reply = self._http.request(method, path, **options)
        except Answered as exc:
            refusal = _refusal(exc.reply)
            if refusal:
                raise Answered(exc.reply, self._http.masks.hide(refusal.text), **_about(exc.reply, refusal)) from None
            raise
        root = reply.xml()
        if root.tag != f"{{{document.APPDB}}}appdb":
            raise Answered(
                reply, f"answered with another document ({root.tag})", where=reply.where, mend="check the API's URL"
            )
        refusal = Refusal.of(root)
        if refusal:
            # A status of its own, so that it is not taken for an answer that was lost.
            refused = dataclasses.replace(reply, status=reply.status if reply.status >= 400 else 400)
            raise Answered(refused, self._http.masks.hide(refusal.text), **_about(reply, refusal))
        return root


def connect(given: t.Mapping[str, t.Any], progress: Progress, *, must_write: bool) -> AppDb:
    """The appliance that the :data:`OPTIONS` of a module name; raises FactoryError where they contradict each other."""
    names = ("access_token", "username", "password", "api_key", "user_id", "session_id")
    known = credentials(given) if must_write or any(given.get(name) for name in names) else {}
    base = str(given["api_url"])
    http = Http(
        base if base.endswith("/") else f"{base}/",
        ca=Path(given["ca_path"]) if given.get("ca_path") else None,
        secrets=[given.get(name) for name in names if OPTIONS[name].get("no_log")],
        timeout=float(given.get("http_timeout") or 120),
        progress=progress,
    )
    return AppDb(http, str(given["appliance"]), known)


def _refusal(reply: Reply) -> Refusal | None:
    try:
        return Refusal.of(reply.xml())
    except FactoryError:
        return None


def _about(reply: Reply, refusal: Refusal) -> dict[str, str]:
    mend = _MENDS.get(refusal.number, "mend what AppDB names, then run this again")
    return {"where": reply.where, "mend": mend}


def same_version(there: Appliance, version: str) -> list[Version]:
    """Those that go by a version, the published one first, then the working one; AppDB does not tell cases apart."""
    found = [
        each for each in there.versions if each.version.strip().lower() == version.lower() and each.status != "deleted"
    ]
    return sorted(found, key=lambda each: (not each.published or each.archived, not each.published, not each.working))
