# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A site that endorses builds in a Marketplace, for tests."""

from __future__ import annotations

import dataclasses
import subprocess
import typing as t
from pathlib import Path

from lxml import etree

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _stratuslab, _stratuslab_info
from ansible_collections.cloudimg.factory.plugins.module_utils import _stratuslab_document as document
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import file_digests
from ansible_collections.cloudimg.factory.plugins.module_utils._http import Http
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.plugins.module_utils._stratuslab_market import Marketplace as Client
from ansible_collections.cloudimg.factory.tests.tools import pki
from ansible_collections.cloudimg.factory.tests.tools.marketplace_server import Marketplace

DISK = b"disk" * 4096


def make_build(folder: Path, files: t.Mapping[str, bytes] | None = None, **fields: t.Any) -> Path:
    """A build as export leaves it; returns the path of its descriptor."""
    folder.mkdir(parents=True, exist_ok=True)
    artifacts = []
    for kind, octets in (files or {"qcow2": DISK}).items():
        path = folder / f"debian-12-1.{kind}"
        path.write_bytes(octets)
        artifacts.append(_descriptor.Artifact(kind, path.name, len(octets), len(DISK), file_digests(path)))
    told: dict[str, t.Any] = {
        "version": "1",
        "title": "Debian 12",
        "description": "Minimal",
        "created": "2025-01-31T12:00:00Z",
        "expires": "2099-01-01T00:00:00Z",
        **fields,
    }
    build = _descriptor.Descriptor(
        image="debian-12",
        identifier=_descriptor.stable_identifier("debian-12"),
        os=_descriptor.OperatingSystem("debian", "12", "x86_64"),
        min_disk=1 << 30,
        artifacts=tuple(artifacts),
        provenance=_descriptor.Provenance("0" * 64, "7.2", "0.1.0"),
        **told,
    )
    path = folder / "descriptor.json"
    path.write_text(build.dump(), encoding="utf-8")
    return path


@dataclasses.dataclass
class Site:
    """Where a build is endorsed from."""

    root: Path
    grid: pki.Pki
    url: str | None = None
    timeout: float = 20.0

    @property
    def path(self) -> Path:
        return self.root / "endorsed" / "debian-12.xml"

    @property
    def descriptor(self) -> Path:
        return self.root / "build" / "descriptor.json"

    def request(self, identity: pki.Identity | None = None, **options: t.Any) -> _stratuslab.Request:
        who = identity or self.grid.endorser
        url = options.pop("url", self.url)
        words = {"locations": ("https://images.example.org/a.qcow2",), "inbound_ports": (22,), "hypervisor": "kvm"}
        defaults: dict[str, t.Any] = {
            "path": self.path,
            "signer": (who.certificate, who.key, who.passphrase, who.chain),
            "descriptor": self.descriptor,
            "marketplace": Client(url, Http(timeout=self.timeout, delays=())) if url else None,
            "words": words,
        }
        return _stratuslab.Request(**{**defaults, **options})

    def present(self, identity: pki.Identity | None = None, **options: t.Any) -> Result:
        return _stratuslab.present(self.request(identity, **options))

    def deprecate(self, reason: str, **options: t.Any) -> Result:
        return _stratuslab.deprecate(self.request(**options), reason)

    def said(self) -> dict[str, t.Any]:
        """What the signed file says, verified as a stranger would, and by xmlsec1."""
        octets = self.path.read_bytes()
        found = _stratuslab_info.Judge(ca_directory=self.grid.anchors).read(octets, str(self.path))
        xmlsec1(octets, self)
        return found


def files(root: Path) -> dict[str, bytes]:
    """All files but those in which digests are kept for the next run."""
    found = (path for path in sorted(root.rglob("*")) if path.is_file() and not path.name.endswith(".digests.json"))
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def state(market: Marketplace) -> list[dict[str, t.Any]]:
    """What a Marketplace has, apart from when it was endorsed."""
    found = []
    for _key, octets in sorted(market.entries.items()):
        entry = document.read(etree.fromstring(octets))
        del entry["endorsement"]["created"]
        found.append(entry)
    return found


def xmlsec1(octets: bytes, site: Site) -> None:
    """Have xmlsec1 verify a document up to the root of the authorities."""
    path, root = site.root / "document.xml", site.root / "root.pem"
    path.write_bytes(octets)
    root.write_bytes(site.grid.authority.pem)
    subprocess.run(["xmlsec1", "--verify", "--trusted-pem", str(root), str(path)], check=True, capture_output=True)
