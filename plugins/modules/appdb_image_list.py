#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Submit a signed HEPiX image list to EGI AppDB."""

from __future__ import annotations

DOCUMENTATION = r"""
module: appdb_image_list
short_description: Submit a signed HEPiX image list to EGI AppDB
version_added: 0.1.0
description:
  - Submits an image list that M(cloudimg.factory.hepix_image_list) or another tool has signed, as C(vmcaster) does by its
    protocol C(egiappdb). AppDB makes a version of the list's virtual appliance out of it.
  - The list needs C(ad:appid), and each of its images C(ad:group) and C(sl:osname). Its signature is verified against the
    certificate in it.
  - The protocol has no look-up. So what was submitted is recorded in C(<list>.submitted.json), and where O(api_url) is given, the
    REST API is asked whether AppDB has that version with those images already.
extends_documentation_fragment:
  - cloudimg.factory._attributes
attributes:
  check_mode:
    support: full
    details:
      - The list is read, and AppDB asked where O(api_url) is given; nothing is submitted.
  diff_mode:
    support: full
    details:
      - The version of the list that AppDB has.
  idempotent:
    support: full
    details:
      - By the content of the list. A submission whose answer is lost can be found again only by O(api_url); without it, it is
        made again.
requirements:
  - requests (Python library)
  - cryptography (Python library)
options:
  url:
    description: URL of submissions, such as V(https://vmcaster.example.org/vmlist/submit/). C(sso/) or C(x509/) is appended.
    type: str
    required: true
  list:
    description: Path of the signed list.
    type: path
    required: true
  actions:
    description: What AppDB shall do with it.
    type: list
    elements: str
    default: [insert, enable]
  username:
    description: User of the single sign-on. Either this and O(password), or O(certificate) is needed.
    type: str
  password:
    description: The password of O(username).
    type: str
  certificate:
    description: The user's certificate, in PEM. Further certificates after it are taken as its chain.
    type: path
  private_key:
    description: The private key of O(certificate), in PEM.
    type: path
  passphrase:
    description: The passphrase of O(private_key), where that is encrypted.
    type: str
  ca_path:
    description: The CA certificates to trust, a PEM file or a directory as C(openssl rehash) makes it; by default the system's.
    type: path
  http_timeout:
    description: Seconds for which the server may be silent.
    type: int
    default: 120
  api_url:
    description: URL of the REST API 1.0, such as V(https://appdb.example.org/rest/1.0/), to look up what AppDB has.
    type: str
  access_token:
    description: A personal access token for O(api_url), so that versions which are not published are found, too.
    type: str
author:
  - cloudimg.factory contributors (@cloudimg-factory)
seealso:
  - module: cloudimg.factory.hepix_image_list
  - module: cloudimg.factory.appdb_appliance
"""

EXAMPLES = r"""
- name: Submit a signed list by a grid certificate
  cloudimg.factory.appdb_image_list:
    url: https://vmcaster.example.org/vmlist/submit/
    list: /srv/www/images/image.list
    certificate: /etc/grid-security/endorser/cert.pem
    private_key: /etc/grid-security/endorser/key.pem
    passphrase: "{{ vault_endorser_passphrase }}"
    ca_path: /etc/grid-security/certificates
    api_url: https://appdb.example.org/rest/1.0/
    access_token: "{{ vault_appdb_token }}"
"""

RETURN = r"""
publication:
  description:
    - What has to be known about it later. C(submission_id) is AppDB's number of the submission; it is missing where AppDB had
      the list already, and that is not recorded.
  returned: success
  type: dict
  sample: {appliance: "1234", identifier: 41458818-0c1a-5c2b-8f0f-6f6a5f1f6d11, version: "20250131120000", submission_id: "815"}
actions:
  description: What was done, and why.
  returned: success
  type: list
  elements: str
  sample: ["/srv/www/images/image.list: version 20250131120000 was not submitted yet"]
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 1.2
"""

import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils._appdb import AppDb, connect
from ansible_collections.cloudimg.factory.plugins.module_utils._egiappdb import Submitter
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._http import Http
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

SPEC: dict[str, t.Any] = {
    "url": {"type": "str", "required": True},
    "list": {"type": "path", "required": True},
    "actions": {"type": "list", "elements": "str", "default": ["insert", "enable"]},
    "username": {"type": "str"},
    "password": {"type": "str", "no_log": True},
    "certificate": {"type": "path"},
    "private_key": {"type": "path", "no_log": False},
    "passphrase": {"type": "str", "no_log": True},
    "ca_path": {"type": "path"},
    "http_timeout": {"type": "int", "default": 120},
    "api_url": {"type": "str"},
    "access_token": {"type": "str", "no_log": True},
}
PATHS = ("certificate", "private_key", "ca_path")


def work(module: AnsibleModule) -> Result:
    """Submit the list."""
    given = module.params
    certificate, key, ca = (Path(given[name]) if given[name] else None for name in PATHS)
    url = given["url"] if given["url"].endswith("/") else f"{given['url']}/"
    if certificate and not url.startswith("https:"):
        raise FactoryError("a certificate needs a connection by TLS", where=url, key="url", mend="give the https URL")
    http = Http(
        url,
        auth=(given["username"], given["password"]) if given["username"] else None,
        client_certificate=(certificate, key, given["passphrase"]) if certificate else None,
        ca=ca,
        secrets=[given["password"], given["passphrase"], given["access_token"]],
        timeout=given["http_timeout"],
    )

    def lookup(appliance: str) -> AppDb:
        names = ("api_url", "access_token", "ca_path", "http_timeout")
        asked = {name: given[name] for name in names}
        return connect({**asked, "appliance": appliance}, Progress("appdb"), must_write=False)

    submitter = Submitter(
        http,
        given["username"],
        given["actions"],
        lookup if given["api_url"] else None,
        module.check_mode,
    )
    return submitter.submit(Path(given["list"]).absolute())


def main() -> None:
    """The module."""
    run_module(
        SPEC,
        work,
        required_one_of=[("username", "certificate")],
        mutually_exclusive=[("username", "certificate")],
        required_together=[("username", "password"), ("certificate", "private_key")],
    )


if __name__ == "__main__":
    main()
