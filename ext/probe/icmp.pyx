# ICMP echo, on the engine thread: the payload is the magic of the origin (which the filter asks for), a 64-bit cookie,
# and zeros.


# Message `at` of the batch. Always True: nothing can be missing.
cdef bint icmp_build(State* e, Origin* origin, uint32_t at, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef const Check* check = e.checks[slot.check]
    cdef msghdr* header = &e.raw.send.messages[at].msg_hdr
    cdef iovec* parts = &e.raw.send.parts[2 * at]
    cdef size_t left = check.icmp_size - ICMP_MIN_PAYLOAD
    slot.seal = cookie_seal64(&e.settings.key, slot.cookie)
    build_echo(e.raw.send.heads[at], origin.v6, slot.cookie, origin.magic, slot.seal)
    header.msg_namelen = fill_name(&e.raw.send.names[at], origin.v6, slot.address, 0)
    parts[0].iov_base = e.raw.send.heads[at]
    if left <= HEAD_BYTES - ICMP_HEAD:
        memset(e.raw.send.heads[at] + ICMP_HEAD, 0, HEAD_BYTES - ICMP_HEAD)
        parts[0].iov_len = ICMP_HEAD + left
        header.msg_iovlen = 1
    else:
        parts[0].iov_len = ICMP_HEAD
        parts[1].iov_base = e.raw.zeros
        parts[1].iov_len = left
        header.msg_iovlen = 2
    return True
