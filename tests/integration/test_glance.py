# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""glance_image and glance_image_info against a real Glance."""

from __future__ import annotations

import functools
import http.server
import re
import threading
import typing as t
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from glance_site import ADMIN, IMAGE, SECRET, Site

from ansible_collections.cloudimg.factory.tests.tools import glance_server, pki
from ansible_collections.cloudimg.factory.tests.tools.glance_server import GlanceServer
from ansible_collections.cloudimg.factory.tests.tools.glance_wsgi import token_of


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[GlanceServer]:
    with GlanceServer(tmp_path_factory.mktemp("glance")) as found:
        yield found


@pytest.fixture
def site(tmp_path: Path, server: GlanceServer) -> Site:
    site = Site(tmp_path, server)
    site.forget()
    return site


def test_a_build_is_there_as_a_whole(site: Site, server: GlanceServer) -> None:
    done = site.publish(
        "1", os_admin_user="debian", properties={"hw_firmware_type": "uefi", "hw_qemu_guest_agent": True}
    )
    build = site.about("1")
    (image,) = server.visible()
    assert done.changed and done.publication["id"] == image["id"]
    assert {key: image[key] for key in ("status", "name", "visibility", "disk_format", "min_disk", "min_ram")} == {
        "status": "active",
        "name": f"{IMAGE}-1",
        "visibility": "private",
        "disk_format": "qcow2",
        "min_disk": 1,
        "min_ram": 0,
    }
    assert image["os_hash_algo"] == "sha512" and image["os_hash_value"] == build.artifacts[0].checksums["sha512"]
    properties = {
        "architecture": "x86_64",
        "os_type": "linux",
        "os_distro": "debian",
        "os_version": "12",
        "os_admin_user": "debian",
        "hw_disk_bus": "virtio",
        "hw_firmware_type": "uefi",
        "hw_qemu_guest_agent": "true",
        "cloudimg_version": "1",
        "cloudimg_identifier": build.identifier,
        "cloudimg_state": "published",
    }
    assert {key: image[key] for key in properties} == properties
    data = (server.store / image["id"]).read_bytes()
    assert data == (site.build("1").parent / build.artifacts[0].path).read_bytes()
    assert done.diff["before"] == {} and done.diff["after"]["os_hidden"] is False
    assert done.image["version"] == "1"


def test_again_nothing_is_sent(site: Site, server: GlanceServer) -> None:
    site.publish("1")
    server.clear()
    done = site.publish("1")
    assert not done.changed and done.actions == [] and "diff" not in done.values
    assert server.writes() == [] and server.received() == 0 and len(server.requests()) <= 4
    assert done.publication["id"] == server.visible()[0]["id"]


def test_check_mode_sends_nothing_and_tells_all(site: Site, server: GlanceServer) -> None:
    done = site.publish("1", check=True)
    assert done.changed and done.diff["before"] == {} and done.diff["after"]["cloudimg_version"] == "1"
    assert server.writes() == [] and server.images() == []
    site.publish("1")
    server.clear()
    done = site.publish("1", check=True, name="Debian", visibility="shared", members=["astro"])
    assert done.changed and done.diff["after"]["name"] == "Debian" and server.writes() == []
    assert any("shared" in action for action in done.actions)
    for state in ("hidden", "deactivated", "absent"):
        assert site.run(check=True, state=state, image=IMAGE, version="1").changed
    assert server.writes() == []
    site.publish("2", check=True, keep=1)
    assert server.writes() == []


def test_new_versions_stand_beside_and_only_some_are_kept(site: Site, server: GlanceServer) -> None:
    for version in ("1.8", "1.9"):
        site.publish(version)
    site.publish("1.10", keep=2)
    assert [image["cloudimg_version"] for image in server.visible()] == ["1.10"]
    assert [(image["cloudimg_version"], image["status"]) for image in server.images()] == [
        ("1.9", "active"),
        ("1.10", "active"),
    ]
    site.publish("1.11", former="deactivated")
    assert [image["status"] for image in server.images()] == ["deactivated", "deactivated", "active"]
    site.publish("1.12", former="visible")
    assert [image["cloudimg_version"] for image in server.visible()] == ["1.11", "1.12"]
    # Back to the one before; newer ones stay as they are.
    server.clear()
    done = site.publish("1.10")
    assert done.changed and server.received() == 0
    assert [image["cloudimg_version"] for image in server.visible()] == ["1.10", "1.11", "1.12"]
    assert server.images(cloudimg_version="1.10")[0]["status"] == "active"
    assert not site.publish("1.10").changed


def test_a_candidate_is_promoted_without_its_data(site: Site, server: GlanceServer) -> None:
    site.publish("1")
    site.publish("2", state="candidate", visibility="community")
    assert [image["cloudimg_version"] for image in server.visible()] == ["1"]
    (candidate,) = server.images(cloudimg_version="2")
    assert (candidate["cloudimg_state"], candidate["visibility"]) == ("candidate", "private")
    assert not site.publish("2", state="candidate").changed
    server.clear()
    done = site.publish("2")
    assert done.changed and server.received() == 0 and done.publication["id"] == candidate["id"]
    assert [image["cloudimg_version"] for image in server.visible()] == ["2"]
    # It stays offered.
    assert not site.publish("2", state="candidate").changed


def test_retire_step_by_step(site: Site, server: GlanceServer) -> None:
    site.publish("1")
    for state, status in (("hidden", "active"), ("deactivated", "deactivated")):
        done = site.run(state=state, image=IMAGE, version="1", reason="old openssl")
        assert done.changed and done.retired and any("old openssl" in action for action in done.actions)
        (image,) = server.images()
        assert (image["os_hidden"], image["status"]) == (True, status)
        assert not site.run(state=state, image=IMAGE, version="1").changed
    site.publish("1")
    assert [(image["os_hidden"], image["status"]) for image in server.images()] == [(False, "active")]
    assert site.run(state="absent", image=IMAGE, version="1").changed and server.images() == []
    done = site.run(state="absent", descriptor=str(site.build("1")))
    assert not done.changed and done.retired and done.glance == {}


def test_share_with_projects(site: Site, server: GlanceServer) -> None:
    site.publish("1", visibility="shared", members=["astro", "bio"])
    (image,) = server.images()
    asked = [one["method"] + one["path"].rpartition("/")[2] for one in server.requests()]
    assert asked.index("POSTmembers") < len(asked) - 1 - asked[::-1].index(f"PATCH{image['id']}"), "shown at last"

    def members() -> list[str]:
        return sorted(row["member_id"] for row in server.ask("GET", f"/v2/images/{image['id']}/members")["members"])

    assert members() == ["astro", "bio"]
    assert not site.publish("1", visibility="shared", members=["bio", "astro"]).changed
    assert site.publish("1", visibility="shared", members=["bio", "chem"]).changed
    assert members() == ["bio", "chem"]
    assert not site.publish("1", visibility="shared").changed
    assert "visibility: shared" in site.refused("1", members=["bio"])


def test_what_is_edited_by_hand(site: Site, server: GlanceServer) -> None:
    site.publish("1")
    (image,) = server.images()
    kind = "application/openstack-images-v2.1-json-patch"
    edits = [("add", "acme", "kept"), ("replace", "os_distro", "wrong"), ("replace", "name", "wrong")]
    body = [{"op": op, "path": f"/{key}", "value": value} for op, key, value in edits]
    server.ask("PATCH", f"/v2/images/{image['id']}", body, Content_Type=kind)
    done = site.publish("1")
    (image,) = server.images()
    assert done.changed and (image["acme"], image["os_distro"], image["name"]) == ("kept", "debian", f"{IMAGE}-1")
    assert done.diff["before"]["os_distro"] == "wrong"


def test_an_image_with_the_same_data_is_adopted(site: Site, server: GlanceServer) -> None:
    site.publish("1")
    (image,) = server.images()
    kind = "application/openstack-images-v2.1-json-patch"
    body = [{"op": "remove", "path": f"/{key}"} for key in image if key.startswith("cloudimg_")]
    server.ask("PATCH", f"/v2/images/{image['id']}", body, Content_Type=kind)
    server.clear()
    done = site.publish("1")
    assert done.changed and server.received() == 0 and done.publication["id"] == image["id"]
    assert [one["id"] for one in server.images()] == [image["id"]]
    body = [{"op": "remove", "path": f"/{key}"} for key in server.images()[0] if key.startswith("cloudimg_")]
    server.ask("PATCH", f"/v2/images/{image['id']}", body, Content_Type=kind)
    site.publish("1", name="other")
    assert len(server.images()) == 2, "another name is somebody else's image"


def test_the_same_version_with_other_data(site: Site, server: GlanceServer) -> None:
    site.publish("1")
    path = site.build("1")
    for each in path.parent.iterdir():
        each.unlink()
    path.parent.rmdir()
    other = site.build("2")
    text = other.read_text(encoding="utf-8").replace('"version": "2"', '"version": "1"')
    identifier = site.about("2").document()["version_identifier"]
    assert identifier in text
    before = server.images()
    wanted = server.images()[0]["cloudimg_version_identifier"]
    other.write_text(text.replace(identifier, wanted), encoding="utf-8")
    done = site.run(descriptor=str(other))
    assert done.failed and "is there with other data; raise image_version" in done.msg
    assert server.images() == before


@pytest.mark.parametrize("method", ["glance-direct", "web-download"])
def test_imports(method: str, site: Site, server: GlanceServer) -> None:
    path = site.build("1")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(path.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        name = site.about("1").artifacts[0].path
        uri = f"http://127.0.0.1:{web.server_port}/{name}"
        done = site.publish("1", method=method, **({"uri": uri} if method == "web-download" else {}))
        (image,) = server.visible()
        assert done.changed and image["os_hash_value"] == site.about("1").artifacts[0].checksums["sha512"]
        assert bool(server.received()) is (method == "glance-direct")
        assert not site.publish("1", method=method, uri=uri).changed
        if method == "web-download":
            site.forget()
            assert "could not import it by web-download" in site.refused("1", method=method, uri=f"{uri}.none")
            assert server.images() == []
            other = f"http://127.0.0.1:{web.server_port}/packages.json"
            message = site.refused("1", method=method, uri=other)
            assert "arrived as something else" in message or "could not import it by web-download" in message
            assert server.images() == []
        web.shutdown()


def test_application_credentials(site: Site, server: GlanceServer) -> None:
    site.build("1")
    assert site.publish("1", cloud="keystone").changed
    assert not site.publish("1", cloud="keystone").changed
    auth = {
        "auth_url": f"{server.url}/identity/v3",
        "application_credential_id": "jane",
        "application_credential_secret": SECRET,
    }
    done = site.publish("1", auth_type="v3applicationcredential", auth=auth)
    assert not done.changed
    told = site.run(module="glance_image_info", cloud="keystone", image=IMAGE)
    assert [image["cloudimg_version"] for image in told.images] == ["1"]
    for secret in (SECRET, token_of(SECRET)):
        assert secret not in done.output + told.output
    wrong = {**auth, "application_credential_secret": "nobody-knows-this-one"}
    message = site.run(auth_type="v3applicationcredential", auth=wrong, descriptor=str(site.build("1")))
    assert message.failed and "HTTP 401: the credentials are refused" in message.msg
    assert "nobody-knows-this-one" not in message.output
    assert "cloud nowhere" in site.refused("1", cloud="nowhere")
    site.clouds(server.url, ADMIN)
    # What another project has is not ours, even where we may see it.
    site.publish("1", cloud="keystone")
    assert len(server.images()) == 1


def test_a_private_authority_and_a_client_certificate(tmp_path: Path) -> None:
    """By cacert, cert and key of clouds.yaml, and by the options; for the Identity service as for Glance."""
    grid = pki.Pki.make(tmp_path / "pki")
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    host = grid.issue("localhost", email=None, extended=[ExtendedKeyUsageOID.SERVER_AUTH], extensions=[(names, False)])
    client = grid.issue("jane", extended=[ExtendedKeyUsageOID.CLIENT_AUTH])
    authorities = tmp_path / "authorities.pem"
    authorities.write_bytes(b"".join(path.read_bytes() for path in sorted(grid.anchors.glob("*.0"))))
    chain = {}
    for name, each in (("host", host), ("client", client)):
        chain[name] = tmp_path / f"{name}.pem"
        chain[name].write_bytes(each.certificate.read_bytes() + (each.chain.read_bytes() if each.chain else b""))
    (tmp_path / "site").mkdir()
    with GlanceServer(tmp_path / "glance", tls=(chain["host"], host.key, authorities)) as server:
        site = Site(tmp_path / "site", server)
        trusted = {"cacert": str(authorities)}
        known = {"cert": str(chain["client"]), "key": str(client.key)}
        for cloud in ("keystone", "plain"):
            site.clouds(server.tls_url, **trusted, **known)
            assert site.publish("1", cloud=cloud).changed == (cloud == "keystone")
            site.clouds(server.tls_url)
            options = {"ca_cert": trusted["cacert"], "client_cert": known["cert"], "client_key": known["key"]}
            assert not site.publish("1", cloud=cloud, **options).changed
            for given, problem in (
                ({}, "certificate verify failed|is not trusted.*give the CA"),
                (trusted, "(?i)alert certificate|EOF occurred|closed|reset|abort"),
            ):
                site.clouds(server.tls_url, **given)
                assert re.search(problem, site.refused("1", cloud=cloud)), (cloud, given)
        for wrong in ({"cacert": "/nowhere.pem"}, {**trusted, "cert": "/nowhere.pem", "key": "/nowhere.pem"}):
            site.clouds(server.tls_url, **wrong)
            assert "/nowhere.pem: there is no such file" in site.refused("1", cloud="keystone")
        assert len(server.images()) == 1


@pytest.mark.slow
def test_without_glance_the_tests_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They fail, and are not left out."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(
        RuntimeError, match=r"need Glance, and «.*pip install .*» failed: ERROR: .*; have pip reach PyPI"
    ):
        glance_server.environment()
    assert not list(tmp_path.glob("*/glance-*/ready"))


def test_what_may_not_be_public_stays_hidden(site: Site, server: GlanceServer) -> None:
    message = site.refused("1", visibility="public")
    assert "may not be public: HTTP 403" in message
    assert server.visible() == []
    server.clear()
    assert site.publish("1", visibility="community").changed and server.received() == 0
    assert len(server.images()) == 1 and server.visible()[0]["visibility"] == "community"


def test_a_protected_image(site: Site, server: GlanceServer) -> None:
    site.publish("1", protected=True)
    done = site.run(state="absent", image=IMAGE, version="1")
    assert done.failed and "is protected; give protected: false" in done.msg and len(server.images()) == 1
    done = site.publish("2", keep=1)
    assert "version 1 is not retired" in str(done.warnings) and len(server.images()) == 2
    assert site.run(state="absent", image=IMAGE, version="1", protected=False).changed
    assert [image["cloudimg_version"] for image in server.images()] == ["2"]


def test_egi_properties(site: Site, server: GlanceServer) -> None:
    site.publish("1", egi=True, mpuri="https://appdb.example.org/store/vo/image/1:2/")
    (image,) = server.images()
    build = site.about("1")
    assert image["appdb_id"] == image["vmcatcher_event_dc_identifier"] == build.identifier
    assert image["image_hash"] == image["vmcatcher_event_sl_checksum_sha512"] == build.artifacts[0].checksums["sha512"]
    assert image["vmcatcher_event_ad_mpuri"].startswith("https://appdb")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"properties": {"status": "x"}}, "properties.status: cannot be a property"),
        ({"properties": {"cloudimg_state": "x"}}, "properties.cloudimg_state: cannot be a property"),
        ({"properties": {"hw_disk_bus": ["x"]}}, "properties.hw_disk_bus: must be text"),
        ({"artifact": "vmdk"}, "has no artifact 'vmdk', but qcow2"),
        ({"keep": 0}, "keep: must be at least 1"),
        ({"name": " "}, "name: must not be empty"),
    ],
)
def test_bad_input(options: dict[str, t.Any], message: str, site: Site, server: GlanceServer) -> None:
    assert message in site.refused("1", **options)
    assert server.writes() == []


def test_the_artifact_was_changed_since(site: Site, server: GlanceServer) -> None:
    path = site.build("1").parent / site.about("1").artifacts[0].path
    path.write_bytes(b"x" * path.stat().st_size)
    assert "was changed after its export" in site.refused("1")
    assert server.writes() == []
