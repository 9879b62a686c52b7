# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""OpenSCAP on a system that is not booted: what of the SCAP Security Guide is fulfilled.

OpenSCAP 1.3 cannot read the package database of Debian's kind of systems below a directory, and then takes every package for
absent. So rules about packages do not count where it says so; nor does its own score, which they are part of.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t
import xml.etree.ElementTree as ET
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

CONTENT = Path("/usr/share/xml/scap/ssg/content")
_XCCDF = "{http://checklists.nist.gov/xccdf/1.2}"
_PROFILE = "xccdf_org.ssgproject.content_profile_"
_NAMES = {"almalinux": "almalinux", "centos": "cs", "rocky": "rl", "opensuse-leap": "opensuse"}
_PREFERRED = ("cis_server_l1", "cis_level1_server", "standard", "anssi_np_nt28_minimal", "anssi_bp28_minimal")
_SECONDS = 1800.0
_NO_PACKAGES = "dpkginfo_init has failed"


@dataclasses.dataclass(frozen=True)
class Score:
    """What OpenSCAP said.

    :ivar score: 0 to 100: of the rules that count, those that are fulfilled.
    :ivar left_out: how many rules do not count, since OpenSCAP could not tell.
    :ivar failures: the names of rules that are not.
    """

    profile: str
    content: str
    version: str
    score: float
    passed: int
    failed: int
    left_out: int
    failures: list[str]


def content_for(release: t.Mapping[str, str], folder: Path = CONTENT) -> Path | None:
    """The data stream for a system; None where the builder has none for just this version."""
    name, version = release.get("ID", ""), release.get("VERSION_ID", "")
    family = _NAMES.get(name, name)
    for number in (version, version.replace(".", ""), version.split(".", maxsplit=1)[0]):
        path = folder / f"ssg-{family}{number}-ds.xml"
        if number and path.is_file():
            return path
    return None


def profile_for(content: Path, wanted: str = "") -> str:
    """The identifier of a profile in a data stream.

    :raises FactoryError: there is none of that name.
    """
    text = content.read_text(encoding="utf-8", errors="replace")
    known = sorted(set(re.findall(rf'Profile[^>]*\sid="{_PROFILE}([\w.-]+)"', text)))
    for name in [wanted] if wanted else _PREFERRED:
        if name in known:
            return f"{_PROFILE}{name}"
    if wanted or not known:
        raise FactoryError(
            f"there is no profile {wanted!r}",
            where=str(content),
            key="profile",
            mend=f"use one of: {', '.join(known) or 'none'}",
        )
    return f"{_PROFILE}{known[0]}"


def evaluate(
    root: Path, content: Path, profile: str, results: Path, *, inside: t.Sequence[str] = (), seen: Path | None = None
) -> Score:
    """Judge the system below ``root``, in which nothing stays of it.

    :param results: a file to write.
    :param inside: the words before the command that let it see ``root``.
    :param seen: where we see ``root`` ourselves, if elsewhere.
    :raises FactoryError: OpenSCAP could not.
    """
    oscap = _cli.require("oscap", "openscap-scanner")
    # what oscap-chroot does, which some distributions leave out
    env = {"OSCAP_PROBE_ROOT": str(root), "OSCAP_EVALUATION_TARGET": f"chroot://{root}"}
    env.update(OSCAP_PROBE_OS_NAME="Linux", OSCAP_PROBE_OS_VERSION="0", OSCAP_PROBE_ARCHITECTURE="x86_64")
    argv = [*inside, oscap, "xccdf", "eval", "--profile", profile, "--results", str(results), str(content)]
    top = seen or root
    before = {path.name for path in top.iterdir()}
    try:
        done = _cli.run(
            argv, env=env, cwd=results.parent, timeout=_SECONDS, check=False
        )  # it leaves results of its own
    finally:
        _clear(top, before)
    if done.rc not in (0, 2):  # 2: some rules are not fulfilled
        raise _cli.ToolError(done)
    version = ".".join(map(str, _cli.version_of("oscap")))
    blind = _NO_PACKAGES in done.stderr + done.stdout
    return read(results, profile=profile, content=content.name, version=version, blind=blind)


def _clear(root: Path, before: t.Collection[str]) -> None:
    """Remove the temporary files that APT's library, as OpenSCAP uses it, leaves at the top of the tree."""
    for path in root.iterdir():
        if path.name not in before and re.fullmatch(r"\.\w{6}", path.name) and path.is_file() and not path.is_symlink():
            path.unlink()


def read(results: Path, *, profile: str, content: str, version: str, blind: bool = False) -> Score:
    """What a file of results says.

    :param blind: rules about packages mean nothing.
    """
    found = ET.parse(results).getroot().find(f".//{_XCCDF}TestResult")
    if found is None:
        raise FactoryError("holds no result", where=str(results))
    outcomes = {
        str(rule.get("idref")).rpartition("_rule_")[2]: rule.findtext(f"{_XCCDF}result", "")
        for rule in found.findall(f"{_XCCDF}rule-result")
    }
    counted = {name: outcome for name, outcome in outcomes.items() if outcome in ("pass", "fail")}
    if blind:
        counted = {name: outcome for name, outcome in counted.items() if not name.startswith(("package_", "service_"))}
    failures = sorted(name for name, outcome in counted.items() if outcome == "fail")
    passed = len(counted) - len(failures)
    return Score(
        profile=profile.replace(_PROFILE, ""),
        content=content,
        version=version,
        score=round(100 * passed / len(counted), 1) if counted else 0.0,
        passed=passed,
        failed=len(failures),
        left_out=len(outcomes) - len(counted),
        failures=failures,
    )
