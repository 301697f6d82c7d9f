"""Warm-up: a restart of the daemon must not disturb traffic.

From start to ``startup-min-delay`` nothing is written. Then a frontend is released as soon as none of its backends is
unknown, and at ``startup-max-delay`` the rest is; a backend that had no verdict by then keeps the weight that VPP has.
The delays count from the start of the process: a reload or a new connection does not begin them again.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Container, Iterable
from collections.abc import Set as AbstractSet

from maglev.base.clock import Clock
from maglev.base.states import State
from maglev.config.model import Frontend


class Phase(enum.Enum):
    """Where the warm-up stands."""

    SILENT = "silent"
    RELEASING = "releasing"
    DONE = "done"


class WarmUp:
    """Which frontends may be written to, and which backends still have had no verdict.

    ``started_ns`` is the clock's monotonic time at the start of the process.
    """

    def __init__(self, clock: Clock, *, min_delay_ns: int, max_delay_ns: int, started_ns: int | None = None) -> None:
        self._clock = clock
        self._start = clock.monotonic_ns() if started_ns is None else started_ns
        self._min = min_delay_ns
        self._max = max(min_delay_ns, max_delay_ns)
        self._released: set[str] = set()
        self._unresolved: set[str] = set()
        self._inherited: set[str] = set()  # those of them that a reload brought

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
    def unresolved(self) -> AbstractSet[str]:
        """Backends without a verdict since the start, or since a reload gave an old server a new name."""
        return self._unresolved

    def begin(self, names: Iterable[str], state_of: Callable[[str], State]) -> None:
        """The first configuration is in force: no verdict yet, but for backends that have one already."""
        self._unresolved.update(name for name in names if state_of(name) is State.UNKNOWN)

    def inherit(self, names: Iterable[str], state_of: Callable[[str], State]) -> None:
        """A reload put these backends where VPP sends traffic to already: until their first verdict that stays."""
        for name in names:
            if name not in self._unresolved and state_of(name) is State.UNKNOWN:
                self._unresolved.add(name)
                self._inherited.add(name)

    def resolved(self, name: str) -> bool:
        """A backend left ``unknown``. True if that was the first thing known of it since the start."""
        if name not in self._unresolved:
            return False
        self._unresolved.discard(name)
        if name in self._inherited:
            self._inherited.discard(name)
            return False
        return True

    def forget(self, configured: Container[str]) -> None:
        """Forget backends that a reload has taken away."""
        gone = [name for name in self._unresolved if name not in configured]
        self._unresolved.difference_update(gone)
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
