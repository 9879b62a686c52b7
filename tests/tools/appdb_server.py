# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server that follows the documented rules of EGI AppDB's REST API 1.0 and of its submission of image lists.

Rules: C(virtualization.xsd) (order and required elements) and what the portal's own code does (IASA-GR/appdb-core,
library/restapi_app.php, library/restapi_base.php and library/vappliance.php): PUT creates, POST updates by id, errors come
in attributes of the reply, a PUT beside a working version makes another one, what is published can only be enabled and
disabled, publishing archives what was published before, the integrity check takes its time.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import http.server
import json
import re
import threading
import typing as t
import urllib.parse
import uuid
import xml.etree.ElementTree as ET
from xml.sax.saxutils import quoteattr

V = "{http://appdb.egi.eu/api/1.0/virtualization}"
SPACES = " ".join(
    f'xmlns:{name}="http://appdb.egi.eu/api/1.0/{name}"'
    for name in ("appdb", "virtualization", "application", "person")
)
ORDER = {
    "version": ["identifier", "notes", "image"],
    "image": ["description", "group", "identifier", "notes", "instance"],
    "instance": [
        *("integritycheck", "arch", "os", "format", "hypervisor", "identifier", "size", "url", "checksum", "cores"),
        *("network_traffic", "accelerators", "ram", "ovf", "title", "notes", "description"),
    ],
}
REQUIRED = {
    "version": {"identifier"},
    "image": {"description", "group", "identifier"},
    "instance": {"arch", "os", "hypervisor", "identifier", "size", "url", "checksum"},
}
ARCHES = ("x86_64", "i386", "aarch64")
HYPERVISORS = ("KVM", "Xen", "VMware", "Hyper-V", "VirtualBox")
SYSTEMS = ("Linux", "Debian", "Ubuntu", "AlmaLinux", "CentOS", "Windows")
TEXTS = {1: "Access denied", 2: "Resource not found", 3: "Invalid resource representation", 6: "Backend error"}


class Refused(Exception):
    """An error of the API: its number, and its description."""

    def __init__(self, number: int, text: str = "") -> None:
        super().__init__(text)
        self.number = number
        self.text = text


@dataclasses.dataclass
class Image:
    """A VM image instance; ``fields`` by element, ``attributes`` of the elements that have some."""

    id: int
    group_id: int
    identifier: str
    group: str
    description: str
    fields: dict[str, str]
    attributes: dict[str, dict[str, str]]
    traffic: list[dict[str, str]]
    integrity: bool
    verdict: str = "unchecked"
    verdict_text: str = ""


@dataclasses.dataclass
class Version:
    """A version of the appliance."""

    id: int
    version: str
    notes: str
    image: Image | None
    expires: str
    identifier: str
    status: str = "init"
    published: bool = False
    enabled: bool = True
    archived: bool = False
    looks: int = 0


@dataclasses.dataclass
class Asked:
    """One request that came whole."""

    method: str
    path: str
    query: dict[str, str]
    form: dict[str, str]
    headers: dict[str, str]


class AppDbServer:
    """The server, with one piece of software, C(1234) or C(s:egi.debian), that jane may manage and joe may not.

    :ivar files: what the integrity check finds: ``{URL: (size, sha512)}``.
    :ivar looks: how many looks a check lasts.
    :ivar misbehave: ``{number of the request: (kind, whether it is acted upon first)}``; the kinds are ``500``, ``403``,
        ``html`` and ``nothing``.
    :ivar error_status: the HTTP status with which errors come.
    :ivar submissions: the image lists that were taken.
    """

    def __init__(self) -> None:
        self.versions: list[Version] = []
        self.files: dict[str, tuple[int, str]] = {}
        self.looks = 2
        self.misbehave: dict[int, tuple[str, bool]] = {}
        self.error_status = 200
        self.requests: list[Asked] = []
        self.submissions: list[dict[str, t.Any]] = []
        self.tokens = {"pat-jane-0123456789": "jane", "pat-joe-0123456789": "joe"}
        self.passwords = {("jane", "correct horse & battery"): "key-0123456789"}
        self.sessions = {("7", "session-token-1", "session-id-1"): "key-0123456789"}
        self.managers = {"jane"}
        self.exists = True
        self._next = 100
        self._lock = threading.Lock()
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                owner._answer(self)

            do_GET = do_PUT = do_POST = do_DELETE = answer

            def log_message(self, format: str, *args: t.Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}/rest/1.0/"
        self.submit_url = f"http://127.0.0.1:{self.port}/vmlist/submit/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def state(self) -> list[dict[str, t.Any]]:
        """What there is, without what differs from one run to the next."""
        rows = []
        for version in self.versions:
            row = dataclasses.asdict(version)
            for key in ("id", "identifier", "looks"):
                row.pop(key)
            for key in ("id", "group_id", "identifier"):
                row["image"].pop(key)
            rows.append(row)
        return rows

    def _answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        size = int(handler.headers.get("Content-Length") or 0)
        body = handler.rfile.read(size) if size else b""
        if len(body) < size:
            return
        with self._lock:
            number = len(self.requests)
            kind, act = self.misbehave.get(number, ("", True))
            status, reply = self._work(handler, body) if act else (200, b"")
            if not act:
                self.requests.append(Asked(handler.command, handler.path, {}, {}, dict(handler.headers)))
        kinds = {
            "500": (500, b"<html><head><title>Internal Server Error</title></head></html>", "text/html"),
            "403": (403, b"<html><head><title>Forbidden</title></head></html>", "text/html"),
            "html": (200, b"<!DOCTYPE html><html><title>AppDB - Log in</title></html>", "text/html"),
            "nothing": (200, b"", "application/xml"),
        }
        kind_of = "application/json" if "/vmlist/" in handler.path else "application/xml"
        status, reply, kind_of = kinds.get(kind, (status, reply, kind_of))
        handler.send_response(status)
        handler.send_header("Content-Type", kind_of)
        handler.send_header("Content-Length", str(len(reply)))
        handler.end_headers()
        handler.wfile.write(reply)

    def _work(self, handler: http.server.BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        parts = urllib.parse.urlsplit(handler.path)
        query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        form: dict[str, str] = {}
        if handler.command == "POST" and "urlencoded" in handler.headers.get("Content-Type", ""):
            form = dict(urllib.parse.parse_qsl(body.decode("utf-8"), keep_blank_values=True))
        self.requests.append(Asked(handler.command, parts.path, query, form, dict(handler.headers)))
        if parts.path.startswith("/vmlist/submit/"):
            return self._submit(parts.path, handler.headers, form)
        try:
            return 200, self._wrap(self._route(handler.command, parts.path, {**query, **form}, body))
        except Refused as exc:
            return self.error_status, self._wrap("", exc)

    def _wrap(self, inner: str, error: Refused | None = None) -> bytes:
        told = ""
        if error:
            told = f' error={quoteattr(TEXTS[error.number])} errornum="{error.number}"'
            told += f" errordesc={quoteattr(error.text)}" if error.text else ""
        return f'<appdb:appdb {SPACES} datatype="virtualization" type="entry"{told} version="1.0">{inner}</appdb:appdb>'.encode()

    def _user(self, given: dict[str, str]) -> str | None:
        if "accesstoken" in given:
            return self.tokens.get(given["accesstoken"])
        key = self.passwords.get((given.get("username", ""), given.get("passwd", "")))
        if key and key == given.get("apikey"):
            return given["username"]
        key = self.sessions.get((given.get("userid", ""), given.get("passwd", ""), given.get("sessionid", "")))
        return "jane" if key and key == given.get("apikey") else None

    def _route(self, method: str, path: str, given: dict[str, str], body: bytes) -> str:
        match = re.fullmatch(r"/rest/1\.0/applications/(1234|s:egi\.debian)(/virtualization)?(/integrity/(\d+))?", path)
        if not match or not self.exists:
            raise Refused(2)
        user = self._user(given)
        manages = user in self.managers
        if not match[2]:
            return '<application:application id="1234" cname="egi.debian"/>'
        if method == "GET":
            return self._show(manages)
        if not manages:
            raise Refused(1)
        text = body if method == "PUT" else given.get("data", "").encode()
        try:
            root = ET.fromstring(text)
        except ET.ParseError as exc:
            raise Refused(3, f"Could not parse XML: {exc}") from exc
        self._change(root, put=method == "PUT")
        return self._show(True)

    # --- what a document does

    def _change(self, root: ET.Element, *, put: bool) -> None:
        appliance = root.find(f"{V}appliance")
        if appliance is None or appliance.get("appid") != "1234":
            raise Refused(3, "No software id given to create new virtual appliance.")
        element = appliance.find(f"{V}instance")
        if element is None:
            raise Refused(3, "No virtual appliance version given.")
        _in_order("version", element)
        known = next((each for each in self.versions if str(each.id) == element.get("id")), None)
        if known is None and not put:
            raise Refused(3, "No virtual appliance version given")
        if known and not put and element.get("enabled") in ("true", "false"):
            enabled = element.get("enabled") == "true"
            if known.enabled != enabled:
                if known.archived:
                    raise Refused(3, "Cannot make changes to archived version")
                known.enabled = enabled
                return
        if known and known.published and not known.archived:
            raise Refused(3, "Cannot edit published version")
        if known and (known.archived or not known.enabled):
            raise Refused(3, f"Cannot make changes {'to archived' if known.archived else 'in disabled'} version")
        working = next((each for each in self.versions if _working(each)), None)
        if known and working and working is not known:
            self.versions.remove(working)
        # All of it or nothing: the portal works in a transaction.
        draft = dataclasses.replace(known) if known else Version(self._number(), "", "", None, "", str(uuid.uuid4()))
        self._fill(draft, element, new=known is None)
        if known:
            self.versions[self.versions.index(known)] = draft
        else:
            self.versions.append(draft)

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _fill(self, draft: Version, element: ET.Element, *, new: bool) -> None:
        if element.get("version"):
            draft.version = element.get("version", "").strip()
            if any(each.published and each.version == draft.version for each in self.versions):
                raise Refused(3, "Version value is already used in a previous version of the virtual appliance.")
        status = element.get("status", "").lower()
        if status and status != draft.status:
            cancels = status == "init" and draft.status in (
                "verifing",
                "verifingpublish",
                "canceled",
                "failed",
                "verified",
            )
            if status not in ("verify", "verifypublish") and not cancels:
                raise Refused(3, "Invalid status value given.")
            draft.status = status
        publish = element.get("published") == "true"
        if element.find(f"{V}notes") is not None:
            draft.notes = (element.findtext(f"{V}notes") or "").strip()
        year = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=365)
        latest = year.strftime("%Y-%m-%dT%H:%M:%SZ")
        if new or element.get("expireson"):
            draft.expires = min(element.get("expireson") or latest, latest)
        if not 1 <= len(draft.version.encode()) <= 20:
            raise Refused(3, "Invalid version value for virtual appliance version.")
        if not 1 <= len(draft.notes.encode()) <= 1000:
            raise Refused(3, "Invalid notes value for virtual appliance version.")
        images = element.findall(f"{V}image")
        if len(images) > 1 or any(len(each.findall(f"{V}instance")) > 1 for each in images):
            raise Refused(3, "Only one VMI image per version is allowed")
        if images:
            draft.image = self._image(draft, images[0])
        if draft.image is None:
            raise Refused(3, "Version must contain at least one image")
        if status in ("verify", "verifypublish"):
            # Without a check of its own AppDB publishes at once; «verify» always checks.
            if status == "verify" or draft.image.integrity:
                draft.status = "verifing" if status == "verify" else "verifingpublish"
                draft.looks = 0
            elif publish:
                self._publish(draft)

    def _publish(self, draft: Version) -> None:
        for each in self.versions:
            if each.published and not each.archived and each.id != draft.id:
                each.archived = True
        draft.published, draft.status = True, "verified"

    def _image(self, draft: Version, element: ET.Element) -> Image:
        _in_order("image", element)
        own = element.find(f"{V}instance")
        if own is None:
            raise Refused(3, "Version must contain at least one image")
        _in_order("instance", own)
        text = {child.tag.removeprefix(V): (child.text or "").strip() for child in own}
        group = (element.findtext(f"{V}group") or "").strip()
        description = (element.findtext(f"{V}description") or "").strip()
        before = draft.image
        same = before is not None and element.get("id") == str(before.group_id)
        system = own.find(f"{V}os")
        checksum = own.find(f"{V}checksum")
        rules = {
            "Invalid description value for virtual appliance version.": 1 <= len(description.encode()) <= 1000,
            "Invalid group value for VMI.": 1 <= len(group.encode()) <= 50,
            "VMI Group values are used by other VMI groups in this version.": before is None
            or same
            or before.group != group,
            "Invalid hypervisor for VMI Instance.": text["hypervisor"].lower()
            in [each.lower() for each in HYPERVISORS],
            "Could not identify os for VMI Instance.": text["os"].lower() in [each.lower() for each in SYSTEMS],
            "Invalid os version for VMI Instance.": bool(system is not None and system.get("version")),
            "Invalid architecture for VMI Instance.": text["arch"].lower() in ARCHES,
            "Invalid file format for VMI Instance.": bool(text.get("format")),
            "Invalid URL value for VMI Instance.": bool(re.fullmatch(r"https?://[!-~]+", text["url"])),
            "Invalid title value for VMI Instance.": len(text.get("title", "").encode()) <= 1000,
        }
        for problem, fine in rules.items():
            if not fine:
                raise Refused(3, problem)
        integrity = own.get("integrity") != "false"
        if not integrity:
            if not text["size"].isdigit() or int(text["size"]) <= 0:
                raise Refused(3, "Invalid image file size value for VMI Instance.")
            if not text["checksum"] or checksum is None:
                raise Refused(3, "Invalid checksum value for VMI Instance.")
        else:
            text |= {"size": "0", "checksum": ""}
        for name in ("cores", "ram"):
            pair = own.find(f"{V}{name}")
            if pair is not None and not all(
                re.fullmatch(r"\d+", pair.get(key, "")) for key in ("minimum", "recommended")
            ):
                raise Refused(3, f"Minimum {name} value must be a positive number")
        traffic = [dict(each.attrib) for each in own.findall(f"{V}network_traffic")]
        if any("direction" not in each for each in traffic):
            raise Refused(3, "Required entity virtualization:network_traffic@direction is missing")
        again = same and before is not None and own.get("id") == str(before.id)
        return Image(
            before.id if again and before else self._number(),
            before.group_id if same and before else self._number(),
            before.identifier if again and before else str(uuid.uuid4()),
            group,
            description,
            {key: value for key, value in text.items() if key not in ("identifier", "network_traffic")},
            {
                name: dict(each.attrib)
                for name in ("os", "checksum", "cores", "ram")
                for each in own.findall(f"{V}{name}")
            },
            traffic,
            integrity,
        )

    # --- what it shows

    def _show(self, manages: bool) -> str:
        shown = []
        for version in self.versions:
            self._look(version)
            if version.published or manages:
                shown.append(_version_xml(version))
        if not shown and not self.versions:
            return ""
        inner = "".join(shown)
        return (
            '<virtualization:appliance id="9" appid="1234" identifier="5f0c4b4e-4d44-5b4c-9d6c-0d3f3f0f3f3f" name="Debian" '
            f'imageListsPrivate="false">{inner}</virtualization:appliance>'
        )

    def _look(self, version: Version) -> None:
        """A check goes on with every look, and ends by what it finds at the URL."""
        image = version.image
        if image is None or version.status not in ("verifing", "verifingpublish"):
            return
        image.verdict = "checking"
        version.looks += 1
        if version.looks <= self.looks:
            return
        found = self.files.get(image.fields["url"])
        if (
            found
            and not image.integrity
            and (str(found[0]), found[1]) != (image.fields["size"], image.fields["checksum"])
        ):
            version.status, image.verdict, image.verdict_text = "failed", "error", "Checksum mismatch"
        elif not found:
            version.status, image.verdict, image.verdict_text = "failed", "error", "Could not retrieve image: 404"
        else:
            image.verdict, image.verdict_text = "success", ""
            image.fields |= {"size": str(found[0]), "checksum": found[1]}
            if version.status == "verifingpublish":
                self._publish(version)
            version.status = "verified"

    # --- image lists

    def _submit(self, path: str, headers: t.Any, form: dict[str, str]) -> tuple[int, bytes]:
        if path == "/vmlist/submit/sso/":
            wanted = "Basic " + base64.b64encode(b"jane:correct horse & battery").decode()
            if headers.get("Authorization") != wanted:
                return 401, b"<html><head><title>Authorization Required</title></head></html>"
        root = ET.fromstring(form.get("data", ""))
        if root.tag != "appdbvmc" or root.findtext("entity") != "imagelist" or root.findtext("response") != "json":
            return 200, _submitted("error", "Invalid request", 0)
        signed = base64.b64decode(root.findtext("imagelist") or "", validate=True).decode()
        found = re.search(r"\{.*\}(?=\s*\n--)", signed.replace("\r", ""), re.DOTALL)
        listed = json.loads(found[0]) if found else {"hv:imagelist": {}}
        values = listed["hv:imagelist"]
        if values.get("ad:appid") != "1234":
            return 200, _submitted("error", "Unknown appliance", 0)
        used = [row for row in self.submissions if row["version"] == values["hv:version"]]
        if used:
            return 200, _submitted("error", "Version value is already used in a previous version", 0)
        actions = [each.text for each in root.findall("action")]
        self.submissions.append({"version": values["hv:version"], "actions": actions, "list": values})
        number = len(self.submissions)
        for entry in values["hv:images"]:
            self._listed(values, entry["hv:image"])
        return 200, _submitted("success", "stored", number)

    def _listed(self, values: dict[str, t.Any], image: dict[str, t.Any]) -> None:
        fields = {
            "arch": image["sl:arch"],
            "os": image["sl:osname"],
            "format": image["hv:format"],
            "hypervisor": image["hv:hypervisor"],
            "size": str(image["hv:size"]),
            "url": image["hv:uri"],
            "checksum": image["sl:checksum:sha512"],
        }
        attributes = {"os": {"version": image["sl:osversion"]}, "checksum": {"hash": "sha512"}}
        made = Image(
            self._number(), self._number(), image["dc:identifier"], image["ad:group"], "", fields, attributes, [], False
        )
        version = Version(
            self._number(), values["hv:version"], "", made, values["dc:date:expires"], values["dc:identifier"]
        )
        self._publish(version)
        self.versions.append(version)


def _working(version: Version) -> bool:
    return not version.published and not version.archived and version.enabled


def _in_order(kind: str, element: ET.Element) -> None:
    names = [child.tag.removeprefix(V) for child in element]
    order = ORDER[kind]
    unknown = [name for name in names if name not in order]
    if unknown:
        raise Refused(3, f"Element {unknown[0]} is not expected in {kind}")
    places = [order.index(name) for name in names]
    if places != sorted(places):
        raise Refused(3, f"Elements of {kind} are not in the order of the schema")
    # An update may be partial, a switch of a version has no elements at all.
    missing = REQUIRED[kind] - set(names)
    if names and missing:
        raise Refused(3, f"Element {min(missing)} is missing in {kind}")


def _version_xml(version: Version) -> str:
    def truth(value: bool) -> str:
        return "true" if value else "false"

    def text(name: str, value: str, **attributes: str) -> str:
        element = ET.Element(f"virtualization:{name}", attributes)
        element.text = value
        return ET.tostring(element, encoding="unicode")

    image = version.image
    inner = ""
    if image:
        rows = [text("integritycheck", image.verdict_text, status=image.verdict)]
        for name in ORDER["instance"][1:]:
            if name == "identifier":
                rows.append(text(name, image.identifier))
            elif name == "network_traffic":
                rows += [text(name, "", **each) for each in image.traffic]
            elif name in image.fields:
                attributes = {key: value for key, value in image.attributes.get(name, {}).items() if key != "familyid"}
                rows.append(text(name, image.fields[name], **attributes))
        inner = (
            f'<virtualization:image id="{image.group_id}" name="Debian">'
            + text("description", image.description)
            + text("group", image.group)
            + text("identifier", str(uuid.uuid5(uuid.NAMESPACE_OID, str(image.group_id))))
            + text("notes", "")
            + f'<virtualization:instance id="{image.id}" flavourid="1" version={quoteattr(version.version)} '
            f'integrity="{truth(image.integrity)}" enabled="true" isprivate="false" protected="false">'
            + "".join(rows)
            + "</virtualization:instance></virtualization:image>"
        )
    return (
        f'<virtualization:instance id="{version.id}" version={quoteattr(version.version)} '
        f'published="{truth(version.published)}" createdon="2025-01-31T12:00:00Z" enabled="{truth(version.enabled)}" '
        f'archived="{truth(version.archived)}" status="{version.status}" expireson="{version.expires}">'
        + text("identifier", version.identifier)
        + text("notes", version.notes)
        + inner
        + "</virtualization:instance>"
    )


def _submitted(status: str, details: str, number: int) -> bytes:
    errors = [] if status == "success" else [{"message": ""}, {"message": details}]
    reply = {"status": status, "details": details, "submission_id": number, "errors": errors}
    return json.dumps({"egiappdb": reply}).encode()
