# TLS as the engine thread sees it: handing connections over to the TLS threads, and taking their outcomes back.
# Starting and stopping the threads is Python's.
#
# The rule of the hand-over stands beside `Tls` (tls.pxd). A connection whose probe is given up stays with its thread
# until that has answered, and with it its socket and its stream: an orphan.


cdef void tls_send(State* e, Tls* tls, int what) noexcept nogil:
    cdef TlsWorker* w = e.tls.workers[tls.worker]
    cdef TlsMessage message
    message.tls = tls
    message.what = what
    ring_push(&w.inbox, &message)           # never full: see TLS_RING
    w.unwoken = True
    tls.outstanding += 1


# Wake the workers that were sent something in this tick.
cdef void tls_wake(State* e) noexcept nogil:
    cdef uint64_t one = 1
    cdef uint32_t i
    for i in range(e.tls.worker_count):
        if e.tls.workers[i].unwoken:
            e.tls.workers[i].unwoken = False
            write(e.tls.workers[i].wake, &one, sizeof(one))


# A probe over TLS begins: what it needs, before it connects. False: no memory.
cdef bint tls_begin(State* e, Stream* stream, const Slot* slot, const Check* check) noexcept nogil:
    cdef Tls* tls = <Tls*>calloc(1, sizeof(Tls))
    if tls is NULL:
        return False
    if check.type == PROBE_HTTP:
        tls.task.request_bytes = request_text(slot, check, <char*>e.streams.scratch)
        tls.task.request = <char*>malloc(tls.task.request_bytes)
        if tls.task.request is NULL:
            free(tls)
            return False
        memcpy(tls.task.request, e.streams.scratch, tls.task.request_bytes)
    # The check may be gone before the worker lets go.
    memcpy(tls.task.codes, check.codes, sizeof(tls.task.codes))
    tls.task.context = check.tls
    tls.task.context.users += 1
    tls.stream = slot.stream
    tls.task.fd = stream.fd
    tls.task.v6 = slot.v6
    memcpy(tls.task.address, slot.address, 16)
    stream.http.codes = tls.task.codes
    tls.task.http = &stream.http
    stream.tls = tls
    e.tls.count += 1
    return True


# The connection is made.
cdef void tls_hand_over(State* e, Stream* stream, Slot* slot) noexcept nogil:
    cdef Tls* tls = stream.tls
    slot.phase = PHASE_TLS
    tls.session = slot.session
    if tls.session is not NULL:
        e.stats.counters[STAT_TLS_SESSION_BYTES] -= sizeof(Session) + tls.session.length
        slot.session = NULL
    tls.task.anchor = e.anchors[stream.slot] if e.anchors[stream.slot] else e.tls.anchor
    tls.task.serving = slot.state == HEALTH_UP or (
        slot.state == HEALTH_UNKNOWN and slot.counter >= e.checks[slot.check].rise
    )
    tls.task.sent = slot.sent
    tls.task.handed = e.clock.now
    tls.own = seen_late(e, stream, slot)
    tls.worker = e.tls.next
    e.tls.next = (e.tls.next + 1) % e.tls.worker_count
    tls_send(e, tls, TLS_START)
    if e.checks[slot.check].regexp:
        stream.body_at = slot.sent
        search_plan(e, stream, SEARCH_FIRST)


# Ask for the bytes of the body so far; the answer may come much later.
cdef void tls_peek(State* e, Tls* tls) noexcept nogil:
    if not tls.peeking and not tls.over:
        tls.peeking = True
        tls_send(e, tls, TLS_PEEK)


# The bytes of the body so far.
cdef void tls_peeked(State* e, Tls* tls) noexcept nogil:
    cdef Stream* stream = &e.streams.table[tls.stream]
    cdef uint8_t* part = tls.part
    tls.peeking = False
    tls.part = NULL
    if tls.orphan:
        free(part)
    else:
        search_part(e, stream.slot, part, tls.part_bytes, tls.part_status, tls.part_at)


cdef void tls_free(State* e, Tls* tls) noexcept nogil:
    SSL_SESSION_free(tls.fresh)
    SSL_free(tls.ssl)
    context_release(&e.tls, tls.task.context)
    free(tls.session)
    free(tls.task.request)
    free(tls.io.out)
    free(tls.part)
    free(tls)
    e.tls.count -= 1


# The stream ends. True if its TLS has ended with it; False if a worker still has it, and with it the socket.
cdef bint tls_release(State* e, Stream* stream) noexcept nogil:
    cdef Tls* tls = stream.tls
    if tls.outstanding:
        tls.orphan = True
        tls_send(e, tls, TLS_DROP)
        return False
    stream.tls = NULL
    tls_free(e, tls)
    return True


# The deadline has passed. The server gets back the time that the worker took itself, before the last look.
cdef void tls_expired(State* e, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef Tls* tls = e.streams.table[slot.stream].tls
    cdef int64_t until = slot.deadline + stalled_since(e, slot) + GRACE
    cdef int64_t extended = until + load64(&tls.own)
    if e.clock.tick_start < extended:
        plan(e, index, extended)
        return
    if not tls.expiring:
        tls.expiring = True
        tls.until = until
        tls_send(e, tls, TLS_EXPIRE)
    plan(e, index, e.clock.now + SECOND)


# The worker has let go of it.
cdef void tls_ended(State* e, Tls* tls) noexcept nogil:
    cdef uint32_t at = tls.stream
    cdef Stream* stream = &e.streams.table[at]
    cdef uint32_t index = stream.slot
    cdef Slot* slot = &e.slots[index]
    cdef int outcome = tls.outcome.how
    cdef int code = tls.outcome.code
    cdef int kind = tls.outcome.kind
    cdef uint32_t value = tls.outcome.value
    cdef int64_t when = tls.io.arrived if tls.io.arrived else e.clock.now
    if tls.orphan:
        stream.tls = NULL
        tls_free(e, tls)
        stream_close(e, at, False)
        return
    if tls.outcome.anchor:
        clock_believed(e, index, tls.outcome.anchor)
    if tls.outcome.unsure:
        e.stats.counters[STAT_DATES_UNSURE] += 1
    stream.own = tls.own
    session_put(e, slot, tls.session)
    tls.session = NULL
    if outcome in (TLS_PASSED, TLS_RESPONSE):
        e.stats.counters[STAT_TLS_RESUMED if tls.outcome.resumed else STAT_TLS_FULL] += 1
    stream.tls = NULL
    tls_free(e, tls)
    if outcome == TLS_RESPONSE:
        slot.phase = PHASE_RECEIVING
        stream.http.codes = NULL
        response_done(e, at, when)
    elif outcome == TLS_LOCAL and kind == BLOCK_CLOCK:
        date_doubted(e, index, <int>value)
    elif outcome == TLS_LOCAL:
        stream_blocked(e, index, kind, <int>value)
    elif outcome == TLS_TIMED_OUT or when > slot.deadline + stalled_since(e, slot) + stream.own:
        if outcome != TLS_TIMED_OUT:
            code = CODE_L6TOUT
        stream.arrived = when
        if code == CODE_L7TOUT and search_last(e, index):
            return
        stream_fail(e, index, code, DETAIL_TIMEOUT, <uint32_t>((slot.deadline - slot.sent) // MS), 0)
    elif outcome == TLS_PASSED:
        proof_passed(e, index)
        conclude(e, index, True, code, DETAIL_NONE, 0, when - slot.sent)
    elif kind == DETAIL_TLS_VERIFY or kind == DETAIL_TLS_ERROR:
        stream_refused(e, index, code, kind, value, when - slot.sent)
    else:
        stream_fail(e, index, code, kind, value, when - slot.sent)


# Take the workers' answers since the last tick.
cdef void tls_take(State* e) noexcept nogil:
    cdef TlsWorker* w
    cdef TlsMessage message
    cdef Tls* tls
    cdef Slot* slot
    cdef uint32_t i, index
    cdef uint32_t count = 0
    for i in range(e.tls.worker_count):
        w = e.tls.workers[i]
        while ring_take(&w.outbox, &message):
            tls = message.tls
            if count & 127 == 127:
                refresh_clock(e)
            count += 1
            tls.outstanding -= 1
            if message.what == TLS_ENDED:
                tls.over = True
            elif message.what == TLS_PEEKED:
                tls_peeked(e, tls)
            elif not tls.over and not tls.orphan:
                # It goes on: what had come was waiting for us.
                tls.expiring = False
                index = e.streams.table[tls.stream].slot
                slot = &e.slots[index]
                plan(e, index, slot.deadline + stalled_since(e, slot) + GRACE + load64(&tls.own))
            if tls.outstanding == 0:
                tls_ended(e, tls)


cdef int tls_start_workers(State* e, uint32_t count) noexcept nogil:
    cdef TlsWorker* w
    cdef epoll_event event
    while e.tls.worker_count < count:
        w = <TlsWorker*>calloc(1, sizeof(TlsWorker))
        if w is NULL:
            errno_set(ENOMEM)
            return -1
        w.pool = &e.tls
        if not (
            ring_init(&w.inbox, TLS_RING, sizeof(TlsMessage)) and ring_init(&w.outbox, TLS_RING, sizeof(TlsMessage))
        ):
            ring_free(&w.inbox)
            free(w)
            errno_set(ENOMEM)
            return -1
        w.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        w.epoll = epoll_create1(EPOLL_CLOEXEC)
        e.tls.workers[e.tls.worker_count] = w
        e.tls.worker_count += 1
        event.events = EPOLLIN
        event.data.u64 = 0
        if w.wake < 0 or w.epoll < 0 or epoll_ctl(w.epoll, EPOLL_CTL_ADD, w.wake, &event) < 0:
            return -1
        errno_set(pthread_create(&w.thread, NULL, worker_main, w))
        if errno:
            return -1
        w.runs = True
    return 0


# After the engine's thread has ended.
cdef void tls_stop_workers(State* e) noexcept nogil:
    cdef uint64_t one = 1
    cdef uint32_t i
    store32(&e.tls.stopping, 1)
    for i in range(e.tls.worker_count):
        if e.tls.workers[i].runs:
            write(e.tls.workers[i].wake, &one, sizeof(one))
            pthread_join(e.tls.workers[i].thread, NULL)
            e.tls.workers[i].runs = False


# After the workers have ended, too: what is left of all of it.
cdef void tls_close(State* e) noexcept nogil:
    cdef uint32_t i
    for i in range(e.tls.worker_count):
        close_fd(&e.tls.workers[i].wake)
        close_fd(&e.tls.workers[i].epoll)
        ring_free(&e.tls.workers[i].inbox)
        ring_free(&e.tls.workers[i].outbox)
        free(e.tls.workers[i])
    e.tls.worker_count = 0
    contexts_sweep(&e.tls)


# The engine's. A slot has one session at most, and all together are bounded.
cdef void session_put(State* e, Slot* slot, Session* session) noexcept nogil:
    if slot.session is not NULL:
        e.stats.counters[STAT_TLS_SESSION_BYTES] -= sizeof(Session) + slot.session.length
        free(slot.session)
        slot.session = NULL
    if session is NULL:
        return
    if e.stats.counters[STAT_TLS_SESSION_BYTES] + <int64_t>(sizeof(Session) + session.length) > TLS_SESSIONS_MAX:
        free(session)
        return
    e.stats.counters[STAT_TLS_SESSION_BYTES] += sizeof(Session) + session.length
    slot.session = session
