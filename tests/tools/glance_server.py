# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Glance on loopback, with SQLite and a directory for the data: started, broken, restarted and ended by tests.

It gets a virtual environment of its own, since what it needs differs from what the tests do; that is made once and kept in the
user's cache.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import typing as t
import urllib.request
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils._versions import version_key

HERE = Path(__file__).resolve().parent
_REQUIREMENTS = HERE / "glance-requirements.txt"
_CONFIGURATION = """\
[DEFAULT]
worker_self_reference_url = http://127.0.0.1:{port}
enabled_backends = here:file
enabled_import_methods = [glance-direct,web-download]
{more}
log_file = {folder}/glance.log
[database]
connection = sqlite:///{folder}/glance.sqlite
[glance_store]
default_backend = here
[here]
filesystem_store_datadir = {store}
[os_glance_staging_store]
filesystem_store_datadir = {folder}/staging
[os_glance_tasks_store]
filesystem_store_datadir = {folder}/tasks
[import_filtering_opts]
allowed_hosts = [127.0.0.1]
allowed_ports = []
disallowed_ports = []
[paste_deploy]
config_file = {folder}/paste.ini
[oslo_policy]
policy_file = {folder}/policy.yaml
"""
_PASTE = """\
[composite:glance-api]
paste.composite_factory = glance.api:root_app_factory
/: api
[pipeline:api]
pipeline = versionnegotiation context rootapp
[composite:rootapp]
paste.composite_factory = glance.api:root_app_factory
/: apiversions
/v2: apiv2app
[app:apiversions]
paste.app_factory = glance.api.versions:create_resource
[app:apiv2app]
paste.app_factory = glance.api.v2.router:API.factory
[filter:versionnegotiation]
paste.filter_factory = glance.api.middleware.version_negotiation:VersionNegotiationFilter.factory
[filter:context]
paste.filter_factory = glance.api.middleware.context:ContextMiddleware.factory
"""


def environment() -> Path:
    """The directory of Glance's virtual environment; made where it is not there yet.

    :raises RuntimeError: it cannot be made; why.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cloudimg.factory"
    cache.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(_REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:12]
    home = cache / f"glance-{digest}"
    with (cache / "glance.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "ready").exists():
            shutil.rmtree(home, ignore_errors=True)
            pip = [str(home / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", "-r", str(_REQUIREMENTS)]
            for argv in ([sys.executable, "-m", "venv", str(home)], pip):
                done = subprocess.run(argv, capture_output=True, text=True, check=False)
                if done.returncode:
                    said = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
                    raise RuntimeError(
                        f"these tests need Glance, and «{' '.join(argv)}» failed: {said[-1]}; have pip reach PyPI, or a mirror "
                        "of it (PIP_INDEX_URL)"
                    )
            _run(home, "glance-manage", _configure(home / "template", 0))
            (home / "ready").touch()
    return home


def _configure(folder: Path, port: int, store: Path | None = None, more: str = "") -> Path:
    store = store or folder / "store"
    for path in (folder, store, folder / "staging", folder / "tasks"):
        path.mkdir(parents=True, exist_ok=True)
    text = _CONFIGURATION.format(folder=folder, port=port, store=store, more=more)
    (folder / "glance-api.conf").write_text(text, encoding="utf-8")
    (folder / "paste.ini").write_text(_PASTE, encoding="utf-8")
    (folder / "policy.yaml").write_text("{}", encoding="utf-8")
    return folder


def _run(home: Path, tool: str, folder: Path) -> None:
    argv = [str(home / "bin" / tool), "--config-file", str(folder / "glance-api.conf"), "db_sync"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)


class GlanceServer:
    """One Glance; a context manager.

    :param folder: all that it has.
    :param store: where the data are, by default below ``folder``.
    :param more: lines for the section DEFAULT of its configuration.
    :param tls: files of a certificate and its key, and of the authorities whose clients may come; then it listens at
        :attr:`tls_url`, too.
    """

    def __init__(
        self, folder: Path, *, store: Path | None = None, more: str = "", tls: tuple[Path, Path, Path] | None = None
    ) -> None:
        self.home = environment()
        self.tls = tls
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.tls_port = int(free.getsockname()[1])
        self.tls_url = f"https://localhost:{self.tls_port}"
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.store = store or folder / "store"
        _configure(folder, self.port, store, more)
        shutil.copy(self.home / "template" / "glance.sqlite", folder)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> GlanceServer:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Have it run; returns when it answers."""
        argv = [str(self.home / "bin/python"), str(HERE / "glance_wsgi.py"), str(self.folder), str(self.port)]
        argv += [str(self.tls_port), *map(str, self.tls)] if self.tls else []
        with (self.folder / "output").open("ab") as output:
            variables = {**os.environ, "OS_GLANCE_CONFIG_DIR": str(self.folder)}
            self._process = subprocess.Popen(argv, env=variables, stdout=output, stderr=output)
        for _attempt in range(600):
            if self._process.poll() is not None:
                raise RuntimeError((self.folder / "output").read_text(encoding="utf-8"))
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/v2/images", timeout=10):
                self.clear()
                return
            time.sleep(0.1)
        raise RuntimeError("Glance does not answer")

    def stop(self, *, kill: bool = False) -> None:
        """End it, as an orderly server or by a kill."""
        if self._process:
            self._process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            self._process.wait(60)
            self._process = None

    def restart(self, *, kill: bool = True) -> None:
        """End it and start it again, with what it has stored."""
        self.stop(kill=kill)
        self.start()

    def clear(self) -> None:
        """Forget what was asked, and the faults."""
        self.faults()
        (self.folder / "requests.jsonl").unlink(missing_ok=True)

    def faults(self, *faults: dict[str, t.Any]) -> None:
        """The next requests that match fail so: C({method, path, status, headers, after, times})."""
        given = [{"times": 1, **fault} for fault in faults]
        (self.folder / "faults.json").write_text(json.dumps(given), encoding="utf-8")

    def requests(self) -> list[dict[str, t.Any]]:
        """What was asked: C({method, path, query, received})."""
        path = self.folder / "requests.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def writes(self) -> list[str]:
        """The requests that were to change something, tokens apart."""
        asked = [one for one in self.requests() if one["method"] != "GET" and not one["path"].startswith("/identity")]
        return [
            f"{one['method']} {one['path'].rpartition('/')[2] if one['method'] == 'PUT' else ''}".strip()
            for one in asked
        ]

    def received(self) -> int:
        """Bytes of image data that were sent."""
        return sum(one["received"] for one in self.requests() if one["path"].endswith(("/file", "/stage")))

    def images(self, **filters: str) -> list[dict[str, t.Any]]:
        """All that the factory's project has, the hidden ones too, oldest first."""
        found: dict[str, dict[str, t.Any]] = {}
        for hidden in ("false", "true"):
            words = {"os_hidden": hidden, "sort": "created_at:asc", **filters}
            path = "/v2/images?" + "&".join(f"{key}={value}" for key, value in words.items())
            found.update({image["id"]: image for image in self.ask("GET", path)["images"]})
        # Times are in whole seconds, in which a fast machine makes more than one.
        return sorted(
            found.values(), key=lambda image: (image["created_at"], version_key(image.get("cloudimg_version", "")))
        )

    def visible(self, **filters: str) -> list[dict[str, t.Any]]:
        """What users see in a list."""
        return [image for image in self.images(**filters) if not image["os_hidden"]]

    def ask(self, method: str, path: str, body: t.Any = None, **headers: str) -> t.Any:
        """One request beside those of the collection: it does not fail, and is not told by :meth:`requests`."""
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"{self.url}{path}", data=data, method=method)
        request.add_header("Content-Type", "application/json")
        request.add_header("X-Beside", "1")
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None
