# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Publishing in a real registry, Debian's docker-registry: with and without users, by TLS, and behind a Harbor's API."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import typing as t
from pathlib import Path

import oras.provider as oras_provider
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from oci_site import IMAGE, PACKAGES, REPOSITORY, Site, make_build

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._http import Answered
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_attach import Key
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_pull import pulled
from ansible_collections.cloudimg.factory.tests.tools import pki, registry_server
from ansible_collections.cloudimg.factory.tests.tools.registry_server import PASSWORD, USER, Fault, Front, Registry

SERVER = ExtendedKeyUsageOID.SERVER_AUTH
ROBOT = "robot$vo.example.org+publisher"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture
def registry(running: Registry) -> t.Iterator[Registry]:
    """One that has nothing."""
    yield running
    running.stop()
    shutil.rmtree(running.root / "store", ignore_errors=True)
    running.start()


@pytest.fixture
def front(registry: Registry) -> t.Iterator[Front]:
    with Front(registry) as server:
        yield server


@pytest.fixture
def site(tmp_path: Path, front: Front) -> Site:
    return Site(tmp_path, front.url)


def test_a_build_is_published_and_the_second_time_nothing_is_sent(site: Site, front: Front) -> None:
    descriptor = site.build()
    image = descriptor.with_name(f"{IMAGE}-1.0.qcow2").read_bytes()
    done = site.present(descriptor)
    assert done.changed and done.extra["sent"] == front.sent() == len(image)
    tags = site.repository().tags()
    dated = done.extra["publication"]["tag"]
    assert {"12", dated} <= set(tags) and dated.startswith("12-2025-01-31-")
    (row,) = site.state()
    assert row["tags"] == sorted(["12", dated]) and row["digest"] == done.extra["publication"]["digest"]
    assert [each["artifactType"] for each in row["referrers"]] == [
        "application/vnd.cyclonedx+json",
        "application/vnd.cloudimg.assess+json",
    ]
    front.asked.clear()
    again = site.present(descriptor)
    assert not again.changed and again.extra["sent"] == 0 and not front.writes() and len(front.asked) <= 6
    assert again.diff and again.diff["before"] == again.diff["after"]
    assert not list(descriptor.parent.glob(".*upload*"))


def test_the_bill_of_materials_is_had_by_who_looks_for_it(site: Site, front: Front) -> None:
    site.present(site.build())
    (row,) = site.state()
    (sbom,) = [each for each in row["referrers"] if each["artifactType"].endswith("cyclonedx+json")]
    found = site.repository().get(sbom["digest"])
    assert found and found.document["subject"]["digest"] == row["digest"]
    blob = front.call("GET", f"/v2/{REPOSITORY}/blobs/{found.layers[0]['digest']}")[2]
    names = {each["name"] for each in json.loads(blob)["components"]}
    assert {each["name"] for each in PACKAGES["packages"]} <= names  # type: ignore[index]


def test_check_mode_writes_nothing(site: Site, front: Front) -> None:
    descriptor = site.build()
    would = site.present(descriptor, check_mode=True)
    assert would.changed and not front.writes() and not site.repository().tags()
    done = site.present(descriptor)
    assert would.actions == done.actions and would.diff == done.diff
    front.asked.clear()
    (row,) = site.state()
    assert site.catalogue(check_mode=True).absent(row["digest"]).changed
    assert site.catalogue(check_mode=True).deprecated(row["digest"], "old").changed
    assert not front.writes()


def test_new_annotations_send_no_image_and_leave_nothing_behind(site: Site, front: Front) -> None:
    descriptor = site.build()
    site.present(descriptor)
    front.asked.clear()
    done = site.present(descriptor, annotations={"org.opencontainers.image.source": "https://git.example.org"})
    assert done.changed and front.sent() == 0
    (row,) = site.state()
    assert row["annotations"]["org.opencontainers.image.source"] == "https://git.example.org"
    assert len([tag for tag in site.repository().tags() if tag.startswith("sha256-")]) == 1


def test_the_moving_tag_is_the_newest_version(site: Site) -> None:
    site.present(site.build("1.2"))
    site.present(site.build("1.10"))
    assert site.tags()["12"] == "1.10"
    site.present(site.build("1.9"))
    assert site.tags()["12"] == "1.10"
    assert sorted(site.tags().values()) == ["1.10", "1.10", "1.2", "1.9"]


def test_each_image_has_a_repository_of_its_own(site: Site) -> None:
    site.present(site.build())
    with pytest.raises(
        FactoryError, match=r":12: repository: is a tag of the image debian-12, not of other; give each"
    ):
        site.present(make_build(site.root / "other", image="other"))


def test_keep_removes_older_ones_of_the_same_os_version(site: Site) -> None:
    for version in ("1.0", "1.1"):
        site.present(site.build(version))
    front_tags = site.tags()
    done = site.present(site.build("1.2"), keep=2)
    assert [row["version"] for row in done.extra["removed"]] == ["1.0"] and len(front_tags) == 3
    assert set(site.tags().values()) == {"1.1", "1.2"}
    assert len([tag for tag in site.repository().tags() if tag.startswith("sha256-")]) == 2
    assert not site.present(site.root / "1.2/descriptor.json", keep=2).changed


def test_what_others_have_made_is_not_counted_nor_removed(site: Site, front: Front) -> None:
    site.present(site.build("1.0"))
    (row,) = site.state()
    document = site.repository().get(row["digest"])
    assert document
    foreign = json.dumps({**document.document, "annotations": {"x": "y"}}).encode()
    kind = document.media_type
    tag = "12-2024-01-31-00000000"
    assert front.call("PUT", f"/v2/{REPOSITORY}/manifests/{tag}", foreign, Content_Type=kind)[0] == 201
    site.present(site.build("1.1"), keep=1)
    assert tag in site.repository().tags() and set(site.tags().values()) == {"1.1", None}


def test_deprecated_and_offered_again(site: Site) -> None:
    old, new = (site.present(site.build(version)).extra["publication"] for version in ("1.0", "1.1"))
    done = site.catalogue().deprecated(new["digest"], "openssl is outdated")
    assert done.changed and site.tags()["12"] == "1.0" and site.tags()[new["tag"]] == "1.1"
    assert [row["deprecated"] for row in site.state()] == ["openssl is outdated", None]
    assert not site.catalogue().deprecated(new["tag"], "openssl is outdated").changed
    # The last one: docker-registry cannot remove a tag, but a manifest with its tags.
    site.catalogue().deprecated(old["digest"], "old")
    assert "12" not in site.tags() and set(site.tags().values()) == {"1.0", "1.1"}
    site.present(site.root / "1.1/descriptor.json")
    assert site.tags()["12"] == "1.1" and [row["deprecated"] for row in site.state()] == [None, "old"]


def test_absent_leaves_nothing(site: Site, front: Front) -> None:
    one, two = (site.present(site.build(version)).extra["publication"] for version in ("1.0", "1.1"))
    assert site.catalogue().absent(two["tag"], two["digest"]).changed
    assert site.tags() == {"12": "1.0", one["tag"]: "1.0"}
    assert not site.catalogue().absent(two["tag"], two["digest"]).changed
    assert site.catalogue().absent(one["digest"]).changed and not site.repository().tags()
    front.no_delete = True
    publication = site.present(site.build("1.2")).extra["publication"]
    with pytest.raises(FactoryError, match="does not allow that manifests are removed; enable it"):
        site.catalogue().absent(publication["digest"])


def test_an_image_is_mounted_from_another_repository(site: Site, front: Front) -> None:
    descriptor = site.build()
    site.present(descriptor)
    front.asked.clear()
    other = Site(site.root, site.url, {"repository": "other.example.org/debian"})
    done = other.present(descriptor, mount_from=["nowhere/debian", REPOSITORY])
    # docker-registry answers to a mount that it cannot do by an upload that is begun.
    assert done.changed and front.sent() in (0, 300_000)
    third = Site(site.root, site.url, {"repository": "third.example.org/debian"})
    front.asked.clear()
    assert third.present(descriptor, mount_from=[REPOSITORY]).extra["sent"] == 0 and front.sent() == 0
    assert third.tags() == site.tags()


def test_pull_verifies(site: Site, registry: Registry, tmp_path: Path) -> None:
    descriptor = site.build(size=20 << 20)
    image = descriptor.with_name(f"{IMAGE}-1.0.qcow2")
    site.present(descriptor)
    dest = tmp_path / "pulled/image.qcow2"
    assert pulled(site.repository(), "12", dest, True).changed and not dest.exists()
    assert pulled(site.repository(), "12", dest, False).changed and dest.read_bytes() == image.read_bytes()
    assert not pulled(site.repository(), "12", dest, False).changed
    # What is there of it is not fetched again; what is wrong is found.
    (row,) = site.state()
    part = dest.with_name(f".{dest.name}.{row['layer']['digest'][7:23]}.part")
    dest.unlink()
    part.write_bytes(image.read_bytes()[: 15 << 20])
    pulled(site.repository(), "12", dest, False)
    assert dest.read_bytes() == image.read_bytes()
    part.write_bytes(b"x" * (15 << 20))
    dest.write_bytes(b"old")
    with pytest.raises(FactoryError, match=r"came as sha256:.*, 20971520 of 20971520 bytes; run this again"):
        pulled(site.repository(), "12", dest, False)
    assert dest.read_bytes() == b"old" and not part.exists()
    with pytest.raises(FactoryError, match=r"debian:13: reference: is not there; see what oci_artifact_info lists"):
        pulled(site.repository(), "13", dest, False)


def test_oras_reads_it(site: Site, tmp_path: Path) -> None:
    """As atrope does: oras for the manifest, and what its harbor source looks at in it."""
    descriptor = site.build()
    site.present(descriptor)
    host = site.url.partition("://")[2]
    oras = oras_provider.Registry(host, insecure=True)
    found = oras.get_manifest(f"{host}/{REPOSITORY}:12")
    (layer,) = found["layers"]
    assert layer["annotations"]["eu.egi.cloud.tag"] and layer["mediaType"] == "application/x-qemu-disk"
    (path,) = oras.pull(f"{host}/{REPOSITORY}:12", outdir=str(tmp_path / "out"))
    assert Path(path).read_bytes() == descriptor.with_name(Path(path).name).read_bytes()


def test_a_signature_is_attached_once(site: Site, tmp_path: Path, front: Front) -> None:
    grid = pki.Pki.make(tmp_path / "pki")
    one = grid.issue("endorser", passphrase=pki.PASSPHRASE)
    key = Key(one.certificate, one.key, one.passphrase, one.chain)
    descriptor = site.build()
    site.present(descriptor, key=key)
    assert not site.present(descriptor, key=key).changed
    (row,) = site.state()
    (signed,) = [each for each in row["referrers"] if each["artifactType"] == "application/pkcs7-signature"]
    found = site.repository().get(signed["digest"])
    assert found
    (tmp_path / "s.p7s").write_bytes(front.call("GET", f"/v2/{REPOSITORY}/blobs/{found.layers[0]['digest']}")[2])
    subject = site.repository().get(row["digest"])
    assert subject
    (tmp_path / "manifest.json").write_bytes(subject.data)
    argv = ["openssl", "cms", "-verify", "-binary", "-inform", "DER", "-in", str(tmp_path / "s.p7s"), "-purpose", "any"]
    argv += ["-content", str(tmp_path / "manifest.json"), "-CApath", str(grid.anchors), "-out", str(tmp_path / "out")]
    subprocess.run(argv, check=True, capture_output=True)
    (tmp_path / "manifest.json").write_bytes(subject.data + b" ")
    assert subprocess.run(argv, check=False, capture_output=True).returncode


@pytest.mark.parametrize("way", ["options", "file"])
def test_users_by_tls(way: str, tmp_path: Path) -> None:
    grid = pki.Pki.make(tmp_path / "pki")
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    host = grid.issue("localhost", email=None, extended=[SERVER], extensions=[(names, False)])
    chained = tmp_path / "chain.pem"
    chained.write_bytes(host.certificate.read_bytes() + (host.chain.read_bytes() if host.chain else b""))
    with Registry(tmp_path / "registry", users=True, tls=(chained, host.key)) as server:
        options: dict[str, t.Any] = {"ca_path": str(grid.anchors)}
        if way == "options":
            options |= {"username": USER, "password": PASSWORD}
        else:
            login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            file = tmp_path / "config.json"
            file.write_text(json.dumps({"auths": {f"localhost:{server.port}": {"auth": login}}}), encoding="utf-8")
            options["auth_file"] = str(file)
        site = Site(tmp_path, server.url, options)
        descriptor = site.build()
        assert site.present(descriptor).changed
        assert not site.present(descriptor).changed
        for wrong in ({"username": USER, "password": "wrong-one-4711"}, {}):
            bad = Site(tmp_path, server.url, {"ca_path": str(grid.anchors), **wrong})
            with pytest.raises(FactoryError) as caught:
                bad.present(descriptor)
            assert "wrong-one-4711" not in str(caught.value) and PASSWORD not in str(caught.value)
            assert "check the credentials" in str(caught.value) or "docker login" in str(caught.value)
        with pytest.raises(FactoryError, match="is not trusted"):
            Site(tmp_path, server.url, {"username": USER, "password": PASSWORD}).present(descriptor)


def test_passwords_do_not_go_unencrypted(tmp_path: Path) -> None:
    site = Site(tmp_path, "http://registry.example.org", {"username": USER, "password": PASSWORD})
    with pytest.raises(FactoryError, match="would go unencrypted over the network; give the https URL") as caught:
        site.present(site.build())
    assert PASSWORD not in str(caught.value)


def test_harbor_with_robot_accounts(tmp_path: Path, registry: Registry) -> None:
    with Front(registry, harbor=True, robots={ROBOT: "harbor-secret-0815"}) as front:
        site = Site(tmp_path, front.url, {"username": ROBOT, "password": "harbor-secret-0815"})
        publications = [site.present(site.build(version)).extra["publication"] for version in ("1.0", "1.1")]
        assert any("pull,push" in scope for scope in front.tokens.values())
        front.asked.clear()
        site.present(site.build("1.2"), keep=2)
        removed = [each.path for each in front.asked if each.method == "DELETE" and "/api/v2.0/" in each.path]
        assert removed == [
            f"/api/v2.0/projects/vo.example.org/repositories/debian/artifacts/{publications[0]['digest']}"
        ]
        assert set(site.tags().values()) == {"1.1", "1.2"}
        newest = site.state()[0]["digest"]
        site.catalogue().deprecated(publications[1]["digest"], "old")
        site.catalogue().deprecated(newest, "older")
        assert "12" not in site.tags() and set(site.tags().values()) == {"1.1", "1.2"}
        front.tokens.clear()  # they have run out
        assert not site.catalogue().deprecated(newest, "older").changed
        wrong = Site(tmp_path, front.url, {"username": ROBOT, "password": "another-secret-4711"})
        with pytest.raises(Answered, match=r"HTTP 401: UNAUTHORIZED: .*; check the credentials") as caught:
            wrong.present(site.root / "1.2/descriptor.json")
        assert "4711" not in str(caught.value)


@pytest.mark.parametrize("page", [0, 1])
def test_a_registry_that_lists_referrers_itself(page: int, tmp_path: Path, registry: Registry) -> None:
    """Specification 1.1: no index under a tag of ours; one referrer a page, or all on one."""
    with Front(registry, referrers=page) as front:
        site = Site(tmp_path, front.url)
        descriptor = site.build()
        site.present(descriptor)
        (row,) = site.state()
        wanted = ["application/vnd.cloudimg.assess+json", "application/vnd.cyclonedx+json"]
        assert sorted(each["artifactType"] for each in row["referrers"]) == wanted
        assert not [tag for tag in site.repository().tags() if tag.startswith("sha256-")]
        front.asked.clear()
        assert not site.present(descriptor).changed and not front.writes()
        assert sum("/referrers/" in each.path for each in front.asked) == (2 if page else 1)
        (descriptor.parent / "assess.json").write_text('{"verdict": "pass", "again": true}', encoding="utf-8")
        assert site.present(descriptor).changed
        (row,) = site.state()
        assert sorted(each["artifactType"] for each in row["referrers"]) == wanted, "the former one has gone"
        newer = site.present(site.build("1.1")).extra["publication"]
        assert site.catalogue().deprecated(newer["digest"], "old").changed and site.tags()["12"] == "1.0"
        assert (
            site.state()[0]["deprecated"] == "old" and not site.catalogue().deprecated(newer["digest"], "old").changed
        )
        assert site.catalogue().absent(newer["tag"], newer["digest"]).changed
        assert front.referring(REPOSITORY, newer["digest"]) == [], "what was attached has gone with it"
        assert set(site.tags().values()) == {"1.0"}


@pytest.mark.parametrize("method", ["PUT", "GET"])
def test_a_referrer_that_fails_is_attached_by_the_next_run(method: str, tmp_path: Path, registry: Registry) -> None:
    with Front(registry, referrers=1) as front:
        site = Site(tmp_path, front.url)
        descriptor = site.build()
        # The artifact itself is the first manifest that is put.
        faults = {
            "PUT": Fault("PUT", "/manifests/", 500, times=9, skip=1),
            "GET": Fault("GET", "/referrers/", 500, times=9),
        }
        front.faults.append(faults[method])
        with pytest.raises(FactoryError, match="HTTP 500"):
            site.present(descriptor)
        assert site.repository().tags() == [], "what readers look at comes last"
        front.faults.clear()
        site.present(descriptor)
        assert len(site.state()[0]["referrers"]) == 2 and not site.present(descriptor).changed


HELPER = """#!/bin/sh
[ "$1" = get ] || exit 1
read -r host
printf '%s\\n' "$host" >> {log}
printf '{{"ServerURL": "%s", "Username": "<token>", "Secret": "{secret}"}}' "$host"
"""


@pytest.mark.parametrize("way", ["credsStore", "credHelpers", "identitytoken"])
def test_identity_tokens(way: str, tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a helper whose user is C(<token>), as docker's are for such registries, or in the file itself: OAuth 2 gets a token."""
    secret = "identity-token-4711"
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    (tmp_path / "bin").mkdir()
    helper = tmp_path / "bin/docker-credential-tests"
    helper.write_text(HELPER.format(log=tmp_path / "asked", secret=secret), encoding="utf-8")
    helper.chmod(0o755)
    with Front(registry, harbor=True, robots={ROBOT: "x"}) as front:
        host = f"127.0.0.1:{front.port}"
        config: dict[str, t.Any] = {
            "credsStore": {"credsStore": "tests"},
            "credHelpers": {"credHelpers": {host: "tests"}},
        }.get(way, {"auths": {host: {"auth": base64.b64encode(b"<token>:").decode(), "identitytoken": secret}}})
        file = tmp_path / "config.json"
        file.write_text(json.dumps(config), encoding="utf-8")
        site = Site(tmp_path, front.url, {"auth_file": str(file)})
        descriptor = site.build()
        with pytest.raises(FactoryError, match="HTTP 401: UNAUTHORIZED") as caught:
            site.present(descriptor)
        assert secret not in str(caught.value)
        front.identities[secret] = "jane"
        assert site.present(descriptor).changed
        posted = [each for each in front.asked if each.path.startswith("/service/token")]
        assert {each.method for each in posted} == {"POST"} and posted[-1].status == 200
        assert any("pull,push" in scope for scope in front.tokens.values())
        front.tokens.clear()  # they have run out
        assert not site.present(descriptor).changed
        if way != "identitytoken":
            assert set((tmp_path / "asked").read_text(encoding="utf-8").split()) == {host}


def test_without_a_registry_the_tests_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They fail, and are not left out."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tool = tmp_path / "apt-get"
    tool.write_text("#!/bin/sh\necho 'E: Unable to locate package' >&2\nexit 100\n", encoding="utf-8")
    tool.chmod(0o755)
    for path, reason in ((tmp_path, "E: Unable to locate package"), (tmp_path / "none", "No such file")):
        monkeypatch.setenv("PATH", str(path))
        with pytest.raises(
            RuntimeError, match=f"need files of docker-registry, and .* failed: .*{reason}.*; have apt-get"
        ):
            registry_server.program.__wrapped__()


def test_what_a_site_reads_from_harbor(tmp_path: Path, registry: Registry) -> None:
    """The rules of atrope's harbor source: a tag without a hyphen, annotations of the layer over those that Harbor lists."""
    with Front(registry, harbor=True) as front:
        site = Site(tmp_path, front.url)
        descriptor = site.build()
        site.present(descriptor)
        asked = Site(tmp_path, front.url).repository().http
        url = f"{front.url}/api/v2.0/projects/vo.example.org/repositories"
        assert {"name": REPOSITORY} in asked.request("GET", url, params={"page": "1"}).json()
        rows = asked.request("GET", f"{url}/debian/artifacts", params={"with_tag": "true", "page": "1"}).json()
        taken = [row for row in rows if any("-" not in tag["name"] for tag in row["tags"])]
        (row,) = [row for row in taken if row["digest"] == site.state()[0]["digest"]]
        found = site.repository().get("12")
        assert found
        about = {**row["extra_attrs"]["annotations"], **found.layers[0]["annotations"]}
        assert about["eu.egi.cloud.tag"] and about["org.openstack.glance.disk_format"] == "qcow2"
        image = json.loads(descriptor.read_text(encoding="utf-8"))["artifacts"][0]
        assert found.layers[0]["digest"] == "sha256:" + image["checksums"]["sha256"]


def test_a_build_that_was_changed_is_not_published(site: Site, front: Front) -> None:
    descriptor = site.build()
    image = descriptor.with_name(f"{IMAGE}-1.0.qcow2")
    image.write_bytes(image.read_bytes()[:-1] + b"x")
    with pytest.raises(FactoryError, match="artifacts: was changed after its export"):
        site.present(descriptor)
    assert not front.asked
