# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For tests: a module that takes its time, has something to clean up, and tells how it ended."""

from __future__ import annotations

import os
import signal
import time
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import Cancelled, FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import JOB_OPTION, Result, run_module
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

SPEC: dict[str, t.Any] = {
    "seconds": {"type": "float", "default": 1.0},
    "mess": {"type": "path", "required": True},
    "console": {"type": "str", "default": ""},
    "end": {"type": "str", "default": "well", "choices": ["well", "failure", "killed"]},
    "_job": JOB_OPTION,
}


def work(module: AnsibleModule) -> Result:
    """Make a mess, wait, tidy up."""
    want = module.params
    progress = Progress("slow_job", want["_job"])
    mess = Path(want["mess"])
    result = Result(extra={"in_background": bool(want["_job"]), "user": os.geteuid()})
    if module.check_mode:
        return result
    result.act("waited")
    mess.write_text(str(os.getpid()), encoding="utf-8")
    until = time.monotonic() + want["seconds"]
    try:
        progress.phase("waiting")
        while time.monotonic() < until:
            progress.report(console=want["console"], disk=432 << 20)
            time.sleep(0.2)
    except Cancelled as exc:
        mess.with_suffix(".cancelled").write_text(str(exc), encoding="utf-8")
        raise
    finally:
        mess.unlink()
    if want["end"] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if want["end"] == "failure":
        raise FactoryError("went wrong", where="slow_job", mend="do not ask for it", details={"log_path": "/x.log"})
    return result


def main() -> None:
    """The module."""
    run_module(SPEC, work)


if __name__ == "__main__":
    main()
