# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""A layer from its opening to its end: an overlay in which Ansible can work, then a layer in the cache, or nothing."""

from __future__ import annotations

import dataclasses
import os
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import (
    _accel,
    _guest_ssh,
    _layers,
    _qemu_img,
    _state,
    _supervisor,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._layers import Layer
from ansible_collections.cloudimg.factory.plugins.module_utils._owner import Owner

CONNECTIONS = ("auto", "offline", "ssh")
_LISTED = 5


@dataclasses.dataclass(frozen=True)
class Controller:
    """What matters of the machine that ansible-playbook runs on.

    :ivar here: it is the builder.
    :ivar root: commands can become root there without being asked for a password.
    """

    here: bool
    root: bool


@dataclasses.dataclass(frozen=True)
class Opened:
    """How Ansible gets into a layer that was opened."""

    home: Path
    variables: dict[str, t.Any]
    mount: str | None
    notes: list[str]


def home_of(workspace: _state.Workspace, image: str, stage: str) -> Path:
    """The directory that an open layer has on the builder. One image has a stage open once only."""
    return workspace.run / f"cloudimg-{_state.check_image_name(image)}-{stage}.tree"


def choose(wanted: str, controller: Controller) -> str:
    """How to get into the guest: what is ``wanted``, or for C(auto) what suits the builder.

    :raises FactoryError: that way does not work here.
    """
    if os.geteuid() != 0:
        raise FactoryError("mounting a disk needs root", key="disk_layer", mend="run the task with become: true")
    way = wanted if wanted != "auto" else ("offline" if _accel.detect() == "tcg" else "ssh")
    if not controller.here:
        raise FactoryError(
            f"{way} gets into the guest only where ansible-playbook runs, and the builder is another machine",
            key="image_connection",
            mend="let image_builder be localhost",
        )
    if way == "offline" and not controller.root:
        raise FactoryError(
            "this user may not become root without a password, which each task in the guest's disk needs",
            key="image_connection",
            mend="run this as root, or give the user the right to sudo with NOPASSWD",
        )
    return way


def open_layer(layer: Layer, owner: Owner | None, way: str = "offline") -> Opened:
    """Make the overlay and a way into it; both go when ``owner`` ends, unless it was committed before that.

    :raises FactoryError: it cannot be done, or somebody has this stage of this image open; then nothing is left.
    """
    workspace = layer.workspace.make()
    home = home_of(workspace, layer.image, layer.stage)
    _supervisor.wait_until_free(home, f"the {layer.stage} layer of {layer.image}")
    # Only now, lest they be those of one that is just being given up.
    _state.reap_partials(workspace.layers)
    _supervisor.reap_homes(workspace.run)
    facts = {"layer": {**dataclasses.asdict(layer), "workspace": str(workspace.root), "parent": str(layer.parent)}}
    return (_open_booted if way == "ssh" else _open_offline)(layer, home, owner, facts)


def _open_offline(layer: Layer, home: Path, owner: Owner | None, facts: dict[str, t.Any]) -> Opened:
    notes = _supervisor.start(home, owner, layer.path, lambda path: _layers.create(layer, path), facts)
    tree = str(home / "root")
    variables = {
        "ansible_connection": "community.general.chroot",
        "ansible_host": tree,
        "ansible_chroot_exe": str(home / "enter"),
        "ansible_chroot_disable_root_check": True,
        "ansible_executable": "/bin/sh",
        "ansible_pipelining": True,
        "ansible_python_interpreter": "/usr/bin/python3",
        # /run is a tmpfs there, so that nothing of Ansible's own gets into the image.
        "ansible_remote_tmp": "/run/ansible/tmp",
        "ansible_async_dir": "/run/ansible/async",
    }
    return Opened(home, variables, tree, notes)


def _open_booted(layer: Layer, home: Path, owner: Owner | None, facts: dict[str, t.Any]) -> Opened:
    # The overlay is its owner's, as this process ends soon.
    overlay = _state.partial_path(layer.path, owner or Owner.of())
    with _state.explain_os_errors(home):
        home.mkdir(parents=True)
    try:
        _state.remove(overlay)
        _layers.create(layer, overlay)
        access = _guest_ssh.start_guest(
            overlay, home / "guest", _accel.detect(), name=home.stem, owner=owner, console=home / "console"
        )
    except BaseException:
        _state.remove(overlay)
        _state.remove(home)
        raise
    guest = access.dump()
    held = {"supervisor": guest["supervisor"], "owner": owner.dump() if owner else None, "overlay": str(overlay)}
    _state.write_json(home / "state.json", {**facts, **held, "guest": guest})
    variables = {**access.variables(), "ansible_python_interpreter": "/usr/bin/python3", "ansible_pipelining": True}
    return Opened(home, variables, None, [])


def commit_layer(
    workspace: _state.Workspace,
    image: str,
    stage: str,
    *,
    forbidden: list[str],
    packages: bool,
    facts: t.Mapping[str, t.Any] | None = None,
) -> tuple[Layer, bool]:
    """Close what :func:`open_layer` opened, and keep it as a layer; returns it, and False if it was there meanwhile.

    :param forbidden: patterns of files that no image may have in it.
    :param packages: whether to keep the list of installed packages with it.
    :param facts: what the stage has found out, see :func:`_layers.facts`.
    :raises FactoryError: it is not open, or not fit to be kept. It still has to be discarded then.
    """
    home = home_of(workspace, image, stage)
    state = _supervisor.state(home)
    if not state:
        raise FactoryError(f"the {stage} layer of {image} is not open", where=str(home), mend="run the stage again")
    known = state["layer"]
    layer = Layer(**{**known, "workspace": workspace, "parent": Path(known["parent"])})
    overlay = Path(state["overlay"])
    if state.get("guest"):
        _guest_ssh.stop_guest(_guest_ssh.GuestAccess.load(state["guest"]))
        seen = _inspect(layer, overlay, home, forbidden, packages)
    else:
        seen = _supervisor.ask(home, "inspect", forbidden=forbidden, packages=packages)
    if seen["forbidden"]:
        more = len(seen["forbidden"]) - _LISTED
        listed = ", ".join(seen["forbidden"][:_LISTED]) + (f" and {more} more" if more > 0 else "")
        raise FactoryError(
            f"holds what must not be in an image: {listed}",
            where=f"{stage} layer of {image}",
            mend="have the role or script that leaves it remove it, or switch on the operation that does",
        )
    if not state.get("guest"):
        _supervisor.ask(home, "detach")
    kept = _layers.commit(layer, overlay, seen["packages"], facts)
    _supervisor.end(home)
    return layer, kept


def _inspect(layer: Layer, overlay: Path, home: Path, forbidden: list[str], packages: bool) -> dict[str, t.Any]:
    """What is in an overlay that nobody uses any more."""
    view = home.with_name(f"{home.stem}.view.tree")
    _supervisor.start(
        view, Owner.of(), layer.path.with_name("view"), lambda path: _qemu_img.create(path, None, backing=overlay), {}
    )
    try:
        return _supervisor.ask(view, "inspect", forbidden=forbidden, packages=packages)
    finally:
        _supervisor.end(view)


def discard_layer(workspace: _state.Workspace, image: str, stage: str, *, keep: bool = False) -> str | None:
    """Give up what :func:`open_layer` opened, if it still is; with ``keep`` hold it, and return how to get in.

    A booted one is never held.
    """
    home = home_of(workspace, image, stage)
    facts = _supervisor.state(home)
    if facts.get("guest"):
        _guest_ssh.kill_guest(_guest_ssh.GuestAccess.load(facts["guest"]))
    elif keep and facts:
        _supervisor.ask(home, "keep")
        pid = facts["supervisor"]["pid"]
        return f"look into it by: {home}/enter {home}/root /bin/bash; drop it by: kill -9 {pid}"
    if not home.exists():
        return None
    known = _state.read_json(home / "state.json", {})
    _supervisor.end(home)
    if known.get("overlay"):
        _state.remove(Path(known["overlay"]))
    return "discarded"


def check_parent(layer: Layer) -> None:
    """Raise FactoryError where the disk below a layer is not fit to stand on."""
    if not layer.parent.exists():
        raise FactoryError("is not there", where=str(layer.parent), mend="run the stage before this one again")
    wrong = _layers.damage(layer.parent, _layers.record_of(layer.parent) or {})
    if wrong:
        raise FactoryError(
            wrong, where=str(layer.parent), mend="run the stage before this one again, which rebuilds it"
        )
