# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Submitting signed image lists to EGI AppDB over real HTTP."""

from __future__ import annotations

import hashlib
import json
import subprocess
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils._appdb import AppDb
from ansible_collections.cloudimg.factory.plugins.module_utils._egiappdb import Submitter, envelope, load
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._http import Answered, Http, Unknown
from ansible_collections.cloudimg.factory.tests.tools import pki
from ansible_collections.cloudimg.factory.tests.tools.appdb_server import AppDbServer
from ansible_collections.cloudimg.factory.tests.tools.dropping_proxy import Cut, DroppingProxy, cuts

PASSWORD = "correct horse & battery"


@pytest.fixture(scope="module")
def endorser(tmp_path_factory: pytest.TempPathFactory) -> pki.Identity:
    return pki.Authority(pki.make_name("DC=org", "CN=Test CA")).issue(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def server() -> t.Iterator[AppDbServer]:
    server = AppDbServer()
    yield server
    server.close()


def image(number: int) -> dict[str, t.Any]:
    return {
        "dc:identifier": f"0f1b5f0e-61e5-5cf4-a16d-b1c2ccf2ec5{number}",
        "ad:group": "General group",
        "hv:format": "QCOW2",
        "hv:hypervisor": "KVM",
        "hv:size": 4,
        "hv:uri": f"https://images.example.org/{number}.qcow2",
        "sl:arch": "x86_64",
        "sl:checksum:sha512": hashlib.sha512(bytes([number])).hexdigest(),
        "sl:osname": "Debian",
        "sl:osversion": "12",
    }


def sign(folder: Path, endorser: pki.Identity, version: str = "1", **change: t.Any) -> Path:
    """A list as OpenSSL signs it; a value of None takes a key out."""
    values = {
        "ad:appid": "1234",
        "dc:identifier": "41458818-0c1a-5c2b-8f0f-6f6a5f1f6d11",
        "dc:date:expires": "2099-01-01T00:00:00Z",
        "hv:version": version,
        "hv:images": [{"hv:image": image(1)}, {"hv:image": image(2)}],
        **change,
    }
    text = json.dumps({"hv:imagelist": {key: value for key, value in values.items() if value is not None}})
    (folder / "list.json").write_text(text)
    path = folder / "image.list"
    argv = ["openssl", "smime", "-sign", "-md", "sha256", "-in", folder / "list.json", "-out", path]
    subprocess.run([*argv, "-signer", endorser.certificate, "-inkey", endorser.key], check=True, capture_output=True)
    return path


def submitter(
    server: AppDbServer, *, port: int | None = None, lookup: bool = True, password: str = PASSWORD, **options: t.Any
) -> Submitter:
    def url(text: str) -> str:
        return text.replace(str(server.port), str(port or server.port))

    def look(appliance: str) -> AppDb:
        api = Http(url(server.url), delays=(), timeout=10)
        return AppDb(api, appliance, {"accesstoken": "pat-jane-0123456789"})

    http = Http(url(server.submit_url), auth=("jane", password), delays=(), timeout=10)
    return Submitter(http, "jane", lookup=look if lookup else None, looks=(0.0, 0.01), **options)


@pytest.mark.parametrize("lookup", [False, True])
def test_a_list_is_submitted_once(tmp_path: Path, endorser: pki.Identity, server: AppDbServer, lookup: bool) -> None:
    path = sign(tmp_path, endorser)
    checked = submitter(server, lookup=lookup, check_mode=True).submit(path)
    assert checked.changed and server.submissions == [] and not (tmp_path / "image.list.submitted.json").exists()
    result = submitter(server, lookup=lookup).submit(path)
    assert result.actions == [f"{path}: version 1 was not submitted yet"]
    assert result.extra["publication"] == {
        "appliance": "1234",
        "identifier": "41458818-0c1a-5c2b-8f0f-6f6a5f1f6d11",
        "version": "1",
        "submission_id": "1",
    }
    (taken,) = server.submissions
    assert taken["actions"] == ["insert", "enable"]
    assert taken["list"]["hv:images"][1]["hv:image"]["dc:identifier"].endswith("52")
    again = submitter(server, lookup=lookup).submit(path)
    assert (again.changed, again.extra) == (False, result.extra)
    assert len(server.submissions) == 1
    submitter(server, lookup=lookup).submit(sign(tmp_path, endorser, "2"))
    assert [row["version"] for row in server.submissions] == ["1", "2"]


def test_another_machine_finds_it_by_the_api(tmp_path: Path, endorser: pki.Identity, server: AppDbServer) -> None:
    path = sign(tmp_path, endorser)
    submitter(server).submit(path)
    (tmp_path / "image.list.submitted.json").unlink()
    assert not submitter(server).submit(path).changed
    with pytest.raises(
        Answered, match="AppDB refused the list: Version value is already used in a previous version; mend"
    ):
        (tmp_path / "image.list.submitted.json").unlink()
        submitter(server, lookup=False).submit(path)


@pytest.mark.parametrize("reset", [False, True])
def test_the_network_is_cut_at_every_request(
    tmp_path: Path, endorser: pki.Identity, server: AppDbServer, reset: bool
) -> None:
    path = sign(tmp_path, endorser)
    record = tmp_path / "image.list.submitted.json"
    with DroppingProxy(server.port) as proxy:
        submitter(server, port=proxy.port).submit(path)
        clean = server.submissions[:]
        places = cuts(proxy.connections, reset=reset)
        assert len(places) == 12
        failed = 0
        for cut in places:
            record.unlink()
            server.submissions.clear()
            server.versions.clear()
            proxy.again(cut)
            try:
                submitter(server, port=proxy.port).submit(path)
            except Unknown:
                failed += 1
                proxy.again()
                submitter(server, port=proxy.port).submit(path)
            assert server.submissions == clean
        assert failed


def test_without_a_lookup_a_lost_answer_stays_unknown(
    tmp_path: Path, endorser: pki.Identity, server: AppDbServer
) -> None:
    path = sign(tmp_path, endorser)
    with DroppingProxy(server.port) as proxy:
        proxy.again(Cut(0, reply=0))
        with pytest.raises(Unknown, match="the connection broke before the answer was there"):
            submitter(server, port=proxy.port, lookup=False).submit(path)
    assert len(server.submissions) == 1 and not (tmp_path / "image.list.submitted.json").exists()


@pytest.mark.parametrize(
    ("kind", "said"), [("500", "HTTP 500"), ("403", "Forbidden"), ("html", "HTML"), ("nothing", "nothing")]
)
def test_a_server_that_answers_something_else(
    tmp_path: Path, endorser: pki.Identity, server: AppDbServer, kind: str, said: str
) -> None:
    path = sign(tmp_path, endorser)
    server.misbehave = {0: (kind, False)}
    with pytest.raises(FactoryError, match=said) as caught:
        submitter(server, lookup=False).submit(path)
    assert "horse" not in str(caught.value)
    server.misbehave = {}
    assert submitter(server, lookup=False).submit(path).changed


def test_a_wrong_password(tmp_path: Path, endorser: pki.Identity, server: AppDbServer) -> None:
    with pytest.raises(Answered, match=r"POST \S+/sso/: HTTP 401: Authorization Required; check the credentials"):
        submitter(server, lookup=False, password="wrong one").submit(sign(tmp_path, endorser))


def test_by_a_certificate(tmp_path: Path, endorser: pki.Identity, server: AppDbServer) -> None:
    path = sign(tmp_path, endorser)
    text = envelope(load(path), ["insert"], "x509")
    assert text.startswith(
        '<?xml version="1.0" encoding="utf-8"?><appdbvmc><action>insert</action><entity>imagelist</entity>'
    )
    Submitter(Http(server.submit_url, delays=()), None).submit(path)
    assert server.requests[0].path == "/vmlist/submit/x509/" and len(server.submissions) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ad:appid": None}, r"image.list: ad:appid: is missing, and AppDB needs it; give it to hepix_image_list"),
        ({"hv:version": ""}, r"hv:version: is missing"),
        ({"hv:images": [{"hv:image": {**image(1), "ad:group": ""}}]}, r"hv:images\[0\].ad:group: is missing"),
        ({"hv:images": [{"hv:image": image(1)}, {}]}, r"hv:images\[1\].ad:group: is missing"),
    ],
)
def test_lists_that_appdb_would_refuse(
    tmp_path: Path, endorser: pki.Identity, change: dict[str, t.Any], said: str
) -> None:
    with pytest.raises(FactoryError, match=said):
        load(sign(tmp_path, endorser, **change))


def test_a_list_that_was_changed(tmp_path: Path, endorser: pki.Identity) -> None:
    path = sign(tmp_path, endorser)
    path.write_bytes(path.read_bytes().replace(b"Debian", b"Ubuntu"))
    with pytest.raises(FactoryError, match=r"image\.list"):
        load(path)
    path.write_text('{"hv:imagelist": {}}')
    with pytest.raises(FactoryError, match=r"is a list without a signature"):
        load(path)
    with pytest.raises(FactoryError, match=r"absent: No such file"):
        load(tmp_path / "absent")
