#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Change files of an image by named operations."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_files
short_description: Change files of an image by named operations
version_added: 0.1.0
description:
  - Runs inside an image and carries out operations on its files, all at once. Each has a name by which it can be switched.
  - Which operations there are is data; see the roles P(cloudimg.factory.cloud_init#role) and
    P(cloudimg.factory.sanitize#role).
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
  operations:
    description: The operations, in the order in which they are carried out.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Its name.
        type: str
        required: true
      description:
        description: What it is good for, in one line.
        type: str
        required: true
      optional:
        description: Whether it is carried out only when O(enabled) names it.
        type: bool
        default: false
      instead:
        description: What does this, if not the operation itself. Then it can neither be switched on nor off.
        type: str
        default: ""
      accounts:
        description:
          - Accounts to remove, with their groups, home directories, mail, cron tables and files in C(/etc/sudoers.d).
          - V(*) stands for all accounts of people (by user id, 1000 to 59999), V(!name) for an exception.
        type: list
        elements: str
        default: []
      remove:
        description:
          - Patterns of files and directories to remove.
          - In patterns C(**) stands for directories at any depth, and C(*) also for what begins with a dot. C(~/) at the
            beginning stands for each home directory, wherever it is.
        type: list
        elements: str
        default: []
      empty:
        description: Patterns of directories to remove the content of.
        type: list
        elements: str
        default: []
      truncate:
        description: Patterns of files to keep without content.
        type: list
        elements: str
        default: []
      edit:
        description: Patterns of files, each with a list of regular expressions of lines in them to remove.
        type: dict
        default: {}
      wipe:
        description: Patterns of swap files to overwrite with zeros. They stay ready for use.
        type: list
        elements: str
        default: []
      by_uuid:
        description:
          - Patterns of files such as C(/etc/fstab). In them devices of the machine that the image was made on (by id, by
            path, C(sda1)) are called by UUID from then on; removable media and swap on such devices are left out.
        type: list
        elements: str
        default: []
      write:
        description: Files to write, by name with their content, mode 0644 unless they have another one already.
        type: dict
        default: {}
      links:
        description: Symbolic links to make, by name with where they lead, where their directory exists.
        type: dict
        default: {}
      modes:
        description: Patterns of files and directories, each with its permissions in octal digits, such as V("0600").
        type: dict
        default: {}
      keep:
        description: Patterns of what the operation leaves alone all the same.
        type: list
        elements: str
        default: []
  disabled:
    description: Names of operations to leave out.
    type: list
    elements: str
    default: []
  enabled:
    description: Names of optional operations to carry out.
    type: list
    elements: str
    default: []
author:
  - cloudimg.factory contributors (@cloudimg-factory)
"""

EXAMPLES = r"""
- name: Forget the host keys
  cloudimg.factory.image_files:
    operations:
      - name: ssh_hostkeys
        description: each machine makes its own
        remove: [/etc/ssh/ssh_host_*]

- name: Forget what was typed, and the proxy of the build
  cloudimg.factory.image_files:
    operations:
      - name: histories
        description: in all home directories
        remove: [~/.*_history]
      - name: proxy
        description: settings of the network that the image was made in
        edit:
          /etc/apt/apt.conf.d/*: ['(?i)^\s*Acquire::https?::Proxy\b']
"""

RETURN = r"""
operations:
  description: What each operation has changed.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Its name.
      returned: success
      type: str
      sample: ssh_hostkeys
    changed:
      description: How many files and directories it changed.
      returned: success
      type: int
      sample: 6
    paths:
      description: Some of them.
      returned: success
      type: list
      elements: str
      sample: [/etc/ssh/ssh_host_rsa_key]
actions:
  description: What was done.
  returned: always
  type: list
  elements: str
  sample: ["ssh_hostkeys: 6"]
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 0.1
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils._file_operations import Operation, perform, select
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module

_SHOWN = 20
_PATTERNS: dict[str, t.Any] = {"type": "list", "elements": "str", "default": []}
_BY_NAME: dict[str, t.Any] = {"type": "dict", "default": {}}
SPEC: dict[str, t.Any] = {
    "operations": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "name": {"type": "str", "required": True},
            "description": {"type": "str", "required": True},
            "optional": {"type": "bool", "default": False},
            "instead": {"type": "str", "default": ""},
            "accounts": _PATTERNS,
            "remove": _PATTERNS,
            "empty": _PATTERNS,
            "truncate": _PATTERNS,
            "edit": _BY_NAME,
            "wipe": _PATTERNS,
            "by_uuid": _PATTERNS,
            "write": _BY_NAME,
            "links": _BY_NAME,
            "modes": _BY_NAME,
            "keep": _PATTERNS,
        },
    },
    "disabled": _PATTERNS,
    "enabled": _PATTERNS,
}


def work(module: AnsibleModule) -> Result:
    """Carry out what is switched on."""
    operations = [Operation(**options) for options in module.params["operations"]]
    result = Result()
    done = []
    for operation in select(operations, module.params["disabled"], module.params["enabled"]):
        paths = perform(operation, dry=module.check_mode)
        if paths:
            result.act(f"{operation.name}: {len(paths)}")
        done.append({"name": operation.name, "changed": len(paths), "paths": paths[:_SHOWN]})
    result.extra["operations"] = done
    return result


def main() -> None:
    """The module."""
    run_module(SPEC, work)


if __name__ == "__main__":
    main()
