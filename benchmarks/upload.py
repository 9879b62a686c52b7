#!/usr/bin/env python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast an image is uploaded, beside «curl -T» of the same file to the same server, and how much memory it takes.

Prints a row for each run, in turns, and the ratios of the best ones, and of each run's:

curl     what curl sends as the body of one PUT to an upload that was begun before
upload   the artifact as our client uploads it, in a process of its own: beginning, chunks, closing
module   the module oci_artifact in a process of its own, with all that Python has to import; the file's digest is known, as after
         an export
again    the module once more: nothing is sent

The registry is Debian's docker-registry on loopback, started for it; each run uploads to an empty one.
Run it as ``.venv/bin/python benchmarks/upload.py [--size 1024]`` after ``make test`` has set up ``.venv``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import typing as t
import urllib.request
from pathlib import Path

from ansible.utils.collection_loader._collection_finder import _AnsibleCollectionFinder

CHECKOUT = Path(__file__).resolve().parents[1]
ROOT = os.environ.get("ANSIBLE_COLLECTIONS_PATH", "")
_MODULE = """
import runpy, sys
from pathlib import Path
name = sys.argv.pop(2)
try:
    runpy.run_path(name, run_name="__main__")
finally:
    print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")), file=sys.stderr)
"""
_UPLOAD = """
import json, sys, time
from pathlib import Path
from ansible.utils.collection_loader._collection_finder import _AnsibleCollectionFinder
_AnsibleCollectionFinder(paths=[sys.argv[1]])._install()
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_blobs import Upload
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_registry import OPTIONS, Repository
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
job = json.loads(sys.argv[2])
options = {key: about.get("default") for key, about in OPTIONS.items()}
given = {**options, "registry": job["url"], "repository": "bench/upload"}
upload = Upload(Repository(given, Progress("benchmark"), write=True), Path(job["path"]), job["digest"], job["size"])
began = time.monotonic()
upload.run()
print(time.monotonic() - began, file=sys.stderr)
print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")), file=sys.stderr)
"""


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="MiB")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the file and the registry's store are")
    options = parser.parse_args()
    if not Path(ROOT, "ansible_collections/cloudimg/factory").exists():
        raise SystemExit("set ANSIBLE_COLLECTIONS_PATH to where the Makefile has put its link, see docs/development.md")
    _AnsibleCollectionFinder(paths=[ROOT])._install()
    sys.path.insert(0, str(CHECKOUT / "tests/integration"))
    from ansible_collections.cloudimg.factory.tests.tools import registry_server

    try:
        registry_server.program()
    except RuntimeError as exc:
        raise SystemExit(str(exc)) from None
    with tempfile.TemporaryDirectory(prefix="cloudimg-bench-", dir=options.folder) as name:
        Bench(Path(name), options.size, options.repeat, registry_server).run()


class Bench:
    """A build with a large image, and a registry."""

    def __init__(self, root: Path, size: int, repeat: int, registry_server: t.Any) -> None:
        from oci_site import make_build

        from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor, _digest

        self.root, self.repeat, self.server = root, repeat, registry_server
        self.descriptor = make_build(root / "build", size=1)
        self.image = next((root / "build").glob("*.qcow2"))
        with self.image.open("wb") as stream:
            for _mebibyte in range(size):
                stream.write(os.urandom(1 << 20))
        document = json.loads(self.descriptor.read_text(encoding="utf-8"))
        digests = _digest.cached_digests(self.image)
        document["artifacts"][0] |= {"size": size << 20, "checksums": digests}
        document["artifacts"][0]["virtual_size"] = document["disks"][0]["virtual_size"] = max(size << 20, 3 << 30)
        self.descriptor.write_text(_descriptor.parse(document, "bench").dump(), encoding="utf-8")
        self.digest = f"sha256:{digests['sha256']}"
        self.bytes = size << 20

    def run(self) -> None:
        """Print the rows."""
        best: dict[str, float] = {}
        ratios: dict[str, list[float]] = {"upload": [], "module": []}
        memory = 0
        print(f"{'run':>3}  {'what':<8} {'seconds':>8} {'MiB/s':>8} {'memory':>10}")
        for number in range(self.repeat):
            for what, work in (("curl", self.curl), ("upload", self.upload), ("module", self.module)):
                with self.server.Registry(self.root / "registry") as registry:
                    rows = [(what, *work(registry))]
                    if what == "module":
                        rows.append(("again", *self.module(registry, sent=0)))
                shutil.rmtree(self.root / "registry")
                for name, seconds, peak in rows:
                    rate = f"{self.bytes / 2**20 / seconds:>8.0f}" if name != "again" else " " * 8
                    held = f"{peak / 2**20:>6.1f} MiB" if peak else ""
                    print(f"{number:>3}  {name:<8} {seconds:>8.2f} {rate} {held}", flush=True)
                    best[name] = min(best.get(name, seconds), seconds)
                    memory = max(memory, peak)
                    if name == "curl":
                        curl = seconds
                    elif name in ratios:
                        ratios[name].append(curl / seconds)
        for name, found in ratios.items():
            each = ", ".join(f"{ratio:.2f}" for ratio in found)
            print(f"{name} / curl: {best['curl'] / best[name]:.2f} of its throughput; run by run {each}")
        print(f"{memory / 2**20:.1f} MiB at most; the load is {os.getloadavg()[0]:.1f}")

    def upload(self, registry: t.Any) -> tuple[float, int]:
        """The upload alone."""
        job = {"url": registry.url, "path": str(self.image), "digest": self.digest, "size": self.bytes}
        argv = [sys.executable, "-W", "ignore", "-c", _UPLOAD, ROOT, json.dumps(job)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        words = done.stderr.split()
        return float(words[0]), int(words[-2]) * 1024

    def curl(self, registry: t.Any) -> tuple[float, int]:
        """One PUT of the file."""
        begun = urllib.request.Request(f"{registry.url}/v2/bench/curl/blobs/uploads/", method="POST", data=b"")
        with urllib.request.urlopen(begun) as reply:
            place = f"{reply.headers['Location']}&digest={self.digest}"
        before = time.monotonic()
        argv = ["curl", "-sS", "--fail", "-o", "/dev/null", "-H", "Expect:", "-T", str(self.image), place]
        subprocess.run([*argv, "-H", "Content-Type: application/octet-stream"], check=True)
        return time.monotonic() - before, 0

    def module(self, registry: t.Any, sent: int | None = None) -> tuple[float, int]:
        """The module, as Ansible runs it."""
        arguments = {"registry": registry.url, "repository": "bench/module", "descriptor": str(self.descriptor)}
        args = self.root / "args.json"
        args.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}), encoding="utf-8")
        argv = [sys.executable, "-c", _MODULE, str(args), str(CHECKOUT / "plugins/modules/oci_artifact.py")]
        before = time.monotonic()
        done = subprocess.run(argv, env={**os.environ, "PYTHONPATH": ROOT}, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - before
        result = json.loads(done.stdout)
        if result.get("failed"):
            raise SystemExit(result["msg"])
        wanted = self.bytes if sent is None else sent
        if result["sent"] != wanted or result["changed"] != bool(wanted):
            raise SystemExit(f"sent {result['sent']} bytes instead of {wanted}")
        return seconds, int(done.stderr.split()[-2]) * 1024


if __name__ == "__main__":
    main()
