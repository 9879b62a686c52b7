# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""A search through all files of a system for credentials; in passing it adds up how large its directories are.

What it finds is named by path, line and kind; the credential itself is never told. Each file is read once.
"""

from __future__ import annotations

import bz2
import dataclasses
import difflib
import fnmatch
import hashlib
import lzma
import os
import re
import stat
import struct
import sys
import typing as t
import zlib
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _credentials_files as files
from ansible_collections.cloudimg.factory.plugins.module_utils import _credentials_rules as rules
from ansible_collections.cloudimg.factory.plugins.module_utils import _credentials_values as values_
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

BUILD_SECRET = "build_secret"
KINDS = rules.KINDS | files.KINDS | {BUILD_SECRET}
_CHUNK = 32 << 20
_OVERLAP = 64 << 10
_HEAD = 8 << 10
_PACKED_LIMIT = 32 << 20
_SIZES = 40
_PACKAGED = re.compile(r"/(?:usr/(?!local/)|lib\w*/|bin/|sbin/|boot/)")
"""Where packages have their files, and nobody else should."""
_NOT_REAL = re.compile(
    r"autofs|binfmt_misc|bpf|cgroup2?|configfs|debugfs|devpts|devtmpfs|efivarfs|fusectl|hugetlbfs|mqueue|nsfs|proc|pstore|ramfs"
    r"|securityfs|sysfs|tmpfs|tracefs"
)
_KERNELS = ("proc", "sys", "dev", "run")
_COMPILED = re.compile(r"/__pycache__/([^/]+?)\.cpython-\d+(?:\.opt-\d)?\.pyc$")
_DOCUMENTATION = re.compile(r"/usr/(?:share/(?:doc|man|info|help|locale)|src)/")


class Finding(t.NamedTuple):
    """A credential: an absolute path in the system, the line (0 in binary files), and which of the build's secrets it is."""

    path: str
    kind: str
    line: int
    secret: int = 0

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}" if self.line else self.path
        return f"{where} ({f'secret {self.secret}' if self.secret else self.kind.replace('_', ' ')})"


@dataclasses.dataclass
class Report:
    """What a scan has seen.

    :ivar allowed: findings that the caller allows.
    :ivar published: files that are just as a package brought them. So everybody can have them: no place for credentials
        but the build's own secrets.
    :ivar skipped: what was not, or not wholly, looked into, with the reason.
    :ivar sizes: bytes on the disk by directory, two levels deep.
    """

    findings: list[Finding] = dataclasses.field(default_factory=list)
    allowed: list[Finding] = dataclasses.field(default_factory=list)
    skipped: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    scanned: int = 0
    published: int = 0
    bytes: int = 0


def scan(root: Path, secrets: t.Sequence[str] = (), allowed: t.Sequence[str] = ()) -> Report:
    """Search the system below ``root``.

    :param secrets: texts that must not be in any file, nor in a file's name or where a symbolic link leads.
    :param allowed: patterns of paths, or C(path:kind), of what may stay.
    :raises FactoryError: a pattern or a secret makes no sense, or there is no such directory.
    """
    if not root.is_dir():
        raise FactoryError("is no directory", where=str(root), key="root", mend="give the root of a system")
    return _Scan(root, values_.values(secrets), [_allowance(pattern) for pattern in allowed]).run()


def _allowance(pattern: str) -> tuple[str, str]:
    path, _sep, kind = pattern.rpartition(":") if re.search(r":\w*\*?$", pattern) else (pattern, "", "*")
    if not path.startswith(("/", "*")):
        raise FactoryError(
            f"{pattern!r} is not an absolute path",
            key="allowed",
            mend="let it begin with / or *, such as '/etc/x:private_key'",
        )
    if "*" not in kind and kind not in KINDS:
        close = difflib.get_close_matches(kind, KINDS, n=1, cutoff=0.4)
        mend = f"did you mean {close[0]}?" if close else f"use one of: {', '.join(sorted(KINDS))}"
        raise FactoryError(f"there is no kind {kind!r} of credentials", key="allowed", mend=mend)
    return path, kind


class _Scan:
    """One search on its way."""

    def __init__(self, root: Path, wanted: list[values_.Value], allowed: list[tuple[str, str]]) -> None:
        self._root = str(root).rstrip("/")
        self._wanted = wanted
        self._allowed = allowed
        self._packages = _Packages(root)
        self._links: set[tuple[int, int]] = set()
        self._not_real = _not_real_mounts()
        self._ourselves = _our_files()
        self.report = Report()

    def run(self) -> Report:
        waiting = [(self._root or "/", "")]
        while waiting:
            where, path = waiting.pop()
            try:
                with os.scandir(where) as found:
                    entries = sorted(found, key=lambda entry: entry.name)
            except OSError as exc:
                self._skip(path or "/", exc.strerror or "cannot be read")
                continue
            for entry in entries:
                inside = f"{path}/{entry.name}"
                if self._is_ours_to_read(entry, inside):
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append((entry.path, inside))
                    self._entry(entry, inside)
        sizes = sorted(self.report.sizes.items(), key=lambda item: (-item[1], item[0]))
        self.report.sizes = dict(sizes[:_SIZES])
        self.report.findings.sort()
        self.report.allowed.sort()
        return self.report

    def _is_ours_to_read(self, entry: os.DirEntry[str], path: str) -> bool:
        if path.count("/") == 1 and entry.name in _KERNELS:
            return False
        if entry.path in self._ourselves:
            return False
        if entry.path in self._not_real:
            self._skip(path, f"a {self._not_real[entry.path]} is mounted there")
            return False
        return True

    def _entry(self, entry: os.DirEntry[str], path: str) -> None:
        """A file, a directory, or anything else by that name."""
        self._values_in(path, os.fsencode(path))
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            self._values_in(path, os.fsencode(os.readlink(entry.path)))
            return
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            if (status.st_dev, status.st_ino) in self._links:
                return
            self._links.add((status.st_dev, status.st_ino))
        self._add_size(path, status.st_blocks * 512)
        if not stat.S_ISREG(status.st_mode):
            return
        self.report.scanned += 1
        if status.st_size:
            self._file(entry.path, path, status)

    def _add_size(self, path: str, size: int) -> None:
        parts = path.split("/")[1:-1]
        for depth in range(1, min(len(parts), 2) + 1):
            name = "/" + "/".join(parts[:depth])
            self.report.sizes[name] = self.report.sizes.get(name, 0) + size

    def _file(self, name: str, path: str, status: os.stat_result) -> None:
        try:
            with Path(name).open("rb", buffering=0) as stream:
                if status.st_size <= _CHUNK:
                    data = stream.read(_CHUNK)
                    self.report.bytes += len(data)
                    self._whole(path, data)
                else:
                    self._large(path, stream, status.st_size)
        except OSError as exc:
            self._skip(path, exc.strerror or "cannot be read")

    def _whole(self, path: str, data: bytes) -> None:
        """A file that fits into the memory."""
        text = b"\0" not in data[:_HEAD]
        self._values_in(path, data, text)
        packaged = _PACKAGED.match(path) is not None
        if packaged and self._packages.brought(path, data):
            self.report.published += 1
            return
        found: list[tuple[int, str]] = []
        if not packaged:
            found += files.judge(path, data)
        if not packaged or text:
            found += rules.hits(data, rules.PUBLIC_RULES if packaged else rules.RULES)
        else:
            found += rules.private_keys(data)
        more = files.says_more(kind for _at, kind in found)
        if found and not (packaged and self._packages.compiled(path, data)):
            self._take(path, data, [hit for hit in found if not (more and hit[1] == "private_key")], text)
        self._packed(path, data)

    def _large(self, path: str, stream: t.BinaryIO, size: int) -> None:
        """A file that is read in pieces, without its holes; searched for private keys and the build's secrets."""
        self._skip(path, f"is larger than {_CHUNK >> 20} MiB: searched for private keys and the build's secrets only")
        at = 0
        tail = b""
        while at < size:
            try:
                start = os.lseek(stream.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            tail = tail if start == at else b""
            stream.seek(start)
            data = stream.read(_CHUNK)
            if not data:
                break
            self.report.bytes += len(data)
            window = tail + data
            self._take(path, window, list(rules.private_keys(window)), text=False)
            self._values_in(path, window)
            tail = window[-_OVERLAP:]
            at = start + len(data)

    def _packed(self, path: str, data: bytes) -> None:
        """What is compressed in a file."""
        unpacked = unpack(data)
        if isinstance(unpacked, str):
            self._skip(path, unpacked)
        elif unpacked:
            wanted = rules.PUBLIC_RULES if _PACKAGED.match(path) else rules.RULES
            self._take(path, unpacked, list(rules.hits(unpacked, wanted)), text=False)
            self._values_in(path, unpacked)

    def _values_in(self, path: str, data: bytes, text: bool = False) -> None:
        for at, number in values_.hits(data, self._wanted):
            self._note(Finding(path, BUILD_SECRET, data.count(b"\n", 0, at) + 1 if text else 0, number))

    def _take(self, path: str, data: bytes, found: list[tuple[int, str]], text: bool) -> None:
        """Note the first finding of each kind in a file."""
        first: dict[str, int] = {}
        for at, kind in found:
            first[kind] = min(at, first.get(kind, at))
        for kind, at in first.items():
            self._note(Finding(path, kind, data.count(b"\n", 0, at) + 1 if text else 0))

    def _note(self, finding: Finding) -> None:
        report = self.report
        if any(
            fnmatch.fnmatchcase(finding.path, path) and fnmatch.fnmatchcase(finding.kind, kind)
            for path, kind in self._allowed
        ):
            kept = report.allowed
        else:
            kept = report.findings
        same = {(other.path, other.kind, other.secret) for other in kept}
        if (finding.path, finding.kind, finding.secret) not in same:
            kept.append(finding)

    def _skip(self, path: str, reason: str) -> None:
        self.report.skipped.append((path, reason))


class _Packages:
    """Which files are just as a package brought them, as far as the package manager knows it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._sums: dict[str, str] | None = None

    def brought(self, path: str, data: bytes) -> bool:
        """Whether everybody has that file: it has the digest that dpkg knows, or is documentation.

        (RPM has its digests in a database that only itself can read.)
        """
        if self._sums is None:
            self._sums = self._read()
        if not self._sums:
            return _DOCUMENTATION.match(path) is not None
        known = self._sums.get(path[1:])
        return known is not None and known == hashlib.new("md5", data, usedforsecurity=False).hexdigest()

    def compiled(self, path: str, data: bytes) -> bool:
        """Whether Python has made that file of one that everybody has."""
        source = _COMPILED.sub(r"/\1.py", path)
        origin = self._root / source[1:]
        if source == path or origin.is_symlink() or not origin.is_file():
            return False
        status = origin.stat()
        # In it stands of when, and how large, the source was.
        made_of = struct.pack("<II", int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF)
        return data[8:16] == made_of and self.brought(source, origin.read_bytes())

    def _read(self) -> dict[str, str]:
        sums = {}
        for listing in sorted((self._root / "var/lib/dpkg/info").glob("*.md5sums")):
            for line in listing.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
                digest, _sep, name = line.partition("  ")
                sums[name] = digest
                if not name.startswith("usr/"):
                    # Packages may still call /usr/lib by its former name, which is a symbolic link now.
                    sums[f"usr/{name}"] = digest
        return sums


def unpack(data: bytes) -> bytes | str:
    """What is in compressed data, at most 32 MiB of it; b"" if it is not compressed, and a reason where it cannot be told."""
    try:
        if data.startswith(b"\x1f\x8b"):
            return zlib.decompressobj(31).decompress(data, _PACKED_LIMIT)
        if data.startswith(b"\xfd7zXZ\x00"):
            return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(data, _PACKED_LIMIT)
        if data.startswith(b"BZh") and data[4:10] == b"1AY&SY":
            return bz2.BZ2Decompressor().decompress(data, _PACKED_LIMIT)
    except (zlib.error, lzma.LZMAError, OSError, EOFError):
        return "cannot be unpacked"
    return "is compressed with zstd, which is not unpacked" if data.startswith(b"\x28\xb5\x2f\xfd") else b""


def _not_real_mounts() -> dict[str, str]:
    """Where something is mounted that is no disk, with what it is."""
    found: dict[str, str] = {}
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return {}
    for line in lines:
        fields = line.split()
        point = re.sub(r"\\(\d{3})", lambda code: chr(int(code.group(1), 8)), fields[4])
        kind = fields[fields.index("-") + 1]
        # The last one is what is seen there.
        found.pop(point, None)
        if _NOT_REAL.fullmatch(kind):
            found[point] = kind
    return found


def _our_files() -> frozenset[str]:
    """Where Ansible has put this program, the secrets that it was given included; it removes that itself."""
    places = [Path(__file__).absolute(), Path(sys.argv[0]).absolute()]
    parents = {parent for place in places for parent in place.parents}
    return frozenset(
        str(parent)
        for parent in parents
        if re.match(r"ansible_\w+_payload_|ansible-tmp-", parent.name) and parent.is_dir()
    )
