# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Publishing in a real registry that fails, over connections that break: a second run ends as one without trouble would have."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
import typing as t
from pathlib import Path

import pytest
from oci_site import IMAGE, Site, make_build

from ansible_collections.cloudimg.factory.plugins.module_utils import _http
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._http import Answered
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_attach import Attachments
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_blobs import Upload
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_describe import Options
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_registry import digest_of
from ansible_collections.cloudimg.factory.tests.tools.dropping_proxy import DroppingProxy, cuts
from ansible_collections.cloudimg.factory.tests.tools.registry_server import Fault, Front, Registry

DATA = os.urandom(1_500_000)
LONGER = (0.1, 0.5, 1.0, 2.0)
"""Of faults that are real ones, and over after a while."""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture
def front(registry: Registry) -> t.Iterator[Front]:
    with Front(registry) as server:
        yield server


@pytest.fixture
def site(tmp_path: Path, front: Front) -> Site:
    # A repository of its own is as good as a registry of its own, and there sooner.
    return Site(tmp_path, front.url, {"repository": f"vo/{tmp_path.name.replace('_', '-').lower()[:60].strip('-')}"})


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that are waited, without waiting."""
    found: list[float] = []
    monkeypatch.setattr(_http.Http, "pause", lambda _self, seconds: found.append(seconds))
    return found


def seen(site: Site) -> list[dict[str, t.Any]]:
    """All that readers see: the same for the same build in any repository."""
    return [{**row, "referrers": sorted(map(str, row["referrers"]))} for row in site.state()]


def clean(site: Site, descriptor: Path) -> list[dict[str, t.Any]]:
    """What one run without trouble leaves."""
    other = Site(site.root, site.url, {"repository": site.options["repository"] + "/clean"})
    other.present(descriptor)
    return seen(other)


def attempt(site: Site, descriptor: Path) -> FactoryError | None:
    """How publishing fails, if it does."""
    try:
        site.present(descriptor)
    except FactoryError as exc:
        return readable(exc)
    return None


def readable(failure: FactoryError) -> FactoryError:
    """One line that says how to mend it."""
    assert failure.mend and "\n" not in str(failure)
    return failure


def whole(site: Site) -> None:
    """Whatever has a tag can be had."""
    repository = site.repository()
    for tag in repository.tags():
        found = repository.get(tag)
        assert found
        assert all(repository.has(layer["digest"], layer["size"]) for layer in found.layers)


def cut_at(places: slice, reset: bool, root: Path, registry: Registry) -> None:
    """Cut a run at these of its places: the second run ends as a clean one."""
    descriptor = make_build(root / "build", data=DATA[:50_000])
    name = f"cut/{root.name.replace('_', '-').lower()[:50].strip('-')}"
    with DroppingProxy(registry.port) as proxy:
        first = Site(root, proxy.url, {"repository": f"{name}/clean"})
        first.present(descriptor)
        every = cuts(list(proxy.connections), reset=reset)
        proxy.again()
        wanted = seen(first)
        assert len(every) > 100
        # The blobs are there already in any other repository, but not linked to it: all is done again.
        for number, cut in enumerate(every[places]):
            site = Site(root, proxy.url, {"repository": f"{name}/{number}", "http_timeout": 5})
            proxy.again(cut)
            attempt(site, descriptor)
            whole(Site(root, registry.url, site.options))
            proxy.again()
            site.present(descriptor)
            assert seen(site) == wanted, cut
            if number % 4 == 0:
                assert not site.present(descriptor).changed, cut
    assert not list(descriptor.parent.glob(".*"))


@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_cut(reset: bool, tmp_path: Path, registry: Registry, waits: list[float]) -> None:
    cut_at(slice(5 + 7 * reset, None, 17), reset, tmp_path, registry)


@pytest.mark.slow
@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_cut_at_every_place(reset: bool, tmp_path: Path, registry: Registry, waits: list[float]) -> None:
    cut_at(slice(None), reset, tmp_path, registry)


STEPS = [
    ("GET", "/manifests/"),
    ("HEAD", "/blobs/"),
    ("POST", "/blobs/uploads/"),
    ("PATCH", "/blobs/uploads/"),
    ("PUT", "/blobs/uploads/"),
    ("PUT", "/manifests/"),
    ("GET", "/referrers/"),
]


@pytest.mark.parametrize(
    ("method", "part", "status"),
    [(*step, status) for step in STEPS for status in (403, 503)]
    + [("PATCH", "/blobs/uploads/", status) for status in (401, 404, 409, 429, 500)],
)
def test_a_registry_that_refuses_is_told_and_the_second_run_ends_it(
    method: str, part: str, status: int, site: Site, front: Front, waits: list[float]
) -> None:
    descriptor = site.build(data=DATA[:70_000])
    wanted = clean(site, descriptor)
    front.faults.append(Fault(method, part, status, times=100))
    failure = attempt(site, descriptor)
    # That there is no API for referrers is said by many statuses.
    assert failure is not None and str(status) in str(failure)
    front.faults.clear()
    assert not site.repository().tags() or all("sha256-" in tag for tag in site.repository().tags())
    site.present(descriptor)
    assert seen(site) == wanted and not site.present(descriptor).changed


@pytest.mark.parametrize(
    ("method", "part", "status"),
    [(*step, 503) for step in STEPS] + [("PATCH", "/blobs/uploads/", status) for status in (429, 500, 502, 504)],
)
@pytest.mark.parametrize("told", [True, False], ids=["Retry-After", "untold"])
def test_what_passes_is_waited_for(
    method: str, part: str, status: int, told: bool, site: Site, front: Front, waits: list[float]
) -> None:
    descriptor = site.build(data=DATA[:70_000])
    wanted = clean(site, descriptor)
    waits.clear()
    site.delays = (3.0, 3.0)
    front.faults.append(Fault(method, part, status, {"Retry-After": "7"} if told else {}))
    site.present(descriptor)
    assert (max(waits) == 7.0 if told else 0 < max(waits) < 7) and seen(site) == wanted


@pytest.mark.parametrize(("method", "part"), [step for step in STEPS if step[0] in ("POST", "PATCH", "PUT")])
def test_what_was_done_all_the_same_is_found(
    method: str, part: str, site: Site, front: Front, waits: list[float]
) -> None:
    descriptor = site.build(data=DATA[:70_000])
    wanted = clean(site, descriptor)
    front.faults.append(Fault(method, part, 500, after=True))
    site.present(descriptor)
    assert seen(site) == wanted


def test_a_proxy_that_takes_no_large_requests_gets_small_ones(site: Site, front: Front) -> None:
    descriptor = make_build(site.root / "large", data=DATA * 6)
    front.most_chunk = 3_000_000
    site.present(descriptor)
    whole(site)
    assert max(each.length for each in front.asked if each.status == 202) <= 3_000_000
    front.most_chunk = 1000
    with pytest.raises(Answered, match=r"HTTP 413: .*; ask the server's administrator to allow larger files"):
        site.present(make_build(site.root / "other", "1.1", data=DATA[::-1]))


def test_an_upload_that_is_not_known_any_more_begins_anew(site: Site, front: Front, waits: list[float]) -> None:
    descriptor = site.build(data=DATA)
    site.chunk = 400_000
    front.faults.append(Fault("PATCH", "/uploads/", 0, skip=2))
    front.faults.append(Fault("GET", "/uploads/", 404))
    done = site.present(descriptor)
    whole(site)
    assert done.extra["sent"] > len(DATA)


def test_a_chunk_that_came_twice_is_found_by_its_digest(site: Site, front: Front, waits: list[float]) -> None:
    descriptor = site.build(data=DATA)
    image = descriptor.with_name(f"{IMAGE}-1.0.qcow2")
    site.chunk = 400_000
    repository = site.repository()
    upload = Upload(repository, image, digest_of(DATA), len(DATA), chunk=400_000, delays=(0.0, 0.0))
    send = upload._send
    calls: list[int] = []

    def twice(offset: int) -> int:
        calls.append(offset)
        if len(calls) == 2:
            path = upload._location.partition("://")[2].partition("/")[2]
            front.call("PATCH", f"/{path}", b"x" * 1000, Content_Type="application/octet-stream")
        return send(offset)

    upload._send = twice  # type: ignore[method-assign]
    upload.run()
    assert repository.has(digest_of(DATA), len(DATA)) and calls.count(0) == 2


def test_a_file_that_is_another_one_is_refused_by_the_registry(site: Site, front: Front) -> None:
    path = site.root / "file"
    path.write_bytes(DATA)
    upload = Upload(site.repository(), path, digest_of(b"other"), len(DATA), delays=())
    with pytest.raises(Answered, match="HTTP 400: DIGEST_INVALID"):
        upload.run()
    assert not site.repository().has(digest_of(b"other")) and not list(site.root.glob(".*"))


@pytest.mark.parametrize("when", ["between", "within", "forgets"])
def test_a_restart_half_way(when: str, tmp_path: Path) -> None:
    """Between two chunks, within one, and with all uploads forgotten."""
    with Registry(tmp_path / "registry") as registry, Front(registry) as front:
        site = Site(tmp_path, front.url)
        site.delays = (0.5, 1.0, 2.0)
        site.chunk = 500_000
        descriptor = site.build(data=DATA)

        def restart() -> None:
            registry.stop(kill=True)
            if when == "forgets":
                registry.secret = "another-one"
            registry.start()

        front.faults.append(Fault("PATCH", "/uploads/", 0, skip=1, restart=restart, half=when == "within"))
        done = site.present(descriptor)
        whole(site)
        assert sorted(site.tags().values()) == ["1.0", "1.0"]
        # The chunk that was lost is sent again, and all where the registry has forgotten the upload.
        assert done.extra["sent"] == len(DATA) + (500_000 if when == "between" else 1_000_000)
        front.asked.clear()
        assert not site.present(descriptor).changed and not front.writes()


def test_the_next_run_goes_on_with_an_upload(site: Site, front: Front, waits: list[float]) -> None:
    descriptor = site.build(data=DATA)
    site.chunk = 300_000
    front.faults.append(Fault("PATCH", "/uploads/", 0, skip=3, times=100))
    failure = attempt(site, descriptor)
    assert failure and not site.repository().tags()
    (note,) = descriptor.parent.glob(".*.upload.json")
    assert note.stat().st_mode & 0o777 == 0o600
    front.faults.clear()
    front.asked.clear()
    done = site.present(descriptor)
    assert done.extra["sent"] == front.sent() == len(DATA) - 900_000 and not note.exists()
    whole(site)


def test_a_note_about_another_upload_is_not_used(site: Site, front: Front) -> None:
    descriptor = site.build(data=DATA)
    note = descriptor.with_name(f".{IMAGE}-1.0.qcow2.upload.json")
    for text in ("{", "[]", '{"repository": "x", "digest": "y", "location": "https://evil.example.org/"}'):
        note.write_text(text, encoding="utf-8")
        site.present(descriptor)
        site.catalogue().absent("12")
        assert not note.exists() or note.read_text(encoding="utf-8") == text


@pytest.mark.root
def test_a_full_disk(tmp_path: Path, waits: list[float]) -> None:
    """What has a tag stays whole, and the next run goes on once there is room."""
    store = tmp_path / "registry/store"
    store.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(store)], check=True)
    try:
        with Registry(tmp_path / "registry") as registry, Front(registry) as front:
            site = Site(tmp_path, front.url)
            site.present(site.build(data=DATA))
            newer = site.build("1.1", data=DATA[::-1] * 2)
            failure = attempt(site, newer)
            assert failure and "HTTP 500" in str(failure)
            whole(site)
            assert set(site.tags().values()) == {"1.0"}
            subprocess.run(["mount", "-o", "remount,size=20m", str(store)], check=True)
            site.present(newer)
            whole(site)
            assert site.tags()["12"] == "1.1" and not site.present(newer).changed
    finally:
        subprocess.run(["umount", str(store)], check=True)


def test_a_registry_that_cannot_store(tmp_path: Path, waits: list[float]) -> None:
    """It answers 500 to each chunk; what has a tag stays whole."""
    with Registry(tmp_path / "registry") as registry, Front(registry) as front:
        site = Site(tmp_path, front.url)
        descriptor = site.build(data=DATA)
        site.present(descriptor)
        newer = site.build("1.1", data=DATA[::-1])
        front.faults.append(Fault("PATCH", "/uploads/", 500, times=100, body=b'{"errors":[{"code":"UNKNOWN"}]}'))
        failure = attempt(site, newer)
        assert failure and "HTTP 500" in str(failure)
        assert set(site.tags().values()) == {"1.0"}
        front.faults.clear()
        site.present(newer)
        assert site.tags()["12"] == "1.1"


def test_two_publishers_of_the_same_build(tmp_path: Path, front: Front) -> None:
    descriptor = make_build(tmp_path / "one", data=DATA)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    sites = [Site(tmp_path, front.url, {"repository": "race/same"}, delays=LONGER) for _number in range(2)]
    builds = [tmp_path / name / "descriptor.json" for name in ("one", "two")]
    failures: list[FactoryError | None] = []
    threads = [
        threading.Thread(target=lambda site=site, build=build: failures.append(attempt(site, build)))
        for site, build in zip(sites, builds)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [None, None]
    sites[0].present(descriptor)
    whole(sites[0])
    assert seen(sites[0]) == clean(sites[0], descriptor)
    assert not sites[1].present(descriptor).changed


def test_a_blob_that_another_publisher_links_at_the_same_moment(site: Site, front: Front, waits: list[float]) -> None:
    """docker-registry 2.8 says so of a blob whose link is just being written anew."""
    errors = (
        b'{"errors":[{"code":"DIGEST_INVALID"},{"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown to registry"}]}'
    )
    front.faults.append(Fault("PUT", "/manifests/", 400, times=2, body=errors))
    site.present(site.build(data=DATA))
    whole(site)
    assert waits == list(site.delays)
    front.faults.append(Fault("PUT", "/manifests/", 400, times=100, body=errors))
    failure = attempt(site, site.build("1.1", data=DATA[::-1]))
    assert failure and "MANIFEST_BLOB_UNKNOWN" in str(failure)


def test_two_publishers_of_two_versions(tmp_path: Path, front: Front) -> None:
    builds = [make_build(tmp_path / version, version, data=DATA + version.encode()) for version in ("1.0", "1.1")]
    site = Site(tmp_path, front.url, {"repository": "race/versions"}, delays=LONGER)
    threads = [threading.Thread(target=attempt, args=(site, build)) for build in builds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for build in builds:
        site.present(build)
    assert site.tags()["12"] == "1.1" and sorted(site.tags().values()) == ["1.0", "1.1", "1.1"]
    whole(site)


def test_an_older_build_that_overtakes_is_set_right(site: Site, front: Front) -> None:
    """Another publisher's older build comes to the tag that moves after it was looked at."""
    old, new = site.build("1.0"), site.build("1.1")
    site.present(old)
    manifest = site.repository().get("12")
    assert manifest
    repository = site.options["repository"]
    site.present(new)
    kind = manifest.media_type
    catalogue = site.catalogue()
    get = catalogue.repository.get
    overtaken: list[str] = []

    def overtake(reference: str) -> t.Any:
        if reference == "12" and not overtaken:
            overtaken.append(reference)
            front.call("PUT", f"/v2/{repository}/manifests/12", manifest.data, Content_Type=kind)
        return get(reference)

    catalogue.repository.get = overtake  # type: ignore[method-assign,assignment]
    assert catalogue.present(new, Options(), Attachments()).changed
    assert overtaken and site.tags()["12"] == "1.1"


@pytest.mark.parametrize("number", range(12))
def test_removal_that_is_cut_is_ended_by_the_second_run(number: int, site: Site, front: Front) -> None:
    old, new = (site.present(site.build(version)).extra["publication"] for version in ("1.0", "1.1"))
    front.asked.clear()
    front.faults.append(Fault("", "/v2/", 403, skip=number))
    try:
        site.catalogue().absent(new["tag"], new["digest"])
    except FactoryError as exc:
        readable(exc)
    whole(site)
    front.faults.clear()
    site.catalogue().absent(new["tag"], new["digest"])
    assert site.tags() == {"12": "1.0", old["tag"]: "1.0"}
    assert len([tag for tag in site.repository().tags() if tag.startswith("sha256-")]) == 1


def test_a_slow_reader(tmp_path: Path, registry: Registry) -> None:
    """One that reads 1.5 MB a second: all of the request takes twice as long as it may be silent."""
    descriptor = make_build(tmp_path / "build", data=os.urandom(9_000_000))
    with DroppingProxy(registry.port, rate=1_500_000) as proxy:
        site = Site(tmp_path, proxy.url, {"repository": "slow/debian", "http_timeout": 3}, delays=())
        began = time.monotonic()
        assert site.present(descriptor).extra["sent"] == 9_000_000
        assert time.monotonic() - began > 6, "it has read slowly"
    whole(Site(tmp_path, registry.url, site.options))


@pytest.mark.parametrize("always", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["once", "always"])
def test_a_reader_that_falls_silent(always: bool, tmp_path: Path, registry: Registry, waits: list[float]) -> None:
    """It reads no more: after ``http_timeout`` that is told, or mended where the next connection is read."""
    descriptor = make_build(tmp_path / "build", data=DATA)
    with DroppingProxy(registry.port) as proxy:
        site = Site(tmp_path, proxy.url, {"repository": f"silent/clean{always:d}", "http_timeout": 1}, delays=())
        site.present(descriptor)
        sent = max(range(len(proxy.connections)), key=lambda number: proxy.connections[number].request)
        wanted = seen(site)
        proxy.again()
        proxy.silent = set(range(sent, 1000)) if always else {sent}
        site.options["repository"] = f"silent/debian{always:d}"
        failure = attempt(site, descriptor)
        assert (failure is not None) == always
        proxy.silent = set()
        proxy.again()
        assert site.present(descriptor).changed == always
        assert seen(site) == wanted


def test_not_a_registry(tmp_path: Path, registry: Registry, front: Front, waits: list[float]) -> None:
    descriptor = make_build(tmp_path / "build", data=DATA[:1000])
    page = b"<!doctype html><html><head><title>Welcome</title></head></html>"
    front.faults.append(Fault("", "/", 200, {"Content-Type": "text/html"}, times=1000, body=page))
    with pytest.raises(FactoryError, match=r"an HTML page where JSON was expected: Welcome; check the URL"):
        Site(tmp_path, front.url).present(descriptor)
