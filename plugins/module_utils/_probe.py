# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What a guest tells about its first boot, and the judgement of it. Nothing in here talks to anybody."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import re
import typing as t

MARK = "@@cloudimg "
"""Begins each section of what :data:`SCRIPT` says, the first one as soon as it runs."""

SCRIPT = r"""
section() { printf '@@cloudimg %s\n' "$1"; }
section login
PATH=$PATH:/usr/sbin:/sbin
root=
sudo -n true 2>/dev/null && root='sudo -n'
run=/run/cloud-init
if [ -d $run ]; then
    # looking for its files costs nothing, unlike «cloud-init status --wait» under emulation
    until [ -e $run/result.json ] || [ -e $run/disabled ]; do sleep 1; done
fi
section system
timeout SETTLE systemctl is-system-running --wait
section failed
systemctl list-units --state=failed --plain --no-legend
section disabled
ls $run/disabled 2>/dev/null
section status
cat $run/status.json
section result
cat $run/result.json
section root
df -P -k /
section machine-id
cat /etc/machine-id
stat -c %Y /etc/machine-id
section host-keys
stat -c '%Y %n' /etc/ssh/ssh_host_*_key.pub
section host-key-content
cat /etc/ssh/ssh_host_*_key.pub | cut -d ' ' -f 1,2
section listening
$root ss -Hltunp
section boot
sed -n 's/^btime //p' /proc/stat
date +%s
section release
sed -n 's/^PRETTY_NAME=//p' /etc/os-release
uname -r
PACKAGES
section end
"""
"""For any POSIX shell, and any user. It waits until the boot is over."""
_PACKAGES = r"""section packages
command -v dpkg-query >/dev/null && dpkg-query -W -f '${Package} ${Version} ${Architecture} ${db:Status-Status}\n'
section sources
cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources"""
_SETTLE = 180
_HEX = re.compile(r"[0-9a-f]{32}")
_SLACK = 5
"""Seconds that the kernel's idea of when it started may be off."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was looked at. Where it is not ``required``, it is a warning when not ``ok``."""

    name: str
    ok: bool
    detail: str
    required: bool = True
    group: str = "boot"


def command(*, packages: bool = False) -> str:
    """The command that asks a guest; ``packages``: also what is installed, and where it came from."""
    return SCRIPT.replace("SETTLE", str(_SETTLE)).replace("PACKAGES", _PACKAGES if packages else ":")


def parse(said: str) -> dict[str, str]:
    """What :data:`SCRIPT` said, text by section; without the section C(end) it was cut off."""
    sections: dict[str, list[str]] = {}
    current: list[str] = []
    for line in said.splitlines():
        if line.startswith(MARK):
            current = sections.setdefault(line[len(MARK) :].strip(), [])
        else:
            current.append(line)
    return {name: "\n".join(lines).strip() for name, lines in sections.items()}


def judge(
    facts: t.Mapping[str, str],
    *,
    size_before: int,
    datasource: str = "NoCloud",
    allowed_units: t.Sequence[str] = (),
    allowed_ports: t.Sequence[str] = (),
) -> list[Check]:
    """All the checks that need a look from within.

    :param facts: from :func:`parse`.
    :param size_before: bytes of the disk before it was made larger.
    :param datasource: what cloud-init has to find.
    :param allowed_units: patterns of systemd units that may fail.
    :param allowed_ports: as C(80/tcp), where anything may listen; C(22/tcp) always.
    """
    began = _numbers(facts.get("boot"))[0]
    return [
        _cloud_init(facts),
        _datasource(facts, datasource),
        _cloud_init_warnings(facts),
        _root_filesystem(facts, size_before),
        _host_keys(facts, began),
        _machine_id(facts, began),
        _listening(facts, allowed_ports),
        _units(facts, allowed_units),
    ]


def judge_methods(methods: t.Sequence[str]) -> Check:
    """Whether only keys let anybody in, by the methods that SSH offers."""
    open_doors = [name for name in methods if name not in ("publickey", "hostbased", "gssapi-with-mic", "gssapi-keyex")]
    if not open_doors:
        return Check("no_password_login", True, f"SSH offers {', '.join(methods)}")
    return Check("no_password_login", False, f"SSH offers {', '.join(open_doors)}")


def summary(facts: t.Mapping[str, str]) -> dict[str, t.Any]:
    """What is worth keeping of the facts, as plain data."""
    release = [*facts.get("release", "").splitlines(), "", ""]
    return {
        "release": release[0].strip('"'),
        "kernel": release[1],
        "machine_id": facts.get("machine-id", "").partition("\n")[0],
        "host_keys": facts.get("host-key-content", "").splitlines(),
        "datasource": _json(facts.get("result")).get("datasource"),
        "root_bytes": _root_size(facts),
        "failed_units": [line.split()[0] for line in facts.get("failed", "").splitlines() if line.strip()],
    }


def seconds_since_finish(facts: t.Mapping[str, str]) -> float | None:
    """How long before the guest told its time cloud-init had finished."""
    booted, now = _numbers(facts.get("boot"))
    ended = max((float(stage.get("finished") or 0) for stage in _stages(facts).values()), default=0.0)
    if 0 < ended < booted:
        ended += booted  # newer versions of cloud-init (25.1 does) count from the boot
    return max(0.0, now - ended) if now and ended else None


def _numbers(text: str | None) -> tuple[int, int]:
    words = [*(text or "").split(), "", ""]
    first, second = (int(word) if word.isdigit() else 0 for word in words[:2])
    return first, second


def _json(text: str | None) -> dict[str, t.Any]:
    try:
        data = json.loads(text or "")
    except ValueError:
        return {}
    version = data.get("v1") if isinstance(data, dict) else None
    return version if isinstance(version, dict) else {}


def _stages(facts: t.Mapping[str, str]) -> dict[str, dict[str, t.Any]]:
    return {name: stage for name, stage in _json(facts.get("status")).items() if isinstance(stage, dict)}


def _cloud_init(facts: t.Mapping[str, str]) -> Check:
    result = _json(facts.get("result"))
    if facts.get("disabled"):
        return Check("cloud_init", False, "cloud-init is disabled: it found no data source, or was told so")
    if not result:
        return Check("cloud_init", False, "cloud-init did not run")
    told = [result, *_stages(facts).values()]
    errors = [error for part in told for error in part.get("errors", [])]
    errors = list(dict.fromkeys(" ".join(str(error).split()) for error in errors))
    if errors:
        return Check("cloud_init", False, f"cloud-init ended with errors: {'; '.join(errors)}")
    return Check("cloud_init", True, f"ended without error, {result.get('datasource') or 'no data source'}")


def _datasource(facts: t.Mapping[str, str], wanted: str) -> Check:
    found = str(_json(facts.get("result")).get("datasource") or "none")
    return Check("datasource", found.startswith(f"DataSource{wanted}"), f"{found}, {wanted} was there")


def _cloud_init_warnings(facts: t.Mapping[str, str]) -> Check:
    # since cloud-init 23.4; it calls such a boot «degraded»
    found = [
        f"{level}: {' '.join(str(message).split())}"
        for stage in _stages(facts).values()
        for level, messages in stage.get("recoverable_errors", {}).items()
        for message in messages
    ]
    reasons = "; ".join(dict.fromkeys(found))
    return Check("cloud_init_warnings", not found, f"degraded: {reasons}" if found else "none", required=False)


def _root_size(facts: t.Mapping[str, str]) -> int:
    fields = (facts.get("root", "").splitlines() or [""])[-1].split()
    return int(fields[1]) * 1024 if len(fields) > 1 and fields[1].isdigit() else 0


def _root_filesystem(facts: t.Mapping[str, str], size_before: int) -> Check:
    size = _root_size(facts)
    # what did not grow cannot be larger than the whole disk was
    detail = f"{size >> 20} MiB, on a disk that had {size_before >> 20} MiB"
    return Check("root_filesystem_grew", size > size_before, detail)


def _host_keys(facts: t.Mapping[str, str], began: int) -> Check:
    rows = [line.split(" ", 1) for line in facts.get("host-keys", "").splitlines() if " " in line]
    names = [path.rpartition("/")[2] for _time, path in rows]
    old = [path.rpartition("/")[2] for made, path in rows if not made.isdigit() or int(made) < began - _SLACK]
    if not rows or not began:
        return Check("fresh_host_keys", False, "there are none" if not rows else "the time of the boot is not known")
    if old:
        return Check("fresh_host_keys", False, f"older than the boot: {', '.join(old)}")
    return Check("fresh_host_keys", True, f"made at this boot: {', '.join(names)}")


def _machine_id(facts: t.Mapping[str, str], began: int) -> Check:
    value, _sep, made = facts.get("machine-id", "").partition("\n")
    if not _HEX.fullmatch(value):
        return Check("fresh_machine_id", False, f"it is {value!r}, no machine id")
    if not began or not made.isdigit() or int(made) < began - _SLACK:
        return Check("fresh_machine_id", False, "it is older than the boot: it comes with the image")
    return Check("fresh_machine_id", True, "made at this boot")


@dataclasses.dataclass(frozen=True)
class Listener:
    """A socket that takes what comes: ``proto`` is C(tcp) or C(udp), ``process`` may not be known."""

    proto: str
    address: str
    port: int
    process: str

    @property
    def name(self) -> str:
        """As C(22/tcp)."""
        return f"{self.port}/{self.proto}"

    @property
    def local(self) -> bool:
        """Whether nobody else reaches it: it is on the loopback interface, or a DHCP client's."""
        address, _sep, interface = self.address.partition("%")
        return interface == "lo" or address.startswith("127.") or address == "::1" or self.name in ("68/udp", "546/udp")


def listeners(facts: t.Mapping[str, str]) -> list[Listener]:
    """What listens, as C(ss) tells it."""
    found = []
    for line in facts.get("listening", "").splitlines():
        words = line.split()
        address, _sep, port = words[4].rpartition(":") if len(words) > 4 else ("", "", "")
        if port.isdigit():
            # of IPv6: [::]:22, [fe80::1]%eth0:546
            process = re.search(r'users:\(\("([^"]*)"', line)
            plain = address.replace("[", "").replace("]", "")
            found.append(Listener(words[0], plain, int(port), process[1] if process else ""))
    return found


def _listening(facts: t.Mapping[str, str], allowed: t.Sequence[str]) -> Check:
    found = listeners(facts)
    others = [one for one in found if not one.local]
    told = [f"{one.process or 'something'} on {one.address} port {one.name}" for one in others]
    wrong = [text for one, text in zip(others, told) if one.name not in ("22/tcp", *allowed)]
    if not others:
        return Check("listening", False, "what listens cannot be told: not even the SSH server was seen")
    return Check("listening", not wrong, "; ".join(dict.fromkeys(wrong or told)))


def _units(facts: t.Mapping[str, str], allowed: t.Sequence[str]) -> Check:
    state = facts.get("system") or "unknown"
    failed = [line.split()[0] for line in facts.get("failed", "").splitlines() if line.strip()]
    wrong = [name for name in failed if not any(fnmatch.fnmatchcase(name, pattern) for pattern in allowed)]
    if wrong:
        return Check("no_failed_units", False, f"failed: {', '.join(wrong)}")
    if state not in ("running", "degraded"):
        return Check("no_failed_units", False, f"the boot has not come to its end: the system is {state}")
    return Check("no_failed_units", True, f"none but allowed ones: {', '.join(failed)}" if failed else "none")
