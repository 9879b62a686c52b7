# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Which artifact of a build goes to a StratusLab Marketplace, and what its size and checksums are there.

They are those of the image as it is without the compression that its file came in («size of the uncompressed image on disk»,
ManifestInfo.py): a client unpacks it before it computes the identifier. Compression within qcow2 is part of the image.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _state
from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor import Artifact, Descriptor
from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor_files import checked
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import Digester
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._import_stream import decompress

FORMATS = {"qcow2": ("qcow2", ""), "raw": ("raw", ""), "raw.gz": ("raw", "gz"), "raw.xz": ("raw", "xz")}
"""Our formats: the Marketplace's word for the image (ManifestInfo.py, imageFormats), and for the file's compression."""

_KINDS = {"gz": "gzip", "xz": "xz"}
_SIDECAR = ".unpacked.json"


@dataclasses.dataclass(frozen=True)
class Image:
    """An image as the Marketplace describes it: bytes, checksums (lower-case hex by our names), format, compression."""

    size: int
    checksums: dict[str, str]
    format: str
    compression: str


def choose(build: Descriptor, wanted: str | None, where: str) -> Artifact:
    """The artifact of that format or file name, by default the first one that the Marketplace has a word for.

    :raises FactoryError: there is none, or it is of another format.
    """
    known = [artifact for artifact in build.artifacts if artifact.format in FORMATS]
    if wanted is None:
        if known:
            return known[0]
        formats = ", ".join(artifact.format for artifact in build.artifacts)
        raise FactoryError(
            f"has {formats} only, a StratusLab Marketplace knows {', '.join(FORMATS)}",
            where=where,
            key="artifacts",
            mend="export one of these, too (image_formats)",
        )
    found = next((artifact for artifact in build.artifacts if wanted in (artifact.format, artifact.path)), None)
    if found is None:
        there = ", ".join(f"{artifact.format} ({artifact.path})" for artifact in build.artifacts)
        raise FactoryError(f"has no {wanted}", where=where, key="artifacts", mend=f"choose among {there}")
    if found.format not in FORMATS:
        raise FactoryError(
            f"{found.path} is {found.format}, a StratusLab Marketplace knows {', '.join(FORMATS)}",
            where=where,
            key="artifacts",
            mend="choose one of these",
        )
    return found


def describe(descriptor_path: Path, build: Descriptor, artifact: Artifact) -> Image:
    """Size and checksums of an artifact, once its file is what the descriptor says; a compressed one is unpacked for that.

    :raises FactoryError: the file is missing, another one, damaged, or unpacks to more than the disk's size.
    """
    path = checked(descriptor_path, build, artifact)
    return _described(build, artifact) or _unpacked(path, artifact)


def sha1(descriptor_path: Path, build: Descriptor, artifact: Artifact) -> str:
    """The SHA-1 of which the identifier is made; the file is only read where the descriptor does not tell."""
    image = _described(build, artifact) or _unpacked(checked(descriptor_path, build, artifact), artifact)
    return image.checksums["sha1"]


def _described(build: Descriptor, artifact: Artifact) -> Image | None:
    """What the descriptor says itself: of what is not compressed, or is there uncompressed as well."""
    kind, compression = FORMATS[artifact.format]
    plain = artifact
    if compression:
        twins = [one for one in build.artifacts if one.format == kind and one.virtual_size == artifact.virtual_size]
        if not twins:
            return None
        plain = twins[0]
    return Image(plain.size, dict(plain.checksums), kind, compression)


def _unpacked(path: Path, artifact: Artifact) -> Image:
    kind, compression = FORMATS[artifact.format]
    sidecar = path.with_name(path.name + _SIDECAR)
    # What was unpacked once is known by the checksum of the file, which was just compared.
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(sidecar.read_text(encoding="utf-8"))
        if known["sha256"] == artifact.checksums["sha256"]:
            return Image(int(known["size"]), dict(known["checksums"]), kind, compression)
    size = 0
    with Digester() as digester:
        for piece in decompress(path, _KINDS[compression], lambda: None):
            size += len(piece)
            if size > artifact.virtual_size:
                break
            digester.update(piece)
    if size != artifact.virtual_size:
        raise FactoryError(
            f"does not unpack to {artifact.virtual_size} bytes, as its descriptor says",
            where=str(path),
            key="artifacts",
            mend="run the export stage again",
        )
    image = Image(size, digester.hexdigests(), kind, compression)
    record: dict[str, t.Any] = {
        "sha256": artifact.checksums["sha256"],
        "size": image.size,
        "checksums": image.checksums,
    }
    with contextlib.suppress(FactoryError):  # where one must not write beside it, it is unpacked again next time
        _state.write_json(sidecar, record)
    return image
