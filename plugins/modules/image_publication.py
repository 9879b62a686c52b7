#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep the record of where a version is published."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_publication
short_description: Record in the local catalogue where a version is published
version_added: 0.1.0
description:
  - The local catalogue keeps the history of each image, and where each of its versions is published besides. This module writes
    that a version is published in another catalogue, or retired there; the roles C(publish) and C(retire) do so after each
    catalogue.
  - It asks no other catalogue. A version that was removed from the local catalogue can still be recorded as retired elsewhere.
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
options:
  directory:
    description: The directory of the local catalogue.
    type: path
    required: true
  image:
    description: The name of the image.
    type: str
    required: true
  version:
    description: The version.
    type: str
    required: true
  catalogue:
    description: The name of the other catalogue, such as V(hepix).
    type: str
    required: true
  state:
    description:
      - V(published) records that O(version) is published there.
      - V(retired) records that it is not any more. Nothing changes where it never was.
    type: str
    choices: [published, retired]
    default: published
  publication:
    description: What finds it there again, such as its identifier and the URL of the list. By default what is known is kept.
    type: dict
  reason:
    description: Why, for the history.
    type: str
  who:
    description: Who does this, for the history. By default the user who runs the module.
    type: str
author:
  - cloudimg.factory contributors (@cloudimg-factory)
seealso:
  - module: cloudimg.factory.image_catalogue
  - module: cloudimg.factory.image_catalogue_info
"""

EXAMPLES = r"""
- name: Record that a version is in an image list
  cloudimg.factory.image_publication:
    directory: /srv/cloudimg/catalogue
    image: debian-12
    version: "202501311200"
    catalogue: hepix
    publication:
      list: https://www.example.org/images/image.list

- name: Record that it is no longer
  cloudimg.factory.image_publication:
    directory: /srv/cloudimg/catalogue
    image: debian-12
    version: "202501311200"
    catalogue: hepix
    state: retired
    reason: openssl is outdated
"""

RETURN = r"""
catalogue:
  description: Path of the index.
  returned: success
  type: str
  sample: /srv/cloudimg/catalogue/index.json
actions:
  description: What was done, and why.
  returned: success
  type: list
  elements: str
  sample: ["debian-12 202501311200: is not published in hepix, shall be published"]
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

from ansible_collections.cloudimg.factory.plugins.module_utils import _publications
from ansible_collections.cloudimg.factory.plugins.module_utils._catalogue import Catalogue
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module

SPEC: dict[str, t.Any] = {
    "directory": {"type": "path", "required": True},
    "image": {"type": "str", "required": True},
    "version": {"type": "str", "required": True},
    "catalogue": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["published", "retired"], "default": "published"},
    "publication": {"type": "dict"},
    "reason": {"type": "str"},
    "who": {"type": "str"},
}


def work(module: AnsibleModule) -> Result:
    """Write the record."""
    options = module.params
    who = options["who"] or os.environ.get("SUDO_USER") or getpass.getuser()
    catalogue = Catalogue(Path(options["directory"]).absolute(), who, module.check_mode)
    return _publications.record(
        catalogue,
        options["image"],
        options["version"],
        options["catalogue"],
        state=options["state"],
        publication=options["publication"],
        reason=(options["reason"] or "").strip() or None,
    )


def main() -> None:
    """The module."""
    run_module(SPEC, work)


if __name__ == "__main__":
    main()
