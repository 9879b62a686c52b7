#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make an image definition of a description for another tool."""

from __future__ import annotations

DOCUMENTATION = r"""
module: import_definition
short_description: Make an image definition of a description for Oz, BoxGrinder, COMFY or Packer
version_added: 0.1.0
description:
  - Reads the description of an image that was written for another tool, and returns the C(image_*) variables that say the same,
    or writes them as host_vars.
  - Whatever of it is not in the definition is listed, with the reason and what to do; nothing is left out silently. The same
    list stands as comments at the end of the host_vars.
  - Passwords, keys and tokens are neither taken over nor shown. Texts that look like templates of Ansible are marked C(!unsafe).
  - Nothing of a description is run or fetched. Files are read only from the description's own directory and below.
  - It needs the Python libraries C(PyYAML) and, for templates of Packer in HCL2, C(python-hcl2).
extends_documentation_fragment:
  - cloudimg.factory._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  src:
    description:
      - The description, on the machine on which the module runs.
      - For O(kind=packer) it can be a directory with files C(*.pkr.hcl) and C(*.auto.pkrvars.hcl).
    type: path
    required: true
  kind:
    description:
      - What it was written for. V(oz) is a TDL (C(.tdl)), V(boxgrinder) an appliance (C(.appl)) with those beside it that it
        stands on, V(comfy) a distribution descriptor (C(.description)), V(packer) a template in JSON (C(.json)) or in HCL2
        (C(.hcl)).
      - By default the name of the file tells.
    type: str
    choices: [oz, boxgrinder, comfy, packer]
  name:
    description: The name of the image, which is that of its host in the inventory. By default the description's own, made to fit.
    type: str
  builder:
    description: For O(kind=packer) with several builders (sources) of the type C(qemu), the name of the one to import.
    type: str
  version:
    description: For O(kind=comfy), the version to import, or its beginning, such as V(8). By default the newest.
    type: str
  variables:
    description:
      - For O(kind=packer), values of user variables, as C(-var) of Packer. Give no secrets here; none is needed.
    type: dict
    default: {}
  dest:
    description:
      - The directory of the inventory in which to write C(host_vars/<name>.yml). Without it nothing is written.
    type: path
  scripts_dir:
    description:
      - The directory in which to write the commands of the description as scripts, which C(image_scripts) then names. Relative to
        O(dest).
      - Without it commands are listed in RV(unmapped).
    type: path
  force:
    description: Whether to replace files that are there already and differ.
    type: bool
    default: false
author:
  - cloudimg.factory contributors (@cloudimg-factory)
seealso:
  - module: cloudimg.factory.image_definition
  - module: cloudimg.factory.disk_import
"""

EXAMPLES = r"""
- name: Tell what a TDL of Oz would be
  cloudimg.factory.import_definition:
    src: /srv/oz/f18.tdl
  register: imported

- name: Write the host_vars and the scripts of an image
  cloudimg.factory.import_definition:
    src: /srv/packer/debian.pkr.hcl
    builder: debian
    name: debian-12
    dest: inventories/site
    scripts_dir: files/debian-12
"""

RETURN = r"""
name:
  description: The name of the image.
  returned: success
  type: str
  sample: debian-12
kind:
  description: What the description was written for.
  returned: success
  type: str
  sample: packer
definition:
  description: The C(image_*) variables.
  returned: success
  type: dict
  sample:
    image_os: {distribution: debian, version: "12", arch: x86_64}
    image_medium: {family: preseed, url: https://mirror.example.org/debian-12.5.0-amd64-netinst.iso}
    image_disk: {size: 10G}
applications:
  description: Variables of the role C(cloudimg.factory.applications) that go with them.
  returned: success
  type: dict
  sample:
    applications_files: [{dest: /etc/motd, content: welcome}]
missing:
  description: What the definition still needs.
  returned: success
  type: list
  elements: dict
  contains:
    key:
      description: The key of the definition.
      type: str
    reason:
      description: What to set it to.
      type: str
  sample: [{key: image_medium.checksum, reason: "set it to …"}]
unmapped:
  description: What is not in the definition.
  returned: success
  type: list
  elements: dict
  contains:
    key:
      description: Where it stands in the description.
      type: str
    value:
      description: Its value in short; C(***) for secrets.
      type: str
    reason:
      description: Why it is not there, and what to do.
      type: str
  sample:
    - key: source.qemu.debian.boot_wait
      value: 5s
      reason: nothing is typed
mapped:
  description: Where in the definition each thing went that is there, by its place in the description.
  returned: success
  type: dict
  sample: {source.qemu.debian.disk_size: image_disk.size}
host_vars:
  description: The text of the host_vars.
  returned: success
  type: str
  sample: "image_title: Debian 12\n…"
path:
  description: The file of the host_vars.
  returned: success, with O(dest)
  type: str
  sample: inventories/site/host_vars/debian-12.yml
scripts:
  description: The files of the scripts.
  returned: success, with O(scripts_dir)
  type: list
  elements: str
  sample: [inventories/site/files/debian-12/01-shell.sh]
actions:
  description: What was done, and why.
  returned: success
  type: list
  elements: str
  sample: ["inventories/site/host_vars/debian-12.yml: is not there yet"]
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 0.1
"""

import dataclasses
import os
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils import _import_definition, _import_definition_write
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module

SPEC: dict[str, t.Any] = {
    "src": {"type": "path", "required": True},
    "kind": {"type": "str", "choices": list(_import_definition.KINDS)},
    "name": {"type": "str"},
    "builder": {"type": "str"},
    "version": {"type": "str"},
    "variables": {"type": "dict", "default": {}},
    "dest": {"type": "path"},
    "scripts_dir": {"type": "path"},
    "force": {"type": "bool", "default": False},
}


def work(module: AnsibleModule) -> Result:
    """Import the description, and write what it gives where that is wanted."""
    options = module.params
    dest = Path(options["dest"]).absolute() if options["dest"] else None
    # Beside links a path with «..» would be another one; but what stands in host_vars should be plain.
    folder = Path(os.path.normpath(dest / options["scripts_dir"])) if dest and options["scripts_dir"] else None
    prefix = _import_definition_write.prefix(dest, folder) if dest and folder else None
    found = _import_definition.load(
        _import_definition.Request(
            Path(options["src"]),
            scripts=prefix,
            **{key: options[key] for key in ("kind", "name", "builder", "version", "variables")},
        )
    )
    result = Result()
    result.extra = {
        "name": found.name,
        "kind": found.kind,
        "definition": found.definition,
        "applications": found.applications,
        "missing": [{"key": key, "reason": reason} for key, reason in found.missing.items()],
        "unmapped": [dataclasses.asdict(row) for row in found.unmapped],
        "mapped": found.mapped,
        "host_vars": found.text,
    }
    if dest:
        files = _import_definition_write.plan(
            dest, found.name, found.text, found.scripts, folder, force=options["force"]
        )
        for file in files:
            if file.differs:
                result.act(f"{file.path}: {'differs' if file.before is not None else 'is not there yet'}")
        result.extra["diff"] = [file.diff() for file in files if file.differs]
        result.extra["path"] = str(files[-1].path)
        if folder:
            result.extra["scripts"] = [str(file.path) for file in files[:-1]]
        if not module.check_mode:
            _import_definition_write.write(files)
    return result


def main() -> None:
    """The module."""
    run_module(SPEC, work, required_by={"scripts_dir": "dest"})


if __name__ == "__main__":
    main()
