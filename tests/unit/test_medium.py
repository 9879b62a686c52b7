# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The media cache, from definition to verified ISO; and every way in which a definition can be wrong."""

from __future__ import annotations

import os
import subprocess
import threading
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils._download import Client, Interrupted
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._medium import Brought, MediaCache, Provided
from ansible_collections.cloudimg.factory.plugins.module_utils._origins import Definition, origin_of
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.plugins.module_utils._state import Workspace
from ansible_collections.cloudimg.factory.tests.tools.media_server import MediaServer
from ansible_collections.cloudimg.factory.tests.tools.vendor import Signer, make_iso, sha256, sums, two_signers


class Site:
    """A vendor's server, and a workspace that uses it."""

    def __init__(self, folder: Path, server: MediaServer, iso: Path, other: Path, signer: Signer) -> None:
        self.folder = folder
        self.server = server
        self.iso = iso
        self.other = other
        self.signer = signer
        self.workspace = Workspace(folder / "work space")
        self.media = self.workspace.media
        self.url = server.put("/cd/a.iso", iso.read_bytes())
        self.sums = server.put("/cd/SHA256SUMS", sums(iso))
        self.signature = server.put("/cd/SHA256SUMS.sign", signer.detached(sums(iso)))
        self.keyring = str(signer.keyring(folder / "keys.asc", armor=True))

    def provide(
        self, *, refresh: bool = False, check: bool = False, warnings: list[str] | None = None, **definition: t.Any
    ) -> Provided:
        """Have a medium; the definition's defaults are the vendor's, with explicit checksum."""
        if not {"url", "path"} & set(definition):
            definition["url"] = self.url
        definition.setdefault("checksum", f"sha256:{sha256(self.iso)}")
        progress = Progress("media")
        client = Client(progress, timeout=5, delays=(0.01,) * 4)
        origin = origin_of(Definition("preseed", **definition), client, progress, self.folder / "log")
        try:
            return MediaCache(self.workspace, progress).provide(origin, refresh=refresh, check=check)
        finally:
            if warnings is not None:
                warnings += origin.warnings

    def publish(self, iso: Path) -> None:
        """The vendor puts another ISO, with its checksum and signature, in the place of the first."""
        self.server.put("/cd/a.iso", iso.read_bytes())
        listed = sums(iso).replace(iso.name.encode(), b"a.iso")
        self.server.put("/cd/SHA256SUMS", listed)
        self.server.put("/cd/SHA256SUMS.sign", self.signer.detached(listed))

    def fetched(self) -> list[str]:
        """The paths that were asked for since the last time."""
        paths = [request.path for request in self.server.requests]
        self.server.requests.clear()
        return paths

    def left(self) -> list[str]:
        """What is in the cache."""
        return sorted(path.name for path in self.media.iterdir()) if self.media.is_dir() else []


@pytest.fixture(scope="module")
def isos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("isos")
    first = make_iso(folder / "a.iso", label="FIRST", filler=3 << 20)
    return first, make_iso(folder / "b.iso", label="SECOND", filler=3 << 20)


@pytest.fixture(scope="module")
def signers(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[tuple[Signer, Signer]]:
    with two_signers(tmp_path_factory.mktemp("gpg")) as pair:
        yield pair


@pytest.fixture
def site(tmp_path: Path, isos: tuple[Path, Path], signers: tuple[Signer, Signer]) -> t.Iterator[Site]:
    server = MediaServer()
    yield Site(tmp_path, server, *isos, signers[0])
    server.close()


def test_a_medium_is_fetched_once(site: Site) -> None:
    first = site.provide()
    digest = sha256(site.iso)
    assert first.path == site.media / f"{digest}.iso"
    assert sha256(first.path) == first.sha256 == digest
    assert (first.size, first.label, first.source, first.before) == (site.iso.stat().st_size, "FIRST", site.url, None)
    assert first.actions == [f"fetch {site.url}: it is not in the cache"]
    assert site.fetched() == ["/cd/a.iso"]
    names = site.left()
    assert [name for name in names if not name.startswith("source-")] == [
        f"{digest}.iso",
        f"{digest}.iso.digests.json",
        f"{digest}.json",
    ]

    again = site.provide()
    assert (again.path, again.sha256, again.label, again.actions) == (first.path, digest, "FIRST", [])
    assert site.fetched() == []
    assert site.left() == names


def test_the_cache_is_by_content(site: Site) -> None:
    site.provide()
    mirror = site.server.put("/mirror/other-name.iso", site.iso.read_bytes())
    assert site.provide(url=mirror).actions == []
    assert site.provide(path=str(site.iso)).actions == []
    assert site.fetched() == ["/cd/a.iso"]


def test_a_signed_checksum_file(site: Site) -> None:
    signed = {"checksum": site.sums, "signature": site.signature, "keyring": site.keyring}
    warnings: list[str] = []
    assert site.provide(**signed, warnings=warnings).sha256 == sha256(site.iso)
    assert warnings == []
    assert sorted(site.fetched()) == ["/cd/SHA256SUMS", "/cd/SHA256SUMS.sign", "/cd/a.iso"]
    assert site.provide(**signed).actions == []
    assert site.fetched() == []
    assert site.provide(**signed, fingerprints=(site.signer.fingerprint,)).actions == []


def test_a_clearsigned_checksum_file(site: Site) -> None:
    clear = site.server.put("/cd/CHECKSUM", site.signer.clearsigned(sums(site.iso)))
    for definition in ({"checksum": clear}, {"checksum": site.sums, "signature": clear}):
        assert site.provide(**definition, keyring=site.keyring).sha256 == sha256(site.iso)


def test_an_unsigned_checksum_over_plain_http_is_warned_of(site: Site) -> None:
    warnings: list[str] = []
    assert site.provide(checksum=site.sums, warnings=warnings).sha256 == sha256(site.iso)
    assert len(warnings) == 1 and "SHA256SUMS: the checksum comes over plain http and unsigned" in warnings[0]


def test_a_local_medium_with_a_local_checksum_file(site: Site) -> None:
    listed = site.folder / "SHA512SUMS"
    listed.write_bytes(sums(site.iso, site.other, algorithm="sha512"))
    local = {"path": str(site.iso), "checksum": str(listed)}
    assert site.provide(**local).sha256 == sha256(site.iso)
    assert site.provide(**local).actions == []
    listed.write_bytes(listed.read_bytes() + b"\n# touched\n")
    assert site.provide(**local).actions == []  # read again, but it says the same
    assert site.provide(url=f"file://{site.iso}", checksum=f"file://{listed}").sha256 == sha256(site.iso)
    assert site.fetched() == []


def test_refresh_reads_the_checksums_again(site: Site) -> None:
    signed = {"checksum": site.sums, "signature": site.signature, "keyring": site.keyring}
    site.provide(**signed)
    site.fetched()
    assert site.provide(**signed, refresh=True).actions == []
    assert site.fetched() == ["/cd/SHA256SUMS.sign", "/cd/SHA256SUMS"]

    site.publish(site.other)
    assert site.provide(**signed).actions == []
    assert site.fetched() == []
    old, new = sha256(site.iso), sha256(site.other)
    changed = [f"fetch {site.url}: its checksum changed from sha256:{old} to sha256:{new}"]
    names = site.left()
    asked = site.provide(**signed, refresh=True, check=True)
    assert (asked.path, asked.before, asked.sha256, asked.actions) == (None, old, new, changed)
    assert site.left() == names and "/cd/a.iso" not in site.fetched()
    done = site.provide(**signed, refresh=True)
    assert (done.label, done.before, done.sha256, done.actions) == ("SECOND", old, new, changed)
    assert site.provide(**signed, refresh=True).actions == []


def test_check_mode_writes_nothing(site: Site) -> None:
    asked = site.provide(check=True)
    assert (asked.path, asked.sha256) == (None, sha256(site.iso))
    assert asked.actions == [f"fetch {site.url}: it is not in the cache"]
    assert site.provide(check=True, checksum=site.sums).actions == asked.actions
    assert not site.workspace.root.exists()
    done = site.provide()
    assert site.provide(check=True).path == done.path


def test_a_damaged_medium_is_fetched_again(site: Site) -> None:
    path = site.provide().path
    assert path
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    assert site.provide(check=True).actions == [f"fetch {site.url}: the cached file is damaged"]
    assert site.provide().actions == [f"fetch {site.url}: the cached file is damaged"]
    assert path.read_bytes() == content
    path.unlink()
    assert site.provide().actions == [f"fetch {site.url}: it is not in the cache"]


def test_an_interrupted_download_goes_on_in_the_next_run(site: Site) -> None:
    site.server.files["/cd/a.iso"].cut = [2_000_000, 0, 0, 0, 0]
    with pytest.raises(Interrupted, match=r"a\.iso: image_medium\.url: the connection failed 5 times in a row"):
        site.provide()
    assert not list(site.media.glob("*.iso"))
    site.server.requests.clear()
    assert site.provide().sha256 == sha256(site.iso)
    assert [request.sent for request in site.server.requests] == [site.iso.stat().st_size - 2_000_000]
    assert not list(site.media.glob(".*"))


def test_a_wrong_beginning_is_fetched_again(site: Site) -> None:
    site.server.files["/cd/a.iso"].cut = [2_000_000, 0, 0, 0, 0]
    with pytest.raises(Interrupted):
        site.provide()
    (part,) = [path for path in site.media.glob(".incoming-*") if path.suffix != ".json"]
    with part.open("r+b") as stream:
        stream.write(b"damaged")
    site.server.requests.clear()
    assert site.provide().sha256 == sha256(site.iso)
    size = site.iso.stat().st_size
    # a connection that is cut may lose what was on its way
    rest, whole = (request.sent for request in site.server.requests)
    assert size - 2_000_000 <= rest < whole == size


def test_two_jobs_fetch_a_medium_once(site: Site) -> None:
    site.server.files["/cd/a.iso"].pause = 0.02
    results: list[Provided] = []
    # In one process, each job opens the lock file for itself, so flock keeps them apart as it does processes.
    jobs = [
        threading.Thread(target=lambda checksum=checksum: results.append(site.provide(checksum=checksum)))
        for checksum in (f"sha256:{sha256(site.iso)}", site.sums)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert len({result.path for result in results}) == 1
    assert sorted(len(result.actions) for result in results) == [0, 1]
    assert site.fetched().count("/cd/a.iso") == 1


def test_old_interrupted_downloads_are_forgotten(site: Site) -> None:
    site.workspace.make()
    for name, age in (("old", 8), ("new", 6)):
        part = site.media / f".incoming-{name}"
        part.write_bytes(b"x")
        os.utime(part, (time.time() - age * 86400,) * 2)
    site.provide()
    assert [path.name for path in site.media.glob(".*")] == [".incoming-new"]


def test_a_redirect_and_a_name_with_spaces(site: Site) -> None:
    site.server.put("/pool/x y.iso", site.iso.read_bytes())
    url = site.server.put("/my cd/a b.iso", b"", moved_to="/pool/x%20y.iso")
    listed = site.server.put("/my cd/SHA256SUMS", sums(site.iso).replace(b"a.iso", b"a b.iso"))
    done = site.provide(url=url, checksum=listed)
    assert done.sha256 == sha256(site.iso)
    assert done.source == url


class Built:
    """An origin whose medium is made here, as FAI's is."""

    key = place = "0" * 64
    medium_key, shown, verb = "image_medium.family", "built:test", "build"

    def __init__(self, folder: Path) -> None:
        self.warnings: list[str] = []
        self._folder = folder
        self.made = 0

    def inputs(self) -> str:
        return ""

    def expected(self) -> None:
        return None

    def bring(self, part: Path, algorithms: t.Sequence[str]) -> Brought:
        self.made += 1
        iso = make_iso(self._folder / f"built-{self.made}.iso", label=f"BUILD_{self.made}")
        iso.rename(part)
        return Brought({"sha256": sha256(part)}, facts={"needs": 4711})


def test_a_medium_that_is_built(site: Site) -> None:
    origin = Built(site.folder)
    cache = MediaCache(site.workspace, Progress("media"))
    first = cache.provide(origin)
    assert (first.label, first.needs, first.actions) == ("BUILD_1", 4711, ["build built:test: it is not in the cache"])
    again = cache.provide(origin)
    assert (again.sha256, again.needs, again.actions, origin.made) == (first.sha256, 4711, [], 1)
    asked = cache.provide(origin, refresh=True, check=True)
    assert (asked.sha256, asked.actions) == (None, ["build built:test: a fresh one is asked for"])
    fresh = cache.provide(origin, refresh=True)
    assert (fresh.label, fresh.before, origin.made) == ("BUILD_2", first.sha256, 2)
    assert cache.provide(origin).label == "BUILD_2"


def refused(site: Site, said: str, **definition: t.Any) -> None:
    """One line that says it, and nothing is left."""
    with pytest.raises(FactoryError, match=said) as caught:
        site.provide(**definition)
    assert "\n" not in str(caught.value)
    assert site.left() == []


def test_a_wrong_checksum(site: Site) -> None:
    refused(
        site,
        rf"^{site.url}: image_medium\.checksum: checksum differs: expected sha256:0{{64}},"
        f" got sha256:{sha256(site.iso)}; look up the vendor's current checksum",
        checksum=f"sha256:{'0' * 64}",
    )


def test_a_wrong_checksum_of_a_truncated_iso_says_so(site: Site) -> None:
    site.server.put("/cd/a.iso", site.iso.read_bytes()[:1_000_000])
    refused(site, r"checksum differs: .* \(the file is a truncated ISO: 1000000 of \d+ bytes\); look up")


def test_a_truncated_iso(site: Site) -> None:
    content = site.iso.read_bytes()[:1_000_000]
    url = site.server.put("/cd/short.iso", content)
    said = rf"^{url}: image_medium\.url: is a truncated ISO: 1000000 of \d+ bytes; fetch it again"
    refused(site, said, url=url, checksum=f"sha256:{sha256(content)}")


def test_a_file_that_is_no_iso(site: Site) -> None:
    content = b"<html>Please log in</html>"
    url = site.server.put("/cd/page.iso", content)
    said = (
        rf"^{url}: image_medium\.url: is not an ISO 9660 image \(26 bytes, it looks like a web page\); give the place"
    )
    refused(site, said, url=url, checksum=f"sha256:{sha256(content)}")


def test_a_signature_by_an_unknown_key(site: Site, signers: tuple[Signer, Signer]) -> None:
    site.server.put("/cd/SHA256SUMS.sign", signers[1].detached(sums(site.iso)))
    signed = {"checksum": site.sums, "signature": site.signature, "keyring": site.keyring}
    refused(site, rf"^{site.sums}: image_medium\.keyring: is signed by an unknown key, [0-9A-F]+.*; give", **signed)
    assert "/cd/a.iso" not in site.fetched()


def test_a_checksum_file_without_the_iso(site: Site) -> None:
    listed = site.server.put("/cd/SHA256SUMS", sums(site.other))
    refused(
        site, rf"^{listed}: image_medium\.checksum: has no line for a\.iso \(it names b\.iso\); give", checksum=listed
    )
    assert "/cd/a.iso" not in site.fetched()


def test_a_404(site: Site) -> None:
    refused(
        site, r"/cd/no\.iso: image_medium\.url: HTTP 404 Not Found; check that URL", url=f"{site.server.url}/cd/no.iso"
    )
    refused(site, r"/no: image_medium\.checksum: HTTP 404 Not Found", checksum=f"{site.server.url}/no")
    signed = {"checksum": site.sums, "signature": f"{site.server.url}/no", "keyring": site.keyring}
    refused(site, r"/no: image_medium\.signature: HTTP 404 Not Found", **signed)


def test_a_missing_path(site: Site) -> None:
    path = site.folder / "no.iso"
    said = rf"^{path}: image_medium\.path: there is no such file; give the path of an ISO on the builder"
    refused(site, said, path=str(path))


def test_url_and_path(site: Site) -> None:
    said = r"^definition: image_medium\.path: is given, and image_medium\.url too; give one of them"
    refused(site, said, url=site.url, path=str(site.iso))


@pytest.mark.parametrize(
    ("definition", "said"),
    [
        ({"url": None}, r"^definition: image_medium\.url: is not given, nor is image_medium\.path; give the place"),
        ({"url": "/srv/a.iso"}, r"^/srv/a\.iso: image_medium\.url: is not a URL; give a path as image_medium\.path"),
        ({"url": "ftp://example.org/a.iso"}, r"image_medium\.url: is not a URL that can be fetched"),
        ({"checksum": ""}, r"a\.iso: image_medium\.checksum: is not given; give sha256:<hex>, or the place"),
        ({"checksum": "md5:0"}, r"^md5:0: image_medium\.checksum: the algorithm 'md5' is not accepted; write sha256:"),
        ({"checksum": "/no/SUMS"}, r"^/no/SUMS: image_medium\.checksum: there is no such file"),
        (
            {"signature": "/s"},
            r"^/s: image_medium\.signature: is of a checksum file, but image_medium\.checksum is the",
        ),
        ({"checksum": "/SUMS", "signature": "/s"}, r"image_medium\.keyring: is not given, so no signature can be"),
        ({"checksum": "/SUMS", "keyring": "/no.gpg"}, r"^/no\.gpg: image_medium\.keyring: there is no such file; give"),
        ({"keyring": "/no.gpg", "fingerprints": ("ABCD",)}, r"^ABCD: image_medium\.fingerprints: is not the full"),
    ],
)
def test_a_definition_that_does_not_fit_together(site: Site, definition: dict[str, t.Any], said: str) -> None:
    refused(site, said, **definition)
    assert site.fetched() == []


def test_fai_takes_no_url(site: Site) -> None:
    definition = Definition("fai", url=site.url, checksum="x", fai={"suite": "bookworm"})
    with pytest.raises(
        FactoryError, match=r"^definition: image_medium\.url: is not for family 'fai'.*; remove url and c"
    ):
        origin_of(definition, Client(Progress("media")), Progress("media"), site.folder / "log")


@pytest.mark.parametrize(
    ("fai", "said"),
    [
        ({"suit": "bookworm"}, r"^definition: image_medium\.suit: there is no such key; did you mean suite\?"),
        ({"xyzzy": 1}, r"^definition: image_medium\.xyzzy: there is no such key; use only suite, "),
        ({}, r"^definition: image_medium\.suite: is not given"),
    ],
)
def test_what_fai_does_not_understand(tmp_path: Path, fai: dict[str, t.Any], said: str) -> None:
    with pytest.raises(FactoryError, match=said):
        origin_of(Definition("fai", fai=fai), Client(Progress("media")), Progress("media"), tmp_path / "log")


@pytest.mark.root
def test_a_full_disk(site: Site) -> None:
    site.workspace.root.mkdir()
    mount = str(site.workspace.root)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", mount], check=True)
    try:
        refused(site, r"/cache/media: only \d MiB are free, a\.iso needs 3 MiB; free some space")
        refused(site, r"/cache/media: only \d MiB are free, a\.iso needs 3 MiB; free", path=str(site.iso))
        site.server.files["/cd/a.iso"].length = False
        refused(site, "/cache/media/.*: No space left on device; free some space there, or set image_workspace")
    finally:
        subprocess.run(["umount", mount], check=True)
