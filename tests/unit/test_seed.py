# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The NoCloud seed, as the real tools make and read it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _context_cd, _seed
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

USER_DATA = _seed.cloud_config({"ssh_authorized_keys": ["ssh-ed25519 AAAA me"]})


def extract(iso: Path, name: str, into: Path) -> str:
    """The text of one file of an ISO."""
    target = into / f"extracted-{name}"
    argv = ["xorriso", "-osirrox", "on", "-indev", str(iso), "-extract", f"/{name}", str(target)]
    subprocess.run(argv, check=True, capture_output=True)
    return target.read_text(encoding="utf-8")


def label(iso: Path) -> bytes:
    """The volume label, from the primary volume descriptor (ECMA-119, 8.4)."""
    return iso.read_bytes()[16 * 2048 + 40 : 16 * 2048 + 72].strip()


def test_a_seed_holds_what_was_given(tmp_path):
    iso = tmp_path / "seed.iso"
    _seed.make_seed(iso, USER_DATA, {"instance-id": "i-1"}, {"version": 2})
    assert label(iso) == b"cidata"
    assert extract(iso, "user-data", tmp_path) == USER_DATA
    assert USER_DATA.startswith("#cloud-config\n")
    assert json.loads(extract(iso, "meta-data", tmp_path)) == {"instance-id": "i-1"}
    assert json.loads(extract(iso, "network-config", tmp_path)) == {"version": 2}


def test_without_a_network_there_is_no_file_for_it(tmp_path):
    iso = tmp_path / "seed.iso"
    _seed.make_seed(iso, USER_DATA, {"instance-id": "i-1"})
    with pytest.raises(subprocess.CalledProcessError):
        extract(iso, "network-config", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seed.iso"]


def test_the_same_content_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        _seed.make_seed(tmp_path / f"{name}.iso", USER_DATA, {"instance-id": "i-1"})
    assert (tmp_path / "a.iso").read_bytes() == (tmp_path / "b.iso").read_bytes()


@pytest.mark.skipif(not shutil.which("genisoimage"), reason="needs genisoimage")
def test_genisoimage_does_as_well(tmp_path, monkeypatch):
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "genisoimage").symlink_to(str(shutil.which("genisoimage")))
    with monkeypatch.context() as patched:
        patched.setattr(_seed._cli, "which", lambda tool: shutil.which(tool, path=str(bin_folder)))
        _seed.make_seed(tmp_path / "seed.iso", USER_DATA, {"instance-id": "i-1"})
    assert label(tmp_path / "seed.iso") == b"cidata"
    assert extract(tmp_path / "seed.iso", "user-data", tmp_path) == USER_DATA


def test_no_tool_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(_seed._cli, "which", lambda _tool: None)
    with pytest.raises(FactoryError, match="xorriso: is not installed on the builder, nor is genisoimage; run"):
        _seed.make_seed(tmp_path / "seed.iso", USER_DATA, {})
    assert list(tmp_path.iterdir()) == []


def test_a_context_volume_is_what_opennebula_makes(tmp_path):
    iso = tmp_path / "context.iso"
    network = _context_cd.network(
        "02:00:0a:00:02:0f", "10.0.2.15", mask="255.255.255.0", gateway="10.0.2.2", dns="10.0.2.3"
    )
    _context_cd.make_context(iso, {"SSH_PUBLIC_KEY": "ssh-ed25519 AAAA it's me", **network})
    assert label(iso) == b"CONTEXT"
    text = extract(iso, "context.sh", tmp_path)
    said = subprocess.run(
        [
            "sh",
            "-c",
            f'{text}\necho "$SSH_PUBLIC_KEY / $NETWORK $ETH0_MAC $ETH0_IP $ETH0_MASK $ETH0_GATEWAY $ETH0_DNS"',
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.startswith("ssh-ed25519 AAAA it's me / YES 02:00:0a:00:02:0f 10.0.2.15 255.255.255.0 10.0.2.2 10.0.2.3")


def test_a_context_variable_that_no_shell_takes():
    with pytest.raises(FactoryError, match=r"context\.sh: 'x; reboot' is no name of a context variable"):
        _context_cd.context_sh({"x; reboot": "1"})
