# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Signed OVA files: verified by openssl, and what cannot sign."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import typing as t
from pathlib import Path

import pytest
from export_disks import make_chain, members, names, request, run

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uppermost of the layers."""
    return make_chain(tmp_path_factory.mktemp("layers"))


def openssl(*args: str | Path, **options: t.Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["openssl", *map(str, args)], capture_output=True, text=True, check=True, **options)


def certificate(folder: Path, name: str, kind: str = "rsa:2048", days: str = "2") -> tuple[Path, Path]:
    crt, key = folder / f"{name}.crt", folder / f"{name}.key"
    more = ["-pkeyopt", "ec_paramgen_curve:P-256"] if kind == "ec" else []
    openssl(
        *("req", "-x509", "-newkey", kind, *more, "-nodes", "-subj", "/CN=images.example.org", "-days", days),
        *("-keyout", key, "-out", crt),
    )
    return crt, key


def test_signed_ova_is_verified_by_openssl(chain: Path, tmp_path: Path) -> None:
    crt, key = certificate(tmp_path, "good")
    wanted = request(chain, tmp_path / "b", "ova", ova_certificate=crt, ova_key=key)
    run(wanted)
    found = members(tmp_path / "b" / "debian-12-1.ova")
    assert list(found) == ["debian-12-1.ovf", "debian-12-1.mf", "debian-12-1.cert", "debian-12-1.vmdk"]
    match = re.match(
        rb"SHA256\(debian-12-1\.mf\)= ([0-9a-f]+)\n(-----BEGIN CERT.*)", found["debian-12-1.cert"], re.DOTALL
    )
    assert match
    (tmp_path / "sig").write_bytes(bytes.fromhex(match[1].decode()))
    (tmp_path / "mf").write_bytes(found["debian-12-1.mf"])
    (tmp_path / "cert").write_bytes(match[2])
    (tmp_path / "pub").write_text(
        openssl("x509", "-in", tmp_path / "cert", "-noout", "-pubkey").stdout, encoding="utf-8"
    )
    said = openssl("dgst", "-sha256", "-verify", tmp_path / "pub", "-signature", tmp_path / "sig", tmp_path / "mf")
    assert said.stdout.strip() == "Verified OK"
    assert not run(wanted).changed
    other = certificate(tmp_path, "other")
    again = run(dataclasses.replace(wanted, ova_certificate=other[0], ova_key=other[1]))
    assert again.actions[0].startswith("debian-12-1.ova: signer differs: ")
    assert names(tmp_path / "b") == ["debian-12-1.ova", "debian-12-1.ova.digests.json", "descriptor.json"]


@pytest.mark.parametrize(
    ("crt", "key", "problem"),
    [
        ("good.crt", "other.key", "other.key: does not belong to the certificate; give the key of it"),
        ("good.crt", "none.key", "none.key: No such file"),
        ("good.key", "good.key", "good.key: is no certificate in PEM; give one"),
        ("good.crt", "good.crt", "good.crt: is no RSA key without a passphrase in PEM; give one"),
        ("good.crt", "locked.key", "locked.key: is no RSA key without a passphrase in PEM; give one"),
        ("curve.crt", "curve.key", "curve.key: is no RSA key; give an RSA key, OVF knows no other"),
        ("old.crt", "good.key", "old.crt: has expired; give one that is valid"),
    ],
)
def test_what_cannot_sign_is_refused_before_the_work(
    chain: Path, tmp_path: Path, crt: str, key: str, problem: str
) -> None:
    for name, kind in (("good", "rsa:2048"), ("other", "rsa:2048"), ("curve", "ec")):
        if {crt, key} & {f"{name}.crt", f"{name}.key", "locked.key", "old.crt"}:
            certificate(tmp_path, name, kind)
    if key == "locked.key":
        openssl("pkey", "-in", tmp_path / "good.key", "-aes256", "-passout", "pass:x", "-out", tmp_path / key)
    if crt == "old.crt":
        openssl("req", "-new", "-key", tmp_path / "good.key", "-subj", "/CN=x", "-out", tmp_path / "csr")
        sign = ["-signkey", tmp_path / "good.key", "-days", "0", "-out", tmp_path / crt]
        openssl("x509", "-req", "-in", tmp_path / "csr", *sign)
    wanted = request(chain, tmp_path / "b", "ova", ova_certificate=tmp_path / crt, ova_key=tmp_path / key)
    with pytest.raises(FactoryError) as caught:
        run(wanted)
    assert problem in str(caught.value)
    assert not (tmp_path / "b").exists()
