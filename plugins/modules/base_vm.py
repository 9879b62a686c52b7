#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Install a base VM from a verified medium."""

from __future__ import annotations

DOCUMENTATION = r"""
module: base_vm
short_description: Install a base VM from an installation ISO
version_added: 0.1.0
description:
  - Runs an unattended installation by C(virt-install) on a disk made by C(qemu-img), and keeps the disk that it leaves
    (the base) in the layer cache, keyed by the digest of everything that went into it.
  - The serial console goes to a log. An installation that stops, fails with a known line, or breaks off is ended at
    once, with a screenshot; no domain, NVRAM or disk is left behind.
  - By default it runs in a private libvirt session that lives only as long as the installation, with user-mode
    networking. It needs neither root nor a running libvirtd.
extends_documentation_fragment:
  - cloudimg.factory._attributes
  - cloudimg.factory._attributes.job
attributes:
  check_mode:
    support: full
    description: Tells whether an installation would run, and why.
  diff_mode:
    support: full
    description: Shows which input differs from the newest base of this image.
  idempotent:
    support: full
    description: By the digest of medium, answer files, disk and machine.
options:
  workspace:
    description: The workspace on the builder; the base is kept below C(cache/layers).
    type: path
    required: true
  image:
    description: The name of the image; the domain is called C(cloudimg-<image>-base).
    type: str
    required: true
  medium:
    description: The medium, as RV(cloudimg.factory.installer_medium#module:medium) gives it.
    type: dict
    required: true
  directory:
    description: The build directory; logs go to C(logs/) in it. By default the workspace's C(run/<image>).
    type: path
  disk_size:
    description: Virtual size of the disk in bytes.
    type: int
    required: true
  memory:
    description: Memory of the VM that installs, in MiB.
    type: int
    default: 2048
  cpus:
    description: Number of its processors.
    type: int
    default: 2
  firmware:
    description: Firmware that the installer is booted by.
    type: str
    choices: [bios, uefi]
    default: bios
  osinfo:
    description: Name of the operating system in the osinfo database, when virt-install cannot detect it.
    type: str
    default: ''
  accelerator:
    description: >-
      V(kvm) or V(tcg) (emulation); V(auto) takes V(kvm) where guests really run with it.
    type: str
    choices: [auto, kvm, tcg]
    default: auto
  uri:
    description: >-
      The libvirt connection: V(private) for a session of its own, or any libvirt URI such as V(qemu:///system).
    type: str
    default: private
  answer_files:
    description:
      - Answer files by name, with their content. Without O(answer_volume) they are added to the installer's initrd, which takes
        a medium that is booted by C(location).
    type: dict
    default: {}
  answer_volume:
    description: The label of an ISO to put the answer files on, which is attached as a CD, such as V(CIDATA) or V(OEMDRV).
    type: str
    default: ''
  arch:
    description: The architecture to install; one that is not the builder's own is emulated.
    type: str
    choices: [x86_64, aarch64]
    default: x86_64
  timeout:
    description: Seconds that the installation may take at all.
    type: int
    default: 7200
  inactivity:
    description: Seconds during which neither console nor disks need to move.
    type: int
    default: 600
  keep_on_failure:
    description: Leave the domain, the disk and the private session when the installation fails, and tell how to attach.
    type: bool
    default: false
author:
  - cloudimg.factory contributors (@cloudimg-factory)
seealso:
  - module: cloudimg.factory.installer_medium
  - module: community.libvirt.virt_install
"""

EXAMPLES = r"""
- name: Get the medium
  cloudimg.factory.installer_medium:
    workspace: /srv/cloudimg
    family: preseed
    url: https://example.org/debian-12-netinst.iso
    checksum: sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
  register: installer

- name: Install the base
  cloudimg.factory.base_vm:
    workspace: /srv/cloudimg
    image: debian-12
    medium: "{{ installer.medium }}"
    disk_size: "{{ 8 * 1024 ** 3 }}"
    answer_files:
      preseed.cfg: "{{ lookup('ansible.builtin.template', 'preseed.cfg.j2') }}"
"""

RETURN = r"""
base:
  description: The base.
  returned: success
  type: dict
  contains:
    path:
      description: The qcow2 file in the layer cache.
      type: str
      returned: success
      sample: /srv/cloudimg/cache/layers/base_vm-0f343b0931126a20f133d67c2b018a3b.qcow2
    digest:
      description: SHA-256 of its inputs.
      type: str
      returned: success
      sample: 0f343b0931126a20f133d67c2b018a3b0f343b0931126a20f133d67c2b018a3b
    size:
      description: Virtual size in bytes.
      type: int
      returned: success
      sample: 8589934592
cached:
  description: Whether it came from the cache.
  returned: success
  type: bool
  sample: false
actions:
  description: What was done, and why.
  returned: always
  type: list
  elements: str
  sample: ['install: changed since the last base: disk']
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 312.5
log_path:
  description: Where the logs are; on failure the log of the serial console.
  returned: always
  type: str
  sample: /srv/cloudimg/builds/debian-12/202611210335/logs
screenshot:
  description: The picture of the screen when the installation failed.
  returned: failure
  type: str
  sample: /srv/cloudimg/builds/debian-12/202611210335/logs/base_vm-screen.png
kept:
  description: What a failed installation left with O(keep_on_failure), and how to remove it.
  returned: failure
  type: dict
  sample: {domain: cloudimg-debian-12-base, uri: 'qemu:///session', disk: /x.qcow2, remove: kill 4711}
"""

import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils._base_vm import Order, ensure_base
from ansible_collections.cloudimg.factory.plugins.module_utils._module import (
    JOB_OPTION,
    Result,
    run_module,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.plugins.module_utils._state import Workspace

SPEC: dict[str, t.Any] = {
    "workspace": {"type": "path", "required": True},
    "image": {"type": "str", "required": True},
    "medium": {"type": "dict", "required": True},
    "directory": {"type": "path"},
    "disk_size": {"type": "int", "required": True},
    "memory": {"type": "int", "default": 2048},
    "cpus": {"type": "int", "default": 2},
    "firmware": {"type": "str", "choices": ["bios", "uefi"], "default": "bios"},
    "osinfo": {"type": "str", "default": ""},
    "accelerator": {"type": "str", "choices": ["auto", "kvm", "tcg"], "default": "auto"},
    "uri": {"type": "str", "default": "private"},
    "answer_files": {"type": "dict", "default": {}},
    "answer_volume": {"type": "str", "default": ""},
    "arch": {"type": "str", "choices": ["x86_64", "aarch64"], "default": "x86_64"},
    "timeout": {"type": "int", "default": 7200},
    "inactivity": {"type": "int", "default": 600},
    "keep_on_failure": {"type": "bool", "default": False},
    "_job": JOB_OPTION,
}


def work(module: AnsibleModule) -> Result:
    """Build the order out of the options and have it done."""
    options = dict(module.params)
    progress = Progress("base_vm", options.pop("_job"))
    workspace = Workspace(options.pop("workspace"))
    directory = options.pop("directory") or workspace.run / options["image"]
    order = Order(workspace=workspace, directory=Path(directory), **options)
    return ensure_base(order, progress, check_mode=module.check_mode)


def main() -> None:
    """The module."""
    run_module(SPEC, work)


if __name__ == "__main__":
    main()
