# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Judging a HEPiX image list as its subscribers do: signature, chain, endorser, times, and whether it is an older one."""

from __future__ import annotations

import dataclasses
import datetime
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import (
    _descriptor,
    _hepix,
    _hepix_images,
    _hepix_smime,
    _x509,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._hepix import Document
from ansible_collections.cloudimg.factory.plugins.module_utils._hepix_smime import SignedList
from ansible_collections.cloudimg.factory.plugins.module_utils._libraries import need
from ansible_collections.cloudimg.factory.plugins.module_utils._versions import version_key

_DO_NOT_TRUST = "fetch it again from who publishes it, and do not trust this one"


@dataclasses.dataclass(frozen=True)
class Policy:
    """What a list has to be.

    :param ca_directory: trust anchors (and CRLs) in OpenSSL's hashed form; None leaves the chain unverified.
    :param crl: which certificates of the chain need a valid CRL: C(all), C(leaf) or C(none).
    :param endorsers: (dn, ca) of those who may sign; None: whoever the anchors vouch for.
    :param known_version: the list must not be older than that.
    :param known: a copy that was accepted before: the list must be the same one, and not older.
    :param strict: refuse what this collection would not have written, see :mod:`_hepix_smime`.
    """

    ca_directory: Path | None
    crl: str = "all"
    endorsers: tuple[tuple[str, str], ...] | None = None
    known_version: str | None = None
    known: Path | None = None
    strict: bool = True
    moment: datetime.datetime = dataclasses.field(default_factory=lambda: datetime.datetime.now(datetime.timezone.utc))


@dataclasses.dataclass(frozen=True)
class Report:
    """What was found; without ``found`` nothing of the list can be trusted, not even what it says."""

    problems: list[str]
    found: SignedList | None

    def dump(self, moment: datetime.datetime) -> dict[str, t.Any]:
        """For a module's result."""
        told: dict[str, t.Any] = {"valid": not self.problems, "problems": self.problems}
        if self.found is None:
            return told
        document, signed = self.found.document, self.found.signed
        endorser = _person(document)
        expires = _moment(document.get("dc:date:expires"))
        return {
            **told,
            "content": document,
            "identifier": document.get("dc:identifier"),
            "title": document.get("dc:title"),
            "version": document.get("hv:version"),
            "created": document.get("dc:date:created"),
            "expires": document.get("dc:date:expires"),
            "seconds_left": None if expires is None else int((expires - moment).total_seconds()),
            "endorser": {
                "name": endorser.get("dc:creator"),
                "email": endorser.get("hv:email"),
                "dn": endorser.get("hv:dn"),
                "ca": endorser.get("hv:ca"),
            },
            "signer": {
                "dn": _x509.dn_oneline(signed.certificate.subject),
                "ca": _x509.dn_oneline(signed.certificate.issuer),
                "fingerprint": _x509.fingerprint(signed.certificate),
                "expires": _descriptor.format_time(signed.certificate.not_valid_after_utc),
                "digest": signed.digest,
                "time": _descriptor.format_time(signed.time) if signed.time else None,
            },
            "canonical": self.found.canonical,
            "images": [_image(entry, moment) for entry in _hepix.images(document)],
        }


def inspect(path: Path, policy: Policy) -> Report:
    """Read a list and judge it by a policy: all that is wrong with it, one line each.

    :raises FactoryError: what it is to be judged by is unusable (the directory of trust anchors, the known copy, a library).
    """
    need("cryptography", _x509.CRYPTOGRAPHY)
    if policy.ca_directory is not None:
        _x509.check_ca_directory(policy.ca_directory, crl=policy.crl)
    former = _hepix_smime.load(policy.known, strict=policy.strict) if policy.known else None
    try:
        found = _hepix_smime.load(path, strict=policy.strict)
    except FactoryError as exc:
        return Report([str(exc)], None)
    where = str(path)
    checks: list[t.Callable[[], None]] = [
        lambda: _trusted(found, policy, where),
        lambda: _endorsed(found, policy, where),
        lambda: _complete(found.document, where),
        lambda: _in_time(found.document, policy.moment, where),
        lambda: _not_older(found, former, policy, where),
    ]
    problems = []
    for check in checks:
        try:
            check()
        except FactoryError as exc:
            problems.append(str(exc))
    return Report(problems, found)


def _trusted(found: SignedList, policy: Policy, where: str) -> None:
    signed = found.signed
    _x509.check_usage(signed.certificate, where)
    if policy.ca_directory is None:
        _x509.check_time(signed.certificate, where, at=policy.moment)
        return

    def verify(certificate: t.Any, purpose: str) -> None:
        chain = [certificate, *(other for other in signed.others if other != certificate)]
        directory = t.cast(Path, policy.ca_directory)
        _x509.verify_chain(chain, directory, where=where, crl=policy.crl, purpose=purpose, at=policy.moment)

    verify(signed.certificate, "smimesign")
    # No signature covers the certificates that came along: one that was changed, or put in, shows in its own chain only.
    for other in signed.others if policy.strict else ():
        verify(other, "any")


def _endorsed(found: SignedList, policy: Policy, where: str) -> None:
    certificate = found.signed.certificate
    dn, ca = _x509.dn_oneline(certificate.subject), _x509.dn_oneline(certificate.issuer)
    said = _person(found.document)
    for key, value in (("hv:dn", dn), ("hv:ca", ca)):
        if said.get(key) != value:
            raise FactoryError(
                f"is {said.get(key)!r}, the certificate that signed has {value!r}",
                where=where,
                key=f"hv:endorser.hv:x509.{key}",
                mend=_DO_NOT_TRUST,
            )
    if policy.endorsers is not None and (dn, ca) not in policy.endorsers:
        raise FactoryError(
            f"{dn} (of {ca}) is not among those who may endorse",
            where=where,
            key="endorsers",
            mend="add this dn and ca once you trust them, or do not use the list",
        )


def _complete(document: Document, where: str) -> None:
    lacks = _hepix.missing(document)
    if lacks:
        more = f", and {len(lacks) - 1} more keys are" if len(lacks) > 1 else " is"
        raise FactoryError(
            f"{lacks[0]}{more} missing, which vmcatcher, atrope or cloudkeeper need",
            where=where,
            mend="have its publisher add them",
        )


def _in_time(document: Document, moment: datetime.datetime, where: str) -> None:
    created, expires = (_moment(document.get(key)) for key in ("dc:date:created", "dc:date:expires"))
    for key, value in (("dc:date:created", created), ("dc:date:expires", expires)):
        if value is None:
            raise FactoryError(
                f"is no date: {document.get(key)!r}", where=where, key=key, mend="have its publisher sign it anew"
            )
    if created and created > moment + datetime.timedelta(minutes=5):  # clocks differ a little
        raise FactoryError(
            f"is in the future, {document['dc:date:created']}",
            where=where,
            key="dc:date:created",
            mend="set the clock, or wait",
        )
    if expires and expires <= moment:
        raise FactoryError(
            f"the list expired at {document['dc:date:expires']}",
            where=where,
            key="dc:date:expires",
            mend="fetch it again, or have its publisher sign it anew",
        )


def _not_older(found: SignedList, former: SignedList | None, policy: Policy, where: str) -> None:
    version = str(found.document.get("hv:version"))
    known = [policy.known_version] if policy.known_version else []
    if former is not None:
        identifier, former_one = (one.document.get("dc:identifier") for one in (found, former))
        if identifier != former_one:
            raise FactoryError(
                f"is {identifier!r}, that of the known copy is {former_one!r}",
                where=where,
                key="dc:identifier",
                mend="give a copy of the same list",
            )
        known.append(str(former.document.get("hv:version")))
        if version == known[-1] and former.document != found.document:
            raise FactoryError(
                f"is {version} as in the known copy, but the content is another",
                where=where,
                key="hv:version",
                mend=_DO_NOT_TRUST,
            )
    newest = max(known, key=version_key, default=None)
    if newest is not None and version_key(version) < version_key(newest):
        raise FactoryError(
            f"is {version}, older than {newest}, which was seen before: somebody may serve an old list again",
            where=where,
            key="hv:version",
            mend=_DO_NOT_TRUST,
        )


def _person(document: Document) -> Document:
    endorser = document.get("hv:endorser")
    person = endorser.get("hv:x509") if isinstance(endorser, dict) else None
    return person if isinstance(person, dict) else {}


def _moment(text: t.Any) -> datetime.datetime | None:
    try:
        return _descriptor.parse_time(str(text))
    except ValueError:
        return None


def _image(entry: Document, moment: datetime.datetime) -> dict[str, t.Any]:
    expires = _moment(entry.get("dc:date:expires"))
    return {
        "identifier": entry.get("dc:identifier"),
        "stable_identifier": _hepix_images.group(entry),
        "image": entry.get(_hepix.NAME),
        "version": entry.get("hv:version"),
        "title": entry.get("dc:title"),
        "format": entry.get("hv:format"),
        "size": entry.get("hv:size"),
        "uri": entry.get("hv:uri"),
        "sha512": entry.get("sl:checksum:sha512"),
        "expires": entry.get("dc:date:expires"),
        "expired": expires is None or expires <= moment,
    }
