# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What molecule does not show of role cloud_init: a medium labelled CONTEXT, the other flavour, what it refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import textwrap
import time
import typing as t
from pathlib import Path

import ansible_runner
import pytest

pytestmark = pytest.mark.root
CHECKOUT = Path(__file__).resolve().parents[2]
SHARED = CHECKOUT / "molecule/shared"


# A medium labelled CONTEXT.


@dataclasses.dataclass
class Medium:
    """A medium with scripts on it, and what they have written."""

    folder: Path

    def write(self, name: str, text: str, mode: int = 0o755) -> None:
        """Put a file on it."""
        path = self.folder / "content" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        path.chmod(mode)

    def make(self) -> Path:
        """The medium: with ext4, since not every kernel that runs tests knows ISO 9660."""
        image = self.folder / "context.img"
        image.unlink(missing_ok=True)
        subprocess.run(["mkfs.ext4", "-q", "-d", self.folder / "content", image, "1M"], check=True, capture_output=True)
        return image

    def run(self, phase: str, medium: Path | None = None) -> subprocess.CompletedProcess[str]:
        """What the unit of a phase runs, in a namespace of mounts; afterwards it tells what is still mounted."""
        script = CHECKOUT / "roles/cloud_init/files/vmcontext.sh"
        inner = '/bin/sh "$0" "$1"; code=$?; grep -c context.img /proc/self/mountinfo >"$2"; exit $code'
        return subprocess.run(
            ["unshare", "--mount", "/bin/sh", "-c", inner, script, phase, self.folder / "mounts"],
            env={
                "PATH": os.environ["PATH"],
                "VMCONTEXT_MEDIUM": str(medium or self.make()),
                "VMCONTEXT_TYPE": "ext4",
                "VMCONTEXT_DIRECTORY": str(self.folder / "point"),
                "SAID": str(self.folder / "said"),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def said(self) -> list[str]:
        """What the scripts have written."""
        path = self.folder / "said"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def attached(self) -> str:
        """The loop device that it still is."""
        argv = ["losetup", "--associated", self.folder / "context.img"]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    def mounts(self) -> int:
        """How many mounts of it there were afterwards."""
        return int((self.folder / "mounts").read_text(encoding="utf-8"))


@pytest.fixture
def medium(tmp_path) -> Medium:
    made = Medium(tmp_path)
    for name in ("prolog.sh", "init.sh", "epilog.sh"):
        made.write(name, f'#!/bin/sh\necho "{name} $* $(pwd)" >>"$SAID"\n')
    made.write("context.sh", 'echo "context.sh was run" >>"$SAID"\nNAME="acme"\n', 0o644)
    return made


def test_each_phase_runs_its_scripts(medium, tmp_path):
    assert medium.run("prolog").returncode == 0
    assert medium.said() == [f"prolog.sh start {tmp_path}/point"]
    assert medium.run("epilog").returncode == 0
    assert medium.said()[1:] == [f"init.sh  {tmp_path}/point", f"epilog.sh start {tmp_path}/point"]
    assert medium.mounts() == 0


def test_init_sh_may_read_context_sh_which_nobody_else_runs(medium):
    medium.write("init.sh", '#!/bin/sh\nNAME=$(. ./context.sh >/dev/null; echo "$NAME")\necho "name $NAME" >>"$SAID"\n')
    assert medium.run("epilog").returncode == 0
    assert medium.said().count("context.sh was run") == 1
    assert "name acme" in medium.said()


def test_a_script_that_is_not_executable_runs_all_the_same(medium):
    medium.write("init.sh", 'echo "not executable $*" >>"$SAID"\n', 0o644)
    assert medium.run("epilog").returncode == 0
    assert medium.said()[0] == "not executable "


def test_a_script_that_fails_is_named_and_the_others_run(medium):
    medium.write("init.sh", "#!/bin/sh\nexit 3\n")
    done = medium.run("epilog")
    assert done.returncode == 1
    assert done.stderr == "vmcontext: init.sh ended with 3\n"
    assert medium.said()[0].startswith("epilog.sh start")
    assert medium.mounts() == 0


def test_what_a_script_left_running_does_not_keep_the_medium(medium):
    medium.write("init.sh", "#!/bin/sh\nsleep 2 >/dev/null 2>&1 &\n")
    assert medium.run("epilog").returncode == 0
    assert medium.mounts() == 0
    deadline = time.monotonic() + 60
    while medium.attached() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert medium.attached() == ""


def test_a_medium_without_scripts_and_no_medium_at_all(medium, tmp_path):
    shutil.rmtree(tmp_path / "content")
    medium.write("context.sh", "NETWORK=YES\n")
    for given in (None, tmp_path / "nothing"):
        done = medium.run("epilog", given)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert medium.said() == []
    assert medium.mounts() == 0


def test_what_is_no_medium_is_an_error_and_nothing_stays(medium, tmp_path):
    garbage = tmp_path / "context.img"
    garbage.write_bytes(b"no medium" * 1000)
    done = medium.run("epilog", garbage)
    assert done.returncode == 1
    assert "mount" in done.stderr
    assert medium.said() == []
    assert medium.mounts() == 0


# Whole runs of the role.


PLAY = """
- hosts: all
  gather_facts: false
  roles: [cloudimg.factory.cloud_init]
"""


@dataclasses.dataclass
class Guest:
    """A small Debian in a directory, as molecule has them."""

    root: Path
    folder: Path

    def run(self, *argv: str) -> str:
        """What a command in it says."""
        done = subprocess.run([SHARED / "bin/chroot", self.root, *argv], capture_output=True, text=True, check=True)
        return done.stdout

    def play(self, **extra: t.Any) -> tuple[int, str, dict[str, t.Any]]:
        """Run the role: return code, the message of the task that failed, and statistics."""
        play = self.folder / "play.yml"
        play.write_text(PLAY, encoding="utf-8")
        variables = {
            "ansible_connection": "community.general.chroot",
            "ansible_host": str(self.root),
            "ansible_chroot_exe": str(SHARED / "bin/chroot"),
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_remote_tmp": "/run/ansible",
            **extra,
        }
        inventory = self.folder / "hosts.json"
        inventory.write_text(json.dumps({"all": {"hosts": {"guest": variables}}}), encoding="utf-8")
        runner = ansible_runner.run(
            private_data_dir=str(self.folder),
            playbook=str(play),
            inventory=str(inventory),
            quiet=True,
            envvars={"ANSIBLE_COLLECTIONS_PATH": os.environ["ANSIBLE_COLLECTIONS_PATH"], "ANSIBLE_NOCOLOR": "1"},
        )
        failed = [event["event_data"]["res"] for event in runner.events if event["event"] == "runner_on_failed"]
        return runner.rc, str(failed[-1].get("msg")) if failed else "", runner.stats


@pytest.fixture(scope="module")
def system(tmp_path_factory) -> Path:
    """What molecule made or will make, with a boot loader and a kernel as its scenario has them."""
    folder = tmp_path_factory.mktemp("system")
    packages = "systemd-sysv,dbus,python3,python3-apt,openssh-server,sudo,ca-certificates,cron,logrotate"
    root = folder / "root"
    subprocess.run([SHARED / "bin/system", "bookworm", CHECKOUT / "tests/output/systems", root, packages], check=True)
    (root / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
    (root / "usr/sbin/policy-rc.d").chmod(0o755)
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    return root


@pytest.fixture(scope="module")
def guest(system, tmp_path_factory) -> Guest:
    guest = Guest(system, tmp_path_factory.mktemp("play"))
    guest.run("apt-get", "--quiet", "update")
    return guest


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A package that looks to APT like OpenNebula's: it replaces cloud-init."""
    folder = tmp_path_factory.mktemp("package")
    control = folder / "one-context/DEBIAN/control"
    control.parent.mkdir(parents=True)
    control.write_text(
        "Package: one-context\nVersion: 7.0.0\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\n"
        "Conflicts: cloud-init\nReplaces: cloud-init\nDescription: contextualization\n"
    )
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", control.parents[1]], check=True, capture_output=True)
    return folder / "one-context.deb"


OPTIONS = {"cloud_init_flavour": "one-context", "cloud_init_disabled": ["boot_loader"]}


def test_one_context_that_nobody_has(guest):
    rc, message, _stats = guest.play(**OPTIONS)
    assert rc != 0
    assert message == (
        "cloud_init_flavour: no repository of the system has the package one-context; name its file or URL in"
        " cloud_init_one_context_package"
    )


def test_a_file_of_one_context_that_is_not_there(guest):
    rc, message, _stats = guest.play(**OPTIONS, cloud_init_one_context_package="/no/such/file.deb")
    assert rc != 0
    assert message == (
        "cloud_init_one_context_package: /no/such/file.deb is no file here; write its absolute path, or a URL that begins"
        " with https://"
    )


def test_a_file_of_one_context_that_is_another(guest, package):
    checksum = f"sha256:{'0' * 64}"
    rc, message, _stats = guest.play(
        **OPTIONS, cloud_init_one_context_package=str(package), cloud_init_one_context_checksum=checksum
    )
    assert rc != 0
    assert message.startswith(f"cloud_init_one_context_checksum: {package} has ")
    assert "\n" not in message
    assert not list(guest.root.glob("var/tmp/cloudimg*"))


def test_an_unknown_flavour(guest):
    rc, message, _stats = guest.play(cloud_init_flavour="two-context")
    assert rc != 0
    assert "cloud_init_flavour" in message
    assert "two-context" in message


def test_an_unknown_operation(guest):
    rc, message, _stats = guest.play(cloud_init_disabled=["vmcontxt"])
    assert rc != 0
    assert message.startswith("cloud_init_disabled: there is no vmcontxt; use always_run, boot_loader, cloud_config, ")


@pytest.mark.slow
def test_one_context_instead_of_cloud_init(guest, package):
    checksum = "sha256:" + subprocess.check_output(["sha256sum", package], text=True).split()[0]
    options = {**OPTIONS, "cloud_init_one_context_package": str(package), "cloud_init_one_context_checksum": checksum}
    rc, message, stats = guest.play(**options)
    assert rc == 0, message
    installed = guest.run("dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\\n").splitlines()
    assert "one-context installed" in installed
    assert not [line for line in installed if line.startswith("cloud-init ")]
    assert not (guest.root / "etc/cloud").exists()
    assert not list(guest.root.glob("etc/systemd/system/vmcontext*"))
    assert not list(guest.root.glob("var/tmp/cloudimg*"))
    rc, message, stats = guest.play(**options)
    assert rc == 0, message
    assert not stats["changed"]


@pytest.mark.slow
def test_and_back_again(guest):
    options = {"cloud_init_disabled": ["boot_loader"]}
    rc, message, _stats = guest.play(**options)
    assert rc == 0, message
    installed = guest.run("dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\\n").splitlines()
    assert "cloud-init installed" in installed
    assert "one-context installed" not in installed


@pytest.mark.slow
def test_an_initramfs_that_lacks_drivers_is_made_again(guest):
    """As an installer may leave it, which puts in what its own machine has."""
    settings = guest.root / "etc/initramfs-tools/conf.d"
    settings.mkdir(parents=True, exist_ok=True)
    for path in (settings / "zz-cloudimg", guest.root / "etc/initramfs-tools/hooks/cloudimg"):
        path.unlink(missing_ok=True)
    (settings / "driver-policy").write_text("MODULES=list\n")
    packages = ["linux-image-cloud-amd64", "initramfs-tools", "zstd"]
    guest.run("apt-get", "--quiet", "--yes", "--no-install-recommends", "install", *packages)
    (kernel,) = (path.name for path in (guest.root / "lib/modules").iterdir())
    image = f"/boot/initrd.img-{kernel}"
    assert "xen-netfront.ko" not in guest.run("lsinitramfs", image)
    rc, message, _stats = guest.play(cloud_init_disabled=["boot_loader"])
    assert rc == 0, message
    listed = guest.run("lsinitramfs", image)
    missing = [
        name for name in ("virtio_blk", "virtio_net", "xen-blkfront", "xen-netfront") if f"{name}.ko" not in listed
    ]
    assert missing == []
    made = (guest.root / image.lstrip("/")).stat().st_mtime_ns
    rc, message, stats = guest.play(cloud_init_disabled=["boot_loader"])
    assert rc == 0, message
    assert not stats["changed"]
    assert (guest.root / image.lstrip("/")).stat().st_mtime_ns == made
