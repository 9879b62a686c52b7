# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""A build as an artifact in an OCI registry: its tags, its annotations, its manifest; and the same read back.

As EGI's own builds are pushed (EGI-Federation/fedcloud-vmi-templates, builder/upload.sh) and as atrope's harbor source reads
them: a tag without a hyphen that moves, C(eu.egi.cloud.tag) on the one layer, C(org.openstack.glance.*) beside it.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor import Artifact, Descriptor
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_registry import LAYER_TITLE, Found, manifest

MEDIA_TYPE = "application/x-qemu-disk"
ARTIFACT_TYPE = "application/vnd.unknown.artifact.v1"
"""What C(oras push) writes where nobody says another one, as EGI's builds have it."""
IDENTIFIER = "cloudimg.identifier"
IMAGE = "cloudimg.image"
VERSION = "org.opencontainers.image.version"
EGI_TAG = "eu.egi.cloud.tag"
GLANCE = "org.openstack.glance."
FORMATS = {"qcow2": "qcow2", "raw": "raw", "vmdk": "vmdk", "vdi": "vdi", "vhd": "vhd", "vhdx": "vhdx"}
"""What Glance calls a format (C(disk_format)); compressed files and archives have no word there."""
_ODD = re.compile(r"[^A-Za-z0-9._]")
DATED = re.compile(r"([A-Za-z0-9_][A-Za-z0-9._]*)-(\d{4}-\d{2}-\d{2}-[0-9a-f]{8})")


@dataclasses.dataclass(frozen=True)
class Options:
    """What a user says about it beside the build.

    :ivar annotations: of the manifest; an empty value leaves one out.
    :ivar layer_annotations: of the layer, in the same way.
    """

    artifact: str = ""
    media_type: str = MEDIA_TYPE
    annotations: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    layer_annotations: t.Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Package:
    """What is to be pushed."""

    artifact: Artifact
    layer: str
    moving: str
    dated: str
    manifest: Found


def chosen(build: Descriptor, wanted: str, where: str) -> Artifact:
    """The artifact of that format or file name; by default the first that Glance knows. Raises FactoryError for none."""
    known = [artifact for artifact in build.artifacts if artifact.format in FORMATS]
    for artifact in known if not wanted else build.artifacts:
        if not wanted or wanted in (artifact.format, artifact.path):
            if artifact.format not in FORMATS:
                break
            return artifact
    has = ", ".join(dict.fromkeys(artifact.format for artifact in build.artifacts))
    problem = f"{wanted} is not among what can be pushed" if wanted else f"has {has} only"
    raise FactoryError(
        f"{problem}; a site that pulls it knows {', '.join(FORMATS)}",
        where=where,
        key="artifacts",
        mend=f"name one of them: {', '.join(artifact.path for artifact in known)}" if known else "export one of those",
    )


def moving_tag(build: Descriptor) -> str:
    """C(12) or C(24.04): without a hyphen, by which sites tell it from the dated ones."""
    return _ODD.sub("_", build.os.version)[:64].lstrip(".") or "latest"


def package(build: Descriptor, options: Options, where: str) -> Package:
    """The manifest and tags of a build; the same for the same descriptor and options."""
    artifact = chosen(build, options.artifact, where)
    sha256 = artifact.checksums["sha256"]
    moving = moving_tag(build)
    egi_tag = f"{build.created[:10]}-{sha256[:8]}"
    title = {"eu.egi.cloud.description": build.description or build.title}
    layer = {
        LAYER_TITLE: artifact.path,
        EGI_TAG: egi_tag,
        **title,
        **{
            GLANCE + name: value
            for name, value in {
                "os_distro": build.os.distribution,
                "os_version": build.os.version,
                "os_type": "linux",
                "architecture": build.os.arch,
                "disk_format": FORMATS[artifact.format],
                "container_format": "bare",
                "os_admin_user": build.attributes.get("os_admin_user", ""),
                "min_disk": str(-(-build.min_disk // (1 << 30))),
                "min_ram": str(build.memory or ""),
            }.items()
        },
    }
    about = {
        "org.opencontainers.image.created": build.created,
        LAYER_TITLE: build.title,
        "org.opencontainers.image.description": build.description,
        "org.opencontainers.image.revision": build.provenance.definition_digest or build.provenance.source_digest,
        VERSION: build.version,
        "org.opencontainers.image.vendor": (build.endorser or {}).get("organisation", ""),
        IMAGE: build.image,
        IDENTIFIER: build.identifier,
        "cloudimg.expires": build.expires or "",
    }
    blob = f"sha256:{sha256}"
    row = {
        "mediaType": options.media_type,
        "digest": blob,
        "size": artifact.size,
        "annotations": _said({**layer, **options.layer_annotations}),
    }
    found = manifest([row], _said({**about, **options.annotations}), artifact_type=ARTIFACT_TYPE)
    return Package(artifact, blob, moving, f"{moving}-{egi_tag}", found)


def _said(annotations: t.Mapping[str, str]) -> dict[str, str]:
    return {key: str(value) for key, value in sorted(annotations.items()) if value not in ("", None)}


def described(found: Found, tags: t.Sequence[str]) -> dict[str, t.Any]:
    """An artifact of a registry, for the results of modules."""
    layer = found.layers[0] if found.layers else {}
    annotations = found.annotations
    return {
        "digest": found.digest,
        "tags": sorted(tags),
        "image": annotations.get(IMAGE),
        "identifier": annotations.get(IDENTIFIER),
        "version": annotations.get(VERSION),
        "created": annotations.get("org.opencontainers.image.created"),
        "annotations": annotations,
        "layer": {
            "digest": layer.get("digest"),
            "size": layer.get("size"),
            "media_type": layer.get("mediaType"),
            "annotations": layer.get("annotations") or {},
        },
    }
