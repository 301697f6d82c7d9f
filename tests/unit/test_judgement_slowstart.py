"""Slow start: when it begins, where its steps fall, and what a backend gets."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from maglev.base.states import FrontendState, State
from maglev.config.model import SECOND, Frontend, Panic, Pool, PoolMember
from maglev.judgement.slowstart import Ramps, steps_of
from maglev.judgement.weights import WeightTable, fill

MINUTE = 60 * SECOND


def frontend(*weights: int, unit: int | None = None) -> Frontend:
    members = tuple(PoolMember(name, weight) for name, weight in zip("abcd", weights or (100, 100, 100), strict=False))
    return Frontend("www", ip_address("192.0.2.80"), (Pool("p", members),), weight_unit=unit, slow_start=MINUTE)


class Rig:
    """A frontend whose servers are all up. It is the seventh second of a minute."""

    def __init__(self, conf: Frontend) -> None:
        self.now = 500 * SECOND
        self.wall = 1_700_000_040 * SECOND + 7 * SECOND
        self.ramps = Ramps()
        self.load(conf)
        for member in conf.pools[0].members:
            self.table.set_backend(member.backend, State.UP)

    def load(self, conf: Frontend) -> None:
        self.table = WeightTable()
        for _ in fill(self.table, [conf]):
            pass
        self.ramps.configure({"www": conf.slow_start} if conf.slow_start else {})
        self.ramps.restore(self.table)

    def back(self, *names: str) -> list[str]:
        for name in names:
            self.table.set_backend(name, State.UP)
        return self.ramps.begin("www", names, self.table, self.wall, self.now)

    def later(self, seconds: float) -> int:
        self.now += int(seconds * SECOND)
        self.wall += int(seconds * SECOND)
        self.ramps.follow("www", self.table, self.now)
        return self.effective("a")

    def effective(self, name: str) -> int:
        return next(one.effective for one in self.table.frontend("www").members if one.backend == name)


def test_steps_fall_on_fixed_seconds_of_the_minute() -> None:
    rig = Rig(frontend())
    assert rig.back("a") == ["a"]
    assert rig.effective("a") == 30
    assert rig.later(12.9) == 30
    assert rig.later(0.1) == 50
    assert rig.later(20) == 80
    assert rig.ramps.due() == {"www": rig.now + 20 * SECOND}
    assert rig.later(20) == 100
    assert rig.ramps.due() == {}
    assert rig.ramps.shares("www") == {}
    assert [rig.effective(name) for name in "bc"] == [100, 100]


@pytest.mark.parametrize(("wall", "first"), [(0, 20), (1, 19), (19, 1), (20, 20), (59, 1)])
def test_full_weight_comes_within_the_time_and_after_two_thirds_of_it(wall: int, first: int) -> None:
    steps = steps_of(MINUTE, wall * SECOND, 0)
    assert steps == tuple((first + late) * SECOND for late in (0, 20, 40))
    assert 40 * SECOND <= steps[-1] <= MINUTE


def test_parts_are_rounded_up_to_a_unit_and_never_more_than_the_weight() -> None:
    rig = Rig(frontend(40, 100, 100))
    rig.back("a")
    assert [rig.effective("a"), rig.later(13), rig.later(20), rig.later(20)] == [10, 20, 30, 40]
    coarse = Rig(frontend(unit=100))
    coarse.back("a")
    assert coarse.effective("a") == 100


def test_it_begins_only_while_another_backend_has_a_weight() -> None:
    alone = Rig(frontend(100))
    assert alone.back("a") == []
    rig = Rig(frontend())
    for name in "abc":
        rig.table.set_backend(name, State.DOWN)
    assert rig.back("a", "b") == []
    assert rig.back("c") == ["c"]


def test_what_comes_back_twice_begins_again_and_what_is_down_gets_nothing() -> None:
    rig = Rig(frontend())
    rig.back("a")
    assert rig.later(33) == 80
    rig.table.set_backend("a", State.DOWN)
    assert rig.later(1) == 0
    rig.back("a")
    assert rig.effective("a") == 30
    rig.table.set_backend("a", State.UP, True)
    assert rig.effective("a") == 0


def test_it_does_not_outlive_an_outage_of_all() -> None:
    """Servers that come back together, with nobody else serving, share the load by their weights."""
    rig = Rig(frontend())
    rig.back("a")
    for name in "abc":
        rig.table.set_backend(name, State.DOWN)
    assert rig.back("a", "b", "c") == []
    assert [rig.effective(name) for name in "abc"] == [100, 100, 100]
    assert rig.ramps.due() == {}


def test_panic_ignores_it() -> None:
    rig = Rig(replace(frontend(), panic=Panic(0.5)))
    rig.back("a")
    assert rig.effective("a") == 30
    for name in "bc":
        rig.table.set_backend(name, State.DOWN)
    assert rig.table.frontend("www").state is FrontendState.PANIC
    assert [rig.effective(name) for name in "abc"] == [100, 100, 100]


def test_a_reload_keeps_it_and_ends_it_where_the_file_does() -> None:
    rig = Rig(frontend())
    rig.back("a")
    rig.load(frontend(100, 50, 50))
    for name in "abc":
        rig.table.set_backend(name, State.UP)
    assert rig.effective("a") == 30
    rig.load(replace(frontend(), slow_start=0))
    for name in "abc":
        rig.table.set_backend(name, State.UP)
    assert rig.effective("a") == 100
    assert "www" not in rig.ramps
