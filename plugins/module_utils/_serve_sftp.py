# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Files served from another machine, to which SSH leads by a key: an account that has no more than SFTP is enough."""

from __future__ import annotations

import dataclasses
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _serve, _sftp, _ssh
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

_T = t.TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Account:
    """Where to log in. Without ``user`` and ``port``, ssh_config(5) says them."""

    host: str
    user: str | None = None
    port: int | None = None
    identity: Path | None = None
    known_hosts: Path | None = None

    def ssh(self) -> list[str]:
        """The words of ssh's command line that stand before the host's name."""
        user = ["-l", self.user] if self.user else []
        port = ["-p", str(self.port)] if self.port else []
        return ["ssh", "-T", *_ssh.confirmed(self.identity, self.known_hosts), *port, *user]

    def __str__(self) -> str:
        return (f"{self.user}@" if self.user else "") + self.host + (f":{self.port}" if self.port else "")


def refuse_lasting(said: str, where: str) -> None:
    """Raise FactoryError for what ssh says, where trying again is no use."""
    for sign, mend in _ssh.LASTING.items():
        if sign in said:
            raise FactoryError(said, where=where, mend=mend)


class SftpStore(_serve.Store):
    """The files below a ``root`` there, which is made when it is missing. Files appear by a rename.

    :param silence: seconds for which the server may say nothing.
    """

    def __init__(self, account: Account, root: str, progress: Progress, *, silence: float) -> None:
        self.where = f"sftp://{account}{root if root.startswith('/') else '/~/' + root}"
        self._account = account
        self._root = root
        self._progress = progress
        self._silence = silence
        self._session: _sftp.Sftp | None = None

    def size(self, name: str) -> int | None:
        found = self._do(name, lambda session: session.stat(self._path(name)))
        return found[0] if found else None

    def read(self, name: str, limit: int) -> bytes | None:
        return self._do(name, lambda session: session.read(self._path(name), limit))

    def put(self, name: str, content: _serve.Content, progress: Progress) -> None:
        path = self._path(name)
        folder, _slash, last = path.rpartition("/")
        # The same name for the same content, so that what a killed run has left is written over, and goes.
        partial = f"{folder}/.partial-{content.sha256[:16]}-{last}"

        def put(session: _sftp.Sftp) -> None:
            session.make_folders(folder)
            try:
                with content.open() as stream:
                    session.write(
                        partial, stream, content.size, lambda sent: progress.report(done=sent, total=content.size)
                    )
                session.rename(partial, path)
            except _sftp.Refused:
                session.remove(partial)
                raise

        self._do(name, put)
        self.sent += content.size

    def remove(self, name: str) -> bool:
        def remove(session: _sftp.Sftp) -> bool:
            there = session.remove(self._path(name))
            folder = name.rpartition("/")[0]
            while folder and session.remove_folder(self._path(folder)):
                folder = folder.rpartition("/")[0]
            return there

        return self._do(name, remove)

    def close(self) -> None:
        if self._session:
            self._session.close()
            self._session = None

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}" if self._root else f"./{name}"

    def _do(self, name: str, work: t.Callable[[_sftp.Sftp], _T]) -> _T:
        return _serve.persist(lambda: self._try(name, work), self._progress)

    def _try(self, name: str, work: t.Callable[[_sftp.Sftp], _T]) -> _T:
        try:
            if self._session is None:
                argv = [*self._account.ssh(), "-s", "--", self._account.host, "sftp"]
                self._session = _sftp.Sftp(argv, silence=self._silence, tick=self._progress.check)
            return work(self._session)
        except _sftp.Refused as exc:
            mend = "check that directory, and the rights of that user"
            raise FactoryError(f"the server refuses it: {exc}", where=self.at(name), mend=mend) from exc
        except _sftp.Broken as exc:
            self.close()
            refuse_lasting(str(exc), self.where)
            raise _serve.Interrupted(f"the connection failed: {exc}", where=self.at(name), mend=_serve.AGAIN) from exc
