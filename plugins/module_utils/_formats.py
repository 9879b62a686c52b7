# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The formats that a disk can be exported to, and what an entry of C(image_formats) may say about each."""

from __future__ import annotations

import re
import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils import _ovf_write, _qcow2_write, _raw_write

Refuse = t.Callable[[t.Sequence[str], str, str], t.NoReturn]
"""Raises the error: keys below the entry, what is wrong, how to mend it."""

_QCOW2: dict[str, dict[str, t.Any]] = {
    "compression": {"type": "str", "choices": ["zstd", "zlib"]},
    "cluster_size": {"type": "str"},
    "level": {"type": "int"},
}
_LEVEL: dict[str, dict[str, t.Any]] = {"level": {"type": "int"}}
_OWN: dict[str, dict[str, dict[str, t.Any]]] = {
    "qcow2": _QCOW2,
    "raw": {},
    "raw.gz": _LEVEL,
    "raw.xz": _LEVEL,
    "raw.zst": _LEVEL,
    "vmdk": {"subformat": {"type": "str", "choices": ["streamOptimized", "monolithicSparse"]}},
    "vdi": {},
    "vhd": {"subformat": {"type": "str", "choices": ["dynamic", "fixed"]}, "force_size": {"type": "bool"}},
    "vhdx": {},
    "ova": {
        "ovf": {"type": "str", "choices": list(_ovf_write.VERSIONS)},
        "controller": {"type": "str", "choices": list(_ovf_write.CONTROLLERS)},
        "nic": {"type": "str", "choices": list(_ovf_write.NICS)},
    },
    "box": _QCOW2,
}
NAMES = tuple(_OWN)
BOOTABLE = ("qcow2", "raw", "vmdk", "vdi", "vhd", "vhdx")
"""What a machine can be started from as it is, which the stage assess does."""

SPECS: dict[str, dict[str, dict[str, t.Any]]] = {
    name: {"format": {"type": "str", "required": True}, **own, "label": {"type": "str"}} for name, own in _OWN.items()
}
"""For each format the keys of an entry, as in argument_specs."""

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
_SIZE = re.compile(r"([1-9]\d*)([kKM]?)(?:iB)?")
_UNITS = {"": 1, "k": 1 << 10, "K": 1 << 10, "M": 1 << 20}
LEVELS = {"zstd": (1, 19), "zlib": (1, 9)}
"""The levels of compression that a qcow2 can be made with, from and to."""


def cluster_size(text: str | int) -> int:
    """The bytes of a cluster size such as C(64K); raises ValueError where QEMU would not take it."""
    found = _SIZE.fullmatch(str(text).strip())
    size = int(found[1]) * _UNITS[found[2]] if found else 0
    least, most = _qcow2_write.CLUSTER_SIZES
    if size & (size - 1) or not least <= size <= most:
        raise ValueError(f"{text!r} is no size of clusters")
    return size


def check(entry: dict[str, t.Any], refuse: Refuse) -> str | dict[str, t.Any]:
    """What types do not say about an entry; without options it becomes the format's name."""
    name = entry["format"]
    found = {key: value for key, value in entry.items() if value is not None}
    if "cluster_size" in found:
        try:
            cluster_size(found["cluster_size"])
        except ValueError as exc:
            refuse(("cluster_size",), str(exc), "give a power of two from 512 to 2M")
    if "level" in found:
        method = name.partition(".")[2]
        least, most = _raw_write.METHODS[method].levels if method else LEVELS[found.get("compression", "zstd")]
        if not least <= found["level"] <= most:
            refuse(("level",), f"is not from {least} to {most}", "correct it")
    if not _LABEL.fullmatch(found.get("label", "x")):
        refuse(("label",), f"{found['label']!r} cannot be a part of a file's name", "use a-z, 0-9 and - only")
    return name if set(found) == {"format"} else found


def file_name(stem: str, entry: str | t.Mapping[str, t.Any]) -> str:
    """The name of the artifact of an entry."""
    name, label = (entry, None) if isinstance(entry, str) else (entry["format"], entry.get("label"))
    return f"{stem}-{label}.{name}" if label else f"{stem}.{name}"
