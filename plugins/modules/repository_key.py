#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check that the key of a package repository is the one that is trusted."""

from __future__ import annotations

DOCUMENTATION = r"""
module: repository_key
short_description: Check that the key of a package repository is the one that is trusted
version_added: 0.1.0
description:
  - Compares the fingerprints of all keys in an OpenPGP public key block with those that are trusted, before anything uses
    them. It needs no tool.
extends_documentation_fragment:
  - cloudimg.factory._attributes
  - cloudimg.factory._attributes.info_module
options:
  name:
    description: The name of the repository, for messages.
    type: str
    required: true
  key:
    description: The armored public key.
    type: str
    required: true
  fingerprint:
    description: The full fingerprint that it must have; several where the block holds several keys.
    type: list
    elements: str
    required: true
author:
  - cloudimg.factory contributors (@cloudimg-factory)
"""

EXAMPLES = r"""
- name: Check the key
  cloudimg.factory.repository_key:
    name: acme
    key: "{{ lookup('ansible.builtin.file', 'acme.asc') }}"
    fingerprint: 0123456789ABCDEF0123456789ABCDEF01234567
"""

RETURN = r"""
fingerprints:
  description: The fingerprints of the keys in the block.
  returned: success
  type: list
  elements: str
  sample: [0123456789ABCDEF0123456789ABCDEF01234567]
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 0.1
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils import _openpgp
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module

SPEC: dict[str, t.Any] = {
    "name": {"type": "str", "required": True},
    # It is public.
    "key": {"type": "str", "required": True, "no_log": False},
    "fingerprint": {"type": "list", "elements": "str", "required": True},
}


def work(module: AnsibleModule) -> Result:
    """Compare them."""
    want = module.params
    found = _openpgp.check(want["key"], want["fingerprint"], "applications_repositories", want["name"])
    return Result(extra={"fingerprints": found})


def main() -> None:
    """The module."""
    run_module(SPEC, work)


if __name__ == "__main__":
    main()
