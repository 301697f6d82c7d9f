"""Was this write right? A mirror of VPP, made from the log of writes, and the questions that each write has to stand.

Pure: it knows the facts, never the daemon. A write by the daemon is judged when all facts of its time are known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from tests.chaos.facts import Facts, Force
from tests.chaos.plan import Member, Plan, Vip, desired

DAEMON = "vpp-maglev"
DRIFT = "drift"

FLAP_SECONDS = 5.0
"""Failures this close to each other add up: a pass between them takes back one failure, not all."""

UNPROVEN_SECONDS = 1.5
"""For how long an unproven failure can wait for the next one."""

EPSILON = Fraction(1, 1000)
"""Halves are rounded upwards."""

RISE_SECONDS = 3.0
"""The longest time that a recovered server needs to be up, with its slowest check."""


@dataclass(frozen=True, slots=True)
class Write:
    """One call that the stand-in has received. ``address`` empty: it is about the VIP."""

    t: float
    client: str
    call: str
    vip: str = ""
    address: str = ""
    weight: int = 0
    flush: bool = False
    delete: bool = False
    table: int = 0
    sticky: bool = False
    retval: int = 0


@dataclass(slots=True)
class Held:
    """A VIP in VPP: the weights of its live ASes by address."""

    table: int
    sticky: bool
    ases: dict[str, int] = field(default_factory=dict)

    @property
    def serves(self) -> bool:
        """Whether any AS gets new flows."""
        return any(self.ases.values())


@dataclass(frozen=True, slots=True)
class Violation:
    """A write, or a state, that nothing explains."""

    t: float
    text: str


@dataclass(frozen=True, slots=True)
class Pace:
    """Of a health check: the least seconds of failure from which a verdict can come. ``group``: of the servers.

    ``served``: a process has to run for the answer, which can be late; the kernel answers pings and connections.
    """

    least: float
    group: str
    served: bool


class Oracle:
    """Judges writes. ``paces``: by name of the health check; the empty name is that of static backends."""

    def __init__(self, facts: Facts, paces: Mapping[str, Pace]) -> None:
        self.facts = facts
        self.paces = paces
        self.vips: dict[str, Held] = {}
        self.violations: list[Violation] = []
        self.counts: Counter[str] = Counter()
        self._flushed: dict[tuple[str, str], float] = {}
        self._served: dict[str, float] = {}
        self._deleted: dict[str, float] = {}

    def emptied(self) -> None:
        """VPP was started: it holds nothing."""
        self.vips.clear()

    # ---- writes

    def write(self, write: Write) -> None:
        """Judge a call, and follow it."""
        if write.client not in (DAEMON, DRIFT):
            self._violation(write.t, f"a write by {write.client!r}: {write}")
        if write.retval:
            self.counts["calls refused"] += 1
            return
        judged = write.client == DAEMON
        match write.call:
            case "lb_add_del_vip_v2":
                self._vip(write, judged)
            case "lb_add_del_as_v2" | "lb_as_set_weight":
                self._as(write, judged)
            case "lb_flush_vip" if judged and (held := self.vips.get(write.vip)) is not None:
                if not any(self._flush_is_owed(write, address) for address in held.ases):
                    self._violation(write.t, f"{write.vip}: all its flows are flushed, and nothing explains it")
                self._flushed.update({(write.vip, address): write.t for address in held.ases})
            case _:
                pass

    def _vip(self, write: Write, judged: bool) -> None:
        forces = self.facts.plans(self.facts.since(write.t), write.t)
        if not write.delete:
            self.vips[write.vip] = Held(write.table, write.sticky)
            self.counts["VIPs made"] += 1
            if judged and not any(write.vip in force.plan.vips for force in forces):
                self._violation(write.t, f"{write.vip} is made, and no configuration in force has it")
            return
        held = self.vips.pop(write.vip, None)
        self.counts["VIPs deleted"] += 1
        if judged and held is not None and not self._may_go(write.vip, held, forces):
            self._violation(write.t, f"{write.vip} is deleted, and no accepted configuration lacks it or changes it")

    @staticmethod
    def _may_go(key: str, held: Held, forces: list[Force]) -> bool:
        """Whether a VIP may be deleted: it has left the configuration, or has to be recreated."""
        for force in forces:
            vip = force.plan.vips.get(key)
            if vip is None:
                if force.prunes:
                    return True
            elif (vip.table, vip.sticky) != (held.table, held.sticky):
                return True
        return False

    def _as(self, write: Write, judged: bool) -> None:
        held = self.vips.get(write.vip)
        if held is None:
            self._violation(write.t, f"VPP accepted a call about {write.vip}, which it has not: {write}")
            return
        served, old = held.serves, held.ases.get(write.address)
        if write.delete:
            held.ases.pop(write.address, None)
            new = None
            self.counts["ASes deleted"] += 1
        else:
            new = held.ases[write.address] = write.weight
            self.counts["ASes added" if old is None else "weights set"] += 1
        if held.serves:
            self._served[write.vip] = write.t
        if not judged:
            return
        if write.flush and old is not None:
            if not self._flush_is_owed(write, write.address):
                self._violation(write.t, f"{write.vip} {write.address} is flushed, and nothing explains it")
            self._flushed[write.vip, write.address] = write.t
            self.counts["flushes"] += 1
        why = self._wrong(write, held, old or 0, new)
        if why:
            self._violation(write.t, f"{write.vip} {write.address} {_weight(old)} -> {_weight(new)}: {why}")
        if served and not held.serves and (why := self._wrongly_empty(write, held)):
            self._violation(write.t, f"{write.vip} is left without a server: {why}")

    def _wrong(self, write: Write, held: Held, old: int, new: int | None) -> str:
        """Why the weight ``new`` (None: no AS any more) is wrong; empty: it is explained."""
        since = self.facts.since(write.t)
        forces = self.facts.plans(since, write.t)
        if self._may_go(write.vip, held, forces) and (new or 0) <= old:
            return ""
        vips = [vip for force in forces if (vip := force.plan.vips.get(write.vip)) is not None]
        if not vips:
            return "no configuration in force has this VIP, or may change it"
        found = [(vip, *place) for vip in vips if (place := vip.find(write.address)) is not None]
        if len(found) < len(vips) and (new or 0) <= old:
            return ""
        if not found:
            return "no configuration in force has this server there"
        if new is None:
            return "every configuration in force has this server there"
        if new and not any(
            new in (values := self._values(vip, member, since, write.t))
            or self._on_found_scale(held, vip, member, old, new, values)
            or _on_the_way(old, new, values)
            for vip, _, member in found
        ):
            return "no configuration and no operator has set this weight"
        if new < old:
            return (
                ""
                if new or any(self._may_be_zero(*one, since, write.t) for one in found)
                else ("its server has not failed, and no operator or configuration took it out")
            )
        if new > old:
            return next((why for one in found if (why := self._may_not_rise(*one, since, write.t))), "")
        return ""

    def _values(self, vip: Vip, member: Member, since: float, t: float) -> set[int]:
        weights = {member.weight}
        for weight, spans in self.facts.weights[vip.key, member.address].items():
            if spans.touches(since, t):
                weights.add(weight)
        return {vip.programmed(weight) for weight in weights}

    @staticmethod
    def _on_found_scale(held: Held, vip: Vip, member: Member, old: int, new: int, values: set[int]) -> bool:
        """Whether a weight has the scale of the VIP's weights: a daemon that starts keeps the scale it finds."""
        ratios = {
            Fraction(held.ases[other.address], vip.programmed(other.weight))
            for _, other in vip.members()
            if other is not member and held.ases.get(other.address) and other.weight
        }
        if not ratios and old and member.weight:
            ratios = {Fraction(old, vip.programmed(member.weight))}
        return len(ratios) == 1 and any(
            max(1, round(value * max(ratios) + EPSILON)) == new for value in values if value
        )

    def _may_be_zero(self, vip: Vip, pool: int, member: Member, since: float, t: float) -> bool:
        if self.facts.out[member.backend].touches(since, t) or 0 in self._values(vip, member, since, t):
            return True
        if self.failed(member, since, t):
            return True
        if any(self._may_serve(vip, other, since, t) for number, other in vip.members() if number < pool):
            return True
        # Its pool may have too few servers, while a later one serves.
        # A pool that one server makes usable has this one.
        later = any(self._may_serve(vip, other, since, t) for number, other in vip.members() if number > pool)
        return later and vip.least_of(pool) > 1 and not self._enough(vip, pool, since, t)

    def _enough(self, vip: Vip, pool: int, since: float, t: float) -> bool:
        """Whether a pool must have as many good servers as make it usable."""
        return sum(self.usable(vip, member, since, t) for member in vip.pools[pool]) >= vip.least_of(pool)

    def _may_serve(self, vip: Vip, member: Member, since: float, t: float) -> bool:
        facts = self.facts
        return not (
            facts.dead[member.address].covers(since, t)
            or facts.taken[member.backend].covers(since, t)
            or self._values(vip, member, since, t) == {0}
        )

    def failed(self, member: Member, since: float, t: float, after: float = 0.0) -> bool:
        """Whether its server may have failed for long enough, and so lately that it may count now.

        Failures that began before ``after`` do not count.
        """
        pace = self._pace(member.backend)
        if pace is None:
            return False
        if pace.served and self.facts.slow[pace.group].touches(since - FLAP_SECONDS, t):
            self.counts["verdicts that the servers' own slowness may explain"] += 1
            return True
        bad = self.facts.bad[member.address]
        if not bad.touches(since, t):
            return False
        spans = bad.within(since - FLAP_SECONDS, t)
        # The first failure of a run counts unproven: a trouble of ours shortly before can be one of the two.
        least = 0.0 if self.facts.blind[pace.group].touches(since - UNPROVEN_SECONDS, t) else pace.least
        return any(a >= after for a, _ in spans) and sum(min(b, t) - a for a, b in spans if a >= after) >= least

    def _pace(self, backend: str) -> Pace | None:
        for force in reversed(self.facts.forces):
            if backend in force.plan.checks:
                return self.paces.get(force.plan.checks[backend])
        return None

    def _may_not_rise(self, vip: Vip, pool: int, member: Member, since: float, t: float) -> str:
        if vip.keep:
            # After VPP was emptied, such a frontend gets its old weights back, whatever health says.
            return ""
        if self.facts.taken[member.backend].covers(since, t):
            return "an operator took this server out"
        horizon = self._horizon(member, since, t)
        if self.facts.dead[member.address].covers(horizon, t):
            return "this server has been failing for long"
        needless = next((number for number in range(pool) if self._enough(vip, number, since, t)), None)
        return f"the earlier pool {vip.pool_names[needless]} serves" if needless is not None else ""

    # ---- what is sure

    def _horizon(self, member: Member, since: float, t: float) -> float:
        """From when on a state of a server must be known by now: probes had to be able to leave meanwhile."""
        pace = self._pace(member.backend)
        horizon = since - RISE_SECONDS
        if pace is not None:
            for a, _ in reversed(self.facts.blind[pace.group].within(horizon, t)):
                horizon = min(horizon, self.facts.since(a) - RISE_SECONDS)
        return horizon

    def _unlearned(self, member: Member, recent: float, t: float) -> bool:
        """Whether daemon and VPP were both started while no probe could leave, and too little time has passed since.

        The new daemon then has no verdict, and the empty VPP shows it none. Servers that answer are used in the order
        of their answers, so a fallback can serve until the first answer from an earlier pool.
        """
        pace = self._pace(member.backend)
        if pace is None:
            return False
        for a, _ in self.facts.blind[pace.group].within(recent, t):
            since = self.facts.since(a)
            if all(
                any(since <= moment <= t for moment in moments) for moments in (self.facts.started, self.facts.emptied)
            ):
                return True
        return False

    def usable(self, vip: Vip, member: Member, since: float, t: float) -> bool:
        """Whether a server must be known to be good: it has served for long, and nothing speaks against it."""
        horizon = self._horizon(member, since, t)
        pace = self._pace(member.backend)
        facts = self.facts
        return not (
            self._unlearned(member, since, t)
            or facts.bad[member.address].touches(horizon, t)
            or facts.out[member.backend].touches(horizon, t)
            or (pace is not None and pace.served and facts.slow[pace.group].touches(horizon, t))
            or 0 in self._values(vip, member, horizon, t)
            or any(
                (other := force.plan.vips.get(vip.key)) is None or other.find(member.address) is None
                for force in facts.plans(horizon, t)
            )
        )

    def _wrongly_empty(self, write: Write, held: Held) -> str:
        since = self.facts.since(write.t)
        forces = self.facts.plans(since, write.t)
        if self._may_go(write.vip, held, forces):
            return ""
        vips = [vip for force in forces if (vip := force.plan.vips.get(write.vip)) is not None]
        for vip in vips:
            for _, member in vip.members():
                if self.usable(vip, member, since, write.t):
                    return f"{member.backend} ({member.address}) serves"
        if vips and all(vip.keep for vip in vips):
            found = [(vip, place[1]) for vip in vips if (place := vip.find(write.address)) is not None]
            if found and not any(
                self.facts.out[member.backend].touches(since, write.t) or 0 in self._values(vip, member, since, write.t)
                for vip, member in found
            ):
                return "on-all-down is keep, and no operator took the last one out"
        return ""

    # ---- flushes

    def _flush_is_owed(self, write: Write, address: str) -> bool:
        since = self.facts.since(write.t)
        forces = self.facts.plans(since, write.t)
        held = self.vips[write.vip]
        if self._may_go(write.vip, held, forces):
            return True
        # Since its last flush; or since ever, where the acknowledgement of the last one may have been lost.
        last = self._flushed.get((write.vip, address), 0.0)
        if any(moment >= last - 1 for moment in [*self.facts.broken, *self.facts.drift[write.vip]]):
            last = 0.0
        for force in forces:
            vip = force.plan.vips.get(write.vip)
            place = None if vip is None else vip.find(address)
            if vip is None or place is None:
                return True
            member = place[1]
            if self.facts.flushed[member.backend].touches(last, write.t):
                return True
            # The failure that explained the last one, and goes on, explains no other.
            if vip.flush and self.failed(member, last, write.t, self.facts.since(last) if last else 0.0):
                return True
        return False

    # ---- the state

    def unsettled(
        self,
        plan: Plan,
        usable: Callable[[Member], bool],
        weight: Callable[[Vip, Member], int],
        kept: Callable[[Member], bool],
    ) -> list[str]:
        """Where VPP is not what health, configuration and operators want."""
        found = [f"{key} is in VPP, and not in the configuration" for key in self.vips.keys() - plan.vips.keys()]
        for key, vip in plan.vips.items():
            held = self.vips.get(key)
            if held is None:
                found.append(f"{key} is not in VPP")
                continue
            if (held.table, held.sticky) != (vip.table, vip.sticky):
                found.append(f"{key}: table {held.table}, sticky {held.sticky}; not {vip.table}, {vip.sticky}")
            wanted = desired(vip, usable, lambda m, vip=vip: weight(vip, m), kept)  # type: ignore[misc]
            self.counts["weights checked"] += len(wanted)
            for address in wanted.keys() | held.ases.keys():
                want, has = wanted.get(address, -1), held.ases.get(address, -1)
                if want is not None and want != has:
                    found.append(f"{key} {address}: {_weight(has)} instead of {_weight(want)}")
                elif want is None and has < 0:
                    found.append(f"{key} {address} is not in VPP")
            if None in wanted.values() and not held.serves and not self._forgotten(key):
                found.append(f"{key}: on-all-down is keep, and its weights are gone")
        return found

    def _forgotten(self, key: str) -> bool:
        """Whether neither VPP nor the daemon can know what a VIP had: both were started since."""
        served = self._served.get(key)
        if served is None:
            return True
        return any(t >= served for t in self.facts.emptied) and any(t >= served for t in self.facts.started)

    def differs(self, dump: Mapping[str, Mapping[str, int]]) -> list[str]:
        """Where a dump of VPP is not what its log of writes says."""
        mine = {key: dict(held.ases) for key, held in self.vips.items()}
        self.counts["weights read"] += sum(len(ases) for ases in dump.values())
        return [
            f"{key}: {dump.get(key)} by the dump, {mine.get(key)} by the writes"
            for key in mine.keys() | dump.keys()
            if mine.get(key) != dump.get(key)
        ]

    def _violation(self, t: float, text: str) -> None:
        self.violations.append(Violation(t, text))


def _on_the_way(old: int, new: int, values: set[int]) -> bool:
    """Whether a weight is a pass on the way to another scale: towards a right value, by a factor of two at most."""
    return any(min(old, value) < new < max(old, value) and max(old, new) <= 2 * min(old, new) for value in values)


def _weight(weight: int | None) -> str:
    return "none" if weight is None or weight < 0 else str(weight)
