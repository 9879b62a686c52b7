# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""No secret of a catalogue is on a command line, in the output, in a log, or in a file, while playbooks publish and retire."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import subprocess
import threading
import typing as t
from pathlib import Path

import pytest
from catalogue_site import SECRETS, Servers, Site

from ansible_collections.cloudimg.factory.tests.tools.pki import Pki

pytestmark = pytest.mark.slow


def forms(secret: str) -> list[bytes]:
    """A secret as it may be written: plain, and in base64 at each of three offsets."""
    plain = secret.encode()
    found = [plain]
    for offset in range(3):
        text = base64.b64encode(b"\0" * offset + plain)
        found.append(text[(4 if offset else 0) : -4])
    return found


FORMS = [form for secret in SECRETS.values() for form in forms(secret)]


class Watch(threading.Thread):
    """Looks at command lines of all processes, and at files below some directories, again and again.

    :ivar found: what had a secret.
    :ivar looks: how often it has looked; ``read`` the names of files read.
    """

    def __init__(self, folders: t.Sequence[Path], allowed: t.Sequence[Path]) -> None:
        super().__init__(daemon=True)
        self.found: set[str] = set()
        self.looks = 0
        self.read: set[str] = set()
        self._folders = folders
        self._allowed = {str(path) for path in allowed}
        self._ended = threading.Event()
        self._seen: dict[str, tuple[int, int]] = {}

    def stop(self) -> None:
        self._ended.set()
        self.join(30)

    def run(self) -> None:
        while not self._ended.wait(0.01):
            self.looks += 1
            self._processes()
            for folder in self._folders:
                self._files(folder)

    def _processes(self) -> None:
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    self._judge(f"command line of {entry.name}", Path(entry.path, "cmdline").read_bytes())

    def _files(self, folder: Path) -> None:
        for root, _folders, names in os.walk(folder):
            for path in (Path(root, name) for name in names):
                with contextlib.suppress(OSError):
                    stat = path.lstat()
                    stamp = (stat.st_mtime_ns, stat.st_size)
                    if str(path) in self._allowed or self._seen.get(str(path)) == stamp or stat.st_size > 8 << 20:
                        continue
                    self._judge(str(path), path.read_bytes())
                    self._seen[str(path)] = stamp
                    self.read.add(str(path))

    def _judge(self, what: str, data: bytes) -> None:
        if any(form in data for form in FORMS):
            self.found.add(f"{what}: {data[:200]!r}")


@pytest.fixture
def site(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Site]:
    if not shutil.which("xmlsec1"):
        pytest.skip("xmlsec1 is not installed, which the Marketplace of the tests needs")
    pki = Pki.make(tmp_path_factory.mktemp("pki"))
    endorser = pki.issue("jane", passphrase=SECRETS["passphrase"])
    with Servers.run(tmp_path_factory.mktemp("servers")) as servers:
        yield Site.make(tmp_path / "site", servers, pki, endorser)


def watched(site: Site, *words: str, **extra: t.Any) -> tuple[str, Watch]:
    """The output of a playbook, and what was seen while it ran."""
    log = site.root / "ansible.log"
    # HOME and TMPDIR are the site's own, see Site.environment().
    watch = Watch([site.root, Path("/dev/shm")], [site.root / "vault.yml"])
    environment = {**site.environment(), "ANSIBLE_LOG_PATH": str(log)}
    watch.start()
    try:
        done = subprocess.run(
            site.command(*words, "-vvv", "--diff", **extra),
            env=environment,
            cwd=site.root,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        watch.stop()
    assert "invocation" in done.stdout
    return done.stdout + done.stderr + log.read_text(encoding="utf-8"), watch


def test_no_secret_is_seen(site: Site) -> None:
    site.build("1")
    runs: list[tuple[tuple[str, ...], dict[str, t.Any]]] = [
        (("publish.yml",), {"publish_version": "1"}),
        (("retire.yml",), {"retire_version": "1", "retire_reason": "old", "retire_state": "absent"}),
        (("refresh.yml",), {}),
    ]
    for words, extra in runs:
        out, watch = watched(site, *words, **extra)
        assert "failed=0" in out, out[-3000:]
        assert [secret for secret in SECRETS.values() if secret in out] == []
        assert watch.found == set()
        assert watch.looks > 20 and len(watch.read) > 5
    assert site.listed() == []


@pytest.mark.parametrize("wrong", sorted(SECRETS))
def test_no_secret_is_told_by_failures(site: Site, wrong: str) -> None:
    site.build("1")
    vault = site.root / "vault.yml"
    vault.write_text(
        vault.read_text(encoding="utf-8").replace(SECRETS[wrong], f"{SECRETS[wrong]}-wrong"), encoding="utf-8"
    )
    out, watch = watched(site, "publish.yml", publish_version="1")
    assert "failed=1" in out
    assert [secret for secret in SECRETS.values() if secret in out] == []
    assert watch.found == set()


def test_the_watch_sees_what_there_is(site: Site) -> None:
    """Without pipelining, Ansible writes modules and their arguments into files."""
    site.build("1")
    _out, watch = watched(site, "publish.yml", publish_version="1", ansible_pipelining=False)
    assert any("AnsiballZ" in found or "/.ansible/tmp/" in found for found in watch.found)
