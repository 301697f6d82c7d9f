"""The calls of one VIP, in their order: raises, drops with their flushes, deletions, new ASes at weight 0. Pure.

Raises come first, so that a VIP with a usable AS is never empty in between. A flush comes together with its drop, after
all raises, so that the evicted flows spread over every AS that took over, not just over the first one that was raised.

Of each of these parts, changes of many ASes become commands where those cost VPP less (``together``). They keep their
place: all commands of the raises come before the first drop.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from maglev.base.states import State
from maglev.vpp.planning.context import VipContext
from maglev.vpp.planning.cost import CostModel
from maglev.vpp.planning.desired import DesiredAs, DesiredVip
from maglev.vpp.planning.model import ActualVip, address_order
from maglev.vpp.planning.plan import Op, Settles, Step
from maglev.vpp.planning.policy import Policy
from maglev.vpp.planning.scale import passes
from maglev.vpp.planning.together import FEWEST_NEW, Bundler, Shape
from maglev.vpp.wire.messages import VipKey


class _Calls:
    """The calls of a VIP so far, and the weights that result. The sum of the weights decides what a call costs."""

    def __init__(self, key: VipKey, frontend: str, length: int, weights: dict[bytes, int], cost: CostModel) -> None:
        self.steps: list[Step] = []
        self.weights = weights
        self._key = key
        self._frontend = frontend
        self._length = length
        self._total = sum(weights.values())
        self._cost = cost
        self._flush_ns = cost.flush()

    def weight(
        self, address: bytes, weight: int, backend: str = "", *, settles: Settles | None = None, guarded: bool = False
    ) -> None:
        """Add the AS, or set its weight; with flush if ``settles`` is given. A new AS needs no flush."""
        old = self.weights.get(address)
        self._total += weight - (old or 0)
        self.weights[address] = weight
        flush = settles is not None and old is not None
        self.steps.append(
            # Arguments by position: keywords would make the plan of a mass failure, with its thousands of steps, 5 %
            # slower.
            Step(
                Op.ADD_AS if old is None else Op.SET_WEIGHT,
                self._key,
                self._frontend,
                backend,
                address,
                old or 0,
                weight,
                flush,
                self._call_cost(flush),
                settles or (),
                guarded,
            )
        )

    def delete(self, address: bytes, *, flush: bool, guarded: bool = False) -> None:
        """Delete the AS."""
        old = self.weights.pop(address)
        self._total -= old
        self.steps.append(
            Step(
                Op.DELETE_AS,
                self._key,
                self._frontend,
                "",
                address,
                old_weight=old,
                flush=flush,
                cost_ns=self._call_cost(flush),
                guarded=guarded,
            )
        )

    def flush(self, settles: Settles = ()) -> None:
        """Evict every flow of the VIP."""
        cost = self._cost.plain() + self._flush_ns
        self.steps.append(Step(Op.FLUSH_VIP, self._key, self._frontend, flush=True, cost_ns=cost, settles=settles))

    def shape(self, lingering: int) -> Shape:
        """The VIP as the calls so far leave it; ``lingering``: its deleted ASes."""
        return Shape(self._length, len(self.weights) + lingering, self._total)

    def bundle(self, start: int, shape: Shape, bundler: Bundler) -> None:
        """Make commands of those steps from ``start`` on that may be made together, where that costs less.

        ``shape``: the VIP before them. The steps must be of one part: raises, drops, or additions at weight 0.
        """
        steps = self.steps[start:]
        groups: dict[_Group, list[Step]] = {}
        for step in steps:
            if (group := _group_of(step)) is not None:
                groups.setdefault(group, []).append(step)
        commands: list[Step] = []
        for group, members in groups.items():
            made = bundler.bundle(members, shape)
            if made is members:
                continue
            commands += made
            change = sum(member.weight - member.old_weight for member in members)
            shape = Shape(shape.length, shape.ases + (len(members) if group.adds else 0), shape.total + change)
            steps = [step for step in steps if _group_of(step) != group]
        if commands:
            self.steps[start:] = [*commands, *steps]

    def _call_cost(self, flush: bool) -> int:
        return self._cost.rebuild(self._length, self._total) + (self._flush_ns if flush else 0)


class _Group(NamedTuple):
    """Steps of one part that one command may contain."""

    adds: bool
    flush: bool
    guarded: bool


def _group_of(step: Step) -> _Group | None:
    """The group of a step; None if only a call of its own may make it.

    An AS that has a weight and keeps one must not be deleted for a moment: its buckets would go to others. A raise
    that flushes is the last of the raises, since its flows are to spread over all of them.
    """
    if step.op is Op.ADD_AS:
        return _Group(True, False, step.guarded)
    if step.op is not Op.SET_WEIGHT or (step.weight > 0 and (step.old_weight > 0 or step.flush)):
        return None
    return _Group(False, step.flush, step.guarded)


def create_vip(vip: DesiredVip, length: int, cost: CostModel) -> Step:
    """The call that creates an empty VIP, with a table of ``length`` buckets."""
    return Step(
        Op.CREATE_VIP,
        vip.key,
        vip.frontend,
        encap=vip.encap,
        length=length,
        sticky=vip.sticky,
        cost_ns=cost.rebuild(length, 0),
    )


def delete_vip(found: ActualVip, frontend: str, reason: str, cost: CostModel) -> list[Step]:
    """Empty a VIP, flush it, and delete it.

    VPP does not flush when it deletes a VIP, and afterwards no call can address its ASes any more: without the flush,
    their flows would stay on them for ever.
    """
    weights = {address: present.weight for address, present in found.ases.items()}
    calls = _Calls(found.key, frontend, found.length, weights, cost)
    addresses = sorted(found.ases, key=address_order)
    for address in addresses:
        if weights[address] > 0:
            calls.weight(address, 0)
    if (found.ases or found.lingering) and not found.flushed:
        calls.flush()
    for address in addresses:
        calls.delete(address, flush=False)
    return [*calls.steps, Step(Op.DELETE_VIP, found.key, frontend, cost_ns=cost.plain(), reason=reason)]


def write_vip(context: VipContext, due: Mapping[bytes, Settles], policy: Policy) -> list[Step]:
    """The calls that give the ASes of a VIP their weights, in passes when its scale changes.

    ``due``: as in ``Flushes``. The first pass also makes all flushes and deletions, and ends with the new ASes at
    weight 0.
    """
    return _WeightCalls(context, due, policy).steps()


class _WeightCalls:
    """Writes the weights of one VIP, pass by pass."""

    def __init__(self, context: VipContext, due: Mapping[bytes, Settles], policy: Policy) -> None:
        self._context = context
        self._due = due
        vip = context.wanted
        weights = {address: present.weight for address, present in context.present.items()}
        self._calls = _Calls(vip.key, vip.frontend, context.length, weights, policy.cost)
        self._bundler = Bundler(policy.cost, policy.lb.max_stall) if policy.may_command(vip.key) else None
        self._lingering = context.found.lingering if context.found is not None else 0
        self._ours: Mapping[bytes, DesiredAs] = {ours.address: ours for ours in vip.ases}
        self._at_once = _flushed_at_once(context, due)

    def steps(self) -> list[Step]:
        """Write all passes."""
        first, *further = passes(self._calls.weights, self._context.targets)
        with self._bundled():
            raised = self._raise(first, self._due)
        # If VPP refuses every raise, the drops would empty the VIP. The executor does not send guarded ones then.
        guarded = bool(raised) and not _stays_served(self._context)
        with self._bundled():
            self._drop(first, raised, self._due, guarded=guarded)
        if self._at_once:
            self._calls.flush(tuple(debt for settles in self._due.values() for debt in settles))
        for address in self._context.extra:
            self._calls.delete(address, flush=True, guarded=guarded and self._calls.weights[address] > 0)
        with self._bundled():
            self._add_at_zero(first)
        for goal in further:
            raised = self._raise(goal, {})
            self._drop(goal, raised, {}, guarded=bool(raised) and not _stays_served(self._context))
        return self._calls.steps

    @contextmanager
    def _bundled(self) -> Iterator[None]:
        """Make commands of the steps that are added within, where that costs less."""
        calls = self._calls
        start, shape = len(calls.steps), calls.shape(self._lingering)
        yield
        if self._bundler is not None and len(calls.steps) - start >= FEWEST_NEW:
            calls.bundle(start, shape, self._bundler)

    def _raise(self, goal: Mapping[bytes, int], due: Mapping[bytes, Settles]) -> Collection[bytes]:
        """Make the raises of this pass; returns their addresses."""
        weights = self._calls.weights
        raised = {address for address, weight in goal.items() if weight > weights.get(address, 0)}
        # A raise that also flushes comes last: its flows spread over every AS that was raised before it.
        for address in sorted(raised, key=lambda address: (address in due, address_order(address))):
            ours = self._ours.get(address)  # None: a held address, which is not configured
            backend = ours.backend if ours is not None else ""
            self._calls.weight(address, goal[address], backend, settles=due.get(address))
        return raised

    def _drop(
        self, goal: Mapping[bytes, int], raised: Collection[bytes], due: Mapping[bytes, Settles], *, guarded: bool
    ) -> None:
        """Make the drops of this pass, and the flushes of ASes that keep their weight."""
        weights, write = self._calls.weights, self._calls.weight
        for address, weight in goal.items():
            old = weights.get(address)
            if old is None or address in raised:
                continue
            settles = None if self._at_once else due.get(address)
            if weight < old or settles is not None:
                ours = self._ours[address]
                write(address, weight, ours.backend, settles=settles, guarded=guarded and _serves(ours, weight))

    def _add_at_zero(self, goal: Mapping[bytes, int]) -> None:
        weights = self._calls.weights
        for address, weight in goal.items():
            if weight == 0 and address not in weights:
                self._calls.weight(address, 0, self._ours[address].backend)


def _flushed_at_once(context: VipContext, due: Mapping[bytes, Settles]) -> bool:
    """Whether one ``lb_flush_vip`` can replace the flush of each AS: only if no flow in the VIP is to stay.

    It replaces flushes that are owed, never those that repair drift. If the budget cuts the plan between a drop and the
    ``lb_flush_vip`` after it, a debt is still there for the next plan; the flush of a drift would be forgotten.
    """
    if len(due) < 2 or context.extra or context.ghosts or not all(due.values()) or any(context.targets.values()):
        return False
    # All targets are 0 here. An AS that is not due must be known to be clean, or it may hold flows.
    return all(address in due or (have.clean and have.weight == 0) for address, have in context.present.items())


def _serves(ours: DesiredAs, target: int) -> bool:
    """Whether a drop to ``target`` removes a server from service. A failed or disabled one is not in service."""
    return target == 0 and ours.state not in (State.DOWN, State.DISABLED)


def _stays_served(context: VipContext) -> bool:
    """Whether an AS has a weight above 0 both before and after the plan, so that no raise is needed to serve."""
    targets, held = context.targets, context.held
    return any(
        have.weight > 0 and (targets.get(address, 0) > 0 or address in held)
        for address, have in context.present.items()
    )
