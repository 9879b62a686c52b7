# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The argv for virt-install, and what the console's lines mean."""

from __future__ import annotations

import contextlib
import subprocess
import types
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _base_vm, _libvirt
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.plugins.module_utils._virt_install import (
    Console,
    Installation,
    Machine,
    Signs,
    Watch,
    install,
    virt_install_argv,
)

DISK = Path("/w/disk.qcow2")
CONSOLE = Path("/w/console.log")


def argv(machine: Machine, installation: Installation) -> list[str]:
    return virt_install_argv("qemu:///session", "cloudimg-x-base", machine, installation, DISK, CONSOLE)


def value(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def test_direct_boot_has_the_medium_as_a_virtio_disk():
    words = argv(Machine(), Installation(Path("/m.iso"), "direct", "/w/kernel", "/w/initrd", "ip=dhcp console=ttyS0"))
    assert words == [
        *["virt-install", "--connect", "qemu:///session", "--name", "cloudimg-x-base"],
        *["--memory", "2048", "--vcpus", "2", "--osinfo", "detect=on,require=off"],
        *["--virt-type", "qemu", "--cpu", "mode=maximum"],
        *["--disk", "path=/w/disk.qcow2,format=qcow2,bus=virtio,cache=unsafe,discard=unmap"],
        *["--network", "user,model=virtio", "--rng", "/dev/urandom", "--graphics", "none", "--video", "vga"],
        *["--serial", "pty,log.file=/w/console.log,log.append=off"],
        *["--disk", "path=/m.iso,format=raw,bus=virtio,readonly=on"],
        *["--install", "kernel=/w/kernel,initrd=/w/initrd,kernel_args=ip=dhcp console=ttyS0,kernel_args_overwrite=yes"],
        *["--noautoconsole", "--noreboot", "--wait", "-1", "--check", "path_in_use=off"],
    ]


def test_location_takes_kernel_and_initrd_out_of_the_iso_and_injects():
    installation = Installation(
        Path("/m.iso"), "location", "vmlinuz", "initrd.gz", "auto=true", (Path("/w/preseed.cfg"),)
    )
    words = argv(Machine(osinfo="debian11"), installation)
    assert value(words, "--location") == "/m.iso,kernel=vmlinuz,initrd=initrd.gz"
    assert value(words, "--extra-args") == "auto=true"
    assert value(words, "--initrd-inject") == "/w/preseed.cfg"
    assert value(words, "--osinfo") == "debian11"
    assert "--install" not in words


def test_cdrom_boots_the_medium_itself():
    words = argv(Machine(accelerator="kvm", firmware="uefi"), Installation(Path("/m.iso"), "cdrom"))
    assert value(words, "--cdrom") == "/m.iso"
    assert value(words, "--boot") == "uefi"
    assert value(words, "--virt-type") == "kvm"
    assert value(words, "--cpu") == "host-passthrough"


def test_answer_files_and_drivers_are_cds_beside_the_medium():
    volumes = (Path("/w/answers.iso"), Path("/m/virtio.iso"))
    words = argv(Machine(), Installation(Path("/m.iso"), "location", "vmlinuz", "initrd", "x", volumes=volumes))
    disks = [words[at + 1] for at, word in enumerate(words) if word == "--disk"]
    assert disks[1:] == [f"path={path},format=raw,device=cdrom,readonly=on" for path in volumes]


def test_another_architecture_is_named_and_has_no_vga():
    words = argv(Machine(firmware="uefi", arch="aarch64"), Installation(Path("/m.iso"), "location", "a", "b"))
    assert value(words, "--arch") == "aarch64"
    assert value(words, "--video") == "virtio"
    assert value(words, "--boot") == "uefi"
    assert "--arch" not in argv(Machine(), Installation(Path("/m.iso"), "cdrom"))


@pytest.mark.parametrize(
    ("arch", "builder", "wanted", "found"),
    [
        ("x86_64", "x86_64", "auto", "probed"),
        ("aarch64", "x86_64", "auto", "tcg"),
        ("x86_64", "aarch64", "tcg", "tcg"),
        ("aarch64", "aarch64", "kvm", "kvm"),
        ("aarch64", "x86_64", "kvm", None),
    ],
)
def test_a_foreign_architecture_is_emulated(monkeypatch, arch, builder, wanted, found):
    monkeypatch.setattr(_base_vm._accel, "detect", lambda wanted: "probed")
    monkeypatch.setattr(_base_vm.platform, "machine", lambda: builder)
    order = types.SimpleNamespace(arch=arch, accelerator=wanted, image="x")
    if found:
        assert _base_vm._accelerator(order) == found
        return
    with pytest.raises(FactoryError, match="x: base_vm_accelerator: is kvm, which runs nothing for aarch64"):
        _base_vm._accelerator(order)


def test_console_of_an_installer_that_restarts_is_not_begun_anew():
    once, again = (argv(Machine(), Installation(Path("/m.iso"), "cdrom", reboots=reboots)) for reboots in (False, True))
    assert value(once, "--serial") == "pty,log.file=/w/console.log,log.append=off"
    assert value(again, "--serial") == "pty,log.file=/w/console.log,log.append=on"


HEARD = """event SHUTDOWN at 1795309625.676855 for domain 'cloudimg-off': {"guest":true,"reason":"guest-shutdown"}
event SHUTDOWN at 1795309625.690474 for domain 'cloudimg-off': {"guest":false,"reason":"host-signal"}
event SHUTDOWN at 1795309684.580615 for domain 'cloudimg-again': {"guest":true,"reason":"guest-reset"}
"""


@pytest.mark.parametrize(
    ("domain", "why"), [("cloudimg-off", "guest-shutdown"), ("cloudimg-again", "guest-reset"), ("cloudimg", "")]
)
def test_restart_is_told_from_power_off(monkeypatch, tmp_path, domain, why):
    """The lines are those of virsh 9.0 with QEMU 7.2."""
    log = tmp_path / "events.log"
    log.write_text(HEARD, "utf-8")
    listener = subprocess.Popen(["sleep", "30"], start_new_session=True)
    monkeypatch.setattr(_libvirt._cli, "spawn", lambda argv, **options: listener)
    monkeypatch.setattr(_libvirt, "_TOLD_WITHIN", 0.2)
    with _libvirt.Libvirt("test").shutdowns(log) as told:
        assert told(domain) == why
    assert listener.poll() is not None


class OffLibvirt(_libvirt.Libvirt):
    """A domain that is off, of which nothing was heard."""

    def __init__(self) -> None:
        super().__init__("test")

    @contextlib.contextmanager
    def shutdowns(self, log):
        yield lambda domain: ""

    def state(self, domain: str) -> str:
        return "shut off (unknown)"


def test_end_of_which_nothing_was_heard_is_no_success(watching, tmp_path):
    with pytest.raises(FactoryError, match="went off, and QEMU did not tell whether it wanted to restart"):
        install(
            OffLibvirt(),
            "cloudimg-x-base",
            ["true"],
            watching("FAI finished at: Sat\n"),
            tmp_path / "log",
            reboots=True,
        )


def test_session_hides_a_kvm_device_that_is_of_no_use(monkeypatch, tmp_path):
    monkeypatch.setattr(_libvirt._cli, "require", lambda tool, package=None: f"/usr/sbin/{tool}")
    monkeypatch.setattr(_libvirt.Path, "exists", lambda self: True)
    hidden = _libvirt.session_argv(tmp_path, "tcg", root=True)
    assert hidden[hidden.index("/dev/null") - 1 :][:3] == ["--bind", "/dev/null", "/dev/kvm"]
    assert "--die-with-parent" in hidden
    assert "/dev/kvm" not in _libvirt.session_argv(tmp_path, "kvm", root=True)
    assert "--uid" not in _libvirt.session_argv(tmp_path, "kvm", root=False)
    assert "--die-with-parent" not in _libvirt.session_argv(tmp_path, "kvm", root=False, keep=True)


def test_only_domains_of_ours_are_reaped():
    with pytest.raises(FactoryError, match="not ours to touch"):
        _libvirt.Libvirt("qemu:///session").reap("production-db")


class StillLibvirt(_libvirt.Libvirt):
    """A domain whose disks do not move."""

    def __init__(self) -> None:
        super().__init__("test")

    def block_bytes(self, domain: str) -> int:
        return 0


@pytest.fixture
def watching(tmp_path):
    """A function that makes a Watch on a console with the given text."""

    def make(text: str, **limits: float) -> Watch:
        log = tmp_path / "console.log"
        log.write_bytes(text.encode())
        signs = Signs((r"^FAI finished at",), (r"^FATAL ERROR",), (r"^Press <RETURN>",))
        limits = {"timeout": 100.0, "inactivity": 100.0, **limits}
        console = Console(log)
        return Watch(StillLibvirt(), "cloudimg-x-base", log, console, signs, Progress("base_vm"), **limits)

    return make


def test_watch_ends_well_after_the_line_of_success(watching):
    watch = watching("\x1b[1mPartitioning\x1b[0m\r\nFAI finished at: Sat\r\n")
    watch.tick()
    watch.finish("shut off (destroyed)")
    assert watch.succeeded


@pytest.mark.parametrize(
    ("text", "state", "message"),
    [
        ("ok\nFATAL ERROR. Installation stopped.\n", "", "the installer failed: FATAL ERROR. Installation stopped."),
        ("ok\nPress <RETURN> to reboot", "", "the installer stopped at a question: Press <RETURN> to reboot"),
        ("Partitioning\n", "shut off (crashed)", "broke off: its QEMU crashed or was killed .* Partitioning"),
        ("Partitioning\n", "shut off (shutdown)", "broke off: the VM went off before the installer was finished"),
        ("", "", "broke off: .* last line: nothing"),
    ],
)
def test_watch_tells_how_it_ended_badly(watching, text, state, message):
    watch = watching(text)
    with pytest.raises(FactoryError, match=message) as caught:
        watch.tick()
        watch.finish(state)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("limit", "message"), [("timeout", "did not end within"), ("inactivity", "neither the console")]
)
def test_watch_has_two_time_limits(watching, limit, message):
    with pytest.raises(FactoryError, match=message):
        watching("Partitioning\n", **{limit: -1.0}).tick()


def test_console_joins_a_line_that_comes_in_two_parts(tmp_path):
    log = tmp_path / "log"
    log.write_text("FATAL ER", encoding="utf-8")
    console = Console(log)
    assert console.new_lines() == ["FATAL ER"]
    with log.open("a", encoding="utf-8") as stream:
        stream.write("ROR\nnext")
    assert console.new_lines() == ["FATAL ERROR", "next"]
    assert console.new_lines() == []
    assert console.last_line == "next"
