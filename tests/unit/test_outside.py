# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames as a real network stack makes them, and knocking at the ports of a guest that is played here."""

from __future__ import annotations

import ipaddress
import socket
import struct
import threading
import time

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _frames, _outside
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._frames import End

GUEST_MAC = "02:00:0a:00:02:0f"
V4 = "10.0.2.15"
V6 = "fe80::aff:fe00:20f"
ME = End(_outside.MAC, _outside.ADDRESS)
GUEST = End(_frames.mac(GUEST_MAC), V4)
GUEST6 = End(_frames.mac(GUEST_MAC), V6)
ME6 = End(_outside.MAC, _frames.link_local(_outside.MAC))


def test_the_checksum_of_rfc_1071():
    assert _frames.checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D
    assert _frames.checksum(b"\x01") == 0xFEFF


def test_a_segment_of_tcp():
    frame = _frames.tcp(ME, GUEST, (40000, 22), _frames.SYN, sequence=7)
    assert frame[:6] == GUEST.mac
    assert frame[6:12] == ME.mac
    assert _frames.checksum(frame[14:34]) == 0
    segment = frame[34 : 14 + struct.unpack_from("!H", frame, 16)[0]]
    pseudo = ME.packed + GUEST.packed + struct.pack("!BBH", 0, 6, len(segment))
    assert _frames.checksum(pseudo + segment) == 0
    packet = _frames.parse(frame)
    assert (packet.protocol, packet.source, packet.target) == ("tcp", _outside.ADDRESS, V4)
    assert (packet.ports, packet.flags) == ((40000, 22), _frames.SYN)


def test_a_datagram_over_ipv6():
    frame = _frames.udp(ME6, GUEST6, (5, 123), b"abc")
    body = frame[54 : 54 + 11]
    assert _frames.checksum(ME6.packed + GUEST6.packed + struct.pack("!II", 11, 17) + body) == 0
    packet = _frames.parse(frame)
    assert (packet.protocol, packet.ports, packet.payload, packet.target) == ("udp", (5, 123), b"abc", V6)


def test_who_asks_for_an_ipv6_address_asks_its_group():
    frame = _frames.solicit(ME6, V6)
    assert frame[:6] == bytes.fromhex("3333ff00020f")
    packet = _frames.parse(frame)
    assert (packet.protocol, packet.ports[0], packet.target) == ("ndp", 135, V6)
    assert frame[38:54] == ipaddress.ip_address("ff02::1:ff00:20f").packed


def test_link_local_addresses():
    assert _frames.link_local(_frames.mac("52:54:00:00:00:01")) == "fe80::5054:ff:fe00:1"


@pytest.mark.parametrize(
    "frame", [b"", b"\0" * 14, b"\0" * 12 + b"\x08\x00" + b"\x45", b"\0" * 12 + b"\x86\xdd" + b"x" * 30]
)
def test_what_is_broken_off_is_nothing(frame):
    assert _frames.parse(frame) is None


def dhcp(options: bytes) -> _frames.Packet:
    """A request of a DHCP client."""
    body = b"\1\1\6\0" + bytes(24) + GUEST.mac + bytes(202) + b"\x63\x82\x53\x63" + options + b"\xff"
    return _frames.parse(
        _frames.udp(End(GUEST.mac, "0.0.0.0"), End(_frames.BROADCAST, "255.255.255.255"), (68, 67), body)
    )


def test_how_a_dhcp_client_calls_itself():
    client_id = b"\xff\1\2\3\4" + b"\0\2duid"
    told = dhcp(b"\x35\1\1\0\x3d" + bytes([len(client_id)]) + client_id)
    assert _frames.dhcp_client_id(told) == client_id
    assert _frames.identity(client_id) == b"\0\2duid"
    without = _frames.dhcp_client_id(dhcp(b"\x35\1\1"))
    assert without == b"\1" + GUEST.mac
    assert _frames.identity(without) == without
    assert _frames.dhcp_client_id(_frames.parse(_frames.udp(ME, GUEST, (5, 67), b"x"))) is None


class Guest:
    """Plays a guest at the other end of a link: some ports open, some closed, from the rest nothing."""

    def __init__(self, port: int, *, answers_arp: bool = True) -> None:
        self.tcp_open, self.tcp_closed = {22, 8443}, {23, 80}
        self.udp_open, self.udp_closed = {161: b"public"}, {53}
        self.lost = {8443}
        self.answers_arp = answers_arp
        self.socket = socket.create_connection(("127.0.0.1", port))
        threading.Thread(target=self._serve, daemon=True).start()

    def send(self, *frames: bytes) -> None:
        """Send frames as QEMU does."""
        self.socket.sendall(b"".join(struct.pack("!I", len(frame)) + frame for frame in frames))

    def _serve(self) -> None:
        with self.socket.makefile("rb") as stream:
            while len(head := stream.read(4)) == 4:
                frame = stream.read(struct.unpack("!I", head)[0])
                self.send(*self._answers(frame, _frames.parse(frame)))

    def _answers(self, frame, packet):
        me = End(GUEST.mac, packet.target)
        them = End(packet.mac, packet.source)
        source, target = packet.ports
        if packet.protocol == "arp" and packet.target == V4 and self.answers_arp:
            yield _frames.arp(me, packet.source, packet.mac)
        if packet.protocol == "ndp" and packet.target == V6 and self.answers_arp:
            yield _frames.advertise(me, them)
        if packet.protocol == "tcp" and target in self.lost:
            self.lost.discard(target)  # the first one never arrives
        elif packet.protocol == "tcp" and target in self.tcp_open:
            yield _frames.tcp(me, them, (target, source), _frames.SYN | _frames.ACK)
        elif packet.protocol == "tcp" and target in self.tcp_closed:
            # what another one says in the guest's name does not count
            yield _frames.tcp(
                End(b"\x52\x55\0\0\0\2", packet.target), them, (target, source), _frames.SYN | _frames.ACK
            )
            yield _frames.tcp(me, them, (target, source), _frames.RST | _frames.ACK)
        if packet.protocol == "udp" and target in self.udp_open:
            yield _frames.udp(me, them, (target, source), self.udp_open[target])
        if packet.protocol == "udp" and target in self.udp_closed:
            yield self._unreachable(frame, me, them)

    @staticmethod
    def _unreachable(frame: bytes, me: End, them: End) -> bytes:
        quoted = frame[14:][: 20 + 8 if ":" not in me.address else 40 + 8]
        if ":" in me.address:
            return _frames.packet(me, them, _frames.ICMPV6, b"\1\4" + bytes(6) + quoted)
        body = b"\3\3" + bytes(6) + quoted
        # as of UDP, whose checksum has another place, which a reader of ICMP does not look at
        return _frames.packet(me, them, _frames.UDP, body.ljust(36, b"\0")).replace(b"\x40\x11", b"\x40\x01", 1)


@pytest.fixture
def link():
    """A link; its guest is made by the test."""
    with _outside.Link() as made:
        yield made


def wait(what) -> bool:
    """Whether something soon is so."""
    deadline = time.monotonic() + 60
    while not what() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(what())


def test_knocking_at_ports(link):
    Guest(link.port)
    ticks: list[int] = []
    guests = [link.find(GUEST_MAC, address, lambda: ticks.append(1)) for address in (V4, V6)]
    assert guests == [GUEST, GUEST6]
    seen = _outside.knock(link, guests, lambda: ticks.append(1), [22, 23, 25, 80, 8443])
    for address in (V4, V6):
        assert seen.tcp[address] == {22: "open", 23: "closed", 25: "filtered", 80: "closed", 8443: "open"}
        assert {port for port, state in seen.udp[address].items() if state == "open"} == {161}
        assert {port for port, state in seen.udp[address].items() if state == "closed"} == {53}
        assert (address, 161, b"public") in seen.answers
    assert seen.open_ports() == ["22/tcp", "161/udp", "8443/tcp"]
    assert ticks


def test_what_a_guest_sends_by_itself_is_seen(link):
    guest = Guest(link.port)
    body = struct.pack("!BBHI", 135, 0, 0, 0) + GUEST6.packed
    claim = _frames.packet(End(GUEST.mac, "::"), End(_frames.BROADCAST, "ff02::1:ff00:20f"), _frames.ICMPV6, body)
    request = b"\1\1\6\0" + bytes(24) + GUEST.mac + bytes(202) + b"\x63\x82\x53\x63\xff"
    ask = _frames.udp(End(GUEST.mac, "0.0.0.0"), End(_frames.BROADCAST, "255.255.255.255"), (68, 67), request)
    guest.send(b"", b"rubbish", claim, ask)
    assert wait(lambda: link.client_ids)
    assert link.client_ids == {GUEST_MAC: b"\1" + GUEST.mac}
    assert link.link_locals == {GUEST_MAC: V6}


def test_who_asks_for_the_neighbour_gets_an_answer(link):
    told = []
    guest = Guest(link.port)
    guest._answers = lambda _frame, packet: told.append(packet) or ()
    guest.send(_frames.arp(GUEST, _outside.ADDRESS), _frames.solicit(GUEST6, ME6.address))
    assert wait(lambda: len(told) == 2)
    assert [(packet.protocol, packet.source) for packet in told] == [("arp", ME.address), ("ndp", ME6.address)]


def test_a_guest_that_is_not_there(link):
    Guest(link.port, answers_arp=False)
    assert link.find(GUEST_MAC, V4, lambda: None, timeout=1) is None
    with pytest.raises(FactoryError, match="does not answer its neighbour"):
        _outside.knock(link, [], lambda: None)


def test_what_a_tick_raises_ends_the_knocking(link):
    Guest(link.port)

    def tick() -> None:
        raise FactoryError("enough")

    with pytest.raises(FactoryError, match="enough"):
        _outside.knock(link, [GUEST], tick, [22])


def test_a_link_that_nobody_came_to_ends():
    with _outside.Link() as made:
        made.send([b"x"])
    assert not made._thread.is_alive()
