"""Long work without holding the loop: a quarter of a millisecond of it, then let others run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")

# How long may be worked before the loop runs: a verdict passes through several turns of the loop on its way to VPP, and
# may be late by this at each of them, for each that works. A turn of the loop costs some 10 us.
SLICE_NS = 250_000


class Pace:
    """Counts the time of one piece of work. ``breathe`` after each item; it costs a tenth of a microsecond until it is
    time, and half of that as ``if pace.due(): await pace.rest()``.

    The clock is the machine's own and not the daemon's: this is about the CPU, which no test owns.
    """

    __slots__ = ("_end",)

    def __init__(self) -> None:
        self._end = time.monotonic_ns() + SLICE_NS

    def due(self) -> bool:
        """Whether this slice is used up."""
        return time.monotonic_ns() >= self._end

    async def rest(self) -> None:
        """Let the loop run, and begin another slice."""
        await asyncio.sleep(0)
        self._end = time.monotonic_ns() + SLICE_NS

    async def breathe(self) -> None:
        """Let the loop run if this slice is used up."""
        if self.due():
            await self.rest()


async def let_go(objects: list[object]) -> None:
    """Empty a list of objects without other users, from its end: freeing 50,000 at once takes 10 ms.

    Containers come after the objects that they hold, so that they are freed first.
    """
    pace = Pace()
    while objects:
        objects.pop()
        if pace.due():
            await pace.rest()


async def in_slices(steps: Generator[None, None, T]) -> T:
    """Drive a generator to its end, let the loop run between slices of its steps, and return its result.

    So pure code need not be a coroutine to take its time: it yields where it may be interrupted.
    """
    pace = Pace()
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: T = done.value
            return result
        if pace.due():
            await pace.rest()


def at_once(steps: Generator[None, None, T]) -> T:
    """Drive a generator to its end in one go, and return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: T = done.value
            return result
