"""Frontends: their weights and states, which follow from the states of their backends.

Owns the table of weights, from which the checker, the API, the metrics and the dataplane all read; which frontends use
a backend; which frontends have to be looked at again; and the state of each as last published.

The table repeats the state of every backend, so that all frontends can be worked out without a Python call per member.
``touch`` keeps it true: whatever changes a backend calls it in the same turn of the event loop.

A mass failure touches thousands of frontends at once, so they are published in slices: the event loop gets a turn after
about a millisecond, and the rest follows at its next turns.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping

from maglev.base import logs
from maglev.base.clock import Clock
from maglev.base.events import Bus, FrontendEvent
from maglev.base.pace import Pace
from maglev.base.states import FrontendState
from maglev.checker.backend import LiveBackend
from maglev.config.model import Config, Frontend
from maglev.judgement.weights import FrontendWeights, WeightTable
from maglev.views.backends import Override

log = logs.get(__name__)

SLICE_NS = 1_000_000
"""How long one turn of the event loop may work on frontends."""

Users = Mapping[str, tuple[str, ...]]
"""Names of the frontends that use a backend, by backend, in the order of the file."""


class Frontends:
    """All frontends of the configuration in force."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock
        self._users: Users = {}
        self._table = WeightTable()
        # The table of a configuration that is being prepared; states that change meanwhile are set in it too.
        self._next: WeightTable | None = None
        self._published: dict[str, FrontendState] = {}
        # In the order in which they were touched.
        self._dirty: dict[str, None] = {}
        self._scheduled = False

    def state(self, name: str) -> FrontendState:
        """State of a frontend, as last published."""
        return self._published.get(name, FrontendState.UNKNOWN)

    def __contains__(self, frontend: Frontend) -> bool:
        """Whether this very frontend is part of the configuration in force."""
        return frontend in self._table

    def weights(self, name: str) -> FrontendWeights:
        """Active pool, unit and the weights of all members of a frontend. Raises KeyError."""
        return self._table.frontend(name)

    @property
    def users(self) -> Users:
        """Which frontends use which backend."""
        return self._users

    def users_of(self, backend: str) -> tuple[str, ...]:
        """Names of the frontends that use a backend."""
        return self._users.get(backend, ())

    async def prepare(self, config: Config, table: Mapping[str, LiveBackend]) -> None:
        """Fill the table of another configuration, before it is in force. Lets the loop run between slices.

        ``table``: the backends that the configuration will have. Called again, it begins anew.
        """
        pace = Pace()
        self._next = coming = WeightTable()
        for frontend in config.frontends.values():
            coming.add(frontend)
            if pace.due():
                await pace.rest()
        for live in table.values():
            coming.set_backend(live.name, live.state, live.drained)
            if pace.due():
                await pace.rest()

    def configure(self, users: Users, names: Iterable[str], weights: Iterable[Override]) -> None:
        """The prepared configuration is in force, with the frontends ``names`` and these run-time weights."""
        assert self._next is not None
        self._table, self._next = self._next, None
        self._users = users
        self._published = {name: self._published.get(name, FrontendState.UNKNOWN) for name in names}
        for override in weights:
            self._table.set_weight(override.frontend, override.pool, override.backend, override.weight)

    def touch(self, live: LiveBackend) -> None:
        """A backend has changed: the frontends that use it have to be looked at again."""
        self._table.set_backend(live.name, live.state, live.drained)
        if self._next is not None:
            self._next.set_backend(live.name, live.state, live.drained)
        for name in self._users.get(live.name, ()):
            self._dirty[name] = None

    def set_weight(self, frontend: str, pool: str, backend: str, weight: int | None) -> None:
        """The run-time weight of a member has changed; None: the file's counts again."""
        self._table.set_weight(frontend, pool, backend, weight)
        self._dirty[frontend] = None

    def mark(self, names: Iterable[str]) -> None:
        """These frontends have to be looked at again."""
        self._dirty.update(dict.fromkeys(names))

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

    async def publish_all(self, pace: Pace) -> None:
        """Look at every frontend, and publish what changed. Lets the loop run between slices."""
        self._table.compute()
        for name in list(self._published):
            if name in self._published:
                self._dirty.pop(name, None)
                self._publish_state(name, self._table.computed_state(name))
            if pace.due():
                await pace.rest()

    def _publish_rest(self) -> None:
        self._scheduled = False
        self.publish()

    def _publish_next(self) -> None:
        name = next(iter(self._dirty))
        del self._dirty[name]
        if name in self._published:
            self._publish_state(name, self._table.state(name))

    def _publish_state(self, name: str, new: FrontendState) -> None:
        old = self._published[name]
        if new is old:
            return
        self._published[name] = new
        event = FrontendEvent(name=name, from_state=old, to_state=new, at_ns=self._clock.time_ns())
        log.info(
            "frontend-transition",
            f"frontend {name} {old} -> {new}",
            frontend=name,
            **{"from": str(old), "to": str(new)},
        )
        self._bus.publish(event)
