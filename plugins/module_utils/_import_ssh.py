# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The disk of a running machine, read over SSH: dd there, a file with holes here, taken up again where it broke off."""

from __future__ import annotations

import dataclasses
import shlex
import time
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli, _ssh
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import Digester
from ansible_collections.cloudimg.factory.plugins.module_utils._download import DELAYS, Interrupted, discard
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._import_stream import CHUNK, Pipe, SparseWriter
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors, read_json, write_json

_OWN = 255  # ssh's own errors, as against those of the command (ssh(1), EXIT STATUS)
_SHORT = 60.0


@dataclasses.dataclass(frozen=True)
class Remote:
    """A disk of another machine, and how to get there."""

    host: str
    device: str
    user: str = "root"
    port: int = 22
    sudo: bool = False
    identity: Path | None = None
    known_hosts: Path | None = None

    def __str__(self) -> str:
        return f"{self.host}:{self.device}"

    def argv(self, *command: str) -> list[str]:
        """The command line that runs a command there; the host's key has to be known."""
        words = _ssh.confirmed(self.identity, self.known_hosts)
        # What comes to the shell there is quoted; sbin is not in everybody's PATH.
        line = "PATH=$PATH:/usr/sbin:/sbin " + shlex.join([*(["sudo", "-n"] if self.sudo else []), *command])
        return ["ssh", "-T", *words, "-p", str(self.port), "-l", self.user, "--", self.host, line]


TooLarge = t.Callable[[int], FactoryError]
"""Makes the error for a disk of so many bytes."""


class _Broken(Exception):
    """The connection failed in a way that may pass."""


class Reader:
    """Reads a remote disk for one job.

    :param key: the definition's key, for messages.
    :param silence: seconds without a byte after which a connection counts as broken.
    """

    def __init__(
        self, remote: Remote, progress: Progress, *, key: str, silence: float, delays: t.Sequence[float] = DELAYS
    ) -> None:
        self._remote = remote
        self._progress = progress
        self._key = key
        self._silence = silence
        self._delays = delays
        self._done = 0

    def read(self, part: Path, algorithms: t.Sequence[str], limit: int, too_large: TooLarge) -> dict[str, str]:
        """Write the disk to ``part``, from where an interrupted run of the same machine has left it; its digests.

        :raises Interrupted: the connection failed for too long; what has come is kept for the next run.
        :raises FactoryError: it cannot be read, or is larger than ``limit``.
        """
        size = int(self._persist(lambda: self._ask("blockdev", "--getsize64", self._remote.device)))
        if size > limit:
            raise too_large(size)
        # A machine that was restarted meanwhile has gone on writing elsewhere.
        machine = {"size": size, "boot": self._persist(lambda: self._ask("cat", "/proc/sys/kernel/random/boot_id"))}
        state = part.with_name(f"{part.name}.json")
        if read_json(state, {}) != machine:
            discard(part)
            write_json(state, machine)
        with explain_os_errors(part), Digester(algorithms) as digester:
            part.touch()
            with part.open("r+b") as stream:
                self._rehash(stream, digester)
                writer = SparseWriter(stream, size, too_large(size), self._done)
                try:
                    self._persist(lambda: self._transfer(writer, digester, size))
                finally:
                    writer.finish()
        return digester.hexdigests()

    def _rehash(self, stream: t.BinaryIO, digester: Digester) -> None:
        """Count what is there already, as far as it ends with a whole chunk."""
        left = stream.seek(0, 2) // CHUNK * CHUNK
        stream.truncate(left)
        stream.seek(0)
        while self._done < left:
            chunk = stream.read(CHUNK)
            digester.update(chunk)
            self._done += len(chunk)
            self._progress.report(done=self._done)

    def _transfer(self, writer: SparseWriter, digester: Digester, size: int) -> str:
        """Read the rest, or as much as one connection brings."""
        if self._done == size:
            return ""
        skip = str(self._done // CHUNK)
        argv = self._remote.argv("dd", f"if={self._remote.device}", f"bs={CHUNK}", f"skip={skip}")
        with Pipe(argv) as pipe:
            for chunk in pipe.chunks(self._progress.check, self._silence):
                if len(chunk) < CHUNK and self._done + len(chunk) < size:
                    continue  # it broke off in the middle of a chunk, which comes again
                writer.write(chunk)
                digester.update(chunk)
                self._done += len(chunk)
                self._progress.report(done=self._done, total=size)
            if pipe.rc not in (0, _OWN, None) and self._done < size:
                self._failed(pipe.said())
            if self._done < size:
                said = pipe.said() if pipe.rc is not None else f"nothing came for {self._silence:.0f} s"
                self._lasting(said)
                raise _Broken(said or f"it ended after {self._done} of {size} bytes")
        return ""

    def _ask(self, *command: str) -> str:
        done = _cli.run(
            self._remote.argv(*command), timeout=_SHORT, check=False, tick=lambda _line: self._progress.check()
        )
        said = _cli.tail(done.stderr, 3)
        if done.rc == _OWN:
            self._lasting(said)
            raise _Broken(said)
        answer = done.stdout.strip()
        if done.rc != 0 or not answer or (command[0] == "blockdev" and not answer.isdigit()):
            self._failed(said or f"{command[0]} answered {answer[:60]!r}")
        return answer

    def _lasting(self, said: str) -> None:
        for sign, mend in _ssh.LASTING.items():
            if sign in said:
                raise FactoryError(said, where=str(self._remote), key=self._key, mend=mend)

    def _failed(self, said: str) -> t.NoReturn:
        mend = "check the name of the device, and let the user read it (sudo: true)"
        raise FactoryError(f"cannot be read there: {said}", where=str(self._remote), key=self._key, mend=mend)

    def _persist(self, attempt: t.Callable[[], str]) -> str:
        """Repeat ``attempt`` while the connection breaks, with growing delays; one that brought something on counts anew."""
        failures, mark = 0, self._done
        while True:
            try:
                return attempt()
            except _Broken as exc:
                failures = 1 if self._done > mark else failures + 1
                mark = self._done
                if failures > len(self._delays):
                    raise Interrupted(
                        f"the connection failed {failures} times in a row with {mark} bytes there: {exc}",
                        where=str(self._remote),
                        key=self._key,
                        mend="check that machine and the network, then run this again: it goes on where it broke off",
                    ) from exc
                end = time.monotonic() + self._delays[failures - 1]
                while time.monotonic() < end:
                    self._progress.report()
                    time.sleep(0.1)
