# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Judging an artifact as a stranger would: boot it as a new machine, log in, and look whether all is as it should be.

The artifact is only ever read: the machine writes to an overlay that goes with it.
"""

from __future__ import annotations

import dataclasses
import time
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import (
    _accel,
    _descriptor,
    _machine,
    _probe,
    _qemu_img,
    _seed,
    _ssh,
    _state,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import cached_digests, data_digest
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import Cancelled, FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.plugins.module_utils._probe import Check
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

FILE = "assess.json"
FORMATS = {"qcow2": "qcow2", "raw": "raw", "vmdk": "vmdk", "vdi": "vdi", "vhd": "vpc", "vhdx": "vhdx"}
"""What can be booted, and QEMU's name of it."""
RECIPE = 1
"""Raise it when the checks change, so that what passed before is judged again."""
_SPACE = 1 << 30
_CLUSTER = 65536
_SLOW_LOGIN = 300.0
"""Seconds after the SSH server's first word within which the key must get in: cloud-init may still be busy with it."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What to judge, and how; sizes in bytes but ``memory``, which is in MiB."""

    image: str
    version: str
    artifact: Path
    format: str
    directory: Path
    user: str
    grow: int
    firmware: tuple[str, ...]
    accelerator: str
    cpus: int
    memory: int
    allowed_units: tuple[str, ...]
    timeout: float

    def options(self) -> dict[str, t.Any]:
        """The options that the verdict depends on."""
        names = ("format", "user", "grow", "firmware", "cpus", "memory", "allowed_units")
        return {**{name: getattr(self, name) for name in names}, "recipe": RECIPE}


@dataclasses.dataclass
class Boot:
    """One boot: its checks, and the seconds from the machine's start to each event."""

    firmware: str
    checks: list[Check] = dataclasses.field(default_factory=list)
    timings: dict[str, float] = dataclasses.field(default_factory=dict)


def assess(request: Request, progress: Progress, *, check_mode: bool = False) -> Result:
    """Judge, and write C(assess.json); what has passed with the same options is not judged again.

    :raises FactoryError: the verdict is C(fail), or there could be none.
    """
    path = request.directory / FILE
    report_before = _state.read_json(path, {})
    with _state.explain_os_errors(request.artifact):
        sha256 = cached_digests(request.artifact, ["sha256"])["sha256"]
    result = Result(log_path=str(_console(request, request.firmware[0])))
    stale = _stale(report_before, request, sha256)
    if not stale:
        result.extra = {"assessment": report_before, "report_path": str(path)}
        return result
    result.act(f"assess: {stale}")
    if not check_mode:
        # whatever it said, it was not about this
        _state.remove(path)
    disk = _disk(request)
    if check_mode:
        return result
    report = _report(request, progress, sha256, disk)
    _state.write_json(path, report)
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
    with _state.explain_os_errors(request.directory):
        request.directory.mkdir(parents=True, exist_ok=True)
    _state.need_space(request.directory, _SPACE, "a boot of the image")
    started = _descriptor.now()
    boots = [_boot(request, progress, accelerator, firmware, disk) for firmware in request.firmware]
    passed = all(check.ok for boot in boots for check in boot.checks if check.required)
    return {
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
        "checks": [{"firmware": boot.firmware, **dataclasses.asdict(check)} for boot in boots for check in boot.checks],
        "timings": {boot.firmware: boot.timings for boot in boots},
    }


def _console(request: Request, firmware: str) -> Path:
    suffix = "" if firmware == "bios" else f"-{firmware}"
    return request.directory / "logs" / f"assess-console{suffix}.log"


def _boot(request: Request, progress: Progress, accelerator: str, firmware: str, disk: _Disk) -> Boot:
    """Boot it once, and judge. What keeps it from being judged is a failed check of its own."""
    boot = Boot(firmware)
    deadline = time.monotonic() + request.timeout
    console = _console(request, firmware)
    picture = console.with_name(console.name.replace("console", "screen"))
    for suffix in (".png", ".ppm"):
        _state.remove(picture.with_suffix(suffix))
    with _machine.scratch(request.directory, "assess") as runtime:
        progress.phase(f"preparing the {firmware} boot")
        key = _ssh.make_key(runtime / "id")
        _seed.make_seed(
            runtime / "seed.iso",
            _seed.cloud_config({"ssh_authorized_keys": [key]}),
            {"instance-id": f"assess-{runtime.name}", "local-hostname": "assess"},
        )
        # a quarter at least: what had not grown is then smaller than the disk was, whatever the file system's overhead
        grown = -(-(disk.size + max(request.grow, disk.size // 4)) // 512) * 512
        overlay = runtime / "overlay.qcow2"
        _qemu_img.create(
            overlay,
            grown,
            backing=request.artifact,
            backing_fmt=FORMATS[request.format],
            options={"cluster_size": str(disk.cluster_size)},
        )
        spec = _machine.Spec(
            name=f"{request.image}-assess",
            disk=overlay,
            accelerator=accelerator,
            firmware=firmware,
            cpus=request.cpus,
            memory=request.memory,
            seed=runtime / "seed.iso",
            isolated=True,
            copy_on_read=True,
        )
        with _machine.Machine(spec, runtime, console) as machine:
            try:
                _examine(request, progress, machine, boot, disk.size, deadline)
            except Cancelled:
                raise
            except FactoryError as exc:
                boot.checks.append(Check(_reached(boot), False, exc.problem))
            if not all(check.ok for check in boot.checks if check.required):
                machine.screenshot(picture)
    return boot


def _reached(boot: Boot) -> str:
    """The name of the check that is due, by what was reached before."""
    names = [check.name for check in boot.checks]
    return next((name for name in ("boot", "login") if name not in names), "examination")


def _examine(
    request: Request, progress: Progress, machine: _machine.Machine, boot: Boot, size: int, deadline: float
) -> None:
    began = time.monotonic()

    def elapsed() -> float:
        return round(time.monotonic() - began, 1)

    def tick(_line: str = "") -> None:
        progress.report(console=machine.console_tail())

    progress.phase(f"waiting for SSH ({boot.firmware}, {machine.spec.accelerator})")
    banner = machine.wait_ssh(deadline - time.monotonic(), tick)
    boot.timings["ssh"] = elapsed()
    boot.checks.append(Check("boot", True, f"{banner} after {boot.timings['ssh']:.0f} s"))

    access = _ssh.Access(
        _machine.LOOPBACK, machine.port, request.user, machine.runtime / "id", machine.runtime / "known_hosts"
    )

    def look(line: str = "") -> None:
        if line.startswith(_probe.MARK) and "login" not in boot.timings:
            boot.timings["login"] = elapsed()
            boot.checks.append(Check("login", True, f"{request.user} with the key of the seed"))
            progress.phase("waiting for cloud-init")
        machine.watch.check()
        if time.monotonic() > deadline:
            raise FactoryError(
                f"the boot did not come to its end within {request.timeout:.0f} s; "
                f"the console's last line: {machine.console_tail()}"
            )
        tick()

    progress.phase("logging in")
    facts = _ask(access, look)
    since = _probe.seconds_since_finish(facts)
    if since is not None:
        boot.timings["cloud_init"] = round(elapsed() - since, 1)
    progress.phase("trying to log in without a key")
    methods = _ssh.offered_methods(access, timeout=120)
    boot.checks.append(_probe.judge_methods(methods))
    boot.checks += _probe.judge(facts, size_before=size, allowed_units=request.allowed_units)


def _ask(access: _ssh.Access, look: t.Callable[[str], None]) -> dict[str, str]:
    """What the guest tells from within; raises FactoryError when nobody can log in.

    :param look: called about once a second with the last line that the guest said; raises when time is up.
    """
    give_up = time.monotonic() + _SLOW_LOGIN
    while True:
        done = _ssh.run(access, _probe.command(), timeout=None, check=False, tick=look)
        facts = _probe.parse(done.stdout)
        if "end" in facts:
            look(_probe.MARK)
            return facts
        if facts:
            raise FactoryError(f"the connection broke off: {_last_line(done.stderr)}")
        if time.monotonic() > give_up:
            raise FactoryError(f"{access.user} cannot log in: {_last_line(done.stderr)}")
        look("")
        time.sleep(2)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["ssh said nothing"])[-1]


def _failure(report: dict[str, t.Any], path: Path, result: Result) -> FactoryError:
    failed = [check for check in report["checks"] if check["required"] and not check["ok"]]
    several = len(report["timings"]) > 1
    told = [
        f"{check['name']}{' (' + check['firmware'] + ')' if several else ''}: {check['detail']}" for check in failed
    ]
    return FactoryError(
        f"failed: {'; '.join(told)}",
        where=str(path),
        key="verdict",
        mend=f"see {path.parent / 'logs'}",
        details={"log_path": result.log_path, "actions": result.actions, **result.extra},
    )
