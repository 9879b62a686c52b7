# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian's own installer, booted by the role base_vm with our preseed, as far as it goes without udebs on the mirror.

Its kernel and initrd come from Debian's package of the netboot images; they are put on an ISO as the official ones have it.
What the installer asks a mirror for is answered here, so that it ends alike wherever the tests run: with the Release file of
a mirror, and without any udeb.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import shutil
import subprocess
import threading
import typing as t
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from conftest import CHECKOUT, Factory

from ansible_collections.cloudimg.factory.plugins.module_utils._builder import apt_mirrors
from ansible_collections.cloudimg.factory.tests.tools.unpacked import unpacked

PACKAGE = "debian-installer-12-netboot-amd64"
IMAGES = "usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64"


class Mirror(http.server.ThreadingHTTPServer):
    """The mirror of the builder's APT, but for the installer's own packages, which it has not."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.upstream = upstream.rstrip("/")
        self.asked: list[str] = []


class _Passing(http.server.BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        """Answer with what the mirror has."""
        self.server.asked.append(self.path)
        place = self.path.removeprefix("/of-the-preseed")
        if place == self.path or place.endswith(".udeb"):
            self.send_error(404)
            return
        try:
            with urllib.request.urlopen(self.server.upstream + place, timeout=60) as found:
                content = found.read()
        except urllib.error.HTTPError as exc:
            self.send_error(exc.code)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@pytest.fixture
def mirror() -> t.Iterator[Mirror]:
    server = Mirror(apt_mirrors()["Debian"])
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def make_medium(directory: Path) -> Path:
    """The installer on an ISO laid out as the official ones."""
    images = unpacked(PACKAGE) / IMAGES
    files = {"linux": "install.amd/vmlinuz", "initrd.gz": "install.amd/initrd.gz"}
    argv: list[str | Path] = [
        "xorriso",
        "-as",
        "mkisofs",
        "-quiet",
        "-r",
        "-J",
        "-V",
        "Debian 12 amd64 n",
        "-graft-points",
    ]
    info = directory / "info"
    info.write_text('Debian GNU/Linux 12 "Bookworm" - Unofficial amd64 NETINST\n', "utf-8")
    argv += [f".disk/info={info}", *(f"{place}={images / name}" for name, place in files.items())]
    subprocess.run([*argv, "-o", directory / "netinst.iso"], check=True, capture_output=True)
    return directory / "netinst.iso"


def test_it_goes_as_far_as_the_mirror_lets_it(tmp_path: Path, mirror: Mirror) -> None:
    iso = make_medium(tmp_path)
    shutil.copytree(CHECKOUT / "inventories/example", tmp_path / "factory/inventory")
    factory = Factory(tmp_path / "factory")
    definition = {
        "image_os": {"distribution": "debian", "version": "12"},
        "image_medium": {
            "family": "preseed",
            "path": str(iso),
            "checksum": f"sha256:{hashlib.sha256(iso.read_bytes()).hexdigest()}",
            # This machine, as a guest with QEMU's user networking sees it.
            "mirror": f"http://10.0.2.2:{mirror.server_port}/of-the-preseed",
        },
        "image_timeouts": {"install": 1800, "inactivity": 600},
    }
    factory.define("debian-12", json.dumps(definition))
    played = factory.play("build.yml", "debian-12", "--tags", "media,base_vm")

    directory, build = factory.build("debian-12")
    console = (directory / "logs/base_vm-console.log").read_text("utf-8", errors="replace")
    steps = [
        "Detecting network hardware",
        "Configuring the network with DHCP",
        "Checking the Debian archive mirror",
        "Loading additional components",
        "Downloading a file failed",
    ]
    places = [console.find(step) for step in steps]
    assert -1 not in places and places == sorted(places), console[-4000:]
    # No question was asked before: all of it was answered by the preseed, the mirror among them.
    assert console.count("Prompt: ") <= 1
    assert "/of-the-preseed/dists/bookworm/Release" in mirror.asked
    assert any(path.endswith(".udeb") for path in mirror.asked)
    assert all(path.startswith("/of-the-preseed/") for path in mirror.asked)
    # screen(1) would write its clock each minute, which looked like a sign of life.
    assert "(1*installer)" not in console

    assert played.rc != 0
    assert "the installer failed: Downloading a file failed" in played.stdout
    assert "image_medium.mirror" in played.failure()
    assert "media" in build["stages"] and "base_vm" not in build["stages"]
    assert not list((factory.workspace / "cache/layers").glob("*.qcow2"))
    assert (directory / "logs/base_vm-screen.png").stat().st_size > 100
    # Within seconds, and not when the time for inactivity was over.
    said = (directory / "logs/base_vm-console.log").stat().st_mtime
    assert (directory / "logs/base_vm-screen.png").stat().st_mtime - said < 60
