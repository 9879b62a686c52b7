# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The descriptor of a virtual machine with one disk, as OVF 1.0 or 2.0.

Sources: DMTF DSP0243 (Open Virtualization Format Specification) 1.1 and 2.1; the CIM classes CIM_ResourceAllocationSettingData
(DSP8041 and its schema), CIM_OperatingSystem for the numbers of operating systems.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t
import xml.etree.ElementTree as ET

VERSIONS = ("1.0", "2.0")
CONTROLLERS = {
    # name: resource type, subtype
    "ide": (5, "PIIX4"),
    "sata": (20, "AHCI"),
    "lsilogic": (6, "lsilogic"),
    "pvscsi": (6, "VirtualSCSI"),
}
NICS = {"vmxnet3": "VmxNet3", "e1000": "E1000", "virtio": "virtio"}

_ENVELOPES = {"1.0": "http://schemas.dmtf.org/ovf/envelope/1", "2.0": "http://schemas.dmtf.org/ovf/envelope/2"}
_CIM = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_"
_RASD = f"{_CIM}ResourceAllocationSettingData"
_VSSD = f"{_CIM}VirtualSystemSettingData"
_SASD = f"{_CIM}StorageAllocationSettingData.xsd"
_EPASD = f"{_CIM}EthernetPortAllocationSettingData.xsd"
_VBOX = "http://www.virtualbox.org/ovf/machine"
_VMW = "http://www.vmware.com/schema/ovf"
_STREAM_OPTIMIZED = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
_NETWORK = "VM Network"
_SYSTEMS = {
    # distribution: CIM number, VMware's and VirtualBox's names
    "almalinux": (101, "other5xLinux64Guest", "RedHat_64"),
    "centos": (107, "centos64Guest", "RedHat_64"),
    "debian": (96, "debian10_64Guest", "Debian_64"),
    "fedora": (101, "fedora64Guest", "Fedora_64"),
    "opensuse": (83, "opensuse64Guest", "OpenSUSE_64"),
    "rhel": (80, "rhel8_64Guest", "RedHat_64"),
    "rocky": (101, "other5xLinux64Guest", "RedHat_64"),
    "sles": (85, "sles15_64Guest", "SUSE_LE_64"),
    "ubuntu": (94, "ubuntu64Guest", "Ubuntu_64"),
}
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
"""What XML 1.0 has no room for, not even escaped."""

_OTHER = (101, "other5xLinux64Guest", "Linux26_64")


@dataclasses.dataclass(frozen=True)
class Machine:
    """What the descriptor says. Sizes are in bytes, ``memory`` in MiB; ``used`` is what the disk's data takes unpacked."""

    name: str
    title: str
    description: str
    version: str
    distribution: str
    system: str
    memory: int
    cpus: int
    disk: str
    disk_size: int
    capacity: int
    used: int
    controller: str = "ide"
    nic: str = "vmxnet3"
    firmware: str = "bios"


class _Names:
    """The names of elements and attributes in one version of the format."""

    def __init__(self, version: str) -> None:
        self.new = version == "2.0"
        self.ovf = _ENVELOPES[version]
        for prefix, uri in (
            *(("", self.ovf), ("ovf", self.ovf), ("rasd", _RASD), ("vssd", _VSSD), ("vmw", _VMW), ("vbox", _VBOX)),
            *((("sasd", _SASD), ("epasd", _EPASD)) if self.new else ()),
        ):
            if prefix:
                ET.register_namespace(prefix, uri)

    def __call__(self, **values: t.Any) -> dict[str, str]:
        return {f"{{{self.ovf}}}{key}": str(value) for key, value in values.items()}


def document(machine: Machine, version: str = "1.0") -> bytes:
    """The OVF descriptor: the same bytes for the same machine."""
    ovf = _Names(version)
    root = _element(None, ovf, "Envelope")
    references = _element(root, ovf, "References")
    _element(references, ovf, "File", id="file1", href=machine.disk, size=machine.disk_size)
    disks = _element(root, ovf, "DiskSection")
    _element(disks, ovf, "Info", "The disks of the machine")
    _element(
        disks,
        ovf,
        "Disk",
        capacity=machine.capacity,
        diskId="vmdisk1",
        fileRef="file1",
        format=_STREAM_OPTIMIZED,
        populatedSize=machine.used,
    )
    networks = _element(root, ovf, "NetworkSection")
    _element(networks, ovf, "Info", "The networks that the machine is connected to")
    network = _element(networks, ovf, "Network", name=_NETWORK)
    _element(network, ovf, "Description", "Any network with DHCP")
    system = _element(root, ovf, "VirtualSystem", id=machine.name)
    _element(system, ovf, "Info", "A virtual machine")
    _element(system, ovf, "Name", machine.name)
    number, vmware, virtualbox = _SYSTEMS.get(machine.distribution, _OTHER)
    kind = _element(system, ovf, "OperatingSystemSection", id=number)
    kind.set(f"{{{_VMW}}}osType", vmware)
    _element(kind, ovf, "Info", "The operating system")
    _element(kind, ovf, "Description", machine.system)
    named = ET.SubElement(kind, f"{{{_VBOX}}}OSType", ovf(required="false"))
    named.text = virtualbox
    product = _element(system, ovf, "ProductSection")
    _element(product, ovf, "Info", machine.description or machine.title)
    _element(product, ovf, "Product", machine.title)
    _element(product, ovf, "Version", machine.version)
    _hardware(system, ovf, machine)
    ET.indent(root, "  ")
    text: str = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{_NOT_XML.sub("", text)}\n'.encode()


def _element(
    parent: ET.Element | None, ovf: _Names, tag: str, text: str | None = None, **attributes: t.Any
) -> ET.Element:
    name = f"{{{ovf.ovf}}}{tag}"
    found = ET.Element(name) if parent is None else ET.SubElement(parent, name)
    found.attrib.update(ovf(**attributes))
    found.text = text
    return found


def _hardware(system: ET.Element, ovf: _Names, machine: Machine) -> None:
    hardware = _element(system, ovf, "VirtualHardwareSection")
    _element(hardware, ovf, "Info", "What the machine needs")
    about = _element(hardware, ovf, "System")
    for tag, text in (
        ("ElementName", "Virtual Hardware Family"),
        ("InstanceID", "0"),
        ("VirtualSystemIdentifier", machine.name),
        ("VirtualSystemType", "vmx-10"),
    ):
        ET.SubElement(about, f"{{{_VSSD}}}{tag}").text = text
    kind, subtype = CONTROLLERS[machine.controller]
    items: tuple[tuple[str, dict[str, t.Any]], ...] = (
        (
            "Item",
            {
                "Description": "Number of processors",
                "ElementName": f"{machine.cpus} processors",
                "InstanceID": 1,
                "ResourceType": 3,
                "VirtualQuantity": machine.cpus,
            },
        ),
        (
            "Item",
            {
                "AllocationUnits": "byte * 2^20",
                "Description": "Memory",
                "ElementName": f"{machine.memory} MiB of memory",
                "InstanceID": 2,
                "ResourceType": 4,
                "VirtualQuantity": machine.memory,
            },
        ),
        (
            "Item",
            {
                "Address": 0,
                "Description": "Controller of the disk",
                "ElementName": "Controller 0",
                "InstanceID": 3,
                "ResourceSubType": subtype,
                "ResourceType": kind,
            },
        ),
        (
            "StorageItem",
            {
                "AddressOnParent": 0,
                "ElementName": "Disk 0",
                "HostResource": "ovf:/disk/vmdisk1",
                "InstanceID": 4,
                "Parent": 3,
                "ResourceType": 17,
            },
        ),
        (
            "EthernetPortItem",
            {
                "AddressOnParent": 0,
                "AutomaticAllocation": "true",
                "Connection": _NETWORK,
                "Description": "Network adapter",
                "ElementName": "Network adapter 0",
                "InstanceID": 5,
                "ResourceSubType": NICS[machine.nic],
                "ResourceType": 10,
            },
        ),
    )
    spaces = {"Item": _RASD, "StorageItem": _SASD, "EthernetPortItem": _EPASD}
    for tag, values in items:
        used = tag if ovf.new else "Item"
        item = _element(hardware, ovf, used)
        # The schema wants them in the order of the alphabet.
        for key in sorted(values):
            ET.SubElement(item, f"{{{spaces[used]}}}{key}").text = str(values[key])
    if machine.firmware == "uefi":
        attributes = {**ovf(required="false"), f"{{{_VMW}}}key": "firmware", f"{{{_VMW}}}value": "efi"}
        ET.SubElement(hardware, f"{{{_VMW}}}Config", attributes)
