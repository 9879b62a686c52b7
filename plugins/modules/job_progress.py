#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look after a long job."""

from __future__ import annotations

DOCUMENTATION = r"""
module: job_progress
short_description: Look after a long job
version_added: 0.1.0
description:
  - Reads what a module that works for long has reported, and tells the job that it is still wanted.
  - The action plugins of this collection call it every few seconds. Playbooks do not need it.
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
  path:
    description: The job's progress file.
    type: path
    required: true
  results:
    description: The file into which Ansible's asynchronous wrapper writes the job's result.
    type: path
    required: true
  lock:
    description: A lock file that the job's playbook holds; it is renewed while the job runs.
    type: path
  state:
    description:
      - V(visited) renews the job's lease and tells how far it is.
      - V(begun) also removes what jobs of killed playbooks left beside it.
      - V(watched) only tells how far it is.
      - V(cancelled) makes the job end as soon as it reports again.
      - V(absent) removes the job's files; its result must have been read before.
    type: str
    choices: [begun, visited, watched, cancelled, absent]
    default: visited
author:
  - cloudimg.factory contributors (@cloudimg-factory)
"""

EXAMPLES = r"""
- name: Ask after a job
  cloudimg.factory.job_progress:
    path: /root/.ansible_async/cloudimg-3f2a.json
    results: /root/.ansible_async/j4711.42
  register: visit
"""

RETURN = r"""
finished:
  description: Whether the job has ended, so that its result can be read.
  returned: unless O(state=cancelled) or O(state=absent)
  type: bool
  sample: false
alive:
  description: Whether its process runs; V(none) when it has not told which one that is.
  returned: unless O(state=cancelled) or O(state=absent)
  type: bool
  sample: true
progress:
  description: What it last reported.
  returned: unless O(state=cancelled) or O(state=absent)
  type: dict
  sample: {stage: base_vm, phase: installing, elapsed: 135.2, pid: 4711, disk: 432013312}
"""

import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import STATES, look_after
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors

SPEC: dict[str, t.Any] = {
    "path": {"type": "path", "required": True},
    "results": {"type": "path", "required": True},
    "lock": {"type": "path"},
    "state": {"type": "str", "choices": list(STATES), "default": "visited"},
}


def work(module: AnsibleModule) -> Result:
    """Look after the job, unless in check mode, in which there is none."""
    job, results, state = Path(module.params["path"]), Path(module.params["results"]), module.params["state"]
    lock = Path(module.params["lock"]) if module.params["lock"] else None
    if module.check_mode:
        return Result()
    with explain_os_errors(job):
        return Result(extra=look_after(job, results, state, lock))


def main() -> None:
    """The module."""
    run_module(SPEC, work)


if __name__ == "__main__":
    main()
