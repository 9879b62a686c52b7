# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What every module of this collection does the same way: results, errors, time."""

from __future__ import annotations

import dataclasses
import time
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

JOB_OPTION: dict[str, t.Any] = {"type": "dict", "no_log": False}
"""The private option ``_job`` of modules that work for long: ``{"path": progress file, "owner": Owner.dump()}``."""


@dataclasses.dataclass
class Result:
    """A module's result: see DESIGN, «Module results». ``extra`` holds the values that only this module returns."""

    changed: bool = False
    actions: list[str] = dataclasses.field(default_factory=list)
    diff: dict[str, t.Any] | None = None
    image: dict[str, t.Any] | None = None
    log_path: str | None = None
    extra: dict[str, t.Any] = dataclasses.field(default_factory=dict)

    def act(self, reason: str) -> None:
        """Note that something changes, and why."""
        self.changed = True
        self.actions.append(reason)

    def dump(self, elapsed: float) -> dict[str, t.Any]:
        """The dictionary for exit_json."""
        values: dict[str, t.Any] = {"changed": self.changed, "actions": self.actions, "elapsed": round(elapsed, 2)}
        for name in ("diff", "image", "log_path"):
            if getattr(self, name) is not None:
                values[name] = getattr(self, name)
        return {**values, **self.extra}


def made_later(descriptor: Path, then: str) -> Result:
    """What becomes of a build in check mode, where the stage before has not made it."""
    return Result(True, [f"{descriptor}: the stage before would make it, then {then}"])


def run_module(
    argument_spec: dict[str, t.Any],
    work: t.Callable[[AnsibleModule], Result],
    **module_options: t.Any,
) -> t.NoReturn:
    """Make the module, do its ``work``, and leave by exit_json or, for a FactoryError, by fail_json with its one line."""
    module = AnsibleModule(argument_spec=argument_spec, supports_check_mode=True, **module_options)
    began = time.monotonic()
    try:
        result = work(module)
    except FactoryError as exc:
        module.fail_json(msg=str(exc), elapsed=round(time.monotonic() - began, 2), **exc.details)
    module.exit_json(**result.dump(time.monotonic() - began))
