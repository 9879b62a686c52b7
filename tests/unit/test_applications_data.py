# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role applications knows of each system, rendered: repositories, their traces, kernels."""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROLE = Path(__file__).resolve().parents[2] / "roles/applications"
SYSTEMS = {
    "Debian 11": ("Debian", "Debian", "11"),
    "Debian 12": ("Debian", "Debian", "12"),
    "Debian 13": ("Debian", "Debian", "13"),
    "Ubuntu 22.04": ("Debian", "Ubuntu", "22"),
    "Ubuntu 24.04": ("Debian", "Ubuntu", "24"),
    "AlmaLinux 9": ("RedHat", "AlmaLinux", "9"),
    "Rocky 10": ("RedHat", "Rocky", "10"),
    "CentOS Stream 9": ("RedHat", "CentOS", "9"),
    "Fedora": ("RedHat", "Fedora", "43"),
    "openSUSE Leap": ("Suse", "openSUSE Leap", "15"),
}
KNOWN = {
    f"__applications_{name}"
    for name in (
        "upgrade",
        "repository_template",
        "repository_folder",
        "repository_suffix",
        "keys",
        "key_suffix",
        "key_forget",
        "repository_files",
        "repository_traces",
        "kernels",
        "kernel_line",
        "kernel_version",
    )
}
REPOSITORY = {"name": "acme", "url": "https://me@example.org/a_b/", "key": "x", "fingerprint": "AB" * 20}


class System:
    """The variables of the role on a system."""

    def __init__(self, name: str) -> None:
        family, distribution, major = SYSTEMS[name]
        self._loader = DataLoader()
        facts = {
            "os_family": family,
            "distribution": distribution,
            "distribution_major_version": major,
            "distribution_release": "codename",
        }
        self.values: dict[str, t.Any] = {"ansible_facts": facts, "role_path": str(ROLE)}
        self._load("main")
        for path in self("__applications_os_files"):
            if Path(path).is_file():
                self._load(Path(path).stem)

    def _load(self, name: str) -> None:
        self.values.update(self._loader.load_from_file(str(ROLE / f"vars/{name}.yml"), trusted_as_template=True))

    def __call__(self, variable: str, **more: t.Any) -> t.Any:
        templar = Templar(self._loader, {**self.values, **more})
        return templar.template(trust_as_template(f"{{{{ {variable} }}}}"))

    def repository(self, **more: t.Any) -> str:
        path = ROLE / "templates" / self("__applications_repository_template")
        lookup = f"lookup('ansible.builtin.template', '{path}')"
        return str(self(lookup, __applications_repository={**REPOSITORY, **more}))


@pytest.mark.parametrize("name", SYSTEMS)
def test_everything_is_known_of_every_system(name: str) -> None:
    assert {key for key in System(name).values if key in KNOWN} == KNOWN


def test_files_of_variables_say_nothing_that_is_not_used() -> None:
    known = {*KNOWN, "__applications_repository_autorefresh"}
    for path in (ROLE / "vars").glob("[A-Z]*.yml"):
        assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) <= known, path


@pytest.mark.parametrize("name", [name for name in SYSTEMS if SYSTEMS[name][0] == "Debian"])
def test_repositories_of_apt(name: str) -> None:
    assert System(name).repository() == (
        "# acme\nTypes: deb\nURIs: https://me@example.org/a_b/\nSuites: codename\nComponents: main\n"
        "Signed-By: /etc/apt/keyrings/acme.asc\n"
    )
    flat = System(name).repository(suites=["./"], key="", types=["deb", "deb-src"], architectures=["amd64"])
    assert flat == "# acme\nTypes: deb deb-src\nURIs: https://me@example.org/a_b/\nSuites: ./\nArchitectures: amd64\n"


@pytest.mark.parametrize("name", [name for name in SYSTEMS if SYSTEMS[name][0] == "RedHat"])
def test_repositories_of_dnf(name: str) -> None:
    system = System(name)
    assert system.repository(description="Acme's own") == (
        "[acme]\nname=Acme's own\nbaseurl=https://me@example.org/a_b/\nenabled=1\ngpgcheck=1\n"
        "gpgkey=file:///etc/pki/rpm-gpg/acme.asc\n"
    )
    path = system("__applications_repository_path", __applications_repository=REPOSITORY)
    assert path == "/etc/yum.repos.d/acme.repo"
    forget = system("__applications_key_forget", __applications_forgotten="0" * 32 + "89ABCDEF")
    assert forget[-1] == "gpg-pubkey-89abcdef"


def test_repositories_of_zypper() -> None:
    assert System("openSUSE Leap").repository() == (
        "[acme]\nname=acme\nbaseurl=https://me@example.org/a_b/\nenabled=1\nautorefresh=1\ntype=rpm-md\ngpgcheck=1\n"
        "gpgkey=file:///etc/pki/rpm-gpg/acme.asc\n"
    )


@pytest.mark.parametrize(
    ("url", "pattern"),
    [
        ("https://example.org/debian/", "/var/lib/apt/lists/example.org_debian_*"),
        ("https://me:word@example.org:80/a_b", "/var/lib/apt/lists/example.org:80_a%5fb_*"),
        ("file:///srv/acme", "/var/lib/apt/lists/_srv_acme_*"),
        ("file:/srv/acme", "/var/lib/apt/lists/_srv_acme_*"),
    ],
)
def test_what_apt_keeps_of_a_repository(url: str, pattern: str) -> None:
    traces = System("Debian 12")(
        "__applications_repository_traces", __applications_traced_url=url, __applications_traced_name="acme"
    )
    assert traces == [pattern, "/var/cache/apt/*pkgcache.bin", "/var/cache/apt/archives/*.deb"]


@pytest.mark.parametrize(
    ("name", "line", "kernel", "flavour"),
    [
        ("Debian 12", "installed linux-image-6.1.0-25-amd64", "linux-image-6.1.0-25-amd64", "linux-image-amd64"),
        ("Debian 12", "installed linux-image-6.1.0-9-cloud-amd64", "linux-image-6.1.0-9-cloud-amd64", "linux-image-cloud-amd64"),
        ("Debian 13", "installed linux-image-6.12.48+deb13-amd64", "linux-image-6.12.48+deb13-amd64", "linux-image-amd64"),
        ("Debian 12", "config-files linux-image-6.1.0-9-amd64", None, ""),
        ("Ubuntu 24.04", "installed linux-image-6.8.0-45-generic", "linux-image-6.8.0-45-generic", "linux-image-generic"),
        ("AlmaLinux 9", "kernel-core-5.14.0-427.el9.x86_64", "kernel-core-5.14.0-427.el9.x86_64", "kernel-core"),
        ("AlmaLinux 9", "package kernel-core is not installed", None, ""),
        ("openSUSE Leap", "kernel-default-6.4.0-150600.1", "kernel-default-6.4.0-150600.1", "kernel-default"),
    ],
)  # fmt: skip
def test_kernels(name: str, line: str, kernel: str | None, flavour: str) -> None:
    system = System(name)
    found = re.match(system("__applications_kernel_line"), line)
    assert (found[1] if found else None) == kernel
    if kernel:
        assert re.sub(system("__applications_kernel_version"), "", kernel) == flavour
