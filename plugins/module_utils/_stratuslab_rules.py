# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What a Marketplace asks of a document, so that it can be said before it is asked, and without it.

In the server's order (MDataResourceBase.java): the endorser is the signer (MetadataUtils.java), the constraints
(ValidateMetadataConstraints.java), that it is RDF. The schema (image-metadata.xsd, slreq.xsd, slterms.xsd) is told apart, for
the server does not apply it.
"""

from __future__ import annotations

import re
import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._libraries import need
from ansible_collections.cloudimg.factory.plugins.module_utils._stratuslab_document import (
    ALGORITHMS,
    BASE,
    DCTERMS,
    EMAIL,
    RDF,
    SLREQ,
    SLTERMS,
    XML_BASE,
    identifier_sha1,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._stratuslab_signature import Verified, java_name

if t.TYPE_CHECKING:
    from cryptography import x509

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_HEX = {"MD5": 32, "SHA-1": 40, "SHA-256": 64, "SHA-512": 128}
_ONCE = ("serial-number", "version", "deprecated", "os", "os-arch", "os-version")
_LEAVES = (f"{DCTERMS}identifier", f"{DCTERMS}valid", f"{SLREQ}bytes", f"{SLTERMS}deprecated", f"{SLTERMS}location")


def alternative_email(certificate: x509.Certificate) -> str | None:
    """The e-mail address that the Marketplace takes from a certificate: of its alternative names only (X509Info.java)."""
    library = need("cryptography.x509")
    try:
        names = certificate.extensions.get_extension_for_class(library.SubjectAlternativeName).value
    except library.ExtensionNotFound:
        return None
    return next(iter(names.get_values_for_type(library.RFC822Name)), None)


def check(verified: Verified, where: str) -> None:
    """Raise FactoryError for the first rule of the Marketplace that a verified document does not keep."""
    for key, problem in (*endorser_problems(verified), *constraint_problems(verified.root)):
        raise FactoryError(problem, where=where, key=key, mend="ask its endorser to mend and sign it anew")


def endorser_problems(verified: Verified) -> t.Iterator[tuple[str, str]]:
    """Where the endorser that a document names is not the one who has signed it: (key, problem)."""
    signer = verified.certificates[0]
    wanted = {"subject": java_name(signer.subject), "issuer": java_name(signer.issuer)}
    address = alternative_email(signer)
    if address:
        wanted["email"] = address
    endorser = verified.root.find(f"{RDF}Description/{SLREQ}endorsement/{SLREQ}endorser")
    if endorser is None or len(verified.root.findall(f".//{SLREQ}endorser")) != 1:
        yield "slreq:endorser", "must be there, once"
        return
    for name, value in wanted.items():
        found = endorser.findtext(f"{SLREQ}{name}")
        # The server reads the first element of that name, wherever it stands.
        if found != value or len(verified.root.findall(f".//{SLREQ}{name}")) != 1:
            yield f"slreq:{name}", f"is {found!r}, and the certificate of its signer has {value!r}"


def constraint_problems(root: t.Any) -> t.Iterator[tuple[str, str]]:
    """The server's constraints that a document does not keep: (key, problem)."""
    about = root.find(f"{RDF}Description")
    if root.get(XML_BASE) != BASE:
        yield "xml:base", f"must be {BASE}, is {root.get(XML_BASE)!r}"
    if about is None or len(root.findall(f".//{RDF}Description")) != 1 or len(root) != 1:
        yield "rdf:Description", "must be there, once"
        return
    types = about.findall(f"{DCTERMS}type")
    if len(types) != 1 or len(types[0]):
        yield "dcterms:type", "must be there, once, as text"
    sha1 = [one for one in about.findall(f"{SLREQ}checksum") if one.findtext(f"{SLREQ}algorithm") == "SHA-1"]
    if len(sha1) != 1:
        yield "slreq:checksum", "must be there with SHA-1, once"
        return
    for name in _ONCE:
        if len(about.findall(f"{SLTERMS}{name}")) > 1:
            yield f"slterms:{name}", "must not be there twice"
    name = about.findtext(f"{DCTERMS}identifier") or ""
    if about.get(f"{RDF}about") != f"#{name}":
        yield "rdf:about", f"is {about.get(f'{RDF}about')!r}, and the identifier is {name!r}"
    digest = identifier_sha1(name)
    if digest is None:
        yield "dcterms:identifier", f"cannot be {name!r}"
    elif digest != (sha1[0].findtext(f"{SLREQ}value") or "").lower().zfill(40):
        yield "dcterms:identifier", f"is not that of the SHA-1 checksum, but of {digest}"
    for key, path in (
        ("dcterms:valid", f"{DCTERMS}valid"),
        ("dcterms:created", f"{SLREQ}endorsement/{DCTERMS}created"),
    ):
        places = about.findall(path)
        # The server takes a document without these, and never lists it.
        if len(places) != 1 or not is_date(places[0].text or ""):
            yield key, "must be there, once, as a date such as 2025-01-31T12:00:00Z"
    for one in about.iter():
        if one.tag in _LEAVES and len(one):
            yield _name(one), "must be text"
    yield from _rdf_problems(about)


def _rdf_problems(about: t.Any) -> t.Iterator[tuple[str, str]]:
    """Where it is no RDF/XML: properties within properties need rdf:parseType="Resource"."""
    for one in about.iter():
        if one is about:
            continue
        if len(one) and one.get(f"{RDF}parseType") != "Resource":
            yield _name(one), "has elements within and no rdf:parseType of Resource, which is no RDF"
        if len(one) and ((one.text or "").strip() or any((child.tail or "").strip() for child in one)):
            yield _name(one), "has both elements and text, which is no RDF"
        if any(key != f"{RDF}parseType" for key in one.attrib):
            yield _name(one), "has an attribute that the Marketplace does not know"


def schema_problems(root: t.Any) -> t.Iterator[tuple[str, str]]:
    """Where a document that keeps the constraints is not as the schema has it: (key, problem)."""
    about = root.find(f"{RDF}Description")
    tags = [one.tag for one in about if one.tag != f"{RDF}type"]
    checksums = tags.count(f"{SLREQ}checksum")
    order = [f"{DCTERMS}identifier", f"{SLREQ}bytes", *[f"{SLREQ}checksum"] * checksums, f"{SLREQ}endorsement"]
    if tags[: len(order)] != order or any(tag.startswith(SLREQ) for tag in tags[len(order) :]):
        yield "rdf:Description", "must begin with identifier, bytes, checksums and endorsement, in that order"
    size = about.findtext(f"{SLREQ}bytes") or ""
    if not (size.isascii() and size.isdigit()):
        yield "slreq:bytes", f"must be a whole number, is {size!r}"
    for one in about.findall(f"{SLREQ}checksum"):
        algorithm, value = one.findtext(f"{SLREQ}algorithm") or "", one.findtext(f"{SLREQ}value") or ""
        length = _HEX.get(algorithm, len(value))
        if not re.fullmatch(r"[0-9A-Fa-f]+", value) or len(value) != length:
            yield "slreq:checksum", f"of {algorithm or 'no algorithm'} cannot be {value!r}"
        if algorithm not in ALGORITHMS.values():
            yield "slreq:checksum", f"has the algorithm {algorithm!r}, which nobody knows"
    address = about.findtext(f"{SLREQ}endorsement/{SLREQ}endorser/{SLREQ}email") or ""
    if not EMAIL.fullmatch(address):
        yield "slreq:email", f"cannot be {address!r}"
    for name, most in (("inbound-port", 65535), ("outbound-port", 65535), ("icmp", 255)):
        for one in about.findall(f"{SLTERMS}{name}"):
            text = one.text or ""
            if not (text.isascii() and text.isdigit() and int(text) <= most):
                yield f"slterms:{name}", f"must be a number from 0 to {most}, is {text!r}"
    serial = about.findtext(f"{SLTERMS}serial-number")
    if serial is not None and not (serial.isascii() and serial.isdigit()):
        yield "slterms:serial-number", f"must be a whole number, is {serial!r}"


def is_date(text: str) -> bool:
    """Whether it is a date as the Marketplace writes them."""
    try:
        return bool(_DATE.fullmatch(text)) and bool(_descriptor.parse_time(text))
    except ValueError:
        return False


def _name(element: t.Any) -> str:
    return f"{element.prefix}:{str(element.tag).rpartition('}')[2]}" if element.prefix else str(element.tag)
