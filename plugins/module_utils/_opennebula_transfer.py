# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""How an OpenNebula front-end gets at an image: from one of its safe directories, from a URL, or from this process.

The interface of OpenNebula takes no image data: the front-end reads the C(PATH) of an image itself.
"""

from __future__ import annotations

import abc
import contextlib
import http.server
import ipaddress
import re
import secrets
import shutil
import socket
import threading
import typing as t
from pathlib import Path
from urllib.parse import quote, urlsplit

from ansible_collections.cloudimg.factory.plugins.module_utils import _serve, _serve_sftp, _state
from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor import Artifact
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import Cancelled, FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

_CHUNK = 1 << 18
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class Way(abc.ABC):
    """A way for the artifact of a build."""

    verifies = False
    """Whether the front-end is to compare checksums, since a network is between."""

    alone = False
    """Whether it can offer but one artifact at a time."""

    @abc.abstractmethod
    def offer(self, file: Path, artifact: Artifact) -> t.ContextManager[tuple[str, str]]:
        """Have it where the front-end reads it, as long as the block runs; gives PATH, and what no message may show of it."""

    def left(self, artifact: Artifact) -> bool:
        """Whether a run that was cut short has left it there."""
        return False

    def tidy(self, artifact: Artifact) -> None:
        """Remove what :meth:`left` finds."""
        return


class Url(Way):
    """It is served already; a URL that ends with a slash is its directory."""

    verifies = True

    def __init__(self, url: str) -> None:
        self.url = url

    @contextlib.contextmanager
    def offer(self, file: Path, artifact: Artifact) -> t.Iterator[tuple[str, str]]:
        url = self.url + quote(artifact.path) if self.url.endswith("/") else self.url
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and not re.search(r"[\s\"']", url)
        except ValueError:
            good = False
        if not good:
            shown = re.sub(r"//[^/@]*@", "//", url).partition("?")[0]
            raise FactoryError("is no URL", where=shown, key="artifact_url", mend="give an http or https URL")
        yield url, parts.query or parts.password or ""


class Folder(Way):
    """A directory from which the front-end may read (SAFE_DIRS): here, or on the machine to which SSH leads."""

    def __init__(self, folder: str, progress: Progress, account: _serve_sftp.Account | None = None) -> None:
        if not folder.startswith("/"):
            raise FactoryError("is no absolute path", where=folder, key="directory", mend="give one, such as /var/tmp")
        self.folder = folder.rstrip("/") or "/"
        self._progress = progress
        self._store = _serve_sftp.SftpStore(account, self.folder, progress, silence=120.0) if account else None

    @staticmethod
    def name(artifact: Artifact) -> str:
        """The same for the same content, so that the next run finds what a killed one has left."""
        return f"cloudimg-{artifact.checksums['sha256'][:32]}.{artifact.format}"

    @contextlib.contextmanager
    def offer(self, file: Path, artifact: Artifact) -> t.Iterator[tuple[str, str]]:
        name = self.name(artifact)
        self._progress.phase(f"copy {artifact.path} to {self.folder}")
        if self._store:
            self._store.put(name, _serve.Content(artifact.size, artifact.checksums["sha256"], file), self._progress)
        else:
            self._copy(file, Path(self.folder, name), artifact.size)
        yield f"{self.folder}/{name}", ""

    def _copy(self, file: Path, target: Path, size: int) -> None:
        if not target.parent.is_dir():
            raise FactoryError(
                "there is no such directory",
                where=self.folder,
                key="directory",
                mend="give one of the front-end's SAFE_DIRS",
            )
        with _state.explain_os_errors(target):
            _state.reap_partials(target.parent)
            if shutil.disk_usage(target.parent).free < size:
                raise FactoryError(
                    f"has no room for {size} bytes", where=self.folder, key="directory", mend="make room there"
                )
            with _state.partial(target) as partial:
                with file.open("rb") as stream, partial.open("xb") as sink:
                    while chunk := stream.read(_CHUNK):
                        sink.write(chunk)
                        self._progress.report(done=sink.tell(), total=size)
                partial.chmod(0o644)

    def left(self, artifact: Artifact) -> bool:
        name = self.name(artifact)
        return self._store.size(name) is not None if self._store else Path(self.folder, name).exists()

    def tidy(self, artifact: Artifact) -> None:
        name = self.name(artifact)
        if self._store:
            self._store.remove(name)
            self._store.close()
        else:
            _state.remove(Path(self.folder, name))


class Here(Way):
    """An HTTP server in this process, on one address; only who knows the token in the path gets the file, and nothing else."""

    verifies = True

    def __init__(self, address: str, port: int, progress: Progress) -> None:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            raise FactoryError(
                "is no IP address", where=address, key="http_address", mend="give one of this machine's addresses"
            ) from None
        if parsed.is_unspecified:
            raise FactoryError(
                "is every address", where=address, key="http_address", mend="give the one that the front-end reaches"
            )
        self._host = f"[{address}]" if parsed.version == 6 else address
        self._address = address
        self._port = port
        self.alone = bool(port)
        self._six = parsed.version == 6
        self._progress = progress

    @contextlib.contextmanager
    def offer(self, file: Path, artifact: Artifact) -> t.Iterator[tuple[str, str]]:
        token = secrets.token_urlsafe(24)
        path = f"/{token}/{quote(artifact.path)}"
        handler = type("Handler", (_Handler,), {"file": file, "only": path})
        family = http.server.ThreadingHTTPServer
        kind = type("Server", (family,), {"daemon_threads": True, "handle_error": lambda *_args: None})
        if self._six:
            kind.address_family = socket.AF_INET6  # type: ignore[attr-defined]
        try:
            server = kind((self._address, self._port), handler)
        except OSError as exc:
            raise FactoryError(
                f"cannot listen: {exc.strerror}",
                where=f"{self._address}:{self._port}",
                key="http_address",
                mend="give an address of this machine and a free port",
            ) from exc
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        try:
            yield f"http://{self._host}:{server.server_address[1]}{path}", token
        finally:
            server.shutdown()
            server.server_close()
            thread.join(10)


class _Handler(http.server.BaseHTTPRequestHandler):
    """Gives one file, or a part of it."""

    file: Path
    only: str
    timeout = 300

    def do_HEAD(self) -> None:
        self._give(body=False)

    def do_GET(self) -> None:
        self._give(body=True)

    def log_message(self, *_args: object) -> None:
        """Say nothing: the path has the token."""

    def _give(self, *, body: bool) -> None:
        if not secrets.compare_digest(self.path.encode("utf-8", "replace"), self.only.encode()):
            self.send_error(404)
            return
        with contextlib.suppress(OSError, Cancelled), self.file.open("rb") as stream:
            size = self.file.stat().st_size
            first, last = self._wanted(size)
            if first > last:
                self.send_error(416)
                return
            whole = (first, last) == (0, size - 1)
            self.send_response(200 if whole else 206)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(last - first + 1))
            self.send_header("Accept-Ranges", "bytes")
            if not whole:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.end_headers()
            stream.seek(first)
            left = last - first + 1
            while body and left and (chunk := stream.read(min(_CHUNK, left))):
                self.wfile.write(chunk)
                left -= len(chunk)

    def _wanted(self, size: int) -> tuple[int, int]:
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        if not match or not (match[1] or match[2]):
            return 0, size - 1
        if not match[1]:
            return max(0, size - int(match[2])), size - 1
        return int(match[1]), min(int(match[2]), size - 1) if match[2] else size - 1
