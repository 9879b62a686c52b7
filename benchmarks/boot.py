#!/usr/bin/env python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long images take from power on to SSH, to a login and to the end of cloud-init, each beside the first one.

Boots clones of all images at the same time, so that whatever else the host does slows all of them alike, some times over, as
the stage ``assess`` does. Prints one table of medians. To see what hardening costs, build an image twice, the first one with
``harden_profile: none``, and run ``.venv/bin/python benchmarks/boot.py NONE.qcow2 HARDENED.qcow2``.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import statistics
import subprocess
import tempfile
from pathlib import Path

MOMENTS = ("ssh", "login", "cloud_init")


def boot(artifact: Path, user: str, directory: Path) -> dict[str, float]:
    """Boot one clone; seconds from power on to each moment."""
    wanted = {
        "image": artifact.stem,
        "version": "benchmark",
        "artifact": str(artifact.resolve()),
        "format": "qcow2",
        "directory": str(directory),
        "user": user,
        "boots": ["bios-nocloud"],
        "lynis": "no",
        "updates": False,
    }
    argv = ["ansible", "localhost", "-m", "cloudimg.factory.image_assess", "-a", json.dumps(wanted)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    report = directory / "assess.json"
    if not report.is_file():
        raise SystemExit(f"{artifact}: {(done.stderr or done.stdout).strip()}")
    timings: dict[str, float] = json.loads(report.read_text(encoding="utf-8"))["boots"][0]["timings"]
    return timings


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", metavar="IMAGE", nargs="+", type=Path)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--user", default="debian")
    options = parser.parse_args()
    found: dict[Path, list[dict[str, float]]] = {image: [] for image in options.images}
    with tempfile.TemporaryDirectory(prefix="cloudimg-benchmark-") as folder:
        for turn in range(options.repeat):
            with concurrent.futures.ThreadPoolExecutor(len(found)) as pool:
                booting = {
                    image: pool.submit(boot, image, options.user, Path(folder, f"{turn}-{number}"))
                    for number, image in enumerate(found)
                }
            for image, future in booting.items():
                found[image].append(future.result())
    print(f"{len(found)} machines at a time, {options.repeat} times; seconds from power on to, and ratio to the first")
    print(f"{'':40}" + "".join(f"{moment:>12} {'ratio':>6}" for moment in MOMENTS))
    floor = {moment: statistics.median(turn[moment] for turn in found[options.images[0]]) for moment in MOMENTS}
    for image, turns in found.items():
        medians = {moment: statistics.median(turn[moment] for turn in turns) for moment in MOMENTS}
        cells = "".join(f"{medians[moment]:12.1f} {medians[moment] / floor[moment]:6.2f}" for moment in MOMENTS)
        print(f"{image.name[-40:]:40}{cells}")


if __name__ == "__main__":
    main()
