# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes this checkout importable as ansible_collections.cloudimg.factory, here and in what the tests start."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from ansible.utils.collection_loader._collection_finder import _AnsibleCollectionFinder

CHECKOUT = Path(__file__).resolve().parent.parent
COLLECTION = "ansible_collections/cloudimg/factory"


def pytest_configure(config: pytest.Config) -> None:
    """Install Ansible's collection finder before any test module is imported."""
    roots = os.environ.get("ANSIBLE_COLLECTIONS_PATH", "").split(":")
    known = [root for root in roots if root and Path(root, COLLECTION).resolve() == CHECKOUT]
    root = known[0] if known else _new_root(config)
    os.environ["ANSIBLE_COLLECTIONS_PATH"] = root
    _AnsibleCollectionFinder(paths=[root])._install()


def _new_root(config: pytest.Config) -> str:
    """What «make» would have set up, for as long as the tests run."""
    folder = tempfile.TemporaryDirectory(prefix="cloudimg-collections-")
    config.add_cleanup(folder.cleanup)
    link = Path(folder.name, COLLECTION)
    link.parent.mkdir(parents=True)
    link.symlink_to(CHECKOUT)
    return folder.name


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together what shares what is expensive; skip, with the reason, what needs root where we are not root."""
    for item in items:
        # With --dist loadgroup: the tests of the whole build go to one process, and those of a file stay together.
        item.add_marker(pytest.mark.xdist_group("build" if _is_long(item) else item.nodeid.partition("::")[0]))
        if os.geteuid() and item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root"))
    items.sort(key=lambda item: not _is_long(item))  # what takes longest begins first


def _is_long(item: pytest.Item) -> bool:
    return "factory" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root directory of this checkout."""
    return CHECKOUT
