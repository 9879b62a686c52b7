# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Running a module that works for long, so that one sees that it lives and it sees when nobody wants it any more."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import pwd
import re
import secrets
import time
import typing as t
from pathlib import Path, PurePosixPath

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.vars import merge_hash

from ansible_collections.cloudimg.factory.plugins.module_utils import _progress
from ansible_collections.cloudimg.factory.plugins.module_utils._cli import tail
from ansible_collections.cloudimg.factory.plugins.module_utils._owner import Owner

LIMIT = 7 * 24 * 3600
"""Seconds after which Ansible's own wrapper ends a job; the modules' time limits are far below."""

FIRST_POLLS = (0.3, 0.5, 1.0)
POLL = 5.0
POLL_HERE = 1.0
BEAT = 15.0
_GRACE = 30.0
_WIDTH = 100
_ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[@-Z\\-_])")

Result = dict[str, t.Any]


def playbook_owner() -> dict[str, t.Any]:
    """The ansible-playbook process that this worker belongs to, as :meth:`Owner.dump` has it, and its ``host``."""
    parent = multiprocessing.parent_process()
    owner = Owner.of(parent.pid if parent and parent.pid else os.getpid())
    return {**owner.dump(), "host": platform.node()}


def line(image: str, progress: t.Mapping[str, t.Any]) -> str:
    """One line that tells where a job is: C([debian-12] base_vm 02:15  installing  | disk 412 MiB | console: …)."""
    seconds = int(progress.get("elapsed", 0))
    hours, minutes = divmod(seconds // 60, 60)
    clock = (f"{hours}:" if hours else "") + f"{minutes:02}:{seconds % 60:02}"
    facts = [f"[{image}] {progress.get('stage', '')} {clock}  {progress.get('phase', '')}".rstrip() + " "]
    if progress.get("total"):
        facts.append(f"{_mib(progress.get('done', 0))} of {_mib(progress['total'])}")
    elif progress.get("done"):
        facts.append(_mib(progress["done"]))
    if progress.get("disk") is not None:
        facts.append(f"disk {_mib(progress['disk'])}")
    console = _printable(str(progress.get("console") or ""))
    if console:
        facts.append(f"console: {console}")
    return " | ".join(facts).rstrip()


def _mib(size: float) -> str:
    return f"{int(size) >> 20} MiB"


def _printable(text: str) -> str:
    # The console is the guest's: nothing of it may reach the user's terminal but letters.
    plain = "".join(char if char.isprintable() else " " for char in _ESCAPES.sub("", text))
    return " ".join(plain.split())[-_WIDTH:]


class HeartbeatAction(ActionBase):
    """Runs the module of the action's name in the background, and shows a line about it every few seconds."""

    _supports_check_mode = True
    _supports_async = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> Result:
        result: Result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        if self._task.check_mode or self._task.async_val:
            answer = self._execute_module(task_vars=task_vars, wrap_async=self._task.async_val)
        else:
            answer = self._run_watched(task_vars)
        return dict(merge_hash(result, answer))

    def _run_watched(self, task_vars: dict[str, t.Any]) -> Result:
        folder = self._remote_expand_user(  # type: ignore[no-untyped-call]
            self.get_shell_option("async_dir", default="~/.ansible_async")  # type: ignore[no-untyped-call]
        )
        path = str(PurePosixPath(folder, f"cloudimg-{secrets.token_hex(8)}.json"))
        started = self._start({**self._task.args, "_job": {"path": path, "owner": playbook_owner()}}, task_vars)
        if started.get("failed") or not started.get("results_file"):
            return started
        job = {"path": path, "results": started["results_file"], "lock": self._lock(task_vars)}
        try:
            self._watch(job, task_vars)
        except BaseException:
            # Such as the task's own timeout.
            self._cancel(job, task_vars)
            raise
        answer = self._answer(job, task_vars)
        self._ask(job, "absent", task_vars)
        return answer

    def _start(self, args: Result, task_vars: dict[str, t.Any]) -> Result:
        self._task.async_val = LIMIT
        try:
            return dict(self._execute_module(module_args=args, task_vars=task_vars, wrap_async=True))
        finally:
            self._task.async_val = 0

    def _watch(self, job: Result, task_vars: dict[str, t.Any]) -> None:
        """Come back to the job until it has ended."""
        image = task_vars.get("inventory_hostname", "")
        beat = float(self._templar.template(task_vars.get("cloudimg_heartbeat", BEAT)))
        polls = iter(FIRST_POLLS)
        steady = POLL_HERE if self._here() else POLL
        state = "begun"
        shown = seen = time.monotonic()
        missed = 0
        while True:
            time.sleep(min(next(polls, steady), max(beat, 0.1)))
            try:
                visit = self._ask(job, state, task_vars)
            except AnsibleConnectionFailure:
                # The job gives up by itself when it is left alone for as long as this.
                if time.monotonic() - seen > _progress.LEASE:
                    raise
                continue
            state, seen = "visited", time.monotonic()
            if visit.get("failed") or visit["finished"]:
                return
            # The process has ended, but its result may be on its way.
            missed = missed + 1 if visit["alive"] is False else 0
            if missed > 3:
                return
            if visit["progress"] and seen - shown >= beat and not self._task.no_log:
                shown = seen
                self._display.display(line(image, visit["progress"]))

    def _answer(self, job: Result, task_vars: dict[str, t.Any]) -> Result:
        """The module's own result, as if it had not run in the background."""
        results = PurePosixPath(job["results"])
        args = {"jid": results.name, "_async_dir": str(results.parent), "mode": "status"}
        answer: Result = self._execute_module("ansible.legacy.async_status", args, task_vars=task_vars)
        broken = answer.get("failed") and ("outdata" in answer or "data" in answer)
        if broken or not answer.get("finished"):
            said = tail(str(answer.get("stderr") or "")) or "it said nothing"
            problem = f"{self._task.action}: ended without a result, perhaps it was killed: {said}"
            return {"failed": True, "msg": problem}
        for key in ("started", "finished", "ansible_job_id", "results_file"):
            answer.pop(key, None)
        with contextlib.suppress(KeyError, TypeError):
            del answer["invocation"]["module_args"]["_job"]
        return answer

    def _cancel(self, job: Result, task_vars: dict[str, t.Any]) -> None:
        """Make the job end, wait a while until it has cleaned up, and remove its files."""
        with contextlib.suppress(Exception):
            self._ask(job, "cancelled", task_vars)
            until = time.monotonic() + _GRACE
            while not self._ask(job, "watched", task_vars)["finished"] and time.monotonic() < until:
                time.sleep(1)
            self._ask(job, "absent", task_vars)

    def _ask(self, job: Result, state: str, task_vars: dict[str, t.Any]) -> Result:
        if self._here():
            # The same as the module does, without the half second that it costs to start one.
            lock = Path(job["lock"]) if job["lock"] else None
            return _progress.look_after(Path(job["path"]), Path(job["results"]), state, lock)
        args = {**job, "state": state}
        return dict(self._execute_module("cloudimg.factory.job_progress", args, task_vars=task_vars))

    def _here(self) -> bool:
        """Whether the job runs on this machine, as this user."""
        user = None
        if self._connection.become:
            user = self.get_become_option("become_user")  # type: ignore[no-untyped-call]
        return self._connection.transport == "local" and user in (None, pwd.getpwuid(os.geteuid()).pw_name)

    def _lock(self, task_vars: dict[str, t.Any]) -> str | None:
        """The lock of the image's build, where there is one (see role definition)."""
        build = self._templar.template(task_vars.get("cloudimg_build")) or {}
        if not build.get("workspace"):
            return None
        return str(PurePosixPath(build["workspace"], "builds", build["image"], ".lock.json"))
