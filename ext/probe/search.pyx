# Bodies on their way to the regular expressions, and the answers, on the engine thread. The expressions run on the
# regexp thread, since RE2 is reached through Python (engine.pyx, `_judge_run`).
#
# A whole body is searched once: at its end, or at 64 KiB. A body may also never end (a stream of events, a page that
# waits), and passes as soon as the expression matches:
#   - While it is unfinished, a copy of what has come is searched `SEARCH_FIRST` after its first byte, then after twice
#     that time, and so on, where it has grown meanwhile. The times are the engine's and no server's: a server that
#     sends a byte at a time has its body searched as rarely as any other, some ten times in ten seconds, and a body
#     that ends soon is searched at its end alone.
#   - At the deadline what is there is searched once more. That no match was found by then is a time-out.
# A match in an unfinished body must not be undone by later bytes, as `ok$` would be: engine.pyx, `_Expression`.
#
# Over TLS the body is with a TLS thread, which copies it when it is asked to (TLS_PEEK).


# The first bytes of a body have come, and the end has not.
cdef void search_begin(State* e, Stream* stream, int64_t when) noexcept nogil:
    stream.arrived = when
    if stream.search_at == 0:
        stream.body_at = when
        search_plan(e, stream, SEARCH_FIRST)


# The next look at the body is so far away.
cdef void search_plan(State* e, Stream* stream, int64_t wait) noexcept nogil:
    stream.search_wait = wait
    stream.search_at = e.clock.now + wait
    plan(e, stream.slot, stream.search_at)


# The wheel gave out a slot that receives: is it time to search?
cdef void search_visit(State* e, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef Stream* stream = &e.streams.table[slot.stream]
    if stream.search_at == 0:
        return
    if e.clock.now < stream.search_at:
        plan(e, index, stream.search_at)
        return
    if slot.phase == PHASE_TLS:
        tls_peek(e, stream.tls)
    elif stream.http.body_bytes > stream.http.searched:
        stream.http.searched = stream.http.body_bytes
        search_part(e, index, http_copy(&stream.http), stream.http.body_bytes, stream.http.status, stream.arrived)
    search_plan(e, stream, 2 * stream.search_wait)


# Give a body to the regexp thread, which frees it. False, with the body freed: the queue is full.
cdef bint search_put(
    State* e, uint32_t index, int kind, uint8_t* body, uint32_t body_bytes, uint32_t status, int64_t when
) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef Judgement job
    cdef uint64_t one = 1
    memset(&job, 0, sizeof(job))
    job.kind = <uint8_t>kind
    job.slot = index
    job.generation = slot.generation
    job.serial = slot.serial
    job.check = slot.check
    job.status = status
    job.body = body
    job.body_bytes = body_bytes
    job.when = when
    job.limit = <uint32_t>((slot.deadline - slot.sent) // MS)
    if not ring_push(&e.judge.bodies, &job):
        free(body)
        return False
    write(e.judge.notify, &one, sizeof(one))
    return True


# Search a copy of an unfinished body; the probe goes on. Without memory or room it is searched the next time.
cdef void search_part(
    State* e, uint32_t index, uint8_t* body, uint32_t body_bytes, uint32_t status, int64_t when
) noexcept nogil:
    if body is not NULL:
        search_put(e, index, JUDGE_PART, body, body_bytes, status, when)


# The probe's stream ends here, and it waits for the answer about its body.
cdef void search_rest(State* e, uint32_t index, int kind, int64_t when) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef Stream* stream = &e.streams.table[slot.stream]
    cdef uint8_t* body = stream.http.body
    cdef bint put
    stream.http.body = NULL         # the other thread's, from here on
    put = search_put(e, index, kind, body, stream.http.body_bytes, stream.http.status, when)
    stream_end(e, slot.stream)
    if not put:
        repeat(e, index, soon(e))
        return
    slot.phase = PHASE_JUDGING
    slot.deadline = when        # from here on: when the last of the body came
    plan(e, index, e.clock.now + JUDGE_LIMIT)


# A response is complete, and its status is good.
cdef void search_whole(State* e, uint32_t index, int64_t when) noexcept nogil:
    search_rest(e, index, JUDGE_WHOLE, when)


# The time is over in the middle of a body. False: there is nothing to be searched.
cdef bint search_last(State* e, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef Stream* stream = &e.streams.table[slot.stream]
    cdef int64_t until = slot.deadline + stalled_since(e, slot) + stream.own
    if stream.search_at == 0 or stream.http.body_bytes == 0 or stream.http.state >= HTTP_COMPLETE:
        return False
    if stream.body_at > until:
        return False
    search_rest(e, index, JUDGE_LAST, stream.arrived if stream.arrived < until else until)
    return True


# An unfinished body has what the expression looks for: the probe has passed, wherever its response is.
cdef void search_passed(State* e, uint32_t index, const Command* command) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    if slot.phase == PHASE_RECEIVING:
        http_settle(&e.streams.table[slot.stream].http)
        stream_leave(e, index)
    elif slot.phase == PHASE_TLS:
        stream_end(e, slot.stream)
    elif slot.phase != PHASE_JUDGING:
        return
    conclude(e, index, True, CODE_L7OK, DETAIL_STATUS, command.status, command.when - slot.sent)


# The answer of the regexp thread.
cdef void search_answer(State* e, const Command* command) noexcept nogil:
    cdef uint32_t index = command.slot
    cdef Slot* slot = &e.slots[index]
    if slot.generation != command.generation or slot.serial != command.serial:
        return
    if command.matched:
        search_passed(e, index, command)
    elif slot.phase == PHASE_JUDGING and command.judged != JUDGE_PART and failure_stands(e, index):
        if command.judged == JUDGE_LAST:
            conclude(e, index, False, CODE_L7TOUT, DETAIL_TIMEOUT, command.limit, 0)
        else:
            conclude(e, index, False, CODE_L7RSP, DETAIL_HTTP, FAULT_NO_MATCH, command.when - slot.sent)
