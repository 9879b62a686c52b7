# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Reading descriptions of other tools: files that came from outside, as trees of which every value has a path."""

from __future__ import annotations

import dataclasses
import json
import re
import stat
import typing as t
import xml.etree.ElementTree as ET
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _xml
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._libraries import need

LARGEST = 4 << 20
"""Bytes that a description may have. Those that people wrote have some thousands."""
LARGEST_YAML = 256 << 10
"""The same of YAML, which Python reads at some 100 KiB a second."""
_MOST = 10_000
"""Values that one may have, with all that its aliases stand for."""
_DEEPEST = 64
_PLAIN = re.compile(r"[A-Za-z_@#][A-Za-z0-9_@#-]*")


@dataclasses.dataclass(frozen=True)
class Node:
    """A value of a description.

    :ivar path: where it stands, such as C(builders[0].iso_url); keys that are no plain words stand in brackets and quotes.
    :ivar value: a mapping, a list, a text, a number, a boolean or None.
    :ivar key: the key or index by which it is reached.
    """

    path: str
    value: t.Any
    key: str = ""

    def get(self, *keys: str) -> Node | None:
        """The value below, by one key after the other; None where there is none."""
        found = self
        for key in keys:
            if not isinstance(found.value, dict) or key not in found.value:
                return None
            found = found.below(key)
        return found

    def below(self, key: str | int) -> Node:
        """The value at a key of a mapping, or at a place in a list."""
        if isinstance(key, int):
            return Node(f"{self.path}[{key}]", self.value[key], self.key)
        if not _PLAIN.fullmatch(key):
            return Node(f"{self.path}[{json.dumps(key, ensure_ascii=False)}]", self.value[key], key)
        return Node(
            f"{self.path}.{key}" if self.path and not self.path.endswith(":") else self.path + key, self.value[key], key
        )

    def children(self) -> list[Node]:
        """What is directly below; none for what is neither a mapping nor a list."""
        if isinstance(self.value, dict):
            return [self.below(key) for key in self.value]
        if isinstance(self.value, list):
            return [self.below(number) for number in range(len(self.value))]
        return []

    def each(self, *keys: str) -> list[Node]:
        """The items of the list at these keys; a value that is no list is its only item, None has none."""
        found = self.get(*keys)
        if found is None or found.value is None:
            return []
        return found.children() if isinstance(found.value, list) else [found]

    def text(self) -> str | None:
        """A text, number or boolean as a text without blanks around; None for all else."""
        if isinstance(self.value, bool):
            return "true" if self.value else "false"
        return str(self.value).strip() if isinstance(self.value, (str, int, float)) else None


def read(path: Path, largest: int = LARGEST) -> bytes:
    """A file's content.

    :param largest: bytes that it may have.
    :raises FactoryError: it is no file, cannot be read, is empty, too large, or binary.
    """

    def refuse(problem: str, mend: str) -> t.NoReturn:
        raise FactoryError(problem, where=str(path), key="src", mend=mend)

    try:
        # Before it is opened, for a pipe would wait for ever.
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            refuse("is no file", "name the file of the description")
        if about.st_size > largest:
            refuse(f"is larger than {largest >> 10} KiB", "name the description itself, not an image or an archive")
        with path.open("rb") as stream:
            data = stream.read(largest)
    except OSError as exc:
        refuse((exc.strerror or str(exc)).lower(), "correct the path, or give this user the right to read it")
    if not data.strip():
        refuse("is empty", "name the file of the description")
    if b"\0" in data:
        refuse("is binary, or no UTF-8", "name the description itself, as UTF-8")
    return data


def text_of(path: Path, data: bytes) -> str:
    """The text of a file; raises FactoryError where it is no UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise FactoryError(f"is no UTF-8: {exc}", where=str(path), key="src", mend="convert it by iconv") from exc


def json_tree(path: Path, data: bytes) -> dict[str, t.Any]:
    """A JSON object; raises FactoryError where the file is anything else, or has a key twice."""

    def pairs(found: list[tuple[str, t.Any]]) -> dict[str, t.Any]:
        values: dict[str, t.Any] = {}
        for key, value in found:
            if key in values:
                raise FactoryError("stands there twice", where=str(path), key=key, mend="remove one of them")
            values[key] = value
        return values

    try:
        found = json.loads(text_of(path, data), object_pairs_hook=pairs, parse_constant=_no_number)
    except (ValueError, RecursionError) as exc:
        raise FactoryError(
            f"is no JSON: {exc}", where=str(path), key="src", mend="correct it, or set kind to what it is"
        ) from exc
    return checked(path, found)


def _no_number(text: str) -> t.NoReturn:
    raise ValueError(f"{text} is no number")


def yaml_tree(path: Path, data: bytes) -> dict[str, t.Any]:
    """A YAML mapping, numbers and booleans as texts: C(6.10) must not become 6.1.

    :raises FactoryError: it is no YAML, no mapping, has a key twice, tags of its own, or aliases that stand for too much.
    """
    yaml = need("yaml", python="import_definition_python")
    text = text_of(path, data)
    loader = yaml.SafeLoader(text)
    loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if tag.rpartition(":")[2] in ("null", "merge")]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    try:
        node = loader.get_single_node()
        if node is not None:
            _expanded(path, node, {}, 0)
        found = loader.construct_document(node) if node is not None else None
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as exc:
        raise FactoryError(
            f"is no YAML of plain texts, lists and mappings: {exc}", where=str(path), key="src", mend="correct it"
        ) from exc
    finally:
        loader.dispose()
    return checked(path, found)


def _expanded(path: Path, node: t.Any, known: dict[int, int], depth: int) -> int:
    """How many values a node stands for, aliases counted each time; refuses too many, loops, and keys that are there twice."""
    if id(node) in known:
        # 0: it is being counted, and so holds itself.
        size = known[id(node)] or _MOST + 1
    else:
        known[id(node)] = 0
        size = 1
        # of a mapping the pairs, of a sequence the items, of a scalar its text
        items = node.value if isinstance(node.value, list) else []
        seen: set[str] = set()
        for key in (item[0].value for item in items if isinstance(item, tuple) and isinstance(item[0].value, str)):
            if key in seen:
                raise FactoryError("stands there twice", where=str(path), key=key, mend="remove one of them")
            seen.add(key)
        for item in items:
            for child in item if isinstance(item, tuple) else (item,):
                size += _expanded(path, child, known, depth + 1)
                if size > _MOST:
                    break
        known[id(node)] = size
    if size > _MOST or depth > _DEEPEST:
        raise FactoryError(
            "stands for far more than a description has, by aliases or nesting",
            where=str(path),
            key="src",
            mend="write it without aliases",
        )
    return size


def xml_tree(path: Path, data: bytes, root: str) -> dict[str, t.Any]:
    """An XML document as a mapping: attributes as C(@name), the text of an element that has more than that as C(#text).

    Of elements of the same name that stand beside each other a list is made.

    :param root: the name of the outermost element.
    :raises FactoryError: it is no XML, has a document type, or another outermost element.
    """
    found = _xml.parse(data, str(path), mend="correct it, or set kind to what it is", largest=LARGEST)
    if found.tag != root:
        raise FactoryError(
            f"begins with <{found.tag}>", where=str(path), key=root, mend="name a file of this kind, or set kind"
        )
    value = _element(found)
    return checked(path, {root: value if isinstance(value, dict) else {"#text": value}})


def _element(element: ET.Element) -> t.Any:
    children: dict[str, list[t.Any]] = {}
    texts = [element.text or ""]
    for child in element:
        children.setdefault(child.tag, []).append(_element(child))
        texts.append(child.tail or "")
    text = "".join(texts) if "".join(texts).strip() else ""
    if not element.attrib and not children:
        return text
    found: dict[str, t.Any] = {f"@{name}": value for name, value in element.attrib.items()}
    if text:
        found["#text"] = text
    found.update({name: items[0] if len(items) == 1 else items for name, items in children.items()})
    return found


def checked(path: Path, tree: t.Any) -> dict[str, t.Any]:
    """The tree, of plain values only, with texts as keys.

    :raises FactoryError: it is no mapping, or holds too much, or what no file can hold.
    """
    if not isinstance(tree, dict):
        raise FactoryError(
            "is no mapping at its top", where=str(path), key="src", mend="name a description, or set kind to what it is"
        )
    left = [_MOST]

    def walk(value: t.Any, depth: int) -> t.Any:
        left[0] -= 1
        if left[0] < 0 or depth > _DEEPEST:
            raise FactoryError("holds far more than a description has", where=str(path), key="src", mend="shorten it")
        if isinstance(value, dict):
            return {_text(path, key): walk(below, depth + 1) for key, below in value.items()}
        if isinstance(value, list):
            return [walk(below, depth + 1) for below in value]
        if value is None or isinstance(value, (bool, int, float)):
            return value
        return _text(path, value)

    return t.cast("dict[str, t.Any]", walk(tree, 0))


def _text(path: Path, value: t.Any) -> str:
    if value is None:
        return "null"
    if not isinstance(value, str):
        raise FactoryError(
            f"has a value of the kind {type(value).__name__}", where=str(path), key="src", mend="make it a text"
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise FactoryError(
            "has half a character (a lone surrogate)", where=str(path), key="src", mend="remove it"
        ) from exc
    return value
