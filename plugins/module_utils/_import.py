# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""A base from an existing disk instead of an installation, cached by the digest of everything that went into it.

What is known of the content of a source (its checksum, or what was read of it the last time) stays in
C(cache/media/import-<key>.json), so that the same definition needs neither network nor device again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import (
    _base_vm,
    _import_layout,
    _import_unpack,
    _layers,
    _qemu_img,
    _state,
    _sums,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import data_digest
from ansible_collections.cloudimg.factory.plugins.module_utils._download import Client, Interrupted, discard
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import Cancelled, FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._import_source import Source, source_of
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.plugins.module_utils._owner import Owner
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.plugins.module_utils._source_disk import KEY, SourceDisk

_RECIPE = 2
"""Raised when this makes another base out of the same inputs."""


@dataclasses.dataclass(frozen=True)
class Order:
    """What is to be imported: the options of M(cloudimg.factory.disk_import).

    :ivar disk_size: bytes of the base; no source may be larger.
    :ivar timeout: seconds for which a server or a machine may be silent.
    """

    workspace: _state.Workspace
    image: str
    source: SourceDisk
    disk_size: int
    refresh: bool = False
    timeout: int = 60

    def inputs(self, content: str) -> dict[str, t.Any]:
        """Everything that makes the base what it is, by name; C(content) is the checksum of the source."""
        return {
            "recipe": _RECIPE,
            "source": content,
            "format": self.source.format or "",
            "disk_of_appliance": self.source.disk or "",
            "disk": {"size": self.disk_size},
        }


def import_base(order: Order, progress: Progress, *, check_mode: bool = False) -> Result:
    """Have the base: from the cache, or out of the source.

    :returns: a Result with C(base) = ``{path, digest, size, source, warnings}`` (of which check mode may know the size only),
        C(cached), C(warnings).
    :raises FactoryError: the source is not what it should be, cannot be had, or no stage could work on it.
    """
    return _Import(order, progress).run(check_mode)


class _Import:
    """One import, for one job."""

    def __init__(self, order: Order, progress: Progress) -> None:
        _state.check_image_name(order.image)
        self._order = order
        self._progress = progress
        self._source: Source = source_of(order.source, Client(progress, timeout=order.timeout), progress, order.timeout)
        self._record = order.workspace.media / f"import-{self._source.key[:32]}.json"

    def run(self, check_mode: bool) -> Result:
        """Find it, or import it."""
        order = self._order
        known = _state.read_json(self._record, {})
        local = self._source.inputs()
        content = known.get("content") if known.get("inputs") == local and not order.refresh else None
        if content and self._cached(content, check_mode):
            return self._told(content, Result(extra={"cached": True}))
        expected = self._source.expected()
        content = str(expected) if expected else None
        result = Result(extra={"cached": False, "base": {"path": None, "digest": None, "size": order.disk_size}})
        if content and self._cached(content, check_mode):
            if not check_mode:
                self._remember(content, local)
            result.extra["cached"] = True
            return self._told(content, result)
        before = dict(_layers.previous(order.workspace, order.image, "base_vm").get("inputs", {}))
        after = order.inputs(content or "unknown until it is read")
        result.diff = {"before": before, "after": after}
        result.act(f"import {self._source.shown}: {self._reason(before, after, known, content)}")
        if check_mode:
            if content:
                result.extra["base"].update(path=str(self._path(content)), digest=data_digest(after))
            return result
        order.workspace.make()
        with self._alone():
            again = _state.read_json(self._record, {})
            if again != known and again.get("inputs") == local and self._cached(again["content"], check_mode):
                return self._told(again["content"], Result(extra={"cached": True}))  # another job has meanwhile
            content = self._bring(expected)
            self._remember(content, local)
        return self._told(content, result)

    def _path(self, content: str) -> Path:
        return _base_vm.base_path(self._order.workspace, data_digest(self._order.inputs(content)))

    def _cached(self, content: str, check_mode: bool) -> bool:
        """Whether its base is in the cache; it is then noted as used."""
        path = self._path(content)
        return _base_vm.intact(path) and (check_mode or _layers.touch(self._order.workspace, path))

    def _remember(self, content: str, local: str) -> None:
        facts = {"source": self._source.shown, "content": content, "inputs": local, "created": time.time()}
        _state.write_json(self._record, facts)
        _hand_over(self._record)

    def _reason(
        self, before: dict[str, t.Any], after: dict[str, t.Any], known: dict[str, t.Any], content: str | None
    ) -> str:
        if self._order.refresh and known:
            return "a fresh one is asked for"
        if content and self._path(content).exists():
            return f"the cached base {self._path(content).name} is damaged"
        if not before:
            return "this image has no base yet"
        names = _layers.changed(before, after)
        return f"changed since the last base: {', '.join(names) or 'nothing, but that base was removed'}"

    def _told(self, content: str, result: Result) -> Result:
        """The result for a base that is in the cache."""
        digest = data_digest(self._order.inputs(content))
        path = _base_vm.base_path(self._order.workspace, digest)
        facts = _state.read_json(path.with_suffix(".json"), {}).get("facts", {})
        base = {"path": str(path), "digest": digest, "size": self._order.disk_size, **facts}
        result.extra.update(base=base, warnings=[*self._source.warnings, *facts.get("warnings", [])])
        return result

    @contextlib.contextmanager
    def _alone(self) -> t.Iterator[None]:
        """Hold the lock of the source's place, after waiting for another job that does."""

        def waiting() -> None:
            if not told:
                told.append(True)
                self._progress.phase("waiting for another job that imports the same disk")
            self._progress.report()

        told: list[bool] = []
        path = self._order.workspace.run / f"import-{self._source.place[:32]}.lock"
        with _state.lock(path, wait=float("inf"), tick=waiting):
            yield

    def _bring(self, expected: _sums.Checksum | None) -> str:
        """Get the source and make the base of it; returns the checksum of the source. On failure nothing is left."""
        workspace = self._order.workspace
        part = workspace.media / f".incoming-{self._source.place[:32]}"
        algorithm = expected.algorithm if expected else "sha256"
        algorithms = sorted({"sha256", algorithm})
        try:
            brought = self._source.bring(part, algorithms, self._order.disk_size)
            if brought.resumed and expected and brought.digests[algorithm] != expected.value:
                discard(part)  # its beginning may have been an older file's
                brought = self._source.bring(part, algorithms, self._order.disk_size)
            got = _sums.Checksum(algorithm, brought.digests[algorithm])
            if expected and got != expected:
                raise FactoryError(
                    f"checksum differs: expected {expected}, got {got}",
                    where=self._source.shown,
                    key=f"{KEY}.checksum",
                    mend="look up the publisher's current checksum, and fetch the disk from a place that you trust",
                )
            _state.reap_partials(workspace.layers)
            self._make(part, str(got), brought.digests["sha256"])
        except (Interrupted, Cancelled):
            if not (self._order.source.url or self._order.source.ssh):
                discard(part)  # only what came over a network is worth going on with
            raise
        except BaseException:
            discard(part)
            raise
        discard(part)
        return str(got)

    def _make(self, part: Path, content: str, sha256: str) -> None:
        """Make the base of a source that is here and verified."""
        order = self._order
        inputs = order.inputs(content)
        digest = data_digest(inputs)
        path = _base_vm.base_path(order.workspace, digest)
        began = time.monotonic()
        # Its name is this process's: what a killed one leaves is removed by the next.
        raw = _state.partial_path(path.with_suffix(".raw"), Owner.of())
        given = _import_unpack.Wanted(self._source.shown, order.disk_size, order.source.format, order.source.disk)
        own = not (order.source.device or order.source.ssh)
        if not own:
            given = dataclasses.replace(given, format="raw")
        try:
            found = _import_unpack.unpack(part, raw, given, self._progress)
            _import_layout.grow(raw, order.disk_size)
            self._progress.phase("looking at its file systems")
            layout = _import_layout.look(raw, self._source.shown, KEY, lambda _line: self._progress.report())
            with _state.partial(path) as disk:
                self._write(raw, disk)
                # The record of a damaged base must not stand beside the new one.
                _state.remove(path.with_suffix(".json"))
                record = _base_vm.new_record(order.image, digest, inputs, disk)
        finally:
            _state.remove(raw)
        source = {
            "place": self._source.shown,
            "checksum": content,
            "sha256": sha256,
            **dataclasses.asdict(found),
        }
        record["seconds"] = round(time.monotonic() - began, 1)
        record["facts"] = {"source": source, "layout": layout.dump(), "warnings": list(layout.warnings)}
        _state.write_json(path.with_suffix(".json"), record)
        for made in (path, path.with_suffix(".json")):
            _hand_over(made)

    def _write(self, raw: Path, disk: Path) -> None:
        """The qcow2 file of a raw disk, proven to hold the same."""

        def tick(percent: float) -> None:
            self._progress.report(done=int(self._order.disk_size * percent / 100), total=self._order.disk_size)

        self._progress.phase("writing the base")
        _qemu_img.convert(raw, disk, source_fmt="raw", target_fmt="qcow2", coroutines=16, out_of_order=True, tick=tick)
        self._progress.phase("checking the base")
        _qemu_img.check(disk)
        if not _qemu_img.compare(raw, "raw", disk, "qcow2", tick=tick):
            raise FactoryError(
                "the base differs from the disk that was imported",
                where=self._source.shown,
                mend="check the builder's memory and disks",
            )
        with disk.open("rb") as stream:
            os.fsync(stream.fileno())  # its record must not outlive its data in a power failure


def _hand_over(path: Path) -> None:
    """Let what root made belong to whom the workspace belongs."""
    with _state.explain_os_errors(path):
        if os.geteuid() == 0:
            owner = path.parent.stat()
            shutil.chown(path, owner.st_uid, owner.st_gid)
        path.chmod(0o644)
