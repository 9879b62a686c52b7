# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Packer: what a definition can say of a template's qemu builder and of its provisioners."""

from __future__ import annotations

import re
import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils import _import_definition_data
from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_draft import Draft
from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_packer import Template, Unresolved
from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_qemu import REASONS as QEMU
from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_qemu import machine_arguments
from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_secrets import leaves
from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_source import Node

_MEANING = "says what a variable is; its value is filled in"
_RUN = "scripts are run by the factory in its own way; see image_scripts and applications_script_timeout"
REASONS = {
    **QEMU,
    "packer": "is of Packer itself",
    "min_packer_version": "is of Packer itself",
    "post-processor": "images are exported by the factory; see image_formats and image_catalogues",
    "post-processors": "images are exported by the factory; see image_formats and image_catalogues",
    "data": "is asked when Packer runs; write what it gives into the definition",
    "sensitive": _MEANING,
    "sensitive-variables": _MEANING,
    "validation": _MEANING,
    "execute_command": _RUN,
    "expect_disconnect": "a script must not restart the machine; it runs in an image that is not booted, where it can",
    "max_retries": _RUN,
    "pause_before": _RUN,
    "remote_folder": _RUN,
    "remote_path": _RUN,
    "skip_clean": _RUN,
    "start_retry_timeout": _RUN,
    "valid_exit_codes": _RUN,
    "playbook_file": "make a role of it, and name that in image_roles",
    "playbook_files": "make a role of it, and name that in image_roles",
}
_REMOTE = ("ssh_", "winrm_")
_UNITS = {"": 1.0, "K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1048576.0}
_SHEBANG = re.compile(r"/[A-Za-z0-9._/-]+(?: [A-Za-z0-9._ -]+)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Conversion:
    """What of a template goes into a draft."""

    def __init__(self, template: Template, draft: Draft) -> None:
        self.template = template
        self.draft = draft
        self._uses: dict[str, list[Node]] = {}

    def run(self) -> None:
        """Take over what a definition can say."""
        draft, template = self.draft, self.template
        self._learn_secrets()
        for node in template.taken:
            draft.take(node, "how the template is read")
        for node, reason in template.left:
            draft.leave(node, reason)
        self._overridden()
        self._medium()
        self._disk()
        self._machine()
        for root in (*template.roots, *[node for node in template.roots[0].each("build") if not draft.judged(node)]):
            description = root.get("description")
            text = self.text(description) if "image_description" not in draft.values else None
            if text and not draft.secrets.within(text):
                draft.values["image_description"] = text
                draft.take(description, "image_description")
        for kind, node in template.provisioners:
            if kind == "shell":
                self._shell(node)
            elif kind == "file":
                self._file(node)
        self._remote()
        self._name()
        self._variables()

    def value(self, node: Node | None) -> t.Any:
        """A value with all variables filled in; None, and the node is left, where that cannot be."""
        if node is None:
            return None
        names = self.template.names(node.value)
        for name in names:
            self._uses.setdefault(name, []).append(node)
        secret = sorted(name for name in names if name in self._secret)
        if secret:
            self.draft.leave(node, f"is made of a secret, {secret[0]}")
            return None
        try:
            return self.template.resolve(node.value)
        except Unresolved as exc:
            self.draft.leave(node, f"{exc}; write into the definition what it is to be")
            return None

    def text(self, node: Node | None) -> str | None:
        """The same as a text; None, and the node is left, where it is none."""
        value = self.value(node)
        if node is None or value is None:
            return None
        text = Node("", value).text()
        if text is None:
            self.draft.leave(node, "is no text")
        return text

    def setting(self, key: str) -> Node | None:
        """A setting of the builder; what a build says goes before what the source says."""
        found = [node for node in (layer.get(key) for layer in self.template.builder.layers) if node]
        return found[-1] if found else None

    def _learn_secrets(self) -> None:
        """Find the variables that are secrets: by what is said of them, and by where they are used."""
        secrets, variables = self.draft.secrets, self.template.variables
        self._secret = {name for name, variable in variables.items() if variable.secret}
        self._secret |= {name for name in variables if secrets.at(Node("", None, name.rpartition(".")[2]))}
        for root in self.template.roots:
            secrets.learn(root)
            for node in leaves(root):
                if secrets.at(node):
                    self._secret |= self.template.names(node.value) & set(variables)
        # A place is no secret, whoever names it.
        self._secret -= {name for name, variable in variables.items() if variable.node is None and not variable.given}
        for name in self._secret:
            variable = variables[name]
            if variable.node:
                for leaf in leaves(variable.node):
                    secrets.hide(leaf)
            try:
                value = self.template.resolve(variable.value)
            except Unresolved:
                continue
            for leaf in leaves(Node("", value)):
                secrets.add(leaf.text())

    def _overridden(self) -> None:
        layers = self.template.builder.layers
        for number, layer in enumerate(layers):
            for node in layer.children():
                if any(later.get(node.key) for later in layers[number + 1 :]):
                    self.draft.leave(node, "the build says otherwise")

    def _medium(self) -> None:
        draft = self.draft
        image = self.setting("disk_image")
        is_disk = self.text(image) == "true"
        key = "image_source_disk" if is_disk else "image_medium"
        if is_disk:
            draft.take(image, key)
        first = self.setting("iso_url")
        places = [first] if first else []
        several = self.setting("iso_urls")
        places += several.each() if several else []
        found = None
        for node in places:
            text = self.text(node)
            if found:
                draft.leave(node, "is another place of the same medium")
            elif text and draft.medium(node, text, key):
                found = (node, text)
        for name in ("iso_checksum", "iso_checksum_url"):
            told = self.setting(name)
            text = self.text(told)
            kind = self.setting("iso_checksum_type")
            algorithm = self.text(kind) if kind and name == "iso_checksum" else ""
            if told and text and not draft.values.get(key, {}).get("checksum"):
                draft.checksum(told, text, algorithm or "", key)
                if draft.taken(told.path):
                    draft.take(kind, f"{key}.checksum")
        if found:
            node, text = found
            official = _import_definition_data.medium(text)
            if official:
                draft.operating_system(official.system.distribution, official.system.version, node)
                if official.arch:
                    draft.architecture(None, official.arch)

    def _disk(self) -> None:
        size = self.setting("disk_size")
        text = self.text(size)
        found = re.fullmatch(r"(\d{1,9})\s*([KMGT]?)(?:B|iB)?", text or "", re.IGNORECASE)
        if found:
            self.draft.disk_size(size, int(found[1]) * _UNITS[found[2].upper()])
        elif text:
            self.draft.leave(size, "is no size of a disk; set image_disk.size")
        chosen = self.setting("format")
        text = self.text(chosen)
        if text in ("qcow2", "raw"):
            self.draft.values["image_formats"] = [text]
            self.draft.take(chosen, "image_formats")
        elif text:
            self.draft.leave(chosen, "is no format of Packer's qemu builder; set image_formats")

    def _machine(self) -> None:
        draft = self.draft
        for key, target in (("memory", "memory_mib"), ("cpus", "cpus")):
            node = self.setting(key)
            text = self.text(node)
            if text:
                draft.machine(node, target, text)
        efi = self.setting("efi_boot")
        text = self.text(efi)
        if text in ("true", "false"):
            draft.values.setdefault("image_machine", {})["firmware"] = "uefi" if text == "true" else "bios"
            draft.take(efi, "image_machine.firmware")
        elif text:
            draft.leave(efi, "is neither true nor false")
        binary = self.setting("qemu_binary")
        found = re.fullmatch(r"(?:.*/)?qemu-system-(\w+)", self.text(binary) or "")
        if found:
            draft.architecture(binary, found[1])
        rows = self.setting("qemuargs")
        if rows and isinstance(rows.value, list):
            machine_arguments(rows.children(), draft, self.text)

    def _environment(self, node: Node) -> tuple[list[Node], dict[str, str] | None]:
        """The environment of a script, and where it stands; None where it cannot be known."""
        nodes: list[Node] = []
        found: dict[str, str] = {}
        pairs = [(item, None) for item in node.each("environment_vars")]
        named = node.get("env") or node.get("environment")
        rows = [*pairs, *[(item, item.key) for item in (named.children() if named else [])]]
        for item, name in rows:
            text = self.text(item)
            nodes.append(item)
            key, equals, value = (text or "").partition("=") if name is None else (name, "=", text or "")
            held = self.draft.secrets.at(Node("", None, key)) or self.draft.secrets.within(text or "")
            if text is None or not equals or not _VARIABLE.fullmatch(key) or held:
                if held:
                    self.draft.secrets.hide(item)
                    self.draft.secrets.add(value)
                return nodes, None
            found[key] = value
        return nodes, found

    def _shell(self, node: Node) -> None:
        """A provisioner «shell»: commands, or files beside the template."""
        draft = self.draft
        around, environment = self._environment(node)
        inline = node.each("inline")
        lines = [self.text(item) for item in inline]
        files = [*node.each("script"), *node.each("scripts")]
        names = [self.text(item) for item in files]
        shebang = node.get("inline_shebang")
        interpreter = self.text(shebang) if shebang else "/bin/sh -e"
        if environment is None:
            for item in (*around, *inline, *files):
                draft.leave(
                    item, "is a script whose environment is not known or has a secret; add it to image_scripts yourself"
                )
            return
        more = {"environment": environment} if environment else {}
        before = len(draft.scripts)
        if inline:
            if None in lines or not _SHEBANG.fullmatch(interpreter or ""):
                for item in (*inline, *([shebang] if shebang else [])):
                    draft.leave(item, "is a script not all of which is known; add it to image_scripts yourself")
            else:
                text = "\n".join([f"#!{interpreter}", *[line or "" for line in lines]])
                draft.script([*inline, *([shebang] if shebang else [])], "shell", text, **more)
        for item, name in zip(files, names):
            if name:
                draft.script_of([item], name, **more)
        for item in around:
            if len(draft.scripts) > before:
                draft.take(item, "image_scripts")
            else:
                draft.leave(item, "is the environment of a script that is not taken over")

    def _file(self, node: Node) -> None:
        """A provisioner «file»: one or several files beside the template."""
        draft = self.draft
        source, content, target = node.get("source"), node.get("content"), node.get("destination")
        direction = node.get("direction")
        dest = self.text(target)
        several = node.each("sources")
        if (direction and self.text(direction) != "upload") or several or dest is None or target is None:
            return
        if content:
            text = self.text(content)
            if text is not None:
                draft.file([content, target], dest, content=text)
        elif source:
            src = self.text(source)
            if src:
                name = f"{dest}{src.rpartition('/')[2]}" if dest.endswith("/") else dest
                draft.file([source, target], name, src=src)
        if direction and draft.taken(target.path):
            draft.take(direction, "applications_files")

    def _remote(self) -> None:
        """Whatever is about reaching the guest, and what of each provisioner is not told by its own."""
        for layer in self.template.builder.layers:
            for node in layer.children():
                if node.key.startswith(_REMOTE) and not self.draft.secrets.at(node):
                    self.draft.leave(node, "the guest is reached as image_connection says, without a password")
        for kind, node in self.template.provisioners:
            if kind not in ("shell", "file"):
                for child in node.children():
                    if child.key not in REASONS and not self.draft.secrets.at(child):
                        reason = f"there is no provisioner of the type {kind}; see image_roles and image_scripts"
                        self.draft.leave(child, reason)

    def _name(self) -> None:
        draft, builder = self.draft, self.template.builder
        vm_name = self.setting("vm_name")
        name = builder.name if builder.name != "qemu" else ""
        if not name and vm_name:
            text = re.sub(r"\.(qcow2|raw|img)$", "", self.text(vm_name) or "")
            if text and not draft.secrets.within(text):
                name = text
                draft.take(vm_name, "the name of the image")
        system = draft.system
        draft.name = name or (f"{system.distribution}-{system.version}" if system else "")

    def _variables(self) -> None:
        """Say of each variable whether what it stands for is in the definition."""
        draft = self.draft
        declared = self.template.roots[0].get("variable")
        for block in declared.children() if declared else []:
            for key in ("type", "description"):
                draft.leave(block.get(key), _MEANING)
        for name, variable in self.template.variables.items():
            users = [user for user in self._uses.get(name, []) if draft.taken(user.path)]
            node = variable.node
            if node is None or name in self._secret:
                continue
            if variable.given:
                draft.leave(node, "the option variables says otherwise")
            elif users:
                draft.take(node, f"what uses it: {users[0].path}")
            elif self._uses.get(name):
                draft.leave(node, "is used only in what is not taken over")
            else:
                draft.leave(node, "nothing that is taken over uses it")
