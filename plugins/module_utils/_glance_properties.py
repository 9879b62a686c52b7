# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What Glance is told of a build: attributes and properties, out of its descriptor.

Names and values are those of Glance's common image properties; C(vmcatcher_event_*), C(appdb_id) and C(image_hash) are what
vmcatcher and atrope set, which sites of EGI read.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor import (
    Artifact,
    Descriptor,
    version_identifier,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

OURS = "cloudimg_"
IDENTIFIER = "cloudimg_identifier"
IMAGE = "cloudimg_image"
VERSION = "cloudimg_version"
STATE = "cloudimg_state"
PUBLISHER = "cloudimg_publisher"
SHA512 = "cloudimg_sha512"
INCOMING, CANDIDATE, PUBLISHED = "incoming", "candidate", "published"
"""Values of :data:`STATE`."""

FORMATS = {
    "qcow2": ("qcow2", "bare"),
    "raw": ("raw", "bare"),
    "vmdk": ("vmdk", "bare"),
    "vdi": ("vdi", "bare"),
    "vhd": ("vhd", "bare"),
    "vhdx": ("vhdx", "bare"),
    "ova": ("vmdk", "ova"),
}
"""Glance's disk and container format of ours; in this order of preference."""

HARDWARE = {"hw_disk_bus": "virtio", "hw_vif_model": "virtio", "hw_rng_model": "virtio"}
_EGI = "org.openstack.glance."
_RESERVED = frozenset(
    (
        *(
            "id",
            "name",
            "status",
            "checksum",
            "size",
            "virtual_size",
            "owner",
            "visibility",
            "created_at",
            "updated_at",
        ),
        *("file", "self", "schema", "tags", "members", "direct_url", "locations", "min_disk", "min_ram", "protected"),
        *("disk_format", "container_format", "os_hash_algo", "os_hash_value", "os_hidden", "stores"),
    )
)
_LONGEST = 65535


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What an image of Glance shall be, apart from its state.

    :param base: name, formats, min_disk (GiB), min_ram (MiB).
    :param properties: all text.
    """

    base: dict[str, t.Any]
    properties: dict[str, str]

    def document(self) -> dict[str, t.Any]:
        """Both, as Glance has them."""
        return {**self.base, **self.properties}


def choose(build: Descriptor, wanted: str | None, where: str) -> Artifact:
    """The artifact to upload: that of this format or file name, by default the first that Glance knows."""
    if wanted:
        found = [each for each in build.artifacts if wanted in (each.format, each.path)]
    else:
        found = [each for name in FORMATS for each in build.artifacts if each.format == name]
    if not found:
        have = ", ".join(each.format for each in build.artifacts)
        raise FactoryError(
            f"has no artifact {wanted!r}, but {have}" if wanted else f"has no artifact that Glance knows, but {have}",
            where=where,
            key="artifacts",
            mend="export qcow2 or raw",
        )
    if found[0].format not in FORMATS:
        raise FactoryError(
            f"Glance does not know {found[0].format}",
            where=where,
            key="artifact",
            mend=f"use one of {', '.join(FORMATS)}",
        )
    return found[0]


def describe(build: Descriptor, artifact: Artifact, options: t.Mapping[str, t.Any]) -> Wanted:
    """What Glance is told of this artifact of a build.

    :param options: C(name), C(os_type), C(os_admin_user), C(min_disk), C(min_ram), C(properties), C(egi), C(mpuri).
    :raises FactoryError: a property that is Glance's own or ours, or is no text.
    """
    disk, container = FORMATS[artifact.format]
    base = {
        "name": str(options["name"]).replace("{image}", build.image).replace("{version}", build.version),
        "disk_format": disk,
        "container_format": container,
        "min_disk": options["min_disk"] or -(-artifact.virtual_size // (1 << 30)),
        "min_ram": build.memory or 0 if options["min_ram"] is None else options["min_ram"],
    }
    properties = {
        "architecture": build.os.arch,
        "os_type": options["os_type"],
        "os_distro": build.os.distribution.lower(),
        "os_version": build.os.version,
        **({"os_admin_user": options["os_admin_user"]} if options["os_admin_user"] else {}),
        **HARDWARE,
        **(_egi(build, artifact, options["mpuri"]) if options["egi"] else {}),
        **{key[len(_EGI) :] if key.startswith(_EGI) else key: value for key, value in build.attributes.items()},
        **_texts(options["properties"] or {}),
    }
    for key in ("disk_format", "container_format"):
        # EGI's descriptions of an artifact have them among the others; the artifact itself knows better.
        if f"{_EGI}{key}" in build.attributes:
            properties.pop(key, None)
    for key, value in properties.items():
        if key in _RESERVED or key.startswith((OURS, "os_glance")) or not 0 < len(key) <= 255 or len(value) > _LONGEST:
            raise FactoryError(
                "cannot be a property of an image",
                key=f"properties.{key}",
                mend="leave it out, or use the option for it",
            )
    ours = {
        IDENTIFIER: build.identifier,
        IMAGE: build.image,
        VERSION: build.version,
        SHA512: artifact.checksums["sha512"],
        "cloudimg_title": build.title,
        "cloudimg_created": build.created,
        "cloudimg_version_identifier": version_identifier(build.identifier, build.version),
        **({"cloudimg_expires": build.expires} if build.expires else {}),
    }
    return Wanted(base, {**properties, **ours})


def _texts(given: t.Mapping[str, t.Any]) -> dict[str, str]:
    found = {}
    for key, value in given.items():
        if isinstance(value, bool):
            found[str(key)] = str(value).lower()
        elif isinstance(value, (str, int, float)):
            found[str(key)] = str(value)
        else:
            raise FactoryError("must be text", key=f"properties.{key}", mend="give a string")
    return found


def _egi(build: Descriptor, artifact: Artifact, mpuri: str | None) -> dict[str, str]:
    """As vmcatcher's events name it (VMCATCHER_EVENT_*), and atrope's C(appdb_id) and C(image_hash)."""
    event = {
        "dc_identifier": build.identifier,
        "dc_title": build.title,
        "dc_description": re.sub(r"\s+", " ", build.description),
        "hv_version": build.version,
        "hv_size": str(artifact.size),
        "sl_arch": build.os.arch,
        "sl_checksum_sha512": artifact.checksums["sha512"],
        "sl_os": build.os.distribution,
        "sl_osversion": build.os.version,
        "ad_mpuri": mpuri or "",
    }
    found = {f"vmcatcher_event_{key}": value for key, value in event.items() if value}
    return {**found, "appdb_id": build.identifier, "image_hash": artifact.checksums["sha512"]}
