"""The memory of the judgement of frontends: when it is brought up to date, and by which clock.

The memory itself is in the pure rooms of ``maglev.judgement`` (``pools``, ``panic``, ``slowstart``). This room calls
them at the right moments: after the states of a frontend's backends changed (``touch``, ``joined``, ``follow``), when
time alone changes something (``wait``, ``follow``), at a reload (``prepare``, ``configure``), and when the dataplane
has read VPP (``begin``).

Only frontends with a mechanism that remembers something are ever looked at; a verdict about others costs one look-up.
``follow`` runs in the same turn of the event loop as the verdicts that it follows, so no plan is made in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping

from maglev.base import logs
from maglev.base.clock import Clock
from maglev.base.pace import Pace
from maglev.config.model import Frontend
from maglev.judgement.panic import Panics
from maglev.judgement.pools import ActivePools
from maglev.judgement.slowstart import Ramps
from maglev.judgement.weights import Memory, WeightTable

log = logs.get(__name__)

TIME = "time has passed"
"""The cause of a change that no backend and no operator made."""


class Mechanisms:
    """The memory of all frontends of the configuration in force."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pools = ActivePools()
        self._panics = Panics()
        self._ramps = Ramps()
        # Of the configuration that is being prepared: frontends that follow their pools, names that can be in panic.
        self._coming: list[Frontend] = []
        self._coming_panics: list[str] = []
        self._coming_ramps: dict[str, int] = {}
        # Backends that have come up since the last ``follow``, by frontend.
        self._joined: dict[str, list[str]] = {}
        # Frontends whose states have changed since they were last followed.
        self._stale: dict[str, None] = {}
        self._sooner = asyncio.Event()
        self._begun = False

    def apart(self, names: Iterable[str]) -> Mechanisms:
        """A copy of the memory of these frontends, to try something out."""
        names = frozenset(names)
        twin = Mechanisms(self._clock)
        twin._pools = self._pools.apart(names)
        twin._panics = self._panics.apart(names)
        twin._ramps = self._ramps.apart(names)
        twin._joined = {name: list(backends) for name, backends in self._joined.items() if name in names}
        twin._stale = {name: None for name in self._stale if name in names}
        twin._begun = self._begun
        return twin

    def memory(self, frontend: Frontend) -> Memory:
        """The memory about a frontend, which may be of another configuration."""
        memory = self._pools.memory(frontend)
        panic, shares = self._panics.panicking(frontend.name), self._ramps.shares(frontend.name)
        return memory._replace(panic=panic, shares=shares) if panic or shares else memory

    async def prepare(self, frontends: Iterable[Frontend]) -> None:
        """Find the frontends of the next configuration that need a memory. Lets the loop run between slices."""
        pace = Pace()
        coming: list[Frontend] = []
        panics: list[str] = []
        ramps: dict[str, int] = {}
        for frontend in frontends:
            if frontend.follows_pools:
                coming.append(frontend)
            if frontend.panic is not None:
                panics.append(frontend.name)
            if frontend.slow_start:
                ramps[frontend.name] = frontend.slow_start
            if pace.due():
                await pace.rest()
        self._coming, self._coming_panics, self._coming_ramps = coming, panics, ramps

    def configure(self, table: WeightTable) -> None:
        """The prepared configuration is in force, with this table."""
        self._pools.configure(self._coming)
        self._pools.restore(table)
        self._panics.configure(self._coming_panics)
        self._panics.restore(table)
        self._ramps.configure(self._coming_ramps)
        self._ramps.restore(table)
        self._coming, self._coming_panics, self._coming_ramps = [], [], {}
        self._stale = dict.fromkeys([*self._pools.names(), *self._panics.names()])

    def begin(self, serving: Iterable[str], pools: Mapping[str, str], table: WeightTable) -> bool:
        """The dataplane says which backends VPP serves, and which pools, by frontend. True at the first call."""
        if self._begun:
            return False
        self._begun = True
        self._pools.begin(pools)
        following = self._pools.names()
        self._stale |= dict.fromkeys(following)
        if following:
            table.presume_only(serving)
            self._pools.restore(table)
        return True

    def touch(self, name: str) -> None:
        """The states of a frontend's backends, or a weight, have changed."""
        if name in self._pools or name in self._panics:
            self._stale[name] = None

    def joined(self, backend: str, frontends: Iterable[str]) -> None:
        """A backend has come up, and not by its first verdict since the start."""
        for name in frontends:
            if name in self._ramps:
                self._joined.setdefault(name, []).append(backend)

    def follow(self, table: WeightTable) -> dict[str, str]:
        """Look at what has changed or is due; returns the frontends whose weights may be others now.

        With each the mechanism that has decided something, in words.
        """
        now = self._clock.monotonic_ns()
        stale, self._stale = self._stale, {}
        joined, self._joined = self._joined, {}
        names = [*stale, *(name for name, due in self._due() if due <= now and name not in stale)]
        # The pool comes first: panic is about the pool that serves.
        changed: dict[str, str] = {}
        for name in names:
            if self._pools.follow(name, table, now):
                changed[name] = "choice of pool"
            if self._panics.follow(name, table, now):
                changed[name] = "panic" if self._panics.panicking(name) else "end of panic"
            if self._ramps.follow(name, table, now):
                changed[name] = "slow start"
        for name, backends in joined.items():
            if self._start_slowly(name, backends, table, now):
                changed[name] = "slow start"
        if names or joined:
            self._sooner.set()
        return changed

    def _start_slowly(self, name: str, backends: list[str], table: WeightTable, now: int) -> bool:
        """Backends of a frontend have come up; returns whether they start slowly."""
        if self._panics.panicking(name):
            return False
        slow = self._ramps.begin(name, backends, table, self._clock.time_ns(), now)
        if slow:
            listed = ", ".join(slow[:3]) + (f" and {len(slow) - 3} more" if len(slow) > 3 else "")
            log.info(
                "slow-start",
                f"frontend {name}: {listed} starts slowly",
                frontend=name,
                backend=slow[0],
                backends=len(slow),
            )
        return bool(slow)

    def _due(self) -> Iterator[tuple[str, int]]:
        """Frontends that change by time alone, and when."""
        yield from self._pools.due().items()
        yield from self._panics.due().items()
        yield from self._ramps.due().items()

    def due_in(self) -> int | None:
        """Nanoseconds until time alone changes something; None: nothing will."""
        now = self._clock.monotonic_ns()
        return min((max(due - now, 0) for _, due in self._due()), default=None)

    async def wait(self) -> None:
        """Wait until something is due, or until something may be due sooner."""
        self._sooner.clear()
        left = self.due_in()
        waits: list[asyncio.Future[object]] = [asyncio.ensure_future(self._sooner.wait())]
        if left is not None:
            waits.append(asyncio.ensure_future(self._clock.sleep(left / 1e9)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
