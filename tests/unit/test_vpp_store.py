"""What the dataplane keeps over a restart: it comes back as it was, and nonsense costs only itself."""

from __future__ import annotations

import logging

import orjson
import pytest

from maglev.base.pace import at_once
from maglev.vpp.planning.plan import Cause, FlushKey, Op, Owed, Plan, Step
from maglev.vpp.state.debts import Debts
from maglev.vpp.state.store import (
    held_from_json,
    held_to_json,
    owed_from_json,
    owed_to_json,
    vips_from_json,
    vips_to_json,
)
from maglev.vpp.wire.messages import VipKey

WWW = VipKey.parse("192.0.2.1/32", 6, 80)
API = VipKey.parse("2001:db8::1/128")
A, B, C = FlushKey(WWW, b"\x0a\x00\x00\x01"), FlushKey(WWW, b"\x0a\x00\x00\x02"), FlushKey(API, bytes(15) + b"\x03")


def through_json(value: object) -> object:
    return orjson.loads(orjson.dumps(value))


def kept(debts: Debts) -> object:
    assert len(list(owed_to_json(debts.owed.items()))) == len(debts.owed), "one slice for each"
    return through_json(at_once(owed_to_json(debts.owed.items())))


def test_vips_and_held_addresses_come_back() -> None:
    assert list(vips_from_json(through_json(vips_to_json({API, WWW})))) == [WWW, API]
    held = {"www": [A.address, B.address], "api": [C.address]}
    found = list(held_from_json(through_json(held_to_json(held))))
    assert found == [("www", A.address), ("www", B.address), ("api", C.address)]


def test_what_is_owed_comes_back_with_its_cause_and_is_settled_as_before() -> None:
    debts = Debts()
    debts.owe(A, Cause.DOWN)
    debts.owe(B, Cause.OPERATOR)
    debts.owe(C, Cause.DOWN)
    debts.note(Plan(waiting=[B, C]))
    assert kept(debts) == {
        "192.0.2.1/32 tcp 80": {"10.0.0.1": "down", "10.0.0.2": "operator"},
        "2001:db8::1/128": {"::3": "down"},
    }
    again = Debts(owed_from_json(kept(debts)))
    assert not again.changed.is_set()
    assert [(one.cause, one.waited) for one in again.owed.values()] == [
        (Cause.DOWN, True),
        (Cause.OPERATOR, False),
        (Cause.DOWN, True),
    ]
    again.acknowledged(Step(Op.SET_WEIGHT, WWW, address=A.address, settles=((A, again.owed[A].serial),)))
    assert A not in again.owed
    assert again.changed.is_set()


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (vips_from_json, ["192.0.2.1/32 tcp", 7]),
        (held_from_json, {"www": ["10.0.0", 7.5]}),
        (owed_from_json, {"192.0.2.1/32 tcp 80": {"10.0.0.1": "rent", "x": "down"}}),
        (owed_from_json, {"192.0.2.1/32 tcp": {"10.0.0.1": "down"}, "www": {"10.0.0.1": "down", "10.0.0.2": "down"}}),
    ],
)
def test_an_entry_that_makes_no_sense_is_told_and_left_out(
    read: object, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    assert callable(read)
    with caplog.at_level(logging.WARNING):
        assert list(read(value)) == []
    assert len(caplog.records) == 2


@pytest.mark.parametrize("value", [None, 7, "x", ["x"], {"x": 7}])
def test_a_section_of_another_shape_is_empty(value: object) -> None:
    assert list(held_from_json(value)) == []
    assert list(owed_from_json(value)) == []


def test_a_newer_debt_of_the_same_as_is_not_settled_by_the_flush_of_the_older() -> None:
    debts = Debts([(A, Owed(Cause.DOWN))])
    step = Step(Op.SET_WEIGHT, WWW, address=A.address, settles=((A, debts.owed[A].serial),))
    debts.owe(A, Cause.OPERATOR)
    debts.acknowledged(step)
    assert A in debts.owed
    debts.owe(A, Cause.DOWN)
    assert debts.owed[A].cause is Cause.OPERATOR, "what an operator wants does not wait"
    debts.acknowledged(Step(Op.DELETE_VIP, WWW))
    assert not debts.owed


def test_debts_of_what_is_no_longer_configured_are_forgotten() -> None:
    debts = Debts([(A, Owed(Cause.DOWN)), (C, Owed(Cause.DOWN))])
    debts.forget_but({A, B})
    assert list(debts.owed) == [A]


@pytest.mark.parametrize("value", [7, "x", True, [[1]], {"www": 7}, {"192.0.2.1/32": 7}, {"x": {}}])
def test_sections_of_another_type_are_told_and_empty(value: object, caplog: pytest.LogCaptureFixture) -> None:
    found = [*vips_from_json(value), *held_from_json(value), *owed_from_json(value)]
    assert found == []
    assert "an entry of the state file makes no sense" in caplog.text
