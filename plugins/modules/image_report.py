#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the report on a build."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_report
short_description: Write the report on a build, a page to look at
version_added: 0.1.0
description:
  - Writes one HTML page about a build, with the verdict, how long the stages took, how the image boots, its hardening
    scores, all checks, what fills its disk, its packages and what changed since the last published version, its screen,
    checksums and digests.
  - The page needs no other file, no script and no network. It is the same, byte by byte, for the same build.
  - It reads C(build.json), C(descriptor.json), C(assess.json), C(packages.json) and C(logs/assess-screen-*.png) in the build
    directory. What is missing there is missing in the page, or the page says so.
extends_documentation_fragment:
  - cloudimg.factory._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
    details:
      - By the content of the page.
options:
  directory:
    description: The build directory.
    type: path
    required: true
  catalogue:
    description:
      - The local catalogue, its directory or its C(index.json). The newest version there that is older than this one, and not
        removed, is what packages are compared with.
      - Without it nothing is compared.
    type: path
  path:
    description: The page. By default C(report.html) in O(directory).
    type: path
author:
  - cloudimg.factory contributors (@cloudimg-factory)
seealso:
  - module: cloudimg.factory.image_assess
  - module: cloudimg.factory.image_catalogue
"""

EXAMPLES = r"""
- name: Write the report
  cloudimg.factory.image_report:
    directory: /srv/cloudimg/builds/debian-12/202501311200
    catalogue: /srv/cloudimg/catalogue
"""

RETURN = r"""
path:
  description: The page.
  returned: success
  type: str
  sample: /srv/cloudimg/builds/debian-12/202501311200/report.html
verdict:
  description: What the page says, V(pass), V(fail), V(override) (failed, and let through) or V(none) (not assessed).
  returned: when there is a build
  type: str
  sample: pass
changes:
  description:
    - How many packages are different from the version that was published before, with C(since), C(added), C(removed) and
      C(changed); null where there is nothing to compare with.
  returned: success
  type: dict
  sample: {since: "202501011200", added: 1, removed: 0, changed: 12}
actions:
  description: What was done, and why.
  returned: success
  type: list
  elements: str
  sample: ["report.html: is missing"]
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 0.1
"""

import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._report import report

SPEC: dict[str, t.Any] = {
    "directory": {"type": "path", "required": True},
    "catalogue": {"type": "path"},
    "path": {"type": "path"},
}


def work(module: AnsibleModule) -> Result:
    """Write it."""
    directory, catalogue, path = (
        Path(module.params[name]).absolute() if module.params[name] else None
        for name in ("directory", "catalogue", "path")
    )
    return report(directory or Path(), catalogue, path, check_mode=module.check_mode)


def main() -> None:
    """The module."""
    run_module(SPEC, work)


if __name__ == "__main__":
    main()
