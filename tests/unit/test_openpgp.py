# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fingerprints of OpenPGP keys, compared with what gpg says."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _openpgp
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError


class Keys:
    """Keys that gpg makes."""

    def __init__(self, home: Path) -> None:
        home.mkdir(mode=0o700)
        self._home = home

    def gpg(self, *argv: str, text: str | None = None) -> str:
        command = ["gpg", "--homedir", str(self._home), "--batch", "--pinentry-mode", "loopback", *argv]
        return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout

    def make(self, kind: str, name: str) -> str:
        self.gpg("--passphrase", "", "--quick-generate-key", f"{name}@example.org", kind, "default", "never")
        listed = self.gpg("--with-colons", "--list-keys", f"{name}@example.org").splitlines()
        return next(line.split(":")[9] for line in listed if line.startswith("fpr:"))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Keys, dict[str, str]]:
    # gpg's agent has a socket there, whose name must not be long
    made = Keys(tmp_path_factory.mktemp("k") / "h")
    yield made, {"rsa": made.make("rsa2048", "rsa"), "curve": made.make("default", "curve")}
    subprocess.run(["gpgconf", "--homedir", str(made._home), "--kill", "all"], check=False, capture_output=True)


@pytest.mark.parametrize("name", ["rsa", "curve"])
def test_fingerprints_are_those_that_gpg_shows(keys: tuple[Keys, dict[str, str]], name: str) -> None:
    made, expected = keys
    armored = made.gpg("--armor", "--export", f"{name}@example.org")
    assert _openpgp.fingerprints(armored) == [expected[name]]
    assert _openpgp.fingerprints(f"some words\n{armored}\n") == [expected[name]]
    assert _openpgp.check(armored, [expected[name].lower()], "w", "k") == [expected[name]]
    assert _openpgp.check(armored, [f"{expected[name][:20]} {expected[name][20:]}"], "w", "k") == [expected[name]]


def test_every_key_of_a_block_must_be_wanted(keys: tuple[Keys, dict[str, str]]) -> None:
    made, expected = keys
    both = made.gpg("--armor", "--export")
    assert _openpgp.check(both, list(expected.values()), "w", "k") == list(expected.values())
    with pytest.raises(FactoryError, match=rf"^w: k: the key is {expected['curve']}, not {expected['rsa']}; find out"):
        _openpgp.check(both, [expected["rsa"]], "w", "k")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no key",
        "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n-----END PGP PUBLIC KEY BLOCK-----",
        "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n!!!!\n-----END PGP PUBLIC KEY BLOCK-----",
        "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nAAAA\n-----END PGP PUBLIC KEY BLOCK-----",
        "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmQENBA==\n-----END PGP PUBLIC KEY BLOCK-----",
    ],
)
def test_what_is_no_key(text: str) -> None:
    with pytest.raises(FactoryError, match=r"^w: k: the key .*; give it as «gpg --armor --export» prints it$"):
        _openpgp.check(text, ["0" * 40], "w", "k")


def test_a_short_fingerprint_is_none() -> None:
    with pytest.raises(FactoryError, match="'0123ABCD' is not the full fingerprint of a key"):
        _openpgp.check("", ["0123ABCD"], "w", "k")
