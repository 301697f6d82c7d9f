# Origins: opening the sockets that probes leave from, off the engine thread (entering a namespace may wait), and
# noticing when a namespace or a source address is gone, because then silence is our fault and not the target's.


cdef sock_filter op(int code, uint32_t k, int jt=0, int jf=0) noexcept nogil:
    cdef sock_filter line
    line.code = <uint16_t>code
    line.jt = <uint8_t>jt
    line.jf = <uint8_t>jf
    line.k = k
    return line


# Classic BPF, by its numbers: loads absolute and indexed (X), jumps, return.
cdef enum:
    LD_B = 0x30
    LD_H = 0x28
    LD_W = 0x20
    LDX_IHL = 0xb1      # X = 4 * (packet[k] & 15)
    LD_BX = 0x50
    LD_HX = 0x48
    LD_WX = 0x40
    AND = 0x54
    LSH = 0x64
    ADD_X = 0x0c
    TAX = 0x07
    LDX_IMM = 0x01
    JEQ = 0x15
    JGE = 0x35
    JGT = 0x25
    JSET = 0x45
    RET = 0x06


# Jump targets that are filled in when the length of the program is known.
cdef enum:
    TO_ACCEPT = 254
    TO_DROP = 255


cdef int attach_filter(int fd, sock_filter* lines, int count) noexcept nogil:
    cdef sock_fprog program
    cdef int i
    lines[count] = op(RET, RECV_BYTES)
    lines[count + 1] = op(RET, 0)
    for i in range(count):
        if lines[i].code not in (JEQ, JGE, JGT, JSET):
            continue
        if lines[i].jt >= TO_ACCEPT:
            lines[i].jt = <uint8_t>(count - i - 1 + (lines[i].jt == TO_DROP))
        if lines[i].jf >= TO_ACCEPT:
            lines[i].jf = <uint8_t>(count - i - 1 + (lines[i].jf == TO_DROP))
    program.len = <unsigned short>(count + 2)
    program.filter = lines
    return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program))


# Let through: echo replies with our magic; errors that quote an echo request, or a TCP segment from one of our ports.
# An IPv4 raw socket sees the packet with its IP header, an IPv6 one without. A load beyond the end drops the packet.
cdef int filter_icmp(int fd, const Origin* origin) noexcept nogil:
    cdef sock_filter p[40]
    cdef uint32_t low = origin.ports[0] if origin.want_tcp else 0
    cdef uint32_t high = origin.ports[origin.port_count - 1] if origin.want_tcp else 0
    cdef uint32_t magic = <uint32_t>(origin.magic >> 32)
    cdef int quoted_tcp = 0 if origin.want_tcp else TO_DROP
    cdef int quoted_echo = TO_ACCEPT if origin.want_icmp else TO_DROP
    if origin.v6:
        p[0] = op(LD_B, 0)
        p[1] = op(JEQ, 129, 0, 4)
        p[2] = op(LD_W, 8)
        p[3] = op(JEQ, magic, 0, TO_DROP)
        p[4] = op(LD_W, 12)
        p[5] = op(JEQ, <uint32_t>origin.magic, TO_ACCEPT, TO_DROP)
        p[6] = op(JGE, 1, 0, TO_DROP)
        p[7] = op(JGT, 4, TO_DROP, 0)
        p[8] = op(LD_B, 14)                 # the quoted packet's next header
        p[9] = op(JEQ, 58, 0, 2)
        p[10] = op(LD_B, 48)
        p[11] = op(JEQ, 128, quoted_echo, TO_DROP)
        p[12] = op(JEQ, 6, quoted_tcp, TO_DROP)
        p[13] = op(LD_H, 48)
        p[14] = op(JGE, low, 0, TO_DROP)
        p[15] = op(JGT, high, TO_DROP, TO_ACCEPT)
        return attach_filter(fd, p, 16)
    p[0] = op(LDX_IHL, 0)
    p[1] = op(LD_BX, 0)
    p[2] = op(JEQ, 0, 0, 4)
    p[3] = op(LD_WX, 8)
    p[4] = op(JEQ, magic, 0, TO_DROP)
    p[5] = op(LD_WX, 12)
    p[6] = op(JEQ, <uint32_t>origin.magic, TO_ACCEPT, TO_DROP)
    p[7] = op(JEQ, 3, 2, 0)
    p[8] = op(JEQ, 11, 1, 0)
    p[9] = op(JEQ, 12, 0, TO_DROP)
    p[10] = op(LD_BX, 17)                   # the quoted packet's protocol
    p[11] = op(JEQ, 1, 0, 7)
    p[12] = op(LD_BX, 8)                    # its header length: X moves on by it
    p[13] = op(AND, 15)
    p[14] = op(LSH, 2)
    p[15] = op(ADD_X, 0)
    p[16] = op(TAX, 0)
    p[17] = op(LD_BX, 8)
    p[18] = op(JEQ, 8, quoted_echo, TO_DROP)
    p[19] = op(JEQ, 6, quoted_tcp, TO_DROP)
    p[20] = op(LD_BX, 8)
    p[21] = op(AND, 15)
    p[22] = op(LSH, 2)
    p[23] = op(ADD_X, 0)
    p[24] = op(TAX, 0)
    p[25] = op(LD_HX, 8)
    p[26] = op(JGE, low, 0, TO_DROP)
    p[27] = op(JGT, high, TO_DROP, TO_ACCEPT)
    return attach_filter(fd, p, 28)


# Let through: segments to our ports that are a SYN-ACK or an RST.
cdef int filter_tcp(int fd, const Origin* origin) noexcept nogil:
    cdef sock_filter p[10]
    cdef uint32_t low = origin.ports[0]
    cdef uint32_t high = origin.ports[origin.port_count - 1]
    p[0] = op(LDX_IMM, 0) if origin.v6 else op(LDX_IHL, 0)
    p[1] = op(LD_HX, 2)
    p[2] = op(JGE, low, 0, TO_DROP)
    p[3] = op(JGT, high, TO_DROP, 0)
    p[4] = op(LD_BX, 13)
    p[5] = op(JSET, TCP_RST, TO_ACCEPT, 0)
    p[6] = op(AND, TCP_SYN | TCP_ACK)
    p[7] = op(JEQ, TCP_SYN | TCP_ACK, TO_ACCEPT, TO_DROP)
    return attach_filter(fd, p, 8)


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


cdef inline void close_fd(int* fd) noexcept nogil:
    if fd[0] >= 0:
        close(fd[0])
        fd[0] = -1


cdef void origin_close(State* e, Origin* origin) noexcept nogil:
    cdef uint32_t i
    close_fd(&origin.icmp.fd)
    close_fd(&origin.tcp.fd)
    close_fd(&origin.resolver)
    release_ports(origin)
    e.open_sockets -= origin.ports_granted
    origin.ports_granted = 0
    for i in range(origin.pool_count):
        close(origin.pool[i])
    e.open_sockets -= origin.pool_count
    origin.pool_count = 0


# The pieces that are not yet open; returns 0, or the errno with `kind` set to what failed.
cdef int origin_failed(Origin* origin, int kind) noexcept nogil:
    origin.failed_kind = <uint8_t>kind
    origin.failed_errno = errno if errno else EINVAL
    return -1


cdef int origin_bind(Origin* origin, int fd) noexcept nogil:
    cdef sockaddr_in6 name
    cdef socklen_t length
    if not origin.has_source:
        return 0
    length = fill_name(&name, origin.v6, origin.source, 0)
    return bind(fd, <sockaddr*>&name, length)


cdef int open_raw(Origin* origin, RawSocket* raw, bint tcp, uint32_t* allow) noexcept nogil:
    cdef int one = 1
    cdef int space = 4 << 20
    cdef int offset = 16
    cdef int whole = IP_PMTUDISC_DO
    cdef int proto = IPPROTO_TCP if tcp else IPPROTO_ICMPV6 if origin.v6 else IPPROTO_ICMP
    cdef int kind = BLOCK_RAW_TCP if tcp else BLOCK_RAW_ICMP
    raw.tcp = tcp
    raw.drops_seen = 0
    raw.crowded = False
    raw.fd = socket(AF_INET6 if origin.v6 else AF_INET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, proto)
    if raw.fd < 0:
        return origin_failed(origin, kind)
    # The filter comes before anything else: until then every packet of the protocol is queued.
    if (filter_tcp(raw.fd, origin) if tcp else filter_icmp(raw.fd, origin)) < 0:
        return origin_failed(origin, BLOCK_FILTER)
    while recv(raw.fd, &one, sizeof(one), MSG_DONTWAIT) >= 0:
        pass        # what came before the filter did is nobody's: nothing was sent yet
    one = 1
    if not tcp:
        if origin.v6:
            if setsockopt(raw.fd, IPPROTO_ICMPV6, MGL_ICMPV6_FILTER, allow, 32) < 0:
                return origin_failed(origin, BLOCK_FILTER)
        elif setsockopt(raw.fd, MGL_SOL_RAW, MGL_ICMP_FILTER, allow, 4) < 0:
            return origin_failed(origin, BLOCK_FILTER)
    elif origin.v6:
        # The kernel knows the source address that the checksum covers, and checks what comes in.
        if setsockopt(raw.fd, IPPROTO_IPV6, IPV6_CHECKSUM, &offset, sizeof(offset)) < 0:
            return origin_failed(origin, kind)
    elif setsockopt(raw.fd, IPPROTO_IP, IP_HDRINCL, &one, sizeof(one)) < 0:
        return origin_failed(origin, kind)
    if not tcp and origin.whole:
        # Don't Fragment: a packet that cannot be in parts needs no identification, and to make one costs the kernel as
        # much as all that this program does for a probe.
        setsockopt(raw.fd, IPPROTO_IP, IP_MTU_DISCOVER, &whole, sizeof(whole))
    if setsockopt(raw.fd, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof(one)) < 0:
        return origin_failed(origin, kind)
    # Beyond rmem_max only CAP_NET_ADMIN may go; what overflows is noticed and repeated.
    if setsockopt(raw.fd, SOL_SOCKET, SO_RCVBUFFORCE, &space, sizeof(space)) < 0:
        setsockopt(raw.fd, SOL_SOCKET, SO_RCVBUF, &space, sizeof(space))
    if setsockopt(raw.fd, SOL_SOCKET, SO_SNDBUFFORCE, &space, sizeof(space)) < 0:
        setsockopt(raw.fd, SOL_SOCKET, SO_SNDBUF, &space, sizeof(space))
    if origin_bind(origin, raw.fd) < 0:
        return origin_failed(origin, BLOCK_SOURCE)
    return 0


# Bind TCP ports from `port` up to `high` until as many are bound as were granted. Those in use are left out, or end it.
cdef void bind_ports(Origin* origin, uint32_t port, uint32_t high, bint gaps) noexcept nogil:
    cdef sockaddr_in6 name
    cdef uint8_t any_address[16]
    cdef socklen_t length
    cdef int one = 1
    cdef int fd = -1
    memset(any_address, 0, 16)
    while port < high and origin.port_count < origin.ports_granted:
        if fd < 0:
            fd = socket(AF_INET6 if origin.v6 else AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)
            if fd < 0:
                origin_failed(origin, BLOCK_PORTS)
                return
            if origin.v6:
                setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one))
        length = fill_name(&name, origin.v6, any_address, <uint16_t>port)
        if bind(fd, <sockaddr*>&name, length) == 0:
            origin.ports[origin.port_count] = <uint16_t>port
            origin.port_fds[origin.port_count] = fd
            origin.port_count += 1
            fd = -1
        else:
            origin_failed(origin, BLOCK_PORTS)
            if not gaps:
                break
        port += 1
    close_fd(&fd)


cdef void release_ports(Origin* origin) noexcept nogil:
    while origin.port_count:
        origin.port_count -= 1
        close(origin.port_fds[origin.port_count])


# Reserve TCP ports by binding them: no other socket of this host can send from them, so what comes to them is an answer
# to us, and the kernel resets what an answer opened. They are taken from the range that the kernel gives to clients,
# where no service has its fixed port; only a host that has used most of that up falls back on lower ones. They are a
# run if there is one: the filter knows a range, and what comes to other sockets' ports in it is taken in for nothing.
cdef int reserve_ports(State* e, Origin* origin) noexcept nogil:
    cdef uint32_t wanted = origin.ports_granted
    cdef uint32_t attempt, low, high
    cdef uint64_t draw = siphash(&e.key, origin.magic)
    free(origin.ports)
    free(origin.port_fds)
    origin.ports = <uint16_t*>malloc(wanted * sizeof(uint16_t))
    origin.port_fds = <int*>malloc(wanted * sizeof(int))
    if origin.ports is NULL or origin.port_fds is NULL:
        errno_set(ENOMEM)
        return origin_failed(origin, BLOCK_PORTS)
    for attempt in range(12):
        low = 10000
        high = 32000
        if attempt < 11 and e.ephemeral_high >= e.ephemeral_low + 2 * wanted:
            low = e.ephemeral_low
            high = e.ephemeral_high
        # Twice as many as are wanted, or more, are there to be tried.
        bind_ports(origin, low + <uint32_t>(draw % (high - low + 1 - 2 * wanted)), high, attempt >= 8)
        draw = siphash(&e.key, draw)
        if origin.port_count == wanted or (attempt == 11 and origin.port_count >= MIN_PORTS):
            origin.port_turn = port_turn(origin.port_count)
            origin.turn = 0
            origin.turn_at = 0
            return 0
        release_ports(origin)
    return -1


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


# Everything an origin needs, in the present namespace. A failure closes what was opened.
cdef int origin_open_here(State* e, Origin* origin) noexcept nogil:
    cdef uint32_t allow[8]
    origin.resolver = socket(AF_INET6 if origin.v6 else AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)
    if origin.resolver < 0:
        return origin_failed(origin, BLOCK_SOCKET)
    if origin.has_source and not source_is_ours(origin):
        errno_set(EADDRNOTAVAIL)
        return origin_failed(origin, BLOCK_SOURCE)
    if origin.want_tcp and reserve_ports(e, origin) < 0:
        return -1
    if origin.want_icmp or origin.want_tcp:
        # A set bit blocks: all types but replies and errors.
        memset(allow, 0xff, sizeof(allow))
        if origin.v6:
            allow[0] &= ~<uint32_t>((1 << 1) | (1 << 2) | (1 << 3) | (1 << 4))
            allow[4] &= ~<uint32_t>(1 << 1)
        else:
            allow[0] = ~<uint32_t>((1 << 0) | (1 << 3) | (1 << 11) | (1 << 12))
        if open_raw(origin, &origin.icmp, False, allow) < 0:
            return -1
    if origin.want_tcp and open_raw(origin, &origin.tcp, True, NULL) < 0:
        return -1
    return 0


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


# Enter the origin's namespace, and say which one that is. `home`, the descriptor of our own, is the way back, and there
# is no going without it.
cdef int enter(Origin* origin, int home, uint64_t* device, uint64_t* inode) noexcept nogil:
    cdef char path[300]
    cdef stat_t found
    cdef int fd
    cdef size_t length = strlen(origin.netns)
    if length == 0:
        return 0
    if home < 0:
        errno_set(ENOENT)
        return origin_failed(origin, BLOCK_NETNS)
    memcpy(path, b"/run/netns/", 11)
    memcpy(path + 11, origin.netns, length + 1)
    fd = open_fd(path, O_RDONLY | O_CLOEXEC)
    if fd < 0:
        return origin_failed(origin, BLOCK_NETNS)
    if fstat(fd, &found) < 0 or setns(fd, CLONE_NEWNET) < 0:
        origin_failed(origin, BLOCK_NETNS)
        close(fd)
        return -1
    close(fd)
    device[0] = found.st_dev
    inode[0] = found.st_ino
    return 0


cdef void opener_do(State* e, Origin* origin, int home) noexcept nogil:
    cdef int fd
    cdef bint moved = origin.netns[0] != 0
    cdef uint32_t count
    if load32(&origin.state) == ORIGIN_OPENING:
        if enter(origin, home, &origin.ns_dev, &origin.ns_ino) == 0 and origin_open_here(e, origin) == 0:
            if moved:
                setns(home, CLONE_NEWNET)
            store32(&origin.state, ORIGIN_OPEN)
        else:
            if moved:
                setns(home, CLONE_NEWNET)
            store32(&origin.state, ORIGIN_FAILED)
    else:
        count = 0
        origin.stock_errno = 0
        if enter(origin, home, &origin.stock_dev, &origin.stock_ino) < 0:
            origin.stock_errno = origin.failed_errno
        else:
            while count < 64:
                fd = stream_socket(origin)
                if fd < 0:
                    origin.stock_errno = errno
                    break
                origin.stock[count] = fd
                count += 1
        if moved:
            setns(home, CLONE_NEWNET)
        origin.stock_count = count
        store32(&origin.stocking, 2)


# The opener's life. It spends it entering namespaces, which is why it is a thread of its own: a namespace belongs to a
# thread, and the engine's must never be anywhere but at home.
cdef void* opener_main(void* argument) noexcept nogil:
    cdef State* e = <State*>argument
    cdef Origin* origin
    cdef uint64_t one = 1
    cdef sigset_t all_signals
    cdef int home = open_fd(b"/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)
    sigfillset(&all_signals)
    pthread_sigmask(SIG_SETMASK, &all_signals, NULL)
    while True:
        pthread_mutex_lock(&e.opener_lock)
        while e.opener_head == e.opener_tail and not e.opener_stop:
            pthread_cond_wait(&e.opener_wake, &e.opener_lock)
        if e.opener_stop:
            pthread_mutex_unlock(&e.opener_lock)
            break
        origin = e.opener_queue[e.opener_head % OPENER_QUEUE]
        e.opener_head += 1
        pthread_mutex_unlock(&e.opener_lock)
        opener_do(e, origin, home)
        write(e.wake, &one, sizeof(one))
    if home >= 0:
        close(home)
    return NULL


# Those in use are in the queue at most twice each, but some that are in use no more may be there still. Who finds the
# queue full tries again.
cdef bint opener_full(State* e) noexcept nogil:
    cdef bint full
    pthread_mutex_lock(&e.opener_lock)
    full = e.opener_tail - e.opener_head >= OPENER_QUEUE
    pthread_mutex_unlock(&e.opener_lock)
    return full


cdef void opener_ask(State* e, Origin* origin) noexcept nogil:
    pthread_mutex_lock(&e.opener_lock)
    e.opener_queue[e.opener_tail % OPENER_QUEUE] = origin
    e.opener_tail += 1
    pthread_cond_signal(&e.opener_wake)
    pthread_mutex_unlock(&e.opener_lock)


# Ports are descriptors: of those that are left, no more than an eighth to one origin.
cdef void grant_ports(State* e, Origin* origin) noexcept nogil:
    cdef uint32_t share = (e.max_sockets - e.open_sockets) // 8 if e.open_sockets < e.max_sockets else 0
    origin.ports_granted = origin.ports_wanted
    if origin.ports_granted > share:
        origin.ports_granted = share if share > MIN_PORTS else MIN_PORTS
    e.open_sockets += origin.ports_granted


# True when probes may leave from here now; otherwise the way there is under way or will be tried again.
cdef bint origin_ready(State* e, Origin* origin) noexcept nogil:
    cdef uint32_t state = load32(&origin.state)
    if state == ORIGIN_OPEN:
        # Sockets keep a namespace alive that was deleted, and never see the one that was made in its place.
        if e.now - origin.checked_at < SECOND:
            return True
        return origin_sound(e, origin)
    if state == ORIGIN_FAILED and origin.retry_at == 0:
        origin_close(e, origin)
        origin.retry_at = e.now + origin.retry_delay
        if origin.retry_delay < 8 * <int64_t>SECOND:
            origin.retry_delay *= 2
    if (state == ORIGIN_NEW or (state == ORIGIN_FAILED and e.now >= origin.retry_at)) and not opener_full(e):
        origin.retry_at = 0
        origin.state = ORIGIN_OPENING
        if origin.want_tcp:
            grant_ports(e, origin)
        opener_ask(e, origin)
    return False


# Is what this origin stands on still there? Asked before a failure becomes a verdict: a namespace that was deleted or
# made anew, or a source address that went away, lets every target of it look dead.
cdef bint origin_sound(State* e, Origin* origin) noexcept nogil:
    cdef char path[300]
    cdef stat_t found
    cdef size_t length
    if origin.netns[0] == 0 and not origin.has_source:
        origin.checked_at = e.tick_start
        return True
    if load32(&origin.state) != ORIGIN_OPEN:
        return False
    if origin.checked_at == e.tick_start:
        return True
    if origin.netns[0]:
        length = strlen(origin.netns)
        memcpy(path, b"/run/netns/", 11)
        memcpy(path + 11, origin.netns, length + 1)
        if stat(path, &found) < 0 or found.st_ino != origin.ns_ino or found.st_dev != origin.ns_dev:
            errno_set(ENOENT)
            origin_lost(e, origin, BLOCK_NETNS)
            return False
    if origin.has_source and not source_is_ours(origin):
        errno_set(EADDRNOTAVAIL)
        origin_lost(e, origin, BLOCK_SOURCE)
        return False
    origin.checked_at = e.tick_start
    return True


cdef void origin_lost(State* e, Origin* origin, int kind) noexcept nogil:
    origin_failed(origin, kind)
    origin_close(e, origin)
    origin.losses += 1
    origin.retry_delay = 250 * MS
    origin.retry_at = e.now + origin.retry_delay
    origin.state = ORIGIN_FAILED


# The address that the kernel sends from towards this target; False if there is no way (errno).
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
