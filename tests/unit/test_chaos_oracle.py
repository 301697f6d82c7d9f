"""The oracle of the chaos run: it accepts what facts explain, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.facts import Facts
from tests.chaos.oracle import DAEMON, DRIFT, Oracle, Pace, Write
from tests.chaos.plan import Member, Plan, Vip, desired, guarded

KEY, A, B, C = "198.51.100.1/32 tcp 80", "10.0.0.1", "10.0.0.2", "10.0.0.3"
NOW = 1000.0


def plan(*, keep: bool = False, flush: bool = True, table: int = 1024, a: int = 100, others: int = 0) -> Plan:
    """A VIP with the servers a and b, and c as their fallback; and ``others`` VIPs without a server that matters."""
    pools = ((Member("a", A, a), Member("b", B, 50)), (Member("c", C, 50),))
    vip = Vip(KEY, "www", flush, keep, False, table, 10, pools, ("first", "second"))
    more = {f"other {n}": Vip(f"other {n}", f"o{n}", flush, keep, False, table, 10, pools, ()) for n in range(others)}
    checks = {"a": "syn", "b": "syn", "c": "syn"}
    return Plan({KEY: vip, **more}, {"a": A, "b": B, "c": C}, checks)


class Trial:
    """An oracle that has seen VPP filled as it should be, long ago."""

    def __init__(self, first: Plan | None = None) -> None:
        self.facts = Facts()
        self.first = first or plan()
        self.facts.accept(self.facts.propose(self.first, 0.0), 0.0)
        self.oracle = Oracle(self.facts, {"syn": Pace(0.25, "group", served=False)})
        self.write("lb_add_del_vip_v2", t=1.0, table=1024)
        for address, weight in ((A, 10), (B, 5), (C, 0)):
            self.write("lb_add_del_as_v2", address=address, weight=weight, t=1.0)
        assert self.found() == []

    def write(self, call: str = "lb_as_set_weight", *, t: float = NOW, **others: Any) -> None:
        """One call that VPP has accepted."""
        self.oracle.write(Write(t, others.pop("client", DAEMON), call, KEY, **others))

    def fail(self, address: str, since: float, until: float) -> None:
        """A server surely fails between the two."""
        self.facts.bad[address].add(since, until)
        self.facts.dead[address].add(since, until)

    def found(self) -> list[str]:
        """What it objects to."""
        return [violation.text for violation in self.oracle.violations]


def test_a_fall_needs_a_failure_that_lasted_as_long_as_a_verdict() -> None:
    for until, wrong in ((NOW - 5.0, 1), (NOW - 9.8, 1), (NOW + 1, 0)):
        trial = Trial()
        trial.fail(A, NOW - 10.0, until)
        trial.write(address=A)
        assert len(trial.found()) == wrong, until
    trial = Trial()
    trial.fail(A, NOW - 1.0, NOW - 0.9)
    trial.write(address=A)
    assert len(trial.found()) == 1


def test_a_failure_explains_a_late_fall_only_while_daemon_or_vpp_could_not_act() -> None:
    for stalled, wrong in ((False, 1), (True, 0)):
        trial = Trial()
        trial.fail(A, NOW - 30.0, NOW - 20.0)
        if stalled:
            trial.facts.disturbed.add(NOW - 20.0, NOW - 1.0)
        trial.write(address=A)
        assert len(trial.found()) == wrong


def test_an_operator_or_the_file_explains_a_fall_and_nothing_gives_weight_against_an_operator() -> None:
    trial = Trial()
    trial.facts.out["a"].begin(NOW - 1)
    trial.facts.taken["a"].begin(NOW - 1)
    trial.write(address=A)
    assert trial.found() == []
    trial.write(address=A, weight=10, t=NOW + 60)
    assert "an operator took this server out" in trial.found()[0]
    trial = Trial()
    trial.facts.accept(trial.facts.propose(plan(a=0), NOW - 1), NOW - 1)
    trial.write(address=A)
    assert trial.found() == []


@pytest.mark.parametrize("weight", [1, 9, 11, 100])
def test_a_weight_that_nobody_has_set_is_wrong(weight: int) -> None:
    trial = Trial()
    trial.write(address=A, weight=weight)
    assert "no configuration and no operator has set this weight" in trial.found()[0]


def test_a_fallback_gets_weight_only_when_it_is_needed() -> None:
    trial = Trial()
    trial.write(address=C, weight=5)
    assert "the earlier pool first serves" in trial.found()[0]
    trial = Trial()
    for address in (A, B):
        trial.fail(address, NOW - 20, NOW + 60)
    trial.write(address=C, weight=5)
    trial.write(address=A)
    trial.write(address=B)
    assert trial.found() == []


def test_a_vip_with_a_usable_server_is_never_left_without_one() -> None:
    trial = Trial()
    for name in ("a", "b"):
        trial.facts.out[name].begin(NOW - 1)
    trial.write(address=A)
    trial.write(address=B)
    assert trial.found() == [f"{KEY} is left without a server: c ({C}) serves"]


@pytest.mark.parametrize(("keep", "wrong"), [(True, 1), (False, 0)])
def test_the_last_server_keeps_its_weight_where_the_file_says_so(keep: bool, wrong: int) -> None:
    trial = Trial(plan(keep=keep))
    for address in (A, B, C):
        trial.fail(address, NOW - 20, NOW + 60)
    trial.write(address=A)
    trial.write(address=B)
    assert len(trial.found()) == wrong


def test_a_vip_goes_only_by_a_configuration_that_may_delete_it() -> None:
    for force, wrong in ((None, 1), (plan(table=2048), 0)):
        trial = Trial()
        if force is not None:
            trial.facts.accept(trial.facts.propose(force, NOW - 1), NOW - 1)
        trial.write("lb_add_del_vip_v2", delete=True)
        assert len(trial.found()) == wrong
    for prunes, wrong in ((True, 0), (False, 1)):
        trial = Trial()
        trial.facts.accept(trial.facts.propose(Plan(), NOW - 10, prunes=prunes), NOW - 10)
        trial.write("lb_add_del_vip_v2", delete=True)
        assert len(trial.found()) == wrong


def test_the_guard_holds_what_would_delete_most_vips_or_all() -> None:
    many, few = plan(others=9).vips, plan(others=2).vips
    assert guarded(many, few)
    assert not guarded(many, plan(others=5).vips)
    assert guarded(few, ())
    assert not guarded((), ())


def test_a_pool_below_its_least_hands_over_as_a_whole() -> None:
    whole = plan()
    vip = replace(whole.vips[KEY], least=(2, 1))
    short = replace(whole, vips={**whole.vips, KEY: vip})
    trial = Trial(short)
    trial.fail(A, NOW - 20, NOW + 60)
    for address, weight in ((C, 5), (A, 0), (B, 0)):
        trial.write(address=address, weight=weight)
    assert trial.found() == []

    def serving(*down: str) -> set[str]:
        wanted = desired(vip, lambda m: m.address not in down, lambda m: m.weight, lambda m: True)
        return {address for address, weight in wanted.items() if weight}

    assert serving() == {A, B}
    assert serving(A) == {C}
    assert serving(A, C) == {B}
    assert serving(A, B, C) == set()


def test_a_flush_is_owed_once_for_a_failure_and_never_without_flush_on_down() -> None:
    for flush, wrong in ((True, 0), (False, 1)):
        trial = Trial(plan(flush=flush))
        trial.fail(A, NOW - 10, NOW + 1)
        trial.write(address=A, flush=True)
        assert len(trial.found()) == wrong
    trial = Trial()
    trial.fail(A, NOW - 10, NOW + 1)
    trial.write(address=A, flush=True)
    trial.write(address=A, weight=10, t=NOW + 10)
    trial.facts.out["a"].begin(NOW + 55)
    trial.write(address=A, flush=True, t=NOW + 60)
    assert trial.found() == [f"{KEY} {A} is flushed, and nothing explains it"]


def test_drift_is_no_fault_of_the_daemon_but_any_other_client_is_an_alarm() -> None:
    trial = Trial()
    trial.write(address=A, client=DRIFT)
    trial.write(address=A, weight=10)
    assert trial.found() == []
    trial.write(address=A, client="stranger")
    assert "a write by 'stranger'" in trial.found()[0]


def test_what_has_settled_is_exactly_what_health_file_and_operators_want() -> None:
    trial = Trial()

    def unsettled(down: set[str]) -> list[str]:
        return trial.oracle.unsettled(
            trial.first, lambda m: m.address not in down, lambda vip, m: m.weight, lambda m: True
        )

    assert unsettled(set()) == []
    assert unsettled({A}) == [f"{KEY} {A}: 10 instead of 0"]
    assert sorted(unsettled({A, B})) == [
        f"{KEY} {A}: 10 instead of 0", f"{KEY} {B}: 5 instead of 0", f"{KEY} {C}: 0 instead of 5",
    ]  # fmt: skip
    assert trial.oracle.differs({KEY: {A: 10, B: 5, C: 1}}) != []
    assert trial.oracle.differs({KEY: {A: 10, B: 5, C: 0}}) == []


def test_the_rule_keeps_what_a_frontend_has_that_is_to_keep_it() -> None:
    vip = plan(keep=True).vips[KEY]
    nothing = desired(vip, lambda m: False, lambda m: m.weight, lambda m: m.backend != "b")
    assert nothing == {A: None, B: 0, C: None}


def test_a_fallback_may_serve_first_where_neither_vpp_nor_the_daemon_knows_better() -> None:
    for started, emptied, recovered, wrong in (
        (NOW - 2.0, NOW - 3.0, NOW - 0.5, 0),
        (None, NOW - 3.0, NOW - 0.5, 1),
        (NOW - 2.0, None, NOW - 0.5, 1),
        (NOW - 7.0, NOW - 8.0, NOW - 5.0, 1),
    ):
        trial = Trial()
        trial.facts.blind["group"].add(NOW - 9.0, recovered)
        if started is not None:
            trial.facts.started.append(started)
        if emptied is not None:
            trial.facts.emptied.append(emptied)
        trial.write(address=C, weight=5)
        assert len(trial.found()) == wrong, (started, emptied, recovered)


def test_a_short_failure_may_follow_an_unproven_one() -> None:
    for blind, wrong in (((NOW - 1.5, NOW - 0.5), 0), ((NOW - 50.0, NOW - 40.0), 1)):
        trial = Trial()
        trial.facts.blind["group"].add(*blind)
        trial.fail(A, NOW - 0.2, NOW - 0.1)
        trial.write(address=A)
        assert len(trial.found()) == wrong, blind


def test_a_weight_may_be_on_the_scale_that_a_started_daemon_found() -> None:
    for a, b, wrong in ((20, 10, 0), (20, 11, 1), (20, 5, 0)):
        trial = Trial()
        trial.write(address=B, weight=0, client=DRIFT)
        trial.write(address=A, weight=a, client=DRIFT)
        trial.write(address=B, weight=b)
        assert len(trial.found()) == wrong, (a, b)


def test_a_scale_may_change_in_passes_of_a_factor_of_two() -> None:
    for found, new, wrong in ((20, 15, 0), (20, 8, 1), (40, 15, 1), (5, 9, 0), (5, 11, 1), (3, 9, 1)):
        trial = Trial()
        trial.write(address=A, weight=found, client=DRIFT)
        trial.write(address=A, weight=new)
        assert len(trial.found()) == wrong, (found, new)
