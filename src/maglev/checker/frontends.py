"""Frontends: their weights and states, which follow from the states of their backends.

Owns the table of weights, from which the checker, the API, the metrics and the dataplane all read; which frontends have
to be looked at again; and the state of each.

The table knows which frontends use a backend, and repeats the state of every backend, so that all frontends can be
worked out without a Python call per member. ``touch`` keeps it true: every change of a backend calls it in the same
turn of the event loop.

The state of a frontend is that of the rule. An event of it waits in one case: a frontend is not reported down while a
member without a verdict could still make it up. Otherwise a restart beside a drained server, a reload that brings new
servers, or a frontend that is created again would report an outage that ends with the first verdict. So there are two
states of each frontend: the present one, and the last one of an event, from which the next event starts.

A mass failure touches thousands of frontends at once, so they are published in slices: the event loop gets a turn after
about a millisecond, and the rest follows at its next turns.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from itertools import islice

from maglev.base import logs
from maglev.base.clock import Clock
from maglev.base.events import Bus, FrontendEvent
from maglev.base.pace import Pace
from maglev.base.states import FrontendState
from maglev.checker.backend import LiveBackend
from maglev.config.model import Frontend
from maglev.judgement.weights import FrontendWeights, WeightTable, fill
from maglev.views.backends import Override

log = logs.get(__name__)

SLICE_NS = 1_000_000
"""How long one turn of the event loop may work on frontends."""

PORTION = 256
"""Members or backends between two looks at the clock: they take the table some 50 microseconds."""


class Frontends:
    """All frontends of the configuration in force."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock
        self._table = WeightTable()
        # The table of a configuration that is being prepared; states that change meanwhile are set in it too.
        self._next: WeightTable | None = None
        # The table of the configuration before, until ``release``.
        self._old: WeightTable | None = None
        self._states: dict[str, FrontendState] = {}
        # By the last event of each; it is another one only while an event waits.
        self._told: dict[str, FrontendState] = {}
        # In the order in which they were touched.
        self._dirty: dict[str, None] = {}
        self._scheduled = False

    def state(self, name: str) -> FrontendState:
        """State of a frontend, as last worked out."""
        return self._states.get(name, FrontendState.UNKNOWN)

    def __contains__(self, frontend: Frontend) -> bool:
        """Whether this very frontend is part of the configuration in force."""
        return frontend in self._table

    def weights(self, name: str) -> FrontendWeights:
        """Active pool, unit and the weights of all members of a frontend. Raises KeyError."""
        return self._table.frontend(name)

    def outlook(self, names: Iterable[str]) -> list[int]:
        """The active pool of each of these frontends, by its index; -1 where no server is usable. Raises KeyError."""
        return self._table.outlook(names)

    def users_of(self, backend: str) -> tuple[str, ...]:
        """Names of the frontends that use a backend, in the order of the file."""
        return self._table.users_of(backend)

    async def prepare(self, frontends: Iterable[Frontend], backends: Iterable[LiveBackend]) -> None:
        """Fill the table of another configuration, before it is in force. Lets the loop run between slices.

        ``backends``: those that the configuration will have. If it was called before, it starts again.
        """
        pace = Pace()
        self._next = coming = WeightTable()
        for _ in fill(coming, frontends, PORTION):
            if pace.due():
                await pace.rest()
        waiting = iter(backends)
        while portion := list(islice(waiting, PORTION)):
            coming.set_backends(portion)
            if pace.due():
                await pace.rest()

    def configure(self, names: Iterable[str], weights: Iterable[Override]) -> None:
        """The prepared configuration is in force, with the frontends ``names`` and these run-time weights."""
        assert self._next is not None
        self._old, self._table, self._next = self._table, self._next, None
        self._states = {name: self._states.get(name, FrontendState.UNKNOWN) for name in names}
        self._told = {name: self._told.get(name, FrontendState.UNKNOWN) for name in self._states}
        for override in weights:
            self._table.set_weight(override.frontend, override.pool, override.backend, override.weight)

    async def release(self) -> None:
        """Free the table of the configuration before. Lets the loop run between slices."""
        old, self._old = self._old, None
        pace = Pace()
        while old is not None and old.shed(PORTION):
            if pace.due():
                await pace.rest()

    def touch(self, live: LiveBackend) -> None:
        """A backend has changed: the frontends that use it have to be looked at again."""
        for name in self._table.set_backend(live.name, live.state, live.drained):
            self._dirty[name] = None
        if self._next is not None:
            self._next.set_backend(live.name, live.state, live.drained)

    def set_weight(self, frontend: str, pool: str, backend: str, weight: int | None) -> None:
        """The run-time weight of a member has changed; None: the file's counts again."""
        self._table.set_weight(frontend, pool, backend, weight)
        self._dirty[frontend] = None

    def publish(self) -> None:
        """Publish what changed, for about a millisecond; the rest follows at the loop's next turns."""
        end = time.monotonic_ns() + SLICE_NS
        while self._dirty:
            self._publish_next()
            if time.monotonic_ns() >= end:
                break
        if self._dirty and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._publish_rest)

    async def publish_all(self) -> None:
        """Look at every frontend, and publish what changed. Lets the loop run between slices."""
        pace = Pace()
        self._dirty.clear()
        self._table.compute()
        for name in list(self._states):
            # A frontend that was touched since then is dirty, and its computed state is old.
            if name not in self._dirty:
                self._publish_state(name, self._table.computed_state(name))
            if pace.due():
                await pace.rest()
        while self._dirty:
            self._publish_next()
            if pace.due():
                await pace.rest()

    def _publish_rest(self) -> None:
        self._scheduled = False
        self.publish()

    def _publish_next(self) -> None:
        name = next(iter(self._dirty))
        del self._dirty[name]
        if name in self._states:
            self._publish_state(name, self._table.state(name))

    def _publish_state(self, name: str, new: FrontendState) -> None:
        self._states[name] = new
        old = self._told[name]
        if new is old or (new is FrontendState.DOWN and self._table.undecided(name)):
            return
        self._told[name] = new
        event = FrontendEvent(name=name, from_state=old, to_state=new, at_ns=self._clock.time_ns())
        log.info(
            "frontend-transition",
            f"frontend {name} {old} -> {new}",
            frontend=name,
            **{"from": str(old), "to": str(new)},
        )
        self._bus.publish(event)
