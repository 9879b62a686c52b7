# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs in the Python of Glance (see glance_server.py): its own WSGI application, behind what a test wants of tokens and faults.

Arguments: directory, port; for TLS besides a port, the files of certificate and key, and of the authorities whose clients may
come. Below the directory, C(faults.json) is a list of C({method, path, status, headers, after, times})
that the
test writes, and C(requests.jsonl) is what was asked, one object a line.
"""

from __future__ import annotations

import datetime
import json
import re
import ssl
import sys
import threading
import typing as t
from pathlib import Path

USERS = {
    "secret-of-the-factory-4711": ("factory", "member,reader"),
    "secret-of-the-admin-0815": ("operators", "admin,member,reader"),
}
"""Secrets of application credentials, and of whom: project, roles."""
NOBODY = "notused"
"""The token that keystoneauth sends where there is no Keystone."""

_LOCK = threading.Lock()
_FAULTS = Path("faults.json")
_REQUESTS = Path("requests.jsonl")


def token_of(secret: str) -> str:
    """The token that the identity service gives."""
    return f"token-{secret[::-1]}"


class Site:
    """Tokens, faults, the log, and behind them Glance."""

    def __init__(self, folder: Path, glance: t.Any) -> None:
        self.folder = folder
        self.glance = glance

    def __call__(self, environ: dict[str, t.Any], start: t.Any) -> t.Iterable[bytes]:
        if environ.pop("HTTP_X_BESIDE", ""):
            # The test itself looks.
            self.authenticate(environ)
            return t.cast("t.Iterable[bytes]", self.glance(environ, start))
        counted = Counted(environ["wsgi.input"])
        environ["wsgi.input"] = counted
        record = {
            "method": environ["REQUEST_METHOD"],
            "path": environ["PATH_INFO"],
            "query": environ.get("QUERY_STRING", ""),
        }
        try:
            fault = self.fault(record["method"], record["path"])
            if fault and not fault.get("after"):
                return self.refuse(environ, start, fault)
            if record["path"].startswith("/identity"):
                return identity(environ, start)
            if not self.authenticate(environ):
                return answer(start, 401, {"message": "The request you have made requires authentication."})
            if fault:
                list(self.glance(environ, lambda *_args: lambda _data: None))
                return self.refuse(environ, start, fault)
            return t.cast("t.Iterable[bytes]", self.glance(environ, start))
        finally:
            with _LOCK, (self.folder / _REQUESTS).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({**record, "received": counted.count}) + "\n")

    def fault(self, method: str, path: str) -> dict[str, t.Any] | None:
        with _LOCK:
            try:
                faults = json.loads((self.folder / _FAULTS).read_text(encoding="utf-8"))
            except FileNotFoundError:
                return None
            for fault in faults:
                if fault["method"] == method and re.search(fault["path"], path) and fault["times"]:
                    fault["times"] -= 1
                    (self.folder / _FAULTS).write_text(json.dumps(faults), encoding="utf-8")
                    return dict(fault)
            return None

    @staticmethod
    def refuse(environ: dict[str, t.Any], start: t.Any, fault: dict[str, t.Any]) -> list[bytes]:
        return answer(start, fault["status"], {"message": f"fault {fault['status']}"}, fault.get("headers") or {})

    @staticmethod
    def authenticate(environ: dict[str, t.Any]) -> bool:
        """Tell Glance who asks, as keystonemiddleware would; who is not authenticated is the factory."""
        token = environ.pop("HTTP_X_AUTH_TOKEN", NOBODY)
        token = token_of(next(iter(USERS))) if token == NOBODY else token
        found = next((who for secret, who in USERS.items() if token_of(secret) == token), None)
        if found:
            project, roles = found
            environ["HTTP_X_IDENTITY_STATUS"] = "Confirmed"
            environ["HTTP_X_PROJECT_ID"] = environ["HTTP_X_TENANT_ID"] = project
            environ["HTTP_X_USER_ID"] = f"user-of-{project}"
            environ["HTTP_X_ROLES"] = roles
        return found is not None


class Counted:
    """A request's body, and how much of it was read."""

    def __init__(self, stream: t.Any) -> None:
        self.stream = stream
        self.count = 0

    def read(self, *size: int) -> bytes:
        data = bytes(self.stream.read(*size))
        self.count += len(data)
        return data

    def readline(self, *size: int) -> bytes:
        data = bytes(self.stream.readline(*size))
        self.count += len(data)
        return data

    def __iter__(self) -> t.Iterator[bytes]:
        while line := self.readline():
            yield line


def identity(environ: dict[str, t.Any], start: t.Any) -> list[bytes]:
    """As much of the Identity API v3 as application credentials need."""
    base = f"{environ['wsgi.url_scheme']}://{environ['HTTP_HOST']}"
    if environ["REQUEST_METHOD"] == "GET":
        links = [{"rel": "self", "href": f"{base}/identity/v3/"}]
        return answer(start, 200, {"version": {"id": "v3.14", "status": "stable", "links": links}})
    asked = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    given = asked["auth"]["identity"].get("application_credential", {}).get("secret")
    if given not in USERS:
        return answer(
            start, 401, {"error": {"code": 401, "message": "The request you have made requires authentication."}}
        )
    project, roles = USERS[given]
    now = datetime.datetime.now(datetime.timezone.utc)
    endpoint = {"id": "i", "interface": "public", "region": "R", "region_id": "R", "url": base}
    token = {
        "methods": ["application_credential"],
        "user": {"id": f"user-of-{project}", "name": "jane", "domain": {"id": "default", "name": "Default"}},
        "project": {"id": project, "name": project, "domain": {"id": "default", "name": "Default"}},
        "roles": [{"id": role, "name": role} for role in roles.split(",")],
        "issued_at": now.strftime("%Y-%m-%dT%H:%M:%S.000000Z"),
        "expires_at": (now + datetime.timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%S.000000Z"),
        "catalog": [{"id": "c", "type": "image", "name": "glance", "endpoints": [endpoint]}],
    }
    return answer(start, 201, {"token": token}, {"X-Subject-Token": token_of(given)})


def answer(start: t.Any, status: int, body: t.Any, headers: t.Mapping[str, str] | None = None) -> list[bytes]:
    data = json.dumps(body).encode()
    start(
        f"{status} Status",
        [("Content-Type", "application/json"), ("Content-Length", str(len(data))), *(headers or {}).items()],
    )
    return [data]


def main() -> None:
    """Serve until it is ended."""
    from cheroot import wsgi
    from cheroot.ssl.builtin import BuiltinSSLAdapter
    from glance.common import wsgi_app

    site = Site(Path(sys.argv[1]), wsgi_app.init_app())
    if len(sys.argv) > 3:
        port, certificate, key, authorities = sys.argv[3:]
        adapter = BuiltinSSLAdapter(certificate, key)
        adapter.context.load_verify_locations(authorities)
        adapter.context.verify_mode = ssl.CERT_REQUIRED
        private = wsgi.Server(("127.0.0.1", int(port)), site, numthreads=4)
        private.ssl_adapter = adapter
        threading.Thread(target=private.safe_start, daemon=True).start()
    wsgi.Server(("127.0.0.1", int(sys.argv[2])), site, numthreads=8).safe_start()


if __name__ == "__main__":
    main()
