# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells the module of the same name which ansible-playbook it works for."""

from __future__ import annotations

import contextlib
import typing as t

from ansible.plugins.action import ActionBase
from ansible.utils.vars import merge_hash

from ansible_collections.cloudimg.factory.plugins.plugin_utils._heartbeat import playbook_owner


class ActionModule(ActionBase):
    """Adds the private options to the module's."""

    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        args = {**self._task.args, "_owner": playbook_owner()}
        if self._task.check_mode and task_vars.get("cloudimg_build"):
            # In check mode there is no build.json that could have it.
            args["_build"] = self._templar.template(task_vars["cloudimg_build"])
        answer = self._execute_module(module_args=args, task_vars=task_vars)
        for private in ("_owner", "_build"):
            with contextlib.suppress(KeyError, TypeError):
                del answer["invocation"]["module_args"][private]
        return dict(merge_hash(result, answer))
