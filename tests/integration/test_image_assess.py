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
from pathlib import Path

import pytest
from tiny_installer import make_installer

from ansible_collections.cloudimg.factory.plugins.module_utils import _assess, _machine
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
            firmware=("bios",),
            accelerator="tcg",
            cpus=1,
            memory=64,
            allowed_units=(),
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
    assert [check["name"] for check in report["checks"]] == ["boot"]
    assert names(request.directory) == ["assess.json", "logs/assess-console.log", "logs/assess-screen.png"]
    assert (request.directory / "logs/assess-screen.png").read_bytes().startswith(b"\x89PNG")
    again = _assess.assess(request, Progress("assess"), check_mode=True)
    assert again.actions == ["assess: it did not pass"]


def test_a_system_that_never_offers_ssh_fails_when_the_time_is_up(request_for):
    request = request_for("Starting all there is", timeout=40)
    line, _report = fail(request)
    assert "boot: no SSH server answered within 40 s; the console's last line: " in line
    assert "Starting all there is" in (request.directory / "logs/assess-console.log").read_text(encoding="utf-8")


def test_a_system_that_switches_itself_off(request_for):
    line, _report = fail(request_for("Good bye", ends=True))
    assert "boot: the machine went off; QEMU said: nothing; the console's last line: Good bye; see" in line


def test_a_kernel_panic_ends_the_wait(request_for):
    line, _report = fail(request_for("[1.0] Kernel panic - not syncing: no init"))
    assert "boot: it does not boot: [1.0] Kernel panic - not syncing: no init; see" in line


def test_uefi_has_a_console_of_its_own(request_for):
    request = request_for(None, firmware=("uefi",), memory=256)
    line, report = fail(request)
    assert "boot: it does not boot: UEFI Interactive Shell" in line
    assert report["checks"][0]["firmware"] == "uefi"
    assert "BdsDxe" in (request.directory / "logs/assess-console-uefi.log").read_text(errors="replace")
    assert names(request.directory)[0] == "assess.json"
    assert not [name for name in names(request.directory) if "partial" in name]


def test_nobody_wants_it_any_more(request_for):
    request = request_for("Waiting")
    with subprocess.Popen(["sleep", "5"]) as owner:
        job = {"owner": Owner.of(owner.pid).dump()}
        with pytest.raises(Cancelled, match="has gone"):
            _assess.assess(request, Progress("assess", job))
    assert machines(request.image) == []
    assert names(request.directory) == ["logs/assess-console.log"]


def test_killed_in_the_middle_and_started_again(request_for):
    request = request_for("Waiting", timeout=300)
    process = multiprocessing.get_context("fork").Process(target=_assess.assess, args=(request, Progress("assess")))
    process.start()
    console = request.directory / "logs/assess-console.log"
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
    console = request.directory / "logs/assess-console.log"
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
def test_the_artifact_of_the_whole_build_passes(built_image, tmp_path):
    request = _assess.Request(
        image=f"built-{os.getpid()}",
        version="1",
        artifact=built_image,
        format="qcow2",
        directory=tmp_path,
        user="debian",
        grow=2048 * MIB,
        firmware=("bios", "uefi"),
        accelerator="auto",
        cpus=2,
        memory=1024,
        allowed_units=(),
        timeout=900,
    )
    before = (file_digests(built_image, ["sha256"]), built_image.stat().st_mtime_ns)
    progress = Progress("assess")
    result = _assess.assess(request, progress)
    assert result.changed
    assert (file_digests(built_image, ["sha256"]), built_image.stat().st_mtime_ns) == before
    report = result.extra["assessment"]
    assert report["verdict"] == "pass"
    assert [check for check in report["checks"] if not check["ok"]] == []
    for timings in report["timings"].values():
        assert 0 < timings["ssh"] <= timings["login"]
        assert timings["cloud_init"] > timings["login"] - 120
    assert names(tmp_path) == ["assess.json", "logs/assess-console-uefi.log", "logs/assess-console.log"]
    assert machines(request.image) == []
    assert not _assess.assess(request, progress).changed
