# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The JSON Schema of C(descriptor.json), and just as much of a validator as it needs.

The schema is the one truth about a descriptor's shape. A builder has nothing but plain Python, so it is applied here;
the unit tests hold this validator against the C(jsonschema) package.
"""

from __future__ import annotations

import difflib
import re
import typing as t

VERSION = 1
FORMATS = ("qcow2", "raw", "raw.gz", "raw.xz", "raw.zst", "vmdk", "vdi", "vhd", "vhdx", "ova", "box")
VERDICTS = ("pass", "fail", "none")
"""What came out of the stage assess; C(none): it is not known, as the artifact has not been assessed."""

_END = r"(?![\s\S])"
"""The very end, unlike «$», which Python also finds before a last line feed."""


def _text(pattern: str | None = None) -> dict[str, t.Any]:
    return {"type": "string", "minLength": 1, **({"pattern": f"^{pattern}{_END}"} if pattern else {})}


def _object(required: dict[str, t.Any], **optional: t.Any) -> dict[str, t.Any]:
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": sorted(required),
        "additionalProperties": False,
    }


_NUMBER = {"type": "integer", "minimum": 1}
_SCORE = {"type": "number", "minimum": 0}
_UUID = _text(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TIME = _text(r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z")
_NAME = r"[a-z0-9][a-z0-9._-]{0,62}"
_FILE = _text(r"[A-Za-z0-9][A-Za-z0-9._+~-]*")
_DIGESTS = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}
_FORMAT = {"type": "string", "enum": list(FORMATS)}

SCHEMA: dict[str, t.Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Descriptor of a cloud image built by cloudimg.factory",
    "description": "A superset of the cloud appliance descriptor of COMFY, ITCHY and NIFTY. Sizes are in bytes, memory "
    "is in MiB, times are UTC, paths are names of files beside the descriptor.",
    **_object(
        {
            "schema": {"const": VERSION},
            "action": {"const": "registration"},
            "identifier": _UUID,
            "version_identifier": _UUID,
            "image": _text(_NAME),
            "version": _text(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,63}"),
            "title": _text(),
            "description": {"type": "string"},
            "architecture": _text(),
            "os": _object({"distribution": _text(), "version": _text(), "arch": _text()}),
            "min_disk": _NUMBER,
            "disks": {
                "type": "array",
                "minItems": 1,
                "items": _object({"type": {"const": "os"}, "format": _FORMAT, "path": _FILE, "virtual_size": _NUMBER}),
            },
            "artifacts": {
                "type": "array",
                "minItems": 1,
                "items": _object(
                    {
                        "format": _FORMAT,
                        "path": _FILE,
                        "size": _NUMBER,
                        "virtual_size": _NUMBER,
                        "checksums": _object({name: _text(f"[0-9a-f]{{{n}}}") for name, n in _DIGESTS.items()}),
                    },
                    compression={"type": "string", "enum": ["zstd", "zlib"]},
                    cluster_size=_NUMBER,
                    level={"type": "integer", "minimum": 0},
                    subformat=_text(),
                    force_size={"type": "boolean"},
                    ovf=_text(),
                    controller=_text(),
                    nic=_text(),
                    signer=_text("[0-9a-f]{64}"),
                ),
            },
            "created": _TIME,
            "provenance": _object(
                {"source_digest": _text(), "qemu": _text(), "collection": _text()},
                definition_digest=_text(),
                stages={"type": "object", "additionalProperties": _text()},
            ),
        },
        groups={"type": "array", "items": _text()},
        memory=_NUMBER,
        cpu=_NUMBER,
        attributes={"type": "object", "additionalProperties": {"type": "string"}},
        expires=_TIME,
        endorser=_object({"name": _text()}, email=_text(), organisation=_text(), dn=_text(), ca=_text(), uri=_text()),
        source={
            **_object(
                {"family": _text()},
                sha256=_text("[0-9a-f]{64}"),
                source=_text(),
                image=_text(_NAME),
                version=_text(),
                digest=_text(),
            ),
            "anyOf": [{"required": ["sha256"]}, {"required": ["digest"]}],
        },
        packages=_FILE,
        scores=_object(
            {},
            lynis=_object({"after": _SCORE}, before=_SCORE, version=_text()),
            openscap=_object({"after": _SCORE}, before=_SCORE, profile=_text()),
        ),
        assess=_object(
            {"verdict": {"type": "string", "enum": list(VERDICTS)}},
            finished=_TIME,
            override=_object({"reason": _text(), "by": _text(), "at": _TIME}),
        ),
    ),
}

_TYPES: dict[str, tuple[type, ...]] = {"string": (str,), "object": (dict,), "array": (list,), "boolean": (bool,)}
_WORDS = {
    "string": "text",
    "object": "a mapping",
    "array": "a list",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
}


def _is(value: t.Any, kind: str) -> bool:
    if kind in ("integer", "number"):
        whole = isinstance(value, int) or (isinstance(value, float) and (kind == "number" or value.is_integer()))
        return whole and not isinstance(value, bool)
    return isinstance(value, _TYPES[kind])


def errors(document: t.Any, schema: t.Mapping[str, t.Any] = SCHEMA, at: str = "") -> t.Iterator[tuple[str, str]]:
    """What is wrong with a document: (key, problem), the keys as C(artifacts[0].checksums.md5)."""
    kind = schema.get("type")
    if kind and not _is(document, kind):
        yield at, f"must be {_WORDS[kind]}"
        return
    if "const" in schema and (document != schema["const"] or isinstance(document, bool)):
        yield at, f"must be {schema['const']!r}, is {document!r}"
    if "enum" in schema and document not in schema["enum"]:
        yield at, f"must be one of {', '.join(schema['enum'])}, is {document!r}"
    if isinstance(document, str):
        if len(document) < schema.get("minLength", 0):
            yield at, "must not be empty"
        elif "pattern" in schema and not re.search(schema["pattern"], document):
            yield at, f"cannot be {document!r}"
    elif kind in ("integer", "number") and document < schema.get("minimum", document):
        yield at, f"must be at least {schema['minimum']}, is {document}"
    elif kind == "array":
        if len(document) < schema.get("minItems", 0):
            yield at, "must not be empty"
        for index, item in enumerate(document):
            yield from errors(item, schema["items"], f"{at}[{index}]")
    elif kind == "object":
        yield from _object_errors(document, schema, f"{at}." if at else "")


def _object_errors(
    document: dict[str, t.Any], schema: t.Mapping[str, t.Any], prefix: str
) -> t.Iterator[tuple[str, str]]:
    known = schema.get("properties", {})
    for key in schema.get("required", []):
        if key not in document:
            yield f"{prefix}{key}", "is missing"
    choices = [choice["required"][0] for choice in schema.get("anyOf", [])]
    if choices and not any(key in document for key in choices):
        yield f"{prefix}{choices[0]}", "is missing"
    for key, value in document.items():
        inner = known.get(key, schema["additionalProperties"])
        if inner is False:
            near = difflib.get_close_matches(str(key), known, 1)
            yield f"{prefix}{key}", "is not known" + (f", {near[0]} is" if near else "")
        else:
            yield from errors(value, inner, f"{prefix}{key}")
