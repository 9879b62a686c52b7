# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A grid's public key infrastructure in miniature: a root, an intermediate authority, endorsers good and bad, CRLs, and
directories of trust anchors in OpenSSL's hashed form."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import subprocess
import typing as t
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)
PASSPHRASE = "correct horse battery staple"
"""Of keys that are encrypted."""

EMAIL, SERVER, CLIENT = (
    ExtendedKeyUsageOID.EMAIL_PROTECTION,
    ExtendedKeyUsageOID.SERVER_AUTH,
    ExtendedKeyUsageOID.CLIENT_AUTH,
)
_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def now() -> datetime.datetime:
    """The present, without fractions."""
    return datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)


@functools.cache
def make_key(kind: str, number: int = 0) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey:
    """A key, ``rsa``, ``rsa1024`` or ``ec``; the same for the same ``number``, as RSA keys take long to make."""
    del number
    if kind == "ec":
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(65537, 1024 if kind == "rsa1024" else 2048)


def make_name(*parts: str) -> x509.Name:
    """A name of C("DC=org", "CN=x"), most significant first."""
    kinds = {"emailAddress": NameOID.EMAIL_ADDRESS, "DC": NameOID.DOMAIN_COMPONENT, "CN": NameOID.COMMON_NAME}
    kinds |= {"C": NameOID.COUNTRY_NAME, "O": NameOID.ORGANIZATION_NAME, "OU": NameOID.ORGANIZATIONAL_UNIT_NAME}
    words = [part.partition("=") for part in parts]
    return x509.Name([x509.NameAttribute(kinds[key], value) for key, _sign, value in words])


def usage(*names: str) -> x509.KeyUsage:
    """A keyUsage with just these bits."""
    return x509.KeyUsage(**{name: name in names for name in _USAGES})


@dataclasses.dataclass(frozen=True)
class Identity:
    """Files of an endorser: ``chain`` holds the intermediate certificates, where there are any."""

    certificate: Path
    key: Path
    chain: Path | None
    passphrase: str | None
    x509: x509.Certificate

    @property
    def email(self) -> str:
        """As its certificate has it by default."""
        return f"{self.certificate.stem}@example.org"


class Authority:
    """A certification authority; without ``parent`` a root of its own."""

    def __init__(self, name: x509.Name, parent: Authority | None = None, *, number: int = 0, key: str = "ec") -> None:
        self.name = name
        self.parent = parent
        self.key = make_key(key, 1000 + number)
        self.revoked: list[x509.RevokedCertificate] = []
        self.certificate = self._sign(
            name,
            self.key.public_key(),
            parent or self,
            (now() - 30 * DAY, now() + 3650 * DAY),
            [(x509.BasicConstraints(True, None), True), (usage("key_cert_sign", "crl_sign"), True)],
        )

    @staticmethod
    def _sign(
        name: x509.Name,
        public: t.Any,
        issuer: Authority,
        valid: tuple[datetime.datetime, datetime.datetime],
        extensions: t.Sequence[tuple[x509.ExtensionType, bool]],
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer.name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(valid[0])
            .not_valid_after(valid[1])
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), False)
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(issuer.key, hashes.SHA256())

    @property
    def pem(self) -> bytes:
        """Its certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        folder: Path,
        name: str = "endorser",
        *,
        subject: x509.Name | None = None,
        key: str = "rsa",
        number: int = 0,
        valid: tuple[float, float] = (-1, 365),
        key_usage: t.Sequence[str] | None = ("digital_signature", "key_encipherment"),
        extended: t.Sequence[x509.ObjectIdentifier] | None = (CLIENT, EMAIL),
        email: str | None = "",
        extensions: t.Sequence[tuple[x509.ExtensionType, bool]] = (),
        passphrase: str | None = None,
    ) -> Identity:
        """Make an end entity's key and certificate, as ``<name>.pem`` and ``<name>.key.pem`` in ``folder``.

        :param number: identities with the same number and kind of key share their key.
        :param valid: from and until, in days from now.
        :param key_usage: names of bits; None leaves the extension out. ``extended`` likewise.
        :param email: its alternative name, by default ``<name>@example.org``; None leaves it out.
        """
        folder.mkdir(parents=True, exist_ok=True)
        private = make_key(key, number)
        more: list[tuple[x509.ExtensionType, bool]] = [(x509.BasicConstraints(False, None), True), *extensions]
        if key_usage is not None:
            more.append((usage(*key_usage), True))
        if extended is not None:
            more.append((x509.ExtendedKeyUsage(extended), False))
        if email is not None:
            address = email or f"{name}@example.org"
            more.append((x509.SubjectAlternativeName([x509.RFC822Name(address)]), False))
        certificate = self._sign(
            subject or make_name("DC=org", "DC=example", "C=DE", "O=People", f"CN={name}"),
            private.public_key(),
            self,
            (now() + valid[0] * DAY, now() + valid[1] * DAY),
            more,
        )
        cloak = (
            serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else serialization.NoEncryption()
        )
        paths = folder / f"{name}.pem", folder / f"{name}.key.pem", folder / f"{name}.chain.pem"
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, cloak)
        )
        paths[1].chmod(0o600)
        if self.parent:
            paths[2].write_bytes(self.pem)
        return Identity(paths[0], paths[1], paths[2] if self.parent else None, passphrase, certificate)

    def revoke(self, identity: Identity) -> None:
        """Have it in the CRLs from now on."""
        entry = x509.RevokedCertificateBuilder().serial_number(identity.x509.serial_number).revocation_date(now() - DAY)
        self.revoked.append(entry.build())

    def crl(self, *, until: float = 30) -> bytes:
        """A CRL that is valid until so many days from now."""
        end = now() + until * DAY
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.name)
        builder = builder.last_update(min(now(), end) - DAY).next_update(end)
        for entry in self.revoked:
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def ca_directory(folder: Path, *authorities: Authority, crls: bool = True, until: float = 30) -> Path:
    """A directory of trust anchors (and their CRLs) in OpenSSL's hashed form; made anew, returns ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, authority in enumerate(authorities):
        (folder / f"authority{number}.pem").write_bytes(authority.pem)
        if crls:
            (folder / f"authority{number}.crl.pem").write_bytes(authority.crl(until=until))
    subprocess.run(["openssl", "rehash", str(folder)], check=True, capture_output=True)
    return folder


@dataclasses.dataclass(frozen=True)
class Pki:
    """A root and an intermediate authority, both with CRLs in ``anchors``, and a good endorser of the intermediate."""

    root: Path
    authority: Authority
    intermediate: Authority
    anchors: Path
    endorser: Identity

    @classmethod
    def make(cls, root: Path, number: int = 0) -> Pki:
        """All of it below ``root``; authorities of another ``number`` have other keys, and the same names."""
        top = Authority(make_name("DC=org", "DC=example", "CN=Example Grid Root CA"), number=100 * number)
        below = Authority(make_name("DC=org", "DC=example", "CN=Example Grid CA"), top, number=100 * number + 1)
        anchors = ca_directory(root / "anchors", top, below)
        return cls(root, top, below, anchors, below.issue(root / "people"))

    def issue(self, name: str, **options: t.Any) -> Identity:
        """Another end entity of the intermediate, see :meth:`Authority.issue`."""
        return self.intermediate.issue(self.root / "people", name, **options)

    def bad(self) -> dict[str, Identity]:
        """Endorsers that verifiers refuse, by what is wrong with them."""
        return {
            "expired": self.issue("expired", valid=(-30, -1)),
            "not_yet_valid": self.issue("not-yet-valid", valid=(1, 30)),
            "host": self.issue("host", extended=(SERVER, CLIENT)),
            "any_usage": self.issue("any-usage", extended=(ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,)),
            "no_digital_signature": self.issue("no-digital-signature", key_usage=("key_encipherment",)),
            "short_key": self.issue("short-key", key="rsa1024"),
        }
