# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the checks of a system share. Any host will do: pytest --hosts=ssh://debian@host tests/assess.

A system that is not booted (``--connection=chroot --hosts=/tree``, as root) is judged as an image that waits for its first
boot: checks marked ``booted`` are skipped there, those marked ``image`` on a booted one.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import typing as t

import pytest


@dataclasses.dataclass
class System:
    """The system that is looked at, as root."""

    host: t.Any
    _said: dict[str, str] = dataclasses.field(default_factory=dict)

    def says(self, script: str) -> str:
        """What a shell script prints; how it ends is of no interest. It runs once: meanwhile nothing changes."""
        if script not in self._said:
            words = f"PATH=$PATH:/usr/sbin:/sbin; {script}"
            sudo = "[ $(id -u) = 0 ] || exec sudo -n sh -c"
            self._said[script] = str(self.host.run(f"{sudo} {shlex.quote(words)}; {words}").stdout)
        return self._said[script]

    @property
    def runs(self) -> bool:
        """Whether it is booted."""
        return bool(self.lines("[ -d /run/systemd/system ] && echo yes"))

    def lines(self, script: str) -> list[str]:
        """The lines that a shell script prints, without empty ones."""
        return [line.strip() for line in self.says(script).splitlines() if line.strip()]

    def found(self, *patterns: str) -> list[str]:
        """The files, and directories with anything in them, that match patterns of the shell."""
        tests = '[ -e "$f" ] || [ -L "$f" ] || continue; [ -d "$f" ] && [ -z "$(ls -A "$f")" ] && continue'
        return self.lines(f'for f in {" ".join(patterns)}; do {tests}; echo "$f"; done')

    def table(self, path: str, separator: str = ":") -> list[list[str]]:
        """The fields of each line of a file."""
        return [line.split(separator) for line in self.lines(f"cat {path}")]

    def enabled(self, *units: str) -> list[str]:
        """Those of some units of systemd that are started at boot."""
        asked = " ".join(units)
        states = self.says(f"for u in {asked}; do echo $u $(systemctl is-enabled $u 2>/dev/null | head -n 1); done")
        rows = [line.split() for line in states.splitlines()]
        return [
            row[0]
            for row in rows
            if row[1:] and row[1] in ("enabled", "enabled-runtime", "static", "alias", "generated")
        ]

    def sshd(self) -> dict[str, str]:
        """sshd's settings as they are in force; it would not tell them without a host key."""
        script = (
            "d=$(mktemp -d); ssh-keygen -q -t ed25519 -N '' -f $d/k >/dev/null; mkdir -p /run/sshd;"
            " sshd -T -h $d/k; rm -r $d"
        )
        return dict(line.split(" ", 1) for line in self.lines(script) if " " in line)

    def fstab(self) -> list[list[str]]:
        """The fields of the mounts of /etc/fstab."""
        rows = [line.split() for line in self.lines("cat /etc/fstab") if not line.startswith("#")]
        return [row for row in rows if len(row) > 2]

    def cloud_config(self) -> str:
        """All of cloud-init's configuration, without comments."""
        text = self.says("cat /etc/cloud/cloud.cfg /etc/cloud/cloud.cfg.d/*.cfg")
        return re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)


def pytest_configure(config: pytest.Config) -> None:
    """Tell what the markers mean."""
    config.addinivalue_line("markers", "booted: only for a system that runs")
    config.addinivalue_line("markers", "image: only for an image that waits for its first boot")


def pytest_addoption(parser: pytest.Parser) -> None:
    """What may differ between images."""
    group = parser.getgroup("assess")
    group.addoption(
        "--allowed-port", action="append", default=[], help="a port that may be open besides 22/tcp, as 80/tcp"
    )
    group.addoption("--allowed-unit", action="append", default=[], help="a unit of systemd that may fail")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Do not judge the machine that we happen to be on, unless told so."""
    if not config.getoption("hosts", None):
        for item in items:
            item.add_marker(pytest.mark.skip(reason="name the host: --hosts=ssh://user@host"))


@pytest.fixture(scope="module")
def looked_at(host) -> System:
    """The system that is looked at."""
    known = getattr(host.backend, "cloudimg_system", None) or System(host)
    host.backend.cloudimg_system = known
    return known


@pytest.fixture
def system(looked_at, request) -> System:
    """The system that is looked at; skips what is not for a system in its state."""
    if looked_at.runs and request.node.get_closest_marker("image"):
        pytest.skip("it is booted")
    if not looked_at.runs and request.node.get_closest_marker("booted"):
        pytest.skip("it is not booted")
    return looked_at


@pytest.fixture
def ruleset(system) -> list[dict[str, t.Any]]:
    """The objects of the firewall's rules: those in force, or, where nothing runs, those that the boot would load."""
    script = "nft -j list ruleset"
    if not system.runs:
        script = "unshare -n sh -c 'nft -f /etc/nftables.conf; nft -j list ruleset'"
    said = system.says(f"command -v nft >/dev/null && {script}")
    return list(json.loads(said)["nftables"]) if said.strip() else []
