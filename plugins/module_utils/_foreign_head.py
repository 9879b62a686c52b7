# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Plain reads of a foreign file: never more than is asked for, and an error of ours where there is less."""

from __future__ import annotations

import struct
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

SECTOR = 512
FLATTEN = "flatten it into one plain file where it comes from"
BROKEN = "fetch it again, or export it anew where it comes from"


class Head:
    """A foreign disk file of which the header is to be judged.

    :param limit: bytes that a guest may see of it at most.
    """

    def __init__(self, path: Path, stream: t.BinaryIO, limit: int) -> None:
        self.path = path
        self.limit = limit
        self.size = stream.seek(0, 2)
        self._stream = stream

    def read(self, offset: int, length: int) -> bytes:
        """That many bytes from there.

        :raises FactoryError: the file ends before.
        """
        if offset < 0 or offset + length > self.size:
            self.refuse("ends within its header", "fetch it again")
        self._stream.seek(offset)
        return self._stream.read(length)

    def unpack(self, layout: str, offset: int) -> tuple[t.Any, ...]:
        """Numbers of a header, see :mod:`struct`."""
        return struct.unpack(layout, self.read(offset, struct.calcsize(layout)))

    def refuse(self, problem: str, mend: str = FLATTEN) -> t.NoReturn:
        """Raise the FactoryError for this file."""
        raise FactoryError(problem, where=str(self.path), mend=mend)

    def believe(self, size: int) -> int:
        """The virtual size in bytes that a header claims.

        :raises FactoryError: it is more than is allowed.
        """
        if size > self.limit:
            self.refuse(
                f"claims to hold {size} bytes, more than is believable or allowed ({self.limit})",
                "allow it a larger disk, or give a smaller one",
            )
        return size
