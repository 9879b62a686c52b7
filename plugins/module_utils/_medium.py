# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The media cache: verified installation ISOs, named by their SHA-256, fetched or built when they are not there.

``<workspace>/cache/media/`` holds ``<sha256>.iso``, ``<sha256>.json`` (what it is and where it came from), and for
each definition that was ever answered ``source-<key>.json``, so that the same definition needs no network again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _iso, _sums
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import cached_digests, remember_digests
from ansible_collections.cloudimg.factory.plugins.module_utils._download import Interrupted, discard
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import Cancelled, FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.plugins.module_utils._state import (
    Workspace,
    explain_os_errors,
    lock,
    read_json,
    remove,
    write_json,
)

_FORGOTTEN = 7 * 86400.0  # seconds after which an interrupted download is not taken up again


@dataclasses.dataclass
class Provided:
    """A medium in the cache; or, in check mode, one that would be (then without ``path``)."""

    path: Path | None = None
    sha256: str | None = None
    size: int | None = None
    label: str | None = None
    source: str = ""
    before: str | None = None
    needs: int | None = None
    actions: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Brought:
    """What came: its digests, whether its beginning had been there before, and what else its metadata shall tell."""

    digests: dict[str, str]
    resumed: bool = False
    facts: dict[str, t.Any] = dataclasses.field(default_factory=dict)


class Origin(t.Protocol):
    """Where a medium can be had."""

    key: str
    """Digest of all that defines it."""
    place: str
    """Digest of the place alone: what two jobs must not get at once."""
    medium_key: str
    """The definition's key that names the place, for messages."""
    shown: str
    """The place, for messages and records."""
    verb: str
    warnings: list[str]

    def inputs(self) -> str:
        """Digest of the local files that its definition names."""

    def expected(self) -> _sums.Checksum | None:
        """The checksum that it must have; None where it is made here."""

    def bring(self, part: Path, algorithms: t.Sequence[str]) -> Brought:
        """Write it to ``part``."""


class MediaCache:
    """The cache of one workspace, for one job."""

    def __init__(self, workspace: Workspace, progress: Progress) -> None:
        self._workspace = workspace
        self._folder = workspace.media
        self._progress = progress

    def provide(self, origin: Origin, *, refresh: bool = False, check: bool = False) -> Provided:
        """The medium of a definition, out of the cache where it is there.

        :param refresh: fetch the checksums again, or build again what is built here.
        :param check: only find out what would be done, and why.
        """
        began = time.time()
        record = self._folder / f"source-{origin.key[:32]}.json"
        known = read_json(record, {})
        inputs = origin.inputs()
        provided = Provided(source=origin.shown, before=known.get("sha256"))
        if known and not refresh and known.get("inputs") == inputs and self._intact(known["sha256"]):
            return self._complete(provided, known["sha256"])

        expected = origin.expected()
        found = None if refresh and not expected else self._find(known, expected)
        if not found:
            provided.actions = [f"{origin.verb} {origin.shown}: {self._reason(known, expected, refresh)}"]
            if check:
                provided.sha256 = expected.value if expected and expected.algorithm == "sha256" else None
                return provided
            self._workspace.make()
            self._forget_old()
            with self._alone(origin.place):
                known = read_json(record, {})
                if not refresh or expected or known.get("created", 0.0) >= began:
                    found = self._find(known, expected)  # another job got it while this one waited
                if found:
                    provided.actions = []
                else:
                    found = self._bring(origin, expected)
                    known = {}
        if not check and (found, inputs) != (known.get("sha256"), known.get("inputs")):
            checksum = str(expected) if expected else None
            facts = {"source": origin.shown, "sha256": found, "checksum": checksum, "inputs": inputs}
            write_json(record, {**facts, "created": time.time()})
        return self._complete(provided, found)

    def _named(self, sha256: str) -> Path:
        return self._folder / f"{sha256}.iso"

    def _intact(self, sha256: str) -> bool:
        iso = self._named(sha256)
        with explain_os_errors(iso):
            return iso.is_file() and cached_digests(iso, ["sha256"])["sha256"] == sha256

    def _find(self, known: dict[str, t.Any], expected: _sums.Checksum | None) -> str | None:
        """The SHA-256 of a cached medium that is what is expected."""
        if expected and expected.algorithm == "sha256":
            sha256 = expected.value
        elif known and (expected is None or known.get("checksum") == str(expected)):
            sha256 = known["sha256"]
        else:
            return None
        return sha256 if self._intact(sha256) else None

    def _reason(self, known: dict[str, t.Any], expected: _sums.Checksum | None, refresh: bool) -> str:
        if known and expected and known.get("checksum") != str(expected):
            return f"its checksum changed from {known.get('checksum')} to {expected}"
        sha256 = known.get("sha256") or (expected.value if expected and expected.algorithm == "sha256" else None)
        if sha256 and self._named(sha256).exists() and not self._intact(sha256):
            return "the cached file is damaged"
        return "a fresh one is asked for" if refresh and known else "it is not in the cache"

    @contextlib.contextmanager
    def _alone(self, place: str) -> t.Iterator[None]:
        """Hold the place's lock, after waiting for another job that does."""

        def waiting() -> None:
            if not told:
                told.append(True)
                self._progress.phase("waiting for another job that gets the same medium")
            self._progress.report()

        told: list[bool] = []
        with lock(self._workspace.run / f"media-{place[:32]}.lock", wait=float("inf"), tick=waiting):
            yield

    def _bring(self, origin: Origin, expected: _sums.Checksum | None) -> str:
        """Get the medium and give it its name; returns its SHA-256. On failure nothing is left."""
        part = self._folder / f".incoming-{origin.place[:32]}"
        algorithms = sorted({"sha256", expected.algorithm if expected else "sha256"})
        try:
            brought = origin.bring(part, algorithms)
            if brought.resumed and expected and brought.digests[expected.algorithm] != expected.value:
                discard(part)  # its beginning may have been an older file's
                brought = origin.bring(part, algorithms)
            self._progress.phase("checking the medium")
            if expected and brought.digests[expected.algorithm] != expected.value:
                raise _wrong_checksum(part, origin.shown, expected, brought.digests[expected.algorithm])
            volume = _iso.inspect(part, where=origin.shown, key=origin.medium_key)
            return self._admit(part, brought, volume, origin)
        except (Interrupted, Cancelled):
            raise
        except Exception:
            discard(part)
            raise

    def _admit(self, part: Path, brought: Brought, volume: _iso.Volume, origin: Origin) -> str:
        sha256 = brought.digests["sha256"]
        iso = self._named(sha256)
        about = {"source": origin.shown, "label": volume.label, "size": part.stat().st_size, "created": time.time()}
        with explain_os_errors(iso):
            part.chmod(0o644)
            write_json(iso.with_suffix(".json"), {**brought.facts, **brought.digests, **about})
            part.replace(iso)
            remember_digests(iso, brought.digests)
        discard(part)
        return sha256

    def _complete(self, provided: Provided, sha256: str) -> Provided:
        provided.sha256 = sha256
        provided.path = self._named(sha256)
        self._touch(provided.path)
        provided.size = provided.path.stat().st_size
        about = read_json(provided.path.with_suffix(".json"), {})
        provided.label, provided.needs = about.get("label"), about.get("needs")
        return provided

    def _touch(self, iso: Path) -> None:
        """Note that it is used, for the bound of the caches."""
        with lock(self._workspace.cache_lock, wait=60, busy="another process looks after the caches"):
            if not iso.exists():
                raise FactoryError("was removed from the cache meanwhile", where=str(iso), mend="run this again")
            with contextlib.suppress(PermissionError, FileNotFoundError):
                os.utime(iso.with_suffix(".json"))

    def _forget_old(self) -> None:
        for part in self._folder.glob(".incoming-*"):
            with contextlib.suppress(OSError):
                # A directory is FAI's, and may have something mounted in it.
                if part.is_file() and time.time() - part.stat().st_mtime > _FORGOTTEN:
                    remove(part)


def _wrong_checksum(part: Path, where: str, expected: _sums.Checksum, got: str) -> FactoryError:
    problem = f"checksum differs: expected {expected}, got {expected.algorithm}:{got}"
    try:
        _iso.inspect(part, where=where, key=_sums.KEY)
    except FactoryError as exc:
        problem = f"{problem} (the file {exc.problem})"
    mend = "look up the vendor's current checksum, and fetch the medium from a place that you trust"
    return FactoryError(problem, where=where, key=_sums.KEY, mend=mend)
