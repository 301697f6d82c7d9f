# Half-open TCP: a SYN from a raw socket. The kernel, which knows of no such connection, resets what the answer opens.


# How long a turn of so many ports is. There is one port more than the rest needs: what leaves at the end of a turn may
# be stamped at the beginning of the next.
cdef inline int64_t port_turn(uint32_t count) noexcept nogil:
    return PORT_REST * <int64_t>SECOND // (count - 2)


cdef inline void turn_ports(Origin* origin, int64_t now) noexcept nogil:
    if now - origin.ports.turn_at >= origin.ports.turn_length:
        origin.ports.turn = now // origin.ports.turn_length
        origin.ports.turn_at = origin.ports.turn * origin.ports.turn_length


# Which of the ports a target has in the present turn. Neighbours begin far apart.
cdef inline uint32_t port_at(const Origin* origin, uint32_t index) noexcept nogil:
    return <uint32_t>((<uint64_t>origin.ports.turn + (index * <uint32_t>0x9e3779b1 >> 16)) % origin.ports.count)


# Ports change by turns: in each a target has one, and has it again when all others had theirs, which takes a minute.
# With a lost reset the server may still have what an older SYN from a port opened, and would answer the next from there
# with a bare ACK. A target that had its port in this turn waits for the next turn, which is our own trouble.
cdef bint syn_may_leave(State* e, Origin* origin, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    turn_ports(origin, e.clock.now)
    if slot.sent < origin.ports.turn_at:
        return True
    count_wait(e, slot, STAT_LATE_PORT)
    slot.flags |= SLOT_SPREAD
    plan(e, index, origin.ports.turn_at + origin.ports.turn_length)
    return False


cdef bint port_is_ours(const Origin* origin, uint16_t port) noexcept nogil:
    cdef uint32_t low = 0
    cdef uint32_t high = origin.ports.count
    cdef uint32_t middle
    while low < high:
        middle = (low + high) // 2
        if origin.ports.numbers[middle] == port:
            return True
        if origin.ports.numbers[middle] < port:
            low = middle + 1
        else:
            high = middle
    return False


# Message `at` of the batch; False if the kernel knows no way there, and the probe has ended with that.
cdef bint syn_build(State* e, Origin* origin, uint32_t at, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef const Check* check = e.checks[slot.check]
    cdef msghdr* header = &e.raw.send.messages[at].msg_hdr
    cdef iovec* parts = &e.raw.send.parts[2 * at]
    slot.own_port = origin.ports.numbers[port_at(origin, index)]
    parts[0].iov_base = e.raw.send.heads[at]
    if origin.v6:
        build_syn(e.raw.send.heads[at], slot.own_port, check.port, slot.cookie)
        parts[0].iov_len = TCP_HEAD
    else:
        if slot.source[0] == 0 and not resolve_source(origin, slot.address, slot.source):
            send_refused(e, index, errno)
            return False
        build_syn4(e.raw.send.heads[at], slot.source, slot.address, slot.own_port, check.port, slot.cookie)
        parts[0].iov_len = IP4_HEAD + TCP_HEAD
    header.msg_namelen = fill_name(&e.raw.send.names[at], origin.v6, slot.address, 0)
    header.msg_iovlen = 1
    return True
