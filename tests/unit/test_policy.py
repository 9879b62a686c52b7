# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A site's policy: what it takes of each catalogue, and why not."""

from __future__ import annotations

import copy
import typing as t

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _policy
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._policy import Candidate, Policy

NOW = "2025-06-01T00:00:00Z"
SHA1, SHA512 = "1104f3e30c030f8b93f220b04131032dddf51f21", "ab" * 64
UUID = "4be8f45c-6ba5-5e2e-9f76-32e2e8a8e27e"
DN = "/DC=org/DC=example/CN=Jane"

STRATUSLAB: dict[str, t.Any] = {
    "identifier": "BEE8-MMAw-Lk_IgsEExAy3d9R8h",
    "title": "Debian 12",
    "tag": "stable",
    "version": "1",
    "size": 4,
    "checksums": {"sha1": SHA1, "SHA-512": SHA512},
    "endorsement": {"email": "jane@example.org", "subject": "CN=Jane,DC=example,DC=org", "created": NOW},
    "signature": {"subject": DN, "trusted": True},
    "valid": "2025-12-31T00:00:00Z",
}
HEPIX: dict[str, t.Any] = {
    "hv:imagelist": {
        "dc:identifier": "76fdee70-8119-5d33-aaaa-3c57e1c60df1",
        "dc:date:expires": "2025-07-01T00:00:00Z",
        "hv:endorser": {"hv:x509": {"hv:email": "jane@example.org", "hv:dn": DN}},
        "hv:images": [
            {
                "hv:image": {
                    "dc:identifier": UUID,
                    "dc:title": "Debian 12",
                    "hv:version": "1",
                    "hv:size": "4",
                    "sl:checksum:sha512": SHA512,
                    "dc:date:expires": "2499-12-31T22:00:00Z",
                }
            }
        ],
    }
}
DESCRIPTOR: dict[str, t.Any] = {
    "image": "debian-12",
    "identifier": UUID,
    "version_identifier": "0f1b5f0e-61e5-5cf4-a16d-b1c2ccf2ec50",
    "title": "Debian 12",
    "version": "1",
    "endorser": {"name": "Jane", "email": "jane@example.org", "dn": DN},
    "artifacts": [
        {"format": "qcow2", "size": 4, "checksums": {"sha1": SHA1, "sha512": SHA512}},
        {"format": "ova", "size": 5, "checksums": {"sha1": "0" * 40, "sha512": "0" * 128}},
    ],
    "expires": "2025-12-31T00:00:00Z",
}
CATALOGUE = {
    "identifier": UUID,
    "title": "Debian 12",
    "versions": [
        {**DESCRIPTOR, "identifier": DESCRIPTOR["version_identifier"], "state": "published"},
        {**DESCRIPTOR, "identifier": DESCRIPTOR["version_identifier"], "version": "0", "state": "deprecated"},
    ],
}
LISTED = {"valid": True, "problems": [], "content": HEPIX["hv:imagelist"], "signer": {"dn": DN}, "images": []}
APPDB = {
    "number": "1234",
    "identifier": UUID,
    "name": "Debian",
    "versions": [
        {
            "id": "4711",
            "version": "1",
            "enabled": True,
            "archived": False,
            "expires": "2025-12-31T00:00:00Z",
            "image": {"size": 4, "hash": "sha512", "checksum": SHA512},
        }
    ],
}
PLAIN = {"identifier": UUID, "endorser": "jane@example.org", "sha512": SHA512, "expires": "2025-12-31T00:00:00Z"}
ALL = {
    "stratuslab": STRATUSLAB,
    "hepix": HEPIX,
    "listed": LISTED,
    "descriptor": DESCRIPTOR,
    "catalogue": CATALOGUE,
    "appdb": APPDB,
    "plain": PLAIN,
}


def one(document: t.Any) -> Candidate:
    return _policy.candidates(copy.deepcopy(document), "images[0]")[0]


def judge(document: t.Any, **options: t.Any) -> list[str]:
    return Policy(**options).judge(one(document), NOW)


@pytest.mark.parametrize("name", ALL)
def test_any_catalogue_is_read(name: str) -> None:
    candidate = one(ALL[name])
    assert f"sha512:{SHA512}" in candidate.checksums
    assert UUID in candidate.identifiers or name == "stratuslab"
    assert judge(ALL[name]) == []
    if name != "appdb":
        assert "jane@example.org" in candidate.endorsers
        assert judge(ALL[name], allow={"endorsers": ["Jane@Example.org"]}) == []
        assert judge(ALL[name], block={"endorsers": ["jane@example.org "]}) == ["endorser jane@example.org is blocked"]
    assert judge(ALL[name], allow={"images": [candidate.identifiers[0]]}) == []
    assert judge(ALL[name], block={"images": [candidate.identifiers[-1]]}) != []
    assert judge(ALL[name], allow={"checksums": [SHA512.upper()]}) == []
    assert judge(ALL[name], block={"checksums": [f"sha512:{SHA512}"]}) == [f"checksum sha512:{SHA512} is blocked"]


def test_all_the_reasons_are_told() -> None:
    bad = {**STRATUSLAB, "deprecated": "openssl", "valid": "2025-05-31T00:00:00Z", "signature": {"trusted": False}}
    assert judge(bad, allow={"endorsers": ["john@example.org"], "images": [], "checksums": ["sha1:" + "0" * 40]}) == [
        "endorser jane@example.org is not allowed",
        "image BEE8-MMAw-Lk_IgsEExAy3d9R8h is not allowed",
        f"checksum sha1:{SHA1} is not allowed",
        "its signature was held against no authority, so that its endorser may be anybody",
        "it is deprecated: openssl",
        "its time ended at 2025-05-31T00:00:00Z",
    ]
    assert judge(bad, expired=True, deprecated=True, untrusted=True) == []


def test_a_list_that_is_not_given_allows_all_and_an_empty_one_nothing() -> None:
    assert judge(STRATUSLAB, allow={"endorsers": None}) == []
    assert judge(STRATUSLAB, allow={"endorsers": []}) == ["endorser jane@example.org is not allowed"]
    assert judge(APPDB, allow={"endorsers": ["jane@example.org"]}) == [
        "it names no endorser, and only some are allowed"
    ]


def test_what_is_blocked_is_blocked_though_it_is_allowed() -> None:
    both = {"endorsers": ["jane@example.org"]}
    assert judge(STRATUSLAB, allow=both, block=both) == ["endorser jane@example.org is blocked"]


@pytest.mark.parametrize("name", [DN, "CN=Jane,DC=example,DC=org"])
def test_names_of_certificates(name: str) -> None:
    assert judge(STRATUSLAB, allow={"endorsers": [name]}) == []
    assert judge(STRATUSLAB, allow={"endorsers": [name.replace("Jane", "jane")]}) != []


def test_what_endorsers_choose_freely_is_no_name_of_an_image() -> None:
    for text in ("stable", "Debian 12", "1"):
        assert judge(STRATUSLAB, allow={"images": [text]}) != []


def test_identifiers_of_stratuslab_are_to_the_letter() -> None:
    assert judge(STRATUSLAB, allow={"images": [STRATUSLAB["identifier"].lower()]}) != []
    assert judge(PLAIN, allow={"images": [UUID.upper()]}) == []


def test_a_list_takes_its_images_along_when_it_expires() -> None:
    policy = Policy()
    assert policy.judge(one(HEPIX), "2025-07-01T00:00:00Z") == ["its time ended at 2025-07-01T00:00:00Z"]
    assert policy.judge(one({**LISTED, "valid": False}), NOW)[0].startswith("its signature was held against no")


def test_retired_versions() -> None:
    _good, old = _policy.candidates(CATALOGUE, "x")
    assert Policy().judge(old, NOW) == ["it is deprecated"]
    disabled = copy.deepcopy(APPDB)
    disabled["versions"][0]["enabled"] = False  # type: ignore[index]
    assert judge(disabled) == ["it is disabled"]


def test_expiry() -> None:
    without = {key: value for key, value in PLAIN.items() if key != "expires"}
    assert judge(without) == []
    assert judge(without, require_expiry=True) == ["it does not say when it expires"]
    assert _policy.expires_soon(one(PLAIN), 400, NOW) and not _policy.expires_soon(one(PLAIN), 4, NOW)
    assert not _policy.expires_soon(one(without), 400, NOW)
    # An end in another time zone is the same end.
    assert judge({**PLAIN, "expires": "2025-06-01T01:00:00+02:00"}) == ["its time ended at 2025-06-01T01:00:00+02:00"]
    with pytest.raises(FactoryError, match="expires: is no date: 'never'; give one"):
        judge({**PLAIN, "expires": "never"})


def test_files() -> None:
    good = {"sha1": SHA1, "sha512": SHA512, "md5": "0" * 32}
    for document in (STRATUSLAB, DESCRIPTOR, HEPIX):
        assert _policy.file_reasons(one(document), 4, good) == []
    assert _policy.file_reasons(one(STRATUSLAB), 6, good) == ["the file has 6 bytes, and it 4"]
    half = {**good, "sha1": "1" * 40}
    assert _policy.file_reasons(one(STRATUSLAB), 4, half) == ["the file has another sha1 than it"]
    bad = {name: "1" * len(value) for name, value in good.items()}
    assert _policy.file_reasons(one(STRATUSLAB), 4, bad) == ["the file has none of its checksums"]
    assert _policy.file_reasons(one({"identifier": "x"}), 4, good) == [
        "its metadata have no checksum to hold the file against"
    ]


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({}, "images[0]: is no metadata of an image that is known here; give"),
        ([], "images[0]: must be a mapping; give"),
        ({"hv:imagelist": {}}, "images[0]: hv:images: has no list of images; give"),
        ({"hv:images": [1]}, "images[0]: hv:images[0]: must be a mapping; give"),
        ({"hv:images": [{"hv:image": {}}]}, "images[0]: dc:identifier: is missing; give"),
        ({"identifier": "x", "endorser": [1]}, "images[0]: cannot be read as metadata of an image: "),
        ({"versions": [1]}, "images[0]: cannot be read as metadata of an image: "),
        ({"artifacts": 1}, "images[0]: cannot be read as metadata of an image: "),
    ],
)
def test_what_is_no_metadata(document: t.Any, problem: str) -> None:
    with pytest.raises(FactoryError) as caught:
        one(document)
    assert str(caught.value).startswith(problem) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["abc", "sha1:" + "0" * 64, "0" * 41, "sha3:" + "0" * 64])
def test_what_is_no_checksum(text: str) -> None:
    with pytest.raises(FactoryError, match=r"^block\.checksums: has '.*', which is no checksum; give"):
        Policy(block={"checksums": [text]})
