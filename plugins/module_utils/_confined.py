# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Running a program on what a stranger has made."""

from __future__ import annotations

import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli

LIMIT = 256 << 20
"""Bytes that a file may have which such a program writes."""

_SECONDS = 120.0


def run(
    argv: t.Sequence[str | Path],
    *,
    writable: str | Path | None = None,
    limit: int = LIMIT,
    env: t.Mapping[str, str] | None = None,
) -> _cli.Completed:
    """Run it: it can write to nothing but the file or folder ``writable``, reaches no network, has two minutes.

    :param limit: up to which byte it may write files.
    :returns: also when it ends with an error.
    :raises FactoryError: bwrap or the program is missing, or it took too long.
    """
    view = ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    place = ["--bind", str(writable), str(writable)] if writable else []
    box = ["bwrap", "--unshare-all", "--die-with-parent", *view, *place]
    # A file that claims to be huge is not written out to its end.
    bound = ["prlimit", f"--fsize={limit}"]
    return _cli.run([*box, *bound, _cli.require(str(argv[0])), *argv[1:]], timeout=_SECONDS, check=False, env=env)
