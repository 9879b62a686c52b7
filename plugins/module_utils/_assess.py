# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Judging an artifact as a stranger would: boot clones of it as new machines, and look whether all is as it should be.

The artifact is only ever read: each machine writes to an overlay that goes with it.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import (
    _accel,
    _boots,
    _descriptor,
    _junit,
    _machine,
    _qemu_img,
    _secant,
    _state,
    _updates,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import cached_digests, data_digest
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

SCHEMA = 2
FILE, JUNIT, SECANT = "assess.json", "assess.xml", "secant.xml"
FORMATS = {"qcow2": "qcow2", "raw": "raw", "vmdk": "vmdk", "vdi": "vdi", "vhd": "vpc", "vhdx": "vhdx"}
"""What can be booted, and QEMU's name of it."""
RECIPE = 2
"""Raise it when the checks change, so that what passed before is judged again."""
_SPACE = 1 << 30
_CLUSTER = 65536
_ALL = "all"
"""What is about all boots has this name instead of a boot's."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What to judge, and how; sizes in bytes but ``memory``, which is in MiB.

    :ivar cpus: of each machine; 0 for what suits the builder.
    :ivar lynis: C(yes), C(no), or C(auto) (where guests run with KVM).
    :ivar updates: whether security updates are looked for.
    """

    image: str
    version: str
    artifact: Path
    format: str
    directory: Path
    user: str
    grow: int
    boots: tuple[str, ...]
    accelerator: str
    cpus: int
    memory: int
    allowed_units: tuple[str, ...]
    allowed_ports: tuple[str, ...]
    lynis: str
    updates: bool
    timeout: float

    def options(self) -> dict[str, t.Any]:
        """The options that the verdict depends on."""
        names = (
            "format",
            "user",
            "grow",
            "boots",
            "cpus",
            "memory",
            "allowed_units",
            "allowed_ports",
            "lynis",
            "updates",
        )
        return {**{name: getattr(self, name) for name in names}, "recipe": RECIPE}


def assess(request: Request, progress: Progress, *, check_mode: bool = False) -> Result:
    """Judge, and write C(assess.json); what has passed with the same options is not judged again.

    :raises FactoryError: the verdict is C(fail), or there could be none.
    """
    path = request.directory / FILE
    report_before = _state.read_json(path, {})
    with _state.explain_os_errors(request.artifact):
        sha256 = cached_digests(request.artifact, ["sha256"])["sha256"]
    result = Result(log_path=str(request.directory / "logs" / f"assess-console-{request.boots[0]}.log"))
    stale = _stale(report_before, request, sha256)
    if not stale:
        result.extra = {"assessment": report_before, "report_path": str(path)}
        return result
    result.act(f"assess: {stale}")
    if not check_mode:
        # whatever they said, it was not about this
        for name in (FILE, JUNIT, SECANT):
            _state.remove(request.directory / name)
    disk = _disk(request)
    if check_mode:
        return result
    report = _report(request, progress, sha256, disk)
    _write(report, request.directory)
    result.extra = {"assessment": report, "report_path": str(path)}
    if report["verdict"] != "pass":
        raise _failure(report, path, result)
    return result


def _stale(report: t.Any, request: Request, sha256: str) -> str | None:
    """Why a report says nothing about this request; None when it does."""
    if not isinstance(report, dict) or not report:
        return "the image has not been assessed"
    if report.get("artifact", {}).get("sha256") != sha256:
        return "the artifact is another one than that assessed"
    if report.get("digest") != data_digest(request.options()):
        return "it was assessed with other options"
    return None if report.get("verdict") == "pass" else "it did not pass"


@dataclasses.dataclass(frozen=True)
class _Disk:
    size: int
    cluster_size: int


def _disk(request: Request) -> _Disk:
    """The artifact's disk; raises FactoryError where it is no disk of the format given."""
    fmt = FORMATS[request.format]
    if fmt == "raw":
        return _Disk(request.artifact.stat().st_size, _CLUSTER)
    found = _qemu_img.safe_info(request.artifact)
    if found.format != fmt:
        raise FactoryError(
            f"is {found.format}, not {request.format}",
            where=str(request.artifact),
            key="format",
            mend="give the format that it has, or export it again",
        )
    return _Disk(found.virtual_size, found.cluster_size if fmt == "qcow2" and found.cluster_size else _CLUSTER)


def _report(request: Request, progress: Progress, sha256: str, disk: _Disk) -> dict[str, t.Any]:
    accelerator = _accel.detect(wanted=request.accelerator)
    if any(_boots.BOOTS[name][0] == "uefi" for name in request.boots):
        _machine.uefi_flash()  # now, rather than after the other boots
    with _state.explain_os_errors(request.directory):
        request.directory.mkdir(parents=True, exist_ok=True)
    _state.need_space(request.directory, _SPACE * len(request.boots), "the boots of the image")
    started = _descriptor.now()
    for path in (request.directory / "logs").glob("assess-*"):
        _state.remove(path)
    with _machine.scratch(request.directory, "assess") as runtime:
        boots = _boot_all(request, progress, accelerator, disk, runtime)
        progress.phase("looking for security updates")
        outcomes = _outcomes(request, progress, boots, runtime)
    checks = [(boot.name, check) for boot in boots for check in boot.checks]
    if len(boots) > 1:
        checks += [(_ALL, check) for check in _boots.compare(boots)]
    checks += [(_ALL, outcome.check()) for outcome in outcomes]
    passed = all(check.ok for _boot, check in checks if check.required)
    return {
        "schema": SCHEMA,
        "image": request.image,
        "version": request.version,
        "artifact": {"name": request.artifact.name, "format": request.format, "sha256": sha256},
        "options": request.options(),
        "digest": data_digest(request.options()),
        "accelerator": accelerator,
        "qemu": _qemu_img.version(),
        "started": started,
        "finished": _descriptor.now(),
        "verdict": "pass" if passed else "fail",
        "boots": [boot.dump() for boot in boots],
        "checks": [{"boot": boot, **dataclasses.asdict(check)} for boot, check in checks],
        "secant": [outcome.dump() for outcome in outcomes],
        "lynis": next((boot.lynis for boot in boots if boot.lynis), None),
    }


def _boot_all(request: Request, progress: Progress, accelerator: str, disk: _Disk, runtime: Path) -> list[_boots.Boot]:
    """All the boots, at the same time."""
    watcher = _boots.Watcher()
    # two emulated machines with as many processors as the builder has would mostly wait for each other
    cpus = request.cpus or max(1, min(2, (os.cpu_count() or 1) // len(request.boots)))
    orders = [
        _boots.Order(
            name=name,
            machine=f"{request.image}-assess",
            artifact=request.artifact,
            format=FORMATS[request.format],
            size=disk.size,
            cluster_size=disk.cluster_size,
            grow=request.grow,
            user=request.user,
            accelerator=accelerator,
            cpus=cpus,
            memory=request.memory,
            allowed_units=request.allowed_units,
            allowed_ports=request.allowed_ports,
            timeout=request.timeout,
            number=number,
            lynis=number == 0 and (request.lynis == "yes" or (request.lynis == "auto" and accelerator == "kvm")),
        )
        for number, name in enumerate(request.boots)
    ]
    phases = f"booting {len(orders)} clones ({accelerator})"
    progress.phase(phases)
    with concurrent.futures.ThreadPoolExecutor(len(orders)) as pool:
        try:
            jobs = []
            for order in orders:
                own = runtime / order.name
                own.mkdir(mode=0o700)
                jobs.append(pool.submit(_boots.boot, order, own, request.directory / "logs", watcher))
            while not all(job.done() for job in jobs):
                concurrent.futures.wait(jobs, timeout=1.0, return_when=concurrent.futures.FIRST_EXCEPTION)
                for job in jobs:
                    if job.done():
                        job.result()  # what it raises ends the others, too
                if watcher.phases() != phases:
                    phases = watcher.phases()
                    progress.phase(phases)
                progress.report(console=watcher.consoles())
            return [job.result() for job in jobs]
        except BaseException:
            watcher.cancelled.set()
            raise


def _outcomes(request: Request, progress: Progress, boots: list[_boots.Boot], runtime: Path) -> list[_secant.Outcome]:
    """Those of SECANT's probes, over all boots."""
    found = []
    for name in _secant.PROBES:
        of_boots = [(boot.name, outcome) for boot in boots for outcome in boot.outcomes if outcome.id == name]
        worst = _secant.worst(name, of_boots)
        found += [worst] if worst else []
    if not any(outcome.id == "lynis_test" for outcome in found):
        why = "it is switched off" if request.lynis != "yes" else "the machine did not come so far"
        found.append(_secant.Outcome("lynis_test", _secant.SKIPPED, why))
    facts = next((boot.facts for boot in boots if boot.facts.get("packages")), None)
    if not request.updates:
        found.append(_secant.Outcome("pakiti_test", _secant.SKIPPED, "it is switched off"))
    elif any(boot.facts for boot in boots):
        own = runtime / "updates"
        own.mkdir()
        packages, sources = (facts or {}).get("packages", ""), (facts or {}).get("sources", "")
        found.append(_updates.outcome(packages, sources, own, tick=lambda line: progress.report(console=line)))
    return _secant.all_of(found)


def _write(report: dict[str, t.Any], directory: Path) -> None:
    """The report, in all its forms; C(assess.json), by which it counts as done, last."""
    outcomes = [_secant.Outcome(**{**row, "details": tuple(row["details"])}) for row in report["secant"]]
    name = f"{report['image']} {report['version']}"
    message_id = f"{report['artifact']['sha256'][:16]}-{report['finished']}"
    _state.write_text(directory / SECANT, _secant.xml(outcomes, image_id=name, message_id=message_id))
    _state.write_text(directory / JUNIT, _junit.xml(report))
    _state.write_json(directory / FILE, report)


def _failure(report: dict[str, t.Any], path: Path, result: Result) -> FactoryError:
    failed = [check for check in report["checks"] if check["required"] and not check["ok"]]
    alone = [_ALL] if len(report["boots"]) > 1 else [_ALL, report["boots"][0]["name"]]
    by_reason: dict[tuple[str, str], list[str]] = {}
    for check in failed:
        by_reason.setdefault((check["name"], check["detail"]), []).append(check["boot"])
    told = [
        f"{name}{'' if set(boots) <= set(alone) else ' (' + ', '.join(boots) + ')'}: {detail}"
        for (name, detail), boots in by_reason.items()
        # what could not be asked since the machine did not come so far is told by what kept it from that
        if not (boots == [_ALL] and any(check["name"] in ("boot", "login") for check in failed))
    ]
    return FactoryError(
        f"failed: {'; '.join(told)}",
        where=str(path),
        key="verdict",
        mend=f"see {path.parent / 'logs'}",
        details={"log_path": result.log_path, "actions": result.actions, **result.extra},
    )
