"""A daemon for the API's tests: real configuration, weights and bus, with states that a test sets by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import TypeVar

from maglev.base.clock import Clock, SystemClock
from maglev.base.errors import BadValue, NotAllowed, Unavailable, UnknownName
from maglev.base.events import BackendEvent, Bus, DrainEvent, Event, LogEvent, WeightEvent
from maglev.base.states import CheckType, Code, FrontendState, State
from maglev.config.diff import ChangeKind, ConfigChange
from maglev.config.load import CheckResult, LoadResult
from maglev.config.model import (
    Backend,
    Config,
    Frontend,
    HealthCheck,
    HttpParams,
    LbConfig,
    Pool,
    PoolMember,
    Protocol,
    TcpParams,
)
from maglev.events.causes import Causes
from maglev.events.ring import EventRing
from maglev.judgement.brake import Begun
from maglev.judgement.weights import NO_MEMORY, FrontendWeights, Memory, StateSource, frontend_weights
from maglev.rpc.services import CheckerApi, Identity, Services
from maglev.schema.problems import Problem, ProblemKind
from maglev.views.backends import BackendStatus, Change, Override, OverrideKind, WeightChange
from maglev.views.dataplane import (
    AsState,
    BackendFlows,
    ConfState,
    ConnectionInfo,
    DataplaneInfo,
    FlowAnswer,
    FlowQuestion,
    FlowServer,
    FrontendFlows,
    FrontendTable,
    LbState,
    TrafficReport,
    VipState,
    VipTraffic,
    WarmupInfo,
)
from maglev.views.plans import AsForecast, PlanReport, PlanStep, SyncReport, VipForecast
from maglev.views.previews import FrontendForecast, MemberForecast

T = TypeVar("T")

NOW = 1_800_000_000_000_000_000
WARNING = Problem(ProblemKind.WARNING, "maglev.frontends.www", "the table is small", 3, 5)


def status(backend: Backend) -> BackendStatus:
    """A backend of which nothing is known yet."""
    return BackendStatus(
        name=backend.name,
        address=str(backend.address),
        state=State.UNKNOWN,
        drained=False,
        enabled=True,
        healthcheck=backend.healthcheck or "",
        counter=1,
        rise=2,
        fall=3,
        last_code=Code.NONE,
        last_detail="",
        last_rtt_ns=None,
        last_result_age_ns=None,
        state_since_ns=NOW,
        unprobed_since_ns=0,
        unprobed_reason="",
        presumed=False,
        held="",
        probes_passed=0,
        probes_failed=0,
        transitions=(),
    )


@dataclass
class FakeChecker:
    """States by hand; the verbs do what the contract says, without probing."""

    configured: Config
    bus: Bus
    statuses: dict[str, BackendStatus] = field(default_factory=dict)
    set: list[Override] = field(default_factory=list)
    asked: list[tuple[str, str, str, str, int]] = field(default_factory=list)
    traced: list[str] = field(default_factory=list)
    begun: list[Begun] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, backend in self.configured.backends.items():
            self.statuses.setdefault(name, status(backend))

    def config(self) -> Config:
        return self.configured

    def backend_status(self, name: str) -> BackendStatus:
        try:
            return self.statuses[name]
        except KeyError:
            raise UnknownName("backend", name) from None

    def backend_state(self, name: str) -> BackendStatus:
        return self.backend_status(name)

    def target_state(self, frontend: str, backend: str) -> BackendStatus:
        return self.backend_status(backend)

    def weight_override(self, frontend: str, pool: str, backend: str) -> int | None:
        for one in self.set:
            if (one.frontend, one.pool, one.backend, one.kind) == (frontend, pool, backend, OverrideKind.WEIGHT):
                return one.weight
        return None

    def memory(self, frontend: Frontend) -> Memory:
        return NO_MEMORY

    def unsettled(self, frontend: str) -> bool:
        return False

    def weights(self, frontend: Frontend) -> FrontendWeights:
        return frontend_weights(frontend, self)

    def frontend_weights(self, name: str) -> FrontendWeights:
        try:
            return self.weights(self.configured.frontends[name])
        except KeyError:
            raise UnknownName("frontend", name) from None

    def frontend_state(self, name: str) -> FrontendState:
        return self.frontend_weights(name).state

    def frontends_of(self, backend: str) -> Sequence[str]:
        return [
            frontend.name
            for frontend in self.configured.frontends.values()
            if any(member.backend == backend for pool in frontend.pools for member in pool.members)
        ]

    def overrides(self) -> Sequence[Override]:
        return self.set

    def overrides_of(self, backend: str) -> Sequence[Override]:
        return [override for override in self.set if override.backend == backend]

    def state_counts(self) -> Mapping[State, int]:
        counts = dict.fromkeys(State, 0)
        for status in self.statuses.values():
            counts[status.state] += 1
        return counts

    def brakes(self) -> Sequence[Begun]:
        return self.begun

    def held(self) -> int:
        return sum(bool(status.held) for status in self.statuses.values())

    def release_brake(self, *, by: str) -> int:
        held = self.held()
        self.begun = []
        for name, one in self.statuses.items():
            self.statuses[name] = replace(one, held="")
        return held

    def engine_stats(self) -> Mapping[str, int]:
        return {"sent": 12, "received": 11, "clock_step_ns": -5_000_000_000}

    def move(self, name: str, to: State, code: Code, *, detail: str = "", by: str = "", reason: str = "") -> None:
        """A transition: state, history and event."""
        status = self.backend_status(name)
        event = BackendEvent(name, status.address, status.state, to, code, detail, NOW, by, status.drained, reason)
        status.transitions = (*status.transitions, event)
        status.state = to
        self.bus.publish(event)

    def _verb(self, verb: str, name: str, by: str, reason: str, duration_ns: int) -> BackendStatus:
        self.asked.append((verb, name, by, reason, duration_ns))
        return self.backend_status(name)

    def pause(self, name: str, *, by: str, reason: str = "", duration_ns: int = 0) -> Change:
        if self._verb("pause", name, by, reason, duration_ns).state is State.DISABLED:
            raise NotAllowed(f"backend {name!r} is disabled")
        self.move(name, State.PAUSED, Code.PAUSED, by=by, reason=reason)
        return Change(True)

    def resume(self, name: str, *, by: str, reason: str = "", duration_ns: int = 0) -> Change:
        if self._verb("resume", name, by, reason, duration_ns).state is State.DISABLED:
            raise NotAllowed(f"backend {name!r} is disabled")
        self.move(name, State.UNKNOWN, Code.RESUMED, by=by, reason=reason)
        return Change(True)

    def enable(self, name: str, *, by: str, reason: str = "", duration_ns: int = 0) -> Change:
        status = self._verb("enable", name, by, reason, duration_ns)
        if status.state is not State.DISABLED:
            return Change(False)
        status.enabled = True
        self.move(name, State.UNKNOWN, Code.ENABLED, by=by, reason=reason)
        return Change(True)

    def disable(self, name: str, *, by: str, reason: str = "", duration_ns: int = 0) -> Change:
        status = self._verb("disable", name, by, reason, duration_ns)
        if status.state is State.DISABLED:
            return Change(False)
        status.enabled = False
        self.move(name, State.DISABLED, Code.DISABLED, by=by, reason=reason)
        return Change(True)

    def _drain(self, verb: str, name: str, by: str, reason: str, duration_ns: int) -> Change:
        status = self._verb(verb, name, by, reason, duration_ns)
        drained = verb == "drain"
        changed = status.drained is not drained
        status.drained = drained
        address = str(self.configured.backends[name].address)
        self.bus.publish(DrainEvent(name, address, status.state, drained, NOW, by, reason))
        return Change(changed)

    def drain(self, name: str, *, by: str, reason: str = "", duration_ns: int = 0) -> Change:
        return self._drain("drain", name, by, reason, duration_ns)

    def undrain(self, name: str, *, by: str, reason: str = "", duration_ns: int = 0) -> Change:
        return self._drain("undrain", name, by, reason, duration_ns)

    def set_weight(
        self,
        frontend: str,
        pool: str,
        backend: str,
        weight: int | None,
        *,
        flush: bool,
        by: str,
        reason: str = "",
        duration_ns: int = 0,
    ) -> WeightChange:
        weights = self.frontend_weights(frontend)
        for member in weights.members:
            if (member.pool, member.backend) == (pool, backend):
                break
        else:
            raise UnknownName("backend in that pool", backend)
        if weight is not None and not 0 <= weight <= 100:
            raise BadValue(f"weight {weight}")
        self.set = [one for one in self.set if (one.frontend, one.pool, one.backend) != (frontend, pool, backend)]
        if weight is not None:
            self.set.append(
                Override(
                    OverrideKind.WEIGHT,
                    backend,
                    str(self.configured.backends[backend].address),
                    NOW,
                    by=by,
                    reason=reason,
                    frontend=frontend,
                    pool=pool,
                    weight=weight,
                    file_weight=member.configured,
                )
            )
        new = member.configured if weight is None else weight
        self.bus.publish(
            WeightEvent(frontend, pool, backend, member.weight, new, flush, NOW, by, weight is None, reason)
        )
        return WeightChange(member.weight != new, member.weight, new, weight, weights.unit)

    def trace(self, backend: str) -> Callable[[], None]:
        self.backend_status(backend)
        self.traced.append(backend)
        return lambda: self.traced.remove(backend)


class FakeTrial:
    """A copy of the fake checker, on a separate bus."""

    def __init__(self, of: FakeChecker, frontends: Sequence[str]) -> None:
        bus = Bus()
        self.events: list[Event] = []
        bus.listen(self.events.append)
        self.before = of
        self.checker = FakeChecker(of.configured, bus, {n: replace(one) for n, one in of.statuses.items()}, [*of.set])
        self.frontends = frontends

    def run(self, change: Callable[[CheckerApi], T]) -> T:
        return change(self.checker)

    def release_brake(self) -> tuple[int, int]:
        held = self.checker.held()
        return held, held

    async def forecasts(self) -> Sequence[FrontendForecast]:
        return [self._forecast(name) for name in self.frontends]

    def _forecast(self, name: str) -> FrontendForecast:
        before, after = self.before.frontend_weights(name), self.checker.frontend_weights(name)
        members = [
            MemberForecast(a.pool, a.backend, a.effective, b.effective, a.programmed, b.programmed, b.keep)
            for a, b in zip(before.members, after.members, strict=True)
            if a.effective != b.effective
        ]
        return FrontendForecast(name, before.state, after.state, "primary", "fallback", members)


@dataclass
class FakePreviews:
    """Makes trials of the fake checker."""

    checker: FakeChecker

    async def of_backend(self, name: str) -> FakeTrial:
        return FakeTrial(self.checker, self.checker.frontends_of(name))

    async def of_weight(self, frontend: str, backend: str) -> FakeTrial:
        return FakeTrial(self.checker, [frontend])

    async def of_brake(self) -> FakeTrial:
        return FakeTrial(self.checker, [])


@dataclass
class FakeLoader:
    result: LoadResult
    file: str = "/etc/vpp-maglev/maglev.yaml"
    loaded_at_ns: int = NOW
    loaded_by: str = "start"
    last_error: str = ""
    dangerous: bool = False
    reloads: list[tuple[bool, str]] = field(default_factory=list)
    # Stands in for a check that takes its time.
    checks: Callable[[], Awaitable[LoadResult]] | None = None

    async def check(self) -> CheckResult:
        return CheckResult((self.result if self.checks is None else await self.checks()).problems)

    async def load(self) -> LoadResult:
        return self.result

    async def diff(self, new: Config) -> Sequence[ConfigChange]:
        return [ConfigChange("maglev.backends.web0.address", ChangeKind.CHANGED, "192.0.2.1", "192.0.2.2")]

    def needs_force(self, new: Config) -> bool:
        return self.dangerous

    async def reload(self, *, force: bool, by: str) -> LoadResult:
        if self.dangerous and not force:
            raise NotAllowed("this reload would delete 4 of 5 VIPs")
        self.reloads.append((force, by))
        return self.result


@dataclass
class FakeLogs:
    levels: list[str] = field(default_factory=list)
    # Set when a watch ended.
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def watch(self, level: str) -> Callable[[], None]:
        self.levels.append(level)

        def end() -> None:
            self.levels.remove(level)
            self.ended.set()

        return end


VPP = DataplaneInfo(
    version="26.10-rc0",
    build_date="2026-08-21",
    build_directory="/w",
    pid=4711,
    uptime_ns=3_600_000_000_000,
    connected_ns=60_000_000_000,
    lb_supported=True,
    last_full_sync_at_ns=NOW,
    last_full_sync_changes=3,
    calls_failed=0,
    cost_ns_per_bucket=17.0,
    cost_ns_per_weight=125.0,
    workers=2,
)
CONF = ConfState("192.0.2.1", "2001:db8::1", sticky_buckets_per_core=1024, flow_timeout_ns=40_000_000_000)
STEP = PlanStep(
    kind="as_weight",
    frontend="www",
    vip="192.0.2.80/32 tcp 80",
    backend="web0",
    address="10.0.0.1",
    old_weight=10,
    new_weight=0,
    flush=True,
    stall_ns=350_000,
    text="weight 192.0.2.80/32 tcp 80 10.0.0.1 10 -> 0",
)
PLAN = PlanReport(
    steps=(STEP,),
    forecasts=(VipForecast("www", STEP.vip, 0.02, 350_000, (AsForecast("10.0.0.1", "web0", 8192, 0),)),),
    stall_ns=350_000,
    notes=("VIP 192.0.2.99/32 is not configured and left alone",),
)


def vip_state(frontend: Frontend, backends: Mapping[str, Backend]) -> VipState:
    """A VIP that is in VPP as it is wanted."""
    return VipState(
        frontend=frontend.name,
        prefix=f"{frontend.address}/{frontend.address.max_prefixlen}",
        protocol=str(frontend.protocol),
        port=frontend.port,
        encap="gre4",
        new_flows_table_length=16384,
        src_ip_sticky=False,
        index=1,
        present=True,
        wanted=True,
        in_sync=True,
        held=False,
        waiting=False,
        unit=10,
        lingering=0,
        notes=(),
        ases=[
            AsState(str(backends[member.backend].address), member.backend, pool.name, 10, 10, 8192, 8192, True, False)
            for pool in frontend.pools
            for member in pool.members
        ],
    )


def traffic(vip: VipState) -> VipTraffic:
    """Some packets of a VIP."""
    return VipTraffic(vip.frontend, vip.prefix, "tcp", 80, 1000, 10, 1, 0, 1011, 64000)


TABLE = FrontendTable(16384, "0123456789abcdef", {"web0": 12288, "spare": 4096})
FLOW = FlowAnswer(
    frontend="www",
    vip="192.0.2.80/32 tcp 80",
    by_address=False,
    hash=0x89ABCDEF,
    bucket=3567,
    table_length=16384,
    server=FlowServer("10.0.0.1", "web0"),
    server_before=FlowServer("10.0.0.9", ""),
    changed_at_ns=NOW - 5,
    read_at_ns=NOW,
    fingerprint=TABLE.fingerprint,
)


@dataclass
class FakeDataplane:
    link: ConnectionInfo = ConnectionInfo(True, "/run/vpp/api.sock", NOW, "")  # noqa: RUF009 (it is immutable)
    vips: list[VipState] = field(default_factory=list)
    readings: int = 0
    waiting: int = 0
    flow_readings: int = 0
    table_now: FrontendTable = TABLE
    questions: list[FlowQuestion] = field(default_factory=list)
    syncs: list[tuple[str | None, bool, str]] = field(default_factory=list)

    def lose(self, problem: str = "") -> None:
        """VPP goes away."""
        self.link = replace(self.link, connected=False, problem=problem)

    def connection(self) -> ConnectionInfo:
        return self.link

    def warmup(self) -> WarmupInfo:
        return WarmupInfo("done", 0)

    def waiting_vips(self) -> int:
        return self.waiting

    def info(self) -> DataplaneInfo:
        return VPP

    async def lb_state(self, frontend: str | None) -> LbState:
        self.readings += 1
        return LbState(CONF, [vip for vip in self.vips if frontend in (None, vip.frontend)], NOW)

    async def plan(
        self, frontend: str | None, *, force: bool, prune: bool = False, config: Config | None = None
    ) -> PlanReport:
        return PLAN

    async def preview(self, names: Sequence[str], after: StateSource, events: Sequence[Event]) -> PlanReport:
        if not self.link.connected:
            raise Unavailable("VPP is away")
        return PLAN

    async def sync(self, frontend: str | None, *, force: bool, by: str, prune: bool = False) -> SyncReport:
        if not self.link.connected:
            raise Unavailable("VPP is away")
        self.syncs.append((frontend, force, by))
        self.waiting = 0 if prune else self.waiting
        return SyncReport(PLAN, ())

    def table(self, frontend: str, *, with_buckets: bool) -> FrontendTable | None:
        shown = replace(self.table_now, buckets=self.table_now.buckets if with_buckets else {})
        return shown if self.link.connected else None

    def flow(self, question: FlowQuestion) -> FlowAnswer:
        self.questions.append(question)
        if not self.link.connected:
            raise Unavailable("VPP is away")
        if question.address != "192.0.2.80":
            raise UnknownName("VIP", f"{question.address} tcp {question.port}")
        return FLOW

    async def flows(self, backend: str) -> BackendFlows:
        self.flow_readings += 1
        left = max(0, 2 - self.flow_readings)
        one = FrontendFlows("www", "192.0.2.80/32 tcp 80", left, 0)
        return BackendFlows(backend, "10.0.0.1", True, left, not left, [one], NOW, 1_000_000)

    async def counters(self, frontend: str | None) -> TrafficReport:
        return TrafficReport([traffic(vip) for vip in self.vips if frontend in (None, vip.frontend)], NOW)


@dataclass
class FakeDaemon:
    """The parts, and the ``Services`` made of them."""

    checker: FakeChecker
    loader: FakeLoader
    logs: FakeLogs
    bus: Bus
    services: Services
    dataplane: FakeDataplane


def small_config() -> Config:
    """Two frontends (one with a standby pool), four backends, two health checks."""
    backends = {
        "web0": Backend("web0", ip_address("10.0.0.1"), "web"),
        "web1": Backend("web1", ip_address("10.0.0.2"), "web"),
        "spare": Backend("spare", ip_address("10.0.0.3"), None),
        "dns0": Backend("dns0", ip_address("2001:db8:1::53"), "dns"),
    }
    frontends = {
        "www": Frontend(
            "www",
            ip_address("192.0.2.80"),
            (
                Pool("primary", (PoolMember("web0", 100), PoolMember("web1", 50))),
                Pool("fallback", (PoolMember("spare", 10),)),
            ),
            Protocol.TCP,
            80,
            "public web",
        ),
        "dns": Frontend("dns", ip_address("2001:db8::53"), (Pool("all", (PoolMember("dns0"),)),), Protocol.UDP, 53),
    }
    checks = {
        "web": HealthCheck("web", CheckType.HTTP, HttpParams(path="/healthz", host="www.example.org"), port=80),
        "dns": HealthCheck("dns", CheckType.TCP, TcpParams(), port=53),
    }
    return Config(lb=LbConfig(), healthchecks=checks, backends=backends, frontends=frontends)


def large_config(backends: int, frontends: int) -> Config:
    """``backends`` static servers in ``frontends`` VIPs."""
    servers = {f"b{i:05}": Backend(f"b{i:05}", ip_address(0x0A000000 + i)) for i in range(backends)}
    names = list(servers)
    share = max(1, backends // frontends)
    vips = {
        f"f{i:04}": Frontend(
            f"f{i:04}",
            ip_address(0xC6120000 + i),
            (Pool("primary", tuple(PoolMember(name) for name in names[i * share : (i + 1) * share])),),
            Protocol.TCP,
            80,
        )
        for i in range(frontends)
    }
    return Config(backends=servers, frontends=vips)


def fake_daemon(
    config: Config | None = None,
    *,
    clock: Clock | None = None,
    vpp: bool = True,
    keep: Callable[[], Awaitable[None]] | None = None,
) -> FakeDaemon:
    """A daemon with the small configuration and a VPP that holds its frontends, by default."""
    config = config if config is not None else small_config()
    bus = Bus()
    checker = FakeChecker(config, bus)
    loader = FakeLoader(LoadResult(config, (WARNING,)))
    logs = FakeLogs()
    dataplane = FakeDataplane(vips=[vip_state(frontend, config.backends) for frontend in config.frontends.values()])
    clock = clock if clock is not None else SystemClock()
    causes = Causes(clock, checker.frontends_of, lambda: checker.config().frontends)
    ring = EventRing(clock, causes)
    bus.listen(ring.take)
    services = Services(
        identity=Identity("1.2.3", NOW, clock.monotonic_ns()),
        clock=clock,
        bus=bus,
        checker=checker,
        previews=FakePreviews(checker),
        tracer=checker,
        loader=loader,
        logs=logs,
        events=ring,
        causes=causes,
        dataplane=dataplane if vpp else None,
        keep=keep,
    )
    return FakeDaemon(checker, loader, logs, bus, services, dataplane)


def log_event(level: str = "info", event: str = "test", **fields: str) -> LogEvent:
    """A log record on the bus."""
    return LogEvent(level, event, f"{event} happened", NOW, fields)
