"""Listeners that are tried again, and the guard of the memory that callers use; time is the test's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from maglev.daemon import memory
from maglev.daemon.listening import MOST_SECONDS, SHED_SECONDS, Listener, Place
from maglev.daemon.memory import BUDGET, LOOK_SECONDS, QUIET_SECONDS, MemoryGuard
from maglev.rpc.listeners import CannotListen
from tests.helpers.checker import FakeClock

MIB = 1 << 20


class Port:
    """A port that opens when the test lets it."""

    def __init__(self, *, free: bool = True) -> None:
        self.free = free
        self.opened = self.closed = self.tried = 0

    async def open(self) -> None:
        self.tried += 1
        if not self.free:
            raise CannotListen("it is taken")
        self.opened += 1

    async def close(self) -> None:
        self.closed += 1


async def turns() -> None:
    """Let every task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


@asynccontextmanager
async def listening(port: Port, clock: FakeClock) -> AsyncIterator[Listener]:
    listener = Listener(Place("grpc-tcp", "127.0.0.1:9090", port.open, port.close), clock)
    task = asyncio.create_task(listener.run())
    await turns()
    try:
        yield listener
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_port_that_is_taken_is_tried_again_ever_more_seldom() -> None:
    port, clock = Port(free=False), FakeClock()
    async with listening(port, clock) as listener:
        assert listener.tried.is_set()
        assert not listener.up
        assert listener.view().problem == "it is taken"
        for pause, tried in ((0.5, 2), (1.0, 3), (2.0, 4), (4.0, 5), (8.0, 6), (MOST_SECONDS, 7), (MOST_SECONDS, 8)):
            clock.advance(pause)
            await turns()
            assert port.tried == tried
        port.free = True
        clock.advance(MOST_SECONDS)
        await turns()
        assert listener.up
        assert listener.view().problem == ""
        assert port.opened == 1


async def test_a_listener_that_is_shed_is_closed_and_opens_again_after_a_pause_that_doubles() -> None:
    port, clock = Port(), FakeClock()
    async with listening(port, clock) as listener:
        for pause in (SHED_SECONDS, 2 * SHED_SECONDS, 4 * SHED_SECONDS):
            opened = port.opened
            listener.shed("memory")
            await turns()
            assert not listener.up
            assert listener.view().problem == "memory"
            clock.advance(pause - 0.01)
            await turns()
            assert port.opened == opened
            clock.advance(0.01)
            await turns()
            assert (port.opened, listener.up) == (opened + 1, True)
        assert port.closed == 3


class Guarded:
    """A guard over a listener, and the memory that the test says is in use."""

    def __init__(self, listener: Listener, clock: FakeClock) -> None:
        self.used = 100 * MIB
        self.clock = clock
        self.guard = MemoryGuard(listener, clock, read=lambda: self.used)

    def after(self, seconds: float, used: int) -> bool:
        """Whether the guard closes the listener at a look after so long, with so much in use."""
        self.clock.advance(seconds)
        self.used = used
        return self.guard.look()


async def test_growth_beyond_the_budget_closes_the_listener_once() -> None:
    clock = FakeClock()
    async with listening(port := Port(), clock) as listener:
        one = Guarded(listener, clock)
        assert not one.after(LOOK_SECONDS, 100 * MIB + BUDGET)
        assert one.after(LOOK_SECONDS, 101 * MIB + BUDGET)
        await turns()
        assert port.closed == 1
        assert not one.after(LOOK_SECONDS, 4 * BUDGET), "it is closed already"


async def test_memory_that_stays_in_use_closes_the_listener_after_an_interval() -> None:
    clock = FakeClock()
    async with listening(Port(), clock) as listener:
        one = Guarded(listener, clock)
        more = 101 * MIB + BUDGET // 4
        assert not one.after(QUIET_SECONDS, more), "it was less in this interval"
        assert one.after(QUIET_SECONDS, more)


async def test_a_level_that_rises_a_little_is_the_new_quiet_level() -> None:
    clock = FakeClock()
    async with listening(Port(), clock) as listener:
        one = Guarded(listener, clock)
        level = 100 * MIB
        for _ in range(10):
            level += 30 * MIB
            assert not one.after(1, level)
            assert not one.after(QUIET_SECONDS, level)
            assert not one.after(QUIET_SECONDS, level)


async def test_what_is_in_use_while_the_listener_is_closed_is_the_quiet_level(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "give_back", lambda: None)
    clock = FakeClock()
    async with listening(Port(), clock) as listener:
        one = Guarded(listener, clock)
        task = asyncio.create_task(one.guard.run())
        await turns()
        one.used = 100 * MIB + 2 * BUDGET
        clock.advance(LOOK_SECONDS)
        await turns()
        assert not listener.up
        one.used = 50 * MIB + BUDGET
        for _ in range(memory.RETURNS):
            clock.advance(memory.RETURN_SECONDS)
            await asyncio.sleep(0.05)  # a thread answers
        clock.advance(1)
        await turns()
        assert listener.up
        assert not one.after(LOOK_SECONDS, 50 * MIB + 2 * BUDGET)
        assert one.after(LOOK_SECONDS, 51 * MIB + 2 * BUDGET)
        task.cancel()
        await asyncio.wait([task])
