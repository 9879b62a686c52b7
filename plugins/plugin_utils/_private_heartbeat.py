# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Signs of life of a module that is given secrets.

In the background a module runs from a file, in which its arguments stand. In the foreground, and with pipelining (see the role
C(publish)), it comes to Python through a pipe, so that no file has them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _progress
from ansible_collections.cloudimg.factory.plugins.plugin_utils._heartbeat import (
    BEAT,
    HeartbeatAction,
    Result,
    line,
    playbook_owner,
)


class PrivateHeartbeatAction(HeartbeatAction):
    """Runs the module of the action's name in the foreground; where that is this machine, a line about it comes regularly."""

    def _run_watched(self, task_vars: dict[str, t.Any]) -> Result:
        answer = self._run_followed(task_vars) if self._here() else dict(self._execute_module(task_vars=task_vars))
        with contextlib.suppress(KeyError, TypeError):
            del answer["invocation"]["module_args"]["_job"]
        return answer

    def _run_followed(self, task_vars: dict[str, t.Any]) -> Result:
        folder = Path(self._remote_expand_user("~/.ansible/tmp"))  # type: ignore[no-untyped-call]
        job = folder / f"cloudimg-{secrets.token_hex(8)}.json"
        beat = float(self._templar.template(task_vars.get("cloudimg_heartbeat", BEAT)))
        ended = threading.Event()
        image = str(task_vars.get("inventory_hostname", ""))
        follower = threading.Thread(target=self._follow, args=(job, image, beat, ended), daemon=True)
        follower.start()
        try:
            args = {**self._task.args, "_job": {"path": os.fspath(job), "owner": playbook_owner()}}
            return dict(self._execute_module(module_args=args, task_vars=task_vars))
        finally:
            ended.set()
            follower.join()
            _progress.forget(job)

    def _follow(self, job: Path, image: str, beat: float, ended: threading.Event) -> None:
        """Show where the job is, and tell it that it is wanted."""
        shown = time.monotonic()
        while not ended.wait(min(1.0, max(beat, 0.1))):
            progress = _progress.read(job)
            if not progress:
                continue
            _progress.renew_lease(job)
            if time.monotonic() - shown >= beat and not self._task.no_log:
                shown = time.monotonic()
                self._display.display(line(image, progress))
