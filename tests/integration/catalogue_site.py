# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A site that publishes in all catalogues: a small build, an inventory, and a server for each catalogue on loopback."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import typing as t
from pathlib import Path

import yaml

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _digest, _qemu_img
from ansible_collections.cloudimg.factory.plugins.module_utils._state import write_json
from ansible_collections.cloudimg.factory.tests.tools.appdb_server import AppDbServer
from ansible_collections.cloudimg.factory.tests.tools.dropping_proxy import Connection, Cut, DroppingProxy
from ansible_collections.cloudimg.factory.tests.tools.file_servers import DavServer
from ansible_collections.cloudimg.factory.tests.tools.marketplace_server import Marketplace
from ansible_collections.cloudimg.factory.tests.tools.pki import Identity, Pki

CHECKOUT = Path(__file__).resolve().parents[2]
IMAGE = "debian-12"
TOKEN = "pat-jane-0123456789"
SECRETS = {"password": "swordfish-in-dav-4711", "passphrase": "open-sesame-endorser-0815", "token": TOKEN}
FETCHED = ["local", "hepix", "appdb", "stratuslab"]
"""The catalogues whose readers fetch the artifacts from where they are served, beside the one that keeps the record."""
EVERYWHERE = [*FETCHED, "opennebula", "oci", "glance"]


def make_build(
    folder: Path, version: str, expires: str = "2099-01-01T00:00:00Z", image: str = IMAGE, size: int = 0
) -> Path:
    """The directory of a build with a real, tiny qcow2, that was assessed as good; returns the descriptor's path.

    :param size: MiB by which it is larger.
    """
    folder.mkdir(parents=True)
    disk = folder / f"{image}-{version}.qcow2"
    _qemu_img.create(disk, 16 << 20)
    # No two builds have the same bytes.
    content = hashlib.sha256(f"{image} {version}".encode()).digest()
    writes = [word for n in range(4) for word in ("-c", f"write -q -P {content[n] or 1} {64 * n}k 64k")]
    writes += ["-c", f"write -q -P 90 1M {size}M"] if size else []
    subprocess.run(["qemu-io", "-f", "qcow2", *writes, str(disk)], check=True)
    digests = _digest.file_digests(disk)
    artifact = _descriptor.Artifact("qcow2", disk.name, disk.stat().st_size, 16 << 20, digests)
    build = _descriptor.Descriptor(
        image=image,
        identifier=_descriptor.stable_identifier(image),
        version=version,
        title="Debian 12",
        description="Minimal Debian 12",
        os=_descriptor.OperatingSystem("debian", "12", "x86_64"),
        min_disk=16 << 20,
        artifacts=(artifact,),
        created="2025-01-31T12:00:00Z",
        expires=expires,
        provenance=_descriptor.Provenance("0" * 64, "7.2", "0.1.0"),
        packages="packages.json",
    )
    (folder / "packages.json").write_text("{}", encoding="utf-8")
    judged = {"name": disk.name, "sha256": digests["sha256"]}
    write_json(folder / "assess.json", {"verdict": "pass", "artifact": judged, "finished": "2025-01-31T12:10:00Z"})
    path = folder / "descriptor.json"
    path.write_text(build.dump(), encoding="utf-8")
    return path


@dataclasses.dataclass
class Played:
    """What ansible-playbook did."""

    rc: int
    out: str

    @property
    def changed(self) -> bool:
        """Whether any host did."""
        return any(int(number) for number in re.findall(r"\bchanged=(\d+)", self.out))


@dataclasses.dataclass
class Servers:
    """A server for each catalogue, each at the other end of a wire that counts, and can be cut."""

    dav: DavServer
    appdb: AppDbServer
    market: Marketplace
    wires: dict[str, DroppingProxy]

    @classmethod
    @contextlib.contextmanager
    def run(cls, root: Path) -> t.Iterator[Servers]:
        """With what is served below ``root``."""
        with contextlib.ExitStack() as stack:
            (root / "www").mkdir(parents=True)
            dav = stack.enter_context(DavServer(root / "www", {"publisher": SECRETS["password"]}))
            appdb = AppDbServer()
            stack.callback(appdb.close)
            appdb.looks = 0
            market = stack.enter_context(Marketplace())
            ports = {"dav": dav.port, "appdb": appdb.port, "market": market.port}
            wires = {name: stack.enter_context(DroppingProxy(port)) for name, port in ports.items()}
            yield cls(dav, appdb, market, wires)

    def again(self, name: str = "", cut: Cut | None = None) -> None:
        """Count anew, and break that wire there."""
        for each, wire in self.wires.items():
            wire.again(*([cut] if cut and each == name else []))
        self.dav.requests.clear()
        self.appdb.requests.clear()
        self.market.asked.clear()

    def connections(self) -> dict[str, list[Connection]]:
        return {name: list(wire.connections) for name, wire in self.wires.items()}

    def writes(self) -> list[str]:
        """The requests that were to change something."""
        asked = [method for method, _path, _length in self.dav.requests]
        asked += [one.method for one in self.appdb.requests] + [one.method for one in self.market.asked]
        return [method for method in asked if method not in ("GET", "HEAD", "OPTIONS", "PROPFIND")]


@dataclasses.dataclass
class Site:
    """An inventory with one image, whose catalogues are those servers."""

    root: Path
    servers: Servers
    endorser: Identity
    anchors: Path

    @classmethod
    def make(cls, root: Path, servers: Servers, pki: Pki, endorser: Identity) -> Site:
        root.mkdir(parents=True, exist_ok=True)
        site = cls(root, servers, endorser, pki.anchors)
        site.write_inventory()
        return site

    @property
    def workspace(self) -> Path:
        return self.root / "workspace"

    @property
    def list(self) -> Path:
        """The signed list as it is served."""
        return self.servers.dav.root / self.root.name / "image.list"

    def write_inventory(self, images: t.Sequence[str] = (IMAGE,), **more: t.Any) -> None:
        """Secrets stand in it as in a vault: they are read from a file of variables."""
        wires = self.servers.wires
        keys = {"certificate": str(self.endorser.certificate), "passphrase": "{{ vault_passphrase }}"}
        chain = {"chain": str(self.endorser.chain)} if self.endorser.chain else {}
        variables = {
            "image_workspace": str(self.workspace),
            "image_catalogues": FETCHED,
            "publish_serve": {
                "target": f"dav://127.0.0.1:{wires['dav'].port}/{self.root.name}",
                "public_url": "https://www.example.org/images",
                "username": "publisher",
                "password": "{{ vault_password }}",
            },
            "publish_hepix": {
                "path": str(self.root / "image.list"),
                "title": "Images of vo.example.org",
                "uri": "https://www.example.org/images/image.list",
                "vo": "vo.example.org",
                "endorser_name": "Jane Doe",
                "private_key": str(self.endorser.key),
                **keys,
                **chain,
            },
            "publish_appdb": {
                "api_url": f"{wires['appdb'].url}/rest/1.0/",
                "appliance": "s:egi.debian",
                "access_token": "{{ vault_token }}",
                "interval": 1,
            },
            "publish_stratuslab": {
                "key": str(self.endorser.key),
                "marketplace": wires["market"].url,
                **keys,
                **chain,
            },
            **more,
        }
        hosts = {"localhost": {"ansible_connection": "local"}}
        inventory = {
            "all": {"hosts": hosts, "children": {"images": {"hosts": dict.fromkeys(images), "vars": variables}}}
        }
        (self.root / "hosts.yml").write_text(yaml.safe_dump(inventory), encoding="utf-8")
        vault = {f"vault_{name}": secret for name, secret in SECRETS.items()}
        (self.root / "vault.yml").write_text(yaml.safe_dump(vault), encoding="utf-8")

    def build(self, version: str, image: str = IMAGE, **options: str) -> Path:
        """A build, as the stages before have left it."""
        return make_build(self.workspace / "builds" / image / version, version, image=image, **options)

    def command(self, playbook: str, *arguments: str, **extra: t.Any) -> list[str]:
        """The words of ansible-playbook."""
        tool = str(Path(sys.executable).with_name("ansible-playbook"))
        words = [tool, "-i", str(self.root / "hosts.yml"), str(CHECKOUT / "playbooks" / playbook)]
        return [*words, "-e", f"@{self.root / 'vault.yml'}", "-e", json.dumps(extra), *arguments]

    def environment(self) -> dict[str, str]:
        settings = {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_LOCALHOST_WARNING": "0", "SUDO_USER": "alice"}
        return {**os.environ, **settings, "HOME": str(self.root), "TMPDIR": str(self.root)}

    def play(self, playbook: str, *arguments: str, check: bool = True, **extra: t.Any) -> Played:
        """Run a playbook."""
        done = subprocess.run(
            self.command(playbook, *arguments, **extra),
            env=self.environment(),
            cwd=self.root,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(done.stdout + done.stderr)
        return Played(done.returncode, done.stdout + done.stderr)

    def entry(self) -> dict[str, t.Any]:
        """What the local catalogue says of the image."""
        index = json.loads((self.workspace / "catalogue/index.json").read_text(encoding="utf-8"))
        return dict(index["images"][IMAGE])

    def publications(self, version: str) -> dict[str, str]:
        """The state of a version in each other catalogue."""
        (known,) = [known for known in self.entry()["versions"] if known["version"] == version]
        return {name: about["state"] for name, about in known.get("publications", {}).items()}

    def served(self) -> dict[str, bytes]:
        """What readers are served."""
        root = self.servers.dav.root / self.root.name
        return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}

    def listed(self) -> list[str]:
        """The versions in the served list, once openssl has verified it."""
        argv = ["openssl", "smime", "-verify", "-in", str(self.list), "-CApath", str(self.anchors)]
        done = subprocess.run(argv, capture_output=True, check=True)
        images = json.loads(done.stdout)["hv:imagelist"]["hv:images"]
        return [image["hv:image"]["hv:version"] for image in images]

    def offered(self) -> list[tuple[str, bool, bool]]:
        """The versions that AppDB has: whether published, and enabled."""
        return [(each.version, each.published, each.enabled) for each in self.servers.appdb.versions]

    def endorsed(self) -> list[str]:
        """What the Marketplace says of each image, the newest entry by itself: its version, and why it is deprecated."""
        newest = {key[:2]: octets for key, octets in sorted(self.servers.market.entries.items())}
        found = []
        for octets in newest.values():
            text = octets.decode()
            version = re.search(r"<slterms:version>([^<]*)<", text)
            reason = re.search(r"<slterms:deprecated>([^<]*)<", text)
            found.append(f"{version[1] if version else '?'}{' ' + reason[1] if reason else ''}")
        return found

    def state(self) -> dict[str, t.Any]:
        """All that is published, without what differs from one run to the next."""
        files = {name: data for name, data in self.served().items() if name != "image.list"}
        known = [{**row, "published": ""} for row in self.entry()["versions"]]
        for row in known:
            about = row.get("publications", {})
            row["publications"] = {name: (each["state"], sorted(each)) for name, each in about.items()}
        history = [(event["action"], event.get("catalogue"), event["version"]) for event in self.entry()["history"]]
        return {
            "files": files,
            "listed": self.listed(),
            "appdb": self.offered(),
            "market": self.endorsed(),
            "versions": known,
            "history": history,
        }

    def forget(self) -> None:
        """Have nothing published, here or elsewhere."""
        shutil.rmtree(self.workspace / "catalogue", ignore_errors=True)
        shutil.rmtree(self.workspace / "endorsed", ignore_errors=True)
        shutil.rmtree(self.servers.dav.root / self.root.name, ignore_errors=True)
        for path in self.root.glob("*image.list*"):
            path.unlink()
        self.servers.appdb.versions.clear()
        self.servers.market.entries.clear()
