# The counter rule of a health check, for the probe engine: inlined, without the interpreter.
#
# The states have the numbers of maglev.base.states.State.

from libc.stdint cimport uint8_t

cdef enum HealthState:
    HEALTH_UNKNOWN = 0
    HEALTH_UP = 1
    HEALTH_DOWN = 2


cdef struct Health:
    uint8_t state       # HealthState
    uint8_t counter     # 0 .. rise+fall-1 (at most 199)


cdef inline int health_max(int rise, int fall) noexcept nogil:
    return rise + fall - 1


# Where the counter stands when a state is entered other than by a result: fully up, fully down, or undecided, so
# that one pass means up and one failure means down.
cdef inline int health_entry(int state, int rise, int fall) noexcept nogil:
    if state == HEALTH_UP:
        return health_max(rise, fall)
    if state == HEALTH_DOWN:
        return 0
    return rise - 1


# A pass adds one, a failure takes one away. Crossing `rise` jumps to the end of the scale, so that it takes `fall`
# failures to come back down and `rise` passes to come back up. A target that is unknown with the counter at its
# maximum is presumed good: the same formula asks `fall` failures of it, while one pass is enough to be up.
cdef inline Health health_step(Health health, int rise, int fall, bint passed) noexcept nogil:
    cdef int counter = health.counter
    cdef int top = health_max(rise, fall)
    if passed:
        if health.state == HEALTH_UP:
            health.counter = <uint8_t>(counter + 1 if counter < top else top)
        elif counter + 1 >= rise:
            health.state = HEALTH_UP
            health.counter = <uint8_t>top
        else:
            health.counter = <uint8_t>(counter + 1)
    else:
        if health.state == HEALTH_DOWN:
            health.counter = <uint8_t>(counter - 1 if counter > 0 else 0)
        elif counter - 1 < rise:
            health.state = HEALTH_DOWN
            health.counter = 0
        else:
            health.counter = <uint8_t>(counter - 1)
    return health


# True when the next probe is due after `fast-interval`: nothing is decided, or the counter is on its way.
cdef inline bint health_undecided(Health health, int rise, int fall) noexcept nogil:
    if health.state == HEALTH_UP:
        return health.counter != health_max(rise, fall)
    if health.state == HEALTH_DOWN:
        return health.counter != 0
    return True
