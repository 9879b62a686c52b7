# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A TCP proxy on loopback that cuts connections where a test says, at byte N of the request or of the reply, or reads slowly."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import struct
import threading
import time
import typing as t


@dataclasses.dataclass(frozen=True)
class Cut:
    """Where a connection breaks.

    :param connection: which one, counted from 0 in the order in which they come.
    :param request: so many bytes of the request reach the server; 0: none does.
    :param reply: the server gets the whole request, and so many bytes of its reply reach the client; 0: the server has
        done its work, and the client never hears of it.
    :param reset: break it by a TCP reset instead of an orderly end.
    """

    connection: int
    request: int | None = None
    reply: int | None = None
    reset: bool = False


@dataclasses.dataclass
class Connection:
    """What went through: bytes of the request and of the reply."""

    request: int = 0
    reply: int = 0


class DroppingProxy:
    """Passes connections on to a port of loopback; :attr:`cuts` says which ones break, and where.

    :param rate: bytes of requests that are read in a second, as by a slow server; None: as they come.
    :ivar connections: what went through, in the order of their coming.
    :ivar silent: numbers of connections of which it reads nothing.
    """

    def __init__(self, port: int, rate: float | None = None) -> None:
        self.rate = rate
        self.silent: set[int] = set()
        self.cuts: list[Cut] = []
        self.connections: list[Connection] = []
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        if rate is not None:
            # What the kernel holds is as if it had been read. Connections inherit it.
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        self.port = int(self._listener.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> DroppingProxy:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Take no more connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def again(self, *cuts: Cut) -> None:
        """Count connections from 0 again, and cut them so."""
        self.connections.clear()
        self.cuts = list(cuts)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _address = self._listener.accept()
                number = len(self.connections)
                record = Connection()
                self.connections.append(record)
                cut = next((cut for cut in self.cuts if cut.connection == number), Cut(number))
                threading.Thread(target=self._connect, args=(client, record, cut, number), daemon=True).start()

    def _connect(self, client: socket.socket, record: Connection, cut: Cut, number: int) -> None:
        ends = [client]
        with contextlib.suppress(OSError):
            server = socket.create_connection(("127.0.0.1", self._target), 30)
            server.settimeout(None)
            ends.append(server)
            while number in self.silent:
                time.sleep(0.05)
            back = threading.Thread(target=self._back, args=(server, client, record, cut, ends), daemon=True)
            back.start()
            if self._pass(client, server, record, "request", cut.request, self.rate):
                _break(ends, cut.reset)
            else:
                with contextlib.suppress(OSError):
                    server.shutdown(socket.SHUT_WR)
            back.join()
        _break(ends, False)

    def _back(
        self, server: socket.socket, client: socket.socket, record: Connection, cut: Cut, ends: list[socket.socket]
    ) -> None:
        broken = self._pass(server, client, record, "reply", cut.reply)
        # The server has ended it, or the cut has: either way the client learns it.
        _break(ends if broken else [client], broken and cut.reset)

    @staticmethod
    def _pass(
        source: socket.socket,
        target: socket.socket,
        record: Connection,
        name: str,
        limit: int | None,
        rate: float | None = None,
    ) -> bool:
        """Whether it was cut, as against ended."""
        with contextlib.suppress(OSError):
            while True:
                data = source.recv(65536 if rate is None else 16384)
                if rate is not None:
                    time.sleep(len(data) / rate)
                if not data:
                    return False
                done = getattr(record, name)
                if limit is not None and done + len(data) > limit:
                    setattr(record, name, limit)
                    target.sendall(data[: limit - done])
                    return True
                # Before they go, so that who has got them finds them counted.
                setattr(record, name, done + len(data))
                target.sendall(data)
        return False


def cuts(connections: t.Sequence[Connection], *, reset: bool = False) -> list[Cut]:
    """Where a run that made these connections can break: each before, within and at the end of request and reply."""
    found = []
    for number, seen in enumerate(connections):
        for name, size in (("request", seen.request), ("reply", seen.reply)):
            places = sorted({0, size // 2, max(size - 1, 0)})
            found += [Cut(number, reset=reset, **{name: place}) for place in places]
    return found


def _break(ends: t.Sequence[socket.socket], reset: bool) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            if reset:
                # Closing a socket that lingers for no time sends RST instead of FIN.
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                # A thread that waits in recv() holds the socket open.
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RD)
                end.close()
            else:
                end.shutdown(socket.SHUT_RDWR)
