#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell what a disk file is, and what is on it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: disk_image_info
short_description: Tell what a disk file is, and what is on it
version_added: 0.1.0
description:
  - Tells format, sizes and the disks below, the partition table and file systems, by which firmware it can be booted, the
    operating system's release and the installed packages.
  - Nothing is booted, and nothing is written to the disk. It may be a stranger's. Its header is judged before any tool opens
    it, and one that names other files is refused, unless O(trusted) is set. Its ext2, ext3, ext4 and FAT file systems are
    read by programs that can write nowhere; others only where O(mount) is set.
  - A disk that is not raw is unpacked for that into O(work_dir), where it takes as much space as it has content.
extends_documentation_fragment:
  - cloudimg.factory._attributes
  - cloudimg.factory._attributes.info_module
options:
  path:
    description: The disk file.
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
  contents:
    description: Whether to look into it. Without that, only the first lines of RV(disk) are there, at once.
    type: bool
    default: true
  packages:
    description: Whether to tell the installed packages.
    type: bool
    default: true
  mount:
    description:
      - Whether an xfs or btrfs root file system may be mounted, read-only and without replaying its log, in a namespace of
        its own. It takes root, and the kernel has then to cope with whatever is on the disk.
    type: bool
    default: false
  check:
    description: Whether to count, with C(qemu-img check), what is wrong with its metadata; see RV(disk.check).
    type: bool
    default: false
  compare_with:
    description: Another disk, to tell whether a guest would read the same from both; see RV(identical).
    type: path
  compare_format:
    description: The format of that; by default what its header says.
    type: str
    choices: [qcow2, raw, vmdk, vdi, vhdx, vpc]
  work_dir:
    description: Where the unpacked disk may be meanwhile.
    type: path
    default: /var/tmp
seealso:
  - module: cloudimg.factory.disk_image
author:
  - cloudimg.factory contributors (@cloudimg-factory)
"""

EXAMPLES = r"""
- name: Look into an image
  cloudimg.factory.disk_image_info:
    path: /srv/incoming/appliance.qcow2
  register: found

- name: Refuse what cannot be booted by UEFI
  ansible.builtin.assert:
    that: found.disk.boot in ['uefi', 'both']

- name: Ask whether a copy is whole
  cloudimg.factory.disk_image_info:
    path: /srv/copy/appliance.vmdk
    contents: false
    check: true
    compare_with: /srv/incoming/appliance.qcow2
"""

RETURN = r"""
disk:
  description: What is known of the disk.
  returned: success
  type: dict
  contains:
    path:
      description: The file.
      returned: success
      type: str
      sample: /srv/incoming/appliance.qcow2
    format:
      description: Its format.
      returned: success
      type: str
      sample: qcow2
    virtual_size:
      description: Its size in bytes, as a guest sees it.
      returned: success
      type: int
      sample: 8589934592
    actual_size:
      description: Bytes that the file takes.
      returned: success
      type: int
      sample: 231211008
    file_size:
      description: Bytes from the beginning of the file to its end, holes included.
      returned: success
      type: int
      sample: 231211008
    cluster_size:
      description: Bytes of a cluster, for a format that has clusters.
      returned: success
      type: int
      sample: 65536
    compression:
      description: How clusters of it are compressed, if any are.
      returned: success
      type: str
      sample: zstd
    backing:
      description: The disk below it, if there is one.
      returned: success
      type: str
      sample: null
    backing_format:
      description: The format of that.
      returned: success
      type: str
      sample: null
    chain:
      description: All the disks below it, the nearest first, with the same keys.
      returned: success
      type: list
      elements: dict
      sample: []
    check:
      description: Numbers of C(corruptions), C(leaks) and others; empty for a format that has nothing to check.
      returned: when O(check=true)
      type: dict
      sample: {corruptions: 0, leaks: 0, check_errors: 0, allocated_clusters: 3528, total_clusters: 131072}
    partition_table:
      description: V(gpt), V(dos) or another kind; none where there is no partition table.
      returned: when O(contents=true)
      type: str
      sample: gpt
    volumes:
      description:
        - The partitions, or the whole disk as number 0, with what is on them. Sizes and offsets are in bytes.
        - Behind a physical volume of LVM come its logical volumes, as far as they are in one piece, by C(name), C(group/volume);
          C(devices) is how the system on the disk calls them.
      returned: when O(contents=true)
      type: list
      elements: dict
      sample:
        - {number: 1, offset: 1048576, size: 8587837440, fstype: ext4, label: root, kind: 4f68bce3-e8cd-4db1-96e7-fbcaf984b709,
           uuid: 5a0dd4ab-5a4c-4ae7-9d55-a1a5a3e7d9a8, partuuid: 0b9a4b4e-8a5e-4bd6-a3d4-0a6a2f7a5d43, name: "", devices: []}
    boot:
      description:
        - The firmware that can boot it, V(bios), V(uefi), V(both) or V(none), as far as its partitions tell. UEFI takes an EFI
          system partition with a program in it, BIOS takes code in the first sector.
      returned: when O(contents=true)
      type: str
      sample: both
    os_release:
      description: The settings of C(/usr/lib/os-release).
      returned: when O(contents=true)
      type: dict
      sample: {ID: debian, VERSION_ID: "12"}
    packages:
      description: The installed packages; none where they cannot be told, see RV(disk.notes).
      returned: when O(contents=true)
      type: list
      elements: dict
      sample: [{name: bash, version: 5.2.15-2+b2, arch: amd64}]
    notes:
      description: What could not be told, and why.
      returned: when O(contents=true)
      type: list
      elements: str
      sample: []
identical:
  description: Whether a guest would read the same from both; where one is longer, the rest must be zeros.
  returned: when O(compare_with) is given
  type: bool
  sample: true
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 2.1
"""

import dataclasses
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils import _disk_info, _qemu_img
from ansible_collections.cloudimg.factory.plugins.module_utils._disk_chain import FORMATS, chain
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module

SPEC: dict[str, t.Any] = {
    "path": {"type": "path", "required": True},
    "format": {"type": "str", "choices": list(FORMATS)},
    "trusted": {"type": "bool", "default": False},
    "contents": {"type": "bool", "default": True},
    "packages": {"type": "bool", "default": True},
    "mount": {"type": "bool", "default": False},
    "check": {"type": "bool", "default": False},
    "compare_with": {"type": "path"},
    "compare_format": {"type": "str", "choices": list(FORMATS)},
    "work_dir": {"type": "path", "default": "/var/tmp"},
}


def work(module: AnsibleModule) -> Result:
    """Look."""
    options = module.params
    links = chain(Path(options["path"]), options["format"], trusted=options["trusted"])
    found = _disk_info.facts(links, check=options["check"])
    result = Result(extra={"disk": found})
    if options["contents"]:
        inside = _disk_info.contents(
            links, work_dir=Path(options["work_dir"]), mount=options["mount"], packages=options["packages"]
        )
        shown = dataclasses.asdict(inside)
        result.extra["disk"] = {**found, "partition_table": shown.pop("table"), **shown}
    if options["compare_with"]:
        other = chain(Path(options["compare_with"]), options["compare_format"], trusted=options["trusted"])[0]
        same = _qemu_img.compare(links[0].path, links[0].format, other.path, other.format)
        result.extra["identical"] = same
    return result


def main() -> None:
    """The module."""
    run_module(SPEC, work, required_by={"compare_format": ("compare_with",)})


if __name__ == "__main__":
    main()
