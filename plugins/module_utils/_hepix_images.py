# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The images of a HEPiX image list: how a build becomes one, and how versions come and go."""

from __future__ import annotations

import dataclasses
import typing as t
import urllib.parse
import uuid

from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor import (
    Artifact,
    Descriptor,
    version_identifier,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._hepix import (
    FOREVER,
    FORMATS,
    NAME,
    STABLE,
    Document,
    check_url,
    check_uuid,
    extra_fields,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._versions import version_key

_OS_NAMES = {
    "almalinux": "AlmaLinux",
    "alpine": "Alpine Linux",
    "arch": "Arch Linux",
    "centos": "CentOS",
    "debian": "Debian",
    "devuan": "Devuan",
    "fedora": "Fedora",
    "freebsd": "FreeBSD",
    "opensuse": "openSUSE",
    "oracle": "Oracle Linux",
    "rhel": "Red Hat Enterprise Linux",
    "rocky": "Rocky Linux",
    "scientific": "Scientific Linux",
    "sles": "SUSE Linux Enterprise Server",
    "ubuntu": "Ubuntu",
    "windows": "Windows",
}
_FAMILIES = {"freebsd": "FreeBSD", "windows": "Windows"}
_DEFAULT_GROUP = "General group"


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """How a build becomes an image of a list. ``fields`` are keys of the list, such as C(ad:group), that are set as given."""

    base_url: str
    format: str | None = None
    identifier: str | None = None
    hypervisor: str = "KVM"
    comments: str = ""
    fields: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)


def pick(build: Descriptor, wanted: str | None, where: str) -> Artifact:
    """The artifact in a format, by default the first that consumers of lists can use; raises FactoryError for none."""
    for artifact in build.artifacts:
        if artifact.format == wanted or (wanted is None and artifact.format in FORMATS):
            return artifact
    had = ", ".join(sorted({artifact.format for artifact in build.artifacts}))
    raise FactoryError(
        f"has no artifact in the format {wanted}, only {had}"
        if wanted
        else f"has no artifact for an image list, only {had}",
        where=where,
        key="artifacts",
        mend=f"export one of {', '.join(FORMATS)}"
        if wanted is None
        else "name one of these, or export the image again",
    )


def image(build: Descriptor, artifact: Artifact, options: ImageOptions, listed: Document) -> Document:
    """The C(hv:image) of a build in the list whose :func:`head` is ``listed``."""
    stable = check_uuid(options.identifier, "image_identifier") if options.identifier else build.identifier
    endorser = listed["hv:endorser"]["hv:x509"]
    home = listed["hv:uri"].rsplit("/", 1)[0] if listed["hv:uri"].count("/") > 2 else listed["hv:uri"]
    distribution = build.os.distribution.lower()
    base = check_url(options.base_url, "base_url").rstrip("/")
    fixed = {
        NAME: build.image,
        STABLE: stable,
        "dc:identifier": stable,
        "dc:date:created": build.created,
        "dc:date:expires": build.expires or FOREVER,
        "hv:uri": f"{base}/{urllib.parse.quote(artifact.path)}",
        "hv:size": str(artifact.size),
        "hv:version": build.version,
        "hv:format": artifact.format,
        "hv:hypervisor": options.hypervisor,
        "sl:arch": build.os.arch,
        "sl:checksum:sha512": artifact.checksums["sha512"],
        "sl:comments": options.comments,
    }
    chosen = {
        "dc:title": build.title,
        "dc:description": build.description.strip() or build.title,
        "sl:os": _FAMILIES.get(distribution, "Linux"),
        "sl:osname": _OS_NAMES.get(distribution, build.os.distribution),
        "sl:osversion": build.os.version,
        "ad:group": build.groups[0] if build.groups else _DEFAULT_GROUP,
        "ad:mpuri": f"{home}/image/{stable}:{build.version}/",
        "ad:base_mpuri": f"{home}/image/{stable}/",
        "ad:user:fullname": endorser["dc:creator"],
        "ad:user:guid": str(uuid.uuid5(uuid.NAMESPACE_X500, endorser["hv:dn"])),
        "ad:user:uri": f"mailto:{endorser['hv:email']}",
        **({"hv:ram_minimum": str(build.memory << 20)} if build.memory else {}),
        **({"hv:core_minimum": str(build.cpu)} if build.cpu else {}),
    }
    return {**chosen, **extra_fields(options.fields, fixed, "image_fields"), **fixed}


def group(entry: Document) -> str:
    """What all the versions of an image in a list have in common; images that others put in stand alone."""
    return str(entry.get(STABLE) or entry.get("dc:identifier"))


def place(entries: list[Document], new: Document, keep: int, where: str) -> tuple[list[Document], list[Document]]:
    """Put a version of an image into a list; returns what the list has then, and what fell out as ``keep`` says.

    :raises FactoryError: it is not newer than what the list has, or the list has it with other content.
    """
    stable, version, name = new[STABLE], new["hv:version"], new[NAME]
    same = [entry for entry in entries if group(entry) == stable]
    others = [entry for entry in entries if group(entry) != stable]
    known = next((entry for entry in same if entry.get("hv:version") == version), None)
    if known is not None and known.get("sl:checksum:sha512") != new["sl:checksum:sha512"]:
        problem = f"version {version} is in the list already, with other content"
        raise FactoryError(problem, where=where, key=name, mend="raise image_version and build again")
    rest = sorted(
        (entry for entry in same if entry is not known), key=lambda entry: version_key(str(entry.get("hv:version")))
    )
    newer = [
        str(entry.get("hv:version"))
        for entry in rest
        if version_key(str(entry.get("hv:version"))) > version_key(version)
    ]
    if newer and (known is None or len(newer) >= keep):
        raise FactoryError(
            f"version {version} is not newer than {newer[-1]}, which the list has",
            where=where,
            key=name,
            mend="raise image_version and build again"
            if known is None
            else "raise keep, or take the newer one out first",
        )
    ordered = sorted([*rest, new], key=lambda entry: version_key(str(entry.get("hv:version"))))
    stay, gone = ordered[-keep:], ordered[:-keep]
    clash = next(
        (entry for entry in [*others, *stay] if entry is not new and entry.get("hv:uri") == new["hv:uri"]), None
    )
    if clash is not None and clash.get("sl:checksum:sha512") != new["sl:checksum:sha512"]:
        raise FactoryError(
            f"has the URI {new['hv:uri']}, at which the list has {label(clash)} with other content",
            where=where,
            key=name,
            mend="give each build a base_url of its own, or other names of files",
        )
    return arrange([*others, *stay]), gone


def take_out(
    entries: list[Document], *, stable: str | None, name: str | None, version: str | None
) -> tuple[list[Document], list[Document]]:
    """Take versions of an image out of a list; returns what the list has then, and what was taken.

    :param stable: the image's identifier, or ``name`` its name; both where both are given.
    :param version: by default all versions.
    """

    def meant(entry: Document) -> bool:
        return (
            (stable is None or stable in (group(entry), entry.get("dc:identifier")))
            and (name is None or entry.get(NAME) == name)
            and (version is None or entry.get("hv:version") == version)
        )

    gone = [entry for entry in entries if meant(entry)]
    return arrange([entry for entry in entries if not meant(entry)]), gone


def arrange(entries: list[Document]) -> list[Document]:
    """Sort a list's images, and let the newest version of each have the identifier that consumers subscribe to.

    Older versions have identifiers of their own, as an identifier must be in a list only once. Images that others put in
    come first, as they are.
    """
    foreign = [entry for entry in entries if STABLE not in entry]
    groups: dict[tuple[str, str], list[Document]] = {}
    for entry in entries:
        if STABLE in entry:
            groups.setdefault((str(entry.get(NAME)), group(entry)), []).append(entry)
    result = list(foreign)
    for (_name, stable), members in sorted(groups.items()):
        newest, *older = sorted(members, key=lambda entry: version_key(str(entry.get("hv:version"))), reverse=True)
        result.append({**newest, "dc:identifier": stable})
        for entry in older:
            result.append({**entry, "dc:identifier": version_identifier(stable, str(entry.get("hv:version")))})
    return result


def label(entry: Document) -> str:
    """What messages call an image of a list."""
    return f"{entry.get(NAME) or entry.get('dc:title') or entry.get('dc:identifier')} {entry.get('hv:version')}"
