"""Pools and panic together, for any sequence of states, with a simulated clock."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from maglev.base.states import FrontendState, State
from maglev.config.model import SECOND, Frontend, OnAllDown, Panic, PanicAction, Pool
from maglev.judgement.panic import CALM_NS, Panics
from maglev.judgement.weights import FrontendWeights
from tests.property.test_pools import Life, some_step
from tests.property.test_pools import frontends as pooled


@dataclass
class Panicking(Life):
    """One frontend with both memories. ``calm_ns``: since when there has been no reason."""

    panics: Panics = field(default_factory=Panics)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.panics.configure([self.frontend.name])

    def judge(self) -> FrontendWeights:
        self.pools.follow(self.frontend.name, self.table, self.now)
        before = self.table.frontend(self.frontend.name)
        entered = self.panics.follow(self.frontend.name, self.table, self.now)
        after = self.table.frontend(self.frontend.name)
        if not (entered and not self.panics.panicking(self.frontend.name)):
            # Entering panic shows in the weights before it is remembered. Only leaving it changes them.
            assert before == after
        return after

    def in_service(self, name: str) -> bool:
        """Not taken out by an operator."""
        state, drained = self.views[name]
        return self.weights[name] > 0 and not drained and state in (State.UP, State.DOWN, State.UNKNOWN)

    def sums(self, pool: Pool) -> tuple[int, int]:
        """Healthy weight and base."""
        names = [one.backend for one in pool.members if self.in_service(one.backend)]
        healthy = [name for name in names if self.views[name][0] is not State.DOWN]
        return sum(self.weights[name] for name in healthy), sum(self.weights[name] for name in names)

    def short(self, pool: Pool) -> bool:
        healthy, base = self.sums(pool)
        assert self.frontend.panic is not None
        return healthy < self.frontend.panic.below * base

    def reason(self, weights: FrontendWeights) -> bool:
        pools = self.frontend.pools
        at = weights.active_pool
        if not any(map(self.can_serve, self.views)):
            at = next((number for number, pool in enumerate(pools) if self.sums(pool)[1]), 0)
        return self.short(pools[at]) and not any(self.sums(p)[1] and not self.short(p) for p in pools[at + 1 :])


@st.composite
def frontends(draw: st.DrawFn) -> Frontend:
    panic = Panic(draw(st.sampled_from([0.01, 0.25, 0.5, 1.0])), draw(st.sampled_from(PanicAction)))
    return replace(draw(pooled()), panic=panic)


@given(st.data())
def test_panic_gives_no_weight_to_what_was_taken_out_and_never_empties_a_frontend(data: st.DataObject) -> None:
    life = Panicking(data.draw(frontends()))
    panic = life.frontend.panic
    assert panic is not None
    for _ in range(data.draw(st.integers(1, 25))):
        some_step(data, life)
        weights = life.judge()
        able = any(map(life.can_serve, life.views))
        assert weights.usable == any(member.effective for member in weights.members)
        assert weights.usable or not able
        for member in weights.members:
            name = member.backend
            assert member.effective in (0, life.weights[name])
            if not life.in_service(name):
                assert member.effective == 0
                assert not member.keep or (
                    life.frontend.on_all_down is OnAllDown.KEEP and life.views[name][0] is State.PAUSED
                )
            elif member.effective and not life.can_serve(name):
                assert (weights.state, panic.action) == (FrontendState.PANIC, PanicAction.ALL)
                assert life.views[name][0] is State.DOWN
            if life.can_serve(name) and member.pool_index == weights.active_pool:
                assert member.effective == life.weights[name]
        if weights.state is FrontendState.PANIC and panic.action is PanicAction.KEEP:
            assert all(member.keep or member.effective for member in weights.members if life.in_service(member.backend))


@given(st.data())
def test_panic_begins_with_its_reason_and_ends_thirty_seconds_after_it(data: st.DataObject) -> None:
    life = Panicking(data.draw(frontends()))
    calm_ns, panicking = 0, False
    for _ in range(data.draw(st.integers(1, 25))):
        some_step(data, life)
        weights = life.judge()
        if life.reason(weights):
            panicking, calm_ns = True, -1
        elif panicking:
            calm_ns = life.now if calm_ns < 0 else calm_ns
            panicking = life.now - calm_ns < CALM_NS
        assert life.panics.panicking("f") == panicking
        if weights.state is FrontendState.PANIC:
            assert panicking
    life.now += CALM_NS + SECOND
    for name in life.views:
        life.set(name, State.UP)
    life.judge()
    life.now += CALM_NS
    assert life.judge().state is not FrontendState.PANIC
