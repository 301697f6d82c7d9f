"""The rules of a reload, each by name, and what a restart finds again."""

from __future__ import annotations

import asyncio
import dataclasses
from ipaddress import ip_address

import pytest

from maglev.base.errors import NotAllowed, UnknownName
from maglev.base.events import BackendEvent, ConfigEvent, DrainEvent, FrontendEvent
from maglev.base.states import Code, FrontendState, State
from maglev.checker.overrides import from_json, to_json
from maglev.config.model import SECOND, Backend, Config, Panic, Threshold
from tests.helpers.checker import check, config
from tests.unit.test_checker_verbs import Rig

A = "192.0.2.1"
B = "192.0.2.2"
C = "192.0.2.3"

WWW = {"www": [{"a": 100}, {"b": 50}]}


async def started(first: Config) -> Rig:
    rig = Rig()
    await rig.checker.apply(first, by="start")
    rig.checker.settle(())
    rig.seen.take()
    return rig


async def test_reload_without_changes_publishes_nothing_but_the_configuration() -> None:
    rig = await started(config({"a": A, "b": B}, WWW))
    rig.result(A, True)
    rig.seen.take()
    await rig.checker.apply(config({"a": A, "b": B}, WWW), by="signal")
    (event,) = rig.seen.take()
    assert isinstance(event, ConfigEvent)
    assert event.by == "signal"


async def test_unchanged_check_keeps_its_counter_and_history() -> None:
    rig = await started(config({"a": A}))
    rig.result(A, True)
    rig.result(A, False)
    target = rig.engine.probed(A)
    generation, counter, history = target.generation, target.counter, rig.history("a")
    await rig.checker.apply(config({"a": A, "b": B}), by="signal")
    assert rig.engine.probed(A) is target
    assert (target.generation, target.counter) == (generation, counter)
    assert rig.history("a") == history


async def test_new_backend_starts_at_unknown() -> None:
    rig = await started(config({"a": A}))
    await rig.checker.apply(config({"a": A, "b": B}), by="signal")
    assert rig.history("b") == [(State.REMOVED, State.UNKNOWN, Code.ADDED)]
    assert rig.engine.is_probed(B)
    rig.result(B, False)
    assert rig.state("b") is State.DOWN


async def test_a_server_that_was_up_under_another_name_is_presumed_good() -> None:
    rig = await started(config({"a": A, "b": B, "c": C}))
    for address, passed in ((A, True), (B, True), (C, False)):
        rig.result(address, passed)
    await rig.checker.apply(config({"b": A, "d": B, "e": C, "f": "192.0.2.4"}), by="signal")
    assert {live.name: live.state for live in rig.checker.backends()} == dict.fromkeys("bdef", State.UNKNOWN)
    assert [live.name for live in rig.checker.backends() if live.presumed] == ["b", "d"]
    await rig.checker.apply(config({"b": A, "g": B, "e": C, "f": "192.0.2.4"}), by="signal")
    assert [live.name for live in rig.checker.backends() if live.presumed] == ["b", "g"]
    for address in (A, B):
        rig.result(address, False, times=2)
    assert (rig.state("b"), rig.state("g")) == (State.UNKNOWN, State.UNKNOWN)
    rig.result(A, False)
    rig.result(B, True)
    assert (rig.state("b"), rig.state("g")) == (State.DOWN, State.UP)


async def test_a_shorter_history_is_cut_at_the_reload() -> None:
    rig = await started(config({"a": A}))
    rig.result(A, True)
    rig.checker.disable("a", by="op")
    last = rig.history("a")[-1]
    await rig.checker.apply(dataclasses.replace(config({"a": A}), transition_history=1), by="signal")
    assert rig.history("a") == [last]


async def test_removed_backend_is_told_and_stops() -> None:
    rig = await started(config({"a": A, "b": B}, WWW))
    rig.result(B, True)
    rig.seen.take()
    await rig.checker.apply(config({"a": A}, {"www": [{"a": 100}]}), by="signal")
    removed = [e for e in rig.seen.take() if isinstance(e, BackendEvent)]
    assert [(e.name, e.from_state, e.to_state, e.code) for e in removed] == [
        ("b", State.UP, State.REMOVED, Code.REMOVED)
    ]
    assert not rig.engine.is_probed(B)
    with pytest.raises(UnknownName):
        rig.checker.backend_state("b")


async def test_verdict_of_a_removed_backend_is_dropped_even_when_its_slot_is_used_again() -> None:
    rig = await started(config({"a": A}))
    rig.engine.result(A, True)
    await rig.checker.apply(config({"b": B}), by="signal")
    assert rig.engine.probed(B).id == 0
    rig.checker.read_engine()
    assert rig.state("b") is State.UNKNOWN
    assert rig.checker.stale_verdicts == 1


async def test_changed_check_goes_on_up_with_the_counter_at_the_new_maximum() -> None:
    rig = await started(config({"a": A}, {"www": [{"a": 100}]}))
    rig.result(A, True)
    rig.result(A, False)
    rig.seen.take()
    await rig.checker.apply(
        config({"a": A}, {"www": [{"a": 100}]}, [check(rise=5, fall=7, interval=SECOND // 5)]), by="signal"
    )
    assert rig.state("a") is State.UP
    assert rig.engine.probed(A).counter == 11
    assert rig.backend_events() == []
    rig.result(A, False, times=6)
    assert rig.state("a") is State.UP
    rig.result(A, False)
    assert rig.state("a") is State.DOWN
    assert list(rig.engine.checks.values()) == [check(rise=5, fall=7, interval=SECOND // 5)]


async def test_changed_check_goes_on_down_with_the_counter_at_zero() -> None:
    rig = await started(config({"a": A}))
    rig.result(A, False)
    rig.result(A, True)
    await rig.checker.apply(config({"a": A}, checks=[check(rise=4)]), by="signal")
    assert rig.state("a") is State.DOWN
    assert rig.engine.probed(A).counter == 0


async def test_result_of_the_old_check_does_not_count_after_the_change() -> None:
    rig = await started(config({"a": A}))
    rig.result(A, True)
    for _ in range(3):
        rig.engine.result(A, False)
    await rig.checker.apply(config({"a": A}, checks=[check(interval=5 * SECOND)]), by="signal")
    rig.checker.read_engine()
    assert rig.state("a") is State.UP
    assert rig.checker.stale_verdicts == 1


async def test_changed_check_of_a_paused_backend_is_used_when_it_resumes() -> None:
    rig = await started(config({"a": A}))
    rig.checker.pause("a", by="op")
    await rig.checker.apply(config({"a": A}, checks=[check(rise=9)]), by="signal")
    assert rig.state("a") is State.PAUSED
    rig.checker.resume("a", by="op")
    assert rig.engine.checks[rig.engine.probed(A).check].rise == 9


async def test_changed_default_namespace_is_a_changed_check() -> None:
    rig = await started(config({"a": A}))
    rig.result(A, True)
    await rig.checker.apply(config({"a": A}, netns="dataplane"), by="signal")
    assert rig.state("a") is State.UP
    assert rig.engine.checks[rig.engine.probed(A).check].netns == "dataplane"


async def test_static_backend_that_gets_a_check_goes_on_up() -> None:
    rig = await started(config([Backend("a", ip_address(A))]))
    rig.seen.take()
    await rig.checker.apply(config({"a": A}), by="signal")
    assert rig.state("a") is State.UP
    assert rig.engine.probed(A).counter == 4
    assert rig.backend_events() == []


async def test_backend_that_loses_its_check_is_static_and_up() -> None:
    rig = await started(config({"a": A}))
    rig.result(A, False)
    await rig.checker.apply(config([Backend("a", ip_address(A))]), by="signal")
    assert rig.history("a")[-1] == (State.DOWN, State.UP, Code.STATIC)
    assert rig.engine.targets == {}
    assert rig.engine.checks == {}


async def test_changed_address_is_a_new_server() -> None:
    rig = await started(config({"a": A}))
    rig.result(A, True)
    for _ in range(3):
        rig.engine.result(A, False)
    live = rig.checker.backend_state("a")
    await rig.checker.apply(config({"a": C}), by="signal")
    assert rig.checker.backend_state("a") is live
    assert live.address == C
    assert rig.history("a")[-1] == (State.UP, State.UNKNOWN, Code.ADDED)
    assert not rig.engine.is_probed(A)
    assert rig.engine.probed(C).counter == 1
    rig.checker.read_engine()
    assert rig.state("a") is State.UNKNOWN


async def test_changed_address_ends_what_an_operator_set() -> None:
    rig = await started(config({"a": A, "b": B}, WWW))
    rig.checker.drain("a", by="op")
    rig.checker.set_weight("www", "pool0", "a", 10, by="op")
    rig.checker.disable("b", by="op")
    rig.seen.take()
    await rig.checker.apply(config({"a": C, "b": B}, WWW), by="signal")
    assert [o.backend for o in rig.checker.overrides()] == ["b"]
    assert [e.drained for e in rig.seen.take() if isinstance(e, DrainEvent)] == [False]
    assert rig.state("b") is State.DISABLED


async def test_operator_state_stays_through_a_reload_that_does_not_touch_it() -> None:
    rig = await started(config({"a": A, "b": B}, WWW))
    rig.checker.drain("a", by="op")
    rig.checker.disable("b", by="op")
    rig.checker.set_weight("www", "pool0", "a", 10, by="op")
    await rig.checker.apply(config({"a": A, "b": B, "c": C}, WWW, [check(fall=9)]), by="signal")
    assert rig.checker.backend_state("a").drained
    assert rig.state("b") is State.DISABLED
    assert rig.checker.weight_override("www", "pool0", "a") == 10
    rig.checker.enable("b", by="op")
    assert rig.engine.checks[rig.engine.probed(B).check].fall == 9


async def test_pause_stays_through_a_reload() -> None:
    rig = await started(config({"a": A}))
    rig.checker.pause("a", by="op")
    await rig.checker.apply(config({"a": A, "b": B}), by="signal")
    assert rig.state("a") is State.PAUSED
    assert not rig.engine.is_probed(A)


async def test_the_files_own_weight_wins_when_it_changes() -> None:
    rig = await started(config({"a": A, "b": B}, WWW))
    rig.checker.set_weight("www", "pool0", "a", 10, by="op")
    rig.checker.set_weight("www", "pool1", "b", 10, by="op")
    await rig.checker.apply(config({"a": A, "b": B}, {"www": [{"a": 70}, {"b": 50}]}), by="signal")
    assert rig.checker.weight_override("www", "pool0", "a") is None
    assert rig.checker.weight_override("www", "pool1", "b") == 10


async def test_the_files_own_enabled_wins_when_it_changes() -> None:
    on = [Backend("a", ip_address(A), "ping"), Backend("b", ip_address(B), "ping")]
    off = [dataclasses.replace(b, enabled=False) for b in on]
    rig = await started(config(on))
    rig.checker.disable("a", by="op")
    await rig.checker.apply(config(off), by="signal")
    assert rig.checker.overrides() == []
    assert (rig.state("a"), rig.state("b")) == (State.DISABLED, State.DISABLED)
    await rig.checker.apply(config(on), by="signal")
    assert (rig.state("a"), rig.state("b")) == (State.UNKNOWN, State.UNKNOWN)
    assert rig.history("b")[-2:] == [
        (State.UNKNOWN, State.DISABLED, Code.DISABLED),
        (State.DISABLED, State.UNKNOWN, Code.ENABLED),
    ]


async def test_an_override_of_a_member_that_left_the_pool_ends() -> None:
    rig = await started(config({"a": A, "b": B}, WWW))
    rig.checker.set_weight("www", "pool1", "b", 10, by="op")
    await rig.checker.apply(config({"a": A, "b": B}, {"www": [{"a": 100}]}), by="signal")
    assert rig.checker.overrides() == []


async def test_frontends_come_and_go_with_their_states() -> None:
    rig = await started(config({"a": A}, {"one": [{"a": 1}]}))
    rig.result(A, True)
    rig.seen.take()
    await rig.checker.apply(config({"a": A}, {"two": [{"a": 1}]}), by="signal")
    events = [e for e in rig.seen.take() if isinstance(e, FrontendEvent)]
    assert [(e.name, e.to_state) for e in events] == [("two", FrontendState.UP)]
    with pytest.raises(UnknownName):
        rig.checker.frontend_state("one")


async def test_lists_come_in_the_order_of_the_new_file() -> None:
    rig = await started(config({"a": A, "b": B}))
    await rig.checker.apply(config({"c": C, "b": B, "a": A}), by="signal")
    assert [live.name for live in rig.checker.backends()] == ["c", "b", "a"]


def many(count: int) -> Config:
    return config({"a": A}, {f"f{i}": [{"a": 1}] for i in range(count)})


@pytest.mark.parametrize(("before", "after", "refused"), [
    (8, 4, False),   # half is not more than half
    (8, 3, True),
    (4, 1, False),   # three are not more than three
    (5, 1, True),
    (4, 0, True),
    (3, 0, True),
    (1, 0, True),
    (0, 0, False),
])  # fmt: skip
async def test_reload_that_deletes_most_vips_is_refused_unless_forced(before: int, after: int, refused: bool) -> None:
    rig = await started(many(before))
    if refused:
        with pytest.raises(NotAllowed, match=r"VIPs, (more than half|no VIP is left): force"):
            await rig.checker.apply(many(after), by="signal")
        assert len(rig.checker.config().frontends) == before
        assert rig.seen.take() == []
        await rig.checker.apply(many(after), by="signal", force=True)
    else:
        await rig.checker.apply(many(after), by="signal")
    assert len(rig.checker.config().frontends) == after


async def test_a_renamed_frontend_is_the_same_vip_to_the_guard() -> None:
    rig = await started(many(8))
    old = many(8)
    renamed = {f"new{i}": dataclasses.replace(f, name=f"new{i}") for i, f in enumerate(old.frontends.values())}
    await rig.checker.apply(dataclasses.replace(old, frontends=renamed), by="signal")
    assert next(iter(rig.checker.config().frontends)) == "new0"


async def test_operator_state_survives_a_restart() -> None:
    rig = await started(config({"a": A, "b": B}, WWW))
    rig.checker.disable("a", by="op", reason="disk", duration_ns=60 * SECOND)
    rig.checker.drain("b", by="op")
    rig.checker.set_weight("www", "pool1", "b", 20, by="op")
    records = [from_json(to_json(o)) for o in rig.checker.overrides()]
    assert records == rig.checker.overrides()

    again = Rig()
    again.clock.now = rig.clock.now + 30 * SECOND
    again.checker.restore(records)
    await again.checker.apply(config({"a": A, "b": B}, WWW), by="start")
    assert again.state("a") is State.DISABLED
    assert again.history("a") == []
    assert again.checker.backend_state("b").drained
    assert again.checker.weight_override("www", "pool1", "b") == 20
    assert not again.engine.is_probed(A)
    assert again.checker.expire() == 30 * SECOND
    again.clock.advance(30)
    again.checker.expire()
    assert again.state("a") is State.UNKNOWN


async def test_restored_override_ends_when_the_file_changed_meanwhile() -> None:
    rig = await started(config({"a": A, "b": B}, WWW))
    rig.checker.drain("a", by="op")
    rig.checker.set_weight("www", "pool1", "b", 20, by="op")
    again = Rig()
    again.checker.restore(rig.checker.overrides())
    await again.checker.apply(config({"a": C, "b": B}, {"www": [{"a": 100}, {"b": 60}]}), by="start")
    assert again.checker.overrides() == []
    assert not again.checker.backend_state("a").drained


async def test_apply_gives_the_loop_a_turn_whenever_its_slice_is_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    monkeypatch.setattr("maglev.base.pace.SLICE_NS", 0)
    monkeypatch.setattr("maglev.checker.frontends.PORTION", 1)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.ensure_future(others())
    backends = {f"b{i}": str(ip_address("10.1.0.0") + i) for i in range(200)}
    await rig.checker.apply(config(backends, {"www": [dict.fromkeys(backends, 1)]}), by="start")
    task.cancel()
    assert turns > 3 * len(backends), "a single pool may have them all"
    assert len(rig.engine.targets) == len(backends)


async def test_a_verb_in_the_middle_of_a_reload_finds_the_new_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = await started(config({"a": A, "gone": B}))
    monkeypatch.setattr("maglev.base.pace.SLICE_NS", 0)
    halfway = asyncio.Event()
    # The removals come first; with a slice of no length the loop has its turn right after.
    rig.bus.listen(lambda event: halfway.set())
    reload = asyncio.ensure_future(rig.checker.apply(config({"a": C}), by="signal"))
    await halfway.wait()
    assert rig.checker.backend_state("a").address == A
    rig.checker.drain("a", by="op")
    await reload
    (override,) = rig.checker.overrides()
    assert override.address == C
    assert rig.checker.backend_state("a").drained
    assert rig.engine.is_probed(C)


def with_frontend(made: Config, **changes: object) -> Config:
    """The same with other settings of the frontend ``www``."""
    www = dataclasses.replace(made.frontends["www"], **changes)  # type: ignore[arg-type]
    return dataclasses.replace(made, frontends={"www": www})


def slow(made: Config) -> Config:
    return with_frontend(made, slow_start=60 * SECOND)


def shares(rig: Rig) -> dict[str, int]:
    return {member.backend: member.share for member in rig.checker.frontend_weights("www").members}


async def test_what_a_reload_or_an_operator_brings_starts_slowly_and_what_served_before_does_not() -> None:
    rig = await started(slow(config({"a": A, "b": B}, {"www": [{"a": 100, "b": 100}]})))
    rig.result(A, True)
    rig.result(B, True)
    assert shares(rig) == {"a": 100, "b": 100}
    three = config({"a": A, "renamed": B, "c": C}, {"www": [{"a": 100, "renamed": 100, "c": 100}]})
    await rig.checker.apply(slow(three), by="signal")
    rig.result(B, True)
    rig.result(C, True)
    assert shares(rig) == {"a": 100, "renamed": 100, "c": 25}
    rig.checker.disable("a", by="x")
    rig.checker.enable("a", by="x")
    rig.result(A, True)
    rig.checker.drain("renamed", by="x")
    rig.checker.undrain("renamed", by="x")
    assert shares(rig) == {"a": 25, "renamed": 100, "c": 25}
    # A reload keeps what has begun, for as long as the file has slow start.
    await rig.checker.apply(slow(dataclasses.replace(three, transition_history=4)), by="signal")
    assert shares(rig) == {"a": 25, "renamed": 100, "c": 25}
    await rig.checker.apply(three, by="signal")
    assert shares(rig) == {"a": 100, "renamed": 100, "c": 100}


async def test_a_reload_keeps_panic_and_the_pool_that_serves() -> None:
    made = config({"a": A, "b": B, "c": C}, {"www": [{"a": 100, "b": 100}, {"c": 100}]})
    first, second = made.frontends["www"].pools
    pools = (dataclasses.replace(first, resume_up=Threshold(2)), second)
    rig = await started(with_frontend(made, pools=pools))
    for address in (C, B):
        rig.result(address, True)
    rig.result(A, False)
    assert rig.checker.frontend_weights("www").active_pool == 0
    rig.result(B, False, times=3)
    rig.result(B, True, times=2)
    assert rig.checker.frontend_weights("www").active_pool == 1
    again = with_frontend(made, pools=(dataclasses.replace(pools[0], name="first"), second), panic=Panic(1.0))
    await rig.checker.apply(again, by="signal")
    assert rig.checker.frontend_weights("www").active_pool == 1
    await rig.checker.apply(with_frontend(again, panic=Panic(0.9)), by="signal")
    rig.result(C, False, times=3)
    assert rig.checker.frontend_state("www") is FrontendState.PANIC
    await rig.checker.apply(with_frontend(again, panic=Panic(0.8)), by="signal")
    assert rig.checker.frontend_state("www") is FrontendState.PANIC
    rig.result(A, True, times=2)
    assert rig.checker.frontend_state("www") is FrontendState.PANIC
    await rig.checker.apply(with_frontend(again, panic=None), by="signal")
    assert rig.checker.frontend_state("www") is FrontendState.UP
