# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What other tools call distributions, and how each is installed here: data."""

from __future__ import annotations

import re
import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils._versions import version_key

IDS = {
    "alma": "almalinux",
    "almalinux": "almalinux",
    "centos": "centos",
    "centoslinux": "centos",
    "centosstream": "centos",
    "debian": "debian",
    "fedora": "fedora",
    "fedoracore": "fedora",
    "freebsd": "freebsd",
    "mageia": "mageia",
    "mandrake": "mandrake",
    "mandriva": "mandriva",
    "ol": "ol",
    "opensuse": "opensuse",
    "opensuseleap": "opensuse-leap",
    "opensusetumbleweed": "opensuse-tumbleweed",
    "oraclelinux": "ol",
    "redhat": "rhel",
    "redhatenterpriselinux": "rhel",
    "rhel": "rhel",
    "rhl": "rhl",
    "rocky": "rocky",
    "rockylinux": "rocky",
    "scientific": "scientific",
    "scientificlinux": "scientific",
    "sl": "scientific",
    "sled": "sled",
    "sles": "sles",
    "suselinuxenterpriseserver": "sles",
    "ubuntu": "ubuntu",
    "windows": "windows",
    "windowsserver": "windows",
}
"""Names, by letters and digits only, with the C(ID) of os-release(5); older systems than that have the name of libosinfo."""

_FAMILIES: dict[str, tuple[tuple[str, str], ...]] = {
    "almalinux": (("", "kickstart"),),
    "centos": (("", "kickstart"),),
    "debian": (("", "preseed"),),
    "fedora": (("", "kickstart"),),
    "ol": (("", "kickstart"),),
    "opensuse": (("", "autoyast"),),
    "opensuse-leap": (("16", "agama"), ("", "autoyast")),
    "opensuse-tumbleweed": (("", "autoyast"),),
    "rhel": (("", "kickstart"),),
    "rhl": (("", "kickstart"),),
    "rocky": (("", "kickstart"),),
    "scientific": (("", "kickstart"),),
    "sled": (("16", "agama"), ("", "autoyast")),
    "sles": (("16", "agama"), ("", "autoyast")),
    "ubuntu": (("20.04", "autoinstall"), ("", "preseed")),
    "windows": (("", "autounattend"),),
}
"""The kind of answer file that an installer reads, from which version on, newest first."""

_PARTS = {"centos": 1, "debian": 1, "fedora": 1}
"""How many numbers C(VERSION_ID) of os-release(5) has; two where nothing else is said."""

ARCHITECTURES = {"x86_64": "x86_64", "amd64": "x86_64", "x64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
"""What is built here, by all its names."""

_ARCH = r"(?P<arch>x86_64|amd64|x64|aarch64|arm64|i386|i686|ppc64le|ppc64el|s390x)"
_MEDIA: tuple[tuple[str, str], ...] = (
    ("debian", rf"debian-(?P<version>\d+)[\d.]*-(?:.*-)?{_ARCH}"),
    ("ubuntu", rf"ubuntu-(?P<version>\d+\.\d+)[\d.]*-.*{_ARCH}"),
    ("centos", rf"centos-(?:stream-)?(?P<version>\d+)[\d.]*-.*?{_ARCH}"),
    ("almalinux", rf"almalinux-(?P<version>\d+(?:\.\d+)?)-.*?{_ARCH}"),
    ("rocky", rf"rocky-(?P<version>\d+(?:\.\d+)?)-.*?{_ARCH}"),
    ("fedora", rf"fedora-.*?{_ARCH}-(?P<version>\d+)"),
    ("rhel", rf"rhel-(?:server-)?(?P<version>\d+\.\d+)-.*?{_ARCH}"),
    ("ol", rf"oraclelinux-r(?P<version>\d+-u\d+)-.*?{_ARCH}"),
    ("opensuse-leap", rf"opensuse-leap-(?P<version>\d+\.\d+).*?{_ARCH}"),
    ("sles", rf"sle-(?P<version>\d+(?:-sp\d+)?)-.*?{_ARCH}"),
    ("windows", rf"windows[_-]?server[_-]?(?P<version>20\d\d)(?:.*?{_ARCH})?"),
)
"""What official installation ISOs are called."""


class System(t.NamedTuple):
    """An operating system as C(image_os) has it."""

    distribution: str
    version: str


class Medium(t.NamedTuple):
    """What the name of an official ISO tells."""

    system: System
    arch: str | None


def system(name: str, version: str) -> System | None:
    """The system that another tool calls so (C(RHEL-7) and C(U9), C(Debian) and C(8.4.0)); None where it is not known."""
    name, version = name.strip(), version.strip()
    found = IDS.get(_letters(name))
    if not found:
        # Oz has the major version in the name: RHEL-7, and then an update: 9, U9 or GOLD.
        split = re.fullmatch(r"(.*?)[ _-]?(\d{1,4}(?:\.\d{1,4})?)", name)
        found = IDS.get(_letters(split[1])) if split else None
        if not split or not found:
            return None
        update = re.sub(r"(?i)^(?:u|sp)(?=\d)", "", version)
        version = split[2] if update.upper() in ("", "GOLD") else f"{split[2]}.{update}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}", version):
        return None
    major = int(version.partition(".")[0]) if re.fullmatch(r"\d{1,4}(\..*)?", version) else 0
    if found == "opensuse" and 15 <= major < 42:
        found = "opensuse-leap"
    return System(found, ".".join(version.split(".")[: _PARTS.get(found, 2)]))


def family(found: System) -> str | None:
    """The kind of answer file that its installer reads; None where none is known here."""
    for since, name in _FAMILIES.get(found.distribution, ()):
        if version_key(found.version) >= version_key(since):
            return name
    return None


def medium(url: str) -> Medium | None:
    """The system, and the architecture as far as it is told, that the name of an official ISO tells; None for any other name."""
    for distribution, pattern in _MEDIA:
        found = re.search(pattern, url.rpartition("/")[2], re.IGNORECASE)
        if found:
            version = re.sub(r"(?i)-(?:u|sp)", ".", found["version"])
            told = system(distribution, version)
            return Medium(told, found["arch"].lower() if found["arch"] else None) if told else None
    return None


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
