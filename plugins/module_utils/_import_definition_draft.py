# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""A definition in the making: what was taken over from where, and what could not be."""

from __future__ import annotations

import dataclasses
import math
import re
import typing as t
from pathlib import Path
from urllib.parse import urlsplit

from ansible_collections.cloudimg.factory.plugins.module_utils import _import_definition_data, _sums
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_ledger import Ledger
from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_secrets import (
    LOOKED_THROUGH,
    short,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_source import Node, read

WEAK = (
    "{} is too weak to tell that a file is the right one; give image_medium.checksum the URL of the vendor's file of SHA-256 "
    "sums (and its signature), or sha256:<hex> of it"
)
NO_SCRIPTS = "is a command for the image; give scripts_dir to have it as a script, or add one of yours to image_scripts"
_REPOSITORY = re.compile(r"[a-z0-9][a-z0-9.-]*")
_PACKAGE = re.compile(r"[@A-Za-z0-9][A-Za-z0-9@+._:=~*/-]*")  # as in _definition
_BY_LENGTH = {32: "md5", 40: "sha1", 64: "sha256", 128: "sha512"}


@dataclasses.dataclass(frozen=True)
class Script:
    """A script to write: its file name, and its text."""

    name: str
    text: str


class Draft(Ledger):
    """The definition that a description gives.

    :ivar values: the C(image_*) variables.
    :ivar applications: the variables of role applications that go with them.
    :ivar scripts: the scripts that C(image_scripts) names, to be written.
    :ivar missing: what the definition still needs, key by key.
    :ivar name: what the description calls itself.
    """

    def __init__(self, folder: Path, scripts: str | None) -> None:
        """Begin one.

        :param folder: the directory of the description, outside of which no file is read.
        :param scripts: what the names in C(image_scripts) begin with; None where scripts cannot be written.
        """
        super().__init__()
        self.folder = folder
        self.values: dict[str, t.Any] = {}
        self.applications: dict[str, t.Any] = {}
        self.scripts: list[Script] = []
        self.missing: dict[str, str] = {}
        self.name = ""
        self.system: _import_definition_data.System | None = None
        self._prefix = scripts

    # What one kind of description has as well as another.

    def text(self, node: Node | None, target: str) -> None:
        """Take a text over as it is."""
        text = node.text() if node else None
        if node is None or not text:
            return
        reason = self.secrets.within(text)
        if reason:
            self.leave(node, reason)
        elif target == "image_title":
            self.values[target] = " ".join(text.split())
            self.take(node, target)
        else:
            self.values[target] = text
            self.take(node, target)

    def operating_system(self, name: str, version: str, *nodes: Node | None) -> None:
        """Take name and version of the operating system over, and with them the family of the installer."""
        found = _import_definition_data.system(name, version)
        if not found:
            for node in nodes:
                self.leave(node, "is no operating system that is known here; set image_os")
            return
        self.system = found
        self.values.setdefault("image_os", {}).update(distribution=found.distribution, version=found.version)
        for node in nodes:
            self.take(node, "image_os")

    def architecture(self, node: Node | None, name: str) -> None:
        """Take the architecture over."""
        known = _import_definition_data.ARCHITECTURES.get(name.strip().lower())
        if known:
            self.values.setdefault("image_os", {})["arch"] = known
            self.take(node, "image_os.arch")
        else:
            self.leave(
                node, "cannot be built here; image_os.arch is x86_64 or aarch64, and the medium must be for that"
            )
            self.missing["image_os.arch"] = f"is not {short(name)} here; choose another, with a medium for it"

    def medium(self, node: Node, text: str, key: str = "image_medium") -> bool:
        """Take the place of an ISO (or of another disk, by C(key)) over; whether it could be."""
        found = self.values.setdefault(key, {})
        held = self.secrets.within(text)
        if held:
            self.leave(node, f"{held}; set {key}.url to one that needs none, or {key}.path to a file")
            return False
        address = urlsafe(text)
        if address and address.scheme in ("http", "https") and re.fullmatch(r"https?://[^\s@]+", text):
            found["url"] = text
            self.take(node, f"{key}.url")
            return True
        if address and address.scheme == "file" and address.path.startswith("/"):
            found["path"] = address.path
        elif text.startswith("/"):
            found["path"] = text
        elif text and not (address and address.scheme) and "\n" not in text:
            found["path"] = str(self.folder / text)
        else:
            self.leave(node, f"is no URL of https or http without a user, and no path; set {key}.url")
            return False
        self.take(node, f"{key}.path")
        return True

    def checksum(self, node: Node, text: str, algorithm: str = "", key: str = "image_medium") -> None:
        """Take the checksum of that over, or the place of a file of checksums."""
        text = text.strip()
        named, _colon, rest = text.partition(":")
        if named.lower() in ("md5", "sha1", "sha256", "sha512"):
            algorithm, text = named, rest
        elif named.lower() == "file" and not rest.startswith("//"):
            text = rest
        algorithm = algorithm.lower()
        is_hex = re.fullmatch("[0-9A-Fa-f]+", text)
        if is_hex:
            algorithm = algorithm if algorithm not in ("", "none") else _BY_LENGTH.get(len(text), "")
        weak = algorithm in ("md5", "sha1")
        if weak:
            self.leave(node, WEAK.format(algorithm.upper().replace("SHA1", "SHA-1")))
            return
        value = f"{algorithm}:{text.lower()}" if is_hex else text
        try:
            if (
                "\n" in value
                or "@" in value
                or self.secrets.within(value)
                or (not is_hex and not re.match(r"https?://|file:///|/", value))
            ):
                raise FactoryError("is no checksum")
            _sums.explicit(value)
        except FactoryError:
            self.leave(node, f"is no SHA-256 or SHA-512 sum, and no place of a file of them; set {key}.checksum")
            return
        self.values.setdefault(key, {})["checksum"] = value.removeprefix("file://")
        self.take(node, f"{key}.checksum")

    def disk_size(self, node: Node | None, mib: float) -> None:
        """Take the size of the disk over, in MiB."""
        if not 0 < mib < 1 << 30:
            self.leave(node, "is no size of a disk; set image_disk.size")
            return
        whole = math.ceil(mib)
        self.values["image_disk"] = {"size": f"{whole >> 10}G" if whole % 1024 == 0 else f"{whole}M"}
        self.take(node, "image_disk.size")

    def machine(self, node: Node | None, key: str, text: str) -> None:
        """Take memory in MiB, or the number of processors, over."""
        if not re.fullmatch(r"[1-9]\d{0,7}", text.strip()):
            self.leave(node, f"is no whole number; set image_machine.{key}")
            return
        self.values.setdefault("image_machine", {})[key] = int(text)
        self.take(node, f"image_machine.{key}")

    def package(self, node: Node, name: str) -> None:
        """Take a package over; one with C(-) before its name is to be removed, as in kickstart."""
        absent = name.startswith("-")
        if not _PACKAGE.fullmatch(name.removeprefix("-")):
            self.leave(node, "cannot be the name of a package; add what it stands for to image_packages")
            return
        names = (
            self.applications.setdefault("applications_packages_absent", []) if absent else self._list("image_packages")
        )
        if name.removeprefix("-") not in names:
            names.append(name.removeprefix("-"))
        self.take(node, "applications_packages_absent" if absent else "image_packages")

    def repository(self, node: Node, name: str, url: str, **more: t.Any) -> bool:
        """Take a package repository over; whether it could be."""
        if not re.fullmatch(r"(?:https?|ftp)://[^\s@]+", url) or self.secrets.within(url):
            self.leave(node, "has no plain URL of https, http or ftp; add it to applications_repositories yourself")
            return False
        rows = self.applications.setdefault("applications_repositories", [])
        plain = slug(name, _REPOSITORY) or "imported"
        used = {row["name"] for row in rows}
        number = 2
        wanted = plain
        while wanted in used:
            wanted, number = f"{plain}-{number}", number + 1
        row = {"name": wanted, "url": url, **more}
        if wanted != name and re.fullmatch(r"[ -~]+", name):
            row["description"] = name
        rows.append(row)
        self.missing[f"applications_repositories: {wanted}"] = (
            "give key and fingerprint, for signatures are always checked; without them its key must be in the image already"
        )
        return True

    def file(self, nodes: t.Sequence[Node], dest: str, *, content: str | None = None, src: str | None = None) -> None:
        """Take a file over that is to be in the image; C(src) is beside the description."""
        reason = None
        if not re.fullmatch(r"/[^\n\0]*[^\n\0/]", dest) or ".." in dest.split("/"):
            reason = "has no absolute path for a file; add it to applications_files yourself"
        elif content is not None:
            held = self.secrets.within(content)
            reason = f"{held}; add it without that to applications_files" if held else None
        found: dict[str, str] = {"dest": dest}
        if not reason and content is not None:
            found["content"] = content
        elif not reason and src is not None:
            local = self.local(src)
            if local is None:
                reason = "is no file beside or below the description; have it there, or add it to applications_files yourself"
            else:
                found["src"] = str(local)
                held = self._held(local)
                reason = f"{held}; put it into the image by a role of image_roles, from a vault" if held else None
        for node in nodes:
            if reason:
                self.leave(node, reason)
            else:
                self.take(node, "applications_files")
        if not reason:
            self.applications.setdefault("applications_files", []).append(found)

    def local(self, name: str) -> Path | None:
        """A file below the directory of the description, whole name; None where it is elsewhere or not there."""
        try:
            path = (self.folder / name).resolve()
            inside = path.is_relative_to(self.folder.resolve())
            return path if inside and path.is_file() else None
        except (OSError, ValueError, RuntimeError):  # names that cannot be any, loops of links
            return None

    def script(self, nodes: t.Sequence[Node], title: str, text: str, **more: t.Any) -> None:
        """Take a script over, where scripts can be written."""
        held = self.secrets.within(text)
        reason = f"{held}; add a script without that to image_scripts" if held else None
        if self.system and self.system.distribution == "windows":
            reason = reason or "is a command for Windows; image_scripts are run in systems like Unix"
        if self._prefix is None:
            reason = reason or NO_SCRIPTS
        for node in nodes:
            if reason:
                self.leave(node, reason)
            else:
                self.take(node, "image_scripts")
        if reason:
            return
        stem = slug(re.sub(r"\.(sh|bash|py)$", "", title), re.compile("[a-z0-9].*"))[:40].strip("-.") or "script"
        name = f"{len(self.scripts) + 1:02d}-{stem}.sh"
        self.scripts.append(Script(name, text if text.endswith("\n") else f"{text}\n"))
        file = f"{self._prefix}/{name}"
        self._list("image_scripts").append({"file": file, **more} if more else file)

    def script_of(self, nodes: t.Sequence[Node], name: str, **more: t.Any) -> None:
        """Take a script over that is a file beside the description."""
        path = self.local(name)
        text = None
        if path:
            try:
                text = read(path).decode("utf-8")
            except (FactoryError, UnicodeDecodeError):
                text = None
        if path is None or text is None:
            for node in nodes:
                self.leave(node, "is no script beside or below the description; add it to image_scripts yourself")
            return
        self.script(nodes, path.name, text, **more)

    def _held(self, path: Path) -> str | None:
        """What makes a file one that must not be taken over; one that is no text, or very long, is not looked through."""
        try:
            data = path.read_bytes() if path.stat().st_size <= LOOKED_THROUGH else b""
        except OSError:
            return "cannot be read"
        return self.secrets.within(data.decode("utf-8", "replace")) if b"\0" not in data else None

    def finish(self) -> None:
        """Add what follows from all that was taken over, and note what is missing."""
        found = self.values.get("image_os", {})
        for key in ("distribution", "version"):
            if not found.get(key):
                self.missing[f"image_os.{key}"] = "is not told; set it"
        beginning = "image_source_disk" if self.values.get("image_source_disk") else "image_medium"
        medium = self.values.setdefault(beginning, {})
        if beginning == "image_medium":
            family = _import_definition_data.family(self.system) if self.system else None
            if family:
                medium.setdefault("family", family)
            else:
                self.missing["image_medium.family"] = "no installer of such a system is known here; set it"
        else:
            self.values.pop("image_medium", None)
        if not medium.get("url") and not medium.get("path"):
            self.missing[f"{beginning}.url"] = "is not told; set it to where the ISO is, or set path"
        if not medium.get("checksum"):
            self.missing[f"{beginning}.checksum"] = (
                "set it to the URL of the vendor's file of SHA-256 sums, with signature and keyring, or to sha256:<hex>"
            )
        if not medium:
            self.values.pop(beginning)

    def _list(self, key: str) -> list[t.Any]:
        return t.cast("list[t.Any]", self.values.setdefault(key, []))


def slug(text: str, pattern: re.Pattern[str]) -> str:
    """A name out of a text, in small letters, digits, dots and dashes; empty where nothing is left of it."""
    found = re.sub(r"[^a-z0-9._-]+", "-", text.strip().lower()).replace("_", "-")
    found = re.sub(r"\.{2,}", ".", found).strip("-.")[:63].strip("-.")
    return found if pattern.fullmatch(found) else ""


def urlsafe(text: str) -> t.Any:
    """The parts of a URL, None where it cannot be any."""
    try:
        return urlsplit(text)
    except ValueError:
        return None
