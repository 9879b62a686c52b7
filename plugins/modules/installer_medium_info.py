#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell whether an installation ISO is still where it was, and whether there is a newer one."""

from __future__ import annotations

DOCUMENTATION = r"""
module: installer_medium_info
short_description: Tell whether an installation ISO is still where it was, and whether there is a newer one
version_added: 0.1.0
description:
  - Asks the vendor's server whether the ISO is there and is one, whether its checksum file still lists it and is signed as it
    has to be, and whether there is a newer point release of it.
  - The ISO is not fetched. Of it the first 36 KiB are read, where its label and size are.
  - A newer one is a file of the same name with higher numbers, in the checksum file, in the directory of the ISO, or in a
    directory beside one that is named after a number of it, as C(12.12.0) beside C(12.11.0).
extends_documentation_fragment:
  - cloudimg.factory._attributes
  - cloudimg.factory._attributes.info_module
options:
  url:
    description: Where the ISO is, by http or https.
    type: str
    required: true
  checksum:
    description: V(sha256:<hex>), V(sha512:<hex>), or the URL or path of the vendor's checksum file.
    type: str
    required: true
  signature:
    description: URL or path of the checksum file's detached OpenPGP signature, or of the clearsigned checksum file.
    type: str
  keyring:
    description:
      - Path of the vendor's OpenPGP public keys, armored or binary. Where it is given, the checksum file has to be signed.
    type: path
  fingerprints:
    description: Full fingerprints of those keys in O(keyring) that are trusted; all of them, where none is given.
    type: list
    elements: str
    default: []
  same:
    description:
      - How many of the leading numbers of its version a newer one has in common with it. With V(1), 12.12 is newer than 12.11,
        and 13.0 does not count; with V(0) any does.
    type: int
    default: 1
  fail_on:
    description: The values of RV(medium.status) that are an error.
    type: list
    elements: str
    choices: [newer, unreachable, moved, wrong]
    default: [moved, wrong]
  timeout:
    description: Seconds for which a server may be silent.
    type: int
    default: 30
seealso:
  - module: cloudimg.factory.installer_medium
author:
  - cloudimg.factory contributors (@cloudimg-factory)
"""

EXAMPLES = r"""
- name: Ask for Debian's installer
  cloudimg.factory.installer_medium_info:
    url: https://mirror.example.org/debian-cd/12.11.0/amd64/iso-cd/debian-12.11.0-amd64-netinst.iso
    checksum: https://mirror.example.org/debian-cd/12.11.0/amd64/iso-cd/SHA256SUMS
    signature: https://mirror.example.org/debian-cd/12.11.0/amd64/iso-cd/SHA256SUMS.sign
    keyring: /usr/share/keyrings/debian-role-keys.gpg
    fail_on: [moved, wrong, newer]
  register: asked

- name: Show what came out
  ansible.builtin.debug:
    var: asked.medium.outcome
"""

RETURN = r"""
medium:
  description: What is known of the medium now.
  returned: always, when the definition fits together
  type: dict
  contains:
    status:
      description:
        - V(ok); V(newer) where the vendor has a newer one; V(unreachable) where it cannot be told now; V(moved) where the ISO
          or its checksum is gone, or elsewhere for good, or not listed any more; V(wrong) where a signature is, or where the
          file is no ISO.
        - Of several the last in this order.
      returned: always
      type: str
      sample: newer
    outcome:
      description: All of it in one line.
      returned: always
      type: str
      sample: 'newer: there is a newer one, https://mirror.example.org/debian-cd/12.12.0/amd64/iso-cd/debian-12.12.0-amd64-netinst.iso'
    problems:
      description: What is wrong, one line each.
      returned: always
      type: list
      elements: str
      sample: []
    notes:
      description: What could not be told, or may be good to know.
      returned: always
      type: list
      elements: str
      sample: ['from mirror.example.net']
    url:
      description: The URL that was asked for, without a password or a query.
      returned: always
      type: str
      sample: https://mirror.example.org/debian-cd/12.11.0/amd64/iso-cd/debian-12.11.0-amd64-netinst.iso
    moved_to:
      description: Where the server sent us to; null where it did not.
      returned: always
      type: str
      sample: null
    size:
      description: Bytes, where the server tells.
      returned: always
      type: int
      sample: 703594496
    modified:
      description: The time of its last modification, as the server writes it.
      returned: always
      type: str
      sample: Sat, 17 May 2025 09:53:40 GMT
    label:
      description: The volume label of the ISO.
      returned: always
      type: str
      sample: Debian 12.11.0 amd64 n
    checksum:
      description: The checksum that the vendor lists; null with one that is pinned.
      returned: always
      type: str
      sample: sha256:30ca12a15cae6a1033e03ad59eb7f66a6d5a258dcf27acd115c2bd42d22640e8
    verified:
      description: Whether the checksum file is signed by a key that is trusted.
      returned: always
      type: bool
      sample: true
    newer:
      description: The URL of the newest one; null where none is known of.
      returned: always
      type: str
      sample: https://mirror.example.org/debian-cd/12.12.0/amd64/iso-cd/debian-12.12.0-amd64-netinst.iso
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 1.2
"""

import dataclasses
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils import _media_check
from ansible_collections.cloudimg.factory.plugins.module_utils._download import Client
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._origins import Definition
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

SPEC: dict[str, t.Any] = {
    "url": {"type": "str", "required": True},
    "checksum": {"type": "str", "required": True},
    "signature": {"type": "str"},
    "keyring": {"type": "path", "no_log": False},
    "fingerprints": {"type": "list", "elements": "str", "default": []},
    "same": {"type": "int", "default": 1},
    "fail_on": {
        "type": "list",
        "elements": "str",
        "choices": ["newer", "unreachable", "moved", "wrong"],
        "default": ["moved", "wrong"],
    },
    "timeout": {"type": "int", "default": 30},
}


def work(module: AnsibleModule) -> Result:
    """Ask."""
    given = module.params
    progress = Progress("media")
    places = {name: given[name] for name in ("url", "checksum", "signature", "keyring")}
    definition = Definition("", fingerprints=tuple(given["fingerprints"]), **places)
    # Two more attempts: what does not answer then is told, and asked again the next time.
    client = Client(progress, timeout=given["timeout"], delays=(1.0, 3.0))
    found = _media_check.check(definition, client, progress, same=given["same"])
    medium = {**dataclasses.asdict(found), "outcome": found.outcome}
    if found.status in given["fail_on"]:
        raise FactoryError(found.outcome, where=found.url, details={"medium": medium})
    return Result(extra={"medium": medium})


def main() -> None:
    """The module."""
    run_module(SPEC, work)


if __name__ == "__main__":
    main()
