"""10,000 backends of 1,000 frontends fail together: how long until VPP is programmed?"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import replace

from bench._dataplane import Writes, config_of, plan_of_failure, rig
from bench._dataplane import run as on_loop
from bench._vpp import SOCKET
from bench.harness import Figure, LoopWatch, held
from maglev.base.states import State
from maglev.config.model import Config, LbConfig

QUESTION = "10,000 backends over 1,000 frontends fail together: last verdict to last call"
ROUNDS = 5
FRONTENDS = 1000
MEMBERS = 10
LENGTH = 16384
CALM = 5.0
"""Seconds before each failure, in which older log records are written."""
LB = LbConfig(startup_min_delay=0, startup_max_delay=0, sync_interval=3600 * 10**9)


def run() -> list[Figure]:
    """Against a stand-in that answers at once; its tables are small, so that the pace does not count.

    With VPP_SOCKET, the API socket of a VPP without VIPs, also against that, with tables as they are by default.
    """
    return on_loop(_measure)


async def _measure() -> list[Figure]:
    figures = await _failures(
        "", config_of(FRONTENDS, MEMBERS, lb=replace(LB, max_duty=1.0), new_flows_table_length=16)
    )
    plan = plan_of_failure(one := config_of(1, MEMBERS, new_flows_table_length=LENGTH), one.backends)
    stall = FRONTENDS * plan.stall_ns / 1e9
    figures += [
        Figure(f"length {LENGTH}, by the formula: time of a VPP", stall, "s"),
        Figure("  and at max-duty 50 %: last verdict to last call", stall / 0.5, "s"),
    ]
    if SOCKET:
        config = config_of(FRONTENDS, MEMBERS, lb=LB, new_flows_table_length=LENGTH)
        figures += await _failures("VPP, max-duty 50 %: ", config, SOCKET)
    return figures


async def _failures(where: str, config: Config, socket: str = "") -> list[Figure]:
    seconds, cpu, watches = [], [], []
    writes_each = messages = 0
    async with rig(config, socket) as made:
        writes = Writes(made.client)
        for _ in range(ROUNDS):
            await made.become(State.UP)
            writes.calls.clear()
            writes.counts.clear()
            await asyncio.sleep(CALM)
            with LoopWatch() as watch:
                cpu_began = time.process_time_ns()
                began = await made.become(State.DOWN)
                cpu.append((time.process_time_ns() - cpu_began) / 1e9)
            watches.append(watch)
            seconds.append((writes.last_ns - began) / 1e9)
            assert len(writes.counts) == FRONTENDS * MEMBERS, "not every backend was taken out"
            writes_each = max(writes_each, *writes.counts.values())
            messages = max(messages, len(writes.calls))
        if socket:
            await made.empty()
    return [
        Figure(f"{where}last verdict to last call", statistics.median(seconds), "s", None if socket else 0.5),
        Figure("most writes of one AS", writes_each, "calls", 1),
        Figure("messages to VPP, reads not counted", messages, "messages"),
        Figure("CPU of the daemon for it, with reading back", statistics.median(cpu), "s"),
        *held(watches),
    ]
