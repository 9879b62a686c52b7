# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles publish and retire, and playbooks/refresh.yml, with the catalogue opennebula."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
import test_catalogue_secrets
import yaml
from catalogue_site import CHECKOUT, IMAGE, Played, make_build

from ansible_collections.cloudimg.factory.tests.tools.opennebula_objects import Image
from ansible_collections.cloudimg.factory.tests.tools.opennebula_server import PASSWORD, OpenNebulaServer

pytestmark = pytest.mark.slow


class Site:
    """An inventory with one image, or many, and one catalogue beside the local one.

    :ivar hosts: the images, each with variables of its own.
    """

    def __init__(self, root: Path, server: OpenNebulaServer) -> None:
        self.root = root
        self.server = server
        self.hosts: dict[str, dict[str, t.Any]] = {IMAGE: {}}
        self.strategy = ""
        self.options: dict[str, t.Any] = {"transfer": "directory", "directory": str(root / "cloud/safe")}

    def write_inventory(self) -> None:
        variables = {
            "image_workspace": str(self.root / "workspace"),
            "image_catalogues": ["local", "opennebula"],
            "publish_opennebula": {
                "api_url": self.server.url,
                "username": "oneadmin",
                "password": "{{ vault_password }}",
                "interval": 1,
                "clean_after": "0",
                **self.options,
            },
        }
        hosts = {"localhost": {"ansible_connection": "local"}}
        inventory = {"all": {"hosts": hosts, "children": {"images": {"hosts": self.hosts, "vars": variables}}}}
        (self.root / "hosts.yml").write_text(yaml.safe_dump(inventory), encoding="utf-8")
        (self.root / "vault.yml").write_text(yaml.safe_dump({"vault_password": PASSWORD}), encoding="utf-8")

    def build(self, version: str, image: str = IMAGE) -> Path:
        return make_build(self.root / "workspace/builds" / image / version, version, image=image)

    def play(self, playbook: str, *words: str, check: bool = True, **extra: t.Any) -> Played:
        self.write_inventory()
        argv = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(self.root / "hosts.yml")]
        argv += [str(CHECKOUT / "playbooks" / playbook), "-e", f"@{self.root / 'vault.yml'}", "-e", json.dumps(extra)]
        settings = {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_LOCALHOST_WARNING": "0", "HOME": str(self.root)}
        settings |= {"ANSIBLE_STRATEGY": self.strategy} if self.strategy else {}
        done = subprocess.run(
            [*argv, *words], env={**os.environ, **settings}, cwd=self.root, capture_output=True, text=True, check=False
        )
        out = done.stdout + done.stderr
        assert PASSWORD not in out
        if check and done.returncode:
            raise AssertionError(out)
        return Played(done.returncode, out)

    def publications(self, image: str = IMAGE) -> dict[str, dict[str, t.Any]]:
        """What the local catalogue says of each version in OpenNebula."""
        index = json.loads((self.root / "workspace/catalogue/index.json").read_text(encoding="utf-8"))
        rows = index["images"].get(image, {"versions": []})["versions"]
        return {row["version"]: row.get("publications", {}).get("opennebula", {"state": ""}) for row in rows}

    def states(self, image: str = IMAGE) -> dict[str, str]:
        """The state of each version there."""
        return {version: about["state"] for version, about in self.publications(image).items()}

    def names(self) -> list[str]:
        """The images there, without times."""
        return sorted(image["name"] for image in map(vars, self.server.images.values()))


@pytest.fixture
def site(tmp_path: Path) -> t.Iterator[Site]:
    with OpenNebulaServer(tmp_path / "cloud") as server:
        yield Site(tmp_path, server)


def test_publish_replace_refresh_retire(site: Site) -> None:
    site.build("1")
    assert site.play("publish.yml", "-vvv", "--diff", publish_version="1").changed
    assert (site.names(), site.states()) == ([f"{IMAGE}-1@default"], {"1": "published"})
    site.server.asked.clear()
    assert not site.play("publish.yml", publish_version="1").changed
    assert site.server.writes() == []
    (template,) = site.server.templates.values()
    vm = site.server.do_template_instantiate(site.server.users[0], template.id)
    site.build("2")
    assert site.play("publish.yml", publish_version="2").changed
    assert site.states() == {"1": "retired", "2": "published"} and len(site.server.images) == 2
    assert not site.play("refresh.yml").changed, "a VM still uses it"
    site.server.do_vm_action(site.server.users[0], "terminate", vm)
    assert site.play("refresh.yml").changed
    assert site.names() == [f"{IMAGE}-2@default"]
    assert not site.play("refresh.yml").changed
    arguments = {"retire_version": "2", "retire_reason": "old openssl"}
    site.server.asked.clear()
    assert site.play("retire.yml", "--check", **arguments).changed and site.server.writes() == []
    assert site.play("retire.yml", **arguments).changed
    assert site.states()["2"] == "retired" and site.names()[0].startswith("EXPIRED_")
    assert template.mode == 0o600
    assert not site.play("retire.yml", **arguments).changed


def test_go_back_and_forward(site: Site) -> None:
    for version in ("1", "2"):
        site.build(version)
        site.play("publish.yml", publish_version=version)
    (template,) = site.server.templates.values()
    arguments = {"retire_version": "2", "retire_reason": "does not boot"}
    site.server.asked.clear()
    assert site.play("rollback.yml", "--check", **arguments).changed
    assert site.server.writes() == [] and site.states() == {"1": "retired", "2": "published"}
    assert site.play("rollback.yml", **arguments).changed
    assert site.states() == {"1": "published", "2": "retired"}
    assert dict(template.pairs)["CLOUDIMG_VERSION"] == "1" and "image.allocate" not in site.server.writes()
    assert [name.partition("_")[0] for name in site.names()] == ["EXPIRED", f"{IMAGE}-1@default"]
    assert not site.play("rollback.yml", **arguments).changed
    assert not site.play("retire.yml", **arguments, retire_catalogues=["opennebula"]).changed, "it is retired there"
    done = site.play("rollback.yml", check=False, retire_version="1", retire_reason="x")
    assert done.rc and f"{IMAGE} has no version before 1 that was published in OpenNebula; give" in " ".join(
        done.out.split()
    )
    assert site.play("publish.yml", publish_version="2").changed
    assert site.states() == {"1": "retired", "2": "published"} and dict(template.pairs)["CLOUDIMG_VERSION"] == "2"
    assert "image.allocate" not in [name for name, _given in site.server.asked]
    site.build("3")
    site.play("publish.yml", publish_version="3")
    done = site.play("rollback.yml", check=False, **arguments)
    text = " ".join(done.out.split())
    assert done.rc and f"{IMAGE} 2 is not the version that is published in OpenNebula, but 3; give that one" in text
    assert site.play("rollback.yml", retire_version="3", retire_back_to="1", retire_reason="x").changed
    assert site.states() == {"1": "published", "2": "retired", "3": "retired"}


def test_no_secret_is_seen(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_catalogue_secrets, "FORMS", test_catalogue_secrets.forms(PASSWORD))
    site.build("1")
    site.options = {"transfer": "http", "http_address": "127.0.0.1"}
    site.server.delay = 1.0
    site.write_inventory()
    watch = test_catalogue_secrets.Watch([site.root, Path("/dev/shm")], [site.root / "vault.yml"])
    watch.start()
    try:
        done = site.play("publish.yml", "-vvv", "--diff", publish_version="1")
    finally:
        watch.stop()
    assert watch.found == set() and watch.looks > 20 and len(watch.read) > 5
    (image,) = site.server.images.values()
    assert image.path.startswith("http://127.0.0.1") and image.path.split("/")[3] not in done.out


def test_absent_and_check_mode(site: Site) -> None:
    site.build("1")
    assert site.play("publish.yml", "--check", "--diff", publish_version="1").changed
    assert site.server.writes() == [] and not (site.root / "workspace/catalogue").exists()
    site.play("publish.yml", publish_version="1")
    assert site.play("retire.yml", retire_version="1", retire_reason="old", retire_state="absent").changed
    assert (site.names(), site.server.templates) == ([], {})


def test_the_front_end_fetches_unless_told_otherwise(site: Site) -> None:
    site.build("1")
    site.options = {}
    done = site.play("publish.yml", check=False, publish_version="1")
    assert "publish_serve: public_url: is missing" in " ".join(done.out.split())
    serve = {"public_url": (site.root / "workspace/catalogue").as_uri().replace("file://", "https://www.example.org")}
    done = site.play("publish.yml", check=False, publish_version="1", publish_serve=serve)
    assert "Failed to get image head" in done.out and f"/{IMAGE}/1/" not in site.names()


POOLS = ("user.info", "imagepool.info", "templatepool.info", "datastorepool.info")


@pytest.mark.parametrize("count", [10, 20, 50])
def test_a_play_with_many_images_lists_each_pool_once(count: int, site: Site) -> None:
    server = site.server
    for number in range(200):
        server.images[1000 + number] = Image(1000 + number, 0, 0, f"other-{number}", state=1)
    site.hosts = {f"image-{number}": {} for number in range(count)}
    for image in site.hosts:
        site.build("1", image)
    site.play("publish.yml", "--forks=10", publish_version="1")
    assert {pool: server.count(pool) for pool in POOLS} == dict.fromkeys(POOLS, 1)
    made = ("image.allocate", "image.chmod", "template.allocate", "template.chmod")
    assert {name: server.count(name) for name in made} == dict.fromkeys(made, count)
    # What is left are looks at transfers, two or three for each.
    assert len(server.asked) == 4 + 4 * count + server.count("image.info") <= 4 + 8 * count
    for image in site.hosts:
        about = site.publications(image)["1"]
        assert (about["state"], about["version"]) == ("published", "1")
        found = about["datastores"]["default"]
        assert server.images[found["image"]].name == f"{image}-1@default"
        assert server.templates[found["template"]].name == f"{image}@default"
    server.asked.clear()
    done = site.play("publish.yml", "--forks=10", publish_version="1")
    assert not done.changed and sorted(name for name, _given in server.asked) == sorted(POOLS)


def test_in_a_play_each_image_stands_for_itself(site: Site) -> None:
    """Wrong name, wrong build, other settings, other catalogues: what concerns one image does not concern the others."""
    server = site.server
    site.hosts = {
        "first-fails": {},
        "good": {},
        "not-built": {},
        "other-settings": {"template_mode": "600"},
        "only-local": {"image_catalogues": ["local"]},
        "too-large": {},
        "last": {},
    }
    site.options["template_mode"] = "{{ template_mode | default('640') }}"
    for image in site.hosts:
        if image != "not-built":
            site.build("1", image)
    server.images[50] = Image(50, 0, 1, "first-fails-1@default", state=1)
    server.images[51] = Image(51, 0, 1, "too-large-1@default", state=1)
    would = site.play("publish.yml", "--check", "--diff", check=False, publish_version="1")
    assert would.rc and server.writes() == [] and server.count("imagepool.info") == 2
    assert "NAME: the name first-fails-1@default is taken" in " ".join(would.out.split())
    server.asked.clear()
    done = site.play("publish.yml", check=False, publish_version="1")
    assert done.rc
    recap = dict(re.findall(r"(?m)^(\S+) +: ok=.*failed=(\d+)", done.out))
    assert recap == {image: "1" if image in ("first-fails", "not-built", "too-large") else "0" for image in site.hosts}
    text = " ".join(done.out.split())
    assert (
        "NAME: the name first-fails-1@default is taken" in text
        and "NAME: the name too-large-1@default is taken" in text
    )
    assert server.count("imagepool.info") == 2, "once for each of the two settings"
    published = {image for image in site.hosts if site.states(image) == {"1": "published"}}
    assert published == {"good", "other-settings", "last"}
    assert {template.name: template.mode for template in server.templates.values()} == {
        "good@default": 0o640,
        "last@default": 0o640,
        "other-settings@default": 0o600,
    }
    del server.images[50], server.images[51]
    site.build("1", "not-built")
    server.asked.clear()
    assert site.play("publish.yml", publish_version="1").changed
    assert {image for image in site.hosts if site.states(image) == {"1": "published"}} == {*site.hosts} - {"only-local"}
    assert server.count("image.allocate") == 3 and server.count("imagepool.info") == 2
    server.asked.clear()
    assert not site.play("publish.yml", publish_version="1").changed and server.writes() == []
    server.asked.clear()
    assert not site.play("refresh.yml").changed and server.count("imagepool.info") == 2


def test_hosts_that_do_not_go_in_step(site: Site) -> None:
    """With the strategy «free» each publishes for itself at the worst, and all is there in the end."""
    site.hosts = {f"image-{number}": {} for number in range(4)}
    for image in site.hosts:
        site.build("1", image)
    site.strategy = "ansible.builtin.free"
    site.play("publish.yml", publish_version="1")
    assert sorted(site.names()) == [f"image-{number}-1@default" for number in range(4)]
    assert all(site.states(image) == {"1": "published"} for image in site.hosts)
    assert not site.play("publish.yml", publish_version="1").changed


def test_a_front_end_that_refuses_us_is_told_by_each_host(site: Site) -> None:
    site.hosts = {"one": {}, "two": {}}
    for image in site.hosts:
        site.build("1", image)
    site.options["username"] = "nobody"
    done = site.play("publish.yml", check=False, publish_version="1")
    assert done.rc and done.out.count("couldn't be authenticated") >= 2
    assert re.findall(r"failed=(\d)", done.out) == ["0", "1", "1"][-len(re.findall(r"failed=(\d)", done.out)) :]
    assert site.states("one") == site.states("two") == {"1": ""}
