"""The calls of one VIP, in their order: raises, drops with their flushes, and what has weight 0. Pure.

The order keeps a VIP served: another AS has its weight before one loses its own. A flush comes with its drop, when all
raises are done, so that the flows spread over every AS that took over.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from maglev.base.states import State
from maglev.vpp.context import VipContext
from maglev.vpp.cost import CostModel
from maglev.vpp.desired import DesiredAs, DesiredVip
from maglev.vpp.messages import VipKey
from maglev.vpp.model import ActualVip, address_order
from maglev.vpp.plan import Op, Settles, Step
from maglev.vpp.scale import passes


class _Calls:
    """The calls of a VIP so far, the weights that they leave, and their sum: the cost of a call depends on it."""

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
        """Add the AS, or set its weight; with flush when ``settles`` is given. An AS that is added has no flows."""
        old = self.weights.get(address)
        self._total += weight - (old or 0)
        self.weights[address] = weight
        flush = settles is not None and old is not None
        self.steps.append(
            # All by position: made for every AS of a mass failure, and keywords would cost a tenth of a plan.
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

    def _call_cost(self, flush: bool) -> int:
        return self._cost.rebuild(self._length, self._total) + (self._flush_ns if flush else 0)


def create_vip(vip: DesiredVip, length: int, cost: CostModel) -> Step:
    """The call that creates a VIP, with a table of ``length`` buckets. VPP has it empty then."""
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

    VPP flushes nothing when it deletes a VIP, and no call can address its ASes afterwards: without the flush, flows
    would stay on them for good.
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


def write_vip(context: VipContext, due: Mapping[bytes, Settles], cost: CostModel) -> list[Step]:
    """The calls that give the ASes of a VIP their weights, in passes when its scale changes.

    ``due``: as in ``Flushes``. All that is flushed or deleted is so in the first pass, and what comes with weight 0
    comes at its end.
    """
    return _WeightCalls(context, due, cost).steps()


class _WeightCalls:
    """Writes the weights of one VIP, pass by pass."""

    def __init__(self, context: VipContext, due: Mapping[bytes, Settles], cost: CostModel) -> None:
        self._context = context
        self._due = due
        vip = context.wanted
        weights = {address: present.weight for address, present in context.present.items()}
        self._calls = _Calls(vip.key, vip.frontend, context.length, weights, cost)
        self._ours: Mapping[bytes, DesiredAs] = {ours.address: ours for ours in vip.ases}
        self._at_once = _flushed_at_once(context, due)

    def steps(self) -> list[Step]:
        """Write all passes."""
        first, *further = passes(self._calls.weights, self._context.targets)
        raised = self._raise(first, self._due)
        # Had VPP refused every raise, these drops would empty the VIP; the executor then does not send them.
        guarded = bool(raised) and not _stays_served(self._context)
        self._drop(first, raised, self._due, guarded=guarded)
        if self._at_once:
            self._calls.flush(tuple(debt for settles in self._due.values() for debt in settles))
        for address in self._context.extra:
            self._calls.delete(address, flush=True, guarded=guarded and self._calls.weights[address] > 0)
        self._add_at_zero(first)
        for goal in further:
            raised = self._raise(goal, {})
            self._drop(goal, raised, {}, guarded=bool(raised) and not _stays_served(self._context))
        return self._calls.steps

    def _raise(self, goal: Mapping[bytes, int], due: Mapping[bytes, Settles]) -> Collection[bytes]:
        """Raise what is to be raised in this pass, and say what was."""
        weights = self._calls.weights
        raised = {address for address, weight in goal.items() if weight > weights.get(address, 0)}
        # A raise that also flushes is the last one: its flows spread over every AS that was raised before it.
        for address in sorted(raised, key=lambda address: (address in due, address_order(address))):
            ours = self._ours.get(address)  # None: an address that is held, and so not configured
            backend = ours.backend if ours is not None else ""
            self._calls.weight(address, goal[address], backend, settles=due.get(address))
        return raised

    def _drop(
        self, goal: Mapping[bytes, int], raised: Collection[bytes], due: Mapping[bytes, Settles], *, guarded: bool
    ) -> None:
        """Lower what is to be lowered in this pass, and flush what is due; an AS keeps its weight where that is all."""
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
    """Whether one ``lb_flush_vip`` stands for all flushes of a VIP: where no flow in it is to stay.

    For debts only, not for drift: they stay owed where a plan is cut between a drop and the flush behind it.
    """
    if len(due) < 2 or context.extra or context.ghosts or not all(due.values()) or any(context.targets.values()):
        return False
    # All targets are 0 here, so that only an AS that is known to be clean holds no flow.
    return all(address in due or (have.clean and have.weight == 0) for address, have in context.present.items())


def _serves(ours: DesiredAs, target: int) -> bool:
    """Whether a drop to ``target`` takes away an AS that serves. A failed or disabled one does not, at any weight."""
    return target == 0 and ours.state not in (State.DOWN, State.DISABLED)


def _stays_served(context: VipContext) -> bool:
    """Whether an AS has a weight before and after the plan, without any raise."""
    targets, held = context.targets, context.held
    return any(
        have.weight > 0 and (targets.get(address, 0) > 0 or address in held)
        for address, have in context.present.items()
    )
