#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Have the disk of an image's parent."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_parent
short_description: Have the disk of an image's parent
version_added: 0.1.0
description:
  - Finds, in the workspace, the newest build of another image whose disk an image can begin with. It is what the stage
    C(applications) of the parent has left.
  - Such a build is of the definition that the parent has now, as far as that makes the disk, and all its layers are in the
    cache and intact.
  - For a disk larger than the parent's it makes an overlay of that size in the layer cache.
extends_documentation_fragment:
  - cloudimg.factory._attributes
attributes:
  check_mode:
    support: full
    details:
      - Where the parent has still to be built, that is told.
  diff_mode:
    support: none
  idempotent:
    support: full
options:
  workspace:
    description: The workspace on the builder.
    type: path
    required: true
  image:
    description: The name of the image.
    type: str
    required: true
  parent:
    description: The name of its parent.
    type: str
    required: true
  parent_digest:
    description: Which disk of the parent is wanted, as in RV(cloudimg.factory.image_definition#module:inputs.parent).
    type: str
    required: true
  disk_size:
    description: The size of the image's disk in bytes.
    type: int
    required: true
seealso:
  - module: cloudimg.factory.base_vm
  - module: cloudimg.factory.disk_layer
  - module: cloudimg.factory.image_definition
author:
  - cloudimg.factory contributors (@cloudimg-factory)
"""

EXAMPLES = r"""
- name: Take the disk of the parent
  cloudimg.factory.image_parent:
    workspace: /srv/cloudimg
    image: debian-12-worker
    parent: debian-12
    parent_digest: "{{ checked.inputs.parent['debian-12'] }}"
    disk_size: "{{ checked.definition.image_disk.size_bytes }}"
  register: taken
"""

RETURN = r"""
base:
  description: The disk to begin with; none in check mode where the parent has still to be built.
  returned: success
  type: dict
  contains:
    path:
      description: Where it is.
      returned: success
      type: str
      sample: /srv/cloudimg/cache/layers/applications-5feceb66ffc86f38d952786c6d696c79.qcow2
    digest:
      description: The digest of everything that went into it.
      returned: success
      type: str
      sample: 5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9
    size:
      description: Its virtual size in bytes.
      returned: success
      type: int
      sample: 8589934592
    parent:
      description: The C(image), C(version) and C(digest) of the parent.
      returned: success
      type: dict
      sample: {image: debian-12, version: "202501311200", digest: 5feceb66ffc86f38d952786c6d696c79}
actions:
  description: What was done, and why.
  returned: always
  type: list
  elements: str
  sample: ['make the disk of debian-12 larger: 10240 MiB']
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 0.2
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._parent import ensure_base
from ansible_collections.cloudimg.factory.plugins.module_utils._state import Workspace, check_image_name

SPEC: dict[str, t.Any] = {
    "workspace": {"type": "path", "required": True},
    "image": {"type": "str", "required": True},
    "parent": {"type": "str", "required": True},
    "parent_digest": {"type": "str", "required": True},
    "disk_size": {"type": "int", "required": True},
}


def work(module: AnsibleModule) -> Result:
    """Find it."""
    want = module.params
    return ensure_base(
        Workspace(want["workspace"]),
        check_image_name(want["image"]),
        want["parent"],
        want["parent_digest"],
        want["disk_size"],
        check_mode=module.check_mode,
    )


def main() -> None:
    """The module."""
    run_module(SPEC, work)


if __name__ == "__main__":
    main()
