#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Have what a disk does not use become holes."""

from __future__ import annotations

DOCUMENTATION = r"""
module: disk_compact
short_description: Have what a disk does not use become holes
version_added: 0.1.0
description:
  - Gives back the blocks that belong to no file any more, so that a disk's file takes no more than its file systems use.
    Without that, an export compresses what was deleted, too.
  - It knows ext2, ext3 and ext4 (C(e2fsck -E discard), or C(zerofree)), xfs and btrfs (C(fstrim) by a loop device in a
    namespace of its own, which takes root), and swap areas. Others stay as they are, and RV(notes) name them.
  - A raw disk is worked on in place. Any other is written anew, an overlay as an overlay and a compressed one compressed, and
    takes the place of the old one when it was checked and compared.
  - A disk that a virtual machine, a qemu tool or a loop device has open is refused; so is a file system that was not unmounted,
    unless O(repair) is set.
  - Images that this collection builds need none of that, since each of their guest stages ends with C(fstrim).
extends_documentation_fragment:
  - cloudimg.factory._attributes
  - cloudimg.factory._attributes.job
attributes:
  check_mode:
    support: full
    details:
      - What it tells of a raw disk is the least that would be given back.
  diff_mode:
    support: full
    details:
      - The bytes that the disk and each of its volumes take, before and after.
  idempotent:
    support: full
    details:
      - A gain of less than 1 MiB is none.
options:
  path:
    description: The disk file. It must not be in the layer cache.
    type: path
    required: true
  format:
    description:
      - The format that it must have; by default what its header says.
      - A raw disk without a boot sector is only taken for one where V(raw) is said.
    type: str
    choices: [qcow2, raw, vmdk, vdi, vhdx, vpc]
  trusted:
    description: Whether the disk is of your own making, so that its header may name other files of the builder.
    type: bool
    default: false
  repair:
    description:
      - Whether to repair a file system that is not clean. A raw disk is repaired in a copy, which then takes its place.
      - Without it, such a disk is refused.
    type: bool
    default: false
  work_dir:
    description: Where a disk that is not raw is unpacked meanwhile; by default beside it.
    type: path
seealso:
  - module: cloudimg.factory.disk_image
  - module: cloudimg.factory.image_export
author:
  - cloudimg.factory contributors (@cloudimg-factory)
"""

EXAMPLES = r"""
- name: Compact a disk that a machine has been running on
  cloudimg.factory.disk_compact:
    path: /srv/disks/worker.qcow2
  become: true
  register: compacted

- name: Tell by how much
  ansible.builtin.debug:
    msg: "{{ compacted.before | filesizeformat(true) }} → {{ compacted.after | filesizeformat(true) }}"
"""

RETURN = r"""
before:
  description: Bytes that the file took.
  returned: success
  type: int
  sample: 4294967296
after:
  description: Bytes that it takes now; in check mode, that it would take.
  returned: success
  type: int
  sample: 1731198976
used:
  description: Bytes that the file systems use, their own tables included, as far as they are known.
  returned: success
  type: int
  sample: 1731198976
ratio:
  description: Bytes that these volumes take for each that is used. None where no file system is known.
  returned: success
  type: float
  sample: 1.001
target:
  description: The highest RV(ratio) that is well.
  returned: success
  type: float
  sample: 1.05
volumes:
  description:
    - Each volume with its number, file system, and the bytes of its size, taken before and after, and used.
    - C(name) is that of a logical volume, else empty.
  returned: success
  type: list
  elements: dict
  sample:
    - {number: 1, name: '', fstype: ext4, size: 8587837440, before: 4294967296, after: 1731198976, used: 1731198976,
       skipped: null}
notes:
  description: Which volumes stayed as they were, and why.
  returned: success
  type: list
  elements: str
  sample: ['volume 15 (vfat): free space of vfat is not known here']
actions:
  description: What was done, and why.
  returned: always
  type: list
  elements: str
  sample: ['compact /srv/disks/worker.qcow2: 4096 → 1651 MiB']
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 2.4
"""

import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils._compact import Order, compact
from ansible_collections.cloudimg.factory.plugins.module_utils._disk_chain import FORMATS
from ansible_collections.cloudimg.factory.plugins.module_utils._module import JOB_OPTION, Result, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

SPEC: dict[str, t.Any] = {
    "path": {"type": "path", "required": True},
    "format": {"type": "str", "choices": list(FORMATS)},
    "trusted": {"type": "bool", "default": False},
    "repair": {"type": "bool", "default": False},
    "work_dir": {"type": "path"},
    "_job": JOB_OPTION,
}


def work(module: AnsibleModule) -> Result:
    """Compact it."""
    options = dict(module.params)
    progress = Progress("compact", options.pop("_job"))
    for name in ("path", "work_dir"):
        options[name] = Path(options[name]).absolute() if options[name] else None
    return compact(Order(**options), progress, check_mode=module.check_mode)


def main() -> None:
    """The module."""
    run_module(SPEC, work)


if __name__ == "__main__":
    main()
