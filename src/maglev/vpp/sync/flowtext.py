"""Reads how many flows each AS has, when an operator asks. No task reads it: VPP has no cheap way to say.

Only ``show lb vips verbose`` has the numbers. It prints every AS of every VIP, and VPP does nothing else meanwhile:
about 90 ms with 50,000 ASes. So one reading is made at a time, when the pacer admits it, and is counted as work; it
serves other callers for some seconds; and where it would take VPP too long it is refused.

The number is that of entries in VPP's sticky table. An entry goes when another flow takes its place or when the AS is
flushed, not when its flow ends: time-outs do not lower the number. So it is an upper bound, and only 0 says something
for certain: VPP sends this AS no packet any more.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from maglev.base.clock import Clock
from maglev.base.errors import NotAllowed
from maglev.vpp.state.reader import StateReader
from maglev.vpp.sync.executor import Pacer
from maglev.vpp.sync.readback import Readback
from maglev.vpp.sync.rooms import Rooms
from maglev.vpp.wire.client import VppClient

AGE_NS = 5 * 1_000_000_000
"""How long a reading serves further callers, who may ask about other backends."""

MOST_STALL_NS = 200_000_000
"""A reading that would stop VPP for longer, by estimate, is refused."""


class FlowText(NamedTuple):
    """The output of the command. ``at_ns``: wall clock; ``stall_ns``: how long it stopped VPP, by estimate."""

    text: str
    at_ns: int
    stall_ns: int


class FlowTexts:
    """Makes readings, one at a time, and keeps the last one for some seconds."""

    def __init__(self, client: VppClient, rooms: Rooms, readback: Readback, pacer: Pacer, clock: Clock) -> None:
        self._client = client
        self._rooms = rooms
        self._readback = readback
        self._pacer = pacer
        self._clock = clock
        self._reader = StateReader(client)
        self._one = asyncio.Lock()
        self._last: FlowText | None = None
        self._until_ns = 0

    async def read(self) -> FlowText:
        """A reading, at most some seconds old. Raises ``Unavailable``, and ``NotAllowed`` if it costs VPP too much."""
        async with self._one:
            if self._last is not None and self._clock.monotonic_ns() < self._until_ns:
                return self._last
            self._last = None
            async with self._rooms.signals.lock:
                self._last = await self._read()
            self._until_ns = self._clock.monotonic_ns() + AGE_NS
            # Megabytes at scale: not kept longer than they are of use.
            asyncio.get_running_loop().call_later(AGE_NS / 1e9, self._forget)
            return self._last

    async def _read(self) -> FlowText:
        vips = self._rooms.mirror.demand().vips.values()
        cost = self._readback.cost().print_all(len(vips), sum(len(vip.ases) + vip.lingering for vip in vips))
        if cost > MOST_STALL_NS:
            raise NotAllowed(
                f"VPP prints all of its ASes for that, and would forward nothing for about {cost / 1e6:.0f} ms;"
                f" {MOST_STALL_NS / 1e6:.0f} ms are the limit"
            )
        connects = self._client.connects
        await self._pacer.turn()
        self._client.still_connected(connects)
        self._pacer.start(cost)
        text = await self._reader.verbose_text()
        return FlowText(text, self._clock.time_ns(), cost)

    def _forget(self) -> None:
        if self._clock.monotonic_ns() >= self._until_ns:
            self._last = None
