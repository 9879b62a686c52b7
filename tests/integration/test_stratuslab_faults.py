# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Endorsing in a Marketplace that fails, over connections that break: a second run ends as one without trouble would have."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
from lxml import etree
from stratuslab_site import Site, make_build, state

from ansible_collections.cloudimg.factory.plugins.module_utils import _stratuslab_document as document
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.tests.tools import pki
from ansible_collections.cloudimg.factory.tests.tools.dropping_proxy import DroppingProxy, cuts
from ansible_collections.cloudimg.factory.tests.tools.marketplace_server import Marketplace


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> pki.Pki:
    return pki.Pki.make(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def market() -> t.Iterator[Marketplace]:
    with Marketplace() as server:
        yield server


@pytest.fixture
def site(tmp_path: Path, grid: pki.Pki, market: Marketplace) -> Site:
    make_build(tmp_path / "build")
    return Site(tmp_path, grid, market.url)


@pytest.mark.parametrize("fault", ["500", "403", "html", "nothing", "silence", "reset", "later"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_server_that_fails_is_told_and_the_second_run_ends_it(
    fault: str, method: str, site: Site, market: Marketplace
) -> None:
    if (method, fault) == ("GET", "later"):
        fault = "503"
    market.faults[method].append(fault)
    if (method, fault) == ("POST", "later"):
        # It has taken it, and could not say so: the look-up after it finds it.
        assert site.present().changed
    else:
        with pytest.raises(FactoryError) as caught:
            site.present()
        assert (
            "\n" not in str(caught.value)
            and caught.value.mend
            and f"{method} {market.url}/metadata" in str(caught.value)
        )
    assert not market.faults[method]
    site.present()
    assert len(market.entries) == 1 and not site.present().changed
    assert document.read(etree.fromstring(next(iter(market.entries.values()))))["title"] == "Debian 12"


def test_a_replica_takes_nothing(site: Site, market: Marketplace) -> None:
    market.replica = True
    with pytest.raises(FactoryError, match=r"HTTP 403: read-only repository; publish in the Marketplace of which this"):
        site.present()


def test_not_a_marketplace(site: Site, market: Marketplace) -> None:
    with pytest.raises(FactoryError, match=r"HTTP 404: not found; check the URL of the Marketplace"):
        site.present(url=f"{market.url}/elsewhere")


def clean(tmp_path: Path, grid: pki.Pki) -> tuple[list[dict[str, t.Any]], list[t.Any]]:
    """What one run without trouble leaves, and the connections that it makes."""
    with Marketplace() as market, DroppingProxy(market.port) as proxy:
        site = Site(tmp_path, grid, proxy.url)
        make_build(tmp_path / "build")
        site.present()
        return state(market), list(proxy.connections)


def attempt(site: Site) -> FactoryError | None:
    """How endorsing fails, if it does."""
    try:
        site.present()
    except FactoryError as exc:
        return exc
    return None


@pytest.mark.parametrize("confirm", [False, True])
def test_a_connection_cut_anywhere_is_mended_by_the_second_run(confirm: bool, tmp_path: Path, grid: pki.Pki) -> None:
    wanted, connections = clean(tmp_path / "clean", grid)
    places = cuts(connections)
    assert {cut.connection for cut in places} == set(range(len(connections))) and len(connections) >= 4
    if confirm:
        # Nothing but the POST is another one.
        places = [cut for cut in places if cut.connection == len(connections) - 1]
    for number, cut in enumerate(places):
        with Marketplace() as market, DroppingProxy(market.port) as proxy:
            market.confirm = confirm
            site = Site(tmp_path / str(number), grid, proxy.url, timeout=5)
            make_build(site.root / "build")
            proxy.again(cut)
            failure = attempt(site)
            assert failure is None or (failure.mend and "\n" not in str(failure)), cut
            proxy.again()
            site.present()
            if confirm:
                assert market.pending and not market.entries, cut
                market.answer(list(market.pending)[-1])
                site.present()
            assert state(market) == wanted, cut
            assert [path.name for path in site.path.parent.iterdir()] == [site.path.name], cut
            if number % 4 == 0:
                assert not site.present().changed, cut


def test_what_was_cut_is_sent_again_as_it_is(site: Site, market: Marketplace) -> None:
    market.faults["POST"].append("reset")
    with pytest.raises(FactoryError, match="run this again"):
        site.present()
    kept = site.path.read_bytes()
    site.present()
    assert site.path.read_bytes() == kept
