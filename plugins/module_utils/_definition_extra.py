# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Whether C(image_medium.answer_extra) is of the language of the answer file that it goes into."""

from __future__ import annotations

import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils import _libraries, _xml
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

MAPPINGS = frozenset({"autoinstall", "agama"})
"""The families whose answer file is a mapping, into which that of the user is merged."""
ELEMENTS = {
    "autoyast": '<profile xmlns="http://www.suse.com/1.0/yast2ns" xmlns:config="http://www.suse.com/1.0/configns">{}</profile>',
    "autounattend": '<unattend xmlns="urn:schemas-microsoft-com:unattend" '
    'xmlns:wcm="http://schemas.microsoft.com/WMIConfig/2002/State">{}</unattend>',
}
"""The families whose answer file is an element, of which those of the user become the last children."""
PASSES = frozenset({"windowsPE", "specialize", "oobeSystem", "auditUser"})
"""The passes of Windows Setup that the factory's own answer file has; each may be there once."""


def check_extra(family: str, extra: str, wrong: t.Callable[[str, str], t.NoReturn]) -> None:
    """Whether it can be put into the answer file; raises through ``wrong``, which gets the problem and its mend."""
    if family in MAPPINGS:
        _check_mapping(family, extra, wrong)
    elif family in ELEMENTS:
        _check_elements(family, extra, wrong)


def _check_mapping(family: str, extra: str, wrong: t.Callable[[str, str], t.NoReturn]) -> None:
    # Definitions are checked on the controller, where Ansible brings it; not where modules run.
    yaml: t.Any = _libraries.need("yaml")
    try:
        found = yaml.safe_load(extra)
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        wrong(f"is no YAML: {getattr(exc, 'problem', None) or exc}{where}", "correct it")
    if not isinstance(found, dict):
        wrong(f"is no mapping, as the answer file of the family {family} is", "give keys with their values")
    if family == "autoinstall" and "autoinstall" in found:
        wrong("has the key autoinstall, in which it is merged", "give what is to be in it")


def _check_elements(family: str, extra: str, wrong: t.Callable[[str, str], t.NoReturn]) -> None:
    try:
        root = _xml.parse(ELEMENTS[family].format(extra).encode(), family)
    except FactoryError as exc:
        # Its line and column are those within the element around it.
        wrong(exc.problem.partition(": line ")[0], "close each element, and write & as &amp;")
    if any(text and text.strip() for text in (root.text, *(child.tail for child in root))):
        wrong("has text outside of an element", "put it into one")
    for child in root if family == "autounattend" else ():
        used = child.get("pass")
        if not child.tag.endswith("}settings") or not used:
            wrong("has an element that is no <settings pass=…>", "put components into one")
        if used in PASSES:
            wrong(f"has settings for the pass {used}, which are there already", "use another pass, or answer_file")
