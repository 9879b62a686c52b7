#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell what a builder can do."""

from __future__ import annotations

DOCUMENTATION = r"""
module: builder_info
short_description: Tell what a builder can do
version_added: 0.1.0
description:
  - Reports the versions of the tools that building needs, free space, processors and memory, and which accelerator
    really works.
  - A KVM device that exists and opens, but runs no guest, is common in nested clouds and CI. So guest code is run with
    it, and its answer is read.
extends_documentation_fragment:
  - cloudimg.factory._attributes
  - cloudimg.factory._attributes.info_module
options:
  workspace:
    description: The directory whose free space is reported; it need not exist yet.
    type: path
  tools:
    description: The tools to look for.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The program.
        type: str
        required: true
      package:
        description: The package that brings it, for messages.
        type: str
      minimum:
        description: The oldest version that will do.
        type: str
      required:
        description: Whether building is impossible without it.
        type: bool
        default: true
  probe:
    description: Probe KVM again, even if it has been probed since the machine was booted.
    type: bool
    default: false
author:
  - cloudimg.factory contributors (@cloudimg-factory)
"""

EXAMPLES = r"""
- name: Ask the builder
  cloudimg.factory.builder_info:
    workspace: /srv/cloudimg
    tools:
      - name: qemu-img
        package: qemu-utils
        minimum: "5.1"
  register: builder

- name: Show the accelerator
  ansible.builtin.debug:
    msg: "Guests run with {{ builder.accelerator.auto }}"
"""

RETURN = r"""
tools:
  description: The tools that are there, by name.
  returned: success
  type: dict
  sample: {qemu-img: {path: /usr/bin/qemu-img, version: 7.2.22}}
problems:
  description: What is missing or too old, a line each; empty on a builder that can build.
  returned: success
  type: list
  elements: str
  sample: ['virt-install: is not installed on the builder; run playbooks/builder.yml, or install the package virtinst']
accelerator:
  description: What became of running guest code.
  returned: success
  type: dict
  contains:
    auto:
      description: V(kvm) or V(tcg), what V(auto) stands for on this builder.
      type: str
      returned: success
      sample: tcg
    kvm:
      description: Whether KVM works, and if not, why.
      type: dict
      returned: success
      sample: {works: false, seconds: 5.0, reason: 'a guest does not run: did not end within 5 s'}
apt_mirrors:
  description: Where its own APT gets packages, by the label of the archive; empty where there is no APT.
  returned: success
  type: dict
  sample: {Debian: 'https://mirror.example.org/debian/'}
free:
  description: Bytes free for O(workspace).
  returned: success, when O(workspace) is given
  type: int
  sample: 85899345920
cpus:
  description: Number of processors.
  returned: success
  type: int
  sample: 2
memory:
  description: Bytes of memory.
  returned: success
  type: int
  sample: 25769803776
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 0.8
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils._builder import describe_builder
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module

SPEC: dict[str, t.Any] = {
    "workspace": {"type": "path"},
    "tools": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "package": {"type": "str"},
            "minimum": {"type": "str"},
            "required": {"type": "bool", "default": True},
        },
    },
    "probe": {"type": "bool", "default": False},
}


def work(module: AnsibleModule) -> Result:
    """Ask."""
    options = module.params
    return Result(extra=describe_builder(options["tools"], options["workspace"], probe=options["probe"]))


def main() -> None:
    """The module."""
    run_module(SPEC, work)


if __name__ == "__main__":
    main()
