#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of an action plugin, which does all the work."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_definition
short_description: Collect and check the definition of an image
version_added: 0.1.0
description:
  - Collects every variable of the host whose name begins with C(image_), and checks it against the entry point C(image)
    of the role C(cloudimg.factory.definition), which lists them all.
  - Bad values, and names that are not known, end with one line that tells the file and the line in which the variable
    stands, and how to mend it.
  - It runs on the controller and connects to nothing.
extends_documentation_fragment:
  - cloudimg.factory._attributes
  - cloudimg.factory._attributes.info_module
seealso:
  - module: cloudimg.factory.image_build
author:
  - cloudimg.factory contributors (@cloudimg-factory)
"""

EXAMPLES = r"""
- name: Check the definition of this host's image
  cloudimg.factory.image_definition:
  register: checked
"""

RETURN = r"""
definition:
  description:
    - The definition with all its defaults. Sizes in bytes stand beside the original (C(image_disk.size_bytes)), and
      names of files on the controller are absolute.
  returned: success
  type: dict
  sample:
    image_title: Debian 12
    image_version: "202501311200"
    image_disk: {size: 8G, size_bytes: 8589934592}
version:
  description: The version of a build that begins now.
  returned: success
  type: str
  sample: "202501311200"
digest:
  description:
    - SHA-256 of all that goes into the image. The same digest means the same image.
    - C(image_version), C(image_workspace), C(image_builder), C(image_connection), C(image_keep_on_failure),
      C(image_cache_max) and C(image_timeouts) do not count.
  returned: success
  type: str
  sample: 0f343b0931126a20f133d67c2b018a3b0f343b0931126a20f133d67c2b018a3b
generation:
  description: How many parents the image has, one above the other; 0 for one that is installed from a medium.
  returned: success
  type: int
  sample: 0
inputs:
  description: What goes into the image beside the definition.
  returned: success
  type: dict
  contains:
    stage:
      description: Digests of the roles of this collection that make the image.
      returned: success
      type: dict
      sample: {media: 0f343b0931126a20f133d67c2b018a3b0f343b0931126a20f133d67c2b018a3b}
    variables:
      description: Variables of those roles that are set to other values than their defaults.
      returned: success
      type: dict
      sample: {media_packages: [curl]}
    role:
      description: Digests of the roles in C(image_roles). Other roles that they depend on do not count.
      returned: when there are any
      type: dict
      sample: {acme.worker: 0f343b0931126a20f133d67c2b018a3b0f343b0931126a20f133d67c2b018a3b}
    scripts:
      description: Name and digest of each file in C(image_scripts), with its arguments and environment if it has any.
      returned: when there are any
      type: list
      elements: dict
      sample: [{name: setup.sh, sha256: 0f343b0931126a20f133d67c2b018a3b0f343b0931126a20f133d67c2b018a3b}]
    files:
      description: Name and digest of each C(src) in C(applications_files).
      returned: when there are any
      type: list
      elements: dict
      sample: [{name: worker.conf, sha256: 0f343b0931126a20f133d67c2b018a3b0f343b0931126a20f133d67c2b018a3b}]
    parent:
      description: The name of the parent, with the digest of all that makes the disk on which its children stand.
      returned: with C(image_parent)
      type: dict
      sample: {debian-12: 0f343b0931126a20f133d67c2b018a3b0f343b0931126a20f133d67c2b018a3b}
    answer_file:
      description: Digest of C(image_medium.answer_file).
      returned: when there is one
      type: str
      sample: 0f343b0931126a20f133d67c2b018a3b0f343b0931126a20f133d67c2b018a3b
"""
