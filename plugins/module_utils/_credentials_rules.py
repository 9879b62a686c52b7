# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""How credentials look, wherever they are: what a file has in it.

Each rule has words to look for first, because searching for a few plain words in all files is fast, and no expression runs
where none of its words is. The expressions demand what makes a credential work (its length, its alphabet), so that its
mere mention is none.
"""

from __future__ import annotations

import base64
import binascii
import re
import typing as t

Hit = tuple[int, str]
"""Where in the bytes, and the kind."""


class Rule(t.NamedTuple):
    """What one kind of credential looks like.

    :ivar everywhere: in all files; otherwise only outside of /usr and the like, where packages have their files.
    """

    kind: str
    words: tuple[bytes, ...]
    expression: re.Pattern[bytes]
    everywhere: bool = True


def _rule(kind: str, words: str, expression: str, *, everywhere: bool = True) -> Rule:
    return Rule(kind, tuple(word.encode() for word in words.split()), re.compile(expression.encode(), re.M), everywhere)


_APART = r"(?<![A-Za-z0-9+/_-])"
_END = r"(?![A-Za-z0-9+/=_-])"
_VALUE = r"[\"']?\s*[:=]\s*[\"']?(?![\"'\s${<*%]|(?:none|null|true|false|omit)\b)"
"""What comes between a name and its value, which is no variable and no placeholder."""

RULES: tuple[Rule, ...] = (
    _rule("putty_key", "PuTTY-User-Key-File-", r"PuTTY-User-Key-File-\d: \S[\s\S]{0,2000}?^Private-Lines: [1-9]"),
    _rule("age_key", "AGE-SECRET-KEY-1", r"AGE-SECRET-KEY-1[QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L]{58}"),
    _rule("aws_key", "AKIA ASIA", _APART + r"A[KS]IA(?![A-Z0-9]*EXAMPLE)[A-Z2-7]{16}" + _END),
    _rule(
        "aws_key",
        "aws_secret_access_key AWS_SECRET_ACCESS_KEY",
        r"(?i:aws_secret_access_key)" + _VALUE + r"(?!\S*EXAMPLE)[A-Za-z0-9/+]{40}" + _END,
    ),
    _rule("gcp_key", '"service_account"', r"\"type\"\s*:\s*\"service_account\"(?=[\s\S]{0,5000}\"private_key\")"),
    _rule("gcp_key", "AIza", _APART + r"AIza[0-9A-Za-z_-]{35}" + _END),
    _rule("azure_key", "AccountKey=", r"AccountKey=[A-Za-z0-9+/]{86}=="),
    _rule("github_token", "ghp_ gho_ ghu_ ghs_ ghr_", _APART + r"gh[pousr]_[A-Za-z0-9]{36}" + _END),
    _rule("github_token", "github_pat_", _APART + r"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}" + _END),
    _rule("gitlab_token", "glpat-", _APART + r"glpat-[A-Za-z0-9_-]{20}"),
    _rule("slack_token", "xoxb- xoxp- xoxa- xoxr- xoxs-", _APART + r"xox[abprs]-[0-9]{6,}-[A-Za-z0-9-]{10,}"),
    _rule("slack_token", "hooks.slack.com/services/", r"hooks\.slack\.com/services/T\w{6,}/B\w{6,}/\w{16,}"),
    _rule("jwt", "eyJ", _APART + r"eyJ[A-Za-z0-9_-]{15,}\.eyJ[A-Za-z0-9_-]{15,}\.[A-Za-z0-9_-]{20,}"),
    _rule("npm_token", "npm_", _APART + r"npm_[A-Za-z0-9]{36}" + _END),
    _rule("pypi_token", "pypi-AgE", _APART + r"pypi-AgE[A-Za-z0-9_-]{50,}"),
    _rule("vault_token", "hvs. hvb.", _APART + r"hv[sb]\.[A-Za-z0-9_-]{24,}"),
    _rule("docker_token", "dckr_pat_", _APART + r"dckr_pat_[A-Za-z0-9_-]{27}" + _END),
    _rule("stripe_token", "sk_live_ rk_live_", _APART + r"[sr]k_live_[0-9A-Za-z]{24,}" + _END),
    _rule("huggingface_token", "hf_", _APART + r"hf_[A-Za-z]{34}" + _END),
    _rule("ansible_vault", "$ANSIBLE_VAULT;", r"\$ANSIBLE_VAULT;\d\.\d;AES\d*[^\n]*\n\s*[0-9a-f]{60}"),
    _rule("password_hash", "$6$", r"(?<![\w$])\$6\$(?:rounds=\d+\$)?[./0-9A-Za-z]{1,16}\$[./0-9A-Za-z]{86}(?![./\w])"),
    _rule("password_hash", "$5$", r"(?<![\w$])\$5\$(?:rounds=\d+\$)?[./0-9A-Za-z]{1,16}\$[./0-9A-Za-z]{43}(?![./\w])"),
    _rule("password_hash", "$1$ $apr1$", r"(?<![\w$])\$(?:1|apr1)\$[./0-9A-Za-z]{1,8}\$[./0-9A-Za-z]{22}(?![./\w])"),
    _rule(
        "password_hash",
        "$y$ $gy$",
        r"(?<![\w$])\$g?y\$[./0-9A-Za-z]+\$[./0-9A-Za-z]{0,86}\$[./0-9A-Za-z]{43}(?![./\w])",
    ),
    _rule("password_hash", "$2a$ $2b$ $2y$", r"(?<![\w$])\$2[aby]\$\d\d\$[./0-9A-Za-z]{53}(?![./\w])"),
    _rule(
        "password_hash",
        "$argon2",
        r"(?<![\w$])\$argon2(?:id?|d)\$v=\d+\$m=[^$\s]+\$[A-Za-z0-9+/]{8,}\$[A-Za-z0-9+/]{20,}",
    ),
    _rule("password_hash", "grub.pbkdf2.sha512.", r"grub\.pbkdf2\.sha512\.\d+\.[0-9A-F]{32,}\.[0-9A-F]{64,}"),
    # From here on only where no package has its files: documentation and programs mention these, too.
    _rule(
        "openstack_password",
        "OS_PASSWORD OS_APPLICATION_CREDENTIAL_SECRET",
        r"OS_(?:PASSWORD|APPLICATION_CREDENTIAL_SECRET)" + _VALUE + r"\S{4,}",
        everywhere=False,
    ),
    _rule(
        "openstack_password",
        "auth_url",
        r"^\s*(?:password|application_credential_secret)" + _VALUE + r"\S{4,}",
        everywhere=False,
    ),
    _rule(
        "azure_key",
        "clientSecret AZURE_CLIENT_SECRET client_secret",
        r"(?:clientSecret|AZURE_CLIENT_SECRET|client_secret)" + _VALUE + r"[A-Za-z0-9~._-]{30,}",
        everywhere=False,
    ),
    _rule("docker_auth", '"auths"', r"\"auth\"\s*:\s*\"[A-Za-z0-9+/]{8,}={0,2}\"", everywhere=False),
    _rule(
        "kubeconfig",
        "current-context",
        r"^\s*(?:client-key-data|token|password):\s*[\"']?[^\s\"']{8,}",
        everywhere=False,
    ),
    _rule(
        "ansible_password",
        "ansible_",
        r"ansible_(?:become_pass(?:word)?|ssh_pass(?:word)?|password|sudo_pass|winrm_password)" + _VALUE + r"\S+",
        everywhere=False,
    ),
    _rule(
        "cloud_config_password",
        "#cloud-config",
        r"^\s*(?:-\s+)?[\"']?(?:password|passwd|plain_text_passwd|hashed_passwd)" + _VALUE + r"(?!\*|!)\S+",
        everywhere=False,
    ),
    _rule(
        "installer_password",
        "-password",
        r"^d-i\s+passwd/(?:root|user)-password(?:-crypted|-again)?\s+password\s+(?!\*|!)\S+",
        everywhere=False,
    ),
    _rule("installer_password", "rootpw", r"^rootpw\s+(?!--lock\s*$)\S.*", everywhere=False),
    _rule(
        "installer_password",
        "ROOTPW=",
        r"^\s*(?:export\s+)?ROOTPW=[\"']?(?![\"'\s$*!]|\$\w+[\"']?$)\S+",
        everywhere=False,
    ),
    _rule(
        "url_password",
        "://",
        r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@\"'<>${}%]+:[^\s/:@\"'<>${}]+@[A-Za-z0-9\[]",
        everywhere=False,
    ),
    _rule("wireguard_key", "PrivateKey", r"^\s*PrivateKey\s*=\s*[A-Za-z0-9+/]{43}=", everywhere=False),
    _rule("database_dump", "PGDMP", r"\APGDMP", everywhere=False),
    _rule(
        "database_dump",
        "SQL-- -- ",
        r"\A(?:/\*.*\n|--\n)?-- (?:MySQL|MariaDB|PostgreSQL database) dump",
        everywhere=False,
    ),
)

PUBLIC_RULES = tuple(rule for rule in RULES if rule.everywhere)

_KEY = b"PRIVATE KEY"
_MARKER = re.compile(
    rb"-----BEGIN ((?:[A-Z0-9]+ ){0,4})PRIVATE KEY(?: BLOCK)?-----|---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----"
)
_BODY = re.compile(rb"[A-Za-z0-9+/]{40}")
_ENCODED = b"LS0tLS1CRUdJTi"
_LONGEST_HEAD = 1500


def private_keys(data: bytes) -> t.Iterator[Hit]:
    """PEM, OpenSSH and OpenPGP private keys, also as texts in JSON and base64-encoded as in kubeconfigs."""
    if _KEY in data:
        for found in _MARKER.finditer(data):
            rest = data[found.end() : found.end() + _LONGEST_HEAD]
            # A program that can write keys has the words alone; what follows in it is other texts, behind a zero byte.
            if _BODY.search(rest.partition(b"-----END")[0].partition(b"\0")[0]):
                yield found.start(), "pgp_key" if found.group(1) == b"PGP " else "private_key"
    at = data.find(_ENCODED)
    while at >= 0:
        text = re.match(rb"[A-Za-z0-9+/]+", data[at : at + 240])
        if text:
            with_padding = text.group()[: len(text.group()) // 4 * 4]
            try:
                if re.search(
                    rb"BEGIN [A-Z ]*PRIVATE KEY[ A-Z]*-----\s*[A-Za-z0-9+/]{40}", base64.b64decode(with_padding)
                ):
                    yield at, "private_key"
            except (binascii.Error, ValueError):
                pass
        at = data.find(_ENCODED, at + 1)


def hits(data: bytes, rules: t.Sequence[Rule]) -> t.Iterator[Hit]:
    """What the rules find, the first hit of each, private keys included."""
    yield from private_keys(data)
    for rule in rules:
        if any(word in data for word in rule.words):
            found = rule.expression.search(data)
            if found:
                yield found.start(), rule.kind


KINDS = frozenset({"private_key", "pgp_key", *(rule.kind for rule in RULES)})
