# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real sshd on a free port of loopback, without installing one; and a wire to it that can be cut."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
import time
import typing as t
from pathlib import Path

PACKAGES = ("openssh-server", "libwrap0")
PASSWD = "root:x:0:0:root:/root:/bin/sh\nsshd:x:101:65534::/run/sshd:/usr/sbin/nologin\n"
CONFIG = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {home}/host_key
AuthorizedKeysFile {home}/key.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UsePAM no
PidFile none
Subsystem sftp internal-sftp
"""


def find_sshd(folder: Path) -> tuple[Path, Path | None]:
    """The binary, and where its libraries are: that of the system, or one unpacked (not installed) from its package.

    :raises OSError: there is none, and the package cannot be had.
    """
    here = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    if here:
        return Path(here), None
    try:
        subprocess.run(["apt-get", "download", *PACKAGES], cwd=folder, check=True, capture_output=True)
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, folder / "root"], check=True)
    except subprocess.CalledProcessError as exc:
        raise OSError(f"no sshd here, and {exc}") from exc
    return folder / "root/usr/sbin/sshd", next((folder / "root").rglob("libwrap.so.0")).parent


class Server:
    """An sshd into which root gets by the key C(home/key); end it by :meth:`close`.

    It runs with an /etc/passwd of its own, since its package would have added an account.
    """

    def __init__(self, folder: Path) -> None:
        sshd, libraries = find_sshd(folder)
        self.home = folder
        self.port = free_port()
        for name in ("host_key", "key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        (folder / "passwd").write_text(PASSWD)
        (folder / "sshd_config").write_text(CONFIG.format(port=self.port, home=folder))
        argv = ["bwrap", "--dev-bind", "/", "/", "--tmpfs", "/run", "--dir", "/run/sshd", "--die-with-parent"]
        argv += ["--ro-bind", str(folder / "passwd"), "/etc/passwd"]
        argv += ["--setenv", "LD_LIBRARY_PATH", str(libraries)] if libraries else []
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(
            [*argv, str(sshd), "-D", "-e", "-f", str(folder / "sshd_config")],
            stderr=self._log,
            stdin=subprocess.DEVNULL,
        )
        self._wait()

    def known_hosts(self, port: int, name: str = "known_hosts") -> Path:
        """A file with the server's key for that port."""
        words = (self.home / "host_key.pub").read_text().split()
        path = self.home / name
        path.write_text(f"[127.0.0.1]:{port} {words[0]} {words[1]}\n")
        return path

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(30)
        self._log.close()

    def _wait(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                if connection.recv(4) == b"SSH-":
                    return
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise OSError((self.home / "log").read_text(errors="replace"))
            time.sleep(0.1)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Wire:
    """Passes connections on to a port. Each of C(cuts) is how many bytes a connection brings back before it breaks.

    :ivar brought: bytes that each connection has brought back.
    """

    def __init__(self, port: int) -> None:
        self.cuts: list[int | None] = []
        self.brought: list[int] = []
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _address = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                cut = self.cuts.pop(0) if self.cuts else None
                self.brought.append(0)
                ends = (client, server)
                threading.Thread(target=self._pass, args=(client, server, ends), daemon=True).start()
                number = len(self.brought) - 1
                threading.Thread(target=self._pass, args=(server, client, ends, number, cut), daemon=True).start()

    def _pass(
        self,
        source: socket.socket,
        target: socket.socket,
        ends: t.Sequence[socket.socket],
        number: int | None = None,
        cut: int | None = None,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
                if number is not None:
                    self.brought[number] += len(data)
                    if cut is not None and self.brought[number] >= cut:
                        break
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
