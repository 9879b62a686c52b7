# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""A site's policy on images, whatever catalogue they come from: whose, which, and until when.

After C(stratus-policy-image) of StratusLab/client (PolicyValidator.py, Policy.py), which knows allow-lists and block-lists of
endorsers, images and SHA-1 checksums.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

LISTS = ("endorsers", "images", "checksums")
"""What can be allowed and blocked."""

_UUID = re.compile(r"(?i)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_HEX = re.compile(r"(?i)(?:(md5|sha1|sha256|sha512):)?([0-9a-f]{32,128})")
_LENGTHS = {32: "md5", 40: "sha1", 64: "sha256", 128: "sha512"}
_OUT = ("deprecated", "expired", "removed", "retired")
_MEND = "give metadata as the _info modules of this collection return them, a list of HEPiX, or descriptors"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An image as a policy sees it.

    :ivar identifiers: all by which it may be named in a list, the one to show first.
    :ivar endorsers: the endorser's e-mail address and names, in each spelling that is known.
    :ivar checksums: of its files, as C(algorithm:hex).
    :ivar trusted: whether its signer was held against authorities; None where nothing is told of a signature.
    """

    catalogue: str
    identifiers: tuple[str, ...]
    title: str = ""
    version: str = ""
    endorsers: tuple[str, ...] = ()
    checksums: frozenset[str] = frozenset()
    sizes: frozenset[int] = frozenset()
    expires: str | None = None
    deprecated: str | None = None
    trusted: bool | None = None


@dataclasses.dataclass(frozen=True)
class Policy:
    """What a site takes. Of the lists in ``allow`` one that is None allows all, and an empty one nothing.

    :ivar expired: whether images are taken whose time is over; ``deprecated`` likewise.
    :ivar untrusted: whether endorsers are believed whose signature was held against no authority.
    """

    allow: t.Mapping[str, t.Sequence[str] | None] = dataclasses.field(default_factory=dict)
    block: t.Mapping[str, t.Sequence[str] | None] = dataclasses.field(default_factory=dict)
    expired: bool = False
    deprecated: bool = False
    untrusted: bool = False
    require_expiry: bool = False

    def __post_init__(self) -> None:
        for kind, lists in (("allow", self.allow), ("block", self.block)):
            for text in lists.get("checksums") or []:
                found = _HEX.fullmatch(text.strip())
                if not found or len(found[2]) not in _LENGTHS or found[1] not in (None, _LENGTHS[len(found[2])]):
                    raise FactoryError(
                        f"has {text!r}, which is no checksum",
                        key=f"{kind}.checksums",
                        mend="give the hexadecimal digits of MD5, SHA-1, SHA-256 or SHA-512, with or without «sha256:» before",
                    )

    def judge(self, candidate: Candidate, now: str | None = None) -> list[str]:
        """Why an image is not taken, all the reasons; none where it is."""
        moment = now or _descriptor.now()
        reasons = [
            *self._listed("endorsers", "endorser", candidate.endorsers),
            *self._listed("images", "image", candidate.identifiers),
            *self._listed("checksums", "checksum", sorted(candidate.checksums)),
        ]
        if candidate.trusted is False and not self.untrusted:
            reasons.append("its signature was held against no authority, so that its endorser may be anybody")
        if candidate.deprecated is not None and not self.deprecated:
            reasons.append(f"it is {candidate.deprecated}")
        if candidate.expires is None:
            if self.require_expiry:
                reasons.append("it does not say when it expires")
        elif not self.expired and _moment(candidate.expires) <= _moment(moment):
            reasons.append(f"its time ended at {candidate.expires}")
        return reasons

    def _listed(self, kind: str, word: str, values: t.Sequence[str]) -> t.Iterator[str]:
        wanted, unwanted = self.allow.get(kind), self.block.get(kind)
        mine = {_key(value) for value in values}
        for entry in unwanted or []:
            if mine & _keys(entry, kind):
                yield f"{word} {entry.strip()} is blocked"
        if wanted is None:
            return
        if not values:
            yield f"it names no {word}, and only some are allowed"
        elif not any(mine & _keys(entry, kind) for entry in wanted):
            yield f"{word} {values[0]} is not allowed"


def expires_soon(candidate: Candidate, days: int, now: str | None = None) -> bool:
    """Whether an image's time ends within so many days, or has ended."""
    if candidate.expires is None:
        return False
    return _moment(candidate.expires) <= _moment(now or _descriptor.now()) + datetime.timedelta(days=days)


def candidates(document: t.Any, where: str) -> list[Candidate]:
    """The images in metadata of whatever catalogue: one, or those of a list.

    It knows entries of M(cloudimg.factory.stratuslab_metadata_info), descriptors, images and versions of
    M(cloudimg.factory.image_catalogue_info), what M(cloudimg.factory.hepix_image_list_info) returns, lists and images of HEPiX,
    appliances and versions of AppDB, and mappings with keys of our own (C(identifier), C(endorser), C(checksums), C(expires),
    C(deprecated)).

    :raises FactoryError: it is none of these.
    """
    try:
        return _candidates(document, where)
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise FactoryError(f"cannot be read as metadata of an image: {exc}", where=where, mend=_MEND) from exc


def _candidates(document: t.Any, where: str) -> list[Candidate]:
    """As :func:`candidates`, but parts of the wrong type raise what Python raises."""
    if not isinstance(document, dict):
        raise FactoryError("must be a mapping", where=where, mend=_MEND)
    if "hv:imagelist" in document or "hv:images" in document:
        return _hepix_list(document.get("hv:imagelist", document), where)
    if "hv:image" in document or any(str(key).startswith(("hv:", "sl:")) for key in document):
        return [_hepix_image(document.get("hv:image", document), {}, where)]
    if isinstance(document.get("content"), dict) and "hv:images" in document["content"]:
        return _hepix_list(document["content"], where, signer=document.get("signer"), trusted=document.get("valid"))
    if "versions" in document:
        title, image = document.get("title") or document.get("name") or "", document.get("identifier")
        return [
            _appdb(version, title, image)
            if isinstance(version.get("image"), dict)
            else _catalogue_version({"title": title, "image_identifier": image, **version})
            for version in document["versions"]
        ]
    if isinstance(document.get("image"), dict) and "checksum" in document["image"]:
        return [_appdb(document)]
    if isinstance(document.get("endorsement"), dict):
        return [_stratuslab(document)]
    if "artifacts" in document:
        return [_catalogue_version(document)]
    if "identifier" in document:
        return [_plain(document)]
    raise FactoryError("is no metadata of an image that is known here", where=where, mend=_MEND)


def _stratuslab(entry: t.Mapping[str, t.Any]) -> Candidate:
    endorsement, signature = entry["endorsement"], entry.get("signature") or {}
    names = [endorsement.get("email"), endorsement.get("subject"), signature.get("subject")]
    return Candidate(
        "stratuslab",
        _texts(entry.get("identifier")),
        str(entry.get("title", "")),
        str(entry.get("version", "")),
        _texts(*names),
        _sums(entry.get("checksums")),
        _sizes([entry.get("size")]),
        entry.get("valid") or None,
        f"deprecated: {entry['deprecated']}" if "deprecated" in entry else None,
        signature.get("trusted"),
    )


def _catalogue_version(entry: t.Mapping[str, t.Any]) -> Candidate:
    """A descriptor, or a version in the local catalogue's index."""
    endorser = entry.get("endorser") or {}
    artifacts = entry.get("artifacts") or []
    state = entry.get("state")
    return Candidate(
        "local",
        _texts(
            entry.get("version_identifier"), entry.get("identifier"), entry.get("image_identifier"), entry.get("image")
        ),
        str(entry.get("title", "")),
        str(entry.get("version", "")),
        _texts(endorser.get("email"), endorser.get("dn"), endorser.get("name")),
        frozenset().union(*(_sums(one.get("checksums")) for one in artifacts)) if artifacts else frozenset(),
        _sizes([one.get("size") for one in artifacts]),
        entry.get("expires"),
        str(state) if state in _OUT and state != "expired" else None,
    )


def _appdb(version: t.Mapping[str, t.Any], title: str = "", image: t.Any = None) -> Candidate:
    """A version of an appliance in EGI's AppDB."""
    file = version["image"]
    out = "archived" if version.get("archived") else "disabled" if version.get("enabled") is False else None
    return Candidate(
        "appdb",
        _texts(version.get("id"), image),
        title,
        str(version.get("version", "")),
        checksums=_sums({file.get("hash"): file.get("checksum")}),
        sizes=_sizes([file.get("size")]),
        expires=version.get("expires") or None,
        deprecated=out,
    )


def _hepix_list(listed: t.Any, where: str, *, signer: t.Any = None, trusted: t.Any = None) -> list[Candidate]:
    """The images of a list; ``signer`` and ``trusted`` are what was verified of it."""
    if not isinstance(listed, dict) or not isinstance(listed.get("hv:images"), list):
        raise FactoryError("has no list of images", where=where, key="hv:images", mend=_MEND)
    found = []
    for number, one in enumerate(listed["hv:images"]):
        image = one.get("hv:image", one) if isinstance(one, dict) else None
        if not isinstance(image, dict):
            raise FactoryError("must be a mapping", where=where, key=f"hv:images[{number}]", mend=_MEND)
        one = _hepix_image(image, listed, where)
        names = _texts(*one.endorsers, (signer or {}).get("dn"))
        found.append(dataclasses.replace(one, endorsers=names, trusted=trusted))
    return found


def _hepix_image(image: t.Any, listed: t.Mapping[str, t.Any], where: str) -> Candidate:
    if not isinstance(image, dict) or not image.get("dc:identifier"):
        raise FactoryError("is missing", where=where, key="dc:identifier", mend=_MEND)
    endorser = (listed.get("hv:endorser") or image.get("hv:endorser") or {}).get("hv:x509") or {}
    # When a list expires, what is in it is no longer endorsed.
    ends = [text for text in (image.get("dc:date:expires"), listed.get("dc:date:expires")) if text]
    sums = {key.rpartition(":")[2]: value for key, value in image.items() if key.startswith("sl:checksum:")}
    return Candidate(
        "hepix",
        _texts(image["dc:identifier"], image.get("ad:mpuri")),
        str(image.get("dc:title", "")),
        str(image.get("hv:version", "")),
        _texts(endorser.get("hv:email"), endorser.get("hv:dn")),
        _sums(sums),
        _sizes([image.get("hv:size")]),
        min(ends, key=_moment) if ends else None,
    )


def _plain(entry: t.Mapping[str, t.Any]) -> Candidate:
    endorser = entry.get("endorser") or {}
    names = (
        [endorser] if isinstance(endorser, str) else [endorser.get("email"), endorser.get("dn"), endorser.get("name")]
    )
    deprecated = entry.get("deprecated")
    sums = entry.get("checksums") or {name: entry.get(name) for name in _LENGTHS.values()}
    return Candidate(
        str(entry.get("catalogue", "")),
        _texts(entry["identifier"], entry.get("stable_identifier"), entry.get("image")),
        str(entry.get("title", "")),
        str(entry.get("version", "")),
        _texts(*names),
        _sums(sums),
        _sizes([entry.get("size")]),
        entry.get("expires") or None,
        (f"deprecated: {deprecated}" if isinstance(deprecated, str) else "deprecated") if deprecated else None,
        entry.get("trusted"),
    )


def _texts(*values: t.Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(value) for value in values if value not in (None, "")))


def _sums(checksums: t.Any) -> frozenset[str]:
    found = checksums.items() if isinstance(checksums, dict) else ()
    return frozenset(f"{str(name).lower().replace('-', '')}:{str(value).lower()}" for name, value in found if value)


def _sizes(values: t.Iterable[t.Any]) -> frozenset[int]:
    return frozenset(int(value) for value in values if str(value).isascii() and str(value).isdigit())


def _moment(text: str) -> datetime.datetime:
    """A date of any catalogue; raises FactoryError where it is none, for an end that cannot be read is no end."""
    try:
        found = datetime.datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", str(text)))
    except ValueError:
        raise FactoryError(
            f"is no date: {text!r}", key="expires", mend="give one such as 2025-01-31T12:00:00Z"
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=datetime.timezone.utc)


def _key(text: str) -> str:
    """What is compared: addresses, UUIDs and checksums whatever their case, all else to the letter."""
    found = text.strip()
    loose = (
        _UUID.fullmatch(found)
        or _HEX.fullmatch(found)
        or ("@" in found and not found.startswith("/") and "=" not in found)
    )
    return found.lower() if loose else found


def _keys(entry: str, kind: str) -> set[str]:
    key = _key(entry)
    if kind == "checksums" and ":" not in key:
        return {f"{_LENGTHS[len(key)]}:{key}"}
    return {key}


def file_reasons(candidate: Candidate, size: int, digests: t.Mapping[str, str]) -> list[str]:
    """Why a file is not the one that an image's metadata describe; none where it is.

    :param digests: of the file, by our names of algorithms.
    """
    mine = {f"{name}:{value}" for name, value in digests.items()}
    known = {one for one in candidate.checksums if one.partition(":")[0] in digests}
    reasons = []
    if not known:
        reasons.append("its metadata have no checksum to hold the file against")
    elif not known & mine:
        reasons.append("the file has none of its checksums")
    else:
        # An image of several files has several checksums by each algorithm: all that the file has by it must be among them.
        for name in sorted({one.partition(":")[0] for one in known}):
            if f"{name}:{digests[name]}" not in known:
                reasons.append(f"the file has another {name} than it")
    if candidate.sizes and size not in candidate.sizes:
        reasons.append(f"the file has {size} bytes, and it {' or '.join(map(str, sorted(candidate.sizes)))}")
    return reasons
