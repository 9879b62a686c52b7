# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenNebula that fails, or is cut off: nothing is lost, and a second run ends as one without trouble would have."""

from __future__ import annotations

import functools
import http.server
import multiprocessing
import shutil
import threading
import time
import typing as t
from pathlib import Path

import pytest
from opennebula_site import Site, make_build

from ansible_collections.cloudimg.factory.plugins.module_utils import _opennebula_transfer
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.tests.tools.dropping_proxy import DroppingProxy, cuts
from ansible_collections.cloudimg.factory.tests.tools.opennebula_objects import Image, VmTemplate
from ansible_collections.cloudimg.factory.tests.tools.opennebula_server import PASSWORD, OpenNebulaServer


@pytest.fixture
def server(tmp_path: Path) -> t.Iterator[OpenNebulaServer]:
    with OpenNebulaServer(tmp_path / "cloud") as found:
        yield found


@pytest.fixture
def site(tmp_path: Path, server: OpenNebulaServer) -> Site:
    return Site(tmp_path, server)


def updated(root: Path, builds: Path) -> tuple[OpenNebulaServer, Site]:
    """A front-end with version 1, and a site that may go on to version 2."""
    server = OpenNebulaServer(root / "cloud")
    site = Site(root, server)
    (root / "builds").symlink_to(builds)
    site.run("1")
    return server, site


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("builds")
    for version in ("1", "2"):
        Site(root, t.cast("OpenNebulaServer", None)).build(version)
    return root / "builds"


@pytest.fixture(scope="module")
def wanted(builds: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, t.Any]:
    """What a clean run from version 1 to version 2 leaves."""
    server, site = updated(tmp_path_factory.mktemp("clean"), builds)
    with server:
        site.run("2")
        return server.state()


def attempt(site: Site, *versions: str, **options: t.Any) -> FactoryError | None:
    """How a run fails, if it does."""
    try:
        site.run(*versions, **options)
    except FactoryError as exc:
        failure = exc
    else:
        return None
    assert "\n" not in str(failure) and failure.mend and PASSWORD not in str(failure)
    return failure


def converges(site: Site, server: OpenNebulaServer, wanted: dict[str, t.Any], about: object) -> None:
    """A second run ends as a clean one, and a third has nothing to do."""
    site.url = ""
    site.run("2")
    server.settle()
    assert server.state() == wanted, about
    assert list((server.root / "safe").iterdir()) == [], about
    assert not site.run("2").changed, about


def test_a_connection_cut(builds: Path, wanted: dict[str, t.Any], tmp_path: Path) -> None:
    cut_at(slice(3, None, 11), True, builds, wanted, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_cut_anywhere(reset: bool, builds: Path, wanted: dict[str, t.Any], tmp_path: Path) -> None:
    cut_at(slice(None), reset, builds, wanted, tmp_path)


def cut_at(places: slice, reset: bool, builds: Path, wanted: dict[str, t.Any], root: Path) -> None:
    """Cut a run at these of its places: the second run ends as a clean one."""
    server, site = updated(root / "clean", builds)
    with server, DroppingProxy(server.port) as proxy:
        site.url = f"{proxy.url}/RPC2"
        site.run("2")
        every = cuts(proxy.connections, reset=reset)
    assert len(proxy.connections) >= 12
    for number, cut in enumerate(every[places]):
        server, site = updated(root / str(number), builds)
        # One attempt for each call, so that a cut is a failure.
        site.delays = ()
        with server, DroppingProxy(server.port) as proxy:
            site.url = f"{proxy.url}/RPC2"
            proxy.again(cut)
            attempt(site, "2")
            converges(site, server, wanted, cut)
        shutil.rmtree(root / str(number))


REFUSED = ["401", "403", "404", "409", "413"]
FAULTS = [*REFUSED, "429", "429-untold", "500", "503", "503-untold", "html", "lost", "reset"]
METHODS = [
    *("imagepool.info", "image.allocate", "template.update"),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("image.info", "image.chmod", "image.rename", "image.enable")
    ),
]


@pytest.mark.parametrize("method", METHODS)
def test_a_front_end_that_fails(method: str, builds: Path, wanted: dict[str, t.Any], tmp_path: Path) -> None:
    for fault in FAULTS:
        server, site = updated(tmp_path / fault, builds)
        with server:
            server.delay = 0.1
            server.faults[method] = [fault]
            failure = attempt(site, "2")
            assert server.faults[method] == [], fault
            if method == "image.allocate" and fault.partition("-")[0] in ("lost", "503", "429"):
                assert failure is None, "it is looked up, or was not done"
            if fault in REFUSED:
                assert failure and f"HTTP {fault}" in str(failure)
            server.delay = 0
            server.settle()
            visible = [image for image in server.images.values() if image.mode != 0o600 and image.state != 1]
            assert visible == [], "nothing half made is visible"
            converges(site, server, wanted, (method, fault))


def test_a_lost_answer_does_not_make_two(site: Site, server: OpenNebulaServer) -> None:
    server.faults = {"image.allocate": ["lost"], "template.allocate": ["lost"]}
    site.run("1")
    assert (len(server.images), len(server.templates), server.count("image.allocate")) == (1, 1, 1)


def test_a_restart_half_way(site: Site, server: OpenNebulaServer) -> None:
    server.delay = 1.0
    done: list[t.Any] = []
    thread = threading.Thread(target=lambda: done.append(attempt(site, "1")))
    thread.start()
    while not server.images:
        time.sleep(0.02)
    server.stop()
    time.sleep(0.5)
    server.start()
    thread.join(30)
    assert done == [None] and [image.state for image in server.images.values()] == [1]


def test_a_transfer_that_died_with_the_front_end(site: Site, server: OpenNebulaServer) -> None:
    server.delay = 0.5
    server.hooks["image.info"] = lambda one, *_given: one.lose_transfers()
    failure = attempt(site, "1", timeout=1)
    assert failure and "is still LOCKED after 1 s; run this again: it waits for the same image" in str(failure)
    number = next(iter(server.images))
    assert "is still LOCKED" in str(attempt(site, "1", timeout=1)) and server.count("image.allocate") == 1
    server.hooks.clear()
    server.images[number].regtime -= 7200
    assert (
        site.run("1", stuck_after=3600).actions[0]
        == f"image debian-12-1@default ({number}): is LOCKED for more than 3600 s"
    )
    assert [(image.state, image.mode) for image in server.images.values()] == [(1, 0o640)]
    assert list((server.root / "safe").iterdir()) == []


def test_a_slow_reader_is_waited_for_by_the_next_run(site: Site, server: OpenNebulaServer) -> None:
    server.rate = 300_000.0
    failure = attempt(site, "1", timeout=0.3)
    assert failure and "run this again" in str(failure)
    (image,) = server.images.values()
    assert (image.state, image.mode) == (4, 0o600)
    assert len(list((server.root / "safe").iterdir())) == 1, "the front-end still reads it"
    site.run("1")
    assert server.count("image.allocate") == 1 and list((server.root / "safe").iterdir()) == []


@pytest.mark.slow
def test_a_slow_reader_of_what_we_serve(site: Site, server: OpenNebulaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The front-end fetches 1.5 MB a second from us: all of it takes twice as long as it may be silent."""
    monkeypatch.setattr(_opennebula_transfer._Handler, "timeout", 3)
    build = make_build(site.root / "builds/large/1", "1", "large", size=9)
    server.rate = 1_500_000.0
    began = time.monotonic()
    site.run(descriptors=[str(build)], transfer="http", http_address="127.0.0.1")
    assert time.monotonic() - began > 6, "it has read slowly"
    assert [(image.name, image.state) for image in server.images.values()] == [("large-1@default", 1)]


def test_nothing_half_made_is_visible_whatever_the_umask(site: Site, server: OpenNebulaServer) -> None:
    server.new_mode, server.rate = 0o644, 200_000.0
    seen: list[tuple[int, int]] = []
    server.hooks["image.info"] = lambda one, number, *_given: seen.append(
        (one.images[number].state, one.images[number].mode)
    )
    site.run("1")
    assert seen[0] == (4, 0o644) and {mode for state, mode in seen[1:] if state == 4} == {0o600}
    assert [image.mode for image in server.images.values()] == [0o640]


def test_nothing_half_made_is_visible_while_others_are_begun(site: Site, server: OpenNebulaServer) -> None:
    server.new_mode, server.delay = 0o644, 0.3
    paths = [str(site.build("1", f"image-{number}")) for number in range(6)]
    seen: list[list[int]] = []
    server.hooks["image.allocate"] = lambda one, *_given: seen.append(
        [image.mode for image in one.images.values() if image.state == 4]
    )
    site.run(descriptors=paths)
    assert {mode for modes in seen for mode in modes} == {0o600}
    assert max(map(len, seen)) == 3, "the fourth one is begun beside three"
    assert {image.mode for image in server.images.values()} == {0o640}


def test_a_restricted_directory(site: Site, server: OpenNebulaServer, tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir()
    failure = attempt(site, "1", directory=str(private))
    text = str(failure)
    assert text.startswith("image debian-12-1@default (0): its transfer failed: ") and "check RESTRICTED_DIRS" in text
    assert f"takes files from its SAFE_DIRS only ({server.root}/safe): give one of them as directory" in text
    assert server.images == {} and list(private.iterdir()) == []
    site.run("1")


def test_a_full_disk_at_the_front_end(site: Site, server: OpenNebulaServer) -> None:
    server.full = True
    assert "No space left on device; mend what OpenNebula names" in str(attempt(site, "1"))
    assert server.images == {} and list((server.root / "safe").iterdir()) == []
    server.full = False
    site.run("1")


def test_other_bytes_than_the_build_s(site: Site, server: OpenNebulaServer, tmp_path: Path) -> None:
    folder = tmp_path / "www"
    folder.mkdir()
    data = bytearray((site.build("1").parent / "debian-12-1.qcow2").read_bytes())
    data[-1] ^= 1
    (folder / "debian-12-1.qcow2").write_bytes(data)
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{web.server_address[1]}/"
        assert "its transfer failed" in str(failure := attempt(site, "1", transfer="url", artifact_url=url))
        assert "MD5 sum does not match" in str(failure) and server.images == {}
        data[-1] ^= 1
        (folder / "debian-12-1.qcow2").write_bytes(data)
        site.run("1", transfer="url", artifact_url=url)
        web.shutdown()
    assert [image.state for image in server.images.values()] == [1]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files, and says nothing."""

    def log_message(self, *_args: object) -> None:
        return


def test_quota_capacity_names_and_rights_are_told_apart(site: Site, server: OpenNebulaServer) -> None:
    jane = server.add_user("jane", "jane-secret-0815")
    mine = {"username": "jane", "password": "jane-secret-0815"}
    jane.quotas[1] = (0, -1)
    text = str(attempt(site, "1", **mine))
    assert "limit of 0 reached for IMAGES quota in DATASTORE with ID: 1.; ask for a larger quota" in text
    jane.quotas.clear()
    server.images[50] = Image(50, jane.id, 1, "debian-12-1@default", state=1)
    text = str(attempt(site, "1", **mine))
    assert text.startswith(
        "image debian-12-1@default (50): NAME: the name debian-12-1@default is taken by an image that is"
    )
    del server.images[50]
    server.templates[60] = VmTemplate(60, jane.id, 1, "debian-12@default")
    assert "(60): NAME: the name debian-12@default is taken by a VM template" in str(attempt(site, "1", **mine))
    assert list(server.images) == [], "that is seen before a byte is sent"
    del server.templates[60]
    server.datastores[1].free = 3
    text = str(attempt(site, "1", **mine))
    assert text.startswith(
        "datastore default: datastores: has room for 3 MiB, and the image may grow to 16 MiB; make room"
    )
    server.datastores[1].free = 1000
    server.hooks["image.allocate"] = lambda one, *_given: setattr(one.datastores[1], "free", 3)
    assert "Not enough space in datastore; make room in the datastore" in str(attempt(site, "1", **mine, mode="644"))
    server.hooks.clear()
    server.datastores[1].free = 1000
    assert list(server.images) == []
    assert "Not authorized to perform MANAGE USER [0].; ask the front-end" in str(attempt(site, "1", **mine, owner="0"))
    assert "User couldn't be authenticated" in str(failure := attempt(site, "1", username="jane", password="wrong-one"))
    assert "check username and password" in str(failure)
    assert "there is no datastore nowhere; give the name or number of one of these: default, fast" in str(
        attempt(site, "1", datastores=["nowhere"])
    )
    assert "datastore system is not one of images" in str(attempt(site, "1", datastores=["system"]))
    assert list((server.root / "safe").iterdir()) == []


def test_what_is_locked_stays(site: Site, server: OpenNebulaServer) -> None:
    site.run("1")
    (template,) = server.templates.values()
    template.lock = (1, 0)
    server.asked.clear()
    text = str(attempt(site, "2"))
    assert (
        text
        == "template debian-12@default (0): is locked by somebody; unlock it, or wait until it is, then run this again"
    )
    assert server.writes() == []
    template.lock = None
    (old,) = server.images.values()
    old.lock = (1, 0)
    site.run("2")
    assert "(0) is locked by somebody: it stays as it is" in site.job.shelf.warnings[0]
    assert (old.name, old.state) == ("debian-12-1@default", 1)
    old.lock = None
    assert site.run("2").changed
    assert old.name.startswith("EXPIRED_") and not site.run("2").changed


def test_a_template_edited_by_hand_meanwhile(site: Site, server: OpenNebulaServer) -> None:
    site.run("1")
    (template,) = server.templates.values()

    def edit(_server: OpenNebulaServer, *_given: t.Any) -> None:
        template.pairs.append(("SCHED_REQUIREMENTS", 'CLUSTER_ID="0"'))
        template.pairs[:] = [("MEMORY", "8") if pair[0] == "MEMORY" else pair for pair in template.pairs]

    server.hooks["template.update"] = edit
    site.run("2")
    server.hooks.clear()
    known: dict[str, t.Any] = dict(template.pairs)
    assert known["SCHED_REQUIREMENTS"] == 'CLUSTER_ID="0"', "what somebody adds is kept"
    again = site.run("2")
    assert again.actions == ["template debian-12@default (0): MEMORY differs"]
    assert dict(template.pairs)["MEMORY"] == "2048" and "SCHED_REQUIREMENTS" in dict(template.pairs)


def test_two_publishers_at_once(builds: Path, wanted: dict[str, t.Any], tmp_path: Path) -> None:
    server, site = updated(tmp_path, builds)
    with server:
        server.delay = 0.3
        # Processes, as publishers are: what one of them is writing has its number in its name.
        context = multiprocessing.get_context("fork")
        told = context.SimpleQueue()
        publishers = [
            context.Process(target=lambda: told.put(attempt(Site(tmp_path, server), "2"))) for _each in range(3)
        ]
        for publisher in publishers:
            publisher.start()
        for publisher in publishers:
            publisher.join(120)
        ended = [told.get() for _publisher in publishers if not told.empty()]
        assert None in ended and len(ended) == 3
        converges(site, server, wanted, ended)


def test_the_password_needs_a_private_way(site: Site) -> None:
    with pytest.raises(FactoryError, match="unencrypted over the network") as caught:
        site.run("1", api_url="http://one.example.org:2633/RPC2")
    assert PASSWORD not in str(caught.value)


def test_one_build_that_fails_does_not_keep_others_from_being_published(site: Site, server: OpenNebulaServer) -> None:
    names = [f"image-{number}" for number in range(6)]
    paths = [site.build("1", image) for image in names]
    disk = paths[1].parent / "image-1-1.qcow2"
    disk.write_bytes(disk.read_bytes()[:-1] + b"x")
    server.images[50] = Image(50, 0, 1, "image-2-1@default", state=1)
    (site.root / "builds/wrong").mkdir()
    shutil.copy(disk, site.root / "builds/wrong/image-4-1.qcow2")
    handler = functools.partial(Quiet, directory=str(site.root / "builds"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{web.server_address[1]}"
        urls = [f"{url}/{image}/1/" if image != "image-4" else f"{url}/wrong/" for image in names]
        failure = attempt(site, descriptors=[str(path) for path in paths], transfer="url", artifact_urls=urls)
        web.shutdown()
    assert str(failure).startswith("3 of 6 builds are not published, the first of them is image-1 1: ")
    assert failure and failure.details["changed"]
    rows = failure.details["builds"]
    assert [bool(row["publication"]) for row in rows] == [True, False, False, True, False, True]
    problems = [row["problem"] for row in rows]
    assert [bool(problem) for problem in problems] == [False, True, True, False, True, False]
    assert "was changed after its export" in problems[1] and "NAME: the name image-2-1@default is taken" in problems[2]
    assert "its transfer failed: " in problems[4] and "MD5 sum does not match" in problems[4]
    assert all(("image-" + str(number)) in str(row["actions"]) for number, row in enumerate(rows) if row["actions"])
    assert sorted(image.name for image in server.images.values() if image.id != 50) == [
        "image-0-1@default",
        "image-3-1@default",
        "image-5-1@default",
    ]
    assert server.count("imagepool.info") == 1


def test_a_front_end_that_goes_away_is_not_waited_for_by_each_build(site: Site, server: OpenNebulaServer) -> None:
    paths = [str(site.build("1", f"image-{number}")) for number in range(8)]
    asked: list[str] = []
    site.delays = (0.05,)

    def away(one: OpenNebulaServer, *_given: t.Any) -> None:
        asked.append("image.allocate")
        if len(asked) == 3:
            threading.Thread(target=one.stop).start()

    server.hooks["image.allocate"] = away
    failure = attempt(site, descriptors=paths, timeout=1)
    assert failure and all(row["problem"] for row in failure.details["builds"][4:])
    server.hooks.clear()
    server.start()
    site.run(descriptors=paths)
    assert sorted(image.name for image in server.images.values()) == [
        f"image-{number}-1@default" for number in range(8)
    ]
    assert not site.run(descriptors=paths).changed and list((server.root / "safe").iterdir()) == []


def test_two_versions_of_an_image_at_once(site: Site, server: OpenNebulaServer) -> None:
    site.run("1", "2", descriptors=None)
    assert sorted(image.name.partition("_")[0] for image in server.images.values()) == [
        "EXPIRED",
        "debian-12-2@default",
    ]
    (template,) = server.templates.values()
    assert dict(template.pairs)["CLOUDIMG_VERSION"] == "2"
