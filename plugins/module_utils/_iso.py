# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Looking at an ISO 9660 image: whether it is one, whether it is whole, and what is in it."""

from __future__ import annotations

import dataclasses
import re
import struct
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors

_SECTOR = 2048
_FIRST, _LAST = 16, 64  # the sectors in which volume descriptors are looked for (ECMA-119, 6.7.1)
_PRIMARY, _TERMINATOR = 1, 255
_OTHERS = (
    (rb"\s*<(!doctype|html|\?xml)", "a web page"),
    (rb"\x1f\x8b", "a gzip file"),
    (rb"\xfd7zXZ\0", "an xz file"),
    (rb"BZh", "a bzip2 file"),
    (rb"PK\x03\x04", "a zip file"),
    (rb"QFI\xfb", "a qcow2 disk"),
)


@dataclasses.dataclass(frozen=True)
class Volume:
    """An image's label, and its size in bytes as its volume descriptor tells it (hybrid images are longer)."""

    label: str
    size: int


def inspect(path: Path, *, where: str, key: str) -> Volume:
    """Read the primary volume descriptor.

    :param where: what to call the file in messages (its URL, while ``path`` is not its final name).
    :raises FactoryError: it is no ISO 9660 image, or a truncated one.
    """
    with explain_os_errors(path), path.open("rb") as stream:
        return read_volume(stream.read(_LAST * _SECTOR), path.stat().st_size, where=where, key=key)


def read_volume(head: bytes, length: int, *, where: str, key: str) -> Volume:
    """Read the primary volume descriptor out of an image's first bytes.

    :param length: bytes of the whole file; 0 where that is not known.
    :raises FactoryError: it is no ISO 9660 image, or a truncated one.
    """
    mend = "give the place of an installation ISO"
    descriptor = b""
    for sector in range(_FIRST, _LAST):
        descriptor = head[sector * _SECTOR : (sector + 1) * _SECTOR]
        if len(descriptor) < _SECTOR or descriptor[1:6] != b"CD001" or descriptor[0] in (_PRIMARY, _TERMINATOR):
            break
    if len(descriptor) < _SECTOR or descriptor[0] != _PRIMARY or descriptor[1:6] != b"CD001":
        other = next((name for magic, name in _OTHERS if re.match(magic, head, re.IGNORECASE)), None)
        looks = f", it looks like {other}" if other else ""
        raise FactoryError(f"is not an ISO 9660 image ({length} bytes{looks})", where=where, key=key, mend=mend)
    (blocks,) = struct.unpack_from("<I", descriptor, 80)
    (block_size,) = struct.unpack_from("<H", descriptor, 128)
    volume = Volume(descriptor[40:72].decode("ascii", "replace").rstrip(" \0"), blocks * block_size)
    if length and volume.size > length:
        raise FactoryError(
            f"is a truncated ISO: {length} of {volume.size} bytes",
            where=where,
            key=key,
            mend="fetch it again, and check it against the vendor's checksum",
        )
    return volume


def require_files(path: Path, files: t.Iterable[str], *, where: str, family: str) -> None:
    """Raise FactoryError where one of ``files`` (paths inside the image) is not in it, or not a file."""
    wanted = [f"/{file.strip('/')}" for file in files]
    if not wanted:
        return
    # -lsdl lists what it finds and passes over what it does not; names are printed in the shell's single quotes.
    done = _cli.run(
        ["xorriso", "-no_rc", "-abort_on", "FATAL", "-indev", f"stdio:{path}", "-lsdl", *wanted, "--"],
        timeout=120,
        check=False,
    )
    found = set(re.findall(r"^[-l]\S+ .*'(/.*)'(?: -> .*)?$", done.stdout, re.MULTILINE))
    missing = [file for file in wanted if file not in found]
    if missing:
        raise FactoryError(
            f"has no {' and no '.join(missing)}, so it is no installation medium of family {family!r}",
            where=where,
            key="image_medium.family",
            mend="name the family that this medium belongs to, or give another medium",
        )
