# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""An HTTP client for catalogues: it repeats only what is safe to repeat, and tells what it does not know.

A catalogue is changed by requests that must not be made twice. So a failure is one of three:

- :class:`Unreachable`: the request was never sent; the server is as it was.
- :class:`Unknown`: it was sent, and no whole answer came. The server may have done it: look up before you repeat.
- :class:`Answered`: the server said no; :attr:`Answered.reply` has what it said.

Each request has a connection of its own, so that one that the server has closed meanwhile is not taken for a lost answer. An
answer that ends within its head or before its length is none; one without a length ends where the connection does, and only
its reader can tell whether that is its end. No message shows a password, a token, or a query's secret.
"""

from __future__ import annotations

import email.utils
import http.client
import ipaddress
import re
import ssl
import time
import typing as t
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from ansible_collections.cloudimg.factory.plugins.module_utils import _http_wire
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._http_reply import Answered, Reply, Unknown, Unreachable
from ansible_collections.cloudimg.factory.plugins.module_utils._http_wire import File
from ansible_collections.cloudimg.factory.plugins.module_utils._libraries import need
from ansible_collections.cloudimg.factory.plugins.module_utils._masks import SECRET_NAMES, Masks
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

__all__ = ["Answered", "File", "Http", "Reply", "Unknown", "Unreachable"]

DELAYS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each new attempt."""

LIMIT = 16 << 20
"""Bytes that the body of a reply may have."""

_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "PROPFIND"})
_ANYWHERE = ("Accept", "Range")
"""Headers of a request that another host gets, too, where the server redirects to one: they say what is asked for."""
_LONGEST_WAIT = 60.0
_HOPS = 5
_NOT_DONE = (425, 429, 503)
"""The server says that it has not begun: safe to repeat, whatever the request."""

_PASSING = (408, 500, 502, 504)
_NO_TLS = re.compile(
    r"(?i)wrong.version|http.request|unsupported.protocol|no.protocols|alert.*(certificate|unknown.ca|handshake)"
)


Body = t.Union[bytes, str, File, t.Mapping[str, str], None]


class Http:
    """A client for one server.

    :param base: what relative URLs are relative to; it ends with a slash where its last part is a directory.
    :param auth: user and password, for HTTP basic authentication.
    :param headers: sent with each request, but not to another host that the server redirects to.
    :param ca: a file or (hashed) directory with the certificates that are trusted; by default those of the system.
    :param client_certificate: PEM file with the certificate and its chain, PEM file with the key, passphrase of the key.
    :param secrets: what no message may show, beside the password and the values of headers like Authorization.
    :param timeout: seconds for which the server may be silent.
    :param delays: seconds before each new attempt of what is safe to repeat.
    :param plain: allow secrets to go unencrypted to a host other than this one.
    """

    def __init__(
        self,
        base: str = "",
        *,
        auth: tuple[str, str] | None = None,
        headers: t.Mapping[str, str] | None = None,
        ca: Path | None = None,
        client_certificate: tuple[Path, Path | None, str | None] | None = None,
        secrets: t.Iterable[str | None] = (),
        timeout: float = 60.0,
        delays: t.Sequence[float] = DELAYS,
        progress: Progress | None = None,
        plain: bool = False,
    ) -> None:
        self.base = base
        self.progress = progress or Progress("http")
        self.masks = Masks(secrets)
        self._auth = auth
        self._headers = dict(headers or {})
        self._timeout = timeout
        self._delays = delays
        self._plain = plain
        if auth:
            self.masks.add(auth[1])
        for name, value in self._headers.items():
            if SECRET_NAMES.search(name):
                self.masks.add(value)
                self.masks.add(value.partition(" ")[2])
        # What is given is judged at once; the system's authorities are read when they are needed, since that takes a while.
        self._trust = _http_wire.context(ca, client_certificate) if ca or client_certificate else None
        if client_certificate:
            self.masks.add(client_certificate[2])

    def request(
        self,
        method: str,
        url: str = "",
        *,
        params: t.Mapping[str, str] | None = None,
        headers: t.Mapping[str, str] | None = None,
        body: Body = None,
        accept: t.Container[int] = range(200, 300),
        repeat: bool | None = None,
        limit: int = LIMIT,
    ) -> Reply:
        """Make a request, and return the answer whose status is one of ``accept``.

        :param url: absolute, or relative to the base.
        :param params: appended to the query; values of names such as C(token) are not shown in messages.
        :param body: a mapping is sent as a form (urlencoded).
        :param repeat: whether it is safe to be made twice; by default GET, HEAD, OPTIONS and PROPFIND are.
        :param limit: bytes that the answer may have.
        :raises Unreachable: it was not sent.
        :raises Unknown: it was sent, and no whole answer came (also: HTTP 500, 502, 504 for what is not safe to repeat).
        :raises Answered: another status.
        """
        safe = method.upper() in _SAFE if repeat is None else repeat
        url = self._checked(urljoin(self.base, url) if self.base else url)
        delays = list(self._delays)
        while True:
            wait = 0.0
            try:
                reply = self._once(method.upper(), url, params, headers, body, limit)
            except (Unreachable, Unknown) as exc:
                hopeful = exc.passing if isinstance(exc, Unreachable) else safe
                if not delays or not hopeful:
                    raise
            else:
                passing = reply.status in _NOT_DONE or (safe and reply.status in _PASSING)
                if reply.status in accept or not delays or not passing:
                    return self._judged(reply, accept, safe)
                wait = retry_after(reply.headers.get("Retry-After", ""))
            self.pause(max(delays.pop(0), min(wait, _LONGEST_WAIT)))

    def _judged(self, reply: Reply, accept: t.Container[int], safe: bool) -> Reply:
        if reply.status in accept:
            return reply
        problem = f"HTTP {reply.status}: {reply.said()}"
        if 300 <= reply.status < 400:
            place = self.masks.url(reply.headers.get("Location", "nowhere"))
            raise Answered(
                reply, f"HTTP {reply.status}: it sends us on to {place}", where=reply.where, mend="give that URL"
            )
        if reply.status in _PASSING and not safe:
            raise Unknown(problem, where=reply.where, mend="run this again: it looks up first what has become of it")
        mend = {
            401: "check the credentials",
            403: "check the credentials, and what they may do there",
            404: "check the URL",
            407: "check the proxy settings",
            413: "ask the server's administrator to allow larger files",
            507: "make room on the server",
        }.get(reply.status, "run this again later" if reply.status >= 500 else "check the URL and what was sent")
        raise Answered(reply, problem, where=reply.where, mend=mend)

    def _once(
        self,
        method: str,
        url: str,
        params: t.Mapping[str, str] | None,
        headers: t.Mapping[str, str] | None,
        body: Body,
        limit: int,
    ) -> Reply:
        """One request, and for GET and HEAD those that it is redirected to."""
        origin = _origin(url)
        for _hop in range(_HOPS):
            reply = self._send(method, url, params, headers, body, limit, ours=_origin(url) == origin)
            place = reply.headers.get("Location", "")
            if reply.status not in (301, 302, 303, 307, 308) or method not in ("GET", "HEAD") or not place:
                return reply
            target = urljoin(url, place)
            if urlsplit(target).scheme not in ("https", urlsplit(url).scheme):
                raise Answered(
                    reply,
                    f"sends us on to {self.masks.url(target)}, which is not https",
                    where=reply.where,
                    mend="give the URL of the file itself",
                )
            url, params = self._checked(target), None
        raise Answered(reply, f"redirected {_HOPS} times", where=reply.where, mend="check the URL")

    def _send(
        self,
        method: str,
        url: str,
        params: t.Mapping[str, str] | None,
        headers: t.Mapping[str, str] | None,
        body: Body,
        limit: int,
        *,
        ours: bool,
    ) -> Reply:
        requests = need("requests")
        form = body if isinstance(body, t.Mapping) else {}
        for name, value in (*(params or {}).items(), *form.items()):
            if SECRET_NAMES.search(name):
                self.masks.add(value)
        prepared = requests.Request(
            method,
            url,
            params=params,
            headers={
                "User-Agent": "cloudimg.factory",
                "Accept-Encoding": "identity",
                **(self._headers if ours else {}),
                **{name: text for name, text in (headers or {}).items() if ours or name in _ANYWHERE},
            },
            # A function that does nothing keeps a ~/.netrc from being asked.
            auth=self._auth if ours and self._auth else lambda request: request,
        )
        where = f"{method} {self.masks.url(url)}"
        self._must_be_private(url, where, ours)
        with requests.Session() as session:
            if self._trust is None and url.startswith("https:"):
                self._trust = _http_wire.context(None, None)
            adapter = _http_wire.adapter(requests, self._trust)
            session.mount("https://", adapter)
            session.mount("http://", adapter)
            stream = _http_wire.Stream(body, self.progress) if isinstance(body, File) else None
            try:
                if stream and len(stream):
                    prepared.data = stream
                elif isinstance(body, (bytes, str)):
                    prepared.data = body.encode() if isinstance(body, str) else body
                elif form:
                    prepared.data = dict(form)
                ready = session.prepare_request(prepared)
                if stream and not len(stream):
                    ready.headers["Content-Length"] = "0"
                settings = session.merge_environment_settings(ready.url, {}, True, None, None)
                response = session.send(
                    ready, timeout=self._timeout, allow_redirects=False, stream=True, proxies=settings["proxies"]
                )
                content = self._content(response, where, limit)
            except FactoryError:
                raise
            except Exception as exc:
                # Its cause is not kept: its text has the whole URL.
                raise self._explained(requests, exc, where) from None
            finally:
                if stream:
                    stream.close()
        return Reply(response.status_code, response.headers, content, where, self.masks)

    def _content(self, response: t.Any, where: str, limit: int) -> bytes:
        content = bytearray()
        for chunk in response.iter_content(65536):
            content += chunk
            if len(content) > limit:
                raise FactoryError(f"answered with more than {limit} bytes", where=where, mend="check the URL")
            self.progress.check()
        # Requests with an older urllib3 takes what came for the whole.
        length = response.headers.get("Content-Length", "")
        if length.isdigit() and "Content-Encoding" not in response.headers and response.request.method != "HEAD":
            missing = int(length) - len(content)
            if missing > 0 and response.status_code not in (204, 304):
                raise http.client.IncompleteRead(bytes(content), missing)
        return bytes(content)

    def _checked(self, url: str) -> str:
        try:
            parts = urlsplit(url)
            if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
                return url
        except ValueError:
            pass
        shown = self.masks.hide(re.sub(r"//[^/@]*@", "//", url).partition("?")[0])
        raise FactoryError("is not a URL that can be asked", where=shown, mend="give an http or https URL")

    def _must_be_private(self, url: str, where: str, ours: bool) -> None:
        parts = urlsplit(url)
        # What is masked by now includes the secrets of this request.
        if ours and parts.scheme == "http" and self.masks and not self._plain and not _loopback(parts.hostname or ""):
            raise FactoryError(
                "a password or token would go unencrypted over the network", where=where, mend="give the https URL"
            )

    def _explained(self, requests: t.Any, exc: Exception, where: str) -> FactoryError:
        """What a failure of the network means."""
        reason = _root(exc)
        said = self.masks.hide(_http_wire.said(reason))
        errors = requests.exceptions
        if isinstance(exc, (errors.InvalidURL, errors.MissingSchema, errors.InvalidSchema, errors.InvalidHeader)):
            return FactoryError("is not a URL that can be asked", where=where, mend="check that URL")
        if isinstance(reason, ssl.SSLCertVerificationError):
            problem = f"its certificate is not trusted: {reason.verify_message}"
            mend = "give the CA's certificate, or mend the server's"
            return Unreachable(problem, where=where, mend=mend, passing=False)
        if isinstance(exc, errors.ProxyError):
            return Unreachable(f"the proxy failed: {said}", where=where, mend="check the proxy settings")
        names = {type(each).__name__ for each in _chain(exc)}
        if isinstance(exc, errors.ConnectTimeout) or names & {"NewConnectionError", "NameResolutionError"}:
            mend = "check the host, the network and the proxy settings"
            return Unreachable(f"cannot be reached: {said}", where=where, mend=mend)
        if isinstance(reason, ssl.SSLError) and _NO_TLS.search(said):
            # With TLS 1.3 a server refuses a client's certificate after the request was sent, and before it reads it.
            mend = "check the URL, and the certificates of both sides"
            return Unreachable(f"no TLS connection: {said}", where=where, mend=mend, passing=False)
        if isinstance(exc, errors.Timeout) or "ReadTimeoutError" in names or isinstance(reason, TimeoutError):
            said = f"no answer within {self._timeout:g} s"
        else:
            said = f"the connection broke before the answer was there: {said}"
        return Unknown(said, where=where, mend="run this again: it looks up first what has become of it")

    def pause(self, seconds: float) -> None:
        """Wait, and show signs of life."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.progress.report()
            time.sleep(min(0.5, left))


def _chain(exc: BaseException) -> t.Iterator[BaseException]:
    """A failure and all that it wraps, from the outermost on."""
    seen: list[BaseException] = []
    waiting: list[BaseException] = [exc]
    while waiting:
        each = waiting.pop(0)
        if any(each is known for known in seen):
            continue
        seen.append(each)
        yield each
        inner = [getattr(each, "reason", None), each.__cause__, each.__context__, *each.args]
        waiting += [found for found in inner if isinstance(found, BaseException)]


def _root(exc: BaseException) -> BaseException:
    """The operating system's or OpenSSL's own words, where there are any."""
    found = list(_chain(exc))
    # Those of requests are OSErrors, too; and urllib3 has TypeErrors in its chain that mean nothing.
    modules = ("builtins", "socket", "ssl", "http.client")
    kinds = (OSError, http.client.HTTPException)
    plain = [each for each in found if isinstance(each, kinds) and type(each).__module__ in modules]
    return plain[-1] if plain else found[-1]


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def retry_after(text: str) -> float:
    """Seconds of a Retry-After header (RFC 9110 10.2.3): a number or a date."""
    if text.strip().isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0
