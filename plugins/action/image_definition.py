# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Collects and checks the definition of an image, on the controller."""

from __future__ import annotations

import contextlib
import json
import typing as t
from pathlib import Path

from ansible import constants as C
from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.collection_loader._collection_finder import _get_collection_role_path
from ansible.utils.vars import load_extra_vars

from ansible_collections.cloudimg.factory.plugins.module_utils import _definition, _parent
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import data_digest, file_digests, tree_digest
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.plugin_utils._code import modules_of
from ansible_collections.cloudimg.factory.plugins.plugin_utils._origin import Places

COLLECTION = Path(__file__).parent.parent.parent
SPECIFICATION = COLLECTION / "roles/definition/meta/argument_specs.yml"
STAGES = ("media", "base_vm", "adopt", "cloud_init", "applications", "harden", "sanitize", "export", "assess")
"""The stages whose roles and variables go into an image."""
GUEST_STAGES = ("adopt", "cloud_init", "applications", "harden", "sanitize")
"""Those that write layers, by modules of this collection, too."""
NOT_RECORDED = (
    *_definition.DURING_BUILD,
    "assess_override",
    "assess_who",
    "assess_catalogue",
    "sanitize_secrets",
)
"""Variables of theirs that leave nothing in it, and may name what should stand in no record."""


class ActionModule(ActionBase):
    """Needs no connection: all it reads is the host's variables and files of the controller."""

    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        self.validate_argument_spec(argument_spec={})  # type: ignore[no-untyped-call]
        try:
            result.update(self._collect(task_vars or {}))
        except FactoryError as exc:
            result.update(failed=True, msg=str(exc))
        return {"changed": False, **result}

    def _collect(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        """The definition of the host's image, for which those of its parents are needed."""
        name = str(task_vars["inventory_hostname"])
        known = {name: task_vars}

        def variables(host: str) -> dict[str, t.Any]:
            if host not in known:
                known[host] = self._variables_of(host, task_vars)
            return known[host]

        def parent_of(host: str) -> str | None:
            value = variables(host).get("image_parent")
            with self._as_host(variables(host)):
                where = Places(variables(host)).of(variables(host), ("image_parent",))
                return str(self._templated("image_parent", value, where) or "") or None if value else None

        groups = task_vars.get("groups") or {}
        family = _parent.lineage(
            name,
            parent_of,
            [str(host) for host in groups.get("images", groups.get("all", []))],
            lambda host: Places(variables(host)).of(variables(host), ("image_parent",)),
        )
        options = _plain(self._loader.load_from_file(str(SPECIFICATION)))["argument_specs"]["image"]["options"]
        found: dict[str, t.Any] | None = None
        for host in reversed(family):
            with self._as_host(variables(host)):
                found = self._collect_one(host, variables(host), options, found)
        return {**(found or {}), "generation": len(family) - 1}

    def _collect_one(
        self, name: str, task_vars: dict[str, t.Any], options: dict[str, t.Any], parent: dict[str, t.Any] | None
    ) -> dict[str, t.Any]:
        places = Places(task_vars)
        raw = {key: value for key, value in task_vars.items() if key.startswith("image_")}
        values: dict[str, t.Any] = {}
        # The version is often the time: whatever else refers to it must get the same one.
        for key in sorted(raw, key=lambda key: key != "image_version"):
            # Of what is not known, the name is wrong; its value may be anything.
            values[key] = self._templated(key, raw[key], places.of(raw, (key,))) if key in options else None
            if key == "image_version":
                self._templar = self._templar.copy_with_new_env(available_variables={**task_vars, key: values[key]})
        inventory = str(task_vars.get("inventory_file") or "inventory")
        definition = _definition.validate(
            name,
            values,
            options,
            lambda path: places.of(raw, path),
            inventory,
            parent["definition"] if parent else None,
        )
        inputs = self._inputs(definition, task_vars, lambda key: places.of({**raw, **task_vars}, key.split(".")))
        if parent:
            inputs["parent"] = {definition["image_parent"]: _parent.disk_digest(parent["definition"], parent["inputs"])}
        return {
            "definition": definition,
            "inputs": inputs,
            "digest": _definition.digest(definition, inputs),
            "version": definition["image_version"],
        }

    def _variables_of(self, host: str, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        """The variables of another host as this task would have them there, not templated."""
        there = dict(task_vars["hostvars"].raw_get(host))
        given = load_extra_vars(self._loader)
        of_play = self._task.get_play().get_vars()
        there.update({key: value for key, value in of_play.items() if key not in given})
        for key in ("hostvars", "groups", "playbook_dir"):
            there.setdefault(key, task_vars.get(key))
        return there

    @contextlib.contextmanager
    def _as_host(self, variables: dict[str, t.Any]) -> t.Iterator[None]:
        """Let templates have the variables of that host."""
        before = self._templar
        self._templar = before.copy_with_new_env(available_variables=variables)
        try:
            yield
        finally:
            self._templar = before

    def _templated(self, key: str, value: t.Any, where: str) -> t.Any:
        try:
            return _plain(self._templar.template(value))
        except AnsibleError as exc:
            reason = " ".join(str(getattr(exc, "message", exc)).split())
            raise FactoryError(f"cannot be templated: {reason}", where=where, key=key, mend="correct it") from exc

    def _inputs(
        self, definition: dict[str, t.Any], task_vars: dict[str, t.Any], where: t.Callable[[str], str]
    ) -> dict[str, t.Any]:
        """What goes into the image beside its definition; file names in the definition become absolute."""
        found: dict[str, t.Any] = {
            "stage": {
                name: tree_digest(COLLECTION / "roles" / name)
                for name in (*STAGES, "layer")
                if (COLLECTION / "roles" / name).is_dir() and (name != "adopt" or definition["image_source_disk"])
            },
            "variables": self._stage_variables(task_vars),
            # As with the layers themselves, see disk_layer.
            "code": {name: data_digest(code) for name, code in _code_of(GUEST_STAGES).items() if code},
        }
        scripts = [self._script(item, task_vars, where("image_scripts")) for item in definition["image_scripts"]]
        definition["image_scripts"] = [item for item, _input in scripts]
        if scripts:
            found["scripts"] = [made_of for _item, made_of in scripts]
        files = self._files(task_vars, where("applications_files"))
        if files:
            found["files"] = files
        if definition["image_roles"]:
            found["role"] = {
                role: tree_digest(self._role(role, task_vars, where("image_roles")))
                for role in definition["image_roles"]
            }
        medium = definition["image_medium"]
        if medium and medium["answer_file"]:
            key = "image_medium.answer_file"
            answer = self._file(medium["answer_file"], task_vars, key, where(key))
            medium["answer_file"] = str(answer)
            found["answer_file"] = _sha256(answer)
        return found

    def _stage_variables(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        """The stage roles' variables that somebody has set to other values than their defaults."""
        defaults: dict[str, t.Any] = {}
        for stage in STAGES:
            path = COLLECTION / "roles" / stage / "defaults" / "main.yml"
            if path.is_file():
                defaults.update(self._loader.load_from_file(str(path)) or {})
        prefixes = tuple(f"{stage}_" for stage in STAGES)
        return {
            key: self._templated(key, value, str(task_vars["inventory_hostname"]))
            for key, value in sorted(task_vars.items())
            if key.startswith(prefixes) and key not in NOT_RECORDED and not (key in defaults and value == defaults[key])
        }

    def _script(
        self, item: str | dict[str, t.Any], task_vars: dict[str, t.Any], where: str
    ) -> tuple[str | dict[str, t.Any], dict[str, t.Any]]:
        """One of image_scripts with the file's absolute name, and what of it makes another image."""
        given = item if isinstance(item, dict) else {"file": item}
        path = self._file(given["file"], task_vars, "image_scripts", where)
        made_of = {"name": path.name, "sha256": _sha256(path)}
        made_of.update({key: given[key] for key in ("arguments", "environment") if given.get(key)})
        return ({**given, "file": str(path)} if isinstance(item, dict) else str(path)), made_of

    def _files(self, task_vars: dict[str, t.Any], where: str) -> list[dict[str, str]]:
        """Name and digest of each file of the controller's that role applications puts into the image."""
        wanted = self._templated("applications_files", task_vars.get("applications_files") or [], where)
        names = [str(item["src"]) for item in wanted if isinstance(item, dict) and item.get("src")]
        paths = [(name, self._file(name, task_vars, "applications_files", where)) for name in names]
        return [{"name": name, "sha256": _sha256(path)} for name, path in paths]

    def _file(self, name: str, task_vars: dict[str, t.Any], key: str, where: str) -> Path:
        """A file of the user's, looked up beside the inventory and beside the playbook."""
        roots = [task_vars.get("inventory_dir"), task_vars.get("playbook_dir")]
        folders = [Path(root, sub) for root in roots if root for sub in ("", "files")]
        for path in (folder / Path(name).expanduser() for folder in folders):
            if path.is_file():
                return path.resolve()
        looked = "" if name.startswith(("/", "~")) else f" in {', '.join(map(str, folders))}"
        raise FactoryError(f"there is no file {name!r}{looked}", where=where, key=key, mend="correct its name")

    def _role(self, name: str, task_vars: dict[str, t.Any], where: str) -> Path:
        """The directory of a role of the user's."""
        if name.count(".") >= 2 and "/" not in name:
            found = _get_collection_role_path(name)
            if found:
                return Path(found[1])
        roots = [Path(task_vars["playbook_dir"], "roles"), *map(Path, C.config.get_config_value("DEFAULT_ROLES_PATH"))]
        for path in (root / name for root in (*roots, Path(task_vars["playbook_dir"]))):
            if path.is_dir():
                return path
        raise FactoryError(
            f"there is no role {name!r}",
            where=where,
            key="image_roles",
            mend="correct its name, or install it below roles/ beside the playbook",
        )


def _code_of(stages: t.Iterable[str]) -> dict[str, dict[str, str]]:
    """The modules of this collection that stages call, with the digests of their code."""
    return {name: modules_of(COLLECTION / "roles" / name) for name in stages}


def _plain(value: t.Any) -> t.Any:
    """The value without Ansible's tags, dates as texts."""
    return json.loads(json.dumps(value, default=str))


def _sha256(path: Path) -> str:
    return file_digests(path, ["sha256"])["sha256"]
