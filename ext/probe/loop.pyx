# The engine thread's life: commands in, packets in, time-outs, packets out, transitions out; then sleep.


# Forget the probe that is under way, of any kind.
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
    cdef Origin* origin = e.origins.table[slot.origin]
    cdef int64_t late = e.clock.now - slot.due
    if late > OVERDUE and not slot.flags & SLOT_SPREAD:
        put_off(e, index, spread_due(&e.clock.random, e.clock.now, late, interval_of(slot, check)))
    elif not origin_ready(e, origin):
        if load32(&origin.state) == ORIGIN_FAILED:
            block(e, index, origin.failure.kind, origin.failure.error)
        else:
            slot.flags |= SLOT_SPREAD
            plan(e, index, e.clock.now + 5 * MS)
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
        if slot.due > e.clock.now + TICK:
            if slot.stream != NIL:
                linger_visit(e, index)
            plan_probe(e, index, slot.due)
        else:
            if slot.stream != NIL:
                stream_end(e, slot.stream)
            probe_start(e, index)
        return
    if slot.phase == PHASE_WAITING:
        return
    if slot.phase == PHASE_JUDGING:
        if e.clock.now < slot.deadline + JUDGE_LIMIT:
            plan(e, index, slot.deadline + JUDGE_LIMIT)
        else:
            repeat(e, index, soon(e))
        return
    if slot.phase == PHASE_RECEIVING or slot.phase == PHASE_TLS:
        search_visit(e, index)
    if slot.phase == PHASE_PROVING:
        proof_visit(e, index)
        return
    # Time that we were not let run does not count; if it was much of the probe's time the probe is worth nothing.
    lost = stalled_since(e, slot)
    limit = slot.deadline - slot.sent
    if e.clock.tick_start < slot.deadline + GRACE:
        plan(e, index, slot.deadline + GRACE)
        return
    if slot.phase != PHASE_FLYING:
        if not stream_look(e, slot.stream):
            return          # it had come after all
        own = e.streams.table[slot.stream].own
    if lost * 4 > limit:
        abandon(e, index)
        repeat(e, index, soon(e))
    elif e.clock.tick_start < slot.deadline + lost + own + GRACE:
        plan(e, index, slot.deadline + lost + own + GRACE)
    elif slot.phase == PHASE_FLYING:
        if e.raw.undrained:
            plan(e, index, e.clock.now + TICK)
        else:
            raw_expired(e, index)
    else:
        stream_expired(e, index)


cdef void tick(State* e) noexcept nogil:
    cdef uint32_t count, i
    cdef int lane
    cdef Origin* origin
    cdef uint64_t one = 1
    e.stats.counters[STAT_TICKS] += 1
    e.clock.quiet += 1
    e.reports.pushed = False
    e.raw.undrained = False
    refresh_clock(e)
    e.clock.tick_start = e.clock.now
    read_wall(e)
    take_commands(e)
    # All that has come, before anything is given up.
    if e.tls.count:
        tls_take(e)
    for i in range(e.origins.top):
        origin = e.origins.table[i]
        if origin is NULL or load32(&origin.state) != ORIGIN_OPEN:
            continue
        if origin.tcp.fd >= 0 and not raw_receive(e, origin, &origin.tcp):
            e.raw.undrained = True
        if origin.icmp.fd >= 0 and not raw_receive(e, origin, &origin.icmp):
            e.raw.undrained = True
    if e.raw.departed_count:
        raw_await(e)
    if e.streams.fresh != NIL:
        stream_walk(e)
    if e.streams.watched:
        stream_events(e)
    refresh_clock(e)
    count = wheel_take(&e.wheel, e.clock.now // MS, e.due)
    for i in range(count):
        if i & 255 == 255:
            refresh_clock(e)
        if i + AHEAD < count:
            prefetch(&e.slots[e.due[i + AHEAD]])
        visit(e, e.due[i])
    for i in range(e.origins.top):
        origin = e.origins.table[i]
        if origin is not NULL:
            for lane in range(LANES):
                if origin.batch_count[lane]:
                    raw_flush(e, origin, lane)
    if e.waiting.count:
        fifo_walk(e)
    if e.tls.count:
        tls_wake(e)
    if e.origins.doomed_count:
        origins_sweep(e)
    if e.clock.now - e.streams.trimmed_at > TRIM_SECONDS * <int64_t>SECOND:
        pools_trim(e)
    if e.reports.unreported_head != NIL:
        report_deferred(e)
    if e.reports.pushed:
        write(e.reports.notify, &one, sizeof(one))
    e.stats.counters[STAT_IN_FLIGHT] = e.raw.flying + e.streams.used
    e.stats.counters[STAT_WAITING_FD] = e.waiting.count


# `now` is left at the time when this thread should run again, so that the next reading of the clock sees a stall.
cdef void rest_until(State* e, int64_t target) noexcept nogil:
    cdef timespec until
    until.tv_sec = target // SECOND
    until.tv_nsec = target % SECOND
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL)
    e.clock.now = target
    e.stats.counters[STAT_WAKEUPS] += 1


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
    cdef bint pending = e.streams.fresh != NIL or e.waiting.count or e.raw.undrained or e.reports.unreported_head != NIL
    # Deadlines that are not in the wheel yet need the next tick, too.
    pending = pending or (e.raw.flying and e.raw.departed_count)
    refresh_clock(e)
    if pending or (e.clock.quiet < 2 and (e.raw.flying or e.streams.watched)):
        rest_until(e, (e.clock.now // TICK + 1) * TICK)
        return
    # Due times round up to a tick, so that neighbours share it.
    next_ms = wheel_next(&e.wheel)
    target = e.clock.now + 60 * <int64_t>SECOND
    if next_ms >= 0:
        target = ((next_ms * MS + TICK - 1) // TICK) * TICK
    if e.clock.quiet < 2 and 0 <= target - e.clock.now <= TICK:
        # Busy times again: what may come meanwhile can wait so long, and nothing has to be watched.
        rest_until(e, target)
        return
    if e.streams.used and target > e.clock.now + ATTENTION:
        # A stopped thread must notice that it was: a server that waits for us may give up meanwhile.
        target = e.clock.now + ATTENTION
    wait = target - e.clock.now if target > e.clock.now else 0
    fds[0].fd = e.settings.wake
    fds[0].events = POLLIN
    fds[0].revents = 0
    fds[1].fd = e.streams.epoll
    fds[1].events = POLLIN
    if e.raw.flying:
        for i in range(e.origins.top):
            origin = e.origins.table[i]
            if origin is NULL or origin.flying == 0:
                continue
            if count + 2 > POLL_FDS:
                # More origins than are worth watching one by one: look again at the next tick.
                wait = wait if wait < TICK else TICK
                target = e.clock.now + wait
                break
            fds[count].fd = origin.icmp.fd
            fds[count].events = POLLIN
            fds[count + 1].fd = origin.tcp.fd     # -1 where there is none: poll skips it
            fds[count + 1].events = POLLIN
            count += 2
    until.tv_sec = wait // SECOND
    until.tv_nsec = wait % SECOND
    ready = ppoll(fds, count, &until, NULL)
    e.stats.counters[STAT_WAKEUPS] += 1
    if ready > 0 and fds[0].revents:
        read(e.settings.wake, &woken, sizeof(woken))
    if target > e.clock.now:
        e.clock.now = clock_ns(CLOCK_MONOTONIC)
        if e.clock.now > target:
            e.clock.now = target


cdef void engine_loop(State* e) noexcept nogil:
    # This thread works in short bursts, and it may say so (Linux 6.12; others do not listen): then it runs soon
    # after it wakes, also beside processes that compute. It gets no larger share by that. Of SCHED_OTHER only: with
    # another policy an administrator has decided.
    sched_slice(SLICE)
    e.clock.now = clock_ns(CLOCK_MONOTONIC)
    e.clock.wall = clock_ns(CLOCK_REALTIME) - e.clock.now
    e.clock.compared = e.clock.now
    e.clock.suspended = clock_ns(CLOCK_BOOTTIME) - clock_ns(CLOCK_MONOTONIC)
    while not load32(&e.inbox.stopping):
        tick(e)
        rest(e)
