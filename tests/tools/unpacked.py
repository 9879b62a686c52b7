# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of Debian packages that a test needs and that nobody wants installed, such as a daemon or an installer."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path


def unpacked(package: str) -> Path:
    """The directory in which a package lies unpacked, kept for the next run; raises CalledProcessError where it cannot be had."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "cloudimg.factory/tests", package)
    if not cache.is_dir():
        with tempfile.TemporaryDirectory(prefix="cloudimg-package-") as name:
            subprocess.run(["apt-get", "download", "-q", package], cwd=name, capture_output=True, check=True)
            (deb,) = Path(name).glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", deb, f"{name}/x"], check=True)
            cache.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # another worker was faster
                shutil.move(f"{name}/x", cache)
    return cache
