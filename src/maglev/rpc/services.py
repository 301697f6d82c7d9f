"""Services that the API asks of the rest of the daemon, as protocols; tests plug fakes in.

Only methods are protocols. The values that they return are defined once: of ``maglev.views``, ``maglev.base.events``,
``maglev.judgement`` and ``maglev.config``.

Everything is called on the daemon's event loop. Methods without ``async`` answer from memory and never wait. Errors
are those of ``maglev.base.errors`` and reach the caller with their gRPC status; anything else is a bug and reaches the
caller as ``INTERNAL`` without its text.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from maglev.base.clock import Clock
from maglev.base.events import Bus, Event
from maglev.base.states import FrontendState, State
from maglev.config.diff import ConfigChange
from maglev.config.load import CheckResult, LoadResult
from maglev.config.model import Config
from maglev.events.causes import Cause
from maglev.events.ring import PastEvent
from maglev.judgement.brake import Begun
from maglev.judgement.weights import FrontendWeights, StateSource
from maglev.views.backends import BackendStatus, Change, Override, WeightChange
from maglev.views.dataplane import (
    BackendFlows,
    ConnectionInfo,
    DataplaneInfo,
    FlowAnswer,
    FlowQuestion,
    FrontendTable,
    LbState,
    TrafficReport,
    WarmupInfo,
)
from maglev.views.plans import PlanReport, SyncReport
from maglev.views.previews import FrontendForecast

T = TypeVar("T")

# Name of the log record of a single probe; only watchers that name its backend get it.
PROBE_RECORD = "probe"

# ---------------------------------------------------------------------------------------------------- the checker


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

    def overrides(self) -> Sequence[Override]:
        """Settings of operators, oldest first."""
        ...

    def overrides_of(self, backend: str) -> Sequence[Override]:
        """Settings of operators for one backend, oldest first."""
        ...

    def state_counts(self) -> Mapping[State, int]:
        """Backends by state."""
        ...

    def brakes(self) -> Sequence[Begun]:
        """The brakes that hold verdicts at this moment."""
        ...

    def held(self) -> int:
        """How many backends are held."""
        ...

    def release_brake(self, *, by: str) -> int:
        """End all brakes at once; returns how many backends were held. Backends that still fail go down."""
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


class TrialChecker(CheckerApi, StateSource, Protocol):
    """The copy of the checker in a trial: its verbs are tried, and it has the states that they lead to."""


class TrialApi(Protocol):
    """A copy of what a change concerns (``maglev.checker.preview.Trial``)."""

    @property
    def checker(self) -> TrialChecker:
        """The copy."""
        ...

    @property
    def frontends(self) -> Sequence[str]:
        """The frontends that the change may concern."""
        ...

    @property
    def events(self) -> Sequence[Event]:
        """The events that the change would publish, once it was made to the copy."""
        ...

    def run(self, change: Callable[[CheckerApi], T]) -> T:
        """Make a change to the copy; raises what the change itself would raise."""
        ...

    def release_brake(self) -> tuple[int, int]:
        """Try the end of all brakes: how many backends are held, and how many of them fail at this moment."""
        ...

    async def forecasts(self) -> Sequence[FrontendForecast]:
        """The frontends for which the change makes a difference."""
        ...


class PreviewsApi(Protocol):
    """Makes trials. Raises ``Unavailable`` where reloads follow one another."""

    async def of_backend(self, name: str) -> TrialApi:
        """To try a verb on a backend."""
        ...

    async def of_weight(self, frontend: str, backend: str) -> TrialApi:
        """To try a weight of a backend in a frontend. Raises ``UnknownName``."""
        ...

    async def of_brake(self) -> TrialApi:
        """To try the end of all brakes."""
        ...


class Tracer(Protocol):
    """Turns per-probe log records of single backends on and off."""

    def trace(self, backend: str) -> Callable[[], None]:
        """Publish a debug ``LogEvent`` named ``PROBE_RECORD`` for each probe; the returned function ends that.

        Its fields: ``backend``, and of the probe ``code``, ``detail`` and ``rtt_ns`` as far as they are known.

        Counted: two traces of one backend end with the second. Raises ``UnknownName``.
        """
        ...


# -------------------------------------------------------------------------------------------------- the dataplane


class DataplaneApi(Protocol):
    """VPP. While it is away, everything but ``connection``, ``warmup``, ``waiting_vips`` and ``table`` raises
    ``Unavailable``.

    ``frontend`` None means everything; an unknown one raises ``UnknownName``.
    """

    def connection(self) -> ConnectionInfo:
        """The connection as it is now."""
        ...

    def warmup(self) -> WarmupInfo:
        """Where the warm-up stands."""
        ...

    def waiting_vips(self) -> int:
        """VIPs that have left the configuration, and that are not deleted before an operator agrees."""
        ...

    def info(self) -> DataplaneInfo:
        """The VPP at the other end."""
        ...

    def table(self, frontend: str, *, with_buckets: bool) -> FrontendTable | None:
        """The new-flow table of a frontend as VPP showed it last; None while VPP is away, or has not shown it."""
        ...

    def flow(self, question: FlowQuestion) -> FlowAnswer:
        """The server of a flow, from memory. Raises ``BadValue`` for addresses or ports that make no flow."""
        ...

    async def lb_state(self, frontend: str | None) -> LbState:
        """Read VPP (paced) and set it beside what is wanted."""
        ...

    async def plan(
        self, frontend: str | None, *, force: bool, prune: bool = False, config: Config | None = None
    ) -> PlanReport:
        """The plan of a sync, now or after a reload to ``config``."""
        ...

    async def preview(self, names: Sequence[str], after: StateSource, events: Sequence[Event]) -> PlanReport:
        """The plan for these frontends after a change. ``after``: its states; ``events``: what it would publish."""
        ...

    async def sync(self, frontend: str | None, *, force: bool, by: str, prune: bool = False) -> SyncReport:
        """Bring VPP to the desired state; ``prune`` agrees to all deletions. Raises ``NotAllowed`` in the warm-up."""
        ...

    async def flows(self, backend: str) -> BackendFlows:
        """Flows of one backend. Raises ``NotAllowed`` where reading them would stop VPP for too long."""
        ...

    async def counters(self, frontend: str | None) -> TrafficReport:
        """Packet counters."""
        ...


# ---------------------------------------------------------------------------------------------- the configuration


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
        """The requester of that load: ``start``, ``signal`` or the caller of a reload."""
        ...

    @property
    def last_error(self) -> str:
        """Why the last reload was refused; empty: it was not."""
        ...

    async def check(self) -> CheckResult:
        """Read the file and check it; changes nothing and holds nothing up."""
        ...

    async def load(self) -> LoadResult:
        """Read the file; changes nothing and holds nothing up."""
        ...

    async def diff(self, new: Config) -> Sequence[ConfigChange]:
        """Differences between the configuration in force and ``new``."""
        ...

    def needs_force(self, new: Config) -> bool:
        """Whether a reload to ``new`` deletes so many VIPs that it is refused unless forced."""
        ...

    async def reload(self, *, force: bool, by: str) -> LoadResult:
        """Read the file and put it into effect, if it has no error. Raises ``NotAllowed`` where it takes ``force``.

        Raises ``HostTrouble`` where this host lacks what that takes; so do the other calls that read the file.
        """
        ...


# ------------------------------------------------------------------------------------------------------ the whole


class EventsApi(Protocol):
    """The events that the daemon remembers (``maglev.events.ring.EventRing``)."""

    def __len__(self) -> int: ...

    @property
    def newest(self) -> int:
        """The number of the newest event; 0 before the first."""
        ...

    @property
    def forgotten(self) -> int:
        """Events since the start that are remembered no longer."""
        ...

    def get(self, number: int) -> PastEvent | None:
        """The event of that number; None for one that was forgotten or has not happened."""
        ...


class CausesApi(Protocol):
    """The causes that the daemon remembers (``maglev.events.causes.Causes``)."""

    def __len__(self) -> int: ...

    @property
    def newest(self) -> int:
        """The number of the newest cause; 0 before the first."""
        ...

    @property
    def forgotten(self) -> int:
        """Causes since the start that are remembered no longer."""
        ...

    def get(self, number: int) -> Cause | None:
        """The cause of that number; None for one that was forgotten or has not happened."""
        ...

    def age_ns(self, cause: Cause) -> int:
        """How long ago the last of it was."""
        ...

    def of_backend(self, name: str) -> Cause | None:
        """The newest cause of a backend; None: there was none, or it is forgotten."""
        ...

    def of_frontend(self, name: str) -> Cause | None:
        """The newest cause of a frontend; None as above."""
        ...


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
class ListenerView:
    """A place where the daemon listens, or tries to. ``problem``: why it does not; empty while it is up."""

    name: str
    address: str
    up: bool
    problem: str


def no_listeners() -> Sequence[ListenerView]:
    """The listeners of a server that does not know them."""
    return ()


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
    previews: PreviewsApi
    tracer: Tracer
    loader: LoaderApi
    logs: LogControlApi
    events: EventsApi
    causes: CausesApi
    dataplane: DataplaneApi | None = None
    keep: Callable[[], Awaitable[None]] | None = None
    listeners: Callable[[], Sequence[ListenerView]] = no_listeners
