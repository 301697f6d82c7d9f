"""10,000 backends of 1,000 frontends fail together: how long until VPP has been told?"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter

from bench._dataplane import Writes, config_of, rig
from bench._dataplane import run as on_loop
from bench.harness import Figure
from maglev.config.model import LbConfig
from maglev.states import State

QUESTION = "10,000 backends over 1,000 frontends fail together: last verdict to last call"
ROUNDS = 5


def run() -> list[Figure]:
    """Against a stand-in that answers at once; its tables are small, so that the pace does not count."""
    return on_loop(_measure)


async def _measure() -> list[Figure]:
    lb = LbConfig(startup_min_delay=0, startup_max_delay=0, max_duty=1.0, sync_interval=3600 * 10**9)
    seconds, blocked, worked, cpu = [], [], [], []
    writes_each = 0
    async with rig(config_of(1000, 10, lb=lb, new_flows_table_length=16)) as made:
        writes = Writes(made.client)
        for _ in range(ROUNDS):
            made.engine.all_become(State.UP)
            while made.engine.waiting:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
            await made.settled()
            writes.calls.clear()
            made.watch.start()
            began, cpu_began = time.monotonic_ns(), time.process_time_ns()
            made.engine.all_become(State.DOWN)
            while len(writes.calls) < 10_000:  # noqa: ASYNC110 - what it waits for is many events
                await asyncio.sleep(0.002)
            await made.settled()
            made.watch.stop()
            seconds.append((writes.last_ns - began) / 1e9)
            cpu.append((time.process_time_ns() - cpu_began) / 1e9)
            blocked.append(made.watch.worst_ns / 1e6)
            worked.append(made.watch.worst_cpu_ns / 1e6)
            counts = Counter((call.weight.vip, call.weight.address) for call in writes.calls if call.weight is not None)
            writes_each = max(writes_each, *counts.values())
    return [
        Figure("last verdict to last call", statistics.median(seconds), "s", 0.5),
        Figure("most writes of one AS", writes_each, "calls", 1),
        Figure("CPU of the daemon for it", statistics.median(cpu), "s"),
        Figure("event loop held at most", statistics.median(blocked), "ms", 20),
        Figure("of which the loop itself worked", statistics.median(worked), "ms"),
    ]
