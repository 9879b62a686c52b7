# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Glance is told of a build."""

from __future__ import annotations

import dataclasses
import typing as t

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor
from ansible_collections.cloudimg.factory.plugins.module_utils import _glance_properties as properties
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

DIGESTS = {"md5": "1" * 32, "sha1": "2" * 40, "sha256": "3" * 64, "sha512": "4" * 128}
OPTIONS: dict[str, t.Any] = {
    "name": "{image}-{version}",
    "os_type": "linux",
    "os_admin_user": None,
    "min_disk": None,
    "min_ram": None,
    "properties": {},
    "egi": False,
    "mpuri": None,
}


def artifact(fmt: str, size: int = 1 << 30) -> _descriptor.Artifact:
    return _descriptor.Artifact(fmt, f"d.{fmt}", 1 << 20, size, DIGESTS)


BUILD = _descriptor.Descriptor(
    image="debian-12",
    identifier=_descriptor.stable_identifier("debian-12"),
    version="7",
    title="Debian 12",
    description="",
    os=_descriptor.OperatingSystem("Debian", "12", "aarch64"),
    min_disk=1,
    artifacts=(artifact("raw.gz"), artifact("raw"), artifact("qcow2", (10 << 30) + 1)),
    created="2025-01-31T12:00:00Z",
    provenance=_descriptor.Provenance("0" * 64, "7.2", "0.1.0"),
    memory=2048,
    attributes={
        "org.openstack.glance.os_distro": "debian-cloud",
        "org.openstack.glance.disk_format": "qcow2",
        "eu.egi.cloud.tag": "2025",
    },
)


def test_the_artifact_that_glance_knows() -> None:
    assert properties.choose(BUILD, None, "x").format == "qcow2"
    assert properties.choose(BUILD, "d.raw", "x").format == "raw"
    with pytest.raises(FactoryError, match=r"x: artifacts: has no artifact 'ova', but raw\.gz, raw, qcow2; export"):
        properties.choose(BUILD, "ova", "x")
    with pytest.raises(FactoryError, match=r"x: artifact: Glance does not know raw\.gz; use one of qcow2"):
        properties.choose(BUILD, "raw.gz", "x")
    only = dataclasses.replace(BUILD, artifacts=(artifact("box"),))
    with pytest.raises(FactoryError, match="no artifact that Glance knows, but box"):
        properties.choose(only, None, "x")


def test_sizes_are_rounded_up_and_attributes_count() -> None:
    found = properties.describe(BUILD, BUILD.artifacts[2], {**OPTIONS, "properties": {"a": True, "b": 2}})
    assert found.base == {
        "name": "debian-12-7",
        "disk_format": "qcow2",
        "container_format": "bare",
        "min_disk": 11,
        "min_ram": 2048,
    }
    wanted = {"os_distro": "debian-cloud", "architecture": "aarch64", "eu.egi.cloud.tag": "2025", "a": "true", "b": "2"}
    assert {key: found.properties[key] for key in wanted} == wanted
    assert "disk_format" not in found.properties and "os_admin_user" not in found.properties
    assert all(isinstance(value, str) for value in found.properties.values())
    given = properties.describe(
        BUILD, BUILD.artifacts[1], {**OPTIONS, "min_disk": 20, "min_ram": 0, "name": "x {version}"}
    )
    assert given.base["min_disk"] == 20 and given.base["min_ram"] == 0 and given.base["name"] == "x 7"


@pytest.mark.parametrize("key", ["id", "os_hidden", "stores", "os_glance_failed_import", "cloudimg_x", "", "x" * 256])
def test_what_is_not_for_a_user_to_set(key: str) -> None:
    with pytest.raises(FactoryError, match="cannot be a property of an image"):
        properties.describe(BUILD, BUILD.artifacts[1], {**OPTIONS, "properties": {key: "x"}})
