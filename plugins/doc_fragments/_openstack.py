# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How modules get into an OpenStack cloud."""

from __future__ import annotations


class ModuleDocFragment:
    """Documentation that those modules share."""

    DOCUMENTATION = r"""
options:
  cloud:
    description:
      - The name of a cloud in C(clouds.yaml) (and C(secure.yaml)), which the OpenStack SDK finds in the working directory, in
        C(~/.config/openstack), in C(/etc/openstack), or where E(OS_CLIENT_CONFIG_FILE) says. Without it and O(auth), E(OS_CLOUD)
        and the other variables of the SDK count.
    type: str
  auth_type:
    description:
      - How to authenticate, such as V(v3applicationcredential), V(v3oidcaccesstoken) or V(password). V(none) is for a service
        without Keystone; it needs O(endpoint).
    type: str
  auth:
    description:
      - What O(auth_type) needs, such as C(auth_url), C(application_credential_id) and C(application_credential_secret).
    type: dict
  region_name:
    description: The region. By default that of C(clouds.yaml), or the only one.
    type: str
  interface:
    description: Which of the service's endpoints is used.
    type: str
    choices: [public, internal, admin]
    default: public
  endpoint:
    description: URL of the Image service. By default that of the catalogue.
    type: str
  validate_certs:
    description: Whether certificates are verified. By default as C(clouds.yaml) says, else yes.
    type: bool
  ca_cert:
    description: PEM file with the authorities of the cloud's https. By default those of the system.
    type: path
  client_cert:
    description: PEM file with a client certificate.
    type: path
  client_key:
    description: PEM file with its private key.
    type: path
  allow_http:
    description: Whether tokens may go unencrypted to a host other than this one.
    type: bool
    default: false
  request_timeout:
    description: Seconds for which the service may be silent.
    type: int
    default: 60
"""
