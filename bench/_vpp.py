"""A real VPP to measure on: the one whose API socket VPP_SOCKET names. It must have no VIPs and no workers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from bench._dataplane import PATIENCE
from bench._rig import cpu_ns
from maglev.base.clock import SystemClock
from maglev.vpp.planning.plan import Step
from maglev.vpp.state.reader import StateReader
from maglev.vpp.sync.executor import Executor, Pacer
from maglev.vpp.wire.client import VppClient

SOCKET = os.environ.get("VPP_SOCKET", "")


class Vpp:
    """Calls on it take what they take: nothing is paced."""

    def __init__(self, client: VppClient, pid: int, version: str) -> None:
        self.version = version
        self.reader = StateReader(client)
        self._pid = pid
        self._executor = Executor(client, Pacer(SystemClock(), max_stall_ns=10**12, max_duty=1.0))

    def cpu_ns(self) -> int:
        """CPU time of its process so far; without workers that is the main thread's."""
        return cpu_ns(self._pid)

    async def send(self, steps: Sequence[Step]) -> float:
        """Send them, as many in flight as go; seconds of VPP's CPU. RuntimeError where VPP refuses one."""
        before = self.cpu_ns()
        outcome = await self._executor.run(
            [step._replace(cost_ns=0) for step in steps], budget_ns=1, on_done=lambda step: None
        )
        if outcome.failures:
            raise RuntimeError(outcome.failures[0])
        return (self.cpu_ns() - before) / 1e9


@asynccontextmanager
async def connected(socket: str = SOCKET) -> AsyncIterator[Vpp]:
    """The VPP at ``socket``. RuntimeError where it is not as it must be."""
    client = VppClient(socket, SystemClock())
    task = asyncio.create_task(client.run())
    try:
        async with asyncio.timeout(PATIENCE):
            while not client.usable:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        info = client.info()
        assert info is not None
        if info.workers:
            raise RuntimeError(f"the VPP at {socket} has workers, whose CPU time cannot be told from its main thread's")
        vpp = Vpp(client, info.pid, info.version.partition("-")[0])
        if await vpp.reader.vips():
            raise RuntimeError(f"the VPP at {socket} has VIPs")
        yield vpp
    finally:
        await client.close()
        await task
