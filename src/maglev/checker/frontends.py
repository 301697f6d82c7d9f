"""States of frontends, which follow from those of their backends.

Owns which frontends use a backend, which frontends have to be looked at again, and the state of each as last
published. A mass failure touches thousands of frontends at once, so their states are worked out in slices: the event
loop gets a turn after about a millisecond, and the rest follows at its next turns.
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
from maglev.judgement.weights import StateSource, frontend_weights

log = logs.get(__name__)

SLICE_NS = 1_000_000
"""How long one turn of the event loop may work on frontends."""

Users = Mapping[str, tuple[str, ...]]
"""Names of the frontends that use a backend, by backend, in the order of the file."""


class Frontends:
    """The states of all frontends. ``states`` answers for the backends, and for the configuration in force."""

    def __init__(self, states: StateSource, bus: Bus, clock: Clock) -> None:
        self._states = states
        self._bus = bus
        self._clock = clock
        self._users: Users = {}
        self._published: dict[str, FrontendState] = {}
        # In the order in which they were touched.
        self._dirty: dict[str, None] = {}
        self._scheduled = False

    def state(self, name: str) -> FrontendState:
        """State of a frontend, as last published."""
        return self._published.get(name, FrontendState.UNKNOWN)

    @property
    def users(self) -> Users:
        """Which frontends use which backend."""
        return self._users

    def users_of(self, backend: str) -> tuple[str, ...]:
        """Names of the frontends that use a backend."""
        return self._users.get(backend, ())

    def configure(self, users: Users, names: Iterable[str]) -> None:
        """Another configuration is in force, with the frontends ``names``."""
        self._users = users
        self._published = {name: self._published.get(name, FrontendState.UNKNOWN) for name in names}

    def touch(self, backend: str) -> None:
        """A backend has changed: the frontends that use it have to be looked at again."""
        for name in self._users.get(backend, ()):
            self._dirty[name] = None

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
        """Publish what changed, all of it, at a pace that lets others run."""
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
        frontend = self._states.config().frontends.get(name)
        if frontend is None:
            return
        old = self._published.get(name, FrontendState.UNKNOWN)
        new = frontend_weights(frontend, self._states).state
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
