# Half-open TCP, on the engine thread: a SYN from a raw socket. The kernel knows of no such connection; so when the
# SYN-ACK comes, it answers with an RST by itself, and the server's backlog is free again. That is also why the source
# ports are bound (opener.pyx): an RST is sent only where no listening or connected socket has the port.


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
    header.msg_namelen = raw_name(&e.raw.send.names[at], origin.v6, slot.address)
    header.msg_iovlen = 1
    return True
