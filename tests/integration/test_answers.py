# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The answer files of all families of installers, beside those that were looked at and found right."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from answers_site import CHECKOUT, EXAMPLE, one_image, render, written

from ansible_collections.cloudimg.factory.plugins.module_utils import _definition
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

ALLOWED = re.compile(
    r"""passwd/(root-password-crypted\ password\ !|(make-user|root-login)\ boolean\ \w+)$  # preseed
    | ^rootpw\ --lock$  # kickstart
    | ^\ +-\ passwd$  # autoinstall, whose next word is --lock
    | "hashedPassword":\ true | "password":\ "!"  # Agama
    | <user_password>!</user_password>  # AutoYaST
    | usermod\ --password\ '!'\ root
    | publicKeyToken="31bf3856ad364e35" | \bLimitBlankPasswordUse\b  # Windows: Microsoft's own, and a policy
    """,
    re.VERBOSE,
)
"""What speaks of a password, and locks an account by it."""
GOLDEN = Path(__file__).parent / "answers"
DEBIAN = {"distribution": "debian", "version": "12"}
ISO = {
    "family": "preseed",
    "url": "https://example.org/x.iso",
    "checksum": "https://example.org/SHA256SUMS",
    "mirror": "http://example.org/debian",
}
REWRITE = bool(os.environ.get("CLOUDIMG_TEST_REWRITE"))
"""Set it to take what is written now for right, and look at the difference with git."""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The answer files of the example inventory and of C(answers/hosts.yml)."""
    directory = tmp_path_factory.mktemp("answers")
    # Where the definition names no mirror, Debian's installer is told that of the builder, which is another one elsewhere.
    render(directory, [EXAMPLE, GOLDEN / "hosts.yml"], "--extra-vars", "debian_mirror=http://example.org/debian")
    return directory


def test_all_are_as_they_were_found_right(answers: Path) -> None:
    now = written(answers)
    if REWRITE:
        for image in (path for path in GOLDEN.iterdir() if path.is_dir()):
            shutil.rmtree(image)
        shutil.copytree(answers, GOLDEN, dirs_exist_ok=True)
    right = {name: text for name, text in written(GOLDEN).items() if name != "hosts.yml"}
    assert sorted(now) == sorted(right)
    assert {name: text for name, text in now.items() if text != right[name]} == {}


@pytest.mark.parametrize("name", ["own.cfg", "own.cfg.j2"])
def test_a_file_of_the_users_replaces_ours(tmp_path: Path, name: str) -> None:
    own = tmp_path / name
    own.write_text("d-i time/zone string {{ answers.timezone }}\n", "utf-8")
    done = one_image(tmp_path, {"image_os": DEBIAN, "image_medium": {**ISO, "answer_file": str(own)}})
    assert done.returncode == 0, done.stdout
    found = written(tmp_path / "answers/image")
    shown = "Etc/UTC" if name.endswith(".j2") else "{{ answers.timezone }}"
    assert found["preseed.cfg"] == f"d-i time/zone string {shown}\n"
    assert found["late.sh"].startswith("#!/bin/sh\n")


def check(installer: dict[str, object], system: dict[str, str] | None = None) -> None:
    """Check a definition with that C(image_installer) as the stage definition does."""
    specs = yaml.safe_load((CHECKOUT / "roles/definition/meta/argument_specs.yml").read_text("utf-8"))
    given = {"image_os": system or DEBIAN, "image_medium": ISO, "image_installer": installer}
    _definition.validate("image", given, specs["argument_specs"]["image"]["options"], lambda path: None, "hosts.yml")


# Of each family something that would break out of a line, of quotes, of an element, of a mapping.
BREAKING = [
    "a\nd-i b",
    "a'b",
    'a"b',
    "a b",
    "a<b",
    "a&b",
    "a;b",
    "a$(b)",
    "a`b`",
    "a\\b",
    "a: b",
    "a#b",
    "{{ 1 }}",
    "a,b",
]
PLACES = ["locale", "keyboard", "timezone", "hostname", "domain", "proxy", "console"]


@pytest.mark.parametrize("key", PLACES)
def test_no_value_breaks_out(key: str) -> None:
    for value in BREAKING:
        with pytest.raises(FactoryError, match=f"image_installer.{key}: .* (cannot be right|is no plain URL)"):
            check({key: value})


@pytest.mark.parametrize("key", ["distribution", "version"])
def test_no_name_of_a_system_breaks_out(key: str) -> None:
    for value in [*BREAKING, "Debian GNU/Linux"]:
        with pytest.raises(FactoryError, match=rf"image_os.{key}: .* cannot be right; give its"):
            check({}, {**DEBIAN, key: value})


def test_no_package_breaks_out() -> None:
    for value in BREAKING:
        with pytest.raises(FactoryError, match=r"image_installer.packages: .* cannot be the name of a package"):
            check({"packages": [value]})


def debconf_says(preseed: Path) -> str:
    """What is wrong with a preseed, by debconf's own word; it warns of unknown types, and ends well all the same."""
    argv = ["debconf-set-selections", "--checkonly", preseed]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stderr


def test_debconf_takes_every_preseed(answers: Path, tmp_path: Path) -> None:
    preseeds = sorted(answers.rglob("preseed.cfg"))
    assert len(preseeds) >= 3
    for preseed in preseeds:
        said = subprocess.run(
            ["debconf-set-selections", "--checkonly", preseed], capture_output=True, text=True, check=True
        )
        assert said.stderr == ""
        subprocess.run(["sh", "-n", preseed.with_name("late.sh")], check=True)
    wrong = tmp_path / "preseed.cfg"
    wrong.write_text(preseeds[0].read_text("utf-8") + "this is no line of a preseed\n", "utf-8")
    assert "Unknown type no" in debconf_says(wrong)


def test_no_answer_file_has_a_password(answers: Path) -> None:
    """Neither in clear text nor as a hash: accounts are locked, with what cannot be the hash of any password."""
    named = re.compile(r"(?i)(passw(?:or)?d|rootpw|secret|token)")
    found = {
        f"{name}: {line}"
        for name, text in written(answers).items()
        for line in text.splitlines()
        if named.search(ALLOWED.sub("", line)) and not line.lstrip().startswith(("#", "//", "<!--"))
    }
    assert found == set()
    assert not any(re.search(r"\$(1|2[aby]|5|6|y)\$", text) for text in written(answers).values())


def test_a_template_of_the_users_with_a_mistake(tmp_path: Path) -> None:
    own = tmp_path / "own.cfg.j2"
    own.write_text("d-i time/zone string {{ answers.time_zone }}\n", "utf-8")
    done = one_image(tmp_path, {"image_os": DEBIAN, "image_medium": {**ISO, "answer_file": str(own)}})
    assert done.returncode != 0
    assert "has no attribute 'time_zone'" in " ".join((done.stdout + done.stderr).replace("''", "'").split())
    assert not (tmp_path / "answers").exists()


@pytest.mark.parametrize(
    ("system", "medium", "installer", "message"),
    [
        (
            ("rocky", "9"),
            {"family": "kickstart"},
            {"filesystem": "btrfs"},
            "image_installer.filesystem: rocky has no btrfs; use ext4 or xfs",
        ),
        (
            ("arch", "1"),
            {"family": "kickstart"},
            {},
            "image_os.distribution: the family kickstart is not known to install arch; use almalinux",
        ),
        (
            ("windows", "2022"),
            {"family": "autounattend", "drivers": {"path": "/x.iso", "checksum": "/SHA256SUMS"}},
            {"timezone": "Antarctica/Troll"},
            "image_installer.timezone: nothing is known of the name that Antarctica/Troll has in windows; use another",
        ),
    ],
    ids=["filesystem", "distribution", "timezone"],
)
def test_what_the_installer_cannot_do_is_told_before_the_medium_is_fetched(
    tmp_path: Path, system: tuple[str, str], medium: dict[str, object], installer: dict[str, str], message: str
) -> None:
    named = dict(zip(("distribution", "version"), system))
    given = {"image_os": named, "image_medium": {**ISO, **medium}, "image_installer": installer}
    done = one_image(tmp_path, given)
    assert done.returncode != 0
    assert f"image: {message}" in " ".join(done.stdout.split())
