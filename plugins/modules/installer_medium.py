#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Get a verified installation ISO into the media cache."""

from __future__ import annotations

DOCUMENTATION = r"""
module: installer_medium
short_description: Get a verified installation ISO into the media cache
version_added: 0.1.0
description:
  - Fetches an installation ISO from a URL or a path, or has FAI build one from the distribution's own packages, and
    keeps it as C(cache/media/<sha256>.iso) in the workspace.
  - A download is hashed while it is written, goes on where an earlier one broke off, and gets its final name only once
    its checksum is right and it is a whole ISO 9660 image.
  - A definition that was answered before is answered from the cache, without network.
extends_documentation_fragment:
  - cloudimg.factory._attributes
  - cloudimg.factory._attributes.job
attributes:
  check_mode:
    support: full
    details:
      - Tells what would be fetched or built, and why. Checksum files are read, nothing is written.
  diff_mode:
    support: full
    details:
      - Shows the SHA-256 of this definition's medium before and after.
  idempotent:
    support: full
    details:
      - By the content's checksum. With O(refresh=true) and O(family=fai) a new ISO is built each time.
options:
  workspace:
    description: The workspace on the builder.
    type: path
    required: true
  family:
    description:
      - The installer's family, for example V(preseed). V(fai) builds the ISO, which takes root; any other needs O(url)
        or O(path), and O(checksum).
    type: str
    required: true
  url:
    description: Where the ISO can be downloaded by http or https. Proxies are taken from the environment.
    type: str
  path:
    description: Where the ISO is on the builder.
    type: path
  checksum:
    description:
      - What the ISO must be, as V(sha256:<hex>) or V(sha512:<hex>).
      - Or the URL or path of the vendor's checksum file, in GNU or BSD style. Best together with O(signature) and
        O(keyring).
    type: str
  signature:
    description:
      - URL or path of the checksum file's detached OpenPGP signature, or of the clearsigned checksum file.
      - Not needed where the file that O(checksum) names is clearsigned itself.
    type: str
  keyring:
    description:
      - Path of the vendor's OpenPGP public keys on the builder, armored or binary.
      - Where it is given, a checksum file that is not signed by one of them is refused.
    type: path
  fingerprints:
    description: Full fingerprints of those keys in O(keyring) that are trusted; all of them, where none is given.
    type: list
    elements: str
    default: []
  fai:
    description:
      - What the ISO of O(family=fai) is built from; C(suite), C(packages), C(installer_packages) and C(config_space)
        are needed, C(sources) and C(setup) are optional. See the role P(cloudimg.factory.media#role).
    type: dict
  refresh:
    description: Fetch the checksum file again although it was verified before, or build the ISO again.
    type: bool
    default: false
  timeout:
    description: Seconds for which a server may be silent.
    type: int
    default: 60
  boot:
    description:
      - How the installer is started, for the module M(cloudimg.factory.base_vm). V(direct) boots O(kernel) and
        O(initrd) with the ISO as a disk, V(location) leaves it to virt-install, V(cdrom) uses the ISO's boot loader.
    type: str
    choices: [cdrom, direct, location]
    default: location
  kernel:
    description: Path of the installer's kernel in the ISO; it must be there.
    type: str
  initrd:
    description: Path of the installer's initrd in the ISO; it must be there.
    type: str
  kernel_args:
    description: Arguments for the installer's kernel.
    type: str
    default: ''
  failure_lines:
    description: Regular expressions of lines on the console that mean that the installation failed.
    type: list
    elements: str
    default: []
  success_lines:
    description: Regular expressions of lines on the console that mean that it succeeded.
    type: list
    elements: str
    default: []
  question_lines:
    description: Regular expressions of lines on the console that mean that the installer waits for an answer.
    type: list
    elements: str
    default: []
  log:
    description: File for the output of the tools. By default one in the workspace's C(run).
    type: path
author:
  - cloudimg.factory contributors (@cloudimg-factory)
seealso:
  - module: cloudimg.factory.base_vm
  - module: ansible.builtin.get_url
"""

EXAMPLES = r"""
- name: Get Debian's installer, verified by its vendor's signature
  cloudimg.factory.installer_medium:
    workspace: /srv/cloudimg
    family: preseed
    url: https://mirror.example.org/debian-cd/debian-12-amd64-netinst.iso
    checksum: https://mirror.example.org/debian-cd/SHA256SUMS
    signature: https://mirror.example.org/debian-cd/SHA256SUMS.sign
    keyring: /usr/share/keyrings/debian-role-keys.gpg
    kernel: install.amd/vmlinuz
    initrd: install.amd/initrd.gz
  register: installer

- name: Take an ISO that is there already
  cloudimg.factory.installer_medium:
    workspace: /srv/cloudimg
    family: preseed
    path: /srv/iso/debian-12-amd64-netinst.iso
    checksum: sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
"""

RETURN = r"""
medium:
  description: The medium.
  returned: success
  type: dict
  contains:
    path:
      description: The ISO in the cache; null in check mode where it is not there.
      type: str
      returned: success
      sample: /srv/cloudimg/cache/media/0f343b0931126a20f133d67c2b018a3b0f343b0931126a20f133d67c2b018a3b.iso
    sha256:
      description: Its SHA-256; null in check mode where it cannot be known.
      type: str
      returned: success
      sample: 0f343b0931126a20f133d67c2b018a3b0f343b0931126a20f133d67c2b018a3b
    size:
      description: Its size in bytes; null in check mode where it is not there.
      type: int
      returned: success
      sample: 659554304
    label:
      description: Its volume label.
      type: str
      returned: success
      sample: Debian 12.0.0 amd64 n
    needs:
      description: Bytes that the installed system takes, where that is known (O(family=fai)).
      type: int
      returned: success
      sample: 734003200
    source:
      description: Where it came from.
      type: str
      returned: success
      sample: https://mirror.example.org/debian-cd/debian-12-amd64-netinst.iso
    family:
      description: As given; so are C(boot), C(kernel), C(initrd), C(kernel_args) and all the C(…_lines).
      type: str
      returned: success
      sample: preseed
cached:
  description: Whether it was in the cache.
  returned: success
  type: bool
  sample: true
actions:
  description: What was done (or would be, in check mode), and why.
  returned: always
  type: list
  elements: str
  sample: ['fetch https://mirror.example.org/debian-cd/debian-12-amd64-netinst.iso: it is not in the cache']
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 12.5
log_path:
  description: The log of the tools that built the ISO.
  returned: when O(family=fai)
  type: str
  sample: /srv/cloudimg/run/media-fai.log
"""

import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils import _iso
from ansible_collections.cloudimg.factory.plugins.module_utils._download import Client
from ansible_collections.cloudimg.factory.plugins.module_utils._medium import MediaCache
from ansible_collections.cloudimg.factory.plugins.module_utils._module import JOB_OPTION, Result, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._origins import Definition, origin_of
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.plugins.module_utils._state import Workspace

KNOWLEDGE: dict[str, t.Any] = {
    "boot": {"type": "str", "choices": ["cdrom", "direct", "location"], "default": "location"},
    "kernel": {"type": "str"},
    "initrd": {"type": "str"},
    "kernel_args": {"type": "str", "default": ""},
    "failure_lines": {"type": "list", "elements": "str", "default": []},
    "success_lines": {"type": "list", "elements": "str", "default": []},
    "question_lines": {"type": "list", "elements": "str", "default": []},
}
SPEC: dict[str, t.Any] = {
    "workspace": {"type": "path", "required": True},
    "family": {"type": "str", "required": True},
    "url": {"type": "str"},
    "path": {"type": "path"},
    "checksum": {"type": "str"},
    "signature": {"type": "str"},
    "keyring": {"type": "path", "no_log": False},
    "fingerprints": {"type": "list", "elements": "str", "default": []},
    "fai": {"type": "dict"},
    "refresh": {"type": "bool", "default": False},
    "timeout": {"type": "int", "default": 60},
    "log": {"type": "path"},
    **KNOWLEDGE,
    "_job": JOB_OPTION,
}


def work(module: AnsibleModule) -> Result:
    """Find or get the medium, and see that the installer is in it."""
    given = module.params
    progress = Progress("media", given["_job"])
    workspace = Workspace(given["workspace"])
    log = Path(given["log"] or workspace.run / f"media-{given['family']}.log")
    places = ("family", "url", "path", "checksum", "signature", "keyring", "fai")
    definition = Definition(fingerprints=tuple(given["fingerprints"]), **{name: given[name] for name in places})
    origin = origin_of(definition, Client(progress, timeout=given["timeout"]), progress, log)
    provided = MediaCache(workspace, progress).provide(origin, refresh=given["refresh"], check=module.check_mode)
    for warning in origin.warnings:
        module.warn(warning)
    files = [given[name] for name in ("kernel", "initrd") if given[name]]
    if provided.path:
        _iso.require_files(provided.path, files, where=provided.source, family=given["family"])

    result = Result(log_path=str(log) if given["family"] == "fai" else None)
    for action in provided.actions:
        result.act(action)
    if result.changed:
        result.diff = {"before": {"sha256": provided.before}, "after": {"sha256": provided.sha256}}
    medium = {
        "path": str(provided.path) if provided.path else None,
        **{name: getattr(provided, name) for name in ("sha256", "size", "label", "needs", "source")},
        **{name: given[name] for name in ("family", *KNOWLEDGE)},
    }
    result.extra = {"medium": medium, "cached": not provided.actions}
    return result


def main() -> None:
    """The module."""
    run_module(SPEC, work)


if __name__ == "__main__":
    main()
