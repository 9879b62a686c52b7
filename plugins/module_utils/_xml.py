# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Reading XML that came from outside: no document type, no entity, no depth and no size beyond bounds."""

from __future__ import annotations

import typing as t
import xml.etree.ElementTree as ET
from xml.parsers import expat

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

LARGEST = 16 << 20
"""Bytes that a document may have, where nothing else is said."""

_DEEPEST = 64


def parse(data: bytes, where: str, *, mend: str = "check what is there", largest: int = LARGEST) -> ET.Element:
    """The root element of a document; names are C({namespace}local), as ElementTree has them.

    :param where: the document, for messages.
    :raises FactoryError: it is no XML, has a document type, has more bytes than ``largest``, or is nested too deeply.
    """

    def refuse(problem: str) -> t.NoReturn:
        raise FactoryError(problem, where=where, mend=mend)

    if len(data) > largest:
        refuse(f"is larger than {largest >> 20} MiB")
    builder = ET.TreeBuilder()
    depth = 0

    def begin(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST:
            refuse(f"is nested deeper than {_DEEPEST} elements")
        builder.start(_name(tag), {_name(name): value for name, value in attributes.items()})

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(_name(tag))

    def no_document_type(*_about: object) -> t.NoReturn:
        refuse("has a document type (DTD), which may name entities and files outside")

    parser = expat.ParserCreate(namespace_separator="}")
    parser.buffer_text = True
    parser.StartElementHandler = begin
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = no_document_type
    parser.EntityDeclHandler = no_document_type
    parser.ExternalEntityRefHandler = no_document_type
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError, LookupError) as exc:  # the latter two: unknown encodings
        refuse(f"is no XML: {exc}")
    return builder.close()


def _name(name: str) -> str:
    return "{" + name if "}" in name else name
