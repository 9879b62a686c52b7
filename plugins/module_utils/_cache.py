# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The caches of a workspace within a bound: what was not used for the longest time goes first, and nothing that is needed.

Each layer and medium has a record (JSON) beside it, whose time is that of the last use. Whoever takes one from a cache renews
that under the lock under which it is removed here, so that either it is renewed and stays, or is gone and made again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import time
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _disk_chain, _layers, _state
from ansible_collections.cloudimg.factory.plugins.module_utils._build import Builds
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result

_SECTOR = 512
_SIDECARS = (".json", ".packages.json", ".iso.digests.json")


@dataclasses.dataclass
class Entry:
    """A layer or medium: its file and those beside it, the bytes that they take, when it was used last, what it stands on."""

    kind: str
    path: Path
    files: list[Path]
    size: int
    used: float
    below: str | None = None


def prune(workspace: _state.Workspace, limit: int, keep: t.Iterable[Path] = (), *, check_mode: bool = False) -> Result:
    """Remove from the caches until they take no more than ``limit`` bytes, or until nothing is left that may go.

    What stays in any case: ``keep``, what a running build has recorded or used, what is open, and what these stand on.

    :returns: a Result with C(before), C(after) (bytes), C(removed) and C(notes).
    """
    result = Result()
    if not workspace.layers.is_dir() and not workspace.media.is_dir():
        result.extra = {"before": 0, "after": 0, "removed": [], "notes": []}
        return result
    with _state.lock(workspace.cache_lock, wait=60, busy="another process looks after the layer cache"):
        if not check_mode:
            for folder in (workspace.layers, workspace.media):
                _state.reap_partials(folder)
        found = entries(workspace)
        before = total = sum(entry.size for entry in found)
        removed: list[Entry] = []
        notes: list[str] = []
        stays = _needed(workspace, found, keep) if total > limit else set()
        for entry in _oldest_first(found):
            if total <= limit:
                break
            if entry.path.name in stays or any(
                other.below == entry.path.name for other in found if other not in removed
            ):
                continue
            wrong = _remove(entry, check_mode)
            if wrong:
                notes.append(wrong)
                continue
            removed.append(entry)
            total -= entry.size
    for entry in removed:
        result.act(f"remove {entry.path}: {entry.size >> 20} MiB, last used {_moment(entry.used)}")
    if total > limit:
        notes.append(f"{total - limit >> 20} MiB more than wanted are in use")
    rows = [
        {"path": str(entry.path), "kind": entry.kind, "size": entry.size, "used": _moment(entry.used)}
        for entry in removed
    ]
    result.extra = {"before": before, "after": total, "removed": rows, "notes": notes}
    return result


def entries(workspace: _state.Workspace) -> list[Entry]:
    """All that is in the caches but what is only being written."""
    found: dict[Path, Entry] = {}
    for kind, folder, suffix in (("layer", workspace.layers, ".qcow2"), ("medium", workspace.media, ".iso")):
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            if file.name.startswith((".", "source-", "import-")) or file.suffix == ".lock" or not file.is_file():
                continue
            stem = next(
                (file.name[: -len(end)] for end in (*_SIDECARS[1:], suffix, ".json") if file.name.endswith(end)), ""
            )
            if not stem:
                continue
            path = folder / f"{stem}{suffix}"
            entry = found.setdefault(path, Entry(kind, path, [], 0, 0.0))
            with contextlib.suppress(FileNotFoundError):
                entry.files.append(file)
                entry.size += file.stat().st_blocks * _SECTOR
    for path, entry in found.items():
        entry.used = _last_use(entry)
        if entry.kind == "layer":
            below = (_layers.record_of(path) or {}).get("parent")
            entry.below = below if isinstance(below, str) else _below(path)
    return list(found.values())


def _last_use(entry: Entry) -> float:
    for path in (entry.path.with_suffix(".json"), *entry.files):
        with contextlib.suppress(FileNotFoundError):
            return path.stat().st_mtime
    return time.time()


def _below(path: Path) -> str | None:
    """What a layer without a record stands on."""
    with contextlib.suppress(FactoryError):
        named = _disk_chain.named_below(path) if path.exists() else None
        return named[0].name if named else None
    return None


def _oldest_first(found: t.Sequence[Entry]) -> list[Entry]:
    """In the order in which they may go: none before those that stand on it, and with the time of the latest of these."""
    by_name = {entry.path.name: entry for entry in found}
    used = {entry.path.name: entry.used for entry in found}
    depth: dict[str, int] = {}
    for entry in found:
        line = [entry]
        while line[-1].below in by_name and len(line) <= len(found):
            line.append(by_name[str(line[-1].below)])
            used[line[-1].path.name] = max(used[line[-1].path.name], entry.used)
        depth[entry.path.name] = len(line)
    return sorted(found, key=lambda entry: (used[entry.path.name], -depth[entry.path.name], entry.path.name))


def _needed(workspace: _state.Workspace, found: t.Sequence[Entry], keep: t.Iterable[Path]) -> set[str]:
    """The names of those that stay."""
    stays = {Path(path).name for path in keep}
    since, recorded = _running(workspace)
    stays |= recorded
    for home in workspace.run.glob("*.tree/state.json"):
        with contextlib.suppress(FactoryError):
            opened = (_state.read_json(home) or {}).get("layer") or {}
            stays.add(Path(str(opened.get("parent"))).name)
    for entry in found:
        if entry.used >= since or _is_open(entry):
            stays.add(entry.path.name)
    by_name = {entry.path.name: entry for entry in found}
    for name in list(stays):
        below = by_name[name].below if name in by_name else None
        while below and below not in stays:
            stays.add(below)
            below = by_name[below].below if below in by_name else None
    return stays


def _running(workspace: _state.Workspace) -> tuple[float, set[str]]:
    """When the first of the builds that run began (what was used since then may be theirs), and what they have recorded."""
    since, recorded = float("inf"), set()
    for folder in sorted(workspace.builds.iterdir()) if workspace.builds.is_dir() else ():
        if not folder.is_dir() or not _state.NAME_PATTERN.fullmatch(folder.name):
            continue
        builds = Builds(str(workspace.root), folder.name)
        held = builds.lock.holder()
        if held is None:
            continue
        since = min(since, _epoch(str(held.get("since"))))
        for build in builds.all():
            if not build["complete"]:
                recorded |= {Path(record["path"]).name for record in build["stages"].values() if record.get("path")}
    return since, recorded


def _epoch(text: str) -> float:
    try:
        return _descriptor.parse_time(text).timestamp()
    except ValueError:
        return 0.0  # then all that there is stays


def _moment(seconds: float) -> str:
    return _descriptor.format_time(datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc))


def _is_open(entry: Entry) -> bool:
    """Whether somebody has it open, or is about to make it."""
    lock = entry.path.with_suffix(".lock")
    with contextlib.suppress(FileNotFoundError), lock.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    if not entry.path.exists():
        return False
    try:
        _disk_chain.refuse_in_use(entry.path)
    except FactoryError:
        return True
    return False


def _remove(entry: Entry, check_mode: bool) -> str | None:
    """Remove an entry; returns why it cannot be."""
    if check_mode:
        return None
    if _last_use(entry) != entry.used:
        return f"{entry.path} was used meanwhile"
    try:
        with _state.explain_os_errors(entry.path):
            # Its record goes first: without that, nobody takes what is left.
            for file in sorted(entry.files, key=lambda file: file.name != f"{entry.path.stem}.json"):
                file.unlink(missing_ok=True)
    except FactoryError as exc:
        return str(exc)
    return None
