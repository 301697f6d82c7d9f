# Whether a packet left this host: the kernel's departure stamps. On the engine thread; the opener opens the sockets.
#
# A send() that succeeds proves little. IPv4 reports no full neighbour table, no packet that a queue refuses, no lost
# carrier; a queue may also drop an older packet for a newer one. Stamps do: SCHED is given behind routing, packet
# filter and neighbour table, SND when the driver takes the packet. Drops by the driver or the card come later.
#
# Stamped packets leave from sockets of their own ("aside"), whose filter drops all that comes in, for three reasons.
# Their stamps take no room in a receive buffer that replies need. An error queue that is not empty makes poll() return
# at once, for ever; nothing polls these. And probes to dead servers on our link stay in the send buffer until the
# kernel gives up the neighbour, three seconds later: here they hold up no live server's (raw.pyx).
#
# A stamp comes with a copy of the packet from its link header on, and (OPT_CMSG) with the interface. The packet is
# recognised by its cookie, as a reply is. The kernel could number the packets instead (OPT_ID), but whether it counts
# those that it refuses depends on its version.


# The socket options of an aside socket, before it sends. -1 with errno set.
cdef int aside_prepare(int fd, bint v6) noexcept nogil:
    cdef sock_filter nothing[1]
    cdef sock_fprog program
    cdef int one = 1
    cdef int stamps = SOF_TIMESTAMPING_SOFTWARE | SOF_TIMESTAMPING_OPT_CMSG
    nothing[0] = op(RET, 0)
    program.len = 1
    program.filter = nothing
    if setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)) < 0:
        return -1
    if v6:
        setsockopt(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &one, sizeof(one))
    else:
        setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &one, sizeof(one))
    return setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPING, &stamps, sizeof(stamps))


cdef void evidence_init(State* e) noexcept nogil:
    cdef Evidence* evidence = &e.evidence
    cdef uint32_t flags = SOF_TIMESTAMPING_TX_SOFTWARE | SOF_TIMESTAMPING_TX_SCHED
    cdef cmsghdr* item
    cdef int i
    evidence.control.msg_control = evidence.stamp
    evidence.control.msg_controllen = CMSG_SPACE(sizeof(flags))
    item = CMSG_FIRSTHDR(&evidence.control)
    item.cmsg_level = SOL_SOCKET
    item.cmsg_type = SO_TIMESTAMPING
    item.cmsg_len = CMSG_LEN(sizeof(flags))
    memcpy(CMSG_DATA(item), &flags, sizeof(flags))
    for i in range(RECV_BATCH):
        evidence.parts[i].iov_base = evidence.data[i]
        evidence.parts[i].iov_len = RECV_BYTES
        evidence.messages[i].msg_hdr.msg_iov = &evidence.parts[i]
        evidence.messages[i].msg_hdr.msg_iovlen = 1
        evidence.messages[i].msg_hdr.msg_control = evidence.controls[i]


# Ask for the stamps of a message that is about to be sent from an aside socket.
cdef inline void stamp_message(State* e, msghdr* header, Slot* slot) noexcept nogil:
    header.msg_control = e.evidence.control.msg_control
    header.msg_controllen = e.evidence.control.msg_controllen
    slot.evidence = (slot.evidence & ~EVIDENCE_OF_PROBE) | EVIDENCE_STAMPED
    slot.left_by = 0


# The slot whose probe in flight a stamp's packet is; NULL: none. Where the IP header begins depends on the interface:
# anything but a header of a packet to the slot's own address, with its cookie after it, is passed over.
cdef Slot* stamped_slot(State* e, const uint8_t* data, uint32_t length, bint v6) noexcept nogil:
    cdef uint32_t at = 0
    cdef uint32_t head = 40 if v6 else 20
    cdef uint32_t cookie, index
    cdef Slot* slot
    while at + head + 8 <= length and at <= 64:
        if (data[at] >> 4 == 6) if v6 else (data[at] == 0x45):
            # Both an echo request's identifier and a SYN's sequence number begin at the fifth byte.
            cookie = load_be32(data + at + head + 4)
            index = cookie_open(&e.settings.key, cookie) >> SERIAL_BITS
            if index < e.settings.capacity:
                slot = &e.slots[index]
                if (
                    slot.cookie == cookie
                    and slot.evidence & EVIDENCE_STAMPED
                    and slot.v6 == v6
                    and memcmp(slot.address, data + at + (24 if v6 else 16), 16 if v6 else 4) == 0
                ):
                    return slot
        at += 2
    return NULL


# Does an interface's driver say that it gives SND stamps? Asked once, when the interface is first seen: without an
# answer the first probe that passes shows it. The driver's word matters after a start in the middle of trouble, when
# nothing has passed yet: a queue of ours that drops everything would pass for dead servers. Any user may ask.
cdef uint8_t stamps_told(const Origin* origin, int number) noexcept nogil:
    cdef ifreq request
    cdef ethtool_ts_info info
    memset(&request, 0, sizeof(request))
    memset(&info, 0, sizeof(info))
    request.ifr_ifindex = number
    if ioctl(origin.resolver, SIOCGIFNAME, &request) < 0:
        return STAMPS_UNKNOWN
    info.cmd = ETHTOOL_GET_TS_INFO
    request.ifr_data = &info
    if ioctl(origin.resolver, SIOCETHTOOL, &request) < 0 or not info.so_timestamping & SOF_TIMESTAMPING_TX_SOFTWARE:
        return STAMPS_UNKNOWN
    return STAMPS_WORK


# A place in the origin's table for one more interface; INTERFACES: there is none. A full table gives away the place of
# an interface that is gone: tunnels and VLANs are made again, with a new number, for as long as the daemon runs. A
# target that last passed by the one that is gone then counts as one of the new interface.
cdef uint32_t interface_room(Origin* origin) noexcept nogil:
    cdef uint32_t i
    cdef ifreq request
    if origin.interface_count < INTERFACES:
        origin.interface_count += 1
        return origin.interface_count - 1
    for i in range(INTERFACES):
        memset(&request, 0, sizeof(request))
        request.ifr_ifindex = origin.interfaces[i].number
        if ioctl(origin.resolver, SIOCGIFNAME, &request) < 0 and errno == ENODEV:
            return i
    return INTERFACES


# The place + 1 of an interface in the origin's table; 0: the table is full.
cdef uint8_t interface_place(Origin* origin, int number) noexcept nogil:
    cdef uint32_t i
    cdef Interface* interface
    for i in range(origin.interface_count):
        if origin.interfaces[i].number == number:
            return <uint8_t>(i + 1)
    i = interface_room(origin) if number > 0 else INTERFACES
    if i == INTERFACES:
        return 0
    interface = &origin.interfaces[i]
    memset(interface, 0, sizeof(Interface))
    interface.number = number
    interface.up = True
    interface.stamps = stamps_told(origin, number)
    return <uint8_t>(i + 1)


# The interface whose canary a stamp's packet is; NULL: none.
cdef Interface* canary_interface(Origin* origin, const uint8_t* data, uint32_t length) noexcept nogil:
    cdef uint32_t at = 0
    cdef uint32_t head = 40 if origin.v6 else 20
    cdef uint32_t width = 16 if origin.v6 else 4
    cdef uint32_t place
    while at + head + ICMP_HEAD <= length and at <= 64:
        if (
            memcmp(data + at + head - width, CANARY6 if origin.v6 else CANARY4, width) == 0
            and load_be32(data + at + head + 8) == <uint32_t>(origin.magic >> 32)
        ):
            place = load_be32(data + at + head + 4)
            return &origin.interfaces[place - 1] if 0 < place <= origin.interface_count else NULL
        at += 2
    return NULL


# One message of an error queue.
cdef void departure_note(State* e, Origin* origin, mmsghdr* message) noexcept nogil:
    cdef cmsghdr* control = CMSG_FIRSTHDR(&message.msg_hdr)
    cdef sock_extended_err error
    cdef in_pktinfo info4
    cdef in6_pktinfo info6
    cdef Slot* slot
    cdef Interface* canary
    cdef const uint8_t* data = <const uint8_t*>message.msg_hdr.msg_iov.iov_base
    cdef int interface = 0
    cdef bint stamp = False
    memset(&error, 0, sizeof(error))
    while control is not NULL:
        if control.cmsg_level == IPPROTO_IP and control.cmsg_type == IP_PKTINFO:
            memcpy(&info4, CMSG_DATA(control), sizeof(info4))
            interface = info4.ipi_ifindex
        elif control.cmsg_level == IPPROTO_IPV6 and control.cmsg_type == IPV6_PKTINFO:
            memcpy(&info6, CMSG_DATA(control), sizeof(info6))
            interface = <int>info6.ipi6_ifindex
        elif (control.cmsg_level == IPPROTO_IP and control.cmsg_type == IP_RECVERR) or (
            control.cmsg_level == IPPROTO_IPV6 and control.cmsg_type == IPV6_RECVERR
        ):
            memcpy(&error, CMSG_DATA(control), sizeof(error))
            stamp = error.ee_origin == SO_EE_ORIGIN_TIMESTAMPING
        control = CMSG_NXTHDR(&message.msg_hdr, control)
    if not stamp:
        return
    slot = stamped_slot(e, data, message.msg_len, origin.v6)
    if slot is NULL or slot.origin != origin.id:
        # Of a probe that has ended, or a canary.
        canary = canary_interface(origin, data, message.msg_len) if error.ee_info == SCM_TSTAMP_SND else NULL
        if canary is not NULL:
            canary.left_at = e.clock.now
        return
    if error.ee_info == SCM_TSTAMP_SND:
        slot.evidence |= EVIDENCE_LEFT | EVIDENCE_QUEUED
        if slot.left_by:
            origin.interfaces[slot.left_by - 1].left_at = e.clock.now
    elif error.ee_info == SCM_TSTAMP_SCHED:
        slot.evidence |= EVIDENCE_QUEUED
        # A bridge, VLAN or tunnel hands the packet to another interface, which stamps it too. The first is the route's.
        if slot.left_by == 0:
            slot.left_by = interface_place(origin, interface)


# Read all stamps that have come. Bounded: what is left is read before the next probe fails.
cdef void departures_read(State* e, Origin* origin, int kind) noexcept nogil:
    cdef Evidence* evidence = &e.evidence
    cdef msghdr* header
    cdef int i, count
    cdef int turn = 0
    if origin.aside[kind] < 0:
        return
    while turn < RECV_ROUNDS:
        turn += 1
        for i in range(RECV_BATCH):
            header = &evidence.messages[i].msg_hdr
            header.msg_controllen = ERROR_CONTROL
            header.msg_name = NULL
            header.msg_namelen = 0
        count = recvmmsg(origin.aside[kind], evidence.messages, RECV_BATCH, MSG_DONTWAIT | MSG_ERRQUEUE, NULL)
        if count < 0 and errno == EINTR:
            continue
        for i in range(count):
            departure_note(e, origin, &evidence.messages[i])
        if count < RECV_BATCH:
            break


# A SYN to where a connection was tried, from the same address and port, with departure stamps: it meets the same route,
# packet filter, connection tracking and queue. `local` is what getsockname() said of the connection, which must be
# closed before: the kernel then resets what answers. 0: it is out, and its stamps come within TWIN_WAIT; ENOTSUP: this
# origin cannot send one (no CAP_NET_RAW); any other errno is the kernel's refusal, and the proof that the connection's
# own SYN could not leave.
cdef int twin_send(State* e, uint32_t index, const sockaddr_in6* local) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef const Check* check = e.checks[slot.check]
    cdef Origin* origin = e.origins.table[slot.origin]
    cdef uint8_t packet[HEAD_BYTES]
    cdef char control[96]
    cdef sockaddr_in6 name
    cdef iovec part
    cdef msghdr header
    cdef cmsghdr* item
    cdef in6_pktinfo info
    cdef const uint8_t* source
    cdef uint16_t port = ntohs(local.sin6_port)
    if origin.aside[1] < 0:
        return ENOTSUP
    departures_read(e, origin, 1)
    slot.serial = (slot.serial + 1) & SERIAL_MASK
    slot.cookie = cookie_seal(&e.settings.key, (index << SERIAL_BITS) | slot.serial)
    memset(&header, 0, sizeof(header))
    memset(control, 0, sizeof(control))
    header.msg_name = &name
    header.msg_namelen = raw_name(&name, slot.v6, slot.address)
    header.msg_iov = &part
    header.msg_iovlen = 1
    part.iov_base = packet
    stamp_message(e, &header, slot)
    memcpy(control, header.msg_control, header.msg_controllen)
    header.msg_control = control
    if slot.v6:
        build_syn(packet, port, check.port, slot.cookie)
        part.iov_len = TCP_HEAD
        header.msg_controllen = CMSG_SPACE(4) + CMSG_SPACE(sizeof(info))
        memset(&info, 0, sizeof(info))
        memcpy(&info.ipi6_addr, &local.sin6_addr, 16)
        item = <cmsghdr*>(control + CMSG_SPACE(4))
        item.cmsg_level = IPPROTO_IPV6
        item.cmsg_type = IPV6_PKTINFO
        item.cmsg_len = CMSG_LEN(sizeof(info))
        memcpy(CMSG_DATA(item), &info, sizeof(info))
    else:
        source = <const uint8_t*>&(<const sockaddr_in*>local).sin_addr
        build_syn4(packet, source, slot.address, port, check.port, slot.cookie)
        part.iov_len = IP4_HEAD + TCP_HEAD
    if sendmsg(origin.aside[1], &header, MSG_DONTWAIT) < 0:
        return errno
    departures_read(e, origin, 1)
    return 0


# Send the packet of an IPv4 probe that has just timed out once more, from the socket of all probes, and have the kernel
# say if a queue or a driver drops it: IPv4 reports that only with IP_RECVERR (a veth drops a packet that is larger than
# its far end's MTU, after the SND stamp). IPv6 has reported it at the first send.
#
# The option is on for this one call. With it an ICMP error that came back for any other target would fail this send,
# and the next receive; so an errno other than ENOBUFS is passed over, and the socket's error is taken at the end.
cdef bint dropped_by_driver(State* e, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef Origin* origin = e.origins.table[slot.origin]
    cdef int fd = origin.tcp.fd if slot.type == PROBE_SYN else origin.icmp.fd
    cdef int on = 1
    cdef int off = 0
    cdef int error = 0
    cdef int _turn
    cdef socklen_t length = sizeof(error)
    if slot.v6 or fd < 0:
        return False
    if slot.type == PROBE_ICMP:
        icmp_build(e, origin, 0, index)
    elif slot.source[0] == 0 or not syn_build(e, origin, 0, index):
        return False
    if setsockopt(fd, IPPROTO_IP, IP_RECVERR, &on, sizeof(on)) < 0:
        return False
    for _turn in range(3):
        error = 0
        if sendmsg(fd, &e.raw.send.messages[0].msg_hdr, MSG_DONTWAIT) >= 0:
            break
        error = errno
        if error == ENOBUFS:
            break
    # This empties the error queue, too.
    setsockopt(fd, IPPROTO_IP, IP_RECVERR, &off, sizeof(off))
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &off, &length)
    return error == ENOBUFS


# Link-scope groups for experiments (RFC 4727): no router forwards to them, and no host has joined them.
cdef const uint8_t* CANARY4 = <const uint8_t*>b"\xe0\x00\x00\xfe"
cdef const uint8_t* CANARY6 = <const uint8_t*>b"\xff\x02\0\0\0\0\0\0\0\0\0\0\0\0\x01\x14"


# Send a stamped packet out of an interface that needs no neighbour: an echo reply, which has no answer, to a group
# without members. False: it could not be sent.
cdef bint canary_send(State* e, Origin* origin, uint8_t place) noexcept nogil:
    cdef uint8_t packet[ICMP_HEAD]
    cdef char control[96]
    cdef sockaddr_in6 name
    cdef iovec part
    cdef msghdr header
    cdef cmsghdr* item
    cdef in_pktinfo info4
    cdef in6_pktinfo info6
    build_echo(packet, origin.v6, place, origin.magic, 0)
    packet[0] = 129 if origin.v6 else 0
    if not origin.v6:
        store_be16(packet + 2, 0)
        store_be16(packet + 2, fold(sum_bytes(packet, ICMP_HEAD)))
    memset(&header, 0, sizeof(header))
    memset(control, 0, sizeof(control))
    header.msg_name = &name
    header.msg_namelen = fill_name(&name, origin.v6, CANARY6 if origin.v6 else CANARY4, 0)
    header.msg_iov = &part
    header.msg_iovlen = 1
    part.iov_base = packet
    part.iov_len = ICMP_HEAD
    memcpy(control, e.evidence.control.msg_control, e.evidence.control.msg_controllen)
    header.msg_control = control
    item = <cmsghdr*>(control + CMSG_SPACE(4))
    if origin.v6:
        memset(&info6, 0, sizeof(info6))
        info6.ipi6_ifindex = <unsigned int>origin.interfaces[place - 1].number
        if origin.has_source:
            memcpy(&info6.ipi6_addr, origin.source, 16)
        item.cmsg_level = IPPROTO_IPV6
        item.cmsg_type = IPV6_PKTINFO
        item.cmsg_len = CMSG_LEN(sizeof(info6))
        memcpy(CMSG_DATA(item), &info6, sizeof(info6))
        header.msg_controllen = CMSG_SPACE(4) + CMSG_SPACE(sizeof(info6))
    else:
        memset(&info4, 0, sizeof(info4))
        info4.ipi_ifindex = origin.interfaces[place - 1].number
        if origin.has_source:
            memcpy(&info4.ipi_spec_dst, origin.source, 4)
        item.cmsg_level = IPPROTO_IP
        item.cmsg_type = IP_PKTINFO
        item.cmsg_len = CMSG_LEN(sizeof(info4))
        memcpy(CMSG_DATA(item), &info4, sizeof(info4))
        header.msg_controllen = CMSG_SPACE(4) + CMSG_SPACE(sizeof(info4))
    return sendmsg(origin.aside[0], &header, MSG_DONTWAIT) >= 0


# A next hop that does not answer is dead (BLOCK_NONE) only if packets have left by this interface since `since`: a
# queue of ours that drops everything drops ARP requests, too (BLOCK_QUEUE). Where nothing of ours left, a packet is
# sent that needs no neighbour. BLOCK_NONE where that cannot be known.
#
# After a time in which our queue dropped everything, or without carrier, the kernel's next attempt at the neighbour may
# be a second off, and the answers to the attempts before are missing for our own reasons. Such a time may have ended
# just before the first look at an interface, so the first look counts as one.
cdef int egress_kind(State* e, Origin* origin, uint8_t place, int64_t since) noexcept nogil:
    cdef Interface* interface
    if place == 0 or place > origin.interface_count or origin.aside[0] < 0:
        return BLOCK_NONE
    interface = &origin.interfaces[place - 1]
    if interface.changed_at and e.clock.now - interface.changed_at < SOLICITING * <int64_t>MS:
        return BLOCK_LINK
    if interface.resolves and e.clock.now - interface.first_at < RESOLICITING * <int64_t>MS:
        return BLOCK_LINK
    if interface.stamps != STAMPS_WORK:
        return BLOCK_NONE
    if interface.left_at <= since and not canary_leaves(e, origin, place, since):
        interface.stuck_at = e.clock.now
    if interface.stuck_at and e.clock.now - interface.stuck_at < SOLICITING * <int64_t>MS:
        return BLOCK_QUEUE
    return BLOCK_NONE


cdef bint canary_leaves(State* e, Origin* origin, uint8_t place, int64_t since) noexcept nogil:
    cdef Interface* interface = &origin.interfaces[place - 1]
    if interface.canary_at != e.clock.tick_start:
        interface.canary_at = e.clock.tick_start
        if not canary_send(e, origin, place):
            # IPv6 says so where a queue refuses a packet. Another errno says nothing of the queue.
            return errno != ENOBUFS
    departures_read(e, origin, 0)
    return interface.left_at > since
