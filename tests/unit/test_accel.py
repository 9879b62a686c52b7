# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which accelerator is picked."""

from __future__ import annotations

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _accel, _cli
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError


@pytest.fixture
def probes(monkeypatch, tmp_path):
    """Answers for the probes by accelerator, and a count of them."""
    answers: dict[str, _accel.Probe] = {}
    asked: list[str] = []

    def probe(accelerator: str, emulator: str = _accel.EMULATOR, timeout: float = 5.0) -> _accel.Probe:
        asked.append(accelerator)
        return answers[accelerator]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(_accel, "probe", probe)
    monkeypatch.setattr(_cli, "require", lambda tool, package=None: __file__)
    return answers, asked


def test_boot_sector_is_one():
    sector = _accel.boot_sector()
    assert len(sector) == 512
    assert sector.endswith(b"\x55\xaa")
    assert b"guest code runs\n\0" in sector


def test_kvm_that_works_is_used_and_remembered(probes):
    answers, asked = probes
    answers["kvm"] = _accel.Probe("kvm", True, 0.2)
    assert _accel.detect() == "kvm"
    assert _accel.detect() == "kvm"
    assert asked == ["kvm"]


def test_kvm_that_fails_is_not_used(probes):
    answers, _asked = probes
    answers["kvm"] = _accel.Probe("kvm", False, 5.0, "a guest does not run")
    assert _accel.detect() == "tcg"
    with pytest.raises(FactoryError, match=r"accelerator: KVM was asked for .* a guest does not run; use"):
        _accel.detect(wanted="kvm")


def test_kvm_that_is_slower_than_emulation_is_not_used(probes):
    answers, asked = probes
    answers["kvm"] = _accel.Probe("kvm", True, 3.5)
    answers["tcg"] = _accel.Probe("tcg", True, 0.1)
    assert _accel.detect() == "tcg"
    assert asked == ["kvm", "tcg"]
    assert "3.5 s" in _accel.kvm().reason


def test_kvm_on_a_busy_machine_is_still_used(probes):
    answers, _asked = probes
    answers["kvm"] = _accel.Probe("kvm", True, 2.0)
    answers["tcg"] = _accel.Probe("tcg", True, 1.8)
    assert _accel.detect() == "kvm"


def test_tcg_needs_no_probe(probes):
    _answers, asked = probes
    assert _accel.detect(wanted="tcg") == "tcg"
    assert asked == []
