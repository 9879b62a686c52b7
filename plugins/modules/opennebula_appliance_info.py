#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""List what an OpenNebula front-end has of appliances."""

from __future__ import annotations

DOCUMENTATION = r"""
module: opennebula_appliance_info
short_description: List the versions of appliances in OpenNebula
version_added: 0.1.0
description:
  - Returns images and VM templates that M(cloudimg.factory.opennebula_appliance) has made, as far as O(username) may see them.
extends_documentation_fragment:
  - cloudimg.factory._attributes
  - cloudimg.factory._attributes.info_module
  - cloudimg.factory._opennebula
options:
  identifier:
    description: Return this image only, by its identifier.
    type: str
  owner:
    description: Name or number of the user who owns them; by default O(username).
    type: str
author:
  - cloudimg.factory contributors (@cloudimg-factory)
seealso:
  - module: cloudimg.factory.opennebula_appliance
"""

EXAMPLES = r"""
- name: Know what OpenNebula has
  cloudimg.factory.opennebula_appliance_info:
    api_url: https://one.example.org:2633/RPC2
    username: publisher
    password: "{{ vault_one_password }}"
  register: appliances
"""

RETURN = r"""
appliances:
  description: By identifier, the C(images), oldest version first, and the C(templates).
  returned: success
  type: dict
  sample:
    41458818-1d0e-5b8c-a4b5-6a5c3d2f1e00:
      images:
        - {id: 17, name: debian-12-202501311200@default, state: READY, version: "202501311200", vms: 2, expired: false}
      templates:
        - {id: 4, name: debian-12@default, version: "202501311200", images: ["17"]}
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 0.4
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula import OPTIONS, connect
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_cloud import Cloud
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_shelf import Shelf, described
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

SPEC: dict[str, t.Any] = {**OPTIONS, "identifier": {"type": "str"}, "owner": {"type": "str"}}


def work(module: AnsibleModule) -> Result:
    """Ask the front-end."""
    given = module.params
    cloud = Cloud(connect(given, Progress("opennebula")), check_mode=True)
    shelf = Shelf(cloud, frozenset({cloud.number("user", given["owner"])} - {-1}))
    found: dict[str, dict[str, list[t.Any]]] = {}
    for key, things in (
        ("images", shelf.images(given["identifier"])),
        ("templates", shelf.templates(given["identifier"])),
    ):
        for thing in things:
            entry = found.setdefault(thing.attributes["CLOUDIMG_ID"], {"images": [], "templates": []})
            entry[key].append(described(thing))
    return Result(extra={"appliances": found})


def main() -> None:
    """The module."""
    run_module(SPEC, work)


if __name__ == "__main__":
    main()
