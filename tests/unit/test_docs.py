# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the documentation names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PAGES = sorted(path.name for path in (CHECKOUT / "docs").glob("*.md"))
TESTS = sorted((CHECKOUT / "tests").rglob("test_*.py"))
NAMED = re.compile(r"`(?:tests/\w+/)?(test_\w+(?:\.py)?)`")


@pytest.mark.parametrize("page", PAGES)
def test_the_tests_that_a_page_names_are_there(page: str) -> None:
    named = NAMED.findall((CHECKOUT / "docs" / page).read_text(encoding="utf-8"))
    files = [name for name in named if name.endswith(".py")]
    assert set(files) - {path.name for path in TESTS} == set()
    text = "\n".join(path.read_text(encoding="utf-8") for path in TESTS)
    defined = set(re.findall(r"(?m)^ *def (test_\w+)\(", text))
    assert [name for name in named if name not in files and name not in defined] == []


@pytest.mark.parametrize("page", ["glance.md", "oci.md", "opennebula.md"])
def test_each_fault_has_its_test(page: str) -> None:
    """Each row of a table whose last column is «test» names one."""
    text = (CHECKOUT / "docs" / page).read_text(encoding="utf-8")
    tables = re.findall(r"(?m)^\|[^\n]*\|\s*tests?\b[^|\n]*\|\n\|[-| ]+\|\n((?:\|.*\n)+)", text)
    rows = [row for table in tables for row in table.splitlines()]
    assert len(rows) >= 5
    assert [row for row in rows if not NAMED.search(row.strip().strip("|").rpartition("|")[2])] == []
