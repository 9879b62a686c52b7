# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""A build's artifacts, and the list that names them, put where they are served; and taken away again."""

from __future__ import annotations

import functools
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _serve
from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor_files import checked
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

REPLAY = (
    "readers get the list by http: whoever stands between can give them an old one, whose signature is good and which "
    "offers what has been withdrawn since. Serve it by https (the artifacts may stay, their checksums are signed)."
)


def folder_of(build: _descriptor.Descriptor, given: str | None) -> str:
    """Where below the store the artifacts of a build go, as C(debian-12/1.0); empty for the store itself."""
    folder = f"{build.image}/{build.version}" if given is None else given.strip("/")
    return _serve.check_name(folder, "folder") if folder else ""


def put_build(place: _serve.Place, descriptor: Path, *, formats: t.Sequence[str], folder: str | None) -> dict[str, str]:
    """Have the artifacts of a build served; the name below the store of each, by its path beside the descriptor.

    :param formats: only these; all where there is none.
    :raises FactoryError: an artifact is missing, or not what the descriptor says; there is none of a format.
    """
    build = _descriptor.load(descriptor)
    chosen = [artifact for artifact in build.artifacts if not formats or artifact.format in formats]
    missing = sorted(set(formats) - {artifact.format for artifact in chosen})
    if missing:
        raise FactoryError(
            f"has no artifact of the format {missing[0]}",
            where=str(descriptor),
            key="artifacts",
            mend="name one that it has: " + ", ".join(dict.fromkeys(artifact.format for artifact in build.artifacts)),
        )
    prefix = folder_of(build, folder)
    rows = []
    # All are looked at before the first one is sent.
    for artifact in chosen:
        name = _serve.check_name(f"{prefix}/{artifact.path}" if prefix else artifact.path, "artifacts")
        place.progress.phase(f"check {artifact.path}")
        path = checked(descriptor, build, artifact)
        rows.append((artifact, name, _serve.Content(artifact.size, artifact.checksums["sha256"], path)))
    for artifact, name, content in rows:
        # Looked at again, which reads it only where it has changed since.
        place.put_artifact(name, content, functools.partial(checked, descriptor, build, artifact))
    place.result.image = build.document()
    return {artifact.path: name for artifact, name, _content in rows}


def served(place: _serve.Place, names: t.Mapping[str, str]) -> list[dict[str, t.Any]]:
    """What there is now, for the module's result."""
    rows = []
    for path, name in names.items():
        url = place.url(name)
        rows.append({"path": path, "name": name, **({"url": url} if url else {})})
    return rows
