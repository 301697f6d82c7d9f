"""How calls share costly work: one at a time, one run for many callers, or to its end although the caller is gone.

Everything here runs on the event loop. The locks are queues for callers, not guards against threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

from maglev.base.errors import Unavailable
from maglev.rpc.access import Role
from maglev.rpc.status import TooMany

T = TypeVar("T")

MAX_WAITING = 16
"""Callers of one role that may wait for one kind of work."""

CALL_SECONDS = 120.0
"""The longest wait for a child process or for VPP, whatever the caller's own deadline is."""


async def bounded(work: Awaitable[T]) -> T:
    """Wait for ``work``, at most ``CALL_SECONDS``. Raises ``Unavailable`` after that."""
    try:
        async with asyncio.timeout(CALL_SECONDS):
            return await work
    except TimeoutError:
        raise Unavailable(f"no answer within {CALL_SECONDS:.0f} s") from None


class Turnstile:
    """Admits one caller at a time; a limited number of each role waits. Raises ``TooMany`` for the others.

    Operators and viewers wait in queues of their own and alternate, so that any number of viewers delays an operator by
    two turns at most.
    """

    def __init__(self, what: str, most: int = MAX_WAITING) -> None:
        self._what = what
        self._most = most
        self._waiting = dict.fromkeys(Role, 0)
        # A caller holds the lane of its role while it waits for the lock. So at most one caller of each role waits for
        # the lock, and asyncio's locks are fair: the roles alternate.
        self._lanes = {role: asyncio.Lock() for role in Role}
        self._lock = asyncio.Lock()

    async def run(self, role: Role, work: Callable[[], Awaitable[T]]) -> T:
        """Wait for the turn of a caller of that role, then for ``work()``."""
        if self._waiting[role] >= self._most:
            raise TooMany(f"{self._most} callers wait for {self._what} already")
        self._waiting[role] += 1
        try:
            async with self._lanes[role], self._lock:
                return await work()
        finally:
            self._waiting[role] -= 1


class Shared(Generic[T]):
    """One run at a time for any number of callers. A caller that comes during a run shares the next run with others.

    So each caller gets an answer that was begun after its request, and a thousand callers cost no more than two runs.
    """

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self._work = work
        self._running: asyncio.Future[T] | None = None
        self._next: asyncio.Future[T] | None = None

    async def run(self) -> T:
        """Wait for the next run."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._run(self._running))
            # The run goes on when its callers go away. Fetching its error keeps asyncio from logging it as lost.
            self._next.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(self._next)

    async def _run(self, before: asyncio.Future[T] | None) -> T:
        if before is not None:
            await asyncio.wait((before,))
        self._running, self._next = self._next, None
        return await self._work()

    def cancel(self) -> None:
        """End the current run and the next one."""
        for run in (self._running, self._next):
            if run is not None:
                run.cancel()


class Changes:
    """Changes that were begun. A change goes on when its caller goes away: half a reload helps no one."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Begin a change and wait for its end, at most ``CALL_SECONDS``: then ``Unavailable``, and it goes on."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await bounded(asyncio.shield(task))

    async def settle(self, seconds: float) -> None:
        """Wait that long for the changes that were begun, and cancel those that are not done then."""
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=seconds)
            for task in late:
                task.cancel()
