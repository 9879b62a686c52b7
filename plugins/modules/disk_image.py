#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Have a disk file."""

from __future__ import annotations

DOCUMENTATION = r"""
module: disk_image
short_description: Have a disk file of some format, size and backing file
version_added: 0.1.0
description:
  - Makes an empty disk, or an overlay on another disk; grows or shrinks one; puts an overlay on another disk; flattens it;
    repairs it; or removes it.
  - What it makes or writes anew appears under its name only when it is whole. A rebased or flattened disk is compared with
    what it was before.
  - A disk that a virtual machine, a qemu tool or a loop device has open is refused where it would be changed.
  - Headers are judged before any tool opens a disk. One that names other files is refused, unless O(trusted) is set.
  - Partitions and file systems are not touched; a new disk has none, and a grown one has free space at its end.
extends_documentation_fragment:
  - cloudimg.factory._attributes
attributes:
  check_mode:
    support: full
    details:
      - Where a disk is to be rebased, nothing is told of what would be changed in it after that.
  diff_mode:
    support: full
    details:
      - What RV(disk) was before, and is after.
  idempotent:
    support: full
    details:
      - O(cluster_size) and O(preallocation) count only where the disk is made.
options:
  path:
    description: The disk file.
    type: path
    required: true
  state:
    description: Whether there is to be such a disk.
    type: str
    choices: [present, absent]
    default: present
  format:
    description:
      - Its format. By default V(qcow2) where it is made, else what its header says.
      - A raw disk without a boot sector is only taken for one where V(raw) is said.
      - A disk of another format is refused, not converted.
    type: str
    choices: [qcow2, raw, vmdk, vdi, vhdx, vpc]
  size:
    description:
      - Its virtual size, such as V(8G) (powers of 1024). It is needed for a new disk without O(backing).
      - By default that of O(backing), or what it has.
    type: bytes
  backing:
    description:
      - The disk below it. An overlay that stands on another one is put on this one, see O(rebase).
      - Mutually exclusive with O(flat).
    type: path
  backing_format:
    description: The format of O(backing); by default what its header says.
    type: str
    choices: [qcow2, raw, vmdk, vdi, vhdx, vpc]
  flat:
    description: Have it stand on no other disk, by taking in what is below it.
    type: bool
    default: false
  rebase:
    description:
      - How it is put on another disk. V(safe) keeps what a guest reads from it, copying what differs below.
      - V(unsafe) changes only the name. It is for a disk below that was moved; where its content is another one, all is lost.
    type: str
    choices: [safe, unsafe]
    default: safe
  shrink:
    description:
      - Whether it may become smaller. Only what reads as zeros and belongs to no partition is cut off, otherwise it fails.
      - A GPT keeps a copy of itself at the end of the disk; it is put before the new end.
    type: bool
    default: false
  trusted:
    description:
      - Whether all the disks are of your own making, so that their headers may name other files of the builder.
    type: bool
    default: false
  repair:
    description:
      - Whether to repair an existing disk, in a copy that then takes its place. V(leaks) gives back clusters that are lost.
      - V(all) also makes damaged metadata consistent, which may cost data.
      - Without it, a disk with damaged metadata is refused.
    type: str
    choices: [leaks, all]
  cluster_size:
    description: Cluster size of a new qcow2, such as V(64K); a power of two.
    type: bytes
  preallocation:
    description: What of a new disk is allocated at once, see C(qemu-img).
    type: str
    choices: ["off", metadata, falloc, full]
seealso:
  - module: cloudimg.factory.disk_compact
  - module: cloudimg.factory.disk_image_info
  - module: cloudimg.factory.image_export
author:
  - cloudimg.factory contributors (@cloudimg-factory)
"""

EXAMPLES = r"""
- name: Have an empty disk
  cloudimg.factory.disk_image:
    path: /srv/disks/data.qcow2
    size: 20G

- name: Have an overlay for a throw-away machine, larger than the image
  cloudimg.factory.disk_image:
    path: /srv/disks/test.qcow2
    backing: /srv/images/debian-12.qcow2
    size: 40G

- name: Make it independent of the image
  cloudimg.factory.disk_image:
    path: /srv/disks/test.qcow2
    flat: true
    trusted: true

- name: Say where the disk below has gone
  cloudimg.factory.disk_image:
    path: /srv/disks/test.qcow2
    backing: /mnt/images/debian-12.qcow2
    rebase: unsafe

- name: Remove it
  cloudimg.factory.disk_image:
    path: /srv/disks/test.qcow2
    state: absent
"""

RETURN = r"""
disk:
  description: The disk as it is; in check mode, as it would be, as far as that is known.
  returned: when O(state=present)
  type: dict
  contains:
    path:
      description: The file.
      returned: success
      type: str
      sample: /srv/disks/data.qcow2
    format:
      description: Its format.
      returned: success
      type: str
      sample: qcow2
    virtual_size:
      description: Its size in bytes, as a guest sees it.
      returned: success
      type: int
      sample: 21474836480
    actual_size:
      description: Bytes that the file takes.
      returned: success, but in check mode
      type: int
      sample: 200704
    cluster_size:
      description: Bytes of a cluster, for a format that has clusters.
      returned: success, but in check mode
      type: int
      sample: 65536
    backing:
      description: The disk below it, if there is one.
      returned: success
      type: str
      sample: /srv/images/debian-12.qcow2
    backing_format:
      description: The format of that.
      returned: success
      type: str
      sample: qcow2
actions:
  description: What was done, and why.
  returned: always
  type: list
  elements: str
  sample: ['make /srv/disks/data.qcow2: there is none yet']
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 0.1
"""

import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils._disk_chain import FORMATS
from ansible_collections.cloudimg.factory.plugins.module_utils._disk_image import (
    Wanted,
    ensure_absent,
    ensure_present,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module

SPEC: dict[str, t.Any] = {
    "path": {"type": "path", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "format": {"type": "str", "choices": list(FORMATS)},
    "size": {"type": "bytes"},
    "backing": {"type": "path"},
    "backing_format": {"type": "str", "choices": list(FORMATS)},
    "flat": {"type": "bool", "default": False},
    "rebase": {"type": "str", "choices": ["safe", "unsafe"], "default": "safe"},
    "shrink": {"type": "bool", "default": False},
    "trusted": {"type": "bool", "default": False},
    "repair": {"type": "str", "choices": ["leaks", "all"]},
    "cluster_size": {"type": "bytes"},
    "preallocation": {"type": "str", "choices": ["off", "metadata", "falloc", "full"]},
}


def work(module: AnsibleModule) -> Result:
    """Have it, or have it not."""
    options = dict(module.params)
    state = options.pop("state")
    for name in ("path", "backing"):
        options[name] = Path(options[name]).absolute() if options[name] else None
    if state == "absent":
        return ensure_absent(options["path"], check_mode=module.check_mode)
    return ensure_present(Wanted(**options), check_mode=module.check_mode)


def main() -> None:
    """The module."""
    run_module(SPEC, work, mutually_exclusive=[("backing", "flat")], required_by={"backing_format": ("backing",)})


if __name__ == "__main__":
    main()
