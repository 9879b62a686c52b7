# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The form of signed lists: openssl takes ours, we take openssl's, and no change of a byte goes unnoticed."""

from __future__ import annotations

import contextlib
import datetime
import json
import random
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.serialization import pkcs7
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.cloudimg.factory.plugins.module_utils import _hepix_pkcs7, _hepix_smime, _hepix_verify, _x509
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.tests.tools import pki
from ansible_collections.cloudimg.factory.tests.tools.hepix import openssl_read, openssl_verify

DOCUMENT = {"dc:title": "Ünïcode\r\n\n--x\n.\n" + "long " * 500, "hv:images": [], "hv:version": "1"}
NOW = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> pki.Pki:
    return pki.Pki.make(tmp_path_factory.mktemp("pki"))


def load(identity: pki.Identity) -> _x509.Signer:
    return _x509.Signer.load(identity.certificate, identity.key, identity.passphrase, identity.chain)


@pytest.fixture(scope="module", params=["rsa", "ec"])
def signed(request: pytest.FixtureRequest, grid: pki.Pki) -> bytes:
    endorser = grid.issue(f"endorser-{request.param}", key=request.param)
    return _hepix_smime.sign(DOCUMENT, load(endorser), NOW)


def test_openssl_takes_ours(grid: pki.Pki, signed: bytes, tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_bytes(signed)
    assert openssl_read(path, grid.anchors) == DOCUMENT
    found = _hepix_smime.load(path)
    assert found.document == DOCUMENT
    assert found.canonical
    assert (found.signed.digest, found.signed.time) == ("sha256", NOW)
    assert found.signed.others == (grid.intermediate.certificate,)
    # Python's own library for PKCS#7 reads the certificates out of it.
    _content, der = _hepix_smime._split(signed, "list")
    assert len(pkcs7.load_der_pkcs7_certificates(der)) == 2
    assert b"\r" not in signed


def test_openssl_parses_the_structure(signed: bytes, tmp_path: Path) -> None:
    """openssl writes our structure again, byte for byte: it is DER, and the sets are in order."""
    _content, der = _hepix_smime._split(signed, "list")
    argv = ["openssl", "pkcs7", "-inform", "DER", "-outform", "DER"]
    assert subprocess.run(argv, input=der, check=True, capture_output=True).stdout == der


@pytest.mark.parametrize(
    "options", [(), ("-md", "sha512"), ("-md", "sha1"), ("-noattr",), ("-nosmimecap",), ("-crlfeol",), ("-indef",)]
)
def test_we_take_those_of_openssl(grid: pki.Pki, tmp_path: Path, options: tuple[str, ...]) -> None:
    content, path = tmp_path / "content", tmp_path / "list"
    content.write_text(json.dumps({"hv:imagelist": DOCUMENT}, indent=2) + "\n", encoding="utf-8")
    one = grid.endorser
    argv = ["openssl", "smime", "-sign", "-in", content, "-out", path, "-signer", one.certificate, "-inkey", one.key]
    subprocess.run([*argv, "-certfile", str(one.chain), *options], check=True, capture_output=True)
    assert openssl_read(path, grid.anchors) == DOCUMENT
    found = _hepix_smime.load(path, strict=False)
    assert (found.document, found.canonical) == (DOCUMENT, False)
    assert found.signed.certificate == one.x509
    with pytest.raises(FactoryError, match=r"is not in the form that this collection writes.*«strict: false»"):
        _hepix_smime.load(path)
    path.write_bytes(path.read_bytes().replace(b'"1"', b'"2"'))
    with pytest.raises(FactoryError, match="does not fit"):
        _hepix_smime.load(path, strict=False)


def test_we_take_those_of_python(grid: pki.Pki, tmp_path: Path) -> None:
    builder = pkcs7.PKCS7SignatureBuilder().set_data(_hepix_smime.dump(DOCUMENT))
    signer = load(grid.endorser)
    builder = builder.add_signer(signer.certificate, signer.key, hashes.SHA256())
    data = builder.sign(serialization.Encoding.SMIME, [pkcs7.PKCS7Options.DetachedSignature])
    assert _hepix_smime.parse(data, "list", strict=False).document == DOCUMENT


def judge(data: bytes, path: Path, grid: pki.Pki, *, strict: bool = True) -> list[str]:
    """The problems that the module would tell; those of lacking keys aside, as DOCUMENT has none of them."""
    path.write_bytes(data)
    policy = _hepix_verify.Policy(grid.anchors, strict=strict)
    report = _hepix_verify.inspect(path, policy)
    expected = ("hv:endorser.hv:x509.hv:dn", "more keys are missing", "dc:date:created")
    return [problem for problem in report.problems if not any(word in problem for word in expected)]


def test_good_list_is_judged_good(grid: pki.Pki, signed: bytes, tmp_path: Path) -> None:
    assert judge(signed, tmp_path / "list", grid) == []


def test_each_of_200_changed_bytes_is_noticed(grid: pki.Pki, signed: bytes, tmp_path: Path) -> None:
    """All over the file: headers, boundaries, line ends, content, certificates, signature."""
    chance = random.Random(5)
    positions = [at * len(signed) // 200 for at in range(200)]
    unnoticed = []
    for at in positions:
        changed = bytearray(signed)
        changed[at] ^= chance.randrange(1, 256)
        if not judge(bytes(changed), tmp_path / "list", grid):
            unnoticed.append(at)
    assert unnoticed == []


@pytest.mark.slow
def test_each_changed_byte_is_noticed(grid: pki.Pki, signed: bytes, tmp_path: Path) -> None:
    """Every position, with one bit changed, without it, and twice."""
    unnoticed = []
    for at in range(len(signed)):
        before, byte, after = signed[:at], signed[at : at + 1], signed[at + 1 :]
        for other in (bytes([byte[0] ^ 1]), b"", byte * 2):
            data = before + other + after
            if data != signed and not judge(data, tmp_path / "list", grid):
                unnoticed.append((at, other))
    assert unnoticed == []


def test_structure_changed_under_a_whole_base64(grid: pki.Pki, signed: bytes, tmp_path: Path) -> None:
    """As :func:`test_each_of_200_changed_bytes_is_noticed`, but each byte of the DER itself is changed."""
    content, der = _hepix_smime._split(signed, "list")
    certificates = [
        found.public_bytes(serialization.Encoding.DER) for found in _hepix_smime.parse(signed, "x").signed.others
    ]
    inside = der.index(certificates[0])
    unnoticed = []
    # All of the structure, and some of the certificate that came along, which needs openssl's word each time.
    for at in [*range(inside), *range(inside, inside + len(certificates[0]), 40), *range(len(der) - 450, len(der))]:
        for bit in (1, 0x80):
            changed = bytearray(der)
            changed[at] ^= bit
            if not judge(_hepix_smime.render(content, bytes(changed)), tmp_path / "list", grid):
                unnoticed.append(at)
    assert unnoticed == []


def test_what_openssl_alone_does_not_notice(grid: pki.Pki, signed: bytes, tmp_path: Path) -> None:
    """Why strict is strict: a changed header, line end or boundary is nothing to openssl."""
    path = tmp_path / "list"
    for old, new in ((b"This is an", b"This is no"), (b"\n", b"\r\n"), (b"MIME-Version: 1.0", b"MIME-Version: 9.9")):
        changed = signed.replace(old, new)
        path.write_bytes(changed)
        assert openssl_verify(path, grid.anchors).returncode == 0
        assert judge(changed, path, grid) != []
        assert judge(changed, path, grid, strict=False) == []


def test_certificate_put_in(grid: pki.Pki, tmp_path: Path) -> None:
    """A certificate that came along and leads nowhere, though the signer's chain does not need it."""
    stray = pki.Authority(pki.make_name("CN=stray"), number=9)
    signer = load(grid.endorser)
    more = _x509.Signer(signer.certificate, signer.key, (*signer.chain, stray.certificate))
    (problem,) = judge(_hepix_smime.sign(DOCUMENT, more, NOW), tmp_path / "list", grid)
    assert "CN=stray, issued by /CN=stray, is not valid by" in problem


def test_signed_by_another_key(grid: pki.Pki, tmp_path: Path) -> None:
    """The certificate of the endorser, and the signature of somebody else's key."""
    signer = load(grid.endorser)
    forged = _x509.Signer(signer.certificate, pki.make_key("rsa", 77), signer.chain)
    (problem,) = judge(_hepix_smime.sign(DOCUMENT, forged, NOW), tmp_path / "list", grid)
    assert "its signature does not fit: it was changed, or its signature is another one's" in problem


def test_content_of_one_and_signature_of_another(grid: pki.Pki, signed: bytes, tmp_path: Path) -> None:
    other = _hepix_smime.sign({**DOCUMENT, "hv:version": "2"}, load(grid.endorser), NOW)
    content, _der = _hepix_smime._split(other, "x")
    _content, der = _hepix_smime._split(signed, "x")
    (problem,) = judge(_hepix_smime.render(content, der), tmp_path / "list", grid)
    assert "does not fit" in problem


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is no S/MIME message"),
        (b'{"hv:imagelist": {}}', "is a list without a signature; have it signed"),
        (b"<html><body>Not found</body></html>", "is no S/MIME message of the kind multipart/signed"),
        (b"Content-Type: application/pkcs7-mime\n\nMII", "is signed in the opaque form"),
        (b"Content-Type: multipart/signed\n\nx", "is no S/MIME message"),
        (b'Content-Type: multipart/signed; boundary="x"\n\nx', "does not have two parts"),
        (b'Content-Type: multipart/signed; boundary="x"\n\n--x\na\n--x\nb\n\nc\n--x--\n', "is no PKCS#7 signature"),
    ],
)
def test_what_is_no_list(data: bytes, problem: str) -> None:
    with pytest.raises(FactoryError, match=f"^list: .*{problem}"):
        _hepix_smime.parse(data, "list", strict=False)


def test_base64_and_json_that_are_none(grid: pki.Pki, signed: bytes) -> None:
    with pytest.raises(FactoryError, match="its signature is not Base64"):
        _hepix_smime.parse(signed.replace(b"\n\nMII", b"\n\n*II"), "list", strict=False)
    signer = load(grid.endorser)
    for content, problem in (
        (b"no json", "what is signed is not JSON"),
        (b"[]", "hv:imagelist: is missing"),
        (b"{}", "hv:im"),
    ):
        data = _hepix_smime.render(content, _hepix_pkcs7.sign(content, signer, NOW))
        with pytest.raises(FactoryError, match=problem):
            _hepix_smime.parse(data, "list")


def test_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_hepix_smime, "LARGEST", 1 << 20)
    path = tmp_path / "list"
    path.write_bytes(b"x" * ((1 << 20) + 1))
    with pytest.raises(FactoryError, match="is larger than 1 MiB"):
        _hepix_smime.load(path)
    with pytest.raises(FactoryError, match="none: No such file"):
        _hepix_smime.load(tmp_path / "none")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_junk_never_breaks_the_parser(signed: bytes, data: st.DataObject) -> None:
    """Whatever comes, the error is one line for the user."""
    content, der = _hepix_smime._split(signed, "x")
    at = data.draw(st.integers(0, len(der)))
    junk = der[:at] + data.draw(st.binary(max_size=8)) + der[at + data.draw(st.integers(0, 8)) :]
    strict = data.draw(st.booleans())
    with contextlib.suppress(FactoryError):
        found = _hepix_smime.parse(_hepix_smime.render(content, junk), "list", strict=strict)
        assert found.document == DOCUMENT


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    for prefix in (b"", b'Content-Type: multipart/signed; boundary="x"\n\n--x\n{}\n--x\n'):
        with pytest.raises(FactoryError):
            _hepix_smime.parse(prefix + data, "list", strict=False)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60), number=st.integers())
def test_any_text_survives(grid: pki.Pki, text: str, number: int) -> None:
    document = {"dc:title": text, text: number}
    found = _hepix_smime.parse(_hepix_smime.sign(document, load(grid.endorser), NOW), "list")
    assert found.document == json.loads(json.dumps(document))


def test_time_after_2049(grid: pki.Pki) -> None:
    moment = datetime.datetime(2051, 2, 3, 4, 5, 6, tzinfo=datetime.timezone.utc)
    data = _hepix_smime.sign(DOCUMENT, load(grid.endorser), moment)
    assert _hepix_smime.parse(data, "list").signed.time == moment
