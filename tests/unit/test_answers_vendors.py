# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The answer files that were found right (tests/integration/answers) are what the vendors' installers accept.

For autoinstall, AutoYaST, Agama and Windows Setup; as far as that is known here, see C(answer_schemas).
"""

from __future__ import annotations

import json
import re
import typing as t
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
import yaml

SCHEMAS = Path(__file__).parent / "answer_schemas"
GOLDEN = Path(__file__).resolve().parents[1] / "integration/answers"
TYPE = "{http://www.suse.com/1.0/configns}type"
YAST = "{http://www.suse.com/1.0/yast2ns}"
WINDOWS = "{urn:schemas-microsoft-com:unattend}"
ACTION = "{http://schemas.microsoft.com/WMIConfig/2002/State}action"
IDENTITY = {
    "processorArchitecture": "amd64",
    "publicKeyToken": "31bf3856ad364e35",
    "language": "neutral",
    "versionScope": "nonSxS",
}
PATH_LENGTH = 259
"""Characters that Path of a RunSynchronousCommand may have, by its reference."""


def golden(family: str, name: str) -> list[Path]:
    """The files of that name of all images whose installer is of the family."""
    found = []
    for about in GOLDEN.glob("*/installer.json"):
        if json.loads(about.read_text("utf-8"))["family"] == family:
            found.append(about.parent / name)
    assert found
    return sorted(found)


def ids(path: Path) -> str:
    return path.parent.name


def schema(family: str) -> t.Any:
    return yaml.safe_load((SCHEMAS / f"{family}.yml").read_text("utf-8"))


def problems(document: t.Any, family: str) -> list[str]:
    """What a validator of JSON Schema says."""
    validator = jsonschema.Draft202012Validator(schema(family))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


# --- autoinstall


@pytest.fixture(scope="module")
def autoinstall() -> t.Any:
    return yaml.safe_load((GOLDEN / "ubuntu-22.04/user-data").read_text("utf-8"))


@pytest.mark.parametrize("path", golden("autoinstall", "user-data"), ids=ids)
def test_autoinstall(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.startswith("#cloud-config\n")
    document = yaml.safe_load(text)
    assert problems(document, "autoinstall") == []
    about = json.loads(path.with_name("installer.json").read_text("utf-8"))
    assert about["volume"].lower() == "cidata"
    assert about["kernel_args"].split(" --- ")[0].split()[:2] == ["autoinstall", "ds=nocloud"]
    meta = yaml.safe_load(path.with_name("meta-data").read_text("utf-8"))
    assert meta["instance-id"]

    config = document["autoinstall"]["storage"]["config"]
    kinds = {action["id"]: action for action in config}
    assert len(kinds) == len(config)
    for action in config:  # what is referred to was there before
        before = [other["id"] for other in config[: config.index(action)]]
        assert all(action[key] in before for key in ("device", "volume") if key in action)
    partitions = [action for action in config if action["type"] == "partition"]
    assert [action["number"] for action in partitions] == list(range(1, len(partitions) + 1))
    assert (partitions[-1]["id"], partitions[-1]["size"]) == ("root", -1)
    assert {action["path"] for action in config if action["type"] == "mount"} == {"/", "/boot/efi"}
    assert [action["id"] for action in config if action.get("grub_device")] == [
        "esp" if "uefi" in path.parent.name or "aarch64" in path.parent.name else "disk"
    ]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"version": 2}, "1 was expected"),
        ({"shutdown": "halt"}, "'halt' is not one of"),
        ({"identity": {"username": "a"}}, "False schema"),
        ({"late_commands": []}, "'late_commands' was unexpected"),
        ({"late-commands": [1]}, "is not valid under any"),
        ({"storage": {"layout": {"name": "lvm"}}}, "'layout' was unexpected"),
    ],
)
def test_wrong_autoinstall_is_found(autoinstall: t.Any, change: dict[str, t.Any], problem: str) -> None:
    wrong = {"autoinstall": {**autoinstall["autoinstall"], **change}}
    assert any(problem in found for found in problems(wrong, "autoinstall"))


# --- Agama


@pytest.mark.parametrize("path", golden("agama", "autoinst.json"), ids=ids)
def test_agama(path: Path) -> None:
    document = json.loads(path.read_text("utf-8"))
    assert problems(document, "agama") == []
    about = json.loads(path.with_name("installer.json").read_text("utf-8"))
    assert f"inst.auto=label://{about['volume']}/autoinst.json" in about["kernel_args"].split()
    assert "inst.finish=poweroff" in about["kernel_args"].split()
    (drive,) = document["storage"]["drives"]
    assert drive["partitions"][-1]["filesystem"]["path"] == "/"
    kinds = [partition["id"] for partition in drive["partitions"]]
    assert kinds == ["esp", "linux"] if "aarch64" in path.parent.name else ["bios_boot", "esp", "linux"]


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("l10n", {}, "'l10n' was unexpected"),
        ("root", {"password": "secret", "hashedPassword": False}, "'!' was expected"),
        ("questions", {"policy": "never"}, "'never' is not one of"),
        ("storage", {"drives": [{"partitions": [{"size": "1GB"}]}]}, "is not valid under any"),
    ],
)
def test_wrong_agama_is_found(key: str, value: t.Any, problem: str) -> None:
    document = json.loads((GOLDEN / "opensuse-leap/autoinst.json").read_text("utf-8"))
    assert any(problem in found for found in problems({**document, key: value}, "agama"))


# --- AutoYaST


def wrong_in_profile(element: ElementTree.Element, right: t.Any, place: str) -> t.Iterator[str]:
    """What is wrong in an element, whose children or whose type ``right`` tells."""
    if isinstance(right, str):
        found = element.get(TYPE, "text")
        if found != right:
            yield f"{place}: is {found}, not {right}"
        elif (found == "boolean" and element.text not in ("true", "false")) or (
            found == "integer" and not re.fullmatch(r"\d+", element.text or "")
        ):
            yield f"{place}: {element.text!r} is no {found}"
        elif len(element):
            yield f"{place}: has elements"
        return
    known = {name.partition(" ")[0]: (name, kind) for name, kind in right.items()}
    seen = []
    for child in element:
        tag = child.tag.removeprefix(YAST)
        if tag not in known:
            yield f"{place}/{tag}: is not known"
            continue
        name, kind = known[tag]
        if isinstance(kind, dict):
            is_list = name.endswith(" list")
            if (child.get(TYPE) == "list") != is_list or child.get(TYPE) not in (None, "list"):
                yield f"{place}/{tag}: is {child.get(TYPE)}"
        if tag in seen and element.get(TYPE) != "list":
            yield f"{place}/{tag}: is there twice"
        seen.append(tag)
        yield from wrong_in_profile(child, kind, f"{place}/{tag}")


def profile_problems(text: str) -> list[str]:
    root = ElementTree.fromstring(text)
    assert root.tag == f"{YAST}profile"
    return list(wrong_in_profile(root, schema("autoyast")["profile"], "profile"))


@pytest.mark.parametrize("path", golden("autoyast", "autoinst.xml"), ids=ids)
def test_autoyast(path: Path) -> None:
    text = path.read_text("utf-8")
    assert profile_problems(text) == []
    about = json.loads(path.with_name("installer.json").read_text("utf-8"))
    assert f"autoyast=label://{about['volume']}/autoinst.xml" in about["kernel_args"].split()
    root = ElementTree.fromstring(text)
    partitions = [
        {child.tag.removeprefix(YAST): child.text for child in partition} for partition in root.iter(f"{YAST}partition")
    ]
    assert [partition["partition_nr"] for partition in partitions] == [
        str(1 + number) for number in range(len(partitions))
    ]
    kinds = [(partition["partition_id"], partition.get("mount")) for partition in partitions]
    assert kinds[-2:] == [("259", "/boot/efi"), ("131", "/")]
    assert kinds[:-2] == ([] if "aarch64" in path.parent.name else [("263", None)])
    assert partitions[-1]["size"] == "max"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("<halt config", "<hault config", "not well-formed|mismatched tag"),
        ("</general>", "<modus/></general>", "profile/general/modus: is not known"),
        ('<halt config:type="boolean">true', "<halt>true", "profile/general/mode/halt: is text, not boolean"),
        ('<halt config:type="boolean">true', '<halt config:type="boolean">yes', "'yes' is no boolean"),
        ('<partitioning config:type="list">', "<partitioning>", "profile/partitioning: is None"),
        ("</timezone>\n  </timezone>", "</timezone><hwclock>UTC</hwclock></timezone>", "hwclock: is there twice"),
    ],
)
def test_wrong_autoyast_is_found(old: str, new: str, problem: str) -> None:
    text = (GOLDEN / "autoyast-opensuse-leap-15.6/autoinst.xml").read_text("utf-8")
    assert old in text
    try:
        found = "\n".join(profile_problems(text.replace(old, new, 1)))
    except ElementTree.ParseError as exc:
        found = str(exc)
    assert re.search(problem, found)


# --- Windows


def wrong_in_component(element: ElementTree.Element, right: t.Any, place: str) -> t.Iterator[str]:
    """What is wrong in a component or a part of it, whose children ``right`` tells."""
    if isinstance(right, str):
        if len(element) or not (element.text or "").strip():
            yield f"{place}: is no text"
        return
    tags = [child.tag.removeprefix(WINDOWS) for child in element]
    for child, tag in zip(element, tags, strict=True):
        name = next((name for name in (tag, f"{tag}*") if name in right), None)
        if name is None:
            yield f"{place}/{tag}: is not known"
            continue
        if (child.get(ACTION) == "add") != name.endswith("*"):
            yield f"{place}/{tag}: has wcm:action={child.get(ACTION)}"
        if tags.count(tag) > 1 and not name.endswith("*"):
            yield f"{place}/{tag}: is there twice"
        yield from wrong_in_component(child, right[name], f"{place}/{tag}")
    orders = [child.findtext(f"{WINDOWS}Order") for child in element if child.find(f"{WINDOWS}Order") is not None]
    if orders != [str(number) for number in range(1, len(orders) + 1)]:
        yield f"{place}: the orders are {orders}"


def unattend_problems(text: str) -> list[str]:
    """What is wrong in an answer file of Windows Setup."""
    root, right, found = ElementTree.fromstring(text), schema("autounattend"), []
    assert root.tag == f"{WINDOWS}unattend"
    passes = [settings.get("pass") or "" for settings in root]
    if len(set(passes)) < len(passes):
        found.append("a pass is there twice")
    for settings, name in zip(root, passes, strict=True):
        if settings.tag != f"{WINDOWS}settings" or name not in right:
            found.append(f"{name}: is not known")
            continue
        for component in settings:
            about = dict(component.items())
            place = f"{name}/{about.pop('name')}"
            if about != IDENTITY:
                found.append(f"{place}: is identified by {about}")
            known = right[name].get(place.partition("/")[2])
            found += [f"{place}: is not known"] if known is None else wrong_in_component(component, known, place)
    paths = [
        element.text or ""
        for tag in ("RunSynchronousCommand", "RunAsynchronousCommand")
        for element in root.iterfind(f".//{WINDOWS}{tag}/{WINDOWS}Path")
    ]
    return found + [f"{len(path)} characters: {path}" for path in paths if len(path) > PATH_LENGTH]


@pytest.mark.parametrize("name", ["Autounattend.xml", "sysprep.xml"])
@pytest.mark.parametrize("path", golden("autounattend", "."), ids=lambda path: path.name)
def test_autounattend(path: Path, name: str) -> None:
    assert unattend_problems((path / name).read_text("utf-8")) == []


@pytest.mark.parametrize(("image", "right"), [("windows-2022", ["1"]), ("windows-2025-uefi", ["1", "2", "3"])])
def test_windows_is_in_the_last_partition(image: str, right: list[str]) -> None:
    root = ElementTree.fromstring((GOLDEN / f"autounattend-{image}/Autounattend.xml").read_text("utf-8"))
    created = [element.text for element in root.iterfind(f".//{WINDOWS}CreatePartition/{WINDOWS}Order")]
    target = root.findtext(f".//{WINDOWS}InstallTo/{WINDOWS}PartitionID")
    extended = [element.findtext(f"{WINDOWS}Extend") for element in root.iter(f"{WINDOWS}CreatePartition")]
    assert (created, target) == (right, right[-1])
    assert extended[-1] == "true"
    assert set(extended[:-1]) <= {None}


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('processorArchitecture="amd64"', 'processorArchitecture="x86"', "is identified by"),
        (' wcm:action="add"', "", "has wcm:action=None"),
        ("<Order>1</Order>", "<Order>2</Order>", "the orders are"),
        ('pass="specialize"', 'pass="special"', "special: is not known"),
        ('pass="specialize"', 'pass="windowsPE"', "a pass is there twice"),
        ("<AcceptEula>", "<Eula>x</Eula><AcceptEula>", "UserData/Eula: is not known"),
        ("powercfg.exe", "powercfg.exe " + "x" * 240, "characters: cmd.exe"),
    ],
)
def test_wrong_autounattend_is_found(old: str, new: str, problem: str) -> None:
    text = (GOLDEN / "autounattend-windows-2022/Autounattend.xml").read_text("utf-8")
    assert old in text
    assert any(problem in found for found in unattend_problems(text.replace(old, new, 1)))


# --- all of them


SECRETS = re.compile(r"(?i)(?:password|passwd|passphrase|token|secret)[\"'>:= ]+(?P<value>[^\s\"'<,}]+)")
HARMLESS = {"!", "config:type=", "true", "false"}
"""What may stand where a secret could: that an account is locked, and what is no value."""


@pytest.mark.parametrize(
    "path",
    [*golden("autoinstall", "user-data"), *golden("autoyast", "autoinst.xml"), *golden("agama", "autoinst.json")],
    ids=ids,
)
def test_no_answer_file_has_a_secret(path: Path) -> None:
    assert {found["value"] for found in SECRETS.finditer(path.read_text("utf-8"))} <= HARMLESS


@pytest.mark.parametrize("path", [*golden("autounattend", "Autounattend.xml"), *golden("autounattend", "sysprep.xml")])
def test_windows_gets_no_password_and_no_account(path: Path) -> None:
    root = ElementTree.fromstring(path.read_text("utf-8"))
    tags = {element.tag.removeprefix(WINDOWS) for element in root.iter()}
    assert not any(re.search("Password|AutoLogon|Account|Credentials$", tag) for tag in tags - {"PathAndCredentials"})


def test_a_secret_would_be_found() -> None:
    document = json.loads((GOLDEN / "opensuse-leap/autoinst.json").read_text("utf-8"))
    document["root"]["password"] = "hunter2"
    assert not {found["value"] for found in SECRETS.finditer(json.dumps(document))} <= HARMLESS
