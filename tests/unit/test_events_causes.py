"""Decision records: which effects belong to which cause, how causes are folded, and how much memory they take."""

from __future__ import annotations

import tracemalloc

import pytest

from maglev.base.events import BackendEvent, ConfigEvent, DrainEvent, FrontendEvent, LogEvent, PoolEvent, WeightEvent
from maglev.base.states import Code, FrontendState, State
from maglev.events.causes import FOLD_MOST_NS, FOLD_NS, MOST, MOST_UNCONFIRMED, Cause, CauseKind, Causes
from tests.helpers.checker import FakeClock

USERS = {"a": ("www",), "b": ("www", "api"), "c": ("www",), "d": ("api",)}


class Noted:
    """Causes of the backends of ``USERS``, and the events that lead to them."""

    def __init__(self, **bounds: int) -> None:
        self.clock = FakeClock()
        self.configured: set[str] = {"www", "api"}
        self.causes = Causes(self.clock, lambda name: USERS.get(name, ()), lambda: self.configured, **bounds)

    def verdict(self, name: str, to: State = State.DOWN, code: Code = Code.L4TOUT, detail: str = "") -> int:
        was = State.UP if to is State.DOWN else State.DOWN
        return self.causes.take(BackendEvent(name, "192.0.2.1", was, to, code, detail, self.clock.time_ns()))

    def operated(self, name: str, code: Code, by: str = "ann", reason: str = "") -> int:
        to = State.DISABLED if code is Code.DISABLED else State.UNKNOWN
        at_ns = self.clock.time_ns()
        return self.causes.take(BackendEvent(name, "192.0.2.1", State.UP, to, code, "", at_ns, by, reason=reason))

    def drained(self, name: str, by: str = "ann", reason: str = "", *, drained: bool = True) -> int:
        at_ns = self.clock.time_ns()
        return self.causes.take(DrainEvent(name, "192.0.2.1", State.UP, drained, at_ns, by, reason))

    def cause(self, number: int) -> Cause:
        found = self.causes.get(number)
        assert found is not None
        return found


@pytest.fixture
def noted() -> Noted:
    return Noted()


def test_like_verdicts_that_follow_each_other_are_one_cause(noted: Noted) -> None:
    numbers = []
    for name in ("a", "b", "c", "d"):
        numbers.append(noted.verdict(name))
        noted.clock.advance(FOLD_NS / 1e9)
    assert numbers == [1, 1, 1, 1]
    found = noted.cause(1)
    assert str(found) == "4 backends (a, b, c and 1 more) went down (L4TOUT)"
    assert (found.backends, found.frontends, set(found.frontend_names)) == (4, 2, {"www", "api"})
    assert found.last_ns - found.at_ns == 3 * FOLD_NS
    noted.clock.advance(0.1)
    assert noted.verdict("a") == 2, "it came too late for the first"


def test_a_cause_counts_a_backend_and_a_frontend_once_however_often_it_concerns_them(noted: Noted) -> None:
    for _ in range(3):
        noted.clock.advance(0.1)
        down = noted.verdict("b")
        up = noted.verdict("b", State.UP, Code.L4OK)
    drained = noted.drained("a")
    disabled = noted.operated("b", Code.DISABLED)
    assert noted.drained("c") == drained
    assert noted.operated("d", Code.DISABLED) == disabled
    for number, backends, frontends in ((down, 1, 2), (up, 1, 2), (drained, 2, 1), (disabled, 2, 2)):
        found = noted.cause(number)
        assert (found.backends, found.frontends) == (backends, frontends), str(found)
        assert len(set(found.frontend_names)) == len(found.frontend_names) == frontends, str(found)
    assert str(noted.cause(down)) == "backend b went down (L4TOUT)"


def test_other_codes_and_states_are_other_causes_and_the_detail_is_that_of_one(noted: Noted) -> None:
    assert noted.verdict("a", detail="no answer within 1s") == 1
    assert noted.verdict("b", code=Code.L4CON, detail="connection refused") == 2
    assert noted.verdict("c", State.UP, Code.L4OK) == 3
    assert [str(noted.cause(number)) for number in (1, 2, 3)] == [
        "backend a went down (L4TOUT: no answer within 1s)",
        "backend b went down (L4CON: connection refused)",
        "backend c came up (L4OK)",
    ]


def test_no_cause_goes_on_for_ever(noted: Noted) -> None:
    numbers = set()
    for _ in range(3 * FOLD_MOST_NS // FOLD_NS):
        numbers.add(noted.verdict("a"))
        noted.clock.advance(0.5)
    assert numbers == {1, 2}
    assert noted.cause(1).until_ns - noted.cause(1).since_ns <= FOLD_MOST_NS


def test_a_change_belongs_to_its_backend_and_else_to_what_happened_to_the_frontend_last(noted: Noted) -> None:
    down = noted.verdict("a")
    drained = noted.drained("b")
    noted.clock.advance(0.002)
    noted.causes.planned(["www"])
    noted.clock.advance(0.003)
    noted.causes.accepted("www", "a")
    noted.causes.accepted("www", "c")  # takes over
    noted.clock.advance(0.1)
    noted.causes.confirmed("www")
    first, second = noted.cause(down), noted.cause(drained)
    assert (first.changes, second.changes) == (1, 1)
    assert first.at_ns < first.accepted_ns < first.confirmed_ns
    assert second.at_ns < second.planned_ns < second.accepted_ns < second.confirmed_ns


def test_a_change_after_the_read_back_belongs_to_newer_causes_only(noted: Noted) -> None:
    noted.verdict("a")
    noted.causes.accepted("www", "a")
    noted.causes.confirmed("www")
    noted.causes.accepted("www", "a")
    assert noted.cause(1).changes == 1, "no cause is known for the second"
    noted.clock.advance(60)
    noted.causes.drifted("www", "VIP 192.0.2.80: weight of 192.0.2.1 is 3")
    noted.causes.accepted("www", "a")
    assert (noted.cause(1).changes, noted.cause(2).changes) == (1, 1)
    assert noted.cause(2).kind is CauseKind.DRIFT
    assert "another client changed VPP: VIP 192.0.2.80" in str(noted.cause(2))


def test_a_verdict_that_joins_a_cause_after_the_read_back_belongs_to_it(noted: Noted) -> None:
    for name in ("a", "b", "c"):
        assert noted.verdict(name) == 1
        noted.clock.advance(0.1)
        noted.causes.accepted("www", name)
        noted.causes.confirmed("www")
    assert noted.cause(1).changes == 3
    assert noted.cause(1).confirmed_ns == noted.cause(1).accepted_ns


def test_a_reload_and_a_connection_may_concern_any_frontend(noted: Noted) -> None:
    noted.causes.take(BackendEvent("d", "", State.REMOVED, State.UNKNOWN, Code.ADDED, "", 1, "ann"))
    assert noted.causes.take(ConfigEvent(at_ns=1, by="ann")) == 1
    assert str(noted.cause(1)) == "configuration loaded by ann, 1 backend came or went"
    noted.causes.accepted("www", "c")
    assert noted.cause(1).changes == 1
    noted.causes.notice(LogEvent("info", "vpp-connected", "connected to VPP", 2))
    noted.causes.confirmed("www")
    noted.causes.accepted("api", "d")
    assert (noted.cause(1).changes, noted.cause(2).changes) == (2, 0), "d came by the reload"
    noted.causes.confirmed("api")
    noted.clock.advance(5)
    noted.causes.notice(LogEvent("info", "vpp-connected", "connected to VPP", 3))
    noted.causes.accepted("api", "d")
    assert (noted.cause(3).kind, noted.cause(3).changes) == (CauseKind.CONNECTION, 1)


def test_the_first_load_and_a_signal_are_named(noted: Noted) -> None:
    loads = [noted.causes.take(ConfigEvent(at_ns=1, by=by)) for by in ("start", "signal", "")]
    assert [str(noted.cause(number)) for number in loads] == [
        "configuration loaded at the start",
        "configuration loaded on SIGHUP",
        "configuration loaded anew",
    ]


def test_what_operators_did_is_told_in_their_words(noted: Noted) -> None:
    noted.drained("a", reason="disk swap")
    noted.drained("b", reason="disk swap")
    noted.operated("c", Code.DISABLED, by="bob")
    noted.causes.take(WeightEvent("www", "p", "a", 100, 40, flush=False, at_ns=1, by="ann"))
    noted.drained("a", by="expiry", drained=False)
    assert [str(noted.cause(number)) for number in range(1, 5)] == [
        "ann drained 2 backends (a, b): disk swap",
        "bob disabled backend c",
        "ann set weight 40 for backend a",
        "the time of 1 setting is over: a",
    ]
    assert noted.cause(3).frontend_names == ("www",)


def test_effects_on_frontends_are_counted(noted: Noted) -> None:
    number = noted.verdict("b")
    noted.causes.take(FrontendEvent("www", FrontendState.UP, FrontendState.DOWN, 1))
    noted.causes.take(PoolEvent("api", "p", "q", True, 1))
    assert (noted.cause(number).frontends_down, noted.cause(number).pools_left) == (1, 1)
    assert noted.causes.of_frontend("api") is noted.causes.of_backend("b") is noted.cause(number)


def test_a_mechanism_is_named_with_its_frontends(noted: Noted) -> None:
    noted.causes.judged("www", "slow start")
    noted.causes.judged("api", "slow start")
    noted.causes.judged("api", "panic")
    noted.causes.judged("www", "")
    assert str(noted.cause(1)) == "slow start: 2 frontends (www, api)"
    assert str(noted.cause(2)) == "panic: frontend api"
    noted.causes.notice(LogEvent("warning", "brake-begun", "60 of 100 backends are silent at once", 1))
    assert str(noted.cause(3)) == "60 of 100 backends are silent at once"


def test_the_oldest_are_forgotten_first_with_what_was_noted_of_them() -> None:
    noted = Noted(most=3)
    for name in ("a", "b", "c", "d"):
        noted.verdict(name)
        noted.clock.advance(5)
    assert (len(noted.causes), noted.causes.newest, noted.causes.forgotten) == (3, 4, 1)
    assert noted.causes.get(1) is None
    assert noted.causes.of_backend("a") is None
    assert noted.causes.get(5) is None
    noted.causes.accepted("www", "a")


def test_frontends_that_are_configured_no_longer_take_no_memory(noted: Noted) -> None:
    for at in range(1000):
        noted.causes.judged(f"old{at}", "panic")
        noted.causes.accepted(f"old{at}", "x")
        noted.causes.confirmed(f"old{at}")
    noted.causes.take(ConfigEvent(at_ns=1, by="ann"))
    assert noted.causes.of_frontend("old7") is None


def test_causes_of_one_frontend_that_wait_for_vpp_are_bounded(noted: Noted) -> None:
    for _ in range(3 * MOST_UNCONFIRMED):
        noted.verdict("a")
        noted.causes.accepted("www", "a")
        noted.clock.advance(5)
    noted.causes.confirmed("www")
    confirmed = [number for number in range(1, noted.causes.newest + 1) if noted.cause(number).confirmed_ns]
    assert len(confirmed) == MOST_UNCONFIRMED


def test_ten_thousand_causes_of_fifty_thousand_backends_take_ten_mebibytes_at_most() -> None:
    names = [f"backend-{number}" for number in range(50_000)]
    users = {name: (f"frontend-{number // 10}",) for number, name in enumerate(names)}
    clock = FakeClock()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        causes = Causes(clock, lambda name: users[name], lambda: ("any",))
        for number, name in enumerate(names):
            if number % 5 == 0:
                clock.advance(2)
            detail = f"no answer within {number} ms: {'x' * 100}"
            causes.take(BackendEvent(name, "", State.UP, State.DOWN, Code.L4TOUT, detail, clock.time_ns()))
            causes.accepted(users[name][0], name)
            causes.confirmed(users[name][0])
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(causes) == MOST
    assert taken <= 10 << 20
