#!/usr/bin/env python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long the search for credentials takes, how many planted ones it finds, and how many that are none; beside grep's.

Copies a system's tree (of a mounted disk, or a chroot) to a temporary directory, searches it as it is, plants the credentials of
``tests/integration/planted_credentials.py`` in it, and searches again. ``grep -rE`` with one expression is the floor. Prints one
table. Run it as ``.venv/bin/python benchmarks/credentials.py TREE`` after ``make test`` has set up ``.venv``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import typing as t
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT / "tests" / "integration"))
_OURS = """
import json, sys
from pathlib import Path
from ansible.utils.collection_loader._collection_finder import _AnsibleCollectionFinder
_AnsibleCollectionFinder(paths=sys.argv[2].split(":"))._install()
from ansible_collections.cloudimg.factory.plugins.module_utils._credentials import scan
print(json.dumps(sorted({finding.path for finding in scan(Path(sys.argv[1])).findings})))
"""
_EXPRESSION = (
    r"-----BEGIN [A-Z ]*PRIVATE KEY|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36}|\$6\$|xox[abprs]-|password *[:=]"
)

Search = t.Callable[[Path], "set[str]"]


def ours(tree: Path) -> set[str]:
    """The module's search, without the build's own secrets."""
    argv = [sys.executable, "-c", _OURS, str(tree), os.environ.get("ANSIBLE_COLLECTIONS_PATH", "")]
    return set(json.loads(subprocess.run(argv, capture_output=True, check=True, text=True).stdout))


def grep(tree: Path) -> set[str]:
    """One expression, binary files included."""
    argv = ["grep", "-rlaE", "-e", _EXPRESSION, str(tree)]
    lines = subprocess.run(
        argv, capture_output=True, check=False, text=True, env={"LC_ALL": "C", "PATH": os.environ["PATH"]}
    )
    return {f"/{Path(line).relative_to(tree)}" for line in lines.stdout.splitlines()}


def measured(search: Search, tree: Path) -> tuple[set[str], float, float]:
    """What a search finds, its seconds, and those of the processor."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    found = search(tree)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return found, time.monotonic() - began, used


def main() -> None:
    """Print the table."""
    from planted_credentials import PLANTED

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tree", type=Path)
    options = parser.parse_args()
    searches: dict[str, Search] = {"credential_scan": ours, "grep -rE": grep}
    planted = {path for path, (kind, _content) in PLANTED.items() if kind != "build_secret"}
    with tempfile.TemporaryDirectory(prefix="cloudimg-benchmark-") as folder:
        tree = Path(folder, "tree")
        shutil.copytree(options.tree, tree, symlinks=True, ignore=shutil.ignore_patterns("proc", "sys", "dev", "run"))
        files = sum(len(names) for _folder, _folders, names in os.walk(tree))
        clean = {name: measured(search, tree) for name, search in searches.items()}
        for path in planted:
            place = tree / path.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(PLANTED[path][1])
        found = {name: search(tree) for name, search in searches.items()}
    print(f"{files} files; {len(planted)} credentials planted")
    print(f"{'':16} {'seconds':>8} {'cpu':>7} {'files/s':>8} {'ratio':>6} {'found':>6} {'false':>6}")
    floor = clean["credential_scan"][2]
    for name, (before, seconds, used) in clean.items():
        caught = len(found[name] & planted)
        false = len(before - planted)
        print(f"{name:16} {seconds:8.1f} {used:7.1f} {files / seconds:8.0f} {used / floor:6.2f} {caught:6} {false:6}")


if __name__ == "__main__":
    main()
