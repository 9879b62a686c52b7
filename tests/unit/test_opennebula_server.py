# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tests' OpenNebula answers pyone as a front-end 7.5.80 was seen to answer it."""

from __future__ import annotations

import subprocess
import time
import typing as t
import xmlrpc.client
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.tests.tools.opennebula_server import PASSWORD, OpenNebulaServer

pyone = pytest.importorskip("pyone")


@pytest.fixture
def server(tmp_path: Path) -> t.Iterator[OpenNebulaServer]:
    with OpenNebulaServer(tmp_path) as found:
        yield found


@pytest.fixture
def one(server: OpenNebulaServer) -> t.Any:
    return pyone.OneServer(server.url, session=f"oneadmin:{PASSWORD}")


@pytest.fixture
def disk(tmp_path: Path, server: OpenNebulaServer) -> Path:
    path = tmp_path / "safe/x.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "64M"], check=True)
    return path


def states(one: t.Any, number: int) -> list[int]:
    """The states that an image goes through."""
    seen = [one.image.info(number).STATE]
    while seen[-1] == 4:
        time.sleep(0.02)
        state = one.image.info(number).STATE
        seen += [state] if state != seen[-1] else []
    return seen


def test_an_image_as_it_was_seen(one: t.Any, server: OpenNebulaServer, disk: Path) -> None:
    server.delay = 0.1
    number = one.image.allocate(f'NAME="a"\nPATH="{disk}"\nDRIVER=qcow2\nDEV_PREFIX="vd"', 1)
    assert states(one, number) == [4, 1]
    image = one.image.info(number)
    assert (image.NAME, image.SIZE, image.FORMAT, image.DATASTORE, image.PERSISTENT) == ("a", 64, "qcow2", "default", 0)
    assert dict(image.TEMPLATE) == {"DEV_PREFIX": "vd"}
    assert (image.PERMISSIONS.OWNER_U, image.PERMISSIONS.OWNER_M, image.PERMISSIONS.GROUP_U) == (1, 1, 0)
    assert Path(image.SOURCE).read_bytes() == disk.read_bytes()
    assert one.image.update(number, 'MYTAG="v2"', 1) == number
    assert one.image.enable(number, False) == one.image.enable(number, False) == number
    assert one.image.info(number).STATE == 3
    assert one.image.rename(number, "b") == one.image.chmod(number, 1, 1, 0, 0, 0, 0, 0, 0, 0) == number
    assert one.image.chown(number, -1, -1) == one.image.persistent(number, True) == number
    assert [(each.ID, each.NAME, each.STATE) for each in one.imagepool.info(-2, -1, -1).IMAGE] == [(number, "b", 3)]
    assert one.image.delete(number) == number
    with pytest.raises(pyone.OneNoExistsException, match=r"^\[one.image.info\] Error getting image \[0\].$"):
        one.image.info(number)


def test_a_restricted_path_fails_later(one: t.Any, server: OpenNebulaServer, tmp_path: Path) -> None:
    path = tmp_path / "private.raw"
    path.write_bytes(b"x" * 4096)
    number = one.image.allocate(f'NAME="r"\nPATH="{path}"', 1)
    assert states(one, number)[-1] == 5
    said = one.image.info(number).TEMPLATE["ERROR"]
    assert said.endswith(f"Not allowed to copy image from {path}, check RESTRICTED_DIRS in your datastore")
    assert " : Error copying image in the datastore: " in said


def test_refusals_as_they_were_seen(one: t.Any, server: OpenNebulaServer, disk: Path) -> None:
    good = f'PATH="{disk}"\nDRIVER="qcow2"\n'
    one.image.allocate(f'NAME="a"\n{good}', 1)
    seen = [
        (f'NAME="a"\n{good}', 1, "OneException", "Error allocating a new image. NAME is already taken by IMAGE 0."),
        (
            'NAME="n"\nPATH="/var/tmp/none.qcow2"',
            1,
            "OneInternalException",
            "Cannot parse image SIZE: cannot access '/var/tmp/none.qcow2' (No such file or directory)",
        ),
        (f'NAME="n"\n{good}', 999, "OneNoExistsException", "Error getting datastore [999]."),
        (
            f'NAME="n"\n{good}',
            0,
            "OneException",
            "Error allocating a new image. New images can only be allocated in a files or image datastore.",
        ),
        (good, 1, "OneException", "Error allocating a new image. Invalid NAME, it cannot be empty"),
        ('NAME="n"\nTYPE="DATABLOCK"\nSIZE="900000000"', 1, "OneActionException", "Not enough space in datastore"),
    ]
    for template, datastore, kind, text in seen:
        with pytest.raises(pyone.OneException) as caught:
            one.image.allocate(template, datastore)
        assert (type(caught.value).__name__, str(caught.value)) == (kind, f"[one.image.allocate] {text}")
    with pytest.raises(pyone.OneInternalException, match=r"Parse error: syntax error, unexpected \$end"):
        one.image.allocate("NAME=[", 1)
    for session in ("oneadmin:wrong", "nobody:x"):
        with pytest.raises(pyone.OneAuthenticationException, match=r"User couldn't be authenticated, aborting call.$"):
            pyone.OneServer(server.url, session=session).imagepool.info(-2, -1, -1)
    raw = xmlrpc.client.ServerProxy(server.url).one.image.info(f"oneadmin:{PASSWORD}", 99999)
    assert raw == [False, "[one.image.info] Error getting image [99999].", 1024, 99999, -1]


def test_templates_as_they_were_seen(one: t.Any, server: OpenNebulaServer, disk: Path) -> None:
    number = one.template.allocate({"NAME": "web", "CPU": "1"})
    with pytest.raises(
        pyone.OneInternalException, match=r"^\[one.template.allocate\] NAME is already taken by TEMPLATE 0.$"
    ):
        one.template.allocate('NAME="web"')
    one.template.update(number, 'CPU="2"\nMEMORY="256"\nX="y"')
    assert dict(one.template.info(number).TEMPLATE) == {"CPU": "2", "MEMORY": "256", "X": "y"}
    one.template.update(number, 'NIFTY_APPLIANCE_ID="u"\nX="z"', 1)
    assert dict(one.template.info(number).TEMPLATE) == {
        "CPU": "2",
        "MEMORY": "256",
        "NIFTY_APPLIANCE_ID": "u",
        "X": "z",
    }
    image = one.image.allocate(f'NAME="a"\nPATH="{disk}"', 1)
    server.settle()
    one.template.update(number, {"TEMPLATE": {"DISK": {"IMAGE_ID": image}}}, 1)
    one.image.enable(image, False)
    one.template.delete(number, True)
    assert one.image.info(image).STATE == 3, "a disabled image stays"


def test_users_rights_and_quotas(one: t.Any, server: OpenNebulaServer, disk: Path) -> None:
    one.image.allocate(f'NAME="theirs"\nPATH="{disk}"', 1)
    jane = one.user.allocate("jane", "secret", "core", [])
    mine = pyone.OneServer(server.url, session="jane:secret")
    assert mine.imagepool.info(-2, -1, -1).IMAGE == []
    own = mine.image.allocate(f'NAME="a"\nPATH="{disk}"', 1)
    one.user.quota(jane, {"TEMPLATE": {"DATASTORE": {"ID": 1, "IMAGES": 1}}})
    with pytest.raises(pyone.OneAuthorizationException) as caught:
        mine.image.allocate(f'NAME="b"\nPATH="{disk}"', 1)
    assert str(caught.value) == (
        f"[one.image.allocate] User [{jane}] : user [{jane}] limit of 1 reached for IMAGES quota in DATASTORE with ID: 1."
    )
    with pytest.raises(pyone.OneAuthorizationException) as caught:
        mine.image.chmod(0, 1, 1, 1, 1, 1, 1, 1, 1, 1)
    assert str(caught.value) == f"[one.image.chmod] User [{jane}] : Not authorized to perform ADMIN IMAGE [0]."
    one.acl.addrule(hex(0x100000000 | jane), hex(0x8000000000 | 0x100000000 | 0), hex(1))
    assert mine.image.info(0).NAME == "theirs"
    assert mine.image.delete(own) == own


def test_an_image_in_use_cannot_go(one: t.Any, server: OpenNebulaServer, disk: Path) -> None:
    image = one.image.allocate(f'NAME="a"\nPATH="{disk}"', 1)
    server.settle()
    template = one.template.allocate(f'NAME="t"\nDISK=[IMAGE_ID="{image}"]')
    vm = one.template.instantiate(template, "", False, "", False)
    assert one.image.info(image).STATE == 2
    assert list(one.image.info(image).VMS.ID) == [vm]
    with pytest.raises(pyone.OneActionException, match="There are 1 VMs using it"):
        one.image.delete(image)
    assert [each.ID for each in one.vmpool.info(-2, -1, -1, -1).VM] == [vm]
    assert one.vm.info(vm).TEMPLATE["DISK"]["IMAGE_ID"] == str(image)
    assert [each.NAME for each in one.userpool.info().USER] == ["oneadmin"]
    assert [each.NAME for each in one.grouppool.info().GROUP] == ["oneadmin", "users"]
    assert [each.ID for each in one.acl.info().ACL] == [0, 1]
    one.vm.action("terminate-hard", vm)
    assert one.image.delete(image) == image
