# The opener thread: it opens the sockets of origins and makes stocks of stream sockets, since entering a namespace may
# wait, and since a namespace belongs to a thread: the engine's must never be anywhere but at home.


cdef int origin_bind(Origin* origin, int fd) noexcept nogil:
    cdef sockaddr_in6 name
    cdef socklen_t length
    if not origin.has_source:
        return 0
    length = fill_name(&name, origin.v6, origin.source, 0)
    return bind(fd, <sockaddr*>&name, length)


# Don't Fragment: a packet that cannot be in parts needs no identification, and to make one costs the kernel as much as
# all that this program does for a probe.
cdef void whole_packets(int fd) noexcept nogil:
    cdef int whole = IP_PMTUDISC_DO
    setsockopt(fd, IPPROTO_IP, IP_MTU_DISCOVER, &whole, sizeof(whole))


cdef int open_raw(Origin* origin, RawSocket* raw, bint tcp, uint32_t* allow) noexcept nogil:
    cdef int one = 1
    cdef int space = 4 << 20
    cdef int offset = 16
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
        pass        # packets from before the filter are not ours: nothing was sent yet
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
        whole_packets(raw.fd)
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


# Did a socket fail to open for lack of descriptors or memory? That passes, and the origin is opened again later. An
# origin without the sockets that prove things would take our own trouble for dead servers for as long as it lives.
cdef inline bint short_of_something(int error) noexcept nogil:
    return error in (EMFILE, ENFILE, ENOMEM, ENOBUFS)


# The socket for stamped probes of a protocol. A connect check does without where this process may not open one.
#
# It must cost nothing while probes pass. The kernel clones each packet of a protocol for every raw socket of it, before
# any socket filter runs: half a microsecond a probe. So the TCP one has the protocol IPPROTO_RAW, of which no packets
# come in, and names TCP in what it sends (`raw_name`). The ICMP one blocks all types, which the kernel looks at first.
cdef int open_aside(Origin* origin, bint tcp, bint needed) noexcept nogil:
    cdef int* fd = &origin.aside[1 if tcp else 0]
    cdef int zero = 0
    cdef int space = 4 << 20
    cdef int offset = 16
    cdef int proto = IPPROTO_RAW if tcp else IPPROTO_ICMPV6 if origin.v6 else IPPROTO_ICMP
    cdef int kind = BLOCK_RAW_TCP if tcp else BLOCK_RAW_ICMP
    cdef uint32_t block[8]
    memset(block, 0xff, sizeof(block))
    fd[0] = socket(AF_INET6 if origin.v6 else AF_INET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, proto)
    if fd[0] < 0:
        return origin_failed(origin, kind) if needed or short_of_something(errno) else 0
    if aside_prepare(fd[0], origin.v6) < 0:
        return origin_failed(origin, BLOCK_FILTER)
    if tcp and origin.v6:
        # IPPROTO_RAW means that the caller writes the IP header. IPv4 probes do; for IPv6 the kernel does it.
        if setsockopt(fd[0], IPPROTO_IPV6, IPV6_HDRINCL, &zero, sizeof(zero)) < 0:
            return origin_failed(origin, kind)
        if setsockopt(fd[0], IPPROTO_IPV6, IPV6_CHECKSUM, &offset, sizeof(offset)) < 0:
            return origin_failed(origin, kind)
    elif not tcp and origin.v6:
        if setsockopt(fd[0], IPPROTO_ICMPV6, MGL_ICMPV6_FILTER, block, 32) < 0:
            return origin_failed(origin, BLOCK_FILTER)
    elif not tcp:
        if setsockopt(fd[0], MGL_SOL_RAW, MGL_ICMP_FILTER, block, 4) < 0:
            return origin_failed(origin, BLOCK_FILTER)
        if origin.whole:
            whole_packets(fd[0])
    if setsockopt(fd[0], SOL_SOCKET, SO_SNDBUFFORCE, &space, sizeof(space)) < 0:
        setsockopt(fd[0], SOL_SOCKET, SO_SNDBUF, &space, sizeof(space))
    if origin_bind(origin, fd[0]) < 0:
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
    while port < high and origin.ports.count < origin.ports.granted:
        if fd < 0:
            fd = socket(AF_INET6 if origin.v6 else AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)
            if fd < 0:
                origin_failed(origin, BLOCK_PORTS)
                return
            if origin.v6:
                setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one))
        length = fill_name(&name, origin.v6, any_address, <uint16_t>port)
        if bind(fd, <sockaddr*>&name, length) == 0:
            origin.ports.numbers[origin.ports.count] = <uint16_t>port
            origin.ports.fds[origin.ports.count] = fd
            origin.ports.count += 1
            fd = -1
        else:
            origin_failed(origin, BLOCK_PORTS)
            if not gaps:
                break
        port += 1
    close_fd(&fd)


# Reserve TCP ports by binding them: no other socket of this host can send from them, so what comes to them is an answer
# to us, and the kernel resets what an answer opened. They are taken from the range that the kernel gives to clients,
# where no service has its fixed port; only a host that has used most of that up falls back on lower ones. They are a
# run if there is one: the filter knows a range, and packets to other sockets' ports in it are received for nothing.
cdef int reserve_ports(Opener* opener, Origin* origin) noexcept nogil:
    cdef uint32_t wanted = origin.ports.granted
    cdef uint32_t attempt, low, high
    cdef uint64_t draw = siphash(&opener.settings.key, origin.magic)
    free(origin.ports.numbers)
    free(origin.ports.fds)
    origin.ports.numbers = <uint16_t*>malloc(wanted * sizeof(uint16_t))
    origin.ports.fds = <int*>malloc(wanted * sizeof(int))
    if origin.ports.numbers is NULL or origin.ports.fds is NULL:
        errno_set(ENOMEM)
        return origin_failed(origin, BLOCK_PORTS)
    for attempt in range(12):
        low = 10000
        high = 32000
        if attempt < 11 and opener.settings.ephemeral_high >= opener.settings.ephemeral_low + 2 * wanted:
            low = opener.settings.ephemeral_low
            high = opener.settings.ephemeral_high
        # Twice as many as are wanted, or more, are there to be tried.
        bind_ports(origin, low + <uint32_t>(draw % (high - low + 1 - 2 * wanted)), high, attempt >= 8)
        draw = siphash(&opener.settings.key, draw)
        if origin.ports.count == wanted or (attempt == 11 and origin.ports.count >= MIN_PORTS):
            origin.ports.turn_length = port_turn(origin.ports.count)
            origin.ports.turn = 0
            origin.ports.turn_at = 0
            return 0
        release_ports(origin)
    return -1


# Everything an origin needs, in the present namespace. A failure closes what was opened.
cdef int origin_open_here(Opener* opener, Origin* origin) noexcept nogil:
    cdef uint32_t allow[8]
    origin.resolver = socket(AF_INET6 if origin.v6 else AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)
    if origin.resolver < 0:
        return origin_failed(origin, BLOCK_SOCKET)
    origin.netlink = netlink_open()
    if origin.netlink < 0 and short_of_something(errno):
        return origin_failed(origin, BLOCK_SOCKET)
    if origin.has_source and not source_is_ours(origin):
        errno_set(EADDRNOTAVAIL)
        return origin_failed(origin, BLOCK_SOURCE)
    if origin.want_tcp and reserve_ports(opener, origin) < 0:
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
    # The ICMP one also sends packets that need no neighbour (`egress_kind`).
    if open_aside(origin, False, origin.want_icmp) < 0:
        return -1
    if not origin.want_icmp and open_aside(origin, True, origin.want_tcp) < 0:
        return -1
    if origin.want_tcp and open_raw(origin, &origin.tcp, True, NULL) < 0:
        return -1
    return 0


# Enters the origin's namespace and says which one it is. -1 with errno set: the thread is still at home. `home`, the
# descriptor of the daemon's namespace, is the way back; without it nothing is entered.
cdef int enter(const Origin* origin, int home, uint64_t* device, uint64_t* inode) noexcept nogil:
    cdef char path[300]
    cdef stat_t found
    cdef int fd, error
    cdef size_t length = strlen(origin.netns.name)
    if length == 0:
        return 0
    if home < 0:
        errno_set(ENOENT)
        return -1
    memcpy(path, b"/run/netns/", 11)
    memcpy(path + 11, origin.netns.name, length + 1)
    fd = open_fd(path, O_RDONLY | O_CLOEXEC)
    if fd < 0:
        return -1
    if fstat(fd, &found) < 0 or setns(fd, CLONE_NEWNET) < 0:
        error = errno
        close(fd)
        errno_set(error)
        return -1
    close(fd)
    device[0] = found.st_dev
    inode[0] = found.st_ino
    return 0


# Stream sockets made in the origin's namespace, as many as a stock holds.
cdef void opener_stock(Origin* origin, int home) noexcept nogil:
    cdef Stock* stock = &origin.stock
    cdef int fd
    stock.error = 0
    stock.count = 0
    if enter(origin, home, &stock.device, &stock.inode) < 0:
        stock.error = errno
        return
    while stock.count < STOCK_SIZE:
        fd = stream_socket(origin)
        if fd < 0:
            stock.error = errno
            return
        stock.fds[stock.count] = fd
        stock.count += 1


# One request of the engine: an origin to be opened, or an open one to be stocked. The store at the end gives it
# back.
cdef void opener_do(Opener* opener, Origin* origin, int home) noexcept nogil:
    cdef bint opening = load32(&origin.state) == ORIGIN_OPENING
    cdef bint opened = False
    if not opening:
        opener_stock(origin, home)
    elif enter(origin, home, &origin.netns.device, &origin.netns.inode) < 0:
        origin_failed(origin, BLOCK_NETNS)
    else:
        opened = origin_open_here(opener, origin) == 0
    if origin.netns.name[0]:
        setns(home, CLONE_NEWNET)
    if opening:
        store32(&origin.state, ORIGIN_OPEN if opened else ORIGIN_FAILED)
    else:
        store32(&origin.stock.state, STOCK_THERE)


# The opener's life. It spends it entering namespaces, which is why it is a thread of its own: a namespace belongs to a
# thread, and the engine's must never be anywhere but at home.
cdef void* opener_main(void* argument) noexcept nogil:
    cdef Opener* opener = <Opener*>argument
    cdef Origin* origin
    cdef uint64_t one = 1
    cdef int home = open_fd(b"/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)
    thread_begin(b"maglev-opener")
    while True:
        pthread_mutex_lock(&opener.lock)
        while opener.head == opener.tail and not opener.stop:
            pthread_cond_wait(&opener.wake, &opener.lock)
        if opener.stop:
            pthread_mutex_unlock(&opener.lock)
            break
        origin = opener.queue[opener.head % OPENER_QUEUE]
        opener.head += 1
        pthread_mutex_unlock(&opener.lock)
        opener_do(opener, origin, home)
        write(opener.settings.wake, &one, sizeof(one))
    if home >= 0:
        close(home)
    return NULL
