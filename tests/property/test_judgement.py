"""Pools, panic and slow start together, for any sequence of states, with a simulated clock."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from maglev._weights import ramped_weight
from maglev.base.states import FrontendState, State
from maglev.config.model import SECOND, Config, OnAllDown, PanicAction
from maglev.judgement.panic import CALM_NS
from maglev.judgement.slowstart import Ramps
from maglev.judgement.snapshot import Presumption, judge
from maglev.judgement.weights import FrontendWeights, Memory, StateSource, frontend_weights
from tests.property.test_panic import Panicking, frontends
from tests.property.test_pools import some_step
from tests.property.test_weights import View

SLOW = 12 * SECOND


@dataclass
class Everything(Panicking):
    """One frontend with all memories, as the checker keeps them."""

    ramps: Ramps = field(default_factory=Ramps)
    joined: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ramps.configure({"f": SLOW})

    def set(self, name: str, state: State, drained: bool = False) -> None:
        if state is State.UP and self.views[name][0] in (State.DOWN, State.UNKNOWN):
            self.joined.append(name)
        super().set(name, state, drained)

    def judge(self) -> FrontendWeights:
        self.pools.follow("f", self.table, self.now)
        self.panics.follow("f", self.table, self.now)
        self.ramps.follow("f", self.table, self.now)
        if self.joined and not self.panics.panicking("f"):
            self.ramps.begin("f", self.joined, self.table, self.now, self.now)
        self.joined.clear()
        return self.table.frontend("f")


class Source(StateSource):
    """The same frontend for a reader that has no table."""

    def __init__(self, life: Everything) -> None:
        self.life = life

    def config(self) -> Config:
        return Config()

    def backend_state(self, name: str) -> View:
        return View(*self.life.views[name])

    def weight_override(self, frontend: str, pool: str, backend: str) -> int | None:
        return self.life.weights[backend]

    def memory(self, frontend: object) -> Memory:
        return self.life.pools.memory(self.life.frontend)._replace(
            panic=self.life.panics.panicking("f"), shares=self.life.ramps.shares("f")
        )


def life_of(data: st.DataObject) -> Everything:
    return Everything(replace(data.draw(frontends()), slow_start=SLOW))


@given(st.data())
def test_nothing_feeds_what_was_taken_out_and_nothing_empties_a_frontend(data: st.DataObject) -> None:
    life = life_of(data)
    for _ in range(data.draw(st.integers(1, 25))):
        some_step(data, life)
        weights = life.judge()
        assert frontend_weights(life.frontend, Source(life)) == weights
        able = any(map(life.can_serve, life.views))
        assert weights.usable or not able
        for member in weights.members:
            name = member.backend
            if not life.in_service(name):
                assert member.effective == 0
                paused = life.frontend.on_all_down is OnAllDown.KEEP and life.views[name][0] is State.PAUSED
                assert not member.keep or paused
            assert member.effective in (
                0,
                life.weights[name],
                ramped_weight(life.weights[name], member.share, weights.unit),
            )
            if life.can_serve(name) and member.pool_index == weights.active_pool:
                assert member.effective > 0
                if weights.state is FrontendState.PANIC:
                    assert member.effective == life.weights[name]


@given(st.data())
def test_what_stays_as_it_is_is_what_its_checks_say_in_the_end(data: st.DataObject) -> None:
    """Every hold ends: panic that has no reason any more, slow starts, and the turn of a fallback."""
    life = life_of(data)
    for _ in range(data.draw(st.integers(1, 20))):
        some_step(data, life)
        life.judge()
    for _ in range(3):
        life.now += CALM_NS
        weights = life.judge()
    panic = life.frontend.panic
    assert panic is not None
    assert (weights.state is FrontendState.PANIC) <= life.reason(weights)
    for member in weights.members:
        assert member.share == 100
        if life.views[member.backend][0] is State.DOWN and member.effective:
            assert (weights.state, panic.action) == (FrontendState.PANIC, PanicAction.ALL)
    due = [*life.pools.due().values(), *life.panics.due().values(), *life.ramps.due().values()]
    assert due == []


@given(st.data())
def test_presumption_gives_no_weight_to_what_was_taken_out(data: st.DataObject) -> None:
    life = life_of(data)
    names = sorted(life.views)
    for _ in range(data.draw(st.integers(1, 15))):
        some_step(data, life)
        life.judge()
    presumption = Presumption(
        data.draw(st.frozensets(st.sampled_from(names))), data.draw(st.frozensets(st.sampled_from(names)))
    )
    for member in judge(life.frontend, Source(life), presumption).programmed.members:
        if member.drained or member.state in (State.DISABLED, State.REMOVED) or member.weight == 0:
            assert (member.programmed, member.keep) == (0, False)
