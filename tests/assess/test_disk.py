# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The disk: what a cloud can copy and grow."""

from __future__ import annotations

import pytest


def test_no_swap(system):
    """There is no swap: that is the cloud's to give."""
    assert [row for row in system.fstab() if row[2] == "swap"] == []


@pytest.mark.booted
def test_no_swap_is_used(system):
    """Nothing is swapped to."""
    assert system.lines("tail -n +2 /proc/swaps") == []


def test_no_boot_partition(system):
    """The kernels are on the root file system, which can grow."""
    assert [row for row in system.fstab() if row[1] == "/boot"] == []


def test_no_volume_manager(system):
    """No LVM or software RAID is between the file systems and the disk."""
    assert [row for row in system.fstab() if row[0].startswith(("/dev/mapper/", "/dev/md", "/dev/vg"))] == []


def test_file_systems_are_found_by_name(system):
    """File systems are found by what is in them, not by the kind of disk that a hypervisor has."""
    assert [row for row in system.fstab() if row[0].startswith(("/dev/sd", "/dev/vd", "/dev/xvd", "/dev/hd"))] == []


@pytest.mark.booted
def test_root_is_the_last_partition(system):
    """Nothing is behind the root partition, so that it can grow."""
    script = "d=$(lsblk -no PKNAME $(findmnt -no SOURCE /)); for p in /sys/block/$d/$d*; do echo $(cat $p/start) ${p##*/}; done"
    partitions = [row.split() for row in sorted(system.lines(script), key=lambda row: int(row.split()[0]))]
    assert partitions[-1][1] == system.says("basename $(findmnt -no SOURCE /)").strip()


@pytest.mark.booted
def test_root_has_grown(system):
    """The root file system reaches to the end of the disk."""
    disk = int(system.says("lsblk -bdno SIZE /dev/$(lsblk -no PKNAME $(findmnt -no SOURCE /))"))
    volume = int(system.says("df -B1 --output=size / | tail -n 1"))
    assert volume > 0.9 * disk - (1 << 30)


def test_one_kernel(system):
    """One kernel is there, that which boots."""
    assert len(system.found("/boot/vmlinuz-*")) == 1
