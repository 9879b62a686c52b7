# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judging lists as subscribers do."""

from __future__ import annotations

import dataclasses
import datetime
import sys
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _hepix, _hepix_smime, _hepix_verify, _x509
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._hepix_images import ImageOptions
from ansible_collections.cloudimg.factory.plugins.module_utils._hepix_list import ImageList
from ansible_collections.cloudimg.factory.plugins.module_utils._hepix_verify import Policy
from ansible_collections.cloudimg.factory.tests.tools import pki
from ansible_collections.cloudimg.factory.tests.tools.hepix import make_build, openssl_verify

META = _hepix.Meta(title="Images", uri="https://x.example.org/vo.list", vo="vo.example.org", endorser_name="Jane")
DAY = datetime.timedelta(days=1)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> pki.Pki:
    return pki.Pki.make(tmp_path_factory.mktemp("pki"))


def signer(one: pki.Identity) -> _x509.Signer:
    return _x509.Signer.load(one.certificate, one.key, one.passphrase, one.chain)


@pytest.fixture
def path(tmp_path: Path, grid: pki.Pki) -> Path:
    """A good list."""
    made = tmp_path / "vo.list"
    ImageList(made, signer(grid.endorser), META).present(make_build(tmp_path), ImageOptions("https://x.example.org"), 1)
    return made


def write(path: Path, who: _x509.Signer, **changes: t.Any) -> None:
    """The good list with other content, signed by somebody; a change to None takes the key away."""
    document = {**_hepix_smime.load(path).document, **changes}
    document = {key: value for key, value in document.items() if value is not None}
    path.write_bytes(_hepix_smime.sign(document, who, pki.now()))


def problems(path: Path, policy: Policy) -> list[str]:
    found = _hepix_verify.inspect(path, policy).problems
    assert all(problem.startswith(f"{path}: ") for problem in found)
    return found


def test_good(path: Path, grid: pki.Pki) -> None:
    endorser = signer(grid.endorser)
    policy = Policy(grid.anchors, endorsers=((endorser.dn, endorser.ca),), known_version="1", known=path)
    report = _hepix_verify.inspect(path, policy)
    assert report.problems == []
    told = report.dump(policy.moment)
    assert told["valid"] and told["canonical"]
    assert 27 * 86400 < told["seconds_left"] <= 28 * 86400
    assert told["endorser"] == {"name": "Jane", "email": "endorser@example.org", "dn": endorser.dn, "ca": endorser.ca}
    assert told["signer"]["dn"] == endorser.dn
    assert told["signer"]["digest"] == "sha256"
    (image,) = told["images"]
    assert (image["image"], image["version"], image["expired"]) == ("debian-12", "1", False)
    assert image["uri"] == "https://x.example.org/debian-12-1.qcow2"


@pytest.mark.parametrize("which", ["expired", "host", "no_digital_signature", "any_usage", "short_key"])
def test_endorser_that_may_not_sign(path: Path, grid: pki.Pki, which: str) -> None:
    """Lists that only somebody without our own checks would have signed."""
    one = grid.bad()[which]
    key = _x509.read_key(one.key)
    who = _x509.Signer(one.x509, key, (grid.intermediate.certificate,))
    endorser = {"hv:dn": who.dn, "hv:ca": who.ca, "hv:email": "x", "dc:creator": "x"}
    write(path, who, **{"hv:endorser": {"hv:x509": endorser}})
    (problem,) = problems(path, Policy(grid.anchors))
    assert who.dn in problem
    # openssl agrees, but for short keys, which it takes at its default security level.
    assert (openssl_verify(path, grid.anchors).returncode == 0) == (which == "short_key")
    assert problems(path, Policy(None))


def test_unknown_authority(path: Path, tmp_path: Path) -> None:
    stranger = pki.Pki.make(tmp_path / "stranger", number=1)
    (problem,) = problems(path, Policy(stranger.anchors))
    assert "is not valid by" in problem
    assert problems(path, Policy(None)) == []


def test_revoked(path: Path, grid: pki.Pki, tmp_path: Path) -> None:
    authority = pki.Authority(grid.intermediate.name, grid.authority, number=1)
    authority.revoke(grid.endorser)
    anchors = pki.ca_directory(tmp_path / "anchors", grid.authority, authority)
    (problem,) = problems(path, Policy(anchors))
    assert "certificate revoked; do not trust what it has signed" in problem
    assert problems(path, Policy(anchors, crl="none")) == []


def test_endorser(path: Path, grid: pki.Pki) -> None:
    endorser = signer(grid.endorser)
    (problem,) = problems(path, Policy(grid.anchors, endorsers=(("/CN=x", endorser.ca), (endorser.dn, "/CN=y"))))
    assert f"endorsers: {endorser.dn} (of {endorser.ca}) is not among those who may endorse" in problem
    (problem,) = problems(path, Policy(grid.anchors, endorsers=()))
    other = signer(grid.issue("other", number=3))
    write(path, other)
    (problem,) = problems(path, Policy(grid.anchors))
    assert f"hv:dn: is '{endorser.dn}', the certificate that signed has '{other.dn}'" in problem


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"dc:date:expires": "2025-01-01T00:00:00Z"}, "dc:date:expires: the list expired at 2025-01-01T00:00:00Z"),
        ({"dc:date:expires": "tomorrow"}, "dc:date:expires: is no date: 'tomorrow'"),
        ({"dc:date:created": "2099-01-01T00:00:00Z"}, "dc:date:created: is in the future"),
        ({"ad:vo": None}, "ad:vo is missing, which vmcatcher, atrope or cloudkeeper need"),
        ({"ad:vo": None, "dc:title": None}, "dc:title, and 1 more keys are missing"),
        ({"hv:images": [{"hv:image": {}}]}, "hv:images[0].dc:identifier, and 19 more keys are missing"),
        ({"hv:images": ["x"]}, "hv:images[0].dc:identifier, and"),
    ],
)
def test_content(path: Path, grid: pki.Pki, changes: dict[str, t.Any], problem: str) -> None:
    write(path, signer(grid.endorser), **changes)
    (found,) = problems(path, Policy(grid.anchors))
    assert problem in found


def test_endorser_of_another_shape(path: Path, grid: pki.Pki) -> None:
    for value in ("x", {"hv:x509": "x"}, {}):
        write(path, signer(grid.endorser), **{"hv:endorser": value, "hv:images": "x"})
        report = _hepix_verify.inspect(path, Policy(grid.anchors))
        assert report.problems
        assert report.dump(pki.now())["images"] == []


def test_all_problems_are_told(path: Path, grid: pki.Pki) -> None:
    write(path, signer(grid.issue("other", number=3)), **{"ad:vo": None, "dc:date:expires": "2025-01-01T00:00:00Z"})
    assert len(problems(path, Policy(grid.anchors, endorsers=(), known_version="9" * 20))) == 4


def test_rollback(path: Path, grid: pki.Pki, tmp_path: Path) -> None:
    version = _hepix_smime.load(path).document["hv:version"]
    assert problems(path, Policy(grid.anchors, known_version=version)) == []
    (problem,) = problems(path, Policy(grid.anchors, known_version=str(int(version) + 1)))
    assert f"hv:version: is {version}, older than {int(version) + 1}, which was seen before" in problem
    known = tmp_path / "known.list"
    known.write_bytes(path.read_bytes())
    newer = ImageList(path, signer(grid.endorser), META, moment=pki.now() + DAY / 24)
    newer.present(make_build(tmp_path, "2"), ImageOptions("https://x.example.org"), 1)
    policy = Policy(grid.anchors, known=known, moment=pki.now() + DAY)
    assert problems(path, policy) == []
    # The other way round: somebody serves the list of before.
    (problem,) = problems(known, dataclasses.replace(policy, known=path))
    assert "older than" in problem


def test_same_version_with_other_content(path: Path, grid: pki.Pki, tmp_path: Path) -> None:
    known = tmp_path / "known.list"
    known.write_bytes(path.read_bytes())
    write(path, signer(grid.endorser), **{"dc:title": "Other"})
    (problem,) = problems(path, Policy(grid.anchors, known=known))
    assert "as in the known copy, but the content is another" in problem
    write(path, signer(grid.endorser), **{"dc:identifier": "7"})
    (problem,) = problems(path, Policy(grid.anchors, known=known))
    assert "dc:identifier: is '7', that of the known copy is" in problem


def test_what_cannot_be_judged(path: Path, grid: pki.Pki, tmp_path: Path) -> None:
    assert problems(tmp_path / "none", Policy(grid.anchors)) == [
        f"{tmp_path}/none: No such file or directory; check that path"
    ]
    path.write_bytes(path.read_bytes().replace(b"KVM", b"XEN"))
    report = _hepix_verify.inspect(path, Policy(grid.anchors))
    assert "does not fit" in report.problems[0]
    assert set(report.dump(pki.now())) == {"valid", "problems"}
    for policy, problem in (
        (Policy(tmp_path / "none"), "none: No such file"),
        (Policy(tmp_path), "holds no certificates by their hashes"),
        (Policy(grid.anchors, known=tmp_path / "none"), "none: No such file"),
    ):
        with pytest.raises(FactoryError, match=problem):
            _hepix_verify.inspect(path, policy)


def test_missing_library(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is nothing wrong with the list."""
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(FactoryError, match="needs the Python library cryptography; install it there"):
        _hepix_verify.inspect(path, Policy(None))
