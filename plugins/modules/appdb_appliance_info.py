#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""List what EGI AppDB has of a virtual appliance."""

from __future__ import annotations

DOCUMENTATION = r"""
module: appdb_appliance_info
short_description: List the versions of a virtual appliance in EGI AppDB
version_added: 0.1.0
description:
  - Returns the versions of a virtual appliance in EGI AppDB, by its REST API 1.0.
  - Without credentials, or with those of somebody who does not manage the appliance, only published versions are told.
extends_documentation_fragment:
  - cloudimg.factory._attributes
  - cloudimg.factory._attributes.info_module
  - cloudimg.factory._appdb
options:
  version:
    description: Return this version only.
    type: str
author:
  - cloudimg.factory contributors (@cloudimg-factory)
seealso:
  - module: cloudimg.factory.appdb_appliance
"""

EXAMPLES = r"""
- name: Ask what AppDB offers
  cloudimg.factory.appdb_appliance_info:
    api_url: https://appdb.example.org/rest/1.0/
    appliance: s:example.debian
  register: appdb

- name: Show the published version
  ansible.builtin.debug:
    msg: "{{ appdb.latest.version }}"
"""

RETURN = r"""
appliance:
  description: The appliance; its C(number) is that of its software. C(versions) is in the order in which AppDB tells them.
  returned: success
  type: dict
  sample:
    number: "1234"
    identifier: 5f0c4b4e-4d44-5b4c-9d6c-0d3f3f0f3f3f
    name: Debian
    versions:
      - id: "4711"
        version: "202501311200"
        notes: Minimal Debian 12 with cloud-init
        status: verified
        published: true
        enabled: true
        archived: false
        expires: "2025-07-30T12:00:00Z"
        image:
          url: https://images.example.org/debian-12/202501311200/debian-12-202501311200.qcow2
          size: 190709760
          hash: sha256
          checksum: cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce
          integritycheck: {status: success, text: ""}
latest:
  description: The version that is published, enabled and not archived; null where there is none.
  returned: success
  type: dict
  sample: {id: "4711", version: "202501311200", status: verified}
working:
  description: The working version; null where there is none, or it is not told.
  returned: success
  type: dict
  sample: {id: "4712", version: "202502281200", status: failed}
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 0.4
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils._appdb import OPTIONS, connect, same_version
from ansible_collections.cloudimg.factory.plugins.module_utils._appdb_document import described
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

SPEC: dict[str, t.Any] = {**OPTIONS, "version": {"type": "str"}}


def work(module: AnsibleModule) -> Result:
    """Ask AppDB."""
    given = module.params
    there = connect(given, Progress("appdb"), must_write=False).get()
    versions = same_version(there, given["version"]) if given["version"] else list(there.versions)
    offered = [each for each in versions if each.published and each.enabled and not each.archived]
    working = [each for each in versions if each.working]
    appliance = {
        "number": there.number,
        "identifier": there.identifier,
        "name": there.name,
        "versions": [described(each) for each in versions],
    }
    return Result(
        extra={
            "appliance": appliance,
            "latest": described(offered[0]) if offered else None,
            "working": described(working[0]) if working else None,
        }
    )


def main() -> None:
    """The module."""
    run_module(SPEC, work)


if __name__ == "__main__":
    main()
