#!/usr/bin/env python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long exports take, how large the files are, and how much memory it needs; beside the tools that one would use by hand.

DISK is a qcow2 with a system in it, such as an artifact of «make image»; it is only read. Prints one table for each job, every
row with its ratio to the first one, the peer's. Jobs:

clean    one compressed qcow2, against «qemu-img convert -c»
several  qcow2, OVA and raw.zst with four digests of each, against qemu-img, tar, zstd and the *sum tools one after the other
sparse   the same live data on disks of 8, 80 and 800 GiB: seconds, and the most memory that the process held
squashfs the size of the artifact, against «mksquashfs -comp zstd» of the tree in it (needs root, to mount the disk)

Run it as ``.venv/bin/python benchmarks/export.py DISK [JOB …]`` after ``make test`` has set up ``.venv``. Best of --repeat runs.
"""

from __future__ import annotations

import argparse
import contextlib
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

_OURS = """
import json, sys, time
from pathlib import Path
from ansible.utils.collection_loader._collection_finder import _AnsibleCollectionFinder
_AnsibleCollectionFinder(paths=sys.argv[1].split(":"))._install()
from ansible_collections.cloudimg.factory.plugins.module_utils import _disk_source, _parallel, _qcow2_write
from ansible_collections.cloudimg.factory.plugins.module_utils._export import Request, export
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
job = json.loads(sys.argv[2])
source, folder = Path(job["source"]), Path(job["folder"])
began, used = time.monotonic(), time.process_time()
if job["what"] == "write":
    with _disk_source.DiskSource(source, folder / "scratch") as disk, _parallel.pool() as threads:
        options = {"compression": "zstd", "cluster_size": job["cluster_size"], "level": job["level"]}
        _qcow2_write.write(disk, folder / "image-1.qcow2", threads, tick=lambda percent: None, **options)
else:
    definition = {"image_os": {"distribution": "debian", "version": "12", "arch": "x86_64"}}
    request = Request("image", "1", folder, source, "0" * 64, tuple(job["formats"]), definition=definition)
    export(request, Progress("export"))
seconds = time.monotonic() - began
# Not ru_maxrss, which a child inherits from the process that it was forked from.
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
used = time.process_time() - used
print(json.dumps({"seconds": seconds, "cpu": used, "memory": int(peak.split()[1]) * 1024}))
"""


@dataclasses.dataclass
class Row:
    """One way to do a job: its seconds and those of the processor, and the bytes of its main file."""

    name: str
    seconds: float
    cpu: float
    size: int
    memory: int = 0
    same: str = ""


def table(title: str, rows: list[Row]) -> None:
    """Print the rows, each with its ratios to the first."""
    print(f"\n{title} (load {os.getloadavg()[0]:.1f})")
    print(f"{'':44}{'seconds':>9}{'ratio':>7}{'cpu s':>8}{'MB':>9}{'ratio':>8}{'RSS MiB':>9}  bytes")
    peer = rows[0]
    for row in rows:
        ratios = (row.seconds / peer.seconds if peer.seconds else 0, row.size / peer.size if peer.size else 0)
        memory = f"{row.memory / 2**20:9.0f}" if row.memory else f"{'':9}"
        figures = f"{row.seconds:9.2f}{ratios[0]:7.2f}{row.cpu:8.2f}{row.size / 1e6:9.1f}{ratios[1]:8.3f}"
        print(f"{row.name:44}{figures}{memory}  {row.same}", flush=True)


@contextlib.contextmanager
def scratch(root: Path) -> t.Iterator[Path]:
    """An empty directory for one run."""
    with tempfile.TemporaryDirectory(dir=root) as name:
        yield Path(name)


def timed(work: t.Callable[[], t.Any]) -> tuple[float, float]:
    """The seconds of a piece of work, and those of the processor in all the processes that it started."""
    before, began = os.times(), time.monotonic()
    work()
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.monotonic() - began, used


def tool(*argv: str | Path) -> None:
    """Run a tool that has to do its work."""
    subprocess.run([str(word) for word in argv], check=True, stdout=subprocess.DEVNULL)


def ours(job: dict[str, t.Any]) -> dict[str, t.Any]:
    """One run of this collection's code, in a process of its own, for its memory."""
    argv = [sys.executable, "-c", _OURS, os.environ["ANSIBLE_COLLECTIONS_PATH"], json.dumps(job)]
    return dict(json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout))


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


Run = t.Callable[[Path], Path]
"""Makes a file in an empty directory, and tells which."""


def measured(repeat: int, root: Path, *ways: tuple[str, Run]) -> list[Row]:
    """The best of several rounds, in each of which all are run, so that what else the machine does meets them all."""
    found: dict[str, list[Row]] = {name: [] for name, _run in ways}
    sums: dict[str, set[str]] = {name: set() for name, _run in ways}
    for _round in range(repeat):
        for name, run in ways:
            with scratch(root) as folder:
                made: list[Path] = []
                seconds, used = timed(lambda folder=folder, made=made, run=run: made.append(run(folder)))
                answer = folder / "answer.json"
                if answer.exists():
                    said = json.loads(answer.read_text(encoding="utf-8"))
                    seconds, used = said["seconds"], said["cpu"]
                found[name].append(Row(name, seconds, used, made[0].stat().st_size))
                sums[name].add(sha256(made[0]))
    best = [min(rows, key=lambda row: row.seconds) for rows in found.values()]
    same = {name: ("same each run" if len(of) == 1 else "differ") if repeat > 1 else "" for name, of in sums.items()}
    return [dataclasses.replace(row, same=same[row.name]) for row in best]


def peer_convert(source: Path, folder: Path, *options: str) -> Path:
    target = folder / "image.qcow2"
    tool("qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", "-c", *options, source, target)
    return target


def own_write(source: Path, folder: Path, cluster_size: int, level: int | None) -> Path:
    job = {"what": "write", "source": str(source), "folder": str(folder), "cluster_size": cluster_size, "level": level}
    # The writer alone: the start of an interpreter is no part of it.
    (folder / "answer.json").write_text(json.dumps(ours(job)), encoding="utf-8")
    return folder / "image-1.qcow2"


def own_export(source: Path, folder: Path, *formats: str) -> Path:
    ours({"what": "export", "source": str(source), "folder": str(folder), "formats": formats})
    return folder / f"image-1.{formats[0]}"


def verified(source: Path, target: Path) -> Path:
    """What the exporter does with what it wrote, by the tools."""
    tool("qemu-img", "check", "-f", "qcow2", source)
    tool("qemu-img", "check", "-f", "qcow2", target)
    tool("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", source, target)
    for name in ("md5sum", "sha1sum", "sha256sum", "sha512sum"):
        tool(name, target)
    return target


def clean(disk: Path, root: Path, repeat: int) -> None:
    """One compressed qcow2 of a disk without garbage."""
    for text, size in (("64K", 1 << 16), ("1M", 1 << 20)):
        options = ("-o", f"compression_type=zstd,cluster_size={text}")
        ways: list[tuple[str, Run]] = [
            (f"qemu-img convert -c, zstd, {text}", lambda folder, o=options: peer_convert(disk, folder, *o)),
            (f"own writer, {text}", lambda folder, size=size: own_write(disk, folder, size, None)),
        ]
        table(f"clean disk, clusters of {text}", measured(repeat, root, *ways))
    options = ("-o", "compression_type=zstd,cluster_size=1M")
    ways = [
        ("qemu-img, check, compare, 4 *sum", lambda folder: verified(disk, peer_convert(disk, folder, *options))),
        ("image_export", lambda folder: own_export(disk, folder, "qcow2")),
    ]
    table("clean disk, verified and hashed, clusters of 1M", measured(repeat, root, *ways))


def by_hand(disk: Path, folder: Path) -> Path:
    """The three files and their digests, by one tool after the other."""
    made = peer_convert(disk, folder, "-o", "compression_type=zstd,cluster_size=1M")
    stream = ("-O", "vmdk", "-o", "subformat=streamOptimized")
    tool("qemu-img", "convert", "-f", "qcow2", *stream, disk, folder / "image.vmdk")
    (folder / "image.ovf").write_text("<Envelope/>", encoding="ascii")
    with (folder / "image.mf").open("wb") as manifest:
        subprocess.run(["sha256sum", "--tag", "image.ovf", "image.vmdk"], cwd=folder, stdout=manifest, check=True)
    tool("tar", "-C", folder, "--format=ustar", "-cf", folder / "image.ova", "image.ovf", "image.mf", "image.vmdk")
    tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk, folder / "image.raw")
    tool("zstd", "-q", folder / "image.raw", "-o", folder / "image.raw.zst")
    for name in ("image.qcow2", "image.ova", "image.raw.zst"):
        for sums in ("md5sum", "sha1sum", "sha256sum", "sha512sum"):
            tool(sums, folder / name)
    return made


def several(disk: Path, root: Path, repeat: int) -> None:
    """Three formats."""
    rows = measured(
        repeat,
        root,
        ("qemu-img, tar, zstd, *sum; nothing verified", lambda folder: by_hand(disk, folder)),
        ("image_export, all verified", lambda folder: own_export(disk, folder, "qcow2", "ova", "raw.zst")),
    )
    table("qcow2, OVA and raw.zst with four digests each (MB: of the qcow2)", rows)


def sparse(disk: Path, root: Path, _repeat: int) -> None:
    """Equal data, larger disks."""
    rows = []
    for gib in (8, 80, 800):
        with scratch(root) as folder:
            big = folder / "big.qcow2"
            shutil.copyfile(disk, big)
            tool("qemu-img", "resize", "-q", "-f", "qcow2", big, f"{gib}G")
            for formats in (("qcow2",), ("qcow2", "ova")):
                with scratch(root) as target:
                    job = {"what": "export", "source": str(big), "folder": str(target), "formats": formats}
                    answer: list[dict[str, t.Any]] = []
                    _seconds, used = timed(lambda job=job, answer=answer: answer.append(ours(job)))
                    size = (target / "image-1.qcow2").stat().st_size
                    name = f"{gib} GiB: {', '.join(formats)}"
                    rows.append(Row(name, answer[0]["seconds"], used, size, answer[0]["memory"]))
    for formats in ("qcow2", "qcow2, ova"):
        title = f"the same live data on larger disks: {formats}"
        table(title, [row for row in rows if row.name.endswith(f": {formats}")])


@contextlib.contextmanager
def mounted(disk: Path, folder: Path) -> t.Iterator[Path]:
    """The largest partition of a disk, mounted to be read."""
    raw, point = folder / "disk.raw", folder / "tree"
    tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk, raw)
    said = subprocess.run(["sfdisk", "-J", str(raw)], check=True, capture_output=True, text=True).stdout
    largest = max(json.loads(said)["partitiontable"]["partitions"], key=lambda row: row["size"])
    place = f"loop,ro,noload,offset={largest['start'] * 512},sizelimit={largest['size'] * 512}"
    point.mkdir()
    tool("mount", "-o", place, raw, point)
    try:
        yield point
    finally:
        tool("umount", point)


def squashfs(disk: Path, root: Path, _repeat: int) -> None:
    """How small the artifact is."""

    def squash(folder: Path) -> Path:
        with mounted(disk, folder) as tree:
            tool("mksquashfs", tree, folder / "tree.squashfs", "-comp", "zstd", "-no-progress", "-quiet")
        return folder / "tree.squashfs"

    ways: list[tuple[str, Run]] = [("mksquashfs -comp zstd (level 15)", squash)]
    for level in (None, 6, 9, 12):
        name = f"own writer, 1M, level {level or '3 (default)'}"
        ways.append((name, lambda folder, n=level: own_write(disk, folder, 1 << 20, n)))
    rows = measured(1, root, *ways)
    table("size against the tree's squashfs", rows)


JOBS: dict[str, t.Callable[[Path, Path, int], None]] = {
    "clean": clean,
    "several": several,
    "sparse": sparse,
    "squashfs": squashfs,
}


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("disk", type=Path)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"of {', '.join(JOBS)} (default: all)")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="where to write (default: the directory for temporary files)")
    options = parser.parse_args()
    unknown = set(options.jobs) - set(JOBS)
    if unknown:
        parser.error(f"no such job: {', '.join(sorted(unknown))}")
    if "ANSIBLE_COLLECTIONS_PATH" not in os.environ:
        parser.error("set ANSIBLE_COLLECTIONS_PATH to where this checkout is ansible_collections/cloudimg/factory")
    with tempfile.TemporaryDirectory(prefix="cloudimg-benchmark-", dir=options.scratch) as name:
        root = Path(name)
        plain = root / "plain.qcow2"
        # Layers are not compressed; neither is what is measured.
        tool("qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", options.disk, plain)
        live = plain.stat().st_blocks * 512 / 2**20
        print(
            f"{os.cpu_count()} processors; {options.disk.name}: {live:.0f} MiB of live data; best of {options.repeat}"
        )
        for job in options.jobs or JOBS:
            JOBS[job](plain, root, options.repeat)


if __name__ == "__main__":
    main()
