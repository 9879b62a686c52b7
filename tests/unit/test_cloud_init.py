# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What role cloud_init would make of each system, rendered from its data; the three Debians really run, in molecule."""

from __future__ import annotations

import configparser
import functools
import re
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

from ansible_collections.cloudimg.factory.plugins.module_utils._file_operations import Operation, perform, select

SYSTEMS = {
    "debian-11": ("Debian", "Debian", "11", "apt"),
    "debian-12": ("Debian", "Debian", "12", "apt"),
    "debian-13": ("Debian", "Debian", "13", "apt"),
    "ubuntu-22.04": ("Debian", "Ubuntu", "22", "apt"),
    "ubuntu-24.04": ("Debian", "Ubuntu", "24", "apt"),
    "alma-9": ("RedHat", "AlmaLinux", "9", "dnf"),
    "alma-10": ("RedHat", "AlmaLinux", "10", "dnf"),
    "rocky-9": ("RedHat", "Rocky", "9", "dnf"),
    "rocky-10": ("RedHat", "Rocky", "10", "dnf"),
    "centos-9": ("RedHat", "CentOS", "9", "dnf"),
    "centos-10": ("RedHat", "CentOS", "10", "dnf"),
    "fedora-42": ("RedHat", "Fedora", "42", "dnf5"),
    "leap-15": ("Suse", "openSUSE Leap", "15", "zypper"),
    "leap-16": ("Suse", "openSUSE Leap", "16", "zypper"),
}
"""The facts of each: family, distribution, its major version, package manager."""
USERS = {
    "debian": "debian",
    "ubuntu": "ubuntu",
    "alma": "almalinux",
    "rocky": "rocky",
    "centos": "cloud-user",
    "fedora": "fedora",
    "leap": "opensuse",
}
NETWORKD = {name for name, facts in SYSTEMS.items() if facts[0] == "Debian"}


LOADER = DataLoader()


@functools.cache
def loaded(path: Path) -> dict[str, t.Any]:
    """The variables in a file, as Ansible reads them."""
    return LOADER.load_from_file(str(path), trusted_as_template=True)


class Rendered:
    """The variables of the role on one system."""

    def __init__(self, checkout: Path, system: str, **given: t.Any) -> None:
        role = checkout / "roles/cloud_init"
        family, distribution, major, manager = SYSTEMS[system]
        facts = {"os_family": family, "distribution": distribution, "distribution_major_version": major}
        self._variables = {"role_path": str(role), "ansible_facts": {**facts, "pkg_mgr": manager}}
        self._read(role / "defaults/main.yml")
        self._read(role / "vars/main.yml")
        files = Templar(LOADER, self._variables).template(self._variables["__cloud_init_os_files"])
        self.files = [Path(path) for path in dict.fromkeys(files) if Path(path).is_file()]
        for path in self.files:
            self._read(path)
        self._variables.update(given)
        self._rendered: dict[str, t.Any] = {}

    def _read(self, path: Path) -> None:
        self._variables.update(loaded(path))

    def __getitem__(self, name: str) -> t.Any:
        if name not in self._rendered:
            self._rendered[name] = Templar(LOADER, self._variables).template(self._variables[name])
        return self._rendered[name]

    def operations(self) -> list[Operation]:
        """What would be done to its files."""
        return select(
            [Operation(**entry) for entry in self["__cloud_init_operations"]], self["__cloud_init_operations_off"], []
        )

    def written(self) -> dict[str, str]:
        """The files that would be written."""
        return {path: text for operation in self.operations() for path, text in operation.write.items()}


@pytest.fixture(params=SYSTEMS)
def system(request) -> str:
    return request.param


@functools.cache
def by_default(checkout: Path, system: str) -> Rendered:
    """One system without any options, rendered once for all tests."""
    return Rendered(checkout, system)


@pytest.fixture
def rendered(checkout, system) -> Rendered:
    return by_default(checkout, system)


def test_the_later_files_are_those_of_the_system(checkout):
    found = {system: [path.name for path in Rendered(checkout, system).files] for system in SYSTEMS}
    assert found["debian-11"] == ["Debian.yml", "Debian-11.yml"]
    assert found["debian-13"] == ["Debian.yml"]
    assert found["ubuntu-22.04"] == ["Debian.yml", "Ubuntu.yml", "Ubuntu-22.yml"]
    assert found["rocky-10"] == ["RedHat.yml", "Rocky.yml"]
    assert found["leap-15"] == ["Suse.yml"]


def test_no_file_of_a_system_is_without_a_test(checkout):
    read = {path for system in SYSTEMS for path in Rendered(checkout, system).files}
    assert read == set((checkout / "roles/cloud_init/vars").glob("*.yml")) - {
        checkout / "roles/cloud_init/vars/main.yml"
    }


def test_the_cloud_configuration(rendered, system):
    text = rendered.written()["/etc/cloud/cloud.cfg.d/99-cloudimg.cfg"]
    assert "datasource_list: [NoCloud, ConfigDrive, OpenNebula, OpenStack, Ec2, None]" in text.splitlines()
    config = yaml.safe_load(text)
    assert config["system_info"]["default_user"]["name"] == USERS[system.partition("-")[0]]
    assert config["system_info"]["default_user"]["lock_passwd"] is True
    assert (config["disable_root"], config["ssh_pwauth"], config["ssh_deletekeys"]) == (True, False, True)
    assert config["growpart"] == {"mode": "auto", "devices": ["/"]}
    assert config["datasource"]["Ec2"] == {"timeout": 5, "max_wait": 10}
    (renderer,) = config["system_info"]["network"]["renderers"]
    assert renderer in ({"networkd", "netplan"} if system in NETWORKD else {"network-manager"})


def test_options_get_into_the_cloud_configuration(checkout):
    given = {
        "cloud_init_user": "acme",
        "cloud_init_config": {"growpart": {"mode": "off"}},
        "cloud_init_datasources": ["NoCloud"],
    }
    config = yaml.safe_load(
        Rendered(checkout, "debian-12", **given).written()["/etc/cloud/cloud.cfg.d/99-cloudimg.cfg"]
    )
    assert config["datasource_list"] == ["NoCloud"]
    assert config["system_info"]["default_user"]["name"] == "acme"
    assert config["growpart"] == {"mode": "off", "devices": ["/"]}


def test_the_packages(rendered, system):
    packages = rendered["__cloud_init_packages_wanted"]
    assert {"cloud-init", "qemu-guest-agent", "sudo"} <= set(packages)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]+", name) for name in packages)
    assert {"cloud-guest-utils", "cloud-utils-growpart", "growpart"} & set(packages)
    assert {"openssh-server", "openssh"} & set(packages)
    assert ("systemd-resolved" in packages) == (system in ("debian-12", "debian-13", "ubuntu-24.04"))
    assert ("cloud-initramfs-growroot" in packages) == system.startswith("ubuntu")
    assert "one-context" in rendered["__cloud_init_packages_unwanted"]
    assert not set(packages) & set(rendered["__cloud_init_packages_unwanted"])


@pytest.mark.parametrize(("how", "expected"), [("always", True), ("never", False)])
def test_growing_in_the_initramfs_is_a_matter_of_choice(checkout, how, expected):
    for system in ("debian-12", "ubuntu-24.04"):
        packages = Rendered(checkout, system, cloud_init_growroot=how)["__cloud_init_packages_wanted"]
        assert ("cloud-initramfs-growroot" in packages) is expected


def test_exactly_one_flavour(checkout, system):
    other = Rendered(checkout, system, cloud_init_flavour="one-context")
    assert "cloud-init" in other["__cloud_init_packages_unwanted"]
    assert "cloud-init" not in other["__cloud_init_packages_wanted"]
    assert "one-context" not in other["__cloud_init_packages_unwanted"]
    assert not [path for path in other.written() if "cloud/" in path or "vmcontext" in path]
    assert not [unit for unit in other["__cloud_init_services_wanted"] if "vmcontext" in unit]


def test_without_the_guest_agent_it_is_removed(checkout, system):
    rendered = Rendered(checkout, system, cloud_init_guest_agent=False)
    assert "qemu-guest-agent" not in rendered["__cloud_init_packages_wanted"]
    assert "qemu-guest-agent" in rendered["__cloud_init_packages_unwanted"]


def test_without_vmcontext_there_is_nothing_of_it(checkout, system):
    for given in ({"cloud_init_vmcontext": False}, {"cloud_init_disabled": ["vmcontext"]}):
        rendered = Rendered(checkout, system, **given)
        assert not [path for path in rendered.written() if "vmcontext" in path]
        assert not [unit for unit in rendered["__cloud_init_services_wanted"] if "vmcontext" in unit]


def test_units_and_their_like_can_be_read(rendered):
    kinds = (
        ".service",
        ".network",
        ".preset",
        "/logind.conf.d/50-cloudimg.conf",
        "NetworkManager/conf.d",
    )
    found = 0
    for path, text in rendered.written().items():
        assert "{{" not in text, path
        assert text.endswith("\n") or path.endswith(".preset"), path
        if any(kind in path for kind in kinds) and not path.endswith(".preset"):
            parser = configparser.RawConfigParser(strict=False, delimiters=("=",))
            parser.optionxform = str
            parser.read_string(text)
            assert parser.sections(), path
            found += 1
    assert found >= 4


def test_each_card_asks_for_an_address(rendered, system):
    written = rendered.written()
    if system in NETWORKD:
        assert "Type=ether" in written["/etc/systemd/network/90-cloudimg-dhcp.network"]
        assert "systemd-networkd.service" in rendered["__cloud_init_services_wanted"]
    else:
        assert "NetworkManager.service" in rendered["__cloud_init_services_wanted"]
        assert "NetworkManager-config-server" in rendered["__cloud_init_packages_unwanted"]
        assert not [path for path in written if path.startswith("/etc/systemd/network/")]


def test_no_configuration_of_a_card_stays(rendered, tmp_path):
    traces = [
        "etc/udev/rules.d/70-persistent-net.rules",
        "etc/netplan/00-installer-config.yaml",
        "etc/network/interfaces.d/ens3",
        "etc/NetworkManager/system-connections/ens3.nmconnection",
        "etc/sysconfig/network-scripts/ifcfg-ens3",
        "etc/sysconfig/network/ifcfg-eth0",
    ]
    others = ["etc/sysconfig/network-scripts/ifcfg-lo", "etc/sysconfig/network/ifcfg.template"]
    for name in [*traces, *others]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("HWADDR=52:54:00:00:00:01\n")
    (operation,) = [operation for operation in rendered.operations() if operation.name == "no_card_names"]
    perform(operation, tmp_path)
    assert [name for name in traces if (tmp_path / name).exists()] == []
    assert [name for name in others if not (tmp_path / name).exists()] == []
    assert perform(operation, tmp_path) == []
    assert not re.search("(?i)hwaddr|uuid", "".join(operation.write.values()))


def test_the_leases_are_kept_out_of_the_main_log(rendered, system):
    written = rendered.written()
    drop_in = "/etc/systemd/system/systemd-networkd.service.d/50-cloudimg-log.conf"
    assert (written.get(drop_in) == "[Service]\nLogLevelMax=notice\n") == (system in NETWORKD)
    assert "/var/log/dhcp.log" in written["/etc/rsyslog.d/20-cloudimg-dhcp.conf"]
    assert "maxsize 16M" in written["/etc/logrotate.d/cloudimg-dhcp"]


def test_a_slow_device_is_no_emergency_where_systemd_can_be_told(rendered, system):
    told = "DefaultDeviceTimeoutSec=5min" in rendered.written().get("/etc/systemd/system.conf.d/50-cloudimg.conf", "")
    assert told == (system not in ("debian-11", "ubuntu-22.04"))


def test_the_boot_loader(rendered, system):
    settings = rendered.written()[rendered["__cloud_init_boot_loader_file"]]
    values = dict(line.split("=", 1) for line in settings.splitlines())
    assert values["GRUB_CMDLINE_LINUX"] == '"console=tty0 console=ttyS0,115200"'
    assert values["GRUB_TERMINAL"] == '"console serial"'
    assert ("GRUB_ENABLE_BLSCFG" in values) == (SYSTEMS[system][0] == "RedHat")
    assert rendered["__cloud_init_boot_loader_update"][0] in ("update-grub", "grub2-mkconfig")


def test_the_initramfs(rendered):
    texts = "".join(rendered["__cloud_init_initramfs"]["files"].values())
    assert {"virtio_blk", "virtio_net", "xen-blkfront", "xen-netfront"} <= set(texts.split())
    assert rendered["__cloud_init_initramfs"]["rebuild"][0] in ("update-initramfs", "dracut")


@pytest.mark.parametrize(
    ("system_", "names", "others"),
    [
        ("debian-12", ["initrd.img-6.1.0-56-cloud-amd64"], ["vmlinuz-6.1.0-56-cloud-amd64", "initrd.img"]),
        (
            "rocky-9",
            ["initramfs-5.14.0-503.el9.x86_64.img"],
            ["initramfs-0-rescue-0123.img", "initramfs-5.14.0-503.el9.x86_64kdump.img", "vmlinuz-5.14.0"],
        ),
        ("leap-15", ["initrd-6.4.0-150600.23-default"], ["initrd", "initrd-6.4.0-150600.23-default-kdump"]),
    ],
)
def test_the_names_of_an_initramfs(checkout, system_, names, others):
    images = re.compile(Rendered(checkout, system_)["__cloud_init_initramfs"]["images"])
    assert [name for name in [*names, *others] if images.fullmatch(name)] == names


def missing(checkout, system: str, listed: str, image: str) -> list[str]:
    """What the role would say that an initramfs lacks, of a kernel with three drivers."""
    files = [
        "/lib/modules/6.1.0-1/kernel/drivers/block/virtio_blk.ko",
        "/lib/modules/6.1.0-1/kernel/drivers/net/xen-netfront.ko.xz",
        "/lib/modules/5.0.0-1/kernel/drivers/net/virtio_net.ko",
    ]
    given = {
        "__cloud_init_drivers_found": {"files": [{"path": path} for path in files]},
        "__cloud_init_initramfs_lists": {
            "results": [{"__cloud_init_initramfs_image": {"path": image}, "stdout_lines": listed.splitlines()}]
        },
    }
    return Rendered(checkout, system, **given)["__cloud_init_drivers_missing"]


@pytest.mark.parametrize(
    ("system_", "image"),
    [
        ("debian-12", "/boot/initrd.img-6.1.0-1"),
        ("rocky-9", "/boot/initramfs-6.1.0-1.img"),
        ("leap-15", "/boot/initrd-6.1.0-1"),
    ],
)
def test_what_an_initramfs_lacks(checkout, system_, image):
    blk = "usr/lib/modules/6.1.0-1/kernel/drivers/block/virtio_blk.ko"
    net = "-rw-r--r-- 1 root root 8192 Jan 1 1970 usr/lib/modules/6.1.0-1/kernel/drivers/net/xen-netfront.ko.xz"
    assert missing(checkout, system_, f"{blk}\n{net}", image) == []
    assert missing(checkout, system_, blk, image) == ["xen-netfront (6.1.0-1)"]
    assert missing(checkout, system_, "", image) == ["virtio_blk (6.1.0-1)", "xen-netfront (6.1.0-1)"]


@pytest.mark.parametrize(
    ("given", "key"),
    [
        (
            {"cloud_init_flavour": "one-context", "cloud_init_one_context_package": "/no/such.deb"},
            "cloud_init_one_context_package",
        ),
        ({"cloud_init_one_context_checksum": "0123"}, "cloud_init_one_context_checksum"),
        ({"cloud_init_vmcontext_directory": "mnt"}, "cloud_init_vmcontext_directory"),
        ({"cloud_init_disabled": ["boot_loader", "vmcontxt"]}, "cloud_init_disabled"),
        ({}, ""),
        ({"cloud_init_flavour": "one-context", "cloud_init_one_context_package": "https://example.org/a.deb"}, ""),
    ],
)
def test_options_that_make_no_sense_are_named(checkout, given, key):
    wrong = Rendered(checkout, "debian-12", **given)["__cloud_init_options_wrong"]
    assert [message.partition(":")[0] for message in wrong] == ([key] if key else [])
    assert all("\n" not in message for message in wrong)
