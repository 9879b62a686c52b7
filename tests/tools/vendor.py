# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a vendor of installation media does: makes ISOs, lists their checksums, signs the list."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import typing as t
from pathlib import Path

BOOT_FILES = {"install.amd/vmlinuz": b"kernel", "install.amd/initrd.gz": b"initrd"}


def make_iso(path: Path, files: t.Mapping[str, bytes] | None = None, label: str = "TEST_CD", filler: int = 0) -> Path:
    """A small real ISO; ``filler`` bytes of incompressible content make it larger."""
    tree = path.with_name(f"{path.name}.tree")
    for name, content in {
        **(BOOT_FILES if files is None else files),
        "filler": hashlib.shake_256(label.encode()).digest(filler),
    }.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
    argv = ["xorriso", "-as", "mkisofs", "-quiet", "-R", "-V", label, "-o", str(path), str(tree)]
    subprocess.run(argv, check=True, capture_output=True)
    return path


def sha256(data: bytes | Path) -> str:
    """The SHA-256 of bytes or of a file."""
    return hashlib.sha256(data if isinstance(data, bytes) else data.read_bytes()).hexdigest()


def sums(*files: Path, algorithm: str = "sha256") -> bytes:
    """A checksum file as sha256sum writes it."""
    lines = (f"{hashlib.new(algorithm, file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    return "".join(lines).encode()


class Signer:
    """An OpenPGP key in a home of its own; end it by :meth:`close`, lest an agent stays."""

    def __init__(self, home: Path, name: str = "Vendor") -> None:
        home.mkdir(mode=0o700)
        self._home = home
        self._gpg("--quick-generate-key", f"{name} <vendor@example.org>", "ed25519", "sign", "never")
        listing = self._gpg("--list-keys", "--with-colons").decode()
        self.fingerprint = next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr:"))

    def keyring(self, path: Path, *, armor: bool = False) -> Path:
        """Write the public key to ``path``."""
        path.write_bytes(self._gpg("--export", *(["--armor"] if armor else [])))
        return path

    def detached(self, data: bytes, *options: str) -> bytes:
        """A detached signature."""
        return self._gpg(*options, "--detach-sign", data=data)

    def clearsigned(self, data: bytes) -> bytes:
        """A clearsigned message."""
        return self._gpg("--clear-sign", data=data)

    def inline(self, data: bytes, *options: str) -> bytes:
        """A signed message in OpenPGP format."""
        return self._gpg(*options, "--sign", data=data)

    def unsigned(self, data: bytes) -> bytes:
        """A message in OpenPGP format that nobody signed."""
        return self._gpg("--armor", "--store", data=data)

    def expire(self) -> None:
        """Let the key have expired a moment ago."""
        self._gpg("--quick-set-expire", self.fingerprint, "seconds=1")

    def close(self) -> None:
        """End the agent."""
        subprocess.run(["gpgconf", "--homedir", str(self._home), "--kill", "all"], check=True)

    def _gpg(self, *argv: str, data: bytes = b"") -> bytes:
        base = ["gpg", "--homedir", str(self._home), "--batch", "--yes", "--quiet", "--pinentry-mode", "loopback"]
        done = subprocess.run([*base, "--passphrase", "", *argv], input=data, check=True, capture_output=True)
        return done.stdout


@contextlib.contextmanager
def two_signers(folder: Path) -> t.Iterator[tuple[Signer, Signer]]:
    """The vendor's key, and that of somebody else."""
    pair = Signer(folder / "vendor"), Signer(folder / "other", "Other")
    try:
        yield pair
    finally:
        for signer in pair:
            signer.close()
