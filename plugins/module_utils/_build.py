# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The state of a build: ``build.json`` in the build directory."""

from __future__ import annotations

import datetime
import platform
import time
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _state
from ansible_collections.cloudimg.factory.plugins.module_utils._build_lock import Lock
from ansible_collections.cloudimg.factory.plugins.module_utils._definition import content
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import cached_digests
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.plugins.module_utils._owner import Owner
from ansible_collections.cloudimg.factory.plugins.module_utils._versions import version_key

Build = dict[str, t.Any]
FILE = "build.json"
STAGES = (
    "media",
    "base_vm",
    "cloud_init",
    "applications",
    "harden",
    "sanitize",
    "export",
    "assess",
    "publish",
    "retire",
)
NEEDED = ("export", "assess", "publish")
"""The stages without which no build is complete."""
TIMING = ("began", "finished", "seconds", "cached")
"""What is noted with each stage's record: C(began) and C(finished) are UTC, C(cached) is there when it was made before."""
_SLACK = 0.1
"""Seconds by which the time of a file may be behind the clock."""


class Builds:
    """The builds of one image in a workspace, for one playbook."""

    def __init__(
        self, workspace: str, image: str, owner: t.Mapping[str, t.Any] | None = None, check_mode: bool = False
    ) -> None:
        self._workspace = _state.Workspace(workspace)
        self._image = _state.check_image_name(image)
        self._check_mode = check_mode
        self.folder = self._workspace.builds / image
        guard = self._workspace.run / f"{image}.lock"
        host = str((owner or {}).get("host") or platform.node())
        self.lock = Lock(self.folder, guard, Owner.load(owner) or Owner.of(), host, image)

    def all(self) -> list[Build]:
        """What is known of every build, the newest version first."""
        found = (_state.read_json(path) for path in self.folder.glob(f"*/{FILE}"))
        return sorted((dict(build) for build in found), key=lambda build: version_key(build["version"]), reverse=True)

    def intact(self, digest: str) -> Build | None:
        """The newest complete build, where it is of that digest and its files are as they were made."""
        newest = next((build for build in self.all() if build["complete"]), None)
        return newest if newest and newest["digest"] == digest and not self._fault(newest) else None

    def begin(
        self,
        version: str,
        digest: str,
        definition: Build,
        inputs: t.Mapping[str, t.Any],
        lost: t.Callable[[Build], str | None] | None = None,
    ) -> Result:
        """Begin a build, take up an unfinished one of the same digest, or find that there is nothing to do.

        :param lost: tells why a complete build whose files are whole has to be made again; None where it need not.
        """
        _state.check_version(version)
        self.lock.check()
        if not self._check_mode:
            self._workspace.make()
            self.lock.take()
        try:
            result = self._begin(version, digest, definition, inputs, lost)
        except BaseException:
            self._unlock()
            raise
        if result.extra["build"]["complete"]:
            self._unlock()
        return result

    def _begin(
        self,
        version: str,
        digest: str,
        definition: Build,
        inputs: t.Mapping[str, t.Any],
        lost: t.Callable[[Build], str | None] | None,
    ) -> Result:
        result = Result()
        builds = self.all()
        newest = next((build for build in builds if build["complete"]), None)
        fault = self._fault(newest) if newest and newest["digest"] == digest else None
        if newest and newest["digest"] == digest and not fault and lost:
            fault = lost(newest)
        if newest and newest["digest"] == digest and not fault:
            result.extra = {"build": newest, "resumed": False}
            return result

        if not self._check_mode:
            for folder in (self._workspace.media, self._workspace.layers, self.folder):
                _state.reap_partials(folder)

        floor = newest["version"] if newest else None
        for begun in builds:
            later = floor is None or version_key(begun["version"]) > version_key(floor)
            if begun["digest"] == digest and not begun["complete"] and later:
                self._resume(begun, definition)
                result.extra = {"build": begun, "resumed": True}
                return result

        self._check_new(version, floor, fault)
        build: Build = {
            "image": self._image,
            "version": version,
            "workspace": str(self._workspace.root),
            "dir": str(self._workspace.build(self._image, version)),
            "digest": digest,
            "complete": False,
            "created": _descriptor.now(),
            "definition": {**definition, "image_version": version},
            "inputs": dict(inputs),
            "stages": {},
        }
        reason, result.diff = _compare(builds[0] if builds else None, build)
        result.act(f"build {self._image} {version}: {fault or reason}")
        if not self._check_mode:
            # What lies here is of an unfinished build of another definition.
            _state.remove(Path(build["dir"]))
        self._save(build)
        result.extra = {"build": build, "resumed": False}
        return result

    def record(self, version: str, stage: str, record: t.Mapping[str, t.Any], known: Build | None = None) -> Result:
        """Keep what a stage left, and its time. ``known`` is the build, for check mode, where no file may have it.

        A stage lasts from the end of the one before it, or from the beginning of this run of the playbook, to its record.
        The mark in the lock tells when that was: it is made at the beginning and with each record.
        """
        build = self._load(version, known)
        began = None
        if not self._check_mode:
            self.lock.check()
            began = self.lock.mark()
        result = Result(extra={"build": build})
        if _untimed(build["stages"].get(stage)) != record:
            result.act(f"record {stage}")
            after = STAGES[STAGES.index(stage) + 1 :] if stage in STAGES else ()
            kept = {name: made for name, made in build["stages"].items() if name not in after}
            timing = {} if self._check_mode else _timing(record, began, time.time())
            build["stages"] = {**kept, stage: {**record, **timing}}
            self._save(build)
        return result

    def finish(self, version: str, known: Build | None = None) -> Result:
        """Mark a build as complete where all the stages that it needs are recorded; give back the lock in any case."""
        build = self._load(version, known)
        result = Result(extra={"build": build})
        stages = build["stages"]
        if not build["complete"] and all(stage in stages for stage in NEEDED) and not refused(stages["assess"]):
            result.act(f"complete {self._image} {version}")
            build.update(complete=True, finished=_descriptor.now())
            build.pop("failure", None)
            self._save(build)
        self._unlock()
        return result

    def fail(self, version: str, stage: str, message: str, known: Build | None = None) -> Result:
        """Note why a build failed, and give back the lock."""
        build = self._load(version, known)
        result = Result(extra={"build": build})
        result.act(f"note the failure of {stage}")
        build["failure"] = {"stage": stage, "message": " ".join(message.split()), "time": _descriptor.now()}
        self._save(build)
        self._unlock()
        return result

    def _unlock(self) -> None:
        if not self._check_mode:
            self.lock.drop()

    def _save(self, build: Build) -> None:
        if not self._check_mode:
            _state.write_json(Path(build["dir"], FILE), build)

    def _load(self, version: str, known: Build | None) -> Build:
        path = self._workspace.build(self._image, version) / FILE
        found = _state.read_json(path)
        if self._check_mode and known and known.get("version") == version:
            found = known
        if not found:
            raise FactoryError("there is no such build", where=str(path), mend="begin it by role definition first")
        return dict(found)

    def _resume(self, build: Build, definition: Build) -> None:
        """Keep of an unfinished build what is still there, with the settings that make no other image."""
        if not self._check_mode:
            _state.reap_partials(Path(build["dir"]))
        kept: dict[str, t.Any] = {}
        for stage, record in sorted(build["stages"].items(), key=lambda item: STAGES.index(item[0])):
            if not all(path.exists() for path in _files(record)):
                break
            kept[stage] = record
        build["stages"] = kept
        build["definition"] = {**definition, "image_version": build["version"]}
        build.pop("failure", None)
        self._save(build)

    def _check_new(self, version: str, newest: str | None, fault: str | None) -> None:
        if newest is None or version_key(version) > version_key(newest):
            return
        path = str(self._workspace.build(self._image, newest) / FILE)
        mend = f"raise image_version above {newest}"
        if version == newest and fault:
            raise FactoryError(fault, where=path, key="image_version", mend=f"{mend}, or restore that file")
        if version == newest:
            problem = f"{version} is complete, of a definition that was different"
        else:
            problem = f"{version} is lower than that of the newest complete build, {newest}"
        raise FactoryError(problem, where=path, key="image_version", mend=mend)

    def _fault(self, build: Build) -> str | None:
        """What of a complete build's files is not as it was made; None where all are."""
        export = build["stages"].get("export") or {}
        descriptor = Path(str(export.get("descriptor") or build["dir"]))
        if not descriptor.is_file():
            return f"{descriptor} is missing"
        for artifact in export.get("artifacts") or ():
            path = Path(artifact["path"])
            if not path.is_file():
                return f"{path} is missing"
            if path.stat().st_size != artifact["size"]:
                return f"{path} has another size than when it was exported"
            with _state.explain_os_errors(path):
                if cached_digests(path, ["sha256"])["sha256"] != artifact["checksums"]["sha256"]:
                    return f"{path} has another content than when it was exported"
        return None


def refused(assessed: t.Mapping[str, t.Any]) -> bool:
    """Whether the record of the stage assess is of an image that failed, and that nobody let through."""
    return assessed.get("verdict") == "fail" and not assessed.get("override")


def _untimed(record: t.Mapping[str, t.Any] | None) -> dict[str, t.Any] | None:
    """A stage's record as the stage gave it."""
    return None if record is None else {key: value for key, value in record.items() if key not in TIMING}


def _timing(record: t.Mapping[str, t.Any], began: float | None, now: float) -> dict[str, t.Any]:
    """When a stage began and ended, and whether all that it names was there before."""
    timing: dict[str, t.Any] = {"finished": _moment(now)}
    if began is not None and began <= now:
        timing.update(began=_moment(began), seconds=round(now - began, 1))
        files = [path for path in _files(record) if path.exists()]
        if files and all(path.stat().st_mtime < began - _SLACK for path in files):
            timing["cached"] = True
    return timing


def _moment(seconds: float) -> str:
    return _descriptor.format_time(datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc))


def _files(record: t.Mapping[str, t.Any]) -> t.Iterator[Path]:
    """The files that a stage's record names."""
    for key in ("path", "descriptor", "report"):
        if record.get(key):
            yield Path(record[key])
    for artifact in record.get("artifacts") or ():
        yield Path(artifact["path"])


def _compare(old: Build | None, new: Build) -> tuple[str, dict[str, t.Any]]:
    """Why a build is not the same as the newest one, in words and as a diff."""
    after = {**content(new["definition"]), **_flat(new["inputs"])}
    if old is None:
        return "there is none yet", _diff("nothing", {}, f"{new['image']} {new['version']}", after)
    before = {**content(old["definition"]), **_flat(old.get("inputs") or {})}
    changed = [key for key in sorted({**before, **after}) if before.get(key) != after.get(key)]
    diff = _diff(
        f"{old['image']} {old['version']}",
        {key: before[key] for key in changed if key in before},
        f"{new['image']} {new['version']}",
        {key: after[key] for key in changed if key in after},
    )
    if not changed:
        return f"{old['version']} cannot be used", diff
    return f"differs from {old['version']} in {', '.join(changed)}", diff


def _flat(inputs: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The inputs beside the definition, one name for each: C(role media), C(script setup.sh), C(media_mirror)."""
    flat: dict[str, t.Any] = {}
    for kind, values in inputs.items():
        if isinstance(values, dict):
            flat.update({key if kind == "variables" else f"{kind} {key}": value for key, value in values.items()})
        else:
            flat[kind] = values
    return flat


def _diff(before_header: str, before: t.Any, after_header: str, after: t.Any) -> dict[str, t.Any]:
    return {"before_header": before_header, "before": before, "after_header": after_header, "after": after}
