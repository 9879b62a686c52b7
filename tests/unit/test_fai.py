# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a FAI ISO is made from (the ISO itself is made by the test of a full build)."""

from __future__ import annotations

import dataclasses
import os

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli, _fai
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

SPEC = _fai.FaiSpec("bookworm", ("openssh-server",), ("dracut",), {"class/50-x": "#!/bin/bash\n", "hooks/a.X.sh": "a"})


def test_digest_changes_with_every_part():
    changes = {
        "suite": "trixie",
        "packages": ("vim",),
        "installer_packages": ("vim",),
        "config_space": {"class/50-x": "#!/bin/sh\n"},
        "sources": ("deb http://example.org/debian bookworm main",),
        "setup": ("true",),
        "installer_suite": "trixie",
    }
    assert set(changes) == {field.name for field in dataclasses.fields(_fai.FaiSpec)}
    digests = {dataclasses.replace(SPEC, **{name: value}).digest() for name, value in changes.items()}
    assert len(digests | {SPEC.digest()}) == len(changes) + 1


@pytest.fixture
def indextargets(monkeypatch):
    """A function that sets what the builder's APT knows."""

    def say(text: str) -> None:
        monkeypatch.setattr(_cli, "run", lambda argv, **_options: _cli.Completed(argv, 0, text, "", 0.0))

    return say


def test_sources_come_from_the_builders_apt(indextargets):
    indextargets(
        "https://example.com/nodesource/ Node Source\n"
        "http://example.org/debian/ Debian\n"
        "http://example.org/debian/ Debian\n"
        "http://security.example.org/ Debian-Security\n"
    )
    assert _fai.builder_sources("trixie") == (
        "deb http://example.org/debian/ trixie main",
        "deb http://example.org/debian/ trixie-updates main",
        "deb http://security.example.org/ trixie-security main",
    )
    assert _fai.builder_sources("sid") == ("deb http://example.org/debian/ sid main",)


def test_builder_without_a_debian_mirror(indextargets):
    indextargets("https://example.com/nodesource/ Node Source\n")
    with pytest.raises(FactoryError, match=r"image_medium.mirror: the builder's APT knows no Debian mirror; give"):
        _fai.builder_sources("bookworm")


def test_config_space_is_written_with_the_right_modes(tmp_path):
    config = _fai._write_config_space(tmp_path, SPEC)
    assert os.access(config / "class/50-x", os.X_OK)
    assert os.access(config / "hooks/a.X.sh", os.X_OK)
    assert (config / "basefiles").is_dir()


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../b", ""])
def test_config_space_stays_inside(tmp_path, name):
    with pytest.raises(FactoryError, match="no path inside a configuration space"):
        _fai._write_config_space(tmp_path, dataclasses.replace(SPEC, config_space={name: "x"}))


def test_needs_root(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(FactoryError, match="takes root; add become: true"):
        _fai.build_fai_iso(SPEC, tmp_path / "x.iso", Progress("media"), tmp_path / "log")
    assert list(tmp_path.iterdir()) == []
