# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The files beside a descriptor: that they are there, plain, and what the descriptor says."""

from __future__ import annotations

import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor import Artifact, Descriptor
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import cached_digests
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors


def plain(path: Path) -> Path:
    """The path of a file that is there and no symbolic link; raises FactoryError where it is not."""
    if not path.is_file() or path.is_symlink():
        raise FactoryError(
            "is missing, or no plain file", where=str(path), mend="run the export stage again, which makes it"
        )
    return path


def must_match(source: Path, wanted: t.Mapping[str, str] | None, found: t.Mapping[str, str]) -> None:
    """Raise FactoryError where a digest of ``wanted`` (``{algorithm: hex}``) is another one in ``found``."""
    wrong = next((name for name in sorted(wanted or {}) if wanted and found[name] != wanted[name]), None)
    if wanted and wrong:
        raise FactoryError(
            f"was changed after its export: {wrong} is {found[wrong][:16]}…, not {wanted[wrong][:16]}…",
            where=str(source),
            key="artifacts",
            mend="run the export stage again, then assess it",
        )


def checked(descriptor_path: Path, build: Descriptor, artifact: Artifact) -> Path:
    """The file of an artifact of a build, once size and checksums are what its descriptor says.

    A file that was read before and has not changed since is not read again (see :func:`_digest.cached_digests`).

    :raises FactoryError: it is missing, no plain file, cannot be read, or is another one.
    """
    path = plain(descriptor_path.parent / artifact.path)
    with explain_os_errors(path):
        size = path.stat().st_size
        if size != artifact.size:
            raise FactoryError(
                f"was changed after the export of {build.image} {build.version}: it has {size} bytes, not {artifact.size}",
                where=str(path),
                key="artifacts",
                mend="run the export stage again, then assess it",
            )
        must_match(path, artifact.checksums, cached_digests(path, sorted(artifact.checksums)))
    return path
