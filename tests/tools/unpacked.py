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
    """The directory in which a package lies unpacked, kept for the next run.

    :raises RuntimeError: it cannot be fetched; why.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "cloudimg.factory/tests", package)
    if not cache.is_dir():
        with tempfile.TemporaryDirectory(prefix="cloudimg-package-") as name:
            _fetch(package, Path(name))
            cache.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # another worker was faster
                shutil.move(f"{name}/x", cache)
    return cache


def _fetch(package: str, folder: Path) -> None:
    """The package, unpacked in ``x`` of a directory."""
    try:
        argv = ["apt-get", "download", "-q", package]
        done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)
        packages = list(folder.glob("*.deb"))
        if done.returncode or not packages:
            raise RuntimeError((done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1])
        subprocess.run(["dpkg-deb", "-x", str(packages[0]), str(folder / "x")], check=True)
    except (OSError, RuntimeError, subprocess.CalledProcessError) as exc:
        raise RuntimeError(
            f"these tests need files of {package}, and «apt-get download {package}» failed: {exc}; have apt-get reach "
            "a mirror of Debian («apt-get update»)"
        ) from None
