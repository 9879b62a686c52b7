# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""OpenPGP signatures, verified by gpgv against one keyring, in a home of its own."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import re
import tempfile
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors

KEYRING = "image_medium.keyring"
SIGNATURE = "image_medium.signature"
FINGERPRINTS = "image_medium.fingerprints"

_KEY_BLOCK = re.compile(
    rb"-----BEGIN PGP PUBLIC KEY BLOCK-----[ \t]*\r?\n(?P<body>.*?)-----END PGP PUBLIC KEY BLOCK-----", re.DOTALL
)
_PUBLIC_KEY, _SIGNATURE = 6, 2  # packet tags of RFC 4880, section 4.3
_NEVER = {
    "BADSIG": "does not fit its signature: it was changed, or is another file",
    "UNEXPECTED": "holds more than what is signed",
    "BADARMOR": "is a broken OpenPGP file",
}


@dataclasses.dataclass(frozen=True)
class Verified:
    """What was signed, and the (primary key's) fingerprint of who did."""

    data: bytes
    fingerprint: str


def check_fingerprints(fingerprints: t.Iterable[str]) -> list[str]:
    """Fingerprints in upper case without spaces; raises FactoryError for a short key id or what else is none."""
    pins = []
    for text in fingerprints:
        pin = re.sub(r"[\s:]", "", text).removeprefix("0x").upper()
        if not re.fullmatch(r"[0-9A-F]{40}|[0-9A-F]{64}", pin):
            raise FactoryError(
                "is not the full fingerprint of a key",
                where=text,
                key=FINGERPRINTS,
                mend="give all 40 hexadecimal digits, as «gpg --show-keys KEYRING» prints them",
            )
        pins.append(pin)
    return pins


def is_detached(signature: bytes) -> bool:
    """Whether these bytes are a signature alone, as against a message that holds what it signs."""
    if b"-----BEGIN PGP " in signature:
        return b"-----BEGIN PGP SIGNATURE" in signature and b"-----BEGIN PGP SIGNED" not in signature
    return _packet_tag(signature) == _SIGNATURE


def read_keyring(path: Path) -> bytes:
    """A keyring as gpgv wants it (binary), from an armored or binary file; raises FactoryError where it is none."""
    mend = "give the path (on the builder) of the vendor's OpenPGP public keys, armored or binary"
    if not path.is_file():
        raise FactoryError("there is no such file", where=str(path), key=KEYRING, mend=mend)
    with explain_os_errors(path):
        data = path.read_bytes()
    try:
        binary = b"".join(_unarmor(match["body"]) for match in _KEY_BLOCK.finditer(data)) or data
    except binascii.Error as exc:
        raise FactoryError(f"its armor is broken: {exc}", where=str(path), key=KEYRING, mend=mend) from exc
    if _packet_tag(binary) != _PUBLIC_KEY and binary[8:12] != b"KBXf":
        raise FactoryError("is not an OpenPGP keyring", where=str(path), key=KEYRING, mend=mend)
    return binary


def verify(
    signed: bytes,
    keyring: Path,
    *,
    where: str,
    signature: bytes | None = None,
    fingerprints: t.Iterable[str] = (),
) -> Verified:
    """Verify a signature by a key of ``keyring``, one of ``fingerprints`` where there are any.

    :param signed: what was signed; or, without ``signature``, a message with both in it, of which only the signed
        part is returned.
    :param where: the signed file, for messages.
    :raises FactoryError: it is not so signed.
    """
    pins = check_fingerprints(fingerprints)
    keys = read_keyring(keyring)
    gpgv = _cli.require("gpgv")
    with tempfile.TemporaryDirectory(prefix="cloudimg-gpgv-") as name:
        home = Path(name)
        files = {"keyring.gpg": keys, "signed": signed, **({"signature": signature} if signature is not None else {})}
        with explain_os_errors(home):
            for file, content in files.items():
                (home / file).write_bytes(content)
        options = {"homedir": name, "keyring": f"{name}/keyring.gpg", "weak-digest": "SHA1", "status-fd": "1"}
        argv = [gpgv, *(word for option, value in options.items() for word in (f"--{option}", value))]
        if signature is None:
            argv += ["--output", f"{name}/data", f"{name}/signed"]
        else:
            argv += [f"{name}/signature", f"{name}/signed"]
        done = _cli.run(argv, timeout=120, check=False)
        fingerprint = _judge(done, keyring, pins, where)
        return Verified((home / "data").read_bytes() if signature is None else signed, fingerprint)


def _judge(done: _cli.Completed, keyring: Path, pins: list[str], where: str) -> str:
    """The fingerprint of a good and wanted signature, from gpgv's status lines (GnuPG's doc/DETAILS)."""
    good = False
    signers: list[tuple[str, str]] = []
    seen: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        word, *rest = line.removeprefix("[GNUPG:] ").split(" ")
        seen.setdefault(word, []).append(rest[0] if rest else "")
        if word in ("NEWSIG", "GOODSIG", "BADSIG", "ERRSIG", "EXPSIG", "EXPKEYSIG", "REVKEYSIG"):
            good = word == "GOODSIG"
        elif word == "VALIDSIG" and good:
            signers.append((rest[0], rest[9] if len(rest) > 9 else rest[0]))
    if signers and ("ERROR" in seen or "NODATA" in seen):
        seen["UNEXPECTED"] = []
    for word, problem in _NEVER.items():
        if word in seen:
            raise FactoryError(problem, where=where, key=SIGNATURE, mend="fetch both again from who publishes them")
    for subkey, primary in signers:
        if not pins or primary in pins or subkey in pins:
            return primary
    if signers:
        raise FactoryError(
            f"is signed by {signers[0][1]}, which is not one of the pinned fingerprints",
            where=where,
            key=FINGERPRINTS,
            mend="find out from the vendor whether its key changed, then pin the new one",
        )
    for word, state in (("EXPKEYSIG", "has expired"), ("REVKEYSIG", "was revoked")):
        if word in seen:
            raise FactoryError(
                f"is signed by {seen[word][0]}, a key that {state} in {keyring}",
                where=where,
                key=KEYRING,
                mend="give the vendor's current keyring",
            )
    if "NO_PUBKEY" in seen:
        raise FactoryError(
            f"is signed by an unknown key, {', '.join(seen['NO_PUBKEY'])}, which is not in {keyring}",
            where=where,
            key=KEYRING,
            mend="give the keyring that holds this key, once the vendor's own pages confirm its fingerprint",
        )
    words = (line.removeprefix("gpgv:").strip() for line in done.stderr.splitlines())
    said = next((line for line in words if line and not line.startswith(("Signature made", "using"))), "none found")
    raise FactoryError(
        f"has no valid OpenPGP signature ({said})",
        where=where,
        key=SIGNATURE,
        mend="give the place of its detached signature, or of the clearsigned checksum file",
    )


def _unarmor(body: bytes) -> bytes:
    """The bytes in an armored block: headers end with an empty line, the checksum begins with «=» (RFC 4880, 6.2)."""
    lines = [line.strip() for line in body.splitlines()]
    data = lines[lines.index(b"") + 1 :] if b"" in lines and b": " in body else lines
    return base64.b64decode(b"".join(line for line in data if not line.startswith(b"=")), validate=True)


def _packet_tag(data: bytes) -> int | None:
    if not data or not data[0] & 0x80:
        return None
    return data[0] & 0x3F if data[0] & 0x40 else (data[0] & 0x3C) >> 2
