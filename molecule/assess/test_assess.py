# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role leaves beside an artifact that cannot boot, and was let through."""

import hashlib
import json
import os
import xml.etree.ElementTree as ET
from pathlib import Path

BUILD = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "workspace/builds/unbootable/1")
BOOTS = ["bios-nocloud", "uefi-opennebula"]


def test_the_verdict_has_its_reasons():
    assessment = json.loads((BUILD / "assess.json").read_text(encoding="utf-8"))
    assert assessment["verdict"] == "fail"
    assert [boot["name"] for boot in assessment["boots"]] == BOOTS
    failed = {(check["boot"], check["name"]) for check in assessment["checks"] if not check["ok"]}
    assert {(boot, "boot") for boot in BOOTS} <= failed


def test_what_was_let_through_is_in_the_descriptor():
    descriptor = json.loads((BUILD / "descriptor.json").read_text(encoding="utf-8"))
    override = descriptor["assess"]["override"]
    assert (override["reason"], override["by"]) == ("nothing is to boot from it", "molecule")


def test_junit_and_secant_and_the_screens():
    assert int(ET.parse(BUILD / "assess.xml").getroot().get("failures", 0)) > 0
    assert ET.parse(BUILD / "secant.xml").findtext("OUTCOME") == "INTERNAL_FAILURE"
    for boot in BOOTS:
        assert (BUILD / f"logs/assess-screen-{boot}.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_is_one_file_for_itself():
    page = (BUILD / "report.html").read_text(encoding="utf-8")
    assert "nothing is to boot from it" in page
    assert "<script" not in page
    assert 'src="http' not in page


def test_the_artifact_is_what_it_was_before():
    (artifact,) = json.loads((BUILD / "descriptor.json").read_text(encoding="utf-8"))["artifacts"]
    assert hashlib.sha256((BUILD / artifact["path"]).read_bytes()).hexdigest() == artifact["checksums"]["sha256"]
    assert not list(BUILD.rglob("*.partial*"))
