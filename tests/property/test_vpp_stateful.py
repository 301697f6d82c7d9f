"""The dataplane under everything at once: verdicts, operators, reloads, another client of VPP, restarts of either side
with their warm-up, and faults, at random.

A stand-in on a real socket, a reconciler with its client, and a plain oracle of the weight rule. After each quiet point
VPP must hold what the oracle says; flows show the rest: flows of untouched servers stay, those of failed and disabled
servers are gone. Of every plan: each AS is written once, or in passes of at most a factor of
two; no step without effect, no flush without a reason. At every single call: a VIP that can be served is never empty,
and nothing is written while the warm-up is silent. A restart of the daemon without a change of health writes nothing.
"""

from __future__ import annotations

import asyncio
import math
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from fractions import Fraction
from ipaddress import IPv4Address
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from maglev.base.errors import Unavailable
from maglev.base.states import State
from maglev.config.model import (
    ONE_MEMBER,
    SECOND,
    Backend,
    Config,
    Frontend,
    LbConfig,
    MassChanges,
    OnAllDown,
    Panic,
    PanicAction,
    Pool,
    PoolMember,
    Protocol,
    Threshold,
)
from maglev.vpp.planning import together
from maglev.vpp.planning.model import vip_key
from maglev.vpp.planning.plan import FlushKey, Op, Step
from maglev.vpp.state.warmup import Phase
from maglev.vpp.sync.commandline import LineMeter
from maglev.vpp.sync.executor import Executor, Outcome, Pacer
from maglev.vpp.wire.client import Timing, VppClient
from maglev.vpp.wire.messages import VipKey, address_text
from maglev.vppsim.faults import LINE, Refusal
from maglev.vppsim.model import Vip, embed, extract
from maglev.vppsim.server import StandIn
from tests.helpers.vpprig import AT_ONCE, DEADLINE, PacedClock, Rig, eventually, vip_of, weights, writes

T = TypeVar("T")
NAMES = ("a", "b", "c", "d", "e")
BY_AN_OPERATOR = (State.DISABLED, State.PAUSED)
WARM = LbConfig(startup_min_delay=5 * SECOND, startup_max_delay=30 * SECOND)
IMPATIENT = Timing(deadline=0.3, ping=0.2, backoff=0.005, backoff_most=0.01)
REFUSED = ("lb_as_set_weight", "lb_add_del_as_v2", "lb_add_del_vip_v2")
FEW_CALLS = 30
"""A ``max-stall``, in nanoseconds, with which a plan is cut behind every few calls."""
FLOWS = range(0, 1 << 16, 257)
WWW = VipKey.parse("192.0.2.1/32", 6, 80)
API = VipKey.parse("192.0.2.1/32", 6, 443)


def config_of(
    *,
    keep: bool = False,
    moved: bool = False,
    lone: bool = False,
    unit: int | None = None,
    without_d: bool = False,
    length: int = 64,
    stall: int = AT_ONCE.max_stall,
    mass: MassChanges = MassChanges.AUTO,
    least: Threshold = ONE_MEMBER,
    panic: PanicAction | None = None,
) -> Config:
    """Two frontends on one address that share a server; the first has two standbys. ``least``: of its first pool."""
    backends = {name: Backend(name, IPv4Address(f"10.0.0.{number}")) for number, name in enumerate(NAMES, 1)}
    if moved:
        backends["c"] = replace(backends["c"], address=IPv4Address("10.0.0.33"))
    www = Frontend(
        "www",
        IPv4Address("192.0.2.1"),
        (
            Pool("p", (PoolMember("a", 100), PoolMember("b", 50)), least, least),
            Pool("standby", (PoolMember("c", 100), PoolMember("e", 100))),
        ),
        Protocol.TCP,
        80,
        weight_unit=unit,
        flush_on_down=True,
        new_flows_table_length=length,
        on_all_down=OnAllDown.KEEP if keep else OnAllDown.DRAIN,
        panic=None if panic is None else Panic(0.6, panic),
    )
    members = (PoolMember("b", 10),) if without_d else (PoolMember("b", 10), PoolMember("d", 20))
    api = Frontend(
        "api", www.address, (Pool("p", members),), Protocol.TCP, 443, flush_on_down=False, new_flows_table_length=64
    )
    frontends = {"www": www} if lone else {"www": www, "api": api}
    used = {m.backend for frontend in frontends.values() for pool in frontend.pools for m in pool.members}
    return Config(
        lb=replace(AT_ONCE, max_stall=stall, mass_changes=mass),
        backends={name: one for name, one in backends.items() if name in used},
        frontends=frontends,
    )


configs = st.builds(
    config_of,
    keep=st.booleans(),
    moved=st.booleans(),
    lone=st.sampled_from([False, False, True]),
    unit=st.sampled_from([None, None, 1, 100]),
    without_d=st.booleans(),
    length=st.sampled_from([64, 64, 128]),
    stall=st.sampled_from([AT_ONCE.max_stall, FEW_CALLS]),
    mass=st.sampled_from([MassChanges.AUTO, MassChanges.AUTO, MassChanges.OFF]),
    panic=st.sampled_from([None, None, PanicAction.ALL, PanicAction.KEEP]),
    least=st.sampled_from([ONE_MEMBER, ONE_MEMBER, Threshold(2), Threshold(60, percent=True)]),
)


class CheapLines(LineMeter):
    """On this VPP, commands cost next to nothing: they are planned for two ASes already."""

    def __init__(self) -> None:
        self.factor, self.per_line = 1 / 64, 0.0

    def probed(self, took_ns: int) -> None:
        pass

    def measured(self, cost_ns: int, lines: int, took_ns: int) -> None:
        pass


class JudgedExecutor(Executor):
    """Shows every plan to ``judge`` before it carries it out."""

    def __init__(self, client: VppClient, pacer: Pacer, judge: Callable[[Sequence[Step]], None]) -> None:
        pacer.lines = CheapLines()
        super().__init__(client, pacer)
        self._judge = judge

    async def run(self, steps: Sequence[Step], **options: Any) -> Outcome:
        self._judge([one for step in steps for one in step.members or (step,)])
        return await super().run(steps, **options)


class Dataplane(RuleBasedStateMachine):
    """One life of a daemon and its VPP."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="maglev-"))
        self.runner = asyncio.Runner()
        self.server = StandIn(self.directory / "api.sock")
        self.run(self.server.start())
        self.fewest, together.FEWEST_LIVE = together.FEWEST_LIVE, 2
        config = config_of()
        self.wrong: list[str] = []
        self.run(self._start(self._rig(config)))
        self.unannounced = False
        # Servers whose first verdict since a restart was down.
        self.forgotten: set[str] = set()
        self.meddling = self.meddled = False
        self.drift = 0
        # Since the last quiet point: servers whose flows may go, VIPs that may be empty for a moment.
        self.touched: set[tuple[VipKey, bytes]] = set()
        self.excused: set[VipKey] = {WWW, API}
        # At the last quiet point down, with the weight that it has kept: with that its flows go.
        self.dead: set[tuple[VipKey, bytes]] = set()
        self.flows: dict[VipKey, dict[int, bytes]] = {}
        # The weights in VPP of frontends that no server can serve and that keep theirs: address -> weight.
        self.kept: dict[VipKey, dict[str, int]] = {}
        self._watch()
        self.run(self._quiet())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def _rig(self, config: Config, **options: Any) -> Rig:
        def executor(client: VppClient, pacer: Pacer) -> Executor:
            return JudgedExecutor(client, pacer, self._judge)

        path = self.directory / "api.sock"
        return Rig(path, config, clock=PacedClock(), timing=IMPATIENT, executor=executor, **options)

    async def _start(self, rig: Rig) -> None:
        self.rig = rig
        rig.load()
        self.running = rig.running()
        await self.running.__aenter__()

    def teardown(self) -> None:
        try:
            self.run(self._quiet())
        finally:
            together.FEWEST_LIVE = self.fewest
            self.run(self.running.__aexit__(None, None, None))
            self.run(self.server.stop())
            self.runner.close()
            shutil.rmtree(self.directory)

    # ------------------------------------------------------------------------------------------------- the oracle

    def usable(self, frontend: Frontend) -> bool:
        return any(self._eligible(frontend, pool, member) for pool in frontend.pools for member in pool.members)

    def _eligible(self, frontend: Frontend, pool: Pool, member: PoolMember) -> bool:
        backend = self.rig.states.backends[member.backend]
        return backend.state is State.UP and not backend.drained and self._weight(frontend, pool, member) > 0

    def _reaches(self, frontend: Frontend, pool: Pool) -> bool:
        """Whether a pool has as many servers up as make it usable."""
        up, needed = sum(self._eligible(frontend, pool, member) for member in pool.members), pool.min_up.value
        if pool.min_up.percent:
            backends = {m: self.rig.states.backends[m.backend] for m in pool.members if self._weight(frontend, pool, m)}
            judged = sum(not b.drained and b.state in (State.UP, State.DOWN) for b in backends.values())
            needed = max(1, math.ceil(needed * judged / 100))
        return up >= needed

    def _in_service(self, frontend: Frontend, pool: Pool, member: PoolMember) -> bool:
        """Not taken out by an operator."""
        backend = self.rig.states.backends[member.backend]
        weight = self._weight(frontend, pool, member)
        return weight > 0 and not backend.drained and backend.state in (State.UP, State.DOWN, State.UNKNOWN)

    def _sums(self, frontend: Frontend, pool: Pool) -> tuple[int, int]:
        """The weight of a pool that is healthy, and all of it that counts."""
        members = [member for member in pool.members if self._in_service(frontend, pool, member)]
        down = [member for member in members if self.rig.states.backends[member.backend].state is State.DOWN]
        whole = sum(self._weight(frontend, pool, member) for member in members)
        return whole - sum(self._weight(frontend, pool, member) for member in down), whole

    def _panic(self, frontend: Frontend, active: Pool | None) -> PanicAction | None:
        """The action of a frontend in panic; None where it is not."""
        if frontend.panic is None:
            return None
        sums = [self._sums(frontend, pool) for pool in frontend.pools]
        at = next((number for number, (_, whole) in enumerate(sums) if whole), None)
        if active is not None:
            at = frontend.pools.index(active)
        if at is None or not sums[at][1]:
            return None
        enough = [whole > 0 and healthy >= frontend.panic.below * whole for healthy, whole in sums]
        return None if any(enough[at:]) else frontend.panic.action

    def _weight(self, frontend: Frontend, pool: Pool, member: PoolMember) -> int:
        override = self.rig.states.overrides.get((frontend.name, pool.name, member.backend))
        return member.weight if override is None else override

    def expected(self, frontend: Frontend) -> dict[str, int | None]:
        """Address -> programmed weight; None where VPP's own stays."""
        unit = frontend.weight_unit
        if unit is None:
            unit = math.gcd(10, *(member.weight for pool in frontend.pools for member in pool.members))
        some = [p for p in frontend.pools if any(self._eligible(frontend, p, member) for member in p.members)]
        active = next(iter([p for p in frontend.pools if self._reaches(frontend, p)] or some), None)
        panic = self._panic(frontend, active)
        if active is None and panic is PanicAction.ALL:
            active = next(pool for pool in frontend.pools if self._sums(frontend, pool)[1])
        found: dict[str, int | None] = {}
        for pool in frontend.pools:
            for member in pool.members:
                address = str(self.rig.states.config().backends[member.backend].address)
                backend = self.rig.states.backends[member.backend]
                weight = self._weight(frontend, pool, member)
                found[address] = 0
                if pool is active and self._eligible(frontend, pool, member):
                    found[address] = max(1, math.floor(weight / unit + 0.5))
                elif panic is not None and self._in_service(frontend, pool, member):
                    if panic is PanicAction.KEEP:
                        found[address] = None
                    elif pool is active and backend.state is State.DOWN:
                        found[address] = max(1, math.floor(weight / unit + 0.5))
                elif panic is not None:
                    pass
                elif (
                    active is None
                    and frontend.on_all_down is OnAllDown.KEEP
                    and weight > 0
                    and not backend.drained
                    and backend.state is not State.DISABLED
                ):
                    found[address] = None
        return found

    # ---------------------------------------------------------------------------------------- watching every call

    def _watch(self) -> None:
        """After every call: a VIP that could be served all the time has a server, and the warm-up is not silent."""

        def watched(name: str) -> None:
            real = getattr(self.server.model, name)

            def call(vip: Vip, *args: Any, **options: Any) -> int:
                done: int = real(vip, *args, **options)
                if not self.meddling and self.rig.reconciler.warmup_state.phase is Phase.SILENT:
                    self.wrong.append(f"{name} {args} while the warm-up is silent")
                key = VipKey(extract(vip.prefix), 32, vip.protocol, vip.port)
                if vip.used and not vip.weights and key not in self.excused:
                    self.wrong.append(f"{key} was empty after {name} {args}")
                return done

            setattr(self.server.model, name, call)

        for name in ("set_weight", "delete_ases", "add_ases", "delete_vip"):
            watched(name)

    def _judge(self, steps: Sequence[Step]) -> None:
        """Every plan, as it is carried out."""
        weights: dict[tuple[VipKey, bytes], list[int]] = {}
        for step in steps:
            if step.vip is None or step.op not in (Op.SET_WEIGHT, Op.ADD_AS):
                continue
            if step.op is Op.SET_WEIGHT:
                written = weights.setdefault((step.vip, step.address), [step.old_weight])
                written.append(step.weight)
                if step.weight == step.old_weight and not step.flush:
                    self.wrong.append(f"no effect: {step}")
            if step.flush and not self._may_flush(step):
                self.wrong.append(f"no reason to flush: {step}")
        for key, written in weights.items():
            passes = [sorted(pair) for pair in pairwise(written)]
            if len(passes) > 1 and (len(passes) > 7 or any(most > 2 * least > 0 for least, most in passes)):
                self.wrong.append(f"{key} is written again and again: {written}")

    def _may_flush(self, step: Step) -> bool:
        """A flush has a debt, or repairs what gave weight to a server that is down or disabled."""
        assert step.vip is not None
        if step.settles:
            return all(key in self.rig.reconciler.owed for key, _ in step.settles)
        if FlushKey(step.vip, step.address) in self.touched:
            return True
        backend = self.rig.states.backends.get(step.backend)
        return step.old_weight > 0 and backend is not None and backend.state in (State.DOWN, State.DISABLED)

    @invariant()
    def nothing_is_wrong(self) -> None:
        assert not self.wrong
        still: dict[VipKey, dict[str, int]] = {}
        for frontend in self.rig.states.config().frontends.values():
            key = vip_key(frontend)
            if not self.usable(frontend):
                self.excused.add(key)
            wanted = self.expected(frontend)
            still[key] = {a: weight for a, weight in self.kept.get(key, {}).items() if wanted.get(a, 0) is None}
        self.kept = still

    # --------------------------------------------------------------------------------------------- what can happen

    def _touch(self, name: str) -> None:
        for frontend in self.rig.states.config().frontends.values():
            backend = self.rig.states.config().backends.get(name)
            if backend is not None:
                self.touched.add((vip_key(frontend), backend.address.packed))

    def _known(self, name: str) -> bool:
        return name in self.rig.states.config().backends

    async def _breathe(self, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)

    def _event(self, name: str, state: State, by: str = "") -> None:
        if state in (State.DOWN, State.DISABLED):
            self._touch(name)
        self._tell_apart(name, state)

        async def tell() -> None:
            self.rig.backend(name, state, by=by)

        self.run(tell())

    def _tell_apart(self, name: str, state: State) -> None:
        """Whether what is owed to a server is known from here on."""
        if self.rig.states.backends[name].state is state:
            return
        first = name in self.rig.reconciler.warmup_state.unresolved
        if state is State.DOWN and first:
            self.forgotten.add(name)
        elif state is not State.UNKNOWN:
            self.forgotten.discard(name)

    @rule(name=st.sampled_from(NAMES), up=st.booleans())
    def a_verdict(self, name: str, up: bool) -> None:
        if self._known(name) and self.rig.states.backends[name].state not in BY_AN_OPERATOR:
            self._event(name, State.UP if up else State.DOWN)

    @rule(up=st.booleans())
    def all_at_once(self, up: bool) -> None:
        """As when the network between the probes and the servers fails."""
        state = State.UP if up else State.DOWN

        async def tell() -> None:
            for name in self.rig.states.config().backends:
                if self.rig.states.backends[name].state not in BY_AN_OPERATOR:
                    if not up:
                        self._touch(name)
                    self._tell_apart(name, state)
                    self.rig.backend(name, state)

        self.run(tell())

    @rule(name=st.sampled_from(NAMES), state=st.sampled_from([State.DISABLED, State.PAUSED, State.UNKNOWN]))
    def an_operator(self, name: str, state: State) -> None:
        if self._known(name):
            self._event(name, state, by="ann")

    @rule(name=st.sampled_from(NAMES), drained=st.booleans())
    def a_drain(self, name: str, drained: bool) -> None:
        async def tell() -> None:
            self.rig.drain(name, drained)

        if self._known(name):
            self.run(tell())

    @rule(name=st.sampled_from(("a", "b")), weight=st.sampled_from([0, 1, 40, 100]), flush=st.booleans())
    def a_weight(self, name: str, weight: int, flush: bool) -> None:
        if flush:
            self._touch(name)

        async def tell() -> None:
            self.rig.weight(name, weight, flush=flush)

        self.run(tell())

    @rule(turns=st.integers(1, 30))
    def some_time(self, turns: int) -> None:
        self.run(self._breathe(turns))

    @rule(config=configs)
    def a_reload_begins(self, config: Config) -> None:
        old = self.rig.states.config()
        for name, backend in old.backends.items():
            if name not in config.backends or config.backends[name].address != backend.address:
                self._touch(name)
        self.excused |= {WWW, API}
        lengths = {vip_key(frontend): frontend.new_flows_table_length for frontend in config.frontends.values()}
        for frontend in old.frontends.values():
            if lengths.get(key := vip_key(frontend)) != frontend.new_flows_table_length:
                self.flows.pop(key, None)  # It goes, or is created again.
        for name in config.backends:
            if name not in old.backends:
                self.rig.states.backends.pop(name, None)
        self.rig.states.load(config)
        self.unannounced = True

    @precondition(lambda self: self.unannounced)
    @rule()
    def a_reload_ends(self) -> None:
        async def tell() -> None:
            self.rig.load()

        self.unannounced = False
        self.run(tell())

    @rule(key=st.sampled_from([WWW, API]), number=st.integers(1, 4), weight=st.integers(0, 12))
    def drift_of_a_weight(self, key: VipKey, number: int, weight: int) -> None:
        vip = vip_of(self.server, key)
        if vip is not None:
            self.excused.add(key)
            address = IPv4Address(f"10.0.0.{number}").packed
            self.touched.add((key, address))
            self.kept.pop(key, None)
            self._meddle(self.server.model.set_weight, vip, embed(address), weight, flush=False)

    @rule(key=st.sampled_from([WWW, API]), number=st.sampled_from([1, 2, 77]))
    def drift_of_an_as(self, key: VipKey, number: int) -> None:
        vip = vip_of(self.server, key)
        if vip is not None:
            self.excused.add(key)
            self.kept.pop(key, None)
            address = embed(IPv4Address(f"10.0.0.{number}").packed)
            if number == 77:
                self._meddle(self.server.model.add_ases, vip, [address], 3, flush=False)
            else:
                self._meddle(self.server.model.delete_ases, vip, [address], flush=False)

    @rule(key=st.sampled_from([WWW, API]))
    def drift_of_a_vip(self, key: VipKey) -> None:
        vip = vip_of(self.server, key)
        if vip is not None:
            self.excused.add(key)
            self.flows.pop(key, None)
            self._meddle(self.server.model.delete_vip, vip)

    def _meddle(self, call: Any, *args: Any, **options: Any) -> None:
        self.meddling = self.meddled = True
        call(*args, **options)
        self.meddling = False

    @rule(direction=st.sampled_from(["cut_received", "cut_sent"]), offset=st.integers(0, 300))
    def a_cut(self, direction: str, offset: int) -> None:
        setattr(self.server.faults, direction, offset)

    @rule(
        skip=st.integers(0, 2), message=st.sampled_from(["lb_as_set_weight", "lb_add_del_as_v2", "lb_add_del_vip_v2"])
    )
    def a_refusal(self, skip: int, message: str) -> None:
        # An outage of one refused raise is VPP's, and the guard's own tests are elsewhere.
        self.excused |= {WWW, API}
        self.server.faults.refusals.append(Refusal(message, -73, skip=skip, times=1))

    @rule(skip=st.integers(0, 3), retval=st.sampled_from([-6, -81, -97]))
    def a_refused_line(self, skip: int, retval: int) -> None:
        """An error in either line of a command."""
        self.server.faults.refusals.append(Refusal(LINE, retval, skip=skip, times=1))

    @rule(seconds=st.sampled_from([0.001, 0.01]))
    def slow_commands(self, seconds: float) -> None:
        self.server.faults.delays["cli_inband"] = seconds

    @rule(fault=st.sampled_from(["mute", "wrong_context", "unknown_message", "truncate", "garble"]))
    def a_wrong_answer(self, fault: str) -> None:
        setattr(self.server.faults, fault, 1)

    @rule(seconds=st.sampled_from([0.001, 0.01]))
    def a_slow_time(self, seconds: float) -> None:
        self.server.faults.delays["lb_as_set_weight"] = seconds

    @rule(seconds=st.sampled_from([3, 6, 30]))
    def the_clock_moves_on(self, seconds: int) -> None:
        clock = self.rig.clock
        assert isinstance(clock, PacedClock)
        clock.advance(seconds)

    @rule(warm=st.booleans(), order=st.permutations(NAMES), many=st.integers(0, 5), whole=st.booleans())
    def a_restart_of_the_daemon(self, warm: bool, order: list[str], many: int, whole: bool) -> None:
        """Nothing has changed: whatever probe is late, nothing is written."""
        self.run(self._restart_daemon(WARM if warm else AT_ONCE, order[:many], whole=whole))

    async def _restart_daemon(self, lb: LbConfig, order: list[str], *, whole: bool) -> None:
        await self._quiet()
        old = self.rig
        owed = set(old.reconciler.owed)
        await self.running.__aexit__(None, None, None)
        self.server.journal.clear()
        config = replace(old.states.config(), lb=lb)
        rig = self._rig(config, store=old.store)
        rig.states.overrides = dict(old.states.overrides)
        verdicts: dict[str, State] = {}
        for name, backend in rig.states.backends.items():
            before = old.states.backends[name]
            backend.drained = before.drained
            backend.state = before.state if before.state in BY_AN_OPERATOR else State.UNKNOWN
            if before.state in (State.UP, State.DOWN):
                verdicts[name] = before.state
        # Panic awaits first verdicts for a limited time, and takes the missing ones for healthy from then on.
        limited = any(frontend.panic is not None for frontend in config.frontends.values())
        self.drift = 0
        await self._start(rig)
        await rig.settled()
        for name in [*order, *(name for name in verdicts if name not in order)] if limited else order:
            if name in verdicts:
                await self._pass(0.9 if limited else 6)
                rig.backend(name, verdicts[name])
                await rig.settled()
        if whole:
            await self._warmed_up()
        assert not writes(self.server), "a restart wrote"
        assert owed.issuperset(rig.reconciler.owed), "health has not changed"

    async def _pass(self, seconds: float) -> None:
        clock = self.rig.clock
        assert isinstance(clock, PacedClock)
        clock.advance(seconds)
        await self._breathe(10)
        await self.rig.settled()

    async def _warmed_up(self) -> None:
        """Until the warm-up is over and a full sync has been made since."""
        reconciler = self.rig.reconciler
        if reconciler.warmup_state.phase is not Phase.DONE:
            syncs = reconciler.counters.full_syncs
            await self._pass(31)
            await eventually(lambda: reconciler.counters.full_syncs > syncs)
            await self.rig.settled()

    @rule()
    def a_restart(self) -> None:
        async def restart() -> None:
            await self.server.restart()
            self._watch()

        self.excused |= {WWW, API}
        self.flows.clear()
        self.run(restart())

    # ------------------------------------------------------------------------------------------------ quiet points

    @rule()
    def a_quiet_point(self) -> None:
        self.run(self._quiet())

    async def _quiet(self) -> None:
        rig, server = self.rig, self.server
        if self.unannounced:
            self.unannounced = False
            rig.load()
        await rig.settled()
        server.faults.clear()
        await rig.settled()
        await self._warmed_up()
        # A server that was found in its place has its verdict now.
        for name in list(rig.reconciler.warmup_state.unresolved):
            if name in rig.states.backends and rig.states.backends[name].state is State.UNKNOWN:
                self._touch(name)
                self._tell_apart(name, State.DOWN)
                rig.backend(name, State.DOWN)
        await rig.settled()
        # The full sync repairs refused calls, and changes of another client.
        await self._synced(force=True)
        await rig.settled()
        self._check_weights()
        self._check_flows()
        server.journal.clear()
        await self._synced(force=False)
        assert not server.journal.writes(), "a second sync made calls"
        assert not self.wrong
        if not self.meddled:
            assert rig.reconciler.counters.drift.total() == self.drift, rig.reconciler.counters.drift
        self.meddled, self.drift = False, rig.reconciler.counters.drift.total()
        self._send_packets()
        # The flush of a failed server may still have to wait for another one to take its flows.
        self.touched &= {(key, address) for key, address in rig.reconciler.owed}
        self.excused = {
            vip_key(frontend) for frontend in rig.states.config().frontends.values() if not self.usable(frontend)
        }
        assert not rig.reconciler.counters.bucket_mismatches

    async def _synced(self, *, force: bool) -> None:
        """A full sync; another where this machine had too much to do for the client's patience."""
        async with asyncio.timeout(DEADLINE):
            while True:
                try:
                    await self.rig.reconciler.sync(None, force=force, by="test")
                    return
                except Unavailable:
                    await self.rig.settled()

    def _check_weights(self) -> None:
        configured = self.rig.states.config().frontends
        for frontend in configured.values():
            wanted = self.expected(frontend)
            held = weights(self.server, vip_key(frontend))
            assert held.keys() == wanted.keys()
            assert {a: w for a, w in held.items() if wanted[a] is not None} == {
                a: w for a, w in wanted.items() if w is not None
            }
            kept = self.kept.get(key := vip_key(frontend), {})
            kept = {address: weight for address, weight in kept.items() if wanted.get(address, 0) is None}
            # An adopted scale ends with its VIP: then all of them are smaller by the same factor.
            assert {a for a in kept if held[a]} == {a for a in kept if kept[a]}, f"{key} has not kept its weights"
            assert len({Fraction(held[a], weight) for a, weight in kept.items() if weight}) <= 1, (
                f"{key}: {kept} {held}"
            )
            self.kept[key] = {a: held[a] for a, weight in wanted.items() if weight is None}
        if "api" not in configured:
            assert vip_of(self.server, API) is None

    def _check_flows(self) -> None:
        for frontend in self.rig.states.config().frontends.values():
            key = vip_key(frontend)
            vip = vip_of(self.server, key)
            assert vip is not None
            now = {flow: extract(self.server.model.ases[index].address) for flow, index in vip.flows.items()}
            for flow, address in self.flows.get(key, {}).items():
                if (key, address) not in self.touched | self.dead:
                    assert now.get(flow) == address, f"{key} {address_text(address)}: flow {flow} was evicted"
            held = weights(self.server, key)
            for name in {member.backend for pool in frontend.pools for member in pool.members}:
                address = self.rig.states.config().backends[name].address.packed
                state = self.rig.states.backends[name].state
                others = self.usable(frontend) and any(
                    weight for other, weight in held.items() if other != address_text(address)
                )
                owed = state is State.DISABLED or (state is State.DOWN and frontend.flush_on_down and others)
                if owed and held[address_text(address)] == 0 and name not in self.forgotten:
                    assert address not in now.values(), f"{key} {name}: a flush is missing"

    def _send_packets(self) -> None:
        self.flows.clear()
        self.dead.clear()
        for frontend in self.rig.states.config().frontends.values():
            key = vip_key(frontend)
            vip = vip_of(self.server, key)
            assert vip is not None
            held = weights(self.server, key)
            for pool in frontend.pools:
                for member in pool.members:
                    address = self.rig.states.config().backends[member.backend].address.packed
                    state = self.rig.states.backends[member.backend].state
                    if state is State.DOWN and frontend.flush_on_down and held[address_text(address)]:
                        self.dead.add((key, address))
            self.server.model.packets(vip, FLOWS)
            self.flows[key] = {
                flow: extract(self.server.model.ases[index].address) for flow, index in vip.flows.items()
            }


def test_a_flush_that_a_reading_makes_due_is_not_forgotten() -> None:
    """Commands add ASes that still have flows of failed servers; the reading that confirms them makes the flush due."""
    life = Dataplane()
    try:
        life.a_drain(drained=True, name="d")
        life.all_at_once(up=False)
        life.nothing_is_wrong()
        life.drift_of_an_as(key=WWW, number=2)
        life.drift_of_an_as(key=WWW, number=1)
        life.a_cut(direction="cut_received", offset=133)
        life.a_quiet_point()
    finally:
        life.teardown()


TestDataplane = Dataplane.TestCase
TestDataplane.settings = settings(max_examples=50, stateful_step_count=30, suppress_health_check=list(HealthCheck))
