# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Which code of this collection writes a layer: the modules that a role calls, and what these import.

A role's own files are digested as they are. But when a module that it calls comes to do something else, the layer is another
one, too. Machinery that all modules share and that writes nothing itself does not count, lest each of its changes makes every
layer anew; neither does that which opens and keeps layers (see :data:`_layers.RECIPE`).
"""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils._digest import data_digest

PLUGINS = Path(__file__).resolve().parent.parent
UNCOUNTED = frozenset({"_cli", "_errors", "_module", "_owner", "_progress", "_heartbeat"})
"""How errors are told, tools started, and progress shown."""

_CALL = re.compile(r"\bcloudimg\.factory\.([a-z][a-z0-9_]*)\b")
_IMPORT = re.compile(
    r"^\s*from\s+ansible_collections\.cloudimg\.factory\.plugins\.(module_utils|plugin_utils)(?:\.(\w+))?\s+import\s+"
    r"(\([^)]*\)|[^\n]*)",
    re.MULTILINE,
)
_TASKS = ("tasks", "handlers", "vars", "defaults", "meta")


def modules_of(role: Path, plugins: Path = PLUGINS) -> dict[str, str]:
    """The digest (hex) of the code of each module of this collection that a role calls, by the module's name."""
    called: set[str] = set()
    for folder in _TASKS:
        for path in sorted((role / folder).rglob("*.y*ml")):
            called |= set(_CALL.findall(path.read_text(encoding="utf-8", errors="replace")))
    return {
        name: code_digest(name, plugins) for name in sorted(called) if (plugins / "modules" / f"{name}.py").is_file()
    }


@functools.lru_cache(maxsize=64)
def code_digest(module: str, plugins: Path = PLUGINS) -> str:
    """The digest (hex) of a module, of the action of its name, and of all of this collection that they import."""
    waiting = [plugins / kind / f"{module}.py" for kind in ("modules", "action")]
    seen: dict[str, str] = {}
    while waiting:
        path = waiting.pop()
        name = str(path.relative_to(plugins))
        if name in seen or path.stem in UNCOUNTED or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        seen[name] = hashlib.sha256(text.encode()).hexdigest()
        for kind, one, several in _IMPORT.findall(text):
            names = [one] if one else re.findall(r"\b(_\w+)\b", several)
            waiting += [plugins / kind / f"{wanted}.py" for wanted in names]
    return data_digest(seen)
