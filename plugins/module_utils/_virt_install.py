# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The argv for virt-install, and the domain's life while the installer runs in it.

Sources: virt-install(1), virsh(1), https://libvirt.org/formatdomain.html.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._libvirt import Libvirt
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

MINIMUM_VERSION = (3, 0)
"""virt-install: the first that has --install and --location ISO,kernel=…,initrd=… and --noreboot together."""
_LOOK_EVERY = 3.0
_RESTART = "guest-reset"
_TAIL = 64 * 1024
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|[\x00-\x08\x0b-\x1a\x1c-\x1f]")


@dataclasses.dataclass(frozen=True)
class Machine:
    """The virtual machine that the installer runs in. ``memory`` in MiB."""

    memory: int = 2048
    cpus: int = 2
    firmware: str = "bios"
    accelerator: str = "tcg"
    osinfo: str = ""
    arch: str = ""
    """Where it is not the builder's own, as in C(aarch64)."""


@dataclasses.dataclass(frozen=True)
class Installation:
    """What to boot and how.

    :param boot: C(direct) boots ``kernel`` and ``initrd`` (files on the builder) with the medium as a virtio disk;
        C(location) lets virt-install take them (paths inside the ISO) out of the medium and attach it as a CD;
        C(cdrom) boots the medium's own boot loader.
    :param inject: files that virt-install adds to the initrd (with C(location)).
    :param volumes: more ISOs, attached as CDs: the answer files, drivers.
    :param reboots: the installer restarts the machine before it is finished, and powers it off in the end.
    """

    medium: Path
    boot: str
    kernel: str = ""
    initrd: str = ""
    kernel_args: str = ""
    inject: tuple[Path, ...] = ()
    volumes: tuple[Path, ...] = ()
    reboots: bool = False


@dataclasses.dataclass(frozen=True)
class Signs:
    """Regular expressions for lines on the console that mean something; ``hints`` say how to mend what some of them mean."""

    success: tuple[str, ...] = ()
    failure: tuple[str, ...] = ()
    question: tuple[str, ...] = ()
    hints: t.Mapping[str, str] = dataclasses.field(default_factory=dict)


def virt_install_argv(
    uri: str, domain: str, machine: Machine, installation: Installation, disk: Path, console: Path
) -> list[str]:
    """The command line that installs; the domain stays defined and off when the installer has ended."""
    argv = ["virt-install", "--connect", uri, "--name", domain]
    argv += ["--memory", str(machine.memory), "--vcpus", str(machine.cpus)]
    argv += ["--osinfo", machine.osinfo or "detect=on,require=off"]
    argv += ["--arch", machine.arch] if machine.arch else []
    if machine.accelerator == "kvm":
        argv += ["--virt-type", "kvm", "--cpu", "host-passthrough"]
    else:
        argv += ["--virt-type", "qemu", "--cpu", "mode=maximum"]
    if machine.firmware == "uefi":
        argv += ["--boot", "uefi"]
    argv += ["--disk", f"path={disk},format=qcow2,bus=virtio,cache=unsafe,discard=unmap"]
    argv += ["--network", "user,model=virtio", "--rng", "/dev/urandom"]
    argv += ["--graphics", "none", "--video", "virtio" if machine.arch == "aarch64" else "vga"]
    # the domain is started again after the first restart: what the console has said until then stays
    argv += ["--serial", f"pty,log.file={console},log.append={'on' if installation.reboots else 'off'}"]
    if installation.boot == "direct":
        argv += ["--disk", f"path={installation.medium},format=raw,bus=virtio,readonly=on"]
        kernel = f"kernel={installation.kernel},initrd={installation.initrd}"
        # kernel_args_overwrite: nothing but what we say; virt-install's own additions are for distribution trees
        argv += ["--install", f"{kernel},kernel_args={installation.kernel_args},kernel_args_overwrite=yes"]
    elif installation.boot == "location":
        argv += ["--location", f"{installation.medium},kernel={installation.kernel},initrd={installation.initrd}"]
        argv += ["--extra-args", installation.kernel_args]
        for path in installation.inject:
            argv += ["--initrd-inject", str(path)]
    else:
        argv += ["--cdrom", str(installation.medium)]
    for path in installation.volumes:
        argv += ["--disk", f"path={path},format=raw,device=cdrom,readonly=on"]
    return [*argv, "--noautoconsole", "--noreboot", "--wait", "-1", "--check", "path_in_use=off"]


class Console:
    """The installer's serial console, read as it grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = 0
        self._rest = ""
        self.last_line = ""

    def new_lines(self) -> list[str]:
        """The lines since the last call, without escapes, and the unfinished one at the end (as a prompt is)."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(self._seen)
                data = stream.read()
        except FileNotFoundError:
            return []
        self._seen += len(data)
        *lines, rest = (self._rest + data.decode("utf-8", "replace")).replace("\r", "\n").split("\n")
        self._rest = rest[-_TAIL:]
        found = [line for line in (_ESCAPES.sub("", text).strip() for text in [*lines, rest]) if line]
        if data and found:
            self.last_line = found[-1]
        return found if data else []

    def size(self) -> int:
        """Bytes read so far."""
        return self._seen


class Watch:
    """Decides, about once a second, whether the installation goes on, has ended, or has failed."""

    def __init__(
        self,
        libvirt: Libvirt,
        domain: str,
        disk: Path,
        console: Console,
        signs: Signs,
        progress: Progress,
        *,
        timeout: float,
        inactivity: float,
    ) -> None:
        self._libvirt, self._domain, self._disk, self._console = libvirt, domain, disk, console
        self._progress, self._timeout, self._inactivity = progress, timeout, inactivity
        self._success, self._failure, self._question = (
            [re.compile(pattern) for pattern in patterns] for patterns in (signs.success, signs.failure, signs.question)
        )
        self._hints = dict(signs.hints)
        self.succeeded = not self._success
        self._began = self._moved = time.monotonic()
        self._looked = 0.0
        self._activity: tuple[int, int] = (0, 0)

    def tick(self, _line: str = "") -> None:
        """Look once; raises FactoryError when the installation has failed, Cancelled when it is not wanted any more."""
        now = time.monotonic()
        self._read_console()
        if now - self._looked >= _LOOK_EVERY:
            self._looked = now
            activity = (self._console.size(), self._libvirt.block_bytes(self._domain))
            if activity != self._activity:
                self._activity, self._moved = activity, now
        allocated = self._disk.stat().st_blocks * 512 if self._disk.exists() else 0
        self._progress.report(console=self._console.last_line, disk=allocated)
        if now - self._began > self._timeout:
            raise self._error(f"the installer did not end within {self._timeout:.0f} s", "raise image_timeouts.install")
        if now - self._moved > self._inactivity:
            raise self._error(
                f"neither the console nor the disk moved for {self._inactivity:.0f} s",
                "look at the console log and the screenshot: the installer may be waiting for an answer",
            )

    def _judge(self, line: str) -> None:
        if any(pattern.search(line) for pattern in self._failure):
            hints = (hint for pattern, hint in self._hints.items() if re.search(pattern, line))
            raise self._error(f"the installer failed: {line}", next(hints, "look at the console log"), line=line)
        if any(pattern.search(line) for pattern in self._question):
            raise self._error(f"the installer stopped at a question: {line}", "answer it in the answer file", line=line)
        self.succeeded = self.succeeded or any(pattern.search(line) for pattern in self._success)

    def finish(self, state: str) -> None:
        """Judge the end: ``state`` is virsh's word on why the domain is off."""
        self._read_console()
        if "crashed" in state or "failed" in state or not self.succeeded:
            why = "its QEMU crashed or was killed" if "crashed" in state or "failed" in state else "the VM went off"
            raise self._error(f"the installation broke off: {why} before the installer was finished", "run it again")

    def _read_console(self) -> None:
        for line in self._console.new_lines():
            self._judge(line)

    def _error(self, problem: str, mend: str, line: str | None = None) -> FactoryError:
        last = "" if line else f"; the console's last line: {self._console.last_line or 'nothing'}"
        return FactoryError(problem + last, where=self._domain, mend=mend)


def install(
    libvirt: Libvirt,
    domain: str,
    argv: t.Sequence[str],
    watch: Watch,
    log: Path,
    *,
    reboots: bool = False,
) -> None:
    """Run virt-install to its end; the domain is still defined afterwards, see :meth:`Libvirt.reap`.

    virt-install starts the domain as one that boots the installer and goes off where the guest restarts
    (C(on_reboot=destroy), whatever C(--events) says), and defines one that boots the disk, without the installer's kernel
    and CD. So after the first restart the installation goes on in the latter, in which all further ones are restarts.

    :param reboots: the installer restarts the machine before it is finished.
    :raises FactoryError: the installation failed in any way.
    """
    with libvirt.shutdowns(log.with_name("base_vm-events.log")) if reboots else contextlib.nullcontext() as why:
        _first_part(libvirt, domain, argv, watch, log)
        off = why(domain) if why else ""
    if reboots and not off:
        watch.finish(libvirt.state(domain) or "crashed")
        raise FactoryError(
            "went off, and QEMU did not tell whether it wanted to restart", where=domain, mend="run it again"
        )
    if off == _RESTART:
        libvirt.virsh("start", domain)
        while (state := libvirt.state(domain)) and not state.startswith("shut off"):
            watch.tick()
            time.sleep(1.0)
    watch.finish(libvirt.state(domain) or "crashed")


def _first_part(libvirt: Libvirt, domain: str, argv: t.Sequence[str], watch: Watch, log: Path) -> None:
    """Run virt-install until the guest is off for the first time."""
    try:
        _cli.run(argv, log=log, tick=watch.tick, env=libvirt.env)
    except _cli.ToolError as exc:
        # virt-install ends with an error of its own when its domain crashes: the watch knows better what happened
        watch.finish(libvirt.state(domain) or "crashed") if libvirt.exists(domain) else None
        said = [line for line in exc.completed.stderr.splitlines() if line.startswith("ERROR")]
        why = said[0].partition(" ")[2].strip() if said else _cli.tail(exc.completed.stderr, 2)
        raise FactoryError(f"could not install: {why}", where="virt-install", mend=f"see {log}") from exc
