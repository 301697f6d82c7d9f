"""The counter rule (``ext/health.pxd``): the one place that turns results into states."""

from maglev.base.states import State

MAX_RISE: int
MAX_FALL: int

def step(state: State | int, counter: int, rise: int, fall: int, passed: bool) -> tuple[int, int]:
    """One result: the state and the counter after it.

    ``state`` is ``State.UNKNOWN``, ``UP`` or ``DOWN``; ``counter`` is 0..rise+fall-1, at least ``rise`` when up and
    below ``rise`` when down. Raises ValueError for anything else.
    """

def entry(state: State | int, rise: int, fall: int) -> int:
    """The counter with which a state is entered: up at rise+fall-1, down at 0, unknown at rise-1."""
