# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds endorsed in a Marketplace over HTTP: what a second run changes, what a broken connection leaves, what is refused."""

from __future__ import annotations

import datetime
import gzip
import hashlib
import json
import lzma
import os
import shutil
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
import yaml
from lxml import etree
from stratuslab_site import DISK, Site, files, make_build, state, xmlsec1

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _stratuslab, _stratuslab_info
from ansible_collections.cloudimg.factory.plugins.module_utils import _stratuslab_document as document
from ansible_collections.cloudimg.factory.plugins.module_utils import _stratuslab_signature as signature
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._http import Http
from ansible_collections.cloudimg.factory.plugins.module_utils._stratuslab_market import Marketplace as Client
from ansible_collections.cloudimg.factory.plugins.module_utils._x509 import Signer
from ansible_collections.cloudimg.factory.tests.tools import pki
from ansible_collections.cloudimg.factory.tests.tools.marketplace_server import Marketplace


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> pki.Pki:
    return pki.Pki.make(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def market() -> t.Iterator[Marketplace]:
    with Marketplace() as server:
        yield server


@pytest.fixture
def site(tmp_path: Path, grid: pki.Pki, market: Marketplace) -> Site:
    make_build(tmp_path / "build")
    return Site(tmp_path, grid, market.url)


# The states


def test_a_build_is_endorsed_and_a_second_run_changes_nothing(site: Site, market: Marketplace) -> None:
    first = site.present()
    assert first.actions == [
        "debian-12 1: is not endorsed yet",
        f"debian-12 1: is not the newest entry in {market.url}",
    ]
    assert len(market.entries) == 1 and market.requests("POST") == 1
    key = next(iter(market.entries))
    publication = first.extra["publication"]
    assert (publication["identifier"], publication["email"], publication["created"]) == key
    assert publication["url"].startswith(f"{market.url}/metadata/{key[0]}/{key[1]}/")
    assert first.image and first.image["image"] == "debian-12"
    digest = hashlib.sha1(DISK, usedforsecurity=False).hexdigest()
    said = site.said()
    assert said["checksums"]["sha1"] == digest and said["identifier"] == document.identifier(digest)
    assert (said["size"], said["format"], said["compression"], said["valid"]) == (
        *(len(DISK), "qcow2", "", "2099-01-01T00:00:00Z"),
    )
    assert said["creator"] == "endorser" and said["version"] == "1" and said["locations"]
    assert not said["deviations"] and said["signature"]["trusted"]
    xmlsec1(site.path.read_bytes(), site)
    xmlsec1(market.entries[key], site)
    before = files(site.root)
    second = site.present()
    assert not second.changed and second.actions == [] and second.extra["publication"] == publication
    assert second.diff and second.diff["before"] == second.diff["after"]
    assert market.requests("POST") == 1 and files(site.root) == before


def test_without_a_marketplace_the_signed_file_is_all(site: Site, market: Marketplace) -> None:
    first = site.present(url=None)
    assert first.actions == ["debian-12 1: is not endorsed yet"] and "url" not in first.extra["publication"]
    before = files(site.root)
    assert not site.present(url=None).changed and files(site.root) == before
    assert not market.asked
    # What was signed is what is sent later.
    later = site.present()
    assert later.actions == [f"debian-12 1: is not the newest entry in {market.url}"]
    assert files(site.root) == before and len(market.entries) == 1


def test_check_mode_signs_nothing_and_sends_nothing(site: Site, market: Marketplace) -> None:
    before = files(site.root)
    told = site.present(check_mode=True)
    assert (
        len(told.actions) == 2
        and told.diff
        and told.diff["before"] == {}
        and told.diff["after"]["title"] == "Debian 12"
    )
    assert files(site.root) == before and not market.entries and market.requests("POST") == 0
    done = site.present()
    assert done.actions == told.actions
    missing = site.present(check_mode=True, descriptor=site.root / "none" / "descriptor.json")
    assert missing.changed and "the stage before would make it" in missing.actions[0]


def test_another_content_is_endorsed_anew(site: Site, market: Marketplace) -> None:
    site.present()
    make_build(site.root / "build", title="Debian «bookworm»")
    again = site.present()
    assert again.actions[0] == "debian-12 1: differs from what is endorsed: title"
    assert again.diff and again.diff["before"]["title"] == "Debian 12"
    assert again.diff["after"]["title"] == "Debian «bookworm»"
    # The Marketplace keeps both, and the later one is in a later second.
    assert len(market.entries) == 2
    assert not site.present().changed


def test_deprecated_with_a_reason_and_back(site: Site, market: Marketplace) -> None:
    site.present()
    shutil.rmtree(site.root / "build")
    identifier = document.identifier(hashlib.sha1(DISK, usedforsecurity=False).hexdigest())
    done = site.deprecate("openssl is outdated", descriptor=None, identifier=identifier)
    assert done.actions[0] == f"{identifier}: differs from what is endorsed: deprecated"
    said = site.said()
    assert (
        said["deprecated"] == "openssl is outdated" and said["status"] == "deprecated" and said["title"] == "Debian 12"
    )
    judge = _stratuslab_info.Judge(ca_directory=site.grid.anchors)
    client = Client(market.url, Http(delays=()))
    assert _stratuslab_info.entries(client, judge, status="valid") == ([], [])
    found, refused = _stratuslab_info.entries(client, judge, status="deprecated")
    assert [one["deprecated"] for one in found] == ["openssl is outdated"] and not refused
    assert not site.deprecate("openssl is outdated", descriptor=None, identifier=identifier).changed
    # The signed file may be lost: the Marketplace has it.
    site.path.unlink()
    lost = site.deprecate("openssl is outdated", descriptor=None, identifier=identifier)
    assert lost.actions == [f"{site.path}: is not the Marketplace's newest entry"] and site.said() != {}
    assert not site.deprecate("openssl is outdated", descriptor=None, identifier=identifier).changed
    other = site.deprecate("it is wrong", descriptor=None, identifier=identifier)
    assert other.changed and site.said()["deprecated"] == "it is wrong"
    make_build(site.root / "build")
    back = site.present()
    assert back.actions[0] == "debian-12 1: differs from what is endorsed: deprecated"
    assert "deprecated" not in site.said() and market.requests("POST") == 4


def test_deprecating_by_descriptor_needs_no_artifact(site: Site, market: Marketplace) -> None:
    site.present()
    (site.root / "build" / "debian-12-1.qcow2").unlink()
    assert site.deprecate("outdated").changed
    assert [entry.get("deprecated") for entry in state(market)] == [None, "outdated"]


def test_what_was_never_published_cannot_be_deprecated(site: Site, market: Marketplace) -> None:
    with pytest.raises(FactoryError, match=r": there is no entry of .{27} by endorser@example\.org that could be"):
        site.deprecate("outdated")
    assert market.requests("POST") == 0


def test_absent_removes_the_file_alone(site: Site, market: Marketplace) -> None:
    site.present()
    assert _stratuslab.absent(site.path, check_mode=True).changed and site.path.exists()
    assert _stratuslab.absent(site.path, check_mode=False).changed and not site.path.exists()
    assert not _stratuslab.absent(site.path, check_mode=False).changed
    assert len(market.entries) == 1


def test_old_marketplaces_get_sha1(site: Site, market: Marketplace) -> None:
    site.present(profile="sha1")
    assert not site.present(profile="sha1").changed
    with pytest.raises(FactoryError, match="is signed by the profile sha1, which is not allowed here"):
        site.said()
    renewed = site.present()
    assert renewed.actions[0] == "debian-12 1: is signed by the profile sha1, shall be by sha256"
    assert site.said()["signature"]["profile"] == "sha256"
    for octets in market.entries.values():
        xmlsec1(octets, site)


def test_a_marketplace_that_sends_mails_is_asked_once(site: Site, market: Marketplace) -> None:
    market.confirm = True
    first = site.present()
    assert first.changed and first.extra["confirmation"] and first.extra["publication"]["confirmation"] == "pending"
    for _again in range(2):
        waiting = site.present()
        assert not waiting.changed and waiting.extra["confirmation"]
    assert market.requests("POST") == 1
    # After the days that were given another mail is asked for.
    assert site.present(ask_again=0).changed
    assert market.requests("POST") == 2
    market.answer(next(iter(market.pending)))
    done = site.present()
    assert not done.changed and not done.extra["confirmation"] and "confirmation" not in done.extra["publication"]
    assert [path.name for path in site.path.parent.iterdir()] == [site.path.name]


# What is endorsed


@pytest.mark.parametrize("kind", ["raw.gz", "raw.xz"])
def test_compressed_artifacts_are_described_unpacked(site: Site, kind: str) -> None:
    packed = {"raw.gz": gzip.compress, "raw.xz": lzma.compress}[kind](DISK)
    make_build(site.root / "build", {kind: packed})
    site.present()
    said = site.said()
    assert said["checksums"]["sha256"] == hashlib.sha256(DISK).hexdigest() and said["size"] == len(DISK)
    assert said["format"] == "raw" and said["compression"] == kind[-2:]
    # Unpacked but once.
    record = site.root / "build" / f"debian-12-1.{kind}.unpacked.json"
    before = record.stat().st_mtime_ns
    assert not site.present().changed and record.stat().st_mtime_ns == before
    record.unlink()
    with_twin = make_build(site.root / "twin", {kind: packed, "raw": DISK})
    assert not site.present(descriptor=with_twin).changed
    assert not (site.root / "twin" / record.name).exists()


def test_artifacts_are_chosen(site: Site) -> None:
    make_build(site.root / "build", {"vmdk": b"v", "raw": DISK, "qcow2": b"q"})
    site.present(url=None)
    assert site.said()["format"] == "raw"
    site.present(url=None, artifact="qcow2")
    assert site.said()["format"] == "qcow2"
    with pytest.raises(
        FactoryError, match=r"artifacts: debian-12-1\.vmdk is vmdk, a StratusLab Marketplace knows qcow2"
    ):
        site.present(url=None, artifact="debian-12-1.vmdk")
    with pytest.raises(FactoryError, match=r"artifacts: has no ova; choose among vmdk \(debian-12-1\.vmdk\)"):
        site.present(url=None, artifact="ova")
    make_build(site.root / "build", {"vmdk": b"v"})
    with pytest.raises(FactoryError, match=r"artifacts: has vmdk only, a StratusLab Marketplace knows .*; export one"):
        site.present(url=None)


def test_times_that_the_descriptor_does_not_tell(site: Site) -> None:
    created = _descriptor.now()
    make_build(site.root / "build", expires=None, created=created)
    site.present(url=None, lifetime="2w")
    assert site.said()["valid"] == _descriptor.expiry(created, "2w")
    with pytest.raises(FactoryError, match="image_expires: 'soon' is no time span"):
        site.present(url=None, lifetime="soon")


# Bad input


def refuses(site: Site, market: Marketplace, pattern: str, **options: t.Any) -> None:
    """The call fails in one line, and changes nothing anywhere."""
    before = files(site.root)
    with pytest.raises(FactoryError, match=pattern) as caught:
        site.present(**options)
    assert "\n" not in str(caught.value) and caught.value.mend
    assert files(site.root) == before and not market.entries and market.requests("POST") == 0


def test_bad_descriptors(site: Site, market: Marketplace) -> None:
    good = json.loads(site.descriptor.read_text(encoding="utf-8"))
    site.descriptor.write_text(json.dumps({**good, "schema": 2}), encoding="utf-8")
    refuses(site, market, r"descriptor\.json: schema: is 2, this version of cloudimg\.factory knows 1; ")
    site.descriptor.write_text("{", encoding="utf-8")
    refuses(site, market, r"descriptor\.json: is not JSON: ")
    make_build(site.root / "build", created="2020-01-01T00:00:00Z", expires="2021-01-01T00:00:00Z")
    refuses(site, market, r"descriptor\.json: expires: its time ended at 2021-01-01T00:00:00Z; build the image again")
    make_build(site.root / "build", title="a\x01b")
    refuses(site, market, r"descriptor\.json: title: has a character that XML cannot have; leave")
    site.descriptor.unlink()
    refuses(site, market, r"descriptor\.json: No such file or directory; ")


def test_bad_artifacts(site: Site, market: Marketplace) -> None:
    disk = site.root / "build" / "debian-12-1.qcow2"
    disk.write_bytes(DISK[:-1] + b"x")
    refuses_changed(site, market, r"debian-12-1\.qcow2: artifacts: was changed after its export: md5 is ")
    disk.write_bytes(DISK + b"x")
    refuses_changed(
        site, market, r"debian-12-1\.qcow2: artifacts: was changed after the export of debian-12 1: it has "
    )
    disk.unlink()
    refuses(site, market, r"debian-12-1\.qcow2: is missing, or no plain file; run the export stage again")
    for octets, problem in (
        (gzip.compress(DISK)[:-20], "cannot be unpacked as gzip"),
        (gzip.compress(DISK + b"more"), f"does not unpack to {len(DISK)} bytes"),
        (gzip.compress(DISK[:-1]), f"does not unpack to {len(DISK)} bytes"),
        (gzip.compress(bytes(1 << 26)), f"does not unpack to {len(DISK)} bytes"),
    ):
        make_build(site.root / "build", {"raw.gz": octets})
        refuses_changed(site, market, rf"debian-12-1\.raw\.gz: .*{problem}")
        assert not list((site.root / "build").glob("*.unpacked.json"))


def refuses_changed(site: Site, market: Marketplace, pattern: str) -> None:
    """The same for a file that has to be read first, whose digests are then kept beside it."""
    with pytest.raises(FactoryError, match=pattern) as caught:
        site.present()
    assert "\n" not in str(caught.value) and caught.value.mend
    assert not site.path.exists() and not market.entries and market.requests("POST") == 0


def test_bad_certificates(site: Site, market: Marketplace) -> None:
    bad = site.grid.bad()
    for kind, problem in (
        ("expired", r"expired\.pem: the certificate .* expired at "),
        ("not_yet_valid", r"not-yet-valid\.pem: the certificate .* is not valid before "),
        ("no_digital_signature", r"no-digital-signature\.pem: .* keyUsage lacks digitalSignature"),
        ("short_key", r"short-key\.pem: .* RSA key of 1024 bits"),
    ):
        refuses(site, market, problem, identity=bad[kind])
    curve = site.grid.issue("curve", key="ec")
    refuses(site, market, r"curve\.pem: has no RSA key; ", identity=curve)
    locked = site.grid.issue("locked", passphrase=pki.PASSPHRASE)
    wrong = (locked.certificate, locked.key, "wrong", locked.chain)
    refuses(site, market, r"locked\.key\.pem: cannot be decrypted: the passphrase is wrong", signer=wrong)
    other = site.grid.issue("other", number=3)
    mixed = (other.certificate, site.grid.endorser.key, None, None)
    refuses(site, market, r"endorser\.key\.pem: is not the key of the certificate ", signer=mixed)
    refuses(site, market, "email: is a@b, and the certificate has endorser@example.org", email="a@b")
    anonymous = site.grid.issue("anonymous", email=None)
    refuses(site, market, "email: is missing, and the certificate has none; give an address", identity=anonymous)
    refuses(site, market, "email: cannot be 'jane'; give an address", identity=anonymous, email="jane")
    assert site.present(anonymous, email="jane@example.org").extra["publication"]["email"] == "jane@example.org"


def test_an_encrypted_key_signs(site: Site) -> None:
    locked = site.grid.issue("locked", passphrase=pki.PASSPHRASE)
    result = site.present(locked)
    assert site.said()["endorsement"]["email"] == "locked@example.org"
    assert pki.PASSPHRASE not in repr(result) and pki.PASSPHRASE not in site.path.read_text(encoding="utf-8")


def test_bad_options(site: Site, market: Marketplace) -> None:
    refuses(site, market, "slterms:inbound-port: must be a number from 0 to 65535", words={"inbound_ports": (70000,)})
    for url in ("marketplace.example.org", "ftp://example.org", "https://example.org/?a=1"):
        with pytest.raises(FactoryError, match="marketplace: is no URL of a server; give one with http or https"):
            site.present(url=url)
    site.path.parent.mkdir()
    site.path.write_text("my diary", encoding="utf-8")
    refuses(site, market, r"debian-12\.xml: path: is no metadata of an image; name another file")
    with pytest.raises(FactoryError, match=r"debian-12\.xml: path: is no metadata of an image; name another file"):
        _stratuslab.absent(site.path, check_mode=False)
    assert site.path.read_text(encoding="utf-8") == "my diary"
    with pytest.raises(FactoryError, match=r"identifier: cannot be '\.\./x'; give the 27 characters of one"):
        site.deprecate("x", identifier="../x")


# Who else signs


def test_a_damaged_file_is_signed_anew(site: Site, market: Marketplace) -> None:
    site.present(url=None)
    site.path.write_bytes(site.path.read_bytes().replace(b"Minimal", b"Maximal"))
    again = site.present(url=None)
    assert "what is there cannot be used: it has no valid signature" in again.actions[0]
    assert site.said()["description"] == "Minimal"
    assert not site.present(url=None).changed


def test_somebody_else_in_our_name_is_not_believed(site: Site, market: Marketplace, grid: pki.Pki) -> None:
    site.present()
    ours = next(iter(market.entries))
    # Whoever makes certificates can put any name into them.
    forger = pki.Authority(grid.intermediate.name, number=8)
    fake = forger.issue(site.root / "fake", "endorser", number=9)
    forged = Site(site.root / "forged", grid, market.url)
    make_build(forged.root / "build", title="Evil")
    shutil.copy(site.root / "build" / "debian-12-1.qcow2", forged.root / "build")
    request = forged.request(fake)
    signer = Signer.load(*request.signer)
    root = document.assemble(
        document.children(etree.fromstring(market.entries[ours])),
        document.Endorsement(
            _descriptor.format_time(_descriptor.parse_time(ours[2]) + datetime.timedelta(minutes=5)),
            ours[1],
            signature.java_name(signer.certificate.subject),
            signature.java_name(signer.certificate.issuer),
        ),
    )
    market.take(signature.sign(root, signer, "sha256"), "application/xml")
    judge = _stratuslab_info.Judge(ca_directory=grid.anchors)
    found, refused = _stratuslab_info.entries(Client(market.url, Http(delays=())), judge)
    assert not found and "is not valid by" in refused[0]["problem"]
    # Ours has to come after it, else nobody would see it.
    again = site.present()
    assert again.actions[0] == "debian-12 1: what is endorsed is older than the Marketplace's newest entry"
    assert again.extra["publication"]["created"] == _descriptor.format_time(
        _descriptor.parse_time(ours[2]) + datetime.timedelta(minutes=5, seconds=1)
    )
    found, refused = _stratuslab_info.entries(Client(market.url, Http(delays=())), judge)
    assert [one["endorsement"]["created"] for one in found] == [again.extra["publication"]["created"]] and not refused
    assert not site.present().changed


def test_a_former_key_of_ours_is_known_by_its_authority(site: Site, grid: pki.Pki, market: Marketplace) -> None:
    site.present()
    renewed = grid.issue("endorser", number=21)
    try:
        assert not site.present(renewed, ca_directory=grid.anchors).changed
        again = site.present(renewed)
        assert again.actions[0] == "debian-12 1: what is there cannot be used: it is signed by another key"
        assert not site.present(renewed).changed
    finally:
        grid.issue("endorser")


def test_a_clock_that_is_fast(site: Site, market: Marketplace) -> None:
    """Somebody has endorsed it with our certificate in the future: a Marketplace takes nothing older."""
    site.present()
    key, octets = market.entries.popitem()
    for ahead, problem in (
        (datetime.timedelta(minutes=10), None),
        (datetime.timedelta(days=2), "is in the future; set"),
    ):
        market.entries.clear()
        future = _descriptor.format_time(datetime.datetime.now(datetime.timezone.utc) + ahead)
        signer = Signer.load(*site.request().signer)
        names = (signature.java_name(name) for name in (signer.certificate.subject, signer.certificate.issuer))
        elements = document.deprecated(document.children(etree.fromstring(octets)), "x")
        root = document.assemble(elements, document.Endorsement(future, key[1], *names))
        market.take(signature.sign(root, signer, "sha256"), "application/xml")
        if problem:
            with pytest.raises(FactoryError, match=rf"the newest entry is dated {future}, which {problem}"):
                site.present()
        else:
            assert site.present().extra["publication"]["created"] > future


def test_the_newest_wins_where_two_publish(site: Site, market: Marketplace) -> None:
    """Between our look-up and our POST another entry of ours arrives, which is newer: 400, and a newer one of ours."""
    site.present()
    make_build(site.root / "build", title="Other")
    request = site.request()
    assert request.marketplace is not None
    post = request.marketplace.post
    raced = []

    def slow(octets: bytes, entry: t.Any) -> bool:
        if not raced:
            raced.append(entry)
            later = _descriptor.format_time(_descriptor.parse_time(entry.created) + datetime.timedelta(seconds=30))
            market.entries[entry.identifier, entry.email, later] = market.entries[max(market.entries)].replace(
                max(market.entries)[2].encode(), later.encode()
            )
        return post(octets, entry)

    object.__setattr__(request.marketplace, "post", slow)
    done = _stratuslab.present(request)
    assert done.extra["publication"]["created"] > raced[0].created
    assert max(market.entries)[2] == done.extra["publication"]["created"]
    assert site.said()["endorsement"]["created"] == done.extra["publication"]["created"]


# Reading


def test_reading_refuses_what_was_changed(site: Site, market: Marketplace) -> None:
    site.present()
    key, octets = next(iter(market.entries.items()))
    judge = _stratuslab_info.Judge(ca_directory=site.grid.anchors)
    client = Client(market.url, Http(delays=()))
    found, refused = _stratuslab_info.entries(client, judge, identifier=key[0], email=key[1], created=key[2])
    assert len(found) == 1 and not refused and found[0]["status"] == "valid"
    market.entries[key] = octets.replace(b">Minimal<", b">Maximal<")
    found, refused = _stratuslab_info.entries(client, judge)
    assert not found and "has no valid signature" in refused[0]["problem"] and key[0] in refused[0]["where"]
    # Another entry's document in its place.
    make_build(site.root / "build", {"qcow2": b"other"})
    Site(site.root, site.grid, market.url).present(path=site.root / "other.xml")
    other = next(one for one in market.entries if one != key)
    market.entries[key] = market.entries[other]
    found, refused = _stratuslab_info.entries(client, judge, identifier=key[0], email=key[1], created=key[2])
    assert not found and refused[0]["problem"] == "is the document of another entry"
    for options, problem in (
        ({"identifier": "x"}, "identifier: cannot be 'x'"),
        ({"email": "x"}, "email: cannot be 'x'"),
        ({"created": "x"}, "created: cannot be 'x'"),
    ):
        with pytest.raises(FactoryError, match=problem):
            _stratuslab_info.entries(client, judge, **options)


def test_listing_by_image_endorser_and_status(site: Site, market: Marketplace) -> None:
    site.present()
    other = site.grid.issue("other", number=3)
    site.present(other, path=site.root / "other.xml")
    judge = _stratuslab_info.Judge(ca_directory=site.grid.anchors)
    client = Client(f"{market.url}/metadata/", Http(delays=()))

    def emails(**options: t.Any) -> list[str]:
        return [one["endorsement"]["email"] for one in _stratuslab_info.entries(client, judge, **options)[0]]

    assert emails() == ["endorser@example.org", "other@example.org"]
    assert emails(email="other@example.org") == ["other@example.org"]
    site.deprecate("old")
    assert emails() == ["other@example.org"]
    assert emails(status="deprecated") == ["endorser@example.org"]
    assert emails(status="expired") == []
    assert len(emails(status="any")) == 2
    identifier = next(iter(market.entries))[0]
    assert len(emails(status="any", identifier=identifier)) == 2


# The modules


def play(site: Site, tasks: list[dict[str, t.Any]], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run tasks by ansible-playbook; its output is what a log would have."""
    path = site.root / "play.yml"
    path.write_text(yaml.safe_dump([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]), encoding="utf-8")
    environment = {
        **os.environ,
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_LOCALHOST_WARNING": "0",
        "HOME": str(site.root),
    }
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", "-c", "local", str(path)]
    return subprocess.run(
        [*command, *arguments], env=environment, cwd=site.root, capture_output=True, text=True, check=False
    )


def test_modules_play(site: Site, market: Marketplace) -> None:
    locked = site.grid.issue("locked", passphrase=pki.PASSPHRASE)
    who = {"certificate": str(locked.certificate), "key": str(locked.key), "passphrase": pki.PASSPHRASE}
    # A host that does not look like this one, by http: it gets nothing secret.
    url = f"http://127.1:{market.port}"
    common = {**who, "chain": str(locked.chain), "marketplace": url, "path": str(site.path)}
    metadata = "cloudimg.factory.stratuslab_metadata"
    endorse = {"name": "endorse", metadata: {**common, "descriptor": str(site.descriptor)}}
    told = play(site, [endorse], "--check", "--diff", "-vvv")
    assert told.returncode == 0 and "changed=1" in told.stdout and not market.entries and not site.path.exists()
    listing = {"marketplace": market.url, "paths": [str(site.path)], "ca_directory": str(site.grid.anchors)}
    allow = {"images": "{{ found.entries }}", "allow": {"endorsers": ["locked@example.org"]}}
    first = {**allow, "images": "{{ found.entries[:1] }}"}
    retire = {
        **{"state": "deprecated", "identifier": "{{ found.entries[0].identifier }}", "reason": "old"},
        **common,
    }
    absent = {"path": str(site.path), "state": "absent"}
    disk = site.descriptor.with_name("debian-12-1.qcow2")
    info, policy = f"{metadata}_info", "cloudimg.factory.image_policy"
    tasks: list[dict[str, t.Any]] = [
        {**endorse, "register": "first"},
        {**endorse, "register": "second"},
        {"name": "read", info: listing, "register": "found"},
        {"name": "judge", policy: allow},
        {"name": "judge the disk", policy: {**first, "file": str(disk), "warn_days": 40000}},
        {"name": "judge another", policy: {**first, "file": str(site.descriptor)}, "ignore_errors": True},
        {"name": "retire", metadata: retire},
        {"name": "read the file", info: {"paths": [str(site.path)]}, "register": "found"},
        {"name": "judge the file", policy: {"images": "{{ found.entries }}"}, "ignore_errors": True},
        {"name": "wrong", metadata: {**endorse[metadata], "passphrase": "not the passphrase"}, "ignore_errors": True},
        {"name": "refuse", metadata: {**absent, "marketplace": market.url}, "ignore_errors": True},
        {"name": "remove", metadata: absent},
        {"ansible.builtin.debug": {"msg": "first={{ first.changed }} second={{ second.changed }}"}},
    ]
    done = play(site, tasks, "--diff", "-vvv")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "changed=3 " in done.stdout and "ignored=4 " in done.stdout and "first=True second=False" in done.stdout
    assert '+    "title": "Debian 12"' in done.stdout and '+    "deprecated": "old"' in done.stdout
    assert '"accepted": true' in done.stdout and "the file has none of its checksums" in done.stdout
    assert "its time ends at 2099-01-01T00:00:00Z" in done.stderr
    assert "its signature was held against no authority" in done.stdout and "it is deprecated: old" in done.stdout
    assert "cannot be decrypted: the passphrase is wrong" in done.stdout
    assert "marketplace: keeps its entries for ever; leave it out" in done.stdout
    assert not site.path.exists() and len(market.entries) == 2
    for played in (told, done):
        for secret in (pki.PASSPHRASE, "not the passphrase", "PRIVATE KEY"):
            assert secret not in played.stdout + played.stderr


def test_no_secret_is_in_a_command_line(site: Site, market: Marketplace, tmp_path: Path) -> None:
    """Every program that runs meanwhile is looked at: openssl by name, and all that /proc shows."""
    locked = site.grid.issue("locked", passphrase=pki.PASSPHRASE)
    log = tmp_path / "argv.log"
    tools = tmp_path / "bin"
    tools.mkdir()
    real = shutil.which("openssl")
    script = f'#!/bin/sh\ntr "\\0" " " </proc/$$/cmdline >>{log}\nenv >>{log}\nexec {real} "$@"\n'
    (tools / "openssl").write_text(script, encoding="utf-8")
    (tools / "openssl").chmod(0o755)
    former = os.environ["PATH"]
    os.environ["PATH"] = f"{tools}:{former}"
    try:
        site.present(locked)
        renewed = site.grid.issue("locked", passphrase=pki.PASSPHRASE, number=31)
        site.present(renewed, ca_directory=site.grid.anchors)
    finally:
        os.environ["PATH"] = former
    assert "openssl verify" in log.read_text(encoding="utf-8")
    assert pki.PASSPHRASE not in log.read_text(encoding="utf-8")
    assert not any(pki.PASSPHRASE.encode() in octets for octets in files(site.root / "endorsed").values())
