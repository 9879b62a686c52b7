# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What a builder can do: its tools, its room, its accelerator."""

from __future__ import annotations

import dataclasses
import os
import shutil
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _accel, _cli
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError


def describe_builder(
    tools: t.Iterable[t.Mapping[str, t.Any]], workspace: str | None = None, *, probe: bool = False
) -> dict[str, t.Any]:
    """The builder in the shape that M(cloudimg.factory.builder_info) returns."""
    found: dict[str, dict[str, str]] = {}
    problems: list[str] = []
    for tool in tools:
        try:
            found[tool["name"]] = _look_at(tool)
        except FactoryError as exc:
            if tool.get("required", True):
                problems.append(str(exc))
    facts: dict[str, t.Any] = {
        "tools": found,
        "problems": problems,
        "accelerator": _accelerator(problems, fresh=probe),
        "cpus": os.cpu_count() or 1,
        "apt_mirrors": apt_mirrors(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
    if workspace:
        facts["free"] = shutil.disk_usage(_existing(Path(workspace))).free
    return facts


def apt_mirrors() -> dict[str, str]:
    """Where the builder's own APT gets packages, by the Label in the Release file; empty where there is no APT.

    Mirrors are told apart by that label (C(Debian), C(Debian-Security), C(Ubuntu)), since their addresses may be any.
    """
    if not _cli.which("apt-get"):
        return {}
    line = "$(REPO_URI) $(LABEL)"
    done = _cli.run(["apt-get", "indextargets", "--format", line, "Created-By: Packages"], timeout=60, check=False)
    mirrors: dict[str, str] = {}
    for uri, _blank, label in (row.partition(" ") for row in done.stdout.splitlines()):
        if label:
            mirrors.setdefault(label.strip(), uri)
    return mirrors


def _look_at(tool: t.Mapping[str, t.Any]) -> dict[str, str]:
    name, package, minimum = tool["name"], tool.get("package"), tool.get("minimum")
    if not minimum:
        return {"path": _cli.require(name, package)}
    path = _cli.require_version(name, tuple(int(part) for part in minimum.split(".")), package)
    return {"path": path, "version": ".".join(map(str, _cli.version_of(name)))}


def _accelerator(problems: list[str], *, fresh: bool) -> dict[str, t.Any]:
    if not _cli.which(_accel.EMULATOR):
        problems.append(f"{_accel.EMULATOR}: is not installed on the builder; run playbooks/builder.yml")
        return {"auto": None, "kvm": dataclasses.asdict(_accel.Probe("kvm", False, 0.0, "there is no QEMU"))}
    found = _accel.kvm(fresh=fresh)
    return {"auto": "kvm" if found.works else "tcg", "kvm": dataclasses.asdict(found)}


def _existing(path: Path) -> Path:
    """The nearest directory above (or at) ``path`` that exists."""
    return path if path.exists() else _existing(path.parent)
