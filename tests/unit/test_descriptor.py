# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The descriptor: what is written is read again, the loader and the published schema refuse the same documents."""

from __future__ import annotations

import copy
import json
import typing as t
import uuid
from pathlib import Path

import jsonschema
import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _descriptor_schema
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

SUMS = {"md5": "a" * 32, "sha1": "b" * 40, "sha256": "c" * 64, "sha512": "d" * 128}


def full() -> dict[str, t.Any]:
    """A document with everything in it."""
    identifier = _descriptor.stable_identifier("debian-12")
    return {
        "schema": 1,
        "action": "registration",
        "identifier": identifier,
        "version_identifier": _descriptor.version_identifier(identifier, "202501311200"),
        "image": "debian-12",
        "version": "202501311200",
        "title": "Debian 12",
        "description": "Minimální",
        "architecture": "x86_64",
        "os": {"distribution": "debian", "version": "12", "arch": "x86_64"},
        "min_disk": 8 << 30,
        "disks": [{"type": "os", "format": "qcow2", "path": "debian-12-1.qcow2", "virtual_size": 8 << 30}],
        "artifacts": [
            {
                "format": "qcow2",
                "path": "debian-12-1.qcow2",
                "size": 190709760,
                "virtual_size": 8 << 30,
                "checksums": dict(SUMS),
                "compression": "zstd",
                "cluster_size": 1 << 20,
            }
        ],
        "created": "2025-01-31T12:00:00Z",
        "provenance": {
            "source_digest": "e" * 64,
            "qemu": "7.2.22",
            "collection": "0.1.0",
            "definition_digest": "f" * 64,
            "stages": {"sanitize": "e" * 64},
        },
        "groups": ["vo.example.org"],
        "memory": 512,
        "cpu": 1,
        "attributes": {"flavour": "small"},
        "expires": "2025-07-30T12:00:00Z",
        "endorser": {"name": "Alice", "email": "alice@example.org"},
        "source": {"family": "fai", "sha256": "0" * 64, "source": "fai.iso"},
        "packages": "packages.json",
        "scores": {
            "lynis": {"before": 61, "after": 78, "version": "3.0.8"},
            "openscap": {"before": 48.2, "after": 83.75, "profile": "anssi"},
        },
        "assess": {
            "verdict": "fail",
            "finished": "2025-01-31T12:10:00Z",
            "override": {"reason": "ticket 4711", "by": "alice", "at": "2025-01-31T12:20:00Z"},
        },
    }


def broken(path: str, value: t.Any) -> dict[str, t.Any]:
    """The full document with the value at a path (as a/0/b) replaced, or left out where it is ...."""
    document = copy.deepcopy(full())
    at: t.Any = document
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    for part in parents:
        at = at[part]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return document


def schema_accepts(document: t.Any) -> bool:
    return jsonschema.Draft202012Validator(_descriptor_schema.SCHEMA).is_valid(document)


BAD = [
    ("schema", 2, "schema"),
    ("schema", True, "schema"),
    ("schema", ..., "schema"),
    ("action", "expiration", "action"),
    ("identifier", "debian", "identifier"),
    ("identifier", ..., "identifier"),
    ("image", "../etc", "image"),
    ("image", "debian\n", "image"),
    ("version", "1/2", "version"),
    ("title", "", "title"),
    ("title", 12, "title"),
    ("titel", "x", "titel"),
    ("os", "debian", "os"),
    ("os/version", 12, "os.version"),
    ("os/arch", "", "os.arch"),
    ("min_disk", 0, "min_disk"),
    ("min_disk", "8G", "min_disk"),
    ("min_disk", True, "min_disk"),
    ("min_disk", 1.5, "min_disk"),
    ("disks", [], "disks"),
    ("disks/0/type", "data", "disks[0].type"),
    ("artifacts", {}, "artifacts"),
    ("artifacts/0/path", "../../etc/shadow", "artifacts[0].path"),
    ("artifacts/0/path", "/etc/shadow", "artifacts[0].path"),
    ("artifacts/0/path", ".hidden", "artifacts[0].path"),
    ("artifacts/0/format", "floppy", "artifacts[0].format"),
    ("artifacts/0/checksums/md5", "A" * 32, "artifacts[0].checksums.md5"),
    ("artifacts/0/checksums/sha512", ..., "artifacts[0].checksums.sha512"),
    ("artifacts/0/checksums/crc32", "00", "artifacts[0].checksums.crc32"),
    ("created", "2025-13-31T12:00:00Z", "created"),
    ("created", "yesterday", "created"),
    ("expires", "2025-07-30", "expires"),
    ("groups", [1], "groups[0]"),
    ("memory", -1, "memory"),
    ("attributes", {"a": 1}, "attributes.a"),
    ("endorser", {"email": "x@example.org"}, "endorser.name"),
    ("source/sha256", "0", "source.sha256"),
    ("provenance/stages", {"sanitize": ""}, "provenance.stages.sanitize"),
    ("packages", "a/b", "packages"),
    ("source/sha256", ..., "source.sha256"),
    ("source/image", "../x", "source.image"),
    ("scores/lynis/after", "78", "scores.lynis.after"),
    ("scores/lynis/after", ..., "scores.lynis.after"),
    ("scores/openscap/before", -0.5, "scores.openscap.before"),
    ("scores/openscap/after", True, "scores.openscap.after"),
    ("scores/inspec", {"after": 1}, "scores.inspec"),
    ("assess/verdict", "maybe", "assess.verdict"),
    ("assess/verdict", ..., "assess.verdict"),
    ("assess/override/reason", "", "assess.override.reason"),
    ("assess/override/by", ..., "assess.override.by"),
    ("assess/override/at", "now", "assess.override.at"),
]


def test_full_document_is_read_and_written_again() -> None:
    found = _descriptor.parse(full(), "x")
    assert found.document() == full()
    assert found.artifacts[0].checksums == SUMS
    assert json.loads(found.dump()) == full()
    assert _descriptor.parse(json.loads(found.dump()), "x").dump() == found.dump()
    assert schema_accepts(full())


@pytest.mark.parametrize(
    "key",
    [
        *("groups", "memory", "cpu", "attributes", "expires", "endorser", "source", "packages", "provenance/stages"),
        *("scores", "scores/lynis", "scores/lynis/before", "assess", "assess/finished", "assess/override"),
    ],
)
def test_what_is_optional_may_be_missing(key: str) -> None:
    document = broken(key, ...)
    assert schema_accepts(document)
    assert schema_accepts(_descriptor.parse(document, "x").document())


def test_source_may_be_another_image() -> None:
    origin = {"family": "parent", "image": "debian-12-base", "version": "1", "digest": "9" * 64}
    document = broken("source", origin)
    assert schema_accepts(document)
    assert _descriptor.parse(document, "x").document()["source"] == origin


@pytest.mark.parametrize(("path", "value", "key"), BAD)
def test_loader_and_schema_refuse_the_same(tmp_path: Path, path: str, value: t.Any, key: str) -> None:
    document = broken(path, value)
    assert not schema_accepts(document)
    file = tmp_path / "descriptor.json"
    file.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(FactoryError) as caught:
        _descriptor.load(file)
    assert (caught.value.where, caught.value.key) == (str(file), key)
    assert caught.value.mend
    assert "\n" not in str(caught.value)


def test_schema_itself_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(_descriptor_schema.SCHEMA)


def test_nearest_key_is_named() -> None:
    with pytest.raises(FactoryError, match="titel: is not known, title is"):
        _descriptor.parse(broken("titel", "x"), "x")


@pytest.mark.parametrize(
    ("path", "value", "key"),
    [
        ("disks/0/path", "another.qcow2", "disks"),
        ("architecture", "aarch64", "architecture"),
        ("version_identifier", "00000000-0000-0000-0000-000000000000", "version_identifier"),
        ("expires", "2025-01-31T12:00:00Z", "expires"),
        ("created", "2025-02-30T12:00:00Z", "created"),
        ("packages", "debian-12-1.qcow2", "artifacts"),
        ("assess/finished", "2025-02-30T12:00:00Z", "assess.finished"),
        ("assess/override/at", "2025-02-30T12:00:00Z", "assess.override.at"),
        ("assess/verdict", "pass", "assess.override"),
    ],
)
def test_contradictions_are_refused(path: str, value: t.Any, key: str) -> None:
    with pytest.raises(FactoryError) as caught:
        _descriptor.parse(broken(path, value), "x")
    assert caught.value.key == key


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '"x"', "\udcff"])
def test_no_descriptor_at_all(tmp_path: Path, text: str) -> None:
    file = tmp_path / "descriptor.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(FactoryError, match=str(file)):
        _descriptor.load(file)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FactoryError, match="No such file"):
        _descriptor.load(tmp_path / "descriptor.json")


def test_identifiers_are_stable() -> None:
    identifier = _descriptor.stable_identifier("debian-12")
    assert identifier == "41458818-dcb6-55b2-a91f-9f5f7e0bd634"
    assert uuid.UUID(identifier).version == 5
    assert _descriptor.stable_identifier("debian-13") != identifier
    assert _descriptor.version_identifier(identifier, "1") != _descriptor.version_identifier(identifier, "2")


@pytest.mark.parametrize(
    ("lifetime", "wanted"),
    [
        ("180d", "2025-07-30T12:00:00Z"),
        ("2w", "2025-02-14T12:00:00Z"),
        ("36h", "2025-02-02T00:00:00Z"),
        ("1y", "2026-01-31T12:00:00Z"),
        ("2031-12-31", "2031-12-31T00:00:00Z"),
        (None, None),
    ],
)
def test_expiry(lifetime: str | None, wanted: str | None) -> None:
    assert _descriptor.expiry("2025-01-31T12:00:00Z", lifetime) == wanted


@pytest.mark.parametrize("lifetime", ["soon", "0d", "-1d", "10", "99999y", "1m"])
def test_bad_lifetime(lifetime: str) -> None:
    with pytest.raises(FactoryError, match="image_expires"):
        _descriptor.expiry("2025-01-31T12:00:00Z", lifetime)
