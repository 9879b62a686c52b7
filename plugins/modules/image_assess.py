#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge an exported image as a stranger would."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_assess
short_description: Boot an exported image as a stranger would, and judge it
version_added: 0.1.0
description:
  - Boots overlays of the artifact as new machines, all at the same time, with a larger disk, a new SSH key that comes from
    a NoCloud seed or an OpenNebula context, and a network in which there is nobody but the one who looks. Logs in, waits until
    cloud-init and the boot have ended, looks around, knocks at the ports from outside, and compares the machines.
  - The probes of SECANT, by which EGI judges images, are among the checks. C(docs/assess.md) lists them all.
  - Writes C(assess.json) with the verdict, C(assess.xml) (JUnit), C(secant.xml), and for each boot
    C(logs/assess-console-<boot>.log), what the machine said on its serial console, and C(logs/assess-screen-<boot>.png), a
    picture of its screen. With a verdict that is not V(pass) the module fails.
  - The artifact is only read. Machines, overlays and keys go at the end. When the module is killed, the machines end with it,
    and the next assessment removes the rest.
extends_documentation_fragment:
  - cloudimg.factory._attributes
  - cloudimg.factory._attributes.job
attributes:
  check_mode:
    support: full
    details:
      - It tells whether the image would be assessed, and boots nothing.
  diff_mode:
    support: none
  idempotent:
    support: full
    details:
      - What has passed is not assessed again while the checksum of the artifact and the options stay as they are.
options:
  image:
    description: The name of the image.
    type: str
    required: true
  version:
    description: The version of the build.
    type: str
    required: true
  artifact:
    description: The disk to judge.
    type: path
    required: true
  format:
    description: The format of the artifact.
    type: str
    choices: [qcow2, raw, vmdk, vdi, vhd, vhdx]
    default: qcow2
  directory:
    description: The build directory, where C(assess.json) and C(logs/) go.
    type: path
    required: true
  user:
    description: The user of the image that cloud-init gives the SSH key to.
    type: str
    required: true
  grow:
    description:
      - By how much the disk is made larger before the boot, such as V(2G). It is at least a quarter of its size, so that growth
        can be told from the overhead of a file system.
      - More is needed where the image has large partitions besides its root file system.
    type: bytes
    default: 10G
  boots:
    description:
      - The ways to boot it, by firmware and by the data source that is there for cloud-init.
      - With two or more, the machines must differ in what has to be a machine's own.
    type: list
    elements: str
    choices: [bios-nocloud, bios-opennebula, uefi-nocloud, uefi-opennebula]
    default: [bios-nocloud, uefi-opennebula]
  allowed_units:
    description: Patterns of systemd units that may fail, such as V(kdump.service).
    type: list
    elements: str
    default: []
  allowed_ports:
    description: Ports at which the image may answer besides SSH, such as V(80/tcp).
    type: list
    elements: str
    default: []
  lynis:
    description: Whether Lynis is run in the first machine; V(auto) does so with KVM, as it takes long in emulation.
    type: str
    choices: [auto, "yes", "no"]
    default: auto
  updates:
    description: Whether the packages are held against the index of the image's security suite, which the builder fetches.
    type: bool
    default: true
  accelerator:
    description: V(kvm), V(tcg) (emulation), or V(auto), which takes V(kvm) where guests really run with it.
    type: str
    choices: [auto, kvm, tcg]
    default: auto
  cpus:
    description: Number of processors of each machine; V(0) for those of the builder shared among them, two at most.
    type: int
    default: 0
  memory:
    description: Memory of each machine in MiB.
    type: int
    default: 1024
  timeout:
    description: Seconds that a boot with all its checks may take.
    type: int
    default: 900
author:
  - cloudimg.factory contributors (@cloudimg-factory)
seealso:
  - module: cloudimg.factory.image_export
  - module: cloudimg.factory.image_catalogue
"""

EXAMPLES = r"""
- name: Judge an exported image
  cloudimg.factory.image_assess:
    image: debian-12
    version: "202501311200"
    artifact: /srv/cloudimg/builds/debian-12/202501311200/debian-12-202501311200.qcow2
    directory: /srv/cloudimg/builds/debian-12/202501311200
    user: debian
    allowed_ports: [443/tcp]
"""

RETURN = r"""
assessment:
  description: What C(assess.json) says.
  returned: when the image has been assessed
  type: dict
  contains:
    verdict:
      description: V(pass) or V(fail).
      type: str
      returned: always
      sample: pass
    artifact:
      description: C(name), C(format) and C(sha256) of the artifact.
      type: dict
      returned: always
      sample: {name: debian-12-202501311200.qcow2, format: qcow2}
    boots:
      description: >-
        For each boot its C(name), C(firmware), C(datasource), C(timings) (seconds from the machine's start to the answer of its
        SSH server (C(ssh)), to the login (C(login)), to the end of cloud-init (C(cloud_init)) and of all checks (C(all))),
        C(listening) (sockets with C(proto), C(address), C(port), C(process)) and C(facts).
      type: list
      elements: dict
      returned: always
      sample:
        - {name: bios-nocloud, firmware: bios, datasource: NoCloud, timings: {ssh: 51.2, login: 55.0, cloud_init: 66.1}}
    checks:
      description: >-
        Each check with C(name), C(ok), C(detail), C(boot) (V(all) where it is about all of them), C(group), and C(required),
        which is V(false) for a warning.
      type: list
      elements: dict
      returned: always
      sample:
        - {name: login, ok: true, detail: debian with the key of the NoCloud source, boot: bios-nocloud, required: true}
    secant:
      description: The outcome of each of SECANT's probes, with C(id), C(outcome), C(summary) and C(details).
      type: list
      elements: dict
      returned: always
      sample: [{id: ssh_auth, outcome: OK, summary: SSH offers publickey, details: []}]
    lynis:
      description: What Lynis said, with C(index), C(version), C(warnings) and C(suggestions); V(null) where it was not run.
      type: dict
      returned: always
    accelerator:
      description: V(kvm) or V(tcg).
      type: str
      returned: always
      sample: tcg
    qemu:
      description: The version of QEMU.
      type: str
      returned: always
      sample: 7.2.22
    started:
      description: When it began.
      type: str
      returned: always
      sample: "2025-01-31T12:00:00Z"
    finished:
      description: When it ended.
      type: str
      returned: always
      sample: "2025-01-31T12:01:30Z"
report_path:
  description: Path of C(assess.json).
  returned: when the image has been assessed
  type: str
  sample: /srv/cloudimg/builds/debian-12/202501311200/assess.json
actions:
  description: What was done, and why.
  returned: success
  type: list
  elements: str
  sample: ["assess: the image has not been assessed"]
log_path:
  description: What the machine said on its serial console, at its first boot.
  returned: success
  type: str
  sample: /srv/cloudimg/builds/debian-12/202501311200/logs/assess-console-bios-nocloud.log
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 92.7
"""

import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils._assess import FORMATS, Request, assess
from ansible_collections.cloudimg.factory.plugins.module_utils._boots import BOOTS
from ansible_collections.cloudimg.factory.plugins.module_utils._module import JOB_OPTION, Result, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

SPEC: dict[str, t.Any] = {
    "image": {"type": "str", "required": True},
    "version": {"type": "str", "required": True},
    "artifact": {"type": "path", "required": True},
    "format": {"type": "str", "choices": list(FORMATS), "default": "qcow2"},
    "directory": {"type": "path", "required": True},
    "user": {"type": "str", "required": True},
    "grow": {"type": "bytes", "default": "10G"},
    "boots": {
        "type": "list",
        "elements": "str",
        "choices": list(BOOTS),
        "default": ["bios-nocloud", "uefi-opennebula"],
    },
    "allowed_units": {"type": "list", "elements": "str", "default": []},
    "allowed_ports": {"type": "list", "elements": "str", "default": []},
    "lynis": {"type": "str", "choices": ["auto", "yes", "no"], "default": "auto"},
    "updates": {"type": "bool", "default": True},
    "accelerator": {"type": "str", "choices": ["auto", "kvm", "tcg"], "default": "auto"},
    "cpus": {"type": "int", "default": 0},
    "memory": {"type": "int", "default": 1024},
    "timeout": {"type": "int", "default": 900},
    "_job": JOB_OPTION,
}


def work(module: AnsibleModule) -> Result:
    """Make the request out of the options and have it judged."""
    options = dict(module.params)
    progress = Progress("assess", options.pop("_job"))
    for name in ("artifact", "directory"):
        options[name] = Path(options[name]).absolute()
    for name in ("boots", "allowed_units", "allowed_ports"):
        options[name] = tuple(dict.fromkeys(options[name]))
    return assess(Request(**options), progress, check_mode=module.check_mode)


def main() -> None:
    """The module."""
    run_module(SPEC, work)


if __name__ == "__main__":
    main()
