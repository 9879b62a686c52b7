#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""List what the local catalogue has."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_catalogue_info
short_description: List the images in the local catalogue
version_added: 0.1.0
description:
  - Returns the versions of images in the local catalogue, published and retired ones, and their history.
extends_documentation_fragment:
  - cloudimg.factory._attributes
  - cloudimg.factory._attributes.info_module
options:
  directory:
    description: The directory of the catalogue.
    type: path
    required: true
  image:
    description: The name of an image; by default all are returned.
    type: str
  keep:
    description: How many of an image's newest published versions shall stay, for RV(retire); by default all.
    type: int
  warn_days:
    description: Warn so many days ahead of the end of a version's time, and tell it in RV(ending). By default neither is done.
    type: int
author:
  - cloudimg.factory contributors (@cloudimg-factory)
seealso:
  - module: cloudimg.factory.image_catalogue
"""

EXAMPLES = r"""
- name: Ask what there is of Debian 12
  cloudimg.factory.image_catalogue_info:
    directory: /srv/cloudimg/catalogue
    image: debian-12
  register: catalogue

- name: Show the version to use
  ansible.builtin.debug:
    msg: "{{ catalogue.images['debian-12'].latest }}"
"""

RETURN = r"""
images:
  description:
    - The images by their names, each with C(identifier), C(title), C(versions), C(history) and C(latest).
    - C(latest) is the newest version whose state is C(published), or null.
    - C(state) of a version is C(published), C(deprecated), C(expired) or C(removed), at this moment.
    - C(publications) of a version says where it is or was published besides, see M(cloudimg.factory.image_publication).
    - Paths are relative to the directory of the catalogue.
  returned: success
  type: dict
  sample:
    debian-12:
      identifier: 4be8f45c-6ba5-5e2e-9f76-32e2e8a8e27e
      title: Debian 12
      latest: "202501311200"
      versions:
        - version: "202501311200"
          identifier: 0f1b5f0e-61e5-5cf4-a16d-b1c2ccf2ec50
          state: published
          created: "2025-01-31T12:00:00Z"
          published: "2025-01-31T12:30:00Z"
          expires: "2025-07-30T12:00:00Z"
          descriptor: debian-12/202501311200/descriptor.json
          packages: debian-12/202501311200/packages.json
          publications:
            hepix: {state: published, at: "2025-01-31T12:31:00Z", list: "https://www.example.org/images/image.list"}
          artifacts:
            - format: qcow2
              path: debian-12/202501311200/debian-12-202501311200.qcow2
              size: 190709760
              virtual_size: 8589934592
              checksums: {sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855}
      history:
        - {time: "2025-01-31T12:30:00Z", action: published, version: "202501311200", who: alice}
retire:
  description:
    - By image, what is due to be retired, and how. C(expired) is what is past its date, where that is not recorded yet or another
      catalogue still has it; C(absent) is what O(keep) newer versions are published of.
  returned: success
  type: dict
  sample:
    debian-12:
      - {version: "202407311200", state: absent, reason: 3 newer versions are published}
ending:
  description: By image, the published versions whose time ends within O(warn_days) days.
  returned: success
  type: dict
  sample:
    debian-12:
      - {version: "202501311200", expires: "2025-07-30T12:00:00Z", days: 6}
catalogue:
  description: Path of the index.
  returned: success
  type: str
  sample: /srv/cloudimg/catalogue/index.json
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 0.1
"""

import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils._catalogue import Catalogue
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._publications import due

SPEC: dict[str, t.Any] = {
    "directory": {"type": "path", "required": True},
    "image": {"type": "str"},
    "keep": {"type": "int"},
    "warn_days": {"type": "int"},
}


def work(module: AnsibleModule) -> Result:
    """Read the index."""
    options = module.params
    if options["keep"] is not None and options["keep"] < 1:
        raise FactoryError("is less than 1", key="keep", mend="keep at least the newest version")
    catalogue = Catalogue(Path(options["directory"]).absolute(), who="")
    images = catalogue.listing(options["image"])
    plans = {name: due(entry, keep=options["keep"], warn_days=options["warn_days"]) for name, entry in images.items()}
    found = {key: {name: plan[key] for name, plan in plans.items() if plan[key]} for key in ("retire", "ending")}
    for name, rows in found["ending"].items():
        for row in rows:
            module.warn(
                f"{name} {row['version']}: its time ends at {row['expires']}, in {row['days']} days; build it again"
            )
    return Result(extra={"images": images, **found, "catalogue": str(catalogue.path)})


def main() -> None:
    """The module."""
    run_module(SPEC, work)


if __name__ == "__main__":
    main()
