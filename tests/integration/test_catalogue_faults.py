# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The network cut at each request of a run of the role publish, and of retire: the next run ends as if it had not been."""

from __future__ import annotations

import shutil
import typing as t
from pathlib import Path

import pytest
from catalogue_site import SECRETS, Servers, Site

from ansible_collections.cloudimg.factory.tests.tools.dropping_proxy import Connection, Cut
from ansible_collections.cloudimg.factory.tests.tools.pki import Pki

pytestmark = pytest.mark.slow

RETIRED = {"retire_version": "1", "retire_reason": "old openssl", "retire_state": "absent"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Site]:
    if not shutil.which("xmlsec1"):
        pytest.skip("xmlsec1 is not installed, which the Marketplace of the tests needs")
    pki = Pki.make(tmp_path_factory.mktemp("pki"))
    endorser = pki.issue("jane", passphrase=SECRETS["passphrase"])
    with Servers.run(tmp_path_factory.mktemp("servers")) as servers:
        site = Site.make(tmp_path_factory.mktemp("root") / "site", servers, pki, endorser)
        site.build("1")
        yield site


def cuts(seen: t.Mapping[str, list[Connection]]) -> list[tuple[str, Cut]]:
    """One break of each connection: by turns within the request, and of the answer."""
    found = []
    for name, connections in seen.items():
        for number, each in enumerate(connections):
            within = Cut(number, request=each.request // 2) if number % 2 else Cut(number, reply=0)
            found.append((name, within))
    return found


def sorted_history(state: dict[str, t.Any]) -> dict[str, t.Any]:
    return {**state, "history": sorted(state["history"], key=str)}


@pytest.mark.parametrize("playbook", ["publish.yml", "retire.yml"])
def test_cut_at_each_request(site: Site, playbook: str) -> None:
    def prepare() -> None:
        site.forget()
        site.servers.again()
        if playbook == "retire.yml":
            site.play("publish.yml", publish_version="1")
            site.servers.again()

    extra: dict[str, t.Any] = {"publish_version": "1"} if playbook == "publish.yml" else RETIRED
    prepare()
    site.play(playbook, **extra)
    breaks = cuts(site.servers.connections())
    clean = site.state()
    assert len(breaks) >= 8
    failed = 0
    for name, cut in breaks:
        prepare()
        site.servers.again(name, cut)
        first = site.play(playbook, check=False, **extra)
        failed += first.rc != 0
        site.servers.again()
        second = site.play(playbook, **extra)
        assert second.rc == 0
        assert sorted_history(site.state()) == sorted_history(clean), (name, cut)
        if first.rc == 0:
            assert not second.changed, (name, cut)
    assert failed, "no break was ever noticed"
    assert not list(Path(site.servers.dav.root).rglob(".partial-*"))
