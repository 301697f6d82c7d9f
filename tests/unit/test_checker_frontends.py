"""The states of frontends: what is published, and that nothing is lost between slices."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace

import pytest

from maglev.base.events import Bus, FrontendEvent
from maglev.base.states import FrontendState, State
from maglev.checker.backend import LiveBackend
from maglev.checker.frontends import Frontends
from maglev.config.model import SECOND, Config, Panic
from tests.helpers.checker import FakeClock, Recorder, config

A = {"a": "192.0.2.1"}
AB = {"a": "192.0.2.1", "b": "192.0.2.2"}


@pytest.fixture(autouse=True)
def long_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not end a slice: tests of slices set their length themselves."""
    monkeypatch.setattr("maglev.checker.frontends.SLICE_NS", 60_000_000_000)


class Rig:
    """Frontends with backends that a test sets by hand."""

    def __init__(self) -> None:
        self.bus = Bus()
        self.seen = Recorder(self.bus)
        self.clock = FakeClock()
        self.frontends = Frontends(self.bus, self.clock)
        self.backends: dict[str, LiveBackend] = {}

    async def prepare(self, made: Config) -> None:
        for name, conf in made.backends.items():
            self.backends.setdefault(name, LiveBackend(conf, None, 0)).state = State.UNKNOWN
        await self.frontends.prepare(made.frontends.values(), [self.backends[name] for name in made.backends])

    async def load(self, made: Config) -> None:
        await self.prepare(made)
        self.frontends.configure(made.frontends, [])
        await self.frontends.publish_all()
        await self.frontends.release()

    def set(self, name: str, state: State) -> None:
        self.backends[name].state = state
        self.frontends.touch(self.backends[name])

    def published(self) -> list[tuple[str, FrontendState]]:
        return [(event.name, event.to_state) for event in self.seen.take() if isinstance(event, FrontendEvent)]


def frontends_of(names: Iterable[str]) -> dict[str, list[dict[str, int]]]:
    return {name: [{"a": 100}] for name in names}


async def test_only_what_changed_is_published_once() -> None:
    rig = Rig()
    await rig.load(config(AB, {"one": [{"a": 100}], "two": [{"a": 100, "b": 100}]}))
    rig.set("a", State.UP)
    rig.set("b", State.UP)
    rig.frontends.publish()
    assert rig.published() == [("one", FrontendState.UP), ("two", FrontendState.UP)]
    rig.set("b", State.DOWN)
    rig.frontends.publish()
    assert rig.published() == []


async def test_a_change_that_is_taken_back_before_it_is_published_is_none() -> None:
    rig = Rig()
    await rig.load(config(A, frontends_of(["www"])))
    rig.set("a", State.UP)
    rig.set("a", State.UNKNOWN)
    rig.frontends.publish()
    assert rig.published() == []


async def test_frontends_that_a_slice_leaves_follow_at_the_next_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maglev.checker.frontends.SLICE_NS", 0)
    rig = Rig()
    await rig.load(config(A, frontends_of(["one", "two", "three"])))
    rig.set("a", State.UP)
    rig.frontends.publish()
    assert rig.published() == [("one", FrontendState.UP)]
    await asyncio.sleep(0)
    assert rig.published() == [("two", FrontendState.UP)]
    await asyncio.sleep(0)
    assert rig.published() == [("three", FrontendState.UP)]


async def test_a_frontend_touched_while_a_reload_publishes_gets_its_newest_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The slice of ``publish`` is used up before it comes to the last frontend; nor has the reload come to it."""
    monkeypatch.setattr("maglev.checker.frontends.SLICE_NS", 0)
    monkeypatch.setattr("maglev.base.pace.SLICE_NS", 0)
    rig = Rig()
    made = config(A, frontends_of(["one", "two", "three"]))
    await rig.prepare(made)
    rig.frontends.configure(made.frontends, [])

    def verdict() -> None:
        rig.set("a", State.UP)
        rig.frontends.publish()

    asyncio.get_running_loop().call_soon(verdict)
    await rig.frontends.publish_all()
    assert {name: rig.frontends.state(name) for name in made.frontends} == dict.fromkeys(
        made.frontends, FrontendState.UP
    )
    assert sorted(rig.published()) == [(name, FrontendState.UP) for name in sorted(made.frontends)]


async def test_a_verdict_between_preparation_and_step_counts_in_both_tables() -> None:
    rig = Rig()
    old, new = config(A, frontends_of(["www"])), config(A, frontends_of(["www", "new"]))
    await rig.load(old)
    await rig.prepare(new)
    rig.set("a", State.UP)
    rig.frontends.publish()
    assert rig.published() == [("www", FrontendState.UP)]
    rig.frontends.configure(new.frontends, [])
    assert rig.frontends.weights("new").usable
    await rig.frontends.publish_all()
    assert rig.published() == [("new", FrontendState.UP)]


async def test_a_preparation_that_was_given_up_leaves_nothing_behind() -> None:
    rig = Rig()
    await rig.load(config(A, frontends_of(["www"])))
    await rig.prepare(config(AB, {"never": [{"b": 1}]}))
    await rig.load(config(A, frontends_of(["other"])))
    with pytest.raises(KeyError):
        rig.frontends.weights("never")
    assert rig.frontends.users_of("b") == ()


async def test_frontends_that_stay_keep_the_state_that_was_published() -> None:
    rig = Rig()
    await rig.load(config(AB, {"www": [{"a": 100}], "gone": [{"b": 1}]}))
    rig.set("a", State.UP)
    rig.frontends.publish()
    made = config(AB, {"www": [{"a": 50}]})
    await rig.frontends.prepare(made.frontends.values(), rig.backends.values())
    rig.frontends.configure(made.frontends, [])
    assert rig.frontends.state("www") is FrontendState.UP
    assert rig.frontends.state("gone") is FrontendState.UNKNOWN
    rig.seen.take()
    await rig.frontends.publish_all()
    assert rig.published() == []


async def test_users_come_in_the_order_of_the_file_and_none_of_the_old_one_is_left() -> None:
    rig = Rig()
    await rig.load(config(AB, {"one": [{"a": 1}], "two": [{"b": 1}, {"a": 1}], "three": [{"a": 1}]}))
    assert rig.frontends.users_of("a") == ("one", "two", "three")
    assert rig.frontends.users_of("b") == ("two",)
    assert rig.frontends.users_of("c") == ()
    await rig.load(config(AB, {"three": [{"b": 1}]}))
    assert rig.frontends.users_of("a") == ()


async def test_run_time_weight_touches_its_frontend_alone() -> None:
    rig = Rig()
    await rig.load(config(A, frontends_of(["one", "two"])))
    rig.set("a", State.UP)
    rig.frontends.publish()
    rig.seen.take()
    rig.frontends.set_weight("one", "pool0", "a", 0)
    rig.frontends.publish()
    assert rig.published() == [("one", FrontendState.DOWN)]
    rig.frontends.set_weight("one", "pool0", "a", None)
    rig.frontends.publish()
    assert rig.published() == [("one", FrontendState.UP)]


UNKNOWN, UP, DOWN = FrontendState.UNKNOWN, FrontendState.UP, FrontendState.DOWN


class Two(Rig):
    """One frontend with two backends, in one pool or in two."""

    async def start(self, *pools: dict[str, int]) -> None:
        await self.load(config(AB, {"www": list(pools)}))

    def told(self, **states: State) -> list[FrontendState]:
        """What is published once the backends are in these states."""
        for name, state in states.items():
            self.set(name, state)
        self.frontends.publish()
        assert self.frontends.state("www") is self.frontends.weights("www").state
        return [state for _, state in self.published()]

    def drain(self, name: str, drained: bool = True) -> None:
        self.backends[name].drained = drained
        self.frontends.touch(self.backends[name])


@pytest.mark.parametrize("pools", [[{"a": 100, "b": 100}], [{"a": 100}, {"b": 100}], [{"b": 100}, {"a": 100}]])
async def test_a_frontend_that_is_not_known_is_not_down_before_its_members_are_known(
    pools: list[dict[str, int]],
) -> None:
    rig = Two()
    await rig.start(*pools)
    rig.drain("a")
    assert rig.told(a=State.UP) == []
    assert rig.told(b=State.UP) == [UP]
    for stopped in (State.DOWN, State.PAUSED, State.DISABLED):
        other = Two()
        await other.start(*pools)
        assert other.told(a=stopped) == []
        assert other.told(b=State.UP) == [UP]
        last = Two()
        await last.start(*pools)
        assert last.told(a=stopped) == []
        assert last.told(b=State.DOWN) == [DOWN]


async def test_members_that_cannot_serve_keep_no_frontend_from_being_down() -> None:
    for weight, drained in ((0, False), (100, True)):
        rig = Two()
        await rig.start({"a": 100, "b": weight})
        if drained:
            rig.drain("b")
        assert rig.told(a=State.DOWN) == [DOWN]


async def test_what_keeps_a_frontend_unknown_may_be_taken_out() -> None:
    rig = Two()
    await rig.start({"a": 100, "b": 100})
    assert rig.told(a=State.DOWN) == []
    rig.drain("b")
    assert rig.told() == [DOWN]
    rig.drain("b", drained=False)
    assert rig.told() == []
    assert rig.told(b=State.UP) == [UP]


async def test_a_frontend_that_is_down_stays_so_until_a_server_is_up() -> None:
    rig = Two()
    await rig.start({"a": 100, "b": 100})
    assert rig.told(a=State.DOWN, b=State.DISABLED) == [DOWN]
    assert rig.told(b=State.UNKNOWN) == []
    assert rig.told(b=State.UP) == [UP]


async def test_a_frontend_whose_server_moves_is_not_down_before_a_verdict() -> None:
    rig = Two()
    await rig.start({"a": 100, "b": 100})
    assert rig.told(a=State.UP, b=State.DISABLED) == [UP]
    assert rig.told(a=State.UNKNOWN) == []
    assert rig.told(a=State.UP) == []
    assert rig.told(a=State.UNKNOWN) == []
    assert rig.told(a=State.DOWN) == [DOWN]


async def test_a_reload_that_brings_other_servers_is_no_outage() -> None:
    rig = Two()
    await rig.load(config(AB, {"www": [{"a": 100}]}))
    assert rig.told(a=State.UP) == [UP]
    rig.set("b", State.DOWN)
    await rig.load(config({**AB, "c": "192.0.2.3"}, {"www": [{"b": 100, "c": 100}]}))
    # ``load`` makes every backend unknown; the verdict on b is taken again.
    assert [state for _, state in rig.published()] == [UNKNOWN]
    assert rig.told(b=State.DOWN) == []
    assert rig.told(c=State.UP) == [UP]


async def test_time_alone_ends_panic_and_tells_the_dataplane() -> None:
    rig = Rig()
    made = config(AB, {"www": [{"a": 100, "b": 100}]})
    www = replace(made.frontends["www"], panic=Panic(0.6))
    await rig.load(replace(made, frontends={"www": www}))
    judged: list[str] = []
    rig.bus.listen_judgements(lambda name, mechanism: judged.append(name))
    task = asyncio.create_task(rig.frontends.judge())
    rig.set("a", State.UP)
    rig.set("b", State.DOWN)
    rig.frontends.publish()
    assert rig.published() == [("www", FrontendState.PANIC)]
    assert rig.frontends.memory(www).panic
    rig.set("b", State.UP)
    rig.frontends.publish()
    for _ in range(10):
        await asyncio.sleep(0)
    assert rig.published() == []
    judged.clear()
    rig.clock.advance(30)
    for _ in range(10):
        await asyncio.sleep(0)
    assert rig.published() == [("www", FrontendState.UP)]
    assert judged == ["www"]
    task.cancel()


async def test_a_backend_that_comes_back_gets_its_weight_in_steps_by_time_alone() -> None:
    rig = Rig()
    made = config(AB, {"www": [{"a": 100, "b": 100}]})
    www = replace(made.frontends["www"], slow_start=3 * SECOND)
    await rig.load(replace(made, frontends={"www": www}))
    judged: list[str] = []
    rig.bus.listen_judgements(lambda name, mechanism: judged.append(name))
    rig.set("a", State.UP)
    rig.set("b", State.UP)
    rig.frontends.publish()

    def weight() -> int:
        return rig.frontends.weights("www").members[1].effective

    assert weight() == 100  # The first verdicts since the start.
    rig.set("b", State.DOWN)
    rig.backends["b"].state = State.UP
    rig.frontends.touch(rig.backends["b"], joins=True)
    rig.frontends.publish()
    task = asyncio.create_task(rig.frontends.judge())
    seen = [weight()]
    assert rig.frontends.memory(www).shares == {"b": 25}
    for _ in range(4):
        for _ in range(10):
            await asyncio.sleep(0)
        rig.clock.advance(1)
        for _ in range(10):
            await asyncio.sleep(0)
        seen.append(weight())
    assert seen == [30, 50, 80, 100, 100]
    assert judged == ["www"] * 4
    task.cancel()
