# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Reading a repository of an OCI registry: its artifacts, and the image of one of them."""

from __future__ import annotations

import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _oci_describe as describe
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import cached_digests, remember_digests
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_blobs import fetch
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_referrers import DEPRECATED, Referrers
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_registry import Found, Repository, is_digest
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors, need_space
from ansible_collections.cloudimg.factory.plugins.module_utils._versions import version_key


def pulled(repository: Repository, reference: str, dest: Path, check_mode: bool) -> Result:
    """Have the image of an artifact in a file: verified by its digest, and put there as a whole.

    :raises FactoryError: there is no such artifact, it has not one layer, or its image cannot be had as its digest says.
    """
    result = Result()
    found = repository.get(reference)
    where = f"{repository.where}{'@' if is_digest(reference) else ':'}{reference}"
    if found is None:
        raise FactoryError("is not there", where=where, key="reference", mend="see what oci_artifact_info lists")
    if len(found.layers) != 1 or not is_digest(str(found.layers[0].get("digest"))):
        raise FactoryError("is no image with one layer", where=where, key="reference", mend="give another one")
    layer = found.layers[0]
    digest, size = str(layer["digest"]), int(layer.get("size") or 0)
    sha256 = digest.partition(":")[2]
    has = None
    with explain_os_errors(dest):
        if dest.exists():
            has = "sha256:" + cached_digests(dest, ["sha256"])["sha256"] if dest.stat().st_size == size else "another"
    if has != digest:
        result.act(f"{dest}: " + (f"is {has[:19]}, shall be {digest[:19]}" if has else "is not there yet"))
        if not check_mode:
            part = dest.with_name(f".{dest.name}.{sha256[:16]}.part")
            with explain_os_errors(dest):
                dest.parent.mkdir(parents=True, exist_ok=True)
                need_space(dest.parent, size - (part.stat().st_size if part.exists() else 0), "the image")
                fetch(repository, digest, size, part)
                part.replace(dest)
                remember_digests(dest, {"sha256": sha256})
    result.diff = {"before": {"digest": has}, "after": {"digest": digest}}
    artifact = describe.described(found, [] if is_digest(reference) else [reference])
    publication = {"registry": repository.base.rstrip("/"), "repository": repository.name, "digest": found.digest}
    result.extra |= {"artifact": artifact, "publication": {**publication, "layer": digest}, "path": str(dest)}
    return result


def listed(repository: Repository, reference: str | None, *, referrers: bool) -> list[dict[str, t.Any]]:
    """The artifacts that have a tag, the newest version first (a GET for the tags, one or three for each artifact)."""
    tags: dict[str, list[str]] = {}
    known: dict[str, Found] = {}
    for tag in [reference] if reference else repository.tags():
        found = repository.get(tag)
        # The index of what is attached to something is not an artifact of its own.
        if found is None or not found.layers:
            continue
        known[found.digest] = found
        tags.setdefault(found.digest, []).extend([] if is_digest(tag) else [tag])
    rows = []
    for digest, found in known.items():
        row = describe.described(found, tags[digest])
        if referrers:
            attached = Referrers(repository, digest)
            keys = ("artifactType", "digest", "size", "annotations")
            row["referrers"] = [{key: each.get(key) for key in keys} for each in attached.listed]
            row["deprecated"] = next(
                (str((each.get("annotations") or {}).get("cloudimg.reason")) for each in attached.of_type(DEPRECATED)),
                None,
            )
        rows.append(row)
    return sorted(rows, key=lambda row: (version_key(row["version"] or ""), row["digest"]), reverse=True)
