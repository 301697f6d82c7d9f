"""The rooms of the dataplane side by side, and the lock and events by which its tasks wait for each other.

Each room owns its state and is described where it is defined. ``Rooms`` only passes them on: to the programmer, whose
plans are made of all of them, and to the tasks.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from maglev.base.clock import Clock
from maglev.events.causes import Trail
from maglev.vpp.state.adoption import Adoption
from maglev.vpp.state.agenda import Agenda
from maglev.vpp.state.announced import Announced
from maglev.vpp.state.debts import Debts
from maglev.vpp.state.kept import KeptWeights
from maglev.vpp.state.mirror import Mirror
from maglev.vpp.state.ownership import Ownership
from maglev.vpp.state.pruning import Pruning
from maglev.vpp.state.recreations import Recreations
from maglev.vpp.state.tables import Tables
from maglev.vpp.sync.counters import Counters
from maglev.vpp.sync.timetable import Timetable
from maglev.vpp.sync.verification import Verification


@dataclass(frozen=True, slots=True)
class Signals:
    """The lock and events that tasks wait on. Setting an event never waits; its task runs at the loop's next turn.

    ``lock``: the lock of the dataplane, held by every task while it reads VPP or writes to it. ``wake``: the task of
    the batches may have work. ``progress``: a piece of work has ended, so the dataplane may be quiet now.
    """

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    progress: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class Rooms:
    """The rooms whose state a plan is made of, and that an outcome changes."""

    announced: Announced
    agenda: Agenda
    mirror: Mirror
    tables: Tables
    debts: Debts
    adoption: Adoption
    recreations: Recreations
    ownership: Ownership
    pruning: Pruning
    kept: KeptWeights
    verification: Verification
    timetable: Timetable
    counters: Counters
    trail: Trail
    signals: Signals

    def request_full_sync(self, reason: str) -> None:
        """A full sync is due at once; ``reason`` is for the log."""
        self.timetable.ask(reason)
        self.signals.wake.set()


async def wait_for(event: asyncio.Event, seconds: float, clock: Clock) -> None:
    """Wait for an event, but no longer than that by ``clock``."""
    waiting = asyncio.ensure_future(event.wait())
    sleeping = asyncio.ensure_future(clock.sleep(seconds))
    try:
        await asyncio.wait([waiting, sleeping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        # Not awaited: a cancellation of this task that arrives meanwhile would be taken for theirs, and lost.
        waiting.cancel()
        sleeping.cancel()
