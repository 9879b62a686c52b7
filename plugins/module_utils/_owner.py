# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Who work is done for, and whether they are still there: the playbook that owns a job, a mount, a lock."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing as t
from pathlib import Path


def boot_id() -> str:
    """The kernel's name for this boot and PID namespace; it tells other machines, boots and containers from ours."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}/{os.readlink('/proc/self/ns/pid')}"


def start_time(pid: int) -> int | None:
    """When a process began, in clock ticks since the boot; None where there is no such process (or only a zombie)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def forsake(keep: int) -> None:
    """In a forked child: belong to nobody any more, with nothing open but the file descriptor ``keep``."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    for number in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if number > 2 and number != keep:
            with contextlib.suppress(OSError):
                os.close(number)
    os.chdir("/")
    os.umask(0o022)


@dataclasses.dataclass(frozen=True)
class Owner:
    """A process, told apart from any later one with the same number (proc(5): starttime, boot_id)."""

    pid: int
    started: int
    boot: str

    @classmethod
    def of(cls, pid: int | None = None) -> Owner:
        """The owner that is process ``pid``, by default this one."""
        number = os.getpid() if pid is None else pid
        return cls(number, start_time(number) or 0, boot_id())

    @classmethod
    def load(cls, data: t.Mapping[str, t.Any] | None) -> Owner | None:
        """From :meth:`dump`'s shape; None for None or for what is no owner."""
        try:
            return cls(int(data["pid"]), int(data["started"]), str(data["boot"])) if data else None
        except (KeyError, TypeError, ValueError):
            return None

    def dump(self) -> dict[str, t.Any]:
        """``{"pid": int, "started": clock ticks, "boot": boot id}``."""
        return dataclasses.asdict(self)

    def local(self) -> bool:
        """Whether it is (or was) a process that we could see, so that :meth:`alive` can tell."""
        return self.boot == boot_id()

    def same_boot(self) -> bool:
        """Whether it is (or was) a process of this boot of this machine, in whatever container."""
        return self.boot.partition("/")[0] == boot_id().partition("/")[0]

    def alive(self) -> bool:
        """Whether the process runs; an owner of another boot of this machine is dead, see :meth:`local` first."""
        return self.local() and start_time(self.pid) == self.started
