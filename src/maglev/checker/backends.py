"""The backends at run time, and each one's way from what it is to what file and operators want of it.

Owns the table of backends, their states and histories. Two things change a state, and both end in ``change_state``: a
verdict of the probe engine (``verdict``), and an alignment with file and operators (``align``).

The unit of state is the *target*: a backend on a path (``maglev.judgement.weights.StateSource``). Today all frontends
share one path to a backend, so a ``LiveBackend`` is a target, whichever frontend asks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass

from maglev._probe import Transition
from maglev.base import logs
from maglev.base.clock import Clock, Moments
from maglev.base.errors import UnknownName
from maglev.base.events import BackendEvent, Bus, DrainEvent
from maglev.base.states import Code, State
from maglev.checker.backend import Check, LiveBackend
from maglev.checker.frontends import Frontends
from maglev.checker.prober import Prober, Spread
from maglev.checker.settings import Settings
from maglev.config.model import Backend
from maglev.schema.durations import format_duration

log = logs.get(__name__)

SLICE_NS = 1_000_000
"""How long one turn of the event loop may take presumptions back."""

# By number, as the engine gives them: each verdict of a mass failure asks.
_CODES = tuple(sorted(Code))
_STATES = tuple(sorted(State))
_STOPPED_CODES = {State.DISABLED: Code.DISABLED, State.PAUSED: Code.PAUSED}


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a backend is brought to file and operators.

    ``by`` and ``reason``: the author's. ``duration_ns``: how long it lasts, 0 without an end. ``starting``: the daemon
    starts, so the admission of a backend is not news.
    ``spread``: delays of the first probes of a check. ``known``: until now the server was up under another name.
    """

    by: str = ""
    reason: str = ""
    duration_ns: int = 0
    starting: bool = False
    spread: Spread | None = None
    known: bool = False


class Backends:
    """All backends, by name, in the order of the file."""

    def __init__(self, prober: Prober, settings: Settings, frontends: Frontends, bus: Bus, clock: Clock) -> None:
        self._prober = prober
        self._settings = settings
        self._frontends = frontends
        self._bus = bus
        self._clock = clock
        self._moments = Moments(clock)
        self._table: dict[str, LiveBackend] = {}
        self._history = 1
        # Until the dataplane has said which backends it sends traffic to, every new one is presumed good.
        self._presuming = True
        self.stale = 0
        """Verdicts that a command had made obsolete before they arrived."""

    # ---------------------------------------------------------------------------------------------------- questions

    @property
    def table(self) -> dict[str, LiveBackend]:
        """All backends by name. Only ``replace`` puts another table in its place."""
        return self._table

    def get(self, name: str) -> LiveBackend:
        """The backend of that name. Raises ``UnknownName``."""
        try:
            return self._table[name]
        except KeyError:
            raise UnknownName("backend", name, among=self._table) from None

    def target(self, frontend: str, backend: str) -> LiveBackend:
        """The target by which a member of a frontend is judged: one for all frontends. Raises ``UnknownName``."""
        return self.get(backend)

    def counts(self) -> dict[State, int]:
        """Backends by state; states without any are left out."""
        counts: dict[State, int] = {}
        for live in self._table.values():
            counts[live.state] = counts.get(live.state, 0) + 1
        return counts

    # ----------------------------------------------------------------------------------------------------- verdicts

    def verdict(self, transition: Transition) -> None:
        """A verdict of the probe engine: everything that it changes is changed when this returns.

        The backend's state and history, then the event, at which the dataplane marks its frontends. The frontends'
        own states follow with ``Frontends.publish``.
        """
        live = self._prober.backend_of(transition)
        if live is None:
            self.stale += 1
            return
        to = _STATES[transition.to_state]
        if to is not live.state:
            self.change_state(live, to, _CODES[transition.code], transition.detail, at_ns=transition.at_ns)

    def change_state(
        self,
        live: LiveBackend,
        to: State,
        code: Code,
        detail: str = "",
        *,
        at_ns: int = 0,
        cause: Cause | None = None,
    ) -> None:
        """Record and publish a transition: the one place where a state changes. ``at_ns`` 0: now."""
        event = BackendEvent(
            name=live.name,
            address=live.address,
            from_state=live.state,
            to_state=to,
            code=code,
            detail=detail,
            at_ns=at_ns or self._clock.time_ns(),
            by=cause.by if cause is not None else "",
            drained=live.drained,
            reason=cause.reason if cause is not None else "",
            duration_ns=cause.duration_ns if cause is not None else 0,
        )
        live.state = to
        live.since_ns = self._moments.mark(event.at_ns)
        known, live.presumed = live.presumed, False
        live.history = (*live.history, event)[-self._history :]
        pair = (event.from_state, to)
        live.transitions[pair] = live.transitions.get(pair, 0) + 1
        # The first transition since the start says nothing of the time before, and a server that VPP serves already
        # (after a start, or under another name before a reload) does not come back.
        joins = to is State.UP and not known and (event.from_state is State.DOWN or len(live.transitions) > 1)
        self._frontends.touch(live, joins=joins)
        if log.enabled(logging.WARNING if to is State.DOWN else logging.INFO):
            _log_transition(event)
        self._bus.publish(event)

    # -------------------------------------------------------------------------------------------------- presumption

    def settle(self, names: Iterable[str]) -> None:
        """The dataplane says which backends it sends traffic to already; the others are presumed good no longer.

        Until then every new backend is presumed good, since nothing is known yet. Only the first call counts.
        """
        if not self._presuming:
            return
        self._presuming = False
        good = set(names)
        self._unpresume([live for live in self._table.values() if live.presumed and live.name not in good])

    def _unpresume(self, backends: list[LiveBackend]) -> None:
        """Take presumptions back, in slices: ``backends`` is worked off."""
        end = time.monotonic_ns() + SLICE_NS
        while backends:
            live = backends.pop()
            if live.presumed:
                self._prober.presume(live, False)
            if backends and time.monotonic_ns() >= end:
                asyncio.get_running_loop().call_soon(self._unpresume, backends)
                return

    # ------------------------------------------------------------------------------------------ file and operators

    def replace(self, table: dict[str, LiveBackend], *, history: int) -> None:
        """Another configuration is in force, with these backends. ``history``: transitions that are kept of each."""
        self._table = table
        self._history = history

    def trim(self, live: LiveBackend) -> None:
        """Drop what is older than the history that is kept now."""
        if len(live.history) > self._history:
            live.history = live.history[-self._history :]

    def remove(self, live: LiveBackend, by: str) -> None:
        """A backend has left the configuration."""
        self._prober.stop(live)
        if live.state is not State.REMOVED:
            self.change_state(live, State.REMOVED, Code.REMOVED, cause=Cause(by=by))

    def align(self, live: LiveBackend, conf: Backend, check: Check | None, cause: Cause) -> None:
        """Bring a backend to what file (``conf``, ``check``; None: static) and operators want of it now."""
        rechecked = live.check is not check
        moved = live.conf.address != conf.address
        was = live.address
        live.conf, live.check = conf, check
        if moved:
            self._prober.stop(live)
            live.address = str(conf.address)
        self._align_drain(live, cause)

        added = live.state is State.REMOVED
        stopped = self._settings.stopped(conf)
        if stopped is not None:
            # If the check changed meanwhile, probing starts with the new one when the backend comes back.
            self._prober.halt(live, forget=rechecked)
            self._enter(live, stopped, _STOPPED_CODES[stopped], cause)
        elif added:
            self._enter(live, State.UNKNOWN, Code.ADDED, cause)
            self._probe(live, cause, new=True, presume=self._presuming or cause.known)
        elif live.state is State.DISABLED:
            self.change_state(live, State.UNKNOWN, Code.ENABLED, cause=cause)
            self._probe(live, cause, new=moved, presume=moved and cause.known)
        elif live.state is State.PAUSED:
            self.change_state(live, State.UNKNOWN, Code.RESUMED, cause=cause)
            self._probe(live, cause, new=moved, presume=moved and cause.known)
        elif moved:
            detail = f"address {was} became {live.address}"
            self.change_state(live, State.UNKNOWN, Code.ADDED, detail, cause=cause)
            self._probe(live, cause, new=True, presume=cause.known)
        elif rechecked:
            self._recheck(live, cause)

    def _enter(self, live: LiveBackend, state: State, code: Code, cause: Cause) -> None:
        """A backend enters a state that file and operators want, if it is in another one."""
        if live.state is state:
            return
        if live.state is not State.REMOVED:
            self.change_state(live, state, code, cause=cause)
        elif not cause.starting:
            self.change_state(live, state, Code.ADDED, cause=Cause(by=cause.by))
        else:
            live.state = state
            live.since_ns = self._clock.monotonic_ns()
            self._frontends.touch(live)

    def _probe(self, live: LiveBackend, cause: Cause, *, new: bool, presume: bool) -> None:
        """Start to probe a backend that is unknown; a static one passes at once. ``new``: its first probe is spread."""
        if live.check is None:
            self._prober.stop(live)
            self.change_state(live, State.UP, Code.STATIC)
            return
        self._prober.start(live, live.check, cause.spread.next() if cause.spread is not None and new else 0)
        if presume:
            self._prober.presume(live, True)
            self._frontends.presume(live)

    def _recheck(self, live: LiveBackend, cause: Cause) -> None:
        """Another check for a backend that is being probed: it goes on in its present state."""
        if live.check is not None:
            self._prober.change_check(live, live.check, cause.spread)
            return
        self._prober.stop(live)
        if live.state is not State.UP:
            self.change_state(live, State.UP, Code.STATIC)

    def _align_drain(self, live: LiveBackend, cause: Cause) -> None:
        drained = self._settings.drained(live.name)
        if drained is live.drained:
            return
        live.drained = drained
        self._frontends.touch(live)
        if cause.starting:
            return
        log.info(
            "backend-drained" if drained else "backend-undrained",
            f"backend {live.name} {'drained' if drained else 'no longer drained'}"
            + (f" by {cause.by}" if cause.by else ""),
            backend=live.name,
            by=cause.by,
            reason=cause.reason,
            **lasting(cause.duration_ns),
        )
        self._bus.publish(
            DrainEvent(
                name=live.name,
                address=live.address,
                state=live.state,
                drained=drained,
                at_ns=self._clock.time_ns(),
                by=cause.by,
                reason=cause.reason,
                duration_ns=cause.duration_ns,
            )
        )


def lasting(duration_ns: int) -> dict[str, str]:
    """The field ``duration`` of a record about a change that ends by itself; none for a change without an end."""
    return {"duration": format_duration(duration_ns)} if duration_ns else {}


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
    fields.update(lasting(event.duration_ns))
    log.log(logging.WARNING if event.to_state is State.DOWN else logging.INFO, "backend-transition", event, **fields)
