#!/usr/bin/env python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long it takes to compact and compress a dirty disk, and how large that gets; beside virt-sparsify and qemu-img.

Makes a disk of 8 GiB with one ext4: 1.6 GiB of this machine's own /usr, and 2.4 GiB that were written and deleted again, one
half of the same kind and one half random. Each way makes a compressed qcow2 of it, from a copy of its own that is not counted.
The result must be sound and hold the same live files. Prints one table. With --sizes it prints another one instead: the same live
and deleted data on disks of several sizes, here only.

Run it as ``.venv/bin/python benchmarks/compact.py`` after ``make test`` has set up ``.venv``. virt-sparsify is in the package
guestfs-tools of Debian, and wants a kernel of the distribution (linux-image-cloud-amd64); without it, its row is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import typing as t
from pathlib import Path

MIB = 1 << 20
AT = MIB
_TABLE = "label: gpt\nstart=2048, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n"
_OURS = """
import shutil, sys
from pathlib import Path
from ansible.utils.collection_loader._collection_finder import _AnsibleCollectionFinder
_AnsibleCollectionFinder(paths=sys.argv[3].split(":"))._install()
from ansible_collections.cloudimg.factory.plugins.module_utils import _compact, _export, _qemu_img
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
disk, target = Path(sys.argv[1]), Path(sys.argv[2])
_compact.compact(_compact.Order(disk), Progress("compact"))
"""
_EXPORTED = (
    _OURS
    + """
overlay = disk.with_name("export.qcow2")
_qemu_img.create(overlay, None, backing=disk, backing_fmt="raw")
system = {"distribution": "debian", "version": "12", "arch": "x86_64"}
folder = target.with_name("export")
request = _export.Request("x", "1", folder, overlay, source_digest="0" * 64, definition={"image_os": system})
made = _export.export(request, Progress("export")).extra["artifacts"][0]["path"]
Path(made).rename(target)
overlay.unlink()
shutil.rmtree(folder)
"""
)
_CONVERTED = (
    _OURS
    + """
_qemu_img.convert(disk, target, source_fmt="raw", target_fmt="qcow2", compressed="zstd", cluster_size=1 << 20)
"""
)

_ACCELERATOR = """
import sys
from ansible.utils.collection_loader._collection_finder import _AnsibleCollectionFinder
_AnsibleCollectionFinder(paths=sys.argv[1].split(":"))._install()
from ansible_collections.cloudimg.factory.plugins.module_utils import _accel
print(_accel.detect())
"""

Way = t.Callable[[Path, Path], "list[str]"]


def ours(disk: Path, target: Path) -> list[str]:
    """What disk_compact does, then what image_export does: it also compares the result with its source, and hashes it."""
    return [sys.executable, "-c", _EXPORTED, str(disk), str(target), os.environ.get("ANSIBLE_COLLECTIONS_PATH", "")]


def ours_unverified(disk: Path, target: Path) -> list[str]:
    """What disk_compact does, then qemu-img with zstd; as the others, it compares and hashes nothing."""
    return [sys.executable, "-c", _CONVERTED, str(disk), str(target), os.environ.get("ANSIBLE_COLLECTIONS_PATH", "")]


def virt_sparsify(disk: Path, target: Path) -> list[str]:
    """The same by libguestfs."""
    return ["virt-sparsify", "--quiet", "--compress", "--convert", "qcow2", "--format", "raw", str(disk), str(target)]


def qemu_img(disk: Path, target: Path) -> list[str]:
    """What most tools do, without compacting."""
    return ["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", str(disk), str(target)]


def qemu_img_zstd(disk: Path, target: Path) -> list[str]:
    """The same by the faster compression."""
    return [
        "qemu-img",
        "convert",
        "-c",
        "-f",
        "raw",
        "-O",
        "qcow2",
        "-o",
        "compression_type=zstd",
        str(disk),
        str(target),
    ]


def run(*argv: str | Path, text: str | None = None, ok: t.Container[int] = (0,)) -> str:
    """Run a tool; returns what it said."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    words = [shutil.which(str(argv[0]), path=path) or str(argv[0]), *map(str, argv[1:])]
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    if done.returncode not in ok:
        raise SystemExit(f"{argv[0]} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def gather(target: Path, wanted: int) -> None:
    """Copy regular files of /usr, larger and smaller ones as they come, until they are so many bytes."""
    have = 0
    for folder, folders, names in os.walk("/usr"):
        folders.sort()
        for name in sorted(names):
            source = Path(folder, name)
            if source.is_symlink() or not source.is_file():
                continue
            place = target / source.relative_to("/usr")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, place)
            have += source.stat().st_size
            if have >= wanted:
                return


def make(folder: Path, size: int, live: int, deleted: int) -> tuple[Path, dict[str, str]]:
    """The dirty disk, and the digests of its live files by their names."""
    tree, disk = folder / "tree", folder / "dirty.raw"
    tree.mkdir()
    gather(tree, live * MIB)
    with disk.open("wb") as stream:
        stream.truncate(size * MIB)
    run("sfdisk", "-q", disk, text=_TABLE)
    run("mkfs.ext4", "-q", "-F", "-d", tree, "-E", f"offset={AT}", disk, f"{(size - 2) << 10}k")
    garbage = folder / "garbage"
    rounds = 8
    for number in range(rounds):
        with garbage.open("wb") as stream:
            left = deleted * MIB // rounds // 2
            while left > 0:
                left -= stream.write(os.urandom(min(left, 16 * MIB)))
            left = deleted * MIB // rounds // 2
            files = (path for path in sorted(tree.rglob("*"))[number::rounds] if path.is_file())
            while left > 0:
                data = next(files, None)
                if data is None:
                    files = (path for path in sorted(tree.rglob("*")) if path.is_file())
                    continue
                left -= stream.write(data.read_bytes()[:left])
        run("debugfs", "-w", "-R", f"write {garbage} garbage-{number}", f"{disk}?offset={AT}")
    for number in range(rounds):
        run("debugfs", "-w", "-R", f"rm garbage-{number}", f"{disk}?offset={AT}")
    garbage.unlink()
    run("e2fsck", "-fy", f"{disk}?offset={AT}", ok=(0, 1))
    found = digests(tree)
    shutil.rmtree(tree)
    return disk, found


def digests(tree: Path) -> dict[str, str]:
    """The digest of each file of a tree."""
    files = (path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(tree)): hashlib.blake2b(path.read_bytes()).hexdigest() for path in files}


def holds(result: Path, wanted: dict[str, str]) -> bool:
    """Whether a result is sound and has the same live files."""
    run("qemu-img", "check", "-q", "-f", "qcow2", result)
    with tempfile.TemporaryDirectory(prefix="cloudimg-benchmark-", dir=result.parent) as folder:
        raw, tree = Path(folder, "raw"), Path(folder, "tree")
        run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", result, raw)
        run("e2fsck", "-fn", f"{raw}?offset={AT}")
        tree.mkdir()
        run("debugfs", "-R", f"rdump / {tree}", f"{raw}?offset={AT}")
        found = digests(tree)
    return all(found.get(name) == value for name, value in wanted.items())


def accelerator() -> str:
    """What virtual machines run by here: kvm, or tcg where that exists but runs no guest."""
    argv = [sys.executable, "-c", _ACCELERATOR, os.environ.get("ANSIBLE_COLLECTIONS_PATH", "")]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a way took: seconds, those of the processors, MiB of memory at most; and its result."""

    seconds: float
    cpu: float
    memory: float
    result: Path


def measured(way: Way, disk: Path, limit: float, force: str) -> Measured:
    """What a way takes on a copy of the disk."""
    copy, target = disk.with_name("copy.raw"), disk.with_name("result.qcow2")
    run("cp", "--sparse=always", disk, copy)
    run("sync", copy)
    env = {**os.environ, "LIBGUESTFS_BACKEND": "direct", "TMPDIR": str(disk.parent)}
    if force == "tcg":
        env["LIBGUESTFS_BACKEND_SETTINGS"] = "force_tcg"
    # Its child's usage is that of the way alone, with whatever it starts.
    report = (
        f"import json, resource as r, subprocess, sys; u = subprocess.run(sys.argv[1:], timeout={limit}).returncode; "
    )
    report += (
        "c = r.getrusage(r.RUSAGE_CHILDREN); print(json.dumps([c.ru_utime + c.ru_stime, c.ru_maxrss])); sys.exit(u)"
    )
    began = time.monotonic()
    argv = [sys.executable, "-c", report, *way(copy, target)]
    done = subprocess.run(argv, check=True, capture_output=True, env=env)
    seconds = time.monotonic() - began
    copy.unlink()
    cpu, memory = json.loads(done.stdout.splitlines()[-1])
    return Measured(seconds, cpu, memory / 1024, target)


def sizes(folder: Path, wanted: t.Sequence[int], live: int, deleted: int, limit: float) -> None:
    """Print how much the size of the disk matters."""
    print(f"{live} MiB live, {deleted} MiB deleted; compacted, exported, verified and hashed")
    print(f"{'GiB':>6} {'seconds':>8} {'cpu':>7} {'memory':>7} {'MiB':>7}")
    for size in wanted:
        place = folder / str(size)
        place.mkdir()
        disk, files = make(place, size, live, deleted)
        found = measured(ours, disk, limit, "")
        mib = found.result.stat().st_size / MIB
        sound = "" if holds(found.result, files) else "  DOES NOT HOLD THE SAME"
        print(
            f"{size / 1024:6.0f} {found.seconds:8.1f} {found.cpu:7.1f} {found.memory:7.0f} {mib:7.0f}{sound}",
            flush=True,
        )
        shutil.rmtree(place)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=8192, help="of the disk, in MiB")
    parser.add_argument("--live", type=int, default=1638, help="MiB of live files")
    parser.add_argument("--deleted", type=int, default=2458, help="MiB of deleted files")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds that one way may take")
    parser.add_argument("--folder", type=Path, help="where to work; it takes some 20 GiB")
    parser.add_argument(
        "--sizes", type=int, nargs="+", metavar="MIB", help="of disks to compare, instead of the other ways"
    )
    options = parser.parse_args()
    ways: dict[str, Way] = {
        "disk_compact, image_export": ours,
        "  the same, not verified": ours_unverified,
        "qemu-img convert -c": qemu_img,
        "  the same, zstd": qemu_img_zstd,
        "virt-sparsify --compress": virt_sparsify,
    }
    if not shutil.which("virt-sparsify"):
        del ways["virt-sparsify --compress"]
    with tempfile.TemporaryDirectory(prefix="cloudimg-benchmark-", dir=options.folder) as folder:
        if options.sizes:
            sizes(Path(folder), options.sizes, options.live, options.deleted, options.limit)
            return
        disk, wanted = make(Path(folder), options.size, options.live, options.deleted)
        force = accelerator()
        title = f"{options.size} MiB, {options.live} MiB live in {len(wanted)} files, {options.deleted} MiB deleted"
        print(f"{title}; machines run by {force}")
        print(f"{'':26} {'seconds':>8} {'cpu':>7} {'memory':>7} {'MiB':>7} {'our time':>9} {'our size':>9}")
        floor: tuple[float, int] | None = None
        for name, way in ways.items():
            try:
                found = measured(way, disk, options.limit, force)
            except subprocess.CalledProcessError as exc:
                if b"TimeoutExpired" in exc.stderr:
                    share = floor[0] / options.limit if floor else 0.0
                    print(f"{name:26} {'>' + str(int(options.limit)):>8} {'':>23} {'<' + format(share, '.3f'):>9}")
                    continue
                print(f"{name:26} failed: {exc.stderr.decode(errors='replace').strip().splitlines()[-1:]}")
                continue
            size = found.result.stat().st_size
            floor = floor or (found.seconds, size)
            sound = "" if holds(found.result, wanted) else "  DOES NOT HOLD THE SAME"
            found.result.unlink()
            row = f"{name:26} {found.seconds:8.1f} {found.cpu:7.1f} {found.memory:7.0f} {size / MIB:7.0f}"
            print(f"{row} {floor[0] / found.seconds:9.3f} {floor[1] / size:9.3f}{sound}", flush=True)


if __name__ == "__main__":
    main()
