#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Publish builds in a HEPiX signed image list, and withdraw them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hepix_image_list
short_description: Publish builds in a HEPiX signed image list
version_added: 0.1.0
description:
  - A HEPiX image list is a JSON document that its endorser signs (S/MIME C(multipart/signed), detached PKCS#7, SHA-256).
    Subscribers (vmcatcher, atrope, cloudkeeper) fetch it, verify it, and download the images that it names.
  - The list has all the keys that any of these subscribers needs. Subject and issuer of the certificate go into it as
    C(hv:dn) and C(hv:ca), in OpenSSL's one-line form.
  - Of a build, only C(descriptor.json) and the artifact are read, of a list only its file. So every machine that has these
    and the endorser's key can publish.
  - The list is written only when something of it differs or its time runs out; then all of its file is signed anew with a
    higher version, and takes the place of the former file at once. Several processes may publish at the same time.
  - A certificate whose signatures subscribers refuse is refused before anything is signed. This is one that is expired or not
    yet valid, without digitalSignature, for hosts only (an extendedKeyUsage without emailProtection), a proxy, with an RSA
    key of less than 2048 bits, or another key's.
  - A list that somebody else has signed stays as it is.
extends_documentation_fragment:
  - cloudimg.factory._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details:
      - What differs in the list and in its images, before and after.
  idempotent:
    support: full
    details:
      - By content. The same content is signed again only when less than O(renew_before) of its life is left, or with other
        certificates.
requirements:
  - cryptography >= 42 (Python library)
options:
  path:
    description: The file of the signed list. It is made when it is missing.
    type: path
    required: true
  state:
    description:
      - V(present) has the build of O(descriptor) in the list. Without O(descriptor) it only sees to the list itself, which
        is signed anew where it has to be.
      - V(absent) takes an image, or one version of it, out of the list.
      - V(empty) takes all images out of it. This is how a list is given up, as subscribers would keep the images of a list
        that merely vanishes.
    type: str
    choices: [present, absent, empty]
    default: present
  descriptor:
    description:
      - Path of the C(descriptor.json) of the build.
      - With O(state=absent) it stands for O(image) and O(image_version).
    type: path
  base_url:
    description: Where the artifacts of the build are served, without their names; needed to publish a build.
    type: str
  format:
    description:
      - The format of the artifact to publish. By default the first one that subscribers can use, of V(qcow2), V(raw),
        V(vmdk), V(vdi), V(vhd), V(vhdx) and V(ova).
    type: str
  keep:
    description:
      - How many versions of the image the list has at most; the oldest are left out.
      - The newest version has the identifier of the image, to which subscribers subscribe. Older versions have identifiers of
        their own.
    type: int
    default: 1
  image:
    description: With O(state=absent), the name of the image.
    type: str
  image_version:
    description: With O(state=absent), the version to take out; by default all.
    type: str
  image_identifier:
    description:
      - The UUID of the image, by default the one of its descriptor (a version 5 UUID of its name), which is the same for all
        versions.
      - Give another one to have two formats of an image in the same list.
      - With O(state=absent), the UUID of the image to take out.
    type: str
  hypervisor:
    description: The hypervisor for which the image was made, C(hv:hypervisor).
    type: str
    default: KVM
  comments:
    description: Comments on the image, C(sl:comments).
    type: str
    default: ""
  image_fields:
    description:
      - Further keys of the image, or other values than those that follow from the build, with their prefixes. For example
        C(ad:group), C(ad:mpuri), C(ad:base_mpuri), C(ad:appid), C(ad:user:fullname), C(ad:user:guid), C(ad:user:uri),
        C(ad:ram_recommended) (bytes), C(ad:core_recommended), C(sl:osname), C(dc:title).
    type: dict
    default: {}
  identifier:
    description:
      - The UUID of the list. By default that of the list that is there, for a new one a version 5 UUID of its O(uri).
    type: str
  title:
    description: The title of the list. A new list needs it; later it stays as it is unless it is given.
    type: str
  description:
    description: The description of the list; by default that of the list that is there, for a new one its title.
    type: str
  source:
    description: Where the list comes from, C(dc:source); by default that of the list that is there, for a new one its O(uri).
    type: str
  uri:
    description:
      - Where subscribers fetch the list, C(hv:uri). A new list needs it.
      - Use https. Whoever can change what is sent by http can serve an older list, whose signature is as good.
    type: str
  vo:
    description: The virtual organisation whose list it is, C(ad:vo). A new list needs it, as cloudkeeper does.
    type: str
  endorser_name:
    description: Who endorses the images, C(dc:creator). A new list needs it.
    type: str
  endorser_email:
    description: The endorser's address; by default that of the list that is there, for a new one that of the certificate.
    type: str
  fields:
    description:
      - Further keys of the list with their prefixes, such as C(ad:appid). By default those of the list that is there.
    type: dict
  certificate:
    description: The endorser's certificate, in PEM. Further certificates after it are taken as its chain.
    type: path
    required: true
  private_key:
    description: The endorser's private key, in PEM (RSA or EC).
    type: path
    required: true
  passphrase:
    description: The passphrase of O(private_key), where that is encrypted. No command line and no result has it.
    type: str
  chain:
    description:
      - Intermediate certificates, in PEM, which go into the signature. Subscribers need them where their directories of
        trust anchors have only the root.
    type: path
  lifetime:
    description:
      - For how long a list is valid once it is signed, as a number with V(h), V(d) or V(w). The end of the certificate may
        end it earlier.
    type: str
    default: 28d
  renew_before:
    description: A list that has less than this to live is signed anew.
    type: str
    default: 7d
  list_version:
    description:
      - The version of the list, numbers with dots. It must be higher than before whenever something differs.
      - By default the time of signing (V(20250131120000)), which is raised where the list has that or a higher one already.
    type: str
  former_endorsers:
    description:
      - Others whose list may be taken over, for example yourself with the name that an authority gave you before.
    type: list
    elements: dict
    default: []
    suboptions:
      dn:
        description: The subject of the certificate, as C(hv:dn) has it.
        type: str
        required: true
      ca:
        description: The issuer of the certificate, as C(hv:ca) has it.
        type: str
        required: true
author:
  - cloudimg.factory contributors (@cloudimg-factory)
seealso:
  - module: cloudimg.factory.hepix_image_list_info
  - module: cloudimg.factory.image_catalogue
"""

EXAMPLES = r"""
- name: Publish a build in the list of a virtual organisation
  cloudimg.factory.hepix_image_list:
    path: /srv/www/lists/vo.example.org.list
    descriptor: /srv/cloudimg/builds/debian-12/202501311200/descriptor.json
    base_url: https://images.example.org/debian-12/202501311200
    title: Images of vo.example.org
    uri: https://images.example.org/lists/vo.example.org.list
    vo: vo.example.org
    endorser_name: Jane Doe
    certificate: /etc/grid-security/endorser/cert.pem
    private_key: /etc/grid-security/endorser/key.pem
    passphrase: "{{ endorser_passphrase }}"

- name: See that the list does not expire
  cloudimg.factory.hepix_image_list:
    path: /srv/www/lists/vo.example.org.list
    certificate: /etc/grid-security/endorser/cert.pem
    private_key: /etc/grid-security/endorser/key.pem
    passphrase: "{{ endorser_passphrase }}"

- name: Withdraw a version
  cloudimg.factory.hepix_image_list:
    path: /srv/www/lists/vo.example.org.list
    state: absent
    image: debian-12
    image_version: "202501311200"
    certificate: /etc/grid-security/endorser/cert.pem
    private_key: /etc/grid-security/endorser/key.pem
    passphrase: "{{ endorser_passphrase }}"
"""

RETURN = r"""
list:
  description: Path of the list.
  returned: success
  type: str
  sample: /srv/www/lists/vo.example.org.list
identifier:
  description: The UUID of the list.
  returned: success, unless there is no list
  type: str
  sample: 7ab21c0e-9f6c-5a3b-8a51-3f4f5a3c6a0d
version:
  description: The version of the list.
  returned: success, unless there is no list
  type: str
  sample: "20250131120000"
created:
  description: When the list was signed.
  returned: success, unless there is no list
  type: str
  sample: "2025-01-31T12:00:00Z"
expires:
  description: When the list expires.
  returned: success, unless there is no list
  type: str
  sample: "2025-02-28T12:00:00Z"
images:
  description: How many images the list has.
  returned: success, unless there is no list
  type: int
  sample: 1
publication:
  description:
    - What has to be kept to find the image in the list again. C(identifier) is the value for O(image_identifier),
      and C(version) that for O(image_version).
  returned: success, with O(state=present) and O(descriptor)
  type: dict
  sample:
    list: /srv/www/lists/vo.example.org.list
    list_identifier: 7ab21c0e-9f6c-5a3b-8a51-3f4f5a3c6a0d
    uri: https://images.example.org/lists/vo.example.org.list
    identifier: 4be8f45c-6ba5-5e2e-9f76-32e2e8a8e27e
    image: debian-12
    version: "202501311200"
    format: qcow2
    image_uri: https://images.example.org/debian-12/202501311200/debian-12-202501311200.qcow2
removed:
  description: The images that were taken out of the list, each as RV(publication) but without what is about the list.
  returned: success
  type: list
  elements: dict
  sample: []
image:
  description: The descriptor of the build.
  returned: success, with O(state=present) and O(descriptor)
  type: dict
  sample: {schema: 1, image: debian-12, version: "202501311200"}
actions:
  description: Why the list was signed anew.
  returned: success
  type: list
  elements: str
  sample: ["debian-12 202501311200: is not in the list yet"]
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 0.1
"""

import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _hepix, _hepix_list
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._hepix_images import ImageOptions
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._x509 import Signer

SPEC: dict[str, t.Any] = {
    "path": {"type": "path", "required": True},
    "state": {"type": "str", "choices": ["present", "absent", "empty"], "default": "present"},
    "descriptor": {"type": "path"},
    "base_url": {"type": "str"},
    "format": {"type": "str"},
    "keep": {"type": "int", "default": 1},
    "image": {"type": "str"},
    "image_version": {"type": "str"},
    "image_identifier": {"type": "str"},
    "hypervisor": {"type": "str", "default": "KVM"},
    "comments": {"type": "str", "default": ""},
    "image_fields": {"type": "dict", "default": {}},
    "identifier": {"type": "str"},
    "title": {"type": "str"},
    "description": {"type": "str"},
    "source": {"type": "str"},
    "uri": {"type": "str"},
    "vo": {"type": "str"},
    "endorser_name": {"type": "str"},
    "endorser_email": {"type": "str"},
    "fields": {"type": "dict"},
    "certificate": {"type": "path", "required": True},
    "private_key": {"type": "path", "required": True, "no_log": False},
    "passphrase": {"type": "str", "no_log": True},
    "chain": {"type": "path"},
    "lifetime": {"type": "str", "default": "28d"},
    "renew_before": {"type": "str", "default": "7d"},
    "list_version": {"type": "str"},
    "former_endorsers": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {"dn": {"type": "str", "required": True}, "ca": {"type": "str", "required": True}},
    },
}
META = ("identifier", "title", "description", "source", "uri", "vo", "endorser_name", "endorser_email", "fields")


def work(module: AnsibleModule) -> Result:
    """Bring the list into the state that the options ask for."""
    options = module.params
    image_list = the_list(module)
    result = change(image_list, options)
    for said in _hepix_list.warnings(image_list, result.extra, options["uri"]):
        module.warn(said)
    return result


def the_list(module: AnsibleModule) -> _hepix_list.ImageList:
    """The list, once the options about it make sense."""
    options = module.params
    lifetime, renew_before = (_hepix.span(options[key], key) for key in ("lifetime", "renew_before"))
    if renew_before >= lifetime:
        problem = f"{options['renew_before']} is not less than lifetime, {options['lifetime']}"
        raise FactoryError(
            problem, key="renew_before", mend="give a shorter one, or the list would be signed at each run"
        )
    if options["keep"] < 1:
        raise FactoryError(
            f"{options['keep']} is less than 1", key="keep", mend="use «state: absent» to withdraw images"
        )
    chain = options["chain"] and Path(options["chain"])
    signer = Signer.load(Path(options["certificate"]), Path(options["private_key"]), options["passphrase"], chain)
    return _hepix_list.ImageList(
        path=Path(options["path"]).absolute(),
        signer=signer,
        meta=_hepix.Meta(**{key: options[key] for key in META}),
        lifetime=lifetime,
        renew_before=renew_before,
        version=options["list_version"],
        former=tuple((one["dn"], one["ca"]) for one in options["former_endorsers"]),
        check_mode=module.check_mode,
    )


def change(image_list: _hepix_list.ImageList, options: dict[str, t.Any]) -> Result:
    """What O(state) asks for."""
    descriptor = Path(options["descriptor"]).absolute() if options["descriptor"] else None
    identifier, name, version = (options[key] for key in ("image_identifier", "image", "image_version"))
    if options["state"] == "empty":
        return image_list.empty()
    if options["state"] == "absent":
        if descriptor:
            build = _descriptor.load(descriptor)
            name, version = name or build.image, version or build.version
        if not (identifier or name):
            mend = "give image, image_identifier or descriptor; «state: empty» withdraws all"
            raise FactoryError("does not say which image", key="state: absent", mend=mend)
        return image_list.absent(identifier=identifier, name=name, version=version)
    if descriptor and not options["base_url"]:
        raise FactoryError("is missing", key="base_url", mend="give the URL below which the artifacts are served")
    images = ImageOptions(
        base_url=options["base_url"] or "",
        format=options["format"],
        identifier=identifier,
        hypervisor=options["hypervisor"],
        comments=options["comments"],
        fields=options["image_fields"],
    )
    return image_list.present(descriptor, images, options["keep"])


def main() -> None:
    """The module."""
    run_module(SPEC, work)


if __name__ == "__main__":
    main()
