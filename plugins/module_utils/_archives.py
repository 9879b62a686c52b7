# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""OVA files and Vagrant boxes: tar archives around a disk, the same bytes every time.

Sources: DMTF DSP0243 (OVF), chapter «Distribution of OVF packages», for the order (descriptor, manifest, certificate, disks),
the manifest and the signature; POSIX ustar; vagrant-libvirt, «Box format», for the box.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import struct
import tarfile
import typing as t
import zlib
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import Digester
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._raw_write import GZIP_HEADER
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors

_EPOCH = 315532800
"""1980-01-01: tar finds older times «implausible»."""

_USTAR_LARGEST = 8 << 30
_CHUNK = 4 << 20
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n?", re.DOTALL)
_MANIFEST_LINE = re.compile(r"^SHA256\(([^()/\n]+)\)= ([0-9a-f]{64})$", re.MULTILINE)
_VAGRANTFILE = b"""Vagrant.configure("2") do |config|
  # The image has no account of its own: give it one by cloud-init, for example from a seed ISO.
  config.vm.synced_folder ".", "/vagrant", disabled: true
  config.vm.provider :libvirt do |libvirt|
    libvirt.driver = "kvm"
    libvirt.disk_bus = "virtio"
  end
end
"""

Percent = t.Callable[[float], None]


@dataclasses.dataclass(frozen=True)
class Signer:
    """Who signs an OVA: files in PEM; the key is an RSA key without a passphrase."""

    certificate: Path
    key: Path

    def check(self) -> str:
        """The SHA-256 fingerprint of the certificate; raises FactoryError where these two cannot sign."""
        given = self._openssl("x509", "-in", self.certificate, "-noout", "-pubkey", about=self.certificate).stdout
        own = self._openssl("pkey", "-in", self.key, "-pubout", about=self.key).stdout
        if given.strip() != own.strip():
            raise FactoryError("does not belong to the certificate", where=str(self.key), mend="give the key of it")
        kind = self._openssl("pkey", "-in", self.key, "-noout", "-text", about=self.key).stdout
        if not re.match(r"(RSA )?Private-Key: \(\d+ bit, \d+ primes\)", kind):
            raise FactoryError("is no RSA key", where=str(self.key), mend="give an RSA key, OVF knows no other")
        ends = _cli.run(["openssl", "x509", "-in", self.certificate, "-noout", "-checkend", "0"], check=False)
        if ends.rc:
            raise FactoryError("has expired", where=str(self.certificate), mend="give one that is valid")
        printed = self._openssl(
            *("x509", "-in", self.certificate, "-noout", "-fingerprint", "-sha256"), about=self.certificate
        ).stdout
        return printed.partition("=")[2].strip().replace(":", "").lower()

    @staticmethod
    def _openssl(*args: str | Path, about: Path) -> _cli.Completed:
        with explain_os_errors(about):
            about.open("rb").close()
        done = _cli.run(["openssl", *args], timeout=60, check=False)
        if done.rc:
            what = "certificate" if args[0] == "x509" else "RSA key without a passphrase"
            raise FactoryError(f"is no {what} in PEM", where=str(about), mend="give one")
        return done

    def sign(self, manifest: bytes, name: str, scratch: Path) -> bytes:
        """The C(.cert) file of a manifest with this name."""
        with explain_os_errors(scratch):
            scratch.write_bytes(manifest)
            signature = scratch.with_name(f"{scratch.name}.sig")
        try:
            self._openssl("dgst", "-sha256", "-sign", self.key, "-out", signature, scratch, about=self.key)
            line = f"SHA256({name})= {signature.read_bytes().hex()}\n"
        finally:
            signature.unlink(missing_ok=True)
            scratch.unlink(missing_ok=True)
        return line.encode("ascii") + b"".join(_PEM.findall(self.certificate.read_bytes()))


def content_digest(content: bytes) -> str:
    """The SHA-256 of a few bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def manifest(digests: t.Mapping[str, str]) -> bytes:
    """The C(.mf) file of files with these SHA-256."""
    return "".join(f"SHA256({name})= {digest}\n" for name, digest in digests.items()).encode("utf-8")


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    info.mtime = _EPOCH
    if size >= _USTAR_LARGEST:
        return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")
    return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")


def pack(
    target: Path,
    small: t.Mapping[str, bytes],
    disk: Path,
    disk_name: str,
    *,
    compressed: bool = False,
    tick: Percent,
) -> dict[str, str]:
    """Write a tar archive of the ``small`` files, in this order, and the ``disk`` behind them; returns its digests.

    :param compressed: wrap it in gzip.
    """
    size = disk.stat().st_size
    with explain_os_errors(target), target.open("wb") as stream, Digester() as digester:
        sink = _Gzip(stream, digester) if compressed else _Plain(stream, digester)
        written = 0
        for name, content in small.items():
            sink.put(_header(name, len(content)) + content + bytes(-len(content) % tarfile.BLOCKSIZE))
            written += tarfile.BLOCKSIZE + len(content) + -len(content) % tarfile.BLOCKSIZE
        sink.put(_header(disk_name, size))
        with disk.open("rb") as source:
            done = 0
            while chunk := source.read(_CHUNK):
                sink.put(chunk)
                done += len(chunk)
                tick(100 * done / max(size, 1))
        written += tarfile.BLOCKSIZE + size
        padding = -size % tarfile.BLOCKSIZE
        written += padding + 2 * tarfile.BLOCKSIZE
        sink.put(bytes(padding + 2 * tarfile.BLOCKSIZE + -written % tarfile.RECORDSIZE))
        sink.finish()
    return digester.hexdigests()


class _Plain:
    def __init__(self, stream: t.BinaryIO, digester: Digester) -> None:
        self._stream = stream
        self._digester = digester

    def put(self, content: bytes) -> None:
        self._stream.write(content)
        self._digester.update(content)

    def finish(self) -> None:
        self._stream.flush()


class _Gzip(_Plain):
    """One member of gzip, of stored blocks: what is in it is compressed already."""

    def __init__(self, stream: t.BinaryIO, digester: Digester) -> None:
        super().__init__(stream, digester)
        self._compressor = zlib.compressobj(0, zlib.DEFLATED, -zlib.MAX_WBITS)
        self._crc = self._size = 0
        super().put(GZIP_HEADER)

    def put(self, content: bytes) -> None:
        self._crc = zlib.crc32(content, self._crc)
        self._size += len(content)
        super().put(self._compressor.compress(content))

    def finish(self) -> None:
        super().put(self._compressor.flush() + struct.pack("<II", self._crc, self._size & 0xFFFFFFFF))
        super().finish()


def verify_ova(path: Path, disk_digest: str) -> None:
    """Read an OVA back: order, manifest and disk; raises FactoryError where something is not as it should be."""
    problem = _ova_problem(path, disk_digest)
    if problem:
        raise FactoryError(problem, where=str(path), mend="check the builder's memory and disks")


def _ova_problem(path: Path, disk_digest: str) -> str | None:
    try:
        with tarfile.open(path, "r:") as archive:
            found = {info.name: _member_digest(archive, info) for info in archive}
            names = list(found)
            listed = archive.extractfile(names[1])
            text = listed.read().decode("ascii") if listed else ""
    except (tarfile.TarError, UnicodeDecodeError, LookupError) as exc:
        return f"is no OVA: {exc}"
    said = dict(_MANIFEST_LINE.findall(text))
    if said != {name: found[name] for name in (names[0], names[-1])}:
        return "has other files than its manifest says"
    return None if found[names[-1]] == disk_digest else "holds another disk than it should"


def _member_digest(archive: tarfile.TarFile, info: tarfile.TarInfo) -> str:
    stream = archive.extractfile(info)
    with Digester(["sha256"]) as digester:
        while stream and (chunk := stream.read(_CHUNK)):
            digester.update(chunk)
    return digester.hexdigests()["sha256"]


def box_files(virtual_size: int) -> dict[str, bytes]:
    """The small files of a box for the provider libvirt. Its size is in GiB, rounded up."""
    metadata = {"format": "qcow2", "provider": "libvirt", "virtual_size": -(-virtual_size // (1 << 30))}
    return {"metadata.json": (json.dumps(metadata) + "\n").encode("ascii"), "Vagrantfile": _VAGRANTFILE}


def verify_box(path: Path, disk_digest: str) -> None:
    """Read a box back; raises FactoryError where it holds another disk."""
    found = None
    with contextlib.suppress(tarfile.TarError, zlib.error, OSError), tarfile.open(path, "r|gz") as archive:
        for info in archive:
            found = _member_digest(archive, info) if info.name == "box.img" else found
    if found != disk_digest:
        raise FactoryError(
            "holds another disk than it should", where=str(path), mend="check the builder's memory and disks"
        )
