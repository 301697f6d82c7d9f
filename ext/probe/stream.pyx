# Checks over a TCP connection, on the engine thread: connect, HTTP on top of it, and the way to the threads that do
# TLS.
#
# Sockets are used again: connect() to AF_UNSPEC resets the connection and costs less than close() and socket(). It does
# not take a descriptor out of epoll, though, and a descriptor that epoll has watched would report events of its next
# connection to the previous one's entry; so those are closed.
#
# An answer within a tick or two is seen by a direct system call: on a near network that is nearly all, and
# adding a descriptor to epoll and waiting for it costs more than looking three times. Slower answers are left to epoll.


cdef Stream* stream_take(State* e, uint32_t index) noexcept nogil:
    cdef Stream* stream
    cdef uint32_t at = e.streams.unused
    if at != NIL:
        stream = &e.streams.table[at]
        e.streams.unused = stream.next
    elif e.streams.top < e.streams.space:
        at = e.streams.top
        e.streams.top += 1
        stream = &e.streams.table[at]
        stream.tag = 0
    else:
        return NULL
    stream.tag += 1
    stream.slot = index
    stream.next = NIL
    stream.sent_bytes = 0
    stream.looks = 0
    stream.watched = False
    stream.fresh = False
    stream.used = True
    stream.made = False
    stream.tls = NULL
    stream.own = 0
    stream.search_at = 0
    stream.linger_until = 0
    e.streams.used += 1
    e.slots[index].stream = at
    return stream


# A descriptor to connect with, or -1 with errno EMFILE (wait), EAGAIN (the opener is at it) or a real error.
cdef int stream_descriptor(State* e, Origin* origin) noexcept nogil:
    cdef Origin* other
    cdef uint32_t i
    cdef int fd
    if origin.netns.name[0] and load32(&origin.stock.state) == STOCK_THERE:
        for i in range(origin.stock.count):
            # The namespace may have been recreated since the origin was opened, or the origin since they were made.
            if origin.stock.inode == origin.netns.inode and origin.stock.device == origin.netns.device:
                e.streams.open_sockets += 1
                pool_put(e, origin, origin.stock.fds[i])
            else:
                close(origin.stock.fds[i])
        origin.stock.state = STOCK_NONE
        if origin.pool.count == 0 and origin.stock.error:
            errno_set(origin.stock.error)
            return -1
    if origin.pool.count:
        origin.pool.count -= 1
        if origin.pool.count < origin.pool.idle:
            origin.pool.idle = origin.pool.count
        return origin.pool.fds[origin.pool.count]
    if e.streams.open_sockets >= e.settings.max_sockets:
        # Idle sockets of other origins are the only ones that may be had.
        for i in range(e.origins.top):
            other = e.origins.table[i]
            if other is not NULL and other.pool.count:
                other.pool.count -= 1
                close(other.pool.fds[other.pool.count])
                e.streams.open_sockets -= 1
                break
        else:
            errno_set(EMFILE)
            return -1
    if origin.netns.name[0]:
        if origin.stock.state == STOCK_NONE and not opener_full(e):
            origin.stock.state = STOCK_ASKED
            opener_ask(e, origin)
        errno_set(EAGAIN)
        return -1
    fd = stream_socket(origin)
    if fd >= 0:
        e.streams.open_sockets += 1
    return fd


cdef void pool_put(State* e, Origin* origin, int fd) noexcept nogil:
    cdef uint32_t space
    cdef int* grown
    if origin.pool.count == origin.pool.space:
        space = 64 if origin.pool.space == 0 else 2 * origin.pool.space
        grown = <int*>realloc(origin.pool.fds, space * sizeof(int))
        if grown is NULL:
            close(fd)
            e.streams.open_sockets -= 1
            return
        origin.pool.fds = grown
        origin.pool.space = space
    origin.pool.fds[origin.pool.count] = fd
    origin.pool.count += 1


# The slot is done with its connection. A connection that a TLS thread still has is closed when the thread returns it.
cdef void stream_end(State* e, uint32_t at) noexcept nogil:
    cdef Stream* stream = &e.streams.table[at]
    e.slots[stream.slot].stream = NIL
    if stream.tls is NULL or tls_release(e, stream):
        stream_close(e, at, True)


# Close half of the sockets that were idle for a while, so that a burst does not keep descriptors for ever.
cdef void pools_trim(State* e) noexcept nogil:
    cdef uint32_t i, count
    cdef Origin* origin
    e.streams.trimmed_at = e.clock.now
    for i in range(e.origins.top):
        origin = e.origins.table[i]
        if origin is NULL or load32(&origin.state) != ORIGIN_OPEN:
            continue
        count = (origin.pool.idle + 1) // 2
        if count > origin.pool.count:
            count = origin.pool.count
        if count > TRIM_STEP:
            count = TRIM_STEP
        e.streams.open_sockets -= count
        while count:
            count -= 1
            origin.pool.count -= 1
            close(origin.pool.fds[origin.pool.count])
        origin.pool.idle = origin.pool.count


# Empty a socket's error queue; False if that cannot be done. IPv4 queues an ICMP error that ends a connect() there,
# also for a socket that never asked for it (IP_RECVERR), and connect() to AF_UNSPEC leaves it there: a socket that is
# used again would grow by 832 bytes an error and report an error to poll for ever. Called after the connection is
# undone, so that no further error can find the socket.
cdef bint errors_drain(int fd) noexcept nogil:
    cdef msghdr header
    cdef int _turn
    memset(&header, 0, sizeof(header))
    for _turn in range(ERRORS_DRAINED):
        if recvmsg(fd, &header, MSG_ERRQUEUE | MSG_DONTWAIT) < 0:
            return errno == EAGAIN
    return False


# The connection has served its purpose: reset it, and keep the socket if that is possible; `reuse`: the slot still has
# the origin that the socket came from.
cdef void stream_close(State* e, uint32_t at, bint reuse) noexcept nogil:
    cdef Stream* stream = &e.streams.table[at]
    cdef Origin* origin = e.origins.table[e.slots[stream.slot].origin] if reuse else NULL
    cdef sockaddr nowhere
    if stream.watched:
        e.streams.watched -= 1
    memset(&nowhere, 0, sizeof(nowhere))
    nowhere.sa_family = AF_UNSPEC
    if (
        reuse
        and not stream.watched
        and load32(&origin.state) == ORIGIN_OPEN
        and e.slots[stream.slot].losses == origin.losses
        and connect(stream.fd, &nowhere, sizeof(nowhere)) == 0
        and (stream.made or origin.v6 or errors_drain(stream.fd))
    ):
        pool_put(e, origin, stream.fd)
    else:
        close(stream.fd)
        e.streams.open_sockets -= 1
    free(stream.http.body)
    stream.http.body = NULL
    stream.fd = -1
    stream.used = False
    e.streams.used -= 1
    if not stream.fresh:        # else the walk over the fresh ones gives it back
        stream.next = e.streams.unused
        e.streams.unused = at


cdef void stream_freshen(State* e, uint32_t at) noexcept nogil:
    cdef Stream* stream = &e.streams.table[at]
    stream.looks = 0
    if not stream.fresh and not stream.watched:
        stream.fresh = True
        stream.next = e.streams.fresh
        e.streams.fresh = at


# A probe that has to wait is counted once, however often it is tried.
cdef void count_wait(State* e, Slot* slot, int counter) noexcept nogil:
    if not slot.flags & SLOT_WAITED:
        slot.flags |= SLOT_WAITED
        e.stats.counters[counter] += 1


cdef void fifo_put(State* e, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    slot.phase = PHASE_WAITING
    if slot.flags & SLOT_IN_FIFO:
        return
    slot.flags |= SLOT_IN_FIFO
    slot.fifo_next = NIL
    if e.waiting.tail == NIL:
        e.waiting.head = index
    else:
        e.slots[e.waiting.tail].fifo_next = index
    e.waiting.tail = index
    e.waiting.count += 1


# Try each slot that waits for a descriptor once, in order; it queues again if there is still none.
cdef void fifo_walk(State* e) noexcept nogil:
    cdef uint32_t left = e.waiting.count
    cdef uint32_t index
    cdef Slot* slot
    if left > FIFO_STEP:
        left = FIFO_STEP
    while left and e.waiting.head != NIL:
        left -= 1
        index = e.waiting.head
        slot = &e.slots[index]
        e.waiting.head = slot.fifo_next
        if e.waiting.head == NIL:
            e.waiting.tail = NIL
        e.waiting.count -= 1
        slot.flags &= ~SLOT_IN_FIFO
        if slot.phase != PHASE_WAITING:
            continue
        slot.phase = PHASE_IDLE
        if not origin_ready(e, e.origins.table[slot.origin]):
            plan(e, index, e.clock.now)
            continue
        stream_start(e, index)
        if slot.phase == PHASE_WAITING and e.clock.now - slot.due > SECOND:
            if e.checks[slot.check].tls is not NULL and e.tls.count >= TLS_MAX:
                mark_blocked(e, index, BLOCK_TLS, EBUSY)
            else:
                mark_blocked(e, index, BLOCK_SOCKET, EMFILE)


cdef void stream_start(State* e, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef const Check* check = e.checks[slot.check]
    cdef Origin* origin = e.origins.table[slot.origin]
    cdef Stream* stream
    cdef sockaddr_in6 name
    cdef socklen_t length
    cdef int error, fd
    if check.tls is not NULL and e.tls.count >= TLS_MAX:
        count_wait(e, slot, STAT_LATE_TLS)
        fifo_put(e, index)
        return
    fd = stream_descriptor(e, origin)
    if fd < 0:
        error = errno
        if error == EMFILE or error == ENFILE or error == EAGAIN:
            if error != EAGAIN:
                count_wait(e, slot, STAT_LATE_FD)
            fifo_put(e, index)
        elif error == EADDRNOTAVAIL and origin.has_source:
            block(e, index, BLOCK_SOURCE, error)
        else:
            block(e, index, BLOCK_SOCKET, error)
        return
    stream = stream_take(e, index)
    if stream is NULL:
        pool_put(e, origin, fd)
        count_wait(e, slot, STAT_LATE_FD)
        fifo_put(e, index)
        return
    stream.fd = fd
    slot.serial = (slot.serial + 1) & SERIAL_MASK
    http_init(&stream.http, check.codes, check.head_request, check.regexp)
    if check.tls is not NULL and not tls_begin(e, stream, slot, check):
        stream_blocked(e, index, BLOCK_TLS, ENOMEM)
        return
    refresh_clock(e)
    count_sent(e, slot, e.clock.now)
    slot.deadline = e.clock.now + limit_of(slot, check)
    slot.phase = PHASE_CONNECTING
    length = fill_name(&name, slot.v6, slot.address, check.port)
    if connect(fd, <sockaddr*>&name, length) < 0 and errno != EINPROGRESS:
        # A server's answer cannot be known yet.
        proof_of_refusal(e, index, errno)
        return
    e.clock.quiet = 0
    stream_freshen(e, slot.stream)
    plan(e, index, slot.deadline + GRACE)


# The check has failed; unless we kept the server waiting so long that it may have given us up, and not we it. (Where it
# is we who give up, what we took ourselves has been added to its time.)
cdef void stream_fail(State* e, uint32_t index, int code, int kind, uint32_t value, int64_t span) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef int64_t lost = stalled_since(e, slot)
    if kind != DETAIL_TIMEOUT:
        lost += e.streams.table[slot.stream].own
    if lost * 4 > slot.deadline - slot.sent or slot.losses != e.origins.table[slot.origin].losses:
        stream_leave(e, index)
        repeat(e, index, soon(e))
        return
    if kind == DETAIL_TIMEOUT and slot.state != HEALTH_DOWN:
        proof_of_silence(e, index, code)
        return
    stream_leave(e, index)
    if failure_stands(e, index):
        conclude(e, index, False, code, kind, value, span)


# The check has failed, and no time of ours can have caused it.
cdef void stream_refused(State* e, uint32_t index, int code, int kind, uint32_t value, int64_t span) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    if slot.losses != e.origins.table[slot.origin].losses:
        stream_end(e, slot.stream)
        repeat(e, index, soon(e))
        return
    if kind == DETAIL_ERRNO and slot.state != HEALTH_DOWN:
        proof_of_answer(e, index, code, value, span)
        return
    stream_end(e, slot.stream)
    if failure_stands(e, index):
        conclude(e, index, False, code, kind, value, span)


cdef void stream_blocked(State* e, uint32_t index, int kind, int error) noexcept nogil:
    stream_end(e, e.slots[index].stream)
    block(e, index, kind, error)


# How long the connection had been made when we saw it: that time was not the server's.
cdef int64_t seen_late(State* e, const Stream* stream, const Slot* slot) noexcept nogil:
    cdef tcp_info info
    cdef socklen_t length = sizeof(info)
    cdef int64_t late = e.clock.now - slot.sent - stalled_since(e, slot)
    if late <= LATE or getsockopt(stream.fd, IPPROTO_TCP, TCP_INFO, &info, &length) < 0:
        return 0
    if info.tcpi_rtt == 0 or info.tcpi_total_retrans:
        return 0        # a packet was lost: the round-trip time is unknown
    late -= <int64_t>info.tcpi_rtt * 1000
    return late if late > 0 else 0


# The socket failed: the connection while it was being made, or afterwards.
cdef void stream_failed(State* e, uint32_t index, int error) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef Stream* stream = &e.streams.table[slot.stream]
    if error in (ENOBUFS, ENOMEM, ENETDOWN, EPERM, EADDRNOTAVAIL):
        stream_blocked(e, index, BLOCK_CONNECT, error)
    elif slot.phase != PHASE_CONNECTING:
        stream_fail(e, index, CODE_L7RSP, DETAIL_ERRNO, error, 0)
    elif error == ECONNRESET or error == EPIPE:
        # It had been made.
        stream.own = seen_late(e, stream, slot)
        stream_fail(e, index, CODE_L4CON, DETAIL_ERRNO, error, 0)
    else:
        stream_refused(e, index, CODE_L4CON, DETAIL_ERRNO, error, 0)


# A port of the range that the kernel gives to clients, on this host, with no server: now and then a connect() to it
# gets that very port as its own and meets itself.
cdef bint connected_to_itself(State* e, const Stream* stream, const Slot* slot, const Check* check) noexcept nogil:
    cdef sockaddr_in6 own
    cdef socklen_t length = sizeof(own)
    if not e.settings.ephemeral_low <= check.port <= e.settings.ephemeral_high:
        return False
    if getsockname(stream.fd, <sockaddr*>&own, &length) < 0 or ntohs(own.sin6_port) != check.port:
        return False
    if slot.v6:
        return memcmp(&own.sin6_addr, slot.address, 16) == 0
    return memcmp(&(<sockaddr_in*>&own).sin_addr, slot.address, 4) == 0


# Look what has become of a stream. True while it is still under way.
cdef bint stream_look(State* e, uint32_t at) noexcept nogil:
    cdef Stream* stream = &e.streams.table[at]
    cdef uint32_t index = stream.slot
    cdef Slot* slot = &e.slots[index]
    cdef const Check* check = e.checks[slot.check]
    cdef socklen_t length
    cdef tcp_info info
    cdef int64_t rtt
    cdef char nothing = 0
    if slot.phase == PHASE_TLS:
        return True
    if stream.linger_until:
        return linger_look(e, at)
    if slot.phase == PHASE_CONNECTING and (check.type == PROBE_CONNECT or stream.tls is not NULL):
        # To send nothing returns 0 when the connection is made, EAGAIN when not yet, else why not. (A second connect()
        # says the same, and forgets the connection's address when it has failed, which its twin needs.) It goes on
        # saying EAGAIN after a local firewall has rejected the SYN: that is found out at the deadline (proving.pyx).
        if send(stream.fd, &nothing, 0, MSG_DONTWAIT | MSG_NOSIGNAL) < 0:
            if errno == EAGAIN or errno == EINTR:
                return True
            stream_failed(e, index, errno)
            return False
        if connected_to_itself(e, stream, slot, check):
            stream_refused(e, index, CODE_L4CON, DETAIL_SELF, 0, 0)
            return False
        stream.made = True
        if stream.tls is not NULL:
            tls_hand_over(e, stream, slot)
            return True
        # How long the handshake took by the kernel's own measure; our looks are a tick apart.
        rtt = e.clock.now - slot.sent
        length = sizeof(info)
        if getsockopt(stream.fd, IPPROTO_TCP, TCP_INFO, &info, &length) == 0 and info.tcpi_rtt:
            if <int64_t>info.tcpi_rtt * 1000 < rtt:
                rtt = <int64_t>info.tcpi_rtt * 1000
        proof_passed(e, index)
        conclude(e, index, True, CODE_L4OK, DETAIL_NONE, 0, rtt)
        return False
    if slot.phase == PHASE_RECEIVING:
        return response_receive(e, at)
    return request_send(e, stream, slot, check)


# Put the request together; returns its length.
cdef uint32_t request_text(const Slot* slot, const Check* check, char* text) noexcept nogil:
    cdef uint32_t length = check.prefix_bytes
    cdef char* host
    memcpy(text, check.request, check.prefix_bytes)
    if check.host_is_address:
        host = text + length
        if slot.v6:
            host[0] = 91
            inet_ntop(AF_INET6, slot.address, host + 1, 64)
            length += <uint32_t>strlen(host)
            text[length] = 93
            length += 1
        else:
            inet_ntop(AF_INET, slot.address, host, 64)
            length += <uint32_t>strlen(host)
    memcpy(text + length, check.request + check.prefix_bytes, check.suffix_bytes)
    return length + check.suffix_bytes


# Send what is left of the request. False when the stream has ended. The connection's own outcome shows here too: EAGAIN
# while it is not made, its error if it failed.
cdef bint request_send(State* e, Stream* stream, Slot* slot, const Check* check) noexcept nogil:
    cdef char* text = <char*>e.streams.scratch
    cdef uint32_t length = request_text(slot, check, text)
    cdef ssize_t sent
    sent = send(stream.fd, text + stream.sent_bytes, length - stream.sent_bytes, MSG_DONTWAIT | MSG_NOSIGNAL)
    if sent < 0:
        if errno == EAGAIN or errno == EINTR:
            return True
        stream_failed(e, stream.slot, errno)
        return False
    if slot.phase == PHASE_CONNECTING:
        stream.made = True
        if connected_to_itself(e, stream, slot, check):
            stream_refused(e, stream.slot, CODE_L4CON, DETAIL_SELF, 0, 0)
            return False
        stream.own = seen_late(e, stream, slot)
    stream.sent_bytes += <uint32_t>sent
    slot.phase = PHASE_RECEIVING if stream.sent_bytes == length else PHASE_SENDING
    stream_freshen(e, slot.stream)
    return True


cdef bint response_receive(State* e, uint32_t at) noexcept nogil:
    cdef Stream* stream = &e.streams.table[at]
    cdef Slot* slot = &e.slots[stream.slot]
    cdef char control[RECV_CONTROL]
    cdef iovec part
    cdef msghdr header
    cdef ssize_t got
    cdef size_t taken
    cdef int64_t when = e.clock.now
    cdef int _turn
    memset(&header, 0, sizeof(header))
    part.iov_base = e.streams.scratch
    part.iov_len = SCRATCH
    header.msg_iov = &part
    header.msg_iovlen = 1
    header.msg_control = control
    # A server that never stops sending is read at most this much a look; its body is bounded anyway.
    for _turn in range(8):
        header.msg_controllen = RECV_CONTROL
        got = recvmsg(stream.fd, &header, MSG_DONTWAIT)
        if got < 0:
            if errno == EAGAIN or errno == EINTR:
                return True
            if not (errno == ECONNRESET and stream.http.state == HTTP_BODY):
                stream_failed(e, stream.slot, errno)
                return False
            got = 0     # a body without a length, ended by a reset: it ended
        if got == 0:
            http_eof(&stream.http)
        else:
            when = received_at(e, &header, slot)
            taken = http_feed(&stream.http, e.streams.scratch, got)
            http_skip(&stream.http, e.streams.scratch + taken, got - taken)
        if stream.http.state >= HTTP_COMPLETE:
            response_done(e, at, when)
            return False
        if stream.http.body_bytes:
            search_begin(e, stream, when)
        if got < SCRATCH:
            return True
    return True


# The response is complete, or is none.
cdef void response_done(State* e, uint32_t at, int64_t when) noexcept nogil:
    cdef Stream* stream = &e.streams.table[at]
    cdef uint32_t index = stream.slot
    cdef Slot* slot = &e.slots[index]
    cdef const Check* check = e.checks[slot.check]
    cdef bint complete = stream.http.state == HTTP_COMPLETE
    cdef bint good = complete and http_code_good(check.codes, stream.http.status)
    cdef uint32_t status = stream.http.status
    if when > slot.deadline + stalled_since(e, slot) + stream.own:
        stream_expired(e, index)
        return
    if good and check.regexp:
        search_whole(e, index, when)
    elif good:
        proof_passed(e, index)
        conclude(e, index, True, CODE_L7OK, DETAIL_STATUS, status, when - slot.sent)
    elif stream.http.no_memory:
        stream_blocked(e, index, BLOCK_SOCKET, ENOMEM)
    elif complete or stream.http.fault == FAULT_STATUS:
        stream_fail(e, index, CODE_L7STS, DETAIL_STATUS, status, when - slot.sent)
    else:
        stream_fail(e, index, CODE_L7RSP, DETAIL_HTTP, stream.http.fault, when - slot.sent)


# Nothing came, or not enough, and the time is over.
cdef void stream_expired(State* e, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef int code = CODE_L4TOUT if slot.phase == PHASE_CONNECTING else CODE_L7TOUT
    cdef uint32_t limit = <uint32_t>((slot.deadline - slot.sent) // MS)
    if slot.phase == PHASE_TLS:
        tls_expired(e, index)
    elif slot.state != HEALTH_DOWN and not may_ask(e):
        plan(e, index, e.clock.now + TICK)      # a proof costs some ten microseconds: one a tick
    elif not search_last(e, index):
        stream_fail(e, index, code, DETAIL_TIMEOUT, limit, 0)


# Look at the fresh ones. Streams with enough looks are left to epoll.
cdef void stream_walk(State* e) noexcept nogil:
    cdef uint32_t at = e.streams.fresh
    cdef uint32_t following
    cdef uint32_t count = 0
    cdef Stream* stream
    e.streams.fresh = NIL
    while at != NIL:
        stream = &e.streams.table[at]
        following = stream.next
        stream.fresh = False
        if count & 127 == 127:
            refresh_clock(e)
        count += 1
        if not stream.used:
            stream.next = e.streams.unused
            e.streams.unused = at
        elif stream_look(e, at) and not stream.fresh and e.slots[stream.slot].phase != PHASE_TLS:
            stream.looks += 1
            if stream.looks < STREAM_LOOKS or not stream_watch(e, at, EPOLL_CTL_ADD):
                stream.fresh = True
                stream.next = e.streams.fresh
                e.streams.fresh = at
        at = following


cdef bint stream_watch(State* e, uint32_t at, int operation) noexcept nogil:
    cdef Stream* stream = &e.streams.table[at]
    cdef epoll_event event
    event.events = EPOLLONESHOT | EPOLLOUT
    if stream.linger_until or e.slots[stream.slot].phase == PHASE_RECEIVING:
        event.events = EPOLLONESHOT | EPOLLIN
    event.data.u64 = (<uint64_t>stream.tag << 32) | at
    if epoll_ctl(e.streams.epoll, operation, stream.fd, &event) < 0:
        e.stats.counters[STAT_LOCAL_ERRORS] += 1
        return False
    if not stream.watched:
        stream.watched = True
        e.streams.watched += 1
    return True


cdef void stream_events(State* e) noexcept nogil:
    cdef int count = EVENTS
    cdef int i
    cdef uint32_t at
    cdef Stream* stream
    # Each has its turn once: a server that never stops talking does not keep the others from theirs.
    cdef uint32_t rounds = e.streams.watched // EVENTS + 1
    while rounds and count == EVENTS:
        rounds -= 1
        count = epoll_wait(e.streams.epoll, e.streams.events, EVENTS, 0)
        if count > 0:
            refresh_clock(e)
            e.clock.quiet = 0
        for i in range(count):
            at = <uint32_t>e.streams.events[i].data.u64
            stream = &e.streams.table[at]
            if not stream.used or stream.tag != <uint32_t>(e.streams.events[i].data.u64 >> 32):
                continue
            if stream_look(e, at) and e.slots[stream.slot].phase != PHASE_TLS:
                stream_watch(e, at, EPOLL_CTL_MOD)
