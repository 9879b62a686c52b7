# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Reading metadata from signed files and from a StratusLab Marketplace: nothing is returned that was not verified."""

from __future__ import annotations

import dataclasses
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _state, _x509
from ansible_collections.cloudimg.factory.plugins.module_utils import _stratuslab_document as _document
from ansible_collections.cloudimg.factory.plugins.module_utils import _stratuslab_rules as _rules
from ansible_collections.cloudimg.factory.plugins.module_utils import _stratuslab_signature as _signature
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._stratuslab_market import STATUSES, Entry, Marketplace


@dataclasses.dataclass(frozen=True)
class Judge:
    """How documents are verified.

    :ivar profiles: which of _stratuslab_signature.PROFILES will do.
    :ivar ca_directory: authorities (and CRLs) that the signer has to be valid by; without it nobody is known to be trusted.
    """

    profiles: tuple[str, ...] = ("sha256",)
    ca_directory: Path | None = None
    crl: str = "all"

    def read(self, octets: bytes, where: str) -> dict[str, t.Any]:
        """What a document says, and who has signed it; raises FactoryError where it is not to be believed."""
        verified = _signature.verify(octets, where, profiles=self.profiles)
        _rules.check(verified, where)
        if self.ca_directory:
            _signature.trust(verified, where, ca_directory=self.ca_directory, crl=self.crl)
        said = _document.read(verified.root)
        signer = verified.certificates[0]
        return {
            **said,
            "status": _document.status(said),
            "where": where,
            "signature": {
                "profile": verified.profile,
                "fingerprint": _x509.fingerprint(signer),
                "subject": _x509.dn_oneline(signer.subject),
                "issuer": _x509.dn_oneline(signer.issuer),
                "not_after": _descriptor.format_time(signer.not_valid_after_utc),
                "trusted": self.ca_directory is not None,
            },
            "deviations": [f"{key}: {problem}" for key, problem in _rules.schema_problems(verified.root)],
        }


def read_file(path: Path) -> bytes:
    """A document's bytes, hardly more of them than a document may have."""
    with _state.explain_os_errors(path), path.open("rb") as stream:
        return stream.read(_signature.LARGEST + 1)


def files(paths: t.Sequence[Path], judge: Judge) -> tuple[list[dict[str, t.Any]], list[dict[str, str]]]:
    """What signed files say: the entries, and those that are refused, as C({"where": …, "problem": …})."""
    return _judged(((read_file(path), str(path)) for path in paths), judge)


def entries(
    market: Marketplace,
    judge: Judge,
    *,
    identifier: str | None = None,
    email: str | None = None,
    created: str | None = None,
    status: str = "valid",
) -> tuple[list[dict[str, t.Any]], list[dict[str, str]]]:
    """What a Marketplace has, like :func:`files`.

    :param created: of one entry, which need not be the newest; ``identifier`` and ``email`` are needed then.
    :param status: one of STATUSES, or C(any).
    :raises FactoryError: the server does not answer as a Marketplace does, or an argument cannot be.
    """
    if identifier is not None and not _document.IDENTIFIER.fullmatch(identifier):
        raise FactoryError(f"cannot be {identifier!r}", key="identifier", mend="give the 27 characters of one")
    if email is not None and not _document.EMAIL.fullmatch(email):
        raise FactoryError(f"cannot be {email!r}", key="email", mend="give the address of an endorser")
    if created is not None and not _rules.is_date(created):
        raise FactoryError(f"cannot be {created!r}", key="created", mend="give a date such as 2025-01-31T12:00:00Z")
    if created and identifier and email:
        wanted = [Entry(identifier, email, created)]
    else:
        wanted = [
            entry
            for kind in (STATUSES if status == "any" else (status,))
            for entry in market.listing(kind, identifier, email)
        ]

    def documents() -> t.Iterator[tuple[bytes, str]]:
        for entry in sorted(set(wanted)):
            octets = market.fetch(entry)
            if octets is not None:
                yield octets, market.link(entry)

    found, refused = _judged(documents(), judge)
    told = {market.link(entry): entry for entry in wanted}
    for one in list(found):
        endorsement = one["endorsement"]
        if Entry(one["identifier"], endorsement["email"], endorsement["created"]) != told[one["where"]]:
            found.remove(one)
            refused.append({"where": one["where"], "problem": "is the document of another entry"})
    return found, refused


def _judged(
    documents: t.Iterable[tuple[bytes, str]], judge: Judge
) -> tuple[list[dict[str, t.Any]], list[dict[str, str]]]:
    found: list[dict[str, t.Any]] = []
    refused: list[dict[str, str]] = []
    for octets, where in documents:
        try:
            found.append(judge.read(octets, where))
        except FactoryError as exc:
            refused.append({"where": where, "problem": f"{exc.key}: {exc.problem}" if exc.key else exc.problem})
    return found, refused
