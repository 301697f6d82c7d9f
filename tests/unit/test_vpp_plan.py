"""The plan: which calls, in which order, and with which flush. Plans are compared as an operator would read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from ipaddress import IPv4Address, ip_address
from typing import Any

import pytest

from maglev.base.states import State
from maglev.config.model import Backend, Config, Frontend, LbConfig, OnAllDown, Pool, PoolMember, Protocol, Prune
from maglev.vpp.planning.cost import CostModel
from maglev.vpp.planning.desired import desired_vips
from maglev.vpp.planning.diff import diff
from maglev.vpp.planning.lost import NOTHING_LOST, LostWeights
from maglev.vpp.planning.model import Actual, ActualAs, ActualVip, parse_vip_key, vip_key
from maglev.vpp.planning.plan import Cause, FlushKey, Op, Owed, Plan, acknowledge
from maglev.vpp.planning.policy import Policy
from maglev.vpp.planning.scale import common_multiple
from maglev.vpp.wire.messages import Encap, LbConf, VipKey
from tests.helpers.vpp import UNSET_CONF, FakeStates, ModelVpp, make_config

WWW = VipKey.parse("192.0.2.1/32", 6, 80)


def packed(text: str) -> bytes:
    return ip_address(text).packed


def found(
    weights: Mapping[str, int] | None = None,
    key: VipKey = WWW,
    *,
    encap: Encap = Encap.GRE4,
    length: int = 16384,
    sticky: bool = False,
    clean: bool = False,
    lingering: int = 0,
) -> ActualVip:
    ases = {packed(text): ActualAs(weight, 0, clean and weight == 0) for text, weight in (weights or {}).items()}
    return ActualVip(key, encap, length, sticky, 1, ases, lingering)


def actual(*vips: ActualVip, conf: LbConf = UNSET_CONF) -> Actual:
    return Actual(conf, {vip.key: vip for vip in vips})


def plan_of(
    states: FakeStates,
    have: Actual,
    owed: Mapping[str, Cause | Owed] | None = None,
    *,
    unresolved: frozenset[str] = frozenset(),
    held: tuple[str, ...] = (),
    lost: LostWeights = NOTHING_LOST,
    **policy: object,
) -> Plan:
    config = states.config()
    debts: dict[FlushKey, Owed] = {}
    for serial, (text, debt) in enumerate((owed or {}).items(), 1):
        debts[FlushKey(WWW, packed(text))] = (
            debt._replace(serial=serial) if isinstance(debt, Owed) else Owed(debt, serial=serial)
        )
    configured = frozenset(vip_key(frontend) for frontend in config.frontends.values())
    options = Policy(lb=config.lb, configured=configured, owned=configured)
    options = replace(options, **policy)  # type: ignore[arg-type]
    wanted = desired_vips(
        config.frontends,
        states,
        unresolved=unresolved,
        found=have.vips,
        lost=lost,
        held=lambda _: [packed(t) for t in held],
    )
    return diff(wanted, have, debts, options, lost=lost)


def lines(plan: Plan) -> list[str]:
    return [str(step).replace("192.0.2.1/32 tcp 80 ", "") for step in plan.steps]


def two_pools(**options: object) -> FakeStates:
    return FakeStates(make_config({"primary": {"a": 10, "b": 10}, "fallback": {"c": 10}}, **options))  # type: ignore[arg-type]


def test_an_empty_vpp_gets_the_vip_then_what_serves_then_the_standbys() -> None:
    plan = plan_of(two_pools(), actual())
    assert lines(plan) == [
        "lb_add_del_vip_v2 encap gre4 length 16384",
        "lb_add_del_as_v2 as 10.0.0.1 weight 1",
        "lb_add_del_as_v2 as 10.0.0.2 weight 1",
        "lb_add_del_as_v2 as 10.0.0.3 weight 0",
    ]


def test_a_second_plan_has_nothing_to_do() -> None:
    states, have = two_pools(), actual()
    for step in plan_of(states, have).steps:
        acknowledge(have, step)
    plan = plan_of(states, have)
    assert not plan.steps
    assert str(plan) == "nothing to do"


def test_failover_raises_the_standby_before_it_drops_and_flushes_the_failed() -> None:
    states = two_pools()
    states.set(a=State.DOWN, b=State.DOWN)
    have = actual(found({"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}))
    plan = plan_of(states, have, {"10.0.0.1": Cause.DOWN, "10.0.0.2": Cause.DOWN})
    assert lines(plan) == [
        "lb_as_set_weight as 10.0.0.3 weight 0 -> 1",
        "lb_as_set_weight as 10.0.0.1 weight 1 -> 0 flush",
        "lb_as_set_weight as 10.0.0.2 weight 1 -> 0 flush",
    ]
    assert [step.settles for step in plan.steps] == [
        (),
        ((FlushKey(WWW, packed("10.0.0.1")), 1),),
        ((FlushKey(WWW, packed("10.0.0.2")), 2),),
    ]


def test_failback_does_not_flush_so_that_flows_on_the_fallback_may_end_in_peace() -> None:
    plan = plan_of(two_pools(), actual(found({"10.0.0.1": 0, "10.0.0.2": 0, "10.0.0.3": 1})))
    assert lines(plan) == [
        "lb_as_set_weight as 10.0.0.1 weight 0 -> 1",
        "lb_as_set_weight as 10.0.0.2 weight 0 -> 1",
        "lb_as_set_weight as 10.0.0.3 weight 1 -> 0",
    ]


def test_failback_drops_the_fallback_only_if_a_raise_was_accepted_or_nobody_would_serve() -> None:
    plan = plan_of(two_pools(), actual(found({"10.0.0.1": 0, "10.0.0.2": 0, "10.0.0.3": 1})))
    assert [step.guarded for step in plan.steps] == [False, False, True]


def test_a_flush_is_owed_though_the_weight_is_0_already_or_old_flows_stay_on_a_dead_server() -> None:
    states = two_pools()
    states.set(a=State.DOWN)
    have = actual(found({"10.0.0.1": 0, "10.0.0.2": 1, "10.0.0.3": 0}))
    assert lines(plan_of(states, have, {"10.0.0.1": Cause.DOWN})) == [
        "lb_as_set_weight as 10.0.0.1 weight 0 -> 0 flush"
    ]


def test_a_steady_down_state_is_not_flushed_again_and_again() -> None:
    states = two_pools()
    states.set(a=State.DOWN)
    assert not plan_of(states, actual(found({"10.0.0.1": 0, "10.0.0.2": 1, "10.0.0.3": 0}))).steps


def test_a_failure_with_nobody_else_up_is_not_flushed_or_its_flows_would_be_pinned_to_nothing() -> None:
    states = FakeStates(make_config({"primary": {"a": 10}}))
    states.set(a=State.DOWN)
    plan = plan_of(states, actual(found({"10.0.0.1": 1})), {"10.0.0.1": Cause.DOWN})
    assert lines(plan) == ["lb_as_set_weight as 10.0.0.1 weight 1 -> 0"]
    assert plan.waiting == [FlushKey(WWW, packed("10.0.0.1"))]


def test_a_flush_that_waited_goes_out_once_another_as_takes_the_flows() -> None:
    states = two_pools()
    states.set(a=State.DOWN, b=State.DOWN)
    have = actual(found({"10.0.0.1": 0, "10.0.0.2": 0, "10.0.0.3": 0}))
    plan = plan_of(states, have, {"10.0.0.1": Owed(Cause.DOWN, waited=True)})
    assert lines(plan) == [
        "lb_as_set_weight as 10.0.0.3 weight 0 -> 1",
        "lb_as_set_weight as 10.0.0.1 weight 0 -> 0 flush",
    ]


def test_a_flush_that_waited_is_void_once_the_server_is_back_or_its_fresh_flows_would_be_torn() -> None:
    states = two_pools()
    have = actual(found({"10.0.0.1": 0, "10.0.0.2": 0, "10.0.0.3": 0}))
    plan = plan_of(states, have, {"10.0.0.1": Owed(Cause.DOWN, waited=True)})
    assert not any(step.flush for step in plan.steps)
    assert plan.settled == [FlushKey(WWW, packed("10.0.0.1"))]


def test_a_flush_that_waited_does_not_go_out_because_a_restart_knows_less_of_the_others() -> None:
    states = two_pools(on_all_down=OnAllDown.KEEP)
    states.set(a=State.DOWN, b=State.UNKNOWN, c=State.UNKNOWN)
    have = actual(found({"10.0.0.1": 0, "10.0.0.2": 1, "10.0.0.3": 0}))
    unresolved = frozenset({"b", "c"})
    plan = plan_of(states, have, {"10.0.0.1": Owed(Cause.DOWN, waited=True)}, unresolved=unresolved)
    assert not plan.steps
    assert plan.waiting == [FlushKey(WWW, packed("10.0.0.1"))]
    states.set(b=State.UP)
    plan = plan_of(states, have, {"10.0.0.1": Owed(Cause.DOWN, waited=True)}, unresolved=frozenset({"c"}))
    assert lines(plan) == ["lb_as_set_weight as 10.0.0.1 weight 0 -> 0 flush"]


def test_the_flush_of_a_failed_server_of_which_a_restart_knows_nothing_waits_for_its_verdict() -> None:
    states = two_pools()
    states.set(a=State.UNKNOWN)
    have = actual(found({"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}))
    plan = plan_of(states, have, {"10.0.0.1": Cause.DOWN}, unresolved=frozenset({"a"}))
    assert not plan.steps
    assert plan.waiting == [FlushKey(WWW, packed("10.0.0.1"))]
    states.set(a=State.UP)
    assert plan_of(states, have, {"10.0.0.1": Owed(Cause.DOWN, waited=True)}).settled == plan.waiting
    states.set(a=State.DOWN)
    plan = plan_of(states, have, {"10.0.0.1": Owed(Cause.DOWN, waited=True)})
    assert lines(plan) == ["lb_as_set_weight as 10.0.0.1 weight 1 -> 0 flush"]


def test_disable_flushes_even_the_last_backend_since_the_operator_said_so() -> None:
    states = FakeStates(make_config({"primary": {"a": 10}}, flush_on_down=False))
    states.set(a=State.DISABLED)
    plan = plan_of(states, actual(found({"10.0.0.1": 1})), {"10.0.0.1": Cause.OPERATOR})
    assert lines(plan) == ["lb_as_set_weight as 10.0.0.1 weight 1 -> 0 flush"]


def test_disable_and_enable_faster_than_the_round_trip_still_flushes() -> None:
    states = two_pools()
    have = actual(found({"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}))
    assert lines(plan_of(states, have, {"10.0.0.1": Cause.OPERATOR})) == [
        "lb_as_set_weight as 10.0.0.1 weight 1 -> 1 flush"
    ]


@pytest.mark.parametrize(("flush_on_down", "expected"), [(True, " flush"), (False, "")])
def test_drift_that_gave_a_dead_server_weight_is_repaired_with_the_flush_its_state_owes(
    flush_on_down: bool, expected: str
) -> None:
    states = two_pools(flush_on_down=flush_on_down)
    states.set(a=State.DOWN)
    have = actual(found({"10.0.0.1": 5, "10.0.0.2": 1, "10.0.0.3": 0}))
    assert lines(plan_of(states, have)) == [f"lb_as_set_weight as 10.0.0.1 weight 5 -> 0{expected}"]


def test_drift_repair_of_a_disabled_backend_flushes_too() -> None:
    states = two_pools(flush_on_down=False)
    states.set(a=State.DISABLED)
    have = actual(found({"10.0.0.1": 5, "10.0.0.2": 1, "10.0.0.3": 0}))
    assert lines(plan_of(states, have)) == ["lb_as_set_weight as 10.0.0.1 weight 5 -> 0 flush"]


def test_drift_repair_with_nobody_else_up_makes_the_flush_owed_instead() -> None:
    states = FakeStates(make_config({"primary": {"a": 10}}))
    states.set(a=State.DOWN)
    plan = plan_of(states, actual(found({"10.0.0.1": 1})))
    assert lines(plan) == ["lb_as_set_weight as 10.0.0.1 weight 1 -> 0"]
    assert plan.incurred == {FlushKey(WWW, packed("10.0.0.1")): Owed(Cause.DOWN, waited=True)}


@pytest.mark.parametrize("state", [State.PAUSED, State.UNKNOWN])
def test_pause_and_unknown_never_flush(state: State) -> None:
    states = two_pools()
    states.set(a=state)
    have = actual(found({"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}))
    assert lines(plan_of(states, have)) == ["lb_as_set_weight as 10.0.0.1 weight 1 -> 0"]


def test_drain_never_flushes_since_its_purpose_is_to_let_flows_end() -> None:
    states = two_pools()
    states.backends["a"].drained = True
    have = actual(found({"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}))
    assert lines(plan_of(states, have)) == ["lb_as_set_weight as 10.0.0.1 weight 1 -> 0"]


def test_a_removed_backend_is_deleted_with_flush_after_the_raises() -> None:
    states = two_pools()
    have = actual(found({"10.0.0.1": 1, "10.0.0.2": 0, "10.0.0.3": 0, "10.0.0.9": 1}))
    assert lines(plan_of(states, have)) == [
        "lb_as_set_weight as 10.0.0.2 weight 0 -> 1",
        "lb_add_del_as_v2 del as 10.0.0.9 flush",
    ]


def test_all_disabled_at_once_costs_one_walk_of_the_sticky_table() -> None:
    states = two_pools()
    states.set(a=State.DISABLED, b=State.DISABLED, c=State.DISABLED)
    have = actual(found({"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}))
    owed = dict.fromkeys(("10.0.0.1", "10.0.0.2", "10.0.0.3"), Cause.OPERATOR)
    plan = plan_of(states, have, owed)
    assert lines(plan) == [
        "lb_as_set_weight as 10.0.0.1 weight 1 -> 0",
        "lb_as_set_weight as 10.0.0.2 weight 1 -> 0",
        "lb_flush_vip 192.0.2.1/32 tcp 80",
    ]
    assert {key.address for key, _ in plan.steps[-1].settles} == {packed(address) for address in owed}


def test_flows_of_a_server_that_somebody_else_deleted_are_not_evicted_with_those_of_the_disabled() -> None:
    states = two_pools()
    states.set(a=State.DISABLED, b=State.DISABLED, c=State.PAUSED)
    have = actual(found({"10.0.0.1": 1, "10.0.0.2": 1}, lingering=1))
    plan = plan_of(states, have, {"10.0.0.1": Cause.OPERATOR, "10.0.0.2": Cause.OPERATOR})
    assert lines(plan) == [
        "lb_as_set_weight as 10.0.0.1 weight 1 -> 0 flush",
        "lb_as_set_weight as 10.0.0.2 weight 1 -> 0 flush",
        "lb_add_del_as_v2 as 10.0.0.3 weight 0",
    ]


def test_flows_of_a_standby_are_not_evicted_with_those_of_the_disabled() -> None:
    states = two_pools()
    states.set(a=State.DISABLED, b=State.DISABLED, c=State.PAUSED)
    have = actual(found({"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}))
    plan = plan_of(states, have, {"10.0.0.1": Cause.OPERATOR, "10.0.0.2": Cause.OPERATOR})
    assert [step.op for step in plan.steps] == [Op.SET_WEIGHT, Op.SET_WEIGHT]
    assert all(step.flush for step in plan.steps)


def test_on_all_down_keep_leaves_the_last_weights_but_takes_the_disabled_out() -> None:
    states = two_pools(on_all_down=OnAllDown.KEEP)
    states.set(a=State.DOWN, b=State.DISABLED, c=State.DOWN)
    have = actual(found({"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}))
    plan = plan_of(states, have, {"10.0.0.1": Cause.DOWN, "10.0.0.2": Cause.OPERATOR})
    assert lines(plan) == ["lb_as_set_weight as 10.0.0.2 weight 1 -> 0 flush"]
    assert plan.waiting == [FlushKey(WWW, packed("10.0.0.1"))]


def test_a_backend_without_a_verdict_since_start_keeps_the_weight_it_has() -> None:
    states = two_pools()
    states.set(a=State.UNKNOWN)
    have = actual(found({"10.0.0.1": 7, "10.0.0.2": 1, "10.0.0.3": 0}))
    assert not plan_of(states, have, unresolved=frozenset({"a"})).steps
    assert lines(plan_of(states, have)) == ["lb_as_set_weight as 10.0.0.1 weight 7 -> 0"]


def test_a_presumed_server_takes_no_weight_from_one_that_on_all_down_keep_has_kept() -> None:
    states = two_pools(on_all_down=OnAllDown.KEEP)
    have = actual(found({"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}))
    states.set(a=State.DOWN, b=State.UNKNOWN, c=State.DOWN)
    assert not plan_of(states, have, unresolved=frozenset({"b"})).steps
    states.set(b=State.UP)
    assert lines(plan_of(states, have)) == ["lb_as_set_weight as 10.0.0.1 weight 1 -> 0 flush"]
    states.set(b=State.UNKNOWN, c=State.UP)
    assert lines(plan_of(states, have, unresolved=frozenset({"b"}))) == [
        "lb_as_set_weight as 10.0.0.1 weight 1 -> 0 flush"
    ]


def test_a_weight_that_is_kept_is_kept_through_a_recreation_or_it_would_fail_closed() -> None:
    states = two_pools(on_all_down=OnAllDown.KEEP, new_flows_table_length=1024)
    states.set(a=State.DOWN, b=State.DOWN, c=State.DOWN)
    have = actual(found({"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}))
    model = ModelVpp(have)
    model.apply(plan_of(states, have).steps)
    assert model.weights(WWW) == {"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}
    assert not plan_of(states, model.actual).steps


def recreated_after(done: int, states: FakeStates, have: Actual, **options: Any) -> tuple[ModelVpp, int]:
    """VPP after a recreation that is cut behind ``done`` calls and then planned again, and how many calls it takes."""
    lost = LostWeights()
    model = ModelVpp(have)
    before = {a: one.weight for a, one in have.vips[WWW].ases.items()}
    first = plan_of(states, model.actual, lost=lost, **options)
    assert first.recreated == [WWW]
    lost.recreate(WWW, before)
    plan, cut = first, done
    while True:
        for step in plan.steps[:cut]:
            model.apply([step])
            if step.op is Op.CREATE_VIP:
                lost.created(WWW)
            elif step.address:
                lost.written(WWW, step.address)
        if cut >= len(plan.steps):
            return model, len(first.steps)
        # A batch that comes between has nothing to say in a VIP that is halfway down.
        assert (
            WWW not in model.actual.vips
            or WWW not in lost.recreated
            or not plan_of(states, model.actual, lost=lost, full=False, **options).steps
        )
        plan = plan_of(states, model.actual, lost=lost, **options)
        if plan.recreated:
            lost.recreate(WWW, {a: one.weight for a, one in model.actual.vips[WWW].ases.items()})
        cut = len(plan.steps)


def test_a_weight_that_is_kept_is_kept_through_a_recreation_that_is_cut_anywhere() -> None:
    states = two_pools(on_all_down=OnAllDown.KEEP, new_flows_table_length=1024)
    states.set(a=State.DOWN, b=State.DOWN, c=State.DOWN)
    weights = {"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}
    done = calls = 0
    while done <= calls:
        model, calls = recreated_after(done, states, actual(found(weights)))
        assert model.weights(WWW) == weights, done
        done += 1
    assert calls == 11


def test_a_server_without_a_verdict_keeps_its_weight_and_its_pool_through_a_recreation_that_is_cut_anywhere() -> None:
    states = two_pools(new_flows_table_length=1024)
    states.set(a=State.UNKNOWN, b=State.DOWN)
    have = {"10.0.0.1": 1, "10.0.0.2": 0, "10.0.0.3": 0}
    done = calls = 0
    while done <= calls:
        model, calls = recreated_after(done, states, actual(found(have)), unresolved=frozenset({"a"}))
        assert model.weights(WWW) == have, done
        done += 1
    assert calls == 10


def test_a_recreation_that_is_no_longer_needed_ends_with_the_weights_that_were_kept() -> None:
    states = two_pools(on_all_down=OnAllDown.KEEP)
    states.set(a=State.DOWN, b=State.DOWN, c=State.DOWN)
    lost = LostWeights()
    lost.recreate(WWW, {packed("10.0.0.1"): 1, packed("10.0.0.2"): 1, packed("10.0.0.3"): 0})
    half = actual(found({"10.0.0.2": 0, "10.0.0.3": 0}, lingering=1))
    plan = plan_of(states, half, lost=lost)
    assert lines(plan) == ["lb_add_del_as_v2 as 10.0.0.1 weight 1", "lb_as_set_weight as 10.0.0.2 weight 0 -> 1"]
    assert plan.restored == [WWW]


def test_a_flush_that_is_owed_stays_so_until_the_vip_that_is_created_again_is_gone() -> None:
    states = two_pools(new_flows_table_length=1024)
    states.set(a=State.DISABLED)
    have = actual(found({"10.0.0.1": 0, "10.0.0.2": 1, "10.0.0.3": 0}))
    plan = plan_of(states, have, {"10.0.0.1": Cause.OPERATOR})
    assert plan.recreated == [WWW]
    assert not plan.settled
    del have.vips[WWW]
    assert plan_of(states, have, {"10.0.0.1": Cause.OPERATOR}).settled == [FlushKey(WWW, packed("10.0.0.1"))]


def test_a_vip_that_is_emptied_in_pieces_is_flushed_once() -> None:
    states = two_pools(new_flows_table_length=1024)
    have = actual(found({"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}))
    flushes = 0
    while (steps := plan_of(states, have).steps)[0].op is not Op.CREATE_VIP:
        acknowledge(have, steps[0])
        flushes += steps[0].op is Op.FLUSH_VIP
    assert flushes == 1


def test_a_recreation_ends_an_adopted_scale_for_all_or_a_kept_weight_would_be_a_multiple_of_its_share() -> None:
    states = FakeStates(make_config({"p": {"a": 100, "b": 50}}, new_flows_table_length=1024))
    states.set(b=State.UNKNOWN)
    have = actual(found({"10.0.0.1": 100, "10.0.0.2": 50}))
    model = ModelVpp(have)
    model.apply(plan_of(states, have, unresolved=frozenset({"b"}), multiples={WWW: Fraction(10)}).steps)
    assert model.weights(WWW) == {"10.0.0.1": 10, "10.0.0.2": 5}
    assert not plan_of(states, model.actual, unresolved=frozenset({"b"})).steps


def test_the_old_address_of_a_backend_serves_until_something_else_does() -> None:
    states = FakeStates(make_config({"primary": {"a": 10}}, backends={"a": "10.0.0.2"}))
    have = actual(found({"10.0.0.1": 1}))
    states.set(a=State.UNKNOWN)
    assert lines(plan_of(states, have, held=("10.0.0.1",))) == ["lb_add_del_as_v2 as 10.0.0.2 weight 0"]
    states.set(a=State.UP)
    assert lines(plan_of(states, have, held=("10.0.0.1",))) == [
        "lb_add_del_as_v2 as 10.0.0.2 weight 1",
        "lb_add_del_as_v2 del as 10.0.0.1 flush",
    ]


def frontend(name: str, address: str, backend: str = "a", **options: object) -> Frontend:
    made = Frontend(name, ip_address(address), (Pool("p", (PoolMember(backend),)),), Protocol.TCP, 80)
    return replace(made, **options)  # type: ignore[arg-type]


def one_backend(*frontends: Frontend, address: str = "10.0.0.1", lb: LbConfig | None = None) -> FakeStates:
    backends = {"a": Backend("a", ip_address(address))}
    return FakeStates(Config(lb=lb or LbConfig(), backends=backends, frontends={made.name: made for made in frontends}))


def test_vips_that_serve_nobody_come_first_then_numeric_with_ipv4_before_ipv6() -> None:
    addresses = ["2001:db8::2", "192.0.2.10", "192.0.2.9", "2001:db8::10"]
    states = one_backend(*(frontend(address, address) for address in addresses))
    serving = found({"10.0.0.1": 5}, VipKey.parse("192.0.2.9/32", 6, 80))
    plan = plan_of(states, actual(serving))
    assert [step.frontend for step in plan.steps if step.op is not Op.CREATE_VIP] == [
        "192.0.2.10",
        "2001:db8::2",
        "2001:db8::10",
        "192.0.2.9",
    ]


def test_what_was_cut_off_before_comes_first_and_then_the_usual_order() -> None:
    fronts = [frontend(f"w{n}", f"192.0.2.{n}") for n in (1, 2, 3)]
    keys = [vip_key(made) for made in fronts]
    idle = [found({"10.0.0.1": weight}, key) for weight, key in zip((0, 2, 2), keys, strict=True)]
    states = one_backend(*fronts)
    assert [step.vip for step in plan_of(states, actual(*idle)).steps] == keys
    plan = plan_of(states, actual(*idle), first={keys[2]: 0, keys[1]: 1})
    assert [step.vip for step in plan.steps] == [keys[2], keys[1], keys[0]]


def test_a_vip_is_emptied_and_flushed_before_it_is_deleted_or_ghosts_would_keep_its_flows() -> None:
    old = VipKey.parse("192.0.2.7/32", 17, 53)
    have = actual(found({"10.0.0.8": 3, "10.0.0.9": 0}, old))
    plan = plan_of(one_backend(), have, owned=frozenset({old}))
    assert [str(step).replace("192.0.2.7/32 udp 53", "V") for step in plan.steps] == [
        "lb_as_set_weight V as 10.0.0.8 weight 3 -> 0",
        "lb_flush_vip V",
        "lb_add_del_as_v2 del V as 10.0.0.8",
        "lb_add_del_as_v2 del V as 10.0.0.9",
        "lb_add_del_vip_v2 del V (not configured)",
    ]


@pytest.mark.parametrize(
    ("prune", "owned", "removed"),
    [
        (Prune.OWNED, True, True),
        (Prune.OWNED, False, False),
        (Prune.ALL, False, True),
        (Prune.NONE, True, False),
    ],
)
def test_prune_says_which_vips_a_full_sync_removes(prune: Prune, owned: bool, removed: bool) -> None:
    old = VipKey.parse("192.0.2.7/32", 17, 53)
    states = one_backend(lb=LbConfig(prune=prune))
    plan = plan_of(states, actual(found(None, old)), owned=frozenset({old} if owned else ()))
    assert [step.op for step in plan.steps] == ([Op.DELETE_VIP] if removed else [])
    assert plan.unmanaged == ([] if removed else [old])


def test_sync_of_one_frontend_deletes_no_vip_and_says_what_only_a_full_sync_may_do() -> None:
    states = one_backend(frontend("www", "192.0.2.1", new_flows_table_length=1024))
    have = actual(found({"10.0.0.1": 1}))
    plan = plan_of(states, have, full=False)
    assert not any(step.op in (Op.DELETE_VIP, Op.CREATE_VIP) for step in plan.steps)
    assert plan.notes == [
        "192.0.2.1/32 tcp 80: table length is 16384 instead of 1024; only a full sync creates it again"
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sticky": True}, "src-ip-sticky is true instead of false"),
        ({"length": 1024}, "table length is 1024 instead of 4096"),
        ({"encap": Encap.GRE6}, "encap is gre6 instead of gre4"),
    ],
)
def test_a_vip_whose_nature_changed_is_removed_and_created_again(change: dict[str, object], reason: str) -> None:
    states = one_backend(frontend("www", "192.0.2.1", new_flows_table_length=4096))
    present = replace(found(None, length=4096), **change)  # type: ignore[arg-type]
    plan = plan_of(states, actual(present))
    assert [step.op for step in plan.steps] == [Op.DELETE_VIP, Op.CREATE_VIP, Op.ADD_AS]
    assert plan.steps[0].reason == reason
    assert plan.recreated == [WWW]


def test_a_vip_without_a_configured_length_keeps_its_own() -> None:
    states = one_backend(frontend("www", "192.0.2.1"))
    assert not plan_of(states, actual(found({"10.0.0.1": 10}, length=512))).steps


def test_a_new_encap_takes_all_ports_of_the_address_together_since_vpp_refuses_a_mixture() -> None:
    states = one_backend(
        frontend("http", "192.0.2.1"), frontend("https", "192.0.2.1", port=443), address="2001:db8:1::1"
    )
    https = VipKey.parse("192.0.2.1/32", 6, 443)
    have = actual(found({"10.0.0.1": 1}), found({"10.0.0.1": 1}, https))
    plan = plan_of(states, have)
    assert [
        (step.op, step.vip and step.vip.port) for step in plan.steps if step.op in (Op.CREATE_VIP, Op.DELETE_VIP)
    ] == [
        (Op.DELETE_VIP, 80),
        (Op.DELETE_VIP, 443),
        (Op.CREATE_VIP, 80),
        (Op.CREATE_VIP, 443),
    ]


def test_a_foreign_vip_of_another_encap_blocks_its_address_and_nothing_is_torn_down_for_it() -> None:
    states = one_backend(frontend("www", "192.0.2.1"))
    other = VipKey.parse("192.0.2.1/32", 17, 53)
    have = actual(found({"2001:db8::1": 1}, other, encap=Encap.GRE6))
    plan = plan_of(states, have)
    assert not plan.steps
    assert plan.notes == [
        "192.0.2.1/32 udp 53 (gre6) is in the way of 192.0.2.1/32 tcp 80 and is not ours to remove (prune: owned)"
    ]


def test_an_any_port_vip_of_ours_makes_room_for_a_port() -> None:
    states = one_backend(frontend("www", "192.0.2.1"))
    any_port = VipKey.parse("192.0.2.1/32")
    plan = plan_of(states, actual(found(None, any_port)), owned=frozenset({any_port}))
    assert [step.op for step in plan.steps] == [Op.DELETE_VIP, Op.CREATE_VIP, Op.ADD_AS]


def test_recreation_that_was_given_up_leaves_the_vip_as_it_is() -> None:
    states = one_backend(frontend("www", "192.0.2.1", src_ip_sticky=True))
    plan = plan_of(states, actual(found({"10.0.0.1": 10})), frozen=frozenset({WWW}))
    assert not plan.steps
    assert "given up" in plan.notes[0]


def test_a_vip_that_vpp_refuses_to_delete_serves_as_it_is_until_the_next_full_sync() -> None:
    states = two_pools(on_all_down=OnAllDown.KEEP, new_flows_table_length=1024)
    states.set(a=State.DOWN, b=State.DOWN, c=State.DOWN)
    lost = LostWeights()
    lost.recreate(WWW, {packed("10.0.0.1"): 1, packed("10.0.0.2"): 1, packed("10.0.0.3"): 0})
    emptied = actual(found({}, lingering=3))
    plan = plan_of(states, emptied, lost=lost, stuck={WWW}, force=True)
    assert lines(plan) == [f"lb_add_del_as_v2 as 10.0.0.{n} weight {weight}" for n, weight in ((1, 1), (2, 1), (3, 0))]
    assert plan.restored == [WWW]
    assert "VPP refused to delete it" in plan.notes[0]


def test_only_configured_settings_are_written_and_the_others_keep_vpps_values() -> None:
    states = one_backend(lb=LbConfig(ipv4_src_address=IPv4Address("192.0.2.9")))
    plan = plan_of(states, actual())
    assert [str(step) for step in plan.steps] == ["lb_conf ipv4-src 192.0.2.9 ipv6-src unset"]
    (step,) = plan.steps
    assert step.conf is not None
    assert step.conf.ip6_src_address == b"\xff" * 16
    assert not plan_of(one_backend(lb=LbConfig()), actual()).steps
    single = plan_of(states, actual(), full=False)
    assert not single.steps
    assert single.notes == ["the global settings differ from what is configured; only a full sync sets them"]


def test_sticky_buckets_under_existing_vips_wait_for_a_forced_sync_since_every_flow_would_be_lost() -> None:
    states = one_backend(frontend("www", "192.0.2.1"), lb=LbConfig(sticky_buckets_per_core=65536))
    have = actual(found({"10.0.0.1": 10}))
    plan = plan_of(states, have)
    assert not plan.steps
    assert "waits for a forced sync" in plan.notes[0]
    assert [str(step).split()[-1] for step in plan_of(states, have, force=True).steps] == ["65536"]


def test_a_changed_unit_goes_over_in_passes_of_at_most_a_factor_of_two() -> None:
    states = FakeStates(make_config({"p": {"a": 100, "b": 50}}, weight_unit=1))
    have = actual(found({"10.0.0.1": 10, "10.0.0.2": 5}))
    model = ModelVpp(have)
    model.apply(plan_of(states, have).steps)
    assert model.weights(WWW) == {"10.0.0.1": 100, "10.0.0.2": 50}
    before = {packed("10.0.0.1"): 10, packed("10.0.0.2"): 5}
    for after in (moment[WWW] for moment in model.history):
        assert all(after[address] <= 2 * weight for address, weight in before.items())
        before = after
    assert len(model.history) == 8


def test_a_plan_that_was_cut_within_a_pass_goes_on_in_passes() -> None:
    states = FakeStates(make_config({"p": {"a": 10, "b": 10}}, weight_unit=1))
    plan = plan_of(states, actual(found({"10.0.0.1": 4, "10.0.0.2": 8})))
    assert [step.weight for step in plan.steps] == [8, 10, 10]


def test_a_weight_that_stays_1_by_rounding_does_not_hide_that_the_scale_of_its_vip_changes() -> None:
    states = FakeStates(make_config({"p": {"a": 100, "b": 100, "c": 10}}, weight_unit=10))
    plan = plan_of(states, actual(found({"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 1})))
    assert [step.weight for step in plan.steps] == [2, 2, 4, 4, 8, 8, 10, 10]


def test_passes_go_on_for_the_weight_that_has_furthest_to_go() -> None:
    states = FakeStates(make_config({"p": {"a": 40, "b": 50}}, weight_unit=1))
    plan = plan_of(states, actual(found({"10.0.0.1": 10, "10.0.0.2": 5})))
    assert [step.weight for step in plan.steps] == [20, 10, 40, 20, 40, 50]


def test_one_weight_that_an_operator_changes_is_written_once() -> None:
    states = FakeStates(make_config({"p": {"a": 10, "b": 10, "c": 10}}, weight_unit=1))
    states.overrides["www", "p", "a"] = 100
    plan = plan_of(states, actual(found({"10.0.0.1": 10, "10.0.0.2": 10, "10.0.0.3": 10})))
    assert [step.weight for step in plan.steps] == [100]


def test_a_foreign_multiple_is_found_and_kept_until_an_explicit_sync() -> None:
    states = FakeStates(make_config({"p": {"a": 100, "b": 50}, "standby": {"c": 100}}))
    have = actual(found({"10.0.0.1": 100, "10.0.0.2": 50, "10.0.0.3": 0}))
    (wanted,) = desired_vips(["www"], states)
    multiple = common_multiple(wanted, have.vips[WWW])
    assert multiple == Fraction(10)
    assert not plan_of(states, have, multiples={WWW: multiple}).steps
    assert plan_of(states, have).steps


def test_weights_that_are_no_common_multiple_are_drift() -> None:
    states = FakeStates(make_config({"p": {"a": 100, "b": 50}}))
    (wanted,) = desired_vips(["www"], states)
    assert common_multiple(wanted, found({"10.0.0.1": 100, "10.0.0.2": 51})) == 1


def test_the_cost_of_a_call_grows_with_the_table_and_the_sum_of_the_weights() -> None:
    cost = CostModel(per_call=0, sticky_buckets=1024, workers=2)
    assert cost.rebuild(16384, 1000) == 17 * 16384 + 125 * 1000
    assert cost.flush() == 7 * 1024 * 2
    states = FakeStates(make_config({"p": {"a": 10, "b": 10}}))
    states.set(a=State.DOWN)
    have = actual(found({"10.0.0.1": 1, "10.0.0.2": 1}))
    (step,) = plan_of(states, have, {"10.0.0.1": Cause.DOWN}, cost=cost).steps
    assert step.cost_ns == cost.rebuild(16384, 1) + cost.flush()


def test_two_backends_on_one_address_are_one_as_and_the_larger_weight_counts() -> None:
    config = make_config({"p": {"a": 10, "b": 50}}, backends={"a": "10.0.0.1", "b": "10.0.0.1"})
    plan = plan_of(FakeStates(config), actual())
    assert lines(plan)[1:] == ["lb_add_del_as_v2 as 10.0.0.1 weight 5"]


@pytest.mark.parametrize("text", ["192.0.2.1/32 tcp 80", "2001:db8::1/128 udp 53", "192.0.2.0/24", "192.0.2.1/32 47 9"])
def test_a_vip_key_is_read_back_from_its_words(text: str) -> None:
    assert str(parse_vip_key(text)) == text


@pytest.mark.parametrize(
    "text", ["", "x", "192.0.2.1/32 tcp", "192.0.2.1/32 tcp 65536", "192.0.2.1/33", "1.2.3.4/32 tcp x"]
)
def test_words_that_name_no_vip_are_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the message is ipaddress's own in most cases
        parse_vip_key(text)


def test_a_policy_is_a_snapshot_that_later_changes_of_the_caller_do_not_reach() -> None:
    multiples, first = {WWW: Fraction(10)}, {WWW: 0}
    policy = Policy(multiples=multiples, first=first)
    multiples.clear()
    first.clear()
    assert policy.multiples == {WWW: Fraction(10)}
    assert policy.place(WWW) == 0
    with pytest.raises(TypeError):
        policy.first[WWW] = 1  # type: ignore[index]
