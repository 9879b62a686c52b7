# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small APT repository, signed with a key of its own and served on the loopback."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import subprocess
import sys
import tempfile
import threading
import typing as t
from pathlib import Path

SUITE = "stable"


class Signer:
    """An OpenPGP key that signs a repository."""

    def __init__(self, home: Path, name: str) -> None:
        home.mkdir(mode=0o700)
        self._home = home
        self._name = name
        self._gpg(
            "--passphrase", "", "--quick-generate-key", f"{name} <{name}@example.org>", "ed25519", "sign", "never"
        )
        listed = self._gpg("--with-colons", "--list-keys").splitlines()
        self.fingerprint = next(line.split(":")[9] for line in listed if line.startswith("fpr:"))
        self.public = self._gpg("--armor", "--export")

    def clearsign(self, text: str) -> str:
        """The text with a signature around it."""
        return self._gpg("--clearsign", text=text)

    def _gpg(self, *argv: str, text: str | None = None) -> str:
        # The home is long for a socket's name; gpg's agent ends with the home.
        with tempfile.TemporaryDirectory(prefix="gpg-") as short:
            link = Path(short, "home")
            link.symlink_to(self._home)
            command = ["gpg", "--homedir", str(link), "--batch", "--yes", "--pinentry-mode", "loopback", *argv]
            try:
                return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
            finally:
                subprocess.run(["gpgconf", "--homedir", str(link), "--kill", "all"], check=False, capture_output=True)


def package(folder: Path, name: str, version: str = "1.0", files: t.Mapping[str, str] | None = None) -> Path:
    """A binary package for all architectures."""
    tree = folder / f"{name}.tree"
    (tree / "DEBIAN").mkdir(parents=True)
    control = f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n"
    (tree / "DEBIAN/control").write_text(control, encoding="utf-8")
    for path, text in (files or {}).items():
        file = tree / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    target = folder / f"{name}_{version}_all.deb"
    argv = ["dpkg-deb", "--root-owner-group", "--build", str(tree), str(target)]
    subprocess.run(argv, check=True, capture_output=True)
    return target


def publish(root: Path, packages: t.Iterable[Path], signer: Signer) -> Path:
    """Make the repository of these packages at ``root``: suite C(stable), component C(main)."""
    pool, index = root / "pool", root / "dists" / SUITE / "main" / "binary-amd64"
    pool.mkdir(parents=True)
    index.mkdir(parents=True)
    stanzas = []
    for deb in packages:
        copy = pool / deb.name
        copy.write_bytes(deb.read_bytes())
        control = subprocess.run(["dpkg-deb", "--field", str(deb)], capture_output=True, text=True, check=True).stdout
        digest = hashlib.sha256(copy.read_bytes()).hexdigest()
        stanzas.append(f"{control.strip()}\nFilename: pool/{deb.name}\nSize: {copy.stat().st_size}\nSHA256: {digest}\n")
    listing = index / "Packages"
    listing.write_text("\n".join(stanzas), encoding="utf-8")
    digest = hashlib.sha256(listing.read_bytes()).hexdigest()
    release = (
        f"Origin: test\nSuite: {SUITE}\nCodename: {SUITE}\nArchitectures: amd64 all\nComponents: main\n"
        "Date: Thu, 01 Jan 2026 00:00:00 UTC\n"
        f"SHA256:\n {digest} {listing.stat().st_size} main/binary-amd64/Packages\n"
    )
    (root / "dists" / SUITE / "InRelease").write_text(signer.clearsign(release), encoding="utf-8")
    return root


class _Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        # A proxy is asked for whole URLs.
        if self.path.startswith("http://"):
            self.path = "/" + self.path.split("/", 3)[3]
        self.server.asked.append((self.requestline.split()[1], self.headers.get("Host", "")))  # type: ignore[attr-defined]
        super().do_GET()

    def log_message(self, *_args: t.Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def served(root: Path) -> t.Iterator[tuple[str, list[tuple[str, str]]]]:
    """The URL at which a directory is served, which also answers as a proxy; and what was asked for, with its host."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=str(root)))
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.asked  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main(target: str) -> None:
    """Make what the molecule scenario «applications» uses: the repository, its key, and the fingerprint of that."""
    folder = Path(target)
    signer = Signer(folder / "home", "acme")
    made = [
        package(folder, name)
        for name in ("acme-tool", "acme-other", "linux-image-6.1.0-9-tiny", "linux-image-6.1.0-25-tiny")
    ]
    publish(folder / "root", made, signer)
    (folder / "acme.asc").write_text(signer.public, encoding="utf-8")
    (folder / "fingerprint").write_text(signer.fingerprint, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
