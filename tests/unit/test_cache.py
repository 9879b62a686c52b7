# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes when the caches outgrow their bound, what never goes, and that no damaged layer is ever taken."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import (
    _base_vm,
    _cache,
    _guest,
    _layers,
    _qemu_img,
    _state,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._build import Builds
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._layers import Layer
from ansible_collections.cloudimg.factory.plugins.module_utils._owner import Owner

MIB = 1 << 20
DAY = 86400.0
NOW = time.time()


class Cache:
    """A workspace with layers of a MiB each."""

    def __init__(self, root: Path) -> None:
        self.workspace = _state.Workspace(root).make()

    def base(self, name: str = "1", age: float = 0.0) -> Path:
        """A base in the cache, last used ``age`` days ago."""
        path = self.workspace.layers / f"base_vm-{name}.qcow2"
        _qemu_img.create(path, 8 * MIB)
        self._fill(path)
        _state.write_json(path.with_suffix(".json"), {"stage": "base_vm", "digest": name})
        return self.aged(path, age)

    def layer(self, below: Path, stage: str, age: float = 0.0, image: str = "debian-12", **inputs: t.Any) -> Layer:
        """A layer on that, made as a stage does."""
        layer = Layer(self.workspace, image, stage, below, _layers.digest_of(below), inputs)
        disk = self.workspace.layers / "disk"
        _layers.create(layer, disk)
        self._fill(disk)
        _layers.commit(layer, disk, {"packages": []} if stage == "sanitize" else None)
        self.aged(layer.path, age)
        return layer

    def medium(self, name: str, age: float = 0.0) -> Path:
        """An ISO of a MiB."""
        path = self.workspace.media / f"{name}.iso"
        path.write_bytes(os.urandom(MIB))
        path.with_name(f"{path.name}.digests.json").write_text("{}")
        path.with_suffix(".json").write_text("{}")
        (self.workspace.media / f"source-{name}.json").write_text("{}")
        return self.aged(path, age)

    def aged(self, path: Path, days: float) -> Path:
        """Have it used for the last time so many days ago."""
        os.utime(path.with_suffix(".json"), (NOW - days * DAY, NOW - days * DAY))
        return path

    def prune(self, limit: int, *keep: Path, check_mode: bool = False):
        """Prune; returns the result."""
        return _cache.prune(self.workspace, limit, keep, check_mode=check_mode)

    def names(self) -> set[str]:
        """What is in the caches."""
        folders = (self.workspace.layers, self.workspace.media)
        return {path.name for folder in folders for path in folder.iterdir() if path.suffix in (".qcow2", ".iso")}

    @staticmethod
    def _fill(disk: Path) -> None:
        argv = ["qemu-io", "-f", "qcow2", "-c", f"write -P 7 0 {MIB}", str(disk)]
        subprocess.run(argv, check=True, capture_output=True)


@pytest.fixture
def cache(tmp_path):
    """An empty one."""
    return Cache(tmp_path / "workspace")


def test_what_was_used_last_stays(cache):
    old, new = cache.medium("old", age=9), cache.medium("new", age=1)
    middle = cache.base("middle", age=5)
    told = cache.prune(3 * MIB)
    assert cache.names() == {middle.name, new.name}
    assert [row["path"] for row in told.extra["removed"]] == [str(old)]
    assert told.extra["removed"][0]["kind"] == "medium"
    assert told.extra["before"] - told.extra["after"] == told.extra["removed"][0]["size"] >= MIB
    assert told.actions[0].startswith(f"remove {old}: 1 MiB, last used ")
    left = sorted(path.name for path in cache.workspace.media.iterdir())
    assert left == ["new.iso", "new.iso.digests.json", "new.json", "source-new.json", "source-old.json"]
    again = cache.prune(3 * MIB)
    assert (again.changed, again.extra["removed"]) == (False, [])


def test_within_the_bound_nothing_goes_and_check_mode_removes_nothing(cache):
    cache.medium("old", age=9)
    assert not cache.prune(10 * MIB).changed
    told = cache.prune(0, check_mode=True)
    assert told.changed
    assert told.extra["after"] == 0
    assert cache.names() == {"old.iso"}


def test_what_stands_on_another_goes_first(cache):
    base = cache.base(age=9)
    one = cache.layer(base, "cloud_init", age=8)
    two = cache.layer(one.path, "sanitize", age=1)
    medium = cache.medium("m", age=3)
    cache.prune(int(4.5 * MIB))
    # The base is as young as what stands on it.
    assert cache.names() == {base.name, one.path.name, two.path.name}
    assert not medium.exists()
    cache.prune(3 * MIB)
    assert cache.names() == {base.name, one.path.name}
    assert not two.packages.exists()
    assert not two.path.with_suffix(".json").exists()
    cache.prune(0)
    assert cache.names() == set()


def test_what_is_to_be_kept_stays_with_what_it_stands_on(cache):
    base = cache.base(age=9)
    one = cache.layer(base, "cloud_init", age=9)
    cache.layer(one.path, "applications", age=1)
    told = cache.prune(0, one.path)
    assert cache.names() == {base.name, one.path.name}
    assert "MiB more than wanted are in use" in told.extra["notes"][0]


def test_what_a_running_build_has_recorded_or_used_stays(cache):
    base, medium = cache.base(age=9), cache.medium("m", age=9)
    layer = cache.layer(base, "cloud_init", age=9)
    used = cache.medium("used since", age=-1)
    other = cache.medium("other", age=8)
    owner = subprocess.Popen(["sleep", "1000"])
    try:
        builds = Builds(str(cache.workspace.root), "debian-12", Owner.of(owner.pid).dump())
        builds.begin("1", "d", {"image_title": "x", "image_version": "1", "image_medium": None}, {})
        builds.record("1", "media", {"path": str(medium)})
        builds.record("1", "cloud_init", {"path": str(layer.path)})
        cache.prune(0)
        assert cache.names() == {base.name, layer.path.name, medium.name, used.name}
        assert not other.exists()
    finally:
        owner.kill()
        owner.wait()
    cache.prune(0)
    assert cache.names() == set()


def test_what_is_open_stays(cache):
    base = cache.base(age=9)
    install = cache.base("2", age=9)
    opened = cache.base("3", age=9)
    gone = cache.base("4", age=9)
    tree = cache.workspace.run / "cloudimg-x-harden.tree"
    _state.write_json(tree / "state.json", {"layer": {"parent": str(opened)}})
    user = subprocess.Popen(["qemu-io", "-f", "qcow2", str(base)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        user.stdin.write(b"read 0 512\n")
        user.stdin.flush()
        user.stdout.readline()
        with _state.lock(install.with_suffix(".lock")):
            cache.prune(0)
    finally:
        user.stdin.close()
        user.wait()
        user.stdout.close()
    assert cache.names() == {base.name, install.name, opened.name}
    assert not gone.exists()


def test_what_has_no_record_goes_and_what_is_being_written_stays(cache):
    base = cache.base(age=9)
    layer = cache.layer(base, "cloud_init", age=9)
    layer.path.with_suffix(".json").unlink()
    os.utime(layer.path, (NOW - 9 * DAY, NOW - 9 * DAY))
    partial = _state.partial_path(layer.path, Owner.of())
    partial.write_bytes(b"x" * MIB)
    cache.prune(0)
    assert sorted(path.name for path in cache.workspace.layers.iterdir()) == [partial.name]


def test_broken_records_are_no_obstacle(cache):
    base = cache.base(age=9)
    layer = cache.layer(base, "cloud_init", age=9)
    for text in ("", "[]", "{", "null", '{"parent": 7}'):
        layer.path.with_suffix(".json").write_text(text)
        assert _cache.entries(cache.workspace)
    cache.prune(0)
    assert cache.names() == set()


def test_a_layer_is_used_or_removed_but_never_both(cache):
    """Who takes a layer renews it; who prunes looks again before it goes."""
    for turn in range(12):
        base = cache.base(str(turn), age=9)
        layer = cache.layer(base, "cloud_init", age=9)
        taken: list[bool] = []
        threads = [
            threading.Thread(
                target=lambda path=layer.path, into=taken: into.append(_layers.touch(cache.workspace, path))
            ),
            threading.Thread(target=cache.prune, args=(0,)),
        ]
        for thread in threads if turn % 2 else reversed(threads):
            thread.start()
        for thread in threads:
            thread.join()
        # What was taken is there but for what stands on no running build; what is there could be taken.
        assert taken == [True] or not layer.path.exists()
        cache.prune(0)


def test_used_between_the_listing_and_the_end_it_stays(cache, monkeypatch):
    medium = cache.medium("m", age=9)
    real = _cache._needed

    def needed(*args: t.Any) -> set[str]:
        found = real(*args)
        os.utime(medium.with_suffix(".json"))
        return found

    monkeypatch.setattr(_cache, "_needed", needed)
    told = cache.prune(0)
    assert medium.exists()
    assert told.extra["notes"][0] == f"{medium} was used meanwhile"


_COMMIT = """
import sys
from pathlib import Path
from ansible.utils.collection_loader._collection_finder import _AnsibleCollectionFinder
_AnsibleCollectionFinder(paths=sys.argv[3].split(":"))._install()
from ansible_collections.cloudimg.factory.plugins.module_utils import _cache, _layers, _state
workspace = _state.Workspace(sys.argv[1])
base = Path(sys.argv[2])
for turn in range(8):
    layer = _layers.Layer(workspace, "debian-12", "cloud_init", base, _layers.digest_of(base), {"turn": turn})
    disk = workspace.layers / f"disk-{sys.argv[4]}"
    _layers.create(layer, disk)
    _layers.commit(layer, disk)
    wrong = _layers.flaw(layer)
    assert wrong is None or "damaged" not in wrong, wrong
"""


def test_parallel_builds_and_pruning_leave_whole_layers_only(cache):
    base = cache.base()
    argv = [sys.executable, "-c", _COMMIT, str(cache.workspace.root), str(base), os.environ["ANSIBLE_COLLECTIONS_PATH"]]
    jobs = [subprocess.Popen([*argv, str(number)], stderr=subprocess.PIPE, text=True) for number in range(2)]
    while any(job.poll() is None for job in jobs):
        cache.prune(0, base)
        time.sleep(0.05)
    said = [job.communicate()[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    for path in cache.workspace.layers.glob("*.qcow2"):
        _qemu_img.check(path)
        assert path.with_suffix(".json").exists()
    assert base.exists()


# What may happen to a layer, and what is said of it then.
def truncated(layer: Layer) -> None:
    """Half of it is there."""
    os.truncate(layer.path, layer.path.stat().st_size // 2)


def flipped(layer: Layer) -> None:
    """A bit of the data has changed, with neither size nor time."""
    stat = layer.path.stat()
    with layer.path.open("r+b") as stream:
        stream.seek(-100, os.SEEK_END)
        byte = stream.read(1)
        stream.seek(-100, os.SEEK_END)
        stream.write(bytes([byte[0] ^ 1]))
    os.utime(layer.path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def no_parent(layer: Layer) -> None:
    """What is below is gone."""
    layer.parent.unlink()


def other_digest(layer: Layer) -> None:
    """The record is of another layer."""
    record = layer.path.with_suffix(".json")
    _state.write_json(record, {**_state.read_json(record), "digest": "0" * 64})


def other_parent(layer: Layer) -> None:
    """What is below was made again."""
    layer.parent.unlink()
    _qemu_img.create(layer.parent, 8 * MIB)


def broken_record(layer: Layer) -> None:
    """The record is no JSON."""
    layer.path.with_suffix(".json").write_text('{"digest": "')


def listed_record(layer: Layer) -> None:
    """The record is JSON of another kind."""
    layer.path.with_suffix(".json").write_text("[1]")


def broken_packages(layer: Layer) -> None:
    """The list of packages is no JSON."""
    layer.packages.write_text("{")


def no_header(layer: Layer) -> None:
    """The header is gone, with neither size nor time."""
    stat = layer.path.stat()
    with layer.path.open("r+b") as stream:
        stream.write(bytes(512))
    os.utime(layer.path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


WAYS: dict[t.Callable[[Layer], None], str] = {
    truncated: "was written to, or copied",
    flipped: "is damaged: its content is not what was written",
    no_parent: "was made again",
    other_digest: "has the record of another one",
    other_parent: "was made again",
    broken_record: "the record of the cached layer sanitize-",
    listed_record: "the record of the cached layer sanitize-",
    broken_packages: r"\.packages\.json is broken",
    no_header: "the cached layer ",
}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_damaged_layer_is_noticed_and_made_again(cache, way):
    base = cache.base()
    layer = cache.layer(base, "sanitize")
    assert _layers.flaw(layer, with_packages=True) is None
    way(layer)
    wrong = _layers.flaw(layer, with_packages=True)
    assert wrong is not None
    assert re.search(WAYS[way], wrong), wrong
    if not base.exists():
        cache.base()
    assert _layers.previous(cache.workspace, "debian-12", "sanitize") is not None
    disk = cache.workspace.layers / "disk"
    _layers.create(layer, disk)
    assert _layers.commit(layer, disk, {"packages": []}) is True
    assert _layers.flaw(layer, with_packages=True) is None


def test_no_stage_stands_on_a_damaged_layer(cache):
    below = cache.layer(cache.base(), "cloud_init")
    layer = Layer(cache.workspace, "debian-12", "applications", below.path, below.digest, {})
    _guest.check_parent(layer)
    flipped(below)
    with pytest.raises(
        FactoryError, match="is damaged: its content is not what was written; run the stage before this"
    ):
        _guest.check_parent(layer)


@pytest.mark.parametrize("way", [truncated, flipped, other_digest, broken_record, listed_record, no_header])
def test_a_damaged_base_is_noticed(cache, way):
    digest = "7" * 64
    path = _base_vm.base_path(cache.workspace, digest)
    cache.base(digest[:32])
    record = {"stage": "base_vm", "digest": digest, "file_size": path.stat().st_size}
    _state.write_json(path.with_suffix(".json"), {**record, "checksum": _layers.fast_checksum(path)})
    assert _base_vm.intact(path)
    way(_Named(path))
    assert not _base_vm.intact(path)


class _Named:
    """What the ways above need of a layer."""

    def __init__(self, path: Path) -> None:
        self.path = path
