"""The counter rule, case by case."""

from __future__ import annotations

import pytest

from maglev import _health
from maglev.base.states import State


def run(state: State, counter: int, rise: int, fall: int, results: str) -> tuple[int, int]:
    now: tuple[int, int] = (state, counter)
    for result in results:
        now = _health.step(*now, rise, fall, result == "P")
    return now


@pytest.mark.parametrize(
    ("state", "counter", "rise", "fall", "results", "expected"),
    [
        # unknown is decided by the first result
        (State.UNKNOWN, 1, 2, 3, "P", (State.UP, 4)),
        (State.UNKNOWN, 1, 2, 3, "F", (State.DOWN, 0)),
        (State.UNKNOWN, 0, 1, 1, "P", (State.UP, 1)),
        (State.UNKNOWN, 0, 1, 1, "F", (State.DOWN, 0)),
        # `fall` failures in a row bring down what is up, one pass on the way costs nothing
        (State.UP, 4, 2, 3, "F", (State.UP, 3)),
        (State.UP, 4, 2, 3, "FF", (State.UP, 2)),
        (State.UP, 4, 2, 3, "FFF", (State.DOWN, 0)),
        (State.UP, 4, 2, 3, "FP", (State.UP, 4)),
        (State.UP, 4, 2, 3, "PPP", (State.UP, 4)),
        # `rise` passes in a row bring up what is down
        (State.DOWN, 0, 3, 2, "PP", (State.DOWN, 2)),
        (State.DOWN, 0, 3, 2, "PPP", (State.UP, 4)),
        (State.DOWN, 0, 3, 2, "PF", (State.DOWN, 0)),
        (State.DOWN, 0, 3, 2, "FFF", (State.DOWN, 0)),
        (State.DOWN, 0, 1, 1, "P", (State.UP, 1)),
        # presumed good: `fall` failures, one pass
        (State.UNKNOWN, 4, 2, 3, "FF", (State.UNKNOWN, 2)),
        (State.UNKNOWN, 4, 2, 3, "FFF", (State.DOWN, 0)),
        (State.UNKNOWN, 4, 2, 3, "FFP", (State.UP, 4)),
        (State.UNKNOWN, 4, 2, 3, "P", (State.UP, 4)),
        # the ends of the scale
        (State.UP, 199, 100, 100, "F" * 99, (State.UP, 100)),
        (State.UP, 199, 100, 100, "F" * 100, (State.DOWN, 0)),
        (State.DOWN, 0, 100, 100, "P" * 100, (State.UP, 199)),
    ],
)
def test_results_move_the_counter(
    state: State, counter: int, rise: int, fall: int, results: str, expected: tuple[int, int]
) -> None:
    assert run(state, counter, rise, fall, results) == expected


@pytest.mark.parametrize(("state", "counter"), [(State.UP, 4), (State.DOWN, 0), (State.UNKNOWN, 1)])
def test_a_state_is_entered_with_its_counter(state: State, counter: int) -> None:
    assert _health.entry(state, 2, 3) == counter


@pytest.mark.parametrize(
    ("state", "counter", "rise", "fall"),
    [
        (State.PAUSED, 0, 2, 3),
        (State.UP, 5, 2, 3),
        (State.UP, -1, 2, 3),
        (State.UP, 1, 2, 3),
        (State.DOWN, 2, 2, 3),
        (State.UP, 2, 0, 3),
        (State.UP, 2, 2, 101),
    ],
)
def test_impossible_values_are_refused(state: State, counter: int, rise: int, fall: int) -> None:
    with pytest.raises(ValueError, match=r"must be|does not fit"):
        _health.step(state, counter, rise, fall, True)
