"""The table of flushes, cell by cell: which AS is flushed, which debt waits, is void, or comes into being."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from ipaddress import ip_address

import pytest

from maglev.base.states import State
from maglev.vpp.planning.context import Terms, context_of
from maglev.vpp.planning.desired import DesiredAs, DesiredVip
from maglev.vpp.planning.flushes import TABLE, Fate, Flushes, Row, Why, flushes_of
from maglev.vpp.planning.lost import NOTHING_LOST
from maglev.vpp.planning.model import ActualAs, ActualVip
from maglev.vpp.planning.plan import Cause, FlushKey, Owed
from maglev.vpp.planning.policy import Policy
from maglev.vpp.wire.messages import Encap, VipKey

WWW = VipKey.parse("192.0.2.1/32", 6, 80)
ONE, OTHER, OLD = (ip_address(f"10.0.0.{n}").packed for n in (1, 2, 3))
SERIAL = 7

COLUMNS = Row._fields

BY_DEBT = {
    Why.OPERATOR: Owed(Cause.OPERATOR, serial=SERIAL),
    Why.FAILED: Owed(Cause.DOWN, serial=SERIAL),
    Why.WAITED: Owed(Cause.DOWN, waited=True, serial=SERIAL),
}
"""The debt that selects a row; drift has none."""

EXPECTED: Mapping[tuple[Why, str], Fate] = {
    (Why.OPERATOR, "dropped"): Fate.FLUSH,
    (Why.OPERATOR, "dropped_alone"): Fate.FLUSH,
    (Why.OPERATOR, "kept"): Fate.FLUSH,
    (Why.OPERATOR, "serves"): Fate.FLUSH,
    (Why.OPERATOR, "serves_alone"): Fate.FLUSH,
    (Why.FAILED, "dropped"): Fate.FLUSH,
    (Why.FAILED, "dropped_alone"): Fate.WAIT,
    (Why.FAILED, "kept"): Fate.WAIT,
    (Why.FAILED, "serves"): Fate.FLUSH,
    (Why.FAILED, "serves_alone"): Fate.VOID,
    (Why.WAITED, "dropped"): Fate.FLUSH,
    (Why.WAITED, "dropped_alone"): Fate.WAIT,
    (Why.WAITED, "kept"): Fate.WAIT,
    (Why.WAITED, "serves"): Fate.VOID,
    (Why.WAITED, "serves_alone"): Fate.VOID,
    (Why.DRIFT_DISABLED, "dropped"): Fate.FLUSH,
    (Why.DRIFT_DISABLED, "dropped_alone"): Fate.FLUSH,
    (Why.DRIFT_DISABLED, "kept"): Fate.NOTHING,
    (Why.DRIFT_DISABLED, "serves"): Fate.NOTHING,
    (Why.DRIFT_DISABLED, "serves_alone"): Fate.NOTHING,
    (Why.DRIFT_DOWN, "dropped"): Fate.FLUSH,
    (Why.DRIFT_DOWN, "dropped_alone"): Fate.INCUR,
    (Why.DRIFT_DOWN, "kept"): Fate.NOTHING,
    (Why.DRIFT_DOWN, "serves"): Fate.NOTHING,
    (Why.DRIFT_DOWN, "serves_alone"): Fate.NOTHING,
}


def flushes(
    one: tuple[State, int | None],
    others: tuple[State, int | None] = (State.DOWN, 0),
    *,
    owed: Owed | None = None,
    present: Mapping[bytes, int] | None = None,
    held: int | None = None,
    lingering: int = 0,
    flush_on_down: bool = True,
) -> Flushes:
    """The flushes of a VIP with the AS ``ONE`` and another one, each with its state and its target.

    ``present``: weights in VPP, of both ASes 1 if not given. ``held``: the weight of an old address that stays.
    """
    wanted = DesiredVip(
        WWW,
        "www",
        Encap.GRE4,
        None,
        sticky=False,
        unit=1,
        usable=True,
        flush_on_down=flush_on_down,
        ases=(DesiredAs(ONE, "a", "p", *one, 1), DesiredAs(OTHER, "b", "p", *others, 1)),
        held=frozenset() if held is None else frozenset({OLD}),
    )
    weights = {ONE: 1, OTHER: 0} if present is None else present
    ases = {address: ActualAs(weight) for address, weight in weights.items()}
    if held is not None:
        ases[OLD] = ActualAs(held)
    debts = {} if owed is None else {FlushKey(WWW, ONE): owed}
    found = ActualVip(WWW, Encap.GRE4, 16, False, None, ases, lingering)
    context = context_of(wanted, found, found, Terms(debts, NOTHING_LOST, Policy()))
    return flushes_of(context, debts) if context is not None else Flushes({}, [], [], {})


def fate_of(answer: Flushes) -> Fate:
    """The fate of the flush of ``ONE``, with no other one in the answer."""
    key = FlushKey(WWW, ONE)
    fates = {
        Fate.FLUSH: list(answer.due) == [ONE],
        Fate.WAIT: answer.waiting == [key],
        Fate.VOID: answer.settled == [key],
        Fate.INCUR: answer.incurred == {key: Owed(Cause.DOWN, waited=True)},
    }
    (fate,) = [fate for fate, so in fates.items() if so] or [Fate.NOTHING]
    assert sum(map(len, answer)) == (fate is not Fate.NOTHING)
    return fate


def situation(why: Why, column: str) -> tuple[tuple[State, int | None], tuple[State, int | None]]:
    """States and targets of both ASes in a cell. The row decides the state of ``ONE`` where the column allows it."""
    bad = State.DISABLED if why in (Why.OPERATOR, Why.DRIFT_DISABLED) else State.DOWN
    drift = why not in BY_DEBT
    one: tuple[State, int | None] = {
        "dropped": (bad, 0),
        "kept": (bad if drift else State.DOWN, None),
        "serves": (bad if drift else State.UP, 1),
    }[column.removesuffix("_alone")]
    other = (State.DOWN, 0) if column.endswith("_alone") else (State.UP, 1)
    return one, other


def test_the_table_has_all_rows_and_this_test_all_cells() -> None:
    assert set(TABLE) == set(Why)
    assert set(EXPECTED) == set(itertools.product(Why, COLUMNS))


@pytest.mark.parametrize(("why", "column"), EXPECTED)
def test_each_cell_of_the_table(why: Why, column: str) -> None:
    one, other = situation(why, column)
    answer = flushes(one, other, owed=BY_DEBT.get(why))
    assert fate_of(answer) is EXPECTED[why, column]
    if answer.due:
        assert answer.due == {ONE: ((FlushKey(WWW, ONE), SERIAL),) if why in BY_DEBT else ()}


@pytest.mark.parametrize("state", [State.PAUSED, State.UNKNOWN])
def test_a_weight_that_drift_gave_to_a_paused_or_unknown_server_goes_without_a_flush(state: State) -> None:
    assert fate_of(flushes((state, 0), (State.UP, 1))) is Fate.NOTHING


def test_drift_of_a_failed_server_is_not_flushed_without_flush_on_down() -> None:
    assert fate_of(flushes((State.DOWN, 0), (State.UP, 1), flush_on_down=False)) is Fate.NOTHING


def test_a_failed_server_without_a_weight_in_vpp_has_not_drifted() -> None:
    assert fate_of(flushes((State.DOWN, 0), (State.UP, 1), present={ONE: 0, OTHER: 0})) is Fate.NOTHING


@pytest.mark.parametrize(
    ("why", "other", "fate"),
    [
        (Why.FAILED, State.UNKNOWN, Fate.FLUSH),
        (Why.WAITED, State.UNKNOWN, Fate.WAIT),
        (Why.FAILED, State.PAUSED, Fate.WAIT),
        (Why.WAITED, State.PAUSED, Fate.WAIT),
    ],
)
def test_a_deferred_flush_needs_another_server_that_is_known_to_be_up(why: Why, other: State, fate: Fate) -> None:
    assert fate_of(flushes((State.DOWN, 0), (other, 1), owed=BY_DEBT[why])) is fate


@pytest.mark.parametrize(("weight", "fate"), [(1, Fate.FLUSH), (0, Fate.WAIT)])
def test_an_old_address_that_is_held_takes_flows_while_it_has_a_weight(weight: int, fate: Fate) -> None:
    assert fate_of(flushes((State.DOWN, 0), owed=BY_DEBT[Why.WAITED], held=weight)) is fate


@pytest.mark.parametrize("why", BY_DEBT)
@pytest.mark.parametrize(("lingering", "fate"), [(0, Fate.VOID), (1, Fate.WAIT)])
def test_a_debt_of_an_as_that_vpp_has_not_is_void_unless_deleted_ases_linger(
    why: Why, lingering: int, fate: Fate
) -> None:
    answer = flushes((State.DOWN, 0), owed=BY_DEBT[why], present={OTHER: 0}, lingering=lingering)
    assert fate_of(answer) is fate


def test_a_debt_without_a_serial_is_flushed_and_settles_nothing() -> None:
    assert flushes((State.DISABLED, 0), owed=Owed(Cause.OPERATOR)).due == {ONE: ()}
