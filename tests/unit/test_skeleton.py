# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What must agree between the files that describe the collection."""

from __future__ import annotations

import json
import re
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible.utils.version import SemanticVersion

import ansible_collections

ROLES = Path(__file__).parents[2] / "roles"


def load(path: Path) -> t.Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def installed_version(collection: str) -> str:
    for root in ansible_collections.__path__:
        manifest = Path(root, *collection.split("."), "MANIFEST.json")
        if manifest.is_file():
            return str(json.loads(manifest.read_text(encoding="utf-8"))["collection_info"]["version"])
    raise AssertionError(f"{collection} is not installed")


def test_requirements_are_the_dependencies(checkout: Path) -> None:
    wanted = load(checkout / "requirements.yml")["collections"]
    assert {item["name"]: item["version"] for item in wanted} == load(checkout / "galaxy.yml")["dependencies"]


def test_pinned_ansible_satisfies_the_dependencies(checkout: Path) -> None:
    for collection, wanted in load(checkout / "galaxy.yml")["dependencies"].items():
        found = SemanticVersion(installed_version(collection))
        least, below = (SemanticVersion(part.lstrip("<>=")) for part in wanted.split(","))
        assert least <= found < below, collection


def test_every_python_requirement_is_pinned(checkout: Path) -> None:
    lines = (checkout / "requirements.txt").read_text(encoding="utf-8").splitlines()
    loose = [line for line in lines if line and not line.startswith("#") and "==" not in line]
    assert loose == []


@pytest.fixture(params=sorted(path.name for path in ROLES.iterdir() if path.is_dir()))
def role(request: pytest.FixtureRequest) -> Path:
    return ROLES / request.param


def test_no_list_depends_on_the_order_of_a_set(role: Path) -> None:
    """Ansible's filters of sets give their result in another order in each process."""
    sets = re.compile(r"\|\s*(?:difference|intersect|symmetric_difference|union)\(.*?(?:\}\}|%\}|$)", re.DOTALL)
    loose = [
        f"{path.relative_to(ROLES)}: {found[0]}"
        for path in role.rglob("*.yml")
        for found in sets.finditer(path.read_text(encoding="utf-8"))
        if not re.search(r"\|\s*(sort|length)\b", found[0].partition("\n\n")[0])
    ]
    assert loose == []


@pytest.mark.parametrize("name", ["README.md", "meta/main.yml", "meta/argument_specs.yml", "tasks/main.yml"])
def test_role_has_its_files(role: Path, name: str) -> None:
    assert (role / name).is_file()


def test_role_defaults_are_the_documented_ones(role: Path) -> None:
    entries = load(role / "meta/argument_specs.yml")["argument_specs"].values()
    options = {name: option for entry in entries for name, option in entry.get("options", {}).items()}
    defaults = load(role / "defaults/main.yml") or {}
    fixed = {name: value for name, value in defaults.items() if "{{" not in str(value)}
    assert fixed == {name: options.get(name, {}).get("default") for name in fixed}
    assert set(defaults) <= set(options)
