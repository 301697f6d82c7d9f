"""Warm-up: a restart of the daemon must not disturb traffic.

From start to ``startup-min-delay`` nothing is written. Then a frontend is released as soon as none of its backends is
unknown, and at ``startup-max-delay`` the rest is; a backend that had no verdict by then keeps the weight that VPP has.
The delays count from the start of the process: a reload or a new connection does not begin them again.

**First verdicts are awaited** for as long as the warm-up lasts, for a minute at least, and for twice the time that the
slowest check of the file takes. Panic goes by that (``maglev.judgement.panic``): while the first verdict of a server is
awaited, that server could turn out to be down. A server whose probes never leave this host has no verdict for days, and
nothing may wait for it that long. It keeps the weight that VPP has, however long that takes. A server that a reload
brought is awaited for the same time from then on.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Container, Iterable
from collections.abc import Set as AbstractSet

from maglev.base.clock import Clock
from maglev.base.states import State
from maglev.config.model import Frontend, HealthCheck

LEAST_PATIENCE_NS = 5 * 1_000_000_000
"""The least time that a VPP is given to be read for the first time."""

LEAST_VERDICT_NS = 60 * 1_000_000_000
"""The least time that a server is given to have its first verdict."""


def verdict_ns(checks: Iterable[HealthCheck]) -> int:
    """Twice the time that the slowest of these checks takes to find a server down that is presumed good.

    The first probe is spread over an interval, and ``fall`` failures follow at fast-interval.
    """
    return max((2 * (check.fall + 1) * check.fast_interval for check in checks), default=0)


class Phase(enum.Enum):
    """Where the warm-up stands."""

    SILENT = "silent"
    RELEASING = "releasing"
    DONE = "done"


class WarmUp:
    """Which frontends may be written to, and which backends still have had no verdict.

    ``started_ns`` is the clock's monotonic time at the start of the process. ``verdict_ns``: how long a first verdict
    is awaited at least.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        min_delay_ns: int,
        max_delay_ns: int,
        verdict_ns: int = 0,
        started_ns: int | None = None,
    ) -> None:
        self._clock = clock
        self._start = clock.monotonic_ns() if started_ns is None else started_ns
        self._min = min_delay_ns
        self._max = max(min_delay_ns, max_delay_ns)
        self._verdict = max(self._max, verdict_ns, LEAST_VERDICT_NS)
        self._released: set[str] = set()
        self._unresolved: set[str] = set()
        self._inherited: set[str] = set()  # those of them that a reload brought
        # Those of them whose first verdict is awaited, and until when; the earliest end first.
        self._awaited: dict[str, int] = {}

    @property
    def phase(self) -> Phase:
        """The phase at this moment."""
        elapsed = self._clock.monotonic_ns() - self._start
        if elapsed >= self._max:
            return Phase.DONE
        return Phase.SILENT if elapsed < self._min else Phase.RELEASING

    @property
    def remaining_ns(self) -> int:
        """Until everything is released."""
        return max(0, self._start + self._max - self._clock.monotonic_ns())

    @property
    def next_change_ns(self) -> int:
        """Until the next phase begins; 0 when there is none."""
        elapsed = self._clock.monotonic_ns() - self._start
        if elapsed < self._min:
            return self._min - elapsed
        return max(0, self._max - elapsed)

    @property
    def patience_ns(self) -> int:
        """How much longer to wait for what a start has to learn. Delays of 0 end the delays, not the adoption."""
        return max(0, self._start + max(self._max, LEAST_PATIENCE_NS) - self._clock.monotonic_ns())

    @property
    def unresolved(self) -> AbstractSet[str]:
        """Backends without a verdict since the start, or since a reload gave an old server a new name."""
        return self._unresolved

    @property
    def awaited(self) -> AbstractSet[str]:
        """Those of them whose first verdict is still awaited."""
        return self._awaited.keys()

    def begin(self, names: Iterable[str], state_of: Callable[[str], State]) -> None:
        """The first configuration is in force: no verdict yet, but for backends that have one already."""
        self._unresolved.update(name for name in names if state_of(name) is State.UNKNOWN)
        self._await(self._unresolved, self._start)

    def inherit(self, names: Iterable[str], state_of: Callable[[str], State]) -> None:
        """A reload put these backends where VPP sends traffic to already: until their first verdict that stays."""
        new = [name for name in names if name not in self._unresolved and state_of(name) is State.UNKNOWN]
        self._unresolved.update(new)
        self._inherited.update(new)
        self._await(new, self._clock.monotonic_ns())

    def _await(self, names: Iterable[str], since_ns: int) -> None:
        """Await the first verdicts of these backends from now on. Later calls have later ends."""
        self._awaited.update(dict.fromkeys(names, since_ns + self._verdict))

    @property
    def awaits_ns(self) -> int | None:
        """Until a first verdict is awaited no longer; None: none is awaited."""
        until = next(iter(self._awaited.values()), None)
        return None if until is None else max(0, until - self._clock.monotonic_ns())

    def give_up(self, most: int) -> Iterable[str]:
        """Await the first verdict of up to ``most`` backends no longer, those whose time is over; returns them."""
        given_up: list[str] = []
        while len(given_up) < most and self.awaits_ns == 0:
            name = next(iter(self._awaited))
            del self._awaited[name]
            given_up.append(name)
        return given_up

    def new(self, name: str) -> bool:
        """Whether nothing is known of a backend since the start."""
        return name in self._unresolved and name not in self._inherited

    def resolved(self, name: str) -> bool:
        """A backend left ``unknown``. True if that was the first thing known of it since the start."""
        if name not in self._unresolved:
            return False
        self._unresolved.discard(name)
        self._awaited.pop(name, None)
        if name in self._inherited:
            self._inherited.discard(name)
            return False
        return True

    def forget(self, configured: Container[str]) -> None:
        """Forget backends that a reload has taken away."""
        gone = [name for name in self._unresolved if name not in configured]
        self._unresolved.difference_update(gone)
        for name in gone:
            self._awaited.pop(name, None)
        self._inherited.difference_update(gone)

    def released(self, frontend: Frontend, state_for: Callable[[str, str], State]) -> bool:
        """Whether this frontend may be written to. ``state_for``: the state by which a frontend's member is judged."""
        phase = self.phase
        if phase is Phase.DONE or frontend.name in self._released:
            return True
        if phase is Phase.SILENT:
            return False
        for pool in frontend.pools:
            for member in pool.members:
                if state_for(frontend.name, member.backend) is State.UNKNOWN:
                    return False
        return True

    def release(self, name: str) -> None:
        """A frontend is being written to. From now on it may be, whatever is unknown later."""
        if self.phase is not Phase.DONE:
            self._released.add(name)
