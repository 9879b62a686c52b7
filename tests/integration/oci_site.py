# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds, and a repository of an OCI registry that they go to."""

from __future__ import annotations

import dataclasses
import json
import os
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _digest
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.plugins.module_utils._oci import Catalogue
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_attach import Attachments
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_blobs import CHUNK
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_describe import Options
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_pull import listed
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_registry import Repository
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

IMAGE = "debian-12"
REPOSITORY = "vo.example.org/debian"
PACKAGES = {
    "os_release": {"ID": "debian", "PRETTY_NAME": "Debian GNU/Linux 12 (bookworm)"},
    "packages": [
        {"name": "libc6", "version": "2.36-9+deb12u9", "arch": "amd64"},
        {"name": "openssl", "version": "3.0.15-1~deb12u1", "arch": "amd64"},
    ],
}


def make_build(
    folder: Path, version: str = "1.0", *, size: int = 300_000, image: str = IMAGE, data: bytes | None = None
) -> Path:
    """The directory of a build with an image of random bytes; returns the descriptor's path."""
    folder.mkdir(parents=True, exist_ok=True)
    disk = folder / f"{image}-{version}.qcow2"
    disk.write_bytes(os.urandom(size) if data is None else data)
    size = disk.stat().st_size
    build = _descriptor.Descriptor(
        image=image,
        identifier=_descriptor.stable_identifier(image),
        version=version,
        title="Debian 12",
        description="Minimal Debian 12",
        os=_descriptor.OperatingSystem("debian", "12", "x86_64"),
        min_disk=3 << 30,
        memory=512,
        artifacts=(_descriptor.Artifact("qcow2", disk.name, size, 3 << 30, _digest.file_digests(disk)),),
        created="2025-01-31T12:00:00Z",
        attributes={"os_admin_user": "debian"},
        provenance=_descriptor.Provenance("0" * 64, "7.2", "0.1.0"),
        packages="packages.json",
    )
    (folder / "packages.json").write_text(json.dumps(PACKAGES), encoding="utf-8")
    (folder / "assess.json").write_text('{"verdict": "pass"}', encoding="utf-8")
    path = folder / "descriptor.json"
    path.write_text(build.dump(), encoding="utf-8")
    return path


@dataclasses.dataclass
class Site:
    """Publishes in a repository."""

    root: Path
    url: str
    options: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    chunk: int = CHUNK
    delays: tuple[float, ...] = (0.0, 0.0)
    """Many faults are made: waiting for each as long as for a real one would take too long."""

    def repository(self, **more: t.Any) -> Repository:
        given = {"registry": self.url, "repository": REPOSITORY, "http_timeout": 20, **self.options, **more}
        return Repository(given, Progress("test"), write=True, delays=self.delays)

    def catalogue(self, *, check_mode: bool = False, **options: t.Any) -> Catalogue:
        return Catalogue(self.repository(), check_mode, chunk=self.chunk, **options)

    def build(self, version: str = "1.0", **options: t.Any) -> Path:
        return make_build(self.root / version, version, **options)

    def present(
        self, descriptor: Path, *, keep: int | None = None, check_mode: bool = False, **options: t.Any
    ) -> Result:
        more = {name: options.pop(name) for name in ("mount_from",) if name in options}
        key = {"key": options.pop("key")} if "key" in options else {}
        return self.catalogue(check_mode=check_mode, **more).present(
            descriptor, Options(**options), Attachments(**key), keep=keep
        )

    def state(self) -> list[dict[str, t.Any]]:
        """All that readers see."""
        return listed(self.repository(), None, referrers=True)

    def tags(self) -> dict[str, str]:
        """The versions that tags stand for."""
        return {tag: row["version"] for row in self.state() for tag in row["tags"]}
