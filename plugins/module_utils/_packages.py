# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What is installed in an image: reading the list that the last guest stage left, writing C(packages.json)."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors

FILE = "packages.json"
_MEND = "run the sanitize stage again, which writes it"


def normalise(path: Path) -> str:
    """The text of C(packages.json) for a list that a guest stage left: sorted, and the same bytes for the same list.

    The list is C({"packages": [{name, version, arch}, …], "os_release": {KEY: value}}), or only the array.

    :raises FactoryError: it is not.
    """
    with explain_os_errors(path):
        text = path.read_text(encoding="utf-8", errors="replace")
    try:
        found = json.loads(text)
    except ValueError as exc:
        raise FactoryError(f"is not JSON: {exc}", where=str(path), mend=_MEND) from exc
    whole: dict[str, t.Any] = found if isinstance(found, dict) else {"packages": found}
    packages = whole.get("packages")
    if not isinstance(packages, list):
        raise FactoryError("must be a list", where=str(path), key="packages", mend=_MEND)
    rows = []
    for index, package in enumerate(packages):
        if not isinstance(package, dict) or not {"name", "version", "arch"} <= set(package):
            raise FactoryError(
                "must have name, version and arch", where=str(path), key=f"packages[{index}]", mend=_MEND
            )
        rows.append({key: str(package[key]) for key in ("name", "version", "arch")})
    rows.sort(key=lambda row: (row["name"], row["arch"], row["version"]))
    result = {"os_release": dict(whole.get("os_release") or {}), "packages": rows}
    return json.dumps(result, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
