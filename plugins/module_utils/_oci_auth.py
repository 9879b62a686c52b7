# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Who we are to an OCI registry: what docker, podman and oras have stored, and the tokens that a registry's challenge asks for.

Formats: the docker CLI's C(config.json) (C(auths), C(credHelpers), C(credsStore)) and its credential helpers' protocol; the
distribution project's token authentication (C(WWW-Authenticate: Bearer realm,service,scope)).
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import os
import re
import subprocess
import typing as t
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._http import Answered, Http, Reply
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors

_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FIELD = re.compile(r'([A-Za-z_]+)=(?:"((?:[^"\\]|\\.)*)"|([^",\s]+))')
_HELPER_TIME = 60
_IDENTITY = "<token>"
"""The user name by which a credential helper says that its secret is an identity token."""
_LOG_IN = "give username and password, or store them by «docker login», «podman login» or «oras login»"


@dataclasses.dataclass(frozen=True)
class Login:
    """A user (for instance a robot account) and password, or an identity token."""

    username: str = ""
    password: str = dataclasses.field(default="", repr=False)
    identity_token: str = dataclasses.field(default="", repr=False)

    def basic(self) -> str:
        """The header Authorization (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


def config_files() -> list[Path]:
    """Where docker, podman and oras store credentials, the first that is there counts: see containers-auth.json(5)."""
    found = []
    if os.environ.get("REGISTRY_AUTH_FILE"):
        found.append(Path(os.environ["REGISTRY_AUTH_FILE"]))
    if os.environ.get("DOCKER_CONFIG"):
        found.append(Path(os.environ["DOCKER_CONFIG"], "config.json"))
    if os.environ.get("XDG_RUNTIME_DIR"):
        found.append(Path(os.environ["XDG_RUNTIME_DIR"], "containers/auth.json"))
    home = Path("~").expanduser()
    return [*found, home / ".config/containers/auth.json", home / ".docker/config.json"]


def stored(host: str, repository: str, path: Path | None = None) -> Login | None:
    """What is stored for a registry, or a repository of it; None where nothing is.

    :param host: C(registry.example.org) or C(registry.example.org:5000).
    :param path: a file like docker's C(config.json); by default the first of :func:`config_files` that knows the host.
    :raises FactoryError: the file cannot be read, or a credential helper fails.
    """
    for each in [path] if path else [file for file in config_files() if file.is_file()]:
        login = _from_file(each, host, repository)
        if login:
            return login
    if path:
        raise FactoryError(f"has no credentials for {host}", where=str(path), key="auth_file", mend=_LOG_IN)
    return None


def _from_file(path: Path, host: str, repository: str) -> Login | None:
    def refuse(problem: str, key: str | None = None) -> t.NoReturn:
        raise FactoryError(problem, where=str(path), key=key, mend="mend that file, or log in again")

    with explain_os_errors(path):
        text = path.read_bytes()
    try:
        config = json.loads(text)
    except ValueError:
        refuse("is not JSON")  # its text may be a secret
    if not isinstance(config, dict):
        refuse("is no object")
    for name in ("auths", "credHelpers"):
        if not isinstance(config.get(name, {}), (dict, type(None))):
            refuse("must be an object", name)
    helper = (config.get("credHelpers") or {}).get(host) or config.get("credsStore")
    if helper:
        login = _from_helper(str(helper), host, refuse)
        if login:
            return login
    parts = [host, *repository.split("/")]
    # The most special comes first, as podman has it; docker writes URLs, too.
    names = ["/".join(parts[:end]) for end in range(len(parts), 0, -1)] + [f"https://{host}", f"https://{host}/v1/"]
    for name in names:
        entry = (config.get("auths") or {}).get(name)
        if isinstance(entry, dict) and entry:
            return _from_entry(entry, name, refuse)
    return None


def _from_entry(entry: dict[str, t.Any], name: str, refuse: t.Callable[[str, str], t.NoReturn]) -> Login | None:
    identity = str(entry.get("identitytoken") or entry.get("registrytoken") or "")
    username, password = str(entry.get("username") or ""), str(entry.get("password") or "")
    if entry.get("auth"):
        try:
            username, _colon, password = base64.b64decode(str(entry["auth"]), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            refuse("is no Base64 of «user:password»", f"auths.{name}.auth")
    return Login(username, password.rstrip("\0"), identity) if username or identity else None


def _from_helper(helper: str, host: str, refuse: t.Callable[[str, str], t.NoReturn]) -> Login | None:
    if not _HELPER.fullmatch(helper):
        refuse("is no name of a credential helper", "credHelpers")
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(
            [program, "get"], input=host, capture_output=True, text=True, timeout=_HELPER_TIME, check=False
        )
    except FileNotFoundError:
        refuse(f"names {program}, which is not installed", "credHelpers")
    except (OSError, subprocess.TimeoutExpired) as exc:
        refuse(f"{program} failed: {type(exc).__name__}", "credHelpers")
    if done.returncode:
        # They say it on standard output; nothing else that they may have said is shown.
        if "not found" in done.stdout + done.stderr:
            return None
        refuse(f"{program} failed with exit status {done.returncode}", "credHelpers")
    try:
        said = json.loads(done.stdout)
        username, secret = str(said["Username"]), str(said["Secret"])
    except (ValueError, KeyError, TypeError):
        refuse(f"{program} answered with something else than a login", "credHelpers")
    return Login(identity_token=secret) if username == _IDENTITY else Login(username, secret)


def challenge(header: str) -> tuple[str, dict[str, str]]:
    """The scheme, in lower case, and the fields of a header WWW-Authenticate."""
    scheme, _space, rest = header.strip().partition(" ")
    fields = {name.lower(): quoted or plain for name, quoted, plain in _FIELD.findall(rest)}
    return scheme.lower(), fields


def explained(exc: Answered) -> Answered:
    """A refusal with the registry's own code and message in place of its JSON (distribution specification, «Error codes»)."""
    try:
        errors = json.loads(exc.reply.body)["errors"]
        said = "; ".join(f"{each['code']}: {each.get('message') or ''}".strip(": ") for each in errors[:3])
    except (ValueError, KeyError, TypeError, IndexError):
        return exc
    said = exc.reply.masks.hide(" ".join(said.split()))[:200]
    return Answered(exc.reply, f"HTTP {exc.reply.status}: {said}", where=exc.where, mend=exc.mend)


class Authorizer:
    """Has the header Authorization for a registry, once it has been challenged.

    :param http: for asking the token server; its messages show no secret of ours.
    :param scopes: what we want to do, such as C(repository:vo/debian:pull,push).
    """

    def __init__(self, login: Login | None, http: Http, scopes: t.Sequence[str]) -> None:
        self._login = login
        self._http = http
        self._scopes = list(scopes)
        self.header = ""
        if login:
            self.hide(login.password, login.identity_token, login.basic().partition(" ")[2] if login.username else "")

    def hide(self, *secrets: str) -> None:
        """Have no message show these."""
        for secret in secrets:
            self._http.masks.add(secret)

    def answer(self, header: str, where: str) -> str:
        """The header Authorization for a challenge; raises FactoryError where there is none that we can give."""
        scheme, fields = challenge(header)
        if scheme == "basic":
            if not self._login or not self._login.username:
                raise FactoryError("wants a user and password", where=where, mend=_LOG_IN)
            self.header = self._login.basic()
        elif scheme == "bearer" and fields.get("realm"):
            self.header = "Bearer " + self._token(fields, where)
        else:
            raise FactoryError(
                f"wants an authentication that is not known here: {scheme or 'none'}",
                where=where,
                mend="give the URL of an OCI registry",
            )
        return self.header

    def _token(self, fields: t.Mapping[str, str], where: str) -> str:
        realm = fields["realm"]
        if urlsplit(realm).scheme not in ("http", "https"):
            raise FactoryError("names a token server that is no URL", where=where, mend="check the registry's settings")
        try:
            reply = self._ask(fields)
        except Answered as exc:
            raise explained(exc) from None
        said = reply.json()
        token = (said.get("token") or said.get("access_token")) if isinstance(said, dict) else None
        if not isinstance(token, str) or not token or not token.isprintable():
            raise FactoryError("gave no token", where=reply.where, mend="check the credentials and the registry")
        self.hide(token)
        return token

    def _ask(self, fields: t.Mapping[str, str]) -> Reply:
        realm = fields["realm"]
        scopes = list(dict.fromkeys([*self._scopes, *fields.get("scope", "").split()]))
        query = {"service": fields["service"]} if fields.get("service") else {}
        login = self._login
        if login and login.identity_token:
            form = {**query, "grant_type": "refresh_token", "refresh_token": login.identity_token}
            form |= {"client_id": "cloudimg.factory", "scope": " ".join(scopes)}
            return self._http.request("POST", realm, body=form, repeat=True)
        headers = {"Authorization": login.basic()} if login else {}
        # More than one scope is more than one field of the same name.
        text = urlencode([*query.items(), *(("scope", scope) for scope in scopes)])
        return self._http.request("GET", f"{realm}{'&' if '?' in realm else '?'}{text}", headers=headers)
