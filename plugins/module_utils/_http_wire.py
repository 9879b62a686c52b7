# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What the HTTP client needs of the wire: trust, files as bodies, and heads that come whole."""

from __future__ import annotations

import dataclasses
import http.client
import re
import ssl
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._libraries import need
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors

_CHUNK = 1 << 18


@dataclasses.dataclass(frozen=True)
class File:
    """A file as the body of a request, or ``size`` bytes of it from ``offset`` on; it is read while it is sent."""

    path: Path
    offset: int = 0
    size: int | None = None

    def length(self) -> int:
        """Bytes that are sent; raises FactoryError where there is no such file."""
        with explain_os_errors(self.path):
            whole = self.path.stat().st_size
        return whole - self.offset if self.size is None else self.size


class Stream:
    """A file-like body of known length, which tells how far it is."""

    def __init__(self, file: File, progress: Progress) -> None:
        self._length = file.length()
        self._left = self._length
        self._path = file.path
        self._progress = progress
        with explain_os_errors(file.path):
            self._stream = file.path.open("rb")
            self._stream.seek(file.offset)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> t.Iterator[bytes]:
        # Only that there is one makes requests stream it; it is read by read().
        while chunk := self.read(_CHUNK):
            yield chunk

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        self._progress.report(done=self._length - self._left, total=self._length)
        # Else a damaged disk would be taken for a broken connection.
        with explain_os_errors(self._path):
            # http.client asks for 16 KiB at a time; more make fewer calls.
            data = self._stream.read(min(self._left, max(size, _CHUNK)))
        self._left -= len(data)
        if not data and self._left:
            raise FactoryError("became shorter while it was sent", where=str(self._path), mend="run this again")
        return data

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def context(ca: Path | None, client: tuple[Path, Path | None, str | None] | None) -> ssl.SSLContext:
    if ca is not None and not ca.exists():
        raise FactoryError("there is no such file or directory", where=str(ca), mend="give the CA's certificates")
    try:
        folder = ca is not None and ca.is_dir()
        trust = ssl.create_default_context(
            cafile=str(ca) if ca and not folder else None, capath=str(ca) if ca and folder else None
        )
    except (OSError, ssl.SSLError) as exc:
        raise FactoryError(
            f"has no certificate that can be read: {said(exc)}",
            where=str(ca),
            mend="give the CA's certificates in PEM",
        ) from exc
    if client:
        certificate, key, passphrase = client
        try:
            # A password in any case: without one OpenSSL would ask the terminal for it.
            trust.load_cert_chain(certificate, key, passphrase or "")
        except (OSError, ssl.SSLError) as exc:
            where = str(key or certificate)
            if isinstance(exc, FileNotFoundError):
                missing = next((str(path) for path in (certificate, key) if path and not path.exists()), where)
                raise FactoryError("there is no such file", where=missing, mend="check that path") from exc
            raise FactoryError(
                f"certificate and key cannot be used: {said(exc)}",
                where=where,
                mend="give a PEM certificate, its key, and the key's passphrase where it has one",
            ) from exc
    return trust


class _Lines:
    """Passes lines on, and remembers the last one."""

    def __init__(self, stream: t.Any) -> None:
        self.stream = stream
        self.last = b""

    def readline(self, *limit: int) -> bytes:
        self.last = bytes(self.stream.readline(*limit))
        return self.last


class _Response(http.client.HTTPResponse):
    """A head that ends before its empty line is an error; http.client takes it for a whole one."""

    def begin(self) -> None:
        lines = _Lines(self.fp)
        self.fp = t.cast("t.Any", lines)
        try:
            super().begin()
        finally:
            self.fp = lines.stream
        if lines.last not in (b"\r\n", b"\n"):
            raise http.client.IncompleteRead(lines.last)


def adapter(requests: t.Any, trust: ssl.SSLContext | None) -> t.Any:
    pools = need("urllib3.connectionpool")
    classes = {}
    for scheme, pool in (("http", pools.HTTPConnectionPool), ("https", pools.HTTPSConnectionPool)):
        connection = type("Connection", (pool.ConnectionCls,), {"response_class": _Response})
        classes[scheme] = type("Pool", (pool,), {"ConnectionCls": connection})

    class Adapter(requests.adapters.HTTPAdapter):  # type: ignore[misc]
        """Uses our context, and no list of authorities but those in it."""

        def init_poolmanager(self, *args: t.Any, **options: t.Any) -> None:
            super().init_poolmanager(*args, **options, ssl_context=trust)
            self.poolmanager.pool_classes_by_scheme = classes

        def proxy_manager_for(self, *args: t.Any, **options: t.Any) -> t.Any:
            manager = super().proxy_manager_for(*args, **options, ssl_context=trust)
            manager.pool_classes_by_scheme = classes
            return manager

        def cert_verify(self, conn: t.Any, url: str, verify: t.Any, cert: t.Any) -> None:
            conn.cert_reqs = "CERT_REQUIRED"

    return Adapter(max_retries=0)


def said(exc: BaseException) -> str:
    """A failure's own words, without the connection or URL that urllib3 puts before them."""
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror
    return re.sub(r"^<[^>]*>:?\s*|^\w+\(.*?\):\s*", "", str(exc)) or type(exc).__name__
