# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Credentials of many kinds, none of them real, to be put into a system: {path: (kind, content)}.

They are put together here, so that no scanner takes this file for a leak.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json

BUILD_SECRET = "correct horse battery staple"


def noise(length: int, seed: str = "x") -> bytes:
    """Bytes as good as random, and always the same."""
    found = b""
    while len(found) < length:
        found += hashlib.sha256(f"{seed}{len(found)}".encode()).digest()
    return found[:length]


def letters(
    length: int, alphabet: str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", seed: str = "x"
) -> str:
    """Characters as good as random."""
    return "".join(alphabet[byte % len(alphabet)] for byte in noise(length, seed))


def pem(kind: str, headers: str = "") -> str:
    """A private key in PEM."""
    body = base64.encodebytes(noise(600, kind)).decode()
    dashes = "-" * 5
    return f"{dashes}BEGIN {kind}{dashes}\n{headers}{body}{dashes}END {kind}{dashes}\n"


_SALTED = f"$6${letters(16)}${letters(86)}"
_KEY_LINE = f"ssh-ed25519 AAAA{letters(64)} somebody\n"

PLANTED: dict[str, tuple[str, bytes]] = {
    path: (kind, text if isinstance(text, bytes) else text.encode())
    for path, kind, text in (
        (
            "/opt/app/server.pem",
            "private_key",
            "certificate first\n" + pem("RSA PRIVATE KEY", "Proc-Type: 4,ENCRYPTED\n\n"),
        ),
        ("/root/.ssh/id_ed25519", "private_key", pem("OPENSSH PRIVATE KEY")),
        ("/srv/data/backup.asc", "pgp_key", pem("PGP PRIVATE KEY BLOCK", "Version: 1\n\n")),
        (
            "/srv/data/login.ppk",
            "putty_key",
            f"PuTTY-User-Key-File-3: ssh-rsa\nEncryption: none\nPrivate-Lines: 14\n{letters(64)}\n",
        ),
        ("/opt/app/age.txt", "age_key", "AGE-SECRET-KEY-" + "1" + letters(58, "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L")),
        ("/etc/ssh/ssh_host_ecdsa_key", "ssh_host_key", pem("EC PRIVATE KEY")),
        ("/etc/skel/.ssh/authorized_keys", "authorized_keys", f"# who may\n{_KEY_LINE}"),
        ("/etc/shadow-", "password_hash", f"root:*:1::::::\nadmin:{_SALTED}:1::::::\n"),
        ("/etc/issue.d/app.yml", "password_hash", f"admins:\n  root: '{_SALTED}'\n"),
        ("/root/.aws/credentials", "aws_key", f"[default]\naws_secret_access_key = {letters(40)}\n"),
        (
            "/opt/app/settings.py",
            "aws_key",
            f"region = 'eu'\nkey = '{'AK' + 'IA'}{letters(16, 'ABCDEFGHJKLMNPQR234567')}'\n",
        ),
        (
            "/opt/app/gcp.json",
            "gcp_key",
            json.dumps({"type": "service_account", "private_key": pem("PRIVATE KEY")}),
        ),
        (
            "/etc/app/azure.conf",
            "azure_key",
            f"Account{'Key'}={base64.b64encode(noise(64)).decode()};EndpointSuffix=x\n",
        ),
        (
            "/home/user/.config/openstack/clouds.yaml",
            "openstack_password",
            "clouds:\n  site:\n    auth:\n      auth_url: https://x\n      password: hunter22\n",
        ),
        ("/etc/profile.d/ci.sh", "github_token", f"export X={'gh' + 'p_'}{letters(36)}\n"),
        ("/etc/app/ci.yml", "gitlab_token", f"token: {'glp' + 'at-'}{letters(20)}\n"),
        ("/etc/app/chat.ini", "slack_token", f"bot={'xo' + 'xb-'}123456789012-{letters(24)}\n"),
        (
            "/var/lib/app/session",
            "jwt",
            f"Bearer {'ey' + 'J'}{letters(30)}.{'ey' + 'J'}{letters(40)}.{letters(43)}\n",
        ),
        (
            "/root/.docker/config.json",
            "docker_auth",
            json.dumps({"auths": {"x": {"auth": base64.b64encode(b"me:password").decode()}}}),
        ),
        ("/root/.npmrc", "npm_token", "//registry.example/:_authToken=abcdef0123456789\n"),
        ("/home/user/.netrc", "netrc", "machine x login me password hunter22\n"),
        (
            "/etc/rancher/config.yaml",
            "private_key",
            f"current-context: x\nclient-key-data: {base64.b64encode(pem('EC PRIVATE KEY').encode()).decode()}\n",
        ),
        ("/root/.git-credentials", "git_credentials", "https://me:hunter22@git.example\n"),
        ("/var/lib/postgresql/.pgpass", "database_password", "db:5432:*:me:hunter22\n"),
        ("/etc/wpa_supplicant/wlan0.conf", "network_password", 'network={\n  ssid="x"\n  psk="hunter2222"\n}\n'),
        ("/root/.vnc/passwd", "vnc_password", noise(8)),
        (
            "/srv/play/group_vars/all.yml",
            "ansible_vault",
            f"x: !vault |\n  $ANSIBLE_{'VAULT'};1.1;AES256\n  {noise(40).hex()}\n",
        ),
        ("/srv/play/hosts", "ansible_password", "web ansible_become_password=hunter22\n"),
        ("/var/tmp/x509up_u1000", "x509_proxy", pem("RSA PRIVATE KEY")),
        ("/var/lib/cloud/seed/nocloud/user-data", "cloud_config_password", "#cloud-config\npassword: hunter22\n"),
        ("/root/.bash_history", "history_secret", "ls\nmysql -uroot -phunter22\n"),
        ("/etc/krb5.keytab", "keytab", b"\x05\x02" + noise(80)),
        ("/srv/dump.sql.gz", "database_dump", gzip.compress(b"-- MySQL dump 10.13\n--\nCREATE TABLE x;\n")),
        ("/usr/local/bin/tool", "private_key", b"\x7fELF\0" + noise(9000) + pem("PRIVATE KEY").encode() + b"\0"),
        ("/etc/app/vpn.conf", "wireguard_key", f"[Interface]\nPrivateKey = {base64.b64encode(noise(32)).decode()}\n"),
        ("/var/cache/app/feed.url", "url_password", "https://me:hunter22@feed.example/x\n"),
        ("/etc/app/binary", "build_secret", b"\0" * 100 + BUILD_SECRET.encode() + b"\0"),
        ("/etc/app/encoded", "build_secret", base64.b64encode(b"user:" + BUILD_SECRET.encode() + b"\n")),
        ("/opt/app/hex", "build_secret", BUILD_SECRET.encode().hex().encode()),
        ("/var/lib/app/packed.gz", "build_secret", gzip.compress(b"x" * 1000 + BUILD_SECRET.encode())),
    )
}
