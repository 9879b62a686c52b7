# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Answer files written by the roles themselves, through playbooks/answers.yml."""

from __future__ import annotations

import json
import subprocess
import typing as t
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
EXAMPLE = CHECKOUT / "inventories/example"


def render(
    directory: Path, inventories: t.Sequence[Path], *words: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Write the answer files of all images of some inventories below ``directory``, by image and by name."""
    argv: list[str | Path] = ["ansible-playbook", CHECKOUT / "playbooks/answers.yml"]
    for inventory in inventories:
        argv += ["--inventory", inventory]
    argv += ["--extra-vars", json.dumps({"answers_directory": str(directory)}), *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    if check and done.returncode:
        raise AssertionError(done.stdout[-6000:] + done.stderr)
    return done


def written(directory: Path) -> dict[str, str]:
    """The files below a directory, by their path in it."""
    return {
        str(path.relative_to(directory)): path.read_text("utf-8") for path in directory.rglob("*") if path.is_file()
    }


def one_image(directory: Path, variables: t.Mapping[str, t.Any], *words: str) -> subprocess.CompletedProcess[str]:
    """Write the answer files of an image called C(image), defined by these variables; it may fail."""
    directory.mkdir(parents=True, exist_ok=True)
    inventory = directory / "hosts.json"
    inventory.write_text(json.dumps({"images": {"hosts": {"image": dict(variables)}}}), "utf-8")
    return render(directory / "answers", [inventory], *words, check=False)
