# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles publish and retire, and playbooks/refresh.yml, with all catalogues at once."""

from __future__ import annotations

import hashlib
import shutil
import typing as t
from pathlib import Path

import pytest
from catalogue_site import IMAGE, Servers, Site

from ansible_collections.cloudimg.factory.tests.tools.pki import Pki


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki.make(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Servers]:
    if not shutil.which("xmlsec1"):
        pytest.skip("xmlsec1 is not installed, which the Marketplace of the tests needs")
    with Servers.run(tmp_path_factory.mktemp("servers")) as found:
        yield found


@pytest.fixture
def site(tmp_path: Path, servers: Servers, pki: Pki) -> Site:
    endorser = pki.issue("jane", passphrase="open-sesame-endorser-0815")
    site = Site.make(tmp_path / "site", servers, pki, endorser)
    site.forget()
    servers.again()
    return site


EVERYWHERE = dict.fromkeys(("served", "hepix", "appdb", "stratuslab"), "published")


def test_publish_again_retire_refresh(site: Site) -> None:
    disk = site.build("1").parent / f"{IMAGE}-1.qcow2"
    assert site.play("publish.yml", publish_version="1").changed
    name = f"{IMAGE}/1/{disk.name}"
    line = f"{hashlib.sha256(disk.read_bytes()).hexdigest()}  {disk.name}\n".encode()
    assert site.served() == {name: disk.read_bytes(), f"{name}.sha256": line, "image.list": site.list.read_bytes()}
    assert (site.listed(), site.offered(), site.endorsed()) == (["1"], [("1", True, True)], ["1"])
    assert site.publications("1") == EVERYWHERE
    put = [path.rpartition("/")[2] for method, path, _length in site.servers.dav.requests if method == "MOVE"]
    assert put[-1].endswith("image.list"), "the list goes last"

    site.servers.again()
    assert not site.play("publish.yml", publish_version="1").changed
    assert site.servers.writes() == []
    assert site.servers.dav.received() == 0
    assert sum(each.request for each in site.servers.connections()["dav"]) < disk.stat().st_size

    arguments = {"retire_version": "1", "retire_reason": "old openssl"}
    assert site.play("retire.yml", **arguments).changed
    assert (site.listed(), site.offered(), site.endorsed()) == ([], [("1", True, False)], ["1 old openssl"])
    assert site.publications("1") == {**dict.fromkeys(EVERYWHERE, "retired"), "served": "published"}
    assert site.entry()["versions"][0]["state"] == "deprecated"
    assert name in site.served()
    assert [(event["action"], event.get("catalogue")) for event in site.entry()["history"]] == [
        ("published", None),
        *[("published", place) for place in EVERYWHERE],
        *[("retired", place) for place in sorted(EVERYWHERE) if place != "served"],
        ("deprecated", None),
    ]
    assert {(event["who"], event["reason"]) for event in site.entry()["history"][5:]} == {("alice", "old openssl")}
    site.servers.again()
    assert not site.play("refresh.yml").changed
    assert site.servers.writes() == []


@pytest.mark.slow
def test_check_mode_changes_nothing(site: Site) -> None:
    site.build("1")
    assert site.play("publish.yml", "--check", "--diff", publish_version="1").changed
    assert site.servers.writes() == []
    assert site.served() == {} and not (site.workspace / "catalogue").exists()
    assert not (site.root / "image.list").exists()
    site.play("publish.yml", publish_version="1")
    before = site.state()
    site.servers.again()
    assert site.play(
        "retire.yml", "--check", "--diff", retire_version="1", retire_reason="old", retire_state="absent"
    ).changed
    assert site.servers.writes() == []
    assert site.state() == before


@pytest.mark.slow
def test_versions_replace_each_other_and_go(site: Site) -> None:
    for version in ("1", "2"):
        site.build(version)
        assert site.play("publish.yml", publish_version=version).changed
    assert site.listed() == ["2"]
    assert site.offered() == [("1", True, True), ("2", True, True)]
    replaced = {**EVERYWHERE, "hepix": "retired", "appdb": "retired"}
    assert (site.publications("1"), site.publications("2")) == (replaced, EVERYWHERE)
    assert not site.play("publish.yml", publish_version="2").changed
    arguments = {"retire_version": "2", "retire_reason": "old openssl"}
    assert site.play("retire.yml", **arguments).changed
    site.servers.again()
    assert not site.play("retire.yml", **arguments).changed
    assert site.servers.writes() == []
    site.build("3")
    site.play("publish.yml", publish_version="3")
    assert site.play("refresh.yml", image_keep=1).changed
    assert [known["state"] for known in site.entry()["versions"]] == ["removed", "removed", "published"]
    assert site.publications("1") == site.publications("2") == dict.fromkeys(EVERYWHERE, "retired")
    name = f"{IMAGE}/3/{IMAGE}-3.qcow2"
    assert list(site.served()) == [name, f"{name}.sha256", "image.list"]
    assert site.listed() == ["3"]
    assert not site.play("refresh.yml", image_keep=1).changed


@pytest.mark.slow
def test_refresh_signs_again_warns_and_ends(site: Site) -> None:
    site.build("1")
    site.play("publish.yml", publish_version="1")
    before = site.list.read_bytes()
    site.write_inventory()
    text = (site.root / "hosts.yml").read_text(encoding="utf-8")
    early = text.replace("publish_hepix:\n", "publish_hepix:\n          lifetime: 60d\n          renew_before: 40d\n")
    assert early != text
    (site.root / "hosts.yml").write_text(early, encoding="utf-8")
    done = site.play("refresh.yml", retire_warn_days=40000)
    assert done.changed
    assert site.list.read_bytes() != before and site.listed() == ["1"]
    assert "debian-12 1: its time ends at 2099-01-01T00:00:00Z, in " in " ".join(done.out.split())
    assert not site.play("refresh.yml").changed
    index = site.workspace / "catalogue/index.json"
    index.write_text(index.read_text(encoding="utf-8").replace("2099-01-01", "2025-02-01"), encoding="utf-8")
    assert site.play("refresh.yml").changed
    assert site.listed() == []
    assert site.offered() == [("1", True, False)]
    assert site.endorsed() == ["1 its time ended at 2025-02-01T00:00:00Z"]
    assert site.entry()["versions"][0]["state"] == "expired"
    assert not site.play("refresh.yml").changed


@pytest.mark.slow
def test_another_machine_needs_but_the_directory_of_the_build(site: Site) -> None:
    descriptor = site.build("1")
    other = site.root / "elsewhere"
    shutil.move(descriptor.parent, other)
    shutil.rmtree(site.workspace)
    arguments = {
        "publish_descriptor": str(other / "descriptor.json"),
        "publish_local_directory": str(site.root / "catalogue"),
    }
    done = site.play("publish.yml", **arguments, publish_stratuslab_directory=str(site.root / "endorsed"))
    assert done.changed
    assert site.listed() == ["1"]
    assert (site.offered(), site.endorsed()) == ([("1", True, True)], ["1"])
    assert not site.workspace.exists()
    assert not site.play("publish.yml", **arguments, publish_stratuslab_directory=str(site.root / "endorsed")).changed


@pytest.mark.slow
def test_images_that_are_published_at_the_same_time_share_a_list(site: Site) -> None:
    images = [IMAGE, "debian-13", "alma-9"]
    site.write_inventory(images, image_catalogues=["hepix"])
    for image in images:
        site.build("1", image)
    assert site.play("publish.yml", "--forks=3", publish_version="1").changed
    assert site.listed() == ["1", "1", "1"]
    assert site.list.read_bytes() == (site.root / "image.list").read_bytes()
    assert not site.play("publish.yml", "--forks=3", publish_version="1").changed


@pytest.mark.slow
def test_the_list_is_submitted_to_appdb(site: Site) -> None:
    url = site.servers.appdb.submit_url
    site.write_inventory(
        image_catalogues=["hepix"],
        publish_hepix_submit={"url": url, "username": "jane", "password": "correct horse & battery"},
    )
    text = (site.root / "hosts.yml").read_text(encoding="utf-8")
    more = "          fields: {'ad:appid': '1234'}\n          image_fields: {'ad:group': General group, 'sl:osname': Debian}\n"
    (site.root / "hosts.yml").write_text(text.replace("publish_hepix:\n", f"publish_hepix:\n{more}"), encoding="utf-8")
    for version in ("1", "2"):
        site.build(version)
        site.play("publish.yml", publish_version=version)
    submitted = site.servers.appdb.submissions
    assert [[row["hv:image"]["hv:version"] for row in each["list"]["hv:images"]] for each in submitted] == [
        ["1"],
        ["2"],
    ]
    assert not site.play("publish.yml", publish_version="2").changed
    assert not site.play("refresh.yml").changed
    assert len(submitted) == 2
    site.play("retire.yml", retire_version="2", retire_reason="old")
    assert [each["list"]["hv:images"] for each in submitted[2:]] == [[]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"publish_serve": {}},
            "publish_serve: public_url: is missing; give the URL under which the artifacts are read",
        ),
        ({"publish_hepix": {"path": "/nowhere"}}, "missing required arguments: certificate, private_key"),
        ({"publish_appdb": {}}, "missing required arguments: api_url, appliance"),
        (
            {"publish_catalogues": ["ec2"]},
            "must be one or more of: local, hepix, appdb, stratuslab, opennebula, oci, glance. Got no match for: ec2",
        ),
    ],
)
def test_what_is_missing_is_told(site: Site, wrong: dict[str, t.Any], message: str) -> None:
    site.build("1")
    done = site.play("publish.yml", check=False, publish_version="1", **wrong)
    assert done.rc != 0
    assert message in " ".join(done.out.split())
