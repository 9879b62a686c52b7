# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The one kind of error that a user is meant to read."""

from __future__ import annotations

import typing as t


class FactoryError(Exception):
    """An expected failure, told in one line: where it is, what is wrong, how to mend it.

    :param problem: what is wrong, without a full stop at its end.
    :param where: the file (or host, URL, command) in which it is wrong.
    :param key: the key, option or field of it.
    :param mend: what the user should do about it, an imperative phrase.
    :param details: whatever else a module may return beside the message (for example C(log_path)).
    """

    def __init__(
        self,
        problem: str,
        *,
        where: str | None = None,
        key: str | None = None,
        mend: str | None = None,
        details: dict[str, t.Any] | None = None,
    ) -> None:
        self.problem = problem
        self.where = where
        self.key = key
        self.mend = mend
        self.details = details or {}
        super().__init__(str(self))

    def __str__(self) -> str:
        line = ": ".join(part for part in (self.where, self.key, self.problem) if part)
        if self.mend:
            line = f"{line}; {self.mend}"
        return " ".join(line.split())


class Cancelled(FactoryError):
    """The owner of the work went away (playbook killed, cancelled, or its lease ran out)."""
