"""Time as a thing that is passed in, so that tests own it."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Time as the shell needs it. Scheduling uses ``monotonic_ns``, records use ``time_ns``."""

    def monotonic_ns(self) -> int:
        """Nanoseconds since some fixed moment; never goes back (CLOCK_MONOTONIC)."""
        ...

    def time_ns(self) -> int:
        """Wall clock, nanoseconds since the epoch; may jump."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class Moments:
    """Moments of the past by the wall clock as it is now.

    A value that lasts is kept as a time of the monotonic clock (``mark``) and becomes a moment of the wall clock when
    it is shown (``shown``), so the span from then to now is right although the wall clock was set in between. The
    distance of the two clocks is replaced only when it has changed: two answers about one time are the same number.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset = clock.time_ns() - clock.monotonic_ns()

    def offset(self) -> int:
        """The wall clock less the monotonic one, in nanoseconds."""
        before = self._clock.monotonic_ns()
        wall = self._clock.time_ns()
        after = self._clock.monotonic_ns()
        # It lies between the two, however long this thread did not run in between.
        if not wall - after <= self._offset <= wall - before:
            self._offset = wall - before
        return self._offset

    def now(self) -> int:
        """The wall clock."""
        return self._clock.time_ns()

    def mark(self, at_ns: int) -> int:
        """The monotonic time of a moment that has just been; none is later than now."""
        return min(at_ns - self.offset(), self._clock.monotonic_ns())

    def shown(self, monotonic_ns: int) -> int:
        """The moment of a monotonic time, by the wall clock as it is now."""
        return monotonic_ns + self.offset()


class SystemClock:
    """The machine's clocks."""

    def monotonic_ns(self) -> int:
        """CLOCK_MONOTONIC in nanoseconds."""
        return time.monotonic_ns()

    def time_ns(self) -> int:
        """CLOCK_REALTIME in nanoseconds."""
        return time.time_ns()

    async def sleep(self, seconds: float) -> None:
        """``asyncio.sleep``."""
        await asyncio.sleep(seconds)
