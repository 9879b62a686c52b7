# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The local catalogue: a directory with all versions of all images and an C(index.json) that never forgets one.

Files come first and the index last, each by an atomic rename, so that a reader of the index finds what it names.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import shutil
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _state, _verdict
from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor import Descriptor
from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor_files import must_match, plain
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import (
    Digester,
    cached_digests,
    file_digests,
    remember_digests,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result, made_later
from ansible_collections.cloudimg.factory.plugins.module_utils._versions import version_key

SCHEMA = 1
INDEX = "index.json"
BESIDE = {"assessment": _verdict.ASSESSMENT, "report": "report.html"}
"""What is published along where the build has it: its key in the index, and its name."""
_Entry = t.Mapping[str, t.Any]
_LOCK_WAIT = 900.0
_CHUNK = 4 << 20


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """A catalogue in ``directory``; ``who`` is written into the history of what it changes."""

    directory: Path
    who: str
    check_mode: bool = False

    @property
    def path(self) -> Path:
        """The index."""
        return self.directory / INDEX

    def read(self) -> dict[str, t.Any]:
        """The index; an empty one where there is no catalogue yet."""
        index = _state.read_json(self.path)
        if index is None:
            return {"schema": SCHEMA, "updated": None, "images": {}}
        if not isinstance(index, dict) or not isinstance(index.get("images"), dict):
            raise FactoryError("is no catalogue", where=str(self.path), mend="restore it, or name another directory")
        if index.get("schema") != SCHEMA:
            raise FactoryError(
                f"is {index.get('schema')!r}, this version of cloudimg.factory knows {SCHEMA}",
                where=str(self.path),
                key="schema",
                mend="use the version of cloudimg.factory that wrote it, or a newer one",
            )
        return dict(index)

    def publish(self, descriptor_path: Path, *, link: bool = True, assess_override: str | None = None) -> Result:
        """Have the build of a descriptor in the catalogue, in the state «published».

        :param assess_override: why, where the image has not passed and its descriptor does not say it.
        """
        if self.check_mode and not descriptor_path.exists():
            return made_later(descriptor_path, "it is published")
        build = _descriptor.load(descriptor_path)
        with self.hold(build.image, make=True), self.change(build.image) as (entry, result):
            entry.update(identifier=build.identifier, title=build.title)
            known = find_version(entry, build.version)
            if known is None or known["state"] == "removed":
                _must_be_new(self.path, entry, build)
                _descriptor.must_be_alive(build.expires, descriptor_path)
                build = self._judged(descriptor_path, build, assess_override, {})
                result.act(f"{build.image} {build.version}: is not published yet")
                self._place(descriptor_path, build, link=link)
                entry["versions"].append(self._record(descriptor_path, build))
                self.remember(entry, "published", build.version, _exception(build))
            else:
                if _sums(self._record(descriptor_path, build)) != _sums(known):
                    raise FactoryError(
                        f"version {build.version} is published already, with other content",
                        where=str(self.path),
                        key=build.image,
                        mend="raise image_version and build again",
                    )
                if state_of(known) == "expired":
                    _descriptor.must_be_alive(known["expires"], self.path, version=f"{build.image} {build.version}")
                build = self._judged(descriptor_path, build, assess_override, known)
                self._renew(descriptor_path, build, entry, known, result, link=link)
            result.image = build.document()
        return result

    def deprecate(self, image: str, version: str, reason: str) -> Result:
        """Have a version in the state «deprecated»: its files stay, the index says that it should not be used."""
        with self.hold(image), self.change(image) as (entry, result):
            known = self._offered(entry, image, version)
            if known["state"] != "deprecated":
                result.act(f"{image} {version}: is {known['state']}, shall be deprecated")
                known["state"] = "deprecated"
                self.remember(entry, "deprecated", version, reason)
        return result

    def expire(self, image: str, version: str, reason: str) -> Result:
        """Have the time of a version ended, now at the latest; its files stay."""
        with self.hold(image), self.change(image) as (entry, result):
            known = self._offered(entry, image, version)
            if known["state"] != "expired":
                if state_of(known) == "expired":
                    reason = f"its time ended at {known['expires']}"
                else:
                    known["expires"] = _descriptor.now()
                result.act(f"{image} {version}: is {known['state']}, shall be expired")
                known["state"] = "expired"
                self.remember(entry, "expired", version, reason)
        return result

    def remove(self, image: str, version: str, reason: str) -> Result:
        """Have no artifacts of a version; what it was stays in the index, and its papers beside it."""
        folder = self._folder(image, version)
        with self.hold(image):
            with self.change(image) as (entry, result):
                known = find_version(entry, version)
                if known and known["state"] != "removed":
                    result.act(f"{image} {version}: is {known['state']}, shall be removed")
                    known["state"] = "removed"
                    self.remember(entry, "removed", version, reason)
                elif _left(folder, known):
                    result.act(f"{image} {version}: files are left of what the index does not offer")
            if result.changed and not self.check_mode:
                # After the index, which offers them no longer. When this is cut short, the next run ends it.
                with _state.explain_os_errors(folder):
                    for path in _left(folder, known):
                        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
                    if known is None and folder.exists():
                        folder.rmdir()
        return result

    def listing(self, image: str | None = None) -> dict[str, t.Any]:
        """What there is: the index's images, each version in its state of this moment, and the C(latest) to use."""
        images: dict[str, t.Any] = self.read()["images"]
        if image is not None:
            images = {image: images[image]} if image in images else {}
        for entry in images.values():
            for version in entry["versions"]:
                version["state"] = state_of(version)
            offered = [known["version"] for known in entry["versions"] if known["state"] == "published"]
            entry["latest"] = max(offered, key=version_key, default=None)
        return images

    def _offered(self, entry: t.Mapping[str, t.Any], image: str, version: str) -> dict[str, t.Any]:
        """The record of a version whose files are there."""
        known = find_version(entry, version)
        if known is None or known["state"] == "removed":
            gone = "has been removed" if known else "was never published"
            raise FactoryError(
                f"version {version} {gone}",
                where=str(self.path),
                key=image,
                mend="ask cloudimg.factory.image_catalogue_info for what there is",
            )
        return known

    def _folder(self, image: str, version: str) -> Path:
        return self.directory / _state.check_image_name(image) / _state.check_version(version)

    @contextlib.contextmanager
    def hold(self, image: str, *, make: bool = False) -> t.Iterator[None]:
        """Keep others from changing the catalogue meanwhile."""
        _state.check_image_name(image)
        if self.check_mode or not (make or self.directory.is_dir()):
            yield
            return
        with _state.lock(self.directory / ".lock", wait=_LOCK_WAIT, busy="another process publishes"):
            _state.reap_partials(self.directory / image)
            yield

    @contextlib.contextmanager
    def change(self, image: str) -> t.Iterator[tuple[dict[str, t.Any], Result]]:
        """Give the image's entry to change, and write the index when something was changed."""
        result = Result(extra={"catalogue": str(self.path)})
        index = self.read()
        before = copy.deepcopy(index["images"].get(image, {}))
        entry = index["images"].setdefault(image, {"versions": [], "history": []})
        yield entry, result
        if result.changed and not self.check_mode:
            self._expire(index)
            index["updated"] = _descriptor.now()
            _state.write_json(self.path, index)
        result.diff = {"before": before, "after": entry if result.changed else before}

    def _expire(self, index: dict[str, t.Any]) -> None:
        """Note in the index, now that it is written anyway, whose time has come."""
        for entry in index["images"].values():
            for version in entry["versions"]:
                if state_of(version) != version["state"]:
                    version["state"] = "expired"
                    self.remember(entry, "expired", version["version"], f"its time ended at {version['expires']}")

    def remember(
        self, entry: dict[str, t.Any], action: str, version: str, reason: str | None, catalogue: str | None = None
    ) -> None:
        """Add an event to an image's history; ``catalogue`` is another one in which it happened."""
        event = {"time": _descriptor.now(), "action": action, "version": version, "who": self.who}
        more = {"catalogue": catalogue, "reason": reason}
        entry["history"].append({**event, **{key: value for key, value in more.items() if value}})

    def _judged(self, descriptor_path: Path, build: Descriptor, reason: str | None, known: _Entry) -> Descriptor:
        """The build with what is known of its verdict; raises FactoryError where it has not passed, and for no reason."""
        former = (known.get("assess") or {}).get("override")
        path = descriptor_path.parent / _verdict.ASSESSMENT
        return dataclasses.replace(build, assess=_verdict.accept(path, build, reason, self.who, former))

    def _record(self, descriptor_path: Path, build: Descriptor) -> dict[str, t.Any]:
        prefix = f"{build.image}/{build.version}"
        document = build.document()
        record = {
            "version": build.version,
            "identifier": document["version_identifier"],
            "created": build.created,
            "published": _descriptor.now(),
            "expires": build.expires,
            "artifacts": [{**row, "path": f"{prefix}/{row['path']}"} for row in document["artifacts"]],
            "descriptor": f"{prefix}/{_descriptor.FILE}",
            "packages": build.packages and f"{prefix}/{build.packages}",
            **{key: f"{prefix}/{name}" for key, name in BESIDE.items() if (descriptor_path.parent / name).is_file()},
            "assess": build.assess,
            "state": "published",
        }
        return {key: value for key, value in record.items() if value is not None}

    def _renew(
        self,
        descriptor_path: Path,
        build: Descriptor,
        entry: dict[str, t.Any],
        known: dict[str, t.Any],
        result: Result,
        *,
        link: bool,
    ) -> None:
        """The same build as a version that the catalogue has already."""
        name = f"{build.image} {build.version}"
        record = self._record(descriptor_path, build)
        record.update({key: known[key] for key in ("published", "publications") if key in known})
        folder = self._folder(build.image, build.version)
        damage = _damage(folder, build)
        if damage:
            result.act(f"{name}: {damage}")
            self.remember(entry, "repaired", build.version, damage)
        elif (folder / _descriptor.FILE).read_bytes() != build.dump().encode("utf-8"):
            result.act(f"{name}: descriptor differs")
            self.remember(entry, "updated", build.version, "its descriptor was changed")
        if result.changed:
            self._place(descriptor_path, build, link=link)
        if known["state"] == "deprecated":
            result.act(f"{name}: is deprecated, shall be published")
            self.remember(entry, "published", build.version, "it was deprecated before")
        else:
            record["state"] = known["state"]
        known.clear()
        known.update(record)

    def _place(self, descriptor_path: Path, build: Descriptor, *, link: bool) -> None:
        """Put a build's files into the catalogue, as one directory, once they are what the descriptor says."""
        sums = {artifact.path: artifact.checksums for artifact in build.artifacts}
        names = [*build.files(), *(name for name in BESIDE.values() if (descriptor_path.parent / name).exists())]
        sources = [plain(descriptor_path.parent / name) for name in names]
        if self.check_mode:
            for source in sources:
                must_match(source, sums.get(source.name), file_digests(source))
            return
        final = self._folder(build.image, build.version)
        with _state.partial(final) as folder:
            folder.mkdir()
            for source in sources:
                must_match(source, sums.get(source.name), _transfer(source, folder / source.name, link=link))
            _state.write_text(folder / _descriptor.FILE, build.dump())
        for name, digests in sums.items():
            remember_digests(final / name, digests)


def state_of(version: t.Mapping[str, t.Any]) -> str:
    """A version's state at this moment: what the index says, unless its time has come since."""
    over = version.get("expires") and version["expires"] <= _descriptor.now()
    return "expired" if over and version["state"] in ("published", "deprecated") else str(version["state"])


def find_version(entry: t.Mapping[str, t.Any], version: str) -> dict[str, t.Any] | None:
    """The record of a version in an image's entry; None where it was never published."""
    return next((known for known in entry["versions"] if known["version"] == version), None)


def _left(folder: Path, known: t.Mapping[str, t.Any] | None) -> list[Path]:
    """What is in the folder of a removed version besides its papers; all, where it was never published."""
    papers = [known[key] for key in ("descriptor", "packages", *BESIDE) if key in known] if known else []
    names = {path.rpartition("/")[2] for path in papers}
    return sorted(path for path in folder.iterdir() if path.name not in names) if folder.is_dir() else []


def _sums(record: t.Mapping[str, t.Any]) -> dict[str, str]:
    return {row["path"]: row["checksums"]["sha256"] for row in record["artifacts"]}


def _must_be_new(where: Path, entry: t.Mapping[str, t.Any], build: Descriptor) -> None:
    newest = max((known["version"] for known in entry["versions"]), key=version_key, default=None)
    if newest is not None and version_key(build.version) <= version_key(newest):
        again = (
            "was published before, and removed" if find_version(entry, build.version) else f"is not newer than {newest}"
        )
        raise FactoryError(
            f"version {build.version} {again}",
            where=str(where),
            key=build.image,
            mend="raise image_version and build again",
        )


def _exception(build: Descriptor) -> str | None:
    """What the history says of a build that has not passed."""
    override = (build.assess or {}).get("override")
    return f"not assessed as pass: {override['reason']}" if override else None


def _damage(folder: Path, build: Descriptor) -> str | None:
    """What is not as it was published; None where all is."""
    for name in [_descriptor.FILE, *build.files()]:
        if not (folder / name).is_file():
            return f"{name} is missing in the catalogue"
    for artifact in build.artifacts:
        path = folder / artifact.path
        if path.stat().st_size != artifact.size or cached_digests(path) != artifact.checksums:
            return f"{artifact.path} was changed in the catalogue"
    return None


def _transfer(source: Path, target: Path, *, link: bool) -> dict[str, str]:
    """Link or copy a file, and tell the digests of what arrived. A link that cannot be becomes a copy."""
    if link:
        with contextlib.suppress(OSError):
            os.link(source, target, follow_symlinks=False)
            return file_digests(target)
    # The copy is hashed on its way, so that a second read is not needed.
    with Digester() as digester, source.open("rb") as stream, target.open("xb") as sink:
        while chunk := stream.read(_CHUNK):
            digester.update(chunk)
            sink.write(chunk)
        sink.flush()
        os.fsync(sink.fileno())
    return digester.hexdigests()
