# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What the modules that speak to an OCI registry have in common."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
requirements:
  - requests (Python library)
options:
  registry:
    description: The registry, as V(registry.example.org), or its URL, as V(https://registry.example.org:5000).
    type: str
    required: true
  repository:
    description:
      - The repository in it, such as V(vo.example.org/debian); the part before the first slash is Harbor's project.
      - Each image needs a repository of its own, as the tag that moves is named after the OS version only.
    type: str
    required: true
  username:
    description:
      - The user, for instance a robot account of Harbor.
      - Without it, what C(docker login), C(podman login) or C(oras login) has stored for the registry is used, credential
        helpers included; without that, nothing.
    type: str
  password:
    description: The password of O(username), or the secret of the robot account.
    type: str
  auth_file:
    description:
      - A file with credentials in the format of docker's C(config.json). By default those of E(REGISTRY_AUTH_FILE),
        E(DOCKER_CONFIG), C($XDG_RUNTIME_DIR/containers/auth.json), C(~/.config/containers/auth.json) and
        C(~/.docker/config.json).
    type: path
  ca_path:
    description: The CA certificates to trust, a PEM file or a directory as C(openssl rehash) makes it; by default the system's.
    type: path
  unencrypted:
    description: Allow that credentials go unencrypted to a host other than this one.
    type: bool
    default: false
  http_timeout:
    description: Seconds for which the server may be silent.
    type: int
    default: 120
"""
