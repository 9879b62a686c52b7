# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The metadata of an image as StratusLab's Marketplace knows it: RDF/XML, made and read.

The format is that of StratusLab/metadata (image-metadata.xsd, slreq.xsd, slterms.xsd, MetadataUtils.java) and of the template
of StratusLab/client (manifest.xml.tpl, ManifestInfo.py). Elements are those of lxml; names are C({namespace}local).
"""

from __future__ import annotations

import copy
import dataclasses
import re
import string
import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._libraries import need

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
DCTERMS = "{http://purl.org/dc/terms/}"
SLREQ = "{http://mp.stratuslab.eu/slreq#}"
SLTERMS = "{http://mp.stratuslab.eu/slterms#}"
DS = "{http://www.w3.org/2000/09/xmldsig#}"
PREFIXES = {"rdf": RDF[1:-1], "dcterms": DCTERMS[1:-1], "slreq": SLREQ[1:-1], "slterms": SLTERMS[1:-1]}

XML_BASE = "{http://www.w3.org/XML/1998/namespace}base"
BASE = "http://mp.stratuslab.eu/"
"""What xml:base has to be (MetadataNamespaceContext.java)."""

ALGORITHMS = {"md5": "MD5", "sha1": "SHA-1", "sha256": "SHA-256", "sha512": "SHA-512"}
"""Our names of checksums, and the Marketplace's."""

EMAIL = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+")
"""PatternUtils.java: what is no such address cannot be asked for by it."""

IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{27}")
_DIGITS = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_RESOURCE = {f"{RDF}parseType": "Resource"}

_PLAIN = (
    ("type", DCTERMS, "type"),
    ("kind", SLTERMS, "kind"),
    ("os", SLTERMS, "os"),
    ("os_version", SLTERMS, "os-version"),
    ("os_arch", SLTERMS, "os-arch"),
    ("version", SLTERMS, "version"),
    ("compression", DCTERMS, "compression"),
    ("format", DCTERMS, "format"),
    ("creator", DCTERMS, "creator"),
    ("created", DCTERMS, "created"),
    ("valid", DCTERMS, "valid"),
    ("title", DCTERMS, "title"),
    ("tag", DCTERMS, "alternative"),
    ("description", DCTERMS, "description"),
    ("hypervisor", SLTERMS, "hypervisor"),
    ("disks_bus", SLTERMS, "disks-bus"),
    ("publisher", DCTERMS, "publisher"),
    ("serial_number", SLTERMS, "serial-number"),
    ("deprecated", SLTERMS, "deprecated"),
)
"""What is read as one text: our key, namespace, element."""

_NEEDED = ("type", "created", "valid", "description", "compression", "os", "os_arch", "os_version", "version")
"""Elements without which StratusLab's client does not read a document (ManifestInfo.py), be they empty."""


def identifier(sha1: str) -> str:
    """The identifier of an image: its SHA-1 (hex) as a number in base 64, 27 digits, the most significant first.

    MetadataUtils.java, sha1ToIdentifier. It is not the Base64 of the digest, which would pad at the other end.
    """
    number, text = int(sha1, 16), ""
    for _place in range(27):
        number, digit = divmod(number, 64)
        text = _DIGITS[digit] + text
    return text


def identifier_sha1(text: str) -> str | None:
    """The SHA-1 (40 hex digits) of an identifier; None for what is none."""
    if not IDENTIFIER.fullmatch(text):
        return None
    number = 0
    for char in text:
        number = number * 64 + _DIGITS.index(char)
    return f"{number:040x}" if number >> 160 == 0 else None


@dataclasses.dataclass(frozen=True)
class Content:
    """What a document says of an image, apart from who endorses it. Times are UTC, by _descriptor.format_time.

    ``size`` (bytes) and ``checksums`` (by our names, lower-case hex) are those of the image as a machine would have it on its
    disk, not of a file in which it is compressed; ``compression`` is that of the file at ``locations``.
    """

    size: int
    checksums: dict[str, str]
    os: str
    os_version: str
    os_arch: str
    version: str
    format: str
    created: str
    valid: str
    type: str = "base"
    kind: str = "machine"
    compression: str = ""
    locations: tuple[str, ...] = ()
    creator: str = ""
    title: str = ""
    tag: str = ""
    description: str = ""
    hypervisor: str = ""
    disks_bus: str = ""
    publisher: str = ""
    inbound_ports: tuple[int, ...] = ()

    def elements(self, where: str) -> list[t.Any]:
        """The children of rdf:Description, without the endorsement, in the order that the schema asks for.

        :raises FactoryError: a text has characters that XML cannot have; the message names it.
        """
        made = [
            _text(f"{DCTERMS}identifier", identifier(self.checksums["sha1"])),
            _text(f"{SLREQ}bytes", str(self.size)),
            *(_checksum(name, self.checksums[ours]) for ours, name in ALGORITHMS.items() if ours in self.checksums),
        ]
        for key, namespace, name in _PLAIN:
            value = str(getattr(self, key, ""))
            if _NOT_XML.search(value):
                raise FactoryError(
                    "has a character that XML cannot have", where=where, key=key, mend="leave control characters out"
                )
            if key == "format":
                made += [_text(f"{SLTERMS}location", location) for location in self.locations]
            if key == "publisher":
                made += [_text(f"{SLTERMS}inbound-port", str(port)) for port in self.inbound_ports]
            if value or key in _NEEDED:
                made.append(
                    _text(f"{namespace}{name}", " ".join(value.split()) if key != "description" else _lines(value))
                )
        return made


@dataclasses.dataclass(frozen=True)
class Endorsement:
    """Who vouches for an image, and since when; ``subject`` and ``issuer`` as Java writes names (RFC 2253)."""

    created: str
    email: str
    subject: str
    issuer: str

    def element(self) -> t.Any:
        """The element slreq:endorsement."""
        etree = need("lxml.etree")
        found = etree.Element(f"{SLREQ}endorsement", _RESOURCE, nsmap=PREFIXES)
        etree.SubElement(found, f"{DCTERMS}created").text = self.created
        endorser = etree.SubElement(found, f"{SLREQ}endorser", _RESOURCE)
        for name in ("email", "subject", "issuer"):
            etree.SubElement(endorser, f"{SLREQ}{name}").text = getattr(self, name)
        return found


def assemble(elements: t.Sequence[t.Any], endorsement: Endorsement) -> t.Any:
    """The document (its root element) of the children of an rdf:Description and an endorsement, without a signature."""
    etree = need("lxml.etree")
    root = etree.Element(f"{RDF}RDF", {XML_BASE: BASE}, nsmap=PREFIXES)
    name = next((one.text for one in elements if one.tag == f"{DCTERMS}identifier"), "")
    description = etree.SubElement(root, f"{RDF}Description", {f"{RDF}about": f"#{name}"})
    required = [one for one in elements if one.tag.startswith(SLREQ) or one.tag == f"{DCTERMS}identifier"]
    others = [one for one in elements if one not in required]
    description.extend([copy.deepcopy(one) for one in required])
    description.append(endorsement.element())
    description.extend([copy.deepcopy(one) for one in others])
    etree.indent(root)
    return root


def children(root: t.Any) -> list[t.Any]:
    """The children of a document's rdf:Description, without the endorsement."""
    return [one for one in root.find(f"{RDF}Description") if one.tag != f"{SLREQ}endorsement"]


def deprecated(elements: t.Sequence[t.Any], reason: str) -> list[t.Any]:
    """The same children with slterms:deprecated saying ``reason``."""
    if _NOT_XML.search(reason):
        raise FactoryError("has a character that XML cannot have", key="reason", mend="leave control characters out")
    kept = [one for one in elements if one.tag != f"{SLTERMS}deprecated"]
    return [*kept, _text(f"{SLTERMS}deprecated", " ".join(reason.split()))]


def same(one: t.Sequence[t.Any], other: t.Sequence[t.Any]) -> bool:
    """Whether two lists of children say the same, whatever their layout."""
    return [_plain(element) for element in one] == [_plain(element) for element in other]


def read(root: t.Any) -> dict[str, t.Any]:
    """What a document says, as modules return it; texts that are missing are left out."""
    about = root.find(f"{RDF}Description")
    found: dict[str, t.Any] = {"identifier": _value(about.find(f"{DCTERMS}identifier"))}
    size = _value(about.find(f"{SLREQ}bytes"))
    found["size"] = int(size) if size.isascii() and size.isdigit() else None
    names = {name: ours for ours, name in ALGORITHMS.items()}
    found["checksums"] = {}
    for checksum in about.findall(f"{SLREQ}checksum"):
        algorithm = _value(checksum.find(f"{SLREQ}algorithm"))
        found["checksums"][names.get(algorithm, algorithm)] = _value(checksum.find(f"{SLREQ}value")).lower()
    endorsement = about.find(f"{SLREQ}endorsement")
    endorser = endorsement.find(f"{SLREQ}endorser") if endorsement is not None else None
    found["endorsement"] = {"created": _value(endorsement.find(f"{DCTERMS}created"))} if endorsement is not None else {}
    if endorser is not None:
        found["endorsement"].update(
            {name: _value(endorser.find(f"{SLREQ}{name}")) for name in ("email", "subject", "issuer")}
        )
    for key, namespace, name in _PLAIN:
        element = about.find(f"{namespace}{name}")
        if element is not None:
            found[key] = _value(element)
    found["locations"] = [_value(one) for one in about.findall(f"{SLTERMS}location")]
    found["inbound_ports"] = [_value(one) for one in about.findall(f"{SLTERMS}inbound-port")]
    return found


def status(entry: t.Mapping[str, t.Any], now: str | None = None) -> str:
    """C(deprecated), C(expired) or C(valid), as the Marketplace sorts them (SparqlBuilder.java)."""
    if "deprecated" in entry:
        return "deprecated"
    return "expired" if (entry.get("valid") or "") <= (now or _descriptor.now()) else "valid"


def _text(tag: str, value: str) -> t.Any:
    element = need("lxml.etree").Element(tag, nsmap=PREFIXES)
    element.text = value or None
    return element


def _checksum(name: str, value: str) -> t.Any:
    etree = need("lxml.etree")
    element = etree.Element(f"{SLREQ}checksum", _RESOURCE, nsmap=PREFIXES)
    etree.SubElement(element, f"{SLREQ}algorithm").text = name
    etree.SubElement(element, f"{SLREQ}value").text = value
    return element


def _lines(text: str) -> str:
    """Text without what XML readers would change: only line feeds end lines."""
    return "\n".join(line.rstrip() for line in text.replace("\r\n", "\n").replace("\r", "\n").strip().split("\n"))


def _value(element: t.Any) -> str:
    return "" if element is None else (element.text or "")


def _plain(element: t.Any) -> tuple[t.Any, ...]:
    inner = tuple(_plain(child) for child in element)
    return (element.tag, tuple(sorted(element.attrib.items())), None if inner else (element.text or ""), inner)
