"""The counter rule of a health check, as Python sees it. The rule itself is inlined from ``health.pxd``."""

from health cimport (
    HEALTH_DOWN,
    Health,
    health_entry,
    health_max,
    health_step,
)

MAX_RISE = 100
MAX_FALL = 100


cdef int _check(int state, int rise, int fall) except -1:
    if not 0 <= state <= HEALTH_DOWN:
        raise ValueError(f"state must be unknown, up or down, not {state}")
    if not 1 <= rise <= MAX_RISE or not 1 <= fall <= MAX_FALL:
        raise ValueError(f"rise and fall must be 1..100, not {rise} and {fall}")
    return 0


def step(int state, int counter, int rise, int fall, bint passed):
    """One result: the state and the counter after it.

    ``state`` is ``State.UNKNOWN``, ``UP`` or ``DOWN``; ``counter`` is 0..rise+fall-1, at least ``rise`` when up and
    below ``rise`` when down. Raises ValueError for anything else.
    """
    cdef Health health
    _check(state, rise, fall)
    if not 0 <= counter <= health_max(rise, fall):
        raise ValueError(f"counter must be 0..{health_max(rise, fall)}, not {counter}")
    if (state == 1 and counter < rise) or (state == 2 and counter >= rise):
        raise ValueError(f"counter {counter} does not fit state {state} with rise {rise}")
    health.state = state
    health.counter = counter
    health = health_step(health, rise, fall, passed)
    return health.state, health.counter


def entry(int state, int rise, int fall):
    """The counter with which a state is entered: up at rise+fall-1, down at 0, unknown at rise-1."""
    _check(state, rise, fall)
    return health_entry(state, rise, fall)
