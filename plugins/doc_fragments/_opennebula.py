# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What the modules that speak to an OpenNebula front-end have in common."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
requirements:
  - pyone >= 6.0 (Python library)
  - requests (Python library)
  - jinja2 (Python library)
options:
  api_url:
    description:
      - URL of the front-end's XML-RPC interface, such as V(https://one.example.org:2633/RPC2).
      - By default the environment variable E(ONE_URL) of the module's process.
    type: str
    required: true
  username:
    description: The user that registers images; by default E(ONE_USERNAME).
    type: str
    required: true
  password:
    description: The password, or a login token, of O(username); by default E(ONE_PASSWORD).
    type: str
    required: true
  ca_path:
    description: The CA certificates to trust, a PEM file or a directory as C(openssl rehash) makes it; by default the system's.
    type: path
  http_timeout:
    description: Seconds for which the front-end may be silent.
    type: int
    default: 120
  unencrypted:
    description:
      - Whether the password may go over the network by plain http. On loopback it always may.
    type: bool
    default: false
"""
