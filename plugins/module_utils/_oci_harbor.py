# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Removing artifacts and tags: by Harbor's API 2.0 where the registry is a Harbor, else by what every OCI registry can.

Harbor removes an artifact with its tags and what is attached to it. docker-registry 2.8 cannot remove a tag at all; there the tag
is given to a manifest of no use, which is then removed with it, as regclient does it.
"""

from __future__ import annotations

import functools
import secrets
from urllib.parse import quote

from ansible_collections.cloudimg.factory.plugins.module_utils._http import Answered
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_registry import (
    EMPTY,
    EMPTY_CONFIG,
    Repository,
    digest_of,
    manifest,
)


class Remover:
    """Removes from a repository; it asks once whether that is Harbor's."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        project, _slash, rest = repository.name.partition("/")
        # Harbor decodes twice: docs of its API, «repository_name … needs to be double URL encoded».
        name = quote(quote(rest, safe=""), safe="")
        self._artifacts = f"projects/{quote(project, safe='')}/repositories/{name}/artifacts"
        self._nested = bool(rest)

    @functools.cached_property
    def is_harbor(self) -> bool:
        """Whether the registry answers to Harbor's ping."""
        if not self._nested:
            return False
        try:
            reply = self.repository.harbor("GET", "ping", accept=(200, 404), limit=1 << 16)
        except Answered:
            return False
        return reply.status == 200 and "pong" in reply.text.lower()[:32]

    def artifact(self, digest: str) -> bool:
        """Remove an artifact with all its tags; whether it was there."""
        if self.is_harbor:
            path = f"{self._artifacts}/{digest}"
            return self.repository.harbor("DELETE", path, accept=(200, 202, 404), repeat=True).status != 404
        return self.repository.delete(digest)

    def tag(self, tag: str) -> None:
        """Remove a tag, and not the artifact that it stands for."""
        if self.is_harbor:
            digest = self.repository.digest(tag)
            if digest:
                path = f"{self._artifacts}/{digest}/tags/{quote(tag, safe='')}"
                self.repository.harbor("DELETE", path, accept=(200, 202, 404), repeat=True)
            return
        self.repository.put_blob(EMPTY_CONFIG)
        layer = {"mediaType": EMPTY, "digest": digest_of(EMPTY_CONFIG), "size": len(EMPTY_CONFIG)}
        # One of its own, else the removal would take other tags along.
        nothing = manifest([layer], {"cloudimg.removed": secrets.token_hex(16)}, artifact_type=EMPTY)
        self.repository.put(tag, nothing)
        self.repository.delete(nothing.digest)
