# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Making several artifacts at the same time: all of them get their names, or none does."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
import threading
import time
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _codecs, _parallel, _qemu_img, _state
from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor import Artifact
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import file_digests, remember_digests
from ansible_collections.cloudimg.factory.plugins.module_utils._disk_source import DiskSource
from ansible_collections.cloudimg.factory.plugins.module_utils._exporters import EXPORTERS, Job, Part, Request
from ansible_collections.cloudimg.factory.plugins.module_utils._owner import Owner
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

MOST_AT_ONCE = 4
_REPORTS = 0.25  # seconds between them
_WRITING = 0.6  # of the time that an artifact takes, about


class _Stopped(Exception):
    """Another artifact has failed."""


class _Together:
    """The progress of several jobs as one; when one fails, the others end."""

    def __init__(self, progress: Progress, paths: t.Sequence[Path], size: int) -> None:
        self._progress = progress
        self._done = dict.fromkeys(paths, 0.0)
        self._size = size
        self._lock = threading.Lock()
        self._last = 0.0
        self.failure: BaseException | None = None

    def tick(self, path: Path, begin: float, share: float) -> _qemu_img.Tick:
        def tick(percent: float) -> None:
            if self.failure:
                raise _Stopped
            with self._lock:
                self._done[path] = begin + share * percent
                now = time.monotonic()
                if now - self._last < _REPORTS:
                    return
                self._last = now
                total = sum(self._done.values()) / len(self._done)
            written = sum(path.stat().st_blocks * 512 for path in self._done if path.exists())
            done = int(self._size * total / 100)
            self._progress.report(percent=round(total, 1), done=done, total=self._size, disk=written)

        return tick

    def fail(self, exc: BaseException) -> None:
        with self._lock:
            self.failure = self.failure or exc


def make(
    request: Request, artifacts: t.Sequence[Artifact], progress: Progress, before_renaming: t.Callable[[], None]
) -> list[Artifact]:
    """Make the files of ``artifacts``; returns these with their sizes and checksums.

    :param before_renaming: called when all have been made and verified, and before any has its name.
    :raises FactoryError: one cannot be made; then there is none.
    """
    _codecs.has_zstd()  # load it now: to do so while other threads start tools is not safe
    with _state.explain_os_errors(request.directory):
        request.directory.mkdir(parents=True, exist_ok=True)
    _state.reap_partials(request.directory)
    with contextlib.ExitStack() as stack:
        partials = {made.path: stack.enter_context(_state.partial(request.directory / made.path)) for made in artifacts}
        scratch = request.directory / f"{request.stem}.scratch"
        own = _state.partial_path(scratch, Owner.of())
        progress.phase("looking for the data of the layers")
        source = stack.enter_context(DiskSource(request.source, own, lambda percent: progress.report(percent=percent)))
        maker = _Maker(request, source, progress, stack)
        digests = maker.run([(made, partials[made.path]) for made in artifacts])
        source.check_unchanged()
        found = [
            dataclasses.replace(made, size=partials[made.path].stat().st_size, checksums=digests[made.path])
            for made in artifacts
        ]
        for path in partials.values():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        before_renaming()
    for made in found:
        remember_digests(request.directory / made.path, made.checksums)
    return found


class _Maker:
    def __init__(self, request: Request, source: DiskSource, progress: Progress, stack: contextlib.ExitStack) -> None:
        self._request = request
        self._source = source
        self._progress = progress
        self._stack = stack
        self._parts: dict[str, Part] = {}

    def run(self, wanted: t.Sequence[tuple[Artifact, Path]]) -> dict[str, dict[str, str]]:
        """Make all; returns their digests by the artifacts' names."""
        jobs = {made.path: (made.format, _options(made), path) for made, path in wanted}
        disks, archives = {}, {}
        for name, (fmt, options, path) in jobs.items():
            part = EXPORTERS[fmt].part(options)
            if part is None:
                disks[name] = (fmt, options, path)
            else:
                archives[name] = (fmt, options, path)
                if not any(_same(job, part) for job in [*jobs.values(), *disks.values()]):
                    hidden = self._request.directory / f"{name}.{part[0]}"
                    own = _state.partial_path(hidden, Owner.of())
                    self._stack.callback(_state.remove, own)
                    disks[hidden.name] = (*part, own)
        digests = self._all(disks)
        for name, (fmt, options, _path) in archives.items():
            part = EXPORTERS[fmt].part(options)
            found = next(key for key, job in disks.items() if part and _same(job, part))
            self._parts[name] = Part(disks[found][2], digests[found])
        return {**digests, **self._all(archives)}

    def _all(self, jobs: t.Mapping[str, tuple[str, dict[str, t.Any], Path]]) -> dict[str, dict[str, str]]:
        if not jobs:
            return {}
        self._progress.phase(f"writing and comparing {', '.join(sorted(job[0] for job in jobs.values()))}")
        together = _Together(self._progress, [job[2] for job in jobs.values()], self._source.size)
        with _parallel.pool() as executor, concurrent.futures.ThreadPoolExecutor(MOST_AT_ONCE) as threads:

            def one(name: str) -> dict[str, str]:
                try:
                    return self._one(name, jobs[name], together, executor)
                except BaseException as exc:
                    if not isinstance(exc, _Stopped):
                        together.fail(exc)
                    raise

            futures = {name: threads.submit(one, name) for name in jobs}
            try:
                concurrent.futures.wait(futures.values())
            except BaseException as exc:
                together.fail(exc)  # the threads end at their next tick
                raise
        if together.failure:
            raise together.failure
        return {name: future.result() for name, future in futures.items()}

    def _one(
        self,
        name: str,
        job: tuple[str, dict[str, t.Any], Path],
        together: _Together,
        executor: concurrent.futures.Executor,
    ) -> dict[str, str]:
        fmt, options, path = job
        exporter = EXPORTERS[fmt]
        writing = together.tick(path, 0, _WRITING)
        work = Job(self._request, self._source, path, options, executor, writing, self._parts.get(name))
        writing(0)
        found = exporter.write(work)
        work.tick = together.tick(path, 100 * _WRITING, 1 - _WRITING)
        with concurrent.futures.ThreadPoolExecutor(1) as beside:
            hashing = None if found else beside.submit(file_digests, path)
            exporter.verify(work)
            return found or t.cast("concurrent.futures.Future[dict[str, str]]", hashing).result()


def _options(made: Artifact) -> dict[str, t.Any]:
    fixed = ("format", "path", "size", "virtual_size", "checksums")
    return {key: value for key, value in dataclasses.asdict(made).items() if key not in fixed}


def _same(job: tuple[str, dict[str, t.Any], Path], part: tuple[str, dict[str, t.Any]]) -> bool:
    return job[0] == part[0] and all(job[1].get(key) == value for key, value in part[1].items())
