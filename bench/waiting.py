"""The work of the dataplane for one frontend: it must not grow with the number of frontends that wait."""

from __future__ import annotations

import statistics
import time

from bench._dataplane import config_of, rig
from bench._dataplane import run as on_loop
from bench.harness import Figure
from maglev.base.events import DrainEvent
from maglev.base.states import State
from maglev.config.model import LbConfig

QUESTION = "Does the work for a frontend grow with the number of frontends that wait? (target 27)"
ROUNDS = 5
COUNTS = (1_000, 5_000, 20_000)
LB = LbConfig(startup_min_delay=0, startup_max_delay=0, sync_interval=3600 * 10**9, max_duty=1.0)


def run() -> list[Figure]:
    """Frontends of one server each, all marked at once, with nothing to write: what is left is the work of choosing."""
    return on_loop(_measure)


async def _measure() -> list[Figure]:
    figures, each = [], []
    for count in COUNTS:
        each.append(await _each(count))
        figures.append(Figure(f"{count} frontends wait: CPU for one of them", each[-1], "us"))
    figures.append(Figure(f"  {COUNTS[-1]} against {COUNTS[0]}", each[-1] / each[0], "x", 1.0))
    return figures


async def _each(count: int) -> float:
    """Microseconds of the daemon for one frontend, median."""
    spent = []
    async with rig(config_of(count, 1, lb=LB, new_flows_table_length=16)) as made:
        await made.become(State.UP)
        events = [
            DrainEvent(backend.name, str(backend.address), State.UP, True, time.time_ns(), "bench", "")
            for backend in made.checker.config().backends.values()
        ]
        for _ in range(ROUNDS):
            began = time.thread_time_ns()
            for event in events:
                made.bus.publish(event)
            await made.settled()
            spent.append((time.thread_time_ns() - began) / 1000 / count)
    return statistics.median(spent)
