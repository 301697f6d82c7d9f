"""``why``: the sentences name what takes each weight away, and say nothing that another command contradicts."""

from __future__ import annotations

from maglev.base.states import State
from maglev.rpc import explain
from tests.helpers.checker import FakeClock
from tests.helpers.rpc import NOW, FakeChecker, fake_daemon


def checker(**states: State) -> FakeChecker:
    """The small configuration, in these states."""
    found = fake_daemon().checker
    for name, state in states.items():
        found.statuses[name].state = state
    return found


def of_frontend(found: FakeChecker) -> list[str]:
    return list(explain.of_frontend(found, FakeClock(), "www"))


def of_backend(found: FakeChecker, name: str) -> list[str]:
    clock = FakeClock()
    found.statuses[name].state_since_ns = clock.time_ns()
    clock.advance(75)
    return list(explain.of_backend(found, clock, name))


UP = {"web0": State.UP, "web1": State.UP, "spare": State.UP}


def test_a_frontend_that_is_well_names_its_pool() -> None:
    assert of_frontend(checker(**UP)) == [
        "It is up, and pool primary serves it.",
        "All backends of pool primary have their weight.",
    ]


def test_a_fallback_is_explained_by_the_members_that_are_out_in_the_pools_before_it() -> None:
    found = checker(**UP | {"web1": State.DOWN})
    found.statuses["web0"].drained = True
    assert of_frontend(found) == [
        "It is up, and pool fallback serves it.",
        "Pool primary comes before it and does not serve: 0 of its backends can serve, and it needs 1.",
        "Backend web0: weight 0 of 100, as it is drained.",
        "Backend web1: weight 0 of 50, as it is down.",
    ]


def test_a_frontend_without_a_server_names_the_members_of_every_pool() -> None:
    found = checker(web0=State.DOWN, web1=State.DISABLED, spare=State.UP)
    found.statuses["spare"].drained = True
    assert of_frontend(found) == [
        "It is down: no member of any pool can serve.",
        "Backend web0: weight 0 of 100, as it is down.",
        "Backend web1: weight 0 of 50, as it is disabled.",
        "Backend spare: weight 0 of 10, as it is drained.",
    ]


def test_a_standby_is_no_reason_for_the_state_of_the_frontend() -> None:
    found = checker(**UP | {"web1": State.DOWN, "spare": State.DOWN})
    assert of_frontend(found) == [
        "It is up, and pool primary serves it.",
        "Backend web1: weight 0 of 50, as it is down.",
    ]


def test_a_static_backend_is_up_until_an_operator_takes_it_out() -> None:
    found = checker(**UP)
    assert of_backend(found, "spare")[:2] == ["It has been up for 1m15s.", "It has no health check, so it is up."]
    found.statuses["spare"].state = State.PAUSED
    assert of_backend(found, "spare") == [
        "It has been paused for 1m15s.",
        "It has no health check.",
        "In frontend www, pool fallback: weight 0 of 10, as it is paused.",
    ]


def test_an_age_is_never_negative_after_the_clock_was_set_back() -> None:
    found = checker(**UP)
    clock = FakeClock()
    assert clock.time_ns() < NOW
    assert next(explain.of_backend(found, clock, "web0")) == "It has been up for 0s."
