# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kickstart files, read by pykickstart, the parser that Anaconda itself has, in the syntax of each release."""

from __future__ import annotations

import json
import re
import typing as t
import warnings
from pathlib import Path

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from hypothesis import given, settings
from hypothesis import strategies as st
from pykickstart.base import BaseHandler
from pykickstart.constants import DISPLAY_MODE_CMDLINE, KS_SHUTDOWN, SELINUX_ENFORCING
from pykickstart.errors import KickstartError
from pykickstart.parser import KickstartParser
from pykickstart.version import makeVersion

from ansible_collections.cloudimg.factory.plugins.module_utils import _definition_installer, _iso, _seed
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError

CHECKOUT = Path(__file__).resolve().parents[2]
GOLDEN = CHECKOUT / "tests/integration/answers"
TEMPLATE = CHECKOUT / "roles/base_vm/templates/kickstart/ks.cfg.j2"
SYNTAX = {
    "almalinux-9": "RHEL9",
    "almalinux-10": "RHEL10",
    "rocky-9": "RHEL9",
    "rocky-10": "RHEL10",
    "centos-stream-9": "RHEL9",
    "centos-stream-10": "RHEL10",
    "fedora-44": "F44",
    "kickstart-rhel-8": "RHEL8",
    "kickstart-rhel-9-aarch64": "RHEL9",
    "kickstart-rhel-10": "RHEL10",
    "kickstart-fedora-44-btrfs": "F44",
}
"""The image of each golden file, and the syntax that its installer reads."""
ON_ARM = {image for image in SYNTAX if "aarch64" in image or "btrfs" in image}


def read(text: str, syntax: str) -> BaseHandler:
    """What Anaconda would read out of a kickstart file; raises KickstartError, or a warning as an error."""
    handler = makeVersion(syntax)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        KickstartParser(handler).readKickstartFromString(text)
    return handler


def golden(image: str) -> str:
    """The kickstart file of an image as it was looked at and found right."""
    return (GOLDEN / image / "ks.cfg").read_text("utf-8")


def test_each_golden_file_has_a_syntax() -> None:
    assert {path.parent.name for path in GOLDEN.glob("*/ks.cfg")} == set(SYNTAX)


@pytest.mark.parametrize("image", SYNTAX)
def test_its_installer_can_read_it(image: str) -> None:
    handler = read(golden(image), SYNTAX[image])
    assert handler.displaymode.displayMode == DISPLAY_MODE_CMDLINE
    assert handler.reboot.action == KS_SHUTDOWN
    parts = [(part.mountpoint, part.fstype, part.grow) for part in handler.partition.partitions]
    arm = image in ON_ARM
    expected = [] if arm else [("biosboot", "biosboot", False)]
    last = ("btrfs.root", "btrfs", True) if "btrfs" in image else ("/", "xfs" if "rhel-8" in image else "ext4", True)
    assert parts == [*expected, ("/boot/efi", "efi", False), last]
    assert handler.clearpart.disklabel == "gpt"
    assert handler.network.network[0].bootProto == "dhcp"
    assert handler.selinux.selinux == SELINUX_ENFORCING
    assert handler.packages.environment == "minimal-environment"
    assert {"openssh-server", "qemu-guest-agent", "sudo"} <= set(handler.packages.packageList)
    loaders = {"grub2-efi-aa64", "shim-aa64"} if arm else {"grub2-pc", "grub2-efi-x64", "shim-x64"}
    assert loaders <= set(handler.packages.packageList)
    assert ("grub2-install" in handler.scripts[0].script) is not arm
    assert all(script.errorOnFail for script in handler.scripts[:1])


@pytest.mark.parametrize("image", SYNTAX)
def test_there_is_no_account_and_no_secret(image: str) -> None:
    text = golden(image)
    handler = read(text, SYNTAX[image])
    assert (handler.rootpw.lock, handler.rootpw.password) == (True, "")
    assert (handler.user.userList, handler.sshpw.sshUserList, handler.sshkey.sshUserList) == ([], [], [])
    assert [line for line in text.splitlines() if re.search("(?i)passw|rootpw|secret|token", line)] == ["rootpw --lock"]
    assert not re.search("--plaintext|--iscrypted|--password|authselect|chpasswd|//[^/ ]*@", text)


@pytest.mark.parametrize("image", SYNTAX)
def test_the_installer_is_sent_to_the_volume_that_has_the_file(image: str, tmp_path: Path) -> None:
    started = json.loads((GOLDEN / image / "installer.json").read_text("utf-8"))
    arguments = started["kernel_args"].split()
    assert f"inst.ks=hd:LABEL={started['volume']}:/ks.cfg" in arguments
    assert f"console={'ttyAMA0' if image in ON_ARM else 'ttyS0'}" in [word.partition(",")[0] for word in arguments]
    iso = tmp_path / "answers.iso"
    _seed.make_iso(iso, started["volume"], {"ks.cfg": golden(image)})
    assert _iso.inspect(iso, where="answers.iso", key="answer_volume").label == "OEMDRV"
    _iso.require_files(iso, ["ks.cfg"], where="answers.iso", family="kickstart")


WRONG = [
    ("RHEL8", "--excludeWeakdeps", "--exclude-weakdeps", "unrecognized arguments: --exclude-weakdeps"),
    ("RHEL10", "--exclude-weakdeps", "--excludeWeakdeps", "unrecognized arguments: --excludeWeakdeps"),
    ("RHEL9", "selinux --enforcing", "selinux --enforced", "unrecognized arguments: --enforced"),
    ("RHEL9", "rootpw --lock", "rootpassword --lock", "Unknown command: rootpassword"),
    ("RHEL10", "timezone Etc/UTC --utc", "timezone Etc/UTC --isUtc", "unrecognized arguments: --isUtc"),
    ("F44", "network --bootproto=dhcp", "network --bootproto=dhcpd", "bootproto"),
    ("F44", "%end\n\n%post", "\n\n%post", "does not end with %end"),
    ("RHEL10", "%post --erroronfail", "%post --erroronfall", "unrecognized arguments: --erroronfall"),
]


@pytest.mark.parametrize(("syntax", "right", "wrong", "said"), WRONG)
def test_a_wrong_one_would_be_refused(syntax: str, right: str, wrong: str, said: str) -> None:
    image = {"RHEL8": "kickstart-rhel-8", "RHEL9": "almalinux-9", "RHEL10": "almalinux-10", "F44": "fedora-44"}[syntax]
    text = golden(image)
    assert right in text
    read(text, syntax)
    with pytest.raises(KickstartError, match=re.escape(said)):
        read(text.replace(right, wrong), syntax)


class Factory:
    """The template with an image's knowledge of its installer, and anything that a definition may say."""

    def __init__(self, image: str) -> None:
        family = json.loads((GOLDEN / image / "installer.json").read_text("utf-8"))["answers"]
        self._template = trust_as_template(TEMPLATE.read_text("utf-8"))
        self.family: dict[str, t.Any] = family
        self.plain: dict[str, t.Any] = {
            "image": image,
            "os": {"distribution": "almalinux", "arch": "x86_64"},
            "locale": "en_US.UTF-8",
            "keyboard": "us",
            "timezone": "Etc/UTC",
            "hostname": "localhost",
            "domain": "localdomain",
            "proxy": "http://proxy.example.org",
            "console": "ttyS0",
            "packages": family["packages"],
            "filesystem": "ext4",
            "mirror": "http://example.org",
            "disk": "/dev/vda",
            "extra": "",
            "family": family,
        }

    def render(self, **said: t.Any) -> str:
        """The kickstart file."""
        templar = Templar(DataLoader(), variables={"answers": {**self.plain, **said}})
        return str(templar.template(self._template))


ALMALINUX = Factory("almalinux-9")


def accepted(key: str, value: t.Any) -> bool:
    """Whether a definition with that value goes through the check."""
    told = {**dict.fromkeys([*_definition_installer._RULES, "proxy"]), "packages": []}

    def refuse(path: t.Sequence[str], problem: str, mend: str) -> t.NoReturn:
        raise FactoryError(problem, key=".".join(path), mend=mend)

    try:
        definition = {
            "image_os": None,
            "image_medium": None,
            "image_installer": {**told, "filesystem": None, key: value},
        }
        _definition_installer.check_installer(definition, refuse)
    except FactoryError:
        return False
    return True


def anything(key: str, pattern: str) -> st.SearchStrategy[tuple[str, str]]:
    """Values near what a key takes, those beside it among them; of these, those that the check lets through."""
    values = st.one_of(st.from_regex(pattern, fullmatch=True), st.from_regex(pattern), st.text(max_size=8))
    return st.tuples(st.just(key), values.filter(lambda value: accepted(key, value)))


PATTERNS = {**{key: rule[0] for key, rule in _definition_installer._RULES.items()}, "proxy": "https?://[a-z.%-]{1,9}"}


def found(key: str, handler: BaseHandler) -> str:
    """What the installer takes for the value of a key."""
    network = handler.network.network[0]
    return {
        "locale": lambda: handler.lang.lang,
        "keyboard": lambda: ",".join(handler.keyboard.x_layouts),
        "timezone": lambda: handler.timezone.timezone,
        "hostname": lambda: network.hostname.removesuffix(".localdomain"),
        "domain": lambda: network.hostname.removeprefix("localhost."),
        "proxy": lambda: handler.url.proxy,
        "console": lambda: handler.bootloader.appendLine.removeprefix("console=tty0 console="),
    }[key]()


@pytest.mark.parametrize("key", PATTERNS)
def test_what_a_definition_says_arrives_as_it_is_and_nothing_else(key: str) -> None:
    plain = ALMALINUX.render()

    @settings(max_examples=25, deadline=None, database=None)
    @given(anything(key, PATTERNS[key]))
    def arrives(said: tuple[str, str]) -> None:
        text = ALMALINUX.render(**{said[0]: said[1]})
        assert len(text.splitlines()) - len(plain.splitlines()) in ((0, -1) if key == "locale" else (0,))
        assert [line for line in text.splitlines() if line[:1] == "%"] == [
            line for line in plain.splitlines() if line[:1] == "%"
        ]
        handler = read(text, "RHEL9")
        assert found(key, handler) == said[1]
        assert handler.rootpw.lock and not handler.user.userList

    arrives()


@settings(max_examples=25, deadline=None, database=None)
@given(st.lists(st.one_of(st.from_regex(_definition_installer.PACKAGE), st.text(max_size=6)), max_size=4))
def test_packages_add_packages_only(names: list[str]) -> None:
    names = [name for name in names if accepted("packages", [name])]
    handler = read(ALMALINUX.render(packages=[*ALMALINUX.family["packages"], *names]), "RHEL9")
    taken = {*handler.packages.packageList, *(f"@{group.name}" for group in handler.packages.groupList)}
    assert {name for name in names if not name.startswith("@")} <= taken
    assert len(handler.scripts) == 1
    assert handler.rootpw.lock and not handler.user.userList


# Beside the check there is the quoting: what a shell would split or end a quote with stays in its word.
@pytest.mark.parametrize("value", ["a b", "a'b", 'a"b', "a --password=x", "a\\b", "a#b", "$(a)", "`a`", "a;b"])
@pytest.mark.parametrize("key", ["locale", "keyboard", "timezone", "hostname", "proxy", "console"])
def test_quoting_holds_without_the_check(key: str, value: str) -> None:
    handler = read(ALMALINUX.render(**{key: value, "packages": []}).replace(f"glibc-langpack-{value}\n", ""), "RHEL9")
    assert found(key, handler) == value


def test_a_file_system_that_the_distribution_has_not() -> None:
    with pytest.raises(Exception, match=r"image_installer.filesystem: almalinux has no btrfs; use ext4 or xfs"):
        ALMALINUX.render(filesystem="btrfs")


def test_a_distribution_that_is_not_known() -> None:
    family = {name: value for name, value in ALMALINUX.family.items() if name != "boot_directory"}
    with pytest.raises(Exception, match=r"image_os.distribution: nothing is known of almalinux"):
        ALMALINUX.render(family=family)


def knowledge() -> dict[str, t.Any]:
    """The family's own file."""
    text = (CHECKOUT / "roles/media/vars/kickstart.yml").read_text("utf-8")
    return dict(yaml.safe_load(text)["__media_family"])


# What Anaconda prints: pyanaconda/errors.py, ui/tui/hubs/summary.py, ui/tui/spokes; its log of a run that went well.
WENT_WELL = [
    "Starting installer, one moment...",
    "anaconda 34.25.5.17-1.el9.alma.1 for AlmaLinux 9.5 started.",
    "Starting automated install.......",
    "Checking storage configuration...",
    "[anaconda]1:main* 2:shell  3:log  4:storage-log >Switch tab: Alt+Tab | Help: F1",
    "Setting up the installation environment",
    "Configuring storage",
    "Installing shim-x64.x86_64 (211/389)",
    "Installing boot loader",
    "Running post-installation scripts",
    "[  OK  ] Reached target System Power Off.",
]
FAILED = [
    "Non interactive installation failed: There was an error running the kickstart script at line 58.",
    "The following mandatory spokes are not completed:",
    "The following problem occurred on line 12 of the kickstart file:",
    "The following errors occurred with your partitioning:",
    "a fatal error and installation will be aborted.",
    "The installation was stopped due to an error which occurred while running in non-interactive cmdline mode.",
    "[  123.4] dracut-initqueue[812]: Warning: dracut-initqueue: timeout, still waiting for following initqueue hooks:",
    "Warning: Could not boot.",
    "Entering emergency mode. Exit the shell to continue.",
    "[  900.1] reboot: Restarting system",
]
ASKED = [
    "Please make your choice from above ['q' to quit | 'b' to begin installation | 'r' to refresh]:",
    "Please make a selection from the above ['c' to continue, 'q' to quit, 'r' to refresh]:",
    "Please respond 'yes' or 'no': ",
    "Press ENTER to continue: ",
    "What do you want to do now?",
]


@pytest.mark.parametrize(
    ("kind", "lines"), [("failure_lines", FAILED), ("question_lines", ASKED), ("success_lines", ["reboot: Power down"])]
)
def test_lines_on_the_console(kind: str, lines: list[str]) -> None:
    known = knowledge()
    patterns = [re.compile(pattern) for pattern in known[kind]]
    assert [line for line in lines if not any(pattern.search(line) for pattern in patterns)] == []
    assert [line for line in WENT_WELL if any(pattern.search(line) for pattern in patterns)] == []
    used = {pattern.pattern for pattern in patterns for line in lines if pattern.search(line)}
    assert used, kind
