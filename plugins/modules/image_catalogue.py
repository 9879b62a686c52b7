#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Publish builds in the local catalogue, and retire them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_catalogue
short_description: Publish and retire builds in the local catalogue
version_added: 0.1.0
description:
  - The local catalogue is a directory, with the files of each version in C(<image>/<version>/) and an C(index.json)
    that keeps all versions and their history.
  - Publishing reads nothing but C(descriptor.json) and the files beside it. Each artifact must be what the descriptor
    says, and C(assess.json) must say V(pass) of one of them.
  - C(assess.json) and C(report.html) are published along, where there are any.
  - A version must be newer than all that were ever published of its image, in natural order of its numbers. The same
    build may be published again, which changes nothing; another build of the same version may not.
  - Several processes may publish at the same time.
extends_documentation_fragment:
  - cloudimg.factory._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details:
      - The image's entry in the index before and after.
  idempotent:
    support: full
    details:
      - By the checksums of the artifacts, not by the version alone.
options:
  directory:
    description: The directory of the catalogue; it is made when it is missing.
    type: path
    required: true
  state:
    description:
      - V(present) has the build of O(descriptor) published.
      - V(deprecated) says in the index that O(version) should not be used any more; its files stay.
      - V(expired) ends the time of O(version) now, unless it has ended before; its files stay.
      - V(absent) removes the artifacts of O(version); what it was stays in the index, and its descriptor, list of packages,
        assessment and report stay beside it.
    type: str
    choices: [present, deprecated, expired, absent]
    default: present
  descriptor:
    description: Path of the C(descriptor.json) of the build; needed for O(state=present).
    type: path
  image:
    description: The name of the image; needed unless O(state=present).
    type: str
  version:
    description: The version to retire; needed unless O(state=present).
    type: str
  reason:
    description: Why the version is retired, for the history; needed unless O(state=present).
    type: str
  mode:
    description:
      - V(link) makes hard links to the files of the build, or copies where that cannot be.
      - V(copy) makes copies.
    type: str
    choices: [link, copy]
    default: link
  assess_override:
    description:
      - Why a build is to be published although the verdict in its C(assess.json) is not C(pass), or it has none, or one about
        another artifact. A blank reason is none.
      - It is not needed where the descriptor says already why (see M(cloudimg.factory.image_verdict)). Without both such a
        build is refused.
      - The reason goes into the index, the history, and the descriptor that is published, with who gave it and when.
    type: str
  who:
    description: Who does this, for the history. By default the user who runs the module.
    type: str
author:
  - cloudimg.factory contributors (@cloudimg-factory)
seealso:
  - module: cloudimg.factory.image_catalogue_info
  - module: cloudimg.factory.image_export
  - module: cloudimg.factory.image_verdict
"""

EXAMPLES = r"""
- name: Publish a build
  cloudimg.factory.image_catalogue:
    directory: /srv/cloudimg/catalogue
    descriptor: /srv/cloudimg/builds/debian-12/202501311200/descriptor.json

- name: Tell users of a version to take a newer one
  cloudimg.factory.image_catalogue:
    directory: /srv/cloudimg/catalogue
    image: debian-12
    version: "202501311200"
    state: deprecated
    reason: openssl is outdated

- name: Remove its files
  cloudimg.factory.image_catalogue:
    directory: /srv/cloudimg/catalogue
    image: debian-12
    version: "202501311200"
    state: absent
    reason: openssl is outdated
"""

RETURN = r"""
catalogue:
  description: Path of the index.
  returned: success
  type: str
  sample: /srv/cloudimg/catalogue/index.json
image:
  description: The descriptor of the build.
  returned: success, with O(state=present)
  type: dict
  sample: {schema: 1, image: debian-12, version: "202501311200"}
actions:
  description: What was done, and why.
  returned: success
  type: list
  elements: str
  sample: ["debian-12 202501311200: is not published yet"]
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 0.9
"""

import getpass
import os
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils._catalogue import Catalogue
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module

SPEC: dict[str, t.Any] = {
    "directory": {"type": "path", "required": True},
    "state": {"type": "str", "choices": ["present", "deprecated", "expired", "absent"], "default": "present"},
    "descriptor": {"type": "path"},
    "image": {"type": "str"},
    "version": {"type": "str"},
    "reason": {"type": "str"},
    "mode": {"type": "str", "choices": ["link", "copy"], "default": "link"},
    "assess_override": {"type": "str"},
    "who": {"type": "str"},
}
RETIRING = ("image", "version", "reason")
REQUIRED = [
    ("state", "present", ("descriptor",)),
    *[("state", state, RETIRING) for state in ("deprecated", "expired", "absent")],
]


def work(module: AnsibleModule) -> Result:
    """Bring the catalogue into the state that the options ask for."""
    options = module.params
    who = options["who"] or os.environ.get("SUDO_USER") or getpass.getuser()
    catalogue = Catalogue(Path(options["directory"]).absolute(), who, module.check_mode)
    if options["state"] == "present":
        return catalogue.publish(
            Path(options["descriptor"]).absolute(),
            link=options["mode"] == "link",
            assess_override=(options["assess_override"] or "").strip() or None,
        )
    if not options["reason"].strip():
        raise FactoryError("must not be empty", key="reason", mend="say why the version is retired")
    ways = {"deprecated": catalogue.deprecate, "expired": catalogue.expire, "absent": catalogue.remove}
    return ways[options["state"]](*(options[name] for name in RETIRING))


def main() -> None:
    """The module."""
    run_module(SPEC, work, required_if=REQUIRED)


if __name__ == "__main__":
    main()
