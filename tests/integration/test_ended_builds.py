# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A build whose time has ended goes to no catalogue, and no server is asked about it."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
from catalogue_site import make_build

from ansible_collections.cloudimg.factory.tests.tools import in_process

NOWHERE = "http://127.0.0.1:9"
MODULES: dict[str, dict[str, t.Any]] = {
    "oci_artifact": {"registry": NOWHERE, "repository": "vo/debian"},
    "glance_image": {"auth_type": "none", "endpoint": NOWHERE},
    "opennebula_appliance": {
        **{"api_url": f"{NOWHERE}/RPC2", "username": "oneadmin", "password": "swordfish"},
        **{"transfer": "url", "artifact_url": "https://www.example.org/image.qcow2"},
    },
    "opennebula_marketplace": {"publisher": "Example", "url": "https://www.example.org/"},
}


@pytest.mark.parametrize("module", MODULES)
def test_it_is_refused(module: str, tmp_path: Path) -> None:
    descriptor = make_build(tmp_path / "1.0", "1.0", expires="2025-02-01T00:00:00Z")
    options = dict(MODULES[module])
    if module == "opennebula_marketplace":
        options["directory"] = str(tmp_path / "market")
    values, _output = in_process.run(module, descriptor=str(descriptor), **options)
    assert values["failed"]
    assert values["msg"] == f"{descriptor}: expires: its time ended at 2025-02-01T00:00:00Z; build the image again"
    assert not (tmp_path / "market").exists()
