#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hold images of any catalogue against a site's policy."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_policy
short_description: Hold images of any catalogue against a site's policy
version_added: 0.1.0
description:
  - Says of each image whether the site takes it, and if not, for which reasons, as C(stratus-policy-image) does for StratusLab.
  - It judges what metadata say, and does not verify who has signed them. Give it what the C(_info) modules have verified.
extends_documentation_fragment:
  - cloudimg.factory._attributes
  - cloudimg.factory._attributes.info_module
options:
  images:
    description:
      - Metadata of images, of one catalogue or several. Each may be an entry of
        RV(cloudimg.factory.stratuslab_metadata_info#module:entries); an image or version of
        RV(cloudimg.factory.image_catalogue_info#module:images); all that M(cloudimg.factory.hepix_image_list_info) returns, a
        list of HEPiX (C(hv:imagelist)) or an image of one; the C(appliance) of M(cloudimg.factory.appdb_appliance_info) or a
        version of it; a descriptor; or any mapping with C(identifier), C(endorser), C(checksums), C(expires) and
        C(deprecated).
    type: list
    elements: dict
  descriptors:
    description: Paths of C(descriptor.json) of builds.
    type: list
    elements: path
  allow:
    description:
      - What the site takes. A list that is not given allows all, an empty list nothing.
    type: dict
    suboptions:
      endorsers:
        description: E-mail addresses, or names of certificates (V(/DC=org/CN=x), or V(CN=x,DC=org) for StratusLab).
        type: list
        elements: str
      images:
        description: Identifiers of images or versions.
        type: list
        elements: str
      checksums:
        description: Checksums in hexadecimal digits, with or without V(sha512:) before. One of an image's checksums will do.
        type: list
        elements: str
  block:
    description: What the site does not take, even where O(allow) has it.
    type: dict
    suboptions:
      endorsers:
        description: As in O(allow.endorsers).
        type: list
        elements: str
      images:
        description: As in O(allow.images).
        type: list
        elements: str
      checksums:
        description: As in O(allow.checksums). One of an image's checksums is enough.
        type: list
        elements: str
  expired:
    description: Whether to take images whose time is over.
    type: bool
    default: false
  deprecated:
    description: Whether to take images that are deprecated, or that their catalogue has retired.
    type: bool
    default: false
  untrusted:
    description:
      - Whether to take images whose signature was held against no authority (C(signature.trusted) is false), or of a list that is
        not valid.
    type: bool
    default: false
  require_expiry:
    description: Whether an image has to say when it expires.
    type: bool
    default: false
  warn_days:
    description: Warn of images that are taken, and whose time ends within so many days.
    type: int
    default: 0
  file:
    description:
      - An image's file, which has to have the size and the checksums that the metadata of a single image say.
      - StratusLab means the image without the compression of its file.
    type: path
  refused:
    description:
      - What to do about images that are not taken. V(fail) fails when there is one, V(report) returns them.
    type: str
    choices: [fail, report]
    default: fail
author:
  - cloudimg.factory contributors (@cloudimg-factory)
seealso:
  - module: cloudimg.factory.stratuslab_metadata_info
  - module: cloudimg.factory.image_catalogue_info
"""

EXAMPLES = r"""
- name: Read what a Marketplace offers
  cloudimg.factory.stratuslab_metadata_info:
    marketplace: https://marketplace.example.org
    ca_directory: /etc/grid-security/certificates
  register: offered

- name: Choose what the site takes
  cloudimg.factory.image_policy:
    images: "{{ offered.entries }}"
    allow:
      endorsers: [jane@example.org]
    block:
      checksums: [1104f3e30c030f8b93f220b04131032dddf51f21]
    refused: report
  register: chosen

- name: Take no image of the local catalogue that is out of date
  cloudimg.factory.image_policy:
    descriptors: [/srv/cloudimg/catalogue/debian-12/202501311200/descriptor.json]
    require_expiry: true
"""

RETURN = r"""
images:
  description: The images, in the order in which they were given, and why each is not taken.
  returned: always, once the images could be read
  type: list
  elements: dict
  sample:
    - identifier: BEE8-MMAw-Lk_IgsEExAy3d9R8h
      catalogue: stratuslab
      title: Debian 12
      version: "202501311200"
      endorser: jane@example.org
      expires: "2025-07-30T12:00:00Z"
      accepted: false
      reasons: ["endorser jane@example.org is not allowed"]
accepted:
  description: The identifiers of the images that are taken.
  returned: always, once the images could be read
  type: list
  elements: str
  sample: []
refused:
  description: The identifiers of the images that are not taken.
  returned: always, once the images could be read
  type: list
  elements: str
  sample: [BEE8-MMAw-Lk_IgsEExAy3d9R8h]
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 0.1
"""

import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _policy
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import file_digests
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors

LISTS: dict[str, t.Any] = {name: {"type": "list", "elements": "str"} for name in _policy.LISTS}
SPEC: dict[str, t.Any] = {
    "images": {"type": "list", "elements": "dict"},
    "descriptors": {"type": "list", "elements": "path"},
    "allow": {"type": "dict", "options": LISTS},
    "block": {"type": "dict", "options": LISTS},
    "expired": {"type": "bool", "default": False},
    "deprecated": {"type": "bool", "default": False},
    "untrusted": {"type": "bool", "default": False},
    "require_expiry": {"type": "bool", "default": False},
    "warn_days": {"type": "int", "default": 0},
    "file": {"type": "path"},
    "refused": {"type": "str", "choices": ["fail", "report"], "default": "fail"},
}
FLAGS = ("expired", "deprecated", "untrusted", "require_expiry")


def _candidates(options: dict[str, t.Any]) -> list[_policy.Candidate]:
    found = []
    for number, image in enumerate(options["images"] or []):
        found += _policy.candidates(image, f"images[{number}]")
    for path in options["descriptors"] or []:
        found += _policy.candidates(_descriptor.load(Path(path).absolute()).document(), path)
    return found


def _file_reasons(path: Path, candidates: list[_policy.Candidate]) -> list[str]:
    if len(candidates) != 1:
        raise FactoryError(
            f"is one file, and there are {len(candidates)} images", key="file", mend="give the metadata of one image"
        )
    with explain_os_errors(path):
        size, digests = path.stat().st_size, file_digests(path)
    return _policy.file_reasons(candidates[0], size, digests)


def work(module: AnsibleModule) -> Result:
    """Judge each image."""
    options = module.params
    policy = _policy.Policy(options["allow"] or {}, options["block"] or {}, **{name: options[name] for name in FLAGS})
    candidates = _candidates(options)
    more = _file_reasons(Path(options["file"]).absolute(), candidates) if options["file"] else []
    rows = []
    for candidate in candidates:
        reasons = policy.judge(candidate) + more
        name = candidate.identifiers[0] if candidate.identifiers else candidate.title
        rows.append(
            {
                "identifier": name,
                "catalogue": candidate.catalogue,
                "title": candidate.title,
                "version": candidate.version,
                "endorser": candidate.endorsers[0] if candidate.endorsers else "",
                "expires": candidate.expires or "",
                "accepted": not reasons,
                "reasons": reasons,
            }
        )
        if not reasons and options["warn_days"] and _policy.expires_soon(candidate, options["warn_days"]):
            module.warn(f"{name}: its time ends at {candidate.expires}")
    found = {
        "images": rows,
        "accepted": [row["identifier"] for row in rows if row["accepted"]],
        "refused": [row["identifier"] for row in rows if not row["accepted"]],
    }
    bad = [row for row in rows if not row["accepted"]]
    if bad and options["refused"] == "fail":
        others = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise FactoryError(
            f"is not taken: {'; '.join(bad[0]['reasons'])}{others}",
            where=bad[0]["identifier"],
            mend="change the policy, or do not use it",
            details=found,
        )
    return Result(extra=found)


def main() -> None:
    """The module."""
    run_module(SPEC, work, required_one_of=[("images", "descriptors")])


if __name__ == "__main__":
    main()
