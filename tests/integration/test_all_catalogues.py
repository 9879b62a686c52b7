# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An image in all seven catalogues at once, by the playbooks publish, retire and refresh."""

from __future__ import annotations

import dataclasses
import typing as t
from pathlib import Path

import pytest
from catalogue_site import EVERYWHERE, IMAGE, SECRETS, Servers, Site
from oci_site import Site as Repository

from ansible_collections.cloudimg.factory.tests.tools.glance_server import GlanceServer
from ansible_collections.cloudimg.factory.tests.tools.opennebula_server import PASSWORD, OpenNebulaServer
from ansible_collections.cloudimg.factory.tests.tools.pki import Pki
from ansible_collections.cloudimg.factory.tests.tools.registry_server import Front, Registry

pytestmark = pytest.mark.slow


@dataclasses.dataclass
class All:
    """The site, and what it has of the catalogues that take the image itself."""

    site: Site
    cloud: OpenNebulaServer
    front: Front
    glance: GlanceServer

    def configure(self, root: Path) -> None:
        self.site.write_inventory(
            image_catalogues=EVERYWHERE,
            publish_opennebula={
                "api_url": self.cloud.url,
                "username": "oneadmin",
                "password": PASSWORD,
                "transfer": "directory",
                "directory": str(self.cloud.root / "safe"),
                "interval": 1,
                "clean_after": "0",
            },
            publish_oci={"registry": self.front.url, "repository": "vo.example.org/debian"},
            publish_glance={"auth_type": "none", "endpoint": self.glance.url},
        )
        self.repository = Repository(root, self.front.url, {"repository": "vo.example.org/debian"})

    def again(self) -> None:
        """Forget what was asked so far."""
        self.site.servers.again()
        self.cloud.asked.clear()
        self.front.asked.clear()
        self.glance.clear()

    def writes(self) -> list[str]:
        """What was asked to change something, of any of them."""
        clouds = [*self.cloud.writes(), *(each.method for each in self.front.writes()), *self.glance.writes()]
        return [*self.site.servers.writes(), *map(str, clouds)]

    def sent(self) -> int:
        """Bytes of image data that were sent to any of them."""
        return self.site.servers.dav.received() + self.front.sent() + self.glance.received()

    def seen(self) -> dict[str, t.Any]:
        """What users of each catalogue see: versions, and why one should not be used."""
        return {
            "hepix": self.site.listed(),
            "appdb": [version for version, published, enabled in self.site.offered() if published and enabled],
            "stratuslab": sorted(self.site.endorsed()),
            "opennebula": sorted(x.name for x in self.cloud.images.values() if x.mode == 0o640),
            "templates": [dict(x.pairs)["CLOUDIMG_VERSION"] for x in self.cloud.templates.values() if x.mode == 0o640],
            "oci": self.repository.tags().get("12"),
            "glance": [image["cloudimg_version"] for image in self.glance.visible()],
        }


@pytest.fixture
def everything(tmp_path: Path) -> t.Iterator[All]:
    endorser = (pki := Pki.make(tmp_path / "pki")).issue("jane", passphrase=SECRETS["passphrase"])
    with (
        Servers.run(tmp_path / "servers") as servers,
        OpenNebulaServer(tmp_path / "cloud") as cloud,
        Registry(tmp_path / "registry") as registry,
        Front(registry) as front,
        GlanceServer(tmp_path / "glance") as glance,
    ):
        found = All(Site.make(tmp_path / "site", servers, pki, endorser), cloud, front, glance)
        found.configure(tmp_path)
        found.again()
        yield found


PLACES = ("served", *(name for name in EVERYWHERE if name != "local"))


def test_publish_again_replace_retire_refresh(everything: All) -> None:
    site = everything.site
    disk = site.build("1").parent / f"{IMAGE}-1.qcow2"
    assert site.play("publish.yml", "--check", "--diff", publish_version="1").changed
    assert everything.writes() == [] and everything.sent() == 0

    assert site.play("publish.yml", publish_version="1").changed
    published = {
        "hepix": ["1"],
        "appdb": ["1"],
        "stratuslab": ["1"],
        "opennebula": [f"{IMAGE}-1@default"],
        "templates": ["1"],
        "oci": "1",
        "glance": ["1"],
    }
    assert everything.seen() == published
    assert site.publications("1") == dict.fromkeys(PLACES, "published")
    size = disk.stat().st_size
    assert (everything.front.sent(), everything.glance.received()) == (size, size)

    everything.again()
    assert not site.play("publish.yml", publish_version="1").changed
    assert everything.writes() == [] and everything.sent() == 0

    site.build("2")
    assert site.play("publish.yml", publish_version="2").changed
    newer = {**published, "hepix": ["2"], "stratuslab": ["1", "2"], "templates": ["2"], "oci": "2", "glance": ["2"]}
    newer |= {"opennebula": [f"{IMAGE}-2@default"], "appdb": ["1", "2"]}
    assert everything.seen() == newer
    replaced = {place: site.publications("1")[place] for place in ("hepix", "appdb", "opennebula")}
    assert replaced == dict.fromkeys(replaced, "retired")
    assert site.publications("2") == dict.fromkeys(PLACES, "published")

    everything.again()
    arguments = {"retire_version": "2", "retire_reason": "old openssl"}
    assert site.play("retire.yml", "--check", "--diff", **arguments).changed and everything.writes() == []
    assert site.play("retire.yml", **arguments).changed
    retired = {
        **published,
        "hepix": [],
        "stratuslab": ["1", "2 old openssl"],
        "opennebula": [],
        "templates": [],
        "glance": [],
    }
    assert everything.seen() == retired
    everything.again()
    assert not site.play("retire.yml", **arguments).changed
    assert everything.writes() == [] and everything.sent() == 0

    site.build("3")
    site.play("publish.yml", publish_version="3")
    everything.again()
    assert site.play("refresh.yml", image_keep=1).changed
    assert everything.seen() == {
        **published,
        "hepix": ["3"],
        "appdb": ["1", "3"],  # which keeps those that were replaced in its archive
        "stratuslab": ["1 1 newer versions are published", "2 old openssl", "3"],
        "opennebula": [f"{IMAGE}-3@default"],
        "templates": ["3"],
        "oci": "3",
        "glance": ["3"],
    }
    # Nothing of the others' data is left where it can be removed.
    assert [image.name for image in everything.cloud.images.values()] == [f"{IMAGE}-3@default"]
    assert set(everything.repository.tags().values()) == {"3"}
    assert [image["cloudimg_version"] for image in everything.glance.images()] == ["3"]
    assert list(site.served())[:2] == [f"{IMAGE}/3/{IMAGE}-3.qcow2", f"{IMAGE}/3/{IMAGE}-3.qcow2.sha256"]
    assert site.publications("1") == site.publications("2") == dict.fromkeys(PLACES, "retired")
    assert everything.sent() < size, "no image was sent for that"
    everything.again()
    assert not site.play("refresh.yml", image_keep=1).changed
    assert everything.writes() == []
