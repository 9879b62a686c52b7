# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Where a medium can be had: a URL, a path, or FAI's builder; and by which checksum it is known."""

from __future__ import annotations

import dataclasses
import difflib
import typing as t
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ansible_collections.cloudimg.factory.plugins.module_utils import _gpg, _sums
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import data_digest, file_digests
from ansible_collections.cloudimg.factory.plugins.module_utils._download import (
    Client,
    check_url,
    discard,
    is_url,
    local_path,
    shown,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._medium import Brought, Origin
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress


@dataclasses.dataclass(frozen=True)
class Definition:
    """An ``image_medium``, as far as it says where the medium comes from."""

    family: str
    url: str | None = None
    path: str | None = None
    checksum: str | None = None
    signature: str | None = None
    keyring: str | None = None
    fingerprints: tuple[str, ...] = ()
    fai: dict[str, t.Any] | None = None


def origin_of(definition: Definition, client: Client, progress: Progress, log: Path) -> Origin:
    """The origin that a definition names; raises FactoryError where it names none, or more than one.

    :param log: where the output of tools goes.
    """
    if definition.family == "fai":
        alien = [name for name in ("url", "path", "checksum", "signature", "keyring") if getattr(definition, name)]
        if alien:
            raise FactoryError(
                "is not for family 'fai', whose medium is built from the distribution's own packages",
                where="definition",
                key=f"image_medium.{alien[0]}",
                mend=f"remove {' and '.join(alien)}",
            )
        return FaiOrigin(definition.fai or {}, progress, log)
    if definition.url and definition.path:
        raise FactoryError(
            "is given, and image_medium.url too", where="definition", key="image_medium.path", mend="give one of them"
        )
    if not (definition.url or definition.path):
        mend = f"give the place of an installation ISO of family {definition.family!r}"
        raise FactoryError(
            "is not given, nor is image_medium.path", where="definition", key="image_medium.url", mend=mend
        )
    return FileOrigin(definition, client, progress)


class FileOrigin:
    """An ISO that somebody published, at a URL or a path."""

    verb = "fetch"

    def __init__(self, definition: Definition, client: Client, progress: Progress) -> None:
        self.warnings: list[str] = []
        self._definition = definition
        self._client = client
        self._progress = progress
        place = definition.url or definition.path or ""
        self.medium_key = "image_medium.url" if definition.url else "image_medium.path"
        if definition.url and not is_url(definition.url):
            raise FactoryError(
                "is not a URL", where=place, key=self.medium_key, mend="give a path as image_medium.path"
            )
        self._local = local_path(place)
        self._url = "" if self._local else check_url(place, self.medium_key)
        self.shown = str(self._local.absolute()) if self._local else shown(place)
        self.place = data_digest(self._url or self.shown)
        self.key = data_digest({**dataclasses.asdict(definition), "family": None})
        self._check()

    def _check(self) -> None:
        """Refuse what does not fit together before anything is fetched."""
        given = self._definition
        if not given.checksum:
            raise FactoryError(
                "is not given",
                where=self.shown,
                key=_sums.KEY,
                mend="give sha256:<hex>, or the place of the vendor's checksum file with its signature and keyring",
            )
        _gpg.check_fingerprints(given.fingerprints)
        if _sums.explicit(given.checksum) and given.signature:
            raise FactoryError(
                "is of a checksum file, but image_medium.checksum is the checksum itself",
                where=shown(given.signature),
                key=_gpg.SIGNATURE,
                mend="give the place of the checksum file as image_medium.checksum, or leave the signature out",
            )
        if (given.signature or given.fingerprints) and not given.keyring:
            raise FactoryError(
                "is not given, so no signature can be verified",
                where=self.shown,
                key=_gpg.KEYRING,
                mend="give the path (on the builder) of the vendor's OpenPGP public keys",
            )

    def inputs(self) -> str:
        """Digest of the checksum file, signature and keyring, as far as they are local."""
        given = self._definition
        contents = {}
        if given.keyring:
            contents["keyring"] = data_digest(_gpg.read_keyring(Path(given.keyring)).hex())
        for name, place, key in (
            ("checksum", given.checksum or "", _sums.KEY),
            ("signature", given.signature or "", _gpg.SIGNATURE),
        ):
            if place and local_path(place) and not (name == "checksum" and _sums.explicit(place)):
                contents[name] = data_digest(self._client.read(place, key=key).hex())
        return data_digest(contents)

    def expected(self) -> _sums.Checksum:
        """The checksum given, or the one in the (verified) checksum file."""
        checksum = _sums.explicit(self._definition.checksum or "")
        return checksum or self.find(self.listing())

    def listing(self) -> str:
        """The text of the checksum file, as far as it is signed where it has to be."""
        self._progress.phase(f"fetching the checksum of {self.shown.rpartition('/')[2]}")
        return self._verified(self._definition.checksum or "").decode("utf-8", "replace")

    @property
    def signed(self) -> bool:
        """Whether the checksum file has to be signed."""
        return bool(self._definition.keyring)

    def find(self, listing: str) -> _sums.Checksum:
        """The medium's checksum in the text of its checksum file."""
        name = unquote(urlsplit(self._url).path) if self._url else self.shown
        return _sums.find(listing, name.lstrip("/"), where=shown(self._definition.checksum or ""))

    def _verified(self, place: str) -> bytes:
        """The checksum file's content, as far as it is signed where it has to be."""
        given = self._definition
        if not given.keyring:
            if place.startswith("http://"):
                self.warnings.append(
                    f"{shown(place)}: the checksum comes over plain http and unsigned, so it protects against accidents"
                    " only; give image_medium.signature and image_medium.keyring"
                )
            return self._client.read(place, key=_sums.KEY)
        signature = self._client.read(given.signature, key=_gpg.SIGNATURE) if given.signature else None
        keyring = Path(given.keyring)
        if given.signature and signature is not None and not _gpg.is_detached(signature):
            # A clearsigned checksum file: only what is signed in it counts.
            return _gpg.verify(signature, keyring, where=shown(given.signature), fingerprints=given.fingerprints).data
        return _gpg.verify(
            self._client.read(place, key=_sums.KEY),
            keyring,
            where=shown(place),
            signature=signature,
            fingerprints=given.fingerprints,
        ).data

    def bring(self, part: Path, algorithms: t.Sequence[str]) -> Brought:
        """Download or copy it; a download goes on from what an interrupted one left."""
        self._progress.phase(f"fetching {self.shown}")
        if self._local is None:
            fetched = self._client.fetch(self._url, part, algorithms, key=self.medium_key)
            return Brought(fetched.digests, bool(fetched.resumed))
        try:
            return Brought(self._client.copy(self._local, part, algorithms, key=self.medium_key).digests)
        except BaseException:
            discard(part)
            raise


class FaiOrigin:
    """An ISO that FAI builds from the distribution's own packages."""

    verb = "build"

    def __init__(self, wanted: dict[str, t.Any], progress: Progress, log: Path) -> None:
        # Imported here: nobody else needs it.
        from ansible_collections.cloudimg.factory.plugins.module_utils import _fai

        fields = dataclasses.fields(_fai.FaiSpec)
        names = [field.name for field in fields]
        for key in sorted(set(wanted) - set(names)):
            near = difflib.get_close_matches(key, names, 1)
            raise FactoryError(
                "there is no such key",
                where="definition",
                key=f"image_medium.{key}",
                mend=f"did you mean {near[0]}?" if near else f"use only {', '.join(names)}",
            )
        for field in fields:
            needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if needed and not wanted.get(field.name):
                key = f"image_medium.{field.name}"
                raise FactoryError("is not given", where="definition", key=key, mend="give it")
        values: dict[str, t.Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in wanted.items()
        }
        self._spec = _fai.FaiSpec(**values)
        self._progress = progress
        self._log = log
        self.warnings: list[str] = []
        self.medium_key = "image_medium.family"
        self.shown = f"fai:{wanted['suite']}"
        self.key = self.place = data_digest({"fai": self._spec.digest()})

    def inputs(self) -> str:
        """Nothing local counts that is not in the key."""
        return ""

    def expected(self) -> None:
        """It is made here, so nobody knows its checksum before."""

    def bring(self, part: Path, algorithms: t.Sequence[str]) -> Brought:
        """Build it."""
        from ansible_collections.cloudimg.factory.plugins.module_utils import _fai

        self._progress.phase(f"building an installation medium ({self.shown})")
        try:
            facts = _fai.build_fai_iso(self._spec, part, self._progress, self._log)
            return Brought(file_digests(part, algorithms), facts=facts)
        except BaseException:
            discard(part)
            raise
