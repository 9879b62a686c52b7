#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the verdict on an image into its descriptor."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_verdict
short_description: Write the verdict on an image into its descriptor, or let it through for a reason
version_added: 0.1.0
description:
  - Reads C(assess.json) in the build directory, and writes what it says into C(descriptor.json), as C(assess).
  - A verdict that is about another artifact than those of the descriptor does not count.
  - It does not fail because of a verdict; see RV(accepted).
extends_documentation_fragment:
  - cloudimg.factory._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details:
      - What the descriptor says about the verdict, before and after.
  idempotent:
    support: full
    details:
      - An override that has the same reason keeps its author and its time.
options:
  directory:
    description: The build directory, with C(descriptor.json) and C(assess.json).
    type: path
    required: true
  override:
    description:
      - Why the image may be published although its verdict is C(fail). It goes into the descriptor with O(who) and the time.
      - A blank reason is none. What has passed, and what has not been assessed, gets no override.
    type: str
    default: ""
  who:
    description: Who lets it through. By default the user who runs the module.
    type: str
author:
  - cloudimg.factory contributors (@cloudimg-factory)
seealso:
  - module: cloudimg.factory.image_assess
  - module: cloudimg.factory.image_catalogue
"""

EXAMPLES = r"""
- name: Let an image through
  cloudimg.factory.image_verdict:
    directory: /srv/cloudimg/builds/debian-12/202501311200
    override: mends CVE-2025-0001, the failed unit is known
"""

RETURN = r"""
verdict:
  description: The verdict; V(none) where these artifacts have not been assessed.
  returned: success
  type: str
  sample: fail
accepted:
  description: Whether the image may be published.
  returned: success
  type: bool
  sample: true
override:
  description: Why it may be although its verdict is V(fail), with C(reason), C(by) and C(at); null where that is not needed.
  returned: success
  type: dict
  sample: {reason: the failed unit is known, by: alice, at: '2025-01-31T12:00:00Z'}
problem:
  description: Why it has not passed, in words; null where it has.
  returned: success
  type: str
  sample: the verdict is 'fail'
descriptor:
  description: Path of the descriptor.
  returned: success
  type: str
  sample: /srv/cloudimg/builds/debian-12/202501311200/descriptor.json
image:
  description: The descriptor.
  returned: when there is one
  type: dict
  sample: {schema: 1, image: debian-12, version: "202501311200"}
actions:
  description: What was done, and why.
  returned: success
  type: list
  elements: str
  sample: ["descriptor.json: the verdict is pass"]
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 0.1
"""

import getpass
import os
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._verdict import settle

SPEC: dict[str, t.Any] = {
    "directory": {"type": "path", "required": True},
    "override": {"type": "str", "default": ""},
    "who": {"type": "str"},
}


def work(module: AnsibleModule) -> Result:
    """Settle the verdict."""
    options = module.params
    who = options["who"] or os.environ.get("SUDO_USER") or getpass.getuser()
    return settle(Path(options["directory"]).absolute(), options["override"], who, check_mode=module.check_mode)


def main() -> None:
    """The module."""
    run_module(SPEC, work)


if __name__ == "__main__":
    main()
