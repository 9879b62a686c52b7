# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Publishing in a Glance that fails, over connections that break: a second run ends as one without trouble would have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import typing as t
from pathlib import Path
from unittest import mock

import pytest
from glance_site import IMAGE, Done, Site, make_build

from ansible_collections.cloudimg.factory.plugins.module_utils import _glance_upload
from ansible_collections.cloudimg.factory.tests.tools.dropping_proxy import Cut, DroppingProxy, cuts
from ansible_collections.cloudimg.factory.tests.tools.glance_server import GlanceServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[GlanceServer]:
    with GlanceServer(tmp_path_factory.mktemp("glance")) as found:
        yield found


@pytest.fixture
def site(tmp_path: Path, server: GlanceServer) -> Site:
    site = Site(tmp_path, server)
    site.forget()
    return site


def wanted(site: Site, **options: t.Any) -> list[t.Any]:
    """What one run without trouble leaves."""
    site.publish("1", **options)
    state = site.state()
    site.forget()
    return state


def tried(site: Site, **options: t.Any) -> Done:
    """A run that may fail, in one line that says how to mend it."""
    done = site.run(descriptor=str(site.build("1")), **options)
    if done.values.get("failed"):
        assert "\n" not in done.msg and "; " in done.msg, done.output
        assert "Traceback" not in done.output
    for image in site.server.visible():
        assert image["status"] == "active", "what is seen is whole"
        assert image["os_hash_value"] == site.about("1").artifacts[0].checksums["sha512"]
    return done


def mended(site: Site, state: t.Sequence[t.Any], **options: t.Any) -> None:
    site.publish("1", **options)
    assert site.state() == state
    site.server.clear()
    assert not site.publish("1", **options).changed
    assert site.server.writes() == []


def test_a_connection_cut_anywhere(site: Site, server: GlanceServer) -> None:
    options: dict[str, t.Any] = {"cloud": "keystone", "visibility": "shared", "members": ["astro"]}
    state = wanted(site, **options)
    with DroppingProxy(server.port) as proxy:
        site.clouds(proxy.url)
        site.publish("1", **options)
        places = cuts(proxy.connections)
        assert len(proxy.connections) >= 9
        # Some of them, each at another end; test_a_connection_cut_at_every_place has them all.
        for number, cut in enumerate(places):
            if number % 12 != cut.connection % 12:
                continue
            site.forget()
            proxy.again(cut)
            tried(site, **options)
            proxy.again()
            site.publish("1", **options)
            assert site.state() == state, cut
        assert not site.publish("1", **options).changed


@pytest.mark.slow
@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_cut_at_every_place(reset: bool, site: Site, server: GlanceServer) -> None:
    options: dict[str, t.Any] = {"cloud": "keystone", "visibility": "shared", "members": ["astro"]}
    state = wanted(site, **options)
    with DroppingProxy(server.port) as proxy:
        site.clouds(proxy.url)
        site.publish("1", **options)
        for cut in cuts(proxy.connections, reset=reset):
            site.forget()
            proxy.again(cut)
            tried(site, **options)
            proxy.again()
            site.publish("1", **options)
            assert site.state() == state, cut


@pytest.mark.slow
def test_a_slow_reader(site: Site, server: GlanceServer) -> None:
    """One that reads 1.5 MB a second: all of the data take twice as long as it may be silent."""
    make_build(site.root / "builds/1", "1", size=9)
    state = wanted(site)
    with DroppingProxy(server.port, rate=1_500_000) as proxy:
        site.clouds(proxy.url)
        began = time.monotonic()
        site.publish("1", request_timeout=3)
        assert time.monotonic() - began > 6, "it has read slowly"
    assert site.state() == state and server.writes().count("PUT file") == 1


def test_connections_that_break_again_and_again(site: Site, server: GlanceServer) -> None:
    """Not one attempt gets its data through: nothing stays."""
    state = wanted(site)
    with DroppingProxy(server.port) as proxy:
        site.clouds(proxy.url)
        proxy.again(*(Cut(number, request=100_000) for number in range(60)))
        assert "run this again" in tried(site).msg
        assert server.images() == []
    site.clouds(server.url)
    mended(site, state)


REQUESTS = {
    "list": ("GET", r"/v2/images$"),
    "create": ("POST", r"/v2/images$"),
    "data": ("PUT", r"/file$"),
    "look": ("GET", r"/v2/images/[^/]+$"),
    "show": ("PATCH", r"/v2/images/[^/]+$"),
}


@pytest.mark.parametrize(
    "status", [403, 503, *(pytest.param(each, marks=pytest.mark.slow) for each in (401, 404, 409, 413, 429, 500))]
)
@pytest.mark.parametrize("after", [False, True], ids=["not done", "done"])
def test_a_server_that_refuses(status: int, after: bool, site: Site, server: GlanceServer) -> None:
    """Once it refuses instead of doing it, and once it has done it, whatever it says."""
    state = wanted(site)
    for method, path in REQUESTS.values():
        site.forget()
        fault = {"method": method, "path": path, "status": status, "after": after, "times": 9}
        server.faults(fault)
        done = tried(site)
        server.faults()
        if done.values.get("failed"):
            assert f"HTTP {status}" in done.msg or "was removed" in done.msg or "as removed" in done.msg, (
                method,
                done.msg,
            )
            assert server.visible() == [] or (method, path) == REQUESTS["show"] or method == "GET"
        mended(site, state)


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_kept(status: int, site: Site, server: GlanceServer) -> None:
    state = wanted(site)
    faults = [
        {"method": method, "path": path, "status": status, "headers": {"Retry-After": "1"}}
        for method, path in (REQUESTS["create"], REQUESTS["data"])
    ]
    server.faults(*faults)
    began = time.monotonic()
    done = tried(site)
    assert done.changed and time.monotonic() - began >= 2, "it was asked to wait, twice"
    assert site.state() == state and server.writes().count("PUT file") == 2


def test_the_server_is_killed_half_way(site: Site, server: GlanceServer) -> None:
    state = wanted(site)
    # The proxy holds the data back, so that Glance is in the middle of them when it dies.
    with DroppingProxy(server.port, rate=40960) as proxy:
        site.clouds(proxy.url)
        results: list[Done] = []
        path = str(site.build("1"))
        thread = threading.Thread(target=lambda: results.append(site.run(descriptor=path)))
        thread.start()
        while not [image for image in server.images() if image["status"] == "saving"]:
            assert thread.is_alive()
            time.sleep(0.1)
        server.stop(kill=True)
        thread.join()
        server.start()
    assert results[0].failed and "; " in results[0].msg and server.visible() == []
    site.clouds(server.url)
    assert [image["status"] for image in server.images()] == ["saving"], "the dead server has left it so"
    mended(site, state)


def test_data_that_were_changed_on_the_way(site: Site, server: GlanceServer) -> None:
    """The server's checksum is another one: the file changes while it is sent."""
    state = wanted(site)
    disk = site.build("1").parent / site.about("1").artifacts[0].path
    data = disk.read_bytes()
    real = _glance_upload._send

    def send(glance: t.Any, image: str, source: t.Any) -> None:
        disk.write_bytes(data[:-4096] + bytes(range(256)) * 16)
        try:
            real(glance, image, source)
        finally:
            disk.write_bytes(data)

    with mock.patch.object(_glance_upload, "_send", send):
        assert "arrived as something else: sha512 is" in tried(site).msg
    assert server.images() == []
    mended(site, state)


@pytest.mark.root
def test_the_disk_of_the_server_is_full(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(store)], check=True)
    try:
        with GlanceServer(tmp_path / "glance", store=store) as server:
            site = Site(tmp_path, server)
            message = str(tried(site).msg)
            assert "HTTP 413" in message and "make room in the store" in message
            assert server.images() == [] and list(store.iterdir()) == []
            subprocess.run(["mount", "-o", "remount,size=64m", str(store)], check=True)
            assert site.publish("1").changed and not site.publish("1").changed
            assert len(server.visible()) == 1
    finally:
        subprocess.run(["umount", str(store)], check=True)


def test_what_a_killed_run_has_left_is_removed(site: Site, server: GlanceServer) -> None:
    state = wanted(site)
    build = site.about("1")
    about = {"cloudimg_identifier": build.identifier, "cloudimg_version": "1", "cloudimg_state": "incoming"}
    base = {"name": "x", "disk_format": "qcow2", "container_format": "bare", "os_hidden": True, "visibility": "private"}
    with mock.patch.dict(os.environ, {"HOME": str(site.root)}):
        ours = _glance_upload.publisher()
    server.ask("POST", "/v2/images", {**base, **about, "cloudimg_publisher": ours})
    theirs = server.ask("POST", "/v2/images", {**base, **about, "cloudimg_publisher": "another"})
    done = site.publish("1")
    assert any("it was left half-made" in action for action in done.actions)
    # Another machine may still be at it.
    assert [image["id"] for image in server.images() if image["status"] == "queued"] == [theirs["id"]]
    server.ask("DELETE", f"/v2/images/{theirs['id']}")
    assert site.state() == state


def test_two_publishers_on_one_machine(site: Site, server: GlanceServer) -> None:
    state = wanted(site)
    code = f"""
import json, sys
sys.path[:0] = {[str(Path(__file__).parent)]!r}
from ansible.utils.collection_loader._collection_finder import _AnsibleCollectionFinder
_AnsibleCollectionFinder(paths=[{os.environ["ANSIBLE_COLLECTIONS_PATH"]!r}])._install()
from glance_site import Site
from pathlib import Path
class Server:
    url = {server.url!r}
done = Site(Path({str(site.root)!r}), Server).publish("1")
print(json.dumps(done.values["changed"]))
"""
    site.build("1")
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _each in range(2)]
    changed = [json.loads(each.communicate()[0]) for each in both]
    assert sorted(changed) == [False, True]
    assert site.state() == state and server.writes().count("PUT file") == 1


def test_two_publishers_on_two_machines(site: Site, server: GlanceServer) -> None:
    """Both have sent their data when they look: one image stays, and both name it."""
    state = wanted(site)
    build = site.build("1")
    real = _glance_upload.bring
    other: list[Done] = []

    def bring(*words: t.Any) -> t.Any:
        image = real(*words)
        if not other:
            other.append(t.cast("Done", None))
            home = site.root / "elsewhere"
            home.mkdir()
            with (
                mock.patch.object(_glance_upload, "publisher", return_value="another"),
                mock.patch.object(Path, "home", return_value=home),
            ):
                other[0] = site.run(descriptor=str(build), adopt="never")
        return image

    with mock.patch.object(_glance_upload, "bring", bring):
        done = site.publish("1", adopt="never")
    assert other[0].publication["id"] == done.publication["id"]
    assert site.state() == state
    assert [image["cloudimg_version"] for image in server.visible()] == ["1"]


def test_in_use(site: Site, server: GlanceServer) -> None:
    """A store with copies on write does not remove what others are made of."""
    site.publish("1")
    server.faults({"method": "DELETE", "path": "/v2/images/", "status": 409, "times": 2})
    arguments = {"state": "absent", "image": IMAGE, "version": "1", "reason": "old"}
    done = site.run(**arguments)
    assert done.changed and not done.retired and "is in use" in str(done.warnings)
    assert [(image["os_hidden"], image["status"]) for image in server.images()] == [(True, "deactivated")]
    again = site.run(**arguments)
    assert not again.changed and not again.retired
    assert site.run(**arguments).retired and server.images() == []
