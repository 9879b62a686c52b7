# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Files that hold credentials by what they are: accounts, keys of programs, what tools log in with, histories."""

from __future__ import annotations

import re
import typing as t

Judge = t.Callable[[bytes], t.Iterator[tuple[int, str]]]
"""Takes what is in a file; yields where in it there is a credential, and the kind."""

_LOCKED = frozenset({b"", b"*", b"!", b"!!", b"!*", b"*!", b"x", b"*LK*", b"*NP*", b"!unprovisioned", b"!locked"})


def _kind(kind: str) -> Judge:
    """Any content at all."""

    def judge(data: bytes) -> t.Iterator[tuple[int, str]]:
        if data.strip():
            yield 0, kind

    return judge


def _where(kind: str, expression: str) -> Judge:
    """What an expression matches, of several lines, in any case of letters."""
    compiled = re.compile(expression.encode(), re.M | re.I)

    def judge(data: bytes) -> t.Iterator[tuple[int, str]]:
        for found in compiled.finditer(data):
            yield found.start(), kind

    return judge


def _accounts(empty_is_open: bool) -> Judge:
    """The second field of each line, a password; an account without one may be open to everybody."""

    def judge(data: bytes) -> t.Iterator[tuple[int, str]]:
        at = 0
        for line in data.splitlines(keepends=True):
            fields = line.rstrip(b"\r\n").split(b":")
            if len(fields) > 2 and not line.startswith((b"#", b"+", b"-")):
                if fields[1] not in _LOCKED:
                    yield at, "password_hash"
                elif not fields[1] and empty_is_open:
                    yield at, "empty_password"
            at += len(line)

    return judge


def _magic(kind: str, *magics: bytes) -> Judge:
    def judge(data: bytes) -> t.Iterator[tuple[int, str]]:
        if data.startswith(magics) and len(data) > 16:
            yield 0, kind

    return judge


def _der(data: bytes) -> t.Iterator[tuple[int, str]]:
    """A PKCS #8 or PKCS #1 private key as ASN.1: a sequence that begins with a version and goes on with more."""
    if re.match(rb"\x30(?:[\x20-\x7f]|\x81.|\x82..)\x02\x01[\x00\x01](?:\x30|\x02\x82|\x02\x81|\x04\x20)", data, re.S):
        yield 0, "private_key"


_VALUE = r"\s*[:=]\s*[\"']?(?![\"'\s${<*%]|(?:none|null|true|false)\b)"
_AUTHORIZED = _where(
    "authorized_keys", r"^[^#\n]*\b(?:ssh-(?:rsa|dss|ed25519)|ecdsa-sha2-\S+|sk-\S+@openssh\.com)\s+AAAA"
)
_PASSWORD_LINE = _where("tool_password", r"^\s*(?:password|passwd|pass|secret_key|secret|token)" + _VALUE + r"\S+")
_ASSIGNED = _where(
    "password_assignment",
    r"^\s*(?:-\s+)?(?:export\s+)?[\"']?[\w.-]*(?:password|passwd|secret|token|api_?key)[\w.-]*[\"']?"
    + _VALUE
    + r"(?:[^\s\"'#(]){6,}",
)
_PSK = _where(
    "network_password",
    r"^\s*(?:psk|wep-key\d|wep_key\d|sae_password|password|leap-password|private-key-password)\s*=\s*(?!\s*$|ask|ext:)\S+",
)
_HISTORY = _where(
    "history_secret",
    r"^.*(?:sshpass\s+-p\s*\S|--?pass(?:word|wd)?[= ]['\"]?[^\s$'\"-]{4}|\w*(?:PASSWORD|PASSWD|SECRET|TOKEN|API_?KEY)\w*"
    r"=['\"]?[^\s$'\"]{4}|\bcurl\b.*\s(?:-u|--user)[= ]?\S+:\S|\bmysql(?:dump)?\b.*\s-p[^\s-]\S|identified\s+by\s+['\"]"
    r"|\bauthorization:\s*(?:bearer|basic)\s+\S{8}|\bchpasswd\b.*:|openssl\s+passwd\s+(?:-\S+\s+)*[^\s-]\S{3})",
)
_NETRC = _where("netrc", r"\bpassword\s+\S+")
_TOKEN_FILE = _kind("tool_token")

BY_NAME: dict[str, Judge] = {
    ".netrc": _NETRC,
    "_netrc": _NETRC,
    ".authinfo": _NETRC,
    ".git-credentials": _where("git_credentials", r"^[a-z]+://[^:\s]+:[^@\s]+@"),
    ".pgpass": _where("database_password", r"^[^#\n]*:[^:\n]*:[^:\n]*:[^:\n]*:[^\n]+$"),
    ".my.cnf": _where("database_password", r"^\s*password\s*=\s*\S+"),
    "debian.cnf": _where("database_password", r"^\s*password\s*=\s*\S+"),
    ".mylogin.cnf": _kind("database_password"),
    ".pypirc": _PASSWORD_LINE,
    ".npmrc": _where("npm_token", r"^[^#;\n]*(?:_authToken|_password|_auth)\s*=\s*(?!\$)\S+"),
    ".s3cfg": _PASSWORD_LINE,
    ".boto": _where("aws_key", r"^\s*(?:aws_secret_access_key|gs_secret_access_key|gs_oauth2_refresh_token)\s*=\s*\S+"),
    "rclone.conf": _where("tool_password", r"^\s*(?:pass|password|token|secret_access_key|client_secret)\s*=\s*\S+"),
    ".vault-token": _TOKEN_FILE,
    ".vault_pass": _kind("ansible_password"),
    ".vault_pass.txt": _kind("ansible_password"),
    "vault_pass.txt": _kind("ansible_password"),
    "one_auth": _where("opennebula_auth", r"^[^:\s]+:\S+"),
    ".htpasswd": _where("password_hash", r"^[^:#\s]+:\S+"),
    "credentials.tfrc.json": _where("tool_token", r"\"token\"\s*:\s*\"\S+\""),
    "credentials.toml": _where("tool_token", r"^\s*token\s*=\s*\S+"),
    "access_tokens.db": _kind("gcp_key"),
    "credentials.db": _kind("gcp_key"),
    "application_default_credentials.json": _kind("gcp_key"),
    "accessTokens.json": _kind("azure_key"),
    "msal_token_cache.json": _kind("azure_key"),
    "msal_token_cache.bin": _kind("azure_key"),
    "service_principal_entries.json": _kind("azure_key"),
    "secring.gpg": _kind("pgp_key"),
    "chap-secrets": _where("network_password", r"^\s*[^#\s]\S*\s+\S+\s+\S+"),
    "pap-secrets": _where("network_password", r"^\s*[^#\s]\S*\s+\S+\s+\S+"),
    "ipsec.secrets": _where("network_password", r"^[^#\n]*:\s*(?:PSK|RSA|ECDSA|EAP|XAUTH)\s+\S+"),
    "secrets.tdb": _kind("samba_secrets"),
    "passwords.dat": _where("debconf_password", r"^Value: *\S+"),
    "credential.secret": _kind("machine_secret"),
    "secret_key": _kind("machine_secret"),
    "private-keys-v1.db": _kind("pgp_key"),
    ".esmtprc": _PASSWORD_LINE,
    ".msmtprc": _where("tool_password", r"^\s*password\s+\S+"),
    "sasl_passwd": _where("tool_password", r"^\s*[^#\s]\S*\s+\S+:\S+"),
    ".smbcredentials": _PASSWORD_LINE,
}
"""By the name of the file, wherever it is (outside of /usr and the like)."""

BY_PATH: tuple[tuple[re.Pattern[str], Judge], ...] = tuple(
    (re.compile(expression), judge)
    for expression, judge in (
        (r"/etc/shadow(?:[-~]|\.\w+)?", _accounts(True)),
        (r"/etc/passwd(?:[-~]|\.\w+)?", _accounts(True)),
        (r"/etc/g?(?:shadow|group)(?:[-~]|\.\w+)?", _accounts(False)),
        (r"/var/backups/(?:shadow|passwd|gshadow|group)(?:\.bak)?(?:\.\d+)?", _accounts(False)),
        (r"/etc/.*/(?:ssh_host|dropbear)_\w+(?:\.pub)?", _kind("ssh_host_key")),
        (r".*/\.?authorized_keys[^/]*", _AUTHORIZED),
        (r"/etc/ssh/.*authorized.*", _AUTHORIZED),
        (r".*/\.aws/credentials", _where("aws_key", r"^\s*aws_(?:secret_access_key|session_token)\s*=\s*\S+")),
        (r".*/\.config/gh/hosts\.yml", _where("github_token", r"^\s*oauth_token:\s*\S+")),
        (r".*/\.subversion/auth/.*/[0-9a-f]{32}", _where("tool_password", r"^password$")),
        (r".*/private-keys-v1\.d/.*\.key", _kind("pgp_key")),
        (r".*/\.cargo/credentials", _where("tool_token", r"^\s*token\s*=\s*\S+")),
        (r".*/\.gem/credentials", _where("tool_token", r"^:\S+:\s*\S+")),
        (r".*/\.config/sops/age/keys\.txt", _kind("age_key")),
        (r".*/x509up_u\d+[^/]*", _where("x509_proxy", r"^-----BEGIN .*PRIVATE KEY")),
        (r".*/krb5cc_[^/]*", _magic("kerberos_ticket", b"\x05\x04", b"\x05\x03")),
        (r".*(?:\.|/)keytab", _magic("keytab", b"\x05\x02", b"\x05\x01")),
        (r".*/\.vnc/passwd|.*/vncpasswd|.*\.vncpasswd", _kind("vnc_password")),
        (r"/etc/wpa_supplicant/.*|.*/wpa_supplicant[^/]*\.conf", _PSK),
        (r"/etc/NetworkManager/system-connections/.*", _PSK),
        (r"/etc/netplan/.*", _where("network_password", r"^\s*(?:password|client-key-password):\s*\S+")),
        (r"/etc/sysconfig/network-scripts/keys-.*", _kind("network_password")),
        (r"/etc/hostapd/.*", _where("network_password", r"^\s*(?:wpa_passphrase|wpa_psk)\s*=\s*\S+")),
        (
            r"/var/lib/cloud/.*/(?:user|vendor)-data[^/]*",
            _where(
                "cloud_config_password",
                r"^\s*(?:-\s+)?[\"']?(?:password|passwd|plain_text_passwd|hashed_passwd)[\"']?\s*:\s*(?!\*|!)\S+|^\s*-\s*\w+:(?:\$|\S{6})",
            ),
        ),
        (
            r"/etc/cloud/.*\.cfg",
            _where(
                "cloud_config_password",
                r"^\s*(?:-\s+)?(?:password|passwd|plain_text_passwd|hashed_passwd)\s*:\s*(?!\*|!|\s)\S+",
            ),
        ),
        (r".*/\.ansible/tmp/.*|.*/ansible-tmp-[^/]*/.*", _kind("ansible_leftover")),
        (
            r".*/(?:\.env(?:\.\w+)?|[^/]+\.env|[^/]*openrc[^/]*|[^/]+\.tfvars|secrets\.ya?ml|[^/]*\.credentials|creds(?:\.\w+)?)",
            _ASSIGNED,
        ),
        (
            r".*/clouds\.ya?ml|.*/secure\.ya?ml",
            _where("openstack_password", r"^\s*(?:password|application_credential_secret)\s*:\s*\S+"),
        ),
        (r".*/\.\w+_?hist(?:ory|file)?|.*/fish_history|.*/\.zhistory|.*/ConsoleHost_history\.txt", _HISTORY),
        (r".*\.(?:p12|pfx|kdbx?|jks|keystore)", _kind("key_store")),
        (r".*\.(?:key|der|pk8|priv)", _der),
    )
)
"""By the whole path; all that match are asked."""

KINDS = frozenset(
    {
        "age_key", "ansible_leftover", "ansible_password", "authorized_keys", "aws_key", "azure_key", "cloud_config_password",
        "database_password", "debconf_password", "empty_password", "gcp_key", "git_credentials", "github_token",
        "history_secret", "kerberos_ticket", "key_store", "keytab", "machine_secret", "netrc", "network_password", "npm_token",
        "opennebula_auth", "openstack_password", "password_assignment", "password_hash", "pgp_key", "private_key",
        "samba_secrets", "ssh_host_key", "tool_password", "tool_token", "vnc_password", "x509_proxy",
    }
)  # fmt: skip
_INSTEAD = {"ssh_host_key", "x509_proxy"}


def judge(path: str, data: bytes) -> t.Iterator[tuple[int, str]]:
    """What a file holds that is known by its path, an absolute one in the system."""
    named = BY_NAME.get(path.rpartition("/")[2])
    if named:
        yield from named(data)
    for expression, asked in BY_PATH:
        if expression.fullmatch(path):
            yield from asked(data)


def says_more(kinds: t.Iterable[str]) -> bool:
    """Whether a file's path tells what its private key is for, so that «private_key» is not to be told as well."""
    return not _INSTEAD.isdisjoint(kinds)
