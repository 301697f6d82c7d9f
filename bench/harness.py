"""What every benchmark uses: a question, its figures, and how they are taken.

A question is a module of this directory with ``QUESTION`` (one line) and ``run() -> list[Figure]``. Figures are
medians; what is compared is measured alternately in one run, so that a slow minute of the machine hits both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

ROUNDS = 7


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value. ``target``: what it should be at most, None where nobody has set one."""

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
