# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Whether a medium is still where a definition says, as it says, and whether the vendor has a newer one.

Nothing is kept and no ISO is fetched: of that the first 36 KiB are read, which is as far as the volume descriptor goes; beside
it the checksum file with its signature, and lists of directories as web servers make them.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from ansible_collections.cloudimg.factory.plugins.module_utils import _gpg, _iso, _sums
from ansible_collections.cloudimg.factory.plugins.module_utils._download import (
    Client,
    Interrupted,
    Refused,
    Seen,
    check_url,
    shown,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._origins import Definition, FileOrigin
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

STATUSES = ("ok", "newer", "unreachable", "moved", "wrong")
"""What can become of a medium, from the best to the worst."""

_KEY = "image_medium.url"
_HEAD = 18 * 2048
"""Bytes up to the end of the volume descriptors that matter: sector 16 is the primary one (ECMA-119, 6.7.1)."""
_SIBLINGS = 3
"""How many newer directories are looked into."""
_GONE = (404, 410)
_FOR_GOOD = (301, 308)
_ARCHITECTURES = r"x86_64(?:_v\d)?|amd64|arm64|aarch64|i[3-6]86|armhf|ppc64(?:le|el)?|s390x|riscv64"
_PARTS = re.compile(rf"({_ARCHITECTURES})|(\d+(?:\.\d+)*)")
_NUMBER = re.compile(r"\d+(?:\.\d+)*")

Version = tuple[tuple[int, ...], ...]
"""The numbers in the name of a file: C(Fedora-…-44-1.7.iso) has C(((44,), (1, 7)))."""


@dataclasses.dataclass
class Found:
    """What is known of a medium now. Sizes are in bytes, places are shown without what may be secret."""

    url: str
    status: str = "ok"
    problems: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    moved_to: str | None = None
    size: int | None = None
    modified: str | None = None
    label: str | None = None
    checksum: str | None = None
    verified: bool = False
    newer: str | None = None

    def judge(self, status: str, problem: str) -> None:
        """Note what is wrong; the worst counts."""
        self.problems.append(problem)
        self.status = max(self.status, status, key=STATUSES.index)

    @property
    def outcome(self) -> str:
        """All of it in one line."""
        said = [*self.problems, *([f"there is a newer one, {self.newer}"] if self.newer else [])]
        if said:
            return f"{self.status}: {'; '.join(said)}"
        facts = [f"{self.size / (1 << 20):.0f} MiB"] if self.size else []
        facts += [f"of {self.modified}"] if self.modified else []
        facts += ["checksum signed" if self.verified else "checksum listed" if self.checksum else "checksum pinned"]
        return f"ok: {', '.join([*facts, *self.notes])}"


def check(definition: Definition, client: Client, progress: Progress, *, same: int = 1) -> Found:
    """Look at the medium of a definition that names a URL.

    :param same: how many of the leading numbers of its version a newer one has in common with it: with 1 12.12 is newer than
        12.11 and 13.0 is none, with 0 any is.
    :raises FactoryError: the definition does not fit together; what the vendor's server says is in what is returned.
    """
    check_url(definition.url or "", _KEY)
    origin = FileOrigin(definition, client, progress)
    found = Found(origin.shown)
    _look_at_medium(definition.url or "", client, found)
    names = [] if _sums.explicit(definition.checksum or "") else _look_at_sums(origin, found)
    progress.phase("looking for a newer one")
    newest = _newest(definition.url or "", names, client, found, same)
    if newest:
        found.newer = shown(newest)
        found.status = max(found.status, "newer", key=STATUSES.index)
    return found


def _look_at_medium(url: str, client: Client, found: Found) -> None:
    try:
        seen = client.look(url, key=_KEY, wanted=_HEAD)
    except Refused as exc:
        gone = exc.status in _GONE
        found.judge("moved" if gone else "unreachable", "it is gone (HTTP 404)" if exc.status == 404 else exc.problem)
        return
    except Interrupted as exc:
        found.judge("unreachable", exc.problem)
        return
    except FactoryError as exc:
        found.judge("unreachable", f"{exc.where}: {exc.problem}")
        return
    found.size, found.modified = seen.size, seen.modified
    _judge_way(url, seen, found)
    _judge_content(seen, found)


def _judge_way(url: str, seen: Seen, found: Found) -> None:
    """Whether the server sends us to the same file, as one does that knows mirrors, or to another place for good."""
    if not seen.hops:
        return
    place = shown(seen.url)
    found.moved_to = place
    before, after = urlsplit(url), urlsplit(seen.url)
    if _name(seen.url) != _name(url):
        found.judge("moved", f"it is redirected to {place}, another file")
    elif any(status in _FOR_GOOD for status, _step in seen.hops) and (
        (before.hostname, before.path) != (after.hostname, after.path)
    ):
        found.judge("moved", f"it is redirected to {place} for good")
    else:
        # What protects the file is its checksum, not the way that it takes.
        plain = before.scheme == "https" and after.scheme != "https"
        found.notes.append(f"from {after.hostname}{' by plain http' if plain else ''}")


def _judge_content(seen: Seen, found: Found) -> None:
    if len(seen.head) < _HEAD and (seen.size is None or len(seen.head) < seen.size):
        found.notes.append("the server is too slow to look into it")
        return
    try:
        volume = _iso.read_volume(seen.head, seen.size or 0, where=found.url, key=_KEY)
    except FactoryError as exc:
        found.judge("wrong", f"it {exc.problem}")
    else:
        found.label = volume.label


def _look_at_sums(origin: FileOrigin, found: Found) -> list[str]:
    """The names in the checksum file, as far as it can be trusted."""
    try:
        listing = origin.listing()
        found.verified = origin.signed
    except Refused as exc:
        gone = exc.status in _GONE
        found.judge("moved" if gone else "unreachable", f"{exc.where}: {exc.problem}")
        return []
    except Interrupted as exc:
        found.judge("unreachable", f"{exc.where}: {exc.problem}")
        return []
    except FactoryError as exc:
        ours = exc.key in (_gpg.SIGNATURE, _gpg.KEYRING, _gpg.FINGERPRINTS)
        found.judge("wrong" if ours else "unreachable", f"{exc.where}: {exc.problem}")
        return []
    try:
        found.checksum = str(origin.find(listing))
    except FactoryError as exc:
        found.judge("moved", f"{exc.where} {exc.problem}")
    return _sums.names(listing)


def _newest(url: str, names: t.Sequence[str], client: Client, found: Found, same: int) -> str | None:
    """The URL of the newest file of the same kind that is newer; None where there is none, or none is known of."""
    pattern = _kind(_name(url))
    ours = _version(pattern, _name(url))
    if not ours:
        return None
    beside = urljoin(url, ".")
    places = {beside: [*names, *(_entries(beside, client, found) or [])]}
    places |= {place: _entries(place, client, found) or [] for place in _siblings(url, ours, client, found, same)}
    newer: list[tuple[Version, str]] = []
    for place, entries in places.items():
        for name in entries:
            version = _version(pattern, name)
            if version and version > ours and version[0][:same] == ours[0][:same]:
                newer.append((version, urljoin(place, name)))
    return max(newer)[1] if newer else None


def _siblings(url: str, ours: Version, client: Client, found: Found, same: int) -> list[str]:
    """The directories of newer releases: those beside each directory that is named after a number of the file's name."""
    parts = urlsplit(url)
    steps = parts.path.split("/")
    places = []
    for index, step in enumerate(steps[:-1]):
        number = _numbers(step)
        if not number or not any(group[: len(number)] == number for group in ours):
            continue
        parent = parts._replace(path="/".join(steps[:index]) + "/", query="").geturl()
        others = [(_numbers(entry), entry) for entry in _entries(parent, client, found) or []]
        newer = sorted((each for each in others if each[0] > number and each[0][:same] == number[:same]), reverse=True)
        for _number, name in newer[:_SIBLINGS]:
            path = "/".join([*steps[:index], name, *steps[index + 1 : -1]]) + "/"
            places.append(parts._replace(path=path, query="").geturl())
    return places


def _entries(place: str, client: Client, found: Found) -> list[str] | None:
    """The names in a directory; None where the server does not tell."""
    try:
        data = client.read(place, key=_KEY)
    except FactoryError:
        data = b""
    links = _Links(place)
    links.feed(data.decode("utf-8", "replace"))
    if not links.names:
        note = f"{shown(place)} does not list its files"
        found.notes += [] if note in found.notes else [note]
        return None
    return sorted(links.names)


class _Links(HTMLParser):
    """The names of the files and directories directly below a place that a page links to."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self._place = place
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take the target of a link."""
        target = dict(attrs).get("href") if tag == "a" else None
        if not target:
            return
        try:
            link = urlsplit(urljoin(self._place, target))
        except ValueError:
            return
        base = urlsplit(self._place)
        below = link.path[len(base.path) :] if link.path.startswith(base.path) else ""
        name = unquote(below.rstrip("/"))
        if link.netloc == base.netloc and name and "/" not in name and name.isprintable():
            self.names.add(name)


def _name(url: str) -> str:
    return Path(unquote(urlsplit(url).path)).name


def _numbers(text: str) -> tuple[int, ...]:
    """C(12.11) as numbers; empty for what is something else."""
    return tuple(map(int, text.split("."))) if _NUMBER.fullmatch(text) and len(text) < 32 else ()


def _kind(name: str) -> re.Pattern[str]:
    """What fits the names of all versions of a file: its name with any number for each number but those of architectures."""
    pieces, end = [], 0
    for match in _PARTS.finditer(name):
        pieces += [re.escape(name[end : match.start()]), re.escape(match[1]) if match[1] else f"({_NUMBER.pattern})"]
        end = match.end()
    return re.compile("".join([*pieces, re.escape(name[end:])]))


def _version(pattern: re.Pattern[str], name: str) -> Version:
    match = pattern.fullmatch(name) if len(name) < 256 else None
    return tuple(_numbers(number) for number in match.groups()) if match else ()
