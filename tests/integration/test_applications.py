# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role applications, in the disk of a small system: repositories, packages, files, scripts; and what it refuses."""

from __future__ import annotations

import hashlib
import os
import typing as t
from pathlib import Path

import apt_repository
import pytest
from test_guest_stages import IMAGE, Played, Site, script
from tiny_system import as_base, tiny_disk

from ansible_collections.cloudimg.factory.plugins.module_utils import _qemu_img, _state

pytestmark = pytest.mark.root
KERNELS = ["linux-image-6.1.0-9-tiny", "linux-image-6.1.0-25-tiny", "linux-image-6.1.0-25-cloud-tiny"]


@pytest.fixture(scope="module")
def signer(tmp_path_factory) -> apt_repository.Signer:
    """The key of the repository."""
    return apt_repository.Signer(tmp_path_factory.mktemp("gpg") / "home", "acme")


@pytest.fixture(scope="module")
def repository(tmp_path_factory, signer) -> t.Iterator[tuple[str, list[tuple[str, str]]]]:
    """A repository on the loopback, and what it was asked for."""
    folder = tmp_path_factory.mktemp("apt")
    made = [apt_repository.package(folder, "acme-tool", files={"/usr/share/acme/tool": "of acme\n"})]
    made += [
        apt_repository.package(folder, "acme-unwanted"),
        *(apt_repository.package(folder, name) for name in KERNELS),
    ]
    root = apt_repository.publish(folder / "root", made, signer)
    with apt_repository.served(root) as (url, asked):
        yield url, asked


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """The small system without the repositories of its distribution, which here are not to be asked.

    It is kept where that one is.
    """
    root = tmp_path_factory.mktemp("bare")
    disk = Path(os.environ.get("CLOUDIMG_TEST_FACTORY", root)) / "tiny-system-bare.qcow2"
    if disk.exists():
        return disk
    base = as_base(tiny_disk(tmp_path_factory.getbasetemp()), _state.Workspace(root / "workspace"), "cloud_init")
    made = Site(root, base, "cloud_init", ("applications",), {"applications_upgrade": False})
    text = "export DEBIAN_FRONTEND=noninteractive; apt-get -qq update; apt-get -qqy install python3-apt >/dev/null"
    text += "; rm -r /etc/apt/sources.list* /var/lib/apt/lists/*; mkdir /etc/apt/sources.list.d"
    # What Ansible needs of APT would come from there, too.
    played = made.play(image_scripts=[script(made, f"set -e; {text}")])
    assert played.rc == 0, played.output[-3000:]
    _qemu_img.convert(made.layer("applications"), disk, source_fmt="qcow2", target_fmt="qcow2")
    return disk


@pytest.fixture
def site(tmp_path, bare) -> t.Iterator[Site]:
    """A site for the stage applications alone; in the end its base is as it was, and nothing is open."""
    base = as_base(bare, _state.Workspace(tmp_path / "workspace"), "cloud_init")
    before = hashlib.sha256(base.read_bytes()).hexdigest()
    yield Site(tmp_path, base, "cloud_init", ("applications",), {"applications_upgrade": False})
    assert hashlib.sha256(base.read_bytes()).hexdigest() == before


def refused(site: Site, **settings: t.Any) -> str:
    """The one line in which a run ends that fails; nothing of it is left."""
    played = site.play(**settings)
    assert played.rc != 0, played.output[-3000:]
    assert list(site.workspace.layers.glob("applications-*")) == []
    assert site.nothing_open()
    return told(played)


def told(played: Played) -> str:
    """The message of the task that failed last."""
    assert "applications: " in played.failure, played.output[-3000:]
    return played.failure.partition('"}')[0]


def acme(
    repository: tuple[str, list[tuple[str, str]]], signer: apt_repository.Signer, **more: t.Any
) -> dict[str, t.Any]:
    """The repository as the role is told of it."""
    given = {"name": "acme", "url": repository[0], "suites": ["stable"], "key": signer.public}
    return {**given, "fingerprint": signer.fingerprint, **more}


def looked(site: Site, **commands: str) -> dict[str, str]:
    """What several commands say in the layer, by their names; to open it is the slow part."""
    said = site.look("applications", "; echo; echo =====; ".join(commands.values())).split("=====")
    return dict(zip(commands, (text.strip() for text in said)))


def test_an_ephemeral_repository_and_its_key_are_gone(site, repository, signer):
    played = site.play(
        applications_repositories=[acme(repository, signer, ephemeral=True)],
        image_packages=["acme-tool", "acme-unwanted", *KERNELS],
        applications_packages_absent=["acme-unwanted"],
        image_scripts=[
            script(site, "cp /etc/apt/sources.list.d/acme.sources /root/seen; ls /etc/apt/keyrings >> /root/seen")
        ],
    )
    assert played.rc == 0, played.output[-3000:]
    said = looked(
        site,
        tool="cat /usr/share/acme/tool",
        seen="cat /root/seen",
        packages="dpkg-query -W -f '${Package}\\n'",
        names="find / -xdev -name '*acme*' -path '*apt*'; grep -rls acme /etc || true",
        places=f"grep -rls '{repository[0].partition('//')[2]}' /etc /var /run --exclude-dir=log || true",
        keys=f"grep -rls '{signer.public.splitlines()[3]}' /etc /var /usr/share/keyrings || true",
    )
    assert said["tool"] == "of acme"
    assert "acme.asc" in said["seen"]
    installed = said["packages"].split()
    assert "acme-unwanted" not in installed
    # the newest of each flavour
    assert [name for name in installed if name.startswith("linux-image")] == sorted(KERNELS[1:])
    assert (said["names"], said["places"], said["keys"]) == ("", "", "")
    assert site.nothing_open()


def test_a_repository_that_stays(site, repository, signer):
    files = site.root / "files"
    files.mkdir()
    (files / "acme.asc").write_text(signer.public, encoding="utf-8")
    given = acme(repository, signer, key="acme.asc", components=["main"], description="Acme's own")
    played = site.play(applications_repositories=[given], image_packages=["acme-tool"])
    assert played.rc == 0, played.output[-3000:]
    said = site.look("applications", "cat /etc/apt/sources.list.d/acme.sources /etc/apt/keyrings/acme.asc")
    assert said.startswith(f"# Acme's own\nTypes: deb\nURIs: {repository[0]}\nSuites: stable\nComponents: main\n")
    assert "Signed-By: /etc/apt/keyrings/acme.asc\n" in said
    assert signer.public.strip() in said


def test_a_key_that_is_another(site, repository, signer, tmp_path):
    other = apt_repository.Signer(tmp_path / "gpg", "other")
    line = refused(site, applications_repositories=[acme(repository, signer, key=other.public)])
    assert (
        f"applications_repositories: acme: the key is {other.fingerprint}, not {signer.fingerprint}; "
        "find out from the vendor whether its key changed"
    ) in line


def test_a_repository_that_another_key_signed(site, repository, signer, tmp_path):
    other = apt_repository.Signer(tmp_path / "gpg", "other")
    given = acme(repository, signer, key=other.public, fingerprint=other.fingerprint)
    line = refused(site, applications_repositories=[given], image_packages=["acme-tool"])
    assert "applications: Install the packages: " in line


def test_a_key_without_a_fingerprint(site, repository, signer):
    given = {name: value for name, value in acme(repository, signer).items() if name != "fingerprint"}
    line = refused(site, applications_repositories=[given])
    assert "applications_repositories: acme: key and fingerprint must both be given" in line


def test_a_package_that_does_not_exist(site, repository, signer):
    wanted = {"applications_repositories": [acme(repository, signer)], "image_packages": ["no-such-package"]}
    line = refused(site, **wanted)
    assert line == (
        "applications: Install the packages: No package matching 'no-such-package' is available; correct image_packages"
    )


def test_mirror_and_proxy_leave_no_trace(site, repository, signer):
    url, asked = repository
    vendor = {"name": "vendor", "url": "http://vendor.example.org/debian", "suites": ["stable"]}
    vendor.update(key=signer.public, fingerprint=signer.fingerprint)
    # By the mirror one is at another place than it says, by the proxy the other.
    proxied = acme(("http://acme.example.org", []), signer)
    asked.clear()
    played = site.play(
        applications_repositories=[vendor, proxied],
        applications_mirrors={"http://vendor.example.org/debian": url},
        applications_proxy=url,
        image_packages=["acme-tool"],
        image_scripts=[script(site, "echo proxy=$http_proxy; grep -h URIs /etc/apt/sources.list.d/vendor.sources")],
    )
    assert played.rc == 0, played.output[-3000:]
    hosts = {host for path, host in asked}
    assert "acme.example.org" in hosts
    assert url.partition("//")[2] in hosts
    log = next((site.workspace.builds / IMAGE).glob("*/logs/applications-setup.sh.log"))
    assert log.read_text() == f"proxy={url}\nURIs: {url}\n"
    said = looked(
        site,
        vendor="cat /etc/apt/sources.list.d/vendor.sources",
        traces="grep -rls 127.0.0.1: /etc /var /root /run --exclude-dir=log || true",
    )
    assert said["vendor"].count("vendor.example.org/debian") == 1
    assert said["traces"] == ""


def test_a_mirror_that_is_there_already(site, repository, signer):
    url, _asked = repository
    line = refused(site, applications_repositories=[acme(repository, signer)], applications_mirrors={"http://x": url})
    assert f"applications_mirrors: {url} stands in the image's own list of repositories; remove it" in line


def test_files(site):
    (site.root / "motd").write_text("from the site\n", encoding="utf-8")
    files: list[dict[str, t.Any]] = [
        {"dest": "/etc/acme/deep/motd", "src": "motd", "mode": "0600", "owner": "daemon", "group": "daemon"},
        {"dest": "/etc/acme/said", "content": "a text"},
    ]
    played = site.play(applications_files=files)
    assert played.rc == 0, played.output[-3000:]
    said = site.look(
        "applications", "stat -c '%a %U %G' /etc/acme/*/motd /etc/acme/said; cat /etc/acme/*/motd /etc/acme/said"
    )
    assert said == "600 daemon daemon\n644 root root\nfrom the site\na text"
    again = site.play(applications_files=files)
    assert again.stats["changed"] == 0
    (site.root / "motd").write_text("changed\n", encoding="utf-8")
    assert "changed since the last layer: files" in site.play("--check", "-v", applications_files=files).output
    line = refused_again(site, applications_files=[{"dest": "/etc/x"}])
    assert "applications_files: /etc/x: give either src or content" in line


def refused_again(site: Site, **settings: t.Any) -> str:
    """The one line in which a run ends that fails, when there is a layer of another run."""
    layers = list(site.workspace.layers.iterdir())
    played = site.play(**settings)
    assert played.rc != 0
    assert set(site.workspace.layers.iterdir()) == set(layers)
    return told(played)


def test_a_script_with_arguments_and_environment(site):
    path = script(site, 'printf "%s|" "$@" "$GREETING" "$COMMON" > /etc/said')
    given = {"file": path, "arguments": ["two words", "a'b", "$HOME"], "environment": {"GREETING": "hello there"}}
    common = {"applications_script_environment": {"COMMON": "1", "GREETING": "no"}}
    played = site.play(image_scripts=[given], **common)
    assert played.rc == 0, played.output[-3000:]
    said = looked(site, said="cat /etc/said", left="ls -A /run /tmp /root")
    assert said["said"] == "two words|a'b|$HOME|hello there|1|"
    assert "ansible" not in said["left"]
    given["arguments"] = ["other"]
    planned = site.play("--check", "-v", image_scripts=[given], **common)
    assert "changed since the last layer: image_scripts" in planned.output


def test_a_script_that_reboots(site):
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    line = refused(site, image_scripts=[script(site, "reboot || true; touch /etc/after; exit 0")])
    assert "setup.sh: image_scripts: tried to stop or restart the machine (reboot); correct it (" in line
    # by its path it is the system's own, which only says that it does nothing
    line = refused(site, image_scripts=[script(site, "exec /sbin/reboot")])
    assert "setup.sh: image_scripts: tried to stop or restart the machine; correct it (" in line
    assert Path("/proc/sys/kernel/random/boot_id").read_text() == boot


def test_nothing_to_do_does_nothing(site):
    played = site.play()
    assert played.rc == 0, played.output[-3000:]
    assert "Know the system" not in played.output
