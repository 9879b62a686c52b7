# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Metadata of builds in a StratusLab Marketplace: endorsed, deprecated, looked up; and kept as a signed file of one's own.

The order of things: look up what the Marketplace has, reuse what says the same, sign only what does not, keep the signed file,
and then send it. So whatever breaks, the next run finds either the entry or the file that is to be sent.
"""

from __future__ import annotations

import dataclasses
import datetime
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _state, _x509
from ansible_collections.cloudimg.factory.plugins.module_utils import _stratuslab_document as _document
from ansible_collections.cloudimg.factory.plugins.module_utils import _stratuslab_image as _image
from ansible_collections.cloudimg.factory.plugins.module_utils import _stratuslab_rules as _rules
from ansible_collections.cloudimg.factory.plugins.module_utils import _stratuslab_signature as _signature
from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor import Descriptor
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._http import Answered
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, made_later
from ansible_collections.cloudimg.factory.plugins.module_utils._stratuslab_info import read_file
from ansible_collections.cloudimg.factory.plugins.module_utils._stratuslab_market import Entry, Marketplace
from ansible_collections.cloudimg.factory.plugins.module_utils._stratuslab_pending import Pending
from ansible_collections.cloudimg.factory.plugins.module_utils._stratuslab_signature import Verified

_COMMON_NAME = "2.5.4.3"
_AHEAD = datetime.timedelta(hours=1)
"""How far an entry's date may lie in the future, by a clock that is fast, before it is an error."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What the module C(stratuslab_metadata) is asked for.

    :ivar path: the signed file.
    :ivar signer: certificate, key, passphrase and chain, as Signer.load takes them.
    :ivar email: the endorser's address, where the certificate has none.
    :ivar words: fields of _document.Content that are not told by the descriptor.
    :ivar lifetime: how long an image is valid whose descriptor does not say so.
    :ivar ask_again: days after which the Marketplace is asked for another mail.
    :ivar ca_directory: authorities by which a former key of the endorser's is known, see _x509.verify_chain.
    """

    path: Path
    signer: tuple[Path, Path, str | None, Path | None]
    email: str | None = None
    profile: str = "sha256"
    descriptor: Path | None = None
    artifact: str | None = None
    identifier: str | None = None
    words: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    lifetime: str = "180d"
    marketplace: Marketplace | None = None
    ask_again: int = 7
    ca_directory: Path | None = None
    crl: str = "all"
    check_mode: bool = False


@dataclasses.dataclass(frozen=True)
class _Known:
    """A document that is there already, and its coordinates."""

    verified: Verified
    entry: Entry

    @property
    def elements(self) -> list[t.Any]:
        return _document.children(self.verified.root)


def present(request: Request) -> Result:
    """Have a build endorsed: a signed file at ``path``, and, where there is a Marketplace, the same as its newest entry."""
    if request.descriptor is None:
        raise FactoryError("is missing", key="descriptor", mend="name the build's descriptor.json")
    if request.check_mode and not request.descriptor.exists():
        return made_later(request.descriptor, "it is endorsed")
    build = _descriptor.load(request.descriptor)
    work = _Work(request)
    _descriptor.must_be_alive(build.expires, request.descriptor)
    artifact = _image.choose(build, request.artifact, str(request.descriptor))
    image = _image.describe(request.descriptor, build, artifact)
    content = _content(build, image, request, work.signer)
    elements = content.elements(str(request.descriptor))
    result = work.settle(elements, _document.identifier(image.checksums["sha1"]), f"{build.image} {build.version}")
    result.image = build.document()
    return result


def deprecate(request: Request, reason: str) -> Result:
    """Have an entry say that its image should not be used any more, and why; all else that it says stays."""
    work = _Work(request)
    identifier = request.identifier
    if identifier is None:
        if request.descriptor is None:
            raise FactoryError("is missing", key="identifier", mend="give the image's identifier, or its descriptor")
        build = _descriptor.load(request.descriptor)
        artifact = _image.choose(build, request.artifact, str(request.descriptor))
        identifier = _document.identifier(_image.sha1(request.descriptor, build, artifact))
    if not _document.IDENTIFIER.fullmatch(identifier):
        raise FactoryError(f"cannot be {identifier!r}", key="identifier", mend="give the 27 characters of one")
    known = work.published(identifier) or work.local(identifier)
    if known is None:
        raise FactoryError(
            f"there is no entry of {identifier} by {work.email} that could be deprecated"
            + (f": what is there {work.problem}" if work.problem else ""),
            where=request.marketplace.url if request.marketplace else str(request.path),
            mend="check the identifier and the certificate, or publish it first",
        )
    return work.settle(_document.deprecated(known.elements, reason), identifier, identifier)


def absent(path: Path, *, check_mode: bool) -> Result:
    """Have no signed file. The Marketplace keeps its entries for ever."""
    result = Result()
    for file in (path, Pending(path, "").path):
        if file.exists() or file.is_symlink():
            if file == path and not file.is_symlink():
                _must_be_ours(file, read_file(file))
            result.act(f"{file}: is to be removed")
            if not check_mode:
                with _state.explain_os_errors(file):
                    _state.remove(file)
    return result


def _must_be_ours(path: Path, octets: bytes) -> None:
    """Raise FactoryError for a file that is something else, before it is replaced or removed."""
    if _document.PREFIXES["slreq"].encode() not in octets:
        raise FactoryError("is no metadata of an image", where=str(path), key="path", mend="name another file")


class _Work:
    """One endorser, one file, at most one Marketplace."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.market = request.marketplace
        self.signer = _x509.Signer.load(*request.signer)
        _signature.check_signer(self.signer)
        self.email = self._address()
        certificate = self.signer.certificate
        self.names = _signature.java_name(certificate.subject), _signature.java_name(certificate.issuer)
        self.pending = Pending(request.path, self.market.url if self.market else "", request.ask_again)
        self._published: dict[str, _Known | None] = {}
        self._newest: Entry | None = None
        self.problem = ""

    def _address(self) -> str:
        own = _rules.alternative_email(self.signer.certificate)
        given = self.request.email
        if own and given and own != given:
            raise FactoryError(
                f"is {given}, and the certificate has {own}, which a Marketplace insists on",
                key="email",
                mend="leave it out, or use another certificate",
            )
        address = own or given or _x509.email(self.signer.certificate)
        if not address or not _document.EMAIL.fullmatch(address):
            raise FactoryError(
                f"cannot be {address!r}" if address else "is missing, and the certificate has none",
                key="email",
                mend="give an address of letters, digits and ._%+-",
            )
        return address

    def local(self, identifier: str) -> _Known | None:
        """The signed file, where it is ours and of this image."""
        path = self.request.path
        if not path.exists():
            return None
        octets = read_file(path)
        _must_be_ours(path, octets)
        return self._ours(octets, str(path), identifier)

    def published(self, identifier: str) -> _Known | None:
        """The Marketplace's newest entry, where its signature is valid and ours."""
        if self.market is None:
            return None
        if identifier not in self._published:
            self._published[identifier] = None
            self._newest = self.market.latest(identifier, self.email)
            octets = self.market.fetch(self._newest) if self._newest else None
            if self._newest and octets is not None:
                known = self._ours(octets, self.market.link(self._newest), identifier)
                if known and known.entry == self._newest:
                    self._published[identifier] = known
        return self._published[identifier]

    def settle(self, elements: t.Sequence[t.Any], identifier: str, name: str) -> Result:
        """Have the file, and the Marketplace's newest entry, say what ``elements`` do."""
        result = Result()
        published, local = self.published(identifier), self.local(identifier)
        newest = self._newest
        known = published or local
        before = _said(known) if known else {}
        if published and self._will_do(published, elements):
            # It is what others see, so the file has to be the same endorsement.
            if local is None or local.entry != published.entry or not self._will_do(local, elements):
                result.act(f"{self.request.path}: is not the Marketplace's newest entry")
                self._keep(published.verified.octets)
            if not self.request.check_mode:
                self.pending.forget()
            return self._done(result, published, before, "published")
        if local and self._will_do(local, elements) and (newest is None or local.entry.created > newest.created):
            document = local
        else:
            result.act(f"{name}: {self._why(published, local, elements)}")
            document = self._endorse(elements, identifier, newest)
            self._keep(document.verified.octets)
        state = "signed"
        if self.market and self.pending.waits(document.verified.octets):
            state = "pending"
        elif self.market and document is local and self.market.fetch(local.entry) is not None:
            state = "published"  # it is there, and not listed yet
        elif self.market:
            result.act(f"{name}: is not the newest entry in {self.market.url}")
            if not self.request.check_mode:
                document, state = self._send(self.market, document, elements)
        return self._done(result, document, before, state)

    def _send(self, market: Marketplace, document: _Known, elements: t.Sequence[t.Any]) -> tuple[_Known, str]:
        """Publish a document that has been kept already; returns what was taken in the end, and its state."""
        identifier = document.entry.identifier
        try:
            there = market.post(document.verified.octets, document.entry)
        except Answered as exc:
            if exc.reply.status != 400:
                raise
            # «older than latest entry»: somebody was faster, with the same certificate.
            newest = market.latest(identifier, self.email)
            if newest is None or newest.created < document.entry.created:
                raise
            document = self._endorse(elements, identifier, newest)
            self._keep(document.verified.octets)
            there = market.post(document.verified.octets, document.entry)
        if there:
            self.pending.forget()
            return document, "published"
        self.pending.remember(document.verified.octets)
        return document, "pending"

    def _ours(self, octets: bytes, where: str, identifier: str) -> _Known | None:
        """A document, where it is of that image, by this endorser, and keeps the rules; else it will not be reused."""
        try:
            verified = _signature.verify(octets, where, profiles=_signature.PROFILES)
            _rules.check(verified, where)
        except FactoryError as exc:
            self.problem = exc.problem
            return None
        said = _document.read(verified.root)
        endorsement = said["endorsement"]
        entry = Entry(said["identifier"], endorsement["email"], endorsement["created"])
        mine = (endorsement["subject"], endorsement["issuer"]) == self.names and entry.email == self.email
        if not mine or entry.identifier != identifier:
            return None
        return _Known(verified, entry) if self._is_my_key(verified, where) else None

    def _is_my_key(self, verified: Verified, where: str) -> bool:
        """Whether it is our own key that has signed, or one that an authority had certified for the same name.

        Names alone prove nothing: anybody can make a certificate with any name in it.
        """
        if verified.certificates[0].public_key() == self.signer.certificate.public_key():
            return True
        self.problem = "is signed by another key"
        if self.request.ca_directory is None:
            return False
        try:
            _signature.trust(verified, where, ca_directory=self.request.ca_directory, crl=self.request.crl)
        except FactoryError as exc:
            self.problem = exc.problem
            return False
        return True

    def _will_do(self, known: _Known, elements: t.Sequence[t.Any]) -> bool:
        return (
            known.verified.profile == self.request.profile
            and not self._is_over(known)
            and _document.same(known.elements, elements)
        )

    def _is_over(self, known: _Known) -> bool:
        """Whether it was signed by a certificate that has expired since."""
        return known.verified.certificates[0].not_valid_after_utc < datetime.datetime.now(datetime.timezone.utc)

    def _why(self, published: _Known | None, local: _Known | None, elements: t.Sequence[t.Any]) -> str:
        known = published or local
        if known is None and self.problem:
            return f"what is there cannot be used: it {self.problem}"
        if known is None:
            return "is not endorsed yet"
        if known.verified.profile != self.request.profile:
            return f"is signed by the profile {known.verified.profile}, shall be by {self.request.profile}"
        if self._is_over(known):
            return "the certificate that signed it has expired"
        if _document.same(known.elements, elements):
            return "what is endorsed is older than the Marketplace's newest entry"
        old, new = (_fields(one) for one in (known.elements, elements))
        names = ", ".join(sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key)))
        return f"differs from what is endorsed: {names or 'layout'}"

    def _endorse(self, elements: t.Sequence[t.Any], identifier: str, newest: Entry | None) -> _Known:
        """Sign, later than the newest entry, for a Marketplace takes no older one."""
        moment = datetime.datetime.now(datetime.timezone.utc)
        if newest:
            last = _descriptor.parse_time(newest.created)
            if last - moment > _AHEAD:
                raise FactoryError(
                    f"the newest entry is dated {newest.created}, which is in the future",
                    where=self.market.link(newest) if self.market else None,
                    mend="set the clock, or wait until then: a Marketplace takes no older entry",
                )
            moment = max(moment, last + datetime.timedelta(seconds=1))
        entry = Entry(identifier, self.email, _descriptor.format_time(moment))
        root = _document.assemble(elements, _document.Endorsement(entry.created, entry.email, *self.names))
        problems = [*_rules.constraint_problems(root), *_rules.schema_problems(root)]
        for key, problem in problems:
            raise FactoryError(problem, where=str(self.request.path), key=key, mend="mend the option or the descriptor")
        octets = _signature.sign(root, self.signer, self.request.profile)
        where = str(self.request.path)
        verified = _signature.verify(octets, where, profiles=(self.request.profile,))
        _rules.check(verified, where)
        return _Known(verified, entry)

    def _keep(self, octets: bytes) -> None:
        if not self.request.check_mode:
            _state.write_text(self.request.path, octets.decode("utf-8"))

    def _done(self, result: Result, document: _Known, before: dict[str, t.Any], state: str) -> Result:
        entry = document.entry
        after = _said(document)
        publication = {"identifier": entry.identifier, "email": entry.email, "created": entry.created}
        if self.market:
            publication["url"] = self.market.link(entry)
        if state == "pending":
            publication["confirmation"] = "pending"
        result.diff = {"before": before if result.changed else after, "after": after}
        result.extra.update(
            metadata=after, publication=publication, path=str(self.request.path), confirmation=state == "pending"
        )
        return result


def _content(build: Descriptor, image: _image.Image, request: Request, signer: _x509.Signer) -> _document.Content:
    """What a document says of a build; options come before what the descriptor says."""
    endorser = build.endorser or {}
    words = {key: value for key, value in request.words.items() if value not in (None, "")}
    common = [one.value for one in signer.certificate.subject if one.oid.dotted_string == _COMMON_NAME]
    creator = endorser.get("name") or (str(common[-1]) if common else "")
    told = {
        "creator": creator,
        "publisher": endorser.get("organisation") or creator,
        "title": build.title,
        "description": build.description,
        **words,
    }
    return _document.Content(
        size=image.size,
        checksums=image.checksums,
        os=build.os.distribution,
        os_version=build.os.version,
        os_arch=build.os.arch,
        version=build.version,
        format=image.format,
        compression=image.compression,
        created=build.created,
        valid=build.expires or _descriptor.expiry(build.created, request.lifetime) or "",
        **told,
    )


def _fields(elements: t.Sequence[t.Any]) -> dict[str, list[str]]:
    """Texts by the names of elements, for telling what differs."""
    found: dict[str, list[str]] = {}
    for one in elements:
        text = "".join(one.itertext()) if len(one) else (one.text or "")
        found.setdefault(str(one.tag).rpartition("}")[2], []).append("".join(text.split()) if len(one) else text)
    return found


def _said(known: _Known) -> dict[str, t.Any]:
    said = _document.read(known.verified.root)
    return {**said, "profile": known.verified.profile, "status": _document.status(said)}
