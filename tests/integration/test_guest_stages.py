# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guest stages by their roles, on a small system that was not installed by us. Needs a package mirror."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import pytest
from tiny_system import ROOT_AT, Leftovers, as_base, tiny_disk

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli, _overlay, _qemu_img, _state, _supervisor
from ansible_collections.cloudimg.factory.plugins.module_utils._owner import Owner

pytestmark = pytest.mark.root
CHECKOUT = Path(__file__).resolve().parents[2]
IMAGE = "tiny"
STAGES = ("cloud_init", "applications", "harden", "sanitize")

_PLAYBOOK = """
- hosts: images
  gather_facts: false
  tasks:
    - cloudimg.factory.image_build:
        workspace: "{{ image_workspace }}"
        image: "{{ inventory_hostname }}"
        version: "1"
        digest: "1"
        definition: "{{ {'image_packages': image_packages, 'image_roles': image_roles, 'image_scripts': image_scripts,
                         'image_keep_on_failure': image_keep_on_failure} }}"
        state: begun
      delegate_to: localhost
      register: begun
    - cloudimg.factory.image_build:
        workspace: "{{ image_workspace }}"
        image: "{{ inventory_hostname }}"
        version: "1"
        state: recorded
        stage: "{{ first }}"
        record: {path: "{{ base }}", digest: "0000"}
      delegate_to: localhost
      register: begun
    - ansible.builtin.set_fact:
        cloudimg_build: "{{ begun.build | combine({'definition': {
                            'image_packages': image_packages, 'image_roles': image_roles, 'image_scripts': image_scripts,
                            'image_keep_on_failure': image_keep_on_failure}}) }}"
    - ansible.builtin.include_role:
        name: cloudimg.factory.layer
        apply: {tags: always}
      vars: {layer_stage: "{{ item }}"}
      loop: "{{ stages }}"
    - ansible.builtin.command: hostname
      delegate_to: localhost
      changed_when: false
"""


@dataclasses.dataclass
class Played:
    """One run of the playbook."""

    rc: int
    output: str
    stats: dict[str, int]

    @property
    def failure(self) -> str:
        """The message of the task that failed last."""
        return self.output.rpartition('"msg": "')[2].partition('"\n')[0].partition('",\n')[0]


@dataclasses.dataclass
class Site:
    """An inventory with one image, and its workspace."""

    root: Path
    base: Path
    first: str = "base_vm"
    stages: tuple[str, ...] = STAGES
    settings: dict[str, t.Any] = dataclasses.field(default_factory=dict)

    @property
    def workspace(self) -> _state.Workspace:
        """The workspace."""
        return _state.Workspace(self.root / "workspace")

    def argv(self, *options: str, **settings: t.Any) -> list[str]:
        """The command line of ansible-playbook."""
        (self.root / "play.yml").write_text(_PLAYBOOK, encoding="utf-8")
        (self.root / "hosts.yml").write_text("images: {hosts: {tiny: {}}}\n", encoding="utf-8")
        values = {
            "image_workspace": str(self.workspace.root),
            "image_packages": [],
            "image_roles": [],
            "image_scripts": [],
            "image_keep_on_failure": False,
            "harden_profile": "none",
            "base": str(self.base),
            "first": self.first,
            "stages": self.stages,
            **self.settings,
            **settings,
        }
        tool = str(Path(sys.executable).with_name("ansible-playbook"))
        return [
            tool,
            "-i",
            str(self.root / "hosts.yml"),
            "-e",
            json.dumps(values),
            *options,
            str(self.root / "play.yml"),
        ]

    def environment(self) -> dict[str, str]:
        """The environment of ansible-playbook."""
        config = {"ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"), "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}
        return {**os.environ, **config, "ANSIBLE_NOCOLOR": "1"}

    def play(self, *options: str, **settings: t.Any) -> Played:
        """Run the stages."""
        done = subprocess.run(
            self.argv(*options, **settings),
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        recap = next((line for line in done.stdout.splitlines() if line.startswith(f"{IMAGE} ")), "")
        stats = dict(pair.split("=") for pair in recap.partition(":")[2].split())
        return Played(done.returncode, done.stdout + done.stderr, {name: int(value) for name, value in stats.items()})

    def layer(self, stage: str) -> Path:
        """The newest layer of a stage."""
        return max(self.workspace.layers.glob(f"{stage}-*.qcow2"), key=lambda path: path.stat().st_mtime_ns)

    def look(self, stage: str, script: str) -> str:
        """What a shell script says inside the newest layer of a stage."""
        home = self.root / "look.tree"
        disk = self.root / "look.qcow2"
        layer = self.layer(stage)
        _supervisor.start(home, Owner.of(), disk, lambda path: _qemu_img.create(path, None, backing=layer), {})
        try:
            argv = [home / "enter", home / "root", "/bin/sh", "-c", script]
            return subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        finally:
            _supervisor.end(home)

    def nothing_open(self) -> bool:
        """Whether no layer is open or half written, and the kernel has nothing of it in use."""
        partial = [path.name for path in self.workspace.layers.iterdir() if "partial" in path.name]
        open_ones = list(self.workspace.run.glob("*.tree"))
        return not partial and not open_ones and Leftovers(self.workspace.root).none_within(60)


@pytest.fixture(scope="module")
def staged(tmp_path_factory) -> tuple[Site, Played]:
    """A site on which all the stages have run once."""
    root = tmp_path_factory.mktemp("stages")
    site = Site(root, as_base(tiny_disk(tmp_path_factory.getbasetemp()), _state.Workspace(root / "workspace")))
    return site, site.play()


@pytest.fixture
def short(tmp_path, tmp_path_factory) -> Site:
    """A site for the stage applications alone, which neither upgrades nor needs a mirror."""
    base = as_base(tiny_disk(tmp_path_factory.getbasetemp()), _state.Workspace(tmp_path / "workspace"), "cloud_init")
    site = Site(tmp_path, base, "cloud_init", ("applications",), {"applications_upgrade": False})
    yield site
    assert site.nothing_open()


def script(site: Site, text: str, name: str = "setup.sh") -> str:
    """A script of the user's."""
    path = site.root / name
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    return str(path)


def role(site: Site, tasks: str, handlers: str = "") -> str:
    """A role of the user's, beside the playbook."""
    for folder, text in (("tasks", tasks), ("handlers", handlers)):
        path = site.root / "roles" / "worker" / folder
        path.mkdir(parents=True, exist_ok=True)
        (path / "main.yml").write_text(text or "[]\n", encoding="utf-8")
    return "worker"


def test_all_stages_run(staged):
    site, played = staged
    assert played.rc == 0, played.output[-3000:]
    assert [len(list(site.workspace.layers.glob(f"{stage}-*.qcow2"))) for stage in STAGES] == [1, 1, 1, 1]
    assert site.nothing_open()


def test_the_image_is_ready_for_a_cloud(staged):
    site, _played = staged
    said = site.look(
        "cloud_init",
        "cat /etc/cloud/cloud.cfg.d/99-cloudimg.cfg; dpkg-query -W cloud-init openssh-server qemu-guest-agent;"
        " systemctl is-enabled systemd-networkd systemd-resolved ssh; grep vmlinuz /boot/grub/grub.cfg; ls -A /root",
    )
    assert "datasource_list: [NoCloud, ConfigDrive, OpenNebula, OpenStack, Ec2, None]" in said
    assert said.count("enabled\n") == 3
    assert "root=UUID=" in said
    assert "console=tty0 console=ttyS0,115200" in said
    assert ".ansible" not in said


def test_nothing_of_the_work_stays(staged):
    site, _played = staged
    raw = site.root / "raw"
    _overlay.unpack(site.layer("cloud_init"), raw)

    def stat(path: str) -> str:
        argv = [_cli.require("debugfs"), "-R", f"stat {path}", f"{raw}?offset={ROOT_AT}"]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        return done.stdout + done.stderr

    assert 'Fast link dest: "../run/systemd/resolve/stub-resolv.conf"' in stat("/etc/resolv.conf")
    for path in ("/usr/sbin/policy-rc.d", "/run/ansible", "/dev/root-volume", "/proc/self"):
        assert "File not found" in stat(path), path
    raw.unlink()


def test_the_image_remembers_nothing(staged):
    site, _played = staged
    said = site.look(
        "sanitize",
        "cat /etc/machine-id; ls /etc/ssh/ssh_host_* /etc/hostname /var/lib/systemd/random-seed /etc/passwd- 2>&1;"
        " find /var/lib/apt/lists /var/cache/apt /tmp /var/tmp /root -type f -not -name '.bashrc' -not -name .profile;"
        " find /var/log -type f -size +0",
    )
    lines = said.splitlines()
    assert lines[0] == "uninitialized"
    assert [line for line in lines[1:] if "No such file" not in line] == []
    packages = json.loads(site.layer("sanitize").with_suffix(".packages.json").read_text())
    assert {"cloud-init", "python3"} <= {row["name"] for row in packages["packages"]}


def test_again_changes_nothing(staged):
    site, _played = staged

    def cached() -> dict[str, bytes | int]:
        # the time of a record is that of the last use
        found = site.workspace.layers.iterdir()
        return {path.name: path.read_bytes() if path.suffix == ".json" else path.stat().st_mtime_ns for path in found}

    before = cached()
    played = site.play()
    assert played.rc == 0
    assert played.stats["changed"] == 0
    assert cached() == before


def test_check_mode_says_what_would_run_and_why(staged):
    site, _played = staged
    played = site.play("--check", "--diff", "-v", image_packages=["jq"])
    assert played.rc == 0, played.output[-2000:]
    assert (
        "run applications: changed since the last layer: image_packages"
        in site.play("--check", "-vv", image_packages=["jq"]).output
    )
    assert '"jq"' in played.output
    assert len(list(site.workspace.layers.glob("applications-*.qcow2"))) == 1


def test_a_package_more_runs_only_what_comes_after(staged):
    site, _played = staged
    played = site.play(image_packages=["jq"])
    assert played.rc == 0, played.output[-2000:]
    assert [len(list(site.workspace.layers.glob(f"{stage}-*.qcow2"))) for stage in STAGES] == [1, 2, 2, 2]
    assert "1.6" in site.look("sanitize", "jq --version")


def test_a_package_that_does_not_exist(staged):
    site, _played = staged
    played = site.play(image_packages=["no-such-package"])
    assert played.rc != 0
    assert "applications: Install the packages: No package matching 'no-such-package' is available" in played.output
    assert site.nothing_open()


def test_roles_scripts_and_handlers(short):
    tasks = """
- ansible.builtin.copy: {dest: /etc/worker, content: "by a role\\n"}
  notify: Told
- ansible.builtin.command: hostname
  delegate_to: localhost
  register: there
- ansible.builtin.copy: {dest: /etc/there, content: "{{ there.stdout }}"}
- ansible.builtin.command: whoami
  become: true
  become_user: daemon
  register: who
  vars: {ansible_become_method: ansible.builtin.su, ansible_become_flags: -s /bin/sh}
- ansible.builtin.copy: {dest: /etc/who, content: "{{ who.stdout }}"}
"""
    handlers = "- name: Told\n  ansible.builtin.copy: {dest: /etc/handled, content: yes}\n"
    played = short.play(
        image_roles=[role(short, tasks, handlers)],
        image_scripts=[script(short, "cat /etc/worker /etc/handled > /etc/scripted; echo $GREETING; echo there >&2")],
        applications_script_environment={"GREETING": "hello"},
    )
    assert played.rc == 0, played.output[-3000:]
    assert short.look("applications", "cat /etc/scripted").startswith("by a role\n")
    assert short.look("applications", "cat /etc/there") == os.uname().nodename
    assert short.look("applications", "cat /etc/who; ls /run; ls -A /root").startswith("daemon")
    log = next((short.workspace.builds / IMAGE).glob("*/logs/applications-setup.sh.log"))
    assert log.read_text() == "hello\nthere\n"


def test_changed_scripts_roles_and_variables_make_another_layer(short):
    wanted = {"image_scripts": [script(short, "true")], "image_roles": [role(short, "[]")]}
    assert short.play(**wanted).rc == 0

    def reason(**more: t.Any) -> str:
        found = re.search(
            r'"run applications: changed since the last layer: (.*?)"',
            short.play("--check", "-v", **wanted, **more).output,
        )
        return found[1] if found else ""

    assert reason(unrelated=1) == ""
    assert reason(worker_threads=4) == "worker_threads"
    script(short, "true # changed")
    assert reason() == "files"
    role(short, "- ansible.builtin.debug: {msg: changed}\n")
    assert reason() == "files, role worker"


def test_a_script_that_fails(short):
    played = short.play(image_scripts=[script(short, "echo doing; echo out of luck >&2; exit 3")])
    assert played.rc != 0
    assert "setup.sh: image_scripts: ended with 3: out of luck; correct it" in played.output
    assert list(short.workspace.layers.glob("applications-*")) == []


def test_a_script_that_hangs(short):
    played = short.play(image_scripts=[script(short, "sleep 1000")], applications_script_timeout=2)
    assert played.rc != 0
    assert "setup.sh: image_scripts: did not end within 2 s; correct it" in played.output


def test_a_script_that_reboots(short):
    call = "python3 -c 'import ctypes, sys; sys.exit(ctypes.CDLL(None).reboot(0x1234567) != 0)'"
    played = short.play(image_scripts=[script(short, call)])
    assert played.rc != 0
    assert "setup.sh: image_scripts: ended with 1" in played.output


def test_a_role_that_leaves_a_service_running(short):
    tasks = "- ansible.builtin.shell: nohup sleep 1000 >/dev/null 2>&1 &\n"
    played = short.play(image_roles=[role(short, tasks)])
    assert played.rc != 0
    assert "a process was left running in the offline tree: sleep" in played.output


def test_a_key_that_a_role_leaves(short):
    tasks = "- ansible.builtin.file: {path: /root/.ssh, state: directory, mode: '0700'}\n"
    tasks += "- ansible.builtin.copy: {dest: /root/.ssh/authorized_keys, content: key}\n"
    both = ("applications", "harden", "sanitize")
    played = short.play(
        stages=both,
        image_roles=[role(short, tasks)],
        sanitize_operations_extra=[
            {"name": "late", "description": "x", "write": {"/home/x/.ssh/authorized_keys": "key"}}
        ],
    )
    assert played.rc != 0
    assert "holds what must not be in an image: /home/x/.ssh/authorized_keys" in played.output
    assert list(short.workspace.layers.glob("sanitize-*")) == []
    kept = short.play(stages=both, image_roles=["worker"], sanitize_disabled=["ssh_userdir"])
    assert kept.rc == 0, kept.output[-2000:]


def test_an_operation_that_is_not_known(short):
    played = short.play(stages=("applications", "harden", "sanitize"), sanitize_disabled=["logz"])
    assert played.rc != 0
    assert "disabled: there is no operation 'logz'; did you mean logfiles?" in played.output


def test_a_failed_layer_can_be_kept_for_a_look(short):
    played = short.play(image_scripts=[script(short, "echo seen > /etc/seen; exit 1")], image_keep_on_failure=True)
    assert played.rc != 0
    home = short.workspace.run / f"cloudimg-{IMAGE}-applications.tree"
    assert f"look into it by: {home}/enter {home}/root /bin/bash; drop it by: kill -9 " in played.output
    assert subprocess.check_output([home / "enter", home / "root", "cat", "/etc/seen"]) == b"seen\n"
    _supervisor.end(home)


def test_ansible_playbook_killed_in_the_middle_then_started_again(short):
    wanted = {"image_scripts": [script(short, "touch /etc/begun; sleep 1000")]}
    process = subprocess.Popen(
        short.argv(**wanted), env=short.environment(), stdout=subprocess.DEVNULL, start_new_session=True
    )
    home = short.workspace.run / f"cloudimg-{IMAGE}-applications.tree"
    deadline = time.monotonic() + 120
    begun = [home / "enter", home / "root", "test", "-e", "/etc/begun"]
    while not (home / "enter").exists() or subprocess.run(begun, check=False, capture_output=True).returncode:
        assert time.monotonic() < deadline
        time.sleep(0.3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    script(short, "true")
    played = short.play(**wanted)
    assert played.rc == 0, played.output[-2000:]


def test_a_stage_without_the_one_before(short):
    played = short.play(stages=("sanitize",))
    assert played.rc != 0
    assert "build.json: stages: harden is missing; run the stages up to harden first" in played.output


@pytest.mark.slow
def test_a_booted_guest(full_build, tmp_path):
    factory, _played = full_build
    base = Path(factory.build("debian-12")[1]["stages"]["cloud_init"]["path"])
    site = Site(tmp_path, base, "cloud_init", ("applications", "harden", "sanitize"), {"applications_upgrade": False})
    tasks = """
- ansible.builtin.systemd_service: {name: systemd-timesyncd.service, state: restarted}
- ansible.builtin.copy: {dest: /etc/worker, content: "{{ ansible_facts.service_mgr }}"}
- ansible.builtin.command: hostname
  delegate_to: localhost
  register: there
- ansible.builtin.copy: {dest: /etc/there, content: "{{ there.stdout }}"}
"""
    played = site.play(layer_connection="ssh", image_roles=[role(site, tasks)])
    assert played.rc == 0, played.output[-3000:]
    said = site.look("applications", "cat /etc/worker /etc/there; ls -A /root/.ssh /etc/ssh/ssh_host_* 2>&1; true")
    assert said.startswith(f"systemd{os.uname().nodename}")
    assert "authorized_keys" not in said
    assert site.look("sanitize", "cat /etc/machine-id") == "uninitialized\n"
    assert site.nothing_open()
