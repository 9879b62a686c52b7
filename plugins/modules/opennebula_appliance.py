#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Register builds in OpenNebula, with a VM template that keeps its number; retire them, go back, and clean up."""

from __future__ import annotations

DOCUMENTATION = r"""
module: opennebula_appliance
short_description: Register builds in OpenNebula, and retire them
version_added: 0.1.0
description:
  - Has the image of a build in one or many datastores of an OpenNebula cloud, and a VM template for each, which is
    updated in place.
  - A new version is registered next to the old one, waited for until it is READY, and taken by the VM template; then the old one
    expires. That is, it is renamed, disabled, readable by its owner only, and removed later, when no VM uses it any more.
  - What is there is looked up first, by attributes of the images. A request whose answer is lost is looked up, not
    repeated. Where that
    does not tell either, the module fails, and the next run goes on from what it finds.
extends_documentation_fragment:
  - cloudimg.factory._attributes
  - cloudimg.factory._attributes.job
  - cloudimg.factory._opennebula
attributes:
  check_mode:
    support: full
    details:
      - OpenNebula is asked what it has, and nothing is changed there.
  diff_mode:
    support: full
    details:
      - Images and VM templates of the appliance before and after.
  idempotent:
    support: full
    details:
      - By version and SHA-256 of the artifact.
options:
  state:
    description:
      - V(present) has the build of O(descriptor) registered, and the VM templates boot it.
      - V(expired) takes O(version) out of use. A VM template that boots it is withdrawn, that is, for its owner only,
        until another version
        is registered.
      - V(absent) removes O(version), and VM templates that boot it. An image that VMs use expires, and is removed by V(cleaned).
      - V(rolled_back) has the VM templates boot O(version) again, which may have expired, but must not be removed yet. Later
        versions expire.
      - V(cleaned) removes images that expired O(clean_after) ago and are not used by any VM, and those whose transfer failed.
    type: str
    choices: [present, expired, absent, rolled_back, cleaned]
    default: present
  descriptor:
    description: Path of the C(descriptor.json) of the build; needed for O(state=present), unless O(descriptors) is given.
    type: path
  descriptors:
    description:
      - Several of them, instead of O(descriptor). The cloud's images and VM templates are listed once for all, and four
        transfers go on at the same time.
      - One that fails does not keep the others from being published; then the module fails, and RV(builds) says which.
    type: list
    elements: path
  identifier:
    description:
      - The identifier of the image, as C(identifier) in its descriptor, where there is no O(descriptor).
      - For O(state=cleaned), all images of this collection are meant without it.
    type: str
  version:
    description: The version to retire, or to go back to; by default that of O(descriptor).
    type: str
  reason:
    description: Why, for RV(actions). Needed for O(state=expired), O(state=absent) and O(state=rolled_back).
    type: str
  datastores:
    description: Names or numbers of the image datastores in which the build is registered.
    type: list
    elements: str
    default: [default]
  check_capacity:
    description:
      - Whether a datastore needs room for the full size of the image, as OpenNebula demands unless its configuration says
        C(DATASTORE_CAPACITY_CHECK = no).
    type: bool
    default: true
  format:
    description:
      - The format of the artifact, as C(artifacts) in the descriptor have it; by default V(qcow2), else V(raw), else
        V(vmdk).
    type: str
  transfer:
    description:
      - How the front-end gets the artifact; the interface of OpenNebula takes no image data.
      - V(url) names O(artifact_url), where it is served.
      - V(directory) copies it to O(directory) on the machine where this module runs, which is the front-end, or shares
        that directory with it.
      - V(ssh) copies it to O(directory) on O(ssh_host).
      - V(http) serves it from the module itself on O(http_address), under a path that only the front-end is told, as long as the
        transfer lasts.
    type: str
    choices: [url, directory, ssh, http]
    default: url
  artifact_url:
    description: Where the artifact is served. One that ends with a slash is its directory. Needed for O(transfer=url).
    type: str
  artifact_urls:
    description: That of each of O(descriptors), in their order, instead of O(artifact_url).
    type: list
    elements: str
  directory:
    description: One of the C(SAFE_DIRS) of the datastores. The copy there is removed after the transfer.
    type: str
    default: /var/tmp
  ssh_host:
    description: The front-end, for O(transfer=ssh). Its host key has to be known.
    type: str
  ssh_user:
    description: The user to log in as.
    type: str
  ssh_port:
    description: The port of its SSH server.
    type: int
  ssh_identity:
    description: File with the private key.
    type: path
  ssh_known_hosts:
    description: File with the keys of known hosts.
    type: path
  http_address:
    description: An IP address of this machine that the front-end reaches. Needed for O(transfer=http).
    type: str
  http_port:
    description: The port there; V(0) takes a free one.
    type: int
    default: 0
  image_template:
    description:
      - Path of a Jinja2 template of the image, in OpenNebula's syntax. It has to give C(NAME), which should have the
        version and the
        datastore.
      - What it may use is in C(docs/opennebula.md).
    type: path
  vm_template:
    description: Path of a Jinja2 template of the VM template. It has to give C(NAME) and the C(DISK).
    type: path
  contracts:
    description:
      - Attributes that other tools look for. V(nifty) sets C(NIFTY_APPLIANCE_ID), by which SECANT and cloud-info-provider find an
        appliance, V(cloudkeeper) those that cloudkeeper-one sets.
    type: list
    elements: str
    choices: [nifty, cloudkeeper]
    default: [nifty]
  attributes:
    description: More attributes of images and VM templates.
    type: dict
    default: {}
  context:
    description:
      - The C(CONTEXT) section of the VM template. Everybody who may use the template reads it, so it is no place for secrets.
    type: dict
    default:
      NETWORK: "YES"
      SSH_PUBLIC_KEY: $USER[SSH_PUBLIC_KEY]
  uefi:
    description: Whether VMs start by UEFI, with O(uefi_firmware).
    type: bool
    default: false
  uefi_firmware:
    description: Path of the firmware on the hypervisors.
    type: str
    default: /usr/share/OVMF/OVMF_CODE.fd
  dev_prefix:
    description: How disks are named in VMs; V(vd) is virtio.
    type: str
    default: vd
  persistent:
    description:
      - Whether the image is persistent. Then one VM at a time may use it, and changes it. With qcow2 it grows to its full size.
    type: bool
    default: false
  disks:
    description:
      - Empty disks of the VM template, instead of a larger image; each VM gets its own. All versions of the image share
        them.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the disk, such as V(data).
        type: str
        required: true
      size:
        description: Its size in MiB.
        type: int
        required: true
      format:
        description: Its format.
        type: str
        choices: [raw, qcow2]
        default: raw
  owner:
    description:
      - Name or number of the user who shall own images and VM templates; by default O(username). Needs the rights of an
        administrator.
    type: str
  group:
    description: Name or number of their group; by default that of O(username).
    type: str
  mode:
    description: Rights of the images, octal, of owner, group and others; use is 4, manage 2, admin 1.
    type: str
    default: "640"
  template_mode:
    description: Rights of the VM templates; by default O(mode).
    type: str
  timeout:
    description: Seconds to wait for a transfer. The next run waits for the same one.
    type: int
    default: 3600
  interval:
    description: Seconds between two looks at a transfer.
    type: int
    default: 5
  stuck_after:
    description: Seconds after which an image that is still LOCKED is taken for one whose transfer died, and is registered anew.
    type: int
    default: 86400
  clean_after:
    description: How long an expired image stays, for O(state=cleaned), as seconds, or with V(h), V(d) or V(w).
    type: str
    default: 7d
author:
  - cloudimg.factory contributors (@cloudimg-factory)
seealso:
  - module: cloudimg.factory.opennebula_appliance_info
  - module: cloudimg.factory.opennebula_marketplace
  - module: cloudimg.factory.image_catalogue
"""

EXAMPLES = r"""
- name: Register a build that is served already
  cloudimg.factory.opennebula_appliance:
    api_url: https://one.example.org:2633/RPC2
    username: publisher
    password: "{{ vault_one_password }}"
    descriptor: /srv/cloudimg/builds/debian-12/202501311200/descriptor.json
    artifact_url: https://images.example.org/debian-12/202501311200/
    datastores: [default, fast]
    group: users

- name: Register it by way of the front-end's safe directory
  cloudimg.factory.opennebula_appliance:
    api_url: https://one.example.org:2633/RPC2
    username: publisher
    password: "{{ vault_one_password }}"
    descriptor: /srv/cloudimg/builds/debian-12/202501311200/descriptor.json
    transfer: ssh
    ssh_host: one.example.org
    ssh_user: oneadmin
    uefi: true
    disks:
      - name: data
        size: 10240

- name: Go back to the version before
  cloudimg.factory.opennebula_appliance:
    api_url: https://one.example.org:2633/RPC2
    username: publisher
    password: "{{ vault_one_password }}"
    identifier: 41458818-1d0e-5b8c-a4b5-6a5c3d2f1e00
    version: "202412311200"
    state: rolled_back
    reason: does not boot on the old hypervisors

- name: Remove what expired a week ago
  cloudimg.factory.opennebula_appliance:
    api_url: https://one.example.org:2633/RPC2
    username: publisher
    password: "{{ vault_one_password }}"
    state: cleaned
"""

RETURN = r"""
publication:
  description:
    - What has to be known about it later, to find and to retire it, C(datastores) by their names. Numbers are null in check mode
      where there is none yet.
  returned: success, with O(descriptor)
  type: dict
  sample:
    api_url: https://one.example.org:2633/RPC2
    identifier: 41458818-1d0e-5b8c-a4b5-6a5c3d2f1e00
    version: "202501311200"
    datastores:
      default: {image: 17, template: 4}
builds:
  description:
    - What became of each of O(descriptors), in their order.
  returned: with O(descriptors), also when the module fails since some of them did
  type: list
  elements: dict
  contains:
    descriptor:
      description: Which one.
      type: str
    changed:
      description: Whether something was done for it.
      type: bool
    actions:
      description: What, and why.
      type: list
      elements: str
    publication:
      description: As RV(publication); null where it is not published.
      type: dict
    problem:
      description: Why it is not published; empty where it is.
      type: str
  sample:
    - descriptor: /srv/cloudimg/builds/debian-12/202501311200/descriptor.json
      changed: true
      actions: ["image debian-12-202501311200@default: is not in datastore default yet"]
      publication: {identifier: 41458818-1d0e-5b8c-a4b5-6a5c3d2f1e00, version: "202501311200"}
      problem: ""
images:
  description: The images of the appliance that there are now.
  returned: success
  type: list
  elements: dict
  sample: [{id: 17, name: debian-12-202501311200@default, state: READY, version: "202501311200", expired: false}]
templates:
  description: Its VM templates.
  returned: success
  type: list
  elements: dict
  sample: [{id: 4, name: debian-12@default, version: "202501311200", images: ["17"]}]
requests:
  description: How many calls were made.
  returned: success
  type: int
  sample: 9
image:
  description: The descriptor of the build.
  returned: success, with O(descriptor)
  type: dict
  sample: {schema: 1, image: debian-12, version: "202501311200"}
actions:
  description: What was done, and why.
  returned: success
  type: list
  elements: str
  sample: ["image debian-12-202501311200@default: is not in datastore default yet"]
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 12.3
"""

import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _opennebula_work
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import JOB_OPTION, Result, made_later, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula import OPTIONS, connect
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_batch import Row
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

DISK = {
    "name": {"type": "str", "required": True},
    "size": {"type": "int", "required": True},
    "format": {"type": "str", "choices": ["raw", "qcow2"], "default": "raw"},
}
SPEC: dict[str, t.Any] = {
    **OPTIONS,
    "state": {
        "type": "str",
        "choices": ["present", "expired", "absent", "rolled_back", "cleaned"],
        "default": "present",
    },
    "descriptor": {"type": "path"},
    "descriptors": {"type": "list", "elements": "path"},
    "identifier": {"type": "str"},
    "version": {"type": "str"},
    "reason": {"type": "str"},
    "datastores": {"type": "list", "elements": "str", "default": ["default"]},
    "check_capacity": {"type": "bool", "default": True},
    "format": {"type": "str"},
    "transfer": {"type": "str", "choices": ["url", "directory", "ssh", "http"], "default": "url"},
    "artifact_url": {"type": "str"},
    "artifact_urls": {"type": "list", "elements": "str"},
    "directory": {"type": "str", "default": "/var/tmp"},
    "ssh_host": {"type": "str"},
    "ssh_user": {"type": "str"},
    "ssh_port": {"type": "int"},
    "ssh_identity": {"type": "path"},
    "ssh_known_hosts": {"type": "path"},
    "http_address": {"type": "str"},
    "http_port": {"type": "int", "default": 0},
    "image_template": {"type": "path"},
    "vm_template": {"type": "path"},
    "contracts": {"type": "list", "elements": "str", "choices": ["nifty", "cloudkeeper"], "default": ["nifty"]},
    "attributes": {"type": "dict", "default": {}},
    "context": {"type": "dict", "default": {"NETWORK": "YES", "SSH_PUBLIC_KEY": "$USER[SSH_PUBLIC_KEY]"}},
    "uefi": {"type": "bool", "default": False},
    "uefi_firmware": {"type": "str", "default": "/usr/share/OVMF/OVMF_CODE.fd"},
    "dev_prefix": {"type": "str", "default": "vd"},
    "persistent": {"type": "bool", "default": False},
    "disks": {"type": "list", "elements": "dict", "default": [], "options": DISK},
    "owner": {"type": "str"},
    "group": {"type": "str"},
    "mode": {"type": "str", "default": "640"},
    "template_mode": {"type": "str"},
    "timeout": {"type": "int", "default": 3600},
    "interval": {"type": "int", "default": 5},
    "stuck_after": {"type": "int", "default": 86400},
    "clean_after": {"type": "str", "default": "7d"},
    "_job": JOB_OPTION,
}
REQUIRED = [
    ("state", "present", ("descriptor", "descriptors"), True),
    *[("state", state, ("reason",)) for state in ("expired", "absent", "rolled_back")],
    *[("state", state, ("descriptor", "version"), True) for state in ("expired", "absent", "rolled_back")],
    *[("state", state, ("descriptor", "identifier"), True) for state in ("expired", "absent", "rolled_back")],
    ("transfer", "ssh", ("ssh_host",)),
    ("transfer", "http", ("http_address",)),
]


def _row(module: AnsibleModule, path: Path) -> Row:
    """A build to publish or to retire; of many, one that cannot be read fails by itself."""
    if module.check_mode and module.params["state"] == "present" and not path.exists():
        return Row(path, result=made_later(path, "it is published"))
    try:
        build = _descriptor.load(path)
        if module.params["state"] == "present":
            _descriptor.must_be_alive(build.expires, path)
        return Row(path, build)
    except FactoryError as exc:
        if module.params["descriptors"] is None:
            raise
        return Row(path, failure=exc)


def work(module: AnsibleModule) -> Result:
    """Bring the appliance into the state that the options ask for."""
    given = module.params
    paths = [
        Path(path).absolute() for path in given["descriptors"] or ([given["descriptor"]] if given["descriptor"] else [])
    ]
    rows = [_row(module, path) for path in paths]
    if given["descriptor"] and given["state"] == "present" and rows[0].result.changed:
        return rows[0].result
    progress = Progress("opennebula", given["_job"])
    job = _opennebula_work.Job(connect(given, progress), given, progress, module.check_mode)
    result = job.run(rows)
    for warning in job.shelf.warnings:
        module.warn(warning)
    return result


def main() -> None:
    """The module."""
    run_module(SPEC, work, required_if=REQUIRED, mutually_exclusive=[("descriptor", "descriptors")])


if __name__ == "__main__":
    main()
