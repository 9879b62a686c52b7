# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Speaking to an OpenNebula front-end: pyone's calls over our HTTP client, whose failures tell what was done and what was not.

pyone itself would repeat nothing and wait for ever. Here what only reads, or sets a value that it may set twice, is repeated;
what makes an object is not, and a lost answer is :class:`_http.Unknown`, after which the caller looks up.
"""

from __future__ import annotations

import functools
import re
import typing as t
import xml.parsers.expat
import xmlrpc.client
from pathlib import Path

from ansible.module_utils.common.parameters import env_fallback

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._http import DELAYS, Answered, Http, Unknown
from ansible_collections.cloudimg.factory.plugins.module_utils._libraries import need
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

LOOKS = (0.0, 2.0, 5.0)
"""Seconds to wait before each look for what has become of a request without an answer."""

LARGEST = 256 << 20
"""Bytes that an answer may have: a pool of 50 000 images has some 150 MB."""

OPTIONS: dict[str, t.Any] = {
    "api_url": {"type": "str", "required": True, "fallback": (env_fallback, ["ONE_URL"])},
    "username": {"type": "str", "required": True, "fallback": (env_fallback, ["ONE_USERNAME"])},
    "password": {"type": "str", "required": True, "no_log": True, "fallback": (env_fallback, ["ONE_PASSWORD"])},
    "ca_path": {"type": "path"},
    "http_timeout": {"type": "int", "default": 120},
    "unencrypted": {"type": "bool", "default": False},
}
"""The options of the modules that speak to a front-end, see the documentation fragment C(_opennebula)."""

_KINDS = {
    "OneAuthenticationException": "authentication",
    "OneAuthorizationException": "authorization",
    "OneNoExistsException": "missing",
    "OneActionException": "action",
    "OneInternalException": "internal",
}
_QUOTA = re.compile(r"(?i)limit of \S+ reached for|quota")
_SPACE = re.compile(r"(?i)not enough space|no space left")
_TAKEN = re.compile(r"(?i)NAME is already taken by (\w+) (\d+)")
_RESTRICTED = re.compile(r"(?i)not allowed to copy image|RESTRICTED_DIRS|SAFE_DIRS")
_LOCKED = re.compile(r"(?i)\blocked\b")

__all__ = ["LOOKS", "OPTIONS", "Front", "Refused", "connect"]


class Refused(FactoryError):
    """The front-end said no.

    :ivar kind: C(authentication), C(authorization), C(missing), C(action), C(internal), C(quota), C(space), C(taken),
        C(locked), or C(other).
    :ivar said: what it said, without secrets.
    :ivar other: the number of the object that has the name, for C(taken).
    """

    def __init__(self, kind: str, said: str, *, other: int | None = None, **about: t.Any) -> None:
        super().__init__(said, **about)
        self.kind = kind
        self.said = said
        self.other = other


class _Transport:
    """What pyone's proxy sends its requests by."""

    def __init__(self, http: Http) -> None:
        self.http = http
        self.repeat = False

    def request(self, _host: str, _handler: str, body: bytes | str, verbose: bool = False) -> t.Any:
        """Send one call; returns the values of its answer."""
        reply = self.http.request(
            "POST", body=body, headers={"Content-Type": "text/xml"}, repeat=self.repeat, limit=LARGEST
        )
        parser, values = xmlrpc.client.getparser()
        try:
            if b"<!DOCTYPE" in reply.body[:1024] or b"<!ENTITY" in reply.body[:4096]:
                raise ValueError("a document type")
            parser.feed(reply.body)
            parser.close()
            return values.close()
        except (xml.parsers.expat.ExpatError, ValueError, LookupError, TypeError, xmlrpc.client.ResponseError):
            # Something between has answered: whether the front-end got it is not known.
            raise Unknown(
                f"answered with what is no XML-RPC: {reply.said()}",
                where=reply.where,
                mend="check the URL (it ends with /RPC2), and whether a proxy or a portal is between",
            ) from None


class Front:
    """A front-end, as a user sees it.

    :param http: a client whose base is the URL of its XML-RPC interface.
    :ivar requests: how many calls were made.
    """

    def __init__(self, http: Http, username: str, password: str, looks: t.Sequence[float] = LOOKS) -> None:
        self.http = http
        self.looks = looks
        self.requests = 0
        self.username = username
        http.masks.add(password)
        http.masks.add(f"{username}:{password}")
        self._pyone = need("pyone", "6.0")
        self._transport = _Transport(http)
        self._proxy = self._pyone.OneServer(http.base, session=f"{username}:{password}")
        # The proxy has its own transport, which knows no timeout and tells nobody what was sent.
        self._proxy._ServerProxy__transport = self._transport

    def call(self, method: str, *arguments: t.Any) -> t.Any:
        """Call a method, such as C(image.info); returns what pyone makes of the answer.

        :raises Refused: the front-end said no.
        :raises Unknown: whether it was done is not known.
        :raises FactoryError: it cannot be reached, or answers what cannot be read.
        """
        self.requests += 1
        # What sets a value is the same when it is made twice; what makes an object, or replaces all of a template, is not.
        last = method.rpartition(".")[2]
        replaces = last == "update" and arguments[-1:] != (1,)
        self._transport.repeat = last not in ("allocate", "instantiate", "clone") and not replaces
        where = f"one.{method} at {self.http.masks.url(self.http.base)}"
        try:
            return functools.reduce(getattr, method.split("."), self._proxy)(*arguments)
        except self._pyone.OneException as exc:
            raise self._refused(exc, where) from None
        except FactoryError:
            raise
        except xmlrpc.client.Fault as exc:
            raise Refused("other", self.http.masks.hide(exc.faultString), where=where) from None
        except Exception as exc:
            raise Unknown(
                f"answered with what cannot be read: {self.http.masks.hide(str(exc))[:200]}",
                where=where,
                mend="check the URL, and that pyone is as new as the front-end",
            ) from None

    def _refused(self, exc: Exception, where: str) -> Refused:
        said = self.http.masks.hide(re.sub(r"^\[one\.[\w.]+\]\s*", "", " ".join(str(exc).split())))
        kind = _KINDS.get(type(exc).__name__, "other")
        taken = _TAKEN.search(said)
        if taken:
            mend = f"rename {taken[1]} {taken[2]}, which is not of this build, or give a template with another NAME"
            return Refused("taken", said, other=int(taken[2]), where=where, key="NAME", mend=mend)
        for other, pattern, mend in (
            ("quota", _QUOTA, "ask for a larger quota, or remove images that are not needed"),
            ("space", _SPACE, "make room in the datastore, or name another one"),
            ("locked", _LOCKED, "unlock it, or wait until who has locked it is done"),
        ):
            if kind != "authentication" and pattern.search(said):
                return Refused(other, said, where=where, mend=mend)
        mend = {
            "authentication": "check username and password",
            "authorization": "ask the front-end's administrator for that right, or use another account",
            "missing": "check that name or number",
        }.get(kind, "mend what OpenNebula names, then run this again")
        return Refused(kind, said, where=where, mend=mend)

    def make(self, method: str, arguments: t.Sequence[t.Any], made: t.Callable[[], int | None]) -> int:
        """Have an object made; its number. Where the answer is lost, or says that the name is taken, ``made`` looks it up.

        :param made: the number of the object, as it is found there; None where it is not.
        """
        try:
            return int(self.call(method, *arguments))
        except (Unknown, Refused) as lost:
            if isinstance(lost, Refused) and lost.kind in ("authentication", "authorization", "quota"):
                raise
            # Somebody else may just have made the same: then what was refused is there.
            for pause in self.looks if isinstance(lost, Unknown) else (0.0,):
                self.http.pause(pause)
                try:
                    found = made()
                except (Unknown, Answered):
                    continue
                if found is not None:
                    return found
            raise

    def hide(self, text: str) -> str:
        """A text without secrets."""
        return self.http.masks.hide(text)


def connect(given: t.Mapping[str, t.Any], progress: Progress, delays: t.Sequence[float] = DELAYS) -> Front:
    """The front-end that the :data:`OPTIONS` of a module name; raises FactoryError where they cannot be."""
    if ":" in str(given["username"]):
        raise FactoryError("has a colon", key="username", mend="give the user's name alone")
    http = Http(
        str(given["api_url"]),
        ca=Path(given["ca_path"]) if given.get("ca_path") else None,
        secrets=[str(given["password"])],
        timeout=float(given.get("http_timeout") or 120),
        delays=delays,
        progress=progress,
        plain=bool(given.get("unencrypted")),
    )
    return Front(http, str(given["username"]), str(given["password"]))


def restricted(said: str) -> bool:
    """Whether a failed transfer is one of a path from which the datastore takes nothing."""
    return bool(_RESTRICTED.search(said))
