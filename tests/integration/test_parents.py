# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images on the disks of others: the order in which they are built, from what, and what becomes of mistakes."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
import typing as t
from pathlib import Path

import ansible_runner
import pytest
import yaml
from layer_look import look
from tiny_system import Leftovers, as_base, tiny_disk

from ansible_collections.cloudimg.factory.plugins.module_utils import _qemu_img, _state

pytestmark = pytest.mark.root
CHECKOUT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
SIZE = "1510M"
LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}

# By their names the children would come first.
IMAGES: dict[str, dict[str, t.Any]] = {
    "parent": {
        "image_os": {"distribution": "debian", "version": "12"},
        "image_medium": {"family": "fai", "suite": "bookworm"},
        "image_disk": {"size": SIZE},
    },
    "child": {"image_parent": "parent"},
    "a-grandchild": {"image_parent": "child"},
}


@dataclasses.dataclass
class Played:
    """One run of playbooks/build.yml."""

    rc: int
    output: str
    stats: dict[str, t.Any]
    events: list[dict[str, t.Any]]

    def failures(self) -> dict[str, str]:
        """The message of the task that failed last, by host."""
        failed = [event["event_data"] for event in self.events if event["event"] == "runner_on_failed"]
        return {data["host"]: str(data["res"]["msg"]) for data in failed}

    def done(self, task: str) -> list[str]:
        """The hosts on which a task ended well, in the order in which they did."""
        ok = [event["event_data"] for event in self.events if event["event"] == "runner_on_ok"]
        return [data["host"] for data in ok if data["task"] == task]


@dataclasses.dataclass
class Site:
    """An inventory with a family of images, and its workspace."""

    root: Path
    images: dict[str, dict[str, t.Any]]

    @property
    def workspace(self) -> _state.Workspace:
        """The workspace."""
        return _state.Workspace(self.root / "workspace")

    def play(self, limit: str, *options: str, **extra: t.Any) -> Played:
        """Run the playbook for some of the images."""
        inventory = self.root / "inventory"
        (inventory / "host_vars").mkdir(parents=True, exist_ok=True)
        for name, values in self.images.items():
            (inventory / "host_vars" / f"{name}.yml").write_text(yaml.safe_dump(values, sort_keys=False))
        hosts = {"images": {"hosts": dict.fromkeys(self.images)}, "builders": {"hosts": {"localhost": LOCAL}}}
        (inventory / "hosts.yml").write_text(yaml.safe_dump(hosts))
        runner = ansible_runner.run(
            private_data_dir=tempfile.mkdtemp(prefix="runner-", dir=self.root),
            playbook=str(CHECKOUT / "playbooks/build.yml"),
            inventory=str(inventory),
            cmdline=" ".join(["--limit", limit, *options]),
            extravars={"image_workspace": str(self.workspace.root), "applications_upgrade": False, **extra},
            quiet=True,
            envvars={
                "ANSIBLE_COLLECTIONS_PATH": os.environ["ANSIBLE_COLLECTIONS_PATH"],
                "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"),
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "ANSIBLE_NOCOLOR": "1",
            },
        )
        output = Path(runner.stdout.name).read_text(encoding="utf-8", errors="replace")
        return Played(runner.rc, output, runner.stats or {}, list(runner.events))

    def build(self, image: str) -> dict[str, t.Any]:
        """The newest build.json of an image."""
        path = max((self.workspace.builds / image).glob("*/build.json"))
        return dict(json.loads(path.read_text(encoding="utf-8")), path=path)

    def pretend(self, image: str, stage: str, record: dict[str, t.Any]) -> None:
        """Let a stage of the newest build of an image be done."""
        build = self.build(image)
        build["stages"][stage] = {"path": record["path"], "digest": record["digest"]}
        path = build.pop("path")
        _state.write_json(path, build)

    def skip_cloud_init(self, image: str) -> None:
        """Let the stage applications stand on the image's base: here it matters on what, not on what of it."""
        self.pretend(image, "cloud_init", self.build(image)["stages"]["base_vm"])

    def look(self, layer: str, script: str) -> str:
        """What a shell script says inside a layer."""
        return look(layer, script, self.root)

    def nothing_open(self) -> bool:
        """Whether no layer is open or half written, and the kernel has nothing of it in use."""
        partial = [path.name for path in self.workspace.layers.iterdir() if "partial" in path.name]
        open_ones = list(self.workspace.run.glob("*.tree"))
        return not partial and not open_ones and Leftovers(self.workspace.root).none_within(60)


def script(site_root: Path, text: str, name: str) -> str:
    """A script of the user's."""
    path = site_root / name
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> Site:
    """A parent, its child, and that one's child, built as far as the next needs it."""
    root = tmp_path_factory.mktemp("family")
    images = {name: dict(values) for name, values in IMAGES.items()}
    for name, values in images.items():
        values["image_scripts"] = [script(root, f"echo {name} >> /etc/family", f"{name}.sh")]
    site = Site(root, images)
    base = as_base(tiny_disk(tmp_path_factory.getbasetemp()), site.workspace)
    steps: list[tuple[str, str]] = [
        ("parent", "none"),
        ("parent", "applications"),
        ("child", "base_vm"),
        ("child", "applications"),
        ("a-grandchild", "base_vm"),
    ]
    for image, stage in steps:
        played = site.play(image, "--tags", stage)
        assert played.rc == 0, played.output[-3000:]
        if stage == "none":
            site.pretend("parent", "base_vm", {"path": str(base), "digest": "0" * 64})
        if stage != "applications":
            site.skip_cloud_init(image)
    yield site
    assert site.nothing_open()


@pytest.fixture
def plain(tmp_path) -> Site:
    """A family of which nothing is built."""
    site = Site(tmp_path, {name: dict(values) for name, values in IMAGES.items()})
    site.workspace.make()
    return site


def test_each_begins_with_what_its_parent_is(family):
    builds = {image: family.build(image) for image in IMAGES}
    assert builds["child"]["stages"]["base_vm"]["path"] == builds["parent"]["stages"]["applications"]["path"]
    below = builds["a-grandchild"]["stages"]["base_vm"]
    assert below["path"] == builds["child"]["stages"]["applications"]["path"]
    assert below["parent"] == {
        "image": "child",
        "version": builds["child"]["version"],
        "digest": builds["child"]["stages"]["applications"]["digest"],
    }
    assert "media" not in builds["child"]["stages"]
    assert family.look(below["path"], "cat /etc/family") == "parent\nchild\n"
    assert builds["a-grandchild"]["definition"]["image_os"] == {**IMAGES["parent"]["image_os"], "arch": "x86_64"}
    assert builds["a-grandchild"]["definition"]["image_disk"] == {"size": SIZE, "size_bytes": 1510 * MIB}


def test_parents_come_first_whatever_their_names_are(plain, tmp_path_factory):
    base = as_base(tiny_disk(tmp_path_factory.getbasetemp()), plain.workspace)
    assert plain.play("all:!localhost", "--tags", "none").rc == 0
    for image in plain.images:
        plain.pretend(image, "cloud_init", {"path": str(base), "digest": "0" * 64})
    played = plain.play("all:!localhost", "--tags", "applications")
    assert played.rc == 0, played.output[-3000:]
    assert played.done("Open the layer") == ["parent", "child", "a-grandchild"]
    assert played.done("Mark the build as complete") == ["parent", "child", "a-grandchild"]
    assert plain.nothing_open()


def test_again_changes_nothing(family):
    played = family.play("a-grandchild", "--tags", "base_vm")
    assert played.rc == 0
    assert played.stats["changed"] == {}


def test_a_complete_parent_is_left_alone(family):
    build = family.build("parent")
    path = build.pop("path")
    export = {"descriptor": str(path), "artifacts": []}
    _state.write_json(path, {**build, "complete": True, "stages": {**build["stages"], "export": export}})
    try:
        site = Site(family.root, {**family.images, "late": {"image_parent": "parent"}})
        played = site.play("parent,late", "--tags", "base_vm")
    finally:
        _state.write_json(path, build)
    assert played.rc == 0, played.output[-3000:]
    assert played.done("Mark the build as complete") == ["late"]
    assert played.done("Take the disk of the parent") == ["late"]


def test_check_mode_tells_what_would_happen(plain):
    played = plain.play("parent,child", "--check", "-v", "--tags", "base_vm,applications")
    assert played.rc == 0, played.output[-3000:]
    assert "start from parent, once that is built" in played.output
    assert list(plain.workspace.builds.iterdir()) == []


def test_a_larger_disk(family):
    values = {"image_parent": "parent", "image_disk": {"size": "2G"}, "image_scripts": []}
    site = Site(family.root, {**family.images, "large": values})
    played = site.play("large", "--tags", "base_vm")
    assert played.rc == 0, played.output[-3000:]
    base = site.build("large")["stages"]["base_vm"]
    assert _qemu_img.info(Path(base["path"])).virtual_size == base["size"] == 2 << 30
    site.skip_cloud_init("large")
    played = site.play("large", "--tags", "applications")
    assert played.rc == 0, played.output[-3000:]
    layer = site.build("large")["stages"]["applications"]["path"]
    assert _qemu_img.info(Path(layer)).virtual_size == 2 << 30
    assert site.look(layer, "cat /etc/family") == "parent\n"
    assert site.play("large", "--tags", "base_vm").stats["changed"] == {}


def test_a_parent_that_was_not_built(plain):
    played = plain.play("child", "--tags", "base_vm")
    assert played.rc != 0
    where = plain.workspace.builds / "parent"
    assert played.failures()["child"] == (
        f"{where}: image_parent: parent is not built yet; build it, as by --limit parent,child"
    )
    assert plain.build("child")["failure"]["stage"] == "base_vm"


def sibling(family: Site, parent: str, **changed: t.Any) -> Played:
    """What becomes of another child, when its parent is defined with these changes; those of the family stay as they are."""
    images = {**family.images, parent: {**family.images[parent], **changed}, "sibling": {"image_parent": parent}}
    return Site(family.root, images).play("sibling", "--tags", "base_vm")


def test_a_parent_that_is_defined_otherwise_now(family):
    played = sibling(family, "parent", image_packages=["jq"])
    assert played.rc != 0
    assert "was built of another definition; build it, as by --limit parent,sibling" in played.failures()["sibling"]


def test_what_does_not_make_the_disk_of_the_parent_does_not_matter(family):
    played = sibling(family, "parent", image_title="Another", harden_x=1, image_version="9999", image_expires="1y")
    assert played.rc == 0, played.output[-3000:]


def test_a_parent_whose_layer_is_gone(family):
    layer = Path(family.build("child")["stages"]["applications"]["path"])
    aside = layer.rename(layer.with_suffix(".aside"))
    try:
        played = sibling(family, "child")
    finally:
        aside.rename(layer)
    assert played.rc != 0
    message = played.failures()["sibling"]
    assert f"stands on {layer.name}, which is not in the layer cache any more; build it, as by --limit" in message


def test_a_complete_parent_whose_disk_is_lost_is_built_again_for_its_child(family):
    build = family.build("parent")
    path = build.pop("path")
    layer, descriptor = Path(build["stages"]["applications"]["path"]), path.with_name("descriptor.json")
    descriptor.write_text("{}")
    before = path.read_text()
    exported = {"export": {"descriptor": str(descriptor), "artifacts": []}}
    _state.write_json(path, {**build, "complete": True, "stages": {**build["stages"], **exported}})
    later = {**family.images["parent"], "image_version": "999912312359"}
    site = Site(family.root, {**family.images, "parent": later, "sibling": {"image_parent": "parent"}})
    aside = layer.with_suffix(".aside")
    try:
        whole = site.play("parent,sibling", "--tags", "none")
        layer.rename(aside)
        alone = site.play("parent", "--tags", "none")
        lost = site.play("parent,sibling", "--tags", "none")
    finally:
        if aside.exists():
            aside.rename(layer)
        path.write_text(before)
        _state.remove(path.parent.with_name("999912312359"))
        descriptor.unlink()
    for played in (whole, alone):
        assert f"parent {build['version']} is complete in" in played.output
    assert (
        f"build parent 999912312359: sibling is to stand on parent {build['version']}, which stands on {layer.name}, which is"
        in " ".join(lost.output.split())
    )


def test_a_layer_below_that_was_written_to(family):
    layer = Path(family.build("parent")["stages"]["applications"]["path"])
    stat = layer.stat()
    os.utime(layer, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    try:
        played = sibling(family, "child")
    finally:
        os.utime(layer, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert played.rc != 0
    assert "was made again" in played.failures()["sibling"]


def test_a_parent_that_fails_fails_its_children(plain):
    played = plain.play("all:!localhost", "--tags", "base_vm")
    assert played.rc != 0
    failures = played.failures()
    assert failures["parent"].endswith("build.json: stages: media is missing; run the stage media first")
    assert failures["child"] == "child: image_parent: parent failed; see above what is wrong with it"
    assert failures["a-grandchild"] == "a-grandchild: image_parent: child failed; see above what is wrong with it"
    assert played.output.count("fatal: ") <= 6


MISTAKES: dict[str, tuple[dict[str, t.Any], str]] = {
    "no-such": ({"image_parent": "parnet"}, "no-such.yml:1: image_parent: there is no image 'parnet'; did you mean parent?"),
    "self": ({"image_parent": "self"}, "self.yml:1: image_parent: leads round in a circle: self → self; give one"),
    "round": ({"image_parent": "around"}, "image_parent: leads round in a circle: round → around → round; give one of"),
    "around": ({"image_parent": "round"}, "around → round → around; give one of them an image_medium instead"),
    "both": ({"image_parent": "parent", "image_medium": {"family": "fai"}},
             "both.yml:2: image_medium: is given, and image_parent too; remove one of them"),
    "neither": ({"image_os": {"distribution": "debian", "version": "12"}},
                "image_medium: is missing; set it, or image_source_disk, or image_parent"),
    "other-os": ({"image_parent": "parent", "image_os": {"distribution": "debian", "version": "13"}},
                 "other-os.yml:4: image_os.version: is 13, but that of its parent parent is 12; remove image_os"),
    "small": ({"image_parent": "parent", "image_disk": {"size": "1G"}},
              "small.yml:3: image_disk.size: 1G is less than its parent parent has, 1510M; give the same or more"),
    "elsewhere": ({"image_parent": "parent", "image_builder": "other"},
                  "image_builder: is other, but that of its parent parent is localhost; set both to the same"),
    "inherits": ({"image_parent": "wrong"}, "wrong.yml:2: image_packages: '-x' cannot be the name of a package"),
    "wrong": ({"image_parent": "parent", "image_packages": ["-x"]}, "wrong.yml:2: image_packages: '-x' cannot be"),
}  # fmt: skip


def test_mistakes_name_file_and_key(plain):
    plain.images.update({image: values for image, (values, _message) in MISTAKES.items()})
    played = plain.play(",".join(MISTAKES))
    found = played.failures()
    assert {image: message for image, (_values, message) in MISTAKES.items() if message not in found[image]} == {}, (
        found
    )
    assert not any("\n" in message for message in found.values())
    assert list(plain.workspace.builds.iterdir()) == []
