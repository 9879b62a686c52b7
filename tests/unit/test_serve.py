# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where files are served: which targets make sense, and what is said when a server does not do what it should."""

from __future__ import annotations

import http.server
import sys
import threading
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _http, _serve, _serve_target, _sftp
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.plugins.module_utils._serve_sftp import Account, SftpStore

SECRET = "swordfish-4711"


def open_store(target: str, **credentials: t.Any) -> _serve.Store:
    given = _serve_target.Credentials(**credentials)
    return _serve_target.open_store(target, given, Progress("upload"), timeout=5, region="us-east-1")


@pytest.mark.parametrize(
    ("target", "where"),
    [
        ("/srv/www/images", "/srv/www/images"),
        ("file:///srv/www/im%20ages", "/srv/www/im ages"),
        ("sftp://joe@www.example.org:2222/srv/www", "sftp://joe@www.example.org:2222/srv/www"),
        ("sftp://www.example.org/~/www", "sftp://www.example.org/~/www"),
        ("rsync+ssh://www.example.org/srv/www", "rsync+ssh://www.example.org/srv/www"),
        ("https://www.example.org/images/", "https://www.example.org/images/"),
        ("davs://www.example.org/images", "https://www.example.org/images/"),
        ("s3://bucket/images", "s3://bucket/images"),
        ("s3://bucket", "s3://bucket"),
    ],
)
def test_targets(target: str, where: str) -> None:
    assert open_store(target).where == where


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("images", "images: target: is no absolute path; give an absolute path, file:///…, sftp://…"),
        ("file://host/images", "has the scheme 'file', which is not known"),
        ("ftp://www.example.org/images", "has the scheme 'ftp', which is not known"),
        (
            f"sftp://joe:{SECRET}@www.example.org/srv",
            "sftp://www.example.org/srv: target: contains a password, which",
        ),
        ("https://joe@www.example.org/images", "target: contains a user; remove it, and give the option username"),
        (
            f"https://www.example.org/images?token={SECRET}",
            "https://www.example.org/images: target: has a query or a fragment",
        ),
        ("sftp:///srv/www", "target: names no host"),
        ("sftp://-oProxyCommand=x/srv", "target: names no host"),
        ("sftp://-l@host/srv", "target: names no host"),
        ("sftp://host:x/srv", "target: is no URL: "),
        ("s3:///images", "target: names no host"),
    ],
)
def test_targets_that_are_none(target: str, message: str) -> None:
    with pytest.raises(FactoryError) as caught:
        open_store(target)
    assert message in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("credentials", "message"),
    [
        ({"access_key": "a"}, "secret_key: is missing; give both access_key and secret_key, or none"),
        ({"secret_key": SECRET}, "access_key: is missing; give both"),
    ],
)
def test_half_a_key(credentials: dict[str, str], message: str) -> None:
    with pytest.raises(FactoryError) as caught:
        open_store("s3://bucket/images", **credentials)
    assert message in str(caught.value) and SECRET not in str(caught.value)


def test_two_ways_of_logging_in() -> None:
    with pytest.raises(FactoryError, match="token: is given, and username too; give one of them"):
        open_store("https://www.example.org/images", username="joe", token=SECRET)


def test_secrets_go_nowhere_in_the_clear() -> None:
    for credentials in ({"username": "joe", "password": SECRET}, {"token": SECRET}):
        with pytest.raises(FactoryError) as caught:
            open_store("http://www.example.org/images", **credentials).size("x")
        assert "would go unencrypted" in str(caught.value) and SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["", "/x", "../x", "a/../x", "a//x", "a b", "a/.hidden", "x\n", "é", "a?b", 'a"b'])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(FactoryError, match=r"names: .* cannot be the name of a served file"):
        _serve.check_name(name, "names")


@pytest.mark.parametrize(
    ("target", "given", "url"),
    [
        ("/srv/www", None, None),
        ("sftp://www.example.org/srv", None, None),
        ("/srv/www", "https://www.example.org/images/", "https://www.example.org/images"),
        ("davs://www.example.org/images/", None, "https://www.example.org/images"),
        ("http://www.example.org/images", None, "http://www.example.org/images"),
    ],
)
def test_public_url(target: str, given: str | None, url: str | None) -> None:
    assert _serve_target.public_url(target, given) == url


def test_public_url_that_is_none() -> None:
    with pytest.raises(FactoryError, match="public_url: is no URL that can be read"):
        _serve_target.public_url("/srv/www", "/images")


class Odd:
    """A web server that answers as a test says: C({method: (status, type, body)}); what is not there is 404."""

    def __init__(self, answers: dict[str, tuple[int, str, bytes]]) -> None:
        self.asked: list[str] = []
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                owner.asked.append(self.command)
                size = int(self.headers.get("Content-Length") or 0)
                while size:
                    size -= len(self.rfile.read(min(size, 65536)))
                status, kind, body = answers.get(self.command, (404, "text/plain", b"no such file"))
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_HEAD = do_PUT = do_DELETE = do_MKCOL = do_MOVE = answer

            def log_message(self, format: str, *args: t.Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> Odd:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()


PAGE = b"<!DOCTYPE html><html><head><title>Please log in</title></head></html>"


@pytest.mark.parametrize("scheme", ["http", "dav"])
@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({}, "PUT http://{address}/images/x: HTTP 404: no such file; check the URL"),
        (
            {"PUT": (403, "text/html", PAGE)},
            "HTTP 403: Please log in; check the credentials, and what they may do there",
        ),
        ({"PUT": (507, "text/plain", b"full")}, "HTTP 507: full; make room on the server"),
        ({"PUT": (500, "text/plain", b"oops")}, "HTTP 500: oops; run this again"),
        ({"GET": (401, "text/plain", b"who?")}, "HTTP 401: who?; check the credentials"),
        (
            {"PUT": (201, "", b""), "MOVE": (201, "", b"")},
            "x: was sent with 5 bytes, and has none there; check that this is",
        ),
        (
            {
                "PUT": (201, "", b""),
                "MOVE": (201, "", b""),
                "GET": (200, "text/html", PAGE),
                "HEAD": (200, "text/html", PAGE),
            },
            "x: was sent with 5 bytes, and has 69 there; check that this is where that server puts",
        ),
    ],
)
def test_servers_that_do_not_do_it(
    scheme: str,
    answers: dict[str, tuple[int, str, bytes]],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_http.Http.__init__, "__kwdefaults__", {**_http.Http.__init__.__kwdefaults__, "delays": ()})
    disk = tmp_path / "x"
    disk.write_bytes(b"disk!")
    with Odd(answers) as server:
        place = _serve.Place(open_store(f"{scheme}://{server.address}/images"), Result(), Progress("upload"))
        with pytest.raises(FactoryError) as caught:
            place.put_artifact("x", _serve.Content(5, _serve.Content.of(b"disk!").sha256, disk))
    said = str(caught.value).replace(".partial-cc8ab4ef1e4ebb06-", "")
    assert message.format(address=server.address) in said.replace(
        f".partial-{_serve.Content.of(b'disk!').sha256[:16]}-", ""
    )
    assert len(said.splitlines()) == 1


def test_a_list_too_long_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_serve, "LARGEST_LIST", 10)
    path = tmp_path / "image.list"
    path.write_bytes(bytes(11))
    place = _serve.Place(open_store(str(tmp_path / "www")), Result(), Progress("upload"))
    with pytest.raises(FactoryError, match=r"image.list: is too long for a list; check that it is one"):
        place.put_list("image.list", path)
    assert not (tmp_path / "www").exists()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("print('Welcome to this machine')", "what answers is no SFTP server"),
        ("import sys; sys.exit('Connection refused')", "Connection refused"),
        ("pass", "the connection was closed"),
    ],
)
def test_what_is_no_sftp_server(program: str, message: str) -> None:
    with pytest.raises(_sftp.Broken, match=message):
        _sftp.Sftp([sys.executable, "-c", program], silence=20, tick=lambda: None)


def test_ssh_that_cannot_get_in() -> None:
    store = SftpStore(Account("nowhere.invalid"), "/srv", Progress("upload"), silence=20)
    with pytest.raises(FactoryError) as caught:
        store.size("x")
    assert "sftp://nowhere.invalid/srv" in str(caught.value)
    assert "check the name of the host" in str(caught.value) or "check the network and that server" in str(caught.value)
