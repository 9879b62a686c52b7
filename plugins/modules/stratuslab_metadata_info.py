#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read and verify metadata of a StratusLab Marketplace."""

from __future__ import annotations

DOCUMENTATION = r"""
module: stratuslab_metadata_info
short_description: Read and verify metadata of a StratusLab Marketplace
version_added: 0.1.0
description:
  - Reads signed metadata from files or from a Marketplace, and returns only what was verified.
  - A document is refused when a single byte of it was changed; when its signature is not valid, covers less than the whole of it
    or is not laid out as StratusLab's tools do; when it has a document type, an entity, a comment or a processing instruction;
    when its endorser is not its signer; and when it breaks one of the Marketplace's rules.
  - Needs the Python libraries C(cryptography), C(lxml) and C(signxml), and C(requests) for O(marketplace).
extends_documentation_fragment:
  - cloudimg.factory._attributes
  - cloudimg.factory._attributes.info_module
options:
  paths:
    description: Signed files to read.
    type: list
    elements: path
  marketplace:
    description: URL of the Marketplace to read from.
    type: str
  identifier:
    description: List the entries of this image, 27 characters.
    type: str
  email:
    description: List the entries of this endorser.
    type: str
  created:
    description:
      - The time of the endorsement of one entry, which need not be the newest; with O(identifier) and O(email).
    type: str
  status:
    description:
      - List the newest entries that have this status.
      - V(valid) are those that are neither V(deprecated) nor V(expired).
    type: str
    choices: [valid, deprecated, expired, any]
    default: valid
  allow_sha1:
    description: Accept signatures by SHA-1, which can be forged. Most of what StratusLab's own tools have signed has such.
    type: bool
    default: false
  ca_directory:
    description:
      - Directory of authorities and CRLs in OpenSSL's hashed form, such as C(/etc/grid-security/certificates), by which the
        signer's certificate has to be valid.
      - Without it a signature says only that whoever has signed has the key of the certificate within, and anybody can make a
        certificate with any name in it.
    type: path
  crl:
    description: Which certificates must have a valid CRL in O(ca_directory).
    type: str
    choices: [all, leaf, none]
    default: all
  refused:
    description:
      - What to do about documents that are refused. V(fail) ends with the first of them, V(report) returns them in RV(refused).
    type: str
    choices: [fail, report]
    default: fail
  server_ca:
    description: PEM file or directory of the authorities of the Marketplace's https; by default those of the system.
    type: path
  timeout:
    description: Seconds for which the Marketplace may be silent.
    type: int
    default: 60
author:
  - cloudimg.factory contributors (@cloudimg-factory)
seealso:
  - module: cloudimg.factory.stratuslab_metadata
  - module: cloudimg.factory.image_policy
"""

EXAMPLES = r"""
- name: Ask what an endorser offers
  cloudimg.factory.stratuslab_metadata_info:
    marketplace: https://marketplace.example.org
    email: jane@example.org
    ca_directory: /etc/grid-security/certificates
  register: offered

- name: Hold it against the site's policy
  cloudimg.factory.image_policy:
    images: "{{ offered.entries }}"
    allow:
      endorsers: [jane@example.org]
"""

RETURN = r"""
entries:
  description:
    - What was verified. Keys that a document does not have are left out.
    - C(size) (bytes) and C(checksums) are those of the image without the compression of its file.
    - C(deviations) are what is not as the schema has it, which a Marketplace does not mind.
    - C(signature.trusted) says whether the signer's certificate was held against O(ca_directory).
  returned: success
  type: list
  elements: dict
  sample:
    - identifier: BEE8-MMAw-Lk_IgsEExAy3d9R8h
      status: valid
      where: https://marketplace.example.org/metadata/BEE8-MMAw-Lk_IgsEExAy3d9R8h/jane@example.org/2025-01-31T12%3A30%3A00Z
      size: 190709760
      checksums: {sha1: 1104f3e30c030f8b93f220b04131032dddf51f21}
      endorsement:
        created: "2025-01-31T12:30:00Z"
        email: jane@example.org
        subject: CN=Jane,O=People,DC=example,DC=org
        issuer: CN=Example CA,DC=example,DC=org
      type: base
      kind: machine
      os: debian
      os_version: "12"
      os_arch: x86_64
      version: "202501311200"
      compression: ""
      format: qcow2
      created: "2025-01-31T12:00:00Z"
      valid: "2025-07-30T12:00:00Z"
      title: Debian 12
      description: ""
      locations: [https://images.example.org/debian-12.qcow2]
      inbound_ports: []
      signature:
        profile: sha256
        fingerprint: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
        subject: /DC=org/DC=example/O=People/CN=Jane
        issuer: /DC=org/DC=example/CN=Example CA
        not_after: "2026-01-31T12:00:00Z"
        trusted: true
      deviations: []
refused:
  description: Documents that are not to be believed, each with C(where) it was found and the C(problem).
  returned: success
  type: list
  elements: dict
  sample: []
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 0.2
"""

import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils import _stratuslab_info
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._http import Http
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._stratuslab_market import Marketplace

SPEC: dict[str, t.Any] = {
    "paths": {"type": "list", "elements": "path"},
    "marketplace": {"type": "str"},
    "identifier": {"type": "str"},
    "email": {"type": "str"},
    "created": {"type": "str"},
    "status": {"type": "str", "choices": ["valid", "deprecated", "expired", "any"], "default": "valid"},
    "allow_sha1": {"type": "bool", "default": False},
    "ca_directory": {"type": "path"},
    "crl": {"type": "str", "choices": ["all", "leaf", "none"], "default": "all"},
    "refused": {"type": "str", "choices": ["fail", "report"], "default": "fail"},
    "server_ca": {"type": "path"},
    "timeout": {"type": "int", "default": 60},
}
TOGETHER = {
    "created": ("identifier", "email", "marketplace"),
    "identifier": ("marketplace",),
    "email": ("marketplace",),
}


def work(module: AnsibleModule) -> Result:
    """Read and verify."""
    options = module.params
    anchors = Path(options["ca_directory"]).absolute() if options["ca_directory"] else None
    profiles = ("sha256", "sha1") if options["allow_sha1"] else ("sha256",)
    judge = _stratuslab_info.Judge(profiles, anchors, options["crl"])
    found, refused = _stratuslab_info.files([Path(path).absolute() for path in options["paths"] or []], judge)
    if options["marketplace"]:
        ca = Path(options["server_ca"]).absolute() if options["server_ca"] else None
        there = _stratuslab_info.entries(
            Marketplace(options["marketplace"], Http(ca=ca, timeout=options["timeout"])),
            judge,
            **{name: options[name] for name in ("identifier", "email", "created", "status")},
        )
        found, refused = found + there[0], refused + there[1]
    if refused and options["refused"] == "fail":
        first = refused[0]
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise FactoryError(
            first["problem"] + more,
            where=first["where"],
            mend="do not trust it; use refused=report to read the others",
            details={"refused": refused},
        )
    return Result(extra={"entries": found, "refused": refused})


def main() -> None:
    """The module."""
    run_module(SPEC, work, required_one_of=[("paths", "marketplace")], required_by=TOGETHER)


if __name__ == "__main__":
    main()
