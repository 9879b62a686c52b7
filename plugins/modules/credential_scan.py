#!/usr/bin/python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Search a system for credentials."""

from __future__ import annotations

DOCUMENTATION = r"""
module: credential_scan
short_description: Search a system for credentials
version_added: 0.1.0
description:
  - Runs inside an image and reads all its files once, looking for private keys, authorized keys, password hashes, tokens of
    clouds and services, files in which tools keep passwords, and for the build's own secrets by value.
  - What it finds is named by path, line and kind, and is an error. The credential itself is never told.
  - Files that are just as a package of the distribution brought them (by the digests that dpkg has) can be had by
    everybody. They are searched for O(secrets) only.
  - C(/proc), C(/sys), C(/dev), C(/run) and file systems in memory are left out, as are archives in archives; see
    RV(skipped). Compressed files (gzip, bzip2, xz) are looked into.
  - Uses nothing but Python.
extends_documentation_fragment:
  - cloudimg.factory._attributes
attributes:
  check_mode:
    support: full
    details:
      - It never changes anything.
  diff_mode:
    support: none
  idempotent:
    support: full
options:
  root:
    description: The root of the system.
    type: path
    default: /
  secrets:
    description:
      - Texts that must not be in any file, such as the passwords that the build was given. At least six characters each.
      - They are looked for as they are, in base64, in hexadecimal digits, as parts of URLs and of JSON, and in UTF-16; also in
        names of files and in what symbolic links lead to. Messages tell them by their number in this list.
    type: list
    elements: str
    default: []
  allowed:
    description:
      - What may stay, as C(path) or C(path:kind), with V(*) and V(?) as in shells (but for slashes, which V(*) matches, too). The
        kinds are those of RV(findings).
    type: list
    elements: str
    default: []
  fail:
    description: Whether findings are an error. If not, they are only returned.
    type: bool
    default: true
author:
  - cloudimg.factory contributors (@cloudimg-factory)
"""

EXAMPLES = r"""
- name: Search for credentials
  cloudimg.factory.credential_scan:
    secrets: ["{{ repository_password }}"]
    allowed:
      - /etc/grid-security/hostkey.pem.example
      - /home/*/.ssh/authorized_keys:authorized_keys
"""

RETURN = r"""
findings:
  description: What was found, and is not allowed.
  returned: always
  type: list
  elements: dict
  contains:
    path:
      description: The file.
      returned: always
      type: str
      sample: /root/.netrc
    kind:
      description: What kind of credential it is.
      returned: always
      type: str
      sample: netrc
    line:
      description: The line in which it is; 0 where there are none.
      returned: always
      type: int
      sample: 3
    secret:
      description: Which of O(secrets) it is, from 1; 0 if it is none of them.
      returned: always
      type: int
      sample: 0
allowed:
  description: What was found and is allowed, as RV(findings).
  returned: success
  type: list
  elements: dict
scanned:
  description: How many files there are.
  returned: success
  type: int
  sample: 15234
bytes:
  description: How many bytes were read.
  returned: success
  type: int
  sample: 481036337
published:
  description: How many of the files are just as a package brought them.
  returned: success
  type: int
  sample: 11215
skipped:
  description: What was not looked into, or not wholly.
  returned: success
  type: list
  elements: dict
  contains:
    path:
      description: The file or directory.
      returned: success
      type: str
      sample: /boot/initrd.img-6.1.0-13-amd64
    reason:
      description: Why.
      returned: success
      type: str
      sample: is compressed with zstd, which is not unpacked
sizes:
  description: Bytes on the disk by directory, two levels deep, the 40 largest.
  returned: success
  type: dict
  sample: {/usr: 420118528, /usr/lib: 268435456}
actions:
  description: What was done.
  returned: always
  type: list
  elements: str
  sample: []
elapsed:
  description: Seconds that the module took.
  returned: always
  type: float
  sample: 3.1
"""

import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils import _credentials
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, run_module

_SHOWN = 5
SPEC: dict[str, t.Any] = {
    "root": {"type": "path", "default": "/"},
    "secrets": {"type": "list", "elements": "str", "default": [], "no_log": True},
    "allowed": {"type": "list", "elements": "str", "default": []},
    "fail": {"type": "bool", "default": True},
}


def work(module: AnsibleModule) -> Result:
    """Search, and tell."""
    options = module.params
    report = _credentials.scan(Path(options["root"]), options["secrets"], options["allowed"])
    findings = [finding._asdict() for finding in report.findings]
    if findings and options["fail"]:
        shown = ", ".join(str(finding) for finding in report.findings[:_SHOWN])
        more = f" and {len(findings) - _SHOWN} more" if len(findings) > _SHOWN else ""
        first = report.findings[0]
        raise FactoryError(
            f"holds {len(findings)} credential{'s' if len(findings) > 1 else ''}: {shown}{more}",
            where=options["root"],
            mend=f"have what leaves them remove them; what is none, allow: {first.path}:{first.kind}",
            details={"findings": findings},
        )
    return Result(
        extra={
            "findings": findings,
            "allowed": [finding._asdict() for finding in report.allowed],
            "scanned": report.scanned,
            "bytes": report.bytes,
            "published": report.published,
            "skipped": [{"path": path, "reason": reason} for path, reason in report.skipped],
            "sizes": report.sizes,
        }
    )


def main() -> None:
    """The module."""
    run_module(SPEC, work)


if __name__ == "__main__":
    main()
