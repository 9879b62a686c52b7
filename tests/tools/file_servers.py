# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real servers on loopback that files can be put on: WebDAV (wsgidav) and S3 (moto)."""

from __future__ import annotations

import threading
import typing as t
from pathlib import Path

from cheroot import wsgi
from moto.server import ThreadedMotoServer
from wsgidav.fs_dav_provider import FilesystemProvider
from wsgidav.wsgidav_app import WsgiDAVApp


class DavServer:
    """Serves a directory by HTTP and WebDAV; a context manager.

    :param users: passwords by user; anybody may do anything where there are none.
    :ivar requests: method, path and Content-Length of each request, as they came.
    """

    def __init__(self, root: Path, users: t.Mapping[str, str] | None = None) -> None:
        self.root = root
        self.requests: list[tuple[str, str, int]] = []
        mapping = {name: {"password": password} for name, password in (users or {}).items()}
        app = WsgiDAVApp(
            {
                "provider_mapping": {"/": FilesystemProvider(str(root))},
                "simple_dc": {"user_mapping": {"*": mapping or True}},
                "http_authenticator": {"accept_basic": True, "accept_digest": False, "default_to_digest": False},
                "verbose": 0,
                "logging": {"enable": False},
            }
        )

        def counting(environ: dict[str, t.Any], start_response: t.Any) -> t.Any:
            length = int(environ.get("CONTENT_LENGTH") or 0)
            self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], length))
            return app(environ, start_response)

        self._server = wsgi.Server(("127.0.0.1", 0), counting, numthreads=4)
        self._server.prepare()
        self.port = int(self._server.bind_addr[1])
        self._thread = threading.Thread(target=self._server.serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> DavServer:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._server.stop()
        self._thread.join(10)

    def received(self) -> int:
        """Bytes of content that came so far."""
        return sum(length for method, _path, length in self.requests if method == "PUT")


class S3Server:
    """An S3-compatible store in memory; a context manager."""

    def __init__(self) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> S3Server:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._server.stop()
