# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which changes of this collection's code make another layer."""

from __future__ import annotations

import shutil

import pytest

from ansible_collections.cloudimg.factory.plugins.plugin_utils import _code


@pytest.fixture
def plugins(tmp_path, checkout):
    """A copy of the plugins, to be changed."""
    folder = tmp_path / "plugins"
    shutil.copytree(checkout / "plugins", folder, ignore=shutil.ignore_patterns("__pycache__"))
    yield folder
    _code.code_digest.cache_clear()


def changes(plugins, module: str, *files: str) -> list[str]:
    """The files whose change makes another digest of a module."""
    found = []
    for name in files:
        path = plugins / name
        before = _code.code_digest(module, plugins)
        path.write_text(path.read_text() + "\n# changed\n")
        _code.code_digest.cache_clear()
        if _code.code_digest(module, plugins) != before:
            found.append(name)
    return found


def test_the_code_that_a_module_is_made_of_counts_and_no_other(plugins):
    counted = ["modules/image_files.py", "module_utils/_file_operations.py"]
    shared = ["module_utils/_module.py", "module_utils/_errors.py", "module_utils/_cli.py", "module_utils/_progress.py"]
    others = ["modules/image_export.py", "module_utils/_export.py", "module_utils/_build.py", "module_utils/_layers.py"]
    assert changes(plugins, "image_files", *counted, *shared, *others) == counted


def test_what_is_imported_by_what_is_imported_counts(plugins):
    names = [f"module_utils/_credentials{part}.py" for part in ("", "_files", "_rules", "_values")]
    assert changes(plugins, "credential_scan", *names) == names


def test_the_action_of_a_module_counts(plugins):
    assert changes(plugins, "security_score", "action/security_score.py") == ["action/security_score.py"]


def test_the_modules_of_the_guest_stages(checkout):
    found = {stage: sorted(_code.modules_of(checkout / "roles" / stage)) for stage in ("sanitize", "cloud_init")}
    assert found == {"sanitize": ["credential_scan", "image_files"], "cloud_init": ["image_files"]}
    assert _code.modules_of(checkout / "roles/sanitize") == _code.modules_of(checkout / "roles/sanitize")


def test_all_imports_are_seen(checkout):
    """The expression that finds imports finds as many as there are lines that import."""
    for path in sorted((checkout / "plugins").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        wanted = sum(
            line.lstrip().startswith("from ansible_collections.cloudimg.factory.plugins.") for line in text.splitlines()
        )
        assert len(_code._IMPORT.findall(text)) == wanted, path
