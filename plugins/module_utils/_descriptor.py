# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The descriptor: all that is known about one build, and the only thing that publishing reads."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
import typing as t
import uuid
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor_schema
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors

FILE = "descriptor.json"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_OID, "cloudimg.factory")
_MEND = "build the image again, or restore this file"
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_LIFETIME = re.compile(r"(\d+)\s*([hdwy])")
_HOURS = {"h": 1, "d": 24, "w": 7 * 24, "y": 365 * 24}


def stable_identifier(image: str) -> str:
    """The UUID of an image, the same for all its versions."""
    return str(uuid.uuid5(_NAMESPACE, image))


def version_identifier(identifier: str, version: str) -> str:
    """The UUID of one version of the image ``identifier``."""
    return str(uuid.uuid5(uuid.UUID(identifier), version))


def format_time(moment: datetime.datetime) -> str:
    """A time as descriptors and catalogues write it: C(2025-01-31T12:00:00Z)."""
    return moment.astimezone(datetime.timezone.utc).strftime(_TIME)


def parse_time(text: str) -> datetime.datetime:
    """The inverse of :func:`format_time`; raises ValueError."""
    return datetime.datetime.strptime(text, _TIME).replace(tzinfo=datetime.timezone.utc)


def now() -> str:
    """The present time, by :func:`format_time`."""
    return format_time(datetime.datetime.now(datetime.timezone.utc))


def expiry(created: str, lifetime: str | None) -> str | None:
    """When an image that lives for ``lifetime`` (C(180d), C(26w), C(1y), C(12h), or until C(2031-12-31)) expires."""
    if not lifetime:
        return None
    if _DATE.fullmatch(str(lifetime)):
        return f"{lifetime}T00:00:00Z"
    found = _LIFETIME.fullmatch(str(lifetime).strip())
    if not found or int(found[1]) == 0:
        raise FactoryError(
            f"{lifetime!r} is no time span", key="image_expires", mend="give a number with h, d, w or y, such as 180d"
        )
    try:
        return format_time(parse_time(created) + datetime.timedelta(hours=int(found[1]) * _HOURS[found[2]]))
    except OverflowError:
        raise FactoryError(f"{lifetime!r} is too long", key="image_expires", mend="give a shorter one") from None


def must_be_alive(expires: str | None, where: Path | str, *, version: str = "", moment: str = "") -> None:
    """Raise FactoryError where the time of a build has ended: it is not to be offered any more.

    :param version: for the message, where the file of ``where`` does not say which.
    :param moment: the present time, by :func:`format_time`.
    """
    if expires and expires <= (moment or now()):
        problem = f"{version}: its time ended at {expires}".removeprefix(": ")
        raise FactoryError(problem, where=str(where), key="expires", mend="build the image again")


@dataclasses.dataclass(frozen=True)
class OperatingSystem:
    """What is installed."""

    distribution: str
    version: str
    arch: str


@dataclasses.dataclass(frozen=True)
class Artifact:
    """One exported disk file; ``path`` is its name beside the descriptor.

    The optional fields are options of its format, see docs/export.md; ``signer`` is the SHA-256 fingerprint of a certificate.
    """

    format: str
    path: str
    size: int
    virtual_size: int
    checksums: dict[str, str]
    compression: str | None = None
    cluster_size: int | None = None
    level: int | None = None
    subformat: str | None = None
    force_size: bool | None = None
    ovf: str | None = None
    controller: str | None = None
    nic: str | None = None
    signer: str | None = None


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What an image was made of and by what: digests of the stages (their name first), versions of the tools."""

    source_digest: str
    qemu: str
    collection: str
    definition_digest: str | None = None
    stages: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Descriptor:
    """One build of one image. The first artifact is the one that consumers get unless they ask for a format."""

    image: str
    identifier: str
    version: str
    title: str
    description: str
    os: OperatingSystem
    min_disk: int
    artifacts: tuple[Artifact, ...]
    created: str
    provenance: Provenance
    groups: tuple[str, ...] = ()
    memory: int | None = None
    cpu: int | None = None
    attributes: dict[str, str] = dataclasses.field(default_factory=dict)
    expires: str | None = None
    endorser: dict[str, str] | None = None
    source: dict[str, str] | None = None
    packages: str | None = None
    scores: dict[str, t.Any] | None = None
    assess: dict[str, t.Any] | None = None

    def document(self) -> dict[str, t.Any]:
        """The descriptor as it is written; what is not known is left out."""
        values = _known(dataclasses.asdict(self))
        first = self.artifacts[0]
        return {
            **values,
            "schema": _descriptor_schema.VERSION,
            "action": "registration",
            "version_identifier": version_identifier(self.identifier, self.version),
            "architecture": self.os.arch,
            "disks": [
                {"type": "os", "format": first.format, "path": first.path, "virtual_size": first.virtual_size},
            ],
        }

    def dump(self) -> str:
        """The text of C(descriptor.json): the same bytes for the same descriptor."""
        return json.dumps(self.document(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def files(self) -> list[str]:
        """The names of the files beside the descriptor that belong to it."""
        return [artifact.path for artifact in self.artifacts] + ([self.packages] if self.packages else [])


def _known(value: t.Any) -> t.Any:
    if isinstance(value, dict):
        return {key: _known(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, (list, tuple)):
        return [_known(inner) for inner in value]
    return value


def parse(document: t.Any, where: str, *, mend: str = _MEND) -> Descriptor:
    """The descriptor in a JSON document; raises FactoryError for its first error, naming file and key."""

    def refuse(key: str, problem: str) -> t.NoReturn:
        raise FactoryError(problem, where=where, key=key, mend=mend)

    if isinstance(document, dict) and document.get("schema", 0) != _descriptor_schema.VERSION:
        version = document.get("schema", "missing")
        refuse("schema", f"is {version!r}, this version of cloudimg.factory knows {_descriptor_schema.VERSION}")
    for key, problem in _descriptor_schema.errors(document):
        refuse(key, problem)
    fields = {field.name for field in dataclasses.fields(Descriptor)}
    values = {key: value for key, value in document.items() if key in fields}
    found = Descriptor(
        **{
            **values,
            "os": OperatingSystem(**document["os"]),
            "provenance": Provenance(**document["provenance"]),
            "artifacts": tuple(Artifact(**artifact) for artifact in document["artifacts"]),
            "groups": tuple(document.get("groups", [])),
        }
    )
    names = found.files()
    if len(set(names)) < len(names):
        refuse("artifacts", "names a file twice")
    for key, value in found.document().items():
        if key not in fields and value != document[key]:
            refuse(key, f"contradicts the rest: {document[key]!r} where {value!r} follows from it")
    assessed = found.assess or {}
    times = {
        "created": found.created,
        "expires": found.expires,
        "assess.finished": assessed.get("finished"),
        "assess.override.at": (assessed.get("override") or {}).get("at"),
    }
    for key, text in times.items():
        try:
            parse_time(text or found.created)
        except ValueError:
            refuse(key, f"is no date: {text!r}")
    if assessed.get("verdict") == "pass" and "override" in assessed:
        refuse("assess.override", "is there although the verdict is pass")
    if found.expires and found.expires <= found.created:
        refuse("expires", f"{found.expires} is not later than created, {found.created}")
    return found


def load(path: Path) -> Descriptor:
    """Read a descriptor; raises FactoryError, one line that names file and key, where it is none."""
    with explain_os_errors(path):
        text = path.read_bytes()
    try:
        document = json.loads(text.decode("utf-8"))
    except ValueError as exc:
        raise FactoryError(f"is not JSON: {exc}", where=str(path), mend=_MEND) from exc
    return parse(document, str(path))
