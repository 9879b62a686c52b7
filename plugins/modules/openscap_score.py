#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Have OpenSCAP judge a system that is not booted."""

from __future__ import annotations

DOCUMENTATION = r"""
module: openscap_score
short_description: Have OpenSCAP judge a system that is not booted
version_added: 0.1.0
description:
  - Runs on the builder, and judges the system below a directory, or in a layer that M(cloudimg.factory.disk_layer) has
    opened offline, by the SCAP Security Guide for just its version.
extends_documentation_fragment:
  - cloudimg.factory._attributes
  - cloudimg.factory._attributes.info_module
options:
  root:
    description: The directory, or the RV(cloudimg.factory.disk_layer#module:mount) of the layer.
    type: path
    required: true
  content:
    description: The data stream to judge by. By default the builder's for the system's version, if there is one.
    type: path
  profile:
    description:
      - The profile in it, without the prefix that all have. By default one that is for servers in general.
    type: str
    default: ""
seealso:
  - module: cloudimg.factory.security_score
author:
  - cloudimg.factory contributors (@cloudimg-factory)
"""

EXAMPLES = r"""
- name: Have the system judged
  cloudimg.factory.openscap_score:
    root: /srv/tree
  register: judged
"""

RETURN = r"""
openscap:
  description: What OpenSCAP said; null where it is not installed or knows nothing of the system.
  returned: success
  type: dict
  contains:
    profile:
      description: The profile.
      returned: success
      type: str
      sample: standard
    content:
      description: The name of the data stream.
      returned: success
      type: str
      sample: ssg-debian11-ds.xml
    version:
      description: The version of OpenSCAP.
      returned: success
      type: str
      sample: 1.3.7
    score:
      description: 0 to 100, of the rules that count those that are fulfilled.
      returned: success
      type: float
      sample: 61.2
    passed:
      description: How many rules are fulfilled.
      returned: success
      type: int
      sample: 30
    failed:
      description: How many are not.
      returned: success
      type: int
      sample: 12
    left_out:
      description: How many do not count, since OpenSCAP cannot tell in a system that is not booted.
      returned: success
      type: int
      sample: 9
    failures:
      description: Which are not.
      returned: success
      type: list
      elements: str
      sample: [partition_for_home]
note:
  description: Why there is no score; empty where there is one.
  returned: success
  type: str
  sample: the builder has no SSG content for debian 12
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 1.5
"""

import dataclasses
import tempfile
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils import _audit_openscap, _cli, _os_release, _supervisor
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module

SPEC: dict[str, t.Any] = {
    "root": {"type": "path", "required": True},
    "content": {"type": "path"},
    "profile": {"type": "str", "default": ""},
}


def _none(note: str) -> Result:
    return Result(extra={"openscap": None, "note": note})


def work(module: AnsibleModule) -> Result:
    """Judge."""
    root = Path(module.params["root"])
    holder = _supervisor.state(root.parent).get("supervisor", {}).get("pid")
    # Only the process that holds an offline layer sees what is mounted there.
    seen = Path(f"/proc/{holder}/root{root}") if holder else root
    if not _cli.which("oscap"):
        return _none("OpenSCAP is not installed on the builder; run playbooks/builder.yml with the feature scores")
    release = _os_release.read(seen)
    chosen = module.params["content"]
    content = Path(chosen) if chosen else _audit_openscap.content_for(release)
    if content is None:
        return _none(f"the builder has no SSG content for {release.get('ID')} {release.get('VERSION_ID')}")
    profile = _audit_openscap.profile_for(content, module.params["profile"])
    inside = ["nsenter", "--target", str(holder), "--mount", "--"] if holder else []
    with tempfile.TemporaryDirectory(prefix="cloudimg-audit-") as folder:
        score = _audit_openscap.evaluate(root, content, profile, Path(folder, "results.xml"), inside=inside, seen=seen)
    return Result(extra={"openscap": dataclasses.asdict(score), "note": ""})


def main() -> None:
    """The module."""
    run_module(SPEC, work)


if __name__ == "__main__":
    main()
