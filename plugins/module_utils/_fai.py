# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""An installation ISO out of nothing but a package mirror: FAI's installer and a base file, put together by fai-cd.

Sources: fai-make-nfsroot(8), fai-cd(8), nfsroot.conf(5), mmdebstrap(1).

What can be prepared natively is in the base file (packages, initramfs, configuration), so that the installer only
partitions, unpacks and installs the boot loader: under emulation each of those costs minutes.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
import re
import shutil
import threading
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli, _os_release
from ansible_collections.cloudimg.factory.plugins.module_utils._builder import apt_mirrors
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import data_digest
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.plugins.module_utils._state import (
    explain_os_errors,
    lock,
    need_space,
    remove,
)

VOLUME = "FAI_CD"
CLASS = "CLOUDIMG"
_RECIPE = 1
"""Raised when this file makes another ISO out of the same FaiSpec."""
_TIMEOUT = 3600.0
_SPACE = 3 << 30
_FAI_LOCK = Path("/run/lock/cloudimg-fai.lock")
_SUITE = re.compile(r"[a-z]+")
_CONFIG_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")


@dataclasses.dataclass(frozen=True)
class FaiSpec:
    """What an ISO is made from.

    :param suite: the distribution's suite, for example C(bookworm).
    :param sources: APT source lines; none for those that the builder's own APT has for this suite.
    :param installer_packages: what the installer's own root file system (the NFSROOT) holds beside FAI.
    :param packages: what the installed system holds.
    :param config_space: FAI's configuration space: relative path → content; files that begin with C(#!) and hooks that
        end in C(.sh) become executable.
    :param setup: shell commands that finish the base file, run by mmdebstrap with the root directory as C($1).
    :param installer_suite: the suite of the installer itself, none for the builder's own: that is the one which the
        builder's FAI is made for.
    """

    suite: str
    packages: tuple[str, ...]
    installer_packages: tuple[str, ...]
    config_space: t.Mapping[str, str]
    sources: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    installer_suite: str = ""

    def digest(self) -> str:
        """The key of the ISO in a cache: it changes when any of this changes, but not with the mirror's content."""
        return data_digest([_RECIPE, dataclasses.asdict(self)])


def builder_suite() -> str:
    """The codename of the Debian release that the builder runs."""
    suite = _os_release.read(Path("/")).get("VERSION_CODENAME", "")
    if not _SUITE.fullmatch(suite):
        raise FactoryError(
            "the builder does not tell its Debian release",
            where="/etc/os-release",
            mend="build media of the family fai on a Debian builder",
        )
    return suite


def builder_sources(suite: str) -> tuple[str, ...]:
    """The source lines by which the builder's APT reaches ``suite``, its updates and its security updates.

    The builder may run another suite of the distribution; mirrors are told apart by the Label in their Release file.
    """
    mirrors = apt_mirrors()
    if "Debian" not in mirrors:
        raise FactoryError(
            "the builder's APT knows no Debian mirror",
            key="image_medium.mirror",
            mend="give one there, or run 'apt-get update' on the builder",
        )
    found = [f"deb {mirrors['Debian']} {suite} main"]
    if suite not in ("sid", "unstable"):
        found.append(f"deb {mirrors['Debian']} {suite}-updates main")
        if "Debian-Security" in mirrors:
            found.append(f"deb {mirrors['Debian-Security']} {suite}-security main")
    return tuple(found)


def build_fai_iso(spec: FaiSpec, target: Path, progress: Progress, log: Path) -> dict[str, t.Any]:
    """Make the ISO at ``target`` (as root; takes about two minutes on two cores).

    :returns: ``{"needs": bytes that the installed system takes, unpacked}``.
    :raises FactoryError: a tool failed; nothing is left.
    """
    if os.geteuid() != 0:
        raise FactoryError("making an ISO by fai-cd takes root", key="image_medium.family", mend="add become: true")
    for tool, package in (("fai-cd", "fai-server"), ("mmdebstrap", "mmdebstrap"), ("mksquashfs", "squashfs-tools")):
        _cli.require(tool, package)
    work = target.parent / f"{target.name}.work"
    progress.phase("waiting for another FAI build")

    # fai-make-nfsroot judges itself by a log that all runs on a machine write to: one at a time
    with lock(_FAI_LOCK, wait=_TIMEOUT, busy="another FAI build runs on this machine", tick=progress.check):
        _unmount_below(work)
        remove(work)  # of a killed build
        try:
            with explain_os_errors(work):
                work.mkdir(parents=True)
            need_space(work, _SPACE, "making the ISO")
            return _build(spec, target, work, progress, log)
        finally:
            _unmount_below(work)
            remove(work)


def _build(spec: FaiSpec, target: Path, work: Path, progress: Progress, log: Path) -> dict[str, t.Any]:
    sources = spec.sources or builder_sources(spec.suite)
    installer_suite = spec.installer_suite or builder_suite()
    installer_sources = sources if installer_suite == spec.suite else builder_sources(installer_suite)
    settings = _write_settings(work, spec, installer_sources)
    config = _write_config_space(work, spec)
    (work / "tmp").mkdir()
    scratch = {"TMPDIR": str(work / "tmp")}  # not for fai-make-nfsroot, which hands it on to its chroot
    failed = threading.Event()

    def tick(line: str) -> None:
        progress.report(console=line)
        if failed.is_set():
            raise FactoryError("was stopped, since its companion failed", where="mmdebstrap")

    def bootstrap(suite: str, include: t.Sequence[str], result: Path, lists: t.Iterable[str], *options: str) -> None:
        argv: list[str | Path] = ["mmdebstrap", "--variant=minbase", f"--include={','.join(include)}"]
        argv += ['--aptopt=APT::Install-Recommends "false"', "--dpkgopt=force-unsafe-io", *options]
        _cli.run([*argv, suite, result, *lists], timeout=_TIMEOUT, log=log, env=scratch, tick=tick)

    def installer() -> None:
        base = work / "installer.tar.zst"
        bootstrap(installer_suite, ["ca-certificates", "gpg"], base, installer_sources)
        argv: list[str | Path] = ["fai-make-nfsroot", "-v", "-s", "-g", "-z", "-C", settings, "-B", base]
        _cli.run(argv, timeout=_TIMEOUT, log=log, env={"DEBIAN_FRONTEND": "noninteractive"}, tick=tick)

    progress.phase("bootstrapping the installer and the base")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        base_file = config / "basefiles" / f"{CLASS}.tar.zst"
        measure = 'chroot "$1" du -xsk --exclude=/proc --exclude=/sys --exclude=/dev / > ' + f"'{work}/needs'"
        hooks = [f"--customize-hook={command}" for command in (*spec.setup, measure)]
        jobs = [pool.submit(installer), pool.submit(bootstrap, spec.suite, spec.packages, base_file, sources, *hooks)]
        for job in concurrent.futures.as_completed(jobs):
            if job.exception():
                failed.set()
                break
    for job in sorted(jobs, key=lambda job: "companion" in str(job.exception())):
        job.result()
    progress.phase("writing the ISO")
    argv: list[str | Path] = [
        "fai-cd",
        "-f",
        "-M",
        "-V",
        VOLUME,
        "-C",
        settings,
        "-n",
        work / "nfsroot",
        "-c",
        config,
        target,
    ]
    _cli.run(argv, timeout=_TIMEOUT, log=log, env=scratch, tick=tick)
    return {"needs": int((work / "needs").read_text(encoding="ascii").split()[0]) << 10}


def _write_settings(work: Path, spec: FaiSpec, sources: t.Iterable[str]) -> Path:
    settings = work / "etc"
    (settings / "apt" / "trusted.gpg.d").mkdir(parents=True)
    shutil.copy("/etc/fai/fai.conf", settings)
    shutil.copy("/etc/fai/grub.cfg", settings)
    (settings / "nfsroot.conf").write_text(
        f"FAI_ROOTPW='*'\nNFSROOT={work}/nfsroot\nTFTPROOT={work}/tftp\nFAI_CONFIGDIR={work}/config\n", encoding="utf-8"
    )
    packages = "\n".join(spec.installer_packages)
    (settings / "NFSROOT").write_text(f"PACKAGES install-norec\n{packages}\n", encoding="utf-8")
    (settings / "apt" / "sources.list").write_text("\n".join(sources) + "\n", encoding="utf-8")
    return settings


def _write_config_space(work: Path, spec: FaiSpec) -> Path:
    config = work / "config"
    (config / "basefiles").mkdir(parents=True)
    for name, content in spec.config_space.items():
        if not _CONFIG_FILE.fullmatch(name) or ".." in name.split("/"):
            raise FactoryError(f"{name!r} is no path inside a configuration space", key="image_medium.config_space")
        path = config / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        if content.startswith("#!") or name.startswith("hooks/"):
            path.chmod(0o755)
    return config


def _unmount_below(folder: Path) -> None:
    """What a killed fai-make-nfsroot or fai-cd left mounted (it is below ``folder``, so it is ours)."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()]
    for mount in reversed([name for name in mounts if name.startswith(f"{folder}/")]):
        with contextlib.suppress(FactoryError):
            _cli.run(["umount", "--lazy", mount], timeout=60)
