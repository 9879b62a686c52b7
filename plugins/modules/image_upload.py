#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put artifacts and a list where they are served."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_upload
short_description: Put the artifacts of a build, and a list of images, where they are served
version_added: 0.1.0
description:
  - Puts the artifacts of a build in a directory of a server, and after them the list that names them. So readers of the list
    find what it names.
  - Reads nothing but C(descriptor.json) and the files beside it. Each artifact must be what the descriptor says.
  - What is there is not sent again. An artifact is there when it has its size, and its checksum stands in a file
    C(<name>.sha256) beside it (with S3 also in the object's metadata), which is written after it. A list is compared as a whole.
  - A file that is half sent is not seen under its name; by plain HTTP PUT that is up to the server.
extends_documentation_fragment:
  - cloudimg.factory._attributes
  - cloudimg.factory._attributes.job
attributes:
  check_mode:
    support: full
    details:
      - Asks the server what it has, and sends nothing.
  diff_mode:
    support: full
    details:
      - The names of the files that are sent or removed.
  idempotent:
    support: full
    details:
      - By content. The second time no byte of an artifact is sent.
options:
  target:
    description:
      - The directory to put files in, as a path or a URL. A path, or C(file:///srv/www/images), is on the machine on which the
        module runs.
      - C(sftp://user@host/srv/www/images) needs no more than SFTP there, with a key. C(rsync+ssh://user@host/srv/www/images)
        needs rsync on both machines, and sends only what differs. A path that begins with C(/~/) is below the user's home.
      - C(davs://host/images) is WebDAV over https, C(dav://) over http; C(https://host/images) is plain HTTP PUT.
      - C(s3://bucket/images) is Amazon S3, or a compatible store at O(endpoint).
    type: str
    required: true
  state:
    description:
      - V(present) has the artifacts of O(descriptor) and the O(list) served.
      - V(absent) removes O(names), each with the file of its checksum.
    type: str
    choices: [present, absent]
    default: present
  descriptor:
    description: Path of the C(descriptor.json) of the build whose artifacts are served.
    type: path
  formats:
    description: Serve only the artifacts of these formats; by default all.
    type: list
    elements: str
    default: []
  folder:
    description:
      - The directory below O(target) for the artifacts; empty for O(target) itself. By default C(<image>/<version>).
    type: str
  list:
    description: Path of a file to put in O(target) after the artifacts, such as a signed list.
    type: path
  list_name:
    description: The name of O(list) below O(target). By default that of the file.
    type: str
  names:
    description: What to remove with O(state=absent), relative to O(target), as C(name) of RV(files) says it.
    type: list
    elements: str
    default: []
  public_url:
    description:
      - The URL under which readers see O(target). By default O(target) itself, where that is http or WebDAV.
      - There is a warning when a O(list) is read by http. Whoever stands between can give readers an old list, with a good
        signature, that offers what was withdrawn since.
    type: str
  username:
    description:
      - The user, of HTTP basic authentication, or of SSH where O(target) names none.
      - By default the value of the environment variable E(CLOUDIMG_UPLOAD_USERNAME).
    type: str
  password:
    description:
      - The password of O(username), for HTTP.
      - By default the value of the environment variable E(CLOUDIMG_UPLOAD_PASSWORD).
    type: str
  token:
    description:
      - A bearer token, for HTTP.
      - By default the value of the environment variable E(CLOUDIMG_UPLOAD_TOKEN).
    type: str
  unencrypted:
    description: Let O(password) or O(token) go by http to another machine than this one.
    type: bool
    default: false
  ca:
    description: File with the certificates of the authorities that are trusted, for https and S3. By default those of the system.
    type: path
  client_certificate:
    description: PEM file with the certificate by which to log in, for https.
    type: path
  client_key:
    description: PEM file with its key, without a passphrase. By default it is in O(client_certificate).
    type: path
  identity:
    description: The private key for SSH, without a passphrase. By default what C(ssh_config) and an agent have.
    type: path
  known_hosts:
    description: The file with the keys of SSH hosts. A host whose key is not known is refused. By default C(ssh)'s own.
    type: path
  endpoint:
    description: The URL of an S3-compatible store.
    type: str
  region:
    description: The region of the bucket. By default what boto3 finds.
    type: str
  access_key:
    description: The access key, for S3. By default what boto3 finds, such as E(AWS_ACCESS_KEY_ID) or C(~/.aws/credentials).
    type: str
  secret_key:
    description: The secret key of O(access_key).
    type: str
  session_token:
    description: The session token of a temporary O(access_key).
    type: str
  timeout:
    description: Seconds for which the server may be silent.
    type: int
    default: 60
author:
  - cloudimg.factory contributors (@cloudimg-factory)
requirements:
  - requests (Python library), for HTTP and WebDAV
  - boto3 (Python library), for S3
  - ssh, for SFTP; rsync, for rsync
seealso:
  - module: cloudimg.factory.hepix_image_list
  - module: cloudimg.factory.image_export
"""

EXAMPLES = r"""
- name: Serve a build from a web server that has SFTP
  cloudimg.factory.image_upload:
    target: sftp://publisher@www.example.org/srv/www/images
    public_url: https://www.example.org/images
    descriptor: /srv/cloudimg/builds/debian-12/202501311200/descriptor.json
  register: served

- name: After them, the list
  cloudimg.factory.image_upload:
    target: sftp://publisher@www.example.org/srv/www/images
    public_url: https://www.example.org/images
    list: /srv/cloudimg/lists/image.list

- name: Put artifacts in a bucket
  cloudimg.factory.image_upload:
    target: s3://images/cloud
    endpoint: https://s3.example.org
    public_url: https://images.example.org/cloud
    access_key: "{{ vault_access_key }}"
    secret_key: "{{ vault_secret_key }}"
    descriptor: /srv/cloudimg/builds/debian-12/202501311200/descriptor.json

- name: Remove what the list does not name any more
  cloudimg.factory.image_upload:
    target: davs://www.example.org/images
    username: publisher
    password: "{{ vault_password }}"
    state: absent
    names: "{{ served.files | map(attribute='name') | list }}"
"""

RETURN = r"""
files:
  description:
    - The artifacts that are served, each with its C(path) beside the descriptor, its C(name) below O(target), and its C(url).
  returned: success
  type: list
  elements: dict
  sample:
    - path: debian-12-202501311200.qcow2
      name: debian-12/202501311200/debian-12-202501311200.qcow2
      url: https://www.example.org/images/debian-12/202501311200/debian-12-202501311200.qcow2
urls:
  description:
    - The URLs of the artifacts by their paths beside the descriptor, as far as it is known under which URL O(target) is read.
  returned: success
  type: dict
  sample:
    debian-12-202501311200.qcow2: https://www.example.org/images/debian-12/202501311200/debian-12-202501311200.qcow2
list_url:
  description: The URL of the list.
  returned: when O(list) is given, and it is known under which URL O(target) is read
  type: str
  sample: https://www.example.org/images/image.list
sent:
  description: How many bytes of files were sent.
  returned: success
  type: int
  sample: 0
image:
  description: The descriptor of the build.
  returned: when O(descriptor) is given
  type: dict
  sample: {schema: 1, image: debian-12, version: "202501311200"}
actions:
  description: What was done, and why.
  returned: success
  type: list
  elements: str
  sample: ["sftp://publisher@www.example.org/srv/www/images/debian-12/202501311200/debian-12-202501311200.qcow2: is not there"]
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 0.9
"""

import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule, env_fallback

from ansible_collections.cloudimg.factory.plugins.module_utils import _serve, _serve_target, _upload
from ansible_collections.cloudimg.factory.plugins.module_utils._module import JOB_OPTION, Result, made_later, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress


def _from_environment(name: str) -> tuple[t.Any, list[str]]:
    return env_fallback, [name]


SPEC: dict[str, t.Any] = {
    "target": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "descriptor": {"type": "path"},
    "formats": {"type": "list", "elements": "str", "default": []},
    "folder": {"type": "str"},
    "list": {"type": "path"},
    "list_name": {"type": "str"},
    "names": {"type": "list", "elements": "str", "default": []},
    "public_url": {"type": "str"},
    "username": {"type": "str", "fallback": _from_environment("CLOUDIMG_UPLOAD_USERNAME")},
    "password": {"type": "str", "no_log": True, "fallback": _from_environment("CLOUDIMG_UPLOAD_PASSWORD")},
    "token": {"type": "str", "no_log": True, "fallback": _from_environment("CLOUDIMG_UPLOAD_TOKEN")},
    "unencrypted": {"type": "bool", "default": False},
    "ca": {"type": "path"},
    "client_certificate": {"type": "path"},
    "client_key": {"type": "path", "no_log": False},
    "identity": {"type": "path"},
    "known_hosts": {"type": "path"},
    "endpoint": {"type": "str"},
    "region": {"type": "str"},
    "access_key": {"type": "str", "no_log": True},
    "secret_key": {"type": "str", "no_log": True},
    "session_token": {"type": "str", "no_log": True},
    "timeout": {"type": "int", "default": 60},
    "_job": JOB_OPTION,
}
PATHS = ("identity", "known_hosts", "ca", "client_certificate", "client_key")
TEXTS = ("username", "password", "token", "access_key", "secret_key", "session_token")


def _credentials(options: dict[str, t.Any]) -> _serve_target.Credentials:
    paths = {name: Path(options[name]).absolute() for name in PATHS if options[name]}
    return _serve_target.Credentials(**paths, **{name: options[name] or None for name in TEXTS})


def work(module: AnsibleModule) -> Result:
    """Bring what is served into the state that the options ask for."""
    options = module.params
    result = Result()
    progress = Progress("upload", options["_job"])
    public = _serve_target.public_url(options["target"], options["public_url"])
    store = _serve_target.open_store(
        options["target"],
        _credentials(options),
        progress,
        timeout=options["timeout"],
        endpoint=options["endpoint"],
        region=options["region"],
        plain=options["unencrypted"],
    )
    place = _serve.Place(store, result, progress, public, module.check_mode)
    names: dict[str, str] = {}
    try:
        if options["state"] == "absent":
            for name in [_serve.check_name(name, "names") for name in options["names"]]:
                place.remove(name)
        else:
            names = _present(place, options)
    finally:
        store.close()
    files = _upload.served(place, names)
    result.extra.update(files=files, sent=store.sent)
    result.extra["urls"] = {row["path"]: row["url"] for row in files if "url" in row}
    result.diff = {"before": "", "after": "".join(f"{action}\n" for action in result.actions)}
    return result


def _present(place: _serve.Place, options: dict[str, t.Any]) -> dict[str, str]:
    names: dict[str, str] = {}
    if options["list"]:
        path = Path(options["list"]).absolute()
        list_name = _serve.check_name(options["list_name"] or path.name, "list_name")
    if options["descriptor"]:
        descriptor = Path(options["descriptor"]).absolute()
        if place.check_mode and not descriptor.exists():
            place.result.act(*made_later(descriptor, "it is served").actions)
        else:
            names = _upload.put_build(place, descriptor, formats=options["formats"], folder=options["folder"])
    if options["list"]:
        place.put_list(list_name, path)
        url = place.url(list_name)
        if url:
            place.result.extra["list_url"] = url
            if url.startswith("http:"):
                place.result.extra["warnings"] = [f"{url}: {_upload.REPLAY}"]
    return names


def main() -> None:
    """The module."""
    run_module(
        SPEC, work, required_if=[("state", "present", ("descriptor", "list"), True), ("state", "absent", ("names",))]
    )


if __name__ == "__main__":
    main()
