# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What a system says about itself: os-release(5)."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

PLACES = ("etc/os-release", "usr/lib/os-release")
"""Where it is below the root, the first that there is; an absolute link leads out of a tree that is not the root."""

_NAME = re.compile(r"[A-Z][A-Z0-9_]*")


def parse(text: str) -> dict[str, str]:
    """The settings in the text of such a file."""
    found = {}
    for line in text.splitlines():
        name, sep, value = line.strip().partition("=")
        if sep and _NAME.fullmatch(name):
            try:
                found[name] = " ".join(shlex.split(value))
            except ValueError:  # a quotation mark without its other
                found[name] = value
    return found


def read(root: Path) -> dict[str, str]:
    """The settings of the system below a directory; none where it has no such file."""
    path = next((root / name for name in PLACES if (root / name).is_file()), None)
    return parse(path.read_text(encoding="utf-8", errors="replace")) if path else {}
