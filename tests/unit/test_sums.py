# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checksums as users write them and as vendors publish them."""

from __future__ import annotations

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._sums import Checksum, explicit, find

A, B, C = "a" * 64, "b" * 64, "c" * 128
WHERE = "https://example.org/SHA256SUMS"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"sha256:{A}", Checksum("sha256", A)),
        (f"SHA256:{A.upper()}", Checksum("sha256", A)),
        (f"sha512:{C}", Checksum("sha512", C)),
        ("https://example.org/SHA256SUMS", None),
        ("file:///srv/SHA256SUMS", None),
        ("/srv/SHA256SUMS", None),
        ("~/a:b/SHA256SUMS", None),
        ("./SHA256SUMS", None),
    ],
)
def test_an_explicit_checksum(text: str, expected: Checksum | None) -> None:
    assert explicit(text) == expected
    assert expected is None or str(expected) == text.lower()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"md5:{'0' * 32}", "the algorithm 'md5' is not accepted"),
        ("crc32:00000000", "the algorithm 'crc32' is not accepted"),
        ("ftp://example.org/SHA256SUMS", "the algorithm 'ftp' is not accepted"),
        ("sha256:abc", "is not 64 hexadecimal digits"),
        (f"sha512:{A}", "is not 128 hexadecimal digits"),
        (f"sha256:{'g' * 64}", "is not 64 hexadecimal digits"),
        (A, "is neither a checksum nor the place of a checksum file"),
    ],
)
def test_what_is_no_checksum(text: str, said: str) -> None:
    with pytest.raises(FactoryError) as caught:
        explicit(text)
    assert str(caught.value).startswith(f"{text}: image_medium.checksum: {said}; write sha256:<64 hexadecimal digits>")


@pytest.mark.parametrize(
    "text",
    [
        f"{B}  b.iso\n{A}  a.iso\n",
        f"{B} *b.iso\n{A} *a.iso\n",
        f"{A}  ./a.iso\r\n",
        f"# a.iso: 1234 bytes\nSHA256 (a.iso) = {A}\n",
        f"SHA2-256(a.iso)= {A}\n",
        f"MD5 (a.iso) = {'0' * 32}\nSHA256 (a.iso) = {A}\n",
        f"{'0' * 32}  a.iso\n{'0' * 40}  a.iso\n{A.upper()}  a.iso\n",
        f"{A}  a.iso\n{A}  a.iso\n",
    ],
)
def test_a_line_of_a_checksum_file(text: str) -> None:
    assert find(text, "debian-cd/a.iso", where=WHERE) == Checksum("sha256", A)


def test_the_longest_fitting_path_counts() -> None:
    text = f"{A}  ./netboot/gtk/mini.iso\n{B}  ./netboot/mini.iso\n"
    assert find(text, "images/netboot/mini.iso", where=WHERE).value == B
    assert find(text, "images/netboot/gtk/mini.iso", where=WHERE).value == A
    with pytest.raises(FactoryError, match=r"has no line for mini\.iso \(it names netboot/gtk/mini\.iso, netboot/mini"):
        find(text, "mini.iso", where=WHERE)


def test_a_name_with_spaces() -> None:
    assert find(f"{A}  my a.iso\n{B}  a.iso\n", "x/my a.iso", where=WHERE).value == A


def test_sha512_where_there_is_nothing_else() -> None:
    assert find(f"{C}  a.iso\n", "a.iso", where=WHERE) == Checksum("sha512", C)


@pytest.mark.parametrize("text", [A, f"{A}\n", f"{A}  other-name.iso\n"])
def test_a_file_named_after_the_medium_may_leave_its_name_out(text: str) -> None:
    assert find(text, "x/a.iso", where="https://example.org/x/a.iso.sha256").value == A
    with pytest.raises(FactoryError, match=r"has no line for a\.iso"):
        find(text, "x/a.iso", where=WHERE)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no line for a.iso; give the checksum file that lists this medium, or sha256:<hex>"),
        ("<html>", "has no line for a.iso; give"),
        (f"{A}  b.iso\n", r"has no line for a.iso \(it names b.iso\); give"),
        (f"{A}  xa.iso\n", "has no line for a.iso"),
        (f"{A}  a.iso\n{B}  a.iso\n", "lists a.iso with 2 different sha256 sums"),
        (f"{'0' * 32}  a.iso\n", "lists a.iso by md5 only, which is not accepted; give a file of SHA-256"),
        (f"SHA1 (a.iso) = {'0' * 40}\n", "lists a.iso by sha1 only"),
        (f"SHA256 (a.iso) = {'0' * 40}\n", "has no line for a.iso"),
    ],
)
def test_a_checksum_file_that_does_not_tell(text: str, said: str) -> None:
    with pytest.raises(FactoryError, match=rf"^{WHERE}: image_medium\.checksum: {said}"):
        find(text, "debian-cd/a.iso", where=WHERE)
