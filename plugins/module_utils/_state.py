# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The workspace: where everything is, how a name becomes final, who holds a lock, what a crash left behind."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
import time
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._owner import Owner

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
VERSION_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,63}")
PARTIAL = ".partial-"
"""What the names begin with that are not final yet."""


def check_image_name(name: str, where: str = "inventory") -> str:
    """The name of an image, which becomes part of paths and domain names; raises FactoryError where it cannot."""
    if not NAME_PATTERN.fullmatch(name) or ".." in name:
        raise FactoryError(
            f"{name!r} cannot be the name of an image",
            where=where,
            key="image",
            mend="use lower-case letters, digits, '.', '_' and '-' only (at most 63, no '..', a letter or digit first)",
        )
    return name


def check_version(version: str, where: str = "inventory") -> str:
    """The version of a build, which becomes the name of its directory; raises FactoryError where it cannot."""
    if not VERSION_PATTERN.fullmatch(version) or ".." in version:
        raise FactoryError(
            f"{version!r} cannot be a version",
            where=where,
            key="image_version",
            mend="use letters, digits, '.', '_', '+', '~' and '-' only (at most 64, no '..', a letter or digit first)",
        )
    return version


class Workspace:
    """The directories below ``image_workspace`` on a builder (DESIGN: build directory)."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).absolute()
        self.media = self.root / "cache" / "media"
        self.layers = self.root / "cache" / "layers"
        self.builds = self.root / "builds"
        self.run = self.root / "run"
        self.cache_lock = self.run / "layers.lock"

    def make(self) -> Workspace:
        """Make the directories; raises FactoryError where that cannot be."""
        for folder in (self.media, self.layers, self.builds, self.run):
            with explain_os_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
        return self

    def build(self, image: str, version: str) -> Path:
        """The directory of one build (which need not exist)."""
        return self.builds / check_image_name(image) / check_version(version)


@contextlib.contextmanager
def explain_os_errors(where: str | os.PathLike[str]) -> t.Iterator[None]:
    """Turn the operating system's errors on files into FactoryErrors that say what to mend."""
    try:
        yield
    except OSError as exc:
        path = str(exc.filename or where)
        mends = {
            errno.ENOSPC: "free some space there, or set image_workspace to a larger file system",
            errno.EDQUOT: "free some of the quota there, or set image_workspace to another file system",
            errno.EACCES: "give this user the right to it, or set image_workspace to a directory of its own",
            errno.EPERM: "run this as root (become: true)",
            errno.EROFS: "set image_workspace to a file system that can be written",
            errno.ENOENT: "check that path",
        }
        raise FactoryError(
            exc.strerror or str(exc), where=path, mend=mends.get(exc.errno or 0), details={"errno": exc.errno}
        ) from exc


def need_space(folder: Path, wanted: int, purpose: str) -> None:
    """Raise FactoryError where fewer than ``wanted`` bytes are free for ``purpose`` in an existing ``folder``."""
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise FactoryError(
            f"only {free >> 20} MiB are free, {purpose} needs {wanted >> 20} MiB",
            where=str(folder),
            mend="free some space there, or set image_workspace to a larger file system",
        )


@contextlib.contextmanager
def partial(final: Path) -> t.Iterator[Path]:
    """A path beside ``final`` to write to (a file or a directory), which becomes ``final`` when the block ends well.

    When it does not, nothing is left. What a killed process left is removed by :func:`reap_partials`.
    """
    with explain_os_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        owner = Owner.of()
        path = partial_path(final, owner)
        remove(path)
        try:
            yield path
            if path.is_dir():
                remove(final)
            path.rename(final)
        finally:
            remove(path)


def partial_path(final: Path, owner: Owner) -> Path:
    """The name beside ``final`` that is ``owner``'s to write to, and goes with it, see :func:`reap_partials`."""
    return final.parent / f"{PARTIAL}{owner.pid}-{owner.started}-{final.name}"


def reap_partials(folder: Path) -> list[str]:
    """Remove what killed processes left half written in ``folder``; returns the names."""
    reaped = []
    for path in sorted(folder.glob(f"{PARTIAL}*")) if folder.is_dir() else []:
        pid, _sep, rest = path.name[len(PARTIAL) :].partition("-")
        started = rest.partition("-")[0]
        if pid.isdigit() and started.isdigit():
            owner = Owner(int(pid), int(started), Owner.of().boot)
            if not owner.alive():
                remove(path)
                reaped.append(path.name)
    return reaped


def remove(path: Path) -> None:
    """Remove a file or a directory with all in it; no error where it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file so that it is there whole or not at all, with the given mode; symbolic links are not followed."""
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(name, mode)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise


def write_json(path: Path, data: t.Any, mode: int = 0o644) -> None:
    """Write JSON by :func:`write_text`, keys sorted, two spaces a level."""
    write_text(path, json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n", mode)


def read_json(path: Path, default: t.Any = None) -> t.Any:
    """A JSON file's content; ``default`` where there is no file; raises FactoryError where it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default
    except (ValueError, UnicodeDecodeError) as exc:
        raise FactoryError(f"is not JSON: {exc}", where=str(path), mend="restore it, or remove it") from exc


@contextlib.contextmanager
def lock(
    path: Path,
    *,
    wait: float = 0.0,
    busy: str = "another process works on it",
    tick: t.Callable[[], None] | None = None,
) -> t.Iterator[None]:
    """Hold an exclusive lock for as long as the block runs; the kernel drops it when the process dies.

    :param wait: seconds to wait for another holder.
    :param tick: called about twice a second while waiting; what it raises ends the wait.
    :raises FactoryError: it is held for longer than that; ``busy`` says by whom.
    """
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a+", encoding="utf-8")
    with stream:
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise FactoryError(
                        busy, where=str(path), mend="wait until it has ended, then run this again"
                    ) from None
                if tick:
                    tick()
                time.sleep(0.5)
        yield
