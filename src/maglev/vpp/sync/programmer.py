"""From a snapshot to VPP: desired state, diff, calls, outcome.

``apply`` is the whole way. Its first half, ``_plan``, is one moment: no ``await`` is in it, so a plan never mixes
states of two moments, and every later mark is newer than the plan. Its second half sends a bounded piece of the plan.
The executor calls ``_accepted`` for each step that VPP accepts. A single call counts at once (``acknowledged``);
commands about many ASes count when a reading of their VIP shows what they did, and the mirror changes only then.
Steps that were cut off or refused go back to the agenda.

The caller holds the lock of the dataplane: one plan is under way at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from maglev.base import logs
from maglev.base.clock import Clock
from maglev.config.model import Config, MassChanges
from maglev.judgement.weights import StateSource
from maglev.vpp.planning.cost import CostModel
from maglev.vpp.planning.desired import DesiredVip, desired_vips
from maglev.vpp.planning.diff import diff
from maglev.vpp.planning.plan import COUNTED, FlushKey, Op, Plan, Step
from maglev.vpp.planning.policy import Policy
from maglev.vpp.state.announced import Before
from maglev.vpp.state.mirror import Accepted
from maglev.vpp.sync.executor import Executor, Outcome
from maglev.vpp.sync.rooms import Rooms
from maglev.vpp.wire.messages import VipKey

log = logs.get(__name__)

BUDGET_STALLS = 20
"""A batch ends after this many times ``max-stall`` of estimated work, so that newer changes need not wait longer."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How far a plan may go; ``full``, ``prune_rest`` and ``force`` as of ``Policy``.

    ``scope``: as what its changes are counted, ``one`` frontend's or ``all``.
    """

    scope: str = "one"
    full: bool = False
    prune_rest: bool = False
    force: bool = False


@dataclass(slots=True)
class SyncResult:
    """The result of a sync: its steps and notes, the steps that VPP accepted, and the refused calls in words."""

    plan: Plan = field(default_factory=Plan)
    done: list[Step] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, plan: Plan, outcome: Outcome) -> None:
        """Add one batch of the sync."""
        sent = len(plan.steps) - len(outcome.rest)
        self.plan.steps.extend(plan.steps[:sent])
        self.plan.notes.extend(note for note in plan.notes if note not in self.plan.notes)
        self.plan.unmanaged = plan.unmanaged or self.plan.unmanaged
        self.plan.undecided = plan.undecided or self.plan.undecided
        self.done.extend(outcome.done)
        self.failures.extend(outcome.failures)


class Programmer:
    """Makes plans and carries them out. Owns no state: ``Rooms`` has it."""

    def __init__(self, rooms: Rooms, executor: Executor, cost: Callable[[], CostModel], clock: Clock) -> None:
        self._rooms = rooms
        self._executor = executor
        self._cost = cost
        self._clock = clock

    # ----------------------------------------------------------------------------------------------------- the snapshot

    def desired(
        self, names: Iterable[str], source: StateSource, *, new: frozenset[str] = frozenset()
    ) -> list[DesiredVip]:
        """The wanted VIPs of these frontends, as of now. ``new``: backends that ``source`` would bring or move."""
        rooms = self._rooms
        warmup, now = rooms.adoption.warmup, self._clock.monotonic_ns()
        return desired_vips(
            names,
            source,
            unresolved=warmup.unresolved | new if new else warmup.unresolved,
            awaited=warmup.awaited | new if new else warmup.awaited,
            found=rooms.mirror.actual.vips if rooms.mirror.actual is not None else None,
            lost=rooms.adoption.lost,
            held=lambda name: rooms.ownership.held(name, now),
        )

    def policy(
        self,
        extent: Extent,
        config: Config,
        *,
        unscaled: Iterable[VipKey] = (),
        first: Iterable[str] = (),
        recorded: frozenset[VipKey] | None = None,
    ) -> Policy:
        """The limits of a plan made now, as a snapshot, with ``config`` in force.

        ``unscaled``: VIPs whose adopted scale is to be given up, as a sync on request does. ``first``: frontends that
        come before all others. ``recorded`` as of ``Policy``.
        """
        rooms = self._rooms
        configured, keys = rooms.announced.vips_of(config), rooms.announced.current.keys
        multiples = rooms.adoption.multiples
        if multiples and unscaled:
            multiples = {key: multiples[key] for key in multiples.keys() - set(unscaled)}
        return Policy(
            full=extent.full,
            prune_rest=extent.prune_rest,
            force=extent.force,
            lb=config.lb,
            configured=configured,
            owned=rooms.ownership.left_by(configured),
            frozen=rooms.recreations.frozen,
            stuck=rooms.recreations.stuck,
            waiting=rooms.pruning.held,
            recorded=recorded,
            multiples=multiples,
            first={keys[name]: place for place, name in enumerate(first) if name in keys},
            cost=self._cost(),
            commands=self.may_command(config),
            singly=rooms.agenda.singly,
        )

    def may_command(self, config: Config) -> bool:
        """Whether many ASes may change by commands of VPP's CLI: ``config`` allows it, and so does this VPP."""
        return config.lb.mass_changes is MassChanges.AUTO and self._executor.commands_usable

    # ---------------------------------------------------------------------------------------------------------- the way

    async def apply(self, names: Iterable[str], extent: Extent, *, first: Sequence[str] = ()) -> tuple[Plan, Outcome]:
        """Plan for these frontends and send a bounded piece of the plan. Unsent frontends are dirty again.

        Those of ``first`` come before all others. Raises ``Unavailable`` where VPP goes away; then all of them are
        dirty again.
        """
        wanted, plan = self._plan(names, extent, first)
        planned = [vip.frontend for vip in wanted]
        try:
            outcome = await self._executor.run(
                plan.steps,
                budget_ns=BUDGET_STALLS * self._rooms.announced.current.config.lb.max_stall,
                skip=self._rooms.agenda.refused,
                on_done=partial(self._accepted, extent.scope),
            )
        except BaseException:
            self._rooms.agenda.again(planned)
            self._rooms.mirror.left_open(step.vip for step in plan.steps)
            raise
        self._conclude(planned, plan, outcome)
        return plan, outcome

    def _plan(self, names: Iterable[str], extent: Extent, first: Sequence[str]) -> tuple[list[DesiredVip], Plan]:
        """The plan of this moment. Nothing here may wait: see the head of this module."""
        rooms = self._rooms
        # Asked for again: the connection may have been lost since the caller chose the names.
        actual = rooms.mirror.demand()
        source = rooms.announced.source
        if isinstance(source, Before):
            names, extent = self._put_off(names, source), Extent(extent.scope, force=extent.force)
        wanted = self._confirmed_ones(self.desired(names, source))
        policy = self.policy(extent, source.config(), first=first, recorded=self._recorded())
        plan = diff(wanted, actual, rooms.debts.owed, policy, lost=rooms.adoption.lost)
        rooms.debts.note(plan)
        rooms.recreations.note(wanted)
        rooms.agenda.planned(vip.frontend for vip in wanted)
        for key in plan.recreated:
            rooms.adoption.recreate(actual.vips[key])
        if not rooms.kept.inherited.isdisjoint(plan.halfway):
            # A daemon before this one was killed in the middle, and the first full sync came before the verdicts.
            rooms.request_full_sync("recreation")
        rooms.trail.planned(dict.fromkeys(step.frontend for step in plan.steps))
        for note in plan.notes:
            log.debug("vpp-plan-note", note)
        return wanted, plan

    def _recorded(self) -> frozenset[VipKey]:
        """VIPs whose recreation may begin or go on: their present weights are in the state file."""
        kept, adoption, find = self._rooms.kept, self._rooms.adoption, self._rooms.mirror.find
        return frozenset(
            key
            for key in kept.recorded
            if key in adoption.lost.recreated
            or ((vip := find(key)) is not None and kept.has(vip, adoption.own_scale(vip)))
        )

    def _put_off(self, names: Iterable[str], source: Before) -> list[str]:
        """Those of ``names`` that can go by the old configuration: a reload may have begun since they were chosen."""
        frontends = source.config().frontends
        names = list(names)
        late = [name for name in names if name in frontends and source.waits(frontends[name])]
        self._rooms.agenda.again(late)
        return [name for name in names if name not in late]

    def _confirmed_ones(self, wanted: list[DesiredVip]) -> list[DesiredVip]:
        """Those whose VIP the mirror knows. Callers read unconfirmed ones first; a reload may have brought others."""
        mirror = self._rooms.mirror
        late = [vip.frontend for vip in wanted if mirror.unconfirmed(vip.key)]
        if not late:
            return wanted
        self._rooms.agenda.again(late)
        return [vip for vip in wanted if vip.frontend not in late]

    # ------------------------------------------------------------------------------------------------------ the outcome

    def _accepted(self, scope: str, step: Step) -> None:
        """VPP has accepted a step. It counts at once, but for commands, and for what follows them in their VIP."""
        mirror, trail = self._rooms.mirror, self._rooms.trail
        for one in step.members if step.op is Op.COMMANDS else (step,):
            if one.op in COUNTED:
                trail.accepted(one.frontend, one.backend)
        if step.op is Op.COMMANDS:
            assert step.vip is not None
            mirror.defer(step.vip, [Accepted(scope, member) for member in step.members])
        elif step.vip is not None and step.op is not Op.DELETE_VIP and mirror.unconfirmed(step.vip):
            mirror.defer(step.vip, [Accepted(scope, step)])
        else:
            mirror.acknowledge(step)
            self.acknowledged(Accepted(scope, step))

    def acknowledged(self, accepted: Accepted) -> None:
        """A step counts as done; the mirror has it. All other changes that this makes are made here."""
        rooms = self._rooms
        scope, step = accepted
        if (kind := COUNTED.get(step.op)) is not None:
            rooms.counters.lbsync[scope, kind] += 1
        rooms.debts.acknowledged(step)
        if rooms.kept.watched and step.vip in rooms.kept.watched:
            rooms.kept.changed.set()
        log.info("vpp-change", step, frontend=step.frontend, backend=step.backend, vip=step.vip or "")
        if step.vip is None:
            return
        if step.address:
            rooms.adoption.lost.written(step.vip, step.address)
        if step.op is Op.ADD_AS:
            if FlushKey(step.vip, step.address) in rooms.debts.owed:
                # The AS was lingering with the flows that are to go: only now can they be flushed.
                rooms.agenda.mark(step.frontend, step.vip)
        elif step.op is Op.CREATE_VIP:
            rooms.adoption.unscale([step.vip])
            rooms.adoption.lost.created(step.vip)
            rooms.ownership.own([step.vip])
        elif step.op is Op.DELETE_VIP:
            rooms.adoption.unscale([step.vip])
            rooms.ownership.disown(step.vip)
            if step.vip in rooms.announced.current.vips:
                key, why = step.vip, step.reason
                log.warning("vpp-vip-recreated", f"VIP {key} is removed and created again: {why}", vip=str(key))
                self._count_recreation(key)

    def _conclude(self, planned: Sequence[str], plan: Plan, outcome: Outcome) -> None:
        """A plan was carried out, or as much of it as its budget holds."""
        rooms = self._rooms
        for refusal in outcome.refused:
            rooms.agenda.refuse(refusal)
            op, key, _ = refusal
            if op is Op.DELETE_VIP and key is not None:
                rooms.recreations.refused(key)
                if key in rooms.announced.current.vips:
                    self._count_recreation(key)
        for key in outcome.broken:
            rooms.counters.commands_failed += 1
            if self._executor.commands_usable:
                rooms.agenda.avoid_commands(key)
        rooms.mirror.refused([*(key for _, key, _ in outcome.refused), *outcome.broken])
        rooms.verification.written(step.vip for step in outcome.done if step.vip is not None)
        if outcome.rest or rooms.agenda.cut:
            sent = {step.frontend for step in plan.steps[: len(plan.steps) - len(outcome.rest)]}
            rooms.agenda.cut_off(planned, sent, (step.frontend for step in outcome.rest))
        if not outcome.rest and not outcome.refused:
            for key in plan.restored:
                rooms.adoption.lost.restored(key)

    def _count_recreation(self, key: VipKey) -> None:
        """A configured VIP was emptied, to be created again."""
        if not self._rooms.recreations.count(key, self._clock.monotonic_ns()):
            return
        self._rooms.counters.recreations_given_up += 1
        log.error(
            "vpp-recreation-given-up",
            f"VIP {key} had to be created again twice within ten minutes: somebody else changes it, or VPP does not"
            " delete it; from now on it is left as it is, until its configuration changes or a sync is forced",
            vip=str(key),
        )
