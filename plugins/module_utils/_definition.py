# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The image definition: whether the ``image_*`` variables of a host make sense, and what of them makes a new image.

Which keys there are, of which type and with which default, stands in the entry point ``image`` of
roles/definition/meta/argument_specs.yml. Here is what such a specification cannot say.
"""

from __future__ import annotations

import datetime
import difflib
import re
import time
import typing as t

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.errors import ArgumentValueError

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _formats
from ansible_collections.cloudimg.factory.plugins.module_utils._definition_installer import (
    PACKAGE,
    check_installer,
    check_medium,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import data_digest
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._source_disk import SourceDisk, check_source
from ansible_collections.cloudimg.factory.plugins.module_utils._state import check_image_name, check_version

Spec = t.Mapping[str, t.Mapping[str, t.Any]]
Locate = t.Callable[[t.Sequence[str]], t.Optional[str]]
"""Tells the file (and line) in which a key stands, given as («image_disk», «size»)."""

NOT_CONTENT = frozenset(
    f"image_{name}"
    for name in (
        "version",
        "workspace",
        "builder",
        "connection",
        "keep_on_failure",
        "timeouts",
        "scripts",
        "cache_max",
        "keep",
    )
)
"""What makes no other image. (Scripts do, but by their content, not by their names.)"""

DURING_BUILD = ("applications_proxy", "applications_no_proxy", "applications_mirrors")
"""Variables of stages that leave nothing in the image, and may name what should stand in no record."""

_SIZE = re.compile(r"([1-9]\d*)([MGT])(?:iB)?")
_UNITS = {"M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NAMED = {"int": "a whole number", "bool": "true or false", "list": "a list", "dict": "a mapping", "str": "a text"}


_BEGINNINGS = ("image_medium", "image_source_disk", "image_parent")
"""What the disk of an image can begin with."""

_INHERITED = ("image_os", "image_disk", "image_machine")


def parse_size(text: str) -> int:
    """The bytes of a size such as C(8G) or C(512M); raises ValueError."""
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{text!r} is no size")
    return int(found[1]) * _UNITS[found[2]]


def nearest(word: str, known: t.Iterable[str]) -> str:
    """A phrase that tells what ``word`` was meant to be."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(names)}"


def validate(
    name: str,
    values: t.Mapping[str, t.Any],
    spec: Spec,
    locate: Locate,
    inventory: str,
    parent: t.Mapping[str, t.Any] | None = None,
) -> dict[str, t.Any]:
    """The definition of the image ``name``: checked, with all defaults, JSON-able.

    :param values: the ``image_*`` variables, templated.
    :param spec: the options that there are, as in argument_specs.
    :param inventory: where the image's name stands.
    :param parent: the definition of the image that C(image_parent) names, where it names one.
    :raises FactoryError: something is wrong; it names the first place.
    """
    check_image_name(name, inventory)
    checker = Checker(locate)
    definition = checker.mapping((), {**values, **_inherited(values, parent)}, spec)
    definition["image_title"] = definition["image_title"] or name
    definition["image_version"] = definition["image_version"] or time.strftime("%Y%m%d%H%M", time.gmtime())
    _check_rules(definition, checker)
    _check_beginning(definition, parent, checker)
    _check_parent(definition, parent, checker)
    return definition


def _inherited(values: t.Mapping[str, t.Any], parent: t.Mapping[str, t.Any] | None) -> dict[str, t.Any]:
    """What an image that does not say it takes from its parent."""
    found = {}
    for key in _INHERITED if parent else ():
        value, above = values.get(key), (parent or {})[key]
        if key == "image_disk":
            above = {"size": above["size"]}
        if value is None:
            found[key] = above
        elif isinstance(value, dict) and key != "image_os":
            found[key] = {**above, **{name: given for name, given in value.items() if given is not None}}
    return found


def content(definition: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The part of a definition that makes another image (or another descriptor) when it changes."""
    return {key: value for key, value in definition.items() if key not in NOT_CONTENT}


def digest(definition: t.Mapping[str, t.Any], inputs: t.Mapping[str, t.Any]) -> str:
    """The digest of a build: of the definition's content and of everything else that goes into the image."""
    return data_digest({"definition": without_names(content(definition), inputs), "inputs": inputs})


def without_names(definition: dict[str, t.Any], inputs: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The definition without the name of a file that is among the inputs, by its content."""
    medium = definition["image_medium"]
    if inputs.get("answer_file") and medium:
        return {**definition, "image_medium": {k: v for k, v in medium.items() if k != "answer_file"}}
    return definition


class Checker:
    """Compares values with their specification, and raises errors that tell where the value stands."""

    def __init__(self, locate: Locate) -> None:
        self._locate = locate

    def refuse(self, path: t.Sequence[str], problem: str, mend: str) -> t.NoReturn:
        raise FactoryError(problem, where=self._locate(path), key=".".join(path), mend=mend)

    def mapping(self, path: tuple[str, ...], values: t.Mapping[str, t.Any], spec: Spec) -> dict[str, t.Any]:
        """All the values of one level, with defaults."""
        for key in values:
            if key not in spec:
                what = f"{path[-1]} has no such key" if path else "is not a key of an image definition"
                self.refuse((*path, str(key)), what, nearest(str(key), spec))
        return {key: self.value((*path, key), values.get(key), option) for key, option in spec.items()}

    def value(self, path: tuple[str, ...], value: t.Any, option: t.Mapping[str, t.Any]) -> t.Any:
        """One value, converted to its type, or its default."""
        if value is None:
            if option.get("required"):
                self.refuse(path, "is missing", "set it")
            value = option.get("default")
            if value is None:
                return None
        kind = option.get("type", "str")
        if kind == "str":
            self.text(path, value)
        for item in value if isinstance(value, list) and option.get("elements") == "str" else ():
            self.text(path, item)
        leaf = {name: option[name] for name in ("type", "elements", "choices") if name in option}
        checked = ArgumentSpecValidator({path[-1]: leaf}).validate({path[-1]: value})
        for error in checked.errors.errors:
            if isinstance(error, ArgumentValueError):
                known = option["choices"]
                wrong = [str(item) for item in (value if isinstance(value, list) else [value]) if item not in known]
                self.refuse(path, f"{', '.join(wrong)!r} is not known", f"use one of: {', '.join(map(str, known))}")
            self.refuse(path, f"{value!r} is not {_NAMED.get(kind, kind)}", f"make it {_NAMED.get(kind, kind)}")
        converted = checked.validated_parameters[path[-1]]
        return self.mapping(path, converted, option["options"]) if option.get("options") else converted

    def text(self, path: tuple[str, ...], value: t.Any) -> None:
        """Refuse what is no text."""
        # Ansible would turn anything into a text: 12.10 into «12.1», yes into «True», a list into its Python form.
        if isinstance(value, (bool, float)):
            self.refuse(path, f"{value!r} is not a text", "put it in quotes")
        if not isinstance(value, (str, int)):
            self.refuse(path, f"{value!r} is not a text", "make it a text")


def _check_rules(definition: dict[str, t.Any], checker: Checker) -> None:
    """What goes beyond types; puts sizes in bytes beside the original."""
    try:
        check_version(definition["image_version"])
    except FactoryError as exc:
        checker.refuse(("image_version",), exc.problem, exc.mend or "")

    disk = definition["image_disk"]
    try:
        disk["size_bytes"] = parse_size(disk["size"])
    except ValueError as exc:
        checker.refuse(("image_disk", "size"), str(exc), "give a number with M, G or T, such as 8G")

    if definition["image_cache_max"] is not None:
        try:
            parse_size(definition["image_cache_max"])
        except ValueError as exc:
            checker.refuse(("image_cache_max",), str(exc), "give a number with M, G or T, such as 50G")
        definition["image_cache_max"] = definition["image_cache_max"].strip().removesuffix("iB")

    _check_expiry(definition["image_expires"], checker)
    if definition["image_medium"]:
        check_medium(definition["image_medium"], checker.refuse)
    check_installer(definition, checker.refuse)
    if definition["image_source_disk"]:
        check_source(
            SourceDisk.load(definition["image_source_disk"]),
            lambda path, problem, mend: checker.refuse(("image_source_disk", *path), problem, mend),
        )
    definition["image_scripts"] = [_script(item, checker) for item in definition["image_scripts"]]

    for package in definition["image_packages"]:
        if not PACKAGE.fullmatch(package):
            checker.refuse(("image_packages",), f"{package!r} cannot be the name of a package", "correct it")
    for key in ("memory_mib", "cpus"):
        if definition["image_machine"][key] < 1:
            checker.refuse(("image_machine", key), "is less than 1", "give a larger number")
    for key, seconds in definition["image_timeouts"].items():
        if seconds < 1:
            checker.refuse(("image_timeouts", key), "is less than 1", "give a number of seconds")
    if definition["image_keep"] is not None and definition["image_keep"] < 1:
        checker.refuse(
            ("image_keep",), "is less than 1", "keep at least the newest version, or leave it out to keep all"
        )
    definition["image_catalogues"] = list(dict.fromkeys(definition["image_catalogues"]))
    chosen = definition["image_formats"] = formats(definition["image_formats"], checker, "image_formats")
    if not any((entry if isinstance(entry, str) else entry["format"]) in _formats.BOOTABLE for entry in chosen):
        known = ", ".join(_formats.BOOTABLE)
        checker.refuse(("image_formats",), "has none that can be booted and assessed", f"add one of: {known}")
    if not definition["image_workspace"].startswith(("/", "~")):
        checker.refuse(("image_workspace",), "is not an absolute path", "let it begin with / or ~")
    if "\n" in definition["image_title"].strip():
        checker.refuse(("image_title",), "has more than one line", "put the rest into image_description")


def _check_beginning(definition: dict[str, t.Any], parent: t.Mapping[str, t.Any] | None, checker: Checker) -> None:
    """Whether an image begins with exactly one of a medium, an existing disk, and a parent."""
    given = [key for key in _BEGINNINGS if definition[key] or (key == "image_parent" and parent is not None)]
    if not given and definition["image_os"]:
        checker.refuse(("image_medium",), "is missing", "set it, or image_source_disk, or image_parent")
    if len(given) > 1:
        mend = f"remove one of them ({given[0]}: null undoes what a group says)"
        checker.refuse((given[0],), f"is given, and {given[1]} too", mend)


def _check_parent(definition: dict[str, t.Any], parent: t.Mapping[str, t.Any] | None, checker: Checker) -> None:
    """Whether an image is such as can stand on its parent, where it has one."""
    named = definition["image_parent"]
    if parent is None:
        if not definition["image_os"]:
            checker.refuse(("image_os",), "is missing", "set it")
        return
    for key, value in parent["image_os"].items():
        if definition["image_os"][key] != value:
            problem = f"is {definition['image_os'][key]}, but that of its parent {named} is {value}"
            checker.refuse(("image_os", key), problem, "remove image_os, which then is that of the parent")
    for key in ("image_builder", "image_workspace"):
        if definition[key] != parent[key]:
            problem = f"is {definition[key]}, but that of its parent {named} is {parent[key]}"
            checker.refuse((key,), problem, "set both to the same, for the disk of the parent is needed there")
    if definition["image_disk"]["size_bytes"] < parent["image_disk"]["size_bytes"]:
        problem = (
            f"{definition['image_disk']['size']} is less than its parent {named} has, {parent['image_disk']['size']}"
        )
        checker.refuse(("image_disk", "size"), problem, "give the same or more, or remove it")


_SCRIPT: Spec = {
    "file": {"type": "str", "required": True},
    "arguments": {"type": "list", "elements": "str", "default": []},
    "environment": {"type": "dict", "default": {}},
    "timeout": {"type": "int"},
}


def _script(given: t.Any, checker: Checker) -> str | dict[str, t.Any]:
    """One of C(image_scripts): a file's name, or a mapping with all its keys."""
    if not isinstance(given, dict):
        checker.text(("image_scripts",), given)
        return str(given)
    # There is no place in the specification for what may be a text or a mapping.
    script = checker.mapping(("image_scripts",), given, _SCRIPT)
    if script["timeout"] is not None and script["timeout"] < 1:
        checker.refuse(("image_scripts", "timeout"), "is less than 1", "give a number of seconds")
    for name, value in script["environment"].items():
        if not _VARIABLE.fullmatch(str(name)):
            checker.refuse(("image_scripts", "environment"), f"{name!r} cannot be a variable's name", "correct it")
        checker.text(("image_scripts", "environment", str(name)), value)
    script["environment"] = {name: str(value) for name, value in script["environment"].items()}
    return script


def formats(given: t.Sequence[t.Any], checker: Checker, key: str) -> list[str | dict[str, t.Any]]:
    """The formats to export to, checked: names, and mappings where there are options."""
    found: list[str | dict[str, t.Any]] = []
    names: set[str] = set()
    for entry in given:
        where = (key,)
        row = dict(entry) if isinstance(entry, dict) else {"format": entry}
        if "format" not in row:
            checker.refuse((*where, "format"), "is missing", "name one")
        checker.text(where, row["format"])
        if row["format"] not in _formats.SPECS:
            checker.refuse(where, f"{row['format']!r} is not known", f"use one of: {', '.join(_formats.NAMES)}")

        def refuse(below: t.Sequence[str], problem: str, mend: str) -> t.NoReturn:
            checker.refuse((key, *below), problem, mend)

        row = checker.mapping(where, row, _formats.SPECS[row["format"]])
        made = _formats.check(row, refuse)
        if made in found:
            continue
        name = _formats.file_name("", made)
        if name in names:
            checker.refuse(where, f"{row['format']} is there twice", "give one of them a label")
        names.add(name)
        found.append(made)
    if not found:
        checker.refuse((key,), "is empty", "name at least one, such as qcow2")
    return found


def _check_expiry(text: str, checker: Checker) -> None:
    mend = "give a number with h, d, w or y, such as 180d, or a date such as 2031-12-31"
    if _DATE.fullmatch(text):
        try:
            day = datetime.date.fromisoformat(text)
        except ValueError:
            checker.refuse(("image_expires",), f"{text!r} is no date", mend)
        if day <= datetime.datetime.now(datetime.timezone.utc).date():
            checker.refuse(("image_expires",), f"{text} is over", "give a later date")
        return
    try:
        _descriptor.expiry(_descriptor.now(), text)
    except FactoryError as exc:
        checker.refuse(("image_expires",), exc.problem, mend)
