# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Named operations on the files of a system, told as data: what it shall forget, and what it shall be told."""

from __future__ import annotations

import dataclasses
import os
import stat
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors, remove

_OURSELVES = frozenset(Path(__file__).absolute().parents)
"""Below /tmp, while Ansible runs a module of ours; it removes it itself."""


@dataclasses.dataclass(frozen=True)
class Operation:
    """What to do.

    :ivar optional: it is carried out only on demand.
    :ivar remove: patterns of files and directories that go.
    :ivar empty: patterns of directories whose content goes.
    :ivar truncate: patterns of files that stay, without content.
    :ivar write: files, with their content; their directories are made.
    :ivar links: symbolic links, with where they lead; only where their directory exists.

    In patterns C(**) stands for directories at any depth, and C(*) also for what begins with a dot.
    """

    name: str
    description: str
    optional: bool = False
    remove: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    truncate: tuple[str, ...] = ()
    write: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    links: t.Mapping[str, str] = dataclasses.field(default_factory=dict)


def perform(operation: Operation, root: Path = Path("/"), *, dry: bool = False) -> list[str]:
    """Carry out an operation below ``root``; returns the paths that it changed (or, if ``dry``, would change)."""
    changed: list[str] = []

    def act(path: Path, work: t.Callable[..., object], *arguments: t.Any) -> None:
        if path in _OURSELVES:
            return
        changed.append(f"/{path.relative_to(root)}")
        if not dry:
            with explain_os_errors(path):
                work(path, *arguments)

    for path in _found(operation.remove, root):
        act(path, remove)
    for folder in _found(operation.empty, root):
        if folder.is_dir() and not folder.is_symlink():
            for path in sorted(folder.iterdir()):
                act(path, remove)
    for path in _found(operation.truncate, root):
        if path.is_file() and not path.is_symlink() and path.stat().st_size:
            act(path, os.truncate, 0)
    for name, text in operation.write.items():
        path = root / name.lstrip("/")
        if not _holds(path, text):
            act(path, _write, text)
    for name, target in operation.links.items():
        path = root / name.lstrip("/")
        if path.parent.is_dir() and not (path.is_symlink() and os.readlink(path) == target):
            act(path, _link, target)
    return changed


def _found(patterns: t.Iterable[str], root: Path) -> list[Path]:
    """What matches, a directory after what is in it; never anything of the kernel's."""
    found: set[Path] = set()
    for pattern in patterns:
        if not pattern.startswith("/") or ".." in pattern.split("/"):
            raise FactoryError(f"{pattern!r} is not an absolute path", key="operations", mend="let it begin with /")
        found.update(root.glob(pattern.lstrip("/")))
    return [
        path
        for path in sorted(found, reverse=True)
        if path.relative_to(root).parts[:1] not in (("proc",), ("sys",), ("dev",), ("run",))
    ]


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and not path.is_symlink() and path.read_bytes() == text.encode()


def _write(path: Path, text: str) -> None:
    mode = stat.S_IMODE(path.stat().st_mode) if path.is_file() and not path.is_symlink() else 0o644
    remove(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


def _link(path: Path, target: str) -> None:
    remove(path)
    path.symlink_to(target)


def select(operations: t.Sequence[Operation], off: t.Sequence[str], on: t.Sequence[str]) -> list[Operation]:
    """The operations to carry out: all but the optional ones and those switched ``off``, and those switched ``on``.

    :raises FactoryError: a name is not known.
    """
    known = {operation.name for operation in operations}
    for key, names in (("disabled", off), ("enabled", on)):
        for name in names:
            if name not in known:
                raise FactoryError(
                    f"there is no operation {name!r}", key=key, mend=f"use one of: {', '.join(sorted(known))}"
                )
    return [op for op in operations if op.name not in off and (not op.optional or op.name in on)]
