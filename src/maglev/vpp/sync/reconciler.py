"""The single path from an event to a VPP call.

The way of an event, and who owns what it meets:

    event ────── agenda.mark, debts.owe        in the listener, at once: a listener never waits
                   │ wake
    batches ──── agenda.choose, agenda.take    which frontends, in which order
                   │ names
    programmer ─ desired, diff                 a plan of one moment: announced, mirror, debts, adoption, ownership
                   │ steps
    executor ─── calls within their budget     each acknowledged call: mirror, debts, adoption, ownership, counters
                   │ outcome
    agenda ───── frontends that were cut off   mirror: VIPs in doubt; verification: VIPs to read back

Five tasks run in ``Reconciler.run``: ``Reloads.run`` takes over configurations, ``Batches.run`` programs dirty
frontends and then reads them back, ``_full_syncs`` starts full syncs (``fullsync``), ``keep_flushes`` saves the flushes
that are owed, ``keep_weights`` the weights that VPP alone could not give back. Every task that reads VPP or writes to
it holds one lock, the lock of the dataplane (``Signals.lock``), for one batch, one piece of a full sync, or the read of
one VIP. So a verdict waits for one of those at most.

State is in the rooms (``rooms.Rooms``), one owner for each. They return facts; most are pure. The tasks and this module
decide what follows from a fact.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from maglev.base import logs
from maglev.base.clock import Clock
from maglev.base.errors import NotAllowed, UnknownName
from maglev.base.events import BackendEvent, ConfigEvent, DrainEvent, Event, EventSource, WeightEvent
from maglev.base.pace import Pace, at_once
from maglev.base.states import State
from maglev.config.model import Config, Frontend
from maglev.events.causes import NO_TRAIL, Trail
from maglev.judgement.weights import StateSource, flush_owed
from maglev.vpp.planning.cost import CostModel
from maglev.vpp.planning.desired import DesiredVip
from maglev.vpp.planning.lost import LostWeights
from maglev.vpp.planning.model import Actual, ActualVip, vip_key
from maglev.vpp.planning.plan import Cause, FlushKey, Owed
from maglev.vpp.planning.policy import Policy
from maglev.vpp.state.adoption import Adoption, ServingListener
from maglev.vpp.state.agenda import Agenda
from maglev.vpp.state.announced import Announced
from maglev.vpp.state.configured import Use
from maglev.vpp.state.debts import Debts
from maglev.vpp.state.keeping import keep_flushes, keep_flushes_now
from maglev.vpp.state.kept import KeptWeights, keep_weights
from maglev.vpp.state.mirror import Accepted, Mirror
from maglev.vpp.state.ownership import Ownership
from maglev.vpp.state.pruning import Pruning, held_back
from maglev.vpp.state.recreations import Recreations
from maglev.vpp.state.store import FLUSHES, MemoryStore, Store, owed_from_json
from maglev.vpp.state.tables import Reading, Tables
from maglev.vpp.state.warmup import WarmUp
from maglev.vpp.sync.batches import Batches
from maglev.vpp.sync.counters import Counters
from maglev.vpp.sync.executor import Executor, Pacer
from maglev.vpp.sync.flowtext import FlowText, FlowTexts
from maglev.vpp.sync.fullsync import FullSync
from maglev.vpp.sync.guard import Guard
from maglev.vpp.sync.programmer import Extent, Programmer, SyncResult
from maglev.vpp.sync.readback import Readback
from maglev.vpp.sync.reloads import Reloads
from maglev.vpp.sync.report import Reporter
from maglev.vpp.sync.rooms import Rooms, Signals, wait_for
from maglev.vpp.sync.timetable import Timetable
from maglev.vpp.sync.verification import Verification
from maglev.vpp.wire.client import VppClient
from maglev.vpp.wire.messages import VipKey

log = logs.get(__name__)

MOST_GIVEN_UP = 1000
"""Backends whose first verdict is awaited no longer, in one turn of the event loop; the rest follows at its next."""


class Reconciler:
    """Brings VPP to the desired state and keeps it there. Create it before the first event, then ``run``.

    ``trail`` learns how far changes have come.
    ``started_ns``: the clock's monotonic time at the start of the process, from which the warm-up counts. ``executor``
    makes what carries plans out.
    """

    def __init__(
        self,
        client: VppClient,
        events: EventSource,
        states: StateSource,
        clock: Clock,
        *,
        presumption: ServingListener | None = None,
        trail: Trail = NO_TRAIL,
        store: Store | None = None,
        started_ns: int | None = None,
        executor: Callable[[VppClient, Pacer], Executor] = Executor,
    ) -> None:
        self.client = client
        self.counters = Counters()
        self.pacer = Pacer(clock, max_stall_ns=5_000_000, max_duty=0.5)
        self._clock = clock
        self._store = store or MemoryStore()
        now = clock.monotonic_ns()
        self._rooms = rooms = Rooms(
            announced=Announced(states, clock),
            agenda=Agenda(),
            mirror=Mirror(client),
            tables=Tables(clock),
            debts=Debts(owed_from_json(self._store.get(FLUSHES))),
            adoption=Adoption(clock, now if started_ns is None else started_ns, presumption),
            recreations=Recreations(),
            ownership=Ownership(self._store),
            pruning=Pruning(self._store),
            kept=KeptWeights(self._store),
            verification=Verification(),
            timetable=Timetable(now),
            counters=self.counters,
            trail=trail,
            signals=Signals(),
        )
        rooms.kept.restore(rooms.adoption.lost)
        reporter = Reporter(rooms, self._confirmed)
        self._readback = Readback(client, rooms.mirror, rooms.tables, self.pacer, reporter.take)
        self._executor = executor(client, self.pacer)
        self._programmer = Programmer(rooms, self._executor, self._readback.cost, clock)
        self._guard = Guard(client, rooms.mirror, self.counters)
        self._reloads = Reloads(rooms, self.pacer, clock)
        self._batches = Batches(client, rooms, self._programmer, self._readback, self._reloads, self._guard, clock)
        self._full = FullSync(client, rooms, self._programmer, self._readback, reporter, self._reloads, clock)
        self._flow_texts = FlowTexts(client, rooms, self._readback, self.pacer, clock)
        self._syncing = False  # the task of the full syncs is not asleep
        self._stop_listening = events.listen(self._on_event)
        self._stop_judgements = events.listen_judgements(self._on_judgement)
        client.on_connect.append(self._connected)
        client.on_disconnect.append(self._disconnected)

    # ------------------------------------------------------------------------------------------- what others may ask

    @property
    def warmup_state(self) -> WarmUp:
        """The warm-up."""
        return self._rooms.adoption.warmup

    @property
    def actual(self) -> Actual | None:
        """The state of VPP, as last read and as changed by acknowledged calls since; None while it is unknown."""
        return self._rooms.mirror.actual

    @property
    def owed(self) -> Mapping[FlushKey, Owed]:
        """Flushes that VPP has not acknowledged."""
        return self._rooms.debts.owed

    @property
    def multiples(self) -> Mapping[VipKey, Fraction]:
        """VIPs that keep the scale in which they were found."""
        return self._rooms.adoption.multiples

    @property
    def lost(self) -> LostWeights:
        """Weights that VPP had and shows no longer."""
        return self._rooms.adoption.lost

    @property
    def refusals(self) -> int:
        """Calls that VPP refused."""
        return self._executor.refusals

    @property
    def mass_changes(self) -> bool:
        """Whether many ASes may change by commands of VPP's CLI."""
        return self._programmer.may_command(self._rooms.announced.in_force)

    @property
    def unmanaged(self) -> Collection[VipKey]:
        """VIPs in VPP that are left alone, as the last full sync found them."""
        return self._full.unmanaged

    @property
    def waiting(self) -> Collection[VipKey]:
        """VIPs that have left the configuration, and that are not deleted before an operator agrees."""
        return self._rooms.pruning.waiting

    @property
    def last_full_sync_at_ns(self) -> int:
        """When the last full sync ended, wall clock; 0: there was none."""
        return self._full.at_ns

    @property
    def last_full_sync_changes(self) -> int:
        """How many changes it made."""
        return self._full.changes

    @property
    def quiet(self) -> bool:
        """Whether nothing is in flight, and nothing waits that could be programmed now."""
        rooms = self._rooms
        waits = rooms.signals.wake.is_set() or rooms.timetable.asked.is_set() or rooms.verification.due
        reloads = rooms.announced.news.is_set() or rooms.announced.reloading
        works = self._syncing or rooms.signals.lock.locked() or self._full.running
        return not waits and not reloads and not works and not self._batches.choice().names

    async def settled(self) -> None:
        """Wait until ``quiet``."""
        while not self.quiet:
            self._rooms.signals.progress.clear()
            await self._rooms.signals.progress.wait()

    async def serving(self) -> frozenset[VipKey]:
        """The VIPs that should have servers now: VPP has some there, or health and configuration want some."""
        announced, actual, pace = self._rooms.announced, self._rooms.mirror.actual, Pace()
        serving: set[VipKey] = set()
        for key, vip in list(actual.vips.items()) if actual is not None else ():
            await pace.breathe()
            # Looked up each time: the configuration may be another since the last.
            frontend = announced.in_force.frontends.get(announced.current.names.get(key, ""))
            if vip.serves or (frontend is not None and announced.states.weights(frontend).usable):
                serving.add(key)
        return frozenset(serving)

    def cost(self) -> CostModel:
        """The cost of calls on this VPP."""
        return self._readback.cost()

    def desired(
        self, names: Iterable[str], source: StateSource | None = None, *, new: frozenset[str] = frozenset()
    ) -> list[DesiredVip]:
        """The wanted VIPs of these frontends, as of now. ``new``: backends that ``source`` would bring or move."""
        return self._programmer.desired(names, source or self._rooms.announced.states, new=new)

    def policy(
        self,
        *,
        full: bool,
        prune_rest: bool,
        force: bool,
        config: Config | None = None,
        unscaled: Collection[VipKey] = frozenset(),
        prune: bool = False,
    ) -> Policy:
        """The limits of a plan made now; with ``config`` of a plan made after a reload to it.

        ``unscaled``: VIPs whose adopted scale is to be given up, as a sync on request does. ``prune``: an operator
        agrees to all deletions.
        """
        extent = Extent(full=full, prune_rest=prune_rest, force=force)
        policy = self._programmer.policy(extent, config or self._rooms.announced.in_force, unscaled=unscaled)
        return replace(policy, waiting=frozenset() if prune else self._would_wait(policy))

    def _would_wait(self, policy: Policy) -> frozenset[VipKey]:
        """The VIPs that a full sync with this policy would not delete. A reload to its configuration is let pass."""
        actual, pruning = self._rooms.mirror.actual, self._rooms.pruning
        if actual is None:
            return pruning.held
        agreed = pruning.agreed | (self._rooms.announced.current.vips - policy.configured)
        left = self._rooms.ownership.left_by(policy.configured)
        return held_back(actual.vips, policy.configured, policy.prunes, agreed=agreed, held=pruning.held, left=left)

    async def pieces(self, names: Iterable[str], config: Config) -> list[list[str]]:
        """Frontends of ``config`` in the pieces of a full sync."""
        return await self._full.pieces(names, config)

    async def certain(self, names: Iterable[str]) -> Actual:
        """VPP as it is known, after the VIPs of these frontends were read again that are in doubt.

        Raises ``Unavailable``.
        """
        keys = self._rooms.announced.current.keys
        doubtful = [keys[name] for name in names if name in keys]
        async with self._rooms.signals.lock:
            self._rooms.mirror.demand()
            await self._readback.doubtful(doubtful)
        return self._rooms.mirror.demand()

    def frontend(self, name: str) -> Frontend:
        """The configured frontend of that name. Raises ``UnknownName``."""
        among = self._rooms.announced.in_force.frontends
        frontend = among.get(name)
        if frontend is None:
            raise UnknownName("frontend", name, among=among)
        return frontend

    def released(self, name: str) -> bool:
        """Whether the warm-up lets this frontend be written to."""
        return self._batches.released(name)

    # -------------------------------------------------------------------------------------------------------- events

    def _on_event(self, event: Event) -> None:
        """Called at once with every event of the checker. Marks, and never waits."""
        if isinstance(event, BackendEvent):
            self._backend_changed(event)
        elif isinstance(event, WeightEvent):
            self._weight_changed(event)
        elif isinstance(event, DrainEvent):
            for use in self._rooms.announced.current.uses.get(event.name, ()):
                self._rooms.agenda.mark(use.frontend, use.flush.vip)
        elif isinstance(event, ConfigEvent):
            self._reloads.announced(forced=event.forced)
        else:
            return
        self._rooms.signals.wake.set()

    def _on_judgement(self, frontend: str, mechanism: str) -> None:
        """Called at once for a frontend that was judged again without an event: time has passed. It owes no flush."""
        self._rooms.agenda.mark(frontend, self._rooms.announced.current.keys.get(frontend))
        self._rooms.signals.wake.set()

    def _backend_changed(self, event: BackendEvent) -> None:
        rooms, to = self._rooms, event.to_state
        if event.from_state == to:
            return
        first = to is not State.UNKNOWN and rooms.adoption.warmup.resolved(event.name) and to is State.DOWN
        for use in rooms.announced.current.uses.get(event.name, ()):
            rooms.agenda.mark(use.frontend, use.flush.vip)
        for key, cause in self._flushes(event, first=first):
            rooms.debts.owe(key, cause)

    def _weight_changed(self, event: WeightEvent) -> None:
        self._rooms.agenda.mark(event.frontend, self._rooms.announced.current.keys.get(event.frontend))
        for key, cause in self._flushes(event):
            self._rooms.debts.owe(key, cause)

    def _flushes(self, event: Event, *, first: bool = False) -> Iterator[tuple[FlushKey, Cause]]:
        """The flushes that a change owes. ``first``: it is the first verdict of its backend since the start.

        The first verdict does not count as a transition: the server may have been down all the time. If that owed a
        flush, each restart of the daemon would evict flows that standbys took over long ago. An operator's change
        counts at any time.
        """
        current = self._rooms.announced.current
        if isinstance(event, BackendEvent):
            to = event.to_state
            # A backend that is removed owes nothing: its AS is deleted with a flush.
            if first or event.from_state == to or to is State.REMOVED:
                return
            for use in current.uses.get(event.name, ()):
                if flush_owed(to, flush_on_down=use.flush_on_down):
                    yield use.flush, Cause.DOWN if to is State.DOWN else Cause.OPERATOR
        elif isinstance(event, WeightEvent):
            key, backend = current.keys.get(event.frontend), current.config.backends.get(event.backend)
            if event.flush and key is not None and backend is not None:
                yield FlushKey(key, backend.address.packed), Cause.OPERATOR

    def would_owe(self, events: Iterable[Event]) -> Mapping[FlushKey, Owed]:
        """The flushes that VPP would not have acknowledged if all of this happened now."""
        debts, new = Debts(self._rooms.debts.owed.items()), self._rooms.adoption.warmup.new
        for event in events:
            first = isinstance(event, BackendEvent) and event.to_state is State.DOWN and new(event.name)
            for key, cause in self._flushes(event, first=first):
                debts.owe(key, cause)
        return debts.owed

    def _confirmed(self, accepted: Accepted) -> None:
        """A reading shows a change that VPP had accepted as a part of commands."""
        self._programmer.acknowledged(accepted)

    def _connected(self) -> None:
        self._rooms.mirror.connected()
        self._rooms.request_full_sync("connect")

    def _disconnected(self, why: str) -> None:
        self._rooms.mirror.disconnected()
        self._rooms.verification.forget()

    # --------------------------------------------------------------------------------------------------------- tasks

    async def run(self) -> None:
        """Keep VPP in sync until cancelled. The client's own ``run`` is another task."""
        if not self._rooms.announced.begun and self._rooms.announced.in_force.frontends:
            self._reloads.configure()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._reloads.run())
                group.create_task(self._batches.run())
                group.create_task(self._full_syncs())
                group.create_task(keep_flushes(self._rooms.debts, self._store, self._clock))
                group.create_task(self._keep_weights())
        finally:
            keep_flushes_now(self._rooms.debts, self._store)
            self._keep_weights_now()
            self._stop_listening()
            self._stop_judgements()

    async def _full_syncs(self) -> None:
        """The task of everything that happens by time: full syncs, the warm-up's phases, the ends of held addresses.

        A full sync is due when one is asked for, at a phase of the warm-up, and every sync interval (``timetable``).
        """
        rooms = self._rooms
        phase = rooms.adoption.warmup.phase
        while True:
            await wait_for(rooms.timetable.asked, self._next_due() / 1e9, self._clock)
            self._syncing = True
            if rooms.announced.begun and rooms.adoption.patience_ns == 0:
                # VPP has not been seen in time: nothing is presumed of its backends.
                rooms.adoption.settle(())
            changed, phase = rooms.adoption.warmup.phase is not phase, rooms.adoption.warmup.phase
            now = self._clock.monotonic_ns()
            rooms.agenda.again(rooms.ownership.expire(now))
            rooms.agenda.again(self._given_up())
            if changed:
                rooms.agenda.unpark()
            self._reloads.heed()
            reason = rooms.timetable.take(now, self._sync_interval, phase_changed=changed)
            announced = rooms.announced.begun and not rooms.announced.reloading
            # A reason that is taken and not served is not lost: the end of the reload and the next connect ask again.
            if reason and announced and self.client.usable:
                await self._guard.whole(self._full.due(reason))
            self._syncing = False
            rooms.signals.wake.set()
            rooms.signals.progress.set()

    def _given_up(self) -> set[str]:
        """Frontends whose panic has waited for a first verdict until now (``maglev.judgement.panic``)."""
        announced = self._rooms.announced
        frontends, uses = announced.current.config.frontends, announced.current.uses
        given_up = self._rooms.adoption.warmup.give_up(MOST_GIVEN_UP)
        return {use.frontend for name in given_up for use in uses.get(name, ()) if frontends[use.frontend].panic}

    async def _keep_weights(self) -> None:
        rooms = self._rooms
        await keep_weights(rooms.kept, self._vips, rooms.adoption.own_scale, rooms.adoption.lost, self._clock)

    def _keep_weights_now(self) -> None:
        rooms = self._rooms
        at_once(rooms.kept.update(self._vips(), rooms.adoption.own_scale, rooms.adoption.lost))
        rooms.kept.save_now()

    def _vips(self) -> Mapping[VipKey, ActualVip]:
        """The VIPs in VPP; none while they are not known."""
        actual = self._rooms.mirror.actual
        return actual.vips if actual is not None else {}

    def _next_due(self) -> int:
        """Until there is something to do for the task of the full syncs, in nanoseconds."""
        rooms, now = self._rooms, self._clock.monotonic_ns()
        due = (
            rooms.timetable.due_in(now, self._sync_interval),
            rooms.adoption.due_in(),
            rooms.ownership.expires_in(now),
        )
        return max(min(one for one in due if one is not None), 1_000_000)

    @property
    def _sync_interval(self) -> int:
        return self._rooms.announced.current.config.lb.sync_interval

    # ------------------------------------------------------------------------------------------------------- requests

    async def sync(self, name: str | None, *, force: bool, by: str, prune: bool = False) -> SyncResult:
        """Sync one frontend, or all, as an operator asks. Raises ``NotAllowed`` during the warm-up.

        ``prune``: VIPs that wait for an operator are deleted. It has no meaning for one frontend.
        """
        if name is not None:
            return await self.sync_one(name, force=force, by=by)
        self._rooms.mirror.demand()
        if not self._rooms.adoption.done:
            seconds = self._rooms.adoption.warmup.remaining_ns / 1e9
            raise NotAllowed(f"the warm-up lasts {seconds:.1f} s more; no full sync on request before")
        log.info("vpp-sync-requested", "full sync requested", by=by, force=force, prune=prune)
        return await self._guard.asked(
            self._full.run(force=force, fresh=False, explicit=True, reason=f"requested by {by}", prune=prune)
        )

    async def sync_all(self, *, force: bool = False, explicit: bool = False, reason: str = "request") -> SyncResult:
        """Bring all of VPP to the desired state; see ``FullSync.run``. Raises ``Unavailable`` when VPP is away."""
        return await self._full.run(force=force, fresh=False, explicit=explicit, reason=reason)

    async def sync_one(self, name: str, *, force: bool = False, by: str = "") -> SyncResult:
        """Read one VIP back and bring it to the desired state. Never deletes a VIP; notes say what a full sync would.

        Raises ``UnknownName``, ``Unavailable``, and ``NotAllowed`` while the warm-up holds the frontend.
        """
        frontend = self.frontend(name)
        self._rooms.mirror.demand()
        if not self._rooms.adoption.warmup.released(frontend, self._rooms.announced.state_for):
            raise NotAllowed(f"frontend {name} is not released by the warm-up yet")
        self._rooms.adoption.warmup.release(name)
        log.info("vpp-sync-requested", f"sync of frontend {name} requested", by=by, frontend=name)
        return await self._guard.asked(self._sync_one(frontend, force))

    async def _sync_one(self, frontend: Frontend, force: bool) -> SyncResult:
        result = SyncResult()
        key = vip_key(frontend)
        self._rooms.adoption.unscale([key])
        self._rooms.agenda.mark(frontend.name, key)
        while True:
            await self._reloads.over()
            async with self._rooms.signals.lock:
                await self._readback.vips()
                await self._readback.ases([key])
                plan, outcome = await self._programmer.apply([frontend.name], Extent(force=force))
            self._rooms.signals.wake.set()
            result.add(plan, outcome)
            if not outcome.rest:
                return result

    def uses(self, backend: str) -> Sequence[Use]:
        """The frontends of a backend, with its AS in each, in the order of the file."""
        return self._rooms.announced.current.uses.get(backend, ())

    def table(self, key: VipKey) -> Reading | None:
        """The new-flow table of a VIP as VPP showed it last; None while VPP is away, or has no such VIP."""
        return self._rooms.tables.find(key) if self._rooms.mirror.find(key) is not None else None

    async def flows(self) -> FlowText:
        """How many flows each AS has, as VPP prints it. Raises ``Unavailable``, and ``NotAllowed`` if it costs much."""
        return await self._guard.asked(self._flow_texts.read())

    async def refresh(self, names: Iterable[str] | None = None) -> Actual:
        """Read VPP, paced; all of it, or the VIPs of these frontends. Raises ``Unavailable``."""
        async with self._rooms.signals.lock:
            await self._readback.settings()
            await self._readback.vips()
        actual, frontends = self._rooms.mirror.demand(), self._rooms.announced.in_force.frontends
        if names is None:
            keys = sorted(actual.vips, key=lambda key: key.sort_key)
        else:
            keys = [vip_key(frontends[name]) for name in names if name in frontends]
        await self._full.read_by_turns(keys)
        return self._rooms.mirror.demand()
