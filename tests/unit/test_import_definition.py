# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Descriptions for other tools as definitions: realistic files of each kind, nothing of them lost, what they give is valid."""

from __future__ import annotations

import dataclasses
import json
import re
import typing as t
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.cloudimg.factory.plugins.module_utils import _definition
from ansible_collections.cloudimg.factory.plugins.module_utils import _import_definition as importer
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

HERE = Path(__file__).parent / "descriptions"
ROLES = Path(__file__).parents[2] / "roles"
SHA256 = "sha256:" + "ab" * 32


def spec(role: str, entry: str) -> dict[str, t.Any]:
    text = (ROLES / role / "meta/argument_specs.yml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text)["argument_specs"][entry]["options"])


@dataclasses.dataclass(frozen=True)
class Sample:
    """A description of tests/unit/descriptions.

    :ivar expected: keys of the definition with their values.
    :ivar added: what a user adds, as ``missing`` tells, key by key.
    :ivar told: what leaves of the description are in the definition, where not by their own text.
    :ivar secrets: what must be nowhere in the result.
    """

    file: str
    name: str
    expected: dict[str, t.Any]
    added: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    told: dict[str, str] = dataclasses.field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    options: dict[str, t.Any] = dataclasses.field(default_factory=dict)

    def load(self) -> importer.Imported:
        return importer.load(importer.Request(HERE / self.file, **{"scripts": "files/it", **self.options}))


SAMPLES = [
    Sample(
        "oz/fedora-18.tdl",
        "f18-httpd",
        {
            "image_title": "f18-httpd",
            "image_description": "Fedora 18 with a web server",
            "image_os": {"distribution": "fedora", "version": "18", "arch": "x86_64"},
            "image_medium": {
                "family": "kickstart",
                "url": "https://mirror.example.org/fedora/18/Fedora-18-x86_64-DVD.iso",
                "checksum": "sha256:91c5f0aca391acf76a047e284144f90d66d3d5f5dcd26b01f368a43236832c03",
                "kernel_args": "console=ttyS0,115200 net.ifnames=0",
            },
            "image_disk": {"size": "20G"},
            "image_packages": ["httpd", "@core", "mod_ssl"],
            "image_scripts": ["files/it/01-enable.sh"],
        },
        told={
            "template.os.name": "fedora",
            "template.os.install.@type": "url: https",
            "template.files.file[2].@type": "/etc/httpd/conf.d/site.conf",
            "template.files.file[2].#text": "ServerName www.example.org",
            "template.repositories.repository[0].@name": "site-repo",
            "template.repositories.repository[0].persisted": "ephemeral: true",
        },
        secrets=("ozrootpw-fedora",),
    ),
    Sample(
        "oz/rhel-7.tdl",
        "rhel-7-worker",
        {
            "image_os": {"distribution": "rhel", "version": "7.9", "arch": "x86_64"},
            "image_medium": {"family": "kickstart", "path": "/srv/iso/rhel-server-7.9-x86_64-dvd.iso"},
            "image_disk": {"size": "1024G"},
            "image_scripts": ["files/it/01-first.sh", "files/it/02-second.sh"],
        },
        added={"image_medium.checksum": SHA256},
        told={
            "template.os.name": "rhel",
            "template.os.install.@type": "path: /srv",
            "template.os.install.iso": "/srv/iso/rhel-server-7.9-x86_64-dvd.iso",
            "template.disk.size": "1024G",
            "template.commands.command[0].@type": "exit 0",
            "template.commands.command[0].#text": "#!/bin/bash\nexit 0\n",
            "template.commands.command[0].@position": "02-second",
            "template.commands.command[1].@position": "01-first",
        },
        secrets=("0123456789abcdef",),
    ),
    Sample(
        "oz/ubuntu-20.04.tdl",
        "ubuntu2004",
        {
            "image_os": {"distribution": "ubuntu", "version": "20.04", "arch": "x86_64"},
            "image_medium": {
                "family": "autoinstall",
                "url": "https://releases.example.org/20.04/ubuntu-20.04.6-live-server-amd64.iso",
                "checksum": "https://releases.example.org/20.04/SHA256SUMS",
            },
        },
        told={
            "template.os.name": "ubuntu",
            "template.os.install.@type": "url: https",
            "template.repositories.repository.url": "http://archive.example.org/ubuntu",
            "template.repositories.repository.persisted": "name: universe",
        },
        secrets=("ubuntu-root-2004",),
    ),
    Sample(
        "oz/windows-2022.tdl",
        "windows2022",
        {
            "image_os": {"distribution": "windows", "version": "2022", "arch": "x86_64"},
            "image_medium": {
                "family": "autounattend",
                "url": "https://media.example.org/SERVER_EVAL_x64FRE_en-us.iso",
                "checksum": "sha256:3e4fa6d8507b554856fc9ca6079cc402df11a8b79344871669f0251535255325",
            },
        },
        told={
            "template.os.name": "windows",
            "template.os.install.@type": "url: https",
            "template.os.install.sha256sum": "sha256:3e4fa6d8507b55",
        },
        secrets=("AAAAA-BBBBB", "Adm1nistrat0r-pw"),
    ),
    Sample(
        "oz/debian-squeeze-url.tdl",
        "debian6-i386",
        {"image_os": {"distribution": "debian", "version": "6"}, "image_medium": {"family": "preseed"}},
        added={
            "image_os.arch": "x86_64",
            "image_medium.url": "https://mirror.example.org/debian.iso",
            "image_medium.checksum": SHA256,
        },
        told={"template.os.name": "debian"},
    ),
    Sample(
        "boxgrinder/web.appl",
        "web-server",
        {
            "image_title": "Web server",
            "image_os": {"distribution": "fedora", "version": "16"},
            "image_medium": {"family": "kickstart"},
            "image_disk": {"size": "5632M"},
            "image_machine": {"cpus": 2, "memory_mib": 2048},
            "image_packages": ["@core", "openssh-server", "git", "httpd"],
            "image_scripts": ["files/it/01-base-post.sh", "files/it/02-web-server-post.sh"],
        },
        added={"image_medium.url": "https://mirror.example.org/f16.iso", "image_medium.checksum": SHA256},
        told={
            "name": "image_title: Web server",
            "appliances[0]": "git",
            "jeos-f16.appl:appliances[0]": "openssh-server",
            'jeos-f16.appl:hardware.partitions["/"].size': "5632M",
            "base.appl:packages[2]": "applications_packages_absent:\n- sendmail",
            "base.appl:repos[0].name": "fedora-site",
            "base.appl:repos[0].baseurl": "http://mirror.example.org/fedora/16/x86_64",
            "base.appl:variables.MIRROR": "mirror.example.org",
            "base.appl:post.base[0]": "echo 'example.org' > /etc/site",
            "post.base[1]": "s/example.com/example.org/",
        },
        secrets=("boxgrinder-base", "letmein"),
    ),
    Sample(
        "boxgrinder/centos6.appl",
        "jeos-centos",
        {
            "image_os": {"distribution": "centos", "version": "6"},
            "image_disk": {"size": "1G"},
            "image_packages": ["bash", "kernel"],
        },
        added={"image_medium.url": "https://mirror.example.org/c6.iso", "image_medium.checksum": SHA256},
        told={"repos[0].baseurl": "http://repo.example.org/epel/6/x86_64"},
        secrets=("centos6secret",),
    ),
    Sample(
        "comfy/debian.description",
        "debian-8.4.0",
        {
            "image_title": "Debian 8.4.0",
            "image_os": {"distribution": "debian", "version": "8", "arch": "x86_64"},
            "image_medium": {
                "family": "preseed",
                "suite": "jessie",
                "url": "http://cdimage.example.org/release/8.4.0/amd64/iso-cd/debian-8.4.0-amd64-netinst.iso",
                "checksum": "sha256:7a6b418e6a4ee3ca75dda04d79ed96c9e2c33bb0c703ca7e40c6374ab4590748",
            },
            "image_machine": {"memory_mib": 1024, "cpus": 2},
        },
        told={"qemu.qemuargs[0]": "memory_mib: 1024", "qemu.qemuargs[1]": "cpus: 2"},
    ),
    Sample(
        "comfy/debian.description",
        "debian-7.10.0",
        {"image_title": "Debian 7.10.0", "image_os": {"distribution": "debian", "version": "7", "arch": "x86_64"}},
        told={"qemu.qemuargs[0]": "memory_mib: 1024", "qemu.qemuargs[1]": "cpus: 2"},
        options={"version": "7"},
    ),
    Sample(
        "comfy/centos.description",
        "centos-7.2.1511",
        {
            "image_os": {"distribution": "centos", "version": "7", "arch": "x86_64"},
            "image_machine": {"memory_mib": 2048},
        },
        told={"qemu.qemuargs[0]": "memory_mib: 2048"},
    ),
    Sample(
        "comfy/ubuntu.description",
        "ubuntu-14.04",
        {"image_os": {"distribution": "ubuntu", "version": "14.04", "arch": "x86_64"}},
    ),
    Sample(
        "packer/debian-9.json",
        "debian-9",
        {
            "image_description": "Debian 9 for the cluster",
            "image_os": {"distribution": "debian", "version": "9", "arch": "x86_64"},
            "image_medium": {
                "family": "preseed",
                "url": "https://cdimage.example.org/archive/9.13.0/amd64/iso-cd/debian-9.13.0-amd64-netinst.iso",
                "checksum": "sha256:71c7e9eb292acc880f84605b1ca2b997f25737fe0a43fc9586f61d35cd2eb73b",
            },
            "image_disk": {"size": "10G"},
            "image_machine": {"memory_mib": 2048, "cpus": 2},
            "image_formats": ["qcow2"],
            "image_scripts": [
                "files/it/01-shell.sh",
                {
                    "file": "files/it/02-cleanup.sh",
                    "environment": {"DEBIAN_FRONTEND": "noninteractive", "STAGE": "final"},
                },
            ],
        },
        told={
            "builders[0].type": "image_machine",
            "builders[0].name": "debian-9",
            "builders[0].iso_url": "https://cdimage.example.org/archive/9.13.0/amd64/iso-cd/debian-9.13.0-amd64",
            "builders[0].iso_checksum": "sha256:71c7e9eb292acc880f84605b1ca2b997f25737fe0a43fc9586f61d35cd2eb73b",
            "builders[0].disk_size": "size: 10G",
            "builders[0].qemuargs[0]": "memory_mib: 2048",
            "builders[0].qemuargs[1]": "cpus: 2",
            "variables.disk_size": "size: 10G",
            "variables.iso_name": "debian-9.13.0-amd64-netinst.iso",
            "provisioners[0].type": "applications_files",
            "provisioners[0].source": "packer/files/motd",
            "provisioners[1].type": "image_scripts",
            "provisioners[1].inline[2]": "echo 9.13.0 > /etc/built-from",
            "provisioners[2].type": "image_scripts",
            "provisioners[2].scripts[0]": "apt-get clean",
            "provisioners[2].environment_vars[0]": "DEBIAN_FRONTEND: noninteractive",
            "provisioners[2].environment_vars[1]": "STAGE: final",
            "provisioners[3].type": "image_scripts",
        },
        secrets=("vagrant-9-pw",),
    ),
    Sample(
        "packer/two.json",
        "small",
        {
            "image_os": {"distribution": "rocky", "version": "9.3", "arch": "x86_64"},
            "image_medium": {"family": "kickstart", "url": "https://mirror.example.org/Rocky-9.3-x86_64-minimal.iso"},
            "image_disk": {"size": "5G"},
        },
        added={"image_medium.checksum": "https://mirror.example.org/CHECKSUM"},
        told={"builders[0].type": "image_os", "builders[0].name": "image_os"},
        options={"builder": "small"},
    ),
    Sample(
        "packer/two.json",
        "large",
        {
            "image_disk": {"size": "500G"},
            "image_machine": {"firmware": "uefi"},
            "image_medium": {
                "family": "kickstart",
                "url": "https://mirror.example.org/Rocky-9.3-x86_64-minimal.iso",
                "checksum": "https://mirror.example.org/CHECKSUM",
            },
        },
        told={
            "builders[1].type": "image_os",
            "builders[1].name": "image_os",
            "builders[1].iso_checksum": "checksum: https://mirror.example.org/CHECKSUM",
            "builders[1].efi_boot": "firmware: uefi",
        },
        options={"builder": "qemu.large"},
    ),
    Sample(
        "packer/ubuntu-22.04.pkr.hcl",
        "ubuntu",
        {
            "image_description": "Ubuntu 22.04 for workers",
            "image_os": {"distribution": "ubuntu", "version": "22.04", "arch": "x86_64"},
            "image_medium": {
                "family": "autoinstall",
                "url": "https://releases.example.org/22.04/ubuntu-22.04.4-live-server-amd64.iso",
                "checksum": "https://releases.example.org/22.04/SHA256SUMS",
            },
            "image_disk": {"size": "20G"},
            "image_machine": {"memory_mib": 4096, "cpus": 4, "firmware": "uefi"},
            "image_formats": ["qcow2"],
        },
        secrets=("packer-2204-pw", "reg-0815-code"),
    ),
    Sample(
        "packer-directory",
        "debian-12",
        {
            "image_os": {"distribution": "debian", "version": "12", "arch": "x86_64"},
            "image_medium": {
                "family": "preseed",
                "url": "https://mirror.example.org/debian-12.5.0-amd64-netinst.iso",
                "checksum": SHA256,
            },
            "image_disk": {"size": "7G"},
            "image_machine": {"memory_mib": 1024},
        },
        options={"builder": "debian-12", "variables": {"checksum": SHA256}},
    ),
    Sample(
        "packer-directory",
        "debian-cloud",
        {
            "image_os": {"distribution": "debian", "version": "12", "arch": "x86_64"},
            "image_source_disk": {
                "url": "https://mirror.example.org/debian-12-genericcloud-amd64.qcow2",
                "checksum": "sha512:" + "0c" * 64,
            },
            "image_disk": {"size": "8G"},
        },
        options={"builder": "debian-cloud"},
    ),
]


@pytest.fixture(params=SAMPLES, ids=lambda sample: f"{sample.file}-{sample.name}")
def sample(request: pytest.FixtureRequest) -> Sample:
    return t.cast(Sample, request.param)


def test_definition_is_what_the_description_says(sample: Sample) -> None:
    found = sample.load()
    assert found.name == sample.name
    assert {key: found.definition.get(key) for key in sample.expected} == sample.expected


def test_definition_is_valid_once_what_is_missing_was_added(sample: Sample) -> None:
    found = sample.load()
    assert set(sample.added) == {key for key in found.missing if key.startswith("image_")}
    definition = json.loads(json.dumps(found.definition))
    for path, value in sample.added.items():
        key, _dot, below = path.partition(".")
        definition.setdefault(key, {})[below] = value
    options = spec("definition", "image")
    checked = _definition.validate(found.name, definition, options, ".".join, "inventory")
    assert checked["image_os"]["distribution"] == found.definition["image_os"]["distribution"]


def test_variables_of_the_role_applications_are_its_own(sample: Sample) -> None:
    found = sample.load()
    checked = ArgumentSpecValidator(spec("applications", "main")).validate(found.applications)
    assert checked.error_messages == []
    for row in found.applications.get("applications_repositories", []):
        assert re.fullmatch("[a-z0-9][a-z0-9.-]*", row["name"])
    for row in found.applications.get("applications_files", []):
        assert ("src" in row) != ("content" in row)


def test_host_vars_say_what_was_returned(sample: Sample) -> None:
    found = sample.load()
    assert plain(found.text) == {**found.definition, **found.applications}
    assert max(map(len, found.text.splitlines())) <= 160
    comments = " ".join(line.lstrip("# ") for line in found.text.splitlines() if line.startswith("#"))
    for row in found.unmapped:
        assert " ".join(f"{row.key} ({row.value})".split()) in comments or row.key in comments
        assert row.reason.split()[0] in comments
        assert row.reason and "\n" not in row.reason + row.value + row.key and len(row.value) <= 80


def test_secrets_are_nowhere(sample: Sample) -> None:
    found = sample.load()
    for secret in sample.secrets:
        assert secret not in repr(found)


def plain(text: str) -> dict[str, t.Any]:
    """The variables of host_vars; C(!unsafe) is Ansible's."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!unsafe", lambda loader, node: loader.construct_scalar(t.cast(yaml.ScalarNode, node)))
    return dict(yaml.load(text, Loader=Loader))


# What a description holds, found in another way than the importer's.


def xml_leaves(element: ET.Element, path: str) -> t.Iterator[tuple[str, str]]:
    counts = [child.tag for child in element]
    text = "".join([element.text or "", *[child.tail or "" for child in element]]).strip()
    for name, value in element.attrib.items():
        yield f"{path}.@{name}", value
    if text:
        yield f"{path}.#text" if element.attrib or counts else path, text
    for number, child in enumerate(element):
        same = [other for other in element if other.tag == child.tag]
        place = f"[{same.index(child)}]" if len(same) > 1 else ""
        assert number < len(counts)
        yield from xml_leaves(child, f"{path}.{child.tag}{place}")


def tree_leaves(value: t.Any, path: str) -> t.Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            word = re.fullmatch("[A-Za-z_][A-Za-z0-9_-]*", key)
            joint = "." if path and not path.endswith(":") else ""
            yield from tree_leaves(below, f"{path}{joint}{key}" if word else f'{path}["{key}"]')
    elif isinstance(value, list) and value:
        for number, below in enumerate(value):
            yield from tree_leaves(below, f"{path}[{number}]")
    else:
        yield path, str(value).lower() if isinstance(value, bool) else str(value)


def leaves_of(sample: Sample) -> list[tuple[str, str]]:
    path = HERE / sample.file
    if path.suffix == ".tdl":
        root = ET.fromstring(path.read_bytes())
        return list(xml_leaves(root, root.tag))
    if path.suffix == ".appl":
        found = list(tree_leaves(yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader), ""))
        above = {"web.appl": ("jeos-f16.appl", "base.appl")}.get(path.name, ())
        for name in above:
            text = path.with_name(name).read_text(encoding="utf-8")
            found += tree_leaves(yaml.load(text, Loader=yaml.BaseLoader), f"{name}:")
        return found
    return list(tree_leaves(json.loads(path.read_text(encoding="utf-8")), ""))


def above(path: str) -> list[str]:
    """A path, and those of what it stands in."""
    ends = [match.start() for match in re.finditer(r"[.\[]", path)]
    return [path, *[path[:end] for end in ends if end]]


def one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(
    "sample",
    [item for item in SAMPLES if (HERE / item.file).suffix in (".tdl", ".appl", ".description", ".json")],
    ids=lambda item: f"{item.file}-{item.name}",
)
def test_every_value_is_mapped_or_listed(sample: Sample) -> None:
    found = sample.load()
    listed = {row.key for row in found.unmapped}
    written = found.text.partition("\n#")[2].partition("\n")[2].partition("\n# ")[0]
    written += "".join(script.name + script.text for script in found.scripts)
    leaves = leaves_of(sample)
    assert len(leaves) > 5
    for path, value in leaves:
        places = above(path)
        if listed.intersection(places):
            continue
        assert set(found.mapped).intersection(places), path
        told = next((sample.told[place] for place in places if place in sample.told), None)
        assert one_line(told if told is not None else value) in one_line(written), path


HCL = {
    "packer": None,
    "variable.release.type": None,
    "variable.release.default": "22.04.4",
    "variable.release.description": None,
    "variable.mirror.type": None,
    "variable.mirror.default": "https://releases.example.org",
    "variable.ssh_password.type": None,
    "variable.ssh_password.default": None,
    "variable.ssh_password.sensitive": None,
    "variable.registration.type": None,
    "variable.registration.default": None,
    "variable.registration.sensitive": None,
    "variable.cpus.type": None,
    "variable.cpus.default": "cpus: 4",
    "locals[0].iso": "ubuntu-22.04.4-live-server-amd64.iso",
    "locals[0].stamp": None,
    "locals[0].iso_folder": None,
    "local.iso_url.expression": "https://releases.example.org/22.04/ubuntu",
    "source.qemu.ubuntu.iso_url": "url: https://releases.example.org/22.04/ubuntu",
    "source.qemu.ubuntu.iso_checksum": "checksum: https://releases.example.org/22.04/SHA256SUMS",
    "source.qemu.ubuntu.accelerator": None,
    "source.qemu.ubuntu.cpus": "cpus: 4",
    "source.qemu.ubuntu.memory": "memory_mib: 4096",
    "source.qemu.ubuntu.disk_size": "size: 20G",
    "source.qemu.ubuntu.disk_compression": None,
    "source.qemu.ubuntu.efi_boot": "firmware: uefi",
    "source.qemu.ubuntu.format": "- qcow2",
    "source.qemu.ubuntu.headless": None,
    "source.qemu.ubuntu.vm_name": None,
    "source.qemu.ubuntu.boot_wait": None,
    "source.qemu.ubuntu.boot_command": None,
    "source.qemu.ubuntu.http_content": None,
    "source.qemu.ubuntu.ssh_username": None,
    "source.qemu.ubuntu.ssh_password": None,
    "source.qemu.ubuntu.ssh_timeout": None,
    "source.qemu.ubuntu.shutdown_command": None,
    "build[0].name": None,
    "build[0].description": "Ubuntu 22.04 for workers",
    "build[0].sources[0]": "ubuntu",
    "build[0].provisioner[0].shell.environment_vars[0]": "DEBIAN_FRONTEND: noninteractive",
    "build[0].provisioner[0].shell.inline[0]": "apt-get update",
    "build[0].provisioner[0].shell.inline[1]": 'apt-get install -y "${name}"',
    "build[0].provisioner[0].shell.inline[2]": "echo 22.04.4 > /etc/release-of-image",
    "build[0].provisioner[1].shell.inline[0]": None,
    "build[0].provisioner[2].shell.script": "apt-get clean",
    "build[0].provisioner[3].file.source": "packer/files/motd",
    "build[0].provisioner[3].file.destination": "dest: /etc/motd",
    "build[0].post-processor": None,
}
"""All that stands in packer/ubuntu-22.04.pkr.hcl: how it is written, None where it is listed."""


def test_every_value_of_hcl_is_mapped_or_listed() -> None:
    found = next(item for item in SAMPLES if item.file.endswith("22.04.pkr.hcl")).load()
    listed = {row.key for row in found.unmapped}
    assert listed == {path for path, written in HCL.items() if written is None}
    assert set(found.mapped) == {path for path, written in HCL.items() if written is not None}
    text = found.text.partition("# Not taken over")[0] + "".join(script.text for script in found.scripts)
    for path, written in HCL.items():
        assert written is None or written in text, path
    source = (HERE / "packer/ubuntu-22.04.pkr.hcl").read_text(encoding="utf-8")
    for key in re.findall(r"^ {0,4}([a-z_]+) *=", source, re.MULTILINE):
        assert any(key in path for path in HCL) or key in ("version", "source", "qemu", "output"), key


def test_a_directory_of_hcl_is_one_template() -> None:
    found = next(item for item in SAMPLES if item.name == "debian-12" and "directory" in item.file).load()
    reasons = {row.key: row.reason for row in found.unmapped}
    assert reasons["variable.mirror.default"] == "is no variable of the template, or another file says otherwise"
    assert found.mapped["site.auto.pkrvars.hcl:mirror"].startswith("what uses it")
    assert reasons["source.qemu.debian-12.disk_size"] == "the build says otherwise"
    assert "source.qemu.debian-cloud" in reasons
    assert [script.text for script in found.scripts] == ["#!/bin/sh -e\necho installed\n"]
    assert "build[0].provisioner[1].shell" in reasons


def test_without_a_place_for_scripts_commands_are_listed() -> None:
    found = importer.load(importer.Request(HERE / "boxgrinder/web.appl"))
    assert "image_scripts" not in found.definition and not found.scripts
    reasons = {row.key: row.reason for row in found.unmapped}
    assert "scripts_dir" in reasons["post.base[0]"] and "scripts_dir" in reasons["base.appl:post.base[0]"]


def test_templates_of_ansible_in_a_description_are_no_templates() -> None:
    text = SAMPLES[0].load().text
    assert re.search(r"content: !unsafe \|-\n\s+Welcome to \{\{ f18 \}\}\n\s+built by Oz", text)


@pytest.mark.parametrize(
    ("name", "version", "distribution", "number", "family"),
    [
        ("Fedora", "41", "fedora", "41", "kickstart"),
        ("FedoraCore", "6", "fedora", "6", "kickstart"),
        ("RHEL-7", "9", "rhel", "7.9", "kickstart"),
        ("RHEL-5", "U4", "rhel", "5.4", "kickstart"),
        ("RHEL-4", "GOLD", "rhel", "4", "kickstart"),
        ("RHEL-2.1", "U2", "rhel", "2.1", "kickstart"),
        ("RHL", "9", "rhl", "9", "kickstart"),
        ("CentOS-6", "10", "centos", "6", "kickstart"),
        ("sl", "6", "scientific", "6", "kickstart"),
        ("ScientificLinux", "7.2", "scientific", "7.2", "kickstart"),
        ("AlmaLinux", "9.3", "almalinux", "9.3", "kickstart"),
        ("Rocky Linux", "9", "rocky", "9", "kickstart"),
        ("Debian", "12.5.0", "debian", "12", "preseed"),
        ("Ubuntu", "18.04", "ubuntu", "18.04", "preseed"),
        ("Ubuntu", "19.10", "ubuntu", "19.10", "preseed"),
        ("Ubuntu", "20.04", "ubuntu", "20.04", "autoinstall"),
        ("Ubuntu", "24.04.1", "ubuntu", "24.04", "autoinstall"),
        ("OpenSUSE", "13.2", "opensuse", "13.2", "autoyast"),
        ("OpenSUSE", "42.3", "opensuse", "42.3", "autoyast"),
        ("OpenSUSE", "15.6", "opensuse-leap", "15.6", "autoyast"),
        ("openSUSE Leap", "16.0", "opensuse-leap", "16.0", "agama"),
        ("SLES", "15", "sles", "15", "autoyast"),
        ("Windows", "2022", "windows", "2022", "autounattend"),
        ("Mageia", "4", "mageia", "4", None),
        ("FreeBSD", "10.0", "freebsd", "10.0", None),
    ],
)
def test_names_of_other_tools_are_those_of_os_release(
    name: str, version: str, distribution: str, number: str, family: str | None
) -> None:
    found = importer._import_definition_packer_map._import_definition_data
    system = found.system(name, version)
    assert system == (distribution, number)
    assert found.family(system) == family


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("debian-12.5.0-arm64-netinst.iso", ("debian", "12", "arm64")),
        ("ubuntu-24.04.1-live-server-amd64.iso", ("ubuntu", "24.04", "amd64")),
        ("CentOS-Stream-9-latest-x86_64-dvd1.iso", ("centos", "9", "x86_64")),
        ("CentOS-7-x86_64-Minimal-2009.iso", ("centos", "7", "x86_64")),
        ("AlmaLinux-9.4-x86_64-minimal.iso", ("almalinux", "9.4", "x86_64")),
        ("Fedora-Server-dvd-x86_64-41-1.4.iso", ("fedora", "41", "x86_64")),
        ("rhel-9.3-aarch64-dvd.iso", ("rhel", "9.3", "aarch64")),
        ("OracleLinux-R9-U3-x86_64-dvd.iso", ("ol", "9.3", "x86_64")),
        ("openSUSE-Leap-15.6-DVD-x86_64-Media.iso", ("opensuse-leap", "15.6", "x86_64")),
        ("SLE-15-SP5-Full-x86_64-GM-Media1.iso", ("sles", "15.5", "x86_64")),
        ("windows_server_2022.iso", ("windows", "2022", None)),
        ("mini.iso", None),
    ],
)
def test_names_of_official_media_tell_the_system(url: str, expected: tuple[str, str, str | None] | None) -> None:
    found = importer._import_definition_packer_map._import_definition_data.medium(f"https://example.org/{url}")
    assert (found and (*found[0], found[1])) == expected


def test_arm_is_built_as_such(tmp_path: Path) -> None:
    path = tmp_path / "arm.tdl"
    path.write_text(
        (HERE / "oz/ubuntu-20.04.tdl").read_text(encoding="utf-8").replace("<arch>x86_64", "<arch>aarch64"),
        encoding="utf-8",
    )
    assert importer.load(importer.Request(path)).definition["image_os"]["arch"] == "aarch64"


def test_a_name_that_fits_can_be_given() -> None:
    path = HERE / "oz/rhel-7.tdl"
    assert importer.load(importer.Request(path, name="worker")).name == "worker"
    with pytest.raises(FactoryError, match="'No Host' cannot be the name of an image"):
        importer.load(importer.Request(path, name="No Host"))
