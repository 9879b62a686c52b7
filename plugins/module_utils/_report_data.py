# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What a report tells: all that the build directory and the local catalogue know of a build, in one shape.

Any part may be missing, since a report is also made of a build that failed, or that an older version of this collection made.
"""

from __future__ import annotations

import base64
import dataclasses
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _packages, _state, _verdict
from ansible_collections.cloudimg.factory.plugins.module_utils._build import FILE as BUILD
from ansible_collections.cloudimg.factory.plugins.module_utils._build import STAGES
from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor import Descriptor
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._versions import version_key

Table = dict[str, t.Any]
Packages = dict[tuple[str, str], str]
"""The version of each package, by name and architecture; several versions of one are joined."""

PICTURE_LIMIT = 400_000
"""Bytes of a screenshot that still goes into the page."""


def table(value: t.Any) -> Table:
    """The value, if it is a mapping."""
    return value if isinstance(value, dict) else {}


def rows(value: t.Any) -> list[Table]:
    """The mappings in the value, if it is a list."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def number(value: t.Any) -> float | None:
    """The value, if it is a number that is not negative."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0 else None


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage: when it began, how many seconds it took, and whether what it gives was there before."""

    name: str
    began: str
    seconds: float
    cached: bool
    pause: bool
    """Whether the playbook was ended between the stage before and this one."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One check on one boot; C(state) is C(ok), C(warn) or C(fail)."""

    name: str
    group: str
    boot: str
    state: str
    detail: str


@dataclasses.dataclass(frozen=True)
class Boot:
    """One boot: seconds from the machine's start to each event, who listens, and the picture of its screen (PNG)."""

    name: str
    about: str
    timings: dict[str, float]
    listening: list[Table]
    picture: bytes | None
    picture_path: str | None


@dataclasses.dataclass(frozen=True)
class Changes:
    """What is different from the version that was published last."""

    version: str
    published: str
    size_before: int | None
    added: list[tuple[str, str]]
    removed: list[tuple[str, str]]
    changed: list[tuple[str, str, str]]

    def counts(self) -> dict[str, int]:
        """How many packages were added, removed, and have another version."""
        return {name: len(getattr(self, name)) for name in ("added", "removed", "changed")}


@dataclasses.dataclass(frozen=True)
class Facts:
    """All that a report tells."""

    build: Table
    descriptor: Descriptor | None
    assessment: Table
    verdict: str
    """C(pass), C(fail), C(override) or C(none)."""
    problem: str | None
    override: dict[str, str]
    stages: list[Stage]
    boots: list[Boot]
    checks: list[Check]
    sizes: dict[str, int]
    packages: Packages | None
    changes: Changes | None
    first: bool
    """Whether no version was published before."""

    @property
    def name(self) -> str:
        """The name of the image."""
        return str(self.build.get("image") or (self.descriptor.image if self.descriptor else ""))

    @property
    def version(self) -> str:
        """The version of the build."""
        return str(self.build.get("version") or (self.descriptor.version if self.descriptor else ""))

    def found(self, stage: str) -> Table:
        """What a guest stage has found out."""
        return table(table(table(self.build.get("stages")).get(stage)).get("facts"))


def gather(directory: Path, catalogue: Path | None) -> Facts:
    """Read what there is about the build in ``directory``; ``catalogue`` is the directory of the local catalogue.

    :raises FactoryError: there is no build, or one of its files cannot be read.
    """
    build = table(_state.read_json(directory / BUILD))
    path = directory / _descriptor.FILE
    descriptor = _descriptor.load(path) if path.exists() else None
    if not build and not descriptor:
        raise FactoryError("there is no build", where=str(directory), mend="name the directory of a build")
    assessment = table(_state.read_json(directory / _verdict.ASSESSMENT))
    finding = (
        _verdict.find(directory / _verdict.ASSESSMENT, descriptor)
        if descriptor
        else _verdict.Finding("none", "the image has not been exported")
    )
    override = table((descriptor.assess or {}).get("override") if descriptor else None)
    if finding.verdict == "none":
        # What it says is not about this image.
        assessment = {}
    packages = _read_packages(directory / _packages.FILE)
    former = _former(catalogue, build, descriptor)
    return Facts(
        build=build,
        descriptor=descriptor,
        assessment=assessment,
        verdict="override" if finding.verdict == "fail" and override else finding.verdict,
        problem=finding.problem,
        override=override,
        stages=_stages(build),
        boots=_boots(assessment, directory / "logs"),
        checks=_checks(assessment),
        sizes=_sizes(build),
        packages=packages,
        changes=_changes(catalogue, former, packages) if catalogue and former else None,
        first=former is None,
    )


def _stages(build: Table) -> list[Stage]:
    found: list[Stage] = []
    records = table(build.get("stages"))
    ended = ""
    for name in STAGES:
        record = table(records.get(name))
        seconds = number(record.get("seconds"))
        if seconds is None:
            continue
        began = str(record.get("began") or "")
        pause = bool(ended and began) and _after(ended, began) > 1
        found.append(Stage(name, began, seconds, bool(record.get("cached")), pause))
        ended = str(record.get("finished") or "")
    return found


def _after(before: str, after: str) -> float:
    try:
        return (_descriptor.parse_time(after) - _descriptor.parse_time(before)).total_seconds()
    except ValueError:
        return 0.0


def _boots(assessment: Table, logs: Path) -> list[Boot]:
    listed = rows(assessment.get("boots"))
    if not listed:  # as assess.json was before it had boots
        timings = table(assessment.get("timings"))
        listed = [{"name": name, "firmware": name, "timings": timings[name]} for name in sorted(timings)]
    found = []
    for row in listed:
        name = str(row.get("name") or row.get("firmware") or "")
        about = [str(row[key]) for key in ("firmware", "datasource") if row.get(key)]
        timings = {key: number(value) for key, value in table(row.get("timings")).items()}
        path = logs / f"assess-screen-{name}.png" if "/" not in name else logs / "none"
        picture = _picture(path)
        found.append(
            Boot(
                name,
                ", ".join(about),
                {key: value for key, value in timings.items() if value is not None},
                rows(row.get("listening")),
                picture,
                f"logs/{path.name}" if path.is_file() else None,
            )
        )
    return found


def _picture(path: Path) -> bytes | None:
    """A PNG that is small enough for the page."""
    if not path.is_file() or path.stat().st_size > PICTURE_LIMIT:
        return None
    content = path.read_bytes()
    return content if content.startswith(b"\x89PNG\r\n\x1a\n") else None


def data_uri(picture: bytes) -> str:
    """A PNG as the source of an image that is in the page itself."""
    return "data:image/png;base64," + base64.b64encode(picture).decode("ascii")


def _checks(assessment: Table) -> list[Check]:
    return [
        Check(
            str(row.get("name") or ""),
            str(row.get("group") or ""),
            str(row.get("boot") or row.get("firmware") or ""),
            "ok" if row.get("ok") else "fail" if row.get("required", True) else "warn",
            str(row.get("detail") or ""),
        )
        for row in rows(assessment.get("checks"))
    ]


def _sizes(build: Table) -> dict[str, int]:
    facts = table(table(table(build.get("stages")).get("sanitize")).get("facts"))
    given = {str(path): number(count) for path, count in table(facts.get("sizes")).items()}
    return {path: int(count) for path, count in sorted(given.items()) if count and path.startswith("/") and path != "/"}


def _read_packages(path: Path) -> Packages | None:
    document = _state.read_json(path)
    if document is None:
        return None
    versions: dict[tuple[str, str], list[str]] = {}
    for row in rows(table(document).get("packages")):
        versions.setdefault((str(row.get("name")), str(row.get("arch"))), []).append(str(row.get("version")))
    return {key: ", ".join(sorted(found)) for key, found in sorted(versions.items())}


def _former(catalogue: Path | None, build: Table, descriptor: Descriptor | None) -> Table | None:
    """The newest version before this one that was published and still has its files, as the index has it."""
    image = build.get("image") or (descriptor.image if descriptor else "")
    version = str(build.get("version") or (descriptor.version if descriptor else ""))
    index = table(_state.read_json(catalogue / "index.json")) if catalogue else {}
    known = rows(table(table(index.get("images")).get(image)).get("versions"))
    mine = version_key(version)
    before = [row for row in known if row.get("state") != "removed" and version_key(str(row.get("version"))) < mine]
    return max(before, key=lambda row: version_key(str(row.get("version"))), default=None)


def _changes(catalogue: Path, former: Table, packages: Packages | None) -> Changes | None:
    before = _read_packages(catalogue / str(former.get("packages"))) if former.get("packages") else None
    if before is None or packages is None:
        return None
    artifacts = rows(former.get("artifacts"))
    both = sorted(set(before) & set(packages))
    return Changes(
        version=str(former.get("version")),
        published=str(former.get("published") or ""),
        size_before=artifacts[0].get("size") if artifacts else None,
        added=[(_label(key), packages[key]) for key in sorted(set(packages) - set(before))],
        removed=[(_label(key), before[key]) for key in sorted(set(before) - set(packages))],
        changed=[(_label(key), before[key], packages[key]) for key in both if before[key] != packages[key]],
    )


def _label(key: tuple[str, str]) -> str:
    return key[0]


def newer(before: str, after: str) -> bool:
    """Whether a package's version ``after`` is the higher one (an epoch first, then in natural order)."""

    def order(version: str) -> tuple[int, tuple[tuple[int, int], ...]]:
        epoch, sign, rest = version.partition(":")
        return (int(epoch), version_key(rest)) if sign and epoch.isdigit() else (0, version_key(version))

    return order(after) > order(before)
