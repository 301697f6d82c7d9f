"""The index of a configuration, the step from one to the next, and by which one verdicts are programmed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from maglev.base.pace import at_once, let_go
from maglev.base.states import State
from maglev.config.model import Config
from maglev.vpp.planning.model import vip_key
from maglev.vpp.planning.plan import FlushKey
from maglev.vpp.state.announced import PATIENCE_NS, Announced, Before, outdated
from maglev.vpp.state.configured import Configured, Transition, transition
from maglev.vpp.wire.messages import VipKey
from tests.helpers.checker import FakeClock
from tests.helpers.vpp import FakeStates, make_config

WWW = VipKey.parse("192.0.2.1/32", 6, 80)
API = VipKey.parse("192.0.2.1/32", 6, 443)
A, B, C, NEW = (bytes((10, 0, 0, last)) for last in (1, 2, 3, 9))


def nowhere(key: VipKey, address: bytes) -> bool:
    return False


def anywhere(key: VipKey, address: bytes) -> bool:
    return True


def index(config: Config) -> Configured:
    return at_once(transition(None, config, nowhere)).after


def two() -> Config:
    """Two frontends on one address that share a server: www of a and b, api of b and c."""
    config = make_config({"p": {"a": 10, "b": 10}, "q": {"c": 10}})
    www = config.frontends["www"]
    pools = (replace(www.pools[0], members=www.pools[0].members[1:]), www.pools[1])
    return replace(config, frontends={"www": www, "api": replace(www, name="api", port=443, pools=pools)})


def moved(config: Config, name: str, address: str) -> Config:
    backend = replace(config.backends[name], address=IPv4Address(address))
    return replace(config, backends={**config.backends, name: backend})


def step(old: Config, new: Config, serves: object = nowhere) -> Transition:
    assert callable(serves)
    return at_once(transition(index(old), new, serves))


def test_an_index_finds_the_uses_of_a_backend_and_frontends_and_vips_by_each_other() -> None:
    found = index(two())
    assert [(use.frontend, use.flush) for use in found.uses["b"]] == [
        ("www", FlushKey(WWW, B)),
        ("api", FlushKey(API, B)),
    ]
    assert found.keys == {"www": WWW, "api": API}
    assert found.names == {WWW: "www", API: "api"}
    assert found.vips == {WWW, API}


def test_the_first_configuration_is_a_step_that_brings_nothing_but_itself() -> None:
    first = at_once(transition(None, two(), anywhere))
    assert first.before is None
    assert first.flushes == {FlushKey(WWW, a) for a in (A, B, C)} | {FlushKey(API, a) for a in (B, C)}
    assert not (first.joined)
    assert not (first.moved)
    assert not (first.rescaled)
    assert not (first.inherited)


def test_a_configuration_that_is_loaded_again_changes_nothing() -> None:
    again = step(two(), two(), anywhere)
    assert again.before is not None
    assert not (again.joined)
    assert not (again.moved)
    assert not (again.rescaled)
    assert not (again.inherited)


def test_a_backend_that_joins_a_frontend_is_named_with_its_use() -> None:
    old = two()
    www = old.frontends["www"]
    smaller = replace(old, frontends={**old.frontends, "www": replace(www, pools=www.pools[:1])})
    joining = step(smaller, old)
    assert [(name, use.frontend) for name, use in joining.joined] == [("c", "www")]
    assert joining.rescaled == [WWW]
    assert step(old, smaller).joined == []


def test_a_frontend_that_only_gets_another_name_joins_nothing() -> None:
    old = two()
    frontends = {"www": old.frontends["www"], "web": replace(old.frontends["api"], name="web")}
    assert step(old, replace(old, frontends=frontends)).joined == []


def test_a_frontend_that_moves_to_another_port_joins_with_all_its_backends() -> None:
    old = two()
    elsewhere = replace(old.frontends["api"], port=8443)
    joined = step(old, replace(old, frontends={**old.frontends, "api": elsewhere})).joined
    assert {(name, use.flush.vip) for name, use in joined} == {("b", vip_key(elsewhere)), ("c", vip_key(elsewhere))}


def test_the_old_address_of_a_backend_is_moved_in_each_frontend_that_had_it() -> None:
    found = step(two(), moved(two(), "b", "10.0.0.9"))
    assert found.moved == {"www": {B}, "api": {B}}
    assert FlushKey(WWW, NEW) in found.flushes
    assert FlushKey(WWW, B) not in found.flushes


@pytest.mark.parametrize(("serves", "inherited"), [(nowhere, set()), (anywhere, {"b"})])
def test_a_backend_inherits_an_address_that_vpp_sends_traffic_to(serves: object, inherited: set[str]) -> None:
    assert step(two(), moved(two(), "b", "10.0.0.9"), serves).inherited == inherited


def test_a_new_name_at_an_address_of_another_vip_inherits_nothing() -> None:
    old = two()

    def only_api(key: VipKey, address: bytes) -> bool:
        return key == API

    assert step(old, moved(old, "a", "10.0.0.9"), only_api).inherited == set()


def test_a_change_of_the_unit_rescales_the_vip() -> None:
    old = two()
    other = replace(old.frontends["api"], weight_unit=5)
    assert step(old, replace(old, frontends={**old.frontends, "api": other})).rescaled == [API]


def test_a_transition_is_made_member_by_member() -> None:
    assert len(list(transition(index(two()), two(), anywhere))) == 5


# ------------------------------------------------------------------------------------------------ which one counts


def announced(config: Config) -> tuple[Announced, FakeStates, FakeClock]:
    states, clock = FakeStates(config), FakeClock()
    made = Announced(states, clock)
    made.take(made.step(nowhere))
    return made, states, clock


def test_before_the_first_configuration_no_reload_is_under_way() -> None:
    made = Announced(FakeStates(two()), FakeClock())
    assert not made.begun
    assert not made.reloading
    assert not made.watch()


def test_while_a_reload_is_under_way_the_announced_configuration_counts_with_the_states_of_now() -> None:
    made, states, _ = announced(two())
    assert not made.reloading
    assert made.source is states
    new = moved(two(), "c", "10.0.0.9")
    states.load(new)
    states.set(a=State.DOWN)
    assert made.reloading
    source = made.source
    assert isinstance(source, Before)
    assert source.config() is made.current.config
    assert source.backend_state("a").state is State.DOWN
    made.take(made.step(nowhere))
    assert not made.reloading
    assert made.current.config is new


def test_a_frontend_waits_for_a_reload_that_takes_a_backend_away_or_moves_it() -> None:
    old = make_config({"p": {"a": 10, "b": 10}})
    other = replace(old.frontends["www"], name="other", port=443, pools=())
    old = replace(old, frontends={**old.frontends, "other": other})
    for new in (moved(old, "a", "10.0.0.9"), replace(old, backends={"b": old.backends["b"]})):
        made, states, _ = announced(old)
        states.load(new)
        source = made.source
        assert isinstance(source, Before)
        assert source.waits(old.frontends["www"])
        assert not source.waits(other)


def test_a_reload_is_overdue_when_it_was_under_way_for_ten_seconds() -> None:
    made, states, clock = announced(two())
    states.load(moved(two(), "a", "10.0.0.9"))
    assert not made.watch()
    clock.now += PATIENCE_NS - 1
    assert not made.watch()
    clock.now += 1
    assert made.watch()
    made.take(made.step(nowhere))
    assert not made.watch()


def test_a_reload_that_ended_in_time_leaves_the_next_one_all_its_time() -> None:
    made, states, clock = announced(two())
    states.load(moved(two(), "a", "10.0.0.9"))
    assert not made.watch()
    made.take(made.step(nowhere))
    clock.now += PATIENCE_NS
    states.load(two())
    assert not made.watch()


async def test_a_large_pool_is_indexed_and_let_go_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = {"p": dict.fromkeys((f"b{number:02}" for number in range(100)), 10)}
    made, states, _ = announced(make_config(servers))
    states.load(make_config(servers))
    monkeypatch.setattr("maglev.base.pace.SLICE_NS", 0)
    turns = 0

    async def ticking() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    ticker = asyncio.create_task(ticking())
    done = await made.step_in_slices(nowhere)
    assert done is not None
    assert turns > 100
    made.take(done)
    turns, left = 0, outdated(done)
    del done
    await let_go(left)
    assert turns > 200, "the uses of a backend, and the backend"
    ticker.cancel()


async def test_a_step_that_the_next_reload_overtakes_leads_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    made, states, _ = announced(two())
    states.load(moved(two(), "a", "10.0.0.9"))
    monkeypatch.setattr("maglev.base.pace.SLICE_NS", 0)
    making = asyncio.create_task(made.step_in_slices(nowhere))
    await asyncio.sleep(0)
    states.load(two())
    assert await making is None
    assert made.reloading
