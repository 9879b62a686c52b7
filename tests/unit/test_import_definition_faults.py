# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Descriptions for other tools that are wrong or hostile: one line that names file, key and mend; and writing what is right."""

from __future__ import annotations

import json
import os
import string
import sys
import typing as t
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.cloudimg.factory.plugins.module_utils import _import_definition as importer
from ansible_collections.cloudimg.factory.plugins.module_utils import _import_definition_write as writer
from ansible_collections.cloudimg.factory.plugins.module_utils import _libraries
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_draft import Script

TDL = (
    "<template><name>n</name><os><name>Debian</name><version>12</version><arch>x86_64</arch>{}</os></template>"
    '<!-- <install type="iso"/> -->'
)
BOMB = '<!DOCTYPE template [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><template><name>&b;</name></template>'
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{here}: &{here} [{', '.join([f'*{before}'] * 10)}]\n" for before, here in zip("abcdefgh", "bcdefghi")
)
MERGES = "a: &a {k: v}\n" + "".join(
    f"{here}: &{here} {{<<: [{', '.join([f'*{before}'] * 10)}], k{here}: v}}\n"
    for before, here in zip("abcdefgh", "bcdefghi")
)
QEMU = {"type": "qemu", "iso_url": "https://example.org/debian-12.5.0-amd64-netinst.iso"}


def source(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


def message(path: Path, **options: t.Any) -> str:
    with pytest.raises(FactoryError) as caught:
        importer.load(importer.Request(path, **options))
    line = str(caught.value)
    assert "\n" not in line and len(line) < 700
    return line


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("x.tdl", "<template><name>", "is no XML: no element found"),
        ("x.tdl", "name: yaml", "is no XML"),
        ("x.tdl", "<domain/>", "template: begins with <domain>"),
        ("x.tdl", BOMB, "has a document type (DTD)"),
        ("x.tdl", '<!DOCTYPE template SYSTEM "file:///etc/passwd"><template/>', "has a document type (DTD)"),
        ("x.tdl", "<a>" * 100 + "</a>" * 100, "is nested deeper than 64 elements"),
        ("x.tdl", "<template><os/></template>", "name: does not tell a name for the image; set it"),
        ("x.tdl", "<template><name>€</name></template>", "name: '€' gives no name for an image; set it"),
        ("x.appl", "name: [unclosed", "is no YAML of plain texts, lists and mappings"),
        ("x.appl", "just a text", "is no mapping at its top"),
        ("x.appl", "- a\n- b", "is no mapping at its top"),
        ("x.appl", "name: a\nname: b", "name: stands there twice; remove one of them"),
        ("x.appl", "name: !!python/object/apply:os.system [id]", "is no YAML of plain texts"),
        ("x.appl", "name: !!binary aGk=", "has a value of the kind bytes; make it a text"),
        ("x.appl", "{? [a, b] : c}", "is no YAML of plain texts"),
        ("x.appl", "name: a\n---\nname: b", "is no YAML of plain texts"),
        ("x.appl", LAUGHS, "stands for far more than a description has, by aliases or nesting"),
        ("x.appl", MERGES, "stands for far more than a description has, by aliases or nesting"),
        ("x.appl", "a: &a [*a]", "stands for far more than a description has, by aliases or nesting"),
        ("x.appl", "a: " + "[" * 200 + "]" * 200, "by aliases or nesting"),
        ("x.appl", "a: " + "[" * 20000, "is no YAML"),
        ("x.appl", "name: x\nappliances: [x]", "appliances: stands on itself: x.appl → x.appl; remove one of these"),
        (
            "x.appl",
            "name: x\nappliances: [gone]",
            "appliances: there is no gone.appl beside it; have the appliance 'gone'",
        ),
        ("x.appl", "name: x\nappliances: [../y]", "appliances[0]: '../y' cannot be the name of an appliance"),
        ("x.description", "{", "is no JSON: Expecting property name"),
        ("x.description", "[1]", "is no mapping at its top"),
        ("x.description", '{"name": 1, "name": 2}', "name: stands there twice"),
        ("x.description", '{"a": NaN}', "is no JSON: NaN is no number"),
        ("x.description", '{"a": "\\ud800"}', "has half a character"),
        ("x.description", "[" * 100000, "is no JSON"),
        ("x.description", '{"a": ' + "[" * 100 + "]" * 100 + "}", "holds far more than a description has"),
        ("x.description", '{"name": "Debian"}', "versions: has no versions; name a distribution descriptor"),
        ("x.json", '{"builders": []}', "builders: has no builder of the type qemu, but none at all"),
        ("x.json", '{"builders": [{"type": "vmware-iso"}]}', "has no builder of the type qemu, but vmware-iso"),
        ("x.json", '{"source": {}, "build": {}}', "is HCL2 in the syntax of JSON; give it in its own syntax"),
        ("x.pkr.hcl", 'source "qemu" "x" {', "is no HCL2 at line 1: Unexpected token"),
        ("x.pkr.hcl", "a = {", "is no HCL2"),
        ("x.pkr.hcl", "a = " + "[" * 3000 + "]" * 3000, "is no HCL2: maximum recursion depth"),
        ("x.pkr.hcl", 'source "qemu" "x" {\n a = 1\n a = 2\n}', "a: stands there twice"),
        ("x.pkr.hcl", 'source "qemu" "x" {\n}\nsource "qemu" "x" {\n}', "source.qemu.x: stands there twice"),
        ("x.pkr.hcl", 'build {\n sources = ["source.qemu.x"]\n}', "has no builder of the type qemu, but none at all"),
        ("x.pkr.hcl", "#" * 300_000, "is larger than 256 KiB; name the description itself"),
        ("x.xml", "<template/>", "kind: does not tell by its name what kind of description it is (.tdl, .appl"),
        ("x.tdl", "", "is empty; name the file of the description"),
        ("x.tdl", " \n\t", "is empty; name the file of the description"),
        ("x.tdl", b"\x7fELF\0\0\0\0", "is binary, or no UTF-8"),
        ("x.appl", b"name: \xff\xfe", "is no UTF-8"),
        ("x.json", b"\xff{}", "is no UTF-8"),
    ],
)
def test_bad_input_is_told_in_one_line(tmp_path: Path, name: str, content: str | bytes, told: str) -> None:
    path = source(tmp_path, name, content)
    line = message(path)
    assert told in line
    assert line.startswith(f"{tmp_path}/{name}: ")
    assert "; " in line


def test_a_file_that_is_not_there_or_cannot_be_one(tmp_path: Path) -> None:
    assert message(tmp_path / "gone.tdl") == f"{tmp_path}/gone.tdl: src: is not there; correct the path"
    (tmp_path / "folder.tdl").mkdir()
    assert "is no file" in message(tmp_path / "folder.tdl", kind="oz")
    assert "has no *.pkr.hcl" in message(tmp_path / "folder.tdl")
    os.mkfifo(tmp_path / "pipe.tdl")
    assert "is no file" in message(tmp_path / "pipe.tdl")


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    for name in ("x.tdl", "x.json", "x.appl", "x.pkr.hcl"):
        path = source(tmp_path, name, "")
        os.truncate(path, 100 << 20)
        assert "is larger than" in message(path)


def test_a_loop_of_appliances_is_named(tmp_path: Path) -> None:
    for name, above in (("a", "b"), ("b", "c"), ("c", "a")):
        source(tmp_path, f"{name}.appl", f"name: {name}\nappliances: [{above}]\n")
    assert message(tmp_path / "a.appl") == (
        f"{tmp_path}/c.appl: appliances: stands on itself: a.appl → b.appl → c.appl → a.appl; remove one of these"
    )


def test_very_many_appliances_are_refused(tmp_path: Path) -> None:
    for number in range(60):
        source(tmp_path, f"a{number}.appl", f"name: a{number}\nappliances: [a{number + 1}]\n")
    assert "stands on more than 50 others" in message(tmp_path / "a0.appl")


def test_an_appliance_that_two_stand_on_is_there_once(tmp_path: Path) -> None:
    source(tmp_path, "base.appl", "name: base\nos: {name: fedora, version: 6.10}\npackages: [bash]\n")
    for name in ("left", "right"):
        source(tmp_path, f"{name}.appl", f"name: {name}\nappliances: [base]\npackages: [{name}]\n")
    path = source(tmp_path, "top.appl", "name: top\nappliances: [left, right]\nos: {name: centos, version: 7}\n")
    found = importer.load(importer.Request(path))
    assert found.definition["image_packages"] == ["bash", "left", "right"]
    assert found.definition["image_os"] == {"distribution": "centos", "version": "7"}


def test_several_builders_are_named(tmp_path: Path) -> None:
    builders = [{**QEMU, "name": name} for name in ("one", "two", "two")]
    path = source(tmp_path, "x.json", json.dumps({"builders": builders}))
    assert message(path) == (
        f"{path}: builder: has several builders of the type qemu: one, two, two; set builder to one of them"
    )
    assert "there is no builder 'onne' of the type qemu; did you mean one?" in message(path, builder="onne")
    assert "there are several builders 'two' of the type qemu; give each a name" in message(path, builder="two")
    assert importer.load(importer.Request(path, builder="one")).name == "one"


def test_several_sources_are_named(tmp_path: Path) -> None:
    text = "".join(f'source "qemu" "{name}" {{\n}}\n' for name in ("one", "two"))
    path = source(tmp_path, "x.pkr.hcl", text)
    assert "has several builders of the type qemu: one, two; set builder to one of them" in message(path)
    assert importer.load(importer.Request(path, builder="source.qemu.two")).name == "two"


def test_options_of_other_kinds_are_refused(tmp_path: Path) -> None:
    path = source(tmp_path, "x.tdl", TDL.format(""))
    assert "builder: is for the kind packer, not oz" in message(path, builder="x")
    assert "variables: is for the kind packer, not oz" in message(path, variables={"a": "b"})
    assert "version: is for the kind comfy, not oz" in message(path, version="1")


def test_a_version_or_variable_that_is_not_there(tmp_path: Path) -> None:
    versions = [{"major_version": "8", "minor_version": "4"}, {"major_version": "10", "minor_version": "1"}]
    path = source(tmp_path, "x.description", json.dumps({"name": "Debian", "versions": versions}))
    assert "versions: has no version 1; set version to one of: 8.4, 10.1" in message(path, version="1")
    assert importer.load(importer.Request(path)).name == "debian-10.1"
    path = source(tmp_path, "x.json", json.dumps({"builders": [QEMU], "variables": {"size": ""}}))
    assert "the template has no variable 'sise'; did you mean size?" in message(path, variables={"sise": "1"})


def test_variables_that_stand_for_themselves_or_for_too_much(tmp_path: Path) -> None:
    loop = {"a": "{{user `b`}}", "b": "{{user `a`}}"}
    many = {f"v{n}": f"{{{{user `v{n + 1}`}}}}" * 50 for n in range(12)}
    variables = {**loop, **many, "v12": "x"}
    builder = {**QEMU, "iso_url": "{{user `a`}}", "disk_size": "{{user `v0`}}", "iso_checksum": "{{user `none`}}"}
    path = source(tmp_path, "x.json", json.dumps({"builders": [builder], "variables": variables}))
    found = importer.load(importer.Request(path, name="x"))
    reasons = {row.key: row.reason for row in found.unmapped}
    assert "names a variable that stands for itself" in reasons["builders[0].iso_url"]
    assert "is far too long once its variables are filled in" in reasons["builders[0].disk_size"]
    assert "none is known only when Packer runs" in reasons["builders[0].iso_checksum"]
    assert {"image_medium.url", "image_medium.checksum"} <= set(found.missing)


def test_variables_can_be_given(tmp_path: Path) -> None:
    variables = {"version": None, "checksum": "none"}
    builder = {**QEMU, "iso_url": "https://example.org/debian-{{user `version`}}-amd64-netinst.iso"}
    builder["iso_checksum"] = "{{user `checksum`}}"
    path = source(tmp_path, "x.json", json.dumps({"builders": [builder], "variables": variables}))
    told = {row.key: row.reason for row in importer.load(importer.Request(path, name="x")).unmapped}
    assert "version has no value in the template; give it by variables" in told["builders[0].iso_url"]
    given_values = {"version": "12.5.0", "checksum": "sha256:" + "AB" * 32}
    found = importer.load(importer.Request(path, variables=given_values))
    assert found.name == "debian-12" and not found.missing
    assert found.definition["image_medium"]["checksum"] == "sha256:" + "ab" * 32
    told = {row.key: row.reason for row in found.unmapped}
    assert told["variables.checksum"] == "the option variables says otherwise"


def test_nothing_outside_of_the_description_is_read(tmp_path: Path) -> None:
    outside = source(tmp_path, "outside.sh", "echo outside\n")
    folder = tmp_path / "template"
    folder.mkdir()
    (folder / "link.sh").symlink_to(outside)
    provisioners = [
        {"type": "shell", "scripts": ["../outside.sh", "link.sh", str(outside), "a\0b", "x" * 5000]},
        {"type": "file", "source": "../outside.sh", "destination": "/etc/a"},
        {"type": "file", "source": "link.sh", "destination": "relative/b"},
        {"type": "file", "content": "x", "destination": "/etc/../b"},
    ]
    path = source(folder, "x.json", json.dumps({"builders": [QEMU], "provisioners": provisioners}))
    found = importer.load(importer.Request(path, scripts="files"))
    assert not found.scripts and not found.applications
    assert len([row for row in found.unmapped if row.key.startswith("provisioners")]) == 5 + 3 * 2


@pytest.mark.parametrize(
    "command",
    [
        "echo root:hush | chpasswd",
        "echo hush | passwd --stdin root",
        "useradd -m -p hush someone",
        "useradd someone; usermod -p hush someone",
        "usermod --password hush root",
        "mysql --password=hush",
        "echo hush | sudo -S reboot",
        "curl https://me:hush@example.org/",
        "export API_KEY=hush",
        "printf '%s' '-----BEGIN RSA PRIVATE KEY-----hush'",
        "echo 'root:$6$hush$abc' >> x\nroot:$6$hush$abc:1:",
    ],
)
def test_commands_with_secrets_are_not_taken_over(tmp_path: Path, command: str) -> None:
    path = source(tmp_path, "x.appl", yaml.safe_dump({"name": "x", "post": {"base": [command]}}))
    found = importer.load(importer.Request(path, scripts="files"))
    assert not found.scripts and "hush" not in repr(found)
    assert [row.key for row in found.unmapped] == ["post.base[0]"]


def test_commands_that_look_like_it_are_taken_over(tmp_path: Path) -> None:
    commands = [
        "useradd web && mkdir -p /srv/web",
        "sudo -u web true",
        "passwd -l root",
        "sed -i s/passwd// /etc/nsswitch.conf",
    ]
    path = source(tmp_path, "x.appl", yaml.safe_dump({"name": "x", "post": {"base": commands}}))
    found = importer.load(importer.Request(path, scripts="files"))
    assert [script.text for script in found.scripts] == ["\n".join(["#!/bin/sh", "set -e", *commands, ""])]


def test_secrets_in_the_environment_of_a_script(tmp_path: Path) -> None:
    provisioners = [
        {"type": "shell", "environment_vars": ["A=b", "SITE_TOKEN=hush-hush"], "inline": ["true"]},
        {"type": "shell", "inline": ["join hush-hush"]},
        {"type": "shell", "environment_vars": ["{{user `pw`}}=1"], "inline": ["true"]},
        {"type": "shell", "environment_vars": ["no equals sign"], "script": "x.sh"},
        {"type": "ansible", "extra_arguments": ["-e", "password=hush-hush"]},
    ]
    source(tmp_path, "x.sh", "true\n")
    text = json.dumps({"builders": [QEMU], "provisioners": provisioners, "variables": {"pw": "hush-too"}})
    found = importer.load(importer.Request(source(tmp_path, "x.json", text), scripts="files"))
    assert not found.scripts and "hush" not in repr(found)


def test_a_variable_is_a_secret_by_its_use(tmp_path: Path) -> None:
    variables = {"login": "hush-hush", "word": "{{user `login`}}", "name": "web"}
    builder = {**QEMU, "ssh_password": "{{user `word`}}", "disk_size": "10G", "vm_name": "{{user `login`}}"}
    provisioners = [
        {"type": "shell", "inline": ["x {{user `word`}}"]},
        {"type": "shell", "inline": ["y {{user `name`}}"]},
    ]
    text = json.dumps({"builders": [builder], "variables": variables, "provisioners": provisioners})
    found = importer.load(importer.Request(source(tmp_path, "x.json", text), scripts="files"))
    assert [script.text for script in found.scripts] == ["#!/bin/sh -e\ny web\n"]
    assert "hush" not in repr(found)
    reasons = {row.key: row.reason for row in found.unmapped}
    assert reasons["provisioners[0].inline[0]"].startswith("is made of a secret, ")


def test_what_stands_in_a_reason_is_one_line_without_secrets(tmp_path: Path) -> None:
    lines = {"hardware": {"partitions": {"/": {"size": 1}, "a\nimage_title: b": {"size": 1}}}}
    files = {"/srv\nimage_title: b": ["https://example.org/x"]}
    path = source(tmp_path, "x.appl", yaml.safe_dump({"name": "x", **lines, "files": files}))
    found = importer.load(importer.Request(path))
    assert "\n" not in "".join(row.key + row.value + row.reason for row in found.unmapped)
    assert yaml.safe_load(found.text) == {**found.definition}
    text = 'source "qemu" "x" {\n  iso_url = join("", ["hush", "password=hush"])\n}\n'
    found = importer.load(importer.Request(source(tmp_path, "x.pkr.hcl", text)))
    assert [row.reason for row in found.unmapped] == [
        "it has an expression that is known only when Packer runs; write into the definition what it is to be"
    ]


def test_partitions_can_be_a_list(tmp_path: Path) -> None:
    partitions = [{"root": "/", "size": 10}, {"root": "/srv", "size": 2}]
    path = source(tmp_path, "x.appl", yaml.safe_dump({"name": "x", "hardware": {"partitions": partitions}}))
    found = importer.load(importer.Request(path))
    assert found.definition["image_disk"] == {"size": "12G"}
    assert [row.key for row in found.unmapped] == ["hardware.partitions[1].size"]


def test_files_with_secrets_are_not_taken_over(tmp_path: Path) -> None:
    source(tmp_path, "plain.conf", "listen 80\n")
    source(tmp_path, "id_rsa", "-----BEGIN OPENSSH PRIVATE KEY-----\nhush\n")
    source(tmp_path, "db.conf", "user = web\npassword = hush\n")
    source(tmp_path, "logo.png", b"\x89PNG\0\0")
    names = ["plain.conf", "id_rsa", "db.conf", "logo.png"]
    path = source(tmp_path, "x.appl", yaml.safe_dump({"name": "x", "files": {"/srv/": names}}))
    found = importer.load(importer.Request(path))
    assert [row["dest"] for row in found.applications["applications_files"]] == ["/srv/plain.conf", "/srv/logo.png"]
    assert [(row.key, row.value) for row in found.unmapped] == [
        ('files["/srv/"][1]', "id_rsa"),
        ('files["/srv/"][2]', "db.conf"),
    ]


def test_secrets_in_other_places(tmp_path: Path) -> None:
    install = "<install type='iso'><iso>https://me:hush@example.org/x.iso</iso></install><kernelparam>rootpw=hush</kernelparam>"
    files = (
        "<files><file name='/etc/shadow'>root:$6$hush$x:1::</file>"
        "<file name='/root/x'>password = hush</file></files>"
        "<repositories><repository name='r'><url>https://me:hush@example.org/r</url></repository>"
        "<repository name='s'><url>https://example.org/r?api_key=hush</url></repository></repositories>"
    )
    text = TDL.format(install).replace("</os>", f"</os>{files}")
    found = importer.load(importer.Request(source(tmp_path, "x.tdl", text)))
    assert "hush" not in repr(found)
    assert found.definition["image_medium"] == {"family": "preseed"}
    assert not found.applications
    assert [row.value for row in found.unmapped if row.key.endswith((".iso", ".kernelparam"))] == ["***", "***"]


@pytest.mark.parametrize(
    ("element", "reason"),
    [
        ("<sha1sum>" + "a" * 40 + "</sha1sum>", "SHA-1 is too weak to tell that a file is the right one"),
        ("<md5sum>" + "a" * 32 + "</md5sum>", "MD5 is too weak"),
        ("<md5sum>https://example.org/MD5SUMS</md5sum>", "MD5 is too weak"),
        ("<sha256sum>" + "a" * 40 + "</sha256sum>", "is no SHA-256 or SHA-512 sum"),
        ("<sha256sum>unknown</sha256sum>", "is no SHA-256 or SHA-512 sum"),
    ],
)
def test_sums_that_tell_nothing_are_listed(tmp_path: Path, element: str, reason: str) -> None:
    install = f"<install type='iso'><iso>https://example.org/x.iso</iso>{element}</install>"
    found = importer.load(importer.Request(source(tmp_path, "x.tdl", TDL.format(install))))
    assert "checksum" not in found.definition["image_medium"]
    assert reason in "".join(row.reason for row in found.unmapped)
    assert "image_medium.checksum" in found.missing


def test_a_missing_library_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = source(tmp_path, "x.pkr.hcl", 'source "qemu" "x" {\n}\n')
    monkeypatch.setitem(sys.modules, "hcl2", None)
    line = message(path)
    assert line == (
        f"{sys.executable}: needs the Python library hcl2; install it there by «{sys.executable} -m pip install python-hcl2», "
        "or name a Python that has it by import_definition_python"
    )
    assert set(_libraries.DISTRIBUTIONS) >= {"hcl2", "yaml"}


# Whatever a file holds, there is a result or one line.

WORDS = st.sampled_from(
    """
    name summary os version arch install iso url packages package files file commands command repositories repository disk
    size hardware partitions cpus memory repos baseurl ephemeral post base variables appliances versions major_version iso_url
    iso_checksum qemu qemuargs codename builders type provisioners inline scripts environment_vars only source destination
    content disk_size disk_image iso_urls efi_boot qemu_binary format description template @name @type @position #text
    sensitive-variables execute_command ssh_password key / includes excludes
    """.split()  # noqa: SIM905
)
TEXTS = st.one_of(
    st.sampled_from(
        [
            "qemu",
            "Debian",
            "12",
            "shell",
            "file",
            "{{user `name`}}",
            "{{user `os`}}",
            "#OS_NAME#",
            "a\nb",
            "http://[",
            "/",
        ]
    ),
    st.text(max_size=20),
    st.text(alphabet=string.printable, max_size=20),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.one_of(WORDS, TEXTS), inner, max_size=5)),
    max_leaves=20,
)
TREES = st.dictionaries(WORDS, VALUES, max_size=8)
QUIET = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Loader(yaml.SafeLoader):
    """Knows Ansible's tag."""


Loader.add_constructor("!unsafe", lambda loader, node: loader.construct_scalar(t.cast(yaml.ScalarNode, node)))


def survives(path: Path) -> None:
    try:
        found = importer.load(importer.Request(path, name="x", scripts="files"))
    except FactoryError:
        return
    assert all("\n" not in row.key + row.value + row.reason for row in found.unmapped)

    wanted = {key: value for key, value in found.definition.items() if value not in ({}, [])}
    assert (yaml.load(found.text, Loader=Loader) or {}) == {**wanted, **found.applications}


@QUIET
@given(tree=TREES)
def test_no_comfy_descriptor_makes_a_traceback(tmp_path: Path, tree: dict[str, t.Any]) -> None:
    survives(source(tmp_path, "x.description", json.dumps(tree)))


@QUIET
@given(tree=TREES, builder=TREES)
def test_no_packer_template_makes_a_traceback(
    tmp_path: Path, tree: dict[str, t.Any], builder: dict[str, t.Any]
) -> None:
    survives(source(tmp_path, "x.json", json.dumps({**tree, "builders": [{**builder, "type": "qemu"}]})))


@QUIET
@given(tree=TREES)
def test_no_appliance_makes_a_traceback(tmp_path: Path, tree: dict[str, t.Any]) -> None:
    survives(source(tmp_path, "x.appl", yaml.safe_dump(tree, allow_unicode=True)))


def elements(value: t.Any, name: str) -> str:
    tag = "".join(sign for sign in name if sign.isalnum() and sign.isascii()).lstrip(string.digits) or "x"
    if isinstance(value, dict):
        attributes = "".join(
            f' {key[1:]}="{"".join(sign for sign in str(below) if sign.isalnum())}"'
            for key, below in value.items()
            if key in ("@name", "@type", "@position")
        )
        return f"<{tag}{attributes}>{''.join(elements(below, key) for key, below in value.items() if key[:1] != '@')}</{tag}>"
    if isinstance(value, list):
        return "".join(elements(item, tag) for item in value)
    text = "".join(sign for sign in str(value) if sign.isprintable() and sign not in "<&>")
    return f"<{tag}>{text}</{tag}>"


@QUIET
@given(tree=TREES)
def test_no_tdl_makes_a_traceback(tmp_path: Path, tree: dict[str, t.Any]) -> None:
    survives(source(tmp_path, "x.tdl", elements(tree, "template")))


def hcl(value: t.Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {hcl(below)}" for key, below in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(hcl, value)) + "]"
    return json.dumps(value)


@QUIET
@given(tree=TREES, variables=st.dictionaries(st.sampled_from(["name", "os", "url"]), VALUES))
def test_no_hcl_makes_a_traceback(tmp_path: Path, tree: dict[str, t.Any], variables: dict[str, t.Any]) -> None:
    body = "".join(f"  {key} = {hcl(value)}\n" for key, value in tree.items() if key.isidentifier())
    text = f'source "qemu" "x" {{\n{body}}}\nbuild {{\n  sources = ["source.qemu.x"]\n  provisioner "shell" {{\n{body}}}\n}}\n'
    text += "".join(f'variable "{key}" {{\n  default = {hcl(value)}\n}}\n' for key, value in variables.items())
    survives(source(tmp_path, "x.pkr.hcl", text))


# Writing.


def test_files_are_written_whole_and_once(tmp_path: Path) -> None:
    folder = tmp_path / "files/x"
    scripts = [Script("01-a.sh", "#!/bin/sh\n"), Script("02-b.sh", "#!/bin/sh\nexit 0\n")]
    files = writer.plan(tmp_path, "x", "a: b\n", scripts, folder, force=False)
    assert [file.path.name for file in files] == ["01-a.sh", "02-b.sh", "x.yml"]
    assert not list(tmp_path.iterdir())
    writer.write(files)
    assert (tmp_path / "host_vars/x.yml").read_text(encoding="utf-8") == "a: b\n"
    assert (folder / "02-b.sh").stat().st_mode & 0o777 == 0o755
    again = writer.plan(tmp_path, "x", "a: b\n", scripts, folder, force=False)
    assert not any(file.differs for file in again)
    assert writer.prefix(tmp_path, folder) == "files/x"
    assert writer.prefix(tmp_path / "inventory", folder) == str(folder)


def test_what_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "host_vars").mkdir()
    path = source(tmp_path / "host_vars", "x.yml", "mine: true\n")
    with pytest.raises(FactoryError, match=r"host_vars/x.yml: dest: is there already, and differs; set force: true"):
        writer.plan(tmp_path, "x", "a: b\n", [], None, force=False)
    path.chmod(0o600)
    files = writer.plan(tmp_path, "x", "a: b\n", [], None, force=True)
    assert files[0].mode == 0o600
    assert files[0].diff()["before"] == "mine: true\n" and files[0].diff()["after"] == "a: b\n"
    path.rename(path.with_name("x.yaml"))
    with pytest.raises(FactoryError, match=r"host_vars/x.yaml: name: describes x already, beside x.yml; remove it"):
        writer.plan(tmp_path, "x", "a: b\n", [], None, force=True)
    with pytest.raises(FactoryError, match="gone: dest: is no directory"):
        writer.plan(tmp_path / "gone", "x", "a: b\n", [], None, force=True)


def test_nothing_is_left_of_what_could_not_be_written(tmp_path: Path) -> None:
    source(tmp_path, "host_vars", "a file where a directory should be")
    files = writer.plan(tmp_path, "x", "a: b\n", [Script("01-a.sh", "x\n")], tmp_path / "files", force=False)
    with pytest.raises(FactoryError, match="host_vars"):
        writer.write(files)
    assert not list((tmp_path / "files").iterdir())
