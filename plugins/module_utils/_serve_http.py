# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Files put on a web server: by WebDAV (RFC 4918), or by plain HTTP PUT where it has no more."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

from ansible_collections.cloudimg.factory.plugins.module_utils import _http, _serve
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

_GONE = (404, 410)
_DONE = (200, 201, 202, 204)


class PutStore(_serve.Store):
    """The files below a URL, by GET, HEAD, PUT and DELETE. Whether a half sent file can be seen is up to the server.

    :param http: a client whose base is that URL, with a slash at its end.
    """

    def __init__(self, http: _http.Http) -> None:
        self.where = http.masks.url(http.base)
        self._http = http

    def size(self, name: str) -> int | None:
        reply = self._http.request("HEAD", quote(name), accept=(200, *_GONE))
        if reply.status in _GONE:
            return None
        length = reply.headers.get("Content-Length", "")
        if not length.isdigit():
            raise FactoryError(
                "does not tell the size of a file",
                where=reply.where,
                mend="have the server answer HEAD with Content-Length, without compressing it",
            )
        return int(length)

    def read(self, name: str, limit: int) -> bytes | None:
        reply = self._http.request("GET", quote(name), accept=(200, *_GONE), limit=limit + 1)
        return None if reply.status in _GONE else reply.body

    def put(self, name: str, content: _serve.Content, progress: Progress) -> None:
        self._send(name, content)

    def remove(self, name: str) -> bool:
        reply = self._http.request("DELETE", quote(name), accept=(*_DONE, *_GONE), repeat=True)
        return reply.status not in _GONE

    def _send(self, name: str, content: _serve.Content) -> None:
        # The same file twice is the same as once, so that it may be repeated.
        body = _http.File(content.path) if content.path else content.data
        kind = {"Content-Type": "application/octet-stream"}
        self._http.request("PUT", quote(name), headers=kind, body=body, accept=_DONE, repeat=True)
        self.sent += content.size


class DavStore(PutStore):
    """The same by WebDAV: directories are made, and files appear by MOVE, whole."""

    def put(self, name: str, content: _serve.Content, progress: Progress) -> None:
        folder, slash, last = name.rpartition("/")
        # The same name for the same content, so that what a killed run has left is written over, and goes.
        partial = f"{folder}{slash}.partial-{content.sha256[:16]}-{last}"
        self._make_folders(folder)
        self._send(partial, content)
        try:
            self._move(partial, name)
        except _http.Unknown:
            if self.size(partial) is None:
                return  # it was moved, and the answer was lost
            self._move(partial, name)

    def _move(self, source: str, target: str) -> None:
        headers = {"Destination": self._http.base + quote(target), "Overwrite": "T"}
        self._http.request("MOVE", quote(source), headers=headers, accept=(201, 204))

    def _make_folders(self, folder: str) -> None:
        """Make the directories of a name; that of the store, too, where its server lets us."""
        path = ""
        for part in folder.split("/") if folder else []:
            path += quote(part) + "/"
            # 405: it is there (RFC 4918, 9.3.1)
            reply = self._http.request("MKCOL", path, accept=(201, 405, 409), repeat=True)
            if reply.status == 409:
                self._make_root()
                self._http.request("MKCOL", path, accept=(201, 405), repeat=True)

    def _make_root(self) -> None:
        parts = urlsplit(self._http.base)
        path = "/"
        for part in parts.path.strip("/").split("/"):
            path += part + "/"
            # What lies above may be none of ours to make, or to ask for; the last one's answer tells.
            self._http.request("MKCOL", f"{parts.scheme}://{parts.netloc}{path}", accept=range(200, 500), repeat=True)
