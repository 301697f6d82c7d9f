"""The single path from an event to a VPP call.

The way of an event, and who owns what it meets:

    event ── agenda.mark, debts.owe                    at once, in the listener: nothing waits
               │ wake
    batches ── agenda.choose, take                     which frontends, in which order
               │ names
    programmer ── desired, diff                        a plan of one moment, from announced, mirror, debts, adoption
               │ steps
    executor ── calls within their budget              acknowledged: mirror, debts, ownership, adoption, counters
               │ outcome
    agenda, mirror, verification                       what was cut off, what is in doubt, what is to be read back

Four tasks, which all live in ``run``: *configurations* takes over reloads, *batches* programs what is dirty and then
reads back what was written, *full syncs* walks over all of VPP now and then (``fullsync``), *keeping* writes down the
flushes that are owed. One lock, the lock of the dataplane (``_work``), is held by whatever reads VPP or writes to it:
one batch, one piece of a full sync or one read is under way at a time, and verdicts wait for one of those at most.

The rooms beside this module own the state, return facts, and know neither tasks nor log. Here is decided what follows
from a fact.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from fractions import Fraction
from typing import TypeVar

from maglev.base import logs
from maglev.base.clock import Clock
from maglev.base.errors import NotAllowed, Unavailable, UnknownName
from maglev.base.events import BackendEvent, ConfigEvent, DrainEvent, Event, EventSource, WeightEvent
from maglev.base.pace import Pace, in_slices, let_go
from maglev.base.states import State
from maglev.config.model import Config, Frontend
from maglev.judgement.weights import StateSource, flush_owed, frontend_weights
from maglev.vpp.adoption import Adoption, Presumption, look_at
from maglev.vpp.agenda import MOST_MEMBERS, Admission, Agenda, Choice
from maglev.vpp.announced import Announced, Before, outdated
from maglev.vpp.buckets import differing
from maglev.vpp.client import Refused, VppClient
from maglev.vpp.configured import Transition
from maglev.vpp.cost import CostModel
from maglev.vpp.counters import Counters
from maglev.vpp.debts import Debts
from maglev.vpp.desired import DesiredVip
from maglev.vpp.drift import Drift, ases_drift
from maglev.vpp.executor import Executor, Pacer
from maglev.vpp.fullsync import FullSync, Timetable
from maglev.vpp.keeping import keep_flushes, keep_flushes_now
from maglev.vpp.lost import LostWeights
from maglev.vpp.messages import ProtocolError, VipKey, address_text
from maglev.vpp.mirror import Fact, Mirror
from maglev.vpp.model import Actual, ActualVip, vip_key
from maglev.vpp.ownership import Ownership
from maglev.vpp.plan import Cause, FlushKey, Owed
from maglev.vpp.policy import Policy
from maglev.vpp.programmer import Extent, Programmer, Rooms, SyncResult
from maglev.vpp.readback import Readback
from maglev.vpp.recreations import Recreations
from maglev.vpp.store import FLUSHES, MemoryStore, Store, owed_from_json
from maglev.vpp.verification import Verification
from maglev.vpp.warmup import WarmUp

log = logs.get(__name__)

T = TypeVar("T")

MOST_TOLD = 5
"""How many differences of one VIP the log names."""

NOTHING = Choice((), ())


class Reconciler:
    """Brings VPP to the desired state and keeps it there. Create it before the first event, then ``run``.

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
        presumption: Presumption | None = None,
        store: Store | None = None,
        started_ns: int | None = None,
        executor: Callable[[VppClient, Pacer], Executor] = Executor,
    ) -> None:
        self.client = client
        self.counters = Counters()
        self.pacer = Pacer(clock, max_stall_ns=5_000_000, max_duty=0.5)
        self._clock = clock
        self._store = store or MemoryStore()
        self._announced = Announced(states, clock)
        self._agenda = Agenda()
        self._mirror = Mirror(client)
        self._debts = Debts(owed_from_json(self._store.get(FLUSHES)))
        self._adoption = Adoption(clock, clock.monotonic_ns() if started_ns is None else started_ns, presumption)
        self._recreations = Recreations()
        self._ownership = Ownership(self._store)
        self._verification = Verification()
        rooms = Rooms(
            self._announced,
            self._agenda,
            self._mirror,
            self._debts,
            self._adoption,
            self._recreations,
            self._ownership,
            self._verification,
            self.counters,
        )
        self._readback = Readback(client, self._mirror, self.pacer, self._report)
        self._executor = executor(client, self.pacer)
        self._programmer = Programmer(rooms, self._executor, self._readback.cost, clock)
        self._work = asyncio.Lock()
        self._wake = asyncio.Event()  # there may be something for the task of the batches
        self._progress = asyncio.Event()  # something has ended: ``quiet`` may have become true
        self._syncing = False  # the task of the full syncs is not asleep
        self._timetable = Timetable(clock.monotonic_ns())
        self._full = FullSync(
            rooms,
            self._programmer,
            self._readback,
            self._timetable,
            self._work,
            clock,
            self._reloaded,
            self._wake.set,
        )
        self._stop_listening = events.listen(self._on_event)
        client.on_connect.append(self._connected)
        client.on_disconnect.append(self._disconnected)

    # ------------------------------------------------------------------------------------------- what others may ask

    @property
    def warmup_state(self) -> WarmUp:
        """The warm-up."""
        return self._adoption.warmup

    @property
    def actual(self) -> Actual | None:
        """What VPP holds, as last read and moved on by acknowledged calls; None while that is not known."""
        return self._mirror.actual

    @property
    def owed(self) -> Mapping[FlushKey, Owed]:
        """Flushes that VPP has not acknowledged."""
        return self._debts.owed

    @property
    def multiples(self) -> Mapping[VipKey, Fraction]:
        """VIPs that keep the scale in which they were found."""
        return self._adoption.multiples

    @property
    def lost(self) -> LostWeights:
        """Weights that VPP had and shows no longer."""
        return self._adoption.lost

    @property
    def refusals(self) -> int:
        """Calls that VPP refused."""
        return self._executor.refusals

    @property
    def unmanaged(self) -> Collection[VipKey]:
        """VIPs in VPP that are left alone, as the last full sync found them."""
        return self._full.unmanaged

    @property
    def last_full_sync_at_ns(self) -> int:
        """When the last full sync ended, wall clock; 0: there was none."""
        return self._full.at_ns

    @property
    def last_full_sync_changes(self) -> int:
        """What it changed."""
        return self._full.changes

    @property
    def quiet(self) -> bool:
        """Whether nothing is in flight, and nothing waits that could be programmed now."""
        waits = self._wake.is_set() or self._timetable.asked.is_set() or self._verification.due
        reloads = self._announced.news.is_set() or self._announced.reloading
        works = self._syncing or self._work.locked() or self._full.running
        return not waits and not reloads and not works and not self._choice().names

    async def settled(self) -> None:
        """Wait until ``quiet``."""
        while not self.quiet:
            self._progress.clear()
            await self._progress.wait()

    async def serving(self) -> frozenset[VipKey]:
        """The VIPs that should have servers now: VPP has some there, or health and configuration want some."""
        pace = Pace()
        serving: set[VipKey] = set()
        for key, vip in list(self._mirror.actual.vips.items()) if self._mirror.actual is not None else ():
            await pace.breathe()
            # Looked up each time: the configuration may be another since the last.
            frontend = self._announced.in_force.frontends.get(self._announced.current.names.get(key, ""))
            if vip.serves or (frontend is not None and frontend_weights(frontend, self._announced.states).usable):
                serving.add(key)
        return frozenset(serving)

    def cost(self) -> CostModel:
        """What calls cost on this VPP."""
        return self._readback.cost()

    def desired(
        self, names: Iterable[str], source: StateSource | None = None, *, new: frozenset[str] = frozenset()
    ) -> list[DesiredVip]:
        """The wanted VIPs of these frontends, as of now. ``new``: backends that ``source`` would bring or move."""
        return self._programmer.desired(names, source or self._announced.states, new=new)

    def policy(
        self,
        *,
        full: bool,
        prune_rest: bool,
        force: bool,
        config: Config | None = None,
        unscaled: Collection[VipKey] = frozenset(),
    ) -> Policy:
        """What a plan may do now; with ``config`` after a reload to it.

        ``unscaled``: VIPs whose adopted scale is to be given up, as a sync on request does.
        """
        extent = Extent(full=full, prune_rest=prune_rest, force=force)
        return self._programmer.policy(extent, config or self._announced.in_force, unscaled=unscaled)

    async def pieces(self, names: Iterable[str], config: Config) -> list[list[str]]:
        """Frontends of ``config`` in the pieces of a full sync."""
        return await self._full.pieces(names, config)

    def frontend(self, name: str) -> Frontend:
        """The configured frontend of that name. Raises ``UnknownName``."""
        frontend = self._announced.in_force.frontends.get(name)
        if frontend is None:
            raise UnknownName("frontend", name)
        return frontend

    def released(self, name: str) -> bool:
        """Whether the warm-up lets this frontend be written to."""
        config = self._announced.current.config if self._announced.begun else self._announced.in_force
        frontend = config.frontends.get(name)
        return frontend is not None and self._adoption.warmup.released(frontend, self._announced.state_of)

    # -------------------------------------------------------------------------------------------------------- events

    def _on_event(self, event: Event) -> None:
        """Called at once with every event of the checker. Marks, and never waits."""
        if isinstance(event, BackendEvent):
            self._backend_changed(event)
        elif isinstance(event, WeightEvent):
            self._weight_changed(event)
        elif isinstance(event, DrainEvent):
            for use in self._announced.current.uses.get(event.name, ()):
                self._agenda.mark(use.frontend, use.flush.vip)
        elif isinstance(event, ConfigEvent):
            if self._announced.begun:
                self._announced.news.set()
            else:
                self._configure()
        else:
            return
        self._wake.set()

    def _backend_changed(self, event: BackendEvent) -> None:
        to = event.to_state
        if event.from_state == to:
            return
        # The first verdict since the start is no transition: the server may have been like this all the time. Were it
        # owed a flush, each restart would evict what a dead server's standbys have long taken over. What an operator
        # does is one at any time.
        first = to is not State.UNKNOWN and self._adoption.warmup.resolved(event.name) and to is State.DOWN
        for use in self._announced.current.uses.get(event.name, ()):
            self._agenda.mark(use.frontend, use.flush.vip)
            # What is removed is deleted with a flush.
            if not first and to is not State.REMOVED and flush_owed(to, flush_on_down=use.flush_on_down):
                self._debts.owe(use.flush, Cause.DOWN if to is State.DOWN else Cause.OPERATOR)

    def _weight_changed(self, event: WeightEvent) -> None:
        key = self._announced.current.keys.get(event.frontend)
        backend = self._announced.current.config.backends.get(event.backend)
        self._agenda.mark(event.frontend, key)
        if event.flush and key is not None and backend is not None:
            self._debts.owe(FlushKey(key, backend.address.packed), Cause.OPERATOR)

    def _connected(self) -> None:
        self._mirror.connected()
        self._request_full("connect")

    def _disconnected(self, why: str) -> None:
        self._mirror.disconnected()
        self._verification.forget()

    def _request_full(self, reason: str) -> None:
        self._timetable.ask(reason)
        self._wake.set()

    # --------------------------------------------------------------------------------------------------------- tasks

    async def run(self) -> None:
        """Keep VPP in sync until cancelled. The client's own ``run`` is another task."""
        if not self._announced.begun and self._announced.in_force.frontends:
            self._configure()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._configurations())
                group.create_task(self._batches())
                group.create_task(self._full_syncs())
                group.create_task(keep_flushes(self._debts, self._store, self._clock))
        finally:
            keep_flushes_now(self._debts, self._store)
            self._stop_listening()

    async def _guarded(self, work: Coroutine[object, object, None]) -> bool:
        """Run a piece of work; a VPP that goes away or talks nonsense ends the piece and nothing else."""
        try:
            await work
        except Unavailable as error:
            self.counters.failed_syncs += 1
            log.warning("vpp-sync-broken", f"a sync ended early: {error}")
            return False
        except (ProtocolError, Refused) as error:
            # The connection stands and the answer was wrong: nothing that is known of this VPP can be relied on.
            self.counters.failed_syncs += 1
            self._mirror.forget()
            log.error("vpp-sync-broken", f"a sync ended early, the connection is made anew: {error}")
            self.client.drop(f"a sync failed: {error}")
            return False
        return True

    async def _wait_for(self, event: asyncio.Event, seconds: float) -> None:
        waiting = asyncio.ensure_future(event.wait())
        sleeping = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait([waiting, sleeping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Not awaited: a cancellation of this task that arrives meanwhile would be taken for theirs, and lost.
            waiting.cancel()
            sleeping.cancel()

    # ------------------------------------------------------------------------------------------------ configurations

    async def _configurations(self) -> None:
        """Take over reloads, prepared in slices: verdicts are programmed by the old configuration meanwhile."""
        while True:
            await self._announced.news.wait()
            self._announced.news.clear()
            if not self._announced.reloading:
                self._request_full("reload")
                self._progress.set()
                continue
            step = await self._announced.step_in_slices(self._mirror.may_serve)
            if step is not None:
                self._take_over(step)
                self._progress.set()
                left = outdated(step)
                del step
                await let_go(left)

    def _configure(self) -> None:
        """Take over the configuration in force, in one go."""
        self._take_over(self._announced.step(self._mirror.may_serve))

    def _take_over(self, step: Transition) -> None:
        """Another configuration counts from now on: every room is brought to it, in one turn of the loop."""
        self._announced.take(step)
        config, vips, state_of = step.after.config, step.after.vips, self._announced.state_of
        self._ownership.configure(vips)
        lb = config.lb
        self.pacer.max_stall_ns, self.pacer.max_duty = lb.max_stall, lb.max_duty
        if step.before is None:
            self._adoption.begin(config, state_of)
            self._ownership.hold_again(self._adoption.started_ns + lb.startup_max_delay, config.frontends)
        else:
            self._adoption.reload(config.backends, step.inherited, step.rescaled, state_of)
            self._ownership.hold(step.moved, self._clock.monotonic_ns() + lb.startup_max_delay, config.frontends)
        self._debts.forget_but(step.flushes)
        for backend, use in step.joined:
            # Its AS may be there since an earlier reload, with flows: what was owed to it left the file with it.
            if flush_owed(state := state_of(backend), flush_on_down=use.flush_on_down):
                self._debts.owe(use.flush, Cause.DOWN if state is State.DOWN else Cause.OPERATOR)
        self._adoption.lost.forget_but(vips)
        self._agenda.unpark()
        self._agenda.keep(config.frontends)
        self._agenda.forget_refusals()
        self._recreations.retry()
        self._request_full("start" if step.before is None else "reload")

    def _heed_reload(self) -> None:
        """Use a configuration that is in force and whose announcement is overdue."""
        if self._announced.watch():
            log.warning("vpp-config-unannounced", "a configuration is in force that was not announced; it is used now")
            self._configure()

    async def _reloaded(self) -> None:
        """Wait for the end of a reload that is under way; no longer than a reload may take."""
        self._heed_reload()
        while self._announced.reloading:
            self._announced.taken.clear()
            await self._wait_for(self._announced.taken, 0.1)
            self._heed_reload()

    # ------------------------------------------------------------------------------------------------------- batches

    async def _batches(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._heed_reload()
            while self._take_stock():
                async with self._work:
                    whole = await self._guarded(self._batch())
                if not whole:
                    break
            while self._verification.due and not self._choice().names:
                async with self._work:
                    whole = await self._guarded(self._verify())
                if not whole:
                    break
            self._progress.set()

    async def _batch(self) -> None:
        """Program the newest state of what is dirty, or as much of it as one batch may hold."""
        urgent = await self._serving_nobody()
        names = self._choice(urgent).names
        if not names:
            return
        batch = self._agenda.take(names, urgent)
        try:
            for name in names:
                self._adoption.warmup.release(name)
            keys = self._announced.current.keys
            await self._readback.stale(keys[name] for name in names if name in keys)
            self.counters.batches += 1
            await self._programmer.apply(names, Extent(), first=() if urgent else self._agenda.cut)
        except BaseException:
            self._agenda.again(names)
            raise
        self._agenda.done(batch)

    def _take_stock(self) -> bool:
        """Set aside what the warm-up holds; returns whether anything can be programmed now."""
        choice = self._choice()
        self._agenda.park(choice.held)
        self.counters.suppressed += len(choice.held)
        for name in choice.held:
            log.debug("vpp-sync-suppressed", f"sync of frontend {name} suppressed by the warm-up", frontend=name)
        return bool(choice.names)

    def _choice(self, urgent: Iterable[str] = ()) -> Choice:
        """What a batch would program now. Changes nothing."""
        if not self._agenda.waiting or not self._writable:
            return NOTHING
        source = self._announced.source
        frontends = source.config().frontends
        before = source if isinstance(source, Before) else None

        def admission(name: str) -> Admission:
            if before is not None and (name not in frontends or before.waits(frontends[name])):
                return Admission.LATER
            return Admission.ADMITTED if self.released(name) else Admission.HELD

        def members(name: str) -> int:
            return sum(len(pool.members) for pool in frontends[name].pools)

        return self._agenda.choose(urgent, admission, members)

    @property
    def _writable(self) -> bool:
        """Whether VPP may be written to at all. Its settings come first: see ``fullsync``."""
        known = self.client.usable and self._mirror.actual is not None and self._mirror.primed
        return known and self._announced.begun and not self._adoption.silent

    async def _serving_nobody(self) -> list[str]:
        """Dirty frontends that nobody serves in VPP, as many as a batch may hold, as far as they may overtake."""
        pace = Pace()
        names: list[str] = []
        for name in self._agenda.overtaking():
            await pace.breathe()
            found = self._mirror.find(self._announced.current.keys.get(name))
            if found is None or not found.serves:
                names.append(name)
                if len(names) == MOST_MEMBERS:
                    break
        return names

    async def _verify(self) -> None:
        """Read one VIP back that was written."""
        self._mirror.demand()
        key = self._verification.take()
        found = self._mirror.find(key)
        if key is None or found is None:
            return  # The connection was lost and made again while this waited for its turn, or the VIP is gone.
        written = found.ases
        await self._readback.ases([key])
        self._mirror.demand()
        found = self._mirror.find(key)
        if found is None:
            return
        if ases_drift(written, found.ases):
            name = self._announced.current.names.get(key)
            if name is not None and self._verification.contest(key, self._clock.monotonic_ns()):
                self._agenda.mark(name, key)
                self._wake.set()
            return
        self._check_buckets(found)

    def _check_buckets(self, vip: ActualVip) -> None:
        """Compare the buckets of a VIP that reads back as it was written with what its weights give."""
        wrong = differing(vip)
        if not wrong:
            return
        self.counters.bucket_mismatches += 1
        address, (has, should) = next(iter(wrong.items()))
        log.error(
            "vpp-buckets-differ",
            f"VIP {vip.key}: {len(wrong)} ASes have other buckets than their weights give, {address_text(address)}"
            f" {has} instead of {should}: forecasts for this VPP cannot be trusted",
            vip=str(vip.key),
            ases=len(wrong),
        )

    # ----------------------------------------------------------------------------------------------------- full syncs

    async def _full_syncs(self) -> None:
        """Full syncs: when one is asked for, at the phases of the warm-up, and every sync interval."""
        phase = self._adoption.warmup.phase
        while True:
            await self._wait_for(self._timetable.asked, self._next_due() / 1e9)
            self._syncing = True
            if self._announced.begun and self._adoption.patience_ns == 0:
                # Backends of a VPP that has not been seen by now are presumed nothing.
                self._adoption.settle(())
            changed, phase = self._adoption.warmup.phase is not phase, self._adoption.warmup.phase
            now = self._clock.monotonic_ns()
            self._agenda.again(self._ownership.expire(now))
            if changed:
                self._agenda.unpark()
            interval = self._announced.current.config.lb.sync_interval
            reason = self._timetable.take(now, interval, phase_changed=changed)
            self._heed_reload()
            announced = self._announced.begun and not self._announced.reloading
            if reason and self.client.usable and announced:
                await self._guarded(self._full_sync(reason))
            self._syncing = False
            self._wake.set()
            self._progress.set()

    def _next_due(self) -> int:
        """Until there is something to do for the task of the full syncs, nanoseconds."""
        now = self._clock.monotonic_ns()
        due = [self._timetable.due_in(now, self._announced.current.config.lb.sync_interval)]
        due += [one for one in (self._adoption.due_in(), self._ownership.expires_in(now)) if one is not None]
        return max(min(due), 1_000_000)

    async def _full_sync(self, reason: str) -> None:
        fresh = self._mirror.actual is None
        if fresh:
            async with self._work:
                await self._first_read()
        if self._adoption.silent:
            self.counters.suppressed += 1
            log.debug("vpp-sync-suppressed", f"full sync ({reason}) suppressed by the warm-up", reason=reason)
            return
        await self.sync_all(fresh=fresh, reason=reason)

    async def _first_read(self) -> None:
        """Read everything after connecting, and adopt what is there."""
        connects = self.client.connects
        read = await self._readback.everything()
        self.client.still_connected(connects)
        info = self.client.info()
        assert info is not None
        compared = self._mirror.compare(read, started_ns=info.started_ns, connected_ns=info.connected_ns)
        if compared.known is not None and compared.anew:
            self._adoption.lost.restarted()
        pace = Pace()
        for fact in compared.facts():
            self._report(fact)
            await pace.breathe()
        self._agenda.forget_refusals()
        self._recreations.retry()
        found = await in_slices(look_at(read.vips, self._announced.states))
        # What was read of a connection that is gone is no mirror of the VPP behind the next.
        self.client.still_connected(connects)
        self._mirror.install(read)
        for key, multiple in self._adoption.adopt(found).items():
            log.info(
                "vpp-scale-adopted",
                f"the weights of VIP {key} in VPP are {multiple} times ours; they stay so until a sync is asked for",
                vip=str(key),
            )
        self._wake.set()

    # --------------------------------------------------------------------------------------------------------- facts

    def _report(self, fact: Fact) -> None:
        """Something was read."""
        if fact.lost is not None and fact.lost.key in self._announced.current.vips:
            self._adoption.lose(fact.lost)
        if fact.drift:
            self._report_drift(fact.key, fact.drift)

    def _report_drift(self, key: VipKey | None, found: Collection[Drift]) -> None:
        self.counters.drift.update(one.kind for one in found)
        words = "; ".join(one.words for one in list(found)[:MOST_TOLD])
        if len(found) > MOST_TOLD:
            words += f"; and {len(found) - MOST_TOLD} more"
        where = f"VIP {key}: " if key is not None else ""
        log.warning(
            "vpp-drift",
            f"somebody else has changed VPP: {where}{words}",
            vip=str(key or ""),
            kinds=" ".join(sorted({one.kind for one in found})),
            differences=len(found),
        )

    # ------------------------------------------------------------------------------------------------------- requests

    async def sync(self, name: str | None, *, force: bool, by: str) -> SyncResult:
        """What an operator asks for: one frontend, or all. Raises ``NotAllowed`` during the warm-up."""
        if name is not None:
            return await self.sync_one(name, force=force, by=by)
        self._mirror.demand()
        if not self._adoption.done:
            seconds = self._adoption.warmup.remaining_ns / 1e9
            raise NotAllowed(f"the warm-up lasts {seconds:.1f} s more; no full sync on request before")
        log.info("vpp-sync-requested", "full sync requested", by=by, force=force)
        return await self._checked(self.sync_all(force=force, explicit=True, reason=f"requested by {by}"))

    async def sync_all(
        self, *, force: bool = False, fresh: bool = False, explicit: bool = False, reason: str = "request"
    ) -> SyncResult:
        """Bring all of VPP to the desired state; see ``FullSync.run``. Raises ``Unavailable`` when VPP is away."""
        return await self._full.run(force=force, fresh=fresh, explicit=explicit, reason=reason)

    async def sync_one(self, name: str, *, force: bool = False, by: str = "") -> SyncResult:
        """Read one VIP back and bring it to the desired state. Never deletes a VIP; notes say what a full sync would.

        Raises ``UnknownName``, ``Unavailable``, and ``NotAllowed`` while the warm-up holds the frontend.
        """
        frontend = self.frontend(name)
        self._mirror.demand()
        if not self._adoption.warmup.released(frontend, self._announced.state_of):
            raise NotAllowed(f"frontend {name} is not released by the warm-up yet")
        self._adoption.warmup.release(name)
        log.info("vpp-sync-requested", f"sync of frontend {name} requested", by=by, frontend=name)
        return await self._checked(self._sync_one(frontend, force))

    async def _sync_one(self, frontend: Frontend, force: bool) -> SyncResult:
        result = SyncResult()
        key = vip_key(frontend)
        self._adoption.unscale([key])
        self._agenda.mark(frontend.name, key)
        while True:
            await self._reloaded()
            async with self._work:
                await self._readback.vips()
                await self._readback.ases([key])
                plan, outcome = await self._programmer.apply([frontend.name], Extent(force=force))
            self._wake.set()
            result.add(plan, outcome)
            if not outcome.rest:
                return result

    async def _checked(self, work: Coroutine[object, object, T]) -> T:
        """Work that a caller waits for, who is told what VPP does wrong."""
        try:
            return await work
        except (ProtocolError, Refused) as error:
            self._mirror.forget()
            self.client.drop(f"a sync failed: {error}")
            raise Unavailable(str(error)) from error

    async def refresh(self, names: Iterable[str] | None = None) -> Actual:
        """Read VPP, paced; all of it, or the VIPs of these frontends. Raises ``Unavailable``."""
        async with self._work:
            await self._readback.settings()
            await self._readback.vips()
        actual, frontends = self._mirror.demand(), self._announced.in_force.frontends
        if names is None:
            keys = sorted(actual.vips, key=lambda key: key.sort_key)
        else:
            keys = [vip_key(frontends[name]) for name in names if name in frontends]
        await self._full.read_by_turns(keys)
        return self._mirror.demand()
