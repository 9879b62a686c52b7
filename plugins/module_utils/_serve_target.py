# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Where files are to be served, said as a URL or a path, and what to log in with."""

from __future__ import annotations

import dataclasses
import re
import typing as t
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ansible_collections.cloudimg.factory.plugins.module_utils import _http
from ansible_collections.cloudimg.factory.plugins.module_utils._download import is_url, shown
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.plugins.module_utils._serve import Store
from ansible_collections.cloudimg.factory.plugins.module_utils._serve_directory import Directory
from ansible_collections.cloudimg.factory.plugins.module_utils._serve_http import DavStore, PutStore
from ansible_collections.cloudimg.factory.plugins.module_utils._serve_rsync import RsyncStore
from ansible_collections.cloudimg.factory.plugins.module_utils._serve_s3 import S3Store
from ansible_collections.cloudimg.factory.plugins.module_utils._serve_sftp import Account, SftpStore

_WEB = {"http": "http", "https": "https", "dav": "http", "davs": "https"}
_SHELL = {"sftp": SftpStore, "rsync+ssh": RsyncStore}
KNOWN = "an absolute path, file:///…, sftp://…, rsync+ssh://…, https://…, davs://…, or s3://bucket/…"
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.:-]*[A-Za-z0-9])?")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*")


@dataclasses.dataclass(frozen=True)
class Credentials:
    """What to log in with; each kind of target takes its own."""

    username: str | None = None
    password: str | None = dataclasses.field(default=None, repr=False)
    token: str | None = dataclasses.field(default=None, repr=False)
    access_key: str | None = dataclasses.field(default=None, repr=False)
    secret_key: str | None = dataclasses.field(default=None, repr=False)
    session_token: str | None = dataclasses.field(default=None, repr=False)
    identity: Path | None = None
    known_hosts: Path | None = None
    ca: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None


def open_store(
    target: str,
    credentials: Credentials,
    progress: Progress,
    *,
    timeout: float,
    endpoint: str | None = None,
    region: str | None = None,
    plain: bool = False,
) -> Store:
    """The store that a target is; raises FactoryError where it is none.

    :param endpoint: of an S3-compatible store.
    :param plain: let credentials go unencrypted to another machine.
    """
    if not is_url(target):
        return Directory(_absolute(target, target))
    try:
        parts = urlsplit(target)
        port = parts.port
    except ValueError as exc:
        _refuse(target, f"is no URL: {exc}")
    if parts.password is not None:
        _refuse(target, "contains a password, which would be shown", "remove it, and give the option password")
    if parts.query or parts.fragment:
        _refuse(target, "has a query or a fragment", "give the URL of a directory")
    path = unquote(parts.path)
    if parts.scheme == "file" and not parts.netloc:
        return Directory(_absolute(path, target))
    if parts.scheme == "s3" and parts.netloc:
        keys = _keys(credentials, target)
        ca = str(credentials.ca) if credentials.ca else None
        return S3Store(parts.netloc, path, endpoint=endpoint, region=region, key=keys, ca=ca, timeout=timeout)
    host = parts.hostname or ""
    if not _HOST.fullmatch(host) or (parts.username and not _USER.fullmatch(parts.username)):
        _refuse(target, "names no host")
    if parts.scheme in _SHELL:
        user = parts.username or credentials.username
        account = Account(host, user, port, credentials.identity, credentials.known_hosts)
        below_home = (path + "/").startswith("/~/")
        return _SHELL[parts.scheme](account, path[3:] if below_home else path or "/", progress, silence=timeout)
    if parts.scheme in _WEB:
        if parts.username:
            _refuse(target, "contains a user", "remove it, and give the option username")
        http = _client(
            f"{_WEB[parts.scheme]}://{parts.netloc}{parts.path.rstrip('/')}/", credentials, timeout, plain, progress
        )
        return DavStore(http) if parts.scheme.startswith("dav") else PutStore(http)
    _refuse(target, f"has the scheme {parts.scheme!r}, which is not known")


def public_url(target: str, given: str | None) -> str | None:
    """Under which URL readers see what is put there, without a slash at its end; None where it is not known."""
    if given:
        if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", given):
            raise FactoryError(
                "is no URL that can be read", where=shown(given), key="public_url", mend="give an http or https URL"
            )
        return given.rstrip("/")
    scheme, separator, rest = target.partition("://")
    return f"{_WEB[scheme]}://{rest}".rstrip("/") if separator and scheme in _WEB else None


def _client(base: str, given: Credentials, timeout: float, plain: bool, progress: Progress) -> _http.Http:
    if given.token and given.username:
        raise FactoryError("is given, and username too", key="token", mend="give one of them")
    certificate = (given.client_certificate, given.client_key, None) if given.client_certificate else None
    return _http.Http(
        base,
        auth=(given.username, given.password or "") if given.username else None,
        headers={"Authorization": f"Bearer {given.token}"} if given.token else None,
        ca=given.ca,
        client_certificate=certificate,
        secrets=[given.password, given.token],
        timeout=timeout,
        progress=progress,
        plain=plain,
    )


def _keys(given: Credentials, target: str) -> tuple[str, str, str | None] | None:
    if bool(given.access_key) != bool(given.secret_key):
        missing = "secret_key" if given.access_key else "access_key"
        raise FactoryError("is missing", where=target, key=missing, mend="give both access_key and secret_key, or none")
    return (given.access_key, given.secret_key, given.session_token) if given.access_key and given.secret_key else None


def _absolute(path: str, target: str) -> Path:
    if not path.startswith(("/", "~/")):
        _refuse(target, "is no absolute path")
    return Path(path).expanduser()


def _refuse(target: str, problem: str, mend: str = f"give {KNOWN}") -> t.NoReturn:
    raise FactoryError(problem, where=shown(target), key="target", mend=mend)
