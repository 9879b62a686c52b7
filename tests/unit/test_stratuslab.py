# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documents of a StratusLab Marketplace: made, signed, judged; held against xmlsec1, openssl and the Marketplace for tests."""

from __future__ import annotations

import base64
import copy
import hashlib
import random
import subprocess
import typing as t
from pathlib import Path

import pytest
import signxml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID, ObjectIdentifier
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from ansible_collections.cloudimg.factory.plugins.module_utils import _stratuslab_document as document
from ansible_collections.cloudimg.factory.plugins.module_utils import _stratuslab_rules as rules
from ansible_collections.cloudimg.factory.plugins.module_utils import _stratuslab_signature as signature
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._stratuslab_info import Judge
from ansible_collections.cloudimg.factory.plugins.module_utils._x509 import Signer
from ansible_collections.cloudimg.factory.tests.tools import marketplace_server, pki

SHA1 = "1104f3e30c030f8b93f220b04131032dddf51f21"
IDENTIFIER = "BEE8-MMAw-Lk_IgsEExAy3d9R8h"
CREATED = "2025-01-31T12:30:00Z"
DS = document.DS
POSITIONS = 200


def content(**fields: t.Any) -> document.Content:
    """What a small image's document says."""
    sums = {name: hashlib.new(name, b"x").hexdigest() for name in ("md5", "sha256", "sha512")}
    told = {
        "checksums": {**sums, "sha1": SHA1},
        "locations": ("https://images.example.org/a?b=1&c=2", "http://mirror.example.org/a"),
        "title": "Debian «12» & <more>",
        "description": "Größe\n\n'single' \"double\" > <",
        "creator": "Jane",
        "hypervisor": "kvm",
        "inbound_ports": (22, 443),
        **fields,
    }
    moments = "2025-01-31T12:00:00Z", "2099-07-30T12:00:00Z"
    return document.Content(128, told.pop("checksums"), "debian", "12", "x86_64", "1.0", "qcow2", *moments, **told)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> pki.Pki:
    return pki.Pki.make(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def signer(grid: pki.Pki) -> Signer:
    return Signer.load(grid.endorser.certificate, grid.endorser.key, None, grid.endorser.chain)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    """Who has certified himself, as StratusLab's users could."""
    authority = pki.Authority(pki.make_name("O=Testing", "CN=Jane Tester"), number=7, key="rsa")
    folder = tmp_path_factory.mktemp("alone")
    (folder / "c.pem").write_bytes(authority.pem)
    return Signer(authority.certificate, authority.key, (), "c.pem")  # type: ignore[arg-type]


def endorsement(signer: Signer, **fields: str) -> document.Endorsement:
    names = (signature.java_name(name) for name in (signer.certificate.subject, signer.certificate.issuer))
    address = rules.alternative_email(signer.certificate) or "jane@example.org"
    return document.Endorsement(fields.get("created", CREATED), address, *names)


def tree(signer: Signer, **fields: t.Any) -> t.Any:
    return document.assemble(content(**fields).elements("descriptor.json"), endorsement(signer))


def xmlsec1(octets: bytes, folder: Path, anchor: x509.Certificate) -> bool:
    """Whether xmlsec1 takes a document, with its chain up to a root."""
    path, root = folder / "document.xml", folder / "root.pem"
    path.write_bytes(octets)
    root.write_bytes(anchor.public_bytes(Encoding.PEM))
    argv = ["xmlsec1", "--verify", "--trusted-pem", str(root), str(path)]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


# Identifiers


def test_identifier_of_the_marketplaces_own_tests() -> None:
    assert document.identifier(SHA1) == IDENTIFIER
    assert document.identifier_sha1(IDENTIFIER) == SHA1


@given(st.binary(min_size=20, max_size=20))
def test_identifiers_and_checksums_are_the_same_thing(digest: bytes) -> None:
    text = document.identifier(digest.hex())
    assert len(text) == 27 and text[0] in marketplace_server.DIGITS[:16]
    assert document.identifier_sha1(text) == digest.hex()
    assert marketplace_server.number_of(text) == int(digest.hex(), 16)


@pytest.mark.parametrize("text", ["", "A" * 26, "A" * 28, "_" * 27, "+" * 27, "Q" + "A" * 26])
def test_what_is_no_identifier(text: str) -> None:
    assert document.identifier_sha1(text) is None


# Documents


def test_order_of_elements_is_that_of_the_schema(signer: Signer) -> None:
    root = tree(signer)
    assert not [*rules.constraint_problems(root), *rules.schema_problems(root)]
    tags = [etree.QName(one).localname for one in root[0]]
    assert tags[:7] == ["identifier", "bytes", *["checksum"] * 4, "endorsement"]
    assert root.get(document.XML_BASE) == "http://mp.stratuslab.eu/"
    assert root[0].get(f"{document.RDF}about") == f"#{IDENTIFIER}"
    # Elements without which StratusLab's own client does not read a document, be they empty.
    needed = {"type", "created", "valid", "description", "compression", "os", "os-arch", "os-version", "version"}
    assert needed <= {etree.QName(one).localname for one in tree(signer, description="")[0]}


def test_what_is_written_is_read(signer: Signer) -> None:
    said = document.read(tree(signer))
    assert said["identifier"] == IDENTIFIER
    assert said["size"] == 128
    assert said["checksums"] == content().checksums
    assert said["locations"] == list(content().locations)
    assert said["title"] == content().title
    assert said["description"] == content().description
    assert said["inbound_ports"] == ["22", "443"]
    assert said["endorsement"]["subject"] == "CN=endorser,O=People,C=DE,DC=example,DC=org"
    assert "deprecated" not in said


@pytest.mark.parametrize("key", ["title", "description", "creator"])
def test_what_xml_cannot_have_is_refused(key: str) -> None:
    with pytest.raises(FactoryError, match=rf"^descriptor\.json: {key}: has a character that XML cannot have; leave"):
        content(**{key: "a\x0bb"}).elements("descriptor.json")


def test_status() -> None:
    now = "2026-01-01T00:00:00Z"
    assert document.status({"valid": "2026-01-01T00:00:01Z"}, now) == "valid"
    assert document.status({"valid": now}, now) == "expired"
    assert document.status({"valid": "2027-01-01T00:00:00Z", "deprecated": "old"}, now) == "deprecated"


# Names


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("C=EU", "O=StratusLab Project", "CN=Jane Tester"), "CN=Jane Tester,O=StratusLab Project,C=EU"),
        (("DC=org", "CN=a, b+c"), "CN=a\\, b\\+c,DC=org"),
        (("CN=x=y #2",), "CN=x\\=y \\#2"),
        (("CN=a\\=b",), "CN=a\\\\\\=b"),
        (("CN=#1",), "CN=\\#1"),
        (("O=Größe",), "O=Größe"),
        (("emailAddress=a@b.c", "CN=x"), "CN=x,1.2.840.113549.1.9.1=#16056140622e63"),
    ],
)
def test_names_are_as_java_writes_them(parts: tuple[str, ...], name: str) -> None:
    assert signature.java_name(pki.make_name(*parts)) == name


def test_names_with_several_values_and_unknown_attributes() -> None:
    pair = x509.RelativeDistinguishedName(
        [x509.NameAttribute(NameOID.COMMON_NAME, "a"), x509.NameAttribute(NameOID.USER_ID, "b")]
    )
    other = x509.RelativeDistinguishedName([x509.NameAttribute(ObjectIdentifier("1.2.3"), "x")])
    found = signature.java_name(x509.Name([other, pair]))
    assert found.endswith(",1.2.3=#0c0178") and set(found.partition(",")[0].split("+")) == {"CN=a", "UID=b"}


# Signatures


@pytest.mark.parametrize("profile", ["sha256", "sha1"])
def test_signed_documents_are_verified_by_xmlsec1_and_the_marketplace(
    profile: str, signer: Signer, grid: pki.Pki, tmp_path: Path
) -> None:
    octets = signature.sign(tree(signer), signer, profile)
    assert octets.startswith(marketplace_server.HEADER.encode() + b"<rdf:RDF ")
    assert xmlsec1(octets, tmp_path, grid.authority.certificate)
    assert not xmlsec1(octets.replace(b">128<", b">129<"), tmp_path, grid.authority.certificate)
    assert marketplace_server.judge(octets) == (IDENTIFIER, "endorser@example.org", CREATED)
    verified = signature.verify(octets, "x", profiles=(profile,))
    assert verified.certificates == (grid.endorser.x509, grid.intermediate.certificate)
    assert document.same(document.children(verified.root), content().elements("x"))
    rules.check(verified, "x")
    signature.trust(verified, "x", ca_directory=grid.anchors)
    other = {"sha1": "sha256", "sha256": "sha1"}[profile]
    with pytest.raises(FactoryError, match=f"^x: is signed by the profile {profile}, which is not allowed here; "):
        signature.verify(octets, "x", profiles=(other,))
    info = etree.fromstring(octets).find(f".//{DS}SignedInfo")
    algorithms = [one.get("Algorithm").rpartition("/")[2] for one in info.iter() if one.get("Algorithm")]
    methods = {"sha256": ("xmldsig-more#rsa-sha256", "xmlenc#sha256"), "sha1": ("xmldsig#rsa-sha1", "xmldsig#sha1")}
    method, digest = methods[profile]
    # As X509Utils.signDocument of StratusLab has it.
    assert algorithms == ["REC-xml-c14n-20010315#WithComments", method, "xmldsig#enveloped-signature", digest]


def test_written_again_by_java_it_is_still_valid(signer: Signer, grid: pki.Pki, tmp_path: Path) -> None:
    octets = signature.sign(tree(signer), signer, "sha256")
    again = marketplace_server.as_java(etree.fromstring(octets))
    assert again != octets
    assert xmlsec1(again, tmp_path, grid.authority.certificate)
    verified = signature.verify(again, "x")
    assert document.read(verified.root) == document.read(signature.verify(octets, "x").root)


def test_documents_signed_by_xmlsec1_are_verified(signer: Signer, grid: pki.Pki, tmp_path: Path) -> None:
    root = tree(signer)
    template = f"""<Signature xmlns="{DS[1:-1]}"><SignedInfo><CanonicalizationMethod
      Algorithm="http://www.w3.org/TR/2001/REC-xml-c14n-20010315#WithComments"/><SignatureMethod
      Algorithm="http://www.w3.org/2001/04/xmldsig-more#rsa-sha256"/><Reference URI=""><Transforms><Transform
      Algorithm="http://www.w3.org/2000/09/xmldsig#enveloped-signature"/></Transforms><DigestMethod
      Algorithm="http://www.w3.org/2001/04/xmlenc#sha256"/><DigestValue/></Reference></SignedInfo><SignatureValue/><KeyInfo
      ><X509Data><X509Certificate/></X509Data></KeyInfo></Signature>"""
    root.append(etree.fromstring(template))
    (tmp_path / "in.xml").write_bytes(etree.tostring(root, xml_declaration=True, encoding="UTF-8"))
    pair = f"{grid.endorser.key},{grid.endorser.certificate}"
    argv = ["xmlsec1", "--sign", "--privkey-pem", pair, "--output", str(tmp_path / "out.xml"), str(tmp_path / "in.xml")]
    subprocess.run(argv, check=True, capture_output=True)
    verified = signature.verify((tmp_path / "out.xml").read_bytes(), "x")
    assert document.read(verified.root)["identifier"] == IDENTIFIER


def changes(octets: bytes, position: int, chance: random.Random) -> t.Iterator[bytes]:
    """A document with another byte at a position: a bit of it, what readers of XML treat alike, and anything."""
    before = octets[position]
    for byte in {before ^ 1, before ^ 0x20, 0x20, 0x0A, 0x0D, 0x22, 0x27, chance.randrange(256)} - {before}:
        yield octets[:position] + bytes([byte]) + octets[position + 1 :]


def test_no_byte_can_be_changed(signer: Signer, grid: pki.Pki) -> None:
    octets = signature.sign(tree(signer), signer, "sha256")
    chance = random.Random(12)
    tried, by_authority = 0, 0
    for step in range(POSITIONS):
        for changed in changes(octets, step * (len(octets) - 1) // (POSITIONS - 1), chance):
            tried += 1
            with pytest.raises(FactoryError, match=r"^x: .*; "):
                verified = signature.verify(changed, "x")
                # What is left are bytes of a certificate that its authority has signed.
                by_authority += 1
                signature.trust(verified, "x", ca_directory=grid.anchors, crl="none")
    assert tried >= 6 * POSITIONS
    assert by_authority < tried / 20


def test_names_in_a_certificate_cannot_be_changed_either(alone: Signer) -> None:
    # Whoever certifies himself must not look as if another had, by another letter or another type of string.
    octets = signature.sign(tree(alone), alone, "sha256")
    begin = octets.index(b"<X509Certificate>") + len(b"<X509Certificate>")
    certificate = octets[begin : octets.index(b"</X509Certificate>")]
    der = base64.b64decode(certificate)
    subject = alone.certificate.subject.public_bytes()
    for at in range(der.rindex(subject), der.rindex(subject) + len(subject)):
        for byte in {der[at] ^ 1, der[at] ^ 0x1F, 0x0C, 0x13, 0x16} - {der[at]}:
            changed = base64.b64encode(der[:at] + bytes([byte]) + der[at + 1 :]).decode()
            lines = "\n".join(changed[start : start + 64] for start in range(0, len(changed), 64)) + "\n"
            with pytest.raises(FactoryError):
                Judge().read(octets.replace(certificate, lines.encode()), "x")


def test_no_byte_at_all_can_be_changed_where_the_endorser_is_the_authority(alone: Signer) -> None:
    octets = signature.sign(tree(alone), alone, "sha256")
    chance = random.Random(13)
    for position in range(len(octets)):
        changed = chance.choice(list(changes(octets, position, chance)))
        with pytest.raises(FactoryError):
            Judge().read(changed, "x")


@pytest.mark.parametrize("place", ["begin", "end", "text", "tag"])
def test_nothing_can_be_added_or_left_out(place: str, alone: Signer) -> None:
    octets = signature.sign(tree(alone), alone, "sha256")
    at = {"begin": 0, "end": len(octets), "text": octets.index(b"debian") + 2, "tag": octets.index(b" rdf:about")}[
        place
    ]
    more = b"\n" if place != "end" else b" "
    for changed in (octets[:at] + more + octets[at:], octets[: at - 1] + octets[at:], octets[:at] + octets[at + 1 :]):
        if changed != octets:
            with pytest.raises(FactoryError):
                signature.verify(changed, "x")
    assert signature.verify(octets + b"\n", "x").profile == "sha256"


# What hides behind a valid signature


def resign(root: t.Any, signer: Signer, **options: t.Any) -> bytes:
    """Sign by signxml as it comes, with whatever an attacker, or another tool, might choose."""
    maker = signxml.XMLSigner(
        c14n_algorithm=options.pop("c14n", "http://www.w3.org/2001/10/xml-exc-c14n#"),
        signature_algorithm=options.pop("method", "rsa-sha256"),
    )
    found = maker.sign(root, key=signer.key, cert=[signer.certificate], **options)  # type: ignore[arg-type]
    return signature.DECLARATION.encode() + etree.tostring(found)


def evil(signer: Signer) -> t.Any:
    return tree(signer, title="evil")


def wrappings(signer: Signer) -> dict[str, bytes]:
    """Documents with a valid signature of the endorser's, and something else for a reader to find."""
    good = signature.sign(tree(signer), signer, "sha256")

    def parts() -> tuple[t.Any, t.Any, t.Any]:
        root = etree.fromstring(good)
        return root, root[0], root[1]

    def write(root: t.Any) -> bytes:
        return signature.DECLARATION.encode() + etree.tostring(root, encoding="UTF-8", xml_declaration=False)

    found = {}
    root, description, mark = parts()
    root.insert(0, evil(signer)[0])
    found["a second description before it"] = write(root)
    root, description, mark = parts()
    root.append(evil(signer)[0])
    found["a second description after it"] = write(root)
    root, description, mark = parts()
    wrapper = evil(signer)
    thing = etree.SubElement(mark, f"{DS}Object")
    thing.append(copy.deepcopy(root[0]))
    wrapper.append(mark)
    found["the signed one moved into an Object"] = write(wrapper)
    root, description, mark = parts()
    wrapper = evil(signer)
    wrapper[0].append(root)
    found["the signed document within another"] = write(wrapper)
    root, description, mark = parts()
    description.append(mark)
    found["the signature within the description"] = write(root)
    root, description, mark = parts()
    root.append(copy.deepcopy(mark))
    found["two signatures"] = write(root)
    # Valid by any verifier that follows the reference: what is signed has an Id, and is not what a reader takes.
    root = evil(signer)
    hidden = tree(signer)[0]
    hidden.set("Id", "hidden")
    etree.SubElement(root, f"{DS}Object").append(hidden)
    found["a reference to a part"] = resign(root, signer, reference_uri="#hidden")
    found["exclusive canonical XML"] = resign(tree(signer), signer)
    found["a key beside the certificate"] = resign(
        tree(signer), signer, c14n="http://www.w3.org/TR/2001/REC-xml-c14n-20010315", always_add_key_value=True
    )
    found["another method"] = resign(
        tree(signer), signer, c14n="http://www.w3.org/TR/2001/REC-xml-c14n-20010315", method="rsa-sha512"
    )
    commented = tree(signer)
    title = commented.find(f".//{document.DCTERMS}title")
    title.text = "Debian"
    title.insert(0, etree.Comment("evil"))
    found["a comment in a text"] = signature_of(commented, signer)
    instructed = tree(signer)
    instructed[0].append(etree.ProcessingInstruction("evil", "1"))
    found["a processing instruction"] = signature_of(instructed, signer)
    found["a comment before it"] = good.replace(b"?><rdf:RDF", b"?><!-- evil --><rdf:RDF")
    found["a comment after it"] = good + b"<!-- evil -->"
    found["an attribute of the signature"] = good.replace(b"<Signature xmlns", b'<Signature Id="a" xmlns')
    found["an attribute of the key"] = good.replace(b"<X509Data>", b'<X509Data evil="1">')
    found["a namespace of the key"] = good.replace(b"<X509Data>", b'<X509Data xmlns:evil="urn:evil">')
    found["a text in the signature"] = good.replace(b"</KeyInfo>", b"evil</KeyInfo>")
    found["another declaration"] = good.replace(b' standalone="no"', b' standalone="maybe"')
    found["HMAC with the public key"] = good.replace(b"xmldsig-more#rsa-sha256", b"xmldsig-more#hmac-sha256")
    return found


def signature_of(root: t.Any, signer: Signer) -> bytes:
    """Sign by our own signer, without its own verification."""
    signing, maker_of, _verifier = signature._classes()
    maker = maker_of(
        signature_algorithm=signature.PROFILES["sha256"][0],
        digest_algorithm=signature.PROFILES["sha256"][1],
        c14n_algorithm="http://www.w3.org/TR/2001/REC-xml-c14n-20010315#WithComments",
    )
    assert signing is signxml
    maker.namespaces = {None: DS[1:-1]}
    maker.inherited = dict(root.attrib)
    found = maker.sign(root, key=signer.key, cert=[signer.certificate], exclude_c14n_transform_element=True)
    return bytes(signature.DECLARATION.encode() + etree.tostring(found, encoding="UTF-8", xml_declaration=False))


def test_nothing_hides_behind_a_signature(signer: Signer) -> None:
    found = wrappings(signer)
    assert len(found) == 20
    for name, octets in found.items():
        with pytest.raises(FactoryError) as caught:
            signature.verify(octets, "x", profiles=signature.PROFILES)
        assert str(caught.value).count("\n") == 0, name
        assert "no valid signature" not in caught.value.problem or name == "the signed document within another", name


LAUGHS = b"".join(b'<!ENTITY l%d "%s">' % (n, b"&l%d;" % (n - 1) * 10) for n in range(1, 10))


@pytest.mark.parametrize(
    ("octets", "problem"),
    [
        (b"", "does not begin with an XML declaration for UTF-8"),
        (b"<html>login</html>", "does not begin with an XML declaration for UTF-8"),
        (b"<!DOCTYPE html><html></html>", "does not begin with an XML declaration"),
        (b'<!DOCTYPE a [<!ENTITY l0 "l">' + LAUGHS + b"]><a>&l9;</a>", "has a document type"),
        (b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>', "has a document type"),
        (b'<!DOCTYPE a SYSTEM "http://127.0.0.1:1/a.dtd"><a/>', "has a document type"),
        (b"<a>&nothing;</a>", "is no XML: "),
        (b"<a><![CDATA[x]]></a>", "has a document type, a comment, CDATA"),
        (b"<a>" * 300 + b"</a>" * 300, "is no XML: "),
        (b"<a>" * 100 + b"x" + b"</a>" * 100, "is nested deeper than 32 elements"),
        (b"<a>&#233;</a>", "is not written as the Marketplace"),
        (b"<a b='1'/>", "is not written as the Marketplace"),
        (b"<a\xff/>", "is no XML: "),
        (b"<a>\x00</a>", "is no XML: "),
        (b"<a>\xef\xbf\xbe</a>", "is no XML: "),
        (b"<a>x\r\ny</a>", "is not written as the Marketplace"),
        (b"<a/>", "is no metadata of an image: its root is a"),
        (b"<a>" + b"x" * signature.LARGEST + b"</a>", "the Marketplace takes 10240000 at most"),
    ],
)
def test_what_is_no_document_is_refused(octets: bytes, problem: str) -> None:
    given_octets = octets if b"does not begin" in problem.encode() else signature.DECLARATION.encode() + octets
    with pytest.raises(FactoryError) as caught:
        signature.verify(given_octets, "x")
    assert problem in str(caught.value) and str(caught.value).startswith("x: ") and caught.value.mend


def test_utf16_and_a_byte_order_mark_are_refused(signer: Signer) -> None:
    octets = signature.sign(tree(signer), signer, "sha256")
    for changed in (b"\xef\xbb\xbf" + octets, octets.decode().replace("UTF-8", "UTF-16").encode("utf-16")):
        with pytest.raises(FactoryError, match=r"^x: does not begin with an XML declaration for UTF-8"):
            signature.verify(changed, "x")


def test_unsigned_is_refused(signer: Signer) -> None:
    octets = signature.DECLARATION.encode() + etree.tostring(tree(signer), encoding="UTF-8", xml_declaration=False)
    with pytest.raises(FactoryError, match=r"^x: is not signed; "):
        signature.verify(octets, "x")


# Who may sign


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("expired", r"expired\.pem: the certificate .* expired at .*; renew"),
        ("not_yet_valid", r"not-yet-valid\.pem: the certificate .* is not valid before .*; wait"),
        ("no_digital_signature", r"no-digital-signature\.pem: .* its keyUsage lacks digitalSignature; ask"),
        ("short_key", r"short-key\.pem: .* has an RSA key of 1024 bits; ask"),
    ],
)
def test_certificates_that_verifiers_refuse_do_not_sign(kind: str, problem: str, grid: pki.Pki) -> None:
    bad = grid.bad()[kind]
    with pytest.raises(FactoryError, match=problem):
        signature.check_signer(Signer.load(bad.certificate, bad.key))


def test_elliptic_curves_do_not_sign(grid: pki.Pki) -> None:
    curve = grid.issue("curve", key="ec")
    with pytest.raises(FactoryError, match=r"curve\.pem: has no RSA key; use a certificate with an RSA key"):
        signature.check_signer(Signer.load(curve.certificate, curve.key))


def test_trust_needs_the_authority_and_no_revocation(signer: Signer, grid: pki.Pki, tmp_path: Path) -> None:
    verified = signature.verify(signature.sign(tree(signer), signer, "sha256"), "x")
    others = pki.ca_directory(tmp_path / "others", pki.Authority(pki.make_name("CN=Other"), number=5))
    with pytest.raises(FactoryError, match=r"^x: the signer's certificate .* is not valid by .*others: "):
        signature.trust(verified, "x", ca_directory=others)
    grid.intermediate.revoke(grid.endorser)
    try:
        anchors = pki.ca_directory(tmp_path / "revoked", grid.authority, grid.intermediate)
        with pytest.raises(FactoryError, match="certificate revoked"):
            signature.trust(verified, "x", ca_directory=anchors)
    finally:
        grid.intermediate.revoked.clear()


# The Marketplace's rules


def set_text(path: str, value: str) -> t.Callable[[t.Any], None]:
    def change(root: t.Any) -> None:
        root.find(path, namespaces=document.PREFIXES).text = value

    return change


def again(path: str) -> t.Callable[[t.Any], None]:
    def change(root: t.Any) -> None:
        found = root.find(path, namespaces=document.PREFIXES)
        found.addnext(copy.deepcopy(found))

    return change


def without(path: str) -> t.Callable[[t.Any], None]:
    def change(root: t.Any) -> None:
        found = root.find(path, namespaces=document.PREFIXES)
        found.getparent().remove(found)

    return change


def child(path: str) -> t.Callable[[t.Any], None]:
    def change(root: t.Any) -> None:
        etree.SubElement(root.find(path, namespaces=document.PREFIXES), f"{document.SLTERMS}more").text = "x"

    return change


def about(value: str) -> t.Callable[[t.Any], None]:
    return lambda root: root[0].set(f"{document.RDF}about", value)


def base(value: str) -> t.Callable[[t.Any], None]:
    return lambda root: root.set(document.XML_BASE, value)


def both(*changes_of_it: t.Callable[[t.Any], None]) -> t.Callable[[t.Any], None]:
    def change(root: t.Any) -> None:
        for one in changes_of_it:
            one(root)

    return change


def no_resource(root: t.Any) -> None:
    del root.find(".//slreq:checksum", namespaces=document.PREFIXES).attrib[f"{document.RDF}parseType"]


OTHER = "CEE8-MMAw-Lk_IgsEExAy3d9R8h"
BROKEN: dict[str, tuple[t.Callable[[t.Any], None], str]] = {
    "another base": (base("http://example.org/"), "xml:base: must be http://mp.stratuslab.eu/"),
    "no type": (without(".//dcterms:type"), "dcterms:type: must be there, once"),
    "two types": (again(".//dcterms:type"), "dcterms:type: must be there, once"),
    "a type with a child": (child(".//dcterms:type"), "dcterms:type: must be there, once"),
    "no SHA-1": (set_text(".//slreq:checksum[2]/slreq:algorithm", "SHA-2"), "slreq:checksum: must be there with SHA-1"),
    "two SHA-1": (again(".//slreq:checksum[2]"), "slreq:checksum: must be there with SHA-1"),
    "two versions": (again(".//slterms:version"), "slterms:version: must not be there twice"),
    "two systems": (again(".//slterms:os"), "slterms:os: must not be there twice"),
    "two architectures": (again(".//slterms:os-arch"), "slterms:os-arch: must not be there twice"),
    "two system versions": (again(".//slterms:os-version"), "slterms:os-version: must not be there twice"),
    "about another": (about(f"#{OTHER}"), "rdf:about: is "),
    "another identifier": (
        both(about(f"#{OTHER}"), set_text(".//dcterms:identifier", OTHER)),
        "dcterms:identifier: is not that of the SHA-1",
    ),
    "no identifier": (
        both(about("#x"), set_text(".//dcterms:identifier", "x")),
        "dcterms:identifier: cannot be 'x'",
    ),
    "another checksum": (set_text(".//slreq:checksum[2]/slreq:value", "0" * 40), "dcterms:identifier: is not that of"),
    "no end": (set_text(".//dcterms:valid", "tomorrow"), "dcterms:valid: must be there, once, as a date"),
    "an end that never comes": (set_text(".//dcterms:valid", "2025-02-30T00:00:00Z"), "dcterms:valid: must be"),
    "no date": (set_text(".//slreq:endorsement/dcterms:created", "2025-01-31"), "dcterms:created: must be there"),
    "another endorser": (set_text(".//slreq:subject", "CN=Somebody"), "slreq:subject: is 'CN=Somebody', and the"),
    "another issuer": (set_text(".//slreq:issuer", "CN=Somebody"), "slreq:issuer: is 'CN=Somebody', and the"),
    "another address": (set_text(".//slreq:email", "a@example.org"), "slreq:email: is 'a@example.org', and the"),
    "no RDF": (no_resource, "slreq:checksum: has elements within and no rdf:parseType"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rules_are_told_and_the_marketplace_tells_them_too(name: str, signer: Signer) -> None:
    change, problem = BROKEN[name]
    root = tree(signer)
    change(root)
    octets = signature.sign(root, signer, "sha256")
    verified = signature.verify(octets, "x")
    with pytest.raises(FactoryError) as caught:
        rules.check(verified, "x")
    assert str(caught.value).startswith(f"x: {problem}") and caught.value.mend
    with pytest.raises(marketplace_server.Refused, match="invalid metadata"):
        marketplace_server.judge(octets)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (set_text(".//slreq:bytes", "-1"), "slreq:bytes: must be a whole number, is '-1'"),
        (set_text(".//slreq:checksum/slreq:value", "xyz"), "slreq:checksum: of MD5 cannot be 'xyz'"),
        (set_text(".//slterms:inbound-port", "65536"), "slterms:inbound-port: must be a number from 0 to 65535"),
        (set_text(".//slreq:email", "jane at example"), "slreq:email: cannot be 'jane at example'"),
        (lambda root: root[0].append(root[0][0]), "rdf:Description: must begin with identifier, bytes, checksums"),
    ],
)
def test_what_is_not_as_the_schema_has_it(change: t.Callable[[t.Any], None], problem: str, signer: Signer) -> None:
    root = tree(signer)
    change(root)
    assert any(f"{key}: {said}".startswith(problem) for key, said in rules.schema_problems(root))


def test_deprecation_keeps_all_else(signer: Signer) -> None:
    elements = document.deprecated(content().elements("x"), "openssl\n is  outdated")
    root = document.assemble(elements, endorsement(signer))
    assert not [*rules.constraint_problems(root), *rules.schema_problems(root)]
    said = document.read(root)
    assert said.pop("deprecated") == "openssl is outdated"
    assert said == document.read(tree(signer))
    twice = document.deprecated(elements, "x")
    assert [one.text for one in twice if one.tag == f"{document.SLTERMS}deprecated"] == ["x"]
