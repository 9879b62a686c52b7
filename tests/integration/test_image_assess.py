# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""image_assess with the real QEMU: on disks that cannot become a machine, and on the artifact of the whole build."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from tiny_installer import make_installer

from ansible_collections.cloudimg.factory.plugins.module_utils import _assess, _machine, _secant
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import file_digests
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import Cancelled, FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._owner import Owner
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

MIB = 1 << 20


@pytest.fixture
def request_for(tmp_path):
    """A function that asks for a disk to be assessed whose boot sector says a line and powers off, or waits."""

    def make(says: str | None, *, ends: bool = False, **changes) -> _assess.Request:
        sector = bytes(512)
        if says is not None:
            make_installer(tmp_path / "made", f"\r\n{says}\r\n{says}\r\n", ends=ends)
            sector = (tmp_path / "made/tree/boot.img").read_bytes()[:510] + b"\x55\xaa"
        raw = tmp_path / "disk.raw"
        raw.write_bytes(sector.ljust(MIB, b"\0"))
        artifact = tmp_path / "tiny-1.qcow2"
        convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", str(raw), str(artifact)]
        subprocess.run(convert, check=True)
        request = _assess.Request(
            image=f"tiny-{os.getpid()}",
            version="1",
            artifact=artifact,
            format="qcow2",
            directory=tmp_path / "build, with a name",
            user="debian",
            grow=64 * MIB,
            boots=("bios-nocloud",),
            accelerator="tcg",
            cpus=1,
            memory=64,
            allowed_units=(),
            allowed_ports=(),
            lynis="no",
            updates=False,
            timeout=120,
        )
        return dataclasses.replace(request, **changes)

    return make


def machines(name: str) -> list[int]:
    """The QEMU processes of an image."""
    found = []
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            words = (proc / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"cloudimg-{name}-assess".encode() in words:
            found.append(int(proc.name))
    return found


def names(folder: Path) -> list[str]:
    """All that is in a build directory, logs included."""
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() or ".partial" in path.name
    )


def logs(*boots: str) -> list[str]:
    """The logs and screens of boots, as :func:`names` gives them."""
    kinds = ("console", "screen")
    return sorted(
        f"logs/assess-{kind}-{boot}.{'log' if kind == 'console' else 'png'}" for kind in kinds for boot in boots
    )


def fail(request: _assess.Request) -> tuple[str, dict]:
    """Assess what cannot pass; the line that tells why, and assess.json."""
    before = (file_digests(request.artifact), request.artifact.stat().st_mtime_ns)
    with pytest.raises(FactoryError) as caught:
        _assess.assess(request, Progress("assess"))
    assert (file_digests(request.artifact), request.artifact.stat().st_mtime_ns) == before
    assert machines(request.image) == []
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{request.directory}/assess.json: verdict: failed: ")
    report = json.loads((request.directory / "assess.json").read_text(encoding="utf-8"))
    assert report["verdict"] == "fail"
    assert Path(str(caught.value.details["log_path"])).is_file()
    return line, report


def test_a_disk_without_a_boot_loader_fails_at_once(request_for):
    request = request_for(None)
    began = time.monotonic()
    line, report = fail(request)
    assert "failed: boot: it does not boot: No bootable device; see" in line
    assert time.monotonic() - began < 60
    assert line.count("failed") == 1 and "internal" not in line.lower()
    assert [check["name"] for check in report["checks"] if check["boot"] == "bios-nocloud"] == ["boot"]
    assert {check["name"]: check["ok"] for check in report["checks"] if check["boot"] == "all"} == {
        **dict.fromkeys(_secant.PROBES, False),
        "lynis_test": True,
        "pakiti_test": True,
    }
    assert names(request.directory) == [
        "assess.json",
        "assess.xml",
        *logs("bios-nocloud"),
        "secant.xml",
    ]
    assert (request.directory / "logs/assess-screen-bios-nocloud.png").read_bytes().startswith(b"\x89PNG")
    assert ET.parse(request.directory / "secant.xml").findtext("OUTCOME") == "INTERNAL_FAILURE"
    assert ET.parse(request.directory / "assess.xml").getroot().get("failures") == "5"
    again = _assess.assess(request, Progress("assess"), check_mode=True)
    assert again.actions == ["assess: it did not pass"]


def test_a_system_that_never_offers_ssh_fails_when_the_time_is_up(request_for):
    request = request_for("Starting all there is", timeout=40)
    line, _report = fail(request)
    assert "boot: no SSH server answered within 40 s; the console's last line: " in line
    assert "Starting all there is" in (request.directory / "logs/assess-console-bios-nocloud.log").read_text(
        encoding="utf-8"
    )


def test_a_system_that_switches_itself_off(request_for):
    line, _report = fail(request_for("Good bye", ends=True))
    assert "boot: the machine went off; QEMU said: nothing; the console's last line: Good bye; see" in line


def test_a_kernel_panic_ends_the_wait(request_for):
    line, _report = fail(request_for("[1.0] Kernel panic - not syncing: no init"))
    assert "boot: it does not boot: [1.0] Kernel panic - not syncing: no init; see" in line


def test_two_boots_at_the_same_time_have_consoles_and_screens_of_their_own(request_for):
    request = request_for(None, boots=("bios-nocloud", "uefi-opennebula"), memory=256)
    line, report = fail(request)
    assert "boot (bios-nocloud): it does not boot: No bootable device; boot (uefi-opennebula): it does not boot" in line
    assert [boot["name"] for boot in report["boots"]] == ["bios-nocloud", "uefi-opennebula"]
    assert [boot["datasource"] for boot in report["boots"]] == ["NoCloud", "OpenNebula"]
    assert "BdsDxe" in (request.directory / "logs/assess-console-uefi-opennebula.log").read_text(errors="replace")
    assert names(request.directory) == [
        *("assess.json", "assess.xml"),
        *logs("bios-nocloud", "uefi-opennebula"),
        "secant.xml",
    ]


def test_no_uefi_on_the_builder_is_told_before_anything_boots(request_for, monkeypatch):
    request = request_for("Waiting", boots=("bios-nocloud", "uefi-opennebula"))

    def none() -> None:
        raise FactoryError("no UEFI firmware is installed on the builder", where="QEMU")

    monkeypatch.setattr(_machine, "uefi_flash", none)
    with pytest.raises(FactoryError, match="QEMU: no UEFI firmware is installed on the builder"):
        _assess.assess(request, Progress("assess"))
    assert not list(request.directory.rglob("*console*"))
    assert machines(request.image) == []


def test_one_of_two_boots_that_fails_does_not_end_the_other(request_for):
    request = request_for("Waiting", boots=("bios-nocloud", "bios-opennebula"), timeout=30)
    line, report = fail(request)
    assert line.count("no SSH server answered within") >= 1
    due = {(check["boot"], check["name"]) for check in report["checks"] if check["group"] == "boot" and not check["ok"]}
    assert due == {("bios-nocloud", "boot"), ("bios-opennebula", "boot")}
    assert {check["name"] for check in report["checks"] if check["group"] == "clones" and not check["ok"]} == {
        *("different_machine_ids", "different_dhcp_client_ids", "different_host_keys")
    }


def test_nobody_wants_it_any_more(request_for):
    request = request_for("Waiting", boots=("bios-nocloud", "bios-opennebula"))
    with subprocess.Popen(["sleep", "5"]) as owner:
        job = {"owner": Owner.of(owner.pid).dump()}
        with pytest.raises(Cancelled, match="has gone"):
            _assess.assess(request, Progress("assess", job))
    assert machines(request.image) == []
    consoles = [f"logs/assess-console-bios-{source}.log" for source in ("nocloud", "opennebula")]
    assert names(request.directory) == consoles


def test_killed_in_the_middle_and_started_again(request_for):
    request = request_for("Waiting", timeout=300)
    process = multiprocessing.get_context("fork").Process(target=_assess.assess, args=(request, Progress("assess")))
    process.start()
    console = request.directory / "logs/assess-console-bios-nocloud.log"
    deadline = time.monotonic() + 120
    while not (console.exists() and b"Waiting" in console.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(machines(request.image)) == 1
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    deadline = time.monotonic() + 120
    while machines(request.image) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert machines(request.image) == []
    assert any(".partial" in name for name in names(request.directory))
    fail(dataclasses.replace(request, timeout=5))
    assert not any(".partial" in name for name in names(request.directory))


def test_qemu_killed_in_the_middle(request_for):
    request = request_for("Waiting", timeout=60)
    console = request.directory / "logs/assess-console-bios-nocloud.log"
    killed: list[int] = []

    class Killer(Progress):
        def report(self, **facts) -> None:
            if not killed and console.exists() and b"Waiting" in console.read_bytes():
                killed.extend(machines(request.image))
                os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(FactoryError, match="boot: the machine went off"):
        _assess.assess(request, Killer("assess"))
    assert len(killed) == 1
    assert not any(".partial" in name for name in names(request.directory))


def test_the_power_button_and_the_monitor(request_for, tmp_path):
    request = request_for("Waiting")
    spec = _machine.Spec(name=f"{request.image}-assess", disk=request.artifact, accelerator="tcg", memory=64)
    console = tmp_path / "console.log"
    with _machine.scratch(tmp_path, "machine") as runtime, _machine.Machine(spec, runtime, console) as machine:
        assert machine.alive()
        assert machine.port > 0
        assert machine.monitor("query-status")["status"] == "running"
        with pytest.raises(FactoryError, match="QEMU: refuses no-such-command: The command no-such-command has not"):
            machine.monitor("no-such-command")
        # nothing in this guest listens to the button
        assert not machine.powerdown(1)
    assert not machine.alive()


def test_a_qemu_that_does_not_start_says_why(request_for, tmp_path):
    request = request_for("Waiting")
    spec = _machine.Spec(name="tiny", disk=tmp_path / "none.qcow2", accelerator="tcg")
    with _machine.scratch(tmp_path, "machine") as runtime:
        machine = _machine.Machine(spec, runtime, request.directory / "console.log")
        with pytest.raises(FactoryError, match=r"did not start: .*none\.qcow2.*No such file or directory"), machine:
            pass


@pytest.mark.full_build
@pytest.mark.root
def test_the_artifact_of_the_whole_build_passes(full_build):
    """By what the stage assess of that build left: the artifact is not booted once more for this."""
    factory, played = full_build
    assert played.rc == 0, played.stdout[-3000:]
    directory, build = factory.build("debian-12")
    (artifact,) = build["stages"]["export"]["artifacts"]
    assert file_digests(Path(artifact["path"]), ["sha256"])["sha256"] == artifact["checksums"]["sha256"]
    report = json.loads((directory / "assess.json").read_text(encoding="utf-8"))
    assert report["verdict"] == "pass"
    assert [check for check in report["checks"] if not check["ok"]] == []
    nocloud, opennebula = report["boots"]
    for boot in (nocloud, opennebula):
        timings = boot["timings"]
        assert 0 < timings["ssh"] <= timings["login"] <= timings["all"]
        assert timings["cloud_init"] > timings["login"] - 120
        assert boot["facts"]["open_ports"] == ["22/tcp"]
        assert boot["facts"]["datasource"].startswith(f"DataSource{boot['datasource']}")
        assert {"proto": "tcp", "address": "0.0.0.0", "port": 22, "process": "sshd"} in boot["listening"]
    for name in ("machine_id", "dhcp_client_id"):
        assert nocloud["facts"][name] != opennebula["facts"][name]
    assert not set(nocloud["facts"]["host_keys"]) & set(opennebula["facts"]["host_keys"])
    secant = ET.parse(directory / "secant.xml")
    assert secant.findtext("OUTCOME") == "OK"
    outcomes = {check.findtext("TEST_ID"): check.findtext("OUTCOME") for check in secant.iterfind("LOG/CHECK")}
    assert [outcomes[name] for name in ("OPEN_PORTS", "NTP_AMP", "SSH_AUTH")] == ["OK"] * 3
    assert outcomes["SSH_PASSWD"] == "SKIPPED"
    assert outcomes["LYNIS_TEST"] in ("OK", "SKIPPED")  # it takes too long where guests are emulated
    assert outcomes["PAKITI_TEST"] in ("OK", "SKIPPED")  # without a mirror in reach, it cannot tell
    assert ET.parse(directory / "assess.xml").getroot().get("failures") == "0"
    assert set(logs("bios-nocloud", "uefi-opennebula")) <= set(names(directory))
