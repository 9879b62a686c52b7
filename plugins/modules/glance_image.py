#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Publish builds in OpenStack's Image service."""

from __future__ import annotations

DOCUMENTATION = r"""
module: glance_image
short_description: Publish builds in OpenStack's Image service (Glance), version by version
version_added: 0.1.0
description:
  - Brings an artifact of a build into Glance as a new image beside those of former versions, with properties out of its
    descriptor, and offers it when it is there as a whole. Retires versions.
  - It looks up first, by the properties of a former run and by the checksum of the data (C(os_hash_value)). Data that are there
    are not sent again.
  - While data are sent, the image is private and hidden. When its checksum is not that of the build, it is removed.
  - The data are read while they are sent; memory does not grow with them.
  - What a single image needs that is no build, such as a name, a file and properties, M(openstack.cloud.image) does as well.
  - Needs the Python libraries C(openstacksdk) and C(requests).
extends_documentation_fragment:
  - cloudimg.factory._attributes
  - cloudimg.factory._attributes.job
  - cloudimg.factory._openstack
attributes:
  check_mode:
    support: full
    details:
      - The cloud is asked, nothing is sent to it.
  diff_mode:
    support: full
    details:
      - The image before and after.
  idempotent:
    support: full
options:
  state:
    description:
      - V(present) has the version offered. An image that is there already is reactivated and shown, without its data being sent.
      - V(candidate) has it there for tests, private and hidden; V(present) promotes it later. A version that is offered stays so.
      - V(hidden) has it in no list any more. Who knows its ID can still use it.
      - V(deactivated) hides it, and has its data given to nobody.
      - V(absent) removes it. Where its data are in use, it is hidden and deactivated until a later run can remove it.
    type: str
    choices: [present, candidate, hidden, deactivated, absent]
    default: present
  descriptor:
    description: Path of the C(descriptor.json) of the build; needed for O(state=present) and O(state=candidate).
    type: path
  image:
    description: The image to retire, where there is no O(descriptor).
    type: str
  version:
    description: Its version.
    type: str
  reason:
    description: Why it is retired, for RV(ignore:actions).
    type: str
    default: retired
  artifact:
    description:
      - The format or file name of the artifact. By default the first one in C(qcow2), C(raw), C(vmdk), C(vdi), C(vhd), C(vhdx) or
        C(ova).
    type: str
  name:
    description:
      - The name of the image. C({image}) and C({version}) stand for those of the build. Names need not be unique in Glance.
    type: str
    default: "{image}-{version}"
  method:
    description:
      - V(put) sends the data to where they stay.
      - V(glance-direct) sends them to a staging area, from which the server imports them; it may convert them, and copy them to
        more stores.
      - V(web-download) has the server fetch them from O(uri).
    type: str
    choices: [put, glance-direct, web-download]
    default: put
  uri:
    description: The URL of the artifact, for O(method=web-download). The server has to reach it.
    type: str
  visibility:
    description: Who may use the image. V(public) and V(community) usually need a role of their own.
    type: str
    choices: [private, shared, community, public]
    default: private
  members:
    description:
      - IDs of the projects with which the image is shared, all of them; for O(visibility=shared). Each of them has to accept
        it. Without this option, members stay as they are.
    type: list
    elements: str
  protected:
    description:
      - Whether the image can be removed by nobody before that is taken back. By default it stays as it is.
      - With O(state=absent), V(false) has a protected image removed.
    type: bool
  os_type:
    description: The property C(os_type).
    type: str
    choices: [linux, windows]
    default: linux
  os_admin_user:
    description: The property C(os_admin_user), the account that is made for who starts the image.
    type: str
  min_disk:
    description: The disk that it needs, in GiB. By default the artifact's virtual size.
    type: int
  min_ram:
    description: The memory that it needs, in MiB. By default that of the descriptor.
    type: int
  properties:
    description:
      - More properties, such as C(hw_firmware_type). They count more than those that follow from the descriptor, which are
        C(architecture), C(os_distro), C(os_version), the bus of disk and network (C(virtio)), and all of its C(attributes).
      - Properties that the image has beside these stay.
    type: dict
    default: {}
  egi:
    description: Whether it also gets the properties that vmcatcher and atrope set, by which sites of EGI know an image.
    type: bool
    default: false
  mpuri:
    description: The marketplace URI of the image (C(ad:mpuri)), for O(egi=true).
    type: str
  former:
    description: What becomes of the versions before, once this one is offered.
    type: str
    choices: [hidden, deactivated, visible]
    default: hidden
  keep:
    description: So many of the newest versions stay, this one included; former ones beyond are removed. By default all stay.
    type: int
  adopt:
    description:
      - Whether an image of this project with the same data and formats, which this module has not made, is taken instead of
        sending them again; V(name) does so where its name is O(name), too.
    type: str
    choices: [name, any, never]
    default: name
  stale:
    description:
      - Hours after which what a killed run on another machine has left half-made is removed; what this machine has left goes at
        once.
    type: int
    default: 24
  timeout:
    description: Seconds that the server has for an import, or another process for the same version.
    type: int
    default: 1800
author:
  - cloudimg.factory contributors (@cloudimg-factory)
seealso:
  - module: cloudimg.factory.glance_image_info
  - module: openstack.cloud.image
  - module: cloudimg.factory.image_catalogue
"""

EXAMPLES = r"""
- name: Publish a build
  cloudimg.factory.glance_image:
    cloud: images
    descriptor: /srv/cloudimg/builds/debian-12/202501311200/descriptor.json
    name: Debian 12
    visibility: shared
    members:
      - 5a1e4e2f0c0b4b0e9d7a7d1f6f3c2b1a
    os_admin_user: debian
    keep: 3
  register: published

- name: Have the cloud fetch it from where it is served
  cloudimg.factory.glance_image:
    auth_type: v3applicationcredential
    auth:
      auth_url: https://cloud.example.org:5000/v3
      application_credential_id: 21dced0fd20347869b93710d2b98aae0
      application_credential_secret: "{{ vault_cloud_secret }}"
    descriptor: /srv/cloudimg/builds/debian-12/202501311200/descriptor.json
    method: web-download
    uri: https://www.example.org/images/debian-12/202501311200/debian-12-202501311200.qcow2

- name: Retire a version
  cloudimg.factory.glance_image:
    cloud: images
    state: hidden
    image: debian-12
    version: "202501311200"
    reason: openssl is outdated
"""

RETURN = r"""
glance:
  description: The image as Glance has it; C({}) where it has none.
  returned: success
  type: dict
  sample: {id: 6e1b8d31-4a0e-4c6e-93b1-3f4f0d3f6a55, name: debian-12-202501311200, status: active, os_hidden: false}
publication:
  description: What finds it there again.
  returned: success, where there is an image
  type: dict
  sample: {id: 6e1b8d31-4a0e-4c6e-93b1-3f4f0d3f6a55, name: debian-12-202501311200, url:
  "https://cloud.example.org:9292/v2/images/6e1b8d31"}
retired:
  description: Whether it is as O(state) says; V(false) where data that are in use keep an image from being removed.
  returned: success, with O(state=hidden), O(state=deactivated) or O(state=absent)
  type: bool
  sample: true
image:
  description: The descriptor of the build.
  returned: success, with O(descriptor)
  type: dict
  sample: {schema: 1, image: debian-12, version: "202501311200"}
actions:
  description: What was done, and why.
  returned: success
  type: list
  elements: str
  sample: ["debian-12-202501311200: version 202501311200 is not in Glance"]
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 12.7
"""

import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _descriptor_files, _glance_properties
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._glance import Shelf, Source, Terms, view
from ansible_collections.cloudimg.factory.plugins.module_utils._glance_api import OPTIONS, connect
from ansible_collections.cloudimg.factory.plugins.module_utils._module import JOB_OPTION, Result, made_later, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

SPEC: dict[str, t.Any] = {
    **OPTIONS,
    "state": {
        "type": "str",
        "choices": ["present", "candidate", "hidden", "deactivated", "absent"],
        "default": "present",
    },
    "descriptor": {"type": "path"},
    "image": {"type": "str"},
    "version": {"type": "str"},
    "reason": {"type": "str", "default": "retired"},
    "artifact": {"type": "str"},
    "name": {"type": "str", "default": "{image}-{version}"},
    "method": {"type": "str", "choices": ["put", "glance-direct", "web-download"], "default": "put"},
    "uri": {"type": "str"},
    "visibility": {"type": "str", "choices": ["private", "shared", "community", "public"], "default": "private"},
    "members": {"type": "list", "elements": "str"},
    "protected": {"type": "bool"},
    "os_type": {"type": "str", "choices": ["linux", "windows"], "default": "linux"},
    "os_admin_user": {"type": "str"},
    "min_disk": {"type": "int"},
    "min_ram": {"type": "int"},
    "properties": {"type": "dict", "default": {}},
    "egi": {"type": "bool", "default": False},
    "mpuri": {"type": "str"},
    "former": {"type": "str", "choices": ["hidden", "deactivated", "visible"], "default": "hidden"},
    "keep": {"type": "int"},
    "adopt": {"type": "str", "choices": ["name", "any", "never"], "default": "name"},
    "stale": {"type": "int", "default": 24},
    "timeout": {"type": "int", "default": 1800},
    "_job": JOB_OPTION,
}
REQUIRED = [
    ("state", "present", ("descriptor",)),
    ("state", "candidate", ("descriptor",)),
    ("method", "web-download", ("uri",)),
]
TOGETHER = [("image", "version")]


def _check(given: t.Mapping[str, t.Any]) -> None:
    if given["members"] is not None and given["visibility"] != "shared":
        raise FactoryError("is only for shared images", key="members", mend="give visibility: shared, or leave it out")
    for key, least in (
        ("keep", 1),
        ("stale", 1),
        ("min_disk", 0),
        ("min_ram", 0),
        ("timeout", 1),
        ("request_timeout", 1),
    ):
        if given[key] is not None and given[key] < least:
            raise FactoryError(f"must be at least {least}", key=key, mend="give a larger number")
    if not given["name"].strip():
        raise FactoryError("must not be empty", key="name", mend="leave it out, or give a name")


def _offer(shelf: Shelf, path: Path, build: _descriptor.Descriptor, given: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    artifact = _glance_properties.choose(build, given["artifact"], str(path))
    wanted = _glance_properties.describe(build, artifact, given)

    def source() -> Source:
        file = _descriptor_files.checked(path, build, artifact)
        checksums = dict(artifact.checksums)
        return Source(file, artifact.size, checksums, given["method"], given["uri"], float(given["timeout"]))

    terms = Terms(
        visibility=given["visibility"],
        protected=given["protected"],
        members=tuple(given["members"]) if given["members"] is not None else None,
        former=given["former"],
        keep=given["keep"],
        adopt=given["adopt"],
        stale=given["stale"],
    )
    with shelf.hold(f"{build.identifier} {build.version}", given["timeout"]):
        return shelf.present(wanted, source, terms, candidate=given["state"] == "candidate")


def _retire(shelf: Shelf, build: _descriptor.Descriptor | None, given: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    image, version = (build.image, build.version) if build else (given["image"], given["version"])
    found = shelf.find(image, version, build.identifier if build else None)
    done = [shelf.retire(each, given["state"], given["reason"].strip(), given["protected"]) for each in found]
    shelf.result.extra["retired"] = all(done)
    if shelf.result.changed:
        after = {} if given["state"] == "absent" and all(done) else {**found[0], "os_hidden": True}
        shelf.result.diff = {"before": view(found[0]), "after": view(after or None)}
    return found[0] if found and given["state"] != "absent" else {}


def work(module: AnsibleModule) -> Result:
    """Bring the version into the state that the options ask for."""
    given = module.params
    _check(given)
    offer = given["state"] in ("present", "candidate")
    path = Path(given["descriptor"]).absolute() if given["descriptor"] else None
    if module.check_mode and path and not path.exists() and offer:
        return made_later(path, "it is published")
    build = _descriptor.load(path) if path else None
    if offer and path and build:
        _descriptor.must_be_alive(build.expires, path)
    if not build and not given["image"]:
        raise FactoryError("says which version to retire", key="image", mend="give image and version, or a descriptor")
    glance = connect(given, Progress("glance", given["_job"]))
    shelf = Shelf(glance, check_mode=module.check_mode)
    found = _offer(shelf, path, build, given) if offer and path and build else _retire(shelf, build, given)
    for warning in shelf.warnings:
        module.warn(warning)
    result = shelf.result
    result.image = build.document() if build else None
    result.extra["glance"] = found
    if found.get("id"):
        url = f"{glance.where}images/{found['id']}"
        result.extra["publication"] = {"id": found["id"], "name": found["name"], "url": url}
    return result


def main() -> None:
    """The module."""
    run_module(SPEC, work, required_if=REQUIRED, required_together=TOGETHER)


if __name__ == "__main__":
    main()
