# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The descriptor of what was exported, out of the definition and the records of the stages."""

from __future__ import annotations

import typing as t
from pathlib import Path
from urllib.parse import urlsplit

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _packages, _qemu_img
from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor import Artifact, Descriptor
from ansible_collections.cloudimg.factory.plugins.module_utils._exporters import Request
from ansible_collections.cloudimg.factory.plugins.module_utils._versions import COLLECTION


def describe(request: Request, artifacts: t.Sequence[Artifact], digest: str, old: Descriptor | None) -> Descriptor:
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
    """What the image was made from: the medium, a foreign disk, or the layer of another image."""
    base = request.stages.get("base_vm") or {}
    if base.get("source"):
        disk = base["source"]
        return {"family": "disk", "sha256": str(disk["sha256"]), "source": str(disk["place"])}
    parent = base.get("parent") or {}
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
