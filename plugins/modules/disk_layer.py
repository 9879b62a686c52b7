#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Let a stage write a layer on a disk."""

from __future__ import annotations

DOCUMENTATION = r"""
module: disk_layer
short_description: Let a stage write a layer on a disk
version_added: 0.1.0
description:
  - A layer is a qcow2 overlay that one stage (a role) writes on the disk of the stage before it. Layers are kept in the
    layer cache, keyed by the digest of everything that goes into them.
  - With O(state=opened) the layer comes from the cache, or an overlay is made and attached, and RV(connection_vars) lets
    Ansible work in it. Then O(state=committed) puts it into the cache, or O(state=discarded) gives it up.
  - Usually the overlay is mounted on the builder in namespaces of its own, and not booted. Nothing in it starts a
    service, renames or reboots the builder, or outlives the ansible-playbook that opened it; that one gone, all of it goes.
  - The digest is of the role's files and those of its dependencies, the host's variables that begin with the role's
    name, O(inputs), O(files), O(roles), and the disk below.
extends_documentation_fragment:
  - cloudimg.factory._attributes
attributes:
  check_mode:
    support: full
    details:
      - Tells whether the stage would run, and why.
  diff_mode:
    support: full
    details:
      - Shows which inputs differ from the layer that this stage made before. Values of variables are shown as digests.
  idempotent:
    support: full
    details:
      - By the digest of all inputs.
options:
  workspace:
    description: The workspace on the builder.
    type: path
    required: true
  image:
    description: The name of the image.
    type: str
    required: true
  stage:
    description: The name of the stage.
    type: str
    required: true
  state:
    description:
      - V(opened) takes the layer from the cache, or makes an overlay and attaches it.
      - V(committed) detaches what was opened, checks it, and keeps it as a layer.
      - V(discarded) detaches what was opened, and removes it.
    type: str
    choices: [opened, committed, discarded]
    default: opened
  parent:
    description: The disk below, a qcow2 file of the layer cache; needed by O(state=opened).
    type: path
  parent_digest:
    description: Its digest, where it is known; by default that of the record beside O(parent).
    type: str
  inputs:
    description: More that goes into the layer, by name, such as parts of the image definition. It must hold no secrets.
    type: dict
    default: {}
  role:
    description: The role that writes the layer; by default the one of this collection that is called like O(stage).
    type: str
  roles:
    description: More roles that go into the layer.
    type: list
    elements: str
    default: []
  files:
    description: Files on the controller that go into the layer.
    type: list
    elements: str
    default: []
  connection:
    description:
      - How Ansible gets into the layer.
      - V(offline) mounts the disk, without booting it.
      - V(ssh) boots it. Root gets in by a key that is proven gone afterwards.
      - V(auto) takes V(offline) where there is no hardware virtualisation, else V(ssh).
      - Either needs root, and an ansible-playbook that runs on the builder itself.
    type: str
    choices: [auto, offline, ssh]
    default: auto
  forbidden:
    description:
      - Shell patterns of absolute paths in the layer. O(state=committed) fails when a file of any size but zero, or a
        symbolic link, matches.
    type: list
    elements: str
    default: []
  packages:
    description: Whether a list of the installed packages is to be kept with the layer, see RV(packages).
    type: bool
    default: false
  facts:
    description: What the stage has found out, to be kept with the layer by O(state=committed).
    type: dict
    default: {}
  keep:
    description: With O(state=discarded), hold what was opened, for a look into it; RV(kept) tells how to get in.
    type: bool
    default: false
  _inputs:
    description: Private to the action plugin of the same name. Do not set it.
    type: dict
  _controller:
    description: Private to the action plugin of the same name. Do not set it.
    type: dict
  _owner:
    description: Private to the action plugin of the same name. Do not set it.
    type: dict
seealso:
  - module: cloudimg.factory.base_vm
  - plugin: community.general.chroot
    plugin_type: connection
author:
  - cloudimg.factory contributors (@cloudimg-factory)
"""

EXAMPLES = r"""
- name: Open the layer
  cloudimg.factory.disk_layer:
    workspace: /srv/cloudimg
    image: debian-12
    stage: applications
    parent: /srv/cloudimg/cache/layers/cloud_init-0f343b0931126a20f133d67c2b018a3b.qcow2
    inputs:
      image_packages: "{{ image_packages }}"
    state: opened
  become: true
  delegate_to: localhost
  register: opened

- name: Keep the layer
  cloudimg.factory.disk_layer:
    workspace: /srv/cloudimg
    image: debian-12
    stage: applications
    state: committed
  become: true
  delegate_to: localhost
  when: not opened.cached
"""

RETURN = r"""
path:
  description: Where the layer is, or will be once it is committed.
  returned: when O(state=opened) or O(state=committed)
  type: str
  sample: /srv/cloudimg/cache/layers/applications-5feceb66ffc86f38d952786c6d696c79.qcow2
digest:
  description: The digest of everything that goes into it.
  returned: when O(state=opened) or O(state=committed)
  type: str
  sample: 5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9
cached:
  description: Whether the layer is in the cache, so that the stage need not run.
  returned: when O(state=opened)
  type: bool
  sample: false
layer_id:
  description: The name under which it is open.
  returned: when O(state=opened)
  type: str
  sample: cloudimg-debian-12-applications.tree
mount:
  description: The directory that is the root of the layer's file system to C(enter), a script beside it.
  returned: when it was opened offline
  type: str
  sample: /srv/cloudimg/run/cloudimg-debian-12-applications.tree/root
connection_vars:
  description: The variables by which Ansible gets in.
  returned: when it was opened
  type: dict
  sample: {ansible_connection: community.general.chroot}
packages:
  description: The list of installed packages, a JSON file with C(packages) and C(os_release).
  returned: with O(packages), when O(state=opened) or O(state=committed)
  type: str
  sample: /srv/cloudimg/cache/layers/sanitize-6b86b273ff34fce19d6b804eff5a3f57.packages.json
facts:
  description: What the stage found out when it wrote the layer.
  returned: when the layer is in the cache
  type: dict
  sample: {scores: {lynis: {before: 58, after: 74}}}
kept:
  description: How to look into a layer that was held.
  returned: with O(keep)
  type: str
  sample: 'look into it by: /srv/cloudimg/run/…/enter …/root /bin/bash; drop it by: kill -9 4711'
actions:
  description: What was done, and why.
  returned: always
  type: list
  elements: str
  sample: ['run applications: changed since the last layer: image_packages']
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 0.6
"""

import re
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils import _guest, _layers
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._owner import Owner
from ansible_collections.cloudimg.factory.plugins.module_utils._state import Workspace, check_image_name

SPEC: dict[str, t.Any] = {
    "workspace": {"type": "path", "required": True},
    "image": {"type": "str", "required": True},
    "stage": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["opened", "committed", "discarded"], "default": "opened"},
    "parent": {"type": "path"},
    "parent_digest": {"type": "str"},
    "inputs": {"type": "dict", "default": {}},
    "role": {"type": "str"},
    "roles": {"type": "list", "elements": "str", "default": []},
    "files": {"type": "list", "elements": "str", "default": []},
    "connection": {"type": "str", "choices": list(_guest.CONNECTIONS), "default": "auto"},
    "forbidden": {"type": "list", "elements": "str", "default": []},
    "packages": {"type": "bool", "default": False},
    "facts": {"type": "dict", "default": {}},
    "keep": {"type": "bool", "default": False},
    "_inputs": {"type": "dict"},
    "_controller": {"type": "dict"},
    "_owner": {"type": "dict"},
}


def _layer(module: AnsibleModule) -> _layers.Layer:
    """The layer that the options name."""
    options = module.params
    inputs = {**options["inputs"], **(options["_inputs"] or {})}
    parent = Path(options["parent"])
    digest = options["parent_digest"] or _layers.digest_of(parent)
    return _layers.Layer(Workspace(options["workspace"]), options["image"], options["stage"], parent, digest, inputs)


def _opened(module: AnsibleModule, only_ask: bool) -> Result:
    options = module.params
    layer = _layer(module)
    result = Result(extra={"path": str(layer.path), "digest": layer.digest, "cached": True})
    if options["packages"]:
        result.extra["packages"] = str(layer.packages)
    reason = _layers.flaw(layer, options["packages"])
    if reason is None and not only_ask and not _layers.touch(layer.workspace, layer.path):
        reason = f"{layer.path.name} was removed from the cache meanwhile"
    if reason is None:
        result.extra["facts"] = _layers.facts(layer)
        return result
    result.extra["cached"] = False
    result.diff = _layers.diff(layer)
    result.act(f"run {layer.stage}: {reason}")
    if only_ask:
        return result
    controller = _guest.Controller(**(options["_controller"] or {"here": True, "root": True}))
    way = _guest.choose(options["connection"], controller)
    _guest.check_parent(layer)
    opened = _guest.open_layer(layer, Owner.load(options["_owner"]), way)
    result.actions += opened.notes
    result.extra.update(layer_id=opened.home.name, mount=opened.mount, connection_vars=opened.variables)
    return result


def _committed(module: AnsibleModule) -> Result:
    options = module.params
    layer, kept = _guest.commit_layer(
        Workspace(options["workspace"]),
        options["image"],
        options["stage"],
        forbidden=options["forbidden"],
        packages=options["packages"],
        facts=options["facts"],
    )
    result = Result(extra={"path": str(layer.path), "digest": layer.digest, "facts": _layers.facts(layer)})
    if options["packages"]:
        result.extra["packages"] = str(layer.packages)
    result.act(f"keep {layer.path.name}" if kept else f"drop it for the same {layer.path.name} of another build")
    return result


def _discarded(module: AnsibleModule) -> Result:
    options = module.params
    done = _guest.discard_layer(
        Workspace(options["workspace"]), options["image"], options["stage"], keep=options["keep"]
    )
    result = Result()
    if done:
        result.act(done)
        result.extra.update({"kept": done} if options["keep"] else {})
    return result


def work(module: AnsibleModule) -> Result:
    """Do what the state says."""
    state = module.params["state"]
    check_image_name(module.params["image"])
    if not re.fullmatch(r"[a-z][a-z0-9_]*", module.params["stage"]):
        raise FactoryError(
            f"{module.params['stage']!r} cannot be the name of a stage",
            key="stage",
            mend="use lower-case letters, digits and '_' only",
        )
    if state == "opened":
        return _opened(module, only_ask=module.check_mode)
    if module.check_mode:
        return Result()
    return _committed(module) if state == "committed" else _discarded(module)


def main() -> None:
    """The module."""
    run_module(
        SPEC,
        work,
        required_if=[("state", "opened", ["parent"])],
    )


if __name__ == "__main__":
    main()
