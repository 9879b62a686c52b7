# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""EGI AppDB over real HTTP, against a server that enforces its rules."""

from __future__ import annotations

import dataclasses
import datetime
import json
import typing as t
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _appdb_describe, _appdb_document, _descriptor
from ansible_collections.cloudimg.factory.plugins.module_utils._appdb import AppDb, credentials
from ansible_collections.cloudimg.factory.plugins.module_utils._appdb_publish import Desk
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import file_digests
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._http import Answered, Http, Unknown
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.tests.tools.appdb_server import AppDbServer
from ansible_collections.cloudimg.factory.tests.tools.dropping_proxy import DroppingProxy, cuts

TOKEN = {"accesstoken": "pat-jane-0123456789"}
BASE = "https://images.example.org/debian-12/"


def soon(days: float = 90) -> str:
    moment = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=days)
    return _descriptor.format_time(moment)


def make_build(root: Path, version: str = "1", content: bytes = b"disk", **fields: t.Any) -> Path:
    """A build directory; returns the descriptor's path."""
    folder = root / "builds" / version
    folder.mkdir(parents=True, exist_ok=True)
    disk = folder / f"debian-12-{version}.qcow2"
    disk.write_bytes(content)
    build = _descriptor.Descriptor(
        image="debian-12",
        identifier=_descriptor.stable_identifier("debian-12"),
        version=version,
        title=fields.get("title", "Debian 12"),
        description=fields.get("description", "Minimal Debian 12 & «cloud-init» <ok>"),
        os=_descriptor.OperatingSystem("debian", "12", "amd64"),
        min_disk=1 << 30,
        artifacts=(_descriptor.Artifact("qcow2", disk.name, len(content), 1 << 30, file_digests(disk)),),
        created="2025-01-31T12:00:00Z",
        provenance=_descriptor.Provenance("0" * 64, "7.2", "0.1.0"),
        memory=1024,
        cpu=1,
        expires=fields.get("expires", soon()),
    )
    path = folder / "descriptor.json"
    path.write_text(build.dump(), encoding="utf-8")
    return path


OPTIONS: dict[str, t.Any] = {
    "artifact_url": BASE,
    "description": "Debian & more",
    "network_traffic": [{"direction": "inbound", "protocols": ["TCP"], "ip_range": "0.0.0.0/0", "port_range": "22"}],
    "ram": {"minimum": 1024, "recommended": 2048},
}


def wanted(path: Path, **options: t.Any) -> _appdb_document.Version:
    return _appdb_describe.wanted(path, _descriptor.load(path), {**OPTIONS, **options})[0]


@pytest.fixture
def server() -> t.Iterator[AppDbServer]:
    server = AppDbServer()
    yield server
    server.close()


def desk(server: AppDbServer, url: str | None = None, known: dict[str, str] | None = None, **options: t.Any) -> Desk:
    http = Http(url or server.url, delays=(), timeout=10)
    appdb = AppDb(http, options.pop("software", "1234"), TOKEN if known is None else known, looks=(0.0, 0.01))
    return Desk(appdb, **{"interval": 0.01, "timeout": 20.0, **options})


def have(server: AppDbServer, path: Path, *, publish: bool = True, **options: t.Any) -> Result:
    about = {key: options.pop(key) for key in list(options) if key in (*OPTIONS, "notes", "integrity", "title", "os")}
    return desk(server, **options).have(wanted(path, **about), publish=publish)


def writes(server: AppDbServer) -> list[str]:
    return [asked.method for asked in server.requests if asked.method != "GET"]


def test_a_build_is_published_and_a_second_run_changes_nothing(tmp_path: Path, server: AppDbServer) -> None:
    path = make_build(tmp_path)
    result = have(server, path)
    assert result.actions == ["AppDB appliance 1234 1: is not in AppDB yet"]
    (version,) = server.versions
    assert (version.published, version.status, version.enabled) == (True, "verified", True)
    assert version.notes == "Minimal Debian 12 & «cloud-init» <ok>"
    assert version.expires == json.loads(path.read_text())["expires"]
    assert version.image is not None
    digests = file_digests(tmp_path / "builds/1/debian-12-1.qcow2")
    assert version.image.fields == {
        "arch": "x86_64",
        "os": "Debian",
        "format": "QCOW2",
        "hypervisor": "KVM",
        "size": "4",
        "url": f"{BASE}debian-12-1.qcow2",
        "checksum": digests["sha512"],
        "cores": "",
        "ram": "",
        "title": "Debian 12",
        "notes": "",
        "description": version.notes,
    }
    assert version.image.attributes == {
        "os": {"version": "12"},
        "checksum": {"hash": "sha512"},
        "cores": {"minimum": "1", "recommended": "1"},
        "ram": {"minimum": str(1 << 30), "recommended": str(2 << 30)},
    }
    assert version.image.traffic == [
        {"direction": "inbound", "protocols": "TCP", "ip_range": "0.0.0.0/0", "port_range": "22"}
    ]
    assert result.extra["publication"] == {
        "appliance": "1234",
        "version": "1",
        "id": str(version.id),
        "identifier": version.image.identifier,
    }
    assert writes(server) == ["PUT"]
    again = have(server, path)
    assert (again.changed, again.actions) == (False, [])
    assert again.diff is not None and again.diff["before"] == again.diff["after"] != {}
    assert again.extra["publication"] == result.extra["publication"]
    assert writes(server) == ["PUT"]


def test_by_its_name_without_an_appliance_yet(tmp_path: Path, server: AppDbServer) -> None:
    have(server, make_build(tmp_path), software="s:egi.debian")
    assert server.versions[0].published
    paths = [asked.path for asked in server.requests]
    assert "/rest/1.0/applications/s:egi.debian" in paths


def test_the_next_version_archives_the_one_before(tmp_path: Path, server: AppDbServer) -> None:
    first = make_build(tmp_path, "1")
    have(server, first)
    have(server, make_build(tmp_path, "2", b"other"))
    assert [(each.version, each.published, each.archived) for each in server.versions] == [
        ("1", True, True),
        ("2", True, False),
    ]
    late = desk(server)
    result = late.have(wanted(first), publish=True)
    assert not result.changed
    assert late.warnings == [
        "AppDB appliance 1234 1: is archived since 2 was published; AppDB offers only the latest version"
    ]


def test_check_mode_writes_nothing(tmp_path: Path, server: AppDbServer) -> None:
    path = make_build(tmp_path)
    result = have(server, path, check_mode=True)
    assert result.changed and writes(server) == []
    assert result.diff is not None
    assert (result.diff["before"], result.diff["after"]["version"]) == ({}, "1")
    have(server, path)
    assert not have(server, path, check_mode=True).changed
    retired = desk(server, check_mode=True).retire("1")
    assert retired.changed and server.versions[0].enabled


def test_other_content_under_a_published_version_is_refused(tmp_path: Path, server: AppDbServer) -> None:
    have(server, make_build(tmp_path))
    before = server.state()
    with pytest.raises(
        FactoryError, match=r"^AppDB appliance 1234: version: version 1 is published already, with other"
    ):
        have(server, make_build(tmp_path, content=b"other"))
    assert server.state() == before


def test_what_cannot_be_changed_is_explained(tmp_path: Path, server: AppDbServer) -> None:
    path = make_build(tmp_path)
    have(server, path)
    late = desk(server)
    result = late.have(wanted(path, notes="Better", ram={"minimum": 2048}), publish=True)
    assert not result.changed and len(late.warnings) == 2
    assert late.warnings[0] == (
        "AppDB appliance 1234 1: notes is 'Minimal Debian 12 & «cloud-init» <ok>' and should be 'Better'; AppDB cannot change "
        "a published version: raise image_version and build again, or leave it"
    )
    assert "ram is (1073741824, 2147483648) and should be (2147483648, 2147483648)" in late.warnings[1]


def test_retiring_and_publishing_again(tmp_path: Path, server: AppDbServer) -> None:
    path = make_build(tmp_path)
    have(server, path)
    result = desk(server).retire("1")
    assert result.actions == ["AppDB appliance 1234 1: is published, shall be disabled"]
    assert not server.versions[0].enabled and server.versions[0].published
    assert not desk(server).retire("1").changed
    assert writes(server) == ["PUT", "POST"]
    again = have(server, path)
    assert again.actions == ["AppDB appliance 1234 1: is disabled, shall be published"]
    assert server.versions[0].enabled
    unknown = desk(server)
    assert not unknown.retire("9").changed
    assert unknown.warnings == ["AppDB appliance 1234 9: AppDB has no such version"]


def test_a_check_of_appdb_is_waited_for(tmp_path: Path, server: AppDbServer) -> None:
    path = make_build(tmp_path)
    image = wanted(path).image
    assert image is not None
    server.files[image.url] = (image.size, image.checksum)
    have(server, path, integrity=True)
    (version,) = server.versions
    assert (version.status, version.published) == ("verified", True)
    assert version.image is not None and version.image.verdict == "success"
    assert len([asked for asked in server.requests if asked.method == "GET"]) > server.looks
    assert not have(server, path, integrity=True).changed


def test_verified_only_then_published(tmp_path: Path, server: AppDbServer) -> None:
    path = make_build(tmp_path)
    image = wanted(path).image
    assert image is not None
    server.files[image.url] = (image.size, image.checksum)
    have(server, path, publish=False)
    assert (server.versions[0].status, server.versions[0].published) == ("verified", False)
    assert not have(server, path, publish=False).changed
    result = have(server, path)
    assert result.actions == ["AppDB appliance 1234 1: is verified, shall be published"]
    assert [(each.status, each.published) for each in server.versions] == [("verified", True)]
    assert writes(server) == ["PUT", "POST"]


def test_a_check_that_fails_and_mends(tmp_path: Path, server: AppDbServer) -> None:
    path = make_build(tmp_path)
    with pytest.raises(
        FactoryError, match=r"1: status: AppDB has not verified it, its status is failed .error: Could not"
    ):
        have(server, path, integrity=True)
    image = wanted(path).image
    assert image is not None
    server.files[image.url] = (image.size, image.checksum)
    have(server, path, integrity=True)
    assert [(each.status, each.published) for each in server.versions] == [("verified", True)]


def test_appdb_fetches_something_else(tmp_path: Path, server: AppDbServer) -> None:
    path = make_build(tmp_path)
    image = wanted(path).image
    assert image is not None
    server.files[image.url] = (5, "ab" * 64)
    said = r"1: artifact_url: AppDB fetched 5 bytes from https://\S+ whose sha512 is abababab\S+ not the artifact \(4 bytes"
    with pytest.raises(FactoryError, match=said):
        have(server, path, integrity=True)
    with pytest.raises(FactoryError, match="is published already, with other content"):
        have(server, path, integrity=True)


def test_a_verdict_that_does_not_come_and_comes(tmp_path: Path, server: AppDbServer) -> None:
    path = make_build(tmp_path)
    image = wanted(path).image
    assert image is not None
    server.files[image.url] = (image.size, image.checksum)
    server.looks = 10**6
    with pytest.raises(FactoryError, match=r"1: timeout: AppDB is still verifingpublish after 0.1 s; run this again"):
        have(server, path, integrity=True, timeout=0.1)
    server.looks = 0
    result = have(server, path, integrity=True)
    assert not result.changed and server.versions[0].published
    assert writes(server) == ["PUT"]


def test_not_waiting(tmp_path: Path, server: AppDbServer) -> None:
    server.looks = 10**6
    result = have(server, make_build(tmp_path), integrity=True, wait=False)
    assert result.extra["version"]["status"] == "verifingpublish"
    # Retiring ends the check, so that it is not published later.
    assert desk(server).retire("1").actions == ["AppDB appliance 1234 1: is verifingpublish, shall not be published"]
    assert (server.versions[0].status, server.versions[0].published) == ("init", False)


def test_a_working_version_is_changed_and_not_added_to(tmp_path: Path, server: AppDbServer) -> None:
    server.looks = 10**6
    have(server, make_build(tmp_path, "1"), integrity=True, wait=False)
    result = have(server, make_build(tmp_path, "2", b"other"))
    assert result.actions == [
        "AppDB appliance 1234 1: its check is cancelled, since it changes",
        "AppDB appliance 1234 2: is not in AppDB yet; the working version 1 becomes it",
    ]
    assert [(each.version, each.published) for each in server.versions] == [("2", True)]


@pytest.mark.parametrize("status", [200, 400, 403])
def test_errors_are_read_from_the_reply(tmp_path: Path, server: AppDbServer, status: int) -> None:
    server.error_status = status
    path = make_build(tmp_path)
    with pytest.raises(
        Answered,
        match=r"^PUT http://\S+/virtualization: Invalid resource representation: Could not identify os for VMI",
    ):
        have(server, path, os={"name": "Plan 9"})
    assert server.versions == [] and writes(server) == ["PUT"]
    with pytest.raises(Answered, match=r"Access denied; check the credentials, and whether they may manage"):
        have(server, path, known={"accesstoken": "pat-joe-0123456789"})
    server.exists = False
    with pytest.raises(Answered, match=r"^GET http://\S+: Resource not found; check the appliance's number or name"):
        have(server, path)


@pytest.mark.parametrize(
    "given",
    [
        {"access_token": "pat-jane-0123456789"},
        {"username": "jane", "password": "correct horse & battery", "api_key": "key-0123456789"},
        {"user_id": "7", "password": "session-token-1", "session_id": "session-id-1", "api_key": "key-0123456789"},
    ],
)
def test_credentials(tmp_path: Path, server: AppDbServer, given: dict[str, str]) -> None:
    have(server, make_build(tmp_path), known=credentials(given))
    assert server.versions[0].published
    desk(server, known=credentials(given)).retire("1")
    posted = server.requests[-2]
    assert posted.method == "POST" and posted.query == {}
    assert set(given.values()) <= set(posted.form.values())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "access_token: credentials are missing; give access_token, or"),
        ({"access_token": "a", "username": "b"}, "access_token and username cannot be given together"),
        ({"username": "b", "password": "c"}, "api_key: is missing beside username; give username, password, api_key"),
        ({"user_id": "b", "password": "c", "api_key": "d"}, "session_id: is missing beside user_id"),
    ],
)
def test_credentials_that_are_none(given: dict[str, str], said: str) -> None:
    with pytest.raises(FactoryError, match=said):
        credentials(given)


def test_no_message_shows_a_secret(tmp_path: Path, server: AppDbServer) -> None:
    known = {"username": "jane", "passwd": "correct horse & battery", "apikey": "key-0123456789"}
    path = make_build(tmp_path)
    told = []
    for number, kind in enumerate(["500", "403", "html", "nothing"]):
        server.misbehave = {len(server.requests) + place: (kind, False) for place in (0, 1, 2, 3, 4)}
        with pytest.raises(FactoryError) as caught:
            have(server, path, known={**known, "apikey": f"key-012345678{number}"})
        told.append(str(caught.value))
    with DroppingProxy(server.port) as proxy:
        server.misbehave = {}
        url = server.url.replace(str(server.port), str(proxy.port))
        desk(server, url, known).appdb.get()
        for cut in cuts(proxy.connections):
            proxy.again(cut)
            with pytest.raises(FactoryError) as caught:
                desk(server, url, known).appdb.get()
            told.append(str(caught.value))
    assert len(told) == 10
    assert not [text for text in told if "horse" in text or "key-01" in text]


@pytest.mark.parametrize("act", [False, True])
@pytest.mark.parametrize("kind", ["500", "403", "html", "nothing"])
def test_a_server_that_answers_something_else(tmp_path: Path, server: AppDbServer, kind: str, act: bool) -> None:
    """Whichever request is answered so, whether it was acted upon or not: the second run ends as one clean run does."""
    path = make_build(tmp_path)
    image = wanted(path).image
    assert image is not None
    clean = AppDbServer()
    server.files[image.url] = clean.files[image.url] = (image.size, image.checksum)
    have(clean, path, integrity=True)
    clean.close()
    told = []
    for number in range(len(clean.requests)):
        server.versions.clear()
        server.requests.clear()
        server.misbehave = {number: (kind, act)}
        try:
            have(server, path, integrity=True)
        except FactoryError as exc:
            told.append(str(exc))
        server.misbehave = {}
        have(server, path, integrity=True)
        assert server.state() == clean.state(), number
        assert not have(server, path, integrity=True).changed
    expected = {"500": "500", "403": "Forbidden", "html": "HTML page", "nothing": "nothing"}[kind]
    assert told and all(expected in text for text in told)


@pytest.mark.parametrize("reset", [False, True])
def test_the_network_is_cut_at_every_request(tmp_path: Path, server: AppDbServer, reset: bool) -> None:
    """Publishing one version over another, then retiring it: cut anywhere, the second run ends as one clean run does."""
    paths = [make_build(tmp_path, "1"), make_build(tmp_path, "2", b"other")]
    images = [wanted(path).image for path in paths]

    def whole(url: str) -> None:
        for path in paths:
            desk(server, url).have(wanted(path, integrity=True), publish=True)
        desk(server, url).retire("2")

    for image in images:
        assert image is not None
        server.files[image.url] = (image.size, image.checksum)
    with DroppingProxy(server.port) as proxy:
        url = server.url.replace(str(server.port), str(proxy.port))
        whole(url)
        clean = server.state()
        assert [(row["version"], row["archived"], row["enabled"]) for row in clean] == [
            ("1", True, True),
            ("2", False, False),
        ]
        places = cuts(proxy.connections, reset=reset)
        assert len(places) > 60
        failed: list[str] = []
        for cut in places[::3] if reset else places:
            server.versions.clear()
            proxy.again(cut)
            try:
                whole(url)
            except Unknown as exc:
                failed.append(str(exc))
                proxy.again()
                whole(url)
            assert server.state() == clean, cut
        assert 0 < len(failed) < len(places)
        assert all("run this again" in text for text in failed)


def test_the_document_is_escaped_and_ordered(tmp_path: Path) -> None:
    version = wanted(make_build(tmp_path), notes="a & b < c > \"d\" 'e' ]]>", title="x & y", os={"family": "1"})
    data = _appdb_document.dump("1234", version, publish=True)
    root = ET.fromstring(data)
    space = "{http://appdb.egi.eu/api/1.0/virtualization}"
    element = root.find(f"{space}appliance/{space}instance")
    assert element is not None
    assert element.attrib == {
        "version": "1",
        "status": "verifypublish",
        "published": "true",
        "expireson": version.expires,
    }
    assert element.findtext(f"{space}notes") == "a & b < c > \"d\" 'e' ]]>"
    own = element.find(f"{space}image/{space}instance")
    assert own is not None
    names = [child.tag.removeprefix(space) for child in own]
    assert names == [
        *("arch", "os", "format", "hypervisor", "identifier", "size", "url", "checksum", "cores", "network_traffic"),
        *("ram", "title", "notes", "description"),
    ]
    system = own.find(f"{space}os")
    assert system is not None and system.attrib == {"version": "12", "familyid": "1"}
    assert data.startswith(b"<?xml version='1.0' encoding='utf-8'?>\n<appdb:appdb xmlns:appdb=")


def test_the_expiry_is_at_most_a_year(tmp_path: Path, server: AppDbServer) -> None:
    path = make_build(tmp_path, expires=soon(3000))
    version, warnings = _appdb_describe.wanted(path, _descriptor.load(path), OPTIONS)
    assert version.expires == "" and "AppDB lets a version live for a year at most" in warnings[0]
    have(server, path)
    assert server.versions[0].expires[:4] == soon(365)[:4]
    assert not have(server, path).changed
    with pytest.raises(FactoryError, match="expires: its time ended at 2025-06-01T00:00:00Z; build the image again"):
        wanted(make_build(tmp_path, expires="2025-06-01T00:00:00Z"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"notes": "x" * 1001}, "notes: has 1001 bytes, AppDB takes 1000; give notes"),
        ({"notes": "ä" * 501}, "notes: has 1002 bytes"),
        ({"notes": "a\x07"}, "notes: has a character that no XML may have"),
        ({"group": "x" * 51}, "group: has 51 bytes, AppDB takes 50"),
        ({"title": "<b>"}, "title: has «<»"),
        ({"description": "x" * 1001}, "description: has 1001 bytes"),
        ({"artifact_url": "images/"}, r"artifact_url: is no URL that AppDB takes"),
        ({"artifact_url": "https://example.org/ä"}, r"artifact_url: is no URL that AppDB takes"),
        ({"format": "raw"}, "artifacts: has no artifact in the format raw, but qcow2; add it to image_formats"),
        ({"ram": {"minimum": 2, "recommended": 1}}, "ram: minimum 2 and recommended 1 contradict each other"),
        ({"cores": {"minimum": -1}}, "cores: minimum -1"),
        ({"network_traffic": [{"direction": "up"}]}, r"network_traffic\[0\]: direction 'up' is none of"),
        ({"network_traffic": [{"port_range": "ssh"}]}, r"network_traffic\[0\]: port_range 'ssh' is none"),
        ({"network_traffic": [{"protocols": ["SCTP"]}]}, r"network_traffic\[0\]: protocols 'SCTP' are not all of"),
    ],
)
def test_options_that_appdb_would_refuse(tmp_path: Path, options: dict[str, t.Any], said: str) -> None:
    with pytest.raises(FactoryError, match=said):
        wanted(make_build(tmp_path), **options)


def test_builds_that_cannot_be_published(tmp_path: Path) -> None:
    path = make_build(tmp_path, "2025013112000000000000")
    with pytest.raises(
        FactoryError, match=r"descriptor.json: version: has 22 bytes, AppDB takes 20; give image_version"
    ):
        wanted(path)
    path = make_build(tmp_path)
    disk = path.with_name("debian-12-1.qcow2")
    disk.write_bytes(b"risk")
    with pytest.raises(FactoryError, match=r"qcow2: artifacts: was changed after its export"):
        wanted(path)
    disk.unlink()
    with pytest.raises(FactoryError, match=r"qcow2: is missing, or no plain file"):
        wanted(path)
    newer = {**json.loads(path.read_text()), "schema": 2}
    path.write_text(json.dumps(newer))
    with pytest.raises(FactoryError, match=r"descriptor.json: schema: is 2, this version of cloudimg.factory knows 1"):
        wanted(path)


def test_what_everybody_may_see(tmp_path: Path, server: AppDbServer) -> None:
    have(server, make_build(tmp_path, "1"))
    server.looks = 10**6
    have(server, make_build(tmp_path, "2", b"other"), integrity=True, wait=False)
    seen = desk(server, known={}).appdb.get()
    assert [each.version for each in seen.versions] == ["1"]
    assert [each.version for each in desk(server).appdb.get().versions] == ["1", "2"]


@pytest.mark.parametrize("software", ["", "debian", "../vos", "s:a/b", "12 34"])
def test_what_is_no_appliance(server: AppDbServer, software: str) -> None:
    with pytest.raises(FactoryError, match=r"appliance: .* is no number and no name"):
        desk(server, software=software)


def test_what_appdb_has_is_told_whole(tmp_path: Path, server: AppDbServer) -> None:
    path = make_build(tmp_path)
    have(server, path)
    (found,) = desk(server).appdb.get().versions
    wish = wanted(path)
    assert _appdb_document.differences(wish, found) == {}
    assert wish.image is not None and found.image is not None
    for field in dataclasses.fields(_appdb_document.Image):
        if field.name not in ("group_id", "instance_id", "identifier", "verdict", "verdict_text", "os_family"):
            assert getattr(found.image, field.name) == getattr(wish.image, field.name), field.name
    assert json.loads(json.dumps(_appdb_document.described(found)))["image"]["network_traffic"][0]["port_range"] == "22"
