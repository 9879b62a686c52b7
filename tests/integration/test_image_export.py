# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Exporting real overlay chains: what is made, when it is made again, and what is left when it fails."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _qemu_img
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import file_digests
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import Cancelled, FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._export import Request, export
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.plugins.module_utils._owner import Owner
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.plugins.module_utils._state import remove, write_json

MIB = 1 << 20
DEFINITION: dict[str, t.Any] = {
    "image_title": "Debian 12",
    "image_description": "Minimal Debian 12",
    "image_os": {"distribution": "debian", "version": "12", "arch": "x86_64"},
    "image_expires": "180d",
    "image_machine": {"memory_mib": 2048, "cpus": 2},
}


def fill(path: Path, content: Path, offset: str = "0") -> None:
    length = content.stat().st_size
    command = f"write -q -s {content} {offset} {length}"
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, str(path)], check=True)


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    """A layer cache with a base and an overlay; the path of the overlay."""
    folder = tmp_path / "cache" / "layers"
    folder.mkdir(parents=True)
    noise = tmp_path / "noise"
    noise.write_bytes(os.urandom(3 * MIB) + b"text " * MIB)
    base, overlay = folder / "base_vm-1.qcow2", folder / "sanitize-2.qcow2"
    _qemu_img.create(base, 64 * MIB)
    fill(base, noise)
    _qemu_img.create(overlay, None, backing=base)
    fill(overlay, noise, "5M")
    noise.unlink()
    write_json(folder / "sanitize-2.json", {"stage": "sanitize", "digest": "2" * 64})
    write_json(folder / "sanitize-2.packages.json", [{"name": "bash", "version": "5.2", "arch": "amd64"}])
    return overlay


@pytest.fixture
def request_(layers: Path, tmp_path: Path) -> Request:
    return Request(
        image="debian-12",
        version="1",
        directory=tmp_path / "build",
        source=layers,
        definition=DEFINITION,
        definition_digest="d" * 64,
        stages={
            "media": {"family": "fai", "sha256": "0" * 64, "path": "/x/fai.iso"},
            "base_vm": {"path": "/x", "digest": "1" * 64},
            "sanitize": {"path": str(layers), "digest": "2" * 64},
        },
        packages_file=layers.with_suffix(".packages.json"),
    )


def run(request: Request, *, check_mode: bool = False) -> Result:
    return export(request, Progress("export"), check_mode=check_mode)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


FILES = ["debian-12-1.qcow2", "debian-12-1.qcow2.digests.json", "descriptor.json", "packages.json"]


def test_export(request_: Request) -> None:
    result = run(request_)
    assert result.actions == [
        "debian-12-1.qcow2: is not exported yet",
        "packages.json: is missing",
        "descriptor.json: is missing",
    ]
    assert names(request_.directory) == FILES
    disk = request_.directory / "debian-12-1.qcow2"
    info = _qemu_img.safe_info(disk)
    assert (info.backing, info.compression, info.cluster_size, info.virtual_size) == (None, "zstd", MIB, 64 * MIB)
    assert _qemu_img.compare(request_.source, "qcow2", disk, "qcow2")
    found = _descriptor.load(request_.directory / "descriptor.json")
    assert found.artifacts[0].checksums == file_digests(disk)
    assert found.artifacts[0].size == disk.stat().st_size
    assert (found.min_disk, found.memory, found.cpu) == (64 * MIB, 2048, 2)
    assert found.expires == _descriptor.expiry(found.created, "180d")
    assert found.source == {"family": "fai", "sha256": "0" * 64, "source": "fai.iso"}
    assert found.provenance.stages == {"base_vm": "1" * 64, "sanitize": "2" * 64}
    assert found.provenance.qemu == _qemu_img.version()
    assert result.image == found.document()
    assert result.extra["artifacts"][0]["path"] == str(disk)


def test_second_run_changes_nothing(request_: Request) -> None:
    run(request_)
    before = {path: path.stat().st_mtime_ns for path in request_.directory.iterdir()}
    again = run(request_)
    assert (again.changed, again.actions) == (False, [])
    assert again.diff is not None
    assert again.diff["before"] == again.diff["after"]
    assert {path: path.stat().st_mtime_ns for path in request_.directory.iterdir()} == before


def test_same_source_gives_same_bytes(request_: Request, tmp_path: Path) -> None:
    run(request_)
    run(dataclasses.replace(request_, directory=tmp_path / "other"))
    first, second = (folder / "debian-12-1.qcow2" for folder in (request_.directory, tmp_path / "other"))
    assert first.read_bytes() == second.read_bytes()


def test_check_mode_tells_and_writes_nothing(request_: Request) -> None:
    result = run(request_, check_mode=True)
    assert result.changed
    assert result.diff is not None
    assert result.diff["before"] == {}
    assert "checksums" not in result.diff["after"]["artifacts"][0]
    assert not request_.directory.exists()
    missing = run(dataclasses.replace(request_, source=request_.source.with_name("later.qcow2")), check_mode=True)
    assert missing.actions == ["later.qcow2: the stage before would make it, then it is exported"]


def tamper(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\xff")


@pytest.mark.parametrize("check_mode", [True, False])
@pytest.mark.parametrize(
    ("changes", "damage", "reason"),
    [
        ({"source_digest": "3" * 64}, None, "debian-12-1.qcow2: source differs: 222222222222 → 333333333333"),
        ({"compression": "zlib"}, None, "debian-12-1.qcow2: compression differs: zstd → zlib"),
        ({"cluster_size": 65536}, None, "debian-12-1.qcow2: cluster_size differs: 1048576 → 65536"),
        ({"level": 9}, None, "debian-12-1.qcow2: level differs: None → 9"),
        (
            {"formats": ({"format": "qcow2", "level": 1},), "level": 9},
            None,
            "debian-12-1.qcow2: level differs: None → 1",
        ),
        ({}, Path.unlink, "debian-12-1.qcow2: is missing"),
        ({}, tamper, "debian-12-1.qcow2: checksum differs from the descriptor's"),
    ],
)
def test_what_makes_it_again(
    request_: Request,
    changes: dict[str, t.Any],
    damage: t.Callable[[Path], None] | None,
    reason: str,
    check_mode: bool,
) -> None:
    run(request_)
    if damage:
        damage(request_.directory / "debian-12-1.qcow2")
    changed = dataclasses.replace(request_, **changes)
    result = run(changed, check_mode=check_mode)
    assert result.actions[0] == reason
    if not check_mode:
        assert not run(changed).changed
        found = _descriptor.load(request_.directory / "descriptor.json")
        assert found.artifacts[0].checksums == file_digests(request_.directory / "debian-12-1.qcow2")


def test_layer_that_was_made_again(request_: Request) -> None:
    run(request_)
    os.utime(request_.source)
    assert run(request_).actions[0] == "debian-12-1.qcow2: sanitize-2.qcow2 was made later"
    assert not run(request_).changed


def test_new_title_only_writes_the_descriptor(request_: Request) -> None:
    run(request_)
    before = _descriptor.load(request_.directory / "descriptor.json")
    inode = (request_.directory / "debian-12-1.qcow2").stat().st_ino
    titled = dataclasses.replace(request_, definition={**DEFINITION, "image_title": "Bookworm"})
    result = run(titled)
    assert result.actions == ["descriptor.json: differs"]
    found = _descriptor.load(request_.directory / "descriptor.json")
    assert (found.title, found.created) == ("Bookworm", before.created)
    assert (request_.directory / "debian-12-1.qcow2").stat().st_ino == inode


def test_broken_descriptor_is_replaced(request_: Request) -> None:
    run(request_)
    (request_.directory / "descriptor.json").write_text('{"schema": 7}', encoding="utf-8")
    assert run(request_).actions[0].startswith("descriptor.json: schema: is 7")
    assert not run(request_).changed


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"image_os": {"distribution": "debian"}}, "os.version"),
        ({"image_expires": "soon"}, "image_expires"),
        ({"image_endorser": {"name": "A", "phone": "1"}}, "endorser.phone"),
        ({"image_expires": "2001-01-01"}, "expires"),
        ({"image_machine": {"memory_mib": "2G"}}, "memory"),
    ],
)
def test_bad_definition_is_refused_before_the_work(request_: Request, wrong: dict[str, t.Any], key: str) -> None:
    with pytest.raises(FactoryError) as caught:
        run(dataclasses.replace(request_, definition={**DEFINITION, **wrong}))
    assert caught.value.key == key
    assert not request_.directory.exists()


def test_corrupted_source_is_refused(request_: Request) -> None:
    base = _qemu_img.info(request_.source).backing
    assert base
    with base.open("r+b") as stream:
        stream.seek(65536)  # the refcount table
        stream.write(b"\x01" * 65536)
    with pytest.raises(FactoryError, match=r"base_vm-1\.qcow2: (is corrupted|qemu-img)") as caught:
        run(request_)
    assert "\n" not in str(caught.value)
    assert names(request_.directory) == []


def test_missing_layer_below(request_: Request) -> None:
    base = _qemu_img.info(request_.source).backing
    assert base
    base.unlink()
    with pytest.raises(FactoryError, match=r"base_vm-1\.qcow2"):
        run(request_)
    assert names(request_.directory) == []


def test_owner_that_went_away_ends_it(request_: Request, tmp_path: Path) -> None:
    child = subprocess.Popen(["sleep", "60"])
    owner = Owner.of(child.pid)
    progress = Progress("export", {"path": str(tmp_path / "job.json"), "owner": owner.dump()})
    child.kill()
    child.wait()
    with pytest.raises(Cancelled):
        export(request_, progress)
    assert names(request_.directory) == []


def test_failure_keeps_the_former_export(request_: Request, tmp_path: Path) -> None:
    run(request_)
    before = (request_.directory / "descriptor.json").read_bytes()
    gone = Progress("export")
    gone.report = _refuse  # type: ignore[method-assign]
    with pytest.raises(Cancelled):
        export(dataclasses.replace(request_, compression="zlib"), gone)
    assert names(request_.directory) == FILES
    assert (request_.directory / "descriptor.json").read_bytes() == before
    assert not run(request_).changed


def _refuse(**facts: t.Any) -> None:
    if facts:
        raise Cancelled("the playbook has gone", where="export")


PROGRAM = """
import json, sys
from pathlib import Path
from ansible.utils.collection_loader._collection_finder import _AnsibleCollectionFinder
_AnsibleCollectionFinder(paths=[sys.argv[1]])._install()
from ansible_collections.cloudimg.factory.plugins.module_utils._export import Request, export
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
options = json.loads(sys.argv[2])
paths = {name: Path(options[name]) for name in ("directory", "source")}
export(Request(**{**options, **paths}), Progress("export"))
"""


def test_killed_export_leaves_nothing_for_long(request_: Request, tmp_path: Path) -> None:
    noise = tmp_path / "noise"
    noise.write_bytes(os.urandom(56 * MIB))
    fill(request_.source, noise)
    options = {
        "image": "debian-12",
        "version": "1",
        "directory": str(request_.directory),
        "source": str(request_.source),
        "compression": "zlib",
        "definition": DEFINITION,
    }
    root = os.environ["ANSIBLE_COLLECTIONS_PATH"]
    child = subprocess.Popen([sys.executable, "-c", PROGRAM, root, json.dumps(options)])
    deadline = time.monotonic() + 120
    while not any(name.startswith(".partial-") for name in names(request_.directory)):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    left = names(request_.directory)
    assert len(left) == 1
    while _writers(request_.directory / left[0]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run(request_)
    assert names(request_.directory) == FILES


def _writers(path: Path) -> list[int]:
    """The processes whose command line names a file."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(path) in command:
            found.append(int(folder.name))
    return found


@pytest.mark.root
@pytest.mark.parametrize("formats", [("qcow2",), ("raw",), ("raw.zst", "vmdk"), ("vdi", "ova"), ("box",)])
def test_no_space_left(request_: Request, tmp_path: Path, formats: tuple[str, ...]) -> None:
    request = dataclasses.replace(request_, directory=tmp_path / "small" / "build", formats=formats)
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3M", "tmpfs", str(small)], check=True)
    try:
        with pytest.raises(FactoryError, match="No space left on device") as caught:
            run(request)
        assert caught.value.mend == "free some space there, or set image_workspace to a larger file system"
        assert names(request.directory) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def ansible(arguments: dict[str, t.Any], *flags: str) -> dict[str, t.Any]:
    """Run the module as Ansible does."""
    command = [str(Path(sys.executable).with_name("ansible")), "localhost", "-i", "localhost,", "-c", "local"]
    command += ["-m", "cloudimg.factory.image_export", "-a", json.dumps(arguments), *flags]
    environment = {
        **os.environ,
        "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1",
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    try:
        return dict(json.loads(done.stdout)["plays"][0]["tasks"][0]["hosts"]["localhost"])
    except (ValueError, LookupError):
        pytest.fail(done.stdout + done.stderr)


def test_module(request_: Request) -> None:
    arguments = {
        "image": "debian-12",
        "version": "1",
        "directory": str(request_.directory),
        "source": str(request_.source),
        "cluster_size": "64K",
        "definition": DEFINITION,
        "packages_file": str(request_.packages_file),
    }
    planned = ansible(arguments, "--check", "--diff")
    assert planned["changed"]
    assert not request_.directory.exists()
    made = ansible(arguments)
    assert made["changed"]
    assert made["image"]["artifacts"][0]["cluster_size"] == 65536
    assert made["descriptor"] == str(request_.directory / "descriptor.json")
    again = ansible(arguments, "--diff")
    assert (again["changed"], again["actions"]) == (False, [])
    wrong = ansible({**arguments, "source": "/nonexistent.qcow2"})
    assert wrong["failed"]
    assert wrong["msg"].startswith("/nonexistent.qcow2: qemu-img info: ")
    remove(request_.directory)
