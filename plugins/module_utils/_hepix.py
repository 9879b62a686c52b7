# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What is in a HEPiX image list: pure documents, without files, signatures or network.

The keys are the union of what vmcatcher (hepixvmitrust's vmitrustlib.py), atrope (image_list/hepix.py, image.py) and
cloudkeeper (entities/image_list.rb, appliance.rb) need, in the form that AppDB's lists have: numbers are text, sizes and
memory are in bytes, times are UTC with a «Z».
"""

from __future__ import annotations

import dataclasses
import datetime
import re
import typing as t
import uuid

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._versions import version_key

Document = dict[str, t.Any]

FOREVER = "2499-12-31T22:00:00Z"
"""The expiry of what never expires, as AppDB writes it: atrope and cloudkeeper drop images without any."""

FORMATS = ("qcow2", "raw", "vmdk", "vdi", "vhd", "vhdx", "ova")
"""What some consumer can use. Compressed disks and Vagrant's boxes are not among it."""

LIST_KEYS = (
    "dc:identifier",
    "dc:date:created",
    "dc:date:expires",
    "dc:description",
    "dc:source",
    "dc:title",
    "hv:endorser",
    "hv:images",
    "hv:uri",
    "hv:version",
    "ad:vo",
)
ENDORSER_KEYS = ("dc:creator", "hv:ca", "hv:dn", "hv:email")
IMAGE_KEYS = (
    "dc:identifier",
    "dc:title",
    "dc:description",
    "dc:date:expires",
    "hv:uri",
    "hv:size",
    "hv:version",
    "hv:hypervisor",
    "hv:format",
    "sl:arch",
    "sl:checksum:sha512",
    "sl:comments",
    "sl:os",
    "sl:osname",
    "sl:osversion",
    "ad:group",
    "ad:mpuri",
    "ad:user:fullname",
    "ad:user:guid",
    "ad:user:uri",
)
"""Without one of these, vmcatcher drops the image, atrope the whole list, or cloudkeeper the appliance."""

NAME, STABLE = "cloudimg:image", "cloudimg:identifier"
"""Keys of our own: the image's name, and its identifier that all of its versions share. Consumers ignore them."""

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_URL = re.compile(r"https?://[^\s/?#]+[^\s?#]*")
_VERSION = re.compile(r"\d+(\.\d+)*")
_SPAN = re.compile(r"(\d+)\s*([hdw])")
_HOURS = {"h": 1, "d": 24, "w": 7 * 24}


@dataclasses.dataclass(frozen=True)
class Meta:
    """What a list says of itself; None where the list that is there already (or a default) says it."""

    identifier: str | None = None
    title: str | None = None
    description: str | None = None
    source: str | None = None
    uri: str | None = None
    vo: str | None = None
    endorser_name: str | None = None
    endorser_email: str | None = None
    fields: t.Mapping[str, t.Any] | None = None


def span(text: str, key: str) -> datetime.timedelta:
    """A time span such as C(28d), C(12h), C(4w); raises FactoryError for any other."""
    found = _SPAN.fullmatch(text.strip())
    hours = int(found[1]) * _HOURS[found[2]] if found else 0
    if not 0 < hours < 24 * 36500:
        raise FactoryError(f"{text!r} is no time span", key=key, mend="give a number with h, d or w, such as 28d")
    return datetime.timedelta(hours=hours)


def check_url(url: str, key: str) -> str:
    """A URL without query; raises FactoryError for any other text."""
    if not _URL.fullmatch(url):
        raise FactoryError(f"{url!r} is no http(s) URL", key=key, mend="give one such as https://images.example.org/x")
    return url


def check_uuid(text: str, key: str) -> str:
    """A UUID in lower case; raises FactoryError for any other text."""
    if not _UUID.fullmatch(text):
        raise FactoryError(f"{text!r} is no UUID", key=key, mend="give one as «uuidgen» prints it, or leave it out")
    return text.lower()


def check_version(text: str, key: str) -> str:
    """The version of a list, which all consumers compare alike: numbers and dots; raises FactoryError for others."""
    if not _VERSION.fullmatch(text):
        raise FactoryError(f"{text!r} is no version of a list", key=key, mend="give numbers with dots, such as 1.0.7")
    return text


def next_version(former: str | None, moment: datetime.datetime) -> str:
    """A timestamp as AppDB has it, or the former version with its last number raised where that one is not lower."""
    stamp = moment.astimezone(datetime.timezone.utc).strftime("%Y%m%d%H%M%S")
    if former is None or version_key(former) < version_key(stamp):
        return stamp
    head, last = re.fullmatch(r"(.*?)(\d*)", former, re.DOTALL).groups()  # type: ignore[union-attr]
    return f"{head}{int(last or 0) + 1}"


def extra_fields(fields: t.Mapping[str, t.Any], taken: t.Container[str], key: str) -> dict[str, str]:
    """Further keys as text, all with a prefix; raises FactoryError for one without, or one that something else sets."""
    for name in fields:
        prefix, sign, rest = str(name).partition(":")
        if not (sign and rest and prefix in ("ad", "dc", "hv", "sl")):
            mend = "write the prefix along, such as ad:group (ad, dc, hv or sl)"
            raise FactoryError(f"{name!r} is no key of a list", key=key, mend=mend)
        if name in taken:
            mend = "leave it out: other options, the build or the certificate say it"
            raise FactoryError(f"{name} cannot be set here", key=key, mend=mend)
    return {str(name): _text(value) for name, value in fields.items()}


def _text(value: t.Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def head(meta: Meta, former: Document | None, dn: str, ca: str, email: str | None) -> Document:
    """All of a list but its images, version and times.

    :param former: the list that is there already.
    :param dn: subject of the signer's certificate, ``ca`` its issuer, ``email`` its address.
    :raises FactoryError: something is missing, or contradicts the list that is there.
    """
    known = former or {}
    endorser = (known.get("hv:endorser") or {}).get("hv:x509") or {}

    def choose(option: str, given: str | None, *others: t.Any) -> str:
        for value in (given, *others):
            if value is not None and str(value).strip():
                return str(value)
        raise FactoryError("is missing", key=option, mend="give it; a new list needs it")

    uri = check_url(choose("uri", meta.uri, known.get("hv:uri")), "uri")
    wanted = check_uuid(meta.identifier, "identifier") if meta.identifier else None
    identifier = choose("identifier", wanted, known.get("dc:identifier"), str(uuid.uuid5(uuid.NAMESPACE_URL, uri)))
    if former is not None and known.get("dc:identifier") not in (None, identifier):
        raise FactoryError(
            f"is {identifier}, the list that is there is {known['dc:identifier']}",
            key="identifier",
            mend="give the identifier of that list, or the path of another one",
        )
    title = choose("title", meta.title, known.get("dc:title"))
    own = {
        "dc:identifier": identifier,
        "dc:title": title,
        "dc:description": choose("description", meta.description, known.get("dc:description"), title),
        "dc:source": choose("source", meta.source, known.get("dc:source"), uri),
        "hv:uri": uri,
        "ad:vo": choose("vo", meta.vo, known.get("ad:vo")),
        "hv:endorser": {
            "hv:x509": {
                "dc:creator": choose("endorser_name", meta.endorser_name, endorser.get("dc:creator")),
                "hv:email": choose("endorser_email", meta.endorser_email, endorser.get("hv:email"), email),
                "hv:dn": dn,
                "hv:ca": ca,
            }
        },
    }
    if meta.fields is None:
        more = {key: value for key, value in known.items() if key not in LIST_KEYS}
    else:
        more = extra_fields(meta.fields, LIST_KEYS, "fields")
    return {**more, **own}


def images(document: Document) -> list[Document]:
    """What is below C(hv:image) in each element of C(hv:images); others are left out."""
    rows = document.get("hv:images")
    found = [row.get("hv:image") for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return [entry for entry in found if isinstance(entry, dict)]


def missing(document: Document) -> list[str]:
    """The keys that a list lacks and that some consumer needs, as C(hv:images[0].sl:arch)."""
    endorser = document.get("hv:endorser")
    person = endorser.get("hv:x509") if isinstance(endorser, dict) else None
    lacks = [key for key in LIST_KEYS if document.get(key) is None]
    if isinstance(endorser, dict):
        person = person if isinstance(person, dict) else {}
        lacks += [f"hv:endorser.hv:x509.{key}" for key in ENDORSER_KEYS if person.get(key) is None]
    rows = document.get("hv:images")
    for number, row in enumerate(rows if isinstance(rows, list) else []):
        entry = row.get("hv:image") if isinstance(row, dict) else None
        entry = entry if isinstance(entry, dict) else {}
        lacks += [f"hv:images[{number}].{key}" for key in IMAGE_KEYS if entry.get(key) is None]
    return lacks


def difference(before: Document | None, after: Document) -> dict[str, t.Any]:
    """What differs between two lists, for C(--diff): keys of the list, and images by their identifiers."""
    former = before or {}
    shown: dict[str, t.Any] = {"before": {}, "after": {}}
    for side, one, other in (("before", former, after), ("after", after, former)):
        for key, value in one.items():
            if key != "hv:images" and other.get(key) != value:
                shown[side][key] = value
        known = {str(entry.get("dc:identifier")): entry for entry in images(other)}
        rows = {str(entry.get("dc:identifier")): entry for entry in images(one)}
        changed = {key: entry for key, entry in rows.items() if known.get(key) != entry}
        if changed:
            shown[side]["hv:images"] = changed
    return shown
