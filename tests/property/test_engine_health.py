"""The counter rule equals a plain model for any sequence of results."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from maglev import _health
from maglev.base.states import State

rises = st.integers(1, 100)
results = st.lists(st.booleans(), max_size=400)


def model(start: State, presumed: bool, rise: int, fall: int, results: list[bool]) -> list[tuple[State, int]]:
    """The rule as section 2 of the behaviour tells it, without the counter's shortcut for unknown."""
    top = rise + fall - 1
    state, counter = start, {State.UP: top, State.DOWN: 0}.get(start, top if presumed else rise - 1)
    seen = []
    for passed in results:
        before = counter
        counter = min(counter + 1, top) if passed else max(counter - 1, 0)
        if state is State.UNKNOWN and (passed or before < rise):
            state, counter = (State.UP, top) if passed else (State.DOWN, 0)
        elif before < rise <= counter:
            state, counter = State.UP, top
        elif counter < rise <= before:
            state, counter = State.DOWN, 0
        seen.append((state, counter))
    return seen


@given(st.sampled_from([State.UNKNOWN, State.UP, State.DOWN]), st.booleans(), rises, rises, results)
def test_any_sequence_of_results_equals_the_model(
    start: State, presumed: bool, rise: int, fall: int, results: list[bool]
) -> None:
    counter = _health.entry(start, rise, fall)
    if presumed and start is State.UNKNOWN:
        counter = rise + fall - 1
    now: tuple[int, int] = (start, counter)
    seen = []
    for passed in results:
        now = _health.step(*now, rise, fall, passed)
        seen.append(now)
    assert seen == model(start, presumed, rise, fall, results)


@given(rises, rises)
def test_fall_failures_bring_down_and_rise_passes_bring_up(rise: int, fall: int) -> None:
    now: tuple[int, int] = (State.UP, rise + fall - 1)
    for _ in range(fall - 1):
        now = _health.step(*now, rise, fall, False)
        assert now[0] == State.UP
    now = _health.step(*now, rise, fall, False)
    assert now == (State.DOWN, 0)
    for _ in range(rise - 1):
        now = _health.step(*now, rise, fall, True)
        assert now[0] == State.DOWN
    assert _health.step(*now, rise, fall, True) == (State.UP, rise + fall - 1)
