# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Images that stand on others: which those are, and where the disk of one is.

A child begins with what the stage C(applications) of its parent has left, which is hardened and sanitized for neither of
them yet.
"""

from __future__ import annotations

import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _layers, _qemu_img, _state
from ansible_collections.cloudimg.factory.plugins.module_utils._build import Build, Builds
from ansible_collections.cloudimg.factory.plugins.module_utils._definition import nearest, without_names
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import data_digest
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.plugins.module_utils._owner import Owner

DISK_STAGES = ("media", "base_vm", "adopt", "cloud_init", "applications")
"""The stages that make the disk on which a child stands (see «image_parent»)."""

LAST = "applications"
"""The one on whose layer a child stands."""

_DISK_KEYS = (
    "image_os",
    "image_medium",
    "image_installer",
    "image_source_disk",
    "image_parent",
    "image_disk",
    "image_machine",
    "image_packages",
    "image_roles",
)


def lineage(
    name: str, parent_of: t.Callable[[str], str | None], images: t.Container[str], where: t.Callable[[str], str | None]
) -> list[str]:
    """The image ``name``, its parent, that one's parent, and so on.

    :param parent_of: the C(image_parent) of an image.
    :param images: the names of all images.
    :param where: the place at which an image's C(image_parent) stands.
    :raises FactoryError: there is no such parent, or the way leads round in a circle.
    """
    found = [name]
    while True:
        parent = parent_of(found[-1])
        if not parent:
            return found
        if parent not in images:
            raise FactoryError(
                f"there is no image {parent!r}",
                where=where(found[-1]),
                key="image_parent",
                mend=nearest(parent, t.cast("t.Iterable[str]", images)),
            )
        if parent in found:
            circle = " → ".join([*found[found.index(parent) :], parent])
            raise FactoryError(
                f"leads round in a circle: {circle}",
                where=where(found[-1]),
                key="image_parent",
                mend="give one of them an image_medium instead",
            )
        found.append(parent)


def disk_digest(definition: t.Mapping[str, t.Any], inputs: t.Mapping[str, t.Any]) -> str:
    """The digest of what makes the disk on which the children of an image stand: that of its stage C(applications).

    Another title makes another build, but no other disk. Definition and inputs may come from a C(build.json).
    """
    prefixes = tuple(f"{stage}_" for stage in DISK_STAGES)
    stages = inputs.get("stage") or {}
    given = {
        "stage": {name: stages[name] for name in (*DISK_STAGES, "layer") if name in stages},
        "code": {name: code for name, code in (inputs.get("code") or {}).items() if name in DISK_STAGES},
        "variables": {k: v for k, v in (inputs.get("variables") or {}).items() if k.startswith(prefixes)},
        **{name: inputs[name] for name in ("role", "scripts", "files", "answer_file", "parent") if inputs.get(name)},
    }
    made_of = {key: definition.get(key) for key in _DISK_KEYS}
    return data_digest({"definition": without_names(made_of, inputs), "inputs": given})


def ensure_base(
    workspace: _state.Workspace, image: str, parent: str, digest: str, size: int, *, check_mode: bool = False
) -> Result:
    """Have the disk on which the child ``image`` begins.

    :param digest: the parent's :func:`disk_digest`, as it is defined now.
    :param size: bytes of the child's disk. A larger one than the parent's takes an empty overlay of that size.
    :returns: a Result with C(base) = ``{path, digest, size, parent: {image, version, digest}}``; None in check mode where
        the parent has still to be built.
    :raises FactoryError: the parent has no such disk.
    """
    result = Result(extra={"base": None})
    found, reasons = None, []
    for build in Builds(str(workspace.root), _state.check_image_name(parent)).all():
        reason = _fault(workspace, build, digest)
        if reason is None:
            found = build
            break
        reasons.append((build, reason))
    if found is None and check_mode:
        result.act(f"start from {parent}, once that is built")
        return result
    if found is None:
        raise _missing(workspace, image, parent, reasons)
    record = found["stages"][LAST]
    path = Path(record["path"])
    below = {"image": parent, "version": found["version"], "digest": record["digest"]}
    result.extra["base"] = {"path": str(path), "digest": record["digest"], "size": size, "parent": below}
    if not check_mode and not _layers.touch(workspace, path):
        raise _missing(workspace, image, parent, [(found, f"stands on {path.name}, which was removed meanwhile")])
    if _qemu_img.info(path).virtual_size == size:
        return result
    layer = _layers.Layer(workspace, image, "base_vm", path, str(record["digest"]), {"image_disk.size": size})
    result.extra["base"].update(path=str(layer.path), digest=layer.digest)
    if _layers.flaw(layer) is not None:
        result.act(f"make the disk of {parent} larger: {size >> 20} MiB")
        if not check_mode:
            _enlarge(layer, size)
    return result


def disk_lost(
    workspace: _state.Workspace, image: str, descendants: t.Sequence[t.Mapping[str, t.Any]]
) -> t.Callable[[Build], str | None]:
    """For :meth:`Builds.begin`: why a complete build has to be made again for those that are to stand on its disk.

    Layers go from their cache when that outgrows its bound. For the image itself that does not matter any more.

    :param descendants: the C(image), C(parent) and C(digest) (of its build, as it is defined now) of each image that is
        built in the same run and stands on another one.
    """

    def reason(build: Build) -> str | None:
        child = _child_in_need(workspace, image, descendants)
        if child is None:
            return None
        fault = _fault(workspace, build, disk_digest(build["definition"], build.get("inputs") or {}))
        return f"{child} is to stand on {image} {build['version']}, which {fault}" if fault else None

    return reason


def _child_in_need(
    workspace: _state.Workspace, image: str, descendants: t.Sequence[t.Mapping[str, t.Any]]
) -> str | None:
    """An image that is going to be built on the disk of ``image``."""
    for child in descendants:
        if child["parent"] != image:
            continue
        name = _state.check_image_name(str(child["image"]))
        build = Builds(str(workspace.root), name).intact(str(child["digest"]))
        # It is complete itself, and yet built again if its own children want its disk.
        if build is None or disk_lost(workspace, name, descendants)(build):
            return name
    return None


def _enlarge(layer: _layers.Layer, size: int) -> None:
    """Make the layer: an empty overlay that is larger than what is below; the root file system grows at the first boot."""
    overlay = _state.partial_path(layer.path, Owner.of())
    try:
        _qemu_img.create(overlay, size, backing=layer.parent)
        _layers.commit(layer, overlay)
    finally:
        _state.remove(overlay)


def _fault(workspace: _state.Workspace, build: Build, digest: str) -> str | None:
    """Why no child can stand on a build; None where one can."""
    record = build["stages"].get(LAST)
    if not record:
        return f"has not come to the stage {LAST}"
    if disk_digest(build["definition"], build.get("inputs") or {}) != digest:
        return "was built of another definition"
    return _layer_fault(workspace, Path(record["path"]), str(record["digest"]))


def _layer_fault(workspace: _state.Workspace, path: Path, digest: str) -> str | None:
    """What is wrong with a layer in the cache, or with one of those below it."""
    record = _layers.record_of(path) or {}
    if not path.exists() or record.get("digest") != digest:
        return f"stands on {path.name}, which is not in the layer cache any more"
    if "parent" not in record:
        return None
    below = workspace.layers / record["parent"]
    layer = _layers.Layer(workspace, record["image"], record["stage"], below, record["parent_digest"], record["inputs"])
    if layer.path != path:
        return f"stands on {path.name}, which an older version of this collection has made"
    return _layers.flaw(layer) or _layer_fault(workspace, below, record["parent_digest"])


def _missing(workspace: _state.Workspace, image: str, parent: str, reasons: list[tuple[Build, str]]) -> FactoryError:
    """The error for a parent without a disk to stand on; ``reasons`` are those of its builds, the newest first."""
    both = f"build it, as by --limit {parent},{image}"
    where = str(workspace.builds / parent)
    if not reasons:
        return FactoryError(f"{parent} is not built yet", where=where, key="image_parent", mend=both)
    gone = next(((build, reason) for build, reason in reasons if "layer" in reason and build["complete"]), None)
    build, reason = gone or reasons[0]
    return FactoryError(f"{parent} {build['version']} {reason}", where=where, key="image_parent", mend=both)
