# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The Image API v2 of OpenStack (Glance): who we are there, and each request that publishing needs.

The OpenStack SDK reads clouds.yaml, gets and renews tokens and finds the endpoint. The requests go through :class:`Http`, which
knows whether a broken one may have been done: what it cannot know is looked up here.
"""

from __future__ import annotations

import json
import re
import ssl
import time
import typing as t
from pathlib import Path
from urllib.parse import quote, urljoin

from ansible_collections.cloudimg.factory.plugins.module_utils import _http, _http_wire
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._http import Answered, File, Http, Reply, Unknown
from ansible_collections.cloudimg.factory.plugins.module_utils._libraries import need
from ansible_collections.cloudimg.factory.plugins.module_utils._masks import Masks
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

OPTIONS: dict[str, t.Any] = {
    "cloud": {"type": "str"},
    "auth_type": {"type": "str"},
    "auth": {"type": "dict", "no_log": True},
    "region_name": {"type": "str"},
    "interface": {"type": "str", "choices": ["public", "internal", "admin"], "default": "public"},
    "endpoint": {"type": "str"},
    "validate_certs": {"type": "bool"},
    "ca_cert": {"type": "path"},
    "client_cert": {"type": "path"},
    "client_key": {"type": "path", "no_log": False},
    "allow_http": {"type": "bool", "default": False},
    "request_timeout": {"type": "int", "default": 60},
}
"""How to get into a cloud: what the modules for Glance have in common."""

Image = dict[str, t.Any]
"""An image as Glance describes it: its properties are among the other keys."""

BUSY = ("queued", "saving", "uploading", "importing")
"""The states of an image whose data are not all there (an import that failed is C(queued) again)."""

DONE = ("active", "deactivated")
_PATCH = "application/openstack-images-v2.1-json-patch"
_PAGES = 10000
_TLS = re.compile(r"(?:\[SSL[^\]]*\] |(?=EOF occurred))([^(']+)")
_SECRETS = re.compile(r"(?i)(secret|password|token|passcode)")


class _Client(Http):
    """Adds the token to each request; a file is never sent twice without a look at what has become of it."""

    def __init__(self, session: t.Any, trust: ssl.SSLContext | None, **options: t.Any) -> None:
        super().__init__(headers={"Accept": "application/json"}, **options)
        self.session = session
        self._trust = trust

    def _send(self, *words: t.Any, ours: bool) -> Reply:
        for _attempt in range(2):
            self._headers = {**self._headers, **identify(self.session, self.masks.hide)}
            for value in self._headers.values():
                self.masks.add(value)
            reply = super()._send(*words, ours=ours)
            # A token may be withdrawn before its time.
            if reply.status != 401 or any(isinstance(word, File) for word in words) or not self.session.invalidate():
                return reply
        return reply


def identify(session: t.Any, hide: t.Callable[[str], str] = str) -> dict[str, str]:
    """The headers that say who asks; the Identity service is asked for a token where there is none, or an old one."""
    errors = need("keystoneauth1.exceptions")
    delays = list(_http.DELAYS)
    where = str(getattr(session.auth, "auth_url", None) or "authentication")
    while True:
        try:
            return dict(session.get_auth_headers() or {})
        except errors.SSLError as exc:
            # It is within the text of libraries that have wrapped each other.
            reason = _TLS.search(str(exc))
            raise FactoryError(
                f"no TLS with the Identity service: {reason[1].strip() if reason else hide(_first(exc))}",
                where=where,
                mend="give its CA as cacert in clouds.yaml, or as ca_cert; a client's as cert and key",
            ) from None
        except (errors.RetriableConnectionFailure, errors.HttpServerError) as exc:
            if not delays:
                raise FactoryError(
                    f"the Identity service gives no token: {hide(_first(exc))}",
                    where=where,
                    mend="check that URL, its certificate and the network",
                ) from None
        except errors.Unauthorized:
            raise FactoryError(
                "HTTP 401: the credentials are refused",
                where=where,
                mend="check the credentials, and whether an application credential has expired",
            ) from None
        except errors.ClientException as exc:
            raise FactoryError(
                f"cannot be authenticated: {hide(_first(exc))}",
                where=where,
                mend="check cloud, auth_type and auth",
            ) from None
        time.sleep(delays.pop(0))


def _first(exc: BaseException) -> str:
    return str(exc).splitlines()[0][:200] if str(exc) else type(exc).__name__


def connect(options: t.Mapping[str, t.Any], progress: Progress) -> Glance:
    """The Image service of the cloud that the options name (see :data:`OPTIONS`).

    :raises FactoryError: no such cloud, no Image service there, credentials that are refused.
    """
    config = need("openstack.config", "1.0")
    need("keystoneauth1")
    given = {
        "cloud": options["cloud"],
        "auth_type": options["auth_type"],
        "auth": options["auth"],
        "region_name": options["region_name"],
        "image_endpoint_override": options["endpoint"],
        "verify": options["validate_certs"],
        "cacert": options["ca_cert"],
        "cert": options["client_cert"],
        "key": options["client_key"],
    }
    given = {key: value for key, value in given.items() if value is not None}
    if given.get("auth_type") == "none" and options["endpoint"]:
        given["auth"] = {"endpoint": options["endpoint"]}
    secrets = [str(value) for key, value in (options["auth"] or {}).items() if _SECRETS.search(key)]
    where = f"cloud {options['cloud']}" if options["cloud"] else "cloud"
    try:
        region = config.get_cloud_region(app_name="cloudimg.factory", **given)
        session = region.get_session()
    except Exception as exc:
        hide = Masks(secrets).hide
        raise FactoryError(
            hide(_first(exc)), where=where, mend="check clouds.yaml, and cloud, auth_type and auth"
        ) from None
    secrets += [str(value) for key, value in region.get_auth_args().items() if _SECRETS.search(key)]
    # Before the SDK uses these files, which has no messages for what is wrong with them.
    trust, client = _trust(*region.get_requests_verify_args())
    # The catalogue comes with the token.
    identify(session, Masks(secrets).hide)
    base = region.get_endpoint("image") or session.get_endpoint(
        service_type="image",
        interface=options["interface"],
        region_name=region.get_region_name("image"),
        skip_discovery=True,
    )
    if not base:
        raise FactoryError(
            "has no Image service in its catalogue",
            where=where,
            mend="check region_name and interface, or give endpoint",
        )
    http = _Client(
        session,
        trust,
        base=re.sub(r"(/v\d+(\.\d+)?)?/*$", "/v2/", base),
        client_certificate=client if trust is None else None,
        secrets=secrets,
        timeout=options["request_timeout"],
        delays=_http.DELAYS,
        progress=progress,
        plain=options["allow_http"],
    )
    return Glance(http, session.get_project_id())


def _trust(verify: t.Any, cert: t.Any) -> tuple[ssl.SSLContext | None, t.Any]:
    """What the SDK makes of verify, cacert, cert and key, as Http wants it; raises FactoryError where files cannot be used."""
    pair = (cert, None) if isinstance(cert, str) else cert
    client = (Path(pair[0]), Path(pair[1]) if pair[1] else None, None) if pair else None
    if verify is True:
        if client:
            _http_wire.context(None, client)
        return None, client
    trust = _http_wire.context(Path(verify) if verify else None, client)
    if not verify:
        trust.check_hostname = False
        trust.verify_mode = ssl.CERT_NONE
    return trust, client


class Glance:
    """One project's images.

    :param project: the ID of our project; None where nobody is asked who he is.
    """

    def __init__(self, http: Http, project: str | None) -> None:
        self.http = http
        self.project = project

    @property
    def where(self) -> str:
        """The URL, for messages."""
        return self.http.masks.url(self.http.base)

    def images(self, **filters: str) -> list[Image]:
        """Our images with these properties, hidden ones too, the oldest first."""
        found: dict[str, Image] = {}
        for hidden in ("false", "true"):
            owner = {"owner": self.project} if self.project else {}
            page: str | None = "images"
            params: dict[str, str] | None = {
                **filters,
                **owner,
                "os_hidden": hidden,
                "limit": "100",
                "visibility": "all",
            }
            for _page in range(_PAGES):
                answer = self.http.request("GET", t.cast("str", page), params=params).json()
                if not isinstance(answer, dict) or not isinstance(answer.get("images"), list):
                    raise FactoryError("answered without a list of images", where=self.where, mend="check the endpoint")
                found.update({image["id"]: image for image in answer["images"]})
                # It is relative to the root of the server, whatever is in between.
                page, params = answer.get("next"), None
                if not page:
                    break
                page = "images?" + page.partition("?")[2]
        return sorted(found.values(), key=age)

    def get(self, image: str) -> Image | None:
        """An image by its id; None where there is none, or not for us."""
        reply = self.http.request("GET", f"images/{quote(image)}", accept=(200, 404))
        return dict(reply.json()) if reply.status == 200 else None

    def create(self, document: Image) -> None:
        """Make an image without data. Its id is ours, so that an answer that was lost can be looked up."""
        headers = {"Content-Type": "application/json"}
        reply = self.http.request(
            "POST", "images", headers=headers, body=json.dumps(document), accept=(201, 409), repeat=True
        )
        if reply.status == 409 and self.get(document["id"]) is None:
            raise Answered(
                reply, f"HTTP 409: {reply.said()}", where=reply.where, mend="remove images, or have the quota raised"
            )

    def upload(self, image: str, path: Path, *, stage: bool) -> None:
        """Send the data; once, whatever happens."""
        headers = {"Content-Type": "application/octet-stream", "X-OpenStack-Image-Size": str(path.stat().st_size)}
        place = f"images/{quote(image)}/{'stage' if stage else 'file'}"
        try:
            self.http.request("PUT", place, headers=headers, body=File(path), repeat=False)
        except Answered as exc:
            if exc.reply.status == 413:
                mend = "make room in the store, or have the project's quota raised"
                problem = f"HTTP 413: {exc.reply.said()}"
                raise Answered(exc.reply, problem, where=exc.reply.where, mend=mend) from None
            raise

    def begin_import(self, image: str, method: str, uri: str | None) -> None:
        """Have the server take what is staged, or fetch it from ``uri``."""
        about = {"name": method, **({"uri": uri} if uri else {})}
        body = json.dumps({"method": about})
        headers = {"Content-Type": "application/json"}
        self.http.request("POST", f"images/{quote(image)}/import", headers=headers, body=body, repeat=False)

    def import_methods(self) -> list[str]:
        """The ways in which the server imports."""
        reply = self.http.request("GET", "info/import", accept=(200, 404))
        return list(reply.json()["import-methods"]["value"]) if reply.status == 200 else []

    def why_not(self, image: str) -> str:
        """What the server says of an import that failed."""
        reply = self.http.request("GET", f"images/{quote(image)}/tasks", accept=(200, 403, 404))
        tasks = reply.json().get("tasks", []) if reply.status == 200 else []
        said = [str(task["message"]) for task in tasks if task.get("status") == "failure" and task.get("message")]
        return self.http.masks.hide(" ".join(said[-1].split())[:200]) if said else "it does not say why"

    def patch(self, image: str, values: t.Mapping[str, t.Any]) -> None:
        """Set base attributes and properties, all at once or none of them."""
        body = json.dumps([{"op": "add", "path": f"/{_pointer(key)}", "value": value} for key, value in values.items()])
        self.http.request("PATCH", f"images/{quote(image)}", headers={"Content-Type": _PATCH}, body=body, repeat=True)

    def act(self, image: str, action: str) -> None:
        """C(deactivate) or C(reactivate)."""
        self.http.request("POST", f"images/{quote(image)}/actions/{action}", repeat=True)

    def delete(self, image: str) -> None:
        """Remove an image; it is no error that it has gone."""
        self.http.request("DELETE", f"images/{quote(image)}", accept=(204, 404, 410), repeat=True)

    def members(self, image: str) -> set[str]:
        """The projects with which an image is shared."""
        reply = self.http.request("GET", f"images/{quote(image)}/members", accept=(200, 403, 404))
        return {row["member_id"] for row in reply.json()["members"]} if reply.status == 200 else set()

    def share(self, image: str, project: str) -> None:
        """Share it with one more project."""
        headers = {"Content-Type": "application/json"}
        body = json.dumps({"member": project})
        place = f"images/{quote(image)}/members"
        self.http.request("POST", place, headers=headers, body=body, accept=(200, 409), repeat=True)

    def unshare(self, image: str, project: str) -> None:
        """Share it with that project no longer."""
        place = f"images/{quote(image)}/members/{quote(project, safe='')}"
        self.http.request("DELETE", place, accept=(204, 404), repeat=True)

    def wait(self, image: str, patience: float, states: t.Container[str] = BUSY) -> Image | None:
        """The image as soon as it is in none of these states, or when patience has ended."""
        end = time.monotonic() + patience
        pause = 0.2
        while True:
            found = self.get(image)
            if found is None or found["status"] not in states or time.monotonic() >= end:
                return found
            self.http.pause(min(pause, max(0.0, end - time.monotonic())))
            pause = min(2 * pause, 5.0)


def age(image: Image) -> tuple[str, str]:
    """A sort key: the oldest first, and the same for everyone who asks."""
    return image["created_at"], image["id"]


def _pointer(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


__all__ = ["BUSY", "DONE", "OPTIONS", "Answered", "Glance", "Image", "Unknown", "age", "connect", "urljoin"]
