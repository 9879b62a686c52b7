# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Downloads: whole, resumed, hashed; and what is said when they cannot be had."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _progress
from ansible_collections.cloudimg.factory.plugins.module_utils._download import (
    Client,
    Interrupted,
    check_url,
    discard,
    local_path,
    shown,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import Cancelled, FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._owner import Owner
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.tests.tools.media_server import MediaServer

CONTENT = os.urandom(3 * 1024 * 1024 + 17)
KEY = "image_medium.url"


@pytest.fixture
def server() -> t.Iterator[MediaServer]:
    server = MediaServer()
    yield server
    server.close()


@pytest.fixture
def client() -> Client:
    return Client(Progress("media"), timeout=2, delays=(0.01, 0.01))


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "cache" / ".incoming"


@pytest.fixture(autouse=True)
def _folder(part: Path) -> None:
    part.parent.mkdir()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_download_is_hashed_while_it_is_written(server: MediaServer, client: Client, part: Path) -> None:
    fetched = client.fetch(server.put("/a.iso", CONTENT), part, ["sha256", "sha512"], key=KEY)
    assert part.read_bytes() == CONTENT
    assert fetched.digests == {"sha256": sha256(CONTENT), "sha512": hashlib.sha512(CONTENT).hexdigest()}
    assert fetched.resumed == 0
    assert [request.sent for request in server.requests] == [len(CONTENT)]


def test_a_broken_connection_goes_on_where_it_broke(server: MediaServer, client: Client, part: Path) -> None:
    url = server.put("/a.iso", CONTENT, cut=[1_000_000])
    assert client.fetch(url, part, ["sha256"], key=KEY).digests["sha256"] == sha256(CONTENT)
    assert [(request.status, request.sent) for request in server.requests] == [
        (200, 1_000_000),
        (206, len(CONTENT) - 1_000_000),
    ]


def test_the_next_run_goes_on_where_the_last_one_was_interrupted(
    server: MediaServer, client: Client, part: Path
) -> None:
    url = server.put("/a.iso", CONTENT, cut=[2_000_000, 0, 0])
    with pytest.raises(Interrupted, match=r"failed 3 times in a row with 2000000 bytes there.*run this again"):
        client.fetch(url, part, ["sha256"], key=KEY)
    assert part.stat().st_size == 2_000_000
    server.requests.clear()

    fetched = client.fetch(url, part, ["sha256"], key=KEY)
    assert fetched.digests["sha256"] == sha256(CONTENT)
    assert fetched.resumed == 2_000_000
    assert part.read_bytes() == CONTENT
    assert [(request.range, request.sent) for request in server.requests] == [
        ("bytes=2000000-", len(CONTENT) - 2_000_000)
    ]


def test_a_file_that_came_whole_before_is_not_fetched_again(server: MediaServer, client: Client, part: Path) -> None:
    url = server.put("/a.iso", CONTENT)
    client.fetch(url, part, ["sha256"], key=KEY)
    server.requests.clear()
    assert client.fetch(url, part, ["sha256"], key=KEY).digests["sha256"] == sha256(CONTENT)
    assert server.requests == []


def test_another_file_at_the_same_url_is_fetched_from_the_beginning(
    server: MediaServer, client: Client, part: Path
) -> None:
    url = server.put("/a.iso", CONTENT, cut=[2_000_000, 0, 0])
    with pytest.raises(Interrupted):
        client.fetch(url, part, ["sha256"], key=KEY)
    other = os.urandom(len(CONTENT))
    server.put("/a.iso", other)
    assert client.fetch(url, part, ["sha256"], key=KEY).digests["sha256"] == sha256(other)
    assert part.read_bytes() == other


@pytest.mark.parametrize("how", [{"ranges": False}, {"validators": False}])
def test_a_server_that_cannot_resume_is_asked_from_the_beginning(
    server: MediaServer, client: Client, part: Path, how: dict[str, bool]
) -> None:
    url = server.put("/a.iso", CONTENT, cut=[1_000_000], **how)
    assert client.fetch(url, part, ["sha256"], key=KEY).digests["sha256"] == sha256(CONTENT)
    assert part.read_bytes() == CONTENT
    assert server.requests[-1].sent == len(CONTENT)


def test_a_file_that_shrank_is_fetched_from_the_beginning(server: MediaServer, client: Client, part: Path) -> None:
    url = server.put("/a.iso", CONTENT, cut=[2_000_000, 0, 0])
    with pytest.raises(Interrupted):
        client.fetch(url, part, ["sha256"], key=KEY)
    # A server that ignores If-Range answers 416.
    server.files["/a.iso"].content = CONTENT[:1000]
    server.files["/a.iso"].statuses = [416]
    assert client.fetch(url, part, ["sha256"], key=KEY).digests["sha256"] == sha256(CONTENT[:1000])


def test_a_file_of_unknown_length_ends_with_the_connection(server: MediaServer, client: Client, part: Path) -> None:
    url = server.put("/a.iso", CONTENT, length=False)
    assert client.fetch(url, part, ["sha256"], key=KEY).digests["sha256"] == sha256(CONTENT)


def test_an_empty_file(server: MediaServer, client: Client, part: Path) -> None:
    assert client.fetch(server.put("/a.iso", b""), part, ["sha256"], key=KEY).digests["sha256"] == sha256(b"")
    assert part.read_bytes() == b""


def test_passing_errors_are_tried_again(server: MediaServer, client: Client, part: Path) -> None:
    url = server.put("/a.iso", CONTENT, statuses=[503, 429])
    assert client.fetch(url, part, ["sha256"], key=KEY).digests["sha256"] == sha256(CONTENT)
    assert [request.status for request in server.requests] == [503, 429, 200]


def test_lasting_passing_errors_end_it(server: MediaServer, client: Client, part: Path) -> None:
    url = server.put("/a.iso", CONTENT, statuses=[503] * 9)
    with pytest.raises(Interrupted, match=r"/a\.iso: image_medium\.url: .* failed 3 times in a row: HTTP 503"):
        client.fetch(url, part, ["sha256"], key=KEY)
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [401, 403, 410])
def test_lasting_errors_are_not_tried_again(server: MediaServer, client: Client, part: Path, status: int) -> None:
    url = server.put("/a.iso", CONTENT, statuses=[status])
    with pytest.raises(FactoryError, match=rf"/a\.iso: image_medium\.url: HTTP {status} .*; check that URL"):
        client.fetch(url, part, ["sha256"], key=KEY)
    assert len(server.requests) == 1
    assert list(part.parent.iterdir()) == []


def test_a_missing_file(server: MediaServer, client: Client, part: Path) -> None:
    with pytest.raises(FactoryError, match=r"^http://127.*/no\.iso: image_medium\.url: HTTP 404 Not Found; check that"):
        client.fetch(f"{server.url}/no.iso", part, ["sha256"], key=KEY)
    with pytest.raises(FactoryError, match="HTTP 404") as caught:
        client.read(f"{server.url}/no", key=KEY)
    assert not isinstance(caught.value, Interrupted)


def test_a_redirect_is_followed_with_the_range(server: MediaServer, client: Client, part: Path) -> None:
    server.put("/mirror/a.iso", CONTENT, cut=[1_000_000])
    url = server.put("/a.iso", b"", moved_to="/mirror/a.iso")
    assert client.fetch(url, part, ["sha256"], key=KEY).digests["sha256"] == sha256(CONTENT)
    assert server.requests[-1].path == "/mirror/a.iso"
    assert server.requests[-1].range == "bytes=1000000-"


def test_a_url_with_spaces(server: MediaServer, client: Client, part: Path) -> None:
    server.put("/my images/a b.iso", CONTENT)
    fetched = client.fetch(f"{server.url}/my images/a b.iso", part, ["sha256"], key=KEY)
    assert fetched.digests["sha256"] == sha256(CONTENT)
    assert server.requests[0].path == "/my images/a b.iso"


def test_a_silent_server_is_given_up(part: Path) -> None:
    client = Client(Progress("media"), timeout=0.3, delays=(0.01,))
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(Interrupted, match="timed out"):
        client.fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/a.iso", part, ["sha256"], key=KEY)


def test_nobody_listens(client: Client, part: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(Interrupted, match="refused"):
        client.fetch(f"http://127.0.0.1:{port}/a.iso", part, ["sha256"], key=KEY)


@pytest.mark.root
def test_a_full_disk(server: MediaServer, client: Client, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=True)
    try:
        url = server.put("/a.iso", CONTENT)
        with pytest.raises(FactoryError, match=r"only 0 MiB are free, a\.iso needs 3 MiB; free some space"):
            client.fetch(url, folder / "part", ["sha256"], key=KEY)
        assert not (folder / "part").exists()

        # Where the server does not tell the length, the disk has to say it.
        server.files["/a.iso"].length = False
        with pytest.raises(FactoryError, match="No space left on device; free some space") as caught:
            client.fetch(url, folder / "part", ["sha256"], key=KEY)
        assert not isinstance(caught.value, Interrupted)
        discard(folder / "part")
        assert list(folder.iterdir()) == []
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_progress_is_told_and_can_cancel(server: MediaServer, part: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.json"
    gone = Owner(2**22 + 1, 1, Owner.of().boot)
    progress = Progress("media", {"path": str(job), "owner": None})
    Client(progress).fetch(server.put("/a.iso", CONTENT), part, ["sha256"], key=KEY)
    assert _progress.read(job)["total"] == len(CONTENT)
    with pytest.raises(Cancelled):
        Client(Progress("media", {"owner": gone.dump()})).fetch(f"{server.url}/a.iso", part, ["sha256"], key=KEY)


def test_small_files_are_read_from_anywhere(server: MediaServer, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "my sums"
    file.write_bytes(b"x")
    assert client.read(str(file), key=KEY) == b"x"
    assert client.read(f"file://{tmp_path}/my%20sums", key=KEY) == b"x"
    assert client.read(server.put("/sums", b"y" * 1000, cut=[10]), key=KEY) == b"y" * 1000
    with pytest.raises(FactoryError, match="is larger than 16 MiB"):
        client.read(server.put("/big", bytes((16 << 20) + 1)), key=KEY)
    with pytest.raises(FactoryError, match=r"/no: image_medium\.url: there is no such file; check"):
        client.read(str(tmp_path / "no"), key=KEY)


def test_a_local_file_is_copied(client: Client, part: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.iso"
    source.write_bytes(CONTENT)
    assert client.copy(source, part, ["sha256"], key=KEY).digests["sha256"] == sha256(CONTENT)
    assert part.read_bytes() == CONTENT
    with pytest.raises(FactoryError, match="is not a file"):
        client.copy(tmp_path, part, ["sha256"], key=KEY)


@pytest.mark.parametrize("url", ["ftp://example.org/a.iso", "http:///a.iso", "http://[::1/a.iso", "https://"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(FactoryError, match=r"image_medium\.url: is not a URL that can be fetched"):
        check_url(url, KEY)


def test_escapes_are_kept() -> None:
    assert check_url("http://example.org/a%20b c.iso?x=ä#top", KEY) == "http://example.org/a%20b%20c.iso?x=%C3%A4"


def test_places() -> None:
    assert shown("https://me:secret@example.org/a.iso?token=secret") == "https://example.org/a.iso"
    assert shown("/srv/what?.iso") == "/srv/what?.iso"
    assert local_path("file:///a%20b") == Path("/a b")
    assert local_path("http://example.org/") is None
