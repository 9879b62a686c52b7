# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The root file system of a qcow2 overlay as a directory in which commands can be run, without booting it.

The disk is unpacked into a raw file with holes, which is mounted through a loop device and so runs at native speed; in the
end what differs from the disk below becomes the overlay (see :mod:`_overlay`). It is not done through
qemu-storage-daemon's FUSE export, which was seen to hang and to corrupt.

All of this happens in the private mount and PID namespaces of :mod:`_supervisor`: whatever ends that process then also
ends all processes in the tree, unmounts it, and frees the loop device.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import time
import typing as t
from pathlib import Path, PurePosixPath

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli, _os_release, _overlay, _partitions
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors

_SECONDS = 300.0
_OPTIONS = {
    # What lazy initialisation would write belongs to the first boot, not into the layer. Nothing needs to reach the
    # builder's disk before the overlay is written: without barriers no fsync inside waits for it.
    "ext4": "noatime,noinit_itable,barrier=0",
    "xfs": "noatime,nouuid",
}
_NODES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
_SELINUX = "security.selinux"
_POLICY = "usr/sbin/policy-rc.d"
_NO_SERVICES = "#!/bin/sh\n# cloudimg.factory: no service starts while the image is made.\nexit 101\n"
_RESOLV = "etc/resolv.conf"
_AGENTS = frozenset({"gpg-agent", "dirmngr", "keyboxd", "scdaemon"})
"""What gpg leaves running by itself, whoever calls it: no mistake of a role's."""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Tree:
    """The system on ``overlay``, mounted at ``home/root`` between :meth:`attach` and :meth:`detach`."""

    def __init__(self, home: Path, overlay: Path) -> None:
        self.root = home / "root"
        self.notes: list[str] = []
        self._disk = home / "disk"
        self._overlay = overlay
        self._volume: _partitions.Volume | None = None
        self._trimmable: list[Path] = []
        self._before: dict[str, bytes | str | None] = {}
        self._placed: dict[str, tuple[int, int]] = {}

    def attach(self) -> None:
        """Mount it, with all that makes a package manager work in it."""
        with explain_os_errors(self._disk):
            _overlay.unpack(self._overlay, self._disk)
        found = _partitions.volumes(self._disk)
        self._volume = _partitions.root_of(found, self._overlay)
        source = self._mount_volume(self._volume, self.root)
        if not (self.root / "etc").is_dir() or not os.path.lexists(self.root / "bin/sh"):
            raise FactoryError(
                "the largest file system has no /etc and /bin/sh, so that it is no root file system",
                where=str(self._overlay),
                mend="let the installation end in one bootable system",
            )
        fstab = self._read("etc/fstab")
        for volume, point in _partitions.mounts(fstab, found, self._volume):
            self._mount_volume(volume, self._inside(point))
        self._mount_kernel_views(source, self._volume.uuid)
        self._place(_POLICY, _NO_SERVICES, 0o755)
        with contextlib.suppress(OSError):
            self._place(_RESOLV, Path("/etc/resolv.conf").read_text(encoding="utf-8", errors="replace"), 0o644)

    def detach(self, *, keep: bool) -> None:
        """Unmount it; with ``keep`` so that the overlay is fit to be a layer: nothing left running, trimmed, checked.

        :raises FactoryError: with ``keep``, when it is not; it is unmounted all the same.
        """
        wrong: FactoryError | None = None
        left = self._end_processes(grace=2.0 if keep else 0.0)
        if keep and left:
            wrong = FactoryError(
                f"a process was left running in the offline tree: {', '.join(left)}",
                where=str(self.root),
                mend="have the role or script that started it stop it at its end, or only enable its service",
            )
        if keep and not wrong:
            try:
                self._unplace()
                self._trim()
            except FactoryError as exc:
                wrong = exc
        for point in reversed(self._points()):
            self._unmount(point)
        if keep and not wrong:
            wrong = self._check()
        if wrong:
            raise wrong
        if keep:
            _overlay.rewrite(self._overlay, self._disk)

    def packages(self) -> dict[str, t.Any]:
        """What is installed: ``{packages: [{name, version, arch}, …], os_release: {…}}``."""
        if (self.root / "usr/bin/dpkg-query").exists():
            form = "${db:Status-Status}\\t${Package}\\t${Version}\\t${Architecture}\\n"
            lines = self._chroot("dpkg-query", "--show", f"--showformat={form}")
            rows = [line.split("\t")[1:] for line in lines if line.startswith("installed\t")]
        else:
            rows = [line.split("\t") for line in self._chroot("rpm", "-qa", "--qf", "%{NAME}\\t%{EVR}\\t%{ARCH}\\n")]
        packages = [dict(zip(("name", "version", "arch"), row)) for row in sorted(rows)]
        return {"packages": packages, "os_release": _os_release.parse(self._read("etc/os-release"))}

    def matches(self, patterns: t.Iterable[str]) -> list[str]:
        """The files (with something in them) that match shell patterns of absolute paths in the tree."""
        found = set()
        for pattern in patterns:
            for path in self.root.glob(pattern.lstrip("/")):
                if path.is_symlink() or (path.is_file() and path.stat().st_size):
                    found.add(f"/{path.relative_to(self.root)}")
        return sorted(found)

    def _mount_volume(self, volume: _partitions.Volume, point: Path) -> str:
        """Mount a volume (the loop device frees itself when it is unmounted); returns the loop device."""
        ensure_loop_node()
        options = _OPTIONS.get(volume.fstype, "noatime")
        window = f"loop,offset={volume.offset},sizelimit={volume.size}"
        point.mkdir(parents=True, exist_ok=True)
        argv: list[str | Path] = ["mount", "-t", volume.fstype, "-o", f"{window},{options}", self._disk, point]
        try:
            _cli.run(argv, timeout=_SECONDS)
        except _cli.ToolError:
            if volume.fstype != "vfat":
                raise
            # An EFI system partition is the boot loader's. Better no access to it than files lost below it.
            self.notes.append(
                f"/{point.relative_to(self.root)} cannot be written to: the builder's kernel knows no vfat"
            )
            self._mount("tmpfs", point, "ro,mode=755")
            return ""
        if volume.fstype in _partitions.FILE_SYSTEMS:
            self._trimmable.append(point)
        return next(entry.source for entry in mount_table() if entry.point == str(point))

    def _mount_kernel_views(self, source: str, uuid: str) -> None:
        for name in ("proc", "sys", "dev", "run"):
            self._inside(PurePosixPath("/", name)).mkdir(exist_ok=True)
        self._mount("proc", self.root / "proc", "nosuid,noexec,nodev")
        # What a package or role does with sysctl is meant for the image, never for the builder.
        _cli.run(["mount", "--bind", self.root / "proc/sys", self.root / "proc/sys"], timeout=_SECONDS)
        _cli.run(["mount", "-o", "remount,bind,ro", self.root / "proc/sys"], timeout=_SECONDS)
        self._mount("sysfs", self.root / "sys", "ro,nosuid,noexec,nodev")
        self._mount("tmpfs", self.root / "run", "mode=755,nosuid,nodev")
        dev = self.root / "dev"
        self._mount("tmpfs", dev, "mode=755,nosuid")
        for name in ("pts", "shm", "disk/by-uuid"):
            (dev / name).mkdir(parents=True)
        self._mount("devpts", dev / "pts", "newinstance,gid=5,mode=620,ptmxmode=666,nosuid,noexec")
        self._mount("tmpfs", dev / "shm", "mode=1777,nosuid,nodev")
        for name, (major, minor) in _NODES.items():
            os.mknod(dev / name, stat.S_IFCHR, os.makedev(major, minor))
            (dev / name).chmod(0o666)
        for name, target in _LINKS.items():
            (dev / name).symlink_to(target)
        # grub-mkconfig leaves out all kernels when the root is on a device called /dev/loop…, takes any name that looks
        # like a partition apart, and names the root by UUID only where it finds it below /dev/disk.
        os.mknod(dev / "root-volume", stat.S_IFBLK | 0o660, Path(source).stat().st_rdev)
        (dev / Path(source).name).symlink_to("root-volume")
        (dev / "disk/by-uuid" / uuid).symlink_to("../../root-volume")

    def _mount(self, fstype: str, point: Path, options: str) -> None:
        _cli.run(["mount", "-t", fstype, "-o", options, fstype, point], timeout=_SECONDS)

    def _inside(self, path: PurePosixPath) -> Path:
        """A directory of the tree; refuses a way that leads through symbolic links, which would end outside of it."""
        inside = self.root
        for part in path.parts[1:]:
            inside /= part
            if inside.is_symlink():
                raise FactoryError(f"/{inside.relative_to(self.root)} is a symbolic link", where=str(self._overlay))
        return inside

    def _read(self, name: str) -> str:
        done = _cli.run(["chroot", self.root, "cat", f"/{name}"], timeout=_SECONDS, check=False)
        return done.stdout

    def _chroot(self, *argv: str) -> list[str]:
        env = {"PATH": PATH, "HOME": "/root"}
        return _cli.run(["chroot", self.root, *argv], timeout=_SECONDS, env=env).stdout.splitlines()

    def _place(self, name: str, text: str, mode: int) -> None:
        """Put a file there for the time of the work, remembering what it replaces."""
        path = self._inside(PurePosixPath("/", name).parent) / PurePosixPath(name).name
        if not path.parent.is_dir():
            return
        self._before[name] = None
        if path.is_symlink():
            self._before[name] = os.readlink(path)
        elif path.exists():
            self._before[name] = path.read_bytes()
        path.unlink(missing_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
        status = path.lstat()
        self._placed[name] = (status.st_ino, status.st_mtime_ns)

    def _unplace(self) -> None:
        """Put back what :meth:`_place` replaced, but for what the work itself has put there.

        What it wrote into our file went where it would have gone without us: into the file that was there, or, by way of a
        symbolic link (which leads into /run), nowhere.
        """
        for name, (inode, modified) in self._placed.items():
            path = self.root / name
            with explain_os_errors(path), contextlib.suppress(FileNotFoundError):
                status = path.lstat()
                before = self._before[name]
                written = status.st_mtime_ns != modified and not isinstance(before, str)
                if status.st_ino != inode or written:
                    continue
                label = _label(path)
                path.unlink()
                if isinstance(before, str):
                    path.symlink_to(before)
                elif before is not None:
                    path.write_bytes(before)
                    path.chmod(stat.S_IMODE(status.st_mode))
                if label and before is not None:
                    os.setxattr(path, _SELINUX, label, follow_symlinks=False)

    def _end_processes(self, grace: float) -> list[str]:
        """End what still runs in the tree (and its PID namespace); returns the names of those that had no reason to."""
        deadline = time.monotonic() + grace
        while self._processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        left = self._processes()
        for _attempt in range(20):
            for pid in self._processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            reap()
            if not self._processes():
                break
            time.sleep(0.1)
        return [f"{name} (process {pid})" for pid, name in sorted(left.items()) if name not in _AGENTS]

    def _processes(self) -> dict[int, str]:
        """What runs in the tree's PID namespace, by its numbers there, except what belongs to us."""
        found = {}
        proc = self.root / "proc"
        for entry in proc.iterdir() if os.path.ismount(proc) else ():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    fields = (entry / "stat").read_text(encoding="utf-8", errors="replace")
                    if fields.rpartition(")")[2].split()[0] not in ("Z", "X"):
                        found[int(entry.name)] = fields.partition("(")[2].rpartition(")")[0]
        return found

    def _trim(self) -> None:
        """Give back the blocks that are free, so that they are holes in the disk."""
        for point in self._trimmable:
            # ext4 frees the blocks of deleted files only when its journal is committed
            _cli.run(["sync", "--file-system", point], timeout=_SECONDS)
            _cli.run(["fstrim", point], timeout=_SECONDS)

    def _points(self) -> list[Path]:
        below = str(self.root)
        return [Path(entry.point) for entry in mount_table() if f"{entry.point}/".startswith(f"{below}/")]

    def _unmount(self, point: Path) -> None:
        for attempt in range(5):
            done = _cli.run(["umount", point], timeout=_SECONDS, check=False)
            if done.rc == 0:
                return
            time.sleep(0.2 * (attempt + 1))
        _cli.run(["umount", "--lazy", point], timeout=_SECONDS, check=False)
        raise FactoryError(f"cannot be unmounted: {_cli.tail(done.stderr)}", where=str(point))

    def _check(self) -> FactoryError | None:
        """Check the root file system on the disk itself."""
        if self._volume is None or self._volume.fstype not in ("ext2", "ext3", "ext4"):
            return None
        done = _cli.run(["e2fsck", "-fn", f"{self._disk}?offset={self._volume.offset}"], timeout=_SECONDS, check=False)
        if done.rc == 0:
            return None
        return FactoryError(
            f"the file system is not clean after the work: {_cli.tail(done.stdout + done.stderr)}",
            where=str(self._overlay),
            mend="look for storage errors in the builder's kernel log, then run this again",
        )


class Mount(t.NamedTuple):
    point: str
    source: str


def _label(path: Path) -> bytes | None:
    """What SELinux calls a file, if the stage has labelled it."""
    try:
        return os.getxattr(path, _SELINUX, follow_symlinks=False)
    except OSError:
        return None


def mount_table() -> list[Mount]:
    """This namespace's mounts, in the order in which they were made."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split()
        rest = fields[fields.index("-") + 1 :]
        found.append(Mount(_unescape(fields[4]), _unescape(rest[1])))
    return found


def _unescape(name: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        name = name.replace(code, char)
    return name


def ensure_loop_node() -> None:
    """Make the node of the next free loop device, which a container's /dev may lack."""
    done = _cli.run(["losetup", "--find"], timeout=30, check=False)
    node = Path(done.stdout.strip() or "/dev/loop0")
    if done.rc or not node.name[4:].isdigit():
        raise FactoryError(
            f"no loop device is to be had: {_cli.tail(done.stderr)}",
            where="losetup",
            mend="load the kernel module loop, or set image_connection to ssh",
        )
    with contextlib.suppress(FileExistsError):
        os.mknod(node, stat.S_IFBLK | 0o660, os.makedev(7, int(node.name[4:])))


def reap() -> None:
    """Take notice of ended processes that nobody else waits for (we are process 1 of the tree)."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
