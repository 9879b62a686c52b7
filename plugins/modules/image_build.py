#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep the state of a build."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_build
short_description: Keep the state of a build
version_added: 0.1.0
description:
  - Keeps C(build.json) in the build directory, which tells what the stages of a build have made, and the lock that
    keeps two builds of one image apart.
  - The lock belongs to the ansible-playbook that began the build. It is given back by O(state=finished) and
    O(state=failed), and counts no more when that process has gone (on another machine, when it was not renewed for two
    hours).
extends_documentation_fragment:
  - cloudimg.factory._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details:
      - With O(state=begun) it shows which keys of the definition differ from those of the newest build.
  idempotent:
    support: full
    details:
      - A build is told by its digest. O(state=failed) always notes the failure.
options:
  workspace:
    description: The workspace on the builder; it is made where there is none.
    type: path
    required: true
  image:
    description: The name of the image.
    type: str
    required: true
  version:
    description: The version of the build.
    type: str
    required: true
  state:
    description:
      - V(begun) returns the newest complete build where its digest is O(digest) and its artifacts are intact; otherwise
        it takes up an unfinished build of that digest again; otherwise it begins O(version).
      - V(recorded) keeps what O(stage) has left, with the times at which it began and ended; what later stages have left
        counts no more when that differs. A stage begins where the one before it was recorded, or with V(begun).
      - V(finished) marks the build as complete when it is exported, assessed and published, and gives back the lock. One
        that has failed must have been let through.
      - V(failed) notes why the build failed, and gives back the lock.
    type: str
    required: true
    choices: [begun, recorded, finished, failed]
  digest:
    description: RV(cloudimg.factory.image_definition#module:digest); needed by O(state=begun).
    type: str
  definition:
    description: RV(cloudimg.factory.image_definition#module:definition); needed by O(state=begun).
    type: dict
  inputs:
    description: RV(cloudimg.factory.image_definition#module:inputs).
    type: dict
    default: {}
  descendants:
    description:
      - The images that are built in the same run and stand on another one. Where one of them is going to be built on the disk
        of this image, and that disk is not in the layer cache any more, O(state=begun) begins another build, even though the
        newest is complete.
    type: list
    elements: dict
    default: []
    suboptions:
      image:
        description: Its name.
        type: str
        required: true
      parent:
        description: The name of its parent.
        type: str
        required: true
      digest:
        description: Its RV(cloudimg.factory.image_definition#module:digest).
        type: str
        required: true
  stage:
    description: The stage that O(record) is of, or that failed.
    type: str
  record:
    description: What O(stage) has left; needed by O(state=recorded).
    type: dict
  reason:
    description: Why O(stage) failed.
    type: str
    default: unknown
  _owner:
    description: Who holds the lock. Set by the action plugin.
    type: dict
  _build:
    description: The build so far, for check mode. Set by the action plugin.
    type: dict
seealso:
  - module: cloudimg.factory.image_definition
  - module: cloudimg.factory.image_build_info
author:
  - cloudimg.factory contributors (@cloudimg-factory)
"""

EXAMPLES = r"""
- name: Begin the build
  cloudimg.factory.image_build:
    workspace: /srv/cloudimg
    image: debian-12
    version: "{{ checked.version }}"
    digest: "{{ checked.digest }}"
    definition: "{{ checked.definition }}"
    inputs: "{{ checked.inputs }}"
    state: begun
  register: begun

- name: Record the medium
  cloudimg.factory.image_build:
    workspace: /srv/cloudimg
    image: debian-12
    version: "{{ begun.build.version }}"
    state: recorded
    stage: media
    record:
      path: /srv/cloudimg/cache/media/debian-12.iso
"""

RETURN = r"""
build:
  description: The build, as in C(build.json).
  returned: success
  type: dict
  contains:
    image:
      description: Name of the image.
      returned: success
      type: str
      sample: debian-12
    version:
      description: Version of the build; it can be another one than O(version) when that build was there already.
      returned: success
      type: str
      sample: "202501311200"
    workspace:
      description: The workspace.
      returned: success
      type: str
      sample: /srv/cloudimg
    dir:
      description: The build directory.
      returned: success
      type: str
      sample: /srv/cloudimg/builds/debian-12/202501311200
    digest:
      description: Digest of all that goes into the image.
      returned: success
      type: str
      sample: 0f343b0931126a20f133d67c2b018a3b0f343b0931126a20f133d67c2b018a3b
    complete:
      description: Whether there is nothing left to do.
      returned: success
      type: bool
      sample: false
    created:
      description: When it was begun.
      returned: success
      type: str
      sample: "2025-01-31T12:00:00Z"
    finished:
      description: When it was complete.
      returned: when RV(build.complete)
      type: str
      sample: "2025-01-31T12:20:00Z"
    definition:
      description: The definition.
      returned: success
      type: dict
      sample: {image_title: Debian 12}
    inputs:
      description: Digests of what else goes into the image.
      returned: success
      type: dict
      sample: {}
    stages:
      description:
        - What each stage has left, and beside it C(finished), C(began) and C(seconds), the time that it took in the run of
          the playbook that recorded it. C(cached) is true where all its files were there before.
      returned: success
      type: dict
      sample:
        media:
          path: /srv/cloudimg/cache/media/debian-12.iso
          began: '2025-01-31T12:00:00Z'
          finished: '2025-01-31T12:00:01Z'
          seconds: 0.8
          cached: true
    failure:
      description: Why the build failed, with C(stage), C(message) and C(time).
      returned: when it has failed
      type: dict
      sample: {stage: base_vm, message: 'no space left', time: '2025-01-31T12:07:00Z'}
resumed:
  description: Whether an unfinished build was taken up again.
  returned: when O(state=begun)
  type: bool
  sample: false
actions:
  description: What was done, and why.
  returned: always
  type: list
  elements: str
  sample: ['build debian-12 202501311200: differs from 202501300900 in image_packages']
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 0.1
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils._build import Builds
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._parent import disk_lost
from ansible_collections.cloudimg.factory.plugins.module_utils._state import Workspace

SPEC: dict[str, t.Any] = {
    "workspace": {"type": "path", "required": True},
    "image": {"type": "str", "required": True},
    "version": {"type": "str", "required": True},
    "state": {"type": "str", "required": True, "choices": ["begun", "recorded", "finished", "failed"]},
    "digest": {"type": "str"},
    "definition": {"type": "dict"},
    "inputs": {"type": "dict", "default": {}},
    "descendants": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {name: {"type": "str", "required": True} for name in ("image", "parent", "digest")},
    },
    "stage": {"type": "str"},
    "record": {"type": "dict"},
    "reason": {"type": "str", "default": "unknown"},
    "_owner": {"type": "dict"},
    "_build": {"type": "dict"},
}


def work(module: AnsibleModule) -> Result:
    """Do what the wanted state takes."""
    want = module.params
    builds = Builds(want["workspace"], want["image"], want["_owner"], module.check_mode)
    if want["state"] == "begun":
        lost = disk_lost(Workspace(want["workspace"]), want["image"], want["descendants"])
        return builds.begin(want["version"], want["digest"], want["definition"], want["inputs"], lost)
    if want["state"] == "recorded":
        return builds.record(want["version"], want["stage"], want["record"], want["_build"])
    if want["state"] == "finished":
        return builds.finish(want["version"], want["_build"])
    return builds.fail(want["version"], want["stage"], want["reason"], want["_build"])


def main() -> None:
    """The module."""
    run_module(
        SPEC,
        work,
        required_if=[
            ("state", "begun", ("digest", "definition")),
            ("state", "recorded", ("stage", "record")),
            ("state", "failed", ("stage",)),
        ],
    )


if __name__ == "__main__":
    main()
