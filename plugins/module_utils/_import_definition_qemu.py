# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What descriptions for Packer's qemu builder say of the machine: COMFY's, and Packer's own."""

from __future__ import annotations

import re
import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_draft import Draft
from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_source import Node

_ANSWER = "the answer file is written from the definition; give a file of yours as image_medium.answer_file"
_KEYS = "nothing is typed: the installer's kernel is booted directly; see image_medium.kernel_args and .answer_file"
_DISK = "the disk of the build is on virtio, and discards what is deleted"
_SHOWN = "is how the build is watched; its console is in the logs of the build"
_OUTPUT = "builds are in image_workspace, under the names of image and version"
_QEMU = "the factory has its own machine for the build; see image_machine"
REASONS = {
    "accelerator": "the builder's best is taken; set base_vm_accelerator to have another",
    "boot_command": _KEYS,
    "boot_keygroup_interval": _KEYS,
    "boot_key_interval": _KEYS,
    "boot_steps": _KEYS,
    "boot_wait": _KEYS,
    "cd_content": _ANSWER,
    "cd_files": _ANSWER,
    "cd_label": _ANSWER,
    "communicator": "the guest is reached as image_connection says",
    "disk_cache": _DISK,
    "disk_compression": "set image_formats: [{format: qcow2, compression: zstd}] to have it compressed",
    "disk_detect_zeroes": _DISK,
    "disk_discard": _DISK,
    "disk_image": "whether the medium is a disk; see image_source_disk",
    "disk_interface": _DISK,
    "display": _SHOWN,
    "firmware": "set image_machine.firmware to bios or uefi",
    "floppy_content": _ANSWER,
    "floppy_dirs": _ANSWER,
    "floppy_files": _ANSWER,
    "headless": _SHOWN,
    "host_port_max": "the build's machine has a network of its own",
    "host_port_min": "the build's machine has a network of its own",
    "http_content": _ANSWER,
    "http_directory": _ANSWER,
    "http_port_max": _ANSWER,
    "http_port_min": _ANSWER,
    "iso_skip_cache": "media are kept in the cache of image_workspace",
    "iso_target_path": "media are kept in the cache of image_workspace",
    "machine_type": _QEMU,
    "cpu_model": _QEMU,
    "net_bridge": "the build's machine has a network of its own",
    "net_device": "the network card of the build is virtio",
    "output_directory": _OUTPUT,
    "qemu_binary": "is found by the role builder",
    "qemuargs": _QEMU,
    "shutdown_command": "the machine is shut down without a command",
    "shutdown_timeout": "set image_timeouts",
    "skip_compaction": "images are always compacted",
    "use_default_display": _SHOWN,
    "vm_name": _OUTPUT,
    "vnc_bind_address": _SHOWN,
    "vnc_port_max": _SHOWN,
    "vnc_port_min": _SHOWN,
}
"""Why, by its key, something of a qemu builder is not in a definition, and what to do."""


def machine_arguments(
    rows: t.Iterable[Node], draft: Draft, literal: t.Callable[[Node], str | None] = lambda node: node.text()
) -> None:
    """Take memory and processors over that stand in C(qemuargs) as C(-m) and C(-smp), one list each.

    :param literal: gives the text of a node, None where it is not known.
    """
    for row in rows:
        words = [literal(node) or "" for node in row.children()]
        target, number = "", ""
        if len(words) == 2 and words[0] == "-m":
            found = re.fullmatch(r"(?:size=)?(\d{1,7})([MG]?)B?", words[1])
            target, number = "memory_mib", str(int(found[1]) * (1024 if found[2] == "G" else 1)) if found else ""
        elif len(words) == 2 and words[0] == "-smp":
            found = re.fullmatch(r"(?:cpus=)?(\d{1,4})(?:,.*)?", words[1])
            target, number = "cpus", found[1] if found else ""
        if number and int(number) and target not in draft.values.get("image_machine", {}):
            draft.machine(row, target, number)
        else:
            draft.leave(row, _QEMU)
