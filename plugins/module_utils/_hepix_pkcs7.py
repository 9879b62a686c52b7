# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Detached PKCS#7 signatures (RFC 2315; RFC 5652, version 1), made in one form only and verified strictly.

What a signature does not cover (versions, algorithms, the certificates that come along, how the DER is laid out) could be
changed without anybody noticing. Therefore strict verification takes nothing but the very bytes that :func:`sign` would
have written. Signatures by other tools (openssl, M2Crypto) are read leniently; they must be DER, too.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import hmac
import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils import _x509
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._libraries import need

try:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
except ImportError:
    pass  # need() says so, where it is used

if t.TYPE_CHECKING:
    from cryptography import x509

_INTEGER, _OCTETS, _NULL, _OID, _UTC_TIME, _GENERALIZED_TIME = 0x02, 0x04, 0x05, 0x06, 0x17, 0x18
_SEQUENCE, _SET, _CONTEXT_0, _CONTEXT_1 = 0x30, 0x31, 0xA0, 0xA1


def _oid(text: str) -> bytes:
    """An object identifier's DER (X.690, section 8.19)."""
    first, second, *rest = (int(part) for part in text.split("."))
    data = bytearray()
    for number in (first * 40 + second, *rest):
        groups = [number & 0x7F]
        while number := number >> 7:
            groups.append(number & 0x7F | 0x80)
        data += bytes(reversed(groups))
    return _tlv(_OID, bytes(data))


def _tlv(tag: int, *parts: bytes) -> bytes:
    """A value with its tag and length in DER."""
    body = b"".join(parts)
    if len(body) < 128:
        return bytes([tag, len(body)]) + body
    size = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(size)]) + size + body


_DATA = _oid("1.2.840.113549.1.7.1")
_SIGNED_DATA = _oid("1.2.840.113549.1.7.2")
_CONTENT_TYPE = _oid("1.2.840.113549.1.9.3")
_MESSAGE_DIGEST = _oid("1.2.840.113549.1.9.4")
_SIGNING_TIME = _oid("1.2.840.113549.1.9.5")
_ONE = _tlv(_INTEGER, b"\x01")
_EMPTY = _tlv(_NULL)
_DIGESTS = {
    _oid("1.3.14.3.2.26"): "sha1",
    _oid("2.16.840.1.101.3.4.2.1"): "sha256",
    _oid("2.16.840.1.101.3.4.2.2"): "sha384",
    _oid("2.16.840.1.101.3.4.2.3"): "sha512",
}
_SHA256 = _tlv(_SEQUENCE, _oid("2.16.840.1.101.3.4.2.1"), _EMPTY)
_RSA = _tlv(_SEQUENCE, _oid("1.2.840.113549.1.1.1"), _EMPTY)
_ECDSA_SHA256 = _tlv(_SEQUENCE, _oid("1.2.840.10045.4.3.2"))


@dataclasses.dataclass(frozen=True)
class Signed:
    """A verified signature. ``others`` are the certificates that came along; ``digest`` is the name of the hash."""

    certificate: x509.Certificate
    others: tuple[x509.Certificate, ...]
    digest: str
    time: datetime.datetime | None


@dataclasses.dataclass(frozen=True)
class _Parts:
    """What a SignedData with one signer is made of, each in DER. ``attributes``: what is in the SET, or None."""

    certificates: tuple[bytes, ...]
    issuer: bytes
    serial: bytes
    digest_algorithm: bytes
    attributes: bytes | None
    signature_algorithm: bytes
    signature: bytes

    def der(self) -> bytes:
        """The one form that :func:`sign` writes."""
        signer = _tlv(
            _SEQUENCE,
            _ONE,
            _tlv(_SEQUENCE, self.issuer, self.serial),
            self.digest_algorithm,
            _tlv(_CONTEXT_0, self.attributes or b""),
            self.signature_algorithm,
            _tlv(_OCTETS, self.signature),
        )
        signed_data = _tlv(
            _SEQUENCE,
            _ONE,
            _tlv(_SET, self.digest_algorithm),
            _tlv(_SEQUENCE, _DATA),
            _tlv(_CONTEXT_0, *sorted(self.certificates)),
            _tlv(_SET, signer),
        )
        return _tlv(_SEQUENCE, _SIGNED_DATA, _tlv(_CONTEXT_0, signed_data))


def sign(content: bytes, signer: _x509.Signer, at: datetime.datetime) -> bytes:
    """The detached signature (DER, SHA-256) of a content that is canonical already, with the signer's certificates."""
    certificate = signer.certificate.public_bytes(serialization.Encoding.DER)
    issuer, serial = _issuer_and_serial(certificate)
    attributes = b"".join(
        sorted(
            _tlv(_SEQUENCE, kind, _tlv(_SET, value))
            for kind, value in (
                (_CONTENT_TYPE, _DATA),
                (_SIGNING_TIME, _time(at)),
                (_MESSAGE_DIGEST, _tlv(_OCTETS, hashlib.sha256(content).digest())),
            )
        )
    )
    to_sign = _tlv(_SET, attributes)
    if isinstance(signer.key, rsa.RSAPrivateKey):
        algorithm, signature = _RSA, signer.key.sign(to_sign, padding.PKCS1v15(), hashes.SHA256())
    else:
        algorithm, signature = _ECDSA_SHA256, signer.key.sign(to_sign, ec.ECDSA(hashes.SHA256()))
    chain = tuple(found.public_bytes(serialization.Encoding.DER) for found in signer.chain)
    return _Parts((certificate, *chain), issuer, serial, _SHA256, attributes, algorithm, signature).der()


def verify(der: bytes, content: bytes, where: str, *, strict: bool = True) -> Signed:
    """Verify a detached signature of ``content`` by the certificate in it (not whether that one may be trusted).

    :param content: canonical: lines end with CR LF.
    :param where: the file (or URL), for messages.
    :param strict: refuse all that :func:`sign` would not have written.
    :raises FactoryError: it is broken, not in that form, or does not fit.
    """
    need("cryptography", _x509.CRYPTOGRAPHY)
    try:
        parts = _parse(der)
        if strict and parts.der() != der:
            raise ValueError("is not in the form that this collection writes")
        return _verify(parts, content, strict)
    except (ValueError, IndexError, InvalidSignature, UnsupportedAlgorithm) as exc:
        said = (
            "does not fit: it was changed, or its signature is another one's"
            if isinstance(exc, InvalidSignature)
            else exc
        )
        raise FactoryError(
            f"its signature {said}", where=where, mend="fetch it again from who publishes it, and do not trust this one"
        ) from exc


def _verify(parts: _Parts, content: bytes, strict: bool) -> Signed:
    certificates = {der: _x509.parse_certificate(der) for der in parts.certificates}
    found = [der for der in certificates if _issuer_and_serial(der) == (parts.issuer, parts.serial)]
    if len(found) != 1:
        raise ValueError("comes without the certificate of who signed")
    signer = certificates.pop(found[0])
    digest = _DIGESTS.get(_read(parts.digest_algorithm)[0].items()[0].whole)
    if digest is None:
        raise ValueError("uses a hash that is not known, or too weak")
    public = signer.public_key()
    if isinstance(public, ec.EllipticCurvePublicKey):
        wanted = _ECDSA_SHA256
    elif isinstance(public, rsa.RSAPublicKey):
        wanted = _RSA
    else:
        raise ValueError("is by a key that is neither RSA nor EC")
    if strict and (parts.digest_algorithm != _SHA256 or parts.signature_algorithm != wanted):
        raise ValueError("uses other algorithms than RSA or ECDSA with SHA-256")
    covered, time = content, None
    if parts.attributes is None and strict:
        raise ValueError("has no signed attributes")
    if parts.attributes is not None:
        values = _attributes(parts.attributes)
        if values.get(_CONTENT_TYPE) != _DATA:
            raise ValueError("is not about data")
        given = _tlv(_OCTETS, hashlib.new(digest, content).digest())
        if not hmac.compare_digest(values.get(_MESSAGE_DIGEST, b""), given):
            raise InvalidSignature
        covered = _tlv(_SET, parts.attributes)
        time = _parse_time(values[_SIGNING_TIME]) if _SIGNING_TIME in values else None
    algorithm: hashes.HashAlgorithm = getattr(hashes, digest.upper())()
    if isinstance(public, rsa.RSAPublicKey):
        public.verify(parts.signature, covered, padding.PKCS1v15(), algorithm)
    else:
        public.verify(parts.signature, covered, ec.ECDSA(algorithm))
    return Signed(signer, tuple(certificates.values()), digest, time)


@dataclasses.dataclass(frozen=True)
class _Value:
    tag: int
    whole: bytes
    body: bytes

    def items(self) -> list[_Value]:
        return _read(self.body)


def _read(data: bytes) -> list[_Value]:
    """The values in some DER, one after another; raises ValueError where it is none."""
    values = []
    at = 0
    while at < len(data):
        begin = at
        if at + 2 > len(data) or data[at] & 0x1F == 0x1F:
            raise ValueError("is no DER")
        tag, size = data[at], data[at + 1]
        at += 2
        if size & 0x80:
            count = size & 0x7F
            size = int.from_bytes(data[at : at + count], "big")
            at += count
            if not 1 <= count <= 4 or size < 128 or size >> 8 * (count - 1) == 0:
                raise ValueError("is no DER: a length is not in its shortest form")
        if at + size > len(data):
            raise ValueError("is no DER: it ends too early")
        values.append(_Value(tag, data[begin : at + size], data[at : at + size]))
        at += size
    return values


def _take(values: list[_Value], tag: int) -> _Value:
    if not values or values[0].tag != tag:
        raise ValueError("is no PKCS#7 signature of the kind that S/MIME has")
    return values.pop(0)


def _parse(der: bytes) -> _Parts:
    (outer,) = _read(der)[:1] or [_Value(0, b"", b"")]
    if len(outer.whole) != len(der) or outer.tag != _SEQUENCE:
        raise ValueError("is no PKCS#7 signature")
    content_info = outer.items()
    if _take(content_info, _OID).whole != _SIGNED_DATA:
        raise ValueError("is no PKCS#7 signature, but something else of PKCS#7")
    fields = _take(_take(content_info, _CONTEXT_0).items(), _SEQUENCE).items()
    _take(fields, _INTEGER)
    _take(fields, _SET)
    if len(_take(fields, _SEQUENCE).items()) != 1:
        raise ValueError("is not detached: what was signed is within")
    if not fields or fields[0].tag != _CONTEXT_0:
        raise ValueError("comes without a certificate")
    certificates = tuple(value.whole for value in fields.pop(0).items())
    if fields and fields[0].tag == _CONTEXT_1:
        fields.pop(0)  # CRLs, which ours has not
    signers = _take(fields, _SET).items()
    if len(signers) != 1 or fields or content_info:
        raise ValueError(f"is by {len(signers)} signers, not by one")
    return _signer(signers[0], certificates)


def _signer(value: _Value, certificates: tuple[bytes, ...]) -> _Parts:
    fields = value.items()
    _take(fields, _INTEGER)
    issuer, serial = (found.whole for found in _take(fields, _SEQUENCE).items())
    digest_algorithm = _take(fields, _SEQUENCE).whole
    attributes = fields.pop(0).body if fields and fields[0].tag == _CONTEXT_0 else None
    signature_algorithm = _take(fields, _SEQUENCE).whole
    signature = _take(fields, _OCTETS).body
    return _Parts(certificates, issuer, serial, digest_algorithm, attributes, signature_algorithm, signature)


def _attributes(data: bytes) -> dict[bytes, bytes]:
    """The first value of each attribute, by the DER of its object identifier."""
    found: dict[bytes, bytes] = {}
    for value in _read(data):
        kind, values = value.items()
        if kind.whole in found:
            raise ValueError("has a signed attribute twice")
        found[kind.whole] = values.items()[0].whole
    return found


def _issuer_and_serial(certificate: bytes) -> tuple[bytes, bytes]:
    """Of a certificate in DER (RFC 5280, section 4.1)."""
    fields = _read(certificate)[0].items()[0].items()
    if fields[0].tag == _CONTEXT_0:
        fields.pop(0)  # the version
    return fields[2].whole, fields[0].whole


def _time(moment: datetime.datetime) -> bytes:
    """RFC 5652, section 11.3: UTCTime until 2049, GeneralizedTime afterwards."""
    text = moment.astimezone(datetime.timezone.utc).strftime("%Y%m%d%H%M%SZ")
    if moment.year < 2050:
        return _tlv(_UTC_TIME, text[2:].encode("ascii"))
    return _tlv(_GENERALIZED_TIME, text.encode("ascii"))


def _parse_time(der: bytes) -> datetime.datetime:
    (value,) = _read(der)
    text = value.body.decode("ascii")
    if value.tag == _UTC_TIME:
        text = ("20" if text[:2] < "50" else "19") + text
    return datetime.datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=datetime.timezone.utc)
