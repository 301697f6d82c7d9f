"""A daemon for the API's tests: real configuration, weights and bus, with states that a test sets by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from maglev.base.clock import Clock, SystemClock
from maglev.base.errors import BadValue, NotAllowed, Unavailable, UnknownName
from maglev.base.events import BackendEvent, Bus, DrainEvent, LogEvent, WeightEvent
from maglev.base.states import CheckType, Code, FrontendState, State
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
from maglev.judgement.weights import FrontendWeights, frontend_weights
from maglev.rpc.services import Identity, Services

NOW = 1_800_000_000_000_000_000


@dataclass
class Transition:
    from_state: State
    to_state: State
    code: Code
    detail: str = ""
    at_ns: int = NOW
    by: str = ""
    reason: str = ""


@dataclass
class Status:
    address: str = ""
    state: State = State.UNKNOWN
    drained: bool = False
    enabled: bool = True
    counter: int = 1
    rise: int = 2
    fall: int = 3
    last_code: Code = Code.NONE
    last_detail: str = ""
    last_rtt_ns: int | None = None
    last_result_age_ns: int | None = None
    state_since_ns: int = NOW
    unprobed_since_ns: int = 0
    unprobed_reason: str = ""
    presumed: bool = False
    probes_passed: int = 0
    probes_failed: int = 0
    transitions: list[Transition] = field(default_factory=list)


@dataclass
class Override:
    kind: str
    backend: str
    frontend: str = ""
    pool: str = ""
    weight: int = 0
    file_weight: int = 0
    file_enabled: bool = True
    address: str = ""
    since_ns: int = NOW
    until_ns: int = 0
    by: str = ""
    reason: str = ""


@dataclass
class Changed:
    changed: bool = True
    warnings: Sequence[str] = ()
    previous: int = 0


@dataclass
class FakeChecker:
    """States by hand; the verbs do what the contract says, without probing."""

    configured: Config
    bus: Bus
    statuses: dict[str, Status] = field(default_factory=dict)
    set: list[Override] = field(default_factory=list)
    asked: list[tuple[str, str, str, str, int]] = field(default_factory=list)
    traced: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, backend in self.configured.backends.items():
            self.statuses.setdefault(name, Status(str(backend.address)))

    def config(self) -> Config:
        return self.configured

    def backend_status(self, name: str) -> Status:
        try:
            return self.statuses[name]
        except KeyError:
            raise UnknownName("backend", name) from None

    def backend_state(self, name: str) -> Status:
        return self.backend_status(name)

    def weight_override(self, frontend: str, pool: str, backend: str) -> int | None:
        for one in self.set:
            if (one.frontend, one.pool, one.backend, one.kind) == (frontend, pool, backend, "weight"):
                return one.weight
        return None

    def frontend_weights(self, name: str) -> FrontendWeights:
        try:
            return frontend_weights(self.configured.frontends[name], self)
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

    def engine_stats(self) -> Mapping[str, int]:
        return {"sent": 12, "received": 11}

    def move(self, name: str, to: State, code: Code, *, detail: str = "", by: str = "", reason: str = "") -> None:
        """A transition: state, history and event."""
        status = self.backend_status(name)
        transition = Transition(status.state, to, code, detail, NOW, by, reason)
        status.transitions.append(transition)
        status.state = to
        self.bus.publish(
            BackendEvent(
                name,
                str(self.configured.backends[name].address),
                transition.from_state,
                to,
                code,
                detail,
                NOW,
                by,
                status.drained,
                reason,
            )
        )

    def _verb(self, verb: str, name: str, by: str, reason: str, duration_ns: int) -> Status:
        self.asked.append((verb, name, by, reason, duration_ns))
        return self.backend_status(name)

    def pause(self, name: str, *, by: str, reason: str = "", duration_ns: int = 0) -> Changed:
        if self._verb("pause", name, by, reason, duration_ns).state is State.DISABLED:
            raise NotAllowed(f"backend {name!r} is disabled")
        self.move(name, State.PAUSED, Code.PAUSED, by=by, reason=reason)
        return Changed()

    def resume(self, name: str, *, by: str, reason: str = "", duration_ns: int = 0) -> Changed:
        if self._verb("resume", name, by, reason, duration_ns).state is State.DISABLED:
            raise NotAllowed(f"backend {name!r} is disabled")
        self.move(name, State.UNKNOWN, Code.RESUMED, by=by, reason=reason)
        return Changed()

    def enable(self, name: str, *, by: str, reason: str = "", duration_ns: int = 0) -> Changed:
        status = self._verb("enable", name, by, reason, duration_ns)
        if status.state is not State.DISABLED:
            return Changed(changed=False)
        status.enabled = True
        self.move(name, State.UNKNOWN, Code.ENABLED, by=by, reason=reason)
        return Changed()

    def disable(self, name: str, *, by: str, reason: str = "", duration_ns: int = 0) -> Changed:
        status = self._verb("disable", name, by, reason, duration_ns)
        if status.state is State.DISABLED:
            return Changed(changed=False)
        status.enabled = False
        self.move(name, State.DISABLED, Code.DISABLED, by=by, reason=reason)
        return Changed(warnings=("the state file could not be written",))

    def _drain(self, verb: str, name: str, by: str, reason: str, duration_ns: int) -> Changed:
        status = self._verb(verb, name, by, reason, duration_ns)
        drained = verb == "drain"
        changed = status.drained is not drained
        status.drained = drained
        address = str(self.configured.backends[name].address)
        self.bus.publish(DrainEvent(name, address, status.state, drained, NOW, by, reason))
        return Changed(changed=changed)

    def drain(self, name: str, *, by: str, reason: str = "", duration_ns: int = 0) -> Changed:
        return self._drain("drain", name, by, reason, duration_ns)

    def undrain(self, name: str, *, by: str, reason: str = "", duration_ns: int = 0) -> Changed:
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
    ) -> Changed:
        for member in self.frontend_weights(frontend).members:
            if (member.pool, member.backend) == (pool, backend):
                break
        else:
            raise UnknownName("backend in that pool", backend)
        if weight is not None and not 0 <= weight <= 100:
            raise BadValue(f"weight {weight}")
        self.set = [one for one in self.set if (one.frontend, one.pool, one.backend) != (frontend, pool, backend)]
        if weight is not None:
            self.set.append(
                Override("weight", backend, frontend, pool, weight, member.configured, by=by, reason=reason)
            )
        new = member.configured if weight is None else weight
        self.bus.publish(
            WeightEvent(frontend, pool, backend, member.weight, new, flush, NOW, by, weight is None, reason)
        )
        return Changed(changed=member.weight != new, previous=member.weight)

    def trace(self, backend: str) -> Callable[[], None]:
        self.backend_status(backend)
        self.traced.append(backend)
        return lambda: self.traced.remove(backend)


@dataclass
class Problem:
    path: str
    message: str
    line: int = 0
    column: int = 0


@dataclass
class Load:
    config: Config | None
    parse_errors: Sequence[Problem] = ()
    semantic_errors: Sequence[Problem] = ()
    warnings: Sequence[Problem] = ()


@dataclass
class ConfigChange:
    path: str
    kind: str
    old: str
    new: str


@dataclass
class FakeLoader:
    result: Load
    file: str = "/etc/vpp-maglev/maglev.yaml"
    loaded_at_ns: int = NOW
    loaded_by: str = "start"
    last_error: str = ""
    dangerous: bool = False
    reloads: list[tuple[bool, str]] = field(default_factory=list)
    # Stands in for a check that takes its time.
    checks: Callable[[], Awaitable[Load]] | None = None

    async def check(self) -> Load:
        return self.result if self.checks is None else await self.checks()

    async def load(self) -> Load:
        return self.result

    async def diff(self, new: Config) -> Sequence[ConfigChange]:
        return [ConfigChange("maglev.backends.web0.address", "changed", "192.0.2.1", "192.0.2.2")]

    def needs_force(self, new: Config) -> bool:
        return self.dangerous

    async def reload(self, *, force: bool, by: str) -> Load:
        if self.dangerous and not force:
            raise NotAllowed("this reload would delete 4 of 5 VIPs")
        self.reloads.append((force, by))
        return self.result


@dataclass
class FakeLogs:
    levels: list[str] = field(default_factory=list)
    # Set when somebody's watch ended.
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def watch(self, level: str) -> Callable[[], None]:
        self.levels.append(level)

        def end() -> None:
            self.levels.remove(level)
            self.ended.set()

        return end


@dataclass
class Connection:
    connected: bool = True
    socket: str = "/run/vpp/api.sock"
    since_ns: int = NOW
    problem: str = ""


@dataclass
class Warmup:
    phase: str = "done"
    remaining_ns: int = 0


@dataclass
class Vpp:
    version: str = "26.10-rc0"
    build_date: str = "2026-08-21"
    build_directory: str = "/w"
    pid: int = 4711
    uptime_ns: int = 3_600_000_000_000
    connected_ns: int = 60_000_000_000
    lb_supported: bool = True
    last_full_sync_at_ns: int = NOW
    last_full_sync_changes: int = 3
    calls_failed: int = 0
    cost_ns_per_bucket: float = 17.0
    cost_ns_per_weight: float = 125.0
    workers: int = 2


@dataclass
class LbConf:
    ipv4_src_address: str = "192.0.2.1"
    ipv6_src_address: str = "2001:db8::1"
    sticky_buckets_per_core: int = 1024
    flow_timeout_ns: int = 40_000_000_000


@dataclass
class AsState:
    address: str
    backend: str
    pool: str = "primary"
    programmed_weight: int = 10
    vpp_weight: int | None = 10
    buckets: int = 8192
    predicted_buckets: int = 8192
    live: bool = True
    flush_owed: bool = False


@dataclass
class VipState:
    frontend: str
    prefix: str
    protocol: str = "tcp"
    port: int = 80
    encap: str = "gre4"
    new_flows_table_length: int = 16384
    src_ip_sticky: bool = False
    index: int | None = 1
    present: bool = True
    wanted: bool = True
    in_sync: bool = True
    held: bool = False
    unit: int = 10
    lingering: int = 0
    notes: Sequence[str] = ()
    ases: Sequence[AsState] = ()


@dataclass
class LbState:
    vips: Sequence[VipState]
    conf: LbConf = field(default_factory=LbConf)
    read_at_ns: int = NOW


@dataclass
class Step:
    kind: str = "as_weight"
    frontend: str = "www"
    vip: str = "192.0.2.80/32 tcp 80"
    backend: str = "web0"
    address: str = "10.0.0.1"
    old_weight: int = 10
    new_weight: int = 0
    flush: bool = True
    stall_ns: int = 350_000

    def __str__(self) -> str:
        return f"weight {self.vip} {self.address} {self.old_weight} -> {self.new_weight}"


@dataclass
class AsForecast:
    address: str = "10.0.0.1"
    backend: str = "web0"
    buckets_before: int = 8192
    buckets_after: int = 0


@dataclass
class VipForecast:
    frontend: str = "www"
    vip: str = "192.0.2.80/32 tcp 80"
    moved_share: float = 0.02
    stall_ns: int = 350_000
    ases: Sequence[AsForecast] = (AsForecast(),)


@dataclass
class Plan:
    steps: Sequence[Step] = (Step(),)
    forecasts: Sequence[VipForecast] = (VipForecast(),)
    stall_ns: int = 350_000
    notes: Sequence[str] = ("VIP 192.0.2.99/32 is not configured and left alone",)


@dataclass
class Sync:
    plan: Plan = field(default_factory=Plan)
    failures: Sequence[str] = ()


@dataclass
class VipCounters:
    frontend: str
    prefix: str
    protocol: str = "tcp"
    port: int = 80
    existing_session: int = 1000
    first_session: int = 10
    untracked: int = 1
    no_server: int = 0
    route_packets: int = 1011
    route_bytes: int = 64000


@dataclass
class Counters:
    vips: Sequence[VipCounters]
    read_at_ns: int = NOW


@dataclass
class FakeDataplane:
    link: Connection = field(default_factory=Connection)
    vips: list[VipState] = field(default_factory=list)
    readings: int = 0
    syncs: list[tuple[str | None, bool, str]] = field(default_factory=list)

    def connection(self) -> Connection:
        return self.link

    def warmup(self) -> Warmup:
        return Warmup()

    def info(self) -> Vpp:
        return Vpp()

    async def lb_state(self, frontend: str | None) -> LbState:
        self.readings += 1
        return LbState([vip for vip in self.vips if frontend in (None, vip.frontend)])

    async def plan(self, frontend: str | None, *, force: bool, config: Config | None = None) -> Plan:
        return Plan()

    async def sync(self, frontend: str | None, *, force: bool, by: str) -> Sync:
        if not self.link.connected:
            raise Unavailable("VPP is away")
        self.syncs.append((frontend, force, by))
        return Sync()

    async def counters(self, frontend: str | None) -> Counters:
        return Counters(
            [VipCounters(vip.frontend, vip.prefix) for vip in self.vips if frontend in (None, vip.frontend)]
        )


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


def fake_daemon(config: Config | None = None, *, clock: Clock | None = None, vpp: bool = True) -> FakeDaemon:
    """A daemon with the small configuration and a VPP that holds its frontends, unless told otherwise."""
    config = config if config is not None else small_config()
    bus = Bus()
    checker = FakeChecker(config, bus)
    loader = FakeLoader(Load(config, warnings=[Problem("maglev.frontends.www", "the table is small", 3, 5)]))
    logs = FakeLogs()
    dataplane = FakeDataplane(
        vips=[
            VipState(
                name,
                f"{frontend.address}/{frontend.address.max_prefixlen}",
                str(frontend.protocol),
                frontend.port,
                ases=[
                    AsState(str(config.backends[member.backend].address), member.backend, pool.name)
                    for pool in frontend.pools
                    for member in pool.members
                ],
            )
            for name, frontend in config.frontends.items()
        ]
    )
    clock = clock if clock is not None else SystemClock()
    services = Services(
        identity=Identity("1.2.3", NOW, clock.monotonic_ns()),
        clock=clock,
        bus=bus,
        checker=checker,
        tracer=checker,
        loader=loader,
        logs=logs,
        dataplane=dataplane if vpp else None,
    )
    return FakeDaemon(checker, loader, logs, bus, services, dataplane)


def log_event(level: str = "info", event: str = "test", **fields: str) -> LogEvent:
    """A log record on the bus."""
    return LogEvent(level, event, f"{event} happened", NOW, fields)
