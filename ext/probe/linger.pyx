# What follows the verdict of a response, on the engine thread. Mostly the head decides, and a server that writes head
# and body in two pieces would find the connection reset before the second, and log an error for each probe.
#
# So the verdict is made first, and a response whose end is known (a length, or chunks) is then read to there, or until
# the server closes, before the connection is reset. That is for the server's log alone, and takes nothing from a probe:
#   - It lasts at most `LINGER`, and at most half the present interval, and reads at most 64 KiB.
#   - The next probe of the target ends it, as does all else that would end a probe.
#   - Nothing is read while a probe waits for a descriptor, or three quarters of all are in use.
# Responses without a body (to HEAD, 204, 304) have ended with their head; one that ends with the connection has no end
# that is known. Both are reset at once.
#
# Over TLS the keys are gone with the verdict (tls.pyx): the bytes are read as they come, and the server's closing is
# the end, which the request asks for.
#
# A stream that is read so still belongs to its slot, which is idle already; the slot's look in the wheel ends it.


# The slot is done with its response.
cdef void stream_leave(State* e, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef uint32_t at = slot.stream
    cdef Stream* stream = &e.streams.table[at]
    cdef int64_t wait = interval_of(slot, e.checks[slot.check]) // 2
    if (
        stream.http.state != HTTP_COMPLETE
        or stream.http.rest == 0
        or e.waiting.count
        or 4 * <uint64_t>e.streams.open_sockets > 3 * <uint64_t>e.settings.max_sockets
    ):
        stream_end(e, at)
        return
    stream.linger_until = e.clock.now + (wait if wait < LINGER else LINGER)
    plan(e, index, stream.linger_until)
    if not stream.watched:
        stream_freshen(e, at)
    elif not stream_watch(e, at, EPOLL_CTL_MOD):
        stream_end(e, at)


# Read on. True while there is more to come.
cdef bint linger_look(State* e, uint32_t at) noexcept nogil:
    cdef Stream* stream = &e.streams.table[at]
    cdef bint secret = e.checks[e.slots[stream.slot].check].tls is not NULL
    cdef ssize_t got
    cdef int _turn
    for _turn in range(4):
        got = recv(stream.fd, e.streams.scratch, SCRATCH, MSG_DONTWAIT)
        if got < 0 and (errno == EAGAIN or errno == EINTR):
            return True
        if got <= 0:
            stream.http.rest = 0
        elif not secret:
            http_skip(&stream.http, e.streams.scratch, got)
        elif http_take(&stream.http, e.streams.scratch, got):
            stream.http.rest = 0
        if stream.http.rest == 0:
            stream_end(e, at)
            return False
        if got < SCRATCH:
            return True
    return True


# The wheel gave out an idle slot that still has its stream.
cdef void linger_visit(State* e, uint32_t index) noexcept nogil:
    cdef uint32_t at = e.slots[index].stream
    if e.clock.tick_start >= e.streams.table[at].linger_until:
        stream_end(e, at)
    else:
        plan(e, index, e.streams.table[at].linger_until)
