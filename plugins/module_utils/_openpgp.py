# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The fingerprints of OpenPGP public keys, without any tool (RFC 4880, sections 4.2 and 12.2; RFC 9580 for version 6)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

_BLOCK = re.compile(
    r"-----BEGIN PGP PUBLIC KEY BLOCK-----[ \t]*\r?\n(?P<body>.*?)-----END PGP PUBLIC KEY BLOCK-----", re.DOTALL
)
_PUBLIC_KEY = 6
_LENGTHS = {0: 1, 1: 2, 2: 4}


def fingerprints(text: str) -> list[str]:
    """The fingerprints (upper case) of the primary keys in armored public keys.

    :raises ValueError: there is none, or it is broken.
    """
    found = [
        _fingerprint(body)
        for block in _BLOCK.finditer(text)
        for tag, body in _packets(_unarmor(block["body"]))
        if tag == _PUBLIC_KEY
    ]
    if not found:
        raise ValueError("is no armored OpenPGP public key")
    return found


def check(text: str, wanted: t.Sequence[str], where: str, key: str) -> list[str]:
    """The fingerprints of armored keys, all of which must be ``wanted``.

    :param wanted: full fingerprints, in any case, with or without spaces.
    :raises FactoryError: one of them is not, or that is no key, or no fingerprint.
    """
    pins = [re.sub(r"[\s:]", "", pin).upper() for pin in wanted]
    for given, pin in zip(wanted, pins):
        if not re.fullmatch(r"[0-9A-F]{40}|[0-9A-F]{64}", pin):
            mend = "give all 40 hexadecimal digits, as «gpg --show-keys» prints them"
            raise FactoryError(f"{given!r} is not the full fingerprint of a key", where=where, key=key, mend=mend)
    try:
        found = fingerprints(text)
    except ValueError as exc:
        mend = "give it as «gpg --armor --export» prints it"
        raise FactoryError(f"the key {exc}", where=where, key=key, mend=mend) from exc
    for one in found:
        if one not in pins:
            raise FactoryError(
                f"the key is {one}, not {' or '.join(pins)}",
                where=where,
                key=key,
                mend="find out from the vendor whether its key changed, then give the fingerprint of the new one",
            )
    return found


def _unarmor(body: str) -> bytes:
    lines = [line.strip() for line in body.splitlines()]
    # Headers, where there are any, end with an empty line; the checksum begins with «=».
    data = lines[lines.index("") + 1 :] if "" in lines else lines
    try:
        return base64.b64decode("".join(line for line in data if not line.startswith("=")), validate=True)
    except binascii.Error as exc:
        raise ValueError(f"has a broken armor: {exc}") from exc


def _packets(data: bytes) -> t.Iterator[tuple[int, bytes]]:
    """The tag and body of each packet."""
    at = 0
    while at < len(data):
        head = data[at]
        if not head & 0x80:
            raise ValueError("is broken: a packet has no tag")
        at += 1
        if head & 0x40:
            tag, (length, size) = head & 0x3F, _new_length(data, at)
        else:
            tag, size = (head & 0x3C) >> 2, _LENGTHS.get(head & 3, 0)
            length = int.from_bytes(data[at : at + size], "big") if size else len(data) - at
        at += size
        if at + length > len(data):
            raise ValueError("is broken: it ends too early")
        yield tag, data[at : at + length]
        at += length


def _new_length(data: bytes, at: int) -> tuple[int, int]:
    """The length of a packet's body, and of the field that says so."""
    first = data[at] if at < len(data) else 0
    if first < 192:
        return first, 1
    if first < 224:
        return ((first - 192) << 8) + int.from_bytes(data[at + 1 : at + 2], "big") + 192, 2
    if first == 255:
        return int.from_bytes(data[at + 1 : at + 5], "big"), 5
    raise ValueError("is broken: a key comes in parts")


def _fingerprint(body: bytes) -> str:
    version = body[0] if body else 0
    if version == 4:
        return hashlib.new("sha1", b"\x99" + len(body).to_bytes(2, "big") + body).hexdigest().upper()
    if version == 6:
        return hashlib.sha256(b"\x9b" + len(body).to_bytes(4, "big") + body).hexdigest().upper()
    raise ValueError(f"is of version {version}, which nothing uses any more")
