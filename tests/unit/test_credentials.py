# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The search for credentials: what it finds, what it leaves alone, and what it never tells."""

from __future__ import annotations

import base64
import hashlib
import json
import lzma
import os
import struct
import urllib.parse

import pytest
from planted_credentials import BUILD_SECRET, PLANTED, letters, noise, pem

from ansible_collections.cloudimg.factory.plugins.module_utils import _credentials
from ansible_collections.cloudimg.factory.plugins.module_utils._credentials_values import forms
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError


def plant(root, path, content):
    """Write a file below a root."""
    place = root / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content if isinstance(content, bytes) else content.encode())
    return place


def found(root, *secrets, allowed=()):
    """What a scan finds, as (path, kind, line)."""
    return [finding[:3] for finding in _credentials.scan(root, secrets, allowed).findings]


@pytest.mark.parametrize("path", sorted(PLANTED))
def test_each_kind_is_found_and_nothing_beside_it(tmp_path, path):
    kind, content = PLANTED[path]
    plant(tmp_path, path, content)
    plant(tmp_path, f"{path}.neighbour", "nothing\n")
    findings = _credentials.scan(tmp_path, [BUILD_SECRET]).findings
    assert {finding.path for finding in findings} == {path}
    assert kind in {finding.kind for finding in findings}


def test_kinds_are_all_known():
    assert {kind for kind, _content in PLANTED.values()} <= _credentials.KINDS


def test_lines_are_told(tmp_path):
    plant(tmp_path, "/etc/app/key", f"a\nb\n{pem('RSA PRIVATE KEY')}")
    plant(tmp_path, "/opt/mine", f"a\n{BUILD_SECRET}\n")
    assert found(tmp_path, BUILD_SECRET) == [("/etc/app/key", "private_key", 3), ("/opt/mine", "build_secret", 2)]
    told = [str(finding) for finding in _credentials.scan(tmp_path, ["nothing", BUILD_SECRET]).findings]
    assert told == ["/etc/app/key:3 (private key)", "/opt/mine:2 (secret 2)"]


@pytest.mark.parametrize(
    ("name", "line", "kind"),
    [
        ("shadow", "a:$1$salt$hash:1::::::", "password_hash"),
        ("shadow", "a:!$y$j9T$x:1::::::", "password_hash"),
        ("shadow", "a:deshash:1::::::", "password_hash"),
        ("shadow", "a::1::::::", "empty_password"),
        ("passwd", "a:deshash:1:1::/:/bin/sh", "password_hash"),
        ("passwd", "a::1:1::/:/bin/sh", "empty_password"),
        ("group", "a:deshash:1:", "password_hash"),
        ("gshadow", "a:$6$x:1:", "password_hash"),
    ],
)
def test_accounts_with_a_password_or_with_none(tmp_path, name, line, kind):
    plant(tmp_path, f"/etc/{name}", f"root:*:0:0:0::\n{line}\n")
    assert found(tmp_path) == [(f"/etc/{name}", kind, 2)]


def test_locked_accounts_are_fine(tmp_path):
    plant(
        tmp_path,
        "/etc/shadow",
        "".join(f"a{number}:{field}:1::::::\n" for number, field in enumerate(("*", "!", "!!", "!*"))),
    )
    plant(tmp_path, "/etc/passwd", "root:x:0:0:root:/root:/bin/bash\n")
    plant(tmp_path, "/etc/group", "root:x:0:\nusers::100:\n")
    plant(tmp_path, "/etc/gshadow", "root:*::\nusers:!::\nstaff:::\n")
    assert found(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/etc/app/a", "-----BEGIN " + "RSA PRIVATE KEY-----\n…\n-----END RSA PRIVATE KEY-----"),
        ("/usr/local/bin/a", b"\x7fELF\0-----BEGIN " + b"PRIVATE KEY-----\0" + b"A" * 80),
        ("/etc/app/a", "-----BEGIN " + "PUBLIC KEY-----\n" + "A" * 64),
        ("/etc/app/a", "-----BEGIN " + "CERTIFICATE-----\n" + "A" * 64),
        ("/etc/app/a", "key = AKIA" + "IOSFODNN7EXAMPLE"),
        ("/etc/app/a", "password = {{ password }}"),
        ("/srv/play/hosts", "web ansible_become_password={{ vaulted }}"),
        ("/root/.bash_history", "mysql -p\nexport TOKEN=$1\nls --password-file x\ncurl -u me https://x"),
        ("/root/openrc", "export OS_PASSWORD=$OS_PASSWORD_INPUT\nread OS_PASSWORD"),
        ("/etc/wgetrc", "#http_proxy = http://proxy.example:18023/"),
        ("/etc/app/a", "see https://user@host.example/path or http://[::1]:80/"),
        ("/etc/cloud/cloud.cfg", "disable_root: true\nssh_pwauth: false\nusers:\n  - lock_passwd: true\n"),
        ("/etc/skel/.ssh/authorized_keys", "# ssh-rsa AAAA none yet\n\n"),
        ("/etc/ppp/chap-secrets", "# client server secret IP\n"),
        ("/etc/krb5.keytab", b""),
        ("/etc/mysql/my.cnf", "[client]\n# password = your_password\n"),
        ("/etc/ssl/certs/x.key", "no key"),
        ("/etc/app/a", "$6$" + "too$short"),
        ("/usr/share/x/readme", "https://me:hunter22@feed.example/x"),
    ],
)
def test_what_only_looks_like_it(tmp_path, path, text):
    plant(tmp_path, path, text)
    assert found(tmp_path) == []


def test_allowed(tmp_path):
    plant(tmp_path, "/opt/a/key", pem("PRIVATE KEY"))
    plant(tmp_path, "/opt/b/key", pem("PRIVATE KEY"))
    assert found(tmp_path, allowed=["/opt/a/*"]) == [("/opt/b/key", "private_key", 1)]
    assert found(tmp_path, allowed=["*/key:private_key"]) == []
    assert found(tmp_path, allowed=["/opt/*:pgp_key", "/opt/b/key:*"]) == [("/opt/a/key", "private_key", 1)]
    report = _credentials.scan(tmp_path, [], ["/opt/?/key"])
    assert [finding.path for finding in report.allowed] == ["/opt/a/key", "/opt/b/key"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("opt/x", r"^allowed: 'opt/x' is not an absolute path; let it begin with /"),
        ("/opt/x:private-key", ""),
        ("/opt/x:privat_key", r"^allowed: there is no kind 'privat_key' of credentials; did you mean private_key\?$"),
    ],
)
def test_allowed_that_makes_no_sense(tmp_path, pattern, message):
    if message:
        with pytest.raises(FactoryError, match=message):
            _credentials.scan(tmp_path, [], [pattern])
    else:
        assert found(tmp_path, allowed=[pattern]) == []


def test_a_secret_in_all_its_forms():
    secret = 'pass"wörd/with+all?'
    raw = secret.encode()
    known = forms(secret)
    for text in (
        raw,
        raw.hex().encode(),
        raw.hex().upper().encode(),
        json.dumps({"x": secret}).encode(),
        urllib.parse.quote(secret, safe="").encode(),
        secret.encode("utf-16"),
        *(base64.b64encode(b"x" * before + raw + b"y" * after) for before in range(4) for after in range(4)),
        *(base64.urlsafe_b64encode(b"x" * before + raw) for before in range(4)),
    ):
        assert any(form in text for form in known), text
    assert not any(form in json.dumps({"x": secret[:-1]}).encode() for form in known)


def test_secrets_in_names_and_links(tmp_path):
    plant(tmp_path, "/opt/token=abcdef123", "")
    (tmp_path / "opt/link").symlink_to("/x/abcdef123")
    assert found(tmp_path, "abcdef123") == [
        ("/opt/link", "build_secret", 0),
        ("/opt/token=abcdef123", "build_secret", 0),
    ]


def test_a_secret_that_is_too_short(tmp_path):
    with pytest.raises(FactoryError, match=r"^secrets: secret 2: has fewer than 6 characters") as caught:
        _credentials.scan(tmp_path, ["long enough", "12345"])
    assert "12345" not in str(caught.value)


def test_files_of_packages_are_known_by_their_digests(tmp_path):
    key = pem("RSA PRIVATE KEY")
    place = plant(tmp_path, "/usr/lib/python3/x/test.py", f"KEY = '''{key}'''\n{BUILD_SECRET}\n")
    digest = hashlib.md5(place.read_bytes(), usedforsecurity=False).hexdigest()
    made_of = struct.pack("<II", int(place.stat().st_mtime), place.stat().st_size)
    compiled = plant(
        tmp_path, "/usr/lib/python3/x/__pycache__/test.cpython-311.pyc", b"\0" * 8 + made_of + key.encode()
    )
    plant(tmp_path, "/var/lib/dpkg/info/x.md5sums", f"{digest}  usr/lib/python3/x/test.py\n")
    assert found(tmp_path) == []
    assert _credentials.scan(tmp_path).published == 1
    assert [path for path, _kind, _line in found(tmp_path, BUILD_SECRET)] == ["/usr/lib/python3/x/test.py"]
    compiled.write_bytes(b"\0" * 16 + key.encode())
    assert [path for path, _kind, _line in found(tmp_path)] == ["/usr/lib/python3/x/__pycache__/test.cpython-311.pyc"]
    compiled.unlink()
    place.write_text(f"changed {key}")
    assert found(tmp_path) == [("/usr/lib/python3/x/test.py", "private_key", 1)]


def test_files_of_packages_from_before_usr_was_merged(tmp_path):
    place = plant(tmp_path, "/usr/lib/x/key.pem", pem("PRIVATE KEY"))
    digest = hashlib.md5(place.read_bytes(), usedforsecurity=False).hexdigest()
    plant(tmp_path, "/var/lib/dpkg/info/x.md5sums", f"{digest}  lib/x/key.pem\n")
    assert found(tmp_path) == []


def test_a_package_cannot_vouch_for_configuration(tmp_path):
    place = plant(tmp_path, "/etc/app/key", pem("PRIVATE KEY"))
    digest = hashlib.md5(place.read_bytes(), usedforsecurity=False).hexdigest()
    plant(tmp_path, "/var/lib/dpkg/info/x.md5sums", f"{digest}  etc/app/key\n")
    assert found(tmp_path) == [("/etc/app/key", "private_key", 1)]


def test_large_files_are_read_in_pieces_and_without_their_holes(tmp_path, monkeypatch):
    monkeypatch.setattr(_credentials, "_CHUNK", 1 << 20)
    place = plant(tmp_path, "/srv/large", noise(1000))
    key = pem("PRIVATE KEY").encode()
    with place.open("r+b") as stream:
        stream.truncate(1 << 36)
        stream.seek((5 << 20) - 300)
        stream.write(b"\n" + key)
        stream.seek((1 << 36) - 100)
        stream.write(BUILD_SECRET.encode())
    report = _credentials.scan(tmp_path, [BUILD_SECRET])
    assert {finding.kind for finding in report.findings} == {"private_key", "build_secret"}
    assert report.bytes < 1 << 24
    assert report.skipped == [
        ("/srv/large", "is larger than 1 MiB: searched for private keys and the build's secrets only")
    ]


def test_a_key_across_two_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(_credentials, "_CHUNK", 1 << 20)
    before = b"x\0" * ((1 << 19) - 50)
    plant(tmp_path, "/srv/large", before + pem("PRIVATE KEY").encode() + before)
    assert found(tmp_path) == [("/srv/large", "private_key", 0)]


def test_compressed_files(tmp_path):
    plant(tmp_path, "/srv/a.xz", lzma.compress(pem("PRIVATE KEY").encode()))
    plant(tmp_path, "/srv/b.zst", b"\x28\xb5\x2f\xfd" + noise(100))
    plant(tmp_path, "/srv/c.gz", b"\x1f\x8b" + noise(100))
    report = _credentials.scan(tmp_path)
    assert [finding.path for finding in report.findings] == ["/srv/a.xz"]
    assert sorted(report.skipped) == [
        ("/srv/b.zst", "is compressed with zstd, which is not unpacked"),
        ("/srv/c.gz", "cannot be unpacked"),
    ]


def test_what_is_not_read(tmp_path):
    for path in ("/proc/x", "/sys/x", "/dev/x", "/run/x"):
        plant(tmp_path, path, pem("PRIVATE KEY"))
    plant(tmp_path, "/outside", pem("PRIVATE KEY"))
    (tmp_path / "opt").mkdir()
    (tmp_path / "opt/link").symlink_to("/outside")
    os.mkfifo(tmp_path / "opt/pipe")
    assert [path for path, _kind, _line in found(tmp_path)] == ["/outside"]


def test_counts_and_sizes(tmp_path):
    plant(tmp_path, "/usr/lib/x/a", noise(100_000))
    plant(tmp_path, "/usr/bin/b", noise(50_000))
    os.link(tmp_path / "usr/bin/b", tmp_path / "usr/bin/c")
    plant(tmp_path, "/etc/d", "x")
    report = _credentials.scan(tmp_path)
    assert (report.scanned, report.bytes) == (3, 150_001)
    assert list(report.sizes)[:2] == ["/usr", "/usr/lib"]
    assert report.sizes["/usr"] >= report.sizes["/usr/lib"] + report.sizes["/usr/bin"] > 150_000
    assert set(report.sizes) == {"/usr", "/usr/lib", "/usr/bin", "/etc"}


def test_no_finding_tells_the_credential(tmp_path):
    for path, (_kind, content) in PLANTED.items():
        plant(tmp_path, path, content)
    told = " ".join(map(str, _credentials.scan(tmp_path, [BUILD_SECRET]).findings))
    for secret in (BUILD_SECRET, "hunter22", letters(36), letters(40)):
        assert secret not in told


def test_no_such_root(tmp_path):
    with pytest.raises(FactoryError, match="root: is no directory"):
        _credentials.scan(tmp_path / "none")
