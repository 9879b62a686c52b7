# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The report on a build: C(report.html), one page that needs nothing else."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _report_data, _report_page, _state
from ansible_collections.cloudimg.factory.plugins.module_utils._build import FILE as BUILD
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result

FILE = "report.html"


def report(directory: Path, catalogue: Path | None, path: Path | None = None, *, check_mode: bool = False) -> Result:
    """Write the report on the build in ``directory``, if it is not what it should be already.

    :param catalogue: the local catalogue (its directory or its index), to compare with what was published before.
    :param path: the page; by default C(report.html) in the build directory.
    :raises FactoryError: there is no build, or one of its files cannot be read.
    """
    target = path or directory / FILE
    result = Result()
    result.extra = {"path": str(target), "changes": None}
    if check_mode and not (directory / BUILD).exists():
        result.act(f"{target}: the stages before would make the build, then it is written")
        return result
    if catalogue and catalogue.suffix == ".json":
        catalogue = catalogue.parent
    with _state.explain_os_errors(directory):
        facts = _report_data.gather(directory, catalogue)
    page = _report_page.render(facts)
    result.extra["verdict"] = facts.verdict
    if facts.changes:
        result.extra["changes"] = {"since": facts.changes.version, **facts.changes.counts()}
    with _state.explain_os_errors(target):
        former = target.read_bytes() if target.exists() else None
    if former != page.encode("utf-8"):
        result.act(f"{target.name}: {'differs' if former is not None else 'is missing'}")
        if not check_mode:
            _state.write_text(target, page)
    return result
