# Half-open TCP: a SYN from a raw socket. The kernel, which knows of no such connection, resets what the answer opens.


# Message `at` of the batch; False if the kernel knows no way there, and the probe has ended with that.
cdef bint syn_build(State* e, Origin* origin, uint32_t at, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef const Check* check = e.checks[slot.check]
    cdef msghdr* header = &e.out.messages[at].msg_hdr
    cdef iovec* parts = &e.out.parts[2 * at]
    # Ports in turn: one is used again for a target only after all others. An answer to an older SYN from the same port
    # would otherwise find the server's half-open connection of then.
    slot.own_port = <uint16_t>(origin.port_base + (index + slot.serial) % origin.port_count)
    parts[0].iov_base = e.out.heads[at]
    if origin.v6:
        build_syn(e.out.heads[at], slot.own_port, check.port, slot.cookie)
        parts[0].iov_len = TCP_HEAD
    else:
        if slot.source[0] == 0 and not resolve_source(origin, slot.address, slot.source):
            send_refused(e, index, errno)
            return False
        build_syn4(e.out.heads[at], slot.source, slot.address, slot.own_port, check.port, slot.cookie)
        parts[0].iov_len = IP4_HEAD + TCP_HEAD
    header.msg_namelen = fill_name(&e.out.names[at], origin.v6, slot.address, 0)
    header.msg_iovlen = 1
    return True
