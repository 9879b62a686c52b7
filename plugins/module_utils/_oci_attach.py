# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What is attached to a build in an OCI registry: bill of materials, judgement, signature, and files that a site names."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import json
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _oci_sbom as sbom
from ansible_collections.cloudimg.factory.plugins.module_utils import _verdict
from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor import Descriptor
from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor_files import plain
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._libraries import need
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_describe import Package
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_referrers import ASSESS, SIGNATURE, Attachment
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors

CERTIFICATE = "cloudimg.certificate"
"""A signature has its time in it, so that it is never the same twice: one by the same certificate will do."""
PACKAGES = "cloudimg.packages"
"""A bill of materials of 600 packages takes a second to make: it is not made where there is one of the same."""
LARGEST = 64 << 20
"""Bytes that a file which is attached may have: it is held in memory."""


@dataclasses.dataclass(frozen=True)
class Key:
    """Who signs."""

    certificate: Path
    private_key: Path
    passphrase: str | None = dataclasses.field(default=None, repr=False)
    chain: Path | None = None


@dataclasses.dataclass(frozen=True)
class Attachments:
    """What is to be attached.

    :ivar files: rows of C(path) and C(artifact_type).
    """

    sbom: bool = True
    assess: bool = True
    key: Key | None = None
    files: t.Sequence[t.Mapping[str, str]] = ()

    def collect(self, descriptor: Path, build: Descriptor, package: Package) -> list[Attachment]:
        """Read and make all of them; raises FactoryError before anything was sent."""
        folder = descriptor.parent
        found = []
        if self.sbom and build.packages:
            packages = sbom.read_packages(plain(folder / build.packages))
            if packages:
                need("cyclonedx", sbom.CYCLONEDX)
                digest = hashlib.sha256(json.dumps(packages, sort_keys=True).encode()).hexdigest()
                found.append(
                    Attachment(
                        sbom.MEDIA_TYPE,
                        name=f"{build.image}-{build.version}.cdx.json",
                        annotations={PACKAGES: f"{sbom.VERSION}:{digest}"},
                        mark=PACKAGES,
                        render=functools.partial(sbom.render, build, packages, package.layer),
                    )
                )
        if self.assess and (folder / _verdict.ASSESSMENT).exists():
            found.append(Attachment(ASSESS, _read(plain(folder / _verdict.ASSESSMENT)), _verdict.ASSESSMENT))
        if self.key:
            found.append(self._signed(self.key, build, package))
        for row in self.files:
            path = Path(row["path"])
            found.append(Attachment(row["artifact_type"], _read(plain(path)), path.name))
        kinds = [each.artifact_type for each in found]
        twice = next((kind for kind in kinds if kinds.count(kind) > 1), None)
        if twice:
            raise FactoryError(f"{twice} is there twice", key="attach", mend="give each an artifact type of its own")
        return found

    @staticmethod
    def _signed(key: Key, build: Descriptor, package: Package) -> Attachment:
        need("cryptography")
        # These need the library at their top.
        from ansible_collections.cloudimg.factory.plugins.module_utils import _hepix_pkcs7, _x509

        signer = _x509.Signer.load(key.certificate, key.private_key, key.passphrase, key.chain)
        now = datetime.datetime.now(datetime.timezone.utc)
        data = _hepix_pkcs7.sign(package.manifest.data, signer, now)
        about = {CERTIFICATE: _x509.fingerprint(signer.certificate), "cloudimg.signer": signer.dn}
        return Attachment(SIGNATURE, data, f"{build.image}-{build.version}.p7s", about, CERTIFICATE)


def _read(path: Path) -> bytes:
    with explain_os_errors(path):
        size = path.stat().st_size
        if not 0 < size <= LARGEST:
            raise FactoryError(
                f"has {size} bytes, what is attached has 1 to {LARGEST}", where=str(path), mend="give another file"
            )
        return path.read_bytes()
