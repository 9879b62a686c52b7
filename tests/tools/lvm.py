# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Volume groups in files, made by LVM's own tools, which here need no device mapper: nothing is activated."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from pathlib import Path

from ansible_collections.cloudimg.factory.tests.tools.unpacked import unpacked

PACKAGES = ("lvm2", "libaio1", "libdevmapper-event1.02.1", "libdevmapper1.02.1", "libedit2", "libbsd0", "libmd0")
_SETTINGS = """
devices {{ filter=[{filter}"r|.*|"] global_filter=[{filter}"r|.*|"] use_devicesfile=0 obtain_device_list_from_udev=0
external_device_info_source="none" }} activation {{ udev_sync=0 udev_rules=0 monitoring=0 }}
global {{ use_lvmpolld=0 event_activation=0 locking_dir="{folder}" }} backup {{ backup=0 archive=0 }}
"""

Place = tuple[Path, int, int]
"""A part of a file: offset and size in bytes."""


class Group:
    """A volume group on these places; a context manager, within which there are loop devices on them. Needs root."""

    def __init__(self, name: str, *places: Place) -> None:
        self.name = name
        self.places = places
        self.devices: list[str] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Group:
        self._folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="lvm-"))
        for path, offset, size in self.places:
            argv = ["losetup", "--find", "--show", "--offset", str(offset), "--sizelimit", str(size), str(path)]
            node = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
            self._stack.callback(subprocess.run, ["losetup", "--detach", node], check=True)
            self.devices.append(node)
        self.lvm("vgcreate", self.name, *self.devices)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def create(self, name: str, size: str, *options: str) -> None:
        """A logical volume; its size as lvcreate(8) takes it. ``options`` may end with the numbers of devices."""
        words = [self.devices[int(word)] if word.isdigit() else word for word in options]
        self.lvm("lvcreate", "-an", "-Zn", "-Wn", "--size", size, "--name", name, self.name, *words)

    def lvm(self, command: str, *words: str) -> str:
        """Any command of LVM; returns what it says."""
        folder = Path(self._folder)
        accepted = "".join(f'"a|^{node}$|",' for node in self.devices)
        settings = _SETTINGS.format(filter=accepted, folder=folder).replace("\n", " ")
        roots = [unpacked(package) for package in PACKAGES]
        libraries = [
            str(path) for root in roots for path in (*root.glob("lib/*-linux-gnu"), *root.glob("usr/lib/*-linux-gnu"))
        ]
        env = {**os.environ, "LVM_SYSTEM_DIR": str(folder), "LVM_SUPPRESS_FD_WARNINGS": "1"}
        env["LD_LIBRARY_PATH"] = ":".join(libraries)
        argv = [str(roots[0] / "sbin/lvm"), command, "--driverloaded", "n", "--config", settings, *words]
        done = subprocess.run(argv, capture_output=True, text=True, env=env, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout

    def pieces(self) -> dict[str, list[tuple[int, int]]]:
        """By LVM itself: the pieces of each linear volume on the first device, as offset and size in its file."""
        units = ["--units", "b", "--nosuffix", "--reportformat", "json"]
        (member,) = self._report("pvs", "pv", *units, "-o", "pe_start,vg_extent_size", self.devices[0])
        start, unit = int(member["pe_start"]), int(member["vg_extent_size"])
        found: dict[str, list[tuple[int, int]]] = {}
        for row in self._report("lvs", "seg", *units, "--segments", "-o", "lv_name,segtype,seg_size,seg_pe_ranges"):
            if row["segtype"] != "linear" or not row["seg_pe_ranges"].startswith(f"{self.devices[0]}:"):
                continue
            first = int(row["seg_pe_ranges"].rpartition(":")[2].partition("-")[0])
            place = self.places[0][1] + start + first * unit, int(row["seg_size"])
            found.setdefault(f"{self.name}/{row['lv_name']}", []).append(place)
        return found

    def _report(self, command: str, kind: str, *words: str) -> list[dict[str, str]]:
        (report,) = json.loads(self.lvm(command, *words))["report"]
        return list(report[kind])
