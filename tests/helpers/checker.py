"""A probe engine and a clock that tests own, and short ways to write configurations."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

from maglev._health import entry, step
from maglev._probe import SNAPSHOT_FIELDS, Result, TargetInfo, Transition
from maglev.base.events import Bus, Event
from maglev.base.states import CheckType, Code, State
from maglev.checker.engine import RECORD
from maglev.config.model import (
    SECOND,
    Backend,
    Config,
    Frontend,
    HealthCheck,
    IcmpParams,
    Pool,
    PoolMember,
    Protocol,
)


class FakeClock:
    """Time that passes when the test says so. ``advance`` wakes what sleeps."""

    def __init__(self) -> None:
        self.now = 1_000 * SECOND
        self.epoch = 1_700_000_000 * SECOND
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = 0

    def monotonic_ns(self) -> int:
        return self.now

    def time_ns(self) -> int:
        return self.epoch + self.now

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._order += 1
        heapq.heappush(self._sleepers, (self.now + int(seconds * 1e9), self._order, future))
        await future

    def advance(self, seconds: float) -> None:
        self.now += int(seconds * 1e9)
        while self._sleepers and self._sleepers[0][0] <= self.now:
            future = heapq.heappop(self._sleepers)[2]
            if not future.done():
                future.set_result(None)


@dataclass(slots=True)
class FakeTarget:
    """A target as the fake engine keeps it."""

    id: int
    check: int
    address: bytes
    state: State
    counter: int
    first_delay: int
    generation: int = 1
    paused: bool = False
    presumed: bool = False
    traced: bool = False
    held: bool = False
    before: State = State.UNKNOWN
    run: int = 0
    silent: bool = False
    answered: bool = False
    was_up: bool = False
    passes: int = 0
    failures: int = 0
    blocked_since_ns: int = 0
    blocked_reason: str = ""


class FakeEngine:
    """Does what the native engine promises, one result at a time and only when the test gives one."""

    def __init__(self, clock: FakeClock, *, capacity: int = 1 << 17) -> None:
        self.clock = clock
        self.capacity = capacity
        self.checks: dict[int, HealthCheck] = {}
        self.targets: dict[int, FakeTarget] = {}
        self.refuse: str = ""
        self.rereads = 0
        self._next_check = 0
        self._free: list[int] = []
        self._generations: dict[int, int] = {}
        self._transitions: list[Transition] = []
        self._results: list[Result] = []

    def fileno(self) -> int:
        return -1

    def add_check(self, check: HealthCheck) -> int:
        if self.refuse:
            raise ValueError(self.refuse)
        self._next_check += 1
        self.checks[self._next_check] = check
        return self._next_check

    def remove_check(self, check_id: int) -> None:
        del self.checks[check_id]
        assert all(target.check != check_id for target in self.targets.values()), "a check in use was removed"

    def reread_authorities(self) -> None:
        self.rereads += 1

    def _bump(self, target: int) -> int:
        self._generations[target] = self._generations.get(target, 0) + 1
        return self._generations[target]

    def add_target(
        self,
        check_id: int,
        address: bytes,
        *,
        state: State = State.UNKNOWN,
        counter: int | None = None,
        first_delay: int = 0,
    ) -> int:
        check = self.checks[check_id]
        if len(self.targets) >= self.capacity:
            raise RuntimeError("the table of targets is full")
        number = self._free.pop() if self._free else len(self.targets)
        if counter is None:
            counter = entry(state, check.rise, check.fall)
        target = FakeTarget(number, check_id, address, state, counter, first_delay, self._bump(number))
        self.targets[number] = target
        return number

    def remove_target(self, target: int) -> None:
        del self.targets[target]
        self._bump(target)
        self._free.append(target)

    def pause_target(self, target: int) -> None:
        self.targets[target].paused = True
        self.targets[target].generation = self._bump(target)

    def resume_target(
        self, target: int, *, state: State = State.UNKNOWN, counter: int | None = None, first_delay: int = 0
    ) -> None:
        item = self.targets[target]
        check = self.checks[item.check]
        item.state, item.paused, item.first_delay = state, False, first_delay
        item.counter = entry(state, check.rise, check.fall) if counter is None else counter
        item.presumed = False
        item.generation = self._bump(target)

    def change_check(self, target: int, check_id: int) -> None:
        item, check = self.targets[target], self.checks[check_id]
        item.check = check_id
        item.counter = entry(item.state, check.rise, check.fall)
        item.generation = self._bump(target)

    def presume(self, target: int, good: bool) -> None:
        item = self.targets[target]
        if item.state is State.UNKNOWN:
            check = self.checks[item.check]
            item.presumed = good
            item.counter = check.rise + check.fall - 1 if good else check.rise - 1

    def hold(self, target: int, state: State) -> None:
        item = self.targets[target]
        if item.state is State.DOWN:
            item.held, item.before, item.run = True, state, 0

    def release(self, target: int) -> None:
        item = self.targets[target]
        if not item.held:
            return
        item.held = False
        check = self.checks[item.check]
        if item.state is State.DOWN and item.run < check.fall:
            item.state, item.counter = item.before, check.rise + check.fall - 1 - item.run
        elif item.state is State.DOWN:
            self._report(item, item.before, Code.L3TOUT, "")

    def silence(self, target: int) -> tuple[int, int, int]:
        up = [item for item in self.targets.values() if item.was_up or item.state is State.UP or item.presumed]
        return 0, len(up), sum(item.silent for item in up)

    def failing(self, target: int) -> bool:
        item = self.targets[target]
        return item.silent or item.answered or item.state is State.DOWN

    def _report(self, target: FakeTarget, before: State, code: Code, detail: str) -> None:
        now = self.clock.time_ns()
        self._transitions.append(
            Transition(
                target.id, target.generation, before, target.state, code, detail, now, target.counter, target.silent
            )
        )

    def trace(self, target: int, on: bool) -> None:
        self.targets[target].traced = on

    def transitions(self, most: int = 4096) -> list[Transition]:
        taken, self._transitions = self._transitions[:most], self._transitions[most:]
        return taken

    def results(self, most: int = 4096) -> list[Result]:
        taken, self._results = self._results[:most], self._results[most:]
        return taken

    def generation(self, target: int) -> int:
        return self._generations[target]

    def target_info(self, target: int) -> TargetInfo:
        item = self.targets[target]
        codes = [0] * (int(Code.L7RSP) + 1)
        codes[Code.L3OK], codes[Code.L3TOUT] = item.passes, item.failures
        probed = item.passes + item.failures > 0
        return TargetInfo(
            generation=self._generations[target],
            state=State.PAUSED if item.paused else item.state,
            counter=item.counter,
            last_code=Code.L3OK if probed else Code.NONE,
            last_detail="",
            last_at_ns=self.clock.time_ns() if probed else 0,
            last_rtt_ns=1000 if probed else 0,
            rtt_sum_ns=1000 * item.passes,
            rtt_count=item.passes,
            blocked_since_ns=item.blocked_since_ns,
            blocked_reason=item.blocked_reason,
            codes=tuple(codes),
        )

    def snapshot(self) -> bytes:
        records = []
        for target in sorted(self.targets):
            info = self.target_info(target)
            known = {**info._asdict(), "target": target}
            fields = [int(known.get(name, 0)) for name in SNAPSHOT_FIELDS]
            records.append(RECORD.pack(*fields, *info.codes))
        return b"".join(records)

    def stats(self) -> dict[str, int]:
        return {"targets": len(self.targets)}

    def probed(self, address: str) -> FakeTarget:
        """The target of an address."""
        packed = ip_address(address).packed
        return next(target for target in self.targets.values() if target.address == packed)

    def is_probed(self, address: str) -> bool:
        """Whether probes go to an address."""
        packed = ip_address(address).packed
        return any(target.address == packed and not target.paused for target in self.targets.values())

    def result(self, address: str, passed: bool, code: Code | None = None, detail: str = "") -> None:
        """One probe of ``address`` ends; nothing happens while it is paused."""
        target = self.probed(address)
        if target.paused:
            return
        check = self.checks[target.check]
        before = target.state
        number, target.counter = step(target.state, target.counter, check.rise, check.fall, passed)
        target.state = State(number)
        if passed:
            target.passes += 1
        else:
            target.failures += 1
        if code is None:
            code = Code.L3OK if passed else Code.L3TOUT
        now = self.clock.time_ns()
        if target.traced:
            self._results.append(
                Result(target.id, target.generation, number, target.counter, passed, code, detail, now, 1000 * passed)
            )
        target.was_up = not passed and (target.was_up or before is State.UP or target.presumed)
        target.run = 0 if passed else target.run + 1
        silence = not passed and code in (Code.L3TOUT, Code.L4TOUT, Code.L6TOUT, Code.L7TOUT)
        target.answered = not passed and (target.answered or not silence)
        target.silent = silence and not target.answered
        if target.held and target.answered:
            target.held = False
            self._report(target, target.before, code, detail)
        elif target.state is not before:
            target.held = False
            self._report(target, before, code, detail)


def check(name: str = "ping", **changes: object) -> HealthCheck:
    """An ICMP check, 1 s apart, rise 2, fall 3."""
    values: dict[str, object] = {
        "name": name,
        "type": CheckType.ICMP,
        "params": IcmpParams(),
        "interval": SECOND,
        "fast_interval": SECOND,
        "down_interval": SECOND,
        "timeout": SECOND,
        "rise": 2,
        "fall": 3,
    }
    return HealthCheck(**{**values, **changes})  # type: ignore[arg-type]


def config(
    backends: Mapping[str, str] | Iterable[Backend],
    frontends: Mapping[str, list[dict[str, int]]] | None = None,
    checks: Iterable[HealthCheck] = (),
    **changes: object,
) -> Config:
    """A configuration. Backends as name -> address (checked by ``ping``) or as objects; frontends as name -> pools,
    a pool as backend -> weight; frontend number i has the address 10.0.0.i.
    """
    if isinstance(backends, Mapping):
        backends = [Backend(name, ip_address(address), "ping") for name, address in backends.items()]
    made = {}
    for number, (name, pools) in enumerate((frontends or {}).items(), 1):
        made[name] = Frontend(
            name=name,
            address=ip_address("10.0.0.0") + number,
            protocol=Protocol.TCP,
            port=80,
            pools=tuple(
                Pool(f"pool{i}", tuple(PoolMember(b, w) for b, w in members.items())) for i, members in enumerate(pools)
            ),
        )
    known = {item.name: item for item in (check(), *checks)}
    return Config(
        backends={item.name: item for item in backends},
        frontends=made,
        healthchecks=known,
        **changes,  # type: ignore[arg-type]
    )


@dataclass
class Recorder:
    """Everything that was published, in order."""

    bus: Bus
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bus.listen(self.events.append)

    def take(self) -> list[Event]:
        """The events since the last call."""
        taken, self.events[:] = list(self.events), []
        return taken
