# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is added to an answer file has to be of its language."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
import yaml

from ansible_collections.cloudimg.factory.plugins.module_utils import _definition
from ansible_collections.cloudimg.factory.plugins.module_utils._definition_extra import check_extra
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError


class Wrong(Exception):
    """What was found wrong."""


def check(family: str, extra: str) -> None:
    def wrong(problem: str, mend: str) -> t.NoReturn:
        raise Wrong(f"{problem}; {mend}")

    check_extra(family, extra, wrong)


@pytest.mark.parametrize(
    ("family", "extra"),
    [
        ("preseed", "d-i debian-installer/quiet boolean false"),
        ("kickstart", "%post\n: 'not { YAML\n%end"),
        ("autoinstall", "packages: [jq]\n"),
        ("agama", '{"software": {"packages": ["jq"]}}'),
        (
            "autoyast",
            '<kdump><add_crash_kernel config:type="boolean">false</add_crash_kernel></kdump>\n<!-- x -->\n<x/>',
        ),
        ("autounattend", '<settings pass="offlineServicing"></settings>'),
    ],
)
def test_what_can_be_added(family: str, extra: str) -> None:
    check(family, extra)


@pytest.mark.parametrize(
    ("family", "extra", "problem"),
    [
        ("autoinstall", "packages: [jq\n", "is no YAML: .* in line 2; correct it"),
        (
            "autoinstall",
            "- jq",
            "is no mapping, as the answer file of the family autoinstall is; give keys with their values",
        ),
        (
            "autoinstall",
            "autoinstall: {packages: [jq]}",
            "has the key autoinstall, in which it is merged; give what is to be in it",
        ),
        ("agama", "text", "is no mapping"),
        ("agama", "{{ x }}", "is no YAML"),
        ("autoyast", "<a>", "is no XML: mismatched tag; close each element"),
        ("autoyast", "<a>x & y</a>", "is no XML"),
        ("autoyast", "</profile><profile>", "is no XML"),
        ("autoyast", "<a/> text", "has text outside of an element"),
        ("autounattend", "<component/>", "has an element that is no <settings pass=…>"),
        (
            "autounattend",
            '<settings pass="oobeSystem"/>',
            "has settings for the pass oobeSystem, which are there already; use another",
        ),
    ],
)
def test_what_cannot(family: str, extra: str, problem: str) -> None:
    with pytest.raises(Wrong, match=problem):
        check(family, extra)


def test_definition_tells_the_key() -> None:
    path = Path(__file__).resolve().parents[2] / "roles/definition/meta/argument_specs.yml"
    spec = yaml.safe_load(path.read_text("utf-8"))["argument_specs"]["image"]["options"]
    medium = {
        "family": "autoinstall",
        "url": "https://example.org/x.iso",
        "checksum": f"sha256:{'0' * 64}",
        "answer_extra": "- jq",
    }
    given = {"image_os": {"distribution": "ubuntu", "version": "24.04"}, "image_medium": medium}
    with pytest.raises(
        FactoryError, match=r"^x.yml: image_medium.answer_extra: is no mapping, .*; give keys"
    ) as caught:
        _definition.validate("image", given, spec, lambda place: "x.yml", "hosts.yml")
    assert "\n" not in str(caught.value)
