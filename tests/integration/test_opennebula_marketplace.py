# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Marketplaces: in files, read over HTTP as a front-end's driver reads them; and private ones of a cloud."""

from __future__ import annotations

import base64
import functools
import http.server
import json
import re
import threading
import typing as t
import urllib.request
from pathlib import Path

import pytest
import yaml
from opennebula_site import Site

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _opennebula
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_cloud import Cloud
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_directory import About, Directory
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_market import Market
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.tests.tools.opennebula_server import OpenNebulaServer

ABOUT = About("vo.example.org", summary='A "small" system', template={"cpu": "2", "os": {"arch": "x86_64", "boot": ""}})


class Web(http.server.SimpleHTTPRequestHandler):
    """The web server of docs/opennebula.md: a request for an appliance gets its index.json, without being sent on."""

    def translate_path(self, path: str) -> str:
        found = re.sub(r"/{2,}", "/", path)
        if re.fullmatch(r"/appliance(/[^/]+)?", found):
            found += "/index.json"
        return super().translate_path(found)

    def log_message(self, *_args: object) -> None:
        return


@pytest.fixture
def web(tmp_path: Path) -> t.Iterator[str]:
    root = tmp_path / "market"
    root.mkdir()
    handler = functools.partial(Web, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def offer(path: Path, root: Path, url: str, *, check_mode: bool = False) -> Result:
    build = _descriptor.load(path)
    artifact = build.artifacts[0]
    return Directory(root, url, check_mode).publish(build, artifact, path.parent / artifact.path, ABOUT)


def issues(root: Path) -> list[str]:
    """What appmarket-simple's «app2 validate» has against a directory; its rules of 2026-05, in other words."""
    found, seen = [], set()
    for path in sorted((root / "appliances").rglob("*.yaml")):
        row = yaml.safe_load(path.read_text(encoding="utf-8"))
        found += [
            f"{path}: {key}"
            for key in ("id", "name", "version", "os-id", "os-release")
            if not str(row.get(key, "")).strip()
        ]
        found += [f"{path}: id is not unique"] if row["id"] in seen else []
        seen.add(row["id"])
        for image in row["images"] or [{}]:
            found += [f"{path}: size"] if not isinstance(image.get("size"), int) or image["size"] <= 0 else []
            found += [f"{path}: {key}" for key in ("md5", "sha256") if not image["checksum"].get(key)]
            name = image["url"].rpartition("/")[2].removesuffix(".qcow2")
            arch = "aarch64" if name.endswith(".aarch64") else "x86_64"
            name = re.sub(r"-\d+\.\d+\.\d+-\d+-\d{8}$", "", name.removesuffix(".aarch64"))
            found += [f"{path}: name {image['name']}"] if image["name"] != name else []
            found += [f"{path}: arch {arch}"] if row["os-arch"] != arch else []
    return found


def monitored(url: str) -> list[dict[str, str]]:
    """What the driver C(one) makes of a marketplace whose ENDPOINT is ``url``, and of where it says the images are."""

    def get(path: str) -> bytes:
        with urllib.request.urlopen(path) as reply:
            assert reply.geturl() == path, "the driver follows no redirection"
            return bytes(reply.read())

    apps = []
    for app in json.loads(get(f"{url}/appliance"))["appliances"]:
        file = app["files"][0]
        template = json.loads(app["opennebula_template"])
        assert all(isinstance(v, str) or all(isinstance(x, str) for x in v.values()) for v in template.values())
        link = f"{url}appliance/{app['_id']['$oid']}"
        assert json.loads(get(link)) == app
        known = {"NAME": app["name"], "VERSION": app["version"], "MD5": file["md5"], "TAGS": ", ".join(app["tags"])}
        apps.append(
            {**known, "SIZE": str(-(-file["size"] >> 20)), "DATA": base64.b64encode(get(f"{link}/download/0")).decode()}
        )
    return apps


def test_a_directory_is_read_as_a_marketplace(tmp_path: Path, web: str) -> None:
    site, root = Site(tmp_path, t.cast("OpenNebulaServer", None)), tmp_path / "market"
    path = site.build("1")
    assert offer(path, root, web, check_mode=True).changed and not list(root.iterdir())
    assert offer(path, root, web).changed
    assert not offer(path, root, web).changed
    arm = _descriptor.OperatingSystem("debian", "12", "aarch64")
    offer(site.build("7.2.0-0-20260330", "arm", os=arm), root, web)
    assert issues(root) == []
    sources = sorted(str(path.relative_to(root)) for path in root.rglob("*.yaml"))
    assert sources == ["appliances/os/debian/arm.yaml", "appliances/os/debian/debian-12.yaml"]
    disk = path.parent / "debian-12-1.qcow2"
    (first,) = [app for app in monitored(web) if app["VERSION"] == "1"]
    assert first["NAME"] == 'Debian "12"' and base64.b64decode(first["DATA"]) == disk.read_bytes()
    assert offer(site.build("2"), root, web).changed
    assert {app["VERSION"] for app in monitored(web)} == {"2", "7.2.0-0-20260330"}
    assert sorted(path.name for path in (root / "images").iterdir()) == [
        "arm-7.2.0-0-20260330.aarch64.qcow2",
        "debian-12-2.qcow2",
    ]
    assert issues(root) == [] and not offer(site.build("2"), root, web).changed
    with pytest.raises(FactoryError, match=r"version: version 1 is older than 2, which is there; raise"):
        offer(path, root, web)
    market = Directory(root, web)
    assert not market.remove(site.identifier, "1").changed and market.remove(site.identifier, "2").changed
    assert not market.remove(site.identifier, "2").changed
    assert [app["VERSION"] for app in monitored(web)] == ["7.2.0-0-20260330"]
    assert len(list((root / "appliances").rglob("*.yaml"))) == len(list((root / "images").iterdir())) == 1


def test_a_run_that_was_cut_short_is_ended_by_the_next(tmp_path: Path, web: str) -> None:
    site, root = Site(tmp_path, t.cast("OpenNebulaServer", None)), tmp_path / "market"
    offer(site.build("1"), root, web)
    for damage in ("appliance/index.json", f"appliance/{site.identifier}/index.json", "images/debian-12-1.qcow2"):
        (root / damage).unlink()
        assert offer(site.build("1"), root, web).changed
        assert len(monitored(web)) == 1 and not offer(site.build("1"), root, web).changed


def test_a_private_marketplace(tmp_path: Path) -> None:
    with OpenNebulaServer(tmp_path / "cloud") as server:
        site = Site(tmp_path, server)

        def run(version: str, remove: bool = False, check_mode: bool = False, name: str = "private") -> Result:
            front = _opennebula.connect(site.given(), Progress("opennebula"), site.delays)
            market = Market(Cloud(front, check_mode), name, 20, 0.05)
            build = _descriptor.load(site.build(version))
            return market.remove(build.identifier, version) if remove else market.publish(build, ABOUT)

        with pytest.raises(FactoryError, match=r"has no READY image there; register it by opennebula_appliance first"):
            run("1")
        with pytest.raises(FactoryError, match=r"^marketplace: there is no marketplace x; name one of these: private$"):
            run("1", name="x")
        site.run("1")
        assert run("1", check_mode=True).changed and not server.apps
        server.faults["marketapp.allocate"] = ["lost"]
        front_looks, _opennebula.LOOKS = _opennebula.LOOKS, (0.0,)
        assert run("1").changed
        _opennebula.LOOKS = front_looks
        app = next(iter(server.apps.values()))
        known: dict[str, t.Any] = dict(app.pairs)
        assert (app.name, app.state, app.origin, known["VERSION"]) == ("debian-12-1", 1, 0, "1")
        assert 'CPU = "2"' in base64.b64decode(known["VMTEMPLATE64"]).decode()
        assert not run("1").changed
        site.run("2")
        assert run("2").changed and [app.name for app in server.apps.values()] == ["debian-12-2"]
        with pytest.raises(FactoryError, match="version 1 is older than 2"):
            run("1")
        assert run("2", remove=True).changed and not server.apps and not run("2", remove=True).changed
