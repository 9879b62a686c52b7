# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs ansible-test sanity on the built collection, as «make sanity» does: sanity.py TARBALL HOME [ARGUMENT…].

ansible-test insists on a directory named after the collection, on a pip bootstrap script from its own download server,
and hands neither PIP_* variables nor the user's other settings on. So it gets a home of its own, where the bootstrap is
the one that comes with Python and where pip's settings are written down; the virtual environments stay there as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

BOOTSTRAP = "get_pip_24_2.py"  # what the ansible-test of requirements.txt looks for
BOOTSTRAP_TEXT = """\
import subprocess, sys

subprocess.run([sys.executable, "-m", "ensurepip"], check=True, stdout=subprocess.DEVNULL)
"""


def prepare_home(home: Path) -> None:
    """Write into ``home`` what ansible-test would take from the network and from the environment."""
    bootstrap = home / ".ansible/test/cache" / BOOTSTRAP
    bootstrap.parent.mkdir(parents=True, exist_ok=True)
    bootstrap.write_text(BOOTSTRAP_TEXT, encoding="utf-8")
    pip = [sys.executable, "-m", "pip"]
    told = subprocess.run([*pip, "config", "list"], check=True, capture_output=True, text=True).stdout
    cache = subprocess.run([*pip, "cache", "dir"], check=True, capture_output=True, text=True).stdout.strip()
    settings = {"cache-dir": cache, "quiet": "1"}
    for line in told.splitlines():
        name, _equals, value = line.partition("=")
        if name.startswith(("global.", ":env:.")):
            settings[name.rpartition(".")[2]] = value.strip("'\"").replace("\\n", "\n  ")
    config = home / ".config/pip/pip.conf"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()), encoding="utf-8")


def main() -> int:
    """Unpack the collection, run ansible-test in it, return its exit code."""
    tarball, home, *arguments = sys.argv[1:]
    prepare_home(Path(home))
    ansible_test = Path(sysconfig.get_path("scripts"), "ansible-test")
    with tempfile.TemporaryDirectory(prefix="cloudimg-sanity-") as root:
        collection = Path(root, "ansible_collections/cloudimg/factory")
        with tarfile.open(tarball) as archive:
            archive.extractall(collection)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        command = [ansible_test, "sanity", "--python", version, *arguments]
        environment = {**os.environ, "HOME": home}
        return subprocess.run(command, cwd=collection, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
