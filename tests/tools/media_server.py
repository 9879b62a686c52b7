# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A web server on loopback that can do what vendors' servers do: ranges, redirects, and breaking off in the middle."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import threading
import time
import typing as t
import urllib.parse


@dataclasses.dataclass
class File:
    """What is served, and how.

    :param cut: how many bytes each of the next responses sends before the connection is closed.
    :param ranges: whether ranges are understood.
    :param validators: whether ETag and Last-Modified are sent.
    :param length: whether Content-Length is sent (else the end of the connection ends the file).
    :param statuses: the status of each of the next responses, before it is 200 or 206.
    :param moved_to: where it is instead; ``moved_by`` is the status that says so.
    :param pause: seconds after each piece of ``piece`` bytes.
    """

    content: bytes
    cut: list[int] = dataclasses.field(default_factory=list)
    ranges: bool = True
    validators: bool = True
    length: bool = True
    statuses: list[int] = dataclasses.field(default_factory=list)
    moved_to: str | None = None
    moved_by: int = 302
    pause: float = 0.0
    piece: int = 65536

    @property
    def etag(self) -> str:
        """A strong validator."""
        return f'"{hashlib.sha256(self.content).hexdigest()[:16]}"'


@dataclasses.dataclass
class Request:
    """One request that came, how many bytes of the file were sent for it, and whether the client went away."""

    path: str
    range: str | None
    status: int = 0
    sent: int = 0
    broken: bool = False


class MediaServer:
    """Serves :class:`File` by path until :meth:`close`; notes every request."""

    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self.requests: list[Request] = []
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner._answer(self)

            def log_message(self, format: str, *args: t.Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def put(self, path: str, content: bytes, **how: t.Any) -> str:
        """Serve ``content`` at ``path``; returns its URL."""
        self.files[path] = File(content, **how)
        return f"{self.url}{path}"

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(handler.path).path)
        request = Request(path, handler.headers.get("Range"))
        self.requests.append(request)
        file = self.files.get(path)
        body, headers = b"", {}
        if file is None:
            request.status = 404
        elif file.statuses:
            request.status = file.statuses.pop(0)
        elif file.moved_to:
            request.status, headers = file.moved_by, {"Location": file.moved_to}
        else:
            body, request.status, headers = self._select(file, request.range, handler.headers.get("If-Range"))
        handler.close_connection = True
        handler.send_response(request.status)
        for name, value in headers.items():
            handler.send_header(name, value)
        if not file or file.length or request.status >= 300:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if file and file.cut and body:
            body = body[: file.cut.pop(0)]
        try:
            piece = file.piece if file else 65536
            for start in range(0, len(body), piece):
                chunk = body[start : start + piece]
                handler.wfile.write(chunk)
                request.sent += len(chunk)
                if file and file.pause:
                    time.sleep(file.pause)
        except ConnectionError:
            request.broken = True

    def _select(self, file: File, wanted: str | None, condition: str | None) -> tuple[bytes, int, dict[str, str]]:
        headers = {"Content-Type": "application/octet-stream"}
        if file.validators:
            headers |= {"ETag": file.etag, "Last-Modified": "Mon, 06 Jan 2025 10:00:00 GMT"}
        if not (wanted and file.ranges) or (condition and condition != file.etag):
            return file.content, 200, headers
        first, _dash, last = wanted.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(file.content)), len(file.content) - 1)
        if start >= len(file.content):
            return b"", 416, {"Content-Range": f"bytes */{len(file.content)}"}
        headers["Content-Range"] = f"bytes {start}-{end}/{len(file.content)}"
        return file.content[start : end + 1], 206, headers
