# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds for the tests of OpenNebula, and what the module would do with them, without Ansible."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import (
    _descriptor,
    _digest,
    _opennebula,
    _opennebula_work,
    _qemu_img,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_batch import Row
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.plugins.modules.opennebula_appliance import SPEC
from ansible_collections.cloudimg.factory.tests.tools.opennebula_server import PASSWORD, OpenNebulaServer


def make_build(folder: Path, version: str, image: str = "debian-12", size: int = 0, **changes: t.Any) -> Path:
    """The directory of a build with a real, tiny qcow2, larger by ``size`` MiB; returns the descriptor's path."""
    folder.mkdir(parents=True)
    disk = folder / f"{image}-{version}.qcow2"
    _qemu_img.create(disk, 16 << 20)
    # No two builds have the same bytes.
    content = hashlib.sha256(f"{image} {version}".encode()).digest()
    writes = [word for n in range(4) for word in ("-c", f"write -q -P {content[n] or 1} {64 * n}k 64k")]
    writes += ["-c", f"write -q -P 90 1M {size}M"] if size else []
    subprocess.run(["qemu-io", "-f", "qcow2", *writes, str(disk)], check=True)
    artifact = _descriptor.Artifact("qcow2", disk.name, disk.stat().st_size, 16 << 20, _digest.file_digests(disk))
    values: dict[str, t.Any] = {
        "image": image,
        "identifier": _descriptor.stable_identifier(image),
        "version": version,
        "title": 'Debian "12"',
        "description": "Minimal Debian 12; <b> & \\ ]]>",
        "os": _descriptor.OperatingSystem("debian", "12", "x86_64"),
        "min_disk": 16 << 20,
        "artifacts": (artifact,),
        "created": "2025-01-31T12:00:00Z",
        "provenance": _descriptor.Provenance("0" * 64, "7.2", "0.1.0"),
        "memory": 2048,
        "cpu": 2,
        "groups": ("vo.example.org",),
        **changes,
    }
    path = folder / "descriptor.json"
    path.write_text(_descriptor.Descriptor(**values).dump(), encoding="utf-8")
    return path


@dataclasses.dataclass
class Site:
    """A publisher with a front-end whose safe directory is here.

    :ivar job: what the last run was.
    """

    root: Path
    server: OpenNebulaServer
    url: str = ""
    delays: tuple[float, ...] = (0.05, 0.05, 0.05)
    job: t.Any = None

    def build(self, version: str, image: str = "debian-12", **changes: t.Any) -> Path:
        """A build of a version; the one there is, if there is one."""
        folder = self.root / "builds" / image / version
        return folder / "descriptor.json" if folder.exists() else make_build(folder, version, image, **changes)

    def given(self, **options: t.Any) -> dict[str, t.Any]:
        """All options of the module."""
        known = {name: spec.get("default") for name, spec in SPEC.items()}
        basic = {
            "api_url": self.url or self.server.url,
            "username": "oneadmin",
            "password": PASSWORD,
            "transfer": "directory",
            "directory": str(self.root / "cloud/safe"),
            "interval": 0.05,
            "timeout": 20,
        }
        return {**known, **basic, **options}

    def run(self, *versions: str, check_mode: bool = False, **options: t.Any) -> Result:
        """Run the module; ``versions`` are builds to publish."""
        given = self.given(**options)
        if given["descriptors"] is None and len(versions) > 1:
            given["descriptors"] = [str(self.build(version)) for version in versions]
        paths = [Path(path) for path in given["descriptors"] or []] or [self.build(version) for version in versions]
        progress = Progress("opennebula")
        front = _opennebula.connect(given, progress, self.delays)
        front.looks = (0.0, 0.05, 0.05)
        self.job = _opennebula_work.Job(front, given, progress, check_mode)
        return t.cast("Result", self.job.run([Row(path, _descriptor.load(path)) for path in paths]))

    @property
    def identifier(self) -> str:
        return _descriptor.stable_identifier("debian-12")
