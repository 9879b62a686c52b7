# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""From a build's descriptor to what AppDB shall have of it."""

from __future__ import annotations

import datetime
import re
import typing as t
from pathlib import Path
from urllib.parse import quote, urlsplit

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _descriptor_files
from ansible_collections.cloudimg.factory.plugins.module_utils._appdb_document import (
    DIRECTIONS,
    PROTOCOLS,
    Image,
    Traffic,
    Version,
    check,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor import Artifact, Descriptor
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

LONGEST = datetime.timedelta(days=365)
"""How long AppDB lets a version live; it shortens what is longer, and takes this where nothing is said."""

_SYSTEMS = {
    "almalinux": "AlmaLinux",
    "alma": "AlmaLinux",
    "centos": "CentOS",
    "debian": "Debian",
    "fedora": "Fedora",
    "opensuse": "OpenSUSE",
    "rhel": "RedHat",
    "rocky": "Rocky Linux",
    "sles": "SUSE",
    "ubuntu": "Ubuntu",
    "windows": "Windows",
}
_ARCHES = {"amd64": "x86_64", "arm64": "aarch64", "i686": "i386"}
_RANGE = re.compile(r"\d{1,5}(:\d{1,5})?([;,]\d{1,5}(:\d{1,5})?)*")


def wanted(path: Path, build: Descriptor, options: t.Mapping[str, t.Any]) -> tuple[Version, list[str]]:
    """What AppDB shall have of the build that the descriptor ``path`` is of, and what the user should know about it.

    :param options: those of the module M(cloudimg.factory.appdb_appliance).
    :raises FactoryError: an option or the descriptor has what AppDB refuses, or the artifact is not what it says.
    """
    where = str(path)
    warnings: list[str] = []
    artifact = _artifact(where, build, options.get("format"))
    version = check(
        "version", build.version, where=where, mend="give image_version at most 20 characters, and build again"
    )
    notes = check(
        "notes", options.get("notes") or build.description or build.title, mend="give notes of 1 to 1000 bytes"
    )
    _descriptor_files.checked(path, build, artifact)
    system = options.get("os") or {}
    ram = _pair("ram", options.get("ram"), build.memory)
    image = Image(
        url=_url(str(options.get("artifact_url") or ""), artifact),
        size=artifact.size,
        checksum=artifact.checksums["sha512"],
        format=artifact.format.upper(),
        arch=options.get("arch") or _ARCHES.get(build.os.arch, build.os.arch),
        os=system.get("name") or _SYSTEMS.get(build.os.distribution.lower(), build.os.distribution),
        os_version=str(system.get("version") or build.os.version),
        os_family=str(system.get("family") or ""),
        hypervisor=options.get("hypervisor") or "KVM",
        cores=_pair("cores", options.get("cores"), build.cpu),
        ram=ram and (ram[0] << 20, ram[1] << 20),
        traffic=tuple(_traffic(row, index) for index, row in enumerate(options.get("network_traffic") or [])),
        group=check("group", options.get("group") or "General group"),
        title=check("title", options.get("title") or build.title),
        description=check("description", options.get("description") or build.description or build.title),
        integrity=bool(options.get("integrity")),
    )
    return Version(version, notes, image, _expires(where, build, warnings)), warnings


def _artifact(where: str, build: Descriptor, wish: str | None) -> Artifact:
    if not wish:
        return build.artifacts[0]
    found = next((artifact for artifact in build.artifacts if artifact.format == wish), None)
    if found is None:
        there = ", ".join(artifact.format for artifact in build.artifacts)
        raise FactoryError(
            f"has no artifact in the format {wish}, but {there}",
            where=where,
            key="artifacts",
            mend="add it to image_formats and build again, or ask for another format",
        )
    return found


def _url(url: str, artifact: Artifact) -> str:
    """The artifact's URL: as given, or in the directory that is given with a slash at its end."""
    full = url + quote(artifact.path) if url.endswith("/") else url
    try:
        parts = urlsplit(full)
        # The same as PHP's FILTER_VALIDATE_URL, as far as it matters here: plain ASCII with a host.
        if parts.scheme in ("http", "https") and parts.hostname and re.fullmatch(r"[!-;=?-~]+", full):
            return full
    except ValueError:
        pass
    raise FactoryError(
        "is no URL that AppDB takes", where=full, key="artifact_url", mend="give the http or https URL of the artifact"
    )


def _expires(where: str, build: Descriptor, warnings: list[str]) -> str:
    latest = datetime.datetime.now(datetime.timezone.utc) + LONGEST
    if not build.expires:
        return ""
    _descriptor.must_be_alive(build.expires, where)
    moment = _descriptor.parse_time(build.expires)
    if moment > latest:
        warnings.append(
            f"{where}: expires: {build.expires} is more than a year away, AppDB lets a version live for a year at most"
        )
        # AppDB counts from its own present, and what is left out is a year there.
        return ""
    return build.expires


def _pair(key: str, given: t.Mapping[str, t.Any] | None, default: int | None) -> tuple[int, int] | None:
    minimum = (given or {}).get("minimum") or default
    recommended = (given or {}).get("recommended") or minimum
    if minimum is None or recommended is None:
        return None
    if minimum < 1 or recommended < minimum:
        raise FactoryError(
            f"minimum {minimum} and recommended {recommended} contradict each other",
            key=key,
            mend="recommend at least the minimum, which is at least 1",
        )
    return int(minimum), int(recommended)


def _traffic(row: t.Mapping[str, t.Any], index: int) -> Traffic:
    key = f"network_traffic[{index}]"
    traffic = Traffic(
        direction=row.get("direction") or "inbound",
        protocols=" ".join(row.get("protocols") or ["TCP"]),
        ip_range=str(row.get("ip_range") or "").strip(),
        port_range=str(row.get("port_range") or "").strip(),
    )
    problem = None
    if traffic.direction not in DIRECTIONS:
        problem = f"direction {traffic.direction!r} is none of {', '.join(DIRECTIONS)}"
    elif not set(traffic.protocols.split()) <= set(PROTOCOLS):
        problem = f"protocols {traffic.protocols!r} are not all of {', '.join(PROTOCOLS)}"
    elif traffic.port_range and not _RANGE.fullmatch(traffic.port_range):
        problem = f"port_range {traffic.port_range!r} is none"
    if problem:
        raise FactoryError(problem, key=key, mend="mend that entry; ports are given as 22 or 8000:8080")
    return traffic
