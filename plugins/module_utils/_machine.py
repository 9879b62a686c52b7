# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""A virtual machine run by QEMU itself, for as long as a block lasts.

libvirt would add nothing here but time: the machine is ours alone, it needs no root, and it dies with this process.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import re
import secrets
import subprocess
import time
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _accel, _cli, _qmp, _ssh, _state
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._owner import Owner
from ansible_collections.cloudimg.factory.plugins.module_utils._virt_install import Console

LOOPBACK = "127.0.0.1"
GATEWAY = "10.0.2.2"
"""From where a guest sees this machine come: the default of QEMU's user network."""
FIRMWARE = ("bios", "uefi")
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_FIRMWARE_FOLDERS = (Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware"))
LOG = "qemu.log"
"""The name of the file, in the directory of a machine, that holds what QEMU itself says."""
_MONITOR = "qmp"
_SLOT = "spare"
_START_SECONDS = 60.0
_FORWARDED = re.compile(r"HOST_FORWARD\]\s+\S+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+22\s")
_NO_BOOT = (
    "No bootable device",  # SeaBIOS
    "No bootable option or device was found",  # OVMF
    "UEFI Interactive Shell",  # what OVMF falls back to
    "grub rescue>",
    "Kernel panic - not syncing",
    "(initramfs)",
    "Entering emergency mode",
    "You are in emergency mode",
)
"""What the console says when no login will ever come."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """A machine.

    :ivar disk: is written to.
    :ivar accelerator: C(kvm) or C(tcg).
    :ivar copy_on_read: keep in the disk what is read from below it. A guest reads a compressed disk in small pieces, and
        for each of them QEMU decompresses a whole cluster; like this, it does so once (a quarter of the time of a boot).
    :ivar cpu: QEMU's name of a processor, by default what suits the accelerator.
    :ivar memory: in MiB.
    :ivar seed: an ISO, which the guest sees as a second disk: not every kernel for clouds has a driver for CD drives.
    :ivar isolated: the guest reaches nothing, neither the builder nor the world; only its SSH server is reached.
    :ivar mac: the address of its network card, by default QEMU's usual one.
    :ivar link: the port of an :class:`_outside.Link`, which then is on the same network as the network card.
    :ivar credentials: for the guest's systemd, in SMBIOS strings of type 11 (systemd.system-credentials(7)).
    """

    name: str
    disk: Path
    accelerator: str
    format: str = "qcow2"
    firmware: str = "bios"
    cpu: str = ""
    cpus: int = 2
    memory: int = 1024
    seed: Path | None = None
    isolated: bool = False
    mac: str = ""
    link: int = 0
    copy_on_read: bool = False
    credentials: t.Mapping[str, bytes] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Flash:
    """UEFI firmware: code that is only read, and variables that each machine has a copy of."""

    code: Path
    code_format: str
    variables: Path
    variables_format: str


def uefi_flash(folders: t.Iterable[Path] = _FIRMWARE_FOLDERS) -> Flash:
    """The builder's UEFI without secure boot, as QEMU's firmware descriptions (docs/interop/firmware.json) tell.

    :raises FactoryError: there is none.
    """
    described = {path.name: path for folder in reversed(list(folders)) for path in sorted(folder.glob("*.json"))}
    for _name, path in sorted(described.items()):
        data = _state.read_json(path, {})
        machines = [name for target in data.get("targets", []) for name in target["machines"]]
        mapping = data.get("mapping", {})
        if (
            "uefi" in data.get("interface-types", [])
            and any(name.startswith("pc-q35") for name in machines)
            and mapping.get("device") == "flash"
            and "nvram-template" in mapping
            and not {"requires-smm", "secure-boot", "enrolled-keys"} & set(data.get("features", []))
        ):
            code, variables = mapping["executable"], mapping["nvram-template"]
            if Path(code["filename"]).exists() and Path(variables["filename"]).exists():
                return Flash(Path(code["filename"]), code["format"], Path(variables["filename"]), variables["format"])
    raise FactoryError(
        "no UEFI firmware is installed on the builder",
        where="QEMU",
        key="firmware",
        mend="run playbooks/builder.yml with the feature uefi, or install the package ovmf (edk2-ovmf)",
    )


@contextlib.contextmanager
def scratch(folder: Path, name: str) -> t.Iterator[Path]:
    """A private directory in ``folder`` for as long as the block lasts. What killed processes left there goes, too."""
    with _state.explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _state.reap_partials(folder)
        path = _state.partial_path(folder / f"{name}-{secrets.token_hex(4)}", Owner.of())
        path.mkdir(mode=0o700)
    try:
        yield path
    finally:
        _state.remove(path)


def argv(spec: Spec, console: Path, *, flash: Flash | None = None, emulator: str = _accel.EMULATOR) -> list[str]:
    """The command line. It runs in the machine's own directory, where its socket and the files of credentials are.

    :param flash: with firmware C(uefi), its ``variables`` being the machine's own copy.
    """
    # with graphics=off, SeaBIOS says on the serial console, too, why it cannot boot
    machine = "q35,graphics=off" if spec.firmware == "bios" else "q35,pflash0=code,pflash1=variables"
    words = [emulator, "-name", f"cloudimg-{_value(spec.name)}", "-nodefaults", "-no-user-config"]
    words += ["-sandbox", _SANDBOX, "-display", "none", "-vga", "std"]
    accelerator = "tcg,thread=multi" if spec.accelerator == "tcg" else spec.accelerator
    words += ["-machine", machine, "-accel", accelerator, "-cpu", spec.cpu or _accel.CPU_MODELS[spec.accelerator]]
    words += ["-smp", str(spec.cpus), "-m", str(spec.memory), "-boot", "strict=on"]
    if flash:
        words += _blockdev("code", flash.code, flash.code_format, read_only=True)
        words += _blockdev("variables", flash.variables, flash.variables_format)
    words += _blockdev("disk", spec.disk, spec.format, guest=True)
    top = "reader" if spec.copy_on_read else "disk"
    if spec.copy_on_read:
        words += ["-blockdev", json.dumps({"node-name": top, "driver": "copy-on-read", "file": "disk"})]
    words += ["-device", f"virtio-blk-pci,drive={top},bootindex=1"]
    if spec.seed:
        words += [*_blockdev("seed", spec.seed, "raw", read_only=True), "-device", "virtio-blk-pci,drive=seed"]
    # port 0: QEMU finds a free one. No romfile: nothing is to be booted from the network.
    isolated = "on" if spec.isolated else "off"
    words += ["-netdev", f"user,id=net,restrict={isolated},hostfwd=tcp:{LOOPBACK}:0-:22"]
    if spec.link:
        # a hub with three sockets (the card, the way to SSH, the link), and a free slot for one more card
        words += ["-netdev", f"socket,id=link,connect={LOOPBACK}:{spec.link}"]
        words += [
            word for name in ("net", "link") for word in ("-netdev", f"hubport,id=to-{name},hubid=0,netdev={name}")
        ]
        words += ["-netdev", "hubport,id=card,hubid=0", "-device", f"pcie-root-port,id={_SLOT},chassis=1"]
    address = f",mac={spec.mac}" if spec.mac else ""
    words += ["-device", f"virtio-net-pci,netdev={'card' if spec.link else 'net'},romfile={address}"]
    words += ["-object", "rng-random,id=random,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=random"]
    words += ["-chardev", f"file,id=console,path={_value(str(console))}", "-serial", "chardev:console"]
    # it waits for «cont», so that whatever it then does is seen
    words += ["-S", "-qmp", f"unix:{_MONITOR},server=on,wait=off"]
    # by way of files: some are secret, and a command line is not
    for name in sorted(spec.credentials):
        words += ["-smbios", f"type=11,path={_value(credential_file(name))}"]
    return words


def credential_file(name: str) -> str:
    """The name of the file, in the machine's directory, that the credential comes from."""
    return f"credential-{name}"


def credential_text(name: str, value: bytes) -> str:
    """The SMBIOS string that hands a credential to systemd."""
    return f"io.systemd.credential.binary:{name}={base64.b64encode(value).decode('ascii')}"


def _blockdev(node: str, path: Path, fmt: str, *, read_only: bool = False, guest: bool = False) -> list[str]:
    # in JSON a file name is only ever a file name
    data: dict[str, t.Any] = {"node-name": node, "driver": fmt, "read-only": read_only}
    data["file"] = {"driver": "file", "filename": str(path), "read-only": read_only}
    if guest:
        unsafe = {"cache": {"direct": False, "no-flush": True}, "discard": "unmap"}
        data = {**data, **unsafe, "detect-zeroes": "unmap", "file": {**data["file"], **unsafe}}
    return ["-blockdev", json.dumps(data)]


def _value(text: str) -> str:
    return text.replace(",", ",,")


class Watch:
    """Whether a machine may still come to something: it runs, and its console has not said the opposite.

    :param runs: whether QEMU does.
    :param log: QEMU's own output.
    """

    def __init__(self, console: Path, log: Path, runs: t.Callable[[], bool]) -> None:
        self._console = Console(console)
        self._log = log
        self._runs = runs
        self._hopeless = ""

    @property
    def last_line(self) -> str:
        """What the console said last."""
        signs = (line for line in self._console.new_lines() if any(sign in line for sign in _NO_BOOT))
        self._hopeless = self._hopeless or next(signs, "")
        return self._console.last_line

    def check(self) -> None:
        """Look at both; raises FactoryError when there is nothing to wait for."""
        last_line = self.last_line
        if self._hopeless:
            raise FactoryError(f"it does not boot: {self._hopeless.rstrip('.')}")
        if not self._runs():
            said = _cli.tail(self._log.read_text(encoding="utf-8", errors="replace"), 2) if self._log.exists() else ""
            raise FactoryError(
                f"the machine went off; QEMU said: {said or 'nothing'}; the console's last line: {last_line}"
            )

    def wait_ssh(self, port: int, timeout: float, tick: _ssh.Tick) -> str:
        """Wait for the banner of the guest's SSH server, and return it.

        :raises FactoryError: it never came.
        """

        def look() -> None:
            self.check()
            tick()

        banner = _ssh.wait_for_banner(LOOPBACK, port, timeout=timeout, tick=look)
        if banner is None:
            said = self.last_line or "nothing"
            raise FactoryError(f"no SSH server answered within {timeout:.0f} s; the console's last line: {said}")
        return banner


class Machine:
    """Runs a machine; a context manager. Whatever ends this process ends the machine.

    :param runtime: a directory of its own, for a socket, a log and other files of the moment; see :func:`scratch`.
    :param console: the file that what it says on its serial port goes to.
    """

    def __init__(self, spec: Spec, runtime: Path, console: Path) -> None:
        self.spec = spec
        self.runtime = runtime
        self.port = 0
        self._log = runtime / LOG
        self._path = console.absolute()
        self._process: subprocess.Popen[bytes] | None = None
        self.watch = Watch(self._path, self._log, self.alive)

    def __enter__(self) -> Machine:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """QEMU's process; 0 where it was never started."""
        return self._process.pid if self._process else 0

    def _start(self) -> None:
        emulator = _cli.require(_accel.EMULATOR, "qemu-system-x86")
        flash = uefi_flash() if self.spec.firmware == "uefi" else None
        with _state.explain_os_errors(self.runtime):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.unlink(missing_ok=True)
            if flash:
                own = self.runtime / "variables"
                own.write_bytes(flash.variables.read_bytes())
                flash = dataclasses.replace(flash, variables=own)
            for name, value in self.spec.credentials.items():
                _state.write_text(self.runtime / credential_file(name), credential_text(name, value), 0o600)
        words = argv(self.spec, self._path, flash=flash, emulator=emulator)
        self._process = _cli.spawn(words, log=self._log, cwd=self.runtime)
        deadline = time.monotonic() + _START_SECONDS
        while not self.port:
            if not self.alive() or time.monotonic() > deadline:
                said = _cli.tail(self._log.read_text(encoding="utf-8", errors="replace"), 2)
                raise FactoryError(f"did not start: {said or 'it said nothing'}", where=_accel.EMULATOR)
            with contextlib.suppress(OSError):
                answer = self.monitor("human-monitor-command", **{"command-line": "info usernet"})
                found = _FORWARDED.search(answer)
                self.port = int(found[1]) if found else 0
            time.sleep(0.05)
        with contextlib.suppress(OSError):  # who waits will see that it has ended
            self.monitor("cont")

    def monitor(self, command: str, **arguments: t.Any) -> t.Any:
        """Have QEMU do something; see :func:`_qmp.execute`."""
        return _qmp.execute(self.runtime, _MONITOR, command, **arguments)

    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def wait_ssh(self, timeout: float, tick: _ssh.Tick) -> str:
        """See :meth:`Watch.wait_ssh`."""
        return self.watch.wait_ssh(self.port, timeout, tick)

    def console_tail(self) -> str:
        """What the console said last."""
        return self.watch.last_line

    def screenshot(self, target: Path) -> Path | None:
        """Its screen as a PNG file (PPM where QEMU is older than 7.1); None where there is no picture."""
        for suffix, options in ((".png", {"format": "png"}), (".ppm", {})):
            picture = target.absolute().with_suffix(suffix)
            with contextlib.suppress(FactoryError, OSError):
                self.monitor("screendump", filename=str(picture), **options)
                return picture
        return None

    def plug_card(self, mac: str) -> None:
        """Give it one more network card, on the same network (a machine with a ``link`` has a slot for one)."""
        self.monitor("netdev_add", type="hubport", id="late", hubid=0)
        card = {"driver": "virtio-net-pci", "netdev": "late", "bus": _SLOT, "mac": mac, "romfile": ""}
        self.monitor("device_add", **card)

    def powerdown(self, timeout: float) -> bool:
        """Press the power button; whether the guest has switched itself off within ``timeout`` seconds."""
        with contextlib.suppress(FactoryError, OSError):
            self.monitor("system_powerdown")
        deadline = time.monotonic() + timeout
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.2)
        return not self.alive()

    def close(self) -> None:
        """Pull the plug."""
        if self._process:
            _cli.end_group(self._process)
