# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""A marketplace as a directory of files, which any web server serves and a front-end's market driver C(one) reads.

Sources: OpenNebula/one, src/market_mad/remotes/one/monitor (what is read), OpenNebula/appmarket-simple, lib/appliance.rb and
app2/validate.py (how appliances are written, and what is demanded of them).

    appliance/index.json                what GET /appliance answers
    appliance/<id>/index.json           what GET /appliance/<id> answers
    appliance/<id>/download/0           the image
    appliances/os/<system>/<image>.yaml the source of the entry, as appmarket-simple keeps and checks it
    images/<name>                       the image under the name that its entry has
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import typing as t
from pathlib import Path, PurePosixPath

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _state
from ansible_collections.cloudimg.factory.plugins.module_utils._descriptor import Artifact, Descriptor
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._libraries import need
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.plugins.module_utils._versions import version_key

_WAIT = 900.0
_VERSION = re.compile(r"-\d+\.\d+\.\d+-\d+-\d{8}$")


@dataclasses.dataclass(frozen=True)
class About:
    """What a site says of its appliances; ``template`` is C(opennebula_template): strings, or dictionaries of strings."""

    publisher: str
    name: str | None = None
    email: str | None = None
    summary: str | None = None
    tags: t.Sequence[str] = ()
    hypervisor: str = "KVM"
    versions: str | None = None
    logo: str | None = None
    template: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)


def file_name(build: Descriptor, artifact: Artifact) -> str:
    """The name of the image: appmarket-simple reads the architecture from it."""
    arch = ".aarch64" if build.os.arch in ("aarch64", "arm64") else ""
    return f"{build.image}-{build.version}{arch}.{artifact.format}"


def base_name(name: str) -> str:
    """The name that an image has within its appliance: its file's, without what tells format, architecture and version."""
    return _VERSION.sub("", re.sub(r"(\.aarch64)?$", "", re.sub(r"\.qcow2$", "", name)))


def entry(build: Descriptor, artifact: Artifact, url: str, about: About) -> dict[str, t.Any]:
    """The appliance as YAML has it; its C(id) is the same for all versions of an image.

    :param url: where the directory is served, without a slash at its end.
    """
    name = file_name(build, artifact)
    rows: dict[str, t.Any] = {
        "id": build.identifier,
        "name": about.name or build.title,
        "version": build.version,
        "publisher": about.publisher,
        "publisher_email": about.email,
        "description": build.description or build.title,
        "short_description": about.summary or build.title,
        "tags": list(about.tags) or [build.os.distribution],
        "format": artifact.format,
        "creation_time": int(_descriptor.parse_time(build.created).timestamp()),
        "os-id": build.os.distribution,
        "os-release": build.os.version,
        "os-arch": build.os.arch,
        "hypervisor": about.hypervisor,
        "opennebula_version": about.versions,
        "opennebula_template": vm_template(build, about),
        "logo": about.logo,
        "images": [
            {
                "name": base_name(name),
                "url": f"{url}/images/{name}",
                "type": "OS",
                "dev_prefix": "vd",
                "driver": artifact.format,
                "size": artifact.virtual_size,
                "checksum": {kind: artifact.checksums[kind] for kind in ("md5", "sha256")},
            }
        ],
    }
    return {key: value for key, value in rows.items() if value not in (None, "")}


def vm_template(build: Descriptor, about: About) -> dict[str, t.Any]:
    """The VM template of an appliance; the driver takes strings and dictionaries of strings only."""
    template: dict[str, t.Any] = {
        "context": {"network": "YES", "ssh_public_key": "$USER[SSH_PUBLIC_KEY]"},
        "cpu": str(build.cpu or 1),
        "vcpu": str(build.cpu or 1),
        "graphics": {"listen": "0.0.0.0", "type": "vnc"},
        "memory": str(build.memory or 1024),
        "os": {"arch": build.os.arch},
    }
    for name, value in about.template.items():
        inner = isinstance(value, dict)
        template[name.lower()] = {str(k).lower(): str(v) for k, v in value.items()} if inner else str(value)
    return template


def legacy(row: t.Mapping[str, t.Any], url: str) -> dict[str, t.Any]:
    """The appliance as the driver reads it in JSON (appmarket-simple's legacy form)."""
    upper = {
        name.upper(): {k.upper(): v for k, v in value.items()} if isinstance(value, dict) else value
        for name, value in row["opennebula_template"].items()
    }
    rest = {key: value for key, value in row.items() if key not in ("id", "images", "opennebula_template")}
    files = [{**image, "md5": image["checksum"]["md5"]} for image in row["images"]]
    link = f"{url}/appliance/{row['id']}"
    return {
        "_id": {"$oid": row["id"]},
        **rest,
        "opennebula_template": json.dumps(upper, sort_keys=True),
        "files": files,
        "links": {"download": {"href": f"{link}/download"}},
    }


@dataclasses.dataclass
class Directory:
    """A marketplace in files, at ``url`` for its readers."""

    root: Path
    url: str
    check_mode: bool = False

    def __post_init__(self) -> None:
        self.url = self.url.rstrip("/")
        if not re.fullmatch(r"https?://[^\s\"'?#]+", self.url):
            raise FactoryError(
                "is no URL", where=self.url, key="url", mend="give the http or https URL of the directory"
            )

    def publish(self, build: Descriptor, artifact: Artifact, source: Path, about: About) -> Result:
        """Have a build in it, in the place of the version before.

        :raises FactoryError: it is older than what is there, or the same version has other content.
        """
        row = entry(build, artifact, self.url, about)
        result = Result()
        with self._held():
            former = self._rows().get(build.identifier)
            self._must_be_newer(former, row)
            image = self.root / "images" / file_name(build, artifact)
            folder = self.root / "appliance" / build.identifier
            wanted = self._texts(row)
            differ = [path for path, text in wanted.items() if _read(path) != text]
            missing = [path for path in (image, folder / "download" / "0") if not _same_size(path, artifact.size)]
            if not differ and not missing:
                return result
            result.act(f"{self.root}: {row['name']} {build.version}: " + ("differs" if former else "is not there yet"))
            result.diff = {"before": former or {}, "after": row}
            if self.check_mode:
                return result
            # The list comes last: what it names is there.
            stale = self._stale(former, image)
            _place(source, image)
            _place(image, folder / "download" / "0")
            for path, text in wanted.items():
                if path in differ:
                    _state.write_text(path, text)
            for path in stale:
                _state.remove(path)
        return result

    def remove(self, identifier: str, version: str | None) -> Result:
        """Have an appliance in it no longer; another version than that one stays."""
        result = Result()
        with self._held():
            rows = self._rows()
            former = rows.get(identifier)
            if former is None or (version and str(former["version"]) != version):
                return result
            result.act(f"{self.root}: {former['name']} {former['version']}: shall not be there")
            result.diff = {"before": former, "after": {}}
            if self.check_mode:
                return result
            del rows[identifier]
            _state.write_text(self.root / "appliance/index.json", self._list(rows))
            for path in [*self._stale(former, None), self.root / "appliance" / identifier]:
                _state.remove(path)
        return result

    @contextlib.contextmanager
    def _held(self) -> t.Iterator[None]:
        if self.check_mode:
            yield
            return
        with _state.explain_os_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        with _state.lock(self.root / ".lock", wait=_WAIT, busy="another process publishes there"):
            yield

    def _rows(self) -> dict[str, dict[str, t.Any]]:
        """The appliances that are there, by their id, as YAML has them."""
        yaml = need("yaml")
        found = {}
        for path in sorted((self.root / "appliances").rglob("*.yaml")):
            try:
                row = yaml.safe_load(path.read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError) as exc:
                raise FactoryError(f"is no YAML: {exc}", where=str(path), mend="restore it, or remove it") from exc
            if isinstance(row, dict) and row.get("id"):
                found[str(row["id"])] = row
        return found

    def _path(self, row: t.Mapping[str, t.Any]) -> Path:
        system = re.sub(r"[^a-z0-9._-]", "-", str(row["os-id"]).lower())
        image = PurePosixPath(row["images"][0]["url"]).name
        name = re.sub(rf"-{re.escape(str(row['version']))}(\.aarch64)?\.\w+$", "", image)
        return self.root / "appliances/os" / system / f"{name}.yaml"

    def _texts(self, row: dict[str, t.Any]) -> dict[Path, str]:
        """What the files are to contain, the list last."""
        yaml = need("yaml")
        text = "---\n" + yaml.safe_dump(row, sort_keys=False, allow_unicode=True, width=100)
        one = json.dumps(legacy(row, self.url), indent=2, ensure_ascii=False) + "\n"
        return {
            self._path(row): text,
            self.root / "appliance" / row["id"] / "index.json": one,
            self.root / "appliance/index.json": self._list({**self._rows(), row["id"]: row}),
        }

    def _list(self, rows: t.Mapping[str, dict[str, t.Any]]) -> str:
        known = [legacy(rows[name], self.url) for name in sorted(rows)]
        counts = {"sEcho": 1, "iTotalRecords": len(known), "iTotalDisplayRecords": len(known)}
        return json.dumps({**counts, "appliances": known}, indent=2, ensure_ascii=False) + "\n"

    def _stale(self, former: t.Mapping[str, t.Any] | None, image: Path | None) -> list[Path]:
        """The files of a former version that another one has no use for."""
        if former is None:
            return []
        old = self.root / "images" / PurePosixPath(former["images"][0]["url"]).name
        return ([old] if old != image else []) + ([self._path(former)] if image is None else [])

    def _must_be_newer(self, former: t.Mapping[str, t.Any] | None, row: t.Mapping[str, t.Any]) -> None:
        if former is None:
            return
        old, new = str(former["version"]), str(row["version"])
        other = former["images"][0]["checksum"]["sha256"] != row["images"][0]["checksum"]["sha256"]
        if version_key(old) > version_key(new) or (old == new and other):
            problem = "is there with other content" if old == new else f"is older than {old}, which is there"
            raise FactoryError(
                f"version {new} {problem}",
                where=str(self.root),
                key="version",
                mend="raise image_version and build again",
            )


def _read(path: Path) -> str | None:
    with contextlib.suppress(FileNotFoundError):
        return path.read_text(encoding="utf-8")
    return None


def _same_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _place(source: Path, target: Path) -> None:
    """Have a file under another name: by a hard link where that can be, else a copy."""
    with _state.explain_os_errors(target), _state.partial(target) as partial:
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)
            partial.chmod(0o644)
