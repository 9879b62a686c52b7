# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Running the tools that do the work: argv lists, time limits, logs, and errors that quote the tool's last words."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import time
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

_PR_SET_PDEATHSIG = 1
_TAIL_LINES = 5
_RECENT = 500


@dataclasses.dataclass(frozen=True)
class Completed:
    """What a tool did. ``elapsed`` is in seconds."""

    argv: list[str]
    rc: int
    stdout: str
    stderr: str
    elapsed: float

    def json(self) -> t.Any:
        """The tool's standard output as JSON; raises FactoryError where it is none."""
        try:
            return json.loads(self.stdout)
        except ValueError as exc:
            raise FactoryError(f"did not answer in JSON: {exc}", where=Path(self.argv[0]).name) from exc


class ToolError(FactoryError):
    """A tool ended with an error; carries its :class:`Completed`."""

    def __init__(self, completed: Completed, problem: str | None = None, mend: str | None = None) -> None:
        self.completed = completed
        said = tail(completed.stderr or completed.stdout)
        super().__init__(
            problem or f"ended with {completed.rc}: {said or 'it said nothing'}",
            where=Path(completed.argv[0]).name,
            mend=mend,
            details={"cmd": completed.argv, "rc": completed.rc},
        )


def tail(text: str, lines: int = _TAIL_LINES) -> str:
    """The last ``lines`` lines that say anything, joined by « / »."""
    said = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return " / ".join(said[-lines:])


def which(tool: str) -> str | None:
    """The tool's full path, also where sbin is not in PATH (as for unprivileged users of Debian)."""
    return shutil.which(tool, path=os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin")


def require(tool: str, package: str | None = None) -> str:
    """The tool's full path; raises FactoryError where it is not installed."""
    found = which(tool)
    if not found:
        raise FactoryError(
            "is not installed on the builder",
            where=tool,
            mend=f"run playbooks/builder.yml, or install the package {package or tool}",
        )
    return found


def version_of(tool: str, *, args: t.Sequence[str] = ("--version",)) -> tuple[int, ...]:
    """The first dotted number that the tool prints about itself, as (major, minor, …)."""
    done = run([require(tool), *args], timeout=30, check=False)
    match = re.search(r"(\d+(?:\.\d+)+)", done.stdout + done.stderr)
    if not match:
        raise FactoryError(f"does not tell its version: {tail(done.stdout + done.stderr)}", where=tool)
    return tuple(int(part) for part in match.group(1).split("."))


def require_version(tool: str, minimum: tuple[int, ...], package: str | None = None) -> str:
    """Like :func:`require`, for a tool of at least version ``minimum``."""
    path = require(tool, package)
    found = version_of(tool)
    if found < minimum:
        wanted, have = (".".join(map(str, version)) for version in (minimum, found))
        raise FactoryError(
            f"is version {have}, too old: {wanted} or newer is needed",
            where=tool,
            mend=f"install a newer {package or tool}",
        )
    return path


def die_with_parent() -> None:
    """For preexec_fn: have the kernel end this child when its parent dies, however that happens."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def end_group(process: subprocess.Popen[t.Any], grace: float = 5.0) -> None:
    """End a process that leads its own group, and all of the group: SIGTERM, then SIGKILL after ``grace`` seconds."""
    for sig, wait in ((signal.SIGTERM, grace), (signal.SIGKILL, grace)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sig)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait)
            if sig == signal.SIGKILL or not _group_alive(process.pid):
                return


def _group_alive(pgid: int) -> bool:
    try:
        os.killpg(pgid, 0)
    except ProcessLookupError:
        return False
    return True


def spawn(
    argv: t.Sequence[str | os.PathLike[str]],
    *,
    log: Path,
    env: t.Mapping[str, str] | None = None,
    cwd: Path | None = None,
    detached: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a tool that stays (a daemon, a VM) as leader of its own group; it dies with this process unless ``detached``.

    Its output is appended to ``log``. End it by :func:`end_group`.
    """
    words = [os.fspath(word) for word in argv]
    with log.open("ab") as sink:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            start_new_session=True,
            preexec_fn=None if detached else die_with_parent,
        )


def run(
    argv: t.Sequence[str | os.PathLike[str]],
    *,
    timeout: float | None = None,
    log: Path | None = None,
    env: t.Mapping[str, str] | None = None,
    cwd: Path | None = None,
    check: bool = True,
    tick: t.Callable[[str], None] | None = None,
) -> Completed:
    """Run a tool to its end.

    :param timeout: seconds that it may take at all.
    :param log: file to which its output is appended as it comes.
    :param check: raise ToolError when it does not end with 0.
    :param tick: called about once a second with the last line of output; what it raises ends the tool.
    :raises FactoryError: the tool is missing, or a time limit was reached.
    :raises ToolError: it ended with an error.
    """
    words = [os.fspath(word) for word in argv]
    words[0] = require(words[0])
    began = time.monotonic()
    collected: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
        cwd=cwd,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    program = Path(words[0]).name
    last_line = ""
    with contextlib.ExitStack() as stack:
        stack.callback(end_group, process)
        sink = stack.enter_context(log.open("ab")) if log else None
        selector = stack.enter_context(selectors.DefaultSelector())
        for stream, name in ((process.stdout, "stdout"), (process.stderr, "stderr")):
            if stream:
                selector.register(stream, selectors.EVENT_READ, name)
                stack.callback(stream.close)
        while selector.get_map() or process.poll() is None:
            if not selector.get_map():
                time.sleep(0.1)  # it has closed its output, and goes on
            for key, _events in selector.select(1.0) if selector.get_map() else ():
                chunk = os.read(key.fd, 65536)
                if not chunk:
                    selector.unregister(key.fileobj)
                    continue
                collected[key.data] += chunk
                recent = collected[key.data][-_RECENT:]  # a line may come in several chunks
                last_line = tail(recent.decode("utf-8", "replace"), 1) or last_line
                if sink:
                    sink.write(chunk)
                    sink.flush()
            if tick:
                tick(last_line)
            if timeout is not None and time.monotonic() - began > timeout:
                raise FactoryError(f"did not end within {timeout:.0f} s; its last words: {last_line}", where=program)
            if process.poll() is not None and not selector.select(0):
                break
        rc = process.wait()
    done = Completed(
        words,
        rc,
        collected["stdout"].decode("utf-8", "replace"),
        collected["stderr"].decode("utf-8", "replace"),
        time.monotonic() - began,
    )
    if check and rc != 0:
        raise ToolError(done)
    return done
