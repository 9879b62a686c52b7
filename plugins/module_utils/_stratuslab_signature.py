# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Signing documents of the Marketplace as its own tools do (X509Utils.java), and verifying them without leniency.

An XML signature covers what a document means, not its bytes: quotes, the XML declaration, comments, the layout of the
signature itself may change under it. Here each byte counts: a document has to be just what its parsed tree is written as,
comments and processing instructions are refused, and what is outside the signed part has one spelling only. So whoever changes
a byte is noticed, and nothing can hide from a reader that sees more than the signature covers. What is read afterwards is the
tree that was made of the very bytes that were signed.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import functools
import re
import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils import _x509
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._libraries import need
from ansible_collections.cloudimg.factory.plugins.module_utils._stratuslab_document import DS, RDF
from ansible_collections.cloudimg.factory.plugins.module_utils._x509 import Signer

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding, rsa
except ImportError:
    pass  # need() says so, where it is used

LARGEST = 10_240_000
"""Bytes that a document may have: METADATA_MAX_BYTES of the Marketplace."""

DECLARATION = '<?xml version="1.0" encoding="UTF-8" standalone="no"?>'
"""As Java writes it; the Marketplace looks for just this text (BaseResource.java, XML_HEADER)."""

PROFILES = {
    "sha256": ("http://www.w3.org/2001/04/xmldsig-more#rsa-sha256", "http://www.w3.org/2001/04/xmlenc#sha256"),
    "sha1": ("http://www.w3.org/2000/09/xmldsig#rsa-sha1", "http://www.w3.org/2000/09/xmldsig#sha1"),
}
"""Signature method and digest method."""

_C14N = "http://www.w3.org/TR/2001/REC-xml-c14n-20010315"
_COMMENTS = f"{_C14N}#WithComments"
_ENVELOPED = f"{DS[1:-1]}enveloped-signature"
_MEND = "ask for the document anew, and do not trust this one"
_BEGIN = re.compile(rb"""<\?xml version=(["'])1\.0\1 encoding=\1UTF-8\1(?: standalone=\1(?:no|yes)\1)?\?>\n?(?=<)""")
_XML_NAMESPACE = "{http://www.w3.org/XML/1998/namespace}"
_DEEPEST = 32


@dataclasses.dataclass(frozen=True)
class Verified:
    """A document whose signature is valid. ``root`` has no signature any more; ``certificates`` begin with the signer's.

    Whether the signer is to be trusted is another question, see :func:`trust`.
    """

    octets: bytes
    root: t.Any
    certificates: tuple[x509.Certificate, ...]
    profile: str


def java_name(name: x509.Name) -> str:
    """A name as Java's X500Principal.getName writes it, which the Marketplace compares byte by byte.

    Other than RFC 2253 asks for, Java escapes «=» and «#» wherever they stand (sun.security.x509.AVA, toRFC2253String).
    """

    def word(one: t.Any) -> str:
        text = _x509.dn_rfc2253(x509.Name([one]))
        key, _sign, value = text.partition("=")
        if value.startswith("#"):
            return text
        return f"{key}=" + re.sub(
            r"\\.|[=#]", lambda found: found[0] if found[0][0] == "\\" else f"\\{found[0]}", value
        )

    return ",".join("+".join(map(word, rdn)) for rdn in reversed(name.rdns))


def check_signer(signer: Signer) -> None:
    """Raise FactoryError where a certificate cannot endorse images: another use, or another kind of key."""
    _x509.check_usage(signer.certificate, signer.where, email_protection=False)
    if not isinstance(signer.key, rsa.RSAPrivateKey):
        raise FactoryError(
            "has no RSA key",
            where=signer.where,
            mend="use a certificate with an RSA key, the Marketplace knows no other",
        )


def sign(root: t.Any, signer: Signer, profile: str) -> bytes:
    """The document with an enveloped signature, as bytes to write and to send.

    :param root: by _stratuslab_document.assemble; it is not changed.
    :param profile: one of :data:`PROFILES`.
    :raises FactoryError: a library is missing.
    """
    etree, (signxml, make_signer, _make_verifier) = need("lxml.etree"), _classes()
    method, digest = PROFILES[profile]
    maker = make_signer(
        method=signxml.SignatureConstructionMethod.enveloped,
        signature_algorithm=method,
        digest_algorithm=digest,
        c14n_algorithm=_COMMENTS,
    )
    maker.namespaces = {None: DS[1:-1]}
    maker.inherited = _inherited(root)
    signed = maker.sign(
        root, key=signer.key, cert=[signer.certificate, *signer.chain], exclude_c14n_transform_element=True
    )
    octets = DECLARATION.encode() + etree.tostring(signed, encoding="UTF-8", xml_declaration=False)
    verify(octets, "what was just signed", profiles=(profile,))
    return bytes(octets)


def verify(octets: bytes, where: str, *, profiles: t.Container[str] = ("sha256",)) -> Verified:
    """Check each byte and the signature of a document.

    :param where: the document, for messages.
    :param profiles: which of :data:`PROFILES` will do.
    :raises FactoryError: it is no such document, was changed, or is signed in another way than the Marketplace's.
    """

    def refuse(problem: str, mend: str = _MEND) -> t.NoReturn:
        raise FactoryError(problem, where=where, mend=mend)

    root = parse(octets, where)
    if root.tag != f"{RDF}RDF":
        refuse(f"is no metadata of an image: its root is {root.tag}", "give a document of a StratusLab Marketplace")
    tags = [child.tag for child in root]
    if f"{DS}Signature" not in tags:
        refuse("is not signed")
    if tags != [f"{RDF}Description", f"{DS}Signature"] or len(root.findall(f".//{DS}Signature")) != 1:
        refuse("must have one rdf:Description and after it one Signature, and no other")
    signature = root[1]
    method, digest = _judge_layout(signature, refuse)
    profile = next((name for name, pair in PROFILES.items() if pair == (method, digest)), None)
    if profile is None:
        refuse(f"is signed by {method} with {digest}, the Marketplace knows RSA with SHA-256 or SHA-1")
    if profile not in profiles:
        mend = (
            "have it signed anew by SHA-256, or allow SHA-1" if profile == "sha1" else "check which profile is wanted"
        )
        refuse(f"is signed by the profile {profile}, which is not allowed here", mend)
    _decode(signature[1].text, refuse, "SignatureValue")
    need("cryptography.x509", _x509.CRYPTOGRAPHY)
    try:
        certificates = tuple(
            x509.load_der_x509_certificate(_decode(one.text, refuse, "X509Certificate")) for one in signature[2][0]
        )
        for child, parent in zip(certificates, certificates[1:]):
            _must_be_issued(child, parent)
        # By what names say, for a changed string type would else make a certificate look as if another had issued it.
        if java_name(certificates[-1].subject) == java_name(certificates[-1].issuer):
            _must_be_issued(certificates[-1], certificates[-1])
    except Exception as exc:  # the library raises half a dozen kinds for what is broken
        if isinstance(exc, FactoryError):
            raise
        refuse("has a certificate that is broken, or was not issued by the one after it")
    signer = certificates[0]
    if not isinstance(signer.public_key(), rsa.RSAPublicKey):
        refuse("is not signed by an RSA key")
    signxml, _make_signer, make_verifier = _classes()
    verifier = make_verifier()
    verifier.inherited = _inherited(root)
    config = signxml.SignatureConfiguration(
        location="./",
        signature_methods=frozenset({signxml.SignatureMethod(method)}),
        digest_algorithms=frozenset({signxml.DigestAlgorithm(digest)}),
        # A reference to the whole document leaves comments out (XML-DSig 4.4.3.3), of which there are none here.
        default_reference_c14n_method=signxml.CanonicalizationMethod(_C14N),
        # Whether the certificate is valid now is judged where trust is.
        verification_time=signer.not_valid_before_utc,
    )
    try:
        result = verifier.verify(octets, x509_cert=signer, expect_config=config)
    except Exception as exc:  # signxml, cryptography and lxml have classes of their own for what is wrong
        said = " ".join(str(exc).split()) or type(exc).__name__
        refuse(f"has no valid signature ({said[:120]}): it was changed after it was signed")
    return Verified(octets, result.signed_xml, certificates, profile)


def parse(octets: bytes, where: str) -> t.Any:
    """The root element of a document in which no byte can change unseen by its tree.

    :raises FactoryError: it is no XML, has what could hide something, or could be written in another way.
    """

    def refuse(problem: str) -> t.NoReturn:
        raise FactoryError(problem, where=where, mend=_MEND)

    if len(octets) > LARGEST:
        refuse(f"has {len(octets)} bytes, the Marketplace takes {LARGEST} at most")
    begin = _BEGIN.match(octets)
    if not begin:
        refuse("does not begin with an XML declaration for UTF-8, followed by its root element")
    body = octets[begin.end() :]
    # In well-formed XML these can be nothing but a document type, a comment or CDATA, and a processing instruction.
    if b"<!" in body or b"<?" in body:
        refuse("has a document type, a comment, CDATA or a processing instruction, which its signature would not cover")
    etree = need("lxml.etree")
    parser = etree.XMLParser(
        encoding="UTF-8", resolve_entities=False, no_network=True, load_dtd=False, dtd_validation=False, huge_tree=False
    )
    try:
        root = etree.fromstring(body, parser)
    except (etree.XMLSyntaxError, ValueError) as exc:
        refuse(f"is no XML: {exc}")
    written = etree.tostring(root, encoding="UTF-8", xml_declaration=False)
    if body not in (written, written + b"\n"):
        place = next(
            (at for at, pair in enumerate(zip(body, written)) if pair[0] != pair[1]), min(len(body), len(written))
        )
        refuse(f"is not written as the Marketplace and this collection write it, from byte {begin.end() + place} on")
    if any(len(list(one.iterancestors())) > _DEEPEST for one in root.iter() if not len(one)):
        refuse(f"is nested deeper than {_DEEPEST} elements")
    return root


def trust(verified: Verified, where: str, *, ca_directory: t.Any, crl: str = "all") -> None:
    """Raise FactoryError where a signer's certificate is not valid by a directory of authorities.

    Each certificate that the document brings is verified, so that none of them can have been changed.
    """
    try:
        for number in range(len(verified.certificates)):
            _x509.verify_chain(verified.certificates[number:], ca_directory, where=where, crl=crl, purpose="any")
    except FactoryError as exc:
        exc.mend = exc.mend or _MEND
        raise


def _judge_layout(signature: t.Any, refuse: t.Callable[..., t.NoReturn]) -> tuple[str, str]:
    """Refuse any signature that is not laid out as the Marketplace's tools do; returns signature and digest method."""
    if [child.tag for child in signature] != [f"{DS}{name}" for name in ("SignedInfo", "SignatureValue", "KeyInfo")]:
        refuse("must have a signature of SignedInfo, SignatureValue and KeyInfo")
    info, value, key = signature
    if [child.tag for child in key] != [f"{DS}X509Data"] or not len(key[0]):
        refuse("must have X509Data, and nothing else, as its KeyInfo")
    if any(one.tag != f"{DS}X509Certificate" for one in key[0]):
        refuse("must have nothing but certificates as X509Data")
    unsigned = [signature, value, key, key[0], *key[0]]
    for one in unsigned:
        leaf = one is value or one.tag == f"{DS}X509Certificate"
        gaps = [] if leaf else [one.text]
        gaps += [child.tail for child in one]
        if one.attrib or any(gap not in (None, "\n") for gap in gaps) or (leaf and len(one)):
            refuse(f"has something in {_local(one)} that its signature does not cover")
        # Only the Signature itself may declare a namespace: SignedInfo has it, and is signed.
        if one is not signature and one.nsmap != signature.nsmap:
            refuse(f"declares a namespace in {_local(one)} that its signature does not cover")
    if [child.tag for child in info] != [
        f"{DS}{name}" for name in ("CanonicalizationMethod", "SignatureMethod", "Reference")
    ]:
        refuse("must have a signature of one reference")
    reference = info[2]
    if dict(reference.attrib) != {"URI": ""}:
        refuse("must have a signature of the whole document")
    if [child.tag for child in reference] != [f"{DS}{name}" for name in ("Transforms", "DigestMethod", "DigestValue")]:
        refuse("must have a signature with transforms, a digest method and a digest")
    transforms = [one.get("Algorithm") for one in reference[0]]
    if transforms not in ([_ENVELOPED], [_ENVELOPED, _C14N], [_ENVELOPED, _COMMENTS]):
        refuse(f"has a signature with other transforms than the Marketplace's: {', '.join(map(str, transforms))}")
    if info[0].get("Algorithm") not in (_C14N, _COMMENTS):
        refuse("has a signature that is not canonical by inclusive C14N 1.0")
    if any(len(one) for one in (info[0], info[1], *reference[0], reference[1])):
        refuse("has a signature with parameters of its methods, which the Marketplace's have not")
    return str(info[1].get("Algorithm")), str(reference[1].get("Algorithm"))


def _decode(text: str | None, refuse: t.Callable[..., t.NoReturn], name: str) -> bytes:
    """The bytes of Base64 that is written in one of the usual ways, of which each byte counts."""
    given = text or ""
    try:
        data = base64.b64decode("".join(given.split()), validate=True)
    except (binascii.Error, ValueError):
        refuse(f"has no Base64 in {name}")
    plain = base64.b64encode(data).decode("ascii")
    spellings = {plain, f"\n{plain}\n"}
    for width in (64, 76):
        lines = [plain[at : at + width] for at in range(0, len(plain), width)]
        for end in ("\n", "\r\n"):
            wrapped = end.join(lines)
            spellings |= {wrapped, wrapped + end, end + wrapped + end}
    if given not in spellings:
        refuse(f"has Base64 in {name} that could be written otherwise")
    return data


def _must_be_issued(child: x509.Certificate, parent: x509.Certificate) -> None:
    """Raise some exception where a certificate is not signed by another."""
    key, kind = parent.public_key(), child.signature_hash_algorithm
    if child.issuer != parent.subject:
        raise ValueError("it was issued by another")
    if isinstance(key, rsa.RSAPublicKey) and isinstance(kind, hashes.SHA1):
        # The authorities of the Marketplace's time used SHA-1, which the library does for signatures but no certificates.
        key.verify(child.signature, child.tbs_certificate_bytes, padding.PKCS1v15(), kind)
    else:
        child.verify_directly_issued_by(parent)


def _inherited(root: t.Any) -> dict[str, str]:
    return {name: value for name, value in root.attrib.items() if name.startswith(_XML_NAMESPACE)}


def _local(element: t.Any) -> str:
    return str(element.tag).rpartition("}")[2]


@functools.lru_cache(maxsize=1)
def _classes() -> tuple[t.Any, t.Any, t.Any]:
    """The library signxml, and its signer and verifier as the Marketplace needs them."""
    signxml, etree = need("signxml"), need("lxml.etree")
    if not hasattr(signxml.SignatureConfiguration, "verification_time"):
        raise FactoryError(
            "has a signxml that is too old", where=str(signxml.__file__), mend="install signxml 5.2 or newer"
        )

    class InContext:
        """Canonicalises SignedInfo as part of its document.

        Inclusive C14N gives a part the xml:… attributes of the elements around it (C14N 1.0, 2.4), here xml:base. signxml
        takes SignedInfo out of the document first, and what it signs then is refused by Java and xmlsec1.
        """

        inherited: t.ClassVar[dict[str, str]] = {}

        def _c14n(self, nodes: t.Any, algorithm: t.Any, inclusive_ns_prefixes: t.Any = None) -> bytes:
            if _local(nodes) == "SignedInfo":
                nodes = etree.fromstring(etree.tostring(nodes, with_tail=False))
                nodes.attrib.update(self.inherited)
            return bytes(super()._c14n(nodes, algorithm, inclusive_ns_prefixes))  # type: ignore[misc]

    class MakeSigner(InContext, signxml.XMLSigner):  # type: ignore[misc, name-defined]
        """Signs by SHA-1, too, which signxml refuses unless it is told so in this way."""

        def check_deprecated_methods(self) -> None:
            """Which profile will do is for the caller to say."""

    class MakeVerifier(InContext, signxml.XMLVerifier):  # type: ignore[misc, name-defined]
        """Verifies what :class:`MakeSigner` and the Marketplace's own tools sign."""

    return signxml, MakeSigner, MakeVerifier
