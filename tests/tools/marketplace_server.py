# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A StratusLab Marketplace for tests: it takes, keeps and lists metadata by the rules of the one that was written in Java.

Nothing of the collection is used here: signatures are judged by xmlsec1, certificates by openssl, the rules are those of
MDataResourceBase, ValidateXMLSignature, ValidateMetadataConstraints, SparqlBuilder and MDatumResource (StratusLab/marketplace and
StratusLab/metadata). What it keeps, it writes again as Java does, so that clients get other bytes than they sent.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import dataclasses
import datetime
import http.server
import re
import socket
import struct
import subprocess
import tempfile
import threading
import typing as t
import uuid
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from lxml import etree

HEADER = '<?xml version="1.0" encoding="UTF-8" standalone="no"?>'
DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
NS = {
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dcterms": "http://purl.org/dc/terms/",
    "slreq": "http://mp.stratuslab.eu/slreq#",
    "slterms": "http://mp.stratuslab.eu/slterms#",
    "ds": "http://www.w3.org/2000/09/xmldsig#",
}
ONCE = ("serial-number", "version", "deprecated", "os", "os-arch", "os-version")
MOST = 10_240_000
PAGE = b"<!DOCTYPE html><html><head><title>Please log in</title></head><body>portal</body></html>"

Key = tuple[str, str, str]


class Refused(Exception):
    """An error as the server answers it."""

    def __init__(self, status: int, problem: str) -> None:
        super().__init__(problem)
        self.status = status


def as_java(root: t.Any) -> bytes:
    """A document as Java's DOM serialiser writes it: declarations and attributes by name, no empty end tags."""

    def escape(text: str, more: str = "") -> str:
        for char, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("\r", "&#13;")):
            text = text.replace(char, name)
        return text.replace('"', "&quot;") if more else text

    def name(qualified: str, element: t.Any) -> str:
        found = etree.QName(qualified)
        if found.namespace == "http://www.w3.org/XML/1998/namespace":
            return f"xml:{found.localname}"
        prefix = next((key for key, value in element.nsmap.items() if value == found.namespace and key), None)
        return f"{prefix}:{found.localname}" if prefix else found.localname

    def write(element: t.Any, outer: dict[str | None, str]) -> str:
        tag = f"{element.prefix}:{etree.QName(element).localname}" if element.prefix else etree.QName(element).localname
        own = {key: value for key, value in element.nsmap.items() if outer.get(key) != value}
        words = [tag]
        words += sorted(f'xmlns{":" + key if key else ""}="{value}"' for key, value in own.items())
        words += sorted(f'{name(key, element)}="{escape(value, "x")}"' for key, value in element.attrib.items())
        inner = escape(element.text or "")
        inner += "".join(write(child, element.nsmap) + escape(child.tail or "") for child in element)
        return f"<{' '.join(words)}>{inner}</{tag}>" if inner else f"<{' '.join(words)}/>"

    return (HEADER + write(root, {})).encode()


def text(element: t.Any, path: str) -> str:
    """XPath's string value of the first element found."""
    return str(element.xpath(f"string({path})", namespaces=NS))


def number_of(identifier: str) -> int:
    """MetadataUtils.identifierToSha1."""
    if len(identifier) != 27 or any(char not in DIGITS for char in identifier):
        raise Refused(400, "invalid metadata: invalid identifier")
    value = 0
    for char in identifier:
        value = value << 6 | DIGITS.index(char)
    return value


def is_date(value: str) -> bool:
    """ValidateMetadataConstraints.isValidDate: nothing is a date, too."""
    if not value:
        return True
    with contextlib.suppress(ValueError):
        return bool(datetime.datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ"))
    return False


def openssl(certificate: bytes, *words: str) -> str:
    """What openssl says of a certificate."""
    done = subprocess.run(
        ["openssl", "x509", "-inform", "DER", "-noout", *words], input=certificate, capture_output=True, check=True
    )
    return done.stdout.decode().strip()


def judge(octets: bytes) -> Key:
    """All that the server asks of a document, but for its age; returns its coordinates."""

    def invalid(problem: str) -> t.NoReturn:
        raise Refused(400, f"invalid metadata: {problem}")

    try:
        root = etree.fromstring(octets, etree.XMLParser(resolve_entities=False, no_network=True))
    except etree.XMLSyntaxError as exc:
        invalid(f"unable to parse XML document: {exc}")
    signatures = root.xpath("//ds:Signature", namespaces=NS)
    if not signatures:
        invalid("no signature")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "metadata.xml")
        path.write_bytes(octets)
        # The Marketplace believes whatever certificate comes along (X509KeySelector).
        done = subprocess.run(["xmlsec1", "--verify", "--insecure", str(path)], capture_output=True, check=False)
        if done.returncode:
            invalid("signature validation: false")
    certificate = base64.b64decode(text(root, "//ds:X509Certificate"))
    for name in ("subject", "issuer"):
        wanted = openssl(certificate, f"-{name}", "-nameopt", "RFC2253,-esc_msb,utf8").partition("=")[2].strip()
        if text(root, f"//slreq:{name}") != wanted:
            invalid(f"endorser inconsistency ({name}): {wanted} != {text(root, f'//slreq:{name}')}")
    email = re.search(r"email:([^,\s]+)", openssl(certificate, "-ext", "subjectAltName"))
    if email and text(root, "//slreq:email") != email[1]:
        invalid(f"endorser inconsistency (email): {email[1]} != {text(root, '//slreq:email')}")
    about = "//rdf:RDF/rdf:Description"
    for query, problem in (
        ("string(//rdf:RDF/@xml:base)='http://mp.stratuslab.eu/'", "root element must have xml:base attribute"),
        (f"count({about}/dcterms:type)=1", "description must have exactly 1 dcterms:type element"),
        (f"count({about}/dcterms:type/*)=0", "dcterms:type cannot have child elements"),
        (f"count({about}/slreq:checksum/slreq:algorithm[text()='SHA-1'])=1", "exactly 1 checksum element using SHA-1"),
        *((f"count({about}/slterms:{name})<=1", f"at most 1 slterms:{name} element") for name in ONCE),
    ):
        if not root.xpath(query, namespaces=NS):
            invalid(problem)
    identifier = text(root, f"{about}/dcterms:identifier")
    if text(root, f"{about}/@rdf:about") != f"#{identifier}":
        invalid("rdf:about attribute and dcterms:identifier are not consistent")
    sha1 = text(root, f"{about}/slreq:checksum/slreq:value[preceding-sibling::slreq:algorithm='SHA-1']")
    if int(sha1, 16) != number_of(identifier):
        invalid("checksum from identifier and SHA-1 checksum are not consistent")
    created = text(root, f"{about}/slreq:endorsement/dcterms:created")
    for value in (text(root, f"{about}/dcterms:valid"), created):
        if not is_date(value):
            invalid(f"{value} is not a valid date")
    for element in root.xpath(f"{about}//*[*]", namespaces=NS):
        if element.get(f"{{{NS['rdf']}}}parseType") != "Resource":
            invalid(f"{element.tag}: expected a node element")
    return identifier, text(root, "//slreq:endorser/slreq:email"), created


@dataclasses.dataclass
class Asked:
    """A request that came."""

    method: str
    path: str
    query: dict[str, str]
    body: bytes


class Marketplace:
    """The server, on a port of loopback; a context manager.

    :ivar entries: what it keeps, by identifier, e-mail address and date.
    :ivar pending: what waits for its endorser to answer a mail, by the token in it.
    :ivar confirm: whether it checks addresses by mail (VALIDATE_EMAIL); ``replica``: whether it takes nothing.
    :ivar faults: what it does to the next requests instead of answering: C(500), C(403), C(503), C(html), C(nothing), C(reset),
        C(later) (it does what it was asked, and answers nothing); a list for each method.
    """

    def __init__(self) -> None:
        self.entries: dict[Key, bytes] = {}
        self.pending: dict[str, bytes] = {}
        self.confirm = False
        self.replica = False
        self.faults: dict[str, list[str]] = collections.defaultdict(list)
        self.asked: list[Asked] = []
        self._lock = threading.Lock()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Marketplace:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def answer(self, token: str) -> Key:
        """The endorser follows the link in the mail."""
        octets = self.pending.pop(token)
        return self._commit(judge(octets), octets)

    def requests(self, method: str) -> int:
        """How many requests of that method came."""
        return sum(one.method == method for one in self.asked)

    def take(self, octets: bytes, media_type: str) -> tuple[int, str, str]:
        """MDataResource, POST: status, text, location."""
        if media_type not in ("application/xml", "application/rdf+xml"):
            raise Refused(415, media_type)
        if self.replica:
            raise Refused(403, "read-only repository")
        if len(octets) > MOST:
            raise Refused(413, "too large")
        key = judge(octets)
        with self._lock:
            latest = max((one[2] for one in self.entries if one[:2] == key[:2]), default="")
            if key[2] < latest:
                raise Refused(400, "invalid metadata: older than latest entry")
            if self.confirm:
                self.pending[str(uuid.uuid4())] = octets
                return 202, "confirmation email sent for new metadata entry\n", ""
            self._commit(key, octets)
        # The path of an entry begins with a slash, and so there are two.
        return 201, "metadata entry created", f"{self.url}/metadata//{'/'.join(key)}"

    def _commit(self, key: Key, octets: bytes) -> Key:
        self.entries[key] = as_java(etree.fromstring(octets))
        return key

    def listing(self, parts: t.Sequence[str], status: str) -> bytes:
        """MDataResource, GET as XML: the newest entry of each identifier and address, filtered."""
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        newest = {key[:2]: key for key in sorted(self.entries)}
        found = []
        for key in newest.values():
            root = etree.fromstring(self.entries[key])
            valid = text(root, "//dcterms:valid") > now
            kind = (
                "deprecated" if root.xpath("//slterms:deprecated", namespaces=NS) else "valid" if valid else "expired"
            )
            wanted = [part == key[1] if "@" in part else part == key[0] for part in parts]
            if all(wanted) and status in (kind, "all"):
                found.append(self.entries[key].decode().removeprefix(HEADER))
        if not found:
            raise Refused(404, "no metadata matching query found")
        return f"{HEADER}<metadata>{''.join(found)}</metadata>".encode()


def _handler(market: Marketplace) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        """One request."""

        def log_message(self, *_args: object) -> None:
            """Say nothing."""

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if len(body) < int(self.headers.get("Content-Length", 0)):
                return  # it was cut off on its way
            fault = self._begin(body)
            if fault not in ("", "later"):
                return
            try:
                if urlsplit(self.path).path.rstrip("/") != "/metadata":
                    raise Refused(404, "not found")
                media_type = self.headers.get("Content-Type", "").partition(";")[0].strip()
                status, said, place = market.take(body, media_type)
            except Refused as exc:
                self._page(exc)
                return
            if fault == "later":
                self._reset(struct.pack("ii", 0, 0))
                return
            self._send(status, said.encode(), "text/plain", place)

        def do_GET(self) -> None:
            if self._begin(b""):
                return
            parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
            query = {key: values[-1] for key, values in parse_qs(urlsplit(self.path).query).items()}
            try:
                if parts[0] != "metadata" or len(parts) > 4:
                    raise Refused(404, "not found")
                if "xml" not in self.headers.get("Accept", ""):
                    self._send(200, PAGE, "text/html")
                elif len(parts) == 4:
                    octets = market.entries.get((parts[1], parts[2], parts[3]))
                    if octets is None:
                        raise Refused(404, "metadata entry not found.\n")
                    self._send(200, octets, "application/rdf+xml")
                else:
                    octets = market.listing(parts[1:], query.get("status", "valid"))
                    self._send(200, octets, "application/xml")
            except Refused as exc:
                self._page(exc)

        def _begin(self, body: bytes) -> str:
            parts = urlsplit(self.path)
            query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
            market.asked.append(Asked(self.command, unquote(parts.path), query, body))
            faults = market.faults[self.command]
            fault = faults.pop(0) if faults else ""
            if fault.isdigit():
                self._page(Refused(int(fault), "read-only repository" if fault == "403" else "Internal Server Error"))
            elif fault == "html":
                self._send(200, PAGE, "text/html")
            elif fault == "nothing":
                self._send(200, b"", "application/xml")
            elif fault == "silence":
                self._reset(struct.pack("ii", 0, 0))
            elif fault == "reset":
                self._reset(struct.pack("ii", 1, 0))
            return fault

        def _reset(self, linger: bytes) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.connection.shutdown(socket.SHUT_RDWR)

        def _page(self, exc: Refused) -> None:
            """Restlet's page about an error."""
            page = f"<html>\n<head>\n   <title>Status page</title>\n</head>\n<body>\n<p style='a'>{exc}</p>\n</body>\n</html>"
            self._send(exc.status, page.encode(), "text/html;charset=UTF-8")

        def _send(self, status: int, body: bytes, media_type: str, place: str = "") -> None:
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.send_header("Content-Type", media_type)
                self.send_header("Content-Length", str(len(body)))
                if place:
                    self.send_header("Location", place)
                self.end_headers()
                self.wfile.write(body)

    return Handler
