# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds out, on the controller, what goes into a layer, and for whom the module of the same name works."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import typing as t
from pathlib import Path

from ansible import constants as C
from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.collection_loader._collection_finder import _get_collection_role_path
from ansible.utils.vars import merge_hash

from ansible_collections.cloudimg.factory.plugins.module_utils._definition import DURING_BUILD
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import data_digest, file_digests, tree_digest
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.plugin_utils._code import modules_of
from ansible_collections.cloudimg.factory.plugins.plugin_utils._heartbeat import playbook_owner

_PRIVATE = ("_inputs", "_controller", "_owner")


class ActionModule(ActionBase):  # type: ignore[misc]
    """Adds the private options to the module's."""

    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        args = {**self._task.args, "_owner": playbook_owner()}
        if args.get("state", "opened") == "opened":
            try:
                args["_inputs"] = self._inputs(task_vars or {})
            except FactoryError as exc:
                return {**result, "failed": True, "msg": str(exc)}
            args["_controller"] = {"here": self._connection.transport == "local", "root": _can_be_root()}
        answer = self._execute_module(module_args=args, task_vars=task_vars)
        for private in _PRIVATE:
            with contextlib.suppress(KeyError, TypeError):
                del answer["invocation"]["module_args"][private]
        return dict(merge_hash(result, answer))

    def _inputs(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        """Everything that the controller has to say about the layer, in digests."""
        args = self._task.args
        main = args.get("role") or f"cloudimg.factory.{args.get('stage')}"
        found: dict[str, t.Any] = {}
        prefixes = {f"{args.get('stage')}_"}
        waiting = [main, *(args.get("roles") or [])]
        while waiting:
            name = waiting.pop()
            if f"role {name}" in found:
                continue
            path = self._role(name, task_vars)
            found[f"role {name}"] = tree_digest(path)[:32]
            found.update({f"module {module}": code[:32] for module, code in modules_of(path).items()})
            prefixes.add(f"{name.rpartition('.')[2].rpartition('/')[2].replace('-', '_')}_")
            waiting += self._dependencies(path)
        for name, value in sorted(task_vars.items()):
            if name.startswith(tuple(prefixes)) and name not in DURING_BUILD:
                found[name] = data_digest(self._templated(name, value))[:32]
        files = [self._file(name) for name in args.get("files") or []]
        if files:
            found["files"] = [f"{path.name} {file_digests(path, ['sha256'])['sha256'][:32]}" for path in files]
        return found

    def _templated(self, name: str, value: t.Any) -> t.Any:
        try:
            return json.loads(json.dumps(self._templar.template(value), default=str))
        except AnsibleError as exc:
            reason = " ".join(str(getattr(exc, "message", exc)).split())
            raise FactoryError(
                f"cannot be templated: {reason}", where="inventory", key=name, mend="correct it"
            ) from exc

    def _file(self, name: str) -> Path:
        try:
            return Path(self._find_needle("files", name))
        except AnsibleError as exc:
            raise FactoryError(
                f"there is no file {name!r}", where="disk_layer", key="files", mend="correct its name"
            ) from exc

    def _role(self, name: str, task_vars: dict[str, t.Any]) -> Path:
        found = _get_collection_role_path(name, ["cloudimg.factory"])
        if found:
            return Path(found[1])
        base = Path(task_vars.get("playbook_dir") or self._loader.get_basedir())
        for path in (root / name for root in (base / "roles", *map(Path, C.DEFAULT_ROLES_PATH or ()), base)):
            if path.is_dir():
                return path
        raise FactoryError(
            f"there is no role {name!r}",
            where="disk_layer",
            key="role",
            mend="correct its name, or install it below roles/ beside the playbook",
        )

    def _dependencies(self, role: Path) -> list[str]:
        """The names of the roles that a role depends on."""
        for meta in (role / "meta" / "main.yml", role / "meta" / "main.yaml"):
            if meta.is_file():
                wanted = (self._loader.load_from_file(str(meta)) or {}).get("dependencies") or []
                names = (item if isinstance(item, str) else item.get("role") or item.get("name") for item in wanted)
                return [str(name) for name in names if name]
        return []


def _can_be_root() -> bool:
    if os.geteuid() == 0:
        return True
    try:
        return subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
