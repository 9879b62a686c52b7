#!/usr/bin/env python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast an artifact gets into a local Glance, beside «curl -T» of the same file to the same server, and in how much memory.

Prints a table, the best of --repeat runs that take turns:

curl     «curl -T» to /v2/images/{id}/file of an image that is there already
upload   the request with the data by our client, in a process of its own
module   all of glance_image: looking up, making the image, sending, comparing checksums, showing it
again    the module, where the build is there already

and the most memory that the process held. Checksums of the file are known beforehand, as after an export.

Run it as ``.venv/bin/python benchmarks/glance.py [--size 1024] [--directory /srv]`` after ``make test`` has set up ``.venv``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import typing as t
from pathlib import Path

from ansible.utils.collection_loader._collection_finder import _AnsibleCollectionFinder

CHECKOUT = Path(__file__).resolve().parents[1]
ROOT = os.environ.get("ANSIBLE_COLLECTIONS_PATH", "")
_PEAK = """
def peak():
    # Not ru_maxrss, which a child inherits from the process that it was forked from.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
"""
_BEGIN = """
import json, sys, time
from pathlib import Path
from ansible.utils.collection_loader._collection_finder import _AnsibleCollectionFinder
_AnsibleCollectionFinder(paths=sys.argv[1].split(":"))._install()
job = json.loads(sys.argv[2])
"""
_UPLOAD = (
    _BEGIN
    + _PEAK
    + """
from ansible_collections.cloudimg.factory.plugins.module_utils._glance_api import OPTIONS, connect
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
options = {key: about.get("default") for key, about in OPTIONS.items()}
glance = connect({**options, "auth_type": "none", "endpoint": job["url"]}, Progress("benchmark"))
began = time.monotonic()
glance.upload(job["image"], Path(job["path"]), stage=False)
print(json.dumps({"seconds": time.monotonic() - began, "memory": peak()}))
"""
)
_MODULE = (
    "import time\nbegan = time.monotonic()\n"
    + _BEGIN
    + _PEAK
    + """
import contextlib, io, runpy
from ansible.module_utils.testing import patch_module_args
stdout = io.StringIO()
module = "ansible_collections.cloudimg.factory.plugins.modules.glance_image"
with patch_module_args(job), contextlib.redirect_stdout(stdout), contextlib.suppress(SystemExit):
    runpy.run_module(module, run_name="__main__", alter_sys=True)
done = json.loads(stdout.getvalue())
if done.get("failed"):
    raise SystemExit(done["msg"])
print(json.dumps({"seconds": time.monotonic() - began, "memory": peak(), "changed": done["changed"]}))
"""
)


def ours(code: str, job: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Run code in a process of its own."""
    argv = [sys.executable, "-W", "ignore", "-c", code, ROOT, json.dumps(job)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="MiB of the artifact")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--directory", default=None, help="where all files go")
    options = parser.parse_args()
    _AnsibleCollectionFinder(paths=ROOT.split(":"))._install()
    from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _digest
    from ansible_collections.cloudimg.factory.tests.tools.glance_server import GlanceServer

    best: dict[str, dict[str, float]] = {}

    def note(name: str, seconds: float, memory: float) -> None:
        known = best.setdefault(name, {"seconds": seconds, "memory": memory})
        known["seconds"] = min(known["seconds"], seconds)
        known["memory"] = max(known["memory"], memory)

    with tempfile.TemporaryDirectory(dir=options.directory) as folder, GlanceServer(Path(folder, "glance")) as server:
        disk = Path(folder, "d.raw")
        with disk.open("wb") as stream:
            for _each in range(options.size):
                stream.write(os.urandom(1 << 20))
        digests = _digest.cached_digests(disk)
        artifact = _descriptor.Artifact("raw", disk.name, disk.stat().st_size, disk.stat().st_size, digests)
        identifier = _descriptor.stable_identifier("d")
        base = {"name": "x", "disk_format": "raw", "container_format": "bare"}
        for turn in range(options.repeat):
            image = server.ask("POST", "/v2/images", base)["id"]
            argv = [
                "curl",
                "-sS",
                "--fail",
                "-o",
                "/dev/null",
                "-T",
                str(disk),
                "-H",
                "Content-Type: application/octet-stream",
            ]
            began = time.monotonic()
            subprocess.run([*argv, f"{server.url}/v2/images/{image}/file"], check=True)
            note("curl", time.monotonic() - began, 0)
            server.ask("DELETE", f"/v2/images/{image}")
            image = server.ask("POST", "/v2/images", base)["id"]
            done = ours(_UPLOAD, {"url": server.url, "image": image, "path": str(disk)})
            note("upload", done["seconds"], done["memory"])
            server.ask("DELETE", f"/v2/images/{image}")
            build = _descriptor.Descriptor(
                image="d",
                identifier=identifier,
                version=str(turn),
                title="d",
                description="",
                os=_descriptor.OperatingSystem("debian", "12", "x86_64"),
                min_disk=1,
                artifacts=(artifact,),
                created="2025-01-31T12:00:00Z",
                provenance=_descriptor.Provenance("0" * 64, "7.2", "0.1.0"),
            )
            path = Path(folder, "descriptor.json")
            path.write_text(build.dump(), encoding="utf-8")
            job = {"descriptor": str(path), "auth_type": "none", "endpoint": server.url, "keep": 1}
            for name in ("module", "again"):
                server.clear()
                done = ours(_MODULE, job)
                if done["changed"] is not (name == "module") or (name == "again" and server.received()):
                    raise SystemExit(f"{name}: {done}, {server.received()} bytes of data")
                note(name, done["seconds"], done["memory"])
    print(f"{'':8} {'seconds':>8} {'MiB/s':>8} {'of curl':>8} {'MiB':>6}")
    for name, found in best.items():
        speed = "" if name == "again" else f"{options.size / found['seconds']:.0f}"
        ratio = "" if name == "again" else f"{best['curl']['seconds'] / found['seconds']:.2f}"
        memory = f"{found['memory'] / (1 << 20):.0f}" if found["memory"] else ""
        print(f"{name:8} {found['seconds']:8.2f} {speed:>8} {ratio:>8} {memory:>6}")


if __name__ == "__main__":
    main()
