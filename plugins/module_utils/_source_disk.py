# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What C(image_source_disk) may say, and whether it fits together; nothing is fetched or opened for that."""

from __future__ import annotations

import dataclasses
import re
import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils import _sums

KEY = "image_source_disk"
FORMATS = ("qcow2", "raw", "raw.gz", "raw.xz", "raw.zst", "raw.bz2", "vmdk", "vdi", "vhd", "vhdx", "ova")
PLACES = ("url", "path", "device", "ssh")

_DEVICE = re.compile(r"/dev/[A-Za-z0-9][A-Za-z0-9._/+:-]*")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:_-]*[A-Za-z0-9])?")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9._-]*\$?")


@dataclasses.dataclass(frozen=True)
class SourceDisk:
    """An C(image_source_disk), checked by :func:`check_source`."""

    url: str | None = None
    path: str | None = None
    device: str | None = None
    ssh: t.Mapping[str, t.Any] | None = None
    checksum: str | None = None
    signature: str | None = None
    keyring: str | None = None
    fingerprints: tuple[str, ...] = ()
    format: str | None = None
    disk: str | None = None

    @classmethod
    def load(cls, given: t.Mapping[str, t.Any]) -> SourceDisk:
        """From the options of the module or the definition, which may hold None."""
        values = {key: value for key, value in given.items() if value is not None}
        values["fingerprints"] = tuple(values.get("fingerprints") or ())
        return cls(**values)


def check_source(given: SourceDisk, refuse: _sums.Refuse) -> None:
    """Whether what is said of a source fits together; needs nothing but the definition."""
    places = [name for name in PLACES if getattr(given, name)]
    if not places:
        refuse((), "names no disk", f"set one of: {', '.join(PLACES)}")
    if len(places) > 1:
        refuse((places[1],), f"and {places[0]} cannot both be given", "remove one of them")
    place = places[0]
    if place in ("device", "ssh"):
        for key in ("signature", "keyring", "fingerprints", "disk"):
            if getattr(given, key):
                refuse((key,), f"is for files, but {place} is a disk itself", "remove it")
        if given.format not in (None, "raw"):
            refuse(("format",), f"is {given.format}, but {place} is a disk itself", "remove it")
        _check_device(given, refuse)
    _sums.check(dataclasses.asdict(given), "a disk", refuse)
    if place in ("device", "ssh") and given.checksum and not _sums.explicit(given.checksum):
        refuse(("checksum",), f"is a file's, but {place} is in no checksum file", "write sha256:<hex>, or remove it")
    if given.disk and given.format not in (None, "ova"):
        refuse(("disk",), f"names a disk of an appliance, but format is {given.format}", "remove one of them")


def _check_device(given: SourceDisk, refuse: _sums.Refuse) -> None:
    ssh = given.ssh or {}
    for path, value, pattern, mend in (
        (("device",), given.device, _DEVICE, "give the path of a block device, such as /dev/vdb"),
        (("ssh", "device"), ssh.get("device"), _DEVICE, "give the path of a block device there, such as /dev/vda"),
        (("ssh", "host"), ssh.get("host"), _HOST, "give a host's name or address"),
        (("ssh", "user"), ssh.get("user"), _USER, "give the name of a user there"),
    ):
        if value and (not pattern.fullmatch(str(value)) or ".." in str(value)):
            refuse(path, f"{value!r} cannot be used", mend)
    for key in ("host", "device"):
        if given.ssh and not ssh.get(key):
            refuse(("ssh", key), "is missing", "set it")
    if ssh.get("port") is not None and not 0 < int(ssh["port"]) < 65536:
        refuse(("ssh", "port"), f"{ssh['port']} is no port", "give a number from 1 to 65535")
