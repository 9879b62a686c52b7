# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The assessment as JUnit XML, which continuous integration knows how to show. Talks to nobody."""

from __future__ import annotations

import typing as t
import xml.etree.ElementTree as ET

from ansible_collections.cloudimg.factory.plugins.module_utils._secant import document, printable


def xml(report: t.Mapping[str, t.Any]) -> str:
    """One suite for each boot, and one for what is about all of them.

    :param report: what C(assess.json) says. A warning (not required, and not ok) is a test that was skipped, and so is a
        probe that was.
    """
    root = ET.Element("testsuites", name=f"{report['image']} {report['version']}")
    totals = [0, 0, 0]
    seconds = {boot["name"]: max(boot["timings"].values(), default=0.0) for boot in report["boots"]}
    for name in dict.fromkeys(check["boot"] for check in report["checks"]):
        checks = [check for check in report["checks"] if check["boot"] == name]
        failed = sum(not check["ok"] and check["required"] for check in checks)
        skipped = sum(_skipped(check) for check in checks)
        counts = {"tests": len(checks), "failures": failed, "skipped": skipped, "errors": 0}
        time = f"{seconds.get(name, 0.0):.1f}"
        suite = ET.SubElement(root, "testsuite", name=name, time=time, timestamp=report["started"].rstrip("Z"))
        for key, value in counts.items():
            suite.set(key, str(value))
        for check in checks:
            _case(suite, f"{report['image']}.{name}", check)
        totals = [total + one for total, one in zip(totals, (len(checks), failed, skipped))]
    for key, total in zip(("tests", "failures", "skipped"), totals):
        root.set(key, str(total))
    return document(root)


def _skipped(check: t.Mapping[str, t.Any]) -> bool:
    return (not check["ok"] and not check["required"]) or check["detail"].startswith("SKIPPED: ")


def _case(suite: ET.Element, classname: str, check: t.Mapping[str, t.Any]) -> None:
    case = ET.SubElement(suite, "testcase", classname=classname, name=check["name"], time="0")
    detail = printable(check["detail"])
    if _skipped(check):
        ET.SubElement(case, "skipped", message=detail)
    elif not check["ok"]:
        ET.SubElement(case, "failure", message=detail, type=check["group"])
    else:
        ET.SubElement(case, "system-out").text = detail
