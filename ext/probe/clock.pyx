# The engine thread's time: clocks, stalls, and when a slot is looked at next.


# Between two readings there is never much work; a large gap is time in which this thread was not let run.
cdef void refresh_clock(State* e) noexcept nogil:
    cdef int64_t now = clock_ns(CLOCK_MONOTONIC)
    if now - e.clock.now > STALL:
        e.clock.stalled += now - e.clock.now
        e.stats.counters[STAT_STALLS] += 1
    e.clock.now = now


# The wall clock was set since the last tick if it moved against CLOCK_BOOTTIME by more than its frequency may be
# corrected. `moved`: against CLOCK_MONOTONIC, which does not count the time for which the machine was suspended.
cdef void count_step(State* e, int64_t moved) noexcept nogil:
    cdef int64_t suspended = clock_ns(CLOCK_BOOTTIME) - clock_ns(CLOCK_MONOTONIC)
    cdef int64_t slewed = (e.clock.now - e.clock.compared) // SLEW
    moved -= suspended - e.clock.suspended
    e.clock.suspended = suspended
    if -10 * MS - slewed <= moved <= 10 * MS + slewed:
        return
    e.stats.counters[STAT_CLOCK_STEPS] += 1
    e.stats.counters[STAT_CLOCK_STEP] = moved


# The wall clock less the monotonic one. It lies between two readings, however long we were not let run in between.
# Setting the clock makes earlier time stamps worthless, like a stall of that length; so does a suspended machine.
cdef void read_wall(State* e) noexcept nogil:
    cdef int64_t before = clock_ns(CLOCK_MONOTONIC)
    cdef int64_t wall = clock_ns(CLOCK_REALTIME)
    cdef int64_t after = clock_ns(CLOCK_MONOTONIC)
    cdef int64_t step = 0
    cdef int64_t moved = 0
    if e.clock.wall < wall - after:
        step = wall - after - e.clock.wall
    elif e.clock.wall > wall - before:
        step = e.clock.wall - (wall - before)
    if step:
        moved = wall - before - e.clock.wall
        e.clock.wall = wall - before
    if step > MS:
        # No probe takes longer; and the clock may be set by decades, which the sum could not hold often.
        e.clock.stalled += step if step < STALL_MOST * <int64_t>SECOND else STALL_MOST * <int64_t>SECOND
        count_step(e, moved)
    e.clock.compared = before


cdef inline int64_t stalled_since(const State* e, const Slot* slot) noexcept nogil:
    return e.clock.stalled - slot.stalled


cdef inline int64_t interval_of(const Slot* slot, const Check* check) noexcept nogil:
    cdef Health health
    health.state = slot.state
    health.counter = slot.counter
    if slot.run & RUN_HELD or health_undecided(health, check.rise, check.fall):
        return check.fast
    return check.interval if slot.state == HEALTH_UP else check.down


cdef inline int64_t limit_of(const Slot* slot, const Check* check) noexcept nogil:
    cdef int64_t interval = interval_of(slot, check)
    return check.timeout if check.timeout < interval else interval


# When a probe that failed for our own reasons is tried again.
cdef inline int64_t soon(State* e) noexcept nogil:
    return e.clock.now + 5 * MS + draw_below(&e.clock.random, 20 * MS)


# Have the wheel look at a slot at `at`. A slot that will be looked at earlier anyway stays where it is.
cdef void plan(State* e, uint32_t index, int64_t at) noexcept nogil:
    cdef int64_t ms = (at + MS - 1) // MS
    cdef int64_t look = wheel_look(&e.wheel, index)
    if look < 0 or look > ms:
        wheel_put(&e.wheel, index, ms)


# The slot's next probe is due at `due`. Probes of one tick leave together when the tick begins: a little early,
# and late only if this thread is.
cdef inline void plan_probe(State* e, uint32_t index, int64_t due) noexcept nogil:
    e.slots[index].due = due
    plan(e, index, due - TICK)
