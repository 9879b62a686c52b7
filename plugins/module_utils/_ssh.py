# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Getting into a guest by ssh, with a key of the moment and nothing of the builder's own ssh settings."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import socket
import subprocess
import time
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

Tick = t.Callable[[], None]
"""Called about once a second while waiting; what it raises ends the wait."""

_DENIED = re.compile(r"Permission denied \(([a-z,-]*)\)")
LASTING = {
    "Host key verification failed": "add the host's key to known_hosts, once it is confirmed to be that host's",
    "REMOTE HOST IDENTIFICATION HAS CHANGED": "find out why its host key has changed, then correct known_hosts",
    "Permission denied": "let this user log in there by a key without a passphrase, or by an agent",
    "Could not resolve hostname": "check the name of the host",
    "not accessible": "check the path of the key",
}
"""What ssh says when trying again is no use, and the mend."""
_CONNECT = 60
"""Seconds for the key exchange: an emulated guest that is busy booting may need most of them."""


@dataclasses.dataclass(frozen=True)
class Access:
    """Where to log in, and as whom."""

    host: str
    port: int
    user: str
    key: Path
    known_hosts: Path

    def options(self) -> dict[str, str]:
        """The options of ssh_config(5) by which nothing but this is used. A host key is believed when first seen."""
        return {
            "BatchMode": "yes",
            "ConnectTimeout": str(_CONNECT),
            "GlobalKnownHostsFile": "/dev/null",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "LogLevel": "ERROR",
            "ServerAliveCountMax": "8",
            "ServerAliveInterval": "15",
            "StrictHostKeyChecking": "accept-new",
            "UserKnownHostsFile": quoted(self.known_hosts),
        }

    def argv(self, command: str, **options: str) -> list[str]:
        """The command line that runs ``command`` in the guest user's shell."""
        pairs = {**self.options(), "IdentityFile": quoted(self.key), **options}
        words = [word for name, value in sorted(pairs.items()) for word in ("-o", f"{name}={value}")]
        return ["ssh", "-F", "none", "-T", *words, "-p", str(self.port), "-l", self.user, self.host, command]


def confirmed(identity: Path | None, known_hosts: Path | None) -> list[str]:
    """The words for ssh's command line by which only a host is believed whose key is known already, and nothing is asked."""
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": "30",
        "LogLevel": "ERROR",
        "ServerAliveCountMax": "4",
        "ServerAliveInterval": "15",
        "StrictHostKeyChecking": "yes",
    }
    if known_hosts:
        options.update(UserKnownHostsFile=quoted(known_hosts), GlobalKnownHostsFile="/dev/null")
    if identity:
        options.update(IdentityFile=quoted(identity), IdentitiesOnly="yes")
    return [word for name, value in options.items() for word in ("-o", f"{name}={value}")]


def quoted(path: Path) -> str:
    """A path as the value of an option of ssh_config(5)."""
    # ssh splits such a value into words, and expands percent signs in it
    return '"' + str(path).replace("%", "%%") + '"'


def make_key(path: Path) -> str:
    """Make a key pair at ``path`` (and ``path``.pub); returns the public key's line."""
    _cli.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "cloudimg-ephemeral", "-f", path], timeout=60)
    return path.with_name(f"{path.name}.pub").read_text(encoding="ascii").strip()


def run(
    access: Access,
    command: str,
    *,
    timeout: float | None,
    check: bool = True,
    tick: t.Callable[[str], None] | None = None,
    **options: str,
) -> _cli.Completed:
    """Run a command in the guest; see :func:`_cli.run`. The return code 255 is ssh's own."""
    return _cli.run(access.argv(command, **options), timeout=timeout, check=check, tick=tick)


def send(access: Access, data: Path, command: str, *, timeout: float) -> _cli.Completed:
    """Run a command in the guest whose input is a file; raises FactoryError where it does not end with 0."""
    words = access.argv(command)
    words[0] = _cli.require("ssh", "openssh-client")
    began = time.monotonic()
    try:
        with data.open("rb") as stream:
            done = subprocess.run(words, stdin=stream, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as exc:
        raise FactoryError(f"did not end within {timeout:.0f} s", where="ssh") from exc
    out, err = (text.decode("utf-8", "replace") for text in (done.stdout, done.stderr))
    completed = _cli.Completed(words, done.returncode, out, err, time.monotonic() - began)
    if done.returncode != 0:
        raise _cli.ToolError(completed)
    return completed


def offered_methods(access: Access, *, timeout: float, tick: t.Callable[[str], None] | None = None) -> list[str]:
    """The ways of logging in that the guest offers, as C(publickey) and C(password); C(none) when anybody may.

    :raises FactoryError: the guest does not tell.
    """
    done = run(access, "true", timeout=timeout, check=False, tick=tick, PreferredAuthentications="none")
    if done.rc == 0:
        return ["none"]
    found = _DENIED.search(done.stderr)
    if not found:
        raise FactoryError(f"does not tell how to log in: {_cli.tail(done.stderr, 2)}", where="ssh")
    return sorted(found[1].split(","))


def wait_for_banner(host: str, port: int, *, timeout: float, tick: Tick) -> str | None:
    """Wait until an SSH server speaks there; what it calls itself, or None when the time is over."""
    deadline = time.monotonic() + timeout
    patience = 5.0
    while time.monotonic() < deadline:
        tick()
        banner, patient = _banner(host, port, min(patience, max(deadline - time.monotonic(), 1)), tick)
        if banner:
            return banner
        # QEMU takes the connection before the guest does. One made too early hangs; on the other hand, the guest may
        # be so busy that it needs long for its first word.
        patience = min(patience + 1, 20.0) if patient else patience
        time.sleep(1)
    return None


def _banner(host: str, port: int, patience: float, tick: Tick) -> tuple[str, bool]:
    """The first line that a server says when it is SSH's, else empty; and whether all the patience was needed."""
    try:
        with socket.create_connection((host, port), timeout=1) as connection:
            return _first_line(connection, patience, tick)
    except (ConnectionError, socket.timeout):
        return "", False


def _first_line(connection: socket.socket, patience: float, tick: Tick) -> tuple[str, bool]:
    deadline = time.monotonic() + patience
    said = b""
    while time.monotonic() < deadline:
        with contextlib.suppress(socket.timeout):
            chunk = connection.recv(256)
            said += chunk
            if not chunk or b"\n" in said:
                line = said.partition(b"\n")[0].decode("ascii", "replace").strip()
                return (line if line.startswith("SSH-") else ""), False
        tick()
    return "", True
