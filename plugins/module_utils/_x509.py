# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""X.509 certificates of those who sign: read, judged before they sign, and verified up to a trust anchor."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import re
import ssl
import tempfile
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._libraries import need
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors

try:
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError:
    pass  # need() says so, where it is used

CRYPTOGRAPHY = "42"
"""The oldest version of C(cryptography) that will do: it has C(not_valid_after_utc)."""

RSA_BITS = 2048
"""Shorter RSA keys are refused: IGTF's authorities may not certify them, and strict verifiers do not take them."""

_SHORT = {
    "0.9.2342.19200300.100.1.1": "UID",
    "0.9.2342.19200300.100.1.25": "DC",
    "1.2.840.113549.1.9.1": "emailAddress",
    "1.2.840.113549.1.9.2": "unstructuredName",
    "2.5.4.3": "CN",
    "2.5.4.4": "SN",
    "2.5.4.5": "serialNumber",
    "2.5.4.6": "C",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.9": "street",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
    "2.5.4.12": "title",
    "2.5.4.15": "businessCategory",
    "2.5.4.17": "postalCode",
    "2.5.4.42": "GN",
    "2.5.4.43": "initials",
    "2.5.4.44": "generationQualifier",
    "2.5.4.46": "dnQualifier",
    "2.5.4.65": "pseudonym",
    "2.5.4.97": "organizationIdentifier",
}
"""OpenSSL's short names (crypto/objects/objects.txt) of what names of the grid are made of."""

_RFC2253 = {
    **{oid: _SHORT[oid] for oid in ("0.9.2342.19200300.100.1.1", "0.9.2342.19200300.100.1.25")},
    **{f"2.5.4.{last}": _SHORT[f"2.5.4.{last}"].upper() for last in (3, 6, 7, 8, 9, 10, 11)},
}
"""RFC 2253, section 2.3: the keywords that every reader has to know."""

_TAGS = {"BMPString": "utf-16-be", "UniversalString": "utf-32-be", "T61String": "latin-1"}
_PROXY = "1.3.6.1.5.5.7.1.14"
_PEM = re.compile(
    rb"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----.*?-----END (?:TRUSTED |X509 )?CERTIFICATE-----", re.S
)
_HASHED = re.compile(r"[0-9a-f]{8}\.(r?)\d+")
_SAID = re.compile(r"error (\d+) at (\d+) depth lookup: *(.+)")

CRL_CHECKS = {"all": ["-crl_check", "-crl_check_all"], "leaf": ["-crl_check"], "none": []}
"""Which certificates of a chain must have a valid CRL in the directory, as openssl says it."""

_MENDS = {
    2: "put the authority's certificate into that directory and run «openssl rehash» on it",
    3: "fetch the CRLs (fetch-crl does), and run «openssl rehash» on that directory",
    9: "set the clock, or wait",
    10: "ask the signer to renew the certificate and to sign again",
    11: "set the clock, or fetch the CRLs again",
    12: "fetch the CRLs again (fetch-crl does)",
    18: "put the certificate into that directory if it is to be trusted",
    19: "put the authority's certificate into that directory if it is to be trusted, and run «openssl rehash» on it",
    20: "put the authority's certificate into that directory if it is to be trusted, and run «openssl rehash» on it",
    23: "do not trust what it has signed",
}
"""By X509_V_ERR_…, see openssl-verify(1)."""

if t.TYPE_CHECKING:
    PrivateKey = t.Union[rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey]


@dataclasses.dataclass(frozen=True)
class Signer:
    """Who signs: a certificate, its private key, and the intermediate certificates that go along (nearest first)."""

    certificate: x509.Certificate
    key: PrivateKey = dataclasses.field(repr=False)
    chain: tuple[x509.Certificate, ...] = ()
    where: str = ""

    @classmethod
    def load(
        cls,
        certificate: Path,
        key: Path,
        passphrase: str | None = None,
        chain: Path | None = None,
        *,
        at: datetime.datetime | None = None,
    ) -> Signer:
        """Read files in PEM. Further certificates after the first in ``certificate`` belong to the chain.

        :param passphrase: of the key, where it is encrypted.
        :param chain: a file with more intermediate certificates.
        :param at: the moment of signing, by default now.
        :raises FactoryError: a file is unreadable or not what it should be, the passphrase is wrong or missing, the key
            is another one's, or the certificate is not valid at that moment. What it may be used for is another
            question, see :func:`check_usage`.
        """
        first, *more = read_certificates(certificate)
        if chain is not None:
            more += [found for found in read_certificates(chain) if found != first and found not in more]
        private = read_key(key, passphrase)
        if private.public_key() != first.public_key():
            raise FactoryError(
                f"is not the key of the certificate {dn_oneline(first.subject)} in {certificate}",
                where=str(key),
                mend="give the key and the certificate that belong together",
            )
        check_time(first, str(certificate), at=at)
        return cls(first, private, tuple(more), str(certificate))

    @property
    def dn(self) -> str:
        """The subject, by :func:`dn_oneline`."""
        return dn_oneline(self.certificate.subject)

    @property
    def ca(self) -> str:
        """The issuer, by :func:`dn_oneline`."""
        return dn_oneline(self.certificate.issuer)


def read_certificates(path: Path) -> list[x509.Certificate]:
    """The certificates in a PEM file, at least one; raises FactoryError where there is none."""
    need("cryptography", CRYPTOGRAPHY)
    with explain_os_errors(path):
        data = path.read_bytes()
    mend = "give a file in PEM, with «-----BEGIN CERTIFICATE-----» in it"
    blocks = _PEM.findall(data)
    if not blocks:
        raise FactoryError("holds no certificate", where=str(path), mend=mend)
    try:
        return [parse_certificate(ssl.PEM_cert_to_DER_cert(block.decode("ascii"))) for block in blocks]
    except ValueError as exc:
        raise FactoryError(f"holds a broken certificate: {exc}", where=str(path), mend=mend) from exc


def parse_certificate(der: bytes) -> x509.Certificate:
    """A certificate in DER, read to its end: the library reads names, extensions and key only when they are asked for.

    :raises ValueError: any of it is broken.
    """
    try:
        found = x509.load_der_x509_certificate(der)
        for part in (found.subject, found.issuer):
            dn_oneline(part)
        tuple(found.extensions)
        found.public_key()
        for name in ("not_valid_before_utc", "not_valid_after_utc"):
            getattr(found, name)
    except Exception as exc:  # the library has many, with no class of their own (DuplicateExtension, InvalidVersion, …)
        raise ValueError(f"has a certificate that is broken: {exc}") from exc
    return found


def read_key(path: Path, passphrase: str | None = None) -> PrivateKey:
    """The RSA or EC private key in a PEM file.

    :raises FactoryError: there is none, it is of another kind, or the passphrase is wrong or missing.
    """
    need("cryptography", CRYPTOGRAPHY)
    with explain_os_errors(path):
        data = path.read_bytes()
    secret = passphrase.encode("utf-8") if passphrase else None
    try:
        try:
            key = serialization.load_pem_private_key(data, secret)
        except TypeError:
            if secret is None:
                raise FactoryError(
                    "is encrypted, and no passphrase was given", where=str(path), mend="give its passphrase"
                ) from None
            key = serialization.load_pem_private_key(data, None)  # it is not encrypted: no need for a passphrase
    except (ValueError, UnsupportedAlgorithm):
        # What the library says of it is no help («Bad decrypt…», or all that it tried), and may quote the file.
        encrypted = b"ENCRYPTED" in data
        raise FactoryError(
            "cannot be decrypted: the passphrase is wrong, or the file is broken" if encrypted else "is no private key",
            where=str(path),
            mend="give its passphrase" if encrypted else "give a private key in PEM",
        ) from None
    if not isinstance(key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey)):
        raise FactoryError(
            f"is of a kind that S/MIME and XML signatures do not know, {type(key).__name__.strip('_')}",
            where=str(path),
            mend="use an RSA or EC key",
        )
    return key


def check_time(certificate: x509.Certificate, where: str, *, at: datetime.datetime | None = None) -> None:
    """Raise FactoryError where a certificate is not valid at a moment, by default now."""
    moment = at or datetime.datetime.now(datetime.timezone.utc)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if moment < begin:
        raise FactoryError(
            f"the certificate {dn_oneline(certificate.subject)} is not valid before {begin:%Y-%m-%dT%H:%M:%SZ}",
            where=where,
            mend="wait, set the clock, or use another certificate",
        )
    if moment > end:
        raise FactoryError(
            f"the certificate {dn_oneline(certificate.subject)} expired at {end:%Y-%m-%dT%H:%M:%SZ}",
            where=where,
            mend="renew it at its authority",
        )


def check_usage(certificate: x509.Certificate, where: str, *, email_protection: bool = True) -> None:
    """Raise FactoryError for a certificate whose signatures verifiers refuse.

    :param email_protection: also what C(openssl smime -verify) asks for (check_purpose_smime_sign of OpenSSL's
        v3_purp.c): an extended key usage, where there is one, must have emailProtection; «any» is not enough.
    """

    def refuse(problem: str, mend: str) -> t.NoReturn:
        raise FactoryError(f"the certificate {dn_oneline(certificate.subject)} {problem}", where=where, mend=mend)

    usage = _extension(certificate, x509.KeyUsage)
    if usage is not None and not usage.digital_signature:
        refuse("may not sign: its keyUsage lacks digitalSignature", "ask its authority for one with digitalSignature")
    extended = _extension(certificate, x509.ExtendedKeyUsage)
    if email_protection and extended is not None and ExtendedKeyUsageOID.EMAIL_PROTECTION not in extended:
        names = ", ".join(sorted(getattr(oid, "_name", oid.dotted_string) for oid in extended))
        refuse(
            f"may not sign lists: its extendedKeyUsage is {names}, without emailProtection",
            "use a personal or robot certificate; those of hosts are refused by openssl smime -verify",
        )
    if any(found.oid.dotted_string == _PROXY for found in certificate.extensions):
        refuse("is a proxy certificate, which verifiers do not take", "use the certificate that the proxy was made of")
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < RSA_BITS:
        refuse(f"has an RSA key of {key.key_size} bits", f"ask its authority for one of {RSA_BITS} bits or more")


def _extension(certificate: x509.Certificate, kind: type[t.Any]) -> t.Any:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def dn_oneline(name: x509.Name) -> str:
    """A name as grids write it: C(/DC=org/DC=example/CN=x), most significant first, with OpenSSL's short names.

    As X509_NAME_oneline of OpenSSL does, with one exception: «/» and «+» in values are left as they are, which atrope
    and older versions of OpenSSL do, so that names such as C(CN=host/x.example.org) are spelled as everybody has them.
    What is not printable ASCII becomes C(\\xHH), a byte each.
    """
    parts = []
    for rdn in name.rdns:
        words = [f"{_SHORT.get(one.oid.dotted_string, one.oid.dotted_string)}={_printable(one)}" for one in rdn]
        parts.append("/" + "+".join(words))
    return "".join(parts)


def dn_rfc2253(name: x509.Name) -> str:
    """A name by RFC 2253: C(CN=x,DC=example,DC=org), least significant first.

    As Java's X500Principal.getName does it, attributes that the RFC has no keyword for are C(<OID>=#<hex of the BER>).
    """
    return ",".join("+".join(map(_rfc2253_word, rdn)) for rdn in reversed(name.rdns))


def email(certificate: x509.Certificate) -> str | None:
    """The first e-mail address: of the subject's alternative names, else of the subject itself."""
    names = _extension(certificate, x509.SubjectAlternativeName)
    addresses = names.get_values_for_type(x509.RFC822Name) if names is not None else []
    addresses += [str(one.value) for one in certificate.subject.get_attributes_for_oid(NameOID.EMAIL_ADDRESS)]
    return addresses[0] if addresses else None


def is_plain(name: x509.Name) -> bool:
    """Whether a name has but one spelling: printable ASCII, and one value in each of its parts.

    Verifiers spell others in ways of their own (OpenSSL C(\\xC3), atrope «ü»), so that comparing them fails.
    """
    return all(len(list(rdn)) == 1 and all("\\x" not in _printable(one) for one in rdn) for rdn in name.rdns)


def _bytes(one: x509.NameAttribute[t.Any]) -> bytes:
    if isinstance(one.value, bytes):
        return one.value
    kind = getattr(getattr(one, "_type", None), "name", "")
    return str(one.value).encode(_TAGS.get(kind, "utf-8"))


def _printable(one: x509.NameAttribute[t.Any]) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else f"\\x{byte:02X}" for byte in _bytes(one))


def _rfc2253_word(one: x509.NameAttribute[t.Any]) -> str:
    oid = one.oid.dotted_string
    if oid not in _RFC2253:
        data = _bytes(one)
        size = bytes([len(data)]) if len(data) < 128 else b"\x82" + len(data).to_bytes(2, "big")
        tag = int(getattr(getattr(one, "_type", None), "value", 12))
        return f"{oid}=#{(bytes([tag]) + size + data).hex()}"
    text = re.sub(r'([,+"\\<>;])', r"\\\1", str(one.value))
    if text[:1] in ("#", " "):
        text = "\\" + text
    if text.endswith(" ") and len(text) > 1:
        text = text[:-1] + "\\ "
    return f"{_RFC2253[oid]}={text}"


def fingerprint(certificate: x509.Certificate) -> str:
    """The SHA-256 (lower-case hex) of a certificate."""
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def verify_chain(
    certificates: t.Sequence[x509.Certificate],
    ca_directory: Path,
    *,
    where: str,
    crl: str = "all",
    purpose: str = "smimesign",
    at: datetime.datetime | None = None,
) -> None:
    """Verify a certificate up to a trust anchor, by C(openssl verify).

    :param certificates: the one to verify, then those that came with it, which are not trusted for that.
    :param ca_directory: trust anchors and CRLs in OpenSSL's hashed form (as C(openssl rehash) and IGTF's bundles make
        it): C(<hash>.0), C(<hash>.r0).
    :param where: the file (or URL) whose signer this is, for messages.
    :param crl: which certificates need a valid CRL in it: C(all), C(leaf) or C(none).
    :param purpose: what for, as C(openssl verify -purpose) knows it.
    :raises FactoryError: the chain is not valid; the message quotes openssl.
    """
    check_ca_directory(ca_directory, crl=crl)
    leaf, *others = certificates
    argv: list[str | Path] = ["openssl", "verify", "-CApath", ca_directory, "-no-CAfile", "-no-CAstore"]
    argv += ["-purpose", purpose, *CRL_CHECKS[crl]]
    if at is not None:
        argv += ["-attime", str(int(at.timestamp()))]
    with tempfile.TemporaryDirectory(prefix="cloudimg-verify-") as name:
        leaf_file, others_file = Path(name, "leaf.pem"), Path(name, "others.pem")
        leaf_file.write_bytes(pem(leaf))
        if others:
            others_file.write_bytes(b"".join(map(pem, others)))
            argv += ["-untrusted", others_file]
        done = _cli.run([*argv, leaf_file], timeout=60, check=False)
    if done.rc == 0:
        return
    said = _SAID.search(done.stderr + done.stdout)
    problem = said[3].strip() if said else _cli.tail(done.stderr or done.stdout, 1)
    raise FactoryError(
        f"the signer's certificate {dn_oneline(leaf.subject)}, issued by {dn_oneline(leaf.issuer)}, "
        f"is not valid by {ca_directory}: {problem}" + (f" (at depth {said[2]})" if said and said[2] != "0" else ""),
        where=where,
        mend=_MENDS.get(int(said[1])) if said else None,
    )


def check_ca_directory(ca_directory: Path, *, crl: str = "all") -> None:
    """Raise FactoryError where a directory has no trust anchors (or no CRLs, where such are wanted) in the hashed form."""
    with explain_os_errors(ca_directory):
        kinds = {found[1] for found in map(_HASHED.fullmatch, (path.name for path in ca_directory.iterdir())) if found}
    if "" not in kinds:
        raise FactoryError(
            "holds no certificates by their hashes (<hash>.0)",
            where=str(ca_directory),
            mend="run «openssl rehash» on it, or give a directory such as /etc/grid-security/certificates",
        )
    if crl != "none" and "r" not in kinds:
        raise FactoryError(
            "holds no CRLs by their hashes (<hash>.r0)",
            where=str(ca_directory),
            mend="run fetch-crl, or say that no CRLs are wanted",
        )


def pem(certificate: x509.Certificate) -> bytes:
    """A certificate in PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)
