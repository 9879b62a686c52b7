# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Submitting a signed HEPiX image list to EGI AppDB, as vmcaster's protocol C(egiappdb) does.

Source: vmcaster's C(uploader_egiappdb.py). A form field C(data) has an XML document C(appdbvmc) with the list in base64; the
answer is JSON. The protocol has no look-up. So what was submitted is recorded beside the list, and AppDB's REST API is asked,
where it is named, whether it has that version of the list already.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import typing as t
import xml.etree.ElementTree as ET
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _hepix_smime, _state
from ansible_collections.cloudimg.factory.plugins.module_utils._appdb import AppDb, same_version
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import Cancelled, FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._http import Answered, Http, Reply, Unknown
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result

LOOKS = (0.0, 2.0, 5.0)
_NEEDED = ("ad:group", "sl:osname", "sl:checksum:sha512")


@dataclasses.dataclass(frozen=True)
class List:
    """A signed list: its file, its bytes, its version and identifier, the number of its appliance, its images' SHA-512."""

    path: Path
    data: bytes
    version: str
    identifier: str
    appliance: str
    checksums: frozenset[str]

    @property
    def sha256(self) -> str:
        """Of the file."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def record(self) -> Path:
        """Where is kept what was submitted last."""
        return self.path.with_name(f"{self.path.name}.submitted.json")


def load(path: Path) -> List:
    """Read a signed list, once AppDB would take it.

    :raises FactoryError: it is no signed list, was changed, or lacks what AppDB needs of it.
    """
    document = _hepix_smime.load(path, strict=False).document
    with _state.explain_os_errors(path):
        data = path.read_bytes()

    def need(key: str, values: t.Any, at: str = "") -> str:
        value = str(values.get(key) or "") if isinstance(values, dict) else ""
        if not value:
            raise FactoryError(
                "is missing, and AppDB needs it",
                where=str(path),
                key=f"{at}{key}",
                mend="give it to hepix_image_list, which signs the list again",
            )
        return value

    number, version, identifier = (need(key, document) for key in ("ad:appid", "hv:version", "dc:identifier"))
    entries = document.get("hv:images") or []
    sums = set()
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        image = entry.get("hv:image") if isinstance(entry, dict) else None
        for key in _NEEDED:
            value = need(key, image, f"hv:images[{index}].")
        sums.add(value.lower())
    return List(path, data, version, identifier, number, frozenset(sums))


def envelope(what: List, actions: t.Sequence[str], user: str) -> str:
    """The document that goes into the form's field C(data)."""
    root = ET.Element("appdbvmc")
    rows = [("action", action) for action in actions]
    rows += [("entity", "imagelist"), ("response", "json"), ("user", user)]
    rows += [("imagelist", base64.b64encode(what.data).decode("ascii"))]
    for name, text in rows:
        ET.SubElement(root, name).text = text
    return '<?xml version="1.0" encoding="utf-8"?>' + ET.tostring(root, encoding="unicode")


def submission(reply: Reply) -> int:
    """The number of a submission that AppDB took; raises FactoryError where it did not, or answers something else."""
    answer = reply.json()
    told = answer.get("egiappdb") if isinstance(answer, dict) else None
    if not isinstance(told, dict) or not isinstance(told.get("status"), str):
        raise Answered(
            reply,
            f"answered with no «egiappdb»: {reply.said()}",
            where=reply.where,
            mend="check the URL of submissions",
        )
    if told["status"] != "success":
        errors = told.get("errors") if isinstance(told.get("errors"), list) else []
        words = [told.get("details"), *(row.get("message") for row in errors or [] if isinstance(row, dict))]
        text = "; ".join(dict.fromkeys(" ".join(str(word).split()) for word in words if word))
        # A status of its own, so that it is not taken for an answer that was lost.
        refused = dataclasses.replace(reply, status=400)
        problem = reply.masks.hide(f"AppDB refused the list: {text or told['status']}")
        raise Answered(
            refused, problem, where=reply.where, mend="mend what AppDB names, sign the list and run this again"
        )
    number = told.get("submission_id")
    return number if isinstance(number, int) else 0


@dataclasses.dataclass
class Submitter:
    """Submits lists.

    :param user: the name of the user, for the single sign-on; None: by a client certificate.
    :param lookup: makes a client for the list's appliance at the REST API; None: it is not asked.
    """

    http: Http
    user: str | None
    actions: t.Sequence[str] = ("insert", "enable")
    lookup: t.Callable[[str], AppDb] | None = None
    check_mode: bool = False
    looks: t.Sequence[float] = LOOKS

    def submit(self, path: Path) -> Result:
        """Have AppDB take a list, unless it has it already."""
        what = load(path)
        result = Result()
        place = "x509/" if self.user is None else "sso/"
        known = self._recorded(what)
        number = int(known.get("submission_id") or 0)
        if not known and self._there(what):
            self._remember(what, number)
        elif not known:
            result.act(f"{path}: version {what.version} was not submitted yet")
            if not self.check_mode:
                number = self._send(what, place)
                self._remember(what, number)
        result.diff = {
            "before": {"version": what.version} if not result.changed else {},
            "after": {"version": what.version},
        }
        publication = {"appliance": what.appliance, "identifier": what.identifier, "version": what.version}
        result.extra["publication"] = {**publication, **({"submission_id": str(number)} if number else {})}
        return result

    def _send(self, what: List, place: str) -> int:
        form = {"data": envelope(what, self.actions, self.user or "x509")}
        try:
            return submission(self.http.request("POST", place, body=form))
        except Cancelled:
            raise
        except (Unknown, Answered) as lost:
            if isinstance(lost, Answered) and not 200 <= lost.reply.status < 300:
                raise
            for pause in self.looks if self.lookup else ():
                self.http.pause(pause)
                if self._there(what):
                    return 0
            raise

    def _recorded(self, what: List) -> dict[str, t.Any]:
        """What is recorded of this very list and this very server; {} where nothing is."""
        try:
            known = json.loads(what.record.read_text(encoding="utf-8"))
            return dict(known) if (known["url"], known["sha256"]) == (self._url(), what.sha256) else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _remember(self, what: List, number: int) -> None:
        if self.check_mode:
            return
        now = {"url": self._url(), "sha256": what.sha256, "version": what.version, "submission_id": number}
        _state.write_json(what.record, {**now, "at": _descriptor.now()})

    def _url(self) -> str:
        return self.http.masks.url(self.http.base)

    def _there(self, what: List) -> bool:
        """Whether AppDB has all images of that version of the list."""
        if self.lookup is None:
            return False
        found = same_version(self.lookup(what.appliance).get(), what.version)
        return bool(found) and what.checksums <= {each for version in found for each in version.checksums}
