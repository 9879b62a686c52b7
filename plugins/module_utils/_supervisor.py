# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The process that holds an offline tree between the tasks of a playbook, and gives it up when the playbook has died.

It is process 1 of PID, mount, UTS and IPC namespaces of its own. So nothing of the tree is mounted in the builder's own
namespace, a role cannot rename or reboot the builder, and when the supervisor is killed the kernel takes down everything.
Commands get into the tree through the script ``enter`` in the tree's home directory. Its directory ``root`` stays empty for
everybody else but for a dangling bin/sh (community.general.chroot looks for one).

A home directory holds: root/, enter, state.json, control (a socket), disk (the raw one), log.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shlex
import shutil
import signal
import socket
import time
import traceback
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli, _state
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._offline import PATH, Tree, mount_table, reap
from ansible_collections.cloudimg.factory.plugins.module_utils._owner import Owner, boot_id, forsake, start_time

_LIBC = ctypes.CDLL(None, use_errno=True)
_NEWNS, _NEWUTS, _NEWIPC, _NEWPID = 0x00020000, 0x04000000, 0x08000000, 0x20000000
_MS_REC_PRIVATE = 0x4000 | 0x40000
_CAPABILITIES = "-sys_boot,-sys_module,-sys_time"
"""What no command in the tree may do to the builder's kernel."""

_ENTER = """\
#!/bin/sh
# Made by cloudimg.factory: runs a command in the offline tree {home}/root, as chroot(8) does.
umask 022
[ "$(id -u)" = 0 ] && sudo= || sudo='sudo -n'
exec $sudo nsenter --target {pid} --mount --uts --ipc --pid -- setpriv --bounding-set={capabilities} -- \\
  env -i PATH={path} HOME=/root LANG=C.UTF-8 TERM=dumb DEBIAN_FRONTEND=noninteractive \\
  ${{http_proxy:+http_proxy="$http_proxy"}} ${{https_proxy:+https_proxy="$https_proxy"}} \\
  ${{no_proxy:+no_proxy="$no_proxy"}} chroot "$@"
"""

Prepare = t.Callable[[Path], None]
"""Makes the overlay at the path given."""


def start(home: Path, owner: Owner | None, layer: Path, prepare: Prepare, facts: t.Mapping[str, t.Any]) -> list[str]:
    """Have a new process make the overlay and attach it at ``home``; returns, when that is done, what is to be said.

    :param owner: the process with whose end the tree and the overlay go; None to hold them until told otherwise.
    :param layer: what the overlay is to become; until then it has a partial name of the new process's beside it.
    :param facts: kept in state.json, for who comes later.
    :raises FactoryError: it could not; then nothing is left.
    """
    for tool in ("nsenter", "setpriv", "mount", "losetup", "sfdisk", "blkid", "fstrim", "e2fsck", "chroot"):
        _cli.require(tool)
    with _state.explain_os_errors(home):
        (home / "root" / "bin").mkdir(parents=True)
        (home / "root" / "bin" / "sh").symlink_to("/bin/sh")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        boot = boot_id()
        _daemonise(writer, lambda: _Supervisor(home, owner, layer, prepare, facts, boot).run(writer))
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    try:
        return list(_unpack(answer)["notes"])
    except FactoryError:
        _forget(home)
        raise


def ask(home: Path, request: str, **arguments: t.Any) -> dict[str, t.Any]:
    """Ask a tree's supervisor for C(ping), C(inspect), C(detach), C(keep) or C(end).

    :raises FactoryError: what went wrong there, or that it has gone.
    """
    where = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            # by way of /proc, since the path of a socket may have 107 bytes only
            client.connect(f"/proc/self/fd/{where}/control")
            client.sendall(json.dumps({"request": request, **arguments}).encode())
            client.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: client.recv(65536), b""))
    except OSError:
        answer = b""
    finally:
        os.close(where)
    return _unpack(answer)


def state(home: Path) -> dict[str, t.Any]:
    """The facts of the tree at ``home``; {} where there is none, or where its supervisor has gone."""
    known: dict[str, t.Any] = _state.read_json(home / "state.json", {})
    supervisor = Owner.load(known.get("supervisor"))
    return known if supervisor and supervisor.alive() else {}


def wait_until_free(home: Path, what: str, seconds: float = 30.0) -> None:
    """Return when nobody has a tree at ``home``; wait for one that is just being given up.

    :param what: what is there, for the error.
    :raises FactoryError: somebody has, and means to.
    """
    deadline = time.monotonic() + seconds
    while known := state(home):
        pid = known["supervisor"]["pid"]
        if known.get("kept"):
            mend = f"look into it by {home}/enter {home}/root /bin/bash, then drop it by: kill -9 {pid}"
            raise FactoryError(f"{what} was kept after a failure", where=str(home), mend=mend)
        owner = Owner.load(known.get("owner"))
        if time.monotonic() > deadline or ((owner is None or owner.alive()) and ("guest" in known or _answers(home))):
            mend = "wait for the build that has opened it to end"
            raise FactoryError(f"{what} is open already (process {pid} holds it)", where=str(home), mend=mend)
        time.sleep(0.2)


def _answers(home: Path) -> bool:
    try:
        ask(home, "ping")
    except FactoryError:
        return False
    return True


def end(home: Path) -> None:
    """Have a tree's supervisor detach it (if it is attached), remove the overlay and the home directory, and end."""
    supervisor = Owner.load(state(home).get("supervisor"))
    if supervisor:
        with contextlib.suppress(FactoryError):
            ask(home, "end")
        for sig in (0, signal.SIGKILL):
            deadline = time.monotonic() + 10
            while supervisor.alive() and time.monotonic() < deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(supervisor.pid, sig)
                time.sleep(0.05)
    _forget(home)


def reap_homes(run: Path) -> list[str]:
    """Remove the homes of trees whose supervisor was killed (their overlays: see :func:`_state.reap_partials`)."""
    stale = [home for home in sorted(run.glob("*.tree")) if not state(home) and not _young(home)]
    for home in stale:
        _forget(home)
    return [home.name for home in stale]


def _young(home: Path) -> bool:
    """Whether it may still be coming up."""
    with contextlib.suppress(FileNotFoundError):
        return not (home / "state.json").exists() and time.time() - home.stat().st_mtime < 60
    return False


def _forget(home: Path) -> None:
    if any(mount.point.startswith(f"{home}/") for mount in mount_table()):
        raise FactoryError("something is mounted below it", where=str(home), mend="unmount it, then run this again")
    shutil.rmtree(home, ignore_errors=True)


def _pack(value: t.Mapping[str, t.Any] | Exception) -> bytes:
    if isinstance(value, FactoryError):
        error = {name: getattr(value, name) for name in ("problem", "where", "key", "mend")}
        return json.dumps({"error": error}).encode()
    if isinstance(value, Exception):
        return json.dumps({"error": {"problem": f"{type(value).__name__}: {value}"}}).encode()
    return json.dumps(value).encode()


def _unpack(answer: bytes) -> dict[str, t.Any]:
    if not answer:
        raise FactoryError(
            "the process that held the offline tree has gone",
            mend="see whether something in the image's roles or scripts, or the out-of-memory killer, has ended it",
        )
    value: dict[str, t.Any] = json.loads(answer)
    if "error" in value:
        raise FactoryError(**value["error"])
    return value


def _daemonise(writer: int, work: t.Callable[[], None]) -> t.NoReturn:
    """In a forked child: become a daemon with nothing open but ``writer``, in new namespaces, and do the work there."""
    try:
        forsake(writer)
        if _LIBC.unshare(_NEWNS | _NEWUTS | _NEWIPC | _NEWPID):
            raise FactoryError(
                f"cannot make namespaces: {os.strerror(ctypes.get_errno())}",
                where="unshare",
                mend="run this as root on a machine (or in a privileged container) that allows it",
            )
        if os.fork() == 0:
            # process 1 of a namespace is immune to signals that it does not handle
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            _LIBC.mount(None, b"/", None, _MS_REC_PRIVATE, None)
            socket.sethostname("localhost")
            work()
    except Exception as exc:
        with contextlib.suppress(OSError):
            os.write(writer, _pack(exc))
    os._exit(0)


class _Supervisor:
    def __init__(
        self,
        home: Path,
        owner: Owner | None,
        layer: Path,
        prepare: Prepare,
        facts: t.Mapping[str, t.Any],
        boot: str,
    ) -> None:
        self._home = home
        self._owner = owner if owner and owner.boot == boot else None
        # The /proc that we see is still the builder's: from it we know the number that others know us by.
        pid = int(os.readlink("/proc/self"))
        self._self = Owner(pid, start_time(pid) or 0, boot)
        self._overlay = _state.partial_path(layer, self._self)
        self._prepare = prepare
        self._facts = facts
        self._tree = Tree(home, self._overlay)
        self._attached = False

    def run(self, writer: int) -> None:
        """Attach, tell so through ``writer``, then serve until the end."""
        try:
            server = self._begin()
            answer = _pack({"notes": self._tree.notes})
        except Exception as exc:
            self._give_up()
            answer = _pack(exc)
            server = None
        with contextlib.suppress(OSError):  # who asked may be gone; then the owner is, too, and we learn it below
            os.write(writer, answer)
        os.close(writer)
        try:
            while server and self._serve(server):
                pass
        except Exception as exc:
            with (self._home / "log").open("a", encoding="utf-8") as log:
                traceback.print_exc(file=log)
            raise exc

    def _begin(self) -> socket.socket:
        _state.write_json(
            self._home / "state.json",
            {
                **self._facts,
                "supervisor": self._self.dump(),
                "owner": self._owner.dump() if self._owner else None,
                "overlay": str(self._overlay),
            },
        )
        self._prepare(self._overlay)
        self._attached = True
        self._tree.attach()
        enter = _ENTER.format(
            home=shlex.quote(str(self._home)), pid=self._self.pid, capabilities=_CAPABILITIES, path=PATH
        )
        _state.write_text(self._home / "enter", enter, 0o755)
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        where = os.open(self._home, os.O_RDONLY | os.O_DIRECTORY)
        server.bind(f"/proc/self/fd/{where}/control")
        os.close(where)
        (self._home / "control").chmod(0o600)
        server.listen(1)
        server.settimeout(1.0)
        return server

    def _serve(self, server: socket.socket) -> bool:
        """Wait for a second; answer who asks; False at the end."""
        try:
            client, _address = server.accept()
        except (socket.timeout, InterruptedError):
            reap()
            if self._owner is not None and start_time(self._owner.pid) != self._owner.started:
                self._give_up()
                return False
            return True
        request = ""
        with client, contextlib.suppress(OSError):
            client.settimeout(10)
            try:
                question = json.loads(b"".join(iter(lambda: client.recv(65536), b"")))
                request = question.pop("request")
                answer = _pack(getattr(self, f"_do_{request}")(**question))
            except Exception as exc:
                answer = _pack(exc)
            client.settimeout(None)
            client.sendall(answer)
        return request != "end"

    def _do_inspect(self, forbidden: list[str], packages: bool) -> dict[str, t.Any]:
        found = self._tree.matches(forbidden)
        return {"forbidden": found, "packages": self._tree.packages() if packages else None}

    def _do_detach(self) -> dict[str, t.Any]:
        self._attached = False
        self._tree.detach(keep=True)
        return {}

    def _do_ping(self) -> dict[str, t.Any]:
        return {}

    def _do_keep(self) -> dict[str, t.Any]:
        self._owner = None
        path = self._home / "state.json"
        _state.write_json(path, {**_state.read_json(path), "kept": True})
        return {}

    def _do_end(self) -> dict[str, t.Any]:
        self._give_up()
        return {}

    def _give_up(self) -> None:
        if self._attached:
            self._attached = False
            with contextlib.suppress(FactoryError, OSError):
                self._tree.detach(keep=False)
        _state.remove(self._overlay)
        with contextlib.suppress(FactoryError):
            _forget(self._home)
