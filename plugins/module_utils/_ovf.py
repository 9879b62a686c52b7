# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The description of an appliance (OVF): which disks it has, and in which files they are.

Source of the format: DMTF DSP0243, «Open Virtualization Format Specification» 1.1 and 2.1; names are compared without their
name spaces, which differ between those. A document type, and with it every entity, is refused before anything of it counts.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils import _xml
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

LARGEST = 1 << 20
"""Bytes that a description may have; VirtualBox's and VMware's have some ten thousand."""

_MEND = "export the appliance anew where it comes from"
_UNITS = {"byte": 1, "bytes": 1, "kilobytes": 1 << 10, "megabytes": 1 << 20, "gigabytes": 1 << 30}
_POWER = re.compile(r"byte\s*\*\s*2\s*\^\s*(\d{1,2})")


@dataclasses.dataclass(frozen=True)
class OvfDisk:
    """One disk: its identifier, its file in the appliance, its size in bytes as far as it is told, its compression."""

    name: str
    file: str
    capacity: int | None = None
    compression: str = ""


@dataclasses.dataclass(frozen=True)
class _Element:
    tag: str
    attributes: dict[str, str]


def read_disks(data: bytes, where: str) -> list[OvfDisk]:
    """The disks of an appliance that have a file, in the order in which they are told.

    :param where: the description, for messages.
    :raises FactoryError: it is no OVF, has a document type, or a disk's file is not told or not in the appliance.
    """
    elements = _parse(data, where)
    if not elements or elements[0].tag != "Envelope":
        _refuse("is no OVF (it has no Envelope)", where)
    files = {element.attributes.get("id", ""): element.attributes for element in elements if element.tag == "File"}
    found = []
    for disk in (
        element.attributes for element in elements if element.tag == "Disk" and "diskId" in element.attributes
    ):
        name, reference = disk["diskId"], disk.get("fileRef")
        if disk.get("parentRef"):
            _refuse(f"the disk {name!r} is a difference to another one", where)
        if reference is None:
            continue  # an empty disk, made when the appliance is deployed
        if reference not in files:
            _refuse(f"the disk {name!r} refers to the file {reference!r}, which is not there", where)
        file = files[reference]
        if not file.get("href") or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", file["href"]):
            _refuse(f"the disk {name!r} is not in the appliance, but at {file.get('href', '')!r}", where)
        if file.get("chunkSize"):
            _refuse(f"the disk {name!r} is split into several files", where)
        compression = file.get("compression", "").lower()
        if compression not in ("", "identity", "gzip"):
            _refuse(f"the disk {name!r} is compressed by {compression!r}, which is not known", where)
        href = file["href"][2:] if file["href"].startswith("./") else file["href"]
        found.append(OvfDisk(name, href, _capacity(disk, where), "gzip" if compression == "gzip" else ""))
    return found


def _capacity(disk: t.Mapping[str, str], where: str) -> int | None:
    text = disk.get("capacity", "")
    if not re.fullmatch(r"\d{1,19}", text):
        return None  # a reference to a property, or nothing
    unit = " ".join(disk.get("capacityAllocationUnits", "byte").lower().split())
    power = _POWER.fullmatch(unit)
    if not power and unit not in _UNITS:
        _refuse(f"the disk {disk['diskId']!r} has a size in {unit!r}, which is not known", where)
    return int(text) * (1 << int(power[1]) if power else _UNITS[unit])


def _parse(data: bytes, where: str) -> list[_Element]:
    """All elements in the order of the document, with their local names."""
    root = _xml.parse(data, where, mend=_MEND, largest=LARGEST)
    return [
        _Element(_local(element.tag), {_local(name): value for name, value in element.attrib.items()})
        for element in root.iter()
    ]


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _refuse(problem: str, where: str) -> t.NoReturn:
    raise FactoryError(problem, where=where, mend=_MEND)
