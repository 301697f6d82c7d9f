# Origins, as the engine thread sees them: ready or not, and noticing when a namespace or a source address is gone,
# because then silence is our fault and not the target's. opener.pyx opens them; `fill_name`, `close_fd`,
# `origin_failed`, `release_ports`, `source_is_ours` and `stream_socket` belong to whichever thread has the origin.


cdef socklen_t fill_name(sockaddr_in6* name, bint v6, const uint8_t* address, uint16_t port) noexcept nogil:
    cdef sockaddr_in* name4 = <sockaddr_in*>name
    if v6:
        memset(name, 0, sizeof(sockaddr_in6))
        name.sin6_family = AF_INET6
        name.sin6_port = htons(port)
        memcpy(&name.sin6_addr, address, 16)
        return sizeof(sockaddr_in6)
    memset(name4, 0, sizeof(sockaddr_in))
    name4.sin_family = AF_INET
    name4.sin_port = htons(port)
    memcpy(&name4.sin_addr, address, 4)
    return sizeof(sockaddr_in)


# The name of a SYN's target for a raw socket. IPv6 takes the port for the protocol; IPv4 does not look at it.
cdef inline socklen_t raw_name(sockaddr_in6* name, bint v6, const uint8_t* address) noexcept nogil:
    return fill_name(name, v6, address, IPPROTO_TCP)


cdef inline void close_fd(int* fd) noexcept nogil:
    if fd[0] >= 0:
        close(fd[0])
        fd[0] = -1


# The pieces that are not yet open; returns 0, or the errno with `kind` set to what failed.
cdef int origin_failed(Origin* origin, int kind) noexcept nogil:
    origin.failure.kind = <uint8_t>kind
    origin.failure.error = errno if errno else EINVAL
    return -1


cdef void release_ports(Origin* origin) noexcept nogil:
    while origin.ports.count:
        origin.ports.count -= 1
        close(origin.ports.fds[origin.ports.count])


# Does the origin's namespace have its source address? MSG_PROBE asks the routing table and sends nothing. (What
# connect() and getsockname() tell is not the answer: towards a secondary address the kernel prefers the primary.)
cdef bint source_is_ours(Origin* origin) noexcept nogil:
    cdef sockaddr_in6 name
    cdef msghdr header
    cdef char control[64]
    cdef cmsghdr* item
    cdef in_pktinfo info4
    cdef in6_pktinfo info6
    memset(&header, 0, sizeof(header))
    memset(control, 0, sizeof(control))
    header.msg_name = &name
    header.msg_namelen = fill_name(&name, origin.v6, origin.source, 9)
    header.msg_control = control
    header.msg_controllen = sizeof(control)
    item = CMSG_FIRSTHDR(&header)
    if origin.v6:
        memset(&info6, 0, sizeof(info6))
        memcpy(&info6.ipi6_addr, origin.source, 16)
        item.cmsg_level = IPPROTO_IPV6
        item.cmsg_type = IPV6_PKTINFO
        item.cmsg_len = CMSG_LEN(sizeof(info6))
        memcpy(CMSG_DATA(item), &info6, sizeof(info6))
        header.msg_controllen = CMSG_SPACE(sizeof(info6))
    else:
        memset(&info4, 0, sizeof(info4))
        memcpy(&info4.ipi_spec_dst, origin.source, 4)
        item.cmsg_level = IPPROTO_IP
        item.cmsg_type = IP_PKTINFO
        item.cmsg_len = CMSG_LEN(sizeof(info4))
        memcpy(CMSG_DATA(item), &info4, sizeof(info4))
        header.msg_controllen = CMSG_SPACE(sizeof(info4))
    return sendmsg(origin.resolver, &header, MSG_DONTWAIT | MSG_CONFIRM | MSG_PROBE) >= 0


cdef int stream_socket(const Origin* origin) noexcept nogil:
    cdef int one = 1
    cdef linger hard
    cdef sockaddr_in6 name
    cdef socklen_t length
    cdef int error
    cdef int fd = socket(AF_INET6 if origin.v6 else AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)
    if fd < 0:
        return -1
    hard.l_onoff = 1
    hard.l_linger = 0
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard))
    if origin.v6:
        # An IPv4-mapped address would be reached over IPv4, with all that goes by the family taken for the other one.
        # A raw socket knows no mapped addresses (and refuses the option).
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one))
    # On a client: the bare third ACK of the handshake waits, so that the request, or our RST, takes its place. Unlike
    # TCP_QUICKACK it outlives connect() to AF_UNSPEC, and with that the reuse of the socket.
    setsockopt(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, &one, sizeof(one))
    setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof(one))
    if origin.has_source:
        setsockopt(fd, IPPROTO_IP, MGL_IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one))
        length = fill_name(&name, origin.v6, origin.source, 0)
        if bind(fd, <sockaddr*>&name, length) < 0:
            error = errno
            close(fd)
            errno_set(error)
            return -1
    return fd


cdef void origin_close(State* e, Origin* origin) noexcept nogil:
    cdef uint32_t i
    close_fd(&origin.icmp.fd)
    close_fd(&origin.tcp.fd)
    close_fd(&origin.resolver)
    close_fd(&origin.netlink)
    close_fd(&origin.aside[0])
    close_fd(&origin.aside[1])
    origin.interface_count = 0
    release_ports(origin)
    e.streams.open_sockets -= origin.ports.granted
    origin.ports.granted = 0
    for i in range(origin.pool.count):
        close(origin.pool.fds[i])
    e.streams.open_sockets -= origin.pool.count
    origin.pool.count = 0


# Those in use are in the queue at most twice each, but some that are in use no more may be there still. A caller that
# finds the queue full tries again.
cdef bint opener_full(State* e) noexcept nogil:
    cdef bint full
    pthread_mutex_lock(&e.opener.lock)
    full = e.opener.tail - e.opener.head >= OPENER_QUEUE
    pthread_mutex_unlock(&e.opener.lock)
    return full


cdef void opener_ask(State* e, Origin* origin) noexcept nogil:
    pthread_mutex_lock(&e.opener.lock)
    e.opener.queue[e.opener.tail % OPENER_QUEUE] = origin
    e.opener.tail += 1
    pthread_cond_signal(&e.opener.wake)
    pthread_mutex_unlock(&e.opener.lock)


# Ports are descriptors: of those that are left, no more than an eighth to one origin.
cdef void grant_ports(State* e, Origin* origin) noexcept nogil:
    cdef uint32_t most = e.settings.max_sockets
    cdef uint32_t used = e.streams.open_sockets
    cdef uint32_t share = (most - used) // 8 if used < most else 0
    origin.ports.granted = origin.ports.wanted
    if origin.ports.granted > share:
        origin.ports.granted = share if share > MIN_PORTS else MIN_PORTS
    e.streams.open_sockets += origin.ports.granted


# True when probes may leave from here now; otherwise the way there is under way or will be tried again.
cdef bint origin_ready(State* e, Origin* origin) noexcept nogil:
    cdef uint32_t state = load32(&origin.state)
    if state == ORIGIN_OPEN:
        # Sockets keep a namespace alive that was deleted, and never see the one that was made in its place.
        if e.clock.now - origin.checked_at < SECOND:
            return True
        return origin_sound(e, origin)
    if state == ORIGIN_FAILED and origin.failure.retry_at == 0:
        origin_close(e, origin)
        origin.failure.retry_at = e.clock.now + origin.failure.retry_delay
        if origin.failure.retry_delay < 8 * <int64_t>SECOND:
            origin.failure.retry_delay *= 2
    if state == ORIGIN_OPENING or (state == ORIGIN_FAILED and e.clock.now < origin.failure.retry_at):
        return False
    if not opener_full(e):
        origin.failure.retry_at = 0
        origin.state = ORIGIN_OPENING
        if origin.want_tcp:
            grant_ports(e, origin)
        opener_ask(e, origin)
    return False


# Is what this origin stands on still there? Asked before a failure becomes a verdict: a namespace that was deleted or
# recreated, or a source address that went away, lets every target of it look dead.
cdef bint origin_sound(State* e, Origin* origin) noexcept nogil:
    cdef char path[300]
    cdef stat_t found
    cdef size_t length
    if origin.netns.name[0] == 0 and not origin.has_source:
        origin.checked_at = e.clock.tick_start
        return True
    if load32(&origin.state) != ORIGIN_OPEN:
        return False
    if origin.checked_at == e.clock.tick_start:
        return True
    if origin.netns.name[0]:
        length = strlen(origin.netns.name)
        memcpy(path, b"/run/netns/", 11)
        memcpy(path + 11, origin.netns.name, length + 1)
        if stat(path, &found) < 0 or found.st_ino != origin.netns.inode or found.st_dev != origin.netns.device:
            errno_set(ENOENT)
            origin_lost(e, origin, BLOCK_NETNS)
            return False
    if origin.has_source and not source_is_ours(origin):
        errno_set(EADDRNOTAVAIL)
        origin_lost(e, origin, BLOCK_SOURCE)
        return False
    origin.checked_at = e.clock.tick_start
    return True


cdef void origin_lost(State* e, Origin* origin, int kind) noexcept nogil:
    origin_failed(origin, kind)
    origin_close(e, origin)
    origin.losses += 1
    origin.failure.retry_delay = 250 * MS
    origin.failure.retry_at = e.clock.now + origin.failure.retry_delay
    origin.state = ORIGIN_FAILED


# The address that the kernel sends from towards this target; False without a route (errno).
cdef bint resolve_source(Origin* origin, const uint8_t* address, uint8_t* source) noexcept nogil:
    cdef sockaddr_in name
    cdef sockaddr_in own
    cdef socklen_t length = sizeof(own)
    cdef int result
    if origin.has_source:
        memcpy(source, origin.source, 4)
        return True
    memset(&name, 0, sizeof(name))
    name.sin_family = AF_UNSPEC
    connect(origin.resolver, <sockaddr*>&name, sizeof(name))
    name.sin_family = AF_INET
    name.sin_port = htons(9)
    memcpy(&name.sin_addr, address, 4)
    result = connect(origin.resolver, <sockaddr*>&name, sizeof(name))
    if result < 0 or getsockname(origin.resolver, <sockaddr*>&own, &length) < 0:
        return False
    memcpy(source, &own.sin_addr, 4)
    return True


# An origin that the opener has in hand cannot go before it is back.
cdef void origin_release(State* e, Origin* origin) noexcept nogil:
    if load32(&origin.state) == ORIGIN_OPENING or load32(&origin.stock.state) == STOCK_ASKED:
        e.origins.doomed[e.origins.doomed_count] = origin
        e.origins.doomed_count += 1
    else:
        origin_free(e, origin)


cdef void origins_sweep(State* e) noexcept nogil:
    cdef uint32_t i = 0
    cdef Origin* origin
    while i < e.origins.doomed_count:
        origin = e.origins.doomed[i]
        if load32(&origin.state) == ORIGIN_OPENING or load32(&origin.stock.state) == STOCK_ASKED:
            i += 1
            continue
        e.origins.doomed_count -= 1
        e.origins.doomed[i] = e.origins.doomed[e.origins.doomed_count]
        origin_free(e, origin)
