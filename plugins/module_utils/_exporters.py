# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""How a disk becomes a file of each format, and how that file is verified."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import typing as t
import uuid
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import (
    _archives,
    _codecs,
    _descriptor,
    _disk_identity,
    _formats,
    _ovf_write,
    _qcow2_write,
    _qemu_img,
    _raw_write,
    _vmdk_write,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._disk_source import DiskSource
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

CLUSTER_SIZES = {"zstd": 1 << 20, "zlib": 1 << 16}
"""What made the smallest file of a Debian 12, see docs/export.md."""

Entry = t.Union[str, t.Mapping[str, t.Any]]
"""A format, or a format with options, see :data:`_formats.SPECS`."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What to export. ``definition`` and ``stages`` are those of the build, see DESIGN."""

    image: str
    version: str
    directory: Path
    source: Path
    source_digest: str | None = None
    formats: tuple[Entry, ...] = ("qcow2",)
    compression: str = "zstd"
    cluster_size: int | None = None
    level: int | None = None
    ova_certificate: Path | None = None
    ova_key: Path | None = None
    definition: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    definition_digest: str | None = None
    stages: t.Mapping[str, t.Mapping[str, t.Any]] = dataclasses.field(default_factory=dict)
    packages_file: Path | None = None

    @property
    def stem(self) -> str:
        """What the names of all artifacts begin with."""
        return f"{self.image}-{self.version}"

    @property
    def identity(self) -> uuid.UUID:
        """What tells the disk of this version from any other, in formats that have room for it."""
        return uuid.UUID(_descriptor.version_identifier(_descriptor.stable_identifier(self.image), self.version))

    @property
    def signer(self) -> _archives.Signer | None:
        """Who signs OVA files."""
        if not self.ova_certificate or not self.ova_key:
            return None
        return _archives.Signer(self.ova_certificate, self.ova_key)


@dataclasses.dataclass(frozen=True)
class Part:
    """The disk that an archive is made around: a file, and its digests."""

    path: Path
    digests: t.Mapping[str, str]


@dataclasses.dataclass
class Job:
    """One artifact to make. ``options`` has what :meth:`Exporter.options` gave; ``memory`` is the exporter's own."""

    request: Request
    source: DiskSource
    target: Path
    options: t.Mapping[str, t.Any]
    executor: concurrent.futures.Executor
    tick: _qemu_img.Tick
    part: Part | None = None
    memory: t.Any = None

    def need_part(self) -> Part:
        """The part, of a format that has one."""
        if self.part is None:
            raise ValueError("the part has not been made")
        return self.part


class Exporter(t.Protocol):
    """One format. Another one needs one of these in EXPORTERS, its options in _formats, its name in the descriptor's schema."""

    def options(self, request: Request, entry: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        """What besides the source decides on the bytes, as fields of :class:`_descriptor.Artifact`."""

    def part(self, options: t.Mapping[str, t.Any]) -> tuple[str, dict[str, t.Any]] | None:
        """The format and the options of the disk that this one is an archive of, made before."""

    def write(self, job: Job) -> dict[str, str] | None:
        """Write the target: equal bytes for equal input. Returns its digests, where they were computed on the way."""

    def verify(self, job: Job) -> None:
        """Raise FactoryError where the target is damaged, or a guest would not read the same from it as from the source."""


def _verify_disk(job: Job, fmt: str, *, same_size: bool = True) -> None:
    _qemu_img.check(job.target, fmt)
    if same_size and _qemu_img.info(job.target, fmt).virtual_size != job.source.size:
        raise FactoryError("the exported disk has another size than its source", where=str(job.target))
    if not _qemu_img.compare(job.source.path, "qcow2", job.target, fmt, tick=job.tick):
        raise FactoryError(
            "the exported disk differs from its source",
            where=str(job.source.path),
            mend="check the builder's memory and disks",
        )


class _Disk:
    """What the formats that are no archives have in common."""

    def options(self, request: Request, entry: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        return {}

    def part(self, options: t.Mapping[str, t.Any]) -> tuple[str, dict[str, t.Any]] | None:
        return None


class Qcow2(_Disk):
    """A flat compressed qcow2, by our own writer, or by qemu-img where there is no libzstd."""

    def options(self, request: Request, entry: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        compression = entry.get("compression") or request.compression
        given = entry.get("cluster_size")
        size = _formats.cluster_size(given) if given else request.cluster_size or CLUSTER_SIZES[compression]
        level = entry.get("level")
        if level is not None and compression == "zstd":
            _codecs.need_zstd()
        if level is None and compression == request.compression and (compression == "zlib" or _codecs.has_zstd()):
            level = request.level
        return {"compression": compression, "cluster_size": size, "level": level}

    def write(self, job: Job) -> dict[str, str] | None:
        compression, size, level = (job.options[key] for key in ("compression", "cluster_size", "level"))
        if compression == "zlib" or _codecs.has_zstd():
            _qcow2_write.write(
                *(job.source, job.target, job.executor),
                compression=compression,
                cluster_size=size,
                level=level,
                tick=job.tick,
            )
        else:
            _convert(job, "qcow2", compressed=compression, cluster_size=size)
        return None  # its header is written last

    def verify(self, job: Job) -> None:
        _qemu_img.safe_info(job.target)
        _verify_disk(job, "qcow2")


def _convert(job: Job, fmt: str, **options: t.Any) -> None:
    _qemu_img.convert(job.source.path, job.target, source_fmt="qcow2", target_fmt=fmt, tick=job.tick, **options)


class Raw(_Disk):
    """The disk as it is, with holes."""

    def write(self, job: Job) -> dict[str, str] | None:
        _raw_write.write_plain(job.source, job.target, tick=job.tick)
        return None

    def verify(self, job: Job) -> None:
        _verify_disk(job, "raw")


class CompressedRaw(_Disk):
    """The disk as one compressed file."""

    def __init__(self, method: str) -> None:
        self._method = method

    def options(self, request: Request, entry: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        if self._method == "zst":
            _codecs.need_zstd()
        level = entry.get("level")
        return {"level": _raw_write.METHODS[self._method].level if level is None else level}

    def write(self, job: Job) -> dict[str, str] | None:
        job.memory = _raw_write.write(
            *(job.source, job.target, job.executor), method=self._method, level=job.options["level"], tick=job.tick
        )
        return dict(job.memory.digests)

    def verify(self, job: Job) -> None:
        _raw_write.verify(
            *(job.source, job.target, job.executor),
            method=self._method,
            level=job.options["level"],
            lengths=job.memory.lengths,
            tick=job.tick,
        )


class Vmdk(_Disk):
    """A VMDK: streamOptimized by our own writer, monolithicSparse by qemu-img."""

    def options(self, request: Request, entry: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        return {"subformat": entry.get("subformat") or "streamOptimized"}

    def write(self, job: Job) -> dict[str, str] | None:
        identity = job.request.identity
        if job.options["subformat"] == "streamOptimized":
            return _vmdk_write.write(
                *(job.source, job.target, job.executor),
                name=f"{job.request.stem}.vmdk",
                cid=_disk_identity.cid(identity),
                tick=job.tick,
            )
        # The text in it names the file, so it is made under the name that it will have.
        _convert(job, "vmdk", options={"subformat": job.options["subformat"]})
        _disk_identity.settle(job.target, "vmdk", identity, name=f"{job.request.stem}.vmdk")
        return None

    def verify(self, job: Job) -> None:
        _verify_disk(job, "vmdk")


class Converted(_Disk):
    """What qemu-img writes, but for the numbers that it draws."""

    def __init__(self, name: str, fmt: str) -> None:
        self._name = name
        self._fmt = fmt

    def _arguments(self, options: t.Mapping[str, t.Any]) -> dict[str, str]:
        return {}

    def write(self, job: Job) -> dict[str, str] | None:
        _convert(job, self._fmt, options=self._arguments(job.options))
        _disk_identity.settle(job.target, self._name, job.request.identity)
        return None

    def verify(self, job: Job) -> None:
        _verify_disk(job, self._fmt, same_size=job.options.get("force_size") is not False)


class Vhd(Converted):
    """A VHD. Unless its size is forced, it is rounded up to what cylinders, heads and sectors can express."""

    def options(self, request: Request, entry: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        forced = entry.get("force_size")
        return {"subformat": entry.get("subformat") or "dynamic", "force_size": True if forced is None else forced}

    def _arguments(self, options: t.Mapping[str, t.Any]) -> dict[str, str]:
        return {"subformat": options["subformat"], "force_size": "on" if options["force_size"] else "off"}


class Ova:
    """A virtual machine: descriptor, manifest, certificate, disk."""

    def options(self, request: Request, entry: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        signer = request.signer
        return {
            "ovf": entry.get("ovf") or _ovf_write.VERSIONS[0],
            "controller": entry.get("controller") or "ide",
            "nic": entry.get("nic") or "vmxnet3",
            "signer": signer.check() if signer else None,
        }

    def part(self, options: t.Mapping[str, t.Any]) -> tuple[str, dict[str, t.Any]] | None:
        return "vmdk", {"subformat": "streamOptimized"}

    def write(self, job: Job) -> dict[str, str] | None:
        stem, part = job.request.stem, job.need_part()
        machine = self._machine(job, part)
        files = {f"{stem}.ovf": _ovf_write.document(machine, job.options["ovf"])}
        sums = {name: _archives.content_digest(content) for name, content in files.items()}
        files[f"{stem}.mf"] = _archives.manifest({**sums, machine.disk: part.digests["sha256"]})
        signer = job.request.signer
        if signer:
            scratch = job.target.with_name(f"{job.target.name}.mf")
            files[f"{stem}.cert"] = signer.sign(files[f"{stem}.mf"], f"{stem}.mf", scratch)
        return _archives.pack(job.target, files, part.path, machine.disk, tick=job.tick)

    @staticmethod
    def _machine(job: Job, part: Part) -> _ovf_write.Machine:
        wanted = job.request.definition
        system, machine = (wanted.get(key) or {} for key in ("image_os", "image_machine"))
        return _ovf_write.Machine(
            name=job.request.image,
            title=wanted.get("image_title") or job.request.image,
            description=wanted.get("image_description") or "",
            version=job.request.version,
            distribution=str(system.get("distribution", "")),
            system=" ".join(str(system[key]) for key in ("distribution", "version", "arch") if system.get(key)),
            memory=int(machine.get("memory_mib") or 2048),
            cpus=int(machine.get("cpus") or 2),
            firmware=str(machine.get("firmware") or "bios"),
            disk=f"{job.request.stem}.vmdk",
            disk_size=part.path.stat().st_size,
            capacity=job.source.size,
            used=job.source.data,
            controller=job.options["controller"],
            nic=job.options["nic"],
        )

    def verify(self, job: Job) -> None:
        _archives.verify_ova(job.target, job.need_part().digests["sha256"])


class Box:
    """A Vagrant box for the provider libvirt."""

    def options(self, request: Request, entry: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        return EXPORTERS["qcow2"].options(request, entry)

    def part(self, options: t.Mapping[str, t.Any]) -> tuple[str, dict[str, t.Any]] | None:
        return "qcow2", {key: options[key] for key in ("compression", "cluster_size", "level")}

    def write(self, job: Job) -> dict[str, str] | None:
        files = _archives.box_files(job.source.size)
        return _archives.pack(job.target, files, job.need_part().path, "box.img", compressed=True, tick=job.tick)

    def verify(self, job: Job) -> None:
        _archives.verify_box(job.target, job.need_part().digests["sha256"])


EXPORTERS: dict[str, Exporter] = {
    "qcow2": Qcow2(),
    "raw": Raw(),
    "raw.gz": CompressedRaw("gz"),
    "raw.xz": CompressedRaw("xz"),
    "raw.zst": CompressedRaw("zst"),
    "vmdk": Vmdk(),
    "vdi": Converted("vdi", "vdi"),
    "vhd": Vhd("vhd", "vpc"),
    "vhdx": Converted("vhdx", "vhdx"),
    "ova": Ova(),
    "box": Box(),
}
