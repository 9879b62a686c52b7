# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Ethernet frames as bytes: just enough of ARP, IPv4, IPv6, TCP, UDP and ICMP to knock at ports. Talks to nobody."""

from __future__ import annotations

import dataclasses
import ipaddress
import struct
import typing as t

BROADCAST = b"\xff" * 6
ARP, IPV4, IPV6 = 0x0806, 0x0800, 0x86DD
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
SYN, RST, ACK = 2, 4, 16
_SOLICITATION, _ADVERTISEMENT = 135, 136
_DHCP_MAGIC = b"\x63\x82\x53\x63"


@dataclasses.dataclass(frozen=True)
class End:
    """One end of a conversation: its hardware address, and an address of either family."""

    mac: bytes
    address: str

    @property
    def packed(self) -> bytes:
        """The address as bytes."""
        return ipaddress.ip_address(self.address).packed


@dataclasses.dataclass(frozen=True)
class Packet:
    """What a frame carries, as far as it is of use here.

    :ivar protocol: C(arp), C(tcp), C(udp), C(icmp), C(ndp), or C(other).
    :ivar source: who it says it is from; ``target`` whom it is for (for C(ndp) whom it asks for, or tells of).
    :ivar ports: source and destination of TCP and UDP, type and code of ICMP and NDP.
    :ivar flags: those of TCP.
    :ivar refused: for an ICMP error, the protocol and port of what it refuses.
    """

    mac: bytes
    protocol: str
    source: str
    target: str
    ports: tuple[int, int] = (0, 0)
    flags: int = 0
    payload: bytes = b""
    refused: tuple[str, int] | None = None


def parse(frame: bytes) -> Packet | None:
    """What a frame carries; None where that is nothing of interest, or broken off."""
    try:
        kind = struct.unpack_from("!H", frame, 12)[0]
        reader = {ARP: _parse_arp, IPV4: _parse_ipv4, IPV6: _parse_ipv6}.get(kind)
        return reader(frame[6:12], frame[14:]) if reader else None
    except (struct.error, IndexError, ValueError):
        return None


def _parse_arp(mac: bytes, data: bytes) -> Packet:
    operation = struct.unpack_from("!H", data, 6)[0]
    return Packet(mac, "arp", _text(data[14:18]), _text(data[24:28]), (operation, 0))


def _parse_ipv4(mac: bytes, data: bytes) -> Packet | None:
    length = (data[0] & 15) * 4
    total = struct.unpack_from("!H", data, 2)[0]
    return _upper(mac, _text(data[12:16]), _text(data[16:20]), data[9], data[length:total])


def _parse_ipv6(mac: bytes, data: bytes) -> Packet | None:
    length = struct.unpack_from("!H", data, 4)[0]
    return _upper(mac, _text(data[8:24]), _text(data[24:40]), data[6], data[40 : 40 + length])


def _upper(mac: bytes, source: str, target: str, protocol: int, data: bytes) -> Packet:
    if protocol == TCP:
        ports = struct.unpack_from("!HH", data)
        return Packet(mac, "tcp", source, target, ports, data[13])
    if protocol == UDP:
        ports = struct.unpack_from("!HH", data)
        return Packet(mac, "udp", source, target, ports, payload=data[8:])
    if protocol == ICMPV6 and data[0] in (_SOLICITATION, _ADVERTISEMENT):
        return Packet(mac, "ndp", source, _text(data[8:24]), (data[0], 0))
    if protocol in (ICMP, ICMPV6):
        return Packet(mac, "icmp", source, target, (data[0], data[1]), refused=_refused(protocol, data))
    return Packet(mac, "other", source, target)


def _refused(protocol: int, data: bytes) -> tuple[str, int] | None:
    """What an ICMP error is about: it quotes the packet that it refuses."""
    if (protocol, data[0]) not in ((ICMP, 3), (ICMPV6, 1)):
        return None
    quoted = data[8:]
    upper, start = (quoted[9], (quoted[0] & 15) * 4) if protocol == ICMP else (quoted[6], 40)
    name = {TCP: "tcp", UDP: "udp"}.get(upper)
    return (name, struct.unpack_from("!H", quoted, start + 2)[0]) if name else None


def _text(packed: bytes) -> str:
    return str(ipaddress.ip_address(packed))


def arp(source: End, address: str, target_mac: bytes = b"") -> bytes:
    """Ask who has ``address``; with ``target_mac``, tell that one that ``source`` is there."""
    operation, mac = (2, target_mac) if target_mac else (1, bytes(6))
    body = struct.pack("!HHBBH", 1, IPV4, 6, 4, operation) + source.mac + source.packed + mac
    return _ethernet(target_mac or BROADCAST, source.mac, ARP, body + ipaddress.ip_address(address).packed)


def solicit(source: End, address: str) -> bytes:
    """Ask who has an IPv6 address."""
    wanted = ipaddress.ip_address(address).packed
    group = End(b"\x33\x33\xff" + wanted[-3:], _text(bytes.fromhex("ff0200000000000000000001ff") + wanted[-3:]))
    body = struct.pack("!BBHI", _SOLICITATION, 0, 0, 0) + wanted + b"\x01\x01" + source.mac
    return packet(source, group, ICMPV6, body, hops=255)


def advertise(source: End, target: End) -> bytes:
    """Tell ``target`` that ``source`` is there (solicited, override)."""
    body = struct.pack("!BBHI", _ADVERTISEMENT, 0, 0, 0x60000000) + source.packed + b"\x02\x01" + source.mac
    return packet(source, target, ICMPV6, body, hops=255)


def tcp(source: End, target: End, ports: tuple[int, int], flags: int, sequence: int = 0) -> bytes:
    """A segment without data."""
    options = b"\x02\x04\x05\xa0" if flags & SYN else b""
    offset = (20 + len(options)) // 4 << 4
    return packet(
        source, target, TCP, struct.pack("!HHIIBBHHH", *ports, sequence, 0, offset, flags, 1024, 0, 0) + options
    )


def udp(source: End, target: End, ports: tuple[int, int], payload: bytes) -> bytes:
    """A datagram."""
    return packet(source, target, UDP, struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload)


_CHECKSUM_AT = {TCP: 16, UDP: 6, ICMPV6: 2}


def packet(source: End, target: End, protocol: int, body: bytes, *, hops: int = 64) -> bytes:
    """A frame with ``body``, whose checksum is filled in, in a packet of the addresses' family."""
    pseudo = source.packed + target.packed + struct.pack("!II", len(body), protocol)
    at = _CHECKSUM_AT[protocol]
    value = checksum(pseudo + body) or 0xFFFF
    body = body[:at] + struct.pack("!H", value) + body[at + 2 :]
    if ":" in source.address:
        head = struct.pack("!IHBB", 6 << 28, len(body), protocol, hops) + source.packed + target.packed
        return _ethernet(target.mac, source.mac, IPV6, head + body)
    head = (
        struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0x4000, hops, protocol, 0) + source.packed + target.packed
    )
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return _ethernet(target.mac, source.mac, IPV4, head + body)


def checksum(data: bytes) -> int:
    """The Internet's checksum (RFC 1071)."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _ethernet(target: bytes, source: bytes, kind: int, body: bytes) -> bytes:
    return (target + source + struct.pack("!H", kind) + body).ljust(60, b"\0")


def link_local(mac: bytes) -> str:
    """The address that a card gives itself, where it makes it out of its hardware address (RFC 4291, appendix A)."""
    return _text(b"\xfe\x80" + bytes(6) + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:])


def mac(text: str) -> bytes:
    """A hardware address as bytes."""
    return bytes.fromhex(text.replace(":", ""))


def dhcp_client_id(packet_: Packet) -> bytes | None:
    """How a DHCPv4 client calls itself (option 61, else its hardware address); None where that is no request of one."""
    data = packet_.payload
    if packet_.protocol != "udp" or packet_.ports != (68, 67) or data[236:240] != _DHCP_MAGIC or data[0] != 1:
        return None
    return dict(_options(data[240:])).get(61, b"\x01" + data[28:34])


def _options(data: bytes) -> t.Iterator[tuple[int, bytes]]:
    at = 0
    while at + 1 < len(data) and data[at] != 255:
        if data[at] == 0:
            at += 1
            continue
        yield data[at], data[at + 2 : at + 2 + data[at + 1]]
        at += 2 + data[at + 1]


def identity(client_id: bytes) -> bytes:
    """The part of a client id that says which machine it is: without the number of the interface (RFC 4361)."""
    return client_id[5:] if client_id[:1] == b"\xff" else client_id


def is_link_local(address: str) -> bool:
    """Whether an address is an IPv6 one that needs no router."""
    return ":" in address and ipaddress.ip_address(address).is_link_local
