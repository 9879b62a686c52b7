#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Offer builds in OpenNebula marketplaces: in files that a web server serves, or in a private marketplace of a cloud."""

from __future__ import annotations

DOCUMENTATION = r"""
module: opennebula_marketplace
short_description: Offer builds in OpenNebula marketplaces
version_added: 0.1.0
description:
  - With O(directory), keeps a marketplace in files. Any web server may serve it, and front-ends read it by their market driver
    C(one). Its appliances are also there in YAML, as appmarket-simple keeps and checks them.
  - With O(marketplace), has the build as an appliance in a private marketplace of an OpenNebula cloud. It is made there from the
    image that M(cloudimg.factory.opennebula_appliance) has registered.
  - A marketplace offers one version of an image. A newer one takes the place of the one before.
extends_documentation_fragment:
  - cloudimg.factory._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details:
      - The appliance in O(directory) before and after.
  idempotent:
    support: full
requirements:
  - PyYAML (Python library), for O(directory)
  - pyone >= 6.0 (Python library), for O(marketplace)
options:
  state:
    description: V(present) has the build of O(descriptor) offered; V(absent) has it, or O(version), offered no longer.
    type: str
    choices: [present, absent]
    default: present
  descriptor:
    description: Path of the C(descriptor.json) of the build; needed for O(state=present).
    type: path
  identifier:
    description: The identifier of the image, where there is no O(descriptor).
    type: str
  version:
    description: The version that is offered no longer; by default that of O(descriptor), else all.
    type: str
  directory:
    description: Directory of the marketplace in files.
    type: path
  url:
    description: The URL under which readers see O(directory), which is the marketplace's C(ENDPOINT). Needed with O(directory).
    type: str
  publisher:
    description: Who publishes. Needed for O(state=present).
    type: str
  publisher_email:
    description: Their address.
    type: str
  name:
    description: Name of the appliance; by default the title of the descriptor.
    type: str
  short_description:
    description: One line about it; by default the title of the descriptor.
    type: str
  tags:
    description: Its tags; by default the name of the operating system.
    type: list
    elements: str
    default: []
  hypervisor:
    description: The hypervisor that it is for.
    type: str
    default: KVM
  opennebula_version:
    description: The versions of OpenNebula that it is for, such as V(6.8, 6.10, 7.0).
    type: str
  logo:
    description: The file name of its logo.
    type: str
  template:
    description: Attributes of its VM template that differ; strings, or dictionaries of strings.
    type: dict
    default: {}
  marketplace:
    description: Name or number of the private marketplace.
    type: str
  api_url:
    description:
      - URL of the front-end's XML-RPC interface; by default the environment variable E(ONE_URL). Needed with O(marketplace), as
        O(username) and O(password) are.
    type: str
  username:
    description: The user that publishes; by default E(ONE_USERNAME).
    type: str
  password:
    description: The password, or a login token, of O(username); by default E(ONE_PASSWORD).
    type: str
  ca_path:
    description: The CA certificates to trust, a PEM file or a directory as C(openssl rehash) makes it; by default the system's.
    type: path
  http_timeout:
    description: Seconds for which the front-end may be silent.
    type: int
    default: 120
  unencrypted:
    description: Whether the password may go over the network by plain http. On loopback it always may.
    type: bool
    default: false
  timeout:
    description: Seconds to wait for the transfer into O(marketplace).
    type: int
    default: 3600
  interval:
    description: Seconds between two looks at it.
    type: int
    default: 5
author:
  - cloudimg.factory contributors (@cloudimg-factory)
seealso:
  - module: cloudimg.factory.opennebula_appliance
"""

EXAMPLES = r"""
- name: Offer a build in a marketplace of files
  cloudimg.factory.opennebula_marketplace:
    descriptor: /srv/cloudimg/builds/debian-12/202501311200/descriptor.json
    directory: /srv/www/market
    url: https://market.example.org/
    publisher: vo.example.org

- name: Offer it in a private marketplace
  cloudimg.factory.opennebula_marketplace:
    descriptor: /srv/cloudimg/builds/debian-12/202501311200/descriptor.json
    marketplace: private
    publisher: vo.example.org
    api_url: https://one.example.org:2633/RPC2
    username: publisher
    password: "{{ vault_one_password }}"
"""

RETURN = r"""
publication:
  description: What has to be known about it later, to find and to remove it.
  returned: success
  type: dict
  sample: {identifier: 41458818-1d0e-5b8c-a4b5-6a5c3d2f1e00, version: "202501311200", directory: /srv/www/market}
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
  sample: ["/srv/www/market: Debian 12 202501311200: is not there yet"]
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 0.4
"""

import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _opennebula_market
from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor_files import checked
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, made_later, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula import OPTIONS, connect
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_cloud import Cloud
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_directory import About, Directory
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

SPEC: dict[str, t.Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "descriptor": {"type": "path"},
    "identifier": {"type": "str"},
    "version": {"type": "str"},
    "directory": {"type": "path"},
    "url": {"type": "str"},
    "publisher": {"type": "str"},
    "publisher_email": {"type": "str"},
    "name": {"type": "str"},
    "short_description": {"type": "str"},
    "tags": {"type": "list", "elements": "str", "default": []},
    "hypervisor": {"type": "str", "default": "KVM"},
    "opennebula_version": {"type": "str"},
    "logo": {"type": "str"},
    "template": {"type": "dict", "default": {}},
    "marketplace": {"type": "str"},
    **{name: {key: value for key, value in spec.items() if key != "required"} for name, spec in OPTIONS.items()},
    "timeout": {"type": "int", "default": 3600},
    "interval": {"type": "int", "default": 5},
}


def work(module: AnsibleModule) -> Result:
    """Have the build offered, or not."""
    given = module.params
    path = Path(given["descriptor"]).absolute() if given["descriptor"] else None
    if module.check_mode and path and not path.exists() and given["state"] == "present":
        return made_later(path, "it is published")
    build = _descriptor.load(path) if path else None
    if path and build and given["state"] == "present":
        _descriptor.must_be_alive(build.expires, path)
    about = About(
        publisher=given["publisher"] or "",
        name=given["name"],
        email=given["publisher_email"],
        summary=given["short_description"],
        tags=given["tags"],
        hypervisor=given["hypervisor"],
        versions=given["opennebula_version"],
        logo=given["logo"],
        template=given["template"],
    )
    identifier = build.identifier if build else given["identifier"]
    version = given["version"] or (build.version if build else None)
    if given["directory"]:
        place = Directory(Path(given["directory"]).absolute(), given["url"], module.check_mode)
        if given["state"] == "present" and path and build:
            artifact = next((each for each in build.artifacts if each.format in ("qcow2", "raw")), None)
            if artifact is None:
                raise FactoryError(
                    "has no artifact in qcow2 or raw", where=str(path), key="artifacts", mend="add one to image_formats"
                )
            result = place.publish(build, artifact, checked(path, build, artifact), about)
        else:
            result = place.remove(identifier, version)
        where = {"directory": given["directory"], "url": given["url"]}
    else:
        cloud = Cloud(connect(given, Progress("opennebula")), module.check_mode)
        market = _opennebula_market.Market(cloud, given["marketplace"], given["timeout"], max(1, given["interval"]))
        result = (
            market.publish(build, about)
            if given["state"] == "present" and build
            else market.remove(identifier, version)
        )
        where = {"marketplace": given["marketplace"], "api_url": given["api_url"]}
    result.image = build.document() if build else None
    result.extra["publication"] = {"identifier": identifier, "version": version, **where}
    return result


def main() -> None:
    """The module."""
    run_module(
        SPEC,
        work,
        required_if=[
            ("state", "present", ("descriptor", "publisher")),
            ("state", "absent", ("descriptor", "identifier"), True),
        ],
        required_by={"directory": ("url",), "marketplace": ("api_url", "username", "password")},
        required_one_of=[("directory", "marketplace")],
        mutually_exclusive=[("directory", "marketplace")],
    )


if __name__ == "__main__":
    main()
