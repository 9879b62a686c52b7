#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Publish builds as versions of a virtual appliance in EGI AppDB, and retire them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: appdb_appliance
short_description: Publish and retire builds in EGI AppDB
version_added: 0.1.0
description:
  - Has a build as a version of a virtual appliance in EGI AppDB, by its REST API 1.0, and has AppDB verify and publish it.
  - Only the descriptor and the artifact beside it are read. AppDB gets no image data, but the URL where the artifact is served,
    its size and its SHA-512.
  - What AppDB has is looked up first. A request whose answer is lost is looked up again, not repeated; where that does not
    tell either, the module fails, and the next run goes on from what it finds.
  - AppDB offers one version of an appliance, with one image. Publishing archives the one before, and what is published cannot
    be changed any more, only disabled and enabled.
extends_documentation_fragment:
  - cloudimg.factory._attributes
  - cloudimg.factory._attributes.job
  - cloudimg.factory._appdb
attributes:
  check_mode:
    support: full
    details:
      - AppDB is asked what it has, and nothing is written there.
  diff_mode:
    support: full
    details:
      - The version as AppDB has it before and after.
  idempotent:
    support: full
    details:
      - By size and checksum of the artifact, not by the version alone.
options:
  state:
    description:
      - V(present) has the build of O(descriptor) verified and published.
      - V(verified) has it verified as the working version, which only those who manage the appliance see.
      - V(disabled) has the version of O(descriptor), or O(version), offered no longer. Its check is ended, where one runs.
        A version that AppDB does not have, or has archived, is not offered anyway.
    type: str
    choices: [present, verified, disabled]
    default: present
  descriptor:
    description: Path of the C(descriptor.json) of the build; needed unless O(state=disabled).
    type: path
  version:
    description: The version to retire, where there is no O(descriptor).
    type: str
  reason:
    description: Why it is retired, for RV(actions); AppDB keeps no reason. Needed for O(state=disabled).
    type: str
  artifact_url:
    description:
      - Where the artifact is served. One that ends with a slash is its directory. Needed unless O(state=disabled).
    type: str
  format:
    description: The format of the artifact to publish, as C(artifacts) in the descriptor have it; by default the first one's.
    type: str
  notes:
    description:
      - What is new in this version, 1 to 1000 bytes. By default the description of the descriptor, or its title.
    type: str
  group:
    description: The group of the image, 1 to 50 bytes.
    type: str
    default: General group
  title:
    description: Title of the image; by default that of the descriptor.
    type: str
  description:
    description: Description of the image, 1 to 1000 bytes; by default that of the descriptor, or its title.
    type: str
  os:
    description: How AppDB names the operating system; by default it is derived from the descriptor.
    type: dict
    suboptions:
      name:
        description: Name of the system, such as V(Debian).
        type: str
      version:
        description: Version of the system.
        type: str
      family:
        description: Number of the family of the system in AppDB.
        type: str
  arch:
    description: How AppDB names the architecture; by default that of the descriptor.
    type: str
  hypervisor:
    description: How AppDB names the hypervisor.
    type: str
    default: KVM
  cores:
    description: Cores that the image needs; by default C(cpu) of the descriptor.
    type: dict
    suboptions:
      minimum:
        description: At least.
        type: int
      recommended:
        description: Better; by default the minimum.
        type: int
  ram:
    description: Memory in MiB that the image needs; by default C(memory) of the descriptor.
    type: dict
    suboptions:
      minimum:
        description: At least.
        type: int
      recommended:
        description: Better; by default the minimum.
        type: int
  network_traffic:
    description: The network traffic that the image needs.
    type: list
    elements: dict
    default: []
    suboptions:
      direction:
        description: Who begins it.
        type: str
        choices: [inbound, outbound, both]
        default: inbound
      protocols:
        description: Its protocols.
        type: list
        elements: str
        choices: [TCP, UDP, ICMP, IPSec, any]
        default: [TCP]
      ip_range:
        description: The other side, such as V(0.0.0.0/0).
        type: str
      port_range:
        description: Ports, such as V(22) or V(8000:8080).
        type: str
  integrity:
    description:
      - Whether AppDB fetches the image and computes size and checksum itself. Otherwise those of the descriptor are taken, and
        publishing takes a moment.
    type: bool
    default: false
  wait:
    description: Whether AppDB's verdict is waited for.
    type: bool
    default: true
  timeout:
    description: Seconds to wait for the verdict. The next run waits for the same check.
    type: int
    default: 1800
  interval:
    description: Seconds between two looks for the verdict.
    type: int
    default: 15
author:
  - cloudimg.factory contributors (@cloudimg-factory)
seealso:
  - module: cloudimg.factory.appdb_appliance_info
  - module: cloudimg.factory.appdb_image_list
  - module: cloudimg.factory.image_catalogue
"""

EXAMPLES = r"""
- name: Publish a build
  cloudimg.factory.appdb_appliance:
    api_url: https://appdb.example.org/rest/1.0/
    appliance: s:example.debian
    access_token: "{{ vault_appdb_token }}"
    descriptor: /srv/cloudimg/builds/debian-12/202501311200/descriptor.json
    artifact_url: https://images.example.org/debian-12/202501311200/
    network_traffic:
      - direction: inbound
        protocols: [TCP]
        ip_range: 0.0.0.0/0
        port_range: "22"

- name: Retire it
  cloudimg.factory.appdb_appliance:
    api_url: https://appdb.example.org/rest/1.0/
    appliance: s:example.debian
    access_token: "{{ vault_appdb_token }}"
    version: "202501311200"
    state: disabled
    reason: openssl is outdated
"""

RETURN = r"""
publication:
  description:
    - What has to be known about it later, to find and to retire it. C(id) and C(identifier) are AppDB's, of the version and of
      the image; they are missing in check mode where AppDB does not have it yet.
  returned: success
  type: dict
  sample: {appliance: s:example.debian, version: "202501311200", id: "4711", identifier: 0f1b5f0e-61e5-5cf4-a16d-b1c2ccf2ec50}
version:
  description: The version as AppDB has it; C({}) where it has none.
  returned: success
  type: dict
  sample: {id: "4711", version: "202501311200", status: verified, published: true, enabled: true, archived: false}
image:
  description: The descriptor of the build.
  returned: success, with O(descriptor)
  type: dict
  sample: {schema: 1, image: debian-12, version: "202501311200"}
actions:
  description: What was done, and why.
  returned: success
  type: list
  elements: str
  sample: ["AppDB appliance s:example.debian 202501311200: is not in AppDB yet"]
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 3.4
"""

import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils import _appdb_describe, _descriptor
from ansible_collections.cloudimg.factory.plugins.module_utils._appdb import OPTIONS, connect
from ansible_collections.cloudimg.factory.plugins.module_utils._appdb_publish import Desk
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import JOB_OPTION, Result, made_later, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

PAIR = {"type": "dict", "options": {"minimum": {"type": "int"}, "recommended": {"type": "int"}}}
TRAFFIC = {
    "direction": {"type": "str", "choices": ["inbound", "outbound", "both"], "default": "inbound"},
    "protocols": {
        "type": "list",
        "elements": "str",
        "choices": ["TCP", "UDP", "ICMP", "IPSec", "any"],
        "default": ["TCP"],
    },
    "ip_range": {"type": "str"},
    "port_range": {"type": "str"},
}
SPEC: dict[str, t.Any] = {
    **OPTIONS,
    "state": {"type": "str", "choices": ["present", "verified", "disabled"], "default": "present"},
    "descriptor": {"type": "path"},
    "version": {"type": "str"},
    "reason": {"type": "str"},
    "artifact_url": {"type": "str"},
    "format": {"type": "str"},
    "notes": {"type": "str"},
    "group": {"type": "str", "default": "General group"},
    "title": {"type": "str"},
    "description": {"type": "str"},
    "os": {"type": "dict", "options": {key: {"type": "str"} for key in ("name", "version", "family")}},
    "arch": {"type": "str"},
    "hypervisor": {"type": "str", "default": "KVM"},
    "cores": PAIR,
    "ram": PAIR,
    "network_traffic": {"type": "list", "elements": "dict", "default": [], "options": TRAFFIC},
    "integrity": {"type": "bool", "default": False},
    "wait": {"type": "bool", "default": True},
    "timeout": {"type": "int", "default": 1800},
    "interval": {"type": "int", "default": 15},
    "_job": JOB_OPTION,
}
REQUIRED = [
    *[("state", state, ("descriptor", "artifact_url")) for state in ("present", "verified")],
    ("state", "disabled", ("reason",)),
    ("state", "disabled", ("descriptor", "version"), True),
]


def work(module: AnsibleModule) -> Result:
    """Bring the version into the state that the options ask for."""
    given = module.params
    path = Path(given["descriptor"]).absolute() if given["descriptor"] else None
    if module.check_mode and path and not path.exists() and given["state"] != "disabled":
        return made_later(path, "it is published")
    build = _descriptor.load(path) if path else None
    appdb = connect(given, Progress("appdb", given["_job"]), must_write=True)
    desk = Desk(
        appdb, module.check_mode, wait=given["wait"], timeout=given["timeout"], interval=max(1, given["interval"])
    )
    if given["state"] == "disabled":
        if not given["reason"].strip():
            raise FactoryError("must not be empty", key="reason", mend="say why the version is retired")
        result = desk.retire(given["version"] or (build.version if build else ""))
        result.actions = [f"{action}: {given['reason'].strip()}" for action in result.actions]
    elif path and build:
        wanted, warnings = _appdb_describe.wanted(path, build, given)
        desk.warnings += warnings
        result = desk.have(wanted, publish=given["state"] == "present")
    for warning in desk.warnings:
        module.warn(warning)
    result.image = build.document() if build else None
    return result


def main() -> None:
    """The module."""
    run_module(SPEC, work, required_if=REQUIRED)


if __name__ == "__main__":
    main()
