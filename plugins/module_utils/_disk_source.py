# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Reading the data of a chain of layers, and nothing but the data: holes cost nothing, however large the disk is.

C(qemu-img map) tells for every range that holds data in which file it is, and where. What a file holds as it is (layers
are not compressed) is read from there, by as many threads as one likes. Where a layer is compressed, the chain is
first unpacked into a raw file with holes.

Source of the map: https://www.qemu.org/docs/master/tools/qemu-img.html (C(map)).
"""

from __future__ import annotations

import bisect
import os
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _qemu_img
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors, remove


def _stamp(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _clear(view: memoryview, first: int, last: int) -> None:
    if first < last:
        view[first:last] = bytes(last - first)


class DiskSource:
    """The content of a qcow2 with all that is below it; a context manager. Sizes and positions are in bytes.

    :param scratch: a name for a raw file, used where a layer is compressed, and removed in the end.
    :raises FactoryError: it cannot be read.
    """

    def __init__(self, path: Path, scratch: Path, tick: _qemu_img.Tick | None = None) -> None:
        self.path = path
        self._scratch = scratch
        self._tick = tick
        self._files: list[int] = []
        self._starts: list[int] = []
        self._extents: list[tuple[int, int, int, int]] = []  # start, end, file, position in it
        self._stamps: dict[Path, tuple[int, int, int]] = {}
        self.size = 0

    def __enter__(self) -> DiskSource:
        try:
            self._open()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        while self._files:
            os.close(self._files.pop())
        remove(self._scratch)

    def _open(self) -> None:
        top = _qemu_img.info(self.path, chain=True)
        self.size = top.virtual_size
        paths = [top.path, *(image.path for image in top.chain)]
        self._stamps = {path: _stamp(path) for path in paths}
        ranges = self._data(self.path, "qcow2")
        if any("offset" not in row for row in ranges):
            # out of order into a raw file is no less determined, and three times as fast
            _qemu_img.convert(
                self.path,
                self._scratch,
                source_fmt="qcow2",
                target_fmt="raw",
                coroutines=16,
                out_of_order=True,
                tick=self._tick,
            )
            ranges, paths = self._data(self._scratch, "raw"), [self._scratch]
        with explain_os_errors(self.path):
            self._files = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths]
        for row in ranges:
            start, depth = int(row["start"]), int(row["depth"])
            self._starts.append(start)
            self._extents.append((start, start + int(row["length"]), self._files[depth], int(row["offset"])))

    @staticmethod
    def _data(path: Path, fmt: str) -> list[dict[str, t.Any]]:
        return [row for row in _qemu_img.disk_map(path, fmt) if row["data"] and not row["zero"]]

    @property
    def data(self) -> int:
        """The bytes of all ranges that hold data."""
        return sum(end - start for start, end, _file, _position in self._extents)

    def occupied(self, chunk: int) -> t.Iterator[int]:
        """The numbers of the pieces of ``chunk`` bytes that hold data, in order."""
        last = -1
        for start, end, _file, _position in self._extents:
            for number in range(max(start // chunk, last + 1), -(-end // chunk)):
                yield number
                last = number

    def pieces(self, chunk: int) -> t.Iterator[tuple[int, bool]]:
        """The numbers of all pieces of ``chunk`` bytes, and whether they hold data."""
        following = 0
        for number in self.occupied(chunk):
            for hole in range(following, number):
                yield hole, False
            yield number, True
            following = number + 1
        for hole in range(following, -(-self.size // chunk)):
            yield hole, False

    def read(self, position: int, length: int) -> bytes:
        """The bytes there; fewer than ``length`` at the end of the disk."""
        found = bytearray(max(min(position + length, self.size) - position, 0))
        self.read_into(position, found)
        return bytes(found)

    def read_into(self, position: int, room: bytearray) -> None:
        """Put the bytes there into all of ``room``, which may hold anything; zeros where there is nothing."""
        end = position + len(room)
        index = max(bisect.bisect_right(self._starts, position) - 1, 0)
        view = memoryview(room)
        filled = position
        for number in range(index, len(self._extents)):
            start, stop, file, offset = self._extents[number]
            if start >= end:
                break
            done, last = max(start, position), min(stop, end)
            if done >= last:
                continue
            _clear(view, filled - position, done - position)
            while done < last:
                count = os.preadv(file, [view[done - position : last - position]], offset + done - start)
                if not count:
                    break  # a file may end within its last cluster: what is missing is zeros
                done += count
            _clear(view, done - position, last - position)
            filled = last
        _clear(view, filled - position, len(room))

    def check_unchanged(self) -> None:
        """Raise FactoryError where a layer was written to, or replaced, since it was opened."""
        for path, stamp in self._stamps.items():
            with explain_os_errors(path):
                now = _stamp(path)
            if now != stamp:
                raise FactoryError(
                    "was changed while it was exported",
                    where=str(path),
                    mend="see that nothing writes to it, then run this again",
                )
