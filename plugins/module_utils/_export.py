# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""From the last layer to the artifacts and their descriptor, in one pass for each format."""

from __future__ import annotations

import dataclasses
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import (
    _descriptor,
    _formats,
    _packages,
    _qemu_img,
    _state,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor import Artifact, Descriptor
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import (
    ALGORITHMS,
    cached_digests,
    data_digest,
    file_digests,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._export_describe import describe
from ansible_collections.cloudimg.factory.plugins.module_utils._export_make import make
from ansible_collections.cloudimg.factory.plugins.module_utils._exporters import EXPORTERS, Entry, Request
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

_DRAFT = {name: "0" * length for name, length in zip(ALGORITHMS, (32, 40, 64, 128))}
_OPTIONS = tuple(
    field.name
    for field in dataclasses.fields(Artifact)
    if field.name not in ("path", "size", "virtual_size", "checksums")
)


def export(request: Request, progress: Progress, *, check_mode: bool = False) -> Result:
    """Make what is missing or outdated of the artifacts, the list of packages and the descriptor."""
    _state.check_image_name(request.image)
    _state.check_version(request.version)
    progress.phase("looking at the source")
    result = Result()
    if check_mode and not request.source.exists():
        result.act(f"{request.source.name}: the stage before would make it, then it is exported")
        return result
    chain = _source_chain(request.source)
    digest = _source_digest(request, chain)
    packages = _packages.normalise(request.packages_file) if request.packages_file else None
    old = _former(request, result)
    wanted = [_plan(request, entry, chain[0].virtual_size) for entry in request.formats]
    reasons = {artifact.path: _outdated(request.directory, artifact, old, digest, chain) for artifact in wanted}
    fresh = old is None or any(reasons.values())
    keep = {artifact.path: artifact for artifact in old.artifacts} if old else {}
    artifacts = [artifact if reasons[artifact.path] else keep[artifact.path] for artifact in wanted]
    # The draft shows what is wrong with the definition before the long work begins.
    draft = describe(request, artifacts, digest, None if fresh else old)
    _descriptor.parse(draft.document(), f"definition of {request.image}", mend="correct it in the image's host_vars")
    for path, reason in reasons.items():
        if reason:
            result.act(f"{path}: {reason}")
    listed = request.directory / _packages.FILE
    if packages is not None and packages != _text(listed):
        result.act(f"{listed.name}: {'differs' if listed.exists() else 'is missing'}")
    new = draft
    if not check_mode:
        if any(reasons.values()):
            artifacts = _make(request, artifacts, reasons, progress)
            new = describe(request, artifacts, digest, None)
        if packages is not None and packages != _text(listed):
            _state.write_text(listed, packages)
    target = request.directory / _descriptor.FILE
    if new.dump() != _text(target):
        result.act(f"{target.name}: {'differs' if target.exists() else 'is missing'}")
        if not check_mode:
            _state.write_text(target, new.dump())
    unknown = {path for path, reason in reasons.items() if reason} if check_mode else set()
    result.image = _shown(new, unknown)
    result.diff = {"before": old.document() if old else {}, "after": result.image}
    result.extra = {
        "descriptor": str(target),
        "artifacts": [{**row, "path": str(request.directory / row["path"])} for row in result.image["artifacts"]],
    }
    return result


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def _source_chain(source: Path) -> list[_qemu_img.ImageInfo]:
    """A layer and those below it, all of them sound, and such as QEMU opens as what they are."""
    top = _qemu_img.info(source, chain=True)
    chain = [top, *top.chain]
    for image in chain:
        if image.backing and not image.backing_format:
            raise FactoryError("does not say what format the layer below it has", where=str(image.path))
        if image.data_file or image.encrypted:
            raise FactoryError("is encrypted, or keeps its data in another file", where=str(image.path))
        _qemu_img.check(image.path, image.format)
    return chain


def _source_digest(request: Request, chain: t.Sequence[_qemu_img.ImageInfo]) -> str:
    """What tells this source from another: its layer's digest, else that of the bytes of all its chain."""
    if request.source_digest:
        return request.source_digest
    record = _state.read_json(request.source.with_suffix(".json"))
    if isinstance(record, dict) and record.get("digest"):
        return str(record["digest"])
    return data_digest([file_digests(image.path, ["sha256"]) for image in chain])


def _former(request: Request, result: Result) -> Descriptor | None:
    """The descriptor that is there already, if it can be used."""
    path = request.directory / _descriptor.FILE
    if not path.exists():
        return None
    try:
        return _descriptor.load(path)
    except FactoryError as exc:
        result.act(f"{path.name}: {exc.key + ': ' if exc.key else ''}{exc.problem}")
        return None


def _plan(request: Request, entry: Entry, virtual_size: int) -> Artifact:
    given = {"format": entry} if isinstance(entry, str) else entry
    name = str(given["format"])
    path = _formats.file_name(request.stem, given)
    return Artifact(name, path, 1, virtual_size, dict(_DRAFT), **EXPORTERS[name].options(request, given))


def _outdated(
    directory: Path,
    wanted: Artifact,
    old: Descriptor | None,
    digest: str,
    chain: t.Sequence[_qemu_img.ImageInfo],
) -> str | None:
    """Why an artifact must be made (again); None where it need not."""
    have = next((artifact for artifact in old.artifacts if artifact.path == wanted.path), None) if old else None
    if old is None or have is None:
        return "is not exported yet"
    if old.provenance.source_digest != digest:
        return f"source differs: {old.provenance.source_digest[:12]} → {digest[:12]}"
    for name in ("virtual_size", *_OPTIONS):
        before, after = getattr(have, name), getattr(wanted, name)
        if before != after:
            return f"{name} differs: {before} → {after}"
    path = directory / wanted.path
    if not path.is_file():
        return "is missing"
    # A layer that was made again of the same inputs may hold newer packages.
    later = next((image.path for image in chain if image.path.stat().st_mtime_ns > path.stat().st_mtime_ns), None)
    if later:
        return f"{later.name} was made later"
    if path.stat().st_size != have.size or cached_digests(path) != have.checksums:
        return "checksum differs from the descriptor's"
    return None


def _make(
    request: Request, artifacts: t.Sequence[Artifact], reasons: t.Mapping[str, str | None], progress: Progress
) -> list[Artifact]:
    def forget() -> None:
        # From here to the new descriptor there is none, rather than one that describes other files.
        (request.directory / _descriptor.FILE).unlink(missing_ok=True)

    made = make(request, [item for item in artifacts if reasons[item.path]], progress, forget)
    new = {item.path: item for item in made}
    return [new.get(item.path, item) for item in artifacts]


def _shown(descriptor: Descriptor, unknown: t.Container[str]) -> dict[str, t.Any]:
    """The descriptor without what check mode cannot know of the files ``unknown``."""
    document = descriptor.document()
    for row in document["artifacts"]:
        if row["path"] in unknown:
            del row["size"], row["checksums"]
    return document
