# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian's docker-registry on loopback, and a server before it that fails on demand, gives tokens, and has Harbor's API 2.0."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import http.client
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import typing as t
import urllib.parse
from pathlib import Path

from ansible_collections.cloudimg.factory.tests.tools.unpacked import unpacked

PROGRAM = "docker-registry"
PACKAGE = "docker-registry"
"""Debian's package of that name: a real registry, distribution 2.8."""
INDEX = "application/vnd.oci.image.index.v1+json"
USER, PASSWORD = "publisher", "swordfish-in-oci-0815"
_BCRYPT = "$2b$04$KD/qXOZA18UzsLFgwKPIQeSWMVSteI8vR24iJjfak1hgvt1xzVTD2"
_SECRET = "not-random-so-that-uploads-outlive-a-restart"


@functools.lru_cache(None)
def program() -> str:
    """The registry: what is installed, else what is in Debian's package, which is fetched and unpacked, and not installed.

    Installing it would start a registry for everybody on port 5000.

    :raises RuntimeError: there is none, and it cannot be fetched; why.
    """
    return shutil.which(PROGRAM) or str(unpacked(PACKAGE) / "usr/bin" / PROGRAM)


class Registry:
    """A docker-registry of our own; a context manager.

    :param users: whether it wants ``USER`` and ``PASSWORD``.
    :param tls: files with certificate and key.
    :ivar secret: which the state in URLs of uploads is signed by; another one after a restart makes it forget them.
    """

    def __init__(self, root: Path, *, users: bool = False, tls: tuple[Path, Path] | None = None) -> None:
        self.root = root
        self.secret = _SECRET
        self._users = users
        self._tls = tls
        self._process: subprocess.Popen[bytes] | None = None
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = int(probe.getsockname()[1])
        self.url = f"{'https' if tls else 'http'}://localhost:{self.port}"

    def __enter__(self) -> Registry:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, with what it has stored."""
        self.root.mkdir(parents=True, exist_ok=True)
        configuration: dict[str, t.Any] = {
            "version": "0.1",
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": str(self.root / "store")}, "delete": {"enabled": True}},
            "http": {"addr": f"127.0.0.1:{self.port}", "secret": self.secret},
        }
        if self._users:
            (self.root / "htpasswd").write_text(f"{USER}:{_BCRYPT}\n", encoding="utf-8")
            configuration["auth"] = {"htpasswd": {"realm": "registry", "path": str(self.root / "htpasswd")}}
        if self._tls:
            configuration["http"]["tls"] = {"certificate": str(self._tls[0]), "key": str(self._tls[1])}
        # JSON is YAML.
        (self.root / "config.yml").write_text(json.dumps(configuration), encoding="utf-8")
        with (self.root / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(program()), "serve", str(self.root / "config.yml")], stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + 60
        while time.monotonic() < end and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        raise AssertionError((self.root / "log").read_text(encoding="utf-8"))

    def stop(self, *, kill: bool = False) -> None:
        """End it; what it has stored stays."""
        if self._process:
            self._process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            self._process.wait(30)
            self._process = None

    def memory(self) -> int:
        """Bytes that it holds at most so far."""
        assert self._process
        text = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii")
        return int(next(line for line in text.splitlines() if line.startswith("VmHWM")).split()[1]) << 10

    def blobs(self) -> dict[str, int]:
        """The digests and sizes of all blobs that it has stored."""
        found = (self.root / "store/docker/registry/v2/blobs/sha256").glob("*/*/data")
        return {f"sha256:{path.parent.name}": path.stat().st_size for path in found}


@dataclasses.dataclass
class Fault:
    """What happens to a request.

    :ivar method: of the request; any where it is empty.
    :ivar part: what its path has in it.
    :ivar status: the answer, without asking the registry; 0: the connection ends.
    :ivar times: how many such requests fail.
    :ivar after: whether the registry does what it is asked for before.
    :ivar skip: how many such requests pass before.
    :ivar restart: is called instead of an answer, and ``half`` of the request comes to the registry before.
    """

    method: str
    part: str
    status: int
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    times: int = 1
    after: bool = False
    skip: int = 0
    body: bytes = b""
    restart: t.Callable[[], None] | None = None
    half: bool = False


@dataclasses.dataclass
class Asked:
    """A request, and what was answered."""

    method: str
    path: str
    length: int
    status: int = 0


class Front:
    """A server before a registry: passes requests on, fails on demand, and may be a Harbor.

    :param harbor: whether it has Harbor's API 2.0 below C(/api/v2.0/).
    :param robots: secrets by robot account; with them, a token is wanted, as Harbor does it.
    :param referrers: whether it has the API that lists referrers (distribution specification 1.1, «Listing Referrers»), as Harbor
        has, and docker-registry 2.8 has not; so many of them a page, 0: all on one.
    :ivar identities: users by identity token, which gets them a token by OAuth 2 (distribution's «token/oauth»).
    :ivar most_chunk: bytes that a request may have, else 413.
    :ivar no_delete: whether manifests cannot be removed.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        harbor: bool = False,
        robots: t.Mapping[str, str] | None = None,
        referrers: int | None = None,
    ) -> None:
        self.registry = registry
        self.harbor = harbor
        self.referrers = referrers
        self.identities: dict[str, str] = {}
        self.robots = dict(robots or {})
        self.faults: list[Fault] = []
        self.asked: list[Asked] = []
        self.tokens: dict[str, str] = {}
        self.most_chunk: int | None = None
        self.no_delete = False
        front = self

        class Handler(_Handler):
            server_front = front

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Front:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def writes(self) -> list[Asked]:
        """The requests that were to change something."""
        return [each for each in self.asked if each.method not in ("GET", "HEAD")]

    def sent(self) -> int:
        """Bytes of uploads."""
        return sum(each.length for each in self.asked if each.method == "PATCH")

    def fault(self, method: str, path: str) -> Fault | None:
        """The one that is due for a request."""
        for each in self.faults:
            if each.times and each.part in path and each.method in ("", method):
                if each.skip:
                    each.skip -= 1
                    continue
                each.times -= 1
                return each
        return None

    def call(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Ask the registry itself."""
        connection = http.client.HTTPConnection("127.0.0.1", self.registry.port, timeout=30)
        try:
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body or None, names)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def manifest(self, name: str, reference: str) -> tuple[str, dict[str, t.Any]] | None:
        """The digest and document of a manifest."""
        accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"
        status, headers, body = self.call("GET", f"/v2/{name}/manifests/{reference}", Accept=accept)
        return (headers["Docker-Content-Digest"], json.loads(body)) if status == 200 else None

    def referring(self, name: str, subject: str) -> list[dict[str, t.Any]]:
        """The descriptors of all manifests of a repository with that subject, out of what the registry has stored."""
        folder = self.registry.root / "store/docker/registry/v2/repositories" / name / "_manifests/revisions/sha256"
        found = []
        for link in sorted(folder.glob("*/link")):
            got = self.manifest(name, f"sha256:{link.parent.name}")
            if got and (got[1].get("subject") or {}).get("digest") == subject:
                digest, document = got
                row = {
                    "mediaType": document["mediaType"],
                    "digest": digest,
                    "size": self.registry.blobs()[digest],
                    "artifactType": document.get("artifactType") or document["config"]["mediaType"],
                }
                found.append({**row, **{key: document[key] for key in ("annotations",) if document.get(key)}})
        return found

    def artifacts(self, name: str) -> dict[str, dict[str, t.Any]]:
        """What Harbor lists of a repository, by digest (goharbor/harbor, api/v2.0/swagger.yaml, «Artifact»)."""
        status, _headers, body = self.call("GET", f"/v2/{name}/tags/list")
        found: dict[str, dict[str, t.Any]] = {}
        for tag in (json.loads(body).get("tags") or []) if status == 200 else []:
            got = self.manifest(name, tag)
            if got and got[1].get("layers") and not tag.startswith("sha256-"):
                digest, document = got
                row = found.setdefault(digest, {"digest": digest, "tags": [], "type": "UNKNOWN"})
                row["tags"].append({"name": tag})
                row["extra_attrs"] = {"annotations": document.get("annotations") or {}}
        return found


class _Handler(http.server.BaseHTTPRequestHandler):
    server_front: Front
    protocol_version = "HTTP/1.1"

    def log_message(self, *_words: t.Any) -> None:
        """Nothing."""

    def _do(self) -> None:
        front = self.server_front
        length = int(self.headers.get("Content-Length") or 0)
        asked = Asked(self.command, self.path, length)
        front.asked.append(asked)
        self.close_connection = True
        fault = front.fault(self.command, self.path)
        if fault and fault.restart:
            if fault.half:
                self._half(self.rfile.read(length // 2))
            fault.restart()
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if fault and not fault.after:
            if not fault.status:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.rfile.read(length)
            self._answer(asked, fault.status, fault.headers, fault.body)
            return
        if front.most_chunk is not None and length > front.most_chunk:
            self.rfile.read(length)
            self._answer(asked, 413, {}, b"<html><head><title>413 Request Entity Too Large</title></head></html>")
            return
        body = self.rfile.read(length)
        if self.path.startswith("/service/token"):
            self._token(asked, body)
        elif front.robots and not self._is_allowed():
            about = f'Bearer realm="{front.url}/service/token",service="harbor-registry"'
            self._answer(asked, 401, {"WWW-Authenticate": about}, _error("UNAUTHORIZED", "unauthorized"))
        elif self.path.startswith("/api/v2.0/"):
            self._harbor(asked)
        elif front.referrers is not None and "/referrers/" in self.path:
            self._referrers(asked)
        elif self.command == "DELETE" and front.no_delete and "/manifests/" in self.path:
            self._answer(asked, 405, {}, _error("UNSUPPORTED", "The operation is unsupported."))
        else:
            status, headers, data = self._pass(body)
            if fault:
                if not fault.status:
                    asked.status = status
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                status, headers, data = fault.status, fault.headers, fault.body
            elif front.referrers is not None and self.command == "PUT" and "/manifests/" in self.path and status == 201:
                subject = json.loads(body).get("subject")
                headers = {**headers, **({"OCI-Subject": subject["digest"]} if subject else {})}
            self._answer(asked, status, headers, data)

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _do

    def _pass(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server_front.registry.port, timeout=60)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            if self.server_front.robots:
                headers.pop("Authorization", None)
            connection.request(self.command, self.path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        except OSError:
            return 502, {}, b"bad gateway"
        finally:
            connection.close()

    def _half(self, half: bytes) -> None:
        """The registry gets the head and half of the body."""
        with socket.create_connection(("127.0.0.1", self.server_front.registry.port), 30) as wire:
            head = [f"{self.command} {self.path} HTTP/1.1"]
            head += [f"{name}: {value}" for name, value in self.headers.items()]
            wire.sendall("\r\n".join([*head, "", ""]).encode() + half)
            time.sleep(0.3)

    def _answer(self, asked: Asked, status: int, headers: t.Mapping[str, str], body: bytes) -> None:
        asked.status = status
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("connection", "date", "server", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = headers.get("Content-Length", str(len(body))) if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length)
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _basic(self) -> str | None:
        """The robot whose secret was given."""
        scheme, _space, text = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return None
        name, _colon, secret = base64.b64decode(text).decode().partition(":")
        return name if self.server_front.robots.get(name) == secret else None

    def _is_allowed(self) -> bool:
        if self.path.startswith("/api/v2.0/"):
            return self.path.endswith("/ping") or self._basic() is not None
        scheme, _space, token = self.headers.get("Authorization", "").partition(" ")
        granted = self.server_front.tokens.get(token, "") if scheme == "Bearer" else ""
        wanted = "pull" if self.command in ("GET", "HEAD") else "push"
        return wanted in granted

    def _token(self, asked: Asked, body: bytes) -> None:
        """By user and password (GET), or by an identity token (POST, OAuth 2)."""
        front = self.server_front
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        known = self._basic() is not None
        if self.command == "POST":
            query = urllib.parse.parse_qs(body.decode())
            needed = {"grant_type", "service", "client_id", "scope", "refresh_token"}
            known = needed <= set(query) and query["grant_type"] == ["refresh_token"]
            known = known and query["refresh_token"][0] in front.identities
        if not known:
            self._answer(asked, 401, {}, _error("UNAUTHORIZED", "unauthorized: wrong robot"))
            return
        token = base64.urlsafe_b64encode(os.urandom(24)).decode()
        front.tokens[token] = " ".join(query.get("scope", []))
        said = {"token" if self.command == "GET" else "access_token": token, "expires_in": 300}
        self._answer(asked, 200, {"Content-Type": "application/json"}, json.dumps(said).encode())

    def _referrers(self, asked: Asked) -> None:
        front = self.server_front
        parts = urllib.parse.urlsplit(self.path)
        name, _slash, subject = parts.path[len("/v2/") :].partition("/referrers/")
        query = urllib.parse.parse_qs(parts.query)
        rows = front.referring(name, subject)
        headers = {"Content-Type": INDEX}
        if "artifactType" in query:
            rows = [row for row in rows if row["artifactType"] == query["artifactType"][0]]
            headers["OCI-Filters-Applied"] = "artifactType"
        first, size = int(query.get("from", ["0"])[0]), front.referrers or len(rows)
        if first + size < len(rows):
            headers["Link"] = f'<{parts.path}?from={first + size}>; rel="next"'
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": rows[first : first + size]}
        self._answer(asked, 200, headers, json.dumps(document).encode())

    def _harbor(self, asked: Asked) -> None:
        """The few routes of Harbor's API that are used here or by who pulls."""
        front = self.server_front
        parts = urllib.parse.urlsplit(self.path)
        words = parts.path[len("/api/v2.0/") :].split("/")
        query = urllib.parse.parse_qs(parts.query)
        json_type = {"Content-Type": "application/json"}
        if not front.harbor:
            self._answer(asked, 404, {}, b"404 page not found")
        elif words == ["ping"]:
            self._answer(asked, 200, {"Content-Type": "text/plain"}, b"Pong")
        elif words[0] == "projects" and words[2:] == ["repositories"]:
            _status, _headers, body = front.call("GET", "/v2/_catalog?n=1000")
            names = [name for name in json.loads(body)["repositories"] if name.startswith(f"{words[1]}/")]
            rows = [{"name": name} for name in names] if query.get("page", ["1"]) == ["1"] else []
            self._answer(asked, 200, json_type, json.dumps(rows).encode())
        elif words[0] == "projects" and words[2] == "repositories" and words[4] == "artifacts":
            # Twice: a slash in a repository's name has to survive the first one.
            rest = urllib.parse.unquote(urllib.parse.unquote(words[3]))
            self._artifacts(asked, f"{words[1]}/{rest}", words[5:], query)
        else:
            self._answer(asked, 404, json_type, _error("NOT_FOUND", "path not found"))

    def _artifacts(self, asked: Asked, name: str, words: list[str], query: dict[str, list[str]]) -> None:
        front = self.server_front
        rows = front.artifacts(name)
        json_type = {"Content-Type": "application/json"}
        if self.command == "GET" and not words:
            found = list(rows.values()) if query.get("page", ["1"]) == ["1"] else []
            self._answer(asked, 200, json_type, json.dumps(found).encode())
            return
        reference = urllib.parse.unquote(words[0])
        tagged = [row for row in rows.values() if any(tag["name"] == reference for tag in row["tags"])]
        row = rows.get(reference) or (tagged[0] if tagged else None)
        if self.command != "DELETE" or row is None:
            self._answer(asked, 404, json_type, _error("NOT_FOUND", f"artifact {name}@{reference} not found"))
        elif len(words) == 3 and words[1] == "tags":
            # docker-registry cannot remove a tag: the others are given again.
            digest, kind = row["digest"], "application/vnd.oci.image.manifest.v1+json"
            document = front.call("GET", f"/v2/{name}/manifests/{digest}", Accept=kind)[2]
            front.call("DELETE", f"/v2/{name}/manifests/{digest}")
            for tag in row["tags"]:
                if tag["name"] != urllib.parse.unquote(words[2]):
                    front.call("PUT", f"/v2/{name}/manifests/{tag['name']}", document, Content_Type=kind)
            self._answer(asked, 200, {}, b"")
        else:
            # With its accessories.
            index = front.manifest(name, row["digest"].replace(":", "-"))
            if front.referrers is not None:
                for each in front.referring(name, row["digest"]):
                    front.call("DELETE", f"/v2/{name}/manifests/{each['digest']}")
            for digest in (
                [row["digest"], *(each["digest"] for each in index[1]["manifests"])] if index else [row["digest"]]
            ):
                front.call("DELETE", f"/v2/{name}/manifests/{digest}")
            if index:
                front.call("DELETE", f"/v2/{name}/manifests/{index[0]}")
            self._answer(asked, 200, {}, b"")


def _error(code: str, message: str) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()
