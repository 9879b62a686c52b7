# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""A HEPiX image list as a file that is kept: changed, signed anew when something differs or its time runs out."""

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
    _state,
    _x509,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor_files import checked
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._hepix import Document
from ansible_collections.cloudimg.factory.plugins.module_utils._hepix_smime import SignedList
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, made_later
from ansible_collections.cloudimg.factory.plugins.module_utils._versions import version_key

_LOCK_WAIT = 300.0
_TIMES = ("dc:date:created", "dc:date:expires", "hv:version")
"""What every signing sets anew."""


@dataclasses.dataclass(frozen=True)
class ImageList:
    """A list in the file ``path``, signed by ``signer``.

    :param lifetime: from its signing to its expiry; the signer's certificate may end it earlier.
    :param renew_before: a list with less life than that is signed anew.
    :param version: the list's version; by default a timestamp.
    :param former: (dn, ca) of endorsers whose list may be taken over.
    :param moment: now.
    """

    path: Path
    signer: _x509.Signer
    meta: _hepix.Meta = dataclasses.field(default_factory=_hepix.Meta)
    lifetime: datetime.timedelta = datetime.timedelta(days=28)
    renew_before: datetime.timedelta = datetime.timedelta(days=7)
    version: str | None = None
    former: tuple[tuple[str, str], ...] = ()
    check_mode: bool = False
    moment: datetime.datetime = dataclasses.field(
        default_factory=lambda: datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    )

    def present(self, descriptor_path: Path | None, options: _hepix_images.ImageOptions, keep: int) -> Result:
        """Have a build in the list; without one, have the list as ``meta`` says and not about to expire."""
        if descriptor_path is None:
            return self._change(lambda _listed, entries: _Change(entries))
        if self.check_mode and not descriptor_path.exists():
            return made_later(descriptor_path, "it is published")
        build = _descriptor.load(descriptor_path)
        _descriptor.must_be_alive(build.expires, descriptor_path, moment=_descriptor.format_time(self.moment))
        artifact = _hepix_images.pick(build, options.format, str(descriptor_path))
        checked(descriptor_path, build, artifact)

        def change(listed: Document, entries: list[Document]) -> _Change:
            new = _hepix_images.image(build, artifact, options, listed)
            after, gone = _hepix_images.place(entries, new, keep, str(self.path))
            reasons = [f"{_hepix_images.label(entry)}: is left out, keep is {keep}" for entry in gone]
            known = next((entry for entry in entries if _same(entry, new)), None)
            placed = next(entry for entry in after if _same(entry, new))
            if known is None:
                reasons.insert(0, f"{build.image} {build.version}: is not in the list yet")
            elif known != placed:
                differing = sorted(key for key in {*known, *placed} if known.get(key) != placed.get(key))
                reasons.insert(0, f"{build.image} {build.version}: {', '.join(differing)} differ")
            return _Change(after, reasons, gone, new)

        result = self._change(change)
        result.image = build.document()
        return result

    def absent(self, *, identifier: str | None, name: str | None, version: str | None) -> Result:
        """Have no such image (or no such version of it) in the list."""

        def change(_listed: Document, entries: list[Document]) -> _Change:
            after, gone = _hepix_images.take_out(entries, stable=identifier, name=name, version=version)
            return _Change(after, [f"{_hepix_images.label(entry)}: shall not be in the list" for entry in gone], gone)

        if not self.path.exists():
            return Result(extra={"list": str(self.path), "removed": []})
        return self._change(change)

    def empty(self) -> Result:
        """Have a list without images: what tells subscribers that all of them are withdrawn."""

        def change(_listed: Document, entries: list[Document]) -> _Change:
            return _Change([], [f"{_hepix_images.label(entry)}: the list shall be empty" for entry in entries], entries)

        return self._change(change)

    def _change(self, change: t.Callable[[Document, list[Document]], _Change]) -> Result:
        """Read the list, have it changed, and write it where something differs or its time runs out."""
        self._check_signer()
        if self.check_mode:
            return self._changed(change)
        lock = self.path.with_name(f".{self.path.name}.lock")
        with _state.lock(lock, wait=_LOCK_WAIT, busy="another process signs this list"):
            return self._changed(change)

    def _changed(self, change: t.Callable[[Document, list[Document]], _Change]) -> Result:
        former = self._read()
        before = former.document if former else None
        listed = _hepix.head(self.meta, before, self.signer.dn, self.signer.ca, _x509.email(self.signer.certificate))
        done = change(listed, _hepix.images(before or {}))
        after = {**listed, "hv:images": [{"hv:image": entry} for entry in done.entries]}
        expires = min(self.moment + self.lifetime, self.signer.certificate.not_valid_after_utc)
        result = Result()
        for reason in [*self._reasons(former, after, expires), *done.reasons]:
            result.act(reason)
        if result.changed or before is None:
            known = before.get("hv:version") if before else None
            after |= {
                "dc:date:created": _descriptor.format_time(self.moment),
                "dc:date:expires": _descriptor.format_time(expires),
                "hv:version": self._next(known),
            }
        else:
            after |= {key: before[key] for key in _TIMES if key in before}
        result.diff = _hepix.difference(before, after) if result.changed else {"before": {}, "after": {}}
        if result.changed and not self.check_mode:
            self._write(after)
        result.extra = self._told(after, done)
        return result

    def _read(self) -> SignedList | None:
        """The list that is there, once it is known to be ours; raises FactoryError for another one's."""
        if not self.path.exists():
            return None
        found = _hepix_smime.load(self.path, strict=False)
        certificate = found.signed.certificate
        who = _x509.dn_oneline(certificate.subject), _x509.dn_oneline(certificate.issuer)
        if who != (self.signer.dn, self.signer.ca) and who not in self.former:
            raise FactoryError(
                f"is signed by {who[0]} (of {who[1]}), not by {self.signer.dn} (of {self.signer.ca}): it stays as it is",
                where=str(self.path),
                mend="sign with that certificate, name another path, or that one in former_endorsers to take the list over",
            )
        return found

    def _reasons(self, former: SignedList | None, after: Document, expires: datetime.datetime) -> list[str]:
        """Why the list has to be signed anew, apart from its images."""
        if former is None:
            return ["the list: is not there yet"]
        before = former.document
        kept = {*_TIMES, "hv:images"}
        differing = sorted(key for key in {*before, *after} - kept if before.get(key) != after.get(key))
        reasons = [f"the list: {', '.join(differing)} differ"] if differing else []
        signed = former.signed
        if signed.certificate != self.signer.certificate or set(signed.others) != set(self.signer.chain):
            reasons.append("the list: is signed with other certificates")
        elif not former.canonical:
            reasons.append("the list: another tool wrote it, or its frame was changed")
        if self.version is not None and self.version != before.get("hv:version"):
            reasons.append(f"the list: is version {before.get('hv:version')}, shall be {self.version}")
        try:
            end = _descriptor.parse_time(str(before.get("dc:date:expires")))
        except ValueError:
            reasons.append(f"the list: its expiry is no date, {before.get('dc:date:expires')!r}")
        else:
            # Where the certificate ends, signing again would not make it last longer.
            if end - self.moment < self.renew_before and expires > end:
                reasons.append(f"the list: expires at {before['dc:date:expires']}, shall be signed anew")
        return reasons

    def _next(self, former: t.Any) -> str:
        known = None if former is None else str(former)
        if self.version is None:
            return _hepix.next_version(known, self.moment)
        if known is not None and version_key(_hepix.check_version(self.version, "version")) <= version_key(known):
            raise FactoryError(
                f"{self.version} is not greater than {known}, the version of the list that is there",
                where=str(self.path),
                key="list_version",
                mend="raise it, or leave it out to have a timestamp",
            )
        return _hepix.check_version(self.version, "list_version")

    def _check_signer(self) -> None:
        """Raise FactoryError where verifiers would refuse what this signer signs."""
        certificate, where = self.signer.certificate, self.signer.where
        _x509.check_time(certificate, where, at=self.moment)
        _x509.check_usage(certificate, where)
        for name in (certificate.subject, certificate.issuer):
            if not _x509.is_plain(name):
                raise FactoryError(
                    f"the certificate has the name {_x509.dn_oneline(name)}, which verifiers spell in several ways",
                    where=where,
                    mend="ask the authority for a name in ASCII, with one value in each part",
                )

    def _write(self, document: Document) -> None:
        data = _hepix_smime.sign(document, self.signer, self.moment)
        # What cannot be verified here would be refused everywhere: it must not take the place of a good list.
        _hepix_smime.parse(data, str(self.path))
        _state.write_text(self.path, data.decode("ascii"))

    def _told(self, document: Document, done: _Change) -> dict[str, t.Any]:
        """What the module returns beside the usual."""
        told: dict[str, t.Any] = {
            "list": str(self.path),
            "identifier": document["dc:identifier"],
            "version": document.get("hv:version"),
            "created": document.get("dc:date:created"),
            "expires": document.get("dc:date:expires"),
            "images": len(document["hv:images"]),
            "removed": [_row(entry) for entry in done.gone],
        }
        if done.new is not None:
            new = next(entry for entry in done.entries if _same(entry, done.new))
            told["publication"] = {
                "list": str(self.path),
                "list_identifier": document["dc:identifier"],
                "uri": document["hv:uri"],
                **_row(new),
            }
        return told


@dataclasses.dataclass(frozen=True)
class _Change:
    """The images that a list shall have, why, which fell out, and which was asked for."""

    entries: list[Document]
    reasons: list[str] = dataclasses.field(default_factory=list)
    gone: list[Document] = dataclasses.field(default_factory=list)
    new: Document | None = None


def _same(one: Document, other: Document) -> bool:
    return _hepix_images.group(one) == _hepix_images.group(other) and one.get("hv:version") == other.get("hv:version")


def _row(entry: Document) -> dict[str, str]:
    """How an image of a list is found again: C(identifier) is the one that all its versions share."""
    row = {
        "identifier": _hepix_images.group(entry),
        "image": entry.get(_hepix.NAME),
        "version": entry.get("hv:version"),
        "format": entry.get("hv:format"),
        "image_uri": entry.get("hv:uri"),
    }
    return {key: str(value) for key, value in row.items() if value is not None}


def warnings(image_list: ImageList, told: t.Mapping[str, t.Any], uri: str | None) -> list[str]:
    """What is no error, but should be known."""
    said = []
    certificate = image_list.signer.certificate
    end = certificate.not_valid_after_utc
    if end < image_list.moment + image_list.lifetime:
        said.append(
            f"{image_list.signer.where}: the certificate {image_list.signer.dn} ends at {end:%Y-%m-%dT%H:%M:%SZ}, "
            "before the list would; renew it"
        )
    if uri and uri.startswith("http:"):
        said.append(
            f"{uri}: whoever sits between can serve an older list that you have signed; serve it by https "
            "(images may be served by http, as the list has their checksums)"
        )
    expires = told.get("expires")
    if expires and expires <= _descriptor.format_time(image_list.moment):
        said.append(f"{told.get('list')}: the list expired at {expires}")
    return said
