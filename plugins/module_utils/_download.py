# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Fetching files: resumed where they broke off, hashed while they are written, with signs of life."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import re
import socket
import ssl
import time
import typing as t
import urllib.error
from pathlib import Path
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

from ansible.module_utils import urls

from ansible_collections.cloudimg.factory.plugins.module_utils._digest import Digester
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.plugins.module_utils._state import (
    explain_os_errors,
    need_space,
    remove,
    write_json,
)

DELAYS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each new attempt; one that brought something on begins the series again."""

_CHUNK = 1024 * 1024
_SMALL = 16 * 1024 * 1024
_LONGEST_WAIT = 60.0
_HOPS = 6
_REDIRECTIONS = (301, 302, 303, 307, 308)
_PASSING = (408, 425, 429, 500, 502, 503, 504)


class Interrupted(FactoryError):
    """The network failed; what had come by then is kept, and the next run goes on from there."""


class Refused(FactoryError):
    """The server answered, and it will not be another answer the next time. ``status``: that of HTTP."""

    def __init__(self, status: int, problem: str, **about: t.Any) -> None:
        super().__init__(problem, **about)
        self.status = status


class _Broken(Exception):
    """A failure of the network that may pass. ``wait``: what the server asked for, in seconds."""

    def __init__(self, problem: str, wait: float = 0.0) -> None:
        super().__init__(problem)
        self.wait = wait


class _SentOn(Exception):
    """The server says that the file is elsewhere."""

    def __init__(self, status: int, place: str) -> None:
        super().__init__(place)
        self.status = status
        self.place = place


class _StartOver(Exception):
    """What is there already is no beginning of what the server has now."""


@dataclasses.dataclass(frozen=True)
class Fetched:
    """A file that came whole: its digests, and how many of its bytes were there before."""

    digests: dict[str, str]
    resumed: int


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a server says of a file, without the file.

    :param url: where it is, at the end of all redirections.
    :param hops: status and target of each redirection.
    :param size: bytes, where the server tells.
    :param modified: its Last-Modified, as the server writes it.
    :param head: its first bytes.
    """

    url: str
    hops: tuple[tuple[int, str], ...]
    size: int | None
    modified: str | None
    head: bytes


def is_url(place: str) -> bool:
    """Whether ``place`` is a URL, as against a path."""
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", place))


def local_path(place: str) -> Path | None:
    """The path that ``place`` is, also as ``file:///…``; None for other URLs."""
    if place.startswith("file:///"):
        return Path(unquote(urlsplit(place).path))
    return None if is_url(place) else Path(place).expanduser()


def check_url(url: str, key: str) -> str:
    """A URL as it is sent (spaces and the like escaped); raises FactoryError where it cannot be fetched."""
    try:
        parts = urlsplit(url.strip())
        if parts.scheme in ("http", "https") and parts.hostname:
            escape = "%/:=&?~+!$,;'@()*[]"
            return urlunsplit(
                parts._replace(path=quote(parts.path, escape), query=quote(parts.query, escape), fragment="")
            )
    except ValueError:
        pass
    raise FactoryError("is not a URL that can be fetched", where=shown(url), key=key, mend="give an http or https URL")


def shown(place: str) -> str:
    """A place as it may be shown and kept: a URL without user, password and query, which may be a secret."""
    return re.sub(r"^([^/]*://)[^/@]*@", r"\1", place).partition("?")[0] if is_url(place) else place


class Client:
    """Fetches files for one job.

    :param timeout: seconds for which a server may be silent.
    """

    def __init__(self, progress: Progress, *, timeout: float = 60.0, delays: t.Sequence[float] = DELAYS) -> None:
        self._progress = progress
        self._timeout = timeout
        self._delays = delays

    def read(self, place: str, *, key: str) -> bytes:
        """The content of a small file, from a URL or a path."""
        path = local_path(place)
        if path:
            if not path.is_file():
                raise FactoryError("there is no such file", where=str(path), key=key, mend="check that path")
            with explain_os_errors(path), path.open("rb") as stream:
                return _limited(stream.read(_SMALL + 1), place, key)
        url = check_url(place, key)

        def attempt() -> bytes:
            with _request(url, {}, self._timeout, key) as response:
                try:
                    data = bytes(response.read(_SMALL + 1))
                except (OSError, http.client.HTTPException) as exc:
                    raise _Broken(_said(exc)) from exc
                if len(data) < min(_length(response) or 0, _SMALL):
                    raise _Broken(f"the server closed it after {len(data)} bytes")
                return data

        return _limited(self._persist(attempt, place, key), place, key)

    def fetch(self, url: str, part: Path, algorithms: t.Sequence[str], *, key: str) -> Fetched:
        """Fetch ``url`` into ``part``, after what an earlier :class:`Interrupted` fetch left there.

        The caller ends by :func:`discard`, once the file has moved to its final name or proved wrong.

        :raises Interrupted: the network failed for too long; call this again later.
        :raises FactoryError: it cannot be had, or not be written.
        """
        for _round in range(3):
            transfer = _Transfer(self._progress, check_url(url, key), part, self._timeout, key)
            with contextlib.suppress(_StartOver), explain_os_errors(part), Digester(algorithms) as digester:
                resumed = transfer.rehash(digester)
                self._persist(lambda: transfer.run(digester), url, key, lambda: transfer.done)  # noqa: B023
                break
            discard(part)
        else:
            raise Interrupted("the server's file changes while it is read", where=shown(url), key=key, mend="try later")
        return Fetched(digester.hexdigests(), resumed)

    def look(self, url: str, *, key: str, wanted: int) -> Seen:
        """Ask for the first ``wanted`` bytes of a file, and where it really is; no more of it is read.

        A server that is too slow for them, or knows no ranges, is left after as many as came in time.

        :raises Refused: the server will not have it.
        :raises Interrupted: it cannot be told now.
        """
        where = check_url(url, key)
        hops: list[tuple[int, str]] = []
        for _hop in range(_HOPS):
            try:
                return self._persist(lambda: self._beginning(where, tuple(hops), wanted, key), where, key)  # noqa: B023
            except _SentOn as exc:
                hops.append((exc.status, exc.place))
                where = check_url(exc.place, key)
        raise Refused(310, f"is redirected {_HOPS} times", where=shown(url), key=key, mend="check that URL")

    def _beginning(self, url: str, hops: tuple[tuple[int, str], ...], wanted: int, key: str) -> Seen:
        with _request(url, {"Range": f"bytes=0-{wanted - 1}"}, self._timeout, key, follow=False) as response:
            end, head = time.monotonic() + self._timeout, b""
            while len(head) < wanted and time.monotonic() < end:
                try:
                    chunk = response.read1(wanted - len(head))
                except (OSError, http.client.HTTPException) as exc:
                    raise _Broken(_said(exc)) from exc
                if not chunk:
                    break
                head += chunk
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
            size = (int(total) if total.isdigit() else None) if response.status == 206 else _length(response)
            return Seen(url, hops, size, response.headers.get("Last-Modified"), head)

    def copy(self, source: Path, part: Path, algorithms: t.Sequence[str], *, key: str) -> Fetched:
        """Copy a local file to ``part``."""
        if not source.is_file():
            problem = "is not a file" if source.exists() else "there is no such file"
            raise FactoryError(problem, where=str(source), key=key, mend="give the path of an ISO on the builder")
        with explain_os_errors(source), source.open("rb") as stream, part.open("wb") as sink:
            total = source.stat().st_size
            need_space(part.parent, total, source.name)
            done = 0
            with Digester(algorithms) as digester:
                while chunk := stream.read(_CHUNK):
                    digester.update(chunk)
                    sink.write(chunk)
                    done += len(chunk)
                    self._progress.report(done=done, total=total)
        return Fetched(digester.hexdigests(), 0)

    def _persist(self, attempt: t.Callable[[], _T], place: str, key: str, done: t.Callable[[], int] = lambda: 0) -> _T:
        """Repeat ``attempt`` while the network breaks, with growing delays."""
        failures, mark = 0, done()
        while True:
            try:
                return attempt()
            except _Broken as exc:
                failures = 1 if done() - mark >= _CHUNK else failures + 1
                mark = done()
                if failures > len(self._delays):
                    so_far = f" with {mark} bytes there" if mark else ""
                    raise Interrupted(
                        f"the connection failed {failures} times in a row{so_far}: {exc}",
                        where=shown(place),
                        key=key,
                        mend="check the network and that URL, then run this again: it goes on where it broke off",
                    ) from exc
                self._pause(max(self._delays[failures - 1], min(exc.wait, _LONGEST_WAIT)))

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._progress.report()
            time.sleep(min(0.5, left))


_T = t.TypeVar("_T")


class _Transfer:
    """One file on its way; ``part`` grows by what each :meth:`run` brings."""

    def __init__(self, progress: Progress, url: str, part: Path, timeout: float, key: str) -> None:
        self.done = 0
        self._progress = progress
        self._url = url
        self._part = part
        self._timeout = timeout
        self._key = key
        self._known = _read_validators(part)
        if not self._known.get("validator") or not part.is_file():
            discard(part)
            self._known = {}

    def rehash(self, digester: Digester) -> int:
        """Feed what is there already to ``digester``; returns its size."""
        with contextlib.suppress(FileNotFoundError), self._part.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digester.update(chunk)
                self.done += len(chunk)
                self._progress.report(done=self.done, total=self._known.get("total"))
        return self.done

    def run(self, digester: Digester) -> None:
        """Fetch the rest, or as much as one connection brings."""
        if self.done and self.done == self._known.get("total"):
            return
        headers = {}
        if self.done:
            if not self._known.get("validator"):
                raise _StartOver
            headers = {"Range": f"bytes={self.done}-", "If-Range": self._known["validator"]}
        with _request(self._url, headers, self._timeout, self._key) as response:
            total = self._accept(response)
            if total is not None:
                need_space(self._part.parent, total - self.done, shown(self._url).rpartition("/")[2])
            with self._part.open("ab") as sink:
                while total is None or self.done < total:
                    try:
                        chunk = response.read1(_CHUNK)
                    except (OSError, http.client.HTTPException) as exc:
                        raise _Broken(_said(exc)) from exc
                    if not chunk:
                        break
                    sink.write(chunk)
                    digester.update(chunk)
                    self.done += len(chunk)
                    self._progress.report(done=self.done, total=total)
        if total is not None and self.done < total:
            raise _Broken(f"the server closed it after {self.done} of {total} bytes")

    def _accept(self, response: t.Any) -> int | None:
        """The file's whole size, where the server tells it; raises _StartOver where it does not go on from ``done``."""
        if self.done:
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if response.status != 206 or not match or int(match[1]) != self.done:
                raise _StartOver
            return int(match[2]) if match[2] != "*" else self._known.get("total")
        total = _length(response)
        etag = response.headers.get("ETag", "")
        validator = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
        self._known = {"validator": validator, "total": total}
        write_json(_validators(self._part), self._known)
        return total


def discard(part: Path) -> None:
    """Remove an unfinished file, and what is known of it."""
    remove(part)
    remove(_validators(part))


def _validators(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_validators(part: Path) -> dict[str, t.Any]:
    try:
        return dict(json.loads(_validators(part).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _length(response: t.Any) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _limited(data: bytes, place: str, key: str) -> bytes:
    if len(data) > _SMALL:
        raise FactoryError(f"is larger than {_SMALL >> 20} MiB", where=shown(place), key=key, mend="check that URL")
    return data


def _said(exc: BaseException) -> str:
    return str(exc) or type(exc).__name__


def _request(url: str, headers: dict[str, str], timeout: float, key: str, *, follow: bool = True) -> t.Any:
    """The response to a GET; raises _Broken for what may pass, FactoryError for what will not.

    Without ``follow`` it raises _SentOn where the server redirects.
    """
    mend = "check that URL, the network and the proxy settings"
    try:
        # decompress=False: the bytes as they are on the server are what the checksum is of.
        return urls.open_url(
            url,
            headers={"Accept-Encoding": "identity", **headers},
            timeout=timeout,
            http_agent="cloudimg.factory",
            decompress=False,
            follow_redirects="urllib2" if follow else "none",
        )
    except urllib.error.HTTPError as exc:
        exc.close()
        if exc.code in _REDIRECTIONS and exc.headers and exc.headers.get("Location"):
            raise _SentOn(exc.code, urljoin(url, exc.headers["Location"])) from exc
        if exc.code == 416 and headers:
            raise _StartOver from exc
        if exc.code in _PASSING:
            after = exc.headers.get("Retry-After", "") if exc.headers else ""
            raise _Broken(f"HTTP {exc.code} {exc.reason}", float(after) if after.isdigit() else 0.0) from exc
        mend = "check that URL" if exc.code not in (401, 403, 407) else "check that URL and the rights to it"
        raise Refused(exc.code, f"HTTP {exc.code} {exc.reason}", where=shown(url), key=key, mend=mend) from exc
    except (http.client.InvalidURL, ValueError) as exc:
        raise FactoryError(_said(exc), where=shown(url), key=key, mend=mend) from exc
    except (OSError, http.client.HTTPException, urls.ConnectionError) as exc:
        reason = getattr(exc, "reason", exc)
        unknown_host = isinstance(reason, socket.gaierror) and reason.errno != socket.EAI_AGAIN
        if unknown_host or isinstance(reason, ssl.SSLCertVerificationError):
            raise FactoryError(_said(reason), where=shown(url), key=key, mend=mend) from exc
        raise _Broken(_said(reason)) from exc
