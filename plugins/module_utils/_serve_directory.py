# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Files served from a directory of this machine, or one that is mounted here."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _serve, _state
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import cached_digests, remember_digests
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

_CHUNK = 4 << 20


class Directory(_serve.Store):
    """The files below a ``root``, which is made when it is missing. Files appear by a rename."""

    def __init__(self, root: Path) -> None:
        self.where = str(root)
        self._root = root

    def size(self, name: str) -> int | None:
        path = self._root / name
        with _state.explain_os_errors(path):
            return path.stat().st_size if path.is_file() else None

    def read(self, name: str, limit: int) -> bytes | None:
        path = self._root / name
        if not path.is_file():
            return None
        with _state.explain_os_errors(path), path.open("rb") as stream:
            return stream.read(limit + 1)

    def sha256(self, name: str) -> str | None:
        # Here it is cheap to look at the file itself, which is read again only where it has changed.
        path = self._root / name
        with _state.explain_os_errors(path):
            return cached_digests(path, ["sha256"])["sha256"]

    def put(self, name: str, content: _serve.Content, progress: Progress) -> None:
        path = self._root / name
        with _state.explain_os_errors(path):
            _state.reap_partials(path.parent)
            digest = hashlib.sha256()
            with _state.partial(path) as partial:
                with content.open() as stream, partial.open("xb") as sink:
                    while chunk := stream.read(_CHUNK):
                        digest.update(chunk)
                        sink.write(chunk)
                        self.sent += len(chunk)
                        progress.report(done=sink.tell(), total=content.size)
                    sink.flush()
                    os.fsync(sink.fileno())
                partial.chmod(0o644)
            if content.path:
                with contextlib.suppress(PermissionError):
                    remember_digests(path, {"sha256": digest.hexdigest()})

    def remove(self, name: str) -> bool:
        path = self._root / name
        there = path.is_file() or path.is_symlink()
        with _state.explain_os_errors(path):
            path.unlink(missing_ok=True)
            path.with_name(f"{path.name}.digests.json").unlink(missing_ok=True)
            for folder in path.parents:
                if folder == self._root or not folder.is_dir() or any(folder.iterdir()):
                    break
                folder.rmdir()
        return there
