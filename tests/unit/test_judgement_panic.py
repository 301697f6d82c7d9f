"""Panic: when a frontend enters and leaves it, and what its members get."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from maglev.base.states import FrontendState, State
from maglev.config.model import SECOND, Frontend, OnAllDown, Panic, PanicAction, Pool, PoolMember
from maglev.judgement.panic import Panics
from maglev.judgement.weights import MemberWeight, WeightTable, fill

NAMES = [f"a{number}" for number in range(10)]


def frontend(
    action: PanicAction = PanicAction.ALL, *, size: int = 10, below: float = 0.5, spare: int = 0, keep: bool = False
) -> Frontend:
    pools = [Pool("main", tuple(PoolMember(name) for name in NAMES[:size]))]
    if spare:
        pools.append(Pool("spare", tuple(PoolMember(f"b{number}") for number in range(spare))))
    on_all_down = OnAllDown.KEEP if keep else OnAllDown.DRAIN
    return Frontend("www", ip_address("192.0.2.80"), tuple(pools), on_all_down=on_all_down, panic=Panic(below, action))


class Rig:
    """A frontend whose servers are all up."""

    def __init__(self, conf: Frontend) -> None:
        self.panics = Panics()
        self.now = 0
        self.load(conf)
        self.put(State.UP, *(member.backend for pool in conf.pools for member in pool.members))

    def load(self, conf: Frontend) -> None:
        self.table = WeightTable()
        for _ in fill(self.table, [conf]):
            pass
        self.panics.configure(["www"] if conf.panic else [])
        self.panics.restore(self.table)

    def put(self, state: State, *names: str, drained: bool = False) -> None:
        for name in names:
            self.table.set_backend(name, state, drained)
        self.panics.follow("www", self.table, self.now)

    def later(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)
        self.panics.follow("www", self.table, self.now)

    def state(self) -> FrontendState:
        return self.table.frontend("www").state

    def members(self) -> dict[str, MemberWeight]:
        return {member.backend: member for member in self.table.frontend("www").members}

    def serving(self) -> set[str]:
        return {name for name, member in self.members().items() if member.effective}

    def kept(self) -> set[str]:
        return {name for name, member in self.members().items() if member.keep}


def test_half_of_the_weight_is_enough_and_less_is_panic() -> None:
    rig = Rig(frontend())
    rig.put(State.DOWN, *NAMES[:5])
    assert (rig.state(), len(rig.serving())) == (FrontendState.UP, 5)
    rig.put(State.DOWN, NAMES[5])
    assert (rig.state(), len(rig.serving())) == (FrontendState.PANIC, 10)


def test_the_reason_is_found_by_a_reader_before_it_is_remembered() -> None:
    rig = Rig(frontend())
    for name in NAMES[:6]:
        rig.table.set_backend(name, State.DOWN)
    assert len(rig.serving()) == 10


def test_it_lasts_until_the_reason_has_been_gone_for_thirty_seconds() -> None:
    rig = Rig(frontend())
    rig.put(State.DOWN, *NAMES[:6])
    rig.later(100)
    rig.put(State.UP, NAMES[0])
    assert rig.state() is FrontendState.PANIC
    assert rig.panics.due() == {"www": rig.now + 30 * SECOND}
    rig.later(20)
    rig.put(State.DOWN, NAMES[0])
    assert rig.panics.due() == {}
    rig.put(State.UP, NAMES[0])
    rig.later(29)
    assert len(rig.serving()) == 10
    rig.later(1)
    assert (rig.state(), len(rig.serving())) == (FrontendState.UP, 5)


def test_what_an_operator_took_out_is_no_part_of_it() -> None:
    rig = Rig(frontend())
    rig.put(State.UP, *NAMES[:4], drained=True)
    rig.put(State.DISABLED, NAMES[4])
    rig.put(State.PAUSED, NAMES[5])
    rig.put(State.DOWN, NAMES[6], NAMES[7])
    assert rig.state() is FrontendState.UP
    rig.put(State.DOWN, NAMES[8])
    assert rig.state() is FrontendState.PANIC
    assert rig.serving() == set(NAMES[6:])
    rig.put(State.DOWN, NAMES[0], drained=True)
    assert rig.serving() == set(NAMES[6:])


def test_servers_without_a_verdict_are_no_reason_and_get_nothing() -> None:
    rig = Rig(frontend())
    rig.put(State.UNKNOWN, *NAMES)
    rig.put(State.DOWN, *NAMES[:5])
    assert rig.state() is FrontendState.DOWN
    rig.put(State.DOWN, NAMES[5])
    assert (rig.state(), rig.serving()) == (FrontendState.PANIC, set(NAMES[:6]))


@pytest.mark.parametrize("keep", [False, True])
def test_all_servers_serve_where_all_have_failed_whatever_on_all_down_says(keep: bool) -> None:
    rig = Rig(frontend(keep=keep))
    rig.put(State.DOWN, *NAMES)
    assert (rig.state(), rig.serving(), rig.kept()) == (FrontendState.PANIC, set(NAMES), set())


def test_keep_lowers_no_weight_and_gives_those_that_are_up_theirs() -> None:
    rig = Rig(frontend(PanicAction.KEEP, spare=2))
    rig.put(State.DOWN, "b0", "b1", *NAMES[:6])
    assert (rig.state(), rig.serving()) == (FrontendState.PANIC, set(NAMES[6:]))
    assert rig.kept() == {"b0", "b1", *NAMES[:6]}
    rig.put(State.DOWN, NAMES[0], drained=True)
    rig.put(State.PAUSED, NAMES[1])
    assert rig.kept() == {"b0", "b1", *NAMES[2:6]}
    rig.put(State.DOWN, *NAMES[2:])
    assert (rig.state(), rig.serving(), rig.kept()) == (FrontendState.PANIC, set(), {"b0", "b1", *NAMES[2:]})


@pytest.mark.parametrize("keep", [False, True])
def test_drain_changes_the_state_alone(keep: bool) -> None:
    rig = Rig(frontend(PanicAction.DRAIN, keep=keep))
    rig.put(State.DOWN, *NAMES[:6])
    assert (rig.state(), rig.serving(), rig.kept()) == (FrontendState.PANIC, set(NAMES[6:]), set())
    rig.put(State.DOWN, *NAMES)
    assert (rig.state(), rig.serving(), rig.kept()) == (FrontendState.DOWN, set(), set(NAMES if keep else ()))


def test_a_later_pool_that_is_healthy_prevents_it() -> None:
    rig = Rig(frontend(spare=4))
    rig.put(State.DOWN, *NAMES[:9])
    assert (rig.state(), rig.serving()) == (FrontendState.UP, {NAMES[9]})
    rig.put(State.DOWN, "b0", "b1", "b2")
    assert (rig.state(), rig.serving()) == (FrontendState.PANIC, set(NAMES))
    rig.put(State.DOWN, NAMES[9])
    assert (rig.state(), rig.serving()) == (FrontendState.PANIC, {"b0", "b1", "b2", "b3"})


def test_with_nothing_up_the_first_pool_that_no_operator_emptied_counts() -> None:
    rig = Rig(frontend(spare=2))
    rig.put(State.UP, *NAMES, drained=True)
    rig.put(State.DOWN, "b0", "b1")
    assert (rig.state(), rig.serving()) == (FrontendState.PANIC, {"b0", "b1"})


def test_one_server_and_two_servers() -> None:
    one = Rig(frontend(size=1))
    one.put(State.DOWN, "a0")
    assert (one.state(), one.serving()) == (FrontendState.PANIC, {"a0"})
    two = Rig(frontend(size=2))
    two.put(State.DOWN, "a0")
    assert (two.state(), two.serving()) == (FrontendState.UP, {"a1"})
    two.put(State.DISABLED, "a0", "a1")
    assert two.state() is FrontendState.DOWN


def test_a_reload_keeps_it_and_another_action_applies_at_once() -> None:
    rig = Rig(frontend())
    rig.put(State.DOWN, *NAMES[:6])
    rig.put(State.UP, NAMES[0])
    states = {name: member.state for name, member in rig.members().items()}
    rig.load(frontend(PanicAction.KEEP))
    for name, state in states.items():
        rig.table.set_backend(name, state)
    rig.later(1)
    assert (rig.state(), len(rig.kept())) == (FrontendState.PANIC, 5)
    rig.load(replace(frontend(), panic=None))
    assert rig.panics.names() == []
    assert not rig.panics.panicking("www")
