# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The probes that need tools: passwords and Lynis with an ssh that is played, security updates with the real apt."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _dictionary, _lynis_live, _ssh, _updates
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import Cancelled

_SSH = """#!/bin/sh
# Asks three times, as ssh does where it may; the last but one word is the host, after the user's name.
for word; do case $before in -l) user=$word;; esac; before=$word; done
[ "$user" = @SILENT@ ] && { echo 'Connection closed' >&2; exit 255; }
for n in 1 2 3; do
    [ "$user $("$SSH_ASKPASS")" = "@RIGHT@" ] && exit @CODE@
done
echo "$user@127.0.0.1: Permission denied (publickey,password)." >&2
exit 255
"""


@pytest.fixture
def played(tmp_path, monkeypatch):
    """A function that puts an ssh before the real one, which lets one pair of user and password in; fewer guesses."""
    monkeypatch.setattr(_dictionary, "USERS", ("root", "vagrant"))
    monkeypatch.setattr(_dictionary, "PASSWORDS", ("password", "toor", "vagrant"))

    def put(right: str, *, code: int = 0, silent: str = "-") -> _ssh.Access:
        tool = tmp_path / "bin/ssh"
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(_SSH.replace("@RIGHT@", right).replace("@CODE@", str(code)).replace("@SILENT@", silent))
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
        return _ssh.Access("127.0.0.1", 1, "cloud", tmp_path / "id", tmp_path / "known_hosts")

    return put


def attack(access: _ssh.Access, folder: Path):
    """Guess, with time enough."""
    return _dictionary.attack(access, folder, seconds=300, tick=lambda: None)


def test_no_guess_is_right(played, tmp_path):
    outcome = attack(played("nobody x"), tmp_path)
    assert outcome.outcome == "OK"
    total = sum(len(_dictionary.guesses(user)) for user in ("cloud", *_dictionary.USERS))
    assert outcome.summary == f"none of {total} guesses was right ({total} were to be tried)"


@pytest.mark.parametrize(
    ("right", "code"),
    [("root toor", 0), ("cloud ", 0), ("cloud cloud", 0), ("vagrant vagrant", 1)],
    ids=["dictionary", "no password", "the name itself", "a shell that fails"],
)
def test_a_guess_is_right(played, tmp_path, right, code):
    outcome = attack(played(right, code=code), tmp_path)
    assert outcome.outcome == "ERROR"
    user = right.split(" ")[0]
    assert outcome.summary.startswith(f"guessed: {user} with one of ")
    assert repr(right.split(" ")[1]) in outcome.summary


def test_guesses_without_an_answer_are_not_counted(played, tmp_path):
    outcome = attack(played("nobody x", silent="root"), tmp_path)
    total = sum(len(_dictionary.guesses(user)) for user in ("cloud", *_dictionary.USERS))
    assert outcome.summary.startswith(f"none of {total - len(_dictionary.guesses('root'))} guesses was right")


def test_no_time_to_guess(played, tmp_path):
    outcome = _dictionary.attack(played("nobody x"), tmp_path, seconds=-1, tick=lambda: None)
    assert (outcome.outcome, outcome.summary) == ("SKIPPED", "no guess was answered in time")


def test_guessing_ends_when_nobody_wants_it(played, tmp_path):
    def tick() -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        _dictionary.attack(played("nobody x"), tmp_path, seconds=300, tick=tick)


SOURCES = """
deb http://mirror.example/debian bookworm main
deb [signed-by=/x.gpg] http://mirror.example/debian-security bookworm-security main contrib
# deb http://mirror.example/debian-security bullseye-security main

Types: deb
URIs: http://mirror.example/security
Suites: trixie trixie-security
Components: main
Signed-By: /y.gpg

Types: deb
Enabled: no
URIs: http://mirror.example/off
Suites: sid-security
Components: main

Types: deb-src
URIs: http://mirror.example/src
Suites: forky-security
Components: main
"""


def test_security_suites_of_either_format():
    assert _updates.security_suites(SOURCES) == {
        "bookworm-security": "deb http://mirror.example/debian-security bookworm-security main contrib",
        "trixie-security": "deb http://mirror.example/security trixie-security main",
    }
    assert _updates.security_suites("") == {}


INSTALLED = "openssl 3.0.0-1 amd64 installed\nzlib1g 1:1.2-1 amd64 installed\ngone 1 amd64 config-files\n"


@pytest.fixture
def index(tmp_path):
    """A security suite on disk, with an index without a signature; gives the lines of sources.list."""
    stanza = "Package: {}\nVersion: {}\nArchitecture: amd64\nFilename: x\nSize: 1\nSHA256: {}\nDescription: x\n\n"
    rows = [("openssl", "3.0.0-1+deb12u1"), ("zlib1g", "1:1.2-1"), ("other", "9")]
    packages = "".join(stanza.format(*row, "0" * 64) for row in rows).encode()
    folder = tmp_path / "mirror/dists/bookworm-security"
    (folder / "main/binary-amd64").mkdir(parents=True)
    (folder / "main/binary-amd64/Packages").write_bytes(packages)
    digest = subprocess.check_output(["sha256sum", folder / "main/binary-amd64/Packages"], text=True).split()[0]
    size = (folder / "main/binary-amd64/Packages").stat().st_size
    head = "Suite: bookworm-security\nDate: Mon, 01 Jan 2024 00:00:00 UTC\nArchitectures: amd64\nComponents: main\nSHA256:\n"
    release = f"{head} {digest} {size} main/binary-amd64/Packages\n"
    (folder / "Release").write_text(release)
    return f"deb [trusted=yes] file:{tmp_path}/mirror bookworm-security main\n"


needs_apt = pytest.mark.skipif(not shutil.which("apt-get"), reason="needs apt")


def judge(packages: str, sources: str, tmp_path: Path):
    """Hold packages against an index; the builder has no package sources of its own."""
    work = tmp_path / "work"
    work.mkdir()
    return _updates.outcome(packages, sources, work, apt=tmp_path / "none", tick=lambda _line: None)


@needs_apt
def test_an_index_without_a_signature_is_not_believed(index, tmp_path):
    outcome = judge(INSTALLED, index, tmp_path)
    assert outcome.outcome == "SKIPPED"
    assert outcome.summary.startswith("the index of bookworm-security is out of reach: ")


@needs_apt
def test_what_lacks_an_update_is_named(index, tmp_path, monkeypatch):
    monkeypatch.setattr(_updates, "_signed", lambda: "[trusted=yes] ")
    outcome = judge(INSTALLED, index, tmp_path)
    assert (outcome.outcome, outcome.summary) == ("ERROR", "1 packages lack a security update: openssl")
    assert outcome.details == ("openssl 3.0.0-1: there is 3.0.0-1+deb12u1",)


@needs_apt
def test_nothing_lacks_an_update(index, tmp_path, monkeypatch):
    monkeypatch.setattr(_updates, "_signed", lambda: "[trusted=yes] ")
    outcome = judge("openssl 3.0.0-1+deb12u1 amd64 installed\n", index, tmp_path)
    assert (outcome.outcome, outcome.summary) == (
        "OK",
        "1 packages, none of which lacks an update of bookworm-security",
    )


@needs_apt
def test_the_builders_own_mirror_is_asked(index, tmp_path, monkeypatch):
    monkeypatch.setattr(_updates, "_signed", lambda: "[trusted=yes] ")
    apt = tmp_path / "apt"
    (apt / "sources.list.d").mkdir(parents=True)
    (apt / "sources.list.d/own.list").write_text(index)
    work = tmp_path / "work"
    work.mkdir()
    images = "deb file:/nonexistent bookworm-security main"
    outcome = _updates.outcome(INSTALLED, images, work, apt=apt, tick=lambda _line: None)
    assert outcome.outcome == "ERROR"


@needs_apt
def test_a_mirror_out_of_reach_is_no_fault_of_the_image(tmp_path):
    outcome = judge(INSTALLED, "deb file:/nonexistent bookworm-security main", tmp_path)
    assert outcome.outcome == "SKIPPED"
    assert "\n" not in outcome.summary


@pytest.mark.parametrize(
    ("packages", "sources", "why"),
    [
        ("", SOURCES, "the image has no Debian packages"),
        (INSTALLED, "deb http://mirror.example/debian bookworm main", "the image has no security suite"),
    ],
)
def test_what_cannot_be_held_against_an_index(tmp_path, packages, sources, why):
    outcome = judge(packages, sources, tmp_path)
    assert outcome.outcome == "SKIPPED"
    assert outcome.summary.startswith(why)


_REPORT = """lynis_version=3.0.8
hardening_index=71
warning[]=AUTH-1|no password|-|-|
suggestion[]=BOOT-2|a password for the boot loader|-|-|
suggestion[]=SSH-3|another port|-|-|"""


@pytest.fixture
def guest(tmp_path, monkeypatch):
    """A function that puts an ssh before the real one, which takes what it gets and then says something."""

    def put(says: str, code: int = 0) -> _ssh.Access:
        tool = tmp_path / "bin/ssh"
        tool.parent.mkdir()
        taken = tmp_path / "taken"
        script = f"#!/bin/sh\n[ -e {taken} ] || {{ cat > {taken}; exit {code}; }}\ncat <<'END'\n{says}\nEND\n"
        tool.write_text(script)
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
        return _ssh.Access("127.0.0.1", 1, "cloud", tmp_path / "id", tmp_path / "known_hosts")

    return put


def audit(access: _ssh.Access, folder: Path):
    """Run Lynis in a guest, with time enough."""
    return _lynis_live.audit(access, folder, 300.0, lambda _line: None)


def test_what_lynis_says_is_told_and_not_judged(guest, tmp_path, monkeypatch):
    monkeypatch.setattr(_lynis_live._audit_lynis, "pack", lambda: b"a tar file")
    outcome, result = audit(guest(_REPORT), tmp_path)
    assert (tmp_path / "taken").read_bytes() == b"a tar file"
    assert outcome.outcome == "OK"
    assert outcome.summary == "hardening index 71; the outcome is not judged"
    assert outcome.details[0] == "Warning: AUTH-1 no password"
    assert (result["index"], len(result["warnings"]), len(result["suggestions"])) == (71, 1, 2)


def test_no_lynis_on_the_builder(guest, tmp_path, monkeypatch):
    monkeypatch.setattr(_lynis_live._audit_lynis, "pack", lambda: None)
    outcome, result = audit(guest(_REPORT), tmp_path)
    assert (outcome.outcome, outcome.summary, result) == ("SKIPPED", "Lynis is not installed on the builder", None)


@pytest.mark.parametrize(
    ("says", "code", "why"),
    [("nothing of use", 0, "it said no hardening index"), (_REPORT, 1, "it did not run: ssh: ended with 1")],
)
def test_a_lynis_that_does_not_run(guest, tmp_path, monkeypatch, says, code, why):
    monkeypatch.setattr(_lynis_live._audit_lynis, "pack", lambda: b"a tar file")
    outcome, result = audit(guest(says, code), tmp_path)
    assert (outcome.outcome, result) == ("SKIPPED", None)
    assert outcome.summary.startswith(why)
