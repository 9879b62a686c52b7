# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What :mod:`_file_operations` has to know of a system's own files: accounts, home directories, fstab, swap files."""

from __future__ import annotations

import os
import re
import typing as t
from pathlib import Path, PurePosixPath

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

_ORDINARY = range(1000, 60000)
_NO_HOMES = frozenset(
    {"bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "proc", "run", "sbin", "sys", "tmp", "usr"}
)
_NO_HOME_PATHS = frozenset({"/", "/home", "/nonexistent", "/var", "/var/lib", "/opt", "/srv"})
_ACCOUNT_FILES = ("passwd", "shadow", "group", "gshadow", "subuid", "subgid")
_PAGE = 4096
_SWAP = (b"SWAPSPACE2", b"SWAP-SPACE")
_BUILD_DEVICE = re.compile(
    r"/dev/(?:disk/by-(?:id|path|diskseq)/|(?:[shv]d[a-z]+|xvd[a-z]+|nvme\d|mmcblk\d|sr\d|fd\d|cdrom))"
)
_PASSING = frozenset({"swap", "iso9660", "udf"})


def homes(root: Path) -> list[str]:
    """The home directories of a system, as absolute paths in it: those of accounts, below /home, and that of new accounts."""
    found = {"/root", "/etc/skel"}
    for row in _rows(root, "passwd"):
        home = str(PurePosixPath("/", row[5])) if len(row) > 5 and row[5].startswith("/") else "/"
        parts = PurePosixPath(home).parts
        if home not in _NO_HOME_PATHS and ".." not in parts and parts[1] not in _NO_HOMES:
            found.add(home)
    base = root / "home"
    if base.is_dir():
        found.update(f"/home/{path.name}" for path in base.iterdir() if path.is_dir() and not path.is_symlink())
    return sorted(home for home in found if (root / home.lstrip("/")).is_dir())


def account_changes(
    root: Path, names: t.Sequence[str], known_homes: t.Sequence[str]
) -> t.Iterator[tuple[Path, str | None]]:
    """What removing accounts changes: files with their new text, and (with None) what goes: home, mail, cron table, sudo rule.

    :param names: their names; C(*) stands for all that are people's (by user id), and C(!name) is an exception.
    """
    spared = {name[1:] for name in names if name.startswith("!")}
    rows = _rows(root, "passwd")
    ordinary = {row[0] for row in rows if len(row) > 2 and row[2].isdigit() and int(row[2]) in _ORDINARY}
    wanted = {name for name in names if name[:1] not in ("!", "*")} | (ordinary if "*" in names else set())
    gone = wanted - spared - {"root"}
    if not gone:
        return
    for file in _ACCOUNT_FILES:
        path = root / "etc" / file
        before = _read(path)
        after = "".join(_without(line, file, gone) for line in before.splitlines(keepends=True))
        if after != before:
            yield path, after
    shared = {row[5] for row in rows if len(row) > 5 and row[0] not in gone}
    owned = {row[5] for row in rows if len(row) > 5 and row[0] in gone}
    for home in sorted((owned & set(known_homes)) - shared - {"/root", "/etc/skel"}):
        yield root / home.lstrip("/"), None
    for name in sorted(gone):
        for place in ("var/mail", "var/spool/mail", "var/spool/cron", "var/spool/cron/crontabs", "etc/sudoers.d"):
            path = root / place / name
            if path.is_file() or path.is_symlink():
                yield path, None


def _without(line: str, file: str, gone: set[str]) -> str:
    """A line of an account file without these accounts: gone itself, or without them as members of a group."""
    row = line.rstrip("\n").split(":")
    if row[0] in gone:
        return ""
    if file not in ("group", "gshadow"):
        return line
    for index in range(2 if file == "gshadow" else 3, len(row)):
        row[index] = ",".join(member for member in row[index].split(",") if member not in gone)
    return ":".join(row) + "\n"


def _rows(root: Path, name: str) -> list[list[str]]:
    return [line.split(":") for line in _read(root / "etc" / name).splitlines() if line and not line.startswith("#")]


def _read(path: Path) -> str:
    if path.is_symlink() or not path.is_file():
        return ""
    return path.read_bytes().decode("utf-8", "surrogateescape")


def fstab_by_uuid(text: str, root: Path) -> str:
    """An fstab in which no device is called as on the machine that the image was made on.

    What is mounted is called by UUID; removable media and swap on other devices are left out.

    :raises FactoryError: the UUID of a file system that is needed is not known.
    """
    lines = []
    for line in text.splitlines(keepends=True):
        words = line.split()
        if not words or words[0].startswith("#") or len(words) < 4 or not _BUILD_DEVICE.match(words[0]):
            lines.append(line)
        elif words[2] in _PASSING or "noauto" in words[3].split(",") or re.match(r"/dev/(sr|fd|cdrom)", words[0]):
            continue
        else:
            uuid = _uuid_of(root / words[1].lstrip("/"), root)
            if not uuid:
                raise FactoryError(
                    f"{words[0]} for {words[1]} is a name that it has on this machine only",
                    where="/etc/fstab",
                    mend="name it by UUID=… or LABEL=… there, or leave out the operation fstab_devices",
                )
            lines.append(line.replace(words[0], f"UUID={uuid}", 1))
    return "".join(lines)


def _uuid_of(point: Path, root: Path) -> str:
    """The UUID of the file system that is mounted there; '' if it is not known."""
    folder = root / "dev/disk/by-uuid"
    if not point.is_dir() or not folder.is_dir():
        return ""
    device = point.stat().st_dev
    return next((path.name for path in sorted(folder.iterdir()) if path.exists() and path.stat().st_rdev == device), "")


def swap_has_content(path: Path) -> bool:
    """Whether a file is a swap file in which something was swapped out."""
    with path.open("rb") as stream:
        if not stream.read(_PAGE).endswith(_SWAP):
            return False
        return next(_written(stream), None) is not None


def wipe_swap(path: Path) -> None:
    """Overwrite what was swapped out with zeros; the file stays ready for use (holes would not be)."""
    with path.open("r+b") as stream:
        for start, length in list(_written(stream)):
            stream.seek(start)
            stream.write(bytes(length))


def _written(stream: t.BinaryIO) -> t.Iterator[tuple[int, int]]:
    """Where a swap file has something other than zeros behind its first page: (offset, length), at most 1 MiB each."""
    size = os.fstat(stream.fileno()).st_size
    at = _PAGE
    while at < size:
        try:
            at = max(at, os.lseek(stream.fileno(), at, os.SEEK_DATA))
            end = os.lseek(stream.fileno(), at, os.SEEK_HOLE)
        except OSError:
            return
        while at < end:
            stream.seek(at)
            chunk = stream.read(min(1 << 20, end - at))
            if not chunk:
                return
            if chunk.count(0) != len(chunk):
                yield at, len(chunk)
            at += len(chunk)
