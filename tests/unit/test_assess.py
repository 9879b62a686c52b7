# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The judgement of what a guest tells, and what becomes of a verdict."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _assess, _boots, _probe, _ssh
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import data_digest, file_digests
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import Cancelled, FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress

GIB = 1 << 30
BOOT = 1_795_235_700
"""When the guest began, in seconds since the epoch."""


def stage(**changes) -> dict:
    """A stage of cloud-init's status.json."""
    return {"errors": [], "start": BOOT + 12.5, "finished": BOOT + 40.25, **changes}


# as Debian 12 tells it at a boot that is all right
FACTS = {
    "login": "",
    "system": "running",
    "failed": "",
    "disabled": "",
    "status": json.dumps({"v1": {"datasource": "x", "init": stage(), "modules-final": stage(finished=BOOT + 50.0)}}),
    "result": json.dumps({"v1": {"datasource": "DataSourceNoCloud [seed=/dev/vdb][dsmode=net]", "errors": []}}),
    "root": "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/vda3 4053832 570000 3200000 16% /",
    "machine-id": f"b81da4c361c948c2b49250dd3a6c86ac\n{BOOT + 3}",
    "host-keys": f"{BOOT + 30} /etc/ssh/ssh_host_ed25519_key.pub\n{BOOT + 31} /etc/ssh/ssh_host_rsa_key.pub",
    "host-key-content": "ssh-ed25519 AAAAone\nssh-rsa AAAAtwo",
    "listening": "\n".join(
        [
            'udp UNCONN 0 0 127.0.0.53%lo:53 0.0.0.0:* users:(("systemd-resolve",pid=281,fd=13))',
            'udp UNCONN 0 0 10.0.2.15%enp0s5:68 0.0.0.0:* users:(("systemd-network",pid=342,fd=18))',
            "udp UNCONN 0 0 [fe80::5054:ff:fe00:1]%enp0s5:546 [::]:*",
            'tcp LISTEN 0 128 0.0.0.0:22 0.0.0.0:* users:(("sshd",pid=435,fd=3))',
            'tcp LISTEN 0 128 [::]:22 [::]:* users:(("sshd",pid=435,fd=4))',
            'tcp LISTEN 0 128 [::1]:25 [::]:* users:(("master",pid=500,fd=4))',
        ]
    ),
    "boot": f"{BOOT}\n{BOOT + 60}",
    "release": '"Debian GNU/Linux 12 (bookworm)"\n6.1.0-30-cloud-amd64',
    "end": "",
}


def judge(**changes: str) -> dict[str, _probe.Check]:
    """The checks of the good guest with some facts changed, by name."""
    return {check.name: check for check in _probe.judge({**FACTS, **changes}, size_before=2 * GIB)}


def test_a_good_guest_passes_everything():
    checks = judge()
    assert [name for name, check in checks.items() if not check.ok] == []
    assert checks["cloud_init"].detail == "ended without error, DataSourceNoCloud [seed=/dev/vdb][dsmode=net]"
    assert checks["root_filesystem_grew"].detail == "3958 MiB, on a disk that had 2048 MiB"
    assert checks["fresh_host_keys"].detail == "made at this boot: ssh_host_ed25519_key.pub, ssh_host_rsa_key.pub"


BAD = {
    "cloud-init found nothing": ("cloud_init", {"disabled": "/run/cloud-init/disabled", "result": ""}, "is disabled"),
    "no cloud-init": ("cloud_init", {"status": "", "result": ""}, "cloud-init did not run"),
    "an error in the result": (
        "cloud_init",
        {"result": json.dumps({"v1": {"errors": ["('ssh', ValueError('no\n key'))"]}})},
        "cloud-init ended with errors: ('ssh', ValueError('no key'))",
    ),
    "an error in a stage": (
        "cloud_init",
        {"status": json.dumps({"v1": {"init": stage(errors=["failed run of module"])}})},
        "cloud-init ended with errors: failed run of module",
    ),
    "no growth": (
        "root_filesystem_grew",
        {"root": "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/vda3 1990088 1 2 3% /"},
        "1943 MiB, on a disk that had 2048 MiB",
    ),
    "an old host key": (
        "fresh_host_keys",
        {"host-keys": f"{BOOT - 86400} /etc/ssh/ssh_host_rsa_key.pub\n{BOOT + 30} /etc/ssh/ssh_host_ed25519_key.pub"},
        "older than the boot: ssh_host_rsa_key.pub",
    ),
    "no host key": ("fresh_host_keys", {"host-keys": ""}, "there are none"),
    "an old machine id": (
        "fresh_machine_id",
        {"machine-id": f"b81da4c361c948c2b49250dd3a6c86ac\n{BOOT - 86400}"},
        "it is older than the boot: it comes with the image",
    ),
    "a service that listens to all": (
        "listening",
        {"listening": FACTS["listening"] + '\ntcp LISTEN 0 5 *:111 *:* users:(("rpcbind",pid=9,fd=4))'},
        "rpcbind on * port 111/tcp",
    ),
    "a name service for the neighbours": (
        "listening",
        {"listening": FACTS["listening"] + "\nudp UNCONN 0 0 0.0.0.0:5355 0.0.0.0:*"},
        "something on 0.0.0.0 port 5355/udp",
    ),
    "no tool tells what listens": ("listening", {"listening": ""}, "not even the SSH server was seen"),
    "another data source": (
        "datasource",
        {"result": json.dumps({"v1": {"datasource": "DataSourceNone", "errors": []}})},
        "DataSourceNone, NoCloud was there",
    ),
    "no machine id": ("fresh_machine_id", {"machine-id": f"uninitialized\n{BOOT}"}, "it is 'uninitialized'"),
    "a failed unit": (
        "no_failed_units",
        {"system": "degraded", "failed": "bad.service loaded failed failed A bad one"},
        "failed: bad.service",
    ),
    "an endless boot": ("no_failed_units", {"system": "starting"}, "the system is starting"),
    "the time is not known": ("fresh_host_keys", {"boot": ""}, "the time of the boot is not known"),
}


@pytest.mark.parametrize(("name", "changes", "detail"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_told(name, changes, detail):
    check = judge(**changes)[name]
    assert not check.ok
    assert check.required
    assert detail in check.detail
    assert "\n" not in check.detail


def test_a_degraded_boot_of_cloud_init_is_a_warning_with_its_reasons():
    degraded = stage(recoverable_errors={"WARNING": ["Invalid cloud-config provided: user-data"]})
    checks = judge(status=json.dumps({"v1": {"init": degraded}}))
    assert checks["cloud_init"].ok
    warning = checks["cloud_init_warnings"]
    assert (warning.ok, warning.required) == (False, False)
    assert warning.detail == "degraded: WARNING: Invalid cloud-config provided: user-data"


def test_ports_that_may_be_open():
    facts = {**FACTS, "listening": FACTS["listening"] + '\ntcp LISTEN 0 5 *:80 *:* users:(("nginx",pid=9,fd=4))'}
    checks = {check.name: check for check in _probe.judge(facts, size_before=1, allowed_ports=["80/tcp"])}
    assert checks["listening"].ok
    assert "nginx on * port 80/tcp" in checks["listening"].detail
    assert not judge(listening=facts["listening"])["listening"].ok


def test_the_data_source_that_was_there_is_the_one_that_counts():
    checks = {check.name: check for check in _probe.judge(FACTS, size_before=1, datasource="OpenNebula")}
    assert not checks["datasource"].ok


def test_what_is_kept_of_the_facts():
    kept = _probe.summary(FACTS)
    assert kept["machine_id"] == "b81da4c361c948c2b49250dd3a6c86ac"
    assert kept["host_keys"] == ["ssh-ed25519 AAAAone", "ssh-rsa AAAAtwo"]
    assert (kept["release"], kept["kernel"]) == ("Debian GNU/Linux 12 (bookworm)", "6.1.0-30-cloud-amd64")
    assert kept["root_bytes"] == 4053832 * 1024
    assert _probe.summary({})["root_bytes"] == 0


def test_units_that_may_fail():
    facts = {**FACTS, "system": "degraded", "failed": "kdump.service loaded failed failed Crash\nx.mount loaded"}
    *_others, check = _probe.judge(facts, size_before=1, allowed_units=["kdump*", "*.mount"])
    assert check.ok
    *_others, check = _probe.judge(facts, size_before=1, allowed_units=["kdump*"])
    assert check.detail == "failed: x.mount"


@pytest.mark.parametrize(
    ("methods", "ok"),
    [
        (["publickey"], True),
        (["gssapi-with-mic", "publickey"], True),
        (["password", "publickey"], False),
        (["keyboard-interactive", "publickey"], False),
        (["none"], False),
    ],
)
def test_only_keys_may_let_anybody_in(methods, ok):
    assert _probe.judge_methods(methods).ok is ok


def test_when_cloud_init_ended():
    assert _probe.seconds_since_finish(FACTS) == 10.0
    newer = json.dumps({"v1": {"init": stage(start=12.5, finished=40.25), "modules-final": stage(finished=50.0)}})
    assert _probe.seconds_since_finish({**FACTS, "status": newer}) == 10.0
    assert _probe.seconds_since_finish({**FACTS, "status": ""}) is None


def test_the_script_is_for_any_shell_and_its_answer_is_understood():
    for command in (_probe.command(), _probe.command(packages=True)):
        done = subprocess.run(["sh", "-n", "-c", command], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    assert "section packages\n" in command
    said = "".join(f"{_probe.MARK}{name}\n{text}\n" for name, text in FACTS.items())
    assert _probe.parse(f"a message of the day\n{said}") == FACTS
    for name in FACTS:
        assert f"section {name}\n" in _probe.command()


@pytest.fixture
def fake_ssh(tmp_path, monkeypatch):
    """A function that puts an ssh before the real one, which says something and ends with a code."""

    def put(stderr: str, code: int) -> _ssh.Access:
        tool = tmp_path / "ssh"
        tool.write_text(f"#!/bin/sh\necho '{stderr}' >&2\nexit {code}\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        return _ssh.Access("127.0.0.1", 1, "debian", tmp_path / "id", tmp_path / "known_hosts")

    return put


@pytest.mark.parametrize(
    ("stderr", "code", "methods"),
    [
        ("debian@127.0.0.1: Permission denied (publickey,password).", 255, ["password", "publickey"]),
        ("", 0, ["none"]),
    ],
)
def test_the_methods_that_ssh_offers(fake_ssh, stderr, code, methods):
    assert _ssh.offered_methods(fake_ssh(stderr, code), timeout=30) == methods


def test_an_ssh_that_does_not_tell_its_methods(fake_ssh):
    access = fake_ssh("kex_exchange_identification: Connection closed", 255)
    with pytest.raises(FactoryError, match="does not tell how to log in: kex_exchange"):
        _ssh.offered_methods(access, timeout=30)


@pytest.fixture
def request_(tmp_path):
    """What is asked of an artifact that is no disk at all, so that nothing can boot it."""
    artifact = tmp_path / "tiny-1.qcow2"
    artifact.write_text("no disk")
    return _assess.Request(
        image="tiny",
        version="1",
        artifact=artifact,
        format="qcow2",
        directory=tmp_path,
        user="debian",
        grow=2 * GIB,
        boots=("bios-nocloud",),
        accelerator="tcg",
        cpus=2,
        memory=1024,
        allowed_units=(),
        allowed_ports=(),
        lynis="no",
        updates=False,
        timeout=900,
    )


def write_report(request: _assess.Request, **changes) -> Path:
    """An assess.json as a passed assessment leaves it."""
    sha256 = file_digests(request.artifact, ["sha256"])["sha256"]
    report = {"verdict": "pass", "artifact": {"sha256": sha256}, "digest": data_digest(request.options()), **changes}
    path = request.directory / "assess.json"
    path.write_text(json.dumps(report))
    return path


def test_what_has_passed_is_not_assessed_again(request_):
    path = write_report(request_)
    result = _assess.assess(request_, Progress("assess"))
    assert not result.changed
    assert result.extra["assessment"]["verdict"] == "pass"
    assert result.extra["report_path"] == str(path)


STALE = {
    "another artifact": ({"artifact": {"sha256": "0"}}, "the artifact is another one than that assessed"),
    "other options": ({"digest": "0"}, "it was assessed with other options"),
    "failed": ({"verdict": "fail"}, "it did not pass"),
}


@pytest.mark.parametrize(("changes", "why"), STALE.values(), ids=STALE)
def test_why_it_is_assessed_again(request_, changes, why):
    write_report(request_, **changes)
    disk = dataclasses.replace(request_, format="raw")
    if "digest" not in changes:
        write_report(disk, **changes)
    result = _assess.assess(disk, Progress("assess"), check_mode=True)
    assert result.changed
    assert result.actions == [f"assess: {why}"]
    assert (request_.directory / "assess.json").exists()


def test_what_is_no_disk_is_one_clear_line_and_an_old_verdict_is_gone(request_):
    path = write_report(request_, artifact={"sha256": "0"})
    with pytest.raises(FactoryError, match=r"tiny-1\.qcow2: is no disk of a known format.*; give a qcow2"):
        _assess.assess(request_, Progress("assess"))
    assert not path.exists()


def test_another_format_than_told(request_):
    argv = ["qemu-img", "create", "-q", "-f", "vmdk", str(request_.artifact), "1M"]
    subprocess.run(argv, check=True)
    with pytest.raises(FactoryError, match=r"tiny-1\.qcow2: format: is vmdk, not qcow2; give the format"):
        _assess.assess(request_, Progress("assess"))


def test_no_artifact_is_one_clear_line(request_):
    request_.artifact.unlink()
    with pytest.raises(FactoryError, match=r"tiny-1\.qcow2: No such file or directory; check that path"):
        _assess.assess(request_, Progress("assess"))


def clone(**changes: t.Any) -> _boots.Boot:
    """A boot of a good guest."""
    return dataclasses.replace(
        _boots.Boot("bios-nocloud", facts=dict(FACTS), client_id=b"\xff\0\0\0\1\0\2one"), **changes
    )


OTHER = clone(
    facts={
        **FACTS,
        "machine-id": f"{'c' * 32}\n{BOOT}",
        "host-key-content": "ssh-ed25519 AAAAthree\nssh-rsa AAAAfour",
    },
    client_id=b"\xff\0\0\0\2\0\2two",
)


def test_clones_that_differ_in_all():
    checks = _boots.compare([clone(), OTHER])
    names = ["different_machine_ids", "different_dhcp_client_ids", "different_host_keys"]
    assert [check.name for check in checks] == names
    assert [check.name for check in checks if not check.ok] == []
    assert {check.group for check in checks} == {"clones"}


SAME = {
    "machine id": ("different_machine_ids", {"machine-id": FACTS["machine-id"]}, {}, "the same: b81da4c3"),
    "one host key": (
        "different_host_keys",
        {"host-key-content": "ssh-ed25519 AAAAthree\nssh-rsa AAAAtwo"},
        {},
        "shared: ssh-rsa",
    ),
    "the DHCP client id but for the interface": (
        "different_dhcp_client_ids",
        {},
        {"client_id": b"\xff\0\0\0\2\0\2one"},
        "the same: 00026f6e65",
    ),
    "no host keys": ("different_host_keys", {"host-key-content": ""}, {}, "not known of all"),
    "no machine id": ("different_machine_ids", {"machine-id": ""}, {}, "not known of all"),
}


@pytest.mark.parametrize(("name", "facts", "changes", "detail"), SAME.values(), ids=SAME)
def test_clones_that_are_the_same(name, facts, changes, detail):
    other = dataclasses.replace(OTHER, facts={**OTHER.facts, **facts}, **changes)
    (wrong,) = [check for check in _boots.compare([clone(), other]) if not check.ok]
    assert (wrong.name, wrong.required) == (name, True)
    assert detail in wrong.detail


def test_who_never_asks_by_dhcp_has_no_client_id():
    (wrong,) = [check for check in _boots.compare([clone(), dataclasses.replace(OTHER, client_id=b"")]) if not check.ok]
    assert (wrong.name, wrong.required) == ("different_dhcp_client_ids", False)


def test_boots_learn_that_nobody_wants_them():
    watcher = _boots.Watcher()
    watcher.tell("uefi-opennebula", "waiting for SSH", "a line")
    watcher.tell("bios-nocloud", "logging in", "another")
    assert watcher.phases() == "bios-nocloud: logging in; uefi-opennebula: waiting for SSH"
    assert watcher.consoles() == "another | a line"
    watcher.cancelled.set()
    with pytest.raises(Cancelled):
        watcher.tell("bios-nocloud", "logging in", "")
