"""A full sync: all of VPP is read back and repaired, in pieces between which batches run.

Order: the global settings first, since a VIP that is created without a source address tunnels from nowhere. Then the
frontends, VIPs without a live AS first; frontends on one address stay in one piece, since VPP has one encapsulation for
each prefix. Once the warm-up is over, VIPs that have left the configuration come last. A piece is planned again until
all its steps are sent, each time with the newest states.

One full sync runs at a time. Between two reads, and between two plans, the task releases the lock of the dataplane, and
a batch that waits for the lock runs first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

from maglev.base import logs
from maglev.base.clock import Clock, Moments
from maglev.base.errors import MaglevError
from maglev.base.pace import Pace, in_slices
from maglev.config.model import Config, Frontend
from maglev.vpp.planning.diff import MOST_NAMED, undecided
from maglev.vpp.planning.model import ActualVip, vip_key
from maglev.vpp.planning.plan import Op
from maglev.vpp.state.adoption import look_at
from maglev.vpp.state.kept import nature_of
from maglev.vpp.state.store import Kept
from maglev.vpp.sync.programmer import Extent, Programmer, SyncResult
from maglev.vpp.sync.readback import Readback
from maglev.vpp.sync.reloads import Reloads
from maglev.vpp.sync.report import Reporter
from maglev.vpp.sync.rooms import Rooms
from maglev.vpp.wire.client import VppClient
from maglev.vpp.wire.messages import VipKey

log = logs.get(__name__)

ALL = Extent("all", full=True)

MOST_RECORDS = 5
"""How often a piece is planned to create VIPs again whose weights are not the ones in the state file."""

PIECE_MEMBERS = 100
"""About how many pool members one piece plans for. Fewer than a batch: a verdict may have to wait for a piece."""


def pieces(
    names: Iterable[str], config: Config, serves: Callable[[VipKey], bool]
) -> Generator[None, None, list[list[str]]]:
    """Frontends of ``config`` in pieces of about ``PIECE_MEMBERS``, one address in one piece. To be driven in slices.

    VIPs without a live AS come first, then numeric order. ``serves``: whether VPP sends new flows of a VIP to any AS.
    """
    groups: dict[bytes, list[tuple[VipKey, Frontend]]] = {}
    for name in names:
        frontend = config.frontends[name]
        groups.setdefault(frontend.address.packed, []).append((vip_key(frontend), frontend))
        yield

    ordered: list[tuple[bool, tuple[int, bytes, int, int, int], list[Frontend]]] = []
    for group in groups.values():
        served = all(serves(key) for key, _ in group)
        ordered.append((served, min(key.sort_key for key, _ in group), [frontend for _, frontend in group]))
        yield
    ordered.sort(key=lambda group: group[:2])

    made: list[list[str]] = []
    load = 0
    for _, _, frontends in ordered:
        members = sum(len(pool.members) for frontend in frontends for pool in frontend.pools)
        if not made or load + members > PIECE_MEMBERS:
            made.append([])
            load = 0
        made[-1].extend(frontend.name for frontend in frontends)
        load += members
        yield
    return made


class FullSync:
    """Carries out full syncs, one at a time.

    ``unmanaged``: VIPs in VPP that are not ours, as the last one found them. ``changes``: how many the last one made.
    """

    def __init__(
        self,
        client: VppClient,
        rooms: Rooms,
        programmer: Programmer,
        readback: Readback,
        reporter: Reporter,
        reloads: Reloads,
        clock: Clock,
    ) -> None:
        self.unmanaged: tuple[VipKey, ...] = ()
        self._ended_ns = 0
        self._moments = Moments(clock)
        self.changes = 0
        self._client = client
        self._rooms = rooms
        self._programmer = programmer
        self._readback = readback
        self._reporter = reporter
        self._reloads = reloads
        self._clock = clock
        self._running = asyncio.Lock()
        self._unwritable = ""  # why weights could not be written down in this sync

    @property
    def at_ns(self) -> int:
        """When the last one ended, wall clock; 0: there was none."""
        return self._moments.shown(self._ended_ns) if self._ended_ns else 0

    @property
    def running(self) -> bool:
        """Whether one is under way."""
        return self._running.locked()

    async def due(self, reason: str) -> None:
        """A full sync that the timetable asks for. A VPP that has not been read is read and adopted first."""
        rooms = self._rooms
        fresh = rooms.mirror.actual is None
        if fresh:
            async with rooms.signals.lock:
                await self._first_read()
        if rooms.adoption.silent:
            rooms.counters.suppressed += 1
            log.debug("vpp-sync-suppressed", f"full sync ({reason}) suppressed by the warm-up", reason=reason)
            return
        await self.run(fresh=fresh, explicit=False, force=False, reason=reason)

    async def run(self, *, fresh: bool, explicit: bool, force: bool, reason: str, prune: bool = False) -> SyncResult:
        """Bring all of VPP to the desired state. Raises ``Unavailable`` where VPP is away, or goes away.

        ``fresh``: VPP has just been read. ``explicit``: an operator asked, so that adopted scales end. ``force``:
        recreations that were given up are tried again. ``prune``: an operator agrees to all deletions.
        """
        rooms = self._rooms
        async with self._running:
            result = SyncResult()
            self._begin(explicit=explicit, force=force)
            if not fresh:
                async with self._rooms.signals.lock:
                    await self._readback.settings()
                    await self._readback.vips()
            self._review(prune=prune)
            complete = rooms.adoption.done
            await self._until_done([], result, Extent("all", full=True, force=force), fresh=True)
            rooms.mirror.primed = True
            # One configuration for the names and the pieces: a reload may have begun while the settings were planned,
            # and another one be in force already. Frontends that it took away are left out piece by piece.
            config = rooms.announced.current.config
            for piece in await self.pieces(self._released(config), config):
                await self._until_done(piece, result, Extent("all", full=True, force=force), fresh=fresh)
            if complete:
                self._settle_losses()
                # Again: a reload may have changed `prune` meanwhile.
                self._review(prune=False)
                rest = Extent("all", full=True, prune_rest=True, force=force)
                await self._until_done([], result, rest, fresh=fresh)
                self.unmanaged = tuple(result.plan.unmanaged)
            await self._look_again()
            self._end(result, reason)
            return result

    async def pieces(self, names: Iterable[str], config: Config) -> list[list[str]]:
        """Frontends of ``config`` in the pieces of a full sync, as of the function of that name."""
        self._rooms.mirror.demand()
        return await in_slices(pieces(names, config, self._rooms.mirror.serves))

    async def _first_read(self) -> None:
        """Read everything after connecting, and adopt what is there."""
        rooms, client = self._rooms, self._client
        connects = client.connects
        read = await self._readback.everything()
        client.still_connected(connects)
        info = client.info()
        assert info is not None
        compared = rooms.mirror.compare(read, started_ns=info.started_ns, connected_ns=info.connected_ns)
        if compared.known is not None and compared.restarted:
            rooms.adoption.lost.restarted()
        pace = Pace()
        for fact in compared.facts():
            self._reporter.take(fact)
            await pace.breathe()
        rooms.agenda.forget_refusals()
        rooms.recreations.retry()
        rooms.kept.compare(read.vips, rooms.adoption.lost)
        found = await in_slices(look_at(read.vips, rooms.announced.states, rooms.adoption.lost))
        # A reading over a connection that is gone does not describe the VPP at the other end of the next.
        client.still_connected(connects)
        rooms.mirror.install(read)
        for key, multiple in rooms.adoption.adopt(found).items():
            log.info(
                "vpp-scale-adopted",
                f"the weights of VIP {key} in VPP are {multiple} times ours; they stay so until a sync is asked for",
                vip=str(key),
            )
        rooms.signals.wake.set()

    # ---------------------------------------------------------------------------------------------------- begin and end

    def _begin(self, *, explicit: bool, force: bool) -> None:
        rooms = self._rooms
        rooms.agenda.forget_refusals()
        rooms.recreations.retry()
        self._unwritable = ""
        if explicit:
            rooms.adoption.unscale_all()
        if force:
            rooms.recreations.forgive()

    def _review(self, *, prune: bool) -> None:
        """Decide about the VIPs that this sync would delete, before it writes: what it creates must not count."""
        rooms = self._rooms
        configured = rooms.announced.current.vips
        present = rooms.mirror.demand().vips.keys()
        prunes = self._programmer.policy(ALL, rooms.announced.current.config).prunes
        if prune:
            rooms.pruning.agree((key for key in present if prunes(key)), configured)
        left = rooms.ownership.left_by(configured)
        held, lifted, gone = rooms.pruning.review(present, configured, prunes, left)
        for key in gone:
            rooms.ownership.disown(key)
        if held:
            waiting = sorted(rooms.pruning.waiting, key=lambda key: key.sort_key)
            log.error(
                "vpp-prune-held",
                f"{undecided(waiting)}; they have left the configuration by no reload, and forward with the weights"
                " that they have. If the file is right: maglevc sync vpp lb state prune; if not, correct and reload it",
                vips=len(waiting),
            )
        elif lifted:
            log.info(
                "vpp-prune-lifted",
                f"{logs.counted(len(lifted), 'VIP')} no longer wait for an operator: configured again, gone, or agreed"
                " to",
                vips=len(lifted),
                waiting=len(rooms.pruning.waiting),
            )

    def _settle_losses(self) -> None:
        """Every configured VIP was written: forget weights that VPP had before, except those of refused ASes."""
        refusals = (one for of_vip in self._rooms.agenda.refused.values() for one in of_vip)
        still = {(vip, address) for op, vip, address in refusals if op is Op.ADD_AS and vip is not None}
        lost = self._rooms.adoption.lost
        lost.settle(still)
        self._rooms.kept.settle(lost.recreated)

    async def _look_again(self) -> None:
        """Read the CLI if VIPs came or went. A VIP whose nature has changed needs another full sync."""
        if not self._rooms.mirror.reshuffled:
            return
        async with self._rooms.signals.lock:
            if await self._readback.verbose():
                self._rooms.request_full_sync("drift")

    def _end(self, result: SyncResult, reason: str) -> None:
        self._rooms.counters.full_syncs += 1
        self._ended_ns = self._clock.monotonic_ns()
        self.changes = len(result.done)
        log.log(
            logging.INFO if result.done or result.failures else logging.DEBUG,
            "vpp-full-sync",
            f"full sync ({reason}): {logs.counted(len(result.done), 'change')}, {len(result.failures)} refused",
            reason=reason,
            changes=len(result.done),
            refused=len(result.failures),
        )

    # -------------------------------------------------------------------------------------------------------- one piece

    def _released(self, config: Config) -> Iterator[str]:
        """The frontends of ``config`` that the warm-up lets be written to, and that are about to be."""
        announced, warmup = self._rooms.announced, self._rooms.adoption.warmup
        for name, frontend in config.frontends.items():
            if warmup.released(frontend, announced.state_for):
                warmup.release(name)
                yield name

    async def _until_done(self, names: Sequence[str], result: SyncResult, extent: Extent, *, fresh: bool) -> None:
        """Read one piece back, and apply it until all its steps are sent."""
        rooms = self._rooms
        await self._reloads.over()
        if not fresh:
            await self.read_by_turns(self._keys_to_read(names, extent))
        tries = MOST_RECORDS
        while True:
            await self._let_batches_go_first()
            async with self._rooms.signals.lock:
                rooms.mirror.demand()
                # A reload may have taken frontends away since the pieces were made. A frontend that waits for verdicts
                # is marked for a batch when they are there.
                announced = rooms.announced
                live = [n for n in names if n in announced.in_force.frontends and not announced.states.unsettled(n)]
                await self._readback.doubtful(self._keys_to_read(live, extent))
                plan, outcome = await self._programmer.apply(live, extent, first=rooms.agenda.cut)
            if outcome.done:
                rooms.signals.wake.set()  # to read it back
            result.add(plan, outcome)
            if plan.unrecorded:
                # A verdict may change weights that were just written down: then they are written down once more.
                tries -= 1
                if tries > 0 and await self._record(plan.unrecorded):
                    continue
                self._note_unrecorded(plan.unrecorded, result)
            if not outcome.rest:
                return
            await asyncio.sleep(0)
            await self._reloads.over()

    async def _record(self, keys: Sequence[VipKey]) -> bool:
        """Write down the weights of VIPs that are to be created again; returns whether they are on the disk.

        The lock of the dataplane is free meanwhile: verdicts do not wait for a disk. A disk that does not take them is
        asked once in a full sync.
        """
        rooms = self._rooms
        if self._unwritable:
            return False
        vips = (rooms.mirror.find(key) for key in keys)
        kept = {vip.key: Kept(self._weights_of(vip), nature_of(vip)) for vip in vips if vip is not None}
        try:
            await rooms.kept.record(kept)
        except MaglevError as error:
            self._unwritable = str(error)
            log.error(
                "vpp-recreation-waits",
                f"VIPs are not created again yet, as their weights cannot be written to the state file ({error}) and a"
                " restart halfway would lose them; the next full sync tries again:"
                f" {', '.join(str(key) for key in keys[:MOST_NAMED])}",
                vips=len(keys),
            )
            return False
        await self._reloads.over()
        return True

    def _note_unrecorded(self, keys: Sequence[VipKey], result: SyncResult) -> None:
        why = self._unwritable or "they change all the time"
        for key in keys:
            note = f"{key}: not created again yet, as its weights cannot be written to the state file first ({why})"
            if note not in result.plan.notes:
                result.plan.notes.append(note)

    def _weights_of(self, vip: ActualVip) -> dict[bytes, int]:
        """The weights that a VIP keeps through its recreation; halfway those from before it began."""
        lost, own = self._rooms.adoption.lost, self._rooms.adoption.own_scale(vip)
        return {**own, **lost.weights(vip.key)} if vip.key in lost.recreated else dict(own)

    def _keys_to_read(self, names: Sequence[str], extent: Extent) -> list[VipKey]:
        """The VIPs that a plan for these frontends may be about, as far as VPP has them."""
        rooms = self._rooms
        vips = rooms.mirror.demand().vips
        config, configured = rooms.announced.in_force, rooms.announced.current.vips
        keys = [vip_key(config.frontends[name]) for name in names if name in config.frontends]
        if extent.prune_rest:
            policy = self._programmer.policy(extent, config)
            keys += [key for key in vips if key not in configured and policy.may_remove(key)]
        else:
            prefixes = {key.prefix for key in keys}
            keys += [key for key in vips.keys() - configured if key.prefix in prefixes]
        return [key for key in dict.fromkeys(keys) if key in vips]

    async def read_by_turns(self, keys: Iterable[VipKey]) -> None:
        """Read the ASes of many VIPs into the mirror; batches may run between two of them."""
        for key in keys:
            await self._let_batches_go_first()
            async with self._rooms.signals.lock:
                await self._readback.ases([key])

    async def _let_batches_go_first(self) -> None:
        """Let a batch run before the next piece, which is less urgent, if a frontend has become dirty.

        The event has woken the task of the batches, but that task has not run yet: without a turn of the loop this task
        would take the lock before it.
        """
        if self._rooms.agenda.waiting:
            await asyncio.sleep(0)
