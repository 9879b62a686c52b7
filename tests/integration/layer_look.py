# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looking into a layer."""

from __future__ import annotations

import subprocess
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _qemu_img, _supervisor
from ansible_collections.cloudimg.factory.plugins.module_utils._owner import Owner


def look(layer: str | Path, script: str, folder: Path) -> str:
    """What a shell script says inside a layer; takes root, and two names in ``folder`` for a moment."""
    home, disk = folder / "look.tree", folder / "look.qcow2"
    _supervisor.start(home, Owner.of(), disk, lambda path: _qemu_img.create(path, None, backing=Path(layer)), {})
    try:
        argv = [home / "enter", home / "root", "/bin/sh", "-c", script]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    finally:
        _supervisor.end(home)
