# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Named operations on the files of a system, told as data: what it shall forget, and what it shall be told."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import os
import re
import stat
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _sanitize
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors, remove

_OURSELVES = frozenset(Path(__file__).absolute().parents)
"""Below /tmp, while Ansible runs a module of ours; it removes it itself."""
_KERNELS = frozenset({"proc", "sys", "dev", "run"})


@dataclasses.dataclass(frozen=True)
class Operation:
    """What to do, in the order of the fields.

    :ivar optional: it is carried out only on demand.
    :ivar instead: what does it, if this does not; then it cannot be switched on, and has nothing of the following.
    :ivar accounts: accounts to remove, with what belongs to them, see :func:`_sanitize.account_changes`.
    :ivar remove: patterns of files and directories that go.
    :ivar empty: patterns of directories whose content goes.
    :ivar truncate: patterns of files that stay, without content.
    :ivar edit: patterns of files, with regular expressions of lines in them that go.
    :ivar wipe: patterns of swap files whose content goes.
    :ivar by_uuid: tables of file systems, in which the build's devices are called by UUID from then on.
    :ivar write: files, with their content; their directories are made.
    :ivar links: symbolic links, with where they lead; only where their directory exists.
    :ivar modes: patterns of files and directories, with their permissions in octal digits.
    :ivar keep: patterns of what is left alone all the same.

    In patterns C(**) stands for directories at any depth, and C(*) also for what begins with a dot; C(~) at the beginning for
    each home directory, wherever it is.
    """

    name: str
    description: str
    optional: bool = False
    instead: str = ""
    accounts: t.Sequence[str] = ()
    remove: t.Sequence[str] = ()
    empty: t.Sequence[str] = ()
    truncate: t.Sequence[str] = ()
    edit: t.Mapping[str, t.Sequence[str]] = dataclasses.field(default_factory=dict)
    wipe: t.Sequence[str] = ()
    by_uuid: t.Sequence[str] = ()
    write: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    links: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    modes: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    keep: t.Sequence[str] = ()


def perform(operation: Operation, root: Path = Path("/"), *, dry: bool = False) -> list[str]:
    """Carry out an operation below ``root``; returns the paths that it changed (or, if ``dry``, would change)."""
    work = _Work(operation, root, dry)
    work.run()
    return work.changed


class _Work:
    """An operation on its way."""

    def __init__(self, operation: Operation, root: Path, dry: bool) -> None:
        self.changed: list[str] = []
        self._operation = operation
        self._root = root
        self._dry = dry
        self._homes = _sanitize.homes(root)
        self._kept = set(self._found(operation.keep))

    def run(self) -> None:
        """Do all of it."""
        operation = self._operation
        for path, text in _sanitize.account_changes(self._root, operation.accounts, self._homes):
            if text is None:
                self._act(path, remove)
            else:
                self._act(path, _rewrite, text)
        for path in self._found(operation.remove):
            self._act(path, remove)
        for folder in self._found(operation.empty):
            if folder.is_dir() and not folder.is_symlink():
                for path in sorted(folder.iterdir()):
                    self._act(path, remove)
        for path in self._files(operation.truncate):
            if path.stat().st_size:
                self._act(path, os.truncate, 0)
        for pattern, lines in operation.edit.items():
            self._edit(pattern, lines)
        for path in self._files(operation.wipe):
            if _sanitize.swap_has_content(path):
                self._act(path, _sanitize.wipe_swap)
        for path in self._files(operation.by_uuid):
            before = _text(path)
            after = _sanitize.fstab_by_uuid(before, self._root)
            if after != before:
                self._act(path, _rewrite, after)
        for name, text in operation.write.items():
            path = self._root / name.lstrip("/")
            if not _holds(path, text):
                self._act(path, _write, text)
        for name, target in operation.links.items():
            path = self._root / name.lstrip("/")
            if path.parent.is_dir() and not (path.is_symlink() and os.readlink(path) == target):
                self._act(path, _link, target)
        self._modes()

    def _edit(self, pattern: str, lines: t.Sequence[str]) -> None:
        expressions = [self._expression(line) for line in ([lines] if isinstance(lines, str) else lines)]
        for path in self._files([pattern]):
            before = _text(path)
            kept = [
                line
                for line in before.splitlines(keepends=True)
                if not any(expression.search(line.rstrip("\r\n")) for expression in expressions)
            ]
            if "".join(kept) != before:
                self._act(path, _rewrite, "".join(kept))

    def _expression(self, text: str) -> re.Pattern[str]:
        try:
            return re.compile(text)
        except re.error as exc:
            raise FactoryError(
                f"{text!r} is no regular expression: {exc}",
                where=f"operation {self._operation.name}",
                key="edit",
                mend="correct it",
            ) from exc

    def _modes(self) -> None:
        for pattern, digits in self._operation.modes.items():
            if not re.fullmatch(r"0?[0-7]{3,4}", str(digits)):
                raise FactoryError(
                    f"{digits!r} is no mode",
                    where=f"operation {self._operation.name}",
                    key=f"modes: {pattern}",
                    mend='write octal digits in quotes, such as "0600"',
                )
            mode = int(str(digits), 8)
            for path in self._found([pattern]):
                if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) != mode:
                    self._act(path, os.chmod, mode)

    def _act(self, path: Path, work: t.Callable[..., object], *arguments: t.Any) -> None:
        if path in _OURSELVES or path in self._kept:
            return
        self.changed.append(f"/{path.relative_to(self._root)}")
        if not self._dry:
            with explain_os_errors(path):
                work(path, *arguments)

    def _files(self, patterns: t.Iterable[str]) -> t.Iterator[Path]:
        return (path for path in self._found(patterns) if path.is_file() and not path.is_symlink())

    def _found(self, patterns: t.Iterable[str]) -> list[Path]:
        """What matches, a directory after what is in it; never anything of the kernel's."""
        found: set[Path] = set()
        for pattern in patterns:
            for absolute in self._absolute(pattern):
                found.update(self._root.glob(absolute.lstrip("/")))
        return [
            path
            for path in sorted(found, reverse=True)
            if not _KERNELS.intersection(path.relative_to(self._root).parts[:1])
        ]

    def _absolute(self, pattern: str) -> list[str]:
        if pattern.startswith("~/") and ".." not in pattern.split("/"):
            return [home + pattern[1:] for home in self._homes]
        if not pattern.startswith("/") or ".." in pattern.split("/"):
            raise FactoryError(
                f"{pattern!r} is not an absolute path", key="operations", mend="let it begin with / or ~/"
            )
        return [pattern]


def _text(path: Path) -> str:
    """What is in a file, whatever its encoding, so that it can be written back as it was."""
    return path.read_bytes().decode("utf-8", "surrogateescape")


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and not path.is_symlink() and path.read_bytes() == text.encode()


def _rewrite(path: Path, text: str) -> None:
    """Change what is in a file, which stays the same one: owner, mode and attributes stay."""
    path.write_bytes(text.encode("utf-8", "surrogateescape"))


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

    :raises FactoryError: a name is not known, or something else does that operation.
    """
    known = {operation.name: operation for operation in operations}
    for key, names in (("disabled", off), ("enabled", on)):
        for name in names:
            if name not in known:
                raise FactoryError(f"there is no operation {name!r}", key=key, mend=_mend(name, known))
            if known[name].instead:
                raise FactoryError(
                    f"the operation {name!r} cannot be switched here", key=key, mend=f"see: {known[name].instead}"
                )
    chosen = [op for op in operations if op.name not in off and (not op.optional or op.name in on)]
    return [op for op in chosen if not op.instead]


def _mend(name: str, known: t.Iterable[str]) -> str:
    """What may have been meant: names that are alike (virt-sysprep's have hyphens), otherwise all."""
    word = name.replace("-", "_").lower()
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    parts = close or fnmatch.filter(names, f"*{word}*")[:1] or difflib.get_close_matches(word, names, n=1, cutoff=0.45)
    return f"did you mean {parts[0]}?" if parts else f"use one of: {', '.join(names)}"
