"""The task that brings verdicts to VPP: it programs dirty frontends, and reads VIPs back while none is dirty.

One batch: choose and take frontends (``agenda``), read VIPs again that are in doubt (``readback``), program
(``programmer``). The task holds the lock of the dataplane for the whole batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from maglev.base import logs
from maglev.base.clock import Clock
from maglev.base.pace import Pace
from maglev.vpp.planning.buckets import differing
from maglev.vpp.planning.model import ActualVip, address_order
from maglev.vpp.state.agenda import Admission, Choice
from maglev.vpp.state.announced import Before
from maglev.vpp.sync.guard import Guard
from maglev.vpp.sync.programmer import Extent, Programmer
from maglev.vpp.sync.readback import Readback
from maglev.vpp.sync.reloads import Reloads
from maglev.vpp.sync.rooms import Rooms
from maglev.vpp.wire.client import VppClient
from maglev.vpp.wire.messages import address_text

log = logs.get(__name__)

NOTHING = Choice((), ())
ONE = Extent()


class Batches:
    """Programs dirty frontends. Owns no state: ``Rooms`` has it."""

    def __init__(
        self,
        client: VppClient,
        rooms: Rooms,
        programmer: Programmer,
        readback: Readback,
        reloads: Reloads,
        guard: Guard,
        clock: Clock,
    ) -> None:
        self._client = client
        self._rooms = rooms
        self._programmer = programmer
        self._readback = readback
        self._reloads = reloads
        self._guard = guard
        self._clock = clock

    async def run(self) -> None:
        """Program dirty frontends whenever an event wakes this task, until cancelled."""
        signals, verification = self._rooms.signals, self._rooms.verification
        while True:
            await signals.wake.wait()
            signals.wake.clear()
            self._reloads.heed()
            while self._take_stock():
                async with signals.lock:
                    whole = await self._guard.whole(self._batch())
                if not whole:
                    break
                # A batch without calls does not wait for anything: the loop must have a turn all the same.
                await asyncio.sleep(0)
            while verification.due and not self.choice().names:
                async with signals.lock:
                    whole = await self._guard.whole(self._verify())
                if not whole:
                    break
                if self.choice().names:
                    # The reading has confirmed commands, and a flush that they owe is due now.
                    signals.wake.set()
            signals.progress.set()

    # -------------------------------------------------------------------------------------------------- what comes next

    def choice(self, urgent: Iterable[str] = ()) -> Choice:
        """The frontends that a batch would program now, ``urgent`` ones first. Changes nothing."""
        rooms = self._rooms
        if not rooms.agenda.waiting or not self._writable:
            return NOTHING
        source = rooms.announced.source
        frontends = source.config().frontends
        before = source if isinstance(source, Before) else None

        def admission(name: str) -> Admission:
            if before is not None and (name not in frontends or before.waits(frontends[name])):
                return Admission.LATER
            if source.unsettled(name):
                return Admission.LATER
            return Admission.ADMITTED if self.released(name) else Admission.HELD

        def members(name: str) -> int:
            return sum(len(pool.members) for pool in frontends[name].pools)

        return rooms.agenda.choose(urgent, admission, members)

    def released(self, name: str) -> bool:
        """Whether the warm-up lets this frontend be written to."""
        announced = self._rooms.announced
        config = announced.current.config if announced.begun else announced.in_force
        frontend = config.frontends.get(name)
        return frontend is not None and self._rooms.adoption.warmup.released(frontend, announced.state_for)

    @property
    def _writable(self) -> bool:
        """Whether batches may write to VPP at all. Its settings come first: see ``fullsync``."""
        mirror = self._rooms.mirror
        known = self._client.usable and mirror.actual is not None and mirror.primed
        return known and self._rooms.announced.begun and not self._rooms.adoption.silent

    def _take_stock(self) -> bool:
        """Park frontends that the warm-up holds; returns whether any other can be programmed now."""
        choice = self.choice()
        if choice.held:
            self._rooms.agenda.park(choice.held)
            self._rooms.counters.suppressed += len(choice.held)
        for name in choice.held:
            log.debug("vpp-sync-suppressed", f"sync of frontend {name} suppressed by the warm-up", frontend=name)
        return bool(choice.names)

    async def _sort(self) -> None:
        """Tell the agenda which dirty frontends are served, where that may have changed since the last batch."""
        rooms, pace = self._rooms, Pace()
        agenda, mirror, names = rooms.agenda, rooms.mirror, rooms.announced.current.names
        moved = mirror.take_moved()
        if moved is None:
            agenda.doubt_all()
        else:
            agenda.doubt(names[key] for key in moved if key in names)
        # Events mark frontends while this task rests. A reload brings other keys then, and doubts all frontends again.
        while doubtful := agenda.take_doubtful():
            for name in doubtful:
                agenda.sort(name, served=mirror.serves(rooms.announced.current.keys.get(name)))
                await pace.breathe()

    # ----------------------------------------------------------------------------------------------------------- work

    async def _batch(self) -> None:
        """Program the newest state of the dirty frontends, as many as one batch may hold."""
        rooms = self._rooms
        await self._sort()
        urgent = rooms.agenda.overtaking()
        names = self.choice(urgent).names
        if not names:
            return
        batch = rooms.agenda.take(names, urgent)
        try:
            for name in names:
                rooms.adoption.warmup.release(name)
            keys = rooms.announced.current.keys
            await self._readback.doubtful(keys[name] for name in names if name in keys)
            rooms.counters.batches += 1
            await self._programmer.apply(names, ONE, first=batch.first)
        except BaseException:
            rooms.agenda.again(names)
            raise
        rooms.agenda.done(batch)

    async def _verify(self) -> None:
        """Read one VIP back that was written."""
        rooms = self._rooms
        rooms.mirror.demand()
        key = rooms.verification.take()
        if key is None or rooms.mirror.find(key) is None:
            return  # The connection was lost and made again while this task waited for the lock, or the VIP is gone.
        differs = await self._readback.ases([key])
        rooms.mirror.demand()
        found = rooms.mirror.find(key)
        if found is None:
            return
        name = rooms.announced.current.names.get(key)
        if not differs:
            if name is not None and not rooms.agenda.waits(name):
                rooms.trail.confirmed(name)
            self._check_buckets(found)
            return
        if name is not None and rooms.verification.contest(key, self._clock.monotonic_ns()):
            rooms.agenda.mark(name, key)
            rooms.signals.wake.set()

    def _check_buckets(self, vip: ActualVip) -> None:
        """Compare the buckets of a VIP with those that its weights give. It reads back as it was written."""
        wrong = differing(vip)
        if not wrong:
            return
        self._rooms.counters.bucket_mismatches += 1
        address = min(wrong, key=address_order)
        has, should = wrong[address]
        log.error(
            "vpp-buckets-differ",
            f"VIP {vip.key}: {len(wrong)} ASes have other buckets than their weights give, {address_text(address)}"
            f" {has} instead of {should}: forecasts for this VPP cannot be trusted",
            vip=str(vip.key),
            ases=len(wrong),
        )
