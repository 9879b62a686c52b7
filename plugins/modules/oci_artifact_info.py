#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""List the images in a repository of an OCI registry."""

from __future__ import annotations

DOCUMENTATION = r"""
module: oci_artifact_info
short_description: List the images in a repository of an OCI registry
version_added: 0.1.0
description:
  - Returns the artifacts in a repository of an OCI registry that have a tag, with their annotations and what is attached to them.
extends_documentation_fragment:
  - cloudimg.factory._attributes
  - cloudimg.factory._attributes.info_module
  - cloudimg.factory._oci
options:
  reference:
    description: Return the artifact with this tag or digest only.
    type: str
  referrers:
    description: Ask for each artifact what is attached to it.
    type: bool
    default: true
author:
  - cloudimg.factory contributors (@cloudimg-factory)
seealso:
  - module: cloudimg.factory.oci_artifact
"""

EXAMPLES = r"""
- name: See which versions there are
  cloudimg.factory.oci_artifact_info:
    registry: registry.example.org
    repository: vo.example.org/debian
  register: offered

- name: Show the newest one
  ansible.builtin.debug:
    msg: "{{ offered.artifacts[0].tags }}"
"""

RETURN = r"""
artifacts:
  description:
    - The artifacts, the newest version first. C(deprecated) is the reason where it is deprecated. C(image), C(identifier) and
      C(version) are null for what this collection has not made.
  returned: success
  type: list
  elements: dict
  sample:
    - digest: sha256:0f1c5a8b…
      tags: ["12", "12-2025-01-31-cf83e135"]
      image: debian-12
      identifier: 5f0c4b4e-4d44-5b4c-9d6c-0d3f3f0f3f3f
      version: "202501311200"
      created: "2025-01-31T12:00:00Z"
      annotations: {org.opencontainers.image.version: "202501311200"}
      layer:
        digest: sha256:cf83e135…
        size: 190709760
        media_type: application/x-qemu-disk
        annotations: {eu.egi.cloud.tag: 2025-01-31-cf83e135}
      referrers:
        - artifactType: application/vnd.cyclonedx+json
          digest: sha256:6a1b2c3d…
          size: 812
          annotations: {}
      deprecated: null
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 0.4
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_pull import listed
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_registry import (
    OPTIONS,
    Repository,
    check_reference,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

SPEC: dict[str, t.Any] = {
    **OPTIONS,
    "reference": {"type": "str"},
    "referrers": {"type": "bool", "default": True},
}


def work(module: AnsibleModule) -> Result:
    """Ask the registry."""
    given = module.params
    if given["reference"]:
        check_reference(given["reference"], "reference")
    repository = Repository(given, Progress("oci"), write=False)
    return Result(extra={"artifacts": listed(repository, given["reference"], referrers=given["referrers"])})


def main() -> None:
    """The module."""
    run_module(
        SPEC,
        work,
        required_together=[("username", "password")],
        mutually_exclusive=[("username", "auth_file")],
    )


if __name__ == "__main__":
    main()
