# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""QEMU's command line, its UEFI, what a console tells, and waiting for SSH."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import socket
import threading
import time
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _machine, _ssh
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._owner import Owner
from ansible_collections.cloudimg.factory.plugins.module_utils._state import partial_path

SPEC = _machine.Spec(name="debian-12-assess", disk=Path("/w/overlay.qcow2"), accelerator="tcg")
CONSOLE = Path("/w/logs/console.log")


def blockdevs(words: list[str]) -> dict[str, dict]:
    """The -blockdev options by node name."""
    found = [json.loads(words[i + 1]) for i, word in enumerate(words) if word == "-blockdev"]
    return {node["node-name"]: node for node in found}


def option(words: list[str], name: str) -> str:
    """The value of the first option of that name."""
    return words[words.index(name) + 1]


def test_argv_of_an_emulated_bios_machine():
    words = _machine.argv(SPEC, CONSOLE)
    assert words[:3] == ["qemu-system-x86_64", "-name", "cloudimg-debian-12-assess"]
    assert option(words, "-machine") == "q35,graphics=off"
    assert option(words, "-accel") == "tcg,thread=multi"
    assert option(words, "-cpu") == "max"
    assert (option(words, "-smp"), option(words, "-m"), option(words, "-display")) == ("2", "1024", "none")
    assert option(words, "-netdev") == "user,id=net,restrict=off,hostfwd=tcp:127.0.0.1:0-:22"
    assert option(words, "-chardev") == "file,id=console,path=/w/logs/console.log"
    assert option(words, "-qmp") == "unix:qmp,server=on,wait=off"
    assert "spawn=deny" in option(words, "-sandbox")
    assert "virtio-rng-pci,rng=random" in words
    disk = blockdevs(words)["disk"]
    unsafe = {"cache": {"direct": False, "no-flush": True}, "discard": "unmap"}
    assert disk == {
        **unsafe,
        "node-name": "disk",
        "driver": "qcow2",
        "read-only": False,
        "detect-zeroes": "unmap",
        "file": {**unsafe, "driver": "file", "filename": "/w/overlay.qcow2", "read-only": False},
    }
    assert "virtio-blk-pci,drive=disk,bootindex=1" in words


def test_argv_with_kvm_isolated_and_a_seed():
    spec = dataclasses.replace(SPEC, accelerator="kvm", isolated=True, seed=Path("/w/seed.iso"), copy_on_read=True)
    words = _machine.argv(spec, CONSOLE)
    assert option(words, "-accel") == "kvm"
    assert option(words, "-cpu") == "host"
    assert option(words, "-netdev") == "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-:22"
    nodes = blockdevs(words)
    assert nodes["seed"]["read-only"] is True
    assert nodes["seed"]["driver"] == "raw"
    assert "virtio-blk-pci,drive=seed" in words
    assert nodes["reader"] == {"node-name": "reader", "driver": "copy-on-read", "file": "disk"}
    assert "virtio-blk-pci,drive=reader,bootindex=1" in words


def test_argv_with_a_link_has_a_hub_and_a_free_slot():
    words = _machine.argv(dataclasses.replace(SPEC, link=4711, mac="02:00:0a:00:02:0f"), CONSOLE)
    given = [words[i + 1] for i, word in enumerate(words) if word in ("-netdev", "-device")]
    assert "socket,id=link,connect=127.0.0.1:4711" in given
    assert [word for word in given if word.startswith("hubport")] == [
        "hubport,id=to-net,hubid=0,netdev=net",
        "hubport,id=to-link,hubid=0,netdev=link",
        "hubport,id=card,hubid=0",
    ]
    assert "virtio-net-pci,netdev=card,romfile=,mac=02:00:0a:00:02:0f" in given
    assert "pcie-root-port,id=spare,chassis=1" in given
    assert "hubport" not in " ".join(_machine.argv(SPEC, CONSOLE))


def test_argv_with_uefi_reads_the_code_and_writes_to_the_variables():
    flash = _machine.Flash(Path("/f/code.fd"), "raw", Path("/w/variables"), "raw")
    words = _machine.argv(dataclasses.replace(SPEC, firmware="uefi"), CONSOLE, flash=flash)
    assert option(words, "-machine") == "q35,pflash0=code,pflash1=variables"
    nodes = blockdevs(words)
    assert (nodes["code"]["read-only"], nodes["code"]["file"]["filename"]) == (True, "/f/code.fd")
    assert (nodes["variables"]["read-only"], nodes["variables"]["file"]["filename"]) == (False, "/w/variables")


def test_no_secret_is_in_the_argv():
    spec = dataclasses.replace(SPEC, credentials={"tmpfiles.extra": b"secret", "ssh.authorized_keys.root": b"public"})
    words = _machine.argv(spec, CONSOLE)
    assert [words[i + 1] for i, word in enumerate(words) if word == "-smbios"] == [
        "type=11,path=credential-ssh.authorized_keys.root",
        "type=11,path=credential-tmpfiles.extra",
    ]
    text = base64.b64encode(b"secret").decode()
    assert text not in " ".join(words)
    assert (
        _machine.credential_text("tmpfiles.extra", b"secret") == f"io.systemd.credential.binary:tmpfiles.extra={text}"
    )


def test_names_with_commas_and_colons_stay_names():
    spec = dataclasses.replace(SPEC, disk=Path("/w/nbd:a,format=raw.qcow2"))
    words = _machine.argv(spec, Path("/w/a,b.log"))
    assert blockdevs(words)["disk"]["file"]["filename"] == "/w/nbd:a,format=raw.qcow2"
    assert option(words, "-chardev") == "file,id=console,path=/w/a,,b.log"


@pytest.fixture
def firmware(tmp_path):
    """A function that describes a firmware as QEMU's packages do."""

    def describe(name: str, *, features: tuple[str, ...] = (), machine: str = "pc-q35-*", **mapping) -> None:
        for part in ("code", "vars"):
            (tmp_path / f"{name}.{part}.fd").touch()
        flash = {
            "device": "flash",
            "executable": {"filename": str(tmp_path / f"{name}.code.fd"), "format": "raw"},
            "nvram-template": {"filename": str(tmp_path / f"{name}.vars.fd"), "format": "raw"},
        }
        data = {
            "interface-types": ["uefi"],
            "mapping": {**flash, **mapping},
            "targets": [{"architecture": "x86_64", "machines": [machine]}],
            "features": list(features),
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(data))

    return describe


def test_uefi_without_secure_boot_is_found(firmware, tmp_path):
    firmware("40-secure", features=("acpi-s3", "requires-smm", "secure-boot", "enrolled-keys"))
    firmware("50-arm", machine="virt-*")
    firmware("55-memory", device="memory")
    firmware("60-plain", features=("acpi-s3", "verbose-dynamic"))
    assert _machine.uefi_flash([tmp_path]).code == tmp_path / "60-plain.code.fd"


def test_no_uefi_is_one_clear_line(firmware, tmp_path):
    firmware("40-secure", features=("secure-boot",))
    with pytest.raises(FactoryError, match=r"no UEFI firmware is installed on the builder; run .* the package ovmf"):
        _machine.uefi_flash([tmp_path, tmp_path / "none"])


def test_scratch_is_private_and_goes_and_takes_along_what_killed_processes_left(tmp_path):
    dead = partial_path(tmp_path / "assess-1", Owner(2**22 + 1, 1, Owner.of().boot))
    dead.mkdir()
    with _machine.scratch(tmp_path, "assess") as runtime:
        assert runtime.stat().st_mode & 0o777 == 0o700
        assert list(tmp_path.iterdir()) == [runtime]
        (runtime / "id").touch()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line",
    ["No bootable device.", "[ 1.1] Kernel panic - not syncing: VFS: Unable to mount root fs", "grub rescue> "],
)
def test_a_console_without_hope_ends_the_wait(tmp_path, line):
    console = tmp_path / "console.log"
    watch = _machine.Watch(console, tmp_path / "qemu.log", lambda: True)
    watch.check()
    console.write_bytes(b"\x1b[2JSeaBIOS\r\n" + line.encode())
    assert watch.last_line == line.strip()
    with pytest.raises(FactoryError, match="does not boot") as caught:
        watch.check()
    assert line.strip(" .") in str(caught.value)


def test_a_machine_that_went_off_tells_both_last_words(tmp_path):
    (tmp_path / "console.log").write_bytes(b"reboot: Power down\r\n")
    (tmp_path / "qemu.log").write_text("qemu-system-x86_64: bad thing\n")
    watch = _machine.Watch(tmp_path / "console.log", tmp_path / "qemu.log", lambda: False)
    with pytest.raises(FactoryError, match=r"went off; QEMU said: .*bad thing; the console's last line: .*Power down"):
        watch.check()


@pytest.fixture
def server():
    """A function that starts a server, which does something else with each connection; returns its port."""
    listeners = []

    def start(*answers: bytes) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve() -> None:
            with contextlib.suppress(OSError):  # at the end of the test
                for answer in answers:
                    client, _address = listener.accept()
                    client.sendall(answer)
                    client.close()

        threading.Thread(target=serve, daemon=True).start()
        return int(listener.getsockname()[1])

    yield start
    for listener in listeners:
        listener.close()


def test_the_banner_is_waited_for(server):
    port = server(b"", b"", b"HTTP/1.1 400\r\n", b"SSH-2.0-OpenSSH_9.2\r\n")
    ticks: list[float] = []
    banner = _ssh.wait_for_banner("127.0.0.1", port, timeout=30, tick=lambda: ticks.append(time.monotonic()))
    assert banner == "SSH-2.0-OpenSSH_9.2"
    assert len(ticks) == 4


def test_no_banner_within_the_time(server):
    port = server(*[b""] * 10)
    watch = _machine.Watch(Path("/nonexistent/console"), Path("/nonexistent/log"), lambda: True)
    with pytest.raises(FactoryError, match="no SSH server answered within 1 s; the console's last line: nothing"):
        watch.wait_ssh(port, 1.0, lambda: None)


def test_what_a_tick_raises_ends_the_wait(server):
    class Enough(Exception):
        pass

    def tick() -> None:
        raise Enough

    with pytest.raises(Enough):
        _ssh.wait_for_banner("127.0.0.1", server(b""), timeout=30, tick=tick)


def test_ssh_uses_nothing_of_the_builders_own(tmp_path):
    access = _ssh.Access("127.0.0.1", 4022, "debian", tmp_path / "a key%", tmp_path / "known")
    words = access.argv("uptime", PreferredAuthentications="none")
    assert words[:4] == ["ssh", "-F", "none", "-T"]
    assert words[-6:] == ["-p", "4022", "-l", "debian", "127.0.0.1", "uptime"]
    given = dict(words[i + 1].split("=", 1) for i, word in enumerate(words) if word == "-o")
    assert given["IdentityFile"] == f'"{tmp_path}/a key%%"'
    assert given["PreferredAuthentications"] == "none"
    assert {"BatchMode": "yes", "IdentitiesOnly": "yes", "IdentityAgent": "none"}.items() <= given.items()


def test_a_key_is_made(tmp_path):
    public = _ssh.make_key(tmp_path / "id")
    assert public.startswith("ssh-ed25519 ")
    assert (tmp_path / "id").stat().st_mode & 0o777 == 0o600
