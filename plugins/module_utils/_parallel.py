# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Doing the same to many pieces in several threads, with the results in order and a bound on what waits in memory."""

from __future__ import annotations

import collections
import concurrent.futures
import os
import typing as t

_Item = t.TypeVar("_Item")
_Answer = t.TypeVar("_Answer")

MOST_WORKERS = 8
WAITING = 48 << 20
"""Bytes that the pieces of one stream, in work or done and not yet taken, may hold."""


def workers() -> int:
    """The processors that this process may use, and no more than the bound on memory lets us."""
    return max(1, min(MOST_WORKERS, len(os.sched_getaffinity(0))))


def pool() -> concurrent.futures.ThreadPoolExecutor:
    """Threads for :func:`in_order`; several streams may share them."""
    return concurrent.futures.ThreadPoolExecutor(workers(), thread_name_prefix="cloudimg")


def in_order(
    executor: concurrent.futures.Executor,
    function: t.Callable[[_Item], _Answer],
    items: t.Iterable[_Item],
    weight: int,
    most: int = 4 * MOST_WORKERS,
) -> t.Iterator[_Answer]:
    """``function`` of every item, worked on by several threads, in the order of the items.

    :param weight: bytes that one piece takes, before and after.
    :param most: how many may be in work, or done and not yet taken, at the same time.
    """
    # More than there are threads: on a busy machine whoever takes the results may have to wait for its turn.
    depth = max(2, min(4 * workers(), most, WAITING // weight))
    waiting: collections.deque[concurrent.futures.Future[_Answer]] = collections.deque()
    try:
        for item in items:
            waiting.append(executor.submit(function, item))
            if len(waiting) >= depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
