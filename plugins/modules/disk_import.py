#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a base of an existing disk."""

from __future__ import annotations

DOCUMENTATION = r"""
module: disk_import
short_description: Make a base of an existing disk
version_added: 0.1.0
description:
  - Takes a disk that exists already, instead of an installation, as the base of an image, and keeps it in the layer cache
    as M(cloudimg.factory.base_vm) does.
  - The disk is a file (qcow2, raw, compressed raw, VMDK, VDI, VHD, VHDX, or OVA), by URL or path and with its checksum; or a
    block device of the builder; or a disk of a running machine, read over SSH.
  - Nothing of a foreign file is opened by QEMU before its header was read and judged here. What refers to other files, is
    encrypted, claims to be larger than the image's disk, or unpacks to more than that, is refused.
  - The base is not yet fit for a cloud; the role P(cloudimg.factory.adopt#role) sees to the system on it.
extends_documentation_fragment:
  - cloudimg.factory._attributes
  - cloudimg.factory._attributes.job
attributes:
  check_mode:
    support: full
    description: Tells whether something would be imported, and why. Checksum files are read, nothing is written.
  diff_mode:
    support: full
    description: Shows which input differs from the newest base of this image.
  idempotent:
    support: full
    description:
      - By the checksum of the source. A device or a running machine is read once, and then again only with
        O(refresh=true).
options:
  workspace:
    description: The workspace on the builder; the base is kept below C(cache/layers).
    type: path
    required: true
  image:
    description: The name of the image.
    type: str
    required: true
  disk_size:
    description: Virtual size of the base in bytes. A disk that is smaller grows to it, one that is larger is refused.
    type: int
    required: true
  source:
    description: The disk, as in C(image_source_disk). One of O(source.url), O(source.path), O(source.device) and O(source.ssh).
    type: dict
    required: true
    suboptions:
      url:
        description: Where the file can be downloaded by http or https.
        type: str
      path:
        description: Where the file is on the builder.
        type: path
      device:
        description: A block device of the builder that nothing uses. It takes root.
        type: path
      ssh:
        description: A disk of a running machine. What it writes meanwhile may be in it or not.
        type: dict
        suboptions:
          host:
            description: Name or address of the machine. Its key has to be known.
            type: str
            required: true
          device:
            description: The disk there, such as V(/dev/vda).
            type: str
            required: true
          user:
            description: Who may read it there.
            type: str
            default: root
          port:
            description: The port of its SSH server.
            type: int
            default: 22
          sudo:
            description: Whether the user needs sudo (without a password) to read it.
            type: bool
            default: false
          identity:
            description: File of a private key without a passphrase. By default what ssh finds by itself.
            type: path
          known_hosts:
            description: File of the keys of hosts. By default those that ssh uses.
            type: path
      checksum:
        description:
          - What the file must be, as V(sha256:<hex>) or V(sha512:<hex>), or the URL or path of a file of checksums.
          - Needed with O(source.url) and O(source.path). With the others it is that of the whole disk.
        type: str
      signature:
        description: URL or path of the detached OpenPGP signature of the file of checksums, or of the clearsigned one.
        type: str
      keyring:
        description: Path of the OpenPGP keys that may sign, on the builder.
        type: path
      fingerprints:
        description: Full fingerprints of those keys that are trusted. By default all of O(source.keyring).
        type: list
        elements: str
        default: []
      format:
        description:
          - What the file is. By default its own header tells.
          - V(raw) takes it as it is, whatever it begins with.
        type: str
        choices: [qcow2, raw, raw.gz, raw.xz, raw.zst, raw.bz2, vmdk, vdi, vhd, vhdx, ova]
      disk:
        description: Which disk of an appliance (OVA) that has several, by its identifier or the name of its file.
        type: str
  refresh:
    description: Read device or machine again, and fetch the file of checksums again.
    type: bool
    default: false
  timeout:
    description: Seconds for which a server or a machine may be silent.
    type: int
    default: 60
seealso:
  - module: cloudimg.factory.base_vm
  - module: cloudimg.factory.image_parent
author:
  - cloudimg.factory contributors (@cloudimg-factory)
"""

EXAMPLES = r"""
- name: Take an image that somebody published, verified by its signature
  cloudimg.factory.disk_import:
    workspace: /srv/cloudimg
    image: worker
    disk_size: "{{ 8 * 1024 ** 3 }}"
    source:
      url: https://images.example.org/worker/worker-1.0.qcow2
      checksum: https://images.example.org/worker/SHA256SUMS
      signature: https://images.example.org/worker/SHA256SUMS.asc
      keyring: /etc/cloudimg/worker.asc

- name: Take one disk of an appliance
  cloudimg.factory.disk_import:
    workspace: /srv/cloudimg
    image: appliance
    disk_size: "{{ 20 * 1024 ** 3 }}"
    source:
      path: /srv/import/appliance.ova
      checksum: sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
      disk: appliance-disk1.vmdk

- name: Take the disk of a running machine
  cloudimg.factory.disk_import:
    workspace: /srv/cloudimg
    image: legacy
    disk_size: "{{ 40 * 1024 ** 3 }}"
    source:
      ssh:
        host: legacy.example.org
        user: admin
        sudo: true
        device: /dev/sda
"""

RETURN = r"""
base:
  description: The base. In check mode without C(source), C(layout) and C(warnings) where it is not in the cache.
  returned: success
  type: dict
  contains:
    path:
      description: The qcow2 file in the layer cache; null in check mode where it cannot be known.
      type: str
      returned: success
      sample: /srv/cloudimg/cache/layers/base_vm-0f343b0931126a20f133d67c2b018a3b.qcow2
    digest:
      description: SHA-256 of its inputs; null in check mode where it cannot be known.
      type: str
      returned: success
      sample: 0f343b0931126a20f133d67c2b018a3b0f343b0931126a20f133d67c2b018a3b
    size:
      description: Virtual size in bytes.
      type: int
      returned: success
      sample: 8589934592
    source:
      description: What it was made of, C(place), C(checksum), C(sha256), C(format) and C(virtual_size) in bytes.
      type: dict
      returned: when there is a base
      sample: {place: /srv/import/a.ova, checksum: 'sha512:cf83…', sha256: e3b0…, format: 'ova: vmdk', virtual_size: 8589934592}
    layout:
      description: >-
        The C(root) file system (C(partition), C(fstype), C(uuid)), and whether there are boot loaders for C(bios) and
        C(uefi).
      type: dict
      returned: when there is a base
      sample: {root: {partition: 1, fstype: ext4, uuid: 8d1e6a3c-6b0f-4b2c-9d0e-5a7f2b1c3d4e}, bios: true, uefi: false}
    warnings:
      description: What of its layout does not suit a cloud.
      type: list
      elements: str
      returned: when there is a base
      sample: ['partition 2 is swap, which wastes space in every copy of the image']
cached:
  description: Whether it came from the cache.
  returned: success
  type: bool
  sample: false
actions:
  description: What was done (or would be, in check mode), and why.
  returned: always
  type: list
  elements: str
  sample: ['import /srv/import/appliance.ova: this image has no base yet']
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 42.5
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils._import import Order, import_base
from ansible_collections.cloudimg.factory.plugins.module_utils._module import JOB_OPTION, Result, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.plugins.module_utils._source_disk import FORMATS, SourceDisk
from ansible_collections.cloudimg.factory.plugins.module_utils._state import Workspace

SSH: dict[str, t.Any] = {
    "host": {"type": "str", "required": True},
    "device": {"type": "str", "required": True},
    "user": {"type": "str", "default": "root"},
    "port": {"type": "int", "default": 22},
    "sudo": {"type": "bool", "default": False},
    "identity": {"type": "path", "no_log": False},
    "known_hosts": {"type": "path"},
}
SOURCE: dict[str, t.Any] = {
    "url": {"type": "str"},
    "path": {"type": "path"},
    "device": {"type": "path"},
    "ssh": {"type": "dict", "options": SSH},
    "checksum": {"type": "str"},
    "signature": {"type": "str"},
    "keyring": {"type": "path", "no_log": False},
    "fingerprints": {"type": "list", "elements": "str", "default": []},
    "format": {"type": "str", "choices": list(FORMATS)},
    "disk": {"type": "str"},
}
SPEC: dict[str, t.Any] = {
    "workspace": {"type": "path", "required": True},
    "image": {"type": "str", "required": True},
    "disk_size": {"type": "int", "required": True},
    "source": {"type": "dict", "required": True, "options": SOURCE},
    "refresh": {"type": "bool", "default": False},
    "timeout": {"type": "int", "default": 60},
    "_job": JOB_OPTION,
}


def work(module: AnsibleModule) -> Result:
    """Build the order out of the options and have it done."""
    options = dict(module.params)
    progress = Progress("base_vm", options.pop("_job"))
    workspace = Workspace(options.pop("workspace"))
    source = SourceDisk.load(options.pop("source"))
    result = import_base(Order(workspace, source=source, **options), progress, check_mode=module.check_mode)
    for warning in result.extra.pop("warnings", []):
        module.warn(f"{options['image']}: {warning}")
    return result


def main() -> None:
    """The module."""
    run_module(SPEC, work)


if __name__ == "__main__":
    main()
