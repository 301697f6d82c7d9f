"""Which ASes a plan flushes, and why: one table. Pure.

A flush evicts the flows of an AS. They then go to the ASes with a weight, so a flush is right when there is such an AS,
and wrong when the flows already are where they belong. A failure with no other AS to take the flows is not flushed: its
flows would be pinned to nothing for the flow time-out, where without a flush they come back together with the server.
What the operator asked for (disabled, a weight set with flush) is flushed in any case.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from typing import NamedTuple

from maglev.base.states import State
from maglev.judgement.weights import flush_owed
from maglev.vpp.context import VipContext
from maglev.vpp.desired import DesiredAs
from maglev.vpp.plan import Cause, FlushKey, Owed, Settles


class Why(enum.Enum):
    """Why an AS may have to be flushed: the rows of the table.

    Drift is a weight above 0 of a server that may not have any: another controller wrote it, and nothing owes a flush
    for the transition.
    """

    OPERATOR = "owed by what the operator did"
    FAILED = "owed by a failure"
    WAITED = "owed by a failure; an earlier plan had to put it off"
    DRIFT_DISABLED = "drift of a disabled AS"
    DRIFT_DOWN = "drift of a failed AS"

    # By identity: Enum's own hash is a call into Python, and this one is asked for every AS of a mass failure.
    __hash__ = object.__hash__


class Fate(enum.Enum):
    """What becomes of a flush: the cells of the table."""

    NOTHING = "nothing"
    FLUSH = "made by this plan"
    WAIT = "stays owed"
    VOID = "is owed no longer"
    INCUR = "becomes owed"


class Row(NamedTuple):
    """What becomes of a flush, by what becomes of its AS in this plan: the columns of the table.

    ``dropped``: the weight of the AS goes to 0, or is 0, and another AS takes its flows. ``serves``: the AS serves, and
    another one does too. ``..._alone``: there is no other. ``kept``: the AS failed, or its state is not known any more,
    and it keeps its weight, so that what a flush evicts would come straight back.
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
    # A server that failed and serves again: where its flows had a choice, some of them have moved meanwhile.
    Why.FAILED:         Row(_FLUSH,  _WAIT,    _WAIT,    _FLUSH,   _VOID),
    # Its flows had nowhere else to go: where it serves again, they are where they belong.
    Why.WAITED:         Row(_FLUSH,  _WAIT,    _WAIT,    _VOID,    _VOID),
    Why.DRIFT_DISABLED: Row(_FLUSH,  _FLUSH,   _NOTHING, _NOTHING, _NOTHING),
    Why.DRIFT_DOWN:     Row(_FLUSH,  _INCUR,   _NOTHING, _NOTHING, _NOTHING),
}
# fmt: on


class Flushes(NamedTuple):
    """What a plan does about the flushes of one VIP.

    ``due``: ASes to flush, each with the debt that this settles; with none where drift is repaired. ``waiting``,
    ``settled``, ``incurred``: as in ``Plan``.
    """

    due: Mapping[bytes, Settles]
    waiting: list[FlushKey]
    settled: list[FlushKey]
    incurred: Mapping[FlushKey, Owed]


NO_FLUSHES = Flushes({}, [], [], {})
"""Of a VIP with nothing to flush. Shared, and so never changed."""


def flushes_of(context: VipContext, owed: Mapping[FlushKey, Owed]) -> Flushes:
    """The flushes of a VIP that VPP has."""
    vip, present, targets = context.wanted, context.present, context.targets
    # Whether the flows of an AS can go to another. A flush that has waited for one waits until that is known to be up:
    # after a restart the daemon knows less of the others than before, which is no reason to flush.
    up = {ours.address for ours in vip.ases if ours.state is State.UP and targets[ours.address] > 0}
    up.update(address for address in context.held if present[address].weight > 0)
    takers = up | {ours.address for ours in vip.ases if ours.state is State.UNKNOWN and targets[ours.address] > 0}

    due: dict[bytes, Settles] = {}
    waiting: list[FlushKey] = []
    settled: list[FlushKey] = []
    incurred: dict[FlushKey, Owed] = {}
    for ours in vip.ases:
        key = FlushKey(vip.key, ours.address)
        debt = owed.get(key)
        have = present.get(ours.address)
        if have is None:
            if debt is not None:
                # An AS that another controller deleted lingers with its flows and gets them back when it is added: its
                # flush stays owed until then. Where nothing lingers, no flow is left.
                (waiting if context.ghosts else settled).append(key)
            continue
        if debt is None and not (have.weight > 0 and flush_owed(ours.state, flush_on_down=vip.flush_on_down)):
            continue
        why = _why(ours, debt)
        fate = _fate(TABLE[why], ours, targets[ours.address], up if why is Why.WAITED else takers)
        if fate is _FLUSH:
            due[ours.address] = ((key, debt.serial),) if debt is not None and debt.serial else ()
        elif fate is _WAIT:
            waiting.append(key)
        elif fate is _VOID:
            settled.append(key)
        elif fate is _INCUR:
            incurred[key] = Owed(Cause.DOWN, waited=True)
    return Flushes(due, waiting, settled, incurred)


def _why(ours: DesiredAs, debt: Owed | None) -> Why:
    """The row of an AS: by its debt, or by its state where it has a weight by drift."""
    if debt is None:
        return Why.DRIFT_DOWN if ours.state is State.DOWN else Why.DRIFT_DISABLED
    if debt.cause is Cause.OPERATOR:
        return Why.OPERATOR
    return Why.WAITED if debt.waited else Why.FAILED


def _fate(row: Row, ours: DesiredAs, target: int, takers: Collection[bytes]) -> Fate:
    """The cell of an AS whose weight is to be ``target``. ``takers``: ASes that may take its flows, perhaps itself."""
    others = len(takers) > 1 or (len(takers) == 1 and ours.address not in takers)
    if target == 0:
        return row.dropped if others else row.dropped_alone
    if ours.state is State.DOWN or ours.weight is None:
        return row.kept
    return row.serves if others else row.serves_alone
