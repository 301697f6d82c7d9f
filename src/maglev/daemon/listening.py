"""Listeners that come up when they can: the daemon probes and drives VPP without them.

Another process may hold the port, the address may not exist yet (a boot before the interface), the key of the
certificate may be unreadable. None of that is a reason not to drive VPP. So each listener is a task of its own that
tries again, with a pause that doubles up to ``MOST_SECONDS``. The first failure is a warning, then one every
``REMIND_SECONDS`` and at each new reason; success after a failure is a record too. ``maglev_listener_up`` and
``show version`` have the present state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from maglev.base import logs
from maglev.base.clock import Clock
from maglev.rpc.listeners import CannotListen
from maglev.rpc.services import ListenerView

log = logs.get(__name__)

FIRST_SECONDS = 0.5
MOST_SECONDS = 10.0
"""Pause between two attempts."""

REMIND_SECONDS = 600.0
"""A listener that stays down for one and the same reason is logged this often."""

SHED_SECONDS = 1.0
SHED_MOST_SECONDS = 60.0
"""How long a listener stays closed that was closed for its use of memory; doubles up to the second value."""

STEADY_SECONDS = 600.0
"""A listener that was up for this long starts again with the first pause."""


@dataclass(frozen=True, slots=True)
class Place:
    """A listener: its name in metrics, its address, and how it is opened and closed.

    ``open`` raises ``CannotListen``, ``OSError`` or ``ValueError``. ``close`` None: it is never closed before the end.
    """

    name: str
    address: str
    open: Callable[[], Awaitable[None]]
    close: Callable[[], Awaitable[None]] | None = None


class Listener:
    """Keeps one place open. ``run`` is a task; ``tried`` is set after its first attempt."""

    def __init__(self, place: Place, clock: Clock) -> None:
        self._place = place
        self._clock = clock
        self._up = False
        self._problem = "not tried yet"
        self._told = ""
        self._told_ns = 0
        self._shed = asyncio.Event()
        self._shed_pause = SHED_SECONDS
        self.tried = asyncio.Event()

    @property
    def name(self) -> str:
        """Its name in metrics."""
        return self._place.name

    @property
    def up(self) -> bool:
        """Whether it is open."""
        return self._up

    def view(self) -> ListenerView:
        """As it is shown."""
        return ListenerView(self._place.name, self._place.address, self._up, "" if self._up else self._problem)

    def shed(self, problem: str) -> None:
        """Close it, to open it again after a while. Only for a place that can be closed."""
        self._problem = problem
        self._shed.set()

    async def run(self) -> None:
        """Open it, and open it again after each ``shed``."""
        pause = FIRST_SECONDS
        while True:
            try:
                await self._place.open()
            except (CannotListen, OSError, ValueError) as error:
                self._failed(str(error))
                self.tried.set()
                await self._clock.sleep(pause)
                pause = min(2 * pause, MOST_SECONDS)
                continue
            self._opened()
            self.tried.set()
            pause = FIRST_SECONDS
            await self._until_shed()

    async def _until_shed(self) -> None:
        began = self._clock.monotonic_ns()
        await self._shed.wait()
        self._shed.clear()
        if self._clock.monotonic_ns() - began > STEADY_SECONDS * 1e9:
            self._shed_pause = SHED_SECONDS
        self._up = False
        log.error(
            "listener-shed",
            f"{self._place.address} is closed for {self._shed_pause:g} s: {self._problem}",
            listener=self._place.name,
            address=self._place.address,
        )
        if self._place.close is not None:
            await self._place.close()
        await self._clock.sleep(self._shed_pause)
        self._shed_pause = min(2 * self._shed_pause, SHED_MOST_SECONDS)
        # A request to close that came while it was closed is void.
        self._shed.clear()
        self._told = self._problem

    def _failed(self, problem: str) -> None:
        self._problem = problem
        now = self._clock.monotonic_ns()
        if problem == self._told and now - self._told_ns < REMIND_SECONDS * 1e9:
            return
        self._told, self._told_ns = problem, now
        log.warning(
            "listener-down",
            f"{problem}; it is tried again until it succeeds, and everything else goes on",
            listener=self._place.name,
            address=self._place.address,
        )

    def _opened(self) -> None:
        self._up = True
        if self._told:
            log.info(
                "listener-up",
                f"{self._place.address} is listened on",
                listener=self._place.name,
                address=self._place.address,
            )
        self._told = ""
