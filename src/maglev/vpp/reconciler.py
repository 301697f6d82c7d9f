"""The single path from an event to a VPP call.

Events mark frontends dirty and flushes owed, at once and without waiting. One batch is in flight at a time: it takes
the newest state of everything dirty, plans, sends a bounded piece of the plan, and what is left or changed meanwhile
goes out with the next. A full sync walks over all VIPs in small pieces between the batches, reads each back, and
repairs what differs. What VPP holds is kept in a mirror that is read at connect and moved on by acknowledged calls.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Collection, Coroutine, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Protocol, TypeVar

from maglev.base import logs
from maglev.base.clock import Clock
from maglev.base.errors import NotAllowed, Unavailable, UnknownName
from maglev.base.events import BackendEvent, ConfigEvent, DrainEvent, Event, EventSource, WeightEvent
from maglev.base.pace import Pace, let_go
from maglev.base.states import State
from maglev.config.model import Config, Frontend
from maglev.judgement.weights import StateSource, flush_owed, frontend_weights
from maglev.vpp.announced import Announced, Before, outdated
from maglev.vpp.buckets import differing
from maglev.vpp.client import Refused, VppClient
from maglev.vpp.configured import Transition
from maglev.vpp.counters import Counters
from maglev.vpp.debts import Debts
from maglev.vpp.desired import DesiredVip, desired_vips
from maglev.vpp.drift import Drift, ases_drift, conf_drift, drift, vip_drift
from maglev.vpp.executor import Executor, Outcome, Pacer, RefusalKey
from maglev.vpp.lost import LostWeights
from maglev.vpp.messages import AsDetails, Encap, ProtocolError, VipKey, address_text
from maglev.vpp.model import Actual, ActualVip, vip_key
from maglev.vpp.state import StateReader, describe, fill, new_vip, table_length
from maglev.vpp.store import (
    FLUSHES,
    HELD,
    VIPS,
    MemoryStore,
    Store,
    held_from_json,
    held_to_json,
    owed_from_json,
    owed_to_json,
    vips_from_json,
    vips_to_json,
)
from maglev.vpp.sync import (
    COUNTED,
    Cause,
    CostModel,
    FlushKey,
    Op,
    Owed,
    Plan,
    Policy,
    Step,
    acknowledge,
    common_multiple,
    diff,
    scaled,
)
from maglev.vpp.warmup import Phase, WarmUp

log = logs.get(__name__)

T = TypeVar("T")

BUDGET_STALLS = 20
"""A batch ends after this many times ``max-stall`` of estimated work, so that newer changes get their turn."""

MOST_MEMBERS = 200
"""About how many pool members one batch plans for: few milliseconds of the loop."""

PIECE_MEMBERS = 100
"""The same for one piece of a full sync: nobody waits for it, and a verdict may wait behind it."""

MOST_TOLD = 5
"""How many differences of one VIP the log names."""

DRIFT_WINDOW_NS = 600 * 1_000_000_000
DRIFT_RECREATIONS = 2
ADOPTION_PATIENCE_NS = 5 * 1_000_000_000
"""The least time that a VPP is given to be read for the first time."""

KEEP_SECONDS = 3.0
"""How long a flush is owed before it is written down for the case of a restart."""


class Presumption(Protocol):
    """Who is told which backends VPP already sends traffic to; the checker."""

    def settle(self, names: Iterable[str]) -> None:
        """Only these are presumed good from now on. Called once."""
        ...


@dataclass(slots=True)
class SyncResult:
    """What a sync did: the steps that were planned (with notes), and the calls that VPP refused, in words."""

    plan: Plan = field(default_factory=Plan)
    done: list[Step] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, plan: Plan, outcome: Outcome) -> None:
        """Take in one batch of the sync."""
        sent = len(plan.steps) - len(outcome.rest)
        self.plan.steps.extend(plan.steps[:sent])
        self.plan.notes.extend(note for note in plan.notes if note not in self.plan.notes)
        self.plan.unmanaged = plan.unmanaged or self.plan.unmanaged
        self.done.extend(outcome.done)
        self.failures.extend(outcome.failures)


class Reconciler:
    """Brings VPP to the desired state and keeps it there. Create it before the first event, then ``run``.

    ``started_ns``: the clock's monotonic time at the start of the process, from which the warm-up counts.
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
    ) -> None:
        self.client = client
        self.counters = Counters()
        self.unmanaged: tuple[VipKey, ...] = ()
        self.last_full_sync_at_ns = 0
        self.last_full_sync_changes = 0
        self._announced = Announced(states, clock)
        self._clock = clock
        self._started_ns = clock.monotonic_ns() if started_ns is None else started_ns
        self._presumption = presumption
        self._store = store or MemoryStore()
        self._owned: set[VipKey] = set(vips_from_json(self._store.get(VIPS)))
        self._warmup = WarmUp(clock, min_delay_ns=0, max_delay_ns=0, started_ns=self._started_ns)
        self._reader = StateReader(client)
        self._pacer = Pacer(clock, max_stall_ns=5_000_000, max_duty=0.5)
        self._executor = Executor(client, self._pacer, self._acknowledged)
        self._actual: Actual | None = None
        self._dirty: dict[str, None] = {}
        self._parked: dict[str, None] = {}
        self._cut: dict[str, None] = {}  # frontends whose steps a budget has cut off; who waits longest comes first
        self._overtaken = False  # the batch before this put frontends that nobody served before what waits
        self._debts = Debts(owed_from_json(self._store.get(FLUSHES)))
        self._held: dict[str, dict[bytes, int]] = {}
        self._multiples: dict[VipKey, Fraction] = {}
        self._natures: dict[VipKey, tuple[Encap, bool, int | None]] = {}
        self._recreations: dict[VipKey, deque[int]] = {}
        self._explained: set[VipKey] = set()
        self._frozen: set[VipKey] = set()
        self._stale: set[VipKey] = set()
        self._uncertain: set[VipKey | None] = set()  # what calls that were left open are about; None: the settings
        self._connected_ns = 0
        self._known: Actual | None = None  # what was known of VPP when the connection before this was lost
        self._lost = LostWeights()
        self._unverified: dict[VipKey, None] = {}
        self._contested: dict[VipKey, int] = {}
        self._refused: dict[VipKey | None, set[RefusalKey]] = {}  # not tried again before an event or a full sync
        self._stuck: set[VipKey] = set()  # VIPs that VPP has refused to delete since the last full sync began
        self._scope = "one"
        self._vips_changed = False
        self._listed: dict[VipKey, None] = {}  # the VIPs in the order of VPP's own list, as read last
        self._primed = False  # the global settings of this VPP have been seen to
        self._settled = False
        self._adopted = False
        self._wake = asyncio.Event()
        self._full_due = asyncio.Event()
        self._full_reason = ""
        self._syncing = False
        self._progress = asyncio.Event()
        self._work = asyncio.Lock()
        self._full = asyncio.Lock()
        self._stop_listening = events.listen(self._on_event)
        client.on_connect.append(self._connected)
        client.on_disconnect.append(self._disconnected)

    # ------------------------------------------------------------------------------------------- what others may ask

    @property
    def warmup_state(self) -> WarmUp:
        """The warm-up."""
        return self._warmup

    @property
    def actual(self) -> Actual | None:
        """What VPP holds, as last read and moved on by acknowledged calls; None while that is not known."""
        return self._actual

    @property
    def owed(self) -> Mapping[FlushKey, Owed]:
        """Flushes that VPP has not acknowledged."""
        return self._debts.owed

    @property
    def multiples(self) -> Mapping[VipKey, Fraction]:
        """VIPs that keep the scale in which they were found."""
        return self._multiples

    @property
    def lost(self) -> LostWeights:
        """Weights that VPP had and shows no longer."""
        return self._lost

    @property
    def pacer(self) -> Pacer:
        """The pace, with its calibration."""
        return self._pacer

    @property
    def refusals(self) -> int:
        """Calls that VPP refused."""
        return self._executor.refusals

    @property
    def quiet(self) -> bool:
        """Whether nothing is in flight, and nothing waits that could be programmed now."""
        waits = self._wake.is_set() or self._full_due.is_set() or self._syncing
        waits = waits or self._announced.news.is_set() or self._announced.reloading
        locked = self._work.locked() or self._full.locked()
        return not waits and not locked and not self._unverified and not self._takeable()

    async def settled(self) -> None:
        """Wait until ``quiet``."""
        while not self.quiet:
            self._progress.clear()
            await self._progress.wait()

    async def serving(self) -> frozenset[VipKey]:
        """The VIPs that should have servers now: VPP has some there, or health and configuration want some."""
        pace = Pace()
        serving: set[VipKey] = set()
        for key, vip in list(self._actual.vips.items()) if self._actual is not None else ():
            await pace.breathe()
            # Looked up each time: the configuration may be another since the last.
            name = self._announced.current.names.get(key, "")
            frontend = self._announced.in_force.frontends.get(name)
            if vip.serves or (frontend is not None and frontend_weights(frontend, self._announced.states).usable):
                serving.add(key)
        return frozenset(serving)

    def cost(self) -> CostModel:
        """What calls cost on this VPP."""
        info = self.client.info()
        conf = self._actual.conf if self._actual is not None else None
        return CostModel(
            sticky_buckets=conf.sticky_buckets_per_core if conf is not None else 1024,
            workers=info.workers if info is not None else 1,
            factor=self._pacer.factor,
        )

    def desired(
        self, names: Iterable[str], source: StateSource | None = None, *, new: frozenset[str] = frozenset()
    ) -> list[DesiredVip]:
        """The wanted VIPs of these frontends, as of now. ``new``: backends that ``source`` would bring or move."""
        unresolved = self._warmup.unresolved
        return desired_vips(
            names,
            source or self._announced.states,
            unresolved=unresolved | new if new else unresolved,
            found=self._actual.vips if self._actual is not None else None,
            lost=self._lost,
            held=self._held_of,
        )

    def policy(
        self,
        *,
        full: bool,
        prune_rest: bool,
        force: bool,
        config: Config | None = None,
        unscaled: Collection[VipKey] = frozenset(),
        first: Iterable[str] = (),
    ) -> Policy:
        """What a plan may do now; with ``config`` after a reload to it.

        ``unscaled``: VIPs whose adopted scale is to be given up, as a sync on request does. ``first``: frontends that
        come before all others.
        """
        config = config or self._announced.in_force
        keys = self._announced.current.keys
        return Policy(
            full=full,
            prune_rest=prune_rest,
            force=force,
            lb=config.lb,
            configured=self._announced.vips_of(config),
            owned=self._owned,
            frozen=frozenset(self._frozen),
            stuck=self._stuck,
            multiples={key: multiple for key, multiple in self._multiples.items() if key not in unscaled},
            lost=self._lost,
            first={keys[name]: place for place, name in enumerate(first) if name in keys},
            cost=self.cost(),
        )

    def released(self, name: str) -> bool:
        """Whether the warm-up lets this frontend be written to."""
        config = self._announced.current.config if self._announced.begun else self._announced.in_force
        frontend = config.frontends.get(name)
        return frontend is not None and self._warmup.released(frontend, self._announced.state_of)

    # -------------------------------------------------------------------------------------------------------- events

    def _on_event(self, event: Event) -> None:
        """Called at once with every event of the checker. Marks, and never waits."""
        if isinstance(event, BackendEvent):
            self._backend_changed(event)
        elif isinstance(event, WeightEvent):
            self._mark(event.frontend)
            backend = self._announced.current.config.backends.get(event.backend)
            key = self._announced.current.keys.get(event.frontend)
            if event.flush and key is not None and backend is not None:
                self._debts.owe(FlushKey(key, backend.address.packed), Cause.OPERATOR)
        elif isinstance(event, DrainEvent):
            for use in self._announced.current.uses.get(event.name, ()):
                self._mark(use.frontend)
        elif isinstance(event, ConfigEvent):
            if self._announced.begun:
                self._announced.news.set()
            else:
                self._configure()
        else:
            return
        self._wake.set()

    def _backend_changed(self, event: BackendEvent) -> None:
        if event.from_state == event.to_state:
            return
        # The first verdict since the start is no transition: the server may have been like this all the time. Were it
        # owed a flush, each restart would evict what a dead server's standbys have long taken over. What an operator
        # does is one at any time.
        first = (
            event.to_state is not State.UNKNOWN and self._warmup.resolved(event.name) and event.to_state is State.DOWN
        )
        to = event.to_state
        for use in self._announced.current.uses.get(event.name, ()):
            self._mark(use.frontend)
            # What is removed is deleted with a flush.
            if not first and to is not State.REMOVED and flush_owed(to, flush_on_down=use.flush_on_down):
                self._debts.owe(use.flush, Cause.DOWN if to is State.DOWN else Cause.OPERATOR)

    def _mark(self, name: str) -> None:
        self._dirty[name] = None
        self._parked.pop(name, None)
        if self._refused and (key := self._announced.current.keys.get(name)) is not None:
            self._refused.pop(key, None)

    def _configure(self) -> None:
        """A configuration took effect: take it over in one go."""
        self._take_over(self._announced.step(self._serves_at))

    async def _configurations(self) -> None:
        """Take over reloads, prepared in slices: verdicts are programmed by the old configuration meanwhile."""
        while True:
            await self._announced.news.wait()
            self._announced.news.clear()
            if self._announced.reloading:
                await self._reconfigure()
            else:
                self._request_full("reload")
                self._progress.set()

    async def _reconfigure(self) -> None:
        step = await self._announced.step_in_slices(self._serves_at)
        if step is None:
            return
        self._take_over(step)
        self._progress.set()
        left = outdated(step)
        del step
        await let_go(left)

    def _serves_at(self, key: VipKey, address: bytes) -> bool:
        """Whether VPP sends traffic to this address in this VIP, or may do so: it has not been read."""
        if self._actual is None:
            return True
        found = self._actual.vips.get(key)
        have = found.ases.get(address) if found is not None else None
        return have is not None and have.weight > 0

    def _take_over(self, step: Transition) -> None:
        first = step.before is None
        self._announced.take(step)
        new = step.after.config
        self._own(step.after.vips)
        lb = new.lb
        self._pacer.max_stall_ns, self._pacer.max_duty = lb.max_stall, lb.max_duty
        if first:
            self._warmup = WarmUp(
                self._clock,
                min_delay_ns=lb.startup_min_delay,
                max_delay_ns=lb.startup_max_delay,
                started_ns=self._started_ns,
            )
            self._warmup.begin(new.backends, self._announced.state_of)
            self._hold_again(new)
        else:
            self._warmup.forget(new.backends)
            self._warmup.inherit(step.inherited, self._announced.state_of)
            self._hold(step.moved, new)
            for key in step.rescaled:
                self._multiples.pop(key, None)
        self._debts.forget_but(step.flushes)
        for backend, use in step.joined:
            # Its AS may be there since an earlier reload, with flows: what was owed to it left the file with it.
            if flush_owed(state := self._announced.state_of(backend), flush_on_down=use.flush_on_down):
                self._debts.owe(use.flush, Cause.DOWN if state is State.DOWN else Cause.OPERATOR)
        self._lost.forget_but(step.after.vips)
        self._unpark()
        self._dirty = {name: None for name in self._dirty if name in new.frontends}
        self._cut = {name: None for name in self._cut if name in new.frontends}
        self._forget_refusals()
        self._request_full("start" if first else "reload")

    def _hold(self, moved: Mapping[str, AbstractSet[bytes]], new: Config) -> None:
        """Old addresses of backends that got new ones: one of them may be all that serves for a while."""
        until = self._clock.monotonic_ns() + new.lb.startup_max_delay
        held = {name: of_frontend for name, of_frontend in self._held.items() if name in new.frontends}
        for name, addresses in moved.items():
            held[name] = {**held.get(name, {}), **dict.fromkeys(addresses, until)}
        self._held = held
        self._keep_held()

    def _held_of(self, name: str) -> Iterable[bytes]:
        held = self._held.get(name)
        if not held:
            return ()
        now = self._clock.monotonic_ns()
        return [address for address, until in held.items() if until > now]

    def _connected(self) -> None:
        self._forget()
        self._primed = False
        self._request_full("connect")

    def _disconnected(self, why: str) -> None:
        self._forget()
        self._stale.clear()
        self._unverified.clear()

    def _forget(self) -> None:
        """What VPP holds has to be read again."""
        self._known = self._actual or self._known
        self._actual = None

    def _request_full(self, reason: str) -> None:
        self._full_reason = reason
        self._full_due.set()
        self._wake.set()

    # ------------------------------------------------------------------------------------------------------- running

    async def run(self) -> None:
        """Keep VPP in sync until cancelled. The client's own ``run`` is another task."""
        if not self._announced.begun and self._announced.in_force.frontends:
            self._configure()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._configurations())
                group.create_task(self._batches())
                group.create_task(self._full_syncs())
                group.create_task(self._keep_flushes())
        finally:
            self._keep_flushes_at_last()
            self._stop_listening()

    async def _batches(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._heed_reload()
            while self._takeable():
                async with self._work:
                    whole = await self._guarded(self._batch())
                if not whole:
                    break
            await self._verify()
            self._progress.set()

    async def _verify(self) -> None:
        """Read back what was written, VIP by VIP, while there is nothing to write."""
        while self._unverified and not self._takeable():
            async with self._work:
                whole = await self._guarded(self._verify_one())
            if not whole:
                break

    async def _verify_one(self) -> None:
        actual = self._demand()
        if not self._unverified:
            return  # The connection was lost and made again while this waited for its turn.
        key = next(iter(self._unverified))
        del self._unverified[key]
        found = actual.vips.get(key)
        if found is None:
            return
        written = found.ases
        await self._read_ases([key])
        found = self._demand().vips.get(key)
        if found is None:
            return
        if ases_drift(written, found.ases):
            # At once, but once: two controllers that take turns must not keep VPP busy. Then the periodic sync does it.
            now = self._clock.monotonic_ns()
            name = self._announced.current.names.get(key)
            if name is not None and now >= self._contested.get(key, now):
                self._contested[key] = now + DRIFT_WINDOW_NS
                self._mark(name)
                self._wake.set()
            return
        wrong = differing(found)
        if wrong:
            self.counters.bucket_mismatches += 1
            address, (has, should) = next(iter(wrong.items()))
            log.error(
                "vpp-buckets-differ",
                f"VIP {key}: {len(wrong)} ASes have other buckets than their weights give, {address_text(address)}"
                f" {has} instead of {should}: forecasts for this VPP cannot be trusted",
                vip=str(key),
                ases=len(wrong),
            )

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
            self._forget()
            log.error("vpp-sync-broken", f"a sync ended early, the connection is made anew: {error}")
            self.client.drop(f"a sync failed: {error}")
            return False
        return True

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

    def _writable(self) -> bool:
        return (
            self.client.usable
            and self._actual is not None
            and self._primed
            and self._announced.begun
            and self._warmup.phase is not Phase.SILENT
        )

    def _takeable(self, first: Iterable[str] = ()) -> list[str]:
        """Dirty frontends that may be programmed now, no more than one batch plans for.

        Those of ``first`` come first, then what has waited longest.

        What the warm-up holds is put aside: only an event of its backends or a new phase can release it, and both bring
        it back.
        """
        if not self._dirty or not self._writable():
            return []
        source = self._announced.source
        frontends = source.config().frontends
        names: dict[str, None] = {}
        members = 0
        for name in (*first, *self._dirty):
            if name in names or name not in self._dirty:
                continue
            if isinstance(source, Before) and (name not in frontends or source.waits(frontends[name])):
                continue
            if not self.released(name):
                self._parked[name] = None
                del self._dirty[name]
                self.counters.suppressed += 1
                log.debug("vpp-sync-suppressed", f"sync of frontend {name} suppressed by the warm-up", frontend=name)
                continue
            names[name] = None
            members += sum(len(pool.members) for pool in frontends[name].pools)
            if members >= MOST_MEMBERS:
                break
        return list(names)

    async def _serving_nobody(self) -> list[str]:
        """Dirty frontends that nobody serves in VPP, as many as a batch may hold."""
        pace = Pace()
        names: list[str] = []
        for name in list(self._dirty):
            await pace.breathe()
            if not self._serves(name):
                names.append(name)
                if len(names) == MOST_MEMBERS:
                    break
        return names

    def _serves(self, name: str) -> bool:
        """Whether somebody serves this frontend in VPP."""
        key = self._announced.current.keys.get(name)
        found = self._actual.vips.get(key) if self._actual is not None and key is not None else None
        return found is not None and found.serves

    def _unpark(self) -> None:
        self._dirty.update(self._parked)
        self._parked.clear()

    async def _batch(self) -> None:
        """Program the newest state of what is dirty, or as much of it as one batch may hold."""
        urgent = [] if self._overtaken else await self._serving_nobody()
        names = self._takeable([*urgent, *self._cut])
        for name in names:
            del self._dirty[name]
        # They may come again as fast as batches go: what waits is overtaken by one batch of them at most.
        self._overtaken = bool(urgent) and bool(self._dirty) and set(names).issubset(urgent)
        if not names:
            return
        try:
            await self._refresh_stale(names)
            self.counters.batches += 1
            await self._apply(names, full=False, scope="one", first=() if urgent else self._cut)
        except BaseException:
            self._dirty.update(dict.fromkeys(names))
            raise
        self._overtaken |= bool(urgent) and bool(self._cut)

    async def _refresh_stale(self, names: Iterable[str]) -> None:
        if not self._stale:
            return
        config = self._announced.in_force
        keys = [vip_key(config.frontends[name]) for name in names if name in config.frontends]
        stale = [key for key in keys if key in self._stale]
        if stale:
            await self._read_list()
            await self._read_ases(stale)

    async def _apply(
        self,
        names: Iterable[str],
        *,
        full: bool,
        scope: str,
        prune_rest: bool = False,
        force: bool = False,
        first: Iterable[str] = (),
    ) -> tuple[Plan, Outcome]:
        """Plan for these frontends and send a bounded piece of it. What is left over is dirty again.

        Those of ``first`` come before all others.

        From the snapshot to the plan nothing waits, so that the plan is of one moment.
        """
        # Not for granted: a connection may be lost and made again while something is read that leads here.
        actual = self._demand()
        source = self._announced.source
        if isinstance(source, Before):
            # Between the choice of the names and now a reload may have begun.
            frontends = source.config().frontends
            late = [name for name in names if name in frontends and source.waits(frontends[name])]
            self._dirty.update(dict.fromkeys(late))
            names = [name for name in names if name not in late]
            full = prune_rest = False
        wanted = self.desired(names, source)
        policy = self.policy(full=full, prune_rest=prune_rest, force=force, first=first)
        plan = diff(wanted, actual, self._debts.owed, policy)
        self._debts.note(plan)
        self._note_natures(wanted)
        for note in plan.notes:
            log.debug("vpp-plan-note", note)
        # The plan is of this moment: what is marked while it is carried out is newer, and stays marked.
        planned = [vip.frontend for vip in wanted]
        for name in planned:
            self._dirty.pop(name, None)
        for key in plan.recreated:
            self._lost.recreate(key, self._weights_of(actual.vips[key]))
        self._scope = scope
        budget = BUDGET_STALLS * self._pacer.max_stall_ns
        try:
            outcome = await self._executor.run(plan.steps, budget_ns=budget, skip=self._refused)
        except BaseException:
            self._dirty.update(dict.fromkeys(planned))
            self._uncertain.update(step.vip for step in plan.steps)
            raise
        for refused in outcome.refused:
            self._note_refusal(refused)
        if outcome.done:
            self._unverified.update(dict.fromkeys(step.vip for step in outcome.done if step.vip is not None))
            self._wake.set()
        self._stale.update(key for _, key, _ in outcome.refused if key is not None)
        self._note_cut(planned, plan, outcome)
        if not outcome.rest and not outcome.refused:
            for key in plan.restored:
                self._lost.restored(key)
        return plan, outcome

    def _note_cut(self, planned: Iterable[str], plan: Plan, outcome: Outcome) -> None:
        """What the budget has cut off is dirty again. Who got none of it keeps his place, who got some goes behind."""
        if not outcome.rest and not self._cut:
            return
        sent = {step.frontend for step in plan.steps[: len(plan.steps) - len(outcome.rest)]}
        cut = dict.fromkeys(step.frontend for step in outcome.rest if step.frontend)
        for name in planned:
            if name not in cut or name in sent:
                self._cut.pop(name, None)
        self._cut.update(cut)
        self._dirty.update(cut)

    def _note_refusal(self, refused: RefusalKey) -> None:
        op, vip, _ = refused
        self._refused.setdefault(vip, set()).add(refused)
        if op is Op.DELETE_VIP and vip is not None:
            self._stuck.add(vip)
            if vip in self._announced.current.vips:
                self._count_recreation(vip)

    def _forget_refusals(self) -> None:
        """Everything may be tried again."""
        self._refused.clear()
        self._stuck.clear()

    def _note_lost(self, vip: ActualVip) -> None:
        """VPP had this and has it no longer: it was restarted, or somebody else has deleted the VIP."""
        if vip.key in self._announced.current.vips:
            self._lost.lose(vip.key, self._weights_of(vip))

    def _weights_of(self, vip: ActualVip) -> dict[bytes, int]:
        """The weights of a VIP in VPP, on our scale."""
        multiple = self._multiples.get(vip.key)
        if multiple is None:
            return {address: have.weight for address, have in vip.ases.items()}
        return {address: scaled(have.weight, 1 / multiple) for address, have in vip.ases.items()}

    def _note_natures(self, wanted: Sequence[DesiredVip]) -> None:
        """Remember what a recreation would be explained by: a change of the file."""
        for vip in wanted:
            nature = (vip.encap, vip.sticky, vip.length)
            before = self._natures.get(vip.key)
            self._natures[vip.key] = nature
            if before is not None and before != nature:
                self._explained.add(vip.key)
                self._recreations.pop(vip.key, None)
                self._frozen.discard(vip.key)

    def _note_recreation(self, key: VipKey, reason: str) -> None:
        """A configured VIP was removed, to be created again."""
        log.warning("vpp-vip-recreated", f"VIP {key} is removed and created again: {reason}", vip=str(key))
        self._count_recreation(key)

    def _count_recreation(self, key: VipKey) -> None:
        """A configured VIP was emptied, to be created again. If no change of the file explains that twice, give up."""
        if key in self._explained:
            self._explained.discard(key)
            return
        now = self._clock.monotonic_ns()
        times = self._recreations.setdefault(key, deque())
        times.append(now)
        while now - times[0] > DRIFT_WINDOW_NS:
            times.popleft()
        if len(times) >= DRIFT_RECREATIONS:
            self._frozen.add(key)
            self.counters.recreations_given_up += 1
            log.error(
                "vpp-recreation-given-up",
                f"VIP {key} had to be created again twice within ten minutes: somebody else changes it, or VPP does not"
                " delete it; from now on it is left as it is, until its configuration changes or a sync is forced",
                vip=str(key),
            )

    def _note_drift(self, key: VipKey | None, found: Sequence[Drift]) -> None:
        """Something was read that nobody here has written; ``key`` None: the global settings."""
        if not found:
            return
        self.counters.drift.update(one.kind for one in found)
        words = "; ".join(one.words for one in found[:MOST_TOLD])
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

    def _acknowledged(self, step: Step) -> None:
        """VPP has accepted a step."""
        if self._actual is not None:
            acknowledge(self._actual, step)
        if (kind := COUNTED.get(step.op)) is not None:
            self.counters.lbsync[self._scope, kind] += 1
        self._debts.acknowledged(step)
        log.info("vpp-change", step, frontend=step.frontend, backend=step.backend, vip=step.vip or "")
        if step.vip is None:
            return
        if step.address:
            self._lost.written(step.vip, step.address)
        if step.op is Op.ADD_AS and FlushKey(step.vip, step.address) in self._debts.owed:
            self._mark(step.frontend)  # It was lingering with the flows that are to go.
        elif step.op is Op.CREATE_VIP:
            self._vips_changed = True
            self._multiples.pop(step.vip, None)
            self._lost.created(step.vip)
            self._own([step.vip])
        elif step.op is Op.DELETE_VIP:
            self._vips_changed = True
            self._listed.pop(step.vip, None)
            self._multiples.pop(step.vip, None)
            if step.vip in self._announced.current.vips:
                self._note_recreation(step.vip, step.reason)
            elif step.vip in self._owned:
                self._owned.discard(step.vip)
                self._save_ownership()

    # ----------------------------------------------------------------------------------------------------- full sync

    async def _full_syncs(self) -> None:
        """Full syncs: when one is asked for, at the phases of the warm-up, and every sync interval."""
        last = self._clock.monotonic_ns()
        phase = self._warmup.phase
        while True:
            due_in = self._next_due(last)
            await self._wait_for(self._full_due, due_in / 1e9)
            asked = self._full_due.is_set()
            self._full_due.clear()
            self._syncing = True
            if self._announced.begun and self._patience_ns() == 0:
                # Backends of a VPP that has not been seen by now are presumed nothing.
                self._settle(())
            changed, phase = self._warmup.phase is not phase, self._warmup.phase
            now = self._clock.monotonic_ns()
            interval = self._announced.current.config.lb.sync_interval
            periodic = self._announced.begun and now - last >= interval
            if periodic:
                last = now
            self._expire_held()
            if changed:
                self._unpark()
            reason = self._full_reason if asked else ("warm-up" if changed else "periodic")
            self._heed_reload()
            announced = self._announced.begun and not self._announced.reloading
            if (asked or changed or periodic) and self.client.usable and announced:
                await self._guarded(self._full_sync(reason))
            self._syncing = False
            self._wake.set()
            self._progress.set()

    def _patience_ns(self) -> int:
        """How much longer to wait for a VPP to say what it holds. Delays of 0 turn the delays off, not the adoption."""
        since_start = self._clock.monotonic_ns() - self._started_ns
        return max(self._warmup.remaining_ns, ADOPTION_PATIENCE_NS - since_start, 0)

    def _next_due(self, last: int) -> int:
        now = self._clock.monotonic_ns()
        interval = self._announced.current.config.lb.sync_interval if self._announced.begun else 1_000_000_000
        due = [max(0, last + interval - now)]
        if self._warmup.phase is not Phase.DONE:
            due.append(self._warmup.next_change_ns)
        if not self._settled:
            due.append(self._patience_ns())
        due.extend(max(0, until - now) for held in self._held.values() for until in held.values())
        return max(min(due), 1_000_000)

    def _expire_held(self) -> None:
        now = self._clock.monotonic_ns()
        before = sum(len(held) for held in self._held.values())
        for name, held in list(self._held.items()):
            left = {address: until for address, until in held.items() if until > now}
            if len(left) != len(held):
                self._dirty[name] = None
            if left:
                self._held[name] = left
            else:
                del self._held[name]
        if before != sum(len(held) for held in self._held.values()):
            self._keep_held()

    async def _wait_for(self, event: asyncio.Event, seconds: float) -> None:
        waiting = asyncio.ensure_future(event.wait())
        sleeping = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait([waiting, sleeping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Not waited for: whoever cancels us meanwhile would be taken for their cancellation, and overheard.
            waiting.cancel()
            sleeping.cancel()

    async def _full_sync(self, reason: str) -> None:
        fresh = False
        if self._actual is None:
            async with self._work:
                await self._first_read()
            fresh = True
        if self._warmup.phase is Phase.SILENT:
            self.counters.suppressed += 1
            log.debug("vpp-sync-suppressed", f"full sync ({reason}) suppressed by the warm-up", reason=reason)
            return
        await self.sync_all(fresh=fresh, reason=reason)

    async def _first_read(self) -> None:
        """Read everything after connecting, the ASes VIP by VIP, and adopt what is there."""
        connects = self.client.connects
        conf = await self._reader.conf()
        actual = Actual(conf, {key: new_vip(details) for key, details in (await self._reader.vips()).items()})
        self._listed = dict.fromkeys(actual.vips)
        for vip in actual.vips.values():
            fill(vip, await self._ases_of(vip))
        if actual.vips:
            describe(actual.vips, await self._reader.verbose())
        self.client.still_connected(connects)
        await self._compare(actual)
        self._stale.clear()
        self._forget_refusals()
        presumed: set[str] = set()
        config = self._announced.in_force
        pace = Pace()
        for name in config.frontends:
            await pace.breathe()
            for wanted in desired_vips([name], self._announced.states):
                found = actual.vips.get(wanted.key)
                if found is None:
                    self._multiples.pop(wanted.key, None)
                    continue
                serving = {address for address, have in found.ases.items() if have.weight > 0}
                presumed.update(self._backends_at(config, wanted.frontend, serving))
                if wanted.key not in self._multiples and not self._adopted:
                    self._adopt_scale(wanted, actual)
        # What was read of a connection that is gone is no mirror of the VPP behind the next.
        self.client.still_connected(connects)
        self._actual = actual
        self._adopted = True
        self._settle(presumed)
        self._wake.set()

    async def _compare(self, actual: Actual) -> None:
        """Tell what somebody else has changed while there was no connection; remember what a restarted VPP has lost."""
        info = self.client.info()
        assert info is not None
        # Should this connection be lost before the mirror is in place, it is what was read that is known.
        known, self._known = self._known, actual
        uncertain, self._uncertain = self._uncertain, set()
        anew = info.started_ns > self._connected_ns
        self._connected_ns = info.connected_ns
        if known is None:
            return
        pace = Pace()
        if anew:
            self._lost.restarted()
        for key, vip in known.vips.items():
            if anew or key not in actual.vips:
                self._note_lost(vip)
            await pace.breathe()
        if not anew and actual.conf is not None and None not in uncertain:
            self._note_drift(None, conf_drift(known.conf, actual.conf))
        for key, found in drift(known, actual, uncertain=uncertain, anew=anew):
            self._note_drift(key, found)
            await pace.breathe()

    def _backends_at(self, config: Config, name: str, addresses: Iterable[bytes]) -> Iterable[str]:
        wanted = set(addresses)
        frontend = config.frontends[name]
        for pool in frontend.pools:
            for member in pool.members:
                if config.backends[member.backend].address.packed in wanted:
                    yield member.backend

    def _adopt_scale(self, wanted: DesiredVip, actual: Actual) -> None:
        multiple = common_multiple(wanted, actual.vips[wanted.key])
        if multiple != 1:
            self._multiples[wanted.key] = multiple
            log.info(
                "vpp-scale-adopted",
                f"the weights of VIP {wanted.key} in VPP are {multiple} times ours; they stay so until a sync is"
                " asked for",
                vip=str(wanted.key),
            )

    def _settle(self, names: Iterable[str]) -> None:
        if self._settled:
            return
        self._settled = True
        if self._presumption is not None:
            self._presumption.settle(names)

    async def sync_all(
        self,
        *,
        force: bool = False,
        fresh: bool = False,
        explicit: bool = False,
        reason: str = "request",
    ) -> SyncResult:
        """Bring all of VPP to the desired state, in pieces between which batches get their turn.

        ``fresh``: VPP has just been read. ``explicit``: an operator asked, so that adopted scales and given-up
        recreations end. Raises ``Unavailable`` when VPP is away.
        """
        async with self._full:
            result = SyncResult()
            self._forget_refusals()
            if explicit:
                self._multiples.clear()
            if force:
                self._frozen.clear()
                self._recreations.clear()
            if not fresh:
                async with self._work:
                    await self._read_list(conf=True)
            complete = self._warmup.phase is Phase.DONE
            # The settings come first: without a source address what is created next would tunnel from nowhere.
            await self._until_done([], result, force=force, fresh=True, prune=False)
            self._primed = True
            config = self._announced.in_force
            for piece in await self.pieces((name for name in config.frontends if self.released(name)), config):
                await self._until_done(piece, result, force=force, fresh=fresh, prune=False)
            if complete:
                refusals = (one for of_vip in self._refused.values() for one in of_vip)
                self._lost.settle({(vip, a) for op, vip, a in refusals if op is Op.ADD_AS and vip is not None})
                await self._until_done([], result, force=force, fresh=fresh, prune=True)
                self.unmanaged = tuple(result.plan.unmanaged)
            if self._vips_changed:
                async with self._work:
                    if await self._read_verbose():
                        self._request_full("drift")
            self.counters.full_syncs += 1
            self.last_full_sync_at_ns = self._clock.time_ns()
            self.last_full_sync_changes = len(result.done)
            log.log(
                logging.INFO if result.done or result.failures else logging.DEBUG,
                "vpp-full-sync",
                f"full sync ({reason}): {logs.counted(len(result.done), 'change')}, {len(result.failures)} refused",
                reason=reason,
                changes=len(result.done),
                refused=len(result.failures),
            )
            return result

    async def _until_done(
        self, names: Sequence[str], result: SyncResult, *, force: bool, fresh: bool, prune: bool
    ) -> None:
        """One piece of a full sync: read it back, and apply until nothing of it is left over."""
        first = True
        while True:
            await self._reloaded()
            if first and not fresh:
                await self._read_by_turns(self._keys_to_read(names, prune))
            await self._give_way()
            async with self._work:
                self._demand()
                live = [name for name in names if name in self._announced.in_force.frontends]
                plan, outcome = await self._apply(
                    live, full=True, scope="all", prune_rest=prune, force=force, first=self._cut
                )
            result.add(plan, outcome)
            first = False
            if not outcome.rest:
                return
            await asyncio.sleep(0)

    def _demand(self) -> Actual:
        if not self.client.usable:
            raise Unavailable(self.client.excuse)
        if self._actual is None:
            raise Unavailable("VPP has not been read yet")
        return self._actual

    def _keys_to_read(self, names: Sequence[str], prune: bool) -> list[VipKey]:
        actual = self._demand()
        config = self._announced.in_force
        keys = [vip_key(config.frontends[name]) for name in names if name in config.frontends]
        if prune:
            policy = self.policy(full=True, prune_rest=True, force=False)
            keys += [key for key in actual.vips if key not in self._announced.current.vips and policy.may_remove(key)]
        else:
            prefixes = {key.prefix for key in keys}
            keys += [key for key in actual.vips.keys() - self._announced.current.vips if key.prefix in prefixes]
        return [key for key in dict.fromkeys(keys) if key in actual.vips]

    async def pieces(self, names: Iterable[str], config: Config) -> list[list[str]]:
        """Frontends of ``config`` in the pieces of a full sync: some ``PIECE_MEMBERS`` each, one address in one piece.

        VIPs that serve nobody come first, then in numeric order.
        """
        actual = self._demand()
        pace = Pace()
        groups: dict[bytes, list[tuple[VipKey, Frontend]]] = {}
        for name in names:
            frontend = config.frontends[name]
            groups.setdefault(frontend.address.packed, []).append((vip_key(frontend), frontend))
            await pace.breathe()

        ordered: list[tuple[bool, tuple[int, bytes, int, int, int], list[Frontend]]] = []
        for group in groups.values():
            found = [actual.vips.get(key) for key, _ in group]
            serves = all(vip is not None and vip.serves for vip in found)
            ordered.append((serves, min(key.sort_key for key, _ in group), [frontend for _, frontend in group]))
            await pace.breathe()
        ordered.sort(key=lambda group: group[:2])

        pieces: list[list[str]] = []
        load = 0
        for _, _, frontends in ordered:
            members = sum(len(pool.members) for frontend in frontends for pool in frontend.pools)
            if not pieces or load + members > PIECE_MEMBERS:
                pieces.append([])
                load = 0
            pieces[-1].extend(frontend.name for frontend in frontends)
            load += members
            await pace.breathe()
        return pieces

    # ------------------------------------------------------------------------------------------------------- reading

    async def _read_list(self, *, conf: bool = False) -> None:
        """Read the list of VIPs into the mirror: new ones come without ASes, vanished ones go."""
        actual = self._demand()
        if conf:
            read = await self._reader.conf()
            self._note_drift(None, conf_drift(actual.conf, read))
            actual.conf = read
        listed = await self._reader.vips()
        for key in [key for key in actual.vips if key not in listed]:
            self._note_drift(key, [Drift("vip_missing", "it is gone")])
            self._note_lost(actual.vips.pop(key))
            self._vips_changed = True
        for key, details in listed.items():
            found = actual.vips.get(key)
            if found is None or (found.encap, found.length) != (details.encap, table_length(details)):
                made = new_vip(details)
                if key not in self._stale:
                    changed = [Drift("vip_foreign", "it has come")] if found is None else vip_drift(found, made)
                    self._note_drift(key, changed)
                actual.vips[key] = made
                self._vips_changed = True
                self._stale.add(key)
        # A VIP that was deleted and made again comes behind the others, whatever else is as it was.
        before, self._listed = self._listed, dict.fromkeys(listed)
        if [key for key in before if key in listed] != [key for key in listed if key in before]:
            self._vips_changed = True
        if self._vips_changed:
            await self._read_verbose()

    async def _read_by_turns(self, keys: Iterable[VipKey]) -> None:
        """Read the ASes of many VIPs into the mirror; between two of them verdicts get their turn."""
        for key in keys:
            await self._give_way()
            async with self._work:
                await self._read_ases([key])

    async def _give_way(self) -> None:
        """What has just become dirty comes before the next piece of what nobody waits for.

        The batches have been woken then, but have not had their turn: who does not let them have it is in front.
        """
        if self._dirty:
            await asyncio.sleep(0)

    async def _ases_of(self, vip: ActualVip) -> list[AsDetails]:
        """The ASes that VPP has in a VIP, read at the pace that forwarding can stand."""
        connects = self.client.connects
        await self._pacer.turn()
        self.client.still_connected(connects)  # Else the next VPP would be taken for the one that is known.
        read = await self._reader.ases(vip.key)
        self._pacer.start(self.cost().read(vip.length, len(read)))
        return read

    async def _read_ases(self, keys: Iterable[VipKey]) -> None:
        """Read the ASes of these VIPs into the mirror."""
        actual = self._demand()
        for key in keys:
            vip = actual.vips.get(key)
            if vip is None:
                continue
            read = await self._ases_of(vip)
            known, lingering = vip.ases, vip.lingering
            fill(vip, read)
            if key not in self._stale:
                self._note_drift(key, ases_drift(known, vip.ases))
                # More was deleted than is gone, or all: it may be another VIP by now, of the same key.
                gone = sum(address not in vip.ases for address in known)
                if vip.lingering - lingering > gone or 0 < len(known) == gone:
                    self._vips_changed = True
            self._stale.discard(key)

    async def _read_verbose(self) -> bool:
        """Read what only the CLI tells; returns whether a VIP turns out to be another than it was."""
        actual = self._demand()
        verbose = await self._reader.verbose() if actual.vips else {}
        known = {key: replace(vip) for key, vip in actual.vips.items()}
        describe(actual.vips, verbose)
        self._vips_changed = False
        changed = False
        for key, before in known.items():
            found = vip_drift(before, actual.vips[key])
            self._note_drift(key, found)
            changed |= bool(found)
        return changed

    # ------------------------------------------------------------------------------------------------------ requests

    def frontend(self, name: str) -> Frontend:
        """The configured frontend of that name. Raises ``UnknownName``."""
        frontend = self._announced.in_force.frontends.get(name)
        if frontend is None:
            raise UnknownName("frontend", name)
        return frontend

    async def sync(self, name: str | None, *, force: bool, by: str) -> SyncResult:
        """What an operator asks for: one frontend, or all. Raises ``NotAllowed`` during the warm-up."""
        if name is not None:
            return await self.sync_one(name, force=force, by=by)
        self._demand()
        if self._warmup.phase is not Phase.DONE:
            raise NotAllowed(
                f"the warm-up lasts {self._warmup.remaining_ns / 1e9:.1f} s more; no full sync on request before"
            )
        log.info("vpp-sync-requested", "full sync requested", by=by, force=force)
        return await self._checked(self.sync_all(force=force, explicit=True, reason=f"requested by {by}"))

    async def sync_one(self, name: str, *, force: bool = False, by: str = "") -> SyncResult:
        """Read one VIP back and bring it to the desired state. Never deletes a VIP; notes say what a full sync would.

        Raises ``UnknownName``, ``Unavailable``, and ``NotAllowed`` while the warm-up holds the frontend.
        """
        frontend = self.frontend(name)
        self._demand()
        if not self._warmup.released(frontend, self._announced.state_of):
            raise NotAllowed(f"frontend {name} is not released by the warm-up yet")
        log.info("vpp-sync-requested", f"sync of frontend {name} requested", by=by, frontend=name)
        return await self._checked(self._sync_one(frontend, force))

    async def _sync_one(self, frontend: Frontend, force: bool) -> SyncResult:
        result = SyncResult()
        key = vip_key(frontend)
        self._multiples.pop(key, None)
        self._mark(frontend.name)
        while True:
            await self._reloaded()
            async with self._work:
                await self._read_list()
                await self._read_ases([key])
                plan, outcome = await self._apply([frontend.name], full=False, scope="one", force=force)
            result.add(plan, outcome)
            if not outcome.rest:
                return result

    async def _checked(self, work: Coroutine[object, object, T]) -> T:
        """Work that somebody waits for: what VPP does wrong is told to him too."""
        try:
            return await work
        except (ProtocolError, Refused) as error:
            self._forget()
            self.client.drop(f"a sync failed: {error}")
            raise Unavailable(str(error)) from error

    async def refresh(self, names: Iterable[str] | None = None) -> Actual:
        """Read VPP, paced; all of it, or the VIPs of these frontends. Raises ``Unavailable``."""
        async with self._work:
            await self._read_list(conf=True)
        actual = self._demand()
        config = self._announced.in_force
        keys = (
            sorted(actual.vips, key=lambda key: key.sort_key)
            if names is None
            else [vip_key(config.frontends[name]) for name in names if name in config.frontends]
        )
        await self._read_by_turns(keys)
        return self._demand()

    # ----------------------------------------------------------------------------------------------------- ownership

    def _own(self, keys: Iterable[VipKey]) -> None:
        before = len(self._owned)
        self._owned.update(keys)
        if len(self._owned) != before:
            self._save_ownership()

    def _save_ownership(self) -> None:
        self._store.set(VIPS, vips_to_json(self._owned))

    # ----------------------------------------------------------------------------------------- kept over a restart

    async def _keep_flushes(self) -> None:
        """Write down what is owed. Nearly all is acknowledged before that, and so never written."""
        while True:
            await self._debts.changed.wait()
            await self._clock.sleep(KEEP_SECONDS)
            self._debts.changed.clear()
            pace = Pace()
            flushes: dict[str, dict[str, str]] = {}
            for _ in owed_to_json(list(self._debts.owed.items()), flushes):
                await pace.breathe()
            self._store.set(FLUSHES, flushes)

    def _keep_flushes_at_last(self) -> None:
        flushes: dict[str, dict[str, str]] = {}
        for _ in owed_to_json(self._debts.owed.items(), flushes):
            pass
        self._store.set(FLUSHES, flushes)

    def _keep_held(self) -> None:
        self._store.set(HELD, held_to_json(self._held))

    def _hold_again(self, config: Config) -> None:
        """Old addresses of backends that were moved before the restart: as long as an unknown backend keeps its own."""
        until = self._started_ns + config.lb.startup_max_delay
        for name, address in held_from_json(self._store.get(HELD)):
            if name in config.frontends:
                self._held.setdefault(name, {})[address] = until
        self._keep_held()
