# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""A layer's disk as a running machine, into which Ansible gets by ssh as root.

The key comes in through SMBIOS, as a credential for systemd (252 or newer) in the guest, which makes root's
authorized_keys of it; a host key comes the same way where the image has none, and so does what lets root in where the image is
hardened. cloud-init, where there is one, gets a seed by
which it brings up the network and does nothing else. :func:`stop_guest` removes all of this again.

The machine lives longer than the module that starts it: a process of its own holds it, and ends it when its owner dies.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import os
import shlex
import signal
import time
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli, _machine, _seed, _ssh, _state
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._owner import Owner, forsake

_USER = "root"
_HOST_KEY = "/etc/ssh/ssh_host_ed25519_key"
_SSHD = "/etc/ssh/sshd_config.d/00-cloudimg-build.conf"
_SSHD_TEXT = f"Match Address {_machine.GATEWAY}\n    PermitRootLogin prohibit-password\n    PubkeyAuthentication yes\n"
"""For our own connections only: whatever else asks sshd what it does is told what the image says."""
_LOOK_EVERY = 0.5
_CLEAN_SECONDS = 600.0
_END_SECONDS = 15.0

# All of cloud-init but the network, which it brings up before it reads this.
_IDLE = {
    "users": [],
    "ssh_deletekeys": False,
    "growpart": {"mode": "off"},
    "resize_rootfs": False,
    "cloud_init_modules": [],
    "cloud_config_modules": [],
    "cloud_final_modules": [],
}

# What it removes was made by this boot; what has another content than ours is not ours.
_CLEAN = r"""
set -e
PATH=$PATH:/usr/sbin:/sbin
keys=/root/.ssh/authorized_keys
if [ -e $keys ]; then
    grep -vxF PUBLIC_KEY $keys > $keys.new || true
    if [ -s $keys.new ]; then cat $keys.new > $keys; else rm -f $keys; fi
    rm -f $keys.new
fi
rmdir /root/.ssh 2>/dev/null || true
rm -f SSHD_CONFIG
if [ "$(sha256sum < HOST_KEY 2>/dev/null)" = 'HOST_KEY_DIGEST  -' ]; then rm -f HOST_KEY HOST_KEY.pub; fi
if [ -e /run/cloud-init/result.json ] && command -v cloud-init >/dev/null; then
    cloud-init clean --logs
    find /etc/netplan /etc/network/interfaces.d /etc/systemd/network /etc/NetworkManager/system-connections \
        -name '*cloud-init*' -newer /run/cloud-init/enabled -type f -exec rm -f {} + 2>/dev/null || true
fi
fstrim -av
sync
echo cleaned
# in the same breath, since there will be no other login
systemctl --no-block poweroff || poweroff
"""


@dataclasses.dataclass(frozen=True)
class GuestAccess:
    """How to get into a running guest; it survives as JSON.

    :ivar supervisor: the process that holds the machine.
    :ivar qemu: the machine's.
    :ivar runtime: the directory with the keys.
    """

    host: str
    port: int
    user: str
    key: str
    known_hosts: str
    runtime: str
    console: str
    supervisor: Owner
    qemu: Owner

    def dump(self) -> dict[str, t.Any]:
        """For JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def load(cls, data: t.Mapping[str, t.Any]) -> GuestAccess:
        """The inverse of :meth:`dump`."""
        owners = {name: Owner(**data[name]) for name in ("supervisor", "qemu")}
        return cls(**{**data, **owners})

    @property
    def ssh(self) -> _ssh.Access:
        """For :mod:`_ssh`."""
        return _ssh.Access(self.host, self.port, self.user, Path(self.key), Path(self.known_hosts))

    def variables(self) -> dict[str, t.Any]:
        """The variables by which Ansible, on the same machine, connects."""
        options = " ".join(shlex.quote(f"-o{name}={value}") for name, value in sorted(self.ssh.options().items()))
        return {
            "ansible_connection": "ansible.builtin.ssh",
            "ansible_host": self.host,
            "ansible_port": self.port,
            "ansible_user": self.user,
            "ansible_ssh_private_key_file": self.key,
            "ansible_ssh_common_args": f"-F none {options}",
            "ansible_become": False,
        }


def start_guest(
    disk: Path,
    runtime: Path,
    accelerator: str,
    *,
    name: str,
    owner: Owner | None,
    console: Path,
    firmware: str = "bios",
    cpus: int = 2,
    memory: int = 2048,
    timeout: float = 900.0,
    tick: _ssh.Tick = lambda: None,
) -> GuestAccess:
    """Boot the qcow2 ``disk``, writing to it, and return when root can log in.

    :param runtime: a directory to be made for the keys of the moment; it goes when the machine does.
    :param name: of the machine, for who looks at the processes.
    :param owner: the process with whose end the machine ends, too; None to let it run until told otherwise.
    :param console: the file that the serial console goes to.
    :param tick: called about once a second; what it raises ends the machine.
    :raises FactoryError: it did not boot, or did not let us in; then nothing is left.
    """
    with _state.explain_os_errors(runtime):
        runtime.mkdir(mode=0o700, parents=True)
    try:
        spec = _prepare(disk, runtime, accelerator, name, firmware, cpus, memory)
        answer = _supervise(spec, runtime.absolute(), console.absolute(), owner)
    except BaseException:
        _state.remove(runtime)
        raise
    access = GuestAccess(
        host=_machine.LOOPBACK,
        port=answer["port"],
        user=_USER,
        key=str(runtime.absolute() / "id"),
        known_hosts=str(runtime.absolute() / "known_hosts"),
        runtime=str(runtime.absolute()),
        console=str(console.absolute()),
        supervisor=Owner(**answer["supervisor"]),
        qemu=Owner(**answer["qemu"]),
    )
    try:
        _log_in(access, timeout, tick)
    except BaseException:
        kill_guest(access)
        raise
    return access


def stop_guest(access: GuestAccess, *, timeout: float = 300.0) -> None:
    """Remove what let us in, free what is not used, and switch the guest off; the disk is then fit to be a layer.

    :raises FactoryError: it could not; then the machine is ended all the same, and the disk is fit for nothing.
    """
    try:
        # the connection may break before the answer
        done = _ssh.run(access.ssh, _clean_command(Path(access.runtime)), timeout=_CLEAN_SECONDS, check=False)
        if "cleaned" not in done.stdout.split():
            raise FactoryError(f"the guest could not be cleaned: {_cli.tail(done.stderr or done.stdout, 2)}")
        deadline = time.monotonic() + timeout
        while access.qemu.alive():
            if time.monotonic() > deadline:
                raise FactoryError(
                    f"the guest did not switch itself off within {timeout:.0f} s",
                    mend=f"see what stops it in {access.console}",
                )
            time.sleep(_LOOK_EVERY)
    finally:
        kill_guest(access)


def kill_guest(access: GuestAccess) -> None:
    """End the machine as it is, and remove its directory; no error where there is none any more."""
    for process, sig in ((access.supervisor, signal.SIGTERM), (access.supervisor, signal.SIGKILL)):
        with contextlib.suppress(ProcessLookupError):
            if process.alive():
                os.kill(process.pid, sig)
        deadline = time.monotonic() + _END_SECONDS
        while (process.alive() or access.qemu.alive()) and time.monotonic() < deadline:
            time.sleep(0.1)
    if access.qemu.alive():
        raise FactoryError(f"QEMU (process {access.qemu.pid}) does not end", where=access.runtime)
    _state.remove(Path(access.runtime))


def _prepare(
    disk: Path, runtime: Path, accelerator: str, name: str, firmware: str, cpus: int, memory: int
) -> _machine.Spec:
    runtime = runtime.absolute()
    public = _ssh.make_key(runtime / "id")
    _ssh.make_key(runtime / "host")
    _seed.make_seed(runtime / "seed.iso", _seed.cloud_config(_IDLE), {"instance-id": f"build-{os.getpid()}"})
    # «f» makes a file only where there is none, «~» decodes it: tmpfiles.d(5)
    files = {_HOST_KEY: (runtime / "host").read_bytes(), _SSHD: _SSHD_TEXT.encode("ascii")}
    extra = "".join(f"f~ {path} 0600 root root - {base64.b64encode(data).decode()}\n" for path, data in files.items())
    return _machine.Spec(
        name=name,
        disk=disk.absolute(),
        accelerator=accelerator,
        firmware=firmware,
        cpus=cpus,
        memory=memory,
        seed=runtime / "seed.iso",
        credentials={
            "ssh.authorized_keys.root": f"{public}\n".encode("ascii"),
            "tmpfiles.extra": extra.encode("ascii"),
        },
    )


def _clean_command(runtime: Path) -> str:
    public = (runtime / "id.pub").read_text(encoding="ascii").strip()
    digest = hashlib.sha256((runtime / "host").read_bytes()).hexdigest()
    script = _CLEAN.replace("PUBLIC_KEY", shlex.quote(public))
    return script.replace("HOST_KEY_DIGEST", digest).replace("HOST_KEY", _HOST_KEY).replace("SSHD_CONFIG", _SSHD)


def _log_in(access: GuestAccess, timeout: float, tick: _ssh.Tick) -> None:
    began = time.monotonic()
    watch = _machine.Watch(Path(access.console), Path(access.runtime, _machine.LOG), access.qemu.alive)

    def left() -> float:
        return timeout - (time.monotonic() - began)

    def look(_line: str = "") -> None:
        watch.check()
        tick()

    watch.wait_ssh(access.port, timeout, tick)
    while True:
        done = _ssh.run(access.ssh, "true", timeout=120, check=False, tick=look)
        if done.rc == 0:
            return
        if left() < 0 or "Permission denied" in done.stderr:
            raise FactoryError(
                f"root cannot log in to the guest by ssh: {_cli.tail(done.stderr, 1)}",
                key="image_connection",
                mend="the image needs systemd 252 or newer, an sshd that lets root in by key, and no authorized_keys "
                "of root's; else use another image_connection",
            )
        time.sleep(1)


def _supervise(spec: _machine.Spec, runtime: Path, console: Path, owner: Owner | None) -> dict[str, t.Any]:
    """Have a process of its own start the machine and hold it; returns when it runs."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _detach(writer, lambda: _hold(spec, runtime, console, owner, writer))
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = json.loads(pipe.read() or b'{"error": {"problem": "the process that holds the machine has died"}}')
    os.waitpid(child, 0)
    if "error" in answer:
        raise FactoryError(**answer["error"])
    return dict(answer)


def _detach(writer: int, work: t.Callable[[], None]) -> t.NoReturn:
    """In a forked child: do the work as a process that belongs to nobody, with nothing open but ``writer``."""
    try:
        forsake(writer)
        if os.fork() == 0:
            work()
    finally:
        os._exit(0)


def _hold(spec: _machine.Spec, runtime: Path, console: Path, owner: Owner | None, writer: int) -> None:
    def end(_signal: int, _frame: object) -> None:
        raise SystemExit

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with _machine.Machine(spec, runtime, console) as machine:
            facts = {"port": machine.port, "qemu": Owner.of(machine.pid).dump(), "supervisor": Owner.of().dump()}
            _tell(writer, facts)
            while machine.alive() and (owner is None or not owner.local() or owner.alive()):
                time.sleep(_LOOK_EVERY)
    except FactoryError as exc:
        _tell(writer, {"error": {name: getattr(exc, name) for name in ("problem", "where", "key", "mend")}})
    except Exception as exc:
        _tell(writer, {"error": {"problem": f"{type(exc).__name__}: {exc}"}})
    finally:
        _state.remove(runtime)


def _tell(writer: int, facts: t.Mapping[str, t.Any]) -> None:
    with contextlib.suppress(OSError):
        os.write(writer, json.dumps(facts).encode())
        os.close(writer)
