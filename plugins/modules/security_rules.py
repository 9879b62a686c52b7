#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a system safer by named rules."""

from __future__ import annotations

DOCUMENTATION = r"""
module: security_rules
short_description: Make a system safer by named rules
version_added: 0.1.0
description:
  - Runs inside an image, booted or not, and carries out rules, all at once. Each has a name by which it can be switched.
  - Which rules there are is data; see the role P(cloudimg.factory.harden#role).
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
  rules:
    description: The rules, in the order in which they are carried out.
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
      write:
        description: Files to write, by name with their content, mode 0644 unless they have another one already.
        type: dict
        default: {}
      remove:
        description: Patterns of files to remove.
        type: list
        elements: str
        default: []
      lines:
        description:
          - Files, by name, with a dictionary of regular expressions and lines. A line takes the place of those that match
            its expression; where none does, it goes to the end. Files that do not exist are left alone.
        type: dict
        default: {}
      modes:
        description:
          - Patterns of files and directories with the most that their mode may allow, in octal digits. What allows less
            stays as it is.
        type: dict
        default: {}
      lock:
        description: Accounts whose passwords are locked, also where they are empty. V(*) stands for all.
        type: list
        elements: str
        default: []
      unlocked:
        description: Accounts whose passwords O(rules[].lock) leaves alone.
        type: list
        elements: str
        default: []
      accounts_absent:
        description: Accounts to remove, with their home directories.
        type: list
        elements: str
        default: []
      enable:
        description: Units of systemd that start at boot. They are not started now.
        type: list
        elements: str
        default: []
      disable:
        description: Units that do not. Those that do not exist are left alone; none is stopped.
        type: list
        elements: str
        default: []
      only:
        description: Where not empty, the only services and sockets that stay enabled.
        type: list
        elements: str
        default: []
  profile:
    description: Names of the rules to carry out.
    type: list
    elements: str
    default: []
  disabled:
    description: Names of rules to leave out all the same.
    type: list
    elements: str
    default: []
  enabled:
    description: Names of rules to carry out besides.
    type: list
    elements: str
    default: []
author:
  - cloudimg.factory contributors (@cloudimg-factory)
"""

EXAMPLES = r"""
- name: Have no core dumps
  cloudimg.factory.security_rules:
    rules:
      - name: core_dumps
        description: a core dump may hold what was only in memory
        write:
          /etc/security/limits.d/60-core.conf: "* hard core 0\n"
    profile: [core_dumps]
"""

RETURN = r"""
rules:
  description: What each rule has changed.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Its name.
      returned: success
      type: str
      sample: core_dumps
    changed:
      description: How many things it changed.
      returned: success
      type: int
      sample: 1
    what:
      description: Some of them.
      returned: success
      type: list
      elements: str
      sample: [/etc/security/limits.d/60-core.conf]
actions:
  description: What was done.
  returned: always
  type: list
  elements: str
  sample: ['core_dumps: /etc/security/limits.d/60-core.conf']
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 0.1
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils._audit_rules import Applier, Rule, choose
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module

_SHOWN = 20
_NAMES: dict[str, t.Any] = {"type": "list", "elements": "str", "default": []}
_MAPPING: dict[str, t.Any] = {"type": "dict", "default": {}}
SPEC: dict[str, t.Any] = {
    "rules": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "name": {"type": "str", "required": True},
            "description": {"type": "str", "required": True},
            "write": _MAPPING,
            "remove": _NAMES,
            "lines": _MAPPING,
            "modes": _MAPPING,
            "lock": _NAMES,
            "unlocked": _NAMES,
            "accounts_absent": _NAMES,
            "enable": _NAMES,
            "disable": _NAMES,
            "only": _NAMES,
        },
    },
    "profile": _NAMES,
    "disabled": _NAMES,
    "enabled": _NAMES,
}


def work(module: AnsibleModule) -> Result:
    """Carry out what is switched on."""
    options = module.params
    rules = [Rule(**rule) for rule in options["rules"]]
    applier = Applier(dry=module.check_mode)
    result = Result()
    done = []
    for rule in choose(rules, options["profile"], options["disabled"], options["enabled"]):
        what = applier.apply(rule)
        if what:
            result.act(f"{rule.name}: {', '.join(what[:3])}{', …' if len(what) > 3 else ''}")
        done.append({"name": rule.name, "changed": len(what), "what": what[:_SHOWN]})
    result.extra["rules"] = done
    return result


def main() -> None:
    """The module."""
    run_module(SPEC, work)


if __name__ == "__main__":
    main()
