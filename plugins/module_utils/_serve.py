# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Putting files where they are served: artifacts first, the list that names them last, nothing that is there already.

What is there is known by its size and, beside each artifact, a file C(<name>.sha256) in the format of sha256sum(1), which is
written after the artifact. So an artifact whose transfer was cut short is sent again, and one that is there costs two small
requests. How files get there is a :class:`Store`, one a protocol (C(_serve_<protocol>.py)).
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import hashlib
import io
import re
import time
import typing as t
from pathlib import Path, PurePosixPath

from ansible_collections.cloudimg.factory.plugins.module_utils import _state
from ansible_collections.cloudimg.factory.plugins.module_utils._download import Interrupted
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

SIDECAR = ".sha256"
LARGEST_LIST = 64 << 20
"""Bytes of the longest list that is compared with the one that is served."""
_NAME = re.compile(r"[A-Za-z0-9_+~@=,-][A-Za-z0-9._+~@=,-]*")
_LOCK_WAIT = 900.0
DELAYS = (1.0, 4.0)
"""Seconds before each new attempt of what the network has cut short."""
AGAIN = "check the network and that server, then run this again"

_T = t.TypeVar("_T")

__all__ = ["AGAIN", "Content", "Interrupted", "Place", "Store", "persist"]


@dataclasses.dataclass(frozen=True)
class Content:
    """What a file shall contain: that of a ``path``, or ``data``; ``sha256`` in hex."""

    size: int
    sha256: str
    path: Path | None = None
    data: bytes = b""

    @classmethod
    def of(cls, data: bytes) -> Content:
        """The content of a small file."""
        return cls(len(data), hashlib.sha256(data).hexdigest(), None, data)

    def open(self) -> t.BinaryIO:
        """A stream of it."""
        if self.path:
            with _state.explain_os_errors(self.path):
                return self.path.open("rb")
        return io.BytesIO(self.data)


class Store(abc.ABC):
    """A directory elsewhere. Names are relative to it, with slashes; ``where`` is how messages call it, without secrets.

    Each method raises FactoryError, and Interrupted where the network failed and a later run may do better.
    """

    where: str
    sent = 0
    """Bytes of content that were sent."""

    @abc.abstractmethod
    def size(self, name: str) -> int | None:
        """A file's size in bytes; None where there is none."""

    @abc.abstractmethod
    def read(self, name: str, limit: int) -> bytes | None:
        """A small file's content, or its first ``limit`` bytes and one more; None where there is none."""

    @abc.abstractmethod
    def put(self, name: str, content: Content, progress: Progress) -> None:
        """Have a file with that content, if need be in a new directory; until it is whole, none of it is under that name."""

    @abc.abstractmethod
    def remove(self, name: str) -> bool:
        """Have no such file; whether there was one."""

    def sha256(self, name: str) -> str | None:
        """The SHA-256 (hex) of a file that is there, as far as the store itself knows it."""
        return None

    def close(self) -> None:  # noqa: B027 - most have nothing to do
        """End the connection."""

    def at(self, name: str) -> str:
        """What messages call a file."""
        return f"{self.where.rstrip('/')}/{name}"


def persist(attempt: t.Callable[[], _T], progress: Progress) -> _T:
    """Repeat what raises Interrupted, a few times; for what may be done twice."""
    for delay in DELAYS:
        with contextlib.suppress(Interrupted):
            return attempt()
        end = time.monotonic() + delay
        while time.monotonic() < end:
            progress.report()
            time.sleep(0.1)
    return attempt()


def check_name(name: str, key: str) -> str:
    """A name below a store, which has to be the same in a path, a URL, and a shell; raises FactoryError where it is not."""
    parts = name.split("/")
    if not all(_NAME.fullmatch(part) for part in parts):
        raise FactoryError(
            f"{name!r} cannot be the name of a served file",
            key=key,
            mend="use letters, digits and . _ + ~ @ = , - (no point first), with slashes between directories",
        )
    return name


@dataclasses.dataclass
class Place:
    """Where files are served, and what is done there.

    :param public: the URL under which readers see the store, without a slash at its end; None where that is not known.
    """

    store: Store
    result: Result
    progress: Progress
    public: str | None = None
    check_mode: bool = False

    def url(self, name: str) -> str | None:
        """Under which URL readers get a file."""
        return f"{self.public}/{name}" if self.public else None

    def put_artifact(self, name: str, content: Content, settled: t.Callable[[], object] = lambda: None) -> None:
        """Have an artifact there, whole, and its checksum beside it.

        :param settled: called between these two; raises FactoryError where what was sent has changed meanwhile.
        """
        sidecar = Content.of(f"{content.sha256}  {PurePosixPath(name).name}\n".encode("ascii"))
        beside = self.store.read(name + SIDECAR, 1024)
        reason = self._differs(name, content, beside)
        if reason is None and beside == sidecar.data:
            return
        self.result.act(f"{self.store.at(name)}: {reason or 'is there without its checksum'}")
        if self.check_mode:
            return
        if reason is not None:
            if beside is not None:
                # What is replaced must not be taken for what it was, should this be cut short.
                self.store.remove(name + SIDECAR)
            self.progress.phase(f"send {PurePosixPath(name).name}")
            self._put(name, content)
            try:
                settled()
            except FactoryError:
                with contextlib.suppress(FactoryError):
                    self.store.remove(name)  # it would be taken for what it should have been
                raise
        self._put(name + SIDECAR, sidecar)

    def put_list(self, name: str, path: Path) -> None:
        """Have there what a small file contains; artifacts that it names have to be there before.

        Of several that publish the same list at the same time, the last one sends it as it is then.
        """
        if self.check_mode:
            if path.exists():
                self._list_differs(name, path)
            else:
                self.result.act(f"{self.store.at(name)}: what would make {path} would be sent")
            return
        with _state.lock(path.with_name(f".{path.name}.upload"), wait=_LOCK_WAIT, busy="another process publishes it"):
            content = self._list_differs(name, path)
            if content:
                self.progress.phase(f"send {path.name}")
                self._put(name, content)

    def _list_differs(self, name: str, path: Path) -> Content | None:
        """What has to be sent; None where it is there."""
        with _state.explain_os_errors(path):
            content = Content.of(path.read_bytes())
        if content.size > LARGEST_LIST:
            raise FactoryError("is too long for a list", where=str(path), mend="check that it is one")
        there = self.store.read(name, LARGEST_LIST)
        if there == content.data:
            return None
        self.result.act(f"{self.store.at(name)}: {'is not there' if there is None else 'is another one'}")
        return content

    def remove(self, name: str) -> None:
        """Have no such file, and none with its checksum."""
        for each in (name, name + SIDECAR):
            there = self.store.size(each) is not None if self.check_mode else self.store.remove(each)
            if there and each == name:
                self.result.act(f"{self.store.at(name)}: shall not be there")

    def _differs(self, name: str, content: Content, beside: bytes | None) -> str | None:
        """Why an artifact has to be sent; None where it is there. ``beside`` is what the file of its checksum contains."""
        size = self.store.size(name)
        if size is None:
            return "is not there"
        if size != content.size:
            return f"has {size} bytes, not {content.size}"
        words = (beside or b"").decode("utf-8", "replace").split()
        found = self.store.sha256(name) or (words[0] if words else None)
        if found is None:
            return "is there without its checksum, so that nobody knows whether it is whole"
        return None if found == content.sha256 else f"differs: SHA-256 is {found[:16]}…, not {content.sha256[:16]}…"

    def _put(self, name: str, content: Content) -> None:
        self.store.put(name, content, self.progress)
        size = self.store.size(name)
        if size != content.size:
            raise FactoryError(
                f"was sent with {content.size} bytes, and has {'none' if size is None else size} there",
                where=self.store.at(name),
                mend="check that this is where that server puts what it is sent, and its quota",
            )
