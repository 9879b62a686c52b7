# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stage sanitize on a small Debian: what it removes, what stops it, that it tells no secrets, and that space is given back."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import tarfile
import typing as t
from pathlib import Path

import pytest
from planted_credentials import BUILD_SECRET, PLANTED
from test_guest_stages import IMAGE, Site
from tiny_system import ROOT_AT, as_base, tiny_disk

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli, _credentials, _qemu_img, _state, _supervisor
from ansible_collections.cloudimg.factory.plugins.module_utils._owner import Owner

pytestmark = pytest.mark.root
MIB = 1 << 20
REMOVED = {
    # what the operations know of
    "/etc/krb5.keytab",
    "/etc/shadow-",
    "/etc/skel/.ssh/authorized_keys",
    "/etc/ssh/ssh_host_ecdsa_key",
    "/home/user/.config/openstack/clouds.yaml",
    "/home/user/.netrc",
    "/root/.aws/credentials",
    "/root/.bash_history",
    "/root/.docker/config.json",
    "/root/.git-credentials",
    "/root/.npmrc",
    "/root/.ssh/id_ed25519",
    "/root/.vnc/passwd",
    "/var/lib/cloud/seed/nocloud/user-data",
    "/var/tmp/x509up_u1000",
}


@pytest.fixture
def site(tmp_path, tmp_path_factory):
    """A site for the stage sanitize alone."""
    base = as_base(tiny_disk(tmp_path_factory.getbasetemp()), _state.Workspace(tmp_path / "workspace"), "harden")
    found = Site(tmp_path, base, "harden", ("sanitize",))
    yield found
    assert found.nothing_open()


def packed(paths: t.Iterable[str]) -> bytes:
    """A tar of planted credentials."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for path in paths:
            content = PLANTED[path][1]
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size = len(content)
            entry.mode = 0o600
            tar.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def planting(site: Site, paths: t.Iterable[str]) -> str:
    """A script that leaves credentials."""
    path = site.root / "plant.sh"
    text = base64.encodebytes(packed(paths)).decode()
    path.write_text(f"#!/bin/sh\nset -e\nbase64 -d << END | tar -xzC /\n{text}END\n", encoding="utf-8")
    return str(path)


class Tree:
    """A disk's system, mounted, as a directory of this system."""

    def __init__(self, folder: Path, disk: Path) -> None:
        self.home = folder / "scan.tree"
        overlay = folder / "scan.qcow2"
        _supervisor.start(self.home, Owner.of(), overlay, lambda path: _qemu_img.create(path, None, backing=disk), {})
        pid = _supervisor.state(self.home)["supervisor"]["pid"]
        self.root = Path(f"/proc/{pid}/root{self.home}/root")

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_exc: object) -> None:
        _supervisor.end(self.home)


def test_twenty_five_and_more_planted_in_a_real_system(site):
    assert len({kind for kind, _content in PLANTED.values()}) >= 25
    with Tree(site.root, site.base) as tree:
        clean = _credentials.scan(tree.root, [BUILD_SECRET])
        argv = [tree.home / "enter", tree.home / "root", "tar", "-xzC", "/"]
        subprocess.run(argv, input=packed(PLANTED), check=True)
        planted = _credentials.scan(tree.root, [BUILD_SECRET])
    assert [finding for finding in clean.findings if not finding.path.startswith("/etc/ssh/ssh_host_")] == []
    assert clean.scanned > 3000
    found = {(finding.path, finding.kind) for finding in planted.findings}
    wanted = {(path, kind) for path, (kind, _content) in PLANTED.items()}
    assert wanted - found == set()
    assert {path for path, _kind in found} == set(PLANTED)


def test_what_is_left_stops_the_build_and_is_named(site):
    wanted = {"sanitize_scripts": [planting(site, PLANTED)], "sanitize_secrets": ["no such text 7f3a91", BUILD_SECRET]}
    played = site.play("-vvv", **wanted, sanitize_disabled=["ssh_hostkeys"])
    assert played.rc != 0
    assert "sanitize: Search for credentials: /: holds " in played.output
    findings = played.output.partition('"findings": [')[2].partition("]")[0]
    named = set(re.findall(r'"path": "(.*?)"', findings))
    assert named == set(PLANTED) - REMOVED
    assert '"secret": 2' in findings
    assert BUILD_SECRET not in played.output
    assert list(site.workspace.layers.glob("sanitize-*")) == []


def test_what_is_allowed_may_stay_and_the_layer_knows_its_figures(site):
    paths = ["/opt/app/server.pem", "/etc/ssh/ssh_host_ecdsa_key", "/root/.netrc.neighbour"]
    played = site.play(
        "-vvv",
        sanitize_scripts=[planting(site, paths[:2])],
        sanitize_allowed=["/opt/app/*:private_key"],
        sanitize_secrets=[BUILD_SECRET],
    )
    assert played.rc == 0, played.output[-3000:]
    assert BUILD_SECRET not in played.output
    layer = site.layer("sanitize")
    record = layer.with_suffix(".json").read_text(encoding="utf-8")
    assert BUILD_SECRET not in record
    facts = json.loads(record)["facts"]
    assert facts["credentials"]["findings"] == 0
    assert facts["credentials"]["allowed"] == 1
    assert facts["credentials"]["scanned"] > 3000
    assert facts["sizes"]["/usr"] > 50 * MIB
    assert site.look("sanitize", "ls /opt/app; ls /etc/ssh/ssh_host_* 2>/dev/null; cat /etc/machine-id").split() == [
        "server.pem",
        "uninitialized",
    ]
    build = json.loads(next((site.workspace.builds / IMAGE).glob("*/build.json")).read_text(encoding="utf-8"))
    assert build["stages"]["sanitize"]["facts"] == facts


def test_names_that_are_not_known(site):
    played = site.play(sanitize_disabled=["ssh-host-keys"])
    assert played.rc != 0
    assert (
        "sanitize: Forget: disabled: there is no operation 'ssh-host-keys'; did you mean ssh_hostkeys?" in played.output
    )
    played = site.play(sanitize_enabled=["fs_uuids"])
    assert played.rc != 0
    assert (
        "sanitize: Forget: enabled: the operation 'fs_uuids' cannot be switched here; see: the stage base_vm"
        in played.output
    )


def test_a_script_that_fails(site):
    path = site.root / "fail.sh"
    path.write_text("#!/bin/sh\necho out of luck >&2\nexit 3\n", encoding="utf-8")
    played = site.play(sanitize_scripts=["fail.sh"])
    assert played.rc != 0
    assert f"{path}: sanitize_scripts: ended with 3: out of luck; correct it" in played.output
    played = site.play(sanitize_scripts=["none.sh"])
    assert played.rc != 0
    assert "files: there is no file 'none.sh'; correct its name" in played.output


def test_removed_files_become_holes(site):
    path = site.root / "fill.sh"
    path.write_text("#!/bin/sh\nhead -c 100M /dev/urandom > /opt/ballast\n", encoding="utf-8")
    assert site.play(sanitize_scripts=[str(path)]).rc == 0
    full = site.layer("sanitize")
    assert data_in(full) > 100 * MIB
    # The same disk is the one below now; what was removed must not be seen through.
    below = as_base(full, _state.Workspace(site.root / "second" / "workspace"), "harden")
    second = Site(site.root / "second", below, "harden", ("sanitize",))
    assert (
        second.play(sanitize_operations_extra=[{"name": "ballast", "description": "x", "remove": ["/opt/ballast"]}]).rc
        == 0
    )
    assert data_in(second.layer("sanitize")) < data_in(full) - 95 * MIB


def data_in(disk: Path) -> int:
    """Bytes of a disk, with what is below it, that are neither holes nor zeros."""
    argv = [_cli.require("qemu-img"), "map", "--output=json", "-f", "qcow2", str(disk)]
    stretches = json.loads(subprocess.run(argv, capture_output=True, check=True, text=True).stdout)
    return sum(stretch["length"] for stretch in stretches if stretch["data"] and not stretch["zero"])


@pytest.mark.full_build
def test_the_default_image_is_clean(full_build, tmp_path):
    factory, played = full_build
    assert played.rc == 0, played.stdout[-3000:]
    _directory, build = factory.build("debian-12")
    with Tree(tmp_path, Path(build["stages"]["sanitize"]["path"])) as tree:
        report = _credentials.scan(tree.root, ["no secret of the build"])
    assert report.findings == []
    assert report.scanned > 10_000
    assert report.published > report.scanned / 2


SELINUX = """#!/bin/sh
set -e
apt-get -qq update
DEBIAN_FRONTEND=noninteractive apt-get -qqy install --no-install-recommends policycoreutils >/dev/null
mkdir -p /etc/selinux/acme/contexts/files
printf 'SELINUX=%s\nSELINUXTYPE=acme\n' "$MODE" > /etc/selinux/config
printf '/.*\tsystem_u:object_r:default_t:s0\n/etc(/.*)?\tsystem_u:object_r:etc_t:s0\n/proc/.*\t<<none>>\n' \
    > /etc/selinux/acme/contexts/files/file_contexts
"""


@pytest.mark.parametrize("mode", ["enforcing", pytest.param("disabled", marks=pytest.mark.slow)])
def test_files_are_labelled_where_selinux_is_on(site, mode):
    """By Debian's own setfiles and a small policy; also what stood at a place that was the builder's for the time."""
    script = site.root / "selinux.sh"
    script.write_text(SELINUX.replace("$MODE", mode), encoding="utf-8")
    played = site.play(sanitize_scripts=[str(script)])
    assert played.rc == 0, played.output[-3000:]
    disk = site.root / "sanitized.raw"
    _qemu_img.convert(site.layer("sanitize"), disk, source_fmt="qcow2", target_fmt="raw")
    wanted = {"/etc/passwd": "etc", "/etc/machine-id": "etc", "/etc/resolv.conf": "etc", "/usr/bin/python3": "default"}
    for name, kind in wanted.items():
        argv = ["debugfs", "-R", f"ea_get {name} security.selinux", f"{disk}?offset={ROOT_AT}"]
        said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        assert (f"system_u:object_r:{kind}_t:s0" in said) == (mode == "enforcing"), (name, said)
