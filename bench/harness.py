"""The common parts of all benchmarks: a question, its figures, and how they are taken.

A question is a module of this directory with ``QUESTION`` (one line) and ``run() -> list[Figure]``. Figures are
medians; what is compared is measured alternately in one run, so that a slow minute of the machine hits both.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

ROUNDS = 7


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value. ``target``: the most it should be, None without a target."""

    what: str
    value: float
    unit: str
    target: float | None = None

    @property
    def verdict(self) -> str:
        """Whether the target is met, in a word."""
        if self.target is None:
            return ""
        return "met" if self.value <= self.target else "missed"


def cpu_ms(contenders: Mapping[str, Callable[[], object]], *, repeat: int = 1) -> dict[str, float]:
    """CPU milliseconds (user and system) of one call of each contender: medians over alternating rounds.

    ``repeat`` calls are measured as one where a single call is too short for the clock.
    """
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        call()
    for _ in range(ROUNDS):
        for name, call in contenders.items():
            began = time.process_time_ns()
            for _ in range(repeat):
                call()
            taken[name].append((time.process_time_ns() - began) / repeat / 1e6)
    return {name: statistics.median(values) for name, values in taken.items()}


class LoopWatch:
    """For how long the event loop came to nothing else at most, while in a ``with`` block on the loop's thread.

    A timer is due each millisecond. ``worst_ns``: the longest delay by the clock. ``worst_own_ns``: the longest without
    the time in which the loop's thread could have run and the machine ran something else instead, as the kernel's
    scheduler counts it. The first is what users of a busy machine see; the second is the program's own doing.
    """

    EVERY_NS = 1_000_000

    def __init__(self) -> None:
        self.worst_ns = self.worst_own_ns = 0

    def __enter__(self) -> Self:
        self.worst_ns = self.worst_own_ns = 0
        self._schedstat = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)
        self._timer = asyncio.get_running_loop().call_soon(self._turn, time.monotonic_ns(), self._waited_ns())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        os.close(self._schedstat)

    def _waited_ns(self) -> int:
        """Nanoseconds for which this thread has been ready to run without a processor."""
        return int(os.pread(self._schedstat, 64, 0).split()[1])

    def _turn(self, due: int, waited_before: int) -> None:
        now, waited = time.monotonic_ns(), self._waited_ns()
        self.worst_ns = max(self.worst_ns, now - due)
        self.worst_own_ns = max(self.worst_own_ns, now - due - (waited - waited_before))
        self._timer = asyncio.get_running_loop().call_later(
            self.EVERY_NS / 1e9, self._turn, now + self.EVERY_NS, waited
        )


def held(watches: Sequence[LoopWatch]) -> list[Figure]:
    """Medians of several rounds of a watch."""
    return [
        Figure("event loop held at most", statistics.median(one.worst_ns for one in watches) / 1e6, "ms", 20),
        Figure("  not waiting for a CPU", statistics.median(one.worst_own_ns for one in watches) / 1e6, "ms", 20),
    ]
