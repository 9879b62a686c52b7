# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Which accelerator really works: a KVM device that opens and yet never runs a guest is common in nested clouds."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import time
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._owner import boot_id

EMULATOR = "qemu-system-x86_64"
KVM_DEVICE = Path("/dev/kvm")
ANSWER = "guest code runs"
CPU_MODELS = {"kvm": "host", "tcg": "max"}
"""The processor that each accelerator gives its guests, here as in every machine of ours."""
_PROBE_TIMEOUT = 5.0
_SLOWER = 4.0
_SLOW = 1.0

# A boot sector: enters protected mode (where broken nested KVM gets stuck), writes ANSWER to the first serial port, and
# ends QEMU through its isa-debug-exit device. In AT&T syntax:
#   cli; xorw %ax,%ax; movw %ax,%ds; lgdtl gdt; movl %cr0,%eax; orb $1,%al; movl %eax,%cr0; ljmpl $8,$protected
#   protected: movw $16,%ax; movw %ax,%ds; movw %ax,%es; movw %ax,%ss; movl $0x7000,%esp
#   movl $answer,%esi; movw $0x3f8,%dx
#   next: lodsb; testb %al,%al; jz done; outb %al,%dx; jmp next
#   done: movw $0xf4,%dx; movb $0x10,%al; outb %al,%dx; halt: hlt; jmp halt
_CODE = bytes.fromhex(
    "fa31c08ed8660f0116707c0f20c00c010f22c066ea1b7c0000080066b810008ed88ec08ed0bc00700000be457c000066"
    "baf803ac84c07403eeebf866baf400b010eef4ebfd"
)
_MESSAGE = ANSWER.encode("ascii") + b"\n\0"
_TABLE = bytes.fromhex("0000000000000000ffff0000009acf00ffff00000092cf001700587c0000")
_TABLE_AT = 0x58
_DEBUG_EXIT_RC = 0x10 << 1 | 1


def boot_sector() -> bytes:
    """The probe's guest: 512 bytes that a BIOS loads at 0x7c00."""
    code = (_CODE + _MESSAGE).ljust(_TABLE_AT, b"\0") + _TABLE
    return code.ljust(510, b"\0") + b"\x55\xaa"


@dataclasses.dataclass(frozen=True)
class Probe:
    """What became of running guest code with an accelerator; ``seconds`` that it took, ``reason`` when it failed."""

    accelerator: str
    works: bool
    seconds: float
    reason: str = ""


def probe(accelerator: str, emulator: str = EMULATOR, timeout: float = _PROBE_TIMEOUT) -> Probe:
    """Run guest code with ``accelerator`` (C(kvm) or C(tcg)) and read its answer."""
    if accelerator == "kvm" and not KVM_DEVICE.exists():
        return Probe(accelerator, False, 0.0, f"{KVM_DEVICE} is not there")
    if accelerator == "kvm" and not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        return Probe(accelerator, False, 0.0, f"this user may not open {KVM_DEVICE}")
    began = time.monotonic()
    with tempfile.NamedTemporaryFile(prefix="cloudimg-probe-") as disk:
        disk.write(boot_sector())
        disk.flush()
        argv = [
            emulator,
            "-accel",
            accelerator,
            "-cpu",
            CPU_MODELS[accelerator],
            "-m",
            "16",
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
        ]
        argv += ["-display", "none", "-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]
        argv += ["-drive", f"file={disk.name},format=raw,if=floppy,readonly=on"]
        try:
            done = _cli.run(argv, timeout=timeout, check=False)
        except FactoryError as exc:
            return Probe(accelerator, False, time.monotonic() - began, f"a guest does not run: {exc.problem}")
    if ANSWER in done.stdout and done.rc == _DEBUG_EXIT_RC:
        return Probe(accelerator, True, done.elapsed)
    return Probe(accelerator, False, done.elapsed, _cli.tail(done.stderr) or f"ended with {done.rc}")


def _worth_using(found: Probe, emulator: str) -> Probe:
    """KVM on top of emulated virtualisation answers in the end, but every exit takes milliseconds: it is of no use."""
    if not found.works or found.seconds < _SLOW:
        return found
    emulated = probe("tcg", emulator)
    if not emulated.works or found.seconds < _SLOWER * emulated.seconds:
        return found
    reason = f"guest code takes {found.seconds:.1f} s with it, {emulated.seconds:.1f} s by emulation"
    return dataclasses.replace(found, works=False, reason=reason)


def cache_directory() -> Path:
    """Where what was learned about this builder is kept for this user."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "cloudimg.factory")


def kvm(emulator: str = EMULATOR, *, fresh: bool = False) -> Probe:
    """Whether KVM works, remembered until the next boot, or until the emulator or the right to use KVM changes."""
    stat = Path(_cli.require(emulator)).stat()
    key = [boot_id(), emulator, stat.st_mtime_ns, os.access(KVM_DEVICE, os.R_OK | os.W_OK)]
    cache = cache_directory() / "accelerator.json"
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
        if not fresh and known["key"] == key:
            return Probe(**known["probe"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    found = _worth_using(probe("kvm", emulator), emulator)
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(json.dumps({"key": key, "probe": dataclasses.asdict(found)}), encoding="utf-8")
    except OSError:
        pass  # a home that cannot be written costs a probe each time, nothing else
    return found


def detect(emulator: str = EMULATOR, wanted: str = "auto") -> str:
    """The accelerator to use, C(kvm) or C(tcg), for ``wanted`` C(auto), C(kvm) or C(tcg).

    :raises FactoryError: KVM was demanded and does not work.
    """
    if wanted == "tcg":
        return "tcg"
    found = kvm(emulator)
    if wanted == "kvm" and not found.works:
        raise FactoryError(
            f"KVM was asked for and does not work here: {found.reason}",
            key="accelerator",
            mend="use accelerator auto or tcg, or a builder with hardware virtualisation",
        )
    return "kvm" if found.works else "tcg"
