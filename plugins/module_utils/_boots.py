# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""One clone of an artifact: booted on an overlay that goes with it, asked from within, and looked at from outside."""

from __future__ import annotations

import dataclasses
import threading
import time
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import (
    _context_cd,
    _dictionary,
    _frames,
    _lynis_live,
    _machine,
    _outside,
    _probe,
    _qemu_img,
    _secant,
    _seed,
    _ssh,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import Cancelled, FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._probe import Check
from ansible_collections.cloudimg.factory.plugins.module_utils._secant import Outcome

BOOTS = {
    f"{firmware}-{source.lower()}": (firmware, source)
    for firmware in _machine.FIRMWARE
    for source in ("NoCloud", "OpenNebula")
}
"""The ways to boot: firmware, and the data source of cloud-init that is there."""
_ADDRESS = "10.0.2.15"
"""That which QEMU's user network gives the first who asks, and which it forwards to."""
_NETWORK = {"mask": "255.255.255.0", "gateway": "10.0.2.2", "dns": "10.0.2.3"}
_SLOW_LOGIN = 300.0
"""Seconds after the SSH server's first word within which the key must get in: cloud-init may still be busy with it."""
_SLOW_CARD = 60.0
_GUESSING = 180.0


@dataclasses.dataclass(frozen=True)
class Order:
    """What to boot, and what to ask; sizes in bytes but ``memory``, which is in MiB."""

    name: str
    machine: str
    artifact: Path
    format: str
    size: int
    cluster_size: int
    grow: int
    user: str
    accelerator: str
    cpus: int
    memory: int
    allowed_units: tuple[str, ...]
    allowed_ports: tuple[str, ...]
    timeout: float
    number: int
    lynis: bool

    @property
    def mac(self) -> str:
        """The hardware address of the clone's card: that of a cloud, no two the same."""
        return f"02:00:0a:00:02:{self.number + 15:02x}"

    @property
    def late_mac(self) -> str:
        """That of the card which is plugged in later."""
        return f"02:00:0a:00:03:{self.number + 15:02x}"


@dataclasses.dataclass
class Boot:
    """What one boot showed; ``timings`` in seconds from the machine's start.

    :ivar outcomes: those of SECANT's probes that this boot could answer.
    :ivar facts: what the guest told, text by section; ``lynis``: see :func:`_lynis_live.audit`.
    """

    name: str
    checks: list[Check] = dataclasses.field(default_factory=list)
    timings: dict[str, float] = dataclasses.field(default_factory=dict)
    outcomes: list[Outcome] = dataclasses.field(default_factory=list)
    facts: dict[str, str] = dataclasses.field(default_factory=dict)
    client_id: bytes = b""
    open_ports: list[str] = dataclasses.field(default_factory=list)
    lynis: dict[str, t.Any] | None = None

    def dump(self) -> dict[str, t.Any]:
        """Its entry in C(boots) of C(assess.json)."""
        firmware, source = BOOTS[self.name]
        facts = {**_probe.summary(self.facts), "dhcp_client_id": self.client_id.hex(), "open_ports": self.open_ports}
        return {
            "name": self.name,
            "firmware": firmware,
            "datasource": source,
            "timings": self.timings,
            "listening": [dataclasses.asdict(one) for one in _probe.listeners(self.facts)],
            "facts": facts if self.facts else {},
        }


class Watcher:
    """What the boots tell of themselves while they run, and how they learn that nobody wants them any more."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[str, str]] = {}
        self.cancelled = threading.Event()

    def tell(self, boot: str, phase: str, console: str) -> None:
        """Note where a boot is; raises Cancelled when it is to end."""
        if self.cancelled.is_set():
            raise Cancelled("it is not wanted any more", where=boot)
        self._told[boot] = (phase, console)

    def phases(self) -> str:
        """Where they all are, in one line."""
        return "; ".join(f"{name}: {phase}" for name, (phase, _console) in sorted(self._told.items()))

    def consoles(self) -> str:
        """What their consoles said last, in one line."""
        return " | ".join(console for _name, (_phase, console) in sorted(self._told.items()) if console)


def boot(order: Order, runtime: Path, logs: Path, watcher: Watcher) -> Boot:
    """Boot a clone, and ask it. What keeps it from being judged is a failed check of its own.

    :param runtime: a private directory of its own, which the caller removes.
    :param logs: where C(assess-console-<name>.log) and C(assess-screen-<name>.png) go.
    """
    found = Boot(order.name)
    firmware, source = BOOTS[order.name]
    picture = logs / f"assess-screen-{order.name}.png"
    watcher.tell(order.name, "preparing", "")
    _prepare(order, runtime, source)
    with _outside.Link() as link:
        spec = _machine.Spec(
            name=order.machine,
            disk=runtime / "overlay.qcow2",
            accelerator=order.accelerator,
            firmware=firmware,
            cpus=order.cpus,
            memory=order.memory,
            seed=runtime / "seed.iso",
            isolated=True,
            mac=order.mac,
            link=link.port,
            copy_on_read=True,
        )
        with _machine.Machine(spec, runtime, logs / f"assess-console-{order.name}.log") as machine:
            try:
                _Visit(order, found, machine, link, watcher).make()
            except Cancelled:
                raise
            except FactoryError as exc:
                found.checks.append(Check(_reached(found), False, exc.problem))
            if not watcher.cancelled.is_set():
                machine.screenshot(picture)
    watcher.tell(order.name, "judged", "")
    return found


def _prepare(order: Order, runtime: Path, source: str) -> None:
    key = _ssh.make_key(runtime / "id")
    if source == "NoCloud":
        user_data = _seed.cloud_config({"ssh_authorized_keys": [key]})
        meta_data = {"instance-id": f"assess-{runtime.name}", "local-hostname": "assess"}
        _seed.make_seed(runtime / "seed.iso", user_data, meta_data)
    else:
        network = _context_cd.network(order.mac, _ADDRESS, **_NETWORK)
        values = {"SSH_PUBLIC_KEY": key, "SET_HOSTNAME": "assess", **network}
        _context_cd.make_context(runtime / "seed.iso", values)
    # a quarter at least: what had not grown is then smaller than the disk was, whatever the file system's overhead
    grown = -(-(order.size + max(order.grow, order.size // 4)) // 512) * 512
    _qemu_img.create(
        runtime / "overlay.qcow2",
        grown,
        backing=order.artifact,
        backing_fmt=order.format,
        options={"cluster_size": str(order.cluster_size)},
    )


def _reached(found: Boot) -> str:
    """The name of the check that is due, by what was reached before."""
    names = [check.name for check in found.checks]
    return next((name for name in ("boot", "login") if name not in names), "examination")


class _Visit:
    """All that is asked of one running clone."""

    def __init__(
        self, order: Order, found: Boot, machine: _machine.Machine, link: _outside.Link, watcher: Watcher
    ) -> None:
        self.order = order
        self.found = found
        self.machine = machine
        self.link = link
        self.watcher = watcher
        self.began = time.monotonic()
        self.deadline = self.began + order.timeout
        self.phase = "waiting for SSH"
        self.access = _ssh.Access(
            _machine.LOOPBACK, machine.port, order.user, machine.runtime / "id", machine.runtime / "known_hosts"
        )

    def make(self) -> None:
        """Ask everything; raises FactoryError when that does not go on."""
        banner = self.machine.wait_ssh(self.deadline - time.monotonic(), self.tick)
        self.found.timings["ssh"] = self.elapsed()
        self.check("boot", True, f"{banner} after {self.found.timings['ssh']:.0f} s")
        self.phase = "logging in"
        facts = self.found.facts = self.ask()
        since = _probe.seconds_since_finish(facts)
        if since is not None:
            self.found.timings["cloud_init"] = round(self.elapsed() - since, 1)
        self.found.checks += _probe.judge(
            facts,
            size_before=self.order.size,
            datasource=BOOTS[self.order.name][1],
            allowed_units=self.order.allowed_units,
            allowed_ports=self.order.allowed_ports,
        )
        self.look_for_passwords()
        self.look_from_outside()
        if self.order.lynis:
            self.phase = "auditing by Lynis"
            outcome, self.found.lynis = _lynis_live.audit(
                self.access, self.machine.runtime, max(60.0, self.deadline - time.monotonic()), self.tick
            )
            self.found.outcomes.append(outcome)
        self.plug_card()
        self.found.timings["all"] = self.elapsed()

    def elapsed(self) -> float:
        return round(time.monotonic() - self.began, 1)

    def check(self, name: str, ok: bool, detail: str, *, required: bool = True) -> None:
        self.found.checks.append(Check(name, ok, detail, required))

    def tick(self, _line: str = "") -> None:
        """Look whether it goes on, and tell where it is."""
        self.machine.watch.check()
        self.watcher.tell(self.order.name, self.phase, self.machine.console_tail())

    def ask(self) -> dict[str, str]:
        """What the guest tells from within; raises FactoryError when nobody can log in."""

        def look(line: str = "") -> None:
            if line.startswith(_probe.MARK) and "login" not in self.found.timings:
                self.found.timings["login"] = self.elapsed()
                self.check("login", True, f"{self.order.user} with the key of the {BOOTS[self.order.name][1]} source")
                self.phase = "waiting for cloud-init"
            self.tick()
            if time.monotonic() > self.deadline:
                raise FactoryError(
                    f"the boot did not come to its end within {self.order.timeout:.0f} s; "
                    f"the console's last line: {self.machine.console_tail()}"
                )

        give_up = time.monotonic() + _SLOW_LOGIN
        command = _probe.command(packages=self.order.number == 0)
        while True:
            done = _ssh.run(self.access, command, timeout=None, check=False, tick=look)
            facts = _probe.parse(done.stdout)
            if "end" in facts:
                look(_probe.MARK)
                return facts
            said = (done.stderr.strip().splitlines() or ["ssh said nothing"])[-1]
            if facts:
                raise FactoryError(f"the connection broke off: {said}")
            if time.monotonic() > give_up:
                raise FactoryError(f"{self.access.user} cannot log in: {said}")
            look("")
            time.sleep(2)

    def look_for_passwords(self) -> None:
        """Which ways of logging in are offered; where passwords are, guess some (with the first clone)."""
        self.phase = "trying to log in without a key"
        self.tick()
        methods = _ssh.offered_methods(self.access, timeout=180, tick=self.tick)
        self.found.checks.append(_probe.judge_methods(methods))
        self.found.outcomes.append(_secant.ssh_auth(methods))
        if not _secant.asks_for_password(methods):
            self.found.outcomes.append(Outcome("ssh_passwd", _secant.SKIPPED, "SSH asks nobody for a password"))
        elif self.order.number == 0:
            self.phase = "guessing passwords"
            found = _dictionary.attack(self.access, self.machine.runtime, seconds=_GUESSING, tick=self.tick)
            self.found.outcomes.append(found)

    def look_from_outside(self) -> None:
        """Knock at its ports, over IPv4 and, where it has an address of it, IPv6."""
        self.phase = "knocking at ports"
        own = self.link.link_locals.get(self.order.mac) or _frames.link_local(_frames.mac(self.order.mac))
        guests = [self.link.find(self.order.mac, address, self.tick) for address in (_ADDRESS, own)]
        present = [guest for guest in guests if guest]
        self.found.outcomes += self.knock(present)

    def knock(self, guests: list[_frames.End]) -> list[Outcome]:
        """What SECANT's probes of ports come to; what listens for all is knocked at whatever its number."""
        extra = [one.port for one in _probe.listeners(self.found.facts) if one.proto == "tcp" and not one.local]
        try:
            seen = _outside.knock(self.link, guests, self.tick, [*_outside.WELL_KNOWN, *extra])
        except Cancelled:
            raise
        except FactoryError as exc:
            return [Outcome(name, _secant.INTERNAL_FAILURE, exc.problem) for name in ("open_ports", "ntp_amp")]
        self.found.open_ports = seen.open_ports()
        return [_secant.open_ports(seen, self.order.allowed_ports), _secant.ntp_amp(seen)]

    def plug_card(self) -> None:
        """Plug in one more card: does the guest ask for an address there, and by what name does it call itself?"""
        self.phase = "plugging in a network card"
        self.machine.plug_card(self.order.late_mac)
        deadline = time.monotonic() + _SLOW_CARD
        while self.order.late_mac not in self.link.client_ids and time.monotonic() < deadline:
            time.sleep(0.5)
            self.tick()
        seen = self.link.client_ids
        late = seen.get(self.order.late_mac)
        self.found.client_id = late or seen.get(self.order.mac, b"")
        asked = "it asked for an address" if late else f"it asked for no address within {_SLOW_CARD:.0f} s"
        self.check("late_network_card", late is not None, asked, required=False)


def compare(boots: t.Sequence[Boot]) -> list[Check]:
    """What must not be the same on two clones. Nothing to compare is a failure: the boots did not come that far."""
    kinds: dict[str, list[str]] = {
        "different_machine_ids": [boot.facts.get("machine-id", "").partition("\n")[0] for boot in boots],
        "different_dhcp_client_ids": [_frames.identity(boot.client_id).hex() for boot in boots],
    }
    checks = [_differ(name, values) for name, values in kinds.items()]
    keys = [set(boot.facts.get("host-key-content", "").splitlines()) for boot in boots]
    shared = set.intersection(*keys)
    detail = f"shared: {', '.join(sorted(key.split()[0] for key in shared))}" if shared else "none is shared"
    known = all(keys)
    checks.append(
        Check("different_host_keys", known and not shared, detail if known else "not known of all", group="clones")
    )
    return checks


def _differ(name: str, values: list[str]) -> Check:
    if not all(values):
        # who never asks by DHCP has no such name; that alone is no fault
        required = name != "different_dhcp_client_ids"
        return Check(name, False, "not known of all", required, "clones")
    same = len(set(values)) < len(values)
    return Check(name, not same, f"the same: {values[0]}" if same else ", ".join(values), group="clones")
