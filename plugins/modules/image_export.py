#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Export a prepared disk to artifacts and describe them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_export
short_description: Export a prepared disk to artifacts, with checksums and a descriptor
version_added: 0.1.0
description:
  - Flattens a layer, with all the layers below it, in one pass to each artifact, several of them at the same time. All are
    checked, compared with the layer and hashed before any gets its name.
  - Then writes C(packages.json) and C(descriptor.json), all that publishing reads, beside the artifacts.
  - The same source and options give the same bytes.
  - What the stage assess has written into the descriptor stays there, unless artifacts are made again.
extends_documentation_fragment:
  - cloudimg.factory._attributes
  - cloudimg.factory._attributes.job
attributes:
  check_mode:
    support: full
    details:
      - Sizes and checksums of artifacts that would be made are not known.
  diff_mode:
    support: full
    details:
      - The descriptor before and after.
  idempotent:
    support: full
    details:
      - By the digest of the source, the options, and the checksums of the artifacts that are there.
options:
  image:
    description: The name of the image.
    type: str
    required: true
  version:
    description: The version of the build.
    type: str
    required: true
  directory:
    description: The build directory, where the artifacts, C(packages.json) and C(descriptor.json) go.
    type: path
    required: true
  source:
    description: The qcow2 to export, usually the uppermost layer.
    type: path
    required: true
  source_digest:
    description:
      - What tells this source from another one; the digest of the layer.
      - By default the C(digest) in the JSON file beside the layer; where there is none, the SHA-256 of all its files.
    type: str
  formats:
    description:
      - The formats to export to. The first one is what consumers get that do not ask for one.
      - Each is one of V(qcow2), V(raw), V(raw.gz), V(raw.xz), V(raw.zst), V(vmdk), V(vdi), V(vhd), V(vhdx), V(ova)
        and V(box), or a mapping with C(format) and, as far as wanted, its options.
      - Of V(qcow2) and V(box) (Vagrant's, for libvirt) these are C(compression), C(cluster_size) and C(level).
      - Of V(raw.gz) (1 to 9), V(raw.xz) (0 to 6) and V(raw.zst) (1 to 19) it is C(level).
      - Of V(vmdk) it is C(subformat), V(streamOptimized) (default) or V(monolithicSparse).
      - Of V(vhd) these are C(subformat), V(dynamic) (default) or V(fixed), and C(force_size); without the latter, which is
        the default, the size is rounded up to what old readers can express.
      - Of V(ova) these are C(ovf), V(1.0) (default) or V(2.0); C(controller), V(ide) (default), V(sata), V(lsilogic) or
        V(pvscsi); and C(nic), V(vmxnet3) (default), V(e1000) or V(virtio).
      - C(label), of any, is a word that the name of the file gets, needed where a format is there twice.
    type: list
    elements: raw
    default: [qcow2]
  compression:
    description:
      - How a qcow2 is compressed that does not say it itself. V(zstd) is faster to make and to read; it needs
        QEMU 5.1 wherever the image is used.
      - V(zlib) can be read everywhere.
    type: str
    choices: [zstd, zlib]
    default: zstd
  cluster_size:
    description:
      - Cluster size of a qcow2 that does not say it itself, such as V(64K) or V(2M); a power of two.
      - By default what made the smallest file, 1M for V(zstd) and 64K for V(zlib).
    type: bytes
  level:
    description:
      - How hard a qcow2 with O(compression) is compressed that does not say it itself, 1 to 19 for V(zstd), 1 to 9 for V(zlib).
      - By default about what qemu-img does, V(3) or V(6). At V(6), V(zstd) makes files that are 5 % smaller in twice the time.
    type: int
  ova_certificate:
    description:
      - A file on the builder with the X.509 certificate, in PEM, by which OVA files are signed. Certificates of those
        that issued it may follow.
      - It has to be valid now.
    type: path
  ova_key:
    description: A file on the builder with its RSA key, in PEM, without a passphrase.
    type: path
  definition:
    description: The image definition, the C(image_*) variables with their names; the descriptor is filled from it.
    type: dict
    default: {}
  definition_digest:
    description: The digest of the definition, for the descriptor's provenance.
    type: str
  stages:
    description:
      - The records of the stages before; their digests go into the descriptor's provenance, C(facts.scores) of C(harden) into
        its C(scores), and the medium or C(parent) of C(base_vm) into its C(source).
    type: dict
    default: {}
  packages_file:
    description:
      - JSON file with C(packages), a list of C(name), C(version) and C(arch) of what is installed in the image, and
        C(os_release), a dictionary.
      - Without it there is no C(packages.json).
    type: path
author:
  - cloudimg.factory contributors (@cloudimg-factory)
seealso:
  - module: cloudimg.factory.image_catalogue
"""

EXAMPLES = r"""
- name: Export for VMware and VirtualBox too, and for whoever writes the disk to a device
  cloudimg.factory.image_export:
    image: debian-12
    version: "202501311200"
    directory: /srv/cloudimg/builds/debian-12/202501311200
    source: /srv/cloudimg/cache/layers/sanitize-0f343b0931126a20f133d67c2b018a3b.qcow2
    formats:
      - qcow2
      - {format: qcow2, compression: zlib, label: compat}
      - {format: ova, ovf: "2.0"}
      - raw.zst
    ova_certificate: /etc/cloudimg/images.crt
    ova_key: /etc/cloudimg/images.key
    definition:
      image_os: {distribution: debian, version: "12", arch: x86_64}

- name: Export the last layer
  cloudimg.factory.image_export:
    image: debian-12
    version: "202501311200"
    directory: /srv/cloudimg/builds/debian-12/202501311200
    source: /srv/cloudimg/cache/layers/sanitize-0f343b0931126a20f133d67c2b018a3b.qcow2
    definition:
      image_title: Debian 12
      image_os: {distribution: debian, version: "12", arch: x86_64}
      image_expires: 180d
"""

RETURN = r"""
descriptor:
  description: Path of the descriptor.
  returned: success
  type: str
  sample: /srv/cloudimg/builds/debian-12/202501311200/descriptor.json
artifacts:
  description: The artifacts.
  returned: success
  type: list
  elements: dict
  contains:
    path:
      description: The file.
      type: str
      returned: success
      sample: /srv/cloudimg/builds/debian-12/202501311200/debian-12-202501311200.qcow2
    format:
      description: Its format.
      type: str
      returned: success
      sample: qcow2
    virtual_size:
      description: Size of the disk in bytes.
      type: int
      returned: success
      sample: 8589934592
    size:
      description: Size of the file in bytes.
      type: int
      returned: when the artifact is there
      sample: 190709760
    checksums:
      description: C(md5), C(sha1), C(sha256) and C(sha512) of the file, in lower-case hexadecimal.
      type: dict
      returned: when the artifact is there
      sample: {sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855}
image:
  description: The descriptor.
  returned: success
  type: dict
  sample: {schema: 1, image: debian-12, version: "202501311200"}
actions:
  description: What was done, and why.
  returned: success
  type: list
  elements: str
  sample: ["debian-12-202501311200.qcow2: is not exported yet", "descriptor.json: is missing"]
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 14.2
"""

import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils._definition import Checker, formats
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._export import Request, export
from ansible_collections.cloudimg.factory.plugins.module_utils._formats import LEVELS
from ansible_collections.cloudimg.factory.plugins.module_utils._module import JOB_OPTION, Result, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.plugins.module_utils._qemu_img import COMPRESSIONS

SPEC: dict[str, t.Any] = {
    "image": {"type": "str", "required": True},
    "version": {"type": "str", "required": True},
    "directory": {"type": "path", "required": True},
    "source": {"type": "path", "required": True},
    "source_digest": {"type": "str"},
    "formats": {"type": "list", "elements": "raw", "default": ["qcow2"]},
    "compression": {"type": "str", "choices": list(COMPRESSIONS), "default": "zstd"},
    "cluster_size": {"type": "bytes"},
    "level": {"type": "int"},
    "ova_certificate": {"type": "path"},
    "ova_key": {"type": "path", "no_log": False},
    "definition": {"type": "dict", "default": {}},
    "definition_digest": {"type": "str"},
    "stages": {"type": "dict", "default": {}},
    "packages_file": {"type": "path"},
    "_job": JOB_OPTION,
}


def work(module: AnsibleModule) -> Result:
    """Make the request out of the options and have it done."""
    options = dict(module.params)
    progress = Progress("export", options.pop("_job"))
    for name in ("directory", "source", "packages_file", "ova_certificate", "ova_key"):
        options[name] = Path(options[name]).absolute() if options[name] else None
    options["formats"] = tuple(formats(options["formats"], Checker(lambda _path: None), "formats"))
    least, most = LEVELS[options["compression"]]
    if options["level"] is not None and not least <= options["level"] <= most:
        raise FactoryError(
            f"is not from {least} to {most}", key="level", mend=f"correct it for {options['compression']}"
        )
    return export(Request(**options), progress, check_mode=module.check_mode)


def main() -> None:
    """The module."""
    run_module(SPEC, work, required_together=[("ova_certificate", "ova_key")])


if __name__ == "__main__":
    main()
