# The end of a probe: the counter rule, the next due time, a transition. Decided here for all kinds of probes. Runs on
# the engine thread.


cdef void count_duration(Duration* duration, int64_t span) noexcept nogil:
    cdef int i = 0
    while i < BOUNDS and span > bounds_ns[i]:
        i += 1
    duration.counts[i] += 1
    duration.total += <uint64_t>(span if span > 0 else 0)


# A probe is out, since `at`.
cdef void count_sent(State* e, Slot* slot, int64_t at) noexcept nogil:
    cdef int64_t late = at - slot.due + slot.lag
    slot.sent = at
    slot.lag = 0
    slot.stalled = e.clock.stalled
    slot.losses = e.origins.table[slot.origin].losses
    slot.flags &= ~(SLOT_SPREAD | SLOT_WAITED)
    e.stats.counters[STAT_SENT + slot.type] += 1
    count_duration(&e.stats.lateness, late)
    if late > LATE:
        e.stats.counters[STAT_LATE_SENDS] += 1


# The same probe again: no result was had, for our own reasons.
cdef void repeat(State* e, uint32_t index, int64_t at) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    slot.phase = PHASE_IDLE
    slot.flags |= SLOT_SPREAD
    slot.lag = 0
    e.stats.counters[STAT_REPEATED] += 1
    plan_probe(e, index, at)


# A probe that could not leave when it was due leaves at `at`, and is late by that.
cdef void put_off(State* e, uint32_t index, int64_t at) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    slot.lag += at - slot.due
    slot.flags |= SLOT_SPREAD
    plan_probe(e, index, at)


cdef void mark_blocked(State* e, uint32_t index, int kind, int error) noexcept nogil:
    cdef Record* record = &e.records[index]
    record_begin(record)
    if record.blocked_since == 0:
        record.blocked_since = e.clock.now
    record.blocked_kind = <uint8_t>kind
    record.blocked_errno = error
    record_end(record)


# The probe cannot be sent: the state stays, the reason is kept for those who ask, and it is tried again, ever more
# seldom up to once a second.
cdef void block(State* e, uint32_t index, int kind, int error) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef int64_t wait
    mark_blocked(e, index, kind, error)
    e.stats.counters[STAT_LOCAL_ERRORS] += 1
    if BLOCK_BUFFER <= kind < BLOCK_COUNT:
        e.stats.counters[STAT_UNPROBED + kind - BLOCK_BUFFER] += 1
    if slot.backoff < 5:
        slot.backoff += 1
    slot.phase = PHASE_IDLE
    wait = <int64_t>25 * MS << slot.backoff
    slot.lag = 0
    plan_probe(e, index, e.clock.now + wait + draw_below(&e.clock.random, wait))


# A failure is about to become a verdict: could it be our own? False: then the probe is repeated later.
cdef bint failure_stands(State* e, uint32_t index) noexcept nogil:
    cdef Origin* origin = e.origins.table[e.slots[index].origin]
    if origin_sound(e, origin):
        return True
    block(e, index, origin.failure.kind, origin.failure.error)
    return False


# False: the ring is full.
cdef bint transition_push(State* e, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef Record* record = &e.records[index]
    cdef Event event
    memset(&event, 0, sizeof(event))
    event.slot = index
    event.generation = slot.generation
    event.from_state = slot.reported
    event.to_state = slot.state
    event.code = record.change_code
    event.detail_kind = record.change_kind
    event.detail_value = record.change_value
    event.counter = slot.counter
    event.silent = slot.run & RUN_SILENT != 0
    event.at = record.change_at
    if not ring_push(&e.reports.transitions, &event):
        return False
    slot.reported = slot.state
    e.reports.pushed = True
    e.stats.counters[STAT_TRANSITIONS] += 1
    return True


# Report that a slot changed its state. If the ring is full it is reported as soon as there is room, then as one
# transition from the state that Python knows to the present one.
cdef void report(State* e, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    if slot.flags & SLOT_UNREPORTED:
        return
    if e.reports.unreported_head == NIL and transition_push(e, index):
        return
    slot.flags |= SLOT_UNREPORTED
    e.stats.counters[STAT_TRANSITIONS_DEFERRED] += 1
    if slot.flags & SLOT_IN_REPORT:
        return
    slot.flags |= SLOT_IN_REPORT
    slot.report_next = NIL
    if e.reports.unreported_tail == NIL:
        e.reports.unreported_head = index
    else:
        e.slots[e.reports.unreported_tail].report_next = index
    e.reports.unreported_tail = index


cdef void report_deferred(State* e) noexcept nogil:
    cdef uint32_t index
    cdef Slot* slot
    while e.reports.unreported_head != NIL:
        index = e.reports.unreported_head
        slot = &e.slots[index]
        if slot.flags & SLOT_UNREPORTED and slot.reported != slot.state and not transition_push(e, index):
            return
        slot.flags &= ~(SLOT_UNREPORTED | SLOT_IN_REPORT)
        e.reports.unreported_head = slot.report_next
        if e.reports.unreported_head == NIL:
            e.reports.unreported_tail = NIL


cdef void trace_push(
    State* e, uint32_t index, bint passed, int code, int kind, uint32_t value, int64_t rtt
) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef Event event
    event.slot = index
    event.generation = slot.generation
    event.from_state = slot.state
    event.to_state = slot.state
    event.code = <uint8_t>code
    event.detail_kind = <uint8_t>kind
    event.detail_value = value
    event.counter = slot.counter
    event.passed = passed
    event.at = e.clock.now + e.clock.wall
    event.rtt = rtt
    if ring_push(&e.reports.results, &event):
        e.reports.pushed = True
    else:
        e.stats.counters[STAT_RESULTS_DROPPED] += 1


# The end of a probe: `span` is the round-trip time of a reply, 0 without one. The slot has landed before.
cdef void conclude(
    State* e, uint32_t index, bint passed, int code, int kind, uint32_t value, int64_t span
) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef Record* record = &e.records[index]
    cdef const Check* check = e.checks[slot.check]
    cdef Health health
    cdef bint changed, noted
    slot.phase = PHASE_IDLE
    slot.backoff = slot.too_big = 0
    if passed:
        evidence_passed(e, index)
    else:
        slot.evidence = EVIDENCE_DOUBT
    if span < 0:
        span = 0
    health.state = slot.state
    health.counter = slot.counter
    health = health_step(health, check.rise, check.fall, passed)
    changed = health.state != slot.state
    slot.state = health.state
    slot.counter = health.counter
    noted = changed or slot.run or not passed
    if noted and run_note(slot, passed, not passed and is_silence(code, kind, value)):
        changed = True

    record_begin(record)
    record.state = health.state
    record.counter = health.counter
    record.last_code = <uint8_t>code
    record.detail_kind = <uint8_t>kind
    record.detail_value = value
    record.last_at = e.clock.now
    record.blocked_since = 0
    record.blocked_kind = BLOCK_NONE
    record.codes[code - 1] += 1
    if span:
        record.last_rtt = span
    if passed:
        record.rtt_sum += span
        record.rtt_count += 1
    if changed:
        record.change_code = <uint8_t>code
        record.change_kind = <uint8_t>kind
        record.change_value = value
        record.change_at = e.clock.now + e.clock.wall
    record_end(record)
    if noted:
        tally(e, index)

    e.stats.counters[STAT_PASSED if passed else STAT_FAILED] += 1
    count_duration(&e.stats.durations[2 * check.histogram + passed], span if span else e.clock.now - slot.sent)
    if changed:
        report(e, index)
    if slot.flags & SLOT_TRACED:
        trace_push(e, index, passed, code, kind, value, span)

    plan_next(e, index)


cdef inline void plan_next(State* e, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef int64_t interval = interval_of(slot, e.checks[slot.check])
    cdef int64_t due = next_due(&e.clock.random, slot.due, e.clock.now, interval)
    # The latest regular time: `next_due` adds up to a tenth of jitter. Time beyond it is lateness after a stall.
    slot.lag = due - (slot.due + interval + interval // 10)
    if slot.lag < 0:
        slot.lag = 0
    plan_probe(e, index, due)
