# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Brings Lynis along, as it is installed on the controller, for the module of the same name."""

from __future__ import annotations

import contextlib
import os
import tempfile
import typing as t

from ansible.plugins.action import ActionBase
from ansible.utils.vars import merge_hash

from ansible_collections.cloudimg.factory.plugins.module_utils._audit_lynis import pack


class ActionModule(ActionBase):  # type: ignore[misc]
    """Puts the archive beside the module, in a directory that Ansible removes."""

    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        args = dict(self._task.args)
        archive = pack()
        if archive:
            self._make_tmp_path()
            there = self._connection._shell.join_path(self._connection._shell.tmpdir, "lynis.tar.gz")
            with tempfile.NamedTemporaryFile(prefix="cloudimg-") as here:
                here.write(archive)
                here.flush()
                os.chmod(here.name, 0o644)
                self._transfer_file(here.name, there)
            self._fixup_perms2([self._connection._shell.tmpdir, there], execute=False)
            args["_lynis"] = there
        try:
            answer = self._execute_module(module_args=args, task_vars=task_vars)
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        with contextlib.suppress(KeyError, TypeError):
            del answer["invocation"]["module_args"]["_lynis"]
        return dict(merge_hash(result, answer))
