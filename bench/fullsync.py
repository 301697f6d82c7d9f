"""A full sync of 1,000 frontends and 50,000 ASes that finds nothing to do."""

from __future__ import annotations

import statistics
import time

from bench._dataplane import config_of, rig
from bench._dataplane import run as on_loop
from bench.harness import Figure, LoopWatch, held
from maglev.config.model import LbConfig
from maglev.vpp.planning.cost import CostModel

QUESTION = "sync of 1,000 frontends and 50,000 ASes with nothing to do"
ROUNDS = 5


def run() -> list[Figure]:
    """The event loop, VPP's longest stall by one read (estimated, as measured on a real one), and how long it takes."""
    return on_loop(_measure)


async def _measure() -> list[Figure]:
    lb = LbConfig(startup_min_delay=0, startup_max_delay=0, sync_interval=3600 * 10**9)
    seconds, cpu, watches = [], [], []
    async with rig(config_of(1000, 50, lb=lb, new_flows_table_length=16384)) as made:
        for _ in range(ROUNDS):
            with LoopWatch() as watch:
                began, cpu_began = time.monotonic(), time.thread_time()
                result = await made.reconciler.sync_all()
                seconds.append(time.monotonic() - began)
                cpu.append(time.thread_time() - cpu_began)
            assert not result.done, "there was something to do"
            watches.append(watch)
    read = CostModel().read(65536, 50)
    return [
        *held(watches),
        Figure("longest read of VPP, length 65536, by the formula", read / 1e6, "ms", lb.max_stall / 1e6),
        Figure("duration", statistics.median(seconds), "s", 30 / 4),
        Figure("CPU of the daemon for it", statistics.median(cpu), "s"),
    ]
