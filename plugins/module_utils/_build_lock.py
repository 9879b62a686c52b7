# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The lock that keeps two builds of an image apart."""

from __future__ import annotations

import contextlib
import platform
import time
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _state
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._owner import Owner

LOCK = ".lock.json"
LEASE = 7200.0
"""Seconds after which the lock of a playbook on another machine no longer counts, unless it was renewed."""


class Lock:
    """The lock of one image: who builds it. It outlives the module, as the playbook that holds it does."""

    def __init__(self, folder: Path, guard: Path, owner: Owner, host: str, image: str) -> None:
        self._path = folder / LOCK
        self._guard = guard
        self._owner = owner
        self._host = host
        self._image = image

    def holder(self) -> dict[str, t.Any] | None:
        """Who else holds it; None for nobody, for ourselves, and for one who is gone."""
        held = _state.read_json(self._path)
        other = Owner.load((held or {}).get("owner"))
        if not held or other is None or other == self._owner:
            return None
        if other.local():
            gone = not other.alive()
        elif held.get("host") == platform.node() and not other.same_boot():
            gone = True  # of this machine, before it was booted again
        else:
            gone = time.time() - self._path.stat().st_mtime > LEASE
        return None if gone else dict(held)

    def check(self) -> None:
        """Raise FactoryError where somebody else holds it."""
        held = self.holder()
        if held:
            who = f"process {held['owner']['pid']} on {held['host']}"
            raise FactoryError(
                f"{who} has been building {self._image} since {held['since']}",
                where=str(self._path),
                mend="wait until that has ended, or end it, then run this again",
            )

    def take(self) -> None:
        """Take it, or renew it; raises FactoryError where somebody else holds it."""
        with self._guarded():
            self.check()
            held = _state.read_json(self._path) or {}
            mine = Owner.load(held.get("owner")) == self._owner
            since = held["since"] if mine else _descriptor.now()
            self._write(since)

    def mark(self) -> float | None:
        """Begin with what comes next; the time (of the epoch) of the mark before, None where we do not hold it.

        The age of the file does not tell that: whoever works for long renews it.
        """
        held = _state.read_json(self._path)
        if not held or Owner.load(held.get("owner")) != self._owner:
            return None
        self._write(held["since"])
        return float(held["mark"]) if held.get("mark") else None

    def _write(self, since: str) -> None:
        held = {"owner": self._owner.dump(), "host": self._host, "since": since, "mark": time.time()}
        _state.write_json(self._path, held)

    def drop(self) -> None:
        """Give it back; nothing happens where somebody else holds it."""
        with self._guarded():
            if not self.holder():
                self._path.unlink(missing_ok=True)

    def _guarded(self) -> contextlib.AbstractContextManager[None]:
        return _state.lock(self._guard, wait=10, busy=f"another process looks after the lock of {self._image}")
