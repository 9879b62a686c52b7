# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files put where they are served: by each protocol, to a real server, over wires that break."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import typing as t
from pathlib import Path

import boto3
import pytest
from ssh_server import Server

from ansible_collections.cloudimg.factory.plugins.module_utils import (
    _descriptor,
    _digest,
    _http,
    _serve,
    _serve_target,
    _upload,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.tests.tools.dropping_proxy import Cut, DroppingProxy
from ansible_collections.cloudimg.factory.tests.tools.file_servers import DavServer, S3Server

USER, PASSWORD = "publisher", "correct horse battery"
KEYS = {"access_key": "AKIDEXAMPLE", "secret_key": "wJalrXUtnFEMI/K7MDENG"}
NOBODY, HOLDER = _serve_target.Credentials(), _serve_target.Credentials(**KEYS)
DISK = os.urandom(300_000)
NAME = "debian-12/1/debian-12-1.qcow2"


class Far(t.Protocol):
    """Where files are served, and what it has."""

    target: str
    credentials: _serve_target.Credentials

    def files(self) -> dict[str, bytes]: ...


@dataclasses.dataclass
class Tree:
    """A directory, which may be reached by a server."""

    target: str
    root: Path
    credentials: _serve_target.Credentials = NOBODY
    endpoint: str | None = None
    port: int = 0

    def files(self) -> dict[str, bytes]:
        """What readers see: all but names that begin with a point, and what Directory keeps of digests."""
        found = {str(path.relative_to(self.root)): path for path in self.root.rglob("*") if path.is_file()}
        return {name: path.read_bytes() for name, path in found.items() if not hidden(name)}

    def damage(self, name: str, data: bytes) -> None:
        (self.root / name).write_bytes(data)

    def drop(self, name: str) -> None:
        (self.root / name).unlink()


@dataclasses.dataclass
class Bucket:
    """A bucket."""

    target: str
    endpoint: str
    port: int
    credentials: _serve_target.Credentials = HOLDER

    def client(self) -> t.Any:
        key = {"aws_access_key_id": KEYS["access_key"], "aws_secret_access_key": KEYS["secret_key"]}
        endpoint = f"http://127.0.0.1:{self.port}"
        return boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **key)

    @property
    def name(self) -> str:
        return self.target.split("/")[2]

    def files(self) -> dict[str, bytes]:
        client = self.client()
        keys = [row["Key"] for row in client.list_objects_v2(Bucket=self.name).get("Contents", [])]
        read = {key: client.get_object(Bucket=self.name, Key=key)["Body"].read() for key in keys}
        return {key.removeprefix("images/"): data for key, data in read.items()}

    def damage(self, name: str, data: bytes) -> None:
        self.client().put_object(Bucket=self.name, Key=f"images/{name}", Body=data)

    def drop(self, name: str) -> None:
        self.client().delete_object(Bucket=self.name, Key=f"images/{name}")


def hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/")) or name.endswith(".digests.json")


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Server]:
    if os.geteuid():
        pytest.skip("needs root")
    try:
        server = Server(tmp_path_factory.mktemp("sshd"))
    except OSError as exc:
        pytest.skip(str(exc))
    yield server
    server.close()


@pytest.fixture(scope="module")
def s3() -> t.Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture(scope="module")
def dav(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[DavServer]:
    with DavServer(tmp_path_factory.mktemp("dav"), {USER: PASSWORD}) as server:
        yield server


KINDS = ("directory", "sftp", "rsync+ssh", "http", "dav", "s3")
NETWORK = KINDS[1:]


def make_far(request: pytest.FixtureRequest, kind: str, root: Path) -> t.Any:
    """A fresh place of that kind."""
    if kind == "directory":
        return Tree(str(root / "served"), root / "served")
    if kind in ("sftp", "rsync+ssh"):
        if kind == "rsync+ssh" and not shutil.which("rsync"):
            pytest.skip("rsync is not installed")
        server: Server = request.getfixturevalue("sshd")
        credentials = _serve_target.Credentials(
            username="root", identity=server.home / "key", known_hosts=server.known_hosts(server.port)
        )
        return Tree(f"{kind}://127.0.0.1:{server.port}{root}/served", root / "served", credentials, port=server.port)
    if kind in ("http", "dav"):
        web: DavServer = request.getfixturevalue("dav")
        folder = web.root / root.name
        folder.mkdir(exist_ok=True)
        credentials = _serve_target.Credentials(username=USER, password=PASSWORD)
        served = folder / "served"
        if kind == "http":
            (served / "debian-12/1").mkdir(parents=True)  # plain PUT makes no directory
        return Tree(f"{kind}://127.0.0.1:{web.port}/{root.name}/served", served, credentials, port=web.port)
    store: S3Server = request.getfixturevalue("s3")
    bucket = Bucket(f"s3://{root.name.replace('_', '-')[:60].lower()}/images", store.url, store.port)
    bucket.client().create_bucket(Bucket=bucket.name)
    return bucket


@pytest.fixture(params=KINDS)
def far(request: pytest.FixtureRequest, tmp_path: Path) -> t.Any:
    return make_far(request, request.param, tmp_path)


def make_build(folder: Path, content: bytes = DISK) -> Path:
    """The directory of a build, with nothing but descriptor and disk; returns the descriptor's path."""
    folder.mkdir(parents=True, exist_ok=True)
    disk = folder / "debian-12-1.qcow2"
    disk.write_bytes(content)
    build = _descriptor.Descriptor(
        image="debian-12",
        identifier=_descriptor.stable_identifier("debian-12"),
        version="1",
        title="Debian 12",
        description="",
        os=_descriptor.OperatingSystem("debian", "12", "x86_64"),
        min_disk=1 << 30,
        artifacts=(_descriptor.Artifact("qcow2", disk.name, len(content), 1 << 30, _digest.file_digests(disk)),),
        created="2025-01-31T12:00:00Z",
        provenance=_descriptor.Provenance("0" * 64, "7.2", "0.1.0"),
    )
    path = folder / "descriptor.json"
    path.write_text(build.dump(), encoding="utf-8")
    return path


def open_far(far: t.Any, *, check_mode: bool = False) -> _serve.Place:
    progress = Progress("upload")
    store = _serve_target.open_store(
        far.target, far.credentials, progress, timeout=20, endpoint=far.endpoint, region="us-east-1"
    )
    return _serve.Place(store, Result(), progress, "https://www.example.org/images", check_mode)


def upload(far: t.Any, descriptor: Path, listed: Path | None = None, *, check_mode: bool = False) -> _serve.Place:
    """As the module does it."""
    place = open_far(far, check_mode=check_mode)
    try:
        _upload.put_build(place, descriptor, formats=[], folder=None)
        if listed:
            place.put_list(listed.name, listed)
    finally:
        place.store.close()
    return place


def remove(far: t.Any, *names: str, check_mode: bool = False) -> _serve.Place:
    place = open_far(far, check_mode=check_mode)
    try:
        for name in names:
            place.remove(name)
    finally:
        place.store.close()
    return place


def wanted(disk: bytes, listed: bytes | None = None) -> dict[str, bytes]:
    sidecar = f"{hashlib.sha256(disk).hexdigest()}  debian-12-1.qcow2\n".encode()
    files = {NAME: disk, f"{NAME}.sha256": sidecar}
    return files if listed is None else {**files, "image.list": listed}


def test_put_again_and_remove(far: t.Any, tmp_path: Path) -> None:
    descriptor = make_build(tmp_path / "build")
    listed = tmp_path / "image.list"
    listed.write_bytes(b"signed, 1")
    before = far.files()
    planned = upload(far, descriptor, listed, check_mode=True)
    assert planned.result.changed and far.files() == before == {}
    assert planned.store.sent == 0
    done = upload(far, descriptor, listed)
    assert far.files() == wanted(DISK, b"signed, 1")
    assert done.result.actions == planned.result.actions
    assert [action.rpartition(": ")[2] for action in done.result.actions] == ["is not there", "is not there"]
    for check_mode in (False, True):
        again = upload(far, descriptor, listed, check_mode=check_mode)
        assert (again.result.changed, again.store.sent) == (False, 0)
    listed.write_bytes(b"signed, 2")
    later = upload(far, descriptor, listed)
    assert [action.rpartition("/")[2] for action in later.result.actions] == ["image.list: is another one"]
    assert later.store.sent <= len(b"signed, 2")
    assert far.files() == wanted(DISK, b"signed, 2")
    assert remove(far, NAME, check_mode=True).result.changed
    assert far.files() == wanted(DISK, b"signed, 2")
    assert remove(far, NAME).result.changed
    assert far.files() == {"image.list": b"signed, 2"}
    assert not remove(far, NAME).result.changed


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        (b"short", "has 5 bytes, not 300000"),
        (bytes(300_000), None),
    ],
    ids=["short", "zeros"],  # the name of a test is in its environment
)
def test_what_was_damaged_there_is_mended(far: t.Any, tmp_path: Path, damaged: bytes, reason: str | None) -> None:
    descriptor = make_build(tmp_path / "build")
    upload(far, descriptor)
    far.damage(NAME, damaged)
    if reason is None:  # the same size: what a server knows of it is its checksum, else the file beside it
        far.drop(f"{NAME}.sha256")
    done = upload(far, descriptor)
    assert done.result.changed
    assert reason is None or reason in done.result.actions[0]
    assert far.files() == wanted(DISK)
    assert not upload(far, descriptor).result.changed


def test_nothing_is_sent_of_what_is_not_as_the_descriptor_says(far: t.Any, tmp_path: Path) -> None:
    descriptor = make_build(tmp_path / "build")
    (tmp_path / "build/debian-12-1.qcow2").write_bytes(DISK[:-1] + b"?")
    with pytest.raises(FactoryError, match=r"debian-12-1.qcow2: artifacts: was changed after its export"):
        upload(far, descriptor)
    (tmp_path / "build/debian-12-1.qcow2").unlink()
    with pytest.raises(FactoryError, match=r"debian-12-1.qcow2: is missing, or no plain file"):
        upload(far, descriptor)
    assert far.files() == {}
    newer = json.loads(descriptor.read_text(encoding="utf-8"))
    descriptor.write_text(json.dumps({**newer, "schema": 99}), encoding="utf-8")
    with pytest.raises(FactoryError, match=r"descriptor.json: schema: is 99, this version"):
        upload(far, descriptor)


@pytest.mark.parametrize("kind", ["directory", "dav", "s3"])
def test_a_disk_that_changes_while_it_is_sent(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptor = make_build(tmp_path / "build")
    far = make_far(request, kind, tmp_path)
    put = _serve.Place._put

    def meddling(place: _serve.Place, name: str, content: _serve.Content) -> None:
        if content.path:
            content.path.write_bytes(DISK[:-1] + b"?")
        put(place, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(_serve.Place, "_put", meddling)
        with pytest.raises(FactoryError, match=r"debian-12-1.qcow2: artifacts: was changed after its export"):
            upload(far, descriptor)
    assert far.files() == {}
    (tmp_path / "build/debian-12-1.qcow2").write_bytes(DISK)
    upload(far, descriptor)
    assert far.files() == wanted(DISK)


def through(far: t.Any, proxy: DroppingProxy, sshd_home: Path | None) -> t.Any:
    """The same place, at the other end of a wire."""
    if isinstance(far, Bucket):
        return dataclasses.replace(far, endpoint=proxy.url)
    credentials = far.credentials
    if sshd_home:
        words = (sshd_home / "host_key.pub").read_text().split()
        known = far.root.parent / "known_hosts"
        known.write_text(f"[127.0.0.1]:{proxy.port} {words[0]} {words[1]}\n")
        credentials = dataclasses.replace(credentials, known_hosts=known)
    return dataclasses.replace(
        far, target=far.target.replace(f":{far.port}/", f":{proxy.port}/"), credentials=credentials
    )


def assert_never_half(far: t.Any, kind: str, listed: bytes) -> None:
    """Nothing but whole files is seen, and the list only where what it names is there."""
    seen = far.files()
    if kind != "http":
        for name, data in seen.items():
            assert data == wanted(DISK, listed)[name], name
    if "image.list" in seen:
        assert seen[NAME] == DISK


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind in ("rsync+ssh", "s3") else kind for kind in NETWORK]
)
def test_network_cut_at_each_connection(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_http.Http.__init__, "__kwdefaults__", {**_http.Http.__init__.__kwdefaults__, "delays": ()})
    descriptor = make_build(tmp_path / "build")
    listed = tmp_path / "image.list"
    listed.write_bytes(b"signed, 1")
    clean = make_far(request, kind, tmp_path / "clean")
    home = request.getfixturevalue("sshd").home if kind in ("sftp", "rsync+ssh") else None
    with DroppingProxy(clean.port) as proxy:
        (tmp_path / "clean").mkdir(exist_ok=True)
        upload(through(clean, proxy, home), descriptor, listed)
        seen = list(proxy.connections)
        assert clean.files() == wanted(DISK, b"signed, 1")
        tried = failed = 0
        for number, connection in enumerate(seen):
            places = [{"request": place} for place in (0, connection.request // 2, max(connection.request - 1, 0))]
            places += [{"reply": place} for place in (0, connection.reply // 2)]
            for place in places:
                tried += 1
                root = tmp_path / f"cut-{tried}"
                root.mkdir()
                far = make_far(request, kind, root)
                proxy.again(Cut(number, **place))
                with monkeypatch.context() as patience:
                    patience.setattr(_serve, "DELAYS", ())
                    said = failure(lambda: upload(through(far, proxy, home), descriptor, listed))  # noqa: B023
                failed += bool(said)
                assert PASSWORD not in said and KEYS["secret_key"] not in said
                assert len(said.splitlines()) <= 1
                assert_never_half(far, kind, b"signed, 1")
                proxy.again()
                upload(through(far, proxy, home), descriptor, listed)
                assert far.files() == wanted(DISK, b"signed, 1"), place
                assert leftovers(far) == [], place
        assert tried >= 5
        assert failed or kind == "s3", "boto3 tries again by itself, the others do not"


def failure(work: t.Callable[[], object]) -> str:
    """What went wrong; empty where nothing did."""
    try:
        work()
    except FactoryError as exc:
        return str(exc)
    return ""


def leftovers(far: t.Any) -> list[str]:
    """What a cut run may have left for nobody."""
    if isinstance(far, Bucket):
        return [row["Key"] for row in far.client().list_multipart_uploads(Bucket=far.name).get("Uploads", [])]
    return [str(path) for path in far.root.rglob(".partial-*")]


@pytest.mark.parametrize("kind", ["sftp", "rsync+ssh"])
def test_one_broken_connection_is_got_over(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> None:
    descriptor = make_build(tmp_path / "build")
    far = make_far(request, kind, tmp_path)
    with DroppingProxy(far.port) as proxy:
        proxy.again(Cut(0, reply=100), Cut(1, request=200))
        upload(through(far, proxy, request.getfixturevalue("sshd").home), descriptor)
    assert far.files() == wanted(DISK)
