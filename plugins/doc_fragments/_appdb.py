# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What the modules that speak to EGI AppDB's REST API have in common."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
requirements:
  - requests (Python library)
options:
  api_url:
    description: URL of the REST API 1.0, such as V(https://appdb.example.org/rest/1.0/).
    type: str
    required: true
  appliance:
    description: The software that the virtual appliance belongs to, by its number, or as V(s:<name in its URL>).
    type: str
    required: true
  access_token:
    description:
      - A personal access token.
      - Credentials are this, or O(username), O(password) and O(api_key), or O(user_id), O(password), O(session_id) and
        O(api_key).
      - AppDB takes them as parameters of a request. They are refused for a URL that is not https, but on loopback, and no
        message shows them. POST has them in its body; GET and PUT have them in the query, which the server may log.
    type: str
  username:
    description: A user of the single sign-on, or a system account.
    type: str
  password:
    description: The password of O(username), or the token of the session of O(user_id).
    type: str
  api_key:
    description: An API key. AppDB may allow it for some networks only.
    type: str
  user_id:
    description: The number of the user whose session O(session_id) is.
    type: str
  session_id:
    description: A session of O(user_id).
    type: str
  ca_path:
    description: The CA certificates to trust, a PEM file or a directory as C(openssl rehash) makes it; by default the system's.
    type: path
  http_timeout:
    description: Seconds for which the server may be silent.
    type: int
    default: 120
"""
