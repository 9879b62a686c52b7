# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Checksums as a user writes them, and as vendors publish them: GNU and BSD style checksum files."""

from __future__ import annotations

import dataclasses
import re
import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

KEY = "image_medium.checksum"
ACCEPTED = {"sha256": 64, "sha512": 128}
"""The algorithms that are trusted, each with the number of hexadecimal digits of its checksums."""

Refuse = t.Callable[[t.Sequence[str], str, str], t.NoReturn]
"""Called with the key below the one that is checked, the problem and the mend; raises FactoryError."""

_URL = re.compile(r"https?://\S+")
_WEAK = {"md5": 32, "sha1": 40}
_BSD = re.compile(r"(?P<algorithm>[A-Z0-9-]+) ?\((?P<name>.+)\) ?= ?(?P<value>[0-9A-Fa-f]{32,128})")
_GNU = re.compile(r"\\?(?P<value>[0-9A-Fa-f]{32,128})(?:[ \t]+\*?(?P<name>\S.*))?")


@dataclasses.dataclass(frozen=True)
class Checksum:
    """An algorithm and a value (lower-case hex); C(str) gives ``sha256:<hex>``."""

    algorithm: str
    value: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.value}"


def explicit(text: str) -> Checksum | None:
    """The checksum in ``sha256:<hex>`` or ``sha512:<hex>``; None for what can only be the place of a checksum file."""
    algorithm, colon, value = text.partition(":")
    if algorithm.lower() in ("http", "https", "file") or "/" in algorithm or "." in algorithm:
        return None
    mend = "write sha256:<64 hexadecimal digits>, sha512:<128 digits>, or the URL or path of a checksum file"
    if not colon:
        raise FactoryError("is neither a checksum nor the place of a checksum file", where=text, key=KEY, mend=mend)
    digits = ACCEPTED.get(algorithm.lower())
    if digits is None:
        raise FactoryError(f"the algorithm {algorithm!r} is not accepted", where=text, key=KEY, mend=mend)
    if not re.fullmatch("[0-9A-Fa-f]+", value) or len(value) != digits:
        raise FactoryError(f"is not {digits} hexadecimal digits", where=text, key=KEY, mend=mend)
    return Checksum(algorithm.lower(), value.lower())


def check(given: t.Mapping[str, t.Any], what: str, refuse: Refuse) -> None:
    """Whether what a definition says of a file from elsewhere fits together; nothing is fetched or opened for that.

    :param given: C(url) or C(path), C(checksum), C(signature), C(keyring), C(fingerprints); any may be missing or None.
    :param what: the file, for messages: C(an ISO).
    """
    source = next((key for key in ("url", "path") if given.get(key)), None)
    if source and not given.get("checksum"):
        refuse(("checksum",), f"is missing: {what} by {source} is used only when it is verified", "set it")
    if given.get("url") and not _URL.fullmatch(given["url"]):
        refuse(("url",), f"{given['url']!r} is no URL", "let it begin with https:// or http://")
    try:
        explicit(given.get("checksum") or "/")
    except FactoryError as exc:
        refuse(("checksum",), f"{exc.where} {exc.problem}", exc.mend or "")
    if (given.get("signature") or given.get("fingerprints")) and not given.get("keyring"):
        refuse(("keyring",), "is missing; a signature is worth nothing without the keys that may sign", "set it")


def find(text: str, path: str, *, where: str) -> Checksum:
    """The checksum of one file in the text of a checksum file.

    :param path: the file's path as far as it is known; of several entries the one that agrees with most of it counts.
    :param where: the checksum file, for messages. One named after the medium (``x.iso.sha256``) may leave the name out.
    :raises FactoryError: there is none, none of an accepted algorithm, or there are two that differ.
    """
    name = path.rpartition("/")[2]
    entries = list(_entries(text))
    if re.fullmatch(re.escape(name) + r"\.sha(256|512)(sum)?", where.rpartition("/")[2]) and len(entries) == 1:
        entries = [(name, entries[0][1])]
    ours = [entry for entry in entries if f"/{path}".endswith(f"/{entry[0]}")]
    if not ours:
        names = sorted({entry for entry, _sum in entries if entry})
        listed = f" (it names {', '.join(names[:3])}{' …' if names[3:] else ''})" if names else ""
        raise FactoryError(
            f"has no line for {name}{listed}",
            where=where,
            key=KEY,
            mend="give the checksum file that lists this medium, or sha256:<hex>",
        )
    best = max(len(entry) for entry, _sum in ours)
    sums = {checksum for entry, checksum in ours if len(entry) == best}
    for algorithm in ACCEPTED:
        fitting = sorted(checksum.value for checksum in sums if checksum.algorithm == algorithm)
        if len(fitting) > 1:
            raise FactoryError(f"lists {name} with {len(fitting)} different {algorithm} sums", where=where, key=KEY)
        if fitting:
            return Checksum(algorithm, fitting[0])
    weak = ", ".join(sorted(checksum.algorithm for checksum in sums))
    raise FactoryError(
        f"lists {name} by {weak} only, which is not accepted",
        where=where,
        key=KEY,
        mend="give a file of SHA-256 or SHA-512 checksums",
    )


def names(text: str) -> list[str]:
    """The files that a checksum file lists, without the directories that they are in."""
    return sorted({name.rpartition("/")[2] for name, _sum in _entries(text)} - {""})


def _entries(text: str) -> t.Iterator[tuple[str, Checksum]]:
    by_length = {digits: algorithm for algorithm, digits in {**ACCEPTED, **_WEAK}.items()}
    for line in text.splitlines():
        match = _BSD.fullmatch(line.strip()) or _GNU.fullmatch(line.strip())
        if not match:
            continue
        value = match["value"].lower()
        algorithm = match.groupdict().get("algorithm") or by_length.get(len(value), f"{len(value) * 4}-bit sums")
        algorithm = re.sub(r"^sha(2?-)", "sha", algorithm.lower())
        if ACCEPTED.get(algorithm, len(value)) == len(value):
            name = (match["name"] or "").strip()
            yield re.sub(r"^(\./)+", "", name), Checksum(algorithm, value)
