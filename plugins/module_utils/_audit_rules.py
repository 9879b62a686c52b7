# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Named rules that make a system safer, told as data, and how they are carried out below a root directory."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import stat
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._file_operations import Operation, perform
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors

_UNIT_FOLDERS = ("etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")
_SECONDS = 120.0
LOCKED = "!*"
"""What stands for a password that nothing matches."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """What makes a system safer.

    :ivar write: files, with their content.
    :ivar remove: patterns of files that go.
    :ivar lines: files with, by a regular expression, the line that takes the place of those that match it (at the end,
        where none does); files that do not exist are left alone.
    :ivar modes: patterns of files and directories with the most that their mode may allow, in octal.
    :ivar lock: accounts whose passwords are locked; C(*) stands for all.
    :ivar unlocked: but not those of these accounts.
    :ivar accounts_absent: accounts to remove, with their home directories.
    :ivar enable: units that systemd starts at boot.
    :ivar disable: units that it does not, of those that exist.
    :ivar only: where not empty, the only services and sockets that may be enabled.
    """

    name: str
    description: str
    write: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    remove: t.Sequence[str] = ()
    lines: t.Mapping[str, t.Mapping[str, str]] = dataclasses.field(default_factory=dict)
    modes: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    lock: t.Sequence[str] = ()
    unlocked: t.Sequence[str] = ()
    accounts_absent: t.Sequence[str] = ()
    enable: t.Sequence[str] = ()
    disable: t.Sequence[str] = ()
    only: t.Sequence[str] = ()


def choose(
    rules: t.Sequence[Rule], profile: t.Sequence[str], disabled: t.Sequence[str], enabled: t.Sequence[str]
) -> list[Rule]:
    """The rules to carry out: those of the profile and those ``enabled``, but none that is ``disabled``.

    :raises FactoryError: a name is not known; it tells the nearest one.
    """
    known = [rule.name for rule in rules]
    for key, names in (("profile", profile), ("disabled", disabled), ("enabled", enabled)):
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1, 0.4)
                mend = f"did you mean {near[0]!r}?" if near else f"use one of: {', '.join(sorted(known))}"
                raise FactoryError(f"there is no rule {name!r}", key=key, mend=mend)
    wanted = {*profile, *enabled} - {*disabled}
    return [rule for rule in rules if rule.name in wanted]


class Applier:
    """Carries out rules below ``root``; with ``dry`` it only tells what it would do."""

    def __init__(self, root: Path = Path("/"), *, dry: bool = False) -> None:
        self._root = root
        self._dry = dry

    def apply(self, rule: Rule) -> list[str]:
        """Carry out a rule; returns what it changed, or would change: paths, accounts, units."""
        files = Operation(rule.name, rule.description, remove=tuple(rule.remove), write=rule.write)
        changed = perform(files, self._root, dry=self._dry)
        for name, lines in rule.lines.items():
            changed += self._lines(self._root / name.lstrip("/"), lines)
        changed += [f"account {name}" for name in rule.accounts_absent if self._remove_account(name)]
        if rule.lock:
            changed += [f"password of {name}" for name in self._lock_passwords(rule)]
        changed += [f"{unit} enabled" for unit in rule.enable if self._enable(unit)]
        changed += [f"{unit} disabled" for unit in self._unwanted(rule) if self._disable(unit)]
        for pattern, mode in rule.modes.items():
            changed += self._modes(pattern, mode)
        return changed

    def _lines(self, path: Path, lines: t.Mapping[str, str]) -> list[str]:
        if not path.is_file():
            return []
        before = path.read_text(encoding="utf-8", errors="surrogateescape")
        text = before.splitlines()
        for pattern, line in lines.items():
            expression = re.compile(pattern)
            first = next((number for number, old in enumerate(text) if expression.search(old)), len(text))
            text = [old for old in text[:first] if not expression.search(old)] + [
                line,
                *(old for old in text[first:] if not expression.search(old)),
            ]
        after = "".join(f"{line}\n" for line in text)
        if after == before:
            return []
        self._rewrite(path, after)
        return [self._shown(path)]

    def _lock_passwords(self, rule: Rule) -> list[str]:
        path = self._root / "etc/shadow"
        if not path.is_file():
            return []
        found = []
        rows = [line.split(":") for line in path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()]
        for row in rows:
            meant = {row[0], "*"} & {*rule.lock} and row[0] not in rule.unlocked
            if len(row) > 1 and meant and not row[1].startswith(("!", "*")):
                found.append(row[0])
                row[1] = LOCKED
        if found:
            self._rewrite(path, "".join(f"{':'.join(row)}\n" for row in rows))
        return found

    def _remove_account(self, name: str) -> bool:
        rows = self._root / "etc/passwd"
        if not rows.is_file() or not re.search(
            rf"^{re.escape(name)}:", rows.read_text(encoding="utf-8", errors="replace"), re.MULTILINE
        ):
            return False
        if name == "root":
            raise FactoryError("root cannot be removed", key="accounts_absent", mend="leave it out")
        # what it says about a mail spool that never was is no error
        self._run("userdel", "--force", "--remove", name)
        return True

    def _unwanted(self, rule: Rule) -> list[str]:
        found = dict.fromkeys(rule.disable)
        if rule.only:
            for link in sorted((self._root / "etc/systemd/system").glob("*.wants/*")):
                unit = re.sub(r"@.+(?=\.)", "@", link.name)
                if unit.endswith((".service", ".socket")) and not {unit, link.name} & {*rule.only}:
                    found[link.name] = None
        return list(found)

    def _enable(self, unit: str) -> bool:
        if not self._exists(unit):
            if self._dry:  # its package would be installed first
                return True
            raise FactoryError(
                "there is no such unit, so that it cannot be enabled",
                where=unit,
                mend="have its package installed, or switch the rule off",
            )
        if self._state(unit) in ("enabled", "static", "alias", "indirect", "generated"):
            return False
        self._run("systemctl", "enable", unit)
        return True

    def _disable(self, unit: str) -> bool:
        if not self._exists(unit) or self._state(unit) not in ("enabled", "enabled-runtime"):
            return False
        self._run("systemctl", "disable", unit)
        return True

    def _exists(self, unit: str) -> bool:
        template = re.sub(r"@.+(?=\.)", "@", unit)
        return any(os.path.lexists(self._root / folder / name) for folder in _UNIT_FOLDERS for name in (unit, template))

    def _state(self, unit: str) -> str:
        return _cli.run(["systemctl", f"--root={self._root}", "is-enabled", unit], check=False).stdout.strip()

    def _run(self, tool: str, *words: str) -> None:
        if not self._dry:
            options = [f"--root={self._root}"] if self._root != Path("/") else []
            _cli.run([tool, *options, *words], timeout=_SECONDS)

    def _modes(self, pattern: str, mode: str) -> list[str]:
        most = int(mode, 8)
        found = []
        for path in sorted(self._root.glob(pattern.lstrip("/"))):
            if path.is_symlink():
                continue
            now = stat.S_IMODE(path.stat().st_mode)
            if now & most != now:
                found.append(self._shown(path))
                if not self._dry:
                    with explain_os_errors(path):
                        path.chmod(now & most)
        return found

    def _rewrite(self, path: Path, text: str) -> None:
        """Replace a file's content at once, keeping its owner and mode."""
        if self._dry:
            return
        status = path.stat()
        fresh = path.with_name(f"{path.name}.cloudimg-{os.getpid()}")
        with explain_os_errors(path):
            try:
                fresh.write_text(text, encoding="utf-8", errors="surrogateescape")
                os.chown(fresh, status.st_uid, status.st_gid)
                fresh.chmod(stat.S_IMODE(status.st_mode))
                fresh.replace(path)
            finally:
                fresh.unlink(missing_ok=True)

    def _shown(self, path: Path) -> str:
        return f"/{path.relative_to(self._root)}"
