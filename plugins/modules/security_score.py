#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Have Lynis judge a system on which it is not installed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: security_score
short_description: Have Lynis judge a system on which it is not installed
version_added: 0.1.0
description:
  - Lynis is brought along from the controller, runs in a directory that goes afterwards, and leaves nothing.
  - In a system that is not booted, Lynis is told the kernel parameters that the system's own files set, and sees the
    firewall rules that would be loaded. What needs running services it leaves out, so that its index is not quite that of
    the same system booted.
extends_documentation_fragment:
  - cloudimg.factory._attributes
  - cloudimg.factory._attributes.info_module
options:
  _lynis:
    description: Private to the action plugin of the same name. Do not set it.
    type: path
author:
  - cloudimg.factory contributors (@cloudimg-factory)
"""

EXAMPLES = r"""
- name: Have the system judged
  cloudimg.factory.security_score:
  register: judged
"""

RETURN = r"""
lynis:
  description: What Lynis said; null where it is not installed on the controller.
  returned: success
  type: dict
  contains:
    index:
      description: The hardening index, 0 to 100.
      returned: success
      type: int
      sample: 72
    version:
      description: The version of Lynis.
      returned: success
      type: str
      sample: 3.0.8
    tests:
      description: How many tests it did.
      returned: success
      type: int
      sample: 234
    warnings:
      description: What must be looked at.
      returned: success
      type: list
      elements: str
      sample: [KRNL-5830 Reboot of system is most likely needed]
    suggestions:
      description: What might be better.
      returned: success
      type: list
      elements: str
      sample: ['BOOT-5122 Set a password on GRUB boot loader']
    booted:
      description: Whether the system runs.
      returned: success
      type: bool
      sample: false
note:
  description: Why there is no score; empty where there is one.
  returned: success
  type: str
  sample: Lynis is not installed on the builder; run playbooks/builder.yml with the feature scores
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 18.2
"""

import dataclasses
import tempfile
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils._audit_lynis import audit
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module

_MISSING = "Lynis is not installed on the builder; run playbooks/builder.yml with the feature scores"
SPEC: dict[str, t.Any] = {"_lynis": {"type": "path"}}


def work(module: AnsibleModule) -> Result:
    """Judge."""
    if not module.params["_lynis"]:
        return Result(extra={"lynis": None, "note": _MISSING})
    # in memory, so that nothing of it gets into the free blocks of an image
    with tempfile.TemporaryDirectory(prefix="cloudimg-audit-", dir="/run") as folder:
        score = audit(Path(module.params["_lynis"]), Path(folder))
    return Result(extra={"lynis": dataclasses.asdict(score), "note": ""})


def main() -> None:
    """The module."""
    run_module(SPEC, work)


if __name__ == "__main__":
    main()
