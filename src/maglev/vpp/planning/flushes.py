"""Which ASes a plan flushes, and why: one table. Pure.

A flush evicts the flows of an AS, and VPP assigns them to the ASes with a weight. So a flush helps only if
another AS has a weight, and harms flows that are where they belong. If no other AS can take the flows of a failed one,
its flush is deferred: VPP would pin the evicted flows to nothing for the flow time-out, while flows that stay resume as
soon as the server is back. A flush that the operator asked for (a disabled backend, a weight set with flush) is never
deferred.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from typing import NamedTuple

from maglev.base.states import State
from maglev.judgement.weights import flush_owed
from maglev.vpp.planning.context import VipContext
from maglev.vpp.planning.desired import DesiredAs
from maglev.vpp.planning.plan import Cause, FlushKey, Owed, Settles


class Why(enum.Enum):
    """The reason for a flush: the rows of the table.

    Drift: the AS has a weight above 0 although its server is disabled or down, and no transition owes a flush. Another
    controller wrote that weight.
    """

    OPERATOR = "the operator disabled the backend, or set a weight with flush"
    FAILED = "the server failed"
    WAITED = "the server failed, and an earlier plan deferred the flush"
    DRIFT_DISABLED = "drift of a disabled backend"
    DRIFT_DOWN = "drift of a failed server"

    # By identity: Enum's own hash is a call into Python, and the planner looks up a row for every AS of a mass failure.
    __hash__ = object.__hash__


class Fate(enum.Enum):
    """The fate of a flush: the cells of the table."""

    NOTHING = "no flush"
    FLUSH = "this plan flushes"
    WAIT = "the flush stays owed"
    VOID = "the flush is no longer owed"
    INCUR = "the flush becomes owed"


class Row(NamedTuple):
    """The fate of a flush by the target of its AS: the columns of the table.

    ``dropped``: the target is 0, and another AS takes the flows. ``serves``: the AS serves, and another AS does too.
    ``dropped_alone``, ``serves_alone``: no other AS takes flows. ``kept``: the AS failed, or its state is unknown, and
    it keeps its weight: evicted flows would come straight back.
    """

    dropped: Fate
    dropped_alone: Fate
    kept: Fate
    serves: Fate
    serves_alone: Fate


_NOTHING, _FLUSH, _WAIT, _VOID, _INCUR = Fate

# fmt: off
TABLE: Mapping[Why, Row] = {
    #                       dropped            kept      serves
    #                       (others) (alone)             (others)  (alone)
    Why.OPERATOR:       Row(_FLUSH,  _FLUSH,   _FLUSH,   _FLUSH,   _FLUSH),
    # A server that failed and serves again: if other ASes took flows meanwhile, some of its own have moved.
    Why.FAILED:         Row(_FLUSH,  _WAIT,    _WAIT,    _FLUSH,   _VOID),
    # The flows of this AS had nowhere else to go: once it serves again, they are where they belong.
    Why.WAITED:         Row(_FLUSH,  _WAIT,    _WAIT,    _VOID,    _VOID),
    Why.DRIFT_DISABLED: Row(_FLUSH,  _FLUSH,   _NOTHING, _NOTHING, _NOTHING),
    Why.DRIFT_DOWN:     Row(_FLUSH,  _INCUR,   _NOTHING, _NOTHING, _NOTHING),
}
# fmt: on


class Flushes(NamedTuple):
    """The flushes of one VIP in a plan.

    ``due``: ASes to flush, each with the debt that its flush settles, or with none if the flush repairs drift.
    ``waiting``, ``settled``, ``incurred``: as in ``Plan``.
    """

    due: Mapping[bytes, Settles]
    waiting: list[FlushKey]
    settled: list[FlushKey]
    incurred: Mapping[FlushKey, Owed]


NO_FLUSHES = Flushes({}, [], [], {})
"""The value for a VIP with nothing to flush. It is shared, so nothing may change it."""


def flushes_of(context: VipContext, owed: Mapping[FlushKey, Owed]) -> Flushes:
    """The flushes of a VIP that VPP has."""
    vip = context.wanted
    takers = _takers(context)
    due: dict[bytes, Settles] = {}
    waiting: list[FlushKey] = []
    settled: list[FlushKey] = []
    incurred: dict[FlushKey, Owed] = {}
    for ours in vip.ases:
        key = FlushKey(vip.key, ours.address)
        debt = owed.get(key)
        fate = _fate(context, ours, debt, takers)
        if fate is _FLUSH:
            due[ours.address] = ((key, debt.serial),) if debt is not None and debt.serial else ()
        elif fate is _WAIT:
            waiting.append(key)
        elif fate is _VOID:
            settled.append(key)
        elif fate is _INCUR:
            incurred[key] = Owed(Cause.DOWN, waited=True)
    return Flushes(due, waiting, settled, incurred)


class _Takers(NamedTuple):
    """The ASes of a VIP that can take flows: those known to be up, and those that may be."""

    up: Collection[bytes]
    perhaps: Collection[bytes]


def _takers(context: VipContext) -> _Takers:
    ases, targets = context.wanted.ases, context.targets
    up = {ours.address for ours in ases if ours.state is State.UP and targets[ours.address] > 0}
    up.update(address for address in context.held if context.present[address].weight > 0)
    return _Takers(up, up | {o.address for o in ases if o.state is State.UNKNOWN and targets[o.address] > 0})


def _fate(context: VipContext, ours: DesiredAs, debt: Owed | None, takers: _Takers) -> Fate:
    have = context.present.get(ours.address)
    if have is None:
        if debt is None:
            return _NOTHING
        # If another controller deleted the AS, it lingers with its flows and gets them back when it is added: the flush
        # stays owed until then. If nothing lingers in the VIP, the flows are gone too.
        return _WAIT if context.ghosts else _VOID
    if debt is None and not (have.weight > 0 and flush_owed(ours.state, flush_on_down=context.wanted.flush_on_down)):
        return _NOTHING
    why = _why(ours, debt)
    # A deferred flush needs an AS that is known to be up. A fresh one accepts an AS of unknown state as well. The
    # difference matters after a restart of the daemon, when states are unknown until their first verdict: that alone
    # must not release the flushes that were deferred before the restart.
    return _cell(TABLE[why], ours, context.targets[ours.address], takers.up if why is Why.WAITED else takers.perhaps)


def _why(ours: DesiredAs, debt: Owed | None) -> Why:
    """The row of an AS: by its debt, or by its state if it has a weight by drift."""
    if debt is None:
        return Why.DRIFT_DOWN if ours.state is State.DOWN else Why.DRIFT_DISABLED
    if debt.cause is Cause.OPERATOR:
        return Why.OPERATOR
    return Why.WAITED if debt.waited else Why.FAILED


def _cell(row: Row, ours: DesiredAs, target: int, takers: Collection[bytes]) -> Fate:
    """The cell of an AS with this target. ``takers``: addresses that can take flows; the AS itself may be one."""
    others = len(takers) > 1 or (len(takers) == 1 and ours.address not in takers)
    if target == 0:
        return row.dropped if others else row.dropped_alone
    if ours.state is State.DOWN or ours.weight is None:
        return row.kept
    return row.serves if others else row.serves_alone
