"""The checker: owns the backends at run time, feeds the probe engine, and turns its verdicts into events.

It implements ``maglev.judgement.weights.StateSource`` and the operator's verbs. It knows nothing of VPP: a dataplane
listens on the bus and asks here for states. Everything runs on the event loop; only ``apply`` waits, and it
works in slices so that a large configuration never holds the loop for long.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import orjson

from maglev._probe import Result, TargetInfo, Transition
from maglev.base import logs
from maglev.base.clock import Clock
from maglev.base.errors import BadValue, NotAllowed, UnknownName
from maglev.base.events import BackendEvent, Bus, ConfigEvent, DrainEvent, FrontendEvent, LogEvent, WeightEvent
from maglev.base.limits import check_duration, check_reason, check_weight
from maglev.base.pace import Pace, let_go
from maglev.base.states import Code, FrontendState, State
from maglev.checker import reload
from maglev.checker.backend import Check, LiveBackend
from maglev.checker.engine import ProbeEngine
from maglev.checker.overrides import OverrideStore, drain_key, enabled_key, pause_key, weight_key
from maglev.config.model import Backend, Config, Frontend, HealthCheck
from maglev.judgement.weights import FrontendWeights, applied_weight, frontend_weights, weight_unit
from maglev.views.backends import BackendStatus, Change, Override, OverrideKey, OverrideKind, WeightChange

log = logs.get(__name__)

SLICE_NS = 1_000_000
"""How long the checker hands verdicts on before it gives the event loop a turn."""

AT_ONCE = 16
"""Verdicts between two looks at the clock."""
MOST_RESULTS = 256
"""Single probes that are told in one turn of the event loop."""

PASSES = (Code.L3OK, Code.L4OK, Code.L6OK, Code.L7OK)
"""The codes of a probe that passed."""

# By number, as the engine gives them: a list of 50,000 asks for each, and so does each verdict of a mass failure.
_CODES = tuple(sorted(Code))
_STATES = tuple(sorted(State))
_NOT_PROBED = (State.DISABLED, State.PAUSED)
_STOPPED_CODES = {State.DISABLED: Code.DISABLED, State.PAUSED: Code.PAUSED}


@dataclass(slots=True)
class CheckerCounters:
    """What the checker counts of itself."""

    verdicts: int = 0
    stale: int = 0
    errors: int = 0
    reloads: int = 0
    expired: int = 0
    frontend_transitions: int = 0


@dataclass(slots=True)
class _Spread:
    """Spreads the first probes of a check's targets evenly over ``span_ns``."""

    span_ns: int
    count: int = 0
    given: int = 0

    def next(self) -> int:
        delay = self.span_ns * self.given // max(1, self.count)
        self.given += 1
        return min(delay, self.span_ns)


@dataclass(slots=True)
class _Dirty:
    """Frontends whose state has to be worked out again, in the order in which that came up."""

    names: dict[str, None] = field(default_factory=dict)
    scheduled: bool = False


class Checker:
    """See the module. ``on_overrides`` is called after every change of what operators have set."""

    def __init__(
        self, engine: ProbeEngine, bus: Bus, clock: Clock, *, on_overrides: Callable[[], None] | None = None
    ) -> None:
        self._engine = engine
        self._bus = bus
        self._clock = clock
        self._on_overrides = on_overrides
        self._config = Config()
        self._loaded = False
        self._backends: dict[str, LiveBackend] = {}
        self._targets: dict[int, LiveBackend] = {}
        self._checks: dict[str, Check] = {}
        self._retired: list[Check] = []
        self._users: dict[str, tuple[str, ...]] = {}
        self._frontend_states: dict[str, FrontendState] = {}
        self._dirty = _Dirty()
        self._store = OverrideStore()
        self._store_seen = 0
        self._deadlines: dict[OverrideKey, int] = {}
        self._traced: dict[str, int] = {}
        self._presuming = True
        self._applying = asyncio.Lock()
        self._wake = asyncio.Event()
        self.counters = CheckerCounters()

    # ------------------------------------------------------------------------------------------------ what is known

    def config(self) -> Config:
        """The configuration in force; a new object after each reload."""
        return self._config

    def backend_state(self, name: str) -> LiveBackend:
        """The backend of that name. Raises ``UnknownName``."""
        try:
            return self._backends[name]
        except KeyError:
            raise UnknownName("backend", name) from None

    def backends(self) -> list[LiveBackend]:
        """All backends, in the order of the file."""
        return list(self._backends.values())

    def weight_override(self, frontend: str, pool: str, backend: str) -> int | None:
        """The operator's run-time weight of a pool member; None where the file's counts."""
        return self._store.weight(frontend, pool, backend)

    def frontend(self, name: str) -> Frontend:
        """The frontend of that name, as configured. Raises ``UnknownName``."""
        try:
            return self._config.frontends[name]
        except KeyError:
            raise UnknownName("frontend", name) from None

    def frontend_state(self, name: str) -> FrontendState:
        """State of a frontend, as last published. Raises ``UnknownName``."""
        self.frontend(name)
        return self._frontend_states.get(name, FrontendState.UNKNOWN)

    def frontend_weights(self, name: str) -> FrontendWeights:
        """Active pool, unit and members' weights of a frontend, by the weight rule. Raises ``UnknownName``."""
        return frontend_weights(self.frontend(name), self)

    def frontends_of(self, backend: str) -> tuple[str, ...]:
        """Names of the frontends that use a backend, in the order of the file."""
        return self._users.get(backend, ())

    def backend_status(self, name: str) -> BackendStatus:
        """Everything about one backend. Raises ``UnknownName``."""
        return self.status_of(self.backend_state(name))

    def status_of(self, live: LiveBackend) -> BackendStatus:
        """Everything about one backend."""
        spec = live.check.spec if live.check is not None else None
        info = self.probe_info(live)
        passed = failed = 0
        age: int | None = None
        if info is not None:
            codes = info.codes
            passed = sum([codes[code] for code in PASSES])
            failed = sum(codes) - passed
            if info.last_at_ns:
                # Two readings of a wall clock that may have been set back in between.
                age = max(0, self._clock.time_ns() - info.last_at_ns)
        since, why = self._blocked(live, info)
        return BackendStatus(
            name=live.name,
            address=live.address,
            state=live.state,
            drained=live.drained,
            enabled=live.enabled,
            healthcheck=live.healthcheck,
            counter=info.counter if info is not None else 0,
            rise=spec.rise if spec is not None else 0,
            fall=spec.fall if spec is not None else 0,
            last_code=_CODES[info.last_code] if info is not None else Code.NONE if spec else Code.STATIC,
            last_detail=info.last_detail if info is not None else "",
            last_rtt_ns=info.last_rtt_ns if info is not None and info.rtt_count else None,
            last_result_age_ns=age,
            state_since_ns=live.since_ns,
            unprobed_since_ns=since,
            unprobed_reason=why,
            presumed=live.presumed,
            probes_passed=passed,
            probes_failed=failed,
            transitions=live.history,
        )

    @staticmethod
    def _blocked(live: LiveBackend, info: TargetInfo | None) -> tuple[int, str]:
        if info is not None and info.blocked_since_ns and live.probed:
            return info.blocked_since_ns, info.blocked_reason
        return live.trouble_since_ns, live.trouble

    def probe_info(self, live: LiveBackend) -> TargetInfo | None:
        """What the engine knows of a backend; None while it does not know it."""
        return self._engine.target_info(live.target) if live.target >= 0 else None

    def probe_records(self) -> tuple[bytes, Mapping[int, LiveBackend]]:
        """What the engine knows of all backends at one moment: its records (``RECORD``), and whose they are by target.

        A fiftieth of the time that ``probe_info`` of each would take.
        """
        return self._engine.snapshot(), dict(self._targets)

    def overrides(self) -> list[Override]:
        """What operators have set at run time and not taken back, oldest first."""
        return sorted(self._store, key=lambda o: o.since_ns)

    def overrides_of(self, backend: str) -> list[Override]:
        """The same of one backend."""
        found = self._store.of(backend)
        # Lists ask this of 50,000 backends, of which almost none has any.
        return sorted(found, key=lambda o: o.since_ns) if len(found) > 1 else found

    def override_fragments(self) -> list[orjson.Fragment]:
        """The same as the state file holds it."""
        return self._store.written()

    def state_counts(self) -> dict[State, int]:
        """Backends by state; states without any are left out."""
        counts: dict[State, int] = {}
        for live in self._backends.values():
            counts[live.state] = counts.get(live.state, 0) + 1
        return counts

    def engine_stats(self) -> Mapping[str, int]:
        """Counters of the probe engine."""
        return self._engine.stats()

    @property
    def presuming(self) -> bool:
        """Whether backends are presumed good because nobody has said yet what the dataplane holds."""
        return self._presuming

    # ---------------------------------------------------------------------------------------- the engine's verdicts

    def read_engine(self) -> None:
        """Take what the engine has to tell; to be called when its ``fileno`` is readable.

        For a millisecond or so: the descriptor stays readable while there is more, so that the loop and the dataplane
        get their turn in a mass failure.
        """
        end = time.monotonic_ns() + SLICE_NS
        while transitions := self._engine.transitions(AT_ONCE):
            for transition in transitions:
                try:
                    self._verdict(transition)
                except Exception as error:
                    # One listener's mistake must not cost the verdicts behind it.
                    self.counters.errors += 1
                    log.exception("verdict-failed", f"a verdict could not be handed on: {error}", error)
            if len(transitions) < AT_ONCE or time.monotonic_ns() >= end:
                break
        for result in self._engine.results(MOST_RESULTS):
            self._traced_result(result)
        self._publish_frontends()

    def _verdict(self, transition: Transition) -> None:
        live = self._targets.get(transition.target)
        if (
            live is None
            or live.state in _NOT_PROBED
            or self._engine.generation(transition.target) != transition.generation
        ):
            self.counters.stale += 1
            return
        to = _STATES[transition.to_state]
        if to is live.state:
            return
        self.counters.verdicts += 1
        self._change_state(live, to, _CODES[transition.code], transition.detail, at_ns=transition.at_ns)

    def _change_state(
        self,
        live: LiveBackend,
        to: State,
        code: Code,
        detail: str = "",
        *,
        at_ns: int = 0,
        by: str = "",
        reason: str = "",
    ) -> None:
        """Record and publish a transition. The frontends' states follow with ``_publish_frontends``."""
        event = BackendEvent(
            name=live.name,
            address=live.address,
            from_state=live.state,
            to_state=to,
            code=code,
            detail=detail,
            at_ns=at_ns or self._clock.time_ns(),
            by=by,
            drained=live.drained,
            reason=reason,
        )
        live.state = to
        live.since_ns = event.at_ns
        live.presumed = False
        live.history = (*live.history, event)[-self._config.transition_history :]
        pair = (event.from_state, to)
        live.transitions[pair] = live.transitions.get(pair, 0) + 1
        self._touch(live.name)
        if log.enabled(logging.INFO):
            self._log_transition(event)
        self._bus.publish(event)

    @staticmethod
    def _log_transition(event: BackendEvent) -> None:
        fields: dict[str, object] = {
            "backend": event.name,
            "address": event.address,
            "from": event.from_state,
            "to": event.to_state,
            "code": event.code,
        }
        for key, value in (("detail", event.detail), ("by", event.by), ("reason", event.reason)):
            if value:
                fields[key] = value
        log.info("backend-transition", event, **fields)

    def _touch(self, backend: str) -> None:
        for frontend in self._users.get(backend, ()):
            self._dirty.names[frontend] = None

    def _publish_frontends(self) -> None:
        """Work out the states of the frontends that were touched, and publish those that changed.

        In slices: what is left after a millisecond is done at the loop's next turn.
        """
        names = self._dirty.names
        end = time.monotonic_ns() + SLICE_NS
        while names:
            self._publish_next()
            if time.monotonic_ns() >= end:
                break
        if names and not self._dirty.scheduled:
            self._dirty.scheduled = True
            asyncio.get_running_loop().call_soon(self._publish_more)

    def _publish_more(self) -> None:
        self._dirty.scheduled = False
        self._publish_frontends()

    def _publish_next(self) -> None:
        name = next(iter(self._dirty.names))
        del self._dirty.names[name]
        frontend = self._config.frontends.get(name)
        if frontend is None:
            return
        old = self._frontend_states.get(name, FrontendState.UNKNOWN)
        new = frontend_weights(frontend, self).state
        if new is old:
            return
        self._frontend_states[name] = new
        self.counters.frontend_transitions += 1
        event = FrontendEvent(name=name, from_state=old, to_state=new, at_ns=self._clock.time_ns())
        log.info(
            "frontend-transition",
            f"frontend {name} {old} -> {new}",
            frontend=name,
            **{"from": str(old), "to": str(new)},
        )
        self._bus.publish(event)

    # ----------------------------------------------------------------------------------------------------- tracing

    def trace(self, backend: str) -> Callable[[], None]:
        """Publish a debug ``LogEvent`` for each probe of a backend; the returned function ends that.

        Counted: two traces of one backend end with the second. Raises ``UnknownName``.
        """
        live = self.backend_state(backend)
        # It goes on over a reload that takes the backend away and one that brings it back.
        self._traced[backend] = self._traced.get(backend, 0) + 1
        if self._traced[backend] == 1 and live.target >= 0:
            self._engine.trace(live.target, True)
        ended = False

        def end() -> None:
            nonlocal ended
            if ended:
                return
            ended = True
            self._traced[backend] -= 1
            if self._traced[backend]:
                return
            del self._traced[backend]
            now = self._backends.get(backend)
            if now is not None and now.target >= 0:
                self._engine.trace(now.target, False)

        return end

    def _traced_result(self, result: Result) -> None:
        live = self._targets.get(result.target)
        if live is None or live.name not in self._traced:
            return
        outcome = "pass" if result.passed else "fail"
        code = Code(result.code)
        self._bus.publish(
            LogEvent(
                level="debug",
                event="probe",
                message=f"probe of {live.name}: {outcome} {code}",
                at_ns=result.at_ns,
                fields={
                    "backend": live.name,
                    "address": live.address,
                    "result": outcome,
                    "code": str(code),
                    "detail": result.detail,
                    "rtt_ns": str(result.rtt_ns),
                    "state": str(State(result.state)),
                    "counter": str(result.counter),
                },
            )
        )

    # -------------------------------------------------------------------------------------------------- presumption

    def settle(self, names: Iterable[str]) -> None:
        """The dataplane says which backends it already sends traffic to; the others are presumed good no longer.

        Until this is called every new backend is presumed good (``fall`` failures bring it down), since nobody knows
        yet. Without a dataplane: ``settle(())``. Only the first call means something.
        """
        if not self._presuming:
            return
        self._presuming = False
        good = set(names)
        self._unpresume([live for live in self._backends.values() if live.presumed and live.name not in good])

    def _unpresume(self, backends: list[LiveBackend]) -> None:
        end = time.monotonic_ns() + SLICE_NS
        while backends:
            live = backends.pop()
            if live.presumed and live.target >= 0:
                live.presumed = False
                self._engine.presume(live.target, False)
            if backends and time.monotonic_ns() >= end:
                asyncio.get_running_loop().call_soon(self._unpresume, backends)
                return

    # ------------------------------------------------------------------------------------------------ configuration

    def restore(self, records: Iterable[Override]) -> None:
        """Put back what operators had set before a restart; to be called before the first ``apply``."""
        for override in records:
            self._put(override)
        self._store_seen = self._store.version

    def needs_force(self, config: Config) -> str:
        """Why a reload to ``config`` would be refused unless forced; empty when it would not."""
        return reload.refusal(self._config, config) if self._loaded else ""

    async def apply(self, config: Config, *, by: str, force: bool = False) -> None:
        """Put a configuration into effect: the first one, or a reload.

        New backends start at unknown; removed ones stop. An unchanged check keeps probing; a changed one goes on in
        the present state; a changed address is a new server, presumed good if it was up under another name until now.
        What operators set stays, unless the file's own value for it changed. Raises ``NotAllowed``, with nothing
        changed, when the guard wants ``force``.
        """
        async with self._applying:
            refused = "" if force else self.needs_force(config)
            if refused:
                raise NotAllowed(refused)
            await self._apply(config, by)

    async def _apply(self, config: Config, by: str) -> None:
        pace = Pace()
        first = not self._loaded
        now = self._clock.time_ns()

        # Prepare: nothing of this is visible yet.
        checks = self._new_checks(await reload.used_checks(config))
        backends: dict[str, LiveBackend] = {}
        spreads: dict[str, _Spread] = {}
        vacated: set[str] = set()
        for name, conf in config.backends.items():
            check = checks[conf.healthcheck] if conf.healthcheck is not None else None
            live = self._backends.get(name)
            if live is None or (live.conf is not conf and live.conf.address != conf.address):
                if check is not None:
                    # A first verdict is wanted soon, and all at once would be a burst.
                    span = min(check.spec.interval, check.spec.fast_interval)
                    spreads.setdefault(check.spec.name, _Spread(span)).count += 1
                if live is None:
                    live = LiveBackend(conf, check, now)
                elif live.state is State.UP or live.presumed:
                    vacated.add(live.address)
            backends[name] = live
            if pace.due():
                await pace.rest()
        users: dict[str, tuple[str, ...]] = {}
        for frontend in config.frontends.values():
            for pool in frontend.pools:
                for member in pool.members:
                    others = users.get(member.backend, ())
                    if not others or others[-1] != frontend.name:
                        users[member.backend] = (*others, frontend.name)
                    if pace.due():
                        await pace.rest()
        # Only this method changes which backends there are, and one call at a time.
        removed: list[LiveBackend] = []
        for name, live in self._backends.items():
            if name not in backends:
                removed.append(live)
                if live.state is State.UP or live.presumed:
                    vacated.add(live.address)
            if pace.due():
                await pace.rest()
        old = self._config
        outdated: list[object] = [*self._users.values(), *old.backends.values(), *old.frontends.values()]
        outdated += [self._users, self._backends, old]
        del old
        await pace.rest()

        # The step from the old to the new configuration: no other task runs within it.
        users_before = {live.name: self._users.get(live.name, ()) for live in removed}
        self._config, self._backends, self._checks, self._users = config, backends, checks, users
        self._loaded = True
        self._frontend_states = {
            name: self._frontend_states.get(name, FrontendState.UNKNOWN) for name in config.frontends
        }
        for key, why in self._outdated(config):
            self._take_back(key, why)

        # Bring every backend to it, in slices. A verdict or a verb in between finds each backend either done or not.
        for live in removed:
            self._dirty.names.update(dict.fromkeys(users_before[live.name]))
            self._remove(live, by)
            if pace.due():
                await pace.rest()
        for name, live in backends.items():
            if len(live.history) > config.transition_history:
                live.history = live.history[-config.transition_history :]
            conf = config.backends[name]
            check = checks[conf.healthcheck] if conf.healthcheck is not None else None
            if live.conf is not conf or live.check is not check or live.state is State.REMOVED:
                # A server that was up under another name is still the same server.
                known = bool(vacated) and str(conf.address) in vacated
                spread = spreads.get(conf.healthcheck or "")
                self._align(live, conf, check, by=by, quiet=first, spread=spread, known=known)
            if pace.due():
                await pace.rest()
        self._forget_checks()
        if not first:
            # A file of authorities may have changed though its name has not.
            self._engine.reread_authorities()

        self._dirty.names.update(dict.fromkeys(config.frontends))
        while self._dirty.names:
            self._publish_next()
            if pace.due():
                await pace.rest()
        self._overrides_changed()
        self.counters.reloads += not first
        log.info(
            "config-applied",
            f"configuration in force: {logs.counted(len(config.frontends), 'frontend')},"
            f" {logs.counted(len(config.backends), 'backend')}",
            frontends=len(config.frontends),
            backends=len(config.backends),
            healthchecks=len(config.healthchecks),
            by=by,
        )
        self._bus.publish(ConfigEvent(at_ns=self._clock.time_ns(), by=by))
        await let_go(outdated)

    def _new_checks(self, specs: Mapping[str, HealthCheck]) -> dict[str, Check]:
        """The checks of a configuration by name; one that did not change stays the same object."""
        checks: dict[str, Check] = {}
        for name, spec in specs.items():
            known = self._checks.get(name)
            checks[name] = known if known is not None and known.spec == spec else Check(spec)
        self._retired = [check for name, check in self._checks.items() if checks.get(name) is not check]
        return checks

    def _forget_checks(self) -> None:
        for check in self._retired:
            if check.id >= 0:
                self._engine.remove_check(check.id)
                check.id = -1
        self._retired = []

    def _outdated(self, config: Config) -> list[tuple[OverrideKey, str]]:
        """Overrides that end with a new configuration, and why."""
        ended: list[tuple[OverrideKey, str]] = []
        for override in self._store:
            conf = config.backends.get(override.backend)
            if conf is None:
                ended.append((override.key, "the backend is gone"))
            elif str(conf.address) != override.address:
                ended.append((override.key, "the backend has another address"))
            elif override.kind in (OverrideKind.DISABLE, OverrideKind.ENABLE):
                if conf.enabled != override.file_enabled:
                    ended.append((override.key, "the file's own value changed"))
            elif override.kind is OverrideKind.WEIGHT:
                weight = _file_weight(config, override.frontend, override.pool, override.backend)
                if weight is None:
                    ended.append((override.key, "the pool member is gone"))
                elif weight != override.file_weight:
                    ended.append((override.key, "the file's own value changed"))
        return ended

    def _take_back(self, key: OverrideKey, why: str) -> Override | None:
        """Drop an override and say so; the backend is brought to it by the caller."""
        override = self._store.drop(key)
        self._deadlines.pop(key, None)
        if override is not None:
            log.info(
                "override-ended",
                f"{override.kind.value} of {override.backend} ended: {why}",
                kind=override.kind.value,
                backend=override.backend,
                frontend=override.frontend,
                pool=override.pool,
                why=why,
            )
        return override

    # ------------------------------------------------------------------------------------- a backend and the engine

    def _wanted(self, live: LiveBackend) -> State | None:
        """DISABLED or PAUSED where file and operator want that, None where it is to be probed."""
        override = self._store.get(enabled_key(live.name))
        enabled = override.kind is OverrideKind.ENABLE if override is not None else live.conf.enabled
        if not enabled:
            return State.DISABLED
        return State.PAUSED if self._store.get(pause_key(live.name)) is not None else None

    def _align(
        self,
        live: LiveBackend,
        conf: Backend,
        check: Check | None,
        *,
        by: str,
        reason: str = "",
        quiet: bool = False,
        spread: _Spread | None = None,
        known: bool = False,
    ) -> None:
        """Bring a backend to what file and operators want of it now.

        ``quiet``: a start, its admission is no news. ``known``: what is new here was up under another name.
        """
        rechecked = live.check is not check
        moved = live.conf.address != conf.address
        was = live.address
        live.conf, live.check = conf, check
        if moved:
            self._leave_engine(live)
            live.address = str(conf.address)
        self._align_drain(live, by, reason, quiet=quiet)

        wanted = self._wanted(live)
        added = live.state is State.REMOVED
        if wanted is not None:
            self._halt(live, wanted, forget=rechecked, by=by, reason=reason, quiet=quiet and added)
            return
        if added:
            self._admit(live, State.UNKNOWN, by=by, quiet=quiet)
        elif live.state is State.DISABLED:
            self._change_state(live, State.UNKNOWN, Code.ENABLED, by=by, reason=reason)
        elif live.state is State.PAUSED:
            self._change_state(live, State.UNKNOWN, Code.RESUMED, by=by, reason=reason)
        elif moved:
            detail = f"address {was} became {live.address}"
            self._change_state(live, State.UNKNOWN, Code.ADDED, detail, by=by, reason=reason)
        else:
            if rechecked:
                self._recheck(live, spread)
            return
        new = added or moved
        presume = (added and self._presuming) or (new and known)
        self._probe(live, spread.next() if spread is not None and new else 0, presume=presume)

    def _align_drain(self, live: LiveBackend, by: str, reason: str, *, quiet: bool = False) -> None:
        drained = self._store.get(drain_key(live.name)) is not None
        if drained is live.drained:
            return
        live.drained = drained
        self._touch(live.name)
        if quiet:
            return
        log.info(
            "backend-drained" if drained else "backend-undrained",
            f"backend {live.name} {'drained' if drained else 'no longer drained'}" + (f" by {by}" if by else ""),
            backend=live.name,
            by=by,
            reason=reason,
        )
        self._bus.publish(
            DrainEvent(
                name=live.name,
                address=live.address,
                state=live.state,
                drained=drained,
                at_ns=self._clock.time_ns(),
                by=by,
                reason=reason,
            )
        )

    def _admit(self, live: LiveBackend, state: State, *, by: str, quiet: bool) -> None:
        """A new backend enters in ``state``; at a start that is not told, there is nobody yet to whom it is news."""
        if quiet:
            live.state = state
            live.since_ns = self._clock.time_ns()
            self._touch(live.name)
        else:
            self._change_state(live, state, Code.ADDED, by=by)

    def _halt(self, live: LiveBackend, state: State, *, forget: bool, by: str, reason: str, quiet: bool) -> None:
        """No more probes: the backend is disabled or paused."""
        if live.target >= 0:
            if forget:
                # The check changed meanwhile; probing starts with the new one when the backend comes back.
                self._leave_engine(live)
            elif live.state not in _NOT_PROBED:
                self._engine.pause_target(live.target)
        self._no_trouble(live)
        if live.state is State.REMOVED:
            self._admit(live, state, by=by, quiet=quiet)
        elif live.state is not state:
            self._change_state(live, state, _STOPPED_CODES[state], by=by, reason=reason)

    def _probe(self, live: LiveBackend, delay: int, *, presume: bool) -> None:
        """Start to probe a backend that is unknown; a static one passes at once."""
        if live.check is None:
            self._leave_engine(live)
            self._change_state(live, State.UP, Code.STATIC)
            return
        if live.target >= 0:
            self._engine.resume_target(live.target, state=State.UNKNOWN, first_delay=delay)
        else:
            self._join_engine(live, State.UNKNOWN, delay)
        if presume and live.target >= 0:
            live.presumed = True
            self._engine.presume(live.target, True)

    def _recheck(self, live: LiveBackend, spread: _Spread | None) -> None:
        """Another check for a backend that is being probed: it goes on in its present state."""
        if live.check is None:
            self._leave_engine(live)
            if live.state is not State.UP:
                self._change_state(live, State.UP, Code.STATIC)
        elif live.target < 0:
            # It was static, or the engine did not take its check before.
            self._join_engine(live, live.state, spread.next() if spread is not None else 0)
        else:
            check_id = self._check_id(live.check)
            if check_id >= 0:
                self._no_trouble(live)
                self._engine.change_check(live.target, check_id)
            else:
                self._leave_engine(live)
                self._has_trouble(live, live.check.problem)

    def _join_engine(self, live: LiveBackend, state: State, delay: int) -> None:
        """Give a backend to the engine. If that fails it keeps its state, and status and log say why."""
        check = live.check
        assert check is not None
        check_id = self._check_id(check)
        if check_id < 0:
            self._has_trouble(live, check.problem)
            return
        try:
            live.target = self._engine.add_target(check_id, live.conf.address.packed, state=state, first_delay=delay)
        except (RuntimeError, MemoryError, OSError) as error:
            self._has_trouble(live, f"the probe engine cannot take it: {error}")
            return
        self._targets[live.target] = live
        self._no_trouble(live)
        if live.name in self._traced:
            self._engine.trace(live.target, True)

    def _leave_engine(self, live: LiveBackend) -> None:
        if live.target >= 0:
            self._engine.remove_target(live.target)
            del self._targets[live.target]
            live.target = -1

    def _check_id(self, check: Check) -> int:
        if check.id < 0 and not check.problem:
            try:
                check.id = self._engine.add_check(check.spec)
            except (ValueError, RuntimeError, OSError, MemoryError) as error:
                check.problem = f"health check {check.spec.name}: {error}"
                log.error(
                    "healthcheck-refused",
                    f"the probe engine refuses health check {check.spec.name}: {error}",
                    healthcheck=check.spec.name,
                )
        return check.id

    def _has_trouble(self, live: LiveBackend, why: str) -> None:
        if not live.trouble:
            live.trouble_since_ns = self._clock.time_ns()
        live.trouble = why

    @staticmethod
    def _no_trouble(live: LiveBackend) -> None:
        live.trouble = ""
        live.trouble_since_ns = 0

    def _remove(self, live: LiveBackend, by: str) -> None:
        self._leave_engine(live)
        if live.state is not State.REMOVED:
            self._change_state(live, State.REMOVED, Code.REMOVED, by=by)

    # --------------------------------------------------------------------------------------------- operator's verbs

    def pause(self, name: str, *, by: str, reason: str = "", duration_ns: int = 0) -> Change:
        """Send no more probes; effective weight 0, flows stay. Raises ``NotAllowed`` for a disabled backend."""
        live = self._operand(name)
        self._check_words(reason, duration_ns)
        if live.state is State.DISABLED:
            raise NotAllowed(f"backend {name!r} is disabled")
        changed = self._set(live, OverrideKind.PAUSE, by, reason, duration_ns)
        self._realign(live, by, reason)
        return Change(changed)

    def resume(self, name: str, *, by: str, reason: str = "", duration_ns: int = 0) -> Change:
        """Probe a paused backend again, from unknown. Raises ``NotAllowed`` for a disabled backend."""
        live = self._operand(name)
        self._check_words(reason, duration_ns, lasting=True)
        if live.state is State.DISABLED:
            raise NotAllowed(f"backend {name!r} is disabled")
        changed = self._unset(pause_key(name))
        self._realign(live, by, reason)
        return Change(changed)

    def disable(self, name: str, *, by: str, reason: str = "", duration_ns: int = 0) -> Change:
        """Take a backend out at once: weight 0, flows flushed, no probes. Idempotent; ends a pause."""
        live = self._operand(name)
        self._check_words(reason, duration_ns)
        changed = live.state is not State.DISABLED
        self._unset(pause_key(name))
        if live.conf.enabled:
            changed |= self._set(live, OverrideKind.DISABLE, by, reason, duration_ns)
        else:
            # The file says so already: nothing to remember, nothing to take back.
            self._unset(enabled_key(name))
        self._realign(live, by, reason)
        return Change(changed)

    def enable(self, name: str, *, by: str, reason: str = "", duration_ns: int = 0) -> Change:
        """Take a disabled backend back, from unknown and with its history. Idempotent."""
        live = self._operand(name)
        self._check_words(reason, duration_ns, lasting=True)
        changed = live.state is State.DISABLED
        if changed:
            # A pause from before belongs to what the disable ended.
            self._unset(pause_key(name))
            self._unset(enabled_key(name))
            if not live.conf.enabled:
                self._set(live, OverrideKind.ENABLE, by, reason, 0)
            self._realign(live, by, reason)
        return Change(changed)

    def drain(self, name: str, *, by: str, reason: str = "", duration_ns: int = 0) -> Change:
        """Effective weight 0 everywhere; established flows stay, probing goes on. Idempotent."""
        live = self._operand(name)
        self._check_words(reason, duration_ns)
        changed = self._set(live, OverrideKind.DRAIN, by, reason, duration_ns)
        self._realign(live, by, reason)
        return Change(changed)

    def undrain(self, name: str, *, by: str, reason: str = "", duration_ns: int = 0) -> Change:
        """Take a drain back. Idempotent."""
        live = self._operand(name)
        self._check_words(reason, duration_ns, lasting=True)
        changed = self._unset(drain_key(name))
        self._realign(live, by, reason)
        return Change(changed)

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

        A weight that is no multiple of the frontend's unit is rounded to one. ``flush``: where the weight becomes 0,
        its flows are evicted too. Raises ``UnknownName``, ``BadValue``.
        """
        conf = self.frontend(frontend)
        if pool not in {p.name for p in conf.pools}:
            raise UnknownName("pool", pool, f"frontend {frontend!r}")
        file_weight = _file_weight(self._config, frontend, pool, backend)
        if file_weight is None:
            raise UnknownName("backend", backend, f"pool {pool!r} of frontend {frontend!r}")
        self._check_words(reason, duration_ns)
        if weight is not None:
            check_weight(weight)
        live = self._operand(backend)
        unit = weight_unit(conf)
        key = weight_key(frontend, pool, backend)
        before = self._store.weight(frontend, pool, backend)
        previous = before if before is not None else file_weight
        became = file_weight if weight is None else min(100, applied_weight(weight, unit))
        if became == file_weight or weight == file_weight:
            became = file_weight
            self._unset(key)
        else:
            now = self._clock.time_ns()
            self._put(
                Override(
                    kind=OverrideKind.WEIGHT,
                    backend=backend,
                    address=live.address,
                    since_ns=now,
                    until_ns=now + duration_ns if duration_ns else 0,
                    by=by,
                    reason=reason,
                    frontend=frontend,
                    pool=pool,
                    weight=became,
                    file_weight=file_weight,
                    file_enabled=live.conf.enabled,
                )
            )
        changed = became != previous
        if changed or flush:
            self._weight_changed(
                conf, pool, backend, previous, became, flush=flush, by=by, reason=reason, to_default=weight is None
            )
        self._overrides_changed()
        return WeightChange(changed=changed, previous=previous, weight=became, requested=weight, unit=unit)

    def _weight_changed(
        self,
        conf: Frontend,
        pool: str,
        backend: str,
        old: int,
        new: int,
        *,
        flush: bool,
        by: str,
        reason: str,
        to_default: bool,
    ) -> None:
        log.info(
            "weight-set",
            f"frontend {conf.name} pool {pool} backend {backend} weight {old} -> {new}" + (f" by {by}" if by else ""),
            frontend=conf.name,
            pool=pool,
            backend=backend,
            old=old,
            new=new,
            flush=flush,
            by=by,
            reason=reason,
        )
        self._bus.publish(
            WeightEvent(
                frontend=conf.name,
                pool=pool,
                backend=backend,
                old=old,
                new=new,
                flush=flush,
                at_ns=self._clock.time_ns(),
                by=by,
                to_default=to_default,
                reason=reason,
            )
        )
        self._dirty.names[conf.name] = None
        self._publish_frontends()

    def _check_words(self, reason: str, duration_ns: int, *, lasting: bool = False) -> None:
        check_reason(reason)
        check_duration(duration_ns)
        if lasting and duration_ns:
            raise BadValue("this lasts: it takes no duration")

    def _set(self, live: LiveBackend, kind: OverrideKind, by: str, reason: str, duration_ns: int) -> bool:
        """Record an override; the newest words, by and end count, since it began stays. True if it is new."""
        now = self._clock.time_ns()
        override = Override(
            kind=kind,
            backend=live.name,
            address=live.address,
            since_ns=now,
            until_ns=now + duration_ns if duration_ns else 0,
            by=by,
            reason=reason,
            file_enabled=live.conf.enabled,
        )
        before = self._store.get(override.key)
        if before is not None and before.kind is kind:
            override = dataclasses.replace(override, since_ns=before.since_ns)
        self._put(override)
        return before is None or before.kind is not kind

    def _put(self, override: Override) -> None:
        self._store.put(override)
        self._deadlines.pop(override.key, None)
        if override.until_ns:
            left = override.until_ns - self._clock.time_ns()
            # A wall clock that is wrong after a start never makes more of a span than was asked for.
            if override.until_ns > override.since_ns:
                left = min(left, override.until_ns - override.since_ns)
            self._deadlines[override.key] = self._clock.monotonic_ns() + left
            self._wake.set()

    def _unset(self, key: OverrideKey) -> bool:
        self._deadlines.pop(key, None)
        return self._store.drop(key) is not None

    def _operand(self, name: str) -> LiveBackend:
        """The backend that a verb works on, as the configuration in force wants it. Raises ``UnknownName``."""
        live = self.backend_state(name)
        if live.conf is not self._config.backends[name]:
            # A reload is on its way through the backends and has not come to this one.
            self._align(live, *self._configured(live), by="")
        return live

    def _configured(self, live: LiveBackend) -> tuple[Backend, Check | None]:
        conf = self._config.backends[live.name]
        return conf, self._checks[conf.healthcheck] if conf.healthcheck is not None else None

    def _realign(self, live: LiveBackend, by: str, reason: str) -> None:
        self._align(live, *self._configured(live), by=by, reason=reason)
        self._publish_frontends()
        self._overrides_changed()

    def _overrides_changed(self) -> None:
        if self._store.version != self._store_seen:
            self._store_seen = self._store.version
            if self._on_overrides is not None:
                self._on_overrides()

    # ------------------------------------------------------------------------------------------------------- expiry

    def expire(self) -> int | None:
        """Take back what was set for a time that is over; nanoseconds until the next end, None if there is none."""
        now = self._clock.monotonic_ns()
        for key in [key for key, end in self._deadlines.items() if end <= now]:
            override = self._take_back(key, "its time is over")
            if override is None:
                continue
            self.counters.expired += 1
            live = self._backends.get(override.backend)
            if live is None:
                continue
            if override.kind is OverrideKind.WEIGHT:
                conf = self._config.frontends.get(override.frontend)
                if conf is not None:
                    self._weight_changed(
                        conf,
                        override.pool,
                        override.backend,
                        override.weight,
                        override.file_weight,
                        flush=False,
                        by="expiry",
                        reason=override.reason,
                        to_default=True,
                    )
            else:
                self._align(live, *self._configured(live), by="expiry", reason=override.reason)
        self._publish_frontends()
        self._overrides_changed()
        return min((end - now for end in self._deadlines.values()), default=None)

    async def run(self) -> None:
        """Take back what expires, for ever."""
        while True:
            self._wake.clear()
            left = self.expire()
            woken = asyncio.ensure_future(self._wake.wait())
            waits: set[asyncio.Future[object]] = {woken}  # type: ignore[arg-type]
            if left is not None:
                waits.add(asyncio.ensure_future(self._clock.sleep(max(left, 0) / 1e9)))
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()


def _file_weight(config: Config, frontend: str, pool: str, backend: str) -> int | None:
    """The file's weight of a pool member; None if there is no such member."""
    conf = config.frontends.get(frontend)
    if conf is None:
        return None
    for candidate in conf.pools:
        if candidate.name == pool:
            for member in candidate.members:
                if member.backend == backend:
                    return member.weight
    return None
