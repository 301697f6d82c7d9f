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

Weights can also depend on the past (``mechanisms``): which pool served last. That memory is brought up to the present
states before anything is published.

Besides states, the pool that serves each frontend is followed: a frontend that is served by a fallback works, and has
lost a reserve. Nothing is published of it while a server of an earlier pool is unknown, as after a start.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterable, Mapping
from itertools import islice

from maglev.base import logs
from maglev.base.clock import Clock
from maglev.base.events import Bus, FrontendEvent, PoolEvent
from maglev.base.pace import Pace
from maglev.base.states import FrontendState, State
from maglev.checker.backend import LiveBackend
from maglev.checker.mechanisms import TIME, Mechanisms
from maglev.config.model import Frontend
from maglev.judgement.weights import FrontendWeights, Memory, WeightTable, fill
from maglev.views.backends import Override

log = logs.get(__name__)

SLICE_NS = 1_000_000
"""How long one turn of the event loop may work on frontends."""

PORTION = 256
"""Members or backends between two looks at the clock: they take the table some 50 microseconds."""

RELOAD = "configuration loaded"
"""The cause of what the first load, or a reload, changes."""


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
        self._mechanisms = Mechanisms(clock)
        self._states: dict[str, FrontendState] = {}
        # By the last event of each; it is another one only while an event waits.
        self._told: dict[str, FrontendState] = {}
        # Of frontends that were last served by another pool than their first: the index of that pool.
        self._fallbacks: dict[str, int] = {}
        # In the order in which they were touched, each with the last cause: a backend, or words. The words for a
        # backend are only made where the frontend's state changes.
        self._dirty: dict[str, LiveBackend | str] = {}
        self._scheduled = False

    def state(self, name: str) -> FrontendState:
        """State of a frontend, as last worked out."""
        return self._states.get(name, FrontendState.UNKNOWN)

    def serving_pool(self, name: str) -> int:
        """Index of a frontend's active pool by the present states; 0 where no pool can serve. Raises KeyError."""
        self._table.state(name)
        return self._table.computed_pool(name)

    def __contains__(self, frontend: Frontend) -> bool:
        """Whether this very frontend is part of the configuration in force."""
        return frontend in self._table

    def weights(self, name: str) -> FrontendWeights:
        """Active pool, unit and the weights of all members of a frontend. Raises KeyError."""
        return self._table.frontend(name)

    def memory(self, frontend: Frontend) -> Memory:
        """The memory of judgement of a frontend, which may be of another configuration."""
        return self._mechanisms.memory(frontend)

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
        frontends = list(frontends)
        await self._mechanisms.prepare(frontends)
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
        self._fallbacks = {name: pool for name, pool in self._fallbacks.items() if name in self._states}
        for override in weights:
            self._table.set_weight(override.frontend, override.pool, override.backend, override.weight)
        self._mechanisms.configure(self._table)

    async def blank(self, names: Iterable[str]) -> WeightTable:
        """A table with these frontends, whose members have no states yet. Lets the loop run between slices.

        Raises KeyError. A reload may come meanwhile, and ``apart`` says so.
        """
        pace, table = Pace(), WeightTable()
        for _ in fill(table, [self._table.configured(name) for name in names], PORTION):
            if pace.due():
                await pace.rest()
        return table

    def copied(self, table: WeightTable) -> None:
        """Copy the present states into a table of ``blank``. Raises KeyError after a reload."""
        table.repeat(self._table)

    def apart(self, names: Collection[str], table: WeightTable, bus: Bus) -> Frontends:
        """A copy of these frontends as they are now, to try something out: it publishes on ``bus``.

        ``table``: of these frontends, as ``blank`` has made it. Raises KeyError after a reload.
        """
        table.repeat(self._table)
        twin = Frontends(bus, self._clock)
        twin._table = table
        twin._mechanisms = self._mechanisms.apart(names)
        twin._states = {name: self._states[name] for name in names}
        twin._told = {name: self._told[name] for name in names}
        twin._fallbacks = {name: self._fallbacks[name] for name in names if name in self._fallbacks}
        return twin

    async def release(self) -> None:
        """Free the table of the configuration before. Lets the loop run between slices."""
        old, self._old = self._old, None
        pace = Pace()
        while old is not None and old.shed(PORTION):
            if pace.due():
                await pace.rest()

    def touch(self, live: LiveBackend, *, joins: bool = False) -> None:
        """A backend has changed: the frontends that use it have to be looked at again.

        ``joins``: it has come up, and not by its first verdict since the start.
        """
        users = self._table.set_backend(live.name, live.state, live.drained)
        if joins:
            self._mechanisms.joined(live.name, users)
        for name in users:
            self._dirty[name] = live
            self._mechanisms.touch(name)
        if self._next is not None:
            self._next.set_backend(live.name, live.state, live.drained)

    def set_weight(self, frontend: str, pool: str, backend: str, weight: int | None) -> None:
        """The run-time weight of a member has changed; None: the file's counts again."""
        self._table.set_weight(frontend, pool, backend, weight)
        self._dirty[frontend] = f"the weight of backend {backend} in pool {pool}"
        self._mechanisms.touch(frontend)

    def presume(self, live: LiveBackend) -> None:
        """VPP serves this backend, which has no verdict yet."""
        self._table.presume(live.name)
        if self._next is not None:
            self._next.presume(live.name)

    def settle(self, serving: Iterable[str], pools: Mapping[str, str]) -> None:
        """The dataplane says which backends VPP serves, and which pools, by frontend. Only the first call counts."""
        if self._mechanisms.begin(serving, pools, self._table):
            self.publish()

    def settled(self, names: Iterable[str]) -> None:
        """The dataplane may program these frontends, which were unsettled (``maglev.judgement.together``)."""
        for name in names:
            if name in self._states:
                self._bus.publish_judgement(name, "")

    async def judge(self) -> None:
        """Look at frontends again whenever time alone changes their judgement, for ever."""
        while True:
            self.publish()
            await self._mechanisms.wait()

    def _follow(self) -> None:
        """Bring the memory of judgement up to the present states. The dataplane learns of the changes."""
        for name, mechanism in self._mechanisms.follow(self._table).items():
            self._dirty.setdefault(name, TIME)
            self._bus.publish_judgement(name, mechanism)

    def publish(self) -> None:
        """Publish what changed, for about a millisecond; the rest follows at the loop's next turns."""
        self._follow()
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
        self._follow()
        self._dirty.clear()
        self._table.compute()
        for name in list(self._states):
            # A frontend that was touched since then is dirty, and its computed state is old.
            if name not in self._dirty:
                self._publish_state(name, self._table.computed_state(name), RELOAD)
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
        cause = self._dirty.pop(name)
        if name in self._states:
            self._publish_state(name, self._table.state(name), cause)

    def _publish_state(self, name: str, new: FrontendState, cause: LiveBackend | str) -> None:
        """Publish what has changed of a frontend, whose ``new`` state the table has just worked out."""
        self._states[name] = new
        old = self._told[name]
        if new is not old and not (new is FrontendState.DOWN and self._table.undecided(name)):
            self._told[name] = new
            self._publish_transition(name, old, new, _words(cause))
        if new is FrontendState.UP:
            before, now = self._fallbacks.get(name, 0), self._table.computed_pool(name)
            if now != before:
                self._publish_pool(name, before, now, cause)

    def _publish_transition(self, name: str, old: FrontendState, new: FrontendState, cause: str) -> None:
        log.log(
            logging.WARNING if new in (FrontendState.DOWN, FrontendState.PANIC) else logging.INFO,
            "frontend-transition",
            f"frontend {name} {old} -> {new}: {cause}",
            frontend=name,
            cause=cause,
            **{"from": str(old), "to": str(new)},
        )
        if new is FrontendState.DOWN and not any(one.keep for one in self._table.frontend(name).members):
            # With on-all-down: keep the last weights stay in VPP, so that traffic still has servers.
            log.error("frontend-without-servers", f"frontend {name} has no server: {cause}", frontend=name, cause=cause)
        self._bus.publish(FrontendEvent(name, old, new, self._clock.time_ns(), cause))

    def _publish_pool(self, name: str, before: int, now: int, cause: LiveBackend | str) -> None:
        """A frontend that is up has another active pool than the one that was published last."""
        if now and self._undecided(name, now):
            return
        if now:
            self._fallbacks[name] = now
        else:
            del self._fallbacks[name]
        pools = self._table.configured(name).pools
        # A reload may have taken the pool away that served until now.
        old, new = pools[min(before, len(pools) - 1)].name, pools[now].name
        words = _words(cause)
        log.log(
            logging.WARNING if now else logging.INFO,
            "frontend-pool",
            f"frontend {name} is served by pool {new}" + (", a fallback" if now else "") + f": {words}",
            frontend=name,
            cause=words,
            fallback=bool(now),
            **{"from": old, "to": new},
        )
        self._bus.publish(PoolEvent(name, old, new, bool(now), self._clock.time_ns(), words))

    def _undecided(self, name: str, pool: int) -> bool:
        """Whether a server of an earlier pool has no verdict yet, so that it is open which pool will serve."""
        return any(
            one.state is State.UNKNOWN and one.weight > 0 and not one.drained
            for one in self._table.frontend(name).members
            if one.pool_index < pool
        )


def _words(cause: LiveBackend | str) -> str:
    """``backend web1 down (L4CON: connection refused)``: what a backend is now, and why."""
    if isinstance(cause, str):
        return cause
    words = f"backend {cause.name} {cause.state}"
    last = cause.history[-1] if cause.history else None
    if cause.drained:
        words += ", drained"
    elif last is not None and last.to_state is cause.state:
        words += f" ({last.code}: {last.detail})" if last.detail else f" ({last.code})"
    return words
