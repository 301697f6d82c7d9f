# Commands of Python and the regexp thread. The engine thread applies them at the start of a tick.


# A target without a verdict may have one with its first probe: that is stamped. One that is presumed good passes as a
# rule, and is treated as one that does.
cdef void doubt_anew(State* e, Slot* slot) noexcept nogil:
    slot.evidence = 0
    if slot.state == HEALTH_UNKNOWN and slot.counter < e.checks[slot.check].rise:
        slot.evidence = EVIDENCE_DOUBT


cdef void set_state(State* e, uint32_t index, const Command* command) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef Record* record = &e.records[index]
    slot.generation = command.generation
    slot.state = command.state
    slot.counter = command.counter
    slot.reported = command.state
    slot.flags &= ~(SLOT_PAUSED | SLOT_UNREPORTED | SLOT_SPREAD)
    slot.run = slot.failures = 0
    doubt_anew(e, slot)
    tally(e, index)
    record_begin(record)
    record.generation = command.generation
    record.state = command.state
    record.counter = command.counter
    record.paused = 0
    record.blocked_since = 0
    record.blocked_kind = BLOCK_NONE
    record_end(record)
    slot.lag = 0
    plan_probe(e, index, e.clock.now + command.delay)


cdef void do_add(State* e, const Command* command) noexcept nogil:
    cdef Slot* slot = &e.slots[command.slot]
    cdef Record* record = &e.records[command.slot]
    slot.flags = (slot.flags & (SLOT_IN_FIFO | SLOT_IN_REPORT)) | SLOT_ACTIVE
    slot.phase = PHASE_IDLE
    slot.tally = TALLY_NONE
    slot.check = command.check
    slot.origin = command.origin
    slot.type = command.type
    slot.v6 = command.v6
    slot.stream = NIL
    slot.backoff = 0
    slot.refused = slot.interface = 0
    memset(slot.source, 0, 4)
    memcpy(slot.address, command.address, 16)
    e.anchors[command.slot] = 0
    record_begin(record)
    record.epoch = command.epoch
    record.last_code = CODE_NONE
    record.detail_kind = DETAIL_NONE
    record.last_at = record.last_rtt = record.rtt_sum = 0
    record.rtt_count = 0
    memset(record.codes, 0, sizeof(record.codes))
    record_end(record)
    set_state(e, command.slot, command)
    e.stats.counters[STAT_TARGETS] += 1


cdef void do_change(State* e, const Command* command) noexcept nogil:
    cdef Slot* slot = &e.slots[command.slot]
    cdef Record* record = &e.records[command.slot]
    cdef const Check* check = e.checks[command.check]
    cdef bint out = slot.phase != PHASE_IDLE
    cdef int64_t interval
    cdef int64_t due = slot.due
    abandon(e, command.slot)
    tally_leave(e, command.slot)
    slot.run = slot.failures = 0
    slot.generation = command.generation
    slot.check = command.check
    slot.origin = command.origin
    slot.type = command.type
    slot.backoff = 0
    slot.refused = slot.interface = 0
    memset(slot.source, 0, 4)
    session_put(e, slot, NULL)
    # The state is the one that Python knows: a transition that it has not read yet is of the old generation.
    slot.state = slot.reported = command.state
    slot.counter = command.counter
    doubt_anew(e, slot)
    slot.flags &= ~SLOT_UNREPORTED
    tally(e, command.slot)
    record_begin(record)
    record.generation = command.generation
    record.state = slot.state
    record.counter = slot.counter
    record_end(record)
    if slot.flags & SLOT_PAUSED:
        return
    interval = interval_of(slot, check)
    if out or due > e.clock.now + interval:
        due = e.clock.now + draw_below(&e.clock.random, interval)
    slot.lag = 0
    plan_probe(e, command.slot, due)


cdef void do_presume(State* e, const Command* command) noexcept nogil:
    cdef Slot* slot = &e.slots[command.slot]
    cdef Record* record = &e.records[command.slot]
    cdef const Check* check = e.checks[slot.check]
    if slot.state != HEALTH_UNKNOWN or slot.flags & SLOT_PAUSED:
        return
    if command.good:
        slot.counter = <uint8_t>health_max(check.rise, check.fall)
    else:
        slot.counter = <uint8_t>health_entry(HEALTH_UNKNOWN, check.rise, check.fall)
    if slot.phase == PHASE_IDLE:
        doubt_anew(e, slot)
    tally(e, command.slot)
    record_begin(record)
    record.counter = slot.counter
    record_end(record)


cdef void command_apply(State* e, const Command* command) noexcept nogil:
    cdef Slot* slot = &e.slots[command.slot]
    cdef Record* record = &e.records[command.slot]
    if command.op == OP_CHECK_SET:
        e.checks[command.check] = command.new_check
    elif command.op == OP_CHECK_FREE:
        check_free(e, e.checks[command.check])
        e.checks[command.check] = NULL
    elif command.op == OP_ORIGIN_SET:
        e.origins.table[command.origin] = command.new_origin
        if command.origin >= e.origins.top:
            e.origins.top = command.origin + 1
    elif command.op == OP_ORIGIN_FREE:
        origin_release(e, e.origins.table[command.origin])
        e.origins.table[command.origin] = NULL
    elif command.op == OP_ADD:
        do_add(e, command)
    elif command.op == OP_VERDICT:
        search_answer(e, command)
    elif command.op == OP_AUTHORITIES:
        store32(&e.tls.authorities, e.tls.authorities + 1)
    elif not slot.flags & SLOT_ACTIVE:
        pass
    elif command.op == OP_REMOVE:
        abandon(e, command.slot)
        tally_leave(e, command.slot)
        session_put(e, slot, NULL)
        slot.flags &= SLOT_IN_FIFO | SLOT_IN_REPORT
        wheel_remove(&e.wheel, command.slot)
        e.stats.counters[STAT_TARGETS] -= 1
    elif command.op == OP_PAUSE:
        abandon(e, command.slot)
        slot.generation = command.generation
        slot.flags = (slot.flags | SLOT_PAUSED) & ~SLOT_UNREPORTED
        slot.run = slot.failures = 0
        tally(e, command.slot)
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
        do_presume(e, command)
    elif command.op == OP_HOLD:
        hold(e, command.slot)
    elif command.op == OP_RELEASE:
        release(e, command.slot, command.state)
    elif command.op == OP_TRACE:
        slot.flags = slot.flags | SLOT_TRACED if command.traced else slot.flags & ~SLOT_TRACED


# Python's, and the regexp thread's.
cdef int command_push(State* e, const Command* command) noexcept nogil:
    cdef Inbox* inbox = &e.inbox
    cdef Command* grown = NULL
    cdef uint32_t space
    cdef uint64_t one = 1
    cdef bint first
    pthread_mutex_lock(&inbox.lock)
    if inbox.count == inbox.space:
        space = 256 if inbox.space == 0 else 2 * inbox.space
        if space <= 16 * e.settings.capacity + 65536:
            grown = <Command*>realloc(inbox.waiting, space * sizeof(Command))
        if grown is NULL:
            pthread_mutex_unlock(&inbox.lock)
            errno_set(ENOBUFS)
            return -1
        inbox.waiting = grown
        inbox.space = space
    first = inbox.count == 0
    inbox.waiting[inbox.count] = command[0]
    inbox.count += 1
    pthread_mutex_unlock(&inbox.lock)
    # The first one wakes the engine, which takes all that have come by then.
    if first:
        write(e.settings.wake, &one, sizeof(one))
    return 0


# Swap the two vectors of commands under the lock, and work one off without it.
cdef void take_commands(State* e) noexcept nogil:
    cdef Command* commands
    cdef uint32_t count, space, i
    pthread_mutex_lock(&e.inbox.lock)
    commands = e.inbox.waiting
    count = e.inbox.count
    space = e.inbox.space
    if count:
        e.inbox.waiting = e.inbox.taken
        e.inbox.space = e.inbox.taken_space
        e.inbox.count = 0
        e.inbox.taken = commands
        e.inbox.taken_space = space
    pthread_mutex_unlock(&e.inbox.lock)
    for i in range(count):
        if i & 1023 == 1023:
            refresh_clock(e)
        command_apply(e, &commands[i])
