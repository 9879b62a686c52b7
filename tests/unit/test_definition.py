# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an image definition may say, against the real argument specification of the role."""

from __future__ import annotations

import copy
import re
import typing as t
from pathlib import Path

import pytest
import yaml

from ansible_collections.cloudimg.factory.plugins.module_utils import _definition
from ansible_collections.cloudimg.factory.plugins.module_utils._definition_installer import BUILT, WITH_DRIVERS
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

SPECS = Path(__file__).resolve().parents[2] / "roles/definition/meta/argument_specs.yml"
SPEC = yaml.safe_load(SPECS.read_text(encoding="utf-8"))["argument_specs"]["image"]["options"]
GOOD: dict[str, t.Any] = {
    "image_os": {"distribution": "debian", "version": "12"},
    "image_medium": {"family": "fai", "suite": "bookworm"},
}
ISO = {"family": "preseed", "url": "https://example.org/x.iso", "checksum": f"sha256:{'0' * 64}"}


def validate(name: str = "debian-12", **values: t.Any) -> dict[str, t.Any]:
    given = copy.deepcopy({**GOOD, **{f"image_{key}": value for key, value in values.items()}})
    return _definition.validate(name, given, SPEC, lambda path: f"host_vars/x.yml:{len(path)}", "hosts.yml")


def test_least_definition_gets_all_defaults() -> None:
    found = validate()
    assert set(found) == set(SPEC)
    assert found["image_title"] == "debian-12"
    assert re.fullmatch(r"20\d{10}", found["image_version"])
    assert found["image_os"] == {"distribution": "debian", "version": "12", "arch": "x86_64"}
    assert found["image_disk"] == {"size": "8G", "size_bytes": 8 << 30}
    assert found["image_machine"] == {"memory_mib": 2048, "cpus": 2, "firmware": "bios"}
    assert found["image_timeouts"] == {"install": 7200, "inactivity": 600, "assess": 1800}
    assert found["image_formats"] == ["qcow2"]
    assert found["image_medium"]["family"] == "fai"
    assert found["image_medium"]["url"] is None


def test_values_are_converted() -> None:
    found = validate(os={"distribution": "debian", "version": 12}, machine={"cpus": "4"}, version=7)
    assert found["image_os"]["version"] == "12"
    assert found["image_machine"]["cpus"] == 4
    assert found["image_version"] == "7"


def test_nothing_means_the_default() -> None:
    assert validate(packages=None, disk=None)["image_disk"]["size"] == "8G"


def test_formats_are_names_where_there_are_no_options() -> None:
    given = ["ova", {"format": "raw"}, "ova", {"format": "qcow2", "compression": "zlib", "label": "compat"}, "qcow2"]
    assert validate(formats=given)["image_formats"] == ["ova", "raw", given[3], "qcow2"]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"titel": "x"}, "host_vars/x.yml:1: image_titel: is not a key of an image definition; "
         "did you mean image_title?"),
        ({"disk": {"sise": "8G"}}, "x.yml:2: image_disk.sise: image_disk has no such key; did you mean size?"),
        ({"disk": {"xyz": "8G"}}, "host_vars/x.yml:2: image_disk.xyz: image_disk has no such key; known are size"),
        ({"disk": {"size": "8"}}, "host_vars/x.yml:2: image_disk.size: '8' is no size; "
         "give a number with M, G or T, such as 8G"),
        ({"disk": {"size": "0G"}}, "'0G' is no size"),
        ({"disk": {"size": "-1G"}}, "'-1G' is no size"),
        ({"disk": {"size": "8 GB"}}, "'8 GB' is no size"),
        ({"disk": "8G"}, "host_vars/x.yml:1: image_disk: '8G' is not a mapping; make it a mapping"),
        ({"os": None}, "image_os: is missing; set it"),
        ({"os": {"distribution": "debian"}}, "host_vars/x.yml:2: image_os.version: is missing; set it"),
        ({"os": {"distribution": "debian", "version": 12.10}}, "12.1 is not a text; put it in quotes"),
        ({"os": {"distribution": "debian", "version": "12", "arch": "sparc"}},
         "image_os.arch: 'sparc' is not known; use one of: x86_64"),
        ({"title": ["a"]}, "image_title: ['a'] is not a text; make it a text"),
        ({"title": True}, "image_title: True is not a text; put it in quotes"),
        ({"title": "a\nb"}, "image_title: has more than one line; put the rest into image_description"),
        ({"formats": ["qcow2", "floppy"]},
         "image_formats: 'floppy' is not known; use one of: qcow2, raw, raw.gz, raw.xz, raw.zst, vmdk, vdi, vhd, vhdx, ova, box"),
        ({"formats": [["ova"]]}, "image_formats: ['ova'] is not a text; make it a text"),
        ({"formats": [{"ovf": "1.0"}]}, "image_formats.format: is missing; name one"),
        ({"formats": [{"format": "ova", "ovff": "1.0"}]}, "image_formats.ovff: image_formats has no such key; did you mean "),
        ({"formats": [{"format": "ova", "ovf": 2.0}]}, "image_formats.ovf: 2.0 is not a text; put it in quotes"),
        ({"formats": [{"format": "vmdk", "subformat": "flat"}]}, "image_formats.subformat: 'flat' is not known; use one of: str"),
        ({"formats": [{"format": "qcow2", "cluster_size": "100K"}]},
         "image_formats.cluster_size: '100K' is no size of clusters; give a power of two from 512 to 2M"),
        ({"formats": [{"format": "raw.gz", "level": 10}]}, "image_formats.level: is not from 1 to 9; correct it"),
        ({"formats": [{"format": "vhd", "force_size": "so"}]}, "image_formats.force_size: 'so' is not true or false"),
        ({"formats": [{"format": "raw", "label": "../x"}]}, "image_formats.label: '../x' cannot be a part of a file's name"),
        ({"formats": ["qcow2", {"format": "qcow2", "compression": "zlib"}]},
         "image_formats: qcow2 is there twice; give one of them a label"),
        ({"formats": ["ova", "raw.gz", "box"]},
         "image_formats: has none that can be booted and assessed; add one of: qcow2, raw, vmdk, vdi, vhd, vhdx"),
        ({"formats": []}, "image_formats: is empty; name at least one, such as qcow2"),
        (
            {"catalogues": ["ec2"]},
            "image_catalogues: 'ec2' is not known; use one of: local, hepix, appdb, stratuslab, opennebula, oci, glance",
        ),
        ({"packages": ["htop", "-o APT::x"]}, "'-o APT::x' cannot be the name of a package"),
        ({"packages": [["htop"]]}, "image_packages: ['htop'] is not a text"),
        ({"machine": {"cpus": "two"}}, "image_machine.cpus: 'two' is not a whole number; make it a whole number"),
        ({"machine": {"memory_mib": 0}}, "image_machine.memory_mib: is less than 1; give a larger number"),
        ({"machine": {"firmware": "coreboot"}}, "'coreboot' is not known; use one of: bios, uefi"),
        ({"timeouts": {"install": -1}}, "image_timeouts.install: is less than 1; give a number of seconds"),
        ({"keep": 0}, "image_keep: is less than 1; keep at least the newest version, or leave it out to keep all"),
        ({"keep_on_failure": "perhaps"}, "'perhaps' is not true or false; make it true or false"),
        ({"workspace": "workspace"}, "image_workspace: is not an absolute path; let it begin with / or ~"),
        ({"version": "../x"}, "image_version: '../x' cannot be a version; use letters, digits"),
        ({"expires": "soon"}, "image_expires: 'soon' is no time span; give a number with h, d, w or y"),
        ({"expires": "2001-01-01"}, "image_expires: 2001-01-01 is over; give a later date"),
        ({"expires": "2031-02-30"}, "image_expires: '2031-02-30' is no date"),
        ({"medium": {"family": "fia"}}, "image_medium.family: 'fia' is not known; use one of: fai, preseed"),
        ({"medium": {**ISO, "family": "fai"}}, "image_medium.url: cannot be used: the ISO of the family fai is built"),
        ({"medium": {"family": "preseed"}}, "image_medium.url: is missing; the family preseed installs from an ISO"),
        ({"medium": {**ISO, "path": "/x.iso"}}, "image_medium.path: and url cannot both be given; remove one of them"),
        ({"medium": {**ISO, "checksum": None}}, "image_medium.checksum: is missing: an ISO by url is used only when"),
        ({"medium": {**ISO, "checksum": "sha256:12"}}, "image_medium.checksum: sha256:12 is not 64 hexadecimal digits"),
        ({"medium": {**ISO, "url": "ftp://example.org/x.iso"}}, "is no URL; let it begin with https:// or http://"),
        ({"medium": {**ISO, "signature": "/x.sign"}}, "image_medium.keyring: is missing; a signature is worth nothing"),
    ],
)  # fmt: skip
def test_errors_name_place_key_and_mend(values: dict[str, t.Any], problem: str) -> None:
    with pytest.raises(FactoryError) as caught:
        validate(**values)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("host_vars/x.yml:")


def test_scripts_are_texts_or_mappings() -> None:
    given = {"file": "x.sh", "arguments": ["a", 1], "environment": {"A": 1}, "timeout": "5"}
    text, mapping = validate(scripts=["y.sh", given])["image_scripts"]
    assert text == "y.sh"
    assert mapping == {"file": "x.sh", "arguments": ["a", "1"], "environment": {"A": "1"}, "timeout": 5}
    assert validate(scripts=[{"file": "x.sh"}])["image_scripts"][0]["timeout"] is None


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ({}, "image_scripts.file: is missing; set it"),
        ({"file": "x", "args": []}, "image_scripts.args: image_scripts has no such key; did you mean arguments?"),
        ({"file": "x", "timeout": 0}, "image_scripts.timeout: is less than 1; give a number of seconds"),
        ({"file": "x", "timeout": "long"}, "image_scripts.timeout: 'long' is not a whole number"),
        ({"file": "x", "environment": {"A B": "1"}}, "image_scripts.environment: 'A B' cannot be a variable's name"),
        (
            {"file": "x", "environment": {"A": True}},
            "image_scripts.environment.A: True is not a text; put it in quotes",
        ),
        ({"file": "x", "arguments": [1.5]}, "image_scripts.arguments: 1.5 is not a text; put it in quotes"),
        (["x"], "image_scripts: ['x'] is not a text; make it a text"),
        (True, "image_scripts: True is not a text; put it in quotes"),
    ],
)
def test_mistakes_in_scripts(script: t.Any, problem: str) -> None:
    with pytest.raises(FactoryError) as caught:
        validate(scripts=[script])
    assert problem in str(caught.value)


def child(parent: dict[str, t.Any], **values: t.Any) -> dict[str, t.Any]:
    given = {"image_parent": "p", **{f"image_{key}": value for key, value in values.items()}}
    return _definition.validate("c", given, SPEC, lambda path: f"host_vars/c.yml:{len(path)}", "hosts.yml", parent)


def test_a_child_inherits_what_it_does_not_say() -> None:
    parent = validate(disk={"size": "9G"}, machine={"cpus": 4, "firmware": "uefi"}, packages=["htop"])
    found = child(parent, machine={"cpus": 1})
    assert found["image_os"] == parent["image_os"]
    assert found["image_disk"] == {"size": "9G", "size_bytes": 9 << 30}
    assert found["image_machine"] == {"memory_mib": 2048, "cpus": 1, "firmware": "uefi"}
    assert found["image_medium"] is None
    assert found["image_packages"] == []
    assert child(parent, disk={"size": "10G"})["image_disk"]["size_bytes"] == 10 << 30


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (
            {"medium": ISO},
            "c.yml:1: image_medium: is given, and image_parent too; remove one of them (image_medium: null",
        ),
        (
            {"os": {"distribution": "debian", "version": "13"}},
            "image_os.version: is 13, but that of its parent p is 12",
        ),
        ({"os": {"version": "12"}}, "c.yml:2: image_os.distribution: is missing; set it"),
        (
            {"disk": {"size": "7G"}},
            "c.yml:2: image_disk.size: 7G is less than its parent p has, 8G; give the same or more",
        ),
        (
            {"builder": "b2"},
            "c.yml:1: image_builder: is b2, but that of its parent p is localhost; set both to the same",
        ),
        ({"workspace": "/srv"}, "image_workspace: is /srv, but that of its parent p is ~/.local"),
    ],
)
def test_what_a_child_cannot_be(values: dict[str, t.Any], problem: str) -> None:
    with pytest.raises(FactoryError) as caught:
        child(validate(), **values)
    assert problem in str(caught.value)


def test_an_image_needs_a_medium_or_a_parent() -> None:
    with pytest.raises(
        FactoryError, match=r"x\.yml:1: image_medium: is missing; set it, or image_source_disk, or image_parent$"
    ):
        validate(medium=None)


DISK = {"url": "https://example.org/x.qcow2", "checksum": f"sha256:{'0' * 64}"}


def test_an_image_may_begin_with_an_existing_disk() -> None:
    found = validate(medium=None, source_disk=DISK)
    assert found["image_medium"] is None
    assert found["image_source_disk"] == {
        **dict.fromkeys(SPEC["image_source_disk"]["options"]),
        **DISK,
        "fingerprints": [],
    }
    ssh = validate(medium=None, source_disk={"ssh": {"host": "h", "device": "/dev/sda"}})["image_source_disk"]["ssh"]
    assert ssh == {**dict.fromkeys(ssh), "host": "h", "device": "/dev/sda", "user": "root", "port": 22, "sudo": False}
    assert child(found)["image_source_disk"] is None


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (
            {"source_disk": DISK},
            "image_medium: is given, and image_source_disk too; remove one of them (image_medium: null",
        ),
        ({"medium": None, "source_disk": {}}, "image_source_disk: names no disk; set one of: url, path, device, ssh"),
        (
            {"medium": None, "source_disk": {**DISK, "checksum": None}},
            "image_source_disk.checksum: is missing: a disk by",
        ),
        (
            {"medium": None, "source_disk": {**DISK, "format": "qcow"}},
            "image_source_disk.format: 'qcow' is not known; use",
        ),
        (
            {"medium": None, "source_disk": {"ssh": {"hots": "h"}}},
            "image_source_disk.ssh.hots: ssh has no such key; did you",
        ),
        ({"medium": None, "source_disk": {"ssh": {"host": "h"}}}, "image_source_disk.ssh.device: is missing; set it"),
        (
            {"medium": None, "source_disk": {"device": "vdb"}},
            "image_source_disk.device: 'vdb' cannot be used; give the path",
        ),
    ],
)
def test_mistakes_in_an_existing_disk_name_place_key_and_mend(values: dict[str, t.Any], problem: str) -> None:
    with pytest.raises(FactoryError) as caught:
        validate(**values)
    assert problem in str(caught.value)
    assert str(caught.value).startswith("host_vars/x.yml:")
    with pytest.raises(FactoryError, match="image_source_disk: is given, and image_parent too; remove one of them"):
        child(validate(), source_disk=DISK)


@pytest.mark.parametrize("name", ["../x", "debian 12", "debian'12", 'debian"12', "Debian", "", "a..b", "-x"])
def test_bad_names_of_images(name: str) -> None:
    with pytest.raises(FactoryError, match=r"^hosts\.yml: image: .* cannot be the name of an image; use lower-case"):
        validate(name)


@pytest.mark.parametrize(
    ("text", "size"), [("512M", 512 << 20), ("8G", 8 << 30), ("8GiB", 8 << 30), ("2T", 2 << 40), (" 1G ", 1 << 30)]
)
def test_sizes(text: str, size: int) -> None:
    assert _definition.parse_size(text) == size


@pytest.mark.parametrize("text", ["180d", "6w", "1y", "12h", "2999-12-31"])
def test_expiry(text: str) -> None:
    assert validate(expires=text)["image_expires"] == text


@pytest.mark.parametrize("family", SPEC["image_medium"]["options"]["family"]["choices"])
def test_every_family_can_be_defined(family: str) -> None:
    medium = {"family": family} if family in BUILT else {**ISO, "family": family}
    if family in WITH_DRIVERS:
        medium["drivers"] = {key: ISO[key] for key in ("url", "checksum")}
    assert validate(medium=medium)["image_medium"]["family"] == family


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", "2"),
        ("workspace", "/srv/other"),
        ("builder", "builder1"),
        ("connection", "ssh"),
        ("keep_on_failure", True),
        ("timeouts", {"install": 60}),
    ],
)
def test_digest_does_not_count_how_it_is_built(key: str, value: t.Any) -> None:
    assert _definition.digest(validate(**{key: value}), {}) == _definition.digest(validate(version="1"), {})


@pytest.mark.parametrize(
    ("key", "value"),
    [("title", "x"), ("description", "x"), ("packages", ["htop"]), ("disk", {"size": "9G"}), ("expires", "1y")],
)
def test_digest_counts_what_is_built(key: str, value: t.Any) -> None:
    assert _definition.digest(validate(**{key: value}), {}) != _definition.digest(validate(), {})


def test_digest_counts_files_by_content_not_by_name() -> None:
    def digest(folder: str, script: str, answer: str) -> str:
        found = validate(scripts=[f"{folder}/x.sh"], medium={**ISO, "answer_file": f"{folder}/p.cfg"})
        return _definition.digest(found, {"scripts": [{"name": "x.sh", "sha256": script}], "answer_file": answer})

    one = digest("/a", "1", "2")
    assert digest("/b", "1", "2") == one
    assert digest("/a", "3", "2") != one
    assert digest("/a", "1", "3") != one
