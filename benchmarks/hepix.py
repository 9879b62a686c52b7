#!/usr/bin/env python
# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long it takes to publish one more build in a signed image list of many, and how much memory.

Prints a table: for each length of the list, the seconds (best of --repeat runs) and the most memory that the process held

update   the list is read and verified, changed, signed, verified again and written; the build's file is 1 MiB
module   the same by the module in a process of its own, with all that Python has to import
again    the module, where nothing differs
verify   the module hepix_image_list_info with the chain up to a trust anchor, CRLs included
openssl  what «openssl smime -sign» and «-verify» take for the same content: the peer (its memory is not measured)
many     a hundred updates one after the other in one process: its memory after the first one and at the end

Run it as ``.venv/bin/python benchmarks/hepix.py [--images 1,100,1000,10000]`` after ``make test`` has set up ``.venv``.
"""

from __future__ import annotations

import argparse
import datetime
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
_OURS = """
import datetime, json, sys, time
from pathlib import Path
from ansible.utils.collection_loader._collection_finder import _AnsibleCollectionFinder
_AnsibleCollectionFinder(paths=sys.argv[1].split(":"))._install()
from ansible_collections.cloudimg.factory.plugins.module_utils import _hepix, _x509
from ansible_collections.cloudimg.factory.plugins.module_utils._hepix_images import ImageOptions
from ansible_collections.cloudimg.factory.plugins.module_utils._hepix_list import ImageList
job = json.loads(sys.argv[2])
def peak():
    # Not ru_maxrss, which a child inherits from the process that it was forked from.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
signer = _x509.Signer.load(Path(job["certificate"]), Path(job["private_key"]), job["passphrase"], Path(job["chain"]))
began, memory = time.monotonic(), []
for descriptor in job["descriptors"]:
    image_list = ImageList(Path(job["path"]), signer)
    if not image_list.present(Path(descriptor), ImageOptions("https://x.example.org"), 1).changed:
        raise SystemExit("nothing was changed")
    memory.append(peak())
print(json.dumps({"seconds": time.monotonic() - began, "first": memory[0], "memory": memory[-1]}))
"""
_MODULE = """
import runpy, sys
from pathlib import Path
name = sys.argv.pop(2)
try:
    runpy.run_path(name, run_name="__main__")
finally:
    print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")), file=sys.stderr)
"""


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="1,100,1000,10000", help="lengths of the list")
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    if not Path(ROOT, "ansible_collections/cloudimg/factory").exists():
        raise SystemExit("set ANSIBLE_COLLECTIONS_PATH to where the Makefile has put its link, see docs/development.md")
    _AnsibleCollectionFinder(paths=[ROOT])._install()
    with tempfile.TemporaryDirectory(prefix="cloudimg-bench-") as name:
        bench = Bench(Path(name), options.repeat)
        print(f"{'images':>7} {'list':>9}  {'what':<16} {'seconds':>8} {'memory':>9}")
        for count in map(int, options.images.split(",")):
            bench.measure(count)


class Bench:
    """A grid, a build, and the options of the module."""

    def __init__(self, root: Path, repeat: int) -> None:
        from ansible_collections.cloudimg.factory.plugins.module_utils import _hepix_smime, _x509
        from ansible_collections.cloudimg.factory.tests.tools import pki
        from ansible_collections.cloudimg.factory.tests.tools.hepix import make_build

        self.root, self.repeat, self.smime, self.make_build = root, repeat, _hepix_smime, make_build
        self.grid = pki.Pki.make(root / "pki")
        one = self.grid.issue("endorser", passphrase=pki.PASSPHRASE)
        self.signer = _x509.Signer.load(one.certificate, one.key, one.passphrase, one.chain)
        paths = {"certificate": str(one.certificate), "private_key": str(one.key), "chain": str(one.chain)}
        self.options: dict[str, t.Any] = {"path": str(root / "vo.list"), "passphrase": one.passphrase, **paths}
        self.number = 1

    def build(self) -> str:
        """The descriptor of a build that the list has not yet."""
        self.number += 1
        return str(self.make_build(self.root, str(self.number), os.urandom(1 << 20)))

    def module(self, name: str, **options: t.Any) -> dict[str, t.Any]:
        """Run a module in a process of its own, as Ansible does on the other side."""
        args = self.root / "args.json"
        args.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": options}), encoding="utf-8")
        argv = [sys.executable, "-c", _MODULE, str(args), str(CHECKOUT / name)]
        began = time.monotonic()
        done = subprocess.run(argv, env={**os.environ, "PYTHONPATH": ROOT}, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - began
        result = json.loads(done.stdout)
        if result.get("failed"):
            raise SystemExit(result["msg"])
        return {**result, "seconds": seconds, "memory": int(done.stderr.split()[-2]) * 1024}

    def fill(self, count: int) -> int:
        """Have a list of that many images, with one of our own; returns its size in bytes."""
        path = Path(self.options["path"])
        path.unlink(missing_ok=True)
        meta = {
            "title": "Images",
            "uri": "https://x.example.org/vo.list",
            "vo": "vo.example.org",
            "endorser_name": "Jane Doe",
        }
        base = {"base_url": "https://x.example.org", "descriptor": self.build()}
        self.module("plugins/modules/hepix_image_list.py", **self.options, **meta, **base)
        document = self.smime.load(path).document
        (own,) = document["hv:images"]
        for number in range(count - 1):
            identifier = f"00000000-0000-0000-0000-{number:012}"
            other = {**own["hv:image"], "cloudimg:image": f"image-{number}", "cloudimg:identifier": identifier}
            document["hv:images"].append(
                {"hv:image": {**other, "dc:identifier": identifier, "hv:uri": f"https://x/{number}"}}
            )
        now = datetime.datetime.now(datetime.timezone.utc)
        path.write_bytes(self.smime.sign(document, self.signer, now))
        return path.stat().st_size

    def ours(self, builds: int = 1) -> dict[str, t.Any]:
        """Publish builds in one process."""
        job = json.dumps({**self.options, "descriptors": [self.build() for _number in range(builds)]})
        done = subprocess.run([sys.executable, "-c", _OURS, ROOT, job], capture_output=True, text=True, check=True)
        return dict(json.loads(done.stdout))

    def openssl(self, what: str) -> dict[str, t.Any]:
        """Sign or verify the same content by openssl."""
        content, signed, key = self.root / "content", self.root / "signed", self.root / "key.pem"
        if not key.exists():
            argv = ["openssl", "pkey", "-in", self.options["private_key"], "-passin", "env:PHRASE", "-out", str(key)]
            subprocess.run(argv, check=True, env={**os.environ, "PHRASE": self.options["passphrase"]})
        content.write_bytes(self.smime.dump(self.smime.load(Path(self.options["path"])).document))
        argv = [
            "openssl",
            "smime",
            "-sign",
            "-md",
            "sha256",
            "-signer",
            self.options["certificate"],
            "-inkey",
            str(key),
        ]
        argv += ["-certfile", self.options["chain"], "-in", str(content), "-out", str(signed)]
        if what == "verify":
            anchors = str(self.grid.anchors)
            argv = [
                "openssl",
                "smime",
                "-verify",
                "-CApath",
                anchors,
                "-crl_check_all",
                "-in",
                str(signed),
                "-out",
                "/dev/null",
            ]
        began = time.monotonic()
        subprocess.run(argv, capture_output=True, check=True)
        return {"seconds": time.monotonic() - began, "memory": None}

    def measure(self, count: int) -> None:
        """Print the rows of one length."""
        size = self.fill(count)
        image_list, info = "plugins/modules/hepix_image_list.py", "plugins/modules/hepix_image_list_info.py"
        base = {"base_url": "https://x.example.org"}
        check = {"path": self.options["path"], "ca_directory": str(self.grid.anchors)}

        def publish() -> dict[str, t.Any]:
            return self.module(image_list, **self.options, **base, descriptor=self.build())

        last = self.build()
        self.module(image_list, **self.options, **base, descriptor=last)
        rows: dict[str, t.Callable[[], dict[str, t.Any]]] = {
            "again": lambda: self.module(image_list, **self.options, **base, descriptor=last),
            "update": self.ours,
            "module": publish,
            "verify": lambda: self.module(info, **check),
            "openssl sign": lambda: self.openssl("sign"),
            "openssl verify": lambda: self.openssl("verify"),
        }
        for what, call in rows.items():
            runs = [call() for _run in range(self.repeat)]
            best, memory = min(run["seconds"] for run in runs), max(run["memory"] or 0 for run in runs)
            held = f"{memory / 2**20:>5.1f} MiB" if memory else ""
            print(f"{count:>7} {size >> 10:>5} KiB  {what:<16} {best:>8.3f} {held}", flush=True)
        if count <= 1000:
            many = self.ours(100)
            first, end = (f"{many[key] / 2**20:.1f} MiB" for key in ("first", "memory"))
            print(
                f"{count:>7} {size >> 10:>5} KiB  {'many (100)':<16} {many['seconds']:>8.3f} {first}, then {end}",
                flush=True,
            )


if __name__ == "__main__":
    main()
