# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Security updates that an image lacks: its packages held against the index of its own security suite.

The guest has no network, so the builder fetches the index, with its own mirror where it has one for that suite, and with
the keys that it trusts itself.
"""

from __future__ import annotations

import getpass
import re
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli, _state
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._secant import ERROR, OK, SKIPPED, Outcome

_ID = "pakiti_test"
_SECONDS = 120.0
_APT = Path("/etc/apt")
_UPGRADABLE = re.compile(r"^(\S+?)/\S+ (\S+) \S+ \[upgradable from: (\S+)\]", re.MULTILINE)
_SECURITY = re.compile(r"-security$|/updates$")


def outcome(packages: str, sources: str, folder: Path, *, apt: Path = _APT, tick: t.Callable[[str], None]) -> Outcome:
    """Hold a guest's packages against its security suite.

    :param packages: lines of name, version, architecture and state; empty where the guest has no dpkg.
    :param sources: all of the guest's sources.list files.
    :param folder: private, for files of the moment.
    :param apt: the builder's configuration of apt.
    """
    rows = [row for row in (line.split() for line in packages.splitlines()) if len(row) == 4 and row[3] == "installed"]
    if not rows:
        return Outcome(_ID, SKIPPED, "the image has no Debian packages, and others cannot be held against an index yet")
    if not _cli.which("apt-get"):
        return Outcome(_ID, SKIPPED, "the builder has no apt-get, which reads the index")
    wanted = security_suites(sources)
    if not wanted:
        return Outcome(_ID, SKIPPED, "the image has no security suite among its package sources")
    own = security_suites(_read(apt))
    lines = [own.get(suite, line) for suite, line in wanted.items()]
    try:
        found = _compare(rows, lines, folder, tick)
    except FactoryError as exc:
        return Outcome(_ID, SKIPPED, f"the index of {', '.join(wanted)} is out of reach: {exc.problem}")
    details = tuple(f"{name} {old}: there is {new}" for name, new, old in found)
    if found:
        names = ", ".join(name for name, _new, _old in found[:8]) + (", …" if len(found) > 8 else "")
        return Outcome(_ID, ERROR, f"{len(found)} packages lack a security update: {names}", details)
    return Outcome(_ID, OK, f"{len(rows)} packages, none of which lacks an update of {', '.join(wanted)}")


def security_suites(text: str) -> dict[str, str]:
    """The security suites among package sources of either format: for each, a line of sources.list(5)."""
    found: dict[str, str] = {}
    stanza: dict[str, str] = {}
    for line in [*text.splitlines(), ""]:
        words = re.sub(r"^deb\s+\[[^]]*\]", "deb", line.strip()).split()
        if words[:1] == ["deb"] and len(words) > 2 and _SECURITY.search(words[2]):
            found.setdefault(words[2], " ".join(words))
        name, colon, value = line.partition(":")
        if colon and not line.startswith(("#", " ", "\t", "deb ")):
            stanza[name.strip().lower()] = value.strip()
        elif not line.strip():
            _add_stanza(stanza, found)
            stanza = {}
    return found


def _add_stanza(stanza: dict[str, str], found: dict[str, str]) -> None:
    uri = [*stanza.get("uris", "").split(), ""][0]
    if "deb" not in stanza.get("types", "").split() or not uri or stanza.get("enabled", "yes").lower() == "no":
        return
    for suite in stanza.get("suites", "").split():
        if _SECURITY.search(suite):
            found.setdefault(suite, f"deb {uri} {suite} {stanza.get('components', '')}")


def _read(apt: Path) -> str:
    paths = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]
    # an empty line between them, as stanzas end with one
    return "\n\n".join(path.read_text(encoding="utf-8", errors="replace") for path in paths if path.is_file())


def _signed() -> str:
    """Whose signatures count: the archive keys that the builder has, else those that its apt trusts anyhow."""
    keyrings = sorted(Path("/usr/share/keyrings").glob("*-archive-keyring.gpg"))
    return f"[signed-by={','.join(map(str, keyrings))}] " if keyrings else ""


def _compare(
    rows: list[list[str]], lines: list[str], folder: Path, tick: t.Callable[[str], None]
) -> list[tuple[str, str, str]]:
    """What has a newer version in the index: name, that version, the installed one."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    _state.write_text(folder / "sources.list", "".join(f"deb {_signed()}{line[4:]}\n" for line in lines))
    stanza = (
        "Package: {}\nStatus: install ok installed\nMaintainer: none\nVersion: {}\nArchitecture: {}\nDescription: -\n\n"
    )
    _state.write_text(folder / "status", "".join(stanza.format(*row) for row in rows))
    architecture = next((row[2] for row in rows if row[0] == "dpkg"), "amd64")
    options = {
        "Dir::State": folder / "state",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder / "cache",
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": getpass.getuser(),
        "APT::Update::Error-Mode": "any",
        "Acquire::Languages": "none",
        "Acquire::Retries": "1",
        "Acquire::http::Timeout": "20",
        "Acquire::https::Timeout": "20",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    _cli.run(["apt-get", *words, "-q", "update"], timeout=_SECONDS, tick=tick)
    # older versions of apt do not call it an error when nothing could be fetched
    if not _cli.run(["apt-get", *words, "indextargets", "--format", "$(FILENAME)"], timeout=60).stdout.strip():
        raise FactoryError("it was not there", where="apt-get")
    said = _cli.run(["apt", *words, "list", "--upgradable"], timeout=_SECONDS, env={"LC_ALL": "C"}, tick=tick).stdout
    # The same version counts as newer where the index says more about it than the stanza above.
    return sorted(row for row in _UPGRADABLE.findall(said) if row[1] != row[2])
