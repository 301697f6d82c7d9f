"""Every mechanism of judgement together, through the checker to the weights that VPP is given, with a simulated clock.

Brake, pools, panic, slow start, presumption and operators act on two frontends that share servers. Verdicts, silence,
answers, verbs, weights, reloads, restarts of the daemon and time come in any order. After each of them the frontends
are programmed as the dataplane does it, into a table that stands for VPP.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from maglev.base.errors import NotAllowed
from maglev.base.events import BackendEvent, Bus, Event
from maglev.base.pace import at_once
from maglev.base.states import Code, State
from maglev.checker import Checker
from maglev.config.model import (
    ONE_MEMBER,
    SECOND,
    Brake,
    Config,
    Frontend,
    OnAllDown,
    Panic,
    PanicAction,
    Pool,
    Threshold,
)
from maglev.judgement.together import MOST_NS
from maglev.judgement.weights import FrontendWeights
from maglev.vpp.planning.desired import desired_vip
from maglev.vpp.planning.model import ActualAs, ActualVip, vip_key
from maglev.vpp.state.adoption import look_at
from maglev.vpp.state.warmup import LEAST_VERDICT_NS, WarmUp
from tests.helpers.checker import FakeClock, FakeEngine, config

NAMES = "abcdefgh"
ADDRESSES = {name: f"192.0.2.{number}" for number, name in enumerate(NAMES, 1)}
FRONTENDS: dict[str, list[dict[str, int]]] = {
    "first": [dict.fromkeys("abcd", 100), {"e": 50, "f": 100}],
    "second": [dict.fromkeys("hgca", 40), {"b": 100}],
}
RISE, FALL = 2, 3
HOLD = 15 * SECOND
QUIET = 1_300
"""Seconds after which every hold has ended: the longest is the rest of the brake, ten minutes."""


@dataclass(frozen=True)
class Mechanisms:
    """The mechanisms that a configuration turns on."""

    brake: bool = False
    panic: Panic | None = None
    slow_start: int = 0
    least: Threshold = ONE_MEMBER
    again: Threshold = ONE_MEMBER
    after: int = 0
    keep: bool = False

    def config(self) -> Config:
        made = config(ADDRESSES, FRONTENDS)
        frontends = {name: self._frontend(frontend) for name, frontend in made.frontends.items()}
        return replace(made, frontends=frontends, brake=Brake(0.4, 2, HOLD) if self.brake else None)

    def _frontend(self, frontend: Frontend) -> Frontend:
        return replace(
            frontend,
            pools=tuple(self._pool(pool) for pool in frontend.pools),
            panic=self.panic,
            slow_start=self.slow_start,
            on_all_down=OnAllDown.KEEP if self.keep else OnAllDown.DRAIN,
        )

    def _pool(self, pool: Pool) -> Pool:
        return replace(pool, min_up=self.least, resume_up=self.again, resume_after=self.after)

    @property
    def forgets(self) -> bool:
        """Whether the settled weights depend on the present states alone."""
        kept = self.keep or (self.panic is not None and self.panic.action is PanicAction.KEEP)
        return not kept and self.again == self.least and not self.after


PLAIN = Mechanisms()
PANICS = st.none() | st.builds(Panic, st.sampled_from([0.3, 0.5, 0.8]), st.sampled_from(PanicAction))
LEAST = st.sampled_from([Threshold(1), Threshold(2), Threshold(60, percent=True)])


@st.composite
def mechanisms(draw: st.DrawFn) -> Mechanisms:
    least = draw(LEAST)
    return Mechanisms(
        brake=draw(st.booleans()),
        panic=draw(PANICS),
        slow_start=draw(st.sampled_from([0, 12])) * SECOND,
        least=least,
        again=draw(st.just(least) | st.just(Threshold(3))),
        after=draw(st.sampled_from([0, 0, 10])) * SECOND,
        keep=draw(st.booleans()),
    )


class Daemon:
    """One checker with its engine, and the part of the dataplane that presumes and programs."""

    def __init__(self, clock: FakeClock, vips: dict[str, ActualVip]) -> None:
        self.clock = clock
        self.vips = vips
        self.engine = FakeEngine(clock)
        self.bus = Bus()
        self.checker = Checker(self.engine, self.bus, clock)
        self.warmup = WarmUp(clock, min_delay_ns=0, max_delay_ns=0)
        self.bus.listen(self._heard)

    def _heard(self, event: Event) -> None:
        if isinstance(event, BackendEvent) and event.to_state is not State.UNKNOWN:
            self.warmup.resolved(event.name)

    async def start(self, conf: Config) -> None:
        """The daemon starts, and reads what VPP has."""
        await self.checker.apply(conf, by="start")
        self.warmup.begin(conf.backends, lambda name: self.checker.backend_state(name).state)
        for name, frontend in conf.frontends.items():
            self.vips.setdefault(name, ActualVip(vip_key(frontend), 0, 1024))
        found = at_once(look_at({vip.key: vip for vip in self.vips.values()}, self.checker))
        self.checker.settle(found.serving, found.pools)

    def probe(self, name: str, code: Code) -> None:
        """One probe ends."""
        if self.engine.is_probed(ADDRESSES[name]):
            self.engine.result(ADDRESSES[name], code is Code.L3OK, code)

    def act(self, verb: str, name: str, **more: object) -> None:
        """An operator's verb, which may be refused."""
        with contextlib.suppress(NotAllowed):
            getattr(self.checker, verb)(name, by="x", **more)

    def weigh(self, name: str, weight: int | None) -> None:
        """An operator sets the weight of a server, in every frontend that uses it."""
        for frontend, pools in FRONTENDS.items():
            for number, pool in enumerate(pools):
                if name in pool:
                    self.checker.set_weight(frontend, f"pool{number}", name, weight, by="x")

    def follow(self) -> None:
        """Read verdicts, and end what is due."""
        self.checker.end_holds()
        self.checker.read_engine()
        while self.engine._transitions:
            self.checker.read_engine()
        self.checker.read_engine()
        self.warmup.give_up(len(NAMES))

    def program(self) -> None:
        """Program every frontend that is settled."""
        for name, frontend in self.checker.config().frontends.items():
            if self.checker.unsettled(name):
                continue
            vip = self.vips[name]
            wanted = desired_vip(
                frontend, self.checker, unresolved=self.warmup.unresolved, awaited=self.warmup.awaited, found=vip
            )
            for ours in wanted.ases:
                have = vip.ases.get(ours.address, ActualAs(0))
                vip.ases[ours.address] = have if ours.weight is None else ActualAs(ours.weight)

    # ---------------------------------------------------------------------------------------------------- questions

    def given(self, frontend: str) -> dict[str, int]:
        """The weights in VPP, by server."""
        backends = self.checker.config().backends
        names = {backends[name].address.packed: name for pool in FRONTENDS[frontend] for name in pool}
        return {names[address]: have.weight for address, have in self.vips[frontend].ases.items()}

    def out(self, name: str) -> bool:
        """Whether an operator took a server out."""
        live = self.checker.backend_state(name)
        return live.drained or live.state in (State.DISABLED, State.PAUSED)

    def weights(self) -> list[FrontendWeights]:
        return [self.checker.frontend_weights(name) for name in FRONTENDS]


class Life:
    """Daemons one after the other, over one VPP."""

    def __init__(self, how: Mechanisms) -> None:
        self.how = how
        self.clock = FakeClock()
        self.daemon = Daemon(self.clock, {})

    async def start(self) -> None:
        await self.daemon.start(self.how.config())

    async def serve(self) -> None:
        """The first start, after which all servers answer."""
        await self.start()
        await self.step(("probe", frozenset(NAMES), Code.L3OK, 1))

    async def restart(self) -> None:
        overrides = self.daemon.checker.overrides()
        self.daemon = Daemon(self.clock, self.daemon.vips)
        self.daemon.checker.restore(overrides)
        await self.start()

    async def reload(self, how: Mechanisms) -> None:
        self.how = how
        await self.daemon.checker.apply(how.config(), by="x")

    async def step(self, action: tuple[object, ...]) -> None:
        """One thing happens, and VPP is programmed."""
        daemon = self.daemon
        match action:
            case "probe", names, code, times:
                assert isinstance(names, frozenset)
                assert isinstance(code, Code)
                assert isinstance(times, int)
                for _ in range(times):
                    for name in sorted(names):
                        daemon.probe(name, code)
            case "verb", name, verb:
                daemon.act(str(verb), str(name))
            case "weigh", name, weight:
                assert weight is None or isinstance(weight, int)
                daemon.weigh(str(name), weight)
            case "time", seconds:
                assert isinstance(seconds, float | int)
                self.clock.advance(seconds)
            case "reload", how:
                assert isinstance(how, Mechanisms)
                await self.reload(how)
            case ("restart",):
                await self.restart()
        self.daemon.follow()
        self.daemon.program()

    async def settle(self, up: Iterable[str]) -> None:
        """Servers answer, or fall silent, for so long that every hold ends, and every server has a verdict."""
        up = set(up)
        for _ in range(3):
            for name in NAMES:
                for _ in range(RISE + FALL):
                    self.daemon.probe(name, Code.L3OK if name in up else Code.L3TOUT)
            self.daemon.follow()
            self.clock.advance(QUIET / 3)
            self.daemon.follow()
        self.daemon.program()


GROUPS = st.frozensets(st.sampled_from(NAMES), min_size=1) | st.frozensets(st.sampled_from(NAMES), min_size=4)
CODES = st.sampled_from([Code.L3TOUT, Code.L3OK, Code.L3TOUT, Code.L3OK, Code.L4CON])
TIMES = st.sampled_from([FALL, RISE, 1, 2 * FALL])
ACTIONS = st.one_of(
    st.tuples(st.just("probe"), GROUPS, CODES, TIMES),
    st.tuples(st.just("probe"), GROUPS, CODES, TIMES),
    st.tuples(
        st.just("verb"),
        st.sampled_from(NAMES),
        st.sampled_from(["pause", "resume", "disable", "enable", "drain", "undrain"]),
    ),
    st.tuples(st.just("weigh"), st.sampled_from(NAMES), st.sampled_from([None, 0, 10, 100])),
    st.tuples(st.just("time"), st.sampled_from([0.2, 3, 16, 31])),
    st.tuples(st.just("reload"), mechanisms()),
    st.tuples(st.just("restart")),
)
HISTORIES = st.lists(ACTIONS, min_size=8, max_size=30)


def no_weight_for_what_is_out(life: Life, before: dict[str, dict[str, int]]) -> None:
    daemon = life.daemon
    for frontend in FRONTENDS:
        if daemon.checker.unsettled(frontend):
            continue
        members = {member.backend: member for member in daemon.checker.frontend_weights(frontend).members}
        for name, weight in daemon.given(frontend).items():
            if daemon.out(name) or members[name].weight == 0:
                # A paused server keeps what it has where nothing is usable: that is what `keep` says.
                paused = life.how.keep and daemon.checker.backend_state(name).state is State.PAUSED
                assert weight == 0 or (paused and weight <= before.get(frontend, {}).get(name, 0)), (frontend, name)


def weight_where_something_is_usable(life: Life) -> None:
    daemon = life.daemon
    for frontend in FRONTENDS:
        members = daemon.checker.frontend_weights(frontend).members
        usable = [one.backend for one in members if one.state is State.UP and not one.drained and one.weight]
        if usable and not daemon.checker.unsettled(frontend):
            assert any(daemon.given(frontend).values()), (frontend, usable)


@settings(max_examples=150)
@given(mechanisms(), HISTORIES)
def test_what_is_out_has_no_weight_and_what_is_usable_serves(
    how: Mechanisms, history: list[tuple[object, ...]]
) -> None:
    async def live() -> None:
        life = Life(how)
        await life.serve()
        for action in history:
            before = {frontend: life.daemon.given(frontend) for frontend in FRONTENDS}
            await life.step(action)
            no_weight_for_what_is_out(life, before)
            weight_where_something_is_usable(life)

    asyncio.run(live())


def plain_table(daemon: Daemon) -> dict[str, dict[str, int]]:
    """The weights without any mechanism: the first pool with a server that is up and not taken out, in units of 10."""
    tables: dict[str, dict[str, int]] = {}
    for frontend, pools in FRONTENDS.items():
        table = dict.fromkeys((name for pool in pools for name in pool), 0)
        weights = {one.backend: one.weight for one in daemon.checker.frontend_weights(frontend).members}
        for pool in pools:
            able = [
                name
                for name in pool
                if daemon.checker.backend_state(name).state is State.UP and not daemon.out(name) and weights[name]
            ]
            if able:
                table.update({name: max(1, (weights[name] + 5) // 10) for name in able})
                break
        tables[frontend] = table
    return tables


@settings(max_examples=100)
@given(HISTORIES)
def test_without_mechanisms_the_table_is_the_plain_one(history: list[tuple[object, ...]]) -> None:
    async def live() -> None:
        life = Life(PLAIN)
        await life.serve()
        for action in history:
            if action[0] == "reload":
                continue
            await life.step(action)
            daemon = life.daemon
            if daemon.warmup.unresolved:
                continue  # A server without a verdict keeps what it has.
            assert daemon.checker.held() == 0
            assert {name: daemon.given(name) for name in FRONTENDS} == plain_table(daemon)

    asyncio.run(live())


@settings(max_examples=100)
@given(mechanisms(), HISTORIES, st.frozensets(st.sampled_from(NAMES)))
def test_the_settled_table_does_not_depend_on_the_order_of_events(
    how: Mechanisms, history: list[tuple[object, ...]], up: frozenset[str]
) -> None:
    """A daemon that starts over an empty VPP has the same weights as one with a past."""

    async def live() -> None:
        life, fresh = Life(how), Life(how)
        await life.serve()
        for action in history:
            await life.step(action)
        await life.reload(how)
        await life.settle(up)
        fresh.daemon.checker.restore(life.daemon.checker.overrides())
        await fresh.start()
        await fresh.settle(up)
        for daemon in (life.daemon, fresh.daemon):
            checker = daemon.checker
            assert (checker.held(), checker.brakes(), daemon.warmup.awaited) == (0, [], set())
            assert not any(map(checker.unsettled, FRONTENDS))
            for name in up:
                assert daemon.out(name) or checker.backend_state(name).state is State.UP
            for name in set(NAMES) - up:
                assert daemon.out(name) or checker.backend_state(name).state is State.DOWN
        if not how.forgets:
            # Which pool serves depends on which one served, and `keep` on what VPP had.
            return
        assert life.daemon.weights() == fresh.daemon.weights()
        for frontend in FRONTENDS:
            assert life.daemon.given(frontend) == fresh.daemon.given(frontend)

    asyncio.run(live())


@settings(max_examples=100)
@given(mechanisms(), HISTORIES, st.permutations(NAMES))
def test_a_restart_under_the_same_health_takes_no_weight_from_a_server_that_is_up(
    how: Mechanisms, history: list[tuple[object, ...]], order: list[str]
) -> None:
    """Verdicts come one by one, in any order; a server that is down answers wrongly, so no brake holds it."""

    async def live() -> None:
        life = Life(how)
        await life.serve()
        for action in history:
            await life.step(action)
        life.clock.advance(MOST_NS / SECOND)
        await life.step(("time", 0.0))
        states = {name: life.daemon.checker.backend_state(name).state for name in NAMES}
        before = {frontend: life.daemon.given(frontend) for frontend in FRONTENDS}
        await life.step(("restart",))
        assert {frontend: life.daemon.given(frontend) for frontend in FRONTENDS} == before
        if life.how.panic is not None and life.how.panic.action is PanicAction.KEEP:
            # It leaves weights in several pools, and VPP does not say which of them served. The warm-up, which is
            # off here, writes nothing before all verdicts are there.
            return
        for name in order:
            if states[name] is State.UP:
                await life.step(("probe", frozenset([name]), Code.L3OK, 1))
            elif states[name] is State.DOWN:
                await life.step(("probe", frozenset([name]), Code.L4CON, FALL))
            for frontend, weights in before.items():
                for server, weight in life.daemon.given(frontend).items():
                    assert weight >= weights[server] or states[server] is not State.UP, (frontend, server)

    asyncio.run(live())


def test_the_test_waits_longer_than_every_hold() -> None:
    assert max(MOST_NS, LEAST_VERDICT_NS, HOLD) < QUIET / 3 * SECOND
