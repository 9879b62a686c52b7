# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What a definition says of its installer: ``image_medium`` and ``image_installer``.

What goes into an answer file is written into the languages of seven installers. So it is held to the characters that the
thing itself can have: nothing that could be a line break, a quote or an escape in any of them ever gets there.
"""

from __future__ import annotations

import re
import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils import _sums
from ansible_collections.cloudimg.factory.plugins.module_utils._definition_extra import check_extra

Refuse = t.Callable[[t.Sequence[str], str, str], t.NoReturn]
"""Raises the error about a key, given as («image_medium», «url»), what is wrong, and how to mend it."""

BUILT = frozenset({"fai"})
"""The families of installers whose ISO is built from packages; any other needs one that is there already."""
WITH_DRIVERS = frozenset({"autounattend"})
"""The families whose installer has no drivers for a virtio disk."""

PACKAGE = re.compile(r"[@A-Za-z0-9][A-Za-z0-9@+._:=~*/-]*")
"""The name of a package, of a group of them (C(@core)), or one with its version."""
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_RULES = {
    "locale": (r"[A-Za-z]{1,8}(_[A-Z]{2})?(\.[A-Za-z0-9-]+)?(@[a-z]+)?", "a locale, such as en_US.UTF-8"),
    "keyboard": (r"[A-Za-z0-9][A-Za-z0-9_-]*", "a layout of XKB, such as us"),
    "timezone": (r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*", "a time zone, such as Europe/Prague"),
    "hostname": (_LABEL, "a host name without a domain"),
    "domain": (rf"{_LABEL}(\.{_LABEL})*", "a domain, such as example.org"),
    "console": (r"tty[A-Za-z]{1,4}[0-9]{1,2}(,[0-9]{3,7}[a-z0-9]{0,2})?", "a serial console, such as ttyS0,115200"),
}
_OS = {
    "distribution": (r"[a-z0-9][a-z0-9._-]*", "its ID in os-release(5), such as debian"),
    "version": (r"[A-Za-z0-9][A-Za-z0-9._-]*", "its VERSION_ID in os-release(5), such as 12"),
}
_WEB = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~/+%-]*)?")
_IN_ISO = re.compile(r"/?[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")
_ARGUMENTS = re.compile(r"[ -~]*")
_TEXT = re.compile(r"[^\x00-\x08\x0b-\x1f\x7f]*")


def check_medium(medium: t.Mapping[str, t.Any], refuse: Refuse) -> None:
    """Whether what is said of the medium fits together; raises through ``refuse``."""

    def wrong(key: str, problem: str, mend: str) -> t.NoReturn:
        refuse(("image_medium", key), problem, mend)

    family, source = medium["family"], "url" if medium["url"] else "path"
    if medium["url"] and medium["path"]:
        wrong("path", "and url cannot both be given", "remove one of them")
    if family in BUILT and medium[source]:
        wrong(source, f"cannot be used: the ISO of the family {family} is built from packages", "remove it")
    if family not in BUILT and not medium[source]:
        wrong("url", f"is missing; the family {family} installs from an ISO", "set url or path")
    _sums.check(medium, "an ISO", lambda path, problem, mend: wrong(path[0], problem, mend))
    for key in ("answer_file", "answer_extra"):
        if family in BUILT and medium[key]:
            wrong(key, f"cannot be used: what the family {family} installs is in its medium", "remove it")
    if medium["answer_file"] and medium["answer_extra"]:
        wrong("answer_extra", "is of no use beside answer_file, which is taken as it is", "put it into that file")
    if medium["mirror"] and not _WEB.fullmatch(medium["mirror"]):
        wrong(
            "mirror",
            f"{medium['mirror']!r} is no plain URL",
            "let it begin with http:// or https://, without a password",
        )
    for key in ("kernel", "initrd"):
        if medium[key] and not _IN_ISO.fullmatch(medium[key]):
            wrong(key, f"{medium[key]!r} is no path in an ISO", "give one such as images/pxeboot/vmlinuz")
    if not _ARGUMENTS.fullmatch(medium["kernel_args"] or ""):
        wrong("kernel_args", "has more than one line, or what is not ASCII", "give arguments with a space between them")
    if not _TEXT.fullmatch(medium["answer_extra"] or ""):
        wrong("answer_extra", "has control characters", "remove them")
    if medium["answer_extra"]:
        check_extra(family, medium["answer_extra"], lambda problem, mend: wrong("answer_extra", problem, mend))
    _check_drivers(medium, refuse)


def check_installer(definition: t.Mapping[str, t.Any], refuse: Refuse) -> None:
    """Whether what the installer is told are such things; raises through ``refuse``."""
    for key, (pattern, what) in _OS.items() if definition["image_os"] else ():
        if not re.fullmatch(pattern, definition["image_os"][key]):
            refuse(("image_os", key), f"{definition['image_os'][key]!r} cannot be right", f"give {what}")
    told = definition["image_installer"]
    for key, (pattern, what) in _RULES.items():
        if told[key] is not None and not re.fullmatch(pattern, told[key]):
            refuse(("image_installer", key), f"{told[key]!r} cannot be right", f"give {what}")
    if told["proxy"] is not None and not _WEB.fullmatch(told["proxy"]):
        mend = "give one such as http://proxy.example.org:3128, without a user"
        refuse(("image_installer", "proxy"), f"{told['proxy']!r} is no plain URL", mend)
    family = (definition["image_medium"] or {}).get("family")
    if family in BUILT and told["filesystem"] not in (None, "ext4"):
        refuse(("image_installer", "filesystem"), f"cannot be chosen: the family {family} makes ext4", "remove it")
    for package in told["packages"]:
        if not PACKAGE.fullmatch(package):
            refuse(("image_installer", "packages"), f"{package!r} cannot be the name of a package", "correct it")


def _check_drivers(medium: t.Mapping[str, t.Any], refuse: Refuse) -> None:
    drivers, family = medium["drivers"], medium["family"]
    if family in WITH_DRIVERS and not drivers:
        refuse(("image_medium", "drivers"), f"is missing; the family {family} needs drivers for virtio", "set it")
    if not drivers:
        return
    if bool(drivers["url"]) == bool(drivers["path"]):
        refuse(("image_medium", "drivers", "url"), "or path, exactly one of them is needed", "set one of them")
    _sums.check(
        drivers,
        "an ISO",
        lambda path, problem, mend: refuse(("image_medium", "drivers", *path), problem, mend),
    )
