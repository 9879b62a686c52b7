# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For tests: the same as slow_job, for an action that runs its module in the foreground."""

from __future__ import annotations

import time
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import JOB_OPTION, Result, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

SPEC: dict[str, t.Any] = {
    "seconds": {"type": "float", "default": 1.0},
    "console": {"type": "str", "default": ""},
    "secret": {"type": "str", "no_log": True},
    "_job": JOB_OPTION,
}


def work(module: AnsibleModule) -> Result:
    """Make a mess, wait, tidy up."""
    want = module.params
    progress = Progress("private_job", want["_job"])
    job = want["_job"] or {}
    until = time.monotonic() + want["seconds"]
    result = Result(extra={"job": bool(job)})
    if module.check_mode:
        return result
    result.act("waited")
    progress.phase("waiting")
    while time.monotonic() < until:
        progress.report(console=want["console"], disk=432 << 20)
        told = Path(job["path"]).read_text(encoding="utf-8") if job.get("path") else ""
        if want["secret"] and want["secret"] in told:
            raise FactoryError("is in the file of the job", key="secret")
        time.sleep(0.2)
    return result


def main() -> None:
    """The module."""
    run_module(SPEC, work)


if __name__ == "__main__":
    main()
