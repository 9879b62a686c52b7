# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""QMP, the protocol by which QEMU is controlled (docs/interop/qmp-spec.rst of QEMU): one command per connection."""

from __future__ import annotations

import json
import os
import socket
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

_SECONDS = 30.0


def execute(folder: Path, name: str, command: str, **arguments: t.Any) -> t.Any:
    """What QEMU returns for a command sent to the socket ``name`` in ``folder``.

    :raises FactoryError: it refuses.
    :raises OSError: it cannot be reached, or does not answer.
    """
    where = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(_SECONDS)
            # by way of /proc, since the path of a socket may have 107 bytes only
            client.connect(f"/proc/self/fd/{where}/{name}")
            with client.makefile("rwb") as stream:
                stream.readline()  # the greeting
                _ask(stream, "qmp_capabilities", {})
                return _ask(stream, command, arguments)
    finally:
        os.close(where)


def _ask(stream: t.Any, command: str, arguments: dict[str, t.Any]) -> t.Any:
    stream.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
    stream.flush()
    while line := stream.readline():
        answer = json.loads(line)
        if "return" in answer:
            return answer["return"]
        if "error" in answer:
            raise FactoryError(f"refuses {command}: {answer['error'].get('desc')}", where="QEMU")
    raise ConnectionResetError(f"QEMU closed the connection at {command}")
