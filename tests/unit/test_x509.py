# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificates of those who sign, held against what openssl says of the same ones."""

from __future__ import annotations

import contextlib
import shutil
import ssl
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID, ObjectIdentifier

from ansible_collections.cloudimg.factory.plugins.module_utils import _libraries, _x509
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.tests.tools import pki


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> pki.Pki:
    return pki.Pki.make(tmp_path_factory.mktemp("pki"))


def load(identity: pki.Identity, **options: t.Any) -> _x509.Signer:
    return _x509.Signer.load(identity.certificate, identity.key, identity.passphrase, identity.chain, **options)


def subject(path: Path, form: str) -> str:
    argv = ["openssl", "x509", "-in", str(path), "-noout", "-subject", "-nameopt", form]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip().removeprefix("subject=")


def test_good_signer(grid: pki.Pki) -> None:
    signer = load(grid.endorser)
    assert signer.dn == "/DC=org/DC=example/C=DE/O=People/CN=endorser"
    assert signer.ca == "/DC=org/DC=example/CN=Example Grid CA"
    assert signer.dn == subject(grid.endorser.certificate, "compat")
    assert _x509.dn_rfc2253(signer.certificate.subject) == subject(grid.endorser.certificate, "rfc2253")
    assert _x509.email(signer.certificate) == "endorser@example.org"
    assert signer.chain == (grid.intermediate.certificate,)
    assert "key" not in repr(signer)
    _x509.check_usage(signer.certificate, "x")


def test_chain_in_the_certificate_file(grid: pki.Pki, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(b"Bag Attributes\n" + grid.endorser.certificate.read_bytes() + grid.intermediate.pem)
    signer = _x509.Signer.load(both, grid.endorser.key, None, grid.endorser.chain)
    assert signer.chain == (grid.intermediate.certificate,)


def test_encrypted_key(grid: pki.Pki) -> None:
    locked = grid.issue("locked", passphrase=pki.PASSPHRASE, number=1)
    assert load(locked).dn.endswith("CN=locked")
    for wrong, problem in (
        ("wrong", "the passphrase is wrong"),
        (None, "no passphrase was given"),
        ("", "no passphrase"),
    ):
        with pytest.raises(FactoryError, match=problem) as caught:
            _x509.Signer.load(locked.certificate, locked.key, wrong)
        assert str(locked.key) in str(caught.value)
        assert pki.PASSPHRASE not in str(caught.value)
    # A passphrase for a key that needs none does no harm.
    _x509.Signer.load(grid.endorser.certificate, grid.endorser.key, "whatever")


@pytest.mark.parametrize(
    ("which", "problem"),
    [
        ("expired", "expired at .*renew it at its authority"),
        ("not_yet_valid", "is not valid before"),
    ],
)
def test_wrong_time(grid: pki.Pki, which: str, problem: str) -> None:
    with pytest.raises(FactoryError, match=problem):
        load(grid.bad()[which])


def test_wrong_files(grid: pki.Pki, tmp_path: Path) -> None:
    other = grid.issue("other", number=7)
    junk = tmp_path / "junk.pem"
    junk.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", encoding="ascii")
    good = grid.endorser
    cases = [
        (good.certificate, other.key, "is not the key of the certificate /DC=org"),
        (tmp_path / "none.pem", good.key, "none.pem: No such file"),
        (good.certificate, tmp_path / "none.pem", "none.pem: No such file"),
        (good.key, good.key, "holds no certificate"),
        (junk, good.key, "junk.pem: holds a broken certificate"),
        (good.certificate, good.certificate, "is no private key"),
    ]
    for certificate, key, problem in cases:
        with pytest.raises(FactoryError, match=problem):
            _x509.Signer.load(certificate, key)


def test_usage(grid: pki.Pki) -> None:
    bad = grid.bad()
    for which, problem in {
        "host": "extendedKeyUsage is clientAuth, serverAuth, without emailProtection",
        "any_usage": "without emailProtection",
        "no_digital_signature": "keyUsage lacks digitalSignature",
        "short_key": "an RSA key of 1024 bits",
    }.items():
        with pytest.raises(FactoryError, match=problem):
            _x509.check_usage(bad[which].x509, "x")
    _x509.check_usage(bad["host"].x509, "x", email_protection=False)
    _x509.check_usage(grid.issue("bare", key_usage=None, extended=None).x509, "x")
    proxy = x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.5.5.7.1.14"), b"\x30\x00")
    with pytest.raises(FactoryError, match="is a proxy certificate"):
        _x509.check_usage(grid.issue("proxy", extensions=[(proxy, True)]).x509, "x")


def test_usage_agrees_with_openssl(grid: pki.Pki, tmp_path: Path) -> None:
    """What check_usage refuses for its usage, openssl smime -verify refuses too, and the other way round."""
    bad = grid.bad()
    people = {name: bad[name] for name in ("host", "any_usage", "no_digital_signature")}
    people |= {"good": grid.endorser, "bare": grid.issue("bare", key_usage=None, extended=None)}
    data, signed = tmp_path / "data", tmp_path / "signed"
    data.write_text("{}\n", encoding="ascii")
    for name, one in people.items():
        argv = ["openssl", "smime", "-sign", "-md", "sha256", "-in", data, "-out", signed, "-signer", one.certificate]
        subprocess.run([*argv, "-inkey", one.key, "-certfile", str(one.chain)], check=True, capture_output=True)
        argv = ["openssl", "smime", "-verify", "-in", signed, "-CApath", grid.anchors]
        done = subprocess.run(argv, capture_output=True, check=False)
        try:
            _x509.check_usage(one.x509, "x")
        except FactoryError:
            assert done.returncode != 0, name
        else:
            assert done.returncode == 0, (name, done.stderr)


def test_names_as_openssl_spells_them(grid: pki.Pki) -> None:
    kinds = [*_x509._SHORT]
    values = {"2.5.4.6": "DE", "2.5.4.46": "d", "2.5.4.5": "5"}
    name = x509.Name([x509.NameAttribute(ObjectIdentifier(oid), values.get(oid, "v w")) for oid in kinds])
    odd = grid.issue("odd", subject=name, email=None)
    assert _x509.dn_oneline(name) == subject(odd.certificate, "compat")
    assert _x509.is_plain(name)
    assert _x509.email(odd.x509) == "v w"
    short = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a")])
    assert _x509.email(grid.issue("none", subject=short, email=None).x509) is None


@pytest.mark.parametrize(
    ("value", "oneline", "rfc2253"),
    [
        ("host/x.example.org", "/CN=host/x.example.org", "CN=host/x.example.org"),
        ("ü", "/CN=\\xC3\\xBC", "CN=ü"),
        ("a, b+c", "/CN=a, b+c", "CN=a\\, b\\+c"),
        (' "x" ', '/CN= "x" ', 'CN=\\ \\"x\\"\\ '),
        ("#1;<2>\\", "/CN=#1;<2>\\", "CN=\\#1\\;\\<2\\>\\\\"),
    ],
)
def test_odd_names(value: str, oneline: str, rfc2253: str) -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, value)])
    assert _x509.dn_oneline(name) == oneline
    assert _x509.dn_rfc2253(name) == rfc2253
    assert _x509.is_plain(name) == ("ü" not in value)


def test_names_with_several_values() -> None:
    name = x509.Name(
        [
            x509.RelativeDistinguishedName([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "x")]),
            x509.RelativeDistinguishedName(
                [x509.NameAttribute(NameOID.COMMON_NAME, "a"), x509.NameAttribute(NameOID.EMAIL_ADDRESS, "a@b.c")]
            ),
        ]
    )
    assert _x509.dn_oneline(name) == "/O=x/CN=a+emailAddress=a@b.c"
    # As Java's X500Principal has it: 16 is an IA5String (RFC 2253, section 2.4).
    assert _x509.dn_rfc2253(name) == "CN=a+1.2.840.113549.1.9.1=#16056140622e63,O=x"
    assert not _x509.is_plain(name)


def test_chain(grid: pki.Pki, tmp_path: Path) -> None:
    good = [grid.endorser.x509, grid.intermediate.certificate]
    _x509.verify_chain(good, grid.anchors, where="list")
    only_root = pki.ca_directory(tmp_path / "root", grid.authority)
    _x509.verify_chain(good, only_root, where="list", crl="none")
    _x509.verify_chain(good[:1], grid.anchors, where="list")
    for arguments, problem in (
        ((good[:1], only_root, "none"), "list: .*unable to get local issuer certificate; put the authority"),
        ((good, only_root, "all"), "unable to get certificate CRL.*fetch-crl"),
        (([pki.Authority(pki.make_name("CN=stray")).certificate], grid.anchors, "none"), "self-signed certificate"),
        (([grid.bad()["host"].x509], grid.anchors, "none"), "purpose"),
        (([grid.bad()["expired"].x509], grid.anchors, "none"), "certificate has expired; ask the signer to renew"),
    ):
        with pytest.raises(FactoryError, match=problem):
            _x509.verify_chain(arguments[0], arguments[1], where="list", crl=arguments[2])
    impostor = pki.Authority(grid.intermediate.name, grid.authority, number=5)
    with pytest.raises(FactoryError, match="is not valid by"):
        _x509.verify_chain([impostor.issue(tmp_path / "i").x509], grid.anchors, where="list")


def test_crls(grid: pki.Pki, tmp_path: Path) -> None:
    revoked = grid.issue("revoked")
    authority = pki.Authority(grid.intermediate.name, grid.authority, number=1)
    authority.revoke(revoked)
    chain = [revoked.x509, grid.intermediate.certificate]
    anchors = pki.ca_directory(tmp_path / "revoked", grid.authority, authority)
    with pytest.raises(FactoryError, match="certificate revoked; do not trust what it has signed"):
        _x509.verify_chain(chain, anchors, where="list")
    with pytest.raises(FactoryError, match="certificate revoked"):
        _x509.verify_chain(chain, anchors, where="list", crl="leaf")
    _x509.verify_chain(chain, anchors, where="list", crl="none")
    old = pki.ca_directory(tmp_path / "old", grid.authority, grid.intermediate, until=-1)
    with pytest.raises(FactoryError, match="CRL has expired; fetch the CRLs again"):
        _x509.verify_chain([grid.endorser.x509], old, where="list")
    without = pki.ca_directory(tmp_path / "without", grid.authority, grid.intermediate, crls=False)
    with pytest.raises(FactoryError, match="holds no CRLs by their hashes"):
        _x509.verify_chain([grid.endorser.x509], without, where="list")
    _x509.verify_chain([grid.endorser.x509], without, where="list", crl="none")


def test_directory_that_is_none(grid: pki.Pki, tmp_path: Path) -> None:
    with pytest.raises(FactoryError, match="nowhere: No such file"):
        _x509.verify_chain([grid.endorser.x509], tmp_path / "nowhere", where="list")
    plain = tmp_path / "plain"
    plain.mkdir()
    shutil.copy(grid.endorser.certificate, plain)
    with pytest.raises(FactoryError, match=r"holds no certificates by their hashes .*openssl rehash"):
        _x509.verify_chain([grid.endorser.x509], plain, where="list")


@pytest.mark.parametrize("place", ["version", "serial", "time", "key"])
def test_broken_certificate(grid: pki.Pki, tmp_path: Path, place: str) -> None:
    der = grid.endorser.x509.public_bytes(serialization.Encoding.DER)
    at = {
        "version": der.index(b"\xa0\x03\x02\x01") + 4,
        "serial": 15,
        "time": der.index(b"\x17\x0d"),
        "key": len(der) // 2,
    }[place]
    broken = der[:at] + bytes([der[at] ^ 0x27]) + der[at + 1 :]
    with contextlib.suppress(ValueError):  # what stays a certificate is no longer the one that was signed
        assert _x509.parse_certificate(broken) != grid.endorser.x509
    if place == "version":
        with pytest.raises(ValueError, match="has a certificate that is broken: 37 is not a valid X509 version"):
            _x509.parse_certificate(broken)
        path = tmp_path / "cert.pem"
        path.write_text(ssl.DER_cert_to_PEM_cert(broken))
        with pytest.raises(FactoryError, match=r"holds a broken certificate: .*; give a file in PEM"):
            _x509.read_certificates(path)


def test_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _libraries.need("cryptography.x509", "42") is x509
    with pytest.raises(FactoryError) as caught:
        _libraries.need("nosuchlibrary.inner")
    assert str(caught.value).startswith(
        f"{sys.executable}: needs the Python library nosuchlibrary; install it there by"
    )
    with pytest.raises(FactoryError, match=r"has cryptography [0-9.]+, and needs 9999 or newer; .*cryptography>=9999"):
        _libraries.need("cryptography", "9999")
    monkeypatch.setitem(sys.modules, "signxml", None)
    with pytest.raises(FactoryError, match=r"needs the Python library signxml.*Debian's package python3-signxml"):
        _libraries.need("signxml")
