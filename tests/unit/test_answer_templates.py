# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""No value breaks out of an answer file, also where the check of the definition would let it pass.

The templates are rendered by Ansible, and what they have written is read again.
"""

from __future__ import annotations

import json
import re
import typing as t
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from hypothesis import given, settings
from hypothesis import strategies as st

ROLES = Path(__file__).resolve().parents[2] / "roles"
TEMPLATES = ROLES / "base_vm/templates"
VALUES = ["locale", "keyboard", "timezone", "hostname", "domain", "proxy", "mirror", "filesystem"]
YAST = "{http://www.suse.com/1.0/yast2ns}"
WINDOWS = "{urn:schemas-microsoft-com:unattend}"
# What the languages of the answer files mean something by; no line break, which nothing but answer_extra may have.
HOSTILE = st.text(st.sampled_from("aZ0 .-_/'\"`$;&<>{}[]#:,|!%*\\()=?@~é\u2028"), min_size=1, max_size=20)


def knowledge(family: str, distribution: str, version: str) -> dict[str, t.Any]:
    """What roles/media/vars tells the templates of a family."""
    known = yaml.safe_load((ROLES / f"media/vars/{family}.yml").read_text("utf-8"))["__media_family"]
    found: dict[str, t.Any] = known["answers"]
    more = known.get("releases", {}).get(distribution, {}).get(version, {})
    return {**found, **more.get("answers", {})}


def render(template: str, **changes: t.Any) -> str:
    """The answer file of a template; ``changes`` are of what all templates see."""
    family = template.partition("/")[0]
    distribution, version = {
        "autoinstall": ("ubuntu", "26"),
        "autoyast": ("opensuse-leap", "15"),
        "agama": ("opensuse-leap", "16"),
        "autounattend": ("windows", "2022"),
    }[family]
    known = knowledge(family, distribution, version)
    answers = {
        "os": {"distribution": distribution, "version": version, "arch": "x86_64"},
        "locale": "en_US.UTF-8",
        "keyboard": "us",
        "timezone": "Etc/UTC",
        "hostname": "localhost",
        "domain": "localdomain",
        "proxy": "",
        "mirror": "",
        "console": "ttyS0",
        "packages": known.get("packages", []),
        "filesystem": "ext4",
        "disk": "/dev/vda",
        "firmware": "bios",
        "extra": "",
        "family": known,
        **changes,
    }
    answers.setdefault("language", answers["locale"].split(".")[0])
    text = trust_as_template((TEMPLATES / template).read_text("utf-8"))
    return str(Templar(loader=DataLoader(), variables={"answers": answers}).template(text))


def leaves(value: t.Any) -> t.Iterator[t.Any]:
    """All that is in a document of mappings and lists, but for the keys."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from leaves(inner)
    else:
        yield value


def shape(value: t.Any) -> t.Any:
    """A document without its texts: what a value that breaks out would change."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    return [shape(inner) for inner in value] if isinstance(value, list) else type(value).__name__


def elements(root: ElementTree.Element) -> list[tuple[str, list[tuple[str, str]]]]:
    """The elements of a document with their attributes, in their order, without their texts."""
    return [(element.tag, sorted(element.items())) for element in root.iter()]


@settings(max_examples=15, deadline=None)
@given(key=st.sampled_from(VALUES), value=HOSTILE)
@pytest.mark.parametrize(
    ("template", "read"), [("autoinstall/user-data.j2", yaml.safe_load), ("agama/autoinst.json.j2", json.loads)]
)
def test_no_value_breaks_out_of_a_mapping(template: str, read: t.Callable[[str], t.Any], key: str, value: str) -> None:
    plain = {"proxy": "p", "mirror": "m", "locale": "l", key: "plain"}
    right = read(render(template, **plain))
    found = read(render(template, **{**plain, key: value}))
    assert shape(found) == shape(right)
    wanted = [text.replace("plain", value) if isinstance(text, str) else text for text in leaves(right)]
    assert list(leaves(found)) == wanted


@settings(max_examples=15, deadline=None)
@given(package=HOSTILE)
@pytest.mark.parametrize(
    ("template", "read"), [("autoinstall/user-data.j2", yaml.safe_load), ("agama/autoinst.json.j2", json.loads)]
)
def test_no_package_breaks_out_of_a_mapping(template: str, read: t.Callable[[str], t.Any], package: str) -> None:
    found = read(render(template, packages=["a", package, "b"]))
    packages = found["autoinstall"]["packages"] if "autoinstall" in found else found["software"]["packages"]
    assert packages[:3] == ["a", package, "b"]


@settings(max_examples=15, deadline=None)
@given(key=st.sampled_from([*VALUES, "packages", "console"]), value=HOSTILE)
def test_no_value_breaks_out_of_autoyast(key: str, value: str) -> None:
    console = {"console": f"ttyS0{value}"} if key == "console" else {"console": "ttyS0plain"}
    plain = {"proxy": "p", "mirror": "m", **console}
    given_value: t.Any = ["htop", value] if key == "packages" else value
    changed = plain if key == "console" else {**plain, key: given_value}
    usual = {**plain, "console": "ttyS0plain"}
    usual.update({} if key == "console" else {key: ["htop", "plain"] if key == "packages" else "plain"})
    text = "autoyast/autoinst.xml.j2"
    found, right = (ElementTree.fromstring(render(text, **values)) for values in (changed, usual))
    assert elements(found) == elements(right)
    if key == "locale":
        value = value.split(".")[0]
    if key != "console":
        texts = [element.text for element in found.iter()]
        assert [*texts].count(value) >= (1 if value.strip() else 0)


@settings(max_examples=15, deadline=None)
@given(key=st.sampled_from(["locale", "keyboard"]), value=HOSTILE)
@pytest.mark.parametrize("name", ["Autounattend.xml", "sysprep.xml"])
def test_no_value_breaks_out_of_autounattend(name: str, key: str, value: str) -> None:
    template = f"autounattend/{name}.j2"
    found, right = (ElementTree.fromstring(render(template, **{key: text})) for text in (value, "plain"))
    assert elements(found) == elements(right)


@settings(max_examples=15, deadline=None)
@given(key=st.sampled_from(["mirror", "proxy", "packages"]), value=HOSTILE)
def test_no_value_breaks_out_of_the_script_of_autounattend(key: str, value: str) -> None:
    """In PowerShell nothing but the quote itself means anything between single quotes; it is doubled there."""
    text = render("autounattend/cloudimg.ps1.j2", **{key: [value] if key == "packages" else value})
    quoted = "'" + value.replace("'", "''") + "'"
    line = {"mirror": f"$mirror = {quoted}", "proxy": f"$proxy = {quoted}"}
    wanted = line.get(key, f"    Install-WindowsFeature -Name {quoted} | Out-Null")
    assert wanted in text.split("\n")


def test_unknown_names_of_windows_are_told() -> None:
    with pytest.raises(
        Exception,
        match=r"image_installer\.timezone: nothing is known of the name that Mars/Base has in Windows; add it",
    ):
        render("autounattend/Autounattend.xml.j2", timezone="Mars/Base")
    known = knowledge("autounattend", "windows", "2016")
    with pytest.raises(Exception, match=r"image_os: nothing is known of windows 2016; add it to releases"):
        render("autounattend/Autounattend.xml.j2", family=known, os={"distribution": "windows", "version": "2016"})


@pytest.mark.parametrize("family", ["autoinstall", "autoyast", "agama", "autounattend"])
def test_lines_that_mean_something_are_expressions_that_match_no_ordinary_line(family: str) -> None:
    known = yaml.safe_load((ROLES / f"media/vars/{family}.yml").read_text("utf-8"))["__media_family"]
    lines = [*known["failure_lines"], *known["question_lines"]]
    assert lines
    for line in lines:
        for ordinary in ("", "[  OK  ] Started Session 1", "subiquity/Install/install: installing system", "ok\n"):
            assert not re.search(line, ordinary)
