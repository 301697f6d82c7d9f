# The reserved TCP ports of an origin: which one a target's SYN leaves from, and which ones are ours.

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from probe.state cimport PORT_REST, SECOND, Origin


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


cdef inline bint port_is_ours(const Origin* origin, uint16_t port) noexcept nogil:
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
