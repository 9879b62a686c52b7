# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The conformance suite in tests/assess: the built image passes, and one that is broken in one way fails just there."""

from __future__ import annotations

import ast
import dataclasses
import os
import shlex
import subprocess
import sys
import time
import typing as t
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from assess_mutations import BOOTED, IMAGE, LARGER_DISK, Mutation

from ansible_collections.cloudimg.factory.plugins.module_utils import (
    _accel,
    _machine,
    _overlay,
    _qemu_img,
    _seed,
    _ssh,
)

SUITE = Path(__file__).absolute().parents[1] / "assess"
GIB = 1 << 30
_DEVICES = {"null": 3, "zero": 5, "urandom": 9}


def checks() -> dict[str, set[str]]:
    """Each test function of the suite, and the marks that it has."""
    found = {}
    for path in sorted(SUITE.glob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found[node.name] = {ast.unparse(mark).rpartition(".")[2] for mark in node.decorator_list}
    return found


def test_each_check_has_a_mutation_and_a_sentence():
    found = checks()
    assert len(found) > 50
    broken = {mutation.test for mutation in (*IMAGE, *BOOTED)} | {LARGER_DISK}
    assert broken == set(found)
    assert {mutation.test for mutation in IMAGE} == {name for name, marks in found.items() if "booted" not in marks}
    for path in SUITE.glob("test_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                assert (ast.get_docstring(node) or "").endswith("."), node.name


def test_without_a_host_nothing_is_judged():
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", str(SUITE)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "name the host: --hosts=ssh://user@host" in done.stdout
    assert "passed" not in done.stdout


@dataclasses.dataclass
class Judged:
    """What the suite found of one host."""

    passed: set[str]
    failed: set[str]
    skipped: set[str]
    output: str


def judge(folder: Path, *options: str) -> Judged:
    """Run the suite."""
    report = folder / "suite.xml"
    report.unlink(missing_ok=True)
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
        *options,
        str(SUITE),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=1800)
    found = Judged(set(), set(), set(), done.stdout[-6000:] + done.stderr[-2000:])
    assert report.exists(), found.output
    for case in ET.parse(report).getroot().iter("testcase"):
        name = str(case.get("name")).partition("[")[0]
        kinds = {child.tag for child in case}
        bucket = found.failed if kinds & {"failure", "error"} else found.skipped if "skipped" in kinds else found.passed
        bucket.add(name)
    return found


@dataclasses.dataclass
class Tree:
    """The files of the built image, on the builder."""

    root: Path
    folder: Path

    def run(self, script: str) -> None:
        """Run a script in it."""
        argv = ["chroot", str(self.root), "/bin/sh", "-ec", script]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        subprocess.run(argv, check=True, capture_output=True, env=environment)

    def judge(self) -> Judged:
        """Run the suite on it."""
        return judge(self.folder, "--connection=chroot", f"--hosts={self.root}")


@pytest.fixture(scope="module")
def tree(built_image, tmp_path_factory) -> Tree:
    """A copy of the built image's root file system."""
    folder = tmp_path_factory.mktemp("suite")
    raw, mounted, root = folder / "raw", folder / "mounted", folder / "tree"
    _overlay.unpack(built_image, raw)
    mounted.mkdir()
    table = subprocess.check_output(["sfdisk", "--dump", raw], text=True).splitlines()
    start = max(int(line.partition("start=")[2].split(",")[0]) for line in table if "start=" in line)
    subprocess.run(["mount", "-o", f"ro,loop,offset={start * 512}", raw, mounted], check=True)
    try:
        subprocess.run(["cp", "-a", mounted, root], check=True)
    finally:
        subprocess.run(["umount", mounted], check=True)
        raw.unlink()
    for name, minor in _DEVICES.items():
        if not (root / "dev" / name).exists():
            os.mknod(root / "dev" / name, 0o20666, os.makedev(1, minor))
    return Tree(root, folder)


@pytest.mark.full_build
@pytest.mark.root
def test_the_built_image_passes(tree):
    judged = tree.judge()
    assert judged.failed == set(), judged.output
    booted = {name for name, marks in checks().items() if "booted" in marks}
    assert judged.skipped == booted
    assert judged.passed == set(checks()) - booted


BACKUP = (
    "rm -rf /run/undo; mkdir -p /run/undo; for f in {0}; do [ -e $f ] && cp -a --parents $f /run/undo/ || true; done"
)
RESTORE = (
    "for f in {0}; do rm -rf $f; [ -e /run/undo$f -o -L /run/undo$f ] && cp -a /run/undo$f $f || true; done;"
    " rm -rf /run/undo"
)


def name_of(mutation: Mutation) -> str:
    """What pytest shows."""
    return mutation.test.removeprefix("test_")


@pytest.mark.slow
@pytest.mark.full_build
@pytest.mark.root
@pytest.mark.parametrize("mutation", IMAGE, ids=name_of)
def test_a_broken_image_fails_just_there(tree, mutation):
    paths = " ".join(mutation.touches)
    tree.run(BACKUP.format(paths))
    try:
        tree.run(mutation.script)
        judged = tree.judge()
    finally:
        tree.run(RESTORE.format(paths))
    assert judged.failed == {mutation.test}, judged.output


@dataclasses.dataclass
class Clone:
    """The built image, booted on an overlay."""

    machine: _machine.Machine
    access: _ssh.Access
    folder: Path

    def run(self, script: str) -> None:
        """Run a script in it, as root."""
        _ssh.run(self.access, f"sudo -n sh -c {shlex.quote(script)}", timeout=600)

    def judge(self) -> Judged:
        """Run the suite on it."""
        config = self.folder / "ssh_config"
        pairs = {**self.access.options(), "IdentityFile": str(self.access.key)}
        config.write_text("".join(f"{name} {value}\n" for name, value in pairs.items()), encoding="utf-8")
        host = f"ssh://{self.access.user}@{self.access.host}:{self.access.port}"
        return judge(self.folder, f"--hosts={host}", f"--ssh-config={config}")


@pytest.fixture(scope="module")
def clone(built_image, tmp_path_factory) -> t.Iterator[Clone]:
    """A clone that has come to the end of its first boot."""
    folder = tmp_path_factory.mktemp("clone")
    with _machine.scratch(folder, "clone") as runtime:
        key = _ssh.make_key(runtime / "id")
        _seed.make_seed(
            runtime / "seed.iso", _seed.cloud_config({"ssh_authorized_keys": [key]}), {"instance-id": "suite"}
        )
        disk = runtime / "overlay.qcow2"
        _qemu_img.create(disk, 12 * GIB, backing=built_image)
        spec = _machine.Spec(
            name=f"suite-{os.getpid()}",
            disk=disk,
            accelerator=_accel.detect(),
            seed=runtime / "seed.iso",
            isolated=True,
            copy_on_read=True,
        )
        with _machine.Machine(spec, runtime, folder / "console.log") as machine:
            machine.wait_ssh(1200, lambda: None)
            access = _ssh.Access(_machine.LOOPBACK, machine.port, "debian", runtime / "id", runtime / "known_hosts")
            deadline = time.monotonic() + 900
            ready = "cloud-init status --wait >/dev/null; systemctl is-system-running --wait"
            while _ssh.run(access, ready, timeout=900, check=False).rc == 255 and time.monotonic() < deadline:
                time.sleep(2)
            yield Clone(machine, access, folder)


@pytest.mark.slow
@pytest.mark.full_build
@pytest.mark.root
def test_the_booted_image_passes(clone):
    judged = clone.judge()
    assert judged.failed == set(), judged.output
    assert judged.skipped == {name for name, marks in checks().items() if "image" in marks}
    assert judged.passed == set(checks()) - judged.skipped


@pytest.mark.slow
@pytest.mark.full_build
@pytest.mark.root
@pytest.mark.parametrize("mutation", BOOTED, ids=name_of)
def test_a_broken_machine_fails_just_there(clone, mutation):
    paths = " ".join(mutation.touches)
    clone.run(BACKUP.format(paths))
    try:
        clone.run(mutation.script)
        judged = clone.judge()
    finally:
        clone.run(f"{mutation.undo or 'true'}; {RESTORE.format(paths)}")
    assert judged.failed == {mutation.test}, judged.output


@pytest.mark.slow
@pytest.mark.full_build
@pytest.mark.root
def test_a_root_file_system_that_does_not_fill_the_disk(clone):
    clone.machine.monitor("block_resize", **{"node-name": "reader", "size": 40 * GIB})
    clone.run(
        "d=$(lsblk -no PKNAME $(findmnt -no SOURCE /)); until [ $(lsblk -bdno SIZE /dev/$d) -gt 40000000000 ]; do sleep 1; done"
    )
    assert clone.judge().failed == {LARGER_DISK}
