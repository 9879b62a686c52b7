# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""playbooks/media_check.yml, as users run it: a line an image, a table, and what is an error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cloudimg.factory.tests.tools.media_server import MediaServer
from ansible_collections.cloudimg.factory.tests.tools.vendor import Signer, make_iso, sums

CHECKOUT = Path(__file__).resolve().parents[2]


class Site:
    """A vendor's server, and an inventory with media of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.server, self.signer = folder, MediaServer(), Signer(folder / "gpg")
        self.images: dict[str, dict[str, t.Any]] = {}
        iso = make_iso(folder / "a.iso", label="A")
        keyring = str(self.signer.keyring(folder / "keys.gpg"))
        listed = sums(iso)
        for place, names in {
            "/good/": ["Rocky-9.8-x86_64-boot.iso"],
            "/newer/": ["AlmaLinux-9.5-x86_64-boot.iso", "AlmaLinux-9.6-x86_64-boot.iso"],
            "/drivers/": ["virtio-win-0.1.240.iso"],
        }.items():
            for name in names:
                self.server.put(place + name, iso.read_bytes())
            text = b"".join(listed.replace(b"a.iso", name.encode()) for name in names)
            self.server.put(f"{place}CHECKSUM", self.signer.clearsigned(text))
        self.keyring = keyring
        self.image("good", "rocky", "/good/Rocky-9.8-x86_64-boot.iso")
        self.image("newer", "almalinux", "/newer/AlmaLinux-9.5-x86_64-boot.iso")

    def image(self, name: str, distribution: str, path: str, **more: t.Any) -> None:
        """Define an image."""
        folder = path.rpartition("/")[0]
        places = {"url": self.server.url + path, "checksum": f"{self.server.url}{folder}/CHECKSUM"}
        medium = {"family": "kickstart", **places, "keyring": self.keyring, **more}
        self.images[name] = {"image_os": {"distribution": distribution, "version": "9"}, "image_medium": medium}

    def run(self, *words: str, **variables: t.Any) -> tuple[int, str]:
        """Exit code and output of the playbook."""
        inventory = self.folder / "hosts.json"
        hosts = {"hosts": self.images, "vars": {"ansible_python_interpreter": sys.executable}}
        inventory.write_text(json.dumps({"images": hosts}), "utf-8")
        done = subprocess.run(
            [
                Path(sys.executable).with_name("ansible-playbook"),
                CHECKOUT / "playbooks/media_check.yml",
                f"--inventory={inventory}",
                "--extra-vars",
                json.dumps(variables),
                *words,
            ],
            env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_STDOUT_CALLBACK": "default"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def close(self) -> None:
        """End server and agent."""
        self.server.close()
        self.signer.close()


@pytest.fixture
def site(tmp_path: Path) -> t.Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.close()


def test_a_line_for_each_and_a_table(site: Site) -> None:
    site.images["built"] = {
        "image_os": {"distribution": "debian", "version": "12"},
        "image_medium": {"family": "fai"},
    }
    site.image(
        "windows",
        "windows",
        "/good/Rocky-9.8-x86_64-boot.iso",
        family="autounattend",
        drivers={
            "url": f"{site.server.url}/drivers/virtio-win-0.1.240.iso",
            "checksum": f"{site.server.url}/drivers/CHECKSUM",
            "keyring": site.keyring,
        },
    )
    code, output = site.run("--check")
    assert code == 0, output
    url = site.server.url
    assert f"newer: newer: there is a newer one, {url}/newer/AlmaLinux-9.6-x86_64-boot.iso" in output
    assert "good: ok: 0 MiB, of Mon, 06 Jan 2025 10:00:00 GMT, checksum signed" in output
    rows = [line.strip().strip("-,\"' ") for line in output.splitlines() if "  ok  " in line or "  newer  " in line]
    assert rows == [
        "good     ok           Rocky-9.8-x86_64-boot.iso",
        "newer    newer        AlmaLinux-9.5-x86_64-boot.iso -> AlmaLinux-9.6-x86_64-boot.iso",
        "windows  ok           Rocky-9.8-x86_64-boot.iso",
        "windows  ok           virtio-win-0.1.240.iso",
    ]
    assert "built" not in "".join(rows)
    assert "changed=0" in output


def test_what_is_an_error(site: Site) -> None:
    site.image("gone", "rocky", "/good/Rocky-9.7-x86_64-boot.iso")
    code, output = site.run()
    assert code != 0
    words = " ".join(output.split())
    assert "gone: image_medium.url: moved: it is gone (HTTP 404); " in words
    assert "has no line for Rocky-9.7-x86_64-boot.iso (it names Rocky-9.8-x86_64-boot.iso)" in words
    assert "newer    newer" not in output  # the column is as wide as the longest name, five letters
    assert "newer  newer" in output

    code, output = site.run("--limit=newer,gone", media_check_fail_on=["newer"])
    assert code != 0
    assert "newer: image_medium.url: newer: there is a newer one" in " ".join(output.split())
    assert "gone: image_medium.url" not in output


def test_an_outcome_that_there_is_not(site: Site) -> None:
    code, output = site.run(media_check_fail_on=["older"])
    assert code != 0
    assert "media_check_fail_on: ['older'] has another word than newer, unreachable" in " ".join(output.split())
    assert site.server.requests == []
