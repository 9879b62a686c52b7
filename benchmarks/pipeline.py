#!/usr/bin/env python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long one image takes: from nothing, again with nothing changed, and again with one package more.

Prints one table a run: stage, seconds, and the bytes that the stage left. Run it as
``.venv/bin/python benchmarks/pipeline.py`` after ``make image`` or ``make test`` have set up ``.venv``.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import ansible_runner

CHECKOUT = Path(__file__).resolve().parent.parent
GUEST_STAGES = ("cloud_init", "applications", "harden", "sanitize")
STAGES = ("definition", "media", "base_vm", *GUEST_STAGES, "export", "assess", "publish")


class Stopwatch:
    """Sums up the seconds of tasks by stage; what role layer and the roles in it do counts for the layer's stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self.changed = 0
        self._stage = "definition"

    def __call__(self, event: dict) -> None:
        data = event.get("event_data", {})
        name = str(data.get("task", ""))
        if event["event"] == "playbook_on_task_start" and name.startswith("Stage "):
            self._stage = name.split()[-1]
        if event["event"] == "runner_on_ok":
            self.seconds[self._stage] += float(data.get("duration") or 0)
            self.changed += bool(data["res"].get("changed"))


def files_of(build: dict) -> dict[str, Path]:
    """The one file that each stage left, for its size."""
    stages = build["stages"]
    found = {name: Path(stages[name]["path"]) for name in ("media", "base_vm", *GUEST_STAGES) if name in stages}
    artifacts = stages.get("export", {}).get("artifacts", [])
    return {**found, **({"export": Path(artifacts[0]["path"])} if artifacts else {})}


def run(title: str, image: str, workspace: Path, **extra: object) -> None:
    """One run of the playbook, and its table."""
    stopwatch = Stopwatch()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cloudimg-benchmark-") as private:
        runner = ansible_runner.run(
            private_data_dir=private,
            playbook=str(CHECKOUT / "playbooks" / "build.yml"),
            inventory=str(CHECKOUT / "inventories" / "example"),
            limit=image,
            extravars={"image_workspace": str(workspace), **extra},
            event_handler=stopwatch,
            envvars={"ANSIBLE_COLLECTIONS_PATH": os.environ["ANSIBLE_COLLECTIONS_PATH"]},
            quiet=True,
        )
        total = time.monotonic() - began
        if runner.rc != 0:
            sys.exit(Path(runner.stdout.name).read_text(encoding="utf-8")[-3000:])
    newest = max((workspace / "builds" / image).glob("*/build.json"), key=lambda path: path.stat().st_mtime)
    files = files_of(json.loads(newest.read_text(encoding="utf-8")))
    print(f"\n{title}: {total:.1f} s, changed={stopwatch.changed}\n{'stage':<14}{'seconds':>9}{'MiB on disk':>13}")
    for stage in STAGES:
        if stage in stopwatch.seconds:
            size = f"{files[stage].stat().st_blocks * 512 / 2**20:.1f}" if stage in files else ""
            print(f"{stage:<14}{stopwatch.seconds[stage]:>9.1f}{size:>13}", flush=True)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", default="debian-12", help="an image of inventories/example (default: %(default)s)")
    parser.add_argument("--package", default="htop", help="the package that is added (default: %(default)s)")
    parser.add_argument("--workspace", type=Path, help="an empty directory to work in (default: a temporary one)")
    options = parser.parse_args()
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    if "ANSIBLE_COLLECTIONS_PATH" not in os.environ:
        parser.error("set ANSIBLE_COLLECTIONS_PATH to where this checkout is ansible_collections/cloudimg/factory")
    workspace = options.workspace or Path(tempfile.mkdtemp(prefix="cloudimg-benchmark-"))
    print(f"{os.cpu_count()} processors; image {options.image}")
    try:
        run("from nothing", options.image, workspace)
        run("nothing changed", options.image, workspace)
        run(f"one package more ({options.package})", options.image, workspace, image_packages=[options.package])
    finally:
        if not options.workspace:
            shutil.rmtree(workspace, ignore_errors=True)


if __name__ == "__main__":
    main()
