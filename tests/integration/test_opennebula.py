# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds at an OpenNebula front-end: registered, updated in place, retired, rolled back, cleaned up."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
from opennebula_site import Site
from ssh_server import Server

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.tests.tools.opennebula_objects import Image, VmTemplate
from ansible_collections.cloudimg.factory.tests.tools.opennebula_server import OpenNebulaServer


@pytest.fixture
def server(tmp_path: Path) -> t.Iterator[OpenNebulaServer]:
    with OpenNebulaServer(tmp_path / "cloud") as found:
        yield found


@pytest.fixture
def site(tmp_path: Path, server: OpenNebulaServer) -> Site:
    return Site(tmp_path, server)


def image_of(server: OpenNebulaServer, version: str, store: int = 1) -> Image:
    (found,) = [
        i for i in server.images.values() if dict(i.pairs)["CLOUDIMG_VERSION"] == version and i.datastore == store
    ]
    return found


def template_of(server: OpenNebulaServer) -> VmTemplate:
    (found,) = server.templates.values()
    return found


def test_a_build_is_registered_and_stays_as_it_is(site: Site, server: OpenNebulaServer) -> None:
    done = site.run("1", contracts=["nifty", "cloudkeeper"], attributes={"site": "prague"})
    assert done.changed and done.diff and done.diff["before"] == {"images": [], "templates": []}
    image, template = image_of(server, "1"), template_of(server)
    disk = site.build("1").parent / "debian-12-1.qcow2"
    assert Path(image.source).read_bytes() == disk.read_bytes()
    assert (image.name, image.mode, image.persistent, image.size) == ("debian-12-1@default", 0o640, False, 16)
    attributes: dict[str, t.Any] = dict(image.pairs)
    assert attributes["NIFTY_APPLIANCE_ID"] == attributes["CLOUDKEEPER_APPLIANCE_ID"] == site.identifier
    assert attributes["DESCRIPTION"] == 'Debian "12" - Minimal Debian 12; <b> & \\ ]]>'
    assert (attributes["SITE"], attributes["CLOUDKEEPER_APPLIANCE_GROUP"]) == ("prague", "vo.example.org")
    known: dict[str, t.Any] = dict(template.pairs)
    assert (template.name, template.mode) == ("debian-12@default", 0o640)
    assert known["DISK"] == {"IMAGE_ID": str(image.id)}
    assert known["CONTEXT"] == {"NETWORK": "YES", "SSH_PUBLIC_KEY": "$USER[SSH_PUBLIC_KEY]"}
    assert (known["MEMORY"], known["VCPU"], known["OS"]) == ("2048", "2", {"ARCH": "x86_64"})
    assert done.extra["publication"] == {
        "api_url": server.url,
        "identifier": site.identifier,
        "version": "1",
        "datastores": {"default": {"image": image.id, "template": template.id}},
    }
    assert list((site.root / "cloud/safe").iterdir()) == [], "the copy for the transfer is gone"
    server.asked.clear()
    again = site.run("1", contracts=["nifty", "cloudkeeper"], attributes={"site": "prague"})
    assert (again.changed, again.actions, server.writes()) == (False, [], [])
    assert len(server.asked) == again.extra["requests"] == 4


def test_check_mode_tells_and_writes_nothing(site: Site, server: OpenNebulaServer) -> None:
    done = site.run("1", check_mode=True, disks=[{"name": "data", "size": 100, "format": "raw"}])
    assert done.changed and server.writes() == [] and not server.images
    assert done.diff and [row["name"] for row in done.diff["after"]["images"]] == ["debian-12-1@default"]
    assert done.extra["publication"]["datastores"] == {"default": {"image": None, "template": None}}
    site.run("1")
    server.asked.clear()
    done = site.run("2", check_mode=True)
    assert done.changed and server.writes() == []
    assert done.diff and [row["expired"] for row in done.diff["after"]["images"]] == [True, False]
    assert done.diff["after"]["templates"][0]["version"] == "2"
    retired = site.run(check_mode=True, state="absent", identifier=site.identifier, version="1", reason="old")
    assert retired.changed and server.writes() == []


def test_many_datastores_by_name_and_number(site: Site, server: OpenNebulaServer) -> None:
    site.run("1", datastores=["default", "100"])
    assert sorted((i.name, i.datastore) for i in server.images.values()) == [
        ("debian-12-1@default", 1),
        ("debian-12-1@fast", 100),
    ]
    assert sorted(found.name for found in server.templates.values()) == ["debian-12@default", "debian-12@fast"]
    assert not site.run("1", datastores=["fast", "1"]).changed


def test_a_new_version_takes_the_template_and_the_old_one_expires(site: Site, server: OpenNebulaServer) -> None:
    site.run("1")
    number = template_of(server).id
    order: list[str] = []
    for method in ("image.allocate", "template.update", "image.rename", "image.enable"):
        server.hooks[method] = lambda _server, *_given, method=method: order.append(method)
    site.run("2")
    assert order == ["image.allocate", "template.update", "image.rename", "image.enable"]
    old, new, template = image_of(server, "1"), image_of(server, "2"), template_of(server)
    assert template.id == number and dict(template.pairs)["DISK"] == {"IMAGE_ID": str(new.id)}
    assert old.name.startswith("EXPIRED_") and old.name.endswith("_debian-12-1@default")
    assert (old.mode, old.state, new.mode, new.state) == (0o600, 3, 0o640, 1)
    assert not site.run("2").changed
    with pytest.raises(FactoryError, match=r"version 1 is older than 2, which is there; .*state=rolled_back$"):
        site.run("1")


def test_the_longest_names(site: Site, server: OpenNebulaServer) -> None:
    image = "i" * 60
    for version in ("1" * 55, "2" * 55):
        descriptor = str(site.build(version, image))
        site.run(descriptors=[descriptor])
        assert not site.run(descriptors=[descriptor]).changed
    assert sorted(len(each.name) for each in server.images.values()) == [124, 128]


def test_metadata_change_without_a_byte(site: Site, server: OpenNebulaServer) -> None:
    site.run("1")
    server.asked.clear()
    done = site.run("1", mode="644", context={"NETWORK": "YES"}, uefi=True, group="users", attributes={"A": "b"})
    assert done.changed and "image.allocate" not in server.writes()
    image, template = image_of(server, "1"), template_of(server)
    assert (image.mode, image.gid, template.mode, template.gid) == (0o644, 1, 0o644, 1)
    known: dict[str, t.Any] = dict(template.pairs)
    assert known["OS"] == {"ARCH": "x86_64", "FIRMWARE": "/usr/share/OVMF/OVMF_CODE.fd", "MACHINE": "q35"}
    assert known["CONTEXT"] == {"NETWORK": "YES"} and known["A"] == "b" == dict(image.pairs)["A"]
    site.run("1")
    assert "A" not in dict(template_of(server).pairs), "what was ours and is not wished any more goes"


def test_an_owner_other_than_the_publisher(site: Site, server: OpenNebulaServer) -> None:
    jane = server.add_user("jane", "x")
    site.run("1", owner="jane")
    assert (image_of(server, "1").uid, template_of(server).uid) == (jane.id, jane.id)
    assert not site.run("1", owner="jane").changed
    with pytest.raises(FactoryError, match=r"^owner: there is no user joe; check that name$"):
        site.run("1", owner="joe")


def test_anothers_objects_do_not_count(site: Site, server: OpenNebulaServer) -> None:
    site.run("1")
    image, template = image_of(server, "1"), template_of(server)
    image.uid = template.uid = server.add_user("mallory", "x").id
    image.mode = template.mode = 0o666
    site.run("1")
    assert len(server.images) == len(server.templates) == 2


def test_empty_disks(site: Site, server: OpenNebulaServer) -> None:
    disks = [{"name": "data", "size": 100, "format": "qcow2"}]
    site.run("1", disks=disks)
    (empty,) = [image for image in server.images.values() if image.type == 2]
    assert (empty.name, empty.size, empty.format, empty.mode) == ("debian-12-data-100@default", 100, "qcow2", 0o640)
    rows = [value for name, value in template_of(server).pairs if name == "DISK"]
    assert rows == [{"IMAGE_ID": str(image_of_os(server))}, {"IMAGE_ID": str(empty.id)}]
    assert not site.run("1", disks=disks).changed
    site.run("2", disks=disks)
    assert [image.id for image in server.images.values() if image.type == 2] == [empty.id]
    assert not site.run("2", disks=disks).changed
    site.run(state="absent", identifier=site.identifier, version="2", reason="gone")
    assert [image.type for image in server.images.values()] == [0], "the disk goes with the template"


def image_of_os(server: OpenNebulaServer) -> int:
    (found,) = [image.id for image in server.images.values() if image.type == 0]
    return found


def test_a_persistent_qcow2_is_warned_of(site: Site, server: OpenNebulaServer) -> None:
    site.run("1", persistent=True)
    assert image_of(server, "1").persistent
    assert ["persistent qcow2 image grows to its full size" in text for text in site.job.shelf.warnings] == [True]
    site.run("1")
    assert not image_of(server, "1").persistent and not site.job.shelf.warnings


def test_templates_of_a_site(site: Site, server: OpenNebulaServer) -> None:
    own = site.root / "image.j2"
    own.write_text('NAME = {{ (image ~ " " ~ version) | one }}\nPATH="/etc/shadow"\nCLOUDIMG_ID="x"\nA="1"\n')
    vm = site.root / "vm.j2"
    vm.write_text('NAME="own"\nCPU=1\nDISK=[ IMAGE_ID={{ image_id }}, TARGET="vda" ]\nNIC=[ NETWORK="a" ]\n')
    site.run("1", image_template=str(own), vm_template=str(vm))
    image = image_of(server, "1")
    assert image.name == "debian-12 1" and dict(image.pairs)["A"] == "1"
    assert image.path.startswith(str(site.root / "cloud/safe")) and dict(image.pairs)["CLOUDIMG_ID"] == site.identifier
    known: dict[str, t.Any] = dict(template_of(server).pairs)
    assert known["DISK"] == {"IMAGE_ID": "0", "TARGET": "vda"} and known["NIC"] == {"NETWORK": "a"}
    for text, message in (
        ("NAME={{ nothing }}", "cannot be rendered: 'nothing' is undefined"),
        ("NAME={{", "line 1: cannot be rendered"),
        ('A="b"\nNAME="x', "line 2 as rendered: has 'x'"),
        ("A=1", "NAME: gives no NAME"),
        (f"NAME={'x' * 129}", "has 129 characters; let the template give at most 128"),
        ("{{ ''.__class__.__mro__ }}", "cannot be rendered"),
    ):
        own.write_text(text)
        with pytest.raises(FactoryError) as caught:
            site.run("2", image_template=str(own))
        assert str(own) in str(caught.value) and (message in str(caught.value) or "line 2" in str(caught.value))


def test_nifty_s_template_is_taken_over(site: Site, server: OpenNebulaServer) -> None:
    server.templates[7] = VmTemplate(7, 0, 0, "old", 0o640, [("NIFTY_APPLIANCE_ID", site.identifier), ("MINE", "1")])
    site.run("1")
    found = template_of(server)
    assert (found.id, found.name, dict(found.pairs)["MINE"]) == (7, "debian-12@default", "1")


def test_retire_and_publish_again(site: Site, server: OpenNebulaServer) -> None:
    site.run("1")
    retire = {"identifier": site.identifier, "version": "1", "reason": "old openssl"}
    done = site.run(state="expired", **retire)
    assert all("old openssl" in action for action in done.actions) and len(done.actions) == 2
    assert (image_of(server, "1").state, template_of(server).mode) == (3, 0o600)
    assert not site.run(state="expired", **retire).changed
    number = template_of(server).id
    site.run("2")
    assert (template_of(server).id, template_of(server).mode) == (number, 0o640)
    assert "CLOUDIMG_WITHDRAWN" not in dict(template_of(server).pairs)
    site.run(state="absent", identifier=site.identifier, version="1", reason="gone")
    assert [image.name for image in server.images.values()] == ["debian-12-2@default"]
    site.run(state="absent", identifier=site.identifier, version="2", reason="gone")
    assert (server.images, server.templates) == ({}, {})
    assert not site.run(state="absent", identifier=site.identifier, version="2", reason="gone").changed


def test_an_image_in_use_goes_when_its_vms_have_gone(site: Site, server: OpenNebulaServer) -> None:
    site.run("1")
    vm = server.do_template_instantiate(server.users[0], template_of(server).id)
    site.run("2")
    old = image_of(server, "1")
    assert (old.state, old.mode, old.name[:8]) == (2, 0o600, "EXPIRED_")
    assert not site.run("2").changed
    assert not site.run(state="cleaned", clean_after="0").changed
    site.run(state="absent", identifier=site.identifier, version="1", reason="gone")
    assert "is used by 1 VMs; state=cleaned removes it later" in site.job.shelf.warnings[0]
    server.do_vm_action(server.users[0], "terminate", vm)
    assert site.run(state="cleaned", clean_after="1h").changed, "it can be disabled now"
    assert old.state == 3 and not site.run(state="cleaned", clean_after="1h").changed
    assert site.run(state="cleaned", clean_after="0").changed
    assert [image.name for image in server.images.values()] == ["debian-12-2@default"]
    assert not site.run(state="cleaned", clean_after="0").changed


def test_rollback_and_forward(site: Site, server: OpenNebulaServer) -> None:
    for version in ("1", "2"):
        site.run(version)
    back = {"state": "rolled_back", "identifier": site.identifier, "version": "1", "reason": "does not boot"}
    server.asked.clear()
    assert site.run(**back).changed and "image.allocate" not in server.writes()
    old, new, template = image_of(server, "1"), image_of(server, "2"), template_of(server)
    assert (old.name, old.state, old.mode) == ("debian-12-1@default", 1, 0o640)
    assert dict(template.pairs)["DISK"] == {"IMAGE_ID": str(old.id)}
    assert dict(template.pairs)["CLOUDIMG_VERSION"] == "1" and new.state == 3 and new.name.startswith("EXPIRED_")
    assert not site.run(**back).changed
    site.run("2")
    assert dict(template_of(server).pairs)["DISK"] == {"IMAGE_ID": str(new.id)}
    assert (new.name, new.state, new.mode, old.state) == ("debian-12-2@default", 1, 0o640, 3)
    with pytest.raises(FactoryError, match=r"version: version 0 is not there any more; choose one of 1, 2$"):
        site.run(**{**back, "version": "0"})


def test_from_this_process_by_a_token(site: Site, server: OpenNebulaServer) -> None:
    done = site.run("1", transfer="http", http_address="127.0.0.1")
    image = image_of(server, "1")
    token = image.path.split("/")[3]
    assert image.path.startswith("http://127.0.0.1:") and len(token) == 32
    assert Path(image.source).read_bytes() == (site.build("1").parent / "debian-12-1.qcow2").read_bytes()
    assert token not in str(done)
    for address, message in (("0.0.0.0", "is every address"), ("one", "is no IP address")):
        with pytest.raises(FactoryError, match=rf"^{address}: http_address: {message}; give"):
            site.run("1", transfer="http", http_address=address)


@pytest.mark.root
def test_by_ssh_to_the_front_end(site: Site, server: OpenNebulaServer, tmp_path: Path) -> None:
    (tmp_path / "sshd").mkdir()
    try:
        sshd = Server(tmp_path / "sshd")
    except OSError as exc:
        pytest.skip(str(exc))
    try:
        way = {"transfer": "ssh", "ssh_host": "127.0.0.1", "ssh_port": sshd.port, "ssh_user": "root"}
        way |= {"ssh_identity": str(sshd.home / "key"), "ssh_known_hosts": str(sshd.known_hosts(sshd.port))}
        site.run("1", **way)
        safe = site.root / "cloud/safe"
        image = image_of(server, "1")
        assert Path(image.source).read_bytes() == (site.build("1").parent / "debian-12-1.qcow2").read_bytes()
        assert list(safe.iterdir()) == [] and not site.run("1", **way).changed
        Path(image.path).write_bytes(b"left by a killed run")
        assert site.run("1", **way).actions == ["debian-12-1.qcow2: its copy for the transfer was left behind"]
        assert list(safe.iterdir()) == []
        nobody = {**way, "ssh_known_hosts": "/dev/null"}
        with pytest.raises(FactoryError, match="Host key verification failed"):
            site.run("2", **nobody)
        assert server.count("image.allocate") == 1
    finally:
        sshd.close()


def test_50_images_beside_200(site: Site, server: OpenNebulaServer) -> None:
    for number in range(200):
        server.images[1000 + number] = Image(1000 + number, 0, 0, f"other-{number}", state=1)
    paths = [str(site.build("1", f"image-{number}")) for number in range(50)]
    seen = []
    for count in (10, 40):
        server.asked.clear()
        batch, paths = paths[:count], paths[count:]
        done = site.run(descriptors=batch, interval=0.2)
        assert len([row for row in done.extra["builds"] if row["publication"] and row["changed"]]) == count
        assert [server.count(name) for name in ("imagepool.info", "templatepool.info", "datastorepool.info")] == [
            1,
            1,
            1,
        ]
        seen.append((len(server.asked) - server.count("image.info") - 4) / count)
    assert seen == [4.0, 4.0], "image.allocate, image.chmod, template.allocate, template.chmod"
    server.asked.clear()
    every = [str(site.build("1", f"image-{number}")) for number in range(50)]
    assert not site.run(descriptors=every).changed and len(server.asked) == 4
