#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What OpenStack's Image service has of an image."""

from __future__ import annotations

DOCUMENTATION = r"""
module: glance_image_info
short_description: Tell which versions of an image OpenStack's Image service (Glance) has
version_added: 0.1.0
description:
  - Returns the images of this project that M(cloudimg.factory.glance_image) has made of an image's builds, the hidden and
    half-made ones too.
  - M(openstack.cloud.image_info) returns any image, but none that is hidden.
  - Needs the Python libraries C(openstacksdk) and C(requests).
extends_documentation_fragment:
  - cloudimg.factory._attributes
  - cloudimg.factory._attributes.info_module
  - cloudimg.factory._openstack
options:
  image:
    description: The image.
    type: str
    required: true
  version:
    description: The version. By default all.
    type: str
author:
  - cloudimg.factory contributors (@cloudimg-factory)
seealso:
  - module: cloudimg.factory.glance_image
  - module: openstack.cloud.image_info
"""

EXAMPLES = r"""
- name: Know which versions are in a cloud
  cloudimg.factory.glance_image_info:
    cloud: images
    image: debian-12
  register: there
"""

RETURN = r"""
images:
  description: The images as Glance has them, the newest version first.
  returned: success
  type: list
  elements: dict
  sample: [{id: 6e1b8d31-4a0e-4c6e-93b1-3f4f0d3f6a55, cloudimg_version: "202501311200", status: active, os_hidden: false}]
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 0.6
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils._glance import Shelf
from ansible_collections.cloudimg.factory.plugins.module_utils._glance_api import OPTIONS, connect
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.plugins.module_utils._versions import version_key

SPEC: dict[str, t.Any] = {**OPTIONS, "image": {"type": "str", "required": True}, "version": {"type": "str"}}


def work(module: AnsibleModule) -> Result:
    """Ask for them."""
    glance = connect(module.params, Progress("glance"))
    found = Shelf(glance).find(module.params["image"], module.params["version"], None)
    found.sort(key=lambda image: version_key(image.get("cloudimg_version", "")), reverse=True)
    return Result(extra={"images": found})


def main() -> None:
    """The module."""
    run_module(SPEC, work)


if __name__ == "__main__":
    main()
