"""The weight rule: truth table, active pool, units, keep, and failover from states to final weights."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest

from maglev.base.states import FrontendState, State
from maglev.config.model import Backend, Config, Frontend, OnAllDown, Pool, PoolMember
from maglev.judgement.weights import (
    FrontendWeights,
    StateSource,
    WeightTable,
    applied_weight,
    effective_weight,
    fill,
    flush_owed,
    frontend_weights,
    programmed_weight,
    weight_unit,
)

UP, DOWN, UNKNOWN = State.UP, State.DOWN, State.UNKNOWN
PAUSED, DISABLED, REMOVED = State.PAUSED, State.DISABLED, State.REMOVED


@dataclass(frozen=True)
class View:
    state: State
    drained: bool = False


@dataclass
class Source(StateSource):
    """States by backend name; whoever is not named is unknown."""

    states: Mapping[str, View | State] = field(default_factory=dict)
    overrides: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    configuration: Config = field(default_factory=Config)

    def config(self) -> Config:
        return self.configuration

    def backend_state(self, name: str) -> View:
        found = self.states.get(name, UNKNOWN)
        return found if isinstance(found, View) else View(found)

    def weight_override(self, frontend: str, pool: str, backend: str) -> int | None:
        return self.overrides.get((frontend, pool, backend))


def make_frontend(
    *pools: Mapping[str, int], unit: int | None = None, on_all_down: OnAllDown = OnAllDown.DRAIN
) -> Frontend:
    return Frontend(
        name="vip",
        address=ip_address("192.0.2.80"),
        pools=tuple(
            Pool(f"pool{index}", tuple(PoolMember(name, weight) for name, weight in pool.items()))
            for index, pool in enumerate(pools)
        ),
        weight_unit=unit,
        on_all_down=on_all_down,
    )


def make_config(frontend: Frontend) -> Config:
    names = [member.backend for pool in frontend.pools for member in pool.members]
    backends = {name: Backend(name, ip_address(f"10.0.0.{index + 1}")) for index, name in enumerate(names)}
    return Config(backends=backends, frontends={frontend.name: frontend})


def table_of(*frontends: Frontend) -> WeightTable:
    table = WeightTable()
    for _ in fill(table, frontends, portion=2):
        pass
    return table


def weights_of(frontend: Frontend, source: Source) -> FrontendWeights:
    """The frontend's weights, which both ways of working them out must agree on."""
    single = frontend_weights(frontend, source)
    table = table_of(frontend)
    for pool in frontend.pools:
        for member in pool.members:
            view = source.backend_state(member.backend)
            table.set_backend(member.backend, view.state, view.drained)
            override = source.weight_override(frontend.name, pool.name, member.backend)
            table.set_weight(frontend.name, pool.name, member.backend, override)
    assert table.frontend(frontend.name) == single
    assert table.compute() == int(single.usable)
    assert table.computed_state(frontend.name) is table.state(frontend.name) is single.state
    return single


@pytest.mark.parametrize(
    ("state", "drained", "active", "weight", "expected"),
    [
        pytest.param(UP, False, True, 100, 100, id="up in the active pool"),
        pytest.param(UP, False, True, 37, 37, id="up in the active pool, odd weight"),
        pytest.param(UP, False, False, 100, 0, id="up in a standby pool"),
        pytest.param(UP, False, True, 0, 0, id="up, weight 0"),
        pytest.param(UP, False, True, 1, 1, id="up, weight 1"),
        pytest.param(UP, False, True, 101, 100, id="up, weight above 100"),
        pytest.param(UP, False, True, 100_000, 100, id="up, weight far above 100"),
        pytest.param(UP, False, True, -1, 0, id="up, negative weight"),
        pytest.param(UP, True, True, 100, 0, id="drained in the active pool"),
        pytest.param(UP, True, False, 100, 0, id="drained in a standby pool"),
        pytest.param(UNKNOWN, False, True, 100, 0, id="unknown in the active pool"),
        pytest.param(UNKNOWN, False, False, 100, 0, id="unknown in a standby pool"),
        pytest.param(DOWN, False, True, 100, 0, id="down in the active pool"),
        pytest.param(DOWN, False, False, 100, 0, id="down in a standby pool"),
        pytest.param(DOWN, True, True, 100, 0, id="down and drained"),
        pytest.param(PAUSED, False, True, 100, 0, id="paused in the active pool"),
        pytest.param(PAUSED, False, False, 100, 0, id="paused in a standby pool"),
        pytest.param(DISABLED, False, True, 100, 0, id="disabled in the active pool"),
        pytest.param(DISABLED, False, False, 100, 0, id="disabled in a standby pool"),
        pytest.param(REMOVED, False, True, 100, 0, id="removed from the active pool"),
        pytest.param(REMOVED, False, False, 100, 0, id="removed from a standby pool"),
    ],
)
def test_effective_weight_follows_the_truth_table(
    state: State, drained: bool, active: bool, weight: int, expected: int
) -> None:
    assert effective_weight(state, drained, active, weight) == expected


@pytest.mark.parametrize(
    ("state", "flush_on_down", "expected"),
    [
        (UP, True, False),
        (UP, False, False),
        (UNKNOWN, True, False),
        (UNKNOWN, False, False),
        (DOWN, True, True),
        (DOWN, False, False),
        (PAUSED, True, False),
        (PAUSED, False, False),
        (DISABLED, True, True),
        (DISABLED, False, True),
        (REMOVED, True, True),
        (REMOVED, False, True),
    ],
)
def test_flush_is_owed_by_the_transition_as_the_table_says(state: State, flush_on_down: bool, expected: bool) -> None:
    assert flush_owed(state, flush_on_down=flush_on_down) is expected


@pytest.mark.parametrize(
    ("pools", "states", "active", "state"),
    [
        pytest.param([{"a": 100}, {"b": 100}], {"a": UP, "b": UP}, 0, FrontendState.UP, id="pool 0 has an up"),
        pytest.param(
            [{"a": 100, "b": 100}, {"c": 1}], {"a": DOWN, "b": UP, "c": UP}, 0, FrontendState.UP, id="one up is enough"
        ),
        pytest.param([{"a": 100}, {"b": 100}], {"a": DOWN, "b": UP}, 1, FrontendState.UP, id="pool 0 all down"),
        pytest.param([{"a": 100}, {"b": 100}], {"a": DISABLED, "b": UP}, 1, FrontendState.UP, id="pool 0 all disabled"),
        pytest.param([{"a": 100}, {"b": 100}], {"a": PAUSED, "b": UP}, 1, FrontendState.UP, id="pool 0 all paused"),
        pytest.param([{"a": 100}, {"b": 100}], {"a": UNKNOWN, "b": UP}, 1, FrontendState.UP, id="pool 0 all unknown"),
        pytest.param(
            [{"a": 100}, {"b": 100}], {"a": View(UP, True), "b": UP}, 1, FrontendState.UP, id="pool 0 all drained"
        ),
        pytest.param([{"a": 100}, {"b": 100}], {"a": DOWN, "b": DOWN}, 0, FrontendState.DOWN, id="nothing up anywhere"),
        pytest.param([{"a": 100}, {"b": 100}], {}, 0, FrontendState.UNKNOWN, id="everything unknown"),
        pytest.param([{"a": 100}, {"b": 100}], {"a": DOWN}, 0, FrontendState.DOWN, id="one down, the rest unknown"),
        pytest.param(
            [{"a": 100}, {"b": 100}, {"c": 100}],
            {"a": DOWN, "b": DISABLED, "c": UP},
            2,
            FrontendState.UP,
            id="three tiers",
        ),
        pytest.param(
            [{"a": 100}, {"b": 100}, {"c": 100}], {"a": DOWN, "b": UP, "c": UP}, 1, FrontendState.UP, id="middle tier"
        ),
        pytest.param([{"a": 0}, {"b": 100}], {"a": UP, "b": UP}, 1, FrontendState.UP, id="up but weight 0"),
        pytest.param([{"a": 0}, {"b": 0}], {"a": UP, "b": UP}, 0, FrontendState.DOWN, id="everything up at weight 0"),
        pytest.param([{"a": 100}], {"a": REMOVED}, 0, FrontendState.DOWN, id="the only backend removed"),
    ],
)
def test_active_pool_is_the_first_with_a_backend_that_can_serve(
    pools: list[dict[str, int]], states: dict[str, View | State], active: int, state: FrontendState
) -> None:
    weights = weights_of(make_frontend(*pools), Source(states))
    assert weights.active_pool == active
    assert weights.state is state
    assert weights.usable is (state is FrontendState.UP)
    assert {member.pool_index for member in weights.members if member.effective} <= {active}


@pytest.mark.parametrize(
    ("states", "overrides", "expected"),
    [
        pytest.param(
            {"a": UP, "b": UP, "c": UP, "d": UP},
            {},
            {"10.0.0.1": 100, "10.0.0.2": 50, "10.0.0.3": 0, "10.0.0.4": 0},
            id="all healthy: the fallback stands by",
        ),
        pytest.param(
            {"a": DOWN, "b": UP, "c": UP, "d": UP},
            {},
            {"10.0.0.1": 0, "10.0.0.2": 50, "10.0.0.3": 0, "10.0.0.4": 0},
            id="one primary fails: the other carries on alone",
        ),
        pytest.param(
            {"a": DOWN, "b": DISABLED, "c": UP, "d": UP},
            {},
            {"10.0.0.1": 0, "10.0.0.2": 0, "10.0.0.3": 10, "10.0.0.4": 100},
            id="no primary left: the fallback is promoted",
        ),
        pytest.param(
            {"a": DOWN, "b": View(UP, True), "c": UP, "d": UNKNOWN},
            {},
            {"10.0.0.1": 0, "10.0.0.2": 0, "10.0.0.3": 10, "10.0.0.4": 0},
            id="the last primary is drained: the fallback is promoted, who is unknown waits",
        ),
        pytest.param(
            {"a": DOWN, "b": DOWN, "c": DOWN, "d": DOWN},
            {},
            {"10.0.0.1": 0, "10.0.0.2": 0, "10.0.0.3": 0, "10.0.0.4": 0},
            id="everything fails",
        ),
        pytest.param(
            {"a": UP, "b": DOWN, "c": UP, "d": UP},
            {},
            {"10.0.0.1": 100, "10.0.0.2": 0, "10.0.0.3": 0, "10.0.0.4": 0},
            id="a primary comes back: the fallback steps back",
        ),
        pytest.param(
            {"a": UP, "b": UP, "c": UP, "d": UP},
            {("vip", "pool0", "a"): 0, ("vip", "pool0", "b"): 0},
            {"10.0.0.1": 0, "10.0.0.2": 0, "10.0.0.3": 10, "10.0.0.4": 100},
            id="an operator sets the primaries to 0: the fallback is promoted",
        ),
        pytest.param(
            {"a": UP, "b": UP, "c": UP, "d": UP},
            {("vip", "pool0", "a"): 30},
            {"10.0.0.1": 30, "10.0.0.2": 50, "10.0.0.3": 0, "10.0.0.4": 0},
            id="an operator's weight takes the place of the file's",
        ),
    ],
)
def test_failover_gives_each_address_its_final_weight(
    states: dict[str, View | State], overrides: dict[tuple[str, str, str], int], expected: dict[str, int]
) -> None:
    frontend = make_frontend({"a": 100, "b": 50}, {"c": 10, "d": 100})
    backends = make_config(frontend).backends
    weights = weights_of(frontend, Source(states, overrides))
    assert {str(backends[member.backend].address): member.effective for member in weights.members} == expected


@pytest.mark.parametrize(
    ("pools", "unit", "expected"),
    [
        pytest.param([{"a": 100, "b": 100}], None, 10, id="all at the default"),
        pytest.param([{"a": 100, "b": 50}], None, 10, id="tens"),
        pytest.param([{"a": 100, "b": 25}], None, 5, id="fives"),
        pytest.param([{"a": 100, "b": 4}], None, 2, id="even"),
        pytest.param([{"a": 100, "b": 33}], None, 1, id="nothing in common"),
        pytest.param([{"a": 100}, {"b": 5}], None, 5, id="over all pools"),
        pytest.param([{"a": 100, "b": 0}], None, 10, id="zero does not count"),
        pytest.param([{"a": 0}], None, 10, id="only zero"),
        pytest.param([{"a": 7}], 1, 1, id="raw"),
        pytest.param([{"a": 100}], 100, 100, id="gentlest"),
    ],
)
def test_weight_unit_depends_on_the_file_alone(pools: list[dict[str, int]], unit: int | None, expected: int) -> None:
    frontend = make_frontend(*pools, unit=unit)
    assert weight_unit(frontend) == expected
    source = Source(dict.fromkeys("ab", UP), {("vip", "pool0", "a"): 3})
    assert weights_of(frontend, source).unit == expected


@pytest.mark.parametrize(
    ("effective", "unit", "programmed", "applied"),
    [
        (0, 10, 0, 0),
        (100, 10, 10, 100),
        (100, 1, 100, 100),
        (100, 100, 1, 100),
        (1, 10, 1, 10),
        (4, 10, 1, 10),
        (14, 10, 1, 10),
        (15, 10, 2, 20),
        (16, 10, 2, 20),
        (99, 10, 10, 100),
        (1, 100, 1, 100),
        (100, 30, 3, 90),
        (120, 10, 10, 100),
        (-5, 10, 0, 0),
    ],
)
def test_weights_are_rounded_to_whole_units_and_never_to_nothing(
    effective: int, unit: int, programmed: int, applied: int
) -> None:
    assert programmed_weight(effective, unit) == programmed
    assert applied_weight(effective, unit) == applied


@pytest.mark.parametrize("unit", [0, -1, 101])
def test_impossible_unit_is_an_error(unit: int) -> None:
    with pytest.raises(ValueError, match="unit is 1 to 100"):
        programmed_weight(50, unit)
    with pytest.raises(ValueError, match="unit is 1 to 100"):
        weight_unit(make_frontend({"a": 1}, unit=unit))


def test_keep_leaves_the_weights_of_unhealthy_backends_and_takes_those_an_operator_took_out() -> None:
    frontend = make_frontend(
        {"down": 100, "paused": 100, "unknown": 100, "disabled": 100, "drained": 100, "zero": 0},
        on_all_down=OnAllDown.KEEP,
    )
    states: dict[str, View | State] = {
        "down": DOWN,
        "paused": PAUSED,
        "disabled": DISABLED,
        "drained": View(DOWN, True),
        "zero": UP,
    }
    weights = weights_of(frontend, Source(states))
    assert not weights.usable
    assert {member.backend for member in weights.members if member.keep} == {"down", "paused", "unknown"}
    assert [member.programmed for member in weights.members] == [0] * 6


def test_keep_ends_as_soon_as_something_is_up() -> None:
    frontend = make_frontend({"a": 100, "b": 100}, {"c": 100}, on_all_down=OnAllDown.KEEP)
    weights = weights_of(frontend, Source({"a": DOWN, "b": DOWN, "c": UP}))
    assert not any(member.keep for member in weights.members)
    assert [member.programmed for member in weights.members] == [0, 0, 10]


def test_drain_policy_keeps_nothing() -> None:
    weights = weights_of(make_frontend({"a": 100}), Source({"a": DOWN}))
    assert not weights.members[0].keep


def test_run_time_weight_shows_beside_the_configured_one() -> None:
    frontend = make_frontend({"a": 100, "b": 50})
    member = weights_of(frontend, Source({"a": UP}, {("vip", "pool0", "a"): 25})).members[0]
    assert (member.configured, member.weight, member.effective, member.programmed) == (100, 25, 25, 3)
    assert member.enabled
    assert member.state is UP


def test_disabled_member_says_so() -> None:
    member = weights_of(make_frontend({"a": 100}), Source({"a": DISABLED})).members[0]
    assert not member.enabled
    assert member.state is DISABLED


def test_unknown_backend_raises_what_the_source_raises() -> None:
    class Strict(Source):
        def backend_state(self, name: str) -> View:
            raise LookupError(name)

    with pytest.raises(LookupError, match="a"):
        frontend_weights(make_frontend({"a": 1}), Strict())


def test_table_refuses_unknown_names_and_states() -> None:
    with pytest.raises(IndexError):
        WeightTable().add_members(0, (PoolMember("a"),))
    table = table_of(make_frontend({"a": 100}))
    with pytest.raises(ValueError, match="in the table already"):
        table.add(make_frontend({"b": 100}))
    with pytest.raises(KeyError):
        table.set_weight("vip", "pool0", "b", 5)
    with pytest.raises(KeyError):
        table.set_weight("vip", "pool1", "a", 5)
    with pytest.raises(KeyError):
        table.frontend("other")
    with pytest.raises(ValueError, match="no backend state"):
        table.set_backend("a", 17)  # type: ignore[arg-type]


def test_backend_that_no_frontend_uses_has_no_place_in_the_table() -> None:
    table = table_of(make_frontend({"a": 100}))
    table.set_backend("b", UP)
    assert table.compute() == 0


def test_table_knows_a_frontend_from_another_one_of_its_name() -> None:
    frontend = make_frontend({"a": 100})
    table = table_of(frontend)
    assert frontend in table
    assert make_frontend({"a": 100}) not in table


def test_run_time_weight_of_the_table_goes_back_to_the_file() -> None:
    table = table_of(make_frontend({"a": 80}))
    table.set_backend("a", UP)
    table.set_weight("vip", "pool0", "a", 10)
    assert table.frontend("vip").members[0].weight == 10
    table.set_weight("vip", "pool0", "a", None)
    assert table.frontend("vip").members[0].weight == 80


def test_backend_shared_by_frontends_is_set_once() -> None:
    first = make_frontend({"a": 100})
    second = Frontend(
        name="other", address=ip_address("192.0.2.81"), pools=(Pool("p", (PoolMember("b"), PoolMember("a", 20))),)
    )
    table = table_of(first, second)
    assert len(table) == 3
    table.set_backend("a", UP)
    assert table.compute() == 2
    assert [member.effective for name in ("vip", "other") for member in table.frontend(name).members] == [100, 0, 20]


def test_results_compare_by_value_and_survive_pickling() -> None:
    weights = weights_of(make_frontend({"a": 100}), Source({"a": UP}))
    again = weights_of(make_frontend({"a": 100}), Source({"a": UP}))
    other = weights_of(make_frontend({"a": 100}), Source({"a": DOWN}))
    assert weights == again
    assert hash(weights) == hash(again)
    assert weights != other
    assert pickle.loads(pickle.dumps(weights)) == weights
    assert "backend='a'" in repr(weights)
