# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""One repository of an OCI registry: manifests, tags and referrers (OCI distribution specification 1.1).

Everything but the blobs' bytes, which _oci_blobs.py moves. Each method says which requests it makes. A manifest is put by its
digest or a tag, which may be repeated as often as one likes: the same bytes end as the same manifest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import typing as t
from pathlib import Path
from urllib.parse import urlencode, urljoin, urlsplit

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._http import DELAYS, Answered, Http, Reply, Unknown
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_auth import Authorizer, Login, explained, stored
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
LAYER_TITLE = "org.opencontainers.image.title"
EMPTY_CONFIG = b"{}"
_ACCEPT = ", ".join((MANIFEST, INDEX))
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PAGE = 1000
_PAGES = 1000

OPTIONS: dict[str, t.Any] = {
    "registry": {"type": "str", "required": True},
    "repository": {"type": "str", "required": True},
    "username": {"type": "str"},
    "password": {"type": "str", "no_log": True},
    "auth_file": {"type": "path"},
    "ca_path": {"type": "path"},
    "unencrypted": {"type": "bool", "default": False},
    "http_timeout": {"type": "int", "default": 120},
}
"""The options of both modules that say which repository is meant, and by which credentials."""


def digest_of(data: bytes) -> str:
    """C(sha256:<hex>)."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def is_digest(reference: str) -> bool:
    """Whether it is a digest, as against a tag."""
    return bool(_DIGEST.fullmatch(reference))


def check_reference(reference: str, key: str) -> str:
    """A tag or digest; raises FactoryError where it is neither."""
    if is_digest(reference) or _TAG.fullmatch(reference):
        return reference
    raise FactoryError(f"{reference!r} is no tag, nor sha256:<hex>", key=key, mend="correct it")


def fallback_tag(digest: str) -> str:
    """The tag of the index of referrers in a registry that has no API for them («referrers tag schema»)."""
    return digest.replace(":", "-", 1)


@dataclasses.dataclass(frozen=True)
class Found:
    """A manifest: its bytes, the digest of them, and its media type."""

    data: bytes
    media_type: str

    @property
    def digest(self) -> str:
        return digest_of(self.data)

    @property
    def document(self) -> dict[str, t.Any]:
        found = json.loads(self.data)
        return found if isinstance(found, dict) else {}

    @property
    def annotations(self) -> dict[str, str]:
        """Those of the manifest; a layer's are others."""
        found = self.document.get("annotations")
        return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}

    @property
    def layers(self) -> list[dict[str, t.Any]]:
        found = self.document.get("layers")
        return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []

    def describe(self) -> dict[str, t.Any]:
        """The OCI descriptor that points at it."""
        about = {"mediaType": self.media_type, "digest": self.digest, "size": len(self.data)}
        kind = self.document.get("artifactType")
        more = {"artifactType": kind} if kind else {}
        return {**about, **more, **({"annotations": self.annotations} if self.annotations else {})}


def manifest(
    layers: t.Sequence[t.Mapping[str, t.Any]],
    annotations: t.Mapping[str, str],
    *,
    artifact_type: str,
    subject: t.Mapping[str, t.Any] | None = None,
) -> Found:
    """An artifact's manifest (OCI image specification 1.1): the same bytes for the same content.

    It has the fields that C(oras push) writes, and its config is the empty one.
    """
    config = {"mediaType": EMPTY, "digest": digest_of(EMPTY_CONFIG), "size": len(EMPTY_CONFIG), "data": "e30="}
    document: dict[str, t.Any] = {"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": artifact_type}
    document |= {"config": config, "layers": [dict(layer) for layer in layers]}
    if subject:
        document["subject"] = {key: subject[key] for key in ("mediaType", "digest", "size")}
    document["annotations"] = dict(sorted(annotations.items()))
    return Found(json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode(), MANIFEST)


class Repository:
    """A repository, as C(repository) below C(registry).

    :param registry: its URL, C(https://registry.example.org), or only the host.
    :param mount_from: further repositories of it, which have to be readable for mounts.
    :param write: whether we are going to change it; else only the right to read is asked for.
    :param options: see C(OPTIONS).
    """

    def __init__(
        self,
        options: t.Mapping[str, t.Any],
        progress: Progress,
        *,
        write: bool,
        mount_from: t.Sequence[str] = (),
        delays: t.Sequence[float] = DELAYS,
    ) -> None:
        given = str(options["registry"])
        self.base = (given if "://" in given else f"https://{given}").rstrip("/") + "/"
        self.host = urlsplit(self.base).netloc.rpartition("@")[2]
        self.name = _check_repository(str(options["repository"]), "repository")
        for other in mount_from:
            _check_repository(other, "mount_from")
        if "@" in urlsplit(self.base).netloc:
            raise FactoryError("is no place for a password", key="registry", mend="give username and password")
        settings: dict[str, t.Any] = {
            "ca": Path(options["ca_path"]) if options.get("ca_path") else None,
            "timeout": float(options.get("http_timeout") or 120),
            "progress": progress,
            "plain": bool(options.get("unencrypted")),
        }
        self.progress = progress
        self._delays = delays
        self.http = Http(self.base, **settings, delays=delays)
        self.once = Http(self.base, **settings, delays=())
        """For what has to be looked up before it is repeated."""
        self.once.masks = self.http.masks
        file = Path(options["auth_file"]) if options.get("auth_file") else None
        login: Login | None
        if options.get("username"):
            login = Login(str(options["username"]), str(options.get("password") or ""))
        else:
            login = stored(self.host, self.name, file)
        scopes = [f"repository:{self.name}:{'pull,push,delete' if write else 'pull'}"]
        scopes += [f"repository:{other}:pull" for other in mount_from]
        self._login = login
        self._auth = Authorizer(login, self.http, scopes)

    def request(self, method: str, url: str, *, once: bool = False, **options: t.Any) -> Reply:
        """A request below C(/v2/<name>/), or to an absolute URL (an upload); answers the registry's challenge, twice at most.

        :raises Unreachable, Unknown, Answered: see :class:`_http.Http`.
        """
        http = self.once if once else self.http
        target = urljoin(self.base, url) if url.startswith(("/", "http:", "https:")) else self.url(url)
        headers = dict(options.pop("headers", None) or {})
        ours = urlsplit(target)[:2] == urlsplit(self.base)[:2]
        for attempt in range(3):
            sent = {**headers, **({"Authorization": self._auth.header} if ours and self._auth.header else {})}
            try:
                return http.request(method, target, headers=sent, **options)
            except Answered as exc:
                asks = exc.reply.headers.get("WWW-Authenticate", "")
                if exc.reply.status != 401 or not ours or not asks or attempt == 2:
                    raise explained(exc) from None
                before = self._auth.header
                # The second challenge in a row is a refusal, unless our token is one that has run out.
                if self._auth.answer(asks, exc.reply.where) == before:
                    raise explained(exc) from None
        raise FactoryError("challenged three times", where=self.where, mend="check the credentials")  # pragma: no cover

    def harbor(self, method: str, path: str, **options: t.Any) -> Reply:
        """A request to Harbor's API 2.0, which wants the user and password itself."""
        headers = dict(options.pop("headers", None) or {})
        if self._login and self._login.username:
            headers["Authorization"] = self._login.basic()
        try:
            return self.http.request(method, urljoin(self.base, f"/api/v2.0/{path}"), headers=headers, **options)
        except Answered as exc:
            raise explained(exc) from None

    def url(self, path: str) -> str:
        """The URL of a path below the repository."""
        return f"{self.base}v2/{self.name}/{path}"

    @property
    def where(self) -> str:
        """The repository as people write it: C(registry.example.org/vo/debian)."""
        return f"{self.host}/{self.name}"

    def get(self, reference: str, *, limit: int = 4 << 20) -> Found | None:
        """A manifest by tag or digest (one GET); None where there is none, or no such repository.

        :raises FactoryError: it is not what its digest says, or no JSON object.
        """
        reply = self.request(
            "GET", f"manifests/{reference}", headers={"Accept": _ACCEPT}, accept=(200, 404), limit=limit
        )
        if reply.status == 404:
            return None
        document = reply.json()
        if not isinstance(document, dict):
            raise FactoryError("is no manifest", where=reply.where, mend="give the URL of an OCI registry")
        kind = str(document.get("mediaType") or reply.headers.get("Content-Type", "").partition(";")[0])
        found = Found(reply.body, kind)
        if is_digest(reference) and found.digest != reference:
            raise FactoryError(f"gave a manifest whose digest is {found.digest}", where=reply.where, mend="try again")
        return found

    def digest(self, reference: str) -> str | None:
        """The digest that a tag stands for (one HEAD); None where there is none."""
        headers = {"Accept": _ACCEPT}
        reply = self.request("HEAD", f"manifests/{reference}", headers=headers, accept=(200, 404))
        if reply.status == 404:
            return None
        said = reply.headers.get("Docker-Content-Digest", "")
        if is_digest(said):
            return said
        found = self.get(reference)
        return found.digest if found else None

    def put(self, reference: str, found: Found) -> bool:
        """Have a manifest under a tag or its digest (one PUT); whether the registry itself notes whose referrer it is."""
        headers = {"Content-Type": found.media_type}
        waits = list(self._delays)
        while True:
            try:
                reply = self.request(
                    "PUT", f"manifests/{reference}", headers=headers, body=found.data, accept=(201,), repeat=True
                )
                break
            except Answered as exc:
                # docker-registry writes its links in place: while another publisher of the same blob does, it is not known.
                if not waits or "MANIFEST_BLOB_UNKNOWN" not in exc.reply.text:
                    raise
                self.http.pause(waits.pop(0))
        said = reply.headers.get("Docker-Content-Digest", "")
        if said and said != found.digest:
            raise FactoryError(
                f"has it as {said}, not as {found.digest}", where=reply.where, mend="check the registry, run this again"
            )
        return bool(reply.headers.get("OCI-Subject"))

    def delete(self, digest: str) -> bool:
        """Remove a manifest with all its tags (one DELETE); whether it was there."""
        try:
            reply = self.request("DELETE", f"manifests/{digest}", accept=(200, 202, 404), repeat=True)
        except Answered as exc:
            if exc.reply.status == 405:
                raise FactoryError(
                    "does not allow that manifests are removed",
                    where=exc.where,
                    mend="enable it (storage.delete.enabled of docker-registry), or remove it by the registry's own means",
                ) from None
            raise
        return reply.status != 404

    def has(self, digest: str, size: int | None = None) -> bool:
        """Whether there is a blob, of that size (one HEAD)."""
        reply = self.request("HEAD", f"blobs/{digest}", accept=(200, 404))
        length = reply.headers.get("Content-Length", "")
        return reply.status == 200 and (size is None or not length.isdigit() or int(length) == size)

    def put_blob(self, data: bytes) -> None:
        """Have a small blob (a HEAD, and where it is missing a POST and a PUT, which are repeated together)."""
        digest = digest_of(data)
        waits = list(self._delays)
        while not self.has(digest):
            begun = self.request("POST", "blobs/uploads/", body=b"", accept=(202,), repeat=True)
            place = urlsplit(urljoin(self.base, begun.headers.get("Location", "")))
            base = urlsplit(self.base)
            if place.hostname == base.hostname and base.scheme == "https":
                place = place._replace(scheme=base.scheme, netloc=base.netloc)
            url = f"{place.geturl()}{'&' if place.query else '?'}{urlencode({'digest': digest})}"
            headers = {"Content-Type": "application/octet-stream"}
            try:
                self.request("PUT", url, body=data, headers=headers, accept=(201, 204), once=True)
                return
            except (Unknown, Answered) as exc:
                if not waits or (isinstance(exc, Answered) and exc.reply.status not in (404, 429, 503)):
                    raise
                self.http.pause(waits.pop(0))

    def delete_quietly(self, digest: str) -> None:
        """Remove what is in nobody's way where that is allowed: registries clean up what has no tag by themselves."""
        with contextlib.suppress(FactoryError):
            self.delete(digest)

    def tags(self) -> list[str]:
        """All tags (a GET for each page); empty where there is no such repository."""
        found: list[str] = []
        url = self.url(f"tags/list?n={_PAGE}")
        for _page in range(_PAGES):
            reply = self.request("GET", url, accept=(200, 404))
            if reply.status == 404:
                return found
            listed = reply.json().get("tags") or []
            found += [str(tag) for tag in listed]
            following = _next(reply)
            if not following or not listed:
                return found
            url = urljoin(url, following)
        raise FactoryError(f"has more than {_PAGES} pages of tags", where=self.where, mend="check the registry")

    def referrers(self, digest: str) -> tuple[list[dict[str, t.Any]], bool]:
        """The descriptors of what refers to a manifest, and whether the registry has an API for them.

        One GET for each page, or two GETs where there is no such API.
        """
        found: list[dict[str, t.Any]] = []
        url = self.url(f"referrers/{digest}")
        for page in range(_PAGES):
            try:
                reply = self.request("GET", url, headers={"Accept": INDEX}, accept=(200, 404))
            except Answered as exc:
                # Registries before specification 1.1 have neither the route nor a fixed answer for it.
                if page or exc.reply.status not in (400, 405, 406, 501):
                    raise
                break
            if not page and (reply.status != 200 or INDEX not in reply.headers.get("Content-Type", INDEX)):
                break
            found += _descriptors(reply.json())
            following = _next(reply)
            if not following:
                return found, True
            url = urljoin(url, following)
        index = self.get(fallback_tag(digest))
        return (_descriptors(index.document) if index else []), False


def _next(reply: Reply) -> str:
    """The URL of the next page (RFC 5988); empty where this is the last one."""
    found = re.search(r"<([^>]*)>\s*;\s*rel=\"?next", reply.headers.get("Link", ""))
    return found[1] if found else ""


def _descriptors(index: t.Any) -> list[dict[str, t.Any]]:
    found = index.get("manifests") if isinstance(index, dict) else None
    return [each for each in found or [] if isinstance(each, dict) and is_digest(str(each.get("digest")))]


def _check_repository(name: str, key: str) -> str:
    if not _REPOSITORY.fullmatch(name) or len(name) > 255:
        raise FactoryError(
            f"{name!r} is no name of a repository",
            key=key,
            mend="use a-z, 0-9, and ., _, - between them, as in vo.example.org/debian",
        )
    return name
