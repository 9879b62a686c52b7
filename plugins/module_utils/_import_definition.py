# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Descriptions of other tools as image definitions: Oz, BoxGrinder, COMFY, Packer."""

from __future__ import annotations

import dataclasses
import re
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import (
    _import_definition_boxgrinder,
    _import_definition_comfy,
    _import_definition_oz,
    _import_definition_packer_hcl,
    _import_definition_packer_json,
    _import_definition_packer_map,
    _import_definition_write,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_draft import Draft, Script, slug
from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_ledger import Unmapped
from ansible_collections.cloudimg.factory.plugins.module_utils._state import NAME_PATTERN, check_image_name

KINDS = ("oz", "boxgrinder", "comfy", "packer")
_SUFFIXES = {
    ".tdl": "oz",
    ".appl": "boxgrinder",
    ".description": "comfy",
    ".hcl": "packer",
    ".json": "packer",
}


@dataclasses.dataclass(frozen=True)
class Request:
    """What to import.

    :ivar src: the description, a file; for Packer also a directory of them.
    :ivar kind: one of :data:`KINDS`; None takes what the name of the file tells.
    :ivar name: the name of the image; None takes what the description tells.
    :ivar builder: for Packer with several builders, the name of one.
    :ivar version: for COMFY, the version to take.
    :ivar variables: for Packer, values of user variables.
    :ivar scripts: what the names in C(image_scripts) begin with; None where scripts cannot be written.
    """

    src: Path
    kind: str | None = None
    name: str | None = None
    builder: str | None = None
    version: str | None = None
    variables: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    scripts: str | None = None


@dataclasses.dataclass(frozen=True)
class Imported:
    """What a description gives.

    :ivar definition: the C(image_*) variables.
    :ivar applications: the variables of role applications that go with them.
    :ivar unmapped: what is in neither.
    :ivar missing: what the definition still needs.
    :ivar mapped: where what was taken over went.
    :ivar text: the host_vars.
    """

    kind: str
    name: str
    definition: dict[str, t.Any]
    applications: dict[str, t.Any]
    unmapped: list[Unmapped]
    missing: dict[str, str]
    mapped: dict[str, str]
    scripts: list[Script]
    text: str


def load(request: Request) -> Imported:
    """Read a description, and make a definition of it.

    :raises FactoryError: it cannot be read, is not of its kind, or does not tell which of several is meant.
    """
    path = request.src.absolute()
    if not path.exists():
        raise FactoryError("is not there", where=str(path), key="src", mend="correct the path")
    kind = request.kind or _kind(path)
    for option, owner in (("builder", "packer"), ("variables", "packer"), ("version", "comfy")):
        if getattr(request, option) and kind != owner:
            raise FactoryError(
                f"is for the kind {owner}, not {kind}", where=str(path), key=option, mend="leave it out, or set kind"
            )
    draft = Draft(path if path.is_dir() else path.parent, request.scripts)
    if kind == "packer":
        reader = _import_definition_packer_hcl if _is_hcl(path) else _import_definition_packer_json
        template = reader.load(path, request.builder, request.variables)
        _import_definition_packer_map.Conversion(template, draft).run()
        roots, reasons = template.roots, _import_definition_packer_map.REASONS
    elif kind == "comfy":
        roots, reasons = _import_definition_comfy.load(path), _import_definition_comfy.REASONS
        draft.secrets.learn(roots[0])
        _import_definition_comfy.convert(roots, draft, request.version, path)
    else:
        module = _import_definition_oz if kind == "oz" else _import_definition_boxgrinder
        roots, reasons = module.load(path), module.REASONS
        for root in roots:
            draft.secrets.learn(root)
        module.convert(roots, draft)
    draft.finish()
    name = _name(request.name, draft, path)
    unmapped = draft.unmapped(roots, reasons)
    text = _import_definition_write.render(
        f"{path.name} ({kind})", draft.values, draft.applications, unmapped, draft.missing
    )
    return Imported(
        kind,
        name,
        draft.values,
        draft.applications,
        unmapped,
        draft.missing,
        draft.mapped(),
        draft.scripts,
        text,
    )


def _kind(path: Path) -> str:
    if path.is_dir():
        return "packer"
    found = _SUFFIXES.get(path.suffix.lower())
    if not found:
        raise FactoryError(
            f"does not tell by its name what kind of description it is ({', '.join(_SUFFIXES)} do)",
            where=str(path),
            key="kind",
            mend=f"set it to one of: {', '.join(KINDS)}",
        )
    return found


def _is_hcl(path: Path) -> bool:
    if path.is_dir() or path.suffix.lower() in (".hcl", ".json"):
        return path.is_dir() or path.suffix.lower() == ".hcl"
    with path.open("rb") as stream:
        return not re.match(rb"(\xef\xbb\xbf)?\s*\{", stream.read(4096))


def _name(wanted: str | None, draft: Draft, path: Path) -> str:
    if wanted is not None:
        return check_image_name(wanted, str(path))
    found = slug(draft.name, NAME_PATTERN)
    if not found:
        raise FactoryError(
            f"{draft.name!r} gives no name for an image" if draft.name else "does not tell a name for the image",
            where=str(path),
            key="name",
            mend="set it",
        )
    return found
