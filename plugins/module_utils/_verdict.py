# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What C(assess.json) says of the artifacts that a descriptor describes, and whether they may be published all the same."""

from __future__ import annotations

import dataclasses
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _state
from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor import Descriptor
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result

ASSESSMENT = "assess.json"
Override = dict[str, str]
"""Why somebody lets an image through that has not passed: C(reason), C(by), C(at)."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """The verdict: C(pass), C(fail), or C(none) where the artifact was not assessed; ``problem`` says why it is no pass."""

    verdict: str
    problem: str | None = None
    finished: str | None = None

    def summary(self, override: Override | None = None) -> dict[str, t.Any]:
        """The key C(assess) of a descriptor; an override counts only where it is needed."""
        found: dict[str, t.Any] = {"verdict": self.verdict}
        if self.finished:
            found["finished"] = self.finished
        if override and self.verdict != "pass":
            found["override"] = override
        return found


def find(path: Path, build: Descriptor) -> Finding:
    """What the C(assess.json) at ``path`` says of the artifacts of ``build``; raises FactoryError where it is no JSON."""
    report = _state.read_json(path, {})
    verdict = report.get("verdict") if isinstance(report, dict) else None
    if not verdict:
        return Finding("none", "the image has not been assessed")
    judged = report.get("artifact")
    sha256 = judged.get("sha256") if isinstance(judged, dict) else None
    if sha256 not in {artifact.checksums["sha256"] for artifact in build.artifacts}:
        return Finding("none", "it is about another artifact than the descriptor's")
    finished = _moment(report.get("finished"))
    if verdict == "pass":
        return Finding("pass", None, finished)
    return Finding("fail", f"the verdict is {verdict!r}", finished)


def override_of(reason: str | None, who: str, former: Override | None = None) -> Override | None:
    """An override that begins now, or ``former`` where it has the same reason; None where the reason is blank."""
    plain = " ".join((reason or "").split())
    if not plain:
        return None
    if former and former["reason"] == plain:
        return former
    return {"reason": plain, "by": who, "at": _descriptor.now()}


def accept(path: Path, build: Descriptor, reason: str | None, who: str, former: Override | None) -> dict[str, t.Any]:
    """The key C(assess) of a descriptor that may be published.

    :param former: the override with which it was published before; that of the descriptor, then ``reason``, come after it.
    :raises FactoryError: it has not passed, and nobody lets it through.
    """
    finding = find(path, build)
    override = former
    if not override and finding.verdict == "fail":
        override = (build.assess or {}).get("override")
    override = override or override_of(reason, who)
    if finding.verdict != "pass" and not override:
        raise FactoryError(
            finding.problem or finding.verdict,
            where=str(path),
            key="verdict",
            mend="run the assess stage and mend what it finds, or give assess_override a reason",
        )
    return finding.summary(override)


def settle(directory: Path, reason: str | None, who: str, *, check_mode: bool = False) -> Result:
    """Put the verdict, and the override where one is needed, into the descriptor in ``directory``.

    What was not assessed cannot be let through here: the descriptor then has no verdict.

    ``extra``: C(verdict); C(accepted), whether it may go on; C(override); C(problem), in words; C(descriptor), its path.
    """
    path = directory / _descriptor.FILE
    result = Result()
    result.extra = {"verdict": "none", "accepted": False, "override": None, "problem": None, "descriptor": str(path)}
    if check_mode and not path.exists():
        result.act(f"{path}: the stage before would make it, then it gets the verdict")
        return result
    build = _descriptor.load(path)
    finding = find(directory / ASSESSMENT, build)
    override = None
    if finding.verdict == "fail":
        override = override_of(reason, who, (build.assess or {}).get("override"))
    new = dataclasses.replace(build, assess=finding.summary(override) if finding.verdict != "none" else None)
    if new.dump() != build.dump():
        result.act(f"{path.name}: {_told(new)}")
        if not check_mode:
            _state.write_text(path, new.dump())
    result.extra.update(
        verdict=finding.verdict,
        accepted=finding.verdict == "pass" or override is not None,
        override=override,
        problem=finding.problem,
    )
    result.image = new.document()
    result.diff = {"before": {"assess": build.assess}, "after": {"assess": new.assess}}
    return result


def _told(build: Descriptor) -> str:
    if not build.assess:
        return "has a verdict about another artifact"
    override = build.assess.get("override")
    return f"the verdict is {build.assess['verdict']}" + (f", let through: {override['reason']}" if override else "")


def _moment(text: t.Any) -> str | None:
    """A time as descriptors have it; None where it is none."""
    try:
        return _descriptor.format_time(_descriptor.parse_time(text))
    except (TypeError, ValueError):
        return None
