# A connection has failed, or got no answer: is that the server, or did our packets never leave this host? On the
# engine thread, of connections that are about to fail, of targets that are not down. This file finds out for
# connections what evidence.pyx decides for packets; "not probed" has the same reasons.
#
# The connecting socket shows little: a packet that our own packet filter drops, a full connection tracking table and a
# queue that drops an older packet leave no trace in it at all. So a twin of its SYN follows it by a raw socket
# (departure.pyx), which is refused where the connection's own was, and gives stamps where it leaves.
#
#   connect() refused at once      our own routing, or no buffer: evidence.pyx, as for packets. No free port, no such
#                                  source: a local error.
#   refused by an answer           a firewall of ours can make both a reset and an ICMP error. The twin decides: refused
#                                  (EPERM) it was ours, else the server's or a router's. "Host unreachable" comes from
#                                  our own address for a dead host on our link: a failed probe, with carrier.
#   no answer to the SYN           In this order, the first that applies:
#     SO_ERROR is set              An error that came while the kernel worked on this very socket: our own packet
#                                  filter rejects within connect(), and the socket goes on trying. As above.
#     ca_state 2 (CWR)             Our own queue has refused the SYN. After the first retransmission it is 4.
#     wmem_alloc > 0               The SYN is still in this host: in our queue, or it waits for its neighbour.
#     otherwise the twin           Refused, or no SND stamp: it was us. With a stamp: a failed probe.
#   no answer to the request       With nothing unacknowledged the server has all of it: a failed probe. Otherwise what
#                                  we sent may not have left, and the same questions are asked.
#
# A twin that left proves the twin's way, and the neighbour table may have had room for it alone: with more servers on a
# link than it holds, entries come and go. If the next hop's entry is younger than the connection, the connection is
# repeated once, while the entry is there; a failure with an older entry, or of the repetition, is the server's.
#
# For ca_state and wmem_alloc the next hop decides: one that answers no neighbour discovery is a dead host on our link.
#
# Two things stay hidden: a queue of ours that drops the SYN but lets its twin out, and a packet filter that drops a
# connection's later packets but lets SYNs out.


# The connection's stream ends, and its twin is sent. 0: it is out; ENOTSUP: it could not be tried; else the errno that
# it was refused with.
cdef int proof_twin(State* e, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef Origin* origin = e.origins.table[slot.origin]
    cdef sockaddr_in6 local
    cdef socklen_t length = sizeof(local)
    cdef bint named = getsockname(e.streams.table[slot.stream].fd, <sockaddr*>&local, &length) == 0
    cdef int error
    stream_end(e, slot.stream)
    e.evidence.asks += 1
    slot.evidence &= ~EVIDENCE_OF_PROBE
    slot.left_by = 0
    if not named or local.sin6_port == 0:
        return ENOTSUP
    error = twin_send(e, index, &local)
    if error == 0 and slot.evidence & EVIDENCE_LEFT and slot.left_by:
        origin.interfaces[slot.left_by - 1].stamps = STAMPS_WORK
    return error


# The probe waits for the proof; `code` is its failure if there is none. The wheel may hold an earlier look, of the
# connection.
cdef void proof_wait(State* e, uint32_t index, int code, int64_t wait) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    slot.phase = PHASE_PROVING
    slot.own_port = <uint16_t>code
    wheel_remove(&e.wheel, index)
    plan(e, index, e.clock.now + wait)


cdef void proof_timeout(State* e, uint32_t index, int code) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    conclude(e, index, False, code, DETAIL_TIMEOUT, <uint32_t>((slot.deadline - slot.sent) // MS), 0)


# The wheel gave out a slot whose proof is due.
cdef void proof_visit(State* e, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef Origin* origin = e.origins.table[slot.origin]
    cdef bint left, again
    if not may_ask(e):
        plan(e, index, e.clock.now + TICK)
        return
    slot.phase = PHASE_IDLE
    if slot.losses != origin.losses:
        repeat(e, index, soon(e))
        return
    # Before `silence_stands`, which forgets both.
    departures_read(e, origin, 1)
    left = slot.evidence & EVIDENCE_LEFT
    again = slot.evidence & EVIDENCE_AGAIN
    if not failure_stands(e, index) or not silence_stands(e, index):
        return
    if slot.own_port == CODE_L4TOUT and left and not again and proof_too_young(e, origin, slot):
        slot.evidence |= EVIDENCE_AGAIN
        repeat(e, index, soon(e))
    else:
        proof_timeout(e, index, slot.own_port)


# Was the next hop's neighbour entry made or changed after the connection's SYN?
cdef bint proof_too_young(State* e, Origin* origin, const Slot* slot) noexcept nogil:
    cdef Way way
    slot_way(origin, slot, &way)
    if not way.asked or way.error or hop_ask(origin, &way) != HOP_SOUND or way.hop_age < 0:
        return False
    return way.hop_age <= e.clock.now - slot.sent + 10 * MS


# Does the way to a target lead to a dead host on our link? BLOCK_NONE: it does. BLOCK_LINK, BLOCK_QUEUE, BLOCK_ROUTE:
# that proves nothing, since our interface is down, nothing leaves by it, or the way is another than at the last pass.
# -1: it does not; -2: nor does it lead over a router.
cdef int proof_dead_host(State* e, Origin* origin, const Slot* slot) noexcept nogil:
    cdef Way way
    cdef uint8_t place
    e.evidence.asks += 1
    slot_way(origin, slot, &way)
    if not way.asked or way.error:
        return -1
    place = interface_place(origin, way.interface)
    if not interface_up(e, origin, place):
        return BLOCK_LINK
    if leads_elsewhere(origin, slot, place):
        return route_kind(e, origin, <uint32_t>(slot - e.slots))
    if hop_ask(origin, &way) != HOP_SILENT:
        return -2 if memcmp(way.hop, slot.address, 16 if origin.v6 else 4) == 0 else -1
    return egress_kind(e, origin, place, slot.sent)


# The connection was refused by an answer.
cdef void proof_of_answer(State* e, uint32_t index, int code, int error, int64_t span) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef int dead = -1
    cdef int refused
    if error == EHOSTUNREACH:
        dead = proof_dead_host(e, e.origins.table[slot.origin], slot)
    if dead == -2 and not slot.evidence & EVIDENCE_AGAIN:
        # The kernel has forgotten the neighbour while the SYN waited for it, as on `ip neigh flush`.
        slot.evidence |= EVIDENCE_AGAIN
        stream_end(e, slot.stream)
        repeat(e, index, soon(e))
        return
    if dead >= 0:
        stream_end(e, slot.stream)
        if dead != BLOCK_NONE:
            block(e, index, dead, 0)
            return
        refused = 0     # and no twin waits for the neighbour, too
    else:
        refused = proof_twin(e, index)
    if refused and refused != ENOTSUP:
        if not refusal_stands(e, index, refused):
            return
    elif not failure_stands(e, index):
        return
    slot.evidence &= ~EVIDENCE_AGAIN
    conclude(e, index, False, code, DETAIL_ERRNO, error, span)


# Nothing came in time, and no stall of ours explains it.
cdef void proof_of_silence(State* e, uint32_t index, int code) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef Stream* stream = &e.streams.table[slot.stream]
    cdef tcp_info info
    cdef uint32_t memory[SK_MEMINFO_VARS]
    cdef socklen_t length = sizeof(info)
    cdef int error = 0
    memset(&info, 0, sizeof(info))
    memset(memory, 0, sizeof(memory))
    getsockopt(stream.fd, IPPROTO_TCP, TCP_INFO, &info, &length)
    length = sizeof(memory)
    getsockopt(stream.fd, SOL_SOCKET, SO_MEMINFO, memory, &length)
    if stream.made and info.tcpi_unacked == 0:
        stream_end(e, slot.stream)
        if failure_stands(e, index):
            proof_timeout(e, index, code)
        return
    length = sizeof(error)
    if not stream.made and getsockopt(stream.fd, SOL_SOCKET, SO_ERROR, &error, &length) == 0 and error:
        proof_of_answer(e, index, CODE_L4CON, error, 0)
        return
    if info.tcpi_ca_state == CA_CWR or memory[SK_MEMINFO_WMEM_ALLOC]:
        stream_end(e, slot.stream)
        # As a stamped packet that did not leave; no stamp of an earlier twin may pass for one of this.
        slot.serial = (slot.serial + 1) & SERIAL_MASK
        slot.cookie = cookie_seal(&e.settings.key, (index << SERIAL_BITS) | slot.serial)
        slot.evidence = (slot.evidence & ~EVIDENCE_OF_PROBE) | EVIDENCE_STAMPED
        slot.left_by = 0
        proof_wait(e, index, code, TICK)
        return
    error = proof_twin(e, index)
    if error == 0 and not slot.evidence & EVIDENCE_LEFT:
        proof_wait(e, index, code, TWIN_WAIT)
    elif error == 0 or error == ENOTSUP:
        proof_wait(e, index, code, TICK)
    elif refusal_stands(e, index, error):
        proof_timeout(e, index, code)


# connect() refused at once.
cdef void proof_of_refusal(State* e, uint32_t index, int error) noexcept nogil:
    stream_end(e, e.slots[index].stream)
    if error == EADDRNOTAVAIL or error == EAFNOSUPPORT:
        block(e, index, BLOCK_CONNECT, error)
    elif refusal_stands(e, index, error):
        conclude(e, index, False, CODE_L4CON, DETAIL_ERRNO, error, 0)


# A connection has passed, and its stream ends. Whether the driver of its interface gives stamps can be told in good
# times only: where that is not known yet, a twin follows the connection, to one target in a minute.
cdef void proof_passed(State* e, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef Origin* origin = e.origins.table[slot.origin]
    cdef Interface* interface
    if 0 < slot.interface <= origin.interface_count and origin.aside[1] >= 0:
        interface = &origin.interfaces[slot.interface - 1]
        if interface.stamps == STAMPS_UNKNOWN and (
            interface.tried_at == 0 or e.clock.now - interface.tried_at > TWIN_LEARNING * <int64_t>SECOND
        ):
            interface.tried_at = e.clock.now
            proof_twin(e, index)
            slot.evidence = 0
            return
    stream_leave(e, index)
