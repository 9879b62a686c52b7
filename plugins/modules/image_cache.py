#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep the caches of a workspace within a bound."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_cache
short_description: Keep the caches of a workspace within a bound
version_added: 0.1.0
description:
  - Removes layers and media from the caches of a workspace until they take no more than O(max_size) bytes, those first that were
    not used for the longest time. What is removed is made again when it is needed.
  - A layer goes after those that stand on it, and is as young as the youngest of them.
  - What stays in any case is O(keep), what a running build has recorded or used, what is open, and all that these stand on.
    Where that is more than O(max_size), RV(notes) tell by how much.
extends_documentation_fragment:
  - cloudimg.factory._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
options:
  workspace:
    description: The workspace on the builder.
    type: path
    required: true
  max_size:
    description: How much the caches may take together, such as V(50G) (powers of 1024).
    type: bytes
    required: true
  keep:
    description: Files of the caches that are needed.
    type: list
    elements: path
    default: []
seealso:
  - module: cloudimg.factory.disk_layer
  - module: cloudimg.factory.installer_medium
author:
  - cloudimg.factory contributors (@cloudimg-factory)
"""

EXAMPLES = r"""
- name: Make room
  cloudimg.factory.image_cache:
    workspace: /srv/cloudimg
    max_size: 20G
"""

RETURN = r"""
before:
  description: Bytes that the caches took.
  returned: success
  type: int
  sample: 32212254720
after:
  description: Bytes that they take now.
  returned: success
  type: int
  sample: 21152857088
removed:
  description: What was removed, with its size in bytes and the time of its last use.
  returned: success
  type: list
  elements: dict
  sample:
    - kind: layer
      path: /srv/cloudimg/cache/layers/applications-5feceb66ffc86f38d952786c6d696c79.qcow2
      size: 11059396608
      used: "2025-01-31T12:00:00Z"
notes:
  description: What could not be done, and why.
  returned: success
  type: list
  elements: str
  sample: ['412 MiB more than wanted are in use']
actions:
  description: What was done, and why.
  returned: always
  type: list
  elements: str
  sample: ['remove /srv/cloudimg/cache/media/5fec.iso: 412 MiB, last used 2025-01-31T12:00:00Z']
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 0.1
"""

import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils._cache import prune
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._state import Workspace

SPEC: dict[str, t.Any] = {
    "workspace": {"type": "path", "required": True},
    "max_size": {"type": "bytes", "required": True},
    "keep": {"type": "list", "elements": "path", "default": []},
}


def work(module: AnsibleModule) -> Result:
    """Make room."""
    want = module.params
    keep = [Path(path) for path in want["keep"]]
    return prune(Workspace(want["workspace"]), want["max_size"], keep, check_mode=module.check_mode)


def main() -> None:
    """The module."""
    run_module(SPEC, work)


if __name__ == "__main__":
    main()
