"""What the API needs of the rest of the daemon, as protocols: the daemon plugs the real parts in, tests plug fakes in.

Everything is called on the daemon's event loop. Methods without ``async`` answer from memory and never wait. Errors
are those of ``maglev.base.errors`` and reach the caller with their gRPC status; anything else is a bug and reaches the
caller as ``INTERNAL`` without its text.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from maglev.base.clock import Clock
from maglev.base.events import Bus
from maglev.base.states import Code, FrontendState, State
from maglev.config.model import Config
from maglev.judgement.weights import FrontendWeights

# Name of the log record of a single probe; only watchers that name its backend get it.
PROBE_RECORD = "probe"

# ---------------------------------------------------------------------------------------------------- the checker


class TransitionView(Protocol):
    """A remembered change of state. ``at_ns``: wall clock, nanoseconds since the epoch. ``by``: empty for a verdict."""

    @property
    def from_state(self) -> State: ...
    @property
    def to_state(self) -> State: ...
    @property
    def code(self) -> Code: ...
    @property
    def detail(self) -> str: ...
    @property
    def at_ns(self) -> int: ...
    @property
    def by(self) -> str: ...
    @property
    def reason(self) -> str: ...


class BackendStatus(Protocol):
    """Everything that is known of one backend at run time, as it is now.

    ``last_rtt_ns`` and ``last_result_age_ns`` are None before there was one. ``last_code`` is ``NONE`` before the
    first result. ``unprobed_since_ns`` (wall clock) is 0 while it can be probed. ``transitions``: oldest first.
    """

    @property
    def address(self) -> str: ...
    @property
    def state(self) -> State: ...
    @property
    def drained(self) -> bool: ...
    @property
    def enabled(self) -> bool: ...
    @property
    def counter(self) -> int: ...
    @property
    def rise(self) -> int: ...
    @property
    def fall(self) -> int: ...
    @property
    def last_code(self) -> Code: ...
    @property
    def last_detail(self) -> str: ...
    @property
    def last_rtt_ns(self) -> int | None: ...
    @property
    def last_result_age_ns(self) -> int | None: ...
    @property
    def state_since_ns(self) -> int: ...
    @property
    def unprobed_since_ns(self) -> int: ...
    @property
    def unprobed_reason(self) -> str: ...
    @property
    def presumed(self) -> bool: ...
    @property
    def probes_passed(self) -> int: ...
    @property
    def probes_failed(self) -> int: ...
    @property
    def transitions(self) -> Sequence[TransitionView]: ...


class OverrideView(Protocol):
    """What an operator set at run time.

    ``kind`` is ``drain | disable | enable | pause | weight`` (or an enum of these values). ``frontend``, ``pool``,
    ``weight`` and ``file_weight`` are for weights only (else empty and 0). ``until_ns`` 0: never taken back by itself.
    """

    @property
    def kind(self) -> object: ...
    @property
    def backend(self) -> str: ...
    @property
    def frontend(self) -> str: ...
    @property
    def pool(self) -> str: ...
    @property
    def weight(self) -> int: ...
    @property
    def file_weight(self) -> int: ...
    @property
    def file_enabled(self) -> bool: ...
    @property
    def address(self) -> str: ...
    @property
    def since_ns(self) -> int: ...
    @property
    def until_ns(self) -> int: ...
    @property
    def by(self) -> str: ...
    @property
    def reason(self) -> str: ...


class Change(Protocol):
    """What an operator's verb did. ``warnings``: what went wrong beside it (the state file could not be written)."""

    @property
    def changed(self) -> bool: ...
    @property
    def warnings(self) -> Sequence[str]: ...


class WeightChange(Change, Protocol):
    """What became of a run-time weight: the weight in force before."""

    @property
    def previous(self) -> int: ...


class Verb(Protocol):
    """One of the operator's verbs on a backend. Raises ``UnknownName``, ``NotAllowed``, ``BadValue``."""

    def __call__(self, name: str, *, by: str, reason: str = "", duration_ns: int = 0) -> Change: ...


class CheckerApi(Protocol):
    """The run-time side: states, weights, and the operator's verbs."""

    def config(self) -> Config:
        """The configuration in force; a new object after each reload."""
        ...

    def backend_status(self, name: str) -> BackendStatus:
        """Everything about one backend. Raises ``UnknownName``. Takes microseconds: lists call it 50,000 times."""
        ...

    def frontend_state(self, name: str) -> FrontendState:
        """State of a frontend. Raises ``UnknownName``."""
        ...

    def frontend_weights(self, name: str) -> FrontendWeights:
        """Active pool, unit and the weights of all members, by the weight rule. Raises ``UnknownName``."""
        ...

    def frontends_of(self, backend: str) -> Sequence[str]:
        """Names of the frontends that use a backend, in the order of the file."""
        ...

    def overrides(self) -> Sequence[OverrideView]:
        """What operators have set, oldest first."""
        ...

    def overrides_of(self, backend: str) -> Sequence[OverrideView]:
        """What operators have set of one backend, oldest first."""
        ...

    def state_counts(self) -> Mapping[State, int]:
        """Backends by state."""
        ...

    def engine_stats(self) -> Mapping[str, int]:
        """Counters of the probe engine."""
        ...

    @property
    def pause(self) -> Verb: ...
    @property
    def resume(self) -> Verb: ...
    @property
    def enable(self) -> Verb: ...
    @property
    def disable(self) -> Verb: ...
    @property
    def drain(self) -> Verb: ...
    @property
    def undrain(self) -> Verb: ...

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
        """Set a run-time weight, or with None go back to the file's. Raises ``UnknownName`` and ``BadValue``."""
        ...


class Tracer(Protocol):
    """Turns per-probe log records of single backends on and off."""

    def trace(self, backend: str) -> Callable[[], None]:
        """Publish a debug ``LogEvent`` named ``PROBE_RECORD`` for each probe; the returned function ends that.

        Its fields: ``backend``, and what is known of the probe (``code``, ``detail``, ``rtt_ns``).

        Counted: two traces of one backend end with the second. Raises ``UnknownName``.
        """
        ...


# -------------------------------------------------------------------------------------------------- the dataplane


class ConnectionView(Protocol):
    """The connection to VPP. ``since_ns``: wall clock. ``problem``: why it is away or VPP is left alone."""

    @property
    def connected(self) -> bool: ...
    @property
    def socket(self) -> str: ...
    @property
    def since_ns(self) -> int: ...
    @property
    def problem(self) -> str: ...


class WarmupView(Protocol):
    """``phase`` is ``silent | releasing | done``; ``remaining_ns`` until all frontends are released."""

    @property
    def phase(self) -> str: ...
    @property
    def remaining_ns(self) -> int: ...


class VppView(Protocol):
    """The VPP at the other end. Times in nanoseconds; ``last_full_sync_at_ns`` is wall clock, 0: none yet."""

    @property
    def version(self) -> str: ...
    @property
    def build_date(self) -> str: ...
    @property
    def build_directory(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def uptime_ns(self) -> int: ...
    @property
    def connected_ns(self) -> int: ...
    @property
    def lb_supported(self) -> bool: ...
    @property
    def last_full_sync_at_ns(self) -> int: ...
    @property
    def last_full_sync_changes(self) -> int: ...
    @property
    def calls_failed(self) -> int: ...
    @property
    def cost_ns_per_bucket(self) -> float: ...
    @property
    def cost_ns_per_weight(self) -> float: ...
    @property
    def workers(self) -> int: ...


class LbConfView(Protocol):
    """Global configuration as VPP holds it. Addresses as text, empty when unset; ``flow_timeout_ns`` whole seconds."""

    @property
    def ipv4_src_address(self) -> str: ...
    @property
    def ipv6_src_address(self) -> str: ...
    @property
    def sticky_buckets_per_core(self) -> int: ...
    @property
    def flow_timeout_ns(self) -> int: ...


class AsStateView(Protocol):
    """One AS of a VIP in VPP, or wanted there (``vpp_weight`` None: not there). Weights in units."""

    @property
    def address(self) -> str: ...
    @property
    def backend(self) -> str: ...
    @property
    def pool(self) -> str: ...
    @property
    def programmed_weight(self) -> int: ...
    @property
    def vpp_weight(self) -> int | None: ...
    @property
    def buckets(self) -> int: ...
    @property
    def predicted_buckets(self) -> int: ...
    @property
    def live(self) -> bool: ...
    @property
    def flush_owed(self) -> bool: ...


class VipStateView(Protocol):
    """One VIP in VPP beside what is wanted.

    ``protocol`` is ``tcp | udp | any``, ``encap`` is ``gre4 | gre6 | l3dsr | nat4 | nat6``. ``frontend`` is empty for
    a VIP that is not configured. ``index`` None: not known.
    """

    @property
    def frontend(self) -> str: ...
    @property
    def prefix(self) -> str: ...
    @property
    def protocol(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def encap(self) -> object: ...
    @property
    def new_flows_table_length(self) -> int: ...
    @property
    def src_ip_sticky(self) -> bool: ...
    @property
    def index(self) -> int | None: ...
    @property
    def present(self) -> bool: ...
    @property
    def wanted(self) -> bool: ...
    @property
    def in_sync(self) -> bool: ...
    @property
    def held(self) -> bool: ...
    @property
    def unit(self) -> int: ...
    @property
    def lingering(self) -> int: ...
    @property
    def notes(self) -> Sequence[str]: ...
    @property
    def ases(self) -> Sequence[AsStateView]: ...


class LbStateView(Protocol):
    """What VPP holds beside what is wanted. ``read_at_ns``: wall clock."""

    @property
    def conf(self) -> LbConfView: ...
    @property
    def vips(self) -> Sequence[VipStateView]: ...
    @property
    def read_at_ns(self) -> int: ...


class PlanStepView(Protocol):
    """One call to VPP.

    ``kind``: conf | vip_add | vip_remove | as_add | as_remove | as_weight | vip_flush (or an enum of these values).
    ``str()`` is the step in words.
    """

    @property
    def kind(self) -> object: ...
    @property
    def frontend(self) -> str: ...
    @property
    def vip(self) -> str: ...
    @property
    def backend(self) -> str: ...
    @property
    def address(self) -> str: ...
    @property
    def old_weight(self) -> int: ...
    @property
    def new_weight(self) -> int: ...
    @property
    def flush(self) -> bool: ...
    @property
    def stall_ns(self) -> int: ...


class AsForecastView(Protocol):
    """Buckets of one AS before and after a plan."""

    @property
    def address(self) -> str: ...
    @property
    def backend(self) -> str: ...
    @property
    def buckets_before(self) -> int: ...
    @property
    def buckets_after(self) -> int: ...


class VipForecastView(Protocol):
    """What a plan means for one VIP. ``moved_share``: 0..1, of the buckets of ASes whose weight does not change."""

    @property
    def frontend(self) -> str: ...
    @property
    def vip(self) -> str: ...
    @property
    def moved_share(self) -> float: ...
    @property
    def stall_ns(self) -> int: ...
    @property
    def ases(self) -> Sequence[AsForecastView]: ...


class PlanView(Protocol):
    """What a sync would do, in order. ``notes``: what is left alone and why."""

    @property
    def steps(self) -> Sequence[PlanStepView]: ...
    @property
    def forecasts(self) -> Sequence[VipForecastView]: ...
    @property
    def stall_ns(self) -> int: ...
    @property
    def notes(self) -> Sequence[str]: ...


class SyncView(Protocol):
    """What a sync did. ``failures``: calls that VPP refused, in words."""

    @property
    def plan(self) -> PlanView: ...
    @property
    def failures(self) -> Sequence[str]: ...


class VipCountersView(Protocol):
    """Packet counters of one VIP; ``protocol`` as in ``VipStateView``."""

    @property
    def frontend(self) -> str: ...
    @property
    def prefix(self) -> str: ...
    @property
    def protocol(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def existing_session(self) -> int: ...
    @property
    def first_session(self) -> int: ...
    @property
    def untracked(self) -> int: ...
    @property
    def no_server(self) -> int: ...
    @property
    def route_packets(self) -> int: ...
    @property
    def route_bytes(self) -> int: ...


class CountersView(Protocol):
    """Counters of all VIPs, as last read. ``read_at_ns``: wall clock."""

    @property
    def vips(self) -> Sequence[VipCountersView]: ...
    @property
    def read_at_ns(self) -> int: ...


class DataplaneApi(Protocol):
    """VPP. Everything but ``connection`` and ``warmup`` raises ``Unavailable`` while VPP is away.

    ``frontend`` None means everything; an unknown one raises ``UnknownName``.
    """

    def connection(self) -> ConnectionView:
        """The connection as it is now."""
        ...

    def warmup(self) -> WarmupView:
        """Where the warm-up stands."""
        ...

    def info(self) -> VppView:
        """Who is at the other end."""
        ...

    async def lb_state(self, frontend: str | None) -> LbStateView:
        """Read VPP (paced) and set it beside what is wanted."""
        ...

    async def plan(self, frontend: str | None, *, force: bool, config: Config | None = None) -> PlanView:
        """What a sync would do; with ``config`` what it would do after a reload to that configuration."""
        ...

    async def sync(self, frontend: str | None, *, force: bool, by: str) -> SyncView:
        """Bring VPP to the desired state. Raises ``NotAllowed`` during the warm-up."""
        ...

    async def counters(self, frontend: str | None) -> CountersView:
        """Packet counters."""
        ...


# ---------------------------------------------------------------------------------------------- the configuration


class ProblemView(Protocol):
    """One error or warning of the configuration file. ``line`` and ``column`` from 1, 0: not known."""

    @property
    def path(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def line(self) -> int: ...
    @property
    def column(self) -> int: ...


class CheckView(Protocol):
    """What is wrong with a file. ``maglev.config.load.CheckResult`` is one."""

    @property
    def parse_errors(self) -> Sequence[ProblemView]: ...
    @property
    def semantic_errors(self) -> Sequence[ProblemView]: ...
    @property
    def warnings(self) -> Sequence[ProblemView]: ...


class LoadView(CheckView, Protocol):
    """A file that was read. ``config`` None: it has errors. ``maglev.config.load.LoadResult`` is one."""

    @property
    def config(self) -> Config | None: ...


class ConfigChangeView(Protocol):
    """One difference between two configurations. ``kind``: added | removed | changed (an enum of these values too)."""

    @property
    def path(self) -> str: ...
    @property
    def kind(self) -> object: ...
    @property
    def old(self) -> str: ...
    @property
    def new(self) -> str: ...


class LoaderApi(Protocol):
    """The configuration file and its reload."""

    @property
    def file(self) -> str:
        """Path of the configuration file."""
        ...

    @property
    def loaded_at_ns(self) -> int:
        """When the configuration in force took effect, wall clock."""
        ...

    @property
    def loaded_by(self) -> str:
        """Who asked for that: ``start``, ``signal`` or the caller of a reload."""
        ...

    @property
    def last_error(self) -> str:
        """Why the last reload was refused; empty: it was not."""
        ...

    async def check(self) -> CheckView:
        """Read the file and check it; changes nothing and holds nothing up."""
        ...

    async def load(self) -> LoadView:
        """Read the file; changes nothing and holds nothing up."""
        ...

    async def diff(self, new: Config) -> Sequence[ConfigChangeView]:
        """What differs between the configuration in force and ``new``."""
        ...

    def needs_force(self, new: Config) -> bool:
        """Whether a reload to ``new`` deletes so many VIPs that it is refused unless forced."""
        ...

    async def reload(self, *, force: bool, by: str) -> LoadView:
        """Read the file and put it into effect, if it has no error. Raises ``NotAllowed`` for want of ``force``."""
        ...


# ------------------------------------------------------------------------------------------------------ the whole


class LogControlApi(Protocol):
    """The daemon's logging, as far as watchers touch it (``maglev.base.logs.LogControl``)."""

    def watch(self, level: str) -> Callable[[], None]:
        """Publish log records of ``level`` and above on the bus; the returned function ends that."""
        ...


@dataclass(frozen=True, slots=True)
class Identity:
    """The daemon itself. ``started_at_ns``: wall clock; ``started_monotonic_ns``: the clock's ``monotonic_ns``."""

    version: str
    started_at_ns: int
    started_monotonic_ns: int


@dataclass(frozen=True, slots=True)
class Services:
    """All that the API serves from. ``dataplane`` None: the daemon runs without VPP.

    ``keep`` waits until what operators have set is on the disk; it raises a ``MaglevError`` when that fails. None:
    it is kept in memory only.
    """

    identity: Identity
    clock: Clock
    bus: Bus
    checker: CheckerApi
    tracer: Tracer
    loader: LoaderApi
    logs: LogControlApi
    dataplane: DataplaneApi | None = None
    keep: Callable[[], Awaitable[None]] | None = None
