# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""From the last layer to the artifacts and their descriptor, in one pass for each format."""

from __future__ import annotations

import dataclasses
import os
import typing as t
from pathlib import Path
from urllib.parse import urlsplit

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _packages, _qemu_img, _state
from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor import Artifact, Descriptor
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import (
    ALGORITHMS,
    cached_digests,
    data_digest,
    file_digests,
    remember_digests,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.plugins.module_utils._versions import COLLECTION

CLUSTER_SIZES = {"zstd": 1 << 20, "zlib": 1 << 16}
"""What made the smallest file of a Debian 12, see docs/export.md."""

_DRAFT = {name: "0" * length for name, length in zip(ALGORITHMS, (32, 40, 64, 128))}


@dataclasses.dataclass(frozen=True)
class Request:
    """What to export. ``definition`` and ``stages`` are those of the build, see DESIGN."""

    image: str
    version: str
    directory: Path
    source: Path
    source_digest: str | None = None
    formats: tuple[str, ...] = ("qcow2",)
    compression: str = "zstd"
    cluster_size: int | None = None
    definition: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    definition_digest: str | None = None
    stages: t.Mapping[str, t.Mapping[str, t.Any]] = dataclasses.field(default_factory=dict)
    packages_file: Path | None = None


class Exporter(t.Protocol):
    """One format. Another one needs one of these in EXPORTERS, and its name in the descriptor's schema."""

    suffix: str

    def options(self, request: Request) -> dict[str, t.Any]:
        """What besides the source decides on the bytes, as fields of :class:`Artifact`."""

    def write(self, source: Path, target: Path, options: t.Mapping[str, t.Any], tick: _qemu_img.Tick) -> None:
        """Write the qcow2 ``source``, with all that is below it, to ``target``: equal bytes for equal input."""

    def verify(self, source: Path, target: Path, tick: _qemu_img.Tick) -> None:
        """Raise FactoryError where ``target`` is damaged, or a guest would not read the same from it as from source."""


class Qcow2:
    """A flat compressed qcow2."""

    suffix = "qcow2"

    def options(self, request: Request) -> dict[str, t.Any]:
        size = request.cluster_size or CLUSTER_SIZES[request.compression]
        return {"compression": request.compression, "cluster_size": size}

    def write(self, source: Path, target: Path, options: t.Mapping[str, t.Any], tick: _qemu_img.Tick) -> None:
        _qemu_img.convert(
            source,
            target,
            source_fmt="qcow2",
            target_fmt="qcow2",
            compressed=options["compression"],
            cluster_size=options["cluster_size"],
            tick=tick,
        )

    def verify(self, source: Path, target: Path, tick: _qemu_img.Tick) -> None:
        _qemu_img.check(target)
        if _qemu_img.safe_info(target).virtual_size != _qemu_img.info(source).virtual_size:
            raise FactoryError("the exported disk has another size than its source", where=str(target))
        if not _qemu_img.compare(source, "qcow2", target, "qcow2", tick=tick):
            raise FactoryError(
                "the exported disk differs from its source",
                where=str(source),
                mend="check the builder's memory and disks",
            )


EXPORTERS: dict[str, Exporter] = {"qcow2": Qcow2()}


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
    wanted = [_plan(request, name, chain[0].virtual_size) for name in request.formats]
    reasons = {artifact.path: _outdated(request.directory, artifact, old, digest, chain) for artifact in wanted}
    fresh = old is None or any(reasons.values())
    keep = {artifact.path: artifact for artifact in old.artifacts} if old else {}
    artifacts = [artifact if reasons[artifact.path] else keep[artifact.path] for artifact in wanted]
    # The draft shows what is wrong with the definition before the long work begins.
    draft = _describe(request, artifacts, digest, None if fresh else old)
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
            new = _describe(request, artifacts, digest, None)
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


def _plan(request: Request, name: str, virtual_size: int) -> Artifact:
    exporter = EXPORTERS[name]
    path = f"{request.image}-{request.version}.{exporter.suffix}"
    return Artifact(name, path, 1, virtual_size, dict(_DRAFT), **exporter.options(request))


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
    for name in ("format", "virtual_size", "compression", "cluster_size"):
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
    with _state.explain_os_errors(request.directory):
        request.directory.mkdir(parents=True, exist_ok=True)
    _state.reap_partials(request.directory)
    return [_make_one(request, item, progress) if reasons[item.path] else item for item in artifacts]


def _make_one(request: Request, artifact: Artifact, progress: Progress) -> Artifact:
    exporter = EXPORTERS[artifact.format]
    final = request.directory / artifact.path
    with _state.partial(final) as path:

        def tick(percent: float) -> None:
            written = path.stat().st_blocks * 512 if path.exists() else 0
            done = int(artifact.virtual_size * percent / 100)
            progress.report(percent=round(percent, 1), done=done, total=artifact.virtual_size, disk=written)

        progress.phase(f"compressing into {final.name}")
        exporter.write(request.source, path, dataclasses.asdict(artifact), tick)
        progress.phase(f"comparing {final.name} with its source")
        exporter.verify(request.source, path, tick)
        progress.phase(f"computing checksums of {final.name}")
        digests = file_digests(path)
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        # From here to the new descriptor there is none, rather than one that describes another file.
        (request.directory / _descriptor.FILE).unlink(missing_ok=True)
    remember_digests(final, digests)
    return dataclasses.replace(artifact, size=final.stat().st_size, checksums=digests)


def _describe(request: Request, artifacts: t.Sequence[Artifact], digest: str, old: Descriptor | None) -> Descriptor:
    """The descriptor of these artifacts; with ``old`` they are its artifacts, as old and of the same make."""
    wanted = request.definition
    created = old.created if old else _descriptor.now()
    system = wanted.get("image_os") or {}
    machine = wanted.get("image_machine") or {}
    endorser = wanted.get("image_endorser")
    return Descriptor(
        image=request.image,
        identifier=_descriptor.stable_identifier(request.image),
        version=request.version,
        title=wanted.get("image_title") or request.image,
        description=wanted.get("image_description") or "",
        os=_descriptor.OperatingSystem(*(str(system.get(key, "")) for key in ("distribution", "version", "arch"))),
        min_disk=artifacts[0].virtual_size,
        artifacts=tuple(artifacts),
        created=created,
        provenance=_descriptor.Provenance(
            source_digest=digest,
            qemu=old.provenance.qemu if old else _qemu_img.version(),
            collection=old.provenance.collection if old else COLLECTION,
            definition_digest=request.definition_digest,
            stages={name: str(made["digest"]) for name, made in request.stages.items() if made.get("digest")},
        ),
        groups=tuple(wanted.get("image_groups") or ()),
        memory=machine.get("memory_mib"),
        cpu=machine.get("cpus"),
        attributes={key: str(value) for key, value in (wanted.get("image_attributes") or {}).items()},
        expires=_descriptor.expiry(created, wanted.get("image_expires")),
        endorser=dict(endorser) if endorser else None,
        source=_source(request),
        packages=_packages.FILE if request.packages_file else None,
        scores=_scores(request),
        # What was judged is what is still there.
        assess=old.assess if old else None,
    )


def _scores(request: Request) -> dict[str, t.Any] | None:
    """The hardening scores that the stage harden found, as the descriptor has them; None where there are none."""
    found = ((request.stages.get("harden") or {}).get("facts") or {}).get("scores") or {}
    scores: dict[str, t.Any] = {}
    for name, text in (("lynis", "version"), ("openscap", "profile")):
        given = found.get(name) or {}
        row = {key: given[key] for key in ("before", "after") if isinstance(given.get(key), (int, float))}
        if "after" in row:
            scores[name] = {**row, text: str(given[text])} if given.get(text) else row
    return scores or None


def _source(request: Request) -> dict[str, str] | None:
    """What the image was made from: the medium, or the layer of another image."""
    parent = (request.stages.get("base_vm") or {}).get("parent") or {}
    if parent:
        return {
            "family": "parent",
            **{key: str(parent[key]) for key in ("image", "version", "digest") if parent.get(key)},
        }
    return _medium(request)


def _medium(request: Request) -> dict[str, str] | None:
    medium = request.stages.get("media")
    if not medium:
        return None
    named = (request.definition.get("image_medium") or {}).get("url")
    if named:
        # Neither the user name nor the token of a download is anybody's business.
        parts = urlsplit(named)
        named = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    name = named or Path(str(medium.get("path", ""))).name
    found = {"family": str(medium.get("family", "")), "sha256": str(medium.get("sha256", ""))}
    return {**found, "source": name} if name else found


def _shown(descriptor: Descriptor, unknown: t.Container[str]) -> dict[str, t.Any]:
    """The descriptor without what check mode cannot know of the files ``unknown``."""
    document = descriptor.document()
    for row in document["artifacts"]:
        if row["path"] in unknown:
            del row["size"], row["checksums"]
    return document
