# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Files served from another machine, by rsync over SSH: only what differs is sent, and what was cut short goes on."""

from __future__ import annotations

import re
import shlex
import tempfile
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli, _serve
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.plugins.module_utils._serve_sftp import Account, refuse_lasting

_LITERAL = re.compile(r"^Literal data: ([\d.,]+) bytes", re.MULTILINE)
_NETWORK = (5, 10, 12, 30, 35, 255)
"""rsync(1), EXIT VALUES: starting, socket I/O, protocol stream, time-outs; 255 is ssh's own."""
_MISSING = re.compile(r"link_stat .* failed: No such file or directory|change_dir .* failed: No such file or directory")


class RsyncStore(_serve.Store):
    """The files below a ``root`` there. Files appear by a rename.

    :param silence: seconds for which the server may say nothing.
    """

    def __init__(self, account: Account, root: str, progress: Progress, *, silence: float) -> None:
        self.where = f"rsync+ssh://{account}{root if root.startswith('/') else '/~/' + root}"
        self._account = account
        self._root = root.rstrip("/")
        self._progress = progress
        self._silence = max(1, round(silence))

    def size(self, name: str) -> int | None:
        done = self._run(name, ["--list-only", "--no-h", "-L"], [self._remote(name)], missing=True)
        words = done.stdout.split() if done else []
        if len(words) < 2 or words[0][0] != "-":
            return None
        return int(re.sub(r"\D", "", words[1]))

    def read(self, name: str, limit: int) -> bytes | None:
        size = self.size(name)
        if size is None:
            return None
        if size > limit:
            return bytes(limit + 1)  # too long to be what anybody looks for
        with tempfile.TemporaryDirectory(prefix="cloudimg-") as folder:
            path = Path(folder, "file")
            done = self._run(name, ["-L"], [self._remote(name), str(path)], missing=True)
            return path.read_bytes() if done else None

    def put(self, name: str, content: _serve.Content, progress: Progress) -> None:
        with tempfile.TemporaryDirectory(prefix="cloudimg-") as folder:
            source = content.path or Path(folder, "file")
            if not content.path:
                source.write_bytes(content.data)
            # The same size and time do not make the same file.
            options = ["--ignore-times", "--chmod=F644", "--mkpath", "--partial-dir=.rsync-partial", "--stats"]
            done = self._run(name, [*options, "--info=progress2"], [str(source), self._remote(name)])
        found = _LITERAL.search(done.stdout if done else "")
        self.sent += int(re.sub(r"\D", "", found[1])) if found else content.size

    def remove(self, name: str) -> bool:
        if self.size(name) is None:
            return False
        folder, _slash, last = name.rpartition("/")
        with tempfile.TemporaryDirectory(prefix="cloudimg-") as empty:
            # rsync removes what the (empty) source does not have; the filter leaves it this one file.
            options = ["-r", "--delete", f"--include=/{last}", "--exclude=*"]
            self._run(name, options, [f"{empty}/", self._remote(folder) + "/"])
        return True

    def _remote(self, name: str) -> str:
        host = f"[{self._account.host}]" if ":" in self._account.host else self._account.host
        path = f"{self._root}/{name}" if name else self._root
        return f"{host}:{path}" if path.startswith("/") else f"{host}:./{path}"

    def _run(
        self, name: str, options: t.Sequence[str], places: t.Sequence[str], *, missing: bool = False
    ) -> _cli.Completed | None:
        """Run rsync; None where there is no such file, and ``missing`` says that this is no error."""
        return _serve.persist(lambda: self._try(name, options, places, missing), self._progress)

    def _try(
        self, name: str, options: t.Sequence[str], places: t.Sequence[str], missing: bool
    ) -> _cli.Completed | None:
        _cli.require("rsync")
        shell = shlex.join(self._account.ssh())
        argv = ["rsync", "-s", f"--timeout={self._silence}", "-e", shell, *options, "--", *places]

        def tick(line: str) -> None:
            self._progress.report(console=line)

        done = _cli.run(argv, check=False, tick=tick)
        if done.rc == 0:
            return done
        said = _cli.tail(done.stderr, 3)
        if missing and done.rc == 23 and _MISSING.search(done.stderr):
            return None
        refuse_lasting(said, self.where)
        if done.rc in _NETWORK:
            raise _serve.Interrupted(f"the connection failed: {said}", where=self.at(name), mend=_serve.AGAIN)
        mend = "check that directory, the rights of that user, and that rsync is installed there"
        raise FactoryError(f"rsync ended with {done.rc}: {said}", where=self.at(name), mend=mend)
