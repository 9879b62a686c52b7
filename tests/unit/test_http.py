# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The HTTP client, over real connections: what is repeated, what is not known, and what no message shows."""

from __future__ import annotations

import base64
import dataclasses
import http.server
import resource
import socket
import ssl
import subprocess
import threading
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _xml
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._http import (
    Answered,
    File,
    Http,
    Unknown,
    Unreachable,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._masks import Masks
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.tests.tools.dropping_proxy import Cut, DroppingProxy, cuts

SECRET = "s3cret/+ value&"
QUICK = (0.01, 0.01)


@dataclasses.dataclass
class Answer:
    status: int = 200
    body: bytes = b"<ok/>"
    headers: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Server:
    """Answers what :attr:`answers` says, one after the other, and 200 after that; keeps what was asked."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.answers: list[Answer] = []
        self.asked: list[Asked] = []
        self.keep_body = True
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                left = int(self.headers.get("Content-Length") or 0)
                body = bytearray()
                while left and (chunk := self.rfile.read(min(left, 1 << 20))):
                    left -= len(chunk)
                    if owner.keep_body:
                        body += chunk
                if left:
                    return
                owner.asked.append(Asked(self.command, self.path, dict(self.headers), bytes(body)))
                answer = owner.answers.pop(0) if owner.answers else Answer()
                self.send_response(answer.status)
                for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)

            do_GET = do_POST = do_PUT = do_DELETE = answer

            def log_message(self, format: str, *args: t.Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if context:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = int(self._server.server_address[1])
        self.url = f"{'https' if context else 'http'}://localhost:{self.port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> t.Iterator[Server]:
    server = Server()
    yield server
    server.close()


def client(url: str, **options: t.Any) -> Http:
    return Http(url, **{"delays": QUICK, "timeout": 5, **options})


def test_a_request_goes_as_it_is_meant(server: Server) -> None:
    server.answers = [Answer(201, b'{"a": [1]}', {"X-Made": "yes"})]
    reply = client(server.url + "api/", auth=("jane", SECRET), headers={"X-Other": "1"}).request(
        "POST", "things", params={"q": "ä&b"}, body={"data": "<a>&ü</a>"}, headers={"Accept": "application/json"}
    )
    asked = server.asked[0]
    assert (asked.method, asked.path) == ("POST", "/api/things?q=%C3%A4%26b")
    assert asked.body == b"data=%3Ca%3E%26%C3%BC%3C%2Fa%3E"
    assert asked.headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert asked.headers["Authorization"] == "Basic " + base64.b64encode(f"jane:{SECRET}".encode()).decode()
    assert (asked.headers["X-Other"], asked.headers["Accept"]) == ("1", "application/json")
    assert (reply.status, reply.json(), reply.headers["x-made"]) == (201, {"a": [1]}, "yes")
    assert reply.where == f"POST {server.url}api/things"


def test_no_netrc_is_asked(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine localhost login jane password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    client(server.url).request("GET")
    assert "Authorization" not in server.asked[0].headers


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_is_safe_is_repeated(server: Server, status: int) -> None:
    server.answers = [Answer(status), Answer(status)]
    assert client(server.url).request("GET").status == 200
    assert len(server.asked) == 3
    server.answers = [Answer(status)] * 3
    with pytest.raises(Answered, match=f"GET {server.url}: HTTP {status}") as caught:
        client(server.url).request("GET")
    assert caught.value.reply.status == status


@pytest.mark.parametrize("status", [500, 502, 504])
def test_what_is_not_safe_is_not_repeated(server: Server, status: int) -> None:
    server.answers = [Answer(status, b"oops")]
    with pytest.raises(Unknown, match=f"HTTP {status}: oops; run this again: it looks up"):
        client(server.url).request("POST", body=b"x")
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_what_the_server_has_not_begun_is_repeated(server: Server, status: int) -> None:
    server.answers = [Answer(status, headers={"Retry-After": "0"})]
    assert client(server.url).request("POST", body=b"x").status == 200
    assert [asked.body for asked in server.asked] == [b"x", b"x"]


def test_retry_after_is_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(Http, "pause", lambda _self, seconds: waited.append(seconds))
    dates = ["7", "Mon, 01 Jan 2001 00:00:00 GMT", "soon", "86400"]
    for date in dates:
        server.answers = [Answer(503, headers={"Retry-After": date})]
        client(server.url).request("GET")
    assert waited == [7.0, 0.01, 0.01, 60.0]


def test_a_server_that_is_not_there_was_not_asked() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(Unreachable, match=f"PUT http://127.0.0.1:{port}/a: cannot be reached: Connection refused"):
        client(f"http://127.0.0.1:{port}/").request("PUT", "a", body=b"x")
    with pytest.raises(Unreachable, match="cannot be reached"):
        client("http://nowhere.invalid/").request("GET")


@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_that_breaks_is_unknown_and_not_repeated(server: Server, reset: bool) -> None:
    with DroppingProxy(server.port) as proxy:
        wire = client(proxy.url)
        wire.request("POST", body=b"x" * 1000)
        places = cuts(proxy.connections, reset=reset)
        assert len(places) == 6
        for cut in places:
            proxy.again(cut)
            server.asked.clear()
            with pytest.raises(Unknown, match=f"POST {proxy.url}/?: the connection broke before the answer was there"):
                wire.request("POST", body=b"x" * 1000)
            assert len(proxy.connections) == 1
            if cut.reply is not None:
                assert len(server.asked) == 1
        for cut in places:
            proxy.again(cut)
            assert wire.request("PUT", body=b"x" * 1001, repeat=True).status == 200
            assert len(proxy.connections) == 2
        proxy.again()
        wire.request("GET")
        for cut in cuts(proxy.connections, reset=reset):
            proxy.again(cut)
            assert wire.request("GET").status == 200
            assert len(proxy.connections) == 2


def test_silence_is_unknown(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(Unknown, match=r"no answer within 0\.2 s"):
            Http(url, timeout=0.2, delays=()).request("POST", body=b"x")


@pytest.mark.parametrize(
    ("body", "how", "said"),
    [
        (b"", "xml", "answered with nothing where XML was expected"),
        (b"  ", "json", "answered with nothing where JSON was expected"),
        (b"<!DOCTYPE html><html><title>Sign\n in</title>", "xml", "an HTML page where XML was expected: Sign in"),
        (b"<html><body><p>Bad <b>luck</b>", "json", "an HTML page where JSON was expected: Bad luck"),
        (b"<a", "xml", "cannot be read: it is no XML: unclosed token"),
        (b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "xml", "has a document type"),
        (b"{", "json", "what is no JSON"),
    ],
)
def test_what_is_not_what_was_asked_for(server: Server, body: bytes, how: str, said: str) -> None:
    server.answers = [Answer(body=body)]
    reply = client(server.url).request("GET")
    with pytest.raises(Answered, match=said) as caught:
        getattr(reply, how)()
    assert str(caught.value).startswith(f"GET {server.url}: ")


def test_xml_is_read_with_its_name_spaces() -> None:
    root = _xml.parse(b'<a:b xmlns:a="urn:x" a:c="1" d="2"><e>f&amp;g</e></a:b>', "x")
    assert (root.tag, root.attrib) == ("{urn:x}b", {"{urn:x}c": "1", "d": "2"})
    assert root.findtext("e") == "f&g"
    with pytest.raises(FactoryError, match="nested deeper"):
        _xml.parse(b"<a>" * 100 + b"</a>" * 100, "x")


def test_an_answer_is_bounded(server: Server) -> None:
    server.answers = [Answer(body=b"x" * 1001)]
    with pytest.raises(FactoryError, match="answered with more than 1000 bytes"):
        client(server.url).request("GET", limit=1000)
    assert len(server.asked) == 1


def test_no_message_shows_a_secret(server: Server) -> None:
    failures = []
    for answer in [
        Answer(403, f"no {SECRET} for you".encode()),
        Answer(500, b"<html><title>" + SECRET.encode() + b"</title>"),
        Answer(302, headers={"Location": f"/x?accesstoken={SECRET}"}),
        Answer(400, b"token=s3cret%2F%2B+value%26"),
        Answer(200, SECRET.encode()),
    ]:
        server.answers = [answer]
        wire = client(
            f"http://jane:{SECRET.replace('/', '%2F')}@localhost:{server.port}/".replace(" ", "%20"), secrets=[]
        )
        with pytest.raises(FactoryError) as caught:
            wire.request("POST", params={"accesstoken": SECRET}, body=b"x").json()
        failures.append(caught.value)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        with pytest.raises(FactoryError) as caught:
            client(f"http://127.0.0.1:{probe.getsockname()[1]}/", secrets=[SECRET]).request(
                "GET", params={"passwd": SECRET, "a": SECRET}
            )
    failures.append(caught.value)
    for failure in failures:
        told = f"{failure} {failure!r} {failure.args} {failure.__cause__}"
        assert "s3cret" not in told
    assert sum("***" in str(failure) for failure in failures) == 5


def test_short_secrets_do_not_garble_messages() -> None:
    assert Masks(["ab"]).hide("about ab: ab=1 tab") == "about ***: ***=1 tab"
    assert Masks([None, ""]).hide("about") == "about"


def test_a_secret_does_not_go_unencrypted() -> None:
    for wire, params in [
        (client("http://example.org/", auth=("jane", "x" * 9)), {}),
        (client("http://example.org/"), {"accesstoken": "x" * 9}),
    ]:
        with pytest.raises(FactoryError, match=r"would go unencrypted.*give the https URL"):
            wire.request("GET", params=params)


def test_redirections_are_followed_without_secrets_to_others(server: Server) -> None:
    other = Server()
    server.answers = [
        Answer(302, headers={"Location": "/b"}),
        Answer(307, headers={"Location": f"http://127.0.0.1:{other.port}/c"}),
    ]
    client(server.url, auth=("jane", SECRET), headers={"X-Auth-Token": "abc"}).request("GET", "a")
    other.close()
    assert [asked.path for asked in server.asked] == ["/a", "/b"]
    assert all("Authorization" in asked.headers and "X-Auth-Token" in asked.headers for asked in server.asked)
    assert "Authorization" not in other.asked[0].headers
    assert "X-Auth-Token" not in other.asked[0].headers
    server.answers = [Answer(302, headers={"Location": "/b"})]
    with pytest.raises(Answered, match="HTTP 302: it sends us on to /b; give that URL"):
        client(server.url).request("POST", body=b"x")
    server.answers = [Answer(302, headers={"Location": "/b"})] * 9
    with pytest.raises(Answered, match="redirected 5 times"):
        client(server.url).request("GET")


def test_a_file_is_streamed_in_bounded_memory(server: Server, tmp_path: Path) -> None:
    server.keep_body = False
    path = tmp_path / "disk"
    with path.open("wb") as stream:
        stream.truncate(300 << 20)
    client(server.url).request("PUT", body=File(path, 0, 1 << 20))
    progress = Progress("upload", {"path": str(tmp_path / "job.json")})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    client(server.url, progress=progress).request("PUT", body=File(path), repeat=True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 << 10
    assert server.asked[1].headers["Content-Length"] == str(300 << 20)
    assert "Transfer-Encoding" not in server.asked[1].headers
    assert '"total": 314572800' in (tmp_path / "job.json").read_text()


def test_a_part_of_a_file_and_an_empty_one(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"0123456789")
    client(server.url).request("PUT", body=File(path, 3, 4))
    path.write_bytes(b"")
    client(server.url).request("PUT", body=File(path))
    assert [asked.body for asked in server.asked] == [b"3456", b""]
    assert server.asked[1].headers["Content-Length"] == "0"
    with pytest.raises(FactoryError, match=r"disk: became shorter while it was sent"):
        client(server.url).request("PUT", body=File(path, 0, 5))
    with pytest.raises(FactoryError, match=r"absent: No such file.*check that path"):
        client(server.url).request("PUT", body=File(tmp_path / "absent"))


@pytest.mark.parametrize("url", ["ftp://example.org/", "http:///x", "nonsense", "http://exa mple.org:x/"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(FactoryError, match="is not a URL that can be asked"):
        client("").request("GET", url)


def certificate(folder: Path, name: str, *options: str) -> tuple[Path, Path]:
    """A certificate that signs itself, and its key."""
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-days", "1"),
            *("-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost", "-out", paths[0], "-keyout", paths[1]),
            *(options or ["-nodes"]),
        ],
        check=True,
        capture_output=True,
    )
    return paths


def test_certificates_of_both_sides(tmp_path: Path) -> None:
    chain, key = certificate(tmp_path, "localhost")
    ours, our_key = certificate(tmp_path, "jane", "-passout", f"pass:{SECRET}")
    other, other_key = certificate(tmp_path, "joe")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    context.load_verify_locations(ours)
    context.verify_mode = ssl.CERT_REQUIRED
    # With 1.3 whether the server's refusal reaches the client depends on who is faster.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    server = Server(context)
    try:
        known = {"ca": chain, "client_certificate": (ours, our_key, SECRET)}
        assert client(server.url, **known).request("GET").status == 200
        with pytest.raises(Unreachable, match=r"its certificate is not trusted: self-signed.*give the CA's"):
            client(server.url).request("GET")
        with pytest.raises(Unreachable, match=r"no TLS connection.*the certificates of both sides"):
            client(server.url, ca=chain, client_certificate=(other, other_key, None)).request("POST", body=b"x")
        with pytest.raises(Unreachable, match="no TLS connection"):
            client(server.url, ca=chain).request("POST", body=b"x")
        with pytest.raises(FactoryError) as caught:
            client(server.url, ca=chain, client_certificate=(ours, our_key, SECRET + "x"))
        assert "jane.key: certificate and key cannot be used" in str(caught.value)
        assert "s3cret" not in str(caught.value)
        with pytest.raises(FactoryError, match=r"absent: there is no such file"):
            client(server.url, client_certificate=(ours, tmp_path / "absent", None))
        with pytest.raises(FactoryError, match=r"jane.key: certificate and key cannot be used"):
            client(server.url, client_certificate=(ours, our_key, None))
        for wrong in (tmp_path / "absent", key):
            with pytest.raises(FactoryError, match="give the CA's certificates"):
                client(server.url, ca=wrong)
        assert len(server.asked) == 1
    finally:
        server.close()


def test_a_cut_within_a_run_of_requests(server: Server) -> None:
    with DroppingProxy(server.port) as proxy:
        proxy.again(Cut(1, reply=0))
        wire = client(proxy.url, delays=())
        wire.request("GET")
        with pytest.raises(Unknown):
            wire.request("GET")
        assert wire.request("GET").status == 200
        assert len(server.asked) == 3
