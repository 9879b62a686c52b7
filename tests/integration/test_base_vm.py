# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""base_vm with the real virt-install, libvirt and QEMU, on installers that boot in a second."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import re
import signal
import stat
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest
from tiny_installer import make_installer
from tiny_reboots import make_restarting_installer

from ansible_collections.cloudimg.factory.plugins.module_utils import _base_vm
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import Cancelled, FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._owner import Owner
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.plugins.module_utils._state import Workspace

DONE = "Partitioning\r\nTINY finished\r\n"


@pytest.fixture
def order(tmp_path):
    """A function that makes an order for an installer that says something."""

    def make(says: str = DONE, *, ends: bool = True, **changes) -> _base_vm.Order:
        medium = {
            "path": str(make_installer(tmp_path, says, ends=ends)),
            "sha256": "0" * 64,
            "boot": "cdrom",
            "success_lines": ["^TINY finished"],
            "failure_lines": ["^FATAL ERROR"],
            "question_lines": ["^Press <RETURN>"],
        }
        given = _base_vm.Order(
            workspace=Workspace(tmp_path / "workspace").make(),
            image=f"tiny-{os.getpid()}",
            medium=medium,
            disk_size=64 << 20,
            memory=64,
            cpus=1,
            firmware="bios",
            osinfo="",
            accelerator="tcg",
            uri="private",
            answer_files={},
            answer_volume="",
            arch="x86_64",
            directory=tmp_path / "build",
            timeout=300,
            inactivity=120,
            keep_on_failure=False,
        )
        return dataclasses.replace(given, **changes)

    return make


def processes_of(order: _base_vm.Order) -> list[str]:
    """The command lines of what still works for an order (all of them name its domain or its session's directory)."""
    found = []
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            words = (proc / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if int(proc.name) != os.getpid() and order.domain in words:
            found.append(words)
    return found


def gone(order: _base_vm.Order, seconds: float = 60.0) -> bool:
    """Whether nothing works for an order any more, at the latest after some seconds."""
    deadline = time.monotonic() + seconds
    while processes_of(order) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not processes_of(order)


def leftovers(order: _base_vm.Order) -> list[str]:
    """What is in the layer cache and in run/, but for locks."""
    found = [*order.workspace.layers.iterdir(), *order.workspace.run.iterdir()]
    return [path.name for path in found if path.suffix != ".lock"]


def test_install_then_cache(order):
    first = order()
    result = _base_vm.ensure_base(first, Progress("base_vm"))
    assert result.changed
    assert result.actions == ["install: this image has no base yet"]
    base = Path(result.extra["base"]["path"])
    info = json.loads(subprocess.check_output(["qemu-img", "info", "-f", "qcow2", "--output=json", base]))
    assert info["virtual-size"] == 64 << 20
    assert "backing-filename" not in info
    assert sorted(leftovers(first)) == [base.with_suffix(".json").name, base.name]
    assert "TINY finished" in (first.directory / "logs/base_vm-console.log").read_text()
    assert gone(first)

    again = _base_vm.ensure_base(first, Progress("base_vm"))
    assert not again.changed
    assert again.extra["cached"]
    assert again.extra["base"] == result.extra["base"]

    other = dataclasses.replace(first, disk_size=65 << 20)
    planned = _base_vm.ensure_base(other, Progress("base_vm"), check_mode=True)
    assert planned.actions == ["install: changed since the last base: disk"]
    assert planned.diff["before"]["disk"] == {"size": 64 << 20}
    assert planned.diff["after"]["disk"] == {"size": 65 << 20}
    assert not Path(planned.extra["base"]["path"]).exists()


@pytest.mark.parametrize("boot", ["cdrom", pytest.param("direct", marks=pytest.mark.slow), "location"])
def test_installer_that_restarts_goes_on_from_the_disk(order, tmp_path, boot):
    """Neither the medium nor the installer's kernel is booted again, and only the power-off is the end."""
    given = order()
    iso = make_restarting_installer(tmp_path / boot, ["first\r\n", "second\r\n", "TINY finished\r\n"])
    medium = {**given.medium, "path": str(iso), "boot": boot, "reboots": True}
    medium.update({} if boot == "cdrom" else {"kernel": "kernel", "initrd": "initrd"})
    given = dataclasses.replace(given, medium=medium, answer_files={"a.txt": "a"}, answer_volume="ANSWERS")
    assert _base_vm.ensure_base(given, Progress("base_vm")).changed
    said = (given.directory / "logs/base_vm-console.log").read_text().split("\n")
    said = [line.strip() for line in said if line.strip().endswith(("first", "second", "finished"))]
    first = "medium: first" if boot == "cdrom" else "kernel: first"
    assert [line[line.find(first) :] if first in line else line for line in said] == [first, "second", "TINY finished"]
    assert gone(given)


def test_installer_that_restarts_is_watched_to_its_end(order, tmp_path):
    """What an installer says after a restart counts as well: here that it failed, and it would power off then."""
    given = order()
    iso = make_restarting_installer(tmp_path / "iso", ["first\r\n", "second\r\n", "FATAL ERROR no driver\r\n"])
    given = dataclasses.replace(given, medium={**given.medium, "path": str(iso), "reboots": True})
    with pytest.raises(FactoryError, match="the installer failed: FATAL ERROR no driver"):
        _base_vm.ensure_base(given, Progress("base_vm"))
    assert leftovers(given) == []
    assert gone(given)


@pytest.mark.slow
def test_installer_that_restarts_too_early_has_failed(order, tmp_path):
    """Where the family's installers do not restart, that is their end, and it is judged as one."""
    given = order()
    iso = make_restarting_installer(tmp_path / "iso", ["first\r\n", "second\r\n", "TINY finished\r\n"])
    given = dataclasses.replace(given, medium={**given.medium, "path": str(iso)})
    with pytest.raises(FactoryError, match=r"broke off: the VM went off .*: medium: first"):
        _base_vm.ensure_base(given, Progress("base_vm"))


@pytest.mark.slow
def test_damaged_base_is_installed_again(order):
    given = order()
    base = Path(_base_vm.ensure_base(given, Progress("base_vm")).extra["base"]["path"])
    with base.open("r+b") as stream:
        stream.truncate(base.stat().st_size - 65536)
    result = _base_vm.ensure_base(given, Progress("base_vm"))
    assert result.actions == [f"install: the cached base {base.name} is damaged"]
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", base], check=True)


@pytest.mark.parametrize(
    ("says", "ends", "changes", "message"),
    [
        ("ok\r\nFATAL ERROR no disk\r\n", False, {}, "the installer failed: FATAL ERROR no disk"),
        ("ok\r\nPress <RETURN> to go on", False, {}, "the installer stopped at a question: Press <RETURN> to go on"),
        ("Partitioning\r\n", True, {}, "broke off: the VM went off before the installer was finished"),
        (
            "Partitioning\r\n",
            False,
            {"inactivity": 25},
            "neither the console nor the disk moved for 25 s; .* Partitioning",
        ),
        pytest.param(
            *("Partitioning\r\n", False, {"timeout": 40}, "the installer did not end within 40 s; .*: Partitioning"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_failed_installation_says_why_and_leaves_nothing(order, says, ends, changes, message):
    given = order(says, ends=ends, **changes)
    with pytest.raises(FactoryError, match=message) as caught:
        _base_vm.ensure_base(given, Progress("base_vm"))
    assert "\n" not in str(caught.value)
    assert leftovers(given) == []
    assert gone(given)
    if not ends:
        assert Path(caught.value.details["screenshot"]).stat().st_size > 100
    assert says.split("\r\n")[0] in Path(caught.value.details["log_path"]).read_text()


def _install(order: _base_vm.Order) -> None:
    _base_vm.ensure_base(order, Progress("base_vm"))


@pytest.fixture
def installing(order):
    """An order whose installer never ends, and the process that installs it, once the guest runs."""
    given = order("Partitioning\r\n", ends=False)
    process = multiprocessing.get_context("fork").Process(target=_install, args=(given,))
    process.start()
    console = given.directory / "logs/base_vm-console.log"
    deadline = time.monotonic() + 120
    while not (console.exists() and "Partitioning" in console.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(given)
    yield given, process
    process.kill()
    process.join()


def test_killed_module_leaves_no_process_and_the_next_run_clears_up(order, installing):
    given, process = installing
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert gone(given)
    assert any(name.startswith(".partial-") for name in leftovers(given))
    result = _base_vm.ensure_base(order(), Progress("base_vm"))
    assert result.changed
    assert not any(name.startswith((".partial-", "cloudimg-")) for name in leftovers(given))
    assert list(Path(tempfile.gettempdir()).glob(f"{given.domain}-*")) == []


def test_killed_qemu_is_told(installing):
    given, process = installing
    pids = subprocess.run(
        ["pgrep", "-f", f"qemu-system.*guest={given.domain}"], capture_output=True, text=True, check=True
    ).stdout.split()
    for pid in pids:
        os.kill(int(pid), signal.SIGKILL)
    process.join(30)
    assert process.exitcode == 1
    assert gone(given)
    assert leftovers(given) == []


def test_installation_ends_when_its_owner_dies(order, tmp_path):
    given = order("Partitioning\r\n", ends=False)
    with subprocess.Popen(["sleep", "60"]) as owner:
        job = {"path": str(tmp_path / "job.json"), "owner": Owner.of(owner.pid).dump()}
        timer = threading.Timer(6, owner.kill)
        timer.start()
        with pytest.raises(Cancelled, match="the playbook that wanted it"):
            _base_vm.ensure_base(given, Progress("base_vm", job))
        timer.cancel()
        owner.kill()
    assert leftovers(given) == []
    assert gone(given)


def test_kept_failure_can_be_attached_to_and_removed(order):
    given = order("FATAL ERROR no disk\r\n", ends=False, keep_on_failure=True)
    with pytest.raises(
        FactoryError, match=r"FATAL ERROR no disk \[kept: attach by: virsh --connect '.*' console"
    ) as caught:
        _base_vm.ensure_base(given, Progress("base_vm"))
    kept = caught.value.details["kept"]
    done = subprocess.run(
        ["virsh", "-q", "--connect", kept["uri"], "domstate", kept["domain"]],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "running"
    assert Path(kept["disk"]).exists()
    subprocess.run(["bash", "-c", kept["remove"]], check=True)
    assert gone(given)


@pytest.mark.slow
def test_foreign_domain_of_the_same_connection_is_not_touched(order):
    """Two installations at once, each with domains of its own: the failure of one leaves the other alone."""
    good = order()
    bad = order("FATAL ERROR\r\n", ends=False, image=f"other-{os.getpid()}")
    # another medium, so that it is another base: of the same, one would wait for the other; and another image has logs of its own
    bad = dataclasses.replace(bad, medium={**bad.medium, "sha256": "1" * 64}, directory=bad.directory / "bad")
    assert good.domain != bad.domain
    good = dataclasses.replace(good, medium={**good.medium, "path": str(make_installer(good.directory / "good", DONE))})
    results = []
    thread = threading.Thread(target=lambda: results.append(_base_vm.ensure_base(good, Progress("base_vm"))))
    thread.start()
    with pytest.raises(FactoryError, match="FATAL ERROR"):
        _base_vm.ensure_base(bad, Progress("base_vm"))
    thread.join()
    assert results[0].changed


def test_disk_smaller_than_the_installation_needs(order):
    given = order()
    given = dataclasses.replace(given, medium={**given.medium, "needs": 700 << 20})
    message = r"image_disk.size: 64 MiB is smaller than the installation needs \(898 MiB\); set it to 1G or more"
    with pytest.raises(FactoryError, match=message):
        _base_vm.ensure_base(given, Progress("base_vm"))
    assert leftovers(given) == []


@pytest.mark.parametrize("tool", ["virt-install", "qemu-img"])
def test_tool_that_is_too_old(order, tmp_path, monkeypatch, tool):
    fake = tmp_path / "bin" / tool
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho tool version 1.2.3\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    given = order()
    with pytest.raises(FactoryError, match=re.escape(f"{tool}: is version 1.2.3, too old")):
        _base_vm.ensure_base(given, Progress("base_vm"))
    assert leftovers(given) == []


def test_tool_that_is_missing(order, monkeypatch):
    which = _base_vm._cli.which
    monkeypatch.setattr(_base_vm._cli, "which", lambda tool: None if tool == "virt-install" else which(tool))
    given = order()
    with pytest.raises(FactoryError, match=r"virt-install: is not installed on the builder; run playbooks/builder.yml"):
        _base_vm.ensure_base(given, Progress("base_vm"))
    assert leftovers(given) == []


def test_connection_that_is_not_there(order):
    given = order(uri="qemu+unix:///session?socket=/nowhere/libvirt-sock")
    with pytest.raises(FactoryError, match=r"base_vm_uri: cannot be reached: .*/nowhere/libvirt-sock"):
        _base_vm.ensure_base(given, Progress("base_vm"))
    assert leftovers(given) == []
