# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Long jobs under real ansible-playbook runs: they show that they live, and end when nobody wants them any more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import typing as t
from pathlib import Path

import ansible_runner
import pytest
import yaml

HERE = Path(__file__).resolve().parent
ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "ANSIBLE_LIBRARY": str(HERE / "library"),
    "ANSIBLE_ACTION_PLUGINS": str(HERE / "action_plugins"),
    "ANSIBLE_LOCALHOST_WARNING": "false",
}
NOBODY = {"become_user": "nobody", "become_method": "ansible.builtin.su", "become_flags": "-s /bin/sh"}


class Play:
    """One task, slow_job, on one host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mess = folder / "mess"
        self.jobs = folder / "async"
        self.jobs.mkdir(mode=0o777)
        self.jobs.chmod(0o777)
        (folder / "runner").mkdir()
        self.variables: dict[str, t.Any] = {
            "ansible_connection": "local",
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_async_dir": str(self.jobs),
            "cloudimg_heartbeat": 1,
        }
        self.host = "debian-12"

    def write(self, task: dict[str, t.Any] | None = None, **args: t.Any) -> Path:
        wanted = {"name": "Work", "slow_job": {"mess": str(self.mess), **args}, "register": "done", **(task or {})}
        show = {"name": "Show", "ansible.builtin.debug": {"var": "done"}}
        play = {"hosts": "all", "gather_facts": False, "vars": self.variables, "tasks": [wanted, show]}
        path = self.folder / "play.yml"
        path.write_text(yaml.safe_dump([play]), encoding="utf-8")
        return path

    def run(self, task: dict[str, t.Any] | None = None, cmdline: str = "", **args: t.Any) -> ansible_runner.Runner:
        return ansible_runner.run(
            private_data_dir=str(self.folder / "runner"),
            playbook=str(self.write(task, **args)),
            inventory={"all": {"hosts": {self.host: {}}}},
            envvars=ENVIRONMENT,
            cmdline=cmdline or None,
            quiet=True,
        )

    def left(self) -> list[str]:
        return sorted(path.name for path in self.jobs.iterdir())


@pytest.fixture
def play() -> t.Iterator[Play]:
    # Not pytest's own directory, which other users may not enter.
    with tempfile.TemporaryDirectory(prefix="cloudimg-test-") as folder:
        Path(folder).chmod(0o777)
        yield Play(Path(folder))


def result(run: ansible_runner.Runner, task: str = "Work") -> dict[str, t.Any]:
    done = [
        event["event_data"]["res"]
        for event in run.events
        if event["event"] in ("runner_on_ok", "runner_on_failed") and event["event_data"].get("task") == task
    ]
    return dict(done[-1])


def beats(run: ansible_runner.Runner) -> list[str]:
    return [event["stdout"] for event in run.events if event["event"] == "verbose" and "slow_job" in event["stdout"]]


def wait_for(what: t.Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)


def test_heartbeat_is_in_the_events_of_ansible_runner(play: Play) -> None:
    run = play.run(seconds=4, console="\x1b[31mFormatting\x1b[0m \a/dev/vda")
    assert run.rc == 0
    shown = beats(run)
    assert 2 <= len(shown) <= 4
    assert shown[-1].startswith("[debian-12] slow_job 00:0")
    assert shown[-1].endswith("  waiting  | disk 432 MiB | console: Formatting /dev/vda")
    assert shown[-1] in run.stdout.read()


def test_result_is_the_module_s_own(play: Play) -> None:
    run = play.run(seconds=0.3)
    found = result(run)
    assert found["changed"]
    assert found["actions"] == ["waited"]
    assert found["in_background"]
    assert found["elapsed"] >= 0.3
    assert not {"ansible_job_id", "finished", "started", "results_file"} & set(found)
    assert "_job" not in str(found.get("invocation"))
    assert play.left() == []


def test_failure_keeps_its_message(play: Play) -> None:
    run = play.run(seconds=0.1, end="failure")
    assert run.rc != 0
    assert result(run)["msg"] == "slow_job: went wrong; do not ask for it"
    assert result(run)["log_path"] == "/x.log"
    assert play.left() == []


def test_killed_module_is_a_failure_of_one_line(play: Play) -> None:
    run = play.run(seconds=0.1, end="killed")
    assert run.rc != 0
    assert result(run)["msg"] == "slow_job: ended without a result, perhaps it was killed: it said nothing"
    assert play.left() == []


def test_check_mode_runs_in_the_foreground(play: Play) -> None:
    run = play.run(cmdline="--check")
    assert run.rc == 0
    assert result(run)["in_background"] is False
    assert play.left() == []


def test_task_that_is_asynchronous_itself_is_left_alone(play: Play) -> None:
    run = play.run({"async": 30, "poll": 1}, seconds=0.2)
    assert run.rc == 0
    assert result(run)["in_background"] is False


def test_no_log_hides_the_heartbeat(play: Play) -> None:
    run = play.run({"no_log": True}, seconds=2.5, console="secret")
    assert run.rc == 0
    assert beats(run) == []


@pytest.mark.root
def test_become_works_with_another_user(play: Play) -> None:
    run = play.run({**NOBODY, "become": True}, seconds=3)
    assert run.rc == 0, run.stdout.read()
    assert result(run)["user"] != os.geteuid()
    assert beats(run)
    assert play.left() == []


@pytest.mark.root
def test_other_connections_are_asked_by_a_module(play: Play) -> None:
    play.host = "/"
    play.variables["ansible_connection"] = "community.general.chroot"
    run = play.run(seconds=5)
    assert run.rc == 0, run.stdout.read()
    assert beats(run)
    assert play.left() == []


def test_timeout_of_the_task_ends_the_job(play: Play) -> None:
    run = play.run({"timeout": 3}, seconds=60)
    assert run.rc != 0
    assert not play.mess.exists()
    assert "nobody has asked" in play.mess.with_suffix(".cancelled").read_text(encoding="utf-8")
    assert play.left() == []


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGINT])
def test_job_ends_when_its_playbook_is_killed(play: Play, sig: signal.Signals) -> None:
    playbook = subprocess.Popen(
        ["ansible-playbook", "-i", "debian-12,", play.write(seconds=60)],
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(play.mess.exists)
        time.sleep(1)
        playbook.send_signal(sig)
        playbook.wait(120)
        wait_for(lambda: not play.mess.exists())
    finally:
        playbook.kill()
    assert "has gone" in play.mess.with_suffix(".cancelled").read_text(encoding="utf-8")

    # Its files are tidied up by a later job, when they are old enough.
    wait_for(lambda: any(name.startswith("j") for name in play.left()))
    for path in play.jobs.iterdir():
        os.utime(path, (0, 0))
    assert play.run(seconds=0.1).rc == 0
    assert play.left() == []


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_module_with_secrets_runs_in_the_foreground(play: Play, elsewhere: bool) -> None:
    if elsewhere:
        if os.geteuid():
            pytest.skip("needs root")
        play.variables |= {"ansible_become": True, **{f"ansible_{key}": value for key, value in NOBODY.items()}}
    play.variables["ansible_pipelining"] = True
    task = {"name": "Work", "private_job": {"seconds": 4, "console": "sending", "secret": "swordfish"}}
    show = {"hosts": "all", "gather_facts": False, "vars": play.variables, "tasks": [task]}
    (play.folder / "play.yml").write_text(yaml.safe_dump([show]), encoding="utf-8")
    run = ansible_runner.run(
        private_data_dir=str(play.folder / "runner"),
        playbook=str(play.folder / "play.yml"),
        inventory={"all": {"hosts": {play.host: {}}}},
        envvars=ENVIRONMENT,
        cmdline="-vvv",
        quiet=True,
    )
    out = run.stdout.read()
    assert run.rc == 0, out
    shown = [line for line in out.splitlines() if line.startswith("[debian-12] private_job 00:0")]
    assert result(run)["job"] is not elsewhere
    assert bool(shown) is not elsewhere
    assert elsewhere or shown[-1].endswith("  waiting  | disk 432 MiB | console: sending")
    assert "swordfish" not in out
    assert "_job" not in str(result(run).get("invocation"))
    assert play.left() == []
    assert not list(Path("~/.ansible/tmp").expanduser().glob("cloudimg-*.json*"))
