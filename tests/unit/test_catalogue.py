# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The local catalogue: what may be published, what is kept, what a second run changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.plugins.module_utils import _catalogue, _descriptor, _verdict
from ansible_collections.cloudimg.factory.plugins.module_utils._catalogue import Catalogue
from ansible_collections.cloudimg.factory.plugins.module_utils._digest import file_digests
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._state import write_json

EXPIRES = "2099-01-01T00:00:00Z"
PAPERS = ("assess.json", "descriptor.json", "packages.json", "report.html")


def make_build(
    root: Path, version: str = "1", content: bytes = b"disk", *, verdict: str | None = "pass", **fields: t.Any
) -> Path:
    """A build directory as export and assess leave it; returns the descriptor's path."""
    folder = root / "builds" / "debian-12" / version
    folder.mkdir(parents=True, exist_ok=True)
    disk = folder / f"debian-12-{version}.qcow2"
    disk.write_bytes(content)
    (folder / "packages.json").write_text("{}", encoding="utf-8")
    if verdict:
        judged = {"name": disk.name, "sha256": file_digests(disk)["sha256"]}
        finished = "2025-01-31T12:10:00Z"
        write_json(folder / "assess.json", {"verdict": verdict, "artifact": judged, "finished": finished})
    build = _descriptor.Descriptor(
        image="debian-12",
        identifier=_descriptor.stable_identifier("debian-12"),
        version=version,
        title=fields.get("title", "Debian 12"),
        description="",
        os=_descriptor.OperatingSystem("debian", "12", "x86_64"),
        min_disk=1 << 30,
        artifacts=(_descriptor.Artifact("qcow2", disk.name, len(content), 1 << 30, file_digests(disk)),),
        created="2025-01-31T12:00:00Z",
        provenance=_descriptor.Provenance("0" * 64, "7.2", "0.1.0"),
        expires=fields.get("expires", EXPIRES),
        packages="packages.json",
    )
    path = folder / "descriptor.json"
    path.write_text(build.dump(), encoding="utf-8")
    return path


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return Catalogue(tmp_path / "catalogue", "alice")


def entry(catalogue: Catalogue) -> dict[str, t.Any]:
    return dict(json.loads(catalogue.path.read_text(encoding="utf-8"))["images"]["debian-12"])


def tree(root: Path) -> dict[str, t.Any]:
    """Everything below a directory: names, bytes and times."""
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in root.rglob("*")
    }


def actions(catalogue: Catalogue) -> list[str]:
    return [event["action"] for event in entry(catalogue)["history"]]


def test_publish(tmp_path: Path, catalogue: Catalogue) -> None:
    result = catalogue.publish(make_build(tmp_path))
    assert result.actions == ["debian-12 1: is not published yet"]
    found = entry(catalogue)
    assert found["title"] == "Debian 12"
    (version,) = found["versions"]
    assert (version["state"], version["expires"]) == ("published", EXPIRES)
    for path in (version["artifacts"][0]["path"], version["descriptor"], version["packages"]):
        assert (catalogue.directory / path).is_file()
    assert file_digests(catalogue.directory / version["artifacts"][0]["path"]) == version["artifacts"][0]["checksums"]
    assert (catalogue.directory / "debian-12/1/assess.json").is_file()
    (event,) = found["history"]
    assert (event["action"], event["version"], event["who"]) == ("published", "1", "alice")
    assert _descriptor.load(catalogue.directory / version["descriptor"]).version == "1"


@pytest.mark.parametrize("link", [True, False])
def test_second_time_changes_nothing(tmp_path: Path, catalogue: Catalogue, link: bool) -> None:
    build = make_build(tmp_path)
    catalogue.publish(build, link=link)
    before = tree(catalogue.directory)
    again = catalogue.publish(build, link=link)
    assert (again.changed, again.actions) == (False, [])
    assert again.diff is not None
    assert again.diff["before"] == again.diff["after"]
    assert tree(catalogue.directory) == before
    inodes = {
        (folder / "debian-12-1.qcow2").stat().st_ino for folder in (build.parent, catalogue.directory / "debian-12/1")
    }
    assert len(inodes) == (1 if link else 2)


def test_link_falls_back_to_copy(tmp_path: Path, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    catalogue.publish(make_build(tmp_path))
    assert (catalogue.directory / "debian-12/1/debian-12-1.qcow2").read_bytes() == b"disk"


def test_check_mode_writes_nothing(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "catalogue", "alice", check_mode=True)
    result = catalogue.publish(make_build(tmp_path))
    assert result.changed
    assert result.diff is not None
    assert result.diff["after"]["versions"][0]["version"] == "1"
    assert not catalogue.directory.exists()
    later = catalogue.publish(tmp_path / "descriptor.json")
    assert later.actions == [f"{tmp_path}/descriptor.json: the stage before would make it, then it is published"]


def test_other_content_of_the_same_version(tmp_path: Path, catalogue: Catalogue) -> None:
    catalogue.publish(make_build(tmp_path), link=False)
    before = tree(catalogue.directory)
    with pytest.raises(FactoryError, match=r"version 1 is published already, with other content; raise image_version"):
        catalogue.publish(make_build(tmp_path, content=b"other"), link=False)
    assert tree(catalogue.directory) == before


def test_versions_increase(tmp_path: Path, catalogue: Catalogue) -> None:
    for version in ("1.9", "1.10"):
        catalogue.publish(make_build(tmp_path, version))
    with pytest.raises(FactoryError, match=r"debian-12: version 1\.2 is not newer than 1\.10; raise image_version"):
        catalogue.publish(make_build(tmp_path, "1.2"))
    assert [version["version"] for version in entry(catalogue)["versions"]] == ["1.9", "1.10"]
    assert not (catalogue.directory / "debian-12/1.2").exists()
    assert catalogue.listing()["debian-12"]["latest"] == "1.10"


@pytest.mark.parametrize(
    ("verdict", "problem"), [("fail", "the verdict is 'fail'"), (None, "the image has not been assessed")]
)
def test_only_what_was_assessed(tmp_path: Path, catalogue: Catalogue, verdict: str | None, problem: str) -> None:
    build = make_build(tmp_path, verdict=verdict)
    with pytest.raises(FactoryError, match=f"assess.json: verdict: {problem}"):
        catalogue.publish(build)
    assert not catalogue.path.exists()
    assert not (catalogue.directory / "debian-12").exists()
    catalogue.publish(build, assess_override="urgent fix, seen by hand")
    assert entry(catalogue)["history"][0]["reason"] == "not assessed as pass: urgent fix, seen by hand"
    (version,) = entry(catalogue)["versions"]
    assert version["assess"]["verdict"] == (verdict or "none")
    override = version["assess"]["override"]
    assert (override["reason"], override["by"]) == ("urgent fix, seen by hand", "alice")
    published = _descriptor.load(catalogue.directory / version["descriptor"])
    assert published.assess == version["assess"]
    assert not catalogue.publish(build).changed


def test_verdict_about_another_artifact_is_none(tmp_path: Path, catalogue: Catalogue) -> None:
    build = make_build(tmp_path)
    path = build.parent / "assess.json"
    for report in (
        {"verdict": "pass"},
        {"verdict": "pass", "artifact": {"sha256": "0" * 64}},
        {"verdict": "pass", "artifact": 1},
    ):
        write_json(path, report)
        with pytest.raises(
            FactoryError, match=r"assess\.json: verdict: it is about another artifact than the descriptor's"
        ):
            catalogue.publish(build)
    assert not catalogue.path.exists()
    path.write_text("{", encoding="utf-8")
    with pytest.raises(FactoryError, match=r"assess\.json: is not JSON"):
        catalogue.publish(build)


@pytest.mark.parametrize("reason", ["", " \n\t"])
def test_blank_reason_lets_nothing_through(tmp_path: Path, catalogue: Catalogue, reason: str) -> None:
    with pytest.raises(FactoryError, match="the verdict is 'fail'"):
        catalogue.publish(make_build(tmp_path, verdict="fail"), assess_override=reason)
    assert not catalogue.path.exists()


def test_override_of_the_descriptor_is_published(tmp_path: Path, catalogue: Catalogue) -> None:
    build = make_build(tmp_path, verdict="fail")
    assert _verdict.settle(build.parent, "ticket 4711", "bob").changed
    catalogue.publish(build)
    (version,) = entry(catalogue)["versions"]
    assert version["assess"] == _descriptor.load(build).assess
    assert version["assess"]["override"]["by"] == "bob"
    assert entry(catalogue)["history"][0]["reason"] == "not assessed as pass: ticket 4711"
    assert (catalogue.directory / version["descriptor"]).read_bytes() == build.read_bytes()
    assert not catalogue.publish(build).changed


def test_override_counts_only_for_the_verdict_that_it_was_given_for(tmp_path: Path, catalogue: Catalogue) -> None:
    build = make_build(tmp_path, verdict="fail")
    _verdict.settle(build.parent, "ticket 4711", "bob")
    (build.parent / "assess.json").unlink()
    with pytest.raises(FactoryError, match="the image has not been assessed"):
        catalogue.publish(build)


def test_image_that_fails_later_is_not_published_again(tmp_path: Path, catalogue: Catalogue) -> None:
    build = make_build(tmp_path)
    catalogue.publish(build)
    catalogue.deprecate("debian-12", "1", "openssl")
    make_build(tmp_path, verdict="fail")
    with pytest.raises(FactoryError, match="the verdict is 'fail'"):
        catalogue.publish(build)
    assert entry(catalogue)["versions"][0]["state"] == "deprecated"


def test_image_that_passes_later_needs_its_override_no_more(tmp_path: Path, catalogue: Catalogue) -> None:
    catalogue.publish(make_build(tmp_path, verdict="fail"), assess_override="ticket 4711")
    build = make_build(tmp_path)
    assert catalogue.publish(build).changed
    assert entry(catalogue)["versions"][0]["assess"] == {"verdict": "pass", "finished": "2025-01-31T12:10:00Z"}
    assert not catalogue.publish(build).changed
    assert entry(catalogue)["history"][0]["reason"] == "not assessed as pass: ticket 4711"


def test_report_is_published_along(tmp_path: Path, catalogue: Catalogue) -> None:
    build = make_build(tmp_path)
    (build.parent / "report.html").write_text("<!DOCTYPE html>", encoding="utf-8")
    catalogue.publish(build)
    (version,) = entry(catalogue)["versions"]
    assert (version["assessment"], version["report"]) == ("debian-12/1/assess.json", "debian-12/1/report.html")
    assert (catalogue.directory / version["report"]).read_text(encoding="utf-8") == "<!DOCTYPE html>"
    catalogue.publish(make_build(tmp_path, "2"))
    assert "report" not in entry(catalogue)["versions"][1]


@pytest.mark.parametrize("link", [True, False])
@pytest.mark.parametrize("check_mode", [True, False])
def test_tampered_artifact_is_not_published(tmp_path: Path, link: bool, check_mode: bool) -> None:
    catalogue = Catalogue(tmp_path / "catalogue", "alice", check_mode)
    build = make_build(tmp_path)
    disk = build.parent / "debian-12-1.qcow2"
    stat = disk.stat()
    disk.write_bytes(b"dusk")
    os.utime(disk, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(FactoryError, match=r"debian-12-1\.qcow2: artifacts: was changed after its export"):
        catalogue.publish(build, link=link)
    assert not catalogue.path.exists()
    assert not list(tmp_path.glob("catalogue/debian-12/*"))
    assert not list(tmp_path.glob("catalogue/debian-12/.*"))


@pytest.mark.parametrize("name", ["debian-12-1.qcow2", "packages.json"])
def test_missing_file_or_link(tmp_path: Path, catalogue: Catalogue, name: str) -> None:
    build = make_build(tmp_path)
    (build.parent / name).unlink()
    with pytest.raises(FactoryError, match=f"{name}: is missing, or no plain file"):
        catalogue.publish(build)
    (build.parent / name).symlink_to("/etc/passwd")
    with pytest.raises(FactoryError, match=f"{name}: is missing, or no plain file"):
        catalogue.publish(build)
    assert not catalogue.path.exists()


def test_damaged_catalogue_is_repaired(tmp_path: Path, catalogue: Catalogue) -> None:
    build = make_build(tmp_path)
    catalogue.publish(build, link=False)
    published = catalogue.directory / "debian-12/1/debian-12-1.qcow2"
    published.write_bytes(b"rust")
    result = catalogue.publish(build, link=False)
    assert result.actions == ["debian-12 1: debian-12-1.qcow2 was changed in the catalogue"]
    assert published.read_bytes() == b"disk"
    published.unlink()
    assert catalogue.publish(build, link=False).actions == [
        "debian-12 1: debian-12-1.qcow2 is missing in the catalogue"
    ]
    assert actions(catalogue) == ["published", "repaired", "repaired"]
    assert not catalogue.publish(build, link=False).changed


def test_changed_descriptor_is_updated(tmp_path: Path, catalogue: Catalogue) -> None:
    catalogue.publish(make_build(tmp_path))
    published = entry(catalogue)["versions"][0]["published"]
    result = catalogue.publish(make_build(tmp_path, title="Debian bookworm"))
    assert result.actions == ["debian-12 1: descriptor differs"]
    assert entry(catalogue)["title"] == "Debian bookworm"
    assert entry(catalogue)["versions"][0]["published"] == published
    assert actions(catalogue) == ["published", "updated"]


def test_deprecate_and_take_back(tmp_path: Path, catalogue: Catalogue) -> None:
    build = make_build(tmp_path)
    catalogue.publish(build)
    assert catalogue.deprecate("debian-12", "1", "openssl").changed
    assert not catalogue.deprecate("debian-12", "1", "openssl").changed
    assert entry(catalogue)["versions"][0]["state"] == "deprecated"
    assert (catalogue.directory / "debian-12/1/debian-12-1.qcow2").is_file()
    assert catalogue.listing()["debian-12"]["latest"] is None
    assert catalogue.publish(build).actions == ["debian-12 1: is deprecated, shall be published"]
    assert entry(catalogue)["versions"][0]["state"] == "published"
    assert [(event["action"], event.get("reason")) for event in entry(catalogue)["history"]] == [
        ("published", None),
        ("deprecated", "openssl"),
        ("published", "it was deprecated before"),
    ]


def test_remove_keeps_the_history(tmp_path: Path, catalogue: Catalogue) -> None:
    build = make_build(tmp_path)
    catalogue.publish(build)
    assert catalogue.remove("debian-12", "1", "leaked a key").actions == ["debian-12 1: is published, shall be removed"]
    papers = sorted(path.name for path in (catalogue.directory / "debian-12/1").iterdir())
    assert papers == sorted(name for name in PAPERS if (build.parent / name).exists())
    assert {"descriptor.json", "packages.json"} <= set(papers)
    (version,) = entry(catalogue)["versions"]
    assert (version["state"], version["artifacts"][0]["checksums"]["md5"]) == (
        "removed",
        file_digests(build.parent / "debian-12-1.qcow2")["md5"],
    )
    assert entry(catalogue)["history"][-1]["reason"] == "leaked a key"
    assert not catalogue.remove("debian-12", "1", "leaked a key").changed
    with pytest.raises(FactoryError, match="was published before, and removed; raise image_version"):
        catalogue.publish(build)
    with pytest.raises(FactoryError, match="version 1 has been removed"):
        catalogue.deprecate("debian-12", "1", "x")
    assert catalogue.publish(make_build(tmp_path, "2")).changed


def test_retiring_what_is_not_there(tmp_path: Path, catalogue: Catalogue) -> None:
    assert not catalogue.remove("debian-12", "7", "x").changed
    assert not catalogue.directory.exists()
    with pytest.raises(FactoryError, match="version 7 was never published"):
        catalogue.deprecate("debian-12", "7", "x")
    with pytest.raises(FactoryError, match="cannot be the name of an image"):
        catalogue.remove("../x", "7", "x")
    with pytest.raises(FactoryError, match="cannot be a version"):
        catalogue.remove("debian-12", "../../etc", "x")


def test_interrupted_removal_is_ended(tmp_path: Path, catalogue: Catalogue) -> None:
    catalogue.publish(make_build(tmp_path), link=False)
    index = json.loads(catalogue.path.read_text(encoding="utf-8"))
    index["images"]["debian-12"]["versions"][0]["state"] = "removed"
    write_json(catalogue.path, index)
    assert catalogue.remove("debian-12", "1", "x").changed
    assert not (catalogue.directory / "debian-12/1/debian-12-1.qcow2").exists()
    assert not catalogue.remove("debian-12", "1", "x").changed


def test_what_the_index_never_had_is_removed_whole(tmp_path: Path, catalogue: Catalogue) -> None:
    catalogue.publish(make_build(tmp_path))
    stray = catalogue.directory / "debian-12/7"
    (stray / "sub").mkdir(parents=True)
    (stray / "sub/descriptor.json").touch()
    assert catalogue.remove("debian-12", "7", "x").changed
    assert not stray.exists()


def test_expiry(tmp_path: Path, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue.publish(make_build(tmp_path))
    monkeypatch.setattr(_descriptor, "now", lambda: "2100-01-01T00:00:00Z")
    assert catalogue.listing()["debian-12"]["versions"][0]["state"] == "expired"
    assert entry(catalogue)["versions"][0]["state"] == "published"
    with pytest.raises(FactoryError, match=f"expires: its time ended at {EXPIRES}"):
        catalogue.publish(make_build(tmp_path, "2"))
    catalogue.publish(make_build(tmp_path, "3", expires="2200-01-01T00:00:00Z"))
    assert [version["state"] for version in entry(catalogue)["versions"]] == ["expired", "published"]
    assert actions(catalogue) == ["published", "published", "expired"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not JSON"),
        ("[]", "is no catalogue"),
        ('{"schema": 9, "images": {}}', "schema: is 9"),
        ('{"images": []}', "is no catalogue"),
    ],
)
def test_broken_index_is_not_overwritten(tmp_path: Path, catalogue: Catalogue, text: str, problem: str) -> None:
    catalogue.directory.mkdir()
    catalogue.path.write_text(text, encoding="utf-8")
    with pytest.raises(FactoryError, match=problem):
        catalogue.publish(make_build(tmp_path))
    assert catalogue.path.read_text(encoding="utf-8") == text


def test_processes_publish_at_the_same_time(tmp_path: Path, catalogue: Catalogue) -> None:
    builds = []
    for number in range(4):
        path = make_build(tmp_path / str(number))
        text = path.read_text(encoding="utf-8").replace('"image": "debian-12"', f'"image": "debian-{number}"')
        path.write_text(text, encoding="utf-8")
        builds.append(path)
    program = (
        "import sys\n"
        "from ansible.utils.collection_loader._collection_finder import _AnsibleCollectionFinder\n"
        "_AnsibleCollectionFinder(paths=[sys.argv[1]])._install()\n"
        "from pathlib import Path\n"
        "from ansible_collections.cloudimg.factory.plugins.module_utils._catalogue import Catalogue\n"
        "print(Catalogue(Path(sys.argv[2]), 'bob').publish(Path(sys.argv[3])).changed)\n"
    )
    root = os.environ["ANSIBLE_COLLECTIONS_PATH"]
    # Each build twice: whoever comes second finds it done.
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, root, str(catalogue.directory), str(build)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for build in builds * 2
    ]
    said = [process.communicate(timeout=60)[0].strip() for process in running]
    assert all(process.returncode == 0 for process in running)
    assert sorted(said) == ["False"] * 4 + ["True"] * 4
    images = json.loads(catalogue.path.read_text(encoding="utf-8"))["images"]
    assert sorted(images) == [f"debian-{number}" for number in range(4)]
    assert all(len(found["versions"]) == len(found["history"]) == 1 for found in images.values())


def test_killed_publication_leaves_nothing_for_long(tmp_path: Path, catalogue: Catalogue) -> None:
    half = catalogue.directory / "debian-12" / ".partial-999999999-1-1"
    half.mkdir(parents=True)
    (half / "debian-12-1.qcow2").write_bytes(b"di")
    (catalogue.directory / "debian-12/1").mkdir()
    catalogue.publish(make_build(tmp_path))
    assert not half.exists()
    assert (catalogue.directory / "debian-12/1/debian-12-1.qcow2").read_bytes() == b"disk"
    assert _catalogue.state_of(entry(catalogue)["versions"][0]) == "published"


def test_expire(tmp_path: Path, catalogue: Catalogue) -> None:
    descriptor = make_build(tmp_path)
    catalogue.publish(descriptor)
    catalogue_file = catalogue.directory / "debian-12/1/debian-12-1.qcow2"
    assert Catalogue(catalogue.directory, "bob", True).expire("debian-12", "1", "found wanting").changed
    assert entry(catalogue)["versions"][0]["state"] == "published"
    assert catalogue.expire("debian-12", "1", "found wanting").changed
    assert not catalogue.expire("debian-12", "1", "found wanting").changed
    (known,) = entry(catalogue)["versions"]
    assert known["state"] == "expired" and known["expires"] <= _descriptor.now()
    assert catalogue_file.exists()
    assert entry(catalogue)["history"][-1]["reason"] == "found wanting"
    before = catalogue.path.read_bytes()
    with pytest.raises(FactoryError, match=r"expires: debian-12 1: its time ended at .*; build the image again"):
        catalogue.publish(descriptor)
    with pytest.raises(FactoryError, match=r"debian-12: version 7 was never published"):
        catalogue.expire("debian-12", "7", "found wanting")
    assert catalogue.path.read_bytes() == before


def test_publishing_again_keeps_what_is_known_of_other_catalogues(tmp_path: Path, catalogue: Catalogue) -> None:
    descriptor = make_build(tmp_path)
    catalogue.publish(descriptor)
    index = json.loads(catalogue.path.read_text(encoding="utf-8"))
    about = {"hepix": {"state": "published", "at": "2025-01-31T12:00:00Z", "list": "x"}}
    index["images"]["debian-12"]["versions"][0]["publications"] = about
    write_json(catalogue.path, index)
    assert not catalogue.publish(descriptor).changed
    (catalogue.directory / "debian-12/1/debian-12-1.qcow2").unlink()
    assert catalogue.publish(descriptor).changed
    assert entry(catalogue)["versions"][0]["publications"] == about
