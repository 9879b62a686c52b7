# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Secrets in descriptions of other tools: which values they are, and which texts hold some."""

from __future__ import annotations

import json
import re
import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils._import_definition_source import Node
from ansible_collections.cloudimg.factory.plugins.module_utils._masks import Masks

HIDDEN = "***"
_LONGEST = 80
LOOKED_THROUGH = 64 << 10
"""Characters of a text that is looked through; the time for that grows with their square at worst."""
_NAMES = re.compile(
    r"(?i)passw|passphrase|passwd|pwd$|(?:^|[_-])pw$|rootpw|secret|token|credential|private_?key|api_?key|license|^@?key$"
)
"""Keys whose values are never shown. Oz's C(key) is that of a product."""
_NO_SECRETS = frozenset({"", "true", "false", "yes", "no", "none", "null"})

_IN_TEXT: tuple[tuple[str, str], ...] = (
    (r"chpasswd", "sets a password (chpasswd)"),
    (r"\bpasswd\b.*--stdin|\|\s*(sudo\s+)?passwd\b", "sets a password (passwd)"),
    (r"\bsudo\s+(-\w+\s+)*(-\w*S|--stdin)\b", "tells sudo a password"),
    (r"\b(user|group)(add|mod)\b[^\n;&|]*\s(-p|--password)\b", "sets a password"),
    (r"-----BEGIN [A-Z ]*PRIVATE KEY", "holds a private key"),
    (r"(?i)\b[a-z][a-z0-9+.-]*://[^/\s:@'\"]+:[^/\s@'\"]+@", "holds a URL with a password"),
    (
        r"(?i)(passw(or)?d|passphrase|rootpw|secret|token|api_?key)\w*['\"]?\s*=\s*['\"]?[^\s'\"$]",
        "sets a password or key",
    ),
    (r"(?im)^\s*rootpw\s+\S", "sets a password (rootpw)"),
    (r"(?m)^[a-z_][a-z0-9_-]*:\$[0-9a-z]+\$", "holds hashes of passwords"),
)
"""What texts (scripts, files, arguments of a kernel) that hold a secret in clear look like."""

_SCRUB: tuple[tuple[str, str], ...] = (
    (r"(?i)(\b[a-z][a-z0-9+.-]*://)[^/\s@'\"]+@", rf"\g<1>{HIDDEN}@"),
    (r"(?i)(echo|printf)(\s+(?:-\w+\s+)*)[^|;&]+(\|)", rf"\g<1> {HIDDEN} \g<3>"),
    (
        r"(?i)([\w/.-]*(?:passw(?:or)?d|passphrase|rootpw|secret|token|api_?key)[\w/.-]*['\"]?\s*[=:]?\s*(?:password\s+)?)['\"]?[^\s'\",<]+",
        rf"\g<1>{HIDDEN}",
    ),
    (r"-----BEGIN [A-Z ]*PRIVATE KEY.*", HIDDEN),
    (r"\$[0-9a-z]{1,3}\$[^\s'\"]+", HIDDEN),
)


class Secrets:
    """The secrets of one description."""

    def __init__(self) -> None:
        self._masks = Masks()
        self._values: set[str] = set()
        self._paths: set[str] = set()

    def learn(self, root: Node) -> None:
        """Find those that stand at keys which tell that they are some."""
        for node in leaves(root):
            if self.at(node):
                self.add(node.text())

    def add(self, value: str | None) -> None:
        """Hide this value wherever it stands."""
        # What is yet to be filled in tells nothing, and what is said everywhere would hide everything.
        if value and value.lower() not in _NO_SECRETS and not re.search(r"\{\{|\$\{", value):
            self._values.add(value)
            self._masks.add(value)

    def hide(self, node: Node) -> None:
        """Hide the value of this node, whatever its key is called."""
        self._paths.add(node.path)
        self.add(node.text())

    def at(self, node: Node) -> bool:
        """Whether a node's value is a secret."""
        return bool(_NAMES.search(node.key)) or node.path in self._paths

    def within(self, text: str) -> str | None:
        """What makes a text one that must not be taken over; None for others."""
        if len(text) > LOOKED_THROUGH:
            return "is too long to be looked through for secrets"
        for value in self._values:
            if re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text):
                return "holds a password of the description"
        return next((reason for pattern, reason in _IN_TEXT if re.search(pattern, text)), None)

    def shown(self, node: Node) -> str:
        """A value in one short line, without the secrets in it."""
        if self.at(node):
            return HIDDEN
        value = self._without(node)
        return short(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))

    def _without(self, node: Node) -> t.Any:
        if self.at(node):
            return HIDDEN
        if isinstance(node.value, dict):
            return {key: self._without(node.below(key)) for key in node.value}
        if isinstance(node.value, list):
            return [self._without(child) for child in node.children()]
        if not isinstance(node.value, str):
            return node.value
        if self.within(node.value):
            return HIDDEN
        # what only looks as if it may
        text = self._masks.hide(node.value)
        for pattern, instead in _SCRUB:
            text = re.sub(pattern, instead, text, flags=re.DOTALL if "BEGIN" in pattern else 0)
        return text


def short(text: str) -> str:
    """A text in one line of printable characters, not longer than can be read at a glance."""
    line = one_line(text)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def one_line(text: str) -> str:
    """A text in one line of printable characters."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def leaves(node: Node) -> t.Iterator[Node]:
    """The values below a node that hold no others; an empty mapping or list is one."""
    children = node.children()
    if not children:
        yield node
    for child in children:
        yield from leaves(child)
