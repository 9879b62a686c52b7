# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Versions: of this collection, and which of two is the newer one."""

from __future__ import annotations

import re

COLLECTION = "0.1.0"
"""This collection's own version: on a builder there is no galaxy.yml to ask."""

_PIECES = re.compile(r"(\d+)|(\D)")


def version_key(version: str) -> tuple[tuple[int, int], ...]:
    """A sort key in dpkg's natural order: numbers by value, letters before signs, and ``~`` before the end.

    C(1.0~rc1 < 1.0 < 1.0a < 1.0+1 < 1.9 < 1.10), and C(20250101 < 202501011200).
    """
    # Each piece is (kind, value). As with dpkg, a digit or the end ranks below any sign but «~».
    key: list[tuple[int, int]] = []
    for number, sign in _PIECES.findall(version):
        if number:
            key.append((1, int(number)))
        elif sign == "~":
            key.append((0, 0))
        else:
            key.append((2 if sign.isalpha() else 3, ord(sign)))
    key.append((1, -1))
    return tuple(key)
