#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read a HEPiX signed image list, and verify it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hepix_image_list_info
short_description: Read and verify a HEPiX signed image list
version_added: 0.1.0
description:
  - Judges a list as its subscribers do. The signature must fit, the signer's certificate must lead to a trust anchor and
    not be revoked, the list must name that very signer as its endorser, must have all keys, must not be expired, and must
    not be older than one that was seen before.
  - Fails at a list that is not so, unless O(fail=false).
extends_documentation_fragment:
  - cloudimg.factory._attributes
  - cloudimg.factory._attributes.info_module
requirements:
  - cryptography >= 42 (Python library)
  - openssl
options:
  path:
    description: The file of the signed list.
    type: path
    required: true
  ca_directory:
    description:
      - Trust anchors and their CRLs, in the hashed form that C(openssl rehash) makes and that IGTF's bundles have.
    type: path
    default: /etc/grid-security/certificates
  verify_chain:
    description:
      - V(false) does without O(ca_directory). Then anybody may have signed the list, with any name; for lists of your own.
    type: bool
    default: true
  crl:
    description:
      - Which certificates must have a valid CRL in O(ca_directory). V(all) of the chain, only the signer's (V(leaf)), or
        V(none).
    type: str
    choices: [all, leaf, none]
    default: all
  endorsers:
    description: Who may sign the list; by default whoever has a certificate of one of the trust anchors.
    type: list
    elements: dict
    suboptions:
      dn:
        description: The subject of the certificate, as C(/DC=org/DC=example/CN=Jane Doe).
        type: str
        required: true
      ca:
        description: The issuer of the certificate.
        type: str
        required: true
  known_version:
    description: The version of the list that was seen last. An older one is refused.
    type: str
  known:
    description:
      - A copy of the list that was accepted before. Another list, an older version, or the same version with other content
        is refused.
    type: path
  strict:
    description:
      - No signature covers the headers of MIME, line ends, or the certificates that come along. V(true) refuses lists
        whose every byte is not as M(cloudimg.factory.hepix_image_list) writes it, so that no change goes unnoticed.
      - V(false) is for lists that other tools have signed (vmcaster, AppDB, C(openssl smime -sign)).
    type: bool
    default: true
  fail:
    description: Whether a list that is not valid makes the module fail; V(false) returns what is wrong with it.
    type: bool
    default: true
author:
  - cloudimg.factory contributors (@cloudimg-factory)
seealso:
  - module: cloudimg.factory.hepix_image_list
"""

EXAMPLES = r"""
- name: Verify a list
  cloudimg.factory.hepix_image_list_info:
    path: /srv/www/lists/vo.example.org.list
    endorsers:
      - dn: /DC=org/DC=example/C=DE/O=People/CN=Jane Doe
        ca: /DC=org/DC=example/CN=Example Grid CA
  register: found

- name: Show what it offers
  ansible.builtin.debug:
    msg: "{{ found.images | map(attribute='title') }}"
"""

RETURN = r"""
valid:
  description: Whether the list may be used.
  returned: success
  type: bool
  sample: true
problems:
  description: What is wrong with it, a line each.
  returned: always
  type: list
  elements: str
  sample: []
content:
  description: The document that is signed, what is below C(hv:imagelist).
  returned: when the signature fits
  type: dict
  sample: {"hv:version": "20250131120000"}
identifier:
  description: The UUID of the list.
  returned: when the signature fits
  type: str
  sample: 7ab21c0e-9f6c-5a3b-8a51-3f4f5a3c6a0d
title:
  description: The title of the list.
  returned: when the signature fits
  type: str
  sample: Images of vo.example.org
version:
  description: The version of the list.
  returned: when the signature fits
  type: str
  sample: "20250131120000"
created:
  description: When the list was signed.
  returned: when the signature fits
  type: str
  sample: "2025-01-31T12:00:00Z"
expires:
  description: When the list expires.
  returned: when the signature fits
  type: str
  sample: "2025-02-28T12:00:00Z"
seconds_left:
  description: Seconds until the list expires, less than 0 afterwards.
  returned: when the signature fits
  type: int
  sample: 2419200
endorser:
  description: Who endorses the list, as it says itself.
  returned: when the signature fits
  type: dict
  sample:
    name: Jane Doe
    email: jane.doe@example.org
    dn: /DC=org/DC=example/C=DE/O=People/CN=Jane Doe
    ca: /DC=org/DC=example/CN=Example Grid CA
signer:
  description: Who signed the list, as the certificate says.
  returned: when the signature fits
  type: dict
  sample:
    dn: /DC=org/DC=example/C=DE/O=People/CN=Jane Doe
    ca: /DC=org/DC=example/CN=Example Grid CA
    fingerprint: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
    expires: "2025-12-31T12:00:00Z"
    digest: sha256
    time: "2025-01-31T12:00:00Z"
canonical:
  description: Whether each byte is as M(cloudimg.factory.hepix_image_list) writes it.
  returned: when the signature fits
  type: bool
  sample: true
images:
  description:
    - The images of the list. C(stable_identifier) is the one that all versions of an image share.
  returned: when the signature fits
  type: list
  elements: dict
  sample:
    - identifier: 4be8f45c-6ba5-5e2e-9f76-32e2e8a8e27e
      stable_identifier: 4be8f45c-6ba5-5e2e-9f76-32e2e8a8e27e
      image: debian-12
      version: "202501311200"
      title: Debian 12
      format: qcow2
      size: "190709760"
      uri: https://images.example.org/debian-12/202501311200/debian-12-202501311200.qcow2
      sha512: cf83e1357eefb8bd…
      expires: "2499-12-31T22:00:00Z"
      expired: false
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 0.1
"""

import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils import _hepix_verify
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module

SPEC: dict[str, t.Any] = {
    "path": {"type": "path", "required": True},
    "ca_directory": {"type": "path", "default": "/etc/grid-security/certificates"},
    "verify_chain": {"type": "bool", "default": True},
    "crl": {"type": "str", "choices": ["all", "leaf", "none"], "default": "all"},
    "endorsers": {
        "type": "list",
        "elements": "dict",
        "options": {"dn": {"type": "str", "required": True}, "ca": {"type": "str", "required": True}},
    },
    "known_version": {"type": "str"},
    "known": {"type": "path"},
    "strict": {"type": "bool", "default": True},
    "fail": {"type": "bool", "default": True},
}


def work(module: AnsibleModule) -> Result:
    """Read the list and judge it."""
    options = module.params
    endorsers = options["endorsers"]
    policy = _hepix_verify.Policy(
        ca_directory=Path(options["ca_directory"]) if options["verify_chain"] else None,
        crl=options["crl"],
        endorsers=None if endorsers is None else tuple((one["dn"], one["ca"]) for one in endorsers),
        known_version=options["known_version"],
        known=Path(options["known"]) if options["known"] else None,
        strict=options["strict"],
    )
    report = _hepix_verify.inspect(Path(options["path"]), policy)
    if report.problems and options["fail"]:
        more = f" (and {len(report.problems) - 1} more problems)" if len(report.problems) > 1 else ""
        raise FactoryError(report.problems[0] + more, details={"problems": report.problems})
    return Result(extra=report.dump(policy.moment))


def main() -> None:
    """The module."""
    run_module(SPEC, work)


if __name__ == "__main__":
    main()
