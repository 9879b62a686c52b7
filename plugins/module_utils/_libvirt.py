# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""A libvirt to install in: by default a private session of our own that lives and dies with the job.

Why not the builder's libvirtd:

* libvirt probes KVM at each definition of a domain, and stalls for half a minute where /dev/kvm exists but runs no
  guest; in here that device is hidden when it is of no use.
* the private session sees files exactly as this user does (also below /root and /tmp), and needs no service manager
  and no root daemon.
* everything in it dies with this process, whatever happens to it: bwrap(1) with --unshare-pid and --die-with-parent.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _accel, _cli
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._owner import Owner
from ansible_collections.cloudimg.factory.plugins.module_utils._state import read_json, write_json

PRIVATE = "private"
"""The connection URI that stands for a session of our own."""
_UNPRIVILEGED_ID = "1"  # daemon: in the passwd of every system, as libvirt demands of its user
_START_TIMEOUT = 30.0
_NAME_LENGTH = 40
_TOLD_WITHIN = 10.0
_OWNER = "owner.json"


class Libvirt:
    """virsh on one connection."""

    def __init__(self, uri: str, env: t.Mapping[str, str] | None = None) -> None:
        self.uri = uri
        self.env = dict(env or {})

    def virsh(self, *words: str, check: bool = True) -> _cli.Completed:
        """Run one virsh command (LC_ALL=C.UTF-8, quiet)."""
        return _cli.run(["virsh", "--quiet", "--connect", self.uri, *words], timeout=120, env=self.env, check=check)

    def exists(self, domain: str) -> bool:
        """Whether a domain of that name is defined or runs."""
        return domain in self.virsh("list", "--all", "--name").stdout.split()

    def state(self, domain: str) -> str:
        """For example C(running (booted)), C(shut off (destroyed)), C(shut off (crashed)); empty where it is gone."""
        done = self.virsh("domstate", "--reason", domain, check=False)
        return done.stdout.strip() if done.rc == 0 else ""

    def block_bytes(self, domain: str) -> int:
        """Bytes that all its block devices have read and written; 0 where that cannot be told."""
        done = self.virsh("domstats", "--block", domain, check=False)
        numbers = (row.partition("=") for row in done.stdout.split())
        return sum(int(value) for name, _sep, value in numbers if name.endswith((".rd.bytes", ".wr.bytes")))

    @contextlib.contextmanager
    def shutdowns(self, log: Path) -> t.Iterator[t.Callable[[str], str]]:
        """Hear why guests go off, as long as the block lasts; what is heard is written to ``log``.

        Gives a function that tells why a domain, which is off, has gone off: C(guest-reset) is a restart that was not
        wanted (C(on_reboot=destroy)), C(guest-shutdown) is a power-off; empty where that was not heard. The states and
        events of libvirt are the same for both. Source: SHUTDOWN and ShutdownCause in qapi/run-state.json of QEMU.
        """
        argv = ["virsh", "--connect", self.uri, "qemu-monitor-event", "--event", "SHUTDOWN", "--loop"]
        process = _cli.spawn(argv, log=log, env={**self.env, "LC_ALL": "C.UTF-8"})

        def why(domain: str) -> str:
            told = re.compile(
                rf"event SHUTDOWN at \S+ for domain '{re.escape(domain)}': .*\"guest\":true,\"reason\":\"([a-z-]+)\""
            )
            deadline = time.monotonic() + _TOLD_WITHIN
            while not (found := told.findall(log.read_text(encoding="utf-8", errors="replace"))):
                if process.poll() is not None or time.monotonic() > deadline:
                    return ""
                time.sleep(0.1)
            return str(found[-1])

        try:
            yield why
        finally:
            _cli.end_group(process)

    def screenshot(self, domain: str, target: Path) -> Path | None:
        """The domain's screen as a PNG file (PPM where its QEMU is older than 7.1); None where there is no picture."""
        monitor = ["qemu-monitor-command", "--hmp", domain, f"screendump {target.with_suffix('.png')} -f png"]
        for suffix, words in ((".png", monitor), (".ppm", ["screenshot", domain, str(target.with_suffix(".ppm"))])):
            with contextlib.suppress(FactoryError):
                self.virsh(*words)
            picture = target.with_suffix(suffix)
            if picture.exists() and picture.stat().st_size:
                return picture
        return None

    def reap(self, domain: str) -> None:
        """End and undefine a domain of ours, with its NVRAM; no error where it is not there."""
        if not domain.startswith("cloudimg-"):
            raise FactoryError(f"the domain {domain!r} is not ours to touch", where=self.uri)
        self.virsh("destroy", domain, check=False)
        for option in (["--nvram", "--snapshots-metadata"], ["--nvram"], []):
            if self.virsh("undefine", domain, *option, check=False).rc == 0 or not self.exists(domain):
                return


def session_argv(runtime: Path, accelerator: str, *, root: bool, keep: bool = False) -> list[str]:
    """The command line of the private session.

    As root, libvirtd is told to be an ordinary user whose files are root's (a user namespace with one user), so that it
    serves C(qemu:///session) and QEMU keeps the rights of the one who builds.
    """
    argv = ["bwrap", "--unshare-user", "--unshare-pid", "--dev-bind", "/", "/", "--proc", "/proc"]
    argv += [] if keep else ["--die-with-parent"]
    argv += ["--uid", _UNPRIVILEGED_ID, "--gid", _UNPRIVILEGED_ID] if root else []
    argv += ["--bind", "/dev/null", "/dev/kvm"] if accelerator != "kvm" and Path("/dev/kvm").exists() else []
    for name, value in _environment(runtime, accelerator).items():
        argv += ["--setenv", name, value]
    return [*argv, "--unsetenv", "DBUS_SESSION_BUS_ADDRESS", _cli.require("libvirtd", "libvirt-daemon")]


def _environment(runtime: Path, accelerator: str) -> dict[str, str]:
    names = {"XDG_RUNTIME_DIR": "run", "XDG_CONFIG_HOME": "config", "XDG_DATA_HOME": "data"}
    # what libvirt learns about each QEMU takes seconds and stays true: that cache outlives the session
    cache = _accel.cache_directory() / f"libvirt-{accelerator}"
    folders = {name: str(runtime / folder) for name, folder in names.items()}
    return {"HOME": str(runtime), **folders, "XDG_CACHE_HOME": str(cache)}


def _remove_abandoned(prefix: str) -> None:
    """Remove the runtime directories of sessions whose process was killed (the session itself died with it)."""
    for runtime in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        owner = Owner.load(read_json(runtime / _OWNER)) if runtime.stat().st_uid == os.geteuid() else None
        if owner and not owner.alive():
            shutil.rmtree(runtime, ignore_errors=True)


class PrivateSession:
    """Starts libvirtd for one job; a context manager that gives a :class:`Libvirt`.

    :param name: what it is for; its runtime directory is named so.
    :param keep: let it outlive this process; :meth:`leave` then leaves it running.
    """

    def __init__(self, name: str, accelerator: str, log: Path, *, keep: bool = False) -> None:
        self.accelerator = accelerator
        self.log = log
        self.keep = keep
        self.left = False
        self.pid = 0
        self._process: subprocess.Popen[bytes] | None = None
        # not below the workspace: the path of a Unix socket may have 107 bytes at most
        prefix = f"{name[:_NAME_LENGTH]}-"
        _remove_abandoned(prefix)
        self.runtime = Path(tempfile.mkdtemp(prefix=prefix))
        self._belongs_to(Owner.of())

    def __enter__(self) -> Libvirt:
        try:
            return self._start()
        except BaseException:
            self.__exit__()
            raise

    def _start(self) -> Libvirt:
        _cli.require("bwrap", "bubblewrap")
        settings = self.runtime / "config" / "libvirt"
        settings.mkdir(parents=True)
        # no virtlogd: QEMU itself writes the log of the serial console
        (settings / "qemu.conf").write_text('stdio_handler = "file"\n', encoding="utf-8")
        for folder in ("run", "data"):
            (self.runtime / folder).mkdir(mode=0o700)
        argv = session_argv(self.runtime, self.accelerator, root=os.geteuid() == 0, keep=self.keep)
        self._process = _cli.spawn(argv, log=self.log, detached=self.keep)
        self.pid = self._process.pid
        socket = self.runtime / "run" / "libvirt" / "libvirt-sock"
        session = Libvirt(f"qemu+unix:///session?socket={socket}", _environment(self.runtime, self.accelerator))
        deadline = time.monotonic() + _START_TIMEOUT
        while not (socket.exists() and session.virsh("version", check=False).rc == 0):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise FactoryError(
                    f"the private libvirt session did not start: {_cli.tail(self.log.read_text(errors='replace'), 2)}",
                    where="libvirtd",
                    mend="allow user namespaces (sysctl user.max_user_namespaces), or set base_vm_uri to qemu:///system",
                )
            time.sleep(0.1)
        return session

    def _belongs_to(self, owner: Owner) -> None:
        write_json(self.runtime / _OWNER, owner.dump())

    def leave(self) -> str:
        """Let the session stay when the block ends (only with ``keep``); returns the command that removes it."""
        self.left = self.keep
        self._belongs_to(Owner.of(self.pid))
        return f"kill -9 -- -{self.pid}; rm -r {self.runtime}"

    def __exit__(self, *_exc: object) -> None:
        if self.left:
            return
        if self._process:
            _cli.end_group(self._process)
        shutil.rmtree(self.runtime, ignore_errors=True)


@contextlib.contextmanager
def connect(
    uri: str, name: str, accelerator: str, log: Path, *, keep: bool = False
) -> t.Iterator[tuple[Libvirt, PrivateSession | None]]:
    """A libvirt to install in: a private session for :data:`PRIVATE`, else the one that ``uri`` names."""
    if uri == PRIVATE:
        session = PrivateSession(name, accelerator, log, keep=keep)
        with session as libvirt:
            yield libvirt, session
        return
    libvirt = Libvirt(uri)
    done = libvirt.virsh("version", check=False)
    if done.rc != 0:
        raise FactoryError(
            f"cannot be reached: {_cli.tail(done.stderr, 2)}",
            where=uri,
            key="base_vm_uri",
            mend="start libvirtd there, or leave base_vm_uri at 'private'",
        )
    yield libvirt, None
