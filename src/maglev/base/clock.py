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
