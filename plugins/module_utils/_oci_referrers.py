# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What is attached to an artifact of an OCI registry: manifests with it as their C(subject).

A registry of specification 1.1 lists them by itself. For another one (docker-registry 2.8) they are listed in an index under the
tag C(sha256-<hex>), as the specification has clients do it («referrers tag schema»). Such an index has no compare-and-swap: after
it was written it is read again, and what another publisher has overwritten meanwhile is added once more.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_describe import IDENTIFIER
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_registry import (
    EMPTY,
    EMPTY_CONFIG,
    INDEX,
    LAYER_TITLE,
    Found,
    Repository,
    fallback_tag,
    manifest,
)

DEPRECATED = "application/vnd.cloudimg.deprecated"
ASSESS = "application/vnd.cloudimg.assess+json"
SIGNATURE = "application/pkcs7-signature"
_ATTEMPTS = 4


@dataclasses.dataclass(frozen=True)
class Attachment:
    """A file that is to be attached; without ``data`` and ``render`` the annotations are all that it says.

    :ivar mark: the annotation by which one that is there is known to be as good, though its bytes may be others.
    :ivar render: makes the data when they are needed.
    """

    artifact_type: str
    data: bytes = b""
    name: str = ""
    annotations: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    mark: str = ""
    render: t.Callable[[], bytes] | None = None

    def ready(self) -> Attachment:
        """The same with its data."""
        return dataclasses.replace(self, data=self.render(), render=None) if self.render else self

    def is_among(self, known: t.Sequence[t.Mapping[str, t.Any]]) -> bool:
        """Whether one of these descriptors has the same mark."""
        value = self.annotations.get(self.mark)
        return bool(value) and any((row.get("annotations") or {}).get(self.mark) == value for row in known)

    def manifest(self, subject: Found, identifier: str) -> Found:
        """Its manifest: the same bytes for the same content and subject."""
        data = self.data or EMPTY_CONFIG
        layer: dict[str, t.Any] = {
            "mediaType": self.artifact_type if self.data else EMPTY,
            "digest": "sha256:" + hashlib.sha256(data).hexdigest(),
            "size": len(data),
        }
        if self.name:
            layer["annotations"] = {LAYER_TITLE: self.name}
        about = {**self.annotations, IDENTIFIER: identifier}
        return manifest([layer], about, artifact_type=self.artifact_type, subject=subject.describe())


class Referrers:
    """What is attached to one manifest of a repository."""

    def __init__(self, repository: Repository, subject: str) -> None:
        self.repository = repository
        self.subject = subject
        self.listed, self._native = repository.referrers(subject)

    def types(self) -> list[str]:
        """The artifact types of all that is attached."""
        return sorted(str(each.get("artifactType") or "") for each in self.listed)

    def of_type(self, artifact_type: str) -> list[dict[str, t.Any]]:
        """The descriptors of those of a type."""
        return [each for each in self.listed if each.get("artifactType") == artifact_type]

    def ours(self, artifact_type: str, identifier: str) -> list[dict[str, t.Any]]:
        """The descriptors of those of a type that this collection has made."""
        return [
            each
            for each in self.of_type(artifact_type)
            if (each.get("annotations") or {}).get(IDENTIFIER) == identifier
        ]

    def attach(self, found: Found, data: bytes) -> None:
        """Have a manifest attached; blobs first, then itself, then the index where one is needed."""
        self.repository.put_blob(EMPTY_CONFIG)
        if data:
            self.repository.put_blob(data)
        if not self.repository.put(found.digest, found) and not self._native:
            self._rewrite(add=found.describe())
        self.listed = [*(each for each in self.listed if each["digest"] != found.digest), found.describe()]

    def detach(self, rows: t.Sequence[t.Mapping[str, t.Any]]) -> None:
        """Remove some of them."""
        gone = {str(each["digest"]) for each in rows}
        if gone and not self._native:
            self._rewrite(remove=gone)
        for digest in sorted(gone):
            self.repository.delete(digest)
        self.listed = [each for each in self.listed if each["digest"] not in gone]

    def _rewrite(self, add: dict[str, t.Any] | None = None, remove: t.AbstractSet[str] = frozenset()) -> None:
        tag = fallback_tag(self.subject)
        for _attempt in range(_ATTEMPTS):
            index = self.repository.get(tag)
            rows = list(index.document.get("manifests") or []) if index else []
            there = {str(each.get("digest")) for each in rows}
            if (add is None or add["digest"] in there) and not there & remove:
                return
            rows = [each for each in rows if str(each.get("digest")) not in remove]
            if add and add["digest"] not in there:
                rows.append(add)
            if not rows:
                if index:
                    self.repository.delete(index.digest)
                continue
            document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": rows}
            self.repository.put(tag, Found(json.dumps(document, separators=(",", ":")).encode(), INDEX))
            if index:
                # The former index has no tag any more.
                self.repository.delete_quietly(index.digest)
        raise FactoryError(
            "is written by others all the time",
            where=f"{self.repository.where}:{tag}",
            mend="run this again",
        )
