# The engine's thread: commands in, packets in, time-outs, packets out, transitions out; then sleep. What a result means
# (the counter rule, the next due time, a transition) is decided in `conclude`, in one place for all probes.


cdef inline int64_t clock_ns(clockid_t which) noexcept nogil:
    cdef timespec now
    clock_gettime(which, &now)
    return <int64_t>now.tv_sec * SECOND + now.tv_nsec


# Between two readings there is never much work; a large gap is time in which this thread was not let run.
cdef void refresh_clock(State* e) noexcept nogil:
    cdef int64_t now = clock_ns(CLOCK_MONOTONIC)
    if now - e.now > STALL:
        e.stalled += now - e.now
        e.stats[STAT_STALLS] += 1
    e.now = now


# The wall clock less the monotonic one. It lies between two readings, however long we were not let run in between.
# What people do to the clock makes time stamps of before worthless, like a stall of that length.
cdef void read_wall(State* e) noexcept nogil:
    cdef int64_t before = clock_ns(CLOCK_MONOTONIC)
    cdef int64_t wall = clock_ns(CLOCK_REALTIME)
    cdef int64_t after = clock_ns(CLOCK_MONOTONIC)
    cdef int64_t step = 0
    if e.wall < wall - after:
        step = wall - after - e.wall
    elif e.wall > wall - before:
        step = e.wall - (wall - before)
    if step:
        e.wall = wall - before
    if step > MS:
        e.stalled += step
        e.stats[STAT_CLOCK_STEPS] += 1


cdef inline int64_t stalled_since(const State* e, const Slot* slot) noexcept nogil:
    return e.stalled - slot.stalled


# xorshift64*: for jitter, nothing secret.
cdef inline int64_t draw_below(uint64_t* random, int64_t limit) noexcept nogil:
    random[0] ^= random[0] >> 12
    random[0] ^= random[0] << 25
    random[0] ^= random[0] >> 27
    return <int64_t>((random[0] * <uint64_t>0x2545f4914f6cdd1d >> 24) % <uint64_t>limit) if limit > 0 else 0


# When a probe that is `late` is due, now that all others are as late: not at once with them.
cdef inline int64_t spread_due(uint64_t* random, int64_t now, int64_t late, int64_t interval) noexcept nogil:
    return now + draw_below(random, late if late < interval else interval)


# When the probe after the one that was due at `due` is due: counted from there, whenever that was sent and answered, so
# that nothing drifts, with a tenth of jitter to either side. What a stall has delayed is not caught up with.
cdef inline int64_t next_due(uint64_t* random, int64_t due, int64_t now, int64_t interval) noexcept nogil:
    due += interval - interval // 10 + draw_below(random, interval // 5)
    return spread_due(random, now, now - due, interval) if now - due > OVERDUE else due


cdef inline int64_t interval_of(const Slot* slot, const Check* check) noexcept nogil:
    cdef Health health
    health.state = slot.state
    health.counter = slot.counter
    if health_undecided(health, check.rise, check.fall):
        return check.fast
    return check.interval if slot.state == HEALTH_UP else check.down


cdef inline int64_t limit_of(const Slot* slot, const Check* check) noexcept nogil:
    cdef int64_t interval = interval_of(slot, check)
    return check.timeout if check.timeout < interval else interval


# When a probe that failed for our own reasons is tried again.
cdef inline int64_t soon(State* e) noexcept nogil:
    return e.now + 5 * MS + draw_below(&e.random, 20 * MS)


# Have the wheel look at a slot at `at`. A slot that will be looked at earlier anyway stays where it is.
cdef void plan(State* e, uint32_t index, int64_t at) noexcept nogil:
    cdef int64_t ms = (at + MS - 1) // MS
    cdef int64_t look = wheel_look(&e.wheel, index)
    if look < 0 or look > ms:
        wheel_put(&e.wheel, index, ms)


# The slot's next probe is due at `due`. What is due within a tick leaves together when the tick begins: a little early,
# and late only if this thread is.
cdef inline void plan_probe(State* e, uint32_t index, int64_t due) noexcept nogil:
    e.slots[index].due = due
    plan(e, index, due - TICK)


cdef inline void record_begin(Record* record) noexcept nogil:
    record.sequence += 1
    fence_write()


cdef inline void record_end(Record* record) noexcept nogil:
    store32(&record.sequence, record.sequence + 1)


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
    slot.stalled = e.stalled
    slot.losses = e.origins[slot.origin].losses
    slot.flags &= ~(SLOT_SPREAD | SLOT_WAITED)
    e.stats[STAT_SENT + slot.type] += 1
    count_duration(&e.lateness, late)
    if late > LATE:
        e.stats[STAT_LATE_SENDS] += 1


# The same probe again: no result was had, for our own reasons.
cdef void repeat(State* e, uint32_t index, int64_t at) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    slot.phase = PHASE_IDLE
    slot.flags |= SLOT_SPREAD
    slot.lag = 0
    e.stats[STAT_REPEATED] += 1
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
        record.blocked_since = e.now + e.wall
    record.blocked_kind = <uint8_t>kind
    record.blocked_errno = error
    record_end(record)


# The probe cannot be sent: the state stays, the reason is kept for those who ask, and it is tried again, ever more
# seldom up to once a second.
cdef void block(State* e, uint32_t index, int kind, int error) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef int64_t wait
    mark_blocked(e, index, kind, error)
    e.stats[STAT_LOCAL_ERRORS] += 1
    if slot.backoff < 5:
        slot.backoff += 1
    slot.phase = PHASE_IDLE
    wait = <int64_t>25 * MS << slot.backoff
    slot.lag = 0
    plan_probe(e, index, e.now + wait + draw_below(&e.random, wait))


# A failure is about to become a verdict: could it be our own? False: then the probe is repeated later.
cdef bint failure_stands(State* e, uint32_t index) noexcept nogil:
    cdef Origin* origin = e.origins[e.slots[index].origin]
    if origin_sound(e, origin):
        return True
    block(e, index, origin.failed_kind, origin.failed_errno)
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
    event.at = record.change_at
    if not ring_push(&e.transitions, &event):
        return False
    slot.reported = slot.state
    e.pushed = True
    e.stats[STAT_TRANSITIONS] += 1
    return True


# Report that a slot changed its state. If the ring is full it is reported as soon as there is room, then as one
# transition from what Python knows to what is true.
cdef void report(State* e, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    if slot.flags & SLOT_UNREPORTED:
        return
    if e.unreported_head == NIL and transition_push(e, index):
        return
    slot.flags |= SLOT_UNREPORTED
    e.stats[STAT_TRANSITIONS_DEFERRED] += 1
    if slot.flags & SLOT_IN_REPORT:
        return
    slot.flags |= SLOT_IN_REPORT
    slot.report_next = NIL
    if e.unreported_tail == NIL:
        e.unreported_head = index
    else:
        e.slots[e.unreported_tail].report_next = index
    e.unreported_tail = index


cdef void report_deferred(State* e) noexcept nogil:
    cdef uint32_t index
    cdef Slot* slot
    while e.unreported_head != NIL:
        index = e.unreported_head
        slot = &e.slots[index]
        if slot.flags & SLOT_UNREPORTED and slot.reported != slot.state and not transition_push(e, index):
            return
        slot.flags &= ~(SLOT_UNREPORTED | SLOT_IN_REPORT)
        e.unreported_head = slot.report_next
        if e.unreported_head == NIL:
            e.unreported_tail = NIL


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
    event.at = e.now + e.wall
    event.rtt = rtt
    if ring_push(&e.results, &event):
        e.pushed = True
    else:
        e.stats[STAT_RESULTS_DROPPED] += 1


# The end of a probe: `span` is the round-trip time of a reply, 0 without one. The slot has landed before.
cdef void conclude(
    State* e, uint32_t index, bint passed, int code, int kind, uint32_t value, int64_t span
) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef Record* record = &e.records[index]
    cdef const Check* check = e.checks[slot.check]
    cdef Health health
    cdef bint changed
    cdef int64_t interval, due
    slot.phase = PHASE_IDLE
    slot.backoff = slot.too_big = 0
    if span < 0:
        span = 0
    health.state = slot.state
    health.counter = slot.counter
    health = health_step(health, check.rise, check.fall, passed)
    changed = health.state != slot.state
    slot.state = health.state
    slot.counter = health.counter

    record_begin(record)
    record.state = health.state
    record.counter = health.counter
    record.last_code = <uint8_t>code
    record.detail_kind = <uint8_t>kind
    record.detail_value = value
    record.last_at = e.now + e.wall
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
        record.change_at = record.last_at
    record_end(record)

    e.stats[STAT_PASSED if passed else STAT_FAILED] += 1
    count_duration(&e.durations[2 * check.histogram + passed], span if span else e.now - slot.sent)
    if changed:
        report(e, index)
    if slot.flags & SLOT_TRACED:
        trace_push(e, index, passed, code, kind, value, span)

    interval = interval_of(slot, check)
    due = next_due(&e.random, slot.due, e.now, interval)
    slot.lag = due - (slot.due + interval + interval // 10)
    if slot.lag < 0:
        slot.lag = 0
    plan_probe(e, index, due)


# Whatever probe is out, forget it.
cdef void abandon(State* e, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    if slot.phase == PHASE_FLYING:
        raw_landed(e, slot)
    elif slot.stream != NIL:
        stream_end(e, slot.stream)
    slot.phase = PHASE_IDLE
    slot.flags &= ~SLOT_WAITED


cdef void probe_start(State* e, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef const Check* check = e.checks[slot.check]
    cdef Origin* origin = e.origins[slot.origin]
    cdef int64_t late = e.now - slot.due
    if late > OVERDUE and not slot.flags & SLOT_SPREAD:
        put_off(e, index, spread_due(&e.random, e.now, late, interval_of(slot, check)))
    elif not origin_ready(e, origin):
        if load32(&origin.state) == ORIGIN_FAILED:
            block(e, index, origin.failed_kind, origin.failed_errno)
        else:
            slot.flags |= SLOT_SPREAD
            plan(e, index, e.now + 5 * MS)
    elif slot.type >= PROBE_CONNECT:
        stream_start(e, index)
    elif slot.type == PROBE_ICMP or syn_may_leave(e, origin, index):
        raw_queue(e, index)


# A slot that the wheel gave out.
cdef void visit(State* e, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef int64_t lost, limit
    cdef int64_t own = 0
    if e.wheel.places[index] != NIL or not slot.flags & SLOT_ACTIVE or slot.flags & SLOT_PAUSED:
        return
    if slot.phase == PHASE_IDLE:
        if slot.due > e.now + TICK:
            plan_probe(e, index, slot.due)
        else:
            probe_start(e, index)
        return
    if slot.phase == PHASE_WAITING:
        return
    if slot.phase == PHASE_JUDGING:
        if e.now < slot.deadline + JUDGE_LIMIT:
            plan(e, index, slot.deadline + JUDGE_LIMIT)
        else:
            repeat(e, index, soon(e))
        return
    # Time that we were not let run does not count; if it was much of the probe's time the probe is worth nothing.
    lost = stalled_since(e, slot)
    limit = slot.deadline - slot.sent
    if e.tick_start < slot.deadline + GRACE:
        plan(e, index, slot.deadline + GRACE)
        return
    if slot.phase != PHASE_FLYING:
        if not stream_look(e, slot.stream):
            return          # it had come after all
        own = e.streams[slot.stream].own
    if lost * 4 > limit:
        abandon(e, index)
        repeat(e, index, soon(e))
    elif e.tick_start < slot.deadline + lost + own + GRACE:
        plan(e, index, slot.deadline + lost + own + GRACE)
    elif slot.phase == PHASE_FLYING:
        if e.undrained:
            plan(e, index, e.now + TICK)
        else:
            raw_expired(e, index)
    else:
        stream_expired(e, index)


cdef void set_state(State* e, uint32_t index, const Command* command) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef Record* record = &e.records[index]
    slot.generation = command.generation
    slot.state = command.state
    slot.counter = command.counter
    slot.reported = command.state
    slot.flags &= ~(SLOT_PAUSED | SLOT_UNREPORTED | SLOT_SPREAD)
    record_begin(record)
    record.generation = command.generation
    record.state = command.state
    record.counter = command.counter
    record.paused = 0
    record.blocked_since = 0
    record.blocked_kind = BLOCK_NONE
    record_end(record)
    slot.lag = 0
    plan_probe(e, index, e.now + command.delay)


cdef void do_add(State* e, const Command* command) noexcept nogil:
    cdef Slot* slot = &e.slots[command.slot]
    cdef Record* record = &e.records[command.slot]
    slot.flags = (slot.flags & (SLOT_IN_FIFO | SLOT_IN_REPORT)) | SLOT_ACTIVE
    slot.phase = PHASE_IDLE
    slot.check = command.check
    slot.origin = command.origin
    slot.type = command.type
    slot.v6 = command.v6
    slot.stream = NIL
    slot.backoff = 0
    memset(slot.source, 0, 4)
    memcpy(slot.address, command.address, 16)
    record_begin(record)
    record.epoch = command.epoch
    record.last_code = CODE_NONE
    record.detail_kind = DETAIL_NONE
    record.last_at = record.last_rtt = record.rtt_sum = 0
    record.rtt_count = 0
    memset(record.codes, 0, sizeof(record.codes))
    record_end(record)
    set_state(e, command.slot, command)
    e.stats[STAT_TARGETS] += 1


cdef void do_change(State* e, const Command* command) noexcept nogil:
    cdef Slot* slot = &e.slots[command.slot]
    cdef Record* record = &e.records[command.slot]
    cdef const Check* check = e.checks[command.check]
    cdef bint out = slot.phase != PHASE_IDLE
    cdef int64_t interval
    cdef int64_t due = slot.due
    abandon(e, command.slot)
    slot.generation = command.generation
    slot.check = command.check
    slot.origin = command.origin
    slot.type = command.type
    slot.backoff = 0
    memset(slot.source, 0, 4)
    session_put(e, slot, NULL)
    # The state is the one that Python knows: a transition that it has not read yet is of the old generation.
    slot.state = slot.reported = command.state
    slot.counter = command.counter
    slot.flags &= ~SLOT_UNREPORTED
    record_begin(record)
    record.generation = command.generation
    record.state = slot.state
    record.counter = slot.counter
    record_end(record)
    if slot.flags & SLOT_PAUSED:
        return
    interval = interval_of(slot, check)
    if out or due > e.now + interval:
        due = e.now + draw_below(&e.random, interval)
    slot.lag = 0
    plan_probe(e, command.slot, due)


cdef void do_verdict(State* e, const Command* command) noexcept nogil:
    cdef Slot* slot = &e.slots[command.slot]
    if (
        slot.phase != PHASE_JUDGING
        or slot.generation != command.generation
        or slot.serial != command.check
    ):
        return
    if command.flag:
        conclude(e, command.slot, True, CODE_L7OK, DETAIL_STATUS, command.origin, slot.deadline - slot.sent)
    elif failure_stands(e, command.slot):
        conclude(e, command.slot, False, CODE_L7RSP, DETAIL_HTTP, FAULT_NO_MATCH, slot.deadline - slot.sent)


cdef void check_free(State* e, Check* check) noexcept nogil:
    if check is not NULL:
        context_release(e, check.tls)
        free(check.request)
        free(check)


cdef void origin_free(State* e, Origin* origin) noexcept nogil:
    cdef uint32_t i
    if origin.stocking == 2:
        for i in range(origin.stock_count):
            close(origin.stock[i])
    origin_close(e, origin)
    free(origin.ports)
    free(origin.port_fds)
    free(origin.pool)
    free(origin)


# An origin that the opener has in hand cannot go before it is back.
cdef void origin_release(State* e, Origin* origin) noexcept nogil:
    if load32(&origin.state) == ORIGIN_OPENING or load32(&origin.stocking) == 1:
        e.doomed[e.doomed_count] = origin
        e.doomed_count += 1
    else:
        origin_free(e, origin)


cdef void origins_bury(State* e) noexcept nogil:
    cdef uint32_t i = 0
    cdef Origin* origin
    while i < e.doomed_count:
        origin = e.doomed[i]
        if load32(&origin.state) == ORIGIN_OPENING or load32(&origin.stocking) == 1:
            i += 1
            continue
        e.doomed_count -= 1
        e.doomed[i] = e.doomed[e.doomed_count]
        origin_free(e, origin)


cdef void obey(State* e, const Command* command) noexcept nogil:
    cdef Slot* slot = &e.slots[command.slot]
    cdef Record* record = &e.records[command.slot]
    cdef const Check* check
    if command.op == OP_CHECK_SET:
        e.checks[command.check] = <Check*>command.pointer
    elif command.op == OP_CHECK_FREE:
        check_free(e, e.checks[command.check])
        e.checks[command.check] = NULL
    elif command.op == OP_ORIGIN_SET:
        e.origins[command.origin] = <Origin*>command.pointer
        if command.origin >= e.origin_top:
            e.origin_top = command.origin + 1
    elif command.op == OP_ORIGIN_FREE:
        origin_release(e, e.origins[command.origin])
        e.origins[command.origin] = NULL
    elif command.op == OP_ADD:
        do_add(e, command)
    elif command.op == OP_VERDICT:
        do_verdict(e, command)
    elif command.op == OP_AUTHORITIES:
        store32(&e.authorities, e.authorities + 1)
    elif not slot.flags & SLOT_ACTIVE:
        pass
    elif command.op == OP_REMOVE:
        abandon(e, command.slot)
        session_put(e, slot, NULL)
        slot.flags &= SLOT_IN_FIFO | SLOT_IN_REPORT
        wheel_remove(&e.wheel, command.slot)
        e.stats[STAT_TARGETS] -= 1
    elif command.op == OP_PAUSE:
        abandon(e, command.slot)
        slot.generation = command.generation
        slot.flags = (slot.flags | SLOT_PAUSED) & ~SLOT_UNREPORTED
        wheel_remove(&e.wheel, command.slot)
        record_begin(record)
        record.generation = command.generation
        record.paused = 1
        record.blocked_since = 0
        record.blocked_kind = BLOCK_NONE
        record_end(record)
    elif command.op == OP_RESUME:
        abandon(e, command.slot)
        set_state(e, command.slot, command)
    elif command.op == OP_CHANGE:
        do_change(e, command)
    elif command.op == OP_PRESUME:
        check = e.checks[slot.check]
        if slot.state == HEALTH_UNKNOWN and not slot.flags & SLOT_PAUSED:
            if command.flag:
                slot.counter = <uint8_t>health_max(check.rise, check.fall)
            else:
                slot.counter = <uint8_t>health_entry(HEALTH_UNKNOWN, check.rise, check.fall)
            record_begin(record)
            record.counter = slot.counter
            record_end(record)
    elif command.op == OP_TRACE:
        slot.flags = slot.flags | SLOT_TRACED if command.flag else slot.flags & ~SLOT_TRACED


# Swap the two vectors of commands under the lock, and work one off without it.
cdef void take_commands(State* e) noexcept nogil:
    cdef Command* commands
    cdef uint32_t count, space, i
    pthread_mutex_lock(&e.lock)
    commands = e.inbox
    count = e.inbox_count
    space = e.inbox_space
    if count:
        e.inbox = e.outbox
        e.inbox_space = e.outbox_space
        e.inbox_count = 0
        e.outbox = commands
        e.outbox_space = space
    pthread_mutex_unlock(&e.lock)
    for i in range(count):
        if i & 1023 == 1023:
            refresh_clock(e)
        obey(e, &commands[i])


cdef void tick(State* e) noexcept nogil:
    cdef uint32_t count, i
    cdef Origin* origin
    cdef uint64_t one = 1
    e.stats[STAT_TICKS] += 1
    e.quiet += 1
    e.pushed = False
    e.undrained = False
    refresh_clock(e)
    e.tick_start = e.now
    read_wall(e)
    take_commands(e)
    # All that has come, before anything is given up.
    if e.tls_count:
        tls_take(e)
    for i in range(e.origin_top):
        origin = e.origins[i]
        if origin is NULL or load32(&origin.state) != ORIGIN_OPEN:
            continue
        if origin.tcp.fd >= 0 and not raw_receive(e, origin, &origin.tcp):
            e.undrained = True
        if origin.icmp.fd >= 0 and not raw_receive(e, origin, &origin.icmp):
            e.undrained = True
    if e.departed_count:
        raw_await(e)
    if e.fresh != NIL:
        stream_walk(e)
    if e.watched_count:
        stream_events(e)
    refresh_clock(e)
    count = wheel_take(&e.wheel, e.now // MS, e.due)
    for i in range(count):
        if i & 255 == 255:
            refresh_clock(e)
        if i + AHEAD < count:
            prefetch(&e.slots[e.due[i + AHEAD]])
        visit(e, e.due[i])
    for i in range(e.origin_top):
        origin = e.origins[i]
        if origin is not NULL:
            if origin.batch_count[0]:
                raw_flush(e, origin, 0)
            if origin.batch_count[1]:
                raw_flush(e, origin, 1)
    if e.fifo_count:
        fifo_walk(e)
    if e.tls_count:
        tls_wake(e)
    if e.doomed_count:
        origins_bury(e)
    if e.now - e.trimmed_at > TRIM_SECONDS * <int64_t>SECOND:
        pools_trim(e)
    if e.unreported_head != NIL:
        report_deferred(e)
    if e.pushed:
        write(e.notify, &one, sizeof(one))
    e.stats[STAT_IN_FLIGHT] = e.flying + e.streams_used
    e.stats[STAT_WAITING_FD] = e.fifo_count


# `now` is left at the time when this thread should run again, so that the next reading of the clock sees a stall.
cdef void rest_until(State* e, int64_t target) noexcept nogil:
    cdef timespec until
    until.tv_sec = target // SECOND
    until.tv_nsec = target % SECOND
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL)
    e.now = target
    e.stats[STAT_WAKEUPS] += 1


# Sleep until there is work. While packets come and go that is the next tick, whatever arrives meanwhile: one wake-up
# for all of it. In quiet times the first packet or the next due time ends the sleep, and there is none without reason.
cdef void rest(State* e) noexcept nogil:
    cdef timespec until
    cdef pollfd fds[POLL_FDS]
    cdef unsigned long count = 2
    cdef int64_t next_ms, wait, target
    cdef uint32_t i
    cdef Origin* origin
    cdef uint64_t woken
    cdef int ready
    cdef bint pending = e.fresh != NIL or e.fifo_count or e.undrained or e.unreported_head != NIL
    # Deadlines that are not in the wheel yet need the next tick, too.
    pending = pending or (e.flying and e.departed_count)
    refresh_clock(e)
    if pending or (e.quiet < 2 and (e.flying or e.watched_count)):
        rest_until(e, (e.now // TICK + 1) * TICK)
        return
    # Due times round up to a tick, so that neighbours share it.
    next_ms = wheel_next(&e.wheel)
    target = e.now + 60 * <int64_t>SECOND
    if next_ms >= 0:
        target = ((next_ms * MS + TICK - 1) // TICK) * TICK
    if e.quiet < 2 and 0 <= target - e.now <= TICK:
        # Busy times again: what may come meanwhile can wait so long, and nothing has to be watched.
        rest_until(e, target)
        return
    if e.streams_used and target > e.now + ATTENTION:
        # Who is stopped must notice that: a server that waits for us may give up meanwhile.
        target = e.now + ATTENTION
    wait = target - e.now if target > e.now else 0
    fds[0].fd = e.wake
    fds[0].events = POLLIN
    fds[0].revents = 0
    fds[1].fd = e.epoll
    fds[1].events = POLLIN
    if e.flying:
        for i in range(e.origin_top):
            origin = e.origins[i]
            if origin is NULL or origin.flying == 0:
                continue
            if count + 2 > POLL_FDS:
                # More origins than are worth watching one by one: look again at the next tick.
                wait = wait if wait < TICK else TICK
                target = e.now + wait
                break
            fds[count].fd = origin.icmp.fd
            fds[count].events = POLLIN
            fds[count + 1].fd = origin.tcp.fd     # -1 where there is none: poll skips it
            fds[count + 1].events = POLLIN
            count += 2
    until.tv_sec = wait // SECOND
    until.tv_nsec = wait % SECOND
    ready = ppoll(fds, count, &until, NULL)
    e.stats[STAT_WAKEUPS] += 1
    if ready > 0 and fds[0].revents:
        read(e.wake, &woken, sizeof(woken))
    if target > e.now:
        e.now = clock_ns(CLOCK_MONOTONIC)
        if e.now > target:
            e.now = target


cdef void engine_loop(State* e) noexcept nogil:
    # What this thread does at a time is short, and it may say so (Linux 6.12; others do not listen): then it runs soon
    # after it wakes, also beside processes that compute. It gets no larger share by that. Of SCHED_OTHER only: with
    # another policy an administrator has decided.
    sched_slice(SLICE)
    e.now = clock_ns(CLOCK_MONOTONIC)
    e.wall = clock_ns(CLOCK_REALTIME) - e.now
    while not load32(&e.stopping):
        tick(e)
        rest(e)


# After the thread has ended and the opener with it: nothing of ours stays open.
cdef void engine_close(State* e) noexcept nogil:
    cdef uint32_t i
    cdef Judgement job
    cdef Stream* stream
    for i in range(e.stream_top):
        stream = &e.streams[i]
        if stream.used:
            if stream.tls is not NULL:
                tls_free(e, stream.tls)
                stream.tls = NULL
            close(stream.fd)
            free(stream.http.body)
            stream.http.body = NULL
            stream.used = False
    while e.doomed_count:
        e.doomed_count -= 1
        origin_free(e, e.doomed[e.doomed_count])
    for i in range(e.origin_top):
        if e.origins[i] is not NULL:
            origin_free(e, e.origins[i])
            e.origins[i] = NULL
    while ring_take(&e.bodies, &job):
        free(job.body)
    if e.slots is not NULL:
        for i in range(e.capacity):
            session_put(e, &e.slots[i], NULL)
    tls_close(e)
