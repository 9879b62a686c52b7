#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Endorse builds in a StratusLab Marketplace."""

from __future__ import annotations

DOCUMENTATION = r"""
module: stratuslab_metadata
short_description: Endorse builds in a StratusLab Marketplace, and deprecate them
version_added: 0.1.0
description:
  - Writes what a descriptor says of a build as RDF/XML, signs it by an XML signature, keeps it as a file, and sends it to a
    Marketplace.
  - The Marketplace's rules are applied before anything is signed or sent, and the signed document is verified.
  - It looks up first. Where the newest entry of this image by this endorser says the same already, nothing is signed or sent.
    After a failure the next run finds what has become of it.
  - Size and checksums are those of the image without the compression of its file. C(raw.gz) and C(raw.xz) are unpacked for that
    once, unless the descriptor has the C(raw) artifact as well.
  - Needs the Python libraries C(cryptography), C(lxml) and C(signxml), and C(requests) for O(marketplace).
extends_documentation_fragment:
  - cloudimg.factory._attributes
attributes:
  check_mode:
    support: full
    details:
      - The Marketplace is asked, nothing is sent to it or written.
  diff_mode:
    support: full
    details:
      - What the newest endorsement says, before and after.
  idempotent:
    support: full
    details:
      - By what an endorsement says, not by the time at which it was signed.
options:
  path:
    description:
      - The signed file. It is kept, for it is what is sent again after a failure.
    type: path
    required: true
  state:
    description:
      - V(present) has the build of O(descriptor) endorsed.
      - V(deprecated) has the entry say why its image should not be used any more. All else that it says stays.
      - V(absent) removes O(path). A Marketplace keeps its entries for ever, so that O(marketplace) cannot be given with it.
    type: str
    choices: [present, deprecated, absent]
    default: present
  descriptor:
    description:
      - Path of the C(descriptor.json) of the build; needed for O(state=present).
      - For O(state=deprecated) it tells the identifier, where O(identifier) does not. The artifact need not be there any more,
        unless it is a compressed one without its C(raw) twin.
    type: path
  artifact:
    description:
      - The format or file name of the artifact to endorse, by default the first one in C(qcow2), C(raw), C(raw.gz) or C(raw.xz).
    type: str
  identifier:
    description: The identifier of the image to deprecate, 27 characters.
    type: str
  reason:
    description: Why the image should not be used any more; needed for O(state=deprecated).
    type: str
  certificate:
    description:
      - PEM file with the endorser's certificate. It needs an RSA key of 2048 bits or more and, where it has a C(keyUsage),
        C(digitalSignature).
      - Further certificates in it belong to O(chain). Needed unless O(state=absent).
    type: path
  key:
    description: PEM file with its private key. Needed unless O(state=absent).
    type: path
  passphrase:
    description: Of the private key, where it is encrypted.
    type: str
  chain:
    description: PEM file with intermediate certificates, which go into the signature after the endorser's.
    type: path
  email:
    description:
      - The endorser's e-mail address, where the certificate has none among its alternative names. By default that of the
        certificate.
    type: str
  profile:
    description:
      - V(sha256) signs with RSA and SHA-256.
      - V(sha1) signs with RSA and SHA-1 as StratusLab's own tools did, for Marketplaces on an old Java. Such signatures can be
        forged.
    type: str
    choices: [sha256, sha1]
    default: sha256
  type:
    description: What kind of image it is, C(dcterms:type); StratusLab's tools know C(base) and C(grid).
    type: str
    default: base
  kind:
    description: Whether it boots.
    type: str
    choices: [machine, disk]
    default: machine
  locations:
    description: URLs from which the artifact can be fetched.
    type: list
    elements: str
    default: []
  creator:
    description: Who has made the image. By default the endorser's name in the descriptor, or the certificate's common name.
    type: str
  publisher:
    description: Who publishes it. By default the endorser's organisation in the descriptor, or O(creator).
    type: str
  tag:
    description: A name by which the endorser's newest image can be asked for (C(dcterms:alternative)).
    type: str
  hypervisor:
    description: The hypervisor that it was made for.
    type: str
    default: kvm
  disks_bus:
    description: The bus on which it wants its disk.
    type: str
    choices: [virtio, scsi, ide]
    default: virtio
  inbound_ports:
    description: TCP ports that it wants to be reached on.
    type: list
    elements: int
    default: []
  lifetime:
    description: For how long a build is endorsed whose descriptor does not say when it expires, such as V(180d).
    type: str
    default: 180d
  marketplace:
    description: URL of the Marketplace. Without it the signed file is all that is made.
    type: str
  ask_again:
    description:
      - Days after which a Marketplace that confirms addresses by mail is asked for another mail, while the first is not answered.
    type: int
    default: 7
  ca_directory:
    description:
      - Directory of authorities and CRLs in OpenSSL's hashed form, by which endorsements are known that the same endorser has
        signed with a former key. Without it only those by this very key count as the endorser's own.
    type: path
  crl:
    description: Which certificates must have a valid CRL in O(ca_directory).
    type: str
    choices: [all, leaf, none]
    default: all
  server_ca:
    description: PEM file or directory of the authorities of the Marketplace's https; by default those of the system.
    type: path
  timeout:
    description: Seconds for which the Marketplace may be silent.
    type: int
    default: 60
author:
  - cloudimg.factory contributors (@cloudimg-factory)
seealso:
  - module: cloudimg.factory.stratuslab_metadata_info
  - module: cloudimg.factory.image_policy
  - module: cloudimg.factory.image_catalogue
"""

EXAMPLES = r"""
- name: Endorse a build
  cloudimg.factory.stratuslab_metadata:
    descriptor: /srv/cloudimg/builds/debian-12/202501311200/descriptor.json
    path: /srv/cloudimg/endorsed/debian-12-202501311200.xml
    certificate: /etc/cloudimg/endorser.pem
    key: /etc/cloudimg/endorser.key.pem
    passphrase: "{{ endorser_passphrase }}"
    locations:
      - https://images.example.org/debian-12/202501311200/debian-12-202501311200.qcow2
    marketplace: https://marketplace.example.org
  register: endorsed

- name: Tell users of it to take a newer one
  cloudimg.factory.stratuslab_metadata:
    state: deprecated
    identifier: "{{ endorsed.publication.identifier }}"
    reason: openssl is outdated
    path: /srv/cloudimg/endorsed/debian-12-202501311200.xml
    certificate: /etc/cloudimg/endorser.pem
    key: /etc/cloudimg/endorser.key.pem
    passphrase: "{{ endorser_passphrase }}"
    marketplace: https://marketplace.example.org
"""

RETURN = r"""
metadata:
  description:
    - What the endorsement says, see RV(cloudimg.factory.stratuslab_metadata_info#module:entries).
  returned: success, unless O(state=absent)
  type: dict
  sample:
    identifier: BEE8-MMAw-Lk_IgsEExAy3d9R8h
    version: "202501311200"
    valid: "2025-07-30T12:00:00Z"
    status: valid
    profile: sha256
publication:
  description:
    - What has to be kept to find the entry again. C(url) is there with O(marketplace), and C(confirmation) with the value
      C(pending) while the endorser has not answered the Marketplace's mail.
  returned: success, unless O(state=absent)
  type: dict
  sample:
    identifier: BEE8-MMAw-Lk_IgsEExAy3d9R8h
    email: jane@example.org
    created: "2025-01-31T12:30:00Z"
    url: https://marketplace.example.org/metadata/BEE8-MMAw-Lk_IgsEExAy3d9R8h/jane@example.org/2025-01-31T12%3A30%3A00Z
confirmation:
  description: Whether the Marketplace waits for the endorser to answer a mail.
  returned: success, unless O(state=absent)
  type: bool
  sample: false
path:
  description: The signed file.
  returned: success, unless O(state=absent)
  type: str
  sample: /srv/cloudimg/endorsed/debian-12-202501311200.xml
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
  sample: ["debian-12 202501311200: is not endorsed yet"]
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 0.9
"""

import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils import _stratuslab
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._http import Http
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._stratuslab_market import Marketplace

SPEC: dict[str, t.Any] = {
    "path": {"type": "path", "required": True},
    "state": {"type": "str", "choices": ["present", "deprecated", "absent"], "default": "present"},
    "descriptor": {"type": "path"},
    "artifact": {"type": "str"},
    "identifier": {"type": "str"},
    "reason": {"type": "str"},
    "certificate": {"type": "path"},
    "key": {"type": "path", "no_log": False},
    "passphrase": {"type": "str", "no_log": True},
    "chain": {"type": "path"},
    "email": {"type": "str"},
    "profile": {"type": "str", "choices": ["sha256", "sha1"], "default": "sha256"},
    "type": {"type": "str", "default": "base"},
    "kind": {"type": "str", "choices": ["machine", "disk"], "default": "machine"},
    "locations": {"type": "list", "elements": "str", "default": []},
    "creator": {"type": "str"},
    "publisher": {"type": "str"},
    "tag": {"type": "str"},
    "hypervisor": {"type": "str", "default": "kvm"},
    "disks_bus": {"type": "str", "choices": ["virtio", "scsi", "ide"], "default": "virtio"},
    "inbound_ports": {"type": "list", "elements": "int", "default": []},
    "lifetime": {"type": "str", "default": "180d"},
    "marketplace": {"type": "str"},
    "ask_again": {"type": "int", "default": 7},
    "ca_directory": {"type": "path"},
    "crl": {"type": "str", "choices": ["all", "leaf", "none"], "default": "all"},
    "server_ca": {"type": "path"},
    "timeout": {"type": "int", "default": 60},
}
REQUIRED = [
    ("state", "present", ("descriptor", "certificate", "key")),
    ("state", "deprecated", ("reason", "certificate", "key")),
    ("state", "deprecated", ("identifier", "descriptor"), True),
]
WORDS = ("type", "kind", "creator", "publisher", "tag", "hypervisor", "disks_bus")


def _path(value: str | None) -> Path | None:
    return Path(value).absolute() if value else None


def work(module: AnsibleModule) -> Result:
    """Bring the endorsement into the state that the options ask for."""
    options = module.params
    path = Path(options["path"]).absolute()
    if options["state"] == "absent":
        if options["marketplace"]:
            raise FactoryError(
                "keeps its entries for ever", key="marketplace", mend="leave it out, or use the state deprecated"
            )
        return _stratuslab.absent(path, check_mode=module.check_mode)
    market = None
    if options["marketplace"]:
        # Nothing secret is sent, so that http will do: what is sent is signed.
        secrets = [options["passphrase"]]
        http = Http(ca=_path(options["server_ca"]), timeout=options["timeout"], secrets=secrets, plain=True)
        market = Marketplace(options["marketplace"], http)
    request = _stratuslab.Request(
        path=path,
        signer=(
            Path(options["certificate"]).absolute(),
            Path(options["key"]).absolute(),
            options["passphrase"],
            _path(options["chain"]),
        ),
        email=options["email"],
        profile=options["profile"],
        descriptor=_path(options["descriptor"]),
        artifact=options["artifact"],
        identifier=options["identifier"],
        words={
            **{name: options[name] for name in WORDS},
            "locations": tuple(options["locations"]),
            "inbound_ports": tuple(options["inbound_ports"]),
        },
        lifetime=options["lifetime"],
        marketplace=market,
        ask_again=options["ask_again"],
        ca_directory=_path(options["ca_directory"]),
        crl=options["crl"],
        check_mode=module.check_mode,
    )
    if options["state"] == "present":
        return _stratuslab.present(request)
    if not options["reason"].strip():
        raise FactoryError("must not be empty", key="reason", mend="say why the image should not be used")
    return _stratuslab.deprecate(request, options["reason"])


def main() -> None:
    """The module."""
    run_module(SPEC, work, required_if=REQUIRED)


if __name__ == "__main__":
    main()
