# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A module run by its arguments in the process of the test: sooner there than by Ansible, and open to what a test replaces."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import typing as t

from ansible.module_utils.testing import patch_module_args


def run(module: str, *, check: bool = False, **options: t.Any) -> tuple[dict[str, t.Any], str]:
    """What a module answers, in diff mode: its values, and all that it has written."""
    main = importlib.import_module(f"ansible_collections.cloudimg.factory.plugins.modules.{module}").main
    stdout = io.StringIO()
    with (
        patch_module_args({"_ansible_check_mode": check, "_ansible_diff": True, **options}),
        contextlib.redirect_stdout(stdout),
        contextlib.suppress(SystemExit),
    ):
        main()
    output = stdout.getvalue()
    lines = output.strip().splitlines()
    try:
        return dict(json.loads(lines[-1])), output
    except (IndexError, ValueError):
        raise AssertionError(f"{module} has returned nothing: {output}") from None
