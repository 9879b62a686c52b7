# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Signs of life: a long job says where it is, and learns whether its owner still wants it.

A module that works for long reports through :class:`Progress` into a small JSON file. The action plugin of the same
name runs the module in the background, reads that file every few seconds (through the module
M(cloudimg.factory.job_progress)), shows it, and thereby renews the job's lease. When the lease runs out, or the owner
(an ansible-playbook on the same machine) dies, the next report raises Cancelled, so that the job cleans up and ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import Cancelled
from ansible_collections.cloudimg.factory.plugins.module_utils._owner import Owner

LEASE = 60.0
"""Seconds without a visitor after which a job gives up."""


class Progress:
    """Where a job reports to. Without a ``job`` (module run in the foreground) it only remembers."""

    def __init__(self, stage: str, job: t.Mapping[str, t.Any] | None = None) -> None:
        job = job or {}
        self.stage = stage
        self.log: list[tuple[float, str]] = []
        self._path = Path(job["path"]) if job.get("path") else None
        self._owner = Owner.load(job.get("owner"))
        self._began = time.monotonic()
        self._written = 0.0
        self._phase = ""
        self._lock = threading.Lock()
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            renew_lease(self._path)

    def elapsed(self) -> float:
        """Seconds since the job began."""
        return time.monotonic() - self._began

    def phase(self, text: str) -> None:
        """Begin the next part of the job."""
        self._phase = text
        self._written = 0.0
        self.log.append((self.elapsed(), text))
        self.report()

    def report(self, **facts: t.Any) -> None:
        """Say where the job is (about once a second is often enough; more is dropped).

        :param facts: for example ``console`` (its last line), ``disk`` (bytes), ``done`` and ``total`` (bytes).
        :raises Cancelled: nobody wants the job any more.
        """
        self.check()
        now = time.monotonic()
        with self._lock:
            if self._path is None or now - self._written < 0.5:
                return
            self._written = now
            state = {"stage": self.stage, "phase": self._phase, "elapsed": round(self.elapsed(), 1), "pid": os.getpid()}
            partial = self._path.with_name(f".{self._path.name}.{os.getpid()}")
            partial.write_text(json.dumps({**state, **facts}), encoding="utf-8")
            partial.replace(self._path)

    def check(self) -> None:
        """Raise Cancelled when nobody wants the job any more."""
        if self._owner and self._owner.local() and not self._owner.alive():
            raise Cancelled(f"the playbook that wanted it (process {self._owner.pid}) has gone", where=self.stage)
        if self._path and time.time() - lease_of(self._path) > LEASE:
            raise Cancelled(f"nobody has asked after it for {LEASE:.0f} s", where=self.stage)


def _lease_file(job: Path) -> Path:
    return job.with_name(f"{job.name}.lease")


def renew_lease(job: Path) -> None:
    """Tell the job that it is still wanted."""
    _lease_file(job).touch()


def lease_of(job: Path) -> float:
    """When the job was last told so (seconds since the epoch); now, where it never was."""
    try:
        return _lease_file(job).stat().st_mtime
    except FileNotFoundError:
        return time.time()


def read(job: Path) -> dict[str, t.Any]:
    """What the job last reported; {} before that."""
    try:
        return dict(json.loads(job.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return {}


def forget(job: Path) -> None:
    """Remove a job's files."""
    for path in (job, _lease_file(job)):
        path.unlink(missing_ok=True)


STATES = ("begun", "visited", "watched", "cancelled", "absent")


def look_after(job: Path, results: Path, state: str, lock: Path | None = None) -> dict[str, t.Any]:
    """What the owner of a job that runs by Ansible's async machinery does with it.

    :param results: where async_wrapper writes the module's result; it begins with C({"started": …}).
    :param state: C(visited) tells the job that it is wanted; C(begun) also removes what jobs of killed playbooks left;
        C(watched) only looks; C(cancelled) makes it end when it next reports; C(absent) removes its files.
    :param lock: a file whose age tells others that it is held; it is renewed, too.
    :returns: but for the last two: ``finished``, ``alive`` (None where that cannot be told) and ``progress``.
    """
    if state == "absent":
        results.unlink(missing_ok=True)
        forget(job)
        return {}
    if state == "cancelled":
        with contextlib.suppress(FileNotFoundError):
            os.utime(_lease_file(job), (0, 0))
        return {}
    if state == "begun":
        _reap(job.parent)
    progress = read(job)
    alive = _runs(progress)
    finished = _finished(results)
    if not finished and state != "watched":
        # The lease names the other file of a job, for what a later one has to tidy up.
        _lease_file(job).write_text(results.name, encoding="utf-8")
        if lock and lock.exists():
            os.utime(lock)
    return {"finished": finished, "alive": alive, "progress": progress}


def _finished(results: Path) -> bool:
    try:
        data = json.loads(results.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return bool(data.get("finished", "started" not in data))


def _runs(progress: t.Mapping[str, t.Any]) -> bool | None:
    return Path("/proc", str(progress["pid"])).exists() if progress.get("pid") else None


def _reap(folder: Path) -> None:
    """Remove the files of those jobs in ``folder`` that nobody has come back to."""
    for lease in folder.glob("cloudimg-*.json.lease"):
        job = lease.with_suffix("")
        if time.time() - lease_of(job) > 2 * LEASE and not _runs(read(job)):
            results = lease.read_text(encoding="utf-8")
            if results:
                (folder / Path(results).name).unlink(missing_ok=True)
            forget(job)
