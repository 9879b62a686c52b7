# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""A NoCloud seed: what tells cloud-init who the machine is where no cloud does (see NoCloud in its documentation)."""

from __future__ import annotations

import json
import os
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli, _state
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

LABEL = "cidata"
_EPOCH = 315532800
"""The first second of 1980, the earliest that ISO tools take; the date of all that is in a seed."""


def cloud_config(data: t.Mapping[str, t.Any]) -> str:
    """User data for cloud-init (all JSON is YAML)."""
    return "#cloud-config\n" + _json(data)


def make_seed(
    path: Path,
    user_data: str,
    meta_data: t.Mapping[str, t.Any],
    network_config: t.Mapping[str, t.Any] | None = None,
) -> None:
    """Write the seed ISO; the same content gives the same bytes.

    :raises FactoryError: neither xorriso nor genisoimage is there, or it cannot.
    """
    files = {"user-data": user_data, "meta-data": _json(meta_data)}
    if network_config is not None:
        files["network-config"] = _json(network_config)
    make_iso(path, LABEL, files)


def make_iso(path: Path, label: str, files: t.Mapping[str, str]) -> None:
    """Write an ISO of text files, by name; see :func:`make_seed`."""
    tree = path.with_name(f"{path.name}.tree")
    try:
        for name, text in files.items():
            _state.write_text(tree / name, text)
            os.utime(tree / name, (_EPOCH, _EPOCH))
        os.utime(tree, (_EPOCH, _EPOCH))
        options = ["-quiet", "-volid", label, "-joliet", "-rational-rock", "-o", str(path), str(tree)]
        _cli.run([*_tool(), *options], timeout=60, env={"SOURCE_DATE_EPOCH": str(_EPOCH), "TZ": "UTC"})
    finally:
        _state.remove(tree)


def _tool() -> list[str]:
    if _cli.which("xorriso"):
        return ["xorriso", "-as", "mkisofs"]
    if _cli.which("genisoimage"):
        return ["genisoimage"]
    raise FactoryError(
        "is not installed on the builder, nor is genisoimage",
        where="xorriso",
        mend="run playbooks/builder.yml, or install the package xorriso",
    )


def _json(data: t.Mapping[str, t.Any]) -> str:
    return json.dumps(data, indent=1, sort_keys=True) + "\n"
