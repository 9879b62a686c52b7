# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Where a disk to be imported can be had: a URL, a path, a block device, or a running machine."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _sums
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import Digester, data_digest
from ansible_collections.cloudimg.factory.plugins.module_utils._download import Client
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._import_ssh import Reader, Remote
from ansible_collections.cloudimg.factory.plugins.module_utils._import_stream import CHUNK, SparseWriter
from ansible_collections.cloudimg.factory.plugins.module_utils._medium import Brought
from ansible_collections.cloudimg.factory.plugins.module_utils._origins import Definition, FileOrigin
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.plugins.module_utils._source_disk import KEY, SourceDisk, check_source
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors, remove


@contextlib.contextmanager
def our_keys() -> t.Iterator[None]:
    """Let errors of what is made for installation media name the keys of imported disks."""
    try:
        yield
    except FactoryError as exc:
        for name in ("key", "problem", "mend"):
            text = getattr(exc, name)
            if text and "image_medium" in text:
                setattr(exc, name, text.replace("image_medium", KEY))
        if exc.mend == "give the path of an ISO on the builder":
            exc.mend = "give the path of a disk on the builder"
        raise


class Source(t.Protocol):
    """Where a disk can be had; see :class:`_medium.Origin` for what they have in common."""

    key: str
    place: str
    shown: str
    warnings: list[str]

    def inputs(self) -> str:
        """Digest of the local files that its definition names."""

    def expected(self) -> _sums.Checksum | None:
        """The checksum that it must have, if it must have one."""

    def bring(self, part: Path, algorithms: t.Sequence[str], limit: int) -> Brought:
        """Write it to ``part``; what is a disk itself may have ``limit`` bytes."""


def source_of(given: SourceDisk, client: Client, progress: Progress, silence: float) -> Source:
    """The source that a definition names.

    :raises FactoryError: what it says does not fit together.
    """

    def refuse(path: t.Sequence[str], problem: str, mend: str) -> t.NoReturn:
        raise FactoryError(problem, where="definition", key=".".join((KEY, *path)), mend=mend)

    check_source(given, refuse)
    if given.ssh:
        return SshSource(given, progress, silence)
    return DeviceSource(given, progress) if given.device else FileSource(given, client, progress)


def too_large(where: str, limit: int, size: int | None = None) -> FactoryError:
    """The error for a disk that does not fit into the image's; ``size`` is its own in bytes, where that is known."""
    enough = f"{-(-size // (1 << 20))}M" if size else "the size of that disk"
    return FactoryError(
        f"{f'has {size} bytes and' if size else ''} is larger than the disk of the image ({limit} bytes)",
        where=where,
        key="image_disk.size",
        mend=f"set it to {enough} or more, if that is the right disk",
    )


class FileSource:
    """A file at a URL or a path, verified as installation media are."""

    def __init__(self, given: SourceDisk, client: Client, progress: Progress) -> None:
        names = ("url", "path", "checksum", "signature", "keyring", "fingerprints")
        with our_keys():
            self._origin = FileOrigin(
                Definition(family="disk", **{name: getattr(given, name) for name in names}), client, progress
            )
        self._local = Path(self._origin.shown) if given.path else None
        self._progress = progress
        self.warnings = self._origin.warnings
        self.shown = self._origin.shown
        self.key = data_digest({"disk": self._origin.key})
        self.place = self._origin.place

    def inputs(self) -> str:
        with our_keys():
            return self._origin.inputs()

    def expected(self) -> _sums.Checksum:
        with our_keys():
            return self._origin.expected()

    def bring(self, part: Path, algorithms: t.Sequence[str], limit: int) -> Brought:
        if self._local is None:
            with our_keys():
                return self._origin.bring(part, algorithms)
        if not self._local.is_file():
            problem = "is not a file" if self._local.exists() else "there is no such file"
            raise FactoryError(problem, where=self.shown, key=f"{KEY}.path", mend="give a file on the builder")
        with explain_os_errors(self._local), self._local.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            return Brought(pour(stream, part, size, algorithms, self._progress, f"copying {self.shown}"))


class DeviceSource:
    """A block device of the builder that nothing uses."""

    def __init__(self, given: SourceDisk, progress: Progress) -> None:
        self._device = given.device or ""
        self._checksum = given.checksum
        self._progress = progress
        self.warnings: list[str] = []
        self.shown = self._device
        self.key = data_digest({"device": self._device, "checksum": given.checksum})
        self.place = data_digest({"device": self._device})

    def inputs(self) -> str:
        return ""

    def expected(self) -> _sums.Checksum | None:
        return _sums.explicit(self._checksum) if self._checksum else None

    def bring(self, part: Path, algorithms: t.Sequence[str], limit: int) -> Brought:
        key = f"{KEY}.device"
        try:
            # Where something has mounted it or a partition of it, or stands on it, the kernel refuses to be exclusive.
            handle = os.open(self._device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
        except OSError as exc:
            mends = {
                errno.EBUSY: "unmount it, so that it does not change while it is read",
                errno.EACCES: "run this as root (become: true)",
                errno.EPERM: "run this as root (become: true)",
            }
            mend = mends.get(exc.errno or 0, "check that path")
            raise FactoryError(exc.strerror or str(exc), where=self._device, key=key, mend=mend) from exc
        with os.fdopen(handle, "rb") as stream:
            if not stat.S_ISBLK(os.fstat(handle).st_mode):
                raise FactoryError("is no block device", where=self._device, key=key, mend=f"give a file as {KEY}.path")
            size = stream.seek(0, 2)
            stream.seek(0)
            if size > limit:
                raise too_large(self.shown, limit, size)
            return Brought(pour(stream, part, size, algorithms, self._progress, f"reading {self.shown}"))


class SshSource:
    """A disk of a running machine."""

    def __init__(self, given: SourceDisk, progress: Progress, silence: float) -> None:
        ssh = {name: value for name, value in (given.ssh or {}).items() if value is not None}
        for name in ("identity", "known_hosts"):
            if ssh.get(name):
                ssh[name] = Path(ssh[name]).expanduser().absolute()
        self._remote = Remote(**{**ssh, "port": int(ssh.get("port") or 22)})
        self._checksum = given.checksum
        self._progress = progress
        self._silence = silence
        self.warnings: list[str] = []
        self.shown = str(self._remote)
        where = {"host": self._remote.host, "port": self._remote.port, "device": self._remote.device}
        self.key = data_digest({"ssh": where, "checksum": given.checksum})
        self.place = data_digest({"ssh": where})

    def inputs(self) -> str:
        return ""

    def expected(self) -> _sums.Checksum | None:
        return _sums.explicit(self._checksum) if self._checksum else None

    def bring(self, part: Path, algorithms: t.Sequence[str], limit: int) -> Brought:
        self._progress.phase(f"reading {self.shown}")
        reader = Reader(self._remote, self._progress, key=f"{KEY}.ssh", silence=self._silence)
        return Brought(reader.read(part, algorithms, limit, lambda size: too_large(self.shown, limit, size)))


def pour(
    stream: t.BinaryIO, part: Path, size: int, algorithms: t.Sequence[str], progress: Progress, phase: str
) -> dict[str, str]:
    """Copy a stream to ``part``, zeros as holes; its digests. Nothing is left when it fails."""
    progress.phase(phase)
    try:
        with explain_os_errors(part), part.open("wb") as sink, Digester(algorithms) as digester:
            writer = SparseWriter(sink, 1 << 62, too_large(str(part), 1 << 62))
            while chunk := stream.read(CHUNK):
                digester.update(chunk)
                writer.write(chunk)
                progress.report(done=writer.position, total=size)
            writer.finish()
    except BaseException:
        remove(part)
        raise
    return digester.hexdigests()
