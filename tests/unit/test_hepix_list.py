# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A list as a file that is kept: what changes it, what does not, and what is refused. openssl verifies every list."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import subprocess
import sys
import typing as t
import uuid
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import (
    _descriptor,
    _hepix,
    _hepix_smime,
    _hepix_verify,
    _state,
    _x509,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._hepix_images import ImageOptions
from ansible_collections.cloudimg.factory.plugins.module_utils._hepix_list import ImageList, warnings
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.tests.tools import pki
from ansible_collections.cloudimg.factory.tests.tools.hepix import make_build, openssl_read

META = _hepix.Meta(
    title="Images", uri="https://images.example.org/lists/vo.list", vo="vo.example.org", endorser_name="Jane Doe"
)
BASE = "https://images.example.org/files"
STABLE = _descriptor.stable_identifier("debian-12")
DAY = datetime.timedelta(days=1)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> pki.Pki:
    return pki.Pki.make(tmp_path_factory.mktemp("pki"))


@dataclasses.dataclass
class Publisher:
    """Publishes in one list, at any moment."""

    root: Path
    grid: pki.Pki
    path: Path
    moment: datetime.datetime = dataclasses.field(default_factory=pki.now)

    def list(self, who: pki.Identity | None = None, **options: t.Any) -> ImageList:
        one = who or self.grid.endorser
        signer = _x509.Signer.load(one.certificate, one.key, one.passphrase, one.chain)
        return ImageList(**{"path": self.path, "signer": signer, "meta": META, "moment": self.moment, **options})

    def publish(
        self,
        version: str = "1",
        content: bytes = b"disk",
        *,
        keep: int = 1,
        build: t.Mapping[str, t.Any] | None = None,
        image: t.Mapping[str, t.Any] | None = None,
        **options: t.Any,
    ) -> Result:
        path = make_build(self.root, version, content, **(build or {}))
        return self.list(**options).present(path, ImageOptions(**{"base_url": BASE, **(image or {})}), keep)

    def read(self) -> dict[str, t.Any]:
        """The list, as openssl gives it out and as our own strict verification does."""
        found = openssl_read(self.path, self.grid.anchors)
        report = _hepix_verify.inspect(self.path, _hepix_verify.Policy(self.grid.anchors))
        assert report.problems == []
        assert report.found is not None and report.found.document == found
        return found

    def images(self) -> list[dict[str, t.Any]]:
        return [row["hv:image"] for row in self.read()["hv:images"]]

    def versions(self) -> list[tuple[str, str]]:
        """Version and identifier of each image."""
        return [(entry["hv:version"], entry["dc:identifier"]) for entry in self.images()]


@pytest.fixture
def publisher(tmp_path: Path, grid: pki.Pki) -> t.Iterator[Publisher]:
    made = Publisher(tmp_path, grid, tmp_path / "www/lists/vo.list")
    yield made
    if made.path.exists():
        openssl_read(made.path, grid.anchors)
        left = [path.name for path in made.path.parent.iterdir()]
        assert sorted(left) in (["vo.list"], [".vo.list.lock", "vo.list"])


def test_first_list(publisher: Publisher) -> None:
    result = publisher.publish()
    assert result.actions == ["the list: is not there yet", "debian-12 1: is not in the list yet"]
    found = publisher.read()
    assert _hepix.missing(found) == []
    identifier = str(uuid.uuid5(uuid.NAMESPACE_URL, str(META.uri)))
    assert {key: value for key, value in found.items() if key not in ("hv:images", "dc:date:created")} == {
        "ad:vo": "vo.example.org",
        "dc:date:expires": _descriptor.format_time(publisher.moment + 28 * DAY),
        "dc:description": "Images",
        "dc:identifier": identifier,
        "dc:source": META.uri,
        "dc:title": "Images",
        "hv:endorser": {
            "hv:x509": {
                "dc:creator": "Jane Doe",
                "hv:ca": "/DC=org/DC=example/CN=Example Grid CA",
                "hv:dn": "/DC=org/DC=example/C=DE/O=People/CN=endorser",
                "hv:email": "endorser@example.org",
            }
        },
        "hv:uri": META.uri,
        "hv:version": publisher.moment.strftime("%Y%m%d%H%M%S"),
    }
    assert publisher.path.stat().st_mode & 0o777 == 0o644
    assert result.image is not None and result.image["version"] == "1"
    assert result.extra["publication"] == {
        "list": str(publisher.path),
        "list_identifier": identifier,
        "uri": META.uri,
        "identifier": STABLE,
        "image": "debian-12",
        "version": "1",
        "format": "qcow2",
        "image_uri": f"{BASE}/debian-12-1.qcow2",
    }


def test_image_has_what_all_consumers_need(publisher: Publisher) -> None:
    publisher.publish(build={"memory": 512, "cpu": 2, "groups": ("Clusters",)})
    (image,) = publisher.images()
    home = "https://images.example.org/lists/image"
    assert image == {
        "ad:base_mpuri": f"{home}/{STABLE}/",
        "ad:group": "Clusters",
        "ad:mpuri": f"{home}/{STABLE}:1/",
        "ad:user:fullname": "Jane Doe",
        "ad:user:guid": str(uuid.uuid5(uuid.NAMESPACE_X500, "/DC=org/DC=example/C=DE/O=People/CN=endorser")),
        "ad:user:uri": "mailto:endorser@example.org",
        "cloudimg:identifier": STABLE,
        "cloudimg:image": "debian-12",
        "dc:date:created": "2025-01-31T12:00:00Z",
        "dc:date:expires": "2499-12-31T22:00:00Z",
        "dc:description": "Debian 12",
        "dc:identifier": STABLE,
        "dc:title": "Debian 12",
        "hv:core_minimum": "2",
        "hv:format": "qcow2",
        "hv:hypervisor": "KVM",
        "hv:ram_minimum": str(512 << 20),
        "hv:size": "4",
        "hv:uri": f"{BASE}/debian-12-1.qcow2",
        "hv:version": "1",
        "sl:arch": "x86_64",
        # SHA-512 of «disk», as sha512sum prints it.
        "sl:checksum:sha512": subprocess.run(["sha512sum"], input=b"disk", check=True, capture_output=True)
        .stdout.split()[0]
        .decode(),
        "sl:comments": "",
        "sl:os": "Linux",
        "sl:osname": "Debian",
        "sl:osversion": "12",
    }


def test_second_time_changes_nothing(publisher: Publisher) -> None:
    publisher.publish()
    before, stat = publisher.path.read_bytes(), publisher.path.stat()
    publisher.moment += 3 * DAY
    for again in (publisher.publish(), publisher.list(meta=_hepix.Meta()).present(None, ImageOptions(""), 1)):
        assert (again.changed, again.actions) == (False, [])
        assert again.diff == {"before": {}, "after": {}}
    assert publisher.path.read_bytes() == before
    assert (publisher.path.stat().st_ino, publisher.path.stat().st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)


def test_metadata_differ(publisher: Publisher) -> None:
    publisher.publish()
    before = publisher.read()
    result = publisher.publish(
        build={"title": "Debian GNU/Linux 12", "expires": "2098-01-01T00:00:00Z"},
        image={"fields": {"ad:appid": 7, "ad:group": "G"}, "comments": "x"},
        meta=dataclasses.replace(META, title="More images", fields={"ad:appid": 8}),
    )
    assert result.actions == [
        "the list: ad:appid, dc:title differ",
        "debian-12 1: ad:appid, ad:group, dc:date:expires, dc:description, dc:title, sl:comments differ",
    ]
    after = publisher.read()
    assert (after["dc:title"], after["ad:appid"]) == ("More images", "8")
    assert after["dc:identifier"] == before["dc:identifier"]
    (image,) = publisher.images()
    assert (image["ad:appid"], image["ad:group"], image["dc:date:expires"]) == ("7", "G", "2098-01-01T00:00:00Z")
    # The same second: the version is higher all the same.
    assert int(after["hv:version"]) == int(before["hv:version"]) + 1
    assert result.diff is not None
    assert result.diff["before"]["dc:title"] == "Images"
    assert result.diff["after"]["hv:images"][STABLE]["ad:group"] == "G"


def test_what_is_not_given_stays(publisher: Publisher) -> None:
    publisher.publish(meta=dataclasses.replace(META, description="All of them", fields={"ad:appid": "8"}))
    assert not publisher.publish(meta=_hepix.Meta()).changed
    publisher.publish("2", meta=_hepix.Meta())
    found = publisher.read()
    assert (found["dc:description"], found["ad:appid"], found["ad:vo"]) == ("All of them", "8", "vo.example.org")
    publisher.publish("2", meta=_hepix.Meta(fields={}))
    assert "ad:appid" not in publisher.read()


def test_new_version_takes_the_place_of_the_former(publisher: Publisher) -> None:
    publisher.publish("9")
    result = publisher.publish("10", b"other")
    assert result.actions == ["debian-12 10: is not in the list yet", "debian-12 9: is left out, keep is 1"]
    assert publisher.versions() == [("10", STABLE)]
    assert [(row["image"], row["version"], row["identifier"]) for row in result.extra["removed"]] == [
        ("debian-12", "9", STABLE)
    ]


def test_several_versions_and_images(publisher: Publisher) -> None:
    for version in ("1", "2", "3"):
        publisher.publish(version, version.encode(), keep=2)
    publisher.publish("1", b"worker", build={"image": "worker"}, keep=2)
    worker = _descriptor.stable_identifier("worker")
    second = _descriptor.version_identifier(STABLE, "2")
    assert publisher.versions() == [("3", STABLE), ("2", second), ("1", worker)]
    assert len({identifier for _version, identifier in publisher.versions()}) == 3
    # The one before comes back under the identifier to which sites have subscribed.
    result = publisher.list().absent(identifier=None, name="debian-12", version="3")
    assert result.actions == ["debian-12 3: shall not be in the list"]
    assert publisher.versions() == [("2", STABLE), ("1", worker)]
    assert not publisher.list().absent(identifier=None, name="debian-12", version="3").changed
    # Publishing what is there already changes nothing, the older one too.
    publisher.publish("4", b"4", keep=2)
    assert not publisher.publish("2", b"2", keep=2).changed


def test_two_formats(publisher: Publisher) -> None:
    other = str(uuid.uuid4())
    build = {"formats": ("raw.gz", "ova", "qcow2")}
    publisher.publish(build=build)
    publisher.publish(build=build, image={"format": "qcow2", "identifier": other.upper()})
    assert sorted((image["hv:format"], image["dc:identifier"]) for image in publisher.images()) == [
        ("ova", STABLE),
        ("qcow2", other),
    ]
    publisher.list().absent(identifier=other, name=None, version=None)
    assert publisher.versions() == [("1", STABLE)]


def test_empty(publisher: Publisher) -> None:
    publisher.publish()
    result = publisher.list().empty()
    assert result.actions == ["debian-12 1: the list shall be empty"]
    assert publisher.images() == []
    assert not publisher.list().empty().changed


def test_empty_list_from_the_beginning(publisher: Publisher) -> None:
    assert publisher.list().empty().actions == ["the list: is not there yet"]
    assert publisher.images() == []


def test_absent_without_a_list(publisher: Publisher) -> None:
    result = publisher.list().absent(identifier=None, name="debian-12", version=None)
    assert (result.changed, result.extra["removed"]) == (False, [])
    assert not publisher.path.exists()
    assert not publisher.path.parent.exists()


def test_renewal(publisher: Publisher) -> None:
    publisher.publish()
    first = publisher.read()
    publisher.moment += 20 * DAY
    assert not publisher.publish().changed
    publisher.moment += 2 * DAY
    result = publisher.publish()
    assert result.actions == [f"the list: expires at {first['dc:date:expires']}, shall be signed anew"]
    # openssl's view is of today; ours is of that day.
    found = _hepix_smime.load(publisher.path).document
    assert found["dc:date:created"] == _descriptor.format_time(publisher.moment)
    assert found["dc:date:expires"] == _descriptor.format_time(publisher.moment + 28 * DAY)
    assert found["hv:images"] == first["hv:images"]
    assert not publisher.publish().changed


def test_lifetime(publisher: Publisher) -> None:
    publisher.publish(lifetime=2 * DAY, renew_before=DAY)
    assert publisher.read()["dc:date:expires"] == _descriptor.format_time(publisher.moment + 2 * DAY)
    assert publisher.publish(lifetime=28 * DAY, renew_before=3 * DAY).changed
    assert not publisher.publish(lifetime=28 * DAY, renew_before=3 * DAY).changed


def test_list_ends_with_its_certificate(publisher: Publisher) -> None:
    brief = publisher.grid.issue("brief", valid=(-1, 3))
    assert publisher.publish(who=brief).changed
    end = _descriptor.format_time(brief.x509.not_valid_after_utc)
    assert publisher.read()["dc:date:expires"] == end
    # Signing again would not make it last longer.
    assert not publisher.publish(who=brief).changed
    (said,) = warnings(publisher.list(who=brief), {"expires": end}, "https://x")
    assert f"ends at {end}, before the list would; renew it" in said
    # The same name, a new certificate.
    renewed = publisher.grid.issue("renewed", subject=brief.x509.subject)
    result = publisher.publish(who=renewed, meta=dataclasses.replace(META, endorser_email="brief@example.org"))
    assert "the list: is signed with other certificates" in result.actions
    assert publisher.read()["dc:date:expires"] > end


def test_warning_about_http(publisher: Publisher) -> None:
    (said,) = warnings(publisher.list(), {}, "http://x/list")
    assert "can serve an older list" in said


def test_given_versions(publisher: Publisher) -> None:
    one = publisher.list(version="0.0.9")
    build = make_build(publisher.root, "1")
    one.present(build, ImageOptions(BASE), 1)
    assert publisher.read()["hv:version"] == "0.0.9"
    assert not one.present(build, ImageOptions(BASE), 1).changed
    for lower in ("0.0.9", "0.0.8"):
        with pytest.raises(FactoryError, match=r"list_version: 0.0.\d is not greater than 0.0.9"):
            publisher.list(version=lower).present(make_build(publisher.root, "2"), ImageOptions(BASE), 1)
    result = publisher.list(version="0.0.10").present(build, ImageOptions(BASE), 1)
    assert result.actions == ["the list: is version 0.0.9, shall be 0.0.10"]
    publisher.publish("2")
    assert publisher.read()["hv:version"] == publisher.moment.strftime("%Y%m%d%H%M%S")


@pytest.mark.parametrize(
    ("former", "expected"),
    [
        (None, "20250131120000"),
        ("0.0.1", "20250131120000"),
        ("20250131115959", "20250131120000"),
        ("20250131120000", "20250131120001"),
        ("20990101000000", "20990101000001"),
        ("20990101000000.9", "20990101000000.10"),
        ("99999999999999-x", "99999999999999-x1"),
    ],
)
def test_next_version(former: str | None, expected: str) -> None:
    moment = datetime.datetime(2025, 1, 31, 12, tzinfo=datetime.timezone.utc)
    assert _hepix.next_version(former, moment) == expected


def test_check_mode(publisher: Publisher) -> None:
    result = publisher.publish(check_mode=True)
    assert result.changed
    assert not publisher.path.parent.exists()
    missing = publisher.root / "not-yet/descriptor.json"
    assert publisher.list(check_mode=True).present(missing, ImageOptions(BASE), 1).changed
    publisher.publish()
    before = publisher.path.read_bytes()
    changed = publisher.publish("2", check_mode=True)
    assert changed.diff is not None and changed.diff["after"]["hv:images"][STABLE]["hv:version"] == "2"
    assert publisher.list(check_mode=True).empty().changed
    assert publisher.path.read_bytes() == before
    assert not publisher.publish(check_mode=True).changed


def test_bad_signers(publisher: Publisher) -> None:
    for which, one in publisher.grid.bad().items():
        with pytest.raises(FactoryError) as caught:
            publisher.publish(who=one)
        assert str(one.certificate) in str(caught.value), which
    odd = publisher.grid.issue("odd", subject=pki.make_name("DC=org", "CN=Jürgen"))
    with pytest.raises(
        FactoryError, match=r"the name /DC=org/CN=J\\xC3\\xBCrgen, which verifiers spell in several ways"
    ):
        publisher.publish(who=odd)
    assert not publisher.path.parent.exists()


def test_list_of_somebody_else(publisher: Publisher) -> None:
    publisher.publish()
    before = publisher.path.read_bytes()
    other = publisher.grid.issue("other", number=3)
    for call in (
        lambda: publisher.publish("2", who=other),
        lambda: publisher.list(who=other).empty(),
        lambda: publisher.list(who=other).absent(identifier=None, name="debian-12", version=None),
        lambda: publisher.list(who=other).present(None, ImageOptions(""), 1),
    ):
        with pytest.raises(
            FactoryError, match=r"is signed by .*CN=endorser .* not by .*CN=other .*: it stays as it is"
        ):
            call()
    # The same name from another authority is another one.
    impostor = pki.Authority(pki.make_name("CN=Other CA"), number=6).issue(
        publisher.root / "impostor", subject=publisher.grid.endorser.x509.subject
    )
    with pytest.raises(FactoryError, match="of /CN=Other CA"):
        publisher.publish("2", who=impostor)
    assert publisher.path.read_bytes() == before
    former = (publisher.list().signer.dn, publisher.list().signer.ca)
    assert publisher.publish("2", who=other, former=(former,)).changed
    assert publisher.read()["hv:endorser"]["hv:x509"]["hv:dn"].endswith("CN=other")


def test_list_that_was_changed(publisher: Publisher) -> None:
    publisher.publish()
    good = publisher.path.read_bytes()
    for bad, problem in (
        (good.replace(b'"KVM"', b'"XEN"'), "its signature does not fit"),
        (b'{"hv:imagelist": {}}', "is a list without a signature"),
        (good[: len(good) // 2], "does not have two parts"),
        (b"", "is no S/MIME message"),
    ):
        publisher.path.write_bytes(bad)
        with pytest.raises(FactoryError, match=problem):
            publisher.publish("2")
        assert publisher.path.read_bytes() == bad
    publisher.path.write_bytes(good.replace(b"This is an S/MIME", b"This is my S/MIME"))
    assert publisher.publish().actions == ["the list: another tool wrote it, or its frame was changed"]


def test_list_of_another_tool_is_taken_on(publisher: Publisher) -> None:
    """A list that vmcaster or openssl signed with the same certificate keeps its images, identifier and versions."""
    old = {
        "dc:identifier": str(uuid.uuid4()),
        "dc:title": "Old list",
        "hv:version": "0.0.7",
        "dc:date:expires": "2024-01-01T00:00:00Z",
        "hv:images": [{"hv:image": {"dc:identifier": "abc", "dc:title": "By hand", "hv:version": "5", "x": 1}}],
    }
    content = publisher.root / "content"
    content.write_text(json.dumps({"hv:imagelist": old}), encoding="utf-8")
    publisher.path.parent.mkdir(parents=True)
    one = publisher.grid.endorser
    argv = ["openssl", "smime", "-sign", "-in", content, "-out", publisher.path, "-signer", one.certificate]
    subprocess.run([*argv, "-inkey", one.key], check=True, capture_output=True)
    publisher.publish(meta=dataclasses.replace(META, title=None))
    found = openssl_read(publisher.path, publisher.grid.anchors)
    assert (found["dc:identifier"], found["dc:title"]) == (old["dc:identifier"], "Old list")
    assert found["hv:images"][0] == old["hv:images"][0]
    assert found["hv:images"][1]["hv:image"]["dc:identifier"] == STABLE
    assert publisher.list().absent(identifier="abc", name=None, version=None).changed
    assert publisher.versions() == [("1", STABLE)]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"title": None}, "title: is missing; give it; a new list needs it"),
        ({"vo": " "}, "vo: is missing"),
        ({"uri": None}, "uri: is missing"),
        ({"endorser_name": None}, "endorser_name: is missing"),
        ({"uri": "ftp://x/y"}, "uri: 'ftp://x/y' is no http.s. URL"),
        ({"identifier": "abc"}, "identifier: 'abc' is no UUID"),
        ({"fields": {"hv:version": "7"}}, "fields: hv:version cannot be set here"),
        ({"fields": {"appid": "7"}}, "fields: 'appid' is no key of a list; write the prefix along"),
    ],
)
def test_bad_metadata(publisher: Publisher, change: dict[str, t.Any], problem: str) -> None:
    with pytest.raises(FactoryError, match=problem):
        publisher.publish(meta=dataclasses.replace(META, **change))
    assert not publisher.path.exists()


def test_certificate_without_an_address(publisher: Publisher) -> None:
    mute = publisher.grid.issue("mute", email=None)
    with pytest.raises(FactoryError, match="endorser_email: is missing"):
        publisher.publish(who=mute)
    publisher.publish(who=mute, meta=dataclasses.replace(META, endorser_email="a@example.org"))
    assert publisher.read()["hv:endorser"]["hv:x509"]["hv:email"] == "a@example.org"


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        ({"base_url": "/srv"}, "base_url: '/srv' is no"),
        ({"format": "vdi"}, "has no artifact in the format vdi, only qcow2"),
        ({"identifier": "7"}, "image_identifier: '7' is no UUID"),
        ({"fields": {"sl:checksum:sha512": "0"}}, "image_fields: sl:checksum:sha512 cannot be set here"),
        ({"fields": {"cloudimg:image": "0"}}, "image_fields: 'cloudimg:image' is no key"),
    ],
)
def test_bad_image_options(publisher: Publisher, image: dict[str, t.Any], problem: str) -> None:
    publisher.publish("0")
    before = publisher.path.read_bytes()
    with pytest.raises(FactoryError, match=problem):
        publisher.publish(image=image)
    assert publisher.path.read_bytes() == before


def test_other_list(publisher: Publisher) -> None:
    publisher.publish()
    with pytest.raises(FactoryError, match=r"identifier: is .*, the list that is there is"):
        publisher.publish(meta=dataclasses.replace(META, identifier=str(uuid.uuid4())))


def test_bad_builds(publisher: Publisher) -> None:
    publisher.publish("2")
    before = publisher.path.read_bytes()
    with pytest.raises(FactoryError, match="version 2 is in the list already, with other content; raise image_version"):
        publisher.publish("2", b"other")
    with pytest.raises(FactoryError, match="version 1 is not newer than 2, which the list has"):
        publisher.publish("1")
    with pytest.raises(FactoryError, match="expires: its time ended at 2025-02-01"):
        publisher.publish("3", build={"expires": "2025-02-01T00:00:00Z"})
    with pytest.raises(FactoryError, match=r"has no artifact for an image list, only box, raw.gz; export one of"):
        publisher.publish("3", build={"formats": ("raw.gz", "box")})
    descriptor = make_build(publisher.root, "3")
    options = ImageOptions(BASE)
    disk = descriptor.parent / "debian-12-3.qcow2"
    disk.write_bytes(b"DISK")
    with pytest.raises(FactoryError, match=r"debian-12-3.qcow2: artifacts: was changed after its export"):
        publisher.list().present(descriptor, options, 1)
    disk.unlink()
    with pytest.raises(FactoryError, match=r"debian-12-3.qcow2: is missing"):
        publisher.list().present(descriptor, options, 1)
    _state.write_json(descriptor, {**json.loads(descriptor.read_text()), "schema": 2})
    with pytest.raises(FactoryError, match=r"descriptor.json: schema: is 2, this version of cloudimg.factory knows 1"):
        publisher.list().present(descriptor, options, 1)
    with pytest.raises(FactoryError, match="No such file"):
        publisher.list().present(publisher.root / "none.json", options, 1)
    assert publisher.path.read_bytes() == before


def test_two_contents_at_one_uri(publisher: Publisher) -> None:
    same = {"fields": {}}
    publisher.publish("1", b"one", keep=2, image=same)
    second = make_build(publisher.root, "2", b"two")
    document = json.loads(second.read_text(encoding="utf-8"))
    (second.parent / "debian-12-2.qcow2").rename(second.parent / "debian-12-1.qcow2")
    document["artifacts"][0]["path"] = document["disks"][0]["path"] = "debian-12-1.qcow2"
    _state.write_json(second, document)
    with pytest.raises(FactoryError, match="at which the list has debian-12 1 with other content"):
        publisher.list().present(second, ImageOptions(BASE), 2)
    publisher.list().present(second, ImageOptions(f"{BASE}/2"), 2)
    assert [image["hv:uri"] for image in publisher.images()] == [
        f"{BASE}/2/debian-12-1.qcow2",
        f"{BASE}/debian-12-1.qcow2",
    ]


def test_failed_write_leaves_the_list(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    publisher.publish()
    before = publisher.path.read_bytes()

    def full(_handle: int) -> t.NoReturn:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(FactoryError, match="No space left on device; free some space"):
            publisher.publish("2")
    assert publisher.path.read_bytes() == before


def test_own_signature_is_verified_before_it_replaces_a_list(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.publish()
    before = publisher.path.read_bytes()
    sign = _hepix_smime.sign
    monkeypatch.setattr(_hepix_smime, "sign", lambda *args: sign(*args).replace(b'"KVM"', b'"XEN"'))
    with pytest.raises(FactoryError, match="its signature does not fit"):
        publisher.publish("2")
    assert publisher.path.read_bytes() == before


PUBLISH = """
import sys
from pathlib import Path
from ansible.utils.collection_loader._collection_finder import _AnsibleCollectionFinder
_AnsibleCollectionFinder(paths=[sys.argv[1]])._install()
from ansible_collections.cloudimg.factory.plugins.module_utils import _hepix, _x509
from ansible_collections.cloudimg.factory.plugins.module_utils._hepix_images import ImageOptions
from ansible_collections.cloudimg.factory.plugins.module_utils._hepix_list import ImageList
certificate, key, chain, path, *descriptors = map(Path, sys.argv[2:])
signer = _x509.Signer.load(certificate, key, None, chain)
meta = _hepix.Meta(title="T", uri="https://x.example.org/l", vo="v", endorser_name="N")
for descriptor in descriptors:
    ImageList(path, signer, meta).present(descriptor, ImageOptions("https://x.example.org"), 1)
"""


def test_publishers_at_the_same_time(publisher: Publisher) -> None:
    """Each list is whole, none of the images is lost, and no version is there twice."""
    one = publisher.grid.endorser
    argv = [sys.executable, "-c", PUBLISH, os.environ["ANSIBLE_COLLECTIONS_PATH"], one.certificate, one.key, one.chain]
    running = []
    for worker in range(3):
        builds = [make_build(publisher.root, image=f"image-{worker}-{number}") for number in range(4)]
        words = [str(word) for word in (*argv, publisher.path, *builds)]
        running.append(subprocess.Popen(words, stderr=subprocess.PIPE))
    for process in running:
        _out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err.decode()
    names = {image["cloudimg:image"] for image in publisher.images()}
    assert names == {f"image-{worker}-{number}" for worker in range(3) for number in range(4)}


def test_second_machine(publisher: Publisher, tmp_path: Path) -> None:
    """Another machine has the list and the descriptor, and nothing else of ours."""
    publisher.publish()
    other = Publisher(tmp_path / "other", publisher.grid, tmp_path / "other/vo.list")
    other.root.mkdir()
    other.path.write_bytes(publisher.path.read_bytes())
    assert not other.publish().changed
    assert other.publish("2").changed
    assert other.versions() == [("2", STABLE)]


def test_spans() -> None:
    assert _hepix.span("4w", "lifetime") == 28 * DAY
    for bad in ("", "28", "0d", "1y", "-1d", "999999d"):
        with pytest.raises(FactoryError, match=r"lifetime: .* is no time span"):
            _hepix.span(bad, "lifetime")
