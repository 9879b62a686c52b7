#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""List the builds of images."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_build_info
short_description: List the builds of images
version_added: 0.1.0
description:
  - Lists the builds in a workspace, finished ones and others.
extends_documentation_fragment:
  - cloudimg.factory._attributes
  - cloudimg.factory._attributes.info_module
options:
  workspace:
    description: The workspace on the builder.
    type: path
    required: true
  image:
    description: The name of an image. By default all are listed.
    type: str
seealso:
  - module: cloudimg.factory.image_build
author:
  - cloudimg.factory contributors (@cloudimg-factory)
"""

EXAMPLES = r"""
- name: List the builds of an image
  cloudimg.factory.image_build_info:
    workspace: /srv/cloudimg
    image: debian-12
  register: known
"""

RETURN = r"""
builds:
  description:
    - The builds by image, the newest version of each first; each is as RV(cloudimg.factory.image_build#module:build).
  returned: success
  type: list
  elements: dict
  sample:
    - image: debian-12
      version: "202501311200"
      complete: true
locks:
  description: Who builds which image just now.
  returned: success
  type: dict
  sample: {debian-13: {host: builder1, since: '2025-01-31T12:00:00Z', owner: {pid: 4711, started: 815, boot: 1b2c}}}
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 0.1
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils._build import Builds
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._state import Workspace

SPEC: dict[str, t.Any] = {
    "workspace": {"type": "path", "required": True},
    "image": {"type": "str"},
}


def work(module: AnsibleModule) -> Result:
    """List them."""
    workspace, image = module.params["workspace"], module.params["image"]
    folder = Workspace(workspace).builds
    names = [image] if image else sorted(path.name for path in folder.glob("*") if path.is_dir())
    images = {name: Builds(workspace, name) for name in names}
    locks = {name: builds.lock.holder() for name, builds in images.items()}
    return Result(
        extra={
            "builds": [build for builds in images.values() for build in builds.all()],
            "locks": {name: holder for name, holder in locks.items() if holder},
        }
    )


def main() -> None:
    """The module."""
    run_module(SPEC, work)


if __name__ == "__main__":
    main()
