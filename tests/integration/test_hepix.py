# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Image lists through the modules, in a grid whose certificates community.crypto makes; atrope subscribes to them."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import shutil
import subprocess
import sys
import typing as t
from pathlib import Path

import ansible_runner
import pytest
import yaml

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _hepix_smime, _hepix_verify, _x509
from ansible_collections.cloudimg.factory.tests.tools import pki
from ansible_collections.cloudimg.factory.tests.tools.hepix import make_build, openssl_read, openssl_verify
from ansible_collections.cloudimg.factory.tests.tools.media_server import File, MediaServer

CHECKOUT = Path(__file__).resolve().parents[2]
PASSPHRASE = "correct horse battery staple"
DN, CA = "/DC=org/DC=example/O=People/CN=Jane Doe", "/DC=org/DC=example/CN=Example CA"
STABLE = _descriptor.stable_identifier("debian-12")
DISK = bytes(range(256)) * 4096


def run(folder: Path, tasks: list[dict[str, t.Any]], *options: str) -> tuple[list[dict[str, t.Any]], str]:
    """Play tasks on this machine; returns their results in order, and all that was printed."""
    runner_folder = folder / "runner"
    shutil.rmtree(runner_folder, ignore_errors=True)
    runner_folder.mkdir()
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    play = {"hosts": "localhost", "gather_facts": False, "vars": local, "tasks": tasks}
    playbook = folder / "playbook.yml"
    playbook.write_text(yaml.safe_dump([play], sort_keys=False), encoding="utf-8")
    runner = ansible_runner.run(
        private_data_dir=str(runner_folder),
        playbook=str(playbook),
        inventory="localhost,",
        cmdline=" ".join(options) or None,
        quiet=True,
        envvars={
            "ANSIBLE_COLLECTIONS_PATH": os.environ["ANSIBLE_COLLECTIONS_PATH"],
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_LOCALHOST_WARNING": "False",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
    )
    events = [event for event in runner.events if event["event"] in ("runner_on_ok", "runner_on_failed")]
    printed = Path(runner.stdout.name).read_text(encoding="utf-8")
    assert runner.rc == 0, printed[-4000:]
    return [event["event_data"]["res"] for event in events], printed


def publish(site: Site, dry: bool = False, module: str = "hepix_image_list", **options: t.Any) -> dict[str, t.Any]:
    """A task that publishes as the endorser; what an option is None for, is left out."""
    signer = {"certificate": site.file("jane.pem"), "private_key": site.file("jane.key"), "passphrase": PASSPHRASE}
    values = {"path": str(site.list), **signer, **options}
    values = {key: value for key, value in values.items() if value is not None}
    return {f"cloudimg.factory.{module}": values, "check_mode": dry, "ignore_errors": True}


def info(site: Site, **options: t.Any) -> dict[str, t.Any]:
    """A task that verifies the list."""
    values = {"path": str(site.list), "ca_directory": site.file("certificates"), **options}
    return {"cloudimg.factory.hepix_image_list_info": values, "ignore_errors": True}


def certificate(root: Path, name: str, subject: list[dict[str, str]], **csr: t.Any) -> list[dict[str, t.Any]]:
    """Tasks that make a key, and a certificate: of the authority itself, C(ca), or by it."""
    file = f"{root}/{name}"
    locked = {"passphrase": PASSPHRASE, "cipher": "auto"} if name != "ca" else {}
    phrase = {"privatekey_passphrase": PASSPHRASE} if locked else {}
    signed = (
        {"provider": "selfsigned", "privatekey_path": f"{file}.key"}
        if name == "ca"
        else {"provider": "ownca", "ownca_path": f"{root}/ca.pem", "ownca_privatekey_path": f"{root}/ca.key"}
    )
    request = {"path": f"{file}.csr", "privatekey_path": f"{file}.key", "subject_ordered": subject, **phrase, **csr}
    return [
        {"community.crypto.openssl_privatekey": {"path": f"{file}.key", "type": "RSA", "size": 2048, **locked}},
        {"community.crypto.openssl_csr": {"use_common_name_for_san": False, **request}},
        {"community.crypto.x509_certificate": {"path": f"{file}.pem", "csr_path": f"{file}.csr", **signed}},
    ]


def grid(root: Path) -> list[dict[str, t.Any]]:
    """Tasks that make an authority, its CRL, a directory of trust anchors, and an endorser whose key is encrypted."""
    org = [{"DC": "org"}, {"DC": "example"}]
    authority = {
        "basic_constraints": ["CA:TRUE"],
        "basic_constraints_critical": True,
        "key_usage": ["keyCertSign", "cRLSign"],
        "key_usage_critical": True,
        "create_subject_key_identifier": True,
    }
    person = {
        "key_usage": ["digitalSignature"],
        "extended_key_usage": ["emailProtection", "clientAuth"],
        "subject_alt_name": ["email:jane@example.org"],
    }
    crl = {
        "path": f"{root}/ca.crl.pem",
        "privatekey_path": f"{root}/ca.key",
        "issuer_ordered": [*org, {"CN": "Example CA"}],
        "last_update": "+0s",
        "next_update": "+30d",
        "revoked_certificates": [],
    }
    anchors = f"{root}/certificates"
    return [
        *certificate(root, "ca", [*org, {"CN": "Example CA"}], **authority),
        *certificate(root, "jane", [*org, {"O": "People"}, {"CN": "Jane Doe"}], **person),
        {"community.crypto.x509_crl": crl},
        {"ansible.builtin.file": {"path": anchors, "state": "directory", "mode": "0755"}},
        {"ansible.builtin.command": {"argv": ["cp", f"{root}/ca.pem", f"{root}/ca.crl.pem", anchors]}},
        {"ansible.builtin.command": {"argv": ["openssl", "rehash", anchors]}},
    ]


@dataclasses.dataclass
class Site:
    """A grid, a web server, a list, and the first build in it."""

    root: Path
    server: MediaServer
    others: pki.Pki
    """Another authority, which the site trusts, too."""
    results: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    printed: str = ""

    @property
    def list(self) -> Path:
        """The list that is published."""
        return self.root / "www/vo.list"

    @property
    def anchors(self) -> Path:
        """The directory of trust anchors."""
        return self.root / "certificates"

    def file(self, name: str) -> str:
        """The path of a file of the grid."""
        return str(self.root / name)

    def first(self, **more: t.Any) -> dict[str, t.Any]:
        """The options that publish the first build in a new list."""
        return {
            "descriptor": str(self.root / "builds/debian-12/1/descriptor.json"),
            "base_url": self.server.url + "/files",
            "title": "Images of vo.example.org",
            "uri": self.server.url + "/vo.list",
            "vo": "vo.example.org",
            "endorser_name": "Jane Doe",
            **more,
        }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Site]:
    """Everything of this, by one playbook: the grid, a list and its verification, a list's life, and errors."""
    root = tmp_path_factory.mktemp("hepix")
    others = pki.Pki.make(root / "others", number=3)
    made = Site(root, MediaServer(), others)
    make_build(root, "1", DISK)
    tasks = {"grid": grid(root), "first": first(made), "life": life(made), "errors": errors(made)}
    results, made.printed = run(root, [task for part in tasks.values() for task in part], "--diff", "-vvv")
    pki.ca_directory(made.anchors, others.authority, others.intermediate)
    for name, part in tasks.items():
        made.results[name], results = results[: len(part)], results[len(part) :]
    yield made
    made.server.close()


def first(site: Site) -> list[dict[str, t.Any]]:
    """The list with a build, planned, made, made again, looked after, verified."""
    options = site.first()
    verified = info(site, endorsers=[{"dn": DN, "ca": CA}])
    return [
        publish(site, dry=True, **options),
        publish(site, **options),
        publish(site, **options),
        publish(site),
        verified,
    ]


def life(site: Site) -> list[dict[str, t.Any]]:
    """Another list: versions, withdrawal and the end."""
    path = str(site.root / "www/life.list")
    second = str(make_build(site.root, "2", b"two", expires="2098-01-01T00:00:00Z"))
    return [
        publish(site, **site.first(path=path, keep=2)),
        publish(site, **site.first(path=path, keep=2, descriptor=second)),
        publish(site, path=path, state="absent", image_identifier=STABLE, image_version="2"),
        publish(site, path=path, state="absent", descriptor=second),
        publish(site, path=path, state="empty"),
        publish(site, path=path, state="empty"),
        info(site, path=path),
    ]


def errors(site: Site) -> list[dict[str, t.Any]]:
    """What cannot be done."""
    options = site.first()
    host = site.others.bad()["host"]
    stranger = {"certificate": str(host.certificate), "private_key": str(host.key)}
    return [
        publish(site, **{**options, "passphrase": "not that one"}),
        publish(site, **{**options, **stranger}),
        publish(site, **{**options, "base_url": None}),
        publish(site, state="absent"),
        publish(site, keep=0),
        publish(site, renew_before="28d"),
        info(site, known_version="9" * 14),
        info(site, known_version="9" * 14, fail=False),
    ]


def serve(site: Site, data: bytes | None = None) -> None:
    """Have the list (or other bytes in its place) and the disk on the web server."""
    site.server.files["/vo.list"] = File(site.list.read_bytes() if data is None else data)
    site.server.files["/files/debian-12-1.qcow2"] = File(DISK)


def test_modules(site: Site) -> None:
    planned, made, again, renewed, found = site.results["first"]
    assert [row["changed"] for row in site.results["first"]] == [True, True, False, False, False]
    assert (
        planned["actions"] == made["actions"] == ["the list: is not there yet", "debian-12 1: is not in the list yet"]
    )
    assert made["diff"]["after"]["hv:images"][STABLE]["hv:version"] == "1"
    assert (made["publication"]["identifier"], made["images"], made["list"]) == (STABLE, 1, str(site.list))
    assert again["version"] == renewed["version"] == made["version"]
    assert again["publication"] == made["publication"]
    assert "can serve an older list" in " ".join(made["warnings"])
    assert (found["valid"], found["problems"], found["canonical"]) == (True, [], True)
    assert (found["signer"]["dn"], found["signer"]["ca"]) == (DN, CA)
    assert found["endorser"] == {"name": "Jane Doe", "email": "jane@example.org", "dn": DN, "ca": CA}
    assert found["images"][0]["uri"] == site.server.url + "/files/debian-12-1.qcow2"
    assert openssl_read(site.list, site.anchors) == found["content"]


def test_no_secret_is_told(site: Site) -> None:
    assert "hepix_image_list" in site.printed
    assert PASSPHRASE not in site.printed
    runner_files = [path for path in (site.root / "runner").rglob("*") if path.is_file()]
    assert runner_files
    assert [path for path in runner_files if PASSPHRASE.encode() in path.read_bytes()] == []


def test_life_of_a_list(site: Site) -> None:
    results = site.results["life"]
    assert [row["changed"] for row in results] == [True, True, True, False, True, False, False]
    assert [row.get("images") for row in results[:6]] == [1, 2, 1, 1, 0, 0]
    assert results[2]["removed"][0]["version"] == "2"
    versions = [row["version"] for row in results[:6]]
    assert versions == sorted(versions)
    assert len(set(versions)) == 4
    assert (results[6]["images"], results[6]["problems"]) == ([], [])


def test_errors_are_one_line(site: Site) -> None:
    results = site.results["errors"]
    messages = [row.get("msg", "") for row in results]
    expected = [
        "jane.key: cannot be decrypted: the passphrase is wrong, or the file is broken; give its passphrase",
        "host.pem: the certificate /DC=org/DC=example/C=DE/O=People/CN=host may not sign lists: its extendedKeyUsage",
        "base_url: is missing; give the URL below which the artifacts are served",
        "state: absent: does not say which image",
        "keep: 0 is less than 1",
        "renew_before: 28d is not less than lifetime, 28d",
        "vo.list: hv:version: is ",
        "",
    ]
    for message, wanted in zip(messages, expected):
        assert wanted in message
        assert "\n" not in message
        assert "Traceback" not in message
    assert (results[7]["valid"], len(results[7]["problems"])) == (False, 1)


@dataclasses.dataclass
class Atrope:
    """A site that subscribes to the list."""

    root: Path
    site: Site
    dn: str = DN
    ca: str = CA

    def sync(self) -> tuple[dict[str, bytes], str]:
        """Run C(atrope cache-sync); returns the images that it accepted, by their names, and what it said."""
        self.root.mkdir(parents=True, exist_ok=True)
        source = {"url": self.site.server.url + "/vo.list", "enabled": True, "endorser": {"dn": self.dn, "ca": self.ca}}
        (self.root / "hepix.yaml").write_text(yaml.safe_dump({"vo": source}), encoding="utf-8")
        config = self.root / "atrope.conf"
        config.write_text(
            f"[DEFAULT]\nca_path = {self.site.anchors}\nstate_path = {self.root}\n"
            f"[cache]\npath = {self.root}/cache\n[sources]\nhepix_sources = {self.root}/hepix.yaml\n",
            encoding="utf-8",
        )
        argv = [str(Path(sys.executable).with_name("atrope")), "--config-file", str(config), "cache-sync"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
        images = (self.root / "cache").glob("vo/images/*")
        return {path.name: path.read_bytes() for path in images}, done.stdout + done.stderr


@pytest.fixture
def atrope(tmp_path: Path, site: Site) -> Atrope:
    return Atrope(tmp_path / "atrope", site)


def test_atrope_accepts(site: Site, atrope: Atrope) -> None:
    """It fetches the list, verifies it, downloads the image, and keeps it; the next time it need not download it again."""
    serve(site)
    images, said = atrope.sync()
    assert images == {STABLE: DISK}, said
    site.server.requests.clear()
    assert atrope.sync()[0] == images
    assert [request.path for request in site.server.requests] == ["/vo.list"]


def test_atrope_drops_what_an_empty_list_withdraws(site: Site, atrope: Atrope) -> None:
    serve(site)
    assert atrope.sync()[0] == {STABLE: DISK}
    signer = jane(site)
    empty = {**_hepix_smime.load(site.list).document, "hv:images": []}
    serve(site, _hepix_smime.sign(empty, signer, datetime.datetime.now(datetime.timezone.utc)))
    assert atrope.sync()[0] == {}


def jane(site: Site) -> _x509.Signer:
    """The endorser."""
    return _x509.Signer.load(Path(site.file("jane.pem")), Path(site.file("jane.key")), PASSPHRASE)


def names(one: pki.Identity) -> tuple[str, str]:
    """Subject and issuer."""
    return _x509.dn_oneline(one.x509.subject), _x509.dn_oneline(one.x509.issuer)


def broken(site: Site) -> dict[str, bytes]:
    """Lists that must not be accepted, by what is wrong with them."""
    good = site.list.read_bytes()
    document = _hepix_smime.load(site.list).document
    now = datetime.datetime.now(datetime.timezone.utc)

    host = site.others.bad()["host"]
    authority = pki.Authority(pki.make_name("DC=org", "DC=example", "CN=Example CA"), number=900)
    impostor = authority.issue(site.root / "impostor", subject=jane(site).certificate.subject)

    def signed(by: pki.Identity | None = None, image: dict[str, t.Any] | None = None, **changes: t.Any) -> bytes:
        who = _x509.Signer(by.x509, _x509.read_key(by.key)) if by else jane(site)
        rows = [{"hv:image": {**row["hv:image"], **(image or {})}} for row in document["hv:images"]]
        rows = [
            {"hv:image": {key: value for key, value in row["hv:image"].items() if value is not None}} for row in rows
        ]
        return _hepix_smime.sign({**document, "hv:images": rows, **changes}, who, now)

    def claims(dn: str, ca: str) -> dict[str, t.Any]:
        return {"hv:x509": {**document["hv:endorser"]["hv:x509"], "hv:dn": dn, "hv:ca": ca}}

    return {
        "a changed checksum": good.replace(b'"sl:checksum:sha512": "', b'"sl:checksum:sha512": "0'),
        "a changed address": good.replace(b'"hv:uri": "http', b'"hv:uri": "HTTP'),
        "no signature": json.dumps({"hv:imagelist": document}).encode("ascii"),
        "a host's certificate": signed(host, **{"hv:endorser": claims(*names(host))}),
        "another authority of the same name": signed(impostor),
        "another name than the signer's": signed(**{"hv:endorser": claims("/DC=org/CN=Other", CA)}),
        "another authority than the signer's": signed(**{"hv:endorser": claims(DN, "/DC=org/CN=Other CA")}),
        "its time is over": signed(**{"dc:date:expires": "2025-01-01T00:00:00Z"}),
        "a missing key": signed(image={"ad:mpuri": None}),
        "half of it": good[: len(good) // 2],
        "a page of HTML": b"<html><body>Not found</body></html>",
    }


def test_atrope_rejects(site: Site, tmp_path: Path) -> None:
    """None of the broken lists brings an image into the cache; our own verification refuses each of them, too."""
    for number, (what, data) in enumerate(broken(site).items()):
        serve(site, data)
        site.server.requests.clear()
        accepted, said = Atrope(tmp_path / str(number), site).sync()
        assert accepted == {}, (what, said)
        assert [request.path for request in site.server.requests] == ["/vo.list"], what
        path = tmp_path / f"{number}.list"
        path.write_bytes(data)
        assert _hepix_verify.inspect(path, _hepix_verify.Policy(site.anchors)).problems != [], what


def test_atrope_rejects_other_endorsers(site: Site, atrope: Atrope) -> None:
    serve(site)
    for change in ({"dn": "/DC=org/CN=Somebody"}, {"ca": "/DC=org/CN=Other CA"}):
        assert dataclasses.replace(atrope, **change).sync()[0] == {}


def test_atrope_rejects_another_disk(site: Site, atrope: Atrope) -> None:
    serve(site)
    site.server.files["/files/debian-12-1.qcow2"] = File(DISK[:-1] + b"x")
    assert atrope.sync()[0] == {}


def test_openssl_and_the_lists_of_the_modules(site: Site) -> None:
    for path in site.list.parent.glob("*.list"):
        assert openssl_verify(path, site.anchors).returncode == 0
