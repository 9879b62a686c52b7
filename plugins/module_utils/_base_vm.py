# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The base: the disk that the installer left, cached by the digest of everything that went into it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import platform
import time
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import (
    _accel,
    _cli,
    _descriptor,
    _layers,
    _libvirt,
    _qemu_img,
    _seed,
    _state,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import data_digest, fast_checksum
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import Cancelled, FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.plugins.module_utils._virt_install import (
    MINIMUM_VERSION,
    Console,
    Installation,
    Machine,
    Signs,
    Watch,
    install,
    virt_install_argv,
)

_RECIPE = 1
"""Raised when this file makes another base out of the same inputs."""
_DISK_OVERHEAD = 0.10
"""What a file system and a boot loader take beside the unpacked system, as a share of it."""
_LOG_TAIL = 5
NATIVE = "x86_64"
"""The architecture that needs no mention in the digest of a base."""


@dataclasses.dataclass(frozen=True)
class Order:
    """What is to be installed, and how: the options of M(cloudimg.factory.base_vm)."""

    workspace: _state.Workspace
    image: str
    medium: dict[str, t.Any]
    disk_size: int
    memory: int
    cpus: int
    firmware: str
    osinfo: str
    accelerator: str
    uri: str
    answer_files: dict[str, str]
    answer_volume: str
    arch: str
    directory: Path
    timeout: float
    inactivity: float
    keep_on_failure: bool

    @property
    def domain(self) -> str:
        """The name of the domain that installs."""
        return f"cloudimg-{self.image}-base"

    def inputs(self) -> dict[str, t.Any]:
        """Everything that makes the base what it is, by name."""
        answers = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in sorted(self.answer_files.items())}
        return {
            "recipe": _RECIPE,
            "medium": self.medium["sha256"],
            "boot": self.medium.get("boot") or "location",
            "kernel_args": self.medium.get("kernel_args") or "",
            "answer_files": answers,
            "disk": {"size": self.disk_size},
            "machine": {"memory": self.memory, "cpus": self.cpus, "firmware": self.firmware},
            # Named only where they are, so that the bases that have none keep their digest.
            **({"answer_volume": self.answer_volume} if self.answer_volume else {}),
            **({"drivers": self.medium["drivers"]["sha256"]} if self.medium.get("drivers") else {}),
            **({"arch": self.arch} if self.arch != NATIVE else {}),
        }


def base_path(workspace: _state.Workspace, digest: str) -> Path:
    """Where the base with that digest is kept."""
    return workspace.layers / base_name(digest)


def base_name(digest: str) -> str:
    """The name of its file."""
    return f"base_vm-{digest[:32]}.qcow2"


def ensure_base(order: Order, progress: Progress, *, check_mode: bool = False) -> Result:
    """Have the base: from the cache, or by an installation.

    :returns: a Result with C(base) = ``{path, digest, size}`` and C(cached).
    """
    _state.check_image_name(order.image)
    inputs = order.inputs()
    digest = data_digest(inputs)
    path = base_path(order.workspace, digest)
    result = Result(log_path=str(order.directory / "logs"))
    result.extra = {"base": {"path": str(path), "digest": digest, "size": order.disk_size}, "cached": True}
    if intact(path) and (check_mode or _layers.touch(order.workspace, path)):
        return result
    before = dict(_layers.previous(order.workspace, order.image, "base_vm").get("inputs", {}))
    result.extra["cached"] = False
    result.diff = {"before": before, "after": inputs}
    result.act(_reason(path, before, inputs))
    _check_size(order)
    if check_mode:
        return result
    order.workspace.make()
    busy = "another build installs this very base"
    with _state.lock(path.with_suffix(".lock"), wait=order.timeout, busy=busy):
        if intact(path):  # somebody else has installed it while we waited for the lock
            return Result(extra={**result.extra, "cached": True}, log_path=result.log_path)
        _state.reap_partials(order.workspace.layers)
        _install_base(order, inputs, digest, path, progress)
    return result


def new_record(image: str, digest: str, inputs: t.Mapping[str, t.Any], disk: Path) -> dict[str, t.Any]:
    """What the cache has to know of a base that was just made, for :func:`intact` and the images that stand on it."""
    return {
        "stage": "base_vm",
        "image": image,
        "digest": digest,
        "inputs": dict(inputs),
        "created": _descriptor.now(),
        "file_size": disk.stat().st_size,
        "checksum": fast_checksum(disk),
    }


def intact(path: Path) -> bool:
    """Whether a base is in the cache as it was made."""
    record = _layers.record_of(path)
    if not record or not path.exists() or record.get("file_size") != path.stat().st_size:
        return False
    return path.name == base_name(str(record.get("digest"))) and _layers.damage(path, record) is None


def _reason(path: Path, before: dict[str, t.Any], inputs: dict[str, t.Any]) -> str:
    if path.exists():
        return f"install: the cached base {path.name} is damaged"
    if not before:
        return "install: this image has no base yet"
    names = _layers.changed(before, inputs)
    return f"install: changed since the last base: {', '.join(names) or 'nothing, but that base was removed'}"


def _check_size(order: Order) -> None:
    needs = int(order.medium.get("needs") or 0)
    wanted = int(needs * (1 + _DISK_OVERHEAD)) + (128 << 20)
    if needs and order.disk_size < wanted:
        raise FactoryError(
            f"{order.disk_size >> 20} MiB is smaller than the installation needs ({wanted >> 20} MiB)",
            where=order.image,
            key="image_disk.size",
            mend=f"set it to {-(-wanted >> 30)}G or more",
        )


def _install_base(order: Order, inputs: dict[str, t.Any], digest: str, path: Path, progress: Progress) -> None:
    _cli.require_version("virt-install", MINIMUM_VERSION, "virtinst")
    _cli.require("virsh", "libvirt-clients")
    if order.arch != platform.machine():
        _cli.require(f"qemu-system-{order.arch}", "qemu-system-arm" if order.arch == "aarch64" else "qemu-system-x86")
    accelerator = _accelerator(order)
    logs = order.directory / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for log in logs.glob("base_vm-*"):
        log.unlink()
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(_state.partial(path))
        work = stack.enter_context(_work_directory(order.workspace.run / f"{order.domain}-{digest[:12]}"))
        _qemu_img.create(disk, order.disk_size)
        _state.need_space(path.parent, int(order.medium.get("needs") or 1 << 30), "the installed disk")
        progress.phase(f"starting the installer ({accelerator})")
        log = logs / "base_vm-libvirt.log"
        libvirt, session = stack.enter_context(
            _libvirt.connect(order.uri, order.domain, accelerator, log, keep=order.keep_on_failure)
        )
        if libvirt.exists(order.domain):
            # the lock on this base is ours: only a crashed build of this image can have left it
            libvirt.reap(order.domain)
        try:
            _run_installer(order, libvirt, accelerator, disk, work, logs, progress)
        except BaseException as exc:
            if order.keep_on_failure and isinstance(exc, FactoryError) and not isinstance(exc, Cancelled):
                raise _kept(exc, order, libvirt, session, disk) from exc
            libvirt.reap(order.domain)
            raise
        libvirt.reap(order.domain)
        progress.phase("checking the disk")
        _qemu_img.check(disk)
        more = {"seconds": round(time.monotonic() - began, 1), "accelerator": accelerator}
        _state.write_json(path.with_suffix(".json"), {**new_record(order.image, digest, inputs, disk), **more})


def _accelerator(order: Order) -> str:
    """What runs the guest: a foreign architecture is always emulated."""
    if order.arch == NATIVE == platform.machine():
        return _accel.detect(wanted=order.accelerator)
    if order.accelerator != "kvm":
        return "tcg"  # whether KVM works is found out by code of a PC, see _accel
    if order.arch == platform.machine():
        return "kvm"
    raise FactoryError(
        f"is kvm, which runs nothing for {order.arch} on a builder that is {platform.machine()}",
        where=order.image,
        key="base_vm_accelerator",
        mend=f"leave it at auto, which emulates, or build on a builder that is {order.arch}",
    )


def _run_installer(
    order: Order,
    libvirt: _libvirt.Libvirt,
    accelerator: str,
    disk: Path,
    work: Path,
    logs: Path,
    progress: Progress,
) -> None:
    medium = order.medium
    foreign = "" if order.arch == platform.machine() else order.arch
    machine = Machine(order.memory, order.cpus, order.firmware, accelerator, order.osinfo, foreign)
    success, failure, question = (
        tuple(medium.get(f"{kind}_lines") or ()) for kind in ("success", "failure", "question")
    )
    signs = Signs(success, failure, question, medium.get("hints") or {})
    console = Console(logs / "base_vm-console.log")
    installation = _prepare(order, work)
    argv = virt_install_argv(libvirt.uri, order.domain, machine, installation, disk, console.path)
    watch = Watch(
        libvirt, order.domain, disk, console, signs, progress, timeout=order.timeout, inactivity=order.inactivity
    )
    minutes = medium.get("minutes")
    progress.phase(
        f"installing (with hardware virtualisation it takes about {minutes} min)" if minutes else "installing"
    )
    try:
        log = logs / "base_vm-virt-install.log"
        install(libvirt, order.domain, argv, watch, log, reboots=installation.reboots)
    except Cancelled:
        raise
    except FactoryError as exc:
        picture = libvirt.screenshot(order.domain, logs / "base_vm-screen")
        exc.details.update(
            log_path=str(console.path),
            screenshot=str(picture) if picture else None,
            console=_cli.tail(console.path.read_text(encoding="utf-8", errors="replace"), _LOG_TAIL)
            if console.path.exists()
            else "",
        )
        raise


def _prepare(order: Order, work: Path) -> Installation:
    """What to boot; kernel and initrd for a direct boot are taken out of the medium, answer files are written.

    With C(answer_volume) the answer files become an ISO of that label; without, virt-install adds them to the initrd.
    """
    medium = order.medium
    iso = Path(medium["path"])
    boot = medium.get("boot") or "location"
    inject, volumes = [], []
    if order.answer_files and order.answer_volume:
        volumes.append(work / "answers.iso")
        _seed.make_iso(volumes[0], order.answer_volume, order.answer_files)
        volumes[0].chmod(0o600)
    else:
        for name, text in order.answer_files.items():
            inject.append(work / Path(name).name)
            _state.write_text(inject[-1], text, 0o600)
    if medium.get("drivers"):
        volumes.append(Path(medium["drivers"]["path"]))
    kernel, initrd = medium.get("kernel") or "", medium.get("initrd") or ""
    if boot == "direct":
        taken = {name: work / name for name in ("kernel", "initrd")}
        argv: list[str | Path] = ["xorriso", "-osirrox", "on", "-indev", iso]
        for name, file in taken.items():
            argv += ["-extract", f"/{str(medium[name]).lstrip('/')}", file]
        _cli.run(argv, timeout=120)
        kernel, initrd = str(taken["kernel"]), str(taken["initrd"])
    return Installation(
        medium=iso,
        boot=boot,
        kernel=kernel,
        initrd=initrd,
        kernel_args=medium.get("kernel_args") or "",
        inject=tuple(inject),
        volumes=tuple(volumes),
        reboots=bool(medium.get("reboots")),
    )


@contextlib.contextmanager
def _work_directory(path: Path) -> t.Iterator[Path]:
    _state.remove(path)
    with _state.explain_os_errors(path):
        path.mkdir(mode=0o700, parents=True)
    try:
        yield path
    finally:
        _state.remove(path)


def _kept(
    exc: FactoryError,
    order: Order,
    libvirt: _libvirt.Libvirt,
    session: _libvirt.PrivateSession | None,
    disk: Path,
) -> FactoryError:
    """The error of a failure that keeps everything, saying how to get in; the disk gets a name that nothing removes."""
    kept = order.directory / "kept-base_vm.qcow2"
    kept.unlink(missing_ok=True)
    kept.hardlink_to(disk)
    attach = f"virsh --connect '{libvirt.uri}' console {order.domain}"
    remove = session.leave() if session else f"virsh --connect '{libvirt.uri}' undefine --nvram {order.domain}"
    details = {**exc.details, "kept": {"domain": order.domain, "uri": libvirt.uri, "disk": str(kept), "remove": remove}}
    return FactoryError(
        f"{exc.problem} [kept: attach by: {attach} ; disk: {kept} ; remove by: {remove}]",
        where=exc.where,
        key=exc.key,
        mend=exc.mend,
        details=details,
    )
