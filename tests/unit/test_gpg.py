# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Signatures, made by real keys and verified by gpgv."""

from __future__ import annotations

import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._gpg import (
    check_fingerprints,
    is_detached,
    read_keyring,
    verify,
)
from ansible_collections.cloudimg.factory.tests.tools.vendor import Signer

DATA = b"- 0123 dashed\nabcd  a.iso\n"
WHERE = "https://example.org/SHA256SUMS"


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[t.Callable[[str], Signer]]:
    made: dict[str, Signer] = {}

    def signer(name: str) -> Signer:
        if name not in made:
            made[name] = Signer(tmp_path_factory.mktemp("gpg") / "home", name)
        return made[name]

    yield signer
    for one in made.values():
        one.close()


@pytest.fixture
def vendor(homes: t.Callable[[str], Signer]) -> Signer:
    return homes("Vendor")


@pytest.fixture
def other(homes: t.Callable[[str], Signer]) -> Signer:
    return homes("Other")


@pytest.mark.parametrize("armor", [False, True])
@pytest.mark.parametrize("options", [(), ("--armor",)])
def test_a_detached_signature(vendor: Signer, tmp_path: Path, armor: bool, options: tuple[str, ...]) -> None:
    keyring = vendor.keyring(tmp_path / "keys", armor=armor)
    signature = vendor.detached(DATA, *options)
    assert is_detached(signature)
    verified = verify(DATA, keyring, where=WHERE, signature=signature)
    assert (verified.data, verified.fingerprint) == (DATA, vendor.fingerprint)


def test_a_clearsigned_file_gives_only_what_is_signed(vendor: Signer, tmp_path: Path) -> None:
    keyring = vendor.keyring(tmp_path / "keys")
    message = vendor.clearsigned(DATA)
    assert not is_detached(message)
    around = b"evil  a.iso\n" + message + b"evil  a.iso\n"
    assert verify(message, keyring, where=WHERE).data == DATA
    assert verify(around, keyring, where=WHERE).data == DATA


@pytest.mark.parametrize("options", [(), ("--armor",)])
def test_an_inline_signed_file(vendor: Signer, tmp_path: Path, options: tuple[str, ...]) -> None:
    message = vendor.inline(DATA, *options)
    assert not is_detached(message)
    assert verify(message, vendor.keyring(tmp_path / "keys"), where=WHERE).data == DATA


def test_more_than_what_is_signed_is_refused_or_left_out(vendor: Signer, tmp_path: Path) -> None:
    keyring = vendor.keyring(tmp_path / "keys")
    unsigned = vendor.unsigned(b"evil  a.iso\n")
    for message in (
        vendor.clearsigned(DATA) * 2,
        vendor.clearsigned(DATA) + unsigned,
        unsigned + vendor.clearsigned(DATA),
        unsigned + vendor.inline(DATA, "--armor"),
    ):
        with pytest.raises(FactoryError, match=r"image_medium\.signature"):
            verify(message, keyring, where=WHERE)
    assert verify(vendor.inline(DATA, "--armor") + unsigned, keyring, where=WHERE).data == DATA


def test_an_unknown_key(vendor: Signer, other: Signer, tmp_path: Path) -> None:
    keyring = vendor.keyring(tmp_path / "keys")
    with pytest.raises(FactoryError) as caught:
        verify(DATA, keyring, where=WHERE, signature=other.detached(DATA))
    assert str(caught.value) == (
        f"{WHERE}: image_medium.keyring: is signed by an unknown key, {other.fingerprint[-16:]}, which is not in"
        f" {keyring}; give the keyring that holds this key, once the vendor's own pages confirm its fingerprint"
    )


def test_one_known_key_of_two_is_enough(vendor: Signer, other: Signer, tmp_path: Path) -> None:
    both = other.detached(DATA) + vendor.detached(DATA)
    verified = verify(DATA, vendor.keyring(tmp_path / "keys"), where=WHERE, signature=both)
    assert verified.fingerprint == vendor.fingerprint


def test_changed_data(vendor: Signer, tmp_path: Path) -> None:
    keyring = vendor.keyring(tmp_path / "keys")
    with pytest.raises(FactoryError, match="does not fit its signature"):
        verify(DATA + b"x", keyring, where=WHERE, signature=vendor.detached(DATA))
    with pytest.raises(FactoryError, match="does not fit its signature"):
        verify(vendor.clearsigned(DATA).replace(b"abcd", b"abce"), keyring, where=WHERE)


def test_one_bad_signature_of_two_is_too_many(vendor: Signer, tmp_path: Path) -> None:
    both = vendor.detached(DATA) + vendor.detached(DATA + b"x")
    with pytest.raises(FactoryError, match="does not fit its signature"):
        verify(DATA, vendor.keyring(tmp_path / "keys"), where=WHERE, signature=both)


def test_a_keyring_of_several_armored_keys(vendor: Signer, other: Signer, tmp_path: Path) -> None:
    keyring = tmp_path / "keys"
    keyring.write_bytes(
        other.keyring(tmp_path / "a", armor=True).read_bytes()
        + b"some text\n"
        + vendor.keyring(tmp_path / "b", armor=True)
        .read_bytes()
        .replace(b"BLOCK-----\n", b"BLOCK-----\nComment: x\n", 1)
        .replace(b"\n", b"\r\n")
    )
    for signer in (vendor, other):
        assert verify(DATA, keyring, where=WHERE, signature=signer.detached(DATA)).fingerprint == signer.fingerprint


def test_pinned_fingerprints(vendor: Signer, other: Signer, tmp_path: Path) -> None:
    keyring = tmp_path / "keys"
    keyring.write_bytes(vendor.keyring(tmp_path / "a").read_bytes() + other.keyring(tmp_path / "b").read_bytes())
    pin = " ".join(vendor.fingerprint[i : i + 4] for i in range(0, 40, 4)).lower()
    verify(DATA, keyring, where=WHERE, signature=vendor.detached(DATA), fingerprints=[pin])
    with pytest.raises(
        FactoryError, match=rf"image_medium\.fingerprints: is signed by {other.fingerprint}, which is not"
    ):
        verify(DATA, keyring, where=WHERE, signature=other.detached(DATA), fingerprints=[pin])


def test_a_short_key_id_is_no_pin(vendor: Signer) -> None:
    assert check_fingerprints(["0x" + vendor.fingerprint]) == [vendor.fingerprint]
    with pytest.raises(FactoryError, match=r"image_medium\.fingerprints: is not the full fingerprint"):
        check_fingerprints([vendor.fingerprint[-16:]])


def test_an_expired_key(homes: t.Callable[[str], Signer], tmp_path: Path) -> None:
    signer = homes("Expired")
    signature = signer.detached(DATA)
    signer.expire()
    time.sleep(2)
    with pytest.raises(FactoryError, match=r"image_medium\.keyring: is signed by [0-9A-F]+, a key that has expired"):
        verify(DATA, signer.keyring(tmp_path / "keys"), where=WHERE, signature=signature)


def test_a_weak_digest(vendor: Signer, tmp_path: Path) -> None:
    signature = vendor.detached(DATA, "--digest-algo", "SHA1")
    with pytest.raises(FactoryError, match=r"image_medium\.signature"):
        verify(DATA, vendor.keyring(tmp_path / "keys"), where=WHERE, signature=signature)


@pytest.mark.parametrize("signature", [b"", b"no signature\n", b"-----BEGIN PGP SIGNATURE-----\n\nxx\n"])
def test_no_signature_at_all(vendor: Signer, tmp_path: Path, signature: bytes) -> None:
    with pytest.raises(FactoryError, match=r"SHA256SUMS: image_medium\.signature: "):
        verify(DATA, vendor.keyring(tmp_path / "keys"), where=WHERE, signature=signature)
    with pytest.raises(FactoryError, match=r"SHA256SUMS: image_medium\.signature: has no valid OpenPGP signature"):
        verify(DATA, vendor.keyring(tmp_path / "keys"), where=WHERE)


def test_an_empty_message_is_no_detached_signature(vendor: Signer, tmp_path: Path) -> None:
    with pytest.raises(FactoryError, match=r"image_medium\.signature"):
        verify(DATA, vendor.keyring(tmp_path / "keys"), where=WHERE, signature=vendor.inline(b"other"))


def test_keyrings_that_are_none(vendor: Signer, tmp_path: Path) -> None:
    keyring = tmp_path / "keys"
    with pytest.raises(FactoryError, match=r"/keys: image_medium\.keyring: there is no such file; give the path"):
        read_keyring(keyring)
    armored = vendor.keyring(tmp_path / "armored", armor=True).read_bytes()
    for content in (b"", b"text\n", armored.replace(b"PUBLIC", b"PRIVATE"), armored[:200]):
        keyring.write_bytes(content)
        with pytest.raises(FactoryError, match=r"/keys: image_medium\.keyring: is not an OpenPGP keyring; give"):
            read_keyring(keyring)


def test_gpgv_is_not_installed(vendor: Signer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keyring = vendor.keyring(tmp_path / "keys")
    signature = vendor.detached(DATA)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FactoryError, match=r"^gpgv: is not installed on the builder; .* install the package gpgv"):
        verify(DATA, keyring, where=WHERE, signature=signature)
