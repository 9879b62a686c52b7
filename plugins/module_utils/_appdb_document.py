# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The documents of EGI AppDB's REST API 1.0: what is sent for a version of a virtual appliance, and what comes back.

Source: the API's schema C(virtualization.xsd), and the rules of the portal's own parser (IASA-GR/appdb-core,
C(library/restapi_app.php)). The order of elements is the schema's. Sizes and memory are in bytes, lengths of texts are
counted in bytes of UTF-8, as that parser does.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
import typing as t
import xml.etree.ElementTree as ET

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

APPDB = "http://appdb.egi.eu/api/1.0/appdb"
VIRTUALIZATION = "http://appdb.egi.eu/api/1.0/virtualization"
APPLICATION = "http://appdb.egi.eu/api/1.0/application"
_PREFIXES = {"appdb": APPDB, "virtualization": VIRTUALIZATION, "application": APPLICATION}

HASHES = ("sha512", "sha384", "sha256", "sha224", "sha1", "md5")
DIRECTIONS = ("inbound", "outbound", "both")
PROTOCOLS = ("TCP", "UDP", "ICMP", "IPSec", "any")
LIMITS = {"version": (1, 20), "notes": (1, 1000), "description": (1, 1000), "group": (1, 50), "title": (0, 1000)}
"""Bytes that a text must have at least, and at most."""

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """A kind of network traffic that the image needs: direction, protocols (separated by spaces), CIDR, C(from:to)."""

    direction: str = "inbound"
    protocols: str = "TCP"
    ip_range: str = ""
    port_range: str = ""


@dataclasses.dataclass(frozen=True)
class Image:
    """The one VM image of a version. The identifiers are AppDB's; they are known of what it has already.

    :param integrity: whether AppDB shall fetch the image and compute size and checksum itself.
    """

    url: str
    size: int
    checksum: str
    hash: str = "sha512"
    format: str = "QCOW2"
    arch: str = "x86_64"
    os: str = "Linux"
    os_version: str = ""
    os_family: str = ""
    hypervisor: str = "KVM"
    cores: tuple[int, int] | None = None
    ram: tuple[int, int] | None = None
    traffic: tuple[Traffic, ...] = ()
    group: str = "General group"
    title: str = ""
    description: str = ""
    integrity: bool = False
    group_id: str = ""
    instance_id: str = ""
    identifier: str = ""
    verdict: str = ""
    verdict_text: str = ""


@dataclasses.dataclass(frozen=True)
class Version:
    """A version of an appliance. ``status`` is one of init, verify, verifypublish, verifing, verifingpublish, verified,
    failed, canceled and deleted."""

    version: str
    notes: str
    image: Image | None
    expires: str = ""
    id: str = ""
    identifier: str = ""
    published: bool = False
    enabled: bool = True
    archived: bool = False
    status: str = "init"
    created: str = ""
    checksums: tuple[str, ...] = ()
    """Of all its images: lists that were submitted may have several."""

    @property
    def working(self) -> bool:
        """Whether it is the appliance's working version, which can still be changed."""
        return not self.published and not self.archived and self.enabled and self.status != "deleted"

    @property
    def checking(self) -> bool:
        """Whether AppDB is verifying it."""
        return self.status in ("verify", "verifypublish", "verifing", "verifingpublish")


@dataclasses.dataclass(frozen=True)
class Appliance:
    """What AppDB has of an appliance; ``number`` is that of its software (C(appid)), empty where it was not told."""

    number: str = ""
    identifier: str = ""
    name: str = ""
    versions: tuple[Version, ...] = ()


@dataclasses.dataclass(frozen=True)
class Refusal:
    """An error as AppDB tells it: in attributes of a reply's root element. 1 is «access denied», 2 «not found»."""

    number: str
    text: str

    @classmethod
    def of(cls, root: ET.Element) -> Refusal | None:
        """The error of a reply; None where it tells none."""
        parts = [root.get("error", ""), root.get("errordesc", "")]
        text = ": ".join(dict.fromkeys(part.strip() for part in parts if part.strip()))
        if not text and root.get("errornum", "0") in ("", "0"):
            return None
        return cls(root.get("errornum", ""), text or f"error {root.get('errornum')}")


def check(key: str, text: str, *, where: str | None = None, mend: str | None = None) -> str:
    """A text without blanks around it, once AppDB would take it; raises FactoryError where it would not."""
    text = text.strip()
    least, most = LIMITS[key]
    size = len(text.encode("utf-8", "surrogatepass"))
    problem = None
    if size < least:
        problem = "must not be empty"
    elif size > most:
        problem = f"has {size} bytes, AppDB takes {most}"
    elif _CONTROL.search(text):
        problem = "has a character that no XML may have"
    elif key != "notes" and "<" in text:
        problem = "has «<», which AppDB would take for markup and remove"
    if problem:
        raise FactoryError(problem, where=where, key=key, mend=mend or f"change {key}")
    return text


def dump(number: str, version: Version, *, publish: bool | None = None) -> bytes:
    """The XML that has AppDB create or, where the version has an ``id``, update a version.

    :param number: the software's number in AppDB.
    :param publish: True: verify it and publish it then; False: only verify it; None: leave it as it is.
    """
    root, instance = _begin(number, version)
    instance.set("version", version.version)
    if publish is not None:
        instance.set("status", "verifypublish" if publish else "verify")
        instance.set("published", "true" if publish else "false")
    if version.expires:
        instance.set("expireson", version.expires)
    _text(instance, "identifier", version.identifier)
    _text(instance, "notes", version.notes)
    if version.image:
        _image(instance, version, version.image)
    return _bytes(root)


def switch(number: str, version: Version, *, enabled: bool | None = None, status: str | None = None) -> bytes:
    """The XML that enables or disables a version, or gives it a ``status`` (C(init) ends a check)."""
    root, instance = _begin(number, version)
    if enabled is not None:
        instance.set("enabled", "true" if enabled else "false")
    if status is not None:
        instance.set("status", status)
    return _bytes(root)


def _begin(number: str, version: Version) -> tuple[ET.Element, ET.Element]:
    for prefix, space in _PREFIXES.items():
        ET.register_namespace(prefix, space)
    root = ET.Element(f"{{{APPDB}}}appdb", {"datatype": "virtualization", "version": "1.0"})
    appliance = _add(root, "appliance", appid=number)
    instance = _add(appliance, "instance")
    if version.id:
        instance.set("id", version.id)
    return root, instance


def _image(parent: ET.Element, version: Version, image: Image) -> None:
    group = _add(parent, "image", **({"id": image.group_id} if image.group_id else {}))
    _text(group, "description", image.description)
    _text(group, "group", image.group)
    _text(group, "identifier", "")
    own = _add(group, "instance", **({"id": image.instance_id} if image.instance_id else {}))
    own.set("version", version.version)
    own.set("integrity", "true" if image.integrity else "false")
    _text(own, "arch", image.arch)
    system = _text(own, "os", image.os)
    system.set("version", image.os_version)
    if image.os_family:
        system.set("familyid", image.os_family)
    _text(own, "format", image.format)
    _text(own, "hypervisor", image.hypervisor)
    _text(own, "identifier", "")
    _text(own, "size", str(image.size))
    _text(own, "url", image.url)
    _text(own, "checksum", image.checksum).set("hash", image.hash)
    if image.cores:
        _add(own, "cores", minimum=str(image.cores[0]), recommended=str(image.cores[1]))
    for traffic in image.traffic:
        _add(own, "network_traffic", **{key: value for key, value in dataclasses.asdict(traffic).items() if value})
    if image.ram:
        _add(own, "ram", minimum=str(image.ram[0]), recommended=str(image.ram[1]))
    _text(own, "title", image.title)
    _text(own, "notes", "")
    _text(own, "description", version.notes)


def _add(parent: ET.Element, name: str, **attributes: str) -> ET.Element:
    return ET.SubElement(parent, f"{{{VIRTUALIZATION}}}{name}", attributes)


def _text(parent: ET.Element, name: str, text: str) -> ET.Element:
    element = _add(parent, name)
    element.text = text or None
    return element


def _bytes(root: ET.Element) -> bytes:
    data: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return data


def parse(root: ET.Element) -> Appliance:
    """What a reply to a GET, PUT or POST of C(virtualization) tells; an empty appliance where there is none yet."""
    number = identifier = name = ""
    versions: list[Version] = []
    for element in root.iter(f"{{{VIRTUALIZATION}}}appliance"):
        number = element.get("appid", number)
        identifier = element.get("identifier", identifier)
        name = element.get("name", name)
        versions += [_version(found) for found in element.findall(f"{{{VIRTUALIZATION}}}instance")]
    return Appliance(number, identifier, name, tuple(versions))


def software_number(root: ET.Element) -> str:
    """The number of the software that a reply to a GET of C(applications/…) tells; empty where it tells none."""
    found = root.find(f".//{{{APPLICATION}}}application")
    return found.get("id", "") if found is not None else ""


def _version(element: ET.Element) -> Version:
    group = element.find(f"{{{VIRTUALIZATION}}}image")
    own = group.find(f"{{{VIRTUALIZATION}}}instance") if group is not None else None
    return Version(
        version=element.get("version", ""),
        notes=_said(element, "notes"),
        image=_read_image(group, own) if group is not None and own is not None else None,
        expires=element.get("expireson", ""),
        id=element.get("id", ""),
        identifier=_said(element, "identifier"),
        published=_true(element, "published"),
        enabled=_true(element, "enabled", "true"),
        archived=_true(element, "archived"),
        status=element.get("status", "").strip().lower() or "init",
        created=element.get("createdon", ""),
        checksums=tuple(
            (found.text or "").strip().lower() for found in element.iter(f"{{{VIRTUALIZATION}}}checksum") if found.text
        ),
    )


def _read_image(group: ET.Element, own: ET.Element) -> Image:
    verdict = own.find(f"{{{VIRTUALIZATION}}}integritycheck")
    system = own.find(f"{{{VIRTUALIZATION}}}os")
    checksum = own.find(f"{{{VIRTUALIZATION}}}checksum")
    names = [field.name for field in dataclasses.fields(Traffic)]
    return Image(
        url=_said(own, "url"),
        size=_number(_said(own, "size")),
        checksum=_said(own, "checksum").lower(),
        hash=checksum.get("hash", "").lower() if checksum is not None else "",
        format=_said(own, "format"),
        arch=_said(own, "arch"),
        os=_said(own, "os"),
        os_version=system.get("version", "") if system is not None else "",
        os_family=system.get("familyid", "") if system is not None else "",
        hypervisor=_said(own, "hypervisor"),
        cores=_pair(own, "cores"),
        ram=_pair(own, "ram"),
        traffic=tuple(
            Traffic(**{name: found.get(name, "") for name in names})
            for found in own.findall(f"{{{VIRTUALIZATION}}}network_traffic")
        ),
        group=_said(group, "group"),
        title=_said(own, "title"),
        description=_said(group, "description"),
        integrity=_true(own, "integrity"),
        group_id=group.get("id", ""),
        instance_id=own.get("id", ""),
        identifier=_said(own, "identifier"),
        verdict=verdict.get("status", "") if verdict is not None else "",
        verdict_text=(verdict.text or "").strip() if verdict is not None else "",
    )


def _said(element: ET.Element, name: str) -> str:
    return (element.findtext(f"{{{VIRTUALIZATION}}}{name}") or "").strip()


def _true(element: ET.Element, name: str, default: str = "false") -> bool:
    return element.get(name, default).strip().lower() in ("true", "1", "t")


def _number(text: str) -> int:
    return int(text) if re.fullmatch(r"\d{1,19}", text) else 0


def _pair(element: ET.Element, name: str) -> tuple[int, int] | None:
    found = element.find(f"{{{VIRTUALIZATION}}}{name}")
    if found is None or not found.get("minimum"):
        return None
    return _number(found.get("minimum", "")), _number(found.get("recommended", ""))


_COMPARED = ("url", "size", "checksum", "hash", "format", "arch", "os", "os_version", "hypervisor", "cores", "ram")
_SHOWN = ("group", "title", "description", "integrity")
_IGNORES_CASE = ("format", "arch", "os", "hypervisor", "checksum", "hash")


def differences(wanted: Version, found: Version) -> dict[str, tuple[t.Any, t.Any]]:
    """What AppDB has otherwise than wanted: ``{key: (there, wanted)}``. What AppDB fills in itself is not compared."""
    differ: dict[str, tuple[t.Any, t.Any]] = {}
    if found.version != wanted.version:
        differ["version"] = (found.version, wanted.version)
    if found.notes != wanted.notes:
        differ["notes"] = (found.notes, wanted.notes)
    if wanted.expires and not _same_day(found.expires, wanted.expires):
        differ["expires"] = (found.expires, wanted.expires)
    if wanted.image is None:
        return differ
    if found.image is None:
        return {**differ, "image": (None, wanted.image.url)}
    for key in (*_COMPARED, *_SHOWN):
        ours, theirs = getattr(wanted.image, key), getattr(found.image, key)
        if key in ("size", "checksum", "hash") and wanted.image.integrity and not theirs:
            continue  # AppDB has not computed it yet
        if ours in (None, "") or (ours == theirs):
            continue
        if key in _IGNORES_CASE and str(ours).lower() == str(theirs).lower():
            continue
        differ[key] = (theirs, ours)
    # It cannot be taken away from what is there: the API takes no empty list.
    if wanted.image.traffic and sorted(map(dataclasses.astuple, wanted.image.traffic)) != sorted(
        map(dataclasses.astuple, found.image.traffic)
    ):
        differ["network_traffic"] = (_plain(found.image.traffic), _plain(wanted.image.traffic))
    return differ


def _same_day(one: str, other: str) -> bool:
    """Whether two dates are at most a day apart: AppDB tells them in a time zone of its own."""
    try:
        days = [datetime.date.fromisoformat(text[:10]) for text in (one, other)]
    except ValueError:
        return False
    return abs(days[0] - days[1]) <= datetime.timedelta(days=1)


def _plain(traffic: t.Iterable[Traffic]) -> list[dict[str, str]]:
    return [dataclasses.asdict(each) for each in traffic]


def same_content(wanted: Version, found: Version) -> bool | None:
    """Whether two versions have the same image, by checksum and size; None where AppDB does not tell its checksum."""
    if wanted.image is None or found.image is None:
        return False
    if not found.image.checksum or found.image.hash != wanted.image.hash:
        return None
    return (found.image.checksum, found.image.size) == (wanted.image.checksum.lower(), wanted.image.size)


def described(version: Version) -> dict[str, t.Any]:
    """A version as a module returns it."""
    image = dataclasses.asdict(version.image) if version.image else None
    if image:
        for key in ("cores", "ram"):
            pair = image.pop(key)
            image[key] = {"minimum": pair[0], "recommended": pair[1]} if pair else None
        image["network_traffic"] = list(image.pop("traffic"))
        image["integritycheck"] = {"status": image.pop("verdict"), "text": image.pop("verdict_text")}
    values = {key: value for key, value in dataclasses.asdict(version).items() if key not in ("image", "checksums")}
    return {**values, "image": image}
