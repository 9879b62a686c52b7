# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""A neighbour of the guest, on the same Ethernet: sees what it sends, and knocks at its ports over IPv4 and IPv6.

QEMU's user network only forwards ports that it was told of, and answers for the guest where the guest would not. So the
neighbour speaks in frames of its own, which QEMU hands over through a socket. It needs no root and no network of the
builder's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import struct
import threading
import time
import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils import _frames
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._frames import End, Packet

Tick = t.Callable[[], None]
MAC = _frames.mac("52:54:00:fa:c7:0e")
ADDRESS = "10.0.2.77"
"""The neighbour's, in QEMU's user network."""
_LENGTH = struct.Struct("!I")
_CHUNK = 128
_PAUSE = 0.1
_QUIET = 2.0
_ROUNDS = 3
"""How often what has not answered is asked again, and for how many seconds nothing must come before that."""
_NAMES = {"tcp": _frames.TCP, "udp": _frames.UDP}

WELL_KNOWN = (
    *range(1, 1025),
    *(1080, 1194, 1433, 1521, 1723, 1883, 2049, 2181, 2222, 2375, 2376, 2377, 2379, 2380, 3000, 3128, 3260, 3306, 3389),
    *(4369, 4505, 4506, 4789, 5000, 5044, 5060, 5355, 5432, 5555, 5601, 5666, 5671, 5672, 5900, 5901, 5984, 5985, 6000),
    *(6001, 6379, 6443, 6667, 7000, 7001, 8000, 8008, 8009, 8080, 8081, 8086, 8088, 8140, 8443, 8500, 8834, 8888, 9000),
    *(9001, 9042, 9090, 9091, 9092, 9100, 9200, 9300, 9418, 9443, 9618, 9999, 10000, 10050, 10051, 10250, 10255, 11211),
    *(15672, 16509, 16514, 20000, 25565, 27017, 27018, 28017, 32768, 49152, 50000, 50070, 54321, 61616),
)
"""The ports of TCP that are knocked at."""

NTP_MONLIST = b"\x17\x00\x03\x2a" + bytes(44)
NTP_READVAR = b"\x16\x02\x00\x01" + bytes(8)
_SNMP_GET = bytes.fromhex("302902010004067075626c6963a01c02044c33a756020100020100300e300c06082b060102010101000500")
_PORTMAP_DUMP = struct.pack("!6I", 0x72FE1D13, 0, 2, 100000, 2, 4) + bytes(16)
_LDAP_ROOT = (
    bytes.fromhex("30250201016320") + bytes.fromhex("04000a01000a0100020100020100010100") + b"\x87\x0bobjectclass0\0"
)
AMPLIFIERS: dict[int, tuple[bytes, ...]] = {
    19: (b"\n",),
    53: (bytes.fromhex("1a2b01000001000000000000" + "0000020001"),),
    111: (_PORTMAP_DUMP,),
    123: (b"\x23" + bytes(47), NTP_MONLIST, NTP_READVAR),
    161: (_SNMP_GET,),
    389: (_LDAP_ROOT,),
    1900: (
        b'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\nMX: 1\r\nST: ssdp:all\r\n\r\n',
    ),
    11211: (b"\x00\x01\x00\x00\x00\x01\x00\x00stats\r\n",),
}
"""The ports of UDP by which others are attacked, and what makes a server there answer."""


@dataclasses.dataclass
class Seen:
    """What a guest showed of itself.

    :ivar tcp: address -> port -> C(open), C(closed) or C(filtered) (no answer, or an ICMP error).
    :ivar udp: address -> port -> C(open) (it answers), C(closed), or C(silent).
    :ivar answers: what came from ports of UDP, as (address, port, payload).
    """

    tcp: dict[str, dict[int, str]] = dataclasses.field(default_factory=dict)
    udp: dict[str, dict[int, str]] = dataclasses.field(default_factory=dict)
    answers: list[tuple[str, int, bytes]] = dataclasses.field(default_factory=list)

    def open_ports(self) -> list[str]:
        """As C(22/tcp), lowest first."""
        found = {
            (port, name)
            for name in ("tcp", "udp")
            for ports in getattr(self, name).values()
            for port, state in ports.items()
            if state == "open"
        }
        return [f"{port}/{name}" for port, name in sorted(found)]


class Link:
    """The neighbour's card; a context manager. The machine connects to ``port``, see :class:`_machine.Spec`."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(60.0)
        self.port = int(self._listener.getsockname()[1])
        self._peer: socket.socket | None = None
        self._heard: list[t.Callable[[Packet], None]] = []
        self._sending = threading.Lock()
        self.client_ids: dict[str, bytes] = {}
        """How each DHCP client, by its hardware address, called itself."""
        self.link_locals: dict[str, str] = {}
        """The IPv6 link-local address that was last seen of each hardware address."""
        self._thread = threading.Thread(target=self._read, name="link", daemon=True)

    def __enter__(self) -> Link:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        for end in (self._listener, self._peer):
            if end:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
        self._thread.join(10)

    def send(self, frames: t.Iterable[bytes]) -> None:
        """Send frames; what cannot be sent any more (the machine has gone) is dropped."""
        data = b"".join(_LENGTH.pack(len(frame)) + frame for frame in frames)
        with self._sending, contextlib.suppress(OSError):
            if self._peer:
                self._peer.sendall(data)

    @contextlib.contextmanager
    def listening(self, heard: t.Callable[[Packet], None]) -> t.Iterator[None]:
        """Have ``heard`` called with each packet of interest, in another thread, as long as the block lasts."""
        self._heard.append(heard)
        try:
            yield
        finally:
            self._heard.remove(heard)

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            self._peer, _address = self._listener.accept()
            with self._peer.makefile("rb") as stream:
                while len(head := stream.read(_LENGTH.size)) == _LENGTH.size:
                    packet = _frames.parse(stream.read(_LENGTH.unpack(head)[0]))
                    if packet:
                        self._take(packet)

    def _take(self, packet: Packet) -> None:
        own = (ADDRESS, _frames.link_local(MAC))
        name = packet.mac.hex(":")
        them = End(packet.mac, packet.source)
        if packet.protocol == "arp" and packet.ports[0] == 1 and packet.target in own:
            self.send([_frames.arp(End(MAC, packet.target), packet.source, packet.mac)])
        if packet.protocol == "ndp" and packet.ports[0] == 135 and packet.target in own and packet.source != "::":
            self.send([_frames.advertise(End(MAC, packet.target), them)])
        # before it uses an address, it asks whether another one does
        claimed = packet.target if packet.protocol == "ndp" and packet.source == "::" else packet.source
        if _frames.is_link_local(claimed):
            self.link_locals[name] = claimed
        client_id = _frames.dhcp_client_id(packet)
        if client_id is not None:
            self.client_ids[name] = client_id
        for heard in list(self._heard):
            heard(packet)

    def find(self, mac: str, address: str, tick: Tick, timeout: float = 20.0) -> End | None:
        """The guest by its address of either family; None when it does not say that it is there."""
        wanted = _frames.mac(mac)
        found = threading.Event()

        def heard(packet: Packet) -> None:
            told = packet.source if packet.protocol == "arp" else packet.target
            if (
                packet.mac == wanted
                and packet.protocol in ("arp", "ndp")
                and packet.ports[0] in (2, 136)
                and told == address
            ):
                found.set()

        ask = _frames.solicit if ":" in address else _frames.arp
        deadline = time.monotonic() + timeout
        with self.listening(heard):
            while time.monotonic() < deadline and not found.is_set():
                self.send([ask(_self(address), address)])
                found.wait(1.0)
                tick()
        return End(wanted, address) if found.is_set() else None


def _self(address: str) -> End:
    return End(MAC, _frames.link_local(MAC) if ":" in address else ADDRESS)


def knock(link: Link, guests: t.Sequence[End], tick: Tick, tcp_ports: t.Iterable[int] = WELL_KNOWN) -> Seen:
    """Try the ports of TCP, and those of UDP that amplify, at each of the guest's addresses.

    :raises FactoryError: not even the ARP or NDP of a guest could be had (an empty ``guests``).
    """
    if not guests:
        raise FactoryError("the guest does not answer its neighbour", where="ports")
    ports = sorted(set(tcp_ports))
    seen = Seen()
    for guest in guests:
        seen.tcp[guest.address] = dict.fromkeys(ports, "filtered")
        seen.udp[guest.address] = dict.fromkeys(AMPLIFIERS, "silent")
    last = [time.monotonic()]
    # who asks from a port of its own each time is answered each time
    own = 20000 + int.from_bytes(os.urandom(2), "big") % 10000
    macs = {guest.mac for guest in guests}

    def heard(packet: Packet) -> None:
        if packet.mac in macs and packet.source in seen.tcp and _note(seen, packet, own):
            last[0] = time.monotonic()

    with link.listening(heard):
        for number in range(_ROUNDS):
            frames = [frame for guest in guests for frame in _questions(seen, guest, own + number)]
            for start in range(0, len(frames), _CHUNK):
                link.send(frames[start : start + _CHUNK])
                time.sleep(_PAUSE)
            last[0] = time.monotonic()
            while time.monotonic() - last[0] < _QUIET:
                time.sleep(0.2)
                tick()
    return seen


def _questions(seen: Seen, guest: End, own: int) -> t.Iterator[bytes]:
    me = _self(guest.address)
    for port, state in seen.udp[guest.address].items():
        if state != "closed":
            yield from (_frames.udp(me, guest, (own, port), payload) for payload in AMPLIFIERS[port])
    for port, state in seen.tcp[guest.address].items():
        if state == "filtered":
            yield _frames.tcp(me, guest, (own, port), _frames.SYN, sequence=port)


def _note(seen: Seen, packet: Packet, own: int) -> bool:
    """Write down what an answer means; whether it was one."""
    mine = range(own, own + _ROUNDS)
    if packet.refused:
        name, port = packet.refused
        states: dict[int, str] = getattr(seen, name)[packet.source]
        if name == "udp" and states.get(port) == "silent":
            states[port] = "closed"
        return port in states
    source, target = packet.ports
    if target not in mine:
        return False
    if packet.protocol == "tcp" and source in seen.tcp[packet.source]:
        is_open = packet.flags & (_frames.SYN | _frames.ACK) == _frames.SYN | _frames.ACK
        if is_open or packet.flags & _frames.RST:
            seen.tcp[packet.source][source] = "open" if is_open else "closed"
        return True
    if packet.protocol == "udp" and source in seen.udp[packet.source]:
        seen.udp[packet.source][source] = "open"
        seen.answers.append((packet.source, source, packet.payload))
        return True
    return False
