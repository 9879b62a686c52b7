#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Publish a build in an OCI registry, such as the EGI Artefact Registry."""

from __future__ import annotations

DOCUMENTATION = r"""
module: oci_artifact
short_description: Publish a build in an OCI registry
version_added: 0.1.0
description:
  - Pushes the image of a build as an OCI artifact with one layer, as the EGI Artefact Registry (Harbor) has them and as atrope
    pulls them, with a bill of materials (CycloneDX), the judgement and a signature attached to it.
  - It gets two tags. V(<os_version>-<date>-<sha8>) stays; V(<os_version>), without a hyphen, moves to the newest version.
  - All it reads is the descriptor and the files beside it.
  - No byte of the image is sent that the registry has already. An upload that was cut short is gone on with.
extends_documentation_fragment:
  - cloudimg.factory._attributes
  - cloudimg.factory._attributes.job
  - cloudimg.factory._oci
attributes:
  check_mode:
    support: full
    details:
      - The registry is asked what it has; nothing is written.
  diff_mode:
    support: full
    details:
      - The tags with the digests that they stand for, annotations, and what is attached.
  idempotent:
    support: full
requirements:
  - cyclonedx-python-lib (Python library), for O(sbom)
  - cryptography (Python library), for O(certificate)
options:
  state:
    description:
      - V(present) has the build of O(descriptor) published.
      - V(deprecated) has the tag that moves taken from the artifact O(reference) and given to the newest other version that
        is not deprecated, and notes O(reason) beside it; the dated tag stays.
      - V(absent) has the artifact O(reference) removed, with its tags and all that is attached to it.
      - V(pulled) has the image of O(reference) in the file O(dest), verified by its digest.
    type: str
    choices: [present, deprecated, absent, pulled]
    default: present
  descriptor:
    description: Path of the C(descriptor.json) of the build. Needed for O(state=present).
    type: path
  artifact:
    description:
      - Which artifact of the build, by its format or file name. By default the first one that Glance knows (qcow2, raw, vmdk,
        vdi, vhd, vhdx).
    type: str
  media_type:
    description: The media type of the layer. EGI's sites expect the default.
    type: str
    default: application/x-qemu-disk
  annotations:
    description:
      - Annotations of the manifest beside those of the build, such as C(org.opencontainers.image.source).
      - Empty ones are left out.
    type: dict
    default: {}
  layer_annotations:
    description: Annotations of the layer, in the same way, such as C(org.openstack.glance.os_admin_user).
    type: dict
    default: {}
  mount_from:
    description: Other repositories of the registry that may have the image already. What is there is mounted instead of sent.
    type: list
    elements: str
    default: []
  chunk:
    description: Mebibytes that one request has at most. Some proxies take no large ones; when one says so, it is made smaller.
    type: int
    default: 256
  sbom:
    description: Attach the packages of the image as a bill of materials (CycloneDX 1.5).
    type: bool
    default: true
  assess:
    description: Attach the judgement, C(assess.json), where there is one beside the descriptor.
    type: bool
    default: true
  certificate:
    description:
      - The certificate to sign with, in PEM. The signature of the manifest (CMS, detached) is attached.
      - Needs O(private_key).
    type: path
  private_key:
    description: The private key of O(certificate), in PEM.
    type: path
  passphrase:
    description: The passphrase of O(private_key), where that is encrypted.
    type: str
  chain:
    description: Further certificates up to the authority, in PEM.
    type: path
  attach:
    description: Further files to attach.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: The file.
        type: path
        required: true
      artifact_type:
        description: Its artifact type, such as V(application/vnd.in-toto+json). Each of them once.
        type: str
        required: true
  keep:
    description:
      - How many of the newest versions of the image stay for each OS version; older ones are removed. By default all.
      - By Harbor's API where the registry is a Harbor. Artifacts that this module has not made are left alone.
    type: int
  reference:
    description: Dated tag or digest of the artifact that is deprecated, removed or pulled.
    type: str
  digest:
    description: The digest of the artifact O(reference), by which O(state=absent) finds what an earlier run has left of it.
    type: str
  reason:
    description: Why it is deprecated.
    type: str
  dest:
    description: The file to pull the image to. What is there of it already is not fetched again.
    type: path
author:
  - cloudimg.factory contributors (@cloudimg-factory)
seealso:
  - module: cloudimg.factory.oci_artifact_info
  - module: cloudimg.factory.image_export
"""

EXAMPLES = r"""
- name: Publish a build
  cloudimg.factory.oci_artifact:
    registry: registry.example.org
    repository: vo.example.org/debian
    username: robot$vo.example.org+publisher
    password: "{{ vault_registry_secret }}"
    descriptor: /srv/cloudimg/builds/debian-12/202501311200/descriptor.json
    annotations:
      org.opencontainers.image.source: https://git.example.org/images
    keep: 4
  register: pushed

- name: Pull it elsewhere
  cloudimg.factory.oci_artifact:
    registry: registry.example.org
    repository: vo.example.org/debian
    state: pulled
    reference: "12"
    dest: /var/lib/images/debian-12.qcow2

- name: Offer the version before
  cloudimg.factory.oci_artifact:
    registry: registry.example.org
    repository: vo.example.org/debian
    state: deprecated
    reference: "{{ pushed.publication.digest }}"
    reason: openssl is outdated
"""

RETURN = r"""
publication:
  description: What finds it there again.
  returned: success
  type: dict
  sample:
    registry: https://registry.example.org
    repository: vo.example.org/debian
    digest: sha256:0f1c5a8b…
    layer: sha256:cf83e135…
    tag: 12-2025-01-31-cf83e135
    moving_tag: "12"
    reference: registry.example.org/vo.example.org/debian:12-2025-01-31-cf83e135
artifact:
  description: The artifact, as RV(cloudimg.factory.oci_artifact_info#module:artifacts) has it.
  returned: when O(state=present)
  type: dict
  sample: {digest: "sha256:0f1c5a8b…", tags: ["12-2025-01-31-cf83e135"], version: "202501311200"}
sent:
  description: How many bytes of the image were sent.
  returned: when O(state=present)
  type: int
  sample: 0
removed:
  description: The versions that were removed because of O(keep), each with C(version), C(tag) and C(digest).
  returned: when O(state=present)
  type: list
  elements: dict
  sample: [{version: "202409301200", tag: 12-2024-09-30-6b51d431, digest: "sha256:5df1a2b3…"}]
image:
  description: The descriptor of the build.
  returned: when O(state=present)
  type: dict
  sample: {schema: 1, image: debian-12, version: "202501311200"}
actions:
  description: What was done, and why.
  returned: success
  type: list
  elements: str
  sample: ["registry.example.org/vo.example.org/debian:12: is 202412311200, shall be 202501311200"]
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 0.9
"""

import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils import _oci_pull
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import JOB_OPTION, Result, made_later, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._oci import Catalogue
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_attach import Attachments, Key
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_describe import MEDIA_TYPE, Options
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_registry import (
    OPTIONS,
    Repository,
    check_reference,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

SPEC: dict[str, t.Any] = {
    **OPTIONS,
    "state": {"type": "str", "choices": ["present", "deprecated", "absent", "pulled"], "default": "present"},
    "descriptor": {"type": "path"},
    "artifact": {"type": "str"},
    "media_type": {"type": "str", "default": MEDIA_TYPE},
    "annotations": {"type": "dict", "default": {}},
    "layer_annotations": {"type": "dict", "default": {}},
    "mount_from": {"type": "list", "elements": "str", "default": []},
    "chunk": {"type": "int", "default": 256},
    "sbom": {"type": "bool", "default": True},
    "assess": {"type": "bool", "default": True},
    "certificate": {"type": "path"},
    "private_key": {"type": "path", "no_log": False},
    "passphrase": {"type": "str", "no_log": True},
    "chain": {"type": "path"},
    "attach": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "path": {"type": "path", "required": True},
            "artifact_type": {"type": "str", "required": True},
        },
    },
    "keep": {"type": "int"},
    "reference": {"type": "str"},
    "digest": {"type": "str"},
    "reason": {"type": "str"},
    "dest": {"type": "path"},
    "_job": JOB_OPTION,
}


def _least(given: dict[str, t.Any], name: str) -> None:
    if given[name] is not None and given[name] < 1:
        raise FactoryError(f"is {given[name]}, the least is 1", key=name, mend="give a greater number")


def work(module: AnsibleModule) -> Result:
    """Bring the repository into the state that the options ask for."""
    given = module.params
    state = given["state"]
    for name in ("keep", "chunk"):
        _least(given, name)
    for name in ("reference", "digest"):
        if given[name]:
            check_reference(given[name], name)
    progress = Progress("upload", given["_job"])
    repository = Repository(
        given, progress, write=state != "pulled" and not module.check_mode, mount_from=given["mount_from"]
    )
    if state == "pulled":
        return _oci_pull.pulled(repository, given["reference"], Path(given["dest"]).absolute(), module.check_mode)
    catalogue = Catalogue(repository, module.check_mode, chunk=given["chunk"] << 20, mount_from=given["mount_from"])
    if state == "absent":
        result = catalogue.absent(given["reference"], given["digest"])
    elif state == "deprecated":
        result = catalogue.deprecated(given["reference"], given["reason"] or "")
    else:
        result = _present(catalogue, given)
    if catalogue.warnings:
        result.extra["warnings"] = catalogue.warnings
    return result


def _present(catalogue: Catalogue, given: dict[str, t.Any]) -> Result:
    descriptor = Path(given["descriptor"]).absolute()
    if catalogue.check_mode and not descriptor.exists():
        return made_later(descriptor, "it is pushed")
    key = None
    if given["certificate"]:
        chain = Path(given["chain"]) if given["chain"] else None
        key = Key(Path(given["certificate"]), Path(given["private_key"]), given["passphrase"], chain)
    options = Options(given["artifact"] or "", given["media_type"], given["annotations"], given["layer_annotations"])
    attachments = Attachments(given["sbom"], given["assess"], key, given["attach"])
    return catalogue.present(descriptor, options, attachments, keep=given["keep"])


def main() -> None:
    """The module."""
    run_module(
        SPEC,
        work,
        required_if=[
            ("state", "present", ("descriptor",)),
            ("state", "deprecated", ("reference",)),
            ("state", "absent", ("reference",)),
            ("state", "pulled", ("reference", "dest")),
        ],
        required_together=[("username", "password"), ("certificate", "private_key")],
        mutually_exclusive=[("username", "auth_file")],
    )


if __name__ == "__main__":
    main()
