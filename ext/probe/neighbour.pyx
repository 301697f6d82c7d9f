# The kernel's knowledge of the way to a target: its route, the next hop's neighbour entry, and the interface. On the
# engine thread, over a netlink socket that the opener made in the origin's namespace.
#
# The kernel answers these requests within send(): the answer lies in the receive queue when send() returns, so nothing
# here waits for anything but the kernel's own lock of its network configuration. A question costs about 2 us. None of
# it needs a privilege. A kernel before 5.0, or a sandbox without AF_NETLINK, gives no answers: `asked` is False then.
#
# RTM_GETNEIGH is of one entry. A host on our link that does not answer has an entry INCOMPLETE, and FAILED after three
# seconds. No entry at all, towards a next hop that needs one, means that the kernel could not make one: the table is
# machine-wide, and holds net.ipv4.neigh.default.gc_thresh3 entries.

cdef enum:
    NETLINK_SPACE = 8192            # of an answer: a link's is the longest

cdef enum:
    HOP_UNKNOWN = 0                 # could not be asked
    HOP_SOUND = 1                   # resolved, or not known to be in trouble
    HOP_SILENT = 2                  # does not answer neighbour discovery
    HOP_MISSING = 3                 # has no entry

# The way to a target.
cdef struct Way:
    bint asked                      # the rest is known
    int error                       # of the route: 0 or an errno
    int interface
    bint local                      # the target is an address of this host
    bint v6                         # of the next hop, which may differ from the target's
    uint8_t hop[16]                 # the next hop; the target itself where it is on the link
    int64_t hop_age                 # with `hop_ask`: since its entry was made or changed, -1 = not known

cdef struct Link:
    bint up                         # administratively, with carrier
    bint resolves                   # its neighbours are to be resolved
    uint32_t carrier_changes


cdef inline uint32_t netlink_aligned(uint32_t length) noexcept nogil:
    return (length + 3) & ~<uint32_t>3


# Append an attribute to a request.
cdef void netlink_put(nlmsghdr* request, int kind, const void* data, uint32_t length) noexcept nogil:
    cdef rtattr* attribute = <rtattr*>(<uint8_t*>request + netlink_aligned(request.nlmsg_len))
    attribute.rta_type = <uint16_t>kind
    attribute.rta_len = <uint16_t>(sizeof(rtattr) + length)
    memcpy(<uint8_t*>attribute + sizeof(rtattr), data, length)
    request.nlmsg_len = netlink_aligned(request.nlmsg_len) + netlink_aligned(attribute.rta_len)


# The attribute of an answer after its `head` own bytes; NULL: it has none, or a shorter one than `least`.
cdef const uint8_t* netlink_get(const nlmsghdr* answer, size_t head, int kind, uint32_t least) noexcept nogil:
    cdef const uint8_t* at = <const uint8_t*>answer + sizeof(nlmsghdr) + netlink_aligned(<uint32_t>head)
    cdef const uint8_t* end = <const uint8_t*>answer + answer.nlmsg_len
    cdef const rtattr* attribute
    while at + sizeof(rtattr) <= end:
        attribute = <const rtattr*>at
        if attribute.rta_len < sizeof(rtattr) or at + attribute.rta_len > end:
            return NULL
        if (attribute.rta_type & 0x3fff) == kind:   # the two high bits are flags
            return at + sizeof(rtattr) if attribute.rta_len >= sizeof(rtattr) + least else NULL
        at += netlink_aligned(attribute.rta_len)
    return NULL


# Send a request and read its answer of type `wanted` and at least `least` own bytes. 0, or the errno that the
# kernel answered with; -1: no answer.
cdef int netlink_ask(Origin* origin, nlmsghdr* request, uint8_t* answer, int wanted, size_t least) noexcept nogil:
    cdef const nlmsghdr* head = <const nlmsghdr*>answer
    cdef ssize_t got
    cdef int _turn
    if origin.netlink < 0:
        return -1
    origin.netlink_serial += 1
    request.nlmsg_flags = NLM_F_REQUEST
    request.nlmsg_seq = origin.netlink_serial
    if send(origin.netlink, request, request.nlmsg_len, MSG_DONTWAIT) < 0:
        return -1
    for _turn in range(4):      # an older answer may be left; the socket is connected to the kernel, others cannot send
        got = recv(origin.netlink, answer, NETLINK_SPACE, MSG_DONTWAIT)
        if got < 0:
            return -1
        if got < <ssize_t>sizeof(nlmsghdr) or head.nlmsg_len > got or head.nlmsg_seq != request.nlmsg_seq:
            continue
        if head.nlmsg_type == NLMSG_ERROR and head.nlmsg_len >= sizeof(nlmsghdr) + sizeof(nlmsgerr):
            return -(<const nlmsgerr*>(answer + sizeof(nlmsghdr))).error
        if head.nlmsg_type != wanted or head.nlmsg_len < sizeof(nlmsghdr) + least:
            return -1
        return 0
    return -1


# The route to an address, as a packet of this origin and protocol would take it; protocol 0: any. Rules (`ip rule ...
# ipproto`) and several next hops may give each protocol another route.
cdef void way_ask(Origin* origin, const uint8_t* address, uint8_t protocol, Way* way) noexcept nogil:
    cdef uint8_t request[128]
    cdef uint8_t answer[NETLINK_SPACE]
    cdef nlmsghdr* head = <nlmsghdr*>request
    cdef rtmsg* route = <rtmsg*>(request + sizeof(nlmsghdr))
    cdef uint32_t width = 16 if origin.v6 else 4
    cdef const uint8_t* found
    cdef int error
    memset(way, 0, sizeof(Way))
    memset(request, 0, sizeof(request))
    head.nlmsg_len = sizeof(nlmsghdr) + sizeof(rtmsg)
    head.nlmsg_type = RTM_GETROUTE
    route.rtm_family = AF_INET6 if origin.v6 else AF_INET
    route.rtm_dst_len = <uint8_t>(8 * width)
    netlink_put(head, RTA_DST, address, width)
    if origin.has_source:
        route.rtm_src_len = <uint8_t>(8 * width)
        netlink_put(head, RTA_SRC, origin.source, width)
    if protocol:
        netlink_put(head, RTA_IP_PROTO, &protocol, 1)
    error = netlink_ask(origin, head, answer, RTM_NEWROUTE, sizeof(rtmsg))
    if error < 0:
        return
    way.asked = True
    way.error = error
    if error:
        return
    route = <rtmsg*>(answer + sizeof(nlmsghdr))
    way.local = route.rtm_type == RTN_LOCAL
    way.v6 = origin.v6
    memcpy(way.hop, address, width)
    found = netlink_get(<nlmsghdr*>answer, sizeof(rtmsg), RTA_OIF, 4)
    if found is not NULL:
        memcpy(&way.interface, found, 4)
    found = netlink_get(<nlmsghdr*>answer, sizeof(rtmsg), RTA_GATEWAY, width)
    if found is not NULL:
        memcpy(way.hop, found, width)
        return
    # An IPv4 route by an IPv6 gateway: a family of 16 bits, then the address.
    found = netlink_get(<nlmsghdr*>answer, sizeof(rtmsg), RTA_VIA, 18)
    if found is not NULL:
        way.v6 = True
        memcpy(way.hop, found + 2, 16)


# The route of a target's probes. A raw IPv4 SYN, whose header is ours, is of no protocol that the kernel can be asked
# for.
cdef void slot_way(Origin* origin, const Slot* slot, Way* way) noexcept nogil:
    cdef uint8_t protocol = IPPROTO_TCP
    if slot.type == PROBE_ICMP:
        protocol = IPPROTO_ICMPV6 if origin.v6 else IPPROTO_ICMP
    elif slot.type == PROBE_SYN and not origin.v6:
        protocol = 0
    way_ask(origin, slot.address, protocol, way)


# The interface with this number; False: it could not be asked, `gone` where there is none.
cdef bint link_ask(Origin* origin, int number, Link* link, bint* gone) noexcept nogil:
    cdef uint8_t request[64]
    cdef uint8_t answer[NETLINK_SPACE]
    cdef nlmsghdr* head = <nlmsghdr*>request
    cdef ifinfomsg* about = <ifinfomsg*>(request + sizeof(nlmsghdr))
    cdef uint32_t brief = RTEXT_FILTER_SKIP_STATS
    cdef const uint8_t* found
    cdef int error
    memset(link, 0, sizeof(Link))
    memset(request, 0, sizeof(request))
    gone[0] = False
    head.nlmsg_len = sizeof(nlmsghdr) + sizeof(ifinfomsg)
    head.nlmsg_type = RTM_GETLINK
    about.ifi_index = number
    netlink_put(head, IFLA_EXT_MASK, &brief, 4)
    error = netlink_ask(origin, head, answer, RTM_NEWLINK, sizeof(ifinfomsg))
    if error:
        gone[0] = error == ENODEV
        return error == ENODEV
    about = <ifinfomsg*>(answer + sizeof(nlmsghdr))
    link.up = about.ifi_flags & IFF_UP != 0
    link.resolves = about.ifi_flags & (IFF_LOOPBACK | IFF_NOARP) == 0
    found = netlink_get(<nlmsghdr*>answer, sizeof(ifinfomsg), IFLA_CARRIER, 1)
    if found is not NULL and found[0] == 0:
        link.up = False
    found = netlink_get(<nlmsghdr*>answer, sizeof(ifinfomsg), IFLA_CARRIER_CHANGES, 4)
    if found is not NULL:
        memcpy(&link.carrier_changes, found, 4)
    return True


# The next hop's neighbour entry: HOP_*.
cdef int hop_ask(Origin* origin, Way* way) noexcept nogil:
    cdef uint8_t request[64]
    cdef uint8_t answer[NETLINK_SPACE]
    cdef nlmsghdr* head = <nlmsghdr*>request
    cdef ndmsg* about = <ndmsg*>(request + sizeof(nlmsghdr))
    cdef const uint8_t* found
    cdef uint32_t ticks
    cdef int error
    way.hop_age = -1
    memset(request, 0, sizeof(request))
    head.nlmsg_len = sizeof(nlmsghdr) + sizeof(ndmsg)
    head.nlmsg_type = RTM_GETNEIGH
    about.ndm_family = AF_INET6 if way.v6 else AF_INET
    about.ndm_ifindex = way.interface
    netlink_put(head, NDA_DST, way.hop, 16 if way.v6 else 4)
    error = netlink_ask(origin, head, answer, RTM_NEWNEIGH, sizeof(ndmsg))
    if error == ENOENT:
        return HOP_MISSING
    if error:
        return HOP_UNKNOWN
    # Hundredths of a second since it was confirmed, used and changed; then a count of references.
    found = netlink_get(<nlmsghdr*>answer, sizeof(ndmsg), NDA_CACHEINFO, 12)
    if found is not NULL:
        memcpy(&ticks, found + 8, 4)
        way.hop_age = ticks * <int64_t>10 * MS
    about = <ndmsg*>(answer + sizeof(nlmsghdr))
    return HOP_SILENT if about.ndm_state & (NUD_INCOMPLETE | NUD_FAILED) else HOP_SOUND


# Opened by the opener, in the origin's namespace. -1 with errno set: a sandbox without AF_NETLINK has fewer proofs.
cdef int netlink_open() noexcept nogil:
    cdef sockaddr_nl kernel
    cdef int one = 1
    cdef int error
    cdef int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE)
    if fd < 0:
        return -1
    memset(&kernel, 0, sizeof(kernel))
    kernel.nl_family = AF_NETLINK
    if connect(fd, <sockaddr*>&kernel, sizeof(kernel)) < 0:
        error = errno
        close(fd)
        errno_set(error)
        return -1
    # An error answer need not quote the request.
    setsockopt(fd, SOL_NETLINK, NETLINK_CAP_ACK, &one, sizeof(one))
    return fd
