# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Where in the inventory a variable stands."""

from __future__ import annotations

import contextlib
import re
import typing as t
from pathlib import Path

Origin: t.Any = None
with contextlib.suppress(ImportError):
    # Ansible's own, not meant for us; without it there is a simpler way.
    from ansible._internal._datatag import _tags

    Origin = _tags.Origin


class Places:
    """Finds where the variables of one host were set."""

    def __init__(self, task_vars: t.Mapping[str, t.Any]) -> None:
        self._host = str(task_vars.get("inventory_hostname"))
        self._groups = [str(group) for group in task_vars.get("group_names") or ()]
        roots = (task_vars.get("inventory_dir"), task_vars.get("playbook_dir"))
        self._roots = list(dict.fromkeys(Path(str(root)) for root in roots if root))
        inventory = task_vars.get("inventory_file")
        self._inventory = Path(str(inventory)) if inventory else None

    def of(self, values: t.Mapping[str, t.Any], path: t.Sequence[str]) -> str:
        """C(file:line) of the key ``path`` in ``values``, or of the nearest above it that is known."""
        best = None
        level: t.Any = values
        for key in path:
            if not isinstance(level, dict) or key not in level:
                break
            best = self._origin(level, key) or best
            level = level[key]
        return best or self._search(path[0]) or f"host {self._host}"

    @staticmethod
    def _origin(values: t.Mapping[str, t.Any], key: str) -> str | None:
        if Origin is None:
            return None
        of_value = Origin.get_tag(values[key])
        of_key = next((Origin.get_tag(name) for name in values if name == key), None)
        # Ansible keeps a key from the first file that has it, but the value from the last.
        same = of_key and (of_value is None or of_key.path == of_value.path)
        origin = of_key if same else of_value
        if not origin:
            return None
        if origin.path:
            return f"{origin.path}:{origin.line_num}" if origin.line_num else str(origin.path)
        return str(origin.description).strip("<>")

    def _search(self, key: str) -> str | None:
        """For a variable that carries no origin: the file with a line that sets it, the most specific first."""
        names = [("host_vars", self._host), *(("group_vars", group) for group in [*reversed(self._groups), "all"])]
        files: list[Path] = []
        for folder, name in names:
            for root in self._roots:
                base = root / folder / name
                files += [root / folder / (name + suffix) for suffix in ("", ".yml", ".yaml", ".json")]
                files += sorted(base.glob("*")) if base.is_dir() else []
        if self._inventory:
            files.append(self._inventory)
        pattern = re.compile(rf"""^\s*["']?{re.escape(key)}["']?\s*[:=]""")
        for path in files:
            if path.is_file():
                for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
                    if pattern.match(text):
                        return f"{path}:{number}"
        return None
