# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Imported definitions as files: host_vars, and the scripts that they name."""

from __future__ import annotations

import dataclasses
import os
import re
import textwrap
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _state
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_draft import Script
from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_ledger import Unmapped
from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_secrets import one_line
from ansible_collections.cloudimg.factory.plugins.module_utils._libraries import need

_WIDTH = 118
_TEMPLATE = re.compile(r"\{\{|\{%|\{#")
_FIRST = (
    "image_title",
    "image_description",
    "image_os",
    "image_medium",
    "image_source_disk",
    "image_disk",
    "image_machine",
)


class Unsafe(str):
    """A text that Ansible must not take for a template: it came from outside, and a template can run commands."""


@dataclasses.dataclass(frozen=True)
class File:
    """A file to write, and what is there now (None: nothing)."""

    path: Path
    text: str
    mode: int
    before: str | None

    @property
    def differs(self) -> bool:
        """Whether it has to be written."""
        return self.before != self.text

    def diff(self) -> dict[str, str]:
        """The difference, as Ansible shows it."""
        path = str(self.path)
        return {"before_header": path, "after_header": path, "before": self.before or "", "after": self.text}


def render(
    origin: str,
    definition: t.Mapping[str, t.Any],
    applications: t.Mapping[str, t.Any],
    unmapped: t.Sequence[Unmapped],
    missing: t.Mapping[str, str],
) -> str:
    """The text of the host_vars: the variables, then as comments what is missing and what could not be taken over."""
    yaml = need("yaml", python="import_definition_python")
    order = [*[key for key in _FIRST if key in definition], *[key for key in definition if key not in _FIRST]]
    values = {key: _marked(definition[key]) for key in order if definition[key] not in ({}, [])}
    values.update({key: _marked(value) for key, value in applications.items()})
    lines = ["---", *_comment(f"Made by cloudimg.factory.import_definition from {one_line(origin)}.")]
    text = "\n".join(lines) + "\n"
    if values:
        text += yaml.dump(values, Dumper=_dumper(yaml), sort_keys=False, allow_unicode=True, width=_WIDTH)
    if missing:
        text += "\n" + "\n".join(_comment("It still needs:"))
        text += "".join(f"\n{line}" for key, why in missing.items() for line in _item(f"{key}: {why}")) + "\n"
    if unmapped:
        text += "\n" + "\n".join(_comment("Not taken over:"))
        rows = [f"{row.key}{f' ({row.value})' if row.value else ''}: {row.reason}" for row in unmapped]
        text += "".join(f"\n{line}" for row in rows for line in _item(row)) + "\n"
    return text


def _dumper(yaml: t.Any) -> t.Any:
    """PyYAML's, with C(!unsafe) for texts that look like templates, and blocks for those of several lines."""

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]
        def ignore_aliases(self, data: t.Any) -> bool:
            return True

    def unsafe(dumper: t.Any, value: Unsafe) -> t.Any:
        return dumper.represent_scalar("!unsafe", str(value), style="|" if _is_block(value) else '"')

    def text(dumper: t.Any, value: str) -> t.Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if _is_block(value) else None)

    Dumper.add_representer(Unsafe, unsafe)
    Dumper.add_representer(str, text)
    return Dumper


def _is_block(value: str) -> bool:
    return "\n" in value.strip("\n") and not value.startswith((" ", "\n"))


def _marked(value: t.Any) -> t.Any:
    if isinstance(value, dict):
        return {key: _marked(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_marked(item) for item in value]
    return Unsafe(value) if isinstance(value, str) and _TEMPLATE.search(value) else value


def _comment(text: str, first: str = "# ", more: str = "# ") -> list[str]:
    return textwrap.wrap(
        one_line(text),
        _WIDTH,
        initial_indent=first,
        subsequent_indent=more,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _item(text: str) -> list[str]:
    return _comment(text, "#   - ", "#     ")


def prefix(dest: Path, folder: Path) -> str:
    """What the names of the scripts in ``folder`` begin with: relative to the inventory in ``dest`` where they are below it."""
    return folder.relative_to(dest).as_posix() if folder.is_relative_to(dest) and folder != dest else str(folder)


def plan(
    dest: Path, name: str, text: str, scripts: t.Sequence[Script], folder: Path | None, *, force: bool
) -> list[File]:
    """The files to write, the host_vars last.

    :param dest: the directory of the inventory.
    :param folder: where scripts go.
    :raises FactoryError: there is no such directory, or something else is there already and ``force`` does not say that
        it may be replaced.
    """
    if not dest.is_dir():
        raise FactoryError("is no directory", where=str(dest), key="dest", mend="name the directory of an inventory")
    host_vars = dest / "host_vars"
    for other in (name, f"{name}.yaml", f"{name}.json"):
        if os.path.lexists(host_vars / other):
            raise FactoryError(
                f"describes {name} already, beside {name}.yml",
                where=str(host_vars / other),
                key="name",
                mend="remove it, or choose another name",
            )
    files = [_file(folder / script.name, script.text, 0o755) for script in scripts] if folder else []
    files.append(_file(host_vars / f"{name}.yml", text, 0o644))
    for file in files:
        if file.before is not None and file.differs and not force:
            raise FactoryError(
                "is there already, and differs",
                where=str(file.path),
                key="dest",
                mend="set force: true to replace it, or choose another name",
            )
    return files


def _file(path: Path, text: str, mode: int) -> File:
    before = None
    try:
        if os.path.lexists(path):
            before = path.read_text(encoding="utf-8", errors="replace")
            # What somebody has closed to others stays so.
            mode = path.stat().st_mode & 0o777 | mode & 0o111
    except OSError as exc:
        raise FactoryError(
            (exc.strerror or str(exc)).lower(), where=str(path), key="dest", mend="have a file there, or nothing"
        ) from exc
    return File(path, text, mode, before)


def write(files: t.Sequence[File]) -> None:
    """Write what differs, each whole or not at all; where one cannot be, those that are new go again.

    :raises FactoryError: one cannot be written.
    """
    made: list[Path] = []
    try:
        for file in files:
            if file.differs:
                _state.write_text(file.path, file.text, file.mode)
                if file.before is None:
                    made.append(file.path)
    except BaseException:
        for path in made:
            _state.remove(path)
        raise
