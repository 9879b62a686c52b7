# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What waits for an answer: a Marketplace that checks addresses sends the endorser a mail, and lists nothing before its answer.

It does not say so when it is asked, so a record beside the signed file does; else each run would send another mail.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _state
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError


@dataclasses.dataclass(frozen=True)
class Pending:
    """The record beside ``document``, the signed file, about one Marketplace (its URL).

    :ivar days: for which a mail counts as being on its way.
    """

    document: Path
    marketplace: str
    days: int = 7

    @property
    def path(self) -> Path:
        """The record."""
        return self.document.with_name(self.document.name + ".pending.json")

    def waits(self, octets: bytes) -> bool:
        """Whether a mail was sent for just this document, not long ago."""
        try:
            record = _state.read_json(self.path)
        except FactoryError:
            return False  # a broken record costs one mail
        about = self._about(octets)
        if not isinstance(record, dict) or any(record.get(key) != value for key, value in about.items()):
            return False
        try:
            asked = _descriptor.parse_time(str(record.get("asked")))
        except ValueError:
            return False
        return datetime.datetime.now(datetime.timezone.utc) - asked < datetime.timedelta(days=self.days)

    def remember(self, octets: bytes) -> None:
        """Note that a mail is on its way."""
        _state.write_json(self.path, {**self._about(octets), "asked": _descriptor.now()})

    def forget(self) -> None:
        """Have no record."""
        with _state.explain_os_errors(self.path):
            _state.remove(self.path)

    def _about(self, octets: bytes) -> dict[str, str]:
        return {"marketplace": self.marketplace, "sha256": hashlib.sha256(octets).hexdigest()}
