# The common part of ICMP and SYN probes, on the engine thread: batches out by sendmmsg, batches in by recvmmsg, and
# matching replies to probes.
#
# A raw socket gets a copy of every packet of its protocol that reaches the host, whatever the port: the filter of the
# origin drops the rest before it is queued, and what passes is matched here by cookie. A socket without a filter would
# fill its queue with other programs' traffic.


# Kernel receive time of a message on the monotonic clock. The stamp is on the wall clock, which may have been set since
# the probe left: a value that cannot be is replaced by the time of reading, or by the deadline where that is earlier.
cdef int64_t received_at(State* e, msghdr* header, const Slot* slot) noexcept nogil:
    cdef cmsghdr* control = CMSG_FIRSTHDR(header)
    cdef timespec stamp
    cdef int64_t at = 0
    while control is not NULL:
        if control.cmsg_level == SOL_SOCKET and control.cmsg_type == SO_TIMESTAMPNS:
            memcpy(&stamp, CMSG_DATA(control), sizeof(stamp))
            at = <int64_t>stamp.tv_sec * SECOND + stamp.tv_nsec - e.clock.wall
        control = CMSG_NXTHDR(header, control)
    if not slot.sent - 5 * MS <= at <= e.clock.now + 5 * MS:
        return e.clock.now if e.clock.now < slot.deadline else slot.deadline
    # Within a batch the time of sending is interpolated, and may be a little too late.
    if at < slot.sent:
        return slot.sent
    return at if at < e.clock.now else e.clock.now


# A reply that matched: was it in time? If so it decides, however late it was read.
cdef void raw_reply(
    State* e, uint32_t index, int64_t at, bint passed, int code, int kind, uint32_t value
) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    if at > slot.deadline + stalled_since(e, slot):
        e.stats.counters[STAT_LATE_REPLIES] += 1
        return      # the wheel will call it a time-out in this very tick
    raw_landed(e, slot)
    if not passed and not failure_stands(e, index):
        return
    conclude(e, index, passed, code, kind, value, at - slot.sent)


cdef inline void raw_landed(State* e, Slot* slot) noexcept nogil:
    slot.phase = PHASE_IDLE
    e.raw.flying -= 1
    e.origins.table[slot.origin].flying -= 1


# Something with a valid form and a cookie that is not that of a probe in flight.
cdef void raw_unmatched(State* e, const Slot* slot, uint32_t serial) noexcept nogil:
    cdef uint32_t age
    if slot is NULL or not slot.flags & SLOT_ACTIVE:
        e.stats.counters[STAT_FORGED if slot is NULL else STAT_LATE_REPLIES] += 1
        return
    age = (slot.serial - serial) & SERIAL_MASK
    if age == 0:
        e.stats.counters[STAT_DUPLICATE] += 1
    elif age < 64:
        e.stats.counters[STAT_LATE_REPLIES] += 1
    else:
        e.stats.counters[STAT_FORGED] += 1


# The slot that a packet answers, by its cookie, kind and source address; NULL: none, or the packet is forged.
cdef inline Slot* raw_match(
    State* e, const Origin* origin, const Packet* packet, uint32_t index, bint icmp
) noexcept nogil:
    cdef Slot* slot
    cdef uint64_t seal
    if index >= e.settings.capacity:
        return NULL
    slot = &e.slots[index]
    if (
        slot.type != (PROBE_ICMP if icmp else PROBE_SYN)
        or slot.origin != origin.id
        or memcmp(slot.address, packet.address, 16) != 0       # behind an IPv4 address both are zero
    ):
        return NULL
    if packet.kind == PACKET_ECHO:
        # The seal of the probe in flight is at hand; that of an older one, whose answer is late, is worked out again.
        seal = slot.seal if packet.cookie == slot.cookie else cookie_seal64(&e.settings.key, packet.cookie)
        if packet.seal != seal:
            return NULL
    return slot


# Take the answer to the probe in flight; `sender` is whom it came from.
cdef inline void raw_answer(
    State* e, Origin* origin, uint32_t index, int64_t at, const Packet* packet, bint icmp, const uint8_t* sender
) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef int code, kind
    cdef uint32_t error = (<uint32_t>packet.error_type << 8) | packet.error_code
    if packet.kind == PACKET_ECHO:
        raw_reply(e, index, at, True, CODE_L3OK, DETAIL_NONE, 0)
    elif packet.kind == PACKET_SYN_ACK:
        raw_reply(e, index, at, True, CODE_L4OK, DETAIL_NONE, 0)
    elif packet.kind == PACKET_RST:
        raw_reply(e, index, at, False, CODE_L4CON, DETAIL_ERRNO, ECONNREFUSED)
    elif (packet.error_type == 2) if origin.v6 else (packet.error_type == 3 and packet.error_code == 4):
        # Too big for a link on the way: the kernel has learned that, and fragments the next one. A router that goes on
        # saying so gets no other: then the probe waits for an answer like any, and has its time-out.
        if slot.too_big < TOO_BIG_TRIES:
            slot.too_big += 1
            raw_landed(e, slot)
            repeat(e, index, e.clock.now + TICK)
        else:
            e.stats.counters[STAT_ICMP_ERRORS] += 1
    else:
        e.stats.counters[STAT_ICMP_ERRORS] += 1
        kind = error_kind(e, origin, slot, sender, packet)
        if kind != BLOCK_NONE:
            raw_landed(e, slot)
            slot.evidence |= EVIDENCE_DOUBT
            block(e, index, kind, 0)
            return
        code = CODE_L3ERR if icmp else CODE_L4CON
        raw_reply(e, index, at, False, code, DETAIL_ICMP6 if origin.v6 else DETAIL_ICMP4, error)


# One packet of a raw socket.
cdef void raw_packet(State* e, Origin* origin, RawSocket* raw, mmsghdr* message, const uint8_t* source) noexcept nogil:
    cdef Packet packet
    cdef uint32_t plain, index
    cdef Slot* slot
    cdef const uint8_t* data = <const uint8_t*>message.msg_hdr.msg_iov.iov_base
    cdef const uint8_t* sender = source if origin.v6 else data + 12
    cdef bint icmp
    if raw.tcp:
        parse_tcp(data, message.msg_len, origin.v6, source, &packet)
    else:
        parse_icmp(data, message.msg_len, origin.v6, source, &packet)
    if packet.kind == PACKET_MALFORMED:
        e.stats.counters[STAT_MALFORMED] += 1
        return
    if packet.kind == PACKET_OTHER or (packet.kind == PACKET_ECHO and packet.magic != origin.magic):
        e.stats.counters[STAT_FOREIGN] += 1
        return
    plain = cookie_open(&e.settings.key, packet.cookie)
    index = plain >> SERIAL_BITS
    icmp = packet.kind == PACKET_ECHO or packet.kind == PACKET_ERROR_ICMP
    slot = raw_match(e, origin, &packet, index, icmp)
    if slot is NULL and packet.kind == PACKET_ERROR_ICMP:
        e.stats.counters[STAT_FOREIGN] += 1     # another program on this host pings, too
        return
    if slot is not NULL and not icmp and slot.phase == PHASE_FLYING and slot.cookie == packet.cookie:
        if packet.own_port != slot.own_port or packet.peer_port != e.checks[slot.check].port:
            slot = NULL
    if slot is not NULL and slot.phase == PHASE_FLYING and slot.cookie == packet.cookie:
        raw_answer(e, origin, index, received_at(e, &message.msg_hdr, slot), &packet, icmp, sender)
    elif icmp or port_is_ours(origin, packet.own_port):
        raw_unmatched(e, slot, plain & SERIAL_MASK)
    else:
        e.stats.counters[STAT_FOREIGN] += 1     # of another socket's port between ours


# Count packets that the kernel has dropped since the last look, because the receive queue was full. Its counter also
# rises with bad checksums, which any stranger may send; but an overflow leaves a full queue, which only this thread
# empties.
cdef void raw_drops(State* e, Origin* origin, RawSocket* raw) noexcept nogil:
    cdef uint32_t info[SK_MEMINFO_VARS]
    cdef socklen_t length = sizeof(info)
    cdef uint32_t lost
    cdef bint crowded
    if getsockopt(raw.fd, SOL_SOCKET, SO_MEMINFO, info, &length) < 0:
        e.stats.counters[STAT_LOCAL_ERRORS] += 1
        return
    raw.space = info[SK_MEMINFO_RCVBUF]
    crowded = info[SK_MEMINFO_RMEM_ALLOC] >= raw.space // 2
    lost = info[SK_MEMINFO_DROPS] - raw.drops_seen
    if lost:
        raw.drops_seen = info[SK_MEMINFO_DROPS]
        if crowded or raw.crowded:
            e.stats.counters[STAT_RX_DROPS] += lost
            e.stats.counters[STAT_RX_BUFFER] = raw.space
            origin.losses += 1
        else:
            e.stats.counters[STAT_MALFORMED] += lost
    raw.crowded = crowded


# Make the first `count` messages ready to be received with: their lengths are in and out.
cdef void receive_ready(ReceiveBuffers* r, int count, bint v6) noexcept nogil:
    cdef msghdr* header
    cdef int i
    r.v6 = v6
    for i in range(count):
        header = &r.messages[i].msg_hdr
        header.msg_name = &r.names[i] if v6 else NULL       # IPv4: it is in the packet
        header.msg_namelen = sizeof(sockaddr_in6) if v6 else 0
        header.msg_controllen = RECV_CONTROL


# Read a raw socket until it is empty. False if it could not be emptied: then nothing of it may expire yet.
cdef bint raw_receive(State* e, Origin* origin, RawSocket* raw) noexcept nogil:
    cdef ReceiveBuffers* r = &e.raw.receive
    cdef mmsghdr* message
    cdef uint32_t total = 0
    cdef int count, i
    cdef int turn = 0
    if raw.fd < 0:
        return True
    raw_drops(e, origin, raw)
    if r.v6 != origin.v6:
        receive_ready(r, RECV_BATCH, origin.v6)
    while turn < RECV_ROUNDS:
        turn += 1
        count = recvmmsg(raw.fd, r.messages, RECV_BATCH, MSG_DONTWAIT, NULL)
        if count < 0:
            if errno == EINTR:
                continue
            if errno != EAGAIN:
                e.stats.counters[STAT_LOCAL_ERRORS] += 1
            return True
        refresh_clock(e)
        for i in range(count):
            message = &r.messages[i]
            raw_packet(e, origin, raw, message, <const uint8_t*>&r.names[i].sin6_addr)
        receive_ready(r, count, origin.v6)
        e.clock.quiet = 0
        total += <uint32_t>count
        if total >= raw.space // (2 * RECV_MEMORY):
            raw.crowded = True
        if count < RECV_BATCH:
            return True
    return False


cdef void raw_buffers_init(State* e) noexcept nogil:
    cdef int i
    for i in range(RECV_BATCH):
        e.raw.receive.parts[i].iov_base = e.raw.receive.data[i]
        e.raw.receive.parts[i].iov_len = RECV_BYTES
        e.raw.receive.messages[i].msg_hdr.msg_iov = &e.raw.receive.parts[i]
        e.raw.receive.messages[i].msg_hdr.msg_iovlen = 1
        e.raw.receive.messages[i].msg_hdr.msg_control = e.raw.receive.control[i]
    receive_ready(&e.raw.receive, RECV_BATCH, False)
    for i in range(BATCH):
        e.raw.send.messages[i].msg_hdr.msg_name = &e.raw.send.names[i]
        e.raw.send.messages[i].msg_hdr.msg_iov = &e.raw.send.parts[2 * i]


# Put a probe that is due into its batch; a full batch goes out. Probes of targets that did not pass last leave aside:
# lanes 2 and 3.
cdef void raw_queue(State* e, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef Origin* origin = e.origins.table[slot.origin]
    cdef int lane = 1 if slot.type == PROBE_SYN else 0
    cdef uint32_t most = BATCH
    if slot.evidence & EVIDENCE_DOUBT or slot.state == HEALTH_DOWN:
        lane += 2
        most = ASIDE_BATCH
    origin.batch[lane][origin.batch_count[lane]] = index
    origin.batch_count[lane] += 1
    if origin.batch_count[lane] == most:
        raw_flush(e, origin, lane)


# A deadline goes into the wheel at the next tick only: most answers are there before it, and spare the wheel the work.
cdef inline void raw_departed(State* e, uint32_t index) noexcept nogil:
    if e.raw.departed_count == DEPARTED:
        plan(e, index, e.slots[index].deadline + GRACE)
    else:
        e.raw.departed[e.raw.departed_count] = index
        e.raw.departed_count += 1


# Plan the deadlines of probes that the last tick sent and that have no answer yet, after the sockets were read.
cdef void raw_await(State* e) noexcept nogil:
    cdef uint32_t i
    cdef Slot* slot
    for i in range(e.raw.departed_count):
        slot = &e.slots[e.raw.departed[i]]
        if slot.phase == PHASE_FLYING:
            plan(e, e.raw.departed[i], slot.deadline + GRACE)
    e.raw.departed_count = 0


# Build the packets of a batch, each with a serial and a cookie of its own. Returns how many are ready to be sent; their
# slots stand at the beginning of the batch.
cdef uint32_t raw_build(State* e, Origin* origin, int lane, const int* fd) noexcept nogil:
    cdef uint32_t* batch = origin.batch[lane]
    cdef uint32_t ready = 0
    cdef uint32_t i
    cdef Slot* slot
    for i in range(origin.batch_count[lane]):
        if fd[0] < 0:   # lost since these were queued, perhaps with the packet before
            block(e, batch[i], origin.failure.kind, origin.failure.error)
            continue
        slot = &e.slots[batch[i]]
        slot.serial = (slot.serial + 1) & SERIAL_MASK
        slot.cookie = cookie_seal(&e.settings.key, (batch[i] << SERIAL_BITS) | slot.serial)
        if (syn_build(e, origin, ready, batch[i]) if lane & 1 else icmp_build(e, origin, ready, batch[i])):
            batch[ready] = batch[i]
            ready += 1
    origin.batch_count[lane] = 0
    return ready


# Is the send buffer of this socket too full for one more packet? Each refusal of the kernel's for want of memory is
# either of the path of that one packet, or of the whole socket: ENOBUFS when twice its send buffer is in use, EAGAIN
# (of packets with an IP header of ours) when once.
cdef bint socket_is_full(int fd, size_t bytes) noexcept nogil:
    cdef uint32_t info[SK_MEMINFO_VARS]
    cdef socklen_t length = sizeof(info)
    if getsockopt(fd, SOL_SOCKET, SO_MEMINFO, info, &length) < 0:
        return False
    return info[SK_MEMINFO_WMEM_ALLOC] + 2 * bytes + PACKET_MEMORY >= 2 * info[SK_MEMINFO_SNDBUF]


# These wait for a tick, since the whole socket is full; after several intervals that is shown.
cdef void raw_put_off(State* e, const uint32_t* batch, uint32_t count) noexcept nogil:
    cdef uint32_t i
    cdef Slot* slot
    cdef int64_t late
    e.stats.counters[STAT_ENOBUFS] += 1
    for i in range(count):
        slot = &e.slots[batch[i]]
        slot.evidence &= ~EVIDENCE_OF_PROBE
        put_off(e, batch[i], e.clock.now + TICK)
        late = 2 * interval_of(slot, e.checks[slot.check])
        if slot.lag > (late if late > SECOND else SECOND):
            mark_blocked(e, batch[i], BLOCK_BUFFER, ENOBUFS)


# So many of a batch have left since `before`, from message `done` on.
cdef void raw_sent(State* e, Origin* origin, const uint32_t* batch, uint32_t count, int64_t before) noexcept nogil:
    cdef uint32_t i
    cdef Slot* slot
    # The kernel answers for loopback within the call, so each packet has left about when its turn came.
    cdef int64_t after = e.clock.now
    cdef int64_t step = (after - before) // count
    for i in range(count):
        slot = &e.slots[batch[i]]
        count_sent(e, slot, before + step * i)
        slot.deadline = after + limit_of(slot, e.checks[slot.check])
        slot.phase = PHASE_FLYING
        e.raw.flying += 1
        origin.flying += 1
        raw_departed(e, batch[i])
        prefetch(&e.records[batch[i]])       # on a near network the answers are here already


# Send messages that are ready. An errno concerns that message alone, and the rest is sent; where the whole socket is
# full the rest waits for a tick. `fd` is the origin's own, which becomes -1 if the origin is lost meanwhile.
cdef void raw_send(State* e, Origin* origin, const int* fd, const uint32_t* batch, uint32_t ready) noexcept nogil:
    cdef uint32_t done = 0
    cdef int sent, error
    cdef int64_t before
    refresh_clock(e)
    # The kernel sends the messages in order and stops before the first that it refuses. It returns how many have left,
    # and keeps the errno to itself: only the next call, which begins with the refused message, has it.
    while done < ready:
        before = e.clock.now
        sent = sendmmsg(fd[0], e.raw.send.messages + done, ready - done, MSG_DONTWAIT)
        error = errno
        refresh_clock(e)
        if sent > 0:
            raw_sent(e, origin, batch + done, <uint32_t>sent, before)
            done += <uint32_t>sent
        elif error == EAGAIN or (
            error == ENOBUFS and socket_is_full(fd[0], packet_bytes(&e.raw.send.messages[done].msg_hdr))
        ):
            raw_put_off(e, batch + done, ready - done)
            break
        elif error != EINTR:
            if error == ENOBUFS:
                e.stats.counters[STAT_ENOBUFS] += 1
            send_refused(e, batch[done], error)
            done += 1


cdef inline size_t packet_bytes(const msghdr* header) noexcept nogil:
    return header.msg_iov[0].iov_len + (header.msg_iov[1].iov_len if header.msg_iovlen > 1 else 0)


# Send a batch.
cdef void raw_flush(State* e, Origin* origin, int lane) noexcept nogil:
    cdef RawSocket* raw = &origin.tcp if lane & 1 else &origin.icmp
    cdef uint32_t ready
    if lane & 2:
        raw_flush_aside(e, origin, lane)
    else:
        ready = raw_build(e, origin, lane, &raw.fd)
        if ready and raw.fd < 0:
            raw_blocked(e, origin, lane, ready)
        elif ready:
            raw_send(e, origin, &raw.fd, origin.batch[lane], ready)
    e.clock.quiet = 0
    # Between two batches: what came in must not wait until the receive queue is full. Errors are few, and can.
    raw_receive(e, origin, raw)


# The socket was lost while its batch was built.
cdef void raw_blocked(State* e, Origin* origin, int lane, uint32_t ready) noexcept nogil:
    cdef uint32_t i
    for i in range(ready):
        block(e, origin.batch[lane][i], origin.failure.kind, origin.failure.error)


# Of a batch aside, only those whose turn it is stay: while much of the send buffer is taken by probes that wait for
# neighbours, targets that are down wait, so that those with a verdict to come find room.
cdef void aside_thin_out(State* e, Origin* origin, int lane) noexcept nogil:
    cdef uint32_t info[SK_MEMINFO_VARS]
    cdef socklen_t length = sizeof(info)
    cdef uint32_t* batch = origin.batch[lane]
    cdef uint32_t count = origin.batch_count[lane]
    cdef uint32_t kept = 0
    cdef uint32_t i
    if getsockopt(origin.aside[lane & 1], SOL_SOCKET, SO_MEMINFO, info, &length) < 0:
        return
    if info[SK_MEMINFO_WMEM_ALLOC] < info[SK_MEMINFO_SNDBUF] // 4 * 3:
        return
    for i in range(count):
        if e.slots[batch[i]].state == HEALTH_DOWN:
            put_off(e, batch[i], e.clock.now + 20 * MS + draw_below(&e.clock.random, 80 * MS))
        else:
            batch[kept] = batch[i]
            kept += 1
    origin.batch_count[lane] = kept


# Send a batch from the socket aside, with departure stamps where a failure could become a verdict.
cdef void raw_flush_aside(State* e, Origin* origin, int lane) noexcept nogil:
    cdef uint32_t* batch = origin.batch[lane]
    cdef uint32_t i, ready
    cdef Slot* slot
    departures_read(e, origin, lane & 1)
    aside_thin_out(e, origin, lane)
    ready = raw_build(e, origin, lane, &origin.aside[lane & 1])
    if ready and origin.aside[lane & 1] < 0:
        raw_blocked(e, origin, lane, ready)
        return
    for i in range(ready):
        slot = &e.slots[batch[i]]
        # Nothing is lost with one that is down; one that comes up shows whether the interface gives stamps.
        if slot.state == HEALTH_DOWN and slot.counter == 0:
            slot.evidence &= ~EVIDENCE_OF_PROBE
        else:
            stamp_message(e, &e.raw.send.messages[i].msg_hdr, slot)
    if ready:
        raw_send(e, origin, &origin.aside[lane & 1], batch, ready)
    for i in range(ready):
        e.raw.send.messages[i].msg_hdr.msg_control = NULL
        e.raw.send.messages[i].msg_hdr.msg_controllen = 0
    departures_read(e, origin, lane & 1)


# sendmmsg refused this one.
cdef void send_refused(State* e, uint32_t index, int error) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    memset(slot.source, 0, 4)
    slot.evidence &= ~EVIDENCE_OF_PROBE
    if refusal_stands(e, index, error):
        slot.sent = e.clock.now
        conclude(e, index, False, CODE_L3ERR if slot.type == PROBE_ICMP else CODE_L4CON, DETAIL_ERRNO, error, 0)


# A raw probe whose time is over, after the sockets were read.
cdef void raw_expired(State* e, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef Origin* origin = e.origins.table[slot.origin]
    cdef uint8_t source[4]
    if not may_ask(e):
        plan(e, index, e.clock.now + TICK)
        return
    raw_landed(e, slot)
    if slot.losses != origin.losses:
        repeat(e, index, soon(e))
        return
    if not failure_stands(e, index):
        return
    if slot.type == PROBE_SYN and not slot.v6:
        # The checksum covers the source address. If the kernel would choose another one by now, our probe was wrong.
        if resolve_source(origin, slot.address, source) and memcmp(source, slot.source, 4) != 0:
            memcpy(slot.source, source, 4)
            repeat(e, index, soon(e))
            return
    if not timeout_stands(e, index):
        return
    conclude(
        e,
        index,
        False,
        CODE_L3TOUT if slot.type == PROBE_ICMP else CODE_L4TOUT,
        DETAIL_TIMEOUT,
        <uint32_t>((slot.deadline - slot.sent) // MS),
        0,
    )
