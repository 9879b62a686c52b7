# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Signed lists as files: S/MIME C(multipart/signed) (RFC 8551) with the bare JSON as its first part.

There is one form in which lists are written, see :func:`render`. A list can be read strictly, where every byte must be as
that form has it, or leniently, for lists that other tools have written (vmcaster, AppDB, C(openssl smime -sign)): then the
headers of MIME, blanks and line ends, which no signature covers, may be anything.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import datetime
import email.parser
import hashlib
import json
import re
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _hepix_pkcs7
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._hepix_pkcs7 import Signed
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors
from ansible_collections.cloudimg.factory.plugins.module_utils._x509 import Signer

LARGEST = 256 << 20
"""Bytes of a list that are read: a list of 100,000 images has about 150 MB."""

ROOT = "hv:imagelist"
_FRAME = """\
MIME-Version: 1.0
Content-Type: multipart/signed; protocol="application/x-pkcs7-signature"; micalg="sha-256"; boundary="{boundary}"

This is an S/MIME signed message

--{boundary}
"""
_SIGNATURE = """
--{boundary}
Content-Type: application/x-pkcs7-signature; name="smime.p7s"
Content-Transfer-Encoding: base64
Content-Disposition: attachment; filename="smime.p7s"

{signature}

--{boundary}--

"""
_AGAIN = "fetch it again from who publishes it"
_COLUMNS = 64


@dataclasses.dataclass(frozen=True)
class SignedList:
    """A list that was read and whose signature fits.

    :param document: what is below C(hv:imagelist).
    :param signed: by whom; whether that one may be trusted is another question.
    :param canonical: whether each byte is as this collection writes it.
    """

    document: dict[str, t.Any]
    signed: Signed
    canonical: bool


def dump(document: t.Mapping[str, t.Any]) -> bytes:
    """The JSON of a list as it is signed: ASCII, keys sorted, the same bytes for the same list."""
    return json.dumps({ROOT: document}, indent=1, sort_keys=True, ensure_ascii=True).encode("ascii")


def sign(document: t.Mapping[str, t.Any], signer: Signer, at: datetime.datetime) -> bytes:
    """A signed list, as a file has it."""
    content = dump(document)
    return render(content, _hepix_pkcs7.sign(_canonical(content), signer, at))


def render(content: bytes, der: bytes) -> bytes:
    """The one form: everything in it follows from the content and the signature."""
    boundary = "----" + hashlib.sha256(content).hexdigest()[:32].upper()
    text = base64.b64encode(der).decode("ascii")
    lines = "\n".join(text[at : at + _COLUMNS] for at in range(0, len(text), _COLUMNS))
    head, tail = _FRAME.format(boundary=boundary), _SIGNATURE.format(boundary=boundary, signature=lines)
    return head.encode("ascii") + content + tail.encode("ascii")


def load(path: Path, *, strict: bool = True) -> SignedList:
    """Read a signed list from a file, see :func:`parse`."""
    with explain_os_errors(path), path.open("rb") as stream:
        data = stream.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise FactoryError(f"is larger than {LARGEST >> 20} MiB", where=str(path), mend="give a signed image list")
    return parse(data, str(path), strict=strict)


def parse(data: bytes, where: str, *, strict: bool = True) -> SignedList:
    """Read a signed list and verify its signature against the certificate in it.

    :raises FactoryError: it is no signed list, was changed, or (``strict``) is not in the one form of :func:`render`.
    """
    content, der = _split(data, where)
    canonical = render(content, der) == data
    signed = _hepix_pkcs7.verify(der, _canonical(content), where, strict=strict and canonical)
    if strict and not canonical:
        raise FactoryError(
            "is not in the form that this collection writes: it was changed on its way, or another tool wrote it",
            where=where,
            mend=f"{_AGAIN}, or allow for other tools by «strict: false»",
        )
    try:
        document = json.loads(content.decode("utf-8"))
    except ValueError as exc:
        raise FactoryError(f"what is signed is not JSON: {exc}", where=where, mend="give a signed image list") from exc
    inner = document.get(ROOT) if isinstance(document, dict) else None
    if not isinstance(inner, dict):
        raise FactoryError("is missing in what is signed", where=where, key=ROOT, mend="give a signed image list")
    return SignedList(inner, signed, canonical)


def _canonical(content: bytes) -> bytes:
    return content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def _split(data: bytes, where: str) -> tuple[bytes, bytes]:
    """The content (line ends as they are in the file) and the DER of the signature."""

    def refuse(problem: str, mend: str = _AGAIN) -> t.NoReturn:
        raise FactoryError(problem, where=where, mend=mend)

    if data.lstrip()[:1] == b"{":
        refuse("is a list without a signature", "have it signed by its endorser")
    head = re.split(rb"\r?\n\r?\n", data, maxsplit=1)[0]
    headers = email.parser.BytesHeaderParser().parsebytes(head)
    if headers.get_content_type() == "application/pkcs7-mime":
        refuse("is signed in the opaque form, which vmcatcher cannot read", "have it signed with a detached signature")
    boundary = headers.get_param("boundary")
    if headers.get_content_type() != "multipart/signed" or not isinstance(boundary, str) or not boundary:
        refuse("is no S/MIME message of the kind multipart/signed", "give a signed image list")
    body = data[len(head) :]
    mark = re.compile(re.escape(b"--" + boundary.encode("ascii", "replace")) + rb"(--)?[ \t]*(?=\r?\n|\Z)")
    found = [one for one in mark.finditer(body) if body[one.start() - 1 : one.start()] == b"\n"]
    if [bool(one[1]) for one in found] != [False, False, True] or body[found[2].end() :].strip():
        refuse("does not have two parts, what is signed and the signature")
    content, second = (body[one.end() : other.start()] for one, other in zip(found, found[1:]))
    # The line end before a boundary belongs to the boundary (RFC 2046, section 5.1.1).
    content = content[2 if content[:1] == b"\r" else 1 :]
    content = content[: -2 if content[-2:] == b"\r\n" else -1]
    pieces = re.split(rb"\r?\n\r?\n", second.lstrip(b"\r\n"), maxsplit=1)
    kind = email.parser.BytesHeaderParser().parsebytes(pieces[0]).get_content_type()
    if len(pieces) != 2 or kind not in ("application/x-pkcs7-signature", "application/pkcs7-signature"):
        refuse("its second part is no PKCS#7 signature")
    try:
        return content, base64.b64decode(b"".join(pieces[1].split()), validate=True)
    except binascii.Error as exc:
        raise FactoryError(f"its signature is not Base64: {exc}", where=where, mend=_AGAIN) from exc
