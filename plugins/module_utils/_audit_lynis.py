# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Lynis, brought along: packed where it is installed, run on another system, gone from there afterwards.

A system that is not booted runs no kernel of its own, and no firewall. So that Lynis judges the system, and not the builder,
it gets what would be there after a boot: a network of its own with the firewall's rules loaded into it, and the kernel
parameters that the system's files set. What needs a running system (processes, services) Lynis leaves out by itself.
"""

from __future__ import annotations

import ctypes
import dataclasses
import fnmatch
import io
import os
import shlex
import tarfile
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

_SYSCTL_FOLDERS = ("etc", "run", "usr/local/lib", "usr/lib", "lib")
_NEWNET = 0x40000000
_SECONDS = 1800.0
_SKIPPED = ("CRYP-7902",)
"""The dates of each certificate of an authority, which are the distribution's: a third of the time, and no points."""
_SKIPPED_OFFLINE = ("BOOT-5104", "PKGS-7392", "KRNL-5830", "LOGG-2130", "LOGG-2138", "ACCT-9628")
"""What waits for process 1 and for package servers in vain; what compares with the builder's kernel; what wants to see
the journal's and auditd's processes."""
_SYSCTL = """\
#!/bin/sh
# cloudimg.factory: answers what the files of the system set, and asks the kernel for the rest.
for key; do :; done
value=$(sed -n "s|^$key = ||p" {values} 2>/dev/null)
[ -n "$value" ] || exec {real} "$@"
[ "$1" = -n ] && echo "$value" || echo "$key = $value"
"""


@dataclasses.dataclass(frozen=True)
class Score:
    """What Lynis said.

    :ivar index: the hardening index, 0 to 100.
    :ivar tests: how many tests it did.
    :ivar warnings: what must be looked at, C(<test> <text>).
    :ivar suggestions: what might be better, alike.
    :ivar booted: whether the system runs.
    """

    index: int
    version: str
    tests: int
    warnings: list[str]
    suggestions: list[str]
    booted: bool


def pack(root: Path = Path("/")) -> bytes | None:
    """Lynis as it is installed here, as a tar file of one directory; None where it is not."""
    program = next(
        (root / f"usr/{place}/lynis" for place in ("sbin", "bin") if (root / f"usr/{place}/lynis").is_file()), None
    )
    share, etc = root / "usr/share/lynis", root / "etc/lynis"
    if not program or not (share / "include").is_dir() or not (etc / "default.prf").is_file():
        return None
    found = [(program, "lynis"), *((path, path.name) for path in (*share.iterdir(), *etc.iterdir()))]
    stream = io.BytesIO()

    def owned_by_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        info.mode &= 0o755
        return info

    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as archive:
        for path, name in found:
            archive.add(path, name, filter=owned_by_root)
    return stream.getvalue()


def audit(archive: Path, work: Path) -> Score:
    """Unpack what :func:`pack` made into the empty directory ``work``, and run it there.

    :raises FactoryError: it said no hardening index.
    """
    with tarfile.open(archive) as packed:
        for member in packed.getmembers():
            if member.isreg() or member.isdir():
                packed.extract(member, work)
    booted = Path("/run/systemd/system").is_dir()
    path = os.environ.get("PATH", "")
    skipped = _SKIPPED if booted else _SKIPPED + _SKIPPED_OFFLINE
    lines = [*(f"skip-test={test}" for test in skipped), "skip-upgrade-test=yes"]
    (work / "custom.prf").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if not booted:
        _own_network()
        path = f"{_own_sysctl(work)}:{path}"
    report = work / "report.dat"
    argv = ["./lynis", "audit", "system", "--usecwd", "--cronjob", "--quick", "--no-colors"]
    argv += ["--report-file", str(report), "--logfile", str(work / "lynis.log")]
    shell = _cli.require("sh")
    # its end tells how many warnings there were
    done = _cli.run([shell, *argv], cwd=work, env={"PATH": path}, timeout=_SECONDS, check=False)
    score = read(report.read_text(encoding="utf-8", errors="replace") if report.exists() else "", booted=booted)
    if score is None:
        said = _cli.tail(done.stderr or done.stdout)
        raise FactoryError(f"said no hardening index: {said or 'nothing'}", where="lynis")
    return score


def read(report: str, *, booted: bool = True) -> Score | None:
    """What a report file says; None where it is not complete."""
    values: dict[str, list[str]] = {}
    for line in report.splitlines():
        key, _sep, value = line.partition("=")
        values.setdefault(key, []).append(value)
    index = values.get("hardening_index", [""])[-1]
    if not index.isdigit():
        return None
    return Score(
        index=int(index),
        version=values.get("lynis_version", [""])[-1],
        tests=int(values.get("lynis_tests_done", ["0"])[-1] or 0),
        warnings=_findings(values.get("warning[]", [])),
        suggestions=_findings(values.get("suggestion[]", [])),
        booted=booted,
    )


def _findings(rows: t.Iterable[str]) -> list[str]:
    # LYNIS itself only ever says that it is old
    split = (row.split("|") for row in rows if not row.startswith("LYNIS|"))
    return [f"{row[0]} {row[1]}" for row in split if len(row) > 1]


def configured_parameters(root: Path = Path("/")) -> dict[str, str]:
    """The kernel parameters that the files of a system set, with patterns where they do, the last word last."""
    files: dict[str, Path] = {}
    for folder in reversed(_SYSCTL_FOLDERS):
        files.update({path.name: path for path in (root / folder / "sysctl.d").glob("*.conf")})
    values: dict[str, str] = {}
    for _name, path in sorted(files.items()):
        if path.is_file():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                key, sep, value = line.strip().lstrip("-").partition("=")
                if sep and not key.startswith(("#", ";")):
                    name = key.strip().replace("/", ".")
                    values.pop(name, None)
                    values[name] = " ".join(value.split())
    return values


def parameters(configured: t.Mapping[str, str], kernel: Path = Path("/proc/sys")) -> dict[str, str]:
    """The same for each parameter of the kernel; one that is named goes before a pattern."""
    found = {name: value for name, value in configured.items() if "*" not in name}
    for pattern, value in configured.items():
        if "*" in pattern:
            for path in kernel.glob(pattern.replace(".", "/")):
                name = ".".join(path.relative_to(kernel).parts)
                if not any(fnmatch.fnmatchcase(name, other) for other in configured if "*" not in other):
                    found[name] = value
    return found


def _own_sysctl(work: Path) -> Path:
    folder = work / "bin"
    folder.mkdir()
    values = work / "sysctl.values"
    text = "".join(f"{name} = {value}\n" for name, value in parameters(configured_parameters()).items())
    values.write_text(text, encoding="utf-8")
    program = folder / "sysctl"
    real = _cli.which("sysctl") or "false"
    program.write_text(_SYSCTL.format(values=shlex.quote(str(values)), real=shlex.quote(real)), encoding="utf-8")
    program.chmod(0o755)
    return folder


def _own_network() -> None:
    """Go into a new network, with the rules that would be loaded at boot; without, where the kernel does not know them."""
    if ctypes.CDLL(None, use_errno=True).unshare(_NEWNET):
        return
    if _cli.which("ip"):
        _cli.run(["ip", "link", "set", "lo", "up"], check=False)
    rules = Path("/etc/nftables.conf")
    enabled = list(Path("/etc/systemd/system").glob("*.wants/nftables.service"))
    if enabled and rules.is_file() and _cli.which("nft"):
        _cli.run(["nft", "-f", rules], timeout=60, check=False)
