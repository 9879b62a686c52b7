# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The software bill of materials of a build: C(packages.json) as CycloneDX 1.5, the same bytes for the same build."""

from __future__ import annotations

import json
import typing as t
import uuid
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor import Descriptor, parse_time
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._libraries import need
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors

MEDIA_TYPE = "application/vnd.cyclonedx+json"
CYCLONEDX = "7.0"
"""The oldest version of the library."""
VERSION = "cyclonedx-1.5"
_FAMILIES = {"deb": {"debian", "ubuntu"}, "rpm": {"rhel", "fedora", "centos", "suse", "almalinux", "rocky", "opensuse"}}


def read_packages(path: Path) -> dict[str, t.Any] | None:
    """C({packages: [{name, version, arch}, …], os_release: {…}}) as the stage sanitize has written it; None for no packages.

    :raises FactoryError: it is no JSON, or of another shape.
    """
    mend = "run the stages sanitize and export again, which write it"
    with explain_os_errors(path):
        text = path.read_bytes()
    try:
        found = json.loads(text)
    except ValueError as exc:
        raise FactoryError(f"is not JSON: {exc}", where=str(path), mend=mend) from exc
    rows = found.get("packages") if isinstance(found, dict) else None
    if isinstance(found, dict) and rows is None:
        return None
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and {"name", "version", "arch"} <= set(row) for row in rows
    ):
        raise FactoryError("must be a list of name, version, arch", where=str(path), key="packages", mend=mend)
    return dict(found) if rows else None


def render(build: Descriptor, packages: t.Mapping[str, t.Any], digest: str) -> bytes:
    """The bill of materials.

    :param packages: see :func:`read_packages`.
    :param digest: C(sha256:<hex>) of the image's file, which it is about.
    :raises FactoryError: the library is missing.
    """
    need("cyclonedx", CYCLONEDX)
    model, bom_model, component_model = (need(f"cyclonedx.model{name}") for name in ("", ".bom", ".component"))
    output, schema, packageurl = (need(name) for name in ("cyclonedx.output", "cyclonedx.schema", "packageurl"))
    component, kinds = component_model.Component, component_model.ComponentType
    release = packages.get("os_release") or {}
    family = _family(build, release)
    distro = f"{build.os.distribution}-{build.os.version}"

    def package(row: t.Mapping[str, str]) -> t.Any:
        version = row["version"]
        qualifiers = {"arch": row["arch"], "distro": distro}
        if family == "rpm" and ":" in version:
            # The epoch is a qualifier of an rpm's package URL.
            qualifiers["epoch"], _colon, version = version.partition(":")
        purl = packageurl.PackageURL(family, build.os.distribution, row["name"], version, qualifiers)
        return component(
            type=kinds.LIBRARY, name=row["name"], version=row["version"], purl=purl, bom_ref=purl.to_string()
        )

    system = component(
        type=kinds.OPERATING_SYSTEM,
        name=build.os.distribution,
        version=build.os.version,
        bom_ref=f"os:{distro}",
        description=release.get("PRETTY_NAME"),
    )
    rows = {(row["name"], row["version"], row["arch"]): row for row in packages["packages"]}
    bom = bom_model.Bom(components=[system, *(package(row) for row in rows.values())])
    bom.serial_number = uuid.uuid5(uuid.UUID(build.identifier), digest)
    bom.metadata.timestamp = parse_time(build.created)
    bom.metadata.component = component(
        type=kinds.FILE,
        name=build.image,
        version=build.version,
        bom_ref=digest,
        description=build.title,
        hashes=[model.HashType(alg=model.HashAlgorithm.SHA_256, content=digest.partition(":")[2])],
    )
    # Flat: which package needs which one is not known here.
    bom.register_dependency(bom.metadata.component, list(bom.components))
    writer = output.make_outputter(bom, schema.OutputFormat.JSON, schema.SchemaVersion.V1_5)
    return str(writer.output_as_string()).encode()


def _family(build: Descriptor, release: t.Mapping[str, str]) -> str:
    """The type of its packages, as package URLs name it."""
    names = {build.os.distribution, release.get("ID", ""), *release.get("ID_LIKE", "").split()}
    return next((family for family, known in _FAMILIES.items() if names & known), "generic")
