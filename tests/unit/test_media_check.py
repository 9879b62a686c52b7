# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of media at their vendors, over real HTTP; and the checksum files of all vendors of the example inventory."""

from __future__ import annotations

import socket
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _media_check
from ansible_collections.cloudimg.factory.plugins.module_utils._download import Client
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._media_check import Found
from ansible_collections.cloudimg.factory.plugins.module_utils._origins import Definition, FileOrigin
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.tests.tools.media_server import MediaServer
from ansible_collections.cloudimg.factory.tests.tools.vendor import Signer, make_iso, sha256, two_signers

NAME = "debian-12.11.0-amd64-netinst.iso"
FOLDER = "/cdimage/12.11.0/amd64/iso-cd/"


class Vendor:
    """A vendor's server with one point release of an installer, signed."""

    def __init__(self, folder: Path, iso: Path, signer: Signer) -> None:
        self.server = MediaServer()
        self.folder, self.iso, self.signer = folder, iso.read_bytes(), signer
        self.keyring = str(signer.keyring(folder / "keys.gpg"))
        self.url = self.publish(FOLDER, NAME)
        self.lists("/cdimage/", "12.11.0/", "?C=N;O=D", "/", "12.2.0-live/")

    def publish(self, place: str, *names: str, listed: bool = True) -> str:
        """Serve ISOs in a directory, with their checksums and the list of the directory; returns the first one's URL."""
        sums = "".join(f"{sha256(self.iso)}  {name}\n" for name in names).encode()
        urls = [self.server.put(place + name, self.iso) for name in names]
        self.server.put(place + "SHA256SUMS", sums)
        self.server.put(place + "SHA256SUMS.sign", self.signer.detached(sums))
        if listed:
            self.lists(place, "../", *names, "SHA256SUMS", "SHA256SUMS.sign")
        return urls[0]

    def lists(self, place: str, *links: str) -> None:
        """What a web server shows of a directory."""
        rows = "".join(f'<tr><td><a href="{link}">{link}</a></td></tr>' for link in links)
        self.server.put(place, f"<html><body><h1>Index of {place}</h1><table>{rows}</table>".encode())

    def check(self, *, timeout: float = 5, same: int = 1, delays: tuple[float, ...] = (0.01,), **given: t.Any) -> Found:
        """Check the medium; what is not given is right."""
        folder = f"{self.server.url}{FOLDER}"
        places = {"checksum": f"{folder}SHA256SUMS", "signature": f"{folder}SHA256SUMS.sign", "keyring": self.keyring}
        definition = Definition("preseed", **{"url": self.url, **places, **given})
        client = Client(Progress("media"), timeout=timeout, delays=delays)
        return _media_check.check(definition, client, Progress("media"), same=same)


@pytest.fixture(scope="module")
def iso(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_iso(tmp_path_factory.mktemp("iso") / "a.iso", label="Debian 12.11.0 amd64 n", filler=1 << 20)


@pytest.fixture(scope="module")
def signers(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[tuple[Signer, Signer]]:
    with two_signers(tmp_path_factory.mktemp("gpg")) as pair:
        yield pair


@pytest.fixture
def vendor(tmp_path: Path, iso: Path, signers: tuple[Signer, Signer]) -> t.Iterator[Vendor]:
    vendor = Vendor(tmp_path, iso, signers[0])
    yield vendor
    vendor.server.close()


def test_all_is_well_and_the_iso_is_not_fetched(vendor: Vendor) -> None:
    found = vendor.check()
    assert found.outcome == "ok: 1 MiB, of Mon, 06 Jan 2025 10:00:00 GMT, checksum signed"
    assert (found.label, found.size, found.verified) == ("Debian 12.11.0 amd64 n", len(vendor.iso), True)
    assert found.checksum == f"sha256:{sha256(vendor.iso)}"
    assert (found.newer, found.moved_to, found.problems, found.notes) == (None, None, [], [])
    asked = [request for request in vendor.server.requests if request.path.endswith(".iso")]
    assert [(request.range, request.sent) for request in asked] == [("bytes=0-36863", 36864)]


def test_a_server_without_ranges_is_left_early(vendor: Vendor) -> None:
    file = vendor.server.files[FOLDER + NAME]
    file.content, file.ranges = vendor.iso + bytes(64 << 20), False
    found = vendor.check()
    assert (found.status, found.label, found.size) == ("ok", "Debian 12.11.0 amd64 n", len(file.content))


@pytest.mark.parametrize(("status", "line"), [(404, "it is gone (HTTP 404)"), (410, "HTTP 410 Gone")])
def test_gone(vendor: Vendor, status: int, line: str) -> None:
    vendor.server.files[FOLDER + NAME].statuses = [status]
    assert vendor.check().outcome == f"moved: {line}"


def test_gone_with_all_its_directory_and_there_is_a_newer_one(vendor: Vendor) -> None:
    for path in [path for path in vendor.server.files if path.startswith(FOLDER)]:
        del vendor.server.files[path]
    new = "debian-12.12.0-amd64-netinst.iso"
    newer = vendor.publish("/cdimage/12.12.0/amd64/iso-cd/", new)
    vendor.lists("/cdimage/", "12.12.0/", "13.0.0/")
    found = vendor.check()
    sums = f"{vendor.server.url}{FOLDER}SHA256SUMS.sign"
    assert found.status == "moved"
    assert found.problems == ["it is gone (HTTP 404)", f"{sums}: HTTP 404 Not Found"]
    assert found.newer == newer
    assert found.outcome.endswith(f"; there is a newer one, {newer}")


def test_redirected_for_good(vendor: Vendor) -> None:
    place = vendor.server.put("/archive/" + NAME, vendor.iso)
    vendor.server.put(FOLDER + NAME, b"", moved_to=place, moved_by=301)
    found = vendor.check()
    assert (found.outcome, found.moved_to) == (f"moved: it is redirected to {place} for good", place)


def test_redirected_to_a_mirror_is_not_moved(vendor: Vendor) -> None:
    place = vendor.server.put("/mirror/" + NAME, vendor.iso) + "?token=secret"
    vendor.server.put(FOLDER + NAME, b"", moved_to=place, moved_by=302)
    found = vendor.check()
    assert (found.status, found.notes, found.moved_to) == ("ok", ["from 127.0.0.1"], place.partition("?")[0])
    assert "secret" not in str(found)


def test_redirected_to_a_page(vendor: Vendor) -> None:
    place = vendor.server.put("/download.html", b"<html><title>Downloads</title>" + bytes(40000))
    vendor.server.put(FOLDER + NAME, b"", moved_to="/download.html")
    found = vendor.check()
    assert found.status == "wrong"
    assert found.problems == [
        f"it is redirected to {place}, another file",
        "it is not an ISO 9660 image (40030 bytes, it looks like a web page)",
    ]


def test_redirected_in_a_circle(vendor: Vendor) -> None:
    vendor.server.put(FOLDER + NAME, b"", moved_to=vendor.url)
    assert vendor.check().outcome == "unreachable: is redirected 6 times"


@pytest.mark.parametrize(
    ("place", "names", "newest"),
    [
        (FOLDER, ["debian-12.12.0-amd64-netinst.iso"], "debian-12.12.0-amd64-netinst.iso"),
        (FOLDER, ["debian-12.9.0-amd64-netinst.iso", "debian-12.11.0-arm64-netinst.iso"], None),
        (FOLDER, ["debian-12.12.0-arm64-netinst.iso", "debian-12.12.0-amd64-DVD-1.iso"], None),
        (FOLDER, ["debian-13.0.0-amd64-netinst.iso"], None),
        (
            FOLDER,
            ["debian-12.12.1-amd64-netinst.iso", "debian-12.12.0-amd64-netinst.iso"],
            "debian-12.12.1-amd64-netinst.iso",
        ),
    ],
)
def test_newer_ones_beside_it(vendor: Vendor, place: str, names: list[str], newest: str | None) -> None:
    vendor.publish(place, NAME, *names)
    found = vendor.check()
    assert found.newer == (f"{vendor.server.url}{place}{newest}" if newest else None)
    assert found.status == ("newer" if newest else "ok")


def test_newer_one_that_only_the_checksums_tell_of(vendor: Vendor) -> None:
    vendor.publish(FOLDER, NAME, "debian-12.12.0-amd64-netinst.iso", listed=False)
    del vendor.server.files[FOLDER]
    found = vendor.check()
    assert found.newer == f"{vendor.server.url}{FOLDER}debian-12.12.0-amd64-netinst.iso"
    assert found.notes == [f"{vendor.server.url}{FOLDER} does not list its files"]


def test_no_list_of_any_directory(vendor: Vendor) -> None:
    del vendor.server.files[FOLDER], vendor.server.files["/cdimage/"]
    found = vendor.check()
    assert (found.status, found.newer) == ("ok", None)
    assert [note.removeprefix(vendor.server.url) for note in found.notes] == [
        f"{FOLDER} does not list its files",
        "/cdimage/ does not list its files",
    ]
    assert "does not list its files" in found.outcome


OTHERS = [
    (
        "/alma/9.5/isos/x86_64/AlmaLinux-9.5-x86_64-boot.iso",
        "/alma/9.6/isos/x86_64/AlmaLinux-9.6-x86_64-boot.iso",
        1,
        True,
    ),
    (
        "/alma/9.5/isos/x86_64/AlmaLinux-9.5-x86_64-boot.iso",
        "/alma/10.0/isos/x86_64/AlmaLinux-10.0-x86_64-boot.iso",
        1,
        False,
    ),
    ("/f/41/x/iso/Fedora-netinst-x86_64-41-1.4.iso", "/f/42/x/iso/Fedora-netinst-x86_64-42-1.1.iso", 0, True),
    ("/f/41/x/iso/Fedora-netinst-x86_64-41-1.4.iso", "/f/42/x/iso/Fedora-netinst-x86_64-42-1.1.iso", 1, False),
    ("/24.04/ubuntu-24.04.1-live-server-amd64.iso", "/24.04/ubuntu-24.04.3-live-server-amd64.iso", 2, True),
    ("/24.04/ubuntu-24.04.1-live-server-amd64.iso", "/24.10/ubuntu-24.10.1-live-server-amd64.iso", 2, False),
    ("/24.04/ubuntu-24.04.1-live-server-amd64.iso", "/24.10/ubuntu-24.10.1-live-server-amd64.iso", 1, True),
    ("/virtio/virtio-win-0.1.240.iso", "/virtio/virtio-win-0.1.271.iso", 1, True),
]


@pytest.mark.parametrize(("ours", "theirs", "same", "counts"), OTHERS)
def test_newer_ones_of_other_vendors(vendor: Vendor, ours: str, theirs: str, same: int, counts: bool) -> None:
    for path in (ours, theirs):
        vendor.server.put(path, vendor.iso)
    for path in {*ours.split("/"), *theirs.split("/")} - {""}:
        for place in (f"{each.partition(path)[0]}" for each in (ours, theirs) if f"/{path}" in each):
            below = {each[len(place) :].partition("/")[0] for each in (ours, theirs) if each.startswith(place)}
            vendor.lists(place, *(name if name.endswith(".iso") else f"{name}/" for name in sorted(below)))
    pinned = f"sha256:{sha256(vendor.iso)}"
    found = vendor.check(url=vendor.server.url + ours, checksum=pinned, signature=None, keyring=None, same=same)
    assert found.newer == (vendor.server.url + theirs if counts else None)
    assert found.checksum is None


def test_not_listed_any_more(vendor: Vendor) -> None:
    vendor.publish(FOLDER, "debian-12.12.0-amd64-netinst.iso")
    found = vendor.check()
    assert found.status == "moved"
    assert found.problems == [
        f"{vendor.server.url}{FOLDER}SHA256SUMS has no line for {NAME} (it names debian-12.12.0-amd64-netinst.iso)"
    ]
    assert found.newer and found.newer.endswith("debian-12.12.0-amd64-netinst.iso")


def test_signed_by_another_key(vendor: Vendor, signers: tuple[Signer, Signer]) -> None:
    sums = vendor.server.files[FOLDER + "SHA256SUMS"].content + b"0" * 64 + b"  debian-12.12.0-amd64-netinst.iso\n"
    vendor.server.put(FOLDER + "SHA256SUMS", sums)
    vendor.server.put(FOLDER + "SHA256SUMS.sign", signers[1].detached(sums))
    found = vendor.check()
    assert (found.status, found.checksum, found.verified) == ("wrong", None, False)
    assert "is signed by an unknown key" in found.outcome
    assert found.newer is None  # what nobody of them signed is not believed


def test_changed_after_it_was_signed(vendor: Vendor) -> None:
    vendor.server.files[FOLDER + "SHA256SUMS"].content += b"\n"
    assert "does not fit its signature" in vendor.check().outcome


def test_another_key_than_the_pinned_one(vendor: Vendor, signers: tuple[Signer, Signer]) -> None:
    found = vendor.check(fingerprints=(signers[1].fingerprint,))
    assert found.outcome.startswith("wrong: ")
    assert "not one of the pinned fingerprints" in found.outcome
    assert vendor.check(fingerprints=(signers[0].fingerprint,)).status == "ok"


def test_unsigned_where_it_has_to_be(vendor: Vendor) -> None:
    found = vendor.check(signature=None)
    assert found.status == "wrong"
    assert "has no valid OpenPGP signature" in found.outcome


def test_unsigned_where_it_may_be(vendor: Vendor) -> None:
    found = vendor.check(signature=None, keyring=None)
    assert found.outcome == "ok: 1 MiB, of Mon, 06 Jan 2025 10:00:00 GMT, checksum listed"


def test_keyring_that_is_not_there(vendor: Vendor) -> None:
    found = vendor.check(keyring="/nowhere/keys.gpg")
    assert found.outcome == "wrong: /nowhere/keys.gpg: there is no such file"


def test_busy_server(vendor: Vendor) -> None:
    vendor.server.files[FOLDER + NAME].statuses = [503, 503]
    assert vendor.check().outcome == (
        "unreachable: the connection failed 2 times in a row: HTTP 503 Service Unavailable"
    )
    vendor.server.files[FOLDER + NAME].statuses = [503]
    assert vendor.check().status == "ok"


def test_forbidden(vendor: Vendor) -> None:
    vendor.server.files[FOLDER + NAME].statuses = [403]
    assert vendor.check().outcome == "unreachable: HTTP 403 Forbidden"


def test_slow_server(vendor: Vendor) -> None:
    file = vendor.server.files[FOLDER + NAME]
    file.piece, file.pause = 1024, 0.2
    found = vendor.check(timeout=1)
    assert (found.status, found.size, found.label) == ("ok", len(vendor.iso), None)
    assert found.notes == ["the server is too slow to look into it"]


def test_silent_server(vendor: Vendor) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/{NAME}"
        found = vendor.check(url=url, checksum="sha256:" + "0" * 64, signature=None, keyring=None, timeout=0.2)
    assert found.status == "unreachable"
    assert "timed out" in found.outcome


def test_nobody_there(vendor: Vendor) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = f"http://127.0.0.1:{port}/{NAME}"
    found = vendor.check(url=url, checksum="sha256:" + "0" * 64, signature=None, keyring=None)
    assert found.outcome.startswith("unreachable: the connection failed 2 times in a row")


def test_an_iso_that_is_cut_short_on_the_server(vendor: Vendor) -> None:
    vendor.server.put(FOLDER + NAME, vendor.iso[: 1 << 19])
    found = vendor.check()
    assert found.outcome == f"wrong: it is a truncated ISO: 524288 of {len(vendor.iso)} bytes"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"url": "file:///srv/a.iso"}, "image_medium.url: is not a URL that can be fetched"),
        ({"checksum": None, "signature": None}, "image_medium.checksum: is not given"),
        ({"keyring": None}, "image_medium.keyring: is not given, so no signature can be verified"),
        ({"checksum": "md5:00", "signature": None}, "the algorithm 'md5' is not accepted"),
    ],
)
def test_a_definition_that_does_not_fit_together(vendor: Vendor, given: dict[str, t.Any], line: str) -> None:
    with pytest.raises(FactoryError, match=line):
        vendor.check(**given)


def bsd(iso: bytes, name: str) -> bytes:
    """Checksums as AlmaLinux, Rocky and Fedora write them: BSD style, with the size in a comment."""
    return f"# {name}: {len(iso)} bytes\nSHA256 ({name}) = {sha256(iso)}\n".encode()


@pytest.mark.parametrize(
    ("name", "file", "how"),
    [
        ("AlmaLinux-9.8-x86_64-boot.iso", "CHECKSUM", "clearsigned"),
        ("Fedora-Everything-netinst-x86_64-44-1.7.iso", "Fedora-Everything-44-1.7-x86_64-CHECKSUM", "clearsigned"),
        ("Rocky-10.2-x86_64-boot.iso", "CHECKSUM", "detached"),
        ("CentOS-Stream-9-latest-x86_64-boot.iso", "CentOS-Stream-9-latest-x86_64-boot.iso.SHA256SUM", "unsigned"),
    ],
)
def test_checksum_files_as_the_vendors_write_them(vendor: Vendor, name: str, file: str, how: str) -> None:
    text = bsd(vendor.iso, name) + bsd(b"", name.replace("boot", "dvd").replace("netinst", "dvd")) * (how != "unsigned")
    server, signer = vendor.server, vendor.signer
    given: dict[str, t.Any] = {
        "url": server.put(f"/iso/{name}", vendor.iso),
        "checksum": server.put(f"/iso/{file}", signer.clearsigned(text) if how == "clearsigned" else text),
        "keyring": vendor.keyring if how != "unsigned" else None,
        "signature": server.put(f"/iso/{file}.asc", signer.detached(text, "--armor")) if how == "detached" else None,
        "fingerprints": (signer.fingerprint,) if how != "unsigned" else (),
    }
    origin = FileOrigin(Definition("kickstart", **given), Client(Progress("media"), delays=()), Progress("media"))
    assert str(origin.expected()) == f"sha256:{sha256(vendor.iso)}"
    found = vendor.check(**given)
    assert (found.status, found.verified, found.checksum) == ("ok", how != "unsigned", str(origin.expected()))
    if how == "clearsigned":
        server.put(f"/iso/{file}", text)
        with pytest.raises(FactoryError, match="has no valid OpenPGP signature"):
            origin.expected()
