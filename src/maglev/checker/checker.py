"""The checker: takes the engine's verdicts, the operator's verbs and reloads, and publishes events.

It implements ``maglev.judgement.weights.StateSource``. It knows nothing of VPP: a dataplane listens on the bus and asks
here for states. The state itself has other owners:

- ``backends``: every backend's state and history; what a verdict changes is in ``Backends.verdict``;
- ``prober``: the commands to the probe engine, and the backends that its answers are about;
- ``settings``: the operators' settings, and their ends;
- ``frontends``: the states of the frontends;
- ``reload``: the step from one configuration to the next.

``preview`` tries changes on a copy of a checker (``apart``).

Everything runs on the event loop. Only ``apply`` waits: it works in slices, so that a large configuration never holds
the loop for long, and verdicts and verbs find each backend either done or not.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import orjson

from maglev.base import logs
from maglev.base.clock import Clock, Moments
from maglev.base.errors import BadValue, NotAllowed, UnknownName
from maglev.base.events import Bus, ConfigEvent, WeightEvent
from maglev.base.limits import check_duration, check_reason, check_weight
from maglev.base.pace import Pace, let_go
from maglev.base.states import Code, FrontendState, State
from maglev.checker import reload
from maglev.checker.backend import Check, LiveBackend
from maglev.checker.backends import Backends, Cause, lasting
from maglev.checker.engine import ProbeEngine
from maglev.checker.frontends import Frontends
from maglev.checker.holds import Holds
from maglev.checker.overrides import drain_key, enabled_key, pause_key, weight_key
from maglev.checker.prober import Prober, Spectator
from maglev.checker.replies import Reply
from maglev.checker.settings import Request, Settings, file_weight
from maglev.checker.status import status_of
from maglev.config.model import Backend, Config, Frontend
from maglev.judgement.brake import Begun
from maglev.judgement.weights import (
    FrontendWeights,
    Memory,
    WeightTable,
    applied_weight,
    frontend_weights,
    weight_unit,
)
from maglev.views.backends import BackendStatus, Change, Override, OverrideKind, ValueChange, WeightChange

log = logs.get(__name__)

SLICE_NS = 1_000_000
"""How long the checker takes verdicts before it gives the event loop a turn."""

AT_ONCE = 16
"""Verdicts between two looks at the clock."""

MOST_RESULTS = 256
"""Single probes that are published in one turn of the event loop."""

EXPIRY = "expiry"
"""The author of what ends by itself."""


@dataclasses.dataclass(slots=True)
class CheckerCounters:
    """Counters of the checker. ``errors``: verdicts at which a listener failed. ``expired``: settings that ended."""

    errors: int = 0
    expired: int = 0


class Rooms(NamedTuple):
    """Rooms that replace those that a checker makes (``Checker.apart``)."""

    prober: Prober
    settings: Settings
    frontends: Frontends


class Checker:
    """See the module. ``on_overrides`` is called after every change of what operators have set."""

    def __init__(
        self,
        engine: ProbeEngine,
        bus: Bus,
        clock: Clock,
        *,
        on_overrides: Callable[[], None] | None = None,
        rooms: Rooms | None = None,
    ) -> None:
        self._engine = engine
        self._bus = bus
        self._clock = clock
        self._moments = Moments(clock)
        self._config = Config()
        self._loaded = False
        self._applying = asyncio.Lock()
        if rooms is None:
            rooms = Rooms(Prober(engine, clock), Settings(clock, on_overrides), Frontends(bus, clock))
        self._prober, self._settings, self._frontends = rooms
        self._holds = Holds(engine, self._frontends, clock, self.frontend, lambda name: self._backends.get(name))
        self._backends = Backends(self._prober, self._settings, self._frontends, self._holds, bus, clock)
        self.counters = CheckerCounters()
        # The weight rule asks for every member of every frontend that a failure touches, so what it asks is bound
        # directly to the rooms that answer it.
        self.backend_state: Callable[[str], LiveBackend] = self._backends.get
        """The backend of that name. Raises ``UnknownName``."""
        self.target_state: Callable[[str, str], LiveBackend] = self._backends.target
        """The target by which a member of a frontend is judged. Raises ``UnknownName``."""
        self.weight_override: Callable[[str, str, str], int | None] = self._settings.weight
        """The operator's run-time weight of a pool member; None where the file's counts."""
        self.memory: Callable[[Frontend], Memory] = self._frontends.memory
        """The memory of judgement of a frontend."""
        self.unsettled: Callable[[str], bool] = self._holds.unsettled
        """Whether a frontend is not to be programmed yet: it waits for the verdicts of holds that have just ended."""

    # ------------------------------------------------------------------------------------------------ what is known

    def config(self) -> Config:
        """The configuration in force; a new object after each reload."""
        return self._config

    def backends(self) -> list[LiveBackend]:
        """All backends, in the order of the file."""
        return list(self._backends.table.values())

    def frontend(self, name: str) -> Frontend:
        """The frontend of that name, as configured. Raises ``UnknownName``."""
        try:
            return self._config.frontends[name]
        except KeyError:
            raise UnknownName("frontend", name, among=self._config.frontends) from None

    def frontend_state(self, name: str) -> FrontendState:
        """State of a frontend, as last worked out. Raises ``UnknownName``."""
        self.frontend(name)
        return self._frontends.state(name)

    def frontend_weights(self, name: str) -> FrontendWeights:
        """Active pool, unit and members' weights of a frontend, by the weight rule. Raises ``UnknownName``."""
        return self.weights(self.frontend(name))

    def weights(self, frontend: Frontend) -> FrontendWeights:
        """The same of a frontend as configured; while a reload is under way, also one of the configuration before."""
        if frontend in self._frontends:
            return self._frontends.weights(frontend.name)
        return frontend_weights(frontend, self)

    def serving_pool(self, name: str) -> int:
        """Index of a frontend's active pool, 0 where no pool can serve. Raises ``UnknownName``."""
        self.frontend(name)
        return self._frontends.serving_pool(name)

    def frontends_of(self, backend: str) -> tuple[str, ...]:
        """Names of the frontends that use a backend, in the order of the file."""
        return self._frontends.users_of(backend)

    def backend_status(self, name: str) -> BackendStatus:
        """Everything about one backend. Raises ``UnknownName``."""
        return self.status_of(self._backends.get(name))

    def status_of(self, live: LiveBackend) -> BackendStatus:
        """Everything about one backend."""
        return status_of(live, self._prober.info(live), self._moments)

    def probe_records(self) -> tuple[bytes, Mapping[int, LiveBackend]]:
        """The engine's records of all targets at one moment (``engine.RECORD``), and their backends by target."""
        return self._prober.records()

    def overrides(self) -> list[Override]:
        """The settings of operators that are in force, oldest first."""
        return self._settings.all()

    def overrides_of(self, backend: str) -> list[Override]:
        """The same of one backend."""
        return self._settings.of(backend)

    def override_fragments(self) -> list[orjson.Fragment]:
        """The same as the state file holds it."""
        return self._settings.fragments()

    def state_counts(self) -> dict[State, int]:
        """Backends by state; states without any are left out."""
        return self._backends.counts()

    def engine_stats(self) -> Mapping[str, int]:
        """Counters of the probe engine."""
        return self._engine.stats()

    @property
    def stale_verdicts(self) -> int:
        """Verdicts that a command had made obsolete before they arrived."""
        return self._backends.stale

    # ---------------------------------------------------------------------------------------- the engine's verdicts

    def read_engine(self) -> None:
        """Take the engine's verdicts and single probes; to be called when its ``fileno`` is readable.

        Returns after about a millisecond. The descriptor stays readable while there is more, so that the loop and the
        dataplane can run in the middle of a mass failure.
        """
        end = time.monotonic_ns() + SLICE_NS
        while transitions := self._engine.transitions(AT_ONCE):
            for transition in transitions:
                try:
                    self._backends.verdict(transition)
                except Exception as error:
                    # A listener that fails must not cost the verdicts behind this one.
                    self.counters.errors += 1
                    log.exception("verdict-failed", f"a verdict could not be handed on: {error}", error)
            if len(transitions) < AT_ONCE or time.monotonic_ns() >= end:
                break
        self._holds.settle()
        for result in self._engine.results(MOST_RESULTS):
            if (event := self._prober.traced(result)) is not None:
                self._bus.publish(event)
        self._frontends.publish()

    def trace(self, backend: str) -> Callable[[], None]:
        """Publish a debug ``LogEvent`` for each probe of a backend; the returned function ends that.

        Counted: two traces of one backend end with the second. Raises ``UnknownName``.
        """
        return self._prober.trace(self._backends.get(backend), lambda name: self._backends.table.get(name))

    def settle(self, names: Iterable[str], pools: Mapping[str, str] = MappingProxyType({})) -> None:
        """The dataplane says which backends it already sends traffic to; the others are presumed good no longer.

        ``pools``: the pool that it serves, by frontend, where that matters (``maglev.judgement.pools``).

        Until this is called every new backend is presumed good (``fall`` failures bring it down), since nothing is
        known yet. Without a dataplane: ``settle(())``. Only the first call counts.
        """
        names = list(names)
        self._backends.settle(names)
        self._frontends.settle(names, pools)

    def brakes(self) -> list[Begun]:
        """The brakes that hold verdicts at this moment (``maglev.judgement.brake``)."""
        return self._holds.brakes()

    def held(self) -> int:
        """How many backends are held."""
        return len(self._holds)

    @property
    def brakes_begun(self) -> int:
        """Brakes that have begun since the start."""
        return self._holds.begun

    def release_brake(self, *, by: str) -> int:
        """End all brakes at once; returns how many backends were held. Backends that still fail go down."""
        return self._holds.release(by)

    def end_holds(self) -> None:
        """End the holds whose time is over."""
        self._holds.follow()

    # ----------------------------------------------------------------------------------------------- to try things out

    def held_backends(self) -> list[str]:
        """The names of the backends that are held, in the order in which their holds began."""
        return self._holds.names()

    def failing(self, name: str) -> bool:
        """Whether the last probe of a backend failed. Raises ``UnknownName``."""
        return self._holds.failing(self._backends.get(name))

    async def blank(self, names: Iterable[str]) -> WeightTable:
        """A table of weights with these frontends and no states; raises KeyError (``Frontends.blank``)."""
        return await self._frontends.blank(names)

    def copied(self, table: WeightTable) -> None:
        """Copy the present states into such a table; raises KeyError after a reload."""
        self._frontends.copied(table)

    def apart(self, backends: Iterable[str], frontends: Collection[str], table: WeightTable, bus: Bus) -> Checker:
        """A checker over copies of these backends and frontends, as they are now.

        A verb of the copy does what the same verb of this checker would do, and nothing else learns of it: its events
        go to ``bus``, no command reaches the probe engine, and no setting is kept. All other backends are those of this
        checker; the copy must not change them, and is asked about no other frontend. The caller mutes the log
        (``maglev.base.logs.muted``). ``table``: of ``blank``. Raises KeyError after a reload.
        """
        everyone = self._backends.table.copy()
        copies = {name: live.copy() for name in backends if (live := everyone.get(name)) is not None}
        everyone.update(copies)
        settings = self._settings.apart(copies)
        rooms = Rooms(Spectator(self._prober), settings, self._frontends.apart(frontends, table, bus))
        twin = Checker(self._engine, bus, self._clock, rooms=rooms)
        twin._config, twin._loaded = self._config, self._loaded
        twin._backends.replace(everyone, history=self._config.transition_history)
        return twin

    def fail(self, names: Iterable[str]) -> None:
        """Let backends of a copy (``apart``) go down, as by verdicts that are held. Raises ``UnknownName``."""
        for name in names:
            live = self._backends.get(name)
            info = self._prober.info(live)
            self._backends.change_state(live, State.DOWN, Code(info.last_code) if info is not None else Code.NONE)
        self._frontends.publish()

    # ------------------------------------------------------------------------------------------------ configuration

    def restore(self, records: Iterable[Override], moved_ns: int = 0) -> None:
        """Put back what operators had set before a restart; to be called before the first ``apply``.

        ``moved_ns``: by how much the wall clock was set since they were written, as far as that is known.
        """
        self._settings.restore(records, moved_ns)

    def clock_moved(self) -> None:
        """The wall clock was set: settings are kept for a restart by the clock as it is now."""
        self._settings.rebase()
        self._settings.report()

    def needs_force(self, config: Config) -> str:
        """Why a reload to ``config`` would be refused unless forced; empty when it would not."""
        return reload.refusal(self._config, config) if self._loaded else ""

    async def apply(self, config: Config, *, by: str, force: bool = False) -> None:
        """Put a configuration into effect: the first one, or a reload.

        New backends start at unknown; removed ones stop. An unchanged check keeps probing; a changed one goes on in
        the present state; a changed address is a new server, presumed good if it was up under another name until now.
        Settings of operators stay, unless the file's own value for them changed. Raises ``NotAllowed``, with nothing
        changed, when the guard wants ``force``.
        """
        async with self._applying:
            refused = "" if force else self.needs_force(config)
            if refused:
                raise NotAllowed(refused)
            await self._apply(config, by, forced=force)

    async def _apply(self, config: Config, by: str, *, forced: bool) -> None:
        pace = Pace()
        first = not self._loaded
        checks = self._prober.checks_for(await reload.used_checks(config))
        step = await reload.prepare(config, checks, self._backends.table, self._clock.monotonic_ns())
        await self._frontends.prepare(config.frontends.values(), step.backends.values())
        outdated = self._replaced_by_reload()
        await asyncio.sleep(0)
        self._take(step)
        for live in step.removed:
            self._backends.remove(live, by)
            await pace.breathe()
        await self._bring(step, by, starting=first)
        self._prober.release_old_checks()
        if not first:
            self._prober.reread_authorities()
        await self._frontends.publish_all()
        self._settings.report()
        log.info(
            "config-applied",
            f"configuration in force: {logs.counted(len(config.frontends), 'frontend')},"
            f" {logs.counted(len(config.backends), 'backend')}",
            frontends=len(config.frontends),
            backends=len(config.backends),
            healthchecks=len(config.healthchecks),
            by=by,
        )
        self._bus.publish(ConfigEvent(at_ns=self._clock.time_ns(), by=by, forced=forced))
        # The table before the objects: it holds the frontends, which would go with it all at once.
        await self._frontends.release()
        await let_go(outdated)

    def _replaced_by_reload(self) -> list[object]:
        """The objects that a reload replaces. Held until it is done, they are freed in slices and not all at once."""
        old = self._config
        return [*old.backends.values(), *old.frontends.values(), self._backends.table, old]

    def _take(self, step: reload.Step) -> None:
        """Take the step: from here on the new configuration is in force. No other task runs within this."""
        self._config = step.config
        self._loaded = True
        self._prober.use(step.checks)
        self._backends.replace(step.backends, history=step.config.transition_history)
        for key, why in self._settings.obsolete(step.config):
            self._settings.end(key, why)
        self._frontends.configure(step.config.frontends, self._settings.weights())
        self._holds.configure(step.config.brake)

    async def _bring(self, step: reload.Step, by: str, *, starting: bool) -> None:
        """Bring every backend to the configuration in force, in slices."""
        pace = Pace()
        configured = step.config.backends
        # Made once, since a reload may bring tens of thousands of backends.
        plain = Cause(by=by, starting=starting)
        spreading = {check: dataclasses.replace(plain, spread=spread) for check, spread in step.spreads.items()}
        for name, live in step.backends.items():
            self._backends.trim(live)
            conf = configured[name]
            check = step.check_of(conf)
            if live.conf is not conf or live.check is not check or live.state is State.REMOVED:
                cause = spreading.get(conf.healthcheck or "", plain)
                if step.vacated and str(conf.address) in step.vacated:
                    cause = dataclasses.replace(cause, known=True)
                self._backends.align(live, conf, check, cause)
            if pace.due():
                await pace.rest()

    # --------------------------------------------------------------------------------------------- operator's verbs

    def pause(self, name: str, *, by: str, reason: str = "", duration_ns: int = 0) -> Change:
        """Send no more probes; effective weight 0, flows stay. Raises ``NotAllowed`` for a disabled backend."""
        live, request = self._operand(name), _request(by, reason, duration_ns)
        reply = self._reply(live)
        _not_disabled(live)
        changed = self._settings.set(live, OverrideKind.PAUSE, request)
        return self._changed(live, request, reply, changed)

    def resume(self, name: str, *, by: str, reason: str = "", duration_ns: int = 0) -> Change:
        """Probe a paused backend again, from unknown. Raises ``NotAllowed`` for a disabled backend."""
        live, request = self._operand(name), _lasting(by, reason, duration_ns)
        reply = self._reply(live)
        _not_disabled(live)
        changed = self._settings.unset(pause_key(name))
        return self._changed(live, request, reply, changed)

    def disable(self, name: str, *, by: str, reason: str = "", duration_ns: int = 0) -> Change:
        """Take a backend out at once: weight 0, flows flushed, no probes. Idempotent; ends a pause."""
        live, request = self._operand(name), _request(by, reason, duration_ns)
        reply = self._reply(live)
        changed = live.state is not State.DISABLED
        self._settings.unset(pause_key(name))
        if live.conf.enabled:
            changed |= self._settings.set(live, OverrideKind.DISABLE, request)
        else:
            # The file says so already: nothing to remember, nothing to take back.
            self._settings.unset(enabled_key(name))
        return self._changed(live, request, reply, changed)

    def enable(self, name: str, *, by: str, reason: str = "", duration_ns: int = 0) -> Change:
        """Take a disabled backend back, from unknown and with its history. Idempotent."""
        live, request = self._operand(name), _lasting(by, reason, duration_ns)
        reply = self._reply(live)
        if live.state is not State.DISABLED:
            return Change(False)
        # A pause from before belongs to what the disable ended.
        self._settings.unset(pause_key(name))
        self._settings.unset(enabled_key(name))
        if not live.conf.enabled:
            self._settings.set(live, OverrideKind.ENABLE, request)
        return self._changed(live, request, reply, True)

    def drain(self, name: str, *, by: str, reason: str = "", duration_ns: int = 0) -> Change:
        """Effective weight 0 everywhere; established flows stay, probing goes on. Idempotent."""
        live, request = self._operand(name), _request(by, reason, duration_ns)
        reply = self._reply(live)
        changed = self._settings.set(live, OverrideKind.DRAIN, request)
        return self._changed(live, request, reply, changed)

    def undrain(self, name: str, *, by: str, reason: str = "", duration_ns: int = 0) -> Change:
        """Take a drain back. Idempotent."""
        live, request = self._operand(name), _lasting(by, reason, duration_ns)
        reply = self._reply(live)
        changed = self._settings.unset(drain_key(name))
        return self._changed(live, request, reply, changed)

    def set_weight(
        self,
        frontend: str,
        pool: str,
        backend: str,
        weight: int | None,
        *,
        flush: bool = False,
        by: str,
        reason: str = "",
        duration_ns: int = 0,
    ) -> WeightChange:
        """Set the run-time weight of a pool member, 0..100; None: back to the file's.

        The weight is rounded to a multiple of the frontend's unit. ``flush``: where the weight becomes 0,
        its flows are evicted too. Raises ``UnknownName``, ``BadValue``.
        """
        conf = self.frontend(frontend)
        members = {candidate.name: candidate.members for candidate in conf.pools}
        if pool not in members:
            raise UnknownName("pool", pool, f"frontend {frontend!r}", among=members)
        configured = file_weight(self._config, frontend, pool, backend)
        if configured is None:
            among = [member.backend for member in members[pool]]
            raise UnknownName("backend", backend, f"pool {pool!r} of frontend {frontend!r}", among=among)
        request = _request(by, reason, duration_ns)
        if weight is not None:
            check_weight(weight)
        live = self._operand(backend)
        reply = self._reply(live, frontend)
        unit = weight_unit(conf)
        before = self._settings.weight(frontend, pool, backend)
        previous = before if before is not None else configured
        became = configured if weight is None else min(100, applied_weight(weight, unit))
        if configured in (became, weight):
            became = configured
            self._settings.unset(weight_key(frontend, pool, backend))
        else:
            self._settings.set_weight(live, frontend, pool, became, configured, request)
        changed = became != previous
        if changed or flush:
            self._publish_weight(
                conf.name, pool, backend, previous, became, request, flush=flush, to_default=weight is None
            )
        self._settings.report()
        values = (ValueChange("weight", str(previous), str(became)),) if changed else ()
        return WeightChange(
            changed=changed,
            previous=previous,
            weight=became,
            requested=weight,
            unit=unit,
            values=(*values, *reply.values()),
            effects=reply.effects(self.frontend),
        )

    def _operand(self, name: str) -> LiveBackend:
        """The backend that a verb works on, as the configuration in force wants it. Raises ``UnknownName``."""
        live = self._backends.get(name)
        if live.conf is not self._config.backends[name]:
            # A reload is on its way through the backends and has not come to this one.
            self._align(live, Cause())
        return live

    def _reply(self, live: LiveBackend, frontend: str = "") -> Reply:
        """The state to compare with after a verb: of one frontend, or of all that use the backend."""
        names = (frontend,) if frontend else self._frontends.users_of(live.name)
        return Reply(live, names, self._settings, self._frontends)

    def _changed(self, live: LiveBackend, request: Request, reply: Reply, changed: bool) -> Change:
        """A verb has changed the settings, or not: bring the backend to them, and publish what follows."""
        self._align(live, Cause(request.by, request.reason, request.duration_ns))
        self._frontends.publish()
        self._settings.report()
        return Change(changed, reply.values(), reply.effects(self.frontend))

    def _align(self, live: LiveBackend, cause: Cause) -> None:
        conf, check = self._configured(live.name)
        self._backends.align(live, conf, check, cause)

    def _configured(self, name: str) -> tuple[Backend, Check | None]:
        conf = self._config.backends[name]
        return conf, self._prober.checks[conf.healthcheck] if conf.healthcheck is not None else None

    def _publish_weight(
        self,
        frontend: str,
        pool: str,
        backend: str,
        old: int,
        new: int,
        request: Request,
        *,
        flush: bool,
        to_default: bool,
    ) -> None:
        log.info(
            "weight-set",
            f"frontend {frontend} pool {pool} backend {backend} weight {old} -> {new}"
            + (f" by {request.by}" if request.by else ""),
            frontend=frontend,
            pool=pool,
            backend=backend,
            old=old,
            new=new,
            flush=flush,
            by=request.by,
            reason=request.reason,
            **lasting(request.duration_ns),
        )
        self._frontends.set_weight(frontend, pool, backend, self._settings.weight(frontend, pool, backend))
        self._bus.publish(
            WeightEvent(
                frontend=frontend,
                pool=pool,
                backend=backend,
                old=old,
                new=new,
                flush=flush,
                at_ns=self._clock.time_ns(),
                by=request.by,
                to_default=to_default,
                reason=request.reason,
                duration_ns=request.duration_ns,
            )
        )
        self._frontends.publish()

    # ------------------------------------------------------------------------------------------------------- expiry

    def expire(self) -> int | None:
        """Take back what was set for a time that is over; nanoseconds until the next end, None if there is none."""
        for override in self._settings.end_due():
            self.counters.expired += 1
            live = self._backends.table.get(override.backend)
            if live is None:
                continue
            if override.kind is not OverrideKind.WEIGHT:
                self._align(live, Cause(EXPIRY, override.reason))
            elif override.frontend in self._config.frontends:
                self._publish_weight(
                    override.frontend,
                    override.pool,
                    override.backend,
                    override.weight,
                    override.file_weight,
                    Request(EXPIRY, override.reason),
                    flush=False,
                    to_default=True,
                )
        self._frontends.publish()
        self._settings.report()
        return self._settings.next_end_ns()

    async def run(self) -> None:
        """Take back what expires, for ever."""
        while True:
            self.expire()
            await self._settings.wait()

    async def judge(self) -> None:
        """Judge frontends again whenever time alone changes something, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._frontends.judge())
            group.create_task(self._end_holds())

    async def _end_holds(self) -> None:
        while True:
            self.end_holds()
            await self._holds.wait()


def _request(by: str, reason: str, duration_ns: int) -> Request:
    """A request that may end by itself. Raises ``BadValue``."""
    check_reason(reason)
    check_duration(duration_ns)
    return Request(by, reason, duration_ns)


def _lasting(by: str, reason: str, duration_ns: int) -> Request:
    """A request that takes something back, and so has no end. Raises ``BadValue``."""
    request = _request(by, reason, duration_ns)
    if duration_ns:
        raise BadValue("this lasts: it takes no duration")
    return request


def _not_disabled(live: LiveBackend) -> None:
    if live.state is State.DISABLED:
        raise NotAllowed(f"backend {live.name!r} is disabled")
