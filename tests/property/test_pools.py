"""Pools with thresholds: any sequence of states, with a simulated clock, against the rule in words."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from maglev.base.states import State
from maglev.config.model import SECOND, Frontend, OnAllDown, Pool, PoolMember, Threshold
from maglev.judgement.pools import ActivePools
from maglev.judgement.weights import FrontendWeights, WeightTable, fill

NUMBERS = st.integers(1, 4).map(Threshold)
SHARES = st.integers(1, 100).map(lambda value: Threshold(value, percent=True))


@dataclass
class Life:
    """One frontend with its memory, as the checker keeps it. ``took``: the pools that served, one after the other."""

    frontend: Frontend
    table: WeightTable = field(default_factory=WeightTable)
    pools: ActivePools = field(default_factory=ActivePools)
    now: int = 0
    views: dict[str, tuple[State, bool]] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)
    took: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        for _ in fill(self.table, [self.frontend]):
            pass
        self.pools.configure([self.frontend])
        self.pools.begin({})
        for pool in self.frontend.pools:
            for member in pool.members:
                self.views[member.backend] = (State.UNKNOWN, False)
                self.weights[member.backend] = member.weight

    def set(self, name: str, state: State, drained: bool = False) -> None:
        self.views[name] = (state, drained)
        self.table.set_backend(name, state, drained)

    def weigh(self, name: str, weight: int) -> None:
        pool = next(pool for pool in self.frontend.pools if any(one.backend == name for one in pool.members))
        self.weights[name] = weight
        self.table.set_weight(self.frontend.name, pool.name, name, weight)

    def judge(self) -> FrontendWeights:
        unnoticed = self.table.frontend(self.frontend.name)
        self.pools.follow(self.frontend.name, self.table, self.now)
        weights = self.table.frontend(self.frontend.name)
        if not any(state is State.UNKNOWN for state, _ in self.views.values()) and not any(
            pool.resume_after for pool in self.frontend.pools
        ):
            # A reader that comes before the memory is brought up to date gets the same answer.
            assert unnoticed == weights
        if weights.usable and self.took[-1:] != [weights.active_pool]:
            self.took.append(weights.active_pool)
        return weights

    def eligible(self, pool: Pool) -> int:
        return sum(self.can_serve(member.backend) for member in pool.members)

    def can_serve(self, name: str) -> bool:
        return self.views[name] == (State.UP, False) and self.weights[name] > 0

    def need(self, pool: Pool, threshold: Threshold) -> int:
        if not threshold.percent:
            return threshold.value
        judged = [one.backend for one in pool.members if self.weights[one.backend] > 0]
        base = sum(self.views[name] in ((State.UP, False), (State.DOWN, False)) for name in judged)
        return max(1, math.ceil(threshold.value * base / 100))

    def undecided(self, pool: Pool) -> bool:
        """Whether a server without a verdict could become eligible."""
        names = [member.backend for member in pool.members]
        return any(self.views[name] == (State.UNKNOWN, False) and self.weights[name] > 0 for name in names)

    def usable(self, pool: Pool) -> bool:
        return self.eligible(pool) >= self.need(pool, pool.min_up)


@st.composite
def frontends(draw: st.DrawFn, late: bool = True) -> Frontend:
    pools = []
    for index, size in enumerate(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))):
        members = tuple(PoolMember(f"b{index}{number}", draw(st.sampled_from([0, 10, 100]))) for number in range(size))
        least = draw(NUMBERS | SHARES)
        again = draw(NUMBERS | SHARES) if late else least
        after = draw(st.sampled_from([0, 0, 10])) * SECOND if late else 0
        pools.append(Pool(f"p{index}", members, least, again, after))
    keep = draw(st.sampled_from(OnAllDown))
    return Frontend("f", ip_address("192.0.2.80"), tuple(pools), on_all_down=keep)


def some_step(data: st.DataObject, life: Life) -> None:
    name = data.draw(st.sampled_from(sorted(life.views)))
    what = data.draw(st.sampled_from(["state", "state", "state", "drain", "weight", "time"]))
    state, drained = life.views[name]
    if what == "state":
        life.set(name, data.draw(st.sampled_from([State.UP, State.UP, State.DOWN, *State])), drained)
    elif what == "drain":
        life.set(name, state, not drained)
    elif what == "weight":
        life.weigh(name, data.draw(st.sampled_from([0, 10, 100])))
    else:
        life.now += data.draw(st.integers(1, 20)) * SECOND


@given(st.data())
def test_no_sequence_empties_a_frontend_or_feeds_what_was_taken_out(data: st.DataObject) -> None:
    life = Life(data.draw(frontends()))
    for _ in range(data.draw(st.integers(1, 25))):
        some_step(data, life)
        weights = life.judge()
        assert weights.usable == any(map(life.can_serve, life.views))
        for member in weights.members:
            assert member.effective in (0, life.weights[member.backend])
            if member.effective:
                assert life.can_serve(member.backend)
                assert member.pool_index == weights.active_pool
            elif member.pool_index == weights.active_pool:
                assert not life.can_serve(member.backend)


@given(st.data())
def test_the_active_pool_is_the_first_usable_one_or_the_first_with_a_server(data: st.DataObject) -> None:
    """Without thresholds for the way back, the rule is one of the present states alone.

    Shares are the exception: of a pool that does not serve, servers without a verdict count.
    """
    life = Life(data.draw(frontends(late=False)))
    for _ in range(data.draw(st.integers(1, 15))):
        some_step(data, life)
        weights = life.judge()
        pools = life.frontend.pools
        usable = [pool for pool in pools if life.usable(pool)]
        some = [pool for pool in pools if life.eligible(pool)]
        if any(pool.min_up.percent and life.undecided(pool) for pool in pools):
            continue
        assert pools[weights.active_pool] is (usable or some or pools)[0]


@given(st.data())
def test_a_pool_that_was_left_returns_only_with_its_resume_up(data: st.DataObject) -> None:
    """While the pool that serves stays usable, and every server has a verdict."""
    life = Life(data.draw(frontends()))
    for name in life.views:
        life.set(name, State.UP)
    life.judge()
    for _ in range(data.draw(st.integers(1, 25))):
        name = data.draw(st.sampled_from(sorted(life.views)))
        life.set(name, data.draw(st.sampled_from([State.UP, State.DOWN])))
        life.now += data.draw(st.integers(0, 8)) * SECOND
        before = life.took[-1] if life.took else -1
        after = life.judge().active_pool
        if before < 0 or after == before or not life.usable(life.frontend.pools[before]):
            continue
        pool = life.frontend.pools[after]
        assert after < before
        assert life.eligible(pool) >= max(life.need(pool, pool.min_up), life.need(pool, pool.resume_up))


@given(st.integers(2, 5), st.integers(1, 5), st.data())
def test_no_oscillation_between_the_two_thresholds(least: int, above: int, data: st.DataObject) -> None:
    """Whatever servers of the first pool do below its ``resume-up``, traffic moves once."""
    again = least + above
    first = tuple(PoolMember(f"a{number}") for number in range(again + 1))
    pools = (Pool("a", first, Threshold(least), Threshold(again)), Pool("b", (PoolMember("b0"),)))
    life = Life(Frontend("f", ip_address("192.0.2.80"), pools))
    for name in life.views:
        life.set(name, State.UP)
    life.judge()
    for number in range(again + 1 - (least - 1)):
        life.set(f"a{number}", State.DOWN)
        life.judge()
    assert life.took == [0, 1]
    for _ in range(data.draw(st.integers(1, 40))):
        name = data.draw(st.sampled_from([one.backend for one in first]))
        state = data.draw(st.sampled_from([State.UP, State.DOWN]))
        if state is State.UP and life.eligible(pools[0]) == again - 1 and not life.can_serve(name):
            continue
        life.set(name, state)
        life.judge()
    assert life.took == [0, 1]
    for one in first:
        life.set(one.backend, State.UP)
        life.judge()
    assert life.took == [0, 1, 0]


@given(st.data())
def test_looking_twice_changes_nothing(data: st.DataObject) -> None:
    life = Life(data.draw(frontends()))
    for _ in range(data.draw(st.integers(1, 15))):
        some_step(data, life)
        weights = life.judge()
        assert not life.pools.follow("f", life.table, life.now)
        assert life.table.frontend("f") == weights
        for due in life.pools.due().values():
            assert due > life.now
