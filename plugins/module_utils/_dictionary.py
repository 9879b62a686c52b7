# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Guessing: whether common names and passwords let anybody in by SSH."""

from __future__ import annotations

import concurrent.futures
import time
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli, _ssh, _state
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._secant import ERROR, OK, SKIPPED, Outcome

USERS = ("root", "admin", "user", "test", "guest", "ubuntu", "debian", "centos", "vagrant", "opennebula", "pi")
PASSWORDS = ("password", "123456", "admin", "root", "toor", "test", "changeme", "secret", "vagrant", "opennebula")
"""Tried with each name, as are no password at all and the name itself."""
_AT_ONCE = 4
_PROMPTS = 3
"""Guesses in one connection: a server allows six, of which some are not passwords."""
_ASKPASS = """#!/bin/sh
# The next guess, at each question.
number=$(cat "$GUESSES.count")
echo $((number + 1)) > "$GUESSES.count"
sed -n "${number}p" "$GUESSES"
"""


def guesses(user: str) -> list[str]:
    """The passwords to try for a name."""
    return list(dict.fromkeys(["", user, *PASSWORDS]))


def attack(access: _ssh.Access, folder: Path, *, seconds: float, tick: t.Callable[[], None]) -> Outcome:
    """Try them all, for at most ``seconds``.

    :param access: where, and its ``user`` is tried, too.
    :param folder: private, for files of the moment.
    """
    users = list(dict.fromkeys([access.user, *USERS]))
    rounds = [
        (user, guesses(user)[at : at + _PROMPTS]) for user in users for at in range(0, len(guesses(user)), _PROMPTS)
    ]
    helper = folder / "askpass"
    _state.write_text(helper, _ASKPASS, 0o700)
    deadline = time.monotonic() + seconds
    found: list[str] = []
    tried = 0
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        jobs = [pool.submit(_try, access, user, words, helper, n, deadline) for n, (user, words) in enumerate(rounds)]
        try:
            while not all(job.done() for job in jobs):
                concurrent.futures.wait(jobs, timeout=1.0)
                tick()
        except BaseException:
            for job in jobs:
                job.cancel()
            raise
        for (user, words), job in zip(rounds, jobs):
            answer = job.result()
            tried += len(words) if answer is not None else 0
            if answer:
                found.append(f"{user} with one of {', '.join(repr(word) for word in words)}")
    total = sum(len(words) for _user, words in rounds)
    if found:
        return Outcome("ssh_passwd", ERROR, f"guessed: {found[0]}", tuple(found))
    if tried == 0:
        return Outcome("ssh_passwd", SKIPPED, "no guess was answered in time")
    return Outcome("ssh_passwd", OK, f"none of {tried} guesses was right ({total} were to be tried)")


def _try(access: _ssh.Access, user: str, words: list[str], helper: Path, number: int, deadline: float) -> bool | None:
    """Whether one of the passwords is right; None when the server did not answer, or time is up."""
    if time.monotonic() > deadline:
        return None
    guess = helper.with_name(f"guesses-{number}")
    _state.write_text(guess, "\n".join(words) + "\n", 0o600)
    _state.write_text(guess.with_name(f"{guess.name}.count"), "1\n", 0o600)
    options = {
        "BatchMode": "no",
        "PreferredAuthentications": "password,keyboard-interactive",
        "PubkeyAuthentication": "no",
        "NumberOfPasswordPrompts": str(_PROMPTS),
    }
    asking = {"SSH_ASKPASS": str(helper), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ":0", "GUESSES": str(guess)}
    argv = _ssh.Access(access.host, access.port, user, access.key, access.known_hosts).argv("true", **options)
    try:
        done = _cli.run(argv, timeout=max(5.0, deadline - time.monotonic()), env=asking, check=False)
    except FactoryError:
        return None
    if "Permission denied" in done.stderr or "Too many authentication failures" in done.stderr:
        return False
    # the command may fail (a shell that is /usr/sbin/nologin), and still somebody was let in
    return None if done.rc == 255 else True
