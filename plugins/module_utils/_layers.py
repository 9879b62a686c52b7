# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Layers: which one an input digest names, whether it is in the cache and whole, and how a finished one gets there."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _qemu_img, _state
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import data_digest, fast_checksum
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

RECIPE = 1
"""Raise it when the same inputs come to make another layer."""

_FREE = 1 << 30
"""Bytes for what a stage may write."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer as its inputs name it, whether it exists or not.

    :ivar inputs: everything beside the parent that makes it what it is, by name; kept with the layer to tell later what
        changed, so secrets must come as digests.
    """

    workspace: _state.Workspace
    image: str
    stage: str
    parent: Path
    parent_digest: str
    inputs: t.Mapping[str, t.Any]

    @property
    def digest(self) -> str:
        """The digest of all that goes into it, its parent included."""
        return data_digest(
            {"recipe": RECIPE, "stage": self.stage, "parent": self.parent_digest, "inputs": dict(self.inputs)}
        )

    @property
    def path(self) -> Path:
        """Where it is (to be) kept."""
        return self.workspace.layers / f"{self.stage}-{self.digest[:32]}.qcow2"

    @property
    def packages(self) -> Path:
        """Where the list of installed packages is (to be) kept, for a stage that makes one."""
        return self.path.with_suffix(".packages.json")


def digest_of(path: Path) -> str:
    """The digest of a layer (or base) in the cache, as the record beside it tells.

    :raises FactoryError: the layer or its record is not there.
    """
    record = record_of(path) or {}
    if not path.exists() or not isinstance(record.get("digest"), str):
        raise FactoryError("is not in the layer cache", where=str(path), mend="run the stage before this one again")
    return str(record["digest"])


def record_of(path: Path) -> dict[str, t.Any] | None:
    """The record beside a layer (or base) in the cache: {} where there is none, None where it is broken."""
    try:
        record = _state.read_json(path.with_suffix(".json"), {})
    except FactoryError:
        return None
    return record if isinstance(record, dict) else None


def damage(path: Path, record: t.Mapping[str, t.Any]) -> str | None:
    """What is wrong with the content of a layer (or base), by its metadata and the checksum in its record, if any."""
    try:
        _qemu_img.check(path)
    except FactoryError as exc:
        return str(exc)
    known = record.get("checksum")
    try:
        if known and known != fast_checksum(path):
            return f"{path.name} is damaged: its content is not what was written"
    except FileNotFoundError:
        raise
    except OSError as exc:
        return f"{path.name} cannot be read: {exc.strerror}"
    return None


def touch(workspace: _state.Workspace, path: Path) -> bool:
    """Note that a disk in the cache is used; False where it was removed meanwhile to keep the cache within its bound."""
    with _state.lock(workspace.cache_lock, wait=60, busy="another process looks after the layer cache"):
        record = path.with_suffix(".json")
        if not path.exists() or not record.exists():
            return False
        with contextlib.suppress(PermissionError):
            os.utime(record)
        return True


def stamp(path: Path) -> list[int]:
    """What changes when a finished disk is replaced or written to."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def flaw(layer: Layer, with_packages: bool = False) -> str | None:
    """Why a layer cannot be taken from the cache; None when it can."""
    try:
        return _flaw(layer, with_packages)
    except FileNotFoundError:  # it was removed meanwhile, to keep the cache within its bound
        return _what_changed(layer)


def _flaw(layer: Layer, with_packages: bool) -> str | None:
    record = record_of(layer.path)
    if record is None:
        return f"the record of the cached layer {layer.path.name} is broken"
    if not layer.path.exists() or not record:
        return _what_changed(layer)
    if record.get("digest") != layer.digest:
        return f"the cached layer {layer.path.name} has the record of another one"
    if record.get("stamp") != stamp(layer.path):
        return f"the cached layer {layer.path.name} was written to, or copied"
    if not layer.parent.exists() or record.get("parent_stamp") != stamp(layer.parent):
        return f"the disk below it ({layer.parent.name}) was made again"
    if with_packages and not _listed(layer.packages):
        return f"{layer.packages.name} is {'broken' if layer.packages.exists() else 'gone'}"
    wrong = damage(layer.path, record)
    return f"the cached layer {wrong}" if wrong else None


def _listed(path: Path) -> bool:
    """Whether there is a list of packages."""
    try:
        return bool(_state.read_json(path))
    except FactoryError:
        return False


def previous(workspace: _state.Workspace, image: str, stage: str) -> dict[str, t.Any]:
    """The record of the newest disk that a stage made for an image, with any inputs; {} where there is none."""
    records = (record_of(path) or {} for path in workspace.layers.glob(f"{stage}-*.json"))
    ours = [record for record in records if record.get("stage") == stage and record.get("image") == image]
    newest: dict[str, t.Any] = max(ours, key=lambda record: str(record.get("created")), default={})
    return newest


def changed(before: t.Mapping[str, t.Any], after: t.Mapping[str, t.Any]) -> list[str]:
    """The names of inputs that differ."""
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


def _before(layer: Layer) -> dict[str, t.Any]:
    """The inputs of the layer before, its parent among them; {} where there is none."""
    before = previous(layer.workspace, layer.image, layer.stage)
    return {**before.get("inputs", {}), "the layer below": before.get("parent_digest")} if before else {}


def _what_changed(layer: Layer) -> str:
    before = _before(layer)
    if not before:
        return f"this image has no {layer.stage} layer yet"
    names = changed(before, {**layer.inputs, "the layer below": layer.parent_digest})
    return f"changed since the last layer: {', '.join(names) or 'nothing, but that layer was removed'}"


def diff(layer: Layer) -> dict[str, t.Any]:
    """The inputs of the layer before and of this one, for diff mode."""
    before = previous(layer.workspace, layer.image, layer.stage)
    return {
        "before_header": f"{layer.stage} layer {str(before.get('digest', 'none'))[:12]}",
        "after_header": f"{layer.stage} layer {layer.digest[:12]}",
        "before": _before(layer),
        "after": {**layer.inputs, "the layer below": layer.parent_digest},
    }


def create(layer: Layer, path: Path) -> None:
    """Make the empty overlay at ``path`` on which the stage is to work."""
    below = _qemu_img.info(layer.parent, chain=True)
    held = sum(image.actual_size for image in (below, *below.chain))
    # what is below twice: unpacked to be worked on, and in the end once more to be compared with
    _state.need_space(layer.workspace.layers, 2 * held + _FREE, f"the {layer.stage} layer")
    _qemu_img.create(path, None, backing=layer.parent)


def facts(layer: Layer) -> dict[str, t.Any]:
    """What the stage has found out about a layer in the cache."""
    return dict((record_of(layer.path) or {}).get("facts") or {})


def commit(
    layer: Layer,
    disk: Path,
    packages: t.Mapping[str, t.Any] | None = None,
    found: t.Mapping[str, t.Any] | None = None,
) -> bool:
    """Give a finished overlay its final name, with its record (and ``found``, see :func:`facts`) beside it.

    Where another build has made the very same layer meanwhile, that one stays (images may stand on it already),
    ``disk`` goes, and the answer is False.
    """
    _qemu_img.check(disk)
    with _state.explain_os_errors(disk):
        _hand_over(disk, layer.workspace.layers)
        handle = os.open(disk, os.O_RDONLY)
        try:
            os.fsync(handle)  # the record must not outlive the data in a power failure
        finally:
            os.close(handle)
    record_path = layer.path.with_suffix(".json")
    busy = f"another build keeps the layer {layer.path.name}"
    checksum = fast_checksum(disk)
    with _state.lock(layer.workspace.cache_lock, wait=60, busy=busy):
        if flaw(layer, packages is not None) is None:
            _state.remove(disk)
            return False
        record_path.unlink(missing_ok=True)
        record = {
            "stage": layer.stage,
            "image": layer.image,
            "digest": layer.digest,
            "inputs": dict(layer.inputs),
            "parent": layer.parent.name,
            "parent_digest": layer.parent_digest,
            "parent_stamp": stamp(layer.parent),
            "created": _descriptor.now(),
            "stamp": stamp(disk),
            "checksum": checksum,
            "facts": dict(found or {}),
        }
        with _state.explain_os_errors(layer.path):
            if packages is not None:
                _state.write_json(layer.packages, packages)
                _hand_over(layer.packages, layer.workspace.layers)
            disk.rename(layer.path)
            _state.write_json(record_path, record)
            _hand_over(record_path, layer.workspace.layers)
    return True


def _hand_over(path: Path, folder: Path) -> None:
    """Let what root made belong to whom the workspace belongs."""
    owner = folder.stat()
    if os.geteuid() == 0:
        shutil.chown(path, owner.st_uid, owner.st_gid)
    with contextlib.suppress(PermissionError):
        path.chmod(0o644)
