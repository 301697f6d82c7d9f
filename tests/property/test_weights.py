"""The weight rule for any states: against a plain model, and with the invariants of any state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from maglev.base.states import FrontendState, State
from maglev.config.model import Backend, Config, Frontend, OnAllDown, Pool, PoolMember, Threshold
from maglev.judgement.weights import (
    FrontendWeights,
    StateSource,
    WeightTable,
    fill,
    frontend_weights,
    pool_counts,
    programmed_weight,
    weight_unit,
)


@dataclass(frozen=True)
class View:
    state: State
    drained: bool


@dataclass(frozen=True)
class Scene(StateSource):
    """A frontend, the states of its backends and the run-time weights, which is all that the rule depends on."""

    frontend: Frontend
    views: dict[str, View]
    overrides: dict[str, int]

    def config(self) -> Config:
        backends = {name: Backend(name, ip_address("192.0.2.1")) for name in self.views}
        return Config(backends=backends, frontends={self.frontend.name: self.frontend})

    def backend_state(self, name: str) -> View:
        return self.views[name]

    def weight_override(self, frontend: str, pool: str, backend: str) -> int | None:
        return self.overrides.get(backend)


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    pools = []
    names = []
    for index, size in enumerate(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))):
        members = []
        for number in range(size):
            names.append(f"b{index}{number}")
            members.append(PoolMember(names[-1], draw(st.integers(0, 100))))
        least = draw(st.just(Threshold(1)) | st.builds(Threshold, st.integers(1, 4), st.booleans()))
        if least.percent:
            least = Threshold(25 * least.value, percent=True)
        pools.append(Pool(f"p{index}", tuple(members), least))
    frontend = Frontend(
        name="f",
        address=ip_address("192.0.2.80"),
        pools=tuple(pools),
        weight_unit=draw(st.none() | st.integers(1, 100)),
        on_all_down=draw(st.sampled_from(OnAllDown)),
    )
    views = {name: View(draw(st.sampled_from(State)), draw(st.booleans())) for name in names}
    return Scene(frontend, views, draw(st.dictionaries(st.sampled_from(names), st.integers(0, 100))))


def plain(scene: Scene) -> dict[str, int]:
    """Effective weights, as the table in words has them."""

    def weight(member: PoolMember) -> int:
        return scene.overrides.get(member.backend, member.weight)

    def can_serve(member: PoolMember) -> bool:
        view = scene.views[member.backend]
        return view.state is State.UP and not view.drained and weight(member) > 0

    def usable(pool: Pool) -> bool:
        up, needed = sum(map(can_serve, pool.members)), pool.min_up.value
        if pool.min_up.percent:
            out = (State.PAUSED, State.DISABLED, State.REMOVED, State.UNKNOWN)
            views = [scene.views[member.backend] for member in pool.members if weight(member) > 0]
            needed = math.ceil(needed * sum(not view.drained and view.state not in out for view in views) / 100)
        return up >= max(needed, 1)

    pools = scene.frontend.pools
    some = [pool for pool in pools if any(map(can_serve, pool.members))]
    active = ([pool for pool in pools if usable(pool)] or some or pools)[0]
    return {
        member.backend: weight(member) if pool is active and can_serve(member) else 0
        for pool in pools
        for member in pool.members
    }


def by_table(scene: Scene) -> FrontendWeights:
    table = WeightTable()
    for _ in fill(table, [scene.frontend], portion=2):
        pass
    for name, view in scene.views.items():
        table.set_backend(name, view.state, view.drained)
    for pool in scene.frontend.pools:
        for member in pool.members:
            table.set_weight("f", pool.name, member.backend, scene.overrides.get(member.backend))
    return table.frontend("f")


@given(scenes())
def test_rule_is_the_plain_one_both_ways(scene: Scene) -> None:
    weights = frontend_weights(scene.frontend, scene)
    assert {member.backend: member.effective for member in weights.members} == plain(scene)
    assert by_table(scene) == weights


@given(scenes())
def test_what_holds_whatever_the_states(scene: Scene) -> None:
    weights = frontend_weights(scene.frontend, scene)
    serving = [member for member in weights.members if member.effective]
    assert weights.usable == bool(serving) == (weights.state is FrontendState.UP)
    assert {member.pool_index for member in serving} <= {weights.active_pool}
    unknown = all(view.state is State.UNKNOWN for view in scene.views.values())
    assert (weights.state is FrontendState.UNKNOWN) == unknown
    for member in weights.members:
        assert (member.programmed > 0) == (member.effective > 0)
        if member.keep:
            assert scene.frontend.on_all_down is OnAllDown.KEEP
            assert not weights.usable
            assert not member.drained
            assert member.state not in (State.DISABLED, State.REMOVED)


@given(scenes(), st.data())
def test_a_failure_changes_only_the_failed_backend_while_its_pool_has_another(
    scene: Scene, data: st.DataObject
) -> None:
    before = frontend_weights(scene.frontend, scene)
    serving = [member.backend for member in before.members if member.effective]
    if len(serving) < 2:
        return
    failed = data.draw(st.sampled_from(serving))
    pool = scene.frontend.pools[before.active_pool]
    if pool_counts(scene.frontend, before)[before.active_pool][1] > 1 or pool.min_up.percent:
        return  # It may be the failure that takes the pool out.
    views = scene.views | {failed: View(State.DOWN, False)}
    after = frontend_weights(scene.frontend, Scene(scene.frontend, views, scene.overrides))
    for was, becomes in zip(before.members, after.members, strict=True):
        assert becomes.programmed == (0 if was.backend == failed else was.programmed)


@given(scenes())
def test_unit_never_depends_on_health_or_run_time_weights(scene: Scene) -> None:
    assert frontend_weights(scene.frontend, scene).unit == weight_unit(scene.frontend)


@given(scenes())
def test_automatic_unit_loses_nothing_of_the_file(scene: Scene) -> None:
    frontend = Frontend("f", scene.frontend.address, scene.frontend.pools)
    unit = weight_unit(frontend)
    assert 10 % unit == 0
    for pool in frontend.pools:
        for member in pool.members:
            assert programmed_weight(member.weight, unit) * unit == member.weight


@given(st.integers(0, 100), st.integers(1, 100))
def test_rounding_is_to_the_nearest_unit(weight: int, unit: int) -> None:
    programmed = programmed_weight(weight, unit)
    if weight == 0:
        assert programmed == 0
    elif weight < unit:
        assert programmed == 1
    else:
        assert abs(Fraction(weight, unit) - programmed) <= Fraction(1, 2)
