"""The operator's verbs, the states they lead to, and what ends them."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import pytest

from maglev.base.errors import BadValue, NotAllowed, UnknownName
from maglev.base.events import BackendEvent, Bus, DrainEvent, FrontendEvent, LogEvent, WeightEvent
from maglev.base.states import Code, FrontendState, State
from maglev.checker import Checker, checker
from maglev.config.model import SECOND, Backend
from maglev.views.backends import OverrideKind
from tests.helpers.checker import FakeClock, FakeEngine, Recorder, check, config

A = "192.0.2.1"
B = "192.0.2.2"


class Rig:
    """A checker with everything around it faked."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.engine = FakeEngine(self.clock)
        self.bus = Bus()
        self.saved = 0
        self.checker = Checker(self.engine, self.bus, self.clock, on_overrides=self._saved)
        self.seen = Recorder(self.bus)

    def _saved(self) -> None:
        self.saved += 1

    def result(self, address: str, passed: bool, times: int = 1) -> None:
        for _ in range(times):
            self.engine.result(address, passed)
        self.checker.read_engine()

    def state(self, name: str) -> State:
        return self.checker.backend_state(name).state

    def history(self, name: str) -> list[tuple[State, State, Code]]:
        return [(t.from_state, t.to_state, t.code) for t in self.checker.backend_state(name).history]

    def backend_events(self) -> list[tuple[str, State, State]]:
        return [(e.name, e.from_state, e.to_state) for e in self.seen.take() if isinstance(e, BackendEvent)]


@pytest.fixture
async def rig() -> Rig:
    """Backends a (192.0.2.1) and b (192.0.2.2), checked; frontend www with a in its first pool, b in its second."""
    rig = Rig()
    await rig.checker.apply(config({"a": A, "b": B}, {"www": [{"a": 100}, {"b": 50}]}), by="start")
    rig.checker.settle(())
    rig.seen.take()
    return rig


async def test_first_pass_means_up_and_first_failure_means_down(rig: Rig) -> None:
    rig.result(A, True)
    rig.result(B, False)
    assert rig.state("a") is State.UP
    assert rig.state("b") is State.DOWN


async def test_rise_and_fall_results_in_a_row_change_the_state(rig: Rig) -> None:
    rig.result(A, True)
    rig.result(A, False, times=2)
    assert rig.state("a") is State.UP
    rig.result(A, False)
    assert rig.state("a") is State.DOWN
    rig.result(A, True)
    assert rig.state("a") is State.DOWN
    rig.result(A, True)
    assert rig.state("a") is State.UP


async def test_a_verdict_is_published_with_its_code_and_then_the_frontend(rig: Rig) -> None:
    rig.result(A, True)
    events = rig.seen.take()
    backend, frontend = events
    assert isinstance(backend, BackendEvent)
    assert (backend.name, backend.address, backend.code, backend.by) == ("a", A, Code.L3OK, "")
    assert isinstance(frontend, FrontendEvent)
    assert (frontend.name, frontend.from_state, frontend.to_state) == ("www", FrontendState.UNKNOWN, FrontendState.UP)


async def test_frontend_goes_down_with_its_last_backend(rig: Rig) -> None:
    rig.result(A, True)
    rig.result(B, True)
    rig.result(A, False, times=3)
    assert rig.checker.frontend_state("www") is FrontendState.UP
    rig.result(B, False, times=3)
    assert rig.checker.frontend_state("www") is FrontendState.DOWN


async def test_history_keeps_the_last_transitions_only() -> None:
    rig = Rig()
    await rig.checker.apply(config({"a": A}, transition_history=3), by="start")
    rig.checker.settle(())
    for passed in (True, False, True, False):
        rig.result(A, passed, times=3)
    assert [to for _, to, _ in rig.history("a")] == [State.DOWN, State.UP, State.DOWN]


async def test_static_backend_is_up_at_once_with_code_static() -> None:
    rig = Rig()
    await rig.checker.apply(config([Backend("s", ip_address(A))]), by="start")
    assert rig.history("s") == [(State.UNKNOWN, State.UP, Code.STATIC)]
    assert rig.engine.targets == {}


async def test_static_backend_resumes_to_up_at_once() -> None:
    rig = Rig()
    await rig.checker.apply(config([Backend("s", ip_address(A))]), by="start")
    rig.checker.pause("s", by="op")
    assert rig.state("s") is State.PAUSED
    rig.checker.resume("s", by="op")
    assert rig.history("s")[-2:] == [
        (State.PAUSED, State.UNKNOWN, Code.RESUMED),
        (State.UNKNOWN, State.UP, Code.STATIC),
    ]


async def test_pause_stops_probes_and_resume_starts_from_unknown(rig: Rig) -> None:
    rig.result(A, True)
    assert rig.checker.pause("a", by="op").changed
    assert not rig.engine.is_probed(A)
    assert rig.state("a") is State.PAUSED
    assert rig.checker.resume("a", by="op").changed
    assert rig.engine.is_probed(A)
    assert rig.state("a") is State.UNKNOWN
    assert rig.engine.probed(A).counter == 1


async def test_pause_and_resume_are_idempotent(rig: Rig) -> None:
    rig.checker.pause("a", by="op")
    rig.seen.take()
    assert not rig.checker.pause("a", by="op").changed
    assert rig.seen.take() == []
    rig.checker.resume("a", by="op")
    rig.seen.take()
    assert not rig.checker.resume("a", by="op").changed
    assert rig.seen.take() == []


async def test_pause_and_resume_of_a_disabled_backend_are_refused(rig: Rig) -> None:
    rig.checker.disable("a", by="op")
    with pytest.raises(NotAllowed, match="disabled"):
        rig.checker.pause("a", by="op")
    with pytest.raises(NotAllowed, match="disabled"):
        rig.checker.resume("a", by="op")


async def test_enable_reuses_the_object_and_keeps_its_history(rig: Rig) -> None:
    live = rig.checker.backend_state("a")
    rig.result(A, True)
    rig.checker.disable("a", by="op", reason="disk")
    assert not live.enabled
    assert not rig.engine.is_probed(A)
    rig.checker.enable("a", by="op")
    assert rig.checker.backend_state("a") is live
    assert rig.history("a") == [
        (State.UNKNOWN, State.UP, Code.L3OK),
        (State.UP, State.DISABLED, Code.DISABLED),
        (State.DISABLED, State.UNKNOWN, Code.ENABLED),
    ]
    assert live.history[1].by == "op"
    assert live.history[1].reason == "disk"
    assert rig.engine.is_probed(A)
    assert rig.engine.probed(A).counter == 1
    rig.result(A, True)
    assert rig.state("a") is State.UP


async def test_disable_and_enable_are_idempotent(rig: Rig) -> None:
    assert rig.checker.disable("a", by="op").changed
    assert not rig.checker.disable("a", by="op").changed
    assert rig.checker.enable("a", by="op").changed
    assert not rig.checker.enable("a", by="op").changed
    assert len(rig.history("a")) == 2


async def test_disable_ends_a_pause(rig: Rig) -> None:
    rig.checker.pause("a", by="op")
    rig.checker.disable("a", by="op")
    rig.checker.enable("a", by="op")
    assert rig.state("a") is State.UNKNOWN
    assert rig.checker.overrides() == []


async def test_backend_disabled_in_the_file_can_be_enabled_and_disabled_again() -> None:
    rig = Rig()
    await rig.checker.apply(config([Backend("a", ip_address(A), "ping", enabled=False)]), by="start")
    assert rig.state("a") is State.DISABLED
    assert rig.history("a") == []
    assert rig.engine.targets == {}
    rig.checker.enable("a", by="op")
    assert rig.state("a") is State.UNKNOWN
    assert rig.engine.is_probed(A)
    assert [o.kind for o in rig.checker.overrides()] == [OverrideKind.ENABLE]
    rig.checker.disable("a", by="op")
    assert rig.state("a") is State.DISABLED
    assert rig.checker.overrides() == []


async def test_a_verdict_from_before_a_disable_is_dropped(rig: Rig) -> None:
    rig.result(A, True)
    for _ in range(3):
        rig.engine.result(A, False)
    rig.checker.disable("a", by="op")
    rig.checker.enable("a", by="op")
    rig.checker.read_engine()
    assert rig.state("a") is State.UNKNOWN
    assert rig.checker.stale_verdicts == 1


async def test_drain_takes_the_weight_and_leaves_the_state(rig: Rig) -> None:
    rig.result(A, True)
    rig.result(B, True)
    rig.seen.take()
    assert rig.checker.drain("a", by="op", reason="update").changed
    weights = rig.checker.frontend_weights("www")
    assert {m.backend: m.effective for m in weights.members} == {"a": 0, "b": 50}
    assert rig.state("a") is State.UP
    assert rig.engine.is_probed(A)
    (event,) = rig.seen.take()
    assert isinstance(event, DrainEvent)
    assert (event.drained, event.reason, event.by) == (True, "update", "op")
    assert not rig.checker.drain("a", by="op").changed
    assert rig.checker.undrain("a", by="op").changed
    assert not rig.checker.undrain("a", by="op").changed
    assert {m.backend: m.effective for m in rig.checker.frontend_weights("www").members} == {"a": 100, "b": 0}


async def test_run_time_weight_is_rounded_to_the_unit_and_told() -> None:
    rig = Rig()
    await rig.checker.apply(config({"a": A, "b": B}, {"www": [{"a": 100, "b": 50}]}), by="start")
    change = rig.checker.set_weight("www", "pool0", "a", 34, flush=False, by="op")
    assert (change.previous, change.weight, change.requested, change.unit) == (100, 30, 34, 10)
    assert rig.checker.weight_override("www", "pool0", "a") == 30
    event = rig.seen.take()[-1]
    assert isinstance(event, WeightEvent)
    assert (event.old, event.new, event.flush) == (100, 30, False)


async def test_unset_weight_is_the_files_again(rig: Rig) -> None:
    rig.checker.set_weight("www", "pool0", "a", 0, flush=True, by="op")
    assert rig.checker.frontend_weights("www").members[0].weight == 0
    change = rig.checker.set_weight("www", "pool0", "a", None, flush=False, by="op")
    assert (change.changed, change.previous, change.weight) == (True, 0, 100)
    assert rig.checker.overrides() == []


async def test_weight_zero_again_with_flush_is_an_event_because_flows_may_be_left(rig: Rig) -> None:
    rig.checker.set_weight("www", "pool0", "a", 0, flush=False, by="op")
    rig.seen.take()
    assert not rig.checker.set_weight("www", "pool0", "a", 0, flush=True, by="op").changed
    (event,) = rig.seen.take()
    assert isinstance(event, WeightEvent)
    assert event.flush


@pytest.mark.parametrize("weight", [-1, 101, 1000])
async def test_weight_out_of_range_is_refused(rig: Rig, weight: int) -> None:
    with pytest.raises(BadValue, match=r"0 to 100"):
        rig.checker.set_weight("www", "pool0", "a", weight, flush=False, by="op")


async def test_unknown_names_are_refused_by_kind(rig: Rig) -> None:
    with pytest.raises(UnknownName, match="no backend named 'x'"):
        rig.checker.pause("x", by="op")
    with pytest.raises(UnknownName, match="no frontend named 'x'"):
        rig.checker.set_weight("x", "pool0", "a", 1, flush=False, by="op")
    with pytest.raises(UnknownName, match="no pool named 'x' in frontend 'www'"):
        rig.checker.set_weight("www", "x", "a", 1, flush=False, by="op")
    with pytest.raises(UnknownName, match="no backend named 'b' in pool 'pool0' of frontend 'www'"):
        rig.checker.set_weight("www", "pool0", "b", 1, flush=False, by="op")
    with pytest.raises(UnknownName):
        rig.checker.trace("x")


async def test_reason_with_control_characters_is_refused_and_changes_nothing(rig: Rig) -> None:
    with pytest.raises(BadValue, match="control"):
        rig.checker.disable("a", by="op", reason="one\x1b[2Jtwo")
    with pytest.raises(BadValue, match="at most 255 characters"):
        rig.checker.drain("a", by="op", reason="x" * 256)
    with pytest.raises(BadValue, match="duration"):
        rig.checker.pause("a", by="op", duration_ns=-1)
    assert rig.checker.overrides() == []
    assert rig.state("a") is State.UNKNOWN


async def test_expiry_takes_a_disable_back_by_itself(rig: Rig) -> None:
    rig.checker.disable("a", by="op", reason="reboot", duration_ns=60 * SECOND)
    rig.clock.advance(59)
    assert rig.checker.expire() == SECOND
    assert rig.state("a") is State.DISABLED
    rig.clock.advance(1)
    assert rig.checker.expire() is None
    assert rig.history("a")[-1] == (State.DISABLED, State.UNKNOWN, Code.ENABLED)
    assert rig.checker.backend_state("a").history[-1].by == "expiry"
    assert rig.engine.is_probed(A)
    assert rig.checker.overrides() == []


async def test_expiry_of_drain_pause_and_weight(rig: Rig) -> None:
    rig.result(A, True)
    rig.checker.drain("a", by="op", duration_ns=10 * SECOND)
    rig.checker.pause("b", by="op", duration_ns=20 * SECOND)
    rig.checker.set_weight("www", "pool0", "a", 50, by="op", duration_ns=30 * SECOND)
    rig.clock.advance(10)
    rig.checker.expire()
    assert not rig.checker.backend_state("a").drained
    assert rig.state("b") is State.PAUSED
    rig.clock.advance(10)
    rig.checker.expire()
    assert rig.state("b") is State.UNKNOWN
    rig.clock.advance(10)
    rig.checker.expire()
    assert rig.checker.weight_override("www", "pool0", "a") is None
    assert rig.checker.counters.expired == 3


async def test_the_newest_duration_counts(rig: Rig) -> None:
    rig.checker.disable("a", by="one", duration_ns=10 * SECOND)
    rig.checker.disable("a", by="two", reason="longer than thought")
    rig.clock.advance(11)
    rig.checker.expire()
    assert rig.state("a") is State.DISABLED
    (override,) = rig.checker.overrides()
    assert (override.by, override.reason, override.until_ns) == ("two", "longer than thought", 0)


async def test_a_wall_clock_that_jumps_ends_nothing(rig: Rig) -> None:
    rig.checker.disable("a", by="op", duration_ns=60 * SECOND)
    rig.clock.epoch += 3600 * SECOND
    rig.checker.expire()
    assert rig.state("a") is State.DISABLED


async def test_a_clock_that_is_wrong_after_a_start_makes_no_span_longer(rig: Rig) -> None:
    rig.checker.disable("a", by="op", duration_ns=60 * SECOND)
    records = rig.checker.overrides()
    again = Rig()
    again.clock.epoch = 0
    again.checker.restore(records)
    await again.checker.apply(config({"a": A, "b": B}), by="start")
    assert again.checker.expire() == 60 * SECOND
    again.clock.advance(60)
    again.checker.expire()
    assert again.state("a") is State.UNKNOWN


async def test_a_span_given_after_the_clock_was_set_back_is_not_over_at_once(rig: Rig) -> None:
    rig.checker.disable("a", by="op")
    rig.clock.epoch -= 3600 * SECOND
    rig.checker.disable("a", by="op", duration_ns=60 * SECOND)
    assert rig.checker.expire() == 60 * SECOND
    assert rig.state("a") is State.DISABLED


async def test_run_wakes_at_the_expiry_and_for_a_shorter_one(rig: Rig) -> None:
    task = asyncio.ensure_future(rig.checker.run())
    await asyncio.sleep(0)
    changed = asyncio.Event()
    rig.bus.listen(lambda event: changed.set())
    rig.checker.disable("a", by="op", duration_ns=60 * SECOND)
    rig.checker.disable("b", by="op", duration_ns=10 * SECOND)
    for _ in range(5):
        await asyncio.sleep(0)
    changed.clear()
    rig.clock.advance(10)
    await asyncio.wait_for(changed.wait(), 5)
    assert rig.state("b") is State.UNKNOWN
    assert rig.state("a") is State.DISABLED
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_every_change_of_overrides_is_told_to_the_keeper(rig: Rig) -> None:
    before = rig.saved
    rig.checker.drain("a", by="op")
    rig.checker.undrain("a", by="op")
    rig.checker.undrain("a", by="op")
    assert rig.saved == before + 2


async def test_presumed_good_needs_fall_failures_until_settled_otherwise() -> None:
    rig = Rig()
    await rig.checker.apply(config({"a": A, "b": B}), by="start")
    assert rig.checker.backend_state("a").presumed
    rig.checker.settle(["a"])
    rig.result(A, False, times=2)
    rig.result(B, False)
    assert rig.state("a") is State.UNKNOWN
    assert rig.state("b") is State.DOWN
    rig.result(A, False)
    assert rig.state("a") is State.DOWN


async def test_presumed_good_is_up_after_one_pass() -> None:
    rig = Rig()
    await rig.checker.apply(config({"a": A}), by="start")
    rig.result(A, True)
    assert rig.state("a") is State.UP
    assert not rig.checker.backend_state("a").presumed


async def test_status_shows_what_the_engine_knows(rig: Rig) -> None:
    rig.result(A, True)
    rig.clock.advance(0)
    status = rig.checker.backend_status("a")
    assert (status.state, status.counter, status.rise, status.fall) == (State.UP, 4, 2, 3)
    assert (status.last_code, status.last_rtt_ns, status.last_result_age_ns) == (Code.L3OK, 1000, 0)
    assert (status.probes_passed, status.probes_failed) == (1, 0)
    assert len(status.transitions) == 1


async def test_local_trouble_is_shown_and_is_no_verdict(rig: Rig) -> None:
    rig.result(A, True)
    target = rig.engine.probed(A)
    target.blocked_since_ns, target.blocked_reason = 123, "EADDRNOTAVAIL: no such source address"
    status = rig.checker.backend_status("a")
    assert (status.state, status.unprobed_since_ns) == (State.UP, 123)
    assert "source address" in status.unprobed_reason


async def test_a_check_that_the_engine_refuses_is_shown_and_does_not_stop_the_others() -> None:
    rig = Rig()
    rig.engine.refuse = "no TLS here"
    await rig.checker.apply(config([Backend("a", ip_address(A), "ping"), Backend("s", ip_address(B))]), by="start")
    assert rig.state("s") is State.UP
    status = rig.checker.backend_status("a")
    assert status.state is State.UNKNOWN
    assert "no TLS here" in status.unprobed_reason
    assert status.unprobed_since_ns > 0


async def test_trace_publishes_each_probe_until_the_last_watcher_leaves(rig: Rig) -> None:
    first = rig.checker.trace("a")
    second = rig.checker.trace("a")
    rig.result(A, True)
    probes = [e for e in rig.seen.take() if isinstance(e, LogEvent)]
    assert [(e.event, e.fields["backend"], e.fields["code"]) for e in probes] == [("probe", "a", "L3OK")]
    first()
    first()
    rig.result(A, True)
    assert [type(e) for e in rig.seen.take()] == [LogEvent]
    second()
    rig.result(A, True)
    assert rig.seen.take() == []


async def test_a_trace_outlives_the_removal_of_its_backend_and_goes_on_when_it_comes_back(rig: Rig) -> None:
    end = rig.checker.trace("a")
    await rig.checker.apply(config({"b": B}), by="op", force=True)
    await rig.checker.apply(config({"a": A, "b": B}), by="op")
    rig.seen.take()
    rig.result(A, True)
    assert [e.event for e in rig.seen.take() if isinstance(e, LogEvent)] == ["probe"]
    await rig.checker.apply(config({"b": B}), by="op", force=True)
    end()
    await rig.checker.apply(config({"a": A, "b": B}), by="op")
    rig.seen.take()
    rig.result(A, True)
    assert [e for e in rig.seen.take() if isinstance(e, LogEvent)] == []


async def test_one_broken_listener_does_not_lose_the_verdicts_behind_it() -> None:
    rig = Rig()

    def broken(event: object) -> None:
        if isinstance(event, BackendEvent) and event.name == "a":  # registered before the recorder
            raise RuntimeError("broken listener")

    rig.bus = Bus()
    rig.bus.listen(broken)
    rig.seen = Recorder(rig.bus)
    rig.checker = Checker(rig.engine, rig.bus, rig.clock)
    await rig.checker.apply(config({"a": A, "b": B}), by="start")
    rig.seen.take()
    rig.engine.result(A, True)
    rig.engine.result(B, True)
    rig.checker.read_engine()
    assert rig.state("a") is State.UP
    assert rig.state("b") is State.UP
    assert rig.bus.failures == 1
    assert [e.name for e in rig.seen.take() if isinstance(e, BackendEvent)] == ["a", "b"]


async def test_verdicts_are_taken_in_bounded_portions(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker, "AT_ONCE", 1)
    monkeypatch.setattr(checker, "SLICE_NS", 0)
    rig.engine.result(A, True)
    rig.engine.result(B, True)
    rig.checker.read_engine()
    assert (rig.state("a"), rig.state("b")) == (State.UP, State.UNKNOWN)
    rig.checker.read_engine()
    assert rig.state("b") is State.UP


async def test_one_backend_is_probed_once_however_many_frontends_use_it() -> None:
    rig = Rig()
    await rig.checker.apply(config({"a": A}, {"one": [{"a": 1}], "two": [{"a": 2}]}), by="start")
    assert len(rig.engine.targets) == 1
    assert rig.checker.frontends_of("a") == ("one", "two")
    rig.result(A, True)
    assert [e.name for e in rig.seen.take() if isinstance(e, FrontendEvent)] == ["one", "two"]


async def test_first_round_is_spread_over_the_interval_but_within_the_fast_one() -> None:
    rig = Rig()
    slow = check(interval=10 * SECOND, fast_interval=2 * SECOND)
    await rig.checker.apply(config({f"b{i}": f"192.0.2.{i}" for i in range(1, 11)}, checks=[slow]), by="start")
    delays = sorted(target.first_delay for target in rig.engine.targets.values())
    assert delays == [i * SECOND // 5 for i in range(10)]
